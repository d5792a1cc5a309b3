//! Writes an artifact.
//!
//! Invariant: the file appears under its name complete and synced, or not at all, and a failure
//! leaves nothing behind. Sections are streamed: nothing is held that the caller does not hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::memory::{Budget, Buffer, MemoryError};
use crate::unfinished::Unfinished;

use super::{
    FORMAT_VERSION, HASH_DIGITS, HASH_KEY, LENGTH_BYTES, MAX_HEADER_BYTES, PAD, PREFIX, SECTION_ALIGNMENT, header_hash,
};

/// What an artifact says about itself besides its sections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The version of the compiler.
    pub compiler: String,
    /// The options it ran with, in the caller's words. Nothing here may depend on the machine, or
    /// artifacts stop being reproducible.
    pub options: BTreeMap<String, String>,
    /// Hashes of what it was made from: the model, the compiler.
    pub hashes: BTreeMap<String, String>,
}

type Producer<'a> = Box<dyn FnMut(&mut dyn Write) -> io::Result<()> + 'a>;

/// A named part of the file.
pub struct Section<'a> {
    name: String,
    bytes: u64,
    produce: Producer<'a>,
}

impl<'a> Section<'a> {
    /// A section that is in memory.
    pub fn new(name: impl Into<String>, data: &'a [u8]) -> Self {
        Self::streamed(name, data.len() as u64, move |out| out.write_all(data))
    }

    /// A section of `bytes` bytes that `produce` writes when its turn comes; it is called once.
    pub fn streamed(
        name: impl Into<String>,
        bytes: u64,
        produce: impl FnMut(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Self {
        Self { name: name.into(), bytes, produce: Box::new(produce) }
    }
}

/// Why an artifact was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The folder cannot be written to, or does not exist.
    #[error("{} is not writable", path.display())]
    NotWritable {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is something under the name that is not a file.
    #[error("{} exists and is not a regular file", path.display())]
    NotAFile {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// The disk or the quota is used up.
    #[error("no space left to write the {bytes} bytes of {}", path.display())]
    NoSpace {
        /// The file that was to be written.
        path: PathBuf,
        /// The size of the artifact.
        bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Any other failure of the system or of a section's producer.
    #[error("cannot write the artifact")]
    Io(#[source] io::Error),
    /// A section's name is empty, repeated, reserved or has other characters than `a-z0-9._-`.
    #[error("`{0}` cannot name a section here")]
    Name(String),
    /// A producer wrote less or more than it had announced.
    #[error("section {name} was announced with {announced} bytes, but came with {written}")]
    Length {
        /// The section.
        name: String,
        /// The size announced.
        announced: u64,
        /// The size produced.
        written: u64,
    },
    /// The memory for an artifact in memory is not to be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The sections and options do not fit the format.
    #[error("the artifact exceeds the limits of its format")]
    TooLarge,
}

/// Writes an artifact to `path`, replacing a file that is there, and returns its size in bytes.
///
/// The bytes go to a file without a name in the same folder, are synced, and take the name in one step.
///
/// # Errors
/// See [`WriteError`]; `path` is as it was before, and nothing is left.
pub fn write(path: &Path, manifest: &Manifest, sections: Vec<Section<'_>>) -> Result<u64, WriteError> {
    let layout = Layout::new(manifest, sections)?;
    let bytes = layout.file_bytes;
    replace_with(path, bytes, |out| layout.write(out))?;
    Ok(bytes)
}

/// Writes a file of about `bytes` bytes to `path` as [`write()`] does: complete and synced, or not at all.
///
/// # Errors
/// See [`WriteError`]; `path` is as it was before.
pub fn replace(
    path: &Path,
    bytes: u64,
    produce: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    replace_with(path, bytes, |out| produce(out).map_err(WriteError::Io))
}

fn replace_with(
    path: &Path,
    bytes: u64,
    produce: impl FnOnce(&mut BufWriter<&mut File>) -> Result<(), WriteError>,
) -> Result<(), WriteError> {
    let named = |error: WriteError| match error {
        WriteError::Io(source) => classify(path, bytes, source),
        other => other,
    };
    let io = |source| classify(path, bytes, source);
    let mut unfinished = Unfinished::create(path).map_err(|source| match source.kind() {
        ErrorKind::InvalidInput => WriteError::NotAFile { path: path.to_path_buf() },
        _ => io(source),
    })?;
    let mut out = BufWriter::with_capacity(1 << 20, unfinished.file());
    produce(&mut out).map_err(named)?;
    out.into_inner().map_err(|error| io(error.into_error()))?;
    unfinished.finish().map_err(io)
}

/// Writes an artifact to the current position of any seekable output, which must be its start, and
/// returns its size in bytes.
///
/// # Errors
/// See [`WriteError`]; what was written up to then is worthless.
pub fn write_to(
    out: &mut (impl Write + Seek),
    manifest: &Manifest,
    sections: Vec<Section<'_>>,
) -> Result<u64, WriteError> {
    let layout = Layout::new(manifest, sections)?;
    let bytes = layout.file_bytes;
    layout.write(out)?;
    out.flush().map_err(WriteError::Io)?;
    Ok(bytes)
}

/// The artifact in memory, which is charged to the budget; the bytes exist once.
///
/// # Errors
/// See [`WriteError`].
pub fn to_buffer(budget: &Budget, manifest: &Manifest, sections: Vec<Section<'_>>) -> Result<Buffer, WriteError> {
    let layout = Layout::new(manifest, sections)?;
    let mut buffer = Buffer::zeroed(budget, layout.file_bytes, "the artifact")?;
    layout.write(&mut io::Cursor::new(buffer.as_mut_slice()))?;
    Ok(buffer)
}

fn classify(path: &Path, bytes: u64, source: io::Error) -> WriteError {
    let path = path.to_path_buf();
    match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            WriteError::NoSpace { path, bytes, source }
        }
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotFound
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::InvalidFilename => WriteError::NotWritable { path, source },
        _ => WriteError::Io(source),
    }
}

/// Where everything goes, known before the first byte is written.
struct Layout<'a> {
    manifest: Manifest,
    /// Sorted by name, with the offset of each from the start of the data.
    sections: Vec<(u64, Section<'a>)>,
    header_bytes: u64,
    file_bytes: u64,
}

impl<'a> Layout<'a> {
    fn new(manifest: &Manifest, mut sections: Vec<Section<'a>>) -> Result<Self, WriteError> {
        sections.sort_by(|left, right| left.name.cmp(&right.name));
        for (index, section) in sections.iter().enumerate() {
            let name = &section.name;
            let spelled = !name.is_empty()
                && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
            let repeated = index > 0 && sections.get(index - 1).is_some_and(|x| x.name == *name);
            if !spelled || repeated || name.starts_with(PAD) || name == "__metadata__" {
                return Err(WriteError::Name(name.clone()));
            }
        }
        let mut end = 0u64;
        let mut placed = Vec::with_capacity(sections.len());
        for section in sections {
            let start = end.checked_next_multiple_of(SECTION_ALIGNMENT).ok_or(WriteError::TooLarge)?;
            end = start.checked_add(section.bytes).ok_or(WriteError::TooLarge)?;
            placed.push((start, section));
        }
        let mut layout = Self { manifest: manifest.clone(), sections: placed, header_bytes: 0, file_bytes: 0 };
        // Hashes have one length, so a header with made-up ones has the size of the real one.
        let unhashed = vec![blake3::Hash::from_bytes([0; 32]); layout.sections.len()];
        let used = LENGTH_BYTES as u64 + layout.header(&unhashed).len() as u64;
        let data_start = used.next_multiple_of(SECTION_ALIGNMENT);
        layout.header_bytes = data_start - LENGTH_BYTES as u64;
        if layout.header_bytes > MAX_HEADER_BYTES {
            return Err(WriteError::TooLarge);
        }
        layout.file_bytes = data_start.checked_add(end).ok_or(WriteError::TooLarge)?;
        Ok(layout)
    }

    /// The header's JSON without its padding, with the header's own hash still zero.
    fn header(&self, hashes: &[blake3::Hash]) -> String {
        // Written by hand because the reader relies on the order of the first keys.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut entries = BTreeMap::new();
        entries.insert("compiler".to_string(), self.manifest.compiler.clone());
        for ((_, section), hash) in self.sections.iter().zip(hashes) {
            entries.insert(format!("blake3.{}", section.name), hash.to_string());
        }
        for (name, value) in &self.manifest.options {
            entries.insert(format!("option.{name}"), value.clone());
        }
        for (name, value) in &self.manifest.hashes {
            entries.insert(format!("hash.{name}"), value.clone());
        }
        let mut header = String::from_utf8_lossy(PREFIX).into_owned();
        header.push_str(&FORMAT_VERSION.to_string());
        header.push_str(&String::from_utf8_lossy(HASH_KEY));
        header.extend(std::iter::repeat_n('0', HASH_DIGITS));
        header.push('"');
        for (key, value) in &entries {
            header.push_str(&format!(",{}:{}", quoted(key), quoted(value)));
        }
        header.push('}');
        let mut end = 0;
        let mut tensor = |name: &str, start: u64, bytes: u64| {
            let (name, end) = (quoted(name), start + bytes);
            header.push_str(&format!(r#",{name}:{{"dtype":"U8","shape":[{bytes}],"data_offsets":[{start},{end}]}}"#));
        };
        for (index, (start, section)) in self.sections.iter().enumerate() {
            if end < *start {
                tensor(&format!("{PAD}{index}"), end, start - end);
            }
            tensor(&section.name, *start, section.bytes);
            end = start + section.bytes;
        }
        header.push('}');
        header
    }

    /// Length, header and padding up to the data, with the header's hash in place.
    fn front(&self, hashes: &[blake3::Hash]) -> Result<Vec<u8>, WriteError> {
        let mut front = self.header_bytes.to_le_bytes().to_vec();
        front.extend_from_slice(self.header(hashes).as_bytes());
        let size = usize::try_from(self.header_bytes).map_err(|_| WriteError::TooLarge)?;
        front.resize(LENGTH_BYTES + size, b' ');
        let start = LENGTH_BYTES + PREFIX.len() + FORMAT_VERSION.to_string().len() + HASH_KEY.len();
        let digits = start..start + HASH_DIGITS;
        let hash = header_hash(&front, digits.clone()).ok_or(WriteError::TooLarge)?;
        if let Some(place) = front.get_mut(digits) {
            place.copy_from_slice(hash.to_hex().as_bytes());
        }
        Ok(front)
    }

    fn write(mut self, out: &mut (impl Write + Seek)) -> Result<(), WriteError> {
        let start = out.stream_position().map_err(WriteError::Io)?;
        // The header needs the hashes, which are known only after the data has gone by: its place
        // is left blank and filled last. A file that stays unfinished is therefore no artifact.
        let blank = vec![b' '; LENGTH_BYTES + self.header_bytes as usize];
        out.write_all(&blank).map_err(WriteError::Io)?;
        let mut hashes = Vec::with_capacity(self.sections.len());
        let mut end = 0;
        for (offset, section) in &mut self.sections {
            let padding = [0; SECTION_ALIGNMENT as usize];
            let gap = padding.get(..(*offset - end) as usize).unwrap_or_default();
            out.write_all(gap).map_err(WriteError::Io)?;
            hashes.push(write_section(out, section)?);
            end = *offset + section.bytes;
        }
        let front = self.front(&hashes)?;
        out.seek(SeekFrom::Start(start)).map_err(WriteError::Io)?;
        out.write_all(&front).map_err(WriteError::Io)?;
        out.seek(SeekFrom::Start(start.saturating_add(self.file_bytes))).map_err(WriteError::Io)?;
        Ok(())
    }
}

/// Hashes and counts what passes through, and stops a producer that has announced less.
struct Tee<'a, W> {
    out: &'a mut W,
    hasher: blake3::Hasher,
    written: u64,
    announced: u64,
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.written.saturating_add(data.len() as u64) > self.announced {
            self.written = self.written.saturating_add(data.len() as u64);
            return Err(io::Error::other("the section is longer than announced"));
        }
        let taken = self.out.write(data)?;
        self.hasher.update(data.get(..taken).unwrap_or(data));
        self.written += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_section(out: &mut impl Write, section: &mut Section<'_>) -> Result<blake3::Hash, WriteError> {
    let mut tee = Tee { out, hasher: blake3::Hasher::new(), written: 0, announced: section.bytes };
    let produced = (section.produce)(&mut tee);
    // Too much is reported as that, whatever the producer made of the error it got.
    if tee.written > tee.announced || (produced.is_ok() && tee.written < tee.announced) {
        return Err(WriteError::Length { name: section.name.clone(), announced: tee.announced, written: tee.written });
    }
    produced.map_err(WriteError::Io)?;
    Ok(tee.hasher.finalize())
}

//! Maps an artifact and checks it.
//!
//! Invariant: an [`Artifact`] exists only if its header, its padding and every section hash as the
//! header says (weights unless [`LoadOptions`] skips them), so its users check meaning, never
//! bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};

use super::{
    FORMAT_VERSION, HASH_DIGITS, HASH_KEY, LENGTH_BYTES, MAX_HEADER_BYTES, PAD, PREFIX, SECTION_ALIGNMENT, WEIGHTS,
    describe, header_hash, is_artifact,
};
use crate::cpu::CpuLevel;
use crate::memory::Buffer;

/// How to load an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether the weights are hashed too. This reads all of them, at several GB/s once they are
    /// in the page cache; without it a load touches only what it uses.
    pub verify_weights: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { verify_weights: true }
    }
}

/// Why an artifact could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file could not be opened or mapped.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The path names a folder, a device or a pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is of another kind.
    #[error("this is no Kiln artifact but looks like {looks_like}; `kiln compile` makes an artifact from a model")]
    NotAnArtifact {
        /// What it looks like instead.
        looks_like: &'static str,
    },
    /// The file was written by a newer compiler.
    #[error(
        "the artifact has format {found}, but this program reads formats up to {supported}; use a newer Kiln or compile the model again"
    )]
    Newer {
        /// The file's format version.
        found: u32,
        /// The newest format this program reads.
        supported: u32,
    },
    /// The file ends early.
    #[error("the artifact is truncated: it has {found} of its {expected} bytes")]
    Truncated {
        /// Size of the file.
        found: u64,
        /// Size it should have.
        expected: u64,
    },
    /// The file goes on after its end.
    #[error("the artifact has {extra} bytes after its end")]
    TooLong {
        /// Number of extra bytes.
        extra: u64,
    },
    /// Some bytes are not those that were written.
    #[error("the artifact is damaged: its {section} section does not match its hash")]
    Damaged {
        /// The part that is damaged.
        section: String,
    },
    /// The hashes match, but the header breaks the format's rules.
    #[error("the artifact's header is invalid: {0}")]
    Header(String),
    /// A section is not there.
    #[error("the artifact has no {name} section")]
    Missing {
        /// The section.
        name: String,
    },
    /// A section that should hold text does not.
    #[error("the artifact's {name} section is not UTF-8 text")]
    NotText {
        /// The section.
        name: String,
    },
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Buffer),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(buffer) => buffer.as_slice(),
        }
    }
}

/// A checked artifact. Immutable and shared freely between threads.
#[derive(Debug)]
pub struct Artifact {
    bytes: Bytes,
    contents: Contents,
}

impl Artifact {
    /// Maps the file at `path` and checks it. The file must not be changed while the artifact is
    /// in use; replacing it by another under the same name, as the compiler does, is harmless.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn open(path: &Path, options: &LoadOptions) -> Result<Self, ArtifactError> {
        let io = |source| ArtifactError::Io { path: path.to_path_buf(), source };
        // Asked before opening, because opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(ArtifactError::NotAFile { path: path.to_path_buf() });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and private. Rust's rule that the bytes do not change
        // under a `&[u8]` holds as far as a file can promise it: Kiln replaces artifacts by rename
        // and never writes into one. Code is copied after its hash was checked, so even a changed
        // file changes no instruction.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::check(Bytes::Mapped(map), options)
    }

    /// Takes an artifact that is in memory.
    ///
    /// # Errors
    /// See [`ArtifactError`].
    pub fn from_buffer(buffer: Buffer, options: &LoadOptions) -> Result<Self, ArtifactError> {
        Self::check(Bytes::Owned(buffer), options)
    }

    fn check(bytes: Bytes, options: &LoadOptions) -> Result<Self, ArtifactError> {
        let contents = Contents::parse(bytes.as_slice())?;
        contents.verify(bytes.as_slice(), options)?;
        Ok(Self { bytes, contents })
    }

    /// Hashes the weights: for those who opened the artifact without, to do so beside other work.
    ///
    /// # Errors
    /// [`ArtifactError::Damaged`].
    pub fn verify_weights(&self) -> Result<(), ArtifactError> {
        match self.contents.sections.get(WEIGHTS) {
            Some(section) => section.verify(WEIGHTS, self.bytes.as_slice()),
            None => Ok(()),
        }
    }

    /// The version of the compiler that wrote the artifact.
    pub fn compiler(&self) -> &str {
        &self.contents.compiler
    }

    /// The options the artifact was compiled with.
    pub fn options(&self) -> &BTreeMap<String, String> {
        &self.contents.options
    }

    /// The hashes of what the artifact was made from.
    pub fn hashes(&self) -> &BTreeMap<String, String> {
        &self.contents.hashes
    }

    /// A hash of the whole artifact: equal for equal files.
    pub fn identity(&self) -> &str {
        &self.contents.identity
    }

    /// Names and sizes in bytes of all sections, by name.
    pub fn sections(&self) -> impl Iterator<Item = (&str, u64)> {
        let sections = self.contents.sections.iter();
        sections.map(|(name, section)| (name.as_str(), section.range.len() as u64))
    }

    /// A section's bytes, which start on a [`SECTION_ALIGNMENT`] boundary in memory too.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`].
    pub fn section(&self, name: &str) -> Result<&[u8], ArtifactError> {
        let section = self.contents.sections.get(name);
        section
            .and_then(|section| self.bytes.as_slice().get(section.range.clone()))
            .ok_or_else(|| ArtifactError::Missing { name: name.to_string() })
    }

    /// The hash of a section's bytes, as hexadecimal digits; nothing where it is not there.
    pub fn section_hash(&self, name: &str) -> Option<String> {
        self.contents.sections.get(name).map(|section| section.hash.to_string())
    }

    /// A section that holds text.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`] or [`ArtifactError::NotText`].
    pub fn text(&self, name: &str) -> Result<&str, ArtifactError> {
        std::str::from_utf8(self.section(name)?).map_err(|_| ArtifactError::NotText { name: name.to_string() })
    }

    /// The names of the entries, the first one's being empty; see [`super::of_entry`].
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        let plan =
            |name: &'_ str| name.strip_prefix(super::ENTRY)?.strip_suffix(super::PLAN)?.strip_suffix('.').map(str::len);
        let named = self.contents.sections.keys().filter_map(move |name| {
            let length = plan(name)?;
            name.get(super::ENTRY.len()..super::ENTRY.len() + length)
        });
        std::iter::once("").chain(named)
    }

    /// The CPU levels there is code of the first entry for, in ascending order.
    pub fn levels(&self) -> impl Iterator<Item = CpuLevel> {
        self.levels_of("")
    }

    /// The CPU levels there is code of an entry for, in ascending order.
    pub fn levels_of(&self, entry: &str) -> impl Iterator<Item = CpuLevel> {
        let has_code = move |level: &CpuLevel| {
            let name = super::of_entry(entry, &super::code_section(*level));
            self.contents.sections.contains_key(&name)
        };
        CpuLevel::ALL.into_iter().filter(has_code)
    }
}

#[derive(Debug)]
struct SectionInfo {
    range: Range<usize>,
    hash: blake3::Hash,
}

impl SectionInfo {
    fn verify(&self, name: &str, file: &[u8]) -> Result<(), ArtifactError> {
        let hash = file.get(self.range.clone()).map(blake3::hash);
        if hash == Some(self.hash) { Ok(()) } else { Err(damaged(name)) }
    }
}

#[derive(Debug)]
struct Contents {
    compiler: String,
    options: BTreeMap<String, String>,
    hashes: BTreeMap<String, String>,
    identity: String,
    sections: BTreeMap<String, SectionInfo>,
    padding: Vec<Range<usize>>,
}

fn damaged(section: &str) -> ArtifactError {
    ArtifactError::Damaged { section: section.to_string() }
}

fn invalid(why: impl ToString) -> ArtifactError {
    ArtifactError::Header(why.to_string())
}

impl Contents {
    /// Reads the header, after its hash was checked, and places the sections.
    fn parse(file: &[u8]) -> Result<Self, ArtifactError> {
        if !is_artifact(file) {
            return Err(ArtifactError::NotAnArtifact { looks_like: describe(file) });
        }
        let damaged_header = || damaged("header");
        // The version comes first: everything after it may differ in another format.
        let version_start = LENGTH_BYTES + PREFIX.len();
        let digits = file.get(version_start..).unwrap_or_default();
        let version_length = digits.iter().take_while(|x| x.is_ascii_digit()).count();
        let hash_key = version_start + version_length;
        let version = file
            .get(version_start..hash_key)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse::<u32>().ok())
            .ok_or_else(damaged_header)?;
        if version > FORMAT_VERSION {
            return Err(ArtifactError::Newer { found: version, supported: FORMAT_VERSION });
        }
        let header_bytes = file
            .first_chunk::<LENGTH_BYTES>()
            .map(|length| u64::from_le_bytes(*length))
            .filter(|length| *length <= MAX_HEADER_BYTES)
            .ok_or_else(damaged_header)?;
        let data_start = LENGTH_BYTES + header_bytes as usize;
        let truncated = |expected: u64| ArtifactError::Truncated { found: file.len() as u64, expected };
        let front = file.get(..data_start).ok_or_else(|| truncated(data_start as u64))?;
        let hash_start = hash_key + HASH_KEY.len();
        let hash_digits = hash_start..hash_start + HASH_DIGITS;
        let stored = front
            .get(hash_key..hash_start)
            .filter(|key| *key == HASH_KEY)
            .and_then(|_| front.get(hash_digits.clone()))
            .ok_or_else(damaged_header)?;
        let actual = header_hash(front, hash_digits).ok_or_else(damaged_header)?;
        // Compared as text: a digit in the other case is a changed byte too.
        if actual.to_hex().as_bytes() != stored {
            return Err(damaged_header());
        }

        let header = front.get(LENGTH_BYTES..).unwrap_or_default();
        // This also checks that the tensors follow each other without a gap.
        let parsed: Metadata = serde_json::from_slice(header).map_err(invalid)?;
        if !(data_start as u64).is_multiple_of(SECTION_ALIGNMENT) {
            return Err(invalid("the data is not aligned"));
        }
        let expected =
            data_start.checked_add(parsed.data_len()).ok_or_else(|| invalid("the sections are too large"))?;
        if file.len() < expected {
            return Err(truncated(expected as u64));
        }
        if file.len() > expected {
            return Err(ArtifactError::TooLong { extra: (file.len() - expected) as u64 });
        }
        let no_metadata = HashMap::new();
        let metadata = parsed.metadata().as_ref().unwrap_or(&no_metadata);
        let mut contents = Self {
            compiler: metadata.get("compiler").cloned().unwrap_or_default(),
            options: BTreeMap::new(),
            hashes: BTreeMap::new(),
            identity: actual.to_string(),
            sections: BTreeMap::new(),
            padding: Vec::new(),
        };
        for (key, value) in metadata {
            if let Some(name) = key.strip_prefix("option.") {
                contents.options.insert(name.to_string(), value.clone());
            }
            if let Some(name) = key.strip_prefix("hash.") {
                contents.hashes.insert(name.to_string(), value.clone());
            }
        }
        for (name, tensor) in parsed.tensors() {
            // Both ends are at most `data_len`, so adding the start cannot overflow.
            let (start, end) = tensor.data_offsets;
            let range = data_start + start..data_start + end;
            if tensor.dtype != Dtype::U8 {
                return Err(invalid(format!("section {name} is not of bytes")));
            }
            if name.starts_with(PAD) {
                contents.padding.push(range);
                continue;
            }
            if !(range.start as u64).is_multiple_of(SECTION_ALIGNMENT) {
                return Err(invalid(format!("section {name} is not aligned")));
            }
            let hash = metadata
                .get(&format!("blake3.{name}"))
                .and_then(|hex| blake3::Hash::from_hex(hex).ok())
                .ok_or_else(|| invalid(format!("section {name} has no hash")))?;
            contents.sections.insert(name, SectionInfo { range, hash });
        }
        Ok(contents)
    }

    fn verify(&self, file: &[u8], options: &LoadOptions) -> Result<(), ArtifactError> {
        for range in &self.padding {
            let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
            if !file.get(range.clone()).is_some_and(zero) {
                return Err(damaged("padding"));
            }
        }
        for (name, section) in &self.sections {
            if name == WEIGHTS && !options.verify_weights {
                continue;
            }
            section.verify(name, file)?;
        }
        Ok(())
    }
}

//! The container as a whole: what is written is read, and nothing else is.

use std::collections::BTreeMap;
use std::io::{self, Cursor, ErrorKind, Seek, SeekFrom, Write};

use proptest::prelude::*;

use super::*;
use crate::memory::{Budget, Buffer};

fn manifest() -> Manifest {
    Manifest {
        compiler: "0.1.0 \"quoted\"".to_string(),
        options: BTreeMap::from([
            ("cpu".to_string(), "portable,x86-64-v3".to_string()),
            ("precision".to_string(), "exact".to_string()),
        ]),
        hashes: BTreeMap::from([("model".to_string(), "0123".to_string())]),
    }
}

const WEIGHT_BYTES: [u8; 300] = [0xa5; 300];

/// Deliberately out of order, with sizes that need padding and an empty section.
fn sections<'a>() -> Vec<Section<'a>> {
    vec![
        Section::new(WEIGHTS, &WEIGHT_BYTES),
        Section::new(PLAN, b"plan text\n"),
        Section::new(kernels_section(CpuLevel::Portable), b"k0 0 3 cranelift\n"),
        Section::new(code_section(CpuLevel::Portable), b"\xc3\xc3\xc3"),
        Section::new(code_section(CpuLevel::X86_64V4Amx), b""),
    ]
}

fn encode(manifest: &Manifest, sections: Vec<Section<'_>>) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let bytes = write_to(&mut out, manifest, sections).unwrap();
    assert_eq!(bytes, out.position());
    assert_eq!(bytes, out.get_ref().len() as u64);
    out.into_inner()
}

fn decode(bytes: &[u8]) -> Result<Artifact, ArtifactError> {
    let buffer = Buffer::copy_of(&Budget::unlimited(), bytes, "a test").unwrap();
    Artifact::from_buffer(buffer, &LoadOptions::default())
}

#[test]
fn what_is_written_is_read() {
    let artifact = decode(&encode(&manifest(), sections())).unwrap();
    assert_eq!(artifact.compiler(), manifest().compiler);
    assert_eq!(artifact.options(), &manifest().options);
    assert_eq!(artifact.hashes(), &manifest().hashes);
    assert_eq!(artifact.text(PLAN).unwrap(), "plan text\n");
    assert_eq!(artifact.section(WEIGHTS).unwrap(), WEIGHT_BYTES);
    assert_eq!(artifact.section("code.x86-64-v4-amx").unwrap(), b"");
    assert_eq!(artifact.levels().collect::<Vec<_>>(), [CpuLevel::Portable, CpuLevel::X86_64V4Amx]);
    let listed: Vec<_> = artifact.sections().collect();
    assert_eq!(
        listed,
        [("code.portable", 3), ("code.x86-64-v4-amx", 0), ("kernels.portable", 17), ("plan", 10), ("weights", 300)]
    );
    for (name, bytes) in listed {
        let section = artifact.section(name).unwrap();
        assert!(bytes == 0 || (section.as_ptr() as u64).is_multiple_of(SECTION_ALIGNMENT));
    }
    assert!(matches!(artifact.section(GOLDEN), Err(ArtifactError::Missing { .. })));
    assert!(matches!(artifact.text(WEIGHTS), Err(ArtifactError::NotText { .. })));
}

#[test]
fn any_safetensors_reader_reads_it() {
    let bytes = encode(&manifest(), sections());
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor(PLAN).unwrap().data(), b"plan text\n");
    assert_eq!(tensors.tensor(WEIGHTS).unwrap().data(), WEIGHT_BYTES);
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!((header + 8) % 64, 0);
    let metadata = metadata.metadata().clone().unwrap();
    assert_eq!(metadata["format"], "kiln");
    assert_eq!(metadata["blake3.weights"], blake3::hash(&WEIGHT_BYTES).to_string());
}

#[test]
fn the_bytes_depend_on_the_contents_alone() {
    let mut reversed = sections();
    reversed.reverse();
    let bytes = encode(&manifest(), sections());
    assert_eq!(bytes, encode(&manifest(), reversed));
    // Pinned, so that an accidental change of the format is seen as one.
    let start = String::from_utf8_lossy(&bytes[8..]);
    let expected = r#"{"__metadata__":{"format":"kiln","format_version":"1","header_blake3":""#;
    assert!(start.starts_with(expected), "{start}");
}

#[test]
fn every_changed_byte_is_noticed() {
    let good = encode(&manifest(), sections());
    let mut bytes = good.clone();
    for index in 0..good.len() {
        for change in [0x01, 0x20, 0x80, 0xff] {
            bytes[index] ^= change;
            assert!(decode(&bytes).is_err(), "byte {index} ^ {change:#x}");
            bytes[index] = good[index];
        }
    }
    assert!(decode(&bytes).is_ok());
}

#[test]
fn every_truncation_is_noticed() {
    let good = encode(&manifest(), sections());
    for length in 0..good.len() {
        assert!(decode(&good[..length]).is_err(), "{length} bytes");
    }
    let error = decode(&good[..good.len() - 1]).unwrap_err().to_string();
    assert_eq!(error, format!("the artifact is truncated: it has {} of its {} bytes", good.len() - 1, good.len()));
    let longer = [&good[..], b"\0"].concat();
    assert!(matches!(decode(&longer), Err(ArtifactError::TooLong { extra: 1 })));
}

#[test]
fn damage_is_named_and_weights_may_be_trusted() {
    let mut bytes = encode(&manifest(), sections());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert_eq!(
        decode(&bytes).unwrap_err().to_string(),
        "the artifact is damaged: its weights section does not match its hash"
    );
    let trusting = LoadOptions { verify_weights: false };
    let buffer = |bytes: &[u8]| Buffer::copy_of(&Budget::unlimited(), bytes, "a test").unwrap();
    assert!(Artifact::from_buffer(buffer(&bytes), &trusting).is_ok());
    // Trust ends with the weights.
    let plan = bytes.windows(9).position(|x| x == b"plan text").unwrap();
    bytes[plan] ^= 1;
    assert!(matches!(
        Artifact::from_buffer(buffer(&bytes), &trusting),
        Err(ArtifactError::Damaged { section }) if section == "plan"
    ));
}

#[test]
fn a_newer_format_says_so() {
    let mut bytes = encode(&manifest(), sections());
    bytes[LENGTH_BYTES + PREFIX.len()] = b'2';
    let error = decode(&bytes).unwrap_err();
    assert!(matches!(error, ArtifactError::Newer { found: 2, supported: 1 }), "{error}");
}

#[test]
fn other_files_are_recognised() {
    let error = decode(b"\x08\x07\x12\x07pytorch").unwrap_err().to_string();
    assert!(error.contains("looks like an ONNX model"), "{error}");
    assert!(error.contains("kiln compile"), "{error}");
}

/// A header with a right hash but wrong contents, as only a program could make it.
fn forge(rest_of_metadata: &str, tensors: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [PREFIX, b"1", HASH_KEY].concat();
    let digits = LENGTH_BYTES + header.len();
    header.extend_from_slice(&[b'0'; HASH_DIGITS]);
    header.extend_from_slice(format!("\"{rest_of_metadata}}}{tensors}}}").as_bytes());
    while !(header.len() + LENGTH_BYTES).is_multiple_of(64) {
        header.push(b' ');
    }
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    let digits = digits..digits + HASH_DIGITS;
    let hash = header_hash(&file, digits.clone()).unwrap();
    file[digits].copy_from_slice(hash.to_hex().as_bytes());
    file.extend_from_slice(data);
    file
}

#[test]
fn forged_headers_are_errors() {
    let hash = blake3::hash(b"abcd");
    let hashed = format!(",\"blake3.x\":\"{hash}\"");
    let good = r#","x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    assert!(decode(&forge(&hashed, good, b"abcd")).is_ok());
    for (metadata, tensors, data) in [
        ("", good, &b"abcd"[..]),
        (",\"blake3.x\":\"zz\"", good, b"abcd"),
        (&hashed, r#","x":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}"#, b"abcde"),
        (&hashed, r#","x":{"dtype":"U8","shape":[5],"data_offsets":[0,4]}"#, b"abcd"),
        (&hashed, r#","x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, b"abcd"),
        (
            &hashed,
            r#","x":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#,
            b"abcd",
        ),
        // The second section is not aligned.
        (
            &hashed,
            r#","y":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"x":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}"#,
            b"abcdabcd",
        ),
        // Padding that is not zero.
        (&hashed, r#","pad.0":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#, b"abcd"),
        (&hashed, r#","x":7"#, b""),
        (&hashed, ",", b""),
    ] {
        let file = forge(metadata, tensors, data);
        assert!(decode(&file).is_err(), "{metadata} {tensors}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(start in 0..200usize, noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = encode(&manifest(), sections());
        bytes.truncate(start);
        bytes.extend_from_slice(&noise);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn any_sections_round_trip(
        parts in proptest::collection::btree_map("[a-o][a-z0-9._-]{0,12}", proptest::collection::vec(any::<u8>(), 0..200), 0..6),
        options in proptest::collection::btree_map(".{0,8}", ".{0,20}", 0..4),
    ) {
        let manifest = Manifest { compiler: "x".to_string(), options, ..Manifest::default() };
        let sections = parts.iter().map(|(name, data)| Section::new(name, data)).collect();
        let artifact = decode(&encode(&manifest, sections)).unwrap();
        prop_assert_eq!(artifact.options(), &manifest.options);
        for (name, data) in &parts {
            prop_assert_eq!(artifact.section(name).unwrap(), &data[..]);
        }
    }
}

#[test]
fn section_names_and_lengths_are_checked() {
    let mut out = Cursor::new(Vec::new());
    for name in ["", "pad.0", "__metadata__", "Plan", "a b", "a\"b"] {
        let result = write_to(&mut out, &manifest(), vec![Section::new(name, b"x")]);
        assert!(matches!(result, Err(WriteError::Name(_))), "{name:?}");
    }
    let twice = vec![Section::new("a", b"x"), Section::new("a", b"y")];
    assert!(matches!(write_to(&mut out, &manifest(), twice), Err(WriteError::Name(_))));
    for announced in [0, 2, 4, 99] {
        let wrong = Section::streamed("a", announced, |out| out.write_all(b"abc"));
        let error = write_to(&mut out, &manifest(), vec![wrong]).unwrap_err();
        assert!(matches!(error, WriteError::Length { .. }), "{announced}");
    }
    for announced in [u64::MAX, u64::MAX - 63, u64::MAX - 500] {
        let huge = Section::streamed("a", announced, |_| Ok(()));
        let error = write_to(&mut out, &manifest(), vec![huge, Section::new("b", b"")]);
        assert!(matches!(error, Err(WriteError::TooLarge)), "{announced}");
    }
}

/// Everything that is in a folder, by name.
fn listing(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.kiln");
    std::fs::write(&path, "what was there before").unwrap();
    let bytes = write(&path, &manifest(), sections()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
    assert_eq!(listing(folder.path()), ["model.kiln"]);
    let artifact = Artifact::open(&path, &LoadOptions::default()).unwrap();
    assert_eq!(artifact.section(WEIGHTS).unwrap(), WEIGHT_BYTES);
    let weights = artifact.section(WEIGHTS).unwrap().as_ptr() as u64;
    assert!(weights.is_multiple_of(SECTION_ALIGNMENT));
    // Byte-identical to the one in memory, and to itself.
    assert_eq!(std::fs::read(&path).unwrap(), encode(&manifest(), sections()));
    // The old mapping survives a replacement.
    write(&path, &manifest(), vec![Section::new("plan", b"other")]).unwrap();
    assert_eq!(artifact.section(WEIGHTS).unwrap(), WEIGHT_BYTES);
}

#[test]
fn a_failure_leaves_nothing_and_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.kiln");
    std::fs::write(&path, "old").unwrap();
    for kind in [ErrorKind::StorageFull, ErrorKind::PermissionDenied, ErrorKind::Other] {
        let failing = Section::streamed("weights", 10, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(kind))
        });
        let error = write(&path, &manifest(), vec![failing]).unwrap_err();
        let expected = match kind {
            ErrorKind::StorageFull => matches!(error, WriteError::NoSpace { .. }),
            ErrorKind::PermissionDenied => matches!(error, WriteError::NotWritable { .. }),
            _ => matches!(error, WriteError::Io(_)),
        };
        assert!(expected, "{kind:?}: {error:?}");
        assert_eq!(listing(folder.path()), ["model.kiln"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
    }
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [folder.path().join("missing").join("model.kiln"), file.join("model.kiln")] {
        let error = write(&path, &manifest(), sections()).unwrap_err();
        assert!(matches!(error, WriteError::NotWritable { .. }), "{error:?}");
    }
    let error = write(folder.path(), &manifest(), sections()).unwrap_err();
    assert!(matches!(error, WriteError::NotAFile { .. }), "{error:?}");
    assert_eq!(listing(folder.path()), ["file"]);
}

#[test]
#[cfg(target_os = "linux")]
fn devices_links_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let null = std::path::Path::new("/dev/null");
    let error = write(null, &manifest(), sections()).unwrap_err();
    assert!(matches!(error, WriteError::NotAFile { .. }), "{error:?}");
    let error = Artifact::open(null, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ArtifactError::NotAFile { .. }), "{error:?}");
    // A link stays a link.
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    std::fs::write(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write(&link, &manifest(), sections()).unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(Artifact::open(&link, &LoadOptions::default()).is_ok());
}

#[test]
fn missing_and_empty_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.kiln");
    let error = Artifact::open(&path, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ArtifactError::Io { .. }), "{error:?}");
    std::fs::write(&path, "").unwrap();
    let error = Artifact::open(&path, &LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("an empty file"), "{error}");
    let error = Artifact::open(folder.path(), &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ArtifactError::NotAFile { .. }), "{error:?}");
}

/// An output with room for so many bytes.
struct SmallDisk {
    out: Cursor<Vec<u8>>,
    room: usize,
}

impl Write for SmallDisk {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.out.position() as usize + data.len() > self.room {
            return Err(ErrorKind::StorageFull.into());
        }
        self.out.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for SmallDisk {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.out.seek(position)
    }
}

#[test]
fn a_disk_that_fills_up_never_holds_a_valid_artifact() {
    let size = encode(&manifest(), sections()).len();
    for room in (0..size).step_by(7) {
        let mut disk = SmallDisk { out: Cursor::new(Vec::new()), room };
        let error = write_to(&mut disk, &manifest(), sections()).unwrap_err();
        let WriteError::Io(error) = error else { panic!("{error:?}") };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(decode(disk.out.get_ref()).is_err());
    }
}

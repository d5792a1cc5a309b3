//! What a file looks like, judged by its first bytes, so that "not an artifact" can say more.

use super::{LENGTH_BYTES, PREFIX};

/// Whether a file that starts like this claims to be an artifact. 64 bytes are enough to tell.
pub fn is_artifact(start: &[u8]) -> bool {
    start.get(LENGTH_BYTES..).is_some_and(|header| header.starts_with(PREFIX))
}

/// What the file looks like, as a phrase for a message ("a GGUF file").
pub fn describe(start: &[u8]) -> &'static str {
    const MAGICS: &[(&[u8], &str)] = &[
        (b"GGUF", "a GGUF file"),
        (b"\x7fELF", "an ELF program or library"),
        (b"PK\x03\x04", "a ZIP archive, such as a .npz or PyTorch file"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\x93NUMPY", "a .npy array"),
        (b"\x89HDF", "an HDF5 file"),
        (b"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
        (b"<!DOCTYPE", "an HTML page"),
        (b"<html", "an HTML page"),
    ];
    if start.is_empty() {
        return "an empty file";
    }
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return what;
    }
    let header = start.get(LENGTH_BYTES..).unwrap_or_default();
    if is_artifact(start) {
        return "a Kiln artifact";
    }
    // A file cut inside the first bytes of an artifact's header.
    if !header.is_empty() && PREFIX.starts_with(header) && header.len() > 2 {
        return "the beginning of a safetensors file";
    }
    if header.starts_with(b"{\"") {
        return "a safetensors file of plain weights";
    }
    if start.get(4..8) == Some(b"TFL3") {
        return "a TensorFlow Lite model";
    }
    if start.get(4..8) == Some(b"ORTM") {
        return "an ONNX Runtime format model";
    }
    // ModelProto: field 1 (ir_version, a small varint), then field 2, 3, 4, 7 or 8 by its tag.
    if let [0x08, 1..=32, 0x12 | 0x1a | 0x22 | 0x3a | 0x42, ..] = start {
        return "an ONNX model";
    }
    if start.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
        return "a text file";
    }
    "an unknown kind of file"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        for (start, what) in [
            (&b""[..], "an empty file"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
            (b"\x08\x08:\x99\x01", "an ONNX model"),
            (b"\x40\0\0\0\0\0\0\0{\"weight\":{", "a safetensors file of plain weights"),
            (b"hello, world\n", "a text file"),
            (b"\xff\xfe\xfd", "an unknown kind of file"),
        ] {
            assert_eq!(describe(start), what);
            assert!(!is_artifact(start));
        }
        let mut artifact = vec![0; LENGTH_BYTES];
        artifact.extend_from_slice(PREFIX);
        assert!(is_artifact(&artifact) && artifact.len() <= 64);
        assert_eq!(describe(&artifact), "a Kiln artifact");
    }
}

//! What a file that is not the expected one looks like, for the error message.
//!
//! Invariant: reads at most the first few kilobytes, never fails, and only ever advises: nothing is decided by it.

/// Bytes that are looked at; text further in does not change the answer.
const WINDOW: usize = 4096;

/// A guess at what the bytes are, to be put after "this looks like ", or nothing where they look like nothing known.
pub fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    let head = bytes.get(..WINDOW).unwrap_or(bytes);
    if head.is_empty() {
        return Some("an empty file");
    }
    if bytes.len() >= 16 && head.iter().all(|&b| b == 0) {
        return Some("a file of zeros, such as a download that was not finished");
    }
    magic(head).or_else(|| safetensors(bytes)).or_else(|| text(head))
}

/// Formats that start (or are marked near the start) with fixed bytes.
fn magic(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, mark: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(mark));
    let contains = |mark: &[u8]| head.windows(mark.len()).any(|w| w == mark);
    if at(0, b"PK\x03\x04") || at(0, b"PK\x05\x06") {
        return Some(if contains(b"/data.pkl") || contains(b"archive/") {
            "a PyTorch checkpoint (zip); export the model to ONNX with torch.onnx.export"
        } else if contains(b".npy") {
            "a NumPy .npz archive"
        } else {
            "a zip archive; the model may be inside"
        });
    }
    let table: &[(usize, &[u8], &str)] = &[
        (0, b"GGUF", "a GGUF model"),
        (0, b"GGML", "a GGML model"),
        (0, b"ggjt", "a GGML model"),
        (4, b"TFL3", "a TensorFlow Lite model"),
        (4, b"ORTM", "an ONNX Runtime .ort model; use the .onnx file that it was made from"),
        (0, b"\x89HDF\r\n", "an HDF5 file, such as a Keras model"),
        (0, b"\x93NUMPY", "a NumPy .npy array"),
        (0, b"\x80\x02", "a Python pickle, such as an old PyTorch checkpoint"),
        (0, b"\x80\x03", "a Python pickle"),
        (0, b"\x80\x04", "a Python pickle"),
        (0, b"\x80\x05", "a Python pickle"),
        (0, b"\x89PNG\r\n", "a PNG image"),
        (0, b"\xff\xd8\xff", "a JPEG image"),
        (0, b"GIF8", "a GIF image"),
        (8, b"WEBP", "a WebP image"),
        (8, b"WAVE", "a WAV sound"),
        (0, b"%PDF", "a PDF document"),
        (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
        (0, b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
        (0, b"BZh", "a bzip2 archive; unpack it first"),
        (0, b"\xfd7zXZ", "an xz archive; unpack it first"),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
        (257, b"ustar", "a tar archive; unpack it first"),
        (0, b"\x7fELF", "an ELF program or library"),
        (0, b"MZ", "a Windows program or library"),
        (0, b"\xca\xfe\xba\xbe", "a macOS program or library"),
        (0, b"\xcf\xfa\xed\xfe", "a macOS program or library"),
        (0, b"SQLite format 3\0", "an SQLite database"),
        (0, b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull` to get the file itself"),
    ];
    table.iter().find(|(offset, mark, _)| at(*offset, mark)).map(|(_, _, name)| *name)
}

/// The container of safetensors: a length in 8 bytes, then JSON. Kiln's artifacts are such files too.
fn safetensors(bytes: &[u8]) -> Option<&'static str> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = u64::from_le_bytes(*length);
    if !rest.starts_with(b"{\"") && !rest.starts_with(b"{ ") || length > 100_000_000 {
        return None;
    }
    let header = rest.get(..WINDOW.min(length as usize)).unwrap_or(rest);
    let kiln = header.windows(5).any(|w| w == b"kiln." || w == b"kiln\"");
    Some(if kiln { "a Kiln artifact" } else { "a safetensors file: weights without a graph" })
}

/// Formats that are text.
fn text(head: &[u8]) -> Option<&'static str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The window may end inside a character.
        Err(e) if e.valid_up_to() + 4 > head.len() => std::str::from_utf8(head.get(..e.valid_up_to())?).ok()?,
        Err(_) => return None,
    };
    // A protobuf of short strings can be valid UTF-8, but not without control characters.
    if text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace()) {
        return None;
    }
    let trimmed = text.trim_start().trim_start_matches('\u{feff}').trim_start();
    let lower = trimmed.get(..64).unwrap_or(trimmed).to_ascii_lowercase();
    Some(if trimmed.is_empty() {
        "blank text"
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        "an HTML page, such as a download page or an error message of a server"
    } else if trimmed.contains(") => (") {
        "ONNX as text; convert it to binary with onnx.parser"
    } else if trimmed.contains("ir_version:") || trimmed.starts_with("node {") || trimmed.starts_with("graph {") {
        "ONNX as text (protobuf text format); convert it to binary"
    } else if trimmed.starts_with('<') {
        "XML"
    } else if trimmed.starts_with("kernel @") || trimmed.starts_with("graph @") {
        "a text form of Kiln"
    } else if trimmed.starts_with(['{', '[']) {
        "JSON"
    } else if trimmed.starts_with("#!") {
        "a script"
    } else {
        "a text file"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses() {
        let mut tar = vec![b'a'; 257];
        tar.extend_from_slice(b"ustar\0");
        let mut safetensors = 40u64.to_le_bytes().to_vec();
        safetensors.extend_from_slice(br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#);
        let mut artifact = 40u64.to_le_bytes().to_vec();
        artifact.extend_from_slice(br#"{"__metadata__":{"kiln.version":"0.1.0"}}"#);
        let cases: &[(&[u8], &str)] = &[
            (b"", "an empty file"),
            (&[0; 64], "a file of zeros"),
            (b"PK\x03\x04\0\0\0\0resnet/data.pkl", "a PyTorch checkpoint"),
            (b"PK\x03\x04\0\0\0\0arr_0.npy", "a NumPy .npz"),
            (b"PK\x03\x04\0\0\0\0model.onnx", "a zip archive"),
            (b"GGUF\x03\0\0\0", "a GGUF model"),
            (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
            (b"\x89PNG\r\n\x1a\n", "a PNG image"),
            (b"\x1f\x8b\x08", "a gzip archive"),
            (&tar, "a tar archive"),
            (&safetensors, "a safetensors file"),
            (&artifact, "a Kiln artifact"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
            (b"<!DOCTYPE html>\n<html>", "an HTML page"),
            (b"{\"error\": \"not found\"}", "JSON"),
            (b"ir_version: 8\ngraph {\n}\n", "ONNX as text (protobuf"),
            (b"<ir_version: 8>\nagraph (float[N] x) => (float[N] y) { }", "ONNX as text"),
            (b"import onnx\n", "a text file"),
        ];
        for (bytes, expected) in cases {
            let guess = looks_like(bytes).unwrap_or("nothing known");
            assert!(guess.starts_with(expected), "{guess} is not {expected}");
        }
        assert_eq!(looks_like(&[0x08, 0x08, 0x12, 0x07]), None, "a protobuf looks like nothing else");
    }
}

//! The GGUF reader against the Python package `gguf`, and on files that are not right.

use bytes::Bytes;
use kiln_frontend::gguf::{Array, Encoding, Gguf, GgufError, Value, expand};
use proptest::prelude::*;

const FIXTURE: &[u8] = include_bytes!("../fixtures/encodings.gguf");

fn fixture() -> Gguf {
    Gguf::parse(Bytes::from_static(FIXTURE)).unwrap()
}

#[test]
fn every_encoding_expands_to_the_same_bits() {
    let file = fixture();
    for &encoding in Encoding::ALL {
        let stored = &file.tensors()[encoding.name()];
        let expected = &file.tensors()[&format!("{encoding}.expected")];
        assert_eq!((stored.encoding, expected.encoding), (encoding, Encoding::F32));
        assert_eq!(stored.shape, expected.shape);
        let got = expand(encoding, &file.bytes(stored));
        let want = expand(Encoding::F32, &file.bytes(expected));
        assert!(got.len() >= 2 && got.len() == want.len(), "{encoding}");
        for (n, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{encoding} element {n}: {got} and not {want}");
        }
    }
}

#[test]
fn metadata_of_each_kind() {
    let file = fixture();
    assert_eq!(file.get("general.architecture").and_then(Value::as_text), Some("none"));
    assert_eq!(file.get("test.count"), Some(&Value::Int(7)));
    assert_eq!(file.get("test.ratio"), Some(&Value::Float(0.5)));
    assert_eq!(file.get("test.flag"), Some(&Value::Bool(true)));
    let words = ["Ġa", "b", "中文"].map(String::from).to_vec();
    assert_eq!(file.get("test.words"), Some(&Value::Array(Array::Texts(words))));
    assert_eq!(file.get("test.sizes"), Some(&Value::Array(Array::Ints(vec![1, -2, 3]))));
}

#[test]
fn every_truncation_is_an_error() {
    for length in (0..FIXTURE.len()).step_by(7).chain(FIXTURE.len() - 64..FIXTURE.len() - 32) {
        let error = Gguf::parse(Bytes::copy_from_slice(&FIXTURE[..length])).unwrap_err();
        let expected = matches!(error, GgufError::Truncated(_)) || length < 4 && error == GgufError::Magic;
        assert!(expected, "{length}: {error}");
    }
}

/// A file of version 3 with these counts, then these bytes.
fn file(tensors: u64, values: u64, rest: &[u8]) -> Bytes {
    let header = [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes(), rest];
    Bytes::from(header.concat())
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn tensor(name: &str, dims: &[u64], encoding: u32, offset: u64) -> Vec<u8> {
    let mut out = text(name);
    out.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
    out.extend(encoding.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out
}

#[track_caller]
fn refused(file: Bytes, message: &str) {
    let error = Gguf::parse(file).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn absurd_headers_are_refused() {
    refused(Bytes::from_static(b"GGML"), "does not begin with `GGUF`");
    refused(Bytes::from_static(b"GGUF\x01\0\0\0"), "version 1 is not supported");
    refused(file(u64::MAX, u64::MAX, &[]), "ends inside metadata entry 0");
    refused(file(u64::MAX, 0, &[]), "ends inside tensor 0");
    refused(file(0, 1, &u64::MAX.to_le_bytes()), "longer than 65535");
    let many = [text("k"), 9u32.to_le_bytes().to_vec(), 8u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()];
    refused(file(0, 1, &many.concat()), "ends inside the metadata `k`");
    refused(file(1, 0, &tensor("t", &[u64::MAX / 2, 4], 0, 0)), "too many elements");
    refused(file(1, 0, &tensor("t", &[8; 5], 0, 0)), "5 axes are more than 4");
    refused(file(1, 0, &tensor("t", &[33], 3, 0)), "no whole blocks of 32 (Q4_1)");
    refused(file(1, 0, &tensor("t", &[32], 99, 0)), "number 99, which is not supported");
    refused(file(1, 0, &tensor("t", &[32], 0, 1)), "offset 1 is not aligned to 32");
    refused(file(1, 0, &tensor("t", &[32], 0, u64::MAX - 31)), "is not aligned");
    refused(file(1, 0, &tensor("t", &[32], 0, 0)), "ends inside the data of tensor `t`");
    let twice = [tensor("t", &[0], 0, 0), tensor("t", &[0], 0, 0), vec![0; 64]].concat();
    refused(file(2, 0, &twice), "the name occurs twice");
    let alignment = [text("general.alignment"), 4u32.to_le_bytes().to_vec(), 0u32.to_le_bytes().to_vec()].concat();
    refused(file(0, 1, &alignment), "the alignment must be a power of two");
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(at in 0..FIXTURE.len(), bit in 0u32..8) {
        let mut bytes = FIXTURE.to_vec();
        bytes[at] ^= 1 << bit;
        if let Ok(file) = Gguf::parse(Bytes::from(bytes)) {
            for info in file.tensors().values() {
                expand(info.encoding, &file.bytes(info));
            }
        }
    }
}

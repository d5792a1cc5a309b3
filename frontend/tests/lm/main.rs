//! Language model families against transformers, on small random checkpoints.

mod adapters;
mod blocks;
mod cuts;
mod decoders;
mod encoders;
mod export;
mod layers;
mod problems;
mod sequences;

use bytes::Bytes;
use kiln_frontend::checkpoint::{Files, Folder, Safetensors, Weights};
use kiln_ir::{DType, Tensor};
use std::path::{Path, PathBuf};

/// A folder of fixtures.
pub struct Fixture(PathBuf);

impl Fixture {
    /// The fixture of a name.
    pub fn new(name: &str) -> Fixture {
        Fixture(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lm").join(name))
    }

    /// Configuration and weights.
    pub fn folder(&self) -> Folder {
        Folder::read(self).unwrap()
    }

    /// A tensor of `expected.safetensors`.
    pub fn expected(&self, name: &str) -> Tensor {
        let file = self.open("expected.safetensors").unwrap().unwrap();
        let stored = Safetensors::parse("expected", &file).unwrap().get(name).unwrap();
        let dtype = match stored.element {
            kiln_frontend::checkpoint::Element::Float(_) => DType::F32,
            kiln_frontend::checkpoint::Element::Other(dtype) => dtype,
        };
        Tensor::new(dtype, stored.shape.clone(), stored.bytes.clone()).unwrap()
    }
}

impl Files for Fixture {
    fn open(&self, name: &str) -> Result<Option<Bytes>, String> {
        match std::fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// The greatest difference over the largest magnitude that is wanted.
#[track_caller]
pub fn check_close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = got.iter().zip(want).fold(0f32, |m, (a, b)| if (a - b).abs() <= m { m } else { (a - b).abs() });
    assert!(error <= tolerance * largest, "{what}: error {error} of {largest}");
}

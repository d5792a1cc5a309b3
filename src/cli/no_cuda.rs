//! Commands on a GPU, in a program that was built without them.
//!
//! Invariant: each says so, and does nothing.

use super::Talk;
use super::options::{Machinery, Watching};
use kiln::Error;
use kiln::data::From;
use kiln::ir::Tensor;
use kiln::onnx::model::ValueType;
use std::path::Path;

/// There is never one.
pub enum Ready {}

/// What a run would give.
pub struct Outcome {
    pub device: String,
    pub outputs: Vec<(String, Tensor)>,
    pub declared: Vec<Option<ValueType>>,
}

pub fn probe() -> Result<(), Error> {
    Err(Error::Unsupported("this kiln was built without its feature `cuda`".into()))
}

pub fn ready(_: &Path, _: &Machinery, _: &Watching, _: Option<From>, _: &[String], _: Talk) -> Result<Ready, Error> {
    probe().and_then(|()| Err(Error::Internal("there is no launcher".into())))
}

pub fn run(ready: Ready, _: Option<&Path>) -> Result<Outcome, Error> {
    match ready {}
}

pub fn run_stored(_: &Path, _: &Machinery, _: Option<From>, _: Option<&Path>) -> Result<Outcome, Error> {
    probe().and_then(|()| Err(Error::Internal("there is no launcher".into())))
}

pub fn bench(ready: Ready, _: u64, _: Talk) -> Result<(), Error> {
    match ready {}
}

pub fn verify(ready: Ready, _: &[Tensor], _: f64, _: bool, _: Talk) -> Result<(), Error> {
    match ready {}
}

//! Tensors as a file has them.

use crate::gguf::{Encoding, expand};
use bytes::Bytes;
use kiln_ir::DType;

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Floats, or blocks that expand to them.
    Float(Encoding),
    /// Something else: doubles, integers, truth values.
    Other(DType),
}

/// A tensor as a file has it, sharing the file's bytes.
#[derive(Clone, Debug)]
pub struct Stored {
    /// How elements are stored.
    pub element: Element,
    /// Dims, outermost first.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Bytes,
}

impl Stored {
    /// The elements as f32; nothing where they are no numbers.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        match self.element {
            Element::Float(encoding) => Some(expand(encoding, &self.bytes)),
            Element::Other(dtype) => {
                let tensor = kiln_ir::Tensor::new(dtype, self.shape.clone(), self.bytes.clone()).ok()?;
                Some(tensor.to_f64()?.into_iter().map(|v| v as f32).collect())
            }
        }
    }
}

/// Tensors by name.
pub trait Weights: Send + Sync {
    /// All names, in order.
    fn names(&self) -> Vec<String>;

    /// The tensor of a name.
    fn get(&self, name: &str) -> Option<Stored>;
}

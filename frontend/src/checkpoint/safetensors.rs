//! Safetensors files.
//!
//! Invariant: the crate `safetensors` checks the header: offsets ascend without gaps and end with the file.

use super::packed::{self, Packed};
use super::{CheckpointError, Element, Stored, Weights};
use crate::gguf::Encoding;
use bytes::Bytes;
use kiln_ir::DType;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// The tensors of one or several safetensors files.
#[derive(Clone, Debug, Default)]
pub struct Safetensors {
    tensors: BTreeMap<String, Stored>,
}

impl From<BTreeMap<String, Stored>> for Safetensors {
    fn from(tensors: BTreeMap<String, Stored>) -> Safetensors {
        Safetensors { tensors }
    }
}

impl Safetensors {
    /// Reads a file, sharing its bytes; `name` is for errors.
    ///
    /// # Errors
    /// The header is not right, or does not fit the file.
    pub fn parse(name: &str, file: &Bytes) -> Result<Safetensors, CheckpointError> {
        let mut all = Safetensors::default();
        all.add(name, file)?;
        Ok(all)
    }

    /// Reads one more file.
    ///
    /// # Errors
    /// The file is not right, or has a tensor that another one has too.
    pub fn add(&mut self, name: &str, file: &Bytes) -> Result<(), CheckpointError> {
        let fail = |message: String| CheckpointError::File { file: name.into(), message };
        let views = SafeTensors::deserialize(file).map_err(|e| fail(format!("not a safetensors file: {e}")))?;
        for (tensor, view) in views.iter() {
            let element = match view.dtype() {
                Dtype::F32 => Element::Float(Encoding::F32),
                Dtype::F16 => Element::Float(Encoding::F16),
                Dtype::BF16 => Element::Float(Encoding::BF16),
                Dtype::F64 => Element::Other(DType::F64),
                Dtype::BOOL => Element::Other(DType::Bool),
                Dtype::U8 => Element::Other(DType::U8),
                Dtype::I8 => Element::Other(DType::I8),
                Dtype::I16 => Element::Other(DType::I16),
                Dtype::U16 => Element::Other(DType::U16),
                Dtype::I32 => Element::Other(DType::I32),
                Dtype::U32 => Element::Other(DType::U32),
                Dtype::I64 => Element::Other(DType::I64),
                Dtype::U64 => Element::Other(DType::U64),
                other => return Err(fail(format!("tensor `{tensor}` has elements of type {other:?}, not supported"))),
            };
            let stored = Stored { element, shape: view.shape().to_vec(), bytes: file.slice_ref(view.data()) };
            if self.tensors.insert(tensor.to_string(), stored).is_some() {
                return Err(fail(format!("tensor `{tensor}` is in another file too")));
            }
        }
        Ok(())
    }
}

impl Safetensors {
    /// The parts of a matrix that is stored packed.
    fn packed(&self, name: &str) -> Option<Packed> {
        let part = |word: &str| self.tensors.get(&format!("{name}_{word}")).cloned();
        let (packed, scale, shape) = (part("packed")?, part("scale")?, part("shape")?);
        Some(Packed { packed, scale, shape, zero_point: part("zero_point") })
    }
}

impl Weights for Safetensors {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::with_capacity(self.tensors.len());
        for name in self.tensors.keys() {
            let part = |word: &&str| Some(name.strip_suffix(word)?.strip_suffix('_')?.to_string());
            match packed::PARTS.iter().find_map(part).filter(|whole| self.packed(whole).is_some()) {
                None => names.push(name.clone()),
                Some(whole) if names.last() == Some(&whole) => {}
                Some(whole) => names.push(whole),
            }
        }
        names
    }

    fn get(&self, name: &str) -> Option<Stored> {
        self.tensors.get(name).cloned().or_else(|| self.packed(name)?.stored())
    }
}

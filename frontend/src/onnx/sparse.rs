//! `SparseTensorProto`: sparse constants, and sparse values in test data.
//!
//! Invariant: the positions are ascending, distinct and within the shape, one for each value.

use super::external::ExternalData;
use super::proto::{SparseTensorProto, TensorProto};
use super::tensor::{self, TensorProtoError};
use kiln_ir::{DType, Tensor};
use thiserror::Error;

/// A sparse tensor in coordinate form. What is not listed is zero, or the empty string.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseTensor {
    shape: Vec<usize>,
    values: Tensor,
    positions: Vec<usize>,
}

/// A `SparseTensorProto` is not a sparse tensor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SparseError {
    /// Values or indices are missing.
    #[error("the sparse tensor has no {0}")]
    Missing(&'static str),
    /// Values or indices, or the dims, are wrong themselves.
    #[error("the sparse tensor: {0}")]
    Part(#[from] TensorProtoError),
    /// Values are not a list, or the indices are not int64 of shape `[NNZ]` or `[NNZ, rank]`.
    #[error("the sparse tensor's {0} have the wrong shape or type")]
    Shape(&'static str),
    /// An index is out of range or not above the one before it.
    #[error("the sparse tensor's index {0} is out of range or out of order")]
    Index(usize),
    /// The dense tensor would be larger than the limit.
    #[error("the sparse tensor of shape {0:?} is too large to be made dense")]
    TooLarge(Vec<usize>),
}

impl SparseTensor {
    /// The sparse tensor that a message describes.
    ///
    /// # Errors
    /// See [`SparseError`].
    pub fn from_proto(proto: SparseTensorProto, external: &ExternalData) -> Result<SparseTensor, SparseError> {
        let values = tensor::from_proto(proto.values.ok_or(SparseError::Missing("values"))?, external)?;
        let indices = tensor::from_proto(proto.indices.ok_or(SparseError::Missing("indices"))?, external)?;
        let (shape, count) = tensor::dims(&proto.dims)?;
        let &[number] = values.shape() else { return Err(SparseError::Shape("values")) };
        let numbers = match indices.dtype() {
            DType::I64 => indices.to_i64().unwrap_or_default(),
            _ => return Err(SparseError::Shape("indices")),
        };
        let linear = match *indices.shape() {
            [n] if n == number => true,
            [n, rank] if n == number && rank == shape.len() => false,
            _ => return Err(SparseError::Shape("indices")),
        };
        let mut positions = Vec::with_capacity(number);
        for i in 0..number {
            let position = if linear {
                numbers.get(i).and_then(|&p| usize::try_from(p).ok()).filter(|&p| p < count)
            } else {
                let row = numbers.iter().skip(i * shape.len()).zip(&shape);
                row.take(shape.len()).try_fold(0usize, |position, (&index, &dim)| {
                    let index = usize::try_from(index).ok().filter(|&index| index < dim)?;
                    position.checked_mul(dim)?.checked_add(index)
                })
            };
            match position {
                Some(p) if positions.last().is_none_or(|&last| last < p) => positions.push(p),
                _ => return Err(SparseError::Index(i)),
            }
        }
        Ok(SparseTensor { shape, values, positions })
    }

    /// The message for the tensor, with linear indices.
    pub fn to_proto(&self, name: &str) -> SparseTensorProto {
        let indices = TensorProto {
            dims: vec![self.positions.len() as i64],
            data_type: super::proto::DataType::Int64 as i32,
            int64_data: self.positions.iter().map(|&p| p as i64).collect(),
            ..Default::default()
        };
        SparseTensorProto {
            values: Some(tensor::to_proto(&self.values, name)),
            indices: Some(indices),
            dims: self.shape.iter().map(|&d| d as i64).collect(),
        }
    }

    /// Dims of the dense tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The listed values, of shape `[NNZ]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Row-major positions of the values, ascending.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The dense tensor, if it takes at most `max_bytes`.
    ///
    /// # Errors
    /// It takes more.
    pub fn to_dense(&self, max_bytes: usize) -> Result<Tensor, SparseError> {
        let too_large = || SparseError::TooLarge(self.shape.clone());
        let size = self.values.dtype().size();
        let footprint = if size == 0 { size_of::<Vec<u8>>() } else { size };
        let count = kiln_ir::tensor::element_count(&self.shape, footprint).map_err(|_| too_large())?;
        if count * footprint > max_bytes {
            return Err(too_large());
        }
        let dense = match self.values.strings() {
            Some(strings) => {
                let mut dense = vec![Vec::new(); count];
                for (&p, s) in self.positions.iter().zip(strings) {
                    if let Some(slot) = dense.get_mut(p) {
                        slot.clone_from(s);
                    }
                }
                Tensor::from_strings(self.shape.clone(), dense)
            }
            None => {
                let mut dense = vec![0u8; count * size];
                for (&p, element) in self.positions.iter().zip(self.values.bytes().chunks(size)) {
                    if let Some(slot) = dense.get_mut(p * size..(p + 1) * size) {
                        slot.copy_from_slice(element);
                    }
                }
                Tensor::new(self.values.dtype(), self.shape.clone(), dense)
            }
        };
        dense.map_err(|_| too_large())
    }
}

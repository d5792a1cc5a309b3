//! Dense host tensors: constants of a graph, inputs and outputs of a run.
//!
//! Invariant: the data holds exactly `product(shape)` elements, row-major, little-endian; bytes may be shared with
//! the file that they came from and are never changed in place.

use crate::dtype::DType;
use bytes::Bytes;
use std::sync::Arc;
use thiserror::Error;

/// A tensor could not be made or read as asked.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TensorError {
    /// The product of the dims does not fit the address space.
    #[error("shape {0:?} has too many elements")]
    TooLarge(Vec<usize>),
    /// The data is not as long as the shape asks.
    #[error("shape {shape:?} of {dtype} needs {expected} bytes, the data has {found}")]
    Length {
        /// Element type.
        dtype: DType,
        /// Dims.
        shape: Vec<usize>,
        /// Bytes (or strings) asked for.
        expected: usize,
        /// Bytes (or strings) that were given.
        found: usize,
    },
    /// The operation is not defined on the element type.
    #[error("{0} is not defined on elements of type {1}")]
    Type(&'static str, DType),
}

/// The elements of a tensor.
#[derive(Clone, PartialEq)]
enum Data {
    Bytes(Bytes),
    Strings(Arc<[Vec<u8>]>),
    Tensors(Arc<[Tensor]>),
}

/// A dense tensor in host memory, row-major. Cloning shares the data.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

/// The product of dims, or an error where it (or `size` bytes for each) does not fit an `isize`.
pub fn element_count(shape: &[usize], size: usize) -> Result<usize, TensorError> {
    let fail = || TensorError::TooLarge(shape.to_vec());
    // A zero among the dims makes the product 0, whatever the others are; they must still multiply within bounds.
    let mut count = 1usize;
    for &d in shape.iter().filter(|&&d| d != 0) {
        count = count.checked_mul(d).ok_or_else(fail)?;
    }
    count.checked_mul(size.max(1)).filter(|&b| isize::try_from(b).is_ok()).ok_or_else(fail)?;
    Ok(if shape.contains(&0) { 0 } else { count })
}

impl Tensor {
    /// A tensor over bytes, which are kept as they are.
    ///
    /// # Errors
    /// The length does not fit the shape, or `dtype` is `Str` or `Seq`.
    pub fn new(dtype: DType, shape: Vec<usize>, data: impl Into<Bytes>) -> Result<Tensor, TensorError> {
        if matches!(dtype, DType::Str | DType::Seq) {
            return Err(TensorError::Type("a tensor over bytes", dtype));
        }
        let data = data.into();
        let expected = element_count(&shape, dtype.size())? * dtype.size();
        if data.len() != expected {
            return Err(TensorError::Length { dtype, shape, expected, found: data.len() });
        }
        Ok(Tensor { dtype, shape, data: Data::Bytes(data) })
    }

    /// A tensor of strings (bytes, by ONNX's rule not always UTF-8).
    ///
    /// # Errors
    /// The number of strings does not fit the shape.
    pub fn from_strings(shape: Vec<usize>, strings: Vec<Vec<u8>>) -> Result<Tensor, TensorError> {
        let expected = element_count(&shape, 1)?;
        if strings.len() != expected {
            return Err(TensorError::Length { dtype: DType::Str, shape, expected, found: strings.len() });
        }
        Ok(Tensor { dtype: DType::Str, shape, data: Data::Strings(strings.into()) })
    }

    /// A sequence of tensors, which may be sequences themselves.
    pub fn from_tensors(elements: Vec<Tensor>) -> Tensor {
        Tensor { dtype: DType::Seq, shape: vec![elements.len()], data: Data::Tensors(elements.into()) }
    }

    /// A tensor of f32 values.
    ///
    /// # Errors
    /// The number of values does not fit the shape.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Tensor, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape.to_vec(), bytes)
    }

    /// A tensor of i64 values.
    ///
    /// # Errors
    /// The number of values does not fit the shape.
    pub fn from_i64(shape: &[usize], values: &[i64]) -> Result<Tensor, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::I64, shape.to_vec(), bytes)
    }

    /// A tensor of zeros (false, +0) of a shape that the caller has checked against its memory budget.
    ///
    /// # Errors
    /// The shape is too large for the address space, or `dtype` is `Str`.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Tensor, TensorError> {
        let bytes = element_count(shape, dtype.size())? * dtype.size();
        Tensor::new(dtype, shape.to_vec(), vec![0u8; bytes])
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dims, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::Bytes(b) => b.len() / self.dtype.size().max(1),
            Data::Strings(s) => s.len(),
            Data::Tensors(t) => t.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' bytes, little-endian, row-major; empty for strings and sequences.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Bytes(b) => b,
            Data::Strings(_) | Data::Tensors(_) => &[],
        }
    }

    /// Bytes of memory that the elements take.
    pub fn footprint(&self) -> u64 {
        match &self.data {
            Data::Bytes(b) => b.len() as u64,
            Data::Strings(s) => s.iter().map(|s| (s.len() + size_of::<Vec<u8>>()) as u64).sum(),
            Data::Tensors(t) => t.iter().map(|t| t.footprint() + size_of::<Tensor>() as u64).sum(),
        }
    }

    /// The elements' bytes as a shared handle.
    pub fn shared_bytes(&self) -> Bytes {
        match &self.data {
            Data::Bytes(b) => b.clone(),
            Data::Strings(_) | Data::Tensors(_) => Bytes::new(),
        }
    }

    /// The strings, where the elements are strings.
    pub fn strings(&self) -> Option<&[Vec<u8>]> {
        match &self.data {
            Data::Bytes(_) | Data::Tensors(_) => None,
            Data::Strings(s) => Some(s),
        }
    }

    /// The elements of a sequence.
    pub fn tensors(&self) -> Option<&[Tensor]> {
        match &self.data {
            Data::Bytes(_) | Data::Strings(_) => None,
            Data::Tensors(t) => Some(t),
        }
    }

    /// The same elements under other dims.
    ///
    /// # Errors
    /// The number of elements differs.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Tensor, TensorError> {
        let expected = element_count(shape, self.dtype.size())?;
        if expected != self.len() {
            return Err(TensorError::Length { dtype: self.dtype, shape: shape.to_vec(), expected, found: self.len() });
        }
        Ok(Tensor { dtype: self.dtype, shape: shape.to_vec(), data: self.data.clone() })
    }

    /// All elements as i64, where the type is an integer or bool (u64 wraps).
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        if !(self.dtype.is_int() || self.dtype == DType::Bool) {
            return None;
        }
        Some(match self.dtype {
            DType::I64 => self.bytes().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            DType::I32 => self.bytes().as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            _ => (0..self.len()).map(|i| self.int_at(i)).collect(),
        })
    }

    /// All elements as f64, where the type is a number or bool.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        if matches!(self.dtype, DType::Str | DType::Seq | DType::C64 | DType::C128) {
            return None;
        }
        Some(match self.dtype {
            DType::F32 => self.bytes().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            DType::F64 => self.bytes().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            _ => (0..self.len()).map(|i| crate::semantics::load_f64(self.dtype, self.bytes(), i)).collect(),
        })
    }

    /// All elements as f32, where the type is f32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        (self.dtype == DType::F32)
            .then(|| self.bytes().as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect())
    }

    fn int_at(&self, i: usize) -> i64 {
        crate::semantics::load_i64(self.dtype, self.bytes(), i)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)?;
        if self.len() <= 16 {
            if let Some(s) = self.strings() {
                let s: Vec<_> = s.iter().map(|s| String::from_utf8_lossy(s)).collect();
                write!(f, " {s:?}")?;
            } else if let Some(t) = self.tensors() {
                write!(f, " {t:?}")?;
            } else if let Some(v) = self.to_i64() {
                write!(f, " {v:?}")?;
            } else if let Some(v) = self.to_f64() {
                write!(f, " {v:?}")?;
            }
        }
        Ok(())
    }
}

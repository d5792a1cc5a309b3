//! The container: header, metadata, list of tensors, data.
//!
//! Invariant: a [`Gguf`] was checked whole: names are distinct, and every tensor's bytes lie inside the file.

use super::{Array, Encoding, Value};
use bytes::Bytes;
use kiln_ir::tensor::element_count;
use std::collections::BTreeMap;

/// Most axes of a tensor, by the specification.
const MOST_AXES: usize = 4;
/// Most bytes of a metadata key, by the specification.
const LONGEST_KEY: usize = 65_535;
/// Where tensor data is aligned to, unless the file says otherwise.
const ALIGNMENT: usize = 32;

/// A file is not GGUF as specified, or uses what is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// The file does not begin as a GGUF file.
    #[error("not a GGUF file: it does not begin with `GGUF`")]
    Magic,
    /// The version is not 2 or 3.
    #[error("GGUF version {0} is not supported; versions 2 and 3 are")]
    Version(u32),
    /// The file ends too early.
    #[error("the GGUF file ends inside {0}")]
    Truncated(String),
    /// A rule is broken.
    #[error("{place}: {message}")]
    Invalid {
        /// The metadata key or tensor.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// A tensor's encoding is not supported.
    #[error("tensor `{tensor}` is stored in the encoding with number {id}, which is not supported")]
    Encoding {
        /// The tensor.
        tensor: String,
        /// The encoding's number.
        id: u32,
    },
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Dims, outermost first (the file has them innermost first).
    pub shape: Vec<usize>,
    /// First byte in the file.
    start: usize,
    /// Number of bytes.
    bytes: usize,
}

impl TensorInfo {
    /// The first byte in the file.
    pub(super) fn start(&self) -> usize {
        self.start
    }
}

/// A GGUF file. See the module documentation.
#[derive(Clone, Debug)]
pub struct Gguf {
    file: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
    /// Where the entries of the metadata are in the file, in its order.
    entries: Vec<(String, std::ops::Range<usize>)>,
    alignment: usize,
}

impl Gguf {
    /// Whether the bytes begin as a GGUF file does.
    pub fn sniff(file: &[u8]) -> bool {
        file.starts_with(b"GGUF")
    }

    /// Reads a file, sharing its bytes.
    ///
    /// # Errors
    /// See [`GgufError`].
    pub fn parse(file: Bytes) -> Result<Gguf, GgufError> {
        if !Gguf::sniff(&file) {
            return Err(GgufError::Magic);
        }
        let mut cursor = Cursor { rest: &file, what: "the header".into() };
        cursor.take(4)?;
        let version = cursor.u32()?;
        if version != 2 && version != 3 {
            return Err(GgufError::Version(version));
        }
        let (tensor_count, value_count) = (cursor.u64()?, cursor.u64()?);
        let mut metadata = BTreeMap::new();
        let mut entries = Vec::new();
        for n in 0..value_count {
            cursor.what = format!("metadata entry {n} of {value_count}");
            let first = file.len() - cursor.rest.len();
            let key = cursor.text(LONGEST_KEY)?;
            cursor.what = format!("the metadata `{key}`");
            let kind = cursor.u32()?;
            let value = cursor.value(kind)?;
            entries.push((key.clone(), first..file.len() - cursor.rest.len()));
            if metadata.insert(key, value).is_some() {
                return Err(cursor.invalid("the key occurs twice"));
            }
        }
        let mut listed = Vec::new();
        for n in 0..tensor_count {
            cursor.what = format!("tensor {n} of {tensor_count}");
            let name = cursor.text(LONGEST_KEY)?;
            cursor.what = format!("the tensor `{name}`");
            listed.push((name, cursor.tensor()?));
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(value) => {
                let size = value.as_int().and_then(|v| usize::try_from(v).ok());
                let fits = |v: &usize| v.is_power_of_two() && *v <= 1 << 20;
                let message = "the alignment must be a power of two up to 2^20".to_string();
                let place = "general.alignment".to_string();
                size.filter(fits).ok_or(GgufError::Invalid { place, message })?
            }
        };
        let data = (file.len() - cursor.rest.len()).next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for (name, (id, shape, offset)) in listed {
            let invalid = |message: String| GgufError::Invalid { place: format!("tensor `{name}`"), message };
            let encoding = Encoding::from_id(id).ok_or_else(|| GgufError::Encoding { tensor: name.clone(), id })?;
            let elements = element_count(&shape, 4).map_err(|e| invalid(e.to_string()))?;
            if !shape.last().is_some_and(|&row| row.is_multiple_of(encoding.block_elements())) && elements > 0 {
                let block = encoding.block_elements();
                return Err(invalid(format!("rows of {shape:?} are no whole blocks of {block} ({encoding})")));
            }
            let bytes = encoding.bytes(elements).ok_or_else(|| invalid("it has too many elements".into()))?;
            let start = data.checked_add(offset).filter(|start| start.is_multiple_of(alignment));
            let start = start.ok_or_else(|| invalid(format!("its offset {offset} is not aligned to {alignment}")))?;
            if start.checked_add(bytes).is_none_or(|end| end > file.len()) {
                return Err(GgufError::Truncated(format!("the data of tensor `{name}`")));
            }
            if tensors.contains_key(&name) {
                return Err(invalid("the name occurs twice".into()));
            }
            tensors.insert(name, TensorInfo { encoding, shape, start, bytes });
        }
        Ok(Gguf { metadata, tensors, file, entries, alignment })
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The entries of the metadata by their keys, as the file has them and in its order, and what tensor data is aligned to.
    pub(super) fn entries(&self) -> (Vec<(&str, &[u8])>, usize) {
        let bytes = |range: &std::ops::Range<usize>| self.file.get(range.clone()).unwrap_or_default();
        (self.entries.iter().map(|(key, range)| (key.as_str(), bytes(range))).collect(), self.alignment)
    }

    /// The bytes of a tensor of this file, shared.
    pub fn bytes(&self, tensor: &TensorInfo) -> Bytes {
        let range = tensor.start..tensor.start.saturating_add(tensor.bytes);
        if range.end <= self.file.len() { self.file.slice(range) } else { Bytes::new() }
    }
}

/// Reads from the front.
struct Cursor<'a> {
    rest: &'a [u8],
    /// What is being read, for errors.
    what: String,
}

impl<'a> Cursor<'a> {
    fn invalid(&self, message: impl Into<String>) -> GgufError {
        GgufError::Invalid { place: self.what.clone(), message: message.into() }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], GgufError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(|| GgufError::Truncated(self.what.clone()))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| GgufError::Truncated(self.what.clone()))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, longest: usize) -> Result<String, GgufError> {
        let length = self.u64()?;
        let length = usize::try_from(length).map_err(|_| GgufError::Truncated(self.what.clone()))?;
        if length > longest {
            return Err(self.invalid(format!("a name of {length} bytes is longer than {longest}")));
        }
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid("text is not UTF-8"))?;
        Ok(text.to_string())
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.invalid(format!("{other} is neither true nor false"))),
        }
    }

    /// An integer of a kind, if the kind is one of integers.
    fn int(&mut self, kind: u32) -> Result<Option<i64>, GgufError> {
        Ok(Some(match kind {
            0 => i64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)),
            2 => i64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.array()?)),
            10 => {
                let value = self.u64()?;
                i64::try_from(value).map_err(|_| self.invalid(format!("{value} is beyond 2^63")))?
            }
            11 => i64::from_le_bytes(self.array()?),
            _ => return Ok(None),
        }))
    }

    fn float(&mut self, kind: u32) -> Result<Option<f64>, GgufError> {
        Ok(match kind {
            6 => Some(f64::from(f32::from_le_bytes(self.array()?))),
            12 => Some(f64::from_le_bytes(self.array()?)),
            _ => None,
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        if let Some(value) = self.int(kind)? {
            return Ok(Value::Int(value));
        }
        if let Some(value) = self.float(kind)? {
            return Ok(Value::Float(value));
        }
        match kind {
            7 => Ok(Value::Bool(self.bool()?)),
            8 => Ok(Value::Text(self.text(usize::MAX)?)),
            9 => self.list().map(Value::Array),
            other => Err(self.invalid(format!("{other} is no kind of value"))),
        }
    }

    /// An array. Every element takes at least a byte of the file, so that a count beyond it ends in an error.
    fn list(&mut self) -> Result<Array, GgufError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if count > self.rest.len() as u64 {
            return Err(GgufError::Truncated(self.what.clone()));
        }
        let many = 0..count;
        Ok(match kind {
            0..=5 | 10 | 11 => {
                Array::Ints(many.map(|_| Ok(self.int(kind)?.unwrap_or_default())).collect::<Result<_, _>>()?)
            }
            6 | 12 => Array::Floats(many.map(|_| Ok(self.float(kind)?.unwrap_or_default())).collect::<Result<_, _>>()?),
            7 => Array::Bools(many.map(|_| self.bool()).collect::<Result<_, _>>()?),
            8 => Array::Texts(many.map(|_| self.text(usize::MAX)).collect::<Result<_, _>>()?),
            9 => return Err(self.invalid("arrays of arrays are not supported")),
            other => return Err(self.invalid(format!("{other} is no kind of value"))),
        })
    }

    /// Encoding, dims and offset of a tensor.
    fn tensor(&mut self) -> Result<(u32, Vec<usize>, usize), GgufError> {
        let axes = self.u32()? as usize;
        if axes > MOST_AXES {
            return Err(self.invalid(format!("{axes} axes are more than {MOST_AXES}")));
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let extent = self.u64()?;
            shape.push(usize::try_from(extent).map_err(|_| self.invalid(format!("the extent {extent} is too large")))?);
        }
        shape.reverse();
        let encoding = self.u32()?;
        let offset = self.u64()?;
        let offset = usize::try_from(offset).map_err(|_| self.invalid(format!("the offset {offset} is too large")))?;
        Ok((encoding, shape, offset))
    }
}

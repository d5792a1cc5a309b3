//! `.npz` archives: named arrays, as NumPy's `savez` and `savez_compressed` write them.
//!
//! Invariant: nothing is allocated that the budget does not allow, whatever an archive claims; the same tensors give the
//! same file. Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use crate::Error;
use bytes::Bytes;
use kiln_frontend::onnx::model::ValueType;
use kiln_ir::{DType, Tensor, semantics};
use kiln_runtime::memory::{Budget, Buffer};
use std::io::{Read, Seek, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header that is read; NumPy writes 128 bytes.
const MAX_HEADER: u64 = 1 << 16;

/// Most arrays of an archive.
const MAX_ARRAYS: usize = 1 << 16;

/// Reads the arrays of an archive, in its order.
///
/// # Errors
/// [`Error::Read`], [`Error::Data`] where the file is no sound archive, [`Error::Run`] beyond the budget.
pub fn read(path: &Path, budget: &Budget) -> Result<Vec<(String, Tensor)>, Error> {
    let bytes = kiln_runtime::file::map(path).map_err(|source| Error::Read { path: path.into(), source })?;
    let place = path.display().to_string();
    if !bytes.starts_with(b"PK") {
        let looks_like = kiln_frontend::onnx::sniff::looks_like(&bytes).unwrap_or("something else");
        return Err(Error::data(place, format!("this is no .npz archive; it looks like {looks_like}")));
    }
    from_reader(std::io::Cursor::new(bytes), &place, budget)
}

fn from_reader(file: impl Read + Seek, place: &str, budget: &Budget) -> Result<Vec<(String, Tensor)>, Error> {
    let broken = |e: zip::result::ZipError| Error::data(place, format!("the archive is broken: {e}"));
    let mut archive = ZipArchive::new(file).map_err(broken)?;
    if archive.len() > MAX_ARRAYS {
        return Err(Error::data(place, "too many arrays"));
    }
    let mut arrays: Vec<(String, Tensor)> = Vec::new();
    for n in 0..archive.len() {
        let mut entry = archive.by_index(n).map_err(broken)?;
        let name = entry.name().map_err(broken)?.into_owned();
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_string();
        let fail = |message: String| Error::data(format!("{place}: array {name:?}"), message);
        if arrays.iter().any(|(other, _)| *other == name) {
            return Err(fail("there are two of that name".into()));
        }
        let tensor = array(&mut entry, &name, budget).map_err(|e| match e {
            ArrayError::Format(message) => fail(message),
            ArrayError::Other(e) => e,
        })?;
        arrays.push((name, tensor));
    }
    Ok(arrays)
}

enum ArrayError {
    Format(String),
    Other(Error),
}

impl From<String> for ArrayError {
    fn from(message: String) -> ArrayError {
        ArrayError::Format(message)
    }
}

/// Reads one `.npy` stream.
fn array(stream: &mut impl Read, name: &str, budget: &Budget) -> Result<Tensor, ArrayError> {
    let mut fixed = [0u8; 8];
    let short = |e: std::io::Error| format!("it cannot be read: {e}");
    stream.read_exact(&mut fixed).map_err(short)?;
    if !fixed.starts_with(MAGIC) {
        return Err("it is no .npy array".to_string().into());
    }
    let length = if fixed[6] == 1 {
        let mut length = [0u8; 2];
        stream.read_exact(&mut length).map_err(short)?;
        u64::from(u16::from_le_bytes(length))
    } else {
        let mut length = [0u8; 4];
        stream.read_exact(&mut length).map_err(short)?;
        u64::from(u32::from_le_bytes(length))
    };
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes").into());
    }
    let mut header = Vec::new();
    stream.take(length).read_to_end(&mut header).map_err(short)?;
    let header = Header::parse(&String::from_utf8_lossy(&header))?;
    let (dtype, swap) = element(&header.descr)
        .ok_or_else(|| format!("its element type {:?} is not one that models have", header.descr))?;
    let size = dtype.size();
    let count = kiln_ir::tensor::element_count(&header.shape, size).map_err(|e| e.to_string())?;
    let what = format!("the array {name:?}");
    let mut buffer = Buffer::zeroed(budget, (count * size) as u64, &what).map_err(|e| ArrayError::Other(e.into()))?;
    stream.read_exact(buffer.as_mut_slice()).map_err(|_| "it ends before its last element".to_string())?;
    if stream.read(&mut [0u8]).map_err(short)? > 0 {
        return Err("it goes on after its last element".to_string().into());
    }
    if swap {
        // A complex number is two numbers of half its size.
        let part = if matches!(dtype, DType::C64 | DType::C128) { size / 2 } else { size };
        buffer.as_mut_slice().chunks_exact_mut(part).for_each(<[u8]>::reverse);
    }
    if dtype == DType::Bool {
        buffer.as_mut_slice().iter_mut().for_each(|b| *b = u8::from(*b != 0));
    }
    let bytes = if header.fortran_order && header.shape.len() > 1 {
        let copy = Buffer::zeroed(budget, (count * size) as u64, &what).map_err(|e| ArrayError::Other(e.into()))?;
        from_fortran(&header.shape, size, &buffer, copy)
    } else {
        buffer
    };
    Tensor::new(dtype, header.shape, Bytes::from_owner(Owned(bytes))).map_err(|e| e.to_string().into())
}

struct Owned(Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// The elements of a column-major array in row-major order.
fn from_fortran(shape: &[usize], size: usize, from: &Buffer, mut to: Buffer) -> Buffer {
    let mut index = vec![0usize; shape.len()];
    let rows = to.as_mut_slice().chunks_exact_mut(size);
    for element in rows {
        let at = index.iter().zip(shape).rev().fold(0, |at, (i, extent)| at * extent + i);
        if let Some(source) = from.as_slice().get(at * size..(at + 1) * size) {
            element.copy_from_slice(source);
        }
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    to
}

/// The element type of a NumPy type string, and whether its bytes are big-endian.
fn element(descr: &str) -> Option<(DType, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let dtype = match kind {
        "b1" => DType::Bool,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "c8" => DType::C64,
        "c16" => DType::C128,
        _ => return None,
    };
    match order {
        "<" | "=" | "|" => Some((dtype, false)),
        ">" => Some((dtype, true)),
        _ => None,
    }
}

/// What the header of a `.npy` stream says: a Python dictionary literal of three entries.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Result<Header, String> {
        let bad = || format!("its header {:?} is not understood", text.trim());
        let after = |key: &str| {
            let (_, rest) = text.split_once(&format!("'{key}'")).ok_or_else(bad)?;
            Ok::<_, String>(rest.trim_start().strip_prefix(':').ok_or_else(bad)?.trim_start())
        };
        let descr = after("descr")?.strip_prefix('\'').and_then(|r| r.split_once('\'')).ok_or_else(bad)?.0.to_string();
        let order = after("fortran_order")?;
        let fortran_order = order.starts_with("True");
        if !fortran_order && !order.starts_with("False") {
            return Err(bad());
        }
        let dims = after("shape")?.strip_prefix('(').and_then(|r| r.split_once(')')).ok_or_else(bad)?.0;
        let dims = dims.split(',').map(str::trim).filter(|d| !d.is_empty());
        // Python 2 wrote long integers with an L.
        let shape = dims.map(|d| d.trim_end_matches('L').parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
        Ok(Header { descr, fortran_order, shape })
    }
}

/// Whether an array can hold values of the type.
pub fn holds(ty: &ValueType) -> bool {
    ty.tensor().is_some_and(|t| t.dtype.is_bytes())
}

/// The tensor as an array can hold it: bf16 and 8-bit floats as f32, integers narrower than a byte as 8-bit ones.
/// Nothing where no array can.
pub fn holdable(tensor: &Tensor) -> Option<(String, Tensor)> {
    let widen = |dtype: DType| {
        let mut bytes = Vec::with_capacity(tensor.len() * dtype.size());
        for i in 0..tensor.len() {
            if dtype == DType::F32 {
                bytes.extend_from_slice(&semantics::load_f32(tensor.dtype(), tensor.bytes(), i).to_le_bytes());
            } else {
                semantics::store_i64(dtype, semantics::load_i64(tensor.dtype(), tensor.bytes(), i), &mut bytes);
            }
        }
        Tensor::new(dtype, tensor.shape().to_vec(), bytes).ok()
    };
    let (descr, tensor) = match tensor.dtype() {
        DType::Bool => ("|b1", Some(tensor.clone())),
        DType::I8 => ("|i1", Some(tensor.clone())),
        DType::U8 => ("|u1", Some(tensor.clone())),
        DType::I16 => ("<i2", Some(tensor.clone())),
        DType::U16 => ("<u2", Some(tensor.clone())),
        DType::I32 => ("<i4", Some(tensor.clone())),
        DType::U32 => ("<u4", Some(tensor.clone())),
        DType::I64 => ("<i8", Some(tensor.clone())),
        DType::U64 => ("<u8", Some(tensor.clone())),
        DType::F16 => ("<f2", Some(tensor.clone())),
        DType::F32 => ("<f4", Some(tensor.clone())),
        DType::F64 => ("<f8", Some(tensor.clone())),
        DType::C64 => ("<c8", Some(tensor.clone())),
        DType::C128 => ("<c16", Some(tensor.clone())),
        DType::I2 | DType::I4 => ("|i1", widen(DType::I8)),
        DType::U2 | DType::U4 => ("|u1", widen(DType::U8)),
        DType::BF16
        | DType::F4E2M1
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0 => ("<f4", widen(DType::F32)),
        DType::Str | DType::Seq => return None,
    };
    Some((descr.to_string(), tensor?))
}

/// Turns an array into the element type that a model wants where [`holdable`] had to widen it.
///
/// # Errors
/// An integer does not fit.
pub fn narrowed(tensor: &Tensor, dtype: DType) -> Result<Tensor, String> {
    let widened = match dtype {
        DType::I2 | DType::I4 => DType::I8,
        DType::U2 | DType::U4 => DType::U8,
        DType::BF16
        | DType::F4E2M1
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0 => DType::F32,
        other => other,
    };
    if widened == dtype || tensor.dtype() != widened {
        return Ok(tensor.clone());
    }
    let mut bytes = Vec::with_capacity(tensor.len() * dtype.size());
    for i in 0..tensor.len() {
        if widened == DType::F32 {
            semantics::store_f32(dtype, semantics::load_f32(DType::F32, tensor.bytes(), i), &mut bytes);
        } else {
            let value = semantics::load_i64(widened, tensor.bytes(), i);
            if semantics::wrap(dtype, value) != value {
                return Err(format!("element {i}, {value}, does not fit {dtype}"));
            }
            semantics::store_i64(dtype, value, &mut bytes);
        }
    }
    Tensor::new(dtype, tensor.shape().to_vec(), bytes).map_err(|e| e.to_string())
}

/// Writes an archive. The file appears complete or not at all.
///
/// # Errors
/// [`Error::Usage`] for a tensor that no array can hold, [`Error::Write`].
pub fn write(path: &Path, arrays: &[(String, Tensor)]) -> Result<(), Error> {
    let fail = |source| Error::Write { path: path.into(), source };
    let mut prepared = Vec::with_capacity(arrays.len());
    for (name, tensor) in arrays {
        let (descr, held) = holdable(tensor).ok_or_else(|| {
            let dtype = tensor.dtype();
            Error::Usage(format!("{name:?} of {dtype} does not fit a .npz file; give a folder instead: --output DIR/"))
        })?;
        prepared.push((name, descr, held));
    }
    crate::data::replace(path, |file| {
        let mut archive = ZipWriter::new(file);
        for (name, descr, tensor) in &prepared {
            // No time, no permissions: equal tensors give equal files.
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .last_modified_time(DateTime::default())
                .large_file(tensor.bytes().len() as u64 >= u64::from(u32::MAX) - MAX_HEADER);
            archive.start_file(format!("{name}.npy"), options)?;
            archive.write_all(&header(descr, tensor.shape()))?;
            archive.write_all(tensor.bytes())?;
        }
        archive.finish()?;
        Ok(())
    })
    .map_err(fail)
}

/// The header of an array; its data starts at a multiple of 64 bytes, as NumPy writes it.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let mut dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    if shape.len() != 1 {
        dims.truncate(dims.len().saturating_sub(2));
    } else {
        dims.truncate(dims.len().saturating_sub(1));
    }
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&[1, 0]);
    bytes.extend_from_slice(&(text.len() as u16).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[1, 0]);
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn parse(header: &str, data: &[u8]) -> Result<Tensor, String> {
        array(&mut Cursor::new(npy(header, data)), "x", &Budget::new(1 << 20)).map_err(|e| match e {
            ArrayError::Format(message) => message,
            ArrayError::Other(e) => e.to_string(),
        })
    }

    #[test]
    fn archives_round_trip_and_are_reproducible() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = vec![
            ("x".to_string(), Tensor::from_f32(&[2, 1], &[1.5, -2.0]).unwrap()),
            ("scalar".to_string(), Tensor::from_i64(&[], &[7]).unwrap()),
            ("empty".to_string(), Tensor::from_f32(&[0, 3], &[]).unwrap()),
            ("vector".to_string(), Tensor::new(DType::Bool, vec![3], vec![1u8, 0, 1]).unwrap()),
        ];
        let (a, b) = (folder.path().join("a.npz"), folder.path().join("b.npz"));
        write(&a, &tensors).unwrap();
        write(&b, &tensors).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        assert_eq!(read(&a, &Budget::unlimited()).unwrap(), tensors);
        let error = read(&a, &Budget::new(4)).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Limit);
    }

    #[test]
    fn narrow_types_are_widened_and_narrowed_again() {
        let bf16 = Tensor::new(DType::BF16, vec![1], vec![0x80u8, 0x3f]).unwrap();
        let (descr, held) = holdable(&bf16).unwrap();
        assert_eq!((descr.as_str(), held.to_f32().unwrap()), ("<f4", vec![1.0]));
        assert_eq!(narrowed(&held, DType::BF16).unwrap(), bf16);
        let wide = Tensor::new(DType::I8, vec![2], vec![0xffu8, 9]).unwrap();
        assert_eq!(narrowed(&wide, DType::I4).unwrap_err(), "element 1, 9, does not fit i4");
        assert!(holdable(&Tensor::from_strings(vec![0], vec![]).unwrap()).is_none());
    }

    #[test]
    fn other_orders_are_read() {
        let big = parse("{'descr': '>i2', 'fortran_order': False, 'shape': (2,), }", &[0, 1, 0, 2]).unwrap();
        assert_eq!(big.to_i64().unwrap(), [1, 2]);
        let columns = parse("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3), }", &[0, 1, 2, 3, 4, 5]);
        assert_eq!(columns.unwrap().to_i64().unwrap(), [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn lies_are_refused() {
        for (header, data, what) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &[0u8; 4][..], "ends before"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0u8; 5], "goes on after"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", &[], "too many"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999,), }", &[], "memory limit"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", &[], "element type"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", &[], "not understood"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", &[], "not understood"),
            ("", &[], "not understood"),
        ] {
            let error = parse(header, data).unwrap_err();
            assert!(error.contains(what), "{error} should say {what}");
        }
        assert!(from_reader(Cursor::new(b"PK\x03\x04 nothing"), "a", &Budget::unlimited()).is_err());
    }
}

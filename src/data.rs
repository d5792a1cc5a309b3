//! Inputs from files and outputs to files.
//!
//! Invariant: an input is handed over under the name that the model gives it, with the element type that the model wants;
//! files that are written appear complete or not at all.

use crate::{Error, npz, random};
use kiln_frontend::onnx::model::{Model, ValueType};
use kiln_frontend::onnx::value;
pub use kiln_frontend::onnx::value::Value;
use kiln_ir::plan::{Plan, SlotId};
use kiln_ir::{DType, Tensor};
use kiln_runtime::memory::Budget;
use kiln_runtime::unfinished::Unfinished;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An input or output as its model declares it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name.
    pub name: String,
    /// Type.
    pub ty: ValueType,
}

/// The inputs of a model that are no initializers.
pub fn wanted(model: &Model) -> Vec<Wanted> {
    let input = |i: &kiln_frontend::onnx::model::ValueInfo| Some(Wanted { name: i.name.clone(), ty: i.ty.clone()? });
    model.graph.inputs.iter().filter_map(input).collect()
}

/// The dims of a plan's input where every free one is 1, or the least that its range has.
pub fn unit_shape(plan: &Plan, name: &str) -> Option<Vec<usize>> {
    let (_, slot) = plan.inputs.iter().find(|(n, _)| &**n == name)?;
    Some(random::Input::of(&plan.slots[*slot].ty, &plan.ranges(), 1)?.shape)
}

/// The types of a plan's inputs or outputs, which are all tensors.
pub fn types(plan: &Plan, ends: &[(Arc<str>, SlotId)]) -> Vec<Wanted> {
    use kiln_frontend::onnx::model::{Dim, TensorType};
    let end = |(name, slot): &(Arc<str>, SlotId)| {
        let ty = &plan.slots[*slot].ty;
        let dim = |d: &kiln_ir::Expr| match (d.as_size(), d.as_symbol()) {
            (Some(n), _) => Dim::Fixed(n),
            (None, Some(s)) => Dim::Symbol(s.name().to_string()),
            (None, None) => Dim::Unknown,
        };
        let shape = Some(ty.dims.iter().map(dim).collect());
        Wanted { name: name.to_string(), ty: ValueType::Tensor(TensorType { dtype: ty.dtype, shape }) }
    };
    ends.iter().map(end).collect()
}

/// The ends of a plan, of which `declared` tells the types where the model's are no tensors: the text forms of all of them in
/// order, or nothing.
///
/// # Errors
/// [`Error::Data`] where a text is no type.
pub fn declared_types(plan: &Plan, ends: &[(Arc<str>, SlotId)], declared: &[String]) -> Result<Vec<Wanted>, Error> {
    let mut all = types(plan, ends);
    for (end, text) in all.iter_mut().zip(declared) {
        // A tensor's dims are those of the plan.
        match parse_type(text) {
            Some(ValueType::Tensor(_)) => {}
            Some(ty) => end.ty = ty,
            None => return Err(Error::data("the artifact's notes", format!("{text:?} is no type"))),
        }
    }
    Ok(all)
}

/// The type of a text form such as `optional(sequence(f32[2]))`; tensors lose their shape.
fn parse_type(text: &str) -> Option<ValueType> {
    use kiln_frontend::onnx::model::TensorType;
    let inside = |word: &str| text.strip_prefix(word)?.strip_prefix('(')?.strip_suffix(')');
    let tensor = |text: &str| {
        let (dtype, _) = text.split_once('[')?;
        Some(TensorType { dtype: DType::from_name(dtype)?, shape: None })
    };
    if let Some(element) = inside("sequence") {
        Some(ValueType::Sequence(Box::new(parse_type(element)?)))
    } else if let Some(element) = inside("optional") {
        Some(ValueType::Optional(Box::new(parse_type(element)?)))
    } else if let Some(entry) = inside("map") {
        let (key, value) = entry.split_once(", ")?;
        Some(ValueType::Map { key: DType::from_name(key)?, value: Box::new(parse_type(value)?) })
    } else if let Some(of) = inside("sparse") {
        tensor(of).map(ValueType::Sparse)
    } else {
        tensor(text).map(ValueType::Tensor)
    }
}

/// Where inputs come from.
#[derive(Clone, Debug)]
pub enum From {
    /// An archive whose keys are input names.
    Npz(PathBuf),
    /// A folder of `input_i.pb` files.
    Folder(PathBuf),
    /// Random numbers from a seed.
    Seed(u64),
}

/// Reads or makes the inputs as the model's own types have them, in the order of `wanted`. `shape` says which dims a
/// random input has.
///
/// # Errors
/// A file cannot be read, an input is missing, superfluous or of another type.
pub fn values(
    from: &From,
    wanted: &[Wanted],
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    budget: &Budget,
) -> Result<Vec<Value>, Error> {
    match from {
        From::Npz(path) => from_npz(path, wanted, budget),
        From::Folder(folder) => wanted.iter().enumerate().map(|(n, w)| from_pb(folder, n, w, budget)).collect(),
        From::Seed(seed) => {
            let ty = |w: &Wanted| {
                let message = || format!("input {:?} is {}; random ones are tensors only: use --data", w.name, w.ty);
                let dtype = w.ty.tensor().ok_or_else(|| Error::Unsupported(message()))?.dtype;
                let unknown = || Error::Unsupported(format!("not even the rank of input {:?} is known", w.name));
                Ok(random::Input { dtype, shape: shape(&w.name).ok_or_else(unknown)? })
            };
            let types = wanted.iter().map(ty).collect::<Result<Vec<_>, Error>>()?;
            for (ty, w) in types.iter().zip(wanted) {
                let bytes = kiln_ir::tensor::element_count(&ty.shape, ty.dtype.size())
                    .map_err(|e| Error::data(format!("input {:?}", w.name), e))?;
                // Only asked, not held: the tensors are made right after.
                drop(budget.reserve((bytes * ty.dtype.size()) as u64, &format!("the input {:?}", w.name))?);
            }
            Ok(random::inputs(&types, *seed)?.into_iter().map(Value::Tensor).collect())
        }
    }
}

/// The inputs as [`values`] has them, as plans take them: sequences and optionals are tensors of tensors.
///
/// # Errors
/// Those of [`values`]; [`Error::Unsupported`] for a map or a sparse tensor, which no plan takes.
pub fn inputs(
    from: &From,
    wanted: &[Wanted],
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    budget: &Budget,
) -> Result<Vec<Tensor>, Error> {
    let tensor = |(value, w): (Value, &Wanted)| {
        let message = || format!("input {:?} is {}, which no model takes here", w.name, w.ty);
        value.into_tensor().ok_or_else(|| Error::Unsupported(message()))
    };
    values(from, wanted, shape, budget)?.into_iter().zip(wanted).map(tensor).collect()
}

fn from_npz(path: &Path, wanted: &[Wanted], budget: &Budget) -> Result<Vec<Value>, Error> {
    if let Some(w) = wanted.iter().find(|w| !npz::holds(&w.ty)) {
        let Wanted { name, ty } = w;
        return Err(Error::Usage(format!("input {name:?} is {ty}, which no .npz file can hold; use --data DIR")));
    }
    let arrays = npz::read(path, budget)?;
    let place = path.display().to_string();
    let names = || wanted.iter().map(|w| format!("{:?}", w.name)).collect::<Vec<_>>().join(", ");
    if let Some((name, _)) = arrays.iter().find(|(name, _)| !wanted.iter().any(|w| w.name == *name)) {
        return Err(Error::data(place, format!("the model has no input {name:?}; its inputs are {}", names())));
    }
    let find = |w: &Wanted| {
        let dtype = w.ty.tensor().map(|t| t.dtype).ok_or_else(|| Error::Internal("no tensor".into()))?;
        let (_, tensor) = arrays
            .iter()
            .find(|(name, _)| *name == w.name)
            .ok_or_else(|| Error::data(&place, format!("there is no array for input {:?}", w.name)))?;
        let fail = |message: String| Error::data(format!("{place}: array {:?}", w.name), message);
        let tensor = npz::narrowed(tensor, dtype).map_err(fail)?;
        if tensor.dtype() != dtype {
            return Err(fail(format!("it is {}, the model wants {dtype}", tensor.dtype())));
        }
        Ok(Value::Tensor(tensor))
    };
    wanted.iter().map(find).collect()
}

fn from_pb(folder: &Path, n: usize, wanted: &Wanted, budget: &Budget) -> Result<Value, Error> {
    let path = folder.join(format!("input_{n}.pb"));
    let place = path.display().to_string();
    let bytes = match kiln_runtime::file::map(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound && folder.is_dir() => {
            if let ValueType::Optional(_) = &wanted.ty {
                return Ok(Value::Optional(None));
            }
            let message = format!("there is no such file, and input {:?} ({}) is not optional", wanted.name, wanted.ty);
            return Err(Error::data(place, message));
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    drop(budget.reserve(bytes.len() as u64, &format!("the input {:?}", wanted.name))?);
    value::decode(bytes, &wanted.ty, budget.limit()).map_err(|e| Error::data(place, e))
}

/// An output of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// What the model declares, where it does.
    pub ty: Option<ValueType>,
    /// What came out.
    pub value: Value,
}

/// Writes outputs to a folder, which is made: `output_i.pb`, in order, each the message that its type asks for.
///
/// # Errors
/// [`Error::Write`].
pub fn write_folder(folder: &Path, outputs: &[Output]) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
    for (n, output) in outputs.iter().enumerate() {
        let path = folder.join(format!("output_{n}.pb"));
        let bytes = value::encode(&output.value, output.ty.as_ref(), &output.name);
        replace(&path, |file| io::Write::write_all(file, &bytes)).map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

/// Writes a file, which appears under its name complete or not at all.
///
/// # Errors
/// What the system says; `path` is then as it was.
pub fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut std::fs::File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut unfinished = Unfinished::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, unfinished.file());
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?;
    unfinished.finish()
}

/// Whether [`replace`] could write a file at `path` now: asked before long work whose result goes there.
///
/// # Errors
/// [`Error::Write`].
pub fn writable(path: &Path) -> Result<(), Error> {
    Unfinished::create(path).map(drop).map_err(|source| Error::Write { path: path.into(), source })
}

/// Writes a file of these bytes, which appears complete or not at all.
///
/// # Errors
/// [`Error::Write`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = replace(path, |out| io::Write::write_all(out, bytes));
    written.map_err(|source| Error::Write { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_shown() {
        for text in ["f32[...]", "optional(sequence(i64[...]))", "map(i64, sequence(str[...]))", "sparse(bf16[...])"] {
            assert_eq!(parse_type(text).unwrap().to_string(), text);
        }
        assert_eq!(parse_type("sequence(f32[2, n])").unwrap().to_string(), "sequence(f32[...])");
        for text in ["", "f32", "sequence(f32[2]", "tuple(f32[2])", "map(f32[2])", "opaque(a, b)"] {
            assert_eq!(parse_type(text), None, "{text}");
        }
    }
}

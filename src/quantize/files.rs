//! Quantized checkpoints as files.
//!
//! Invariant: a file or folder appears complete or not at all, and what was there before stays until then.

use super::Quantization;
use crate::{Error, data};
use kiln_frontend::checkpoint::{Element, GgufWeights, Safetensors, Stored, Weights, pack};
use kiln_frontend::gguf::{Encoding, Gguf};
use kiln_ir::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

fn written(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Write { path: path.into(), source }
}

/// Writes a GGUF file with new weights; the size in bytes.
///
/// # Errors
/// [`Error::Read`] and [`Error::Lm`] of the model, [`Error::Write`].
pub fn write_gguf(model: &Path, made: &Quantization, output: &Path) -> Result<u64, Error> {
    let file = kiln_runtime::file::map(model).map_err(|source| Error::Read { path: model.into(), source })?;
    let fail = |e| Error::from(crate::lm::LmError::Checkpoint(e));
    let weights = GgufWeights::new(Gguf::parse(file).map_err(|e| fail(e.into()))?).map_err(fail)?;
    let bytes = weights.rewritten(&made.changed);
    let bytes = bytes.ok_or_else(|| Error::Internal("a new tensor does not fit the file".into()))?;
    data::write(output, &bytes)?;
    Ok(bytes.len() as u64)
}

/// Writes a folder as Hugging Face lays it out: the other files of the model's folder, `config.json` with what was quantized, and
/// `model.safetensors`; the size of that in bytes.
///
/// # Errors
/// [`Error::Usage`] where the folder exists and is not empty, [`Error::Write`].
pub fn write_folder(model: &Path, weights: &Safetensors, made: &Quantization, output: &Path) -> Result<u64, Error> {
    vacant(output)?;
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent).map_err(written(output))?;
    let mut config = json!({});
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = model.join(name);
        let bytes = match std::fs::read(&from) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Read { path: from, source }),
        };
        match name {
            "config.json" => config = serde_json::from_slice(&bytes).map_err(|e| Error::data(from.display(), e))?,
            _ => std::fs::write(folder.path().join(name), bytes).map_err(written(output))?,
        }
    }
    if let Some(described) = described(made) {
        config["quantization_config"] = described;
    }
    std::fs::write(folder.path().join("config.json"), format!("{config:#}\n")).map_err(written(output))?;
    let tensors = tensors(weights, made)?;
    let views =
        tensors.iter().map(|(name, stored)| Ok((name.clone(), view(stored)?))).collect::<Result<Vec<_>, Error>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::Internal(e.to_string()))?;
    std::fs::write(folder.path().join("model.safetensors"), &bytes).map_err(written(output))?;
    if output.is_dir() {
        std::fs::remove_dir(output).map_err(written(output))?;
    }
    std::fs::rename(folder.keep(), output).map_err(written(output))?;
    Ok(bytes.len() as u64)
}

/// Whether a folder can be written there: nothing is there, or a folder in which nothing is.
///
/// # Errors
/// [`Error::Usage`].
pub fn vacant(output: &Path) -> Result<(), Error> {
    let empty = std::fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_none());
    if !output.exists() || empty {
        return Ok(());
    }
    Err(Error::Usage(format!("{} exists; give the name of a folder that does not", output.display())))
}

/// All tensors of the new file.
fn tensors(weights: &Safetensors, made: &Quantization) -> Result<BTreeMap<String, Stored>, Error> {
    let group = |name: &str| {
        made.changed.get(name).filter(|stored| blocks(stored).is_some())?;
        made.layers.iter().find(|l| l.name == name).map(|l| l.group)
    };
    let mut all = BTreeMap::new();
    for name in weights.names() {
        let changed = made.changed.get(&name);
        match (changed, group(&name)) {
            (Some(stored), Some(group)) => {
                let parts = pack(stored, group);
                let parts = parts.ok_or_else(|| Error::Internal(format!("{name:?} cannot be packed")))?;
                all.extend(parts.into_iter().map(|(word, part)| (format!("{name}_{word}"), part)));
            }
            (stored, _) => {
                let stored = stored.cloned().or_else(|| weights.get(&name));
                all.insert(name.clone(), stored.ok_or_else(|| Error::Internal(format!("no weights {name:?}")))?);
            }
        }
    }
    Ok(all)
}

/// The encoding of a tensor in blocks; floats are none.
fn blocks(stored: &Stored) -> Option<Encoding> {
    match stored.element {
        Element::Float(Encoding::F32 | Encoding::F16 | Encoding::BF16) | Element::Other(_) => None,
        Element::Float(encoding) => Some(encoding),
    }
}

/// What `config.json` says of the quantization, in the words of the compressed-tensors format; nothing where nothing is quantized.
/// Matrices of one precision and group are one entry, with their modules listed.
fn described(made: &Quantization) -> Option<Value> {
    /// Bits, whether numbers count from the middle, and columns of a group.
    type Kind = (u32, bool, usize);
    let mut groups: BTreeMap<Kind, Vec<&str>> = BTreeMap::new();
    for layer in &made.layers {
        let Some(encoding) = blocks(made.changed.get(&layer.name)?) else { continue };
        let bits = if encoding == Encoding::Q8_0 { 8 } else { 4 };
        let module = layer.name.strip_suffix(".weight").unwrap_or(&layer.name);
        groups.entry((bits, encoding != Encoding::Q4_1, layer.group)).or_default().push(module);
    }
    let entry = |(n, ((bits, symmetric, group), targets)): (usize, (Kind, Vec<&str>))| {
        let weights = json!({
            "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group,
        });
        (format!("group_{n}"), json!({ "targets": targets, "weights": weights }))
    };
    let groups: BTreeMap<String, Value> = groups.into_iter().enumerate().map(entry).collect();
    (!groups.is_empty()).then(|| {
        json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups,
                "quantization_status": "compressed" })
    })
}

fn view(stored: &Stored) -> Result<TensorView<'_>, Error> {
    let dtype = match stored.element {
        Element::Float(Encoding::F32) => Dtype::F32,
        Element::Float(Encoding::F16) => Dtype::F16,
        Element::Float(Encoding::BF16) => Dtype::BF16,
        Element::Other(DType::F64) => Dtype::F64,
        Element::Other(DType::Bool) => Dtype::BOOL,
        Element::Other(DType::U8) => Dtype::U8,
        Element::Other(DType::I8) => Dtype::I8,
        Element::Other(DType::I16) => Dtype::I16,
        Element::Other(DType::U16) => Dtype::U16,
        Element::Other(DType::I32) => Dtype::I32,
        Element::Other(DType::U32) => Dtype::U32,
        Element::Other(DType::I64) => Dtype::I64,
        Element::Other(DType::U64) => Dtype::U64,
        Element::Float(_) | Element::Other(_) => {
            return Err(Error::Internal(format!("safetensors has no {:?}", stored.element)));
        }
    };
    TensorView::new(dtype, stored.shape.clone(), &stored.bytes).map_err(|e| Error::Internal(e.to_string()))
}

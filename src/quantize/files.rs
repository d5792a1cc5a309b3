//! Quantized checkpoints as files.
//!
//! Invariant: a file or folder appears complete or not at all, and what was there before stays until then.

use super::Quantization;
use crate::lm::{LanguageModel, LmError};
use crate::source::Within;
use crate::{Error, data};
use bytes::Bytes;
use kiln_frontend::checkpoint::{
    CheckpointError, Cut, Element, Folder, GgufWeights, Safetensors, Stored, Weights, pack,
};
use kiln_frontend::families::Anatomy;
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

/// The files of a language model, as they are or changed in memory.
#[derive(Clone, Debug)]
pub enum Files {
    /// A GGUF file.
    Gguf(Bytes),
    /// A folder.
    Folder(Box<Folder>),
}

fn checkpoint(error: CheckpointError) -> Error {
    LmError::Checkpoint(error).into()
}

impl Files {
    /// Those at a path.
    ///
    /// # Errors
    /// They cannot be read, or a folder misses some.
    pub fn read(path: &Path) -> Result<Files, Error> {
        if path.is_dir() {
            return Ok(Files::Folder(Box::new(Folder::read(&Within(path)).map_err(checkpoint)?)));
        }
        kiln_runtime::file::map(path).map(Files::Gguf).map_err(|source| Error::Read { path: path.into(), source })
    }

    /// The decoder that they are.
    ///
    /// # Errors
    /// They are none, or something is wrong with them.
    pub fn decoder(&self) -> Result<LanguageModel, Error> {
        Ok(match self {
            Files::Gguf(file) => LanguageModel::of_gguf(file.clone())?,
            Files::Folder(folder) => LanguageModel::of((**folder).clone())?,
        })
    }

    /// The same without some layers and heads.
    ///
    /// # Errors
    /// They cannot be taken out.
    pub fn without(&self, anatomy: &Anatomy, cut: &Cut) -> Result<Files, Error> {
        Ok(match self {
            Files::Gguf(file) => Files::Gguf(tensors_of(file)?.cut(anatomy, cut).map_err(checkpoint)?.into()),
            Files::Folder(folder) => Files::Folder(Box::new(folder.cut(anatomy, cut).map_err(checkpoint)?)),
        })
    }
}

fn tensors_of(file: &Bytes) -> Result<GgufWeights, Error> {
    GgufWeights::new(Gguf::parse(file.clone()).map_err(|e| checkpoint(e.into()))?).map_err(checkpoint)
}

/// Writes a GGUF file with new weights; the size in bytes.
///
/// # Errors
/// [`Error::Lm`] of the model, [`Error::Write`].
pub fn write_gguf(model: &Bytes, made: &Quantization, output: &Path) -> Result<u64, Error> {
    let bytes = tensors_of(model)?.rewritten(&made.changed);
    let bytes = bytes.ok_or_else(|| Error::Internal("a new tensor does not fit the file".into()))?;
    data::write(output, &bytes)?;
    Ok(bytes.len() as u64)
}

/// Writes a folder as Hugging Face lays it out: the other files of the `model`'s folder, `config.json` with what was quantized, and
/// `model.safetensors`; the size of that in bytes.
///
/// # Errors
/// [`Error::Usage`] where the folder exists and is not empty, [`Error::Write`].
pub fn write_folder(model: &Path, folder: &Folder, made: &Quantization, output: &Path) -> Result<u64, Error> {
    vacant(output)?;
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent).map_err(written(output))?;
    for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        let from = model.join(name);
        match std::fs::read(&from) {
            Ok(bytes) => std::fs::write(place.path().join(name), bytes).map_err(written(output))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path: from, source }),
        }
    }
    let mut config = folder.config.clone();
    if let Some(described) = described(made) {
        config["quantization_config"] = described;
    }
    std::fs::write(place.path().join("config.json"), format!("{config:#}\n")).map_err(written(output))?;
    let tensors = tensors(&folder.weights, made)?;
    let views =
        tensors.iter().map(|(name, stored)| Ok((name.clone(), view(stored)?))).collect::<Result<Vec<_>, Error>>()?;
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::Internal(e.to_string()))?;
    std::fs::write(place.path().join("model.safetensors"), &bytes).map_err(written(output))?;
    if output.is_dir() {
        std::fs::remove_dir(output).map_err(written(output))?;
    }
    std::fs::rename(place.keep(), output).map_err(written(output))?;
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

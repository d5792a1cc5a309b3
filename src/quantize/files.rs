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
use kiln_frontend::gguf::{self, BLOCK, Encoding, Gguf};
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
    let all = whole(&folder.weights, made)?;
    if let Some(described) = described(&all) {
        config["quantization_config"] = described;
    }
    std::fs::write(place.path().join("config.json"), format!("{config:#}\n")).map_err(written(output))?;
    let tensors = packed(all)?;
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

/// All tensors of the new file, each whole; those in blocks with the columns of a group that has one scale.
fn whole(weights: &Safetensors, made: &Quantization) -> Result<BTreeMap<String, (Stored, Option<usize>)>, Error> {
    let mut all = BTreeMap::new();
    for name in weights.names() {
        let stored = made.changed.get(&name).cloned().or_else(|| weights.get(&name));
        let stored = stored.ok_or_else(|| Error::Internal(format!("no weights {name:?}")))?;
        let chosen = || made.layers.iter().find(|l| l.name == name).map(|l| l.group);
        // What was packed before and stays is packed again.
        let group = blocks(&stored).map(|_| chosen().or_else(|| group_of(&stored)).unwrap_or(BLOCK));
        all.insert(name, (stored, group));
    }
    Ok(all)
}

/// The tensors as they are stored.
fn packed(all: BTreeMap<String, (Stored, Option<usize>)>) -> Result<BTreeMap<String, Stored>, Error> {
    let mut parts = BTreeMap::new();
    for (name, (stored, group)) in all {
        let Some(group) = group else {
            parts.insert(name, stored);
            continue;
        };
        let made = pack(&stored, group).ok_or_else(|| Error::Internal(format!("{name:?} cannot be packed")))?;
        parts.extend(made.into_iter().map(|(word, part)| (format!("{name}_{word}"), part)));
    }
    Ok(parts)
}

/// The most columns that share a scale and a least value, where it is a matrix in blocks of such.
fn group_of(stored: &Stored) -> Option<usize> {
    let parts = gguf::blocks(blocks(stored)?, &stored.bytes)?;
    let per_row = stored.shape.get(1)? / BLOCK;
    let alike = |values: &[f32], step: usize| values.chunks(step).all(|c| c.iter().all(|v| Some(v) == c.first()));
    let shares = |step: &usize| {
        per_row.is_multiple_of(*step)
            && alike(&parts.scales, *step)
            && parts.least.as_ref().is_none_or(|least| alike(least, *step))
    };
    (1..=per_row).rev().find(shares).map(|step| step * BLOCK)
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
fn described(all: &BTreeMap<String, (Stored, Option<usize>)>) -> Option<Value> {
    /// Bits, whether numbers count from the middle, and columns of a group.
    type Kind = (u32, bool, usize);
    let mut groups: BTreeMap<Kind, Vec<&str>> = BTreeMap::new();
    for (name, (stored, group)) in all {
        let (Some(encoding), Some(group)) = (blocks(stored), group) else { continue };
        let bits = if encoding == Encoding::Q8_0 { 8 } else { 4 };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        groups.entry((bits, encoding != Encoding::Q4_1, *group)).or_default().push(module);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_matrices_that_stay_are_packed_as_they_were() {
        let place = tempfile::tempdir().unwrap();
        let (rows, columns) = (8usize, 128usize);
        let blocks = |encoding, group: usize| {
            let scales = (0..rows * columns / 32).map(|n| 0.5 + (n * 32 / group % 7) as f32).collect();
            let numbers = (0..rows * columns).map(|n| (n * 5 % 8) as u8).collect();
            let least = (encoding == Encoding::Q4_1).then(|| vec![0.0; rows * columns / 32]);
            let bytes = gguf::join(encoding, &gguf::Blocks { numbers, scales, least }).unwrap();
            Stored { element: Element::Float(encoding), shape: vec![rows, columns], bytes: bytes.into() }
        };
        let kept = [("a", Encoding::Q4_0, 64), ("b", Encoding::Q8_0, 128), ("c", Encoding::Q4_1, 32)];
        let mut parts = BTreeMap::new();
        for (name, encoding, group) in kept {
            let made = pack(&blocks(encoding, group), group).unwrap();
            parts.extend(made.into_iter().map(|(word, part)| (format!("{name}.weight_{word}"), part)));
        }
        let plain = Stored { element: Element::Float(Encoding::F32), shape: vec![32], bytes: vec![1; 128].into() };
        parts.insert("plain".into(), plain);
        let from = place.path().join("from");
        std::fs::create_dir(&from).unwrap();
        let views: Vec<_> = parts.iter().map(|(name, part)| (name.clone(), view(part).unwrap())).collect();
        std::fs::write(from.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        std::fs::write(from.join("config.json"), "{}").unwrap();
        let folder = Folder::read(&Within(&from)).unwrap();
        // One more matrix is quantized, the others stay.
        let mut made = Quantization::default();
        made.changed.insert("plain".into(), Stored { shape: vec![1, 32], ..folder.weights.get("plain").unwrap() });
        let to = place.path().join("to");
        write_folder(&from, &folder, &made, &to).unwrap();
        let again = Folder::read(&Within(&to)).unwrap();
        for (name, encoding, group) in kept {
            let stored = again.weights.get(&format!("{name}.weight")).unwrap();
            assert_eq!((stored.element, group_of(&stored)), (Element::Float(encoding), Some(group)), "{name}");
            assert_eq!(stored.bytes, folder.weights.get(&format!("{name}.weight")).unwrap().bytes, "{name}");
        }
        let groups = &again.config["quantization_config"]["config_groups"];
        assert_eq!(groups.as_object().unwrap().len(), 3, "{groups}");
        assert_eq!(groups["group_0"]["targets"][0], "c", "{groups}");
    }
}

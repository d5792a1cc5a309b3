//! Folders as Hugging Face lays them out.
//!
//! Invariant: only files directly in the folder are opened: a name in an index that leads elsewhere is refused here.

use super::{CheckpointError, Safetensors};
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeSet;

/// Opens files of a folder by name: nothing where there is no such file.
pub trait Files {
    /// The content of a file of that name in the folder.
    ///
    /// # Errors
    /// The file is there and cannot be read; the message says why.
    fn open(&self, name: &str) -> Result<Option<Bytes>, String>;
}

/// A model's folder: configuration and weights.
#[derive(Clone, Debug)]
pub struct Folder {
    /// `config.json`.
    pub config: Value,
    /// `generation_config.json`, or nothing.
    pub generation: Option<Value>,
    /// `tokenizer.json`, or nothing.
    pub tokenizer: Option<Bytes>,
    /// `tokenizer_config.json`, or nothing.
    pub tokenizer_config: Option<Value>,
    /// `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub weights: Safetensors,
}

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Folder {
    /// Reads a folder.
    ///
    /// # Errors
    /// A file is missing or not right.
    pub fn read(files: &dyn Files) -> Result<Folder, CheckpointError> {
        let file = |name: &str| {
            let message = |message| CheckpointError::File { file: name.into(), message };
            files.open(name).map_err(message)
        };
        let json = |name: &str| match file(name)? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| fail(name, format!("not JSON: {e}"))),
        };
        let config: Value = json(CONFIG)?.ok_or_else(|| fail(CONFIG, "there is no such file in the folder".into()))?;
        let weights = match (file(WEIGHTS)?, json(INDEX)?) {
            (Some(bytes), _) => Safetensors::parse(WEIGHTS, &bytes)?,
            (None, Some(index)) => {
                let mut all = Safetensors::default();
                for shard in shards(&index)? {
                    let bytes = file(&shard)?.ok_or_else(|| fail(INDEX, format!("there is no file {shard:?}")))?;
                    all.add(&shard, &bytes)?;
                }
                all
            }
            (None, None) => return Err(fail(WEIGHTS, "there is neither this file nor an index of shards".into())),
        };
        let generation = json("generation_config.json")?;
        let tokenizer_config = json("tokenizer_config.json")?;
        Ok(Folder { config, generation, tokenizer: file("tokenizer.json")?, tokenizer_config, weights })
    }
}

fn fail(file: &str, message: String) -> CheckpointError {
    CheckpointError::File { file: file.into(), message }
}

/// The files that an index names.
fn shards(index: &Value) -> Result<BTreeSet<String>, CheckpointError> {
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| fail(INDEX, "it has no `weight_map`".into()))?;
    let plain = |name: &str| !name.is_empty() && name != ".." && !name.contains(['/', '\\', ':', '\0']);
    let each = map.iter().map(|(tensor, file)| match file.as_str() {
        Some(name) if plain(name) => Ok(name.to_string()),
        _ => Err(fail(INDEX, format!("the file of {tensor:?} is {file}, which is no file name"))),
    });
    each.collect()
}

//! Adapters of low rank, as PEFT stores them (LoRA, Hu et al. 2021): `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Invariant: an adapter is merged whole or not at all: whatever of its files is not understood, or has no place in the model, is an
//! error that names all of it.

use super::{CheckpointError, Element, Files, Safetensors, Stored, WeightProblems, Weights};
use crate::families::Settings;
use crate::gguf::Encoding;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What the names of an adapter's tensors begin with.
const PREFIX: &str = "base_model.model.";

/// Settings that change what an adapter means, and are not supported where they are set.
const UNSUPPORTED: [&str; 13] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
];

/// An adapter: products of two narrow matrices that are added to a model's, and parameters that replace the model's.
#[derive(Clone, Debug)]
pub struct Adapter {
    alpha: f64,
    alphas: BTreeMap<String, f64>,
    ranked: BTreeSet<String>,
    /// Whether the product is divided by the root of the rank.
    by_root: bool,
    /// Whether the model's matrices are stored `[in, out]`, as GPT-2's are.
    transposed: bool,
    tensors: Safetensors,
}

/// What an adapter has for one parameter.
#[derive(Default)]
struct Part {
    /// `[rank, in]`; of an embedding `[rank, vocabulary]`.
    a: Option<Stored>,
    /// `[out, rank]`; of an embedding `[width, rank]`.
    b: Option<Stored>,
    embedding: bool,
    whole: Option<Stored>,
}

/// A matrix in f32.
struct Factor {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Factor {
    fn of(stored: &Stored) -> Result<Factor, String> {
        let [rows, columns] = stored.shape[..] else {
            return Err(format!("{:?}, no matrix", stored.shape));
        };
        let values = stored.to_f32().ok_or("its elements are no numbers")?;
        Ok(Factor { rows, columns, values })
    }

    fn transposed(self) -> Factor {
        let mut values = Vec::with_capacity(self.values.len());
        for column in 0..self.columns {
            values.extend(self.values.iter().skip(column).step_by(self.columns.max(1)));
        }
        Factor { rows: self.columns, columns: self.rows, values }
    }
}

/// A type of adapter, or a setting of one, that is not supported.
fn refused(key: &str, value: &Value) -> CheckpointError {
    CheckpointError::Unsupported(format!("{CONFIG}: `{key}` is {value}; adapters are supported that are plain LoRA"))
}

impl Adapter {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// A file is missing or not right, or the adapter is of a kind that is not supported.
    pub fn read(files: &dyn Files) -> Result<Adapter, CheckpointError> {
        let fail = |file: &str, message: String| CheckpointError::File { file: file.into(), message };
        let open = |name: &str| {
            let found = files.open(name).map_err(|message| fail(name, message))?;
            found.ok_or_else(|| fail(name, "there is no such file in the adapter's folder".into()))
        };
        let config: Value =
            serde_json::from_slice(&open(CONFIG)?).map_err(|e| fail(CONFIG, format!("not JSON: {e}")))?;
        let set = |key: &str| config.get(key).filter(|v| !matches!(v, Value::Null | Value::Bool(false)));
        if let Some(kind) = set("peft_type").filter(|kind| kind.as_str() != Some("LORA")) {
            return Err(refused("peft_type", kind));
        }
        if let Some((key, value)) = UNSUPPORTED.iter().find_map(|key| Some((key, set(key)?))) {
            return Err(refused(key, value));
        }
        // Those that begin with a part of the model's own matrices take it out of them.
        let plain = ["gaussian", "eva", "orthogonal"];
        let changes = |v: &&Value| v.as_str().is_some_and(|name| !plain.contains(&name));
        if let Some(begun) = set("init_lora_weights").filter(changes) {
            return Err(refused("init_lora_weights", begun));
        }
        let settings = Settings::json(CONFIG, &config);
        let numbers = |key: &str| -> Result<BTreeMap<String, f64>, CheckpointError> {
            let Some(Value::Object(map)) = set(key) else { return Ok(BTreeMap::new()) };
            let number = |(name, value): (&String, &Value)| {
                let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
                let wrong =
                    || settings.error(key, format!("has {name:?}: {value}, which is not a module and a number"));
                Ok((name.clone(), value.as_f64().filter(|v| plain && v.is_finite()).ok_or_else(wrong)?))
            };
            map.iter().map(number).collect()
        };
        Ok(Adapter {
            alpha: settings.float("lora_alpha")?,
            alphas: numbers("alpha_pattern")?,
            ranked: numbers("rank_pattern")?.into_keys().collect(),
            by_root: settings.flag("use_rslora", false)?,
            transposed: settings.flag("fan_in_fan_out", false)?,
            tensors: Safetensors::parse(WEIGHTS, &open(WEIGHTS)?)?,
        })
    }

    /// The parameters of a model that the adapter changes, merged: `W + B A alpha / rank`, in f32.
    ///
    /// # Errors
    /// All that the adapter has and the model has not, or has in another shape.
    pub fn merged(&self, model: &dyn Weights) -> Result<BTreeMap<String, Stored>, CheckpointError> {
        let names = model.names();
        let mut problems = WeightProblems::default();
        let mut parts: BTreeMap<String, (String, Part)> = BTreeMap::new();
        for tensor in self.tensors.names() {
            let Some(stored) = self.tensors.get(&tensor) else { continue };
            let found = parameter(&tensor).and_then(|(path, role)| Some((place(&names, &path)?, path, role)));
            let Some((name, path, role)) = found else {
                problems.surplus.push(tensor);
                continue;
            };
            let part = &mut parts.entry(name).or_insert((path, Part::default())).1;
            part.embedding |= matches!(role, Role::EmbeddingA | Role::EmbeddingB);
            match role {
                Role::A | Role::EmbeddingA => part.a = Some(stored),
                Role::B | Role::EmbeddingB => part.b = Some(stored),
                Role::Whole => part.whole = Some(stored),
            }
        }
        let mut merged = BTreeMap::new();
        for (name, (path, part)) in parts {
            let Some(beneath) = model.get(&name) else { continue };
            match self.merge(&path, &beneath, part) {
                Ok(stored) => {
                    merged.insert(name, stored);
                }
                Err(what) => problems.misshapen.push((name, what)),
            }
        }
        if merged.is_empty() && problems.is_empty() {
            let message = "it has no tensors".to_string();
            return Err(CheckpointError::File { file: WEIGHTS.into(), message });
        }
        if problems.is_empty() { Ok(merged) } else { Err(CheckpointError::Adapter(problems)) }
    }

    fn merge(&self, path: &str, beneath: &Stored, part: Part) -> Result<Stored, String> {
        let shape = &beneath.shape;
        // What replaces a parameter comes first: an embedding that is adapted is stored beside its factors.
        let beneath = part.whole.as_ref().unwrap_or(beneath);
        if let Some(whole) = part.whole.as_ref().filter(|whole| whole.shape != *shape) {
            return Err(format!("{:?} in the adapter, {shape:?} in the model", whole.shape));
        }
        let (a, b) = match (part.a, part.b) {
            (None, None) => return Ok(beneath.clone()),
            (Some(a), Some(b)) => (Factor::of(&a)?, Factor::of(&b)?),
            (Some(_), None) | (None, Some(_)) => return Err("one of the two factors is missing".into()),
        };
        if b.columns != a.rows || a.rows == 0 {
            return Err(format!("factors of [{}, {}] and [{}, {}]", b.rows, b.columns, a.rows, a.columns));
        }
        let scale = self.scale(path, a.rows)?;
        // An embedding's product, and that of a matrix stored [in, out], is the transpose: its factors change places.
        let (left, right) = match part.embedding || self.transposed {
            true => (a.transposed(), b.transposed()),
            false => (b, a),
        };
        if *shape != [left.rows, right.columns] {
            return Err(format!("[{}, {}] in the adapter, {shape:?} in the model", left.rows, right.columns));
        }
        let mut values = beneath.to_f32().ok_or("its elements are no numbers")?;
        for (row, factors) in values.chunks_exact_mut(right.columns.max(1)).zip(left.values.chunks_exact(left.columns))
        {
            let mut sums = vec![0f32; right.columns];
            for (factor, of) in factors.iter().zip(right.values.chunks_exact(right.columns.max(1))) {
                sums.iter_mut().zip(of).for_each(|(sum, v)| *sum += factor * v);
            }
            row.iter_mut().zip(sums).for_each(|(value, sum)| *value += sum * scale);
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Stored { element: Element::Float(Encoding::F32), shape: shape.clone(), bytes: bytes.into() })
    }

    /// What the product of a module's factors is multiplied by.
    fn scale(&self, path: &str, rank: usize) -> Result<f32, String> {
        let of = |key: &&String| path == *key || path.strip_suffix(key.as_str()).is_some_and(|p| p.ends_with('.'));
        let keys: BTreeSet<&String> = self.ranked.iter().chain(self.alphas.keys()).filter(of).collect();
        if keys.len() > 1 {
            return Err(format!("several patterns of {CONFIG} mean it: {keys:?}"));
        }
        let alpha = keys.first().and_then(|key| self.alphas.get(*key)).copied().unwrap_or(self.alpha);
        let rank = rank as f64;
        Ok((alpha / if self.by_root { rank.sqrt() } else { rank }) as f32)
    }
}

/// What a tensor of an adapter is.
enum Role {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
    Whole,
}

/// The module's path of an adapter's tensor and what the tensor is; of a parameter that replaces the model's, the path with the
/// parameter's name. Nothing where it is no tensor of LoRA.
fn parameter(tensor: &str) -> Option<(String, Role)> {
    let name = tensor.strip_prefix(PREFIX)?;
    let kinds = [
        (".lora_A.weight", Role::A),
        (".lora_B.weight", Role::B),
        (".lora_embedding_A", Role::EmbeddingA),
        (".lora_embedding_B", Role::EmbeddingB),
    ];
    for (suffix, role) in kinds {
        if let Some(path) = name.strip_suffix(suffix) {
            return Some((path.to_string(), role));
        }
    }
    // A module that is trained whole beside the factors is stored as it is; its base layer has a name of its own in a wrapper.
    let whole = !name.contains(".lora_") && (name.ends_with(".weight") || name.ends_with(".bias"));
    whole.then(|| (name.replace(".base_layer.", "."), Role::Whole))
}

/// The parameter of the model that a path means: that path's weight, or the only one that ends so or that it ends with, as checkpoints
/// are stored with and without the name of the model around them.
fn place(names: &[String], path: &str) -> Option<String> {
    let wanted = match path.ends_with(".weight") || path.ends_with(".bias") {
        true => path.to_string(),
        false => format!("{path}.weight"),
    };
    let ends = |longer: &str, shorter: &str| longer.strip_suffix(shorter).is_some_and(|rest| rest.ends_with('.'));
    let mut alike = names.iter().filter(|name| ends(name, &wanted) || ends(&wanted, name));
    let exact = names.iter().find(|name| **name == wanted);
    exact.or_else(|| alike.next().filter(|_| alike.next().is_none())).cloned()
}

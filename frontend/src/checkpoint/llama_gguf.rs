//! Weights of a Llama-like GGUF file under the names, and in the order of rows, that Hugging Face gives them.
//!
//! Invariant: only names and whole rows are rearranged, so that quantized blocks stay as they are.

use super::{CheckpointError, Cut, Element, Stored, Weights};
use crate::families::{Anatomy, Keys};
use crate::gguf::{Encoding, Gguf, Value, Written, rewritten, written};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The tensors of a GGUF file of the architectures `llama` and `qwen2`.
#[derive(Clone, Debug)]
pub struct GgufWeights {
    file: Gguf,
    /// Names here to names in the file.
    names: BTreeMap<String, String>,
    /// Heads whose rows are stored by neighbours, for query and key weights.
    interleaved: Option<(usize, usize)>,
}

/// Names of a block's parts in GGUF and in Hugging Face's Llama.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

impl GgufWeights {
    /// The tensors of a file.
    ///
    /// # Errors
    /// The number of heads is missing or not right.
    pub fn new(file: Gguf) -> Result<GgufWeights, CheckpointError> {
        let architecture = file.get("general.architecture").and_then(Value::as_text).unwrap_or_default().to_string();
        let names = file.tensors().keys().map(|name| (renamed(name), name.clone())).collect();
        let interleaved = if architecture == "llama" {
            let heads = |key: &str| {
                let key = format!("{architecture}.attention.{key}");
                file.get(&key).and_then(Value::as_int).and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0)
            };
            let queries = heads("head_count").ok_or_else(|| CheckpointError::Config {
                file: "GGUF".into(),
                key: "llama.attention.head_count".into(),
                message: "is missing or not a positive number".into(),
            })?;
            Some((queries, heads("head_count_kv").unwrap_or(queries)))
        } else {
            None
        };
        Ok(GgufWeights { file, names, interleaved })
    }

    /// The file.
    pub fn file(&self) -> &Gguf {
        &self.file
    }

    /// The bytes of the file with some tensors stored otherwise, by their names here; nothing where one does not fit the file.
    pub fn rewritten(&self, changed: &BTreeMap<String, Stored>) -> Option<Vec<u8>> {
        let each = changed.iter().map(|(name, stored)| {
            let Element::Float(encoding) = stored.element else { return None };
            let bytes = match self.heads(name) {
                Some(heads) => rearranged(&stored.bytes, &stored.shape, encoding, heads, false)?,
                None => stored.bytes.clone(),
            };
            Some((self.names.get(name)?.clone(), (encoding, bytes)))
        });
        rewritten(&self.file, &each.collect::<Option<_>>()?)
    }

    /// The bytes of the file without some layers and heads, with metadata that says so.
    ///
    /// # Errors
    /// They cannot be taken out, or a tensor is not made as the anatomy has it.
    pub fn cut(&self, anatomy: &Anatomy, cut: &Cut) -> Result<Vec<u8>, CheckpointError> {
        let (layers, units) = cut.left(anatomy)?;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut changed = vec![("block_count", layers)];
        if let (Ok(parts), false) = (&anatomy.heads, cut.heads.is_empty())
            && let Keys::Counts { key_size, value_size } = parts.keys
        {
            changed.extend([("attention.head_count", units * parts.queries), ("attention.head_count_kv", units)]);
            changed.extend([("attention.key_length", key_size), ("attention.value_length", value_size)]);
        }
        let architecture = self.file.get("general.architecture").and_then(Value::as_text).unwrap_or_default();
        let key = |(key, n): (&str, usize)| (format!("{architecture}.{key}"), number(n));
        let changed = changed.into_iter().map(key).collect();
        let mut tensors = Vec::new();
        for (name, info) in self.file.in_order() {
            // Heads are whole runs of rows here as they are by the other order of their rows.
            let element = Element::Float(info.encoding);
            let stored = Stored { element, shape: info.shape.clone(), bytes: self.file.bytes(info) };
            let Some((number, stored)) = cut.tensor(anatomy, &renamed(name), stored)? else { continue };
            let Element::Float(encoding) = stored.element else { continue };
            let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let name = match (number, block) {
                (Some(number), Some((_, rest))) => format!("blk.{number}.{rest}"),
                _ => name.clone(),
            };
            tensors.push(Written { name, encoding, shape: stored.shape, bytes: stored.bytes });
        }
        let bytes = written(&self.file, &changed, &tensors);
        bytes.ok_or_else(|| CheckpointError::Unsupported("what is left is no whole blocks".into()))
    }

    /// Heads by which the rows of a tensor are stored by neighbours.
    fn heads(&self, name: &str) -> Option<usize> {
        let (queries, keys) = self.interleaved?;
        let part = name.rsplit_once('.').map_or(name, |(part, _)| part);
        match part.rsplit_once('.').map(|(_, last)| last) {
            Some("q_proj") => Some(queries),
            Some("k_proj") => Some(keys),
            _ => None,
        }
    }
}

/// The Hugging Face name of a tensor; one that is not known keeps its own.
fn renamed(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, (part, kind))) = block.and_then(|(layer, rest)| Some((layer, rest.rsplit_once('.')?))) else {
        return name.into();
    };
    match PARTS.iter().find(|(theirs, _)| *theirs == part) {
        Some((_, ours)) => format!("model.layers.{layer}.{ours}.{kind}"),
        None => name.into(),
    }
}

impl Weights for GgufWeights {
    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn get(&self, name: &str) -> Option<Stored> {
        let info = self.file.tensors().get(self.names.get(name)?)?;
        let mut bytes = self.file.bytes(info);
        if let Some(heads) = self.heads(name) {
            bytes = rearranged(&bytes, &info.shape, info.encoding, heads, true)?;
        }
        Some(Stored { element: Element::Float(info.encoding), shape: info.shape.clone(), bytes })
    }
}

/// Rows `2i` and `2i + 1` of each head put at `i` and `i + D/2`, or back. Nothing where the rows are not divided so.
fn rearranged(bytes: &Bytes, shape: &[usize], encoding: Encoding, heads: usize, to_halves: bool) -> Option<Bytes> {
    let rows = *shape.first()?;
    let row = match shape {
        // The elements of a bias are rows of one; they are not quantized.
        [_] => encoding.bytes(1)?,
        _ => bytes.len().checked_div(rows)?,
    };
    let size = rows.checked_div(heads)?;
    if size * heads != rows || !size.is_multiple_of(2) || row == 0 {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(row * size) {
        // Of `outer` runs of `inner` rows, the first rows of all come first, then the second ones.
        let (inner, outer) = if to_halves { (2, size / 2) } else { (size / 2, 2) };
        for n in 0..inner {
            for run in 0..outer {
                let at = row * (run * inner + n);
                out.extend_from_slice(head.get(at..at + row)?);
            }
        }
    }
    Some(out.into())
}

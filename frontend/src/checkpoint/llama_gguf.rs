//! Weights of a Llama-like GGUF file under the names, and in the order of rows, that Hugging Face gives them.
//!
//! Invariant: only names and whole rows are rearranged, so that quantized blocks stay as they are.

use super::{CheckpointError, Element, Stored, Weights};
use crate::gguf::{Encoding, Gguf, Value, rewritten};
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
const PARTS: [(&str, &str); 10] = [
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

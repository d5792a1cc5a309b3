//! Checkpoints without some of their layers and heads.
//!
//! Invariant: what is left has the numbers that it had; layers are numbered anew without gaps, and the configuration says what is
//! there, in words that other readers of the format know.

use super::{CheckpointError, Element, Folder, Safetensors, Stored, Weights};
use crate::families::{Anatomy, HeadParts, Keys};
use crate::gguf::Encoding;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What is taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Layers.
    pub layers: BTreeSet<usize>,
    /// Units of heads by their place in their layer, by layer.
    pub heads: BTreeMap<usize, BTreeSet<usize>>,
}

impl Cut {
    /// The number of a layer after the cut; nothing for one that is taken out.
    pub fn renumbered(&self, layer: usize) -> Option<usize> {
        (!self.layers.contains(&layer)).then(|| layer - self.layers.range(..layer).count())
    }

    /// Layers and units of heads that are left in each of them.
    ///
    /// # Errors
    /// Nothing is left, something is not there, or layers keep different numbers of heads where the configuration has one number.
    pub(super) fn left(&self, anatomy: &Anatomy) -> Result<(usize, usize), CheckpointError> {
        let fail = |message: String| Err(CheckpointError::Unsupported(message));
        let count = anatomy.count.saturating_sub(self.layers.len());
        if count == 0 || self.layers.last().is_some_and(|n| *n >= anatomy.count) {
            return fail(format!("of {} layers {} cannot be taken out", anatomy.count, self.layers.len()));
        }
        if let Some(why) = anatomy.ordered.filter(|_| !self.layers.is_empty()) {
            return fail(format!("layers cannot be taken out: {why}"));
        }
        let Ok(parts) = &anatomy.heads else {
            let why = anatomy.heads.as_ref().err().copied().unwrap_or_default();
            return if self.heads.values().all(BTreeSet::is_empty) { Ok((count, 0)) } else { fail(why.into()) };
        };
        let mut counts = BTreeSet::new();
        for n in (0..anatomy.count).filter(|n| !self.layers.contains(n)) {
            let units = parts.units.get(n).map_or(0, Vec::len);
            let gone = self.heads.get(&n);
            let left = units.saturating_sub(gone.map_or(0, BTreeSet::len));
            if left == 0 || gone.and_then(BTreeSet::last).is_some_and(|u| *u >= units) {
                return fail(format!("layer {n} has {units} units of heads, which cannot be taken out so: {gone:?}"));
            }
            counts.insert(left);
        }
        match (parts.keys, counts.len()) {
            (Keys::Pruned, _) | (_, 0 | 1) => Ok((count, counts.first().copied().unwrap_or(0))),
            (Keys::Counts { .. }, _) => {
                fail(format!("layers would keep {counts:?} heads of keys, and the configuration has one number"))
            }
        }
    }

    /// A tensor after the cut, with the layer that it is in then and what its name has after that; nothing where it is taken out.
    pub(super) fn tensor(
        &self,
        anatomy: &Anatomy,
        name: &str,
        stored: Stored,
    ) -> Result<Option<(Option<usize>, Stored)>, CheckpointError> {
        let Some((_, layer, rest)) = anatomy.place(name) else { return Ok(Some((None, stored))) };
        let Some(number) = self.renumbered(layer) else { return Ok(None) };
        let gone = self.heads.get(&layer).filter(|units| !units.is_empty());
        let (Some(gone), Ok(parts)) = (gone, &anatomy.heads) else { return Ok(Some((Some(number), stored))) };
        let kept = match share(parts, rest) {
            Some((axis, size)) => without(&stored, axis, size, gone).ok_or_else(|| CheckpointError::File {
                file: name.into(),
                message: format!("its shape {:?} does not divide by heads of {size}", stored.shape),
            })?,
            None => stored,
        };
        Ok(Some((Some(number), kept)))
    }

    /// All tensors after the cut, by their new names.
    fn tensors(&self, anatomy: &Anatomy, weights: &dyn Weights) -> Result<BTreeMap<String, Stored>, CheckpointError> {
        let mut all = BTreeMap::new();
        for name in weights.names() {
            let Some(stored) = weights.get(&name) else { continue };
            if let Some((number, stored)) = self.tensor(anatomy, &name, stored)? {
                let new = match (number, anatomy.place(&name)) {
                    (Some(number), Some((before, _, rest))) => format!("{before}{number}.{rest}"),
                    _ => name,
                };
                all.insert(new, stored);
            }
        }
        Ok(all)
    }
}

/// By which axis a tensor of a layer is divided by units of heads, and how many elements of it are a unit's.
fn share(parts: &HeadParts, rest: &str) -> Option<(usize, usize)> {
    let (map, kind) = rest.rsplit_once('.')?;
    if let Some((_, size)) = parts.outputs.iter().find(|(name, _)| *name == map) {
        return Some((0, *size));
    }
    (parts.inputs.0 == map && kind == "weight").then_some((1, parts.inputs.1))
}

/// A tensor without the units `gone` of an axis, each of `size`; nothing where the axis is no whole units. Blocks stay what they are
/// where units are whole blocks, else what is left is f32.
fn without(stored: &Stored, axis: usize, size: usize, gone: &BTreeSet<usize>) -> Option<Stored> {
    let extent = *stored.shape.get(axis)?;
    let units = extent.checked_div(size).filter(|units| units * size == extent)?;
    let block = match stored.element {
        Element::Float(encoding) => encoding.block_elements(),
        Element::Other(_) => return None,
    };
    let last = axis + 1 == stored.shape.len();
    if last && !size.is_multiple_of(block) {
        let bytes: Vec<u8> = stored.to_f32()?.into_iter().flat_map(f32::to_le_bytes).collect();
        let element = Element::Float(Encoding::F32);
        return without(&Stored { element, shape: stored.shape.clone(), bytes: bytes.into() }, axis, size, gone);
    }
    let outer: usize = stored.shape.iter().take(axis).product();
    let unit = stored.bytes.len().checked_div(outer.checked_mul(units)?)?;
    let mut bytes = Vec::with_capacity(stored.bytes.len());
    for (n, part) in stored.bytes.chunks(unit.max(1)).enumerate() {
        if !gone.contains(&(n % units)) {
            bytes.extend_from_slice(part);
        }
    }
    let mut shape = stored.shape.clone();
    *shape.get_mut(axis)? = size * (units - gone.len());
    Some(Stored { element: stored.element, shape, bytes: bytes.into() })
}

impl Folder {
    /// The folder without some layers and heads, with a configuration that says so.
    ///
    /// # Errors
    /// They cannot be taken out, or a tensor is not made as the anatomy has it.
    pub fn cut(&self, anatomy: &Anatomy, cut: &Cut) -> Result<Folder, CheckpointError> {
        let (layers, units) = cut.left(anatomy)?;
        let mut folder = self.clone();
        folder.weights = Safetensors::from(cut.tensors(anatomy, &self.weights)?);
        let config = &mut folder.config;
        config[anatomy.count_key] = json!(layers);
        let stays = |n: usize| !cut.layers.contains(&n);
        if let Some(Value::Array(kinds)) = config.get_mut("layer_types") {
            let mut n = 0;
            kinds.retain(|_| {
                n += 1;
                stays(n - 1)
            });
        }
        if let Some(first) =
            config.get("max_window_layers").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
        {
            config["max_window_layers"] = json!(first - cut.layers.range(..first).count());
        }
        let Ok(parts) = &anatomy.heads else { return Ok(folder) };
        match parts.keys {
            Keys::Counts { .. } if cut.heads.is_empty() => {}
            Keys::Counts { key_size, .. } => {
                config["num_attention_heads"] = json!(units * parts.queries);
                config["num_key_value_heads"] = json!(units);
                config["head_dim"] = json!(key_size);
            }
            Keys::Pruned => {
                let mut all = serde_json::Map::new();
                for (n, left) in parts.units.iter().enumerate() {
                    let gone = cut.heads.get(&n);
                    let there: BTreeSet<usize> = left
                        .iter()
                        .enumerate()
                        .filter(|(at, _)| !gone.is_some_and(|gone| gone.contains(at)))
                        .map(|(_, unit)| *unit)
                        .collect();
                    // All heads that the layer was made with have a number below that.
                    let made = heads_made(config);
                    let pruned: Vec<usize> = (0..made).filter(|unit| !there.contains(unit)).collect();
                    if let (false, Some(number)) = (pruned.is_empty(), cut.renumbered(n)) {
                        all.insert(number.to_string(), json!(pruned));
                    }
                }
                if !all.is_empty() || config.get("pruned_heads").is_some() {
                    config["pruned_heads"] = Value::Object(all);
                }
            }
        }
        Ok(folder)
    }
}

/// Heads that a layer was made with, by a configuration that lists those taken out.
fn heads_made(config: &Value) -> usize {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    size("num_attention_heads").or_else(|| size("n_heads")).unwrap_or(0)
}

//! The weights of a language model, quantized.
//!
//! Invariant: what is evaluated is what is written: new weights are whole blocks of an encoding of GGUF, which GGUF files hold as
//! they are and safetensors in packed form with the same numbers and scales.

use super::onnx::{PruneReport, transposed};
use super::{Kept, LayerReport, Method, WeightOptions};
use crate::Error;
use kiln_frontend::checkpoint::{Element, Overlay, Stored, Weights};
use kiln_frontend::gguf::{BLOCK, Blocks, Encoding, join};
use kiln_passes::quantize::{self as passes, FloatFormat, Grid, Moments, Product, Pruned, Quantized};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A checkpoint's weights and those of its matrices that can be quantized.
#[derive(Clone)]
pub struct Checkpoint {
    /// The weights.
    pub weights: Arc<dyn Weights>,
    /// Products with them.
    pub products: Vec<Product>,
    /// Whether rows must be whole groups, as packed safetensors want them.
    pub whole_groups: bool,
}

/// New weights, with what became of each.
#[derive(Clone, Debug, Default)]
pub struct Quantization {
    /// Tensors that are stored otherwise.
    pub changed: BTreeMap<String, Stored>,
    /// What became of each matrix that was quantized.
    pub layers: Vec<LayerReport>,
    /// Those that were not, and why.
    pub kept: Vec<Kept>,
}

impl Checkpoint {
    /// The weights with those of a quantization.
    pub fn with(&self, made: &Quantization) -> Arc<dyn Weights> {
        Arc::new(Overlay::new(self.weights.clone(), made.changed.clone()))
    }

    fn matrix(&self, product: &Product) -> Result<Vec<f32>, Error> {
        let stored = self.weights.get(&product.name).and_then(|s| s.to_f32());
        let values = stored.ok_or_else(|| Error::Internal(format!("no weights {:?}", product.name)))?;
        finite(&product.name, &values)?;
        Ok(values)
    }
}

/// Refuses weights that no grid has numbers for.
pub(super) fn finite(name: &str, values: &[f32]) -> Result<(), Error> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(v) => Err(Error::data(format!("weights {name:?}"), format!("they hold {v}, which cannot be quantized"))),
    }
}

/// What blocks of a grid are stored as.
fn encoding(grid: Grid) -> Result<Encoding, Error> {
    match grid {
        Grid::Symmetric(5..=8) => Ok(Encoding::Q8_0),
        Grid::Symmetric(2..=4) => Ok(Encoding::Q4_0),
        Grid::Asymmetric(2..=4) => Ok(Encoding::Q4_1),
        Grid::Float(FloatFormat::F16) => Ok(Encoding::F16),
        Grid::Float(FloatFormat::Bf16) => Ok(Encoding::BF16),
        Grid::Symmetric(_) | Grid::Asymmetric(_) | Grid::NormalFloat4 | Grid::Float(_) => {
            Err(Error::Unsupported(format!(
                "neither GGUF nor packed safetensors hold {grid} weights; there are int8, int4, int3, f16, bf16 and, \
                 asymmetric, uint4 and uint3 (ONNX models and artifacts take all)"
            )))
        }
    }
}

/// Whether files of language models have a place for such numbers.
pub fn in_files(grid: Grid) -> bool {
    encoding(grid).is_ok()
}

/// Quantizes the matrices for which `wanted` gives options.
///
/// # Errors
/// [`Error::Usage`] where a method needs statistics that are not there, [`Error::Unsupported`] where the files have no place for the
/// numbers, [`Error::Data`] for weights or statistics that are not finite.
pub fn quantize(
    checkpoint: &Checkpoint,
    wanted: &dyn Fn(&str) -> Option<WeightOptions>,
    moments: &BTreeMap<String, Arc<Moments>>,
    progress: &mut dyn FnMut(),
) -> Result<Quantization, Error> {
    let mut made = Quantization::default();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for product in &checkpoint.products {
        let Some(options) = wanted(&product.name) else {
            made.kept
                .push(Kept { name: product.name.clone(), reason: "its precision is that of the checkpoint".into() });
            progress();
            continue;
        };
        encoding(options.grid)?;
        if let Some(reason) = refused(checkpoint, product, options) {
            made.kept.push(Kept { name: product.name.clone(), reason });
            progress();
            continue;
        }
        if done.contains(product.name.as_str()) {
            continue;
        }
        if options.method == Method::Awq {
            let members = siblings(checkpoint, product);
            let members: Vec<&Product> = members
                .into_iter()
                .filter(|p| wanted(&p.name) == Some(options) && refused(checkpoint, p, options).is_none())
                .collect();
            done.extend(members.iter().map(|p| p.name.as_str()));
            together(checkpoint, &members, options, moments, &mut made)?;
            members.iter().for_each(|_| progress());
            continue;
        }
        let values = scaled(&made, checkpoint, product)?;
        let weights = passes::Weights { values: &values, rows: product.rows, columns: product.columns };
        let seen = moments.get(&product.name).map(|m| &**m);
        let quantized = match options.method {
            Method::Nearest => passes::round_to_nearest(weights, options.grid, options.group, options.threads),
            Method::Hqq => passes::hqq(weights, options.grid, options.group, options.threads),
            Method::Gptq | Method::Awq => {
                let seen = seen.ok_or_else(|| no_data(options.method))?;
                let by = passes::gptq(weights, options.grid, options.group, seen, options.threads);
                by.map_err(|e| Error::data(format!("what {:?} reads", product.name), e))?
            }
        };
        let error = passes::relative_error(weights, &quantized, seen);
        store(product, &quantized, error, &mut made)?;
        progress();
    }
    Ok(made)
}

fn no_data(method: Method) -> Error {
    Error::Usage(format!("{} needs calibration data: give it with --text or --data", method.name()))
}

/// Why a matrix cannot be stored in blocks.
fn refused(
    checkpoint: &Checkpoint,
    product: &Product,
    WeightOptions { grid, group, .. }: WeightOptions,
) -> Option<String> {
    let columns = product.columns;
    if product.transposed {
        return Some("it is stored by inputs, and blocks run along the inputs of an output".into());
    }
    if let Grid::Float(_) = grid {
        return None;
    }
    if !group.is_multiple_of(BLOCK) || group == 0 || !columns.is_multiple_of(BLOCK) {
        return Some(format!(
            "of its {columns} inputs and groups of {group} one is no multiple of {BLOCK}, a block of the file"
        ));
    }
    let ragged = checkpoint.whole_groups && !columns.is_multiple_of(group);
    ragged.then(|| format!("its {columns} inputs are no whole groups of {group}"))
}

/// The weights of a product, as AWQ may have scaled its rows by now.
fn scaled(made: &Quantization, checkpoint: &Checkpoint, product: &Product) -> Result<Vec<f32>, Error> {
    match made.changed.get(&product.name).and_then(Stored::to_f32) {
        Some(values) => Ok(values),
        None => checkpoint.matrix(product),
    }
}

/// The products that read what this one reads.
fn siblings<'a>(checkpoint: &'a Checkpoint, product: &Product) -> Vec<&'a Product> {
    checkpoint.products.iter().filter(|p| p.input == product.input).collect()
}

/// AWQ for matrices that read the same values: the scales go into what makes these, where that is a norm's weights or the rows of a
/// matrix that is not quantized yet; else only the ranges of groups are searched.
fn together(
    checkpoint: &Checkpoint,
    members: &[&Product],
    options: WeightOptions,
    moments: &BTreeMap<String, Arc<Moments>>,
    made: &mut Quantization,
) -> Result<(), Error> {
    let Some(first) = members.first() else { return Ok(()) };
    let seen = moments.get(&first.name).ok_or_else(|| no_data(Method::Awq))?;
    let values = members.iter().map(|p| scaled(made, checkpoint, p)).collect::<Result<Vec<_>, _>>()?;
    let weights: Vec<passes::Weights<'_>> = members
        .iter()
        .zip(&values)
        .map(|(p, values)| passes::Weights { values, rows: p.rows, columns: p.columns })
        .collect();
    let before = maker(checkpoint, &first.name, first.columns, made);
    let found = match &before {
        Some(_) => passes::awq(&weights, options.grid, options.group, seen, options.threads),
        None => passes::clipped(&weights, options.grid, options.group, seen, options.threads),
    };
    for ((product, weights), quantized) in members.iter().zip(&weights).zip(&found.matrices) {
        let error = passes::scaled_error(*weights, quantized, &found.scales, seen);
        store(product, quantized, error, made)?;
    }
    if let Some(name) = before {
        let stored = made.changed.get(&name).cloned().or_else(|| checkpoint.weights.get(&name));
        let missing = || Error::Internal(format!("no weights {name:?}"));
        let stored = stored.ok_or_else(missing)?;
        let mut values = stored.to_f32().ok_or_else(missing)?;
        let row = values.len() / found.scales.len().max(1);
        for (part, scale) in values.chunks_mut(row.max(1)).zip(&found.scales) {
            part.iter_mut().for_each(|v| *v /= scale);
        }
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let element = Element::Float(Encoding::F32);
        made.changed.insert(name, Stored { element, shape: stored.shape, bytes: bytes.into() });
    }
    Ok(())
}

/// What makes the inputs of a matrix of a Llama-like layer and can be divided instead of them.
fn maker(checkpoint: &Checkpoint, name: &str, columns: usize, made: &Quantization) -> Option<String> {
    let (layer, part) = name.split_once(".self_attn.").or_else(|| name.split_once(".mlp."))?;
    let maker = match part {
        "q_proj.weight" | "k_proj.weight" | "v_proj.weight" => format!("{layer}.input_layernorm.weight"),
        "gate_proj.weight" | "up_proj.weight" => format!("{layer}.post_attention_layernorm.weight"),
        "down_proj.weight" => format!("{layer}.mlp.up_proj.weight"),
        _ => return None,
    };
    let stored = checkpoint.weights.get(&maker)?;
    let quantized = made.layers.iter().any(|l| l.name == maker);
    (stored.shape.first() == Some(&columns) && !quantized).then_some(maker)
}

/// Puts a quantized matrix among the changed ones.
fn store(product: &Product, quantized: &Quantized, error: f64, made: &mut Quantization) -> Result<(), Error> {
    let encoding = encoding(quantized.grid)?;
    if let Grid::Float(_) = quantized.grid {
        let bytes: Vec<u8> = quantized.numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        record(product, quantized, error, (encoding, bytes), made);
        return Ok(());
    }
    let per_row = quantized.groups_of_row().max(1);
    let spread = |f: &dyn Fn(&passes::Group) -> f32| -> Vec<f32> {
        let each = quantized.groups.iter().enumerate().flat_map(|(n, g)| {
            // The last group of a row may be shorter.
            let columns = quantized.group.min(product.columns - n % per_row * quantized.group);
            std::iter::repeat_n(f(g), columns / BLOCK)
        });
        each.collect()
    };
    let parts = Blocks {
        numbers: quantized.numbers.iter().map(|&n| (n & 0xff) as u8).collect(),
        scales: spread(&|g| g.scale),
        least: (encoding == Encoding::Q4_1).then(|| spread(&|g| -f32::from(g.zero) * g.scale)),
    };
    let bytes = join(encoding, &parts);
    let bytes = bytes.ok_or_else(|| Error::Internal(format!("{:?} does not fit {encoding}", product.name)))?;
    record(product, quantized, error, (encoding, bytes), made);
    Ok(())
}

fn record(
    product: &Product,
    quantized: &Quantized,
    error: f64,
    (encoding, bytes): (Encoding, Vec<u8>),
    made: &mut Quantization,
) {
    made.layers.push(LayerReport {
        name: product.name.clone(),
        rows: product.rows,
        columns: product.columns,
        precision: quantized.grid.to_string(),
        group: quantized.group,
        bytes: bytes.len(),
        bytes_f32: 4 * product.rows * product.columns,
        relative_error: error,
    });
    let shape = vec![product.rows, product.columns];
    let stored = Stored { element: Element::Float(encoding), shape, bytes: bytes.into() };
    made.changed.insert(product.name.clone(), stored);
}

/// Matrices that were pruned, as f32.
#[derive(Clone, Debug, Default)]
pub struct PrunedMatrices {
    /// By their names.
    pub changed: BTreeMap<String, Stored>,
    /// What became of each.
    pub reports: Vec<PruneReport>,
}

/// The checkpoint with its matrices pruned by `how`, to be quantized or stored after.
///
/// # Errors
/// [`Error::Data`] for weights that are not finite.
pub fn pruned(
    checkpoint: &Checkpoint,
    how: &dyn Fn(&[f32], usize) -> Pruned,
) -> Result<(Checkpoint, PrunedMatrices), Error> {
    let mut pruned = PrunedMatrices::default();
    for product in &checkpoint.products {
        let (rows, columns) = (product.rows, product.columns);
        let stored = checkpoint.matrix(product)?;
        // By the inputs of an output, however they lie.
        let made = match product.transposed {
            true => how(&transposed(&stored, columns, rows), columns),
            false => how(&stored, columns),
        };
        let (shape, values) = match product.transposed {
            true => ([columns, rows], transposed(&made.values, rows, columns)),
            false => ([rows, columns], made.values.clone()),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let element = Element::Float(Encoding::F32);
        let stored = Stored { element, shape: shape.to_vec(), bytes: bytes.into() };
        pruned.changed.insert(product.name.clone(), stored);
        pruned.reports.push(PruneReport::of(&product.name, &made, columns));
    }
    let weights = Arc::new(Overlay::new(checkpoint.weights.clone(), pruned.changed.clone()));
    let products = checkpoint.products.clone();
    Ok((Checkpoint { weights, products, whole_groups: checkpoint.whole_groups }, pruned))
}

//! From settings and samples to quantized models, for any mix of precisions.
//!
//! Invariant: what depends on the data is found once; [`Prepared::quantized`] then makes the model of a mix without running anything.

use super::constants::constants_to_initializers;
use super::equalise::scaled;
use super::{Activations, Calibration, Kind, Layer, Recipe, Runs, Sample, Seen, equalise, layers, rewrite, smooth};
use super::{initializer, set_initializer};
use crate::quantize::{Kept, LayerReport, Method, WeightOptions};
use crate::{Error, Observer};
use kiln_frontend::onnx::model::Model;
use kiln_ir::DType;
use kiln_passes::quantize::{self as passes, Grid, Moments, Pruned, Quantized, RangeMethod};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be pruned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prune {
    /// This share of each layer's weights.
    Share(f64),
    /// All but `n` of each `m` inputs.
    Pattern(usize, usize),
}

impl Prune {
    /// Prunes a matrix `[.., columns]`.
    pub fn of(self, values: &[f32], columns: usize) -> Pruned {
        match self {
            Prune::Share(share) => passes::magnitude(values, share),
            Prune::Pattern(n, m) => passes::n_of_m(values, columns, n, m),
        }
    }
}

/// How an ONNX model is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Weights; a group of 0 is one scale for each output.
    pub weights: WeightOptions,
    /// Activations.
    pub activations: Activations,
    /// How ranges of activations are chosen.
    pub ranges: RangeMethod,
    /// One scale for all weights of a layer.
    pub per_tensor: bool,
    /// Whether biases make good what weights lose on average (Nagel et al. 2019).
    pub bias_correction: bool,
    /// Whether ranges of neighbouring layers are made equal.
    pub equalise: bool,
    /// SmoothQuant's strength.
    pub smooth: Option<f32>,
    /// Pruning.
    pub prune: Option<Prune>,
    /// Leave layers alone whose node or weights hold one of these.
    pub skip: Vec<String>,
}

/// What pruning a layer did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PruneReport {
    /// The name of the weights.
    pub name: String,
    /// Elements.
    pub elements: usize,
    /// Zeros among them.
    pub zeros: usize,
    /// Bytes of 8-bit elements that stay with a map of one bit for each: what a packed form would take.
    pub packed_bytes_int8: usize,
    /// Bytes that an artifact has of them where they stay f32 and one row is multiplied by many of them; nothing where more than two of some
    /// four inputs are left, which is not stored packed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed_bytes_f32: Option<usize>,
}

impl PruneReport {
    /// Of a matrix with rows of `columns`.
    pub fn of(name: &str, made: &Pruned, columns: usize) -> PruneReport {
        let (elements, zeros, packed_bytes_int8) = (made.values.len(), made.zeros, made.packed_bytes(8));
        let packed_bytes_f32 = made.two_of_four_bytes(columns);
        PruneReport { name: name.into(), elements, zeros, packed_bytes_int8, packed_bytes_f32 }
    }
}

/// A model and what its layers see.
pub struct Prepared {
    model: Model,
    settings: Settings,
    layers: Vec<Layer>,
    kept: Vec<Kept>,
    seen: BTreeMap<String, Seen>,
    moments: Calibration,
    /// Nodes without weights that take numbers.
    others: BTreeSet<String>,
    /// What pruning did.
    pub pruned: Vec<PruneReport>,
    /// Pairs of layers that were equalised, and inputs that are divided.
    pub equalised: (usize, usize),
}

impl Prepared {
    /// Changes weights as the settings ask, and runs the model on the samples.
    ///
    /// # Errors
    /// [`Error::Usage`] where data is missing, [`Error::Data`] for weights or values that are not finite, and what compiling and
    /// running say.
    pub fn new(
        model: &Model,
        settings: &Settings,
        samples: &[Sample],
        runs: &Runs,
        observer: &mut dyn Observer,
    ) -> Result<Prepared, Error> {
        let mut model = model.clone();
        constants_to_initializers(&mut model);
        let static_ranges = matches!(settings.activations, Activations::Unsigned | Activations::Signed);
        let method = settings.weights.method;
        let wants = static_ranges || method.needs_data() || settings.smooth.is_some() || settings.bias_correction;
        if wants && samples.is_empty() {
            return Err(Error::Usage("this needs calibration data: give .npz files of inputs with --data".into()));
        }
        let mut pruned = Vec::new();
        if let Some(prune) = settings.prune {
            pruned = pruning(&mut model, prune)?;
        }
        let mut equalised = (0, 0);
        if settings.equalise {
            equalised.0 = equalise(&mut model)?;
        }
        let chosen = |model: &Model| choice(model, settings);
        if let Some(strength) = settings.smooth {
            let names = inputs_of(&chosen(&model).0, |l| l.kind != Kind::Conv);
            let seen = runs.seen(&model, &names, samples, false, observer)?;
            let peaks = seen.into_iter().map(|(name, seen)| (name, seen.peaks)).collect();
            equalised.1 = smooth(&mut model, &peaks, strength)?;
        }
        if method == Method::Awq {
            let (layers, _) = chosen(&model);
            let names = inputs_of(&layers, |l| l.kind != Kind::Conv);
            let moments = runs.moments(&model, &names, samples, observer)?;
            for (input, moments) in &moments {
                equalised.1 += usize::from(aware(&mut model, settings, input, moments)?);
            }
        }
        let (layers, kept) = chosen(&model);
        if layers.is_empty() {
            let reasons: Vec<String> = kept.iter().take(5).map(|k| format!("{}: {}", k.name, k.reason)).collect();
            let reasons = if reasons.is_empty() {
                "its main graph has no MatMul, Gemm or Conv".into()
            } else {
                reasons.join("; ")
            };
            return Err(Error::Usage(format!("nothing of the model can be quantized so: {reasons}")));
        }
        let mut moments = Calibration::new();
        if method.needs_data() {
            let names = inputs_of(&layers, |l| l.kind != Kind::Conv);
            moments = runs.moments(&model, &names, samples, observer)?;
        }
        let others = if static_ranges { others(&model, &layers) } else { BTreeSet::new() };
        let mut seen = BTreeMap::new();
        if static_ranges || settings.bias_correction {
            let mut names = inputs_of(&layers, |_| true);
            if static_ranges {
                let read =
                    |n: &kiln_frontend::onnx::model::Node| n.inputs.iter().flatten().cloned().collect::<Vec<_>>();
                let nodes = model.graph.nodes.iter().filter(|n| others.contains(&n.name));
                names.extend(nodes.flat_map(read).filter(|name| initializer(&model, name).is_none()));
                names.sort();
                names.dedup();
            }
            let histograms = static_ranges && settings.ranges != RangeMethod::MinMax;
            seen = runs.seen(&model, &names, samples, histograms, observer)?;
        }
        let settings = settings.clone();
        Ok(Prepared { model, settings, layers, kept, seen, moments, others, pruned, equalised })
    }

    /// The layers that can be quantized.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Those that cannot.
    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// The numbers of a layer's weights on a grid.
    fn numbers(&self, layer: &Layer, grid: Grid) -> Result<(Quantized, f64), Error> {
        let values = layer.values(&self.model)?;
        let weights = passes::Weights { values: &values, rows: layer.rows, columns: layer.columns };
        let WeightOptions { group, method, threads, .. } = self.settings.weights;
        let integer = self.settings.activations != Activations::Float;
        // Convolutions, integer products and floats have one scale for each output.
        let whole = integer || layer.kind == Kind::Conv || matches!(grid, Grid::Float(_));
        let group = if group == 0 || whole { layer.columns } else { group.min(layer.columns) };
        let moments = self.moments.get(&layer.input).map(|m| &**m).filter(|_| layer.kind != Kind::Conv);
        if let Grid::Float(_) = grid {
            // The nearest float is the best where each has a point of its own.
            let made = passes::round_to_nearest(weights, grid, group, threads);
            let error = passes::relative_error(weights, &made, moments);
            return Ok((made, error));
        }
        if self.settings.per_tensor {
            let whole = grid.whole(&values);
            let numbers = values.iter().map(|&v| grid.number(whole, v)).collect();
            let groups = vec![whole; layer.rows];
            let made =
                Quantized { grid, rows: layer.rows, columns: layer.columns, group: layer.columns, numbers, groups };
            let error = passes::relative_error(weights, &made, moments);
            return Ok((made, error));
        }
        let made = match (method, moments) {
            (Method::Hqq, _) => passes::hqq(weights, grid, group, threads),
            (Method::Gptq, Some(moments)) => passes::gptq(weights, grid, group, moments, threads)
                .map_err(|e| Error::data(format!("what {:?} reads", layer.node), e))?,
            (Method::Awq, Some(moments)) => {
                let mut made = passes::clipped(&[weights], grid, group, moments, threads);
                made.matrices.pop().ok_or_else(|| Error::Internal("no matrix".into()))?
            }
            (Method::Nearest | Method::Gptq | Method::Awq, _) => {
                passes::round_to_nearest(weights, grid, group, threads)
            }
        };
        let error = passes::relative_error(weights, &made, moments);
        Ok((made, error))
    }

    /// The model with each layer on the grid that `grid` gives for it (nothing leaves it alone), and what became of them.
    ///
    /// # Errors
    /// [`Error::Data`] for weights that are not finite.
    pub fn quantized(&self, grid: &dyn Fn(&Layer) -> Option<Grid>) -> Result<(Model, Vec<LayerReport>), Error> {
        let mut recipe = Recipe {
            per_tensor: self.settings.per_tensor,
            dynamic: self.settings.activations == Activations::Dynamic,
            ..Recipe::default()
        };
        let mut reports = Vec::new();
        let mut chosen: Vec<Layer> = Vec::new();
        for layer in &self.layers {
            let Some(grid) = grid(layer) else { continue };
            chosen.push(layer.clone());
            let known = recipe.weights.contains_key(&layer.weights);
            if !known {
                let (made, error) = self.numbers(layer, grid)?;
                reports.push(LayerReport {
                    name: layer.weights.clone(),
                    rows: layer.rows,
                    columns: layer.columns,
                    precision: grid.to_string(),
                    group: made.group,
                    bytes: made.bytes(),
                    bytes_f32: 4 * layer.rows * layer.columns,
                    relative_error: error,
                });
                recipe.weights.insert(layer.weights.clone(), made);
            }
            if let (true, Some(made)) = (self.settings.bias_correction, recipe.weights.get(&layer.weights))
                && let Some(bias) = self.corrected(layer, made)?
            {
                recipe.biases.insert(layer.node.clone(), bias);
            }
        }
        let activation = match self.settings.activations {
            Activations::Unsigned => Some(Grid::Asymmetric(8)),
            Activations::Signed => Some(Grid::Symmetric(8)),
            Activations::Float | Activations::Dynamic => None,
        };
        if let Some(grid) = activation {
            let each = self.seen.iter();
            let method = self.settings.ranges;
            recipe.values = each.map(|(name, seen)| (name.clone(), seen.histogram.activation(method, grid))).collect();
            if !chosen.is_empty() {
                recipe.others = self.others.clone();
            }
        }
        Ok((rewrite(&self.model, &chosen, &recipe)?, reports))
    }

    /// A layer's bias less what the error of its weights adds to its outputs on average.
    fn corrected(&self, layer: &Layer, made: &Quantized) -> Result<Option<Vec<f32>>, Error> {
        let convolution = layer.kind == Kind::Conv;
        let means = self.seen.get(&layer.input).map(|s| s.means(convolution)).unwrap_or_default();
        let kernel: usize = if convolution { layer.shape.iter().skip(2).product() } else { 1 };
        let channels = layer.columns / kernel.max(1);
        let groups = means.len() / channels.max(1);
        let has_bias = self.model.graph.nodes.get(layer.at).is_some_and(|n| n.input(2).is_some());
        let product = layer.kind == Kind::Product;
        if means.is_empty() || groups == 0 || product || has_bias && layer.bias.is_none() {
            // A product has no place for a bias.
            return Ok(None);
        }
        let bias = layer.bias.as_ref().and_then(|b| initializer(&self.model, b)).and_then(|t| t.to_f32());
        let mut bias = bias.unwrap_or_else(|| vec![0.0; layer.rows]);
        let values = layer.values(&self.model)?;
        for (n, (row, bias)) in values.chunks(layer.columns).zip(&mut bias).enumerate() {
            let first = n * groups / layer.rows.max(1) * channels;
            let mut shift = 0f64;
            for (column, (w, q)) in row.iter().zip(made.row(n)).enumerate() {
                let mean = means.get(first + column / kernel.max(1)).copied().unwrap_or(0.0);
                shift += f64::from(q - w) * f64::from(mean);
            }
            *bias -= shift as f32;
        }
        Ok(Some(bias))
    }

    /// Bytes of a layer's weights on each of the grids, then as they are.
    ///
    /// # Errors
    /// [`Error::Data`] for weights that are not finite.
    pub fn costs(&self, layer: &Layer, grids: &[Grid]) -> Result<(Vec<usize>, f64), Error> {
        let mut bytes = Vec::with_capacity(grids.len() + 1);
        let mut first = 0.0;
        for (n, &grid) in grids.iter().enumerate() {
            let (made, error) = self.numbers(layer, grid)?;
            bytes.push(made.bytes());
            first = if n == 0 { error } else { first };
        }
        bytes.push(4 * layer.rows * layer.columns);
        Ok((bytes, first))
    }
}

/// The layers that settings are for, and those that are left alone.
fn choice(model: &Model, settings: &Settings) -> (Vec<Layer>, Vec<Kept>) {
    let (all, mut kept) = layers(model);
    let mut chosen = Vec::new();
    let dynamic = settings.activations == Activations::Dynamic;
    let table = settings.weights.grid.table().is_some();
    for layer in all {
        let group = if settings.weights.group == 0 { layer.columns } else { settings.weights.group.min(layer.columns) };
        let node = model.graph.nodes.get(layer.at);
        let plain = |n: &kiln_frontend::onnx::model::Node| {
            super::layers::float(n, "alpha", 1.0) == 1.0 && super::layers::float(n, "beta", 1.0) == 1.0
        };
        let reason =
            if settings.skip.iter().any(|s| layer.node.contains(s.as_str()) || layer.weights.contains(s.as_str())) {
                Some("it is to be skipped".to_string())
            } else if dynamic && layer.kind == Kind::Conv {
                Some("convolutions are not quantized dynamically".to_string())
            } else if dynamic && !node.is_some_and(plain) {
                Some("it scales its product".to_string())
            } else if table && (layer.kind == Kind::Conv || !layer.columns.is_multiple_of(group)) {
                Some(format!("its {} inputs are no whole groups of a matrix", layer.columns))
            } else {
                None
            };
        match reason {
            Some(reason) => kept.push(Kept { name: layer.node, reason }),
            None => chosen.push(layer),
        }
    }
    (chosen, kept)
}

fn inputs_of(layers: &[Layer], of: impl Fn(&Layer) -> bool) -> Vec<String> {
    let names: BTreeSet<&String> = layers.iter().filter(|l| of(l)).map(|l| &l.input).collect();
    names.into_iter().cloned().collect()
}

/// Nodes whose inputs and outputs may be numbers as well, so that regions stay integer: sums and pools next to layers.
fn others(model: &Model, layers: &[Layer]) -> BTreeSet<String> {
    const OPS: [&str; 4] = ["Add", "MaxPool", "AveragePool", "GlobalAveragePool"];
    let nodes = &model.graph.nodes;
    let mut near: BTreeSet<&str> = layers.iter().filter_map(|l| nodes.get(l.at)?.output(0)).collect();
    let mut found = BTreeSet::new();
    for node in nodes {
        let from_numbers = node.inputs.iter().flatten().any(|i| near.contains(i.as_str()));
        if !from_numbers || !node.domain.is_empty() {
            continue;
        }
        let float = |name: &String| initializer(model, name).is_none_or(|t| t.dtype() == DType::F32);
        if OPS.contains(&node.op_type.as_str()) && node.inputs.iter().flatten().all(float) {
            let activations = node.inputs.iter().flatten().filter(|i| initializer(model, i).is_none()).count();
            // A sum with a constant is a bias.
            if activations == node.inputs.len() && node.outputs.len() == 1 {
                found.insert(node.name.clone());
                near.extend(node.output(0));
            }
        } else if matches!(node.op_type.as_str(), "Relu" | "Clip") {
            near.extend(node.output(0));
        }
    }
    found
}

/// AWQ for all layers that read a value.
fn aware(model: &mut Model, settings: &Settings, input: &str, moments: &Moments) -> Result<bool, Error> {
    let (layers, _) = choice(model, settings);
    let (every, _) = super::layers(model);
    let readers: Vec<&Layer> = layers.iter().filter(|l| l.input == input && l.kind != Kind::Conv).collect();
    let shared = |l: &&Layer| every.iter().filter(|other| other.weights == l.weights).count() > 1;
    if readers.is_empty() || readers.iter().any(shared) {
        return Ok(false);
    }
    let values = readers.iter().map(|l| l.values(model)).collect::<Result<Vec<_>, _>>()?;
    let weights: Vec<passes::Weights<'_>> = readers
        .iter()
        .zip(&values)
        .map(|(l, values)| passes::Weights { values, rows: l.rows, columns: l.columns })
        .collect();
    let WeightOptions { grid, group, threads, .. } = settings.weights;
    let columns = moments.sums.len();
    let group = if group == 0 { columns } else { group.min(columns) };
    let found = passes::awq(&weights, grid, group, moments, threads);
    if found.scales.iter().all(|s| (s - 1.0).abs() < 1e-6) {
        return Ok(false);
    }
    scaled(model, input, &readers, &found.scales)?;
    Ok(true)
}

fn pruning(model: &mut Model, prune: Prune) -> Result<Vec<PruneReport>, Error> {
    let (all, _) = layers(model);
    let mut reports: Vec<PruneReport> = Vec::new();
    for layer in all {
        if reports.iter().any(|r| r.name == layer.weights) {
            continue;
        }
        let values = layer.values(model)?;
        let made = prune.of(&values, layer.columns);
        set_initializer(model, &layer.weights, &layer.shape, &layer.stored(&made.values));
        reports.push(PruneReport::of(&layer.weights, &made, layer.columns));
    }
    Ok(reports)
}

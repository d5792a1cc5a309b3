//! Changes of weights that leave what a model computes as it is, and make it easier to quantize.
//!
//! Invariant: in exact arithmetic the outputs are the same.

use super::layers::{Kind, Layer, layers};
use super::rewrite::divide;
use super::{initializer, set_initializer};
use crate::Error;
use kiln_frontend::onnx::model::Model;
use std::collections::BTreeMap;

/// Cross-layer equalisation (Nagel et al. 2019): where a layer's outputs go through nothing but `Relu` to one other layer, its
/// outputs and the other's inputs are scaled so that both weights have equal ranges channel by channel. The number of pairs.
///
/// # Errors
/// [`Error::Data`] for weights that are not finite.
pub fn equalise(model: &mut Model) -> Result<usize, Error> {
    let (all, _) = layers(model);
    let mut pairs = 0;
    // Two rounds: a layer in the middle of a chain belongs to two pairs.
    for round in 0..2 {
        for first in &all {
            let Some(second) = follower(model, first, &all) else { continue };
            if shared(&all, first) || shared(&all, second) {
                continue;
            }
            pairs += usize::from(pair(model, first, second)? && round == 0);
        }
    }
    Ok(pairs)
}

/// Whether others have a layer's weights or bias too.
fn shared(all: &[Layer], layer: &Layer) -> bool {
    let same = |l: &&Layer| l.weights == layer.weights || l.bias.is_some() && l.bias == layer.bias;
    all.iter().filter(same).count() > 1
}

/// The layer that alone reads what another gives, through `Relu` at most.
fn follower<'l>(model: &Model, first: &Layer, all: &'l [Layer]) -> Option<&'l Layer> {
    let nodes = &model.graph.nodes;
    let mut name = nodes.get(first.at)?.output(0)?.to_string();
    for _ in 0..2 {
        if model.graph.outputs.iter().any(|o| o.name == name) {
            return None;
        }
        let reads = |node: &&kiln_frontend::onnx::model::Node| {
            node.inputs.iter().flatten().any(|i| *i == name) || node.subgraphs().any(|g| g.captures.contains(&name))
        };
        let mut readers = nodes.iter().filter(reads);
        let (reader, None) = (readers.next()?, readers.next()) else { return None };
        if reader.op_type == "Relu" && reader.domain.is_empty() {
            name = reader.output(0)?.to_string();
            continue;
        }
        return all.iter().find(|l| l.node == reader.name && l.input == name);
    }
    None
}

/// Scales the channels between two layers.
fn pair(model: &mut Model, first: &Layer, second: &Layer) -> Result<bool, Error> {
    let (mut before, mut after) = (first.values(model)?, second.values(model)?);
    // The kernels of a channel are neighbours in a row; a depthwise layer has one channel for each of its outputs.
    let kernel = match second.kind {
        Kind::Conv => second.shape.iter().skip(2).product::<usize>(),
        Kind::Product | Kind::Gemm { .. } => 1,
    };
    let channels = second.columns / kernel.max(1);
    let depthwise = channels == 1 && second.rows == first.rows && second.kind == Kind::Conv;
    if !depthwise && channels != first.rows {
        return Ok(false);
    }
    let bias = first.bias.clone();
    if model.graph.nodes.get(first.at).is_some_and(|n| n.input(2).is_some()) && bias.is_none() {
        return Ok(false);
    }
    let mut biases = bias.as_ref().and_then(|b| initializer(model, b)).and_then(|t| t.to_f32());
    for channel in 0..first.rows {
        let row = channel * first.columns..(channel + 1) * first.columns;
        let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |m, v| m.max(v.abs()));
        let theirs: Vec<usize> = if depthwise {
            (channel * second.columns..(channel + 1) * second.columns).collect()
        } else {
            let place = |r: usize| r * second.columns + channel * kernel;
            (0..second.rows).flat_map(|r| place(r)..place(r) + kernel).collect()
        };
        let (one, two) =
            (most(&mut before[row.clone()].iter().copied()), most(&mut theirs.iter().map(|&at| after[at])));
        let scale = (one / two).sqrt();
        if !(scale.is_normal() && (1e-4..1e4).contains(&scale)) {
            continue;
        }
        before[row].iter_mut().for_each(|v| *v /= scale);
        theirs.iter().for_each(|&at| after[at] *= scale);
        if let Some(bias) = biases.as_mut().and_then(|b| b.get_mut(channel)) {
            *bias /= scale;
        }
    }
    set_initializer(model, &first.weights, &first.shape, &first.stored(&before));
    set_initializer(model, &second.weights, &second.shape, &second.stored(&after));
    if let Some((name, values)) = bias.zip(biases) {
        set_initializer(model, &name, &[first.rows], &values);
    }
    Ok(true)
}

/// SmoothQuant (Xiao et al. 2022): products divide what they read, so that a part of its range moves into the weights, which are
/// multiplied by the same. `peaks` are the greatest magnitudes of each column of each input, by name. The number of inputs that are
/// divided now; layers are others afterwards.
///
/// # Errors
/// [`Error::Data`] for weights that are not finite.
pub fn smooth(model: &mut Model, peaks: &BTreeMap<String, Vec<f32>>, strength: f32) -> Result<usize, Error> {
    let mut count = 0;
    for (input, peaks) in peaks {
        let (all, _) = layers(model);
        let readers: Vec<&Layer> =
            all.iter().filter(|l| l.input == *input && l.kind != Kind::Conv && l.columns == peaks.len()).collect();
        if readers.is_empty() || readers.iter().any(|l| shared(&all, l)) {
            continue;
        }
        let mut most = vec![0f32; peaks.len()];
        for layer in &readers {
            let values = layer.values(model)?;
            for row in values.chunks(layer.columns) {
                most.iter_mut().zip(row).for_each(|(m, w)| *m = m.max(w.abs()));
            }
        }
        let scale = |(x, w): (&f32, &f32)| {
            let scale = x.max(1e-5).powf(strength) / w.max(1e-5).powf(1.0 - strength);
            if scale.is_normal() { scale.clamp(1e-4, 1e4) } else { 1.0 }
        };
        let scales: Vec<f32> = peaks.iter().zip(&most).map(scale).collect();
        scaled(model, input, &readers, &scales)?;
        count += 1;
    }
    Ok(count)
}

/// Multiplies the columns of layers' weights, and makes the layers divide what they read.
pub(super) fn scaled(model: &mut Model, input: &str, readers: &[&Layer], scales: &[f32]) -> Result<(), Error> {
    for layer in readers {
        let mut values = layer.values(model)?;
        for row in values.chunks_mut(layer.columns) {
            row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
        }
        set_initializer(model, &layer.weights, &layer.shape, &layer.stored(&values));
    }
    divide(model, input, readers, scales).ok_or_else(|| Error::Internal(format!("{input:?} cannot be divided")))
}

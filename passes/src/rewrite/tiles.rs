//! Convolutions of 3×3 windows as products of tiles, where that pays.
//!
//! Invariant: only convolutions of f32 with constant weights whose picture and result are channels-last are taken; the direct weights go
//! unless something else reads them. Results differ by rounding, and where numbers are not finite or close to the largest ones.

use crate::kernel::may_make_tiles;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::ops::tiles::weights_of_products;
use kiln_ir::ops::{Conv, Elements, Op, Pad, TileProduct, WindowTiles};
use kiln_ir::scalar::Constant;
use kiln_ir::tensor::Tensor;
use std::collections::HashMap;

/// With fewer channels or fewer results of a pixel, transforming tiles takes what the fewer products save: 16 of both still gain a fifth.
const LEAST_CHANNELS: i64 = 16;

/// With fewer tiles it is the weights that take the time, and there are 16 of them for 9.
const LEAST_TILES: i64 = 12;

/// Numbers of tiles, 16 for each channel of a tile, that caches hold until their products read them; more would come from memory.
const MOST_NUMBERS: i64 = 2 << 20;

/// Replaces such convolutions.
///
/// # Errors
/// The graph has a cycle, or a bug of ours made what does not type-check.
pub fn convolutions_by_tiles(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    let mut made = HashMap::new();
    for id in graph.live_order()? {
        if let Some(tiled) = Tiled::of(&mut graph, id, &mut made) {
            tiled.replace(&mut graph, id)?;
        }
    }
    graph.compact()
}

/// A convolution that tiles pay for.
struct Tiled {
    /// What the convolution reads, or what its border is put around.
    x: ValueId,
    /// The border, the one that makes the height and the width even with it.
    pad: Option<Pad>,
    /// Those of the products.
    weights: ValueId,
    extents: Vec<usize>,
}

impl Tiled {
    /// `made` are the products' weights of direct ones, which several convolutions may have; nothing for those that have none.
    fn of(graph: &mut Graph, id: NodeId, made: &mut HashMap<ValueId, Option<ValueId>>) -> Option<Tiled> {
        let node = graph.node(id);
        let Op::Conv(Conv { strides, dilations, groups: 1, elements: Elements::Numbers }) = &node.op else {
            return None;
        };
        let (&[x, w], &[out]) = (node.inputs.as_slice(), node.outputs.as_slice()) else { return None };
        let (from, to) = (graph.ty(x), graph.ty(out));
        let weights = graph.constant(w)?;
        let &[outputs, channels, 3, 3] = weights.shape() else { return None };
        let last = Layout::channels_last(4);
        let plain = strides == &[1, 1] && dilations == &[1, 1] && from.dtype == DType::F32;
        if !plain || from.layout != last || to.layout != last || graph.is_output(out) {
            return None;
        }
        let [n, _, height, width] = to.shape()?.try_into().ok()?;
        let product =
            |all: &[usize]| all.iter().try_fold(1i64, |product, &n| product.checked_mul(i64::try_from(n).ok()?));
        let tiles = product(&[n, height.div_ceil(2), width.div_ceil(2)])?;
        let (channels, outputs) = (product(&[channels])?, product(&[outputs])?);
        let far = tiles.checked_mul(channels)? > MOST_NUMBERS / 16 && !may_make_tiles(channels, outputs);
        if channels.min(outputs) < LEAST_CHANNELS || tiles < LEAST_TILES || far {
            return None;
        }
        let weights = match made.get(&w) {
            Some(known) => *known,
            None => {
                let new = of_products(weights).map(|tensor| graph.add_constant(tensor));
                made.insert(w, new);
                new
            }
        }?;
        let more = [height % 2, width % 2];
        let none =
            Pad { low: vec![0; 4], high: vec![0; 4], interior: vec![0; 4], value: Constant::float(DType::F32, 0.0) };
        let tiled = |x: ValueId, pad: Option<Pad>| Tiled { x, pad, weights, extents: vec![height, width] };
        if more == [0, 0] {
            return Some(tiled(x, None));
        }
        // A border that is there already is made wider; what is beyond the window counts nothing.
        let border = graph.producer(x).map(|id| graph.node(id));
        let (of, mut pad) = match border.map(|node| (&node.op, node.inputs.as_slice())) {
            Some((Op::Pad(pad), &[of])) if graph.users(x).len() == 1 => (of, pad.clone()),
            Some(_) | None => (x, none),
        };
        pad.high.iter_mut().skip(2).zip(more).for_each(|(high, more)| *high += more);
        Some(tiled(of, Some(pad)))
    }

    fn replace(self, graph: &mut Graph, id: NodeId) -> Result<(), GraphError> {
        let (origin, out) = (graph.node(id).origin.clone(), graph.node(id).outputs[0]);
        let fail = |e: kiln_ir::ops::OpError| GraphError::new(&origin, e.to_string());
        let x = match self.pad {
            None => self.x,
            Some(pad) => {
                let mut border = origin.clone();
                let made = graph.producer(graph.node(id).inputs[0]).map(|pad| graph.node(pad).origin.clone());
                made.into_iter().for_each(|made| border.merge(&made));
                let wide = graph.add(pad.into(), &[self.x], &border).map_err(fail)?;
                graph.set_layout(wide, Layout::channels_last(4));
                wide
            }
        };
        let tiles = graph.add(WindowTiles {}.into(), &[x], &origin).map_err(fail)?;
        let product = TileProduct { extents: self.extents };
        let product = graph.add(product.into(), &[tiles, self.weights], &origin).map_err(fail)?;
        graph.set_layout(product, graph.ty(out).layout.clone());
        graph.replace(out, product);
        Ok(())
    }
}

/// The weights `[16, O, C]` of the products, of weights `[O, C, 3, 3]`: computed in f64 and rounded once. Nothing where one would not be
/// finite.
fn of_products(weights: &Tensor) -> Option<Tensor> {
    let &[outputs, channels, 3, 3] = weights.shape() else { return None };
    let values = weights.to_f32()?;
    let plane = outputs * channels;
    let mut made = vec![0f32; 16 * plane];
    for (at, window) in values.chunks_exact(9).enumerate() {
        let row = |n: usize| weights_of_products([0, 1, 2].map(|m| f64::from(window[3 * n + m])));
        let rows = [row(0), row(1), row(2)];
        for column in 0..4 {
            for (n, value) in weights_of_products(rows.map(|row| row[column])).into_iter().enumerate() {
                made[(4 * n + column) * plane + at] = value as f32;
            }
        }
    }
    let finite = made.iter().all(|v| v.is_finite());
    finite.then(|| Tensor::from_f32(&[16, outputs, channels], &made).ok()).flatten()
}

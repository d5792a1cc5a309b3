//! The layout pass: convolutional parts of a graph become channels-last.
//!
//! Invariant: inputs, outputs and constants of the graph keep the row-major layout (constants are repacked by the scheduler); values
//! whose layout changes are only read through their type's layout, which every nest is.
//!
//! A convolution reads all channels of a pixel for each output channel: with channels innermost the outputs are a contiguous
//! vector and the inputs broadcasts of neighbouring elements, whatever the stride of the window.

use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::ops::Op;
use std::collections::HashSet;

/// Fewer channels than this are copied faster plane by plane.
const FEW_CHANNELS: i64 = 8;

/// As many planes of pairs, or of four bytes, as a picture's channels make.
const FEW_PLANES: i64 = 2;

/// Gives channels-last layout to the results of convolutions and of what flows from and into them.
///
/// # Errors
/// The graph has a cycle.
pub fn assign_layouts(graph: &mut Graph) -> Result<(), GraphError> {
    let order = graph.live_order()?;
    let outputs: HashSet<ValueId> = graph.outputs.iter().map(|(_, v)| *v).collect();
    let mut last: HashSet<ValueId> = HashSet::new();
    for &id in &order {
        let node = graph.node(id);
        let output = node.outputs[0];
        let rank = graph.ty(output).rank();
        let from = |v: &ValueId| last.contains(v) && graph.ty(*v).rank() == rank;
        let take = match &node.op {
            Op::Conv(_) => {
                // Depthwise and dense convolutions alike; what feeds them follows if it was made for them.
                rank > 2
            }
            Op::Map(_) | Op::Pool(_) | Op::Pad(_) | Op::Pack(_) | Op::Concat(_) | Op::Slice(_) => {
                node.inputs.iter().any(from)
            }
            Op::Reshape(_) => rank > 2 && moved_pixels(graph, node.inputs[0]).is_some_and(|v| from(&v)),
            Op::WindowTiles(_)
            | Op::TileProduct(_)
            | Op::Reduce(_)
            | Op::Contract(_)
            | Op::BlockProduct(_)
            | Op::Softmax(_)
            | Op::Norm(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Gather(_)
            | Op::GatherElements(_)
            | Op::GatherNd(_)
            | Op::Iota(_)
            | Op::Host(_) => false,
        };
        if take {
            last.insert(output);
        }
    }
    // The border that is put around a convolution's input is a copy in any case: it may as well reorder. So is packing bytes that do
    // not lie side by side; where they do it is nothing.
    for &id in order.iter().rev() {
        let node = graph.node(id);
        let feeds = |v: ValueId| {
            let users = graph.users(v);
            // A picture's few channels are no vector: they are copied row by row and read element by element.
            let channels = graph.ty(v).dims.get(1).and_then(Expr::as_const).unwrap_or(i64::MAX);
            users.iter().all(|&u| match &graph.node(u).op {
                Op::Conv(_) => channels >= FEW_CHANNELS || last.contains(&node.inputs[0]),
                // Few planes are packed plane by plane.
                Op::Pack(p) => {
                    let planes = graph.ty(graph.node(u).outputs[0]).dims.get(p.axis).and_then(Expr::as_const);
                    planes.is_none_or(|planes| planes > FEW_PLANES)
                }
                _ => false,
            })
        };
        if matches!(node.op, Op::Pad(_) | Op::Pack(_)) && graph.ty(node.outputs[0]).rank() > 2 && feeds(node.outputs[0])
        {
            last.insert(node.outputs[0]);
        }
    }
    // Host ops read and write row-major tensors.
    for &id in &order {
        let node = graph.node(id);
        if matches!(node.op, Op::Host(_)) {
            for v in node.inputs.iter().chain(&node.outputs) {
                last.remove(v);
            }
        }
    }
    for v in last {
        if !outputs.contains(&v) && graph.constant(v).is_none() {
            let rank = graph.ty(v).rank();
            graph.set_layout(v, Layout::channels_last(rank));
        }
    }
    Ok(())
}

/// What a value with more axes has the elements of: a picture whose channels become pixels or whose pixels become channels
/// (`DepthToSpace`, transposed convolutions) is reshaped, transposed and reshaped.
fn moved_pixels(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let made_by = |v: ValueId| graph.producer(v).map(|id| graph.node(id));
    let transposed = made_by(value).filter(|n| matches!(n.op, Op::Transpose(_)))?;
    let split = made_by(transposed.inputs[0]).filter(|n| matches!(n.op, Op::Reshape(_)))?;
    Some(split.inputs[0])
}

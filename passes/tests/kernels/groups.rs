//! Convolutions in groups of channels.

use super::{check_graph, random};
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, Origin, TensorType};
use kiln_ir::ops::{Conv, Elements, Pad, Reduce};
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_passes::pipeline::Precision;

#[test]
fn groups_that_no_tile_is_made_of_are_tiles_of_their_own() {
    for (groups, outputs, channels) in
        [(8, 8, 4), (4, 16, 8), (4, 24, 4), (10, 4, 4), (2, 32, 8), (16, 2, 2), (32, 1, 1)]
    {
        let mut graph = Graph::new("test");
        let dims = [1, groups * channels, 5, 7];
        let x = graph.add_input("x", TensorType::new(DType::F32, dims.map(Into::into).into()));
        // The border is a copy, which puts channels innermost.
        let (around, value) = (vec![0, 0, 1, 1], Constant::float(DType::F32, 0.0));
        let pad = Pad { low: around.clone(), high: around, interior: vec![0; 4], value };
        let pad = graph.add_node(pad.into(), &[x], &Origin::new("pad")).unwrap();
        let x = graph.node(pad).outputs[0];
        let w = graph.add_constant(random(DType::F32, &[groups * outputs, channels, 3, 3], 7));
        let conv = Conv { strides: vec![1, 1], dilations: vec![1, 1], groups, elements: Elements::Numbers };
        let node = graph.add_node(conv.into(), &[x, w], &Origin::new("conv")).unwrap();
        let sum = Reduce { combine: BinaryOp::Add, axes: vec![2, 3], keep: false };
        let node = graph.add_node(sum.into(), &[graph.node(node).outputs[0]], &Origin::new("sum")).unwrap();
        graph.add_output("y", graph.node(node).outputs[0]);
        let c = check_graph(Precision::F32, graph, &[&[]]);
        // A tile reads one group's channels, and not another one for each column.
        let text = c.kernels[0].iter().map(|k| k.to_string()).collect::<String>();
        assert_eq!(text.contains("floordiv"), outputs == 2, "{groups} groups of {outputs}: {text}");
    }
}

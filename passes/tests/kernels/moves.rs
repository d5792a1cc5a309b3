//! What only moves elements, and pools.

use super::check_graph;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, Origin, TensorType, ValueId};
use kiln_ir::ops::{Concat, Gather, Pool};
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tensor::Tensor;
use kiln_passes::pipeline::Precision;

fn input(graph: &mut Graph, name: &str, dims: &[usize]) -> ValueId {
    graph.add_input(name, TensorType::new(DType::F32, dims.iter().map(|&d| d.into()).collect()))
}

#[test]
fn what_is_picked_in_runs_is_copied_by_runs() {
    // Borders by reflection and by the edge, and what goes round; the last has no runs.
    let reflected: Vec<i64> = (1..=2).rev().chain(0..19).chain((15..18).rev()).collect();
    let held: Vec<i64> = [0].into_iter().chain(0..19).chain([18]).collect();
    let round: Vec<i64> = (12..19).chain(0..19).chain(0..5).collect();
    let apart: Vec<i64> = (0..19).map(|n| n * 7 % 19).collect();
    for (picked, copies) in [(reflected, true), (held, true), (round, true), (apart, false)] {
        for axis in 0..3 {
            let mut graph = Graph::new("test");
            let mut dims = [5, 6, 7];
            dims[axis] = 19;
            let x = input(&mut graph, "x", &dims);
            let indices = graph.add_constant(Tensor::from_i64(&[picked.len()], &picked).unwrap());
            let node = graph.add_node(Gather { axis }.into(), &[x, indices], &Origin::new("pad")).unwrap();
            graph.add_output("y", graph.node(node).outputs[0]);
            let c = check_graph(Precision::F32, graph, &[&[]]);
            let made: Vec<&str> = c.plan.kernels.iter().map(|k| k.what.as_str()).collect();
            assert_eq!(made.iter().any(|what| what.contains("concat")), copies, "{made:?}");
        }
    }
}

#[test]
fn many_tensors_are_put_together_one_by_one() {
    for (count, axis) in [(60, 0), (60, 1), (130, 0)] {
        let mut graph = Graph::new("test");
        let parts: Vec<ValueId> = (0..count)
            .map(|n| input(&mut graph, &format!("x{n}"), if axis == 0 { &[1, 9] } else { &[9, 1] }))
            .collect();
        let node = graph.add_node(Concat { axis }.into(), &parts, &Origin::new("steps")).unwrap();
        graph.add_output("y", graph.node(node).outputs[0]);
        let c = check_graph(Precision::F32, graph, &[&[]]);
        // No program asks which tensor an element is of.
        let text = c.kernels[0].iter().map(|k| k.to_string()).collect::<String>();
        assert!(!text.contains(" if("), "{text}");
    }
}

#[test]
fn pools_of_large_windows_go_axis_by_axis() {
    for (window, strides, dilations, kernels) in [
        ([5, 5], [1, 1], [1, 1], 2),
        ([7, 4], [2, 1], [1, 3], 2),
        ([13, 13], [1, 2], [1, 1], 2),
        ([3, 3], [1, 1], [1, 1], 1),
        ([4, 4], [4, 4], [1, 1], 1),
        ([9, 1], [1, 1], [1, 1], 1),
    ] {
        for combine in [BinaryOp::Max, BinaryOp::Min, BinaryOp::Add] {
            let mut graph = Graph::new("test");
            let x = input(&mut graph, "x", &[1, 3, 21, 19]);
            let pool = Pool { combine, window: window.into(), strides: strides.into(), dilations: dilations.into() };
            let node = graph.add_node(pool.into(), &[x], &Origin::new("pool")).unwrap();
            graph.add_output("y", graph.node(node).outputs[0]);
            let c = check_graph(Precision::F32, graph, &[&[]]);
            let expected = if combine == BinaryOp::Add { 1 } else { kernels };
            assert_eq!(c.plan.kernels.len(), expected, "{window:?} {strides:?} {combine:?}");
        }
    }
}

//! Groups that have the same kernel.
//!
//! Invariant: whatever [`tile_program`](super::tile_program) looks at is part of what is compared, so that the layers of a model, which
//! differ in their weights alone, are scheduled once.

use super::{Choice, looked, makes_tiles, small_constant};
use crate::group::Group;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, TensorType};
use kiln_ir::id::Id;
use kiln_ir::nest::Nest;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar};

/// A nest, node by node: code that means the same in another order may become another program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stage {
    dims: Vec<Expr>,
    folds: Vec<Expr>,
    combine: BinaryOp,
    body: Nodes,
    finish: Nodes,
}

/// The nodes of code with their types, and which of them is the result.
type Nodes = (Vec<(Scalar, DType)>, Id<Scalar>);

impl Stage {
    fn of(nest: &Nest) -> Stage {
        let nodes = |code: &Code| -> Nodes {
            (code.nodes().map(|(id, node)| (node.clone(), code.dtype(id))).collect(), code.result())
        };
        let (body, finish) = (nodes(&nest.body), nodes(&nest.finish));
        Stage { dims: nest.dims.clone(), folds: nest.folds.clone(), combine: nest.combine, body, finish }
    }
}

/// What the tile programs of a group depend on, beside the machines that they are for and the ranges of the graph's symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Alike {
    stages: Vec<Stage>,
    /// Types of the inputs and of the result, last, with their layouts.
    operands: Vec<TensorType>,
    /// The elements of the inputs that the code may have as constants.
    known: Vec<Vec<Constant>>,
    makes_tiles: bool,
    /// What masks leave of an attention's keys, which other kernels may say.
    seen: Option<String>,
    /// What was chosen for each machine.
    choices: Vec<Choice>,
}

impl Alike {
    /// Nothing where programs depend on more: on the graph around a scatter, and on GPUs on the values of an attention's masks.
    pub(crate) fn of(graph: &Graph, group: &Group, on_gpus: bool, choices: &[Choice]) -> Option<Alike> {
        if group.stages.is_empty() || on_gpus && group.is_attention() {
            return None;
        }
        let seen = group.is_attention().then(|| looked::seen_keys(graph, group)).flatten();
        Some(Alike {
            stages: group.stages.iter().map(Stage::of).collect(),
            operands: group.inputs.iter().chain([&group.output]).map(|&v| graph.ty(v).clone()).collect(),
            known: group.inputs.iter().map(|&v| small_constant(graph, v)).collect(),
            makes_tiles: makes_tiles(graph, group),
            seen: seen.map(|seen| seen.to_string()),
            choices: choices.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::Wishes;
    use crate::group::{Work, group};
    use kiln_ir::{DType, Tensor};

    #[test]
    fn layers_with_other_weights_are_alike_and_others_are_not() {
        // Layers of a product, an activation, and a factor that is part of the code.
        let text = "graph \"layers\" {
            input %0 : f32[6, 20]
            const %1 : f32[20, 20] = data 0
            const %2 : f32[20, 20] = data 1
            const %3 : f32[20, 30] = data 2
            %4 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, 20]
            %5 = map(%4) body = { mul(max(a0, 0.0f32), 2.0f32) } : f32[6, 20]
            %6 = contract(%5, %2) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, 20]
            %7 = map(%6) body = { mul(max(a0, 0.0f32), 2.0f32) } : f32[6, 20]
            %8 = contract(%7, %2) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, 20]
            %9 = map(%8) body = { mul(max(a0, 0.0f32), 3.0f32) } : f32[6, 20]
            %10 = contract(%9, %3) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, 30]
            output %10 \"y\"
        }";
        let data = [(20, 1.0f32), (20, 2.0), (30, 3.0)].map(|(columns, value)| {
            let bytes = value.to_le_bytes().repeat(20 * columns);
            Tensor::new(DType::F32, vec![20, columns], bytes).unwrap()
        });
        let graph = Graph::parse(text, &data).unwrap();
        let work = group(&graph, &|_| false, &Wishes::default(), &mut Vec::new()).unwrap();
        let kernels: Vec<Alike> = work
            .iter()
            .filter_map(Work::kernel)
            .map(|g| Alike::of(&graph, g, false, &[Choice::default()]).unwrap())
            .collect();
        let [first, second, factor, shape] = kernels.as_slice() else { panic!("{} kernels", kernels.len()) };
        assert_eq!(first, second);
        assert_ne!(first, factor);
        assert_ne!(first, shape);
        let chosen = Choice { rows: Some(2), ..Choice::default() };
        let other = work.iter().find_map(Work::kernel).and_then(|g| Alike::of(&graph, g, false, &[chosen]));
        assert_ne!(Some(first), other.as_ref());
    }
}

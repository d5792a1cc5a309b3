//! Scales of a weight's rows, where rows are summed over: they go to the other factor.
//!
//! Invariant: the product stays what it is, up to the rounding of floats: nothing overflows that did not before, and the other factor loses bits
//! only below 2^-86.

use super::canonicalise::{MOST_MAPS, producer};
use super::picked::is_table;
use super::{Operand, Patch};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, Node, NodeId, ValueId};
use kiln_ir::id::Id;
use kiln_ir::ops::{Elements, Map, Op, Reshape};
use kiln_ir::scalar::{BinaryOp, Code, Scalar};

/// The least scale but 0 that is moved: so much smaller than the rows are the products that would vanish.
const LEAST: f64 = 1.0 / (1u64 << 40) as f64;

/// A weight that a map makes of numbers and of one scale for each row.
struct Scaled {
    map: NodeId,
    /// What is left of the weight, of the dims that the weight has.
    nodes: Vec<(Op, Vec<Operand>)>,
    /// The scales as they are stored, and the axis of the weight whose places they belong to.
    scales: ValueId,
    axis: usize,
}

/// The operand of a map that a factor of its result is, converted or not.
fn operand(body: &Code, factor: Id<Scalar>) -> Option<usize> {
    match body.node(factor) {
        Scalar::Arg(n) => Some(*n),
        Scalar::Cast(DType::F32, a) => match body.node(*a) {
            Scalar::Arg(n) => Some(*n),
            _ => None,
        },
        _ => None,
    }
}

/// Whether all are 0 or of a magnitude from [`LEAST`] to 1.
fn tame(graph: &Graph, scales: ValueId) -> bool {
    let float = |t: &&kiln_ir::Tensor| matches!(t.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let values = graph.constant(scales).filter(float).and_then(|t| t.to_f64());
    values.is_some_and(|all| all.iter().all(|v| *v == 0.0 || (LEAST..=1.0).contains(&v.abs())))
}

/// The weight without its scales, where a value is one with them.
fn scaled(graph: &Graph, weight: ValueId) -> Option<Scaled> {
    let (inner, reshaped) = match producer(graph, weight)? {
        (id, Node { op: Op::Reshape(r), inputs, .. }) => (*inputs.first()?, Some((id, r.clone()))),
        _ => (weight, None),
    };
    let (map, Node { op: Op::Map(Map { body }), inputs, .. }) = producer(graph, inner)? else { return None };
    let dims = &graph.ty(inner).dims;
    let Scalar::Binary(BinaryOp::Mul, a, b) = body.node(body.result()) else { return None };
    if body.result_type() != DType::F32 || !is_table(graph, inner, MOST_MAPS) {
        return None;
    }
    for (factor, rest) in [(*a, *b), (*b, *a)] {
        let Some(n) = operand(body, factor) else { continue };
        let scales = *inputs.get(n)?;
        let own = &graph.ty(scales).dims;
        let lead = dims.len().checked_sub(own.len())?;
        let mut wide = own.iter().enumerate().filter(|(_, d)| d.as_const() != Some(1)).map(|(axis, _)| axis + lead);
        let (Some(axis), None) = (wide.next(), wide.next()) else { continue };
        // A reshape must keep the axis as it is.
        let kept = reshaped.is_none() || axis == 0 && graph.ty(weight).dims.first() == dims.first();
        let mut left = body.clone();
        left.set_result(rest);
        let others: Vec<ValueId> = inputs.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, v)| *v).collect();
        let whole = others.iter().any(|v| graph.ty(*v).dims == *dims) || reads_scales_of_all(graph, &others, dims);
        let live = left.live();
        let again = left.nodes().any(|(id, node)| live[id.index()] && matches!(node, Scalar::Arg(m) if *m == n));
        if !kept || !whole || again || !tame(graph, scales) {
            continue;
        }
        let mut code = Code::new();
        let result = code.inline(&left, &mut |out, node, dtype| {
            Ok(match node {
                Scalar::Arg(m) => Some(out.arg(if *m > n { m - 1 } else { *m }, dtype)),
                _ => None,
            })
        });
        code.set_result(result.ok()?);
        let operands = others.into_iter().map(Operand::Value).collect();
        let mut nodes: Vec<(Op, Vec<Operand>)> = vec![(Map { body: code }.into(), operands)];
        nodes.extend(reshaped.map(|(_, r)| (Op::from(Reshape { dims: r.dims }), vec![Operand::New(0)])));
        return Some(Scaled { map, nodes, scales, axis });
    }
    None
}

/// Whether the operands of a map have all of its dims without one that is left out.
fn reads_scales_of_all(graph: &Graph, operands: &[ValueId], dims: &[Expr]) -> bool {
    let extent = |v: &ValueId, axis: usize| {
        let own = &graph.ty(*v).dims;
        (axis + own.len()).checked_sub(dims.len()).and_then(|at| own.get(at))
    };
    (0..dims.len()).all(|axis| operands.iter().any(|v| extent(v, axis) == Some(&dims[axis])))
}

/// `contract(x, map(w, s))` with one scale for each place of what is summed over is `contract(x * s, map(w))`.
pub(super) fn scales_of_places(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    if c.elements != Elements::Numbers {
        return None;
    }
    for side in 0..2 {
        let (&weight, &other) = (node.inputs.get(side)?, node.inputs.get(1 - side)?);
        let (own, others) = if side == 0 { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
        if graph.ty(other).dtype != DType::F32 || graph.constant(other).is_some() {
            continue;
        }
        let Some(found) = scaled(graph, weight) else { continue };
        let letter = own.chars().nth(found.axis).filter(|l| !c.out.contains(*l));
        let Some(place) = letter.and_then(|l| others.find(l)) else { continue };
        let mut nodes = found.nodes;
        let weight = Operand::New(nodes.len() - 1);
        // The scales along the axis of the other factor that is summed over.
        let mut dims = vec![Expr::from(1i64); graph.ty(other).rank()];
        dims[place] = graph.ty(other).dims[place].clone();
        nodes.push((Reshape { dims }.into(), vec![Operand::Value(found.scales)]));
        let mut body = Code::new();
        let (x, s) = (body.arg(0, DType::F32), body.arg(1, graph.ty(found.scales).dtype));
        let s = body.cast(DType::F32, s).ok()?;
        let product = body.binary(BinaryOp::Mul, x, s).ok()?;
        body.set_result(product);
        nodes.push((Map { body }.into(), vec![Operand::Value(other), Operand::New(nodes.len() - 1)]));
        let x = Operand::New(nodes.len() - 1);
        let operands = if side == 0 { vec![weight, x] } else { vec![x, weight] };
        nodes.push((c.clone().into(), operands));
        return Some(Patch { nodes, replaces: *node.outputs.first()?, with: None, also: vec![found.map] });
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::rewrite::canonicalise;
    use kiln_ir::graph::Graph;
    use kiln_ir::interp::{Options, eval_graph};
    use kiln_ir::ops::Op;
    use kiln_ir::{DType, Tensor};

    /// A product with a weight of 96 x 64 bytes and a scale for each row: whether that left the weight.
    fn moved(weight: &str, scales: &[usize], largest: f32) -> bool {
        let text = format!(
            "graph \"g\" {{\n input %0 : f32[3, 96]\n const %1 : u8[96, 64] = data 0\n const %2 : f32{scales:?} = data 1
             {weight}\n %9 = contract(%0, %8) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[3, 64]\n output %9 \"y\"\n}}"
        );
        let numbers: Vec<u8> = (0..96 * 64u32).map(|n| (n * 31 % 251) as u8).collect();
        let count: usize = scales.iter().product();
        let values: Vec<f32> = (0..count).map(|n| largest * (1 + n) as f32 / count as f32).collect();
        let data = [Tensor::new(DType::U8, vec![96, 64], numbers).unwrap(), Tensor::from_f32(scales, &values).unwrap()];
        let graph = Graph::parse(&text, &data).unwrap();
        let made = canonicalise(&graph).unwrap();
        let x: Vec<f32> = (0..288).map(|n| ((n * 7 % 23) as f32 - 11.0) / 8.0).collect();
        let inputs = [Tensor::from_f32(&[3, 96], &x).unwrap()];
        let run = |g: &Graph| eval_graph(g, &inputs, &Options::default()).unwrap()[0].to_f32().unwrap();
        let (want, got) = (run(&graph), run(&made));
        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        let far = want.iter().zip(&got).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(far <= 1e-5 * most, "{far} of {most}");
        // What multiplies x has the dims of x.
        let scaled = |n: &kiln_ir::graph::Node| {
            matches!(n.op, Op::Map(_)) && made.ty(n.outputs[0]).dims == made.ty(made.inputs[0]).dims
        };
        made.nodes().any(|(_, n)| scaled(n))
    }

    #[test]
    fn a_scale_for_each_place_goes_to_the_other_factor() {
        let plain = "%8 = map(%1, %2) body = { mul(sub(to_f32(a0), 3.0f32), a1) } : f32[96, 64]";
        assert!(moved(plain, &[96, 1], 0.5));
        // In blocks that a reshape joins.
        let blocks = "%3 = reshape(%1) dims = [96, 2, 32] : u8[96, 2, 32]
             %5 = map(%3, %2) body = { mul(to_f32(a0), a1) } : f32[96, 2, 32]
             %8 = reshape(%5) dims = [96, 64] : f32[96, 64]";
        assert!(moved(blocks, &[96, 1, 1], 0.5));
        // A scale for each column or block stays, and so does what might overflow.
        assert!(!moved(plain, &[1, 64], 0.5));
        assert!(!moved(plain, &[64], 0.5));
        assert!(!moved(blocks, &[96, 2, 1], 0.5));
        assert!(!moved(blocks, &[1, 2, 1], 0.5));
        assert!(!moved(plain, &[96, 1], 2.0));
    }

    #[test]
    fn scales_of_activations_stay_theirs() {
        // What is scaled has as many elements as a table, but is no weight.
        let text = "graph \"g\" {\n input %0 : f32[64, 96]\n const %1 : f32[96] = data 0\n const %2 : u8[96, 64] = data 1
             %3 = map(%0, %1) body = { mul(a0, a1) } : f32[64, 96]\n %8 = map(%2) body = { mul(to_f32(a0), 0.5f32) } : f32[96, 64]
             %9 = contract(%3, %8) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[64, 64]\n output %9 \"y\"\n}";
        let data = [Tensor::from_f32(&[96], &[0.5; 96]), Tensor::new(DType::U8, vec![96, 64], vec![3; 96 * 64])];
        let graph = Graph::parse(text, &data.map(Result::unwrap)).unwrap();
        let made = canonicalise(&graph).unwrap();
        let product = made.nodes().find(|(_, n)| matches!(n.op, Op::Contract(_))).unwrap().1;
        let weight = made.nodes().find(|(_, n)| n.outputs.contains(&product.inputs[1])).unwrap().1;
        assert!(weight.inputs.iter().all(|v| made.ty(*v).dtype != DType::F32), "{made}");
    }
}

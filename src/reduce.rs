//! Shrinking a graph that goes wrong somewhere, to the few nodes that do.
//!
//! Invariant: what comes out goes wrong in the same way as what came in. A node that is left out is replaced by what the graph
//! interpreter has computed for it, as an input: so what remains sees the very numbers with which it failed.
//!
//! The search is Zeller's and Hildebrandt's delta debugging ("Simplifying and isolating failure-inducing input", 2002) over the
//! nodes in topological order, then over outputs, then over single nodes that pass an operand of theirs through.

use crate::Error;
use kiln_ir::Tensor;
use kiln_ir::graph::{Definition, Graph, GraphError, NodeId, ValueId};
use kiln_ir::interp::{self, eval_graph};
use std::collections::{HashMap, HashSet};

/// A graph with inputs for it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The graph.
    pub graph: Graph,
    /// Its inputs.
    pub inputs: Vec<Tensor>,
}

/// Says whether a case still goes wrong in the way that is looked for.
pub type Fails<'a> = dyn FnMut(&Case) -> bool + 'a;

/// Whether a change helped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tried {
    Kept,
    Refused,
}

/// The smallest case that was found; `case` itself has failed.
///
/// # Errors
/// The interpreter cannot compute the graph's values.
pub fn reduce(case: Case, fails: &mut Fails<'_>) -> Result<Case, Error> {
    let mut best = bound(case, fails);
    loop {
        let before = size(&best.graph);
        best = fewer_nodes(best, fails)?;
        best = fewer_outputs(best, fails);
        best = fewer_constants(best, fails);
        best = without_single(best, fails);
        if size(&best.graph) >= before {
            return Ok(best);
        }
    }
}

fn size(graph: &Graph) -> (usize, usize, usize) {
    (graph.nodes().len(), graph.outputs.len(), graph.inputs.len() + graph.values().len())
}

fn accept(best: &mut Case, candidate: Result<Case, GraphError>, fails: &mut Fails<'_>) -> Tried {
    match candidate {
        Ok(candidate) if candidate.graph.verify().is_empty() && fails(&candidate) => {
            *best = candidate;
            Tried::Kept
        }
        Ok(_) | Err(_) => Tried::Refused,
    }
}

/// The case with all free dims fixed to those of the inputs, if it goes wrong then, too.
fn bound(mut case: Case, fails: &mut Fails<'_>) -> Case {
    let shapes: Vec<&[usize]> = case.inputs.iter().map(Tensor::shape).collect();
    if let (false, Ok(values)) = (case.graph.symbols.is_empty(), interp::bind_inputs(&case.graph, &shapes)) {
        let fixed = case.graph.rebuild(&|e| e.substitute(&|s| values.get(s).map(|&v| v.into())));
        let candidate = fixed.map(|graph| Case { graph, inputs: case.inputs.clone() });
        accept(&mut case, candidate, fails);
    }
    case
}

/// Delta debugging over the nodes.
fn fewer_nodes(mut best: Case, fails: &mut Fails<'_>) -> Result<Case, Error> {
    'graphs: loop {
        let order = best.graph.live_order().map_err(internal)?;
        let values = recorded(&best, &order)?;
        let mut parts = 2;
        while order.len() > 1 && parts <= order.len() {
            let length = order.len().div_ceil(parts);
            let chunks: Vec<&[NodeId]> = order.chunks(length).collect();
            let without = |n: usize| chunks.iter().enumerate().filter(move |(m, _)| *m != n).flat_map(|(_, c)| *c);
            let alone = chunks.iter().map(|chunk| chunk.iter().copied().collect::<HashSet<_>>());
            let others = (0..chunks.len()).map(|n| without(n).copied().collect::<HashSet<_>>());
            for kept in alone.chain(others).filter(|kept| kept.len() < order.len()) {
                let candidate = part(&best, &order, &kept, &values);
                if accept(&mut best, candidate, fails) == Tried::Kept {
                    continue 'graphs;
                }
            }
            if length == 1 {
                break;
            }
            parts = (parts * 2).min(order.len());
        }
        return Ok(best);
    }
}

fn internal(error: GraphError) -> Error {
    Error::Internal(error.to_string())
}

/// What the interpreter computes for each value that a node makes.
fn recorded(case: &Case, order: &[NodeId]) -> Result<HashMap<ValueId, Tensor>, Error> {
    let taps: Vec<ValueId> = order.iter().flat_map(|&n| case.graph.node(n).outputs.clone()).collect();
    let options = interp::Options { taps: &taps, budget: None };
    let Ok(mut found) = eval_graph(&case.graph, &case.inputs, &options) else {
        // Where the interpreter refuses the inputs, only what needs no values can be cut.
        return Ok(HashMap::new());
    };
    let found = found.split_off(case.graph.outputs.len());
    Ok(taps.into_iter().zip(found).collect())
}

/// The graph of some of the nodes: what others made for them is an input, what they make for others an output.
fn part(
    case: &Case,
    order: &[NodeId],
    kept: &HashSet<NodeId>,
    recorded: &HashMap<ValueId, Tensor>,
) -> Result<Case, GraphError> {
    let graph = &case.graph;
    let mut new = Graph::new(&graph.name);
    new.symbols = graph.symbols.clone();
    let mut inputs = Vec::new();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for &id in order.iter().filter(|id| kept.contains(id)) {
        let node = graph.node(id);
        let fail = |message: String| GraphError::new(&node.origin, message);
        let mut operands = Vec::with_capacity(node.inputs.len());
        for &v in &node.inputs {
            let value = graph.value(v);
            if let Some(&known) = map.get(&v) {
                operands.push(known);
                continue;
            }
            let made = match &value.definition {
                Definition::Constant(tensor) => new.add_constant(tensor.clone()),
                Definition::Input(n) => {
                    inputs.push(case.inputs[*n].clone());
                    new.add_input(value.name.as_deref().unwrap_or(""), value.ty.clone())
                }
                Definition::Node(..) => {
                    let tensor = recorded.get(&v).ok_or_else(|| fail(format!("{v} has no recorded value")))?;
                    inputs.push(tensor.clone());
                    new.add_input(&format!("v{}", v.index()), value.ty.clone())
                }
            };
            map.insert(v, made);
            operands.push(made);
        }
        let made = new.add_node(node.op.clone(), &operands, &node.origin).map_err(|e| fail(e.to_string()))?;
        let results = new.node(made).outputs.clone();
        map.extend(node.outputs.iter().copied().zip(results));
    }
    for &id in order.iter().filter(|id| kept.contains(id)) {
        for &v in &graph.node(id).outputs {
            let within = graph.users(v).iter().any(|user| kept.contains(user));
            if let (true, Some(&made)) = (!within || graph.is_output(v), map.get(&v)) {
                new.add_output(&format!("v{}", v.index()), made);
            }
        }
    }
    Ok(Case { graph: new, inputs })
}

/// The case without outputs, and inputs that nothing reads, that it goes wrong without.
fn fewer_outputs(mut best: Case, fails: &mut Fails<'_>) -> Case {
    let mut at = 0;
    while at < best.graph.outputs.len() && best.graph.outputs.len() > 1 {
        let mut graph = best.graph.clone();
        graph.outputs.remove(at);
        let candidate = graph.compact().map(|graph| Case { graph, inputs: best.inputs.clone() });
        if accept(&mut best, candidate, fails) == Tried::Refused {
            at += 1;
        }
    }
    let Ok(order) = best.graph.live_order() else { return best };
    let all = order.iter().copied().collect();
    let candidate = part(&best, &order, &all, &HashMap::new());
    accept(&mut best, candidate, fails);
    best
}

/// The case with large constants as inputs, so that its text is whole.
fn fewer_constants(mut best: Case, fails: &mut Fails<'_>) -> Case {
    if best.graph.data().is_empty() {
        return best;
    }
    let mut graph = best.graph.clone();
    let mut inputs = best.inputs.clone();
    let large: Vec<(ValueId, Tensor)> = best
        .graph
        .values()
        .filter_map(|(id, v)| match &v.definition {
            Definition::Constant(t) if best.graph.data().contains(t) => Some((id, t.clone())),
            Definition::Constant(_) | Definition::Input(_) | Definition::Node(..) => None,
        })
        .collect();
    for (id, tensor) in large {
        let ty = kiln_ir::TensorType::of(tensor.dtype(), tensor.shape());
        let input = graph.add_input(&format!("v{}", id.index()), ty);
        graph.replace(id, input);
        inputs.push(tensor);
    }
    let candidate = graph.compact().map(|graph| Case { graph, inputs });
    accept(&mut best, candidate, fails);
    best
}

/// The case without single nodes whose place an operand of the same type can take.
fn without_single(mut best: Case, fails: &mut Fails<'_>) -> Case {
    'graphs: loop {
        let Ok(order) = best.graph.live_order() else { return best };
        for id in order {
            let node = best.graph.node(id).clone();
            let [output] = node.outputs.as_slice() else { continue };
            let ty = best.graph.ty(*output).clone();
            for &operand in &node.inputs {
                let other = best.graph.ty(operand);
                if other.dtype != ty.dtype || other.dims != ty.dims || best.graph.is_output(*output) {
                    continue;
                }
                let mut graph = best.graph.clone();
                graph.replace(*output, operand);
                let candidate = graph.compact().map(|graph| Case { graph, inputs: best.inputs.clone() });
                if accept(&mut best, candidate, fails) == Tried::Kept {
                    continue 'graphs;
                }
            }
        }
        return best;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::ops::Op;

    /// A long chain with a division by zero in the middle is cut to that one.
    #[test]
    fn what_is_left_is_the_node_that_matters() {
        let text = "graph \"g\" {
            input %0 \"x\" : f32[4]
            input %1 \"y\" : f32[4]
            %2 = map(%0) body = { exp(a0) } : f32[4] from \"a\"
            %3 = map(%2, %1) body = { add(a0, a1) } : f32[4] from \"b\"
            %4 = reshape(%3) dims = [2, 2] : f32[2, 2] from \"c\"
            %5 = transpose(%4) perm = [1, 0] : f32[2, 2] from \"d\"
            %6 = map(%5) body = { neg(a0) } : f32[2, 2] from \"e\"
            %7 = map(%6) body = { abs(a0) } : f32[2, 2] from \"f\"
            output %7 \"z\"
            output %3 \"w\" }";
        let graph = Graph::parse(text, &[]).unwrap();
        let x = |v: f32| Tensor::from_f32(&[4], &[v, 1.0, 2.0, 3.0]).unwrap();
        let transposes = |case: &Case| {
            let any = case.graph.nodes().any(|(_, n)| matches!(n.op, Op::Transpose(_)));
            any && eval_graph(&case.graph, &case.inputs, &interp::Options::default()).is_ok()
        };
        let small = reduce(Case { graph, inputs: vec![x(0.0), x(5.0)] }, &mut |case| transposes(case)).unwrap();
        assert_eq!(small.graph.nodes().len(), 1, "{}", small.graph);
        assert_eq!((small.graph.inputs.len(), small.graph.outputs.len()), (1, 1));
        // The input is what the interpreter had there: exp(0) + 5 first.
        assert_eq!(small.inputs[0].to_f32().unwrap()[0], 6.0);
    }
}

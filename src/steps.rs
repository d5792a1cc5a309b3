//! Two graphs of a quantized model, compared from one quantized value to the next.
//!
//! Invariant: every value of 8 bits is computed from the values that the first graph has before it. A model of many quantized layers
//! spreads a single step of rounding over all that follows, so that two right ways of computing it may end far apart; from one
//! value to the next they may differ by one step, and nothing hides a wrong one.

use crate::compare::{self, Difference, TOLERANCE};
use kiln_ir::Tensor;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Definition, Graph, TensorType, ValueId};
use kiln_ir::interp::{EvalError, Options, eval_graph};
use std::collections::BTreeMap;
use std::fmt;

/// How far the integers of some values are apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Elements that were compared.
    pub elements: usize,
    /// Elements that differ.
    pub off: usize,
    /// The largest difference.
    pub most: u64,
}

/// How far two graphs are apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stepwise {
    /// Outputs that are no quantized values, each computed from the first graph's quantized values.
    pub outputs: Vec<(String, Difference)>,
    /// Quantized values, by name.
    pub values: BTreeMap<String, Steps>,
}

impl Stepwise {
    /// What is not as it must be: a quantized value more than one step away, another output over the tolerance.
    pub fn wrong(&self) -> Vec<String> {
        let outputs = self.outputs.iter().filter(|(_, d)| !d.within(TOLERANCE));
        let outputs = outputs.map(|(name, d)| format!("output {name:?}: {d}"));
        let values = self.values.iter().filter(|(_, s)| s.most > 1);
        let values = values.map(|(name, s)| format!("quantized value {name:?}: up to {} steps away", s.most));
        outputs.chain(values).collect()
    }

    /// All quantized values together.
    pub fn total(&self) -> Steps {
        self.values.values().fold(Steps::default(), |a, b| Steps {
            elements: a.elements + b.elements,
            off: a.off + b.off,
            most: a.most.max(b.most),
        })
    }
}

impl fmt::Display for Stepwise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Steps { elements, off, most } = self.total();
        write!(f, "{} quantized values of {elements} elements: ", self.values.len())?;
        match most {
            0 => f.write_str("equal"),
            1 => write!(f, "{off} elements one step away"),
            _ => write!(f, "{off} elements differ, by up to {most} steps"),
        }
    }
}

/// The integers of 8 bits that the graph's nodes compute, by name. Names that several have stand for none.
fn quantized(graph: &Graph) -> BTreeMap<&str, ValueId> {
    let mut found: BTreeMap<&str, Option<ValueId>> = BTreeMap::new();
    for (id, value) in graph.values() {
        if let (Some(name), Definition::Node(..), DType::I8 | DType::U8) =
            (&value.name, &value.definition, value.ty.dtype)
        {
            found.entry(name).and_modify(|v| *v = None).or_insert(Some(id));
        }
    }
    found.into_iter().filter_map(|(name, id)| Some((name, id?))).collect()
}

/// Compares two graphs on some inputs; nothing where they have no quantized value in common.
///
/// # Errors
/// A graph cannot be evaluated on the inputs, or not within the budget in bytes.
pub fn stepwise(
    first: &Graph,
    second: &Graph,
    inputs: &[Tensor],
    budget: Option<u64>,
) -> Result<Option<Stepwise>, EvalError> {
    let others = quantized(second);
    // The order of elements in memory is no matter of what they are.
    let same =
        |a: ValueId, b: ValueId| first.ty(a).dtype == second.ty(b).dtype && first.ty(a).dims == second.ty(b).dims;
    let common = quantized(first).into_iter().filter_map(|(name, a)| {
        let b = *others.get(name)?;
        same(a, b).then_some((name, a, b))
    });
    let common: Vec<(&str, ValueId, ValueId)> = common.collect();
    if common.is_empty() {
        return Ok(None);
    }
    let taps: Vec<ValueId> = common.iter().map(|&(_, a, _)| a).collect();
    let expected = eval_graph(first, inputs, &Options { taps: &taps, budget })?;
    let (outputs, values) = expected.split_at(first.outputs.len().min(expected.len()));

    let mut forced = second.clone();
    let taps: Vec<ValueId> = common.iter().map(|&(_, _, b)| b).collect();
    for &(name, _, b) in &common {
        let TensorType { dtype, dims, .. } = second.ty(b).clone();
        let given = forced.add_input(name, TensorType::new(dtype, dims));
        forced.replace(b, given);
    }
    let given: Vec<Tensor> = inputs.iter().chain(values).cloned().collect();
    let found = eval_graph(&forced, &given, &Options { taps: &taps, budget })?;
    let (found_outputs, found_values) = found.split_at(forced.outputs.len().min(found.len()));

    let mut made = Stepwise::default();
    for ((name, id), (want, found)) in second.outputs.iter().zip(outputs.iter().zip(found_outputs)) {
        if !taps.contains(id) {
            made.outputs.push((name.to_string(), compare::difference(want, found)));
        }
    }
    for ((name, _, _), (want, found)) in common.iter().zip(values.iter().zip(found_values)) {
        made.values.insert((*name).to_string(), steps(want, found));
    }
    Ok(Some(made))
}

fn steps(want: &Tensor, found: &Tensor) -> Steps {
    let (want, found) = (want.to_i64().unwrap_or_default(), found.to_i64().unwrap_or_default());
    let apart = |(a, b): (&i64, &i64)| a.abs_diff(*b);
    let off = want.iter().zip(&found).filter(|(a, b)| a != b).count();
    // Of values of one type; with different extents of free dims nothing would be comparable.
    let most = want.iter().zip(&found).map(apart).max().unwrap_or(0);
    let most = if want.len() == found.len() { most } else { u64::MAX };
    Steps { elements: want.len(), off, most }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::graph::Origin;
    use kiln_ir::ops::Map;
    use kiln_ir::{BinaryOp, Code, Constant};

    /// `q = u8(x + moved)`, `r = u8(f32(q) * 3)`, `y = f32(r) / 2`.
    fn graph(moved: f64) -> Graph {
        let mut graph = Graph::new("g");
        let map = |graph: &mut Graph, x: ValueId, op: BinaryOp, by: f64, to: DType, name: &str| {
            let mut body = Code::default();
            let arg = body.arg(0, graph.ty(x).dtype);
            let float = body.cast(DType::F32, arg).unwrap();
            let by = body.constant(Constant::float(DType::F32, by));
            let made = body.binary(op, float, by).unwrap();
            let result = body.cast(to, made).unwrap();
            body.set_result(result);
            let value = graph.add(Map { body }.into(), &[x], &Origin::new(name)).unwrap();
            graph.set_name(value, name);
            value
        };
        let x = graph.add_input("x", TensorType::of(DType::F32, &[3]));
        let q = map(&mut graph, x, BinaryOp::Add, moved, DType::U8, "q");
        let r = map(&mut graph, q, BinaryOp::Mul, 3.0, DType::U8, "r");
        let y = map(&mut graph, r, BinaryOp::Div, 2.0, DType::F32, "y");
        graph.add_output("y", y);
        graph
    }

    #[test]
    fn a_step_is_not_carried_on() {
        let x = Tensor::from_f32(&[3], &[1.0, 2.0, 7.0]).unwrap();
        let against = |moved| stepwise(&graph(0.0), &graph(moved), std::slice::from_ref(&x), None).unwrap().unwrap();
        let same = against(0.0);
        assert!(same.wrong().is_empty() && same.total() == Steps { elements: 6, off: 0, most: 0 }, "{same}");
        // Three steps in `r` and one and a half in `y`, were they computed from the `q` that is one step off.
        let one = against(1.0);
        assert_eq!(one.wrong(), [""; 0], "{one}");
        assert_eq!(one.values["q"], Steps { elements: 3, off: 3, most: 1 });
        assert_eq!(one.values["r"].off, 0);
        let two = against(2.0);
        assert_eq!(two.wrong().len(), 1, "{two}");
        assert!(two.wrong()[0].contains("\"q\": up to 2 steps"), "{two:?}");
    }
}

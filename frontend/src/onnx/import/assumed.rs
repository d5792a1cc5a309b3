//! Equalities of sizes that a branch takes for granted.
//!
//! Invariant: whoever leaves a choice to such an equality has seen that every result rests on it, so that it is asked for whenever the
//! results are computed.

use super::Context;
use kiln_ir::graph::{Definition, Graph, ValueId};
use kiln_ir::ops::Op;
use kiln_ir::{BinaryOp, Expr, Scalar};
use std::collections::HashSet;

impl Context<'_> {
    /// The two sizes that a truth value says are equal, where it says just that.
    pub fn compared(&self, v: ValueId) -> Option<(Expr, Expr)> {
        let graph = &self.importer.frame.graph;
        let Definition::Node(id, _) = graph.value(v).definition else { return None };
        let node = graph.node(id);
        let (Op::Map(map), &[x, y]) = (&node.op, node.inputs.as_slice()) else { return None };
        let Scalar::Binary(BinaryOp::Eq, a, b) = map.body.node(map.body.result()) else { return None };
        let argument = |id| matches!(map.body.node(id), Scalar::Arg(..));
        match (self.contents(x)?.as_slice(), self.contents(y)?.as_slice()) {
            ([x], [y]) if a != b && argument(*a) && argument(*b) => Some((x.clone(), y.clone())),
            _ => None,
        }
    }

    /// The whole number that a float is, where it is one for every value of the symbols: a size that a model has converted. Sizes that
    /// the float's type does not hold are taken to fit: where they do not, the model is wrong by its own arithmetic.
    pub fn whole(&self, v: ValueId) -> Option<Expr> {
        if let Some(t) = self.constant_of(v) {
            let &[x] = t.to_f64()?.as_slice() else { return None };
            return (x.fract() == 0.0 && x.abs() < 2f64.powi(53)).then(|| Expr::from(x as i64));
        }
        let graph = &self.importer.frame.graph;
        let Definition::Node(id, _) = graph.value(v).definition else { return None };
        let node = graph.node(id);
        let (op, &[x]) = (&node.op, node.inputs.as_slice()) else { return None };
        match op {
            Op::Reshape(_) => self.whole(x),
            Op::Map(map) => match map.body.node(map.body.result()) {
                Scalar::Cast(_, a) if matches!(map.body.node(*a), Scalar::Arg(_)) => match self.contents(x)?.as_slice()
                {
                    [e] if self.dtype(x).is_int() => Some(e.clone()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether a value is computed by way of a reshape that asks for this equality.
    pub fn rests_on(&self, v: ValueId, (left, right): &(Expr, Expr)) -> bool {
        let graph = &self.importer.frame.graph;
        let (mut open, mut seen) = (vec![v], HashSet::new());
        while let Some(v) = open.pop() {
            let Definition::Node(id, _) = graph.value(v).definition else { continue };
            if !seen.insert(id) {
                continue;
            }
            if asks(graph, v).is_some_and(|(a, b)| (&a, &b) == (left, right) || (&b, &a) == (left, right)) {
                return true;
            }
            open.extend(&graph.node(id).inputs);
        }
        false
    }
}

/// What the reshape that makes a value takes for granted.
fn asks(graph: &Graph, v: ValueId) -> Option<(Expr, Expr)> {
    let Definition::Node(id, _) = graph.value(v).definition else { return None };
    let node = graph.node(id);
    match (&node.op, node.inputs.as_slice()) {
        (Op::Reshape(reshape), &[x]) => reshape.assumes(graph.ty(x)),
        _ => None,
    }
}

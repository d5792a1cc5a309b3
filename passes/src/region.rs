//! Bodies of loops and branches that become steps of the plan, with kernels of their own.
//!
//! Invariant: a body is only taken apart here where every type in it is known before it runs: over the symbols of the graph around it,
//! with states that keep theirs from turn to turn. Everything else stays a host step, which the interpreter evaluates.

use crate::pipeline::{Cut, PassError, Precision, Target, cut, optimise};
use kiln_ir::graph::{Graph, NodeId, TensorType, ValueId};
use kiln_ir::ops::{Host, Op};
use kiln_ir::tensor::Tensor;
use kiln_ir::{DType, Symbol};
use std::collections::HashMap;

/// What an input of a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Known now: the body holds it as a constant.
    Known,
    /// The number of the turn.
    Counter,
    /// The n-th state.
    State(usize),
    /// The element of the n-th scanned operand.
    Scanned(usize),
    /// A value of the graph around it.
    Outside(ValueId),
}

/// A body, cut into work.
#[derive(Debug)]
pub struct Body {
    /// Its graph, work and kernels.
    pub cut: Cut,
    /// What its inputs are, in order.
    pub feeds: Vec<Feed>,
}

/// What becomes of a host op that holds graphs.
#[derive(Debug)]
pub enum Region {
    /// `if`: both branches.
    If {
        /// Where the condition holds.
        then: Box<Body>,
        /// Where it does not.
        otherwise: Box<Body>,
    },
    /// `loop`: operands are the number of turns, whether there is a first one, and the states.
    Loop {
        /// A turn: gives whether there is another one, the states, and what is collected.
        body: Box<Body>,
        /// Number of states.
        states: usize,
    },
    /// `scan`: operands are states and what is scanned along the first axis.
    Scan {
        /// A turn: gives the states and what is collected.
        body: Box<Body>,
        /// Number of states.
        states: usize,
        /// For each scanned operand whether the last element is first.
        backward: Vec<bool>,
        /// For each collected result whether the first turn's element is last.
        out_backward: Vec<bool>,
    },
}

impl Region {
    /// Its bodies.
    pub fn bodies_mut(&mut self) -> Vec<&mut Body> {
        match self {
            Region::If { then, otherwise } => vec![&mut **then, &mut **otherwise],
            Region::Loop { body, .. } | Region::Scan { body, .. } => vec![&mut **body],
        }
    }
}

/// The host nodes among `work` whose bodies become steps.
///
/// # Errors
/// A pass fails on a body.
pub fn regions(
    graph: &Graph,
    hosts: impl Iterator<Item = NodeId>,
    targets: &mut [Target<'_>],
) -> Result<HashMap<NodeId, Region>, PassError> {
    let mut regions = HashMap::new();
    // Where kernels run on a GPU the host takes a branch; the turns of a loop would have it wait for each.
    let on_gpus = targets.iter().any(|t| t.machine.gpu.is_some());
    for id in hosts {
        let Op::Host(host) = &graph.node(id).op else { continue };
        if host.is_region()
            && (!on_gpus || host.function() == "if")
            && let Some(region) = lowered(graph, id, host, targets)?
        {
            regions.insert(id, region);
        }
    }
    Ok(regions)
}

fn lowered(graph: &Graph, id: NodeId, host: &Host, targets: &mut [Target<'_>]) -> Result<Option<Region>, PassError> {
    let node = graph.node(id);
    let numeric = node.inputs.iter().chain(&node.outputs).all(|&v| graph.ty(v).dtype.is_bytes());
    let a = &host.attributes;
    let outside = |values: &[ValueId]| values.iter().map(|&v| Feed::Outside(v)).collect::<Vec<_>>();
    match host.function() {
        _ if !numeric => Ok(None),
        "if" => {
            let (Ok(then), Ok(otherwise)) = (a.graph("then"), a.graph("else")) else { return Ok(None) };
            let Some((&condition, rest)) = node.inputs.split_first() else { return Ok(None) };
            let Some((first, second)) = rest.split_at_checked(then.inputs.len()) else { return Ok(None) };
            let one = graph.ty(condition).elements().as_const() == Some(1);
            let fits = |branch: &Graph| {
                let same = |(&(_, v), &result): (&(_, ValueId), &ValueId)| {
                    let (a, b) = (branch.ty(v), graph.ty(result));
                    a.dtype == b.dtype && a.rank() == b.rank()
                };
                branch.outputs.len() == node.outputs.len() && branch.outputs.iter().zip(&node.outputs).all(same)
            };
            if !one || !fits(then) || !fits(otherwise) {
                return Ok(None);
            }
            let Some(then) = body(graph, then, outside(first), targets)? else { return Ok(None) };
            let Some(otherwise) = body(graph, otherwise, outside(second), targets)? else { return Ok(None) };
            Ok(Some(Region::If { then, otherwise }))
        }
        "loop" => {
            let (Ok(turn), Ok(states)) = (a.graph("body"), a.size("carried")) else { return Ok(None) };
            let Some((first, rest)) = node.inputs.get(2..).and_then(|v| v.split_at_checked(states)) else {
                return Ok(None);
            };
            let one = |v: &ValueId| graph.ty(*v).elements().as_const() == Some(1);
            let again = turn.outputs.first().is_some_and(|(_, v)| turn.ty(*v).elements().as_const() == Some(1));
            let inputs: Vec<&TensorType> = turn.inputs.iter().skip(2).map(|&v| turn.ty(v)).collect();
            if !again || !node.inputs.iter().take(2).all(one) || !keeps(graph, id, turn, first, &inputs, 1) {
                return Ok(None);
            }
            let mut feeds = vec![Feed::Counter, Feed::Known];
            feeds.extend((0..states).map(Feed::State));
            feeds.extend(outside(rest));
            let body = body(graph, turn, feeds, targets)?;
            Ok(body.map(|body| Region::Loop { body, states }))
        }
        "scan" => {
            let (Ok(turn), Ok(states)) = (a.graph("body"), a.size("states")) else { return Ok(None) };
            let list = |name: &str| a.sizes(name).unwrap_or_default();
            let (axes, out_axes) = (list("axes"), list("out_axes"));
            let Some((first, rest)) = node.inputs.split_at_checked(states) else { return Ok(None) };
            let Some((scanned, rest)) = rest.split_at_checked(axes.len()) else { return Ok(None) };
            let inputs: Vec<&TensorType> = turn.inputs.iter().map(|&v| turn.ty(v)).collect();
            let element = |(&v, part): (&ValueId, &&TensorType)| {
                let ty = graph.ty(v);
                ty.dims.get(1..) == Some(part.dims.as_slice()) && ty.dtype == part.dtype
            };
            let elements = scanned.iter().zip(inputs.iter().skip(states)).all(element);
            let along_first = axes.iter().chain(&out_axes).all(|&axis| axis == 0);
            if !along_first || !elements || !keeps(graph, id, turn, first, &inputs, 0) {
                return Ok(None);
            }
            let mut feeds: Vec<Feed> = (0..states).map(Feed::State).collect();
            feeds.extend((0..axes.len()).map(Feed::Scanned));
            feeds.extend(outside(rest));
            let flags = |name: &str| list(name).into_iter().map(|f| f == 1).collect::<Vec<bool>>();
            let (backward, out_backward) = (flags("backward"), flags("out_backward"));
            if backward.len() != axes.len() || states + out_backward.len() != node.outputs.len() {
                return Ok(None);
            }
            let body = body(graph, turn, feeds, targets)?;
            Ok(body.map(|body| Region::Scan { body, states, backward, out_backward }))
        }
        _ => Ok(None),
    }
}

/// Whether states have one type before, during and after the loop, and what is collected has that of its results' elements. The first
/// `skip` outputs of a turn are neither.
fn keeps(graph: &Graph, id: NodeId, turn: &Graph, first: &[ValueId], inputs: &[&TensorType], skip: usize) -> bool {
    let results = &graph.node(id).outputs;
    let made: Vec<&TensorType> = turn.outputs.iter().skip(skip).map(|(_, v)| turn.ty(*v)).collect();
    if made.len() != results.len() || inputs.len() < first.len() || results.len() < first.len() {
        return false;
    }
    let same = |a: &TensorType, b: &TensorType| a.dtype == b.dtype && a.dims == b.dims;
    let state = |(n, &v): (usize, &ValueId)| {
        let ty = graph.ty(v);
        same(ty, inputs[n]) && same(ty, made[n]) && same(ty, graph.ty(results[n]))
    };
    let collected = |(&result, part): (&ValueId, &&TensorType)| {
        let ty = graph.ty(result);
        ty.dtype == part.dtype && ty.dims.get(1..) == Some(part.dims.as_slice())
    };
    first.iter().enumerate().all(state) && results.iter().zip(&made).skip(first.len()).all(collected)
}

/// A body with what is known of its inputs put in, optimised and cut into work; nothing where the data decides a type in it.
fn body(
    around: &Graph,
    body: &Graph,
    mut feeds: Vec<Feed>,
    targets: &mut [Target<'_>],
) -> Result<Option<Box<Body>>, PassError> {
    let fail = |error| PassError::Graph { pass: "region", error };
    if feeds.len() != body.inputs.len() || !known_types(around, body) {
        return Ok(None);
    }
    let mut inner = body.clone();
    inner.symbols = around.symbols.clone();
    for (feed, &input) in feeds.iter_mut().zip(&body.inputs) {
        let constant = match feed {
            // The interpreter hands every turn of a loop this condition.
            Feed::Known => Tensor::new(DType::Bool, vec![], vec![1u8]).ok(),
            Feed::Outside(v) => around.constant(*v).cloned(),
            Feed::Counter | Feed::State(_) | Feed::Scanned(_) => None,
        };
        if let Some(constant) = constant {
            let dims_fit = inner.ty(input).shape().as_deref() == Some(constant.shape());
            if !dims_fit || inner.ty(input).dtype != constant.dtype() {
                return Ok(None);
            }
            let constant = inner.add_constant(constant);
            inner.replace(input, constant);
            *feed = Feed::Known;
        }
    }
    if let Some(error) = inner.verify().into_iter().next() {
        return Err(fail(error));
    }
    // What a loop carries round would carry each round's rounding with it. How products of f32 are multiplied is the target's
    // matter, here as elsewhere (ADR 52).
    let inner = optimise(inner, Precision::F32, &mut |_, _, _| Ok(()))?;
    Ok(Some(Box::new(Body { cut: cut(&inner, targets)?, feeds })))
}

/// Whether all dims in a graph are over symbols of the graph around it.
fn known_types(around: &Graph, body: &Graph) -> bool {
    let mut known = true;
    let mut look = |s: &Symbol| known &= around.symbols.contains_key(s);
    for (_, value) in body.values() {
        value.ty.dims.iter().for_each(|d| d.for_each_symbol(&mut look));
    }
    for (_, node) in body.nodes() {
        node.op.operator().attributes().for_each_symbol(&mut look);
    }
    known
}

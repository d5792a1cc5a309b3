//! `Loop` and `Scan`: the body once for each step where their number is known and small, else a graph of its own.
//!
//! Invariant: the work of an import stays bounded: a body is repeated at most [`STEPS`] times.

use super::run_time;
use super::{Spec, onnx};
use crate::onnx::import::{Bound, Context, Failure, Outputs};
use crate::onnx::model::Graph;
use kiln_ir::Expr;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Slice};
use kiln_ir::{DType, Tensor};

/// Steps that are unrolled.
const STEPS: i64 = 256;

/// Nodes that unrolling may lead to.
const NODES: usize = 1 << 16;

const SCAN: &[&str] = &[
    "body",
    "directions",
    "num_scan_inputs",
    "scan_input_axes",
    "scan_input_directions",
    "scan_output_axes",
    "scan_output_directions",
];

pub(super) const OPS: &[Spec] = &[onnx("Loop", 1, &["body"], repeat), onnx("Scan", 8, SCAN, scan)];

/// Whether a body is repeated in place that many times.
fn is_small(steps: i64, body: &Graph) -> bool {
    let count = usize::try_from(steps).unwrap_or(0);
    steps <= STEPS && count.saturating_mul(body.nodes.len()) <= NODES
}

/// The results of a body's step, of which there must be `count`.
fn step(cx: &mut Context, body: &Graph, inputs: Vec<Bound>, count: usize) -> Result<Vec<Bound>, Failure> {
    let outputs = cx.inline(body, inputs)?.0;
    if outputs.len() == count {
        Ok(outputs)
    } else {
        Err(Failure::invalid(format!("the body has {} outputs, not {count}", outputs.len())))
    }
}

fn tensor(bound: &Bound) -> Result<ValueId, Failure> {
    match bound {
        Bound::Tensor(v) => Ok(*v),
        Bound::Sequence(_) | Bound::Optional(_) | Bound::Value(..) => Err(Failure::invalid("what is collected must be tensors")),
    }
}

/// Tensors of one type one after another along a new axis.
fn stack(cx: &mut Context, parts: &[ValueId], axis: usize) -> Result<ValueId, Failure> {
    let mut slices = Vec::with_capacity(parts.len());
    for &part in parts {
        let mut dims = cx.dims(part);
        dims.insert(axis.min(dims.len()), Expr::from(1i64));
        slices.push(cx.reshape(part, dims)?);
    }
    match slices.as_slice() {
        [only] => Ok(*only),
        all => cx.add(Concat { axis }, all),
    }
}

fn repeat(cx: &mut Context) -> Result<Outputs, Failure> {
    match cx.attempt(unrolled)? {
        Some(outputs) => Ok(outputs),
        None => {
            let unknown = |i: usize| cx.optional(i).ok().flatten().filter(|&v| cx.contents(v).is_none());
            match unknown(0).or_else(|| unknown(1)) {
                Some(v) => run_time::unless_known(cx, v, run_time::repeat),
                None => run_time::repeat(cx),
            }
        }
    }
}

/// The loop step by step; nothing where how many there are is not known, or too many.
fn unrolled(cx: &mut Context) -> Result<Option<Outputs>, Failure> {
    let node = cx.node;
    let body = node.graph("body")?;
    let limit = match cx.optional(0)? {
        Some(v) => match cx.contents(v).and_then(|c| c.first().and_then(Expr::as_const)) {
            Some(limit) => Some(limit),
            None => return Ok(None),
        },
        None => None,
    };
    let mut go = match cx.optional(1)? {
        Some(v) => match cx.constant_of(v).and_then(Tensor::to_i64).and_then(|v| v.first().copied()) {
            Some(known) => known != 0,
            None => return Ok(None),
        },
        None => true,
    };
    let mut carried: Vec<Bound> = Vec::new();
    for i in 2..cx.node.inputs.len() {
        carried.push(cx.bound(i).cloned().ok_or_else(|| Failure::invalid(format!("input {i} is missing")))?);
    }
    let collected = body.outputs.len().checked_sub(1 + carried.len());
    let collected = collected.ok_or_else(|| Failure::invalid("the body has fewer outputs than values are carried"))?;
    if limit.is_some_and(|l| !is_small(l, body)) || collected > 0 && (!go || limit.is_some_and(|l| l < 1)) {
        return Ok(None);
    }
    let mut scans: Vec<Vec<ValueId>> = vec![Vec::new(); collected];
    let mut done = 0;
    while go && limit.is_none_or(|l| done < l) {
        if !is_small(done + 1, body) {
            return Ok(None);
        }
        let count = cx.constant(Tensor::from_i64(&[], &[done])?);
        let condition = cx.constant(Tensor::new(DType::Bool, vec![], vec![1u8])?);
        let mut inputs = vec![Bound::Tensor(count), Bound::Tensor(condition)];
        inputs.extend(carried.iter().cloned());
        let outputs = step(cx, body, inputs, body.outputs.len())?;
        // Only the condition after the last step need not be known.
        let condition = tensor(&outputs[0])?;
        let known = cx.constant_of(condition).and_then(Tensor::to_i64).and_then(|v| v.first().copied());
        carried = outputs[1..=carried.len()].to_vec();
        for (scan, out) in scans.iter_mut().zip(&outputs[1 + carried.len()..]) {
            scan.push(tensor(out)?);
        }
        done += 1;
        go = match known {
            Some(v) => v != 0,
            None if limit == Some(done) => true,
            None => return Ok(None),
        };
    }
    for scan in scans {
        // Parts of different shapes, or none: what there is to say is said when the loop runs.
        let same = |v: &ValueId| cx.ty(*v) == cx.ty(scan[0]);
        if scan.is_empty() || !scan.iter().all(same) {
            return Ok(None);
        }
        carried.push(Bound::Tensor(stack(cx, &scan, 0)?));
    }
    Ok(Some(Outputs(carried)))
}

fn scan(cx: &mut Context) -> Result<Outputs, Failure> {
    let node = cx.node;
    let body = node.graph("body")?;
    // Version 8 has a batch axis and lengths in front.
    if cx.opset() < 9 {
        return scan_batched(cx, body);
    }
    let inputs = cx.all_inputs()?;
    run(cx, body, &inputs)
}

fn run(cx: &mut Context, body: &Graph, inputs: &[ValueId]) -> Result<Outputs, Failure> {
    let scanned = cx.node.int("num_scan_inputs")?;
    let states = usize::try_from(scanned).ok().filter(|&n| n >= 1).and_then(|n| inputs.len().checked_sub(n));
    let states = states.ok_or_else(|| cx.node.attribute_value("num_scan_inputs", format!("{scanned} is out of range")))?;
    let outputs = body.outputs.len().checked_sub(states);
    let outputs = outputs.ok_or_else(|| Failure::invalid("the body has fewer outputs than states"))?;
    let list = |name: &str, count: usize| -> Result<Vec<i64>, Failure> {
        match cx.node.ints_opt(name)? {
            None => Ok(vec![0; count]),
            Some(v) if v.len() == count => Ok(v.to_vec()),
            Some(v) => Err(cx.node.attribute_value(name, format!("has {} entries, not {count}", v.len())).into()),
        }
    };
    let directions = match cx.node.attribute("directions") {
        Some(_) => list("directions", inputs.len() - states)?,
        None => list("scan_input_directions", inputs.len() - states)?,
    };
    let (axes, out_directions) = (list("scan_input_axes", inputs.len() - states)?, list("scan_output_directions", outputs)?);
    let out_axes = list("scan_output_axes", outputs)?;
    let mut extent = None;
    let mut sources = Vec::new();
    for (n, &x) in inputs[states..].iter().enumerate() {
        let axis = cx.axis(axes[n], cx.rank(x))?;
        let d = cx.dims(x)[axis].clone();
        if extent.replace(d.clone()).is_some_and(|e| e.as_const().zip(d.as_const()).is_some_and(|(e, d)| e != d)) {
            return Err(Failure::invalid("the scanned inputs have different lengths"));
        }
        sources.push((x, axis, directions[n] != 0));
    }
    let known = extent.as_ref().and_then(Expr::as_const).filter(|&n| n > 0 && is_small(n, body));
    let Some(steps) = known.and_then(|n| usize::try_from(n).ok()) else {
        let lists = run_time::Lists { directions: &directions, axes: &axes, out_axes: &out_axes, out_directions: &out_directions };
        return run_time::scan(cx, body, inputs, states, &extent.unwrap_or_default(), &lists);
    };
    let mut carried: Vec<Bound> = inputs[..states].iter().map(|&v| Bound::Tensor(v)).collect();
    let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); outputs];
    for n in 0..steps {
        let mut arguments = carried.clone();
        for &(x, axis, backward) in &sources {
            arguments.push(Bound::Tensor(element(cx, x, axis, if backward { steps - 1 - n } else { n })?));
        }
        let mut made = step(cx, body, arguments, body.outputs.len())?;
        for (list, out) in collected.iter_mut().zip(made.drain(states..)) {
            list.push(tensor(&out)?);
        }
        carried = made;
    }
    for (n, mut parts) in collected.into_iter().enumerate() {
        if out_directions[n] != 0 {
            parts.reverse();
        }
        let first = parts.first().ok_or_else(|| Failure::unsupported("a scan without steps is not supported"))?;
        let axis = cx.axis(out_axes[n], cx.rank(*first) + 1)?;
        carried.push(Bound::Tensor(stack(cx, &parts, axis)?));
    }
    Ok(Outputs(carried))
}

/// Element `n` along an axis, without the axis.
fn element(cx: &mut Context, x: ValueId, axis: usize, n: usize) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(x);
    let mut starts = vec![Expr::default(); dims.len()];
    starts[axis] = Expr::from(n);
    dims[axis] = Expr::from(1i64);
    let rank = dims.len();
    let slice = cx.add(Slice { starts, steps: vec![1; rank], dims: dims.clone() }, &[x])?;
    dims.remove(axis);
    cx.reshape(slice, dims)
}

/// Version 8: every element of the batch on its own, one after another.
fn scan_batched(cx: &mut Context, body: &Graph) -> Result<Outputs, Failure> {
    if cx.bound(0).is_some() {
        return Err(Failure::unsupported("lengths of sequences are not supported"));
    }
    let inputs = (1..cx.node.inputs.len()).map(|i| cx.input(i)).collect::<Result<Vec<_>, _>>()?;
    let batch = inputs.first().and_then(|&v| cx.dims(v).first().cloned()).and_then(|d| d.as_const());
    let batch = batch.ok_or_else(|| Failure::unsupported("the batch size must be known; bind its symbol"))?;
    let mut results: Vec<Vec<ValueId>> = Vec::new();
    if batch < 1 || !is_small(batch, body) {
        return Err(Failure::unsupported(format!("{batch} elements of the batch are too many, or none")));
    }
    for n in 0..usize::try_from(batch).unwrap_or(0) {
        let one = inputs.iter().map(|&v| element(cx, v, 0, n)).collect::<Result<Vec<_>, _>>()?;
        for (i, out) in run(cx, body, &one)?.0.iter().enumerate() {
            if results.len() <= i {
                results.push(Vec::new());
            }
            results[i].push(tensor(out)?);
        }
    }
    let stacked = results.iter().map(|parts| stack(cx, parts, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(stacked.into())
}

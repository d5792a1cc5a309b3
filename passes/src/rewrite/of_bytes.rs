//! Quantized functions of one or two bytes, as tools write them around an addition, an activation or a change of scale: dequantized, computed
//! in floats and quantized again.
//!
//! Invariant: the new map has the same result as the nodes it replaces for every operand, shown by evaluating both at all of them: there are
//! 256 operands, or 65,536 pairs. What has a multiply-add is evaluated with one rounding and with two, as levels have it with or without
//! such an instruction.

use super::quantized::{all_integers, raised_to, range};
use super::{Operand, Patch, apply};
use crate::cost;
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{Map, Op};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, TypeError, UnaryOp};
use kiln_ir::tensor::Tensor;
use std::collections::HashMap;

/// Maps that are looked through, one above the other.
const MOST_MAPS: usize = 8;

/// Operations of such a function.
const MOST_CODE: usize = 64;

/// Tries at factors whose roundings fall right.
const MOST_TRIES: usize = 256;

/// How near to the middle between two steps a value must be for a try to be checked there first.
const NEAR: f64 = 1e-3;

/// Different functions of a graph that are tried: each is evaluated at all of its operands a few times.
const MOST_FUNCTIONS: usize = 1000;

/// Replaces quantized functions of one or two bytes by cheaper ones with the same results.
///
/// # Errors
/// A patch does not fit, or the graph has a cycle.
pub fn functions_of_bytes(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    // A result of bytes ends each function, so none becomes part of another: one sweep is enough.
    let mut known: HashMap<(String, Vec<DType>, DType), Option<Code>> = HashMap::new();
    for id in graph.live_order()? {
        let Some(found) = Function::of(&graph, id) else { continue };
        let result = found.result;
        let types: Vec<DType> = found.operands.iter().map(|&v| graph.ty(v).dtype).collect();
        let key = (found.code.to_string(), types, graph.ty(result).dtype);
        let body = match known.get(&key) {
            Some(body) => body.clone(),
            None if known.len() < MOST_FUNCTIONS => {
                let body = cheaper(&found.code, &key.1, key.2);
                known.insert(key, body.clone());
                body
            }
            None => None,
        };
        if let Some(body) = body {
            let operands = found.operands.iter().map(|&v| Operand::Value(v)).collect();
            let nodes = vec![(Map { body }.into(), operands)];
            apply(&mut graph, id, Patch { nodes, replaces: result, with: None, also: found.nodes })?;
        }
    }
    graph.compact()
}

/// A function of one or two bytes, argument n being the n-th.
struct Function {
    code: Code,
    operands: Vec<ValueId>,
    /// Nodes whose work it does.
    nodes: Vec<NodeId>,
    /// The values that are in the code.
    known: HashMap<ValueId, Id<Scalar>>,
    /// What it makes.
    result: ValueId,
}

impl Function {
    /// What the map of a node computes, with the maps before it, if that is such a function.
    fn of(graph: &Graph, id: NodeId) -> Option<Function> {
        let made = *graph.node(id).outputs.first()?;
        range(graph.ty(made).dtype)?;
        let (operands, nodes, known) = (vec![], vec![], HashMap::new());
        let mut found = Function { code: Code::new(), operands, nodes, known, result: made };
        let result = found.add(graph, id, MOST_MAPS)?;
        found.code.set_result(result);
        let whole = found.operands.iter().all(|&v| graph.ty(v).dims == graph.ty(made).dims);
        let rounds = found.code.nodes().any(|(_, node)| matches!(node, Scalar::Unary(UnaryOp::Round, _)));
        (whole && rounds && !found.operands.is_empty()).then_some(found)
    }

    /// Adds the code of a map and of the maps that it reads.
    fn add(&mut self, graph: &Graph, id: NodeId, depth: usize) -> Option<Id<Scalar>> {
        let node = graph.node(id);
        let Op::Map(Map { body }) = &node.op else { return None };
        let depth = depth.checked_sub(1)?;
        let mut operands = Vec::new();
        for n in body.arg_types().into_keys() {
            let v = *node.inputs.get(n)?;
            let value = if let Some(t) = graph.constant(v) {
                let one = (t.len() == 1).then(|| Constant::load(t.dtype(), t.bytes(), 0)).flatten()?;
                self.code.constant(one)
            } else if range(graph.ty(v).dtype).is_some() {
                let at = self.operands.iter().position(|&o| o == v).unwrap_or(self.operands.len());
                if at == self.operands.len() {
                    self.operands.push(v);
                }
                self.code.arg(at, graph.ty(v).dtype)
            } else if let Some(&value) = self.known.get(&v) {
                value
            } else {
                let before = self.operands.len();
                let value = self.add(graph, graph.producer(v)?, depth)?;
                // What others read too is computed anyway; one byte more is a load and a conversion.
                let alone = graph.users(v).len() == 1 && !graph.is_output(v);
                if !alone && self.operands.len() > before + 1 {
                    return None;
                }
                self.known.insert(v, value);
                value
            };
            operands.push((n, value));
        }
        self.nodes.push(id);
        let fits = self.operands.len() <= 2 && self.code.len() + body.len() <= MOST_CODE;
        let operand = |n: usize| operands.iter().find(|(m, _)| *m == n).map(|(_, value)| *value);
        fits.then_some(())?;
        let inlined = self.code.inline(body, &mut |_, node, _| match node {
            Scalar::Arg(n) => operand(*n).map(Some).ok_or_else(|| TypeError(format!("operand {n} is missing"))),
            _ => Ok(None),
        });
        inlined.ok()
    }
}

/// All values of operands of these types, so that they broadcast to all combinations.
fn everything(types: &[DType]) -> Option<Vec<Tensor>> {
    let last = types.len().checked_sub(1)?;
    let of = |(n, &dtype): (usize, &DType)| {
        let all = all_integers(dtype)?;
        if n == last { Some(all) } else { all.reshaped(&[256, 1]).ok() }
    };
    types.iter().enumerate().map(of).collect()
}

/// The results of code at all values of its operands.
fn results(code: &Code, all: &[Tensor]) -> Option<Vec<i64>> {
    let made = eval_op(&Map { body: code.clone() }.into(), all).ok()?;
    made.first()?.to_i64()
}

/// A sum of multiples of the operands and a number.
#[derive(Clone, Copy)]
struct Linear {
    factors: [f64; 2],
    add: f64,
}

impl Linear {
    /// The node as such a sum in exact arithmetic, clips left out.
    fn of(code: &Code, id: Id<Scalar>) -> Option<Linear> {
        let mut known: Vec<Option<Linear>> = Vec::new();
        for (_, node) in code.nodes() {
            known.push(Linear::of_node(node, &|id| known.get(id.index()).copied().flatten()));
        }
        known.get(id.index()).copied().flatten()
    }

    /// The same of a node, given that of its operands.
    fn of_node(node: &Scalar, of: &dyn Fn(Id<Scalar>) -> Option<Linear>) -> Option<Linear> {
        let constant = |x: &Linear| x.factors == [0.0; 2];
        let each = |x: &Linear, f: &dyn Fn(f64) -> f64| Linear { factors: x.factors.map(f), add: f(x.add) };
        Some(match node {
            Scalar::Arg(n) => {
                let mut factors = [0.0; 2];
                *factors.get_mut(*n)? = 1.0;
                Linear { factors, add: 0.0 }
            }
            Scalar::Const(c) => Linear { factors: [0.0; 2], add: c.as_f64() },
            // Conversions to bytes and back are none that leave numbers as they are.
            Scalar::Cast(DType::F32 | DType::I32, a) => of(*a)?,
            Scalar::Binary(op, a, b) => {
                let (x, y) = (of(*a)?, of(*b)?);
                match op {
                    BinaryOp::Add => x.plus(&y),
                    BinaryOp::Sub => x.plus(&each(&y, &|v| -v)),
                    BinaryOp::Mul if constant(&y) => each(&x, &|v| v * y.add),
                    BinaryOp::Mul if constant(&x) => each(&y, &|v| v * x.add),
                    BinaryOp::Div if constant(&y) => each(&x, &|v| v / y.add),
                    // The least and the greatest result say where it is cut off.
                    BinaryOp::Max | BinaryOp::Min if constant(&y) => x,
                    BinaryOp::Max | BinaryOp::Min if constant(&x) => y,
                    _ => return None,
                }
            }
            Scalar::Fma(a, b, c) => {
                let (x, y, z) = (of(*a)?, of(*b)?, of(*c)?);
                let product = match (constant(&x), constant(&y)) {
                    (_, true) => each(&x, &|v| v * y.add),
                    (true, false) => each(&y, &|v| v * x.add),
                    (false, false) => return None,
                };
                product.plus(&z)
            }
            Scalar::Unary(UnaryOp::Round, a) => of(*a)?,
            _ => return None,
        })
    }

    fn plus(&self, other: &Linear) -> Linear {
        let factors = std::array::from_fn(|n| self.factors[n] + other.factors[n]);
        Linear { factors, add: self.add + other.add }
    }
}

/// `shift + round(clip(sum of factor * operand + add))` as an integer.
struct Steps {
    factors: Vec<f32>,
    add: f32,
    low: f32,
    high: f32,
    shift: i64,
}

impl Steps {
    /// The sum in f32, with one rounding for each product or two.
    fn sum(&self, at: [i64; 2], fused: bool) -> f32 {
        self.factors.iter().zip(at).fold(self.add, |sum, (&factor, x)| match fused {
            true => factor.mul_add(x as f32, sum),
            false => factor * x as f32 + sum,
        })
    }

    fn at(&self, at: [i64; 2], fused: bool) -> i64 {
        let sum = self.sum(at, fused);
        let raised = if sum > self.low { sum } else { self.low };
        raised.min(self.high).round_ties_even() as i64 + self.shift
    }

    /// The same as code.
    fn code(&self, types: &[DType], to: DType, fused: bool) -> Result<Code, TypeError> {
        let mut code = Code::new();
        let mut sum = code.float(DType::F32, f64::from(self.add));
        for (n, (&factor, &dtype)) in self.factors.iter().zip(types).enumerate() {
            let x = code.arg(n, dtype);
            let x = code.cast(DType::F32, x)?;
            let factor = code.float(DType::F32, f64::from(factor));
            sum = match fused {
                true => code.fma(x, factor, sum)?,
                false => {
                    let product = code.binary(BinaryOp::Mul, x, factor)?;
                    code.binary(BinaryOp::Add, product, sum)?
                }
            };
        }
        let [low, high] = [self.low, self.high].map(|bound| code.float(DType::F32, f64::from(bound)));
        let raised = raised_to(&mut code, sum, low)?;
        let clipped = code.binary(BinaryOp::Min, raised, high)?;
        let rounded = code.unary(UnaryOp::Round, clipped)?;
        let mut value = code.cast(DType::I32, rounded)?;
        if self.shift != 0 {
            let shift = code.constant(Constant::int(DType::I32, self.shift));
            value = code.binary(BinaryOp::Add, value, shift)?;
        }
        let result = code.cast(to, value)?;
        code.set_result(result);
        Ok(code)
    }
}

/// A float so many floats away.
fn neighbour(x: f32, away: i32) -> f32 {
    match x.is_finite() && x != 0.0 {
        true => f32::from_bits(x.to_bits().wrapping_add_signed(away)),
        false => x,
    }
}

/// Distances from what is nearest, the least ones first.
fn distances() -> Vec<[i32; 3]> {
    let one = -3..=3i32;
    let mut all: Vec<[i32; 3]> =
        one.clone().flat_map(|a| one.clone().flat_map(move |b| (-3..=3).map(move |c| [a, b, c]))).collect();
    all.sort_by_key(|d| d.iter().map(|n| n.abs()).sum::<i32>());
    all.truncate(MOST_TRIES);
    all
}

/// Multiply-adds with the results of a function that quantizes a sum of multiples of its operands.
fn multiply_adds(code: &Code, types: &[DType], wanted: &[i64]) -> Option<Steps> {
    // The rounded sum, and what is added to it.
    let (zero, scaled) = quantized_sum(code)?;
    let line = Linear::of(code, scaled)?;
    let (least, most) = (*wanted.iter().min()?, *wanted.iter().max()?);
    let starts: Vec<i64> = types.iter().map(|&t| range(t).map(|(low, _)| low)).collect::<Option<_>>()?;
    let at = |n: usize| -> [i64; 2] {
        match *starts.as_slice() {
            [a, b] => [a + (n / 256) as i64, b + (n % 256) as i64],
            [a] => [a + n as i64, 0],
            _ => [0, 0],
        }
    };
    // Where a rounding may decide.
    let near: Vec<usize> = (0..wanted.len())
        .filter(|&n| {
            let exact = at(n).iter().zip(line.factors).fold(line.add, |sum, (&x, factor)| sum + x as f64 * factor);
            ((exact - exact.floor()) - 0.5).abs() < NEAR
        })
        .collect();
    // With the zero point in the sum an odd one turns halves the other way.
    // Where the last try that was wrong was wrong the next ones mostly are.
    let mut wrong = 0;
    for shift in [0, zero].into_iter().take(if zero == 0 { 1 } else { 2 }) {
        let add = (line.add + (zero - shift) as f64) as f32;
        for [a, b, c] in distances() {
            let by = [a, b];
            let factors: Vec<f32> = (0..types.len()).map(|n| neighbour(line.factors[n] as f32, by[n])).collect();
            let steps = Steps {
                factors,
                add: add + c as f32 / (1 << 20) as f32,
                low: (least - shift) as f32,
                high: (most - shift) as f32,
                shift,
            };
            let right = |n: usize| [true, false].iter().all(|&fused| steps.at(at(n), fused) == wanted[n]);
            let all = || [wrong].into_iter().chain(near.iter().copied()).chain(0..wanted.len());
            match all().find(|&n| !right(n)) {
                Some(n) => wrong = n,
                None => return Some(steps),
            }
        }
    }
    None
}

/// What is added to a rounded number on the way to the result, and the number.
fn quantized_sum(code: &Code) -> Option<(i64, Id<Scalar>)> {
    let (mut zero, mut at) = (0f64, code.result());
    for _ in 0..code.len() {
        let constant = |id: Id<Scalar>| match code.node(id) {
            Scalar::Const(c) => Some(c.as_f64()),
            _ => None,
        };
        at = match code.node(at) {
            // No zero point of a byte is larger.
            Scalar::Unary(UnaryOp::Round, sum) => return (zero.abs() <= 255.0).then_some((zero as i64, *sum)),
            Scalar::Cast(_, a) => *a,
            Scalar::Binary(BinaryOp::Max | BinaryOp::Min, a, b) => {
                if constant(*b).is_some() {
                    *a
                } else {
                    *b
                }
            }
            Scalar::Select(_, a, b) => {
                if constant(*b).is_some() {
                    *a
                } else {
                    *b
                }
            }
            Scalar::Binary(BinaryOp::Add, a, b) => {
                zero += constant(*b)?;
                *a
            }
            _ => return None,
        };
    }
    None
}

/// The code with its divisions by constants as products with numbers near their inverses, where it has any.
fn with_products(code: &Code, away: i32) -> Option<Code> {
    let (mut made, mut any) = (Code::new(), false);
    let inlined = made.inline(code, &mut |made, node, dtype| {
        let Scalar::Binary(BinaryOp::Div, a, b) = node else { return Ok(None) };
        let Scalar::Const(by) = made.node(*b) else { return Ok(None) };
        if dtype != DType::F32 {
            return Ok(None);
        }
        let inverse = neighbour((1.0 / by.as_f64()) as f32, away);
        let inverse = made.float(DType::F32, f64::from(inverse));
        any = true;
        made.binary(BinaryOp::Mul, *a, inverse).map(Some)
    });
    made.set_result(inlined.ok()?);
    any.then_some(made)
}

/// Cheaper code with the results of a function of operands of these types.
fn cheaper(code: &Code, types: &[DType], to: DType) -> Option<Code> {
    let all = everything(types)?;
    let cost_before = cost::of_code(code);
    // Six operations that quantize a sum, and two for each operand.
    let divides = code.nodes().any(|(_, node)| matches!(node, Scalar::Binary(BinaryOp::Div, ..)));
    if !divides && cost_before <= 6 + 2 * types.len() as u64 {
        return None;
    }
    let wanted = results(code, &all)?;
    let same = |code: &Code| results(code, &all).is_some_and(|made| made == wanted);
    let sum = || {
        let steps = multiply_adds(code, types, &wanted)?;
        let [once, twice] = [true, false].map(|fused| steps.code(types, to, fused).ok());
        once.filter(|once| same(once) && twice.is_some_and(|twice| same(&twice)))
    };
    let product = || {
        let away = (0..8).map(|n| if n % 2 == 0 { n / 2 } else { -(n + 1) / 2 });
        away.map_while(|n| with_products(code, n)).find(same)
    };
    let cheap = |made: &Code| cost::of_code(made) < cost_before;
    sum().filter(cheap).or_else(product).filter(cheap)
}

#[cfg(test)]
mod tests;

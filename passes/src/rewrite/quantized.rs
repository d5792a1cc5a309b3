//! What quantized values look like in a graph, whichever ONNX form they come from: maps that make numbers of 8-bit integers, and maps
//! that make 8-bit integers of numbers.
//!
//! Invariant: what is found here is what the node computes, for every value of its operands.

use super::Operand;
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{Map, Op};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, TypeError, UnaryOp};
use kiln_ir::tensor::Tensor;

/// `(x - zero) * scale`, or `x - zero` as an i32.
pub(super) struct Quantized {
    /// The integers.
    pub x: ValueId,
    /// What is taken off them.
    pub zero: Option<ValueId>,
    /// What the difference is multiplied with.
    pub scale: Option<ValueId>,
    /// The map.
    pub node: NodeId,
}

/// The operand that a node of a map's body is, converted or not.
pub(super) fn argument(body: &Code, id: Id<Scalar>) -> Option<usize> {
    match body.node(id) {
        Scalar::Arg(n) => Some(*n),
        _ => None,
    }
}

/// The operand whose conversion to a type the node is.
pub(super) fn converted(body: &Code, id: Id<Scalar>, to: DType) -> Option<usize> {
    match body.node(id) {
        Scalar::Cast(found, a) if *found == to => argument(body, *a),
        _ => None,
    }
}

/// A value that a map makes of 8-bit integers.
pub(super) fn quantized(graph: &Graph, v: ValueId) -> Option<Quantized> {
    let id = graph.producer(v)?;
    let node = graph.node(id);
    let Op::Map(Map { body }) = &node.op else { return None };
    let input = |n: usize| node.inputs.get(n).copied();
    // The integers, and what is subtracted from them.
    let centred = |at: Id<Scalar>| match body.node(at) {
        Scalar::Binary(BinaryOp::Sub, x, z) => {
            Some((converted(body, *x, DType::I32)?, Some(converted(body, *z, DType::I32)?)))
        }
        _ => Some((converted(body, at, DType::I32)?, None)),
    };
    let result = body.result();
    let (x, zero, scale) = match body.node(result) {
        Scalar::Binary(BinaryOp::Mul, value, scale) => {
            let (x, zero) = match body.node(*value) {
                Scalar::Cast(DType::F32, inner) => match argument(body, *inner) {
                    Some(x) => (x, None),
                    None => centred(*inner)?,
                },
                _ => return None,
            };
            (x, zero, Some(argument(body, *scale)?))
        }
        _ => {
            let (x, zero) = centred(result)?;
            (x, zero, None)
        }
    };
    let x = input(x)?;
    let zero = zero.map(input).map_or(Some(None), |z| z.map(Some))?;
    let scale = scale.map(input).map_or(Some(None), |s| s.map(Some))?;
    let ty = graph.ty(x);
    let same = ty.dims == graph.ty(v).dims && matches!(ty.dtype, DType::U8 | DType::I8);
    let floats = scale.is_none_or(|s| graph.ty(s).dtype == DType::F32);
    (same && floats).then_some(Quantized { x, zero, scale, node: id })
}

/// The only element of a constant.
pub(super) fn scalar(graph: &Graph, v: ValueId) -> Option<Constant> {
    let t = graph.constant(v)?;
    (t.len() == 1).then(|| Constant::load(t.dtype(), t.bytes(), 0)).flatten()
}

pub(super) fn is_scalar(graph: &Graph, v: ValueId) -> bool {
    graph.ty(v).elements().as_const() == Some(1)
}

/// `to_u8(min(max(round(y / scale) + zero, 0), 255))`, or the same of i8, with one positive scale.
pub(super) struct Quantization {
    /// The numbers.
    pub y: ValueId,
    /// The step between neighbouring integers.
    pub scale: f64,
    /// The integer that stands for 0.
    pub zero: i64,
    /// The type of the integers.
    pub to: DType,
}

/// A map that makes 8-bit integers of numbers.
pub(super) fn quantization(graph: &Graph, id: NodeId) -> Option<Quantization> {
    let node = graph.node(id);
    let Op::Map(Map { body }) = &node.op else { return None };
    let Scalar::Cast(to @ (DType::U8 | DType::I8), clamped) = body.node(body.result()) else { return None };
    let constant = |id: Id<Scalar>| match body.node(id) {
        Scalar::Const(c) => Some(c.as_f64()),
        _ => None,
    };
    let (low, high) = range(*to)?;
    let Scalar::Binary(BinaryOp::Min, raised, most) = body.node(*clamped) else { return None };
    let Scalar::Binary(BinaryOp::Max, shifted, least) = body.node(*raised) else { return None };
    if constant(*most)? != high as f64 || constant(*least)? != low as f64 {
        return None;
    }
    let input = |n: usize| node.inputs.get(n).copied();
    let (rounded, zero) = match body.node(*shifted) {
        Scalar::Binary(BinaryOp::Add, rounded, z) => {
            (*rounded, scalar(graph, input(converted(body, *z, DType::F32)?)?)?.as_i64()?)
        }
        _ => (*shifted, 0),
    };
    let Scalar::Unary(UnaryOp::Round, scaled) = body.node(rounded) else { return None };
    let Scalar::Binary(BinaryOp::Div, y, s) = body.node(*scaled) else { return None };
    let (y, s) = (input(argument(body, *y)?)?, input(argument(body, *s)?)?);
    let scale = scalar(graph, s)?.as_f64();
    let same = graph.ty(y).dims == graph.ty(*node.outputs.first()?).dims && graph.ty(y).dtype == DType::F32;
    (same && scale > 0.0 && scale.is_finite()).then_some(Quantization { y, scale, zero, to: *to })
}

/// The greater of a float and a bound, the bound for a NaN: unlike `max` one instruction in wide code, whose result is surely a number.
pub(super) fn raised_to(code: &mut Code, x: Id<Scalar>, bound: Id<Scalar>) -> Result<Id<Scalar>, TypeError> {
    let above = code.binary(BinaryOp::Lt, bound, x)?;
    code.select(above, x, bound)
}

/// Activations that a map dequantizes with one scale and one zero point, both constant: the map's function of the integers is known.
pub(super) struct Line {
    /// The integers.
    pub x: ValueId,
    /// Their type.
    pub dtype: DType,
    /// The map.
    pub node: NodeId,
    /// What it makes of each integer, from the least on; they increase.
    pub values: Vec<f32>,
}

impl Line {
    /// Whether both are the same function of the same type.
    pub fn same(&self, other: &Line) -> bool {
        self.dtype == other.dtype && self.values == other.values
    }

    /// The integer that stands for a number, if one does exactly.
    pub fn integer(&self, value: f64) -> Option<i64> {
        let at = self.values.iter().position(|&v| f64::from(v) == value)?;
        Some(range(self.dtype)?.0 + i64::try_from(at).ok()?)
    }
}

/// The least and the greatest integer of an 8-bit type.
pub(super) fn range(dtype: DType) -> Option<(i64, i64)> {
    match dtype {
        DType::U8 => Some((0, 255)),
        DType::I8 => Some((-128, 127)),
        _ => None,
    }
}

/// All integers of an 8-bit type, from the least on.
pub(super) fn all_integers(dtype: DType) -> Option<Tensor> {
    let (low, high) = range(dtype)?;
    let bytes: Vec<u8> = (low..=high).map(|n| n as u8).collect();
    Tensor::new(dtype, vec![bytes.len()], bytes).ok()
}

/// The node's map with one tensor in the place of an operand and its other operands, which must be constants of one element.
pub(super) fn applied(graph: &Graph, id: NodeId, operand: ValueId, to: &Tensor) -> Option<Tensor> {
    let node = graph.node(id);
    matches!(node.op, Op::Map(_)).then_some(())?;
    let single = |&v: &ValueId| if v == operand { Some(to.clone()) } else { graph.constant(v)?.reshaped(&[]).ok() };
    let operands: Vec<Tensor> = node.inputs.iter().map(single).collect::<Option<_>>()?;
    eval_op(&node.op, &operands).ok()?.into_iter().next()
}

/// The operands of the node's map with another one in the place of one; its other ones are constants of one element.
pub(super) fn operands_with(graph: &Graph, id: NodeId, operand: ValueId, new: Operand) -> Option<Vec<Operand>> {
    let single = |&v: &ValueId| match v == operand {
        true => Some(new.clone()),
        false => Some(Operand::Constant(graph.constant(v)?.reshaped(&[]).ok()?)),
    };
    graph.node(id).inputs.iter().map(single).collect()
}

/// The value as dequantized activations.
pub(super) fn line(graph: &Graph, v: ValueId) -> Option<Line> {
    let q = quantized(graph, v)?;
    let dtype = graph.ty(q.x).dtype;
    if q.scale.is_none() || graph.constant(q.x).is_some() {
        return None;
    }
    let values = applied(graph, q.node, q.x, &all_integers(dtype)?)?.to_f32()?;
    // Scales that are negative, 0, no numbers or so small or large that neighbours meet are left to the map.
    let increases = values.is_sorted_by(|a, b| a < b) && values.iter().all(|v| v.is_finite());
    increases.then_some(Line { x: q.x, dtype, node: q.node, values })
}

//! Products of two quantized activations, as attention has them, in integers.
//!
//! Invariant: as in [`super::bytes`]: an integer result is exactly that of the nodes it replaces, and floats are multiplied once, by the
//! product of both scales.
//!
//! With `l` unsigned, `r'` the right bytes as signed ones (`r - c`, where `c` is 128 for unsigned bytes) and `K` numbers in a sum,
//! `sum((l - zl) * (r - zr)) = sum(l * r') - (zr - c) * sum(l) - zl * sum(r) + K * zl * zr`. Sums of one operand's bytes are taken from
//! its packed form.

use super::bytes::summed_axes;
use super::quantized::{Quantized, is_scalar, quantized, scalar};
use super::{Operand, Patch};
use kiln_ir::Id;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::ops::{Contract, Elements, Map, Op, Pack, Reduce, Reshape, Transpose};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar};

/// A zero point: a number, or the only element of a value.
#[derive(Clone, Copy)]
enum Zero {
    Known(i64),
    Runtime(ValueId),
}

/// One operand of the product.
struct Side {
    q: Quantized,
    dtype: DType,
    zero: Zero,
}

impl Side {
    fn of(graph: &Graph, v: ValueId) -> Option<Side> {
        let q = quantized(graph, v)?;
        if graph.constant(q.x).is_some() || q.scale.is_some_and(|s| !is_scalar(graph, s)) {
            return None;
        }
        let zero = match q.zero {
            None => Zero::Known(0),
            Some(z) => match scalar(graph, z) {
                Some(c) => Zero::Known(c.as_i64()?),
                None if is_scalar(graph, z) => Zero::Runtime(z),
                None => return None,
            },
        };
        let dtype = graph.ty(q.x).dtype;
        Some(Side { q, dtype, zero })
    }
}

/// The sums of the four bytes of each element of a packed operand.
pub(super) fn sums_of_four(nodes: &mut Vec<(Op, Vec<Operand>)>, packed: Operand, unsigned: bool) -> Option<Operand> {
    let mut body = Code::new();
    let bytes = body.arg(0, DType::I32);
    let ones = body.constant(Constant::int(DType::I32, 0x0101_0101));
    let (left, right) = if unsigned { (bytes, ones) } else { (ones, bytes) };
    let sum = body.binary(BinaryOp::Dot4, left, right).ok()?;
    body.set_result(sum);
    nodes.push((Map { body }.into(), vec![packed]));
    Some(Operand::New(nodes.len() - 1))
}

/// A patch that grows, with what its maps read.
pub(super) struct Building<'a> {
    pub graph: &'a Graph,
    pub nodes: Vec<(Op, Vec<Operand>)>,
}

impl Building<'_> {
    fn add(&mut self, op: impl Into<Op>, operands: Vec<Operand>) -> Operand {
        self.nodes.push((op.into(), operands));
        Operand::New(self.nodes.len() - 1)
    }

    /// One map of one operand.
    fn map(
        &mut self,
        dtype: DType,
        x: Operand,
        f: impl FnOnce(&mut Code, Id<Scalar>) -> Option<Id<Scalar>>,
    ) -> Option<Operand> {
        let mut body = Code::new();
        let a = body.arg(0, dtype);
        let result = f(&mut body, a)?;
        body.set_result(result);
        Some(self.add(Map { body }, vec![x]))
    }

    /// The sums of an operand's bytes over its packed axis, with axes as the product's result has them.
    pub fn sums(
        &mut self,
        packed: Operand,
        unsigned: bool,
        (letters, summed): (&str, usize),
        v: ValueId,
        out: &str,
    ) -> Option<Operand> {
        let fours = sums_of_four(&mut self.nodes, packed, unsigned)?;
        let mut sum = self.add(Reduce { combine: BinaryOp::Add, axes: vec![summed], keep: false }, vec![fours]);
        let dims = &self.graph.ty(v).dims;
        // The axes that are left, each with its place in the result.
        let left = letters.chars().enumerate().filter(|(n, _)| *n != summed);
        let mut left: Vec<(usize, usize)> = left.map(|(n, c)| Some((out.find(c)?, n))).collect::<Option<_>>()?;
        let before: Vec<usize> = left.iter().map(|(_, n)| *n).collect();
        left.sort_unstable();
        let perm: Vec<usize> = left.iter().map(|(_, n)| before.iter().position(|b| b == n)).collect::<Option<_>>()?;
        if !perm.is_sorted() {
            sum = self.add(Transpose { perm }, vec![sum]);
        }
        let mut shape = vec![Expr::from(1i64); out.len()];
        for (place, n) in left {
            *shape.get_mut(place)? = dims.get(n)?.clone();
        }
        Some(self.add(Reshape { dims: shape }, vec![sum]))
    }
}

/// A map over several operands.
struct Total {
    body: Code,
    operands: Vec<Operand>,
}

impl Total {
    fn arg(&mut self, operand: Operand, dtype: DType) -> Id<Scalar> {
        self.operands.push(operand);
        self.body.arg(self.operands.len() - 1, dtype)
    }

    /// A zero point and a number as one i32.
    fn zero(&mut self, graph: &Graph, zero: Zero, add: i64) -> Option<Id<Scalar>> {
        match zero {
            Zero::Known(n) => Some(self.body.constant(Constant::int(DType::I32, n + add))),
            Zero::Runtime(z) => {
                let z = self.arg(Operand::Value(z), graph.ty(z).dtype);
                let z = self.body.cast(DType::I32, z).ok()?;
                let add = self.body.constant(Constant::int(DType::I32, add));
                self.body.binary(BinaryOp::Add, z, add).ok()
            }
        }
    }
}

/// Whether the zero point with a number added is certainly 0.
fn is_none(zero: Zero, add: i64) -> bool {
    matches!(zero, Zero::Known(n) if n + add == 0)
}

/// A matrix product of two activations.
pub(super) fn product_of_activations(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    let axes = summed_axes(contract)?;
    let &[lhs, rhs] = node.inputs.as_slice() else { return None };
    let (left, right) = (Side::of(graph, lhs)?, Side::of(graph, rhs)?);
    if left.q.scale.is_some() != right.q.scale.is_some() {
        return None;
    }
    let count = graph.ty(lhs).dims.get(axes[0])?.as_const();
    let mut building = Building { graph, nodes: Vec::new() };
    // The left side unsigned.
    let (mut l, mut zl, mut up) = (Operand::Value(left.q.x), left.zero, 0);
    if left.dtype == DType::I8 {
        l = building.map(DType::I8, l, |body, a| {
            let wide = body.cast(DType::I32, a).ok()?;
            let by = body.constant(Constant::int(DType::I32, 128));
            let moved = body.binary(BinaryOp::Add, wide, by).ok()?;
            body.cast(DType::U8, moved).ok()
        })?;
        match &mut zl {
            Zero::Known(n) => *n += 128,
            Zero::Runtime(_) => up = 128,
        }
    }
    let l = building.add(Pack { axis: axes[0] }, vec![l]);
    let raw = building.add(Pack { axis: axes[1] }, vec![Operand::Value(right.q.x)]);
    // An unsigned byte less 128 has the same bits but for the highest.
    let (r, down) = match right.dtype {
        DType::U8 => {
            let flipped = building.map(DType::I32, raw.clone(), |body, a| {
                let high = body.constant(Constant::int(DType::I32, i64::from(0x8080_8080u32 as i32)));
                body.binary(BinaryOp::Xor, a, high).ok()
            });
            (flipped?, 128)
        }
        _ => (raw.clone(), 0),
    };
    let zr = right.zero;
    let op = Contract { elements: Elements::Bytes, ..contract.clone() };
    let product = building.add(op, vec![l.clone(), r]);
    let mut total = Total { body: Code::new(), operands: vec![] };
    let mut value = total.arg(product, DType::I32);
    let mut changed = false;
    let mut less = |total: &mut Total, zero: Id<Scalar>, sum: Option<Id<Scalar>>, op: BinaryOp| -> Option<()> {
        let share = match sum {
            Some(sum) => total.body.binary(BinaryOp::Mul, zero, sum).ok()?,
            None => zero,
        };
        value = total.body.binary(op, value, share).ok()?;
        changed = true;
        Some(())
    };
    if !is_none(zr, -down) {
        let sums = building.sums(l, true, (&contract.lhs, axes[0]), lhs, &contract.out)?;
        let (zero, sums) = (total.zero(graph, zr, -down)?, total.arg(sums, DType::I32));
        less(&mut total, zero, Some(sums), BinaryOp::Sub)?;
    }
    if !is_none(zl, up) {
        let sums = building.sums(raw, right.dtype == DType::U8, (&contract.rhs, axes[1]), rhs, &contract.out)?;
        let (zero, sums) = (total.zero(graph, zl, up)?, total.arg(sums, DType::I32));
        less(&mut total, zero, Some(sums), BinaryOp::Sub)?;
        if !is_none(zr, 0) {
            let count = total.body.constant(Constant::int(DType::I32, i64::from(i32::try_from(count?).ok()?)));
            let (zl, zr) = (total.zero(graph, zl, up)?, total.zero(graph, zr, 0)?);
            let both = total.body.binary(BinaryOp::Mul, zl, zr).ok()?;
            less(&mut total, both, Some(count), BinaryOp::Add)?;
        }
    }
    let Total { mut body, mut operands } = total;
    if let (Some(a), Some(b)) = (left.q.scale, right.q.scale) {
        if changed {
            body.set_result(value);
            let sum = building.add(Map { body }, operands);
            (body, operands) = (Code::new(), vec![sum]);
            value = body.arg(0, DType::I32);
        }
        value = body.cast(DType::F32, value).ok()?;
        let factor = match (scalar(graph, a), scalar(graph, b)) {
            (Some(a), Some(b)) => body.float(DType::F32, a.as_f64() * b.as_f64()),
            _ => {
                let factors = [a, b].map(|s| {
                    operands.push(Operand::Value(s));
                    body.arg(operands.len() - 1, DType::F32)
                });
                body.binary(BinaryOp::Mul, factors[0], factors[1]).ok()?
            }
        };
        value = body.binary(BinaryOp::Mul, value, factor).ok()?;
        changed = true;
    }
    if changed {
        body.set_result(value);
        building.add(Map { body }, operands);
    }
    let also = vec![left.q.node, right.q.node];
    Some(Patch { nodes: building.nodes, replaces: *node.outputs.first()?, with: None, also })
}

/// What packs transposed bytes packs them before, where they lie side by side then: that is no work, and products read transposed
/// operands as they are.
pub(super) fn pack_first(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Pack(pack) = &node.op else { return None };
    let turned = graph.node(graph.producer(*node.inputs.first()?)?);
    let Op::Transpose(transpose) = &turned.op else { return None };
    let from = *turned.inputs.first()?;
    let axis = *transpose.perm.get(pack.axis)?;
    let ty = graph.ty(from);
    let beside = axis + 1 == ty.rank() && ty.dims.get(axis)?.modulo(&Expr::from(4i64)).as_const() == Some(0);
    beside.then(|| Patch {
        nodes: vec![
            (Pack { axis }.into(), vec![Operand::Value(from)]),
            (Transpose { perm: transpose.perm.clone() }.into(), vec![Operand::New(0)]),
        ],
        replaces: node.outputs[0],
        with: None,
        also: vec![],
    })
}

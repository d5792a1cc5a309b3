//! Contents of small integer tensors as expressions over dims.
//!
//! Invariant: expressions are exact: an operation whose result cannot be told for every value of the symbols within their ranges
//! gives nothing (conversions to i32 excepted, see `cast`). Truth values are the expressions 0 and 1.

use kiln_ir::ops::Op;
use kiln_ir::{BinaryOp, Code, DType, Expr, Ranges, Scalar, TensorType, UnaryOp};

/// Elements of a tensor whose contents are followed.
pub(super) const MAX: usize = 1024;

/// An operand: its type and contents.
pub(super) struct Known {
    pub ty: TensorType,
    pub contents: Vec<Expr>,
}

impl Known {
    fn constants(&self) -> Option<Vec<i64>> {
        self.contents.iter().map(Expr::as_const).collect()
    }
}

/// What the only result of `op` holds, if that is an integer tensor with at most one axis.
pub(super) fn propagate(op: &Op, inputs: &[Known], out: &TensorType, ranges: &Ranges) -> Option<Vec<Expr>> {
    let whole = out.dtype.is_int() || out.dtype == DType::Bool;
    let len = out.shape()?.into_iter().try_fold(1usize, usize::checked_mul)?;
    if !whole || out.rank() > 1 || len > MAX {
        return None;
    }
    if let Op::Map(map) = op {
        return (0..len).map(|i| element(&map.body, inputs, i, ranges)).collect();
    }
    let first = inputs.first()?;
    if let Op::Gather(_) = op {
        let [data, indices] = inputs else { return None };
        let extent = i64::try_from(data.contents.len()).ok()?;
        let pick = |i: i64| {
            let i = if i < 0 { i.checked_add(extent)? } else { i };
            data.contents.get(usize::try_from(i).ok()?).cloned()
        };
        return if data.ty.rank() == 1 { indices.constants()?.into_iter().map(pick).collect() } else { None };
    }
    if let (Op::Slice(slice), 1) = (op, first.ty.rank()) {
        let (start, step) = (slice.starts.first()?.as_const()?, *slice.steps.first()?);
        let at = |n: usize| {
            let i = i64::try_from(n).ok()?.checked_mul(step)?.checked_add(start)?;
            first.contents.get(usize::try_from(i).ok()?).cloned()
        };
        return (0..len).map(at).collect();
    }
    if let Op::Concat(_) = op {
        return Some(inputs.iter().flat_map(|k| k.contents.iter().cloned()).collect());
    }
    if let Op::Reshape(_) = op {
        return Some(first.contents.clone());
    }
    if let (Op::Broadcast(_), 1) = (op, first.contents.len()) {
        return Some(vec![first.contents.first()?.clone(); len]);
    }
    if let (Op::Reduce(reduce), 1) = (op, first.ty.rank()) {
        if reduce.axes.is_empty() {
            return Some(first.contents.clone());
        }
        let mut rest = first.contents.iter();
        let start = rest.next()?.clone();
        return rest.try_fold(start, |a, b| binary(reduce.combine, &a, b, ranges)).map(|e| vec![e]);
    }
    None
}

/// Element `i` of a map.
fn element(body: &Code, inputs: &[Known], i: usize, ranges: &Ranges) -> Option<Expr> {
    let live = body.live();
    let mut values: Vec<Option<Expr>> = Vec::with_capacity(body.len());
    for (id, node) in body.nodes() {
        let get = |id: &kiln_ir::Id<Scalar>| values.get(id.index()).cloned().flatten();
        let value = match node {
            _ if !*live.get(id.index())? => None,
            Scalar::Arg(n) => {
                let contents = &inputs.get(*n)?.contents;
                contents.get(if contents.len() == 1 { 0 } else { i }).cloned()
            }
            Scalar::Const(c) => c.as_i64().map(Expr::from),
            Scalar::Unary(op, a) => get(a).and_then(|a| unary(*op, &a, body.dtype(id), ranges)),
            Scalar::Binary(op, a, b) => match (get(a), get(b)) {
                (Some(a), Some(b)) => binary(*op, &a, &b, ranges),
                _ => None,
            },
            Scalar::Select(c, a, b) => match get(c)?.as_const()? {
                0 => get(b),
                _ => get(a),
            },
            Scalar::Cast(to, a) => get(a).and_then(|a| cast(&a, *to, ranges)),
            Scalar::Fma(..) | Scalar::Index(_) | Scalar::Load(..) | Scalar::Guard(..) => None,
        };
        values.push(value);
    }
    values.get(body.result().index()).cloned().flatten()
}

/// A conversion that keeps the value. Exporters convert shapes to i32 and back, so a product of dims is taken to fit an i32:
/// where it does not, the model is wrong by its own arithmetic.
fn cast(a: &Expr, to: DType, ranges: &Ranges) -> Option<Expr> {
    let (lo, hi) = a.bounds(ranges);
    let (least, greatest) = to.int_range()?;
    let fits = i128::from(lo) >= least && (i128::from(hi) <= greatest || to == DType::I32 && a.as_const().is_none());
    fits.then(|| a.clone())
}

fn unary(op: UnaryOp, a: &Expr, dtype: DType, ranges: &Ranges) -> Option<Expr> {
    match (op, a.bounds(ranges)) {
        (UnaryOp::Neg, _) => Some(a.scale(-1)),
        (UnaryOp::Abs, (lo, _)) if lo >= 0 => Some(a.clone()),
        (UnaryOp::Not, _) if dtype == DType::Bool => a.as_const().map(|c| Expr::from(i64::from(c == 0))),
        (UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round | UnaryOp::Trunc, _) => Some(a.clone()),
        _ => None,
    }
}

fn binary(op: BinaryOp, a: &Expr, b: &Expr, ranges: &Ranges) -> Option<Expr> {
    let difference = a.sub(b).bounds(ranges);
    let truth = |v: bool| Some(Expr::from(i64::from(v)));
    // Decided where the bounds of the difference leave no doubt.
    let decide = |yes: bool, no: bool| {
        if yes {
            truth(true)
        } else if no {
            truth(false)
        } else {
            None
        }
    };
    let (lo, hi) = difference;
    match op {
        BinaryOp::Add => Some(a.add(b)),
        BinaryOp::Sub => Some(a.sub(b)),
        BinaryOp::Mul => Some(a.mul(b)),
        BinaryOp::Min => Some(a.least(b).simplify(ranges)),
        BinaryOp::Max => Some(a.greatest(b).simplify(ranges)),
        // Truncating and flooring division agree where nothing is negative.
        BinaryOp::Div if a.bounds(ranges).0 >= 0 && b.bounds(ranges).0 > 0 => Some(a.floor_div(b).simplify(ranges)),
        BinaryOp::Rem | BinaryOp::Mod if a.bounds(ranges).0 >= 0 && b.bounds(ranges).0 > 0 => {
            Some(a.modulo(b).simplify(ranges))
        }
        BinaryOp::Eq => decide(lo == 0 && hi == 0, lo > 0 || hi < 0),
        BinaryOp::Ne => decide(lo > 0 || hi < 0, lo == 0 && hi == 0),
        BinaryOp::Lt => decide(hi < 0, lo >= 0),
        BinaryOp::Le => decide(hi <= 0, lo > 0),
        BinaryOp::Gt => decide(lo > 0, hi <= 0),
        BinaryOp::Ge => decide(lo >= 0, hi < 0),
        BinaryOp::And => Some(Expr::from(a.as_const()? & b.as_const()?)),
        BinaryOp::Or => Some(Expr::from(a.as_const()? | b.as_const()?)),
        BinaryOp::Xor => Some(Expr::from(a.as_const()? ^ b.as_const()?)),
        BinaryOp::Div
        | BinaryOp::Rem
        | BinaryOp::Mod
        | BinaryOp::Pow
        | BinaryOp::Shl
        | BinaryOp::Shr
        | BinaryOp::Dot4
        | BinaryOp::Pair
        | BinaryOp::Dot2 => None,
    }
}

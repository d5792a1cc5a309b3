//! `MatMul` by NumPy's rules.

use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Contract;
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] = &[
    onnx("MatMul", 1, &[], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        Ok(matmul(cx, a, b, Flip::default(), Flip::default())?.into())
    }),
    of("com.microsoft", "FusedMatMul", &["alpha", "transA", "transB", "transBatchA", "transBatchB"], |cx| {
        let a = batch_last(cx, 0, "transBatchA")?;
        let b = batch_last(cx, 1, "transBatchB")?;
        let flag = |name: &str| cx.node.bool_or(name, false);
        let (left, right) = (Flip(flag("transA")?), Flip(flag("transB")?));
        let alpha = f64::from(cx.node.float_or("alpha", 1.0)?);
        let product = matmul(cx, a, b, left, right)?;
        Ok(scale(cx, product, alpha)?.into())
    }),
    of("com.microsoft", "TransposeMatMul", &["alpha", "transA", "transB"], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let (left, right) = (Flip(cx.node.bool_or("transA", false)?), Flip(cx.node.bool_or("transB", false)?));
        let alpha = f64::from(cx.node.float_or("alpha", 1.0)?);
        let product = matmul(cx, a, b, left, right)?;
        Ok(scale(cx, product, alpha)?.into())
    }),
];

/// Input `at`; where the flag is set, its first axis is the rows and comes after the axes of the batch.
fn batch_last(cx: &mut Context, at: usize, flag: &str) -> Result<ValueId, Failure> {
    let (x, set) = (cx.input(at)?, cx.node.bool_or(flag, false)?);
    let rank = cx.rank(x);
    if !set || rank < 3 {
        return Ok(x);
    }
    let mut perm: Vec<usize> = (1..rank - 1).collect();
    perm.extend([0, rank - 1]);
    cx.transpose(x, &perm)
}

/// Whether the last two axes of an operand are swapped.
#[derive(Clone, Copy, Default)]
pub(super) struct Flip(pub bool);

/// The value times a number.
pub(super) fn scale(cx: &mut Context, v: ValueId, by: f64) -> Result<ValueId, Failure> {
    if by == 1.0 {
        return Ok(v);
    }
    cx.map(&[v], |b, a| {
        let by = b.lit(a[0], by);
        b.mul(a[0], by)
    })
}

/// The product of two tensors; leading axes broadcast, an operand with one axis is a row on the left, a column on the right.
pub(super) fn matmul(cx: &mut Context, a: ValueId, b: ValueId, left: Flip, right: Flip) -> Result<ValueId, Failure> {
    let (da, db) = (cx.dims(a), cx.dims(b));
    if da.is_empty() || db.is_empty() {
        return Err(Failure::invalid(format!("{} and {} are no matrices", cx.ty(a), cx.ty(b))));
    }
    let batches = da.len().max(db.len()).saturating_sub(2);
    if batches > 20 {
        return Err(Failure::unsupported(format!("a product with {batches} leading axes")));
    }
    let letter = |n: usize| char::from(b'a' + u8::try_from(n).unwrap_or(0));
    let side = |dims: &[Expr], other: &[Expr], inner: [char; 2], flip: Flip, vector: char| {
        let mut letters = String::new();
        let mut kept = Vec::new();
        let lead = dims.len().saturating_sub(2);
        for (n, d) in dims[..lead].iter().enumerate() {
            let from_end = dims.len() - n;
            let against = other.len().checked_sub(from_end).and_then(|i| other.get(i)).filter(|_| other.len() >= 2);
            // An axis of extent 1 that the other operand repeats has no letter.
            let repeated = against.is_some_and(|o| d.as_const() == Some(1) && o.as_const() != Some(1));
            if !repeated {
                letters.push(letter(batches + 2 - from_end));
                kept.push(d.clone());
            }
        }
        kept.extend_from_slice(&dims[lead..]);
        match (dims.len(), flip.0) {
            (1, _) => letters.push(vector),
            (_, false) => letters.extend(inner),
            (_, true) => letters.extend([inner[1], inner[0]]),
        }
        (letters, kept)
    };
    let (lhs, ka) = side(&da, &db, ['y', 'z'], left, 'z');
    let (rhs, kb) = side(&db, &da, ['z', 'x'], right, 'z');
    let mut out: String = (0..batches).map(letter).collect();
    if da.len() > 1 {
        out.push('y');
    }
    if db.len() > 1 {
        out.push('x');
    }
    let a = cx.reshape(a, ka)?;
    let b = cx.reshape(b, kb)?;
    cx.add(Contract::new(&lhs, &rhs, &out), &[a, b])
}

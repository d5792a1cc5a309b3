//! `Reshape` and `Flatten`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] = &[
    onnx("Reshape", 1, &["shape", "allowzero", "consumed_inputs"], reshape),
    onnx("Flatten", 1, &["axis"], |cx| {
        let x = cx.input(0)?;
        let dims = cx.dims(x);
        let axis = cx.node.int_or("axis", 1)?;
        // The axis may be one past the last.
        let axis = if axis == dims.len() as i64 { dims.len() } else { cx.axis(axis, dims.len())? };
        let dims = vec![product(&dims[..axis]), product(&dims[axis..])];
        Ok(cx.reshape(x, dims)?.into())
    }),
];

fn product(dims: &[Expr]) -> Expr {
    dims.iter().fold(Expr::from(1i64), |n, d| n.mul(d))
}

/// 0 copies the dim, unless `allowzero`; one -1 is what is left.
fn reshape(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let from = cx.dims(x);
    let mut dims = if cx.opset() >= 5 {
        cx.exprs(1, "shape")?
    } else {
        cx.node.ints("shape")?.iter().map(|&d| Expr::from(d)).collect()
    };
    let zero_is_zero = cx.opset() >= 14 && cx.node.bool_or("allowzero", false)?;
    let mut open = None;
    for n in 0..dims.len() {
        match dims[n].as_const() {
            Some(0) if !zero_is_zero => {
                let copied = from.get(n).ok_or_else(|| {
                    Failure::invalid(format!("`shape` copies dim {n}, the input has {} dims", from.len()))
                })?;
                dims[n] = copied.clone();
            }
            Some(-1) if open.replace(n).is_some() => return Err(Failure::invalid("`shape` has more than one -1")),
            Some(d) if d < -1 => return Err(Failure::invalid(format!("`shape` has the dim {d}"))),
            _ => {}
        }
    }
    if let Some(open) = open {
        dims[open] = rest(&from, &dims, open)?;
    }
    Ok(cx.reshape(x, dims)?.into())
}

/// What the dims but `open` leave of a tensor's elements.
fn rest(from: &[Expr], dims: &[Expr], open: usize) -> Result<Expr, Failure> {
    // Dims that occur on both sides cancel, whatever their values; so do zeros, of which nothing can be told.
    let mut left: Vec<&Expr> = from.iter().collect();
    let mut others = Vec::new();
    for (_, d) in dims.iter().enumerate().filter(|(n, _)| *n != open) {
        match left.iter().position(|l| *l == d) {
            Some(at) => {
                left.swap_remove(at);
            }
            None => others.push(d.clone()),
        }
    }
    let whole = left.into_iter().fold(Expr::from(1i64), |n, d| n.mul(d));
    let part = product(&others);
    divide(&whole, &part).ok_or_else(|| {
        let message = format!("{whole} elements cannot be divided by {part}");
        if whole.as_const().is_some() && part.as_const().is_some() {
            Failure::Invalid(format!("`shape`: {message}"))
        } else {
            Failure::unsupported(format!("`shape`: Kiln cannot tell that {message}; bind their symbols"))
        }
    })
}

/// The quotient, where the divisor is a single product that divides every term.
fn divide(whole: &Expr, part: &Expr) -> Option<Expr> {
    if whole == part {
        return Some(Expr::from(1i64));
    }
    let by: Vec<(Vec<kiln_ir::expr::Atom>, i64)> = match part.as_const() {
        Some(c) => vec![(vec![], c)],
        None => part.terms().map(|(a, c)| (a.to_vec(), c)).collect(),
    };
    let [(atoms, factor)] = by.as_slice() else { return None };
    if *factor == 0 || part.as_const().is_none() && part.constant() != 0 {
        return None;
    }
    let number = |c: i64| (c.checked_rem(*factor)? == 0).then(|| c.checked_div(*factor)).flatten();
    let mut quotient = if atoms.is_empty() {
        Expr::from(number(whole.constant())?)
    } else if whole.constant() == 0 {
        Expr::default()
    } else {
        return None;
    };
    for (term, c) in whole.terms() {
        let mut term = term.to_vec();
        for a in atoms {
            let at = term.iter().position(|t| t == a)?;
            term.remove(at);
        }
        let product = term.into_iter().fold(Expr::from(number(c)?), |p, a| p.mul(&Expr::from(a)));
        quotient = quotient.add(&product);
    }
    Some(quotient)
}

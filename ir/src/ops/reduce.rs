//! `reduce`: a fold over axes.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis, fold_axis};
use crate::scalar::{BinaryOp, Code, Source};

/// `out[i] = fold over the axes of in`; folded axes stay with extent 1 where `keep`, else they go.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduce {
    /// add, mul, min, max, and, or.
    pub combine: BinaryOp,
    /// Distinct axes.
    pub axes: Vec<usize>,
    /// Whether folded axes stay with extent 1.
    pub keep: bool,
}

impl Reduce {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Reduce, OpError> {
        let word = a.word("combine")?;
        let combine =
            BinaryOp::from_name(word).ok_or_else(|| OpError::new(format!("`{word}` is no operation to fold with")))?;
        Ok(Reduce { combine, axes: a.sizes("axes")?, keep: a.bool("keep")? })
    }
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
            .with("combine", self.combine.name())
            .with("axes", self.axes.as_slice())
            .with("keep", self.keep)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        check_axes(&self.axes, x.rank())?;
        let allowed = match x.dtype.class() {
            crate::Class::Float | crate::Class::Double => {
                matches!(self.combine, BinaryOp::Add | BinaryOp::Mul | BinaryOp::Min | BinaryOp::Max)
            }
            crate::Class::Bool => matches!(self.combine, BinaryOp::And | BinaryOp::Or | BinaryOp::Min | BinaryOp::Max),
            crate::Class::Signed | crate::Class::Unsigned => matches!(
                self.combine,
                BinaryOp::Add | BinaryOp::Mul | BinaryOp::Min | BinaryOp::Max | BinaryOp::And | BinaryOp::Or
            ),
            crate::Class::Complex | crate::Class::Str => false,
        };
        if !allowed {
            return Err(OpError::new(format!("cannot fold {} with `{}`", x.dtype, self.combine.name())));
        }
        let mut dims = Vec::new();
        for (n, d) in x.dims.iter().enumerate() {
            match (self.axes.contains(&n), self.keep) {
                (false, _) => dims.push(d.clone()),
                (true, true) => dims.push(Expr::from(1i64)),
                (true, false) => {}
            }
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let x = inputs[0];
        let (mut index, mut folds, mut kept) = (Vec::new(), Vec::new(), 0);
        for (n, d) in x.dims.iter().enumerate() {
            if self.axes.contains(&n) {
                index.push(Expr::from(fold_axis(folds.len())));
                folds.push(d.clone());
                kept += usize::from(self.keep);
            } else {
                index.push(Expr::from(axis(kept)));
                kept += 1;
            }
        }
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), index, x.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![if folds.is_empty() {
            Nest::map(out.dims, body)
        } else {
            Nest::fold(out.dims, folds, self.combine, body)
        }]))
    }
}

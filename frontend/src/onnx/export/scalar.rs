//! Scalar code as elementwise nodes.

use super::{Export, ExportError};
use crate::onnx::model::AttributeValue;
use crate::onnx::proto::DataType;
use kiln_ir::graph::NodeId;
use kiln_ir::ops::broadcast_dims;
use kiln_ir::scalar::{Code, Scalar};
use kiln_ir::{BinaryOp, Constant, DType, Expr, Id, Tensor, UnaryOp};
use std::collections::BTreeMap;

impl Export<'_> {
    /// A tensor without axes.
    pub(super) fn scalar(&mut self, constant: Constant) -> Result<String, ExportError> {
        if let Some(known) = self.scalars.get(&constant) {
            return Ok(known.clone());
        }
        let mut bytes = Vec::new();
        constant.store(&mut bytes);
        let tensor = Tensor::new(constant.dtype, vec![], bytes).map_err(|e| ExportError::Graph(e.to_string()))?;
        let name = self.tensor("number", tensor);
        self.scalars.insert(constant, name.clone());
        Ok(name)
    }

    /// Code that is applied to each element of its operands.
    pub(super) fn map(
        &mut self,
        id: NodeId,
        base: &str,
        code: &Code,
        inputs: &[String],
        dims: &[Expr],
    ) -> Result<String, ExportError> {
        let mut made: BTreeMap<Id<Scalar>, String> = BTreeMap::new();
        let (live, mut read) = (code.live(), Vec::new());
        for (n, (at, scalar)) in code.nodes().enumerate() {
            if !live.get(n).copied().unwrap_or(false) {
                continue;
            }
            let operand = |id| made.get(&id).cloned().unwrap_or_default();
            let name = match scalar {
                Scalar::Arg(n) => {
                    read.push(*n);
                    inputs.get(*n).cloned().unwrap_or_default()
                }
                Scalar::Const(constant) => self.scalar(*constant)?,
                Scalar::Unary(op, a) => {
                    let dtype = code.dtype(*a);
                    let word =
                        unary(*op, dtype).ok_or_else(|| self.refused(id, &format!("`{}` of {dtype}", op.name())))?;
                    self.add(base, word, &[&operand(*a)], &[])
                }
                Scalar::Binary(op, a, b) => {
                    let (dtype, left, right) = (code.dtype(*a), operand(*a), operand(*b));
                    let fail = |work: &Self| work.refused(id, &format!("`{}` of {dtype}", op.name()));
                    let fmod = [("fmod", AttributeValue::Int(i64::from(*op == BinaryOp::Rem)))];
                    match op {
                        BinaryOp::Ne => {
                            let equal = self.add(base, "Equal", &[&left, &right], &[]);
                            self.add(base, "Not", &[&equal], &[])
                        }
                        BinaryOp::Mod if !dtype.is_int() => return Err(fail(self)),
                        BinaryOp::Mod | BinaryOp::Rem => self.add(base, "Mod", &[&left, &right], &fmod),
                        other => {
                            let word = binary(*other, dtype).ok_or_else(|| fail(self))?;
                            self.add(base, word, &[&left, &right], &[])
                        }
                    }
                }
                Scalar::Select(c, a, b) => self.add(base, "Where", &[&operand(*c), &operand(*a), &operand(*b)], &[]),
                Scalar::Cast(to, a) => {
                    let to_type = DataType::of(*to) as i64;
                    self.add(base, "Cast", &[&operand(*a)], &[("to", AttributeValue::Int(to_type))])
                }
                // ONNX has no product and sum that round once.
                Scalar::Fma(..) => return Err(self.refused(id, "`fma`")),
                Scalar::Index(_) | Scalar::Load(..) | Scalar::Guard(..) => {
                    return Err(self.refused(id, "code with loads"));
                }
            };
            made.insert(at, name);
        }
        let name = made.get(&code.result()).cloned().unwrap_or_default();
        // An operand that only gives its shape is not among those that the nodes read.
        let shapes: Vec<&[Expr]> = read
            .iter()
            .filter_map(|&n| self.graph.node(id).inputs.get(n))
            .map(|&v| self.graph.ty(v).dims.as_slice())
            .collect();
        match broadcast_dims(&shapes) {
            Ok(found) if found == dims => Ok(name),
            Ok(_) | Err(_) => self.expanded(base, &name, dims),
        }
    }
}

fn unary(op: UnaryOp, dtype: DType) -> Option<&'static str> {
    Some(match op {
        UnaryOp::Neg => "Neg",
        UnaryOp::Abs => "Abs",
        UnaryOp::Sign => "Sign",
        UnaryOp::Not if dtype == DType::Bool => "Not",
        UnaryOp::Not => "BitwiseNot",
        UnaryOp::Floor => "Floor",
        UnaryOp::Ceil => "Ceil",
        UnaryOp::Round => "Round",
        UnaryOp::Trunc => return None,
        UnaryOp::Sqrt => "Sqrt",
        UnaryOp::Recip => "Reciprocal",
        UnaryOp::Exp => "Exp",
        UnaryOp::Log => "Log",
        UnaryOp::Sin => "Sin",
        UnaryOp::Cos => "Cos",
        UnaryOp::Tan => "Tan",
        UnaryOp::Asin => "Asin",
        UnaryOp::Acos => "Acos",
        UnaryOp::Atan => "Atan",
        UnaryOp::Sinh => "Sinh",
        UnaryOp::Cosh => "Cosh",
        UnaryOp::Tanh => "Tanh",
        UnaryOp::Asinh => "Asinh",
        UnaryOp::Acosh => "Acosh",
        UnaryOp::Atanh => "Atanh",
        UnaryOp::Erf => "Erf",
        UnaryOp::Sigmoid => "Sigmoid",
    })
}

fn binary(op: BinaryOp, dtype: DType) -> Option<&'static str> {
    let bool = dtype == DType::Bool;
    Some(match op {
        BinaryOp::Add => "Add",
        BinaryOp::Sub => "Sub",
        BinaryOp::Mul => "Mul",
        BinaryOp::Div => "Div",
        BinaryOp::Pow => "Pow",
        BinaryOp::Min if !bool => "Min",
        BinaryOp::Max if !bool => "Max",
        BinaryOp::Min | BinaryOp::And if bool => "And",
        BinaryOp::Max | BinaryOp::Or if bool => "Or",
        BinaryOp::Xor if bool => "Xor",
        BinaryOp::And => "BitwiseAnd",
        BinaryOp::Or => "BitwiseOr",
        BinaryOp::Xor => "BitwiseXor",
        BinaryOp::Eq => "Equal",
        BinaryOp::Lt => "Less",
        BinaryOp::Le => "LessOrEqual",
        BinaryOp::Gt => "Greater",
        BinaryOp::Ge => "GreaterOrEqual",
        // The first two are written otherwise; the others have no node.
        BinaryOp::Mod | BinaryOp::Rem | BinaryOp::Ne | BinaryOp::Min | BinaryOp::Max => return None,
        BinaryOp::Shl | BinaryOp::Shr | BinaryOp::Dot4 | BinaryOp::Pair | BinaryOp::Dot2 => return None,
    })
}

//! What operations on elements cost where vectors compute them.

use kiln_ir::scalar::{BinaryOp, Code, Scalar, UnaryOp};

/// About the cycles that a vector of the operation takes; loads are counted by who knows what they read.
pub(crate) fn of(node: &Scalar) -> u64 {
    match node {
        Scalar::Arg(_) | Scalar::Const(_) | Scalar::Index(_) | Scalar::Load(..) => 0,
        Scalar::Unary(
            UnaryOp::Neg
            | UnaryOp::Abs
            | UnaryOp::Not
            | UnaryOp::Floor
            | UnaryOp::Ceil
            | UnaryOp::Round
            | UnaryOp::Trunc,
            _,
        )
        | Scalar::Fma(..)
        | Scalar::Select(..)
        | Scalar::Cast(..) => 1,
        Scalar::Unary(UnaryOp::Sqrt | UnaryOp::Recip | UnaryOp::Sign, _) | Scalar::Binary(BinaryOp::Div, ..) => 4,
        // A polynomial, or more.
        Scalar::Unary(..) => 20,
        Scalar::Binary(BinaryOp::Pow | BinaryOp::Rem | BinaryOp::Mod, ..) => 40,
        Scalar::Binary(..) => 1,
        // A branch for each element.
        Scalar::Guard(..) => 8,
    }
}

/// The same of what code computes of its result.
pub(crate) fn of_code(code: &Code) -> u64 {
    let live = code.live();
    code.nodes().filter(|(id, _)| live[id.index()]).map(|(_, node)| of(node)).sum()
}

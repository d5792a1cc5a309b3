//! `refuse`: what stands where nothing can be computed.

use super::Function;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError};
use crate::tensor::Tensor;

/// Always fails, with the attribute `message`; its results would have the types `results`. Takes no operand.
pub(super) const FUNCTION: Function = Function { name: "refuse", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    if !inputs.is_empty() {
        return Err(OpError::new("takes no operand"));
    }
    a.word("message")?;
    Ok(a.types("results")?.to_vec())
}

fn eval(a: &Attributes, _: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    Err(OpError::new(a.word("message")?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::fails;
    use crate::DType;
    use crate::graph::TensorType;
    use crate::ops::{Attribute, Attributes};

    #[test]
    fn says_why() {
        let mut a = Attributes::new().with("results", vec![TensorType::of(DType::F32, &[2])]);
        a.0.push(("message".into(), Attribute::Text("a window of 512 does not fit".into())));
        assert!(fails("refuse", a, &[]).contains("a window of 512 does not fit"));
    }
}

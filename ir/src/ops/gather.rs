//! `gather`: slices of a tensor picked by indices along one axis.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::DType;
use crate::graph::TensorType;
use crate::nest::{Nest, axes};
use crate::scalar::{Code, Coord, Source};

/// `out[a.., j.., b..] = data[a.., indices[j..], b..]`, where `a` are the axes before `axis`. Negative indices count from the
/// end; one that is out of range is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    /// The axis.
    pub axis: usize,
}

impl Gather {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Gather, OpError> {
        Ok(Gather { axis: a.size("axis")? })
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [data, indices] = operands(inputs)?;
        check_axes(&[self.axis], data.rank())?;
        if !indices.dtype.is_int() {
            return Err(OpError::new("indices must be integers"));
        }
        let mut dims = data.dims.clone();
        dims.splice(self.axis..=self.axis, indices.dims.iter().cloned());
        Ok(vec![TensorType::new(data.dtype, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (data, indices) = (inputs[0], inputs[1]);
        let at = axes(out.rank());
        let inner = self.axis + indices.rank();
        let mut body = Code::new();
        let picked = body.load_at(Source::Input(1), at[self.axis..inner].to_vec(), indices.dtype);
        let picked = body.cast(DType::I64, picked)?;
        let mut coords: Vec<Coord> = at[..self.axis].iter().cloned().map(Coord::Index).collect();
        coords.push(Coord::Value(picked));
        coords.extend(at[inner..].iter().cloned().map(Coord::Index));
        let load = body.load(Source::Input(0), coords, data.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}

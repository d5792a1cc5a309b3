//! `gather_elements`: single elements picked by indices along one axis.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::DType;
use crate::graph::TensorType;
use crate::nest::{Nest, axes};
use crate::scalar::{Code, Coord, Source};

/// `out[i] = data[i with axis replaced by indices[i]]`, of the indices' dims. Negative indices count from the end; one that
/// is out of range is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherElements {
    /// The axis.
    pub axis: usize,
}

impl GatherElements {
    pub(super) fn from_attributes(a: &Attributes) -> Result<GatherElements, OpError> {
        Ok(GatherElements { axis: a.size("axis")? })
    }
}

impl Operator for GatherElements {
    fn name(&self) -> &'static str {
        "gather_elements"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [data, indices] = operands(inputs)?;
        check_axes(&[self.axis], data.rank())?;
        if !indices.dtype.is_int() || indices.rank() != data.rank() {
            return Err(OpError::new("indices must be integers with as many axes as the data"));
        }
        for (n, (i, d)) in indices.dims.iter().zip(&data.dims).enumerate() {
            if n != self.axis && i.as_const().zip(d.as_const()).is_some_and(|(i, d)| i > d) {
                return Err(OpError::new(format!("axis {n} of the indices is longer than that of the data")));
            }
        }
        Ok(vec![TensorType::new(data.dtype, indices.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let at = axes(out.rank());
        let mut body = Code::new();
        let picked = body.load_at(Source::Input(1), at.clone(), inputs[1].dtype);
        let picked = body.cast(DType::I64, picked)?;
        let mut coords: Vec<Coord> = at.into_iter().map(Coord::Index).collect();
        coords[self.axis] = Coord::Value(picked);
        let load = body.load(Source::Input(0), coords, out.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}

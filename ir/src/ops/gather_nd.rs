//! `gather_nd`: slices picked by index tuples.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes};
use crate::scalar::{Code, Coord, Source};

/// `out[b.., j.., c..] = data[b.., indices[b.., j.., 0], indices[b.., j.., 1], ..., c..]` with `batch` leading axes `b`. Negative
/// indices count from the end; one that is out of range is a run-time error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherNd {
    /// How many leading axes data and indices share.
    pub batch: usize,
}

impl GatherNd {
    pub(super) fn from_attributes(a: &Attributes) -> Result<GatherNd, OpError> {
        Ok(GatherNd { batch: a.size("batch")? })
    }

    /// Length of an index tuple.
    fn tuple(&self, data: &TensorType, indices: &TensorType) -> Result<usize, OpError> {
        let k = indices.dims.last().and_then(Expr::as_size);
        let k = k.ok_or_else(|| OpError::new("the indices' last dim must be a known number"))?;
        let fits = self.batch < indices.rank() && self.batch.checked_add(k).is_some_and(|n| n <= data.rank());
        let shared = fits && data.dims[..self.batch] == indices.dims[..self.batch];
        if !shared || !indices.dtype.is_int() {
            return Err(OpError::new(format!("{indices} does not index {data} with {} batch axes", self.batch)));
        }
        Ok(k)
    }
}

impl Operator for GatherNd {
    fn name(&self) -> &'static str {
        "gather_nd"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("batch", self.batch)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [data, indices] = operands(inputs)?;
        let k = self.tuple(data, indices)?;
        let mut dims = indices.dims[..indices.rank() - 1].to_vec();
        dims.extend_from_slice(&data.dims[self.batch + k..]);
        Ok(vec![TensorType::new(data.dtype, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (data, indices) = (inputs[0], inputs[1]);
        let k = self.tuple(data, indices)?;
        let at = axes(out.rank());
        let lead = indices.rank() - 1;
        let mut body = Code::new();
        let mut coords: Vec<Coord> = at[..self.batch].iter().cloned().map(Coord::Index).collect();
        for n in 0..k {
            let mut index = at[..lead].to_vec();
            index.push(Expr::from(n));
            let picked = body.load_at(Source::Input(1), index, indices.dtype);
            coords.push(Coord::Value(body.cast(DType::I64, picked)?));
        }
        coords.extend(at[lead..].iter().cloned().map(Coord::Index));
        let load = body.load(Source::Input(0), coords, data.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}

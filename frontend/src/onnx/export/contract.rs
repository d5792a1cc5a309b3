//! Contractions as `MatMul`, or as `Einsum` where that has no such form.

use super::{Export, ExportError, ints, whole};
use crate::onnx::model::AttributeValue;
use kiln_ir::graph::{NodeId, ValueId};
use kiln_ir::ops::{Contract, Elements};
use kiln_ir::{DType, Tensor};
use prost::bytes::Bytes;

impl Export<'_> {
    pub(super) fn contract(&mut self, id: NodeId, base: &str, contract: &Contract) -> Result<String, ExportError> {
        if contract.elements != Elements::Numbers {
            return Err(self.refused(id, "a product of packed elements"));
        }
        let [left, right] = self.graph.node(id).inputs[..] else {
            return Err(self.refused(id, "a product of other than two operands"));
        };
        let x = self.value(left)?;
        if let Some(product) = self.by_weights(base, &x, right, contract)? {
            return Ok(product);
        }
        let y = self.value(right)?;
        match self.by_matrices(base, (&x, &y), contract)? {
            Some(product) => Ok(product),
            None => {
                let Contract { lhs, rhs, out, .. } = contract;
                let equation = AttributeValue::String(Bytes::from(format!("{lhs},{rhs}->{out}")));
                Ok(self.add(base, "Einsum", &[&x, &y], &[("equation", equation)]))
            }
        }
    }

    /// The product of rows by a matrix of weights.
    fn by_weights(
        &mut self,
        base: &str,
        x: &str,
        weights: ValueId,
        contract: &Contract,
    ) -> Result<Option<String>, ExportError> {
        let Contract { lhs, rhs, out, .. } = contract;
        let Some(tensor) = self.graph.constant(weights).filter(|t| t.dtype() == DType::F32) else { return Ok(None) };
        let (Some(k), &[rows, columns]) = (lhs.chars().last(), tensor.shape()) else { return Ok(None) };
        let Some(n) = rhs.chars().find(|&c| c != k && rhs.len() == 2 && !lhs.contains(c)) else { return Ok(None) };
        let (kept, turned) = (format!("{k}{n}"), format!("{n}{k}"));
        let rows_kept = *out == format!("{}{n}", lhs.trim_end_matches(k));
        if !rows_kept || (*rhs != kept && *rhs != turned) {
            return Ok(None);
        }
        let name = self.graph.value(weights).name.as_deref();
        let base = name.map_or(base, |name| name.strip_suffix(".weight").unwrap_or(name));
        let matrix = match (*rhs == kept, self.graph.users(weights).len()) {
            (true, _) => self.value(weights)?,
            // Nothing else reads it: it is stored as `MatMul` takes it.
            (false, 1) => {
                let values = tensor.to_f32().unwrap_or_default();
                let turned: Vec<f32> = (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| r * columns + c))
                    .filter_map(|at| values.get(at).copied())
                    .collect();
                let tensor = Tensor::from_f32(&[columns, rows], &turned);
                let tensor = tensor.map_err(|e| ExportError::Graph(e.to_string()))?;
                self.tensor(name.unwrap_or("weights"), tensor)
            }
            (false, _) => {
                let stored = self.value(weights)?;
                self.add(&format!("{base}/turned"), "Transpose", &[&stored], &[("perm", ints(&[1, 0]))])
            }
        };
        Ok(Some(self.add(base, "MatMul", &[x, &matrix], &[])))
    }

    /// The product of stacks of matrices, where one axis is summed over.
    fn by_matrices(
        &mut self,
        base: &str,
        (x, y): (&str, &str),
        contract: &Contract,
    ) -> Result<Option<String>, ExportError> {
        let Contract { lhs, rhs, out, .. } = contract;
        let summed: Vec<char> = contract.summed().chars().collect();
        let [k] = summed[..] else { return Ok(None) };
        if !lhs.contains(k) || !rhs.contains(k) {
            return Ok(None);
        }
        let of = |left: bool, right: bool| -> Vec<char> {
            out.chars().filter(|&c| lhs.contains(c) == left && rhs.contains(c) == right).collect()
        };
        let (both, mut left, mut right) = (of(true, true), of(true, false), of(false, true));
        // The last axis of each side is the matrix's, those before it are stacked.
        let (m, n) = (left.pop(), right.pop());
        let stack = |own: &[char]| both.iter().chain(own).copied().collect::<Vec<char>>();
        // Where the one has axes of its own, the other has an extent of 1.
        let (rows, columns) = (m.into_iter().chain([k]), [k].into_iter().chain(n));
        let x_order: Vec<char> = stack(&left).into_iter().chain(rows).collect();
        let y_order: Vec<char> = stack(&right).into_iter().chain(columns).collect();
        let mut x_gaps: Vec<usize> = (0..right.len()).map(|n| both.len() + left.len() + n).collect();
        let mut y_gaps: Vec<usize> = (0..left.len()).map(|n| both.len() + n).collect();
        let stacked = both.len() + left.len() + right.len();
        x_gaps.extend(m.is_none().then_some(stacked));
        y_gaps.extend(n.is_none().then_some(stacked + 1));
        let x = self.arranged(base, x, lhs, &x_order, &x_gaps)?;
        let y = self.arranged(base, y, rhs, &y_order, &y_gaps)?;
        let mut product = self.add(base, "MatMul", &[&x, &y], &[]);
        let mut gaps = Vec::new();
        gaps.extend(m.is_none().then_some(stacked));
        gaps.extend(n.is_none().then_some(stacked + 1));
        if !gaps.is_empty() {
            let axes = self.numbers(&format!("{base}_axes"), &whole(&gaps))?;
            product = self.add(&format!("{base}_squeezed"), "Squeeze", &[&product, &axes], &[]);
        }
        let made: String = both.into_iter().chain(left).chain(right).chain(m).chain(n).collect();
        let order: Vec<char> = out.chars().collect();
        Ok(Some(self.arranged(base, &product, &made, &order, &[])?))
    }

    /// A value whose axes are called `letters` with the axes in another order and new ones of extent 1 at `gaps`.
    fn arranged(
        &mut self,
        base: &str,
        x: &str,
        letters: &str,
        order: &[char],
        gaps: &[usize],
    ) -> Result<String, ExportError> {
        let perm: Vec<usize> = order.iter().filter_map(|&c| letters.find(c)).collect();
        let mut x = x.to_string();
        if !perm.iter().copied().eq(0..perm.len()) {
            x = self.add(&format!("{base}_turned"), "Transpose", &[&x], &[("perm", ints(&perm))]);
        }
        if !gaps.is_empty() {
            let axes = self.numbers(&format!("{base}_axes"), &whole(gaps))?;
            x = self.add(&format!("{base}_stacked"), "Unsqueeze", &[&x, &axes], &[]);
        }
        Ok(x)
    }
}

//! Evaluation of one nest: the choice of loops, and the loops.
//!
//! Invariant: every element of the result is written once, from a fold over all points of the fold axes.

use super::column::{self, Column, Fold, LANES};
use super::index::{Index, Space, for_each_point};
use super::program::{Program, Sources};
use super::{Budget, EvalError, contract, shape};
use crate::dtype::{Class, DType};
use crate::nest::{Nest, axes};
use crate::scalar::{BinaryOp, Code, Scalar, Source};
use crate::tensor::Tensor;

/// The result of a nest.
pub(super) fn eval(
    nest: &Nest,
    inputs: &[Tensor],
    stages: &[Tensor],
    budget: &mut Budget,
) -> Result<Tensor, EvalError> {
    let dims = shape(&nest.dims)?;
    let folds = shape(&nest.folds)?;
    let invalid = |e: crate::scalar::TypeError| EvalError::Invalid(e.0);
    let is_identity = matches!(nest.finish.node(nest.finish.result()), Scalar::Arg(0));
    if folds.is_empty() {
        // Without a fold, `finish` simply continues `body`.
        let mut body = nest.body.clone();
        if !is_identity {
            let value = body.result();
            let result = body
                .inline(&nest.finish, &mut |_, node, _| Ok(matches!(node, Scalar::Arg(0)).then_some(value)))
                .map_err(invalid)?;
            body.set_result(result);
        }
        return map(&body, &dims, &Sources { inputs, stages }, budget);
    }
    let folded = fold(nest, &dims, &folds, &Sources { inputs, stages }, budget)?;
    if is_identity {
        return Ok(folded);
    }
    // `finish` is a nest of its own over the folded values, as one more stage.
    let here = Source::Stage(stages.len());
    let mut code = Code::new();
    let result = code
        .inline(&nest.finish, &mut |code, node, dtype| {
            Ok(matches!(node, Scalar::Arg(0)).then(|| code.load_at(here, axes(dims.len()), dtype)))
        })
        .map_err(invalid)?;
    code.set_result(result);
    let mut all = stages.to_vec();
    all.push(folded);
    map(&code, &dims, &Sources { inputs, stages: &all }, budget)
}

/// The elements of a result as they are written.
struct Results {
    dtype: DType,
    dims: Vec<usize>,
    bytes: Vec<u8>,
    /// The row-major address over the axes of the space.
    address: Index,
}

impl Results {
    fn new(dtype: DType, dims: &[usize], space: &Space, budget: &mut Budget) -> Result<Results, EvalError> {
        let count = budget.take(dims, dtype.size())?;
        // What is only moved is first written as the numbers of the elements.
        let size = if is_moved(dtype) { 8 } else { dtype.size() };
        let bytes = count.checked_mul(size).ok_or_else(|| crate::TensorError::TooLarge(dims.to_vec()))?;
        let mut zeros = Vec::new();
        let failed = |_| EvalError::Invalid(format!("{bytes} bytes cannot be allocated"));
        zeros.try_reserve_exact(bytes).map_err(failed)?;
        zeros.resize(bytes, 0u8);
        let mut steps = vec![0i64; space.extents.len()];
        let mut stride = 1i64;
        for (step, &d) in steps.iter_mut().zip(dims).rev() {
            *step = if d == 1 { 0 } else { stride };
            stride = stride.saturating_mul(d as i64);
        }
        Ok(Results { dtype, dims: dims.to_vec(), bytes: zeros, address: Index::linear(steps) })
    }

    fn store(&mut self, column: &Column, at: &[i64], axis: usize, n: usize) {
        let from = self.address.eval(at) as usize;
        let step = self.address.along(axis).unwrap_or(0) as usize;
        column::store(self.dtype, column, n, from, step, &mut self.bytes);
    }

    fn finish(self, sources: &Sources<'_>) -> Result<Tensor, EvalError> {
        if !is_moved(self.dtype) {
            return Ok(Tensor::new(self.dtype, self.dims, self.bytes)?);
        }
        let numbers = self.bytes.as_chunks::<8>().0.iter().map(|c| sources.locate(i64::from_le_bytes(*c)));
        if self.dtype == DType::Str {
            let string = |(t, i): (&Tensor, usize)| t.strings().and_then(|s| s.get(i)).cloned();
            let strings = numbers.map(|found| found.and_then(string).unwrap_or_default()).collect();
            return Ok(Tensor::from_strings(self.dims, strings)?);
        }
        let size = self.dtype.size();
        let mut bytes = Vec::with_capacity(numbers.len() * size);
        for found in numbers {
            match found.and_then(|(t, i)| t.bytes().get(i * size..(i + 1) * size)) {
                Some(element) => bytes.extend_from_slice(element),
                None => bytes.resize(bytes.len() + size, 0),
            }
        }
        Ok(Tensor::new(self.dtype, self.dims, bytes)?)
    }
}

/// Whether elements of the type are only moved.
fn is_moved(dtype: DType) -> bool {
    matches!(dtype.class(), Class::Complex | Class::Str)
}

/// The axis of the result that is best walked by lanes: the innermost, unless it is short and another one is long.
fn lane_axis(space: &Space, axes: std::ops::Range<usize>) -> Option<usize> {
    let innermost = axes.clone().rev().find(|&a| space.extents[a] != 1)?;
    let longest = axes.rev().max_by_key(|&a| space.extents[a])?;
    let (inner, long) = (space.extents[innermost], space.extents[longest]);
    Some(if inner < 32 && long / inner >= 8 { longest } else { innermost })
}

fn map(code: &Code, dims: &[usize], sources: &Sources<'_>, budget: &mut Budget) -> Result<Tensor, EvalError> {
    let dtype = code.result_type();
    let mut space = Space::new(dims, &[]);
    let mut results = Results::new(dtype, dims, &space, budget)?;
    if results.bytes.is_empty() {
        return results.finish(sources);
    }
    let mut program = Program::compile(code, &space, sources, false)?;
    let mut indices = program.indices_mut();
    indices.push(&mut results.address);
    space.collapse(&mut indices);
    // A scalar has no axis: one is added for its single lane.
    let lane = lane_axis(&space, 0..space.results).unwrap_or(space.extents.len());
    let mut at = vec![0i64; space.extents.len() + 1];
    space.extents.push(1);
    let walk: Vec<usize> = (0..space.results).filter(|&a| a != lane && space.extents[a] != 1).collect();
    for_each_point(&space.extents, &walk, &mut at, &mut |at| {
        for start in (0..space.extents[lane]).step_by(LANES) {
            let n = LANES.min(space.extents[lane] - start);
            at[lane] = start as i64;
            let column = program.run(at, lane, n)?;
            results.store(column, at, lane, n);
        }
        at[lane] = 0;
        Ok(())
    })?;
    results.finish(sources)
}

fn fold(
    nest: &Nest,
    dims: &[usize],
    folds: &[usize],
    sources: &Sources<'_>,
    budget: &mut Budget,
) -> Result<Tensor, EvalError> {
    let dtype = nest.body.result_type();
    if is_moved(dtype) {
        return Err(EvalError::Invalid(format!("cannot fold {dtype}")));
    }
    if dims.contains(&0) || folds.contains(&0) {
        let space = Space::new(dims, &[]);
        let mut results = Results::new(dtype, dims, &space, budget)?;
        let mut element = Vec::new();
        nest.init().store(&mut element);
        for slot in results.bytes.chunks_mut(dtype.size()) {
            slot.copy_from_slice(&element);
        }
        return results.finish(sources);
    }
    let mut space = Space::new(dims, folds);
    let mut results = Results::new(dtype, dims, &space, budget)?;
    if let Some(product) = contract::recognise(nest, &space, sources)? {
        product.eval(&space, dtype, &results.address, &mut results.bytes);
        return results.finish(sources);
    }
    let mut program = Program::compile(&nest.body, &space, sources, nest.combine == BinaryOp::Add)?;
    let mut indices = program.indices_mut();
    indices.push(&mut results.address);
    space.collapse(&mut indices);
    let all = 0..space.extents.len();
    let spare = all.end;
    let outer = lane_axis(&space, 0..space.results).unwrap_or(spare);
    let inner = lane_axis(&space, space.results..spare).unwrap_or(spare);
    let mut at = vec![0i64; spare + 1];
    space.extents.push(1);
    // Lanes along the fold where that walks memory in order, or where the result is small.
    let near = |axis: usize| {
        let (near, far) = program.loads_along(axis);
        near as i64 - far as i64
    };
    let along_fold = space.extents[inner] >= 16 && (space.extents[outer] < 16 || near(inner) > near(outer));
    let lane = if along_fold { inner } else { outer };
    let of =
        |axes: std::ops::Range<usize>| -> Vec<usize> { axes.filter(|&a| a != lane && space.extents[a] != 1).collect() };
    let (result_axes, fold_axes) = (of(0..space.results), of(space.results..spare));
    let (extents, init) = (&space.extents, nest.init());
    let mut totals = Fold::new(init, if along_fold { 1 } else { LANES });
    let mut column = Column::new(dtype);
    for_each_point(extents, &result_axes, &mut at, &mut |at| {
        if along_fold {
            totals.reset(init);
            for_each_point(extents, &fold_axes, at, &mut |at| {
                for start in (0..extents[lane]).step_by(LANES) {
                    let n = LANES.min(extents[lane] - start);
                    at[lane] = start as i64;
                    totals.add(nest.combine, dtype, program.run(at, lane, n)?, n, true);
                }
                at[lane] = 0;
                Ok(())
            })?;
            totals.finish(dtype, 1, &mut column);
            results.store(&column, at, spare, 1);
            return Ok(());
        }
        for start in (0..extents[lane]).step_by(LANES) {
            let n = LANES.min(extents[lane] - start);
            at[lane] = start as i64;
            totals.reset(init);
            for_each_point(extents, &fold_axes, at, &mut |at| {
                totals.add(nest.combine, dtype, program.run(at, lane, n)?, n, false);
                Ok(())
            })?;
            totals.finish(dtype, n, &mut column);
            results.store(&column, at, lane, n);
        }
        at[lane] = 0;
        Ok(())
    })?;
    results.finish(sources)
}

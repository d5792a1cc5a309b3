//! Sums of products of two loads (matrix products, convolutions) as packed matrix products.
//!
//! Invariant: it computes what the column program of the same nest computes, but for the order in which floats are added.
//! Products of types up to f32 are exact in f64, so that only the sums round.

use super::EvalError;
use super::index::{Index, Space, for_each_point};
use super::program::{Sources, flat_index};
use crate::dtype::{Class, DType};
use crate::nest::Nest;
use crate::scalar::{BinaryOp, Scalar};
use crate::semantics;
use crate::tensor::Tensor;

/// One factor: a tensor and the address of the element that each point of the space reads.
struct Factor {
    tensor: Tensor,
    address: Index,
}

/// A nest that is a sum of products.
pub(super) struct Product {
    left: Factor,
    right: Factor,
}

/// The nest as a sum of products of two loads whose coordinates are in range and linear in the fold's axes.
///
/// # Errors
/// A load names a source that is not there.
pub(super) fn recognise(nest: &Nest, space: &Space, sources: &Sources<'_>) -> Result<Option<Product>, EvalError> {
    let Scalar::Binary(BinaryOp::Mul, a, b) = nest.body.node(nest.body.result()) else { return Ok(None) };
    let summed = nest.combine == BinaryOp::Add && nest.body.result_type() != DType::Bool;
    let factor = |id| -> Result<Option<Factor>, EvalError> {
        let Scalar::Load(source, coords) = nest.body.node(id) else { return Ok(None) };
        let tensor = sources.get(*source)?.clone();
        if tensor.dtype() != nest.body.dtype(id) || tensor.shape().len() != coords.len() {
            return Ok(None);
        }
        let Some(flat) = flat_index(space, &tensor, coords) else { return Ok(None) };
        let address = space.compile(&flat)?;
        let linear = (space.results..space.extents.len()).all(|axis| address.is_linear_in(axis));
        Ok(linear.then_some(Factor { tensor, address }))
    };
    Ok(match (summed, factor(*a)?, factor(*b)?) {
        (true, Some(left), Some(right)) => Some(Product { left, right }),
        _ => None,
    })
}

/// What products are summed in.
trait Element: Copy + Default {
    fn load(dtype: DType, bytes: &[u8], i: usize) -> Self;
    fn multiply_add(self, a: Self, b: Self) -> Self;
    /// Writes the sum, rounded or wrapped to a type, as element `i` of row-major data.
    fn store(self, dtype: DType, out: &mut [u8], i: usize);
}

fn put<const N: usize>(out: &mut [u8], i: usize, element: [u8; N]) {
    if let Some(slot) = out.as_chunks_mut::<N>().0.get_mut(i) {
        *slot = element;
    }
}

impl Element for f64 {
    fn load(dtype: DType, bytes: &[u8], i: usize) -> f64 {
        semantics::load_f64(dtype, bytes, i)
    }
    #[inline(always)]
    fn multiply_add(self, a: f64, b: f64) -> f64 {
        self + a * b
    }
    fn store(self, dtype: DType, out: &mut [u8], i: usize) {
        match dtype {
            DType::F64 => put(out, i, self.to_le_bytes()),
            DType::F32 => put(out, i, (self as f32).to_le_bytes()),
            _ => {
                let mut element = Vec::with_capacity(4);
                semantics::store_f32(dtype, semantics::narrow(dtype, self), &mut element);
                if let Some(slot) = out.chunks_exact_mut(dtype.size()).nth(i) {
                    slot.copy_from_slice(&element);
                }
            }
        }
    }
}

/// Sums that wrap are wrapped to narrower types at the end: the low bits do not depend on the high ones.
impl Element for i64 {
    fn load(dtype: DType, bytes: &[u8], i: usize) -> i64 {
        semantics::load_i64(dtype, bytes, i)
    }
    #[inline(always)]
    fn multiply_add(self, a: i64, b: i64) -> i64 {
        self.wrapping_add(a.wrapping_mul(b))
    }
    fn store(self, dtype: DType, out: &mut [u8], i: usize) {
        let v = semantics::wrap(dtype, self);
        match dtype.size() {
            1 => put(out, i, [v as u8]),
            2 => put(out, i, (v as i16).to_le_bytes()),
            4 => put(out, i, (v as i32).to_le_bytes()),
            _ => put(out, i, v.to_le_bytes()),
        }
    }
}

/// Rows and columns of a register block: with f64 in 128-bit registers it just fits.
const BLOCK: usize = 4;
/// How much of the fold, and how many columns, are packed at a time: 512 kB of f64, which stay in a level-2 cache.
const DEPTH: usize = 512;
const WIDTH: usize = 128;

impl Product {
    /// Writes the sums as elements of a type to the addresses of the results.
    pub fn eval(&self, space: &Space, dtype: DType, results: &Index, out: &mut [u8]) {
        match dtype.class() {
            Class::Float | Class::Double => self.run::<f64>(space, dtype, results, out),
            Class::Bool | Class::Signed | Class::Unsigned | Class::Complex | Class::Str => {
                self.run::<i64>(space, dtype, results, out);
            }
        }
    }

    fn run<T: Element>(&self, space: &Space, dtype: DType, results: &Index, out: &mut [u8]) {
        // Axes of the left factor alone are rows, of the right one alone columns; those of both, and those that an
        // address is not linear in, are walked one by one.
        let (mut batch, mut rows, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        for axis in (0..space.results).filter(|&a| space.extents[a] != 1) {
            let uses = |f: &Factor| f.address.along(axis).map(|step| step != 0);
            match (uses(&self.left), uses(&self.right)) {
                (Some(true), Some(false)) => rows.push(axis),
                (Some(false), Some(_)) => columns.push(axis),
                _ => batch.push(axis),
            }
        }
        let length = |axes: &[usize]| axes.iter().map(|&a| space.extents[a]).product::<usize>();
        let (mut left, mut right) = (&self.left, &self.right);
        if length(&rows) > length(&columns) {
            std::mem::swap(&mut rows, &mut columns);
            std::mem::swap(&mut left, &mut right);
        }
        let fold: Vec<usize> = (space.results..space.extents.len()).filter(|&a| space.extents[a] != 1).collect();
        let left_rows = offsets(space, &rows, &left.address);
        let right_columns = offsets(space, &columns, &right.address);
        let (left_fold, right_fold) = (offsets(space, &fold, &left.address), offsets(space, &fold, &right.address));
        let (row_out, column_out) = (offsets(space, &rows, results), offsets(space, &columns, results));
        let mut sums = vec![T::default(); left_rows.len() * WIDTH];
        let mut packed_left = vec![T::default(); BLOCK * DEPTH];
        let mut packed_right = vec![T::default(); WIDTH * DEPTH];
        let mut at = vec![0i64; space.extents.len()];
        let points = for_each_point(&space.extents, &batch, &mut at, &mut |at| {
            let (from_left, from_right) = (left.address.eval(at), right.address.eval(at));
            let to = results.eval(at);
            for (block, part) in right_columns.chunks(WIDTH).enumerate() {
                sums.fill(T::default());
                let width = part.len().next_multiple_of(BLOCK);
                for (lefts, rights) in left_fold.chunks(DEPTH).zip(right_fold.chunks(DEPTH)) {
                    let depth = lefts.len();
                    pack(&right.tensor, from_right, part, rights, &mut packed_right);
                    for (group, four) in left_rows.chunks(BLOCK).enumerate() {
                        pack(&left.tensor, from_left, four, lefts, &mut packed_left);
                        let sums = &mut sums[group * BLOCK * WIDTH..];
                        for column in (0..width).step_by(BLOCK) {
                            let right = &packed_right[column * depth..][..BLOCK * depth];
                            let left = &packed_left[..BLOCK * depth];
                            match four.len() {
                                BLOCK => multiply::<T, BLOCK>(left, right, &mut sums[column..]),
                                3 => multiply::<T, 3>(left, right, &mut sums[column..]),
                                2 => multiply::<T, 2>(left, right, &mut sums[column..]),
                                _ => multiply::<T, 1>(left, right, &mut sums[column..]),
                            }
                        }
                    }
                }
                let columns_to = &column_out[block * WIDTH..][..part.len()];
                for (row, row_to) in sums.chunks(WIDTH).zip(&row_out) {
                    for (sum, column_to) in row.iter().zip(columns_to) {
                        sum.store(dtype, out, (to + row_to + column_to) as usize);
                    }
                }
            }
            Ok(())
        });
        // The loop above has no way to fail.
        debug_assert!(points.is_ok());
    }
}

/// How the address changes along some axes: one entry for each point, the last axis fastest.
fn offsets(space: &Space, axes: &[usize], address: &Index) -> Vec<i64> {
    let mut offsets = vec![0i64];
    for &axis in axes {
        let step = address.along(axis).unwrap_or(0);
        let along = |from: i64| (0..space.extents[axis]).map(move |i| from + step * i as i64);
        offsets = offsets.into_iter().flat_map(along).collect();
    }
    offsets
}

/// Packs the elements at `from + across + along` so that a block of [`BLOCK`] places across lies together, the fold
/// slower: `[across / BLOCK][along][BLOCK]`. Missing places of the last block become 0.
fn pack<T: Element>(tensor: &Tensor, from: i64, across: &[i64], along: &[i64], out: &mut [T]) {
    let (dtype, bytes) = (tensor.dtype(), tensor.bytes());
    for (four, block) in across.chunks(BLOCK).zip(out.chunks_mut(BLOCK * along.len())) {
        if four.len() < BLOCK {
            block.fill(T::default());
        }
        // The element type is chosen outside of the loop for the type that matters.
        if dtype == DType::F32 {
            fill(from, four, along, block, |i| T::load(DType::F32, bytes, i));
        } else {
            fill(from, four, along, block, |i| T::load(dtype, bytes, i));
        }
    }
}

fn fill<T: Element>(from: i64, four: &[i64], along: &[i64], block: &mut [T], load: impl Fn(usize) -> T) {
    for (slots, step) in block.chunks_mut(BLOCK).zip(along) {
        for (slot, offset) in slots.iter_mut().zip(four) {
            *slot = load((from + step + offset) as usize);
        }
    }
}

/// Adds the product of `ROWS` packed rows and [`BLOCK`] packed columns to sums that lie in rows of [`WIDTH`].
fn multiply<T: Element, const ROWS: usize>(left: &[T], right: &[T], sums: &mut [T]) {
    let mut block = [[T::default(); BLOCK]; ROWS];
    for (a, b) in left.as_chunks::<BLOCK>().0.iter().zip(right.as_chunks::<BLOCK>().0) {
        for (row, &a) in block.iter_mut().zip(a) {
            for (sum, &b) in row.iter_mut().zip(b) {
                *sum = sum.multiply_add(a, b);
            }
        }
    }
    let one = T::load(DType::Bool, &[1], 0);
    for (row, from) in sums.chunks_mut(WIDTH).zip(&block) {
        for (sum, &v) in row.iter_mut().zip(from) {
            *sum = sum.multiply_add(v, one);
        }
    }
}

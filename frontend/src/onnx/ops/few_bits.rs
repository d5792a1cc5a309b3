//! Numbers of 4 bits or fewer, two a byte.
//!
//! Invariant: byte `j` of a run of 32 numbers holds numbers `j` and `j + 16`, low half first, as GGUF has them: a vector of bytes then becomes
//! vectors of numbers without a shuffle (ADR 44). Blocks that are made of no such runs have runs of 16 or 8, in the same order (ADR 55).

use crate::gguf::{BLOCK, shifts_of_halves};
use crate::onnx::import::{Context, Failure};
use half::f16;
use kiln_ir::graph::ValueId;
use kiln_ir::{DType, Tensor};

/// Numbers whose bytes lie together, where blocks are made of such runs.
pub(super) const RUN: usize = BLOCK;

/// The run of blocks of so many numbers, if they are made of runs.
fn run_of(block: usize) -> Option<usize> {
    [RUN, RUN / 2, RUN / 4].into_iter().find(|&run| block > 0 && block.is_multiple_of(run))
}

/// Whether numbers, each in a byte, are stored two a byte where blocks have so many.
pub(super) fn fits(values: &[u8], block: usize) -> bool {
    run_of(block).is_some() && values.iter().all(|&v| v < 16)
}

/// Numbers that [`fits`], `[n, blocks, block]`, two a byte: `[n, blocks, 1, run / 2]`, or `[n, blocks, runs, 1, run / 2]` where blocks have
/// several runs.
pub(super) fn packed(values: &[u8], [n, blocks, block]: [usize; 3]) -> Result<Tensor, Failure> {
    let run = run_of(block).unwrap_or(RUN);
    let joined = |run: &[u8]| -> Vec<u8> {
        let (low, high) = run.split_at(run.len() / 2);
        low.iter().zip(high).map(|(low, high)| low | high << 4).collect()
    };
    let bytes: Vec<u8> = values.chunks(run).flat_map(joined).collect();
    let mut shape = vec![n, blocks];
    shape.extend((block > run).then_some(block / run));
    shape.extend([1, run / 2]);
    Ok(Tensor::new(DType::U8, shape, bytes)?)
}

/// The numbers of `[.., 1, run / 2]` bytes, `[.., run]`, as i32.
pub(super) fn unpacked(cx: &mut Context, bytes: ValueId) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(bytes);
    let half = dims.pop().ok_or_else(|| Failure::invalid("packed numbers have an axis"))?;
    dims.pop();
    dims.push(half.scale(2));
    let shifts = cx.constant(shifts_of_halves()?);
    let wide = cx.map(&[bytes, shifts], |b, a| b.half_of_byte(a[0], a[1]))?;
    cx.reshape(wide, dims)
}

/// Numbers of a matrix, each in a byte, `[n, blocks, block]`: as a value of such dims, or `[n, blocks, runs, run]` where they are stored two a
/// byte and blocks have several runs; and the dims of what has one element for each block, to go with it.
pub(super) fn numbers(
    cx: &mut Context,
    values: Vec<u8>,
    [n, blocks, block]: [usize; 3],
) -> Result<(ValueId, Vec<usize>), Failure> {
    let value = if fits(&values, block) {
        let bytes = packed(&values, [n, blocks, block])?;
        let bytes = cx.constant(bytes);
        unpacked(cx, bytes)?
    } else {
        cx.constant(Tensor::new(DType::U8, vec![n, blocks, block], values)?)
    };
    let ones = cx.rank(value).saturating_sub(2);
    Ok((value, [vec![n, blocks], vec![1; ones]].concat()))
}

/// Constant scales in f32 as f16 where that loses nothing: they are read once for each block.
pub(super) fn narrowed(cx: &mut Context, scales: ValueId) -> Result<ValueId, Failure> {
    let Some(tensor) = cx.constant_of(scales).filter(|t| t.dtype() == DType::F32) else { return Ok(scales) };
    let Some(values) = tensor.to_f32() else { return Ok(scales) };
    let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    if halves.iter().zip(&values).any(|(half, value)| half.to_f32() != *value) {
        return Ok(scales);
    }
    let bytes: Vec<u8> = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
    let narrow = Tensor::new(DType::F16, tensor.shape().to_vec(), bytes)?;
    Ok(cx.constant(narrow))
}

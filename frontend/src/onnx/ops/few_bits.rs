//! Numbers of 4 bits, two a byte, and of 2 bits, four a byte.
//!
//! Invariant: byte `j` of a run of 32 numbers holds numbers `j` and `j + 16`, low half first, as GGUF has them: a vector of bytes then becomes
//! vectors of numbers without a shuffle (ADR 44). Four a byte are numbers `j`, `j + 8`, `j + 16` and `j + 24`. Blocks that are made of no such
//! runs have runs of 16 or 8, in the same order (ADR 55).

use crate::gguf::BLOCK;
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

/// How many of the numbers, each in a byte, are stored in a byte where blocks have so many; nothing where each keeps its own.
pub(super) fn fits(values: &[u8], block: usize) -> Option<usize> {
    let below = |bound: u8| values.iter().all(|&v| v < bound);
    run_of(block)?;
    match () {
        () if below(4) => Some(4),
        () if below(16) => Some(2),
        () => None,
    }
}

/// Numbers that [`fits`], `[n, blocks, block]`, `each` of them a byte: `[n, blocks, 1, run / each]`, or `[n, blocks, runs, 1, run / each]`
/// where blocks have several runs.
pub(super) fn packed(values: &[u8], each: usize, [n, blocks, block]: [usize; 3]) -> Result<Tensor, Failure> {
    let run = run_of(block).unwrap_or(RUN);
    let bytes = run / each;
    let joined = |run: &[u8], j: usize| {
        let numbers = run.iter().skip(j).step_by(bytes).enumerate();
        numbers.fold(0u8, |byte, (part, number)| byte | number << (part * 8 / each))
    };
    let all: Vec<u8> = values.chunks(run).flat_map(|run| (0..bytes).map(move |j| joined(run, j))).collect();
    let mut shape = vec![n, blocks];
    shape.extend((block > run).then_some(block / run));
    shape.extend([1, bytes]);
    Ok(Tensor::new(DType::U8, shape, all)?)
}

/// The numbers of `[.., 1, run / each]` bytes, `[.., run]`, as i32.
pub(super) fn unpacked(cx: &mut Context, bytes: ValueId, each: usize) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(bytes);
    let of_a_run = dims.pop().ok_or_else(|| Failure::invalid("packed numbers have an axis"))?;
    dims.pop();
    let count = i64::try_from(each).unwrap_or(1);
    dims.push(of_a_run.scale(count));
    let bits = 8 / count;
    let shifts: Vec<u8> = (0..count).flat_map(|part| ((part * bits) as i32).to_le_bytes()).collect();
    let shifts = cx.constant(Tensor::new(DType::I32, vec![each, 1], shifts)?);
    let wide = cx.map(&[bytes, shifts], |b, a| b.part_of_byte(a[0], a[1], bits))?;
    cx.reshape(wide, dims)
}

/// Numbers of a matrix, each in a byte, `[n, blocks, block]`: as a value of such dims, or `[n, blocks, runs, run]` where several are stored in
/// a byte and blocks have several runs; and the dims of what has one element for each block, to go with it.
pub(super) fn numbers(
    cx: &mut Context,
    values: Vec<u8>,
    [n, blocks, block]: [usize; 3],
) -> Result<(ValueId, Vec<usize>), Failure> {
    let value = match fits(&values, block) {
        Some(each) => {
            let bytes = packed(&values, each, [n, blocks, block])?;
            let bytes = cx.constant(bytes);
            unpacked(cx, bytes, each)?
        }
        None => cx.constant(Tensor::new(DType::U8, vec![n, blocks, block], values)?),
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

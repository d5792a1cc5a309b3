//! Lowered programs against the interpreter of tile programs, and goldens.

mod ahead;
mod cases;
mod random;
mod waiting;

use super::{VectorTarget, lower};
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::tile::{self, TileProgram};
use kiln_ir::vector::{self, VectorProgram};
use kiln_ir::{Class, DType, semantics};

const TARGET: VectorTarget = VectorTarget { bytes: 16, pairs: false, matrices: false, fused: true };

/// Element types, bytes and dims for a run.
struct Setting {
    buffers: Vec<Vec<u8>>,
    dims: Vec<(Symbol, i64)>,
}

impl Setting {
    fn value(&self, s: &Symbol) -> Option<i64> {
        self.dims.iter().find(|(d, _)| d == s).map(|(_, v)| *v)
    }
}

/// Deterministic numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Elements of small whole numbers; bools are 0 or 1.
    fn elements(&mut self, dtype: DType, count: usize, lo: i64, hi: i64) -> Vec<u8> {
        let mut out = Vec::new();
        for _ in 0..count {
            let v = lo + self.below((hi - lo + 1) as usize) as i64;
            match dtype.class() {
                Class::Float => semantics::store_f32(dtype, v as f32, &mut out),
                Class::Double => out.extend_from_slice(&(v as f64).to_le_bytes()),
                Class::Bool => out.push(u8::from(v > 0)),
                Class::Signed | Class::Unsigned | Class::Complex | Class::Str => {
                    semantics::store_i64(dtype, v, &mut out);
                }
            }
        }
        out
    }
}

/// Lowers, runs both interpreters and compares what they stored: bit by bit, or floats within the tolerance,
/// relative to the greatest of the buffer. The lowered program runs in two halves.
fn agree(program: &TileProgram, setting: &Setting, ranges: &Ranges, tolerance: f64) -> VectorProgram {
    agree_for(TARGET, program, setting, ranges, tolerance)
}

fn agree_for(
    target: VectorTarget,
    program: &TileProgram,
    setting: &Setting,
    ranges: &Ranges,
    tolerance: f64,
) -> VectorProgram {
    let dims: Vec<Symbol> = setting.dims.iter().map(|(d, _)| d.clone()).collect();
    let lowered = lower(program, target, &dims, ranges).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let mut expected = setting.buffers.clone();
    let count = program.programs().eval(&|s| setting.value(s)).expect("a number of programs");
    let wanted = tile::run(program, &mut expected, &|s| setting.value(s), 0..count);
    let values: Vec<i64> = setting.dims.iter().map(|(_, v)| *v).collect();
    let mut found = setting.buffers.clone();
    let mut status = 0;
    for (lo, hi) in [(0, count / 2), (count / 2, count + 3)] {
        let mut buffers: Vec<&mut [u8]> = found.iter_mut().map(Vec::as_mut_slice).collect();
        if status == 0 {
            status = vector::run(&lowered, &mut buffers, &values, lo, hi, true)
                .unwrap_or_else(|e| panic!("{e}\n{program}\n{lowered}"));
        }
    }
    match wanted {
        Ok(()) => assert_eq!(status, 0, "{program}\n{lowered}"),
        Err(tile::RunError::Failed { status: wanted, .. }) => {
            assert_eq!(status, wanted, "{program}\n{lowered}");
            return lowered;
        }
        Err(e) => panic!("{e}\n{program}"),
    }
    for (k, buffer) in program.arguments().enumerate() {
        let (a, b) = (&expected[k], &found[k]);
        let n = a.len() / buffer.dtype.size();
        let number = |bytes: &[u8], i: usize| semantics::load_f64(buffer.dtype, bytes, i);
        let scale = (0..n).map(|i| number(a, i).abs()).filter(|v| v.is_finite()).fold(1.0, f64::max);
        for i in 0..n {
            let (x, y) = (number(a, i), number(b, i));
            let size = buffer.dtype.size();
            let same = a[i * size..][..size] == b[i * size..][..size] || x.is_nan() && y.is_nan();
            let close = buffer.dtype.is_float() && (x - y).abs() <= tolerance * scale;
            assert!(same || close, "{}[{i}]: {y:?}, wants {x:?}\n{program}\n{lowered}", buffer.name);
        }
    }
    lowered
}

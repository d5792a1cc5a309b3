//! Register tiles of dot products of bytes, as products of quantized tensors have them: emitted code beside the interpreter, on every level.

mod wide_support;

use kiln_ir::vector::VectorProgram;
use std::fmt::Write;
use wide_support::{SIZES, check, runs_here};

/// Sums of `rows` by two vectors over eight steps of four bytes, added to what was there before; `small`: of the left bytes only 7 bits.
fn tile(rows: usize, lanes: u32, small: bool) -> String {
    let ty = format!("i32x{lanes}");
    let mut text =
        String::from("vector @k(b0: i32, b1: i32, b2: i32 written, dims 0) {\n  %0: i64 = 0i64\n  %1: i64 = 8i64\n");
    let sums = 2 * rows;
    for n in 0..sums {
        writeln!(text, "  %{}: {ty} = load b2[{}]", 2 + n, n as u32 * lanes).unwrap();
    }
    let (index, mut next) = (2 + sums, 3 + sums);
    let mut id = || {
        next += 1;
        next - 1
    };
    let inside: Vec<usize> = (0..sums).map(|_| id()).collect();
    let carried = (0..sums).map(|n| format!("%{}: {ty} = %{}", inside[n], 2 + n)).collect::<Vec<_>>().join(", ");
    writeln!(text, "  for %{index} in %0..%1 step 1 carry ({carried}) {{").unwrap();
    let (width, at) = (id(), id());
    writeln!(text, "    %{width}: i64 = {}i64\n    %{at}: i64 = mul(%{index}, %{width})", 2 * lanes).unwrap();
    let columns = [0, lanes].map(|offset| {
        let column = id();
        writeln!(text, "    %{column}: {ty} = load b1[%{at} + {offset}]").unwrap();
        column
    });
    let mut results = Vec::new();
    for row in 0..rows {
        let left = id();
        writeln!(text, "    %{left}: {ty} = load_splat b0[%{index} + {}]", 8 * row).unwrap();
        let left = if small {
            let (mask, bits) = (id(), id());
            writeln!(text, "    %{mask}: {ty} = {}i32\n    %{bits}: {ty} = and(%{left}, %{mask})", 0x7f7f_7f7f)
                .unwrap();
            bits
        } else {
            left
        };
        for (n, column) in columns.into_iter().enumerate() {
            let (dot, sum) = (id(), id());
            writeln!(text, "    %{dot}: {ty} = dot4(%{left}, %{column})").unwrap();
            writeln!(text, "    %{sum}: {ty} = add(%{}, %{dot})", inside[2 * row + n]).unwrap();
            results.push(sum);
        }
    }
    let after: Vec<usize> = results.iter().map(|_| id()).collect();
    let list = |ids: &[usize]| ids.iter().map(|id| format!("%{id}")).collect::<Vec<_>>().join(", ");
    writeln!(text, "  }} next ({}) as ({})", list(&results), list(&after)).unwrap();
    for (n, sum) in after.iter().enumerate() {
        writeln!(text, "  store b2[{}], %{sum}", n as u32 * lanes).unwrap();
    }
    text + "}\n"
}

#[test]
fn register_tiles() {
    let mut state = 1u64;
    let mut bytes = |count: usize| -> Vec<u8> {
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The greatest and least numbers often: sums of two of their products are more than 16 bits hold.
            [(state >> 56) as u8, 0xff, 0x80, 0x7f][(state >> 40) as usize % 4]
        };
        (0..count).map(next).collect()
    };
    for (level, size) in SIZES.into_iter().filter(|(level, _)| runs_here(*level)) {
        // With six rows all registers of AVX2 are taken.
        for (rows, small) in [(1, false), (4, false), (6, false), (1, true), (4, true)] {
            let lanes = size / 4;
            let program = VectorProgram::parse(&tile(rows, lanes, small)).unwrap();
            let (left, right) = (bytes(4 * 8 * rows), bytes(4 * 8 * 2 * lanes as usize));
            let sums = bytes(4 * 2 * rows * lanes as usize);
            check(&program, level, &[left, right, sums], &[], (0, 1)).unwrap();
        }
    }
}

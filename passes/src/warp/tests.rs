//! Tile programs, lowered and run by the interpreter of warp programs, against the interpreter of tile programs.

use super::*;
use kiln_ir::scalar::Constant;
use kiln_ir::{tile, warp};

/// A matrix product with ragged edges: `y = act(x · w + b)`.
fn matmul(m: usize, n: usize, k: usize, (bm, bn, bk): (usize, usize, usize), dtype: &str, act: &str) -> String {
    let (gm, gn, kk) = (m.div_ceil(bm), n.div_ceil(bn), k.next_multiple_of(bk));
    let mask = |conditions: &[(bool, String)]| {
        let kept: Vec<&str> = conditions.iter().filter(|(ragged, _)| *ragged).map(|(_, c)| c.as_str()).collect();
        if kept.is_empty() { String::new() } else { format!(" if({}) else 0.0{dtype}", kept.join(", ")) }
    };
    let (rows, columns, depth) = (m % bm != 0, n % bn != 0, k % bk != 0);
    let x = mask(&[(rows, format!("a0 + {bm}*i < {m}")), (depth, format!("a1 + k < {k}"))]);
    let w = mask(&[(columns, format!("a1 + {bn}*j < {n}")), (depth, format!("a0 + k < {k}"))]);
    let b = mask(&[(columns, format!("a1 + {bn}*j < {n}"))]).replace(dtype, "f32");
    let y = mask(&[(rows, format!("a0 + {bm}*i < {m}")), (columns, format!("a1 + {bn}*j < {n}"))]);
    let y = y.split(" else").next().unwrap_or("");
    let (xs, ws, ys) = (m * k, k * n, m * n);
    format!(
        "\
kernel @mm(x: {dtype}[{xs}], w: {dtype}[{ws}], b: f32[{n}], y: f32[{ys}] written) {{
  part grid(i = {gm}, j = {gn}) {{
    %0: f32[{bm},{bn}] = const 0.0f32
    for k in 0..{kk} step {bk} carry(%1: f32[{bm},{bn}] = %0) {{
      %2: {dtype}[{bm},{bk}] = load x[a1 + {k}*a0 + {bm}*{k}*i + k]{x}
      %3: {dtype}[{bk},{bn}] = load w[a1 + {n}*a0 + {bn}*j + {n}*k]{w}
      %4: f32[{bm},{bn}] = dot %2, %3, %1
    }} next(%4) as(%5)
    %6: f32[1,{bn}] = load b[a1 + {bn}*j]{b}
    %7: f32[{bm},{bn}] = add %5, %6
    %8: f32[{bm},{bn}] = {act} %7
    store y[a1 + {n}*a0 + {bm}*{n}*i + {bn}*j] = %8{y}
  }}
}}
"
    )
}

/// A softmax of rows of `n` elements, `rows` of them at a time, each padded to `width`.
fn softmax(m: usize, n: usize, rows: usize, width: usize) -> String {
    let g = m.div_ceil(rows);
    let row = if m.is_multiple_of(rows) { String::new() } else { format!(", a0 + {rows}*i < {m}") };
    let size = m * n;
    format!(
        "\
kernel @softmax(x: f32[{size}], y: f32[{size}] written) {{
  part grid(i = {g}) {{
    %0: f32[{rows},{width}] = load x[a1 + {n}*a0 + {rows}*{n}*i] if(a1 < {n}{row}) else minus_inf_f32
    %1: f32[{rows},1] = reduce max 1, %0
    %2: f32[{rows},{width}] = sub %0, %1
    %3: f32[{rows},{width}] = exp %2
    %4: f32[{rows},1] = reduce add 1, %3
    %5: f32[{rows},{width}] = div %3, %4
    store y[a1 + {n}*a0 + {rows}*{n}*i] = %5 if(a1 < {n}{row})
  }}
}}
"
    )
}

fn parse(text: &str) -> TileProgram {
    let program = TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    if let Err(errors) = program.verify(&Ranges::new()) {
        panic!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }
    program
}

/// Numbers between -2 and 2 that differ from element to element.
fn data(dtype: DType, len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    for _ in 0..len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = (state >> 40) as f64 / f64::from(1 << 22) - 2.0;
        let c = if dtype.is_float() {
            Constant::float(dtype, value)
        } else {
            Constant::int(dtype, (state >> 50) as i64 % 19 - 9)
        };
        c.store(&mut bytes);
    }
    bytes
}

/// Lowers the program, checks what comes out, runs both, and returns the kernels with what they did. Every element of every
/// result differs from the tile program's by at most `tolerance` of its magnitude, or at least 1.
fn check(text: &str, options: &Options, tolerance: f64) -> Vec<(WarpProgram, warp::Counts)> {
    let program = parse(text);
    let kernels = lower(&program, &Ranges::new(), options).unwrap_or_else(|e| panic!("{e}"));
    let lens: Vec<usize> = program.buffers.iter().map(|b| b.len.as_size().unwrap()).collect();
    let buffers: Vec<Vec<u8>> =
        program.buffers.iter().zip(&lens).zip(1..).map(|((b, &len), seed)| data(b.dtype, len, seed)).collect();
    let mut want = buffers.clone();
    tile::run(&program, &mut want, &|_| None, 0..i64::MAX).unwrap();
    let mut found = buffers;
    let mut results = Vec::new();
    for kernel in kernels {
        let text = kernel.to_string();
        if let Err(errors) = kernel.verify() {
            panic!("{}\n{text}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
        }
        assert_eq!(WarpProgram::parse(&text).map(|k| k.to_string()).as_ref(), Ok(&text));
        let counts = warp::run(&kernel, &mut found, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
        results.push((kernel, counts));
    }
    for (((b, len), want), found) in program.buffers.iter().zip(lens).zip(&want).zip(&found) {
        for i in 0..len {
            let value = |bytes: &[u8]| Constant::load(b.dtype, bytes, i).map_or(f64::NAN, Constant::as_f64);
            let (w, f) = (value(want), value(found));
            let close = (w - f).abs() <= tolerance * w.abs().max(1.0);
            assert!(w == f || w.is_nan() && f.is_nan() || close, "{}[{i}]: {f}, wants {w}\n{}", b.name, results[0].0);
        }
    }
    results
}

fn stages(stages: usize) -> Options {
    Options { stages, ..Options::default() }
}

#[test]
fn products_of_f32_are_those_of_the_tile_program_bit_by_bit() {
    for (m, n, k, tile) in [
        (64, 64, 32, (64, 64, 16)),
        (100, 72, 40, (32, 32, 16)),
        (65, 67, 33, (32, 64, 8)),
        (1, 130, 50, (1, 64, 32)),
        (7, 5, 3, (16, 16, 16)),
        (40, 24, 20, (12, 24, 10)),
    ] {
        for ahead in [1, 2, 3, 4] {
            check(&matmul(m, n, k, tile, "f32", "neg"), &stages(ahead), 0.0);
        }
    }
}

#[test]
fn products_of_halves_use_matrix_instructions() {
    for dtype in ["f16", "bf16"] {
        for (m, n, k, tile) in [
            (64, 64, 64, (64, 64, 32)),
            (100, 72, 96, (32, 64, 32)),
            (65, 67, 50, (32, 64, 16)),
            (30, 16, 40, (16, 8, 16)),
            (128, 64, 64, (128, 64, 32)),
        ] {
            for ahead in [1, 3] {
                let runs = check(&matmul(m, n, k, tile, dtype, "abs"), &stages(ahead), 1e-5);
                // Every warp's share of every step: 16 * 8 * 16 products an instruction.
                let (bm, bn, bk) = tile;
                let blocks = m.div_ceil(bm) * n.div_ceil(bn) * k.div_ceil(bk);
                let least = blocks * (bm * bn * bk) / (16 * 8 * 16);
                let mma = runs[0].1.mma as usize;
                assert!(mma >= least, "{mma} matrix products, wants {least}");
                // Fragments are read without conflicts; two rows of 64 bytes and their gap are one word group too long
                // for the eight lanes that write them at a time.
                let counts = runs[0].1;
                assert!(counts.wavefronts * 4 <= counts.least_wavefronts * 5, "bank conflicts: {counts:?}");
            }
        }
    }
}

#[test]
fn rows_become_their_softmax() {
    for (m, n, rows, width) in
        [(3, 128, 1, 128), (5, 1000, 1, 1024), (7, 37, 2, 64), (4, 2048, 1, 2048), (9, 10, 4, 12), (2, 5000, 1, 8192)]
    {
        for threads in [None, Some(32), Some(256)] {
            check(&softmax(m, n, rows, width), &Options { threads, ..Options::default() }, 1e-6);
        }
    }
}

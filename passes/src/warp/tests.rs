//! Tile programs, lowered and run by the interpreter of warp programs, against the interpreter of tile programs.

use super::*;
use kiln_ir::scalar::Constant;
use kiln_ir::{tile, warp};

/// A matrix product with ragged edges: `y = act(x · w + b)`.
fn matmul(m: usize, n: usize, k: usize, tile: (usize, usize, usize), dtype: &str, act: &str) -> String {
    turned(m, n, k, tile, dtype, act, [false; 2])
}

/// The same with `x`, `w` or both the other way round in memory.
fn turned(
    m: usize,
    n: usize,
    k: usize,
    (bm, bn, bk): (usize, usize, usize),
    dtype: &str,
    act: &str,
    turned: [bool; 2],
) -> String {
    let from_x =
        if turned[0] { format!("{m}*a1 + a0 + {bm}*i + {m}*k") } else { format!("a1 + {k}*a0 + {bm}*{k}*i + k") };
    let from_w =
        if turned[1] { format!("{k}*a1 + a0 + {bn}*{k}*j + k") } else { format!("a1 + {n}*a0 + {bn}*j + {n}*k") };
    let (gm, gn, kk) = (m.div_ceil(bm), n.div_ceil(bn), k.next_multiple_of(bk));
    let mask = |conditions: &[(bool, String)]| {
        let kept: Vec<&str> = conditions.iter().filter(|(ragged, _)| *ragged).map(|(_, c)| c.as_str()).collect();
        if kept.is_empty() { String::new() } else { format!(" if({}) else 0.0{dtype}", kept.join(", ")) }
    };
    let (rows, columns, depth) = (!m.is_multiple_of(bm), !n.is_multiple_of(bn), !k.is_multiple_of(bk));
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
      %2: {dtype}[{bm},{bk}] = load x[{from_x}]{x}
      %3: {dtype}[{bk},{bn}] = load w[{from_w}]{w}
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
            // Words of bytes are i32; other integers are small.
            Constant::int(dtype, if dtype == DType::I32 { state as i32 as i64 } else { (state >> 50) as i64 % 19 - 9 })
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
        let outcome = warp::run(&kernel, &mut found, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(outcome.status, 0);
        results.push((kernel, outcome.counts));
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
        for around in [[false, true], [true, false], [true, true]] {
            check(&turned(m, n, k, tile, "f32", "neg", around), &stages(1), 0.0);
            check(&turned(m, n, k, tile, "f32", "neg", around), &stages(3), 0.0);
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
            for (ahead, around) in
                [(1, [false; 2]), (3, [false; 2]), (3, [false, true]), (1, [true, false]), (3, [true; 2])]
            {
                let runs = check(&turned(m, n, k, tile, dtype, "abs", around), &stages(ahead), 1e-5);
                // Every warp's share of every step: 16 * 8 * 16 products an instruction.
                let (bm, bn, bk) = tile;
                let blocks = m.div_ceil(bm) * n.div_ceil(bn) * k.div_ceil(bk);
                let least = blocks * (bm * bn * bk) / (16 * 8 * 16);
                let counts = runs[0].1;
                let mma = counts.mma as usize;
                assert!(mma >= least, "{mma} matrix products, wants {least}");
                // Rows of an odd number of halves can only be copied one by one, of which two are in each bank.
                let even = m % 8 == 0 && n % 8 == 0 && k % 8 == 0;
                assert!(!even || counts.wavefronts == counts.least_wavefronts, "{tile:?} {around:?} {counts:?}");
            }
        }
    }
}

/// [`turned`] of words of four bytes: sums are i32.
fn of_bytes(m: usize, n: usize, k: usize, tile: (usize, usize, usize), op: &str, around: [bool; 2]) -> String {
    let text = turned(m, n, k, tile, "f32", "neg", around);
    text.replace("f32", "i32").replace("0.0i32", "0i32").replace("= dot ", &format!("= dot_{op} "))
}

#[test]
fn products_of_bytes_use_matrix_instructions_and_are_exact() {
    for (op, around) in [
        ("u8s8", [false, true]),
        ("s8u8", [false, true]),
        ("u8s8", [false; 2]),
        ("s8u8", [true, false]),
        ("u8s8", [true; 2]),
    ] {
        for (m, n, k, tile) in [
            (64, 64, 64, (64, 64, 32)),
            (100, 72, 96, (32, 64, 16)),
            (65, 67, 50, (32, 64, 8)),
            (30, 16, 40, (16, 8, 16)),
            (128, 128, 64, (128, 128, 32)),
        ] {
            for ahead in [1, 3] {
                let counts = check(&of_bytes(m, n, k, tile, op, around), &stages(ahead), 0.0)[0].1;
                let (bm, bn, bk) = tile;
                let least = m.div_ceil(bm) * n.div_ceil(bn) * k.div_ceil(bk) * (bm * bn * bk) / (16 * 8 * 8);
                assert!(counts.mma as usize >= least, "{} matrix products, wants {least}", counts.mma);
                let even = m % 4 == 0 && n % 4 == 0 && k % 4 == 0;
                assert!(!even || counts.wavefronts == counts.least_wavefronts, "{tile:?} {around:?} {counts:?}");
            }
        }
        // Too few rows, or a fold that is no multiple of what an instruction takes.
        for (m, n, k, tile) in [(7, 40, 20, (8, 16, 4)), (20, 24, 13, (16, 16, 13))] {
            let counts = check(&of_bytes(m, n, k, tile, op, around), &stages(2), 0.0)[0].1;
            assert_eq!(counts.mma, 0);
        }
    }
}

/// Factors of tf32 have 11 bits, so a product of two errs by 2^-11 of itself at most; as sums of two they have 22, and the product of
/// the small parts is left out: 2^-21. Products are 1 in the mean.
#[test]
fn products_of_rounded_f32_use_matrix_instructions() {
    for (floats, bits, times) in [(Floats::Tf32, 11, 1), (Floats::Fast, 21, 3)] {
        for (m, n, k, tile) in [
            (64, 64, 64, (64, 64, 32)),
            (100, 72, 96, (32, 64, 16)),
            (65, 67, 50, (32, 64, 8)),
            (128, 64, 64, (128, 64, 32)),
        ] {
            for (ahead, around) in [(3, [false; 2]), (1, [false, true]), (3, [true, false]), (3, [true; 2])] {
                let options = Options { floats, ..stages(ahead) };
                let tolerance = k as f64 * 2f64.powi(-bits);
                let counts = check(&turned(m, n, k, tile, "f32", "abs", around), &options, tolerance)[0].1;
                let (bm, bn, bk) = tile;
                let blocks = m.div_ceil(bm) * n.div_ceil(bn) * k.div_ceil(bk);
                let least = times * blocks * (bm * bn * bk) / (16 * 8 * 8);
                assert!(counts.mma as usize >= least, "{} matrix products, wants {least}", counts.mma);
            }
        }
    }
}

#[test]
fn operands_lie_in_shared_memory_without_bank_conflicts() {
    for dtype in ["f32", "f16"] {
        for around in [[false, false], [false, true], [true, false], [true, true]] {
            for tile in [(128, 128, 16), (64, 64, 32), (64, 32, 16), (32, 128, 8), (64, 16, 16), (64, 16, 8)] {
                if dtype == "f16" && tile.2 < 16 {
                    continue;
                }
                let counts = check(&turned(128, 128, 64, tile, dtype, "abs", around), &stages(3), 1e-5)[0].1;
                assert_eq!(counts.wavefronts, counts.least_wavefronts, "{dtype} {tile:?} {around:?}");
                assert_eq!(counts.sectors, counts.least_sectors, "{dtype} {tile:?} {around:?}");
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

/// Attention of `n` queries over `n` keys of 16 numbers, 16 queries and 32 keys at a time.
fn attention(n: usize, dtype: &str) -> String {
    let (blocks, end, size) = (n.div_ceil(16), n.next_multiple_of(32), n * 16);
    format!(
        "\
kernel @attention(q: {dtype}[{size}], k: {dtype}[{size}], v: {dtype}[{size}], y: f32[{size}] written) {{
  part grid(i = {blocks}) {{
    %0: {dtype}[16,16] = load q[a1 + 16*a0 + 256*i] if(a0 + 16*i < {n}) else 0.0{dtype}
    %1: f32[16,16] = const 0.0f32
    %2: f32[16,1] = const minus_inf_f32
    %3: f32[16,1] = const 0.0f32
    %4: f32[16,32] = const 0.0f32
    for j in 0..{end} step 32 carry(%5: f32[16,16] = %1, %6: f32[16,1] = %2, %7: f32[16,1] = %3) {{
      %8: {dtype}[32,16] = load k[a1 + 16*a0 + 16*j] if(a0 + j < {n}) else 0.0{dtype}
      %9: {dtype}[16,32] = transpose [1, 0], %8
      %10: f32[16,32] = dot %0, %9, %4
      %11: i64[1,32] = index(a1 + j)
      %12: i64[1,1] = const {n}i64
      %13: bool[1,32] = lt %11, %12
      %14: f32[1,1] = const minus_inf_f32
      %15: f32[16,32] = select %13, %10, %14
      %16: f32[16,1] = reduce max 1, %15
      %17: f32[16,1] = max %6, %16
      %18: f32[16,1] = sub %6, %17
      %19: f32[16,1] = exp %18
      %20: f32[16,32] = sub %15, %17
      %21: f32[16,32] = exp %20
      %22: f32[16,1] = reduce add 1, %21
      %23: f32[16,1] = fma %7, %19, %22
      %24: {dtype}[16,32] = to_{dtype} %21
      %25: {dtype}[32,16] = load v[a1 + 16*a0 + 16*j] if(a0 + j < {n}) else 0.0{dtype}
      %26: f32[16,16] = mul %5, %19
      %27: f32[16,16] = dot %24, %25, %26
    }} next(%27, %17, %23) as(%28, %29, %30)
    %31: f32[16,16] = div %28, %30
    store y[a1 + 16*a0 + 256*i] = %31 if(a0 + 16*i < {n})
  }}
}}
"
    )
}

#[test]
fn attention_in_one_kernel() {
    for dtype in ["f32", "f16"] {
        for n in [16, 64, 100] {
            for (ahead, threads) in [(1, None), (3, Some(64)), (2, Some(256))] {
                check(&attention(n, dtype), &Options { threads, ..stages(ahead) }, 2e-3);
            }
        }
    }
}

#[test]
fn other_tiles() {
    for text in [
        // Two parts, a reduction of the first axis and of both, integers, and a gather.
        "\
kernel @parts(x: i32[210], y: i32[37] written, z: i64[4] written) {
  part grid(i = 3) {
    %0: i32[6,10] = load x[a1 + 10*a0 + 60*i]
    %1: i32[1,10] = reduce add 0, %0
    store y[a1 + 10*i] = %1
  }
  part grid() {
    %2: i32[6,10] = load x[a1 + 10*a0]
    %3: i32[6,1] = reduce max 1, %2
    %4: i32[1,1] = reduce min 0, %3
    store y[a1 + 30] = %4
    %5: i32[6] = load x[10*a0 + 3]
    store y[a0 + 31] = %5
    %6: i32[4] = load x[a0]
    %7: i64[4] = to_i64 %6
    %8: i64[1] = const 11i64
    %9: i64[4] = mod %7, %8
    %10: i32[4] = load x[v0 + 9] with(%9)
    %11: i64[4] = to_i64 %10
    store z[a0] = %11
  }
}
",
        // Every element of a tile that a thread has more of than lanes, and back to front.
        "\
kernel @back(x: f16[5000], y: f16[5000] written) {
  part grid(i = 5) {
    %0: f16[1000] = load x[999 - a0 + 1000*i]
    %1: f16[1] = const 0.333f16
    %2: f16[1000] = mul %0, %1
    %3: f16[1000] = fma %2, %2, %0
    store y[a0 + 1000*i] = %3
  }
}
",
        // Transposed twice, by a loop over the rows of a strip.
        "\
kernel @turn(x: f32[960], y: f32[960] written) {
  part grid(i = 3) {
    for k in 0..40 step 8 {
      %0: f32[8,8] = load x[a1 + 24*a0 + 8*i + 24*k]
      %1: f32[8,8] = transpose [1, 0], %0
      store y[a1 + 40*a0 + 320*i + k] = %1
    }
  }
}
",
        // Powers of whole numbers.
        "\
kernel @powers(x: f32[64], y: f32[256] written) {
  part grid() {
    %0: f32[64] = load x[a0]
    %1: f32[1] = const 3.0f32
    %2: f32[64] = pow %0, %1
    store y[a0] = %2
    %3: f32[1] = const -2.0f32
    %4: f32[64] = pow %0, %3
    store y[a0 + 64] = %4
    %5: f32[1] = const 0.0f32
    %6: f32[64] = pow %0, %5
    store y[a0 + 128] = %6
    %7: f32[1] = const 7.0f32
    %8: f32[64] = pow %0, %7
    store y[a0 + 192] = %8
  }
}
",
        // Conditions on quotients, a sum in a loop of a tile of one element, booleans.
        "\
kernel @mixed(x: f32[100], f: bool[100], y: f32[100] written, z: bool[100] written) {
  part grid(i = 7) {
    %0: f32[16] = load x[a0 + 16*i] if(floordiv(a0 + 16*i, 10) < 10, mod(a0, 5) < 4) else -1.0f32
    %1: bool[16] = load f[a0 + 16*i] if(a0 + 16*i < 100) else false
    %2: f32[1] = const 0.0f32
    for k in 0..10 step 1 carry(%3: f32[1] = %2) {
      %4: f32[1] = load x[a0 + k*k]
      %5: f32[1] = sub %3, %4
    } next(%5) as(%6)
    %7: f32[16] = sigmoid %0
    %8: f32[16] = add %7, %6
    %9: bool[16] = lt %0, %2
    %10: bool[16] = and %9, %1
    %11: f32[16] = select %10, %8, %0
    store y[a0 + 16*i] = %11 if(a0 + 16*i < 100)
    %12: bool[16] = not %10
    store z[a0 + 16*i] = %12 if(a0 + 16*i < 100)
  }
}
",
    ] {
        for threads in [32, 128] {
            check(text, &Options { threads: Some(threads), ..Options::default() }, 1e-6);
        }
    }
}

#[test]
fn dims_may_be_known_only_when_the_kernel_runs() {
    let text = "\
kernel @scale(x: f32[m*n], y: f32[m*n] written) {
  part grid(i = m, j = ceildiv(n, 64)) {
    %0: f32[64] = load x[a0 + 64*j + i*n] if(a0 + 64*j < n) else 0.0f32
    %1: f32[64] = add %0, %0
    store y[a0 + 64*j + i*n] = %1 if(a0 + 64*j < n)
  }
}
";
    let program = TileProgram::parse(text).unwrap();
    for most in [1 << 10, 1 << 40] {
        let dims = Ranges::from([(Symbol::new("m"), (1, most)), (Symbol::new("n"), (1, most))]);
        let kernels = lower(&program, &dims, &Options::default()).unwrap();
        let x = data(DType::F32, 7 * 100, 1);
        let mut buffers = [x.clone(), vec![0; x.len()]];
        warp::run(&kernels[0], &mut buffers, &[7, 100]).unwrap_or_else(|e| panic!("{e}\n{}", kernels[0]));
        let twice: Vec<u8> =
            x.as_chunks::<4>().0.iter().flat_map(|b| (2.0 * f32::from_le_bytes(*b)).to_le_bytes()).collect();
        assert!(buffers[1] == twice);
    }
}

#[test]
fn what_is_not_there_is_named() {
    let error = |ty: &str, op: &str, options: &Options| {
        let text = format!(
            "kernel @k(x: {ty}[8], y: {ty}[8] written) {{
  part grid() {{
    %0: {ty}[8] = load x[a0]
    %1: {ty}[8] = {op}
    store y[a0] = %1
  }}
}}"
        );
        lower(&parse(&text), &Ranges::new(), options).map(|_| ()).unwrap_err().to_string()
    };
    let usual = Options::default();
    for (ty, op, what) in [
        ("f64", "neg %0", "elements of type f64"),
        ("f32", "sinh %0", "`sinh` of f32"),
        ("f32", "pow %0, %0", "`pow` of f32"),
        ("i32", "pow %0, %0", "`pow` of i32"),
    ] {
        assert_eq!(error(ty, op, &usual), format!("kernel @k cannot be made for a GPU: {what}"));
    }
    let odd = Options { threads: Some(48), ..Options::default() };
    assert!(error("f32", "neg %0", &odd).ends_with("blocks of 48 threads; wants a power of two from 32 to 1024"));
    let text = matmul(64, 64, 64, (64, 64, 64), "f32", "neg");
    let error = lower(&parse(&text), &Ranges::new(), &Options { shared: 8192, ..Options::default() }).unwrap_err();
    assert!(error.to_string().contains("shared memory"), "{error}");
}

#[test]
fn accesses_are_wide_and_whole_sectors() {
    let counts = |text: &str, options: &Options| check(text, options, 1e-5)[0].1;
    for counts in [
        counts(&matmul(64, 64, 64, (64, 64, 16), "f32", "neg"), &stages(3)),
        counts(&matmul(64, 64, 64, (64, 64, 32), "f16", "neg"), &stages(3)),
        counts(&softmax(4, 1024, 1, 1024), &stages(1)),
    ] {
        assert_eq!(counts.sectors, counts.least_sectors);
    }
    // Every operand is copied in 16 bytes at a time.
    let text = check(&matmul(64, 64, 64, (64, 64, 32), "f16", "neg"), &stages(3), 1e-5)[0].0.to_string();
    let copies: Vec<&str> = text.lines().filter(|l| l.trim().starts_with("copy")).collect();
    assert!(!copies.is_empty() && copies.iter().all(|l| l.contains("], 8")), "{copies:?}");
}

#[test]
fn functions_are_precise() {
    // Every magnitude, both signs, and what is special.
    let mut inputs: Vec<f32> = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-45, -1e-45, 1.0, -1.0];
    inputs.extend((0..0x7f8u32).flat_map(|high| {
        let noise = high.wrapping_mul(0x9e37_79b9) >> 12;
        let x = f32::from_bits((high << 20) | noise);
        [x, -x]
    }));
    inputs.extend((-3000..3000).map(|n| n as f32 * 0.037));
    inputs.extend((-3000..3000).map(|n| n as f32 * 0.001_37));
    let n = inputs.len();
    let bytes: Vec<u8> = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
    for name in ["exp", "log", "sigmoid", "tanh", "erf"] {
        let text = format!(
            "\
kernel @f(x: f32[{n}], y: f32[{n}] written) {{
  part grid(i = ceildiv({n}, 1024)) {{
    %0: f32[1024] = load x[a0 + 1024*i] if(a0 + 1024*i < {n}) else 0.0f32
    %1: f32[1024] = {name} %0
    store y[a0 + 1024*i] = %1 if(a0 + 1024*i < {n})
  }}
}}
"
        );
        let kernels = lower(&parse(&text), &Ranges::new(), &Options::default()).unwrap();
        let mut buffers = [bytes.clone(), vec![0; 4 * n]];
        warp::run(&kernels[0], &mut buffers, &[]).unwrap();
        let op = kiln_ir::UnaryOp::from_name(name).unwrap();
        let mut worst = (0.0, 0.0);
        for (&x, y) in inputs.iter().zip(buffers[1].as_chunks::<4>().0) {
            let (found, want) = (f32::from_le_bytes(*y), kiln_ir::semantics::unary_f64(op, f64::from(x)));
            if want.is_nan() || (want as f32).is_infinite() {
                assert!(
                    found.is_nan() == want.is_nan() && (want.is_nan() || found == want as f32),
                    "{name}({x}): {found}"
                );
                continue;
            }
            // The spacing of f32 at the exact result.
            let spacing = ((want as f32).abs().next_up() - (want as f32).abs()).max(f32::from_bits(1));
            let error = (f64::from(found) - want).abs() / f64::from(spacing);
            if error > worst.0 {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= 3.0, "{name}: {} units at {}", worst.0, worst.1);
        eprintln!("{name}: {} units at {}", worst.0, worst.1);
    }
}

#[test]
fn checked_indices() {
    let text = |extent: usize| {
        format!(
            "\
kernel @take(x: f32[{}], n: i64[20], y: f32[60] written) {{
  part grid(i = 2) {{
    %0: i64[10,1] = load n[a0 + 10*i]
    %1: i64[10,1] = check %0 in({extent}) status 7
    %2: f32[10,3] = load x[3*v0 + a1] with(%1)
    store y[a1 + 3*a0 + 30*i] = %2
  }}
}}
",
            3 * extent
        )
    };
    for threads in [32, 64] {
        check(&text(10), &Options { threads: Some(threads), ..Options::default() }, 0.0);
    }
    // The indices are between -9 and 9, and an empty buffer has no element for any of them.
    for extent in [8, 0] {
        let program = parse(&text(extent));
        let kernels = lower(&program, &Ranges::new(), &Options::default()).unwrap();
        let mut buffers = [data(DType::F32, 3 * extent, 1), data(DType::I64, 20, 2), vec![0; 240]];
        let outcome = warp::run(&kernels[0], &mut buffers, &[]).unwrap_or_else(|e| panic!("{e}\n{}", kernels[0]));
        assert_eq!(outcome.status, 7);
        let run = tile::run(&program, &mut buffers, &|_| None, 0..2);
        assert_eq!(run, Err(tile::RunError::Failed { kernel: "take".into(), status: 7 }));
    }
}

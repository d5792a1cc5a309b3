//! Prints how fast the bodies of matrix products run, as a share of what the machine's multiply-adds allow.
//!
//! The programs have the shape that the lowering of tile programs gives to `c += a . b` with a tile of `rows x columns` in
//! registers: A is read where it lies (row-major, splats), B as packed panels.

use kiln_cpu::wide::{WideLevel, compile};
use kiln_ir::vector::VectorProgram;
use std::fmt::Write;
use std::time::Instant;

type Kernel = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8) -> u32;

/// Rows of A and of the product are this far apart: no multiple of 4096 bytes, which would meet in one cache set.
const DEPTH: usize = 768;

struct Loaded(memmap2::Mmap);

impl Loaded {
    fn new(program: &VectorProgram, level: WideLevel) -> Option<Loaded> {
        let code = compile(program, level).map_err(|e| println!("{e}")).ok()?;
        if std::env::var_os("WIDE_GEMM_CODE").is_some() {
            std::fs::write(format!("{}.bin", program.name), &code.bytes).ok()?;
        }
        let mut pages = memmap2::MmapMut::map_anon(code.bytes.len()).ok()?;
        pages.copy_from_slice(&code.bytes);
        Some(Loaded(pages.make_exec().ok()?))
    }

    /// The best of many calls, in seconds.
    fn time(&self, buffers: &mut [Vec<f32>], hi: i64) -> f64 {
        let args: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        // SAFETY: the pages hold a kernel with this signature, whose accesses lie in these buffers.
        let kernel = unsafe { std::mem::transmute::<*const u8, Kernel>(self.0.as_ptr()) };
        let mut best = f64::INFINITY;
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 700 {
            let start = Instant::now();
            for _ in 0..4 {
                // SAFETY: as above.
                unsafe { kernel(args.as_ptr(), std::ptr::null(), 0, hi, std::ptr::null_mut()) };
            }
            best = best.min(start.elapsed().as_secs_f64() / 4.0);
        }
        best
    }
}

/// A tile of the product: `unrolled` steps of k in an iteration.
fn tile(rows: usize, vectors: usize, lanes: usize, unrolled: usize) -> VectorProgram {
    let columns = vectors * lanes;
    let mut next = 10;
    let mut fresh = || {
        next += 1;
        next
    };
    let v = format!("f32x{lanes}");
    let mut head = String::new();
    let (mut carried, mut nexts, mut afters) = (Vec::new(), Vec::new(), Vec::new());
    let zero = fresh();
    writeln!(head, "    %{zero}: {v} = 0.0f32").unwrap();
    let mut sums: Vec<usize> = (0..rows * vectors).map(|_| fresh()).collect();
    for s in &sums {
        carried.push(format!("%{s}: {v} = %{zero}"));
    }
    let mut body = String::new();
    let (b_index, by) = (fresh(), fresh());
    writeln!(body, "      %{by}: i64 = {columns}i64").unwrap();
    writeln!(body, "      %{b_index}: i64 = mul(%4, %{by})").unwrap();
    for k in 0..unrolled {
        let right: Vec<usize> = (0..vectors).map(|_| fresh()).collect();
        for row in 0..rows {
            let left = fresh();
            writeln!(body, "      %{left}: {v} = load_splat b0[%4 + {}]", row * DEPTH + k).unwrap();
            for n in 0..vectors {
                if row == 0 {
                    let at = k * columns + n * lanes;
                    writeln!(body, "      %{}: {v} = load b1[%{b_index} + {at}]", right[n]).unwrap();
                }
                let sum = fresh();
                let before = sums[row * vectors + n];
                writeln!(body, "      %{sum}: {v} = fma(%{left}, %{}, %{before})", right[n]).unwrap();
                sums[row * vectors + n] = sum;
            }
        }
    }
    let mut tail = String::new();
    for (i, s) in sums.iter().enumerate() {
        let after = fresh();
        nexts.push(format!("%{s}"));
        afters.push(format!("%{after}"));
        let at = i / vectors * columns + i % vectors * lanes;
        writeln!(tail, "    store b2[{at}], %{after}").unwrap();
    }
    let text = format!(
        "vector @gemm_{rows}x{columns}(b0: f32, b1: f32, b2: f32 written, dims 0) {{
  %0: i64 = lo
  %1: i64 = hi
  for %2 in %0..%1 step 1 {{
    %5: i64 = 0i64
    %3: i64 = {DEPTH}i64
{head}    for %4 in %5..%3 step {unrolled} carry ({}) {{
{body}    }} next ({}) as ({})
{tail}  }}
}}",
        carried.join(", "),
        nexts.join(", "),
        afters.join(", ")
    );
    VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A loop of multiply-adds between registers.
fn peak(lanes: usize, sums: usize) -> VectorProgram {
    let v = format!("f32x{lanes}");
    let list = |f: &dyn Fn(usize) -> String| (0..sums).map(f).collect::<Vec<_>>().join(", ");
    let text = format!(
        "vector @peak(b0: f32, b1: f32 written, dims 0) {{
  %0: i64 = lo
  %1: i64 = hi
  %2: {v} = load_splat b0[0]
  %3: {v} = load_splat b0[1]
  for %4 in %0..%1 step 1 carry ({}) {{
{}  }} next ({}) as ({})
{}}}",
        list(&|i| format!("%{}: {v} = %2", 10 + i)),
        (0..sums).map(|i| format!("    %{}: {v} = fma(%2, %3, %{})\n", 50 + i, 10 + i)).collect::<String>(),
        list(&|i| format!("%{}", 50 + i)),
        list(&|i| format!("%{}", 90 + i)),
        (0..sums).map(|i| format!("  store b1[{}], %{}\n", i * lanes, 90 + i)).collect::<String>(),
    );
    VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn main() {
    // Rows and vectors of each register tile that is tried.
    type Tiles = &'static [(usize, usize)];
    let shapes: [(WideLevel, usize, Tiles); 2] = [
        (WideLevel::Avx2, 8, &[(6, 2), (4, 3), (3, 4), (4, 2), (5, 2), (12, 1), (2, 4)]),
        (
            WideLevel::Avx512,
            16,
            &[(14, 2), (13, 2), (12, 2), (10, 2), (8, 2), (8, 3), (9, 3), (6, 4), (5, 5), (24, 1), (28, 1)],
        ),
    ];
    for (level, lanes, tiles) in shapes {
        #[cfg(target_arch = "x86_64")]
        let has = match level {
            WideLevel::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            WideLevel::Avx512 => is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        let has = false;
        if !has {
            println!("{level:?}: not on this machine");
            continue;
        }
        let sums = if lanes == 8 { 12 } else { 24 };
        let Some(loaded) = Loaded::new(&peak(lanes, sums), level) else { continue };
        let count = 100_000;
        let measure = || {
            let time = loaded.time(&mut [vec![0.5; 16], vec![0.0; sums * lanes]], count);
            (2 * sums * lanes) as f64 * count as f64 / time / 1e9
        };
        let best = measure();
        println!("{level:?}: multiply-adds between registers: {best:.0} GFLOP/s");
        for &(rows, vectors) in tiles {
            for unrolled in [1, 4] {
                let Some(loaded) = Loaded::new(&tile(rows, vectors, lanes, unrolled), level) else { continue };
                let columns = vectors * lanes;
                let mut buffers = [vec![0.5; rows * DEPTH], vec![0.25; DEPTH * columns], vec![0.0; rows * columns]];
                let repeats = 20;
                let time = loaded.time(&mut buffers, repeats);
                let wrong = buffers[2].iter().filter(|&&x| x != 0.125 * DEPTH as f32).count();
                assert_eq!(wrong, 0, "wrong elements");
                let rate = (2 * rows * columns * DEPTH) as f64 * repeats as f64 / time / 1e9;
                println!(
                    "  {rows:2} x {columns:2}, {unrolled} steps an iteration: {rate:6.1} GFLOP/s, {:3.0} % of the peak",
                    100.0 * rate / best
                );
            }
        }
        println!("{level:?}: multiply-adds between registers: {:.0} GFLOP/s at the end", measure());
    }
}

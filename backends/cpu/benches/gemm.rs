//! How fast the bodies of matrix products run, as a share of what the machine's multiply-adds allow.
//!
//! The programs have the shape that the lowering of tile programs gives to `c += a . b` with a tile of `rows x columns` in
//! registers: A is read where it lies (row-major, splats), B as a packed panel. Everything stays in the first or second
//! cache, so that what is measured is the code. Criterion's "elem/s" are floating-point operations a second; after each
//! level the best time of every tile is printed as a share of the best time of multiply-adds between registers.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiln_cpu::wide::{self, WideLevel};
use kiln_cpu::{MachineCode, Target};
use kiln_ir::vector::VectorProgram;
use std::fmt::Write;
use std::time::{Duration, Instant};

type Kernel = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8) -> u32;

/// Steps of the fold, and how far rows of A are apart: no multiple of 4096 bytes, which would meet in one cache set.
const DEPTH: usize = 272;

struct Loaded(memmap2::Mmap);

impl Loaded {
    fn new(code: &MachineCode) -> Loaded {
        let mut pages = memmap2::MmapMut::map_anon(code.bytes.len()).unwrap();
        pages.copy_from_slice(&code.bytes);
        Loaded(pages.make_exec().unwrap())
    }

    fn call(&self, buffers: &mut [Vec<f32>], hi: i64) {
        let args: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        // SAFETY: the pages hold a kernel with this signature, whose accesses lie in these buffers.
        unsafe {
            let kernel = std::mem::transmute::<*const u8, Kernel>(self.0.as_ptr());
            assert_eq!(kernel(args.as_ptr(), std::ptr::null(), 0, hi, std::ptr::null_mut()), 0);
        }
    }
}

/// An emitter, its vectors and the tiles that are tried.
#[derive(Clone, Copy)]
struct Level {
    name: &'static str,
    emitter: Emitter,
    lanes: usize,
    /// Accumulators that hide the latency of multiply-adds.
    sums: usize,
    /// Rows and vectors of each register tile.
    tiles: &'static [(usize, usize)],
}

#[derive(Clone, Copy)]
enum Emitter {
    Cranelift(Target),
    Wide(WideLevel),
}

const LEVELS: &[Level] = &[
    Level {
        name: "aarch64",
        emitter: Emitter::Cranelift(Target::Aarch64),
        lanes: 4,
        sums: 16,
        tiles: &[(5, 2), (4, 4), (8, 2)],
    },
    Level {
        name: "x86-64-v3 at 128 bits",
        emitter: Emitter::Cranelift(Target::X86_64V3),
        lanes: 4,
        sums: 12,
        tiles: &[(5, 2), (6, 2), (3, 3), (4, 2)],
    },
    Level {
        name: "x86-64-v3",
        emitter: Emitter::Wide(WideLevel::Avx2),
        lanes: 8,
        sums: 12,
        tiles: &[(6, 2), (4, 3), (3, 4), (4, 2), (12, 1)],
    },
    Level {
        name: "x86-64-v4",
        emitter: Emitter::Wide(WideLevel::Avx512),
        lanes: 16,
        sums: 24,
        tiles: &[(14, 2), (12, 2), (8, 2), (8, 3), (6, 4), (5, 5), (24, 1)],
    },
];

impl Level {
    fn runs_here(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self.emitter {
            Emitter::Cranelift(Target::X86_64 | Target::Aarch64) => false,
            Emitter::Cranelift(Target::X86_64V3) | Emitter::Wide(WideLevel::Avx2) => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("bmi2")
            }
            Emitter::Wide(WideLevel::Amx | WideLevel::Avx2Vnni) => false,
            Emitter::Wide(level @ (WideLevel::Avx512 | WideLevel::Avx512Vnni | WideLevel::Avx512Bf16)) => {
                (level == WideLevel::Avx512 || is_x86_feature_detected!("avx512vnni"))
                    && (level != WideLevel::Avx512Bf16 || is_x86_feature_detected!("avx512bf16"))
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        return matches!(self.emitter, Emitter::Cranelift(Target::Aarch64)) && cfg!(target_arch = "aarch64");
    }

    fn compile(&self, program: &VectorProgram) -> Loaded {
        let code = match self.emitter {
            Emitter::Cranelift(target) => kiln_cpu::compile(program, target),
            Emitter::Wide(level) => wide::compile(program, level),
        };
        Loaded::new(&code.unwrap_or_else(|e| panic!("{}: {e}\n{program}", self.name)))
    }
}

/// A tile of the product: `unrolled` steps of the fold in an iteration.
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
        for (n, r) in right.iter().enumerate() {
            let at = k * columns + n * lanes;
            writeln!(body, "      %{r}: {v} = load b1[%{b_index} + {at}]").unwrap();
        }
        for row in 0..rows {
            let left = fresh();
            writeln!(body, "      %{left}: {v} = load_splat b0[%4 + {}]", row * DEPTH + k).unwrap();
            for (n, r) in right.iter().enumerate() {
                let sum = fresh();
                let before = sums[row * vectors + n];
                writeln!(body, "      %{sum}: {v} = fma(%{r}, %{left}, %{before})").unwrap();
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

/// Benches `flops` operations a call; the best rate of a call in operations a second, 0 where criterion skipped it.
fn bench(c: &mut Criterion, level: &Level, name: &str, flops: usize, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let mut group = c.benchmark_group(format!("gemm {}", level.name));
    group.sample_size(20).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    group.throughput(Throughput::Elements(flops as u64));
    group.bench_function(name, |b| {
        b.iter_custom(|calls| {
            let begin = Instant::now();
            for _ in 0..calls {
                let start = Instant::now();
                call();
                best = best.min(start.elapsed().as_secs_f64());
            }
            begin.elapsed()
        });
    });
    group.finish();
    flops as f64 / best
}

fn level(c: &mut Criterion, level: &Level) {
    let Level { name, lanes, sums, tiles, .. } = *level;
    let run = level.compile(&peak(lanes, sums));
    let mut buffers = [vec![0.5; 16], vec![0.0; sums * lanes]];
    let count = 2_000;
    let flops = 2 * sums * lanes * count;
    let most = bench(c, level, "multiply-adds between registers", flops, || run.call(&mut buffers, count as i64));
    let mut table = format!("{name}: multiply-adds between registers {:.1} GFLOP/s\n", most / 1e9);
    for &(rows, vectors) in tiles {
        for unrolled in [1, 4] {
            let columns = vectors * lanes;
            let run = level.compile(&tile(rows, vectors, lanes, unrolled));
            let mut buffers = [vec![0.5; rows * DEPTH], vec![0.25; DEPTH * columns], vec![0.0; rows * columns]];
            let repeats = 20;
            let flops = 2 * rows * columns * DEPTH * repeats;
            let name = format!("{rows}x{columns} by {unrolled}");
            let rate = bench(c, level, &name, flops, || run.call(&mut buffers, repeats as i64));
            run.call(&mut buffers, 1);
            assert!(buffers[2].iter().all(|&x| x == 0.125 * DEPTH as f32), "wrong elements");
            if rate > 0.0 && most > 0.0 {
                let share = 100.0 * rate / most;
                writeln!(table, "  {name:12} {:6.1} GFLOP/s, {share:3.0} % of the peak", rate / 1e9).unwrap();
            }
        }
    }
    if most > 0.0 {
        eprint!("{table}");
    }
}

fn tiles(c: &mut Criterion) {
    for each in LEVELS {
        if each.runs_here() {
            level(c, each);
        } else {
            eprintln!("SKIPPED: {} does not run on this machine", each.name);
        }
    }
}

criterion_group!(benches, tiles);
criterion_main!(benches);

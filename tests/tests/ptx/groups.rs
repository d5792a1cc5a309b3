//! Products of four warps, fetched by bulk copies (sm_90a): over ragged shapes, both orders of operands and both half types in
//! the interpreter.

use super::{assemble, compile, data, execute};
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::tile::{self, TileProgram};
use kiln_ir::warp::WarpProgram;
use kiln_passes::warp::{Options, lower};
use kiln_ptx::emulate::{self, Accumulate};

/// A product with a bias and a clamp, its right operand by rows of the fold or by columns.
pub(super) fn product(
    dtype: &str,
    [m, n, k]: [usize; 3],
    [bm, bn]: [usize; 2],
    (down, batch): (bool, usize),
) -> String {
    let depth = if down { format!("{k}*a1 + {}*j + a0 + k", k * bn) } else { format!("a1 + {bn}*j + {n}*a0 + {n}*k") };
    let whole = k.next_multiple_of(64);
    format!(
        "\
kernel @product(x: {dtype}[{}], w: {dtype}[{}], c: f32[{n}], y: f32[{}] written) {{
  part grid(b = {batch}, i = {}, j = {}) {{
    %0: f32[{bm},{bn}] = const 0.0f32
    for k in 0..{whole} step 64 carry(%1: f32[{bm},{bn}] = %0) {{
      %2: {dtype}[{bm},64] = load x[a1 + {k}*a0 + {}*i + k + {}*b] if(a0 + {bm}*i < {m}, a1 + k < {k}) else 0.0{dtype}
      %3: {dtype}[64,{bn}] = load w[{depth} + {}*b] if(a1 + {bn}*j < {n}, a0 + k < {k}) else 0.0{dtype}
      %4: f32[{bm},{bn}] = dot %2, %3, %1
    }} next(%4) as(%5)
    %6: f32[1,{bn}] = load c[a1 + {bn}*j] if(a1 + {bn}*j < {n}) else 0.0f32
    %7: f32[{bm},{bn}] = add %5, %6
    %8: f32[1,1] = const 0.0f32
    %9: f32[{bm},{bn}] = max %7, %8
    store y[a1 + {n}*a0 + {}*i + {bn}*j + {}*b] = %9 if(a0 + {bm}*i < {m}, a1 + {bn}*j < {n})
  }}
}}
",
        m * k * batch,
        n * k * batch,
        m * n * batch,
        m.div_ceil(bm),
        n.div_ceil(bn),
        bm * k,
        m * k,
        n * k,
        bm * n,
        m * n,
    )
}

pub(super) fn options() -> Options {
    Options { groups: true, ..Options::default() }
}

/// The kernel, its operands with the status after them, and what its result is.
fn made(text: &str) -> (WarpProgram, kiln_ptx::Module, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let program = TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let (warp, module) = compile(text, &options());
    let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}\n{warp}"));
    let len = |b: &tile::Buffer| b.len.as_size().unwrap_or(0);
    let buffers: Vec<Vec<u8>> = program.buffers.iter().map(|b| data(b.dtype, len(b), false)).collect();
    let mut want = buffers.clone();
    tile::run(&program, &mut want, &|_: &Symbol| None, 0..i64::MAX).unwrap_or_else(|e| panic!("{e}"));
    let mut given = buffers;
    given.push(vec![0; 4]);
    (warp, module, given, want)
}

#[test]
fn products_of_groups_agree() {
    let cases = [
        ("f16", [128, 128, 128], [128, 128], (false, 1)),
        ("f16", [130, 72, 200], [64, 64], (false, 2)),
        ("bf16", [70, 136, 328], [128, 128], (false, 1)),
        ("f16", [70, 130, 72], [64, 128], (true, 1)),
        ("bf16", [200, 264, 64], [128, 256], (true, 1)),
        ("f16", [100, 260, 136], [64, 256], (true, 1)),
    ];
    for (dtype, shape, tile, how) in cases {
        let name = format!("{dtype} {shape:?} in {tile:?}, {how:?}");
        let (warp, module, given, want) = made(&product(dtype, shape, tile, how));
        assert!(module.text.contains("wgmma.mma_async") && module.text.contains("cp.async.bulk.tensor"), "{name}");
        assemble(&name, &module.text);
        for (seed, accumulate) in [(0, Accumulate::Exact), (5, Accumulate::Truncating)] {
            let mut found = given.clone();
            let options = emulate::Options { seed, accumulate, ..emulate::Options::default() };
            let report = execute(&module, &warp, &mut found, &[], &options);
            assert_eq!(report.findings, [], "{name}");
            assert_eq!(report.counts.conflicts(), 0, "{name}");
            let of = |bytes: &[u8]| -> Vec<f32> {
                bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
            };
            let (want, found) = (of(&want[3]), of(&found[3]));
            let most = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(most > 0.0, "{name}");
            for (n, (w, f)) in want.iter().zip(&found).enumerate() {
                assert!((w - f).abs() <= 1e-5 * most, "{name}: element {n} is {f}, wants {w}");
            }
        }
    }
}

#[test]
fn what_is_no_stream_is_made_as_before() {
    // Rows of 132 bytes are fetched by no bulk copy.
    let text = product("f16", [64, 66, 64], [64, 64], (false, 1));
    let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let kernels = lower(&program, &Ranges::new(), &options()).unwrap_or_else(|e| panic!("{e}"));
    assert!(kernels.iter().all(|k| k.maps.is_empty()));
}

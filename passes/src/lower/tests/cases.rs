//! Kernels as they matter: their lowered form is kept beside them in `tests/golden/lower` (`BLESS=1` rewrites it),
//! and does what the tile interpreter does.

use super::{Random, Setting, TARGET, agree, agree_for, lower};
use crate::lower::{LowerError, VectorTarget};
use kiln_ir::DType;
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::{Op, Stmt, VectorProgram};
use std::path::Path;

/// Checks `NAME.kernel` against the interpreter and `NAME.vector`.
fn golden(name: &str, dims: &[(&str, i64)], tolerance: f64) -> VectorProgram {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lower");
    let text = std::fs::read_to_string(folder.join(format!("{name}.kernel"))).expect("a kernel");
    let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let dims: Vec<(Symbol, i64)> = dims.iter().map(|(d, v)| (Symbol::new(d), *v)).collect();
    let mut random = Random(name.len() as u64);
    let mut buffers = Vec::new();
    for b in &program.buffers {
        let len = b.len.eval(&|s| dims.iter().find(|(d, _)| d == s).map(|(_, v)| *v)).expect("known dims");
        buffers.push(random.elements(b.dtype, len as usize, -4, 4));
    }
    let lowered = agree(&program, &Setting { buffers, dims }, &Ranges::new(), tolerance);
    let path = folder.join(format!("{name}.vector"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, lowered.to_string()).expect("written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(lowered.to_string(), expected, "{name}: `BLESS=1` accepts the change");
    lowered
}

/// The statements of the innermost loops.
fn innermost(body: &[Stmt], found: &mut Vec<Vec<Stmt>>) {
    for stmt in body {
        if let Stmt::For(f) = stmt {
            if f.body.iter().any(|s| matches!(s, Stmt::For(_))) {
                innermost(&f.body, found);
            } else {
                found.push(f.body.clone());
            }
        }
    }
}

#[test]
fn a_matrix_product_is_blocked_in_registers() {
    let lowered = golden("gemm", &[], 0.0);
    let mut loops = Vec::new();
    innermost(&lowered.body, &mut loops);
    let count = |f: &dyn Fn(&Op) -> bool| loops[0].iter().filter(|s| matches!(s, Stmt::Let(_, op) if f(op))).count();
    assert_eq!(count(&|op| matches!(op, Op::LoadSplat(_))), 4);
    assert_eq!(count(&|op| matches!(op, Op::Load(_))), 2);
    assert_eq!(count(&|op| matches!(op, Op::Fma(..))), 8);
    // One index for each buffer, of which only the row of `w` needs a product.
    assert_eq!(count(&|op| matches!(op, Op::Binary(..))), 3);
    assert_eq!(loops[0].len(), 17);
}

#[test]
fn softmax() {
    golden("softmax", &[], 1e-6);
}

#[test]
fn a_convolution_with_a_border() {
    golden("convolution", &[], 0.0);
}

#[test]
fn a_causal_mask() {
    golden("attention_mask", &[], 0.0);
}

#[test]
fn an_embedding() {
    golden("embedding", &[("n", 7)], 0.0);
}

#[test]
fn a_transpose() {
    golden("transpose", &[], 0.0);
}

#[test]
fn lanes_that_lie_apart_are_transposed() {
    let lowered = golden("transpose_blocks", &[("n", 9)], 0.0);
    let mut loops = Vec::new();
    innermost(&lowered.body, &mut loops);
    let count = |f: &dyn Fn(&Op) -> bool| loops[0].iter().filter(|s| matches!(s, Stmt::Let(_, op) if f(op))).count();
    // Each vector is loaded once, though each lane is of all of them.
    assert_eq!(count(&|op| matches!(op, Op::Load(a) if a.buffer == 0)), 8);
    assert_eq!(count(&|op| matches!(op, Op::Column(..))), 8);
}

#[test]
fn rows_of_which_one_is_broken_are_not_transposed() {
    // The row that begins at 60 goes on at 100.
    let text = "kernel @broken(x: f32[400], y: f32[16] written) { part grid() {
        %0: f32[4,4,1] = load x[100*floordiv(20*a1 + a0, 62) + mod(20*a1 + a0, 62)] store y[a0 + 4*a1] = %0 } }";
    let program = TileProgram::parse(text).expect("a program");
    let mut random = Random(7);
    let buffers = vec![random.elements(DType::F32, 400, -4, 4), random.elements(DType::F32, 16, -4, 4)];
    agree(&program, &Setting { buffers, dims: vec![] }, &Ranges::new(), 0.0);
    let across = text.replace("a0 + 4*a1", "4*a0 + a1");
    let program = TileProgram::parse(&across).expect("a program");
    let buffers = vec![random.elements(DType::F32, 400, -4, 4), random.elements(DType::F32, 16, -4, 4)];
    agree(&program, &Setting { buffers, dims: vec![] }, &Ranges::new(), 0.0);
}

#[test]
fn elements_of_other_sizes_are_transposed() {
    for (dtype, bytes, lanes) in [
        (DType::U8, 16, 16),
        (DType::I8, 64, 16),
        (DType::I16, 16, 8),
        (DType::U16, 32, 16),
        (DType::I16, 64, 16),
        (DType::I64, 16, 2),
        (DType::F64, 32, 4),
        (DType::I64, 64, 8),
    ] {
        let text = format!(
            "kernel @turned(x: {dtype}[400], y: {dtype}[256] written) {{ part grid() {{
             %0: {dtype}[16,{lanes},1] = load x[20*a1 + a0 + 3] store y[{lanes}*a0 + a1] = %0 }} }}"
        );
        let program = TileProgram::parse(&text).expect("a program");
        let mut random = Random(bytes.into());
        let buffers = vec![random.elements(dtype, 400, -100, 100), random.elements(dtype, 256, -4, 4)];
        let target = VectorTarget { bytes, ..TARGET };
        let lowered = agree_for(target, &program, &Setting { buffers, dims: vec![] }, &Ranges::new(), 0.0);
        let columns = lowered.to_string().matches("column_").count();
        assert_eq!(columns, 16, "{dtype} in {bytes} bytes\n{lowered}");
    }
}

#[test]
fn what_is_read_after_a_fold_is_asked_for_before_it() {
    let text = |of_sums: &str| {
        format!(
            "kernel @residual(x: f32[8192], w: f32[1024], r: f32[{of_sums}], y: f32[{of_sums}] written) {{ part grid(p = 2) {{
             %0: f32[4,16,1] = const 0.0f32
             for k in 0..64 step 1 carry(%1: f32[4,16,1] = %0) {{
               %2: f32[4,1,1] = load x[64*a0 + 256*p + k] %3: f32[1,16,1] = load w[a1 + 16*k]
               %4: f32[4,16,1] = fma %2, %3, %1
             }} next(%4) as(%5)
             %6: f32[4,16,1] = load r[16*a0 + a1 + 64*p] %7: f32[4,16,1] = add %5, %6
             store y[16*a0 + a1 + 64*p] = %7 }} }}"
        )
    };
    // Small buffers are near, and Cranelift cannot ask.
    for (elements, bytes, asked) in [(65536, 64, 4), (65536, 32, 4), (65536, 16, 0), (1024, 64, 0)] {
        let program = TileProgram::parse(&text(&elements.to_string())).expect("a program");
        let mut random = Random(11);
        let mut of = |n: usize| random.elements(DType::F32, n, -4, 4);
        let buffers = vec![of(8192), of(1024), of(elements), of(elements)];
        let target = VectorTarget { bytes, ..TARGET };
        let lowered = agree_for(target, &program, &Setting { buffers, dims: vec![] }, &Ranges::new(), 1e-6);
        assert_eq!(lowered.to_string().matches("prefetch b2").count(), asked, "{lowered}");
    }
}

#[test]
fn bytes_to_floats() {
    golden("quantized", &[], 0.0);
}

#[test]
fn a_product_of_tiles_in_two_parts() {
    golden("product", &[], 0.0);
}

/// The kernel with one statement and a store of its tile.
fn one(buffer: &str, shape: &str, stmt: &str) -> Result<VectorProgram, LowerError> {
    let store = "store y[a0] = %1 } }";
    let text = format!(
        "kernel @one(x: {buffer}[64], y: {buffer}[64] written) {{ part grid() {{
           %0: {buffer}{shape} = load x[a0] %1: {buffer}{shape} = {stmt} {store}"
    );
    lower(&TileProgram::parse(&text).expect("a program"), TARGET, &[], &Ranges::new())
}

#[test]
fn what_vector_programs_do_not_have_is_named() {
    for (buffer, stmt, expected) in [
        ("f8e5m2", "neg %0", "kernel @one: buffer `x` of f8e5m2 cannot be vector code"),
        ("i4", "neg %0", "kernel @one: buffer `x` of i4 cannot be vector code"),
        ("f64", "sin %0", "kernel @one: `sin` of f64 cannot be vector code"),
        ("f64", "pow %0, %0", "kernel @one: `pow` of f64 cannot be vector code"),
    ] {
        assert_eq!(one(buffer, "[4]", stmt).map(|_| ()).map_err(|e| e.to_string()), Err(expected.into()));
    }
}

#[test]
fn tiles_that_are_too_large_and_wrong_programs_are_refused() {
    let text = "kernel @large(x: f32[65536], y: f32[65536] written) { part grid() {
        %0: f32[65536] = load x[mod(7*a0, 65536)] %1: f32[65536] = exp %0 store y[a0] = %1 } }";
    let program = TileProgram::parse(text).expect("a program");
    assert_eq!(lower(&program, TARGET, &[], &Ranges::new()), Err(LowerError::TooLarge { kernel: "large".into() }));
    assert!(matches!(one("f32", "[4]", "add %0, %2"), Err(LowerError::Invalid(e)) if e.len() == 1));
}

/// Chains longer than the recursion may be deep.
#[test]
fn long_chains_are_computed_piece_by_piece() {
    let mut text = String::from("kernel @chain(x: i32[4], y: i32[4] written) { part grid() { %0: i32[4] = load x[a0] ");
    for i in 1..=5_000 {
        text += &format!("%{i}: i32[4] = {} %{} ", if i % 2 == 0 { "neg" } else { "not" }, i - 1);
    }
    text += "store y[a0] = %5000 } }";
    let program = TileProgram::parse(&text).expect("a program");
    let mut random = Random(1);
    let buffers = vec![random.elements(DType::I32, 4, -4, 4), vec![0; 16]];
    agree(&program, &Setting { buffers, dims: Vec::new() }, &Ranges::new(), 0.0);
}

/// The maximum is taken of four vectors at a time and the sum of one: they meet in a tile of one element, which ties neither.
#[test]
fn folds_of_different_widths_in_one_program_both_are_vectors() {
    let text = "kernel @softmax(x: f32[64], y: f32[64] written) { part grid() {
        %0: f32[1,16] = const minus_inf_f32
        for k in 0..4 step 1 carry(%1: f32[1,16] = %0) {
          %2: f32[1,16] = load x[a1 + 16*k]
          %3: f32[1,16] = max %1, %2
        } next(%3) as(%4)
        %5: f32[1,1] = reduce max 1, %4
        %6: f32[1,4] = const 0.0f32
        for j in 0..16 step 1 carry(%7: f32[1,4] = %6) {
          %8: f32[1,4] = load x[a1 + 4*j]
          %9: f32[1,4] = sub %8, %5
          %10: f32[1,4] = exp %9
          %11: f32[1,4] = add %7, %10
        } next(%11) as(%12)
        %13: f32[1,1] = reduce add 1, %12
        for i in 0..64 step 4 {
          %14: f32[1,4] = load x[a1 + i]
          %15: f32[1,4] = sub %14, %5
          %16: f32[1,4] = exp %15
          %17: f32[1,4] = div %16, %13
          store y[a1 + i] = %17
        } } }";
    let program = TileProgram::parse(text).expect("a program");
    let buffers = vec![Random(2).elements(DType::F32, 64, -4, 4), vec![0; 256]];
    let lowered = agree(&program, &Setting { buffers, dims: Vec::new() }, &Ranges::new(), 1e-6).to_string();
    assert_eq!(lowered.matches(": f32x4 = max(").count(), 4 + 3 + 2, "{lowered}");
    assert!(!lowered.contains(": f32 = max("), "{lowered}");
}

#[test]
fn streams_from_large_buffers_are_asked_for_ahead() {
    let program = |m: usize, rows: usize, step: usize| {
        let text = format!(
            "kernel @product(x: f32[{}], w: f32[{}], y: f32[{}] written) {{ part grid() {{
               %0: f32[{m},16] = const 0.0f32
               for k in 0..{rows} step 1 carry(%1: f32[{m},16] = %0) {{
                 %2: f32[{m},1] = load x[{rows}*a0 + k]
                 %3: f32[1,16] = load w[a1 + {step}*k]
                 %4: f32[{m},16] = fma %2, %3, %1
               }} next(%4) as(%5)
               store y[16*a0 + a1] = %5 }} }}",
            m * rows,
            rows * step,
            m * 16
        );
        TileProgram::parse(&text).expect("a program")
    };
    let asks = |rows, step, bytes| {
        let lowered =
            lower(&program(2, rows, step), VectorTarget { bytes, ..TARGET }, &[], &Ranges::new()).expect("lowers");
        assert_eq!(lowered.verify(), Ok(()));
        lowered.to_string().matches("prefetch b1[").count()
    };
    assert_eq!((asks(8192, 16, 64), asks(8192, 16, 32)), (1, 1), "one for each line of 64 bytes");
    assert_eq!(asks(8192, 16, 16), 0, "Cranelift cannot ask");
    assert_eq!(asks(256, 16, 64), 0, "what is small stays in cache");
    assert_eq!(asks(256, 4096, 64), 0, "rows far apart are no stream");
    let one = lower(&program(1, 8192, 16), VectorTarget { bytes: 64, ..TARGET }, &[], &Ranges::new()).expect("lowers");
    assert!(!one.to_string().contains("prefetch"), "a single row reads as fast as it can: {one}");
}

/// Products by matrix registers, whose shapes are set once for a part where all of its products want the same ones, and else for
/// each loop; the sums are finished from local memory.
#[test]
fn a_unit_for_matrices_sums_what_is_finished_by_vectors() {
    let target = VectorTarget { bytes: 64, pairs: true, matrices: true, fused: true };
    let block = |rows: &str, many: usize, first: usize, at: &str| {
        format!(
            "multiply sums[{rows},16+8] u8s8 by 4 x[8*a0 + a1 + k + 8*i + {at}] w[24*a0 + a1 + 24*k] for(j = 2 step 1, k = 8 step 4)
      for r in 0..{many} step {many} {{
        %{first}: i32[{many},24,1] = load sums[24*a0 + a1 + 24*r]
        %{}: i32[{many},24,1] = max %{first}, %{first}
        store y[24*a0 + a1 + 24*i + 24*r + 3*({at})] = %{}
      }}",
            first + 1,
            first + 1
        )
    };
    let same = format!("for i in 0..12 step 6 {{\n{}\n}}", block("6", 6, 0, "0"));
    let other = format!("for i in 0..36 step 18 {{\n{}\n}}", block("16+2", 18, 2, "96"));
    for (body, configurations) in [(same.clone(), 1), (format!("{same}\n{other}"), 2)] {
        let text = format!(
            "kernel @unit(x: i32[384], w: i32[192], y: i32[1152] written, sums: i32[1024] local) {{ part grid(p = 2) {{ {body} }} }}"
        );
        let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        assert_eq!(TileProgram::parse(&program.to_string()).as_ref(), Ok(&program));
        let mut random = Random(5);
        let buffers = [384, 192, 1152].map(|n| random.elements(DType::I32, n, -1_000_000, 1_000_000)).to_vec();
        let setting = Setting { buffers, dims: vec![] };
        let lowered = agree_for(target, &program, &setting, &Ranges::new(), 0.0).to_string();
        assert_eq!(lowered.matches("matrix shape").count(), configurations, "{lowered}");
        assert_eq!(lowered.find("matrix shape") < lowered.find("for"), configurations == 1, "{lowered}");
        assert!(lower(&program, VectorTarget { matrices: false, ..target }, &[], &Ranges::new()).is_err());
    }
}

//! When local memory is loaded.

use super::{Random, Setting, TARGET, agree_for};
use crate::lower::VectorTarget;
use kiln_ir::DType;
use kiln_ir::expr::Ranges;
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::VectorProgram;

/// Statements that begin with `t` as a copy of `x`, 256 elements each; lowered for vectors of every size, and run against the interpreter.
fn lowered(statements: &str) -> Vec<VectorProgram> {
    let text = format!(
        "kernel @k(x: f32[256], y: f32[256] written, z: f32[256] written, t: f32[256] local) {{ part grid(i = 1) {{
         %0: f32[16,16] = load x[16*a0 + a1] store t[16*a0 + a1] = %0 {statements} }} }}"
    );
    let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut random = Random(11);
    let buffers = program.arguments().map(|_| random.elements(DType::F32, 256, -9, 9)).collect();
    let setting = Setting { buffers, dims: vec![] };
    let target = |bytes| VectorTarget { bytes, ..TARGET };
    [16, 32, 64].map(|bytes| agree_for(target(bytes), &program, &setting, &Ranges::new(), 0.0)).into()
}

/// Which of the statements on local memory is a store, in their order.
fn stores(program: &VectorProgram) -> Vec<bool> {
    let text = program.to_string();
    let on_local = |line: &str| line.contains("b3[").then(|| line.trim_start().starts_with("store"));
    text.lines().filter_map(on_local).collect()
}

#[test]
fn sums_that_are_stored_back_are_loaded_one_by_one() {
    let programs = lowered(
        "%1: f32[16,16] = load t[16*a0 + a1] %2: f32[16,16] = add %1, %0 %3: f32[16,16] = mul %2, %1 store t[16*a0 + a1] = %3
         %4: f32[16,16] = load t[16*a0 + a1] store y[16*a0 + a1] = %4 store z[16*a0 + a1] = %1",
    );
    for (program, lanes) in programs.iter().zip([4, 8, 16]) {
        let registers = 256 / lanes;
        let alternate = (0..2 * registers).map(|n| n % 2 == 1);
        let expected: Vec<bool> =
            vec![true; registers].into_iter().chain(alternate).chain(vec![false; registers]).collect();
        assert_eq!(stores(program), expected, "{program}");
    }
}

#[test]
fn what_is_stored_over_is_loaded_before() {
    let last = "%9: f32[16,16] = load t[16*a0 + a1] store y[16*a0 + a1] = %9 store z[16*a0 + a1] = %1";
    for between in [
        // Each element goes to another one's place.
        "%2: f32[16,16] = transpose [1, 0], %1 store t[16*a0 + a1] = %2",
        "store t[255 - 16*a0 - a1] = %1",
        "store t[16*a0 + a1] = %0 store t[16*a1 + a0] = %1",
        // It is made of elements that lie elsewhere, too.
        "%2: f32[16,16] = transpose [1, 0], %1 %3: f32[16,16] = sub %1, %2 store t[16*a0 + a1] = %3",
        "%2: f32[16,1] = load t[16*a0] %3: f32[16,16] = sub %1, %2 store t[16*a0 + a1] = %3",
        "%2: f32[16,1] = reduce add 1, %1 %3: f32[16,16] = sub %1, %2 store t[16*a0 + a1] = %3",
        "%2: f32[1,16] = reduce max 0, %1 store t[16*a0 + a1] = %0 store t[a1 + 16*a0] = %2",
        // Something else is stored, in a loop and where a condition holds, too.
        "store t[16*a0 + a1] = %0",
        "store t[16*a0 + a1] = %1 if(a0 + a1 < 9) store t[16*a1 + a0] = %0 if(a0 < a1)",
        "for k in 0..16 step 1 { %2: f32[1,16] = const 5.0f32 store t[16*k + a1] = %2 }",
        "for k in 0..4 step 4 { %2: f32[1,16] = const 5.0f32 store t[k + a1] = %2 }",
        "%2: f32[1,1] = load x[0] %3: f32[1,1] = const 0.5f32 %4: bool[1,1] = lt %2, %3
         if %4 { store t[16*a1 + a0] = %0 } else { %5: f32[1,16] = const 5.0f32 store t[a1 + 32] = %5 }",
    ] {
        lowered(&format!("%1: f32[16,16] = load t[16*a0 + a1] {between} {last}"));
    }
    // A tile of as many elements, which overlap.
    lowered(
        "%1: f32[1,128] = load t[a1] store t[a1 + 16] = %1 %9: f32[16,16] = load t[16*a0 + a1] store y[16*a0 + a1] = %9
         %8: f32[16,16] = load t[255 - 16*a0 - a1] store z[16*a0 + a1] = %8",
    );
}

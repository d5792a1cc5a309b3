//! What cannot be compiled is an error that names the statement.

use kiln_cpu::{Error, OptLevel, Target, compile, opt_level};
use kiln_ir::vector::VectorProgram;

fn error(body: &str) -> Error {
    let text = format!("vector @k(b0: f32, b1: i8 written, dims 0) {{\n{body}\n}}");
    let program = VectorProgram::parse(&text).unwrap();
    let errors = Target::ALL.map(|t| compile(&program, t).unwrap_err());
    assert!(errors.iter().all(|e| e.to_string() == errors[0].to_string()));
    let [first, ..] = errors;
    first
}

#[test]
fn vectors_of_another_width_are_named() {
    for (body, message) in [
        (
            "%0: f32x8 = load b0[0]",
            "vector program @k: `%0: f32x8 = load b0[0]`: f32x8: this emitter has only vectors of 16 bytes",
        ),
        (
            "%0: f32x2 = 1.0f32",
            "vector program @k: `%0: f32x2 = 1.0f32`: f32x2: this emitter has only vectors of 16 bytes",
        ),
        ("%0: i64 = lo\n%1: i8x4 = splat(%2)", "vector program @k: `%1: i8x4 = splat(%2)`: %2 is not defined"),
        (
            "%0: f32 = load b0[4611686018427387904]",
            "vector program @k: `%0: f32 = load b0[4611686018427387904]`: the offset in bytes overflows",
        ),
    ] {
        assert_eq!(error(body).to_string(), message);
    }
}

#[test]
fn an_invalid_program_gives_every_error() {
    let Error::Invalid(errors) = error("%0: f32 = load b1[0]\nstore b0[0], %9") else { panic!("not the right error") };
    assert_eq!(errors.len(), 3);
}

#[test]
fn loops_that_accumulate_products_keep_their_order() {
    let text = |op: &str| {
        format!(
            "vector @k(b0: f32 written, dims 0) {{
               %0: i64 = lo
               %1: i64 = hi
               %2: f32x4 = 0.0f32
               for %3 in %0..%1 step 1 carry (%4: f32x4 = %2) {{
                 %5: f32x4 = fma(%2, %2, %4)
                 %6: f32x4 = add(%5, %4)
               }} next (%{op}) as (%7)
             }}"
        )
    };
    assert_eq!(opt_level(&VectorProgram::parse(&text("5")).unwrap()), OptLevel::None);
    assert_eq!(opt_level(&VectorProgram::parse(&text("6")).unwrap()), OptLevel::Speed);
}

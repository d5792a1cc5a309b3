//! Every operation on every type and lane count, on all pairs of values near the edges, against the interpreter.

mod support;

use kiln_ir::vector::{VectorProgram, VectorType};
use kiln_ir::{BinaryOp, DType, UnaryOp};
use support::{DTYPES, check, interesting};

/// The scalar type and, where there are vectors of it in memory, the vector type.
fn types(dtype: DType) -> Vec<VectorType> {
    let mut types = vec![VectorType::scalar(dtype)];
    if dtype != DType::Bool {
        types.push(VectorType::vector(dtype, 16 / dtype.size() as u32));
    }
    types
}

/// Buffers so long that a loop in steps of 16 meets all pairs (and some triples).
fn operands(types: [DType; 3]) -> Vec<Vec<u8>> {
    let all = types.map(interesting);
    let len = all[0].len() * all[1].len();
    let padded = len.next_multiple_of(16);
    let mut buffers = vec![Vec::new(); 3];
    for i in 0..padded {
        buffers[0].extend_from_slice(&all[0][i % all[0].len()]);
        buffers[1].extend_from_slice(&all[1][i / all[0].len() % all[1].len()]);
        buffers[2].extend_from_slice(&all[2][(i * 7 + i / 5) % all[2].len()]);
    }
    buffers
}

/// Runs `%3: result = code` on `%0`, `%1` and `%2`, loaded from buffers of the given types. Masks are stored as
/// bytes by way of lanes. Returns whether the program is valid; an invalid one is not run.
fn run(operand_types: [VectorType; 3], result: VectorType, code: &str) -> bool {
    let [a, b, c] = operand_types;
    let buffers = operands([a.dtype, b.dtype, c.dtype]);
    let len = buffers[0].len() / a.dtype.size();
    let step = a.lanes.max(b.lanes).max(c.lanes).max(result.lanes);
    let mut store = String::new();
    if result.dtype == DType::Bool {
        for lane in 0..result.lanes {
            let id = 30 + lane;
            store += &format!("    %{id}: bool = extract(%3, {lane})\n    store b3[%12 + {lane}], %{id}\n");
        }
    } else {
        store += "    store b3[%12], %3\n";
    }
    let text = format!(
        "vector @op(b0: {}, b1: {}, b2: {}, b3: {} written, dims 0) {{
  %10: i64 = lo
  %11: i64 = hi
  for %12 in %10..%11 step {step} {{
    %0: {a} = load b0[%12]
    %1: {b} = load b1[%12]
    %2: {c} = load b2[%12]
{code}
{store}  }}
}}",
        a.dtype, b.dtype, c.dtype, result.dtype
    );
    let program = VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    if program.verify().is_err() {
        return false;
    }
    let mut buffers = buffers;
    buffers.push(vec![0; len * result.dtype.size()]);
    check(&program, &buffers, &[], 0, len as i64);
    true
}

#[test]
fn unary() {
    let mut count = 0;
    for dtype in DTYPES {
        for ty in types(dtype) {
            for op in UnaryOp::ALL {
                count += usize::from(run([ty; 3], ty, &format!("    %3: {ty} = {}(%0)", op.name())));
            }
        }
    }
    // 8 on floats, 3 on integers, 1 on bool.
    assert_eq!(count, 2 * 2 * 8 + 8 * 2 * 3 + 1);
}

#[test]
fn binary() {
    let mut count = 0;
    for dtype in DTYPES {
        for ty in types(dtype) {
            for op in BinaryOp::ALL {
                let result = if op.is_comparison() { VectorType { dtype: DType::Bool, ..ty } } else { ty };
                count += usize::from(run([ty; 3], result, &format!("    %3: {result} = {}(%0, %1)", op.name())));
            }
        }
    }
    assert_eq!(count, 2 * 2 * 12 + 8 * 2 * 19 + 2 + 13);
}

#[test]
fn binary_with_a_constant_or_a_splat() {
    for dtype in DTYPES.into_iter().skip(1) {
        let constants: Vec<String> = if dtype.is_float() {
            ["0.0", "-0.0", "1.5", "-2.0"].iter().map(|c| format!("{c}{dtype}")).collect()
        } else {
            ["0", "1", "7", "9", "64", "-1"].iter().map(|c| format!("{c}{dtype}")).collect()
        };
        for ty in types(dtype) {
            for op in BinaryOp::ALL.iter().filter(|op| !op.is_comparison()) {
                for c in constants.iter().chain([&format!("nan_{dtype}")].into_iter().filter(|_| dtype.is_float())) {
                    let name = op.name();
                    run([ty; 3], ty, &format!("    %9: {ty} = {c}\n    %3: {ty} = {name}(%0, %9)"));
                    run([ty; 3], ty, &format!("    %9: {ty} = {c}\n    %3: {ty} = {name}(%9, %0)"));
                }
                if !ty.is_scalar() {
                    let code = format!("    %9: {ty} = splat(%2)\n    %3: {ty} = {}(%0, %9)", op.name());
                    run([ty, ty, VectorType::scalar(dtype)], ty, &code);
                }
            }
        }
    }
}

#[test]
fn fma_and_select() {
    for dtype in DTYPES {
        for ty in types(dtype) {
            run([ty; 3], ty, &format!("    %3: {ty} = fma(%0, %1, %2)"));
            let bool = VectorType { dtype: DType::Bool, ..ty };
            if dtype == DType::Bool {
                assert!(run([ty; 3], ty, "    %3: bool = select(%0, %1, %2)"));
                continue;
            }
            let code = format!("    %9: {bool} = lt(%0, %1)\n    %3: {ty} = select(%9, %2, %0)");
            assert!(run([ty; 3], ty, &code));
        }
    }
}

#[test]
fn masks() {
    for dtype in DTYPES.into_iter().skip(1) {
        let ty = types(dtype)[1];
        let bool = VectorType { dtype: DType::Bool, ..ty };
        let masks = format!("    %8: {bool} = lt(%0, %1)\n    %9: {bool} = ge(%0, %2)\n");
        for op in BinaryOp::ALL {
            run([ty; 3], bool, &format!("{masks}    %3: {bool} = {}(%8, %9)", op.name()));
            run(
                [ty; 3],
                ty,
                &format!("{masks}    %7: {bool} = {}(%8, %9)\n    %3: {ty} = select(%7, %1, %2)", op.name()),
            );
            let fold = format!("{masks}    %3: bool = fold_{}(%8)", op.name());
            run([ty; 3], VectorType::scalar(DType::Bool), &fold);
        }
        assert!(run([ty; 3], bool, &format!("{masks}    %3: {bool} = not(%8)")));
        assert!(run([ty; 3], bool, &format!("{masks}    %3: {bool} = select(%8, %9, %8)")));
        assert!(run([ty; 3], ty, &format!("{masks}    %3: {ty} = to_{dtype}(%8)")));
        assert!(run([ty; 3], bool, &format!("    %3: {bool} = to_bool(%0)")));
        assert!(run([ty; 3], bool, &format!("    %3: {bool} = true")));
        let splat = format!("    %9: bool = lt(%1, %1)\n    %8: bool = not(%9)\n    %3: {bool} = splat(%8)");
        assert!(run([ty, VectorType::scalar(dtype), ty], bool, &splat));
    }
}

#[test]
fn casts() {
    let mut count = 0;
    for from in DTYPES {
        for to in DTYPES {
            for from in types(from) {
                let to = VectorType { dtype: to, ..from };
                let whole = to.dtype == DType::Bool || to.lanes as usize * to.dtype.size() == 16;
                if from.is_scalar() || whole {
                    count += usize::from(run([from; 3], to, &format!("    %3: {to} = to_{}(%0)", to.dtype)));
                }
            }
        }
    }
    // All pairs of scalars; vectors to their three (or two) own width's types and to masks.
    assert_eq!(count, 11 * 11 + 3 * 4 + 3 * 4 + 2 * 3 + 2 * 3);
}

#[test]
fn bits() {
    let mut count = 0;
    for from in DTYPES.into_iter().skip(1) {
        for to in DTYPES.into_iter().skip(1) {
            for from in types(from) {
                for to in types(to) {
                    count += usize::from(run([from; 3], to, &format!("    %3: {to} = bits_{}(%0)", to.dtype)));
                }
            }
        }
    }
    assert_eq!(count, 10 * 10 + 2 * 2 + 2 * 2 + 3 * 3 + 3 * 3);
}

#[test]
fn folds_and_lanes() {
    for dtype in DTYPES.into_iter().skip(1) {
        let scalar = VectorType::scalar(dtype);
        for ty in types(dtype) {
            for op in ["add", "mul", "min", "max", "and", "or"] {
                let valid = run([ty; 3], scalar, &format!("    %3: {dtype} = fold_{op}(%0)"));
                assert!(valid || dtype.is_float() && matches!(op, "and" | "or"));
            }
            for lane in 0..ty.lanes {
                assert!(run([ty; 3], scalar, &format!("    %3: {dtype} = extract(%0, {lane})")));
            }
            let lanes: Vec<_> = (0..ty.lanes).map(|l| if l % 3 == 1 { "%1" } else { "%0" }).collect();
            assert!(run([scalar; 3], ty, &format!("    %3: {ty} = pack({})", lanes.join(", "))));
            assert!(run([scalar; 3], ty, &format!("    %3: {ty} = splat(%1)")));
            let (lo, hi) = (60, 3);
            for code in [
                format!("    %3: {ty} = load_splat b1[%12]"),
                format!("    %9: i64 = {lo}i64\n    %3: {ty} = load_strided b1[%9] by -2"),
                format!("    %9: i64 = {hi}i64\n    %3: {ty} = load_strided b1[%9 - 2] by 3"),
                format!("    %3: {ty} = load_strided b1[7] by 0"),
                format!("    %3: {ty} = load_strided b1[7] by 1"),
            ] {
                assert!(run([ty; 3], ty, &code));
            }
        }
    }
}

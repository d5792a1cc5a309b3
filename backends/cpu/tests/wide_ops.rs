//! Every operation on every type, level and vector size, on all pairs of values near the edges, against the
//! interpreter.

mod wide_support;

use kiln_cpu::wide::WideLevel;
use kiln_ir::vector::{VectorProgram, VectorType};
use kiln_ir::{BinaryOp, DType, UnaryOp};
use wide_support::{DTYPES, SIZES, check, interesting};

/// The scalar type and, where there are vectors of it in memory, the vector type.
fn types(dtype: DType, bytes: u32) -> Vec<VectorType> {
    let mut types = vec![VectorType::scalar(dtype)];
    if dtype != DType::Bool {
        types.push(VectorType::vector(dtype, bytes / dtype.size() as u32));
    }
    types
}

/// Buffers so long that a loop in steps of 64 meets all pairs (and some triples).
fn operands(types: [DType; 3]) -> Vec<Vec<u8>> {
    let all = types.map(interesting);
    let padded = (all[0].len() * all[1].len()).next_multiple_of(64);
    let mut buffers = vec![Vec::new(); 3];
    for i in 0..padded {
        buffers[0].extend_from_slice(&all[0][i % all[0].len()]);
        buffers[1].extend_from_slice(&all[1][i / all[0].len() % all[1].len()]);
        buffers[2].extend_from_slice(&all[2][(i * 7 + i / 5) % all[2].len()]);
    }
    buffers
}

/// What became of an operation.
#[derive(PartialEq, Debug)]
enum Ran {
    Right,
    Invalid,
    Unsupported,
}

struct Run {
    level: WideLevel,
    right: usize,
    unsupported: Vec<String>,
}

impl Run {
    fn new(level: WideLevel) -> Run {
        Run { level, right: 0, unsupported: Vec::new() }
    }

    /// Runs `%3: result = code` on `%0`, `%1` and `%2`, loaded from buffers of the given types. Masks are stored as
    /// bytes by way of lanes.
    fn op(&mut self, operand_types: [VectorType; 3], result: VectorType, code: &str) -> Ran {
        let [a, b, c] = operand_types;
        let mut buffers = operands([a.dtype, b.dtype, c.dtype]);
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
            return Ran::Invalid;
        }
        buffers.push(vec![0; len * result.dtype.size()]);
        match check(&program, self.level, &buffers, &[], (0, len as i64)) {
            Ok(()) => {
                self.right += 1;
                Ran::Right
            }
            Err(message) => {
                self.unsupported.push(format!("{a} -> {result}: {} ({message})", code.trim()));
                Ran::Unsupported
            }
        }
    }

    /// At least so many operations were right, and none was refused.
    fn done(self, least: usize) {
        assert!(self.unsupported.is_empty(), "{:?} refuses:\n{}", self.level, self.unsupported.join("\n"));
        assert!(self.right >= least, "{:?}: only {} operations", self.level, self.right);
    }
}

#[test]
fn unary() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES {
            for ty in types(dtype, bytes) {
                for op in UnaryOp::ALL {
                    run.op([ty; 3], ty, &format!("    %3: {ty} = {}(%0)", op.name()));
                }
            }
        }
        // 8 on floats, 3 on integers, 1 on bool.
        run.done(2 * 2 * 8 + 8 * 2 * 3 + 1);
    }
}

#[test]
fn binary() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES {
            for ty in types(dtype, bytes) {
                for op in BinaryOp::ALL {
                    let result = if op.is_comparison() { VectorType { dtype: DType::Bool, ..ty } } else { ty };
                    run.op([ty; 3], result, &format!("    %3: {result} = {}(%0, %1)", op.name()));
                }
            }
        }
        run.done(2 * 2 * 12 + 8 * 2 * 19 + 2 + 13);
    }
}

#[test]
fn binary_with_a_constant_or_a_splat() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES.into_iter().skip(1) {
            let mut constants: Vec<String> = if dtype.is_float() {
                ["0.0", "-0.0", "1.5", "-2.0"].iter().map(|c| format!("{c}{dtype}")).collect()
            } else {
                ["0", "1", "7", "8", "64", "-1"].iter().map(|c| format!("{c}{dtype}")).collect()
            };
            if dtype.is_float() {
                constants.push(format!("nan_{dtype}"));
            }
            for ty in types(dtype, bytes) {
                for op in BinaryOp::ALL.iter().filter(|op| !op.is_comparison()) {
                    for c in &constants {
                        let name = op.name();
                        run.op([ty; 3], ty, &format!("    %9: {ty} = {c}\n    %3: {ty} = {name}(%0, %9)"));
                        run.op([ty; 3], ty, &format!("    %9: {ty} = {c}\n    %3: {ty} = {name}(%9, %0)"));
                    }
                    if !ty.is_scalar() {
                        let code = format!("    %9: {ty} = splat(%2)\n    %3: {ty} = {}(%0, %9)", op.name());
                        run.op([ty, ty, VectorType::scalar(dtype)], ty, &code);
                    }
                }
            }
        }
        run.done(2000);
    }
}

#[test]
fn fma_and_select() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES {
            for ty in types(dtype, bytes) {
                for (a, b, c) in [("%0", "%1", "%2"), ("%0", "%1", "%9"), ("%9", "%1", "%2"), ("%0", "%0", "%0")] {
                    let constant =
                        if dtype.is_float() { format!("    %9: {ty} = 0.75{dtype}\n") } else { String::new() };
                    run.op([ty; 3], ty, &format!("{constant}    %3: {ty} = fma({a}, {b}, {c})"));
                }
                let bool = VectorType { dtype: DType::Bool, ..ty };
                if dtype == DType::Bool {
                    run.op([ty; 3], ty, "    %3: bool = select(%0, %1, %2)");
                    continue;
                }
                run.op([ty; 3], ty, &format!("    %9: {bool} = lt(%0, %1)\n    %3: {ty} = select(%9, %2, %0)"));
            }
        }
        run.done(2 * 2 * 4 + 1 + 20);
    }
}

#[test]
fn scale() {
    // AVX2 has no such instruction.
    for (level, bytes) in SIZES.into_iter().filter(|(level, _)| *level >= WideLevel::Avx512) {
        let mut run = Run::new(level);
        for ty in types(DType::F32, bytes) {
            run.op([ty; 3], ty, &format!("    %3: {ty} = scale(%0, %1)"));
            run.op([ty; 3], ty, &format!("    %9: {ty} = -127.0f32\n    %3: {ty} = scale(%0, %9)"));
        }
        run.done(4);
    }
}

#[test]
fn masks() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES.into_iter().skip(1) {
            // Of AVX2, only full vectors have masks that are known without their origin.
            let ty = types(dtype, bytes)[1];
            let bool = VectorType { dtype: DType::Bool, ..ty };
            let masks = format!("    %8: {bool} = lt(%0, %1)\n    %9: {bool} = ge(%0, %2)\n");
            for op in BinaryOp::ALL {
                run.op([ty; 3], bool, &format!("{masks}    %3: {bool} = {}(%8, %9)", op.name()));
                let selected = format!("    %7: {bool} = {}(%8, %9)\n    %3: {ty} = select(%7, %1, %2)", op.name());
                run.op([ty; 3], ty, &(masks.clone() + &selected));
                let fold = format!("{masks}    %3: bool = fold_{}(%8)", op.name());
                run.op([ty; 3], VectorType::scalar(DType::Bool), &fold);
            }
            run.op([ty; 3], bool, &format!("{masks}    %3: {bool} = not(%8)"));
            run.op([ty; 3], bool, &format!("{masks}    %3: {bool} = select(%8, %9, %8)"));
            run.op([ty; 3], ty, &format!("{masks}    %3: {ty} = to_{dtype}(%8)"));
            run.op([ty; 3], bool, &format!("    %3: {bool} = to_bool(%0)"));
            run.op([ty; 3], bool, &format!("    %3: {bool} = true"));
            let splat = format!("    %9: bool = lt(%1, %1)\n    %8: bool = not(%9)\n    %3: {bool} = splat(%8)");
            run.op([ty, VectorType::scalar(dtype), ty], bool, &splat);
        }
        run.done(10 * 30);
    }
}

#[test]
fn casts() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for from in DTYPES {
            for to in DTYPES {
                for from in types(from, bytes) {
                    let to = VectorType { dtype: to, ..from };
                    let size = to.lanes as usize * to.dtype.size();
                    if from.is_scalar() || to.dtype == DType::Bool || (4..=level.bytes() as usize).contains(&size) {
                        run.op([from; 3], to, &format!("    %3: {to} = to_{}(%0)", to.dtype));
                    }
                }
            }
        }
        // All pairs of scalars; vectors at least to the types of their own width.
        run.done(11 * 11 + 40);
    }
}

#[test]
fn bits() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for from in DTYPES.into_iter().skip(1) {
            for to in DTYPES.into_iter().skip(1) {
                for from in types(from, bytes) {
                    for to in types(to, bytes) {
                        run.op([from; 3], to, &format!("    %3: {to} = bits_{}(%0)", to.dtype));
                    }
                }
            }
        }
        run.done(10 * 10 + 2 * 2 + 2 * 2 + 3 * 3 + 3 * 3);
    }
}

#[test]
fn folds_and_lanes() {
    for (level, bytes) in SIZES {
        let mut run = Run::new(level);
        for dtype in DTYPES.into_iter().skip(1) {
            let scalar = VectorType::scalar(dtype);
            for ty in types(dtype, bytes) {
                for op in ["add", "mul", "min", "max", "and", "or"] {
                    let ran = run.op([ty; 3], scalar, &format!("    %3: {dtype} = fold_{op}(%0)"));
                    assert!(ran != Ran::Invalid || dtype.is_float() && matches!(op, "and" | "or"));
                }
                for lane in 0..ty.lanes {
                    run.op([ty; 3], scalar, &format!("    %3: {dtype} = extract(%0, {lane})"));
                }
                let lanes: Vec<_> = (0..ty.lanes).map(|l| if l % 3 == 1 { "%1" } else { "%0" }).collect();
                run.op([scalar; 3], ty, &format!("    %3: {ty} = pack({})", lanes.join(", ")));
                run.op([scalar; 3], ty, &format!("    %3: {ty} = splat(%0)"));
                // As many different vectors as there are lanes, transposed: lane `n` of each.
                for n in 0..if ty.lanes <= 16 { ty.lanes } else { 0 } {
                    let next =
                        |v: u32| format!("    %{}: {ty} = sub(%{}, %1)\n", 20 + v, if v == 0 { 0 } else { 19 + v });
                    let vectors: String = (0..ty.lanes).map(next).collect();
                    let names: Vec<String> = (0..ty.lanes).map(|v| format!("%{}", 20 + v)).collect();
                    run.op([ty; 3], ty, &format!("{vectors}    %3: {ty} = column_{n}({})", names.join(", ")));
                }
                for code in [
                    format!("    %3: {ty} = load_splat b1[%12]"),
                    format!("    %9: i64 = 140i64\n    %3: {ty} = load_strided b1[%9] by -2"),
                    format!("    %9: i64 = 3i64\n    %3: {ty} = load_strided b1[%9 - 2] by 3"),
                    format!("    %3: {ty} = load_strided b1[7] by 0"),
                    format!("    %3: {ty} = load_strided b1[7] by 1"),
                    format!("    %3: {ty} = load_strided b1[7] by 2"),
                ] {
                    run.op([ty; 3], ty, &code);
                }
            }
        }
        run.done(10 * 2 * 12);
    }
}

/// Memory that is asked for may lie anywhere, before or beyond a buffer that ends where a page begins that must not be touched.
#[test]
fn asking_for_memory_changes_nothing() {
    for (level, bytes) in SIZES {
        let lanes = bytes / 4;
        let text = format!(
            "vector @ask(b0: f32, b1: f32 written, dims 0) {{
               %0: i64 = 0i64
               %1: i64 = 64i64
               for %2 in %0..%1 step {lanes} {{
                 prefetch b0[%2 + 1000000]
                 prefetch b0[-70000]
                 %3: f32x{lanes} = load b0[%2]
                 store b1[%2], %3
               }}
             }}"
        );
        let program = VectorProgram::parse(&text).expect("a program");
        assert_eq!(VectorProgram::parse(&program.to_string()).as_ref(), Ok(&program));
        let numbers: Vec<u8> = (0..64).flat_map(|n| (n as f32).to_le_bytes()).collect();
        assert_eq!(check(&program, level, &[numbers, vec![0; 256]], &[], (0, 1)), Ok(()));
    }
}

/// Floats that are normal, zero, infinite or not numbers, by a linear congruential generator.
fn floats(count: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    let mut one = |n: usize| match n % 97 {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => -0.0,
        _ => f32::from_bits(next() & 0x807f_ffff | (110 + next() % 30) << 23),
    };
    (0..count).flat_map(|n| one(n).to_le_bytes()).collect()
}

#[test]
fn pairs_of_bf16() {
    const ROWS: usize = 96;
    let level = WideLevel::Avx512Bf16;
    for lanes in [1, 4, 8, 16] {
        let (float, pair) = (VectorType { dtype: DType::F32, lanes }, VectorType { dtype: DType::I32, lanes });
        // Neighbours side by side, two rows, and pairs of the one multiplied with pairs and one pair of the other.
        let text = format!(
            "vector @op(b0: f32, b1: f32, b2: i32 written, b3: i32 written, b4: f32 written, dims 0) {{
  %10: i64 = lo
  %11: i64 = hi
  for %12 in %10..%11 step {lanes} {{
    %13: i64 = add(%12, %12)
    %0: {float} = load_strided b0[%13] by 2
    %1: {float} = load_strided b0[%13 + 1] by 2
    %2: {pair} = pair(%0, %1)
    store b2[%12], %2
    %3: {float} = load b0[%12]
    %4: {float} = load b1[%12]
    %5: {pair} = pair(%3, %4)
    store b3[%12], %5
    %6: {float} = load b1[%13]
    %7: {float} = fma(%2, %5, %6)
    store b4[%12], %7
  }}
}}"
        );
        let program = VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        program.verify().unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        let results = vec![vec![0; 4 * ROWS]; 3];
        let buffers = [vec![floats(2 * ROWS), floats(2 * ROWS + 5)[20..].to_vec()], results].concat();
        check(&program, level, &buffers, &[], (0, ROWS as i64)).unwrap_or_else(|e| panic!("{level:?}: {e}"));
    }
}

#[test]
fn folds_of_several_vectors_as_lanes() {
    for (level, bytes) in SIZES {
        for dtype in [DType::F32, DType::I32] {
            let lanes = bytes / 4;
            let ty = VectorType { dtype, lanes };
            for count in [4, 8, 16].into_iter().filter(|&count| count <= lanes) {
                for op in [BinaryOp::Add, BinaryOp::Max, BinaryOp::Min] {
                    let result = VectorType { dtype, lanes: count };
                    let mut steps = String::new();
                    for n in 0..count {
                        steps += &format!("    %{}: {ty} = load b0[%12 + {}]\n", 20 + n, n * lanes + n % 3);
                        steps += &format!("    %{}: {dtype} = fold_{}(%{})\n", 40 + n, op.name(), 20 + n);
                    }
                    let each: Vec<String> = (0..count).map(|n| format!("%{}", 40 + n)).collect();
                    let text = format!(
                        "vector @op(b0: {dtype}, b1: {dtype} written, b2: {dtype} written, dims 0) {{
  %10: i64 = lo
  %11: i64 = hi
  for %12 in %10..%11 step {lanes} {{
{steps}    %3: {result} = pack({})
    store b1[%12], %3
    %4: {dtype} = fold_add(%3)
    store b2[%12], %4
  }}
}}",
                        each.join(", ")
                    );
                    let program = VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
                    program.verify().unwrap_or_else(|e| panic!("{e:?}\n{text}"));
                    let steps = 12 * lanes as usize;
                    let results = vec![vec![0; 4 * steps]; 2];
                    let buffers = [vec![floats(steps + 17 * lanes as usize)], results].concat();
                    let ran = check(&program, level, &buffers, &[], (0, steps as i64));
                    ran.unwrap_or_else(|e| panic!("{level:?}: {e}"));
                }
            }
        }
    }
}

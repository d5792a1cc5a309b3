//! Matrix registers: emitted code beside the interpreter.
//!
//! Invariant: the code is run twice: by the processor, where it has AMX, and everywhere by an emulator of the few instructions
//! that such kernels are made of, which knows nothing of the emitter. Both must leave what the interpreter leaves.

mod emulator;
mod wide_support;

use emulator::Emulator;
use kiln_cpu::wide::{self, WideLevel};
use kiln_ir::DType;
use kiln_ir::vector::{self, VectorProgram};
use wide_support::check;

/// Deterministic numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Pairs of bf16 of all signs and few exponents; some are 0, subnormal, infinite or no number.
    fn pairs(&mut self, count: usize) -> Vec<u8> {
        let mut half = |n: usize| match (n % 41, self.next()) {
            (0, bits) => [0u16, 0x8000, 0x0001, 0x807f, 0x3f80][(bits % 5) as usize],
            (1, bits) if n > 400 => [0x7f80, 0xff80, 0x7fc0][(bits % 3) as usize],
            (_, bits) => (bits as u16 & 0x80ff) | (120 + (bits >> 20) as u16 % 12) << 7,
        };
        (0..2 * count).flat_map(|n| half(n).to_le_bytes()).collect()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..4 * count).map(|_| self.next() as u8).collect()
    }
}

/// Compares the emulator with the interpreter, then the processor.
fn agree(text: &str, buffers: &[Vec<u8>]) {
    let program = VectorProgram::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(VectorProgram::parse(&program.to_string()).as_ref(), Ok(&program));
    let mut want = buffers.to_vec();
    let mut views: Vec<&mut [u8]> = want.iter_mut().map(Vec::as_mut_slice).collect();
    let status = vector::run(&program, &mut views, &[], 0, 1, true).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let code = wide::compile(&program, WideLevel::Amx).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut emulator = Emulator::new(&code.bytes, buffers);
    assert_eq!(emulator.call(0, 1), status);
    for (n, want) in want.iter().enumerate() {
        let nan = |word: &[u8]| f32::from_le_bytes(word.try_into().unwrap()).is_nan();
        let floats = program.buffers[n].0 == DType::F32;
        let differ = |(a, b): (&[u8], &[u8])| a != b && !(floats && nan(a) && nan(b));
        let first = emulator.buffer(n).chunks(4).zip(want.chunks(4)).position(differ);
        assert_eq!(first, None, "element of b{n}\n{text}");
    }
    check(&program, WideLevel::Amx, buffers, &[], (0, 1)).unwrap();
}

/// Two by two registers of sums, loops around them, sums that go through local memory; of all products.
#[test]
fn sums_of_products() {
    let mut random = Random(1);
    for product in ["pairs", "u8s8", "s8u8"] {
        for (rows, columns, depth, steps) in [(16, 16, 16, 3), (7, 5, 9, 2), (1, 16, 4, 1), (16, 1, 16, 2)] {
            let sums = if product == "pairs" { "f32" } else { "i32" };
            let (wide, deep) = (columns * 4, depth * 4);
            let (lda, ldb) = (depth * steps + 3, 2 * columns + 1);
            let (second, right, across, ldc) = (rows * lda, columns, rows * 2 * columns, 2 * columns);
            let end = depth * steps;
            let text = format!(
                "vector @m(b0: i32, b1: i32, b2: {sums} written, dims 0, local b3: {sums}[1024]) {{
  %0: i64 = lo
  %1: i64 = 0i64
  %2: i64 = {end}i64
  %3: i64 = {ldb}i64
  matrix shape ({rows} by {wide}, {rows} by {wide}, {rows} by {wide}, {rows} by {wide}, {rows} by {deep}, {rows} by {deep}, {depth} by {wide}, {depth} by {wide})
  matrix zero 0
  matrix zero 1
  matrix zero 2
  matrix zero 3
  for %4 in %1..%2 step {depth} {{
    %5: i64 = mul(%4, %3)
    matrix load 4, b0[%4] by {lda}
    matrix load 6, b1[%5] by {ldb}
    matrix {product} 0, 4, 6
    matrix load 7, b1[%5 + {right}] by {ldb}
    matrix {product} 1, 4, 7
    matrix load 5, b0[%4 + {second}] by {lda}
    matrix {product} 2, 5, 6
    matrix {product} 3, 5, 7
  }}
  matrix store b3[0] by {ldc}, 0
  matrix store b3[{right}] by {ldc}, 1
  matrix store b3[{across}] by {ldc}, 2
  matrix store b3[{across} + {right}] by {ldc}, 3
  matrix zero 0
  matrix load 0, b3[0] by {ldc}
  matrix store b2[0] by {ldc}, 0
  matrix load 0, b3[{right}] by {ldc}
  matrix store b2[{right}] by {ldc}, 0
  matrix store b2[{across}] by {ldc}, 2
  matrix store b2[{across} + {right}] by {ldc}, 3
}}"
            )
            .replace(&format!("{across} + {right}"), &(across + right).to_string());
            let counts = [2 * rows * lda, end * ldb, 2 * rows * ldc];
            let operands = match product {
                "pairs" => [random.pairs(counts[0]), random.pairs(counts[1])],
                _ => [random.bytes(counts[0]), random.bytes(counts[1])],
            };
            let [left, right] = operands;
            agree(&text, &[left, right, vec![0xee; 4 * counts[2]]]);
        }
    }
}

/// A register of a shape that it does not have, or of which it is not known, is refused before any code is made.
#[test]
fn shapes_are_checked() {
    let with = |statements: &str| {
        let text =
            format!("vector @m(b0: i32, b1: f32 written, dims 0) {{\n%0: i64 = lo\n%1: i64 = hi\n{statements}\n}}");
        VectorProgram::parse(&text).unwrap_or_else(|e| panic!("{e}")).verify().map_err(|e| e[0].to_string())
    };
    let shape = "matrix shape (2 by 8, 2 by 4, 1 by 8, 0 by 0, 0 by 0, 0 by 0, 0 by 0, 0 by 0)\n";
    assert_eq!(with(&format!("{shape} matrix pairs 0, 1, 2")), Ok(()));
    for (wrong, said) in [
        ("matrix zero 0".to_string(), "no shape"),
        (format!("{shape} matrix pairs 0, 2, 1"), "none of a product"),
        (format!("{shape} matrix pairs 0, 1, 1"), "none of a product"),
        (format!("{shape} matrix zero 3"), "not used"),
        (format!("{shape} matrix zero 8"), "not used"),
        (format!("{shape} matrix store b0[0] by 2, 0"), "written"),
        (format!("for %2 in %0..%1 step 1 {{\n{shape}}}\nmatrix zero 0"), "no shape"),
        (format!("{shape} for %2 in %0..%1 step 1 {{\nmatrix zero 0\n{shape}}}"), "no shape"),
        ("matrix shape (17 by 8, 2 by 4, 1 by 8, 0 by 0, 0 by 0, 0 by 0, 0 by 0, 0 by 0)".into(), "no register"),
        ("matrix shape (2 by 6, 2 by 4, 1 by 8, 0 by 0, 0 by 0, 0 by 0, 0 by 0, 0 by 0)".into(), "no register"),
    ] {
        let found = with(&wrong).expect_err(&wrong);
        assert!(found.contains(said), "{wrong}: {found}");
    }
}

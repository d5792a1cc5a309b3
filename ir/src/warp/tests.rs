//! Text form, verifier and interpreter on programs written by hand.

use super::*;

/// Sums 64 elements of `x` in each of two blocks of two warps: shuffles, then shared memory between the warps.
const SUM: &str = "\
warp @sum(b0 x: f32[n], b1 y: f32[2] written, dims(n)) grid(2) threads 64 shared(s0: f32[4]) {
  %0: i32 = thread
  %1: i32 = block
  %2: i32 = 64i32
  %3: i32 = mul(%1, %2)
  %4: i32 = add(%3, %0)
  %5: i64 = dim 0
  %6: i64 = to_i64(%4)
  %7: bool = lt(%6, %5)
  %8: f32 = load b0[%4] if %7 else 0.0f32
  %9: f32 = shuffle(%8, 16)
  %10: f32 = add(%8, %9)
  %11: f32 = shuffle(%10, 8)
  %12: f32 = add(%10, %11)
  %13: f32 = shuffle(%12, 4)
  %14: f32 = add(%12, %13)
  %15: f32 = shuffle(%14, 2)
  %16: f32 = add(%14, %15)
  %17: f32 = shuffle(%16, 1)
  %18: f32 = add(%16, %17)
  %19: i32 = 5i32
  %20: i32 = shr(%0, %19)
  %21: i32 = 31i32
  %22: i32 = and(%0, %21)
  %23: i32 = 0i32
  %24: bool = eq(%22, %23)
  store s0[%20 + 2], (%18) if %24
  barrier
  %25: i32 = 2i32
  %26: f32 = -0.0f32
  for %27: i32 in %23..%25 step 1 carry(%28: f32 = %26) {
    %29: f32 = load s0[%27 + 2]
    %30: f32 = add(%28, %29)
  } next(%30) as(%31)
  %32: bool = eq(%0, %23)
  store b1[%1], (%31) if %32
}
";

/// Copies 8 elements a thread to shared memory and back in another order.
const COPY: &str = "\
warp @copy(b0 x: f16[256], b1 y: u32[128] written, dims()) grid(1) threads 32 shared(s0: f16[256]) {
  %0: i32 = thread
  %1: i32 = 8i32
  %2: i32 = mul(%0, %1)
  copy s0[%2], b0[%2], 8
  commit
  wait 0
  barrier
  %3: u32, %4: u32, %5: u32, %6: u32 = matrix_transposed s0[%2]
  %7: i32 = 4i32
  %8: i32 = mul(%0, %7)
  store b1[%8], (%3, %4, %5, %6)
}
";

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn parse(text: &str) -> WarpProgram {
    WarpProgram::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_text_form_round_trips() {
    let rest = "\
warp @rest(b0 x: bf16[floordiv(n, 2) + 1], b1 y: i64[4] written, dims(n, m)) grid(m*n) threads 32 shared(s0: bf16[64], s1: f32[8]) {
  %0: i32 = thread
  %1: u32, %2: u32 = matrix s0[%0 - 3]
  %3: f32 = minus_inf_f32
  %4: f32, %5: f32, %6: f32, %7: f32 = mma_bf16(%1, %1, %2, %2, %1, %2, %3, %3, %3, %3)
  %8: f32 = fma(%4, %5, %6)
  %9: f32 = exp2(%8)
  %10: f32 = neg(%9)
  %11: bool = lt(%10, %9)
  %12: f32 = select(%11, %10, %9)
  %13: bf16 = to_bf16(%12)
  %14: u32 = bits_u32(%12)
  %15: u32 = pack_bf16(%12, %9)
  copy s0[%0], b0[0], 2 if %11
  wait 3
  fail 7 if %11
  store b1[-1], (%16, %16) if %11
}
";
    for text in [SUM, COPY, rest] {
        let program = parse(text);
        assert_eq!(program.to_string(), text);
        assert_eq!(parse(&program.to_string()), program);
    }
    assert_eq!(parse(SUM).verify(), Ok(()));
    assert_eq!(parse(COPY).verify(), Ok(()));
}

#[test]
fn text_that_is_no_program_is_refused_with_its_place() {
    let head = "warp @k(dims()) grid(1) threads 32";
    for (text, message) in [
        ("warp k", "line 1, column 7: expected a name such as `@k3`"),
        ("warp @k(b1 x: f32[1], dims()) ", "expected `b0`, found `b1`"),
        (&format!("{head} {{ %0: i31 = thread }}"), "expected an element type such as `f32`"),
        (&format!("{head} {{ %0: i32 = frob(%1) }}"), "`frob` is no operation of a warp program"),
        (&format!("{head} {{ store c0[1], (%1) }}"), "expected a buffer such as `b0` or `s0`"),
        (&format!("{head} {{ for %0: i32 in %1..%1 step 1 carry(%2: f32 = %1) {{}} next() as() }}"), "carries 1"),
        (&format!("{head} {{ fail 1 %0 }}"), "expected `if`"),
        (&format!("{head} {{ wait -1 }}"), "expected a number below 2^32"),
        (&format!("{head} {{ %99999999: i32 = thread }}"), "the number of the value is too large"),
        (&format!("{head} {{"), "expected a statement"),
        (&format!("{head} {{}} wait"), "expected the end of the program"),
    ] {
        let error = WarpProgram::parse(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn the_verifier_collects_every_error() {
    let program = parse(
        "\
warp @k(b0 x: f32[n], b1 x: f64[4] written, dims()) grid(1) threads 33 shared(s0: f32[0], s1: f16[200000]) {
  %0: i32 = thread
  %0: i32 = block
  %1: i64 = dim 0
  %2: f32, %3: f32, %4: f32 = load b0[%0]
  store b0[%0], (%2)
  store s1[%1], (%2, %0)
  copy b0[0], s1[0], 1
  for %5: i32 in %0..%6 step 0 {
    barrier
  }
  %7: f32 = exp2(%0)
  %8: f16 = to_f16(%0)
  %9: f32 = shuffle(%8, 32)
  %10: u32, %11: u32, %12: u32 = matrix b0[0]
  %13: f32 = mma_tf32(%10, %10, %10, %10, %2, %10, %2, %2, %2, %10)
  %14: f16 = add(%8, %8)
  %15: f16 = bits_f16(%2)
  %16: bool = lt(%2, %2)
  %17: f32 = select(%16, %2, %8)
  %18: i32 = 1i64
  %19: u32 = pack_f32(%2, %10)
  fail 0 if %2
}
",
    );
    let errors = program.verify().unwrap_err();
    let errors: Vec<String> = errors.iter().map(|e| format!("{} | {}", e.statement, e.message)).collect();
    let want = [
        " | buffer b1: warp programs do not compute with f64",
        " | buffer b1: `x` is no name of its own",
        " | the length `n` depends on `n`, which is no dim",
        " | 33 threads; wants a multiple of 32 up to 1024",
        " | shared buffer s0 is empty",
        " | 400000 bytes of shared buffers, at most 232448 fit",
        "%0: i32 = block | %0 is assigned a second time",
        "%1: i64 = dim 0 | there is no dim 0",
        "%2: f32, %3: f32, %4: f32 = load b0[%0] | an access of 3 elements of f32",
        "store b0[%0], (%2) | b0 is not declared `written`",
        "store s1[%1], (%2, %0) | %0 is i32, wants f32",
        "store s1[%1], (%2, %0) | s1[%1] holds f16, the value is f32",
        "store s1[%1], (%2, %0) | %1 is i64 and no index of s1[%1]",
        "copy b0[0], s1[0], 1 | b0[0] holds f32, the value is f16",
        "copy b0[0], s1[0], 1 | copies go from a buffer to a shared one",
        "copy b0[0], s1[0], 1 | copies 2 bytes, wants 4, 8 or 16",
        "for %5: i32 in %0..%6 step 0 { | %6 is not defined",
        "for %5: i32 in %0..%6 step 0 { | the step is 0, wants at least 1, of the variable's type",
        "%7: f32 = exp2(%0) | %0 is i32, wants f32",
        "%8: f16 = to_f16(%0) | i32 is converted to f16 by way of f32 only",
        "%9: f32 = shuffle(%8, 32) | %8 is not of 4 or 8 bytes",
        "%9: f32 = shuffle(%8, 32) | lane mask 32; wants 1 to 31",
        "%9: f32 = shuffle(%8, 32) | a result is f16, declared as f32",
        "%10: u32, %11: u32, %12: u32 = matrix b0[0] | matrices are loaded from shared buffers",
        "%13: f32 = mma_tf32(%10, %10, %10, %10, %2, %10, %2, %2, %2, %10) | %2 is f32, wants u32",
        "%13: f32 = mma_tf32(%10, %10, %10, %10, %2, %10, %2, %2, %2, %10) | %10 is u32, wants f32",
        "%13: f32 = mma_tf32(%10, %10, %10, %10, %2, %10, %2, %2, %2, %10) | 1 results, wants 4",
        "%14: f16 = add(%8, %8) | `add` is not defined on f16",
        "%15: f16 = bits_f16(%2) | the bits of f32 are no f16",
        "%17: f32 = select(%16, %2, %8) | %8 is f16, wants f32",
        "%18: i32 = 1i64 | a result is i64, declared as i32",
        "%19: u32 = pack_f32(%2, %10) | %10 is u32, wants f32",
        "%19: u32 = pack_f32(%2, %10) | no pairs of f32",
        "fail 0 if %2 | %2 is f32, wants bool",
        "fail 0 if %2 | status 0 means success",
    ];
    assert_eq!(errors, want);
}

#[test]
fn a_loop_bound_that_differs_between_threads_is_refused() {
    let text = "\
warp @k(dims(n)) grid(1) threads 32 {
  %0: i32 = thread
  %1: i32 = block
  %2: i32 = add(%0, %1)
  %3: i32 = add(%1, %1)
  for %4: i32 in %1..%2 step 1 {
    for %5: i32 in %4..%3 step 1 {
      barrier
    }
  }
}
";
    let errors = parse(text).verify().unwrap_err();
    let messages: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(messages, ["%2 may differ between the threads of a block"]);
}

#[test]
fn shuffles_and_shared_memory_sum() {
    let program = parse(SUM);
    let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut buffers = [f32s(x.iter().copied()), f32s([0.0; 2])];
    let counts = run(&program, &mut buffers, &[100]).unwrap().counts;
    assert_eq!(buffers[1], f32s([x[..64].iter().sum(), x[64..].iter().sum()]));
    // 400 bytes are 13 sectors, and each block stores one element.
    assert_eq!((counts.sectors, counts.least_sectors), (13 + 2, 13 + 2));
    // Each warp stores one partial sum, and each reads two.
    assert_eq!((counts.wavefronts, counts.least_wavefronts), (2 * (2 + 4), 2 * (2 + 4)));
}

#[test]
fn a_transposed_matrix_load_transposes() {
    let x: Vec<u8> = (0..256).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
    let mut buffers = [x, vec![0; 512]];
    run(&parse(COPY), &mut buffers, &[]).unwrap();
    let halves: Vec<f32> =
        buffers[1].as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect();
    for (lane, values) in halves.chunks(8).enumerate() {
        for (j, pair) in values.chunks(2).enumerate() {
            // Element [column][row] of matrix j, whose rows are 8 consecutive elements.
            let at = |c: usize| (64 * j + 8 * (lane % 4 * 2 + c) + lane / 4) as f32;
            assert_eq!(pair, [at(0), at(1)]);
        }
    }
}

/// A product of `a`, of 16 rows of 8 words, with `b`, of 8 columns of 8 words, in a warp that begins with the constant `first`.
fn product(op: &str, sums: &str, first: &str) -> String {
    // Every lane loads its fragment by the formulas of the PTX reference, from row-major a and b by columns.
    let (mut lines, mut next) = (String::new(), 10);
    let mut fragment = |buffer: usize, row: &str, column: &str, width: usize| {
        let id = next;
        next += 10;
        let [i, w, r] = [id + 1, id + 2, id + 3];
        lines +=
            &format!("  %{w}: i32 = {width}i32\n  %{r}: i32 = mul({row}, %{w})\n  %{i}: i32 = add(%{r}, {column})\n");
        lines += &format!("  %{id}: u32 = load b{buffer}[%{i}]\n");
        format!("%{id}")
    };
    // Of words of 32 bits a has 8 a row, and b, which is given transposed, 8 a column.
    let a: Vec<String> = [("%3", "%4"), ("%5", "%4"), ("%3", "%6"), ("%5", "%6")]
        .iter()
        .map(|(row, column)| fragment(0, row, column, 8))
        .collect();
    let b: Vec<String> = ["%4", "%6"].iter().map(|column| fragment(1, "%3", column, 8)).collect();
    format!(
        "\
warp @k(b0 a: u32[128], b1 b: u32[64], b2 c: {sums}[128] written, dims()) grid(1) threads 32 {{
  %0: i32 = thread
  %1: i32 = 4i32
  %2: i32 = 8i32
  %3: i32 = div(%0, %1)
  %4: i32 = rem(%0, %1)
  %5: i32 = add(%3, %2)
  %6: i32 = add(%4, %1)
  %7: {sums} = {first}
{lines}  %200: {sums}, %201: {sums}, %202: {sums}, %203: {sums} = {op}({}, {}, %7, %7, %7, %7)
  %210: i32 = mul(%3, %2)
  %211: i32 = add(%4, %4)
  %212: i32 = add(%210, %211)
  store b2[%212], (%200, %201)
  store b2[%212 + 64], (%202, %203)
}}
",
        a.join(", "),
        b.join(", ")
    )
}

#[test]
fn a_matrix_product_is_that_of_its_fragments() {
    let value = |i: usize, j: usize, k: usize| ((i * 7 + j * 3 + k) % 11) as f32 - 5.0;
    let bytes = |rows: usize, k: usize| -> Vec<u8> {
        (0..rows * 16).flat_map(|n| half::f16::from_f32(value(n / 16, n % 16, k)).to_le_bytes()).collect()
    };
    let mut buffers = [bytes(16, 1), bytes(8, 2), vec![0; 512]];
    run(&parse(&product("mma_f16", "f32", "0.5f32")), &mut buffers, &[]).unwrap();
    let want = (0..128).map(|n| 0.5 + (0..16).map(|k| value(n / 8, k, 1) * value(n % 8, k, 2)).sum::<f32>());
    assert_eq!(buffers[2], f32s(want));
}

#[test]
fn a_matrix_product_of_bytes_is_exact_and_wraps() {
    let byte = |i: usize, k: usize, seed: usize| (i * 67 + k * 29 + seed * 101) as u8;
    let bytes = |rows: usize, seed: usize| (0..rows * 32).map(|n| byte(n / 32, n % 32, seed)).collect::<Vec<u8>>();
    for (op, left) in [("mma_u8s8", true), ("mma_s8u8", false)] {
        let mut buffers = [bytes(16, 1), bytes(8, 2), vec![0; 512]];
        run(&parse(&product(op, "i32", "2147483647i32")), &mut buffers, &[]).unwrap();
        let want = (0..128).flat_map(|n| {
            let sum = |k| {
                let (a, b) = (byte(n / 8, k, 1), byte(n % 8, k, 2));
                if left { i32::from(a) * i32::from(b as i8) } else { i32::from(a as i8) * i32::from(b) }
            };
            i32::MAX.wrapping_add((0..32).map(sum).sum()).to_le_bytes()
        });
        assert_eq!(buffers[2], want.collect::<Vec<u8>>(), "{op}");
    }
}

/// The fault of a program that is given 128 elements of `x` and 64 of `y`.
fn fault(shared: &str, body: &str) -> String {
    let text = format!(
        "warp @k(b0 x: f32[128], b1 y: f32[64] written, dims()) grid(2) threads 64 shared({shared}) {{
  %0: i32 = thread
  %1: i32 = 63i32
  %2: i32 = xor(%0, %1)
  %3: i32 = 1i32
  %4: i32 = mul(%2, %3)
  %5: f32 = load b0[%0]
  {body}
}}"
    );
    let mut buffers = [f32s([1.0; 128]), f32s([0.0; 64])];
    match run(&parse(&text), &mut buffers, &[]).unwrap_err() {
        RunError::Fault { statement, thread, fault, .. } => format!("`{statement}`: {thread}: {fault}"),
        other => panic!("{other}"),
    }
}

#[test]
fn what_another_schedule_could_change_is_a_fault() {
    let one = "s0: f32[64]";
    for (body, want) in [
        ("%6: f32 = load b0[%0 + 65]", "`%6: f32 = load b0[%0 + 65]`: 63: element 128 of a buffer of 128"),
        ("%6: f32 = load b0[%0 - 1]", "`%6: f32 = load b0[%0 - 1]`: 0: element -1 of a buffer of 128"),
        (
            "%6: f32, %7: f32 = load b0[%0]",
            "`%6: f32, %7: f32 = load b0[%0]`: 1: element 1 is no place for an access of 2 elements",
        ),
        ("%6: f32 = load s0[%0]", "`%6: f32 = load s0[%0]`: 0: element 0 is read before anything is written to it"),
        (
            "store s0[%0], (%5)\n %6: f32 = load s0[%2]",
            "`%6: f32 = load s0[%2]`: 0: element 63 is accessed by thread 63 too, without a barrier between",
        ),
        (
            "store s0[%0], (%5)\n barrier\n %6: f32 = load s0[%2]\n store s0[%0], (%6)",
            "`store s0[%0], (%6)`: 0: element 0 is accessed by thread 63 too, without a barrier between",
        ),
        (
            "store s0[0], (%5)",
            "`store s0[0], (%5)`: 1: element 0 is accessed by thread 0 too, without a barrier between",
        ),
        (
            "copy s0[%0], b0[%0], 1\n commit\n wait 1\n barrier\n %6: f32 = load s0[%2]",
            "`%6: f32 = load s0[%2]`: 0: element 63 is being copied to",
        ),
        (
            "copy s0[%0], b0[%0], 1\n commit\n wait 0\n %6: f32 = load s0[%2]",
            "`%6: f32 = load s0[%2]`: 0: element 63 is accessed by thread 63 too, without a barrier between",
        ),
        // The second block stores what the first one did.
        (
            "store b1[%0], (%5)",
            "`store b1[%0], (%5)`: 0: element 0 is accessed by thread 0 too, without a barrier between",
        ),
    ] {
        assert_eq!(fault(one, body), want, "{body}");
    }
}

#[test]
fn the_greatest_status_is_reported() {
    let text = "\
warp @k(dims(n)) grid(2) threads 32 {
  %0: i32 = thread
  %1: i64 = dim 0
  %2: i64 = to_i64(%0)
  %3: bool = lt(%1, %2)
  %4: bool = eq(%1, %2)
  fail 5 if %4
  fail 3 if %3
}
";
    let program = parse(text);
    assert!(program.has_checks() && !parse(SUM).has_checks());
    for (n, status) in [(40, 0), (31, 5), (30, 5), (-1, 3)] {
        assert_eq!(run(&program, &mut [], &[n]).map(|o| o.status), Ok(status), "{n}");
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let program = parse(SUM);
    for (lens, dims, message) in [
        (vec![400, 8], vec![], "2 buffers and 0 dims were given"),
        (vec![400], vec![100], "1 buffers and 1 dims were given"),
        (vec![396, 8], vec![100], "`x` has 396 bytes for n elements"),
        (vec![396, 8], vec![-1], "`x` has 396 bytes for n elements"),
    ] {
        let mut buffers: Vec<Vec<u8>> = lens.into_iter().map(|n| vec![0; n]).collect();
        let error = run(&program, &mut buffers, &dims).unwrap_err().to_string();
        assert_eq!(error, format!("warp program @sum: {message}"));
    }
}

use super::{RunError, TileProgram, run};
use crate::expr::{Ranges, Symbol};

const MATMUL: &str = "kernel @k3(x: f32[24], w: f32[48], y: f32[32] written) {
  part grid(i = 1, j = 2) {
    %0: f32[4,4] = const 0.0f32
    for k in 0..6 step 2 carry(%1: f32[4,4] = %0) {
      %2: f32[4,2] = load x[6*a0 + a1 + 24*i + k]
      %3: f32[2,4] = load w[8*a0 + a1 + 4*j + 8*k]
      %4: f32[4,4] = dot %2, %3, %1
    } next(%4) as(%5)
    store y[8*a0 + a1 + 32*i + 4*j] = %5
  }
}
";

const MIXED: &str = "kernel @mixed(x: f32[n], table: f32[20], ids: i64[3], y: f32[3*n] written, m: bool[1] written) {
  part grid(p = 3) {
    %0: i64[1,1] = load ids[p]
    %1: i64[1,1] = check %0 in(5) status 7
    for c in 0..n step 1 {
      %2: f32[1,4] = load table[a1 + 4*v0] with(%1)
      %3: f32[1,4] = load x[a1 + c] if(a1 + c < n) else minus_inf_f32
      %4: f32[1,4] = max %2, %3
      %5: f32[4,1] = transpose [1, 0], %4
      %6: f32[1,1] = reduce add 0, %5
      %7: bool[1,1] = lt %6, %6
      %8: f32[1,1] = const 2.0f32
      %9: f32[1,1] = select %7, %8, %6
      %10: i32[1,1] = to_i32 %9
      %11: i32[1,1] = neg %10
      %12: f32[1,1] = to_f32 %11
      %13: f32[1,1] = fma %12, %8, %9
      store y[c + n*p] = %13
    }
  }
  part grid() {
    %14: i64[4] = index(a0 + 3)
    %15: i64[1] = reduce max 0, %14
    %16: bool[1] = eq %15, %15
    store m[a0] = %16 if(a0 < 1)
  }
}
";

fn floats(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn read(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn dims(n: i64) -> Ranges {
    Ranges::from([(Symbol::new("n"), (n, n))])
}

fn n_is(n: i64) -> impl Fn(&Symbol) -> Option<i64> {
    move |s| (s.name() == "n").then_some(n)
}

#[test]
fn text_parses_back() {
    for text in [MATMUL, MIXED] {
        let program = TileProgram::parse(text).unwrap();
        assert_eq!(program.to_string(), text);
        assert_eq!(TileProgram::parse(&program.to_string()).unwrap(), program);
        assert_eq!(program.verify(&dims(6)), Ok(()));
    }
}

#[test]
fn a_product_of_matrices() {
    let program = TileProgram::parse(MATMUL).unwrap();
    let x: Vec<f32> = (0..24).map(|i| (i % 5) as f32 - 2.0).collect();
    let w: Vec<f32> = (0..48).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut buffers = [floats(&x), floats(&w), vec![0; 128]];
    run(&program, &mut buffers, &|_| None, 0..program.programs().as_const().unwrap()).unwrap();
    let expected: Vec<f32> = (0..32).map(|i| (0..6).map(|k| x[i / 8 * 6 + k] * w[k * 8 + i % 8]).sum()).collect();
    assert_eq!(read(&buffers[2]), expected);
}

#[test]
fn only_the_programs_asked_for_run() {
    let program = TileProgram::parse(MATMUL).unwrap();
    let mut buffers = [floats(&[1.0; 24]), floats(&[1.0; 48]), vec![0; 128]];
    run(&program, &mut buffers, &|_| None, 1..2).unwrap();
    let row = [0.0, 0.0, 0.0, 0.0, 6.0, 6.0, 6.0, 6.0];
    assert_eq!(read(&buffers[2]), row.repeat(4));
}

fn mixed(ids: [i64; 3]) -> ([Vec<u8>; 5], Result<(), RunError>) {
    let program = TileProgram::parse(MIXED).unwrap();
    let table: Vec<f32> = (0..20).map(|i| i as f32).collect();
    let mut buffers = [
        floats(&[0.0, 10.0, 20.0, 2.0, 5.0, 6.0]),
        floats(&table),
        ids.iter().flat_map(|i| i.to_le_bytes()).collect(),
        vec![0; 72],
        vec![0; 1],
    ];
    let result = run(&program, &mut buffers, &n_is(6), 0..4);
    (buffers, result)
}

#[test]
fn gathers_masks_and_reductions() {
    let (buffers, result) = mixed([1, -5, 4]);
    assert_eq!(result, Ok(()));
    // Row 1 of the table is 4..8; with x[0..4] = 0, 10, 20, 2 the maxima 4, 10, 20, 7 add to s = 41: s - 2s.
    let y = read(&buffers[3]);
    assert_eq!(y[0], -41.0);
    // Past the end of x only the table counts: 6 (x[5]), 5, 6, 7.
    assert_eq!(y[5], -24.0);
    // -5 stands for row 0.
    assert_eq!(y[6], -(0.0 + 10.0 + 20.0 + 3.0));
    assert_eq!(buffers[4], [1]);
}

#[test]
fn a_failed_check_stops_the_kernel() {
    for bad in [5, -6] {
        let failed = RunError::Failed { kernel: "mixed".into(), status: 7 };
        assert_eq!(mixed([0, bad, 0]).1, Err(failed));
    }
}

#[test]
fn an_access_out_of_bounds_names_buffer_and_element() {
    let text = "kernel @far(x: f32[4], y: f32[n] written) {
      part grid(i = n) { %0: f32[1] = load x[mod(i, 100)] store y[i] = %0 }
    }";
    let program = TileProgram::parse(text).unwrap();
    assert_eq!(program.verify(&dims(5)), Ok(()));
    let mut buffers = [vec![0; 16], vec![0; 20]];
    let error = run(&program, &mut buffers, &n_is(5), 0..5).unwrap_err();
    assert_eq!(error.to_string(), "kernel @far: element 4 of `x`, which has 4 elements");
}

/// One wrong statement each in a kernel with `%0: f32[4,8]`, `%1: i64[4,1]` and the variable `k` in scope.
#[test]
fn the_verifier_names_every_error() {
    for (stmt, expected) in [
        ("%9: f32[4,8] = neg %8", "%8 is not defined"),
        ("%9: f32[4,8] = neg %7", "%7 is not visible here"),
        ("%0: f32[4,8] = const 0.0f32", "%0 is assigned a second time"),
        ("%9: f64[4,8] = neg %0", "the result is f32, declared as f64"),
        ("%9: i64[4,1] = exp %1", "`exp` is not defined on i64"),
        ("%9: f32[4,8] = add %0, %1", "`add` of f32 and i64: wants equal types"),
        ("%9: f32[8,8] = neg %0", "%0 is f32[4,8], which does not broadcast to f32[8,8]"),
        ("%9: i64[4,2] = neg %1", "no operand has extent 2 along axis 1"),
        ("%9: f32[4,8] = load x[a2]", "`a2` in `a2` is not defined here"),
        ("%9: f32[4,8] = load x[v0]", "`v0` in `v0` is not defined here"),
        ("%9: f32[4,8] = load x[z] if(q < 1)", "`q` in `q` is not defined here"),
        ("%9: f32[4,8] = load x[8*a0 + a1 + 1]", "address 1..=32 is out of bounds of `x`, which has 32 elements"),
        ("%9: f32[2] = load x[a0 - k]", "address -2..=1 is out of bounds of `x`, which has 32 elements"),
        ("%9: f32[2] = load x[n + a0 + 32]", "is out of bounds of `x`, which has 32 elements"),
        ("%9: f32[4,8] = load x[v0] with(%0)", "%0 is f32; gathered tiles are i64"),
        ("%9: f32[4,8] = load y[0] else 0i64", "`0i64` is no f32"),
        ("store x[a0 + a1] = %0", "`x` is not declared `written`"),
        ("store y[a0] = %1", "`y` holds f32, the tile is i64[4,1]"),
        ("%9: f32[4,8] = reduce add 1, %0", "f32[4,8] without axis 1 is no f32[4,8]"),
        ("%9: f32[4,1] = reduce sub 1, %0", "`sub` is not associative"),
        ("%9: f32[4,8] = transpose [1, 0], %0", "f32[4,8] is no transpose of f32[4,8] by [1, 0]"),
        ("%9: f32[4,8] = dot %0, %0, %0", "is no matrix product"),
        ("%9: i64[4,1] = check %1 in(4) status 0", "status 0 means success"),
        ("for k in 0..4 step 1 {}", "`k` is defined already"),
        ("for a1 in 0..4 step 1 {}", "the variable `a1` has the name of an axis"),
        ("for l in 0..4 step 3 {}", "the step 3 does not divide"),
        ("for l in 0..4 step 1 carry(%9: f32[4,8] = %1) {} next(%9) as(%10)", "%1 is i64[4,1], wants f32[4,8]"),
        ("%9: f32[4,0] = const 0.0f32", "has no elements"),
        ("%9: f32[4,8] = const 1i64", "the result is i64, declared as f32"),
        ("if %0 {} else {}", "the condition %0 is f32[4,8], wants one bool"),
        ("%9: bool[4,1] = eq %1, %1 if %9 {} else {}", "the condition %9 is bool[4,1], wants one bool"),
        ("if %9 {} else {}", "%9 is not defined"),
        (
            "%9: bool[] = const 1bool if %9 { %10: f32[] = const 1.0f32 } else { store y[0] = %10 }",
            "%10 is not visible here",
        ),
        ("%9: bool[] = const 1bool if %9 { store x[0] = %0 } else {}", "`x` is not declared `written`"),
    ] {
        let text = format!(
            "kernel @bad(x: f32[32], y: f32[64] written) {{ part grid(z = 2) {{
               for j in 0..1 step 1 {{ %7: f32[4,8] = const 0.0f32 }}
               for k in 0..4 step 2 {{
                 %0: f32[4,8] = load x[8*a0 + a1] %1: i64[4,1] = index(a0) {stmt}
               }} }} }}"
        );
        let errors = TileProgram::parse(&text).unwrap().verify(&dims(6)).unwrap_err();
        assert!(errors.iter().any(|e| e.message.contains(expected)), "{stmt}: {errors:?}");
    }
}

/// A loop that has no turn for any value that its grid leaves accesses nothing; for others it has those values.
#[test]
fn a_loop_within_a_grid_has_the_values_of_both() {
    for (most, element, right) in [(3, 100, true), (4, 100, false), (4, 7, true), (4, 8, false)] {
        let text = format!(
            "kernel @k(x: f32[2*n] written) {{ part grid(i = n - 2) {{
               for j in 0..mod(n, 3) step 1 {{ %0: f32[] = load x[{element}] }} }} }}"
        );
        let dims = Ranges::from([(Symbol::new("n"), (2, most))]);
        let verified = TileProgram::parse(&text).unwrap().verify(&dims);
        assert_eq!(verified.is_ok(), right, "{most} {element}: {verified:?}");
    }
}

/// What runs only where an extent is not 0 may take an element for granted, but not two.
#[test]
fn a_turn_of_a_loop_or_grid_says_that_there_is_one() {
    let none_or_one = Ranges::from([(Symbol::new("n"), (0, 1))]);
    for (grid, count, element, right) in [
        ("", "n", 0, true),
        ("", "n", 1, false),
        ("", "2*n", 0, true),
        ("", "n + 1", 0, false),
        ("i = n", "1", 0, true),
        ("i = n", "1", 1, false),
        ("i = n - 1", "1", 7, true),
    ] {
        let text = format!(
            "kernel @k(x: f32[n], y: f32[n] written) {{ part grid({grid}) {{
               for j in 0..{count} step 1 {{ %0: f32[] = load x[{element}] }} }} }}"
        );
        let verified = TileProgram::parse(&text).unwrap().verify(&none_or_one);
        assert_eq!(verified.is_ok(), right, "{text}: {verified:?}");
    }
}

#[test]
fn the_verifier_collects_errors_of_the_head() {
    let text = "kernel @bad(x: f32[a0], x: str[4]) { part grid(v1 = q, n = 2) {} }";
    let errors = TileProgram::parse(text).unwrap().verify(&dims(6)).unwrap_err();
    let all: Vec<_> = errors.iter().map(|e| e.message.as_str()).collect();
    assert_eq!(
        all,
        [
            "`a0` in `a0` is not defined here",
            "two buffers have the name `x`",
            "buffer `x`: tile programs do not compute with str",
            "`q` in `q` is not defined here",
            "the variable `v1` has the name of an axis or a gathered tile",
            "`n` is defined already",
        ]
    );
}

#[test]
fn text_that_is_no_program_is_refused_with_its_place() {
    for (text, expected) in [
        ("kernel k()", "line 1, column 9: expected a name such as `@k3`"),
        ("kernel @k() { part grid() { store z[0] = %1 } }", "expected the name of a buffer"),
        ("kernel @k() { part grid() { %0: f32[] = flip %1 } }", "expected the name of a tile operation"),
        ("kernel @k() { part grid() { %99999999: f32[] = const 1.0f32 } }", "the number of the tile is too large"),
        (
            "kernel @k() { part grid() { for i in 0..2 step 1 carry(%0: f32[] = %1) {} next() as() } }",
            "carries 1 tiles",
        ),
    ] {
        let error = TileProgram::parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Both ways of a choice, by a condition that differs from program to program and one that an element decides.
#[test]
fn a_choice_runs_one_of_two() {
    let text = "kernel @k(x: f32[4], y: f32[4] written) { part grid(i = 4) {
        %0: f32[] = load x[i] %1: f32[] = const 1.0f32 %2: bool[] = lt %0, %1
        if %2 { %3: f32[] = add %0, %1 store y[i] = %3 }
        else { %4: i64[] = index(i) %5: i64[] = index(2) %6: bool[] = lt %4, %5 if %6 { store y[i] = %1 } else {} } } }";
    let program = TileProgram::parse(text).unwrap();
    assert_eq!(program.verify(&Ranges::new()), Ok(()));
    assert_eq!(TileProgram::parse(&program.to_string()), Ok(program.clone()));
    let bytes = |v: [f32; 4]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut buffers = [bytes([0.5, 3.0, 3.0, f32::NAN]), bytes([7.0; 4])];
    run(&program, &mut buffers, &|_| None, 0..4).unwrap();
    assert_eq!(buffers[1], bytes([1.5, 1.0, 7.0, 7.0]));
}

/// A product of several factors in rounds, some of them in local memory, is the sum of all of them.
#[test]
fn products_of_several_factors_are_summed() {
    let text = |rounds: &str, len: usize| {
        format!(
            "kernel @k(x: i32[4], w: i32[4], y: i32[1] written, p: i32[4] local, s: i32[{len}] local) {{ part grid() {{
            %0: i32[4] = load w[a0] store p[a0] = %0
            multiply s[1,1] u8s8 by 2 {rounds} for(q = 4 step 2)
            %1: i32[1] = load s[a0] store y[a0] = %1 }} }}"
        )
    };
    let words = |v: [i32; 4]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    for (rounds, want) in [
        ("x[a1 + q] w[a0 + q]", 70),
        ("x[a1 + q] p[a0 + q] and x[a1 + q] w[a0 + q]", 140),
        ("x[a1 + q] p[a0 + q] and p[a1 + q] w[a0 + q] then x[a1 + q] x[a0 + q]", 70 + 174 + 30),
    ] {
        let program = TileProgram::parse(&text(rounds, 1)).unwrap();
        assert_eq!(program.verify(&Ranges::new()), Ok(()));
        assert_eq!(TileProgram::parse(&program.to_string()), Ok(program.clone()));
        let mut buffers = [words([1, 2, 3, 4]), words([5, 6, 7, 8]), vec![0; 4]];
        run(&program, &mut buffers, &|_| None, 0..1).unwrap();
        assert_eq!(i32::from_le_bytes(buffers[2][..4].try_into().unwrap()), want, "{rounds}");
    }
    let own = TileProgram::parse(&text("s[a1 + q] w[a0 + q]", 4)).unwrap().verify(&Ranges::new()).unwrap_err();
    assert!(own[0].message.contains("operands are i32 that are local"), "{own:?}");
}

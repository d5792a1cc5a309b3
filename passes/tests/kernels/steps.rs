//! Loops and branches as steps of the plan.

use crate::{check, check_free};
use kiln_passes::pipeline::Compiled;

/// What the steps of a plan are, in a letter each: launch, host, copy, bind, refusal, if, loop.
fn steps(compiled: &Compiled) -> String {
    use kiln_ir::plan::Step;
    let letter = |step: &Step| match step {
        Step::Launch { .. } => 'k',
        Step::Host { .. } => 'h',
        Step::Copy { .. } => 'c',
        Step::Bind { .. } => 'b',
        Step::Refuse { .. } => 'r',
        Step::If { .. } => 'i',
        Step::Loop(_) => 'l',
    };
    compiled.plan.steps.iter().map(letter).collect()
}

#[test]
fn a_scan_of_any_length_is_a_loop_of_kernels() {
    let c = check_free(
        "symbol n in 0..64
         input %0 : f32[3, 16]\n input %1 : f32[n, 3, 8]\n input %2 : f32[8, 16]\n input %3 : f32[16, 16]
         %4, %5 = host(%0, %1, %2, %3) function = scan, body = graph \"turn\" {
           input %0 : f32[3, 16]\n input %1 : f32[3, 8]\n input %2 : f32[8, 16]\n input %3 : f32[16, 16]
           %4 = contract(%1, %2) lhs = mk, rhs = kn, out = mn : f32[3, 16]
           %5 = contract(%0, %3) lhs = mk, rhs = kn, out = mn : f32[3, 16]
           %6 = map(%4, %5) body = { tanh(add(a0, a1)) } : f32[3, 16]
           %7 = reduce(%6) combine = add, axes = [1], keep = false : f32[3]
           output %6 \"h\"\n output %7 \"y\"
         }, states = 1, axes = [0], backward = [1], out_axes = [0], out_backward = [1], results = (f32[3, 16], f32[n, 3]) : f32[3, 16], f32[n, 3]
         output %4 \"h\"\n output %5 \"y\"",
        &[&[("n", 0)], &[("n", 1)], &[("n", 7)]],
    );
    let steps = steps(&c);
    assert!(steps.starts_with("clk") && !steps.contains('h'), "{steps}");
}

#[test]
fn states_may_change_places_and_the_data_may_end_a_loop() {
    // a, b = b, a + b while b < 50; what a was is collected, with as many elements as there are turns.
    let c = check(
        "input %0 : i64[]\n input %1 : i64[2]\n input %2 : i64[2]\n input %3 : bool[]
         symbol turns in 0..1000
         %4, %5, %6 = host(%0, %3, %1, %2) function = loop, body = graph \"turn\" {
           input %0 : i64[]\n input %1 : bool[]\n input %2 : i64[2]\n input %3 : i64[2]
           %4 = map(%2, %3, %0) body = { add(add(a0, a1), a2) } : i64[2]
           %5 = reduce(%4) combine = max, axes = [0], keep = false : i64[]
           %6 = map(%5) body = { lt(a0, 50i64) } : bool[]
           output %6 \"go\"\n output %3 \"a\"\n output %4 \"b\"\n output %2 \"was\"
         }, carried = 2, results = (i64[2], i64[2], i64[turns, 2]) : i64[2], i64[2], i64[turns, 2]
         output %4 \"a\"\n output %5 \"b\"\n output %6 \"all\"",
    );
    let steps = steps(&c);
    assert!(steps.starts_with("ccl") && !steps.contains('h'), "{steps}");
}

#[test]
fn branches_are_steps_and_bind_what_they_decide() {
    let c = check(
        "input %0 : bool[]\n input %1 : f32[5]
         symbol size in 0..1000
         %2, %3 = host(%0, %1, %1) function = if, then = graph \"then\" {
           input %0 : f32[5]
           %1 = map(%0) body = { mul(a0, 2.0f32) } : f32[5]
           %2 = slice(%0) starts = [1], steps = [1], dims = [3] : f32[3]
           output %1 \"y\"\n output %2 \"z\"
         }, else = graph \"else\" {
           input %0 : f32[5]
           output %0 \"y\"\n output %0 \"z\"
         }, results = (f32[5], f32[size]) : f32[5], f32[size]
         %4 = map(%3) body = { add(a0, 1.0f32) } : f32[size]
         output %2 \"y\"\n output %4 \"z\"",
    );
    let steps = steps(&c);
    assert!(steps.starts_with('i') && steps.contains('b') && !steps.contains('h'), "{steps}");
}

#[test]
fn what_a_branch_takes_for_granted_is_asked_where_it_is_taken() {
    let c = check_free(
        "symbol m in 1..9\n symbol n in 1..9
         input %0 : bool[]\n input %1 : f32[m, 4]\n input %2 : f32[n, 4]
         %3 = host(%0, %1, %2, %1) function = if, then = graph \"then\" {
           symbol m in 1..9\n symbol n in 1..9
           input %0 : f32[m, 4]\n input %1 : f32[n, 4]
           %2 = reshape(%1) dims = [m, 4] : f32[m, 4]
           %3 = map(%0, %2) body = { add(a0, a1) } : f32[m, 4]
           output %3 \"y\"
         }, else = graph \"else\" {
           symbol m in 1..9\n symbol n in 1..9
           input %0 : f32[m, 4]
           %1, %2 = host() function = refuse, results = (f32[m, 4], f32[m]), message = \"no such window\" : f32[m, 4], f32[m]
           output %1 \"y\"
         }, results = (f32[m, 4]) : f32[m, 4]
         output %3 \"y\"",
        &[],
    );
    assert_eq!(steps(&c), "irkr");
}

#[test]
fn a_state_that_grows_stays_in_the_interpreter() {
    let c = check(
        "input %0 : i64[]\n input %1 : f32[3]\n input %2 : bool[]
         symbol size in 0..1000
         %3 = host(%0, %2, %1) function = loop, body = graph \"turn\" {
           symbol old in 0..1000
           input %0 : i64[]\n input %1 : bool[]\n input %2 : f32[old]
           %3 = concat(%2, %2) axis = 0 : f32[2*old]
           output %1 \"go\"\n output %3 \"s\"
         }, carried = 1, results = (f32[size]) : f32[size]
         output %3 \"y\"",
    );
    assert_eq!(steps(&c), "h");
}

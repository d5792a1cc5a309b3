//! Text round trips of plans, and the verifier on plans that are broken in every way it knows.

use super::{Place, Plan, Step};
use crate::graph::TensorType;
use crate::id::Id;
use crate::{DType, Tensor};

/// x -> k0 -> %3 -> host -> %4 -> k1 -> y; %3 and %5 share bytes, as their lives do not meet.
const PLAN: &str = "\
plan \"m \\\"x\\\"\" {
  arena 192 live 128 weights 64
  kernel \"k0\" operations 10 bytes 20 what \"conv+map\" from [\"a\", \"b/c\"]
  kernel \"k1\" operations 0 bytes 0 what \"softmax\" from []
  slot %0 \"x\" : f32[2, 4] in input 0
  slot %1 : f32[4] in weights 0
  slot %2 \"y\" : f32[2, 4] in output 0
  slot %3 : f32[2, 4] in arena 0
  slot %4 : f32[4, 2] in arena 64
  slot %5 : f32[1, 8, 2, 1] order [0, 2, 3, 1]/1:8 in arena 0
  slot %6 : str[2] in host
  slot %7 : i64[2, 1] in arena 128
  input %0 \"x\"
  output %2 \"y\"
  launch 0(%0, %1) -> (%3)
  host (%3) -> (%4) transpose perm = [1, 0] from [\"t\"]
  host (%3) -> (%7) host function = arg_reduce, axis = 1, keep = true, max = true, last = false from []
  launch 1(%4, %7) -> (%5)
  launch 1(%5) -> (%3)
  copy %3 -> %2
}
";

fn plan() -> Plan {
    Plan::parse(PLAN).unwrap()
}

#[test]
fn plans_print_and_parse_back() {
    let plan = plan();
    assert_eq!(plan.to_string(), PLAN);
    assert_eq!(Plan::parse(&plan.to_string()).unwrap(), plan);
    assert_eq!(plan.slot_bytes(Id::from_index(5)), 64);
    assert_eq!(plan.lives()[3], Some((0, 5)));
    assert_eq!(plan.lives()[6], None);
}

/// A branch that asks for a size, and one that nothing gets past: it need not make its result.
#[test]
fn refusals_print_parse_and_end_a_run() {
    let text = "\
plan \"m\" {
  arena 0 live 0 weights 0
  symbol m in 1..9
  symbol n in 1..9
  slot %0 \"c\" : bool[] in input 0
  slot %1 \"x\" : f32[m] in input 1
  slot %2 \"y\" : f32[n] in input 2
  slot %3 \"z\" : f32[m] in output 0
  input %0 \"c\"
  input %1 \"x\"
  input %2 \"y\"
  output %3 \"z\"
  if %0 then 2 else 1 from [\"choice\"]
    refuse unless m = 2*n from [\"squeeze\"]
    copy %1 -> %3
    refuse \"no such \\\"window\\\"\" from [\"other\"]
}
";
    let plan = Plan::parse(text).unwrap();
    assert_eq!(plan.to_string(), text);
    assert_eq!(plan.verify(), []);
    let run = |c: bool, m: usize, n: usize| {
        let c = Tensor::new(DType::Bool, vec![], vec![u8::from(c)]).unwrap();
        let of = |n: usize| Tensor::new(DType::F32, vec![n], vec![0u8; 4 * n]).unwrap();
        super::interp::run(&plan, &[], &[], &[c, of(m), of(n)]).map(|out| out.len()).map_err(|e| e.to_string())
    };
    assert_eq!(run(true, 4, 2), Ok(1));
    let refused = run(true, 4, 3).unwrap_err();
    assert!(refused.contains("needs m = 2*n, which are 4 and 6"), "{refused}");
    assert!(run(false, 4, 3).unwrap_err().contains("no such \"window\""));
    let unknown = Plan::parse(&text.replace("2*n from", "2*k from")).unwrap().verify();
    assert!(unknown.iter().any(|e| e.0.contains("symbol `k` is not declared")), "{unknown:?}");
}

#[test]
fn text_that_is_no_plan_is_refused_with_its_place() {
    for (from, to, part) in [
        ("launch 0(%0", "launch 0(%9", "there is no such slot"),
        ("slot %1 :", "slot %7 :", "expected slot %1"),
        ("in arena 64", "in attic 64", "`attic` is no place"),
        ("transpose perm = [1, 0]", "transpose", "attribute `perm`"),
        ("transpose perm", "transmute perm", "there is no op `transmute`"),
        ("arena 192", "arena -1", "not negative"),
        ("copy", "move", "`move` is no part of a plan"),
    ] {
        let error = Plan::parse(&PLAN.replacen(from, to, 1)).unwrap_err();
        assert!(error.message.contains(part), "{to}: {error}");
        assert!(error.line > 1);
    }
    let cut = PLAN.len() / 2;
    assert!(Plan::parse(&PLAN[..cut]).is_err());
}

/// A chain over a dim that is free: x -> k0 -> %2 -> k0 -> %3 -> k0 -> y.
const FREE: &str = "\
plan \"free\" {
  arena 0 live 0 weights 0
  symbol n in 1..512
  region 0 of 4*n
  region 1 of 4*n
  require n = 2*floordiv(n, 2) from [\"even\"]
  kernel \"k0\" operations 32 bytes 256 what \"map\" from [\"a\"]
  slot %0 \"x\" : f32[n] in input 0
  slot %1 \"y\" : f32[n] in output 0
  slot %2 : f32[n] in region 0
  slot %3 : f32[n] in region 1
  input %0 \"x\"
  output %1 \"y\"
  launch 0(%0) -> (%2)
  launch 0(%2) -> (%3)
  launch 0(%3) -> (%1)
}
";

#[test]
fn plans_over_free_dims_print_parse_and_verify() {
    let plan = Plan::parse(FREE).unwrap();
    assert_eq!(plan.to_string(), FREE);
    assert_eq!(plan.verify(), []);
    for (from, to, part) in [
        ("%3 : f32[n] in region 1", "%3 : f32[n] in region 0", "slots %2 and %3 share a region while both live"),
        ("%3 : f32[n] in region 1", "%3 : f32[n] in region 2", "is not in a region of its own"),
        ("%3 : f32[n] in region 1", "%3 : f32[n] in arena 0", "is not in a region of its own"),
        ("%3 : f32[n]", "%3 : f32[8]", "slot %3 of constant size is in a region"),
        ("region 1 of 4*n", "region 1 of 4*m", "symbol `m` is not declared"),
        ("symbol n in 1..512", "symbol n in 512..1", "has no values"),
        ("symbol n in 1..512", "symbol n in 1..512\n  symbol m in 1..2", "symbol `m` gets a value from no input"),
    ] {
        let plan = Plan::parse(&FREE.replacen(from, to, 1)).unwrap();
        let errors: Vec<String> = plan.verify().iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|e| e.contains(part)), "{to}: {errors:?}");
    }
}

/// Breaks the plan and asks for errors that contain the parts, and no others.
fn breaks(parts: &[&str], f: impl Fn(&mut Plan)) {
    let mut plan = plan();
    // The three slots do share bytes while they live; without this the plan is right.
    plan.slots[Id::from_index(5)].place = Place::Arena(192);
    plan.arena_bytes = 256;
    assert_eq!(plan.verify(), []);
    f(&mut plan);
    let errors: Vec<String> = plan.verify().iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), parts.len(), "{errors:#?}");
    for part in parts {
        assert!(errors.iter().any(|e| e.contains(part)), "{part} is not in {errors:#?}");
    }
}

#[test]
fn every_kind_of_broken_plan_is_rejected() {
    let slot = Id::from_index;
    let place = |n: usize, place: Place| move |p: &mut Plan| p.slots[slot(n)].place = place;
    let ty = |n: usize, ty: TensorType| move |p: &mut Plan| p.slots[slot(n)].ty = ty.clone();
    let f32s = |dims: Vec<i64>| TensorType::new(DType::F32, dims.into_iter().map(crate::Expr::from).collect());
    breaks(&["slots %3 and %5 overlap while both live"], place(5, Place::Arena(0)));
    breaks(&["slots %4 and %7 overlap while both live"], place(7, Place::Arena(64)));
    breaks(&["32 bytes at 32 are not aligned"], place(4, Place::Arena(32)));
    breaks(&["32 bytes at 256 are not aligned or exceed 256"], place(4, Place::Arena(256)));
    breaks(&["are not aligned or exceed 64"], place(1, Place::Weights(64)));
    breaks(&["slot %4: 32 bytes at 18446744073709551552"], place(4, Place::Arena(u64::MAX - 63)));
    breaks(&["slot %4 of f32[4, 2] is held by the host"], place(4, Place::Host));
    breaks(&["slot %6 of strings is in memory"], place(6, Place::Arena(0)));
    breaks(&["slot %4 is not input 3", "step 1 writes slot %4, which is constant"], place(4, Place::Input(3)));
    breaks(&["slot %4 is not output 0"], place(4, Place::Output(0)));
    breaks(&["output \"y\" is not in place"], place(2, Place::Arena(128)));
    breaks(
        &["input \"x\" is not in place", "step 0 reads slot %0 before it is written", "slots %0 and %3"],
        place(0, Place::Arena(0)),
    );
    let free = || TensorType::new(DType::F32, vec![crate::Expr::symbol("n")]);
    breaks(&["symbol `n` is not declared"], ty(6, free()));
    breaks(
        &[
            "symbol `n` is not declared",
            "slot %3 of run-time size f32[n] is not in a region",
            "step 1",
            "step 2",
            "step 5",
        ],
        |p| {
            p.slots[slot(3)].ty = free();
        },
    );
    breaks(&["slot %6 has no constant size"], ty(6, f32s(vec![-2, -3])));
    breaks(&["slot %6 has no constant size"], ty(6, f32s(vec![1 << 40, 1 << 40])));
    breaks(&["step 0 launches kernel 7, there are 2"], |p| {
        if let Some(Step::Launch { kernel, .. }) = p.steps.first_mut() {
            *kernel = 7;
        }
    });
    breaks(
        &["step 0 writes 4 of 3 arguments", "writes slot %0, which is constant", "writes slot %1, which is constant"],
        |p| {
            if let Some(Step::Launch { written, .. }) = p.steps.first_mut() {
                *written = 4;
            }
        },
    );
    breaks(&["step 5 copies f32[2, 4] to f32[2, 5]"], ty(2, f32s(vec![2, 5])));
    breaks(&["step 1: slot %4 is f32[4, 3], transpose infers f32[4, 2]"], ty(4, f32s(vec![4, 3])));
    breaks(&["step 1: transpose of (f32[2, 4, 1])", "step 2: slot %7", "step 5 copies"], ty(3, f32s(vec![2, 4, 1])));
    breaks(&["step 1: 2 results of transpose, 1 inferred"], |p| {
        if let Some(Step::Host { outputs, .. }) = p.steps.get_mut(1) {
            outputs.push(slot(6));
        }
    });
    // %7 is made after it is read, and never again.
    breaks(&["step 2 reads slot %7 before it is written"], |p| p.steps.swap(2, 3));
    breaks(&["output \"y\" is never written"], |p| p.steps.truncate(5));
    breaks(&["output \"y\" is never written", "step 5 writes slot %0, which is constant"], |p| {
        p.steps[5] = Step::Copy { from: slot(3), to: slot(0) };
    });
}

/// Sums the rows of `x` into `s` and collects the sums, last one first, in a loop; then one of two branches.
const LOOP: &str = "\
plan \"loop\" {
  arena 384 live 384 weights 64
  symbol n in 0..64
  kernel \"k0\" operations 4 bytes 48 what \"map\" from [\"add\"]
  slot %0 \"x\" : f32[n, 4] in input 0
  slot %1 \"c\" : bool[] in input 1
  slot %2 : f32[4] in weights 0
  slot %3 \"s\" : f32[4] in output 0
  slot %4 \"all\" : f32[n, 4] in output 1
  slot %5 : f32[4] in arena 0
  slot %6 : f32[4] in arena 64
  slot %7 : i64[] in arena 128
  slot %8 \"y\" : f32[4] in output 2
  slot %9 : bool[] in arena 192
  input %0 \"x\"
  input %1 \"c\"
  output %3 \"s\"
  output %4 \"all\"
  output %8 \"y\"
  copy %2 -> %3
  loop 2 first %1 again %9 counter %7 scan (%5 of %0) carry (%6 -> %3) collect (%6 of %4 backward) from [\"scan\"]
    launch 0(%3, %5) -> (%6)
    copy %1 -> %9
  if %1 then 1 else 2 from [\"if\"]
    copy %3 -> %8
    launch 0(%3, %2) -> (%6)
    copy %6 -> %8
}
";

#[test]
fn loops_print_parse_and_verify() {
    let plan = Plan::parse(LOOP).unwrap();
    assert_eq!(plan.to_string(), LOOP);
    assert_eq!(plan.verify(), []);
    // What the loop reads every time is there for all of its turns, what a turn makes until it is taken.
    assert_eq!(plan.lives()[0], Some((1, 3)));
    assert_eq!(plan.lives()[3], Some((0, 6)));
    assert_eq!(plan.lives()[5], Some((1, 2)));
    for (from, to, part) in [
        ("loop 2 ", "loop 9 ", "step 1 has 9 steps of its own, which are not there"),
        ("then 1 else 2", "then 1 else 3", "step 4 has 4 steps of its own"),
        ("(%6 -> %3)", "(%9 -> %3)", "the state f32[4] becomes bool[]"),
        ("(%6 -> %3)", "(%3 -> %3)", "slot %3 is a state and what becomes of one"),
        ("(%6 -> %3)", "(%6 -> %3, %6 -> %3)", "step 1 writes a slot twice"),
        ("(%5 of %0)", "(%3 of %0)", "step 1 writes a slot twice"),
        ("(%5 of %0)", "(%9 of %0)", "bool[] is no element of f32[n, 4]"),
        ("(%5 of %0)", "()", "nothing says how often the loop is run"),
        ("counter %7", "counter %1", "slot %1 is bool[], not one i64"),
        ("again %9", "again %5", "slot %5 is f32[4], not one bool"),
        ("launch 0(%3, %5) -> (%6)", "launch 0(%5, %5) -> (%3)", "a turn touches what the loop writes"),
        ("launch 0(%3, %5)", "launch 0(%4, %5)", "a turn touches what the loop writes"),
        ("copy %1 -> %9", "copy %1 -> %1", "a turn does not make slot %9"),
        ("copy %1 -> %9", "copy %1 -> %1", "writes slot %1, which is constant"),
        ("copy %2 -> %3\n", "copy %2 -> %5\n", "step 1 reads slot %3 before it is written"),
        ("copy %6 -> %8", "copy %6 -> %5", "output \"y\" is never written"),
        // Each turn makes %6 anew: what one leaves there is no other's.
        ("launch 0(%3, %5) -> (%6)", "launch 0(%6, %5) -> (%6)", "step 2 reads slot %6 before it is written"),
        ("slot %6 : f32[4] in arena 64", "slot %6 : f32[4] in arena 0", "slots %5 and %6 overlap"),
    ] {
        let text = LOOP.replacen(from, to, 1);
        assert_ne!(text, LOOP, "{from}");
        let errors: Vec<String> = Plan::parse(&text).unwrap().verify().iter().map(ToString::to_string).collect();
        assert!(errors.iter().any(|e| e.contains(part)), "{to}: {errors:?}");
    }
    for (from, to, part) in [
        ("loop 2 ", "loop -1 ", "not negative"),
        ("first %1", "last %1", "`last` is no part of a loop"),
        ("%5 of %0", "%5 of %99", "there is no such slot"),
    ] {
        let error = Plan::parse(&LOOP.replacen(from, to, 1)).unwrap_err();
        assert!(error.message.contains(part), "{to}: {error}");
    }
}

#[test]
fn loops_may_not_lie_too_deep() {
    let mut plan = Plan::parse(LOOP).unwrap();
    let many = super::MOST_NESTED + 2;
    let branch =
        |inner: usize| Step::If { condition: Id::from_index(1), then: inner, otherwise: 0, origin: Default::default() };
    plan.steps.extend((0..many).rev().map(branch));
    let errors: Vec<String> = plan.verify().iter().map(ToString::to_string).collect();
    assert!(errors.iter().any(|e| e.contains("lie deeper than")), "{errors:?}");
}

//! Attention in one kernel.

use super::{Compiled, check, check_free};
use kiln_ir::expr::Symbol;
use kiln_ir::tile::{Part, Stmt, TileOp, TileProgram};
use std::collections::BTreeMap;

/// Heads of 20 numbers; `softened` makes `%6` of the scores `%5`.
fn attention(batch: &str, queries: usize, keys: usize, softened: &str) -> String {
    format!(
        "input %0 : f32[{batch}, {queries}, 2, 20]\n input %1 : f32[{batch}, {keys}, 2, 20]\n input %2 : f32[{batch}, {keys}, 2, 20]
         input %3 : f32[{queries}, {keys}]
         %4 = map(%0) body = {{ mul(a0, 0.25f32) }} : f32[{batch}, {queries}, 2, 20]
         %5 = contract(%4, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[{batch}, 2, {queries}, {keys}]
         {softened} : f32[{batch}, 2, {queries}, {keys}]
         %7 = softmax(%6) axis = 3, log = false : f32[{batch}, 2, {queries}, {keys}]
         %8 = contract(%7, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[{batch}, {queries}, 2, 20]
         %9 = map(%8) body = {{ max(a0, -0.5f32) }} : f32[{batch}, {queries}, 2, 20]\n output %9 \"y\""
    )
}

fn fused(c: &Compiled) -> usize {
    c.plan.kernels.iter().filter(|k| k.what.contains("softmax") && k.what.contains("contract")).count()
}

#[test]
fn scores_stay_in_the_program() {
    let scaled = "%6 = map(%5) body = { mul(a0, 1.5f32) }";
    let c = check(&attention("1", 17, 133, scaled));
    assert_eq!(fused(&c), 1, "{}", c.plan);
    assert!(c.kernels[0].iter().any(|k| k.buffers.iter().any(|b| b.name == "scores")), "{}", c.plan);
    // With a mask that is added, and whole blocks of rows and of columns.
    let c = check(&attention("2", 28, 128, "%6 = map(%5, %3) body = { add(a0, mul(a1, 8.0f32)) }"));
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn rows_without_a_key_are_what_they_are_by_definition() {
    // `log` of what is not above zero is minus infinity or no number: some rows of scores have no finite one.
    let c = check(&attention("1", 16, 130, "%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.9f32), 0.0f32))) }"));
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn a_free_batch_is_fine_and_few_keys_stay_three_kernels() {
    let plain = "%6 = map(%5) body = { mul(a0, 1.5f32) }";
    let c = check_free(&format!("symbol b in 0..4\n {}", attention("b", 16, 128, plain)), &[&[("b", 0)], &[("b", 2)]]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    let c = check(&attention("1", 17, 40, plain));
    assert_eq!(fused(&c), 0, "{}", c.plan);
}

#[test]
fn masks_behind_a_reshape_are_read_at_their_keys() {
    // What masks is then part of the softmax, not of the product, and reads the key that is folded there.
    let c = check(
        "input %0 : f32[1, 18, 2, 20]\n input %1 : f32[1, 131, 2, 20]\n input %2 : f32[1, 131, 2, 20]\n input %3 : f32[18, 131]
         %5 = contract(%0, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[1, 2, 18, 131]
         %6 = reshape(%5) dims = [2, 18, 131] : f32[2, 18, 131]
         %7 = map(%6, %3) body = { add(a0, mul(a1, 8.0f32)) } : f32[2, 18, 131]
         %8 = softmax(%7) axis = 2, log = false : f32[2, 18, 131]
         %9 = reshape(%8) dims = [1, 2, 18, 131] : f32[1, 2, 18, 131]
         %10 = contract(%9, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[1, 18, 2, 20]\n output %10 \"y\"",
    );
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn free_keys_are_walked_in_stretches() {
    let of = |softened: &str| {
        let free = attention("1", 77, 99, softened).replace("77", "m").replace("99", "n");
        format!("symbol m in 1..2000\n symbol n in 1..2000\n {free}")
    };
    let sizes: [&[(&str, i64)]; 6] = [
        &[("m", 1), ("n", 1)],
        &[("m", 2), ("n", 3)],
        &[("m", 15), ("n", 47)],
        &[("m", 5), ("n", 127)],
        &[("m", 1), ("n", 257)],
        &[("m", 1), ("n", 530)],
    ];
    let c = check_free(&of("%6 = map(%5, %3) body = { add(a0, mul(a1, 8.0f32)) }"), &sizes);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    // No score is above minus infinity in some stretches of some rows, and in all of others.
    let c = check_free(&of("%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.985f32), 0.0f32))) }"), &sizes[2..]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    // There might be no keys, of which the sum is 0.
    let c = check_free(&of("%6 = map(%5) body = { a0 }").replace("n in 1", "n in 0"), &[&[("m", 3), ("n", 0)]]);
    assert_eq!(fused(&c), 0, "{}", c.plan);
}

#[test]
fn shares_that_are_no_numbers_may_be_zero() {
    // Rows of 130 keys of which none is seen are one in three.
    let guarded = |queries: usize, keys: usize| {
        let hidden = "%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.985f32), 0.0f32))) }";
        let zero = "%17 = map(%7) body = { select(ne(a0, a0), 0.0f32, a0) }";
        let scores = format!(" : f32[1, 2, {queries}, {keys}]");
        let text = attention("1", queries, keys, hidden);
        text.replace("%8 = contract(%7", &format!("{zero}{scores}\n %8 = contract(%17"))
    };
    let c = check(&guarded(16, 130));
    assert_eq!(fused(&c), 1, "{}", c.plan);
    let free = guarded(16, 99).replace("99", "n");
    let c = check_free(&format!("symbol n in 1..600\n {free}"), &[&[("n", 1)], &[("n", 40)], &[("n", 300)]]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn heads_in_groups_share_keys() {
    let c = check_free(
        "symbol b in 1..4\n symbol m in 1..400\n symbol n in 1..400
         input %0 : f32[b, 2, 3, m, 20]\n input %1 : f32[b, 2, n, 20]\n input %2 : f32[b, 2, n, 20]
         %5 = contract(%0, %1) lhs = \"bhgmd\", rhs = \"bhnd\", out = \"bhgmn\" : f32[b, 2, 3, m, n]
         %7 = softmax(%5) axis = 4, log = false : f32[b, 2, 3, m, n]
         %8 = contract(%7, %2) lhs = \"bhgmn\", rhs = \"bhnd\", out = \"bhgmd\" : f32[b, 2, 3, m, 20]\n output %8 \"y\"",
        &[&[("b", 2), ("m", 1), ("n", 7)], &[("b", 1), ("m", 15), ("n", 66)]],
    );
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

/// Attention whose softmax sees what is left of the scores `%5` by a condition on the numbers of queries, `%20` as `[m, 1]`, and of keys, `%21`.
fn by_numbers(batch: &str, queries: &str, keys: &str, condition: &str, hidden: &str) -> String {
    format!(
        "input %0 : f32[{batch}, {queries}, 2, 20]\n input %1 : f32[{batch}, {keys}, 2, 20]\n input %2 : f32[{batch}, {keys}, 2, 20]
         %20 = iota() dims = [{queries}, 1], axis = 0 : i64[{queries}, 1]
         %21 = iota() dims = [{keys}], axis = 0 : i64[{keys}]
         %5 = contract(%0, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[{batch}, 2, {queries}, {keys}]
         %22 = map(%20, %21) body = {{ {condition} }} : bool[{queries}, {keys}]
         %6 = map(%5, %22) body = {{ select(a1, mul(a0, 0.5f32), {hidden}) }} : f32[{batch}, 2, {queries}, {keys}]
         %7 = softmax(%6) axis = 3, log = false : f32[{batch}, 2, {queries}, {keys}]
         %8 = contract(%7, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[{batch}, {queries}, 2, 20]
         output %8 \"y\""
    )
}

/// How many elements of sums the kernel that attention is adds products to, for some values of the dims.
fn products(c: &Compiled, dims: &[(&str, i64)]) -> i64 {
    fn of(program: &TileProgram, body: &[Stmt], at: &mut BTreeMap<Symbol, i64>) -> i64 {
        let mut sum = 0;
        for stmt in body {
            match stmt {
                Stmt::Let(tile, TileOp::Fma(..)) => sum += program.tiles[*tile].elements() as i64,
                Stmt::Let(..) | Stmt::Store { .. } | Stmt::Multiply(_) => {}
                Stmt::If(choice) => sum += of(program, &choice.then, at) + of(program, &choice.otherwise, at),
                Stmt::For(f) => {
                    let [lo, hi] = [&f.lo, &f.hi].map(|e| e.eval(&|s| at.get(s).copied()).unwrap());
                    let mut var = lo;
                    while var < hi {
                        at.insert(f.var.clone(), var);
                        sum += of(program, &f.body, at);
                        var += f.step;
                    }
                }
            }
        }
        sum
    }
    fn walk(program: &TileProgram, part: &Part, axis: usize, at: &mut BTreeMap<Symbol, i64>) -> i64 {
        let Some((var, extent)) = part.grid.get(axis) else { return of(program, &part.body, at) };
        let turn = |n: i64, at: &mut BTreeMap<Symbol, i64>| {
            at.insert(var.clone(), n);
            walk(program, part, axis + 1, at)
        };
        let many = extent.eval(&|s| at.get(s).copied()).unwrap();
        (0..many).map(|n| turn(n, at)).sum()
    }
    let program = c.kernels[0].iter().find(|k| k.buffers.iter().any(|b| b.name == "scores")).expect("one kernel");
    let dims: BTreeMap<Symbol, i64> = dims.iter().map(|(name, n)| (Symbol::new(name), *n)).collect();
    program.parts.iter().map(|part| walk(program, part, 0, &mut dims.clone())).sum()
}

#[test]
fn keys_that_no_row_sees_are_not_visited() {
    let causal = "le(a1, a0)";
    let past = "le(a1, add(a0, 240i64))";
    let window = "and(le(a1, add(a0, 240i64)), lt(sub(add(a0, 240i64), a1), 40i64))";
    let all = "le(a1, add(a0, 100000i64))";
    // The condition, the queries and keys, and the most that is visited of what all keys are.
    let cases = [
        ("all at once", causal, "minus_inf_f32", (131, 131), 0.65),
        ("a low number", causal, "-1e9f32", (130, 130), 0.65),
        ("a number that scores may make up for", causal, "-1e4f32", (40, 130), 1.0),
        ("after a past, in stretches", past, "minus_inf_f32", (40, 400), 0.72),
        ("more keys than any row sees", causal, "minus_inf_f32", (20, 700), 0.03),
        ("a window", window, "minus_inf_f32", (35, 275), 0.34),
        ("a window of low numbers", window, "-1e9f32", (35, 275), 0.34),
        ("all are seen", all, "minus_inf_f32", (30, 130), 1.0),
        // Rows 0 to 2 see nothing, though each of the two masks leaves them keys.
        ("two low numbers", causal, "-1e9f32 within", (130, 130), 1.0),
    ];
    for (name, condition, hidden, (queries, keys), most) in cases {
        let (number, within) = hidden.split_once(' ').map_or((hidden, false), |(number, _)| (number, true));
        let mut text = by_numbers("1", &queries.to_string(), &keys.to_string(), condition, number);
        if within {
            let (score, dims) = ("mul(a0, 0.5f32)", format!("[{queries}, {keys}]"));
            text = text.replacen(score, &format!("select(a2, {score}, {number})"), 1);
            text = text.replacen("map(%5, %22)", "map(%5, %22, %23)", 1);
            let other =
                format!("%23 = map(%20, %21) body = {{ ge(a1, add(mul(a0, 0i64), 3i64)) }} : bool{dims}\n %6 =");
            text = text.replacen("%6 =", &other, 1);
        }
        let c = check(&text);
        assert_eq!(fused(&c), 1, "{name}: {}", c.plan);
        let share = products(&c, &[]) as f64 / (2 * 2 * 20 * queries * keys) as f64;
        assert!(if most < 1.0 { share <= most } else { share >= 1.0 }, "{name}: {share}");
    }
}

#[test]
fn keys_of_a_free_number_that_no_row_sees_are_not_visited() {
    let free = |condition: &str, hidden: &str| {
        format!(
            "symbol p in 0..2000\n symbol m in 1..2000\n input %9 : f32[p]\n {}",
            by_numbers("1", "m", "p + m", condition, hidden)
        )
    };
    let sizes: [&[(&str, i64)]; 5] = [
        &[("p", 0), ("m", 1)],
        &[("p", 0), ("m", 40)],
        &[("p", 3), ("m", 17)],
        &[("p", 300), ("m", 5)],
        &[("p", 250), ("m", 15)],
    ];
    // The past's length as a number of the graph: the last of 0..=p.
    let past = |condition: &str, hidden: &str| {
        let text = free(condition, hidden).replace(
            "%22 = map(%20, %21)",
            "%30 = iota() dims = [p + 1], axis = 0 : i64[p + 1]
             %31 = slice(%30) starts = [p], steps = [1], dims = [1] : i64[1]
             %22 = map(%20, %21, %31)",
        );
        check_free(&text, &sizes)
    };
    let share =
        |c: &Compiled, (p, m): (i64, i64)| products(c, &[("p", p), ("m", m)]) as f64 / (80 * m * (p + m)) as f64;
    for hidden in ["minus_inf_f32", "-1e9f32"] {
        let c = past("le(a1, add(a0, a2))", hidden);
        assert_eq!(fused(&c), 1, "{}", c.plan);
        assert!(share(&c, (0, 1000)) < 0.53, "{}", share(&c, (0, 1000)));
        assert!(share(&c, (1000, 1000)) < 0.78, "{}", share(&c, (1000, 1000)));
        // A window of 50 keys, which is not all hidden of any row.
        let c = past("and(le(a1, add(a0, a2)), gt(a1, sub(add(a0, a2), 50i64)))", hidden);
        assert_eq!(fused(&c), 1, "{}", c.plan);
        assert!(share(&c, (0, 1000)) < 0.1, "{}", share(&c, (0, 1000)));
    }
    // Rows from 5 on are hidden whole where there are few keys: minus infinity makes them no numbers, and low numbers even.
    for hidden in ["minus_inf_f32", "-1e9f32"] {
        let c = past("and(lt(a1, 5i64), ge(a1, a0))", hidden);
        assert_eq!(fused(&c), 1, "{}", c.plan);
    }
}

#[test]
fn masks_that_other_kernels_make_are_looked_through() {
    // One mask for two layers is made once, in memory; as numbers that are added, and with another condition from outside.
    let layers = |mask: &str, hide: &str| {
        let scores = "f32[1, 2, 24, 140]";
        let layer = |n: usize, x: usize| {
            format!(
                "%{n}1 = contract(%{x}, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : {scores}
                 %{n}2 = map(%{n}1, %24) body = {{ {hide} }} : {scores}
                 %{n}3 = softmax(%{n}2) axis = 3, log = false : {scores}
                 %{n}4 = contract(%{n}3, %1) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[1, 24, 2, 20]"
            )
        };
        format!(
            "input %0 : f32[1, 24, 2, 20]\n input %1 : f32[1, 140, 2, 20]\n input %2 : bool[1, 140]
             %20 = iota() dims = [24, 1], axis = 0 : i64[24, 1]\n %21 = iota() dims = [140], axis = 0 : i64[140]
             %22 = map(%20, %21) body = {{ le(a1, a0) }} : bool[24, 140]
             {mask}\n {}\n {}\n output %94 \"y\"",
            layer(8, 0),
            layer(9, 84)
        )
    };
    let reshaped = "%24 = reshape(%22) dims = [1, 1, 24, 140] : bool[1, 1, 24, 140]\n output %24 \"mask\"";
    let added = "%23 = map(%22) body = { select(a0, 0.0f32, minus_inf_f32) } : f32[24, 140]
                 %24 = reshape(%23) dims = [1, 1, 24, 140] : f32[1, 1, 24, 140]
                 %25 = map(%24) body = { max(a0, -1.0f32) } : f32[1, 1, 24, 140]\n output %25 \"mask\"";
    let padded = "%23 = map(%22, %2) body = { select(and(a1, a0), 0.0f32, minus_inf_f32) } : f32[24, 140]
                  %24 = reshape(%23) dims = [1, 1, 24, 140] : f32[1, 1, 24, 140]
                 %25 = map(%24) body = { max(a0, -1.0f32) } : f32[1, 1, 24, 140]\n output %25 \"mask\"";
    let uneven = padded.replace("minus_inf_f32", "-1e9f32");
    let cases = [
        (reshaped, "select(a1, a0, minus_inf_f32)", 0.2),
        (reshaped, "select(a1, a0, -1e9f32)", 0.2),
        (added, "add(a0, a1)", 0.2),
        (padded, "add(a0, a1)", 0.2),
        // A row may be hidden whole: its shares are even.
        (&uneven, "add(a0, a1)", 1.0),
    ];
    for (mask, hide, most) in cases {
        let c = check(&layers(mask, hide));
        assert_eq!(fused(&c), 2, "{}", c.plan);
        let share = products(&c, &[]) as f64 / (2 * 2 * 20 * 24 * 140) as f64;
        assert!(if most < 1.0 { share <= most } else { share >= 1.0 }, "{mask}, {hide}: {share}");
    }
    // Two layers that are the same but for what other kernels hide from them.
    let later = "%26 = map(%20, %21) body = { le(a1, add(a0, 100i64)) } : bool[24, 140]
                  %27 = reshape(%26) dims = [1, 1, 24, 140] : bool[1, 1, 24, 140]\n output %27 \"later\"";
    let hide = "select(a1, a0, minus_inf_f32)";
    let text = layers(&format!("{reshaped}\n {later}"), hide).replace("map(%91, %24)", "map(%91, %27)");
    let c = check(&text);
    assert_eq!(fused(&c), 2, "{}", c.plan);
    let attention = c.kernels[0].iter().zip(&c.plan.kernels).filter(|(_, k)| k.what.contains("softmax"));
    let programs: Vec<String> =
        attention.map(|(p, _)| TileProgram { name: "k".into(), ..p.clone() }.to_string()).collect();
    assert!(programs.len() == 2 && programs[0] != programs[1], "{}", programs.join("\n"));
}

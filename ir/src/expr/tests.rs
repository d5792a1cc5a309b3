//! Tests of integer expressions.

use super::*;

fn e(s: &str) -> Expr {
    s.parse().unwrap()
}

#[test]
fn sums_of_products_are_canonical_and_print_back() {
    for (text, expected) in [
        ("b + a + 1 + a", "2*a + b + 1"),
        ("(a + 1) * (b - 2)", "-2*a + a*b + b - 2"),
        ("floordiv(4*i + 6, 4)", "i + 1"),
        ("floordiv(floordiv(x, 2), 3)", "floordiv(x, 6)"),
        ("mod(8*j + 9, 8)", "1"),
        ("ceildiv(h, 2)", "floordiv(h + 1, 2)"),
        ("max(a, a + 1)", "a + 1"),
        ("h - 1", "h - 1"),
        ("h -1", "h - 1"),
    ] {
        let got = e(text).to_string();
        assert_eq!(got, expected, "{text}");
        assert_eq!(e(&got), e(text));
    }
}

#[test]
fn bounds_decide_divisions() {
    let ranges = Ranges::from([(Symbol::new("a1"), (0, 7)), (Symbol::new("j"), (0, 9))]);
    assert_eq!(e("floordiv(8*j + a1, 8)").simplify(&ranges), e("j"));
    assert_eq!(e("mod(8*j + a1, 8)").simplify(&ranges), e("a1"));
    assert_eq!(e("mod(8*j + a1 + 8, 8)").simplify(&ranges), e("a1"));
    assert_eq!(e("floordiv(8*j + a1, 32)").simplify(&ranges), e("floordiv(j, 4)"));
    assert_eq!(e("mod(8*j + a1, 32)").simplify(&ranges), e("8*mod(j, 4) + a1"));
    assert_eq!(e("floordiv(16*j + a1 + 8, 32)").simplify(&ranges), e("floordiv(j, 2)"));
    assert_eq!(e("min(a1, 9)").simplify(&ranges), e("a1"));
    assert_eq!(e("floordiv(8*j + a1 + 1, 8)").simplify(&ranges), e("j + floordiv(a1 + 1, 8)"));
}

#[test]
fn divisors_below_zero_and_limits_are_exact() {
    for (text, expected) in [
        ("floordiv(7, -4)", "-2"),
        ("mod(7, -4)", "-1"),
        ("mod(-7, -4)", "-3"),
        ("floordiv(4*a + 6, -4)", "-1*a - 2"),
        ("mod(4*a + 6, -4)", "-2"),
        ("floordiv(a, 0)", "0"),
        ("mod(a, 0)", "0"),
        ("ceildiv(7, 2)", "4"),
        ("ceildiv(-7, 2)", "-3"),
        ("floordiv(-9223372036854775808, -1)", "9223372036854775807"),
        ("floordiv(-1, -9223372036854775808)", "0"),
        ("mod(-1, -9223372036854775808)", "-1"),
        ("9223372036854775807 + 1", "9223372036854775807"),
        ("a - 9223372036854775807 - 1", "a + -9223372036854775808"),
        ("b + -9223372036854775808*a", "-9223372036854775808*a + b"),
    ] {
        assert_eq!(e(text).to_string(), expected, "{text}");
        assert_eq!(e(expected), e(text));
    }
}

#[test]
fn missing_bounds_stay_missing() {
    let ranges = Ranges::from([(Symbol::new("a"), (0, i64::MAX)), (Symbol::new("b"), (2, 5))]);
    for (text, bounds) in [
        ("5 - a", (i64::MIN, 5)),
        ("a*b + 1", (1, i64::MAX)),
        ("x", (i64::MIN, i64::MAX)),
        ("-1*x + b", (i64::MIN, i64::MAX)),
        ("mod(x, b)", (0, 4)),
        ("mod(x, a + 1)", (0, i64::MAX)),
        ("floordiv(a, 2)", (0, i64::MAX)),
        ("min(a, 7)", (0, 7)),
        ("max(x, 7)", (7, i64::MAX)),
    ] {
        assert_eq!(e(text).bounds(&ranges), bounds, "{text}");
    }
}

#[test]
fn products_that_would_explode_are_refused() {
    let sum: Vec<String> = (0..20).map(|n| format!("x{n}")).collect();
    let text = vec![format!("({})", sum.join(" + ")); 8].join(" * ");
    assert!(text.parse::<Expr>().unwrap_err().message.contains("too many terms"));
}

proptest::proptest! {
    #[test]
    fn arithmetic_agrees_with_integers(a in -50i64..50, b in -50i64..50, c in 1i64..9, k in -9i64..9) {
        let value = |s: &Symbol| match s.name() { "a" => Some(a), "b" => Some(b), _ => None };
        let x = Expr::symbol("a").scale(k).add(&Expr::symbol("b")).add(&Expr::from(3i64));
        let y = Expr::symbol("a").sub(&Expr::from(2i64));
        let d = Expr::from(c);
        let (vx, vy) = (k * a + b + 3, a - 2);
        proptest::prop_assert_eq!(x.mul(&y).eval(&value), Some(vx * vy));
        proptest::prop_assert_eq!(x.floor_div(&d).eval(&value), Some(vx.div_euclid(c)));
        proptest::prop_assert_eq!(x.modulo(&d).eval(&value), Some(vx.rem_euclid(c)));
        proptest::prop_assert_eq!(x.least(&y).eval(&value), Some(vx.min(vy)));
        let ranges = Ranges::from([(Symbol::new("a"), (-50, 50)), (Symbol::new("b"), (-50, 50))]);
        for e in [x.floor_div(&d), x.modulo(&d), x.greatest(&y), x.mul(&y)] {
            let v = e.eval(&value).unwrap();
            let (lo, hi) = e.bounds(&ranges);
            proptest::prop_assert!(lo <= v && v <= hi, "{} = {} outside {}..={}", e, v, lo, hi);
            proptest::prop_assert_eq!(e.simplify(&ranges).eval(&value), Some(v));
            proptest::prop_assert_eq!(e.to_string().parse::<Expr>().unwrap(), e);
        }
    }

    #[test]
    fn random_expressions_agree_with_integers(
        steps in proptest::collection::vec((0u8..7, 0usize..64, 0usize..64), 1..8),
        a in -20i64..20, b in -20i64..20, k in -9i64..9,
    ) {
        let value = |s: &Symbol| match s.name() { "a" => Some(a), "b" => Some(b), _ => None };
        let mut known: Vec<(Expr, i64)> =
            vec![(Expr::symbol("a"), a), (Expr::symbol("b"), b), (Expr::from(k), k), (Expr::from(3i64), 3)];
        for (op, x, y) in steps {
            let ((x, vx), (y, vy)) = (&known[x % known.len()], &known[y % known.len()]);
            // A divisor that equals the dividend is taken not to be 0.
            if (op == 3 || op == 4) && *vy == 0 {
                continue;
            }
            let (e, v) = match op {
                0 => (x.add(y), vx + vy),
                1 => (x.sub(y), vx - vy),
                2 => (x.mul(y), vx.saturating_mul(*vy)),
                3 => (x.floor_div(y), floor_div(*vx, *vy)),
                4 => (x.modulo(y), floor_mod(*vx, *vy)),
                5 => (x.least(y), *vx.min(vy)),
                _ => (x.greatest(y), *vx.max(vy)),
            };
            // Beyond this, sums saturate in an order that depends on their form.
            if v.abs() < 1 << 40 && e.terms().count() < 40 {
                known.push((e, v));
            }
        }
        let ranges = Ranges::from([(Symbol::new("a"), (-20, 20)), (Symbol::new("b"), (-20, 20))]);
        for (e, v) in known {
            proptest::prop_assert_eq!(e.eval(&value), Some(v), "{}", e);
            let (lo, hi) = e.bounds(&ranges);
            proptest::prop_assert!(lo <= v && v <= hi, "{} = {} outside {}..={}", e, v, lo, hi);
            let bound = e.substitute(&|s| value(s).map(Expr::from));
            proptest::prop_assert_eq!(bound.as_const(), Some(v), "{}", e);
            proptest::prop_assert_eq!(e.simplify(&ranges).eval(&value), Some(v), "{}", e);
            proptest::prop_assert_eq!(e.to_string().parse::<Expr>().unwrap(), e);
        }
    }
}

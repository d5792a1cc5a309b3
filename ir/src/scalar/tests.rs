//! Text round trips of constants and code, and what the type rules refuse.

use super::*;
use proptest::prelude::*;

fn round_trip(code: &Code) -> Code {
    let types: std::collections::HashMap<String, DType> = code
        .nodes()
        .filter_map(|(id, n)| match n {
            Scalar::Arg(k) => Some((format!("a{k}"), code.dtype(id))),
            Scalar::Load(source, _) => Some((source.to_string(), code.dtype(id))),
            _ => None,
        })
        .collect();
    let type_of = |n: &Scalar| match n {
        Scalar::Arg(k) => types.get(&format!("a{k}")).copied(),
        Scalar::Load(source, _) => types.get(&source.to_string()).copied(),
        _ => None,
    };
    let text = code.to_string();
    Code::parse(&mut Lexer::new(&text), &type_of).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn constants_print_and_parse_back() {
    for dtype in DType::ALL {
        let values: Vec<Constant> = if dtype.is_float() {
            [
                0.0,
                -0.0,
                1.5,
                -6.0,
                0.1,
                1e-5,
                1e20,
                448.0,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::NAN,
                f64::MIN_POSITIVE,
            ]
            .map(|v| Constant::float(dtype, v))
            .to_vec()
        } else if dtype.is_int() || dtype == DType::Bool {
            [0, 1, -1, 127, i64::MAX, i64::MIN].map(|v| Constant::int(dtype, v)).to_vec()
        } else {
            continue;
        };
        for c in values {
            let text = c.to_string();
            assert_eq!(Constant::parse(&mut Lexer::new(&text)).unwrap(), c, "{text}");
            let mut bytes = Vec::new();
            c.store(&mut bytes);
            assert_eq!(bytes.len(), dtype.size());
            assert_eq!(Constant::load(dtype, &bytes, 0).unwrap().to_string(), text, "{text} in memory");
        }
    }
    for wrong in ["1", "f32", "1.5i64", "x", "1.0q8", "inf_q8", ""] {
        assert!(Constant::parse(&mut Lexer::new(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn all_kinds_of_nodes_print_and_parse_back() {
    let mut code = Code::new();
    let x = code.arg(0, DType::F32);
    let i = Expr::symbol("i0");
    let index = code.index(i.scale(2));
    let load = code.load(
        Source::Input(1),
        vec![Coord::Index(i.clone()), Coord::Value(index), Coord::Index(i.sub(&Expr::from(1i64)))],
        DType::F32,
    );
    let stage = code.load_at(Source::Stage(0), vec![], DType::F32);
    let sum = code.binary(BinaryOp::Add, load, stage).unwrap();
    let root = code.unary(UnaryOp::Sqrt, sum).unwrap();
    let less = code.binary(BinaryOp::Lt, root, x).unwrap();
    let fused = code.fma(root, x, sum).unwrap();
    let chosen = code.select(less, root, fused).unwrap();
    let conditions = vec![
        Less { left: i.clone(), right: Expr::from(3i64) },
        Less { left: Expr::from(-1i64), right: i.sub(&Expr::symbol("r0")) },
    ];
    let guarded = code.push(Scalar::Guard(conditions, chosen, x)).unwrap();
    let narrow = code.cast(DType::F16, guarded).unwrap();
    code.set_result(narrow);
    let text = code.to_string();
    assert_eq!(
        text,
        "{ let t0 = add(in1[i0, at(index(2*i0)), i0 - 1], stage0[]); let t1 = sqrt(t0); \
         to_f16(guard[i0 < 3, -1 < i0 - r0](select(lt(t1, a0), t1, fma(t1, a0, t0)), a0)) }"
    );
    assert_eq!(round_trip(&code), code);
}

#[test]
fn long_chains_are_cut_into_named_nodes() {
    let mut code = Code::new();
    let mut x = code.arg(0, DType::F64);
    for n in 0..5000 {
        let c = code.float(DType::F64, f64::from(n));
        x = code.binary(BinaryOp::Add, x, c).unwrap();
    }
    code.set_result(x);
    let back = round_trip(&code);
    assert_eq!(back.to_string(), code.to_string());
}

#[test]
fn wrong_types_are_refused() {
    let mut code = Code::new();
    let (f, i, b) = (code.arg(0, DType::F32), code.arg(1, DType::I32), code.arg(2, DType::Bool));
    let s = code.arg(3, DType::Str);
    assert!(code.binary(BinaryOp::Add, f, i).is_err());
    assert!(code.binary(BinaryOp::And, f, f).is_err());
    assert!(code.binary(BinaryOp::Sub, b, b).is_err());
    assert!(code.unary(UnaryOp::Not, f).is_err());
    assert!(code.unary(UnaryOp::Sqrt, i).is_err());
    assert!(code.unary(UnaryOp::Neg, b).is_err());
    assert!(code.select(f, i, i).is_err());
    assert!(code.select(b, f, i).is_err());
    assert!(code.cast(DType::F32, s).is_err());
    assert!(code.push(Scalar::Guard(vec![], f, i)).is_err());
    assert!(code.push(Scalar::Unary(UnaryOp::Neg, Id::from_index(99))).is_err());
    assert!(code.push(Scalar::Arg(7)).is_err());
    let before = code.len();
    let (one, two) = (code.float(DType::F32, 1.0), code.float(DType::F32, 1.0));
    assert_eq!(one, two, "equal nodes are one");
    assert_eq!(code.len(), before + 1);
}

#[test]
fn text_that_is_no_code_is_refused() {
    let type_of = |n: &Scalar| matches!(n, Scalar::Arg(0 | 1)).then_some(DType::F32);
    for (text, part) in [
        ("{ add(a0, 1.0f64) }", "wants equal types"),
        ("{ add(a0) }", "expected 2 operands, found 1"),
        ("{ frobnicate(a0) }", "`frobnicate` is no scalar operation"),
        ("{ a7 }", "`a7` is no scalar operation"),
        ("{ let t0 = a0 t0 }", "expected `;`"),
        ("{ neg(t0) }", "`t0` is no scalar operation"),
        ("{ to_q8(a0) }", "no scalar operation"),
        ("{ guard[1](a0, a1) }", "expected `<`"),
        ("{ }", ""),
    ] {
        let error = Code::parse(&mut Lexer::new(text), &type_of).unwrap_err();
        assert!(error.message.contains(part), "{text}: {error}");
    }
    let deep = format!("{{ {}a0{} }}", "neg(".repeat(5000), ")".repeat(5000));
    assert!(Code::parse(&mut Lexer::new(&deep), &type_of).unwrap_err().message.contains("nested too deeply"));
}

proptest! {
    #[test]
    fn random_code_prints_and_parses_back(steps in prop::collection::vec((0u8..6, any::<u16>(), any::<u16>(), any::<u16>()), 1..40)) {
        let mut code = Code::new();
        let mut nodes = vec![code.arg(0, DType::F32), code.arg(1, DType::I32), code.arg(2, DType::Bool)];
        for (kind, a, b, c) in steps {
            let pick = |n: u16| nodes[usize::from(n) % nodes.len()];
            let made = match kind {
                0 => code.unary(UnaryOp::ALL[usize::from(c) % UnaryOp::ALL.len()], pick(a)),
                1 => code.binary(BinaryOp::ALL[usize::from(c) % BinaryOp::ALL.len()], pick(a), pick(b)),
                2 => code.select(pick(a), pick(b), pick(c)),
                3 => code.cast([DType::F32, DType::I32, DType::Bool, DType::U8, DType::BF16][usize::from(c) % 5], pick(a)),
                4 => code.push(Scalar::Guard(vec![Less { left: Expr::symbol("i0"), right: Expr::from(i64::from(c)) }], pick(a), pick(b))),
                _ => Ok(code.constant(Constant::float(DType::F32, f64::from(c) / 7.0))),
            };
            nodes.extend(made);
        }
        if let Some(&last) = nodes.last() {
            code.set_result(last);
        }
        let back = round_trip(&code);
        prop_assert_eq!(back.to_string(), code.to_string());
        prop_assert_eq!(back.result_type(), code.result_type());
    }
}

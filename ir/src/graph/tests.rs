//! Text round trips with every op, the verifier, order and reachability.

use super::{Definition, Graph, NodeId, Origin, TensorType, Value, ValueId};
use crate::dtype::DType;
use crate::expr::{Expr, Symbol};
use crate::layout::Layout;
use crate::ops::*;
use crate::scalar::{BinaryOp, Code, Constant, UnaryOp};
use crate::tensor::Tensor;

fn f32s(dims: &[usize]) -> TensorType {
    TensorType::of(DType::F32, dims)
}

fn exprs(dims: &[usize]) -> Vec<Expr> {
    dims.iter().map(|&d| Expr::from(d)).collect()
}

fn negate() -> Op {
    let mut body = Code::new();
    let a = body.arg(0, DType::F32);
    let r = body.unary(UnaryOp::Neg, a).unwrap();
    body.set_result(r);
    Map { body }.into()
}

fn add() -> Op {
    let mut body = Code::new();
    let (a, b) = (body.arg(0, DType::F32), body.arg(1, DType::F32));
    let r = body.binary(BinaryOp::Add, a, b).unwrap();
    body.set_result(r);
    Map { body }.into()
}

/// One of every op, with operands that it takes.
fn samples() -> Vec<(Op, Vec<TensorType>)> {
    let i64s = |dims: &[usize]| TensorType::of(DType::I64, dims);
    let one = Constant::float(DType::F32, 1e-5);
    let n = Expr::symbol("n");
    let top = Attributes::new().with("axis", 1usize).with("keep", true).with("max", false).with("last", true);
    vec![
        (negate(), vec![f32s(&[2])]),
        (Reduce { combine: BinaryOp::Max, axes: vec![0, 2], keep: true }.into(), vec![f32s(&[2, 3, 4])]),
        (Contract::new("bmk", "bkn", "bmn").into(), vec![f32s(&[1, 2, 3]), f32s(&[1, 3, 4])]),
        (Contract::new("", "", "").into(), vec![f32s(&[]), f32s(&[])]),
        (
            Contract { elements: Elements::Bytes, ..Contract::new("mk", "nk", "mn") }.into(),
            vec![TensorType::of(DType::I32, &[2, 3]), TensorType::of(DType::I32, &[4, 3])],
        ),
        (
            Conv { strides: vec![1], dilations: vec![1], groups: 2, elements: Elements::Bytes }.into(),
            vec![TensorType::of(DType::U8, &[1, 2, 8]), TensorType::of(DType::I32, &[2, 1, 3])],
        ),
        (WindowTiles {}.into(), vec![f32s(&[1, 3, 6, 8])]),
        (TileProduct { extents: vec![3, 6] }.into(), vec![f32s(&[1, 16, 2, 3, 5]), f32s(&[16, 7, 5])]),
        (Pack { axis: 1 }.into(), vec![TensorType::of(DType::I8, &[2, 7])]),
        (
            Conv { strides: vec![2, 1], dilations: vec![1, 2], groups: 2, elements: Elements::Numbers }.into(),
            vec![f32s(&[1, 4, 9, 9]), f32s(&[6, 2, 3, 3])],
        ),
        (
            Pool { combine: BinaryOp::Add, window: vec![2], strides: vec![1], dilations: vec![3] }.into(),
            vec![f32s(&[1, 1, 8])],
        ),
        (
            BlockProduct { bytes: 1, halves: true, zero: None }.into(),
            [(DType::I32, &[2usize, 3, 8][..]), (DType::F32, &[2, 3]), (DType::F32, &[2, 3])]
                .into_iter()
                .chain([(DType::I32, &[5, 3, 4][..]), (DType::F16, &[5, 3]), (DType::F16, &[5, 3])])
                .map(|(dtype, dims)| TensorType::of(dtype, dims))
                .collect(),
        ),
        (
            BlockProduct { bytes: 1, halves: false, zero: Some(128) }.into(),
            [(DType::I32, &[3usize, 8][..]), (DType::F32, &[3]), (DType::F32, &[3])]
                .into_iter()
                .chain([(DType::I32, &[5, 3, 8][..]), (DType::F32, &[5, 3])])
                .map(|(dtype, dims)| TensorType::of(dtype, dims))
                .collect(),
        ),
        (
            BlockProduct { bytes: 3, halves: true, zero: Some(8) }.into(),
            [(DType::I32, &[2usize, 3, 7, 8][..]), (DType::F32, &[2, 7]), (DType::F32, &[2, 7])]
                .into_iter()
                .chain([(DType::I32, &[5, 7, 4][..]), (DType::F16, &[5, 7])])
                .map(|(dtype, dims)| TensorType::of(dtype, dims))
                .collect(),
        ),
        (
            BlockProduct { bytes: 0, halves: true, zero: None }.into(),
            [
                (DType::F32, &[2usize, 3, 32][..]),
                (DType::I32, &[5, 3, 4]),
                (DType::F16, &[5, 3]),
                (DType::F16, &[5, 3]),
            ]
            .map(|(dtype, dims)| TensorType::of(dtype, dims))
            .to_vec(),
        ),
        (Softmax { axis: 1, log: true }.into(), vec![f32s(&[2, 3])]),
        (Norm { kind: NormKind::Layer, axes: 1, epsilon: one }.into(), vec![f32s(&[2, 3])]),
        (Norm { kind: NormKind::Rms, axes: 2, epsilon: one }.into(), vec![f32s(&[2, 3])]),
        (
            Reshape { dims: vec![n.clone(), Expr::from(6i64)] }.into(),
            vec![TensorType::new(DType::F32, vec![n.scale(6)])],
        ),
        (Transpose { perm: vec![1, 0] }.into(), vec![TensorType::of(DType::Str, &[2, 3])]),
        (Broadcast { dims: vec![n.clone(), Expr::from(3i64)] }.into(), vec![f32s(&[3])]),
        (
            Slice { starts: vec![n.sub(&Expr::from(1i64))], steps: vec![-1], dims: vec![n.clone()] }.into(),
            vec![TensorType::new(DType::C64, vec![n.clone()])],
        ),
        (Concat { axis: 0 }.into(), vec![f32s(&[1, 2]), f32s(&[3, 2])]),
        (Pad { low: vec![1], high: vec![2], interior: vec![0], value: one }.into(), vec![f32s(&[2])]),
        (
            Pad { low: vec![1], high: vec![0], interior: vec![1], value: Constant::int(DType::Bool, 1) }.into(),
            vec![TensorType::of(DType::Bool, &[2])],
        ),
        (
            Pad {
                low: vec![0],
                high: vec![0],
                interior: vec![1],
                value: Constant::float(DType::F16, f64::NEG_INFINITY),
            }
            .into(),
            vec![TensorType::of(DType::F16, &[2])],
        ),
        (Gather { axis: 1 }.into(), vec![f32s(&[2, 3]), i64s(&[4])]),
        (GatherElements { axis: 0 }.into(), vec![f32s(&[2, 3]), i64s(&[5, 3])]),
        (GatherNd { batch: 1 }.into(), vec![f32s(&[2, 3, 4]), i64s(&[2, 5, 1])]),
        (Iota { dims: vec![n, Expr::from(2i64)], axis: 1 }.into(), vec![]),
        (Host::new("arg_reduce", top).unwrap().into(), vec![f32s(&[2, 3])]),
    ]
}

/// A graph with one of every op, names, a symbol, and constants that are printed in full and that are not.
fn everything() -> Graph {
    let mut graph = Graph::new("all \"ops\"");
    graph.symbols.insert(Symbol::new("n"), (1, 512));
    for (i, (op, types)) in samples().into_iter().enumerate() {
        let inputs: Vec<ValueId> =
            types.into_iter().enumerate().map(|(k, ty)| graph.add_input(&format!("x{i}.{k}"), ty)).collect();
        let mut origin = Origin::new(&format!("node/{i}\n"));
        if i % 2 == 0 {
            origin.merge(&Origin::new("second \\ name"));
        }
        let result = graph.add(op, &inputs, &origin).unwrap();
        if i % 3 == 0 {
            graph.set_name(result, &format!("result {i}"));
        }
        graph.add_output(&format!("y{i}"), result);
    }
    let mut bytes = Vec::new();
    for v in [0.1, -0.0, f64::INFINITY, 1e-30, 3.0, -7.5] {
        Constant::float(DType::F32, v).store(&mut bytes);
    }
    let small = graph.add_constant(Tensor::new(DType::F32, vec![2, 3], bytes).unwrap());
    graph.set_name(small, "weights.0");
    let wide: Vec<f32> = (0..100).map(|i| i as f32 / 3.0).collect();
    let large = graph.add_constant(Tensor::from_f32(&[100], &wide).unwrap());
    let empty = graph.add_constant(Tensor::from_i64(&[0, 4], &[]).unwrap());
    let words = Tensor::from_strings(vec![1], vec![b"\xff".to_vec()]).unwrap();
    let words = graph.add_constant(words);
    for (n, v) in [small, large, empty, words].into_iter().enumerate() {
        graph.add_output(&format!("c{n}"), v);
    }
    graph
}

#[test]
fn every_op_prints_and_parses_back() {
    let graph = everything();
    assert_eq!(graph.verify(), []);
    let mut named: Vec<&str> = graph.nodes().map(|(_, n)| n.op.name()).collect();
    named.sort_unstable();
    named.dedup();
    let mut all = Op::NAMES.to_vec();
    all.sort_unstable();
    assert_eq!(named, all, "a new op needs a sample here");
    let text = graph.to_string();
    let back = Graph::parse(&text, &graph.data()).unwrap_or_else(|e| panic!("{text}{e}"));
    assert_eq!(back.to_string().lines().count(), text.lines().count());
    assert_eq!(back.verify(), []);
    assert_eq!(back.nodes().len(), graph.nodes().len());
    for ((_, a), (_, b)) in graph.nodes().zip(back.nodes()) {
        assert_eq!((&a.op, &a.origin), (&b.op, &b.origin));
    }
    // Values are numbered anew: parsing what was printed then changes nothing at all.
    assert_eq!(Graph::parse(&back.to_string(), &back.data()).unwrap(), back);
    assert_eq!(back.compact().unwrap().verify(), []);
}

#[test]
fn attributes_rebuild_their_op() {
    for (op, _) in samples() {
        let attributes = op.operator().attributes();
        assert_eq!(Op::from_attributes(op.name(), &attributes).unwrap(), op);
        // Each attribute is needed, but for what says of some products what they multiply: `bytes`, and the number that is `zero`.
        for n in 0..attributes.0.len() {
            let mut fewer = attributes.clone();
            let (name, _) = fewer.0.remove(n);
            if !["bytes", "zero"].contains(&name.as_str()) && (op.name() != "host" || name == "function") {
                assert!(Op::from_attributes(op.name(), &fewer).is_err(), "{op} without `{name}`");
            }
        }
    }
    assert!(Op::from_attributes("nonsense", &Attributes::new()).is_err());
}

#[test]
fn layouts_are_part_of_the_text() {
    let text = "\
graph \"g\" {
  input %0 \"x\" : f32[1, 8, 4, 4] order [0, 2, 3, 1]
  %1 = map(%0) body = { neg(a0) } : f32[1, 8, 4, 4] order [0, 1, 2, 3]/1:8 from \"a\", \"b\"
  output %1 \"y\"
}
";
    let graph = Graph::parse(text, &[]).unwrap();
    assert_eq!(graph.to_string(), text);
    assert_eq!(graph.ty(graph.inputs[0]).layout, Layout::channels_last(4));
    assert_eq!(graph.compact().unwrap().to_string(), text);
}

#[test]
fn text_that_is_no_graph_is_refused_with_its_place() {
    let body = |lines: &str| format!("graph \"g\" {{\n  input %0 \"x\" : f32[2]\n{lines}\n}}\n");
    for (lines, line, part) in [
        ("  %1 = map(%7) body = { neg(a0) } : f32[2]", 3, "%7 is not defined"),
        ("  %1 = map(%0) body = { neg(a0) } : f32[3]", 3, "inferred is f32[2]"),
        ("  %1 = map(%0) body = { neg(a0) } : f32[2], f32[2]", 3, "1 results, 1 inferred"),
        ("  %1 = reduce(%0) combine = add, axes = [3], keep = true : f32[]", 3, "axes [3]"),
        ("  %1 = reduce(%0) combine = add, axes = [0] : f32[]", 3, "`keep` must be true or false"),
        ("  %1 = frob(%0) : f32[2]", 3, "there is no op `frob`"),
        ("  const %1 : f32[2] = [1.0f32]", 3, "needs 8 bytes, the data has 4"),
        ("  const %1 : f32[2] = [1.0f32, 1i64]", 3, "among elements of type f32"),
        ("  const %1 : f32[n] = []", 3, "constant dims"),
        ("  const %1 : f32[2] = data 0", 3, "there is no data 0"),
        ("  const %0 : f32[1] = [1.0f32]", 3, "%0 is defined twice"),
        ("  input %1 \"y\" : f32[2] order [0, 0]", 3, "does not fit 1 axes"),
        ("  output %1 \"y\"", 3, "%1 is not defined"),
    ] {
        let error = Graph::parse(&body(lines), &[]).unwrap_err();
        assert!(error.message.contains(part), "{lines}: {error}");
        // Where the rest of the line was needed to see it, the next line's start is named.
        assert!(error.line == line || error.line == line + 1, "{lines}: {error}");
    }
    assert!(Graph::parse("graph \"g\" {", &[]).is_err());
}

#[test]
fn the_verifier_collects_every_error() {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", f32s(&[2]));
    let a = graph.add(negate(), &[x], &Origin::new("first")).unwrap();
    let b = graph.add(negate(), &[a], &Origin::new("second")).unwrap();
    let c = graph.add_constant(Tensor::from_f32(&[2], &[1.0, 2.0]).unwrap());
    graph.add_output("y", b);
    assert_eq!(graph.verify(), []);
    graph.values[x].ty = f32s(&[3]);
    graph.values[c].ty = f32s(&[1]);
    graph.values[b].ty.layout = Layout { order: vec![1], block: None, gap: None };
    graph.values[a].definition = Definition::Input(1);
    graph.nodes[NodeId::from_index(1)].op = Softmax { axis: 4, log: false }.into();
    graph.push_value(Value {
        name: Some("huge".into()),
        ty: f32s(&[1 << 40, 1 << 40]),
        definition: Definition::Input(0),
    });
    graph.add_output("z", ValueId::from_index(99));
    let errors: Vec<String> = graph.verify().iter().map(ToString::to_string).collect();
    for part in [
        "first: node %0: result 0 is f32[2], inferred is f32[3]",
        "first: node %0: result %1 is not defined by the node",
        "second: node %1: softmax of (f32[2]): axes [4] do not fit a tensor with 1 axes",
        "value %1: is not what its definition defines",
        "value %2: layout [1] does not fit 1 axes",
        "value %3: a constant f32[2] [1.0, 2.0] of type f32[1]",
        "huge: value %4: shape [1099511627776, 1099511627776] has too many elements",
        "huge: value %4: is not what its definition defines",
        "z: the output does not exist",
    ] {
        assert!(errors.iter().any(|e| e.contains(part)), "{part} is not in {errors:#?}");
    }
    assert_eq!(errors.len(), 9, "{errors:#?}");
}

#[test]
fn order_follows_the_edges() {
    // A diamond: x -> a -> (b, c) -> d, and a node that nothing needs.
    let mut graph = Graph::new("g");
    let from = |name: &str| Origin::new(name);
    let x = graph.add_input("x", f32s(&[2]));
    let a = graph.add(negate(), &[x], &from("a")).unwrap();
    let b = graph.add(negate(), &[a], &from("b")).unwrap();
    let dead = graph.add(negate(), &[b], &from("dead")).unwrap();
    let c = graph.add(add(), &[a, a], &from("c")).unwrap();
    let d = graph.add(add(), &[b, c], &from("d")).unwrap();
    graph.add_output("y", d);
    let node = |v: ValueId| graph.producer(v).unwrap();
    let order = graph.order().unwrap();
    assert_eq!(order, [a, b, dead, c, d].map(node));
    assert_eq!(graph.live_order().unwrap(), [a, b, c, d].map(node));
    assert_eq!(graph.compact().unwrap().nodes().len(), 4);
    for (from, to, reaches) in
        [(a, d, true), (b, c, false), (c, d, true), (d, a, false), (b, b, true), (dead, d, false)]
    {
        assert_eq!(graph.reaches(node(from), node(to)), reaches, "{from} to {to}");
    }
    assert_eq!(graph.users(a), [node(b), node(c), node(c)]);

    // `b` now reads what a node that was added later makes: the arena's order is no longer topological.
    let mut moved = graph.clone();
    let late = moved.add(negate(), &[x], &from("late")).unwrap();
    moved.replace(a, late);
    let order = moved.order().unwrap();
    let place = |v: ValueId| order.iter().position(|&n| Some(n) == moved.producer(v)).unwrap();
    assert!(place(late) < place(b) && place(late) < place(c) && place(b) < place(d));
    assert_eq!(moved.verify(), []);
    assert_eq!(moved.users(a), []);
    let compact = moved.compact().unwrap();
    assert_eq!(compact.nodes().len(), 4);
    assert_eq!(Graph::parse(&moved.to_string(), &[]).unwrap().verify(), []);
}

#[test]
fn a_cycle_is_an_error_and_no_hang() {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", f32s(&[2]));
    let a = graph.add(negate(), &[x], &Origin::new("head")).unwrap();
    let b = graph.add(negate(), &[a], &Origin::new("tail")).unwrap();
    graph.add_output("y", b);
    // Every reader of x, which is `head`, now reads what `tail` makes of its result.
    graph.replace(x, b);
    let error = graph.order().unwrap_err();
    assert!(error.to_string().ends_with("the node is on or behind a cycle"), "{error}");
    assert_eq!(graph.verify(), std::slice::from_ref(&error));
    assert_eq!(graph.compact().unwrap_err(), error);
    assert!(graph.live_order().is_err());
    let head = NodeId::from_index(0);
    assert!(graph.reaches(head, head));
    assert!(!graph.to_string().is_empty(), "a graph with a cycle can still be printed");
}

#[test]
fn symbols_are_bound_everywhere() {
    let mut graph = Graph::new("g");
    let n = Expr::symbol("n");
    let x = graph.add_input("x", TensorType::new(DType::F32, vec![n.clone(), Expr::from(6i64)]));
    let y = graph.add(Reshape { dims: vec![n.scale(2), Expr::from(3i64)] }.into(), &[x], &Origin::default()).unwrap();
    graph.add_output("y", y);
    let bound = graph.rebuild(&|e| e.replace(&Symbol::new("n"), &Expr::from(5i64))).unwrap();
    assert_eq!(bound.ty(bound.outputs[0].1).to_string(), "f32[10, 3]");
    assert_eq!(bound.verify(), []);
    // A rewrite that tears a type apart is an error at the node.
    let torn = graph.rebuild(&|e| Expr::from(if e.as_symbol().is_some() { 5i64 } else { 4 }));
    assert!(torn.unwrap_err().message.contains("elements do not fit"));
}

#[test]
fn wrong_operands_are_refused() {
    let i64s = |dims: &[usize]| TensorType::of(DType::I64, dims);
    let cases: Vec<(Op, Vec<TensorType>, &str)> = vec![
        (negate(), vec![i64s(&[2])], "operand 0 is i64, its code wants f32"),
        (negate(), vec![], "reads operand 0, which is not there"),
        (add(), vec![f32s(&[2]), f32s(&[3])], "do not broadcast"),
        (Softmax { axis: 0, log: false }.into(), vec![i64s(&[2])], "wants floats"),
        (
            Contract::new("mk", "kn", "mn").into(),
            vec![f32s(&[2, 3]), f32s(&[4, 5])],
            "extent 3, axis 0 of the right one 4",
        ),
        (Contract::new("mm", "kn", "mn").into(), vec![f32s(&[2, 2]), f32s(&[4, 5])], "letters `mm` do not fit"),
        (
            Contract::new("mk", "kn", "mz").into(),
            vec![f32s(&[2, 3]), f32s(&[3, 5])],
            "letter `z` of the result is in no operand",
        ),
        (Contract::new("mk", "kn", "mm").into(), vec![f32s(&[2, 3]), f32s(&[3, 5])], "occurs twice"),
        (Reshape { dims: exprs(&[5]) }.into(), vec![f32s(&[2, 3])], "6 elements do not fit f32[5]"),
        (Transpose { perm: vec![0, 0] }.into(), vec![f32s(&[2, 3])], "axes [0, 0] do not fit"),
        (Transpose { perm: vec![0] }.into(), vec![f32s(&[2, 3])], "does not permute"),
        (Broadcast { dims: exprs(&[2]) }.into(), vec![f32s(&[3])], "do not broadcast"),
        (
            Slice { starts: exprs(&[2]), steps: vec![1], dims: exprs(&[3]) }.into(),
            vec![f32s(&[4])],
            "indices 2..=4 are outside 0..4",
        ),
        (Slice { starts: exprs(&[2]), steps: vec![0], dims: exprs(&[1]) }.into(), vec![f32s(&[4])], "no step may be 0"),
        (Concat { axis: 0 }.into(), vec![f32s(&[1, 2]), f32s(&[1, 3])], "cannot follow"),
        (Concat { axis: 0 }.into(), vec![], "at least one operand"),
        (Gather { axis: 0 }.into(), vec![f32s(&[2]), f32s(&[2])], "indices must be integers"),
        (GatherNd { batch: 0 }.into(), vec![f32s(&[2]), i64s(&[1, 2])], "does not index"),
        (
            Conv { strides: vec![1], dilations: vec![1], groups: 1, elements: Elements::Numbers }.into(),
            vec![f32s(&[1, 2, 2]), f32s(&[1, 2, 5])],
            "the window is larger than the input",
        ),
        (
            Conv { strides: vec![1], dilations: vec![1], groups: 2, elements: Elements::Numbers }.into(),
            vec![f32s(&[1, 4, 5]), f32s(&[3, 2, 1])],
            "3 kernels cannot be cut into 2 groups",
        ),
        (
            Conv { strides: vec![0], dilations: vec![1], groups: 1, elements: Elements::Numbers }.into(),
            vec![f32s(&[1, 4, 5]), f32s(&[3, 4, 1])],
            "at least 1",
        ),
        (
            Reduce { combine: BinaryOp::Sub, axes: vec![0], keep: true }.into(),
            vec![f32s(&[2])],
            "cannot fold f32 with `sub`",
        ),
        (
            Norm { kind: NormKind::Rms, axes: 3, epsilon: Constant::float(DType::F32, 0.0) }.into(),
            vec![f32s(&[2, 2])],
            "cannot normalize 3 axes",
        ),
    ];
    for (op, types, part) in cases {
        let types: Vec<&TensorType> = types.iter().collect();
        let error = op.infer(&types).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{} of (", op.name())) && error.contains(part), "{op}: {error}");
        assert!(op.meaning(&types).is_err(), "{op} means something for operands that it refuses");
    }
}

//! Model-local functions: what inlining makes of calls, and which functions are refused.

use super::*;
use kiln_frontend::onnx::model::AttributeValue;
use kiln_frontend::onnx::problem::ProblemKind;

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: name.into(),
        domain: "f".into(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        node: nodes,
        opset_import: vec![opset("", 18), opset("f", 1)],
        ..Default::default()
    }
}

fn call(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: "f".into(), ..node(name, op, inputs, outputs) }
}

fn with_functions(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut proto = model(graph(nodes));
    proto.opset_import.push(opset("f", 1));
    proto.functions = functions;
    proto
}

#[test]
fn calls_become_their_bodies() {
    let body = vec![node("n", "Neg", &["a"], &["t"]), node("", "Add", &["t", "b"], &["o"])];
    let functions = vec![
        function("Inner", &["a", "b"], &["o"], body),
        function("Outer", &["p"], &["q"], vec![call("", "Inner", &["p"], &["t"]), node("", "Abs", &["t"], &["q"])]),
    ];
    let proto =
        with_functions(vec![call("c", "Outer", &["x"], &["t"]), call("", "Inner", &["t", "x"], &["y"])], functions);
    let m = load(&proto).unwrap();
    assert_eq!(
        lines(&m.graph),
        [
            "c/Inner_0/n: Neg@18(x) -> c/Inner_0/t",
            "c/Inner_0/Add_1: Add@18(c/Inner_0/t, -) -> c/t",
            "c/Abs_1: Abs@18(c/t) -> t",
            "Inner_1/n: Neg@18(t) -> Inner_1/t",
            "Inner_1/Add_1: Add@18(Inner_1/t, x) -> y",
        ]
    );
}

#[test]
fn attributes_come_from_the_call_or_the_default() {
    let body = vec![
        with(node("s", "Softmax", &["a"], &["t"]), reference("axis", "axis", AttributeType::Int)),
        with(node("r", "ReduceSum", &["t"], &["o"]), reference("keepdims", "keep", AttributeType::Int)),
    ];
    let mut f = function("F", &["a"], &["o"], body);
    f.attribute = vec!["keep".into()];
    f.attribute_proto = vec![int("axis", 7)];
    let proto = with_functions(
        vec![
            call("c", "F", &["x"], &["t"]),
            with(with(call("d", "F", &["t"], &["y"]), int("axis", 1)), int("keep", 0)),
        ],
        vec![f],
    );
    let m = load(&proto).unwrap();
    let values: Vec<_> = m.graph.nodes.iter().map(|n| n.attributes.first().map(|a| a.value.clone())).collect();
    let int = |v| Some(AttributeValue::Int(v));
    assert_eq!(values, [int(7), None, int(1), int(0)]);
}

#[test]
fn outputs_that_are_inputs_or_twice_are_copied() {
    let f = function("F", &["a"], &["a", "o", "o"], vec![node("n", "Neg", &["a"], &["o"])]);
    let m = load(&with_functions(vec![call("c", "F", &["x"], &["p", "q", "y"])], vec![f])).unwrap();
    assert_eq!(
        lines(&m.graph),
        ["c/n: Neg@18(x) -> q", "c/Identity: Identity@21(x) -> p", "c/Identity_2: Identity@21(q) -> y",]
    );
}

#[test]
fn bodies_capture_nothing_of_the_caller() {
    // The subgraph defines `x` and uses the formal `a`; the call passes the caller's own `x` for `a`.
    let then = GraphProto {
        node: vec![node("", "Neg", &["a"], &["x"]), node("", "Add", &["x", "a"], &["t"])],
        output: vec![info("t", &[2])],
        initializer: vec![floats("k", &[1.0])],
        ..Default::default()
    };
    let f = function(
        "F",
        &["a"],
        &["o"],
        vec![with(node("i", "If", &["a"], &["o"]), graph_attribute("then_branch", then))],
    );
    let m = load(&with_functions(vec![call("c", "F", &["x"], &["y"])], vec![f])).unwrap();
    let body = m.graph.nodes[0].graph("then_branch").unwrap();
    assert_eq!(lines(body), ["c/Neg_0: Neg@18(x) -> c/x", "c/Add_1: Add@18(c/x, x) -> c/t"]);
    assert_eq!((body.captures.as_slice(), body.outputs[0].name.as_str()), (["x".to_owned()].as_slice(), "c/t"));
    assert_eq!(body.initializers[0].name, "c/k");
}

#[test]
fn fresh_names_avoid_the_files_own() {
    let f = function("F", &["a"], &["o"], vec![node("n", "Neg", &["a"], &["t"]), node("m", "Neg", &["t"], &["o"])]);
    let nodes =
        vec![call("c", "F", &["x"], &["z"]), node("c/n", "Abs", &["z"], &["c/t"]), node("", "Abs", &["c/t"], &["y"])];
    let m = load(&with_functions(nodes, vec![f])).unwrap();
    assert_eq!(lines(&m.graph)[0], "c/n: Neg@18(x) -> c/t_2");
    let mut names: Vec<&str> = m.graph.nodes.iter().map(|n| n.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), m.graph.nodes.len(), "{names:?}");
}

#[test]
fn a_graph_attribute_may_be_passed_twice() {
    let then = GraphProto {
        node: vec![node("g", "Neg", &["x"], &["t"])],
        output: vec![info("t", &[2])],
        ..Default::default()
    };
    let body =
        ["p", "o"].map(|o| with(node("", "If", &["a"], &[o]), reference("then_branch", "then", AttributeType::Graph)));
    let mut f = function("F", &["a"], &["o"], body.to_vec());
    f.attribute = vec!["then".into()];
    let m = load(&with_functions(vec![with(call("c", "F", &["x"], &["y"]), graph_attribute("then", then))], vec![f]))
        .unwrap();
    let names: Vec<_> = m.graph.nodes.iter().map(|n| n.graph("then_branch").unwrap().nodes[0].name.clone()).collect();
    assert_eq!(names, ["g", "g_2"]);
}

#[test]
fn refused() {
    let f = || function("F", &["a"], &["o"], vec![node("n", "Neg", &["a"], &["o"])]);
    let c = || call("c", "F", &["x"], &["y"]);
    let cases = [
        (with_functions(vec![c()], vec![f(), f()]), "the function \"f.F\" is defined twice"),
        (
            with_functions(vec![call("c", "F", &["x", "x"], &["y"])], vec![f()]),
            "node 0 \"c\" (f.F): function \"f.F\" has 1 inputs, the call gives 2",
        ),
        (
            with_functions(vec![call("c", "F", &["x"], &["y", "z"])], vec![f()]),
            "node 0 \"c\" (f.F): function \"f.F\" has 1 outputs, the call gives 2",
        ),
        (
            with_functions(vec![with(c(), int("q", 1))], vec![f()]),
            "node 0 \"c\" (f.F): function \"f.F\" has no attribute \"q\"",
        ),
        (
            with_functions(vec![c()], vec![function("F", &["a"], &["o"], vec![node("n", "Neg", &["x"], &["o"])])]),
            "in function \"f.F\": node 0 \"n\" (Neg): the input \"x\" is not defined",
        ),
        (
            with_functions(vec![c()], vec![FunctionProto { opset_import: vec![], ..f() }]),
            "in function \"f.F\": node 0 \"n\" (Neg): ONNX's own operator set is not among the imported operator sets",
        ),
        (
            with_functions(vec![c()], vec![FunctionProto { attribute: vec!["q".into(), "q".into()], ..f() }]),
            "in function \"f.F\": the attribute \"q\" is declared twice",
        ),
        (
            with_functions(
                vec![c()],
                vec![function(
                    "F",
                    &["a"],
                    &["o"],
                    vec![with(node("n", "Neg", &["a"], &["o"]), reference("p", "q", AttributeType::Int))],
                )],
            ),
            "in function \"f.F\": node 0 \"n\" (Neg): the attribute \"p\" refers to \"q\", which the function does not declare",
        ),
        (
            with_functions(
                vec![c()],
                vec![FunctionProto {
                    attribute_proto: vec![int("q", 1)],
                    ..function(
                        "F",
                        &["a"],
                        &["o"],
                        vec![with(node("n", "Neg", &["a"], &["o"]), reference("p", "q", AttributeType::Float))],
                    )
                }],
            ),
            "in function \"f.F\", called by node 0 \"c\" (f.F): node 0 \"n\" (Neg): the attribute \"p\" is FLOAT, but \"q\" of function \"f.F\" is INT",
        ),
        (
            with_functions(vec![call("c", "F", &[""], &["y"])], vec![function("F", &["a"], &["a"], vec![])]),
            "in function \"f.F\", called by node 0 \"c\" (f.F): the output \"a\" is an input that the call leaves out",
        ),
    ];
    for (proto, expected) in cases {
        assert_eq!(problems(&proto), [expected]);
    }
}

#[test]
fn recursion_is_refused() {
    let pass = |name: &str, callee: &str| function(name, &["a"], &["o"], vec![call("", callee, &["a"], &["o"])]);
    let proto =
        with_functions(vec![call("c", "A", &["x"], &["y"])], vec![pass("A", "B"), pass("B", "C"), pass("C", "B")]);
    assert_eq!(problems(&proto), ["functions call themselves: function \"f.B\" -> function \"f.C\""]);
    let proto = with_functions(vec![], vec![pass("A", "A")]);
    assert_eq!(problems(&proto)[1..], ["functions call themselves: function \"f.A\""]);
}

#[test]
fn multiplying_functions_end_at_a_limit() {
    let chain = |leaf: Vec<NodeProto>, calls: usize, length: usize| {
        let mut functions = vec![function("F0", &["a"], &["o"], leaf)];
        for i in 1..length {
            let callee = format!("F{}", i - 1);
            let mut nodes: Vec<NodeProto> =
                (1..calls).map(|k| call("", &callee, &["a"], &[&format!("t{k}")])).collect();
            nodes.push(call("", &callee, &["a"], &["o"]));
            functions.push(function(&format!("F{i}"), &["a"], &["o"], nodes));
        }
        with_functions(vec![call("c", &format!("F{}", length - 1), &["x"], &["y"])], functions)
    };
    let limits = Limits { nodes: 10_000, ..Limits::default() };
    let neg = vec![node("n", "Neg", &["a"], &["o"])];
    for (leaf, output) in [(neg.clone(), "o"), (vec![], "a")] {
        let mut proto = chain(leaf, 2, 60);
        proto.functions[0].output = vec![output.into()];
        let error = model::load(proto.encode_to_vec().into(), &external::none, &limits).unwrap_err();
        assert_eq!(error.kind(), ProblemKind::Limit, "{error}");
    }
    // A body without any node, whose outputs nobody asks for: only the calls themselves are work.
    let mut empty = chain(vec![], 2, 60);
    for f in &mut empty.functions {
        f.output.clear();
        f.node.iter_mut().for_each(|n| n.output.clear());
    }
    empty.graph.as_mut().unwrap().node = vec![call("c", "F59", &["x"], &[]), node("r", "Relu", &["x"], &["y"])];
    let error = model::load(empty.encode_to_vec().into(), &external::none, &limits).unwrap_err();
    assert_eq!(error.kind(), ProblemKind::Limit, "{error}");

    assert!(load(&chain(neg.clone(), 1, 64)).is_ok());
    assert_eq!(problems(&chain(neg, 1, 65)), ["functions call each other more than 64 deep"]);
}

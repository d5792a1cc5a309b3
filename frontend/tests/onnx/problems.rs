//! Every rule of a valid model, broken.

use super::*;
use kiln_frontend::onnx::model::AttributeError;
use kiln_frontend::onnx::problem::ProblemKind;

fn relu() -> ModelProto {
    model(graph(vec![node("r", "Relu", &["x"], &["y"])]))
}

#[test]
fn a_good_model() {
    let mut proto = relu();
    proto.producer_name = "pytorch".into();
    proto.producer_version = "2.9".into();
    proto.opset_import = vec![opset("ai.onnx", 21), opset("com.microsoft", 1)];
    let g = proto.graph.as_mut().unwrap();
    g.node = vec![
        node("", "Mul", &["x", "w"], &["a"]),
        node("", "Clip", &["a", "", "w"], &["y", ""]),
        NodeProto { domain: "com.microsoft".into(), ..node("g", "Gelu", &["a"], &["unused"]) },
    ];
    g.initializer = vec![floats("w", &[1.0, 2.0])];
    let m = load(&proto).unwrap();
    assert_eq!(m.producer, "pytorch 2.9");
    assert_eq!(m.opsets.iter().map(|(d, v)| (d.as_str(), *v)).collect::<Vec<_>>(), [("", 21), ("com.microsoft", 1)]);
    assert_eq!(
        lines(&m.graph),
        ["Mul_0: Mul@21(x, w) -> a", "Clip_1: Clip@21(a, -, w) -> y, -", "g: Gelu@1(a) -> unused",]
    );
    assert_eq!(m.graph.inputs[0].ty.as_ref().unwrap().to_string(), "f32[2]");
    assert!(m.graph.captures.is_empty());
}

#[test]
fn inputs_exclude_initializers() {
    let mut proto = model(graph(vec![node("m", "Mul", &["x", "w"], &["y"])]));
    proto.ir_version = 3;
    let g = proto.graph.as_mut().unwrap();
    g.input.insert(0, info("w", &[2]));
    g.initializer = vec![floats("w", &[1.0, 2.0])];
    let m = load(&proto).unwrap();
    assert_eq!(m.graph.inputs.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["x"]);
    assert_eq!(m.graph.defaults.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["w"]);
}

#[test]
fn weights_share_the_file() {
    let mut proto = model(graph(vec![node("m", "Mul", &["x", "w"], &["y"])]));
    proto.graph.as_mut().unwrap().initializer = vec![floats("w", &[1.0, 2.0])];
    let bytes = Bytes::from(proto.encode_to_vec());
    let m = load_bytes(bytes.clone()).unwrap();
    let kiln_frontend::onnx::value::Value::Tensor(w) = &m.graph.initializers[0].value else { panic!("a tensor") };
    assert!(bytes.as_ptr_range().contains(&w.bytes().as_ptr()));
}

#[test]
fn all_problems_at_once() {
    let mut proto = relu();
    proto.opset_import.push(opset("", 20));
    let g = proto.graph.as_mut().unwrap();
    g.node = vec![
        node("a", "Add", &["x", "nowhere"], &["t"]),
        node("b", "Add", &["x", "x"], &["t"]),
        NodeProto { domain: "com.acme".into(), ..node("", "Magic", &["x"], &["u"]) },
        with(with(node("s", "Softmax", &["x"], &["v"]), int("axis", 1)), int("axis", 2)),
    ];
    g.initializer = vec![TensorProto { dims: vec![3], ..floats("w", &[1.0, 2.0]) }];
    let expected = [
        "operator set \"\" is imported at two versions",
        "initializer \"w\": the tensor of type FLOAT and dims [3] needs 12 bytes in raw_data, there are 8",
        "node 2 (com.acme.Magic): \"com.acme\" is not among the imported operator sets",
        "node 3 \"s\" (Softmax): the attribute \"axis\" appears twice",
        "node 1 \"b\" (Add): the output \"t\" is also defined by node 0 \"a\" (Add)",
        "node 0 \"a\" (Add): the input \"nowhere\" is not defined",
        "the output \"y\" is not defined",
    ];
    assert_eq!(problems(&proto), expected);
    assert_eq!(load(&proto).unwrap_err().kind(), ProblemKind::Invalid);
}

/// The only problem of a good model that `change` was applied to, with its kind.
fn one(change: impl Fn(&mut ModelProto)) -> (ProblemKind, String) {
    let mut proto = relu();
    change(&mut proto);
    let error = load(&proto).expect_err("a problem");
    let lines: Vec<String> = problems(&proto);
    assert_eq!(lines.len(), 1, "{lines:?}");
    (error.kind(), lines[0].clone())
}

fn invalid(message: &str, change: impl Fn(&mut ModelProto)) {
    assert_eq!(one(change), (ProblemKind::Invalid, message.to_owned()));
}

fn unsupported(message: &str, change: impl Fn(&mut ModelProto)) {
    assert_eq!(one(change), (ProblemKind::Unsupported, message.to_owned()));
}

fn limit(message: &str, change: impl Fn(&mut ModelProto)) {
    assert_eq!(one(change), (ProblemKind::Limit, message.to_owned()));
}

fn g(proto: &mut ModelProto) -> &mut GraphProto {
    proto.graph.as_mut().unwrap()
}

#[test]
fn versions() {
    invalid("the model has no IR version", |m| m.ir_version = 0);
    invalid("the model has IR version -1", |m| m.ir_version = -1);
    unsupported("the model has IR version 15; versions up to 14 are supported", |m| m.ir_version = 15);
    invalid("operator set \"\" is imported at version 0", |m| m.opset_import[0].version = 0);
    unsupported("operator set version 29; versions up to 28 are supported", |m| m.opset_import[0].version = 29);
    invalid("node 0 \"r\" (Relu): ONNX's own operator set is not among the imported operator sets", |m| {
        m.opset_import.clear();
    });
    let mut old = relu();
    (old.ir_version, old.opset_import) = (2, Vec::new());
    assert_eq!(load(&old).unwrap().graph.nodes[0].opset, 1);
}

#[test]
fn graphs() {
    invalid("the model has no graph", |m| m.graph = None);
    invalid("the graph has no outputs", |m| g(m).output.clear());
    invalid("the output \"y\" is listed twice", |m| g(m).output.push(info("y", &[2])));
    invalid("the input \"x\" is defined twice", |m| g(m).input.push(info("x", &[2])));
    invalid("the input \"x\" has no type", |m| g(m).input[0].r#type = None);
    invalid("an input has no name", |m| g(m).input.push(info("", &[2])));
    invalid("the initializer \"w\" is defined twice", |m| g(m).initializer = vec![floats("w", &[]), floats("w", &[])]);
    invalid("node 0 \"r\" (Relu): the output \"y\" is also defined by an input or initializer", |m| {
        g(m).initializer = vec![floats("y", &[])];
    });
    invalid("node 0 \"r\" (Relu): the output \"y\" is also defined by another output of the node", |m| {
        g(m).node[0].output.push("y".into());
    });
    invalid("node 0 \"r\" (): the node has no operator", |m| g(m).node[0].op_type.clear());
    invalid("node 0 \"r\" (Relu): there is no function with the overload \"o\"", |m| {
        g(m).node[0].overload = "o".into()
    });
}

#[test]
fn names_are_escaped() {
    invalid("node 0 \"r\\u{1b}[2J\" (Relu): the input \"a\\nb\" is not defined", |m| {
        g(m).node[0].name = "r\x1b[2J".into();
        g(m).node[0].input = vec!["a\nb".into()];
    });
    let long = "n".repeat(5000);
    let (kind, message) = one(|m| g(m).node[0].name = long.clone());
    assert_eq!(kind, ProblemKind::Limit);
    assert!(message.len() < 500 && message.ends_with("has 5000 bytes; the limit is 4096"), "{message}");
}

#[test]
fn shapes() {
    invalid("input \"x\": the type's shape has the dim -2", |m| g(m).input[0] = info("x", &[-2]));
    invalid("input \"x\": the dims [4294967296, 4294967296] of the type have too large a product", |m| {
        g(m).input[0].r#type = Some(ty(DataType::Float, &[1 << 32, -1, 1 << 32]))
    });
    invalid("input \"x\": the element type 99 is not one of ONNX's", |m| {
        if let Some(TypeValue::TensorType(t)) = g(m).input[0].r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.elem_type = 99;
        }
    });
    unsupported("input \"x\": element type FLOAT6E2M3 is not supported", |m| {
        g(m).input[0].r#type = Some(ty(DataType::Float6E2m3, &[1]));
    });
    limit("value \"v\": the type has rank 65; the limit is 64", |m| g(m).value_info.push(info("v", &[1; 65])));
    let mut unknown = relu();
    g(&mut unknown).input[0] = info("x", &[-1, 3]);
    assert_eq!(load(&unknown).unwrap().graph.inputs[0].ty.as_ref().unwrap().to_string(), "f32[?, 3]");
}

#[test]
fn attributes() {
    let on = |m: &mut ModelProto, a: AttributeProto| g(m).node[0].attribute.push(a);
    invalid("node 0 \"r\" (Relu): the attribute \"a\" is FLOAT but has content in the field i", |m| {
        on(m, AttributeProto { r#type: AttributeType::Float as i32, ..int("a", 3) });
    });
    invalid("node 0 \"r\" (Relu): the attribute \"a\" has no type", |m| {
        on(m, AttributeProto { r#type: 0, ..int("a", 3) });
    });
    invalid("node 0 \"r\" (Relu): the attribute \"a\" has the type 77, which is not one of ONNX's", |m| {
        on(m, AttributeProto { r#type: 77, ..int("a", 3) });
    });
    invalid("node 0 \"r\" (Relu): an attribute has no name", |m| on(m, int("", 3)));
    invalid("node 0 \"r\" (Relu): the attribute \"a\" is GRAPH but has no content", |m| {
        on(m, AttributeProto { r#type: AttributeType::Graph as i32, i: None, ..int("a", 0) });
    });
    invalid("node 0 \"r\" (Relu): attribute \"a\": the tensor has no element type", |m| {
        on(m, AttributeProto { r#type: AttributeType::Tensor as i32, i: None, ..int("a", 0) });
    });
    invalid("node 0 \"r\" (Relu): the attribute \"a\" refers to \"b\", outside of a function", |m| {
        on(m, reference("a", "b", AttributeType::Int));
    });
    invalid("node 0 \"r\" (Relu): the attribute \"a\" is a reference but has content in the field i", |m| {
        on(m, AttributeProto { ref_attr_name: "b".into(), ..int("a", 3) });
    });
    let mut old = relu();
    (old.ir_version, old.opset_import) = (1, Vec::new());
    on(&mut old, AttributeProto { r#type: 0, ..int("a", 0) });
    assert_eq!(load(&old).unwrap().graph.nodes[0].int("a").unwrap(), 0, "the first IR version has no types");
}

#[test]
fn accessors_name_what_is_wrong() {
    let mut proto = relu();
    g(&mut proto).node[0].attribute = vec![
        int("axis", -1),
        AttributeProto { name: "mode".into(), r#type: 3, s: Some(Bytes::from_static(b"\xff")), ..Default::default() },
    ];
    let m = load(&proto).unwrap();
    let n = &m.graph.nodes[0];
    assert_eq!(n.int("axis").unwrap(), -1);
    assert_eq!(n.int_or("keepdims", 1).unwrap(), 1);
    assert_eq!(n.ints_opt("axes").unwrap(), None);
    let errors: Vec<AttributeError> = vec![
        n.float("axis").unwrap_err(),
        n.int("keepdims").unwrap_err(),
        n.string("mode").unwrap_err(),
        n.only_attributes(&["axis"]).unwrap_err(),
    ];
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "node 0 \"r\" (Relu): attribute \"axis\" is INT, not FLOAT",
            "node 0 \"r\" (Relu): attribute \"keepdims\" is missing",
            "node 0 \"r\" (Relu): attribute \"mode\": is not valid UTF-8",
            "node 0 \"r\" (Relu): the operator has no attribute \"mode\"",
        ]
    );
}

#[test]
fn cycles_are_reported_and_disorder_is_sorted() {
    invalid(
        "nodes depend on each other in a cycle: node 1 \"b\" (Add) -> node 2 \"c\" (Relu) -> node 3 \"d\" (Relu)",
        |m| {
            g(m).node = vec![
                node("a", "Relu", &["x"], &["a"]),
                node("b", "Add", &["a", "d"], &["b"]),
                node("c", "Relu", &["b"], &["c"]),
                node("d", "Relu", &["c"], &["d"]),
                node("e", "Relu", &["d"], &["y"]),
            ];
        },
    );
    invalid("nodes depend on each other in a cycle: node 0 \"r\" (Relu)", |m| g(m).node[0].input = vec!["y".into()]);
    let shuffled = model(graph(vec![
        node("c", "Relu", &["b"], &["y"]),
        node("a", "Relu", &["x"], &["a"]),
        node("z", "Relu", &["x"], &["z"]),
        node("b", "Relu", &["a"], &["b"]),
    ]));
    let m = load(&shuffled).unwrap();
    assert_eq!(m.graph.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "z", "b", "c"]);
    assert_eq!(m.graph.nodes[0].index, 1);
}

/// `If(x) then [body]`, whose body has the output `t`.
fn branch(body: Vec<NodeProto>) -> NodeProto {
    let body = GraphProto { node: body, output: vec![info("t", &[2])], ..Default::default() };
    with(node("i", "If", &["x"], &["y"]), graph_attribute("then_branch", body))
}

#[test]
fn subgraphs_see_outer_names() {
    // The subgraph uses `a`, which is defined after the node that it belongs to.
    let m = load(&model(graph(vec![branch(vec![node("", "Relu", &["a"], &["t"])]), node("n", "Neg", &["x"], &["a"])])))
        .unwrap();
    assert_eq!(m.graph.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["n", "i"]);
    let body = m.graph.nodes[1].graph("then_branch").unwrap();
    assert_eq!(body.captures, ["a"]);
    assert_eq!(body.nodes[0].name, "i/Relu_0");

    let place = "in graph \"then_branch\" of node 0 \"i\" (If): ";
    let cases = [
        (vec![node("", "Relu", &["q"], &["t"])], "node 0 (Relu): the input \"q\" is not defined"),
        (vec![node("", "Relu", &["x"], &["s"])], "the output \"t\" is not defined"),
        (
            vec![node("", "Relu", &["x"], &["t"]), node("", "Relu", &["x"], &["t"])],
            "node 1 (Relu): the output \"t\" is also defined by node 0 (Relu)",
        ),
        (
            vec![node("", "Relu", &["x"], &["t"]), node("", "Relu", &["x"], &["x"])],
            "node 0 (Relu): the input \"x\" is defined later in this graph and also in a graph around it",
        ),
    ];
    for (body, expected) in cases {
        invalid_first(&format!("{place}{expected}"), &model(graph(vec![branch(body)])));
    }
    // A cycle through a subgraph.
    let cycle =
        problems(&model(graph(vec![branch(vec![node("", "Relu", &["a"], &["t"])]), node("n", "Neg", &["y"], &["a"])])));
    assert_eq!(cycle, ["nodes depend on each other in a cycle: node 0 \"i\" (If) -> node 1 \"n\" (Neg)"]);
}

fn invalid_first(message: &str, proto: &ModelProto) {
    assert_eq!(problems(proto).first().map(String::as_str), Some(message));
}

#[test]
fn node_names_become_unique() {
    let m = load(&model(graph(vec![
        node("a", "Relu", &["x"], &["b"]),
        node("a", "Relu", &["b"], &["c"]),
        node("", "Relu", &["c"], &["d"]),
        node("Relu_2", "Relu", &["d"], &["y"]),
    ])))
    .unwrap();
    assert_eq!(m.graph.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "a_2", "Relu_2_2", "Relu_2"]);
}

#[test]
fn limits_are_the_callers() {
    let mut deep = graph(vec![node("r", "Relu", &["x"], &["y"])]);
    for _ in 0..3 {
        deep = graph(vec![with(node("i", "If", &[], &["y"]), graph_attribute("then_branch", deep))]);
    }
    let proto = model(deep);
    let errors = |limits: Limits| {
        let error = model::load(proto.encode_to_vec().into(), &external::none, &limits).unwrap_err();
        assert_eq!(error.kind(), ProblemKind::Limit);
        error.to_string().lines().last().unwrap_or_default().to_owned()
    };
    assert!(load(&proto).is_ok());
    let message = errors(Limits { graph_depth: 2, ..Limits::default() });
    assert!(message.ends_with("graphs nest more than 2 deep"), "{message}");
    let message = errors(Limits { nodes: 3, ..Limits::default() });
    assert!(message.ends_with("the model has more than 3 nodes"), "{message}");
    let message = errors(Limits { decoded_bytes: 1000, ..Limits::default() });
    assert!(message.starts_with("decoding would take more than 1000 bytes"), "{message}");
}

#[test]
fn wrong_files_say_what_they_look_like() {
    let text = |bytes: &[u8]| load_bytes(bytes.to_vec()).unwrap_err().to_string();
    assert_eq!(text(b""), "this is not an ONNX model; it looks like an empty file: there is no graph in it");
    let png = text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR");
    assert!(png.starts_with("this is not an ONNX model; it looks like a PNG image: "), "{png}");
    let tensor = text(&floats("w", &[1.0]).encode_to_vec());
    assert!(tensor.contains("it looks like a single tensor (TensorProto)"), "{tensor}");
    let bytes = relu().encode_to_vec();
    let cut = text(&bytes[..bytes.len() - 7]);
    assert!(cut.starts_with("this is not an ONNX model: the data ends inside `graph`"), "{cut}");
}

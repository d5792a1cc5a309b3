//! What keeps a model from being imported, and how it is said.

use super::*;
use kiln_frontend::onnx::problem::ProblemKind;

#[test]
fn all_unsupported_nodes_are_reported_once_and_what_depends_on_them_is_not() {
    let errors = draft(17)
        .input("x", &[D::N(2)])
        .node("NoSuchOp", &["x"], &["a"], vec![])
        .node("Relu", &["a"], &["b"], vec![])
        .node("NoSuchOp", &["b"], &["c"], vec![])
        .node("AnotherOne", &["c"], &["d"], vec![])
        .node("Gelu", &["x"], &["y"], vec![])
        .output("d")
        .output("y")
        .import(&Options::default())
        .unwrap_err();
    assert_eq!(errors.kind(), ProblemKind::Unsupported);
    assert!(errors.invalid.is_empty());
    let groups: Vec<(&str, usize)> = errors.unsupported.iter().map(|u| (u.op.as_str(), u.nodes.len())).collect();
    assert_eq!(groups, [("NoSuchOp", 2), ("AnotherOne", 1), ("Gelu", 1)]);
    let text = errors.to_string();
    assert!(text.contains("NoSuchOp (opset 17)") && text.contains("2 nodes: \"n_a\", \"n_c\""), "{text}");
    assert!(text.contains("imports this operator in versions 20 to"), "{text}");
}

#[test]
fn invalid_wins_over_unsupported() {
    let errors = draft(17)
        .input("x", &[D::N(2)])
        .node("NoSuchOp", &["x"], &["a"], vec![])
        .node("Transpose", &["x"], &["y"], vec![ints("perm", &[0, 1])])
        .output("a")
        .output("y")
        .import(&Options::default())
        .unwrap_err();
    assert_eq!((errors.kind(), errors.unsupported.len()), (ProblemKind::Invalid, 1));
}

/// The only error of a node `op` of `x: f32[2, 3, 4, 4]` with an attribute.
fn refused(op: &str, attribute: AttributeProto) -> String {
    let draft = draft(21)
        .input("x", &[D::N(2), D::N(3), D::N(4), D::N(4)])
        .node(op, &["x"], &["y"], vec![attribute])
        .output("y");
    let mut errors = draft.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.remove(0)
}

#[test]
fn bad_attributes_name_node_operator_and_attribute() {
    let cases = [
        ("Softmax", int("axis", 4), "axis 4 is outside of a tensor with 4 axes"),
        ("Softmax", word("axis", "last"), "attribute \"axis\" is STRING, not INT"),
        ("Softmax", int("axes", 1), "the operator has no attribute \"axes\""),
        ("Transpose", ints("perm", &[0, 1, 1, 2]), "axis 1 occurs twice"),
        ("Transpose", ints("perm", &[0, 1]), "attribute \"perm\": [0, 1] does not permute 4 axes"),
        ("Gelu", word("approximate", "cubic"), "attribute \"approximate\": \"cubic\" is neither"),
        ("AveragePool", ints("kernel_shape", &[2, 0]), "attribute \"kernel_shape\": 0 is out of range"),
        ("AveragePool", ints("strides", &[1, 1]), "attribute \"kernel_shape\" is missing"),
        ("DepthToSpace", int("blocksize", 0), "attribute \"blocksize\": 0 is out of range"),
        ("Cast", int("to", 99), "attribute \"to\": the tensor's element type 99"),
        ("LpNormalization", int("p", 3), "attribute \"p\": 3 is neither 1 nor 2"),
    ];
    for (op, attribute, expected) in cases {
        let error = refused(op, attribute);
        assert!(error.starts_with(&format!("node 0 \"n_y\" ({op}): ")) && error.contains(expected), "{error}");
    }
}

/// Left out in silence, it would be a reduction over all axes.
#[test]
fn axes_that_are_an_input_before_their_version_are_invalid() {
    for (op, opset) in [("ReduceMean", 13), ("ReduceMax", 17), ("ReduceSum", 12)] {
        let draft = draft(opset)
            .input("x", &[D::N(2), D::N(3)])
            .input("axes", &[D::N(1)])
            .node(op, &["x", "axes"], &["y"], vec![])
            .output("y");
        let errors = draft.errors();
        assert!(errors.len() == 1 && errors[0].contains("has an input of axes, which came with version"), "{errors:?}");
    }
}

#[test]
fn operands_that_do_not_fit_are_invalid() {
    let sum = |b: &[D]| {
        draft(17)
            .input("a", &[D::N(2), D::N(3)])
            .input("b", b)
            .node("Add", &["a", "b"], &["y"], vec![])
            .output("y")
            .import(&Options::default())
    };
    assert_eq!(sum(&[D::N(4)]).unwrap_err().kind(), ProblemKind::Invalid);
    // What a symbol stands for decides it: the run finds out.
    assert_eq!(output_type(&sum(&[D::S("n")]).unwrap()), "f32[2, 3]");
}

#[test]
fn a_declared_type_that_is_wrong_is_invalid() {
    let errors =
        draft(17).input("x", &[D::N(2)]).node("Relu", &["x"], &["y"], vec![]).output_of("y", DataType::Int64).errors();
    assert_eq!(errors, ["output \"y\" is declared as i64, but is f32"]);
}

//! Dims of inputs, and shapes that models compute from them.

use super::*;

#[test]
fn a_shape_computed_step_by_step_becomes_dims() {
    // The way PyTorch writes x.view(b, s, heads, -1), with a detour through i32.
    let graph = draft(17)
        .input("x", &[D::S("batch"), D::S("seq"), D::N(768)])
        .ints("zero", &[0])
        .ints("one", &[1])
        .ints("tail", &[12, -1])
        .node("Shape", &["x"], &["shape"], vec![])
        .node("Gather", &["shape", "zero"], &["b"], vec![])
        .node("Cast", &["shape"], &["narrow"], vec![int("to", DataType::Int32 as i64)])
        .node("Cast", &["narrow"], &["wide"], vec![int("to", DataType::Int64 as i64)])
        .node("Gather", &["wide", "one"], &["s"], vec![])
        .node("Concat", &["b", "s", "tail"], &["target"], vec![int("axis", 0)])
        .node("Reshape", &["x", "target"], &["y"], vec![])
        .output("y")
        .graph();
    assert_eq!(output_type(&graph), "f32[batch, seq, 12, 64]");
    assert_eq!(graph.nodes().len(), 1, "the shape's nodes are gone:\n{graph}");
}

#[test]
fn expand_to_a_shape_with_minus_ones_replaced() {
    // Where(shape == -1, 1, shape), as exporters of `expand` write it.
    let graph = draft(17)
        .input("x", &[D::N(1), D::S("n")])
        .ints("wanted", &[4])
        .ints("minus", &[-1])
        .ints("ones", &[1, 1])
        .node("Shape", &["x"], &["shape"], vec![int("start", 1)])
        .node("Concat", &["wanted", "shape"], &["all"], vec![int("axis", 0)])
        .node("Equal", &["all", "minus"], &["open"], vec![])
        .node("Where", &["open", "ones", "all"], &["target"], vec![])
        .node("Expand", &["x", "target"], &["y"], vec![])
        .output("y")
        .graph();
    assert_eq!(output_type(&graph), "f32[4, n]");
}

#[test]
fn a_shape_is_a_tensor_where_it_is_used_as_one() {
    let draft = draft(17)
        .input("x", &[D::S("n"), D::N(3)])
        .node("Shape", &["x"], &["shape"], vec![])
        .node("Size", &["x"], &["size"], vec![])
        .node("Mul", &["shape", "size"], &["y"], vec![])
        .output_of("y", DataType::Int64);
    let y = draft.run(&[f32s(&[2, 3], &[0.0; 6])]);
    assert_eq!(y[0].to_i64(), Some(vec![12, 18]));
}

#[test]
fn slices_of_unknown_dims_are_exact_or_refused() {
    let sliced = |start: i64, end: i64, step: i64| {
        draft(17)
            .input("x", &[D::S("n")])
            .ints("start", &[start])
            .ints("end", &[end])
            .ints("axes", &[0])
            .ints("step", &[step])
            .node("Slice", &["x", "start", "end", "axes", "step"], &["y"], vec![])
            .output("y")
            .graph()
    };
    assert_eq!(output_type(&sliced(0, i64::MAX, 1)), "f32[n]");
    assert_eq!(output_type(&sliced(0, -1, 1)), "f32[n - 1]");
    assert_eq!(output_type(&sliced(1, i64::MAX, 1)), "f32[n - 1]");
    assert_eq!(output_type(&sliced(-1, i64::MIN, -1)), "f32[n]");
    assert_eq!(output_type(&sliced(0, i64::MAX, 2)), "f32[floordiv(n + 1, 2)]");
}

#[test]
fn dims_without_names_are_distinct() {
    let model = || {
        draft(17)
            .input("x", &[D::Unknown, D::S("?"), D::N(-1), D::S("i0")])
            .node("Relu", &["x"], &["y"], vec![])
            .output("y")
    };
    assert_eq!(output_type(&model().graph()), "f32[x_0, x_1, x_2, i0_]");
    let mut options = Options::default();
    options.bind.insert("x_1".into(), (7, 7));
    options.bind.insert("i0".into(), (1, 16));
    let graph = model().import(&options).unwrap();
    assert_eq!(output_type(&graph), "f32[x_0, 7, x_2, i0_]");
    assert_eq!(graph.symbols[&kiln_ir::Symbol::new("i0_")], (1, 16));
}

#[test]
fn a_given_shape_binds_the_names_in_it() {
    let model = || {
        draft(17)
            .input("x", &[D::S("n"), D::N(2)])
            .input("z", &[D::S("n"), D::N(1)])
            .node("Add", &["x", "z"], &["y"], vec![])
            .output("y")
    };
    let shapes = |x: &[usize]| Options { shapes: [("x".to_string(), x.to_vec())].into(), ..Options::default() };
    let graph = model().import(&shapes(&[5, 2])).unwrap();
    assert_eq!(graph.ty(graph.inputs[1]).to_string(), "f32[5, 1]");
    assert!(model().import(&shapes(&[5, 3])).unwrap_err().to_string().contains("axis 1 has extent 2, 3 was given"));
    assert!(model().import(&shapes(&[5])).is_err());
}

#[test]
fn values_that_decide_shapes_can_be_given() {
    let model = || {
        draft(17)
            .input("x", &[D::N(6)])
            .input_of("rows", DataType::Int64, &[D::N(1)])
            .ints("open", &[-1])
            .node("Concat", &["rows", "open"], &["shape"], vec![int("axis", 0)])
            .node("Reshape", &["x", "shape"], &["y"], vec![])
            .output("y")
    };
    let errors = model().import(&Options::default()).unwrap_err();
    assert_eq!(errors.values.iter().collect::<Vec<_>>(), ["rows"]);
    assert!(
        errors.to_string().contains("`shape` of \"Reshape\" is computed at run time from input \"rows\""),
        "{errors}"
    );
    let value = |t: Tensor| Options { values: [("rows".to_string(), t)].into(), ..Options::default() };
    let graph = model().import(&value(Tensor::from_i64(&[1], &[2]).unwrap())).unwrap();
    assert_eq!((output_type(&graph).as_str(), graph.inputs.len()), ("f32[2, 3]", 2));
    assert!(model().import(&value(f32s(&[1], &[2.0]))).unwrap_err().to_string().contains("input \"rows\" is i64[1]"));
}

#[test]
fn a_table_of_positions_bounds_the_sequence() {
    // Learned positions: the first `n` of 512 rows are added to `n` rows, which fails beyond 512.
    let graph = draft(17)
        .input("x", &[D::S("n"), D::N(2)])
        .input("table", &[D::N(512), D::N(2)])
        .ints("zero", &[0])
        .ints("axes", &[0])
        .node("Shape", &["x"], &["n"], vec![int("end", 1)])
        .node("Slice", &["table", "zero", "n", "axes"], &["rows"], vec![])
        .node("Add", &["x", "rows"], &["y"], vec![])
        .output("y")
        .graph();
    assert_eq!(output_type(&graph), "f32[n, 2]");
    assert_eq!(graph.symbols[&kiln_ir::Symbol::new("n")], (1, 512));
}

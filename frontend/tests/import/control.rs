//! Control flow and sequences, run by the interpreter of graphs.

use super::*;
use kiln_ir::DType;
use kiln_ir::graph::Definition;
use kiln_ir::interp::limits::{Limits as Allowed, scope};
use std::time::{Duration, Instant};

impl Draft {
    /// An input of the outer kind of type.
    fn input_type(mut self, name: &str, ty: TypeValue) -> Draft {
        let r#type = Some(TypeProto { value: Some(ty), ..Default::default() });
        self.graph.input.push(ValueInfoProto { name: name.into(), r#type, ..Default::default() });
        self
    }

    /// An output of which nothing is declared.
    fn gives(mut self, name: &str) -> Draft {
        self.graph.output.push(ValueInfoProto { name: name.into(), ..Default::default() });
        self
    }

    /// The graph as an attribute.
    fn body(self, name: &str) -> AttributeProto {
        let g = GraphProto { name: name.into(), ..self.graph };
        AttributeProto {
            name: name.into(),
            r#type: AttributeType::Graph as i32,
            g: Some(Box::new(g)),
            ..Default::default()
        }
    }
}

fn floats(dims: &[D]) -> TypeProto {
    let info = Draft::info("", DataType::Float, Some(dims));
    info.r#type.expect("a type")
}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::from_i64(&[values.len()], values).expect("as many")
}

fn number(v: i64) -> Tensor {
    Tensor::from_i64(&[], &[v]).expect("one")
}

fn truth(v: bool) -> Tensor {
    Tensor::new(DType::Bool, vec![], vec![u8::from(v)]).expect("one")
}

#[test]
fn a_branch_is_taken_when_the_graph_runs() {
    let then = draft(17).node("Add", &["x", "x"], &["y"], vec![]).gives("y").body("then_branch");
    let otherwise = draft(17).node("Concat", &["x", "x"], &["z"], vec![int("axis", 0)]).gives("z").body("else_branch");
    let of = |c: bool| {
        draft(17)
            .input_of("c", DataType::Bool, &[])
            .input("x", &[D::S("n")])
            .node("If", &["c"], &["y"], vec![then.clone(), otherwise.clone()])
            // The extent of what came out goes on through shapes.
            .node("Shape", &["y"], &["s"], vec![])
            .output("y")
            .output_of("s", DataType::Int64)
            .run(&[truth(c), f32s(&[2], &[1., 2.])])
    };
    assert_eq!(of(true), [f32s(&[2], &[2., 4.]), i64s(&[2])]);
    assert_eq!(of(false), [f32s(&[4], &[1., 2., 1., 2.]), i64s(&[4])]);
}

/// Doubles `x` while it is below 100, and collects what it was: `count` is the greatest number of steps.
fn doubling() -> Draft {
    let body = draft(17)
        .input_of("i", DataType::Int64, &[])
        .input_of("c", DataType::Bool, &[])
        .input("s", &[])
        .node("Add", &["s", "s"], &["t"], vec![])
        .node("Less", &["t", "limit"], &["go"], vec![])
        .node("Identity", &["s"], &["was"], vec![])
        .gives("go")
        .gives("t")
        .gives("was")
        .body("body");
    draft(17)
        .input_of("count", DataType::Int64, &[])
        .input("x", &[])
        .input("limit", &[])
        .node("Loop", &["count", "", "x"], &["last", "all"], vec![body])
        .output("last")
        .output("all")
}

#[test]
fn a_loop_ends_when_the_data_says() {
    let of = |count: i64| doubling().run(&[number(count), f32s(&[], &[3.]), f32s(&[], &[20.])]);
    assert_eq!(of(100), [f32s(&[], &[24.]), f32s(&[3], &[3., 6., 12.])]);
    assert_eq!(of(2), [f32s(&[], &[12.]), f32s(&[2], &[3., 6.])]);
    assert_eq!(of(0), [f32s(&[], &[3.]), f32s(&[0], &[])]);
}

#[test]
fn a_loop_that_never_ends_is_stopped() {
    let graph = doubling().graph();
    let inputs = [number(i64::MAX), f32s(&[], &[0.]), f32s(&[], &[1.])];
    let soon = Allowed { deadline: Some(Instant::now() + Duration::from_millis(50)), ..Allowed::default() };
    let error = scope(soon, || interp::eval_graph(&graph, &inputs, &interp::Options::default()));
    assert!(error.unwrap_err().to_string().contains("time limit"));
    let options = interp::Options { budget: Some(100_000), ..Default::default() };
    let error = interp::eval_graph(&graph, &inputs, &options).unwrap_err().to_string();
    assert!(error.contains("memory budget"), "{error}");
}

#[test]
fn states_may_grow_and_loops_may_nest() {
    // The inner loop appends the outer step's number as often as that number says.
    let inner = draft(17)
        .input_of("j", DataType::Int64, &[])
        .input_of("d", DataType::Bool, &[])
        .input_of("u", DataType::Int64, &[D::Unknown])
        .node("Unsqueeze", &["i", "zero"], &["one"], vec![])
        .node("Concat", &["u", "one"], &["v"], vec![int("axis", 0)])
        .gives("d")
        .gives("v")
        .body("body");
    let outer = draft(17)
        .input_of("i", DataType::Int64, &[])
        .input_of("c", DataType::Bool, &[])
        .input_of("s", DataType::Int64, &[D::Unknown])
        .ints("zero", &[0])
        .node("Loop", &["i", "", "s"], &["t"], vec![inner])
        .gives("c")
        .gives("t")
        .body("body");
    let graph = draft(17)
        .input_of("count", DataType::Int64, &[])
        .input_of("start", DataType::Int64, &[D::N(1)])
        .node("Loop", &["count", "", "start"], &["all"], vec![outer])
        .output_of("all", DataType::Int64)
        .graph();
    let run = |g: &Graph| interp::eval_graph(g, &[number(4), i64s(&[9])], &interp::Options::default()).unwrap();
    assert_eq!(run(&graph), [i64s(&[9, 1, 2, 2, 3, 3, 3])]);
    // The text form holds it all.
    let again = Graph::parse(&graph.to_string(), &graph.data()).unwrap();
    assert_eq!(run(&again), run(&graph));
}

#[test]
fn large_constants_of_a_body_are_the_outer_graphs() {
    let body = draft(17)
        .input_of("i", DataType::Int64, &[])
        .input_of("c", DataType::Bool, &[])
        .input_of("s", DataType::Int64, &[D::N(40)])
        .ints("forty", &(0..40).collect::<Vec<_>>())
        .node("Add", &["s", "forty"], &["t"], vec![])
        .gives("c")
        .gives("t")
        .body("body");
    let graph = draft(17)
        .input_of("count", DataType::Int64, &[])
        .input_of("x", DataType::Int64, &[D::N(40)])
        .node("Loop", &["count", "", "x"], &["y"], vec![body])
        .output_of("y", DataType::Int64)
        .graph();
    assert!(graph.values().any(|(_, v)| matches!(&v.definition, Definition::Constant(t) if t.len() == 40)));
    let y = interp::eval_graph(&graph, &[number(3), i64s(&[1; 40])], &interp::Options::default()).unwrap();
    assert_eq!(y, [i64s(&(0..40).map(|v| 1 + 3 * v).collect::<Vec<_>>())]);
}

#[test]
fn a_scan_of_any_length() {
    let body = draft(17)
        .input("s", &[])
        .input("x", &[])
        .node("Add", &["s", "x"], &["t"], vec![])
        .node("Identity", &["t"], &["y"], vec![])
        .gives("t")
        .gives("y")
        .body("body");
    let attributes = vec![int("num_scan_inputs", 1), ints("scan_input_directions", &[1]), body];
    let made = draft(17)
        .input("s", &[])
        .input("x", &[D::S("n")])
        .node("Scan", &["s", "x"], &["t", "y"], attributes)
        .output("t")
        .output("y")
        .run(&[f32s(&[], &[0.5]), f32s(&[3], &[1., 2., 4.])]);
    assert_eq!(made, [f32s(&[], &[7.5]), f32s(&[3], &[4.5, 6.5, 7.5])]);
}

#[test]
fn what_the_data_selects_goes_on() {
    // The elements above 0 as one more than they are: positions, a gather, a sum over a length that the data decides.
    let made = draft(17)
        .input("x", &[D::S("n")])
        .node("Relu", &["x"], &["r"], vec![])
        .node("NonZero", &["r"], &["at"], vec![])
        .node("Squeeze", &["at", "axis"], &["places"], vec![])
        .ints("axis", &[0])
        .node("Gather", &["x", "places"], &["picked"], vec![])
        .node("Shape", &["picked"], &["count"], vec![])
        .node("ReduceSum", &["picked"], &["sum"], vec![int("keepdims", 0)])
        .output("picked")
        .output_of("count", DataType::Int64)
        .output("sum")
        .run(&[f32s(&[4], &[1., -1., 0., 5.])]);
    assert_eq!(made, [f32s(&[2], &[1., 5.]), i64s(&[2]), f32s(&[], &[6.])]);
}

#[test]
fn sequences_and_optionals_come_and_go() {
    let ty = TypeValue::SequenceType(Box::new(ElementTypeProto { elem_type: Some(Box::new(floats(&[D::Unknown]))) }));
    let made = draft(17)
        .input_type("s", ty)
        .input_of("at", DataType::Int64, &[])
        .input("x", &[D::N(2)])
        .node("SequenceInsert", &["s", "x", "at"], &["longer"], vec![])
        .node("SequenceLength", &["longer"], &["length"], vec![])
        .node("SequenceAt", &["longer", "at"], &["back"], vec![])
        .node("ConcatFromSequence", &["longer"], &["joined"], vec![int("axis", 0)])
        .node("Optional", &["longer"], &["maybe"], vec![])
        .node("OptionalGetElement", &["maybe"], &["same"], vec![])
        .output_of("length", DataType::Int64)
        .output("back")
        .output("joined")
        .gives("same")
        .run(&[Tensor::from_tensors(vec![f32s(&[1], &[7.]), f32s(&[1], &[8.])]), number(1), f32s(&[2], &[1., 2.])]);
    assert_eq!(made[..3], [number(3), f32s(&[2], &[1., 2.]), f32s(&[4], &[7., 1., 2., 8.])]);
    assert_eq!(made[3].tensors().map(<[Tensor]>::len), Some(3));
}

#[test]
fn what_cannot_be_typed_is_refused_by_name() {
    let then = draft(17).node("Identity", &["x"], &["y"], vec![]).gives("y").body("then_branch");
    let otherwise = draft(17).node("Shape", &["x"], &["z"], vec![]).gives("z").body("else_branch");
    let lines = draft(17)
        .input_of("c", DataType::Bool, &[])
        .input("x", &[D::N(2)])
        .node("If", &["c"], &["y"], vec![then, otherwise])
        .output("y")
        .errors();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("n_y") && lines[0].contains("different types"), "{lines:?}");
}

/// A branch that does not fit the sizes is refused where it is taken, not where it is compiled.
#[test]
fn a_branch_that_does_not_fit_is_refused_when_it_is_taken() {
    let then = draft(17).node("Add", &["x", "two"], &["y"], vec![]).gives("y").body("then_branch");
    let otherwise = draft(17).node("Add", &["x", "three"], &["z"], vec![]).gives("z").body("else_branch");
    let graph = draft(17)
        .input_of("c", DataType::Bool, &[])
        .input("x", &[D::N(2)])
        .input("two", &[D::N(2)])
        .input("three", &[D::N(3)])
        .node("If", &["c"], &["y"], vec![then, otherwise])
        .output("y")
        .graph();
    let inputs = |c: bool| [truth(c), f32s(&[2], &[1., 2.]), f32s(&[2], &[3., 4.]), f32s(&[3], &[0.; 3])];
    let run = |c: bool| interp::eval_graph(&graph, &inputs(c), &interp::Options::default());
    assert_eq!(run(true).unwrap(), [f32s(&[2], &[4., 6.])]);
    let error = run(false).unwrap_err().to_string();
    assert!(error.contains("`else_branch` cannot be taken") && error.contains("broadcast"), "{error}");
}

/// Detection heads make their grids so: as many floats as a free extent says, and padding that a free extent decides.
#[test]
fn free_extents_decide_ranges_and_pads() {
    let mode = |mode: &str| vec![word("mode", mode)];
    let graph = draft(17)
        .input("x", &[D::S("n")])
        .node("Shape", &["x"], &["shape"], vec![])
        .node("Constant", &[], &["zero"], vec![ints("value_ints", &[0])])
        .node("Constant", &[], &["five"], vec![ints("value_ints", &[5])])
        .node("Constant", &[], &["three"], vec![ints("value_ints", &[2, 3])])
        .node("Cast", &["shape"], &["limit"], vec![int("to", DataType::Float as i64)])
        .node("Cast", &["zero"], &["start"], vec![int("to", DataType::Float as i64)])
        .node("Exp", &["start"], &["delta"], vec![])
        .node("Range", &["start", "limit", "delta"], &["range"], vec![])
        .node("Sub", &["five", "shape"], &["missing"], vec![])
        .node("Max", &["missing", "zero"], &["more"], vec![])
        .node("Concat", &["zero", "more"], &["pads"], vec![int("axis", 0)])
        .node("Pad", &["x", "pads"], &["constant"], mode("constant"))
        .node("Pad", &["x", "three"], &["reflect"], mode("reflect"))
        .node("Pad", &["x", "three"], &["edge"], mode("edge"))
        .output("range")
        .output("constant")
        .output("reflect")
        .output("edge")
        .graph();
    let run = |x: &[f32]| interp::eval_graph(&graph, &[f32s(&[x.len()], x)], &interp::Options::default()).unwrap();
    assert_eq!(
        run(&[1., 2., 3., 4.]),
        [
            f32s(&[4], &[0., 1., 2., 3.]),
            f32s(&[5], &[1., 2., 3., 4., 0.]),
            f32s(&[9], &[3., 2., 1., 2., 3., 4., 3., 2., 1.]),
            f32s(&[9], &[1., 1., 1., 2., 3., 4., 4., 4., 4.]),
        ]
    );
    // Shorter than the padding: reflected as often as it takes.
    let short = run(&[1., 2.]);
    assert_eq!(short[1], f32s(&[5], &[1., 2., 0., 0., 0.]));
    assert_eq!(short[2], f32s(&[7], &[1., 2., 1., 2., 1., 2., 1.]));
    assert_eq!(run(&[7.])[2], f32s(&[6], &[7.; 6]));
}

/// PyTorch's `squeeze` of an axis that may be 1: the branch that has one axis less, where the extent is 1.
#[test]
fn a_free_axis_is_squeezed_where_its_extent_is_one() {
    let then = draft(17).node("Squeeze", &["x", "last"], &["y"], vec![]).gives("y").body("then_branch");
    let otherwise = draft(17).node("Identity", &["x"], &["z"], vec![]).gives("z").body("else_branch");
    let graph = draft(17)
        .input("x", &[D::S("b"), D::S("t")])
        .node("Constant", &[], &["last"], vec![ints("value_ints", &[1])])
        .node("Constant", &[], &["one"], vec![ints("value_ints", &[1])])
        .node("Shape", &["x"], &["shape"], vec![])
        .node("Gather", &["shape", "last"], &["t"], vec![])
        .node("Equal", &["t", "one"], &["c"], vec![])
        .node("If", &["c"], &["y"], vec![then, otherwise])
        .node("Neg", &["y"], &["out"], vec![])
        .output("out")
        .graph();
    let run = |t: usize| interp::eval_graph(&graph, &[f32s(&[2, t], &vec![1.; 2 * t])], &interp::Options::default());
    assert_eq!(run(1).unwrap(), [f32s(&[2], &[-1., -1.])]);
    assert!(run(3).is_err());
}

/// Where the other branch might be meant, the number of axes stays the data's business.
#[test]
fn a_branch_that_does_not_rest_on_its_condition_is_not_chosen() {
    let then = draft(17).node("Squeeze", &["x", "last"], &["y"], vec![]).gives("y").body("then_branch");
    let otherwise = draft(17).node("Identity", &["x"], &["z"], vec![]).gives("z").body("else_branch");
    let lines = draft(17)
        .input("x", &[D::S("b"), D::S("t")])
        .node("Constant", &[], &["last"], vec![ints("value_ints", &[1])])
        .node("Constant", &[], &["first"], vec![ints("value_ints", &[0])])
        .node("Constant", &[], &["one"], vec![ints("value_ints", &[1])])
        .node("Shape", &["x"], &["shape"], vec![])
        .node("Gather", &["shape", "first"], &["b"], vec![])
        .node("Equal", &["b", "one"], &["c"], vec![])
        .node("If", &["c"], &["y"], vec![then, otherwise])
        .output("y")
        .errors();
    assert!(lines.iter().any(|l| l.contains("n_y")), "{lines:?}");
}

/// Sequences are as long as there are steps, at most.
#[test]
fn lengths_of_sequences_are_checked() {
    let graph = draft(17)
        .input("x", &[D::S("time"), D::N(2), D::N(1)])
        .input("w", &[D::N(1), D::N(4), D::N(1)])
        .input("r", &[D::N(1), D::N(4), D::N(1)])
        .input_of("lengths", DataType::Int32, &[D::N(2)])
        .node("LSTM", &["x", "w", "r", "", "lengths"], &["y"], vec![int("hidden_size", 1)])
        .output("y")
        .graph();
    let run = |lengths: [i32; 2]| {
        let lengths =
            Tensor::new(DType::I32, vec![2], lengths.iter().flat_map(|l| l.to_le_bytes()).collect::<Vec<_>>());
        let floats = |dims: &[usize]| f32s(dims, &vec![0.5; dims.iter().product()]);
        let inputs = [floats(&[3, 2, 1]), floats(&[1, 4, 1]), floats(&[1, 4, 1]), lengths.unwrap()];
        interp::eval_graph(&graph, &inputs, &interp::Options::default())
    };
    assert!(run([0, 3]).is_ok());
    for wrong in [[1, 4], [-1, 2], [i32::MIN, 0]] {
        let error = run(wrong).unwrap_err().to_string();
        assert!(error.contains("out of range"), "{error}");
    }
}

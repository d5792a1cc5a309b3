//! Values of single operators. The ONNX suite covers most of them; here is what it leaves open.

use super::*;
use proptest::prelude::*;

/// `slice(start, end, step)` of `0..n` as Python does it.
fn python(n: i64, start: i64, end: i64, step: i64) -> Vec<f32> {
    let place = |v: i64, low: i64, high: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(low, high);
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let (mut at, end) = (place(start, low, high), place(end, low, high));
    let mut picked = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        picked.push(at as f32);
        at += step;
    }
    picked
}

proptest! {
    /// Of a known extent, and of a symbol that is bound when the graph runs.
    #[test]
    fn slices_are_pythons(n in 1i64..9, start in -12i64..12, end in -12i64..12, step in -4i64..5) {
        prop_assume!(step != 0);
        for dim in [D::N(n), D::S("n")] {
            let imported = draft(17)
                .input("x", &[dim])
                .ints("start", &[start])
                .ints("end", &[end])
                .ints("axes", &[-1])
                .ints("step", &[step])
                .node("Slice", &["x", "start", "end", "axes", "step"], &["y"], vec![])
                .output("y")
                .import(&Options::default());
            let x = f32s(&[n as usize], &(0..n).map(|v| v as f32).collect::<Vec<_>>());
            let y = interp::eval_graph(&imported.unwrap(), &[x], &interp::Options::default()).unwrap();
            prop_assert_eq!(y[0].to_f32().unwrap(), python(n, start, end, step));
        }
    }
}

/// `ConvTranspose` as it is defined: each element of `x` `[2, h, w]` adds the kernel `[2, 2/groups, kh, kw]` times itself.
fn transposed(
    (x, h, w): (&[f32], i64, i64),
    (kernel, kh, kw): (&[f32], i64, i64),
    groups: usize,
    [stride, dilation, begin, end, more]: [[i64; 2]; 5],
) -> (Vec<usize>, Vec<f32>) {
    let extent =
        |n: usize, d: i64, k: i64| (d - 1) * stride[n] + (k - 1) * dilation[n] + 1 + more[n] - begin[n] - end[n];
    let (rows, columns) = (extent(0, h, kh), extent(1, w, kw));
    let mut y = vec![0.0; (2 * rows * columns) as usize];
    for c in 0..2 {
        for m in 0..2 / groups {
            let out = if groups == 2 { c } else { m };
            for (i, j, s, t) in (0..h)
                .flat_map(|i| (0..w).map(move |j| (i, j)))
                .flat_map(|(i, j)| (0..kh).flat_map(move |s| (0..kw).map(move |t| (i, j, s, t))))
            {
                let (r, q) = (i * stride[0] + s * dilation[0] - begin[0], j * stride[1] + t * dilation[1] - begin[1]);
                if (0..rows).contains(&r) && (0..columns).contains(&q) {
                    let tap = kernel[((c * 2 / groups + m) as i64 * kh * kw + s * kw + t) as usize];
                    y[((out as i64 * rows + r) * columns + q) as usize] +=
                        tap * x[((c as i64 * h + i) * w + j) as usize];
                }
            }
        }
    }
    (vec![1, 2, rows as usize, columns as usize], y)
}

proptest! {
    /// With an extent that is bound when the graph runs; numbers are small integers, so sums are exact.
    #[test]
    fn transposed_convolutions_add_kernels(
        (h, w) in (1i64..5, 1i64..5), (kh, kw) in (1i64..7, 1i64..5), stride in (1i64..4, 1i64..4), dilation in (1i64..3, 1i64..3),
        begin in (0i64..4, 0i64..4), end in (0i64..4, 0i64..4), more in (0i64..3, 0i64..3), groups in 1usize..3,
    ) {
        let pairs = [stride, dilation, begin, end, more].map(|(a, b)| [a, b]);
        prop_assume!(more.0 < stride.0 && more.1 < stride.1);
        let extent = |n: usize, d: i64, k: i64| {
            (d - 1) * pairs[0][n] + (k - 1) * pairs[1][n] + 1 + pairs[4][n] - pairs[2][n] - pairs[3][n]
        };
        prop_assume!(extent(0, h, kh) > 0 && extent(1, w, kw) > 0);
        let x: Vec<f32> = (0..2 * h * w).map(|v| (v % 7 - 3) as f32).collect();
        let kernel: Vec<f32> = (0..4 / groups as i64 * kh * kw).map(|v| (v % 5 - 2) as f32).collect();
        let imported = draft(17)
            .input("x", &[D::N(1), D::N(2), D::S("h"), D::N(w)])
            .input("k", &[D::N(2), D::N(2 / groups as i64), D::N(kh), D::N(kw)])
            .node("ConvTranspose", &["x", "k"], &["y"], vec![
                int("group", groups as i64),
                ints("strides", &pairs[0]),
                ints("dilations", &pairs[1]),
                ints("pads", &[begin.0, begin.1, end.0, end.1]),
                ints("output_padding", &pairs[4]),
            ])
            .output("y")
            .import(&Options::default());
        let (shape, want) = transposed((&x, h, w), (&kernel, kh, kw), groups, pairs);
        let given = [f32s(&[1, 2, h as usize, w as usize], &x), f32s(&[2, 2 / groups, kh as usize, kw as usize], &kernel)];
        let y = interp::eval_graph(&imported.unwrap(), &given, &interp::Options::default()).unwrap();
        prop_assert_eq!(y[0].shape(), shape.as_slice());
        prop_assert_eq!(y[0].to_f32().unwrap(), want);
    }
}

#[test]
fn windows_at_the_end_count_what_is_there() {
    let pool = |attributes: Vec<AttributeProto>| {
        let x = f32s(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let mut all = vec![ints("kernel_shape", &[3]), ints("strides", &[2])];
        all.extend(attributes);
        let y = draft(19)
            .input("x", &[D::N(1), D::N(1), D::N(4)])
            .node("AveragePool", &["x"], &["y"], all)
            .output("y")
            .run(&[x]);
        y[0].to_f32().unwrap()
    };
    assert_eq!(pool(vec![]), [2.0]);
    assert_eq!(pool(vec![int("ceil_mode", 1)]), [2.0, 3.5]);
    assert_eq!(pool(vec![ints("pads", &[1, 1])]), [1.5, 3.0]);
    assert_eq!(pool(vec![ints("pads", &[1, 1]), int("count_include_pad", 1)]), [1.0, 3.0]);
    // Padding that was asked for counts, what only the last window reaches does not.
    assert_eq!(pool(vec![ints("pads", &[1, 0]), int("ceil_mode", 1), int("count_include_pad", 1)]), [1.0, 3.0]);
}

#[test]
fn scans_of_known_length_run_backwards_too() {
    let body = GraphProto {
        node: vec![NodeProto {
            op_type: "Add".into(),
            input: vec!["state".into(), "element".into()],
            output: vec!["sum".into()],
            ..Default::default()
        }],
        input: vec![Draft::info("state", DataType::Float, None), Draft::info("element", DataType::Float, None)],
        output: vec![Draft::info("sum", DataType::Float, None), Draft::info("sum", DataType::Float, None)],
        ..Default::default()
    };
    let body = AttributeProto {
        name: "body".into(),
        r#type: AttributeType::Graph as i32,
        g: Some(Box::new(body)),
        ..Default::default()
    };
    let y = draft(17)
        .input("zero", &[D::N(1)])
        .input("x", &[D::N(3), D::N(1)])
        .node(
            "Scan",
            &["zero", "x"],
            &["last", "sums"],
            vec![body, int("num_scan_inputs", 1), ints("scan_input_directions", &[1])],
        )
        .output("last")
        .output("sums")
        .run(&[f32s(&[1], &[0.0]), f32s(&[3, 1], &[1.0, 2.0, 4.0])]);
    assert_eq!(y[0].to_f32().unwrap(), [7.0]);
    assert_eq!(y[1].to_f32().unwrap(), [4.0, 6.0, 7.0]);
}

#[test]
fn constants_are_computed_at_once() {
    let graph = draft(17)
        .input("x", &[D::N(3)])
        .ints("a", &[1, 2, 3])
        .node("Mul", &["a", "a"], &["squares"], vec![])
        .node("Cast", &["squares"], &["floats"], vec![int("to", DataType::Float as i64)])
        .node("Sqrt", &["floats"], &["roots"], vec![])
        .node("Add", &["x", "roots"], &["y"], vec![])
        .output("y")
        .graph();
    assert_eq!(graph.nodes().len(), 1);
    let y = interp::eval_graph(&graph, &[f32s(&[3], &[0.5; 3])], &interp::Options::default()).unwrap();
    assert_eq!(y[0].to_f32().unwrap(), [1.5, 2.5, 3.5]);
}

#[test]
fn products_broadcast_leading_axes_in_either_operand() {
    let y = draft(17)
        .input("a", &[D::N(2), D::N(1), D::N(1), D::N(2)])
        .input("b", &[D::N(3), D::N(2), D::N(1)])
        .node("MatMul", &["a", "b"], &["y"], vec![])
        .output("y")
        .run(&[f32s(&[2, 1, 1, 2], &[1.0, 10.0, 2.0, 20.0]), f32s(&[3, 2, 1], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
    assert_eq!(y[0].shape(), &[2, 3, 1, 1]);
    assert_eq!(y[0].to_f32().unwrap(), [21.0, 43.0, 65.0, 42.0, 86.0, 130.0]);
}

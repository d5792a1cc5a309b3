//! Graphs with quantization in the way, before and after it is moved: the same bits, and nothing left but integers where that is possible.

use super::regions_of_integers;
use kiln_ir::dtype::DType;
use kiln_ir::graph::Graph;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::tensor::Tensor;

/// What dequantizes and what quantizes a value, with scale and zero point.
fn dequantized(from: &str, to: &str, dtype: &str, dims: &str, [scale, zero]: [&str; 2]) -> String {
    format!(
        "const {to}8 : f32[] = [{scale}f32]\n const {to}9 : {dtype}[] = [{zero}{dtype}]
         {to} = map({from}, {to}8, {to}9) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a2))), a1) }} : f32{dims}\n"
    )
}

fn quantized(from: &str, to: &str, dtype: &str, dims: &str, [scale, zero]: [&str; 2]) -> String {
    let (low, high) = if dtype == "u8" { ("0.0", "255.0") } else { ("-128.0", "127.0") };
    format!(
        "const {to}8 : f32[] = [{scale}f32]\n const {to}9 : {dtype}[] = [{zero}{dtype}]
         {to} = map({from}, {to}8, {to}9)
            body = {{ to_{dtype}(min(max(add(round(div(a0, a1)), to_f32(a2)), {low}f32), {high}f32)) }} : {dtype}{dims}\n"
    )
}

/// The integers of a type, each of them somewhere in inputs of 256 elements or more.
fn integers(dtype: DType, shape: &[usize]) -> Tensor {
    let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|n| (n * 37) as u8).collect();
    Tensor::new(dtype, shape.to_vec(), bytes).unwrap()
}

/// The graph after the pass, which must make the same bits.
fn moved(text: &str) -> Graph {
    let graph = Graph::parse(&format!("graph \"test\" {{\n{text}\n}}"), &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let after = regions_of_integers(&graph).unwrap();
    assert!(after.verify().is_empty(), "{after}");
    let inputs: Vec<Tensor> = graph
        .inputs
        .iter()
        .map(|&v| {
            let ty = graph.ty(v);
            let shape = ty.shape().unwrap();
            match ty.dtype {
                DType::I64 => Tensor::from_i64(&shape, &(0..shape[0] as i64).rev().collect::<Vec<_>>()).unwrap(),
                DType::F32 => {
                    let count: usize = shape.iter().product();
                    let values: Vec<f32> = (0..count).map(|n| ((n * 53) % 401) as f32 * 0.013 - 2.0).collect();
                    Tensor::from_f32(&shape, &values).unwrap()
                }
                dtype => integers(dtype, &shape),
            }
        })
        .collect();
    let run = |g: &Graph| eval_graph(g, &inputs, &Options::default()).unwrap();
    for (expected, found) in run(&graph).iter().zip(&run(&after)) {
        assert_eq!((expected.dtype(), expected.shape()), (found.dtype(), found.shape()));
        assert_eq!(expected.bytes(), found.bytes(), "{after}");
    }
    after
}

/// How many values of f32 nodes make.
fn floats(graph: &Graph) -> usize {
    graph.nodes().flat_map(|(_, n)| &n.outputs).filter(|&&v| graph.ty(v).dtype == DType::F32).count()
}

const LINE: [&str; 2] = ["0.0371", "3"];

/// An op between dequantization and quantization with equal parameters.
fn between(dtype: &str, op: &str, made: &str) -> Graph {
    let from = "[1, 4, 8, 8]";
    let text = format!(
        "input %0 : {dtype}{from}\n input %1 : i64[4]\n{}{op} : f32{made}\n{}output %5 \"y\"",
        dequantized("%0", "%2", dtype, from, LINE),
        quantized("%3", "%5", dtype, made, LINE)
    );
    moved(&text)
}

#[test]
fn what_picks_elements_picks_integers() {
    for dtype in ["u8", "i8"] {
        for (op, made) in [
            ("%3 = reshape(%2) dims = [4, 64]", "[4, 64]"),
            ("%3 = transpose(%2) perm = [0, 2, 3, 1]", "[1, 8, 8, 4]"),
            ("%3 = slice(%2) starts = [0, 1, 7, 0], steps = [1, 2, -1, 3], dims = [1, 2, 8, 2]", "[1, 2, 8, 2]"),
            ("%3 = gather(%2, %1) axis = 1", "[1, 4, 8, 8]"),
            ("%3 = concat(%2, %2) axis = 3", "[1, 4, 8, 16]"),
            ("%3 = broadcast(%2) dims = [3, 4, 8, 8]", "[3, 4, 8, 8]"),
            ("%3 = pool(%2) combine = max, window = [2, 3], strides = [2, 1], dilations = [1, 2]", "[1, 4, 4, 4]"),
            ("%3 = reduce(%2) combine = min, axes = [1, 3], keep = false", "[1, 8]"),
            (
                "%3 = pad(%2) low = [0, 0, 1, 2], high = [0, 0, 0, 1], interior = [0, 0, 1, 0], value = 0.0f32",
                "[1, 4, 16, 11]",
            ),
            ("%3 = map(%2) body = { max(a0, 0.0f32) }", "[1, 4, 8, 8]"),
            ("%3 = map(%2) body = { min(max(a0, -1000.0f32), 1000.0f32) }", "[1, 4, 8, 8]"),
        ] {
            let graph = between(dtype, op, made);
            assert_eq!(floats(&graph), 0, "{graph}");
        }
    }
}

#[test]
fn the_border_of_a_window_may_be_below_all_integers() {
    // The values of f32 of a graph without quantization at its end.
    let pool = |high: usize, rows: usize| {
        let text = format!(
            "input %0 : u8[1, 4, 8, 8]\n{}
             %4 = pad(%2) low = [0, 0, 1, 1], high = [0, 0, {high}, 0], interior = [0, 0, 0, 0], value = minus_inf_f32
             : f32[1, 4, {}, 9]
             %3 = pool(%4) combine = max, window = [3, 3], strides = [2, 2], dilations = [1, 1] : f32[1, 4, {rows}, 4]
             output %3 \"y\"",
            dequantized("%0", "%2", "u8", "[1, 4, 8, 8]", LINE),
            9 + high
        );
        floats(&moved(&text))
    };
    assert_eq!(pool(1, 4), 1);
    // A window that lies in the border is minus infinity, which no integer stands for.
    assert_eq!(pool(4, 6), 3);
}

#[test]
fn what_is_not_exact_stays() {
    // A bound that no integer stands for, other scales, and what computes.
    for op in ["min(a0, 0.1f32)", "mul(a0, a0)", "max(a0, neg(a0))"] {
        assert!(floats(&between("i8", &format!("%3 = map(%2) body = {{ {op} }}"), "[1, 4, 8, 8]")) > 0, "{op}");
    }
    for (scale, zero, same) in [("0.0371", "4", false), ("0.0372", "3", false), ("0.03710001", "3", true)] {
        let text = format!(
            "input %0 : u8[256]\n{}{}output %5 \"y\"",
            dequantized("%0", "%2", "u8", "[256]", LINE),
            quantized("%2", "%5", "u8", "[256]", [scale, zero])
        );
        assert_eq!(floats(&moved(&text)) == 0, same, "{scale} {zero}");
    }
    // Scales that are no numbers, 0 or negative are the map's business.
    for scale in ["0.0", "-0.5", "nan_", "1.0e37"] {
        let text = format!(
            "input %0 : u8[256]\n{}%3 = reshape(%2) dims = [16, 16] : f32[16, 16]\n{}output %5 \"y\"",
            dequantized("%0", "%2", "u8", "[256]", [scale, "3"]),
            quantized("%3", "%5", "u8", "[16, 16]", [scale, "3"])
        );
        assert!(floats(&moved(&text)) > 0, "{scale}");
    }
}

#[test]
fn numbers_are_quantized_before_they_are_moved() {
    let from = "[1, 4, 8, 8]";
    for (op, made) in [
        ("%3 = transpose(%0) perm = [0, 2, 3, 1]", "[1, 8, 8, 4]"),
        ("%3 = pool(%0) combine = max, window = [2, 2], strides = [2, 2], dilations = [1, 1]", "[1, 4, 4, 4]"),
        (
            "%3 = pad(%0) low = [0, 0, 1, 2], high = [0, 0, 0, 1], interior = [0, 0, 0, 0], value = 0.3f32",
            "[1, 4, 9, 11]",
        ),
        ("%3 = concat(%0, %0) axis = 1", "[1, 8, 8, 8]"),
    ] {
        let quantize = quantized("%3", "%5", "u8", made, LINE);
        let graph = moved(&format!("input %0 : f32{from}\n{op} : f32{made}\n{quantize}output %5 \"y\""));
        assert_eq!(floats(&graph), 0, "{graph}");
        // Not where the numbers are read by others too.
        let graph =
            moved(&format!("input %0 : f32{from}\n{op} : f32{made}\n{quantize}output %5 \"y\"\n output %3 \"z\""));
        assert_eq!(floats(&graph), 1, "{graph}");
    }
}

//! Weights of few bits, and tables of them.

use crate::{check, check_graph, parsed, random};
use kiln_ir::graph::Graph;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};
use kiln_passes::pipeline::Precision;
use kiln_passes::rewrite::{activations_in_bytes, canonicalise, has_block_products, products_in_digits};

#[test]
fn weights_of_few_bits_are_unpacked_in_the_product() {
    // Smaller weights would be unpacked at compile time.
    for rows in [1, 3] {
        let c = check(&format!(
            "input %0 : f32[{rows}, 512]\n const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
             %3 = map(%1, %2) body = {{ mul(sub(to_f32(a0), 8.0f32), a1) }} : f32[600, 16, 32]
             %4 = reshape(%3) dims = [600, 512] : f32[600, 512]
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[{rows}, 600]
             output %5 \"y\""
        ));
        assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
        let text = c.kernels[0][0].to_string();
        // Bytes are widened by their loads, a vector of columns at a time.
        assert!(text.contains("i32[1,128,1] = load in1[") || text.contains("i32[1,32,1] = load in1["), "{text}");
        // For one row the scale is read twice for the 32 steps of a block: for their sum, and with the zero point.
        let scales = text.matches("load in2[").count();
        let steps = text.matches("load in1[").count();
        assert!(if rows == 1 { steps == 16 * scales } else { steps == scales }, "{scales} of {steps}: {text}");
    }
}

#[test]
fn one_row_reads_a_weight_of_few_bits_from_two_places_at_once() {
    // Halves of 4 panels of 6 vectors and of 6 panels of 3.
    for (columns, data, panel, bytes) in [(768, 11, 96, false), (768, 11, 96, true), (576, 14, 48, true)] {
        let (scales, bias) = (data + 1, data + 2);
        let graph = parsed(&format!(
            "input %0 : f32[1, 512]\n const %1 : u8[{columns}, 16, 32] = data {data}
             const %2 : f32[{columns}, 16, 1] = data {scales}\n const %8 : f32[{columns}] = data {bias}
             %3 = map(%1, %2) body = {{ mul(sub(to_f32(a0), 8.0f32), a1) }} : f32[{columns}, 16, 32]
             %4 = reshape(%3) dims = [{columns}, 512] : f32[{columns}, 512]
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[1, {columns}]
             %6 = map(%5, %8) body = {{ add(a0, a1) }} : f32[1, {columns}]\n output %6 \"y\""
        ));
        let graph = if bytes { activations_in_bytes(&graph, &|_| true).unwrap() } else { graph };
        let c = check_graph(Precision::F32, graph, &[&[]]);
        let product = c.kernels[0].last().unwrap().to_string();
        let read = |tile: &str| product.contains(&format!("[{tile},{panel},1] = load in"));
        // Rows of floats have no registers to spare for a second place.
        assert!(read("2") == bytes && read("1") != bytes, "{columns} {bytes}: {product}");
    }
}

/// A weight of few bits as a graph's text, with its scales.
const FEW_BITS: &str = "const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
    %3 = map(%1, %2) body = { mul(sub(to_f32(a0), 8.0f32), a1) } : f32[600, 16, 32]
    %4 = reshape(%3) dims = [600, 512] : f32[600, 512]";

#[test]
fn activations_are_rounded_to_bytes_where_that_is_asked_for() {
    for rows in [1i64, 2, 7] {
        let text = format!(
            "input %0 : f32[{rows}, 512]\n {FEW_BITS}
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[{rows}, 600]
             output %5 \"y\""
        );
        let graph = parsed(&text);
        let rounded = activations_in_bytes(&graph, &|_| true).unwrap();
        assert!(has_block_products(&rounded), "{rounded}");
        let x = random(DType::F32, &[rows as usize, 512], 7);
        let found = eval_graph(&rounded, std::slice::from_ref(&x), &Options::default()).unwrap();
        // The same by hand, of rows rounded by hand.
        let constant = |n: usize| graph.constant(graph.nodes().next().unwrap().1.inputs[n]).unwrap().to_f64().unwrap();
        let (numbers, scales) = (constant(0), constant(1));
        let (x, y) = (x.to_f64().unwrap(), found[0].to_f64().unwrap());
        let rounded_row = |row: &[f64]| -> Vec<f64> {
            row.chunks(32)
                .flat_map(|block| {
                    let step = block.iter().fold(0f64, |m, v| m.max(v.abs())) / 127.0;
                    block.iter().map(move |v| (v / step).round_ties_even() * step)
                })
                .collect()
        };
        let (mut worst, mut lost) = (0f64, 0f64);
        for (m, row) in x.chunks(512).enumerate() {
            let near = rounded_row(row);
            for n in 0..600 {
                let weight = |k: usize| (numbers[n * 512 + k] - 8.0) * scales[n * 16 + k / 32];
                let sum = |x: &[f64]| x.iter().enumerate().map(|(k, x)| x * weight(k)).sum::<f64>();
                worst = worst.max((sum(&near) - y[m * 600 + n]).abs());
                lost = lost.max((sum(row) - y[m * 600 + n]).abs());
            }
        }
        let largest = y.iter().fold(0f64, |a, b| a.max(b.abs()));
        // A tie may be rounded to either side.
        assert!(worst < 1e-3 * largest && lost > worst && lost < 0.02 * largest, "{worst} {lost} of {largest}");
        // Rounding, sums and numbers of the rows, and the product.
        assert_eq!(check_graph(Precision::F32, rounded, &[&[]]).kernels[0].len(), 4);
    }
}

/// Weights of 4 bits two a byte, as models have them, in blocks of 32 with a scale for each and so many numbers a row.
fn of_four_bits(rows: i64, columns: i64, blocks: i64) -> (Graph, Vec<f64>) {
    let text = format!(
        "graph \"g\" {{ input %0 : f32[{rows}, {k}]\n const %1 : u8[{columns}, {blocks}, 1, 16] = data 0
         const %2 : i32[2, 1] = [0i32, 4i32]\n const %3 : f16[{columns}, {blocks}, 1] = data 1
         %4 = map(%1, %2) body = {{ and(shr(to_i32(a0), a1), 15i32) }} : i32[{columns}, {blocks}, 2, 16]
         %5 = reshape(%4) dims = [{columns}, {blocks}, 32] : i32[{columns}, {blocks}, 32]
         %6 = map(%5, %3) body = {{ mul(sub(to_f32(a0), 8.0f32), to_f32(a1)) }} : f32[{columns}, {blocks}, 32]
         %7 = reshape(%0) dims = [{rows}, {blocks}, 32] : f32[{rows}, {blocks}, 32]
         %8 = contract(%7, %6) lhs = \"yab\", rhs = \"xab\", out = \"yx\" : f32[{rows}, {columns}]\n output %8 \"y\" }}",
        k = 32 * blocks
    );
    let (columns, blocks) = (columns as usize, blocks as usize);
    let packed = random(DType::U8, &[columns, blocks, 1, 16], 3);
    let scales = random(DType::F16, &[columns, blocks, 1], 4);
    let (bytes, floats) = (packed.bytes().to_vec(), scales.to_f64().unwrap());
    let weight = (0..columns * blocks * 32).map(|n| {
        let (block, k) = (n / 32, n % 32);
        let byte = bytes[block * 16 + k % 16];
        (f64::from(byte >> (4 * (k / 16)) & 15) - 8.0) * floats[block]
    });
    let weight = weight.collect();
    (Graph::parse(&text, &[packed, scales]).unwrap(), weight)
}

#[test]
fn one_row_of_f32_meets_four_bits_in_three_bytes_a_number() {
    for (rows, columns, blocks) in [(1i64, 576, 16), (1, 256, 8), (1, 601, 7), (3, 576, 16), (3, 601, 7)] {
        let (graph, weight) = of_four_bits(rows, columns, blocks);
        let digits = products_in_digits(&graph).unwrap();
        let form = if rows == 1 { "bytes = 3" } else { "bytes = 0" };
        assert!(digits.to_string().contains(form), "{digits}");
        // Numbers of many sizes, and a block of zeros.
        let k = 32 * blocks as usize;
        let mut x = random(DType::F32, &[rows as usize, k], 9).to_f64().unwrap();
        x.iter_mut().enumerate().for_each(|(n, x)| *x *= if n % k < 32 { 0.0 } else { 10f64.powi(-((n % 5) as i32)) });
        let x: Vec<f32> = x.into_iter().map(|x| x as f32).collect();
        let given = Tensor::from_f32(&[rows as usize, k], &x).unwrap();
        let [plain, found] = [&graph, &digits].map(|g| {
            let y = eval_graph(g, std::slice::from_ref(&given), &Options::default()).unwrap();
            y[0].to_f64().unwrap()
        });
        let exact = (0..rows as usize * columns as usize).map(|n| {
            let (row, column) = (n / columns as usize, n % columns as usize);
            (0..k).map(|i| f64::from(x[row * k + i]) * weight[column * k + i]).sum::<f64>()
        });
        let exact: Vec<f64> = exact.collect();
        let rms = |y: &[f64]| y.iter().zip(&exact).map(|(y, e)| (y - e).powi(2)).sum::<f64>().sqrt();
        let (plain, found) = (rms(&plain), rms(&found));
        // The interpreter adds up products of numbers that are 8 too large; without the third byte it would be a hundred times as much.
        assert!(found <= 4.0 * plain, "{found} where sums of f32 have {plain}");
        let c = check_graph(Precision::F32, digits, &[&[]]);
        // Two places of three vectors, for one row whose columns are made of such panels.
        let product = c.kernels[0].last().unwrap().to_string();
        assert_eq!(product.contains("[2,48,1] = load in3["), (rows, columns) == (1, 576), "{product}");
    }
}

#[test]
fn what_is_not_finite_is_no_number_afterwards() {
    let (graph, _) = of_four_bits(1, 256, 8);
    let digits = products_in_digits(&graph).unwrap();
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let mut x = vec![1f32; 256];
        x[77] = bad;
        let y = eval_graph(&digits, &[Tensor::from_f32(&[1, 256], &x).unwrap()], &Options::default()).unwrap();
        assert!(y[0].to_f64().unwrap().iter().all(|y| y.is_nan()), "{bad}");
    }
}

#[test]
fn weights_that_would_take_more_bytes_stay_as_they_are() {
    // A small one, and one of numbers of 2 bits, four a byte.
    let (graph, _) = of_four_bits(1, 16, 8);
    assert!(!products_in_digits(&graph).unwrap().to_string().contains("block_product"));
    let text = "graph \"g\" { input %0 : f32[1, 256]\n const %1 : u8[600, 8, 1, 8] = data 0
         const %2 : i32[4, 1] = [0i32, 2i32, 4i32, 6i32]\n const %3 : f16[600, 8, 1] = data 1
         %4 = map(%1, %2) body = { and(shr(to_i32(a0), a1), 3i32) } : i32[600, 8, 4, 8]
         %5 = reshape(%4) dims = [600, 8, 32] : i32[600, 8, 32]
         %6 = map(%5, %3) body = { mul(sub(to_f32(a0), 2.0f32), to_f32(a1)) } : f32[600, 8, 32]
         %7 = reshape(%0) dims = [1, 8, 32] : f32[1, 8, 32]
         %8 = contract(%7, %6) lhs = \"yab\", rhs = \"xab\", out = \"yx\" : f32[1, 600]\n output %8 \"y\" }";
    let data = [random(DType::U8, &[600, 8, 1, 8], 3), random(DType::F16, &[600, 8, 1], 4)];
    let graph = Graph::parse(text, &data).unwrap();
    assert!(!products_in_digits(&graph).unwrap().to_string().contains("block_product"));
}

#[test]
fn rows_of_a_table_are_picked_from_what_the_product_reads() {
    let text = format!(
        "input %0 : f32[3, 512]\n input %6 : i64[2]\n {FEW_BITS}
         %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[3, 600]
         %7 = gather(%1, %6) axis = 0 : u8[2, 16, 32]\n output %5 \"y\"\n output %7 \"rows\""
    );
    // Numbers of 8 bits; those of 4 are two a byte in the product, and one each in the table.
    let mut graph = parsed(&text.replace("8.0f32", "200.0f32"));
    let table = graph.nodes().next().unwrap().1.inputs[0];
    let wide: Vec<u8> =
        graph.constant(table).unwrap().bytes().iter().enumerate().map(|(n, b)| b + (n % 99) as u8).collect();
    let wide = graph.add_constant(Tensor::new(DType::U8, vec![600, 16, 32], wide).unwrap());
    graph.replace(table, wide);
    let rounded = activations_in_bytes(&graph.compact().unwrap(), &|_| true).unwrap();
    let constants = rounded.values().filter_map(|(v, _)| rounded.constant(v));
    assert_eq!(constants.filter(|c| c.bytes().len() == 600 * 512).count(), 1, "{rounded}");
    check_graph(Precision::F32, rounded, &[&[]]);
}

#[test]
fn products_of_the_same_rows_become_one() {
    // Two that have one number for 0, and one with least values of its own.
    let weight = |n: usize, (columns, data): (usize, usize), body: &str| {
        let scales = data + 1;
        format!(
            "const %{n}0 : u8[{columns}, 16, 32] = data {data}\n const %{n}1 : f32[{columns}, 16, 1] = data {scales}
             %{n}2 = map(%{n}0, %{n}1) body = {{ {body} }} : f32[{columns}, 16, 32]
             %{n}3 = reshape(%{n}2) dims = [{columns}, 512] : f32[{columns}, 512]
             %{n}4 = contract(%0, %{n}3) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[ROWS, {columns}]
             output %{n}4 \"y{n}\"\n"
        )
    };
    let moved = "mul(sub(to_f32(a0), 8.0f32), a1)";
    let forms = [((576, 14), moved), ((768, 11), "add(mul(to_f32(a0), a1), a1)"), ((600, 4), moved)];
    for rows in [1, 2] {
        let weights: String = forms.iter().enumerate().map(|(n, (of, body))| weight(n + 5, *of, body)).collect();
        let text = format!("input %0 : f32[ROWS, 512]\n {weights}").replace("ROWS", &rows.to_string());
        let rounded = activations_in_bytes(&parsed(&text), &|_| true).unwrap();
        assert_eq!(rounded.to_string().matches("= block_product").count(), 2, "{rounded}");
        assert_eq!(rounded.to_string().matches("zero = 8").count(), 1, "{rounded}");
        // Not alone, and not with others: what each of them is by itself.
        let x = random(DType::F32, &[rows, 512], 9);
        let together = eval_graph(&rounded, std::slice::from_ref(&x), &Options::default()).unwrap();
        for (n, (of, body)) in forms.iter().enumerate() {
            let one = format!("input %0 : f32[ROWS, 512]\n {}", weight(n + 5, *of, body));
            let one = activations_in_bytes(&parsed(&one.replace("ROWS", &rows.to_string())), &|_| true).unwrap();
            let alone = eval_graph(&one, std::slice::from_ref(&x), &Options::default()).unwrap();
            assert_eq!(alone[0], together[n], "product {n} of {rows} rows");
        }
        check_graph(Precision::F32, rounded, &[&[]]);
    }
}

#[test]
fn weights_without_blocks_keep_their_activations() {
    let text = "input %0 : f32[3, 512]\n const %1 : u8[600, 16, 32] = data 4
        %2 = map(%1) body = { mul(to_f32(a0), to_f32(a0)) } : f32[600, 16, 32]
        %4 = reshape(%2) dims = [600, 512] : f32[600, 512]
        %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[3, 600]\n output %5 \"y\"";
    assert!(!has_block_products(&activations_in_bytes(&parsed(text), &|_| true).unwrap()));
}

/// What fills up the last block of a row meets zeros, so that the weight is read as it lies.
#[test]
fn rows_that_end_inside_a_block_are_read_whole() {
    for (rows, scale) in [(1, ""), (3, ""), (1, "1e38f32")] {
        // A scale that leaves the range of f32 would make NaNs of zeros.
        let scaled = if scale.is_empty() { "a1".into() } else { format!("mul(a1, {scale})") };
        let text = format!(
            "input %0 : f32[{rows}, 500]\n const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
             %3 = map(%1, %2) body = {{ mul(sub(to_f32(a0), 8.0f32), {scaled}) }} : f32[600, 16, 32]
             %4 = reshape(%3) dims = [600, 512] : f32[600, 512]
             %5 = slice(%4) starts = [0, 0], steps = [1, 1], dims = [600, 500] : f32[600, 500]
             %6 = contract(%0, %5) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[{rows}, 600]
             output %6 \"y\""
        );
        let whole = canonicalise(&parsed(&text)).unwrap().to_string();
        assert_eq!(whole.contains("= pad("), scale.is_empty(), "{whole}");
        assert_eq!(whole.contains("= slice("), !scale.is_empty(), "{whole}");
        if scale.is_empty() {
            check_graph(Precision::F32, parsed(&text), &[&[]]);
            let rounded = activations_in_bytes(&parsed(&text), &|_| true).unwrap();
            assert!(has_block_products(&rounded), "{rounded}");
            check_graph(Precision::F32, rounded, &[&[]]);
        }
    }
}

/// Weights `[K, N]` with a scale for each column, and columns that no block divides.
#[test]
fn activations_are_rounded_for_weights_that_lie_by_rows() {
    for (k, scale) in [(32, "f32[30]"), (29, "f32[30]"), (40, "f32[]")] {
        let graph = |turned: bool| {
            let bytes = random(DType::I8, &[k, 30], 3);
            let scales = random(DType::F32, if scale == "f32[]" { &[] } else { &[30] }, 5);
            let (weight, dims, rhs) = if turned {
                (format!("%3 = transpose(%4) perm = [1, 0] : f32[30, {k}]"), format!("f32[{k}, 30]"), "nk")
            } else {
                (String::new(), format!("f32[{k}, 30]"), "kn")
            };
            let read = if turned { 3 } else { 4 };
            let text = format!(
                "graph \"g\" {{ input %0 : f32[2, {k}]\n const %1 : i8[{k}, 30] = data 0\n const %2 : {scale} = data 1
                 %4 = map(%1, %2) body = {{ mul(to_f32(a0), a1) }} : {dims}\n {weight}
                 %5 = contract(%0, %{read}) lhs = \"mk\", rhs = \"{rhs}\", out = \"mn\" : f32[2, 30]\n output %5 \"y\" }}"
            );
            Graph::parse(&text, &[bytes, scales]).unwrap()
        };
        let x = random(DType::F32, &[2, k], 7);
        let exact = eval_graph(&graph(false), std::slice::from_ref(&x), &Options::default()).unwrap();
        for turned in [false, true] {
            let rounded = activations_in_bytes(&graph(turned), &|_| true).unwrap();
            assert!(has_block_products(&rounded), "{rounded}");
            let near = eval_graph(&rounded, std::slice::from_ref(&x), &Options::default()).unwrap();
            let (a, b) = (exact[0].to_f64().unwrap(), near[0].to_f64().unwrap());
            let largest = a.iter().fold(0f64, |m, v| m.max(v.abs()));
            let far = a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(far > 0.0 && far < 0.02 * largest, "{far} of {largest}");
            check_graph(Precision::F32, rounded, &[&[]]);
        }
        assert!(!has_block_products(&activations_in_bytes(&graph(false), &|_| false).unwrap()));
    }
}

/// The numbers and scales of a table, and what they stand for.
const TABLE: &str = "const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
    %3 = map(%1, %2) body = { mul(sub(to_f32(a0), 8.0f32), a1) } : f32[600, 16, 32]";

#[test]
fn what_is_picked_from_a_table_is_all_that_is_unpacked() {
    for (axis, most, dims) in [(0, 255, "2, 3, 16, 32"), (2, 31, "600, 16, 2, 3")] {
        let c = check(&format!(
            "input %0 : u8[2, 3]\n {TABLE}\n %4 = map(%0) body = {{ min(a0, {most}u8) }} : u8[2, 3]
             %5 = gather(%3, %4) axis = {axis} : f32[{dims}]\n output %5 \"y\""
        ));
        let unpacked = 4 * 600 * 16 * 32;
        assert!(c.plan.arena_bytes < unpacked, "axis {axis}: {} bytes\n{}", c.plan.arena_bytes, c.plan);
    }
}

#[test]
fn what_constants_alone_make_is_made_once() {
    let c = check(&format!(
        "input %0 : f32[5, 600]\n {TABLE}
         %4 = reduce(%3) combine = max, axes = [1, 2], keep = false : f32[600]
         %5 = contract(%0, %4) lhs = \"mk\", rhs = \"k\", out = \"m\" : f32[5]\n output %5 \"y\""
    ));
    assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
    assert!(c.weights.iter().all(|w| w.tensor.shape() == [600]), "{}", c.plan);
}

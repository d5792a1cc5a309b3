//! Numbers of few bits in blocks, and scales that leave no number.

use super::*;

fn raw(name: &str, data_type: DataType, dims: &[i64], raw: Vec<u8>) -> TensorProto {
    let data_type = data_type as i32;
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type, raw_data: Some(raw.into()), ..Default::default() }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    raw(name, DataType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Numbers of `bits` each, the first in the lowest bits.
fn packed(numbers: &[i64], bits: u32) -> Vec<u8> {
    let mask = u8::MAX >> (8 - bits);
    let byte =
        |part: &[i64]| part.iter().rev().fold(0u8, |byte, &n| byte.checked_shl(bits).unwrap_or(0) | (n as u8 & mask));
    numbers.chunks(8 / bits as usize).map(byte).collect()
}

fn with(mut draft: Draft, tensors: Vec<TensorProto>) -> Draft {
    draft.graph.initializer.extend(tensors);
    draft
}

/// `DequantizeLinear` of a constant matrix in blocks along either axis, as it is and as a factor of a product.
#[test]
fn blocks_of_few_bits_mean_what_their_numbers_say() {
    let small = [(DataType::Int4, 4, -8), (DataType::Uint4, 4, 0), (DataType::Int2, 2, -2), (DataType::Uint2, 2, 0)];
    let kinds = small.into_iter().chain([(DataType::Int8, 8, -128), (DataType::Uint8, 8, 0)]);
    // Of blocks of a multiple of 8 two numbers of 4 bits or four of 2 are stored in a byte, and what blocks do not divide is filled up; a block of 0 is a scale for
    // each row or column.
    let sizes = [
        (8usize, 12usize, 4usize),
        (64, 64, 32),
        (128, 128, 64),
        (64, 96, 0),
        (64, 96, 16),
        (48, 72, 24),
        (72, 72, 32),
        (40, 56, 0),
    ];
    for ((data_type, bits, least), (rows, columns, block)) in kinds.flat_map(|k| sizes.map(|s| (k, s))) {
        for (axis, with_zeros) in [(0, false), (0, true), (1, false), (1, true), (-1, true)] {
            let along_rows = axis == 0;
            let per_block = match (block, along_rows) {
                (0, true) => vec![rows],
                (0, false) => vec![columns],
                (_, true) => vec![rows.div_ceil(block), columns],
                (_, false) => vec![rows, columns.div_ceil(block)],
            };
            let count = 1i64 << bits;
            let number = |n: usize, by: usize| least + ((n * by + n / 5) as i64) % count;
            let numbers: Vec<i64> = (0..rows * columns).map(|n| number(n, 7)).collect();
            let blocks: usize = per_block.iter().product();
            let scales: Vec<f32> = (0..blocks).map(|n| 0.25 + n as f32 / 8.0).collect();
            let zeros: Vec<i64> = (0..blocks).map(|n| number(n, 3)).collect();
            let at = |r: usize, c: usize| match (block, along_rows) {
                (0, true) => r,
                (0, false) => c,
                (_, true) => r / block * columns + c,
                (_, false) => r * columns.div_ceil(block) + c / block,
            };
            let mut want = Vec::new();
            for r in 0..rows {
                for c in 0..columns {
                    let zero = if with_zeros { zeros[at(r, c)] } else { 0 };
                    want.push((numbers[r * columns + c] - zero) as f32 * scales[at(r, c)]);
                }
            }
            let dims = [rows as i64, columns as i64];
            let dims_of_blocks: Vec<i64> = per_block.iter().map(|&d| d as i64).collect();
            let mut tensors =
                vec![raw("w", data_type, &dims, packed(&numbers, bits)), floats("s", &dims_of_blocks, &scales)];
            if with_zeros {
                tensors.push(raw("z", data_type, &dims_of_blocks, packed(&zeros, bits)));
            }
            let inputs: &[&str] = if with_zeros { &["w", "s", "z"] } else { &["w", "s"] };
            let mut attributes = vec![int("axis", axis)];
            attributes.extend((block > 0).then(|| int("block_size", block as i64)));
            let draft = with(draft(25), tensors)
                .input("x", &[D::N(1), D::N(rows as i64)])
                .node("DequantizeLinear", inputs, &["values"], attributes)
                .node("MatMul", &["x", "values"], &["y"], vec![])
                .output("y")
                .output("values");
            let x: Vec<f32> = (0..rows).map(|n| (n % 7) as f32 - 3.0).collect();
            let graph = draft.graph();
            let stored = graph.values().filter_map(|(id, _)| graph.constant(id)).map(|t| t.bytes().len()).max();
            let along = if (block > 0) == along_rows { rows } else { columns };
            let each = if block == 0 { along.next_multiple_of(32) } else { block };
            let whole = match (bits, block) {
                (8, 0) => rows * columns,
                _ => rows * columns / along * along.next_multiple_of(each),
            };
            let each = if block == 4 { 1 } else { 8 / bits };
            assert_eq!(stored, Some(whole / each as usize), "{data_type:?} along {axis} by {block}");
            let run = interp::eval_graph(&graph, &[f32s(&[1, rows], &x)], &interp::Options::default());
            let made = run.expect("a graph that runs");
            assert_eq!(made[1].to_f32().unwrap(), want, "{data_type:?} along {axis}");
            let product = |c: usize| (0..rows).map(|r| x[r] * want[r * columns + c]).sum::<f32>();
            let product: Vec<f32> = (0..columns).map(product).collect();
            let far = made[0].to_f32().unwrap().iter().zip(&product).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            let largest = product.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(far <= 1e-6 * largest, "{data_type:?} along {axis} by {block}: {far} of {largest}");
        }
    }
}

/// `MatMulNBits` and `GatherBlockQuantized` of the same table: an embedding that is the last layer too.
#[test]
fn a_table_of_few_bits_is_multiplied_with_and_picked_from() {
    let (rows, columns) = (6usize, 64usize);
    for block in [4usize, 8, 16, 32, 64] {
        let numbers: Vec<i64> = (0..rows * columns).map(|n| ((n * 7 + n / 5) % 16) as i64).collect();
        let scales: Vec<f32> = (0..rows * columns / block).map(|n| 0.25 + n as f32 / 8.0).collect();
        let want: Vec<f32> = numbers.iter().enumerate().map(|(n, v)| (v - 8) as f32 * scales[n / block]).collect();
        let blocks = (columns / block) as i64;
        let (n, bytes) = (rows as i64, packed(&numbers, 4));
        let size = int("block_size", block as i64);
        let product = vec![int("K", columns as i64), int("N", n), int("bits", 4), size.clone()];
        let tensors = vec![
            raw("w", DataType::Uint8, &[n, blocks, block as i64 / 2], bytes.clone()),
            raw("t", DataType::Uint8, &[n, columns as i64 / 2], bytes),
            floats("s", &[n, blocks], &scales),
        ];
        let draft = with(draft(21), tensors)
            .input("x", &[D::N(2), D::N(columns as i64)])
            .input_of("at", DataType::Int64, &[D::N(1), D::N(3)])
            .node("MatMulNBits", &["x", "w", "s"], &["y"], product)
            .of_microsoft()
            .node(
                "GatherBlockQuantized",
                &["t", "at", "s"],
                &["rows"],
                vec![int("bits", 4), size, int("quantize_axis", 1)],
            )
            .of_microsoft()
            .output("y")
            .output("rows");
        let x: Vec<f32> = (0..2 * columns).map(|n| (n % 7) as f32 - 3.0).collect();
        let graph = draft.graph();
        let largest = graph.values().filter_map(|(id, _)| graph.constant(id)).map(|t| t.bytes().len()).max();
        assert_eq!(largest, Some(rows * columns / if block == 4 { 1 } else { 2 }), "{block}");
        let inputs = [f32s(&[2, columns], &x), Tensor::from_i64(&[1, 3], &[5, 0, 3]).unwrap()];
        let made = interp::eval_graph(&graph, &inputs, &interp::Options::default()).expect("a graph that runs");
        let picked = [5, 0, 3].map(|r| want[r * columns..(r + 1) * columns].to_vec()).concat();
        assert_eq!((made[1].shape(), made[1].to_f32().unwrap()), ([1, 3, columns].as_slice(), picked), "{block}");
        let element = |n: usize| -> f32 {
            let (row, column) = (n / rows, n % rows);
            (0..columns).map(|k| x[row * columns + k] * want[column * columns + k]).sum()
        };
        for (n, got) in made[0].to_f32().unwrap().into_iter().enumerate() {
            assert!((got - element(n)).abs() <= 1e-3, "{block}: {got} and not {}", element(n));
        }
    }
}

/// One scale for a matrix of 4 bits, and rows of a product that blocks do not divide.
#[test]
fn one_scale_and_parts_of_blocks_keep_two_numbers_a_byte() {
    let (k, n) = (72usize, 40usize);
    let numbers: Vec<i64> = (0..k * n).map(|i| ((i * 7 + i / 5) % 16) as i64).collect();
    let x: Vec<f32> = (0..k).map(|i| (i % 7) as f32 - 3.0).collect();
    let largest = |graph: &Graph| graph.values().filter_map(|(v, _)| graph.constant(v)).map(|t| t.bytes().len()).max();
    let run = |draft: Draft| {
        let graph = draft.graph();
        assert_eq!(largest(&graph), Some(96 * n / 2));
        let made = interp::eval_graph(&graph, &[f32s(&[1, k], &x)], &interp::Options::default());
        made.expect("a graph that runs")[0].to_f32().unwrap()
    };
    let product = |weight: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..n).map(|c| (0..k).map(|r| x[r] * weight(r, c)).sum()).collect()
    };
    let near = |found: &[f32], want: &[f32]| {
        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        found.iter().zip(want).all(|(a, b)| (a - b).abs() <= 1e-6 * most)
    };
    for dims in [vec![], vec![1]] {
        let zero = raw("z", DataType::Uint4, &dims, packed(&[5], 4));
        let weight = raw("w", DataType::Uint4, &[k as i64, n as i64], packed(&numbers, 4));
        let draft = with(draft(25), vec![weight, floats("s", &dims, &[0.25]), zero])
            .input("x", &[D::N(1), D::N(k as i64)])
            .node("DequantizeLinear", &["w", "s", "z"], &["values"], vec![])
            .node("MatMul", &["x", "values"], &["y"], vec![])
            .output("y");
        assert!(near(&run(draft), &product(&|r, c| (numbers[r * n + c] - 5) as f32 * 0.25)), "{dims:?}");
    }
    // Rows of 72 in blocks of 32; what is behind them is no zero.
    let filled: Vec<i64> = (0..n * 96).map(|i| if i % 96 < k { numbers[i / 96 * k + i % 96] } else { 15 }).collect();
    let scales: Vec<f32> = (0..n * 3).map(|i| 0.25 + i as f32 / 8.0).collect();
    let attributes = vec![int("K", k as i64), int("N", n as i64), int("bits", 4), int("block_size", 32)];
    let tensors =
        vec![raw("w", DataType::Uint8, &[n as i64, 3, 16], packed(&filled, 4)), floats("s", &[n as i64, 3], &scales)];
    let draft = with(draft(21), tensors)
        .input("x", &[D::N(1), D::N(k as i64)])
        .node("MatMulNBits", &["x", "w", "s"], &["y"], attributes)
        .of_microsoft()
        .output("y");
    assert!(near(&run(draft), &product(&|r, c| (numbers[c * k + r] - 8) as f32 * scales[c * 3 + r / 32])));
}

#[test]
fn scales_that_leave_no_number_are_refused() {
    let import = |op: &str, inputs: &[&str], dtype: DataType, scale: f32| {
        let zero = raw("z", DataType::Uint8, &[], vec![3]);
        let other = floats("t", &[], &[0.5]);
        with(draft(21), vec![floats("s", &[], &[scale]), zero, other])
            .input_of("x", dtype, &[D::N(2), D::N(2)])
            .node(op, inputs, &["y"], vec![])
            .output_of("y", if op == "DequantizeLinear" { DataType::Float } else { DataType::Uint8 })
            .import(&Options::default())
    };
    let quantize = |scale| import("QuantizeLinear", &["x", "s", "z"], DataType::Float, scale);
    let dequantize = |scale| import("DequantizeLinear", &["x", "s", "z"], DataType::Uint8, scale);
    let product = |scale| import("QLinearMatMul", &["x", "t", "z", "x", "t", "z", "s", "z"], DataType::Uint8, scale);
    let read = |scale| import("QLinearMatMul", &["x", "s", "z", "x", "t", "z", "t", "z"], DataType::Uint8, scale);
    for scale in [f32::NAN, f32::INFINITY] {
        for made in [quantize(scale), dequantize(scale), product(scale), read(scale)] {
            let said = made.unwrap_err().to_string();
            assert!(said.contains("a scale is") && said.contains("finite"), "{scale}: {said}");
        }
    }
    // Nothing can be divided by zero, and what is divided by less is upside down; multiplied by, they are numbers like others.
    for made in [quantize(0.0), product(0.0), quantize(-0.5), product(-0.5)] {
        assert!(made.unwrap_err().to_string().contains("greater than 0"));
    }
    for made in [dequantize(0.0), read(0.0), dequantize(-0.5), read(-0.5), quantize(0.5), product(0.5)] {
        made.unwrap();
    }
}

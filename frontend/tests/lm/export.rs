//! Models of families as ONNX: what is read back computes what the graph does.

use crate::encoders::family;
use crate::{Fixture, check_close};
use kiln_frontend::builder::Builder;
use kiln_frontend::checkpoint::Loader;
use kiln_frontend::families::Wanted;
use kiln_frontend::families::{Decoder, Extent, Form, Past, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_frontend::onnx::export::{ExportError, export};
use kiln_frontend::onnx::import::{self, import};
use kiln_frontend::onnx::model::{Limits, load};
use kiln_frontend::onnx::write::encode;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::ops::Pack;
use kiln_ir::{DType, Graph, Tensor, TensorType};

/// The graph of the model's bytes, and the names of its `MatMul`s.
fn through_bytes(graph: &Graph) -> (Graph, Vec<String>) {
    let bytes = encode(&export(graph).unwrap(), ("test", "1")).unwrap();
    let none = |name: &str| Err(format!("there is no {name}"));
    let model = load(bytes.into(), &none, &Limits::default()).unwrap();
    let products = model.graph.nodes.iter().filter(|n| n.op_type == "MatMul").map(|n| n.name.clone()).collect();
    // A file has no place for bounds of free dims.
    let bind = graph.symbols.iter().map(|(symbol, &range)| (symbol.name().to_string(), range)).collect();
    (import(&model, &import::Options { bind, ..import::Options::default() }).unwrap(), products)
}

#[track_caller]
fn check_same(name: &str, graph: &Graph, again: &Graph, inputs: &[Tensor]) {
    let names = |g: &Graph| g.inputs.iter().map(|&v| g.value(v).name.clone()).collect::<Vec<_>>();
    assert_eq!(names(graph), names(again), "{name}");
    let (want, got) = [graph, again].map(|g| eval_graph(g, inputs, &Options::default()).unwrap()).into();
    for (((output, _), want), got) in graph.outputs.iter().zip(&want).zip(&got) {
        assert_eq!(want.shape(), got.shape(), "{name} {output}");
        check_close(&format!("{name} {output}"), &got.to_f32().unwrap(), &want.to_f32().unwrap(), 1e-6);
    }
}

#[test]
fn decoders_with_a_past_of_any_length() {
    for name in ["llama", "gpt2", "qwen2"] {
        let fixture = Fixture::new(name);
        let folder = fixture.folder();
        let decoder = Decoder::from_json(&Settings::json("config.json", &folder.config)).unwrap();
        let form = Form {
            batch: 1,
            tokens: Extent::Free,
            past: Past::Prefix(Extent::Free),
            capacity: 16,
            logits: Logits::All,
            cache: CacheElement::F32,
        };
        let graph = decoder.graph(&Loader::new(&folder.weights), &form).unwrap();
        let (again, products) = through_bytes(&graph);
        assert!(products.iter().any(|p| p.contains("mlp")), "{products:?}");
        for (tokens, past) in [(5, 0), (3, 4), (1, 9)] {
            let input = |(n, id): (usize, &_)| {
                let TensorType { dtype, dims, .. } = graph.ty(*id);
                let size = |d: &kiln_ir::Expr| match d.as_symbol().map(|s| s.name()) {
                    Some("tokens") => tokens,
                    Some(_) => past,
                    None => d.as_size().unwrap(),
                };
                let shape: Vec<usize> = dims.iter().map(size).collect();
                let count: usize = shape.iter().product();
                match dtype {
                    DType::I64 => Tensor::from_i64(&shape, &(0..count as i64).map(|i| 3 + i).collect::<Vec<_>>()),
                    _ => Tensor::from_f32(
                        &shape,
                        &(0..count).map(|i| ((i * 7 + n) % 11) as f32 / 11.0).collect::<Vec<_>>(),
                    ),
                }
            };
            let inputs = graph.inputs.iter().enumerate().map(input).collect::<Result<Vec<_>, _>>().unwrap();
            check_same(&format!("{name}, {tokens} after {past}"), &graph, &again, &inputs);
        }
    }
}

#[test]
fn encoders() {
    for name in [
        "bert-ForSequenceClassification",
        "roberta-Model",
        "electra-Model",
        "distilbert-Model",
        "xlnet-Model",
        "deberta-Model",
    ] {
        let fixture = Fixture::new(name);
        let folder = fixture.folder();
        let family = family(&fixture);
        let wanted = Wanted { head: family.head, hidden_states: false, attentions: false, extents: (None, None) };
        let graph = family.graph(&Loader::new(&folder.weights), &wanted).unwrap();
        let input = |id: &_| fixture.expected(graph.value(*id).name.as_deref().unwrap());
        let inputs: Vec<Tensor> = graph.inputs.iter().map(input).collect();
        check_same(name, &graph, &through_bytes(&graph).0, &inputs);
    }
}

#[test]
fn a_network_written_in_rust() {
    let g = Builder::new("net");
    let batch = g.symbol("batch", 1..=8).unwrap();
    let x = g.input("x", DType::F32, [batch, 6.into()]).unwrap();
    let values: Vec<f32> = (0..24).map(|i| (i % 7) as f32 / 7.0 - 0.4).collect();
    let w = g.named_constant("w", Tensor::from_f32(&[6, 4], &values).unwrap());
    let b = g.constant(Tensor::from_f32(&[4], &[0.1, -0.2, 0.3, 0.0]).unwrap());
    let y = g.linear(x, w, b).unwrap().gelu().unwrap().softmax(-1).unwrap();
    g.output("y", y).unwrap();
    let graph = g.finish().unwrap();
    let (again, products) = through_bytes(&graph);
    assert_eq!(products, ["w_1"]);
    for rows in [1, 5] {
        let values: Vec<f32> = (0..6 * rows).map(|i| (i % 5) as f32 - 2.0).collect();
        check_same("net", &graph, &again, &[Tensor::from_f32(&[rows, 6], &values).unwrap()]);
    }
}

#[test]
fn what_has_no_form_is_named() {
    let mut graph = Graph::new("packed");
    let x = graph.add_input("x", TensorType::of(DType::U8, &[2, 8]));
    let packed = graph.add(Pack { axis: 1 }.into(), &[x], &Default::default()).unwrap();
    graph.add_output("p", packed);
    let refused = export(&graph).unwrap_err();
    assert!(matches!(&refused, ExportError::Op { what, .. } if what.contains("pack")), "{refused}");
}

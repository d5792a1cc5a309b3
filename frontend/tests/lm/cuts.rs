//! Checkpoints without some layers and heads, against the whole ones with those switched off.

use crate::decoders::run;
use crate::encoders::family;
use crate::{Fixture, check_close};
use kiln_frontend::checkpoint::{Cut, Folder, GgufWeights, Loader, Weights};
use kiln_frontend::families::{Anatomy, Decoder, Extent, Form, Past, Settings, TextEncoder, Wanted};
use kiln_frontend::gguf::{Encoding, Gguf};
use kiln_frontend::nn::{CacheElement, HEAD_SWITCH, LAYER_SWITCH, Logits, Parameters, Switches};
use kiln_ir::{DType, Graph, Tensor};
use std::collections::{BTreeMap, BTreeSet};

type Tensors = BTreeMap<String, Tensor>;

fn cut(layers: &[usize], heads: &[(usize, &[usize])]) -> Cut {
    let units = |(layer, units): &(usize, &[usize])| (*layer, units.iter().copied().collect::<BTreeSet<_>>());
    Cut { layers: layers.iter().copied().collect(), heads: heads.iter().map(units).collect() }
}

/// The inputs of a graph by their names: those given, switches by the cut, and empty caches.
fn inputs(graph: &Graph, given: &Tensors, anatomy: &Anatomy, cut: &Cut) -> Tensors {
    let queries = anatomy.heads.as_ref().map_or(1, |h| h.queries);
    let input = |&id: &_| {
        let value = graph.value(id);
        let name = value.name.as_deref().unwrap().to_string();
        let shape = graph.ty(id).shape();
        let layer = |path: &str| anatomy.place(path).unwrap().1;
        let made = if let Some(path) = name.strip_prefix(LAYER_SWITCH) {
            Tensor::from_f32(&[1], &[f32::from(u8::from(!cut.layers.contains(&layer(path))))]).unwrap()
        } else if let Some(path) = name.strip_prefix(HEAD_SWITCH) {
            let gone = cut.heads.get(&layer(path)).cloned().unwrap_or_default();
            let shape = shape.unwrap();
            let on = |head: usize| f32::from(u8::from(!gone.contains(&(head / queries))));
            Tensor::from_f32(&shape, &(0..shape[0]).map(on).collect::<Vec<_>>()).unwrap()
        } else if let Some(given) = given.get(&name) {
            given.clone()
        } else {
            Tensor::zeros(DType::F32, &shape.unwrap()).unwrap()
        };
        (name, made)
    };
    graph.inputs.iter().map(input).collect()
}

fn decoder_graph(decoder: &Decoder, parameters: &dyn Parameters, batch: usize) -> Graph {
    let past = Past::Prefix(Extent::Fixed(0));
    let (tokens, logits, cache) = (Extent::Free, Logits::All, CacheElement::F32);
    let mut graph = decoder.graph(parameters, &Form { batch, tokens, past, capacity: 16, logits, cache }).unwrap();
    graph.outputs.retain(|(name, _)| &**name == "logits");
    graph
}

fn loaded(weights: &dyn Weights, graph: impl Fn(&Loader<'_>) -> Graph, known: impl Fn(&str) -> bool) -> Graph {
    let loader = Loader::new(weights);
    let graph = graph(&loader);
    loader.finish(known).unwrap();
    graph
}

fn decoder_of(folder: &Folder) -> Decoder {
    Decoder::from_json(&Settings::json("config.json", &folder.config)).unwrap()
}

/// Logits of a decoder with a cut switched off, and of one that is another checkpoint.
fn compare_decoders(
    what: &str,
    (whole, weights): (&Decoder, &dyn Weights),
    (small, small_weights): (&Decoder, &dyn Weights),
    given: &Tensors,
    cut: &Cut,
) {
    let batch = given["tokens"].shape()[0];
    let plain = loaded(weights, |l| decoder_graph(whole, l, batch), |n| whole.known_surplus(n));
    let switched = loaded(weights, |l| decoder_graph(whole, &Switches(l), batch), |n| whole.known_surplus(n));
    let made = loaded(small_weights, |l| decoder_graph(small, l, batch), |n| small.known_surplus(n));
    let (anatomy, none) = (whole.anatomy(), Cut::default());
    let logits =
        |graph: &Graph, cut: &Cut| run(graph, &inputs(graph, given, &anatomy, cut))["logits"].to_f32().unwrap();
    // What is on changes no bit.
    assert_eq!(logits(&plain, &none), logits(&switched, &none), "{what}");
    let want = logits(&switched, cut);
    assert_ne!(want, logits(&plain, &none), "{what}: nothing is switched off");
    check_close(what, &logits(&made, &none), &want, 1e-5);
}

#[test]
fn decoders_without_layers_and_heads_are_what_switches_leave_of_them() {
    let both = cut(&[0], &[(0, &[0]), (1, &[1])]);
    for (name, cut) in [
        ("llama", both.clone()),
        ("llama3", both.clone()),
        ("mistral", cut(&[], &[(0, &[1]), (1, &[0])])),
        ("qwen2", cut(&[1], &[])),
        ("qwen3", both),
    ] {
        let fixture = Fixture::new(name);
        let folder = fixture.folder();
        let whole = decoder_of(&folder);
        let small = folder.cut(&whole.anatomy(), &cut).unwrap();
        let given = Tensors::from([("tokens".to_string(), fixture.expected("tokens"))]);
        compare_decoders(name, (&whole, &folder.weights), (&decoder_of(&small), &small.weights), &given, &cut);
    }
}

#[test]
fn gpt2_loses_layers_where_their_numbers_mean_nothing() {
    let fixture = Fixture::new("gpt2");
    let mut folder = fixture.folder();
    let given = Tensors::from([("tokens".to_string(), fixture.expected("tokens"))]);
    let (layer, head) = (cut(&[0], &[]), cut(&[], &[(0, &[1]), (1, &[1])]));
    let error = folder.cut(&decoder_of(&folder).anatomy(), &layer).unwrap_err().to_string();
    assert!(error.contains("scaled by the number of the layer"), "{error}");
    folder.config["scale_attn_by_inverse_layer_idx"] = false.into();
    let whole = decoder_of(&folder);
    let error = folder.cut(&whole.anatomy(), &head).unwrap_err().to_string();
    assert!(error.contains("no place for layers with fewer heads"), "{error}");
    let small = folder.cut(&whole.anatomy(), &layer).unwrap();
    compare_decoders("gpt2", (&whole, &folder.weights), (&decoder_of(&small), &small.weights), &given, &layer);
}

#[test]
fn encoders_without_layers_and_heads_are_what_switches_leave_of_them() {
    let (uneven, layer) = (cut(&[], &[(0, &[2]), (1, &[0, 3])]), cut(&[0], &[(1, &[1])]));
    for (name, cut) in [
        ("bert-Model", &uneven),
        ("bert-ForSequenceClassification", &layer),
        ("roberta-Model", &uneven),
        ("electra-Model", &layer),
        ("distilbert-Model", &uneven),
        // Heads that were taken out before stay so.
        ("bertpruned-Model", &self::cut(&[], &[(0, &[2]), (1, &[1])])),
        ("bertpruned-Model", &self::cut(&[0], &[(1, &[0])])),
    ] {
        let fixture = Fixture::new(name);
        let folder = fixture.folder();
        let of = |folder: &Folder| -> TextEncoder {
            let architecture = folder.config["architectures"][0].as_str();
            let labels = folder.config["id2label"].as_object().map_or(0, serde_json::Map::len);
            let labels = vec![String::new(); labels];
            TextEncoder::from_json(&Settings::json("config.json", &folder.config), architecture, labels).unwrap()
        };
        let whole = family(&fixture);
        let anatomy = whole.anatomy().unwrap();
        let small = folder.cut(&anatomy, cut).unwrap();
        let wanted = Wanted { head: whole.head, hidden_states: false, attentions: false, extents: (None, None) };
        let known = |n: &str| whole.known_surplus(whole.head, n);
        let names = ["input_ids", "attention_mask", "token_type_ids"];
        let given: Tensors = names
            .iter()
            .filter(|n| **n != "token_type_ids" || !name.starts_with("distil"))
            .map(|n| (n.to_string(), fixture.expected(n)))
            .collect();
        let switched = loaded(&folder.weights, |l| whole.graph(&Switches(l), &wanted).unwrap(), known);
        let made = loaded(&small.weights, |l| of(&small).graph(l, &wanted).unwrap(), known);
        let first = |graph: &Graph, cut: &Cut| {
            let outputs = run(graph, &inputs(graph, &given, &anatomy, cut));
            outputs[&*graph.outputs[0].0].to_f32().unwrap()
        };
        let (want, got) = (first(&switched, cut), first(&made, cut));
        assert_ne!(want, first(&switched, &Cut::default()), "{name}");
        check_close(name, &got, &want, 1e-5);
        if name == "bertpruned-Model" && cut.layers.is_empty() {
            // Of heads 0, 2, 3 the last; of heads 1, 2 the last.
            assert_eq!(small.config["pruned_heads"], serde_json::json!({ "0": [1, 3], "1": [0, 2, 3] }));
        }
    }
}

#[test]
fn what_cannot_be_taken_out_is_refused() {
    let folder = Fixture::new("llama").folder();
    let anatomy = decoder_of(&folder).anatomy();
    let error = |cut: &Cut| folder.cut(&anatomy, cut).unwrap_err().to_string();
    for (cut, part) in [
        (cut(&[0, 1], &[]), "of 2 layers 2 cannot be taken out"),
        (cut(&[2], &[]), "of 2 layers"),
        (cut(&[], &[(0, &[0])]), "the configuration has one number"),
        (cut(&[], &[(0, &[0, 1]), (1, &[0, 1])]), "cannot be taken out so"),
        (cut(&[], &[(0, &[2]), (1, &[2])]), "cannot be taken out so"),
    ] {
        assert!(error(&cut).contains(part), "{}", error(&cut));
    }
    let bert = Fixture::new("bert-Model");
    let mut json = bert.folder().config;
    for (value, part) in [
        (serde_json::json!({ "2": [0] }), "none of 2 layers"),
        (serde_json::json!({ "0": [4] }), "none of 4"),
        (serde_json::json!({ "0": [0, 1, 2, 3] }), "leaves no head"),
        (serde_json::json!([1]), "no object of lists"),
        (serde_json::json!({ "0": [-1] }), "no object of lists"),
    ] {
        json["pruned_heads"] = value;
        let error =
            TextEncoder::from_json(&Settings::json("config.json", &json), None, vec![]).unwrap_err().to_string();
        assert!(error.contains("`pruned_heads`") && error.contains(part), "{error}");
    }
}

#[test]
fn a_gguf_file_keeps_its_blocks_and_all_else_that_it_says() {
    let file = std::fs::read("tests/fixtures/lm/tiny.gguf").unwrap();
    let weights = GgufWeights::new(Gguf::parse(file.into()).unwrap()).unwrap();
    let whole = Decoder::from_gguf(weights.file()).unwrap();
    let anatomy = whole.anatomy();
    let given = Tensors::from([("tokens".to_string(), Tensor::from_i64(&[1, 6], &[1, 9, 30, 2, 77, 5]).unwrap())]);
    let units = anatomy.heads.as_ref().unwrap().units[0].len();
    assert!(anatomy.count >= 2 && units >= 2, "{anatomy:?}");
    for cut in [cut(&[0], &[]), cut(&[], &[(0, &[1]), (1, &[0])]), cut(&[1], &[(0, &[0])])] {
        let small = weights.cut(&anatomy, &cut).unwrap();
        let small = GgufWeights::new(Gguf::parse(small.into()).unwrap()).unwrap();
        let decoder = Decoder::from_gguf(small.file()).unwrap();
        compare_decoders(&format!("{cut:?}"), (&whole, &weights), (&decoder, &small), &given, &cut);
        for (key, value) in weights.file().metadata() {
            let counted = key.contains(".attention.") || key.ends_with(".block_count");
            assert!(counted || small.file().get(key) == Some(value), "{key}");
        }
        let blocks = |w: &GgufWeights| {
            w.file().tensors().values().map(|t| t.encoding).filter(|e| e.is_quantized()).collect::<BTreeSet<Encoding>>()
        };
        assert_eq!(blocks(&small), blocks(&weights));
    }
}

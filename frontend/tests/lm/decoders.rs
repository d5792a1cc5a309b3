//! Decoders: all at once, and with a cache in every form and split.

use crate::{Fixture, check_close};
use kiln_frontend::checkpoint::Loader;
use kiln_frontend::families::{Decoder, Extent, Form, Past, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Graph, Tensor};
use std::collections::BTreeMap;

/// Positions of the caches here.
const CAPACITY: usize = 16;

pub fn run(graph: &Graph, inputs: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let named = graph.inputs.iter().map(|&id| inputs[graph.value(id).name.as_deref().unwrap()].clone());
    let outputs = eval_graph(graph, &named.collect::<Vec<_>>(), &Options::default()).unwrap();
    graph.outputs.iter().map(|(name, _)| name.to_string()).zip(outputs).collect()
}

pub fn join(a: &Tensor, b: &Tensor) -> Tensor {
    let mut shape = a.shape().to_vec();
    shape[0] += b.shape()[0];
    Tensor::new(a.dtype(), shape, [a.bytes(), b.bytes()].concat()).unwrap()
}

/// Tokens `from..to` of every row of `[B, T]`.
pub fn tokens(all: &Tensor, from: usize, to: usize) -> Tensor {
    let (values, length) = (all.to_i64().unwrap(), all.shape()[1]);
    let picked: Vec<i64> = values.chunks(length).flat_map(|row| row[from..to].to_vec()).collect();
    Tensor::from_i64(&[all.shape()[0], to - from], &picked).unwrap()
}

/// The logits of all tokens, computed in pieces of these lengths.
fn decode(decoder: &Decoder, loader: &Loader<'_>, all: &Tensor, pieces: &[usize], past: Past) -> Vec<f32> {
    let batch = all.shape()[0];
    let heads = decoder.heads();
    let form =
        |tokens, past| Form { batch, tokens, past, capacity: CAPACITY, logits: Logits::All, cache: CacheElement::F32 };
    let kinds = [("k", heads.key_size), ("v", heads.value_size)];
    let mut caches = BTreeMap::new();
    for (layer, (kind, size)) in (0..decoder.layers()).flat_map(|l| kinds.map(|k| (l, k))) {
        let empty = Tensor::new(DType::F32, vec![0, batch, heads.keys, size], vec![]).unwrap();
        caches.insert(format!("{kind}.{layer}"), empty);
    }
    let mut logits = vec![Vec::new(); batch];
    let mut at = 0;
    for &length in pieces {
        let past = if past == Past::Prefix(Extent::Fixed(0)) { Past::Prefix(Extent::Fixed(at)) } else { past };
        let graph = decoder.graph(loader, &form(Extent::Free, past)).unwrap();
        let mut inputs = BTreeMap::from([("tokens".to_string(), tokens(all, at, at + length))]);
        // As one text of several, of which the others are not there.
        let numbers = |values: Vec<i64>| Tensor::from_i64(&[values.len()], &values).unwrap();
        let range = |from: usize, to: usize| numbers((from as i64..to as i64).collect());
        inputs.insert("text".into(), numbers(vec![1; length]));
        inputs.insert("position".into(), range(at, at + length));
        inputs.insert("past_text".into(), numbers(vec![1; at]));
        inputs.insert("past_position".into(), range(0, at));
        inputs.insert("past_length".into(), Tensor::from_i64(&[], &[at as i64]).unwrap());
        for (name, cache) in &caches {
            let shown = match past {
                Past::Prefix(_) | Past::Packed => cache.clone(),
                Past::Capacity => {
                    // What does not count is large: it must not be seen.
                    let mut shape = cache.shape().to_vec();
                    shape[0] = CAPACITY - at;
                    let many = vec![1e3; shape.iter().product()];
                    join(cache, &Tensor::from_f32(&shape, &many).unwrap())
                }
            };
            inputs.insert(format!("past_{name}"), shown);
        }
        let outputs = run(&graph, &inputs);
        for (name, cache) in &mut caches {
            let new = &outputs[&format!("new_{name}")];
            assert_eq!(new.shape()[0], length);
            *cache = join(cache, new);
        }
        let made = outputs["logits"].to_f32().unwrap();
        made.chunks(made.len() / batch).zip(&mut logits).for_each(|(row, all)| all.extend_from_slice(row));
        at += length;
    }
    logits.concat()
}

fn check(name: &str) {
    let fixture = Fixture::new(name);
    let folder = fixture.folder();
    let decoder = Decoder::from_json(&Settings::json("config.json", &folder.config)).unwrap();
    let loader = Loader::new(&folder.weights);
    let (all, want) = (fixture.expected("tokens"), fixture.expected("logits").to_f32().unwrap());
    let length = all.shape()[1];
    let whole = decode(&decoder, &loader, &all, &[length], Past::Prefix(Extent::Free));
    loader.finish(|name| decoder.known_surplus(name)).unwrap();
    check_close(name, &whole, &want, 2e-6);
    for past in [Past::Prefix(Extent::Free), Past::Prefix(Extent::Fixed(0)), Past::Capacity, Past::Packed] {
        for pieces in [vec![1; length], vec![5, 1, 3, length - 9], vec![length]] {
            let cached = decode(&decoder, &loader, &all, &pieces, past);
            check_close(&format!("{name} {past:?} in {pieces:?}"), &cached, &want, 2e-6);
        }
    }
    // The last token's logits alone are the same.
    let form = Form {
        batch: all.shape()[0],
        tokens: Extent::Fixed(length),
        past: Past::Prefix(Extent::Fixed(0)),
        capacity: CAPACITY,
        logits: Logits::Last,
        cache: CacheElement::F32,
    };
    let graph = decoder.graph(&loader, &form).unwrap();
    let empty =
        Tensor::new(DType::F32, vec![0, all.shape()[0], decoder.heads().keys, decoder.heads().key_size], vec![]);
    let mut inputs = BTreeMap::from([("tokens".to_string(), all.clone())]);
    for layer in 0..decoder.layers() {
        inputs.insert(format!("past_k.{layer}"), empty.clone().unwrap());
        inputs.insert(format!("past_v.{layer}"), empty.clone().unwrap());
    }
    let last = run(&graph, &inputs)["logits"].clone();
    let size = decoder.vocabulary();
    let want: Vec<f32> = want.chunks(length * size).flat_map(|text| text[(length - 1) * size..].to_vec()).collect();
    assert_eq!(last.shape(), [all.shape()[0], size]);
    check_close(name, &last.to_f32().unwrap(), &want, 2e-6);
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn llama_with_biases_and_llama3_frequencies() {
    check("llama3");
}

#[test]
fn llama_with_yarn() {
    check("yarn");
}

#[test]
fn mistral_with_a_window() {
    check("mistral");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn qwen3() {
    check("qwen3");
}

#[test]
fn gpt2() {
    check("gpt2");
}

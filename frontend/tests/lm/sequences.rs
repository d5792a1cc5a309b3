//! Encoder-decoders: the source read once, targets at once and with a cache.

use crate::decoders::{join, run, tokens};
use crate::{Fixture, check_close};
use kiln_frontend::checkpoint::Loader;
use kiln_frontend::families::{Extent, Form, Past, Sequence, SequenceForm, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::{DType, Tensor};
use std::collections::BTreeMap;

fn check(name: &str) {
    let fixture = Fixture::new(name);
    let folder = fixture.folder();
    let model = Sequence::from_json(&Settings::json("config.json", &folder.config)).unwrap();
    let loader = Loader::new(&folder.weights);
    let target = Form {
        batch: 2,
        tokens: Extent::Free,
        past: Past::Prefix(Extent::Free),
        capacity: 16,
        logits: Logits::All,
        cache: CacheElement::F32,
    };
    let form = SequenceForm { target, source: Extent::Free, longest_source: 8 };
    let (encoder, decoder) = (model.encoder(&loader, &form).unwrap(), model.decoder(&loader, &form).unwrap());
    loader.finish(|name| model.known_surplus(name)).unwrap();
    assert_eq!(model.start(), Some(0));
    let given = ["source", "source_mask"].map(|n| (n.to_string(), fixture.expected(n)));
    let encoded = run(&encoder, &BTreeMap::from(given.clone()));
    let (memory, mask) = (fixture.expected("memory"), fixture.expected("source_mask").to_i64().unwrap());
    let counted = |t: &Tensor| {
        let (values, row) = (t.to_f32().unwrap(), t.shape()[2]);
        let rows = values.chunks(row).zip(&mask).filter(|(_, m)| **m != 0).flat_map(|(r, _)| r.to_vec());
        rows.collect::<Vec<f32>>()
    };
    check_close(&format!("{name} memory"), &counted(&encoded["memory"]), &counted(&memory), 2e-6);
    let (all, want) = (fixture.expected("tokens"), fixture.expected("logits").to_f32().unwrap());
    let (heads, length) = (model.heads(), all.shape()[1]);
    for pieces in [vec![length], vec![1; length], vec![4, 1, length - 5]] {
        let mut inputs: BTreeMap<String, Tensor> = encoded.clone();
        inputs.extend(given.clone());
        for layer in 0..model.layers() {
            for (kind, size) in [("k", heads.key_size), ("v", heads.value_size)] {
                let empty = Tensor::new(DType::F32, vec![0, 2, heads.keys, size], vec![]).unwrap();
                inputs.insert(format!("past_{kind}.{layer}"), empty);
            }
        }
        let (mut at, mut logits) = (0, vec![Vec::new(); 2]);
        for &count in &pieces {
            inputs.insert("tokens".into(), tokens(&all, at, at + count));
            let outputs = run(&decoder, &inputs);
            for (name, new) in outputs.iter().filter(|(name, _)| name.starts_with("new_")) {
                let past = name.replace("new_", "past_");
                let longer = join(&inputs[&past], new);
                inputs.insert(past, longer);
            }
            let made = outputs["logits"].to_f32().unwrap();
            made.chunks(made.len() / 2).zip(&mut logits).for_each(|(row, all)| all.extend_from_slice(row));
            at += count;
        }
        check_close(&format!("{name} in {pieces:?}"), &logits.concat(), &want, 2e-6);
    }
}

#[test]
fn t5() {
    check("t5");
}

#[test]
fn t5_with_gates_and_a_head_of_its_own() {
    check("t5-gated");
}

#[test]
fn bart() {
    check("bart");
}

#[test]
fn marian() {
    check("marian");
}

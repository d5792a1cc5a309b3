//! Checkpoints that do not fit: everything that is wrong is named, and nothing panics.

use crate::Fixture;
use bytes::Bytes;
use kiln_frontend::checkpoint::{CheckpointError, Files, Folder, Loader, Safetensors, Stored, Weights};
use kiln_frontend::families::{Decoder, Extent, Form, Past, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FORM: Form = Form {
    batch: 1,
    tokens: Extent::Free,
    past: Past::Prefix(Extent::Free),
    capacity: 16,
    logits: Logits::Last,
    cache: CacheElement::F32,
};

fn config(change: impl FnOnce(&mut Value)) -> Result<Decoder, CheckpointError> {
    let mut config = Fixture::new("llama").folder().config;
    change(&mut config);
    Decoder::from_json(&Settings::json("config.json", &config))
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), message: &str) {
    let error = config(change).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn settings_that_cannot_be() {
    refused(|c| c["model_type"] = json!("gpt9"), "models of the kind `gpt9` are not supported; these are: llama");
    refused(|c| c["hidden_size"] = json!(-1), "config.json: `hidden_size` is -1, not a size");
    refused(|c| c["hidden_size"] = json!(1u64 << 40), "not a size from 1 to 16777216");
    refused(|c| c["hidden_size"] = json!("16"), "`hidden_size` is not a whole number");
    refused(|c| c["num_hidden_layers"] = json!(100_000), "at most 1024");
    refused(|c| c["num_key_value_heads"] = json!(3), "`num_key_value_heads` is 3, which does not divide 4");
    refused(|c| c["vocab_size"] = Value::Null, "`vocab_size` is missing");
    refused(|c| c["hidden_act"] = json!("magic"), "`magic` is not supported");
    refused(|c| c["tie_word_embeddings"] = json!(3), "neither true nor false");
    refused(|c| c["rope_scaling"] = json!({"rope_type": "spiral"}), "of the type `spiral` is not supported");
    refused(|c| c["rope_scaling"] = json!({"rope_type": "linear"}), "`rope_scaling.factor` is missing");
    refused(|c| c["head_dim"] = json!(5), "5 elements of a head of 5 cannot be rotated");
}

/// Weights with some names changed.
struct Changed {
    tensors: BTreeMap<String, Stored>,
}

impl Weights for Changed {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn get(&self, name: &str) -> Option<Stored> {
        self.tensors.get(name).cloned()
    }
}

#[test]
fn all_that_does_not_fit_is_named_at_once() {
    let weights = Fixture::new("llama").folder().weights;
    let mut tensors: BTreeMap<String, Stored> =
        weights.names().into_iter().map(|n| (n.clone(), weights.get(&n).unwrap())).collect();
    tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    tensors.remove("model.norm.weight").unwrap();
    let extra = tensors["lm_head.weight"].clone();
    tensors.insert("model.layers.2.extra".into(), extra);
    tensors.get_mut("model.embed_tokens.weight").unwrap().shape = vec![16, 40];
    let changed = Changed { tensors };
    let decoder = config(|_| ()).unwrap();
    let loader = Loader::new(&changed);
    decoder.graph(&loader, &FORM).unwrap();
    let problems = loader.finish(|name| decoder.known_surplus(name)).unwrap_err();
    assert_eq!(problems.missing, ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]);
    assert_eq!(problems.surplus, ["model.layers.2.extra"]);
    assert_eq!(problems.misshapen[0].0, "model.embed_tokens.weight");
    let text = problems.to_string();
    assert!(text.contains("2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight"), "{text}");
    assert!(text.contains("([16, 40] where the model has [40, 16])"), "{text}");
}

#[test]
fn a_large_configuration_without_weights_takes_no_memory() {
    let decoder = config(|c| {
        c["hidden_size"] = json!(1 << 22);
        c["vocab_size"] = json!(1 << 24);
        c["head_dim"] = json!(64);
    });
    let (decoder, weights) = (decoder.unwrap(), Safetensors::default());
    let loader = Loader::new(&weights);
    decoder.graph(&loader, &FORM).unwrap();
    let problems = loader.finish(|_| false).unwrap_err();
    assert_eq!(problems.missing.len(), 2 * 9 + 3);
    assert!(problems.to_string().ends_with("..."));
}

/// A folder of given files.
struct Given(BTreeMap<&'static str, Bytes>);

impl Files for Given {
    fn open(&self, name: &str) -> Result<Option<Bytes>, String> {
        Ok(self.0.get(name).cloned())
    }
}

#[test]
fn folders_that_are_not_right() {
    let fixture = Fixture::new("llama");
    let weights = fixture.open("model.safetensors").unwrap().unwrap();
    let read = |files: &[(&'static str, Bytes)]| Folder::read(&Given(files.iter().cloned().collect()));
    let error = |files: &[(&'static str, Bytes)]| read(files).unwrap_err().to_string();
    let config = ("config.json", Bytes::from_static(b"{}"));
    assert!(error(&[]).contains("config.json: there is no such file"));
    assert!(error(&[("config.json", Bytes::from_static(b"{"))]).contains("config.json: not JSON"));
    assert!(error(std::slice::from_ref(&config)).contains("neither this file nor an index"));
    let index = |file: &str| {
        let text = json!({"weight_map": {"t": file}}).to_string();
        ("model.safetensors.index.json", Bytes::from(text))
    };
    assert!(error(&[config.clone(), index("../x")]).contains("which is no file name"));
    assert!(error(&[config.clone(), index("x")]).contains("there is no file \"x\""));
    let shard = ("a.safetensors", weights.clone());
    let whole = read(&[config.clone(), index("a.safetensors"), shard]).unwrap();
    assert_eq!(whole.weights.names(), fixture.folder().weights.names());
    let cut = weights.slice(..weights.len() - 1);
    assert!(error(&[config.clone(), ("model.safetensors", cut)]).contains("not a safetensors file"));
    let mut twice = Safetensors::parse("a", &weights).unwrap();
    assert!(twice.add("b", &weights).unwrap_err().to_string().contains("is in another file too"));
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(at in 0usize..2000, bit in 0u32..8) {
        let weights = Fixture::new("llama").open("model.safetensors").unwrap().unwrap();
        let mut bytes = weights.to_vec();
        bytes[at] ^= 1 << bit;
        if let Ok(weights) = Safetensors::parse("f", &bytes.into()) {
            let decoder = config(|_| ()).unwrap();
            let loader = Loader::new(&weights);
            decoder.graph(&loader, &FORM).unwrap();
            let _ = loader.finish(|_| false);
        }
    }
}

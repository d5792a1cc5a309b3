//! Adapters of low rank, against what peft makes of them.

use crate::{Fixture, check_close};
use bytes::Bytes;
use kiln_frontend::checkpoint::{Adapter, Files, Overlay, Safetensors, Stored, Weights};
use kiln_frontend::families::{Decoder, Extent, Form, Past, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::interp::{Options, eval_graph};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

#[test]
fn merged_models_give_what_peft_gives() {
    for (adapter, base) in [("adapter-llama", "llama"), ("adapter-gpt2", "gpt2")] {
        let (fixture, folder) = (Fixture::new(adapter), Fixture::new(base).folder());
        let decoder = Decoder::from_json(&Settings::json("config.json", &folder.config)).unwrap();
        let weights: Arc<dyn Weights> = Arc::new(folder.weights);
        let merged = Adapter::read(&fixture).unwrap().merged(&*weights).unwrap();
        let merged = Overlay::new(weights, merged);
        let tokens = fixture.expected("tokens");
        let [batch, length] = tokens.shape()[..] else { panic!("{:?}", tokens.shape()) };
        let form = Form {
            batch,
            tokens: Extent::Fixed(length),
            past: Past::Prefix(Extent::Fixed(0)),
            capacity: 16,
            logits: Logits::All,
            cache: CacheElement::F32,
        };
        let loader = kiln_frontend::checkpoint::Loader::new(&merged);
        let graph = decoder.graph(&loader, &form).unwrap();
        loader.finish(|name| decoder.known_surplus(name)).unwrap();
        let input = |&v: &kiln_ir::graph::ValueId| {
            let ty = graph.ty(v);
            let dims: Vec<usize> = ty.dims.iter().map(|d| d.as_size().unwrap()).collect();
            if ty.dtype == kiln_ir::DType::I64 {
                return tokens.clone();
            }
            let bytes = vec![0; dims.iter().product::<usize>() * ty.dtype.size()];
            kiln_ir::Tensor::new(ty.dtype, dims, bytes).unwrap()
        };
        let inputs: Vec<_> = graph.inputs.iter().map(input).collect();
        let found = eval_graph(&graph, &inputs, &Options::default()).unwrap();
        let at = graph.outputs.iter().position(|(name, _)| &**name == "logits").unwrap();
        let floats = |t: &kiln_ir::Tensor| t.to_f64().unwrap().into_iter().map(|v| v as f32).collect::<Vec<_>>();
        check_close(adapter, &floats(&found[at]), &floats(&fixture.expected("logits")), 1e-5);
    }
}

/// An adapter's files with some of them changed.
struct Changed(BTreeMap<&'static str, Vec<u8>>);

impl Changed {
    fn config(change: impl FnOnce(&mut Value)) -> Changed {
        let bytes = Fixture::new("adapter-llama").open("adapter_config.json").unwrap().unwrap();
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        change(&mut config);
        Changed([("adapter_config.json", config.to_string().into_bytes())].into())
    }
}

impl Files for Changed {
    fn open(&self, name: &str) -> Result<Option<Bytes>, String> {
        match self.0.get(name) {
            Some(bytes) if bytes.is_empty() => Ok(None),
            Some(bytes) => Ok(Some(bytes.clone().into())),
            None => Fixture::new("adapter-llama").open(name),
        }
    }
}

#[track_caller]
fn refused(files: &dyn Files, message: &str) {
    let weights = Fixture::new("llama").folder().weights;
    let error = Adapter::read(files).and_then(|a| a.merged(&weights)).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn what_is_not_understood_is_refused() {
    let file = |name, bytes: &[u8]| Changed([(name, bytes.to_vec())].into());
    refused(
        &file("adapter_model.safetensors", b""),
        "adapter_model.safetensors: there is no such file in the adapter's folder",
    );
    refused(&file("adapter_config.json", b""), "adapter_config.json: there is no such file");
    refused(&file("adapter_config.json", b"{"), "adapter_config.json: not JSON");
    refused(&file("adapter_model.safetensors", b"\x10\0\0\0\0\0\0\0"), "not a safetensors file");
    let config = |change: fn(&mut Value)| Changed::config(change);
    refused(
        &config(|c| c["peft_type"] = json!("LOHA")),
        "`peft_type` is \"LOHA\"; adapters are supported that are plain LoRA",
    );
    refused(&config(|c| c["use_dora"] = json!(true)), "`use_dora` is true");
    refused(&config(|c| c["init_lora_weights"] = json!("pissa")), "`init_lora_weights` is \"pissa\"");
    refused(&config(|c| c["lora_alpha"] = Value::Null), "`lora_alpha` is missing");
    refused(&config(|c| c["rank_pattern"] = json!({"^q|k": 2})), "`rank_pattern` has \"^q|k\": 2");
    refused(&config(|c| c["rank_pattern"] = json!({"layers.0.self_attn.v_proj": 2})), "several patterns");
}

#[test]
fn what_has_no_place_in_the_model_is_named_at_once() {
    let adapter = Adapter::read(&Fixture::new("adapter-llama")).unwrap();
    let error = adapter.merged(&Fixture::new("gpt2").folder().weights).unwrap_err().to_string();
    let all = "the adapter does not fit the model:\n  20 that the model does not have: base_model.model.model.embed_tokens.base_layer.weight";
    assert!(error.starts_with(all), "{error}");

    // A model that is wider, and has no first layer's product.
    struct Wider(Safetensors);
    impl Weights for Wider {
        fn names(&self) -> Vec<String> {
            self.0.names().into_iter().filter(|n| !n.contains("layers.0.mlp.down_proj")).collect()
        }
        fn get(&self, name: &str) -> Option<Stored> {
            let stored = self.0.get(name)?;
            let [rows, columns] = stored.shape[..] else { return Some(stored) };
            let bytes = [&stored.bytes[..], &stored.bytes[..]].concat();
            Some(Stored { shape: vec![2 * rows, columns], bytes: bytes.into(), ..stored })
        }
    }
    let error = adapter.merged(&Wider(Fixture::new("llama").folder().weights)).unwrap_err().to_string();
    for part in [
        "model.layers.1.self_attn.q_proj.weight ([16, 16] in the adapter, [32, 16] in the model)",
        "2 that the model does not have: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight, ",
        "6 of another shape: model.embed_tokens.weight",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

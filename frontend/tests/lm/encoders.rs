//! Encoders with each head.

use crate::{Fixture, check_close};
use kiln_frontend::checkpoint::Loader;
use kiln_frontend::families::{Head, Settings, TextEncoder, Wanted, deberta};
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};

/// The model that a fixture's configuration describes.
pub fn family(fixture: &Fixture) -> TextEncoder {
    let json = fixture.folder().config;
    let architecture = json["architectures"][0].as_str();
    let labels = json["id2label"].as_object().map(|l| l.values().map(ToString::to_string).collect());
    TextEncoder::from_json(&Settings::json("config.json", &json), architecture, labels.unwrap_or_default()).unwrap()
}

/// What is in the rows of tokens, where there is an axis of them: padding gives anything.
fn counted(tensor: &Tensor, mask: &[i64], tokens: usize) -> Vec<f32> {
    let (values, shape) = (tensor.to_f32().unwrap(), tensor.shape());
    // Attention maps have the heads before their queries.
    let axis = if shape.len() == 4 { 2 } else { 1 };
    if shape.get(axis) != Some(&tokens) {
        return values;
    }
    let row = values.len() / shape[..=axis].iter().product::<usize>();
    let heads = shape[1..axis].iter().product::<usize>();
    let counts = |n: &usize| mask[n / tokens / heads * tokens + n % tokens] != 0;
    values.chunks(row).enumerate().filter(|(n, _)| counts(n)).flat_map(|(_, row)| row.to_vec()).collect()
}

fn check(name: &str, extents: (Option<usize>, Option<usize>)) {
    let fixture = Fixture::new(name);
    let folder = fixture.folder();
    let family = family(&fixture);
    let every = family.head == Head::Hidden;
    let wanted = Wanted { head: family.head, hidden_states: every, attentions: every, extents };
    let loader = Loader::new(&folder.weights);
    let graph = family.graph(&loader, &wanted).unwrap();
    loader.finish(|name| family.known_surplus(family.head, name)).unwrap();
    let input = |id: &_| fixture.expected(graph.value(*id).name.as_deref().unwrap());
    let inputs: Vec<Tensor> = graph.inputs.iter().map(input).collect();
    let outputs = eval_graph(&graph, &inputs, &Options::default()).unwrap();
    let mask = fixture.expected("attention_mask");
    let (tokens, mask) = (mask.shape()[1], mask.to_i64().unwrap());
    assert!(!outputs.is_empty());
    for ((output, _), got) in graph.outputs.iter().zip(&outputs) {
        let want = fixture.expected(output);
        assert_eq!(got.shape(), want.shape(), "{name} {output}");
        let pick = |t: &Tensor| counted(t, &mask, tokens);
        check_close(&format!("{name} {output}"), &pick(got), &pick(&want), 4e-6);
    }
}

macro_rules! heads {
    ($($test:ident: $family:literal $($head:literal)*;)*) => {$(
        #[test]
        fn $test() {
            $(check(concat!($family, "-", $head), (None, None));)*
            check(concat!($family, "-Model"), (Some(2), Some(7)));
        }
    )*};
}

heads! {
    bert: "bert" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification" "ForQuestionAnswering"
        "ForNextSentencePrediction" "ForPreTraining";
    roberta: "roberta" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification" "ForQuestionAnswering";
    electra: "electra" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification" "ForQuestionAnswering"
        "ForPreTraining";
    distilbert: "distilbert" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification"
        "ForQuestionAnswering";
    xlnet: "xlnet" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification" "ForQuestionAnswering";
    pruned_bert: "bertpruned" "Model";
    pruned_distilbert: "distilbertpruned" "Model";
    deberta: "deberta" "Model" "ForMaskedLM" "ForSequenceClassification" "ForTokenClassification" "ForQuestionAnswering";
}

#[test]
fn what_deberta_does_not_support_is_named() {
    check("debertaplain-Model", (None, None));
    let mut json = Fixture::new("deberta-Model").folder().config;
    json["conv_kernel_size"] = 3.into();
    let error = deberta::Config::from_json(&Settings::json("config.json", &json), 3).unwrap_err().to_string();
    assert!(error.contains("`conv_kernel_size` is not 0"), "{error}");
    json["relative_attention"] = false.into();
    let error = deberta::Config::from_json(&Settings::json("config.json", &json), 3).unwrap_err().to_string();
    assert!(error.contains("`relative_attention` is false"), "{error}");
}

#[test]
fn sentence_embeddings_are_means_of_length_one() {
    let fixture = Fixture::new("bert-Model");
    let folder = fixture.folder();
    let wanted = Wanted { head: Head::Embedding, hidden_states: false, attentions: false, extents: (None, None) };
    let loader = Loader::new(&folder.weights);
    let graph = family(&fixture).graph(&loader, &wanted).unwrap();
    let inputs = ["input_ids", "attention_mask", "token_type_ids"].map(|name| fixture.expected(name));
    let got = eval_graph(&graph, &inputs, &Options::default()).unwrap().remove(0);
    let (hidden, mask) = (fixture.expected("last_hidden_state").to_f32().unwrap(), inputs[1].to_i64().unwrap());
    let mut want = Vec::new();
    for (text, mask) in hidden.chunks(7 * 16).zip(mask.chunks(7)) {
        let mut sum = [0f32; 16];
        for (row, _) in text.chunks(16).zip(mask).filter(|(_, m)| **m != 0) {
            sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
        }
        let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt();
        want.extend(sum.map(|v| v / length));
    }
    assert_eq!((got.dtype(), got.shape()), (DType::F32, [2, 16].as_slice()));
    check_close("sentence_embedding", &got.to_f32().unwrap(), &want, 2e-6);
}

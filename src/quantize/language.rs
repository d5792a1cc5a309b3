//! Language models as ONNX models, so that all that is done with those can be done with them.
//!
//! Invariant: the model has the checkpoint's weights as f32 under their names; samples are what texts are to it. A decoder's caches are
//! inputs and outputs, and a sample has none.

use super::onnx::Sample;
use crate::lm::{Encoder, LanguageModel, LmError, Passage, encoder_graph};
use crate::{Error, Observer, data};
use kiln_frontend::checkpoint::{Element, Folder, Loader, Stored, Weights};
use kiln_frontend::families::{Extent, Form, Past};
use kiln_frontend::gguf::Encoding;
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_frontend::onnx::export::export;
use kiln_frontend::onnx::model::{Dim, Model, ValueType};
use kiln_ir::{DType, Graph, Tensor};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::memory::Budget;
use std::collections::BTreeMap;

/// Weights of which blocks are written out.
struct Expanded<'a>(&'a dyn Weights);

impl Weights for Expanded<'_> {
    fn names(&self) -> Vec<String> {
        self.0.names()
    }

    fn get(&self, name: &str) -> Option<Stored> {
        let stored = self.0.get(name)?;
        if matches!(stored.element, Element::Other(_) | Element::Float(Encoding::F32)) {
            return Some(stored);
        }
        let bytes: Vec<u8> = stored.to_f32()?.into_iter().flat_map(f32::to_le_bytes).collect();
        Some(Stored { element: Element::Float(Encoding::F32), shape: stored.shape, bytes: bytes.into() })
    }
}

/// Least and greatest values of free dims by their names.
pub type Bounds = BTreeMap<String, (i64, i64)>;

fn model_of(graph: &Graph) -> Result<Model, Error> {
    export(graph).map_err(|e| Error::Unsupported(e.to_string()))
}

/// A decoder for up to `capacity` positions: `tokens`, `[1, tokens]`, and the caches to `logits` of all tokens and new parts of the
/// caches. With it, bounds of its free dims.
///
/// # Errors
/// [`Error::Usage`] for an artifact, [`Error::Lm`] for weights that do not fit.
pub fn decoder_onnx(model: &LanguageModel, capacity: usize) -> Result<(Model, Bounds), Error> {
    let artifact = || Error::Usage("an artifact is compiled already; quantize the checkpoint".into());
    let (decoder, weights) = model.decoder().zip(model.weights()).ok_or_else(artifact)?;
    let expanded = Expanded(&**weights);
    let loader = Loader::new(&expanded);
    let form = Form {
        batch: 1,
        tokens: Extent::Free,
        past: Past::Prefix(Extent::Free),
        capacity,
        logits: Logits::All,
        cache: CacheElement::F32,
    };
    let mut graph = decoder.graph(&loader, &form).map_err(|e| Error::Internal(e.to_string()))?;
    loader.finish(|name| decoder.known_surplus(name)).map_err(|e| LmError::Checkpoint(e.into()))?;
    // What is measured is the first output.
    graph.outputs.sort_by_key(|(name, _)| &**name != "logits");
    let most = i64::try_from(capacity).unwrap_or(i64::MAX);
    let bounds = Bounds::from([("tokens".to_string(), (1, most)), ("past".to_string(), (0, most))]);
    Ok((model_of(&graph)?, bounds))
}

/// Samples of a decoder: tokens, `window` at a time, with the token after each as its label; a rest of one token is left out.
///
/// # Errors
/// [`Error::Data`] where there are fewer than two tokens.
pub fn decoder_samples(onnx: &Model, tokens: &[u32], window: usize) -> Result<Vec<Sample>, Error> {
    let internal = |e: &dyn std::fmt::Display| Error::Internal(e.to_string());
    let mut samples = Vec::new();
    for piece in tokens.chunks(window.max(2)).filter(|piece| piece.len() > 1) {
        let input = |wanted: &data::Wanted| match (&wanted.ty, wanted.name.as_str()) {
            (_, "tokens") => {
                let ids: Vec<i64> = piece.iter().map(|&t| i64::from(t)).collect();
                Tensor::from_i64(&[1, ids.len()], &ids).map_err(|e| internal(&e))
            }
            (ValueType::Tensor(ty), _) => {
                let extent = |dim: &Dim| if let Dim::Fixed(n) = dim { *n } else { 0 };
                let shape: Vec<usize> = ty.shape.iter().flatten().map(extent).collect();
                Tensor::zeros(DType::F32, &shape).map_err(|e| internal(&e))
            }
            (ty, name) => Err(Error::Internal(format!("a decoder's input {name:?} is {ty}"))),
        };
        let inputs = data::wanted(onnx).iter().map(input).collect::<Result<_, _>>()?;
        // What follows the last is not known.
        let labels = piece.iter().skip(1).map(|&t| i64::from(t)).chain([-1]).collect();
        samples.push(Sample { inputs, labels: Some(labels) });
    }
    match samples.is_empty() {
        true => Err(Error::data("the text", "it has fewer than two tokens")),
        false => Ok(samples),
    }
}

/// An encoder with the head of its checkpoint, and bounds of its free dims.
///
/// # Errors
/// [`Error::Lm`] where the folder is of another family, or its weights do not fit.
pub fn encoder_onnx(folder: &Folder) -> Result<(Model, Bounds), Error> {
    let (graph, family) = encoder_graph(folder, &Expanded(&folder.weights), None)?;
    let most = i64::try_from(family.context()).unwrap_or(i64::MAX);
    Ok((model_of(&graph)?, Bounds::from([("tokens".to_string(), (1, most))])))
}

/// Samples of an encoder: texts, each on its own.
///
/// # Errors
/// There is no text, or one has too many tokens; and what compiling says.
pub fn encoder_samples(
    folder: &Folder,
    onnx: &Model,
    texts: &[String],
    place: (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
) -> Result<Vec<Sample>, Error> {
    if texts.is_empty() {
        return Err(Error::data("the text", "there is no line in it"));
    }
    let encoder = Encoder::of(folder.clone(), &folder.weights, None, place, budget, observer)?;
    let names: Vec<String> = data::wanted(onnx).into_iter().map(|w| w.name).collect();
    let sample = |text: &String| {
        let tokens = encoder.tokens(&[Passage { text, other: None }])?;
        Ok(Sample { inputs: encoder.inputs(&names, &tokens)?, labels: None })
    };
    texts.iter().map(sample).collect()
}

//! What the matrices of language models read on texts.
//!
//! Invariant: texts are read in pieces of one length at most, each on its own, without padding.

use super::Checkpoint;
use crate::lm::{Encoder, LanguageModel, LmError, Passage, ProgramOptions, Programs, Scored, Session, score, windows};
use crate::{Activations, Error, Observer, Options, Precision, compile_graph};
use kiln_frontend::checkpoint::{Folder, Loader};
use kiln_frontend::families::{Extent, Form, Head, Past};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::graph::Graph;
use kiln_ir::{DType, Tensor};
use kiln_passes::quantize::{Moments, moments, observing, products};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Moments of what each matrix reads, by the name of its weights. Matrices that read the same values share them.
pub type AllMoments = BTreeMap<String, Arc<Moments>>;

/// The hash of texts, as reports state it.
pub fn text_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// A graph whose runs give moments.
struct Observed {
    context: Context,
    inputs: Vec<(String, Vec<usize>)>,
    /// Which weights read each value.
    readers: Vec<Vec<String>>,
    all: Vec<Moments>,
}

impl Observed {
    fn new(
        graph: &Graph,
        place: (CpuLevel, usize),
        budget: &Budget,
        observer: &mut dyn Observer,
    ) -> Result<Observed, Error> {
        let products = products(graph);
        let values: BTreeSet<_> = products.iter().map(|p| p.input).collect();
        let values: Vec<_> = values.into_iter().collect();
        let reads = |v| products.iter().filter(|p| p.input == v).map(|p| p.name.clone()).collect();
        let readers = values.iter().map(|&v| reads(v)).collect();
        let observed = observing(graph, &values).map_err(|e| Error::Internal(e.to_string()))?;
        let options = Options { levels: vec![place.0], ..Options::default() };
        let model = compile_graph(observed, &options, observer)?.load(&ModelOptions::default())?;
        let plan = model.plan();
        let shape = |slot| plan.slots[slot].ty.shape().unwrap_or_default();
        let inputs = plan.inputs.iter().map(|(name, slot)| (name.to_string(), shape(*slot))).collect();
        let context = Context::new(&model, place.1, budget)?;
        Ok(Observed { context, inputs, readers, all: vec![Moments::default(); values.len()] })
    }

    fn run(&mut self, inputs: &[Tensor]) -> Result<(), Error> {
        let outputs = self.context.run(inputs)?;
        let found = moments(&outputs).ok_or_else(|| Error::Internal("statistics are not f32".into()))?;
        self.all.iter_mut().zip(&found).for_each(|(all, more)| all.add(more));
        Ok(())
    }

    fn finish(self) -> AllMoments {
        let shared = self.all.into_iter().map(Arc::new);
        let each = self.readers.into_iter().zip(shared);
        each.flat_map(|(readers, m)| readers.into_iter().map(move |name| (name, m.clone()))).collect()
    }
}

/// How likely a decoder finds the tokens, `window` at a time; each token but the first is predicted once.
///
/// # Errors
/// What compiling and running say.
pub fn decoder_score(
    model: &LanguageModel,
    (tokens, window): (&[u32], usize),
    (level, threads): (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
) -> Result<Scored, Error> {
    let (budget, activations, precision) = (budget.clone(), Activations::F32, Precision::F32);
    let options = ProgramOptions {
        capacity: window,
        threads,
        level,
        budget,
        all_logits: true,
        activations,
        precision,
        cache: None,
    };
    let mut programs = Programs::new(model, &options, observer)?;
    let mut session = Session::new(&programs)?;
    let mut scored = Scored::default();
    for (range, from) in windows(tokens.len(), window, window - 1) {
        let piece = tokens.get(range).unwrap_or_default();
        score(&mut programs, &mut session, piece, from, &mut scored)?;
    }
    match scored.log_probabilities.is_empty() {
        true => Err(LmError::Empty.into()),
        false => Ok(scored),
    }
}

/// An input, by its name and shape, of a decoder without a past for a piece of tokens.
pub(super) fn tokens_input((name, shape): &(String, Vec<usize>), piece: &[u32]) -> Result<Tensor, Error> {
    let made = match name.as_str() {
        "tokens" => Tensor::from_i64(shape, &piece.iter().map(|&t| i64::from(t)).collect::<Vec<_>>()),
        _ => Tensor::zeros(DType::F32, shape),
    };
    made.map_err(|e| Error::Internal(e.to_string()))
}

/// The matrices of a decoder, and what they read on the tokens, `window` at a time; a rest that is shorter is left out.
///
/// # Errors
/// There are fewer tokens than a window, or what compiling and running say.
pub fn decoder_moments(
    model: &LanguageModel,
    (tokens, window): (&[u32], usize),
    place: (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
    progress: &mut dyn FnMut(),
) -> Result<(Checkpoint, AllMoments), Error> {
    let artifact = || Error::Usage("an artifact is compiled already; quantize the checkpoint".into());
    let (decoder, weights) = model.decoder().zip(model.weights()).ok_or_else(artifact)?;
    let loader = Loader::new(&**weights);
    let past = Past::Prefix(Extent::Fixed(0));
    let form = Form {
        batch: 1,
        tokens: Extent::Fixed(window),
        past,
        capacity: window,
        logits: Logits::Last,
        cache: CacheElement::F32,
    };
    let graph = decoder.graph(&loader, &form).map_err(|e| Error::Internal(e.to_string()))?;
    loader.finish(|name| decoder.known_surplus(name)).map_err(|e| LmError::Checkpoint(e.into()))?;
    let checkpoint = Checkpoint { weights: weights.clone(), products: products(&graph), whole_groups: false };
    if tokens.is_empty() {
        return Ok((checkpoint, AllMoments::new()));
    }
    if tokens.len() < window {
        let message = format!("it has {} tokens, calibration reads {window} at a time", tokens.len());
        return Err(Error::data("the calibration text", message));
    }
    let mut observed = Observed::new(&graph, place, budget, observer)?;
    drop(graph);
    for piece in tokens.chunks_exact(window) {
        let inputs = observed.inputs.iter().map(|input| tokens_input(input, piece)).collect::<Result<Vec<_>, _>>()?;
        observed.run(&inputs)?;
        progress();
    }
    Ok((checkpoint, observed.finish()))
}

/// The matrices of an encoder with its head, and what they read on texts, each on its own.
///
/// # Errors
/// A text has too many tokens, or what compiling and running say.
pub fn encoder_moments(
    folder: &Folder,
    head: Option<Head>,
    texts: &[String],
    place: (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
    progress: &mut dyn FnMut(),
) -> Result<(Checkpoint, AllMoments), Error> {
    let (graph, _) = crate::lm::encoder_graph(folder, &folder.weights, head)?;
    let weights = Arc::new(folder.weights.clone());
    let checkpoint = Checkpoint { weights, products: products(&graph), whole_groups: true };
    if texts.is_empty() {
        return Ok((checkpoint, AllMoments::new()));
    }
    // The encoder itself makes the inputs; the statistics come from a graph of its own.
    let encoder = Encoder::of(folder.clone(), &folder.weights, head, place, budget, observer)?;
    let mut observed = Observed::new(&graph, place, budget, observer)?;
    for text in texts {
        let tokens = encoder.tokens(&[Passage { text, other: None }])?;
        let names: Vec<String> = observed.inputs.iter().map(|(name, _)| name.clone()).collect();
        let inputs = encoder.inputs(&names, &tokens)?;
        observed.run(&inputs)?;
        progress();
    }
    Ok((checkpoint, observed.finish()))
}

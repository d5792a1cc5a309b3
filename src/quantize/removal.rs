//! Which layers and heads of a language model are worth least.
//!
//! Invariant: worth is measured: each layer and head has a switch in one compiled graph, and its harm is how much worse a text is
//! modelled when it is off. What is chosen depends on nothing but the model, the text and what is asked for.

use super::metric::cosine;
use super::text::tokens_input;
use crate::lm::{Encoder, LanguageModel, LmError, Passage, log_softmax, switched_encoder_graph};
use crate::{Error, Observer, Options, compile_graph};
use kiln_frontend::checkpoint::{Cut, Folder, Loader};
use kiln_frontend::families::{Anatomy, Extent, Form, Head, Keys, Past};
use kiln_frontend::nn::{CacheElement, HEAD_SWITCH, LAYER_SWITCH, Logits, Switches};
use kiln_ir::{Graph, Tensor};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How much is to be taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Removal {
    /// Layers.
    pub layers: usize,
    /// The share of heads, from 0 to below 1.
    pub heads: f64,
}

/// What a layer or a head is worth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Worth {
    /// The layer, by its number in the model as it was.
    pub layer: usize,
    /// The head, by the number that the configuration gives it: of keys and values, with the queries that share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<usize>,
    /// By how much the measure becomes worse without it, besides what was taken out before.
    pub harm: f64,
}

/// What was measured and chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemovalReport {
    /// `loss`: of tokens in nats, greater is worse; `cosine` of embeddings with those of the whole model.
    pub measure: &'static str,
    /// The measure of the whole model.
    pub whole: f64,
    /// The measure without what was taken out.
    pub left: f64,
    /// For each layer that was taken out, what those still there were worth then.
    pub rounds: Vec<Vec<Worth>>,
    /// What heads were worth, without the layers that were taken out.
    pub heads: Vec<Worth>,
    /// Layers that were taken out.
    pub layers_removed: Vec<usize>,
    /// Heads that were taken out.
    pub heads_removed: Vec<Worth>,
}

/// Names and shapes of a graph's inputs.
type Inputs = Vec<(String, Vec<usize>)>;

/// How a run is judged.
enum Judge {
    /// By the probabilities of tokens.
    Loss(Vec<Vec<u32>>),
    /// By embeddings of the whole model, which the first run gives.
    Cosine(Vec<Vec<f32>>),
}

/// A compiled graph with switches, and what it is run on.
struct Gauge<'a> {
    anatomy: &'a Anatomy,
    context: Context,
    /// Names and shapes; those of switches are fixed.
    inputs: Inputs,
    samples: Vec<BTreeMap<String, Tensor>>,
    judge: Rc<Judge>,
    /// Runs that a choice takes, and who is told after each of them.
    runs: usize,
    progress: &'a mut dyn FnMut(usize),
}

impl Gauge<'_> {
    /// The inputs that switch off what is cut.
    fn switches(&self, cut: &Cut) -> Result<BTreeMap<String, Tensor>, Error> {
        let queries = self.anatomy.heads.as_ref().map_or(1, |parts| parts.queries.max(1));
        let mut all = BTreeMap::new();
        for (name, shape) in &self.inputs {
            let layer = |path: &str| self.anatomy.place(path).map(|(_, layer, _)| layer);
            let on: Vec<f32> = if let Some(path) = name.strip_prefix(LAYER_SWITCH) {
                let off = layer(path).is_some_and(|n| cut.layers.contains(&n));
                vec![if off { 0.0 } else { 1.0 }]
            } else if let Some(path) = name.strip_prefix(HEAD_SWITCH) {
                let gone = layer(path).and_then(|n| cut.heads.get(&n));
                let count = shape.first().copied().unwrap_or(0);
                let off = |head: usize| gone.is_some_and(|gone| gone.contains(&(head / queries)));
                (0..count).map(|head| if off(head) { 0.0 } else { 1.0 }).collect()
            } else {
                continue;
            };
            let tensor = Tensor::from_f32(&[on.len()], &on).map_err(|e| Error::Internal(e.to_string()))?;
            all.insert(name.clone(), tensor);
        }
        Ok(all)
    }

    /// Hands over the first output for each sample, with what is cut switched off.
    fn each(&mut self, cut: &Cut, visit: &mut dyn FnMut(usize, Vec<f32>)) -> Result<(), Error> {
        let switches = self.switches(cut)?;
        for (n, sample) in self.samples.iter().enumerate() {
            let input = |(name, _): &(String, Vec<usize>)| {
                let tensor = switches.get(name).or_else(|| sample.get(name));
                tensor.cloned().ok_or_else(|| Error::Internal(format!("no input {name:?}")))
            };
            let inputs = self.inputs.iter().map(input).collect::<Result<Vec<_>, _>>()?;
            let outputs = self.context.run(&inputs)?;
            let values = outputs.first().and_then(Tensor::to_f32);
            visit(n, values.ok_or_else(|| Error::Internal("the first output is not f32".into()))?);
        }
        (self.progress)(self.runs);
        Ok(())
    }

    /// The measure with what is cut switched off, and how bad that is; what is no number is worst.
    fn measure(&mut self, cut: &Cut) -> Result<(f64, f64), Error> {
        let judge = self.judge.clone();
        let (mut sum, mut count) = (0.0, 0usize);
        self.each(cut, &mut |n, output| match &*judge {
            Judge::Loss(texts) => {
                let tokens = texts.get(n).map(Vec::as_slice).unwrap_or_default();
                let size = output.len() / tokens.len().max(1);
                for (row, &next) in output.chunks(size.max(1)).zip(tokens.iter().skip(1)) {
                    sum -= log_softmax(row, next as usize).0;
                    count += 1;
                }
            }
            Judge::Cosine(whole) => {
                sum += whole.get(n).map_or(f64::NAN, |before| cosine(&output, before));
                count += 1;
            }
        })?;
        let mean = sum / count.max(1) as f64;
        let bad = if let Judge::Cosine(_) = *judge { 1.0 - mean } else { mean };
        Ok((mean, if bad.is_nan() { f64::INFINITY } else { bad }))
    }

    /// Takes out what is worth least: layers one by one, each time measuring those still there, then heads by what each of them alone
    /// is worth.
    fn choose(&mut self, removal: Removal) -> Result<(Cut, RemovalReport), Error> {
        let anatomy = self.anatomy;
        let mut cut = Cut::default();
        let (whole, mut harm) = self.measure(&cut)?;
        if !harm.is_finite() {
            return Err(Error::data("the calibration text", "the model gives no finite numbers for it"));
        }
        let mut report = RemovalReport {
            measure: if matches!(*self.judge, Judge::Loss(_)) { "loss" } else { "cosine" },
            whole,
            left: whole,
            rounds: Vec::new(),
            heads: Vec::new(),
            layers_removed: Vec::new(),
            heads_removed: Vec::new(),
        };
        for _ in 0..removal.layers {
            let mut round = Vec::new();
            for layer in (0..anatomy.count).filter(|n| !cut.layers.contains(n)).collect::<Vec<_>>() {
                let mut without = cut.clone();
                without.layers.insert(layer);
                round.push(Worth { layer, head: None, harm: self.measure(&without)?.1 - harm });
            }
            let least = round.iter().min_by(|a, b| a.harm.total_cmp(&b.harm)).copied();
            let Some(least) = least else { break };
            cut.layers.insert(least.layer);
            report.layers_removed.push(least.layer);
            harm += least.harm;
            report.rounds.push(round);
        }
        if let (Ok(parts), true) = (&anatomy.heads, removal.heads > 0.0) {
            // By layer, the place of the unit in it, and what it is worth.
            let mut units = Vec::new();
            for layer in (0..anatomy.count).filter(|n| !cut.layers.contains(n)).collect::<Vec<_>>() {
                for (unit, &head) in parts.units.get(layer).into_iter().flatten().enumerate() {
                    let mut without = cut.clone();
                    without.heads.insert(layer, BTreeSet::from([unit]));
                    let worth = Worth { layer, head: Some(head), harm: self.measure(&without)?.1 - harm };
                    units.push((unit, worth));
                    report.heads.push(worth);
                }
            }
            let even = matches!(parts.keys, Keys::Counts { .. });
            for (unit, worth) in least_heads(&units, removal.heads, even)? {
                cut.heads.entry(worth.layer).or_default().insert(unit);
                report.heads_removed.push(worth);
            }
        }
        report.left = self.measure(&cut)?.0;
        Ok((cut, report))
    }
}

/// The units that are worth least: a share of all, of which each layer keeps one, or where layers are to stay `even` the share of each.
fn least_heads(units: &[(usize, Worth)], share: f64, even: bool) -> Result<Vec<(usize, Worth)>, Error> {
    let mut order = units.to_vec();
    order.sort_by(|(_, a), (_, b)| a.harm.total_cmp(&b.harm).then(a.layer.cmp(&b.layer)).then(a.head.cmp(&b.head)));
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    units.iter().for_each(|(_, worth)| *sizes.entry(worth.layer).or_default() += 1);
    let of = |count: usize| (count as f64 * share).round() as usize;
    let total: usize = if even { sizes.values().map(|&n| of(n)).sum() } else { of(units.len()) };
    let most: usize = sizes.values().map(|n| n - 1).sum();
    if total == 0 || total > most {
        let (least, each) = (sizes.values().min().copied().unwrap_or(0), if even { " of each layer" } else { "" });
        let message = format!(
            "a share of {share} of the heads is {total} of {}{each}, and from 1 to {most} can be taken out (heads of keys go with the \
             queries that share them; the smallest layer has {least})",
            units.len()
        );
        return Err(Error::Usage(message));
    }
    let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
    let mut chosen = Vec::new();
    for (unit, worth) in order {
        let size = sizes.get(&worth.layer).copied().unwrap_or(0);
        let here = taken.entry(worth.layer).or_default();
        let most = if even { of(size) } else { size - 1 };
        if *here < most && chosen.len() < total {
            *here += 1;
            chosen.push((unit, worth));
        }
    }
    Ok(chosen)
}

/// How many runs over the texts a choice takes.
fn runs_of(anatomy: &Anatomy, removal: Removal) -> usize {
    let layers: usize = (0..removal.layers).map(|gone| anatomy.count.saturating_sub(gone)).sum();
    let heads = anatomy.heads.as_ref().map_or(0, |parts| parts.units.iter().map(Vec::len).sum());
    layers + if removal.heads > 0.0 { heads } else { 0 } + 3
}

/// Refuses what cannot be taken out of any text's model.
fn check(anatomy: &Anatomy, removal: Removal) -> Result<(), Error> {
    let unsupported = |what: String| Err(Error::Unsupported(what));
    match (&anatomy.heads, anatomy.ordered) {
        (_, Some(why)) if removal.layers > 0 => unsupported(format!("layers cannot be taken out: {why}")),
        (Err(why), _) if removal.heads > 0.0 => unsupported(format!("heads cannot be taken out: {why}")),
        _ if removal.layers >= anatomy.count => {
            Err(Error::Usage(format!("of {} layers {} cannot be taken out", anatomy.count, removal.layers)))
        }
        _ => Ok(()),
    }
}

fn is_switch(name: &str) -> bool {
    name.starts_with(LAYER_SWITCH) || name.starts_with(HEAD_SWITCH)
}

fn compiled(
    graph: Graph,
    (level, threads): (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
) -> Result<(Context, Inputs), Error> {
    let options = Options { levels: vec![level], ..Options::default() };
    let model = compile_graph(graph, &options, observer)?.load(&ModelOptions::default())?;
    let plan = model.plan();
    let shape = |slot| plan.slots[slot].ty.shape().unwrap_or_default();
    let inputs = plan.inputs.iter().map(|(name, slot)| (name.to_string(), shape(*slot))).collect();
    Ok((Context::new(&model, threads, budget)?, inputs))
}

/// What is to be taken out of a decoder, by its loss on tokens that are read `window` at a time.
///
/// `progress` is told after each run over the texts how many there are in all.
///
/// # Errors
/// It cannot be taken out, there are fewer than two tokens, or what compiling and running say.
pub fn decoder_removal(
    model: &LanguageModel,
    removal: Removal,
    (tokens, window): (&[u32], usize),
    place: (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
    progress: &mut dyn FnMut(usize),
) -> Result<(Cut, Anatomy, RemovalReport), Error> {
    let artifact = || Error::Usage("an artifact is compiled already; quantize the checkpoint".into());
    let (decoder, weights) = model.decoder().zip(model.weights()).ok_or_else(artifact)?;
    let anatomy = decoder.anatomy();
    check(&anatomy, removal)?;
    let window = window.min(tokens.len());
    if window < 2 {
        return Err(Error::data("the calibration text", "it has fewer than two tokens"));
    }
    let loader = Loader::new(&**weights).keeping_blocks();
    let past = Past::Prefix(Extent::Fixed(0));
    let (tokens_of, logits, cache) = (Extent::Fixed(window), Logits::All, CacheElement::F32);
    let form = Form { batch: 1, tokens: tokens_of, past, capacity: window, logits, cache };
    let mut graph = decoder.graph(&Switches(&loader), &form).map_err(|e| Error::Internal(e.to_string()))?;
    loader.finish(|name| decoder.known_surplus(name)).map_err(|e| LmError::Checkpoint(e.into()))?;
    graph.outputs.retain(|(name, _)| &**name == "logits");
    let (context, inputs) = compiled(graph, place, budget, observer)?;
    let texts: Vec<Vec<u32>> = tokens.chunks_exact(window).map(<[u32]>::to_vec).collect();
    let sample = |piece: &Vec<u32>| {
        let given = inputs.iter().filter(|(name, _)| !is_switch(name));
        given.map(|input| Ok((input.0.clone(), tokens_input(input, piece)?))).collect::<Result<_, Error>>()
    };
    let samples = texts.iter().map(sample).collect::<Result<Vec<_>, _>>()?;
    let (judge, runs) = (Rc::new(Judge::Loss(texts)), runs_of(&anatomy, removal));
    let mut gauge = Gauge { anatomy: &anatomy, context, inputs, samples, judge, runs, progress };
    let (cut, report) = gauge.choose(removal)?;
    Ok((cut, anatomy, report))
}

/// What is to be taken out of an encoder, by the cosine of embeddings of texts with those that the whole model gives.
///
/// `progress` is told after each run over the texts how many there are in all.
///
/// # Errors
/// It cannot be taken out, there is no text, or what compiling and running say.
pub fn encoder_removal(
    folder: &Folder,
    removal: Removal,
    texts: &[String],
    place: (CpuLevel, usize),
    budget: &Budget,
    observer: &mut dyn Observer,
    progress: &mut dyn FnMut(usize),
) -> Result<(Cut, Anatomy, RemovalReport), Error> {
    if texts.is_empty() {
        return Err(Error::data("the calibration text", "there is no line in it"));
    }
    let head = Some(Head::Embedding);
    let encoder = Encoder::of(folder.clone(), &folder.weights, head, place, budget, observer)?;
    let anatomy = encoder.family().anatomy();
    let anatomy = anatomy.ok_or_else(|| {
        Error::Unsupported(
            "layers and heads can be taken out of BERT, RoBERTa, ELECTRA and DistilBERT, not of this".into(),
        )
    })?;
    check(&anatomy, removal)?;
    let (graph, _) = switched_encoder_graph(folder, &folder.weights, head)?;
    let (context, inputs) = compiled(graph, place, budget, observer)?;
    let names: Vec<String> = inputs.iter().map(|(name, _)| name.clone()).filter(|name| !is_switch(name)).collect();
    let sample = |text: &String| {
        let tokens = encoder.tokens(&[Passage { text, other: None }])?;
        Ok(names.iter().cloned().zip(encoder.inputs(&names, &tokens)?).collect())
    };
    let samples = texts.iter().map(sample).collect::<Result<Vec<_>, Error>>()?;
    let (judge, runs) = (Rc::new(Judge::Cosine(Vec::new())), runs_of(&anatomy, removal));
    let mut gauge = Gauge { anatomy: &anatomy, context, inputs, samples, judge, runs, progress };
    let mut whole = Vec::with_capacity(texts.len());
    gauge.each(&Cut::default(), &mut |_, embedding| whole.push(embedding))?;
    gauge.judge = Rc::new(Judge::Cosine(whole));
    let (cut, report) = gauge.choose(removal)?;
    Ok((cut, anatomy, report))
}

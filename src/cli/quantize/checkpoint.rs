//! Language models.

use super::super::Talk;
use super::super::eval::bar;
use super::super::generate::DEFAULT_CONTEXT;
use super::super::options::Progress;
use super::{ActivationsWord, Args, Emit, Outcome, read};
use kiln::checkpoint::{CheckpointError, Folder, Weights};
use kiln::families::Head;
use kiln::lm::{Encoder, LanguageModel, LmError, Passage};
use kiln::passes::quantize::Grid;
use kiln::quantize::budget::{self, Candidate};
use kiln::quantize::metric::{Metric, cosines, perplexities};
use kiln::quantize::{self, AllMoments, Checkpoint, Files, Kept, Method, PrunedMatrices, Quantization};
use kiln::{Error, data};
use serde_json::{Value, json};

/// A model of either kind.
pub enum Model {
    Decoder(Box<LanguageModel>),
    Encoder(Box<Folder>),
}

/// A model with its files.
pub struct Opened {
    pub model: Model,
    pub files: Files,
    /// The model from which layers or heads were taken out; nothing where none were.
    pub before: Option<Model>,
    /// What was taken out, for the report.
    pub removed: Value,
}

pub fn run(args: &Args, opened: Opened, talk: Talk) -> Result<Outcome, Error> {
    let Opened { model, files, before, removed } = opened;
    let folder = args.model.is_dir();
    let artifact = args.emit() == Some(Emit::Artifact);
    match folder && !artifact {
        true => quantize::vacant(&args.output)?,
        false => data::writable(&args.output)?,
    }
    let options = args.options();
    refuse_unsupported(args)?;
    let text = args.text.as_deref().map(read).transpose()?;
    let held_back = match args.held_back.as_slice() {
        [] => None,
        [one] => Some(read(one)?),
        _ => return Err(Error::Usage("language models are measured on one text: give one --held-back".into())),
    };
    let (text, held_back) = match (&args.metric, text, held_back) {
        (Some(_), None, None) => {
            return Err(Error::Usage(
                "a budget is measured on a text: give it with --held-back, or with --text to be divided".into(),
            ));
        }
        (Some(_), Some(whole), None) => {
            let (first, last) = divided(&whole);
            (Some(first.to_string()), Some(last.to_string()))
        }
        (_, text, held_back) => (text, held_back),
    };
    if options.method.needs_data() && text.is_none() {
        return Err(Error::Usage(format!("{} needs calibration data: give a text with --text", options.method.name())));
    }
    let hash = text.as_deref().map(quantize::text_hash);
    let (mut checkpoint, moments, seen) = statistics(args, &model, text.as_deref().unwrap_or_default(), talk)?;
    checkpoint.whole_groups = folder && !artifact;
    let mut pruned = PrunedMatrices::default();
    if let Some(prune) = args.prune {
        (checkpoint, pruned) = quantize::pruned(&checkpoint, &|values, columns| prune.of(values, columns))?;
    }
    let (mut made, found) = match args.metric() {
        None if args.no_quantize => (Quantization::default(), Value::Null),
        None => (quantized(args, args.weights, &checkpoint, &moments, talk)?, Value::Null),
        Some(metric) => {
            let text = held_back.as_deref().unwrap_or_default();
            let models = (before.as_ref().unwrap_or(&model), &model);
            within_budget(args, &metric, models, &checkpoint, &moments, text, talk)?
        }
    };
    if made.layers.is_empty() && !args.no_quantize {
        let reasons: Vec<String> = made.kept.iter().take(5).map(|k| format!("{}: {}", k.name, k.reason)).collect();
        return Err(Error::Usage(format!("nothing of the model can be quantized so: {}", reasons.join("; "))));
    }
    // What was pruned and not quantized is what was measured, and so what is written.
    pruned.changed.into_iter().for_each(|(name, stored)| {
        made.changed.entry(name).or_insert(stored);
    });
    let bytes = if artifact {
        let Model::Decoder(model) = model else { return Err(Error::Internal("an encoder's artifact".into())) };
        let capacity = model.context().min(DEFAULT_CONTEXT);
        let options = args.machinery.options(args.machinery.artifact_levels(), Default::default())?;
        let model = model.with_weights(checkpoint.with(&made));
        model.compile((capacity, Default::default()), &options, &mut Progress::new(talk))?.write(&args.output)?
    } else {
        match &files {
            Files::Folder(folder) => quantize::write_folder(&args.model, folder, &made, &args.output)?,
            Files::Gguf(file) => quantize::write_gguf(file, &made, &args.output)?,
        }
    };
    let details = json!({ "calibration": { "hash": hash, "read": seen }, "budget": found, "pruned": pruned.reports,
                          "removed": removed });
    Ok(Outcome { bytes, layers: made.layers, kept: made.kept, details })
}

/// Refuses options that are for ONNX models.
fn refuse_unsupported(args: &Args) -> Result<(), Error> {
    let given = [
        (args.activations != ActivationsWord::F32, "--activations"),
        (args.per_tensor, "--per-tensor"),
        (args.bias_correction, "--bias-correction"),
        (args.equalise, "--equalise"),
        (args.smooth.is_some(), "--smooth"),
        (!args.data.is_empty(), "--data"),
        (args.measure_layers.is_some(), "--measure-layers"),
    ];
    match given.into_iter().find(|(given, _)| *given) {
        Some((_, option)) => {
            Err(Error::Unsupported(format!("{option} is for ONNX models; this is a language model's checkpoint")))
        }
        None => Ok(()),
    }
}

/// The model of the options.
pub fn open(args: &Args) -> Result<Opened, Error> {
    let files = Files::read(&args.model)?;
    let model = match (files.decoder(), &files) {
        (Ok(model), _) => Model::Decoder(Box::new(model)),
        (Err(Error::Lm(LmError::Checkpoint(CheckpointError::Family(..)))), Files::Folder(folder)) => {
            Model::Encoder(folder.clone())
        }
        (Err(e), _) => return Err(e),
    };
    Ok(Opened { model, files, before: None, removed: Value::Null })
}

/// A text by whole lines: three quarters to calibrate with, the rest to measure a budget on.
fn divided(whole: &str) -> (&str, &str) {
    let split = whole.match_indices('\n').map(|(at, _)| at + 1).find(|&at| at >= whole.len() / 4 * 3);
    whole.split_at(split.unwrap_or(whole.len()))
}

pub fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|l| !l.trim().is_empty()).map(String::from).collect()
}

fn statistics(args: &Args, model: &Model, text: &str, talk: Talk) -> Result<(Checkpoint, AllMoments, usize), Error> {
    let machinery = &args.machinery;
    let (place, window) = ((machinery.level_here()?, machinery.threads()), args.window as usize);
    let wanted = args.options().method != Method::Nearest || args.metric.is_some();
    let text = if wanted { text } else { "" };
    let mut observer = Progress::new(talk);
    match model {
        Model::Decoder(model) => {
            let mut tokens = if text.is_empty() { Vec::new() } else { model.tokenizer().encode(text, false)? };
            tokens.truncate((args.samples as usize).max(window));
            let progress = bar(talk, tokens.len() / window);
            let step = &mut || progress.inc(1);
            let (checkpoint, moments) =
                quantize::decoder_moments(model, (&tokens, window), place, &machinery.budget(), &mut observer, step)?;
            progress.finish_and_clear();
            Ok((checkpoint, moments, tokens.len() / window * window))
        }
        Model::Encoder(folder) => {
            let mut texts = lines(text);
            texts.truncate(args.samples as usize);
            let progress = bar(talk, texts.len());
            let step = &mut || progress.inc(1);
            let (checkpoint, moments) =
                quantize::encoder_moments(folder, None, &texts, place, &machinery.budget(), &mut observer, step)?;
            progress.finish_and_clear();
            Ok((checkpoint, moments, texts.len()))
        }
    }
}

fn quantized(
    args: &Args,
    grid: Grid,
    checkpoint: &Checkpoint,
    moments: &AllMoments,
    talk: Talk,
) -> Result<Quantization, Error> {
    let progress = bar(talk, checkpoint.products.len());
    let wanted = |name: &str| args.wanted(name, grid);
    let made = quantize::quantize(checkpoint, &wanted, moments, &mut || progress.inc(1))?;
    progress.finish_and_clear();
    Ok(made)
}

/// The cheapest mix of precisions that keeps the budget on a text: of a model, of which `original` is what it was before anything was
/// taken out.
fn within_budget(
    args: &Args,
    metric: &Metric,
    (original, model): (&Model, &Model),
    checkpoint: &Checkpoint,
    moments: &AllMoments,
    text: &str,
    talk: Talk,
) -> Result<(Quantization, Value), Error> {
    if args.options().method == Method::Awq {
        let message = "a budget with awq: its scales bind layers together; use gptq, hqq or rtn";
        return Err(Error::Unsupported(message.into()));
    }
    // All layers on each grid once; a mix takes each layer from one of them.
    let mut levels = Vec::new();
    for grid in args.grids() {
        levels.push(quantized(args, grid, checkpoint, moments, talk)?);
    }
    let none = Quantization::default();
    let first = levels.first().unwrap_or(&none);
    let mut candidates = Vec::with_capacity(first.layers.len());
    if levels.is_empty() {
        // Nothing is to be quantized: there is one mix, which keeps the budget or does not.
        let bytes =
            checkpoint.weights.names().iter().filter_map(|n| Some(checkpoint.weights.get(n)?.bytes.len())).sum();
        candidates.push(Candidate { name: "all weights".into(), bytes: vec![bytes], error: 0.0 });
    }
    for layer in &first.layers {
        let of = |made: &Quantization| {
            made.layers.iter().find(|l| l.name == layer.name).map_or(layer.bytes_f32, |l| l.bytes)
        };
        let left = checkpoint.weights.get(&layer.name).map_or(layer.bytes_f32, |s| s.bytes.len());
        let bytes = levels.iter().map(of).chain([left]).collect();
        candidates.push(Candidate { name: layer.name.clone(), bytes, error: layer.relative_error });
    }
    let mix = |choices: &[usize]| {
        let mut made = Quantization { kept: first.kept.clone(), ..Quantization::default() };
        if levels.is_empty() {
            return made;
        }
        for (candidate, &choice) in candidates.iter().zip(choices) {
            // What `--layer` fixes is the same on all grids.
            let choice = if args.told(&[&candidate.name]).is_some() { 0 } else { choice };
            let level = levels.get(choice);
            let layer = level.and_then(|l| l.layers.iter().find(|l| l.name == candidate.name));
            match (layer, level.and_then(|l| l.changed.get(&candidate.name))) {
                (Some(layer), Some(stored)) => {
                    made.changed.insert(candidate.name.clone(), stored.clone());
                    made.layers.push(layer.clone());
                }
                _ => made.kept.push(Kept { name: candidate.name.clone(), reason: "the budget asks for it".into() }),
            }
        }
        made
    };
    let machinery = &args.machinery;
    let (place, window) = ((machinery.level_here()?, machinery.threads()), args.window as usize);
    let (memory, mut observer) = (machinery.budget(), Progress::new(talk));
    let max_drop = args.max_drop()?;
    let samples;
    let found = match (original, model, metric) {
        (Model::Decoder(original), Model::Decoder(model), Metric::Perplexity) => {
            let tokens = model.tokenizer().encode(text, true)?;
            samples = tokens.len();
            let before = quantize::decoder_score(original, (&tokens, window), place, &memory, &mut observer)?;
            budget::search(&candidates, max_drop, 0, &mut |choices| {
                let changed = (**model).clone().with_weights(checkpoint.with(&mix(choices)));
                let after = quantize::decoder_score(&changed, (&tokens, window), place, &memory, &mut observer)?;
                Ok(perplexities(&before, &after))
            })?
        }
        (Model::Encoder(original), Model::Encoder(folder), Metric::Cosine) => {
            let texts = lines(text);
            samples = texts.len();
            let mut embed = |folder: &Folder, weights: &dyn Weights| -> Result<Vec<Vec<f32>>, Error> {
                let head = Some(Head::Embedding);
                let mut encoder = Encoder::of(folder.clone(), weights, head, place, &memory, &mut observer)?;
                let each = texts.iter().map(|text| {
                    let tokens = encoder.tokens(&[Passage { text, other: None }])?;
                    let made = encoder.run(&tokens)?;
                    let made = made.get("sentence_embedding").and_then(|t| t.to_f32());
                    made.ok_or_else(|| Error::Internal("an encoder without embeddings".into()))
                });
                each.collect()
            };
            let before = embed(original, &original.weights)?;
            if before.is_empty() {
                return Err(Error::data("the held-back text", "there is no line in it"));
            }
            budget::search(&candidates, max_drop, 0, &mut |choices| {
                Ok(cosines(&before, &embed(folder, &*checkpoint.with(&mix(choices)))?))
            })?
        }
        (Model::Decoder(_), ..) => {
            return Err(Error::Unsupported(format!("decoders are measured by perplexity, not {}", metric.name())));
        }
        (Model::Encoder(_), ..) => {
            return Err(Error::Unsupported(format!("encoders are measured by cosine, not {}", metric.name())));
        }
    };
    let names: Vec<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
    let hash = Some(quantize::text_hash(text));
    let (choices, report) = super::kept_budget(found, metric, max_drop, &names, hash, samples)?;
    Ok((mix(&choices), report))
}

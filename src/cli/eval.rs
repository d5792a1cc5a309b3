//! `kiln eval`: what language models make of texts.

mod choices;
mod tokens;

use super::Talk;
use super::options::{Adapted, Machinery, Progress};
use clap::{Args as ClapArgs, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use kiln::Error;
use kiln::families::Head;
use kiln::ir::Tensor;
use kiln::lm::{Encoder, LanguageModel, LmError, Passage, ProgramOptions, Programs, Scored, Session, score, windows};
use kiln::nn::CacheElement;
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Evaluate a language model on texts
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Sentence embeddings: the mean over the tokens, of length 1
    Embed(Texts),
    /// Cosines between all pairs of texts
    Similarity(Texts),
    /// Class of each text by a model of sequence classification
    Classify(Texts),
    /// Entities in texts by a model of token classification; with the right tags, how well they are found
    Tokens(tokens::Args),
    /// The most likely words for the model's mask token in each text
    Mask(Masked),
    /// The part of a text that answers a question
    Answer(Answer),
    /// Perplexity of a text, in windows
    Perplexity(Perplexity),
    /// Log-probability of texts after a prompt, ranked; and how often the right one is first
    Score(choices::Args),
}

#[derive(Debug, ClapArgs)]
struct Texts {
    /// A folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// A text; several times for several
    #[arg(long, value_name = "TEXT", required_unless_present = "file")]
    text: Vec<String>,
    /// A file with a text in each line
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Texts that run together
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    #[command(flatten)]
    machinery: Machinery,
}

#[derive(Debug, ClapArgs)]
struct Masked {
    #[command(flatten)]
    texts: Texts,
    /// Words for each mask
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
}

#[derive(Debug, ClapArgs)]
struct Answer {
    /// A folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The question
    #[arg(long, value_name = "TEXT")]
    question: String,
    /// The text that holds the answer
    #[arg(long, value_name = "TEXT")]
    context: String,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 30)]
    longest: usize,
    #[command(flatten)]
    machinery: Machinery,
}

#[derive(Debug, ClapArgs)]
struct Perplexity {
    /// A GGUF file, or a folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The file with the text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Tokens between the beginnings of windows [default: half a window]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stride: Option<u32>,
    /// What keys and values are kept in: f32, f16, bf16, int8 [default: f32, or the artifact's]
    #[arg(long, value_name = "E")]
    cache: Option<CacheElement>,
    #[command(flatten)]
    adapted: Adapted,
    #[command(flatten)]
    machinery: Machinery,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        match &self.what {
            What::Embed(texts) => embed(texts, talk),
            What::Similarity(texts) => similarity(texts, talk),
            What::Classify(texts) => classify(texts, talk),
            What::Tokens(args) => args.run(talk),
            What::Mask(masked) => mask(masked, talk),
            What::Answer(args) => answer(args, talk),
            What::Perplexity(args) => perplexity(args, talk),
            What::Score(args) => args.run(talk),
        }
    }
}

impl Texts {
    fn all(&self) -> Result<Vec<String>, Error> {
        texts(&self.text, self.file.as_deref())
    }
}

/// The texts that were given, or the lines of a file.
fn texts(given: &[String], file: Option<&Path>) -> Result<Vec<String>, Error> {
    match file {
        None => Ok(given.to_vec()),
        Some(path) => Ok(read(path)?.lines().map(String::from).collect()),
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|_| Error::data(path.display(), "the text is not UTF-8"))
}

pub(super) fn bar(talk: Talk, steps: usize) -> ProgressBar {
    if talk.quiet || talk.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

fn encoder(model: &Path, head: Option<Head>, machinery: &Machinery, talk: Talk) -> Result<Encoder, Error> {
    let place = (machinery.level_here()?, machinery.threads());
    machinery.activations_of_model("encoders")?;
    if machinery.checked_precision()? != kiln::Precision::F32 {
        return Err(Error::Usage("encoders have no --precision but f32 yet".into()));
    }
    Encoder::open(model, head, place, &machinery.budget(), &mut Progress::new(talk))
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    tensor.to_f32().ok_or_else(|| Error::Internal("an encoder's output is not f32".into()))
}

/// One output of the encoder for each text, as rows.
fn outputs(args: &Texts, head: Head, name: &str, talk: Talk) -> Result<(Encoder, Vec<Vec<f32>>), Error> {
    let texts = args.all()?;
    let mut encoder = encoder(&args.model, Some(head), &args.machinery, talk)?;
    let mut rows = Vec::with_capacity(texts.len());
    let bar = bar(talk, texts.len());
    for batch in texts.chunks(args.batch as usize) {
        let passages: Vec<Passage<'_>> = batch.iter().map(|text| Passage { text, other: None }).collect();
        let tokens = encoder.tokens(&passages)?;
        let made = encoder.run(&tokens)?;
        let tensor = made.get(name).ok_or_else(|| Error::Internal(format!("an encoder without `{name}`")))?;
        let values = floats(tensor)?;
        rows.extend(values.chunks(values.len() / batch.len()).map(<[f32]>::to_vec));
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok((encoder, rows))
}

fn embed(args: &Texts, talk: Talk) -> Result<(), Error> {
    let (_, rows) = outputs(args, Head::Embedding, "sentence_embedding", talk)?;
    let mut text = String::new();
    for row in &rows {
        let words: Vec<String> = row.iter().map(ToString::to_string).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", words.join(" "));
    }
    talk.report(&json!({ "embeddings": rows }), &text)
}

fn similarity(args: &Texts, talk: Talk) -> Result<(), Error> {
    let (_, rows) = outputs(args, Head::Embedding, "sentence_embedding", talk)?;
    let texts = args.all()?;
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut pairs: Vec<(f64, usize, usize)> = Vec::new();
    for (i, a) in rows.iter().enumerate() {
        pairs.extend(rows.iter().enumerate().skip(i + 1).map(|(j, b)| (cosine(a, b), i, j)));
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut text = String::new();
    for (value, i, j) in &pairs {
        let _ = writeln!(text, "{value:.4}  {:?}  {:?}", texts[*i], texts[*j]);
    }
    let list: Vec<Value> = pairs.iter().map(|(v, i, j)| json!({"cosine": v, "first": i, "second": j})).collect();
    talk.report(&json!({ "pairs": list }), &text)
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f64> = logits.iter().map(|&l| f64::from(l - most).exp()).collect();
    let sum: f64 = parts.iter().sum();
    parts.iter().map(|p| p / sum).collect()
}

fn classify(args: &Texts, talk: Talk) -> Result<(), Error> {
    let (encoder, rows) = outputs(args, Head::Sequence, "logits", talk)?;
    let labels = &encoder.family().labels;
    let (mut text, mut list) = (String::new(), Vec::new());
    for (given, row) in args.all()?.iter().zip(&rows) {
        // One class is a regression: its value is the answer.
        if let [value] = row[..] {
            let _ = writeln!(text, "{value}  {given:?}");
            list.push(json!({ "text": given, "value": value }));
            continue;
        }
        let parts = softmax(row);
        let best = (0..parts.len()).max_by(|&a, &b| parts[a].total_cmp(&parts[b])).unwrap_or(0);
        let label = labels.get(best).cloned().unwrap_or_default();
        let _ = writeln!(text, "{label}  {:.4}  {given:?}", parts[best]);
        let all: serde_json::Map<String, Value> = labels.iter().cloned().zip(parts.iter().map(|p| json!(p))).collect();
        list.push(json!({ "text": given, "label": label, "probabilities": all }));
    }
    talk.report(&json!({ "texts": list }), &text)
}

fn mask(args: &Masked, talk: Talk) -> Result<(), Error> {
    let mut encoder = encoder(&args.texts.model, Some(Head::MaskedLanguage), &args.texts.machinery, talk)?;
    let vocabulary = encoder.family().vocabulary();
    let found = ["[MASK]", "<mask>"].into_iter().find_map(|text| Some((text, encoder.tokenizer().token(text)?)));
    let (word, id) = found.ok_or_else(|| LmError::Tokenizer("it has no mask token".into()))?;
    let (mut text, mut list) = (String::new(), Vec::new());
    for given in args.texts.all()? {
        let tokens = encoder.tokens(&[Passage { text: &given, other: None }])?;
        let logits = encoder.run(&tokens)?.remove("logits").map(|t| floats(&t)).transpose()?.unwrap_or_default();
        let places: Vec<usize> = (0..tokens.ids[0].len()).filter(|&n| tokens.ids[0][n] == id).collect();
        if places.is_empty() {
            return Err(Error::Usage(format!("the text {given:?} has no {word}")));
        }
        for place in places {
            let parts = softmax(logits.get(place * vocabulary..(place + 1) * vocabulary).unwrap_or_default());
            let mut order: Vec<usize> = (0..parts.len()).collect();
            order.sort_by(|&a, &b| parts[b].total_cmp(&parts[a]).then(a.cmp(&b)));
            let mut words = Vec::new();
            for &token in order.iter().take(args.top) {
                words.push((encoder.tokenizer().decode(&[token as u32])?.trim().to_string(), parts[token]));
            }
            let shown: Vec<String> = words.iter().map(|(w, p)| format!("{w} {p:.4}")).collect();
            let _ = writeln!(text, "{}  {given:?}", shown.join(", "));
            let words: Vec<Value> = words.iter().map(|(w, p)| json!({"word": w, "probability": p})).collect();
            list.push(json!({ "text": given, "token": place, "words": words }));
        }
    }
    talk.report(&json!({ "masks": list }), &text)
}

fn answer(args: &Answer, talk: Talk) -> Result<(), Error> {
    let mut encoder = encoder(&args.model, Some(Head::Answer), &args.machinery, talk)?;
    let tokens = encoder.tokens(&[Passage { text: &args.question, other: Some(&args.context) }])?;
    let made = encoder.run(&tokens)?;
    let logits = |name: &str| made.get(name).map(floats).transpose().map(Option::unwrap_or_default);
    let (starts, ends) = (softmax(&logits("start_logits")?), softmax(&logits("end_logits")?));
    let (sequence, offsets) = (&tokens.sequence[0], &tokens.offsets[0]);
    let inside: Vec<usize> = (0..sequence.len()).filter(|&n| sequence[n] == Some(1)).collect();
    let mut best = (f64::NEG_INFINITY, 0, 0);
    for &start in &inside {
        for &end in inside.iter().filter(|&&end| end >= start && end - start < args.longest) {
            let value = starts[start] * ends[end];
            if value > best.0 {
                best = (value, offsets[start].0, offsets[end].1);
            }
        }
    }
    let (probability, start, end) = best;
    let found = args.context.get(start..end).unwrap_or_default();
    let report = json!({ "answer": found, "start": start, "end": end, "probability": probability });
    talk.report(&report, &format!("{found}\n"))
}

/// How a decoder with room for so many tokens is made ready to score them.
fn program_options(
    (capacity, cache): (usize, Option<CacheElement>),
    machinery: &Machinery,
) -> Result<ProgramOptions, Error> {
    Ok(ProgramOptions {
        capacity,
        threads: machinery.threads(),
        level: machinery.level_here()?,
        budget: machinery.budget(),
        all_logits: true,
        activations: machinery.activations,
        precision: machinery.checked_precision()?,
        cache,
    })
}

/// A decoder's programs, with room for so many tokens.
fn programs(
    model: &LanguageModel,
    room: (usize, Option<CacheElement>),
    machinery: &Machinery,
    talk: Talk,
) -> Result<Programs, Error> {
    Programs::new(model, &program_options(room, machinery)?, &mut Progress::new(talk))
}

fn perplexity(args: &Perplexity, talk: Talk) -> Result<(), Error> {
    let text = read(&args.text)?;
    let window = args.window as usize;
    let stride = args.stride.map_or(window / 2, |s| s as usize);
    if stride > window {
        return Err(Error::Usage(format!("--stride {stride} would leave out tokens between windows of {window}")));
    }
    let model = args.adapted.open(&args.model)?;
    let mut programs = programs(&model, (window, args.cache), &args.machinery, talk)?;
    let tokens = model.tokenizer().encode(&text, true)?;
    let mut session = Session::new(&programs)?;
    let mut scored = Scored::default();
    let windows = windows(tokens.len(), window, stride);
    let bar = bar(talk, windows.len());
    for (range, from) in &windows {
        score(&mut programs, &mut session, &tokens[range.clone()], *from, &mut scored)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    if scored.log_probabilities.is_empty() {
        return Err(LmError::Empty.into());
    }
    let (mean, half) = scored.mean_loss();
    let bits = -scored.total() / std::f64::consts::LN_2 / text.len() as f64;
    let bounds = [(mean - half).exp(), (mean + half).exp()];
    let report = json!({
        "tokens": tokens.len(), "predicted": scored.log_probabilities.len(), "bytes": text.len(), "window": window,
        "stride": stride, "loss": mean, "perplexity": mean.exp(), "interval_95": bounds, "bits_per_byte": bits,
    });
    let text = format!(
        "perplexity {:.4} (95 %: {:.4} to {:.4}), {bits:.4} bits a byte, {} tokens\n",
        mean.exp(),
        bounds[0],
        bounds[1],
        scored.log_probabilities.len()
    );
    talk.report(&report, &text)
}

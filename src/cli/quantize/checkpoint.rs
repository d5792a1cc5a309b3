//! Language models.

use super::super::Talk;
use super::super::eval::bar;
use super::super::options::Progress;
use super::{Args, read};
use kiln::checkpoint::Folder;
use kiln::lm::{LanguageModel, LmError};
use kiln::quantize::{self, AllMoments, Checkpoint, Method, Quantization};
use kiln::{Error, data, source};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::Instant;

pub fn run(args: &Args, talk: Talk) -> Result<(), Error> {
    let start = Instant::now();
    let folder = args.model.is_dir();
    if folder {
        quantize::vacant(&args.output)?;
    } else {
        data::writable(&args.output)?;
    }
    let text = args.text.as_deref().map(read).transpose()?;
    let hash = text.as_deref().map(quantize::text_hash);
    if args.weights().method.needs_data() && text.is_none() {
        let name = args.weights().method.name();
        return Err(Error::Usage(format!("{name} needs calibration data: give a text with --text")));
    }
    let (mut checkpoint, moments, read) = match decoder(args)? {
        Some(model) => decoder_statistics(args, &model, text.as_deref().unwrap_or_default(), talk)?,
        None => encoder_statistics(args, text.as_deref().unwrap_or_default(), talk)?,
    };
    checkpoint.whole_groups = folder;
    let progress = bar(talk, checkpoint.products.len());
    let made = quantize::quantize(&checkpoint, &|name| args.wanted(name), &moments, &mut || progress.inc(1))?;
    progress.finish_and_clear();
    if made.layers.is_empty() {
        let reasons: Vec<String> = made.kept.iter().take(5).map(|k| format!("{}: {}", k.name, k.reason)).collect();
        return Err(Error::Usage(format!("nothing of the model can be quantized so: {}", reasons.join("; "))));
    }
    let bytes = if folder {
        let weights = Folder::read(&source::Within(&args.model)).map_err(LmError::from)?.weights;
        quantize::write_folder(&args.model, &weights, &made, &args.output)?
    } else {
        quantize::write_gguf(&args.model, &made, &args.output)?
    };
    let seconds = start.elapsed().as_secs_f64();
    let report = json!({
        "model": args.model.display().to_string(), "output": args.output.display().to_string(), "bytes": bytes,
        "method": args.weights().method.name(), "weights": args.weights.to_string(), "activations": "f32",
        "group": args.group, "calibration": { "hash": hash, "read": read }, "layers": made.layers, "kept": made.kept,
        "seconds": seconds,
    });
    if let Some(path) = &args.report {
        write_report(path, &report)?;
    }
    talk.report(&report, &table(&made, bytes, seconds))
}

pub fn write_report(path: &std::path::Path, report: &Value) -> Result<(), Error> {
    let text = format!("{report:#}\n");
    let written = data::replace(path, |out| std::io::Write::write_all(out, text.as_bytes()));
    written.map_err(|source| Error::Write { path: path.into(), source })
}

/// The model as a decoder, if it is one.
fn decoder(args: &Args) -> Result<Option<LanguageModel>, Error> {
    match LanguageModel::open(&args.model) {
        Ok(model) => Ok(Some(model)),
        Err(Error::Lm(LmError::Checkpoint(kiln::checkpoint::CheckpointError::Family(..)))) if args.model.is_dir() => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn decoder_statistics(
    args: &Args,
    model: &LanguageModel,
    text: &str,
    talk: Talk,
) -> Result<(Checkpoint, AllMoments, usize), Error> {
    let machinery = &args.machinery;
    let place = (machinery.level_here()?, machinery.threads());
    let window = args.window as usize;
    let mut tokens = Vec::new();
    if args.weights().method != Method::Nearest && !text.is_empty() {
        tokens = model.tokenizer().encode(text, false)?;
        tokens.truncate(args.samples as usize / window * window);
    }
    let progress = bar(talk, tokens.len() / window);
    let mut observer = Progress::new(talk);
    let step = &mut || progress.inc(1);
    let (checkpoint, moments) =
        quantize::decoder_moments(model, (&tokens, window), place, &machinery.budget(), &mut observer, step)?;
    progress.finish_and_clear();
    Ok((checkpoint, moments, tokens.len()))
}

fn encoder_statistics(args: &Args, text: &str, talk: Talk) -> Result<(Checkpoint, AllMoments, usize), Error> {
    let machinery = &args.machinery;
    let place = (machinery.level_here()?, machinery.threads());
    let folder = Folder::read(&source::Within(&args.model)).map_err(LmError::from)?;
    let mut texts: Vec<String> = Vec::new();
    if args.weights().method != Method::Nearest {
        texts = text.lines().filter(|l| !l.trim().is_empty()).take(args.samples as usize).map(String::from).collect();
    }
    let progress = bar(talk, texts.len());
    let mut observer = Progress::new(talk);
    let step = &mut || progress.inc(1);
    let (checkpoint, moments) =
        quantize::encoder_moments(&folder, None, &texts, place, &machinery.budget(), &mut observer, step)?;
    progress.finish_and_clear();
    Ok((checkpoint, moments, texts.len()))
}

/// The report for people.
fn table(made: &Quantization, bytes: u64, seconds: f64) -> String {
    let mut text = String::new();
    let mut worst: Vec<_> = made.layers.iter().collect();
    worst.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error).then(a.name.cmp(&b.name)));
    for layer in worst.iter().take(10) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<50} {:<6} error {:.3e}", layer.name, layer.precision, layer.relative_error);
    }
    let (now, before) = made.layers.iter().fold((0, 0), |(n, b), l| (n + l.bytes, b + l.bytes_f32));
    let _ = writeln!(
        text,
        "{} matrices, {:.1} MB of {:.1} MB as f32; {} left as they are; {:.1} MB written, in {seconds:.1} s",
        made.layers.len(),
        now as f64 / 1e6,
        before as f64 / 1e6,
        made.kept.len(),
        bytes as f64 / 1e6,
    );
    text
}

//! Layers and heads that are taken out before anything is quantized.

use super::super::Talk;
use super::super::eval::bar;
use super::super::options::Progress;
use super::checkpoint::{Model, Opened, lines};
use super::{Args, Emit, read};
use kiln::quantize::{self, Files};
use kiln::{Error, data};
use serde_json::{Value, json};

/// Most tokens of a decoder's text, and most texts of an encoder, by which worth is measured: each layer and each head is a run over
/// all of them.
const MOST: (usize, usize) = (2048, 64);

/// That only checkpoints have layers and heads here.
pub fn not_a_checkpoint() -> Error {
    Error::Unsupported(
        "--drop-layers and --drop-heads are for language models' checkpoints (a GGUF file, or a folder); an ONNX model does not say \
         which of its nodes are a layer or a head"
            .into(),
    )
}

/// The model without what is to be taken out; the model as it was stays beside it.
pub fn without(args: &Args, opened: Opened, talk: Talk) -> Result<Opened, Error> {
    let Some(removal) = args.removal() else { return Ok(opened) };
    // Measuring takes long: what cannot be written is said before.
    match args.keeps_form(&opened.model) && args.emit() != Some(Emit::Artifact) && args.model.is_dir() {
        true => quantize::vacant(&args.output)?,
        false => data::writable(&args.output)?,
    }
    let text = args.text.as_deref().map(read).transpose()?.unwrap_or_default();
    // What a budget is measured on is not what was chosen by: where a part of --text is taken for it, it lies in the second half.
    let divided = args.metric.is_some() && args.held_back.is_empty();
    let machinery = &args.machinery;
    let (place, budget) = ((machinery.level_here()?, machinery.threads()), machinery.budget());
    let (mut observer, progress) = (Progress::new(talk), bar(talk, 0));
    let step = &mut |runs: usize| {
        progress.set_length(runs as u64);
        progress.inc(1);
    };
    let Opened { model, files, .. } = opened;
    let (read, (cut, anatomy, report)) = match &model {
        Model::Decoder(decoder) => {
            let mut tokens = decoder.tokenizer().encode(&text, false)?;
            if divided {
                tokens.truncate(tokens.len() / 2);
            }
            let window = (args.window as usize).min(decoder.context());
            tokens.truncate(MOST.0.min(args.samples as usize).max(window));
            let given = (tokens.as_slice(), window);
            (tokens.len(), quantize::decoder_removal(decoder, removal, given, place, &budget, &mut observer, step)?)
        }
        Model::Encoder(folder) => {
            let mut texts = lines(&text);
            if divided {
                texts.truncate(texts.len() / 2);
            }
            texts.truncate(MOST.1.min(args.samples as usize));
            (texts.len(), quantize::encoder_removal(folder, removal, &texts, place, &budget, &mut observer, step)?)
        }
    };
    progress.finish_and_clear();
    let files = files.without(&anatomy, &cut)?;
    let smaller = match (&files, &model) {
        (Files::Folder(folder), Model::Encoder(_)) => Model::Encoder(folder.clone()),
        (files, _) => Model::Decoder(Box::new(files.decoder()?)),
    };
    let mut removed = json!(report);
    removed["hash"] = json!(quantize::text_hash(&text));
    removed["read"] = json!(read);
    Ok(Opened { model: smaller, files, before: Some(model), removed })
}

/// What was taken out, for people; nothing where nothing was.
pub fn line(removed: &Value) -> String {
    let count = |key: &str| removed[key].as_array().map_or(0, Vec::len);
    let value = |key: &str| removed[key].as_f64().unwrap_or_default();
    let Some(measure) = removed["measure"].as_str() else { return String::new() };
    let layers: Vec<String> =
        removed["layers_removed"].as_array().into_iter().flatten().map(Value::to_string).collect();
    let layers = if layers.is_empty() { String::new() } else { format!(" ({})", layers.join(", ")) };
    format!(
        "{} layers{layers} and {} heads taken out: {measure} {:.4}, was {:.4}\n",
        count("layers_removed"),
        count("heads_removed"),
        value("left"),
        value("whole"),
    )
}

//! `kiln generate`: text that continues a prompt.

use super::Talk;
use super::options::{Machinery, Progress};
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::lm::{Generator, LanguageModel, Message, ProgramOptions, Programs, Sampling, Session, Settings, Stop};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Continue a text with a language model
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A GGUF file, or a folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The text to continue
    #[arg(long, short, value_name = "TEXT", required_unless_present = "prompt_file")]
    prompt: Option<String>,
    /// The file with the text to continue; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// Take the prompt as what a user says, in the form of the model's chat template
    #[arg(long)]
    chat: bool,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most tokens to generate [default: until the text ends or the context is full]
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens of prompt and continuation together that there is room for [default: what they need, up to the model's context]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Divides the logits; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = not_negative)]
    temperature: f64,
    /// Choose among the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Choose among the most likely tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = part)]
    top_p: f64,
    /// Choose among tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = part)]
    min_p: f64,
    /// Divides the logits of tokens that are there already
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = positive)]
    repetition_penalty: f64,
    /// Taken from a token's logit for each time that it was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = finite)]
    frequency_penalty: f64,
    /// Taken from a token's logit once it was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, value_parser = finite)]
    presence_penalty: f64,
    /// Added to the logit of a token, given by its number; several times for several tokens
    #[arg(long, value_name = "TOKEN=X", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f64)>,
    /// Never choose the tokens that this text begins with, after a space or not; several times for several
    #[arg(long, value_name = "TEXT")]
    ban: Vec<String>,
    /// Stop before this text; several times for several
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on after the token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// Of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    machinery: Machinery,
}

/// Where a text is as long as the model allows, so much is compiled for unless more is asked.
const DEFAULT_CONTEXT: usize = 2048;

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let prompt = self.prompt_text()?;
        let model = LanguageModel::open(&self.model)?;
        let tokens = if self.chat {
            let system = self.system.as_deref().map(|text| Message::new("system", text));
            let messages: Vec<Message> = system.into_iter().chain([Message::new("user", &prompt)]).collect();
            model.chat(&messages)?
        } else {
            model.tokenizer().encode(&prompt, true)?
        };
        let capacity = self.capacity(tokens.len(), model.decoder().context());
        let options = ProgramOptions {
            capacity,
            threads: self.machinery.threads(),
            level: self.machinery.level_here()?,
            budget: self.machinery.budget(),
            all_logits: false,
        };
        let mut programs = Programs::compile(&model, &options, &mut Progress::new(talk))?;
        let mut bias: BTreeMap<u32, f64> = self.logit_bias.iter().copied().collect();
        for text in &self.ban {
            for text in [text.clone(), format!(" {text}")] {
                bias.extend(model.tokenizer().encode(&text, false)?.first().map(|&token| (token, f64::NEG_INFINITY)));
            }
        }
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            bias,
            seed: self.seed,
        };
        let settings =
            Settings { sampling, max_tokens: self.max_tokens, ignore_end: self.ignore_eos, stops: self.stop.clone() };
        let mut session = Session::new(&programs)?;
        // A reader that goes away ends the text; another failure to write is reported at the end.
        let mut written = Ok(());
        let mut receive = |piece: &str| {
            if talk.json {
                return true;
            }
            let mut out = io::stdout().lock();
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            written.is_ok()
        };
        let made = Generator::new(&model, &mut programs).run(&mut session, &tokens, &settings, &mut receive)?;
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(source) => return Err(Error::Write { path: "standard output".into(), source }),
            Ok(()) => {}
        }
        let (prefill, decode) = (made.prefill.as_secs_f64(), made.decode.as_secs_f64());
        let rate = made.tokens_per_second();
        if talk.json {
            let stop = match &made.stop {
                Stop::End => json!("end"),
                Stop::Length => json!("length"),
                Stop::Text(text) => json!({ "text": text }),
                Stop::Capacity => json!("capacity"),
                Stop::Receiver => json!("receiver"),
            };
            let report = json!({
                "prompt_tokens": made.prompt_tokens, "tokens": made.tokens, "text": made.text, "stop": stop,
                "prefill_s": prefill, "decode_s": decode, "tokens_per_s": rate,
            });
            return talk.report(&report, &"");
        }
        super::print("\n")?;
        tracing::info!("{} tokens read in {prefill:.3} s, {} generated", made.prompt_tokens, made.tokens.len());
        tracing::info!("{decode:.3} s, {rate:.1} tokens/s, stop: {:?}", made.stop);
        Ok(())
    }

    fn prompt_text(&self) -> Result<String, Error> {
        if let Some(prompt) = &self.prompt {
            return Ok(prompt.clone());
        }
        let path = self.prompt_file.clone().unwrap_or_default();
        let mut bytes = Vec::new();
        let read = match path.as_os_str() == "-" {
            true => io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
            false => std::fs::read(&path).map(|found| bytes = found),
        };
        read.map_err(|source| Error::Read { path: path.clone(), source })?;
        String::from_utf8(bytes).map_err(|_| Error::data(path.display(), "the prompt is not UTF-8"))
    }

    /// Positions to compile for.
    fn capacity(&self, prompt: usize, context: usize) -> usize {
        if let Some(context) = self.context {
            return context as usize;
        }
        let most = context.min(DEFAULT_CONTEXT.max(prompt.saturating_add(prompt / 2)));
        self.max_tokens.map_or(most, |n| prompt.saturating_add(n).next_multiple_of(64).min(context))
    }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| format!("{text:?} is no number"))
}

fn finite(text: &str) -> Result<f64, String> {
    number(text)
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("it must not be negative".into()) })
}

fn positive(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| if v > 0.0 { Ok(v) } else { Err("it must be positive".into()) })
}

fn part(text: &str) -> Result<f64, String> {
    number(text).and_then(|v| if (0.0..=1.0).contains(&v) { Ok(v) } else { Err("it must be from 0 to 1".into()) })
}

fn parse_bias(text: &str) -> Result<(u32, f64), String> {
    let (token, bias) = text.split_once('=').ok_or("it must be TOKEN=X")?;
    let token = token.parse::<u32>().map_err(|_| format!("{token:?} is no token's number"))?;
    let bias = bias.parse::<f64>().ok().filter(|v| !v.is_nan()).ok_or_else(|| format!("{bias:?} is no number"))?;
    Ok((token, bias))
}

//! `kiln generate`: text that continues a prompt.

use super::Talk;
use super::options::{Adapted, Machinery, Patience, Progress};
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::lm::{
    BeamSearch, Constraint, Ending, Generation, Generator, Hypothesis, LanguageModel, LmError, Message, Opened,
    PackedPrograms, ProgramOptions, Programs, Sampling, SequenceModel, SequencePrograms, Session, Settings, Stop,
    Together, Tokenizer, pattern,
};
use kiln::nn::CacheElement;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::Instant;

/// Continue a text with a language model; with an encoder-decoder, such as T5, answer it: translate, summarise
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A GGUF file, a folder with config.json, safetensors and tokenizer.json, or an artifact of one
    model: PathBuf,
    /// The text to continue
    #[arg(long, short, value_name = "TEXT", required_unless_present_any = ["prompt_file", "batch"])]
    prompt: Option<String>,
    /// The file with the text to continue; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// A file with a text to continue in each line; each answer is a line with a JSON string, or all are one report with --json
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file"])]
    batch: Option<PathBuf>,
    /// With --batch: continue up to N texts at once, each with an equal part of the room; the texts are those of one at a time, but for
    /// the order in which sums are rounded
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256), requires = "batch")]
    #[arg(conflicts_with_all = ["beams", "lookup"])]
    together: u32,
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
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    ban: Vec<String>,
    /// No N tokens in a row come twice in prompt and text; 0 allows it
    #[arg(long, value_name = "N", default_value_t = 0)]
    no_repeat: usize,
    /// Follow the N likeliest texts at once, and give the best
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    #[arg(conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "stop"])]
    beams: u32,
    /// With --beams: the power of a text's length by which its log-probability is divided; more favours long texts
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, value_parser = finite)]
    length_penalty: f64,
    /// With --beams: end as soon as N texts have ended (full), once better ones are unlikely, or impossible (exact)
    #[arg(long, value_name = "WHEN", default_value = "unlikely", value_parser = parse_ending)]
    ending: Ending,
    /// Stop before this text; several times for several
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    stop: Vec<String>,
    /// Go on after the token that ends a text
    #[arg(long)]
    ignore_eos: bool,
    /// The text is one that this regular expression matches whole
    #[arg(long, value_name = "REGEX", conflicts_with_all = ["json_schema", "ignore_eos"])]
    regex: Option<String>,
    /// The text is JSON by the schema in this file; properties come sorted by name
    #[arg(long, value_name = "FILE", conflicts_with = "ignore_eos")]
    json_schema: Option<PathBuf>,
    /// Guess up to N tokens ahead from what the text has had before, and check them at once; the text is the same
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=64), conflicts_with_all = ["beams"])]
    lookup: u32,
    /// Of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What keys and values are kept in: f32, f16, bf16, int8 (with a scale for each head of each token) [default: f32, or the artifact's]
    #[arg(long, value_name = "E")]
    cache: Option<CacheElement>,
    #[command(flatten)]
    adapted: Adapted,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    machinery: Machinery,
}

/// Where a text is as long as the model allows, so much is compiled for unless more is asked.
pub(super) const DEFAULT_CONTEXT: usize = 2048;

/// A model, compiled, with the tokens of its prompts.
struct Ready {
    model: Model,
    prompts: Vec<Vec<u32>>,
    /// Most tokens that an answer can have.
    most: usize,
}

// There is one of it, whose size does not matter.
#[allow(clippy::large_enum_variant)]
enum Model {
    /// The session is that of the prompt before: what both begin with is not read again.
    Decoder(LanguageModel, Programs, Session),
    Sequence(SequenceModel, SequencePrograms),
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        self.patience.within(|| self.run_within(talk))
    }

    fn run_within(&self, talk: Talk) -> Result<(), Error> {
        let prompts = self.prompts()?;
        if self.together > 1 {
            return self.together(&prompts, talk);
        }
        let ready = match Opened::open(&self.model)? {
            Opened::Sequence(model) => self.sequence(*model, &prompts, talk)?,
            Opened::Decoder(model) => self.decoder(*model, &prompts, talk)?,
        };
        // The process ends with it: giving memory back piece by piece would only keep whoever waits for its end.
        let mut ready = ManuallyDrop::new(ready);
        let of_model = match &ready.model {
            Model::Decoder(..) => Sampling::default(),
            Model::Sequence(model, _) => model.sampling(Some(self.max_tokens.unwrap_or(ready.most))),
        };
        let vocabulary = ready.model.vocabulary();
        let settings = self.settings(of_model, vocabulary, (ready.model.tokenizer(), ready.model.ends()))?;
        let (mut reports, several) = (Vec::new(), self.batch.is_some());
        for prompt in std::mem::take(&mut ready.prompts) {
            let silent = talk.json || several;
            let (report, text) = if self.beams > 1 {
                self.search(&mut ready, &prompt, &settings)?
            } else {
                match self.continued(&mut ready, &prompt, &settings, silent)? {
                    Some(made) => made,
                    None => return Ok(()),
                }
            };
            match (talk.json, several, self.beams > 1) {
                (true, ..) => reports.push(report),
                (false, true, _) => super::print(&format!("{}\n", json!(text)))?,
                (false, false, true) => super::print(&format!("{text}\n"))?,
                (false, false, false) => super::print("\n")?,
            }
        }
        match (talk.json, several) {
            (false, _) => Ok(()),
            (true, true) => talk.report(&json!({ "texts": reports }), &""),
            (true, false) => talk.report(&reports.pop().unwrap_or_default(), &""),
        }
    }

    /// The texts to continue.
    fn prompts(&self) -> Result<Vec<String>, Error> {
        if let Some(prompt) = &self.prompt {
            return Ok(vec![prompt.clone()]);
        }
        let path = self.batch.clone().or(self.prompt_file.clone()).unwrap_or_default();
        let mut bytes = Vec::new();
        let read = match path.as_os_str() == "-" {
            true => io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
            false => std::fs::read(&path).map(|found| bytes = found),
        };
        read.map_err(|source| Error::Read { path: path.clone(), source })?;
        let text = String::from_utf8(bytes).map_err(|_| Error::data(path.display(), "the prompt is not UTF-8"))?;
        if self.batch.is_none() {
            return Ok(vec![text]);
        }
        let lines: Vec<String> = text.lines().map(String::from).collect();
        if lines.is_empty() { Err(Error::data(path.display(), "there is no line")) } else { Ok(lines) }
    }

    fn options(&self, capacity: usize) -> Result<ProgramOptions, Error> {
        Ok(ProgramOptions {
            capacity,
            threads: self.machinery.threads(),
            level: self.machinery.level_here()?,
            budget: self.machinery.budget(),
            all_logits: self.lookup > 0,
            activations: self.machinery.activations,
            precision: self.machinery.checked_precision()?,
            cache: self.cache,
        })
    }

    /// A decoder, with room for the longest prompt.
    fn decoder(&self, model: LanguageModel, prompts: &[String], talk: Talk) -> Result<Ready, Error> {
        let model = self.adapted.applied(model)?;
        let prompts = self.tokens(&model, prompts)?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let capacity = self.capacity(longest, model.context());
        let programs = Programs::new(&model, &self.options(capacity)?, &mut Progress::new(talk))?;
        let session = Session::new(&programs)?;
        Ok(Ready { model: Model::Decoder(model, programs, session), prompts, most: capacity })
    }

    /// The tokens of prompts.
    fn tokens(&self, model: &LanguageModel, prompts: &[String]) -> Result<Vec<Vec<u32>>, Error> {
        let tokens = |prompt: &String| match self.chat {
            false => model.tokenizer().encode(prompt, true),
            true => {
                let system = self.system.as_deref().map(|text| Message::new("system", text));
                let messages: Vec<Message> = system.into_iter().chain([Message::new("user", prompt)]).collect();
                model.chat(&messages)
            }
        };
        Ok(prompts.iter().map(tokens).collect::<Result<_, _>>()?)
    }

    /// Several prompts of a decoder, continued at once.
    fn together(&self, prompts: &[String], talk: Talk) -> Result<(), Error> {
        let Opened::Decoder(model) = Opened::open(&self.model)? else {
            return Err(Error::Usage("--together is for decoders; this model answers a text by another".into()));
        };
        let model = self.adapted.applied(*model)?;
        let prompts = self.tokens(&model, prompts)?;
        let most = self.together as usize;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let each = self.capacity(longest, model.context());
        // An artifact has room for so many positions of all texts.
        let each = if model.cache().is_some() { each.min(model.context() / most) } else { each };
        let options = self.options(each.saturating_mul(most))?;
        let mut programs = PackedPrograms::new(&model, &options, &mut Progress::new(talk))?;
        let settings = self.settings(Sampling::default(), programs.vocabulary(), (model.tokenizer(), model.ends()))?;
        let start = Instant::now();
        let made = Together { model: &model, settings: &settings, most }.run(&mut programs, &prompts)?;
        let seconds = start.elapsed().as_secs_f64();
        let tokens = made.iter().map(|text| text.tokens.len()).sum::<usize>();
        let mut lines = String::new();
        for text in &made {
            lines.push_str(&format!("{}\n", json!(text.text)));
        }
        let texts: Vec<Value> = made.iter().map(described).collect();
        let report = json!({ "texts": texts, "together": most, "seconds": seconds, "generated": tokens,
                             "tokens_per_s": tokens as f64 / seconds });
        talk.report(&report, &lines)
    }

    /// An encoder-decoder, with room for the longest source.
    fn sequence(&self, model: SequenceModel, prompts: &[String], talk: Talk) -> Result<Ready, Error> {
        if self.chat {
            return Err(Error::Usage("--chat is for decoders; this model answers a text by another".into()));
        }
        self.adapted.only_decoders()?;
        let tokens = |prompt: &String| model.tokenizer().encode(prompt, true);
        let prompts = prompts.iter().map(tokens).collect::<Result<Vec<_>, _>>()?;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0).max(1);
        if let Some(capacity) = model.longest_source().filter(|&c| longest > c) {
            return Err(LmError::Capacity { tokens: longest, used: 0, capacity }.into());
        }
        let capacity = self.capacity(model.begin().len(), model.context().unwrap_or(DEFAULT_CONTEXT));
        let options = self.options(capacity)?;
        let programs = SequencePrograms::new(&model, longest, &options, &mut Progress::new(talk))?;
        Ok(Ready { model: Model::Sequence(model, programs), prompts, most: capacity })
    }

    fn settings(
        &self,
        of_model: Sampling,
        vocabulary: usize,
        (tokenizer, ends): (&Tokenizer, &BTreeSet<u32>),
    ) -> Result<Settings, Error> {
        let mut bias: BTreeMap<u32, f64> = of_model.bias;
        if let Some(&(token, _)) = self.logit_bias.iter().find(|(token, _)| *token as usize >= vocabulary) {
            return Err(LmError::Token { token, vocabulary }.into());
        }
        bias.extend(self.logit_bias.iter().copied());
        for text in &self.ban {
            for text in [text.clone(), format!(" {text}")] {
                bias.extend(tokenizer.encode(&text, false)?.first().map(|&token| (token, f64::NEG_INFINITY)));
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
            no_repeat: self.no_repeat,
            forced: if self.ignore_eos { BTreeMap::new() } else { of_model.forced },
            seed: self.seed,
        };
        Ok(Settings {
            sampling,
            max_tokens: self.max_tokens,
            ignore_end: self.ignore_eos,
            stops: self.stop.clone(),
            constraint: self.constraint((tokenizer, ends))?,
            lookup: self.lookup as usize,
        })
    }

    /// What the text must follow.
    fn constraint(&self, (tokenizer, ends): (&Tokenizer, &BTreeSet<u32>)) -> Result<Option<Constraint>, Error> {
        let expression = match (&self.regex, &self.json_schema) {
            (None, None) => return Ok(None),
            (Some(regex), _) => regex.clone(),
            (None, Some(path)) => {
                let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
                let schema: Value = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::data(path.display(), format!("not JSON: {e}")))?;
                pattern(&schema)?
            }
        };
        Ok(Some(Constraint::new(&expression, tokenizer, ends)?))
    }

    /// A text that goes on token by token, shown as it comes unless `silent`; nothing where its reader has gone away.
    fn continued(
        &self,
        ready: &mut Ready,
        prompt: &[u32],
        settings: &Settings,
        silent: bool,
    ) -> Result<Option<(Value, String)>, Error> {
        // A reader that goes away ends the text; another failure to write is reported at the end.
        let mut written = Ok(());
        let mut receive = |piece: &str| {
            if silent {
                return true;
            }
            let mut out = io::stdout().lock();
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            written.is_ok()
        };
        let made = ready.model.generate(prompt, settings, &mut receive)?;
        match written {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
            Err(source) => return Err(Error::Write { path: "standard output".into(), source }),
            Ok(()) => {}
        }
        let (prefill, decode) = (made.prefill.as_secs_f64(), made.decode.as_secs_f64());
        let rate = made.tokens_per_second();
        tracing::info!("{} tokens read in {prefill:.3} s, {} generated", prompt.len(), made.tokens.len());
        tracing::info!("{decode:.3} s, {rate:.1} tokens/s, stop: {:?}", made.stop);
        Ok(Some((described(&made), made.text)))
    }

    /// The best text of several.
    fn search(&self, ready: &mut Ready, prompt: &[u32], settings: &Settings) -> Result<(Value, String), Error> {
        let search = BeamSearch {
            beams: self.beams as usize,
            length_penalty: self.length_penalty,
            ending: self.ending,
            max_tokens: self.max_tokens.unwrap_or(ready.most),
            sampling: settings.sampling.clone(),
            constraint: settings.constraint.clone(),
        };
        let start = Instant::now();
        let found = ready.model.search(prompt, &search, self.ignore_eos)?;
        let seconds = start.elapsed().as_secs_f64();
        let tokenizer = ready.model.tokenizer();
        let mut beams = Vec::with_capacity(found.len());
        for Hypothesis { tokens, score, ended } in &found {
            let stop = if *ended { "end" } else { "length" };
            beams.push(json!({ "text": tokenizer.decode(tokens)?, "tokens": tokens, "score": score, "stop": stop }));
        }
        let first = beams.first().cloned().unwrap_or_default();
        let text = first["text"].as_str().unwrap_or_default().to_string();
        let report = json!({
            "prompt_tokens": prompt.len(), "tokens": first["tokens"], "text": text, "stop": first["stop"],
            "score": first["score"], "seconds": seconds, "beams": beams,
        });
        Ok((report, text))
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

/// A text and how it came about.
fn described(made: &Generation) -> Value {
    let stop = match &made.stop {
        Stop::End => json!("end"),
        Stop::Length => json!("length"),
        Stop::Text(text) => json!({ "text": text }),
        Stop::Capacity => json!("capacity"),
        Stop::Receiver => json!("receiver"),
    };
    let (prefill, decode) = (made.prefill.as_secs_f64(), made.decode.as_secs_f64());
    json!({
        "prompt_tokens": made.prompt_tokens, "tokens": made.tokens, "text": made.text, "stop": stop, "prefill_s": prefill,
        "decode_s": decode, "tokens_per_s": made.tokens_per_second(), "cache_bytes": made.cache_bytes,
    })
}

impl Model {
    fn tokenizer(&self) -> &Tokenizer {
        match self {
            Model::Decoder(model, ..) => model.tokenizer(),
            Model::Sequence(model, _) => model.tokenizer(),
        }
    }

    /// Number of tokens that have a logit.
    fn vocabulary(&self) -> usize {
        match self {
            Model::Decoder(_, programs, _) => programs.vocabulary(),
            Model::Sequence(model, _) => model.vocabulary(),
        }
    }

    fn ends(&self) -> &BTreeSet<u32> {
        match self {
            Model::Decoder(model, ..) => model.ends(),
            Model::Sequence(model, _) => model.ends(),
        }
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        settings: &Settings,
        receive: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, Error> {
        match self {
            Model::Decoder(model, programs, session) => {
                Generator::new(model, programs).run(session, prompt, settings, receive)
            }
            Model::Sequence(model, programs) => {
                let start = Instant::now();
                let mut session = programs.begin(prompt)?;
                let encoding = start.elapsed();
                let mut generator = Generator::of_targets(model, programs);
                let made = generator.run(&mut session, &model.begin(), settings, receive)?;
                Ok(Generation { prefill: made.prefill + encoding, ..made })
            }
        }
    }

    fn search(&mut self, prompt: &[u32], search: &BeamSearch, ignore_end: bool) -> Result<Vec<Hypothesis>, Error> {
        let ends = if ignore_end { BTreeSet::new() } else { self.ends().clone() };
        match self {
            Model::Decoder(_, programs, _) => {
                let session = Session::new(programs)?;
                search.run(programs, session, prompt, &ends)
            }
            Model::Sequence(model, programs) => {
                let session = programs.begin(prompt)?;
                search.run(programs.decoder(), session, &model.begin(), &ends)
            }
        }
    }
}

fn parse_ending(text: &str) -> Result<Ending, String> {
    match text {
        "unlikely" => Ok(Ending::Unlikely),
        "full" => Ok(Ending::Full),
        "exact" => Ok(Ending::Exact),
        other => Err(format!("{other:?} is none of unlikely, full, exact")),
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

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it must not be empty".into()) } else { Ok(text.into()) }
}

fn parse_bias(text: &str) -> Result<(u32, f64), String> {
    let (token, bias) = text.split_once('=').ok_or("it must be TOKEN=X")?;
    let token = token.parse::<u32>().map_err(|_| format!("{token:?} is no token's number"))?;
    let bias = bias.parse::<f64>().ok().filter(|v| !v.is_nan()).ok_or_else(|| format!("{bias:?} is no number"))?;
    Ok((token, bias))
}

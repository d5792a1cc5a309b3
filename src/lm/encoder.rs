//! A text encoder with its head, compiled.
//!
//! Invariant: texts of a call are padded to the longest one, on the side that their family wants, and what they are padded with
//! changes nothing.

use super::{LmError, Tokenizer};
use crate::source::Within;
use crate::{Error, Observer, Options, compile_graph};
use kiln_frontend::checkpoint::{CheckpointError, Folder, Loader, Weights};
use kiln_frontend::families::{Head, Settings, TextEncoder, Wanted};
use kiln_frontend::nn::Switches;
use kiln_ir::{Graph, Tensor};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::BTreeMap;
use std::path::Path;

/// A text, or a pair of texts.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    /// The text.
    pub text: &'a str,
    /// The second text of a pair.
    pub other: Option<&'a str>,
}

/// Tokens of several texts.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Token numbers, `[texts][tokens]`, without padding.
    pub ids: Vec<Vec<u32>>,
    /// For each token the bytes of its text that it stands for.
    pub offsets: Vec<Vec<(usize, usize)>>,
    /// For each token the text of a pair that it is of, or nothing for those of the model's own.
    pub sequence: Vec<Vec<Option<usize>>>,
    /// For each token the word that it is a part of: by its number, where the words were given, or by the tokenizer's splitting.
    pub words: Vec<Vec<Option<u32>>>,
    kinds: Vec<Vec<u32>>,
}

/// An encoder, ready to run.
#[derive(Debug)]
pub struct Encoder {
    family: TextEncoder,
    tokenizer: Tokenizer,
    context: Context,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Encoder {
    /// Reads a folder and compiles the model with a head; without one, with that of the checkpoint.
    ///
    /// # Errors
    /// What is wrong with the checkpoint, or of compiling.
    pub fn open(
        path: &Path,
        head: Option<Head>,
        (level, threads): (CpuLevel, usize),
        budget: &Budget,
        observer: &mut dyn Observer,
    ) -> Result<Encoder, Error> {
        if !path.is_dir() {
            return Err(LmError::NoCheckpoint(path.into()).into());
        }
        let folder = Folder::read(&Within(path)).map_err(LmError::from)?;
        let weights = folder.weights.clone();
        Encoder::of(folder, &weights, head, (level, threads), budget, observer)
    }

    /// The model of a folder with weights of the same names and shapes.
    ///
    /// # Errors
    /// As [`Encoder::open`].
    pub fn of(
        folder: Folder,
        weights: &dyn Weights,
        head: Option<Head>,
        (level, threads): (CpuLevel, usize),
        budget: &Budget,
        observer: &mut dyn Observer,
    ) -> Result<Encoder, Error> {
        let (graph, family) = encoder_graph(&folder, weights, head)?;
        let missing = || LmError::Tokenizer("there is no file tokenizer.json in the folder".into());
        let tokenizer = Tokenizer::from_json(&folder.tokenizer.ok_or_else(missing)?)?.without_padding()?;
        if tokenizer.size() > family.vocabulary() {
            let message = format!("it has {} tokens, the model {}", tokenizer.size(), family.vocabulary());
            return Err(LmError::Tokenizer(format!("{message}: it is of another model")).into());
        }
        let options = Options { levels: vec![level], ..Options::default() };
        let model = compile_graph(graph, &options, observer)?.load(&ModelOptions::default())?;
        let plan = model.plan();
        let inputs = plan.inputs.iter().map(|(name, _)| name.to_string()).collect();
        let outputs = plan.outputs.iter().map(|(name, _)| name.to_string()).collect();
        let context = Context::new(&model, threads, budget)?;
        Ok(Encoder { family, tokenizer, context, inputs, outputs })
    }

    /// The model's family.
    pub fn family(&self) -> &TextEncoder {
        &self.family
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens of texts, with those that the model's texts begin and end with.
    ///
    /// # Errors
    /// A text has more tokens than the model takes.
    pub fn tokens(&self, passages: &[Passage<'_>]) -> Result<Tokens, Error> {
        let inner = self.tokenizer.inner();
        let encode = |passage: &Passage<'_>| match passage.other {
            None => inner.encode(passage.text, true),
            Some(other) => inner.encode((passage.text, other), true),
        };
        self.collected(passages.iter().map(encode))
    }

    /// The tokens of texts that are split into words.
    ///
    /// # Errors
    /// A text has more tokens than the model takes.
    pub fn tokens_of_words(&self, texts: &[Vec<String>]) -> Result<Tokens, Error> {
        let encode = |words: &Vec<String>| self.tokenizer.inner().encode(words.as_slice(), true);
        self.collected(texts.iter().map(encode))
    }

    fn collected(
        &self,
        encodings: impl Iterator<Item = tokenizers::Result<tokenizers::Encoding>>,
    ) -> Result<Tokens, Error> {
        let mut all = Tokens { ids: vec![], offsets: vec![], sequence: vec![], words: vec![], kinds: vec![] };
        for encoded in encodings {
            let encoded = encoded.map_err(|e| LmError::Tokenizer(e.to_string()))?;
            let (tokens, capacity) = (encoded.len(), self.family.context());
            if tokens > capacity {
                return Err(LmError::Capacity { tokens, used: 0, capacity }.into());
            }
            all.ids.push(encoded.get_ids().to_vec());
            all.offsets.push(encoded.get_offsets().to_vec());
            all.sequence.push(encoded.get_sequence_ids());
            all.words.push(encoded.get_word_ids().to_vec());
            all.kinds.push(encoded.get_type_ids().to_vec());
        }
        Ok(all)
    }

    /// How many tokens are put before and after one of so many.
    fn fill(&self, count: usize, longest: usize) -> (usize, usize) {
        let fill = longest - count;
        if self.family.pads_before() { (fill, 0) } else { (0, fill) }
    }

    /// Where an output that has a row for each token has a text's first, among those of all texts.
    pub fn first_row(&self, tokens: &Tokens, text: usize) -> usize {
        let longest = tokens.ids.iter().map(Vec::len).max().unwrap_or(0);
        text * longest + self.fill(tokens.ids.get(text).map_or(longest, Vec::len), longest).0
    }

    /// The model's outputs by name, for texts.
    ///
    /// # Errors
    /// There is no text, or a run fails.
    pub fn run(&mut self, tokens: &Tokens) -> Result<BTreeMap<String, Tensor>, Error> {
        let inputs = self.inputs(&self.inputs, tokens)?;
        let outputs = self.context.run(&inputs)?;
        Ok(self.outputs.iter().cloned().zip(outputs).collect())
    }

    /// The inputs of these names for texts.
    ///
    /// # Errors
    /// There is no text, or an input is none that texts give.
    pub fn inputs(&self, names: &[String], tokens: &Tokens) -> Result<Vec<Tensor>, Error> {
        let longest = tokens.ids.iter().map(Vec::len).max().filter(|&n| n > 0).ok_or(LmError::Empty)?;
        let shape = [tokens.ids.len(), longest];
        let padded = |rows: &[Vec<u32>], pad: i64| -> Result<Tensor, Error> {
            let row = |r: &Vec<u32>| {
                let (before, after) = self.fill(r.len(), longest);
                let values = r.iter().map(|&v| i64::from(v));
                let filled = std::iter::repeat_n(pad, before).chain(values).chain(std::iter::repeat_n(pad, after));
                filled.collect::<Vec<i64>>()
            };
            let all: Vec<i64> = rows.iter().flat_map(row).collect();
            Tensor::from_i64(&shape, &all).map_err(|e| Error::Internal(e.to_string()))
        };
        let ones: Vec<Vec<u32>> = tokens.ids.iter().map(|r| vec![1; r.len()]).collect();
        let input = |name: &String| match name.as_str() {
            "input_ids" => padded(&tokens.ids, 0),
            "attention_mask" => padded(&ones, 0),
            "token_type_ids" if self.family.segments().is_none_or(|n| n > 1) => padded(&tokens.kinds, 0),
            "token_type_ids" => padded(&ones.iter().map(|r| vec![0; r.len()]).collect::<Vec<_>>(), 0),
            other => Err(Error::Unsupported(format!("the model's input `{other}` cannot be made of a text"))),
        };
        names.iter().map(input).collect()
    }
}

/// The graph of a folder's encoder with weights of the names that the folder has, and a head (without one, that of the checkpoint).
///
/// # Errors
/// What is wrong with the checkpoint.
pub fn encoder_graph(
    folder: &Folder,
    weights: &dyn Weights,
    head: Option<Head>,
) -> Result<(Graph, TextEncoder), Error> {
    graph_of(folder, weights, head, false)
}

/// As [`encoder_graph`], with switches for layers and heads.
pub(crate) fn switched_encoder_graph(
    folder: &Folder,
    weights: &dyn Weights,
    head: Option<Head>,
) -> Result<(Graph, TextEncoder), Error> {
    graph_of(folder, weights, head, true)
}

fn graph_of(
    folder: &Folder,
    weights: &dyn Weights,
    head: Option<Head>,
    switched: bool,
) -> Result<(Graph, TextEncoder), Error> {
    let json = &folder.config;
    let architecture = json.get("architectures").and_then(|a| a.get(0)?.as_str());
    let settings = Settings::json("config.json", json);
    let family = TextEncoder::from_json(&settings, architecture, labels(json)).map_err(LmError::from)?;
    let head = head.unwrap_or(family.head);
    let loader = Loader::new(weights).keeping_blocks();
    let wanted = Wanted { head, hidden_states: false, attentions: false, extents: (None, None) };
    let graph = match switched {
        true => family.graph(&Switches(&loader), &wanted),
        false => family.graph(&loader, &wanted),
    };
    let graph = graph.map_err(|e| Error::Unsupported(e.to_string()))?;
    let known = |name: &str| family.known_surplus(head, name);
    loader.finish(known).map_err(|e| LmError::Checkpoint(CheckpointError::Weights(e)))?;
    Ok((graph, family))
}

/// The names of classes in a configuration, by their numbers.
fn labels(json: &serde_json::Value) -> Vec<String> {
    let map = json.get("id2label").and_then(|l| l.as_object());
    let mut named: Vec<(usize, String)> = map
        .into_iter()
        .flatten()
        .filter_map(|(id, name)| Some((id.parse().ok()?, name.as_str()?.to_string())))
        .collect();
    named.sort();
    let dense = named.iter().enumerate().all(|(n, (id, _))| n == *id);
    if dense { named.into_iter().map(|(_, name)| name).collect() } else { Vec::new() }
}

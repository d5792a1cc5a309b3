//! `kiln eval score`: how likely a decoder finds texts that may follow a prompt.

use super::super::Talk;
use super::super::options::{Adapted, Machinery, Progress};
use super::{bar, program_options, programs, read};
use kiln::Error;
use kiln::lm::{LanguageModel, LmError, PackedPrograms, Scored, Session, Texts, Tokenizer, score, score_together};
use kiln::nn::CacheElement;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Options of `kiln eval score`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A GGUF file, or a folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// What comes before each choice
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// A text that may follow; several times for several
    #[arg(long, value_name = "TEXT", required_unless_present = "tasks")]
    choice: Vec<String>,
    /// A file with a question in each line: {"prompt": TEXT, "choices": [TEXT, ..], "answer": N}, counted from 0
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "choice"])]
    tasks: Option<PathBuf>,
    /// A file of the same form with questions that come, with their answers, before each prompt
    #[arg(long, value_name = "FILE")]
    examples: Option<PathBuf>,
    /// Only the first N of the examples
    #[arg(long, value_name = "N", requires = "examples")]
    shots: Option<usize>,
    /// Between examples, and before the prompt
    #[arg(long, value_name = "TEXT", default_value = "\n\n", requires = "examples")]
    separator: String,
    /// Score all choices of a question at once; the numbers are those of one at a time, but for the order in which sums are rounded
    #[arg(long)]
    together: bool,
    /// What keys and values are kept in: f32, f16, bf16, int8 [default: f32, or the artifact's]
    #[arg(long, value_name = "E")]
    cache: Option<CacheElement>,
    #[command(flatten)]
    adapted: Adapted,
    #[command(flatten)]
    machinery: Machinery,
}

/// A prompt with what may follow.
struct Task {
    prompt: String,
    choices: Vec<String>,
    answer: Option<usize>,
}

impl Task {
    /// Its choices, the likeliest first.
    fn ranked(&self, scored: &[Scored]) -> Vec<Ranked> {
        let value = |(choice, scored): (usize, &Scored)| {
            let bytes = self.choices.get(choice).map_or(0, String::len);
            let (total, tokens) = (scored.total(), scored.log_probabilities.len());
            Ranked { choice, total, tokens, bytes, greedy: scored.greedy }
        };
        let mut ranked: Vec<Ranked> = scored.iter().enumerate().map(value).collect();
        ranked.sort_by(|a, b| b.total.total_cmp(&a.total).then(a.choice.cmp(&b.choice)));
        ranked
    }
}

/// A choice, scored.
struct Ranked {
    choice: usize,
    total: f64,
    tokens: usize,
    bytes: usize,
    greedy: bool,
}

impl Ranked {
    fn per_byte(&self) -> f64 {
        self.total / self.bytes.max(1) as f64
    }
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let tasks = match &self.tasks {
            Some(path) => tasks(path)?,
            None => vec![Task { prompt: self.prompt.clone(), choices: self.choice.clone(), answer: None }],
        };
        let before = self.before()?;
        let model = self.adapted.open(&self.model)?;
        let mut texts = Vec::new();
        for task in &tasks {
            let prompt = format!("{before}{}", task.prompt);
            texts.push(
                task.choices.iter().map(|c| joined(model.tokenizer(), &prompt, c)).collect::<Result<Vec<_>, _>>()?,
            );
        }
        if self.together {
            return self.scored_together(&model, &tasks, &texts, talk);
        }
        let longest = texts.iter().flatten().map(|(_, tokens)| tokens.len()).max().unwrap_or(1);
        let mut programs = programs(&model, (longest, self.cache), &self.machinery, talk)?;
        // One session: what all questions begin with is read once.
        let mut session = Session::new(&programs)?;
        let bar = bar(talk, tasks.len());
        let mut results = Vec::with_capacity(tasks.len());
        for (task, texts) in tasks.iter().zip(&texts) {
            let mut ranked = Vec::new();
            for (from, tokens) in texts {
                let mut scored = Scored::default();
                score(&mut programs, &mut session, tokens, *from, &mut scored)?;
                ranked.push(scored);
            }
            results.push(task.ranked(&ranked));
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.shown(&tasks, &results, talk)
    }

    fn shown(&self, tasks: &[Task], results: &[Vec<Ranked>], talk: Talk) -> Result<(), Error> {
        if self.tasks.is_some() { accuracy(tasks, results, talk) } else { ranking(tasks, results, talk) }
    }

    /// The choices of each question at once.
    fn scored_together(
        &self,
        model: &LanguageModel,
        tasks: &[Task],
        texts: &[Vec<(usize, Vec<u32>)>],
        talk: Talk,
    ) -> Result<(), Error> {
        let room = |of: &Vec<(usize, Vec<u32>)>| of.iter().map(|(_, tokens)| tokens.len()).sum();
        let capacity = texts.iter().map(room).max().unwrap_or(1);
        let options = program_options((capacity, self.cache), &self.machinery)?;
        let mut programs = PackedPrograms::new(model, &options, &mut Progress::new(talk))?;
        let mut beside = Texts::new(&programs)?;
        let bar = bar(talk, tasks.len());
        let mut results = Vec::with_capacity(tasks.len());
        for (task, texts) in tasks.iter().zip(texts) {
            let given: Vec<(usize, &[u32])> = texts.iter().map(|(from, tokens)| (*from, tokens.as_slice())).collect();
            results.push(task.ranked(&score_together(&mut programs, &mut beside, &given)?));
            bar.inc(1);
        }
        bar.finish_and_clear();
        self.shown(tasks, &results, talk)
    }

    /// The examples as a text.
    fn before(&self) -> Result<String, Error> {
        let Some(path) = &self.examples else { return Ok(String::new()) };
        let mut text = String::new();
        for (n, task) in tasks(path)?.iter().enumerate().take(self.shots.unwrap_or(usize::MAX)) {
            let answer = task.answer.and_then(|a| task.choices.get(a));
            let answer =
                answer.ok_or_else(|| Error::data(path.display(), format!("example {} has no answer", n + 1)))?;
            text.push_str(&task.prompt);
            text.push_str(answer);
            text.push_str(&self.separator);
        }
        Ok(text)
    }
}

/// The tokens of prompt and choice, and the first of them that counts as the choice's.
fn joined(tokenizer: &Tokenizer, prompt: &str, choice: &str) -> Result<(usize, Vec<u32>), Error> {
    if choice.is_empty() {
        return Err(Error::data("a choice", "it is empty"));
    }
    let prompt_tokens = tokenizer.encode(prompt, true)?;
    let tokens = tokenizer.encode(&format!("{prompt}{choice}"), true)?;
    // Where prompt and choice meet, their tokens may join: what differs from the prompt's counts as the choice's.
    let same = prompt_tokens.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
    let from = same.min(tokens.len().saturating_sub(1)).max(1);
    // A first token that nothing stands before has no probability.
    if from < tokens.len() { Ok((from, tokens)) } else { Err(LmError::Empty.into()) }
}

/// The questions of a file.
fn tasks(path: &Path) -> Result<Vec<Task>, Error> {
    let text = read(path)?;
    let mut all = Vec::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: &str| Error::data(path.display(), format!("line {}: {what}", n + 1));
        let value: Value = serde_json::from_str(line).map_err(|e| wrong(&format!("not JSON: {e}")))?;
        let prompt = value["prompt"].as_str().ok_or_else(|| wrong("`prompt` is no text"))?.to_string();
        let choices =
            value["choices"].as_array().and_then(|c| c.iter().map(|c| c.as_str().map(String::from)).collect());
        let choices: Vec<String> =
            choices.filter(|c: &Vec<String>| !c.is_empty()).ok_or_else(|| wrong("`choices` is no list of texts"))?;
        let answer = match value.get("answer") {
            None | Some(Value::Null) => None,
            Some(given) => {
                let found = given.as_u64().and_then(|a| usize::try_from(a).ok()).filter(|&a| a < choices.len());
                Some(found.ok_or_else(|| wrong(&format!("`answer` is {given}, not the number of a choice")))?)
            }
        };
        all.push(Task { prompt, choices, answer });
    }
    if all.is_empty() { Err(Error::data(path.display(), "there is no question")) } else { Ok(all) }
}

fn described(task: &Task, ranked: &[Ranked]) -> Vec<Value> {
    let value = |r: &Ranked| {
        json!({ "choice": task.choices.get(r.choice), "log_probability": r.total,
                "per_token": r.total / r.tokens as f64, "per_byte": r.per_byte(), "tokens": r.tokens, "greedy": r.greedy })
    };
    ranked.iter().map(value).collect()
}

fn ranking(tasks: &[Task], results: &[Vec<Ranked>], talk: Talk) -> Result<(), Error> {
    let (mut text, mut list) = (String::new(), Vec::new());
    for (task, ranked) in tasks.iter().zip(results) {
        for r in ranked {
            let choice = task.choices.get(r.choice).map_or("", String::as_str);
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:.4}  {:.4} a token  {choice:?}", r.total, r.total / r.tokens as f64);
        }
        list.extend(described(task, ranked));
    }
    talk.report(&json!({ "choices": list }), &text)
}

fn accuracy(tasks: &[Task], results: &[Vec<Ranked>], talk: Talk) -> Result<(), Error> {
    let (mut right, mut right_by_byte, mut answered, mut list) = (0usize, 0usize, 0usize, Vec::new());
    for (task, ranked) in tasks.iter().zip(results) {
        let first = ranked.first().map(|r| r.choice);
        let by_byte = ranked.iter().max_by(|a, b| a.per_byte().total_cmp(&b.per_byte()).then(b.choice.cmp(&a.choice)));
        if task.answer.is_some() {
            answered += 1;
            right += usize::from(first == task.answer);
            right_by_byte += usize::from(by_byte.map(|r| r.choice) == task.answer);
        }
        list.push(
            json!({ "prompt": task.prompt, "answer": task.answer, "first": first, "choices": described(task, ranked) }),
        );
    }
    let share = |n: usize| (answered > 0).then(|| n as f64 / answered as f64);
    // Of a share of independent answers.
    let error = share(right).map(|p| (p * (1.0 - p) / answered as f64).sqrt());
    let report = json!({ "tasks": list, "answered": answered, "accuracy": share(right), "standard_error": error,
                         "accuracy_per_byte": share(right_by_byte) });
    let text = match (share(right), share(right_by_byte), error) {
        (Some(all), Some(by_byte), Some(error)) => {
            format!("{answered} questions: {all:.4} right (± {error:.4}), {by_byte:.4} by the mean of a byte\n")
        }
        _ => format!("{} questions, none with an answer\n", tasks.len()),
    };
    talk.report(&report, &text)
}

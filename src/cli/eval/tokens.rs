//! `kiln eval tokens`: entities in texts, and how well they are found.

use super::super::Talk;
use super::super::options::Machinery;
use super::{bar, encoder, floats, read, texts};
use kiln::Error;
use kiln::families::Head;
use kiln::lm::{Encoder, EntityCounts, Passage, Shares, Tokens, entities};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Options of `kiln eval tokens`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// A text; several times for several
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["file", "tagged"])]
    text: Vec<String>,
    /// A file with a text in each line
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// A file with a word and its tag (O, B-X, I-X) in each line, the tag last, and an empty line after each text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "file"])]
    tagged: Option<PathBuf>,
    /// Texts that run together
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    #[command(flatten)]
    machinery: Machinery,
}

/// The words of texts, with the tags of each.
struct Tagged {
    words: Vec<Vec<String>>,
    tags: Vec<Vec<String>>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let tagged = self.tagged.as_deref().map(tagged).transpose()?;
        let mut encoder = encoder(&self.model, Some(Head::Tokens), &self.machinery, talk)?;
        match tagged {
            Some(tagged) => self.evaluate(&mut encoder, &tagged, talk),
            None => self.find(&mut encoder, talk),
        }
    }

    /// The entities of texts.
    fn find(&self, encoder: &mut Encoder, talk: Talk) -> Result<(), Error> {
        let texts = texts(&self.text, self.file.as_deref())?;
        let bar = bar(talk, texts.len());
        let (mut shown, mut list) = (String::new(), Vec::new());
        for batch in texts.chunks(self.batch as usize) {
            let passages: Vec<Passage<'_>> = batch.iter().map(|text| Passage { text, other: None }).collect();
            let tokens = encoder.tokens(&passages)?;
            let tags = tags(encoder, &tokens, None)?;
            for (n, (text, tags)) in batch.iter().zip(&tags).enumerate() {
                let spans = spans(&tokens, n);
                let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
                let mut found = Vec::new();
                for entity in entities(&tags) {
                    let start = spans.get(entity.start).map_or(0, |s| s.0);
                    let end = spans.get(entity.end - 1).map_or(start, |s| s.1);
                    let words = text.get(start..end).unwrap_or_default();
                    // Writing to a string cannot fail.
                    let _ = writeln!(shown, "{}  {words}  {start}..{end}", entity.class);
                    found.push(json!({ "class": entity.class, "text": words, "start": start, "end": end }));
                }
                list.push(json!({ "text": text, "entities": found }));
            }
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
        talk.report(&json!({ "texts": list }), &shown)
    }

    /// How well the entities of tagged words are found.
    fn evaluate(&self, encoder: &mut Encoder, tagged: &Tagged, talk: Talk) -> Result<(), Error> {
        let bar = bar(talk, tagged.words.len());
        let (mut counts, mut right, mut all) = (EntityCounts::default(), 0usize, 0usize);
        let size = self.batch as usize;
        for (words, expected) in tagged.words.chunks(size).zip(tagged.tags.chunks(size)) {
            let tokens = encoder.tokens_of_words(words)?;
            let lengths: Vec<usize> = words.iter().map(Vec::len).collect();
            for (predicted, expected) in tags(encoder, &tokens, Some(&lengths))?.iter().zip(expected) {
                let of = |tags: &[String]| entities(&tags.iter().map(String::as_str).collect::<Vec<_>>());
                counts.add(&of(expected), &of(predicted));
                right += predicted.iter().zip(expected).filter(|(a, b)| a == b).count();
                all += expected.len();
            }
            bar.inc(words.len() as u64);
        }
        bar.finish_and_clear();
        let accuracy = right as f64 / all.max(1) as f64;
        let mut text = format!("{:16} {:>9} {:>9} {:>9} {:>9}\n", "class", "precision", "recall", "F1", "support");
        let mut row = |name: &str, s: Shares, support: usize| {
            let Shares { precision, recall, f1 } = s;
            let _ = writeln!(text, "{name:16} {precision:>9.4} {recall:>9.4} {f1:>9.4} {support:>9}");
            json!({ "precision": precision, "recall": recall, "f1": f1, "support": support })
        };
        let classes: serde_json::Map<String, Value> =
            counts.classes.iter().map(|(name, c)| (name.clone(), row(name, c.shares(), c.expected))).collect();
        let total = counts.micro();
        let report = json!({
            "classes": classes,
            "micro": row("micro", total.shares(), total.expected),
            "macro": row("macro", counts.macro_mean(), total.expected),
            "weighted": row("weighted", counts.weighted(), total.expected),
            "words": all, "word_accuracy": accuracy,
        });
        let _ = writeln!(text, "{all} words, {accuracy:.4} of them with the right tag");
        talk.report(&report, &text)
    }
}

/// The tag of each word: that of its first token. With `lengths` there are so many words in each text, of which those without a token
/// (of characters that the tokenizer drops) are outside of entities.
fn tags(encoder: &mut Encoder, tokens: &Tokens, lengths: Option<&[usize]>) -> Result<Vec<Vec<String>>, Error> {
    let labels = encoder.family().labels.clone();
    let made = encoder.run(tokens)?;
    let logits = made.get("logits").ok_or_else(|| Error::Internal("an encoder without `logits`".into()))?;
    let values = floats(logits)?;
    let classes = labels.len();
    let mut all = Vec::with_capacity(tokens.ids.len());
    for (text, words) in tokens.words.iter().enumerate() {
        let count = words.iter().flatten().max().map_or(0, |&w| w as usize + 1);
        let mut tags = vec![String::from("O"); lengths.and_then(|l| l.get(text)).copied().unwrap_or(count)];
        let first = encoder.first_row(tokens, text);
        // From the back, so that the first token of a word decides.
        for (n, word) in words.iter().enumerate().rev() {
            let at = (first + n) * classes;
            let row = values.get(at..at + classes).unwrap_or_default();
            let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
            let place = word.and_then(|w| tags.get_mut(w as usize));
            if let (Some(place), Some(label)) = (place, best.and_then(|b| labels.get(b))) {
                label.clone_into(place);
            }
        }
        all.push(tags);
    }
    Ok(all)
}

/// The bytes of each word of a text.
fn spans(tokens: &Tokens, text: usize) -> Vec<(usize, usize)> {
    let mut spans: Vec<(usize, usize)> = Vec::new();
    let (words, offsets) = (&tokens.words[text], &tokens.offsets[text]);
    for (word, &(start, end)) in words.iter().zip(offsets) {
        let Some(word) = word.map(|w| w as usize) else { continue };
        if spans.len() <= word {
            spans.resize(word + 1, (start, end));
        }
        spans[word].1 = spans[word].1.max(end);
    }
    spans
}

/// Words and tags of a file.
fn tagged(path: &Path) -> Result<Tagged, Error> {
    let text = read(path)?;
    let mut tagged = Tagged { words: vec![vec![]], tags: vec![vec![]] };
    for (n, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            if tagged.words.last().is_some_and(|w| !w.is_empty()) {
                tagged.words.push(vec![]);
                tagged.tags.push(vec![]);
            }
            continue;
        }
        let mut parts = line.split_whitespace();
        let (word, tag) = (parts.next(), parts.next_back());
        let known = |tag: &&str| *tag == "O" || tag.starts_with("B-") || tag.starts_with("I-");
        let (Some(word), Some(tag)) = (word, tag.filter(known)) else {
            let message = format!("line {}: {line:?} is no word with a tag (O, B-X or I-X)", n + 1);
            return Err(Error::data(path.display(), message));
        };
        if let (Some(words), Some(tags)) = (tagged.words.last_mut(), tagged.tags.last_mut()) {
            words.push(word.into());
            tags.push(tag.into());
        }
    }
    if tagged.words.last().is_some_and(Vec::is_empty) {
        tagged.words.pop();
        tagged.tags.pop();
    }
    if tagged.words.is_empty() { Err(Error::data(path.display(), "there is no word")) } else { Ok(tagged) }
}

//! `string_split`, `string_normalize` and `string_match`: words of texts, and what texts look like.
//!
//! Invariant: time is linear in the text, whatever the pattern; a text that must be UTF-8 and is not is an error.

use super::Function;
use super::element::tensors;
use super::sequence::given;
use crate::DType;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::{Tensor, element_count};
use regex_automata::meta::{Config, Regex};

/// The parts of every string, along a new last axis, filled up with empty strings; and how many there are (i64). Attributes:
/// `delimiter`, without which runs of white space part words, and `most`, cuts from the left; without it all are made.
pub(super) const SPLIT: Function = Function { name: "string_split", infer: infer_split, eval: eval_split };
/// Operands: strings `[n]` or `[1, n]`, and strings to leave out. The others in lower or upper case, as attribute `case` says
/// (`none`, `lower`, `upper`); one empty string where none is left. `sensitive`: case matters for what is left out.
pub(super) const NORMALIZE: Function =
    Function { name: "string_normalize", infer: infer_normalize, eval: eval_normalize };
/// Whether all of a string matches the regular expression in attribute `pattern`.
pub(super) const MATCH: Function = Function { name: "string_match", infer: infer_match, eval: eval_match };

/// Bytes that a compiled pattern may take.
const MOST_PATTERN_BYTES: usize = 4 << 20;

fn are_strings(t: &TensorType) -> Result<(), OpError> {
    if t.dtype == DType::Str { Ok(()) } else { Err(OpError::new(format!("wants strings, not {t}"))) }
}

fn strings(t: &Tensor) -> Result<&[Vec<u8>], OpError> {
    t.strings().ok_or_else(|| OpError::new("wants strings"))
}

fn text(bytes: &[u8]) -> Result<&str, OpError> {
    std::str::from_utf8(bytes).map_err(|_| OpError::new(format!("{:?} is not UTF-8", bytes.escape_ascii().to_string())))
}

fn infer_split(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    are_strings(x)?;
    let types = given(a, 2)?;
    let parts = types[0].dtype == DType::Str && types[0].dims.split_last().is_some_and(|(_, rest)| *rest == *x.dims);
    if !parts || types[1] != TensorType::new(DType::I64, x.dims.clone()) {
        return Err(OpError::new(format!("{} and {} cannot be the parts of {x}", types[0], types[1])));
    }
    Ok(types)
}

fn eval_split(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let delimiter = if a.get("delimiter").is_some() { a.word("delimiter")? } else { "" };
    let most = if a.get("most").is_some() { a.size("most")? } else { usize::MAX };
    let mut all: Vec<Vec<&str>> = Vec::new();
    for s in strings(x)? {
        let s = text(s)?;
        all.push(match delimiter {
            "" => words(s, most),
            d => s.splitn(most.saturating_add(1), d).collect(),
        });
    }
    let widest = all.iter().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<i64> = all.iter().map(|parts| parts.len() as i64).collect();
    let mut shape = x.shape().to_vec();
    let counts = Tensor::from_i64(&shape, &counts)?;
    shape.push(widest);
    let mut parts = Vec::with_capacity(element_count(&shape, 1)?);
    for found in all {
        parts.extend(found.iter().map(|p| p.as_bytes().to_vec()));
        parts.resize(parts.len() + widest - found.len(), Vec::new());
    }
    Ok(vec![Tensor::from_strings(shape, parts)?, counts])
}

/// The words of a text; what follows the last cut that may be made is one, with the space within and behind it.
fn words(text: &str, most: usize) -> Vec<&str> {
    let (mut found, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let end = if found.len() < most { rest.find(char::is_whitespace) } else { None };
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        found.push(word);
        rest = after.trim_start();
    }
    found
}

fn infer_normalize(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, stop] = operands(inputs)?;
    are_strings(x)?;
    are_strings(stop)?;
    let types = given(a, 1)?;
    let row = |t: &TensorType| t.rank() == 1 || t.rank() == 2 && t.dims[0].as_size() == Some(1);
    if !row(x) || stop.rank() != 1 || types[0].dtype != DType::Str || types[0].rank() != x.rank() || !row(&types[0]) {
        return Err(OpError::new(format!("{} cannot be what is left of {x} without {stop}", types[0])));
    }
    if !matches!(a.word("case")?, "none" | "lower" | "upper") {
        return Err(OpError::new(format!("there is no case `{}`", a.word("case")?)));
    }
    a.bool("sensitive")?;
    Ok(types)
}

fn eval_normalize(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, stop] = tensors(inputs)?;
    let (sensitive, case) = (a.bool("sensitive")?, a.word("case")?);
    let key = |s: &str| if sensitive { s.to_owned() } else { s.to_lowercase() };
    let stop = strings(stop)?.iter().map(|s| text(s).map(key)).collect::<Result<Vec<String>, _>>()?;
    let mut kept = Vec::new();
    for s in strings(x)? {
        let s = text(s)?;
        if !stop.contains(&key(s)) {
            kept.push(match case {
                "lower" => s.to_lowercase().into_bytes(),
                "upper" => s.to_uppercase().into_bytes(),
                _ => s.as_bytes().to_vec(),
            });
        }
    }
    if kept.is_empty() {
        kept.push(Vec::new());
    }
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = kept.len();
    }
    Ok(vec![Tensor::from_strings(shape, kept)?])
}

/// The compiled pattern, which matches a whole text or not at all.
fn pattern(a: &Attributes) -> Result<Regex, OpError> {
    let pattern = a.word("pattern")?;
    let built = |text: &str| {
        let limits = Config::new().nfa_size_limit(Some(MOST_PATTERN_BYTES)).hybrid_cache_capacity(MOST_PATTERN_BYTES);
        let wrong = |e| OpError::new(format!("the pattern {pattern:?} cannot be used: {e}"));
        Regex::builder().configure(limits).build(text).map_err(wrong)
    };
    // By itself first: a parenthesis that it does not close would close the other one.
    built(pattern)?;
    built(&format!("\\A(?:{pattern})\\z"))
}

fn infer_match(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    are_strings(x)?;
    pattern(a)?;
    Ok(vec![TensorType::new(DType::Bool, x.dims.clone())])
}

fn eval_match(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let pattern = pattern(a)?;
    let matches: Vec<u8> = strings(x)?.iter().map(|s| u8::from(pattern.is_match(s))).collect();
    Ok(vec![Tensor::new(DType::Bool, x.shape().to_vec(), matches)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;
    use crate::ops::Attribute;

    fn tensor(shape: &[usize], all: &[&str]) -> Tensor {
        Tensor::from_strings(shape.to_vec(), all.iter().map(|s| s.as_bytes().to_vec()).collect()).unwrap()
    }

    fn with_text(mut a: Attributes, name: &str, text: &str) -> Attributes {
        a.0.push((name.into(), Attribute::Text(text.into())));
        a
    }

    fn found(t: &Tensor) -> Vec<&str> {
        t.strings().unwrap().iter().map(|s| std::str::from_utf8(s).unwrap()).collect()
    }

    #[test]
    fn parts_of_texts() {
        let types =
            |n: usize, parts: usize| vec![TensorType::of(DType::Str, &[n, parts]), TensorType::of(DType::I64, &[n])];
        let x = tensor(&[2], &["a,,b", ""]);
        let r = run("string_split", with_text(Attributes::new().with("results", types(2, 3)), "delimiter", ","), &[x]);
        assert_eq!(found(&r[0]), ["a", "", "b", "", "", ""]);
        assert_eq!(r[1].to_i64().unwrap(), [3, 1]);
        let x = tensor(&[2], &["  one two  three ", "\t"]);
        let r = run("string_split", Attributes::new().with("results", types(2, 2)).with("most", 1usize), &[x]);
        assert_eq!(found(&r[0]), ["one", "two  three ", "", ""]);
        assert_eq!(r[1].to_i64().unwrap(), [2, 0]);
    }

    #[test]
    fn stop_words_and_cases() {
        let a = |case: &str, sensitive: bool, n: usize| {
            let a = Attributes::new().with("results", vec![TensorType::of(DType::Str, &[1, n])]);
            a.with("case", case).with("sensitive", sensitive)
        };
        let (x, stop) = (tensor(&[1, 3], &["Monday", "été", "monday"]), tensor(&[1], &["MONDAY"]));
        let r = run("string_normalize", a("upper", false, 1), &[x.clone(), stop.clone()]);
        assert_eq!(found(&r[0]), ["ÉTÉ"]);
        let r = run("string_normalize", a("none", true, 3), &[x, stop.clone()]);
        assert_eq!(found(&r[0]), ["Monday", "été", "monday"]);
        let r = run("string_normalize", a("lower", false, 1), &[tensor(&[1, 1], &["Monday"]), stop]);
        assert_eq!(found(&r[0]), [""]);
    }

    #[test]
    fn whole_matches() {
        let a = |p: &str| with_text(Attributes::new(), "pattern", p);
        let r = run("string_match", a("a|ab"), &[tensor(&[4], &["ab", "a", "abc", ""])]);
        assert_eq!(r[0].bytes(), [1, 1, 0, 0]);
        // A pattern that tries without end where matching goes back.
        let long = "a".repeat(5000);
        let r = run("string_match", a("(a*)*b"), &[tensor(&[1], &[&long])]);
        assert_eq!(r[0].bytes(), [0]);
        let x = TensorType::of(DType::Str, &[1]);
        for wrong in ["a)(b", "(", r"\w{1000}{1000}"] {
            let op = super::super::Host::new("string_match", a(wrong)).unwrap();
            let e = crate::ops::Operator::infer(&op, &[&x]).unwrap_err();
            assert!(e.0.contains("cannot be used"), "{}", e.0);
        }
        let bad = Tensor::from_strings(vec![1], vec![vec![0xff]]).unwrap();
        let types = vec![TensorType::of(DType::Str, &[1, 1]), TensorType::of(DType::I64, &[1])];
        assert!(fails("string_split", Attributes::new().with("results", types), &[bad]).contains("not UTF-8"));
    }
}

//! Vocabularies of pieces with scores, as SentencePiece has them (Kudo, Richardson 2018), in GGUF files of Llama and Mistral.
//!
//! Invariant: two pieces join in the order of the scores of what they make, so that byte-pair encoding with these merges gives
//! SentencePiece's tokens; what has no piece is spelled in bytes.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What stands for a space within pieces.
pub(super) const SPACE: char = '\u{2581}';
/// Longer pieces are not made by joining: none that a text can have is.
const LONGEST: usize = 256;

/// Pairs of pieces that join, first ones first.
fn merges(tokens: &[String], scores: &[f64], plain: impl Fn(usize) -> bool) -> Vec<[String; 2]> {
    let places: BTreeMap<&str, usize> =
        tokens.iter().enumerate().filter(|(n, _)| plain(*n)).map(|(n, token)| (token.as_str(), n)).collect();
    let mut all = Vec::new();
    for (&token, &place) in places.iter().filter(|(token, _)| token.len() <= LONGEST) {
        let score = scores.get(place).copied().unwrap_or(0.0);
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (places.get(left), places.get(right)) {
                all.push((score, place, l, r, [left.to_string(), right.to_string()]));
            }
        }
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    all.into_iter().map(|(.., pair)| pair).collect()
}

/// Normalizer, decoder and model of a `tokenizer.json` for pieces with scores; `plain` are those that stand for text as they are, and
/// `unknown` is what stands for what cannot be spelled. With `prefix` every text begins with a space.
pub(super) fn tokenizer(
    tokens: &[String],
    scores: &[f64],
    plain: impl Fn(usize) -> bool,
    unknown: Option<&str>,
    prefix: bool,
) -> [Value; 3] {
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let space = SPACE.to_string();
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": space})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": space}));
    }
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]});
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null, "end_of_word_suffix": null,
        "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary,
        "merges": merges(tokens, scores, plain),
    });
    [normalizer, decoder, model]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_by_their_scores() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc", "<s>"].map(String::from);
        let made = merges(&tokens, &[0.0, 0.0, 0.0, -2.0, -1.0, -3.0, 0.0], |n| n < 6);
        let pairs: Vec<String> = made.iter().map(|[l, r]| format!("{l} {r}")).collect();
        assert_eq!(pairs, ["b c", "a b", "a bc", "ab c"]);
    }
}

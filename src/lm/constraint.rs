//! Text that follows a regular expression.
//!
//! Invariant: the bytes of a text that a [`Constraint`] lets through are, at any time, the beginning of a text that the expression
//! matches whole; a token that ends the text is let through where it is matched, and only there.

use super::{LmError, Tokenizer};
use regex_automata::Anchored;
use regex_automata::MatchKind;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

/// An automaton of bytes.
type Dfa = dense::DFA<Vec<u32>>;

/// Bytes that an automaton, and what makes it, may take: some hundred thousand states.
const AUTOMATON_BYTES: usize = 32 << 20;

/// An expression over a tokenizer's tokens. Cloning shares what was computed.
#[derive(Clone)]
pub struct Constraint {
    shared: Arc<Shared>,
}

struct Shared {
    automaton: Dfa,
    /// By state: whether the end of a match can be reached from it.
    live: BTreeSet<StateID>,
    /// Tokens in the order of their bytes, each with how many of them it shares with the one before.
    tokens: Vec<(u32, Vec<u8>, usize)>,
    ends: BTreeSet<u32>,
    /// Places in `tokens`.
    places: BTreeMap<u32, usize>,
    /// Whether each token is let through, by state.
    masks: Mutex<BTreeMap<StateID, Arc<Vec<bool>>>>,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Constraint({} live states, {} tokens)", self.shared.live.len(), self.shared.tokens.len())
    }
}

/// A text on its way through a constraint.
#[derive(Clone, Debug)]
pub struct Matcher {
    constraint: Constraint,
    state: StateID,
}

impl Constraint {
    /// Of an expression in the syntax of the crate `regex`, for a tokenizer and the tokens that end its texts.
    ///
    /// # Errors
    /// The expression is not right, too large, or matches nothing.
    pub fn new(pattern: &str, tokenizer: &Tokenizer, ends: &BTreeSet<u32>) -> Result<Constraint, LmError> {
        let fail = |e: String| LmError::Constraint(format!("{pattern:?}: {e}"));
        let size = thompson::Config::new().nfa_size_limit(Some(AUTOMATON_BYTES));
        // All ways to match are followed, as the text is matched whole.
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .dfa_size_limit(Some(AUTOMATON_BYTES))
            .determinize_size_limit(Some(AUTOMATON_BYTES));
        let automaton = dense::Builder::new().configure(config).thompson(size).build(pattern).map_err(|e| {
            // The last cause says what is wrong with the expression.
            let first: &dyn std::error::Error = &e;
            let last = std::iter::successors(Some(first), |e| e.source()).last().unwrap_or(first);
            fail(last.to_string())
        })?;
        let start = begin(&automaton).ok_or_else(|| fail("it cannot be started".into()))?;
        let live = live(&automaton, start);
        if !live.contains(&start) {
            return Err(fail("it matches no text".into()));
        }
        let mut bytes: Vec<(Vec<u8>, u32)> =
            tokenizer.token_bytes()?.into_iter().filter(|(b, id)| !b.is_empty() && !ends.contains(id)).collect();
        bytes.sort();
        let mut tokens: Vec<(u32, Vec<u8>, usize)> = Vec::with_capacity(bytes.len());
        for (bytes, id) in bytes {
            let shared =
                |(_, last, _): &(u32, Vec<u8>, usize)| last.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
            let shared = tokens.last().map_or(0, shared);
            tokens.push((id, bytes, shared));
        }
        let places = tokens.iter().enumerate().map(|(place, (id, ..))| (*id, place)).collect();
        let shared = Shared { automaton, live, tokens, ends: ends.clone(), places, masks: Mutex::default() };
        Ok(Constraint { shared: Arc::new(shared) })
    }

    /// The beginning of a text.
    pub fn begin(&self) -> Matcher {
        // It could be started when the constraint was made.
        let state = begin(&self.shared.automaton).unwrap_or_default();
        Matcher { constraint: self.clone(), state }
    }
}

impl Matcher {
    /// Makes all tokens impossible that are not let through next.
    pub fn mask(&self, logits: &mut [f32]) {
        let allowed = self.allowed();
        for (token, logit) in logits.iter_mut().enumerate() {
            if !allowed.get(token).is_some_and(|a| *a) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Whether each token is let through next; those behind the list are not.
    pub fn allowed(&self) -> Arc<Vec<bool>> {
        let shared = &self.constraint.shared;
        // A panic elsewhere leaves the masks whole: they are only added to.
        let mut masks = shared.masks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(masks.entry(self.state).or_insert_with(|| Arc::new(shared.compute(self.state))))
    }

    /// Goes on by a token; whether it was let through.
    pub fn accept(&mut self, token: u32) -> bool {
        let shared = &self.constraint.shared;
        if shared.ends.contains(&token) {
            return shared.matches(self.state);
        }
        let found = shared.places.get(&token).and_then(|&place| shared.tokens.get(place));
        let Some((_, bytes, _)) = found else { return false };
        for &byte in bytes {
            self.state = shared.automaton.next_state(self.state, byte);
        }
        shared.live.contains(&self.state)
    }

    /// Whether the text so far is matched.
    pub fn matches(&self) -> bool {
        self.constraint.shared.matches(self.state)
    }

    /// Whether nothing can follow but the end.
    pub fn is_complete(&self) -> bool {
        let shared = &self.constraint.shared;
        let goes_on = |(token, allowed): (u32, &bool)| *allowed && !shared.ends.contains(&token);
        self.matches() && !(0u32..).zip(self.allowed().iter()).any(goes_on)
    }
}

impl Shared {
    fn matches(&self, state: StateID) -> bool {
        self.automaton.is_match_state(self.automaton.next_eoi_state(state))
    }

    /// The tokens whose bytes lead from a state to one from which a match can be reached.
    fn compute(&self, state: StateID) -> Vec<bool> {
        let last = self.places.keys().chain(&self.ends).max().map_or(0, |&id| id as usize + 1);
        let mut allowed = vec![false; last];
        if self.matches(state) {
            self.ends.iter().for_each(|&end| allowed[end as usize] = true);
        }
        // The states after each byte of the token before, as far as they are live.
        let mut path = vec![state];
        for (id, bytes, shared) in &self.tokens {
            // Fewer states than shared bytes: the token before failed within what they share.
            if path.len() <= *shared {
                continue;
            }
            path.truncate(shared + 1);
            for &byte in bytes.iter().skip(*shared) {
                let next = self.automaton.next_state(path.last().copied().unwrap_or(state), byte);
                if !self.live.contains(&next) {
                    break;
                }
                path.push(next);
            }
            if path.len() == bytes.len() + 1 {
                allowed[*id as usize] = true;
            }
        }
        allowed
    }
}

fn begin(automaton: &Dfa) -> Option<StateID> {
    automaton.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()
}

/// The states that a start leads to and from which the end of a match can be reached.
fn live(automaton: &Dfa, start: StateID) -> BTreeSet<StateID> {
    let mut before: BTreeMap<StateID, BTreeSet<StateID>> = BTreeMap::from([(start, BTreeSet::new())]);
    let mut next = VecDeque::from([start]);
    while let Some(state) = next.pop_front() {
        // Many bytes in a row lead to the same state.
        let mut last = None;
        for byte in 0..=u8::MAX {
            let to = automaton.next_state(state, byte);
            if last == Some(to) || automaton.is_dead_state(to) || automaton.is_quit_state(to) {
                continue;
            }
            last = Some(to);
            let seen = before.contains_key(&to);
            before.entry(to).or_default().insert(state);
            if !seen {
                next.push_back(to);
            }
        }
    }
    let matched = before.keys().filter(|s| automaton.is_match_state(automaton.next_eoi_state(**s)));
    let mut live: BTreeSet<StateID> = matched.copied().collect();
    let mut next: Vec<StateID> = live.iter().copied().collect();
    while let Some(state) = next.pop() {
        for &from in before.get(&state).into_iter().flatten() {
            if live.insert(from) {
                next.push(from);
            }
        }
    }
    live
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A tokenizer of bytes with some longer words; token 256 and so on.
    fn tokenizer(words: &[&str]) -> Tokenizer {
        let mut vocabulary = serde_json::Map::new();
        for byte in 0..=255u8 {
            vocabulary.insert(crate::lm::tokenizer::byte_char(byte).to_string(), json!(byte));
        }
        for (n, word) in words.iter().enumerate() {
            let word: String = word.bytes().map(crate::lm::tokenizer::byte_char).collect();
            vocabulary.insert(word, json!(256 + n));
        }
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 300, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        });
        Tokenizer::from_json(whole.to_string().as_bytes()).unwrap()
    }

    fn constraint(pattern: &str, words: &[&str]) -> Constraint {
        Constraint::new(pattern, &tokenizer(words), &BTreeSet::from([300])).unwrap()
    }

    fn after(matcher: &Matcher, text: &str) -> (bool, Vec<u32>, bool) {
        let mut matcher = matcher.clone();
        let taken = text.bytes().all(|b| matcher.accept(b.into()));
        let allowed = matcher.allowed().iter().zip(0u32..).filter(|(a, _)| **a).map(|(_, t)| t).collect();
        (taken, allowed, matcher.is_complete())
    }

    #[test]
    fn tokens_are_let_through_by_their_bytes() {
        let found = constraint("(yes|no|[0-9]{2})", &["ye", "yes", "es", "12", "123", "no!"]).begin();
        let digits: Vec<u32> = (b'0'..=b'9').map(u32::from).collect();
        let first: Vec<u32> = [&digits[..], &[b'n'.into(), b'y'.into(), 256, 257, 259]].concat();
        assert_eq!(after(&found, ""), (true, first, false));
        assert_eq!(after(&found, "y"), (true, vec![b'e'.into(), 258], false));
        assert_eq!(after(&found, "4"), (true, digits, false));
        assert_eq!(after(&found, "no"), (true, vec![300], true));
        assert!(!after(&found, "nx").0);
        // What has no end yet goes on, and may end.
        let found = constraint("a+", &["aa", "ab"]).begin();
        assert_eq!(after(&found, "a"), (true, vec![b'a'.into(), 256, 300], false));
        // A shorter way to match does not hide a longer one.
        assert_eq!(after(&constraint("a|ab", &[]).begin(), "a").1, [b'b'.into(), 300]);
        // Characters of several bytes, in pieces.
        let found = constraint("[你好]", &[]).begin();
        assert_eq!(after(&found, "").1, [0xe4, 0xe5]);
        assert_eq!(after(&found, "好"), (true, vec![300], true));
    }

    #[test]
    fn expressions_that_cannot_be_are_refused() {
        let error =
            |pattern: &str| Constraint::new(pattern, &tokenizer(&[]), &BTreeSet::new()).unwrap_err().to_string();
        assert!(error("(").contains("unclosed group"), "{}", error("("));
        assert!(error("[a&&b]").contains("matches no text"));
        assert!(error(r"\bfoo\b").contains("word boundar"), "{}", error(r"\bfoo\b"));
        assert!(error("((a{1000}){1000}){1000}").contains("exceeded limit"), "{}", error("((a{1000}){1000}){1000}"));
    }

    proptest! {
        /// What is let through byte by byte is what can still become a match: found by trying all short ends.
        #[test]
        fn masks_are_those_of_the_language(text in "[ab]{0,4}", pattern in "(a|b|ab|b?a|\\(a\\|b\\)\\*|a\\{2\\}){1,3}") {
            let whole = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            let Ok(found) = Constraint::new(&pattern, &tokenizer(&["aa", "ba", "bab"]), &BTreeSet::from([300])) else { return Ok(()) };
            let (taken, allowed, _) = after(&found.begin(), &text);
            prop_assume!(taken);
            let mut ends = vec![String::new()];
            for n in 0..7 {
                let more: Vec<String> = ends.iter().filter(|e| e.len() == n).flat_map(|e| [format!("{e}a"), format!("{e}b")]).collect();
                ends.extend(more);
            }
            let possible = |next: &str| ends.iter().any(|end| whole.is_match(&format!("{text}{next}{end}")));
            for (token, next) in [(97, "a"), (98, "b"), (256, "aa"), (257, "ba"), (258, "bab")] {
                prop_assert_eq!(allowed.contains(&token), possible(next), "{} after {:?} by {}", next, text, pattern);
            }
            prop_assert_eq!(allowed.contains(&300), whole.is_match(&text));
        }
    }
}

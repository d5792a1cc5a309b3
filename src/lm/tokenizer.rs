//! Text to tokens and back.
//!
//! Invariant: text that was handed out is never taken back, and consists of whole UTF-8 characters.

use super::LmError;
use kiln_frontend::gguf::{Array, Gguf, Value};
use serde_json::json;

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// Splitting of text before byte-pair encoding, by the name that GGUF has for it.
fn pre_tokenizer(name: &str) -> Option<serde_json::Value> {
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let sequence = |parts: Vec<serde_json::Value>| json!({"type": "Sequence", "pretokenizers": parts});
    let llama3 = |digits: &str| {
        let regex = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        sequence(vec![split(&regex), bytes(false)])
    };
    Some(match name {
        "default" | "gpt-2" => bytes(true),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            sequence(vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)])
        }
        "llama-bpe" | "llama3" | "llama-v3" => llama3(r"\p{N}{1,3}"),
        "qwen2" => llama3(r"\p{N}"),
        _ => return None,
    })
}

/// The kinds of tokens that GGUF marks: those that stand for no text, and those that a user has added.
const CONTROL: i64 = 3;
const ADDED: i64 = 4;

impl Tokenizer {
    /// Of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, LmError> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(Tokenizer { inner })
    }

    /// Of the vocabulary in a GGUF file.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`]: a part is missing, or the kind is not supported.
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer, LmError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |name: &str| file.get(&key(name)).and_then(Value::as_text);
        let missing = |name: &str| LmError::Tokenizer(format!("`{}` is missing or not right", key(name)));
        let texts = |name: &str| file.get(&key(name)).and_then(Value::as_array).and_then(Array::as_texts);
        let tokens = texts("tokens").ok_or_else(|| missing("tokens"))?;
        let kinds = file.get(&key("token_type")).and_then(Value::as_array).and_then(Array::as_ints).unwrap_or(&[]);
        let model = text("model").ok_or_else(|| missing("model"))?;
        if model != "gpt2" {
            return Err(LmError::Tokenizer(format!("GGUF vocabularies of the kind `{model}` are not supported")));
        }
        let merges = texts("merges").ok_or_else(|| missing("merges"))?;
        let name = text("pre").unwrap_or("default");
        let pre = pre_tokenizer(name).ok_or_else(|| {
            LmError::Tokenizer(format!("the splitting `{name}` of a GGUF vocabulary is not supported"))
        })?;
        let vocabulary: serde_json::Map<String, serde_json::Value> =
            tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let added = kinds.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| [CONTROL, ADDED].contains(kind));
        let added: Vec<_> = added
            .map(|(id, (kind, token))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind == CONTROL})
            })
            .collect();
        // A text begins with a token of its own where the file says so, as `tokenizer.json` says by its post-processor.
        let begins = file.get(&key("add_bos_token")).and_then(Value::as_bool).unwrap_or(false);
        let first = file.get(&key("bos_token_id")).and_then(Value::as_int);
        let first = first.and_then(|id| Some((id, tokens.get(usize::try_from(id).ok()?)?))).filter(|_| begins);
        let post = first.map(|(id, token)| {
            let one = json!({"SpecialToken": {"id": token, "type_id": 0}});
            let sequence = |id: &str, ty: u8| json!({"Sequence": {"id": id, "type_id": ty}});
            json!({"type": "TemplateProcessing",
                   "single": [one, sequence("A", 0)],
                   "pair": [one, sequence("A", 0), sequence("B", 1)],
                   "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
        });
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": pre, "post_processor": post,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": name.starts_with("llama"), "vocab": vocabulary, "merges": merges},
        });
        Tokenizer::from_json(whole.to_string().as_bytes())
    }

    /// The same, of which texts are neither cut nor padded.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn without_padding(mut self) -> Result<Tokenizer, LmError> {
        self.inner.with_padding(None);
        self.inner.with_truncation(None).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(self)
    }

    /// The tokens of a text; with `begin` also those that the model's texts begin and end with.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<u32>, LmError> {
        let encoded = self.inner.encode(text, begin).map_err(|e| LmError::Tokenizer(e.to_string()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of tokens, without those that stand for none.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LmError> {
        self.inner.decode(tokens, true).map_err(|e| LmError::Tokenizer(e.to_string()))
    }

    /// The token that stands for exactly this, such as `<|im_end|>`.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// One more than the greatest token.
    pub fn size(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |id| id as usize + 1)
    }

    /// The tokenizer of the crate `tokenizers`.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

/// Text that grows token by token.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    tokens: Vec<u32>,
    /// Tokens before this one are not decoded again.
    start: usize,
    /// Text of `tokens[start..]` that was handed out, in bytes.
    given: usize,
}

impl TextStream {
    /// A stream in which nothing has been said.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// The text that a token adds; empty while a character is not complete.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, LmError> {
        self.tokens.push(token);
        let text = tokenizer.decode(self.tokens.get(self.start..).unwrap_or_default())?;
        // What is not complete decodes to the replacement character.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = text.get(self.given..).unwrap_or_default().to_string();
        // The last tokens stay, because what a token decodes to may depend on the one before.
        if self.tokens.len() - self.start > 8 {
            self.start = self.tokens.len() - 2;
            self.given = tokenizer.decode(self.tokens.get(self.start..).unwrap_or_default())?.len();
        } else {
            self.given = text.len();
        }
        Ok(new)
    }

    /// What is left at the end: characters that were never completed.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, LmError> {
        let text = tokenizer.decode(self.tokens.get(self.start..).unwrap_or_default())?;
        let new = text.get(self.given..).unwrap_or_default().to_string();
        self.given = text.len();
        Ok(new)
    }
}

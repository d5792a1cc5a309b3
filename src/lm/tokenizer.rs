//! Text to tokens and back.
//!
//! Invariant: text that was handed out is never taken back, and consists of whole UTF-8 characters.

use super::{LmError, pieces};
use kiln_frontend::gguf::{Array, Gguf, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerBuilder, TokenizerImpl, TruncationParams,
};

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

/// A tokenizer whose model is byte pairs.
type Pairs = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What `tokenizer.json` says, where its model is byte pairs in today's form: read straight into what it becomes, where the crate's
/// own reader keeps all merges in a general form first.
#[derive(Deserialize)]
struct PairsFile {
    version: String,
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    post_processor: Option<PostProcessorWrapper>,
    decoder: Option<DecoderWrapper>,
    model: PairsModel,
}

/// Its model.
#[derive(Deserialize)]
struct PairsModel {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocab,
    merges: Merges,
}

impl PairsFile {
    /// The tokenizer; nothing where it is of another kind, or where the crate is to say what is wrong.
    fn tokenizer(self) -> Option<Pairs> {
        let PairsModel {
            kind, dropout, unk_token, continuing_subword_prefix, end_of_word_suffix, vocab, merges, ..
        } = self.model;
        if self.version != "1.0" || kind != "BPE" {
            return None;
        }
        let mut model = BPE::builder()
            .fuse_unk(self.model.fuse_unk)
            .byte_fallback(self.model.byte_fallback)
            .ignore_merges(self.model.ignore_merges)
            .vocab_and_merges(vocab, merges);
        if let Some(dropout) = dropout {
            model = model.dropout(dropout);
        }
        if let Some(token) = unk_token {
            model = model.unk_token(token);
        }
        if let Some(prefix) = continuing_subword_prefix {
            model = model.continuing_subword_prefix(prefix);
        }
        if let Some(suffix) = end_of_word_suffix {
            model = model.end_of_word_suffix(suffix);
        }
        let mut tokenizer = TokenizerBuilder::new()
            .with_model(model.build().ok()?)
            .with_normalizer(self.normalizer)
            .with_pre_tokenizer(self.pre_tokenizer)
            .with_post_processor(self.post_processor)
            .with_decoder(self.decoder)
            .with_truncation(self.truncation)
            .with_padding(self.padding)
            .build()
            .ok()?;
        tokenizer.add_tokens(&self.added_tokens);
        Some(tokenizer)
    }
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

/// The kinds of tokens that GGUF marks: what stands for unknown text, those that stand for none, those that a user has added, and bytes.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const ADDED: i64 = 4;
const BYTE: i64 = 6;

/// The character that stands for a byte in vocabularies of bytes (Radford et al. 2019).
pub(super) fn byte_char(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return byte.into();
    }
    let before = (0..byte).filter(|&b| !plain(b)).count();
    char::from_u32(256 + before as u32).unwrap_or_default()
}

impl Tokenizer {
    /// Of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn from_json(bytes: &[u8]) -> Result<Tokenizer, LmError> {
        // Most are of byte pairs; read as such, a vocabulary is not kept as JSON first, which takes most of the time.
        if let Some(inner) = serde_json::from_slice::<PairsFile>(bytes).ok().and_then(PairsFile::tokenizer) {
            return Ok(Tokenizer { inner: inner.into() });
        }
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
        let id = |name: &str| file.get(&key(name)).and_then(Value::as_int);
        let token = |id: i64| usize::try_from(id).ok().and_then(|id| tokens.get(id));
        // Where the file does not say so, texts of pieces begin with a token of their own, and others do not.
        let (pre, [normalizer, decoder, model], begins) = match model {
            "gpt2" => {
                let merges = texts("merges").ok_or_else(|| missing("merges"))?;
                let name = text("pre").unwrap_or("default");
                let pre = pre_tokenizer(name).ok_or_else(|| {
                    LmError::Tokenizer(format!("the splitting `{name}` of a GGUF vocabulary is not supported"))
                })?;
                let vocabulary: serde_json::Map<String, serde_json::Value> =
                    tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
                let decoder =
                    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
                let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": name.starts_with("llama"), "vocab": vocabulary, "merges": merges});
                (pre, [json!(null), decoder, model], false)
            }
            "llama" => {
                let scores = file.get(&key("scores")).and_then(Value::as_array).and_then(Array::as_floats);
                let scores = scores.filter(|s| s.len() == tokens.len()).ok_or_else(|| missing("scores"))?;
                let plain = |n: usize| kinds.get(n).is_none_or(|kind| ![UNKNOWN, CONTROL, ADDED, BYTE].contains(kind));
                let unknown = id("unknown_token_id").and_then(token).map(String::as_str);
                let prefix = file.get(&key("add_space_prefix")).and_then(Value::as_bool).unwrap_or(true);
                (json!(null), pieces::tokenizer(tokens, scores, plain, unknown, prefix), true)
            }
            other => {
                return Err(LmError::Tokenizer(format!("GGUF vocabularies of the kind `{other}` are not supported")));
            }
        };
        let added = kinds.iter().zip(tokens).enumerate().filter(|(_, (kind, _))| [CONTROL, ADDED].contains(kind));
        let added: Vec<_> = added
            .map(|(id, (kind, token))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": *kind == CONTROL})
            })
            .collect();
        // `tokenizer.json` says by its post-processor that a text begins with a token of its own.
        let begins = file.get(&key("add_bos_token")).and_then(Value::as_bool).unwrap_or(begins);
        let first = id("bos_token_id").and_then(|id| Some((id, token(id)?))).filter(|_| begins);
        let post = first.map(|(id, token)| {
            let one = json!({"SpecialToken": {"id": token, "type_id": 0}});
            let sequence = |id: &str, ty: u8| json!({"Sequence": {"id": id, "type_id": ty}});
            json!({"type": "TemplateProcessing",
                   "single": [one, sequence("A", 0)],
                   "pair": [one, sequence("A", 0), sequence("B", 1)],
                   "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
        });
        let whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model,
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

    /// The bytes that each token stands for, of those that stand for text.
    ///
    /// # Errors
    /// The tokens stand for words without the spaces between them.
    pub fn token_bytes(&self) -> Result<Vec<(Vec<u8>, u32)>, LmError> {
        let decoder = serde_json::to_string(&self.inner.get_decoder()).unwrap_or_default();
        let (levels, spaces) = (decoder.contains("\"ByteLevel\""), decoder.contains(pieces::SPACE));
        if !levels && !spaces {
            return Err(LmError::Tokenizer("its tokens are not parts of a text as they stand".into()));
        }
        let bytes: BTreeMap<char, u8> = (0..=u8::MAX).map(|byte| (byte_char(byte), byte)).collect();
        let added = self.inner.get_added_tokens_decoder();
        let mut all = Vec::new();
        for (token, id) in self.inner.get_vocab(true) {
            let of = match added.get(&id) {
                Some(added) if added.special => continue,
                Some(added) => added.content.clone().into_bytes(),
                None if levels => match token.chars().map(|c| bytes.get(&c).copied()).collect() {
                    Some(of) => of,
                    None => continue,
                },
                None => {
                    match token.strip_prefix("<0x").and_then(|hex| u8::from_str_radix(hex.strip_suffix('>')?, 16).ok())
                    {
                        Some(byte) => vec![byte],
                        None => token.replace(pieces::SPACE, " ").into_bytes(),
                    }
                }
            };
            all.push((of, id));
        }
        Ok(all)
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

    /// A stream of what follows these tokens: a space before its first word is a part of it, where decoders drop one before a text's.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`].
    pub fn after(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<TextStream, LmError> {
        let last: Vec<u32> = tokens.last().copied().into_iter().collect();
        let text = tokenizer.decode(&last)?;
        // A character that is not complete is completed by what follows.
        if text.is_empty() || text.contains(char::REPLACEMENT_CHARACTER) {
            return Ok(TextStream::new());
        }
        Ok(TextStream { tokens: last, start: 0, given: text.len() })
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

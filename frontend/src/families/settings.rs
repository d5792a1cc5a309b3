//! A model's settings by key, from a `config.json` or the metadata of a GGUF file.
//!
//! Invariant: sizes are bounded here, so that families may multiply them.

use crate::checkpoint::CheckpointError;
use crate::gguf::{self, Gguf};
use serde_json::Value;

/// Greatest size that a setting may have: dims, vocabularies and contexts are below it.
const GREATEST: usize = 1 << 24;

enum Source<'a> {
    Json(&'a Value),
    Gguf(&'a Gguf),
}

/// Settings by key. See the module documentation.
pub struct Settings<'a> {
    source: Source<'a>,
    file: String,
    prefix: String,
}

type Result<T> = std::result::Result<T, CheckpointError>;

impl<'a> Settings<'a> {
    /// Of a JSON object; `file` is for errors.
    pub fn json(file: &str, object: &'a Value) -> Settings<'a> {
        Settings { source: Source::Json(object), file: file.into(), prefix: String::new() }
    }

    /// Of a GGUF file, with keys below `prefix`.
    pub fn gguf(file: &'a Gguf, prefix: &str) -> Settings<'a> {
        Settings { source: Source::Gguf(file), file: "GGUF".into(), prefix: format!("{prefix}.") }
    }

    fn number_at(&self, key: &str) -> Option<Number> {
        match self.source {
            Source::Json(object) => match object.get(key)? {
                Value::Number(n) => Some(n.as_i64().map_or(Number::Float(n.as_f64().unwrap_or(f64::NAN)), Number::Int)),
                Value::Null => None,
                _ => Some(Number::Wrong),
            },
            Source::Gguf(file) => Some(match file.get(&format!("{}{key}", self.prefix))? {
                gguf::Value::Int(v) => Number::Int(*v),
                gguf::Value::Float(v) => Number::Float(*v),
                gguf::Value::Bool(_) | gguf::Value::Text(_) | gguf::Value::Array(_) => Number::Wrong,
            }),
        }
    }

    /// An error about a key.
    pub fn error(&self, key: &str, message: impl Into<String>) -> CheckpointError {
        let key = format!("{}{key}", self.prefix);
        CheckpointError::Config { file: self.file.clone(), key, message: message.into() }
    }

    /// A positive size, if it is there.
    ///
    /// # Errors
    /// It is something else.
    pub fn size_if(&self, key: &str) -> Result<Option<usize>> {
        match self.number_at(key) {
            None => Ok(None),
            Some(Number::Int(v)) => match usize::try_from(v).ok().filter(|v| (1..=GREATEST).contains(v)) {
                Some(v) => Ok(Some(v)),
                None => Err(self.error(key, format!("is {v}, not a size from 1 to {GREATEST}"))),
            },
            Some(Number::Float(_) | Number::Wrong) => Err(self.error(key, "is not a whole number")),
        }
    }

    /// A positive size.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_if(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A number of layers: a size of at most 1024.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn layers(&self, key: &str) -> Result<usize> {
        let layers = self.size(key)?;
        if layers > 1024 {
            Err(self.error(key, format!("is {layers}; at most 1024 are supported")))
        } else {
            Ok(layers)
        }
    }

    /// A finite number, if it is there.
    ///
    /// # Errors
    /// It is something else.
    pub fn float_if(&self, key: &str) -> Result<Option<f64>> {
        match self.number_at(key) {
            None => Ok(None),
            Some(Number::Int(v)) => Ok(Some(v as f64)),
            Some(Number::Float(v)) if v.is_finite() => Ok(Some(v)),
            Some(Number::Float(_) | Number::Wrong) => Err(self.error(key, "is not a finite number")),
        }
    }

    /// A finite number.
    ///
    /// # Errors
    /// It is not there, or something else.
    pub fn float(&self, key: &str) -> Result<f64> {
        self.float_if(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A truth value, or what it is where it is not there.
    ///
    /// # Errors
    /// It is something else.
    pub fn flag(&self, key: &str, otherwise: bool) -> Result<bool> {
        let found = match self.source {
            Source::Json(object) => match object.get(key) {
                None | Some(Value::Null) => return Ok(otherwise),
                Some(value) => value.as_bool(),
            },
            Source::Gguf(file) => match file.get(&format!("{}{key}", self.prefix)) {
                None => return Ok(otherwise),
                Some(value) => value.as_bool(),
            },
        };
        found.ok_or_else(|| self.error(key, "is neither true nor false"))
    }

    /// Text, if it is there.
    ///
    /// # Errors
    /// It is something else.
    pub fn text_if(&self, key: &str) -> Result<Option<&'a str>> {
        let found = match self.source {
            Source::Json(object) => match object.get(key) {
                None | Some(Value::Null) => return Ok(None),
                Some(value) => value.as_str(),
            },
            Source::Gguf(file) => match file.get(&format!("{}{key}", self.prefix)) {
                None => return Ok(None),
                Some(value) => value.as_text(),
            },
        };
        found.map(Some).ok_or_else(|| self.error(key, "is not text"))
    }

    /// Words, if they are there: a list of texts in JSON, or one text with `|` between them.
    ///
    /// # Errors
    /// There is something else.
    pub fn words_if(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        if let Source::Json(object) = self.source
            && let Some(Value::Array(list)) = object.get(key)
        {
            let words = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
            return words.map(Some).ok_or_else(|| self.error(key, "is no list of texts"));
        }
        Ok(self.text_if(key)?.map(|text| text.split('|').map(str::trim).collect()))
    }

    /// Lists of whole numbers by name, in JSON; none where the key is not there.
    ///
    /// # Errors
    /// There is something else.
    pub fn lists_if(&self, key: &str) -> Result<Vec<(&'a str, Vec<usize>)>> {
        let Source::Json(object) = self.source else { return Ok(Vec::new()) };
        let found = match object.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(value) => value.as_object(),
        };
        let number = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        let lists = found.and_then(|all| {
            let list = |(name, list): (&'a String, &'a Value)| {
                Some((name.as_str(), list.as_array()?.iter().map(number).collect::<Option<Vec<_>>>()?))
            };
            all.iter().map(list).collect::<Option<Vec<_>>>()
        });
        lists.ok_or_else(|| self.error(key, "is no object of lists of whole numbers"))
    }

    /// Settings below a key of a JSON object, if they are there.
    ///
    /// # Errors
    /// There is something else.
    pub fn below(&self, key: &str) -> Result<Option<Settings<'a>>> {
        match self.source {
            Source::Gguf(_) => Ok(None),
            Source::Json(object) => match object.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(inner @ Value::Object(_)) => {
                    let prefix = format!("{}{key}.", self.prefix);
                    Ok(Some(Settings { source: Source::Json(inner), file: self.file.clone(), prefix }))
                }
                Some(_) => Err(self.error(key, "is not an object")),
            },
        }
    }

    /// An error where a size is not a multiple of another.
    ///
    /// # Errors
    /// It is not.
    pub fn divides(&self, key: &str, whole: usize, part: usize) -> Result<()> {
        if part > 0 && whole.is_multiple_of(part) {
            return Ok(());
        }
        Err(self.error(key, format!("is {part}, which does not divide {whole}")))
    }
}

enum Number {
    Int(i64),
    Float(f64),
    Wrong,
}

//! Metadata values.
//!
//! Invariant: an array's elements have one type.

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any of the file's widths; 64-bit unsigned ones beyond `i64` are refused by the reader.
    Int(i64),
    /// A float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Several values.
    Array(Array),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Integers.
    Ints(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

impl Value {
    /// An integer.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(v) => Some(*v),
            Value::Float(_) | Value::Bool(_) | Value::Text(_) | Value::Array(_) => None,
        }
    }

    /// A float, or an integer as one.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(v) => Some(*v),
            Value::Int(v) => Some(*v as f64),
            Value::Bool(_) | Value::Text(_) | Value::Array(_) => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(v) => Some(*v),
            Value::Int(_) | Value::Float(_) | Value::Text(_) | Value::Array(_) => None,
        }
    }

    /// Text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::Text(v) => Some(v),
            Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Array(_) => None,
        }
    }

    /// Several values.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(v) => Some(v),
            Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Text(_) => None,
        }
    }
}

impl Array {
    /// Integers.
    pub fn as_ints(&self) -> Option<&[i64]> {
        match self {
            Array::Ints(v) => Some(v),
            Array::Floats(_) | Array::Bools(_) | Array::Texts(_) => None,
        }
    }

    /// Floats.
    pub fn as_floats(&self) -> Option<&[f64]> {
        match self {
            Array::Floats(v) => Some(v),
            Array::Ints(_) | Array::Bools(_) | Array::Texts(_) => None,
        }
    }

    /// Texts.
    pub fn as_texts(&self) -> Option<&[String]> {
        match self {
            Array::Texts(v) => Some(v),
            Array::Ints(_) | Array::Floats(_) | Array::Bools(_) => None,
        }
    }
}

//! Lines, registers and constants of PTX.
//!
//! Invariant: every register has the number of the value that it holds, or one above all values where it is temporary,
//! and a prefix that tells its class; only classes in use are declared.

use kiln_ir::scalar::Constant;
use kiln_ir::warp::ValueId;
use kiln_ir::{Class as Arithmetic, DType};
use std::fmt::Write;

/// A register class of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Predicate,
    Half,
    Word,
    Float,
    Double,
}

impl Class {
    const ALL: [Class; 5] = [Class::Predicate, Class::Half, Class::Word, Class::Float, Class::Double];

    /// The class of values of a type.
    pub fn of(dtype: DType) -> Class {
        match (dtype.class(), dtype.size()) {
            (Arithmetic::Bool, _) => Class::Predicate,
            (_, 2) => Class::Half,
            (Arithmetic::Float, _) => Class::Float,
            (_, 8) => Class::Double,
            (_, _) => Class::Word,
        }
    }

    fn prefix(self) -> char {
        match self {
            Class::Predicate => 'p',
            Class::Half => 'h',
            Class::Word => 'r',
            Class::Float => 'f',
            Class::Double => 'd',
        }
    }

    /// The type with which the class is declared, loaded, selected and moved.
    pub fn bits(self) -> &'static str {
        match self {
            Class::Predicate => "pred",
            Class::Half => "b16",
            Class::Word => "b32",
            Class::Float => "f32",
            Class::Double => "b64",
        }
    }
}

/// The text of a kernel's body as it grows.
pub(crate) struct Writer {
    body: String,
    used: [bool; 5],
    /// The number of the next temporary register.
    next: usize,
    labels: usize,
}

impl Writer {
    pub fn new(values: usize) -> Writer {
        Writer { body: String::new(), used: [false; 5], next: values, labels: 0 }
    }

    /// Adds an instruction.
    pub fn line(&mut self, text: impl AsRef<str>) {
        let _ = writeln!(self.body, "\t{};", text.as_ref());
    }

    /// Notes what the following instructions come from.
    pub fn from(&mut self, what: impl std::fmt::Display) {
        let _ = writeln!(self.body, "\t// from {what}");
    }

    /// Adds a label.
    pub fn place(&mut self, label: &str) {
        let _ = writeln!(self.body, "{label}:");
    }

    /// A label of its own.
    pub fn label(&mut self) -> String {
        self.labels += 1;
        format!("$L{}", self.labels)
    }

    pub fn register(&mut self, class: Class, number: usize) -> String {
        if let Some(i) = Class::ALL.iter().position(|&c| c == class) {
            self.used[i] = true;
        }
        format!("%{}{number}", class.prefix())
    }

    pub fn value(&mut self, id: ValueId, dtype: DType) -> String {
        self.register(Class::of(dtype), id.index())
    }

    pub fn temporary(&mut self, class: Class) -> String {
        self.next += 1;
        self.register(class, self.next - 1)
    }

    /// The declarations and the body.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for (class, used) in Class::ALL.into_iter().zip(self.used) {
            if used {
                let _ = writeln!(text, "\t.reg .{} \t%{}<{}>;", class.bits(), class.prefix(), self.next);
            }
        }
        text + "\n" + &self.body
    }
}

/// A constant as PTX has it in the place of a register; nothing for a bool, which has none.
pub(crate) fn immediate(c: Constant) -> Option<String> {
    Some(match Class::of(c.dtype) {
        Class::Predicate => return None,
        Class::Float => format!("0f{:08X}", c.bits as u32),
        Class::Half => {
            let mut bytes = Vec::with_capacity(2);
            c.store(&mut bytes);
            bytes.iter().rev().fold("0x".to_string(), |text, b| format!("{text}{b:02X}"))
        }
        Class::Word | Class::Double if c.dtype.class() == Arithmetic::Unsigned => c.bits.to_string(),
        Class::Word | Class::Double => (c.bits as i64).to_string(),
    })
}

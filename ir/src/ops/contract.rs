//! `contract`: a product of two tensors summed over shared axes; matrix products of every orientation and batch.

use super::{Attribute, Attributes, Elements, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis, fold_axis};
use crate::scalar::{BinaryOp, Code, Source};

/// `out[labels of out] = sum over the other labels of lhs[labels] * rhs[labels]`, as in Einstein's notation: each
/// axis of an operand has a letter, `"bmk", "bkn" -> "bmn"`. A letter occurs once in an operand; every letter of `out` occurs
/// in an operand; both operands have one element type.
///
/// Elements that are bytes or pairs are i32, as [`super::Pack`] makes them, and the product of two of them is their dot product; of
/// bytes, those of the left one are unsigned and those of the right one signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Letters of the left operand's axes.
    pub lhs: String,
    /// Letters of the right operand's axes.
    pub rhs: String,
    /// Letters of the result's axes.
    pub out: String,
    /// What elements hold.
    pub elements: Elements,
}

impl Contract {
    /// A contraction with these letters.
    pub fn new(lhs: &str, rhs: &str, out: &str) -> Contract {
        Contract { lhs: lhs.into(), rhs: rhs.into(), out: out.into(), elements: Elements::Numbers }
    }

    /// The contraction with other letters.
    #[must_use]
    pub fn with_letters(&self, lhs: &str, rhs: &str, out: &str) -> Contract {
        Contract { elements: self.elements, ..Contract::new(lhs, rhs, out) }
    }

    pub(super) fn from_attributes(a: &Attributes) -> Result<Contract, OpError> {
        let elements = Elements::from_attributes(a)?;
        Ok(Contract { elements, ..Contract::new(a.word("lhs")?, a.word("rhs")?, a.word("out")?) })
    }

    /// The letters that are summed over, in the order of the left operand, then the right one.
    pub fn summed(&self) -> String {
        let mut letters = String::new();
        for c in self.lhs.chars().chain(self.rhs.chars()) {
            if !self.out.contains(c) && !letters.contains(c) {
                letters.push(c);
            }
        }
        letters
    }

    fn extent(&self, letter: char, lhs: &TensorType, rhs: &TensorType) -> Option<Expr> {
        let at = |letters: &str, t: &TensorType| letters.find(letter).and_then(|i| t.dims.get(i).cloned());
        at(&self.lhs, lhs).or_else(|| at(&self.rhs, rhs))
    }
}

impl Operator for Contract {
    fn name(&self) -> &'static str {
        "contract"
    }

    fn attributes(&self) -> Attributes {
        let text = |s: &str| Attribute::Text(s.into());
        let letters =
            Attributes::new().with("lhs", text(&self.lhs)).with("rhs", text(&self.rhs)).with("out", text(&self.out));
        self.elements.note(letters)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [lhs, rhs] = operands(inputs)?;
        for (letters, t) in [(&self.lhs, lhs), (&self.rhs, rhs)] {
            let distinct = letters.chars().enumerate().all(|(i, c)| letters.find(c) == Some(i));
            if !letters.is_ascii() || letters.len() != t.rank() || !distinct {
                return Err(OpError::new(format!("letters `{letters}` do not fit {t}")));
            }
        }
        let narrow = |dtype: DType| dtype.is_half() || dtype.is_ofp8();
        let mixed = self.elements == Elements::Halves && lhs.dtype.is_ofp8() && rhs.dtype.is_ofp8();
        if lhs.dtype != rhs.dtype && !mixed || !(lhs.dtype.is_float() || lhs.dtype.is_int()) {
            return Err(OpError::new("operands must have one numeric element type"));
        }
        match self.elements {
            Elements::Numbers => {}
            Elements::Halves if narrow(lhs.dtype) && narrow(rhs.dtype) => {}
            Elements::Halves => return Err(OpError::new("halves are f16 or bf16, or floats of 8 bits")),
            Elements::Bytes | Elements::Pairs if lhs.dtype == DType::I32 => {}
            Elements::Bytes | Elements::Pairs => return Err(OpError::new("four bytes, or two bf16, are an i32")),
        }
        for (i, c) in self.lhs.chars().enumerate() {
            if let Some(j) = self.rhs.find(c)
                && lhs.dims[i] != rhs.dims[j]
            {
                return Err(OpError::new(format!(
                    "axis {i} of the left operand has extent {}, axis {j} of the right one {}",
                    lhs.dims[i], rhs.dims[j]
                )));
            }
        }
        let mut dims = Vec::new();
        for (i, c) in self.out.chars().enumerate() {
            if self.out.find(c) != Some(i) {
                return Err(OpError::new(format!("letter `{c}` occurs twice in the result")));
            }
            let fail = || OpError::new(format!("letter `{c}` of the result is in no operand"));
            dims.push(self.extent(c, lhs, rhs).ok_or_else(fail)?);
        }
        Ok(vec![TensorType::new(self.elements.result_type(lhs.dtype), dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (lhs, rhs) = (inputs[0], inputs[1]);
        let summed = self.summed();
        let index = |letters: &str| -> Vec<Expr> {
            let symbol = |c| match self.out.find(c) {
                Some(n) => Expr::from(axis(n)),
                None => Expr::from(fold_axis(summed.find(c).unwrap_or(0))),
            };
            letters.chars().map(symbol).collect()
        };
        let mut body = Code::new();
        let mut a = body.load_at(Source::Input(0), index(&self.lhs), lhs.dtype);
        let mut b = body.load_at(Source::Input(1), index(&self.rhs), rhs.dtype);
        if self.elements == Elements::Halves {
            (a, b) = (body.cast(DType::F32, a)?, body.cast(DType::F32, b)?);
        }
        let product = body.binary(self.elements.product(), a, b)?;
        body.set_result(product);
        let folds: Vec<Expr> = summed.chars().filter_map(|c| self.extent(c, lhs, rhs)).collect();
        Ok(Meaning::Nests(vec![if folds.is_empty() {
            Nest::map(out.dims, body)
        } else {
            Nest::fold(out.dims, folds, BinaryOp::Add, body)
        }]))
    }
}

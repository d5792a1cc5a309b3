//! Parameters of a model from weights, with all that does not fit reported at once.
//!
//! Invariant: nothing is allocated for a parameter that is not in the file in that shape, whatever a configuration says.

use super::{Element, Stored, Weights};
use crate::builder::{BuildError, Builder, Result, Value};
use crate::gguf::{Blocks, Numbers, blocks};
use crate::nn::{Matrix, Parameters};
use half::f16;
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Expr, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most problems of a kind that are shown.
const SHOWN: usize = 12;

/// What does not fit between a model and its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightProblems {
    /// Tensors that the model has and the file has not.
    pub missing: Vec<String>,
    /// Tensors of another shape or type: name and what is wrong.
    pub misshapen: Vec<(String, String)>,
    /// Tensors that the file has and the model has not.
    pub surplus: Vec<String>,
}

impl WeightProblems {
    /// Whether all fits.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty() && self.surplus.is_empty()
    }

    /// The lists of what does not fit, whatever it is that should.
    pub(super) fn lists(&self) -> String {
        list("missing", &self.missing, String::clone)
            + &list("of another shape", &self.misshapen, |(name, what)| format!("{name} ({what})"))
            + &list("that the model does not have", &self.surplus, String::clone)
    }
}

fn list<T>(title: &str, items: &[T], show: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = items.iter().take(SHOWN).map(show).collect();
    let more = if items.len() > SHOWN { ", ..." } else { "" };
    format!("\n  {} {title}: {}{more}", items.len(), shown.join(", "))
}

impl fmt::Display for WeightProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the weights do not fit the model's configuration:{}", self.lists())
    }
}

impl std::error::Error for WeightProblems {}

/// Parameters from weights. See the module documentation.
pub struct Loader<'w> {
    weights: &'w dyn Weights,
    blocks: bool,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    asked: BTreeSet<String>,
    /// Expanded tensors, shared by graphs that are made of the same loader.
    ready: BTreeMap<String, Tensor>,
    problems: WeightProblems,
}

impl<'w> Loader<'w> {
    /// Parameters from these weights.
    pub fn new(weights: &'w dyn Weights) -> Loader<'w> {
        Loader { weights, blocks: false, state: RefCell::default() }
    }

    /// The same, with matrices whose elements share scales by blocks of 32 kept so: numbers of 8 or 4 bits, scales and
    /// least values, from which the graph computes the elements where it reads them.
    #[must_use]
    pub fn keeping_blocks(mut self) -> Loader<'w> {
        self.blocks = true;
        self
    }

    /// After a model was built: all that did not fit. Names for which `known` holds may be in the file without being asked
    /// for.
    ///
    /// # Errors
    /// All problems at once.
    pub fn finish(&self, known: impl Fn(&str) -> bool) -> std::result::Result<(), WeightProblems> {
        let state = self.state.borrow();
        let mut problems = state.problems.clone();
        let names = self.weights.names();
        problems.surplus = names.into_iter().filter(|n| !state.asked.contains(n) && !known(n)).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// The tensor of a name in that shape, or what is wrong with it.
    fn tensor(&self, stored: &Stored, shape: &[usize]) -> std::result::Result<Tensor, String> {
        if stored.shape != shape {
            return Err(format!("{:?} where the model has {shape:?}", stored.shape));
        }
        if let Element::Other(dtype) = stored.element
            && dtype != DType::F64
        {
            return Err(format!("its elements are {dtype:?}, not floats"));
        }
        let values = stored.to_f32().ok_or("its elements are no numbers")?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(DType::F32, shape.to_vec(), bytes).map_err(|e| e.to_string())
    }
}

impl Parameters for Loader<'_> {
    fn parameter<'g>(&self, builder: &'g Builder, path: &str, shape: &[usize]) -> Result<Value<'g>> {
        let mut state = self.state.borrow_mut();
        let first = state.asked.insert(path.to_string());
        if let Some(tensor) = state.ready.get(path).filter(|t| t.shape() == shape) {
            return Ok(builder.named_constant(path, tensor.clone()));
        }
        let problem = match self.weights.get(path) {
            None => None,
            Some(stored) => match self.tensor(&stored, shape) {
                Ok(tensor) => {
                    state.ready.insert(path.to_string(), tensor.clone());
                    return Ok(builder.named_constant(path, tensor));
                }
                Err(problem) => Some(problem),
            },
        };
        match problem {
            _ if !first => {}
            None => state.problems.missing.push(path.to_string()),
            Some(what) => state.problems.misshapen.push((path.to_string(), what)),
        }
        let dims = shape.iter().map(|&d| Expr::from(d)).collect();
        Ok(builder.placeholder(path, DType::F32, dims))
    }

    fn has(&self, path: &str) -> bool {
        self.weights.get(path).is_some()
    }

    fn matrix<'g>(&self, builder: &'g Builder, path: &str, rows: usize, columns: usize) -> Result<Matrix<'g>> {
        let stored = self.weights.get(path).filter(|s| self.blocks && s.shape == [rows, columns]);
        let stored = stored.and_then(|s| match s.element {
            Element::Float(encoding) => blocks(encoding, &s.bytes),
            Element::Other(_) => None,
        });
        let Some(parts) = stored else {
            return Ok(Matrix::Plain(self.parameter(builder, path, &[rows, columns])?));
        };
        let block = parts.block();
        let (form, Blocks { numbers, scales, least }) = match parts.halved() {
            Some(halved) => (Numbers::Halves, halved),
            None => (Numbers::Bytes, parts),
        };
        let mut state = self.state.borrow_mut();
        state.asked.insert(path.to_string());
        let mut keep = |part: &str, dtype: DType, inner: usize, bytes: Vec<u8>| -> Result<Value<'g>> {
            let key = format!("{path}/{part}");
            let shape = vec![rows, columns / block, inner];
            let made = match state.ready.get(&key) {
                Some(tensor) => Ok(tensor.clone()),
                None => Tensor::new(dtype, shape, bytes),
            };
            let tensor = made.map_err(|e| BuildError::Op { call: key.clone(), error: OpError::new(e.to_string()) })?;
            state.ready.insert(key, tensor.clone());
            Ok(builder.constant(tensor))
        };
        // As files have them, where nothing is lost by it.
        let exact = |v: &f32| f16::from_f32(*v).to_f32() == *v;
        let halves = scales.iter().chain(least.iter().flatten()).all(exact);
        let precision = if halves { DType::F16 } else { DType::F32 };
        let floats = |v: Vec<f32>| -> Vec<u8> {
            match halves {
                true => v.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                false => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        let dtype = match form {
            Numbers::Bytes => DType::I8,
            Numbers::Halves => DType::U8,
        };
        Ok(Matrix::Blocks {
            form,
            numbers: keep("numbers", dtype, form.bytes_of(block), numbers)?,
            scales: keep("scales", precision, 1, floats(scales))?,
            least: least.map(|l| keep("least", precision, 1, floats(l))).transpose()?,
        })
    }
}

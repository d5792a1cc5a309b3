//! Dims of a model's inputs as expressions over symbols.
//!
//! Invariant: two names of the model become two symbols, even where the text form must spell them with other letters; a name that
//! occurs twice is one symbol; a dim without a name is a symbol of its own.

use crate::onnx::model::{Dim, TensorType};
use kiln_ir::{Expr, Ranges, Symbol};
use std::collections::{BTreeMap, HashMap};

/// The bounds of a dim of which nothing is known. It fits an i32, which exporters convert dims to, and is not above the number
/// that TensorFlow's exporter writes for the end of an axis.
const ANY: (i64, i64) = (1, 1_000_000_000);

/// The symbols made so far.
pub(super) struct Symbols<'a> {
    bind: &'a BTreeMap<String, (i64, i64)>,
    named: HashMap<String, Expr>,
    ranges: Ranges,
}

impl<'a> Symbols<'a> {
    pub fn new(bind: &'a BTreeMap<String, (i64, i64)>) -> Symbols<'a> {
        Symbols { bind, named: HashMap::new(), ranges: Ranges::new() }
    }

    /// The bounds of all symbols.
    pub fn into_ranges(self) -> Ranges {
        self.ranges
    }

    /// Takes the values of named dims from an input whose shape is given.
    pub fn fix(&mut self, ty: &TensorType, shape: &[usize]) -> Result<(), String> {
        let Some(dims) = &ty.shape else { return Ok(()) };
        if dims.len() != shape.len() {
            return Err(format!("the shape {shape:?} was given for a tensor {ty}"));
        }
        for (axis, (dim, &n)) in dims.iter().zip(shape).enumerate() {
            match dim {
                Dim::Fixed(d) if *d != n => return Err(format!("axis {axis} has extent {d}, {n} was given")),
                Dim::Symbol(name) => {
                    if let Some(known) = self.named.insert(name.clone(), Expr::from(n))
                        && known != Expr::from(n)
                    {
                        return Err(format!(
                            "dim {} is {n} at axis {axis}, but {known} elsewhere",
                            name.escape_debug()
                        ));
                    }
                }
                Dim::Fixed(_) | Dim::Unknown => {}
            }
        }
        Ok(())
    }

    /// The dims of an input; nothing where its rank is unknown.
    pub fn dims(&mut self, input: &str, ty: &TensorType, fixed: Option<&[usize]>) -> Option<Vec<Expr>> {
        if let Some(fixed) = fixed {
            return Some(fixed.iter().map(|&d| Expr::from(d)).collect());
        }
        let dims = ty.shape.as_ref()?;
        let dim = |(axis, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => Expr::from(*n),
            Dim::Symbol(name) => match self.named.get(name) {
                Some(known) => known.clone(),
                None => {
                    let made = self.make(name);
                    self.named.insert(name.clone(), made.clone());
                    made
                }
            },
            Dim::Unknown => self.make(&format!("{input}_{axis}")),
        };
        Some(dims.iter().enumerate().map(dim).collect())
    }

    fn make(&mut self, name: &str) -> Expr {
        let mut symbol = Symbol::new(name);
        // Nests name their indices i0, r0, ...; the words are operations of expressions.
        let index = |s: &str| s.strip_prefix(['i', 'r']).is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let reserved = ["floordiv", "ceildiv", "mod", "min", "max"];
        while index(symbol.name()) || reserved.contains(&symbol.name()) || self.ranges.contains_key(&symbol) {
            symbol = Symbol::new(&format!("{}_", symbol.name()));
        }
        // A cache may be empty, as it is before the first token; other extents of 0 would make `x[0:1]` uncertain everywhere.
        let any = if name.contains("past") || name.contains("cache") { (0, ANY.1) } else { ANY };
        let range = self.bind.get(name).or_else(|| self.bind.get(symbol.name())).copied().unwrap_or(any);
        if range.0 == range.1 {
            return Expr::from(range.0);
        }
        let e = Expr::from(&symbol);
        self.ranges.insert(symbol, range);
        e
    }
}

//! `host`: ops that are functions of Rust code, run by the runtime: sorting, scatter, everything that is no nest.
//!
//! Invariant: a host op is named in [`TABLE`], one file each; its attributes are data, so that a plan can hold it as text.

mod arg_reduce;
mod bit_cast;
mod columns_to_image;
mod cumulate;
mod deform_conv;
mod determinant;
mod element;
mod fourier;
mod grid_sample;
mod lookup;
mod map_at;
mod max_pool;
mod ngrams;
mod recurrent;
mod refuse;
mod region;
mod roi_align;
mod scatter;
mod select;
mod sequence;
pub mod strings;
mod text;
mod top_k;
mod tree_ensemble;
mod words;

use super::{Attribute, Attributes, Meaning, OpError, Operator};
use crate::graph::TensorType;
use crate::tensor::Tensor;

/// A host op: a name in [`TABLE`] with attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Host {
    function: &'static Function,
    /// Attributes that the function reads.
    pub attributes: Attributes,
}

/// What the table holds for each host op.
#[derive(Debug)]
pub struct Function {
    /// Name in the text form.
    pub name: &'static str,
    /// Types of the results.
    pub infer: fn(&Attributes, &[&TensorType]) -> Result<Vec<TensorType>, OpError>,
    /// The results. Operands have the types that `infer` accepted, with constant dims.
    pub eval: fn(&Attributes, &[Tensor]) -> Result<Vec<Tensor>, OpError>,
}

impl PartialEq for Function {
    fn eq(&self, other: &Function) -> bool {
        self.name == other.name
    }
}

/// All host ops.
pub const TABLE: &[Function] = &[
    arg_reduce::FUNCTION,
    bit_cast::FUNCTION,
    columns_to_image::FUNCTION,
    cumulate::FUNCTION,
    deform_conv::FUNCTION,
    determinant::FUNCTION,
    fourier::FUNCTION,
    grid_sample::FUNCTION,
    lookup::FUNCTION,
    map_at::FUNCTION,
    max_pool::POOL,
    max_pool::UNPOOL,
    ngrams::FUNCTION,
    recurrent::GRU,
    recurrent::LSTM,
    recurrent::RNN,
    refuse::FUNCTION,
    region::IF,
    region::LOOP,
    region::MAP,
    region::SCAN,
    roi_align::FUNCTION,
    scatter::ELEMENTS,
    scatter::ND,
    select::COMPRESS,
    select::NMS,
    select::NONZERO,
    select::SLICE,
    select::UNIQUE,
    sequence::AT,
    sequence::ERASE,
    sequence::INSERT,
    sequence::JOIN,
    sequence::LENGTH,
    sequence::MAKE,
    sequence::SPLIT,
    strings::FUNCTION,
    text::CONCAT,
    text::EQUAL,
    top_k::FUNCTION,
    tree_ensemble::FUNCTION,
    words::MATCH,
    words::NORMALIZE,
    words::SPLIT,
];

impl Host {
    /// The host op of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn new(name: &str, attributes: Attributes) -> Result<Host, OpError> {
        let function = TABLE.iter().find(|f| f.name == name);
        let function = function.ok_or_else(|| OpError::new(format!("there is no host op `{name}`")))?;
        Ok(Host { function, attributes })
    }

    pub(super) fn from_attributes(a: &Attributes) -> Result<Host, OpError> {
        let mut rest = a.clone();
        rest.0.retain(|(n, _)| n != "function");
        Host::new(a.word("function")?, rest)
    }

    /// Name of the function.
    pub fn function(&self) -> &'static str {
        self.function.name
    }

    /// Whether it evaluates graphs of its own, for as long as the data says.
    pub fn is_region(&self) -> bool {
        self.attributes.0.iter().any(|(_, a)| matches!(a, Attribute::Graph(_)))
    }

    /// Runs the function.
    ///
    /// # Errors
    /// The operands' values are not accepted.
    pub fn eval(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
        (self.function.eval)(&self.attributes, inputs).map_err(|e| OpError(format!("{}: {}", self.function.name, e.0)))
    }
}

impl Operator for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn attributes(&self) -> Attributes {
        let mut all = Attributes(vec![("function".into(), Attribute::Word(self.function.name.into()))]);
        all.0.extend(self.attributes.0.iter().cloned());
        all
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        (self.function.infer)(&self.attributes, inputs).map_err(|e| OpError(format!("{}: {}", self.function.name, e.0)))
    }

    fn meaning(&self, _: &[&TensorType]) -> Result<Meaning, OpError> {
        Ok(Meaning::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(name: &str, attributes: Attributes) -> Host {
        let op = Host::new(name, attributes).unwrap();
        let again = Host::from_attributes(&op.attributes()).unwrap();
        assert_eq!(op, again, "a host op rebuilt from its own attributes");
        op
    }

    /// The results, which have the types that the op infers.
    pub(super) fn run(name: &str, attributes: Attributes, inputs: &[Tensor]) -> Vec<Tensor> {
        let op = op(name, attributes);
        let types = element::types(inputs);
        let inferred = op.infer(&types.iter().collect::<Vec<_>>()).unwrap();
        let results = op.eval(inputs).unwrap();
        assert_eq!(inferred, element::types(&results));
        results
    }

    /// The message with which the op refuses values of types that it accepts.
    pub(super) fn fails(name: &str, attributes: Attributes, inputs: &[Tensor]) -> String {
        let op = op(name, attributes);
        op.infer(&element::types(inputs).iter().collect::<Vec<_>>()).unwrap();
        op.eval(inputs).unwrap_err().0
    }
}

//! `host`: ops that are functions of Rust code, run by the runtime: sorting, scatter, everything that is no nest.
//!
//! Invariant: a host op is named in [`TABLE`], one file each; its attributes are data, so that a plan can hold it as text.

mod arg_reduce;

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
pub const TABLE: &[Function] = &[arg_reduce::FUNCTION];

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

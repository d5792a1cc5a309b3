//! What keeps a model from being imported.
//!
//! Invariant: a node is in at most one list: it breaks a rule of ONNX, or it is right (as far as Kiln knows) and unsupported.

use crate::onnx::model::{AttributeError, Node};
use crate::onnx::problem::{Problem, ProblemKind, shown};
use kiln_ir::TensorError;
use kiln_ir::scalar::TypeError;
use std::collections::BTreeSet;
use std::fmt;

/// Names of nodes that a group lists.
const NAMED: usize = 8;

/// Why a node cannot be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The node breaks a rule of ONNX.
    Invalid(String),
    /// The node may be right, but Kiln does not support it; the message says what to do.
    Unsupported(String),
    /// An operand must be known and is computed from these inputs of the graph; the message names it.
    Computed(String, BTreeSet<String>),
    /// An input is missing for a reason that is reported elsewhere.
    Skip,
}

impl Failure {
    /// The node breaks a rule of ONNX.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::Invalid(message.into())
    }

    /// The node is not supported.
    pub fn unsupported(message: impl Into<String>) -> Failure {
        Failure::Unsupported(message.into())
    }
}

impl From<AttributeError> for Failure {
    fn from(e: AttributeError) -> Failure {
        // The node is named by whoever shows the problem.
        Failure::Invalid(match e {
            AttributeError::Missing { attribute, .. } => format!("attribute {} is missing", shown(&attribute)),
            AttributeError::Type { attribute, expected, found, .. } => {
                format!("attribute {} is {found}, not {expected}", shown(&attribute))
            }
            AttributeError::Value { attribute, message, .. } => format!("attribute {}: {message}", shown(&attribute)),
            AttributeError::Unknown { attribute, .. } => format!("the operator has no attribute {}", shown(&attribute)),
        })
    }
}

impl From<TensorError> for Failure {
    fn from(e: TensorError) -> Failure {
        Failure::Invalid(e.to_string())
    }
}

impl From<TypeError> for Failure {
    fn from(e: TypeError) -> Failure {
        Failure::Invalid(e.0)
    }
}

/// Nodes that are unsupported for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Operator, with its domain where that is not ONNX's own; empty where the problem is not one of a node.
    pub op: String,
    /// Version of the operator set.
    pub opset: i64,
    /// The reason and what to do.
    pub message: String,
    /// Names of the nodes.
    pub nodes: Vec<String>,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.op.is_empty() {
            return f.write_str(&self.message);
        }
        let op: String = self.op.chars().take(120).flat_map(char::escape_debug).collect();
        write!(f, "{op} (opset {}): {}; ", self.opset, self.message)?;
        let names: Vec<String> = self.nodes.iter().take(NAMED).map(|n| shown(n)).collect();
        let plural = if self.nodes.len() == 1 { "" } else { "s" };
        write!(f, "{} node{plural}: {}", self.nodes.len(), names.join(", "))?;
        if self.nodes.len() > NAMED { write!(f, " and {} more", self.nodes.len() - NAMED) } else { Ok(()) }
    }
}

/// Everything that keeps a model from being imported.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct ImportErrors {
    /// What breaks a rule of ONNX.
    pub invalid: Vec<Problem>,
    /// What is not supported, grouped by operator and reason.
    pub unsupported: Vec<Unsupported>,
    /// Inputs from whose values operands are computed that must be known: with these in [`super::Options::values`] the
    /// nodes can be imported.
    pub values: BTreeSet<String>,
}

impl fmt::Display for ImportErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.invalid.iter().map(Problem::to_string).collect();
        lines.extend(self.unsupported.iter().map(|u| format!("not supported: {u}")));
        f.write_str(&lines.join("\n"))
    }
}

impl ImportErrors {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.invalid.is_empty() && self.unsupported.is_empty()
    }

    /// What decides the exit code: invalid before unsupported.
    pub fn kind(&self) -> ProblemKind {
        if self.invalid.is_empty() { ProblemKind::Unsupported } else { ProblemKind::Invalid }
    }

    pub(super) fn push(&mut self, node: &Node, failure: Failure) {
        match failure {
            Failure::Skip => {}
            Failure::Invalid(message) => self.invalid(Some(node), message),
            Failure::Computed(message, inputs) => {
                let names: Vec<String> = inputs.iter().map(|n| shown(n)).collect();
                let plural = if names.len() == 1 { "" } else { "s" };
                self.values.extend(inputs);
                let from =
                    if names.is_empty() { String::new() } else { format!(" from input{plural} {}", names.join(", ")) };
                self.push(
                    node,
                    Failure::Unsupported(format!("{message} is computed at run time{from}; it must be a constant")),
                );
            }
            Failure::Unsupported(message) => {
                let op = node.reference().op;
                let same = |u: &&mut Unsupported| u.op == op && u.opset == node.opset && u.message == message;
                match self.unsupported.iter_mut().find(same) {
                    Some(group) => group.nodes.push(node.name.clone()),
                    None => self.unsupported.push(Unsupported {
                        op,
                        opset: node.opset,
                        message,
                        nodes: vec![node.name.clone()],
                    }),
                }
            }
        }
    }

    pub(super) fn invalid(&mut self, node: Option<&Node>, message: String) {
        let node = node.map(Node::reference);
        self.invalid.push(Problem { kind: ProblemKind::Invalid, scope: None, node, message });
    }

    pub(super) fn unsupported_value(&mut self, message: String) {
        self.unsupported.push(Unsupported { op: String::new(), opset: 0, message, nodes: Vec::new() });
    }
}

//! The core ops: a small closed set, each defined once, in one file.
//!
//! Invariant: an op's file holds all there is to know of it: attributes, type rule and meaning. Nothing outside this folder
//! matches on all ops.

mod attribute;
mod block_product;
mod broadcast;
mod concat;
mod contract;
mod conv;
mod gather;
mod gather_elements;
mod gather_nd;
pub mod host;
mod iota;
mod map;
mod norm;
mod pack;
mod pad;
mod pool;
mod reduce;
mod reshape;
mod slice;
mod softmax;
pub mod tiles;
mod transpose;

pub use attribute::{Attribute, Attributes};
pub use block_product::{BlockProduct, MOST_BLOCK, MOST_DIGITS, RADIX};
pub use broadcast::Broadcast;
pub use concat::Concat;
pub use contract::Contract;
pub use conv::Conv;
pub use gather::Gather;
pub use gather_elements::GatherElements;
pub use gather_nd::GatherNd;
pub use host::Host;
pub use iota::Iota;
pub use map::{Map, broadcast_dims};
pub use norm::{Norm, NormKind};
pub use pack::{Elements, Pack};
pub use pad::Pad;
pub use pool::Pool;
pub use reduce::Reduce;
pub use reshape::Reshape;
pub use slice::Slice;
pub use softmax::Softmax;
pub use tiles::{TileProduct, WindowTiles};
pub use transpose::Transpose;

use crate::dtype::{Class, DType};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::Nest;
use crate::scalar::TypeError;
use std::fmt;

/// An op refuses its operands or attributes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OpError(pub String);

impl OpError {
    /// An error with a message.
    pub fn new(message: impl Into<String>) -> OpError {
        OpError(message.into())
    }
}

impl From<TypeError> for OpError {
    fn from(e: TypeError) -> OpError {
        OpError(e.0)
    }
}

/// What an op computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// Nests in order; the last one is the op's only result, the others are intermediate ([`crate::scalar::Source::Stage`]).
    Nests(Vec<Nest>),
    /// A function of Rust code, run by the host.
    Host,
}

/// What every op provides.
pub trait Operator {
    /// Name in the text form.
    fn name(&self) -> &'static str;
    /// Attributes for the text form.
    fn attributes(&self) -> Attributes;
    /// Types of the results from the operands' types (layouts are ignored; results are row-major).
    ///
    /// # Errors
    /// The op does not take such operands.
    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError>;
    /// What the op computes, for operands that [`Operator::infer`] accepts.
    ///
    /// # Errors
    /// The operands are not accepted.
    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError>;
}

macro_rules! core_ops {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// An op with its attributes.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs)]
        pub enum Op { $($variant($variant)),* }

        impl Op {
            /// The names of all ops.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The op as its trait.
            pub fn operator(&self) -> &dyn Operator {
                match self { $(Op::$variant(op) => op),* }
            }

            /// The op of a name with attributes.
            ///
            /// # Errors
            /// There is no such op, or it refuses the attributes.
            pub fn from_attributes(name: &str, attributes: &Attributes) -> Result<Op, OpError> {
                match name {
                    $($name => Ok(Op::$variant($variant::from_attributes(attributes)?)),)*
                    _ => Err(OpError::new(format!("there is no op `{name}`"))),
                }
            }
        }

        $(impl From<$variant> for Op {
            fn from(op: $variant) -> Op {
                Op::$variant(op)
            }
        })*
    };
}

core_ops! {
    Map = "map",
    Reduce = "reduce",
    Contract = "contract",
    BlockProduct = "block_product",
    Conv = "conv",
    WindowTiles = "window_tiles",
    TileProduct = "tile_product",
    Pool = "pool",
    Softmax = "softmax",
    Norm = "norm",
    Reshape = "reshape",
    Transpose = "transpose",
    Broadcast = "broadcast",
    Slice = "slice",
    Concat = "concat",
    Pack = "pack",
    Pad = "pad",
    Gather = "gather",
    GatherElements = "gather_elements",
    GatherNd = "gather_nd",
    Iota = "iota",
    Host = "host",
}

impl Op {
    /// Name in the text form.
    pub fn name(&self) -> &'static str {
        self.operator().name()
    }

    /// What it does in a word: the name, and of a host op that of its function.
    pub fn what(&self) -> &str {
        match self {
            Op::Host(host) => host.function(),
            other => other.name(),
        }
    }

    /// Types of the results; see [`Operator::infer`].
    ///
    /// # Errors
    /// The op does not take such operands; the message names op and types.
    pub fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        self.operator().infer(inputs).map_err(|e| {
            let types: Vec<String> = inputs.iter().map(|t| t.to_string()).collect();
            OpError(format!("{} of ({}): {}", self.name(), types.join(", "), e.0))
        })
    }

    /// What the op computes; see [`Operator::meaning`].
    ///
    /// # Errors
    /// The op does not take such operands.
    pub fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        self.operator().meaning(inputs)
    }

    /// The op with every expression attribute rewritten.
    #[must_use]
    pub fn map_exprs(&self, f: &dyn Fn(&Expr) -> Expr) -> Op {
        let attributes = self.operator().attributes();
        if !attributes.is_symbolic() {
            return self.clone();
        }
        // An op is rebuilt from its own attributes; that they fit was checked when it was first made.
        Op::from_attributes(self.name(), &attributes.map_exprs(f)).unwrap_or_else(|_| self.clone())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.operator().attributes())
    }
}

/// Exactly `N` operands.
pub(crate) fn operands<'a, const N: usize>(inputs: &[&'a TensorType]) -> Result<[&'a TensorType; N], OpError> {
    inputs.try_into().map_err(|_| OpError::new(format!("takes {N} operands, not {}", inputs.len())))
}

/// The type in which an op of several stages computes: f32 for narrower floats.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype.class() == Class::Float { DType::F32 } else { dtype }
}

/// Whether an axis list names distinct axes below the rank.
pub(crate) fn check_axes(axes: &[usize], rank: usize) -> Result<(), OpError> {
    for (i, a) in axes.iter().enumerate() {
        if *a >= rank || axes[..i].contains(a) {
            return Err(OpError::new(format!("axes {axes:?} do not fit a tensor with {rank} axes")));
        }
    }
    Ok(())
}

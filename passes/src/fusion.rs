//! What fusion tried, as data: for reports on why a node is in the kernel in which it is.
//!
//! Invariant: a record says what was decided and never decides; leaving it out changes no group.

use kiln_ir::graph::{NodeId, ValueId};
use std::fmt;

/// Why a producer was not made part of what reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The value is an output of the graph and must be stored in any case.
    Output,
    /// The producer folds, and the reader reads it at more than its own element.
    Folds,
    /// Both fold: a kernel has one product or reduction, unless one op has several stages.
    BothFold,
    /// Others read the value too and would compute it again.
    Readers(usize),
    /// The producer is computed conditionally or at computed indices, and so is what reads it.
    Guards,
    /// The reader has several stages that each read the value, which takes that many operations for an element.
    Cost(u64),
    /// A product would compute each element that many times.
    Reuse(i64),
    /// A product reads each element many times, and only what unpacks weights may be computed at each of them.
    Product,
    /// The reader's element and the producer's are not at the same place, or the dims differ.
    Elements,
    /// Producer and result are laid out differently in memory.
    Layout,
    /// The reader takes the fold of another operand.
    Another,
    /// The producer is read at computed indices, into which code cannot be put.
    Computed,
    /// The kernel would have more scalar operations than that.
    Size(usize),
    /// A search by measurements found it quicker so.
    Asked,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Output => f.write_str("it is an output of the model, which must be in memory"),
            Refusal::Folds => f.write_str("it is a fold, and what reads it does so at more than its own element"),
            Refusal::BothFold => f.write_str("both fold, and a kernel has one product or reduction"),
            Refusal::Readers(n) => write!(f, "{n} nodes read it: each would compute it again"),
            Refusal::Guards => {
                f.write_str("conditions or computed indices on both sides would be evaluated everywhere")
            }
            Refusal::Cost(n) => {
                write!(f, "every stage of the reader would compute it again, at {n} operations an element")
            }
            Refusal::Reuse(n) => write!(f, "a product would compute each element {n} times"),
            Refusal::Product => {
                f.write_str("a product reads each element many times: it is computed once, into memory")
            }
            Refusal::Elements => f.write_str("what reads it does not read it element by element"),
            Refusal::Layout => f.write_str("it is laid out in memory in another way than the result"),
            Refusal::Another => f.write_str("the reader was merged into the fold of another operand"),
            Refusal::Computed => f.write_str("it is read at computed indices"),
            Refusal::Asked => f.write_str("measurements found two kernels quicker than one"),
            Refusal::Size(most) => write!(f, "the kernel would have more than {most} scalar operations"),
        }
    }
}

/// How a producer became part of the kernel of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its code stands where it was loaded.
    Inlined,
    /// The reader's code is applied to the producer's folded value before it is stored.
    Finished,
    /// The value is another one's memory.
    Renamed,
    /// Its result goes where the reader puts a border around it.
    Bordered,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Inlined => "its code stands where it was loaded",
            Way::Finished => "its code is applied to the folded value in registers",
            Way::Renamed => "its result is its operand's memory",
            Way::Bordered => "its result is stored within the border",
        })
    }
}

/// A producer, a reader, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The value between them.
    pub value: ValueId,
    /// The node that reads it, or that reads what was made of it.
    pub reader: NodeId,
    /// What was decided.
    pub verdict: Result<Way, Refusal>,
}

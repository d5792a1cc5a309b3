//! What the compiler decided and a plan does not say: why steps run on the host, which casts and copies it added, what was
//! fused; and what the model calls its inputs and outputs where a plan has another type for them.
//!
//! Invariant: a note is about what the compiler did beyond what the model asks for. A cast or a copy is the model's own
//! where every node that it came from is one that casts, or moves data; a graph that was built in Rust says what it wants,
//! so nothing of it was added. The text form is JSON, the same for the same compilation.

use crate::Error;
use kiln_frontend::onnx::model::{self, Model};
use kiln_ir::graph::{Graph, NodeId, Origin};
use kiln_ir::ops::Op;
use kiln_ir::plan::{Plan, Step};
use kiln_ir::scalar::Scalar;
use kiln_passes::group::Group;
use kiln_passes::pipeline::Scheduled;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All notes of a compilation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Why steps run on the host.
    pub hosts: Vec<Host>,
    /// Conversions of element types that were added.
    pub casts: Vec<Cast>,
    /// Copies of data that were added.
    pub copies: Vec<Copy>,
    /// The types of the inputs as the model declares them, where one of them is no tensor; else nothing.
    #[serde(default)]
    pub inputs: Vec<String>,
    /// The same of the outputs.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// What the plan's kernels were made of, in its order.
    #[serde(default)]
    pub kernels: Vec<Kernel>,
}

/// What a kernel was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The hash by which records of tuning name it.
    pub key: String,
    /// The operators of the model's nodes, in order, each once.
    pub operators: Vec<String>,
    /// The ops that were fused, each with the model's nodes.
    pub ops: Vec<(String, Vec<String>)>,
}

/// A step that runs on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The model's nodes.
    pub origin: Vec<String>,
    /// Why no kernel does it.
    pub why: String,
}

/// A conversion of a tensor's element type that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cast {
    /// Type of the operand, such as `f16[2, 3]`.
    pub from: String,
    /// Type of the result.
    pub to: String,
    /// The model's nodes that it serves.
    pub origin: Vec<String>,
    /// The operators of those nodes.
    pub operators: Vec<String>,
    /// The kernels that do it, in registers where they do other work too; none where a host step does.
    pub kernels: Vec<String>,
}

/// A copy of data that was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// The kernel that does it; nothing for a copy step of the plan.
    pub kernel: Option<String>,
    /// What it does: the kernel's ops, such as `pad`, or `copy`.
    pub what: String,
    /// Bytes read and written.
    pub bytes: u64,
    /// The model's nodes that it serves.
    pub origin: Vec<String>,
    /// The operators of those nodes.
    pub operators: Vec<String>,
}

/// The types of a model's inputs or outputs, where one of them is no tensor; an output whose type is not declared ends them.
pub fn declared(ends: &[model::ValueInfo]) -> Vec<String> {
    let types: Vec<&model::ValueType> = ends.iter().map_while(|end| end.ty.as_ref()).collect();
    let tensors = types.iter().all(|ty| ty.tensor().is_some());
    if tensors { Vec::new() } else { types.iter().map(|ty| ty.to_string()).collect() }
}

/// The operator of each of a model's nodes, subgraphs included, by the node's name.
pub type Operators = BTreeMap<String, String>;

/// The operators of a model's nodes.
pub fn operators(model: &Model) -> Operators {
    fn walk(graph: &model::Graph, all: &mut Operators) {
        for node in &graph.nodes {
            all.insert(node.name.clone(), node.op_type.clone());
            node.subgraphs().for_each(|g| walk(g, all));
        }
    }
    let mut all = Operators::new();
    walk(&model.graph, &mut all);
    all
}

/// ONNX's operators whose meaning is a conversion of the element type.
const CASTING: &[&str] = &["Cast", "CastLike"];

/// ONNX's operators whose meaning is another arrangement of elements in memory. Those that only rename axes (Reshape,
/// Squeeze, Identity ...) are not among them: they are free, and a kernel for one was added.
const MOVING: &[&str] = &[
    "CenterCropPad",
    "Compress",
    "Concat",
    "ConcatFromSequence",
    "ConstantOfShape",
    "DepthToSpace",
    "Expand",
    "EyeLike",
    "Gather",
    "GatherElements",
    "GatherND",
    "Pad",
    "Range",
    "Resize",
    "ReverseSequence",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Tile",
    "Transpose",
    "Trilu",
    "Upsample",
];

fn names(origin: &Origin) -> Vec<String> {
    origin.names().map(str::to_string).collect()
}

/// The operators of the nodes, sorted, each once.
fn of_nodes(origin: &Origin, operators: &Operators) -> Vec<String> {
    let mut found: Vec<String> = origin.names().filter_map(|n| operators.get(n).cloned()).collect();
    found.sort();
    found.dedup();
    found
}

/// Whether work that came from these operators was added by the compiler, where `own` ask for such work.
fn added(operators: &[String], own: &[&str]) -> bool {
    operators.iter().any(|op| !own.contains(&op.as_str()))
}

impl Notes {
    /// The notes on what became of a graph. `reasons` says why nodes run on the host that could be kernels by their
    /// meaning.
    pub fn of(graph: &Graph, plan: &Plan, reasons: &[(Origin, String)], operators: &Operators) -> Notes {
        let mut notes = Notes::default();
        for step in &plan.steps {
            match step {
                Step::Launch { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => {}
                Step::Host { op, origin, .. } => {
                    let known = reasons.iter().find(|(o, _)| o == origin).map(|(_, why)| why.clone());
                    let why = known.unwrap_or_else(|| match op {
                        Op::Host(h) => format!("`{}` is a host op: no kernel is made of it", h.function()),
                        op => format!("`{}` was not made a kernel", op.name()),
                    });
                    notes.hosts.push(Host { origin: names(origin), why });
                }
                Step::Copy { from, .. } | Step::Bind { from, .. } => {
                    let bytes = plan.slot_bytes(*from).saturating_mul(2);
                    let name = plan.slots[*from].name.as_deref().map(str::to_string);
                    let origin = name.into_iter().collect();
                    notes.copies.push(Copy { kernel: None, what: "copy".into(), bytes, origin, operators: vec![] });
                }
            }
        }
        for kernel in plan.kernels.iter().filter(|k| k.operations == 0) {
            let of = of_nodes(&kernel.origin, operators);
            if added(&of, MOVING) {
                notes.copies.push(Copy {
                    kernel: Some(kernel.name.clone()),
                    what: kernel.what.clone(),
                    bytes: kernel.bytes,
                    origin: names(&kernel.origin),
                    operators: of,
                });
            }
        }
        for (_, node) in graph.nodes() {
            let (Op::Map(map), [from], [to]) = (&node.op, &*node.inputs, &*node.outputs) else { continue };
            let Scalar::Cast(_, operand) = map.body.node(map.body.result()) else { continue };
            let of = of_nodes(&node.origin, operators);
            if matches!(map.body.node(*operand), Scalar::Arg(_)) && added(&of, CASTING) {
                let origin = names(&node.origin);
                let serves = |k: &&kiln_ir::plan::Kernel| k.origin.names().any(|n| origin.iter().any(|o| o == n));
                let kernels = plan.kernels.iter().filter(serves).map(|k| k.name.clone()).collect();
                let (from, to) = (graph.ty(*from).to_string(), graph.ty(*to).to_string());
                notes.casts.push(Cast { from, to, origin, operators: of, kernels });
            }
        }
        notes
    }

    /// Adds what the kernels were made of.
    pub(crate) fn with_kernels(mut self, scheduled: &Scheduled, operators: &Operators) -> Notes {
        let graph = &scheduled.graph;
        let kernel = |group: &Group| {
            let op = |&n: &NodeId| (graph.node(n).op.name().to_string(), names(&graph.node(n).origin));
            let key = crate::tune::hash(kiln_passes::kernel::key(graph, group).as_bytes());
            let ops: Vec<(String, Vec<String>)> = group.nodes.iter().map(op).collect();
            let mut of: Vec<String> = Vec::new();
            for operator in ops.iter().flat_map(|(_, names)| names).filter_map(|name| operators.get(name)) {
                if !of.contains(operator) {
                    of.push(operator.clone());
                }
            }
            Kernel { key, operators: of, ops }
        };
        self.kernels = scheduled.groups().map(kernel).collect();
        self
    }

    /// The text form.
    ///
    /// # Errors
    /// [`Error::Internal`], which strings and numbers do not cause.
    pub fn to_text(&self) -> Result<String, Error> {
        serde_json::to_string(self).map_err(|e| Error::Internal(format!("notes: {e}")))
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// [`Error::Data`] where the text is none.
    pub fn parse(text: &str) -> Result<Notes, Error> {
        serde_json::from_str(text).map_err(|e| Error::data("notes", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_added_where_no_node_asks_for_it() {
        let of = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert!(added(&of(&["Conv"]), MOVING));
        assert!(added(&of(&["Reshape", "Transpose"]), MOVING));
        assert!(!added(&of(&["Pad", "Slice"]), MOVING));
        assert!(!added(&[], MOVING), "the author of a graph in Rust asked for it");
    }

    #[test]
    fn notes_round_trip() {
        let copy = Copy { kernel: None, what: "copy".into(), bytes: 8, origin: vec!["y".into()], operators: vec![] };
        let host = Host { origin: vec!["a\"b".into()], why: "because".into() };
        let notes = Notes { hosts: vec![host], copies: vec![copy], outputs: vec!["f32[2]".into()], ..Notes::default() };
        assert_eq!(Notes::parse(&notes.to_text().unwrap()).unwrap(), notes);
        assert!(Notes::parse("{").is_err());
    }
}

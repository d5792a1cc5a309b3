//! The pipeline: which passes run, in which order, and what comes out.
//!
//! Invariant: every pass takes a verified graph and leaves one; the list below is the only place that orders them.

use crate::attention::join_attention;
use crate::borders::join_borders;
use crate::boundary::{Place, Wishes, places};
use crate::fusion::Attempt;
use crate::group::{Group, Work, group};
use crate::hoist::hoist_constants;
use crate::kernel::scatter::Scatter;
use crate::kernel::{Alike, Choice, Machine, Terms, computes, key, preferred_layouts, tile_program};
use crate::layout::assign_layouts;
use crate::nibbles::keep_nibbles;
use crate::parts::keep_parts;
use crate::plan::{Weight, build_plan};
use crate::region::{Region, regions};
use crate::rewrite;
use crate::spread::{close_rows, spread_rows};
use crate::stored_halves::keep_halves;
use crate::tiles::join_tiles;
use crate::views::absorb_views;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::graph::{Graph, GraphError, NodeId, Origin, ValueId};
use kiln_ir::ops::{Elements, Op};
use kiln_ir::plan::{MOST_BYTES, Plan, Slot};
use kiln_ir::tile::TileProgram;
use std::collections::{BTreeSet, HashMap, HashSet};

/// A pass could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// A graph is not what it should be; the pass that left it so is named.
    #[error("after pass `{pass}`: {error}")]
    Graph {
        /// The pass.
        pass: &'static str,
        /// What is wrong.
        error: GraphError,
    },
    /// A result of the model has more bytes than any memory.
    #[error("{0} would have {1} bytes, more than any memory holds")]
    TooLarge(String, Expr),
    /// The planner made a plan that its verifier rejects: a bug of ours.
    #[error("the plan is not valid: {0}")]
    Plan(String),
}

/// In which precision products of f32 with constants are computed; their sums are f32 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// With the error of f32: by multiply-adds, and convolutions tile by tile.
    #[default]
    F32,
    /// On matrix registers as [`Terms::Three`] products of bf16, whose error is some fifty times as large.
    F32Fast,
    /// By multiply-adds of f32 alone.
    Strict,
    /// Factors are rounded to bf16: of products with constants, and of attention where a unit multiplies matrices of them.
    Bf16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Precision; 4] = [Precision::F32, Precision::F32Fast, Precision::Strict, Precision::Bf16];

    /// Its name on the command line and in artifacts.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F32Fast => "f32-fast",
            Precision::Strict => "strict",
            Precision::Bf16 => "bf16",
        }
    }

    /// The type that factors are rounded to, where they are.
    pub fn factors(self) -> Option<DType> {
        match self {
            Precision::F32 | Precision::F32Fast | Precision::Strict => None,
            Precision::Bf16 => Some(DType::BF16),
        }
    }

    /// How many products of bf16 may stand for a product of f32, where any may.
    pub fn terms(self) -> Option<Terms> {
        match self {
            Precision::F32Fast => Some(Terms::Three),
            // Not `Terms::Six`: measured slower than multiply-adds (ADR 52).
            Precision::F32 | Precision::Strict | Precision::Bf16 => None,
        }
    }
}

/// A name that is no precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the precision {0:?} is not supported; there are f32, f32-fast, strict and bf16")]
pub struct UnknownPrecision(pub String);

impl std::str::FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Precision, UnknownPrecision> {
        let found = Precision::ALL.into_iter().find(|p| p.name() == name);
        found.ok_or_else(|| UnknownPrecision(name.into()))
    }
}

/// A graph pass.
pub struct Pass {
    /// Name, as dumps and messages show it.
    pub name: &'static str,
    /// The only precision that it is for, where there is one.
    only: Option<Precision>,
    run: fn(&Graph) -> Result<Graph, GraphError>,
}

/// The passes on graphs, in the order in which they run.
pub const PASSES: &[Pass] = &[
    Pass { name: "compact", only: None, run: Graph::compact },
    Pass { name: "integers", only: None, run: rewrite::regions_of_integers },
    // Before weights are folded into floats.
    Pass { name: "bytes", only: None, run: rewrite::products_of_bytes },
    // After what looks for quantization as models write it.
    Pass { name: "functions", only: None, run: rewrite::functions_of_bytes },
    Pass { name: "fold", only: None, run: rewrite::fold_constants },
    Pass { name: "canonicalise", only: None, run: rewrite::canonicalise },
    Pass { name: "recognise", only: None, run: rewrite::recognise },
    Pass { name: "halves", only: None, run: rewrite::products_of_halves },
    Pass { name: "fold-again", only: None, run: rewrite::fold_constants },
    // After weights have been folded, and scales into them.
    Pass { name: "pairs", only: Some(Precision::Bf16), run: rewrite::products_of_pairs },
    Pass { name: "common", only: None, run: rewrite::eliminate_common },
    Pass {
        name: "layout",
        only: None,
        run: |g| {
            let mut g = g.compact()?;
            assign_layouts(&mut g)?;
            Ok(g)
        },
    },
];

/// Runs the graph passes of a precision. `observe` sees the graph after each, with the pass' name (dumps, verification by interpretation);
/// an error from it stops the pipeline.
///
/// # Errors
/// A pass fails or leaves a graph that does not verify.
pub fn optimise(
    graph: Graph,
    precision: Precision,
    observe: &mut dyn FnMut(&'static str, &Graph, &Graph) -> Result<(), GraphError>,
) -> Result<Graph, PassError> {
    let mut graph = graph;
    for pass in PASSES.iter().filter(|p| p.only.is_none_or(|only| only == precision)) {
        let fail = |error| PassError::Graph { pass: pass.name, error };
        let next = (pass.run)(&graph).map_err(fail)?;
        if let Some(error) = next.verify().into_iter().next() {
            return Err(fail(error));
        }
        observe(pass.name, &graph, &next).map_err(fail)?;
        graph = next;
    }
    Ok(graph)
}

/// What the pipeline makes of a graph.
#[derive(Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// What the weights section holds.
    pub weights: Vec<Weight>,
    /// For each target the kernels' tile programs, in the order of the plan's kernels.
    pub kernels: Vec<Vec<TileProgram>>,
    /// Why nodes run on the host that are no host ops: node names and reason.
    pub host_reasons: Vec<(Origin, String)>,
    /// What was scheduled.
    pub scheduled: Scheduled,
}

/// A graph cut into work, with what was decided on the way: what reports and the tuner look at.
#[derive(Clone, Debug, Default)]
pub struct Scheduled {
    /// The graph as it was cut, before constants were packed.
    pub graph: Graph,
    /// The same before constants were kept in parts, where they are.
    whole: Option<Graph>,
    /// How many products of parts stand for a product of f32, where constants may be kept in parts.
    pub terms: Option<Terms>,
    /// The work, in order; its n-th group is kernel n.
    pub work: Vec<Work>,
    /// Which fusions were tried.
    pub attempts: Vec<Attempt>,
    /// The keys of the places at which something was asked for and done.
    pub asked: BTreeSet<String>,
    /// What was asked for.
    pub wishes: Wishes,
    /// Results of what would be attention, or a convolution with its tiles, and can be no single kernel.
    apart: HashSet<ValueId>,
}

impl Scheduled {
    /// Whether there are products of pairs of bf16, beside which the emitters of levels for them may round other numbers, too.
    pub fn has_pairs(&self) -> bool {
        rewrite::has_products_of(&self.graph, Elements::Pairs)
    }

    /// The groups, in the order of the kernels.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        groups(&self.work)
    }

    /// The places where fusion and the layout pass have a choice.
    pub fn places(&self) -> Vec<Place> {
        places(&self.graph, &self.work, &self.attempts)
    }

    /// The same graph cut for CPUs with other wishes.
    ///
    /// # Errors
    /// The graph is not valid.
    pub fn recut(&self, wishes: &Wishes) -> Result<Scheduled, PassError> {
        let hosts: HashSet<NodeId> = self.work.iter().filter_map(Work::host).collect();
        let on_host = |id| hosts.contains(&id);
        let (mut graph, mut attempts) = (self.whole.as_ref().unwrap_or(&self.graph).clone(), Vec::new());
        close_rows(&mut graph);
        wishes.lay_out(&mut graph, &on_host);
        let work = group(&graph, &on_host, wishes, &mut attempts);
        let work = work.map_err(|error| PassError::Graph { pass: "schedule", error })?;
        let mut work = joined_for_cpus(&mut graph, work, wishes, &mut attempts, &self.apart);
        let whole = in_parts(&mut graph, &mut work, self.terms);
        Ok(Scheduled {
            graph,
            whole,
            terms: self.terms,
            work,
            attempts,
            asked: BTreeSet::new(),
            wishes: wishes.clone(),
            apart: self.apart.clone(),
        })
    }
}

/// What kernels for CPUs take in beside what fusion gives them, and where their rows lie.
fn joined_for_cpus(
    graph: &mut Graph,
    work: Vec<Work>,
    wishes: &Wishes,
    attempts: &mut Vec<Attempt>,
    apart: &HashSet<ValueId>,
) -> Vec<Work> {
    let work = join_borders(graph, work, wishes, attempts);
    spread_rows(graph, &work);
    join_tiles(graph, join_attention(graph, work, apart), apart)
}

/// Keeps constants in parts, where products are to be sums of such; the graph before that.
fn in_parts(graph: &mut Graph, work: &mut [Work], terms: Option<Terms>) -> Option<Graph> {
    let whole = terms.map(|_| graph.clone());
    if let Some(terms) = terms {
        keep_parts(graph, work, terms);
    }
    whole
}

fn groups(work: &[Work]) -> impl Iterator<Item = &Group> {
    work.iter().filter_map(Work::kernel)
}

/// What was chosen for the kernel of a [`key`], if anything was.
pub type Chosen<'a> = dyn Fn(&str) -> Option<Choice> + 'a;

/// A backend, as the scheduler sees it.
pub struct Target<'a> {
    /// What the cost model knows of it.
    pub machine: Machine,
    /// Schedules from outside, where there are any.
    pub chosen: Option<&'a Chosen<'a>>,
    /// Says whether the backend can take a tile program over free dims of these ranges; what one target refuses runs on the
    /// host for all of them.
    pub lowers: &'a mut dyn FnMut(&TileProgram, &Ranges) -> Result<(), String>,
}

/// A graph cut into work, with the kernels of all targets.
#[derive(Debug)]
pub struct Cut {
    /// The graph; constants have the layout that the first target prefers.
    pub graph: Graph,
    /// The work, in order.
    pub work: Vec<Work>,
    /// For each target the kernels of the work, in order.
    pub kernels: Vec<Vec<TileProgram>>,
    /// Host nodes whose bodies are cut, too.
    pub regions: HashMap<NodeId, Region>,
    /// The number of the first kernel among those of the plan.
    pub first: usize,
    before: Graph,
    whole: Option<Graph>,
    attempts: Vec<Attempt>,
    asked: BTreeSet<String>,
    wishes: Wishes,
    apart: HashSet<ValueId>,
    host_reasons: Vec<(Origin, String)>,
}

/// Cuts an optimised graph into kernels and plans them, once for all targets: the weights are stored in the layout that
/// the first target prefers.
///
/// Dims that are free at run time stay free: kernels take them as arguments, grids, sizes and loops are expressions over them.
///
/// # Errors
/// The graph is not valid.
pub fn schedule(graph: &Graph, targets: &mut [Target<'_>]) -> Result<Compiled, PassError> {
    let fail = |error| PassError::Graph { pass: "schedule", error };
    let graph = &with_safe_symbols(graph).map_err(fail)?;
    let on_gpus = targets.iter().all(|t| t.machine.gpu.is_some());
    let graph = &hoist_constants(graph, &|graph, id| host_reason(graph, id, on_gpus).is_some()).map_err(fail)?;
    let mut cut = cut(graph, targets)?;
    let mut kernels: Vec<Vec<TileProgram>> = targets.iter().map(|_| Vec::new()).collect();
    let mut host_reasons = Vec::new();
    number(&mut cut, &mut 0, &mut kernels, &mut host_reasons);
    let (plan, weights) = build_plan(&cut, kernels.first().map_or(&[][..], Vec::as_slice)).map_err(fail)?;
    let large = |s: &&Slot| s.ty.bytes().as_const().is_some_and(|bytes| bytes >= MOST_BYTES);
    if let Some(slot) = plan.slots.iter().map(|(_, s)| s).find(large) {
        let name = slot.name.as_deref().map_or_else(|| "an intermediate result".into(), |n| format!("{n:?}"));
        return Err(PassError::TooLarge(format!("{name} ({})", slot.ty), slot.ty.bytes()));
    }
    if let Some(e) = plan.verify().into_iter().next() {
        return Err(PassError::Plan(e.to_string()));
    }
    let Cut { before, whole, work, attempts, asked, wishes, apart, .. } = cut;
    let terms = terms_of(targets);
    let scheduled = Scheduled { graph: before, whole, terms, work, attempts, asked, wishes, apart };
    Ok(Compiled { plan, weights, kernels, host_reasons, scheduled })
}

/// Numbers the kernels: those of a graph in their order, then those of the bodies within it.
fn number(cut: &mut Cut, next: &mut usize, all: &mut [Vec<TileProgram>], reasons: &mut Vec<(Origin, String)>) {
    cut.first = *next;
    *next += groups(&cut.work).count();
    for (all, own) in all.iter_mut().zip(&mut cut.kernels) {
        for (n, mut program) in own.drain(..).enumerate() {
            program.name = format!("k{}", cut.first + n);
            all.push(program);
        }
    }
    reasons.append(&mut cut.host_reasons);
    for work in &cut.work {
        if let Work::Host(id) = work
            && let Some(region) = cut.regions.get_mut(id)
        {
            region.bodies_mut().into_iter().for_each(|body| number(&mut body.cut, next, all, reasons));
        }
    }
}

/// The type to which all targets round the operands of products.
fn halves_of(targets: &[Target<'_>]) -> Option<kiln_ir::DType> {
    let half = targets.first()?.machine.gpu?.operands?;
    targets.iter().all(|t| t.machine.gpu.and_then(|g| g.operands) == Some(half)).then_some(half)
}

/// How many products of parts stand for a product of f32 on all targets: weights are stored in one form for all of them.
fn terms_of(targets: &[Target<'_>]) -> Option<Terms> {
    let terms = targets.first()?.machine.terms?;
    targets.iter().all(|t| t.machine.terms == Some(terms)).then_some(terms)
}

/// Cuts an optimised graph into kernels, and what its host nodes hold.
///
/// # Errors
/// The graph is not valid.
pub(crate) fn cut(graph: &Graph, targets: &mut [Target<'_>]) -> Result<Cut, PassError> {
    let fail = |error| PassError::Graph { pass: "schedule", error };
    let on_gpus = targets.iter().all(|t| t.machine.gpu.is_some());
    let on_cpus = targets.iter().all(|t| t.machine.gpu.is_none());
    let for_cpus = if on_cpus {
        let turned = rewrite::columns_last(graph).map_err(fail)?;
        let copied = rewrite::copied_rows(&turned).map_err(fail)?;
        Some(rewrite::without_zeros(&copied).map_err(fail)?)
    } else {
        // Blocks of threads turn operands round in shared memory.
        None
    };
    let graph = for_cpus.as_ref().unwrap_or(graph);
    let mut host: HashSet<NodeId> = HashSet::new();
    let mut host_reasons: Vec<(Origin, String)> = Vec::new();
    for (id, node) in graph.nodes() {
        if let Some(reason) = host_reason(graph, id, on_gpus)
            && !matches!(node.op, Op::Host(_))
        {
            host.insert(id);
            host_reasons.push((node.origin.clone(), reason));
        }
    }
    let mut apart: HashSet<ValueId> = HashSet::new();
    let (mut wishes, mut asked) = (Wishes::default(), BTreeSet::new());
    let mut known: HashMap<Alike, Vec<TileProgram>> = HashMap::new();
    // Each round moves at least one refused group to the host or cuts one up, so there are at most as many as nodes.
    loop {
        let mut graph = graph.clone();
        for &id in &host {
            // Host ops read and write row-major tensors.
            let node = graph.node(id).clone();
            for &v in node.inputs.iter().chain(&node.outputs) {
                let rank = graph.ty(v).rank();
                graph.set_layout(v, kiln_ir::Layout::row_major(rank));
            }
        }
        wishes.lay_out(&mut graph, &|id| host.contains(&id));
        let mut attempts = Vec::new();
        let work = group(&graph, &|id| host.contains(&id), &wishes, &mut attempts).map_err(fail)?;
        let mut work = match () {
            () if on_cpus => joined_for_cpus(&mut graph, work, &wishes, &mut attempts, &apart),
            () if on_gpus => absorb_views(&graph, join_attention(&graph, work, &apart)),
            () => work,
        };
        if let Some(half) = halves_of(targets) {
            keep_halves(&mut graph, &mut work, half);
        }
        if on_gpus {
            keep_nibbles(&mut graph, &mut work);
        }
        let terms = terms_of(targets);
        let whole = in_parts(&mut graph, &mut work, terms);
        // Kernels are cut once for all targets, as the first of them has it quickest; each round asks for at least one value more.
        if let Some(chosen) = targets.first().and_then(|t| t.chosen)
            && take_wishes(chosen, &places(&graph, &work, &attempts), (&mut wishes, &mut asked))
        {
            continue;
        }
        let groups: Vec<_> = groups(&work).collect();
        let choose = |g: &Group, t: &Target<'_>| t.chosen.and_then(|f| f(&key(&graph, g))).unwrap_or_default();
        let choices: Vec<Vec<Choice>> = groups.iter().map(|g| targets.iter().map(|t| choose(g, t)).collect()).collect();
        let before = graph.clone();
        if let Some(first) = targets.first() {
            for (g, choices) in groups.iter().zip(&choices) {
                let choice = choices.first().copied().unwrap_or_default();
                for (value, layout) in preferred_layouts(&graph, g, &first.machine, &choice) {
                    if graph.users(value).iter().any(|n| host.contains(n)) {
                        continue;
                    }
                    graph.set_layout(value, layout);
                }
            }
        }
        let mut kernels: Vec<Vec<TileProgram>> = targets.iter().map(|_| Vec::new()).collect();
        let mut refused = false;
        for (g, choices) in groups.iter().zip(&choices) {
            let alike = Alike::of(&graph, g, on_gpus, choices);
            let same = alike.as_ref().and_then(|a| known.get(a));
            debug_assert!(
                same.is_none_or(|same| programs_of(&graph, g, targets, choices).as_ref() == Ok(same)),
                "{}: alike, but not the same kernel",
                g.origin
            );
            let made = same.map_or_else(|| programs_of(&graph, g, targets, choices), |same| Ok(same.clone()));
            match made {
                Ok(made) => {
                    if let Some(alike) = alike.filter(|a| !known.contains_key(a)) {
                        known.insert(alike, made.clone());
                    }
                    kernels.iter_mut().zip(made).for_each(|(all, program)| all.push(program));
                }
                // What is refused apart, too, goes the way of all others.
                Err(_) if (g.is_attention() || g.is_tiled()) && apart.insert(g.output) => refused = true,
                Err(reason) => {
                    refused = true;
                    host.extend(g.nodes.iter().copied());
                    host_reasons.push((g.origin.clone(), reason));
                }
            }
        }
        if refused {
            continue;
        }
        let made = kernels.first().map_or(&[][..], Vec::as_slice);
        for (group, program) in work.iter_mut().filter_map(Work::kernel_mut).zip(made) {
            // What no unit multiplies is multiplied whole.
            if let Some(what) = terms.and_then(|t| group.what.strip_suffix(t.mark())).filter(|_| !program.multiplies())
            {
                group.what = what.into();
            }
        }
        let regions = regions(&before, work.iter().filter_map(Work::host), targets)?;
        return Ok(Cut {
            graph,
            work,
            kernels,
            regions,
            first: 0,
            before,
            whole,
            attempts,
            asked,
            wishes,
            apart,
            host_reasons,
        });
    }
}

/// The tile programs of a group, for each target one.
///
/// # Errors
/// Why one of the targets has none.
fn programs_of(
    graph: &Graph,
    group: &Group,
    targets: &mut [Target<'_>],
    choices: &[Choice],
) -> Result<Vec<TileProgram>, String> {
    let of = |(target, choice): (&mut Target<'_>, &Choice)| {
        let mut made = |machine: &Machine| {
            let made = tile_program(graph, group, "k", machine, choice).map_err(|e| e.to_string());
            made.and_then(|p| (target.lowers)(&p, &graph.symbols).map(|()| p))
        };
        // What cannot be finished beside the unit for matrices still can be without it.
        let plain = target.machine.matrices.then(|| Machine { matrices: false, ..target.machine.clone() });
        made(&target.machine).or_else(|e| plain.as_ref().map_or(Err(e), &mut made))
    };
    targets.iter_mut().zip(choices).map(of).collect()
}

/// Takes what was measured of the places; whether anything is to be otherwise than it was. Of two places with a kernel in common one is
/// taken: each was measured with the other as the rules have it.
fn take_wishes(chosen: &Chosen<'_>, places: &[Place], (wishes, asked): (&mut Wishes, &mut BTreeSet<String>)) -> bool {
    let mut changed: BTreeSet<ValueId> = BTreeSet::new();
    for place in places {
        let boundary = chosen(&place.key).and_then(|choice| choice.boundary);
        if let Some(other) = place.others.iter().find(|other| Some(other.boundary) == boundary)
            && changed.is_disjoint(&other.kernels)
            && wishes.ask(other.value, other.boundary)
        {
            changed.extend(&other.kernels);
            asked.insert(place.key.clone());
        }
    }
    !changed.is_empty()
}

/// The graph without symbols that it does not mention and with names that no loop variable of a kernel has: those are a
/// letter and a number, or end in what register tiles add to them.
fn with_safe_symbols(graph: &Graph) -> Result<Graph, GraphError> {
    if graph.symbols.is_empty() {
        return Ok(graph.clone());
    }
    let mut used: BTreeSet<Symbol> = BTreeSet::new();
    for (_, value) in graph.values() {
        value.ty.dims.iter().for_each(|d| d.for_each_symbol(&mut |s| _ = used.insert(s.clone())));
    }
    let clashes = |name: &str| {
        let number = name.strip_prefix(|c: char| c.is_ascii_lowercase()).unwrap_or_default();
        let lettered = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
        lettered || name.ends_with("_block") || name.ends_with("_part")
    };
    let rename = |s: &Symbol| if clashes(s.name()) { Symbol::new(&format!("dim_{}", s.name())) } else { s.clone() };
    let mut new = graph.rebuild(&|e| e.substitute(&|s| Some(Expr::from(rename(s)))))?;
    new.symbols = used.iter().map(|s| (rename(s), graph.symbols.get(s).copied().unwrap_or((0, i64::MAX)))).collect();
    Ok(new)
}

/// Why a node cannot be a kernel, if its types say so.
fn host_reason(graph: &Graph, id: NodeId, on_gpus: bool) -> Option<String> {
    let node = graph.node(id);
    if Scatter::of(graph, id).is_some() {
        return None;
    }
    if let Op::Host(h) = &node.op {
        return Some(format!("`{}` is a host op", h.function()));
    }
    let mut types: Vec<_> = node.inputs.iter().chain(&node.outputs).map(|&v| graph.ty(v).dtype).collect();
    if let Op::Map(m) = &node.op {
        types.extend(m.body.nodes().map(|(n, _)| m.body.dtype(n)));
    }
    types.into_iter().find(|&t| !computes(on_gpus, t)).map(|t| format!("kernels do not compute with {t}"))
}

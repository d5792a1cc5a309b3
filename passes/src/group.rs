//! Groups: what becomes one kernel.
//!
//! Invariant: a group computes one value of the graph from values that other groups, the caller or the weights
//! provide; its stages are nests whose `Source::Input(k)` is `inputs[k]`, and only the last stage's result leaves it. A scatter is
//! a group of its own without stages: where it stores is computed.

use crate::boundary::Wishes;
use crate::cost;
use crate::fusion::{Attempt, Refusal, Way};
use crate::kernel::scatter::Scatter;
use crate::kernel::{multiplies_tiles, reads_parts};
use crate::late::constants_late;
use crate::layers::scales_of_layers;
use crate::spread;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::{Graph, NodeId, Origin, ValueId};
use kiln_ir::nest::{self, Nest};
use kiln_ir::ops::{Meaning, Op, Pack};
use kiln_ir::plan::nominal;
use kiln_ir::scalar::{Code, Constant, Coord, Scalar, Source};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One kernel's worth of the graph.
#[derive(Clone, Debug)]
pub struct Group {
    /// Nests, the last one computes `output`; none for a [`Scatter`].
    pub stages: Vec<Nest>,
    /// What `Source::Input(k)` reads.
    pub inputs: Vec<ValueId>,
    /// The value that is computed.
    pub output: ValueId,
    /// The model's nodes that went in.
    pub origin: Origin,
    /// The ops that went in, for people: `conv+map`.
    pub what: String,
    /// The nodes that went in.
    pub nodes: Vec<NodeId>,
    /// How many elements of the output lie around those that are computed.
    pub border: i64,
}

/// What is executed, in order.
#[derive(Clone, Debug)]
pub enum Work {
    /// A kernel.
    Kernel(Group),
    /// A node that the runtime's Rust code computes.
    Host(NodeId),
    /// The value is another one's memory under other dims.
    Alias {
        /// The value that owns the memory.
        of: ValueId,
        /// The value that is the same memory.
        value: ValueId,
    },
}

impl Work {
    /// The group of a kernel, to be changed.
    pub(crate) fn kernel_mut(&mut self) -> Option<&mut Group> {
        match self {
            Work::Kernel(group) => Some(group),
            Work::Host(_) | Work::Alias { .. } => None,
        }
    }

    /// The kernel, where it is one.
    pub fn kernel(&self) -> Option<&Group> {
        match self {
            Work::Kernel(group) => Some(group),
            Work::Host(_) | Work::Alias { .. } => None,
        }
    }

    /// The values that it reads.
    pub(crate) fn reads<'w>(&'w self, graph: &'w Graph) -> &'w [ValueId] {
        match self {
            Work::Kernel(group) => &group.inputs,
            Work::Host(node) => &graph.node(*node).inputs,
            Work::Alias { of, .. } => std::slice::from_ref(of),
        }
    }

    /// The values that it makes.
    pub(crate) fn makes<'w>(&'w self, graph: &'w Graph) -> &'w [ValueId] {
        match self {
            Work::Kernel(group) => std::slice::from_ref(&group.output),
            Work::Host(node) => &graph.node(*node).outputs,
            Work::Alias { value, .. } => std::slice::from_ref(value),
        }
    }

    /// The node of the host, where it is one.
    pub fn host(&self) -> Option<NodeId> {
        match self {
            Work::Host(node) => Some(*node),
            Work::Kernel(_) | Work::Alias { .. } => None,
        }
    }
}

impl Group {
    /// Whether the group is a single nest without fold.
    pub(crate) fn is_pointwise(&self) -> bool {
        matches!(self.stages.as_slice(), [only] if only.folds.is_empty())
    }

    fn is_identity(&self, code: &Code) -> bool {
        matches!(code.node(code.result()), Scalar::Load(..) | Scalar::Arg(_))
    }

    /// Whether a stage folds: a product, a reduction.
    pub(crate) fn folds(&self) -> bool {
        self.stages.iter().any(|s| !s.folds.is_empty())
    }

    /// Whether the group only moves elements, at affine indices and without conditions.
    pub(crate) fn is_view(&self) -> bool {
        self.is_pointwise() && self.is_identity(&self.stages[0].body) && self.is_identity(&self.stages[0].finish) && {
            let mut plain = true;
            self.stages[0].for_each_load(&mut |_, coords| {
                plain &= coords.iter().all(|c| match c {
                    Coord::Index(e) => is_affine(e),
                    Coord::Value(_) => false,
                });
            });
            plain
        }
    }

    /// How many scalar operations the stages have.
    pub(crate) fn code_size(&self) -> usize {
        self.stages.iter().map(|s| s.body.len() + s.finish.len()).sum()
    }

    /// A measure of the work for one element of a pointwise group.
    fn element_cost(&self) -> u64 {
        self.stages.iter().flat_map(|s| [&s.body, &s.finish]).map(cost::of_code).sum()
    }

    fn has_guard(&self) -> bool {
        self.stages
            .iter()
            .flat_map(|s| [&s.body, &s.finish])
            .any(|c| c.nodes().any(|(_, n)| matches!(n, Scalar::Guard(..)) || gathers(n)))
    }

    fn input_index(&mut self, value: ValueId) -> usize {
        match self.inputs.iter().position(|&v| v == value) {
            Some(n) => n,
            None => {
                self.inputs.push(value);
                self.inputs.len() - 1
            }
        }
    }

    /// Estimated arithmetic operations of one run, over the free dims.
    pub fn operations(&self) -> Expr {
        let product = |e: &[Expr]| e.iter().fold(Expr::from(1i64), |a, d| a.mul(d));
        let number = |n: u64| Expr::from(i64::try_from(n).unwrap_or(i64::MAX));
        self.stages.iter().fold(Expr::default(), |sum, s| {
            let (body, finish) = s.operations();
            // Putting a factor together is no operation of the product.
            let body = if reads_parts(&s.body) { 2 } else { body };
            let points = product(&s.dims).sub(&Expr::from(self.border));
            let folded = points.mul(&product(&s.folds)).mul(&number(body));
            // Four results share the products of their tile.
            let folded = if multiplies_tiles(&s.body) {
                points.mul(&product(&s.folds)).floor_div(&Expr::from(2i64))
            } else {
                folded
            };
            sum.add(&folded).add(&points.mul(&number(finish)))
        })
    }
}

fn gathers(node: &Scalar) -> bool {
    matches!(node, Scalar::Load(_, coords) if coords.iter().any(|c| matches!(c, Coord::Value(_))))
}

fn is_affine(e: &Expr) -> bool {
    e.terms().all(|(atoms, _)| matches!(atoms, [kiln_ir::expr::Atom::Symbol(_)]))
}

/// Cuts the graph into groups and host nodes, in an order in which they can run.
///
/// `on_host` says of a node that no kernel can be made of it (its types, its op); such nodes are not fused. `wishes` go before what
/// fusion decides by cost.
/// The fusion rules: a producer without fold goes into its only reader (views go into all readers that can absorb
/// them); a chain of elementwise work after a fold goes into that fold's `finish`.
///
/// # Errors
/// The graph has a cycle or an op refuses its operands, which a verified graph excludes.
///
/// `tried` gets what was decided on the way.
pub fn group(
    graph: &Graph,
    on_host: &dyn Fn(NodeId) -> bool,
    wishes: &Wishes,
    tried: &mut Vec<Attempt>,
) -> Result<Vec<Work>, kiln_ir::graph::GraphError> {
    let order = graph.live_order()?;
    let users = Users { graph, live: order.iter().copied().collect(), wishes };
    let mut groups: HashMap<ValueId, Group> = HashMap::new();
    let mut hosts: HashMap<ValueId, NodeId> = HashMap::new();
    let mut aliases: HashMap<ValueId, ValueId> = HashMap::new();
    let weights = scales_of_layers(graph);
    for &id in &order {
        let node = graph.node(id);
        let types: Vec<_> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let fail = |e: kiln_ir::ops::OpError| kiln_ir::graph::GraphError::new(&node.origin, e.to_string());
        let meaning = if on_host(id) { Meaning::Host } else { node.op.meaning(&types).map_err(fail)? };
        let output = node.outputs[0];
        let Meaning::Nests(stages) = meaning else {
            if let Some(scatter) = Scatter::of(graph, id).filter(|_| !on_host(id)) {
                let inputs = scatter.inputs().to_vec();
                let (origin, what) = (node.origin.clone(), "scatter".to_string());
                groups
                    .insert(output, Group { stages: vec![], inputs, output, origin, what, nodes: vec![id], border: 0 });
                continue;
            }
            for &v in &node.outputs {
                hosts.insert(v, id);
            }
            continue;
        };
        let read_by_host = graph.users(output).iter().any(|&n| users.live.contains(&n) && is_host(graph, n, on_host));
        // What unpacks a weight is to reach the product that reads it.
        let unpacks = node.inputs.first().and_then(|v| groups.get(v)).is_some_and(|p| expands(graph, p));
        if !read_by_host && !unpacks && is_alias(graph, &node.op, node.inputs.first().copied(), output) {
            aliases.insert(output, node.inputs[0]);
            tried.push(Attempt { value: node.inputs[0], reader: id, verdict: Ok(Way::Renamed) });
            continue;
        }
        let mut group = Group {
            stages,
            inputs: node.inputs.clone(),
            output,
            origin: node.origin.clone(),
            what: node.op.name().to_string(),
            nodes: vec![id],
            border: 0,
        };
        let mut note = |value, verdict| tried.push(Attempt { value, reader: id, verdict });
        // Each element is read 16 times there, and 4 times by the kernel.
        if !matches!(node.op, Op::WindowTiles(_)) {
            absorb_producers(graph, &mut group, &groups, &users, &mut note);
        }
        write_out_constants(graph, &mut group, &weights);
        merge_into_fold(graph, &mut group, &groups, &users, &mut note);
        groups.insert(output, group);
    }
    Ok(constants_late(graph, demanded(graph, &order, groups, &hosts, &aliases)))
}

/// Whether a node only moves elements, as a group of its own would.
pub(crate) fn only_moves(graph: &Graph, id: NodeId) -> bool {
    of_node(graph, id).is_some_and(|group| group.is_view())
}

/// A node as a group of its own, where its op has nests; what is said of it to people is missing.
pub(crate) fn of_node(graph: &Graph, id: NodeId) -> Option<Group> {
    let node = graph.node(id);
    let types: Vec<_> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let (Ok(Meaning::Nests(stages)), Some(&output)) = (node.op.meaning(&types), node.outputs.first()) else {
        return None;
    };
    let (inputs, origin, what) = (node.inputs.clone(), node.origin.clone(), String::new());
    Some(Group { stages, inputs, output, origin, what, nodes: vec![id], border: 0 })
}

fn is_host(graph: &Graph, node: NodeId, on_host: &dyn Fn(NodeId) -> bool) -> bool {
    on_host(node) || matches!(graph.node(node).op, Op::Host(_)) && Scatter::of(graph, node).is_none()
}

/// Whether the node's result is its operand's memory: a reshape, or a transpose that only moves axes of extent 1, of
/// a row-major value that is no constant; or bytes packed that lie side by side. An output of the graph has memory of its own.
fn is_alias(graph: &Graph, op: &Op, from: Option<ValueId>, to: ValueId) -> bool {
    let Some(from) = from else { return false };
    let (a, b) = (graph.ty(from), graph.ty(to));
    if let Op::Pack(pack) = op {
        let side_by_side =
            a.layout == b.layout && a.layout.block.is_none() && a.layout.order.last() == Some(&pack.axis);
        // What an element of the result takes together is 32 bits already, but for f32, which are rounded first.
        let neighbours = Pack::neighbours(a.dtype).ok().filter(|n| n * a.dtype.size() as i64 == 4);
        let extent = a.dims.get(pack.axis).and_then(Expr::as_const);
        let whole = extent.zip(neighbours).is_some_and(|(extent, neighbours)| extent % neighbours == 0);
        return side_by_side && whole && graph.constant(from).is_none() && !graph.is_output(to);
    }
    let movable = graph.constant(from).is_none() && !graph.is_output(to);
    let same = a.layout.is_row_major() && b.layout.is_row_major() && a.dtype == b.dtype;
    let in_order = match op {
        Op::Reshape(_) => true,
        Op::Transpose(t) => {
            let moved: Vec<usize> = t.perm.iter().copied().filter(|&n| a.dims[n].as_const() != Some(1)).collect();
            moved.is_sorted()
        }
        _ => false,
    };
    movable && same && in_order
}

/// Takes a note of a decision on a value.
type Note<'a> = dyn FnMut(ValueId, Result<Way, Refusal>) + 'a;

fn absorb_producers(
    graph: &Graph,
    group: &mut Group,
    groups: &HashMap<ValueId, Group>,
    users: &Users<'_>,
    note: &mut Note<'_>,
) {
    let mut k = 0;
    while k < group.inputs.len() {
        let value = group.inputs[k];
        let producer = groups.get(&value);
        let new = producer.filter(|p| refusal(graph, group, k, p, users).is_none()).and_then(|p| inline(group, k, p));
        match new {
            // What was read twice before may be read here alone now: look at all inputs again.
            Some(mut new) => {
                note(value, Ok(Way::Inlined));
                drop_unread_inputs(&mut new);
                *group = new;
                k = 0;
            }
            None => k += 1,
        }
    }
    for (k, &value) in group.inputs.iter().enumerate() {
        if let Some(producer) = groups.get(&value) {
            note(value, Err(refusal(graph, group, k, producer, users).unwrap_or(Refusal::Computed)));
        }
    }
}

/// Replaces what an elementwise group loads of constants with one element by their values, which the lowering can then take into
/// account (a power of 3 is two multiplications), but for `weights`. What only moves elements stays a view.
fn write_out_constants(graph: &Graph, group: &mut Group, weights: &HashSet<ValueId>) {
    if !group.is_pointwise() || group.is_view() {
        return;
    }
    let single = |&v: &ValueId| {
        let constant = graph.constant(v).filter(|_| !weights.contains(&v));
        let tensor = constant.filter(|t| t.len() == 1 && crate::kernel::is_kernel_type(t.dtype()))?;
        Constant::load(tensor.dtype(), tensor.bytes(), 0)
    };
    let values: Vec<Option<Constant>> = group.inputs.iter().map(single).collect();
    if values.iter().all(Option::is_none) {
        return;
    }
    for code in group.stages.iter_mut().flat_map(|s| [&mut s.body, &mut s.finish]) {
        let mut out = Code::new();
        let written = out.inline(code, &mut |out, node, dtype| {
            Ok(match node {
                Scalar::Load(Source::Input(n), _) => values[*n].filter(|c| c.dtype == dtype).map(|c| out.constant(c)),
                _ => None,
            })
        });
        if let Ok(result) = written {
            out.set_result(result);
            *code = out;
        }
    }
    drop_unread_inputs(group);
}

/// Why a producer's code does not replace the loads of the group's k-th input.
fn refusal(graph: &Graph, group: &Group, k: usize, producer: &Group, users: &Users<'_>) -> Option<Refusal> {
    let value = producer.output;
    let wish = users.wishes.of(value);
    if wish == Some(false) {
        return Some(Refusal::Asked);
    }
    if !producer.is_pointwise() {
        return Some(if group.is_pointwise() { Refusal::Folds } else { Refusal::BothFold });
    }
    if graph.is_output(value) {
        return Some(Refusal::Output);
    }
    if group.code_size() + producer.code_size() > MOST_CODE {
        return Some(Refusal::Size(MOST_CODE));
    }
    let by_cost = |refusal: Refusal| Some(refusal).filter(|_| wish != Some(true));
    if producer.is_view() {
        let copied = scatters_columns(graph, group, k, producer) || is_copy_for(graph, group, producer);
        return copied.then_some(Refusal::Product).and_then(by_cost);
    }
    if !users.all_in(value, &group.nodes) {
        return Some(Refusal::Readers(users.count(value)));
    }
    let guards = producer.has_guard().then_some(Refusal::Guards);
    if group.is_pointwise() {
        // A guarded consumer would evaluate what it guards everywhere unless it only moves elements.
        guards.filter(|_| group.has_guard())
    } else if group.stages.len() > 1 {
        let cost = producer.element_cost();
        guards.or((cost > 2).then_some(Refusal::Cost(cost)).and_then(by_cost))
    } else if is_plain_reduction(&group.stages[0]) {
        guards
    } else if let Some(most) = most_reads(graph, producer) {
        let times = reuse(graph, group, k);
        (times > most).then_some(Refusal::Reuse(times)).and_then(by_cost)
    } else {
        by_cost(Refusal::Product).or(guards)
    }
}

/// Whether the group is a product whose columns lie side by side in its k-th operand, and would be far apart in what the view
/// reads: a copy in the right order then costs less than sums across vector lanes. Constants are laid out for their product anyway.
fn scatters_columns(graph: &Graph, group: &Group, k: usize, view: &Group) -> bool {
    let ([stage], [copy]) = (group.stages.as_slice(), view.stages.as_slice()) else { return false };
    if stage.folds.is_empty() || view.inputs.iter().any(|&v| graph.constant(v).is_some()) {
        return false;
    }
    let is = |e: Option<&Coord>, axis: Symbol| matches!(e, Some(Coord::Index(e)) if e.as_symbol() == Some(&axis));
    let Some(column) = stage.dims.len().checked_sub(1).map(nest::axis) else { return false };
    let Some(innermost) = copy.dims.len().checked_sub(1).map(nest::axis) else { return false };
    let mut beside = false;
    stage
        .for_each_load(&mut |source, coords| beside |= source == Source::Input(k) && is(coords.last(), column.clone()));
    let mut stays = true;
    copy.for_each_load(&mut |_, coords| stays &= is(coords.last(), innermost.clone()));
    beside && !stays && reuse(graph, group, k) >= LEAST_REUSE
}

/// Whether the view is a copy of what the caller gave, made for the product that the group is.
fn is_copy_for(graph: &Graph, group: &Group, view: &Group) -> bool {
    let ([stage], [copy], [of]) = (group.stages.as_slice(), view.stages.as_slice(), view.inputs.as_slice()) else {
        return false;
    };
    let mut same = graph.ty(*of).dims == copy.dims && !stage.folds.is_empty() && spread::rows_meet(graph.ty(*of));
    copy.for_each_load(&mut |_, coords| {
        let own = |(n, c): (usize, &Coord)| {
            let single = copy.dims.get(n).is_some_and(|d| d.as_const() == Some(1));
            c.expr().is_some_and(|e| e.as_symbol() == Some(&nest::axis(n)) || single && e.as_const() == Some(0))
        };
        same &= coords.iter().enumerate().all(own);
    });
    same
}

/// How often a product must read each element of an operand for a copy of it to be worth while.
pub(crate) const LEAST_REUSE: i64 = 16;

/// Most scalar operations of a kernel that grows by fusion. A chain of thousands of nodes is cut into kernels of this size: code that
/// is copied into ever longer code takes the square of the chain's length, and no register holds what it computes.
pub(crate) const MOST_CODE: usize = 400;

/// How often a product may read each element of a weight for it to be unpacked at every read: where it is read more often, it is
/// unpacked once into memory.
const MOST_REUSE: i64 = 64;

/// How often a product may read each number of fewer bits for it to be widened at every read: what the rows of a tile share costs less than
/// writing all of them to memory and reading them back, as of a cache's keys and values for one token.
const MOST_WIDENED: i64 = 8;

/// How often a product may read each element that a producer makes for it to be made at every read, where reading it takes more bytes than what
/// it is made of.
fn most_reads(graph: &Graph, producer: &Group) -> Option<i64> {
    let widened = || widens(graph, producer).then_some(MOST_WIDENED);
    expands(graph, producer).then_some(MOST_REUSE).or_else(widened)
}

/// Whether a group converts numbers to wider ones and does nothing else.
fn widens(graph: &Graph, producer: &Group) -> bool {
    let [from] = producer.inputs.as_slice() else { return false };
    let (from, to) = (graph.ty(*from).dtype, graph.ty(producer.output).dtype);
    let plain = |code: &Code| match code.node(code.result()) {
        Scalar::Cast(_, a) => matches!(code.node(*a), Scalar::Load(..) | Scalar::Arg(_)),
        Scalar::Load(..) | Scalar::Arg(_) => true,
        _ => false,
    };
    let codes = producer.stages.iter().flat_map(|s| [&s.body, &s.finish]);
    producer.is_pointwise() && codes.into_iter().all(plain) && from.size() < to.size() && to == DType::F32
}

/// Whether a group without fold makes something much larger of constants, 16 bytes of 10: weights of few bits become floats, or zeros that
/// are not stored are there again.
fn expands(graph: &Graph, producer: &Group) -> bool {
    let constant = |&v: &ValueId| graph.constant(v).is_some();
    let bytes = |v: ValueId| graph.ty(v).bytes().as_const().unwrap_or(i64::MAX);
    let read = producer.inputs.iter().map(|&v| bytes(v)).fold(0i64, i64::saturating_add);
    producer.is_pointwise()
        && !producer.inputs.is_empty()
        && producer.inputs.iter().all(constant)
        && !producer.has_guard()
        && read.saturating_mul(16) <= bytes(producer.output).saturating_mul(10)
}

/// The value of an extent, about: free dims are what estimates take them for.
pub(crate) fn about(graph: &Graph, extent: &Expr) -> i64 {
    extent.eval(&|s| graph.symbols.get(s).map(|&range| nominal(range))).unwrap_or(1)
}

/// How often the group reads each element of its k-th input, about.
pub(crate) fn reuse(graph: &Graph, group: &Group, k: usize) -> i64 {
    let mut most = 1i64;
    for stage in &group.stages {
        stage.for_each_load(&mut |source, coords| {
            if source != Source::Input(k) {
                return;
            }
            let mentions = |s: &Symbol| coords.iter().any(|c| matches!(c, Coord::Index(e) if e.mentions(s)));
            let again = stage.dims.iter().enumerate().filter(|(n, _)| !mentions(&nest::axis(*n)));
            let times = again.map(|(_, d)| about(graph, d)).fold(1i64, i64::saturating_mul);
            most = most.max(times);
        });
    }
    most
}

/// Who reads a value, and what was asked for it.
struct Users<'a> {
    graph: &'a Graph,
    live: std::collections::HashSet<NodeId>,
    wishes: &'a Wishes,
}

impl Users<'_> {
    /// Whether all live readers of the value are among the nodes.
    fn all_in(&self, value: ValueId, nodes: &[NodeId]) -> bool {
        self.graph.users(value).iter().filter(|n| self.live.contains(n)).all(|n| nodes.contains(n))
    }

    /// How many live nodes read the value.
    fn count(&self, value: ValueId) -> usize {
        self.graph.users(value).iter().filter(|n| self.live.contains(n)).count()
    }
}

/// A fold that reads every element of its operand at most once.
fn is_plain_reduction(nest: &Nest) -> bool {
    let total: usize = nest.dims.len() + nest.folds.len();
    let mut once = true;
    let mut loads = 0;
    nest.for_each_load(&mut |_, coords| {
        loads += 1;
        let symbols: std::collections::BTreeSet<_> =
            coords.iter().filter_map(|c| c.expr()?.as_symbol().cloned()).collect();
        let constants = coords.iter().filter(|c| matches!(c, Coord::Index(e) if e.as_const() == Some(0))).count();
        let ones = nest.dims.iter().filter(|d| d.as_const() == Some(1)).count();
        once &= symbols.len() + constants.max(ones) >= total && symbols.len() + constants == coords.len();
    });
    once && loads == 1
}

/// `group` with every load of input `k` replaced by the producer's scalar code at that index.
pub(crate) fn inline(group: &Group, k: usize, producer: &Group) -> Option<Group> {
    let mut new = group.clone();
    let map: Vec<usize> = producer.inputs.iter().map(|&v| new.input_index(v)).collect();
    let nest = &producer.stages[0];
    for stage in &mut new.stages {
        for code in [&mut stage.body, &mut stage.finish] {
            let mut out = Code::new();
            let result = out
                .inline(code, &mut |out, node, _| match node {
                    Scalar::Load(Source::Input(n), coords) if *n == k => {
                        let index: Option<Vec<Expr>> = coords.iter().map(|c| c.expr().cloned()).collect();
                        let Some(index) = index else {
                            return Err(kiln_ir::scalar::TypeError("the producer is read at computed indices".into()));
                        };
                        splice(out, nest, &index, &map).map(Some)
                    }
                    _ => Ok(None),
                })
                .ok()?;
            out.set_result(result);
            *code = out;
        }
    }
    new.origin.merge(&producer.origin);
    new.nodes.extend_from_slice(&producer.nodes);
    if !producer.is_view() {
        new.what = format!("{}+{}", producer.what, new.what);
    }
    Some(new)
}

/// Adds the pointwise nest's value at an index; its inputs are renumbered by `map`.
fn splice(
    out: &mut Code,
    nest: &Nest,
    index: &[Expr],
    map: &[usize],
) -> Result<kiln_ir::Id<Scalar>, kiln_ir::scalar::TypeError> {
    let at: BTreeMap<_, _> = index.iter().enumerate().map(|(n, e)| (nest::axis(n), e.clone())).collect();
    let substitute = |e: &Expr| e.substitute(&|s| at.get(s).cloned());
    let mut moved = |out: &mut Code, node: &Scalar, dtype| {
        Ok(Some(match node {
            Scalar::Load(source, coords) => {
                let source = match source {
                    Source::Input(n) => Source::Input(map[*n]),
                    Source::Stage(n) => Source::Stage(*n),
                };
                let coords = coords
                    .iter()
                    .map(|c| match c {
                        Coord::Index(e) => Coord::Index(substitute(e)),
                        Coord::Value(v) => Coord::Value(*v),
                    })
                    .collect();
                out.load(source, coords, dtype)
            }
            Scalar::Index(e) => out.index(substitute(e)),
            Scalar::Guard(conditions, a, b) => {
                let conditions = conditions
                    .iter()
                    .map(|c| kiln_ir::scalar::Less { left: substitute(&c.left), right: substitute(&c.right) })
                    .collect();
                out.push(Scalar::Guard(conditions, *a, *b))?
            }
            _ => return Ok(None),
        }))
    };
    let body = out.inline(&nest.body, &mut moved)?;
    out.inline(&nest.finish, &mut |out, node, dtype| match node {
        Scalar::Arg(0) => Ok(Some(body)),
        _ => moved(out, node, dtype),
    })
}

/// Where a pointwise group reads the result of a fold (or of several stages) element by element and is its only
/// reader, the group becomes the fold's `finish`.
fn merge_into_fold(
    graph: &Graph,
    group: &mut Group,
    groups: &HashMap<ValueId, Group>,
    users: &Users<'_>,
    note: &mut Note<'_>,
) {
    if !group.is_pointwise() || group.has_guard() {
        return;
    }
    // The latest candidate: the others then are there before it runs.
    let mut candidate: Option<usize> = None;
    for k in 0..group.inputs.len() {
        let value = group.inputs[k];
        let Some(producer) = groups.get(&value).filter(|p| !p.is_pointwise()) else { continue };
        if let Some(refusal) = finish_refusal(graph, group, k, producer, users) {
            note(value, Err(refusal));
            continue;
        }
        let later = candidate.is_none_or(|c| value >= group.inputs[c]);
        if let Some(other) = if later { candidate.replace(k) } else { Some(k) } {
            note(group.inputs[other], Err(Refusal::Another));
        }
    }
    let Some(k) = candidate else { return };
    let producer = &groups[&group.inputs[k]];
    let mut new = producer.clone();
    let map: Vec<usize> =
        group.inputs.iter().enumerate().map(|(n, &v)| if n == k { 0 } else { new.input_index(v) }).collect();
    let Some(last) = new.stages.last_mut() else { return };
    let mut finish = Code::new();
    let value = {
        let Ok(v) = finish.inline(&last.finish, &mut |_, _, _| Ok(None)) else { return };
        v
    };
    let own = &group.stages[0];
    let mut moved = |out: &mut Code, node: &Scalar, dtype| {
        Ok(match node {
            Scalar::Load(Source::Input(n), _) if *n == k => Some(value),
            Scalar::Load(Source::Input(n), coords) => Some(out.load(Source::Input(map[*n]), coords.clone(), dtype)),
            _ => None,
        })
    };
    let Ok(body) = finish.inline(&own.body, &mut moved) else { return };
    let Ok(result) = finish.inline(&own.finish, &mut |out, node, dtype| match node {
        Scalar::Arg(0) => Ok(Some(body)),
        _ => moved(out, node, dtype),
    }) else {
        return;
    };
    finish.set_result(result);
    last.finish = finish;
    note(group.inputs[k], Ok(Way::Finished));
    new.output = group.output;
    new.origin.merge(&group.origin);
    new.nodes.extend_from_slice(&group.nodes);
    new.what = format!("{}+{}", new.what, group.what);
    drop_unread_inputs(&mut new);
    *group = new;
}

/// Why a pointwise group is not applied to the folded value of the producer of its k-th input.
fn finish_refusal(graph: &Graph, group: &Group, k: usize, producer: &Group, users: &Users<'_>) -> Option<Refusal> {
    let value = producer.output;
    let dims = &group.stages[0].dims;
    if users.wishes.of(value) == Some(false) {
        return Some(Refusal::Asked);
    }
    if graph.is_output(value) {
        return Some(Refusal::Output);
    }
    if group.code_size() + producer.code_size() > MOST_CODE {
        return Some(Refusal::Size(MOST_CODE));
    }
    if !users.all_in(value, &group.nodes) {
        return Some(Refusal::Readers(users.count(value)));
    }
    let mut identity = true;
    group.stages[0].for_each_load(&mut |source, coords| {
        if source == Source::Input(k) {
            let here = coords.len() == dims.len()
                && coords.iter().enumerate().all(|(n, c)| match c {
                    Coord::Index(e) => {
                        e.as_symbol() == Some(&nest::axis(n))
                            || dims.get(n).is_some_and(|d| d.as_const() == Some(1)) && e.as_const() == Some(0)
                    }
                    Coord::Value(_) => false,
                });
            identity &= here;
        }
    });
    if !identity || producer.stages.last().is_none_or(|s| s.dims != *dims) {
        return Some(Refusal::Elements);
    }
    (graph.ty(value).layout != graph.ty(group.output).layout).then_some(Refusal::Layout)
}

pub(crate) fn drop_unread_inputs(group: &mut Group) {
    let mut read = vec![false; group.inputs.len()];
    for stage in &group.stages {
        stage.for_each_load(&mut |source, _| {
            if let Source::Input(n) = source {
                read[n] = true;
            }
        });
    }
    if read.iter().all(|&r| r) {
        return;
    }
    let mut map = Vec::new();
    let mut kept = Vec::new();
    for (n, &r) in read.iter().enumerate() {
        map.push(kept.len());
        if r {
            kept.push(group.inputs[n]);
        }
    }
    for stage in &mut group.stages {
        for code in [&mut stage.body, &mut stage.finish] {
            let mut out = Code::new();
            let renumbered = out.inline(code, &mut |out, node, dtype| {
                Ok(match node {
                    Scalar::Load(Source::Input(n), coords) => {
                        Some(out.load(Source::Input(map[*n]), coords.clone(), dtype))
                    }
                    _ => None,
                })
            });
            if let Ok(result) = renumbered {
                out.set_result(result);
                *code = out;
            }
        }
    }
    group.inputs = kept;
}

/// What the outputs need, in topological order of the values.
fn demanded(
    graph: &Graph,
    order: &[NodeId],
    mut groups: HashMap<ValueId, Group>,
    hosts: &HashMap<ValueId, NodeId>,
    aliases: &HashMap<ValueId, ValueId>,
) -> Vec<Work> {
    let mut needed: std::collections::HashSet<ValueId> = graph.outputs.iter().map(|(_, v)| *v).collect();
    let mut work = Vec::new();
    let mut hosted = std::collections::HashSet::new();
    for &id in order.iter().rev() {
        for &value in graph.node(id).outputs.iter().rev() {
            if !needed.contains(&value) {
                continue;
            }
            if let Some(&of) = aliases.get(&value) {
                needed.insert(of);
                work.push(Work::Alias { of, value });
            } else if let Some(&host) = hosts.get(&value) {
                if hosted.insert(host) {
                    needed.extend(graph.node(host).inputs.iter().copied());
                    work.push(Work::Host(host));
                }
            } else if let Some(group) = groups.remove(&value) {
                needed.extend(group.inputs.iter().copied());
                work.push(Work::Kernel(group));
            }
        }
    }
    work.reverse();
    work
}

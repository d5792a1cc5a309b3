//! Names of values: defined once, used where they are visible, in an order without cycles.
//!
//! Invariant: afterwards the nodes of every graph are in topological order, stable where the file's order was one, and
//! every graph knows which names it captures from outer graphs; or there is a problem that says why not.

use super::read::{Function, FunctionKey, scope};
use super::{Graph, Limits, Node};
use crate::onnx::problem::{NodeRef, Problem, ProblemKind, Problems, shown};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Nodes of a cycle that a message lists.
const CYCLE_SHOWN: usize = 8;

/// Checks and sorts the main graph and all functions.
pub(super) fn check(graph: &mut Graph, functions: &mut [Function], limits: &Limits, problems: &mut Problems) {
    let mut checker = Checker { scope: Vec::new(), problems };
    checker.whole(graph);
    for function in functions.iter_mut() {
        checker.scope.push(function.shown());
        checker.whole(&mut function.body);
        checker.scope.pop();
    }
    calls(functions, limits, problems);
}

/// Fills in what every graph captures, from the inside out.
pub(super) fn capture(graph: &mut Graph) {
    for node in &mut graph.nodes {
        node.subgraphs_mut().for_each(capture);
    }
    let mut defined: HashSet<&str> = HashSet::new();
    defined.extend(graph.inputs.iter().chain(&graph.defaults).map(|v| v.name.as_str()));
    defined.extend(graph.initializers.iter().map(|v| v.name.as_str()));
    defined.extend(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).map(String::as_str));
    let used = graph.nodes.iter().flat_map(uses).chain(graph.outputs.iter().map(|o| o.name.as_str()));
    let mut captures: Vec<String> = used.filter(|name| !defined.contains(name)).map(str::to_owned).collect();
    captures.sort_unstable();
    captures.dedup();
    graph.captures = captures;
}

/// The names that a node uses, itself or by its subgraphs.
fn uses(node: &Node) -> impl Iterator<Item = &str> {
    let captured = node.subgraphs().flat_map(|g| g.captures.iter());
    node.inputs.iter().flatten().chain(captured).map(String::as_str)
}

/// Where a name is defined.
#[derive(Clone, Copy, PartialEq)]
enum Definition {
    /// An input or constant.
    Start,
    /// An output of the node at the position.
    Node(usize),
}

/// The names of one graph, and of those around it.
struct Scope<'a> {
    names: HashMap<&'a str, Definition>,
    outer: Option<&'a Scope<'a>>,
}

impl Scope<'_> {
    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name) || self.outer.is_some_and(|outer| outer.has(name))
    }
}

struct Checker<'a> {
    scope: Vec<String>,
    problems: &'a mut Problems,
}

impl Checker<'_> {
    fn invalid(&mut self, node: Option<NodeRef>, message: String) {
        let scope = (!self.scope.is_empty()).then(|| self.scope.join(", "));
        self.problems.push(Problem { kind: ProblemKind::Invalid, scope, node, message });
    }

    fn whole(&mut self, graph: &mut Graph) {
        capture(graph);
        self.graph(graph, None);
        self.sort(graph);
        // What the outermost graph captures is undefined, and has been reported.
        graph.captures.clear();
    }

    /// Checks definitions and uses, of subgraphs too.
    fn graph(&mut self, graph: &Graph, outer: Option<&Scope>) {
        let mut names: HashMap<&str, Definition> = HashMap::new();
        for input in graph.inputs.iter().chain(&graph.defaults) {
            if names.insert(&input.name, Definition::Start).is_some() {
                self.invalid(None, format!("the input {} is defined twice", shown(&input.name)));
            }
        }
        let mut constants = HashSet::new();
        let defaults: HashSet<&str> = graph.defaults.iter().map(|d| d.name.as_str()).collect();
        for constant in &graph.initializers {
            let twice = names.insert(&constant.name, Definition::Start).is_some();
            if !constants.insert(&constant.name) || twice && !defaults.contains(constant.name.as_str()) {
                self.invalid(None, format!("the initializer {} is defined twice", shown(&constant.name)));
            }
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            for name in node.outputs.iter().flatten() {
                let by = match names.insert(name, Definition::Node(i)) {
                    None => continue,
                    Some(Definition::Start) => "an input or initializer".to_owned(),
                    Some(Definition::Node(other)) => match graph.nodes.get(other) {
                        Some(n) if other != i => n.reference().to_string(),
                        _ => "another output of the node".to_owned(),
                    },
                };
                self.invalid(Some(node.reference()), format!("the output {} is also defined by {by}", shown(name)));
            }
        }
        let scope = Scope { names, outer };
        for (i, node) in graph.nodes.iter().enumerate() {
            for name in node.inputs.iter().flatten() {
                match scope.names.get(name.as_str()) {
                    // The same name would mean one thing in the file's order and another in the sorted one.
                    Some(Definition::Node(by)) if *by >= i && outer.is_some_and(|o| o.has(name)) => {
                        let message = format!(
                            "the input {} is defined later in this graph and also in a graph around it",
                            shown(name)
                        );
                        self.invalid(Some(node.reference()), message);
                    }
                    Some(_) => {}
                    None if scope.has(name) => {}
                    None => self.invalid(Some(node.reference()), format!("the input {} is not defined", shown(name))),
                }
            }
            for attribute in &node.attributes {
                for subgraph in attribute.value.graphs() {
                    self.scope.push(self::scope(Some(&node.reference()), &shown(&attribute.name)));
                    self.graph(subgraph, Some(&scope));
                    self.scope.pop();
                }
            }
        }
        for output in &graph.outputs {
            if !output.name.is_empty() && !scope.has(&output.name) {
                self.invalid(None, format!("the output {} is not defined", shown(&output.name)));
            }
        }
    }

    /// Sorts the nodes, of subgraphs too; the lowest position in the file goes first among those that are ready.
    fn sort(&mut self, graph: &mut Graph) {
        for node in &mut graph.nodes {
            let reference = node.reference();
            for attribute in &mut node.attributes {
                let name = shown(&attribute.name);
                for subgraph in attribute.value.graphs_mut() {
                    self.scope.push(scope(Some(&reference), &name));
                    self.sort(subgraph);
                    self.scope.pop();
                }
            }
        }
        let count = graph.nodes.len();
        let mut producers: HashMap<&str, usize> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            producers.extend(node.outputs.iter().flatten().map(|name| (name.as_str(), i)));
        }
        let needs: Vec<Vec<usize>> =
            graph.nodes.iter().map(|n| uses(n).filter_map(|name| producers.get(name).copied()).collect()).collect();
        if needs.iter().enumerate().all(|(i, needs)| needs.iter().all(|&n| n < i)) {
            return;
        }
        let order = topological(&needs);
        if order.len() < count {
            let mut cycle = cycle(&needs, &order);
            cycle.reverse();
            from_lowest(&mut cycle);
            let shown: Vec<String> = cycle
                .iter()
                .take(CYCLE_SHOWN)
                .filter_map(|&i| graph.nodes.get(i))
                .map(|n| n.reference().to_string())
                .collect();
            let more = if cycle.len() > CYCLE_SHOWN { " -> ..." } else { "" };
            self.invalid(None, format!("nodes depend on each other in a cycle: {}{more}", shown.join(" -> ")));
            return;
        }
        let mut nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
        graph.nodes = order.into_iter().filter_map(|i| nodes.get_mut(i).and_then(Option::take)).collect();
    }
}

/// Positions in topological order, the lowest ready one first; those on or behind a cycle are left out.
fn topological(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut waiting: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    for (i, needs) in needs.iter().enumerate() {
        for &n in needs {
            users[n].push(i);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        waiting.iter().enumerate().filter(|&(_, &n)| n == 0).map(|(i, _)| Reverse(i)).collect();
    let mut order = Vec::with_capacity(needs.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &user in &users[i] {
            waiting[user] -= 1;
            if waiting[user] == 0 {
                ready.push(Reverse(user));
            }
        }
    }
    order
}

/// Rotates a cycle so that it starts at its lowest position.
fn from_lowest(cycle: &mut [usize]) {
    let lowest = cycle.iter().enumerate().min_by_key(|&(_, &position)| position).map_or(0, |(i, _)| i);
    cycle.rotate_left(lowest);
}

/// A cycle among the positions that `order` leaves out; each needs the one after it.
fn cycle(needs: &[Vec<usize>], order: &[usize]) -> Vec<usize> {
    let sorted: HashSet<usize> = order.iter().copied().collect();
    let Some(mut at) = (0..needs.len()).find(|i| !sorted.contains(i)) else { return Vec::new() };
    let mut walked: HashMap<usize, usize> = HashMap::new();
    let mut path = Vec::new();
    loop {
        if let Some(&start) = walked.get(&at) {
            return path.split_off(start);
        }
        walked.insert(at, path.len());
        path.push(at);
        // What is left out needs something that is left out: otherwise it would have become ready.
        match needs[at].iter().find(|n| !sorted.contains(n)) {
            Some(&next) => at = next,
            None => return path,
        }
    }
}

/// Refuses functions that call themselves, directly or not, and chains of calls that are too long.
fn calls(functions: &[Function], limits: &Limits, problems: &mut Problems) {
    let positions: HashMap<&FunctionKey, usize> = functions.iter().enumerate().map(|(i, f)| (&f.key, i)).collect();
    let needs: Vec<Vec<usize>> = functions
        .iter()
        .map(|f| {
            let mut called = HashSet::new();
            callees(&f.body, &positions, &mut called);
            let mut called: Vec<usize> = called.into_iter().collect();
            called.sort_unstable();
            called
        })
        .collect();
    let order = topological(&needs);
    let mut push = |kind, message| problems.push(Problem { kind, scope: None, node: None, message });
    if order.len() < functions.len() {
        let mut cycle = cycle(&needs, &order);
        from_lowest(&mut cycle);
        let shown: Vec<String> =
            cycle.iter().take(CYCLE_SHOWN).filter_map(|&i| functions.get(i)).map(Function::shown).collect();
        push(ProblemKind::Invalid, format!("functions call themselves: {}", shown.join(" -> ")));
    }
    let mut depths = vec![1usize; functions.len()];
    for i in order {
        depths[i] = 1 + needs[i].iter().map(|&n| depths[n]).max().unwrap_or(0);
    }
    if depths.iter().any(|&d| d > limits.call_depth) {
        push(ProblemKind::Limit, format!("functions call each other more than {} deep", limits.call_depth));
    }
}

/// The functions that a graph calls, in subgraphs too.
fn callees(graph: &Graph, positions: &HashMap<&FunctionKey, usize>, called: &mut HashSet<usize>) {
    for node in &graph.nodes {
        called.extend(positions.get(&super::inline::key(node)));
        node.subgraphs().for_each(|g| callees(g, positions, called));
    }
}

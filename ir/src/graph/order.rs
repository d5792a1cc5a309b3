//! Topological order and reachability, by petgraph's algorithms on the graph's own arenas.
//!
//! Invariant: [`Dataflow`] is a borrowed view: one vertex a node, one edge for each operand that another node made, and
//! one for each symbol that another node decides.

use super::{Definition, Graph, GraphError, Node, NodeId};
use crate::id::Id;
use petgraph::Direction;
use petgraph::visit::{
    Dfs, GraphBase, GraphRef, IntoNeighbors, IntoNeighborsDirected, IntoNodeIdentifiers, NodeIndexable, Reversed, Topo,
    VisitMap, Visitable,
};
use std::collections::HashSet;

/// A graph as petgraph sees it.
#[derive(Clone, Copy)]
pub struct Dataflow<'a>(pub &'a Graph);

/// The neighbours of a node.
pub type Neighbors = std::vec::IntoIter<NodeId>;

impl GraphBase for Dataflow<'_> {
    type EdgeId = (NodeId, NodeId);
    type NodeId = NodeId;
}

impl GraphRef for Dataflow<'_> {}

impl Visitable for Dataflow<'_> {
    type Map = HashSet<NodeId>;
    fn visit_map(&self) -> Self::Map {
        HashSet::new()
    }
    fn reset_map(&self, map: &mut Self::Map) {
        map.clear();
    }
}

impl IntoNeighbors for Dataflow<'_> {
    type Neighbors = Neighbors;
    fn neighbors(self, n: NodeId) -> Neighbors {
        self.neighbors_directed(n, Direction::Outgoing)
    }
}

impl IntoNeighborsDirected for Dataflow<'_> {
    type NeighborsDirected = Neighbors;
    fn neighbors_directed(self, n: NodeId, direction: Direction) -> Neighbors {
        let node: &Node = self.0.node(n);
        let found: Vec<NodeId> = match direction {
            Direction::Outgoing => {
                let users = node.outputs.iter().flat_map(|&v| self.0.users(v).iter().copied());
                users.chain(self.0.followers(n).iter().copied()).collect()
            }
            Direction::Incoming => {
                let producers = node.inputs.iter().filter_map(|&v| self.0.producer(v));
                producers.chain(self.0.leaders(n).iter().copied()).collect()
            }
        };
        found.into_iter()
    }
}

impl IntoNodeIdentifiers for Dataflow<'_> {
    type NodeIdentifiers = std::vec::IntoIter<NodeId>;
    fn node_identifiers(self) -> Self::NodeIdentifiers {
        self.0.nodes().map(|(id, _)| id).collect::<Vec<_>>().into_iter()
    }
}

impl NodeIndexable for Dataflow<'_> {
    fn node_bound(&self) -> usize {
        self.0.nodes().len()
    }
    fn to_index(&self, id: NodeId) -> usize {
        id.index()
    }
    fn from_index(&self, i: usize) -> NodeId {
        Id::from_index(i)
    }
}

impl Graph {
    /// All nodes, each after the nodes that it depends on.
    ///
    /// # Errors
    /// The graph has a cycle; the error names a node on it.
    pub fn order(&self) -> Result<Vec<NodeId>, GraphError> {
        let mut topo = Topo::new(Dataflow(self));
        let mut order = Vec::with_capacity(self.nodes().len());
        while let Some(n) = topo.next(Dataflow(self)) {
            order.push(n);
        }
        if order.len() == self.nodes().len() {
            // Arena order where it is topological already, so that printing is stable.
            if self.nodes().all(|(id, n)| n.inputs.iter().all(|&v| self.producer(v).is_none_or(|p| p < id))) {
                order.sort();
            }
            return Ok(order);
        }
        let done: HashSet<NodeId> = order.into_iter().collect();
        let stuck = self.nodes().find(|(id, _)| !done.contains(id));
        let origin = stuck.map(|(_, n)| n.origin.clone()).unwrap_or_default();
        Err(GraphError::new(&origin, "the node is on or behind a cycle".into()))
    }

    /// [`Graph::order`] without the nodes that no output depends on.
    ///
    /// # Errors
    /// The graph has a cycle.
    pub fn live_order(&self) -> Result<Vec<NodeId>, GraphError> {
        let mut dfs = Dfs::empty(Reversed(Dataflow(self)));
        for (_, v) in &self.outputs {
            if let Definition::Node(n, _) = self.value(*v).definition {
                dfs.move_to(n);
                while dfs.next(Reversed(Dataflow(self))).is_some() {}
            }
        }
        Ok(self.order()?.into_iter().filter(|n| dfs.discovered.is_visited(n)).collect())
    }

    /// Whether a path leads from node `from` to node `to` (a node reaches itself).
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        petgraph::algo::has_path_connecting(Dataflow(self), from, to, None)
    }
}

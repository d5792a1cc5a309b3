//! Views that kernels of GPUs read through: slices, transposes and the like that would be kernels of their own.
//!
//! Invariant: every kernel computes what it did before; only kernels that move elements go, and only where nothing reads
//! their results any more.

use crate::attention::reread;
use crate::group::{Group, MOST_CODE, Work, drop_unread_inputs, inline};
use kiln_ir::graph::{Graph, ValueId};
use kiln_ir::nest;
use kiln_ir::scalar::Coord;
use std::collections::{HashMap, HashSet};

/// Replaces what kernels read of views, under whatever dims, by what the views read.
pub(crate) fn absorb_views(graph: &Graph, work: Vec<Work>) -> Vec<Work> {
    let mut aliases = HashMap::new();
    let mut views: HashMap<ValueId, Group> = HashMap::new();
    let mut work: Vec<Work> = work
        .into_iter()
        .map(|w| match w {
            Work::Alias { of, value } => {
                aliases.insert(value, aliases.get(&of).copied().unwrap_or(of));
                w
            }
            Work::Kernel(group) => {
                let group = absorbed(graph, group, &aliases, &views);
                if group.is_view() {
                    views.insert(group.output, group.clone());
                }
                Work::Kernel(group)
            }
            Work::Host(_) => w,
        })
        .collect();
    loop {
        let read: HashSet<ValueId> = work.iter().flat_map(|w| w.reads(graph)).copied().collect();
        let needed = |v: ValueId| read.contains(&v) || graph.is_output(v);
        let before = work.len();
        work.retain(|w| match w {
            Work::Kernel(group) => !views.contains_key(&group.output) || needed(group.output),
            Work::Alias { value, .. } => needed(*value),
            Work::Host(_) => true,
        });
        if work.len() == before {
            return work;
        }
    }
}

/// The group that reads through all views it can.
fn absorbed(
    graph: &Graph,
    mut group: Group,
    aliases: &HashMap<ValueId, ValueId>,
    views: &HashMap<ValueId, Group>,
) -> Group {
    let mut k = 0;
    while let Some(&value) = group.inputs.get(k) {
        let from = aliases.get(&value).copied().unwrap_or(value);
        let view = views.get(&from).filter(|v| suits(&group, v));
        let new = view.and_then(|view| {
            let new = inline(&reread(graph, &group, k, from)?, k, view)?;
            Some(new).filter(|new| new.code_size() <= MOST_CODE)
        });
        match new {
            Some(mut new) => {
                drop_unread_inputs(&mut new);
                group = new;
                k = 0;
            }
            None => k += 1,
        }
    }
    group
}

/// Whether a kernel may read through a view: always in attention and where elements are read once; a product that reads them
/// often wants to find its neighbours beside one another.
fn suits(group: &Group, view: &Group) -> bool {
    let [copy] = view.stages.as_slice() else { return false };
    let innermost = copy.dims.len().checked_sub(1).map(nest::axis);
    let mut stays = true;
    copy.for_each_load(&mut |_, coords| {
        stays &= matches!(coords.last(), Some(Coord::Index(e)) if innermost.as_ref().is_some_and(|a| e.coefficient(a) == Some(1)));
    });
    stays || group.is_attention() || group.is_pointwise()
}

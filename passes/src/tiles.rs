//! Convolutions by tiles whose tiles caches would not hold: one group makes them and multiplies them.
//!
//! Invariant: the group computes what the two kernels did that it replaces. Its first stage is the nest of the tiles, its second one that of
//! the products. Nothing else reads the tiles.

use crate::attention::loads;
use crate::borders::readers;
use crate::group::{Group, Work};
use crate::kernel::{may_make_tiles, multiplies_tiles};
use kiln_ir::graph::{Graph, ValueId};
use kiln_ir::nest::Nest;
use kiln_ir::ops::Op;
use kiln_ir::scalar::{Code, Source};
use std::collections::{HashMap, HashSet};

/// Bytes of tiles that the second cache holds: up to here two kernels do as well, with larger blocks of tiles.
const NEAR_TILES: i64 = 1 << 20;

impl Group {
    /// Whether the group makes tiles of windows and multiplies them.
    pub(crate) fn is_tiled(&self) -> bool {
        matches!(self.stages.as_slice(), [_, product] if multiplies_tiles(&product.body))
    }
}

/// Joins what pays; results that are in `apart` stay as they are.
pub(crate) fn join_tiles(graph: &Graph, work: Vec<Work>, apart: &HashSet<ValueId>) -> Vec<Work> {
    let makes = |w: &Work| {
        let group = w.kernel()?;
        matches!(group.nodes.as_slice(), [only] if matches!(graph.node(*only).op, Op::WindowTiles(_)))
            .then_some(group.output)
    };
    let makers: HashMap<ValueId, usize> = work.iter().enumerate().filter_map(|(at, w)| Some((makes(w)?, at))).collect();
    let mut work: Vec<Option<Work>> = work.into_iter().map(Some).collect();
    for n in 0..work.len() {
        let Some(Work::Kernel(product)) = &work[n] else { continue };
        let Some((k, at)) = product.inputs.iter().enumerate().find_map(|(k, v)| Some((k, *makers.get(v)?))) else {
            continue;
        };
        let Some(Work::Kernel(windows)) = &work[at] else { continue };
        if apart.contains(&product.output)
            || readers(graph, &work, windows.output) != 1
            || !pays(graph, windows, product)
        {
            continue;
        }
        let Some(group) = joined(windows, product, k) else { continue };
        work[at] = None;
        work[n] = Some(Work::Kernel(group));
    }
    work.into_iter().flatten().collect()
}

fn pays(graph: &Graph, windows: &Group, product: &Group) -> bool {
    let tiles = graph.ty(windows.output);
    let outputs = graph.ty(product.output).dims.get(1).and_then(|d| d.as_const());
    let (Some(bytes), Some(channels), Some(outputs)) =
        (tiles.bytes().as_const(), tiles.dims.last().and_then(|d| d.as_const()), outputs)
    else {
        return false;
    };
    bytes > NEAR_TILES && may_make_tiles(channels, outputs)
}

/// The product's group with the tiles, its `k`-th input, as its first stage.
fn joined(windows: &Group, product: &Group, k: usize) -> Option<Group> {
    let ([of_windows], [nest]) = (windows.stages.as_slice(), product.stages.as_slice()) else { return None };
    let &[from] = windows.inputs.as_slice() else { return None };
    let mut group = product.clone();
    // What the tiles are made of takes their place among the inputs.
    let made = |code: &Code| loads(code, &mut |_, coords| Some((Source::Input(k), coords.to_vec())));
    let read = |code: &Code| {
        let stage = |source| if source == Source::Input(k) { Source::Stage(0) } else { source };
        loads(code, &mut |source, coords| Some((stage(source), coords.to_vec())))
    };
    *group.inputs.get_mut(k)? = from;
    group.stages = vec![
        Nest { body: made(&of_windows.body)?, finish: made(&of_windows.finish)?, ..of_windows.clone() },
        Nest { body: read(&nest.body)?, finish: read(&nest.finish)?, ..nest.clone() },
    ];
    group.origin.merge(&windows.origin);
    group.nodes.extend_from_slice(&windows.nodes);
    group.what = format!("{}+{}", windows.what, product.what);
    multiplies_tiles(&group.stages[1].body).then_some(group)
}

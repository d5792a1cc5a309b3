//! How axes are cut into tiles.
//!
//! Invariant: the segments of an axis cover it exactly once, whatever its extent is, but for those of [`overlapping`], whose elements may be
//! made twice; no tile overhangs but those of [`overhanging`], which say where the axis ends.

use super::flat::{Axis, FlatNest};
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::scalar::{Coord, Scalar, Source};

/// A run of an axis cut into equal blocks.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Where it begins.
    pub lo: Expr,
    /// Elements of a block.
    pub block: i64,
    /// How many blocks; where the run is made of panels, how many panels.
    pub count: Expr,
    /// How many blocks a panel has.
    pub parts: i64,
    /// Where the last block begins at most: it takes elements again that others have, so that none lies beyond the end.
    pub last: Option<Expr>,
    /// Where the axis ends, where that is before the end of the block: what lies there is computed with what is computed anyway, and not stored.
    pub end: Option<i64>,
}

impl Segment {
    pub fn new(lo: impl Into<Expr>, block: i64, count: impl Into<Expr>) -> Segment {
        Segment { lo: lo.into(), block, count: count.into(), parts: 1, last: None, end: None }
    }

    /// The first element of a block, over the variables of [`block_variables`].
    pub fn first(&self, axis: &Symbol) -> Expr {
        let mut e = self.lo.clone();
        if !self.is_single() {
            e = e.add(&Expr::symbol(&format!("{axis}_block")).scale(self.block * self.parts));
        }
        if self.parts > 1 {
            e = e.add(&Expr::symbol(&format!("{axis}_part")).scale(self.block));
        }
        self.last.as_ref().map_or(e.clone(), |last| e.least(last))
    }

    /// Whether there is surely one block: no loop or grid variable is needed.
    pub fn is_single(&self) -> bool {
        self.count.as_const() == Some(1)
    }
}

/// Elements of the shortest vectors: what is left in them takes a quarter of the time of single elements.
pub(super) const SHORT: i64 = 4;

/// Cuts an axis into blocks without any overhang. A constant extent: whole blocks, then what is left, as many whole vectors as
/// fit, then vectors of four elements, then single elements (in one tile where `lanes` is 1). A free extent: whole blocks, then runs of ever smaller blocks,
/// each of which may be empty.
pub(super) fn segments(extent: &Expr, block: i64, lanes: i64, dims: &Ranges) -> Vec<Segment> {
    let Some(extent) = extent.as_const() else { return free_segments(extent, block, lanes, dims) };
    let block = block.clamp(1, extent.max(1));
    let mut cut = vec![Segment::new(0, block, extent / block)];
    let mut lo = extent / block * block;
    for lanes in [lanes, lanes.min(SHORT)] {
        let vectors = (extent - lo) / lanes * lanes;
        if vectors > 0 {
            cut.push(Segment::new(lo, vectors, 1));
            lo += vectors;
        }
    }
    if lo < extent {
        cut.push(Segment::new(lo, extent - lo, 1));
    }
    cut.retain(|s| s.count.as_const() != Some(0));
    cut
}

/// Segments whose elements beyond the last whole vector, where these are more than one, are one tile: of a vector that holds them all, if `may_read`
/// says that what a product reads for as many elements is there. Cut up they take a register for every few elements of each row, more than there are.
pub(super) fn overhanging(
    cut: Vec<Segment>,
    extent: &Expr,
    lanes: i64,
    may_read: impl Fn(i64) -> bool,
) -> Vec<Segment> {
    let Some(extent) = extent.as_const() else { return cut };
    let whole = cut.iter().take_while(|s| s.block % lanes == 0).count();
    let lo = cut.get(whole).and_then(|s| s.lo.as_const()).unwrap_or(extent);
    let rest = extent - lo;
    let Some(block) = vector_of(rest, lanes).filter(|&block| block > rest && may_read(lo + block)) else { return cut };
    let last = Segment { end: Some(extent), ..Segment::new(lo, block, 1) };
    cut.into_iter().take(whole).chain([last]).collect()
}

/// The shortest vector that holds so many elements, less than there are lanes; nothing for a single one.
pub(super) fn vector_of(elements: i64, lanes: i64) -> Option<i64> {
    let size = u64::try_from(elements).ok()?.next_power_of_two() as i64;
    (elements > 1 && elements < lanes).then(|| size.max(SHORT))
}

fn free_segments(extent: &Expr, block: i64, lanes: i64, dims: &Ranges) -> Vec<Segment> {
    let mut block = block.clamp(1, extent.bounds(dims).1.max(1));
    let (mut lo, mut rest) = (Expr::default(), extent.clone());
    let mut cut = Vec::new();
    loop {
        let size = Expr::from(block);
        let count = rest.floor_div(&size).simplify(dims);
        cut.push(Segment::new(lo.clone(), block, count.clone()));
        if block == 1 {
            break;
        }
        lo = lo.add(&count.scale(block));
        rest = rest.modulo(&size).simplify(dims);
        // Few sizes: every one is a copy of the code.
        block = if lanes > 1 && block > lanes {
            lanes
        } else if block > 4 {
            4
        } else {
            1
        };
    }
    cut.retain(|s| s.count.as_const() != Some(0));
    cut
}

/// Cuts an axis of which elements may be made twice: whole blocks, then vectors for what is left, the last of which begins before they do so
/// that it ends where the axis does. Less than a vector is cut so into the shortest ones, and less than those into single elements.
pub(super) fn overlapping(extent: &Expr, block: i64, lanes: i64, dims: &Ranges) -> Vec<Segment> {
    let (mut lo, mut rest) = (Expr::default(), extent.clone());
    let mut cut = Vec::new();
    let mut wide = vec![block / lanes * lanes, block.min(2 * lanes) / lanes * lanes];
    wide.dedup();
    for block in wide.into_iter().filter(|&block| block > lanes) {
        let size = Expr::from(block);
        let count = rest.floor_div(&size).simplify(dims);
        cut.push(Segment::new(lo.clone(), block, count.clone()));
        lo = lo.add(&count.scale(block));
        rest = rest.modulo(&size).simplify(dims);
    }
    let one = Expr::from(1i64);
    let mut vectors = vec![lanes, lanes.min(SHORT)];
    vectors.dedup();
    // 1 where the axis is shorter than any vector so far, else 0.
    let mut shorter = one.clone();
    for lanes in vectors {
        let size = Expr::from(lanes);
        let fits = extent.floor_div(&size).least(&one);
        let count = rest.ceil_div(&size).mul(&fits).mul(&shorter).simplify(dims);
        cut.push(Segment { last: Some(extent.sub(&size)), ..Segment::new(lo.clone(), lanes, count) });
        shorter = one.sub(&fits);
    }
    cut.push(Segment::new(0, 1, extent.mul(&shorter).simplify(dims)));
    cut.retain(|s| s.count.as_const() != Some(0));
    cut
}

/// Cuts rows into blocks of at most `block`, as many of them as that needs and as alike as they can be: no sliver is left at the end.
/// A free extent is cut as [`segments`] does.
pub(super) fn row_segments(extent: &Expr, block: i64, dims: &Ranges) -> Vec<Segment> {
    let Some(extent) = extent.as_const() else { return free_segments(extent, block, 1, dims) };
    let block = block.clamp(1, extent.max(1));
    let tiles = (extent + block - 1) / block;
    let (least, larger) = (extent / tiles.max(1), extent % tiles.max(1));
    let mut cut = vec![Segment::new(0, least + 1, larger), Segment::new(larger * (least + 1), least, tiles - larger)];
    cut.retain(|s| s.block > 0 && s.count.as_const() != Some(0));
    cut
}

/// [`segments`] that do not cross the borders of panels: a layout's blocks, which another level's tiles may have chosen wider.
pub(super) fn panel_segments(axis: &Axis, block: i64, lanes: i64, panel: Option<i64>, dims: &Ranges) -> Vec<Segment> {
    let (Some(panel), Some(extent)) = (panel.filter(|&p| p > block), axis.known()) else {
        return segments(&axis.extent, block, lanes, dims);
    };
    let block = greatest_common_divisor(panel, block);
    let whole = extent / panel;
    let mut cut = Vec::new();
    if whole > 0 {
        cut.push(Segment { parts: panel / block, ..Segment::new(0, block, whole) });
    }
    let lo = whole * panel;
    if lo < extent {
        let rest = segments(&Expr::from(extent - lo), block, lanes, dims);
        cut.extend(rest.into_iter().map(|s| Segment { lo: s.lo.add(&Expr::from(lo)), ..s }));
    }
    cut
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The width of the panels that a layout cuts the axis into, where a load of the body goes through one.
pub(super) fn panel_of(nest: &FlatNest, axis: &Symbol) -> Option<i64> {
    let mut found = None;
    for (_, node) in nest.body.nodes() {
        let Scalar::Load(Source::Input(_), coords) = node else { continue };
        let Some(Coord::Index(address)) = coords.first() else { continue };
        for (atoms, _) in address.terms() {
            if let [kiln_ir::expr::Atom::FloorDiv(x, by)] = atoms
                && x.as_symbol() == Some(axis)
            {
                found = found.max(by.as_const());
            }
        }
    }
    found
}

/// The variables that number a segment's blocks, outermost first, with their extents: panels, and blocks within a panel.
pub(super) fn block_variables(segment: &Option<(Symbol, Segment)>) -> Vec<(Symbol, Expr)> {
    let Some((symbol, s)) = segment else { return vec![] };
    let block = (!s.is_single()).then(|| (Symbol::new(&format!("{symbol}_block")), s.count.clone()));
    let part = (s.parts > 1).then(|| (Symbol::new(&format!("{symbol}_part")), Expr::from(s.parts)));
    block.into_iter().chain(part).collect()
}

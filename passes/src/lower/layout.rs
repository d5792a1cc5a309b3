//! Which axis of each tile becomes the lanes of vectors.
//!
//! Invariant: a tile has at most one such axis, its extent is a multiple of the lanes, and all tiles that take part
//! in one operation with the same axis at work agree on it, so that no operation between them moves lanes. Tiles
//! whose elements differ in width meet only where lanes are taken apart.

use super::memory::MOST_TRANSPOSED;
use kiln_ir::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::scalar::{BinaryOp, Less, UnaryOp};
use kiln_ir::tile::{self, For, If, Stmt, TileId, TileOp, TileProgram};

/// How a tile's elements lie in registers: `lanes` of them along `axis` in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) axis: usize,
    pub(super) lanes: u32,
}

/// Homes of all tiles; nothing for those that are kept as scalars. `bytes` is the width of a vector.
pub(super) fn choose(program: &TileProgram, bytes: u32) -> Vec<Option<Home>> {
    let mut offsets = Vec::new();
    let mut classes = Classes::default();
    for (_, ty) in program.tiles.iter() {
        offsets.push(classes.parents.len());
        for (axis, &extent) in ty.shape.iter().enumerate() {
            classes.parents.push(classes.parents.len());
            classes.info.push(Info { extent, gain: 0.0, axis, scalar: false });
        }
    }
    let widths = program
        .tiles
        .iter()
        .map(|(_, ty)| if ty.dtype == DType::Bool { 0 } else { ty.dtype.computed().size() })
        .collect();
    let consts = vec![false; program.tiles.len()];
    let mut walk = Walk { program, bytes: bytes as usize, offsets, classes, widths, consts };
    for part in &program.parts {
        walk.region(&part.body, 1.0, true);
    }
    for part in &program.parts {
        walk.region(&part.body, 1.0, false);
    }
    walk.decide()
}

/// What is known of a class of axes.
#[derive(Clone, Copy)]
struct Info {
    /// The extent of those that are no broadcasts; 1 where all are.
    extent: usize,
    /// Roughly how many operations vectors save.
    gain: f64,
    /// The greatest number of an axis in it.
    axis: usize,
    /// Whether it cannot be vectors.
    scalar: bool,
}

/// Union-find over the axes of all tiles.
#[derive(Default)]
struct Classes {
    parents: Vec<usize>,
    info: Vec<Info>,
}

impl Classes {
    fn root(&mut self, mut x: usize) -> usize {
        while self.parents[x] != x {
            self.parents[x] = self.parents[self.parents[x]];
            x = self.parents[x];
        }
        x
    }

    fn union(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return;
        }
        let (x, y) = (self.info[a], self.info[b]);
        self.parents[b] = a;
        self.info[a] = Info {
            extent: x.extent.max(y.extent),
            gain: x.gain + y.gain,
            axis: x.axis.max(y.axis),
            scalar: x.scalar || y.scalar || (x.extent != y.extent && x.extent != 1 && y.extent != 1),
        };
    }
}

struct Walk<'a> {
    program: &'a TileProgram,
    bytes: usize,
    /// The first node of each tile.
    offsets: Vec<usize>,
    classes: Classes,
    /// Bytes of an element; for bools those of what was compared, 0 where they are always scalars.
    widths: Vec<usize>,
    consts: Vec<bool>,
}

impl Walk<'_> {
    fn rank(&self, id: TileId) -> usize {
        self.program.tiles[id].shape.len()
    }

    fn node(&self, id: TileId, axis: usize) -> usize {
        self.offsets[id.index()] + axis
    }

    /// Lets two axes share their fate, where elements of both are equally wide. What has extent 1 is the same for all lanes of
    /// whatever reads it, and ties none of its readers to each other.
    fn join(&mut self, a: (TileId, usize), b: (TileId, usize)) {
        let (wa, wb) = (self.widths[a.0.index()], self.widths[b.0.index()]);
        let wide = |(id, axis): (TileId, usize)| self.program.tiles[id].shape.get(axis).is_some_and(|&e| e > 1);
        if wa == wb && wa != 0 && wide(a) && wide(b) && !self.consts[a.0.index()] && !self.consts[b.0.index()] {
            self.classes.union(self.node(a.0, a.1), self.node(b.0, b.1));
        }
    }

    fn join_all(&mut self, a: TileId, b: TileId) {
        for axis in 0..self.rank(a).min(self.rank(b)) {
            self.join((a, axis), (b, axis));
        }
    }

    fn region(&mut self, body: &[Stmt], weight: f64, joining: bool) {
        for stmt in body {
            match stmt {
                Stmt::Let(id, op) if joining => self.connect(*id, op),
                Stmt::Let(id, op) => self.weigh(*id, op, weight),
                Stmt::For(For { carried, body, .. }) => {
                    self.region(body, weight * 8.0, joining);
                    for c in carried.iter().filter(|_| joining) {
                        // A bool that goes round a loop stays a scalar: its width is only known at the end.
                        for other in [c.init, c.next, c.after] {
                            self.join_all(c.inside, other);
                        }
                    }
                }
                Stmt::Multiply(_) => {}
                Stmt::If(If { condition, then, otherwise }) => {
                    if joining {
                        self.scalar(*condition);
                    }
                    self.region(then, weight, joining);
                    self.region(otherwise, weight, joining);
                }
                Stmt::Store { address, gathered, mask, value, .. } => {
                    if !joining {
                        self.access(*value, address, gathered, mask, (weight * 1.1, None));
                    }
                }
            }
        }
    }

    fn connect(&mut self, id: TileId, op: &TileOp) {
        if self.program.tiles[id].dtype == DType::Bool {
            let operands: &[TileId] = match op {
                TileOp::Unary(_, a) => &[*a],
                TileOp::Binary(_, a, b) => &[*a, *b],
                TileOp::Select(_, a, b) => &[*a, *b],
                TileOp::Reduce(_, _, a) | TileOp::Transpose(_, a) | TileOp::Cast(_, a) => &[*a],
                TileOp::Const(_)
                | TileOp::Index(_)
                | TileOp::Load { .. }
                | TileOp::Fma(..)
                | TileOp::Dot(..)
                | TileOp::CheckIndex { .. } => &[],
            };
            let mut widths = operands.iter().filter(|o| !self.consts[o.index()]).map(|o| self.widths[o.index()]);
            if let Some(first) = widths.next()
                && widths.all(|w| w == first)
            {
                self.widths[id.index()] = first;
            }
        }
        match op {
            TileOp::Const(_) => self.consts[id.index()] = true,
            TileOp::Index(_) | TileOp::CheckIndex { .. } => self.scalar(id),
            // Gathered tiles are i64 and used one at a time.
            TileOp::Load { .. } => {}
            // What is folded along lanes has none along other axes; the results may.
            TileOp::Reduce(_, axis, a) if self.fills_lanes(*a, *axis) => {}
            TileOp::Unary(_, a) | TileOp::Cast(_, a) | TileOp::Reduce(_, _, a) => self.join_all(id, *a),
            TileOp::Binary(_, a, b) => {
                self.join_all(id, *a);
                self.join_all(id, *b);
            }
            TileOp::Fma(a, b, c) | TileOp::Select(a, b, c) => {
                for operand in [a, b, c] {
                    self.join_all(id, *operand);
                }
            }
            TileOp::Transpose(order, a) => {
                for (axis, &from) in order.iter().enumerate() {
                    self.join((id, axis), (*a, from));
                }
            }
            TileOp::Dot(_, a, b, c) => {
                self.join_all(id, *c);
                self.join((id, 0), (*a, 0));
                self.join((id, 1), (*b, 1));
                self.join((*a, 1), (*b, 0));
            }
        }
    }

    /// Whether the axis of a tile consists of whole vectors.
    fn fills_lanes(&self, id: TileId, axis: usize) -> bool {
        let (width, extent) = (self.widths[id.index()], self.program.tiles[id].shape.get(axis).copied().unwrap_or(1));
        width > 0 && extent > 1 && extent.is_multiple_of((self.bytes / width).max(1))
    }

    fn scalar(&mut self, id: TileId) {
        for axis in 0..self.rank(id) {
            let root = self.classes.root(self.node(id, axis));
            self.classes.info[root].scalar = true;
        }
    }

    fn lanes(&self, id: TileId) -> f64 {
        (self.bytes / self.widths[id.index()].max(1)).max(1) as f64
    }

    fn gain(&mut self, id: TileId, axis: usize, gain: f64) {
        if self.program.tiles[id].shape[axis] > 1 {
            let root = self.classes.root(self.node(id, axis));
            self.classes.info[root].gain += gain;
        }
    }

    /// How far elements lie apart along an axis of a tile.
    fn stride(&self, id: TileId, address: &Expr, axis: usize) -> Option<i64> {
        let at = tile::axis(axis);
        // Divisions that the first vector decides count as decided.
        let ranges = Ranges::from([(at.clone(), (0, self.lanes(id) as i64 - 1))]);
        let zero = |s: &Symbol| (s != &at && tile::is_reserved(s)).then(Expr::default);
        address.substitute(&zero).simplify(&ranges).coefficient(&at)
    }

    /// Whether the elements of a buffer are those of the tile that is loaded from it, as registers hold them.
    fn is_plain(&self, id: TileId, buffer: usize) -> bool {
        let of = self.program.buffers[buffer].dtype;
        of == self.program.tiles[id].dtype && of.computed() == of
    }

    /// Whether vectors along an axis before this one can be loaded from a buffer and transposed.
    fn is_transposed(&self, id: TileId, (buffer, address): (usize, &Expr), axis: usize) -> bool {
        let of = &self.program.buffers[buffer];
        let (width, shape) = (self.widths[id.index()], &self.program.tiles[id].shape);
        // What is converted on the way comes element by element.
        if of.written || !self.is_plain(id, buffer) || width == 0 {
            return false;
        }
        let lanes = (self.bytes / width).min(MOST_TRANSPOSED);
        let whole = |axis: usize| shape[axis] > 1 && shape[axis].is_multiple_of(lanes);
        let beside = |before: usize| whole(before) && self.stride(id, address, before) == Some(1);
        lanes > 1 && whole(axis) && (0..axis).any(beside)
    }

    /// A load or store: what it gains along each axis depends on the stride.
    fn access(
        &mut self,
        id: TileId,
        address: &Expr,
        gathered: &[TileId],
        mask: &[Less],
        (weight, loaded): (f64, Option<usize>),
    ) {
        let shape = self.program.tiles[id].shape.clone();
        let (n, lanes) = (self.program.tiles[id].elements() as f64 * weight, self.lanes(id));
        let plain = loaded.is_some_and(|buffer| self.is_plain(id, buffer));
        for axis in 0..shape.len() {
            let at = tile::axis(axis);
            let stride = self.stride(id, address, axis);
            let masked = mask.iter().any(|l| l.left.mentions(&at) || l.right.mentions(&at));
            let by_lane = gathered.iter().any(|g| self.program.tiles[*g].shape[axis] > 1);
            let gain = match stride {
                _ if by_lane => -0.5 * n,
                // Moved into bounds, loaded and hidden.
                Some(0 | 1) if masked => n * (0.7 - 1.0 / lanes),
                _ if masked => -0.5 * n,
                Some(0 | 1) => n * (1.0 - 1.0 / lanes),
                // A shuffle for each doubling of the rows that come together.
                _ if mask.is_empty()
                    && gathered.is_empty()
                    && loaded.is_some_and(|buffer| self.is_transposed(id, (buffer, address), axis)) =>
                {
                    n * (1.0 - (1.0 + lanes.log2()) / lanes)
                }
                // Two loads and a shuffle, or two; what is converted on the way comes element by element.
                Some(2) if self.bytes >= 32 && self.widths[id.index()] == 4 && plain => n * (1.0 - 4.0 / lanes),
                _ => -0.25 * n,
            };
            self.gain(id, axis, gain);
        }
    }

    fn weigh(&mut self, id: TileId, op: &TileOp, weight: f64) {
        let ty = &self.program.tiles[id];
        let (rank, n, saved) = (ty.shape.len(), ty.elements() as f64 * weight, 1.0 - 1.0 / self.lanes(id));
        let mut cost = 1.0;
        match op {
            TileOp::Const(_) | TileOp::Index(_) | TileOp::CheckIndex { .. } | TileOp::Transpose(..) => return,
            TileOp::Load { buffer, address, gathered, mask, .. } => {
                return self.access(id, address, gathered, mask, (weight, Some(*buffer)));
            }
            TileOp::Dot(_, a, _, _) => {
                let depth = self.program.tiles[*a].shape.get(1).copied().unwrap_or(1) as f64;
                for axis in 0..rank {
                    self.gain(id, axis, n * depth * saved);
                }
                return;
            }
            TileOp::Reduce(_, reduced, a) => {
                let source = &self.program.tiles[*a];
                let n = source.elements() as f64 * weight;
                for axis in 0..rank {
                    let folds = if axis == *reduced { 3.0 * n / source.shape[axis] as f64 } else { 0.0 };
                    self.gain(*a, axis, n * saved - folds);
                }
            }
            TileOp::Unary(op, _) if !is_cheap(*op) => cost = 20.0,
            TileOp::Cast(_, a) if self.widths[a.index()] != self.widths[id.index()] => cost = -0.5,
            TileOp::Binary(BinaryOp::Pow, ..) => cost = 0.0,
            TileOp::Binary(..) | TileOp::Unary(..) | TileOp::Cast(..) | TileOp::Fma(..) | TileOp::Select(..) => {}
        }
        // Vectors of narrow integers only move; of i64 there is hardly more than addition.
        let width = self.widths[id.index()];
        if matches!(width, 1 | 2) || width == 8 && self.program.tiles[id].dtype.is_int() {
            self.scalar(id);
        }
        for axis in 0..rank {
            self.gain(id, axis, n * saved * cost);
        }
    }

    fn decide(mut self) -> Vec<Option<Home>> {
        let mut roots: Vec<usize> = (0..self.classes.parents.len()).filter(|&x| self.classes.parents[x] == x).collect();
        roots.sort_by(|&a, &b| {
            let (a, b) = (&self.classes.info[a], &self.classes.info[b]);
            b.gain.total_cmp(&a.gain).then(b.axis.cmp(&a.axis))
        });
        let mut members: Vec<Vec<(TileId, usize)>> = vec![Vec::new(); self.classes.parents.len()];
        for (id, ty) in self.program.tiles.iter() {
            for axis in 0..ty.shape.len() {
                let root = self.classes.root(self.node(id, axis));
                members[root].push((id, axis));
            }
        }
        let mut homes: Vec<Option<Home>> = vec![None; self.program.tiles.len()];
        for root in roots {
            let info = self.classes.info[root];
            let wide = |id: TileId, axis: usize| self.program.tiles[id].shape[axis] > 1;
            let Some(&(first, _)) = members[root].iter().find(|(id, axis)| wide(*id, *axis)) else { continue };
            let width = self.widths[first.index()];
            if width == 0 || info.scalar || info.gain <= 0.0 || self.consts[first.index()] {
                continue;
            }
            // What whole vectors do not divide, such as the last 8 of 24 columns, goes in shorter ones, of 16 bytes at least.
            let mut lanes = self.bytes / width;
            while !info.extent.is_multiple_of(lanes) && lanes * width >= 32 {
                lanes /= 2;
            }
            let free = members[root].iter().all(|(id, axis)| !wide(*id, *axis) || homes[id.index()].is_none());
            // A tile may have an axis in the class twice (a transpose added to itself).
            let mut tiles: Vec<_> =
                members[root].iter().filter(|(id, axis)| wide(*id, *axis)).map(|(id, _)| id).collect();
            let count = tiles.len();
            tiles.dedup();
            if lanes > 1 && info.extent.is_multiple_of(lanes) && free && tiles.len() == count {
                for &(id, axis) in &members[root] {
                    if wide(id, axis) {
                        homes[id.index()] = Some(Home { axis, lanes: lanes as u32 });
                    }
                }
            }
        }
        homes
    }
}

/// Whether the operation is one or two instructions.
fn is_cheap(op: UnaryOp) -> bool {
    use UnaryOp::*;
    matches!(op, Neg | Abs | Sign | Not | Floor | Ceil | Round | Trunc | Sqrt | Recip)
}

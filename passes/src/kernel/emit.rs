//! Scalar code to tile operations.
//!
//! Invariant: a tile has extent 1 along every tile axis that its value does not depend on, so that what is computed once for a
//! row or a column stays so.

use super::whole;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, UnaryOp};
use kiln_ir::tile::{Stmt, TileId, TileOp, TileProgram, TileType};
use std::collections::{BTreeMap, HashMap};

/// The symbol of a tile axis.
pub fn tile_axis(n: usize) -> Symbol {
    Symbol::numbered("a", n)
}

/// Emits tile operations into the tiles of a program.
pub struct Emitter<'a> {
    /// The program under construction.
    pub program: &'a mut TileProgram,
    /// Buffer of each input.
    pub buffers: &'a [usize],
    /// The elements of inputs that are small constants.
    pub known: &'a [Vec<Constant>],
    /// Values of earlier stages.
    pub stages: &'a [TileId],
    /// Status that a failed index check gives.
    pub status: u32,
}

/// Where scalar code is evaluated: loop symbols replaced by expressions over grid and loop variables and tile axes.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Replacements of the nest's symbols.
    pub at: BTreeMap<Symbol, Expr>,
    /// Bounds of grid and loop variables and of tile axes.
    pub ranges: Ranges,
    /// Extents of the tile axes.
    pub shape: Vec<usize>,
    /// What holds of the tile's elements that are elements of the result; the others load nothing.
    pub mask: Vec<Less>,
}

impl Place {
    /// Brings a grid or loop variable into scope that runs from 0.
    pub fn enter(&mut self, variable: &Symbol, extent: &Expr) {
        let (_, hi) = extent.bounds(&self.ranges);
        self.ranges.insert(variable.clone(), (0, if hi == i64::MAX { hi } else { (hi - 1).max(0) }));
    }

    /// The place within a step of a fold.
    pub fn within(&self, fold: &Symbol, at: &Expr) -> Place {
        let mut place = self.clone();
        // The fold's symbol may itself be part of what stands for another symbol (vector folds).
        for e in place.at.values_mut() {
            *e = e.replace(fold, at);
        }
        place.at.insert(fold.clone(), at.clone());
        place
    }

    /// An expression over the nest's symbols at this place.
    pub fn expr(&self, e: &Expr) -> Expr {
        e.substitute(&|s| self.at.get(s).cloned()).simplify(&self.ranges)
    }

    /// The tile shape that expressions depend on.
    fn shape_of<'e>(&self, exprs: impl Iterator<Item = &'e Expr> + Clone) -> Vec<usize> {
        let depends = |n: usize| exprs.clone().any(|e| e.mentions(&tile_axis(n)));
        (0..self.shape.len()).map(|n| if depends(n) { self.shape[n] } else { 1 }).collect()
    }
}

fn join(a: &[usize], b: &[usize]) -> Vec<usize> {
    a.iter().zip(b).map(|(a, b)| *a.max(b)).collect()
}

/// Whether the type is an integer narrower than the lanes that everything else is computed in.
fn is_narrow(dtype: DType) -> bool {
    dtype != DType::I32 && kiln_ir::tile::loads_from(DType::I32, dtype)
}

/// Whether a narrow integer can be computed as an i32 of the same value.
fn can_widen(code: &Code, id: Id<Scalar>) -> bool {
    is_narrow(code.dtype(id))
        && match code.node(id) {
            Scalar::Load(Source::Input(_), _) | Scalar::Const(_) | Scalar::Arg(_) => true,
            Scalar::Cast(_, a) => matches!(code.dtype(*a), DType::F32 | DType::I32) || can_widen(code, *a),
            Scalar::Binary(BinaryOp::Min | BinaryOp::Max, a, b) => can_widen(code, *a) && can_widen(code, *b),
            Scalar::Select(_, a, b) | Scalar::Guard(_, a, b) => can_widen(code, *a) && can_widen(code, *b),
            Scalar::Load(Source::Stage(_), _) | Scalar::Index(_) => false,
            Scalar::Unary(..) | Scalar::Binary(..) | Scalar::Fma(..) => false,
        }
}

/// Whether a value of narrow integers is best computed in lanes of 32 bits and narrowed when it is stored: not what is only moved,
/// which goes in vectors of narrow lanes.
pub fn widens(code: &Code) -> bool {
    fn moves(code: &Code, id: Id<Scalar>) -> bool {
        match code.node(id) {
            Scalar::Guard(_, a, b) => moves(code, *a) && moves(code, *b),
            Scalar::Load(..) | Scalar::Const(_) | Scalar::Arg(_) => true,
            Scalar::Index(_) | Scalar::Unary(..) | Scalar::Binary(..) | Scalar::Fma(..) => false,
            Scalar::Select(..) | Scalar::Cast(..) => false,
        }
    }
    can_widen(code, code.result()) && !moves(code, code.result())
}

/// The range that a float is clamped to: `min(max(x, low), high)`, in either order. A NaN stays one.
fn clamped(code: &Code, id: Id<Scalar>) -> Option<(f64, f64)> {
    let constant = |id: Id<Scalar>| match code.node(id) {
        Scalar::Const(c) => Some(c.as_f64()),
        _ => None,
    };
    let bound = |id: Id<Scalar>, op: BinaryOp| match code.node(id) {
        Scalar::Binary(found, a, b) if *found == op => Some((*a, constant(*b)?)),
        _ => None,
    };
    if let Some((inner, high)) = bound(id, BinaryOp::Min) {
        return bound(inner, BinaryOp::Max).map(|(_, low)| (low, high)).filter(|(low, high)| low <= high);
    }
    let (inner, low) = bound(id, BinaryOp::Max)?;
    bound(inner, BinaryOp::Min).map(|(_, high)| (low, high)).filter(|(low, high)| low <= high)
}

/// How many statements back the definition of an operand is looked for: operands are emitted just before.
const BACK: usize = 8;

/// How a tile was computed a few statements ago.
fn definition(body: &[Stmt], tile: TileId) -> Option<&TileOp> {
    body.iter().rev().take(BACK).find_map(|s| match s {
        Stmt::Let(id, op) if *id == tile => Some(op),
        _ => None,
    })
}

/// The constant that a tile is, if it was made one a few statements ago.
fn constant(body: &[Stmt], tile: TileId) -> Option<Constant> {
    match definition(body, tile)? {
        TileOp::Const(c) => Some(*c),
        _ => None,
    }
}

/// What has been emitted: a node under that many conditions, and whether as an i32 in place of a narrow integer.
type Done = HashMap<(Id<Scalar>, usize, bool), TileId>;

impl Emitter<'_> {
    /// Adds a tile.
    pub fn define(&mut self, body: &mut Vec<Stmt>, dtype: DType, shape: Vec<usize>, op: TileOp) -> TileId {
        let id = self.program.tiles.push(TileType { dtype, shape });
        body.push(Stmt::Let(id, op));
        id
    }

    /// A constant of extent 1.
    pub fn constant(&mut self, body: &mut Vec<Stmt>, c: Constant, rank: usize) -> TileId {
        self.define(body, c.dtype, vec![1; rank], TileOp::Const(c))
    }

    /// The tile converted to a type, where it has another one.
    pub fn cast(&mut self, body: &mut Vec<Stmt>, to: DType, a: TileId) -> TileId {
        if self.program.tiles[a].dtype == to {
            return a;
        }
        let shape = self.shape(a);
        self.define(body, to, shape, TileOp::Cast(to, a))
    }

    fn shape(&self, t: TileId) -> Vec<usize> {
        self.program.tiles[t].shape.clone()
    }

    /// The greatest value of a tile of i32 that is surely not negative, as far as its last operations tell.
    fn most(&self, body: &[Stmt], tile: TileId) -> Option<i64> {
        match definition(body, tile)? {
            TileOp::Load { buffer, .. } if self.program.tiles[tile].dtype == DType::I32 => {
                let dtype = self.program.buffers.get(*buffer)?.dtype;
                matches!(dtype, DType::U8 | DType::U16).then(|| (1i64 << dtype.bits()) - 1)
            }
            TileOp::Binary(BinaryOp::Shr, a, by) => {
                let by = constant(body, *by)?.as_i64().filter(|by| (0..32).contains(by))?;
                Some(self.most(body, *a)? >> by)
            }
            _ => None,
        }
    }

    /// A quotient by a constant as a product, one rounding away: for `erf`, whose relative error grows no more than its argument's.
    fn multiplied(&mut self, body: &mut Vec<Stmt>, tile: TileId) -> TileId {
        let Some(&TileOp::Binary(BinaryOp::Div, a, by)) = definition(body, tile) else { return tile };
        let share = constant(body, by).filter(|c| c.dtype == DType::F32).map(|c| 1.0 / c.as_f64());
        let Some(share) = share.filter(|share| (*share as f32).is_normal()) else { return tile };
        let share = self.constant(body, Constant::float(DType::F32, share), self.shape(a).len());
        self.binary(body, BinaryOp::Mul, a, share)
    }

    /// A binary operation with broadcasting.
    pub fn binary(&mut self, body: &mut Vec<Stmt>, op: BinaryOp, a: TileId, b: TileId) -> TileId {
        let dtype = op.result_type(self.program.tiles[a].dtype);
        let shape = join(&self.shape(a), &self.shape(b));
        let nothing = match op {
            BinaryOp::Shr | BinaryOp::Shl => constant(body, b).is_some_and(|c| c.dtype.is_int() && c.bits == 0),
            // A mask of all bits that there are.
            BinaryOp::And => match (constant(body, b).and_then(Constant::as_i64), self.most(body, a)) {
                (Some(mask), Some(most)) => mask & (mask + 1) == 0 && most <= mask,
                _ => false,
            },
            _ => false,
        };
        if nothing && self.shape(a) == shape {
            return a;
        }
        self.define(body, dtype, shape, TileOp::Binary(op, a, b))
    }

    /// Emits the code's value at a place; argument 0 is `argument`.
    pub fn code(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        place: &Place,
        argument: Option<TileId>,
    ) -> Option<TileId> {
        let mut done = HashMap::new();
        self.node(body, code, code.result(), place, argument, &[], &mut done)
    }

    /// Emits the value of one node at a place.
    pub fn part(&mut self, body: &mut Vec<Stmt>, code: &Code, id: Id<Scalar>, place: &Place) -> Option<TileId> {
        self.node(body, code, id, place, None, &[], &mut HashMap::new())
    }

    /// Where all conditions hold, as a tile; nothing where there are none.
    pub fn holds(&mut self, body: &mut Vec<Stmt>, conditions: &[Less], place: &Place) -> Option<TileId> {
        let shape = |e: &Expr| place.shape_of(std::iter::once(e));
        conditions.iter().fold(None, |holds, c| {
            let left = self.define(body, DType::I64, shape(&c.left), TileOp::Index(c.left.clone()));
            let right = self.define(body, DType::I64, shape(&c.right), TileOp::Index(c.right.clone()));
            let this = self.binary(body, BinaryOp::Lt, left, right);
            Some(match holds {
                Some(h) => self.binary(body, BinaryOp::And, h, this),
                None => this,
            })
        })
    }

    /// The value with all of the shape's extents, repeated along those that it does not depend on.
    pub fn full(&mut self, body: &mut Vec<Stmt>, value: TileId, shape: &[usize]) -> TileId {
        let ty = self.program.tiles[value].clone();
        if ty.shape == shape {
            return value;
        }
        if let Some(c) = constant(body, value) {
            return self.define(body, ty.dtype, shape.to_vec(), TileOp::Const(c));
        }
        let other = self.define(body, ty.dtype, shape.to_vec(), TileOp::Const(Constant::int(ty.dtype, 0)));
        let yes = self.constant(body, Constant { dtype: DType::Bool, bits: 1 }, shape.len());
        self.define(body, ty.dtype, shape.to_vec(), TileOp::Select(yes, value, other))
    }

    /// Emits the code's value, of narrow integers, as a tile of i32 to be stored: its low bits are the value.
    pub fn wide_code(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        place: &Place,
        argument: Option<TileId>,
    ) -> Option<TileId> {
        let mut done = HashMap::new();
        // A store takes the low bits itself.
        if let Scalar::Cast(_, a) = code.node(code.result())
            && code.dtype(*a) == DType::I32
        {
            return self.node(body, code, *a, place, argument, &[], &mut done);
        }
        self.wide(body, code, code.result(), place, argument, &[], &mut done)
    }

    /// Emits one step of a fold: `accumulator combine body`.
    pub fn accumulate(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        place: &Place,
        combine: BinaryOp,
        accumulator: TileId,
    ) -> Option<TileId> {
        self.accumulate_given(body, code, place, combine, accumulator, &[])
    }

    /// The same where the values of some of the code's nodes are given.
    pub fn accumulate_given(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        place: &Place,
        combine: BinaryOp,
        accumulator: TileId,
        given: &[(Id<Scalar>, TileId)],
    ) -> Option<TileId> {
        let shape = self.shape(accumulator);
        let dtype = self.program.tiles[accumulator].dtype;
        let mut done: Done = given.iter().map(|&(id, tile)| ((id, 0, false), tile)).collect();
        if let (Scalar::Binary(op @ (BinaryOp::Mul | BinaryOp::Dot2), a, b), BinaryOp::Add, true) =
            (code.node(code.result()), combine, matches!(dtype, DType::F32 | DType::F64))
        {
            let a = self.node(body, code, *a, place, None, &[], &mut done)?;
            let b = self.node(body, code, *b, place, None, &[], &mut done)?;
            // Pairs stay pairs.
            let (a, b) =
                if *op == BinaryOp::Dot2 { (a, b) } else { (self.cast(body, dtype, a), self.cast(body, dtype, b)) };
            return Some(self.define(body, dtype, shape, TileOp::Fma(a, b, accumulator)));
        }
        let value = self.node(body, code, code.result(), place, None, &[], &mut done)?;
        let value = self.cast(body, dtype, value);
        Some(self.define(body, dtype, shape, TileOp::Binary(combine, accumulator, value)))
    }

    #[allow(clippy::too_many_arguments)] // One recursive walk; a struct for its arguments would only rename them.
    fn node(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        id: Id<Scalar>,
        place: &Place,
        argument: Option<TileId>,
        mask: &[Less],
        done: &mut Done,
    ) -> Option<TileId> {
        if let Some(&t) = done.get(&(id, mask.len(), false)) {
            return Some(t);
        }
        let rank = place.shape.len();
        let dtype = code.dtype(id);
        let mut operand = |this: &mut Self, body: &mut Vec<Stmt>, o: Id<Scalar>, mask: &[Less]| {
            this.node(body, code, o, place, argument, mask, done)
        };
        let tile = match code.node(id) {
            Scalar::Arg(_) => {
                let argument = argument?;
                // What was computed as i32 may be of a narrower type.
                self.cast(body, dtype, argument)
            }
            Scalar::Const(c) => self.constant(body, *c, rank),
            Scalar::Index(e) => {
                let e = place.expr(e);
                match e.as_const() {
                    Some(n) => self.constant(body, Constant::int(DType::I64, n), rank),
                    None => {
                        let shape = place.shape_of(std::iter::once(&e));
                        self.define(body, DType::I64, shape, TileOp::Index(e))
                    }
                }
            }
            Scalar::Load(Source::Stage(n), _) => *self.stages.get(*n)?,
            Scalar::Load(Source::Input(_), _) => self.load(body, code, id, dtype, place, argument, mask, done)?,
            Scalar::Cast(DType::F32, a) if whole::float_of(code, *a).is_some() => {
                let (float, add) = whole::float_of(code, *a)?;
                let float = operand(self, body, float, mask)?;
                match add {
                    None => float,
                    Some(add) => {
                        let add = self.constant(body, Constant::int(DType::F32, add), rank);
                        self.binary(body, BinaryOp::Add, float, add)
                    }
                }
            }
            // Tiles of narrow integers would have other lanes than those of the rest.
            Scalar::Cast(to @ (DType::F32 | DType::I32), a) if can_widen(code, *a) => {
                let wide = self.wide(body, code, *a, place, argument, mask, done)?;
                if *to == DType::I32 {
                    wide
                } else {
                    let shape = self.shape(wide);
                    self.define(body, *to, shape, TileOp::Cast(*to, wide))
                }
            }
            Scalar::Unary(op, a) => {
                let a = operand(self, body, *a, mask)?;
                let a = if *op == UnaryOp::Erf { self.multiplied(body, a) } else { a };
                let shape = self.shape(a);
                self.define(body, dtype, shape, TileOp::Unary(*op, a))
            }
            Scalar::Cast(to, a) => {
                let a = operand(self, body, *a, mask)?;
                match constant(body, a).and_then(Constant::as_i64).filter(|_| *to == DType::I32) {
                    Some(n) => self.constant(body, Constant::int(DType::I32, n), rank),
                    None => {
                        let shape = self.shape(a);
                        self.define(body, *to, shape, TileOp::Cast(*to, a))
                    }
                }
            }
            Scalar::Binary(op, a, b) => {
                let a = operand(self, body, *a, mask)?;
                let b = operand(self, body, *b, mask)?;
                self.binary(body, *op, a, b)
            }
            Scalar::Fma(a, b, c) => {
                let a = operand(self, body, *a, mask)?;
                let b = operand(self, body, *b, mask)?;
                let c = operand(self, body, *c, mask)?;
                let shape = join(&join(&self.shape(a), &self.shape(b)), &self.shape(c));
                self.define(body, dtype, shape, TileOp::Fma(a, b, c))
            }
            Scalar::Select(c, a, b) => {
                let c = operand(self, body, *c, mask)?;
                let a = operand(self, body, *a, mask)?;
                let b = operand(self, body, *b, mask)?;
                let shape = join(&join(&self.shape(c), &self.shape(a)), &self.shape(b));
                self.define(body, dtype, shape, TileOp::Select(c, a, b))
            }
            Scalar::Guard(conditions, then, other) => {
                let mut inner = mask.to_vec();
                let placed = |c: &Less| Less { left: place.expr(&c.left), right: place.expr(&c.right) };
                let conditions: Vec<Less> = conditions.iter().map(placed).collect();
                let holds = self.holds(body, &conditions, place)?;
                inner.extend(conditions);
                // The masks make the memo of the outer code useless inside: other loads, other tiles.
                let mut own = HashMap::new();
                let then = self.node(body, code, *then, place, argument, &inner, &mut own)?;
                let other = self.node(body, code, *other, place, argument, mask, done)?;
                let shape = join(&join(&self.shape(holds), &self.shape(then)), &self.shape(other));
                self.define(body, dtype, shape, TileOp::Select(holds, then, other))
            }
        };
        done.insert((id, mask.len(), false), tile);
        Some(tile)
    }

    /// A load of a tile of a type: that of the node, or i32 in place of narrow integers.
    #[allow(clippy::too_many_arguments)] // As those of `node`, which it is a part of.
    fn load(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        id: Id<Scalar>,
        loaded: DType,
        place: &Place,
        argument: Option<TileId>,
        mask: &[Less],
        done: &mut Done,
    ) -> Option<TileId> {
        let Scalar::Load(Source::Input(n), coords) = code.node(id) else { return None };
        let Some(Coord::Index(address)) = coords.first() else { return None };
        let address = place.expr(address);
        let rank = place.shape.len();
        if let Some(at) = address.as_size().filter(|_| coords.len() == 1)
            && let Some(&constant) = self.known.get(*n).and_then(|known| known.get(at))
        {
            let constant = Constant { dtype: loaded, ..constant };
            return Some(self.constant(body, constant, rank));
        }
        // Beyond the ends of the result a load that depends on the element would be out of bounds.
        let inside = |e: &Expr| place.mask.iter().any(|_| (0..rank).any(|n| e.mentions(&tile_axis(n))));
        let all: Vec<Less> = if inside(&address) || coords.len() > 1 {
            place.mask.iter().chain(mask).cloned().collect()
        } else {
            mask.to_vec()
        };
        let mut picked = Vec::new();
        for pair in coords[1..].chunks(2) {
            let [Coord::Value(v), Coord::Index(extent)] = pair else { return None };
            let mut index = self.node(body, code, *v, place, argument, mask, done)?;
            if let Some(holds) = self.holds(body, &place.mask, place) {
                let zero = self.constant(body, Constant::int(DType::I64, 0), rank);
                let shape = join(&self.shape(index), &self.shape(holds));
                index = self.define(body, DType::I64, shape, TileOp::Select(holds, index, zero));
            }
            let shape = self.shape(index);
            let extent = place.expr(extent);
            let status = self.status;
            // What a guard hides is never checked: the index itself is read as 0 there.
            picked.push(self.define(body, DType::I64, shape, TileOp::CheckIndex { index, extent, status }));
        }
        let mut shape = place.shape_of(std::iter::once(&address).chain(all.iter().flat_map(|c| [&c.left, &c.right])));
        for p in &picked {
            shape = join(&shape, &self.shape(*p));
        }
        let other = Constant::int(loaded, 0);
        let buffer = *self.buffers.get(*n)?;
        let op = TileOp::Load { buffer, address, gathered: picked, mask: all, other };
        Some(self.define(body, loaded, shape, op))
    }

    /// A narrow integer as an i32 of the same value; `can_widen` holds of it.
    #[allow(clippy::too_many_arguments)] // As those of `node`.
    fn wide(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Code,
        id: Id<Scalar>,
        place: &Place,
        argument: Option<TileId>,
        mask: &[Less],
        done: &mut Done,
    ) -> Option<TileId> {
        if let Some(&t) = done.get(&(id, mask.len(), true)) {
            return Some(t);
        }
        let (rank, dtype) = (place.shape.len(), code.dtype(id));
        let tile = match code.node(id) {
            Scalar::Load(..) => self.load(body, code, id, DType::I32, place, argument, mask, done)?,
            Scalar::Const(c) => self.constant(body, Constant::int(DType::I32, c.as_i64()?), rank),
            Scalar::Arg(_) => {
                let argument = argument?;
                if self.program.tiles[argument].dtype == DType::I32 {
                    argument
                } else {
                    let shape = self.shape(argument);
                    self.define(body, DType::I32, shape, TileOp::Cast(DType::I32, argument))
                }
            }
            Scalar::Cast(_, a) if code.dtype(*a) == DType::F32 => {
                let x = self.node(body, code, *a, place, argument, mask, done)?;
                let shape = self.shape(x);
                let (low, high) = dtype.int_range()?;
                let inside = clamped(code, *a).is_some_and(|(l, h)| l >= low as f64 && h <= high as f64);
                let whole = self.define(body, DType::I32, shape, TileOp::Cast(DType::I32, x));
                if inside {
                    whole
                } else {
                    let [low, high] = [low, high].map(|v| Constant::int(DType::I32, v as i64));
                    let low = self.constant(body, low, rank);
                    let raised = self.binary(body, BinaryOp::Max, whole, low);
                    let high = self.constant(body, high, rank);
                    self.binary(body, BinaryOp::Min, raised, high)
                }
            }
            Scalar::Cast(_, a) => {
                let x = if code.dtype(*a) == DType::I32 {
                    self.node(body, code, *a, place, argument, mask, done)?
                } else {
                    self.wide(body, code, *a, place, argument, mask, done)?
                };
                if whole::fits(code, *a, dtype) {
                    return Some(x);
                }
                // The low bits, as the type takes them.
                let left = i64::from(32 - dtype.bits());
                if dtype.class() == kiln_ir::Class::Unsigned {
                    let low = self.constant(body, Constant::int(DType::I32, (1 << dtype.bits()) - 1), rank);
                    self.binary(body, BinaryOp::And, x, low)
                } else {
                    let by = self.constant(body, Constant::int(DType::I32, left), rank);
                    let raised = self.binary(body, BinaryOp::Shl, x, by);
                    self.binary(body, BinaryOp::Shr, raised, by)
                }
            }
            Scalar::Binary(op, a, b) => {
                let a = self.wide(body, code, *a, place, argument, mask, done)?;
                let b = self.wide(body, code, *b, place, argument, mask, done)?;
                self.binary(body, *op, a, b)
            }
            Scalar::Select(c, a, b) => {
                let c = self.node(body, code, *c, place, argument, mask, done)?;
                let a = self.wide(body, code, *a, place, argument, mask, done)?;
                let b = self.wide(body, code, *b, place, argument, mask, done)?;
                let shape = join(&join(&self.shape(c), &self.shape(a)), &self.shape(b));
                self.define(body, DType::I32, shape, TileOp::Select(c, a, b))
            }
            Scalar::Guard(conditions, then, other) => {
                let mut inner = mask.to_vec();
                let placed = |c: &Less| Less { left: place.expr(&c.left), right: place.expr(&c.right) };
                let conditions: Vec<Less> = conditions.iter().map(placed).collect();
                let holds = self.holds(body, &conditions, place)?;
                inner.extend(conditions);
                let mut own = HashMap::new();
                let then = self.wide(body, code, *then, place, argument, &inner, &mut own)?;
                let other = self.wide(body, code, *other, place, argument, mask, done)?;
                let shape = join(&join(&self.shape(holds), &self.shape(then)), &self.shape(other));
                self.define(body, DType::I32, shape, TileOp::Select(holds, then, other))
            }
            Scalar::Index(_) | Scalar::Unary(..) | Scalar::Fma(..) => return None,
        };
        done.insert((id, mask.len(), true), tile);
        Some(tile)
    }
}

//! Scalar code to tile operations.
//!
//! Invariant: a tile has extent 1 along every tile axis that its value does not depend on, so that what is computed once for a
//! row or a column stays so.

use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source};
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

/// The load of narrow integers that a conversion widens: their tiles would have other lanes than those of the rest.
fn widened_load(code: &Code, id: Id<Scalar>) -> Option<Id<Scalar>> {
    let Scalar::Cast(DType::F32 | DType::I32, a) = code.node(id) else { return None };
    let from = code.dtype(*a);
    let narrow = from != DType::I32 && kiln_ir::tile::loads_from(DType::I32, from);
    (narrow && matches!(code.node(*a), Scalar::Load(Source::Input(_), _))).then_some(*a)
}

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

    fn shape(&self, t: TileId) -> Vec<usize> {
        self.program.tiles[t].shape.clone()
    }

    /// A binary operation with broadcasting.
    pub fn binary(&mut self, body: &mut Vec<Stmt>, op: BinaryOp, a: TileId, b: TileId) -> TileId {
        let dtype = if op.is_comparison() { DType::Bool } else { self.program.tiles[a].dtype };
        let shape = join(&self.shape(a), &self.shape(b));
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
        let other = self.define(body, ty.dtype, shape.to_vec(), TileOp::Const(Constant::int(ty.dtype, 0)));
        let yes = self.constant(body, Constant { dtype: DType::Bool, bits: 1 }, shape.len());
        self.define(body, ty.dtype, shape.to_vec(), TileOp::Select(yes, value, other))
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
        let shape = self.shape(accumulator);
        let dtype = self.program.tiles[accumulator].dtype;
        if let (Scalar::Binary(BinaryOp::Mul, a, b), BinaryOp::Add, true) =
            (code.node(code.result()), combine, matches!(dtype, DType::F32 | DType::F64))
        {
            let mut done = HashMap::new();
            let a = self.node(body, code, *a, place, None, &[], &mut done)?;
            let b = self.node(body, code, *b, place, None, &[], &mut done)?;
            return Some(self.define(body, dtype, shape, TileOp::Fma(a, b, accumulator)));
        }
        let value = self.code(body, code, place, None)?;
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
        done: &mut HashMap<(Id<Scalar>, usize), TileId>,
    ) -> Option<TileId> {
        if let Some(&t) = done.get(&(id, mask.len())) {
            return Some(t);
        }
        let rank = place.shape.len();
        let dtype = code.dtype(id);
        let mut operand = |this: &mut Self, body: &mut Vec<Stmt>, o: Id<Scalar>, mask: &[Less]| {
            this.node(body, code, o, place, argument, mask, done)
        };
        // A load that is widened is emitted as one of i32, and converted from there.
        let widened = widened_load(code, id);
        let loaded = if widened.is_some() { DType::I32 } else { dtype };
        let tile = match code.node(widened.unwrap_or(id)) {
            Scalar::Arg(_) => argument?,
            Scalar::Const(c) => self.constant(body, *c, rank),
            Scalar::Index(e) => {
                let e = place.expr(e);
                let shape = place.shape_of(std::iter::once(&e));
                self.define(body, DType::I64, shape, TileOp::Index(e))
            }
            Scalar::Load(Source::Stage(n), _) => *self.stages.get(*n)?,
            Scalar::Load(Source::Input(n), coords) => {
                let Some(Coord::Index(address)) = coords.first() else { return None };
                let address = place.expr(address);
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
                    let mut index = operand(self, body, *v, mask)?;
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
                let mut shape =
                    place.shape_of(std::iter::once(&address).chain(all.iter().flat_map(|c| [&c.left, &c.right])));
                for p in &picked {
                    shape = join(&shape, &self.shape(*p));
                }
                let other = Constant::int(loaded, 0);
                let buffer = *self.buffers.get(*n)?;
                let op = TileOp::Load { buffer, address, gathered: picked, mask: all, other };
                self.define(body, loaded, shape, op)
            }
            Scalar::Unary(op, a) => {
                let a = operand(self, body, *a, mask)?;
                let shape = self.shape(a);
                self.define(body, dtype, shape, TileOp::Unary(*op, a))
            }
            Scalar::Cast(to, a) => {
                let a = operand(self, body, *a, mask)?;
                let shape = self.shape(a);
                self.define(body, *to, shape, TileOp::Cast(*to, a))
            }
            Scalar::Binary(op, a, b) => {
                let a = operand(self, body, *a, mask)?;
                let b = operand(self, body, *b, mask)?;
                self.binary(body, *op, a, b)
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
        let tile = if loaded == dtype {
            tile
        } else {
            let shape = self.shape(tile);
            self.define(body, dtype, shape, TileOp::Cast(dtype, tile))
        };
        done.insert((id, mask.len()), tile);
        Some(tile)
    }
}

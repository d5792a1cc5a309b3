//! Sums of scaled products: what does not change along the innermost fold leaves its loop.
//!
//! Invariant: `sum x * (d * q + m)` over a block of elements that share `d` and `m` is `d * sum x * q + m * sum x`, up to the
//! rounding of floats. A product with a weight in blocks of few bits then takes a multiply-add for each number, and two for
//! each block; the sum of the other operand is shared by all columns of a tile.

use super::emit::{Place, tile_axis};
use super::flat::{Axis, FlatNest};
use super::fold::{MOST_STEPS, Tiling};
use super::{Builder, COLUMN, LANE, ROW, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, UnaryOp};
use kiln_ir::tile::{Carried, For, Stmt, TileId, TileOp};

/// A sum over the inner fold, times what does not change along it.
#[derive(Clone, Debug)]
pub struct Term {
    /// What the inner sum is multiplied by; nothing for 1.
    pub coefficient: Option<Id<Scalar>>,
    /// What is summed.
    pub inner: Code,
}

/// What is summed along the inner fold for each column.
#[derive(Clone, Debug)]
pub enum Own {
    /// One term.
    Term(Term),
    /// Several dot products of bytes: their nodes in the code, which is linear in them, and each by itself. The code is then computed
    /// once, of their sums.
    Dots(Vec<(Id<Scalar>, Code)>),
}

impl Own {
    /// The inner sums.
    fn sums(&self) -> Vec<&Code> {
        match self {
            Own::Term(term) => vec![&term.inner],
            Own::Dots(dots) => dots.iter().map(|(_, code)| code).collect(),
        }
    }
}

/// A fold's body as terms.
#[derive(Clone, Debug)]
pub struct Factors {
    /// The body's code with the nodes that coefficients need.
    pub code: Code,
    /// What differs from column to column.
    pub own: Own,
    /// The term whose inner sum all columns share.
    pub shared: Option<Term>,
    /// What is added once for all of the inner fold.
    pub once: Option<Id<Scalar>>,
}

/// A product of a coefficient and something that changes along the inner fold; nothing for 1.
type Product = (Option<Id<Scalar>>, Option<Id<Scalar>>);

/// `x` of `guard(inner < 1, x, 0)`, and the rest of the sum that it is part of.
fn once(body: &Code, inner: &Symbol) -> Option<(Id<Scalar>, Id<Scalar>)> {
    let Scalar::Binary(BinaryOp::Add, rest, guarded) = body.node(body.result()) else { return None };
    let value = of_first(body.node(*guarded), inner)?;
    let Scalar::Guard(_, _, zero) = body.node(*guarded) else { return None };
    let nothing = matches!(body.node(*zero), Scalar::Const(c) if c.bits == 0);
    (nothing && !depends(body, inner)[value.index()]).then_some((value, *rest))
}

impl Factors {
    /// The body as terms, for an inner fold and a column axis; nothing where a scale does not leave the inner fold.
    pub fn of(nest: &FlatNest, inner: &Symbol, column: &Symbol) -> Option<Factors> {
        let body = &nest.body;
        if nest.combine != BinaryOp::Add || body.result_type() != DType::F32 {
            return None;
        }
        if let Some(factors) = Factors::of_dots(body, inner) {
            return Some(factors);
        }
        let varies = depends(body, inner);
        let mut code = body.clone();
        let (once, rest) = once(body, inner).unzip();
        let products = split(&mut code, rest.unwrap_or(body.result()), &varies)?;
        let columns = depends(&code, column);
        let (mut own, mut shared) = (None, None);
        for (coefficient, inner) in products {
            // A term without anything to sum would be the number of elements.
            let inner = inner?;
            let place = if columns[inner.index()] { &mut own } else { &mut shared };
            let mut summed = code.clone();
            summed.set_result(whole(&code, inner));
            if place.replace(Term { coefficient, inner: summed }).is_some() {
                return None;
            }
        }
        let own = own?;
        let loads = |id: Id<Scalar>| {
            let mut part = code.clone();
            part.set_result(id);
            let live = part.live();
            part.nodes().any(|(id, n)| live[id.index()] && matches!(n, Scalar::Load(Source::Input(_), _)))
        };
        // One scale for a whole weight may be a number of the code's; it is worth as much where integers are expanded.
        let worth = |id: Id<Scalar>| loads(id) || expands(&own.inner);
        let all = own.coefficient.is_some_and(worth);
        all.then_some(Factors { code, own: Own::Term(own), shared, once })
    }

    /// The same of a body that is linear in several dot products of bytes, whose sums are exact.
    fn of_dots(body: &Code, inner: &Symbol) -> Option<Factors> {
        if !is_linear(body, inner) {
            return None;
        }
        // What is added at the first step is added once.
        let mut code = Code::new();
        let result = code.inline(body, &mut |_, node, _| Ok(of_first(node, inner)));
        code.set_result(result.ok()?);
        let live = code.live();
        let dot = |(id, node): (Id<Scalar>, &Scalar)| {
            let dot = live[id.index()] && matches!(node, Scalar::Binary(BinaryOp::Dot4, ..));
            dot.then(|| {
                let mut summed = code.clone();
                summed.set_result(id);
                (id, summed)
            })
        };
        let dots: Vec<_> = code.nodes().filter_map(dot).collect();
        (dots.len() > 1).then(|| Factors { code: code.clone(), own: Own::Dots(dots), shared: None, once: None })
    }
}

/// `x` of `guard(inner < 1, x, 0)`.
fn of_first(node: &Scalar, inner: &Symbol) -> Option<Id<Scalar>> {
    let Scalar::Guard(conditions, value, _) = node else { return None };
    let [Less { left, right }] = conditions.as_slice() else { return None };
    (left.as_symbol() == Some(inner) && right.as_const() == Some(1)).then_some(*value)
}

/// Whether the sum of a body's values along the inner fold is what the body makes of the sums of its dot products, where what is added
/// at the first step counts once.
fn is_linear(code: &Code, inner: &Symbol) -> bool {
    let varies = depends(code, inner);
    let fixed = |id: &Id<Scalar>| !varies[id.index()];
    let mut linear = vec![false; code.len()];
    for (id, node) in code.nodes() {
        let is = |id: &Id<Scalar>| linear[id.index()];
        let scaled = |a, b| fixed(a) && is(b) || is(a) && fixed(b);
        linear[id.index()] = match node {
            Scalar::Cast(DType::F32, a) => matches!(code.node(*a), Scalar::Binary(BinaryOp::Dot4, ..)),
            Scalar::Binary(BinaryOp::Add, a, b) => is(a) && is(b),
            Scalar::Binary(BinaryOp::Mul, a, b) => scaled(a, b),
            Scalar::Fma(a, b, c) => scaled(a, b) && is(c),
            Scalar::Guard(_, _, zero) => {
                let nothing = matches!(code.node(*zero), Scalar::Const(c) if c.bits == 0);
                nothing && of_first(node, inner).is_some_and(|value| fixed(&value))
            }
            _ => false,
        };
    }
    linear[code.result().index()]
}

/// Whether some of the factors are integers that are converted.
fn expands(code: &Code) -> bool {
    let live = code.live();
    let int = |a: &Id<Scalar>| code.dtype(*a).is_int();
    code.nodes().any(|(id, node)| live[id.index()] && matches!(node, Scalar::Cast(DType::F32, a) if int(a)))
}

/// What is summed in integers, where it is converted to floats: of what fits them the sum is then the same, and of more it is exact.
fn whole(code: &Code, id: Id<Scalar>) -> Id<Scalar> {
    match code.node(id) {
        Scalar::Cast(DType::F32, a) if matches!(code.node(*a), Scalar::Binary(BinaryOp::Dot4, ..)) => *a,
        _ => id,
    }
}

/// Which nodes depend on a symbol.
fn depends(code: &Code, symbol: &Symbol) -> Vec<bool> {
    let mut depends = vec![false; code.len()];
    for (id, node) in code.nodes() {
        let own = match node {
            Scalar::Load(_, coords) => coords.iter().any(|c| matches!(c, Coord::Index(e) if e.mentions(symbol))),
            Scalar::Index(e) => e.mentions(symbol),
            Scalar::Guard(conditions, ..) => {
                conditions.iter().any(|c| c.left.mentions(symbol) || c.right.mentions(symbol))
            }
            Scalar::Arg(_)
            | Scalar::Const(_)
            | Scalar::Unary(..)
            | Scalar::Binary(..)
            | Scalar::Fma(..)
            | Scalar::Select(..)
            | Scalar::Cast(..) => false,
        };
        depends[id.index()] = own || node.operands().iter().any(|o| depends[o.index()]);
    }
    depends
}

/// A node as a sum of products; nothing where that gets longer than a scale and an offset.
fn split(code: &mut Code, id: Id<Scalar>, varies: &[bool]) -> Option<Vec<Product>> {
    if !varies.get(id.index()).copied().unwrap_or(false) {
        return Some(vec![(Some(id), None)]);
    }
    let products = match code.node(id).clone() {
        Scalar::Binary(BinaryOp::Mul, a, b) => {
            let (a, b) = (split(code, a, varies)?, split(code, b, varies)?);
            let mut products = Vec::new();
            for x in &a {
                for y in &b {
                    products.push((times(code, x.0, y.0)?, times(code, x.1, y.1)?));
                }
            }
            products
        }
        Scalar::Binary(op @ (BinaryOp::Add | BinaryOp::Sub), a, b) => {
            let mut products = split(code, a, varies)?;
            for (coefficient, inner) in split(code, b, varies)? {
                let coefficient = match (op, coefficient) {
                    (BinaryOp::Sub, Some(c)) => Some(code.unary(UnaryOp::Neg, c).ok()?),
                    (BinaryOp::Sub, None) => Some(code.float(DType::F32, -1.0)),
                    (_, coefficient) => coefficient,
                };
                products.push((coefficient, inner));
            }
            products
        }
        _ => vec![(None, Some(id))],
    };
    (products.len() <= 2).then_some(products)
}

/// The product of two factors, of which nothing is 1.
fn times(code: &mut Code, a: Option<Id<Scalar>>, b: Option<Id<Scalar>>) -> Option<Option<Id<Scalar>>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Some(code.binary(BinaryOp::Mul, a, b).ok()?)),
        (one, other) => Some(one.or(other)),
    }
}

/// Steps that are written one after the other where there are more.
const STEPS: i64 = 32;

impl Builder<'_> {
    /// The innermost fold of a body in terms, added to `init`: inner sums, then their coefficients.
    pub(super) fn factored(
        &mut self,
        body: &mut Vec<Stmt>,
        tiling: &Tiling<'_>,
        factors: &Factors,
        place: &Place,
        fold: &Axis,
        init: TileId,
    ) -> Option<TileId> {
        let stages = tiling.stages;
        let extent = fold.known();
        let steps = extent.filter(|&n| n <= MOST_STEPS).unwrap_or(STEPS).max(1);
        let mut one = place.shape.clone();
        if tiling.lanes.is_none() {
            one = single();
        } else {
            one[ROW] = 1;
            one[COLUMN] = 1;
        }
        let own = factors.own.sums().into_iter().map(|code| (code, place.shape.clone()));
        let inits: Vec<TileId> = own
            .chain(factors.shared.as_ref().map(|s| (&s.inner, one)))
            .map(|(code, shape)| {
                let dtype = code.result_type();
                self.emitter(stages).define(body, dtype, shape.clone(), TileOp::Const(Constant::int(dtype, 0)))
            })
            .collect();
        let dims = &tiling.nest.dims;
        let size = Expr::from(steps);
        let whole = fold.extent.floor_div(&size).simplify(dims);
        let left = fold.extent.modulo(&size).simplify(dims);
        // Runs of the same code, one after the other: from where, how many steps each, how many runs.
        let mut runs = vec![(Expr::default(), steps, whole.clone())];
        match left.as_const() {
            Some(0) => {}
            Some(left) => runs.push((whole.scale(steps), left, Expr::from(1i64))),
            None => runs.push((whole.scale(steps), 1, left)),
        }
        let mut sums = inits;
        for (lo, block, count) in runs {
            if count.as_const() == Some(0) {
                continue;
            }
            if count.as_const() == Some(1) {
                sums = self.inner_sums(body, tiling, factors, place, (fold, &lo, block), &sums)?;
                continue;
            }
            // The variable counts runs, so that what depends on the step within one is known to.
            let (mut place, base) = (place.clone(), self.symbol("k"));
            place.enter(&base, &count);
            let types: Vec<_> = sums.iter().map(|&s| self.program.tiles[s].clone()).collect();
            let inside: Vec<TileId> = types.iter().map(|ty| self.program.tiles.push(ty.clone())).collect();
            let mut inner = Vec::new();
            let at = Expr::from(&base).scale(block).add(&lo);
            let next = self.inner_sums(&mut inner, tiling, factors, &place, (fold, &at, block), &inside)?;
            let after: Vec<TileId> = types.iter().map(|ty| self.program.tiles.push(ty.clone())).collect();
            let carried = sums.iter().zip(&inside).zip(next.iter().zip(&after));
            let carried =
                carried.map(|((&init, &inside), (&next, &after))| Carried { init, inside, next, after }).collect();
            body.push(Stmt::For(For { var: base, lo: Expr::default(), hi: count, step: 1, carried, body: inner }));
            sums = after;
        }
        let mut total = init;
        let mut sums = sums.into_iter();
        let own = match &factors.own {
            Own::Term(term) => Some(term),
            Own::Dots(dots) => {
                let given: Vec<_> = dots.iter().map(|(id, _)| *id).zip(&mut sums).collect();
                let mut e = self.emitter(stages);
                total = e.accumulate_given(body, &factors.code, place, BinaryOp::Add, total, &given)?;
                None
            }
        };
        for (term, sum) in own.into_iter().chain(&factors.shared).zip(sums) {
            let shape = self.program.tiles[total].shape.clone();
            let mut e = self.emitter(stages);
            let sum = e.cast(body, DType::F32, sum);
            let op = match term.coefficient {
                Some(c) => TileOp::Fma(e.part(body, &factors.code, c, place)?, sum, total),
                None => TileOp::Binary(BinaryOp::Add, total, sum),
            };
            total = e.define(body, DType::F32, shape, op);
        }
        if let Some(once) = factors.once {
            let mut added = factors.code.clone();
            added.set_result(once);
            total = self.emitter(stages).accumulate(body, &added, place, BinaryOp::Add, total)?;
        }
        Some(total)
    }

    /// Adds steps of an inner fold, from one on, to the sums of terms: a step to all that differ from column to column, which share what they
    /// read there, and then all steps to what the columns share.
    fn inner_sums(
        &mut self,
        body: &mut Vec<Stmt>,
        tiling: &Tiling<'_>,
        factors: &Factors,
        place: &Place,
        (fold, base, count): (&Axis, &Expr, i64),
        sums: &[TileId],
    ) -> Option<Vec<TileId>> {
        let stages = tiling.stages;
        let mut next = sums.to_vec();
        let places: Vec<Place> = (0..count).map(|u| place.within(&fold.symbol, &base.add(&Expr::from(u)))).collect();
        let own = factors.own.sums();
        for step in by_loads(own.first()?, &places) {
            for (sum, code) in next.iter_mut().zip(&own) {
                *sum = self.emitter(stages).accumulate(body, code, places.get(step)?, BinaryOp::Add, *sum)?;
            }
        }
        let (Some(term), Some(sum)) = (&factors.shared, next.last_mut()) else { return Some(next) };
        if tiling.lanes.is_none() && count > 1 {
            // What all columns share is summed along lanes.
            let mut wide = place.within(&fold.symbol, &base.add(&Expr::from(tile_axis(LANE))));
            wide.shape = single();
            wide.shape[LANE] = count as usize;
            wide.ranges.insert(tile_axis(LANE), (0, count - 1));
            let mut e = self.emitter(stages);
            let values = e.code(body, &term.inner, &wide, None)?;
            let values = e.full(body, values, &wide.shape);
            let of_run = e.define(body, DType::F32, single(), TileOp::Reduce(BinaryOp::Add, LANE, values));
            *sum = e.binary(body, BinaryOp::Add, *sum, of_run);
            return Some(next);
        }
        for step in by_loads(&term.inner, &places) {
            *sum = self.emitter(stages).accumulate(body, &term.inner, places.get(step)?, BinaryOp::Add, *sum)?;
        }
        Some(next)
    }
}

/// The order of steps in which those follow each other that load the same integers along the columns: parts of bytes.
pub(super) fn by_loads(code: &Code, places: &[Place]) -> Vec<usize> {
    let live = code.live();
    let integer = |(id, node): (Id<Scalar>, &'_ Scalar)| match node {
        Scalar::Load(Source::Input(_), coords) if live[id.index()] && code.dtype(id).is_int() => match coords.first() {
            Some(Coord::Index(e)) => Some(e.clone()),
            Some(Coord::Value(_)) | None => None,
        },
        _ => None,
    };
    let loads: Vec<Expr> = code.nodes().filter_map(integer).collect();
    let key = |place: &Place| -> Vec<Expr> {
        loads.iter().map(|e| place.expr(e)).filter(|e| e.mentions(&tile_axis(COLUMN))).collect()
    };
    let keys: Vec<Vec<Expr>> = places.iter().map(key).collect();
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by_key(|&n| keys.iter().position(|k| Some(k) == keys.get(n)));
    order
}

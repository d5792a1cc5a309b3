//! Folds: loops around one accumulation step.
//!
//! Invariant: the order of a sum is what the tile program says. A long one is cut into stretches of steps whose sums are added in
//! local memory, for each addition to a sum of `n` numbers rounds by what `n` numbers are worth.

use super::cuts::Segment;
use super::emit::{Place, tile_axis};
use super::factor::{Factors, by_loads};
use super::flat::{Axis, FlatNest};
use super::forms::unpacks;
use super::{Builder, LANE};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, Source};
use kiln_ir::tile::{Buffer, Carried, For, Stmt, TileId, TileOp};

/// Most steps of a stretch. Of 128, 192 and 256 the first has the least error; the second has at most a tenth more and fewer additions.
const STRETCH: i64 = 192;

/// Most steps of a sum that is not cut.
const UNCUT: i64 = 240;

/// What a register tile covers.
pub(super) struct Tiling<'a> {
    pub nest: &'a FlatNest,
    /// The values of the stages before.
    pub stages: &'a [TileId],
    pub row: Option<(Symbol, Segment)>,
    pub column: Option<(Symbol, Segment)>,
    /// The fold that runs along the lanes of a vector, with how many elements at a time.
    pub lanes: Option<(Symbol, i64)>,
    pub unroll: i64,
    /// The body as terms whose coefficients leave the innermost loop.
    pub factors: Option<Factors>,
    /// What the sum begins with, where that is not 0.
    pub start: Option<TileId>,
}

impl FlatNest {
    /// What is added to a sum of integers before all else, and what is done to the sum then. Such a sum may as well begin with it: integers
    /// wrap, so the order is free.
    fn begins_with(&self) -> Option<(Id<Scalar>, Code)> {
        if self.combine != BinaryOp::Add || self.body.result_type() != DType::I32 {
            return None;
        }
        let code = &self.finish;
        let live = code.live();
        // What is loaded under a condition may be loaded under no other.
        if code.nodes().any(|(id, n)| live[id.index()] && matches!(n, Scalar::Guard(..))) {
            return None;
        }
        let sum = |id: Id<Scalar>| matches!(code.node(id), Scalar::Arg(0));
        let mut users = code.nodes().filter(|(id, n)| live[id.index()] && n.operands().into_iter().any(sum));
        let (Some((first, Scalar::Binary(BinaryOp::Add, a, b))), None) = (users.next(), users.next()) else {
            return None;
        };
        let added = if sum(*a) { *b } else { *a };
        let known = matches!(code.node(added), Scalar::Load(Source::Input(_), coords) if coords.len() == 1);
        if !known || code.dtype(first) != DType::I32 {
            return None;
        }
        // The addition's result is the argument then, so only one of them goes.
        let (mut rest, mut gone) = (Code::new(), false);
        let result = rest.inline(code, &mut |rest, node, dtype| {
            let of_sum = |id: &Id<Scalar>| matches!(rest.node(*id), Scalar::Arg(0));
            let is_first = matches!(node, Scalar::Binary(BinaryOp::Add, a, b) if of_sum(a) || of_sum(b)) && !gone;
            gone |= is_first;
            Ok(is_first.then(|| rest.arg(0, dtype)))
        });
        rest.set_result(result.ok()?);
        Some((added, rest))
    }
}

/// Most steps of an innermost fold that are written one after the other.
pub(super) const MOST_STEPS: i64 = 64;

impl Builder<'_> {
    /// What the sums of a register tile begin with, where that is added to them afterwards, and the nest without that.
    pub(super) fn start_of_sum(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        place: &Place,
    ) -> Option<(TileId, FlatNest)> {
        let (added, finish) = nest.begins_with()?;
        let mut e = self.emitter(&[]);
        let added = e.part(body, &nest.finish, added, place)?;
        let zero = Constant::int(DType::I32, 0);
        let zero = e.define(body, DType::I32, place.shape.clone(), TileOp::Const(zero));
        let start = e.binary(body, BinaryOp::Add, zero, added);
        Some((start, FlatNest { finish, ..nest.clone() }))
    }

    /// The folded value of a register tile, of the place's shape.
    pub(super) fn folded(&mut self, body: &mut Vec<Stmt>, tiling: &Tiling<'_>, place: &Place) -> Option<TileId> {
        let (nest, stages) = (tiling.nest, tiling.stages);
        // Halves would lose in each step what they cannot hold.
        let dtype = nest.body.result_type().computed();
        let neutral = kiln_ir::nest::neutral(nest.combine, dtype);
        let mut folds = nest.folds.clone();
        let Some((symbol, lanes)) = &tiling.lanes else {
            let shape = place.shape.clone();
            let init = match tiling.start {
                Some(start) => start,
                None => self.emitter(stages).define(body, dtype, shape, TileOp::Const(neutral)),
            };
            let total = self.summed(body, tiling, place, &folds, init)?;
            return Some(self.emitter(stages).cast(body, nest.body.result_type(), total));
        };
        // The lanes' fold becomes the innermost one; the accumulator gets an axis of its own, folded at the end.
        let at = folds.iter().position(|f| f.symbol == *symbol)?;
        let vector = folds.remove(at);
        let width = vector.known().map_or(*lanes, |known| known.min(*lanes));
        let size = Expr::from(width);
        let whole = vector.extent.floor_div(&size).simplify(&nest.dims);
        let main = whole.scale(width);
        let mut wide = place.clone();
        wide.shape[LANE] = width as usize;
        wide.ranges.insert(tile_axis(LANE), (0, width - 1));
        let element = |base: Expr| base.add(&Expr::from(tile_axis(LANE)));
        let mut e = self.emitter(stages);
        let init = e.define(body, dtype, wide.shape.clone(), TileOp::Const(neutral));
        let mut loops = folds.clone();
        let var = Axis { symbol: self.symbol("q"), extent: whole };
        let index = Expr::from(&var.symbol).scale(width);
        wide.at.insert(vector.symbol.clone(), element(index));
        loops.push(var);
        let partial = self.summed(body, tiling, &wide, &loops, init)?;
        let mut e = self.emitter(stages);
        let shape = place.shape.clone();
        let mut total = e.define(body, dtype, shape.clone(), TileOp::Reduce(nest.combine, LANE, partial));
        let rest = vector.extent.modulo(&size).simplify(&nest.dims);
        // What is left is folded by itself, in shorter vectors as long as there are any: added to the total one after the other, its
        // elements would be rounded as the total is.
        let (mut at, mut left) = (main, rest.as_const().unwrap_or(0));
        let mut runs: Vec<(i64, Expr)> = Vec::new();
        let shorter = |&lanes: &i64| lanes < width && self.machine.gpu.is_none();
        for lanes in [self.machine.lanes as i64, 8, 4].into_iter().filter(shorter) {
            runs.push((lanes, Expr::from(left / lanes)));
            left %= lanes;
        }
        runs.push((1, rest.as_const().map_or(rest, |_| Expr::from(left))));
        for (lanes, count) in runs.into_iter().filter(|(_, count)| count.as_const() != Some(0)) {
            let (mut place, mut folds) = (place.clone(), folds.clone());
            let var = Axis { symbol: self.symbol("q"), extent: count.clone() };
            let first = Expr::from(&var.symbol).scale(lanes).add(&at);
            at = at.add(&count.scale(lanes));
            folds.push(var);
            let mut wide = shape.clone();
            if lanes > 1 {
                wide[LANE] = lanes as usize;
                place.shape[LANE] = lanes as usize;
                place.ranges.insert(tile_axis(LANE), (0, lanes - 1));
                place.at.insert(vector.symbol.clone(), element(first));
            } else {
                place.at.insert(vector.symbol.clone(), first);
            }
            let init = self.emitter(stages).define(body, dtype, wide, TileOp::Const(neutral));
            let mut part = self.fold_loops(body, tiling, &place, &folds, init)?;
            let mut e = self.emitter(stages);
            if lanes > 1 {
                part = e.define(body, dtype, shape.clone(), TileOp::Reduce(nest.combine, LANE, part));
            }
            total = e.binary(body, nest.combine, total, part);
        }
        Some(self.emitter(stages).cast(body, nest.body.result_type(), total))
    }

    /// The fold of all loops into `init`: a long sum of f32, whose `init` is neutral, in stretches.
    fn summed(
        &mut self,
        body: &mut Vec<Stmt>,
        tiling: &Tiling<'_>,
        place: &Place,
        folds: &[Axis],
        init: TileId,
    ) -> Option<TileId> {
        let stages = tiling.stages;
        let ty = self.program.tiles[init].clone();
        let sums = tiling.nest.combine == BinaryOp::Add && ty.dtype == DType::F32;
        let Some((level, block)) = stretches(tiling, folds).filter(|_| sums) else {
            return self.fold_loops(body, tiling, place, folds, init);
        };
        let (outer, rest) = folds.split_at(level);
        let (cut, inner) = rest.split_first()?;
        let extent = cut.known()?;
        let buffer = self.local(ty.dtype, ty.elements());
        let wide = (0..ty.shape.len()).filter(|&n| ty.shape[n] > 1);
        let along = |at: Expr, n: usize| at.scale(ty.shape[n] as i64).add(&Expr::from(tile_axis(n)));
        let address = wide.fold(Expr::default(), along);
        let other = Constant::int(ty.dtype, 0);
        let total = TileOp::Load { buffer, address: address.clone(), gathered: vec![], mask: vec![], other };
        let store = |value| Stmt::Store { buffer, address: address.clone(), gathered: vec![], mask: vec![], value };
        // The sum of the stretches of `block` iterations that lie in `first..end`: the first one of all has nothing before it, and the
        // last one stays in registers, but where loops are around them.
        let alone = outer.is_empty();
        let whole = extent / block * block;
        let runs = match (alone, whole < extent) {
            (false, _) => vec![(0, whole, block), (whole, extent, extent - whole)],
            (true, true) => vec![(0, block, block), (block, whole, block), (whole, extent, extent - whole)],
            (true, false) => vec![(0, block, block), (block, whole - block, block), (whole - block, whole, block)],
        };
        if !alone {
            body.push(store(init));
        }
        for (first, end, block) in runs.into_iter().filter(|(first, end, _)| first < end) {
            let (mut place, mut loops) = (place.clone(), Vec::new());
            let stretch = Axis { symbol: self.symbol("q"), extent: Expr::from(block) };
            let runs = Axis { symbol: cut.symbol.clone(), extent: Expr::from(end - first) };
            for (fold, step) in outer.iter().map(|f| (f, 1)).chain([(&runs, block)]) {
                let hi = fold.extent.clone();
                let mut at = Expr::default();
                // A single iteration needs no loop.
                if hi.as_const() != Some(step) {
                    let var = self.symbol("k");
                    place.enter(&var, &hi.sub(&Expr::from(step - 1)));
                    at = Expr::from(&var);
                    loops.push(For { var, lo: Expr::default(), hi, step, carried: vec![], body: vec![] });
                }
                if fold.symbol == cut.symbol {
                    at = at.add(&Expr::from(first)).add(&Expr::from(&stretch.symbol));
                }
                place = place.within(&fold.symbol, &at);
            }
            let mut inside = Vec::new();
            let folds: Vec<Axis> = std::iter::once(stretch).chain(inner.iter().cloned()).collect();
            let zero = TileOp::Const(Constant::int(ty.dtype, 0));
            let zero = self.emitter(stages).define(&mut inside, ty.dtype, ty.shape.clone(), zero);
            let mut sum = self.fold_loops(&mut inside, tiling, &place, &folds, zero)?;
            if !alone || first > 0 {
                let mut e = self.emitter(stages);
                let before = e.define(&mut inside, ty.dtype, ty.shape.clone(), total.clone());
                sum = e.define(&mut inside, ty.dtype, ty.shape.clone(), TileOp::Binary(BinaryOp::Add, before, sum));
            }
            if alone && end == extent {
                body.extend(inside);
                return Some(sum);
            }
            inside.push(store(sum));
            for f in loops.into_iter().rev() {
                inside = vec![Stmt::For(For { body: inside, ..f })];
            }
            body.extend(inside);
        }
        Some(self.emitter(stages).define(body, ty.dtype, ty.shape.clone(), total))
    }

    /// A local buffer of a type that holds so many elements.
    pub(super) fn local(&mut self, dtype: DType, elements: usize) -> usize {
        let first = self.program.buffers.iter().all(|b| !b.local);
        let of_type = format!("sums_{dtype}");
        let known = |b: &Buffer| b.local && b.dtype == dtype && (b.name == "sums" || b.name == of_type);
        let Some(n) = self.program.buffers.iter().position(known) else {
            return self.local_named(if first { "sums" } else { &of_type }, dtype, elements);
        };
        let len = &mut self.program.buffers[n].len;
        *len = Expr::from(len.as_size().unwrap_or(0).max(elements));
        n
    }

    /// A local buffer of its own.
    pub(super) fn local_named(&mut self, name: &str, dtype: DType, elements: usize) -> usize {
        let buffer = Buffer { name: name.into(), dtype, len: Expr::from(elements), written: true, local: true };
        self.program.buffers.push(buffer);
        self.program.buffers.len() - 1
    }

    /// Loops over folds, outermost first, around one accumulation step; the last loop is unrolled.
    pub(super) fn fold_loops(
        &mut self,
        body: &mut Vec<Stmt>,
        tiling: &Tiling<'_>,
        place: &Place,
        folds: &[Axis],
        init: TileId,
    ) -> Option<TileId> {
        let Some((fold, rest)) = folds.split_first() else {
            let nest = tiling.nest;
            return self.emitter(tiling.stages).accumulate(body, &nest.body, place, nest.combine, init);
        };
        if let (Some(factors), []) = (&tiling.factors, rest) {
            return self.factored(body, tiling, factors, place, fold, init);
        }
        let most = fold.known().unwrap_or(i64::MAX).max(1);
        // Where parts of bytes are unpacked it is known which part each step reads.
        let parts = rest.is_empty() && most <= MOST_STEPS && tiling.lanes.is_none() && unpacks(&tiling.nest.body);
        let unroll = if parts {
            most
        } else if rest.is_empty() {
            tiling.unroll.clamp(1, most)
        } else {
            1
        };
        let size = Expr::from(unroll);
        let dims = &tiling.nest.dims;
        let whole = fold.extent.floor_div(&size).simplify(dims);
        let left = fold.extent.modulo(&size).simplify(dims);
        let step =
            |this: &mut Self, body: &mut Vec<Stmt>, place: &Place, base: &Expr, count: i64, mut value: TileId| {
                let places: Vec<Place> =
                    (0..count).map(|u| place.within(&fold.symbol, &base.add(&Expr::from(u)))).collect();
                let order = if parts { by_loads(&tiling.nest.body, &places) } else { (0..places.len()).collect() };
                for place in order.into_iter().filter_map(|n| places.get(n)) {
                    value = this.fold_loops(body, tiling, place, rest, value)?;
                }
                Some(value)
            };
        // A loop over `count` runs of `block` iterations each, from `lo` on.
        let run =
            |this: &mut Self, body: &mut Vec<Stmt>, lo: &Expr, block: i64, count: &Expr, value: TileId| match count
                .as_const()
            {
                Some(0) => Some(value),
                Some(1) => step(this, body, place, lo, block, value),
                _ => {
                    let (mut place, base, hi) = (place.clone(), this.symbol("k"), count.scale(block));
                    place.enter(&base, &hi.sub(&Expr::from(block - 1)));
                    let ty = this.program.tiles[value].clone();
                    let inside = this.program.tiles.push(ty.clone());
                    let mut inner = Vec::new();
                    let next = step(this, &mut inner, &place, &Expr::from(&base).add(lo), block, inside)?;
                    let after = this.program.tiles.push(ty);
                    body.push(Stmt::For(For {
                        var: base,
                        lo: Expr::default(),
                        hi,
                        step: block,
                        carried: vec![Carried { init: value, inside, next, after }],
                        body: inner,
                    }));
                    Some(after)
                }
            };
        let value = run(self, body, &Expr::default(), unroll, &whole, init)?;
        let done = whole.scale(unroll);
        match left.as_const() {
            Some(left) => step(self, body, place, &done, left, value),
            None => run(self, body, &done, 1, &left, value),
        }
    }
}

/// Where a sum is cut: which fold, and how many of its iterations a stretch has. Nothing where the sum is short, or its length is free.
fn stretches(tiling: &Tiling<'_>, folds: &[Axis]) -> Option<(usize, i64)> {
    let extents: Vec<i64> = folds.iter().map(Axis::known).collect::<Option<_>>()?;
    // What is factored is added once for each innermost fold; that one, and what unpacks parts of bytes, knows its own steps.
    let last = extents.len().checked_sub(1)?;
    let innermost = if tiling.factors.is_some() { 1 } else { extents[last] };
    let fixed = tiling.factors.is_some() || unpacks(&tiling.nest.body);
    let steps = |n: usize| if n == last { innermost } else { extents[n] };
    if (0..=last).map(steps).fold(1i64, i64::saturating_mul) <= UNCUT {
        return None;
    }
    let mut inner = 1i64;
    for level in (0..=last).rev() {
        let all = inner.saturating_mul(steps(level));
        if (all > STRETCH || level == 0) && !(fixed && level == last) {
            let most = (STRETCH / inner).max(1);
            let extent = extents[level];
            let unroll = if level == last { tiling.unroll.max(1) } else { 1 };
            let runs = (extent + most - 1) / most;
            // What is left over would be code of its own.
            let even = (runs..=runs * 3 / 2).find(|r| extent % (r * unroll) == 0).map(|r| extent / r);
            let block = even.unwrap_or_else(|| (extent + runs - 1) / runs);
            return Some((level, ((block + unroll - 1) / unroll * unroll).min(extent)));
        }
        inner = all;
    }
    None
}

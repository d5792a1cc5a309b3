//! Several stages (softmax, norms): the folds of one row, then a walk along it.
//!
//! Invariant: all stages but the last have the same axes, which are the grid. What the last fold and the last stage both compute of
//! each element of a row that registers do not hold, as exponentials, is computed once and kept in local memory.

use super::Builder;
use super::emit::Place;
use super::flat::{Axis, FlatNest, Stride, map_exprs, stride};
use super::fold::Tiling;
use super::schedule::Schedule;
use super::single;
use crate::group::Group;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::nest::neutral;
use kiln_ir::scalar::{Code, Coord, Scalar, Source};
use kiln_ir::tile::{For, Part, Stmt, TileId};
use std::collections::BTreeMap;

/// Most elements of a row that are kept in local memory: 16 KiB of f32.
const MOST_KEPT: i64 = 4096;

/// What is kept of each element of a row.
struct Kept {
    /// The local memory as code reads it, and as statements store to it.
    input: usize,
    buffer: usize,
    /// The last stage, which reads what is kept.
    last: FlatNest,
}

impl Kept {
    fn load(code: &mut Code, input: usize, at: &Symbol) -> Id<Scalar> {
        code.load(Source::Input(input), vec![Coord::Index(Expr::from(at))], DType::F32)
    }
}

impl Builder<'_> {
    /// What the last fold of a row computes of each element where the last stage computes it again, along `column`.
    fn kept(
        &mut self,
        fold: &FlatNest,
        last: &FlatNest,
        column: &Axis,
        names: &BTreeMap<Symbol, Symbol>,
    ) -> Option<Kept> {
        let [along] = fold.folds.as_slice() else { return None };
        let most = along.extent.bounds(&fold.dims).1;
        let held = along.known().is_some_and(|extent| self.machine.in_registers(extent).is_some());
        let live = fold.body.live();
        let dear = fold.body.nodes().any(|(id, n)| live[id.index()] && matches!(n, Scalar::Unary(..)));
        let whole = fold.body.result_type() == DType::F32 && along.extent == column.extent;
        if !dear || held || !whole || most > MOST_KEPT {
            return None;
        }
        // The fold's code under the names of the last stage.
        let named =
            |n: usize| names.iter().find(|(_, to)| **to == Symbol::numbered("p", n)).map(|(from, _)| Expr::from(from));
        let of_axes = fold.axes.iter().enumerate().map(|(n, a)| (a.symbol.clone(), named(n).unwrap_or_default()));
        let at: BTreeMap<Symbol, Expr> = of_axes.chain([(along.symbol.clone(), Expr::from(&column.symbol))]).collect();
        let loops = last.loops();
        let again = map_exprs(&fold.body, &|e| loops.simplify(&e.substitute(&|s| at.get(s).cloned()))).ok()?;
        // Equal nodes of code are one.
        let mut body = Code::new();
        let again = body.inline(&again, &mut |_, _, _| Ok(None)).ok()?;
        let (again, input) = (body.node(again).clone(), self.buffers.len());
        let mut found = false;
        let result = body.inline(&last.body, &mut |out, node, _| {
            let here = *node == again;
            found |= here;
            Ok(here.then(|| Kept::load(out, input, &column.symbol)))
        });
        body.set_result(result.ok()?);
        if !found {
            return None;
        }
        let run = 4 * self.machine.lanes as i64;
        let buffer = self.local_named("kept", DType::F32, usize::try_from(most + run).ok()?);
        self.buffers.push(buffer);
        self.known.push(vec![]);
        Some(Kept { input, buffer, last: FlatNest { body, ..last.clone() } })
    }

    /// Computes what is kept, with what changes nothing up to a whole run of vectors behind it, and gives the fold of that.
    fn keep(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        fold: &FlatNest,
        kept: &Kept,
        stages: &[TileId],
    ) -> Option<FlatNest> {
        let [along] = fold.folds.as_slice() else { return None };
        let run = 4 * self.machine.lanes as i64;
        let (finish, store) = (Code::identity(DType::F32), Expr::from(&along.symbol));
        let each = FlatNest { axes: vec![along.clone()], folds: vec![], finish, store, ..fold.clone() };
        let width = along.extent.ceil_div(&Expr::from(run)).scale(run).simplify(&fold.dims);
        let beyond = width.sub(&along.extent).as_const().unwrap_or(run);
        self.within = Some(kept.buffer);
        let step = self.machine.lanes as i64 * self.machine.pointwise_vectors(&each);
        self.walk(body, &each, place, along, &Expr::default(), &along.extent, step, stages)?;
        if beyond > 0 {
            let nothing = neutral(fold.combine, DType::F32).as_f64();
            self.filled(body, place, (&along.extent, &Expr::from(beyond)), nothing)?;
        }
        self.within = None;
        let mut code = Code::new();
        let value = Kept::load(&mut code, kept.input, &along.symbol);
        code.set_result(value);
        let folds = vec![Axis { symbol: along.symbol.clone(), extent: width }];
        Some(FlatNest { folds, body: code, ..fold.clone() })
    }

    /// Several stages (softmax, norms): a program computes the folds of one row, then walks along it.
    pub(super) fn rows(&mut self, group: &Group, flats: &[FlatNest]) -> Option<()> {
        let (last, folds) = flats.split_last()?;
        let prefix = folds.first()?.axes.clone();
        if folds.iter().any(|f| f.axes != prefix) {
            return None;
        }
        let names = row_names(group, &prefix)?;
        // An axis of extent 1 that the stages index by 0 needs no name.
        let free: Vec<Axis> = last.axes.iter().filter(|a| !names.contains_key(&a.symbol)).cloned().collect();
        let zero = |nest: &FlatNest| {
            nest.substitute(&|s| free.iter().any(|a| a.symbol == *s && a.is_single()).then(Expr::default))
        };
        let mut last = zero(last)?;
        let mut free: Vec<Axis> = free.into_iter().filter(|a| !a.is_single()).collect();
        let column = free.iter().position(|a| stride(&last.store, &a.symbol) == Stride::Known(1));
        let column = column.map(|c| free.remove(c));
        let kept = match (&column, folds.last()) {
            (Some(column), Some(fold)) if free.is_empty() => self.kept(fold, &last, column, &names),
            _ => None,
        };
        let mut place = self.outermost(&last);
        let mut grid = Vec::new();
        for (n, a) in prefix.iter().enumerate() {
            let symbol = Symbol::numbered("p", n);
            place.enter(&symbol, &a.extent);
            grid.push((symbol, a.extent.clone()));
        }
        let mut body = Vec::new();
        let mut stages = Vec::new();
        for (n, flat) in folds.iter().enumerate() {
            let mut place = place.clone();
            for (n, a) in flat.axes.iter().enumerate() {
                place.at.insert(a.symbol.clone(), Expr::from(Symbol::numbered("p", n)));
            }
            place.shape = single();
            let summed = match &kept {
                Some(kept) if n + 1 == folds.len() => Some(self.keep(&mut body, &place, flat, kept, &stages)?),
                _ => None,
            };
            let flat = summed.as_ref().unwrap_or(flat);
            let schedule = Schedule::row(flat, self.machine);
            let tiling = Tiling {
                nest: flat,
                stages: &stages,
                row: None,
                column: None,
                lanes: schedule.lanes,
                unroll: schedule.unroll,
                factors: None,
                start: None,
            };
            let value = self.folded(&mut body, &tiling, &place)?;
            let mut e = self.emitter(&stages);
            let value = e.code(&mut body, &flat.finish, &place, Some(value))?;
            stages.push(value);
        }
        for (from, to) in &names {
            place.at.insert(from.clone(), Expr::from(to));
        }
        if let Some(kept) = kept {
            last = kept.last;
        }
        let mut inner = Vec::new();
        match &column {
            Some(column) => {
                let whole = column.known().and_then(|extent| self.machine.in_registers(extent));
                let few = self.machine.lanes as i64 * self.machine.pointwise_vectors(&last);
                let width = whole.filter(|_| free.is_empty()).unwrap_or(few);
                self.walk(&mut inner, &last, &place, column, &Expr::default(), &column.extent, width, &stages)?;
            }
            None => {
                place.shape = single();
                for a in &free {
                    place.enter(&a.symbol, &a.extent);
                }
                self.point(&mut inner, &last, &place, &stages)?;
            }
        }
        for a in free.iter().rev() {
            let (lo, hi) = (Expr::default(), a.extent.clone());
            inner = vec![Stmt::For(For { var: a.symbol.clone(), lo, hi, step: 1, carried: vec![], body: inner })];
        }
        body.extend(inner);
        self.program.parts.push(Part { grid, body });
        Some(())
    }
}

/// Which axis of the last stage is which axis of the stages (`p0`, `p1`, ...): read off its loads of them.
pub(super) fn row_names(group: &Group, prefix: &[Axis]) -> Option<BTreeMap<Symbol, Symbol>> {
    let mut names: BTreeMap<Symbol, Symbol> = BTreeMap::new();
    let mut fine = true;
    group.stages.last()?.for_each_load(&mut |source, coords| {
        if let Source::Stage(_) = source {
            for (n, c) in coords.iter().enumerate() {
                match c {
                    Coord::Index(e) => match e.as_symbol() {
                        Some(s) => {
                            names.insert(s.clone(), Symbol::numbered("p", n));
                        }
                        None => fine &= e.as_const() == Some(0) && prefix[n].is_single(),
                    },
                    Coord::Value(_) => fine = false,
                }
            }
        }
    });
    fine.then_some(names)
}

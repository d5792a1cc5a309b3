//! Several stages (softmax, norms): the folds of one row, then a walk along it.
//!
//! Invariant: all stages but the last have the same axes, which are the grid.

use super::Builder;
use super::flat::{Axis, FlatNest, Stride, stride};
use super::fold::Tiling;
use super::schedule::Schedule;
use super::single;
use crate::group::Group;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{Coord, Source};
use kiln_ir::tile::{For, Part, Stmt};
use std::collections::BTreeMap;

impl Builder<'_> {
    /// Several stages (softmax, norms): a program computes the folds of one row, then walks along it.
    pub(super) fn rows(&mut self, group: &Group, flats: &[FlatNest]) -> Option<()> {
        let (last, folds) = flats.split_last()?;
        let prefix = folds.first()?.axes.clone();
        if folds.iter().any(|f| f.axes != prefix) {
            return None;
        }
        let names = row_names(group, &prefix)?;
        let mut place = self.outermost(last);
        let mut grid = Vec::new();
        for (n, a) in prefix.iter().enumerate() {
            let symbol = Symbol::numbered("p", n);
            place.enter(&symbol, &a.extent);
            grid.push((symbol, a.extent.clone()));
        }
        let mut body = Vec::new();
        let mut stages = Vec::new();
        for flat in folds {
            let mut place = place.clone();
            for (n, a) in flat.axes.iter().enumerate() {
                place.at.insert(a.symbol.clone(), Expr::from(Symbol::numbered("p", n)));
            }
            place.shape = single();
            let schedule = Schedule::row(flat, self.machine);
            let tiling = Tiling {
                nest: flat,
                stages: &stages,
                row: None,
                column: None,
                lanes: schedule.lanes,
                unroll: schedule.unroll,
                factors: None,
            };
            let value = self.folded(&mut body, &tiling, &place)?;
            let mut e = self.emitter(&stages);
            let value = e.code(&mut body, &flat.finish, &place, Some(value))?;
            stages.push(value);
        }
        for (from, to) in &names {
            place.at.insert(from.clone(), Expr::from(to));
        }
        // An axis of extent 1 that the stages index by 0 needs no name.
        let free: Vec<Axis> = last.axes.iter().filter(|a| !names.contains_key(&a.symbol)).cloned().collect();
        let zero = |nest: &FlatNest| {
            nest.substitute(&|s| free.iter().any(|a| a.symbol == *s && a.is_single()).then(Expr::default))
        };
        let last = zero(last)?;
        let mut free: Vec<Axis> = free.into_iter().filter(|a| !a.is_single()).collect();
        let column = free.iter().position(|a| stride(&last.store, &a.symbol) == Stride::Known(1));
        let column = column.map(|c| free.remove(c));
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

//! Softmax of rows of scores in local memory: all at once, or online, in stretches.
//!
//! Invariant: local memory has a row of scores for each row of a block, of which the exponentials take the place, and behind them numbers
//! of each row. The exponentials of a stretch are those below the greatest score so far, which only rises.

use super::attention::{At, Attention, exponential};
use super::emit::Place;
use super::flat::{Axis, FlatNest};
use super::fold::Tiling;
use super::parts::{counted, loaded, stored};
use super::schedule::{Machine, Schedule};
use super::{Builder, LINE, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source, UnaryOp};
use kiln_ir::tile::{Stmt, TileId, TileOp};

/// Most keys whose scores are in local memory all at once. Of more it has room for few queries at a time.
const MOST_AT_ONCE: i64 = 2000;

/// With fewer keys than this three kernels do as well: what they hand on stays in cache.
const LEAST_KEYS: i64 = 128;

/// Keys of a stretch.
const STRETCH: i64 = 256;

/// How a program goes along the keys.
#[derive(Clone)]
pub(super) struct Keys {
    /// The number of the first key of the stretch that the program is at.
    pub first: Expr,
    /// The stretch, with how many there are; nothing where all keys are one.
    pub stretch: Option<(Symbol, Expr)>,
    /// The keys of the stretch that the program is at.
    pub count: Expr,
    /// The most that one has.
    pub most: i64,
    /// Scores of a row with what is behind the last key, minus infinity, so that rows are whole runs of vectors.
    pub width: Expr,
    /// From one row of scores to the next.
    pub stride: i64,
    /// Numbers of a run.
    pub run: i64,
}

/// From one row of so many numbers to the next: at a distance that 4,096 bytes divide rows would lie in one set of the cache.
fn apart(numbers: i64) -> i64 {
    if numbers % 1024 == 0 { numbers + LINE } else { numbers }
}

impl Keys {
    /// All keys at once where they are few and known, else in stretches. Where not all of them are seen `ends` are the symbols of the first one and of
    /// what follows the last one, of which there are some; [`Keys::between`] says what they are.
    pub fn of(
        a: &Attention<'_>,
        machine: &Machine,
        ends: Option<&[Symbol; 2]>,
        symbol: impl FnOnce() -> Symbol,
    ) -> Option<Keys> {
        let run = 4 * machine.lanes as i64;
        let whole = |keys: &Expr| keys.ceil_div(&Expr::from(run)).scale(run);
        let extent = &a.key.extent;
        let [first, end] = ends.map_or([Expr::default(), extent.clone()], |ends| ends.each_ref().map(Expr::from));
        // Sums of a number that is not known are not cut but by stretches.
        let at_once = if ends.is_some() { STRETCH } else { MOST_AT_ONCE };
        if let Some(most) = a.key.known().filter(|&keys| keys <= at_once) {
            // A run behind the last key is minus infinity where it is not known which one is the last.
            let rows = whole(extent).as_const()? + if ends.is_some() { run } else { 0 };
            let stride = apart(rows);
            let count = end.sub(&first);
            let all = Keys { first, stretch: None, width: whole(&count), count, most, stride, run };
            return (most >= LEAST_KEYS).then_some(all);
        }
        // Of no keys the sum is 0, which nothing can be divided by.
        if extent.bounds(&a.out.dims).0 < 1 {
            return None;
        }
        let stretch = symbol();
        let stretches = end.sub(&first).ceil_div(&Expr::from(STRETCH)).simplify(&a.out.dims);
        let first = first.add(&Expr::from(&stretch).scale(STRETCH));
        let count = end.sub(&first).least(&Expr::from(STRETCH));
        let width = whole(&count);
        let stretch = Some((stretch, stretches));
        Some(Keys { first, stretch, count, most: STRETCH, width, stride: STRETCH + run, run })
    }

    /// All keys at once, with scores of a row in whole runs of so many.
    pub fn in_runs(self, run: i64) -> Option<Keys> {
        let count = self.count.as_const().filter(|_| self.stretch.is_none())?;
        let width = (count + run - 1) / run * run;
        Some(Keys { width: Expr::from(width), stride: apart(width), run, ..self })
    }

    /// The keys between ends that are known now.
    #[must_use]
    pub fn between(&self, ends: &At, ranges: &Ranges) -> Keys {
        let known = |e: &Expr| e.substitute(&|s| ends.get(s).cloned()).simplify(ranges);
        Keys {
            first: known(&self.first),
            stretch: self.stretch.as_ref().map(|(s, many)| (s.clone(), known(many))),
            count: known(&self.count),
            width: known(&self.width),
            ..*self
        }
    }
}

/// Where local memory has what: rows of scores, and for each row of the block a number of each kind and its product with the values.
#[derive(Clone, Copy)]
pub(super) struct Local {
    /// The buffer as code reads it.
    pub input: usize,
    /// The buffer as statements store to it.
    pub buffer: usize,
    /// Rows of a block at most.
    pub rows: i64,
    /// From one row of scores to the next.
    pub stride: i64,
    /// Numbers of a row's product with the values.
    pub columns: i64,
}

impl Local {
    /// How many numbers it holds for each row.
    pub fn of_row(stride: i64, columns: i64, in_stretches: bool) -> i64 {
        stride.saturating_add(if in_stretches { columns.saturating_add(Kind::ALL) } else { 1 })
    }

    /// The number of a kind that belongs to a row.
    pub fn number(&self, kind: Kind, row: &Expr) -> Expr {
        row.add(&Expr::from(self.rows * (self.stride + kind as i64)))
    }

    /// An element of a row's product with the values.
    pub fn product(&self, row: &Expr, column: &Expr) -> Expr {
        row.scale(self.columns).add(column).add(&Expr::from(self.rows * (self.stride + Kind::ALL)))
    }

    /// A row's score of a key.
    pub fn score(&self, row: &Expr, key: &Expr) -> Expr {
        row.scale(self.stride).add(key)
    }

    /// Loads a number from it.
    pub fn load(&self, code: &mut Code, at: Expr) -> Id<Scalar> {
        code.load(Source::Input(self.input), vec![Coord::Index(at)], DType::F32)
    }
}

/// What a row has one number of.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// The inverse of the sum.
    Inverse = 0,
    /// The greatest score so far.
    Greatest = 1,
    /// The sum of exponentials so far.
    Sum = 2,
    /// What was summed before is to be scaled with.
    Scale = 3,
}

impl Kind {
    /// How many kinds there are.
    const ALL: i64 = 4;
}

impl Builder<'_> {
    /// What is done for each row of a block, whose number it gets.
    pub(super) fn for_rows(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        rows: i64,
        of_row: impl FnOnce(&mut Self, &mut Vec<Stmt>, &Place, &Expr) -> Option<()>,
    ) -> Option<()> {
        let var = self.symbol("r");
        let mut place = place.clone();
        place.enter(&var, &Expr::from(rows));
        place.shape = single();
        let mut inner = Vec::new();
        of_row(self, &mut inner, &place, &Expr::from(&var))?;
        body.push(counted(var, rows, 1, inner));
        Some(())
    }

    /// Writes a number to a run of local memory.
    pub(super) fn filled(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        (first, many): (&Expr, &Expr),
        number: f64,
    ) -> Option<()> {
        let at = Axis { symbol: self.symbol("x"), extent: many.clone() };
        let mut code = Code::new();
        let constant = code.constant(Constant::float(DType::F32, number));
        code.set_result(constant);
        let (axes, folds, finish) = (vec![at.clone()], vec![], Code::identity(DType::F32));
        let (store, dims) = (Expr::from(&at.symbol), place.ranges.clone());
        let nest = FlatNest { axes, folds, combine: BinaryOp::Add, body: code, finish, store, dims };
        self.walk(body, &nest, place, &at, first, many, 4 * self.machine.lanes as i64, &[])
    }

    /// Before the first stretch: no score, no sum, no product.
    pub(super) fn begun(&mut self, body: &mut Vec<Stmt>, place: &Place, local: &Local, rows: i64) -> Option<()> {
        let none = Expr::default();
        self.within = Some(local.buffer);
        let all = [
            (local.number(Kind::Greatest, &none), rows, f64::NEG_INFINITY),
            (local.number(Kind::Sum, &none), rows, 0.0),
            (local.product(&none, &none), rows * local.columns, 0.0),
        ];
        for (first, many, number) in all {
            self.filled(body, place, (&first, &Expr::from(many)), number)?;
        }
        self.within = None;
        Some(())
    }

    /// A row's number.
    pub(super) fn number(&mut self, body: &mut Vec<Stmt>, local: &Local, kind: Kind, row: &Expr) -> TileId {
        let load = loaded(local.buffer, local.number(kind, row), DType::F32);
        self.emitter(&[]).define(body, DType::F32, single(), load)
    }

    fn set_number(&mut self, body: &mut Vec<Stmt>, local: &Local, kind: Kind, row: &Expr, value: TileId) {
        body.push(stored(local.buffer, local.number(kind, row), value));
    }

    /// Keeps the inverse of a row's sum: no number where that is none, or 0, as where all that a row sees is minus infinity.
    pub(super) fn set_inverse(&mut self, body: &mut Vec<Stmt>, local: &Local, row: &Expr, sum: TileId) {
        let mut e = self.emitter(&[]);
        let inverse = e.define(body, DType::F32, single(), TileOp::Unary(UnaryOp::Recip, sum));
        let [zero, nan] = [0.0, f64::NAN].map(|x| e.constant(body, Constant::float(DType::F32, x), single().len()));
        let above = e.binary(body, BinaryOp::Gt, sum, zero);
        let inverse = e.define(body, DType::F32, single(), TileOp::Select(above, inverse, nan));
        self.set_number(body, local, Kind::Inverse, row, inverse);
    }

    /// Makes `exp(x - greatest)` of each row of scores, and the inverses of their sums; of a stretch the greatest scores so far, the
    /// sums, and what sums before are scaled with.
    pub(super) fn softmax_within(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        local: &Local,
        keys: &Keys,
        rows: i64,
    ) -> Option<()> {
        let beyond = match keys.count.as_const().zip(keys.width.as_const()) {
            Some((count, width)) => width - count,
            None => keys.run,
        };
        self.for_rows(body, place, rows, |this, inner, place, row| {
            if beyond > 0 {
                let least = (&local.score(row, &keys.count), &Expr::from(beyond));
                this.filled(inner, place, least, f64::NEG_INFINITY)?;
            }
            let key = Axis { symbol: this.symbol("x"), extent: keys.width.clone() };
            let address = local.score(row, &Expr::from(&key.symbol));
            let nest = |folded: bool, combine: BinaryOp, body: Code| {
                let (axes, folds) = if folded { (vec![], vec![key.clone()]) } else { (vec![key.clone()], vec![]) };
                let finish = Code::identity(DType::F32);
                FlatNest { axes, folds, combine, body, finish, store: address.clone(), dims: place.ranges.clone() }
            };
            let mut loaded = Code::new();
            let score = local.load(&mut loaded, address.clone());
            loaded.set_result(score);
            let mut exponential = loaded.clone();
            let greatest = exponential.load(Source::Stage(0), vec![], DType::F32);
            let shifted = exponential.binary(BinaryOp::Sub, score, greatest).ok()?;
            let power = exponential.unary(UnaryOp::Exp, shifted).ok()?;
            exponential.set_result(power);

            let folded = |this: &mut Self, inner: &mut Vec<Stmt>, nest: &FlatNest| {
                let chosen = Schedule::row(nest, this.machine);
                // Of how many scores a row of a stretch has only that they are whole runs is known.
                let free = keys.stretch.is_some();
                let lanes = if free { Some((key.symbol.clone(), keys.run)) } else { chosen.lanes };
                let unroll = if free { 1 } else { chosen.unroll };
                let tiling =
                    Tiling { nest, stages: &[], row: None, column: None, lanes, unroll, factors: None, start: None };
                this.folded(inner, &tiling, place)
            };
            let mut greatest = folded(this, inner, &nest(true, BinaryOp::Max, loaded.clone()))?;
            let mut before = None;
            if keys.stretch.is_some() {
                let (next, scale) = this.greater(inner, local, row, greatest);
                (greatest, before) = (next, Some(scale));
            }
            let powers = nest(false, BinaryOp::Add, exponential);
            let step = this.machine.lanes as i64 * 2;
            this.walk(inner, &powers, place, &key, &Expr::default(), &key.extent, step, &[greatest])?;
            let sum = folded(this, inner, &nest(true, BinaryOp::Add, loaded))?;
            match before {
                None => this.set_inverse(inner, local, row, sum),
                Some(scale) => {
                    let before = this.number(inner, local, Kind::Sum, row);
                    let sum = this.emitter(&[]).define(inner, DType::F32, single(), TileOp::Fma(before, scale, sum));
                    this.set_number(inner, local, Kind::Sum, row, sum);
                }
            }
            Some(())
        })
    }

    /// Keeps the greatest score of a row so far, where `here` is that of a stretch, and what sums before are scaled with. Gives what the
    /// exponentials are below: where no key was seen yet the lowest number, below which minus infinity has an exponential of 0.
    fn greater(&mut self, body: &mut Vec<Stmt>, local: &Local, row: &Expr, here: TileId) -> (TileId, TileId) {
        let before = self.number(body, local, Kind::Greatest, row);
        let mut e = self.emitter(&[]);
        let next = e.binary(body, BinaryOp::Max, before, here);
        let lowest = e.constant(body, Constant::float(DType::F32, f64::from(f32::MIN)), single().len());
        let bound = e.binary(body, BinaryOp::Max, next, lowest);
        let scale = exponential(&mut e, body, before, bound);
        self.set_number(body, local, Kind::Greatest, row, next);
        self.set_number(body, local, Kind::Scale, row, scale);
        (bound, scale)
    }
}

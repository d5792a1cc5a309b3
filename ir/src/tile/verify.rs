//! The verifier of tile programs.
//!
//! Invariant: a program that verifies can be interpreted and lowered without any check but those on the values of
//! dims, addresses that are not affine or lie in a choice, and limits of a target. All errors are collected.

use super::{
    Ahead, Buffer, Factors, For, If, Multiply, Part, Stmt, TileId, TileOp, TileProgram, TileType, is_reserved,
};
use crate::dtype::{Class, DType};
use crate::expr::{Atom, Expr, Ranges, Symbol};
use crate::scalar::{BinaryOp, Code, Less, Scalar};
use crate::vector::Product;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A rule that a tile program breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tile program @{program}: `{statement}`: {message}")]
pub struct VerifyError {
    /// Name of the program.
    pub program: String,
    /// First line of the statement in the text form; empty for the program's head.
    pub statement: String,
    /// What is wrong.
    pub message: String,
}

/// Most elements of a tile: a tile is to fit the registers of a target, or nearly so.
pub const MAX_ELEMENTS: usize = 1 << 16;

impl TileProgram {
    /// Checks that every tile is assigned once and before its uses, all types and shapes, that every symbol is a
    /// dim (one of `dims`, with its bounds) or a variable in scope, and that no access is out of bounds as far as
    /// the bounds of its symbols tell.
    ///
    /// # Errors
    /// Every rule that is broken, in the order of the program.
    pub fn verify(&self, dims: &Ranges) -> Result<(), Vec<VerifyError>> {
        let mut verifier = Verifier {
            program: self,
            symbols: dims.iter().map(|(s, &bounds)| (s.clone(), Bounds { bounds, exact: true })).collect(),
            assigned: vec![false; self.tiles.len()],
            visible: vec![false; self.tiles.len()],
            errors: Vec::new(),
        };
        verifier.head(dims);
        for part in &self.parts {
            verifier.part(part);
        }
        if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
    }
}

/// Whether tiles have elements of the type.
fn computable(dtype: DType) -> bool {
    !matches!(dtype.class(), Class::Complex | Class::Str)
}

/// The bounds of a symbol, and whether both are reached whatever the other symbols are.
#[derive(Clone, Copy)]
struct Bounds {
    bounds: (i64, i64),
    exact: bool,
}

/// A symbol with fewer values is tried with each.
const FEW_VALUES: i64 = 64;

struct Verifier<'a> {
    program: &'a TileProgram,
    symbols: BTreeMap<Symbol, Bounds>,
    assigned: Vec<bool>,
    visible: Vec<bool>,
    errors: Vec<VerifyError>,
}

impl<'a> Verifier<'a> {
    fn report(&mut self, stmt: Option<&Stmt>, message: impl Into<String>) {
        self.errors.push(VerifyError {
            program: self.program.name.clone(),
            statement: stmt.map(|s| self.program.head(s).to_string()).unwrap_or_default(),
            message: message.into(),
        });
    }

    fn head(&mut self, dims: &Ranges) {
        let plain = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !plain(&self.program.name) {
            self.report(None, "the name is not made of letters, digits and `_`");
        }
        for dim in dims.keys().filter(|d| is_reserved(d)) {
            self.report(None, format!("the dim `{dim}` has the name of an axis or a gathered tile"));
        }
        let mut names = HashSet::new();
        if self.program.buffers.windows(2).any(|w| w[0].local && !w[1].local) {
            self.report(None, "local buffers follow all others");
        }
        for Buffer { name, dtype, len, local, written } in &self.program.buffers {
            if *local && (!written || len.as_size().is_none_or(|n| n > MAX_ELEMENTS)) {
                self.report(None, format!("local memory `{name}` is written and has up to {MAX_ELEMENTS} elements"));
            }
            if !plain(name) {
                self.report(None, format!("the name of buffer `{name}` is not made of letters, digits and `_`"));
            }
            if !names.insert(name) {
                self.report(None, format!("two buffers have the name `{name}`"));
            }
            if !computable(*dtype) {
                self.report(None, format!("buffer `{name}`: tile programs do not compute with {dtype}"));
            }
            self.expr(None, len, 0, 0);
        }
    }

    fn part(&mut self, part: &Part) {
        for (_, extent) in &part.grid {
            self.expr(None, extent, 0, 0);
        }
        let outside = self.symbols.clone();
        let runs = part.grid.iter().fold(true, |runs, (_, extent)| self.runs_for(extent) && runs);
        for (variable, extent) in &part.grid {
            let (_, hi) = extent.bounds(&self.ranges(&[]));
            let bounds = Bounds { bounds: (0, hi.saturating_sub(1).max(0)), exact: extent.as_const().is_some() };
            self.variable(None, variable, bounds);
        }
        self.region(&part.body, &[], runs, |_| {});
        self.symbols = outside;
    }

    /// Narrows what is known of symbols to what holds within a loop or grid of `count` turns: there is one. False where there is
    /// none for any value, so that nothing in it is ever accessed.
    fn runs_for(&mut self, count: &Expr) -> bool {
        let known =
            |s: &Symbol| self.symbols.get(s).filter(|k| k.bounds.0 == k.bounds.1).map(|k| Expr::from(k.bounds.0));
        let count = &count.substitute(&known);
        let (least, most) = count.bounds(&self.ranges(&[]));
        if most < 1 {
            return false;
        }
        if least >= 1 {
            return true;
        }
        let constant = count.constant();
        let single = count.sub(&Expr::from(constant));
        if let Some(Bounds { bounds: (low, _), .. }) = single.as_symbol().and_then(|s| self.symbols.get_mut(s)) {
            *low = (*low).max(1i64.saturating_sub(constant));
            return true;
        }
        if let Some((symbol, turns)) = self.values_with_turns(count) {
            let (Some(first), Some(last)) = (turns.first(), turns.last()) else { return false };
            self.symbols.insert(symbol, Bounds { bounds: (*first, *last), exact: false });
            return true;
        }
        // Which values leave a turn is not known, so neither is that an end of a symbol's range is reached in one.
        count.for_each_symbol(&mut |s| {
            if let Some(known) = self.symbols.get_mut(s) {
                known.exact = false;
            }
        });
        true
    }

    /// Where a count hangs on one symbol of few values: that symbol and its values that leave a turn.
    fn values_with_turns(&self, count: &Expr) -> Option<(Symbol, Vec<i64>)> {
        let mut symbols: BTreeSet<Symbol> = BTreeSet::new();
        count.for_each_symbol(&mut |s| _ = symbols.insert(s.clone()));
        let (Some(symbol), None) = (symbols.pop_first(), symbols.pop_first()) else { return None };
        let (low, high) = self.symbols.get(&symbol)?.bounds;
        let few = high.checked_sub(low).is_some_and(|n| n < FEW_VALUES);
        let turns = |&value: &i64| count.eval(&|_| Some(value)).is_some_and(|n| n >= 1);
        few.then(|| (symbol, (low..=high).filter(turns).collect()))
    }

    /// Brings a grid or loop variable into scope.
    fn variable(&mut self, stmt: Option<&Stmt>, variable: &Symbol, bounds: Bounds) {
        if is_reserved(variable) {
            self.report(stmt, format!("the variable `{variable}` has the name of an axis or a gathered tile"));
        }
        if self.symbols.insert(variable.clone(), bounds).is_some() {
            self.report(stmt, format!("`{variable}` is defined already"));
        }
    }

    /// Bounds of all symbols in scope and of the axes of a tile.
    fn ranges(&self, shape: &[usize]) -> Ranges {
        let mut ranges: Ranges = self.symbols.iter().map(|(s, b)| (s.clone(), b.bounds)).collect();
        for (k, &extent) in shape.iter().enumerate() {
            ranges.insert(super::axis(k), (0, (extent as i64).saturating_sub(1)));
        }
        ranges
    }

    /// Checks that all symbols of an expression are in scope.
    fn expr(&mut self, stmt: Option<&Stmt>, e: &Expr, rank: usize, gathered: usize) {
        let mut unknown = Vec::new();
        e.for_each_symbol(&mut |s| {
            let within = |prefix: char, count: usize| {
                s.name().strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n < count)
            };
            let known =
                if is_reserved(s) { within('a', rank) || within('v', gathered) } else { self.symbols.contains_key(s) };
            if !known {
                unknown.push(s.clone());
            }
        });
        for s in unknown {
            self.report(stmt, format!("`{s}` in `{e}` is not defined here"));
        }
    }

    fn mask(&mut self, stmt: &Stmt, mask: &[Less], rank: usize) {
        for less in mask {
            self.expr(Some(stmt), &less.left, rank, 0);
            self.expr(Some(stmt), &less.right, rank, 0);
        }
    }

    fn define(&mut self, stmt: &Stmt, id: TileId) -> Option<&'a TileType> {
        let Some(ty) = self.program.tiles.get(id) else {
            self.report(Some(stmt), format!("{id} is not a tile of the program"));
            return None;
        };
        if !computable(ty.dtype) {
            self.report(Some(stmt), format!("{id}: tile programs do not compute with {}", ty.dtype));
        }
        if ty.elements() > MAX_ELEMENTS {
            self.report(Some(stmt), format!("{id}: a tile of {ty} has more than {MAX_ELEMENTS} elements"));
        }
        if ty.shape.contains(&0) {
            self.report(Some(stmt), format!("{id}: a tile of {ty} has no elements"));
        }
        if self.assigned[id.index()] {
            self.report(Some(stmt), format!("{id} is assigned a second time"));
        }
        self.assigned[id.index()] = true;
        self.visible[id.index()] = true;
        Some(ty)
    }

    fn used(&mut self, stmt: &Stmt, id: TileId) -> Option<&'a TileType> {
        if self.visible.get(id.index()) == Some(&true) {
            return self.program.tiles.get(id);
        }
        let what = if self.assigned.get(id.index()) == Some(&true) { "not visible here" } else { "not defined" };
        self.report(Some(stmt), format!("{id} is {what}"));
        None
    }

    /// Checks a region, of which it is known whether its statements ever run.
    fn region(&mut self, body: &[Stmt], inside: &[(&Stmt, TileId)], runs: bool, at_end: impl FnOnce(&mut Self)) {
        let outside = self.visible.clone();
        for (stmt, id) in inside {
            self.define(stmt, *id);
        }
        for stmt in body {
            self.stmt(stmt, runs);
        }
        at_end(self);
        self.visible = outside;
    }

    fn stmt(&mut self, stmt: &Stmt, runs: bool) {
        match stmt {
            Stmt::Let(id, op) => {
                if let Some(ty) = self.program.tiles.get(*id) {
                    self.op(stmt, ty, op, runs);
                }
                self.define(stmt, *id);
            }
            Stmt::Store { buffer, address, gathered, mask, value } => {
                let ty = self.used(stmt, *value);
                let shape = ty.map_or(&[][..], |ty| &ty.shape);
                self.expr(Some(stmt), address, shape.len(), gathered.len());
                if let Some(ty) = ty {
                    self.gathered(stmt, gathered, ty);
                }
                self.mask(stmt, mask, shape.len());
                match self.program.buffers.get(*buffer) {
                    None => self.report(Some(stmt), format!("there is no buffer {buffer}")),
                    Some(b) => {
                        if !b.written {
                            self.report(Some(stmt), format!("`{}` is not declared `written`", b.name));
                        }
                        if let Some(ty) = ty
                            && !super::stores_to(ty.dtype, b.dtype)
                        {
                            self.report(Some(stmt), format!("`{}` holds {}, the tile is {ty}", b.name, b.dtype));
                        }
                        if ty.is_some() && gathered.is_empty() && mask.is_empty() && runs {
                            self.in_bounds(stmt, address, shape, b);
                        }
                    }
                }
            }
            Stmt::For(f) => self.counted_loop(stmt, f, runs),
            Stmt::Multiply(m) => self.multiply(stmt, m, runs),
            Stmt::If(If { condition, then, otherwise }) => {
                if let Some(ty) = self.used(stmt, *condition)
                    && (ty.dtype != DType::Bool || ty.elements() != 1)
                {
                    self.report(Some(stmt), format!("the condition {condition} is {ty}, wants one bool"));
                }
                // Which of them runs is not known.
                self.region(then, &[], false, |_| {});
                self.region(otherwise, &[], false, |_| {});
            }
        }
    }

    fn multiply(&mut self, stmt: &Stmt, m: &Multiply, runs: bool) {
        let [rows, columns] = m.shape();
        let sizes = || m.rows.iter().chain(&m.columns).chain([&m.depth]);
        if m.rows.is_empty() || m.columns.is_empty() || sizes().any(|&n| n == 0 || n > 16) {
            self.report(Some(stmt), "registers have 1 to 16 rows, and rows 1 to 16 elements");
        }
        let sums = match m.product {
            Product::Pairs => DType::F32,
            Product::UnsignedSigned | Product::SignedUnsigned => DType::I32,
        };
        let elements = rows.saturating_mul(columns);
        self.expr(Some(stmt), &m.out.1, 0, 0);
        let fits = |b: &Buffer| b.local && b.dtype == sums && b.len.as_size().is_some_and(|n| n >= elements);
        match self.program.buffers.get(m.out.0).filter(|b| fits(b)) {
            None => self.report(Some(stmt), format!("the result wants local memory of {elements} {sums}")),
            Some(local) if runs => {
                self.in_bounds(stmt, &m.out.1.add(&Expr::from(super::axis(1))), &[1, elements], local)
            }
            Some(_) => {}
        }
        let outside = self.symbols.clone();
        let mut runs = runs;
        for (variable, extent, step) in &m.folds {
            self.expr(Some(stmt), extent, 0, 0);
            let known = extent.as_const();
            if *step < 1 || known.is_some_and(|n| n % step != 0) {
                self.report(Some(stmt), format!("the step {step} does not divide the fold `{variable}`"));
                self.symbols = outside;
                return;
            }
            runs &= known.is_some_and(|n| n > 0);
            let end = extent.bounds(&self.ranges(&[])).1;
            let last = if known.is_some() { end.saturating_sub(*step) } else { end.saturating_sub(1) };
            let bounds = Bounds { bounds: (0, last.max(0)), exact: known.is_some() };
            self.variable(Some(stmt), variable, bounds);
        }
        if m.rounds.is_empty() || m.rounds.iter().any(Vec::is_empty) {
            self.report(Some(stmt), "a round has at least one product");
        }
        for Factors { left, right } in m.rounds.iter().flatten() {
            for ((buffer, address), shape) in [(left, [rows, m.depth]), (right, [m.depth, columns])] {
                self.expr(Some(stmt), address, 2, 0);
                match self.program.buffers.get(*buffer) {
                    Some(b) if b.dtype == DType::I32 && (!b.written || b.local && *buffer != m.out.0) => {
                        if runs {
                            self.in_bounds(stmt, address, &shape, b);
                        }
                    }
                    Some(_) | None => {
                        self.report(Some(stmt), "operands are i32 that are local or that the kernel does not store to");
                    }
                }
            }
        }
        if let Some(Ahead { from: (buffer, address), lines }) = &m.ahead {
            self.expr(Some(stmt), address, 0, 0);
            if self.program.buffers.get(*buffer).is_none_or(|b| b.local) || *lines == 0 {
                self.report(Some(stmt), "what is asked for is at least one line of an argument");
            }
        }
        self.symbols = outside;
    }

    fn counted_loop(&mut self, stmt: &Stmt, f: &For, runs: bool) {
        let For { var, lo, hi, step, carried, body } = f;
        self.expr(Some(stmt), lo, 0, 0);
        self.expr(Some(stmt), hi, 0, 0);
        if *step < 1 {
            self.report(Some(stmt), format!("the step is {step}, wants at least 1"));
            return;
        }
        let count = hi.sub(lo).as_const();
        if count.is_some_and(|n| n % step != 0) {
            self.report(Some(stmt), format!("the step {step} does not divide the length of the loop"));
        }
        for c in carried {
            let Some(inside) = self.program.tiles.get(c.inside) else { continue };
            self.same(stmt, c.init, inside);
        }
        let outside = self.symbols.clone();
        let runs = self.runs_for(&hi.sub(lo)) && runs;
        let ranges = self.ranges(&[]);
        let (first, end) = (lo.bounds(&ranges).0, hi.bounds(&ranges).1);
        let exact = lo.as_const().is_some() && hi.as_const().is_some();
        let last = if exact { end.saturating_sub(*step) } else { end.saturating_sub(1) };
        self.variable(Some(stmt), var, Bounds { bounds: (first, last.max(first)), exact });
        let inside: Vec<_> = carried.iter().map(|c| (stmt, c.inside)).collect();
        self.region(body, &inside, runs, |verifier| {
            for c in carried {
                if let Some(inside) = verifier.program.tiles.get(c.inside) {
                    verifier.same(stmt, c.next, inside);
                }
            }
        });
        self.symbols = outside;
        for c in carried {
            let after = self.define(stmt, c.after);
            if let (Some(inside), Some(after)) = (self.program.tiles.get(c.inside), after)
                && inside != after
            {
                self.report(Some(stmt), format!("{} is {after}, wants {inside}", c.after));
            }
        }
    }

    fn same(&mut self, stmt: &Stmt, id: TileId, want: &TileType) {
        if let Some(ty) = self.used(stmt, id)
            && ty != want
        {
            self.report(Some(stmt), format!("{id} is {ty}, wants {want}"));
        }
    }

    /// Reports an access that is surely out of bounds: one whose least address is past the end, or whose greatest
    /// is, where all bounds are reached independently of one another.
    fn in_bounds(&mut self, stmt: &Stmt, address: &Expr, shape: &[usize], buffer: &Buffer) {
        let ranges = self.ranges(shape);
        let past = address.sub(&buffer.len);
        let independent = |e: &Expr| {
            e.terms().all(|(atoms, _)| match atoms {
                [Atom::Symbol(s)] => is_reserved(s) || self.symbols.get(s).is_some_and(|b| b.exact),
                _ => false,
            })
        };
        let ((low, high), (past_low, past_high)) = (address.bounds(&ranges), past.bounds(&ranges));
        let wrong = high < 0
            || past_low >= 0
            || independent(address) && low < 0 && low > i64::MIN
            || independent(&past) && (0..i64::MAX).contains(&past_high);
        if wrong {
            self.report(
                Some(stmt),
                format!(
                    "address {low}..={high} is out of bounds of `{}`, which has {} elements",
                    buffer.name, buffer.len
                ),
            );
        }
    }

    /// Checks tiles that an address uses.
    fn gathered(&mut self, stmt: &Stmt, gathered: &[TileId], result: &TileType) {
        for &id in gathered {
            if let Some(dtype) = self.elementwise(stmt, id, result)
                && dtype != DType::I64
            {
                self.report(Some(stmt), format!("{id} is {dtype}; gathered tiles are i64"));
            }
        }
    }

    /// An operand of an elementwise operation; gives its element type.
    fn elementwise(&mut self, stmt: &Stmt, id: TileId, result: &TileType) -> Option<DType> {
        let ty = self.used(stmt, id)?;
        let fits =
            ty.shape.len() == result.shape.len() && ty.shape.iter().zip(&result.shape).all(|(&e, &r)| e == r || e == 1);
        if !fits {
            self.report(Some(stmt), format!("{id} is {ty}, which does not broadcast to {result}"));
        }
        Some(ty.dtype)
    }

    /// Checks that the operands' broadcast shape is the result's: an axis of extent over 1 comes from somewhere.
    fn covered(&mut self, stmt: &Stmt, operands: &[TileId], result: &TileType) {
        for (axis, &extent) in result.shape.iter().enumerate() {
            let from = |id: &TileId| self.program.tiles.get(*id).is_some_and(|t| t.shape.get(axis) == Some(&extent));
            if extent > 1 && !operands.iter().any(from) {
                self.report(Some(stmt), format!("no operand has extent {extent} along axis {axis}"));
            }
        }
    }

    /// The type that a scalar operation gives for operands of these types.
    fn scalar(&mut self, stmt: &Stmt, types: &[DType], make: impl Fn(&[crate::Id<Scalar>]) -> Scalar) -> Option<DType> {
        let mut code = Code::new();
        let args: Vec<_> = types.iter().enumerate().map(|(k, &t)| code.arg(k, t)).collect();
        match code.push(make(&args)) {
            Ok(id) => Some(code.dtype(id)),
            Err(e) => {
                self.report(Some(stmt), e.0);
                None
            }
        }
    }

    fn op(&mut self, stmt: &Stmt, result: &TileType, op: &TileOp, runs: bool) {
        let rank = result.shape.len();
        // The element type that the operands say the result has.
        let found = match op {
            TileOp::Const(c) => Some(c.dtype),
            TileOp::Index(e) => {
                self.expr(Some(stmt), e, rank, 0);
                Some(DType::I64)
            }
            TileOp::Load { buffer, address, gathered, mask, other } => {
                self.expr(Some(stmt), address, rank, gathered.len());
                self.mask(stmt, mask, rank);
                self.gathered(stmt, gathered, result);
                if other.dtype != result.dtype {
                    self.report(Some(stmt), format!("`{other}` is no {}", result.dtype));
                }
                match self.program.buffers.get(*buffer) {
                    None => {
                        self.report(Some(stmt), format!("there is no buffer {buffer}"));
                        None
                    }
                    Some(b) => {
                        if gathered.is_empty() && mask.is_empty() && runs {
                            self.in_bounds(stmt, address, &result.shape, b);
                        }
                        let fits = super::loads_from(result.dtype, b.dtype);
                        Some(if fits { result.dtype } else { b.dtype })
                    }
                }
            }
            TileOp::Unary(op, a) => {
                let a_type = self.elementwise(stmt, *a, result);
                self.covered(stmt, &[*a], result);
                a_type.and_then(|t| self.scalar(stmt, &[t], |x| Scalar::Unary(*op, x[0])))
            }
            TileOp::Cast(to, a) => {
                let a_type = self.elementwise(stmt, *a, result);
                self.covered(stmt, &[*a], result);
                a_type.and_then(|t| self.scalar(stmt, &[t], |x| Scalar::Cast(*to, x[0])))
            }
            TileOp::Binary(op, a, b) => {
                let types = (self.elementwise(stmt, *a, result), self.elementwise(stmt, *b, result));
                self.covered(stmt, &[*a, *b], result);
                match types {
                    (Some(a), Some(b)) => self.scalar(stmt, &[a, b], |x| Scalar::Binary(*op, x[0], x[1])),
                    _ => None,
                }
            }
            TileOp::Select(c, a, b) => {
                let types = [c, a, b].map(|&id| self.elementwise(stmt, id, result));
                self.covered(stmt, &[*c, *a, *b], result);
                match types {
                    [Some(c), Some(a), Some(b)] => self.scalar(stmt, &[c, a, b], |x| Scalar::Select(x[0], x[1], x[2])),
                    _ => None,
                }
            }
            TileOp::Fma(a, b, c) => {
                let types = [a, b, c].map(|&id| self.elementwise(stmt, id, result));
                self.covered(stmt, &[*a, *b, *c], result);
                match types {
                    [Some(a), Some(b), Some(c)] => {
                        let pairs = a == DType::I32 && c == DType::F32;
                        let times = if pairs { BinaryOp::Dot2 } else { BinaryOp::Mul };
                        let product = self.scalar(stmt, &[a, b], |x| Scalar::Binary(times, x[0], x[1]));
                        let product = product.unwrap_or(c);
                        self.scalar(stmt, &[product, c], |x| Scalar::Binary(BinaryOp::Add, x[0], x[1]))
                    }
                    _ => None,
                }
            }
            TileOp::Reduce(op, axis, a) => self.reduce(stmt, result, *op, *axis, *a),
            TileOp::Transpose(order, a) => self.used(stmt, *a).map(|ty| {
                let mut seen = order.clone();
                seen.sort_unstable();
                let permutes = seen.iter().copied().eq(0..ty.shape.len());
                if !permutes || !order.iter().zip(&result.shape).all(|(&from, &e)| ty.shape.get(from) == Some(&e)) {
                    self.report(Some(stmt), format!("{result} is no transpose of {ty} by {order:?}"));
                }
                ty.dtype
            }),
            TileOp::Dot(of, a, b, c) => {
                let [a, b, c] = [a, b, c].map(|&id| self.used(stmt, id));
                if let (Some(a), Some(b), Some(c)) = (a, b, c) {
                    let fits = match (a.shape.as_slice(), b.shape.as_slice()) {
                        (&[m, k], &[l, n]) => k == l && c.shape == [m, n] && result.shape == [m, n],
                        _ => false,
                    };
                    let number = |t: &TileType| match of {
                        None => t.dtype.is_float() || t.dtype.is_int(),
                        Some(of) => *of != Product::Pairs && t.dtype == DType::I32,
                    };
                    if !fits || !number(a) || !number(b) || !number(c) {
                        self.report(Some(stmt), format!("{a} by {b} plus {c} is no matrix product giving {result}"));
                    }
                }
                c.map(|c| c.dtype)
            }
            TileOp::CheckIndex { index, extent, status } => {
                self.expr(Some(stmt), extent, rank, 0);
                if *status == 0 {
                    self.report(Some(stmt), "status 0 means success");
                }
                self.covered(stmt, &[*index], result);
                if self.elementwise(stmt, *index, result).is_some_and(|t| t != DType::I64) {
                    self.report(Some(stmt), format!("{index} is not i64"));
                }
                Some(DType::I64)
            }
        };
        if let Some(found) = found
            && found != result.dtype
        {
            self.report(Some(stmt), format!("the result is {found}, declared as {}", result.dtype));
        }
    }

    fn reduce(&mut self, stmt: &Stmt, result: &TileType, op: BinaryOp, axis: usize, a: TileId) -> Option<DType> {
        use BinaryOp::{Add, And, Max, Min, Mul, Or};
        let ty = self.used(stmt, a)?;
        let mut shape = ty.shape.clone();
        match shape.get_mut(axis) {
            Some(extent) => *extent = 1,
            None => self.report(Some(stmt), format!("{ty} has no axis {axis}")),
        }
        if shape != result.shape {
            self.report(Some(stmt), format!("{ty} without axis {axis} is no {result}"));
        }
        if !matches!(op, Add | Mul | Min | Max | And | Or) {
            self.report(Some(stmt), format!("`{}` is not associative", op.name()));
        }
        self.scalar(stmt, &[ty.dtype, ty.dtype], |x| Scalar::Binary(op, x[0], x[1]))
    }
}

//! Loop nests with linear addresses: a nest once layouts are known.
//!
//! Invariant: every load is `Load(source, [Index(address), (Value(v), Index(extent))*])`: an address in elements over the loop
//! symbols, in which the symbol `vK` stands for the K-th gathered index, to be checked against its extent.

use kiln_ir::dtype::DType;
use kiln_ir::expr::{Atom, Expr, Ranges, Symbol};
use kiln_ir::graph::TensorType;
use kiln_ir::loops::{Loops, linear};
use kiln_ir::nest::{self, Nest};
use kiln_ir::plan::nominal;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, TypeError};

/// A loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Loop variable, from 0.
    pub symbol: Symbol,
    /// How many iterations: a constant, or an expression over dims.
    pub extent: Expr,
}

impl Axis {
    /// The extent, where it is constant.
    pub fn known(&self) -> Option<i64> {
        self.extent.as_const()
    }

    /// Whether there is just one iteration.
    pub fn is_single(&self) -> bool {
        self.known() == Some(1)
    }
}

/// How far apart in memory the elements of neighbouring iterations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// So many elements.
    Known(i64),
    /// The same number everywhere, which dims decide.
    Free,
    /// Not the same everywhere: blocked layouts, gathers.
    Uneven,
}

/// The stride of an address along a loop.
pub fn stride(address: &Expr, symbol: &Symbol) -> Stride {
    match linear(address, symbol) {
        Some((factor, _)) => factor.as_const().map_or(Stride::Free, Stride::Known),
        None => Stride::Uneven,
    }
}

/// A nest with linear addresses.
#[derive(Clone, Debug)]
pub struct FlatNest {
    /// Loops over the result, outermost first.
    pub axes: Vec<Axis>,
    /// Loops of the fold, outermost first.
    pub folds: Vec<Axis>,
    /// How body values are folded.
    pub combine: BinaryOp,
    /// What is folded.
    pub body: Code,
    /// Applied to the folded value (argument 0).
    pub finish: Code,
    /// Address of the result's element.
    pub store: Expr,
    /// Ranges of the dims that are free.
    pub dims: Ranges,
}

/// The symbol of the n-th gathered index of a load.
pub fn gathered(n: usize) -> Symbol {
    Symbol::numbered("v", n)
}

/// Rewrites every expression of scalar code.
pub fn map_exprs(code: &Code, f: &dyn Fn(&Expr) -> Expr) -> Result<Code, TypeError> {
    let mut out = Code::new();
    let result = out.inline(code, &mut |out, node, dtype| {
        Ok(Some(match node {
            Scalar::Load(source, coords) => {
                let coords = coords
                    .iter()
                    .map(|c| match c {
                        Coord::Index(e) => Coord::Index(f(e)),
                        Coord::Value(v) => Coord::Value(*v),
                    })
                    .collect();
                out.load(*source, coords, dtype)
            }
            Scalar::Index(e) => out.index(f(e)),
            Scalar::Guard(conditions, a, b) => {
                let conditions = conditions.iter().map(|c| Less { left: f(&c.left), right: f(&c.right) }).collect();
                out.push(Scalar::Guard(conditions, *a, *b))?
            }
            _ => return Ok(None),
        }))
    })?;
    out.set_result(result);
    Ok(out)
}

impl FlatNest {
    /// The nest with linear addresses, given the types of the inputs and of the result (of a stage whose result stays in
    /// registers there is none). Loads of stages keep their
    /// coordinates. Nothing where the code is not well typed. `dims` are the ranges of free dims.
    pub fn new(nest: &Nest, inputs: &[&TensorType], output: Option<&TensorType>, dims: &Ranges) -> Option<FlatNest> {
        let axes = |extents: &[Expr], symbol: &dyn Fn(usize) -> Symbol| -> Vec<Axis> {
            extents.iter().enumerate().map(|(n, e)| Axis { symbol: symbol(n), extent: e.clone() }).collect()
        };
        let (axes, folds) = (axes(&nest.dims, &nest::axis), axes(&nest.folds, &nest::fold_axis));
        let loops = loops(axes.iter().chain(&folds), dims);
        let ranges = loops.ranges();
        let flatten = |code: &Code| {
            let mut out = Code::new();
            let result = out.inline(code, &mut |out, node, dtype| {
                let Scalar::Load(Source::Input(n), coords) = node else { return Ok(None) };
                let ty = inputs.get(*n).ok_or_else(|| TypeError(format!("input {n} is missing")))?;
                let (mut index, mut rest, mut count) = (Vec::new(), Vec::new(), 0);
                for (axis, c) in coords.iter().enumerate() {
                    match c {
                        Coord::Index(e) => index.push(loops.simplify(e)),
                        Coord::Value(v) => {
                            index.push(Expr::from(gathered(count)));
                            rest.extend([Coord::Value(*v), Coord::Index(ty.dims[axis].clone())]);
                            count += 1;
                        }
                    }
                }
                let mut flat = vec![Coord::Index(loops.simplify(&ty.layout.address(&ty.dims, &index, ranges)))];
                flat.extend(rest);
                Ok(Some(out.load(Source::Input(*n), flat, dtype)))
            });
            out.set_result(result.ok()?);
            Some(out)
        };
        let address = |t: &TensorType| t.layout.address(&nest.dims, &nest::axes(nest.dims.len()), ranges);
        let (body, finish) = (flatten(&nest.body)?, flatten(&nest.finish)?);
        let store = output.map_or(Expr::default(), |t| loops.simplify(&address(t)));
        Some(FlatNest { axes, folds, combine: nest.combine, body, finish, store, dims: dims.clone() })
    }

    /// The loops, for what can be proved of expressions.
    pub fn loops(&self) -> Loops {
        loops(self.axes.iter().chain(&self.folds), &self.dims)
    }

    /// How many iterations the cost model counts on.
    pub fn guess(&self, axis: &Axis) -> i64 {
        let value = |s: &Symbol| Some(nominal(self.dims.get(s).copied().unwrap_or((0, i64::MAX))));
        axis.extent.eval(&value).unwrap_or(1).max(1)
    }

    /// Replaces symbols everywhere.
    pub fn substitute(&self, f: &dyn Fn(&Symbol) -> Option<Expr>) -> Option<FlatNest> {
        let loops = self.loops();
        let rewrite = |e: &Expr| loops.simplify(&e.substitute(f));
        Some(FlatNest {
            body: map_exprs(&self.body, &rewrite).ok()?,
            finish: map_exprs(&self.finish, &rewrite).ok()?,
            store: rewrite(&self.store),
            ..self.clone()
        })
    }

    /// Calls `f` with every expression: addresses, extents of gathers, index values, both sides of conditions, the store.
    pub fn for_each_expr(&self, f: &mut dyn FnMut(&Expr)) {
        for code in [&self.body, &self.finish] {
            for (_, node) in code.nodes() {
                match node {
                    Scalar::Load(_, coords) => coords.iter().for_each(|c| match c {
                        Coord::Index(e) => f(e),
                        Coord::Value(_) => {}
                    }),
                    Scalar::Index(e) => f(e),
                    Scalar::Guard(conditions, ..) => conditions.iter().for_each(|c| {
                        f(&c.left);
                        f(&c.right);
                    }),
                    Scalar::Arg(_)
                    | Scalar::Const(_)
                    | Scalar::Unary(..)
                    | Scalar::Binary(..)
                    | Scalar::Fma(..)
                    | Scalar::Select(..)
                    | Scalar::Cast(..) => {}
                }
            }
        }
        f(&self.store);
    }

    /// Without the fold, where the finish does not look at it: the border around what is folded elsewhere.
    #[must_use]
    pub fn without_unread_fold(self) -> FlatNest {
        let live = self.finish.live();
        let reads = self.finish.nodes().any(|(id, node)| live[id.index()] && matches!(node, Scalar::Arg(_)));
        if reads || self.folds.is_empty() {
            return self;
        }
        let finish = Code::identity(self.finish.result_type());
        FlatNest { folds: vec![], body: self.finish, finish, ..self }
    }

    /// The same fold to the least or the greatest of narrow integers, in lanes of 32 bits, which vectors have for every operation; nothing of
    /// other folds. What a fold of nothing gives is kept by a bound, which changes nothing else.
    pub fn in_words(&self) -> Option<FlatNest> {
        let narrow = self.body.result_type();
        if !matches!(narrow, DType::I8 | DType::U8 | DType::I16 | DType::U16) {
            return None;
        }
        let (low, high) = narrow.int_range()?;
        let bound = [(BinaryOp::Max, low), (BinaryOp::Min, high)].into_iter().find(|(op, _)| *op == self.combine)?.1;
        let mut body = self.body.clone();
        let wide = body.cast(DType::I32, body.result()).ok()?;
        body.set_result(wide);
        let mut finish = Code::new();
        let folded = finish.arg(0, DType::I32);
        let bound = finish.constant(Constant::int(DType::I32, i64::try_from(bound).ok()?));
        let within = finish.binary(self.combine, folded, bound).ok()?;
        let value = finish.cast(narrow, within).ok()?;
        let result = finish.inline(&self.finish, &mut |_, node, _| Ok(matches!(node, Scalar::Arg(0)).then_some(value)));
        finish.set_result(result.ok()?);
        Some(FlatNest { body, finish, ..self.clone() })
    }

    /// Removes loops of one iteration and joins neighbours that walk through memory as one: axis `p` outside `q` with
    /// `coefficient(p) = coefficient(q) * extent(q)` in every expression.
    #[must_use]
    pub fn collapse(self) -> FlatNest {
        let mut nest = self;
        let zero = |nest: &FlatNest, s: &Symbol| nest.substitute(&|x| (x == s).then(Expr::default));
        loop {
            let single = nest.axes.iter().chain(&nest.folds).find(|a| a.is_single()).map(|a| a.symbol.clone());
            if let Some(s) = single {
                let Some(mut next) = zero(&nest, &s) else { return nest };
                next.axes.retain(|a| a.symbol != s);
                next.folds.retain(|a| a.symbol != s);
                // A fold of a single element still folds once; without loops it is no fold, which `finish` does not mind.
                nest = next;
                continue;
            }
            let pairs = |axes: &[Axis]| -> Option<(usize, usize)> {
                // In the order of memory the inner of a pair need not follow the outer one in the nest.
                for p in 0..axes.len() {
                    for q in 0..axes.len() {
                        if p != q && joins(&nest, &axes[p], &axes[q]) {
                            return Some((p, q));
                        }
                    }
                }
                None
            };
            let (out, pair) = match (pairs(&nest.axes), pairs(&nest.folds)) {
                (Some(pair), _) => (true, pair),
                (None, Some(pair)) => (false, pair),
                (None, None) => return nest,
            };
            let list = if out { &nest.axes } else { &nest.folds };
            let (outer, inner) = (list[pair.0].clone(), list[pair.1].clone());
            let joined = Axis { symbol: inner.symbol.clone(), extent: outer.extent.mul(&inner.extent) };
            let mut widened = nest.clone();
            for list in [&mut widened.axes, &mut widened.folds] {
                list.iter_mut().filter(|a| a.symbol == joined.symbol).for_each(|a| a.extent = joined.extent.clone());
            }
            let Some(mut next) = zero(&widened, &outer.symbol) else { return nest };
            next.axes.retain(|a| a.symbol != outer.symbol);
            next.folds.retain(|a| a.symbol != outer.symbol);
            nest = next;
        }
    }

    /// Cuts folds along which floats change in equal runs only, scales of blocks, into the runs and their steps.
    #[must_use]
    pub fn in_blocks(self) -> FlatNest {
        let mut nest = self;
        let mut n = 0;
        while let Some(fold) = nest.folds.get(n).cloned() {
            n += 1;
            let Some((extent, block)) = fold.known().zip(nest.block(&fold.symbol)) else { continue };
            if block <= 1 || extent % block != 0 || extent == block {
                continue;
            }
            let runs =
                Axis { symbol: Symbol::new(&format!("{}_block", fold.symbol)), extent: Expr::from(extent / block) };
            let mut cut = nest.clone();
            cut.folds.insert(n - 1, runs.clone());
            cut.folds.iter_mut().filter(|f| f.symbol == fold.symbol).for_each(|f| f.extent = Expr::from(block));
            let at = Expr::from(&runs.symbol).scale(block).add(&Expr::from(&fold.symbol));
            if let Some(cut) = cut.substitute(&|s| (*s == fold.symbol).then(|| at.clone())) {
                nest = cut;
                n += 1;
            }
        }
        nest
    }

    /// Cuts an axis into runs of so many elements, which become an axis of their own around it; nothing where they do not divide it.
    pub fn in_runs(&self, axis: &Symbol, run: i64) -> Option<FlatNest> {
        let at = self.axes.iter().position(|a| a.symbol == *axis)?;
        let count = self.axes[at].known().filter(|extent| extent % run == 0)? / run;
        let runs = Axis { symbol: Symbol::new(&format!("{axis}_run")), extent: Expr::from(count) };
        let mut cut = self.clone();
        cut.axes[at].extent = Expr::from(run);
        let moved = Expr::from(&runs.symbol).scale(run).add(&Expr::from(axis));
        cut.axes.insert(at, runs);
        cut.substitute(&|s| (s == axis).then(|| moved.clone()))
    }

    /// Cuts an axis into two halves, which become an axis of their own around it, with its symbol; nothing where its extent is
    /// not known to be even.
    pub fn in_halves(&self, axis: &Symbol) -> Option<(FlatNest, Axis)> {
        let at = self.axes.iter().position(|a| a.symbol == *axis)?;
        let half = self.axes[at].known().filter(|extent| extent % 2 == 0)? / 2;
        let halves = Axis { symbol: Symbol::new(&format!("{axis}_half")), extent: Expr::from(2i64) };
        let mut cut = self.clone();
        cut.axes[at].extent = Expr::from(half);
        cut.axes.insert(at, halves.clone());
        let moved = Expr::from(&halves.symbol).scale(half).add(&Expr::from(axis));
        Some((cut.substitute(&|s| (s == axis).then(|| moved.clone()))?, halves))
    }

    /// The least run of a fold after which the address of a float changes, where it does so in runs.
    fn block(&self, fold: &Symbol) -> Option<i64> {
        let live = self.body.live();
        let loads = self.body.nodes().filter_map(|(id, node)| match node {
            Scalar::Load(Source::Input(_), coords) if live[id.index()] && !self.body.dtype(id).is_int() => {
                coords.first()
            }
            _ => None,
        });
        let runs = loads.filter_map(|c| match c {
            Coord::Index(e) => e.terms().find_map(|(atoms, _)| match atoms {
                [Atom::FloorDiv(x, by)] if x.as_symbol() == Some(fold) => by.as_const(),
                _ => None,
            }),
            Coord::Value(_) => None,
        });
        runs.min()
    }

    /// Cuts the result into boxes in which every condition on a single result axis holds everywhere or nowhere, and resolves
    /// those guards. Gives up (and returns the nest as it is) where that would make more than `most` boxes.
    pub fn boxes(self, most: usize) -> Vec<FlatNest> {
        let mut done = Vec::new();
        let mut open = vec![self.clone()];
        while let Some(nest) = open.pop() {
            if done.len() + open.len() >= most {
                return vec![self];
            }
            let nest = match resolve_guards(&nest) {
                Some(n) => n,
                None => return vec![self],
            };
            match cut(&nest) {
                Some((axis, at)) => {
                    for (lo, hi) in [(Expr::default(), at.clone()), (at.clone(), nest.axes[axis].extent.clone())] {
                        let mut part = nest.clone();
                        part.axes[axis].extent = hi.sub(&lo);
                        let symbol = part.axes[axis].symbol.clone();
                        let moved = Expr::from(&symbol).add(&lo);
                        match part.substitute(&|s| (*s == symbol).then(|| moved.clone())) {
                            Some(p) => open.push(p),
                            None => return vec![self],
                        }
                    }
                }
                None => done.push(nest),
            }
        }
        done.reverse();
        done
    }
}

fn loops<'a>(axes: impl Iterator<Item = &'a Axis>, dims: &Ranges) -> Loops {
    Loops::new(axes.map(|a| (a.symbol.clone(), a.extent.clone())).collect(), dims.clone())
}

fn joins(nest: &FlatNest, outer: &Axis, inner: &Axis) -> bool {
    let mut fine = true;
    nest.for_each_expr(&mut |e| {
        fine &= match (linear(e, &outer.symbol), linear(e, &inner.symbol)) {
            (Some((p, _)), Some((q, _))) => p == q.mul(&inner.extent),
            _ => false,
        };
    });
    // A condition may not change its truth within the joined loop; `left < right` is no address.
    let mut guarded = false;
    for code in [&nest.body, &nest.finish] {
        for (_, node) in code.nodes() {
            if let Scalar::Guard(conditions, ..) = node {
                guarded |= conditions.iter().any(|c| {
                    [&c.left, &c.right].iter().any(|e| e.mentions(&outer.symbol) || e.mentions(&inner.symbol))
                });
            }
        }
    }
    fine && !guarded
}

/// The axis and the value at which a condition changes its truth: the middle one of those of the first axis that has any.
fn cut(nest: &FlatNest) -> Option<(usize, Expr)> {
    let mut all = cuts(nest);
    let axis = all.first()?.0;
    let first = all.first().cloned();
    all.retain(|(n, at)| *n == axis && at.as_const().is_some());
    all.sort_by_key(|(_, at)| at.as_const());
    all.dedup();
    all.get(all.len().saturating_sub(1) / 2).cloned().or(first)
}

/// The axes and the values at which conditions change their truth.
fn cuts(nest: &FlatNest) -> Vec<(usize, Expr)> {
    let mut found = Vec::new();
    let loops = nest.loops();
    for code in [&nest.body, &nest.finish] {
        let live = code.live();
        for (id, node) in code.nodes() {
            let Scalar::Guard(conditions, ..) = node else { continue };
            if !live[id.index()] {
                continue;
            }
            for c in conditions {
                // left - right < 0, that is factor * i + rest < 0.
                let difference = c.left.sub(&c.right);
                for (n, axis) in nest.axes.iter().enumerate() {
                    let Some((factor, rest)) = linear(&difference, &axis.symbol) else { continue };
                    let Some(k) = factor.as_const().filter(|&k| k != 0) else { continue };
                    let mut over_dims = true;
                    rest.for_each_symbol(&mut |s| over_dims &= nest.dims.contains_key(s));
                    if !over_dims {
                        continue;
                    }
                    // k > 0: holds for i < ceil(-rest / k); k < 0: holds from floor(rest / -k) + 1 on.
                    let at = if k > 0 {
                        rest.scale(-1).ceil_div(&Expr::from(k))
                    } else {
                        rest.floor_div(&Expr::from(k.saturating_neg())).add(&Expr::from(1i64))
                    };
                    let left = axis.extent.sub(&at);
                    let somewhere = |e: &Expr| match e.as_const() {
                        Some(c) => c > 0,
                        None => loops.is_never_negative(e),
                    };
                    // A condition that stays after its axis was cut there would be cut for ever.
                    let decided = loops.is_never_negative(&difference) || loops.is_always_negative(&difference);
                    if !decided && somewhere(&at) && somewhere(&left) {
                        found.push((n, at));
                    }
                }
            }
        }
    }
    found
}

/// Replaces guards whose conditions the loops decide.
fn resolve_guards(nest: &FlatNest) -> Option<FlatNest> {
    let loops = nest.loops();
    let resolve = |code: &Code| {
        let mut out = Code::new();
        let result = out.inline(code, &mut |out, node, _| {
            let Scalar::Guard(conditions, then, other) = node else { return Ok(None) };
            let mut left = Vec::new();
            for c in conditions {
                let difference = c.left.sub(&c.right);
                if loops.is_never_negative(&difference) {
                    return Ok(Some(*other));
                }
                if !loops.is_always_negative(&difference) {
                    left.push(c.clone());
                }
            }
            Ok(Some(if left.is_empty() { *then } else { out.push(Scalar::Guard(left, *then, *other))? }))
        });
        out.set_result(result.ok()?);
        Some(out)
    };
    Some(FlatNest { body: resolve(&nest.body)?, finish: resolve(&nest.finish)?, ..nest.clone() })
}

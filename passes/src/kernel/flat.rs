//! Loop nests with linear addresses: a nest once layouts are known.
//!
//! Invariant: every load is `Load(source, [Index(address), (Value(v), Index(extent))*])`: an address in elements over the loop
//! symbols, in which the symbol `vK` stands for the K-th gathered index, to be checked against its extent.

use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::graph::TensorType;
use kiln_ir::nest::{self, Nest};
use kiln_ir::scalar::{BinaryOp, Code, Coord, Less, Scalar, Source, TypeError};

/// A loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Loop variable, from 0.
    pub symbol: Symbol,
    /// How many iterations.
    pub extent: i64,
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
    /// coordinates. Nothing where an extent is not constant.
    pub fn new(nest: &Nest, inputs: &[&TensorType], output: Option<&TensorType>) -> Option<FlatNest> {
        let ranges = nest.ranges(&Ranges::new());
        let loops = |extents: &[Expr], symbol: &dyn Fn(usize) -> Symbol| -> Option<Vec<Axis>> {
            extents.iter().enumerate().map(|(n, e)| Some(Axis { symbol: symbol(n), extent: e.as_const()? })).collect()
        };
        let flatten = |code: &Code| {
            let mut out = Code::new();
            let result = out.inline(code, &mut |out, node, dtype| {
                let Scalar::Load(Source::Input(n), coords) = node else { return Ok(None) };
                let ty = inputs.get(*n).ok_or_else(|| TypeError(format!("input {n} is missing")))?;
                let (mut index, mut rest, mut count) = (Vec::new(), Vec::new(), 0);
                for (axis, c) in coords.iter().enumerate() {
                    match c {
                        Coord::Index(e) => index.push(e.clone()),
                        Coord::Value(v) => {
                            index.push(Expr::from(gathered(count)));
                            rest.extend([Coord::Value(*v), Coord::Index(ty.dims[axis].clone())]);
                            count += 1;
                        }
                    }
                }
                let mut flat = vec![Coord::Index(ty.layout.address(&ty.dims, &index, &ranges))];
                flat.extend(rest);
                Ok(Some(out.load(Source::Input(*n), flat, dtype)))
            });
            out.set_result(result.ok()?);
            Some(out)
        };
        Some(FlatNest {
            axes: loops(&nest.dims, &nest::axis)?,
            folds: loops(&nest.folds, &nest::fold_axis)?,
            combine: nest.combine,
            body: flatten(&nest.body)?,
            finish: flatten(&nest.finish)?,
            store: output
                .map_or(Expr::default(), |t| t.layout.address(&nest.dims, &nest::axes(nest.dims.len()), &ranges)),
        })
    }

    /// Bounds of the loop symbols.
    pub fn ranges(&self) -> Ranges {
        self.axes.iter().chain(&self.folds).map(|a| (a.symbol.clone(), (0, (a.extent - 1).max(0)))).collect()
    }

    /// Replaces symbols everywhere.
    pub fn substitute(&self, f: &dyn Fn(&Symbol) -> Option<Expr>) -> Option<FlatNest> {
        let ranges = self.ranges();
        let rewrite = |e: &Expr| e.substitute(f).simplify(&ranges);
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
                    | Scalar::Select(..)
                    | Scalar::Cast(..) => {}
                }
            }
        }
        f(&self.store);
    }

    /// Removes loops of one iteration and joins neighbours that walk through memory as one: axis `p` outside `q` with
    /// `coefficient(p) = coefficient(q) * extent(q)` in every expression.
    #[must_use]
    pub fn collapse(self) -> FlatNest {
        let mut nest = self;
        let zero = |nest: &FlatNest, s: &Symbol| nest.substitute(&|x| (x == s).then(Expr::default));
        loop {
            let single = nest.axes.iter().chain(&nest.folds).find(|a| a.extent == 1).map(|a| a.symbol.clone());
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
            let joined = Axis { symbol: inner.symbol.clone(), extent: outer.extent * inner.extent };
            let mut widened = nest.clone();
            for list in [&mut widened.axes, &mut widened.folds] {
                list.iter_mut().filter(|a| a.symbol == joined.symbol).for_each(|a| a.extent = joined.extent);
            }
            let Some(mut next) = zero(&widened, &outer.symbol) else { return nest };
            next.axes.retain(|a| a.symbol != outer.symbol);
            next.folds.retain(|a| a.symbol != outer.symbol);
            nest = next;
        }
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
                    for (lo, hi) in [(0, at), (at, nest.axes[axis].extent)] {
                        let mut part = nest.clone();
                        part.axes[axis].extent = hi - lo;
                        let symbol = part.axes[axis].symbol.clone();
                        let moved = Expr::from(&symbol).add(&Expr::from(lo));
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

fn joins(nest: &FlatNest, outer: &Axis, inner: &Axis) -> bool {
    let mut fine = true;
    nest.for_each_expr(&mut |e| {
        fine &= match (e.coefficient(&outer.symbol), e.coefficient(&inner.symbol)) {
            (Some(p), Some(q)) => p == q.saturating_mul(inner.extent),
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

/// The axis and the value at which a condition changes its truth.
fn cut(nest: &FlatNest) -> Option<(usize, i64)> {
    for code in [&nest.body, &nest.finish] {
        let live = code.live();
        for (id, node) in code.nodes() {
            let Scalar::Guard(conditions, ..) = node else { continue };
            if !live[id.index()] {
                continue;
            }
            for c in conditions {
                // left - right < 0, that is coefficient * i + constant < 0.
                let difference = c.left.sub(&c.right);
                for (n, axis) in nest.axes.iter().enumerate() {
                    let Some(k) = difference.coefficient(&axis.symbol).filter(|&k| k != 0) else { continue };
                    let Some(constant) = difference.sub(&Expr::from(&axis.symbol).scale(k)).as_const() else {
                        continue;
                    };
                    // k > 0: holds for i < ceil(-constant / k); k < 0: holds from floor(constant / -k) + 1 on.
                    let at = if k > 0 {
                        (-constant).div_euclid(k) + i64::from((-constant).rem_euclid(k) != 0)
                    } else {
                        constant.div_euclid(-k) + 1
                    };
                    if 0 < at && at < axis.extent {
                        return Some((n, at));
                    }
                }
            }
        }
    }
    None
}

/// Replaces guards whose conditions the loop bounds decide.
fn resolve_guards(nest: &FlatNest) -> Option<FlatNest> {
    let ranges = nest.ranges();
    let resolve = |code: &Code| {
        let mut out = Code::new();
        let result = out.inline(code, &mut |out, node, _| {
            let Scalar::Guard(conditions, then, other) = node else { return Ok(None) };
            let mut left = Vec::new();
            for c in conditions {
                let (lo, hi) = c.left.sub(&c.right).bounds(&ranges);
                if lo >= 0 {
                    return Ok(Some(*other));
                }
                if hi >= 0 {
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

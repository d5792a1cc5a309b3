//! Structural steps: what moves elements, folds them or looks them up, and host ops.

use super::{Build, Facts, Grown, Kind, MAX_WORK, No};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{
    Attributes, Broadcast, Concat, Contract, Conv, Elements, Gather, GatherElements, GatherNd, Host, Iota, Norm,
    NormKind, Pad, Pool, Reduce, Reshape, Slice, Softmax, Transpose,
};
use kiln_ir::{BinaryOp, Class, Constant, DType, Expr};

impl Build {
    pub(super) fn structural(&mut self) -> Result<(), No> {
        let (x, f) = self.any();
        let done = match self.random.below(20) {
            0 | 1 => self.transpose(x, f),
            2 | 3 => self.reshape(x, f),
            4 => self.broadcast(x, f),
            5 | 6 => self.slice(x, f),
            7 => self.concat(x, f),
            8 => self.pad(x, f),
            9 => self.gather(x, f),
            10 => self.gather_elements(x, f),
            11 => self.gather_nd(x, f),
            12 => self.iota(),
            13 | 14 => self.reduce(x, f),
            15 => self.contract(x, f),
            16 => self.conv(x, f),
            17 => self.pool(x, f),
            18 => self.normalise(x, f),
            _ => self.host(x, f),
        };
        done.map(|_| ())
    }

    fn is_float(&self, x: ValueId) -> bool {
        matches!(self.graph.ty(x).dtype.class(), Class::Float | Class::Double)
    }

    fn axis(&mut self, x: ValueId) -> Result<usize, No> {
        let rank = self.graph.ty(x).rank();
        if rank == 0 { Err(No) } else { Ok(self.random.below(rank)) }
    }

    pub(super) fn transpose(&mut self, x: ValueId, f: Facts) -> Grown {
        let rank = self.graph.ty(x).rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        for i in (1..rank).rev() {
            perm.swap(i, self.random.below(i + 1));
        }
        self.add(Transpose { perm }, &[x], f)
    }

    fn reshape(&mut self, x: ValueId, f: Facts) -> Grown {
        let mut dims = self.ty(x).dims;
        for _ in 0..1 + self.random.below(2) {
            let at = self.random.below(dims.len() + 1);
            match self.random.below(3) {
                0 => dims.insert(at, Expr::from(1i64)),
                1 if at + 1 < dims.len() => {
                    let next = dims.remove(at + 1);
                    dims[at] = dims[at].mul(&next);
                }
                _ if at < dims.len() => {
                    let Some(d) = dims[at].as_const() else { continue };
                    if let Some(part) = [2, 3, 4, 5, 7, 8].into_iter().find(|p| d % p == 0 && d > 0) {
                        dims[at] = Expr::from(d / part);
                        dims.insert(at + self.random.below(2), Expr::from(part));
                    }
                }
                _ => {}
            }
        }
        self.add(Reshape { dims }, &[x], f)
    }

    fn broadcast(&mut self, x: ValueId, f: Facts) -> Grown {
        let mut dims = self.ty(x).dims;
        for d in &mut dims {
            if d.as_const() == Some(1) {
                *d = self.extent();
            }
        }
        if self.random.chance(50) {
            dims.insert(0, self.extent());
        }
        self.add(Broadcast { dims }, &[x], f)
    }

    fn slice(&mut self, x: ValueId, f: Facts) -> Grown {
        let from = self.ty(x).dims;
        let (mut starts, mut steps, mut dims) = (vec![], vec![], vec![]);
        for d in from {
            let (least, one) = (self.least(&d), Expr::from(1i64));
            let step = *self.random.pick(&[1, 1, 1, 2, 3, -1, -2]);
            let (start, step, dim) = if self.random.chance(45) {
                (Expr::default(), 1, d)
            } else if let Some(d) = d.as_const() {
                let start = self.random.below(d.max(1) as usize) as i64;
                let room = if step > 0 { (d - 1 - start) / step + 1 } else { start / -step + 1 };
                let count = if d == 0 { 0 } else { self.random.below(room as usize + 1) as i64 };
                (Expr::from(start), step, Expr::from(count))
            } else {
                // The axis but for some elements at an end, or from its end.
                let off = self.random.below(least.clamp(0, 3) as usize + 1) as i64;
                match self.random.below(3) {
                    0 => (Expr::from(off), 1, d.sub(&Expr::from(off))),
                    1 => (Expr::default(), 1, d.sub(&Expr::from(off))),
                    _ if least >= 1 => (d.sub(&one), -1, d),
                    _ => return Err(No),
                }
            };
            starts.push(start);
            steps.push(step);
            dims.push(dim);
        }
        self.add(Slice { starts, steps, dims }, &[x], Facts { below: None, ..f })
    }

    fn concat(&mut self, x: ValueId, f: Facts) -> Grown {
        let axis = self.axis(x)?;
        let ty = self.ty(x);
        let (mut parts, mut facts) = (vec![x], f);
        for _ in 0..1 + self.random.below(3) {
            let fits = |b: &Build, v: ValueId| {
                let t = b.graph.ty(v);
                let same = |(n, (a, b)): (usize, (&Expr, &Expr))| n == axis || a == b;
                t.dtype == ty.dtype && t.rank() == ty.rank() && t.dims.iter().zip(&ty.dims).enumerate().all(same)
            };
            let known: Vec<_> = self.values.iter().filter(|(v, _)| fits(self, *v)).copied().collect();
            let (part, other) = if self.random.chance(60) {
                *self.random.pick(&known)
            } else {
                let mut dims = ty.dims.clone();
                dims[axis] = self.extent();
                self.leaf(ty.dtype, &dims)
            };
            parts.insert(self.random.below(parts.len() + 1), part);
            facts = Facts::either(facts, other);
        }
        self.add(Concat { axis }, &parts, facts)
    }

    fn pad(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        let mut amounts = |chance: usize, most: usize| -> Vec<usize> {
            (0..ty.rank()).map(|_| if self.random.chance(chance) { self.random.below(most) } else { 0 }).collect()
        };
        let (low, high, interior) = (amounts(40, 4), amounts(40, 4), amounts(12, 3));
        let value = *self.random.pick(&[0, 0, 1, 2]);
        let value = Constant::int(ty.dtype, if ty.dtype == DType::Bool { value.min(1) } else { value });
        let grid = f.grid.map(|g| g.max(0));
        let facts = Facts { bound: f.bound.max(2.0), grid, below: None, ..f };
        self.add(Pad { low, high, interior, value }, &[x], facts)
    }

    /// Indices of an axis, as an input or a constant.
    fn indices(&mut self, dims: &[Expr], extent: i64) -> Result<ValueId, No> {
        if extent < 1 {
            return Err(No);
        }
        let fits = |(v, f): &&(ValueId, Facts)| {
            self.graph.ty(*v).dims == dims && f.below.is_some_and(|n| n == extent) && self.graph.ty(*v).dtype.is_int()
        };
        if let Some((v, _)) = self.values.iter().find(fits) {
            return Ok(*v);
        }
        let dtype = *self.random.pick(&[DType::I64, DType::I32, DType::I64, DType::I8]);
        if dtype == DType::I8 && extent > 100 {
            return Err(No);
        }
        Ok(self.leaf_of(dtype, dims, Kind::Index(extent)).0)
    }

    fn gather(&mut self, x: ValueId, f: Facts) -> Grown {
        let axis = self.axis(x)?;
        let least = self.least(&self.ty(x).dims[axis]);
        let rank = *self.random.pick(&[0, 1, 1, 2]);
        let dims: Vec<Expr> = (0..rank).map(|_| self.extent()).collect();
        let indices = self.indices(&dims, least)?;
        self.add(Gather { axis }, &[x, indices], f)
    }

    fn gather_elements(&mut self, x: ValueId, f: Facts) -> Grown {
        let axis = self.axis(x)?;
        let mut dims = self.ty(x).dims;
        let least = self.least(&dims[axis]);
        dims[axis] = self.extent();
        let indices = self.indices(&dims, least)?;
        self.add(GatherElements { axis }, &[x, indices], f)
    }

    fn gather_nd(&mut self, x: ValueId, f: Facts) -> Grown {
        let dims = self.ty(x).dims;
        if dims.is_empty() {
            return Err(No);
        }
        let k = 1 + self.random.below(dims.len().min(3));
        let least = dims[..k].iter().map(|d| self.least(d)).min().ok_or(No)?;
        let shape = [self.extent(), Expr::from(k)];
        let indices = self.indices(&shape, least)?;
        self.add(GatherNd { batch: 0 }, &[x, indices], f)
    }

    fn iota(&mut self) -> Grown {
        let dims = self.shape();
        if dims.is_empty() {
            return Err(No);
        }
        let axis = self.random.below(dims.len());
        let most = self.most(&dims[axis]) as f64;
        self.add(Iota { dims, axis }, &[], Facts::exact(most, 0))
    }

    /// Facts of a sum of `count` products or elements.
    fn sum(&self, dtype: DType, count: i64, bound: f64, error: f64, grid: Option<i32>) -> Facts {
        let count = count.max(1) as f64;
        if dtype.is_float() {
            let once = Facts::float(dtype, bound, error, grid);
            let all = Facts::float(dtype, bound * count, 0.0, grid);
            if once.is_exact() && all.is_exact() && all.grid.is_some() {
                return all;
            }
            // Sums of narrow floats may be rounded at every step, or once.
            Facts { error: once.error * count + all.error * 4.0, ..all }
        } else {
            Facts::int(dtype, bound * count)
        }
    }

    fn reduce(&mut self, x: ValueId, f: Facts) -> Grown {
        use BinaryOp::*;
        let ty = self.ty(x);
        let axes: Vec<usize> = (0..ty.rank()).filter(|_| self.random.chance(45)).collect();
        let combine = match ty.dtype.class() {
            Class::Bool => *self.random.pick(&[And, Or, Min, Max]),
            Class::Signed | Class::Unsigned => *self.random.pick(&[Add, Mul, Min, Max, And, Or]),
            _ => *self.random.pick(&[Add, Add, Add, Min, Max]),
        };
        let count = axes.iter().fold(1i64, |n, &a| n.saturating_mul(self.most(&ty.dims[a])));
        let empty = axes.iter().any(|&a| self.least(&ty.dims[a]) <= 0);
        let facts = match combine {
            Add if f.special => return Err(No),
            Add => self.sum(ty.dtype, count, f.bound, f.error, f.grid),
            Min | Max if ty.dtype.is_float() => Facts { special: f.special || empty, below: None, ..f },
            Min | Max if !empty => Facts { below: None, ..f },
            _ if ty.dtype == DType::Bool => f,
            _ => Facts::integers(f64::INFINITY),
        };
        if facts.special && !facts.is_exact() {
            return Err(No);
        }
        let keep = self.random.chance(50);
        self.add(Reduce { combine, axes, keep }, &[x], facts)
    }

    pub(super) fn contract(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        if f.special || ty.dtype == DType::Bool || !(ty.dtype.is_float() || ty.dtype.is_int()) {
            return Err(No);
        }
        let forms: &[(&str, &str, &str)] = match ty.rank() {
            1 => &[("k", "k", ""), ("k", "kn", "n"), ("m", "n", "mn")],
            2 => &[("mk", "kn", "mn"), ("mk", "nk", "mn"), ("km", "kn", "mn"), ("mk", "k", "m"), ("mk", "bkn", "bmn")],
            3 => &[("bmk", "bkn", "bmn"), ("bmk", "kn", "bmn"), ("bmk", "bnk", "bmn"), ("bkm", "nk", "nbm")],
            4 => {
                &[("bhmk", "bhkn", "bhmn"), ("bhmk", "bhnk", "bhmn"), ("bmhk", "bnhk", "bhmn"), ("bhmk", "kn", "bhmn")]
            }
            _ => return Err(No),
        };
        let &(lhs, rhs, out) = self.random.pick(forms);
        let mut new: Vec<(char, Expr)> = vec![];
        let mut dims = vec![];
        for c in rhs.chars() {
            let known = lhs.find(c).map(|at| ty.dims[at].clone());
            let known = known.or_else(|| new.iter().find(|(n, _)| *n == c).map(|(_, e)| e.clone()));
            let dim = known.unwrap_or_else(|| self.extent());
            new.push((c, dim.clone()));
            dims.push(dim);
        }
        let count: i64 = Contract::new(lhs, rhs, out).summed().chars().fold(1, |n, c| {
            let at = lhs.find(c).map(|at| &ty.dims[at]).or_else(|| rhs.find(c).map(|at| &dims[at]));
            n * at.map_or(1, |d| self.most(d))
        });
        let letters = |e: &str| e.chars().filter(|c| out.contains(*c)).count();
        let work = self.size(&ty.dims).saturating_mul(
            dims.iter()
                .zip(rhs.chars())
                .fold(1i64, |n, (d, c)| if lhs.contains(c) { n } else { n.saturating_mul(self.most(d)) }),
        );
        if work > MAX_WORK || self.size(&dims) > super::MAX_ELEMENTS * 2 || letters(out) != out.len() {
            return Err(No);
        }
        let (y, g) = self.operand(ty.dtype, &dims);
        if self.ty(y).dims != dims || g.special {
            return Err(No);
        }
        let error = f.error * g.bound + g.error * f.bound;
        let grid = f.grid.zip(g.grid).map(|(a, b)| a + b);
        let facts = self.sum(ty.dtype, count, f.bound * g.bound, error, grid);
        if self.random.chance(20) && lhs == rhs.replace(['n'], "m") {
            return Err(No);
        }
        self.add(Contract::new(lhs, rhs, out), &[x, y], facts)
    }

    fn conv(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        let spatial = ty.rank().wrapping_sub(2);
        if !(1..=2).contains(&spatial) || f.special || ty.dtype == DType::Bool || ty.dims[1].as_const().is_none() {
            return Err(No);
        }
        let channels = ty.dims[1].as_const().unwrap_or(1);
        if channels < 1 {
            return Err(No);
        }
        let groups = if self.random.chance(40) { channels } else { 1 };
        let out = if groups == 1 { *self.random.pick(&[1, 3, 8, 16, 17]) } else { groups };
        let windows: Vec<i64> = (0..spatial)
            .map(|n| 1 + self.random.below(self.least(&ty.dims[n + 2]).clamp(1, 3) as usize) as i64)
            .collect();
        let strides: Vec<usize> = (0..spatial).map(|_| 1 + self.random.below(2)).collect();
        let mut dims = vec![Expr::from(out), Expr::from(channels / groups)];
        dims.extend(windows.iter().map(|&w| Expr::from(w)));
        let count = channels / groups * windows.iter().product::<i64>();
        if self.size(&ty.dims).saturating_mul(out * windows.iter().product::<i64>()) > MAX_WORK * 2 {
            return Err(No);
        }
        let kind = Kind::any(ty.dtype, &mut self.random);
        let (w, g) = self.leaf_of(ty.dtype, &dims, if kind == Kind::Special { Kind::Small } else { kind });
        let error = f.error * g.bound + g.error * f.bound;
        let grid = f.grid.zip(g.grid).map(|(a, b)| a + b);
        let facts = self.sum(ty.dtype, count, f.bound * g.bound, error, grid);
        let dilations = vec![1; spatial];
        self.add(Conv { strides, dilations, groups: groups as usize, elements: Elements::Numbers }, &[x, w], facts)
    }

    fn pool(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        let spatial = ty.rank().wrapping_sub(2);
        if !(1..=2).contains(&spatial) || ty.dtype == DType::Bool {
            return Err(No);
        }
        let combine = *self.random.pick(&[BinaryOp::Max, BinaryOp::Min, BinaryOp::Add]);
        if f.special && combine == BinaryOp::Add {
            return Err(No);
        }
        let window: Vec<usize> =
            (0..spatial).map(|n| 1 + self.random.below(self.least(&ty.dims[n + 2]).clamp(1, 3) as usize)).collect();
        let strides: Vec<usize> = (0..spatial).map(|_| 1 + self.random.below(3)).collect();
        let count = window.iter().product::<usize>() as i64;
        let facts = match combine {
            BinaryOp::Add => self.sum(ty.dtype, count, f.bound, f.error, f.grid),
            _ => Facts { below: None, ..f },
        };
        self.add(Pool { combine, window, strides, dilations: vec![1; spatial] }, &[x], facts)
    }

    pub(super) fn normalise(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        if !self.is_float(x) || f.special || ty.rank() == 0 {
            return Err(No);
        }
        if self.random.chance(50) {
            let (axis, log) = (self.random.below(ty.rank()), self.random.chance(25));
            let bound = if log { 2.0 * f.bound + 9.0 } else { 1.0 };
            return self.add(Softmax { axis, log }, &[x], Facts::float(ty.dtype, bound, 3.0 * f.error, None));
        }
        // The variance is at least about 1/16, so that what is normalized does not grow.
        let kind = *self.random.pick(&[NormKind::Layer, NormKind::Rms]);
        let (axes, epsilon) = (1 + self.random.below(ty.rank()), Constant::float(ty.dtype, 0.0625));
        let facts = Facts::float(ty.dtype, 4.0 * f.bound.max(1.0), 40.0 * f.error * f.bound.max(1.0), None);
        let facts = Facts { error: facts.error * 4.0, ..facts };
        self.add(Norm { kind, axes, epsilon }, &[x], facts)
    }

    fn host(&mut self, x: ValueId, f: Facts) -> Grown {
        let axis = self.axis(x)?;
        let ty = self.ty(x);
        let least = self.least(&ty.dims[axis]);
        if ty.dtype == DType::Bool || self.graph.symbols.keys().any(|s| ty.dims[axis].mentions(s)) {
            return Err(No);
        }
        if f.is_exact() && least >= 1 && self.random.chance(60) {
            let (keep, max, last) = (self.random.chance(50), self.random.chance(50), self.random.chance(50));
            let attributes =
                Attributes::new().with("axis", axis).with("keep", keep).with("max", max).with("last", last);
            let facts = Facts { below: Some(least), ..Facts::exact(least as f64, 0) };
            return self.add(Host::new("arg_reduce", attributes)?, &[x], facts);
        }
        if f.special {
            return Err(No);
        }
        let (exclusive, reverse) = (self.random.chance(50), self.random.chance(50));
        let attributes = Attributes::new().with("axis", axis).with("combine", "add");
        let attributes = attributes.with("exclusive", exclusive).with("reverse", reverse);
        let facts = self.sum(ty.dtype, self.most(&ty.dims[axis]), f.bound, f.error, f.grid);
        self.add(Host::new("cumulate", attributes)?, &[x], facts)
    }
}

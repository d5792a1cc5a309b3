//! Patterns that exporters write and that fuse: products with epilogues, attention, normalization with scale and bias, unpacked
//! weights, residual paths.

use super::elementwise::body;
use super::{Build, Facts, Grown, Kind, No};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{BlockProduct, Concat, Contract, Gather, Iota, Pack, Slice, Softmax, Transpose};
use kiln_ir::{BinaryOp, Constant, DType, Expr, UnaryOp};

impl Build {
    pub(super) fn pattern(&mut self) -> Result<(), No> {
        let done = match self.random.below(8) {
            0 | 1 => self.epilogue(),
            2 => self.attention(),
            3 => self.scaled_norm(),
            4 => self.unpacked(),
            5 => self.embedding(),
            6 => self.blocks(),
            _ => self.rotated(),
        };
        done.map(|_| ())
    }

    fn binary(&mut self, op: BinaryOp, (x, f): (ValueId, Facts), (y, g): (ValueId, Facts)) -> Grown {
        let dtype = self.ty(x).dtype;
        let grid = f.grid.zip(g.grid);
        let facts = match op {
            BinaryOp::Mul => {
                let error = f.error * g.bound + g.error * f.bound;
                Facts::float(dtype, f.bound * g.bound, error, grid.map(|(a, b)| a + b))
            }
            _ => Facts::float(dtype, f.bound + g.bound, f.error + g.error, grid.map(|(a, b)| a.max(b))),
        };
        let map = body(&[dtype, dtype], |c, a| c.binary(op, a[0], a[1]))?;
        self.add(map, &[x, y], facts)
    }

    fn plain(&mut self, dtype: DType, dims: &[Expr]) -> (ValueId, Facts) {
        let kind = *self.random.pick(&[Kind::Small, Kind::Plain]);
        self.leaf_of(dtype, dims, kind)
    }

    /// A float value with at least one axis, an existing or a new one.
    fn rows(&mut self) -> Result<(ValueId, Facts), No> {
        if let Some((v, f)) = self.any_of(DType::F32)
            && !f.special
            && self.graph.ty(v).rank() > 0
            && self.random.chance(70)
        {
            return Ok((v, f));
        }
        let mut dims = self.shape();
        if dims.is_empty() {
            dims.push(self.extent());
        }
        Ok(self.plain(DType::F32, &dims))
    }

    /// A product, bias, an activation, and maybe the path around it.
    fn epilogue(&mut self) -> Grown {
        let (x, f) = self.rows()?;
        let (y, g) = self.contract(x, f)?;
        let dims = self.ty(y).dims;
        let Some(last) = dims.last().cloned() else { return Ok((y, g)) };
        let bias = self.plain(DType::F32, &[last]);
        let (z, h) = self.binary(BinaryOp::Add, (y, g), bias)?;
        let zero = |c: &mut kiln_ir::Code| c.float(DType::F32, 0.0);
        let (z, h) = match self.random.below(3) {
            0 => {
                let map = body(&[DType::F32], |c, a| {
                    let zero = zero(c);
                    c.binary(BinaryOp::Max, a[0], zero)
                })?;
                self.add(map, &[z], Facts { below: None, ..h })?
            }
            1 => {
                let map = body(&[DType::F32], |c, a| {
                    let gate = c.unary(UnaryOp::Sigmoid, a[0])?;
                    c.binary(BinaryOp::Mul, a[0], gate)
                })?;
                self.add(map, &[z], Facts::float(DType::F32, h.bound, 1.2 * h.error, None))?
            }
            _ => (z, h),
        };
        if self.ty(x).dims == self.ty(z).dims && self.random.chance(60) {
            return self.binary(BinaryOp::Add, (z, h), (x, f));
        }
        Ok((z, h))
    }

    fn attention(&mut self) -> Grown {
        let (heads, queries, keys) = (self.extent(), self.extent(), self.extent());
        let size = Expr::from(*self.random.pick(&[4i64, 8, 16, 20]));
        if self.size(&[heads.clone(), queries.clone(), keys.clone(), size.clone()]) > super::MAX_WORK {
            return Err(No);
        }
        let of = |d: &Expr| [heads.clone(), d.clone(), size.clone()];
        let (q, fq) = self.plain(DType::F32, &of(&queries));
        let (k, fk) = self.plain(DType::F32, &of(&keys));
        let (v, fv) = self.plain(DType::F32, &of(&keys));
        let n = self.most(&size) as f64;
        let product = Facts::float(DType::F32, fq.bound * fk.bound * n, 0.0, None);
        let (scores, f) = if self.random.chance(50) {
            let (k, _) = self.add(Transpose { perm: vec![0, 2, 1] }, &[k], fk)?;
            self.add(Contract::new("hqd", "hdk", "hqk"), &[q, k], product)?
        } else {
            self.add(Contract::new("hqd", "hkd", "hqk"), &[q, k], product)?
        };
        let scale = body(&[DType::F32], |c, a| {
            let by = c.float(DType::F32, 0.25);
            c.binary(BinaryOp::Mul, a[0], by)
        })?;
        let (mut scores, mut f) = self.add(scale, &[scores], Facts { bound: f.bound / 4.0, ..f })?;
        if self.random.chance(50) {
            let by_numbers = self.random.chance(50);
            let (mask, hidden) = if by_numbers {
                (self.later_keys(&queries, &keys)?, -1e9)
            } else {
                (self.leaf_of(DType::Bool, &[queries.clone(), keys.clone()], Kind::Small).0, -1e4)
            };
            let map = body(&[DType::Bool, DType::F32], |c, a| {
                let out = c.float(DType::F32, hidden);
                c.select(a[0], a[1], out)
            })?;
            (scores, f) = self.add(map, &[mask, scores], Facts { bound: -hidden, ..f })?;
        }
        let weights = Facts::float(DType::F32, 1.0, 3.0 * f.error, None);
        let (weights, f) = self.add(Softmax { axis: 2, log: false }, &[scores], weights)?;
        let most = self.most(&keys).max(1) as f64;
        let facts = Facts::float(DType::F32, fv.bound, fv.bound * f.error * most, None);
        self.add(Contract::new("hqk", "hkd", "hqd"), &[weights, v], facts)
    }

    /// Which keys queries see by their numbers, `[queries, keys]`: none that is later by more than a number, nor perhaps those before a window.
    fn later_keys(&mut self, queries: &Expr, keys: &Expr) -> Result<ValueId, No> {
        let int = Facts::exact(self.most(queries).max(self.most(keys)) as f64, 0);
        let truth = Facts::exact(1.0, 0);
        let one = Expr::from(1i64);
        let (row, _) = self.add(Iota { dims: vec![queries.clone(), one], axis: 0 }, &[], int)?;
        let (key, _) = self.add(Iota { dims: vec![keys.clone()], axis: 0 }, &[], int)?;
        let past = *self.random.pick(&[0i64, 0, 1, 7, 200]);
        let window = self.random.chance(30).then(|| *self.random.pick(&[1i64, 5, 40]));
        let sees = body(&[DType::I64, DType::I64], |c, a| {
            let past = c.constant(Constant::int(DType::I64, past));
            let place = c.binary(BinaryOp::Add, a[0], past)?;
            let sees = c.binary(BinaryOp::Le, a[1], place)?;
            let Some(window) = window else { return Ok(sees) };
            let window = c.constant(Constant::int(DType::I64, window));
            let before = c.binary(BinaryOp::Sub, place, a[1])?;
            let near = c.binary(BinaryOp::Lt, before, window)?;
            c.binary(BinaryOp::And, near, sees)
        })?;
        Ok(self.add(sees, &[row, key], truth)?.0)
    }

    fn scaled_norm(&mut self) -> Grown {
        let (x, f) = self.rows()?;
        let (y, g) = self.normalise(x, f)?;
        let Some(last) = self.ty(y).dims.last().cloned() else { return Err(No) };
        let (scale, bias) = (self.plain(DType::F32, std::slice::from_ref(&last)), self.plain(DType::F32, &[last]));
        let z = self.binary(BinaryOp::Mul, (y, g), scale)?;
        self.binary(BinaryOp::Add, z, bias)
    }

    /// A product of rows of floats or bytes with a weight of few bits, in blocks that have scales.
    fn blocks(&mut self) -> Grown {
        let mut rows = self.shape();
        rows.truncate(2);
        let halves = self.random.chance(50);
        let blocks = Expr::from(*self.random.pick(&[1i64, 2, 3, 6]));
        let bytes = Expr::from(*self.random.pick(&[4i64, 8, 16, 32]));
        let columns = Expr::from(*self.random.pick(&[1i64, 5, 16, 32, 49, 96]));
        let numbers = if halves { bytes.scale(2) } else { bytes.clone() };
        let of_rows: Vec<Expr> = rows.iter().cloned().chain([blocks.clone()]).collect();
        let of_columns = vec![columns.clone(), blocks];
        let with = |dims: &[Expr], last: &Expr| dims.iter().cloned().chain([last.clone()]).collect::<Vec<Expr>>();
        let (x_dims, w_dims) = (with(&of_rows, &numbers), with(&of_columns, &bytes));
        let work = self.size(&x_dims).saturating_mul(self.most(&columns));
        if work > super::MAX_WORK || self.size(&w_dims) > 2 * super::MAX_ELEMENTS {
            return Err(No);
        }
        let words = Facts::integers(f64::INFINITY);
        let of_number = *self.random.pick(&[0usize, 1, 3]);
        let (x, each) = match of_number {
            0 => {
                let (x, f) = self.plain(DType::F32, &x_dims);
                (vec![x], (f.bound, 0.0))
            }
            _ => {
                let digits = (of_number > 1).then(|| Expr::from(of_number));
                let of_digits: Vec<Expr> = rows.iter().cloned().chain(digits).chain([of_columns[1].clone()]).collect();
                let (x, _) = self.leaf_of(DType::I8, &with(&of_digits, &numbers), Kind::Plain);
                let (x, _) = self.add(Pack { axis: of_digits.len() }, &[x], words)?;
                let [(by, f), (sum, g)] = [0; 2].map(|_| self.plain(DType::F32, &of_rows));
                // A number is at most a byte and the next one's share of it more.
                (vec![x, by, sum], (129.0 * f.bound, g.bound))
            }
        };
        let (w, _) = self.leaf_of(DType::U8, &w_dims, Kind::Plain);
        let (w, _) = self.add(Pack { axis: 2 }, &[w], words)?;
        let precision = *self.random.pick(&[DType::F32, DType::F16]);
        let [(scale, h), (least, i)] = [0; 2].map(|_| self.plain(precision, &of_columns));
        let (of_x, of_sum) = each;
        let numbers = self.most(&numbers) as f64;
        let most = if halves { 15.0 } else { 255.0 };
        let count = of_columns.last().map_or(1, |d| self.most(d)) as f64;
        let zero = *self.random.pick(&[None, Some(0u8), Some(8), Some(128)]);
        let least_bound = zero.map_or(i.bound, |zero| f64::from(zero) * h.bound);
        // The sum of a block is an operand, where rows are bytes; else each number has its own part of it.
        let moved = if of_number == 0 { numbers * of_x } else { of_sum } * least_bound;
        let bound = (numbers * of_x * most * h.bound + moved) * count;
        // Terms of both signs may leave little of what was rounded.
        let facts = Facts { grid: None, ..Facts::float(DType::F32, bound, 6e-7 * bound, None) };
        let least = zero.is_none().then_some(least);
        let operands: Vec<ValueId> = x.into_iter().chain([w, scale]).chain(least).collect();
        self.add(BlockProduct { bytes: of_number, halves, zero }, &operands, facts)
    }

    /// A weight of whole numbers, unpacked with zero point and scale, in a product.
    fn unpacked(&mut self) -> Grown {
        let (x, f) = self.rows()?;
        let ty = self.ty(x);
        let Some(k) = ty.dims.last().cloned() else { return Err(No) };
        let n = Expr::from(*self.random.pick(&[1i64, 8, 17, 32]));
        if ty.rank() > 3 || k.as_const().is_none() || self.size(&ty.dims) * self.most(&n) > super::MAX_WORK {
            return Err(No);
        }
        let dtype = *self.random.pick(&[DType::I8, DType::U8]);
        let (w, _) = self.leaf_of(dtype, &[k.clone(), n.clone()], Kind::Small);
        let unpack = body(&[dtype], |c, a| {
            let (wide, zero) = (c.cast(DType::F32, a[0])?, c.float(DType::F32, 1.0));
            c.binary(BinaryOp::Sub, wide, zero)
        })?;
        let (w, g) = self.add(unpack, &[w], Facts::exact(4.0, 0))?;
        let scale = self.plain(DType::F32, &[n]);
        let (w, g) = self.binary(BinaryOp::Mul, (w, g), scale)?;
        let lhs = &"abck"[4 - ty.rank()..];
        let out = lhs.replace('k', "n");
        let count = self.most(&k).max(1) as f64;
        let grid = f.grid.zip(g.grid).map(|(a, b)| a + b);
        let error = (f.error * g.bound + g.error * f.bound + 6e-7 * f.bound * g.bound) * count;
        let all = Facts::float(DType::F32, f.bound * g.bound * count, 0.0, grid);
        let facts = if f.is_exact() && g.is_exact() && all.is_exact() && all.grid.is_some() {
            all
        } else {
            Facts { error: all.error + error, grid: None, ..all }
        };
        self.add(Contract::new(lhs, "kn", &out), &[x, w], facts)
    }

    fn embedding(&mut self) -> Grown {
        let rows = 1 + self.random.below(40) as i64;
        let width = self.extent();
        let (table, f) = self.plain(DType::F32, &[Expr::from(rows), width.clone()]);
        let dims = [self.extent()];
        let (tokens, _) = self.leaf_of(DType::I64, &dims, Kind::Index(rows));
        let x = self.add(Gather { axis: 0 }, &[table, tokens], f)?;
        let position = self.plain(DType::F32, &[dims[0].clone(), width]);
        self.binary(BinaryOp::Add, x, position)
    }

    /// The halves of the last axis, one negated, joined the other way round, times a table, plus what was there: rotary positions.
    fn rotated(&mut self) -> Grown {
        let (x, f) = self.rows()?;
        let dims = self.ty(x).dims;
        let rank = dims.len();
        let half = dims.last().and_then(Expr::as_const).filter(|d| d % 2 == 0 && *d > 0).ok_or(No)? / 2;
        let mut part = |at: i64| {
            let mut starts = vec![Expr::default(); rank];
            starts[rank - 1] = Expr::from(at);
            let mut dims = dims.clone();
            dims[rank - 1] = Expr::from(half);
            self.add(Slice { starts, steps: vec![1; rank], dims }, &[x], f)
        };
        let (left, right) = (part(0)?, part(half)?);
        let negated = body(&[DType::F32], |c, a| c.unary(UnaryOp::Neg, a[0]))?;
        let (right, _) = self.add(negated, &[right.0], f)?;
        let turned = self.add(Concat { axis: rank - 1 }, &[right, left.0], f)?;
        let last = dims[rank - 1].clone();
        let (sine, cosine) = (self.plain(DType::F32, std::slice::from_ref(&last)), self.plain(DType::F32, &[last]));
        let a = self.binary(BinaryOp::Mul, turned, sine)?;
        let b = self.binary(BinaryOp::Mul, (x, f), cosine)?;
        self.binary(BinaryOp::Add, a, b)
    }
}

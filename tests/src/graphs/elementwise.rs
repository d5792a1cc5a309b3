//! Elementwise steps: unary and binary operations, selections and conversions, with operands that broadcast.

use super::{Build, Facts, Grown, No};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Map, broadcast_dims};
use kiln_ir::scalar::TypeError;
use kiln_ir::{BinaryOp, Class, Code, DType, Id, Scalar, UnaryOp};

/// What a value's elements are for these steps.
fn is_float(dtype: DType) -> bool {
    matches!(dtype.class(), Class::Float | Class::Double)
}

/// Builds a body whose arguments have these types.
pub(super) fn body(
    types: &[DType],
    make: impl FnOnce(&mut Code, &[Id<Scalar>]) -> Result<Id<Scalar>, TypeError>,
) -> Result<Map, No> {
    let mut code = Code::new();
    let args: Vec<_> = types.iter().enumerate().map(|(n, &t)| code.arg(n, t)).collect();
    let result = make(&mut code, &args)?;
    code.set_result(result);
    Ok(Map { body: code })
}

impl Build {
    pub(super) fn elementwise(&mut self) -> Result<(), No> {
        let (x, facts) = self.any();
        let dtype = self.ty(x).dtype;
        let done = match self.random.below(10) {
            0 | 1 => self.convert(x, facts),
            2 if is_float(dtype) && self.random.chance(30) => self.fma(x, facts),
            2 => self.select(x, facts),
            3..=5 if is_float(dtype) => self.float_unary(x, facts),
            3 | 4 => self.int_unary(x, facts),
            _ if is_float(dtype) => self.float_binary(x, facts),
            _ => self.int_binary(x, facts),
        };
        done.map(|_| ())
    }

    fn unary(&mut self, op: UnaryOp, x: ValueId, facts: Facts) -> Grown {
        let map = body(&[self.ty(x).dtype], |c, a| c.unary(op, a[0]))?;
        self.add(map, &[x], facts)
    }

    fn int_unary(&mut self, x: ValueId, facts: Facts) -> Grown {
        let dtype = self.ty(x).dtype;
        if dtype == DType::Bool {
            return self.unary(UnaryOp::Not, x, facts);
        }
        let op = *self.random.pick(&[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Sign, UnaryOp::Not]);
        let bound = match op {
            UnaryOp::Sign => 1.0,
            UnaryOp::Not => f64::INFINITY,
            _ if dtype.class() == Class::Unsigned => f64::INFINITY,
            _ => facts.bound,
        };
        self.unary(op, x, Facts::int(dtype, bound))
    }

    fn float_unary(&mut self, x: ValueId, f: Facts) -> Grown {
        use UnaryOp::*;
        let dtype = self.ty(x).dtype;
        if f.special || (f.is_exact() && self.random.chance(30)) {
            let op = *self.random.pick(&[Neg, Abs, Sign, Floor, Ceil, Round, Trunc]);
            let facts = match op {
                Sign => Facts { special: f.special, ..Facts::exact(1.0, 0) },
                Floor | Ceil | Round | Trunc if !f.special => Facts::float(dtype, f.bound + 1.0, 0.0, Some(0)),
                _ => Facts { below: None, ..f },
            };
            return self.unary(op, x, facts);
        }
        let (b, e) = (f.bound, f.error);
        match self.random.below(7) {
            0 => {
                let op = *self.random.pick(&[Neg, Abs]);
                self.unary(op, x, Facts { below: None, ..f })
            }
            1 | 2 => {
                let op = *self.random.pick(&[Tanh, Sigmoid, Erf, Atan, Asinh]);
                let bound = if op == Atan { 1.6 } else { (b + 1.0).ln().max(1.0) + 1.0 };
                self.unary(op, x, Facts::float(dtype, bound, 1.2 * e, None))
            }
            3 if b <= 50.0 => {
                let op = *self.random.pick(&[Sin, Cos]);
                // The argument is reduced in the type.
                self.unary(op, x, Facts::float(dtype, 1.0 + b / 50.0, e, None))
            }
            4 if b <= 5.0 => {
                let op = *self.random.pick(&[Exp, Sinh, Cosh]);
                self.unary(op, x, Facts::float(dtype, b.exp(), 1.1 * b.exp() * e, None))
            }
            5 => {
                // Away from where the function is steep.
                let op = *self.random.pick(&[Log, Sqrt, Recip, Acosh]);
                let away = if op == Acosh { 1.5 } else { 0.5 };
                let map = body(&[dtype], |c, a| {
                    let (abs, away) = (c.unary(Abs, a[0])?, c.float(dtype, away));
                    let far = c.binary(BinaryOp::Add, abs, away)?;
                    c.unary(op, far)
                })?;
                let bound = if op == Sqrt { (b + 1.5).sqrt() } else { (b + 2.0).ln() * 2.0 + 2.0 };
                let rounded = Facts::float(dtype, b + 0.5, e, None).error;
                self.add(map, &[x], Facts::float(dtype, bound, 4.0 * rounded, None))
            }
            _ => {
                let op = *self.random.pick(&[Asin, Acos, Atanh, Tan]);
                let map = body(&[dtype], |c, a| {
                    let (lo, hi) = (c.float(dtype, -0.5), c.float(dtype, 0.5));
                    let low = c.binary(BinaryOp::Max, a[0], lo)?;
                    let held = c.binary(BinaryOp::Min, low, hi)?;
                    c.unary(op, held)
                })?;
                self.add(map, &[x], Facts::float(dtype, 2.2, 2.0 * e, None))
            }
        }
    }

    /// A second operand for a value, its facts, and the order of the two.
    fn second(&mut self, x: ValueId) -> Result<(ValueId, Facts), No> {
        let ty = self.ty(x);
        let (y, facts) = self.operand(ty.dtype, &ty.dims);
        // What is known of small tensors must also hold of the broadcast one, which it does for every bound.
        broadcast_dims(&[&ty.dims, &self.ty(y).dims]).map_err(|_| No)?;
        Ok((y, facts))
    }

    fn float_binary(&mut self, x: ValueId, f: Facts) -> Grown {
        use BinaryOp::*;
        let dtype = self.ty(x).dtype;
        let (y, g) = self.second(x)?;
        let exact = f.is_exact() && g.is_exact();
        let special = f.special || g.special;
        let two = [dtype, dtype];
        let simple = |op| body(&two, move |c, a| c.binary(op, a[0], a[1]));
        let grid = f.grid.zip(g.grid);
        if exact && self.random.chance(25) {
            let op = *self.random.pick(&[Eq, Ne, Lt, Le, Gt, Ge]);
            return self.add(simple(op)?, &[x, y], Facts::exact(1.0, 0));
        }
        if special {
            if !exact {
                return Err(No);
            }
            let op = *self.random.pick(&[Min, Max]);
            return self.add(simple(op)?, &[x, y], Facts::either(f, g));
        }
        let (a, b) = (f, g);
        match self.random.below(12) {
            0..=2 => {
                let facts = Facts::float(dtype, a.bound + b.bound, a.error + b.error, grid.map(|(m, n)| m.max(n)));
                self.add(simple(Add)?, &[x, y], facts)
            }
            3 | 4 => {
                let facts = Facts::float(dtype, a.bound + b.bound, a.error + b.error, grid.map(|(m, n)| m.max(n)));
                self.add(simple(Sub)?, &[x, y], facts)
            }
            5..=7 => {
                let error = a.error * b.bound + b.error * a.bound;
                let facts = Facts::float(dtype, a.bound * b.bound, error, grid.map(|(m, n)| m + n));
                self.add(simple(Mul)?, &[x, y], facts)
            }
            8 | 9 => {
                let op = *self.random.pick(&[Min, Max]);
                self.add(simple(op)?, &[x, y], Facts::either(a, b))
            }
            10 if exact && grid.is_some() => {
                let op = *self.random.pick(&[Rem, Mod]);
                let map = body(&two, |c, v| {
                    let (abs, one) = (c.unary(UnaryOp::Abs, v[1])?, c.float(dtype, 1.0));
                    let divisor = c.binary(Add, abs, one)?;
                    c.binary(op, v[0], divisor)
                })?;
                let facts = Facts::float(dtype, a.bound + b.bound + 1.0, 0.0, grid.map(|(m, n)| m.max(n)));
                self.add(map, &[x, y], if facts.is_exact() { facts } else { return Err(No) })
            }
            10 if a.bound <= 3.0 && b.bound <= 2.0 => {
                let map = body(&two, |c, v| {
                    let (abs, half) = (c.unary(UnaryOp::Abs, v[0])?, c.float(dtype, 0.5));
                    let base = c.binary(Add, abs, half)?;
                    c.binary(Pow, base, v[1])
                })?;
                self.add(map, &[x, y], Facts::float(dtype, 13.0, 50.0 * (a.error + b.error) + 1e-6, None))
            }
            _ => {
                let map = body(&two, |c, v| {
                    let (abs, half) = (c.unary(UnaryOp::Abs, v[1])?, c.float(dtype, 0.5));
                    let divisor = c.binary(Add, abs, half)?;
                    c.binary(Div, v[0], divisor)
                })?;
                let rounded = Facts::float(dtype, b.bound + 0.5, b.error, None).error;
                self.add(
                    map,
                    &[x, y],
                    Facts::float(dtype, 2.0 * a.bound, 2.0 * a.error + 4.0 * a.bound * rounded, None),
                )
            }
        }
    }

    fn int_binary(&mut self, x: ValueId, f: Facts) -> Grown {
        use BinaryOp::*;
        let dtype = self.ty(x).dtype;
        let (y, g) = self.second(x)?;
        let op = if dtype == DType::Bool {
            *self.random.pick(&[And, Or, Xor, Eq, Ne, Lt, Le, Gt, Ge, Min, Max, Add, Mul])
        } else {
            *self.random.pick(BinaryOp::ALL)
        };
        let facts = match op {
            _ if op.is_comparison() || dtype == DType::Bool => Facts::exact(1.0, 0),
            Sub if dtype.class() == Class::Unsigned => Facts::integers(f64::INFINITY),
            Add | Sub => Facts::int(dtype, f.bound + g.bound),
            Mul => Facts::int(dtype, f.bound * g.bound),
            Min | Max => Facts::either(f, g),
            Rem | Mod => Facts::int(dtype, g.bound),
            _ => Facts::integers(f64::INFINITY),
        };
        let map = body(&[dtype, dtype], |c, a| c.binary(op, a[0], a[1]))?;
        self.add(map, &[x, y], facts)
    }

    /// `x * y + z`, rounded once.
    fn fma(&mut self, x: ValueId, f: Facts) -> Grown {
        let dtype = self.ty(x).dtype;
        if !matches!(dtype, DType::F32 | DType::F64) || f.special {
            return Err(No);
        }
        let ((y, g), (z, h)) = (self.second(x)?, self.second(x)?);
        broadcast_dims(&[&self.ty(y).dims, &self.ty(z).dims]).map_err(|_| No)?;
        let bound = f.bound * g.bound + h.bound;
        if g.special || h.special || bound > 1e4 {
            return Err(No);
        }
        let error = f.bound * g.error + g.bound * f.error + f.error * g.error + h.error;
        let map = body(&[dtype; 3], |c, a| c.fma(a[0], a[1], a[2]))?;
        self.add(map, &[x, y, z], Facts::float(dtype, bound, error, None))
    }

    fn select(&mut self, x: ValueId, f: Facts) -> Grown {
        let ty = self.ty(x);
        let (y, g) = self.second(x)?;
        let (c, _) = self.operand(DType::Bool, &ty.dims);
        let map = body(&[DType::Bool, ty.dtype, ty.dtype], |code, a| code.select(a[0], a[1], a[2]))?;
        self.add(map, &[c, x, y], Facts::either(f, g))
    }

    fn convert(&mut self, x: ValueId, f: Facts) -> Grown {
        let from = self.ty(x).dtype;
        let to = self.dtype();
        let to = if self.random.chance(6) { *self.random.pick(&[DType::I4, DType::U4, DType::I2]) } else { to };
        if from == to || !self.is_computed(from) {
            return Err(No);
        }
        let facts = match (is_float(from), is_float(to)) {
            (_, _) if to == DType::Bool && !f.is_exact() => return Err(No),
            (_, _) if to == DType::Bool => Facts::exact(1.0, 0),
            (true, true) if f.special => f,
            (true, true) => Facts::float(to, f.bound, f.error, f.grid),
            (true, false) if !f.is_exact() => return Err(No),
            (true, false) if f.special => Facts::integers(f64::INFINITY),
            (true, false) => Facts::int(to, f.bound),
            (false, true) if f.bound.is_finite() => Facts::float(to, f.bound, 0.0, Some(0)),
            // Rounded once, the same everywhere.
            (false, true) => Facts { special: true, grid: None, ..Facts::integers(f64::INFINITY) },
            (false, false) if self.is_narrow(to) => Facts::integers(f64::INFINITY),
            (false, false) if to.class() == Class::Unsigned && from.class() == Class::Signed => {
                Facts::integers(f64::INFINITY)
            }
            (false, false) => Facts::int(to, f.bound),
        };
        let map = body(&[from], |c, a| c.cast(to, a[0]))?;
        self.add(map, &[x], facts)
    }

    fn is_narrow(&self, dtype: DType) -> bool {
        matches!(dtype, DType::I4 | DType::U4 | DType::I2 | DType::U2)
    }

    fn is_computed(&self, dtype: DType) -> bool {
        is_float(dtype) || dtype.is_int() || dtype == DType::Bool
    }
}

//! Scalar code of elementwise ops, written as one writes formulas.
//!
//! Invariant: the first ill-typed operation is remembered and reported at the end; what follows it is harmless.

use kiln_ir::scalar::TypeError;
use kiln_ir::{BinaryOp, Code, Constant, DType, Id, Scalar, UnaryOp};

/// A value in a [`Body`].
pub type S = Id<Scalar>;

/// Scalar code being written.
#[derive(Debug, Default)]
pub struct Body {
    code: Code,
    error: Option<TypeError>,
}

macro_rules! binaries {
    ($($name:ident = $op:ident),*) => {$(
        #[doc = concat!("[`BinaryOp::", stringify!($op), "`].")]
        pub fn $name(&mut self, a: S, b: S) -> S {
            self.binary(BinaryOp::$op, a, b)
        }
    )*};
}

macro_rules! unaries {
    ($($name:ident = $op:ident),*) => {$(
        #[doc = concat!("[`UnaryOp::", stringify!($op), "`].")]
        pub fn $name(&mut self, a: S) -> S {
            self.unary(UnaryOp::$op, a)
        }
    )*};
}

impl Body {
    /// Operand `n`.
    pub(crate) fn arg(&mut self, n: usize, dtype: DType) -> S {
        self.code.arg(n, dtype)
    }

    fn keep(&mut self, made: Result<S, TypeError>, otherwise: S) -> S {
        made.unwrap_or_else(|e| {
            self.error.get_or_insert(e);
            otherwise
        })
    }

    /// A unary operation.
    pub fn unary(&mut self, op: UnaryOp, a: S) -> S {
        let made = self.code.unary(op, a);
        self.keep(made, a)
    }

    /// A binary operation.
    pub fn binary(&mut self, op: BinaryOp, a: S, b: S) -> S {
        let made = self.code.binary(op, a, b);
        self.keep(made, a)
    }

    binaries! { add = Add, sub = Sub, mul = Mul, div = Div, pow = Pow, min = Min, max = Max, and = And, or = Or,
    eq = Eq, ne = Ne, lt = Lt, le = Le, gt = Gt, ge = Ge }
    unaries! { neg = Neg, abs = Abs, not = Not, sqrt = Sqrt, recip = Recip, exp = Exp, log = Log, tanh = Tanh,
    erf = Erf, sigmoid = Sigmoid, sign = Sign, floor = Floor, ceil = Ceil, round = Round }

    /// `a * b + c`, rounded once.
    pub fn fma(&mut self, a: S, b: S, c: S) -> S {
        let made = self.code.fma(a, b, c);
        self.keep(made, c)
    }

    /// `if c { a } else { b }`.
    pub fn select(&mut self, c: S, a: S, b: S) -> S {
        let made = self.code.select(c, a, b);
        self.keep(made, a)
    }

    /// A conversion.
    pub fn cast(&mut self, to: DType, a: S) -> S {
        let made = self.code.cast(to, a);
        self.keep(made, a)
    }

    /// A number of the type that `like` has.
    pub fn lit(&mut self, like: S, value: f64) -> S {
        let dtype = self.dtype(like);
        self.code.constant(Constant::float(dtype, value))
    }

    /// An integer of the type that `like` has.
    pub fn int(&mut self, like: S, value: i64) -> S {
        let dtype = self.dtype(like);
        self.code.constant(Constant::int(dtype, value))
    }

    /// A constant.
    pub fn constant(&mut self, constant: Constant) -> S {
        self.code.constant(constant)
    }

    /// The number of 4 bits in a byte's half, as i32: the low one of a byte that is shifted by 0, the high one by 4.
    pub(crate) fn half_of_byte(&mut self, byte: S, shift: S) -> S {
        self.part_of_byte(byte, shift, 4)
    }

    /// The number of so many bits in a byte that is shifted for it, as i32.
    pub(crate) fn part_of_byte(&mut self, byte: S, shift: S, bits: i64) -> S {
        let wide = self.cast(DType::I32, byte);
        let shifted = self.binary(BinaryOp::Shr, wide, shift);
        let mask = self.int(shifted, (1 << bits) - 1);
        self.binary(BinaryOp::And, shifted, mask)
    }

    /// `x / 2 * (1 + erf(x / sqrt(2)))` (Hendrycks, Gimpel 2016).
    pub fn gelu(&mut self, x: S) -> S {
        let (half, one, root) = (self.lit(x, 0.5), self.lit(x, 1.0), self.lit(x, std::f64::consts::FRAC_1_SQRT_2));
        let scaled = self.mul(x, root);
        let erf = self.erf(scaled);
        let (gate, halved) = (self.add(erf, one), self.mul(half, x));
        self.mul(halved, gate)
    }

    /// The type of a value.
    pub fn dtype(&self, a: S) -> DType {
        self.code.dtype(a)
    }

    /// The code with its result.
    pub(crate) fn finish(mut self, result: S) -> Result<Code, TypeError> {
        self.code.set_result(result);
        match self.error {
            None => Ok(self.code),
            Some(e) => Err(e),
        }
    }
}

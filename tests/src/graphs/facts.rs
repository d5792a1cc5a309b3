//! What is known of a random value, and what random leaves hold.

use super::Random;
use kiln_ir::{Class, Constant, DType, Tensor};

/// What is known of the elements of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Facts {
    /// Largest absolute value; infinite where it is not known (integers wrap).
    pub bound: f64,
    /// How far two right ways of computing an element may be apart.
    pub error: f64,
    /// All elements are multiples of 2 to the minus this.
    pub grid: Option<i32>,
    /// Infinities, NaN, zeros of both signs or numbers beyond all bounds may occur: only what is exact may be done to them.
    pub special: bool,
    /// All elements are indices of an axis of this extent, in range.
    pub below: Option<i64>,
}

/// Bits of the significand, and what an operation on the type may be off by, relative to the largest value.
fn precision(dtype: DType) -> (i32, f64) {
    match dtype {
        DType::F64 => (53, 4e-15),
        DType::F16 => (11, 2e-3),
        DType::BF16 => (8, 1.6e-2),
        _ => (24, 6e-7),
    }
}

impl Facts {
    /// Elements that are exact, with this bound.
    pub fn exact(bound: f64, grid: i32) -> Facts {
        Facts { bound, error: 0.0, grid: Some(grid), special: false, below: None }
    }

    /// Integers of which nothing is known, or elements of which only the bound is.
    pub fn integers(bound: f64) -> Facts {
        let grid = bound.is_finite().then_some(0);
        Facts { bound, error: 0.0, grid, special: false, below: None }
    }

    /// Whether operations that are not continuous give the same result however the value was computed.
    pub fn is_exact(&self) -> bool {
        self.error == 0.0
    }

    /// Whether something can still be done with the value.
    pub fn is_usable(&self) -> bool {
        self.special || self.error <= 1e-2 && (self.bound <= 1e5 || self.error == 0.0)
    }

    /// The facts of a float result: exact where it lies on a grid that the type holds, else off by `error` and a rounding.
    pub fn float(dtype: DType, bound: f64, error: f64, grid: Option<i32>) -> Facts {
        let (bits, epsilon) = precision(dtype);
        let held = grid.filter(|&g| g < 40 && bound * 2f64.powi(g) <= 2f64.powi(bits));
        match held {
            Some(g) if error == 0.0 => Facts::exact(bound, g),
            _ => Facts { bound, error: error + epsilon * bound.max(1e-3), grid: None, special: false, below: None },
        }
    }

    /// The facts of an integer result, where `bound` is what arithmetic without wrapping gives.
    pub fn int(dtype: DType, bound: f64) -> Facts {
        Facts::integers(if bound <= Facts::largest(dtype) { bound } else { f64::INFINITY })
    }

    /// The largest value that both signs of a type have.
    pub fn largest(dtype: DType) -> f64 {
        match dtype {
            DType::Bool => 1.0,
            DType::I8 => 127.0,
            DType::U8 => 255.0,
            DType::I16 => 32767.0,
            DType::U16 => 65535.0,
            DType::I32 => 2147483647.0,
            DType::U32 => 4294967295.0,
            _ => 9e15,
        }
    }

    /// The facts of elements that come from both.
    pub fn either(a: Facts, b: Facts) -> Facts {
        let grid = a.grid.zip(b.grid).map(|(a, b)| a.max(b));
        let special = a.special || b.special;
        Facts { bound: a.bound.max(b.bound), error: a.error.max(b.error), grid, special, below: None }
    }
}

/// What a leaf holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Floats: multiples of an eighth, at most 2. Integers: at most 3.
    Small,
    /// Floats in -1..1.
    Plain,
    /// Infinities, NaN, zeros, very small and very large floats among others. Integers: the ends of the range among others.
    Special,
    /// Any integers.
    Full,
    /// Indices of an axis of this extent, negative ones that count from the end included.
    Index(i64),
}

impl Kind {
    /// A kind that the type has.
    pub fn any(dtype: DType, random: &mut Random) -> Kind {
        match dtype.class() {
            Class::Bool => Kind::Small,
            Class::Signed | Class::Unsigned => *random.pick(&[Kind::Small, Kind::Small, Kind::Full, Kind::Special]),
            _ => *random.pick(&[Kind::Small, Kind::Small, Kind::Plain, Kind::Plain, Kind::Plain, Kind::Special]),
        }
    }

    /// What is known of such a leaf.
    pub fn facts(self, dtype: DType) -> Facts {
        let float = dtype.is_float();
        match self {
            Kind::Small if dtype == DType::Bool => Facts::exact(1.0, 0),
            Kind::Small if float => Facts::exact(2.0, 3),
            Kind::Small => Facts::exact(3.0, 0),
            Kind::Plain => Facts { bound: 1.0, error: 0.0, grid: None, special: false, below: None },
            Kind::Special if float => {
                Facts { bound: f64::INFINITY, error: 0.0, grid: None, special: true, below: None }
            }
            Kind::Special | Kind::Full => Facts::integers(f64::INFINITY),
            Kind::Index(n) => Facts { below: Some(n), ..Facts::exact(n as f64, 0) },
        }
    }

    /// Such a tensor.
    pub fn tensor(self, dtype: DType, shape: &[usize], random: &mut Random) -> Tensor {
        let mut bytes = Vec::new();
        for _ in 0..shape.iter().product::<usize>() {
            self.element(dtype, random).store(&mut bytes);
        }
        // As many elements as the shape has were made.
        Tensor::new(dtype, shape.to_vec(), bytes).unwrap_or_else(|e| unreachable!("{e}"))
    }

    fn element(self, dtype: DType, random: &mut Random) -> Constant {
        let float = dtype.is_float();
        let signed = dtype.class() == Class::Signed || float;
        match self {
            Kind::Small if dtype == DType::Bool => Constant { dtype, bits: random.bits() & 1 },
            Kind::Small if float => Constant::float(dtype, random.below(33) as f64 / 8.0 - 2.0),
            Kind::Small if signed => Constant::int(dtype, random.below(7) as i64 - 3),
            Kind::Small => Constant::int(dtype, random.below(4) as i64),
            Kind::Plain => Constant::float(dtype, random.unit() * 2.0 - 1.0),
            Kind::Full => Constant::int(dtype, random.bits() as i64),
            Kind::Special if float => {
                let odd =
                    [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-42, -1e-42, 3e38, -3e38, 0.5, 1.5, 2.5];
                let odd = odd[random.below(odd.len())];
                let other = (random.unit() - 0.5) * *random.pick(&[1.0, 300.0, 1e5, 5e9, 2e19]);
                let value = if random.chance(60) { other } else { odd };
                Constant::float(dtype, value)
            }
            Kind::Special => {
                let ends = [0, 1, -1, i64::MIN, i64::MAX, 127, -128, 255, 1 << 31, -(1 << 31), 63, 64, 31, 32, 8];
                let end = ends[random.below(ends.len())];
                Constant::int(dtype, if random.chance(50) { end } else { random.bits() as i64 >> random.below(60) })
            }
            Kind::Index(n) => {
                let at = random.below(n.max(1) as usize) as i64;
                Constant::int(dtype, if signed && random.chance(30) { at - n } else { at })
            }
        }
    }
}

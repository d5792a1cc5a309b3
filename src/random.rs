//! Seeded inputs: floats from N(0, 1), integers and bools 0 or 1.
//!
//! Invariant: an input depends on the seed, its position and its type alone, on every machine. The numbers are ChaCha8's
//! (Bernstein, "ChaCha, a variant of Salsa20"), the normal distribution Box and Muller's (1958).

use crate::Error;
use kiln_ir::{Class, DType, Ranges, Symbol, Tensor, TensorType, semantics};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Type and shape of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Element type.
    pub dtype: DType,
    /// Dims.
    pub shape: Vec<usize>,
}

impl Input {
    /// The input of a type whose free dims are all `size`, or what of their ranges is nearest to it; nothing where a dim
    /// is then no size.
    pub fn of(ty: &TensorType, ranges: &Ranges, size: i64) -> Option<Input> {
        let value = |s: &Symbol| {
            let &(lo, hi) = ranges.get(s).unwrap_or(&(size, size));
            Some(size.max(lo).min(hi.max(lo)))
        };
        let shape = ty.dims.iter().map(|d| d.eval(&value).and_then(|n| usize::try_from(n).ok())).collect::<Option<_>>();
        Some(Input { dtype: ty.dtype, shape: shape? })
    }
}

/// Inputs of these types for a seed.
///
/// # Errors
/// [`Error::Unsupported`] for strings, [`Error::Data`] for a shape beyond the address space.
pub fn inputs(types: &[Input], seed: u64) -> Result<Vec<Tensor>, Error> {
    types.iter().enumerate().map(|(n, ty)| input(ty, seed, n as u64)).collect()
}

fn input(ty: &Input, seed: u64, stream: u64) -> Result<Tensor, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let Input { dtype, shape } = ty;
    let too_large = |e: kiln_ir::TensorError| Error::data(format!("input {stream}"), e);
    let count = kiln_ir::tensor::element_count(shape, dtype.size()).map_err(too_large)?;
    let mut bytes: Vec<u8> = Vec::with_capacity(count * dtype.size());
    match dtype.class() {
        Class::Str => return Err(Error::Unsupported("random strings are not made; use --inputs or --data".into())),
        Class::Float | Class::Double | Class::Complex => {
            // A complex number is two of the half type.
            let (part, count) = match dtype {
                DType::C64 => (DType::F32, count * 2),
                DType::C128 => (DType::F64, count * 2),
                other => (*other, count),
            };
            for n in (0..count).step_by(2) {
                let (a, b) = normal(&mut rng);
                store(part, a, &mut bytes);
                if n + 1 < count {
                    store(part, b, &mut bytes);
                }
            }
        }
        Class::Bool | Class::Signed | Class::Unsigned => {
            for _ in 0..count {
                semantics::store_i64(*dtype, i64::from(rng.next_u32() >> 31), &mut bytes);
            }
        }
    }
    Tensor::new(*dtype, shape.clone(), bytes).map_err(too_large)
}

fn store(dtype: DType, value: f64, out: &mut Vec<u8>) {
    if dtype == DType::F64 {
        out.extend_from_slice(&value.to_le_bytes());
    } else {
        semantics::store_f32(dtype, semantics::narrow(dtype, value), out);
    }
}

/// Two independent normal numbers.
fn normal(rng: &mut ChaCha8Rng) -> (f64, f64) {
    // 53 random bits, never 0, so that the logarithm is finite.
    let unit = |rng: &mut ChaCha8Rng| ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64;
    let radius = libm::sqrt(-2.0 * libm::log(unit(rng)));
    let angle = std::f64::consts::TAU * unit(rng);
    (radius * libm::cos(angle), radius * libm::sin(angle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_dims_take_what_their_range_allows() {
        let n = kiln_ir::Expr::symbol("n");
        let ty = TensorType::new(DType::F32, vec![n.clone(), n.scale(2), 5.into()]);
        let shape = |range, size| Input::of(&ty, &Ranges::from([(Symbol::new("n"), range)]), size).unwrap().shape;
        assert_eq!(shape((1, 8), 1), [1, 2, 5]);
        assert_eq!(shape((3, 8), 1), [3, 6, 5]);
        assert_eq!(shape((1, 8), 32), [8, 16, 5]);
    }

    #[test]
    fn numbers_are_normal_or_bits_and_the_same_every_time() {
        let make = |dtype, seed| input(&Input { dtype, shape: vec![101, 99] }, seed, 0).unwrap();
        let floats = make(DType::F32, 7).to_f64().unwrap();
        let mean = floats.iter().sum::<f64>() / floats.len() as f64;
        let variance = floats.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / floats.len() as f64;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        assert_eq!(make(DType::F32, 7), make(DType::F32, 7));
        assert_ne!(make(DType::F32, 7), make(DType::F32, 8));
        let bits = make(DType::I64, 7).to_i64().unwrap();
        let ones = bits.iter().filter(|v| **v == 1).count();
        assert!(bits.iter().all(|v| (0..2).contains(v)) && (4500..5500).contains(&ones));
        assert!(inputs(&[Input { dtype: DType::Str, shape: vec![1] }], 0).is_err());
    }
}

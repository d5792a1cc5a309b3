//! The few operations on dense matrices that quantizers need.
//!
//! Invariant: sums are formed in a fixed order, so that results are the same on every machine.

/// The sum of products, in eight partial sums.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in a8.0.iter().zip(b8.0) {
        for n in 0..8 {
            sums[n] += x[n] * y[n];
        }
    }
    sums.iter().sum::<f32>() + a8.1.iter().zip(b8.1).map(|(x, y)| x * y).sum::<f32>()
}

/// As [`dot`], in f64.
fn dot64(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (x, y) in a8.0.iter().zip(b8.0) {
        for n in 0..8 {
            sums[n] += x[n] * y[n];
        }
    }
    sums.iter().sum::<f64>() + a8.1.iter().zip(b8.1).map(|(x, y)| x * y).sum::<f64>()
}

/// `a += by * b`.
pub(super) fn add(a: &mut [f32], by: f32, b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += by * b);
}

/// `a -= by * b`.
pub(super) fn subtract(a: &mut [f32], by: f32, b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a -= by * b);
}

/// For a symmetric, positive definite `h` of `n` rows the upper triangular `u` with `uᵀ u = h⁻¹`; nothing where `h` is not
/// positive definite.
///
/// With `h` turned by half a turn, `h' = l lᵀ` and `u` is `l⁻¹` turned back: one factorisation and one triangular inverse, instead
/// of an inverse and two factorisations.
pub(super) fn inverse_factor(h: &[f64], n: usize) -> Option<Vec<f32>> {
    let mut l = vec![0f64; n * n];
    for i in 0..n {
        for j in 0..=i {
            let a = h[(n - 1 - i) * n + (n - 1 - j)];
            let rest = a - dot64(&l[i * n..i * n + j], &l[j * n..j * n + j]);
            l[i * n + j] = if i == j {
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                rest.sqrt()
            } else {
                rest / l[j * n + j]
            };
        }
    }
    let mut inverse = vec![0f64; n * n];
    for i in 0..n {
        let (done, row) = inverse.split_at_mut(i * n);
        let row = &mut row[..=i];
        for j in 0..i {
            let by = l[i * n + j];
            let other = &done[j * n..j * n + j + 1];
            row.iter_mut().zip(other).for_each(|(a, b)| *a -= by * b);
        }
        row[i] = 1.0;
        let by = 1.0 / l[i * n + i];
        row.iter_mut().for_each(|v| *v *= by);
    }
    let mut u = vec![0f32; n * n];
    for i in 0..n {
        for j in i..n {
            u[i * n + j] = inverse[(n - 1 - i) * n + (n - 1 - j)] as f32;
        }
    }
    Some(u)
}

use super::*;

/// Numbers that look normal: sums of twelve of a generator (Steele et al. 2014).
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| next()).sum::<f32>() - 6.0).collect()
}

const ROWS: usize = 24;
const COLUMNS: usize = 64;

/// Inputs with columns of very different power that depend on one another, as hidden states are.
fn moments() -> Moments {
    let count = 300;
    let base = normal(7, count * 8);
    let noise = normal(8, count * COLUMNS);
    let mixing = normal(9, 8 * COLUMNS);
    let mut moments = Moments {
        count: count as u64,
        products: vec![0.0; COLUMNS * COLUMNS],
        magnitudes: vec![0.0; COLUMNS],
        sums: vec![0.0; COLUMNS],
    };
    for n in 0..count {
        let x: Vec<f32> = (0..COLUMNS)
            .map(|c| {
                let power = if c % 16 == 3 { 8.0 } else { 1.0 };
                let mixed: f32 = (0..8).map(|b| base[n * 8 + b] * mixing[b * COLUMNS + c]).sum();
                power * (mixed + 0.3 * noise[n * COLUMNS + c])
            })
            .collect();
        for (i, a) in x.iter().enumerate() {
            moments.sums[i] += a;
            moments.magnitudes[i] += a.abs();
            for (j, b) in x.iter().enumerate() {
                moments.products[i * COLUMNS + j] += a * b;
            }
        }
    }
    moments
}

fn weights(values: &[f32]) -> Weights<'_> {
    Weights { values, rows: ROWS, columns: COLUMNS }
}

#[test]
fn data_helps() {
    let values = normal(1, ROWS * COLUMNS);
    let (w, moments) = (weights(&values), moments());
    for grid in [Grid::Symmetric(4), Grid::Asymmetric(4), Grid::Symmetric(3), Grid::NormalFloat4] {
        let error = |q: &Quantized| relative_error(w, q, Some(&moments));
        let nearest = error(&round_to_nearest(w, grid, 32, 1));
        let by_gptq = gptq(w, grid, 32, &moments, 1).unwrap();
        assert!(error(&by_gptq) < 0.5 * nearest, "{grid}: gptq {} of {nearest}", error(&by_gptq));
        let by_awq = awq(&[w], grid, 32, &moments, 1);
        let unscaled: Vec<f32> =
            by_awq.matrices[0].values().iter().enumerate().map(|(n, v)| v / by_awq.scales[n % COLUMNS]).collect();
        let off: f64 = values
            .chunks(COLUMNS)
            .zip(unscaled.chunks(COLUMNS))
            .map(|(a, b)| energy(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>(), Some(&moments)))
            .sum();
        let whole: f64 = values.chunks(COLUMNS).map(|row| energy(row, Some(&moments))).sum();
        assert!(off / whole < 0.9 * nearest, "{grid}: awq {} of {nearest}", off / whole);
    }
}

#[test]
fn threads_change_nothing() {
    let values = normal(2, ROWS * COLUMNS);
    let (w, moments) = (weights(&values), moments());
    let grid = Grid::Asymmetric(4);
    assert_eq!(gptq(w, grid, 16, &moments, 1), gptq(w, grid, 16, &moments, 5));
    assert_eq!(hqq(w, grid, 16, 1), hqq(w, grid, 16, 3));
    assert_eq!(awq(&[w], grid, 16, &moments, 1), awq(&[w], grid, 16, &moments, 2));
}

#[test]
fn outliers_do_not_spoil_a_group_for_hqq() {
    let mut values = normal(3, ROWS * COLUMNS);
    values.iter_mut().step_by(61).for_each(|v| *v *= 6.0);
    let w = weights(&values);
    let off = |q: &Quantized| q.values().iter().zip(&values).map(|(a, b)| (a - b).abs().powf(0.7)).sum::<f32>();
    for grid in [Grid::Symmetric(4), Grid::Asymmetric(4)] {
        let (nearest, found) = (off(&round_to_nearest(w, grid, 64, 1)), off(&hqq(w, grid, 64, 1)));
        assert!(found < nearest, "{grid}: {found} of {nearest}");
    }
}

#[test]
fn odd_groups_are_kept() {
    let zeros = vec![0.0; 8];
    let constant = vec![-3.0; 8];
    let tiny = vec![1e-42; 8];
    for grid in [Grid::Symmetric(8), Grid::Symmetric(4), Grid::Asymmetric(8), Grid::Asymmetric(4), Grid::NormalFloat4] {
        for values in [&zeros, &constant, &tiny] {
            let w = Weights { values, rows: 1, columns: 8 };
            for made in [round_to_nearest(w, grid, 8, 1), hqq(w, grid, 8, 1)] {
                assert!(made.groups.iter().all(|g| g.scale > 0.0 && g.scale.is_finite()), "{grid}: {made:?}");
                let error = made.values().iter().zip(values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 0.02, "{grid}: {values:?} became {:?}", made.values());
            }
        }
    }
    // The last group is shorter.
    let values = normal(4, 2 * 10);
    let made = round_to_nearest(Weights { values: &values, rows: 2, columns: 10 }, Grid::Symmetric(8), 4, 1);
    assert_eq!((made.groups.len(), made.values().len()), (6, 20));
    assert!(made.values().iter().zip(&values).all(|(a, b)| (a - b).abs() < 0.02));
}

#[test]
fn normal_floats_are_nearest() {
    let group = Group { scale: 2.0, zero: 0 };
    let grid = Grid::NormalFloat4;
    for n in -120..120 {
        let v = n as f32 / 50.0;
        let found = (grid.value(group, grid.number(group, v)) - v).abs();
        let least = (0..16).map(|q| (grid.value(group, q) - v).abs()).fold(f32::INFINITY, f32::min);
        assert_eq!(found, least, "{v}");
    }
}

#[test]
fn gptq_refuses_what_it_cannot_use() {
    let values = normal(5, ROWS * COLUMNS);
    let mut bad = moments();
    bad.products[5] = f32::NAN;
    bad.products[0] = f32::NAN;
    assert_eq!(gptq(weights(&values), Grid::Symmetric(4), 32, &bad, 1), Err(GptqError::Singular));
    let fewer = Moments::default();
    let error = gptq(weights(&values), Grid::Symmetric(4), 32, &fewer, 1).unwrap_err();
    assert_eq!(error, GptqError::Columns { columns: COLUMNS, found: 0 });
}

#[test]
fn ranges_clip_what_is_rare() {
    let mut values = normal(6, 20_000);
    values.push(80.0);
    let range = Range::default().with(&values);
    let mut histogram = Histogram::new(range);
    histogram.add(&values);
    for grid in [Grid::Symmetric(8), Grid::Asymmetric(8)] {
        assert_eq!(histogram.chosen(RangeMethod::MinMax, grid), range);
        for method in [RangeMethod::Percentile(0.999), RangeMethod::Entropy] {
            let high = histogram.chosen(method, grid).high;
            assert!((2.0..40.0).contains(&high), "{method} of {grid}: {high}");
        }
        // One value of 80 in 20,000 costs more when it is clipped than the others gain.
        let by_square = histogram.chosen(RangeMethod::MeanSquare, Grid::Symmetric(4)).high;
        assert!(by_square < 80.0, "{by_square}");
    }
    let empty = Histogram::new(Range::default());
    let all = [RangeMethod::MinMax, RangeMethod::Percentile(0.99), RangeMethod::Entropy, RangeMethod::MeanSquare];
    for method in all {
        assert_eq!(empty.activation(method, Grid::Asymmetric(8)).group, Group { scale: 1.0, zero: 0 });
    }
}

#[test]
fn pruning_keeps_the_greatest() {
    let values = [3.0, -1.0, 0.5, 2.0, -4.0, 0.1, 0.2, 5.0, 1.0];
    assert_eq!(magnitude(&values, 1.0 / 3.0).values, [3.0, -1.0, 0.0, 2.0, -4.0, 0.0, 0.0, 5.0, 1.0]);
    let half = n_of_m(&values, 9, 2, 4);
    assert_eq!(half.values, [3.0, 0.0, 0.0, 2.0, -4.0, 0.0, 0.0, 5.0, 1.0]);
    assert_eq!((half.zeros, half.packed_bytes(8)), (4, 7));
    let four = |values: [f32; 8], columns: usize| n_of_m(&values, columns, 8, 8).two_of_four_bytes(columns);
    assert_eq!(four([1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, -3.0], 8), Some(18));
    assert_eq!(four([1.0, 0.0, 4.0, 2.0, 0.0, 0.0, 0.0, -3.0], 8), None);
    assert_eq!(four([0.0; 8], 2), None);
}

#[test]
fn descent_never_loses() {
    use super::descent::Objective;
    let values = normal(4, ROWS * COLUMNS);
    let (w, moments) = (weights(&values), moments());
    let objective = Objective { products: &moments.products, damping: 0.0 };
    for grid in [Grid::Symmetric(4), Grid::Asymmetric(3), Grid::NormalFloat4] {
        let mut made = round_to_nearest(w, grid, 24, 1);
        let before = relative_error(w, &made, Some(&moments));
        let per_row = made.groups_of_row();
        let rows = made.numbers.chunks_mut(COLUMNS).zip(made.groups.chunks_mut(per_row));
        for (row, (numbers, groups)) in w.rows().zip(rows) {
            objective.descend(grid, 24, row, numbers, groups);
        }
        let after = relative_error(w, &made, Some(&moments));
        assert!(after < 0.7 * before, "{grid}: {after} of {before}");
        assert!(made.groups.iter().all(|g| g.scale > 0.0));
    }
}

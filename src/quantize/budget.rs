//! The cheapest mix of precisions that keeps an accuracy budget.
//!
//! Invariant: a mix is given out only after it was measured to keep the budget; every mix that was measured is in the report. The
//! search is: everything as cheap as asked; else how much each layer alone costs (measured, or estimated by the error of its
//! outputs where there are too many layers to measure), and then as few layers raised as the budget asks for, the costliest for
//! their size first, found by bisection; and the same from the next precision on.

use crate::Error;
use serde::Serialize;
use std::collections::BTreeMap;

/// A measurement of a mix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The metric's value.
    pub value: f64,
    /// How much worse that is than the model before, never negative by chance alone but where it is better.
    pub drop: f64,
    /// Half the width of the drop's 95 % confidence interval; nothing where it is not known.
    pub half_interval: Option<f64>,
}

/// A layer with its choices, from the cheapest to the one that leaves it alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The name of the weights.
    pub name: String,
    /// Bytes with each choice.
    pub bytes: Vec<usize>,
    /// The error of its outputs with the cheapest choice, relative to their size.
    pub error: f64,
}

/// A mix that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Bytes of all layers.
    pub bytes: usize,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Measured,
    /// Layers by choice, the cheapest first.
    pub layers: Vec<usize>,
    /// Whether no mix that was measured is both smaller and better.
    pub pareto: bool,
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The choice for each layer.
    pub choices: Vec<usize>,
    /// What it costs.
    pub measured: Measured,
    /// How much each layer alone costs with the cheapest choice, in the metric's drop, where it was measured.
    pub sensitivity: Option<Vec<f64>>,
    /// All mixes that were measured.
    pub points: Vec<Point>,
}

/// No mix keeps the budget.
#[derive(Clone, Debug, PartialEq)]
pub struct NotMet {
    /// All mixes that were measured.
    pub points: Vec<Point>,
    /// The least drop among those in which something is quantized.
    pub least: f64,
}

struct Search<'a> {
    layers: &'a [Candidate],
    measure: &'a mut dyn FnMut(&[usize]) -> Result<Measured, Error>,
    points: Vec<Point>,
    known: BTreeMap<Vec<usize>, Measured>,
}

impl Search<'_> {
    fn measure(&mut self, choices: &[usize]) -> Result<Measured, Error> {
        if let Some(&measured) = self.known.get(choices) {
            return Ok(measured);
        }
        let measured = (self.measure)(choices)?;
        let bytes = self.layers.iter().zip(choices).filter_map(|(l, &c)| l.bytes.get(c)).sum();
        let levels = self.layers.iter().map(|l| l.bytes.len()).max().unwrap_or(0);
        let layers = (0..levels).map(|level| choices.iter().filter(|&&c| c == level).count()).collect();
        self.points.push(Point { bytes, measured, layers, pareto: false });
        self.known.insert(choices.to_vec(), measured);
        Ok(measured)
    }

    fn points(mut self) -> Vec<Point> {
        self.points.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.measured.drop.total_cmp(&b.measured.drop)));
        let mut least = f64::INFINITY;
        for point in &mut self.points {
            point.pareto = point.measured.drop < least;
            least = least.min(point.measured.drop);
        }
        self.points
    }
}

/// How many mixes [`search`] measures at most.
pub fn most_measured(layers: &[Candidate], most: usize) -> usize {
    let last = layers.iter().map(|l| l.bytes.len().saturating_sub(1)).max().unwrap_or(0);
    let each = if layers.len() <= most && last > 0 { layers.len() } else { 0 };
    // Of each precision but the last: all layers, and a bisection.
    let bisection = layers.len().next_power_of_two().ilog2() as usize;
    1 + each + last * bisection + last.saturating_sub(1)
}

/// Finds the mix. Layers are measured one by one where there are at most `most` of them.
///
/// # Errors
/// What measuring says.
pub fn search(
    layers: &[Candidate],
    max_drop: f64,
    most: usize,
    measure: &mut dyn FnMut(&[usize]) -> Result<Measured, Error>,
) -> Result<Result<Found, NotMet>, Error> {
    let last = layers.iter().map(|l| l.bytes.len().saturating_sub(1)).max().unwrap_or(0);
    let mut search = Search { layers, measure, points: Vec::new(), known: BTreeMap::new() };
    let keeps = |m: &Measured| m.drop <= max_drop;
    let mut choices = vec![0; layers.len()];
    let first = search.measure(&choices)?;
    if keeps(&first) && !layers.is_empty() {
        let points = search.points();
        return Ok(Ok(Found { choices, measured: first, sensitivity: None, points }));
    }
    let mut sensitivity = None;
    if layers.len() <= most && last > 0 {
        let mut each = Vec::with_capacity(layers.len());
        for n in 0..layers.len() {
            let mut alone = vec![last; layers.len()];
            alone[n] = 0;
            each.push(search.measure(&alone)?.drop);
        }
        sensitivity = Some(each);
    }
    let harm = |n: usize| sensitivity.as_ref().and_then(|s| s.get(n)).copied().unwrap_or(layers[n].error);
    for level in 0..last {
        // What raising a layer by a level saves in harm for each byte that it costs.
        let worth = |n: usize| {
            let cost = |c: usize| layers[n].bytes.get(c).copied().unwrap_or(0) as f64;
            harm(n) / (cost(level + 1) - cost(level)).max(1.0)
        };
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by(|&a, &b| worth(b).total_cmp(&worth(a)).then(a.cmp(&b)));
        let raised = |count: usize| {
            let mut raised = choices.clone();
            order.iter().take(count).for_each(|&n| raised[n] = level + 1);
            raised
        };
        let whole = if level + 1 < last { Some(search.measure(&raised(layers.len()))?) } else { None };
        if whole.is_some_and(|m| !keeps(&m)) {
            choices = raised(layers.len());
            continue;
        }
        // Between a count that does not keep the budget and one that does: nothing quantized keeps it, but is no answer.
        let (mut below, mut above) = (0, layers.len());
        let mut best = whole.map(|m| (raised(layers.len()), m));
        while above - below > 1 {
            let middle = below + (above - below) / 2;
            let mix = raised(middle);
            let measured = search.measure(&mix)?;
            if keeps(&measured) {
                (above, best) = (middle, Some((mix, measured)));
            } else {
                below = middle;
            }
        }
        if let Some((choices, measured)) = best {
            let points = search.points();
            return Ok(Ok(Found { choices, measured, sensitivity, points }));
        }
    }
    let points = search.points();
    let least = points.iter().map(|p| p.measured.drop).fold(f64::INFINITY, f64::min);
    Ok(Err(NotMet { points, least }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers of 100 bytes a bit-width, whose drops add up.
    fn run(harms: &[[f64; 3]], max_drop: f64) -> Result<Found, NotMet> {
        let layer =
            |(n, h): (usize, &[f64; 3])| Candidate { name: n.to_string(), bytes: vec![100, 200, 800], error: h[0] };
        let layers: Vec<Candidate> = harms.iter().enumerate().map(layer).collect();
        let mut measure = |choices: &[usize]| {
            let drop = choices.iter().zip(harms).map(|(&c, h)| h[c]).sum();
            Ok(Measured { value: 1.0 - drop, drop, half_interval: None })
        };
        let found = search(&layers, max_drop, 10, &mut measure).unwrap();
        let points = found.as_ref().map_or_else(|missed| missed.points.len(), |found| found.points.len());
        assert!(points <= most_measured(&layers, 10), "{points}");
        found
    }

    #[test]
    fn what_was_measured_is_not_measured_again() {
        let layers: Vec<Candidate> =
            (0..36).map(|n| Candidate { name: n.to_string(), bytes: vec![1, 2, 8], error: f64::from(n) }).collect();
        for (most, runs) in [(64, 36 + 1 + 1 + 12), (0, 1 + 1 + 12)] {
            assert_eq!(most_measured(&layers, most), runs);
            for max_drop in [0.0, 0.5, 3.0, 20.0, 40.0] {
                let mut asked = BTreeMap::new();
                let mut measure = |choices: &[usize]| {
                    *asked.entry(choices.to_vec()).or_insert(0) += 1;
                    let drop = choices.iter().map(|&c| [1.0, 0.1, 0.0][c]).sum();
                    Ok(Measured { value: 0.0, drop, half_interval: None })
                };
                let _ = search(&layers, max_drop, most, &mut measure).unwrap();
                assert!(asked.len() <= runs && asked.values().all(|&n| n == 1), "{} of {runs}", asked.len());
            }
        }
    }

    #[test]
    fn the_worst_layer_is_raised() {
        let harms = [[0.1, 0.01, 0.0], [3.0, 0.02, 0.0], [0.2, 0.01, 0.0], [0.1, 0.01, 0.0]];
        let found = run(&harms, 0.5).unwrap();
        assert_eq!(found.choices, [0, 1, 0, 0]);
        assert!((found.measured.drop - 0.42).abs() < 1e-9);
        assert_eq!(run(&harms, 4.0).unwrap().choices, [0, 0, 0, 0]);
        assert_eq!(run(&harms, 0.06).unwrap().choices, [1, 1, 1, 1]);
        // The two levels together: the last step leaves layers alone.
        let strict = run(&harms, 0.02).unwrap();
        assert!(strict.measured.drop <= 0.02 && strict.choices.contains(&2) && strict.choices.contains(&1));
        assert!(strict.points.iter().any(|p| p.pareto) && strict.points.len() > 4);
    }

    #[test]
    fn a_budget_that_nothing_keeps_is_said_to_be_such() {
        let missed = run(&[[3.0, 2.0, 0.0], [3.0, 2.0, 0.0]], 1.0).unwrap_err();
        assert!((missed.least - 2.0).abs() < 1e-9, "{missed:?}");
    }
}

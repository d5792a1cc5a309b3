//! Entities in tagged words, and how well they were found.
//!
//! Invariant: an entity is found where a predicted one has the same words and the same class (CoNLL 2003's evaluation); words are tagged
//! `B-X` or `I-X` within an entity of class X, and `O` outside.

use std::collections::{BTreeMap, BTreeSet};

/// Words of one entity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entity {
    /// Its class.
    pub class: String,
    /// Its first word.
    pub start: usize,
    /// The word after its last.
    pub end: usize,
}

/// The entities of tagged words. One begins at `B-X`, and at `I-X` that follows no word of class X.
pub fn entities(tags: &[&str]) -> Vec<Entity> {
    let mut found: Vec<Entity> = Vec::new();
    for (n, tag) in tags.iter().enumerate() {
        let Some((kind, class)) = tag.split_once('-').filter(|(kind, _)| ["B", "I"].contains(kind)) else { continue };
        match found.last_mut().filter(|e| e.end == n && e.class == class && kind == "I") {
            Some(entity) => entity.end = n + 1,
            None => found.push(Entity { class: class.into(), start: n, end: n + 1 }),
        }
    }
    found
}

/// How many entities there are, were predicted, and were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entities that there are: the support.
    pub expected: usize,
    /// Entities that were predicted.
    pub predicted: usize,
    /// Those of both.
    pub found: usize,
}

/// Three shares, each from 0 to 1; 0 where there is nothing to share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Found of predicted.
    pub precision: f64,
    /// Found of expected.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

impl Counts {
    /// Precision, recall and F1.
    pub fn shares(&self) -> Shares {
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        Shares {
            precision: share(self.found, self.predicted),
            recall: share(self.found, self.expected),
            f1: share(2 * self.found, self.predicted + self.expected),
        }
    }
}

/// Counts by class.
#[derive(Clone, Debug, Default)]
pub struct EntityCounts {
    /// By class, of all that are expected or predicted.
    pub classes: BTreeMap<String, Counts>,
}

impl EntityCounts {
    /// Counts the entities of a text.
    pub fn add(&mut self, expected: &[Entity], predicted: &[Entity]) {
        for entity in expected {
            self.classes.entry(entity.class.clone()).or_default().expected += 1;
        }
        let expected: BTreeSet<&Entity> = expected.iter().collect();
        for entity in predicted {
            let counts = self.classes.entry(entity.class.clone()).or_default();
            counts.predicted += 1;
            counts.found += usize::from(expected.contains(entity));
        }
    }

    /// All classes' entities taken together.
    pub fn micro(&self) -> Counts {
        self.classes.values().fold(Counts::default(), |sum, c| Counts {
            expected: sum.expected + c.expected,
            predicted: sum.predicted + c.predicted,
            found: sum.found + c.found,
        })
    }

    /// The mean of the classes' shares.
    pub fn macro_mean(&self) -> Shares {
        self.mean(|_| 1.0)
    }

    /// The mean of the classes' shares, each weighted by its support.
    pub fn weighted(&self) -> Shares {
        self.mean(|c| c.expected as f64)
    }

    fn mean(&self, weight: impl Fn(&Counts) -> f64) -> Shares {
        let total: f64 = self.classes.values().map(&weight).sum();
        let mean = |pick: fn(&Shares) -> f64| {
            let sum: f64 = self.classes.values().map(|c| weight(c) * pick(&c.shares())).sum();
            if total > 0.0 { sum / total } else { 0.0 }
        };
        Shares { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(class: &str, start: usize, end: usize) -> Entity {
        Entity { class: class.into(), start, end }
    }

    #[test]
    fn tags_are_entities() {
        let tags = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-ORG", "I-ORG", "B-ORG", "X", "I-ORG"];
        let want = [
            entity("PER", 0, 2),
            entity("LOC", 3, 4),
            entity("LOC", 4, 5),
            entity("ORG", 5, 7),
            entity("ORG", 7, 8),
            entity("ORG", 9, 10),
        ];
        assert_eq!(entities(&tags), want);
        assert_eq!(entities(&[]), []);
    }

    #[test]
    fn shares_are_those_of_a_report() {
        // The example of the package seqeval, with its numbers.
        let expected = [vec!["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], vec!["B-PER", "I-PER", "O"]];
        let predicted = [vec!["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], vec!["B-PER", "I-PER", "O"]];
        let mut counts = EntityCounts::default();
        for (a, b) in expected.iter().zip(&predicted) {
            counts.add(&entities(a), &entities(b));
        }
        assert_eq!(counts.classes["MISC"], Counts { expected: 1, predicted: 1, found: 0 });
        assert_eq!(counts.classes["MISC"].shares(), Shares::default());
        assert_eq!(counts.classes["PER"].shares(), Shares { precision: 1.0, recall: 1.0, f1: 1.0 });
        let half = Shares { precision: 0.5, recall: 0.5, f1: 0.5 };
        assert_eq!((counts.micro().shares(), counts.macro_mean(), counts.weighted()), (half, half, half));
        // A class of three, of which one is found among two.
        counts.add(
            &[entity("LOC", 0, 1), entity("LOC", 1, 2), entity("LOC", 3, 5)],
            &[entity("LOC", 1, 2), entity("LOC", 2, 3)],
        );
        let loc = counts.classes["LOC"].shares();
        assert!(loc.precision == 0.5 && (loc.recall - 1.0 / 3.0).abs() < 1e-12 && (loc.f1 - 0.4).abs() < 1e-12);
        assert!((counts.weighted().f1 - (1.0 + 3.0 * 0.4) / 5.0).abs() < 1e-12);
        assert!((counts.macro_mean().f1 - 1.4 / 3.0).abs() < 1e-12);
        assert_eq!(EntityCounts::default().weighted(), Shares::default());
    }
}

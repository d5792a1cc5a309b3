//! Weights of which some are stored otherwise.
//!
//! Invariant: names and shapes are those of the weights beneath.

use super::{Stored, Weights};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weights over others: what is not changed is read from beneath.
#[derive(Clone)]
pub struct Overlay {
    beneath: Arc<dyn Weights>,
    changed: BTreeMap<String, Stored>,
}

impl Overlay {
    /// These over those.
    pub fn new(beneath: Arc<dyn Weights>, changed: BTreeMap<String, Stored>) -> Overlay {
        Overlay { beneath, changed }
    }
}

impl Weights for Overlay {
    fn names(&self) -> Vec<String> {
        self.beneath.names()
    }

    fn get(&self, name: &str) -> Option<Stored> {
        self.changed.get(name).cloned().or_else(|| self.beneath.get(name))
    }
}

//! Where parameters come from.
//!
//! Invariant: a scope's path is the parameter's name in a checkpoint, its words joined by dots.

use super::Matrix;
use crate::builder::{Builder, Result, Value};
use std::fmt::Display;

/// Makes parameters by their path.
pub trait Parameters {
    /// The parameter of that path and shape, as f32. What is wrong with it is the source's to report, after the whole
    /// model was asked for.
    ///
    /// # Errors
    /// The graph cannot hold it.
    fn parameter<'g>(&self, builder: &'g Builder, path: &str, shape: &[usize]) -> Result<Value<'g>>;

    /// Whether there is a parameter of that path.
    fn has(&self, path: &str) -> bool;

    /// A matrix `[rows, columns]`, which may stay as it is stored.
    ///
    /// # Errors
    /// The graph cannot hold it.
    fn matrix<'g>(&self, builder: &'g Builder, path: &str, rows: usize, columns: usize) -> Result<Matrix<'g>> {
        Ok(Matrix::Plain(self.parameter(builder, path, &[rows, columns])?))
    }

    /// The switch of a part that can be left out, f32 `[count]`, 1 where it is on; nothing, but for sources that let parts be left
    /// out ([`super::Switches`]).
    ///
    /// # Errors
    /// The graph cannot hold it.
    fn switch<'g>(&self, _builder: &'g Builder, _name: &str, _count: usize) -> Result<Option<Value<'g>>> {
        Ok(None)
    }
}

/// A place in the tree of modules.
#[derive(Clone)]
pub struct Scope<'g> {
    builder: &'g Builder,
    source: &'g dyn Parameters,
    path: String,
}

impl<'g> Scope<'g> {
    /// The root.
    pub fn new(builder: &'g Builder, source: &'g dyn Parameters) -> Scope<'g> {
        Scope { builder, source, path: String::new() }
    }

    /// The builder.
    pub fn builder(&self) -> &'g Builder {
        self.builder
    }

    fn path(&self, name: &str) -> String {
        match (self.path.is_empty(), name.is_empty()) {
            (true, _) => name.to_string(),
            (_, true) => self.path.clone(),
            (false, false) => format!("{}.{name}", self.path),
        }
    }

    /// The place of a name below this one.
    #[must_use]
    pub fn enter(&self, name: impl Display) -> Scope<'g> {
        Scope { builder: self.builder, source: self.source, path: self.path(&name.to_string()) }
    }

    /// A parameter.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn parameter(&self, name: &str, shape: &[usize]) -> Result<Value<'g>> {
        self.source.parameter(self.builder, &self.path(name), shape)
    }

    /// A matrix.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix<'g>> {
        self.source.matrix(self.builder, &self.path(name), rows, columns)
    }

    /// The switch of a part of this place, such as `layer`; see [`Parameters::switch`].
    pub(super) fn switch(&self, part: &str, count: usize) -> Result<Option<Value<'g>>> {
        self.source.switch(self.builder, &format!("{part}.{}", self.path), count)
    }

    /// Whether there is a parameter of that name.
    pub fn has(&self, name: &str) -> bool {
        self.source.has(&self.path(name))
    }
}

/// Parameters that are drawn from their path and a seed: uniform in `-bound..bound`, and 1 more for names that end in
/// `norm.weight`. For tests, and models that are trained elsewhere later.
#[derive(Clone, Copy, Debug)]
pub struct Seeded {
    /// The seed.
    pub seed: u64,
    /// Greatest magnitude.
    pub bound: f32,
}

impl Parameters for Seeded {
    fn parameter<'g>(&self, builder: &'g Builder, path: &str, shape: &[usize]) -> Result<Value<'g>> {
        // FNV-1a of the path, then SplitMix64 (Steele et al. 2014).
        let hash = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        let mut state = path.bytes().fold(0xcbf2_9ce4_8422_2325 ^ self.seed, hash);
        let middle = if path.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            // 24 bits are what an f32 holds.
            ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
        };
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| middle + (2.0 * next() - 1.0) * self.bound).collect();
        builder.floats(shape, &values)
    }

    fn has(&self, _path: &str) -> bool {
        true
    }
}

//! Conformance, model and golden tests of the whole project.
#![forbid(unsafe_code)]

pub mod graphs;
pub mod suite;

//! Executes plans: a [`Model`] is a loaded artifact that any number of threads share, a [`Context`] is the memory and
//! the threads of one run at a time.
//!
//! Invariant: nothing is compiled here, and nothing is decided: the plan names every step and every byte. A run with
//! inputs that were loaded before allocates nothing and makes no system call, unless the plan has host ops.

mod context;
mod formulas;
mod model;
#[cfg(test)]
mod tests;

pub use context::{Context, Lent, RunError};
pub use model::{LoadError, Model, ModelOptions, read_plan};

//! Loads and runs artifacts; holds no compiler.
//!
//! Nothing here decides anything about a model: every decision is in the artifact. The parts are
//! the container file ([`artifact`]), executable memory ([`code`]), the CPU levels of the machine
//! ([`cpu`]), NVIDIA GPUs (`cuda`), the execution of plans ([`engine`]), mapped files ([`file`](mod@file)), files that appear
//! complete ([`unfinished`]), budgeted buffers ([`memory`]) and the fork-join
//! thread pool ([`pool`]).

pub mod artifact;
pub mod code;
mod cores;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod engine;
pub mod file;
pub mod memory;
pub mod pool;
pub mod unfinished;

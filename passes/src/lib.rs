//! Everything that decides: rewrites, fusion, tiling, layouts and memory planning.
//!
//! Invariant: passes read and write `kiln_ir` types only; they do no I/O and know no file format and no code generator.
#![forbid(unsafe_code)]

mod attention;
mod borders;
pub mod boundary;
mod cost;
pub mod fusion;
pub mod group;
mod hoist;
pub mod islands;
pub mod kernel;
mod late;
mod layers;
pub mod layout;
pub mod lower;
pub mod memory;
mod nibbles;
mod parts;
pub mod pipeline;
pub mod plan;
pub mod quantize;
pub mod region;
pub mod rewrite;
mod spread;
mod stored_halves;
mod tiles;
mod views;
pub mod warp;

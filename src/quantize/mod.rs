//! Quantizing models: from weights and calibration data to a smaller model and a report of what it lost.
//!
//! Invariant: nothing is written here, and the model that was read is not changed; whoever calls gets new weights (or a new ONNX
//! model) with a [`LayerReport`] for every matrix, and those that were left alone with the reason.

pub mod budget;
mod checkpoint;
mod files;
pub mod images;
mod language;
pub mod metric;
pub mod onnx;
mod removal;
mod text;

pub use checkpoint::{Checkpoint, PrunedMatrices, Quantization, in_files, pruned, quantize};
pub use files::{Files, vacant, write_folder, write_gguf};
pub use language::{Bounds, decoder_onnx, decoder_samples, encoder_onnx, encoder_samples};
pub use removal::{Removal, RemovalReport, Worth, decoder_removal, encoder_removal};
pub use text::{AllMoments, decoder_moments, decoder_score, encoder_moments, text_hash};

use kiln_passes::quantize::Grid;
use serde::Serialize;

/// How weights become numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// Each to the nearest.
    Nearest,
    /// GPTQ, by calibration data.
    Gptq,
    /// AWQ, by calibration data.
    Awq,
    /// HQQ, without data.
    Hqq,
}

impl Method {
    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Nearest => "rtn",
            Method::Gptq => "gptq",
            Method::Awq => "awq",
            Method::Hqq => "hqq",
        }
    }

    /// Whether calibration data is needed.
    pub fn needs_data(self) -> bool {
        matches!(self, Method::Gptq | Method::Awq)
    }
}

/// What is asked for of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightOptions {
    /// The numbers.
    pub grid: Grid,
    /// Inputs that share a scale.
    pub group: usize,
    /// The method.
    pub method: Method,
    /// Threads to work on; the result does not depend on it.
    pub threads: usize,
}

/// What became of a matrix of weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    /// The name of the weights.
    pub name: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// What it is stored as, such as `int4`.
    pub precision: String,
    /// Inputs that share a scale.
    pub group: usize,
    /// Bytes now.
    pub bytes: usize,
    /// Bytes of the weights as f32.
    pub bytes_f32: usize,
    /// The mean square of the error of its outputs over their mean square (of its weights, where there is no data).
    pub relative_error: f64,
}

/// A matrix that was left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// The name of the weights.
    pub name: String,
    /// A sentence.
    pub reason: String,
}

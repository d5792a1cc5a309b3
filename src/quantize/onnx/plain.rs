//! Weights rounded to few bits without data.
//!
//! Invariant: the model and what is stated here decide the result, so an artifact that states it can be compiled again from the model.

use super::{Activations, Prepared, Runs, Settings};
use crate::quantize::{Method, WeightOptions};
use crate::{Error, Options, Silent};
use kiln_frontend::onnx::model::Model;
use kiln_passes::quantize::{Grid, RangeMethod};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::memory::Budget;
use std::fmt;
use std::str::FromStr;

/// Weights rounded to the nearest integers of few bits; activations, too, where that is asked for, with scales of each run.
///
/// The text form is `int8`, `int4 group=32`, `int8 activations=int8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Bits of a weight, 3, 4 or 8.
    pub bits: u32,
    /// Inputs that share a scale; 0 is one scale for each output.
    pub group: usize,
    /// Whether activations are rounded to 8 bits.
    pub activations: bool,
}

impl Plain {
    /// The quantized model; the result does not depend on the number of threads.
    ///
    /// # Errors
    /// [`Error::Usage`] where the model has no such weights, [`Error::Data`] for weights that are not finite.
    pub fn apply(self, model: &Model, threads: usize) -> Result<Model, Error> {
        let grid = Grid::Symmetric(self.bits);
        let settings = Settings {
            weights: WeightOptions { grid, group: self.group, method: Method::Nearest, threads },
            activations: if self.activations { Activations::Dynamic } else { Activations::Float },
            ranges: RangeMethod::MinMax,
            per_tensor: false,
            bias_correction: false,
            equalise: false,
            smooth: None,
            prune: None,
            skip: Vec::new(),
        };
        // Nothing is run, since there is no data.
        let place = (CpuLevel::Portable, threads);
        let runs = Runs { options: Options::default(), place, budget: Budget::unlimited() };
        let prepared = Prepared::new(model, &settings, &[], &runs, &mut Silent)?;
        Ok(prepared.quantized(&|_| Some(grid))?.0)
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int{}", self.bits)?;
        if self.group > 0 {
            write!(f, " group={}", self.group)?;
        }
        f.write_str(if self.activations { " activations=int8" } else { "" })
    }
}

impl FromStr for Plain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Plain, Error> {
        let broken = || Error::data("quantized", format!("{text:?} is no quantization that this build knows"));
        let mut words = text.split(' ');
        let bits = words.next().and_then(|word| word.strip_prefix("int")?.parse().ok());
        let bits = bits.filter(|bits| [3, 4, 8].contains(bits)).ok_or_else(broken)?;
        let mut plain = Plain { bits, group: 0, activations: false };
        for word in words {
            match word.split_once('=') {
                Some(("group", number)) => plain.group = number.parse().map_err(|_| broken())?,
                Some(("activations", "int8")) => plain.activations = true,
                _ => return Err(broken()),
            }
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_says_all() {
        for (bits, group, activations) in [(8, 0, false), (8, 0, true), (4, 32, false), (3, 64, true)] {
            let plain = Plain { bits, group, activations };
            assert_eq!(plain.to_string().parse::<Plain>().unwrap(), plain);
        }
        for bad in ["", "int5", "f8", "int8 group=x", "int8 activations=int4", "int8 fast"] {
            assert!(bad.parse::<Plain>().is_err(), "{bad}");
        }
    }
}

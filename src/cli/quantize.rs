//! `kiln quantize`: a model with smaller numbers.

mod checkpoint;

use super::Talk;
use super::options::Machinery;
use clap::{Args as ClapArgs, ValueEnum};
use kiln::Error;
use kiln::lm::LanguageModel;
use kiln::passes::quantize::Grid;
use kiln::quantize::{Method, WeightOptions};
use std::path::{Path, PathBuf};

/// Quantize a model
///
/// Language models (GGUF file or Hugging Face folder) keep their form: a GGUF file becomes one with Q8_0, Q4_0 or Q4_1 blocks, a
/// folder one with packed safetensors.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A GGUF file, or a folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The file or folder to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Numbers of the weights: int8, int4, int3 around zero; uint4, uint3 with zero points; nf4 by the normal distribution
    #[arg(long, value_name = "TYPE", default_value = "int8", value_parser = parse_grid)]
    weights: Grid,
    /// Inputs that share a scale
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    group: u32,
    /// How weights are rounded: to the nearest, or so that outputs lose little by calibration data (gptq, awq), or by the
    /// weights alone (hqq)
    #[arg(long, value_enum, default_value_t = MethodWord::Rtn)]
    method: MethodWord,
    /// Calibration text: for decoders one text, for encoders a text in each line
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens that calibration reads at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=8192))]
    window: u32,
    /// Most tokens (of a decoder) or texts (of an encoder) that calibration reads
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Leave weights alone whose name holds this; several times for several
    #[arg(long, value_name = "PART")]
    skip: Vec<String>,
    /// Write a report as JSON
    #[arg(long, value_name = "F.json")]
    report: Option<PathBuf>,
    #[command(flatten)]
    machinery: Machinery,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodWord {
    Rtn,
    Gptq,
    Awq,
    Hqq,
}

fn parse_grid(word: &str) -> Result<Grid, String> {
    Ok(match word {
        "int8" => Grid::Symmetric(8),
        "int4" => Grid::Symmetric(4),
        "int3" => Grid::Symmetric(3),
        "uint8" => Grid::Asymmetric(8),
        "uint4" => Grid::Asymmetric(4),
        "uint3" => Grid::Asymmetric(3),
        "nf4" => Grid::NormalFloat4,
        other => {
            return Err(format!(
                "{other:?} is no type of weights; there are int8, int4, int3, uint8, uint4, uint3, nf4"
            ));
        }
    })
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        if LanguageModel::is_at(&self.model) {
            return checkpoint::run(self, talk);
        }
        Err(Error::Unsupported(format!("{} is neither a GGUF file nor a Hugging Face folder", self.model.display())))
    }

    fn weights(&self) -> WeightOptions {
        let method = match self.method {
            MethodWord::Rtn => Method::Nearest,
            MethodWord::Gptq => Method::Gptq,
            MethodWord::Awq => Method::Awq,
            MethodWord::Hqq => Method::Hqq,
        };
        WeightOptions { grid: self.weights, group: self.group as usize, method, threads: self.machinery.threads() }
    }

    fn wanted(&self, name: &str) -> Option<WeightOptions> {
        (!self.skip.iter().any(|part| name.contains(part.as_str()))).then(|| self.weights())
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|_| Error::data(path.display(), "the text is not UTF-8"))
}

//! `kiln verify`: compiled code against the graph interpreter.

use super::Talk;
use super::options::{self, Inputs, Machinery, Watching};
use clap::Args as ClapArgs;
use kiln::compare::{self, Difference, TOLERANCE};
use kiln::data::From;
use kiln::ir::interp::{self, EvalError, eval_graph};
use kiln::runtime::cpu::{CpuLevel, Machine};
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::{Error, Source};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Compare a model's compiled code with the graph interpreter (exit code 5 where they differ)
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let budget = self.machinery.budget();
        let onnx = Source::open(&self.model)?.model(&self.machinery.limits())?;
        let from = self.inputs.from().unwrap_or(From::Seed(0));
        let here = Machine::detect();
        let wanted = self.machinery.artifact_levels();
        let levels: Vec<CpuLevel> = wanted.iter().copied().filter(|level| here.supports(*level)).collect();
        if levels.is_empty() {
            self.machinery.level_here()?;
        }
        let (mut options, inputs) = options::with_inputs(&onnx, &self.machinery, Some(from), levels.clone(), &budget)?;
        let named = options::by_name(&onnx, &inputs);
        let graph = loop {
            match kiln::import_graph(&onnx, &options) {
                Err(error) if options.learn(&error, &named) => {}
                done => break done?,
            }
        };
        let interpreted = interp::Options { taps: &[], budget: self.machinery.binding.memory_limit };
        let expected = eval_graph(&graph, &inputs, &interpreted).map_err(interpreter_error)?;
        let compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        let mut text = String::new();
        let mut list = Vec::new();
        let mut wrong = Vec::new();
        for level in levels {
            let model = compiled.load(&ModelOptions {
                levels: Some(vec![level]),
                verify_weights: false,
                ..ModelOptions::default()
            })?;
            let found = Context::new(&model, self.machinery.threads(), &budget)?.run(&inputs)?;
            for ((name, _), (want, found)) in model.plan().outputs.iter().zip(expected.iter().zip(&found)) {
                let difference = compare::difference(want, found);
                let ok = difference.within(TOLERANCE);
                let verdict = if ok { "agrees" } else { "DIFFERS" };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name} ({level}): {verdict}; {difference}");
                let relative = match difference {
                    Difference::Relative(d) if d.is_finite() => Some(d),
                    Difference::Relative(_) | Difference::Type { .. } | Difference::Elements(_) => None,
                };
                list.push(json!({ "output": &**name, "level": level.name(), "agrees": ok, "relative": relative,
                                  "difference": difference.to_string() }));
                if !ok {
                    wrong.push(format!("output {name:?} on {level}: {difference}"));
                }
            }
        }
        talk.report(&json!({ "agrees": wrong.is_empty(), "tolerance": TOLERANCE, "outputs": list }), &text)?;
        if wrong.is_empty() { Ok(()) } else { Err(Error::Mismatch(wrong.join("; "))) }
    }
}

fn interpreter_error(error: EvalError) -> Error {
    match &error {
        EvalError::Budget { .. } => Error::Limit(error.to_string()),
        EvalError::Op(_)
        | EvalError::Tensor(_)
        | EvalError::Index { .. }
        | EvalError::Unbound(_)
        | EvalError::Invalid(_)
        | EvalError::At { .. } => Error::data("interpreter", error),
    }
}

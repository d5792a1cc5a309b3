//! `kiln verify`: compiled code against the graph interpreter.

use super::Talk;
use super::cuda;
use super::gpu::{OnDevice, Target};
use super::options::{self, Inputs, Machinery, Watching};
use clap::Args as ClapArgs;
use kiln::compare::{self, Difference};
use kiln::data::From;
use kiln::gpu::{self, Architecture, Precision};
use kiln::ir::Tensor;
use kiln::ir::interp::{self, EvalError, eval_graph};
use kiln::ir::ops::Elements;
use kiln::onnx::model::Model;
use kiln::passes::rewrite::has_products_of;
use kiln::ptx::emulate::{self, Accumulate, Counts};
use kiln::runtime::cpu::{CpuLevel, Machine};
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::{Error, Options, Source, steps};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Compare a model's compiled code with the graph interpreter (exit code 5 where they differ)
///
/// Products of quantized values are compiled to integer products that round once where the model rounds twice. Such a model's code is
/// compared with its optimised graph, and that graph with the model, from one quantized value to the next: none may be more than
/// one step away.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    /// Run the kernels for a GPU instead, in the PTX interpreter (sm_80, sm_86, sm_89, sm_90, sm_100, sm_120) or on this
    /// machine's GPU (cuda)
    #[arg(long, value_name = "SM|cuda", conflicts_with = "cpu")]
    target: Option<Target>,
    /// Order of warps and errors of approximate instructions, with --target
    #[arg(long, value_name = "N", default_value_t = 0, requires = "target")]
    seed: u64,
    /// Let tensor cores cut off what does not fit, as hardware does, instead of rounding once, with --target
    #[arg(long, requires = "target")]
    truncate: bool,
    /// Compare each kernel with its tile program on the same operands, with --target
    #[arg(long, requires = "target")]
    each: bool,
    /// Do not look for races and the like, with --target: several times as fast
    #[arg(long, requires = "target")]
    unchecked: bool,
    #[command(flatten)]
    inputs: Inputs,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        if let Some(Target::Device(OnDevice::Cuda)) = self.target {
            cuda::probe()?;
        }
        let budget = self.machinery.budget();
        let onnx = Source::open(&self.model)?.model(&self.machinery.limits())?;
        let machinery = &Machinery { gpu: self.target.is_some(), ..self.machinery.clone() };
        let from = self.inputs.from().unwrap_or(From::Seed(0));
        let here = Machine::detect();
        let wanted = self.machinery.artifact_levels();
        let levels: Vec<CpuLevel> = wanted.iter().copied().filter(|level| here.supports(*level)).collect();
        if levels.is_empty() {
            self.machinery.level_here()?;
        }
        let (mut options, inputs) = options::with_inputs(&onnx, machinery, Some(from), levels.clone(), &budget)?;
        let named = options::by_name(&onnx, &inputs);
        let graph = loop {
            match kiln::import_graph(&onnx, &options) {
                Err(error) if options.learn(&error, &named) => {}
                done => break done?,
            }
        };
        let interpreted = interp::Options { taps: &[], budget: self.machinery.binding.memory_limit };
        let evaluated = |graph| eval_graph(graph, &inputs, &interpreted).map_err(interpreter_error);
        match self.target {
            None => {}
            Some(Target::Interpreter(target)) => {
                return self.for_gpu(&onnx, &options, target, &inputs, &evaluated(&graph)?, talk);
            }
            Some(Target::Device(OnDevice::Cuda)) => {
                let tolerance = Precision::parse(&self.machinery.precision)?.tolerance();
                let from = Some(self.inputs.from().unwrap_or(From::Seed(0)));
                let ready = cuda::ready(&self.model, &self.machinery, &self.watching, from, &[], talk)?;
                return cuda::verify(ready, &evaluated(&graph)?, tolerance, self.each, talk);
            }
        }
        let types = graph.values().map(|(_, v)| v.ty.dtype);
        let tolerance = compare::tolerance(types.chain(options.precision.factors()));
        let compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        let mut text = String::new();
        let mut list = Vec::new();
        let mut wrong = Vec::new();
        let stepwise = match has_products_of(&compiled.graph, Elements::Bytes) {
            true => steps::stepwise(&graph, &compiled.graph, &inputs, interpreted.budget).map_err(interpreter_error)?,
            false => None,
        };
        let expected = match &stepwise {
            None => evaluated(&graph)?,
            Some(found) => {
                let _ = writeln!(text, "optimised graph against the model, {found}");
                wrong.extend(found.wrong().into_iter().map(|w| format!("the optimised graph against the model: {w}")));
                evaluated(&compiled.graph)?
            }
        };
        // Levels whose code would be another one's again are not there.
        for level in compiled.code.iter().map(|code| code.level) {
            let model = compiled.load(&ModelOptions {
                levels: Some(vec![level]),
                verify_weights: false,
                ..ModelOptions::default()
            })?;
            let found = Context::new(&model, self.machinery.threads(), &budget)?.run(&inputs)?;
            for ((name, _), (want, found)) in model.plan().outputs.iter().zip(expected.iter().zip(&found)) {
                let difference = compare::difference(want, found);
                let ok = difference.within(tolerance);
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
        let quantized = stepwise.as_ref().map(|s| {
            let total = s.total();
            json!({ "values": s.values.len(), "elements": total.elements, "off": total.off, "most_steps": total.most })
        });
        let report =
            json!({ "agrees": wrong.is_empty(), "tolerance": tolerance, "outputs": list, "quantized": quantized });
        talk.report(&report, &text)?;
        if wrong.is_empty() { Ok(()) } else { Err(Error::Mismatch(wrong.join("; "))) }
    }

    /// The kernels for a GPU in the interpreter of PTX.
    fn for_gpu(
        &self,
        onnx: &Model,
        options: &Options,
        target: Architecture,
        inputs: &[Tensor],
        expected: &[Tensor],
        talk: Talk,
    ) -> Result<(), Error> {
        let precision = Precision::parse(&self.machinery.precision)?;
        let tolerance = precision.tolerance();
        let mut observer = self.watching.observers(&self.machinery, talk)?;
        let compiled = gpu::compile(onnx, options, (target, precision), &mut observer)?;
        if let Some(folder) = &self.watching.dump {
            compiled.dump(folder)?;
        }
        let threads = self.machinery.threads();
        let how = emulate::Options {
            checks: !self.unchecked,
            seed: self.seed,
            accumulate: if self.truncate { Accumulate::Truncating } else { Accumulate::Exact },
            threads,
            ..emulate::Options::default()
        };
        let mut text = String::new();
        let outcome = gpu::emulate::run(&compiled, inputs, &how, self.each, &mut |k| {
            tracing::info!("{} {}: {} instructions", k.name, k.what, k.counts.instructions);
        })?;
        let mut wrong = Vec::new();
        let mut list = Vec::new();
        for (n, ((name, _), (want, found))) in
            compiled.plan.outputs.iter().zip(expected.iter().zip(&outcome.outputs)).enumerate()
        {
            let difference = compare::difference(want, found);
            let ok = difference.within(tolerance);
            let verdict = if ok { "agrees" } else { "DIFFERS" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} ({}): {verdict}; {difference}", target.name);
            list.push(json!({ "output": &**name, "number": n, "agrees": ok, "difference": difference.to_string() }));
            if !ok {
                wrong.push(format!("output {name:?} on {}: {difference}", target.name));
            }
        }
        let mut kernels = Vec::new();
        let mut total = Counts::default();
        for k in &outcome.kernels {
            total = total.plus(k.counts);
            for finding in &k.findings {
                let _ = writeln!(text, "{} {}: {finding}", k.name, k.what);
                wrong.push(format!("{}: {}", k.name, finding.kind.name()));
            }
            if let Some(d) = k.difference.filter(|d| d.is_nan() || *d > k.allowed) {
                let _ = writeln!(text, "{} {}: DIFFERS from its tile program by {d:.2e}", k.name, k.what);
                wrong.push(format!("{} differs from its tile program", k.name));
            }
            kernels.push(json!({
                "kernel": k.name, "what": k.what, "blocks": k.shape.0, "threads": k.shape.1,
                "findings": k.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "instructions": k.counts.instructions, "thread_instructions": k.counts.thread_instructions,
                "mma": k.counts.mma, "bank_conflicts": k.counts.conflicts(),
                "sector_efficiency": k.counts.sector_efficiency(), "difference": k.difference,
            }));
        }
        let _ = writeln!(
            text,
            "{} kernels, {} instructions of warps ({} of threads), {} bank conflicts, {:.0} % of moved sectors needed, \
             in the interpreter",
            kernels.len(),
            total.instructions,
            total.thread_instructions,
            total.conflicts(),
            100.0 * total.sector_efficiency(),
        );
        let report = json!({ "agrees": wrong.is_empty(), "tolerance": tolerance, "target": target.name,
                             "outputs": list, "kernels": kernels });
        talk.report(&report, &text)?;
        wrong.truncate(8);
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

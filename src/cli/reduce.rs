//! `kiln reduce`: a model that goes wrong, cut down to the nodes that do.

use super::Talk;
use super::options::{self, Inputs, Machinery};
use clap::Args as ClapArgs;
use kiln::cross::{self, Way};
use kiln::data::From;
use kiln::ir::{Graph, Tensor};
use kiln::reduce::{Case, reduce};
use kiln::{Error, Source, compare, data, npz, random};
use serde_json::json;
use std::path::PathBuf;

/// Cut a model that goes wrong down to the few nodes that do
///
/// The model runs in every way that Kiln has (the graph interpreter after each pass, tile programs, machine code of each CPU level,
/// an artifact read back) and is compared with the graph interpreter. In the first way that differs, panics or fails where the
/// interpreter does not, the model is cut: what is left out becomes an input with the values it had. The result is Kiln's text form,
/// which this command reads, too.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model, or a graph in Kiln's text form
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Ways to run it: passes, raw-tiles, tiles, levels, unfused, file [default: all]
    #[arg(long, value_delimiter = ',', value_name = "WAY,...", value_parser = parse_way)]
    check: Vec<Way>,
    /// Largest difference of floats that counts as none, relative to the largest value of an output
    #[arg(long, value_name = "X", default_value_t = compare::TOLERANCE)]
    tolerance: f64,
    /// Leave the free dims of an ONNX model free
    #[arg(long)]
    free: bool,
    /// Write the graph here (default: standard output), and its inputs beside it as .npz
    #[arg(short, long, value_name = "OUT.graph")]
    output: Option<PathBuf>,
    #[command(flatten)]
    machinery: Machinery,
}

fn parse_way(text: &str) -> Result<Way, String> {
    let names = || Way::ALL.iter().map(|w| w.name()).collect::<Vec<_>>().join(", ");
    let way = Way::ALL.iter().copied().find(|w| w.name() == text);
    way.ok_or_else(|| format!("there are {}", names()))
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        if let Some(path) = &self.output {
            data::writable(path)?;
        }
        let case = self.case()?;
        let ways = if self.check.is_empty() { Way::ALL.to_vec() } else { self.check.clone() };
        let judge = |_: usize, expected: &Tensor, found: &Tensor| {
            let difference = compare::difference(expected, found);
            (!difference.within(self.tolerance)).then(|| difference.to_string())
        };
        let check = |case: &Case, ways: &[Way]| {
            cross::check(&case.graph, std::slice::from_ref(&case.inputs), ways, &judge).err()
        };
        let Some(first) = check(&case, &ways) else {
            let report = json!({ "finding": null });
            return talk.report(&report, &"nothing goes wrong: every way gives what the graph interpreter does\n");
        };
        talk.say(format_args!("{} nodes, {first}", case.graph.nodes().len()));
        // What panics is looked for many times; once is enough to say so.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let mut tries = 0u64;
        let reduced = reduce(case, &mut |case| {
            tries += 1;
            check(case, &[first.way]).is_some()
        });
        std::panic::set_hook(hook);
        let small = reduced?;
        let finding = check(&small, &[first.way]).unwrap_or(first);
        talk.say(format_args!("{} nodes after {tries} tries, {finding}", small.graph.nodes().len()));
        let text = small.graph.to_string();
        if let Some(path) = &self.output {
            data::write(path, text.as_bytes())?;
            npz::write(&path.with_extension("npz"), &named(&small))?;
        }
        let report = json!({
            "finding": { "way": finding.way.name(), "what": finding.what }, "nodes": small.graph.nodes().len(),
            "tries": tries, "graph": text,
        });
        let shown = if self.output.is_some() { String::new() } else { text };
        talk.report(&report, &shown)
    }

    fn case(&self) -> Result<Case, Error> {
        let source = Source::open(&self.model)?;
        if let Source::Model { bytes, .. } = &source
            && bytes.starts_with(b"graph \"")
        {
            let text = std::str::from_utf8(bytes).map_err(|e| Error::data(self.model.display(), e))?;
            return self.case_of_text(text);
        }
        let onnx = source.model(&self.machinery.limits())?;
        let from = self.inputs.from().unwrap_or(From::Seed(0));
        let budget = self.machinery.budget();
        let (mut options, inputs) = options::with_inputs(&onnx, &self.machinery, Some(from), vec![], &budget)?;
        if self.free {
            options.shapes.clear();
        }
        let named = options::by_name(&onnx, &inputs);
        loop {
            match kiln::import_graph(&onnx, &options) {
                Err(error) if options.learn(&error, &named) => {}
                graph => return Ok(Case { graph: graph?, inputs }),
            }
        }
    }

    /// A graph in the text form; inputs, and constants that the text only refers to, are from the archive.
    fn case_of_text(&self, text: &str) -> Result<Case, Error> {
        let archive = match &self.inputs.inputs {
            Some(path) => npz::read(path, &self.machinery.budget())?,
            None => Vec::new(),
        };
        let find = |name: &str| archive.iter().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        let data: Vec<Tensor> = (0..).map_while(|n| find(&data_name(n))).collect();
        let graph = Graph::parse(text, &data).map_err(|e| Error::data(self.model.display(), e))?;
        let seed = self.inputs.random.unwrap_or(0);
        let of = |&v| random::Input::of(graph.ty(v), &graph.symbols, 3);
        let types: Option<Vec<_>> = graph.inputs.iter().map(of).collect();
        let types = types.ok_or_else(|| Error::Usage("give the inputs with --inputs".into()))?;
        let made = random::inputs(&types, seed)?;
        let inputs = graph.inputs.iter().zip(made).map(|(&v, made)| {
            let name = graph.value(v).name.as_deref().unwrap_or("");
            find(name).unwrap_or(made)
        });
        Ok(Case { inputs: inputs.collect(), graph: graph.clone() })
    }
}

fn data_name(n: usize) -> String {
    format!("data {n}")
}

/// The inputs by name, and the constants that the text form only refers to.
fn named(case: &Case) -> Vec<(String, Tensor)> {
    let name = |&v: &kiln::ir::graph::ValueId| case.graph.value(v).name.as_deref().unwrap_or("").to_string();
    let inputs = case.graph.inputs.iter().map(name).zip(case.inputs.iter().cloned());
    let data = case.graph.data().into_iter().enumerate().map(|(n, t)| (data_name(n), t));
    inputs.chain(data).collect()
}

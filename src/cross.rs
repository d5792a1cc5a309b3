//! One graph, run in every way that there is, and compared with the graph interpreter.
//!
//! Invariant: every way gets the same graph and the same inputs. Where the interpreter refuses the inputs (an index out of range),
//! every other way must refuse them too; a panic in a way is a finding like any other.

use crate::observe::Observer;
use crate::{Error, Options, compare, compile_graph};
use kiln_ir::Tensor;
use kiln_ir::graph::Graph;
use kiln_ir::interp::{self, eval_graph};
use kiln_passes::kernel::{Arrangement, Boundary, Choice, Machine};
use kiln_passes::pipeline::{self, Chosen, Precision, Target};
use kiln_passes::plan::weights_section;
use kiln_runtime::cpu::{self, CpuLevel};
use kiln_runtime::engine::{self, Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A way to run a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The graph after each pass, in the graph interpreter.
    Passes,
    /// The plan of the graph as it is, its kernels in the tile interpreter.
    RawTiles,
    /// The plan of the optimised graph for several machines, its kernels in the tile interpreter.
    Tiles,
    /// The optimised graph cut as a search by measurements may have it: fused, left apart and laid out against the rules
    /// at places where there is a choice, in the tile interpreter.
    Cuts,
    /// Machine code of every level that this machine has, on one and on two threads.
    Levels,
    /// The best level's code of the graph with every value as an output, so that little is fused.
    Unfused,
    /// An artifact, written to a file and read back.
    File,
}

impl Way {
    /// All ways, in the order in which a graph takes its forms.
    pub const ALL: &'static [Way] =
        &[Way::Passes, Way::RawTiles, Way::Tiles, Way::Cuts, Way::Levels, Way::Unfused, Way::File];

    /// The name, as the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Way::Passes => "passes",
            Way::RawTiles => "raw-tiles",
            Way::Tiles => "tiles",
            Way::Cuts => "cuts",
            Way::Levels => "levels",
            Way::Unfused => "unfused",
            Way::File => "file",
        }
    }
}

/// What went wrong in a way.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The way.
    pub way: Way,
    /// What went wrong, with the pass, machine or level.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.way.name(), self.what)
    }
}

/// Says why an output that was found is not the one that is expected (the output's number, expected, found).
pub type Judge<'a> = dyn Fn(usize, &Tensor, &Tensor) -> Option<String> + 'a;

/// Outputs within [`compare::TOLERANCE`] of the largest expected value.
pub fn within_tolerance(_: usize, expected: &Tensor, found: &Tensor) -> Option<String> {
    let difference = compare::difference(expected, found);
    (!difference.within(compare::TOLERANCE)).then(|| difference.to_string())
}

/// What a way makes of inputs: the outputs, or why it refuses them.
type Outcome = Result<Vec<Tensor>, String>;

struct Checker<'a> {
    graph: &'a Graph,
    inputs: &'a [Vec<Tensor>],
    expected: Vec<Outcome>,
    judge: &'a Judge<'a>,
}

/// Runs the graph on each of the sets of inputs in each of the ways; the first thing that is wrong.
///
/// # Errors
/// What is wrong, and in which way.
pub fn check(graph: &Graph, inputs: &[Vec<Tensor>], ways: &[Way], judge: &Judge<'_>) -> Result<(), Finding> {
    let expected = inputs.iter().map(|inputs| interpreted(graph, inputs)).collect();
    let checker = Checker { graph, inputs, expected, judge };
    for &way in ways {
        let ran = catch_unwind(AssertUnwindSafe(|| match way {
            Way::Passes => checker.passes(),
            Way::RawTiles => checker.tiles(graph, &[Machine::avx2()], None),
            Way::Tiles => {
                let graph = optimised(graph)?;
                let small = Machine { enough_programs: 1, chunk: 16, ..Machine::narrow() };
                checker.tiles(&graph, &[Machine::avx512(), Machine::avx2(), Machine::narrow(), small], None)
            }
            Way::Cuts => checker.tiles(&optimised(graph)?, &[Machine::avx512()], Some(&contrary)),
            Way::Levels => checker.levels(),
            Way::Unfused => checker.unfused(),
            Way::File => checker.file(),
        }));
        let what = match ran {
            Ok(Ok(())) => continue,
            Ok(Err(what)) => what,
            Err(panic) => {
                let message = panic.downcast_ref::<String>().cloned();
                let message = message.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
                format!("panicked: {}", message.unwrap_or_default())
            }
        };
        return Err(Finding { way, what });
    }
    Ok(())
}

/// Cuts kernels and lays out their results against the rules, where that can be: always the same ones.
fn contrary(key: &str) -> Option<Choice> {
    let [way, at, ..] = *blake3::hash(key.as_bytes()).as_bytes();
    let at = usize::from(at % 4);
    let boundary = match way % 3 {
        0 => Boundary::Apart(at),
        1 => Boundary::With(at),
        _ => Boundary::Result(Arrangement::ALL[at % Arrangement::ALL.len()]),
    };
    Some(Choice { boundary: Some(boundary), ..Choice::default() })
}

fn interpreted(graph: &Graph, inputs: &[Tensor]) -> Outcome {
    eval_graph(graph, inputs, &interp::Options::default()).map_err(|e| e.to_string())
}

fn optimised(graph: &Graph) -> Result<Graph, String> {
    pipeline::optimise(graph.clone(), Precision::F32, &mut |_, _, _| Ok(())).map_err(|e| e.to_string())
}

/// Keeps the graphs that passes leave.
#[derive(Default)]
struct Kept(Vec<(String, Graph)>);

impl Observer for Kept {
    fn graph(&mut self, pass: &str, _: &Graph, after: &Graph) -> Result<(), Error> {
        self.0.push((pass.into(), after.clone()));
        Ok(())
    }
}

impl Checker<'_> {
    /// Compares results with what is expected for the n-th inputs; those beyond the expected ones are not looked at.
    fn judge(&self, n: usize, found: Outcome) -> Result<(), String> {
        match (&self.expected[n], found) {
            (Ok(expected), Ok(found)) => {
                for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
                    if let Some(why) = (self.judge)(i, expected, found) {
                        let name = self.graph.outputs.get(i).map_or("", |(name, _)| name);
                        return Err(format!("output {name:?} of inputs {n}: {why}"));
                    }
                }
                if found.len() < expected.len() { Err("outputs are missing".into()) } else { Ok(()) }
            }
            (Err(_), Err(_)) => Ok(()),
            (Ok(_), Err(why)) => Err(format!("inputs {n}: {why}")),
            (Err(why), Ok(_)) => Err(format!("inputs {n} gave results, the interpreter says: {why}")),
        }
    }

    fn each(&self, run: &mut dyn FnMut(&[Tensor]) -> Outcome) -> Result<(), String> {
        (0..self.inputs.len()).try_for_each(|n| self.judge(n, run(&self.inputs[n])))
    }

    fn passes(&self) -> Result<(), String> {
        let mut kept = Kept::default();
        let seen = pipeline::optimise(self.graph.clone(), Precision::F32, &mut |pass, before, after| {
            // Keeping a graph cannot fail.
            let _ = kept.graph(pass, before, after);
            Ok(())
        });
        let failed = seen.err().map(|e| e.to_string());
        for (pass, graph) in &kept.0 {
            self.each(&mut |inputs| interpreted(graph, inputs)).map_err(|e| format!("after `{pass}`: {e}"))?;
        }
        failed.map_or(Ok(()), Err)
    }

    fn tiles(&self, graph: &Graph, machines: &[Machine], chosen: Option<&Chosen<'_>>) -> Result<(), String> {
        let mut any = |_: &_, _: &_| Ok(());
        // A target borrows what says whether it lowers a program, so there is one of those for each.
        for (number, machine) in machines.iter().enumerate() {
            let mut targets = [Target { machine: machine.clone(), lowers: &mut any, chosen }];
            let compiled = pipeline::schedule(graph, &mut targets).map_err(|e| e.to_string())?;
            let ranges = compiled.plan.ranges();
            let [programs] = compiled.kernels.as_slice() else { return Err("kernels of one machine".into()) };
            for program in programs {
                if let Err(errors) = program.verify(&ranges) {
                    return Err(format!("machine {number}: {errors:?}\n{program}"));
                }
            }
            let weights = weights_section(&compiled.weights, compiled.plan.weight_bytes);
            let mut run = |inputs: &[Tensor]| {
                kiln_ir::plan::run(&compiled.plan, programs, &weights, inputs).map_err(|e| e.to_string())
            };
            self.each(&mut run).map_err(|e| format!("machine {number}: {e}"))?;
        }
        Ok(())
    }

    fn levels(&self) -> Result<(), String> {
        let options = Options { levels: levels_here(), threads: 1, ..Options::default() };
        let compiled = compile_graph(self.graph.clone(), &options, &mut crate::Silent).map_err(|e| e.to_string())?;
        for level in compiled.code.iter().map(|code| code.level) {
            let only = ModelOptions { levels: Some(vec![level]), ..ModelOptions::default() };
            let model = compiled.load(&only).map_err(|e| e.to_string())?;
            let (mut one, mut two) = (context(&model, 1)?, context(&model, 2)?);
            for (n, inputs) in self.inputs.iter().enumerate() {
                let found = one.run(inputs).map_err(|e| e.to_string());
                let again = two.run(inputs).map_err(|e| e.to_string());
                if !same_bits(&found, &again) {
                    return Err(format!("{level}, inputs {n}: one and two threads differ"));
                }
                self.judge(n, found).map_err(|e| format!("{level}: {e}"))?;
            }
        }
        Ok(())
    }

    fn unfused(&self) -> Result<(), String> {
        let mut graph = self.graph.clone();
        let values: Vec<_> = graph.nodes().flat_map(|(_, node)| node.outputs.clone()).collect();
        for (n, value) in values.into_iter().enumerate() {
            graph.add_output(&format!("value {n}"), value);
        }
        let level = cpu::Machine::detect().choose(crate::default_levels());
        let level = level.ok_or("this machine has no level that code is made for")?;
        let options = Options { levels: vec![level], threads: 1, ..Options::default() };
        let compiled = compile_graph(graph, &options, &mut crate::Silent).map_err(|e| e.to_string())?;
        let model = compiled.load(&ModelOptions::default()).map_err(|e| e.to_string())?;
        let mut context = context(&model, 1)?;
        self.each(&mut |inputs| context.run(inputs).map_err(|e| e.to_string()))
    }

    fn file(&self) -> Result<(), String> {
        let fail = |e: &dyn fmt::Display| e.to_string();
        let options = Options { threads: 2, ..Options::default() };
        let compiled = compile_graph(self.graph.clone(), &options, &mut crate::Silent).map_err(|e| fail(&e))?;
        let folder = tempfile::tempdir().map_err(|e| fail(&e))?;
        let path = folder.path().join("graph.kiln");
        compiled.write(&path).map_err(|e| fail(&e))?;
        let model = engine::Model::open(&path, &ModelOptions::default()).map_err(|e| fail(&e))?;
        let mut context = context(&model, 1)?;
        self.each(&mut |inputs| context.run(inputs).map_err(|e| e.to_string()))
    }
}

/// Whether two outcomes are the same to the bit; errors are, whatever they say.
fn same_bits(a: &Outcome, b: &Outcome) -> bool {
    let same = |a: &Tensor, b: &Tensor| {
        let bytes = a.dtype().is_bytes() && b.dtype().is_bytes();
        a.dtype() == b.dtype() && a.shape() == b.shape() && if bytes { a.bytes() == b.bytes() } else { a == b }
    };
    match (a, b) {
        (Ok(a), Ok(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Err(_), Err(_)) => true,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

fn levels_here() -> Vec<CpuLevel> {
    let here = cpu::Machine::detect();
    crate::default_levels().into_iter().filter(|level| here.supports(*level)).collect()
}

fn context(model: &engine::Model, threads: usize) -> Result<Context, String> {
    Context::new(model, threads, &Budget::unlimited()).map_err(|e| e.to_string())
}

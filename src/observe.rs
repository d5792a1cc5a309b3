//! Watching a compilation: dumps, verification of passes, progress.
//!
//! Invariant: an observer sees every stage in order and can stop the compilation, but never changes it.

use crate::emit::Emitters;
use crate::{Error, compare, random, steps};
use kiln_ir::DType;
use kiln_ir::graph::Graph;
use kiln_ir::interp::{self, eval_graph};
use kiln_ir::plan::Plan;
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::VectorProgram;
use kiln_runtime::cpu::CpuLevel;
use std::path::{Path, PathBuf};

/// Sees what a compilation does. Every method does nothing unless it is given.
pub trait Observer {
    /// The program of an entry begins, where several become one artifact; see [`crate::Bundle`].
    ///
    /// # Errors
    /// To stop the compilation.
    fn entry(&mut self, _name: &str) -> Result<(), Error> {
        Ok(())
    }

    /// A stage begins.
    fn stage(&mut self, _name: &str) {}

    /// A pass has run (`before` is the same graph for the import).
    ///
    /// # Errors
    /// To stop the compilation.
    fn graph(&mut self, _pass: &str, _before: &Graph, _after: &Graph) -> Result<(), Error> {
        Ok(())
    }

    /// A kernel was lowered for a level.
    ///
    /// # Errors
    /// To stop the compilation.
    fn kernel(&mut self, _level: CpuLevel, _tile: &TileProgram, _vector: &VectorProgram) -> Result<(), Error> {
        Ok(())
    }

    /// The plan is made.
    ///
    /// # Errors
    /// To stop the compilation.
    fn plan(&mut self, _plan: &Plan) -> Result<(), Error> {
        Ok(())
    }
}

/// Sees nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {}

/// Writes every stage's text form to a folder.
#[derive(Debug)]
pub struct Dump {
    /// The folder that was named; entries with names have folders in it.
    top: PathBuf,
    folder: PathBuf,
    graphs: usize,
}

impl Dump {
    /// Dumps to a folder, which is made where it is not there.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn new(folder: &Path) -> Result<Dump, Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
        Ok(Dump { top: folder.into(), folder: folder.into(), graphs: 0 })
    }

    fn write(&self, name: &str, text: &dyn std::fmt::Display) -> Result<(), Error> {
        let path = self.folder.join(name);
        std::fs::write(&path, text.to_string()).map_err(|source| Error::Write { path, source })
    }
}

impl Observer for Dump {
    fn entry(&mut self, name: &str) -> Result<(), Error> {
        if name.is_empty() {
            return Ok(());
        }
        let folder = self.top.join(name);
        *self = Dump { top: std::mem::take(&mut self.top), ..Dump::new(&folder)? };
        Ok(())
    }

    fn graph(&mut self, pass: &str, _before: &Graph, after: &Graph) -> Result<(), Error> {
        let name = format!("{:02}-{pass}.graph", self.graphs);
        self.graphs += 1;
        self.write(&name, after)
    }

    fn kernel(&mut self, level: CpuLevel, tile: &TileProgram, vector: &VectorProgram) -> Result<(), Error> {
        self.write(&format!("{}.{level}.kernel", tile.name), tile)?;
        self.write(&format!("{}.{level}.vector", tile.name), vector)?;
        match Emitters::of(level).filter(|e| e.wide.is_none()).map(|e| kiln_cpu::clif_text(vector, e.narrow)) {
            Some(Ok(text)) => self.write(&format!("{}.{level}.clif", tile.name), &text),
            // The code generator says what it does not like, with the kernel's name.
            Some(Err(_)) | None => Ok(()),
        }
    }

    fn plan(&mut self, plan: &Plan) -> Result<(), Error> {
        self.write("plan", plan)
    }
}

/// What free dims are when passes are verified, where their ranges have it.
const FREE: i64 = 3;

/// Interprets the graph before and after each pass on the same seeded inputs, and names the pass that changes results.
#[derive(Debug)]
pub struct VerifyEach {
    /// Seed of the inputs.
    pub seed: u64,
    /// Bytes that the interpreter may take for its tensors.
    pub budget: Option<u64>,
}

impl Observer for VerifyEach {
    fn graph(&mut self, pass: &str, before: &Graph, after: &Graph) -> Result<(), Error> {
        if std::ptr::eq(before, after) {
            return Ok(());
        }
        let of = |&v| random::Input::of(before.ty(v), &before.symbols, FREE);
        let types: Option<Vec<_>> = before.inputs.iter().map(of).collect();
        let types = types.ok_or_else(|| {
            Error::Unsupported(format!("--verify-each takes free dims as {FREE}, which gives no size here; use --bind"))
        })?;
        let inputs = random::inputs(&types, self.seed)?;
        let options = interp::Options { taps: &[], budget: self.budget };
        let run = |graph: &Graph| {
            eval_graph(graph, &inputs, &options).map_err(|e| Error::Mismatch(format!("pass `{pass}`: {e}")))
        };
        let (want, found) = (run(before)?, run(after)?);
        let mut stepwise = None;
        // The only pass that rounds what the model does not.
        let rounded = (pass == "pairs").then_some(DType::BF16);
        let tolerance = compare::tolerance(before.values().map(|(_, v)| v.ty.dtype).chain(rounded));
        for ((name, _), (want, found)) in before.outputs.iter().zip(want.iter().zip(&found)) {
            let difference = compare::difference(want, found);
            if difference.within(tolerance) {
                continue;
            }
            // Rounding that quantized layers have spread is no fault of the pass.
            if stepwise.is_none() {
                stepwise = steps::stepwise(before, after, &inputs, self.budget)
                    .map_err(|e| Error::Mismatch(format!("pass `{pass}`: {e}")))?;
            }
            if stepwise.as_ref().is_none_or(|s| !s.wrong().is_empty()) {
                return Err(Error::Mismatch(format!("pass `{pass}` changes output {name:?}: {difference}")));
            }
        }
        Ok(())
    }
}

/// Several observers, one after another.
#[derive(Default)]
pub struct Several(pub Vec<Box<dyn Observer>>);

impl Observer for Several {
    fn entry(&mut self, name: &str) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|o| o.entry(name))
    }
    fn stage(&mut self, name: &str) {
        self.0.iter_mut().for_each(|o| o.stage(name));
    }
    fn graph(&mut self, pass: &str, before: &Graph, after: &Graph) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|o| o.graph(pass, before, after))
    }
    fn kernel(&mut self, level: CpuLevel, tile: &TileProgram, vector: &VectorProgram) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|o| o.kernel(level, tile, vector))
    }
    fn plan(&mut self, plan: &Plan) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|o| o.plan(plan))
    }
}

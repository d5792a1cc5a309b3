//! `kiln emulate`: a kernel of any PTX file in the interpreter.

use super::Talk;
use clap::Args as ClapArgs;
use kiln::ir::{DType, Tensor};
use kiln::ptx::emulate::{self, Accumulate, Argument, Buffer, Launch, Module, RunError};
use kiln::runtime::memory::Budget;
use kiln::{Error, npz, random};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Run a kernel of a PTX file in an interpreter that looks for races, reads of what nobody wrote, accesses out of bounds
/// and missing barriers (exit code 5 where it finds one)
///
/// The launch is a JSON object: "entry", "grid" and "block" (three numbers each), "shared" (bytes of dynamic shared memory)
/// and "arguments": {"buffer": NAME, "dtype": "f32", "len": N, "written": true|false}, {"value": N, "dtype": "i32"|"f32"|...}
/// or {"status": "u32"}. A launch.json of `kiln compile --target` holds one for each kernel.
#[derive(Debug, ClapArgs)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// PTX text
    file: PathBuf,
    /// How to start the kernel
    #[arg(long, value_name = "launch.json")]
    launch: PathBuf,
    /// The entry, where the launch file has several launches
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Take the buffers' contents from an archive, key = name; others are seeded, as for --random
    #[arg(long, value_name = "F.npz")]
    inputs: Option<PathBuf>,
    /// Write the buffers that the kernel may write to an archive
    #[arg(short, long, value_name = "F.npz")]
    output: Option<PathBuf>,
    /// Order of warps and errors of approximate instructions; 0 for warps by number and exact instructions
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Let tensor cores cut off what does not fit, as hardware does, instead of rounding once
    #[arg(long)]
    truncate: bool,
    /// Only run: several times as fast
    #[arg(long)]
    unchecked: bool,
    /// Most instructions of a warp
    #[arg(long, value_name = "N", default_value_t = 1 << 26)]
    steps: u64,
    /// Threads, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
}

/// A buffer argument.
struct Named {
    name: String,
    dtype: DType,
    written: bool,
}

fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let wrong = |m: String| Error::data(self.launch.display(), m);
        let module = Module::parse(&read(&self.file)?).map_err(|e| Error::data(self.file.display(), e))?;
        let all: Value = serde_json::from_str(&read(&self.launch)?).map_err(|e| wrong(e.to_string()))?;
        let list = match all.get("launches").and_then(Value::as_array) {
            Some(list) => list.iter().filter(|l| l.get("entry").is_some()).cloned().collect(),
            None => vec![all],
        };
        let fits = |l: &&Value| {
            let entry = l.get("entry").and_then(Value::as_str).unwrap_or_default();
            self.entry.as_deref().unwrap_or(entry) == entry && module.kernel(entry).is_some()
        };
        let launch = list.iter().find(fits).ok_or_else(|| {
            let names: Vec<&str> = module.kernels().iter().map(|k| k.name.as_str()).collect();
            wrong(format!("it launches no entry of {}, which has {}", self.file.display(), names.join(", ")))
        })?;
        let entry = launch.get("entry").and_then(Value::as_str).unwrap_or_default();
        let kernel = module.kernel(entry).ok_or_else(|| wrong(format!("there is no entry {entry}")))?;

        let given = match &self.inputs {
            Some(path) => npz::read(path, &Budget::unlimited())?,
            None => Vec::new(),
        };
        let (mut names, mut buffers, mut arguments) = (Vec::new(), Vec::new(), Vec::new());
        for a in launch.get("arguments").and_then(Value::as_array).into_iter().flatten() {
            let (argument, buffer) = self.argument(a, buffers.len(), &given)?;
            arguments.push(argument);
            if let Some((name, buffer)) = buffer {
                names.push(name);
                buffers.push(buffer);
            }
        }
        let shape = |key: &str| -> Result<[u32; 3], Error> {
            let list = launch.get(key).and_then(Value::as_array);
            let list: Option<Vec<u32>> =
                list.map(|l| l.iter().filter_map(|n| u32::try_from(n.as_u64()?).ok()).collect());
            match list.as_deref() {
                Some(&[x, y, z]) => Ok([x, y, z]),
                _ => Err(wrong(format!("{key:?} is to be three numbers"))),
            }
        };
        let shared = launch.get("shared").map_or(Some(0), Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let shared = shared.ok_or_else(|| wrong("\"shared\" is to be a number of bytes".into()))?;
        let start = Launch { grid: shape("grid")?, block: shape("block")?, shared, arguments };
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let options = emulate::Options {
            checks: !self.unchecked,
            seed: self.seed,
            accumulate: if self.truncate { Accumulate::Truncating } else { Accumulate::Exact },
            threads: self.threads.and_then(|t| usize::try_from(t).ok()).unwrap_or_else(all),
            steps: self.steps,
        };
        let report = emulate::run(&module, kernel, &start, &mut buffers, &options).map_err(|e| match e {
            RunError::Launch { .. } => wrong(e.to_string()),
            RunError::Endless { .. } => Error::Limit(e.to_string()),
        })?;
        if let Some(path) = &self.output {
            let written = names.iter().zip(&buffers).filter(|(n, _)| n.written);
            let tensors = written.map(|(n, b)| {
                let len = b.bytes.len() / n.dtype.size().max(1);
                let tensor = Tensor::new(n.dtype, vec![len], b.bytes.clone());
                Ok((n.name.clone(), tensor.map_err(|e| wrong(e.to_string()))?))
            });
            npz::write(path, &tensors.collect::<Result<Vec<_>, Error>>()?)?;
        }
        let counts = report.counts;
        let mut text = String::new();
        for finding in &report.findings {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{finding}");
        }
        let _ = writeln!(
            text,
            "{entry}: {} instructions of warps ({} of threads), {} matrix products, {} barriers, {} bank conflicts, \
             {:.0} % of moved sectors needed, {} findings",
            counts.instructions,
            counts.thread_instructions,
            counts.mma,
            counts.barriers,
            counts.conflicts(),
            100.0 * counts.sector_efficiency(),
            report.findings.len(),
        );
        let findings: Vec<Value> = report
            .findings
            .iter()
            .map(|f| {
                json!({ "kind": f.kind.name(), "line": f.line, "instruction": f.instruction, "source": f.source,
                             "block": f.block, "thread": f.thread, "detail": f.detail, "count": f.count })
            })
            .collect();
        let json = json!({
            "entry": entry, "findings": findings, "instructions": counts.instructions,
            "thread_instructions": counts.thread_instructions, "mma": counts.mma, "barriers": counts.barriers,
            "sectors": counts.sectors, "least_sectors": counts.least_sectors,
            "wavefronts": counts.wavefronts, "least_wavefronts": counts.least_wavefronts,
        });
        talk.report(&json, &text)?;
        match report.findings.as_slice() {
            [] => Ok(()),
            found => Err(Error::Mismatch(format!("{} findings", found.len()))),
        }
    }

    /// An argument, with the buffer that it points to.
    fn argument(
        &self,
        a: &Value,
        next: usize,
        given: &[(String, Tensor)],
    ) -> Result<(Argument, Option<(Named, Buffer)>), Error> {
        let wrong = |m: &str| Error::data(self.launch.display(), format!("the argument {a}: {m}"));
        if a.get("status").is_some() {
            let named = Named { name: "status".into(), dtype: DType::U32, written: true };
            let buffer = Buffer { bytes: vec![0; 4], written: true, initialised: true, granule: 4 };
            return Ok((Argument::Buffer(next), Some((named, buffer))));
        }
        let dtype = a.get("dtype").and_then(Value::as_str).and_then(DType::from_name);
        let dtype = dtype.ok_or_else(|| wrong("\"dtype\" is to be a type such as f32 or i64"))?;
        if let Some(value) = a.get("value") {
            let float =
                value.as_f64().map(|f| if dtype == DType::F64 { f.to_bits() } else { u64::from((f as f32).to_bits()) });
            let int = value.as_i64().map(|n| n as u64).or(value.as_u64());
            let bits = if dtype.is_float() { float } else { int };
            return Ok((Argument::Value(bits.ok_or_else(|| wrong("\"value\" is to be a number"))?), None));
        }
        let name =
            a.get("buffer").and_then(Value::as_str).ok_or_else(|| wrong("no \"buffer\", \"value\" or \"status\""))?;
        let len = a.get("len").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let len = len.filter(|n| n.checked_mul(dtype.size().max(1)).is_some_and(|b| b <= 1 << 32));
        let len = len.ok_or_else(|| wrong("\"len\" is to be a number of elements"))?;
        let written = a.get("written").and_then(Value::as_bool).unwrap_or(false);
        let found = given.iter().find(|(n, _)| n == name);
        let (bytes, initialised) = match found {
            Some((_, t)) if t.dtype() == dtype && t.len() == len => (t.bytes().to_vec(), true),
            Some((_, t)) => {
                let text = format!("the archive has {} elements of {} for it", t.len(), t.dtype());
                return Err(wrong(&text));
            }
            None if written => (vec![0xff; len * dtype.size()], false),
            None => {
                let types: Vec<random::Input> =
                    (0..=next).map(|n| random::Input { dtype, shape: vec![if n == next { len } else { 0 }] }).collect();
                let made = random::inputs(&types, self.seed)?;
                (made.last().map(|t| t.bytes().to_vec()).unwrap_or_default(), true)
            }
        };
        let named = Named { name: name.to_string(), dtype, written };
        Ok((Argument::Buffer(next), Some((named, Buffer { bytes, written, initialised, granule: dtype.size() }))))
    }
}

//! `kiln peer`: an engine for comparing benchmarks, driven by one JSON object a line.
//!
//! Invariant: one answer line for each request line, also where a request fails; compiling reads names, types and shapes
//! of the inputs, never their values. A run writes its outputs to the context's memory and nothing else is done for it.

use super::Talk;
use super::options::Machinery;
use clap::Args as ClapArgs;
use kiln::ir::{DType, Tensor};
use kiln::onnx::model::ValueType;
use kiln::runtime::engine::{Context, Model, ModelOptions};
use kiln::{Error, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Serve a benchmark driver on stdin and stdout as an ahead-of-time engine
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(flatten)]
    machinery: Machinery,
}

/// A loaded model.
struct Session {
    model: Model,
    context: Context,
}

impl Args {
    pub fn run(&self, _: Talk) -> Result<(), Error> {
        let mut session = None;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|source| Error::Read { path: "standard input".into(), source })?;
            if line.trim().is_empty() {
                continue;
            }
            let start = Instant::now();
            let answer = match serde_json::from_str::<Value>(&line) {
                Ok(request) if request["op"] == "quit" => return Ok(()),
                // The child lives on, whatever a model does to it.
                Ok(request) => catch_unwind(AssertUnwindSafe(|| self.answer(&request, &mut session, start)))
                    .unwrap_or_else(|_| Err(Error::Internal("a panic, which stderr tells of".into()))),
                Err(e) => Err(Error::Usage(format!("the request is no JSON: {e}"))),
            };
            let answer = answer.unwrap_or_else(|e| json!({ "ok": false, "error": chain(&e) }));
            super::print(&format!("{answer}\n"))?;
        }
        Ok(())
    }

    fn answer(&self, request: &Value, session: &mut Option<Session>, start: Instant) -> Result<Value, Error> {
        match request["op"].as_str() {
            Some("hello") => Ok(json!({ "ok": true, "engine": format!("kiln {}", kiln::VERSION), "aot": true })),
            Some("compile") => self.compile(request),
            Some("load") => {
                *session = None;
                let mut made = self.load(request)?;
                let loaded = start.elapsed().as_secs_f64();
                made.context.run_loaded()?;
                *session = Some(made);
                Ok(json!({ "ok": true, "load_s": loaded, "first_s": start.elapsed().as_secs_f64() }))
            }
            Some("run") => run(loaded(session)?, request["n"].as_u64().unwrap_or(1)),
            Some("dump") => dump(loaded(session)?, Path::new(text(request, "dir")?)),
            other => Err(Error::Usage(format!("there is no request {other:?}"))),
        }
    }

    fn compile(&self, request: &Value) -> Result<Value, Error> {
        let path = Path::new(text(request, "model")?);
        let onnx = Source::open(path)?.model(&self.machinery.limits())?;
        let mut shapes = BTreeMap::new();
        for input in request["inputs"].as_array().into_iter().flatten() {
            let name = text(input, "name")?;
            let declared = onnx.graph.inputs.iter().find(|i| i.name == name).and_then(|i| i.ty.as_ref());
            let scalar = matches!(declared, Some(ValueType::Tensor(t)) if t.shape.as_ref().is_some_and(Vec::is_empty));
            shapes.insert(name.to_string(), without_axis(shape(input)?, scalar));
        }
        let options = self.machinery.options(vec![self.machinery.level_here()?], shapes)?;
        let compiled = kiln::compile(&onnx, &options, &mut kiln::Silent)?;
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let artifact = Path::new(text(request, "cache")?).join(format!("{name}.kiln"));
        compiled.write(&artifact)?;
        let mut answer = json!({ "ok": true, "artifact": [artifact.display().to_string()] });
        if let Some(cpu) = cpu_nanoseconds() {
            answer["cpu_s"] = json!(cpu as f64 / 1e9);
        }
        Ok(answer)
    }

    fn load(&self, request: &Value) -> Result<Session, Error> {
        let artifact = request["artifact"][0].as_str().ok_or_else(|| missing("artifact"))?;
        let options = ModelOptions { verify_weights: false, ..self.machinery.load_options()? };
        let model = Model::open(Path::new(artifact), &options)?;
        let given = request["inputs"].as_array().ok_or_else(|| missing("inputs"))?;
        let mut inputs = Vec::new();
        for (name, slot) in &model.plan().inputs {
            let found = given.iter().find(|i| i["name"] == **name);
            let tensor = tensor(found.ok_or_else(|| missing(name))?)?;
            let shape = without_axis(tensor.shape().to_vec(), model.plan().slots[*slot].ty.rank() == 0);
            inputs.push(tensor.reshaped(&shape).map_err(|e| Error::data(name, e))?);
        }
        let mut context = Context::new(&model, self.machinery.threads(), &self.machinery.budget())?;
        context.load(&inputs)?;
        Ok(Session { model, context })
    }
}

fn loaded(session: &mut Option<Session>) -> Result<&mut Session, Error> {
    session.as_mut().ok_or_else(|| Error::Usage("no model is loaded".into()))
}

fn run(session: &mut Session, n: u64) -> Result<Value, Error> {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let (before, start) = (cpu_nanoseconds(), Instant::now());
        session.context.run_loaded()?;
        wall.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        cpu.extend(before.zip(cpu_nanoseconds()).map(|(before, after)| after.saturating_sub(before)));
    }
    let mut answer = json!({ "ok": true, "ns": wall });
    if cpu.len() as u64 == n {
        answer["cpu_ns"] = json!(cpu);
    }
    Ok(answer)
}

fn dump(session: &mut Session, folder: &Path) -> Result<Value, Error> {
    session.context.run_loaded()?;
    let tensors = session.context.take_outputs()?;
    let mut list = Vec::new();
    for (n, ((name, _), tensor)) in session.model.plan().outputs.iter().zip(tensors).enumerate() {
        // What the protocol has no name for goes as f32.
        let (dtype, bytes) = match protocol_name(tensor.dtype()) {
            Some(name) => (name, tensor.bytes().to_vec()),
            None => {
                let fail = || Error::Unsupported(format!("{name} is {}", tensor.dtype()));
                let values = tensor.to_f64().ok_or_else(fail)?;
                ("f32", values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect())
            }
        };
        let path: PathBuf = folder.join(format!("out{n}.raw"));
        std::fs::write(&path, bytes).map_err(|source| Error::Write { path: path.clone(), source })?;
        list.push(
            json!({ "name": &**name, "dtype": dtype, "shape": tensor.shape(), "file": path.display().to_string() }),
        );
    }
    Ok(json!({ "ok": true, "outputs": list }))
}

/// Element types of the protocol.
const TYPES: [(&str, DType); 6] = [
    ("f32", DType::F32),
    ("i64", DType::I64),
    ("i32", DType::I32),
    ("u8", DType::U8),
    ("i8", DType::I8),
    ("bool", DType::Bool),
];

fn protocol_name(dtype: DType) -> Option<&'static str> {
    TYPES.iter().find(|(_, d)| *d == dtype).map(|(name, _)| *name)
}

fn tensor(input: &Value) -> Result<Tensor, Error> {
    let name = text(input, "dtype")?;
    let (_, dtype) = *TYPES
        .iter()
        .find(|(n, _)| *n == name)
        .ok_or_else(|| Error::Usage(format!("there is no element type {name:?}")))?;
    let path = PathBuf::from(text(input, "file")?);
    let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
    Tensor::new(dtype, shape(input)?, bytes).map_err(|e| Error::data(path.display(), e))
}

fn shape(input: &Value) -> Result<Vec<usize>, Error> {
    let dims = input["shape"].as_array().ok_or_else(|| missing("shape"))?;
    let size = |d: &Value| d.as_u64().and_then(|d| usize::try_from(d).ok());
    dims.iter().map(size).collect::<Option<_>>().ok_or_else(|| Error::Usage("a shape is no list of sizes".into()))
}

/// The shape of an input of no axes where it is one: a driver whose arrays all have axes says `[1]`.
fn without_axis(shape: Vec<usize>, scalar: bool) -> Vec<usize> {
    if scalar && shape == [1] { vec![] } else { shape }
}

fn text<'a>(request: &'a Value, key: &str) -> Result<&'a str, Error> {
    request[key].as_str().ok_or_else(|| missing(key))
}

fn missing(what: &str) -> Error {
    Error::Usage(format!("the request has no {what}"))
}

/// An error with its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// CPU time of all threads of the process, where the system tells it.
#[cfg(unix)]
fn cpu_nanoseconds() -> Option<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(time.tv_nsec).ok()?)
}

#[cfg(not(unix))]
fn cpu_nanoseconds() -> Option<u64> {
    None
}

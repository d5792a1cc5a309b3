//! Runs the ONNX backend suite and counts.
//!
//!     conformance [--small] [--ratchet FILE] [--only TEXT] [--list OUTCOME] [--worker-command COMMAND] DIR
//!
//! DIR is what `scripts/suite.py` fills. `--small` leaves out the folders of whole networks. Every case runs in a child process
//! with a time limit, so that a panic or a hang is a result like any other. The ratchet file lists the cases that pass, in
//! kernels or with host ops; a case that falls behind its line fails the run. `BLESS=1` rewrites the file.
//! `--list` prints the cases of an outcome (kernels, host, unsupported, wrong, died). Status 5 for a wrong or dead case,
//! or one behind its ratchet. `--worker-command` names the program that runs the cases, words divided by spaces, where it
//! is not this one: for another architecture, the same program built for that and the emulator before it.

use kiln_tests::suite::{self, Case, Outcome, Tolerance};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What most cases of the suite allow, and all that do not say.
const TOLERANCE: Tolerance = Tolerance { rtol: 1e-3, atol: 1e-7 };

fn main() -> ExitCode {
    match arguments() {
        Ok(None) => {
            worker();
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match conduct(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(5),
            Err(message) => {
                eprintln!("conformance: {message}");
                ExitCode::from(2)
            }
        },
        Err(message) => {
            eprintln!("conformance: {message}");
            ExitCode::from(2)
        }
    }
}

struct Options {
    small: bool,
    ratchet: Option<PathBuf>,
    only: Option<String>,
    list: Option<String>,
    /// The words that start a worker.
    worker: Vec<OsString>,
    suite: PathBuf,
}

/// The options; nothing for a worker.
fn arguments() -> Result<Option<Options>, String> {
    let mut options =
        Options { small: false, ratchet: None, only: None, list: None, worker: vec![], suite: PathBuf::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--worker" => return Ok(None),
            "--small" => options.small = true,
            "--ratchet" => options.ratchet = Some(value()?.into()),
            "--only" => options.only = Some(value()?),
            "--list" => options.list = Some(value()?),
            "--worker-command" => options.worker = value()?.split_whitespace().map(OsString::from).collect(),
            _ if word.starts_with('-') => return Err(format!("there is no option {word}")),
            _ => options.suite = word.into(),
        }
    }
    if options.suite.as_os_str().is_empty() {
        return Err("usage: conformance [--small] [--ratchet FILE] [--only TEXT] [--list OUTCOME] DIR".into());
    }
    Ok(Some(options))
}

/// Runs the cases that come on stdin, one JSON object a line, and answers each with one.
fn worker() {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let Ok(request) = serde_json::from_str::<Value>(&line) else { continue };
        let path = |v: &Value| v.as_str().map(PathBuf::from);
        let case = Case {
            name: request["name"].as_str().unwrap_or_default().into(),
            model: path(&request["model"]).unwrap_or_default(),
            data: request["data"].as_array().into_iter().flatten().filter_map(path).collect(),
            light_output: path(&request["light_output"]),
        };
        let tolerance = Tolerance {
            rtol: request["rtol"].as_f64().unwrap_or(TOLERANCE.rtol),
            atol: request["atol"].as_f64().unwrap_or(TOLERANCE.atol),
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| suite::run(&case, tolerance)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Outcome::Died(format!("panic: {text}"))
        });
        println!("{}", to_json(&outcome));
    }
}

fn to_json(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Kernels => json!({ "kernels": true }),
        Outcome::Host(steps) => json!({ "host": steps }),
        Outcome::Unsupported(reasons) => json!({ "unsupported": reasons }),
        Outcome::Wrong(message) => json!({ "wrong": message }),
        Outcome::Died(message) => json!({ "died": message }),
    }
}

fn from_json(answer: &Value) -> Outcome {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    if answer["kernels"] == true {
        Outcome::Kernels
    } else if let Some(steps) = answer["host"].as_u64() {
        Outcome::Host(steps as usize)
    } else if let Some(reasons) = answer["unsupported"].as_array() {
        Outcome::Unsupported(reasons.iter().map(text).collect())
    } else if answer["wrong"].is_string() {
        Outcome::Wrong(text(&answer["wrong"]))
    } else {
        Outcome::Died(text(&answer["died"]))
    }
}

/// A child process that runs cases.
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
}

impl Worker {
    fn start(command: &[OsString]) -> Result<Worker, String> {
        let (program, words) = command.split_first().ok_or("the command of a worker is empty")?;
        let mut child = Command::new(program)
            .args(words)
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.to_string_lossy()))?;
        let (Some(requests), Some(out)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a worker has no pipes".into());
        };
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Worker { child, requests, answers })
    }

    /// What a case came to, and whether the worker lives on.
    fn run(&mut self, case: &Case, tolerance: Tolerance) -> (Outcome, bool) {
        let request = json!({ "name": case.name, "model": case.model, "data": case.data,
                              "light_output": case.light_output, "rtol": tolerance.rtol, "atol": tolerance.atol });
        if let Err(e) = writeln!(self.requests, "{request}") {
            return (Outcome::Died(format!("the worker is gone: {e}")), false);
        }
        match self.answers.recv_timeout(LIMIT) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(answer) => (from_json(&answer), true),
                Err(e) => (Outcome::Died(format!("the worker answered {line:?}: {e}")), false),
            },
            Err(RecvTimeoutError::Timeout) => (Outcome::Died(format!("no result in {} s", LIMIT.as_secs())), false),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                (Outcome::Died(format!("the process ended: {status}")), false)
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be gone already; either way nothing is left of it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run_all(
    cases: &[Case],
    tolerances: &BTreeMap<String, Tolerance>,
    command: &[OsString],
) -> Result<Vec<Outcome>, String> {
    let next = AtomicUsize::new(0);
    let outcomes = Arc::new(Mutex::new(vec![None; cases.len()]));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || -> Result<(), String> {
            let mut worker = Worker::start(command)?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(case) = cases.get(n) else { return Ok(()) };
                let short = case.name.rsplit('/').next().unwrap_or_default();
                let tolerance = tolerances.get(short).copied().unwrap_or(TOLERANCE);
                let (outcome, alive) = worker.run(case, tolerance);
                if let Some(place) = outcomes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(n) {
                    *place = Some(outcome);
                }
                if !alive {
                    worker = Worker::start(command)?;
                }
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|w| w.join().map_err(|_| "a conductor thread panicked".to_string())?)
    })?;
    let outcomes = std::mem::take(&mut *outcomes.lock().unwrap_or_else(PoisonError::into_inner));
    outcomes.into_iter().map(|o| o.ok_or_else(|| "a case was left out".to_string())).collect()
}

fn conduct(options: &Options) -> Result<bool, String> {
    let folders: &[&str] = if options.small {
        &["node", "simple"]
    } else {
        &["node", "simple", "pytorch-converted", "pytorch-operator", "light"]
    };
    let mut cases = suite::cases(&options.suite, folders).map_err(|e| format!("{}: {e}", options.suite.display()))?;
    if let Some(only) = &options.only {
        cases.retain(|c| c.name.contains(only.as_str()));
    }
    let random = cases.iter().filter(|c| suite::is_random(&c.name)).count();
    cases.retain(|c| !suite::is_random(&c.name));
    let mut command = options.worker.clone();
    if command.is_empty() {
        command.push(std::env::current_exe().map_err(|e| e.to_string())?.into());
    }
    let outcomes = run_all(&cases, &suite::tolerances(&options.suite)?, &command)?;
    let results: Vec<(&str, &Outcome)> = cases.iter().map(|c| c.name.as_str()).zip(&outcomes).collect();
    report(&results, random);
    if let Some(kind) = &options.list {
        for (name, outcome) in results.iter().filter(|(_, o)| key(o) == kind) {
            println!("{name} {}", to_json(outcome));
        }
    }
    let sound = !outcomes.iter().any(|o| matches!(o, Outcome::Wrong(_) | Outcome::Died(_)));
    let risen = match &options.ratchet {
        Some(file) => ratchet(file, &results)?,
        None => true,
    };
    Ok(sound && risen)
}

fn key(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Kernels => "kernels",
        Outcome::Host(_) => "host",
        Outcome::Unsupported(_) => "unsupported",
        Outcome::Wrong(_) => "wrong",
        Outcome::Died(_) => "died",
    }
}

fn report(results: &[(&str, &Outcome)], random: usize) {
    let count = |kind: &str| results.iter().filter(|(_, o)| key(o) == kind).count();
    for (name, outcome) in results {
        if let Outcome::Wrong(message) | Outcome::Died(message) = outcome {
            println!("{} {name}: {message}", key(outcome));
        }
    }
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, outcome) in results {
        if let Outcome::Unsupported(lines) = outcome {
            for line in lines {
                reasons.entry(line).or_default().push(name);
            }
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(reason, names)| (std::cmp::Reverse(names.len()), *reason));
    for (reason, names) in reasons {
        let first = names.first().copied().unwrap_or_default();
        println!("unsupported in {:4} cases: {reason} (such as {first})", names.len());
    }
    println!("{:5} passed, all in kernels", count("kernels"));
    println!("{:5} passed, in part on the host", count("host"));
    println!("{:5} unsupported", count("unsupported"));
    println!("{:5} wrong", count("wrong"));
    println!("{:5} died", count("died"));
    println!("{random:5} not compared, because their outputs are random");
}

/// Compares with the ratchet file; whether nothing has fallen behind.
fn ratchet(file: &Path, results: &[(&str, &Outcome)]) -> Result<bool, String> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(format!("{}: {e}", file.display())),
    };
    // Higher is better.
    let rank = |kind: &str| match kind {
        "kernels" => 2,
        "host" => 1,
        _ => 0,
    };
    let mut lines: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, kind) = line.split_once(' ').ok_or_else(|| format!("{}: {line:?}", file.display()))?;
        lines.insert(name.into(), kind.into());
    }
    let (mut fallen, mut better) = (Vec::new(), 0);
    for (name, outcome) in results {
        let (now, before) = (key(outcome), lines.get(*name).map_or("", String::as_str));
        if rank(now) < rank(before) {
            fallen.push(format!("{name}: {before} before, {now} now"));
        } else if rank(now) > rank(before) {
            better += 1;
            lines.insert((*name).into(), now.into());
        }
    }
    for line in &fallen {
        println!("behind the ratchet: {line}");
    }
    if better > 0 && std::env::var_os("BLESS").is_some_and(|v| v == "1") {
        let mut text =
            String::from("# Cases of the ONNX suite that pass, and how. Lines may only be added or improved.\n");
        for (name, kind) in &lines {
            text.push_str(&format!("{name} {kind}\n"));
        }
        std::fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?;
        println!("{better} cases are better than before; {} is rewritten", file.display());
    } else if better > 0 {
        println!("{better} cases are better than before; BLESS=1 keeps that");
    }
    Ok(fallen.is_empty())
}

//! Mutants of the models of ONNX's suite: nothing panics, hangs, or takes more memory than a rejected file may.
//!
//! Invariant: the mutants depend on nothing but the suite's files and [`SEED`], so that one that fails can be made again:
//! `KILN_MUTANT=NUMBER` makes that one only and says what became of it.

mod counting;
mod mutate;

use kiln_frontend::onnx::external;
use kiln_frontend::onnx::import::{Options, import};
use kiln_frontend::onnx::model::{Limits, load};
use kiln_frontend::onnx::proto::{self, ModelProto};
use mutate::Random;
use prost::Message;
use prost::bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SEED: u64 = 0x6b69_6c6e;

/// How many there are, or what `KILN_MUTANTS` says.
const COUNT: usize = 20_000;

/// Models beyond this size are left out: a mutant is to cost little.
const LARGEST: u64 = 64 << 10;

/// A mutant that takes longer hangs: the slowest of 100,000 took 0.9 s in the test profile.
const SLOWEST: Duration = Duration::from_secs(20);

/// What reading a file that is then rejected may take at its peak: so many times its size, and so many bytes.
const MEMORY: (u64, u64) = (20, 64 << 20);

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn suite() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/suite");
    std::env::var_os("KILN_SUITE").map_or(here, PathBuf::from)
}

fn models() -> Vec<(String, ModelProto)> {
    let mut files = Vec::new();
    for kind in ["node", "simple", "pytorch-operator", "pytorch-converted"] {
        let Ok(entries) = std::fs::read_dir(suite().join(kind)) else { continue };
        files.extend(entries.flatten().map(|e| e.path().join("model.onnx")));
    }
    files.sort();
    let small = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.len() <= LARGEST);
    let read = |path: PathBuf| {
        let bytes = Bytes::from(std::fs::read(&path).ok()?);
        Some((path.display().to_string(), proto::decode(bytes, 1 << 30).ok()?))
    };
    files.into_iter().filter(small).filter_map(read).collect()
}

/// Mutant `n`: the name of the model that it comes from, and its bytes.
fn mutant(models: &[(String, ModelProto)], n: usize) -> (&str, Vec<u8>) {
    let mut random = Random::new(SEED ^ (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (name, model) = &models[random.below(models.len())];
    let mut model = model.clone();
    for _ in 0..1 + random.below(2) {
        mutate::change(&mut model, &mut random);
    }
    let mut bytes = model.encode_to_vec();
    if random.below(8) == 0 {
        mutate::damage(&mut bytes, &mut random);
    }
    (name, bytes)
}

/// What becomes of a mutant: through the reader and the importer, and the graph's verifier where both accept it.
fn outcome(bytes: Vec<u8>) -> String {
    let limits = Limits { decoded_bytes: 64 << 20, ..Limits::default() };
    let model = match load(bytes.into(), &external::none, &limits) {
        Ok(model) => model,
        Err(e) => return format!("refused: {e}"),
    };
    match import(&model, &Options::default()) {
        Err(e) => format!("not imported: {e}"),
        Ok(graph) => match graph.verify().first() {
            None => "imported".into(),
            Some(e) => panic!("the imported graph is not valid: {e}"),
        },
    }
}

#[test]
fn mutants_are_survived() {
    let models = models();
    assert!(
        !models.is_empty(),
        "no model in {}: run scripts/suite.py target/suite, or set KILN_SUITE",
        suite().display()
    );
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<usize>().ok());
    if let Some(n) = number("KILN_MUTANT") {
        let (name, bytes) = mutant(&models, n);
        let size = bytes.len();
        let (outcome, peak) = counting::peak(|| outcome(bytes));
        println!("mutant {n} of {name}, {size} bytes, {peak} held at most: {outcome}");
        return;
    }
    let count = number("KILN_MUTANTS").unwrap_or(COUNT);
    let most = AtomicU64::new(0);
    let next = AtomicUsize::new(0);
    let (tally, finished) = (Mutex::new([0usize; 3]), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // What each thread is at, since when.
    let busy: Vec<Mutex<Option<(usize, Instant)>>> = (0..threads).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for at in &busy {
            // Deeply nested mutants are refused, but reading them recurses first.
            let work = || {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        break;
                    }
                    *at.lock().unwrap() = Some((n, Instant::now()));
                    let (name, bytes) = mutant(&models, n);
                    let size = bytes.len() as u64;
                    let (result, peak) = counting::peak(|| std::panic::catch_unwind(|| outcome(bytes)));
                    *at.lock().unwrap() = None;
                    let Ok(text) = result else {
                        eprintln!("mutant {n} of {name} made a panic: KILN_MUTANT={n}");
                        std::process::exit(1);
                    };
                    let kind = ["refused", "not imported", "imported"].iter().position(|k| text.starts_with(k));
                    tally.lock().unwrap()[kind.unwrap_or(0)] += 1;
                    if kind != Some(2) {
                        most.fetch_max(peak, Ordering::Relaxed);
                        if peak > MEMORY.0 * size + MEMORY.1 {
                            eprintln!("mutant {n} of {name}, {size} bytes, took {peak}: KILN_MUTANT={n}");
                            std::process::exit(1);
                        }
                    }
                }
                finished.fetch_add(1, Ordering::Relaxed);
            };
            scope.spawn(work);
        }
        while finished.load(Ordering::Relaxed) < threads {
            std::thread::sleep(Duration::from_millis(50));
            for at in &busy {
                if let Some((n, since)) = *at.lock().unwrap()
                    && since.elapsed() > SLOWEST
                {
                    eprintln!("mutant {n} hangs: KILN_MUTANT={n}");
                    std::process::exit(1);
                }
            }
        }
    });
    let [refused, stopped, imported] = *tally.lock().unwrap();
    println!(
        "{count} mutants: {refused} refused, {stopped} not imported, {imported} imported; a rejected one held {} KB at most",
        most.load(Ordering::Relaxed) >> 10
    );
    assert_eq!(refused + stopped + imported, count);
    assert!(imported > count / 50 && refused > count / 50, "the mutants are too tame or too wild");
}

//! `kiln tune`: better schedules by measured trials.

use super::Talk;
use super::options::{self, Machinery, Shapes, Watching};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use kiln::tune::record::{self, Database};
use kiln::tune::{self, Outcome, Search, Settings, Subject};
use kiln::{Error, Source, emit};
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Search faster schedules for a model's products and convolutions by running them on this machine
///
/// Every trial is a line in the database before the next begins: a search that was killed goes on where it was. Then
/// `kiln compile --tuning DB` takes the best. Trials run on one thread unless --threads says otherwise; keep the machine quiet.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    /// The database of trials, one JSON object a line; made where it is not there
    #[arg(long, value_name = "F.jsonl", default_value = "tuning.jsonl")]
    db: PathBuf,
    /// Time for all kernels together, such as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,
    /// Schedules to know of each kernel at most, those in the database included
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Generations of eight trials without 1 % of gain after which a kernel is done
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    patience: u32,
    /// Seed of what is tried
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Only the I-th of N parts of the kernels (1/4 to 4/4), in a database of its own beside --db; see `kiln tuning merge`
    #[arg(long, value_name = "I/N", value_parser = parse_shard)]
    shard: Option<(usize, usize)>,
    /// Only this kernel (such as k3); several times for several
    #[arg(long, value_name = "K")]
    kernel: Vec<String>,
    #[command(flatten)]
    shapes: Shapes,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let path = self.shard.map_or_else(|| self.db.clone(), |(i, n)| shard_path(&self.db, i, n));
        let level = self.machinery.level_here()?;
        let budget = self.machinery.budget();
        let onnx = Source::open(&self.model)?.model(&self.machinery.limits())?;
        let options = self.shapes.options(&onnx, &self.machinery, vec![level], &budget)?;
        let compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        drop(onnx);
        // The level of the code, which may be one below what was asked for.
        let level = compiled.code.last().map_or(level, |code| code.level);
        let machine = emit::Emitter::new(level, false)?.machine();
        let mut subjects = tune::subjects(&compiled, &machine);
        let named = |s: &Subject, name: &String| format!("k{}", s.first) == *name;
        if let Some(name) = self.kernel.iter().find(|name| !subjects.iter().any(|s| named(s, name))) {
            let there: Vec<String> = subjects.iter().map(|s| format!("k{}", s.first)).collect();
            let message = format!("--kernel {name}: no such kernel to tune; there are {}", there.join(", "));
            return Err(Error::Usage(message));
        }
        // Opening makes the file: not before it is clear that there is something to tune.
        let mut database = Database::open(&path)?;
        subjects.retain(|s| self.kernel.is_empty() || self.kernel.iter().any(|name| named(s, name)));
        if let Some((i, n)) = self.shard {
            // By hash, so that a part does not depend on what else is tuned.
            subjects.sort_by(|a, b| a.kernel.cmp(&b.kernel));
            subjects = subjects.into_iter().enumerate().filter(|(at, _)| at % n == i - 1).map(|(_, s)| s).collect();
        }
        let settings = Settings {
            level,
            threads: self.machinery.threads.map_or(1, |_| self.machinery.threads()),
            seed: self.seed,
            trials: self.trials as usize,
            patience: self.patience as usize,
            cpu: record::cpu_name(),
        };
        let outcomes = self.search(&compiled, &subjects, &settings, &mut database, talk)?;
        let report = json(&subjects, &outcomes, &settings, &path);
        talk.report(&report, &text(&report))
    }

    fn search(
        &self,
        compiled: &kiln::Compiled,
        subjects: &[Subject],
        settings: &Settings,
        database: &mut Database,
        talk: Talk,
    ) -> Result<Vec<Option<Outcome>>, Error> {
        let budget = self.machinery.budget();
        let end = self.time.map(|t| Instant::now() + t);
        let bar = (!talk.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(subjects.len() as u64);
            if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} kernels, {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let mut outcomes: Vec<Option<Outcome>> = Vec::new();
        for (n, subject) in subjects.iter().enumerate() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let outcome = match tune::finished(subject, settings, database) {
                Some(outcome) => Some(outcome),
                // What there was no time for stays with the cost model.
                None if left.is_some_and(|left| left.is_zero()) => None,
                None => {
                    let rest = subjects.get(n..).unwrap_or_default();
                    let deadline = left.map(|left| Instant::now() + tune::allowance(left, rest));
                    let search = Search::new(compiled, subject, settings, database, &budget)?;
                    let outcome = search.run(database, deadline, &mut |trials, own, best| {
                        if let Some(bar) = &bar {
                            let gain = own / best.max(1e-12);
                            bar.set_message(format!("k{} {trials} trials, best {gain:.2}x", subject.first));
                        }
                    })?;
                    tracing::info!(
                        "k{} {}: {:.2}x after {} trials",
                        subject.first,
                        subject.what,
                        outcome.gain(),
                        outcome.trials
                    );
                    Some(outcome)
                }
            };
            outcomes.push(outcome);
            if let Some(bar) = &bar {
                bar.inc(1);
            }
        }
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        Ok(outcomes)
    }
}

fn json(subjects: &[Subject], outcomes: &[Option<Outcome>], settings: &Settings, path: &Path) -> Value {
    let pairs = || subjects.iter().zip(outcomes).filter_map(|(s, o)| Some((s, o.as_ref()?)));
    let kernel = |(s, o): (&Subject, &Outcome)| {
        json!({
            "kernel": format!("k{}", s.first), "hash": s.kernel, "count": s.count, "what": s.what, "shapes": s.shapes,
            "operations": s.operations, "default": o.default.schedule, "default_us": o.default.p20_ns / 1e3,
            "best": o.best.schedule, "best_us": o.best.p20_ns / 1e3, "gain": o.gain(), "trials": o.trials, "known": o.known,
            "choices": s.space.choices().len(),
        })
    };
    let logs: Vec<f64> = pairs().map(|(_, o)| o.gain().ln()).collect();
    let mean = if logs.is_empty() { 1.0 } else { (logs.iter().sum::<f64>() / logs.len() as f64).exp() };
    let sum = |of: &dyn Fn(&Outcome) -> f64| pairs().map(|(s, o)| of(o) * s.count as f64 / 1e3).sum::<f64>();
    let (before, after) = (sum(&|o| o.default.p20_ns), sum(&|o| o.best.p20_ns));
    json!({
        "db": path.display().to_string(), "level": settings.level.name(), "threads": settings.threads, "cpu": settings.cpu,
        "seed": settings.seed, "kernels": pairs().map(kernel).collect::<Vec<_>>(),
        "without_time": outcomes.iter().filter(|o| o.is_none()).count(),
        "geometric_mean_gain": mean, "default_us": before, "best_us": after,
        "trials": pairs().map(|(_, o)| o.trials).sum::<usize>(),
    })
}

fn text(report: &Value) -> String {
    let list = report["kernels"].as_array().cloned().unwrap_or_default();
    let word = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let rows: Vec<_> = list
        .iter()
        .map(|k| {
            [
                word(&k["kernel"]),
                k["count"].to_string(),
                word(&k["what"]),
                format!("{:.1}", number(&k["default_us"])),
                format!("{:.1}", number(&k["best_us"])),
                format!("{:.2}", number(&k["gain"])),
                k["known"].to_string(),
                word(&k["best"]),
                word(&k["shapes"]),
            ]
        })
        .collect();
    let (l, r) = (Align::Left, Align::Right);
    let columns = [
        ("kernel", l),
        ("times", r),
        ("what", l),
        ("cost model, us", r),
        ("best, us", r),
        ("gain", r),
        ("tried", r),
        ("schedule", l),
        ("operands", l),
    ];
    let mut text = table("", columns, &rows);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "geometric mean of the gains {:.3}; all of these kernels together {:.0} us instead of {:.0}; {} trials now, in {}",
        number(&report["geometric_mean_gain"]),
        number(&report["best_us"]),
        number(&report["default_us"]),
        report["trials"],
        word(&report["db"])
    );
    if report["without_time"] != 0 {
        let _ = writeln!(text, "there was no time for {} kernels; run it again to go on", report["without_time"]);
    }
    text
}

/// The database of a part: `t.jsonl` has `t.2-of-4.jsonl`.
fn shard_path(path: &Path, i: usize, n: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or(String::new(), |e| format!(".{}", e.to_string_lossy()));
    path.with_file_name(format!("{stem}.{i}-of-{n}{end}"))
}

fn parse_shard(text: &str) -> Result<(usize, usize), String> {
    let (i, n) = text.split_once('/').ok_or("it must be I/N, such as 1/4")?;
    match (i.parse::<usize>(), n.parse::<usize>()) {
        (Ok(i), Ok(n)) if i >= 1 && i <= n => Ok((i, n)),
        _ => Err("it must be I/N with I from 1 to N".into()),
    }
}

pub fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("{other:?} is no unit; there are us, ms, s, m and h")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no time"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| format!("{text:?} is no time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_shards_parse() {
        assert_eq!(parse_time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_time("1.5ms"), Ok(Duration::from_micros(1500)));
        assert!(parse_time("5d").is_err() && parse_time("s").is_err() && parse_time("-1s").is_err());
        assert_eq!(parse_shard("2/4"), Ok((2, 4)));
        assert!(parse_shard("0/4").is_err() && parse_shard("5/4").is_err() && parse_shard("2").is_err());
        assert_eq!(shard_path(Path::new("a/t.jsonl"), 2, 4), Path::new("a/t.2-of-4.jsonl"));
    }
}

//! `kiln tune`: better schedules by measured trials.

use super::Talk;
use super::options::{self, Machinery, Shapes, Watching};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use kiln::tune::places::Place;
use kiln::tune::record::{self, Database};
use kiln::tune::{self, Outcome, Settings, Subject};
use kiln::{Error, Source, emit};
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Search what to fuse, how results lie in memory, and schedules of products and convolutions, by running them on this machine
///
/// First the places where fusion or layout have a choice are measured in all ways, then schedules of the kernels that there are. Every
/// trial is a line in the database before the next begins: a search that was killed goes on where it was. Then
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
    #[arg(long, value_name = "N", default_value_t = tune::TRIALS, value_parser = clap::value_parser!(u32).range(1..))]
    trials: u32,
    /// Generations of eight trials without 1 % of gain after which a kernel is done
    #[arg(long, value_name = "N", default_value_t = tune::PATIENCE, value_parser = clap::value_parser!(u32).range(1..))]
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
        let mut options = self.shapes.options(&onnx, &self.machinery, vec![level], &budget)?;
        let cpu = record::cpu_name();
        if self.shard.is_none() {
            // Where a search has decided what is fused, the kernels that then are there are tuned.
            options.tuning = database_tuning(&path, &cpu)?.of_boundaries();
        }
        let mut compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        // The level of the code, which may be one below what was asked for.
        let level = compiled.code.last().map_or(level, |code| code.level);
        let machine = emit::Emitter::of(level, &compiled.scheduled)?.machine();
        let mut subjects = self.named(tune::subjects(&compiled, &machine))?;
        let mut places = if self.kernel.is_empty() { tune::places::places(&compiled) } else { Vec::new() };
        if let Some((i, n)) = self.shard {
            // By hash, so that a part does not depend on what else is tuned.
            subjects.sort_by(|a, b| a.kernel.cmp(&b.kernel));
            places.sort_by(|a, b| a.kernel.cmp(&b.kernel));
            let own = |at: usize| at % n == i - 1;
            subjects = subjects.into_iter().enumerate().filter(|(at, _)| own(*at)).map(|(_, s)| s).collect();
            places = places.into_iter().enumerate().filter(|(at, _)| own(*at)).map(|(_, p)| p).collect();
        }
        // Opening makes the file: not before it is clear what there is to tune.
        let mut database = Database::open(&path)?;
        let settings = Settings {
            level,
            threads: self.machinery.threads.map_or(1, |_| self.machinery.threads()),
            seed: self.seed,
            trials: self.trials as usize,
            patience: self.patience as usize,
            cpu,
        };
        let end = self.time.map(|t| Instant::now() + t);
        let fusion = self.fusion(&compiled, &places, &settings, (&mut database, end), talk)?;
        let found = record::Tuning::of(&database.records, &settings.cpu).of_boundaries();
        if self.shard.is_none() && self.kernel.is_empty() && found != options.tuning {
            options.tuning = found;
            compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
            subjects = tune::subjects(&compiled, &machine);
        }
        let outcomes = self.search(&compiled, &subjects, &settings, (&mut database, end), talk)?;
        let report = json(&fusion, (&subjects, &outcomes), &settings, &path);
        talk.report(&report, &text(&report))
    }

    /// The kernels of --kernel, or all.
    fn named(&self, subjects: Vec<Subject>) -> Result<Vec<Subject>, Error> {
        let named = |s: &Subject, name: &String| format!("k{}", s.first) == *name;
        if let Some(name) = self.kernel.iter().find(|name| !subjects.iter().any(|s| named(s, name))) {
            let there: Vec<String> = subjects.iter().map(|s| format!("k{}", s.first)).collect();
            let message = format!("--kernel {name}: no such kernel to tune; there are {}", there.join(", "));
            return Err(Error::Usage(message));
        }
        let wanted = |s: &Subject| self.kernel.is_empty() || self.kernel.iter().any(|name| named(s, name));
        Ok(subjects.into_iter().filter(wanted).collect())
    }

    /// Measures the places where fusion or layout have a choice.
    fn fusion(
        &self,
        compiled: &kiln::Compiled,
        places: &[Place],
        settings: &Settings,
        (database, end): (&mut Database, Option<Instant>),
        talk: Talk,
    ) -> Result<Vec<(Place, Outcome)>, Error> {
        let budget = self.machinery.budget();
        let bar = bar(talk, places.len(), "kernels otherwise");
        let mut found = Vec::new();
        for place in places {
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            bar.set_message(place.what.clone());
            let outcome = tune::places::measure(compiled, place, settings, database, &budget)?;
            found.extend(outcome.map(|outcome| (place.clone(), outcome)));
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(found)
    }

    fn search(
        &self,
        compiled: &kiln::Compiled,
        subjects: &[Subject],
        settings: &Settings,
        (database, end): (&mut Database, Option<Instant>),
        talk: Talk,
    ) -> Result<Vec<Option<Outcome>>, Error> {
        let bar = bar(talk, subjects.len(), "kernels");
        let mut heard = |n: usize, subject: &Subject, trials: usize, own: f64, best: f64| {
            bar.set_position(n as u64);
            bar.set_message(format!("k{} {trials} trials, best {:.2}x", subject.first, own / best.max(1e-12)));
        };
        let budget = self.machinery.budget();
        let outcomes = tune::search_all(compiled, subjects, settings, database, (end, &budget), &mut heard)?;
        bar.finish_and_clear();
        Ok(outcomes)
    }
}

/// A progress bar where people look.
fn bar(talk: Talk, length: usize, of: &'static str) -> ProgressBar {
    if talk.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length as u64);
    if let Ok(style) = ProgressStyle::with_template(&format!("{{bar:20}} {{pos}}/{{len}} {of}, {{msg}} {{elapsed}}")) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// What a database that may not be there says.
fn database_tuning(path: &Path, cpu: &str) -> Result<record::Tuning, Error> {
    if path.exists() { Ok(record::Tuning::of(&record::read(path)?, cpu)) } else { Ok(record::Tuning::default()) }
}

fn json(
    fusion: &[(Place, Outcome)],
    (subjects, outcomes): (&[Subject], &[Option<Outcome>]),
    settings: &Settings,
    path: &Path,
) -> Value {
    let place = |(p, o): &(Place, Outcome)| {
        json!({
            "hash": p.kernel, "count": p.count, "what": p.what, "value": p.shape, "known": o.known, "default": o.default.schedule,
            "default_us": o.default.p20_ns / 1e3, "best": o.best.schedule, "best_us": o.best.p20_ns / 1e3, "gain": o.gain(),
        })
    };
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
    // The sum of nothing would be -0.
    let sum = |of: &dyn Fn(&Outcome) -> f64| pairs().map(|(s, o)| of(o) * s.count as f64 / 1e3).fold(0.0, |a, b| a + b);
    let (before, after) = (sum(&|o| o.default.p20_ns), sum(&|o| o.best.p20_ns));
    json!({
        "db": path.display().to_string(), "level": settings.level.name(), "threads": settings.threads, "cpu": settings.cpu,
        "seed": settings.seed, "kernels": pairs().map(kernel).collect::<Vec<_>>(),
        "without_time": outcomes.iter().filter(|o| o.is_none()).count(),
        "geometric_mean_gain": mean, "default_us": before, "best_us": after,
        "trials": pairs().map(|(_, o)| o.trials).sum::<usize>(),
        "fusion": fusion.iter().map(place).collect::<Vec<_>>(),
    })
}

fn text(report: &Value) -> String {
    let (list, places) = (report["kernels"].as_array(), report["fusion"].as_array());
    let (list, places) = (list.cloned().unwrap_or_default(), places.cloned().unwrap_or_default());
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
    let changed: Vec<_> = places.iter().filter(|p| p["best"] != p["default"]).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "fusion and layout: {} kernels measured as they are and otherwise, {} are quicker otherwise",
        places.len(),
        changed.len()
    );
    for p in changed {
        let (us, best) = (number(&p["default_us"]), number(&p["best_us"]));
        let _ = writeln!(
            text,
            "  {} times {} at {}: {us:.1} us, {} {best:.1}",
            p["count"],
            word(&p["what"]),
            word(&p["value"]),
            word(&p["best"])
        );
    }
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

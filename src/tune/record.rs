//! The tuning database: one JSON object a line, in a file that only grows.
//!
//! Invariant: a record is written with one call and ends in a line feed, so that whoever is killed while writing leaves at most
//! one torn line, at the end, which readers drop and the next writer removes. Order and repetition of lines mean nothing.

use crate::profile::Distribution;
use crate::{Error, VERSION};
use kiln_passes::kernel::{Choice, SCHEDULE_VERSION};
use kiln_runtime::cpu::CpuLevel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One schedule of one kernel, measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Hash of what identifies the kernel ([`kiln_passes::kernel::key`]).
    pub kernel: String,
    /// What it does, for people.
    pub what: String,
    /// Types of its operands and its result, for people.
    pub shapes: String,
    /// CPU level of the code.
    pub level: String,
    /// The processor that it ran on.
    pub cpu: String,
    /// Threads that it ran on.
    pub threads: usize,
    /// The schedule, as a [`Choice`].
    pub schedule: String,
    /// Whether the cost model chooses it.
    pub default: bool,
    /// What the cost model thinks of it, in cycles.
    pub estimate: f64,
    /// Whether it took part in the last comparison of a search, in turns with the others.
    pub last: bool,
    /// How many runs were timed.
    pub samples: usize,
    /// The quickest, in nanoseconds.
    pub min_ns: f64,
    /// A fifth of them was quicker.
    pub p20_ns: f64,
    /// Half of them were quicker.
    pub median_ns: f64,
    /// Four fifths of them were quicker.
    pub p80_ns: f64,
    /// Hash of the machine code.
    pub code: String,
    /// Version of the compiler.
    pub compiler: String,
    /// Version of what schedules mean.
    pub format: u32,
    /// Seed of the search.
    pub seed: u64,
}

impl Record {
    /// The record with these times.
    #[must_use]
    pub(super) fn timed(self, time: &Distribution) -> Record {
        let ns = |seconds: f64| (seconds * 1e9).round();
        let (min_ns, p20_ns, median_ns, p80_ns) = (ns(time.min), ns(time.p20), ns(time.median), ns(time.p80));
        Record { samples: time.count, min_ns, p20_ns, median_ns, p80_ns, ..self }
    }

    /// Why a compilation by this compiler for that processor cannot use the record; nothing where it can.
    pub fn stale(&self, cpu: &str) -> Option<String> {
        if self.compiler != VERSION || self.format != SCHEDULE_VERSION {
            let found = format!("compiler {} with schedules of version {}", self.compiler, self.format);
            return Some(format!("it is by {found}, this is {VERSION} with version {SCHEDULE_VERSION}"));
        }
        if self.cpu != cpu {
            return Some(format!("it was measured on {}, this is {cpu}", self.cpu));
        }
        self.schedule.parse::<Choice>().err().map(|e| e.to_string())
    }
}

/// The name of this machine's processor.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let words = [field("model name"), field("cpu family"), field("model")];
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { std::env::consts::ARCH.to_string() } else { words.join(" ") }
}

/// The records of a text, and how many bytes of it are whole lines.
///
/// # Errors
/// [`Error::Data`] for a line other than the last that is no record.
pub fn parse(text: &str, place: &Path) -> Result<(Vec<Record>, usize), Error> {
    let (mut records, mut whole) = (Vec::new(), 0);
    let lines = text.split_inclusive('\n').count();
    for (n, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            // A record without its line feed was torn, even where it happens to be one.
            Ok(record) if line.ends_with('\n') => records.push(record),
            Ok(_) => break,
            Err(_) if line.trim().is_empty() => {}
            Err(_) if n + 1 == lines => break,
            Err(e) => return Err(Error::data(format!("{} line {}", place.display(), n + 1), e)),
        }
        whole += line.len();
    }
    Ok((records, whole))
}

/// The records of a file.
///
/// # Errors
/// [`Error::Read`], or those of [`parse`].
pub fn read(path: &Path) -> Result<Vec<Record>, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    Ok(parse(&String::from_utf8_lossy(&bytes), path)?.0)
}

/// The text of records.
pub fn to_text(records: &[Record]) -> Result<String, Error> {
    records.iter().map(line).collect()
}

fn line(record: &Record) -> Result<String, Error> {
    let text = serde_json::to_string(record).map_err(|e| Error::Internal(format!("a record: {e}")))?;
    Ok(text + "\n")
}

/// A database that one process writes to.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    file: File,
    /// All records.
    pub records: Vec<Record>,
}

impl Database {
    /// Opens or makes a database, and keeps others from writing to it.
    ///
    /// # Errors
    /// [`Error::Usage`] where another process writes to it, [`Error::Write`], or those of [`parse`].
    pub fn open(path: &Path) -> Result<Database, Error> {
        let fail = |source| Error::Write { path: path.into(), source };
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Error::Usage(format!("another process is writing to {}", path.display())));
            }
            Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fail)?;
        let text = String::from_utf8_lossy(&bytes);
        let (records, whole) = parse(&text, path)?;
        // Counted in the file's own bytes: the torn end alone may be no UTF-8.
        let whole = if text.len() == bytes.len() { whole } else { whole.min(last_line_feed(&bytes)) };
        file.set_len(whole as u64).map_err(fail)?;
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Database { path: path.into(), file, records })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn add(&mut self, record: Record) -> Result<(), Error> {
        let line = line(&record)?;
        let written = self.file.write_all(line.as_bytes());
        written.map_err(|source| Error::Write { path: self.path.clone(), source })?;
        self.records.push(record);
        Ok(())
    }
}

/// The bytes up to and with the last line feed.
fn last_line_feed(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
}

/// What is gained must be more than this share, whatever the samples say: two runs of one program differ by as much.
const NOISE: f64 = 0.02;

/// The schedules that a compilation takes from records, by kernel and level.
///
/// The text form is `KERNEL LEVEL SCHEDULE`, with `; ` between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// By hash of the kernel and name of the level.
    pub choices: BTreeMap<(String, String), Choice>,
}

impl Tuning {
    /// The best of the records that a compilation for this processor can use; equal records in any order give equal
    /// schedules. A schedule that is no better than the cost model's by more than noise is left out.
    pub fn of(records: &[Record], cpu: &str) -> Tuning {
        let mut kernels: BTreeMap<(&str, &str), Vec<&Record>> = BTreeMap::new();
        for r in records.iter().filter(|r| r.stale(cpu).is_none()) {
            kernels.entry((&r.kernel, &r.level)).or_default().push(r);
        }
        let best = |((kernel, level), of): (&(&str, &str), &Vec<&Record>)| {
            let choice: Choice = best_of(of)?.schedule.parse().ok()?;
            Some(((kernel.to_string(), level.to_string()), choice))
        };
        Tuning { choices: kernels.iter().filter_map(best).collect() }
    }

    /// What it says of fusion and layouts alone.
    #[must_use]
    pub fn of_boundaries(&self) -> Tuning {
        let choices = self.choices.iter().filter(|(_, choice)| choice.boundary.is_some());
        Tuning { choices: choices.map(|(k, c)| (k.clone(), *c)).collect() }
    }

    /// The schedule of a kernel for a level.
    pub fn get(&self, kernel: &str, level: CpuLevel) -> Option<Choice> {
        self.choices.get(&(kernel.to_string(), level.name().to_string())).copied()
    }
}

/// The record to take of those of one kernel and level, where one is better than the cost model's own.
pub fn best_of<'a>(records: &[&'a Record]) -> Option<&'a Record> {
    // One number of threads is compared with itself only; what was compared in turns outweighs the rest.
    let threads = records.iter().map(|r| r.threads).min()?;
    let of: Vec<&Record> = records.iter().copied().filter(|r| r.threads == threads).collect();
    let last: Vec<&Record> = of.iter().copied().filter(|r| r.last).collect();
    let of = if last.iter().any(|r| r.default) { last } else { of };
    let mut by_schedule: BTreeMap<&str, &Record> = BTreeMap::new();
    for r in of {
        let known = by_schedule.entry(&r.schedule).or_insert(r);
        if r.p20_ns < known.p20_ns {
            *known = r;
        }
    }
    let quickest = by_schedule.values().map(|r| r.p20_ns).fold(f64::INFINITY, f64::min);
    let spread = |r: &Record| (r.p20_ns - r.min_ns) / r.p20_ns.max(1.0) / 2.0;
    let near = |r: &&&Record| r.p20_ns <= quickest * (1.0 + NOISE.max(spread(r)));
    let default = by_schedule.values().find(|r| r.default)?;
    if near(&default) {
        return None;
    }
    // Of those that are equally quick the one that the cost model likes best, then the first by name.
    let order = |a: &&Record, b: &&Record| a.estimate.total_cmp(&b.estimate).then(a.schedule.cmp(&b.schedule));
    by_schedule.values().filter(near).copied().min_by(order)
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, ((kernel, level), choice)) in self.choices.iter().enumerate() {
            write!(f, "{}{kernel} {level} {choice}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl FromStr for Tuning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Tuning, Error> {
        let entry = |entry: &str| {
            let mut words = entry.splitn(3, ' ');
            let (kernel, level) = (words.next()?.to_string(), words.next()?.to_string());
            Some(((kernel, level), words.next()?.parse().ok()?))
        };
        let entries = text.split("; ").filter(|e| !e.is_empty());
        let choices = entries.map(|e| entry(e).ok_or_else(|| Error::data("tuning", format!("{e:?} is no schedule"))));
        Ok(Tuning { choices: choices.collect::<Result<_, Error>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(schedule: &str, ns: f64, default: bool) -> Record {
        Record {
            kernel: "k".into(),
            what: "contract".into(),
            shapes: String::new(),
            level: "x86-64-v4".into(),
            cpu: "here".into(),
            threads: 1,
            schedule: schedule.into(),
            default,
            estimate: ns,
            last: false,
            samples: 10,
            min_ns: ns,
            p20_ns: ns,
            median_ns: ns,
            p80_ns: ns,
            code: String::new(),
            compiler: VERSION.into(),
            format: SCHEDULE_VERSION,
            seed: 0,
        }
    }

    #[test]
    fn a_schedule_must_beat_the_cost_model_by_more_than_noise() {
        let of = |records: &[Record]| Tuning::of(records, "here").to_string();
        let default = record("rows=1", 100.0, true);
        assert_eq!(of(&[default.clone(), record("rows=2", 98.5, false)]), "");
        let better = [record("rows=3", 80.0, false), default.clone(), record("rows=2", 79.5, false)];
        // The two are equally quick; the cost model prefers the second. The order of records does not matter.
        assert_eq!(of(&better), "k x86-64-v4 rows=2");
        let mut other = better.clone();
        other.reverse();
        assert_eq!(of(&other), of(&better));
        assert_eq!(of(&better).parse::<Tuning>().unwrap(), Tuning::of(&better, "here"));
        assert!("k x86".parse::<Tuning>().is_err() && "k l rows=0".parse::<Tuning>().is_err());
        // Without the cost model's own there is nothing to compare with.
        assert_eq!(of(&better[..1]), "");
        // What was compared in turns outweighs what was measured at some other time.
        let turns = |r: Record| Record { last: true, ..r };
        let mut all = better.to_vec();
        all.extend([turns(default), turns(record("rows=3", 99.0, false))]);
        assert_eq!(of(&all), "");
    }

    #[test]
    fn stale_records_are_recognised() {
        let r = record("rows=1", 1.0, true);
        assert_eq!(r.stale("here"), None);
        assert!(r.stale("there").unwrap().contains("measured on here"));
        assert!(Record { compiler: "0.0.9".into(), ..r.clone() }.stale("here").unwrap().contains("0.0.9"));
        assert!(Record { format: 0, ..r.clone() }.stale("here").is_some());
        assert!(Record { schedule: "rows=x".into(), ..r }.stale("here").is_some());
    }

    #[test]
    fn a_torn_line_is_dropped_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        let (a, b) = (record("rows=1", 1.0, true), record("rows=2", 2.0, false));
        let whole = line(&a).unwrap();
        let torn = line(&b).unwrap();
        for cut in 0..torn.len() {
            std::fs::write(&path, format!("{whole}{}", &torn[..cut])).unwrap();
            assert_eq!(read(&path).unwrap(), std::slice::from_ref(&a), "{cut}");
            let mut database = Database::open(&path).unwrap();
            assert_eq!(database.records, std::slice::from_ref(&a), "{cut}");
            database.add(b.clone()).unwrap();
            drop(database);
            assert_eq!(read(&path).unwrap(), [a.clone(), b.clone()], "{cut}");
        }
        std::fs::write(&path, format!("{{}}\n{whole}")).unwrap();
        assert!(matches!(Database::open(&path), Err(Error::Data { .. })));
        let first = Database::open(&folder.path().join("u.jsonl")).unwrap();
        assert!(matches!(Database::open(&folder.path().join("u.jsonl")), Err(Error::Usage(_))));
        drop(first);
    }
}

//! `kiln tuning`: tuning databases put together, cleared and read out.

use super::Talk;
use super::table::{Align, table};
use clap::{Args as ClapArgs, Subcommand};
use kiln::tune::record::{self, Record, Tuning};
use kiln::{Error, data};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Merge, prune and export tuning databases
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put databases together; the same record counts once
    Merge {
        /// Databases, such as those of all parts of a search
        #[arg(required = true)]
        from: Vec<PathBuf>,
        /// The database to write
        #[arg(short, long, value_name = "F.jsonl")]
        output: PathBuf,
    },
    /// Remove records that a compilation here cannot use, and of each kernel all but the best and the cost model's own
    Prune {
        /// The database, which is replaced
        db: PathBuf,
        /// Keep every schedule that is not stale
        #[arg(long)]
        all: bool,
        /// Keep records of other processors
        #[arg(long)]
        foreign: bool,
    },
    /// Show the schedules that a compilation would take, and which records are stale
    Export {
        /// The database
        db: PathBuf,
    },
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        match &self.command {
            Command::Merge { from, output } => {
                let mut all = Vec::new();
                for path in from {
                    all.extend(record::read(path)?);
                }
                let read = all.len();
                let all = distinct(all)?;
                data::write(output, record::to_text(&all)?.as_bytes())?;
                talk.say(format_args!("{}: {} records of {read} read", output.display(), all.len()));
                talk.report_if_json(&json!({ "db": output.display().to_string(), "read": read, "records": all.len() }))
            }
            Command::Prune { db, all, foreign } => {
                let read = record::read(db)?;
                let before = read.len();
                let cpu = record::cpu_name();
                let fresh = |r: &Record| r.stale(if *foreign { &r.cpu } else { &cpu }).is_none();
                let mut kept: Vec<Record> = read.into_iter().filter(fresh).collect();
                if !all {
                    kept = best_and_own(&kept);
                }
                let kept = distinct(kept)?;
                data::write(db, record::to_text(&kept)?.as_bytes())?;
                talk.say(format_args!("{}: {} of {before} records are left", db.display(), kept.len()));
                talk.report_if_json(&json!({ "db": db.display().to_string(), "before": before, "records": kept.len() }))
            }
            Command::Export { db } => {
                let read = record::read(db)?;
                let cpu = record::cpu_name();
                let tuning = Tuning::of(&read, &cpu);
                let stale: BTreeSet<String> = read.iter().filter_map(|r| r.stale(&cpu)).collect();
                let count = read.iter().filter(|r| r.stale(&cpu).is_some()).count();
                let about = |kernel: &str| read.iter().find(|r| r.kernel == kernel);
                let rows: Vec<_> = tuning
                    .choices
                    .iter()
                    .map(|((kernel, level), choice)| {
                        let r = about(kernel);
                        let (what, shapes) = r.map_or(("", ""), |r| (&r.what, &r.shapes));
                        [kernel.clone(), level.clone(), choice.to_string(), what.to_string(), shapes.to_string()]
                    })
                    .collect();
                let l = Align::Left;
                let columns = [("kernel", l), ("level", l), ("schedule", l), ("what", l), ("operands", l)];
                let mut text = table("", columns, &rows);
                if count > 0 {
                    let why: Vec<String> = stale.iter().cloned().collect();
                    text.push_str(&format!("{count} of {} records are stale: {}\n", read.len(), why.join("; ")));
                }
                let schedules = rows.iter().map(|[kernel, level, schedule, what, shapes]| {
                    json!({ "kernel": kernel, "level": level, "schedule": schedule, "what": what, "shapes": shapes })
                });
                let report = json!({ "db": db.display().to_string(), "records": read.len(), "stale": count, "why": stale,
                                     "schedules": schedules.collect::<Vec<_>>() });
                talk.report(&report, &text)
            }
        }
    }
}

/// The records in an order of their own, each once.
fn distinct(records: Vec<Record>) -> Result<Vec<Record>, Error> {
    let mut lines: Vec<(String, Record)> = records
        .into_iter()
        .map(|r| Ok((record::to_text(std::slice::from_ref(&r))?, r)))
        .collect::<Result<_, Error>>()?;
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    lines.dedup_by(|a, b| a.0 == b.0);
    Ok(lines.into_iter().map(|(_, r)| r).collect())
}

/// Of each kernel, level, processor and number of threads the cost model's own records and the best.
fn best_and_own(records: &[Record]) -> Vec<Record> {
    let place = |r: &Record| (r.kernel.clone(), r.level.clone(), r.cpu.clone(), r.threads);
    let places: BTreeSet<_> = records.iter().map(place).collect();
    let mut kept = Vec::new();
    for at in places {
        let of: Vec<&Record> = records.iter().filter(|r| place(r) == at).collect();
        kept.extend(of.iter().filter(|r| r.default).map(|r| (*r).clone()));
        if let Some(best) = record::best_of(&of) {
            kept.push(best.clone());
        }
    }
    kept
}

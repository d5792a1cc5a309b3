//! `kiln selftest`: whether an artifact computes here what it should.

use super::Talk;
use super::options;
use clap::Args as ClapArgs;
use kiln::golden::self_test;
use kiln::runtime::engine::Model;
use kiln::runtime::memory::Budget;
use kiln::{Error, Source};
use serde_json::json;
use std::fmt::Write;
use std::path::PathBuf;

/// Run every CPU level of an artifact on seeded inputs, with one and two threads, and compare the results
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An artifact
    artifact: PathBuf,
    /// Most memory for weights, arena, inputs and outputs, such as 512M or 8G
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    memory_limit: Option<u64>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let Source::Artifact(path) = Source::open(&self.artifact)? else {
            // Opening says what the file looks like instead.
            Model::open(&self.artifact, &Default::default())?;
            return Err(Error::Internal("an artifact was not recognised".into()));
        };
        let budget = self.memory_limit.map_or_else(Budget::unlimited, Budget::new);
        let found = self_test(&|options| Ok(Model::open(&path, options)?), &budget)?;
        let mut text = String::new();
        let mut list = Vec::new();
        let mut wrong = Vec::new();
        for (level, outputs) in &found.levels {
            for (name, difference) in outputs {
                let ok = difference.within(found.tolerance);
                let verdict = if ok { "as expected" } else { "WRONG" };
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{level} {name}: {verdict}; {difference}");
                list.push(
                    json!({ "level": level.name(), "output": name, "ok": ok, "difference": difference.to_string() }),
                );
                if !ok {
                    wrong.push(format!("{level}, output {name:?}: {difference}"));
                }
            }
        }
        let of = if found.golden {
            "the artifact's golden results"
        } else {
            "the lowest level (the artifact has no golden results)"
        };
        let _ = writeln!(text, "compared with {of}");
        talk.report(&json!({ "ok": wrong.is_empty(), "golden": found.golden, "results": list }), &text)?;
        if wrong.is_empty() { Ok(()) } else { Err(Error::Mismatch(wrong.join("; "))) }
    }
}

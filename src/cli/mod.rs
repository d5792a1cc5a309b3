//! The command line: one file for each command.
//!
//! Invariant: a command that is offered works; options that several commands take are defined once, in [`options`].

mod bench;
mod check;
mod compare;
mod compile;
mod completions;
#[cfg_attr(not(feature = "cuda"), path = "no_cuda.rs")]
mod cuda;
mod diff;
mod emulate;
mod eval;
mod explain;
mod fit;
mod generate;
mod gpu;
mod inspect;
mod options;
mod peer;
mod picture;
mod profile;
mod quantize;
mod rebuild;
mod reduce;
mod report;
mod run;
mod selftest;
mod table;
mod tune;
mod tuning;
mod verify;

use clap::{ArgAction, Parser, Subcommand};
use kiln::Error;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Compiles ONNX models ahead of time to one artifact of machine code, plan and weights.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, max_term_width = 110)]
#[command(after_help = "Exit codes: 0 ok, 1 internal error, 2 usage or file, 3 invalid model, input or artifact, \
                        4 unsupported, 5 mismatch, 6 limit reached.")]
pub struct Cli {
    /// Write the report as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Say less
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// Say more; twice for details of each stage
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Inspect(inspect::Args),
    Compile(compile::Args),
    Run(run::Args),
    Bench(bench::Args),
    Profile(profile::Args),
    Explain(explain::Args),
    Fit(fit::Args),
    Compare(compare::Args),
    Tune(tune::Args),
    Tuning(tuning::Args),
    Verify(verify::Args),
    Selftest(selftest::Args),
    Rebuild(rebuild::Args),
    Diff(diff::Args),
    Report(report::Args),
    Reduce(reduce::Args),
    Peer(peer::Args),
    Quantize(quantize::Args),
    Generate(generate::Args),
    Eval(eval::Args),
    Emulate(emulate::Args),
    Completions(completions::Args),
}

/// How a command talks.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Whether the report is JSON.
    json: bool,
    /// Whether to say nothing but results and errors.
    quiet: bool,
}

impl Cli {
    /// Sends what the stages log to stderr, as far as it is wanted.
    pub fn start_logging(&self) {
        let level = match (self.quiet, self.verbose) {
            (0, 0) => tracing::Level::WARN,
            (0, 1) => tracing::Level::INFO,
            (0, _) => tracing::Level::DEBUG,
            (_, _) => tracing::Level::ERROR,
        };
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .without_time()
            .init();
    }

    /// Runs the command.
    pub fn run(&self) -> Result<(), Error> {
        let talk = Talk { json: self.json, quiet: self.quiet > 0 };
        match &self.command {
            Command::Check(args) => args.run(talk),
            Command::Inspect(args) => args.run(talk),
            Command::Compile(args) => args.run(talk),
            Command::Run(args) => args.run(talk),
            Command::Bench(args) => args.run(talk),
            Command::Profile(args) => args.run(talk),
            Command::Explain(args) => args.run(talk),
            Command::Fit(args) => args.run(talk),
            Command::Compare(args) => args.run(talk),
            Command::Tune(args) => args.run(talk),
            Command::Tuning(args) => args.run(talk),
            Command::Verify(args) => args.run(talk),
            Command::Selftest(args) => args.run(talk),
            Command::Rebuild(args) => args.run(talk),
            Command::Diff(args) => args.run(talk),
            Command::Report(args) => args.run(talk),
            Command::Reduce(args) => args.run(talk),
            Command::Peer(args) => args.run(talk),
            Command::Quantize(args) => args.run(talk),
            Command::Generate(args) => args.run(talk),
            Command::Eval(args) => args.run(talk),
            Command::Emulate(args) => args.run(talk),
            Command::Completions(args) => args.run(),
        }
    }
}

impl Talk {
    /// Writes a report: `json` or `text`.
    fn report(self, json: &serde_json::Value, text: &dyn fmt::Display) -> Result<(), Error> {
        if self.json { print(&format!("{json:#}\n")) } else { print(&shown(&text.to_string())) }
    }

    /// Writes a report where JSON is asked for; who reads text has been told.
    fn report_if_json(self, json: &serde_json::Value) -> Result<(), Error> {
        if self.json { self.report(json, &"") } else { Ok(()) }
    }

    /// Says something that is no result.
    fn say(self, text: fmt::Arguments<'_>) {
        if !self.quiet {
            talk(&shown(&text.to_string()));
        }
    }
}

/// A line on stderr. A reader that has gone away is no error: what was to be done is done.
pub fn talk(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Text for people: control characters, which names in a model may hold to confuse a terminal, are escaped.
fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Writes to stdout. A reader that has gone away is no error.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "standard output".into(), source: e })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// An error as miette shows it.
#[derive(Debug)]
pub struct Rendered(pub Error);

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.0.to_string()))
    }
}

impl std::error::Error for Rendered {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl miette::Diagnostic for Rendered {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(shown("a\u{1b}[31m\tb\nc é"), "a\\u{1b}[31m\\tb\nc é");
    }
}

//! The `kiln` command.
//!
//! Invariant: stdout carries data and stderr talk; the exit code is the [`kiln::Kind`] of the error, 0 without one.
#![forbid(unsafe_code)]

mod cli;

use clap::Parser;
use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    cli.start_logging();
    // Messages go to one long line where no person reads them in a window.
    let terminal = std::io::stderr().is_terminal();
    // Fails only where a hook is set already, which nothing here does before.
    let _ = miette::set_hook(Box::new(move |_| {
        let options = miette::MietteHandlerOpts::new().unicode(terminal).terminal_links(false);
        Box::new(if terminal { options.build() } else { options.width(100_000).build() })
    }));
    match catch_unwind(AssertUnwindSafe(|| cli.run())) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let kind = error.kind();
            cli::talk(&format!("{:?}", miette::Report::new(cli::Rendered(error))));
            ExitCode::from(kind as u8)
        }
        // The panic hook has said what and where.
        Err(_) => {
            cli::talk("internal error: this is a bug of Kiln; please report it");
            ExitCode::from(kiln::Kind::Internal as u8)
        }
    }
}

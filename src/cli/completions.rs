//! `kiln completions`: completion scripts of shells.

use clap::{Args as ClapArgs, CommandFactory};
use clap_complete::Shell;
use kiln::Error;

/// Write the completion script of a shell
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub fn run(&self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "kiln", &mut script);
        super::print(&String::from_utf8_lossy(&script))
    }
}

//! The command line as a contract: what each command does, and the exit code of everything that can go wrong.

mod cuda;
mod errors;
mod experiments;
mod fit;
mod gpu;
mod host_inputs;
mod language;
mod library;
mod models;
mod peer;
mod provenance;
mod quantize;
mod removal;
mod report;
mod robust;
mod whole;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of its own for a test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Names of what is there, sorted.
    fn list(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    /// Checks the exit code, and that stderr says something.
    #[track_caller]
    fn fails(self, code: i32, says: &str) -> Done {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        assert!(self.err.contains(says), "stderr should say {says:?}: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    #[track_caller]
    fn succeeds(self) -> Done {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// A word of a command line.
trait Word {
    fn word(&self) -> &std::ffi::OsStr;
}
impl Word for &str {
    fn word(&self) -> &std::ffi::OsStr {
        self.as_ref()
    }
}
impl Word for &Path {
    fn word(&self) -> &std::ffi::OsStr {
        self.as_os_str()
    }
}
impl Word for PathBuf {
    fn word(&self) -> &std::ffi::OsStr {
        self.as_os_str()
    }
}
impl Word for &PathBuf {
    fn word(&self) -> &std::ffi::OsStr {
        self.as_os_str()
    }
}

/// Runs `kiln` with these words.
fn run(words: &[&dyn Word]) -> Done {
    run_with(&[], words)
}

/// Runs `kiln` with these words and variables of the environment.
fn run_with(variables: &[(&str, &std::ffi::OsStr)], words: &[&dyn Word]) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let command = command.envs(variables.iter().copied()).args(words.iter().map(|w| w.word()));
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// `kiln!("run", &path, "--random", "0")`.
macro_rules! kiln {
    ($($word:expr),* $(,)?) => { $crate::run(&[$(&$word as &dyn $crate::Word),*]) };
}
use kiln;

//! What NVIDIA's assembler and disassembler say of a kernel, where they are found.
//!
//! Invariant: nothing here is needed for anything else: without the tools there is no judgement, and everything works.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

/// NVIDIA's tools.
#[derive(Clone, Debug)]
pub struct Tools {
    assembler: PathBuf,
    disassembler: Option<PathBuf>,
    /// Texts that were judged already, by architecture and text without the name of the entry: layers have the same kernels.
    seen: HashMap<(String, String), Option<Judged>>,
}

/// A kernel in the GPU's own instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Registers of a thread.
    pub registers: u64,
    /// Bytes that a thread spills: stores and loads in the text.
    pub spilled: u64,
    /// Bytes of a thread's stack.
    pub stack: u64,
    /// The instructions, where there is a disassembler.
    pub sass: Option<Sass>,
}

/// The instructions of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Sass {
    /// Opcodes in order, up to the last exit.
    pub all: Vec<String>,
    /// Those of the largest loop.
    pub hot: Vec<String>,
}

impl Sass {
    /// What `nvdisasm -c` wrote.
    pub fn parse(text: &str) -> Sass {
        let (mut all, mut labels, mut hot) = (Vec::new(), BTreeMap::new(), 0..0);
        for line in text.lines().map(str::trim) {
            if let Some(label) = line.strip_suffix(':').filter(|l| l.starts_with(".L_")) {
                labels.insert(label.to_string(), all.len());
            }
            let Some((_, code)) = line.strip_prefix("/*").and_then(|l| l.split_once("*/")) else { continue };
            let mut words = code.split_whitespace().skip_while(|w| w.starts_with('@') || *w == "{");
            let Some(opcode) = words.next() else { continue };
            all.push(opcode.trim_end_matches(';').to_string());
            let back = code.split_once("`(").and_then(|(_, l)| labels.get(l.split(')').next()?));
            if let Some(&first) = back
                && opcode == "BRA"
                && all.len() - first > hot.len()
            {
                hot = first..all.len();
            }
        }
        let hot = all.get(hot).unwrap_or_default().to_vec();
        // What follows an exit fills the text up.
        let end = all.iter().rposition(|o| o == "EXIT").map_or(all.len(), |n| n + 1);
        all.truncate(end);
        Sass { all, hot }
    }

    /// How often there is each opcode, without its modifiers.
    pub fn histogram(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for opcode in &self.all {
            *counts.entry(opcode.split('.').next().unwrap_or_default()).or_insert(0) += 1;
        }
        counts
    }
}

/// A program of NVIDIA's: what the variable names, else on the PATH, else in a Python package of the environment that is active.
fn program(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(program) = std::env::var_os(variable) {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file());
    on_path.or_else(|| {
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
        environments.map(PathBuf::from).find_map(|environment| in_packages(&environment, name))
    })
}

/// A program in the packages of a Python environment that bring it.
fn in_packages(environment: &Path, name: &str) -> Option<PathBuf> {
    const FOLDERS: [&str; 3] = ["nvidia/cu13/bin", "nvidia/cuda_nvcc/bin", "triton/backends/nvidia/bin"];
    let pythons = std::fs::read_dir(environment.join("lib")).ok()?.flatten();
    let packages = pythons.map(|python| python.path().join("site-packages"));
    let all = packages.flat_map(|packages| FOLDERS.map(|folder| packages.join(folder).join(name)));
    all.into_iter().find(|program| program.is_file())
}

impl Tools {
    /// `KILN_PTXAS` and `KILN_NVDISASM`, else on the PATH, else in a Python package of the active environment (`nvidia-cuda-nvcc`,
    /// `nvidia-cuda-nvdisasm` or `triton`), the disassembler else beside the assembler; nothing where there is no assembler.
    pub fn find() -> Option<Tools> {
        let assembler = program("ptxas", "KILN_PTXAS")?;
        let beside = assembler.with_file_name("nvdisasm");
        let disassembler = program("nvdisasm", "KILN_NVDISASM").or_else(|| beside.is_file().then_some(beside));
        Some(Tools { assembler, disassembler, seen: HashMap::new() })
    }

    /// Whether instructions can be shown.
    pub fn has_disassembler(&self) -> bool {
        self.disassembler.is_some()
    }

    /// What becomes of a text for an architecture; nothing where the assembler refuses it or cannot be run.
    pub fn judge(&mut self, text: &str, entry: &str, architecture: &str) -> Option<Judged> {
        let key = (architecture.to_string(), text.replace(entry, "?"));
        if let Some(known) = self.seen.get(&key) {
            return known.clone();
        }
        let judged = self.assembled(text, architecture);
        self.seen.insert(key, judged.clone());
        judged
    }

    fn assembled(&self, text: &str, architecture: &str) -> Option<Judged> {
        let folder = tempfile::tempdir().ok()?;
        let (source, target) = (folder.path().join("k.ptx"), folder.path().join("k.cubin"));
        std::fs::write(&source, text).ok()?;
        let mut command = Command::new(&self.assembler);
        command.args(["-v", "-arch", architecture]).arg(&source).arg("-o").arg(&target);
        let output = command.output().ok().filter(|o| o.status.success())?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let sass = self.disassembler.as_ref().and_then(|program| {
            let output = Command::new(program).arg("-c").arg(&target).output().ok()?;
            output.status.success().then(|| Sass::parse(&String::from_utf8_lossy(&output.stdout)))
        });
        let (_, after) = log.split_once("Used ")?;
        let registers = after.split_whitespace().next()?.parse().ok()?;
        // "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
        let bytes = |what: &str| -> u64 {
            let before = log.split_once(what).map_or("", |(before, _)| before);
            let number = before.trim_end().trim_end_matches("bytes").trim_end();
            number.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        let spilled = bytes("spill stores") + bytes("spill loads");
        Some(Judged { registers, spilled, stack: bytes("stack frame"), sass })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_and_opcodes_are_found() {
        let text = "\t/*0000*/  MOV R1, c[0x0][0x28] ;\n.L_x_1:\n\t/*0010*/  HMMA.16816.F32 R4, R4, R8, R4 ;\n\
                    \t/*0020*/  @!P0 LDSM.16.M88.4 R8, [R2] ;\n\t/*0030*/  @P0 BRA `(.L_x_1) ;\n\t/*0040*/  EXIT ;\n\
                    .L_x_2:\n\t/*0050*/  BRA `(.L_x_2);\n\t/*0060*/  NOP;";
        let sass = Sass::parse(text);
        assert_eq!(sass.hot, ["HMMA.16816.F32", "LDSM.16.M88.4", "BRA"]);
        assert_eq!(sass.all.len(), 5);
        assert_eq!(sass.histogram(), BTreeMap::from([("BRA", 1), ("EXIT", 1), ("HMMA", 1), ("LDSM", 1), ("MOV", 1)]));
    }

    #[test]
    fn packages_are_looked_through() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = folder.path().join("lib/python3.11/site-packages/nvidia/cu13/bin");
        std::fs::create_dir_all(&place).expect("a folder");
        assert_eq!(in_packages(folder.path(), "ptxas"), None);
        std::fs::write(place.join("ptxas"), "").expect("a file");
        assert_eq!(in_packages(folder.path(), "ptxas"), Some(place.join("ptxas")));
    }
}

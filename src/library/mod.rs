//! A compiled model as a library with C functions: shared object, object or static library, with what a build needs to find it.
//!
//! Invariant: all files are functions of the compiled model and of the names they are given; none holds a path. The library
//! itself is written last, so whoever finds it finds the others.

mod files;
mod metadata;

use crate::{Compiled, Error, LevelCode};
use kiln_cpu::library::{self as image, Image, Kernel, LibraryError, Needs, elf};
use kiln_runtime::artifact;
use kiln_runtime::cpu::CpuLevel;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use image::ABI;

/// What a library is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A shared object.
    Shared,
    /// A relocatable object.
    Object,
    /// An archive with one object.
    Static,
}

/// How a library is written.
#[derive(Clone, Debug)]
pub struct LibraryOptions {
    /// What it is.
    pub form: Form,
    /// What the names of its functions begin with; nothing for the name of its file.
    pub prefix: Option<String>,
    /// A file for the weights, which then are not in the library.
    pub weights: Option<PathBuf>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Written {
    /// Every file with its size in bytes, the library first.
    pub files: Vec<(PathBuf, u64)>,
    /// The prefix of the functions.
    pub prefix: String,
    /// Bytes of each level's kernels.
    pub code: Vec<(CpuLevel, u64)>,
    /// Bytes of the code that is not kernels.
    pub driver: u64,
    /// Steps that the program that loads the library must do: what the op is called, and the model's nodes.
    pub host_steps: Vec<(String, String)>,
}

fn needs(level: CpuLevel) -> Result<Needs, Error> {
    match level {
        CpuLevel::Portable if cfg!(target_arch = "x86_64") => Ok(Needs::Baseline),
        CpuLevel::X86_64V3 => Ok(Needs::Avx2),
        CpuLevel::X86_64V3Vnni => {
            Err(Error::Unsupported(format!("libraries have no code for {level}, but for x86-64-v3")))
        }
        CpuLevel::X86_64V4 => Ok(Needs::Avx512),
        CpuLevel::X86_64V4Vnni => Ok(Needs::Avx512Vnni),
        CpuLevel::X86_64V4Bf16 => Ok(Needs::Avx512Bf16),
        CpuLevel::X86_64V4Amx => Ok(Needs::Amx),
        CpuLevel::Portable => {
            Err(Error::Unsupported(format!("libraries are made for x86-64 up to v4, not for {level} of this machine")))
        }
    }
}

/// The code that goes into a library: its functions number the levels so that each builds on all below, which one does not. Where that is there
/// without the level that it builds on, [`needs`] refuses it.
fn code_of(compiled: &Compiled) -> impl Iterator<Item = &LevelCode> {
    let base = compiled.code.iter().any(|code| code.level == CpuLevel::X86_64V3);
    compiled.code.iter().filter(move |code| !base || code.level != CpuLevel::X86_64V3Vnni)
}

fn failed(error: LibraryError) -> Error {
    match error {
        LibraryError::FoundByRun(_) | LibraryError::NotBytes(..) => Error::Unsupported(error.to_string()),
        LibraryError::TooLarge(_) => Error::Limit(error.to_string()),
        LibraryError::Codegen { .. } => Error::Internal(error.to_string()),
    }
}

/// A C identifier that is like `name`.
fn identifier(name: &str) -> String {
    let mut clean: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !clean.starts_with(|c: char| c.is_ascii_alphabetic()) {
        clean.insert_str(0, "model_");
    }
    clean
}

impl Compiled {
    /// Writes the model as a library to `path`, with a header, a pkg-config file and a CMake file beside it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where steps run on the host, or inputs or outputs are no tensors of bytes; [`Error::Artifact`]
    /// where a file cannot be written; [`Error::Usage`] where a name is not one.
    pub fn write_library(&self, path: &Path, options: &LibraryOptions) -> Result<Written, Error> {
        let names = files::Names::new(path, options)?;
        let hash = self.weights_hash()?;
        let embedded = options.weights.is_none();
        let metadata = metadata::text(self, &hash, embedded)?;
        let mut levels = Vec::new();
        for code in code_of(self) {
            let kernels = code.table.0.iter().map(|entry| {
                let (offset, grain, programs) = (entry.offset, entry.grain, entry.programs.clone());
                Kernel { offset, grain, programs }
            });
            let (needs, name) = (needs(code.level)?, code.level.name());
            levels.push(image::Level { needs, name, code: &code.bytes, kernels: kernels.collect() });
        }
        let kernel_bytes: u64 = levels.iter().map(|l| l.code.len() as u64).sum();
        let hash_bytes = *hash.as_bytes();
        let source =
            image::Source { plan: &self.plan, levels, metadata: &metadata, weights_hash: hash_bytes, embedded };
        let image = image::build(&source).map_err(failed)?;
        let driver = (image.code.len() as u64).saturating_sub(kernel_bytes);
        let mut written = Vec::new();
        if let Some(weights) = &options.weights {
            let bytes = self.plan.weight_bytes.saturating_add(hash_bytes.len() as u64);
            artifact::replace(weights, bytes, |out| {
                self.stream_weights(out)?;
                out.write_all(&hash_bytes)
            })?;
            written.push((weights.clone(), bytes));
        }
        for (path, text) in names.texts(&self.plan.name, self.sbom.as_deref()) {
            artifact::replace(&path, text.len() as u64, |out| out.write_all(text.as_bytes()))?;
            written.push((path, text.len() as u64));
        }
        let file = names.file(&image, options.form).map_err(failed)?;
        artifact::replace(path, file.bytes(), |out| {
            out.write_all(&file.head)?;
            if embedded {
                self.stream_weights(out)?;
            }
            out.write_all(&file.tail)
        })?;
        written.insert(0, (path.to_path_buf(), file.bytes()));
        let code = code_of(self).map(|code| (code.level, code.bytes.len() as u64)).collect();
        let host_steps = metadata::host_steps(&self.plan).map(|(op, nodes)| (op.what().to_string(), nodes.to_string()));
        let host_steps = host_steps.collect();
        Ok(Written { files: written, prefix: names.prefix, code, driver, host_steps })
    }

    fn stream_weights(&self, out: &mut dyn Write) -> io::Result<()> {
        crate::write_weights(&self.weights, self.plan.weight_bytes, out)
    }

    /// The hash of the weights section, which is that of the same section of an artifact.
    fn weights_hash(&self) -> Result<blake3::Hash, Error> {
        let mut hasher = blake3::Hasher::new();
        self.stream_weights(&mut hasher).map_err(|e| Error::Internal(format!("the weights: {e}")))?;
        Ok(hasher.finalize())
    }
}

impl files::Names {
    fn file(&self, image: &Image, form: Form) -> Result<elf::File, LibraryError> {
        match form {
            Form::Shared => elf::shared_object(image, &self.prefix, &self.file),
            Form::Object => elf::object(image, &self.prefix),
            Form::Static => elf::archive(image, &self.prefix, &format!("{}.o", self.stem)),
        }
    }
}

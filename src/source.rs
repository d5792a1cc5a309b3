//! A model file, opened.
//!
//! Invariant: files are mapped, not read; external data is opened beneath the model's own folder only, links included.

use crate::Error;
use bytes::Bytes;
use kiln_frontend::onnx::model::{self, Limits, Model, ValueType};
use kiln_runtime::artifact;
use std::path::{Path, PathBuf};

/// What a path leads to.
#[derive(Debug)]
pub enum Source {
    /// A compiled model.
    Artifact(PathBuf),
    /// Something else, which should be an ONNX model.
    Model {
        /// Where it is.
        path: PathBuf,
        /// Its content.
        bytes: Bytes,
    },
}

impl Source {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`Error::Read`].
    pub fn open(path: &Path) -> Result<Source, Error> {
        let bytes = kiln_runtime::file::map(path).map_err(|source| Error::Read { path: path.into(), source })?;
        Ok(if artifact::is_artifact(&bytes) {
            Source::Artifact(path.into())
        } else {
            Source::Model { path: path.into(), bytes }
        })
    }

    /// Reads and checks the model.
    ///
    /// # Errors
    /// [`Error::Usage`] where the file is an artifact, [`Error::Model`] with all problems of the model.
    pub fn model(&self, limits: &Limits) -> Result<Model, Error> {
        match self {
            Source::Artifact(path) => Err(Error::Usage(format!(
                "{} is a Kiln artifact, which is compiled already; this command takes an ONNX model",
                path.display()
            ))),
            Source::Model { path, bytes } => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Ok(model::load(bytes.clone(), &|location| beneath(folder, location), limits)?)
            }
        }
    }
}

/// The content of a file beneath a folder. The frontend has checked that the location is relative and does not climb.
fn beneath(folder: &Path, location: &str) -> Result<Bytes, String> {
    let fail = |e: std::io::Error| format!("cannot open external data {location:?}: {e}");
    let folder = folder.canonicalize().map_err(fail)?;
    let path = folder.join(location).canonicalize().map_err(fail)?;
    if !path.starts_with(&folder) {
        return Err(format!("external data {location:?} is a link that leads out of the model's folder"));
    }
    kiln_runtime::file::map(&path).map_err(fail)
}

/// The shapes of all inputs with every dim that `bind` does not fix taken as 1, by name. Inputs of unknown rank are left
/// out.
pub fn unit_shapes(
    model: &Model,
    bind: &std::collections::BTreeMap<String, (i64, i64)>,
) -> std::collections::BTreeMap<String, Vec<usize>> {
    let fixed = |name: &str| {
        let clean = kiln_ir::Symbol::new(name);
        let range = bind.get(name).or_else(|| bind.get(clean.name()));
        range.and_then(|(lo, _)| usize::try_from(*lo).ok()).unwrap_or(1)
    };
    let shape = |input: &model::ValueInfo| {
        let ty = input.ty.as_ref().and_then(ValueType::tensor)?;
        let dims = ty.shape.as_ref()?.iter().enumerate().map(|(axis, dim)| match dim {
            model::Dim::Fixed(n) => *n,
            model::Dim::Symbol(name) => fixed(name),
            model::Dim::Unknown => fixed(&format!("{}_{axis}", input.name)),
        });
        Some((input.name.clone(), dims.collect()))
    };
    model.graph.inputs.iter().filter_map(shape).collect()
}

//! A model file, opened.
//!
//! Invariant: files are mapped, not read; external data is a plain file beneath the model's own folder, reached through no link.

use crate::Error;
use bytes::Bytes;
use kiln_frontend::checkpoint::Files;
use kiln_frontend::onnx::model::{self, Limits, Model, ValueType};
use kiln_runtime::artifact;
use std::collections::BTreeMap;
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

/// Files directly in a folder, as readers of checkpoints take them.
pub struct Within<'a>(pub &'a Path);

impl Files for Within<'_> {
    fn open(&self, name: &str) -> Result<Option<Bytes>, String> {
        match kiln_runtime::file::map(&self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// The content of a file beneath a folder. The frontend has checked that the location is relative and does not climb. No part of
/// the path beneath the folder may be a link, and the file may have no second name: what a model names must not be a way to
/// files that its author could not read.
fn beneath(folder: &Path, location: &str) -> Result<Bytes, String> {
    let fail = |e: std::io::Error| format!("cannot open external data {location:?}: {e}");
    let refuse = |what: &str| Err(format!("external data {location:?} {what}"));
    let mut path = folder.to_path_buf();
    let mut parts = Path::new(location).components().peekable();
    while let Some(part) = parts.next() {
        let std::path::Component::Normal(name) = part else { return refuse("leads out of the model's folder") };
        path.push(name);
        let found = path.symlink_metadata().map_err(fail)?;
        if found.is_symlink() {
            return refuse("is, or is reached through, a symbolic link");
        }
        if parts.peek().is_some() {
            continue;
        }
        if !found.is_file() {
            return refuse("is not a regular file");
        }
        if names(&found) > 1 {
            return refuse("is a hard link: the file has other names; copy it");
        }
    }
    kiln_runtime::file::map(&path).map_err(fail)
}

/// How many names a file has.
#[cfg(unix)]
fn names(found: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(found)
}

#[cfg(not(unix))]
fn names(_: &std::fs::Metadata) -> u64 {
    1
}

/// The shapes of all inputs with every dim that `bind` does not fix taken as 1, by name. Inputs of unknown rank are left
/// out.
pub fn unit_shapes(model: &Model, bind: &BTreeMap<String, (i64, i64)>) -> BTreeMap<String, Vec<usize>> {
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

/// Checks that every bound is one of a dim that the model's inputs have, and that given shapes keep it. A dim without a
/// name is called after its input and axis, such as `x_0`.
///
/// # Errors
/// [`Error::Usage`] for a name that no dim has, [`Error::Data`] for a shape that is out of bounds.
pub fn check_bind(
    graph: &model::Graph,
    bind: &BTreeMap<String, (i64, i64)>,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(), Error> {
    let mut dims: Vec<(String, &str, usize)> = Vec::new();
    for input in &graph.inputs {
        let shape = input.ty.as_ref().and_then(ValueType::tensor).and_then(|ty| ty.shape.as_ref());
        for (axis, dim) in shape.into_iter().flatten().enumerate() {
            match dim {
                model::Dim::Fixed(_) => {}
                model::Dim::Symbol(name) => dims.push((name.clone(), &input.name, axis)),
                model::Dim::Unknown => dims.push((format!("{}_{axis}", input.name), &input.name, axis)),
            }
        }
    }
    // The text form spells some names with other letters; both are understood.
    let is = |dim: &str, name: &str| dim == name || kiln_ir::Symbol::new(dim).name() == name.trim_end_matches('_');
    for (name, (lo, hi)) in bind {
        let mut found = dims.iter().filter(|(dim, ..)| is(dim, name)).peekable();
        if found.peek().is_none() {
            let mut names: Vec<&str> = dims.iter().map(|(dim, ..)| dim.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let there =
                if names.is_empty() { "all are fixed".into() } else { format!("there are {}", names.join(", ")) };
            return Err(Error::Usage(format!("--bind {name}: the model's inputs have no such dim; {there}")));
        }
        for (_, input, axis) in found {
            let extent = shapes.get(*input).and_then(|shape| shape.get(*axis));
            if let Some(&n) = extent
                && !i64::try_from(n).is_ok_and(|n| (*lo..=*hi).contains(&n))
            {
                let bound = if lo == hi { lo.to_string() } else { format!("{lo}..{hi}") };
                return Err(Error::data(
                    format!("input {input:?}"),
                    format!("axis {axis} is {n}, {name} is bound to {bound}"),
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Dim, TensorType, ValueInfo};

    #[cfg(unix)]
    #[test]
    fn external_data_is_a_plain_file_beneath_the_folder() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), b"s").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/data"), b"content").unwrap();
        let of = |location: &str| beneath(folder.path(), location).map(|b| b.to_vec());
        assert_eq!(of("sub/data").unwrap(), b"content");
        let refused = |location: &str, why: &str| {
            let message = of(location).unwrap_err();
            assert!(message.contains(why) && message.contains(location), "{message}");
        };
        symlink(outside.path().join("secret"), at("link")).unwrap();
        refused("link", "symbolic link");
        symlink(outside.path(), at("away")).unwrap();
        refused("away/secret", "symbolic link");
        // Links that stay within are refused, too: that they stay is not known until they are followed.
        symlink(at("sub/data"), at("near")).unwrap();
        refused("near", "symbolic link");
        std::fs::hard_link(outside.path().join("secret"), at("hard")).unwrap();
        refused("hard", "hard link");
        refused("sub", "not a regular file");
        refused("absent", "No such file");
        refused("../secret", "leads out");
        refused("/etc/hostname", "leads out");
        let pipe = std::process::Command::new("mkfifo").arg(at("pipe")).status();
        if pipe.is_ok_and(|status| status.success()) {
            refused("pipe", "not a regular file");
        }
    }

    #[test]
    fn bounds_are_of_dims_that_are_there() {
        let mut graph = model::Graph::default();
        let shape = vec![Dim::Symbol("batch size".into()), Dim::Unknown, Dim::Fixed(3)];
        let ty = TensorType { dtype: kiln_ir::DType::F32, shape: Some(shape) };
        graph.inputs.push(ValueInfo { name: "x".into(), ty: Some(ValueType::Tensor(ty)) });
        let check = |name: &str, range, shape: &[usize]| {
            let shapes = BTreeMap::from([("x".to_string(), shape.to_vec())]);
            check_bind(&graph, &BTreeMap::from([(name.to_string(), range)]), &shapes).map_err(|e| e.to_string())
        };
        let clean = kiln_ir::Symbol::new("batch size").name().to_string();
        assert_eq!(check("batch size", (2, 2), &[]), Ok(()));
        assert_eq!(check(&clean, (2, 4), &[4, 1, 3]), Ok(()));
        assert_eq!(check("x_1", (1, 4), &[9, 4, 3]), Ok(()));
        assert!(check("x_2", (3, 3), &[]).unwrap_err().contains("there are batch size, x_1"));
        assert!(check("x_1", (1, 4), &[9, 5, 3]).unwrap_err().contains("axis 1 is 5, x_1 is bound to 1..4"));
    }
}

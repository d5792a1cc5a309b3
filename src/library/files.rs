//! The files beside a library: C header, pkg-config file, CMake file.
//!
//! Invariant: they find the library beside themselves, wherever the folder is moved.

use super::{ABI, Form, LibraryOptions, identifier};
use crate::Error;
use std::path::{Path, PathBuf};

/// What a library and the files beside it are called.
#[derive(Debug)]
pub(super) struct Names {
    folder: PathBuf,
    /// The library's file, such as `libnet.so`.
    pub(super) file: String,
    /// What it is called, such as `net`.
    pub(super) stem: String,
    /// What its functions begin with.
    pub(super) prefix: String,
    form: Form,
    weights: bool,
}

impl Names {
    /// The names for a library at `path`.
    ///
    /// # Errors
    /// [`Error::Usage`] where the path or the prefix does not name one.
    pub(super) fn new(path: &Path, options: &LibraryOptions) -> Result<Names, Error> {
        let unnamed = || Error::Usage(format!("{} does not name a file in UTF-8", path.display()));
        let file = path.file_name().and_then(|n| n.to_str()).ok_or_else(unnamed)?;
        let full = path.file_stem().and_then(|n| n.to_str()).ok_or_else(unnamed)?;
        let stem = full.strip_prefix("lib").filter(|s| !s.is_empty()).unwrap_or(full);
        if file.chars().any(|c| c.is_control() || matches!(c, '"' | '\\' | '$' | ' ' | '#' | ';')) {
            return Err(Error::Usage(format!("{file:?} holds characters that build files cannot name")));
        }
        let prefix = options.prefix.clone().unwrap_or_else(|| identifier(stem));
        if identifier(&prefix) != prefix && !prefix.starts_with('_') {
            let why = "it must be letters, digits and underscores, the first one no digit";
            return Err(Error::Usage(format!("{prefix:?} cannot begin the names of C functions: {why}")));
        }
        Ok(Names {
            folder: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            file: file.into(),
            stem: stem.into(),
            prefix,
            form: options.form,
            weights: options.weights.is_some(),
        })
    }

    /// The text files beside the library of a model of that name.
    pub(super) fn texts(&self, model: &str, sbom: Option<&str>) -> Vec<(PathBuf, String)> {
        let stem = &self.stem;
        let mut files = vec![
            (format!("{stem}.h"), self.header()),
            (format!("{stem}.pc"), self.pkg_config(model)),
            (format!("{stem}-config.cmake"), self.cmake()),
        ];
        files.extend(sbom.map(|sbom| (format!("{stem}.spdx.json"), sbom.to_string())));
        files.into_iter().map(|(name, text)| (self.folder.join(name), text)).collect()
    }

    fn header(&self) -> String {
        let guard = format!("KILN_MODEL_{}", self.prefix.to_ascii_uppercase());
        let text = include_str!("header.h").replace("@GUARD@", &guard);
        text.replace("@P@", &self.prefix).replace("@ABI@", &ABI.to_string())
    }

    fn pkg_config(&self, model: &str) -> String {
        let (stem, file) = (&self.stem, &self.file);
        // What a linker finds by -l must be called lib*.so or lib*.a; anything else is named in full.
        let named = match self.form {
            Form::Shared => *file == format!("lib{stem}.so"),
            Form::Static => *file == format!("lib{stem}.a"),
            Form::Object => false,
        };
        let libs = if named { format!("-L${{libdir}} -l{stem}") } else { format!("${{libdir}}/{file}") };
        let model: String = model.chars().filter(|c| c.is_ascii_graphic() && *c != '#' || *c == ' ').collect();
        let weights = if self.weights { "; its weights are in a file of their own" } else { "" };
        format!(
            "libdir=${{pcfiledir}}\n\nName: {stem}\nDescription: the model {model} compiled by Kiln{weights}\nVersion: {ABI}\n\
             Cflags: -I${{libdir}}\nLibs: {libs}\n"
        )
    }

    fn cmake(&self) -> String {
        let (stem, file) = (&self.stem, &self.file);
        let target = identifier(stem);
        let body = match self.form {
            Form::Shared | Form::Static => {
                let kind = if self.form == Form::Shared { "SHARED" } else { "STATIC" };
                format!(
                    "  add_library(kiln::{target} {kind} IMPORTED)\n  set_target_properties(kiln::{target} PROPERTIES\n    \
                     IMPORTED_LOCATION \"${{CMAKE_CURRENT_LIST_DIR}}/{file}\"\n    \
                     INTERFACE_INCLUDE_DIRECTORIES \"${{CMAKE_CURRENT_LIST_DIR}}\")\n"
                )
            }
            Form::Object => format!(
                "  add_library(kiln::{target} INTERFACE IMPORTED)\n  set_target_properties(kiln::{target} PROPERTIES\n    \
                 INTERFACE_LINK_LIBRARIES \"${{CMAKE_CURRENT_LIST_DIR}}/{file}\"\n    \
                 INTERFACE_INCLUDE_DIRECTORIES \"${{CMAKE_CURRENT_LIST_DIR}}\")\n"
            ),
        };
        format!(
            "# find_package({stem} REQUIRED PATHS FOLDER NO_DEFAULT_PATH), then target_link_libraries(... kiln::{target})\n\
             if(NOT TARGET kiln::{target})\n{body}endif()\n"
        )
    }
}

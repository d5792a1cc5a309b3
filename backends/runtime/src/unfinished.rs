//! Files that appear complete or not at all.
//!
//! Invariant: until [`Unfinished::finish`] the bytes have no name where the system can do that (Linux, `O_TMPFILE`), so that nothing is left behind
//! whatever ends the process; elsewhere they have a name of their own in the same folder, which is removed unless the process is killed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

/// A file that is being written.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// In the folder, without a name.
    #[cfg(target_os = "linux")]
    Unnamed(File),
    Named(NamedTempFile),
}

impl Unfinished {
    /// An empty file that may become `path`. A link is followed: the file that it names will be replaced, not the link.
    ///
    /// # Errors
    /// What the system says of the folder, or `InvalidInput` where `path` names something that is no regular file.
    pub fn create(path: &Path) -> io::Result<Unfinished> {
        let path = match fs::symlink_metadata(path) {
            Ok(found) if found.is_symlink() => fs::canonicalize(path)?,
            Ok(_) | Err(_) => path.to_path_buf(),
        };
        // Renaming over a device or a folder would destroy it or fail late.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) || path.file_name().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, NOT_A_FILE));
        }
        #[cfg(target_os = "linux")]
        if let Some(file) = unnamed::create(folder(&path)) {
            return Ok(Unfinished { path, kind: Kind::Unnamed(file) });
        }
        let file = builder().tempfile_in(folder(&path))?;
        Ok(Unfinished { path, kind: Kind::Named(file) })
    }

    /// The file, to be written.
    pub fn file(&mut self) -> &mut File {
        match &mut self.kind {
            #[cfg(target_os = "linux")]
            Kind::Unnamed(file) => file,
            Kind::Named(file) => file.as_file_mut(),
        }
    }

    /// Syncs the file and gives it its name in one step, in place of what had it.
    ///
    /// # Errors
    /// What the system says; what had the name is as it was.
    pub fn finish(mut self) -> io::Result<()> {
        self.file().sync_all()?;
        match self.kind {
            #[cfg(target_os = "linux")]
            Kind::Unnamed(file) => unnamed::link(&file, &self.path)?,
            Kind::Named(file) => drop(file.persist(&self.path).map_err(|e| e.error)?),
        }
        // The name itself is durable only when its folder is synced. The file is complete by now, so file systems that cannot do this
        // are not a failure.
        #[cfg(unix)]
        if let Ok(folder) = File::open(folder(&self.path)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// What is said of a path that cannot be replaced.
const NOT_A_FILE: &str = "it exists and is not a regular file";

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names for files that are not finished, readable by whom the user's umask lets.
fn builder() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(".kiln-").suffix(".tmp");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}

/// Files without a name, see open(2) on `O_TMPFILE`.
#[cfg(target_os = "linux")]
mod unnamed {
    use super::{File, Path, builder, folder, io};
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
    use std::os::fd::AsRawFd;

    /// Nothing where the file system or the system cannot do it: NFS, some overlays, no `/proc` to give the name through.
    pub(super) fn create(folder: &Path) -> Option<File> {
        let file = open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(0o666)).ok()?;
        let file = File::from(file);
        by_descriptor(&file).exists().then_some(file)
    }

    fn by_descriptor(file: &File) -> std::path::PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// Gives the file its name.
    pub(super) fn link(file: &File, path: &Path) -> io::Result<()> {
        let from = by_descriptor(file);
        let link = |to: &Path| linkat(CWD, &from, CWD, to, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from);
        match link(path) {
            // A link replaces nothing; a name of its own does, when it is renamed.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                builder().make_in(folder(path), link)?.persist(path).map(drop).map_err(|e| e.error)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(folder: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    fn written(mut file: Unfinished, text: &str) -> Unfinished {
        file.file().write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_file_replaces_another_when_it_is_finished_and_leaves_nothing_when_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let named = |path: &Path| {
            let file = builder().tempfile_in(folder.path()).unwrap();
            Unfinished { path: path.to_path_buf(), kind: Kind::Named(file) }
        };
        let unnamed = |path: &Path| Unfinished::create(path).unwrap();
        let both: [&dyn Fn(&Path) -> Unfinished; 2] = [&unnamed, &named];
        for create in both {
            let _ = fs::remove_file(&path);
            drop(written(create(&path), "half"));
            assert_eq!(names(folder.path()), Vec::<String>::new());
            written(create(&path), "one").finish().unwrap();
            drop(written(create(&path), "half"));
            assert_eq!(fs::read(&path).unwrap(), b"one");
            written(create(&path), "two").finish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"two");
            assert_eq!(names(folder.path()), ["a"]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_written_has_no_name_until_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = written(Unfinished::create(&path).unwrap(), "text");
        // File systems without O_TMPFILE show the name of their own.
        let shown = names(folder.path());
        assert!(matches!(file.kind, Kind::Named(_)) || shown.is_empty(), "{shown:?}");
        file.finish().unwrap();
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_folders_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        written(Unfinished::create(&link).unwrap(), "new").finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        // The user's umask decides who reads it, as for any file that a program writes.
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&file), mode(&plain));
        for path in [folder.path(), Path::new("/"), &folder.path().join("none/a")] {
            assert!(Unfinished::create(path).is_err(), "{}", path.display());
        }
    }
}

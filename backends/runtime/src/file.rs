//! Files as bytes without copying them.
//!
//! Invariant: what is handed out is a regular file's content; the mapping lives as long as the last handle to it.

use std::io;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps the regular file at `path`. The file must not be changed while the bytes are in use.
///
/// # Errors
/// What the system says, or `InvalidInput` where the path names a folder, a device or a pipe.
pub fn map(path: &Path) -> io::Result<Bytes> {
    // Asked before opening, because opening a pipe would wait for its other end.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        let what = if found.is_dir() { "it is a folder" } else { "it is not a regular file" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    if found.len() == 0 {
        // No system maps nothing.
        return Ok(Bytes::new());
    }
    let file = std::fs::File::open(path)?;
    // SAFETY: the mapping is read-only and private. That the bytes do not change under a `&[u8]` holds as far as a
    // file can promise it, which is what this function asks of its callers.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_mapped_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert_eq!(map(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(map(folder.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::fs::write(&path, b"").unwrap();
        assert!(map(&path).unwrap().is_empty());
        std::fs::write(&path, b"content").unwrap();
        let bytes = map(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.as_ref(), b"content");
    }
}

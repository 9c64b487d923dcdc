//! Files that are whole or not there: written beside their place, then renamed.

use std::io::Write;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// Writes a file in one step: at no time is there half of it, and what was there before stays if writing fails.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = create_temporary(path)?;
    temporary.write_all(bytes).map_err(Error::io("write", path))?;
    rename(temporary.into_temp_path(), path)
}

/// A file beside `target` that is removed unless it is renamed, with the permissions of a normal new file.
pub(crate) fn create_temporary(target: &Path) -> Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".trt-opt-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The user's mask applies.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder_of(target)).map_err(Error::io("write", target))
}

pub(crate) fn rename(temporary: TempPath, target: &Path) -> Result<()> {
    temporary.persist(target).map_err(|failed| Error::io("write", target)(failed.error))
}

/// Whether two paths are one file. A file that is not there yet is known by its folder and name.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| {
        path.canonicalize().or_else(|_| {
            let folder = folder_of(path).canonicalize()?;
            Ok::<_, std::io::Error>(folder.join(path.file_name().unwrap_or_default()))
        })
    };
    matches!((real(a), real(b)), (Ok(a), Ok(b)) if a == b)
}

/// The folder that a file is in; `.` for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_or_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

        // A folder cannot be replaced by a file, and nothing is left behind.
        let taken = dir.path().join("folder");
        std::fs::create_dir_all(taken.join("inner")).unwrap();
        let error = write(&taken, b"text").unwrap_err().to_string();
        assert!(error.starts_with("cannot write") && error.contains("folder"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        let error = write(&dir.path().join("absent/a.json"), b"text").unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }
}

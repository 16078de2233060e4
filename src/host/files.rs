//! Writes files atomically: a reader, or the disk after a loss of power, has the old file or the
//! new one.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::error::Result;

/// The prefix of temporary files.
pub(crate) const TEMPORARY: &str = ".litellm-units-";

/// Writes `bytes` to `path`: a temporary file beside it, fsync, rename, fsync of the directory.
/// The temporary file has `mode` from its creation on; an existing file's owner is kept.
///
/// # Errors
/// When writing fails. The old file, if there was one, is then still in place.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write(path, bytes, mode).with_context(|| format!("can't write {}", path.display()))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    // A link stays a link: its target is replaced.
    let resolved = std::fs::canonicalize(path);
    let path = resolved.as_deref().unwrap_or(path);
    let directory = path.parent().context("the path has no directory")?;
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    // The umask may have taken bits away at creation.
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    if let Ok(old) = std::fs::metadata(path) {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(directory)
}

/// Makes renames and removals in `directory` survive a power loss.
///
/// # Errors
/// When the directory can't be opened or synced.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    Ok(File::open(directory)?.sync_all()?)
}

/// Sets the permission bits of `path`.
///
/// # Errors
/// When the caller does not own the file.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("can't set the mode of {}", path.display()))
}

/// Every regular file below `directory`, sorted. Links are followed to a limited depth.
///
/// # Errors
/// When a directory can't be read.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    const DEPTH: usize = 8;
    fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            // A dangling link is left to the gateway, which reports it.
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            if metadata.is_dir() && depth > 0 {
                walk(&path, depth - 1, found)?;
            } else if metadata.is_file() {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(directory, DEPTH, &mut found)
        .with_context(|| format!("can't read {}", directory.display()))?;
    found.sort();
    Ok(found)
}

/// Creates a directory for its owner only.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn private_directory(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

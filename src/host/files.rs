//! Writes files atomically: a reader, or the disk after a loss of power, has the old file or the
//! new one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Failure, PathContext, Result};

/// The prefix of temporary files.
pub(crate) const TEMPORARY: &str = ".litellm-units-";
/// Timeout of [`answers`].
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Writes `bytes` to `path`: a temporary file beside it, fsync, rename, fsync of the directory.
/// The temporary file has `mode` from its creation on; an existing file's owner is kept.
///
/// # Errors
/// When writing fails. The old file, if there was one, is then still in place.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    // A link stays a link: its target is replaced.
    let resolved = std::fs::canonicalize(path);
    write(resolved.as_deref().unwrap_or(path), bytes, mode).path_context("can't write", path)
}

/// As [`write_atomically`], into a directory that others may change: neither the directory nor the file is
/// looked for behind a link, and a link is replaced.
///
/// # Errors
/// As [`write_atomically`], and when the directory is a link.
pub(crate) fn write_here(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let attempt = || {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits())
            .open(directory)?;
        // Whatever becomes of its name meanwhile.
        let place = format!("/proc/self/fd/{}", opened.as_raw_fd());
        write(&Path::new(&place).join(name), bytes, mode)
    };
    attempt().path_context("can't write", directory.join(name))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = path.parent().context("the path has no directory")?;
    let mut file = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    // The umask may have taken bits away at creation.
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))?;
    if let Ok(old) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::MetadataExt;
        std::os::unix::fs::fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_directory(directory)
}

/// The content of a file; `None` if it does not exist.
pub(crate) fn read_existing(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some).path_context("can't read", path),
    }
}

/// Reads a record in JSON; `None` if there is none. The error quotes nothing of it, since it may hold secrets.
///
/// # Errors
/// With `hint`, when it is damaged; or when it can't be read.
pub(crate) fn load_record<T: DeserializeOwned>(path: &Path, hint: &str) -> Result<Option<T>> {
    let Some(text) = read_existing(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        let (path, line, column) = (path.display(), error.line(), error.column());
        Failure::new(format!("{path} is damaged: line {line}, column {column}"))
            .hint(hint)
            .into()
    })
}

/// Writes such a record, which only its owner can read.
pub(crate) fn save_record(path: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(record).path_context("can't put into JSON:", path)?;
    write_atomically(path, &text, 0o600)
}

/// Removes a file, if it exists.
pub(crate) fn remove_existing(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).path_context("can't remove", path)
        }
        _ => Ok(()),
    }
}

/// Whether the file system of a directory answers within [`ANSWER_TIMEOUT`]. Any other access to a file system of a network
/// that does not answer blocks for ever.
pub(crate) fn answers(directory: &Path) -> bool {
    let (sender, answer) = mpsc::channel();
    let asked = directory.to_owned();
    // Not its entries, which the kernel may know.
    let thread = std::thread::Builder::new().spawn(move || sender.send(statvfs(&asked).is_ok()));
    thread.is_err() || answer.recv_timeout(ANSWER_TIMEOUT) != Err(RecvTimeoutError::Timeout)
}

/// What is in a directory, by name; nothing if it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
    };
    let mut found: Vec<PathBuf> = entries.path_context("can't read", directory)?;
    found.sort();
    Ok(found)
}

/// The last part of a path, if it is UTF-8.
pub(crate) fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Makes renames and removals in `directory` survive a power loss.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    Ok(File::open(directory)?.sync_all()?)
}

/// Swaps two directories of one parent, in one step.
///
/// # Errors
/// When the file system can't; then nothing is changed.
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
        .with_context(|| format!("can't swap {} and {}", one.display(), other.display()))?;
    match one.parent() {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Whether something is mounted at `path`.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    let resolved = std::fs::canonicalize(path).path_context("can't examine", path)?;
    let list = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(list).with_context(|| format!("can't read {list}"))?;
    Ok(is_mount_of(&text, &resolved))
}

/// Whether a list in the form of `/proc/self/mountinfo` has a mount at `path`.
fn is_mount_of(list: &str, path: &Path) -> bool {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        match character {
            ' ' | '\t' | '\n' | '\\' => {
                escaped.push_str(&format!("\\{:03o}", u32::from(character)));
            }
            other => escaped.push(other),
        }
    }
    list.lines()
        .any(|line| line.split(' ').nth(4) == Some(&escaped))
}

/// Removes a directory with all that is in it, if it exists.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).path_context("can't remove", path)
        }
        _ => Ok(()),
    }
}

/// The permission bits of `path`.
pub(crate) fn mode(path: &Path) -> Result<u32> {
    let found = std::fs::metadata(path).path_context("can't examine", path)?;
    Ok(found.mode() & 0o7777)
}

/// Sets the permission bits of `path`.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .path_context("can't set the mode of", path)
}

/// Copies a file into the directory of another user, who alone can read the copy.
pub(crate) fn copy_for_owner(path: &Path, directory: &Path) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let owner = std::fs::metadata(directory)?;
        let name = path.file_name().unwrap_or_default();
        // Complete, and theirs, before it has its name: behind a name of theirs, nothing is followed.
        let mut copy = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(directory)?;
        io::copy(&mut File::open(path)?, &mut copy)?;
        std::os::unix::fs::fchown(&copy, Some(owner.uid()), Some(owner.gid()))?;
        copy.persist(directory.join(name))?;
        Ok(())
    };
    attempt().with_context(|| format!("can't copy {} to {}", path.display(), directory.display()))
}

/// Opens a regular file for reading. A link is not followed, and a FIFO does not block.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link"));
        }
        opened => opened?,
    };
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let reason = "it is not a regular file";
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
}

/// The first link at `directory` or below it.
pub(crate) fn link_below(directory: &Path) -> Result<Option<PathBuf>> {
    fn walk(path: &Path) -> io::Result<Option<PathBuf>> {
        let kind = match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?.file_type(),
        };
        if kind.is_symlink() {
            return Ok(Some(path.to_owned()));
        }
        if kind.is_dir() {
            for entry in std::fs::read_dir(path)? {
                if let Some(link) = walk(&entry?.path())? {
                    return Ok(Some(link));
                }
            }
        }
        Ok(None)
    }
    walk(directory).path_context("can't read", directory)
}

/// Every regular file below `directory`, sorted; none if it is missing. Links are followed to a limited depth.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    const DEPTH: usize = 8;
    fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
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
    walk(directory, DEPTH, &mut found).path_context("can't read", directory)?;
    found.sort();
    Ok(found)
}

/// Every regular file that the operator gives the gateway, in the order of their directories: those of a deployment
/// directory, or of a kept configuration.
pub(crate) fn mounted_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for directory in ["config", "certs", "files"].map(|name| root.join(name)) {
        if directory.exists() {
            found.extend(files_below(&directory)?);
        }
    }
    Ok(found)
}

/// Every regular file directly in `extra.d/`, sorted. The directories there are data.
pub(crate) fn files_of_extras(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(&root.join("extra.d"))?;
    found.retain(|path| path.is_file());
    Ok(found)
}

/// Every file of an operator that a configuration consists of, beside `.env`.
pub(crate) fn configuration_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = mounted_files(root)?;
    found.extend(files_of_extras(root)?);
    Ok(found)
}

/// The space of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// What users other than root may still fill.
    pub(crate) free: u64,
    pub(crate) size: u64,
}

impl Space {
    /// That of the file system of `directory`.
    pub(crate) fn of(directory: &Path) -> Result<Self> {
        let found = statvfs(directory).path_context("can't read the free space of", directory)?;
        Ok(Self {
            free: found.blocks_available() * found.fragment_size(),
            size: found.blocks() * found.fragment_size(),
        })
    }

    /// What is in use, with what is reserved for root.
    pub(crate) fn used(&self) -> u64 {
        self.size.saturating_sub(self.free)
    }
}

/// Creates a directory, and those above it, with this mode, unless it exists.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .path_context("can't create", path)
}

/// Creates a directory for its owner only.
pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::write(path("file"), "text").unwrap();
        symlink(path("file"), path("link")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let mut text = String::new();
        let mut file = open_regular(&path("file")).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        for (name, reason) in [
            ("link", "it is a link"),
            ("fifo", "it is not a regular file"),
            (".", "it is not a regular file"),
        ] {
            let error = open_regular(&path(name)).unwrap_err();
            assert_eq!(error.to_string(), reason, "{name}");
        }
    }

    #[test]
    fn mounts_are_found() {
        let list = "22 1 0:20 / / rw - ext4 /dev/a rw\n30 22 0:31 /x /srv/a\\040b/postgres rw,relatime shared:1 - ext4 /dev/a rw\n";
        assert!(is_mount_of(list, Path::new("/srv/a b/postgres")));
        assert!(is_mount_of(list, Path::new("/")));
        assert!(!is_mount_of(list, Path::new("/srv/a b")));
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }

    #[test]
    fn links_in_the_way_are_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir(path("out")).unwrap();
        std::fs::write(path("target"), "theirs").unwrap();
        symlink(path("target"), path("out/unit")).unwrap();
        write_here(&path("out"), "unit", b"ours", 0o644).unwrap();
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        assert_eq!(
            (read("target"), read("out/unit")),
            ("theirs".into(), "ours".into())
        );
        symlink(path("out"), path("link")).unwrap();
        let error = write_here(&path("link"), "unit", b"", 0o644).unwrap_err();
        let expected = format!("can't write {}", path("link/unit").display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(std::fs::read_dir(path("out")).unwrap().count(), 1);
    }

    #[test]
    fn links_are_found() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("config/a/b")).unwrap();
        std::fs::write(path("config/a/file"), "").unwrap();
        assert_eq!(link_below(&path("none")).unwrap(), None);
        assert_eq!(link_below(&path("config")).unwrap(), None);
        symlink("/nowhere", path("config/a/b/link")).unwrap();
        let link = path("config/a/b/link");
        assert_eq!(link_below(&path("config")).unwrap(), Some(link));
        symlink("config", path("other")).unwrap();
        assert_eq!(link_below(&path("other")).unwrap(), Some(path("other")));
    }
}

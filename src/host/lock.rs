//! One operation at a time per deployment, and one registration of secrets.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Failure, PathContext, Result};
use crate::host::paths::{Paths, Scope};

/// The lock of the running operation. The kernel releases it when the process ends, however it
/// ends.
#[derive(Debug)]
pub(crate) struct OperationLock {
    _file: Option<Flock<File>>,
}

impl OperationLock {
    /// Takes the lock for `command`.
    ///
    /// # Errors
    /// When another operation holds it: the message names its process and command.
    pub(crate) fn take(paths: &Paths, command: &str) -> Result<Self> {
        if !paths.runtime.is_dir() {
            // Without a session there is no systemd to reach: the command itself reports that.
            return Ok(Self { _file: None });
        }
        let state = paths.runtime_state();
        std::fs::create_dir_all(&state).map_err(|error| {
            Failure::new(format!("can't create {}: {error}", state.display()))
                .hint("run the command as the user who owns the deployment")
        })?;
        Self::take_file(&lock_file(paths), command)
    }

    /// As [`OperationLock::take`], of what this file stands for.
    ///
    /// # Errors
    /// As [`OperationLock::take`].
    pub(crate) fn take_file(path: &Path, command: &str) -> Result<Self> {
        let mut file = match lock_patiently(open(path)?) {
            Ok(file) if file.metadata().is_ok_and(|file| file.nlink() == 0) => {
                // `down --remove` has removed it meanwhile.
                return Self::take_file(path, command);
            }
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(Failure::new(format!(
                    "another operation is running: {}",
                    owner.trim()
                ))
                .hint(way_past(&control_group_of(&owner)))
                .into());
            }
            Err((_, error)) => {
                return Err(error).path_context("can't lock", path);
            }
        };
        let words = format!("{})\n", words(command, std::process::id()));
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(words.as_bytes()))
            .path_context("can't write", path)?;
        Ok(Self { _file: Some(file) })
    }

    /// Whether an operation is running.
    pub(crate) fn is_held(paths: &Paths) -> bool {
        is_held(&lock_file(paths))
    }

    /// Whether the operation that is running is this command.
    pub(crate) fn is_held_by(paths: &Paths, command: &str) -> bool {
        Self::holder(paths).is_some_and(|holder| holder.starts_with(&words(command, "")))
    }

    /// The operation that is running: `litellm-units apply (process 4711)`.
    pub(crate) fn holder(paths: &Paths) -> Option<String> {
        let holder = std::fs::read_to_string(lock_file(paths)).ok()?;
        Self::is_held(paths).then(|| holder.trim_end().to_owned())
    }

    /// How long the last operation is running, or how long ago it began.
    pub(crate) fn age(paths: &Paths) -> Option<Duration> {
        let began = std::fs::metadata(lock_file(paths)).ok()?.modified().ok()?;
        began.elapsed().ok()
    }

    /// Waits until no operation is running.
    pub(crate) fn wait(paths: &Paths) -> Result<()> {
        let path = lock_file(paths);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.path_context("can't open", &path)?,
        };
        Flock::lock(file, FlockArg::LockShared)
            .map_err(|(_, error)| error)
            .path_context("can't lock", &path)?;
        Ok(())
    }
}

/// Takes the lock of a file, which is created if it is missing; `None` if another process has it.
pub(crate) fn exclusive(path: &Path) -> Result<Option<Flock<File>>> {
    match lock_patiently(open(path)?) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).path_context("can't lock", path),
    }
}

/// Whether a process has the lock of [`exclusive`].
pub(crate) fn is_held(path: &Path) -> bool {
    File::open(path).is_ok_and(is_locked)
}

/// Waits until no other process registers the secrets of a container, and keeps others from it until it is dropped.
pub(crate) fn of_secrets(paths: &Paths, container: &str) -> Result<Flock<File>> {
    let state = paths.runtime_state();
    std::fs::create_dir_all(&state).path_context("can't create", &state)?;
    let path = state.join(format!("{container}.secrets-lock"));
    Flock::lock(open(&path)?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .path_context("can't lock", &path)
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .path_context("can't open", path)
}

fn lock_file(paths: &Paths) -> PathBuf {
    paths.runtime_state().join("lock")
}

fn words(command: &str, process: impl std::fmt::Display) -> String {
    format!("litellm-units {command} (process {process}")
}

/// The control group of the process that [`words`] name, if it is running.
fn control_group_of(owner: &str) -> String {
    let process = { owner.trim_end().strip_suffix(')') }
        .and_then(|words| words.rsplit_once("(process "))
        .and_then(|(_, process)| process.parse::<u32>().ok());
    process
        .and_then(|process| std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok())
        .unwrap_or_default()
}

/// What to do about the operation of a process in this control group. Nobody waits for one that a timer began.
fn way_past(control_group: &str) -> String {
    let words = "wait for it, or end it; it is then finished or rolled back";
    let unit = control_group.trim_end().rsplit('/').next();
    let is_timed = |unit: &&str| {
        unit.starts_with("litellm-")
            && unit.ends_with(".service")
            && *unit != "litellm-recovery.service"
    };
    let Some(unit) = unit.filter(is_timed) else {
        return words.to_owned();
    };
    let scope = if control_group.contains("/user@") {
        Scope::User
    } else {
        Scope::System
    };
    format!("{words}: `{} stop {unit}`", scope.systemctl())
}

fn is_locked(file: File) -> bool {
    matches!(
        Flock::lock(file, FlockArg::LockSharedNonblock),
        Err((_, nix::errno::Errno::EWOULDBLOCK))
    )
}

/// Tries several times: a process that only looks whether the lock is held has it for a moment.
fn lock_patiently(mut file: File) -> Result<Flock<File>, (File, nix::errno::Errno)> {
    for _ in 0..10 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((refused, nix::errno::Errno::EWOULDBLOCK)) => file = refused,
            locked => return locked,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err((file, nix::errno::Errno::EWOULDBLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_of_a_unit_can_be_stopped() {
        let system = "0::/system.slice/litellm-verify.service\n";
        let user =
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/litellm-verify.service\n";
        let words = "wait for it, or end it; it is then finished or rolled back";
        assert_eq!(
            [system, user].map(way_past),
            [
                format!("{words}: `systemctl stop litellm-verify.service`"),
                format!("{words}: `systemctl --user stop litellm-verify.service`"),
            ]
        );
        for group in [
            "",
            "0::/user.slice/user-0.slice/session-1.scope\n",
            "0::/litellm.slice/litellm-recovery.service\n",
        ] {
            assert_eq!(way_past(group), words);
        }
        // The holder is found by what it has written.
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let holder = format!("{})\n", super::words("backup verify", std::process::id()));
        assert_eq!(control_group_of(&holder), own);
        assert_eq!(control_group_of(""), "");
    }
}

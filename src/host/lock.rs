//! One operation at a time per deployment.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Failure, Result};
use crate::host::paths::Paths;

/// Held while an operation changes the deployment; the kernel lets go of it when the process
/// ends, however it ends.
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
            // Without a session there is no systemd to change anything with: the command will
            // say so itself.
            return Ok(Self { _file: None });
        }
        let state = paths.runtime_state();
        std::fs::create_dir_all(&state).map_err(|error| {
            Failure::new(format!("can't create {}: {error}", state.display()))
                .hint("run the command as the user who owns the deployment")
        })?;
        let path = state.join("lock");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("can't open {}", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(Failure::new(format!(
                    "another operation is running: {}",
                    owner.trim()
                ))
                .hint("wait for it, or end it; the next command then finishes it or rolls it back")
                .into());
            }
            Err((_, error)) => {
                return Err(error).with_context(|| format!("can't lock {}", path.display()));
            }
        };
        let words = format!("litellm-units {command} (process {})\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(words.as_bytes()))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self { _file: Some(file) })
    }

    /// Whether an operation is running.
    #[must_use]
    pub(crate) fn is_held(paths: &Paths) -> bool {
        let Ok(file) = File::open(paths.runtime_state().join("lock")) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, nix::errno::Errno::EWOULDBLOCK))
        )
    }
}

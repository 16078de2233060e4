//! Changes of secrets that either come into force everywhere or are taken back: in `.env`, in the
//! server that knows the secret, and in what runs.
//!
//! What is to change is written down before anything is touched. If the program ends in between,
//! by a loss of power or otherwise, the next run goes on from there: every step can be repeated.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;

use anyhow::Context;

use crate::error::{Failure, Result};
use crate::paths::Paths;

/// Held while keys or secrets are changed.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Makes sure that only one process changes keys or secrets.
///
/// # Errors
/// When another one does.
pub fn lock(paths: &Paths) -> Result<Lock> {
    let directory = paths.state();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(|| format!("can't create {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("can't open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::new(
            "another litellm-units is changing keys or secrets",
        )
        .hint("wait until it has finished, and run the command again")
        .into()),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("can't lock {}", path.display()))
        }
    }
}

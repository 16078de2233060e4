//! What every change of a deployment begins with, and what follows one that was interrupted.

use std::convert::Infallible;
use std::os::fd::RawFd;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::backup::{point_in_time, restore};
use super::stack::{self, RECOVERY_TIMEOUT};
use super::{apply, import, postgres, rotation, upgrade};
use crate::deployment::snapshot;
use crate::error::Result;
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::host::ownership;
use crate::host::paths::Paths;
use crate::host::record::Change;
use crate::host::systemd::ActiveState;
use crate::output::duration;
use crate::quadlet::{self, RECOVERY};

/// What `litellm-recovery.service` holds the lock as.
pub(super) const COMMAND: &str = "unit recover";
/// Interval between two attempts to take the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);
/// How often `litellm-recovery.service` tries, and the pauses between.
const ATTEMPTS: u32 = 5;
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(60);
/// Interval between two questions whether the address is still open.
const SOCKET_INTERVAL: Duration = Duration::from_secs(1);

/// Takes the lock for `command`, then finishes or undoes what an earlier command was interrupted in.
///
/// From here on, `litellm-recovery.service` watches this process: should it be killed, the unit completes what it has
/// begun. While the unit does that for an earlier one, this waits, at most `timeout`.
///
/// # Errors
/// When others can change the deployment, another operation is running, the interrupted one can be neither finished nor
/// rolled back, or the data of an import is not here.
pub(crate) async fn begin(host: &Host, command: &str, timeout: Duration) -> Result<OperationLock> {
    ownership::check(&host.paths, None)?;
    let lock = take_lock(host, command, timeout).await?;
    // The operation goes on when the session that began it ends.
    drop(signal(SignalKind::hangup()).context("can't listen for the end of the session")?);
    stack::hold_address(host).await?;
    recover(host, timeout).await?;
    if command != import::COMMAND {
        import::refuse_unfinished(&host.paths)?;
    }
    Ok(lock)
}

async fn take_lock(host: &Host, command: &str, timeout: Duration) -> Result<OperationLock> {
    let deadline = Instant::now() + timeout;
    let mut said = false;
    loop {
        match OperationLock::take(&host.paths, command) {
            Err(_)
                if OperationLock::is_held_by(&host.paths, COMMAND) && Instant::now() < deadline => {
            }
            taken => return taken,
        }
        if !said {
            host.progress.say(&format!(
                "waiting for {RECOVERY}, which completes an interrupted operation"
            ));
            said = true;
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// Waits until no operation is running. Then finishes or undoes the last one, if it was interrupted: what
/// `litellm-recovery.service` runs. A database may take longer to recover than one attempt lasts.
///
/// # Errors
/// When it can be neither finished nor rolled back in [`ATTEMPTS`]; the next command tries again.
pub(crate) async fn stand_by(host: &Host) -> Result<()> {
    let addresses = sd_notify::listen_fds().context("can't read what systemd passes")?;
    tokio::select! {
        outcome = complete_interrupted(host) => outcome,
        never = release_stopped(host, addresses) => match never {},
    }
}

async fn complete_interrupted(host: &Host) -> Result<()> {
    let paths = host.paths.clone();
    spawn_blocking(move || OperationLock::wait(&paths)).await??;
    let mut left = ATTEMPTS;
    while interrupted(&host.paths)?.is_some() {
        // The next command may have been faster: it does the same.
        let Ok(lock) = OperationLock::take(&host.paths, COMMAND) else {
            return Ok(());
        };
        let change = Change::begin(host, COMMAND);
        let outcome = complete(host).await;
        change.end(outcome.is_ok());
        drop(lock);
        left -= 1;
        match outcome {
            Err(error) if left > 0 => host.progress.warn(&format!(
                "{error:#}; the next attempt is in {}",
                duration(ATTEMPT_INTERVAL)
            )),
            outcome => return outcome,
        }
        tokio::time::sleep(ATTEMPT_INTERVAL).await;
    }
    Ok(())
}

/// Finishes or undoes the interrupted operation.
async fn complete(host: &Host) -> Result<()> {
    ownership::check(&host.paths, None)?;
    // What an operator has stopped in the middle of a change of release stays stopped. The next start begins this anew.
    if upgrade::interrupted(&host.paths)?.is_some()
        && stack::is_shut_down(host.systemd().await?).await?
    {
        return point_in_time::clean_up(host).await;
    }
    recover(host, RECOVERY_TIMEOUT).await
}

/// Closes the addresses, which systemd gave to this process, when the deployment is stopped: clients are refused then, rather
/// than kept waiting until the operation ends. Never returns.
async fn release_stopped(host: &Host, addresses: impl Iterator<Item = RawFd>) -> Infallible {
    let is_stopped = async || -> Result<bool> {
        let socket = host.systemd().await?.unit(quadlet::SOCKET).await?;
        Ok(socket.active == ActiveState::Inactive)
    };
    while !is_stopped().await.unwrap_or(false) {
        tokio::time::sleep(SOCKET_INTERVAL).await;
    }
    for address in addresses {
        let _ = nix::unistd::close(address);
    }
    std::future::pending().await
}

/// The operation that was interrupted, if one was. It may still be running.
pub(crate) fn interrupted(paths: &Paths) -> Result<Option<String>> {
    let found = [
        rotation::interrupted(paths)?,
        upgrade::interrupted(paths)?,
        postgres::interrupted(paths)?,
        import::interrupted(paths)?,
        apply::interrupted(paths),
    ];
    let is_unfinished = restore::is_unfinished(paths) || point_in_time::is_unfinished(paths);
    Ok(found
        .into_iter()
        .flatten()
        .next()
        .or_else(|| is_unfinished.then(|| "the restore was interrupted".to_owned())))
}

/// An operation that is running or was interrupted.
#[derive(Debug)]
pub(crate) enum OngoingOperation {
    /// In words.
    Running(String),
    /// In words, and nobody completes it.
    Interrupted(String),
}

impl OngoingOperation {
    /// The one of this deployment.
    pub(crate) fn find(paths: &Paths) -> Result<Option<Self>> {
        let interrupted = interrupted(paths)?;
        let is_recovering = OperationLock::is_held_by(paths, COMMAND);
        Ok(match (OperationLock::holder(paths), interrupted) {
            (Some(_), Some(interrupted)) if is_recovering => Some(Self::Running(format!(
                "{interrupted}; {RECOVERY} completes it"
            ))),
            (Some(holder), _) => Some(Self::Running(format!("{holder} is running"))),
            (None, interrupted) => interrupted.map(|interrupted| {
                Self::Interrupted(format!(
                    "{interrupted}; to finish it or roll it back: `litellm-units up`"
                ))
            }),
        })
    }
}

async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    point_in_time::clean_up(host).await?;
    // First, since the others need the database.
    Box::pin(postgres::recover(host, timeout)).await?;
    Box::pin(rotation::recover(host, timeout)).await?;
    Box::pin(upgrade::recover(host, timeout)).await?;
    if restore::is_unfinished(&host.paths) {
        let (settings, _) = snapshot::settings(&host.paths)?;
        stack::start_database(host, &settings, timeout).await?;
        Box::pin(restore::recover(host, &settings)).await?;
    }
    Box::pin(apply::recover(host, timeout)).await?;
    Box::pin(import::recover(host, timeout)).await
}

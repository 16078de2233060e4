//! What every change of a deployment begins with.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{rotation, upgrade};
use crate::error::Result;
use crate::host::Host;
use crate::host::lock::OperationLock;

/// Takes the lock for `command`, then finishes or undoes what an earlier command was interrupted in.
///
/// # Errors
/// When another operation is running, or the interrupted one can be neither finished nor rolled back.
pub(crate) async fn begin(host: &Host, command: &str, timeout: Duration) -> Result<OperationLock> {
    let lock = OperationLock::take(&host.paths, command)?;
    // The operation goes on when the session that began it ends.
    drop(signal(SignalKind::hangup()).context("can't listen for the end of the session")?);
    rotation::recover(host, timeout).await?;
    Box::pin(upgrade::recover(host, timeout)).await?;
    Ok(lock)
}

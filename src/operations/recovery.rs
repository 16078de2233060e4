//! What every change of a deployment begins with.

use std::time::Duration;

use super::{rotation, upgrade};
use crate::error::Result;
use crate::host::Host;
use crate::host::lock::OperationLock;

/// Takes the lock for `command`, then finishes or undoes what an earlier command was interrupted in.
///
/// # Errors
/// When another operation is under way, or what was interrupted can neither be finished nor undone.
pub async fn begin(host: &Host, command: &str, timeout: Duration) -> Result<OperationLock> {
    let lock = OperationLock::take(&host.paths, command)?;
    rotation::recover(host, timeout).await?;
    Box::pin(upgrade::recover(host, timeout)).await?;
    Ok(lock)
}

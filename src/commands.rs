//! One module per verb.

pub mod apply;
pub mod audit;
pub mod backup;
pub mod completion;
pub mod config;
pub mod doctor;
pub mod down;
pub mod exec;
pub mod generate;
pub mod health;
pub mod history;
pub mod key;
pub mod logs;
pub mod pull;
pub mod rollback;
pub mod secrets;
pub mod status;
pub mod trust;
pub mod ui;
pub mod unit;
pub mod units;
pub mod up;
pub mod upgrade;

use std::time::Duration;

use crate::error::Result;
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::operations::rotation;

/// Begins a command that changes the deployment: takes the lock, then finishes or undoes what an
/// earlier command was interrupted in. A command that only shows what it would do needs neither:
/// then it is `unlocked`.
async fn begin(
    host: &Host,
    command: &str,
    unlocked: bool,
    timeout: Duration,
) -> Result<Option<OperationLock>> {
    if unlocked {
        return Ok(None);
    }
    let lock = OperationLock::take(&host.paths, command)?;
    rotation::recover(host, timeout).await?;
    Box::pin(crate::operations::upgrade::recover(host, timeout)).await?;
    Ok(Some(lock))
}

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
pub mod lifecycle;
pub mod logs;
pub mod pull;
pub mod rollback;
pub mod secrets;
pub mod status;
pub mod trust;
pub mod ui;
pub mod unit;
pub mod up;
pub mod upgrade;

use std::time::Duration;

use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::operations::recovery;
use crate::operations::upgrade::{ReleaseOptions, ReleasePlan, SETTLE};
use crate::output;

/// Begins a command that changes the deployment, unless it only shows what it would do: that needs neither the
/// lock nor a recovery.
async fn begin(
    host: &Host,
    command: &str,
    dry_run: bool,
    timeout: Duration,
) -> Result<Option<OperationLock>> {
    if dry_run {
        return Ok(None);
    }
    recovery::begin(host, command, timeout).await.map(Some)
}

/// Upgrades to the release that `.env` names.
async fn upgrade_to_env(host: &Host, dry_run: bool, timeout: Duration) -> Result<Exit> {
    let plan = ReleasePlan::upgrade(host, None).await?;
    let options = ReleaseOptions {
        settle: SETTLE,
        timeout,
        accept_unreadable: false,
    };
    change_release(host, plan, dry_run, options).await
}

/// Shows a plan and, unless this is only to show it, carries it out.
async fn change_release(
    host: &Host,
    plan: ReleasePlan,
    dry_run: bool,
    options: ReleaseOptions,
) -> Result<Exit> {
    for line in plan.lines(options) {
        output::line(&line)?;
    }
    if !dry_run {
        Box::pin(plan.carry_out(host, options)).await?;
    }
    Ok(Exit::Success)
}

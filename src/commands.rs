//! One module per verb.

pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod db;
pub(crate) mod debug;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod exec;
pub(crate) mod fleet;
pub(crate) mod generate;
pub(crate) mod health;
pub(crate) mod history;
pub(crate) mod import;
pub(crate) mod key;
pub(crate) mod lifecycle;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod notify;
pub(crate) mod pull;
pub(crate) mod rollback;
pub(crate) mod secrets;
pub(crate) mod status;
pub(crate) mod trust;
pub(crate) mod ui;
pub(crate) mod unit;
pub(crate) mod up;
pub(crate) mod upgrade;

use std::time::Duration;

use crate::deployment::ledger::Ledger;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::operations::recovery;
use crate::operations::upgrade::{ReleaseOptions, ReleasePlan, SETTLE};
use crate::output;

/// Takes the lock and completes interrupted operations. A dry run needs neither.
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

/// As [`recovery::begin`]. With a damaged ledger, which does not say what was interrupted, only takes the lock, and returns
/// why: a restart and a backup are worth no less then.
async fn begin_without_ledger(
    host: &Host,
    command: &str,
    timeout: Duration,
) -> Result<(OperationLock, Option<anyhow::Error>)> {
    Ok(match Ledger::load(&host.paths) {
        Ok(_) => (recovery::begin(host, command, timeout).await?, None),
        Err(error) => (OperationLock::take(&host.paths, command)?, Some(error)),
    })
}

/// Upgrades to the release that `.env` names.
async fn upgrade_to_env(host: &Host, dry_run: bool, timeout: Duration) -> Result<Exit> {
    let plan = ReleasePlan::upgrade(host, None, false).await?;
    let options = ReleaseOptions {
        settle: SETTLE,
        timeout,
        accept_unreadable: false,
    };
    change_release(host, plan, dry_run, options).await
}

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

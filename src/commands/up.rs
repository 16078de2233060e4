//! `up`: from whatever there is to a gateway that serves.

use std::time::Duration;

use super::generate;
use crate::change;
use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::lock::OperationLock;
use crate::output;
use crate::stack;

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, an image can't be pulled, a unit fails, or the gateway is not
/// ready in time.
pub async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let _lock = OperationLock::take(&host.paths, "up")?;
    everything(host, arguments.timeout, output::line).await?;
    Ok(Exit::Success)
}

/// Prepares, pulls and starts whatever is not yet, telling each thing done to `tell`.
///
/// # Errors
/// As [`run`].
pub async fn everything(
    host: &Host,
    timeout: Duration,
    tell: fn(&str) -> Result<()>,
) -> Result<()> {
    change::recover(host, timeout).await?;
    let prepared = generate::prepare(host).await?;
    prepared.apply_telling(host, tell).await?;
    super::config::refuse_errors(host)?;
    if super::pull::pull_missing(host, prepared.settings()).await? {
        // The units name the digests, which are known only now.
        let pinned = generate::prepare(host).await?;
        pinned.apply_telling(host, tell).await?;
    }
    stack::bring_up(host, prepared.settings(), timeout).await
}

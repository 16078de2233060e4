//! `up`: from whatever there is to a gateway that serves.

use std::time::Duration;

use super::generate::{self, Target};
use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output;
use crate::stack;
use crate::upgrade;

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, an image can't be pulled, a unit fails, or the gateway is not
/// ready in time.
pub async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let _lock = super::begin(host, "up", false, arguments.timeout).await?;
    everything(host, arguments.timeout, output::line).await?;
    Ok(Exit::Success)
}

/// Prepares, pulls and starts whatever is not yet, telling each thing done to `tell`. Another image
/// of the gateway than the one that runs is an upgrade.
///
/// # Errors
/// As [`run`].
pub async fn everything(
    host: &Host,
    timeout: Duration,
    tell: fn(&str) -> Result<()>,
) -> Result<()> {
    let prepared = generate::prepare(host, Target::Recorded).await?;
    if prepared.kept().is_some() {
        super::config::refuse_errors(host)?;
        let plan = upgrade::Plan::upgrade(host, None).await?;
        let options = upgrade::Options {
            settle: upgrade::SETTLE,
            timeout,
        };
        for line in plan.lines(options) {
            tell(&line)?;
        }
        return Box::pin(plan.carry_out(host, options)).await;
    }
    prepared.apply_telling(host, tell).await?;
    super::config::refuse_errors(host)?;
    generate::pull_missing(host, &prepared, Target::Recorded, tell).await?;
    stack::bring_up(host, prepared.settings(), timeout).await?;
    upgrade::record(host, prepared.settings(), "up")
}

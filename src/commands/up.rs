//! `up`: from whatever there is to a gateway that serves.

use std::time::Duration;

use super::generate::{self, Prepared, Target};
use crate::cli;
use crate::cli::upgrade::Pace;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::advisories;
use crate::litellm::contract;
use crate::operations::stack;
use crate::operations::upgrade;
use crate::output;

/// Runs the command. Another image of the gateway than the recorded one is an upgrade.
///
/// # Errors
/// When the settings are wrong, an image can't be pulled, a unit fails, or the gateway is not
/// ready in time.
pub async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let _lock = super::begin(host, "up", false, arguments.timeout).await?;
    let prepared = generate::prepare(host, Target::Recorded).await?;
    let settings = prepared.settings();
    let image = &settings.litellm_image;
    let accepted = &arguments.accept.vulnerabilities;
    advisories::admit(&host.paths, settings, image, accepted, "litellm-units up")?;
    if prepared.kept().is_some() {
        super::config::refuse_errors(host)?;
        let plan = upgrade::Plan::upgrade(host, None).await?;
        let pace = Pace {
            settle: upgrade::SETTLE,
            timeout: arguments.timeout,
            accept_unreadable: false,
        };
        return super::upgrade::carry_out(host, plan, false, pace).await;
    }
    bring_up(host, &prepared, arguments.timeout, output::line).await?;
    Ok(Exit::Success)
}

/// Prepares, pulls and starts whatever is not yet, telling each thing done to `tell`. The release
/// stays the recorded one.
///
/// # Errors
/// As [`run`].
pub async fn everything(
    host: &Host,
    timeout: Duration,
    tell: fn(&str) -> Result<()>,
) -> Result<()> {
    let prepared = generate::prepare(host, Target::Recorded).await?;
    let settings = prepared.installed();
    let image = &settings.litellm_image;
    advisories::admit(&host.paths, settings, image, &[], "litellm-units up")?;
    bring_up(host, &prepared, timeout, tell).await
}

async fn bring_up(
    host: &Host,
    prepared: &Prepared,
    timeout: Duration,
    tell: fn(&str) -> Result<()>,
) -> Result<()> {
    prepared.apply_telling(host, tell).await?;
    super::config::refuse_errors(host)?;
    generate::pull_missing(host, prepared, Target::Recorded, tell).await?;
    contract::check_once(host, prepared.installed()).await?;
    stack::bring_up(host, prepared.installed(), timeout).await?;
    upgrade::record(host, prepared.installed(), "up").await
}

//! `up`: from whatever there is to a gateway that serves.

use super::generate;
use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::stack;

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, an image can't be pulled, a unit fails, or the gateway is not
/// ready in time.
pub async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let prepared = generate::prepare(host).await?;
    prepared.apply(host).await?;
    super::config::refuse_errors(host)?;
    super::pull::pull_missing(host, prepared.settings()).await?;
    stack::bring_up(host, prepared.settings(), arguments.timeout).await?;
    Ok(Exit::Success)
}

//! `health`: one question to the gateway, one answer.

use std::time::Duration;

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::health::Health;
use crate::litellm::{Client, contract};
use crate::output;

/// How long the gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// When stdout is closed.
pub async fn run(host: &Host, arguments: &cli::Health) -> Result<Exit> {
    let health = Client::local(PATIENCE)?
        .health()
        .await
        .or_version(|| contract::installed_version(&host.paths));
    if arguments.json {
        output::json(&health)?;
    } else {
        output::line(&health.to_string())?;
    }
    Ok(match health {
        Health::Ready { .. } => Exit::Success,
        Health::Live { .. } => Exit::Degraded,
        Health::Down { .. } => Exit::Stopped,
    })
}

//! `health`: readiness of the gateway.

use std::time::Duration;

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::health::GatewayHealth;
use crate::litellm::{Client, contract};
use crate::output;

const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(host: &Host, arguments: &cli::Health) -> Result<Exit> {
    let health = Client::local(host.scope(), TIMEOUT)?
        .health()
        .await
        .or_version(|| contract::installed_version(&host.paths));
    if arguments.json {
        output::json(&health)?;
    } else {
        output::line(&health.to_string())?;
    }
    Ok(match health {
        GatewayHealth::Ready { .. } => Exit::Success,
        GatewayHealth::Live { .. } => Exit::Degraded,
        GatewayHealth::Down { .. } => Exit::Stopped,
    })
}

//! `health`: readiness of the gateway.

use std::time::Duration;

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::container_state::{self, ContainerHealth};
use crate::litellm::health::GatewayHealth;
use crate::litellm::{Client, contract};
use crate::operations::stack::space::unless_full;
use crate::output;
use crate::service::Service;

const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) async fn run(host: &Host, arguments: &cli::Health) -> Result<Exit> {
    let mut health = Client::local(&host.paths, TIMEOUT)?
        .health()
        .await
        .or_version(|| contract::installed_version(&host.paths));
    if !matches!(health, GatewayHealth::Down { .. })
        && let Some(container) = hung(host).await
    {
        let reason = format!("{container} does not answer its health check");
        health = GatewayHealth::Live { reason };
    }
    health = unless_full(&host.paths, health);
    if arguments.json {
        output::json(&health)?;
    } else {
        output::line(&health.to_string())?;
    }
    Ok(match health {
        GatewayHealth::Ready { .. } => Exit::Success,
        GatewayHealth::Live { .. } | GatewayHealth::Busy { .. } => Exit::Degraded,
        GatewayHealth::Down { .. } => Exit::Stopped,
    })
}

/// The container of a local server that hangs: the gateway says for minutes that its database is connected, and
/// nothing of its cache. Without systemd, nothing is known of them.
async fn hung(host: &Host) -> Option<&'static str> {
    let systemd = host.systemd().await.ok()?;
    for service in [Service::Postgres, Service::Redis] {
        let unit = systemd.unit(service.unit()).await.ok()?;
        if unit.is_active()
            && container_state::health(&host.paths, &unit.control_group)
                .is_some_and(ContainerHealth::is_bad)
        {
            return Some(service.container());
        }
    }
    None
}

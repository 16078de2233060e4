//! `health`: readiness of the gateway.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::container_state::{self, ContainerHealth};
use crate::host::systemd::UnitState;
use crate::litellm::health::GatewayHealth;
use crate::litellm::{Client, contract};
use crate::operations::stack::space::unless_full;
use crate::operations::stack::{self, report};
use crate::output;
use crate::service::{Instance, Service};

const TIMEOUT: Duration = Duration::from_secs(5);

/// The gateway's own answer, or what systemd and Podman know of why it can't serve. `status` has only the former.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Finding {
    /// systemd starts it.
    Starting { reason: String },
    /// A container does not answer its health check, and will be replaced.
    Hung { reason: String },
    #[serde(untagged)]
    Answer(GatewayHealth),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting { reason } => write!(f, "starting: {reason}"),
            Self::Hung { reason } => write!(f, "hung: {reason}"),
            Self::Answer(health) => health.fmt(f),
        }
    }
}

impl Finding {
    /// The next step, if there is one beside what the words say.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Starting { .. } => {
                Some("wait for it, or see what it does: `litellm-units logs -f litellm`")
            }
            Self::Hung { .. } => Some(
                "systemd replaces it if it stays so for a minute or two; to see which: `litellm-units status`",
            ),
            Self::Answer(GatewayHealth::Down { .. }) => {
                Some("see why: `litellm-units status`; to start it: `litellm-units up`")
            }
            Self::Answer(_) => None,
        }
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Answer(GatewayHealth::Ready { .. }) => Exit::Success,
            Self::Answer(GatewayHealth::Down { .. }) => Exit::Stopped,
            _ => Exit::Degraded,
        }
    }
}

#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

pub(crate) async fn run(host: &Host, arguments: &cli::Health) -> Result<Exit> {
    let health = Client::local(&host.paths, TIMEOUT)?
        .health()
        .await
        .or_version(|| contract::installed_version(&host.paths));
    let gateways = gateways(host).await;
    let server = hung_server(host).await;
    let finding = match find(health, &gateways, server) {
        Finding::Answer(health) => Finding::Answer(unless_full(&host.paths, health)),
        other => other,
    };
    let hint = finding.hint();
    if arguments.json {
        output::json(&Printed {
            finding: &finding,
            hint,
        })?;
    } else {
        output::line(&finding.to_string())?;
        if let Some(hint) = hint {
            output::say(&format!("hint: {hint}"));
        }
    }
    Ok(finding.exit())
}

/// A unit of the gateway, and the health of its container.
type Known = (Instance, UnitState, Option<ContainerHealth>);

/// Without systemd, nothing is known of them.
async fn gateways(host: &Host) -> Vec<Known> {
    let found = async { stack::gateways(host.systemd().await?).await }.await;
    { found.unwrap_or_default().into_iter() }
        .map(|(instance, unit)| {
            let health = container_state::health(&host.paths, &unit.control_group);
            (instance, unit, health)
        })
        .collect()
}

/// Judges an answer by the units of the gateway and by `server`, the container of a server that hangs: the gateway says for
/// minutes that its database is connected, and nothing of its cache.
fn find(health: GatewayHealth, gateways: &[Known], server: Option<&str>) -> Finding {
    let no_answer = |container: &str| format!("{container} does not answer its health check");
    let is_down = matches!(health, GatewayHealth::Down { .. });
    let reason = match &health {
        GatewayHealth::Ready { .. } => None,
        GatewayHealth::Live { reason }
        | GatewayHealth::Busy { reason }
        | GatewayHealth::Down { reason } => Some(reason.clone()),
    };
    if let Some(reason) = reason {
        // One that is stopped says nothing, unless it is to start.
        let concerned: Vec<&Known> = { gateways.iter() }
            .filter(|(_, unit, _)| !unit.is_stopped() || unit.queued)
            .collect();
        let starts = |known: &&Known| report::is_starting(&known.1, known.2);
        let hangs = |known: &&Known| known.2.is_some_and(ContainerHealth::is_bad);
        let fails = |known: &&Known| known.1.is_failing();
        if let Some((instance, unit, _)) = concerned.first() {
            if concerned.iter().all(fails) {
                let problem = unit.problem().unwrap_or_default();
                let reason = format!("{} {problem}", instance.unit());
                return Finding::Answer(GatewayHealth::Down { reason });
            }
            if concerned.iter().all(starts) && (server.is_none() || is_down) {
                return Finding::Starting { reason };
            }
            if concerned.iter().all(hangs) {
                let reason = no_answer(instance.container());
                return Finding::Hung { reason };
            }
        }
    }
    match server {
        Some(container) if !is_down => Finding::Hung {
            reason: no_answer(container),
        },
        _ => Finding::Answer(health),
    }
}

/// The container of a local server that hangs. Without systemd, nothing is known of them.
async fn hung_server(host: &Host) -> Option<&'static str> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::systemd::ActiveState;

    fn gateway(active: ActiveState, health: Option<ContainerHealth>) -> Known {
        let unit = UnitState {
            active,
            ..UnitState::default()
        };
        (Service::Litellm.into(), unit, health)
    }

    fn printed(health: GatewayHealth, gateways: &[Known], server: Option<&str>) -> (String, u8) {
        let finding = find(health, gateways, server);
        let hint = finding.hint();
        let printed = Printed {
            finding: &finding,
            hint: hint.map(|_| "…"),
        };
        let code = match finding.exit() {
            Exit::Success => 0,
            Exit::Stopped => 3,
            _ => 4,
        };
        (serde_json::to_string(&printed).unwrap(), code)
    }

    #[test]
    fn starting_hung_and_down_differ() {
        let reason = || "r".to_owned();
        let busy = || GatewayHealth::Busy { reason: reason() };
        let down = || GatewayHealth::Down { reason: reason() };
        let live = || GatewayHealth::Live { reason: reason() };
        let ready = || GatewayHealth::Ready { version: None };
        let is = |text: &str, code| (text.to_owned(), code);
        let starting = || gateway(ActiveState::Activating, None);
        let mut failing = starting();
        failing.1.sub = "auto-restart".into();
        assert_eq!(
            printed(busy(), &[failing], None),
            is(
                r#"{"state":"down","reason":"litellm.service failed and is retried: no reason given","hint":"…"}"#,
                3
            )
        );
        let (good, bad) = (
            || gateway(ActiveState::Active, Some(ContainerHealth::Healthy)),
            || gateway(ActiveState::Active, Some(ContainerHealth::Failing)),
        );
        let stopped = || gateway(ActiveState::Inactive, None);
        let mut again = starting();
        again.1.restarts = 2;
        assert_eq!(printed(busy(), &[again], None).1, 3);
        let starts = is(r#"{"state":"starting","reason":"r","hint":"…"}"#, 4);
        assert_eq!(printed(busy(), &[starting()], None), starts);
        assert_eq!(printed(down(), &[starting(), stopped()], None), starts);
        assert_eq!(
            printed(busy(), &[starting(), good()], None),
            is(r#"{"state":"busy","reason":"r"}"#, 4)
        );
        let hung = |name: &str| {
            let text =
                r#"{"state":"hung","reason":"NAME does not answer its health check","hint":"…"}"#;
            is(&text.replace("NAME", name), 4)
        };
        assert_eq!(printed(busy(), &[bad()], None), hung("litellm"));
        assert_eq!(
            printed(ready(), &[good()], Some("litellm-redis")),
            hung("litellm-redis")
        );
        assert_eq!(
            printed(busy(), &[starting()], Some("litellm-postgres")),
            hung("litellm-postgres")
        );
        assert_eq!(
            printed(ready(), &[bad()], None),
            is(r#"{"state":"ready","version":null}"#, 0)
        );
        assert_eq!(
            printed(live(), &[good()], None),
            is(r#"{"state":"live","reason":"r"}"#, 4)
        );
        let dead = is(r#"{"state":"down","reason":"r","hint":"…"}"#, 3);
        assert_eq!(printed(down(), &[stopped()], Some("litellm-redis")), dead);
        assert_eq!(printed(down(), &[], None), dead);
    }
}

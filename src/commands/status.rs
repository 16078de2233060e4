//! `status`: everything at a glance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli;
use crate::container;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::Client;
use crate::litellm::health::Health;
use crate::output::{self, bytes, duration};
use crate::settings::{GATEWAY_PORT, Service};
use crate::systemd::UnitState;

/// How long the gateway may take to answer before it counts as down.
const PATIENCE: Duration = Duration::from_secs(2);

/// The whole answer; `schema` grows when a field changes its meaning.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    state: State,
    gateway: Gateway,
    services: Vec<ServiceReport>,
}

/// The sum of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Healthy,
    Degraded,
    Stopped,
}

#[derive(Debug, Serialize)]
struct Gateway {
    address: String,
    #[serde(flatten)]
    health: Health,
}

#[derive(Debug, Serialize)]
struct ServiceReport {
    service: &'static str,
    unit: &'static str,
    active: String,
    sub: String,
    result: String,
    health: Option<container::Health>,
    uptime_seconds: Option<u64>,
    restarts: u64,
    memory_bytes: Option<u64>,
    image: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When systemd can't be asked.
pub async fn run(host: &Host, arguments: &cli::Status) -> Result<Exit> {
    let report = gather(host).await?;
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&table(&report))?;
    }
    Ok(match report.state {
        State::Healthy => Exit::Success,
        State::Stopped => Exit::Stopped,
        State::Degraded => Exit::Degraded,
    })
}

async fn gather(host: &Host) -> Result<Report> {
    let systemd = host.systemd().await?;
    let client = Client::local(PATIENCE)?;
    let units = futures_util::future::try_join_all(
        Service::ALL
            .into_iter()
            .map(|service| systemd.unit(service.unit())),
    );
    let (units, health) = futures_util::join!(units, client.health());
    let services: Vec<ServiceReport> = Service::ALL
        .into_iter()
        .zip(units?)
        .filter(|(_, unit)| unit.load != "not-found")
        .map(|(service, unit)| service_report(host, service, unit))
        .collect();
    let state = if services.iter().all(|service| service.active == "inactive") {
        State::Stopped
    } else if health.is_ready() && services.iter().all(ServiceReport::is_well) {
        State::Healthy
    } else {
        State::Degraded
    };
    let gateway = Gateway {
        address: format!("http://127.0.0.1:{GATEWAY_PORT}"),
        health,
    };
    Ok(Report {
        schema: 1,
        state,
        gateway,
        services,
    })
}

fn service_report(host: &Host, service: Service, unit: UnitState) -> ServiceReport {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let uptime_seconds = unit
        .active_since
        .filter(|_| unit.is_active())
        .map(|since| now.saturating_sub(Duration::from_micros(since)).as_secs());
    ServiceReport {
        service: service.name(),
        unit: service.unit(),
        health: unit
            .is_active()
            .then(|| container::health(&host.paths, service))
            .flatten(),
        uptime_seconds,
        restarts: unit.restarts,
        memory_bytes: unit
            .memory
            .or_else(|| container::resident_memory(&unit.control_group)),
        image: image(host, service),
        active: unit.active,
        sub: unit.sub,
        result: unit.result,
    }
}

/// The image that the installed unit names.
fn image(host: &Host, service: Service) -> Option<String> {
    let file = host
        .paths
        .quadlets
        .join(format!("{}.container", service.container()));
    let text = std::fs::read_to_string(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("Image="))
        .map(str::to_owned)
}

impl ServiceReport {
    fn is_well(&self) -> bool {
        self.active == "active" && self.health.is_none_or(container::Health::is_good)
    }
}

fn table(report: &Report) -> String {
    let mut rows = vec![
        [
            "SERVICE", "STATE", "HEALTH", "UPTIME", "RESTARTS", "MEMORY", "IMAGE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for service in &report.services {
        rows.push(vec![
            service.service.to_owned(),
            match service.active.as_str() {
                "failed" => format!("failed ({})", service.result),
                _ => format!("{} ({})", service.active, service.sub),
            },
            service
                .health
                .map_or("-".into(), |health| health.to_string()),
            service
                .uptime_seconds
                .map_or("-".into(), |seconds| duration(Duration::from_secs(seconds))),
            service.restarts.to_string(),
            service.memory_bytes.map_or("-".into(), bytes),
            service.image.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    let mut text = output::columns(&rows);
    text.push_str(&format!(
        "gateway {}: {}\n",
        report.gateway.address, report.gateway.health
    ));
    text
}

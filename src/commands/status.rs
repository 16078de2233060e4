//! `status`: everything at a glance.

pub(crate) mod screen;
pub(crate) mod watch;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli;
use crate::deployment::applied::{Applied, Difference};
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::ledger::{Ledger, RecordedRelease};
use crate::deployment::settings::{GATEWAY_PORT, Settings};
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::container_state;
use crate::host::lock::OperationLock;
use crate::host::systemd::UnitState;
use crate::litellm::advisories::{Advisories, Judgement, KnownVulnerability};
use crate::litellm::health::GatewayHealth;
use crate::litellm::{Client, contract};
use crate::operations::stack::LogSource;
use crate::operations::stack::blockers::{self, Blocker};
use crate::operations::upgrade;
use crate::operations::upgrade::check::Recorded;
use crate::output::{self, bytes, duration};
use crate::service::Service;

/// How long the gateway may take to answer before it counts as down.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The answer of `status --json`, described in `docs/status-json.md`.
///
/// Fields and words may be added; when one changes its meaning or goes, `schema` grows.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StatusReport {
    /// The version of this schema: 1.
    pub(crate) schema: u32,
    /// The sum of everything below.
    pub(crate) state: State,
    /// What the gateway says about itself.
    pub(crate) gateway: Gateway,
    /// Each service that has a unit here, in start order.
    pub(crate) services: Vec<ServiceReport>,
    /// The units that services which are not active wait for.
    pub(crate) blockers: Vec<BlockerReport>,
    /// What is known against the gateway's release; null if its image does not say which it is.
    pub(crate) vulnerabilities: Option<Vec<KnownVulnerability>>,
    /// What the last check for newer releases found; null if there was none.
    pub(crate) upgrade_check: Option<Recorded>,
    /// What could not be found out, in words.
    pub(crate) warnings: Vec<String>,
    /// What is known, in a line.
    #[serde(skip)]
    known: Option<String>,
}

/// A unit that services wait for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BlockerReport {
    /// systemd's unit.
    pub(crate) unit: String,
    /// Whether it fails, rather than only takes its time.
    pub(crate) failing: bool,
    /// What it does or what is wrong with it, in words.
    pub(crate) state: String,
    /// The line of its journal that says why it fails; null when it does not, or says nothing.
    pub(crate) message: Option<String>,
    /// The services that can't start without it.
    pub(crate) needed_by: Vec<&'static str>,
    #[serde(skip)]
    words: String,
}

/// The stack as a whole; it decides about the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Every service runs and is healthy, and the gateway is ready. Exit status 0.
    Healthy,
    /// Nothing is wrong, but something is still starting. Exit status 4.
    Starting,
    /// Something is not as it should be. Exit status 4.
    Degraded,
    /// Nothing runs, and nothing failed. Exit status 3.
    Stopped,
}

/// The gateway's readiness.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Gateway {
    /// Where it was asked.
    pub(crate) address: String,
    /// Its answer: `state` is `ready`, `live` or `down`; `version` or `reason` beside it.
    #[serde(flatten)]
    pub(crate) health: GatewayHealth,
}

/// One service.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServiceReport {
    /// Its name on the command line.
    pub(crate) service: &'static str,
    /// systemd's unit.
    pub(crate) unit: &'static str,
    /// systemd's `ActiveState`: `active`, `inactive`, `failed`, `activating`, …
    pub(crate) active: String,
    /// systemd's `SubState`: `running`, `exited`, `dead`, `auto-restart`, …
    pub(crate) sub: String,
    /// Why the last run ended: `success`, `exit-code`, `signal`, `timeout`, `oom-kill`, …
    pub(crate) result: String,
    /// Whether a job of systemd waits for the unit or works on it.
    pub(crate) queued: bool,
    /// Podman's health check; null where the container does not run or has none.
    pub(crate) health: Option<container_state::ContainerHealth>,
    /// How long the unit has been active; null when it is not.
    pub(crate) uptime_seconds: Option<u64>,
    /// How often systemd restarted it by itself since it was started.
    pub(crate) restarts: u64,
    /// Memory in use; null when it does not run.
    pub(crate) memory_bytes: Option<u64>,
    /// CPU time used since the start; null where the kernel does not count it.
    pub(crate) cpu_seconds: Option<f64>,
    /// The image that the installed unit names, without its digest.
    pub(crate) image: Option<String>,
    /// The digest by which it does; null before the image was pulled.
    pub(crate) digest: Option<String>,
    /// What changed since the container started, names only: a restart would bring it into
    /// force. Null when that can't be found out; `warnings` then says why.
    pub(crate) changed: Option<Vec<String>>,
}

/// Runs the command.
///
/// # Errors
/// When systemd can't be asked.
pub(crate) async fn run(host: &Host, arguments: &cli::Status) -> Result<Exit> {
    if arguments.watch {
        return watch::run(host, arguments).await;
    }
    let report = gather(host).await?;
    for warning in &report.warnings {
        output::warn(warning);
    }
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&table(&report))?;
    }
    Ok(match report.state {
        State::Healthy => Exit::Success,
        State::Stopped => Exit::Stopped,
        State::Starting | State::Degraded => Exit::Degraded,
    })
}

/// Everything, gathered at once.
async fn gather(host: &Host) -> Result<StatusReport> {
    let client = Client::local(TIMEOUT)?;
    let (services, health) = futures_util::join!(Services::gather(host), client.health());
    Ok(services?.with(health))
}

/// What systemd, the kernel and the files know, without the gateway's own answer, which may take
/// longer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    reports: Vec<ServiceReport>,
    blockers: Vec<BlockerReport>,
    warnings: Vec<String>,
    vulnerabilities: Option<Vec<KnownVulnerability>>,
    upgrade_check: Option<Recorded>,
    known: Option<String>,
    /// LiteLLM's version in the gateway's image.
    version: Option<String>,
    /// Whether the gateway runs another image than the recorded one.
    runs_other_image: bool,
}

impl Services {
    async fn gather(host: &Host) -> Result<Self> {
        let systemd = host.systemd().await?;
        let units = futures_util::future::try_join_all(
            Service::ALL
                .into_iter()
                .map(|service| systemd.unit(service.unit())),
        );
        let units: Vec<(Service, UnitState)> = Service::ALL
            .into_iter()
            .zip(units.await?)
            .filter(|(_, unit)| unit.load != "not-found")
            .collect();
        let blockers = blockers::find(systemd, &units).await?;
        let interrupted = upgrade::warning(&host.paths)?;
        // Which release is to run is open until that has ended.
        let is_decided = interrupted.is_none() && !OperationLock::is_held(&host.paths);
        let mut warnings: Vec<String> = interrupted.into_iter().collect();
        let other_image = if is_decided {
            other_image(host, &units)?
        } else {
            None
        };
        warnings.extend(other_image.clone());
        let settings = match Settings::load(&host.paths.env_file()) {
            Ok(settings) => {
                if is_decided {
                    match edited_release(host, &settings).await {
                        Ok(notice) => warnings.extend(notice),
                        Err(error) => warnings.push(format!("can't tell which release: {error:#}")),
                    }
                }
                Some(settings)
            }
            Err(error) => {
                if !units.is_empty() {
                    warnings.push(format!("can't tell what changed: {error:#}"));
                }
                None
            }
        };
        let reports = units
            .into_iter()
            .map(|(service, unit)| {
                let changed = settings.as_ref().and_then(|settings| {
                    changed(host, settings, service, &unit)
                        .map_err(|error| {
                            warnings.push(format!(
                                "can't tell what changed for {}: {error:#}",
                                service.name()
                            ));
                        })
                        .ok()
                });
                ServiceReport::new(host, service, unit, changed)
            })
            .collect();
        let accepted = settings
            .as_ref()
            .map(|settings| settings.accepted.as_slice());
        let judgement = judge(host, accepted.unwrap_or_default())
            .map_err(|error| {
                warnings.push(format!("known vulnerabilities are not shown: {error:#}"));
            })
            .ok()
            .flatten();
        let upgrade_check = Recorded::load(&host.paths)
            .map_err(|error| warnings.push(format!("{error:#}")))
            .ok()
            .flatten();
        Ok(Self {
            reports,
            blockers: blockers.iter().map(BlockerReport::new).collect(),
            warnings,
            known: judgement
                .as_ref()
                .filter(|judgement| judgement.open().next().is_some())
                .map(Judgement::count),
            vulnerabilities: judgement.map(|judgement| judgement.vulnerabilities),
            upgrade_check,
            version: contract::installed_version(&host.paths),
            runs_other_image: other_image.is_some(),
        })
    }

    fn with(self, health: GatewayHealth) -> StatusReport {
        let health = health.or_version(|| self.version.clone());
        StatusReport {
            schema: 1,
            state: self.state(&health),
            gateway: Gateway {
                address: format!("http://127.0.0.1:{GATEWAY_PORT}"),
                health,
            },
            services: self.reports,
            blockers: self.blockers,
            vulnerabilities: self.vulnerabilities,
            upgrade_check: self.upgrade_check,
            warnings: self.warnings,
            known: self.known,
        }
    }

    fn state(&self, health: &GatewayHealth) -> State {
        let services = &self.reports;
        if services.iter().any(ServiceReport::is_broken)
            || self.runs_other_image
            || self.blockers.iter().any(|blocker| blocker.failing)
        {
            State::Degraded
        } else if services.iter().any(ServiceReport::is_starting) {
            State::Starting
        } else if services.iter().all(|service| service.active == "inactive") {
            State::Stopped
        } else if health.is_ready() && services.iter().all(ServiceReport::is_well) {
            State::Healthy
        } else {
            State::Degraded
        }
    }
}

/// What is to be said of an edit of `LITELLM_IMAGE` that no upgrade has brought yet.
async fn edited_release(host: &Host, settings: &Settings) -> Result<Option<String>> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let kept = installed_release::kept(host, settings, &lock).await?;
    Ok(kept.map(|kept| {
        let notice = installed_release::notice(settings, &kept);
        format!("{notice}; to change to it: {}", installed_release::REMEDY)
    }))
}

/// What is to be said if the gateway runs another image than the recorded one, which nobody upgraded to.
fn other_image(host: &Host, units: &[(Service, UnitState)]) -> Result<Option<String>> {
    let ledger = Ledger::load(&host.paths)?;
    let recorded = ledger.current().and_then(RecordedRelease::gateway);
    let running = units
        .iter()
        .find(|(service, unit)| *service == Service::Litellm && unit.is_active())
        .and_then(|(_, unit)| container_state::image_id(&host.paths, &unit.control_group));
    Ok(match (recorded, running) {
        (Some(recorded), Some(running))
            if recorded
                .identity
                .id
                .as_ref()
                .is_some_and(|id| *id != running) =>
        {
            Some(format!(
                "the gateway runs image {}, not the recorded release {}; see which unit file names it: {} cat {}",
                running.chars().take(12).collect::<String>(),
                recorded.reference,
                host.scope().systemctl(),
                Service::Litellm.unit()
            ))
        }
        _ => None,
    })
}

/// What is known against the release that is installed.
fn judge(host: &Host, accepted: &[String]) -> Result<Option<Judgement>> {
    let Some(image) = installed_release::of_unit(&host.paths, Service::Litellm) else {
        return Ok(None);
    };
    Advisories::load(&host.paths)?.judge(&image, accepted)
}

/// What a restart would bring into force.
fn changed(
    host: &Host,
    settings: &Settings,
    service: Service,
    unit: &UnitState,
) -> Result<Vec<String>> {
    // A stopped one starts with the inputs of that time anyway.
    if matches!(unit.active.as_str(), "inactive" | "failed") {
        return Ok(Vec::new());
    }
    let differences = Applied::differences(&host.paths, settings, service)?;
    Ok(differences.iter().map(Difference::to_string).collect())
}

impl BlockerReport {
    fn new(blocker: &Blocker) -> Self {
        let unit = &blocker.unit;
        Self {
            unit: unit.name.clone(),
            failing: unit.is_failing(),
            state: unit.problem().unwrap_or_else(|| "is starting".into()),
            message: blocker.message(),
            needed_by: blocker.needed_by.clone(),
            words: blocker.words(),
        }
    }

    /// For people: what is wrong, then why, with the next command.
    fn lines(&self) -> String {
        let mark = if self.failing { '!' } else { '-' };
        let mut lines = format!("{mark} {}\n", self.words);
        if let Some(message) = &self.message {
            lines.push_str(&format!("  last message: {message}\n"));
        }
        if let Some(source) = LogSource::of_unit(&self.unit).filter(|_| self.failing) {
            let source = source.name();
            lines.push_str(&format!("  all messages: litellm-units logs {source}\n"));
        }
        lines
    }
}

impl ServiceReport {
    fn new(host: &Host, service: Service, unit: UnitState, changed: Option<Vec<String>>) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let uptime_seconds = unit
            .active_since
            .filter(|_| unit.is_active())
            .map(|since| now.saturating_sub(Duration::from_micros(since)).as_secs());
        let (image, digest) = image(host, service).unzip();
        let digest = digest.flatten();
        Self {
            service: service.name(),
            unit: service.unit(),
            health: matches!(
                unit.active.as_str(),
                "active" | "activating" | "deactivating"
            )
            .then(|| container_state::health(&host.paths, &unit.control_group))
            .flatten(),
            uptime_seconds,
            restarts: unit.restarts,
            memory_bytes: unit
                .memory
                .or_else(|| container_state::resident_memory(&unit.control_group)),
            cpu_seconds: unit
                .cpu
                .map(Duration::from_nanos)
                .or_else(|| container_state::cpu_time(&unit.control_group))
                .map(|time| time.as_secs_f64()),
            image,
            digest,
            active: unit.active,
            sub: unit.sub,
            result: unit.result,
            queued: unit.queued,
            changed,
        }
    }

    fn is_well(&self) -> bool {
        self.active == "active"
            && self
                .health
                .is_none_or(container_state::ContainerHealth::is_good)
    }

    fn is_starting(&self) -> bool {
        match self.active.as_str() {
            "activating" => true,
            "inactive" => self.queued,
            "active" => self.health == Some(container_state::ContainerHealth::Starting),
            _ => false,
        }
    }

    fn is_broken(&self) -> bool {
        self.active == "failed"
            || self.sub.starts_with("auto-restart")
            || (self.active == "active" && self.health == Some(container_state::ContainerHealth::Unhealthy))
            // It failed before, and is on its next attempt.
            || (self.active == "activating" && self.restarts > 0)
    }

    /// The state in words, for people.
    fn state(&self) -> String {
        match self.active.as_str() {
            "failed" => format!("failed ({})", self.result),
            "inactive" if self.queued => "waiting (to start)".into(),
            _ if self.sub.starts_with("auto-restart") => "restarting (failed)".into(),
            active => format!("{active} ({})", self.sub),
        }
    }

    fn health(&self) -> String {
        self.health.map_or("-".into(), |health| health.to_string())
    }

    fn uptime(&self) -> String {
        match self.uptime_seconds {
            None => "-".into(),
            Some(seconds @ 0..10) => format!("{seconds} s"),
            Some(seconds) => duration(Duration::from_secs(seconds)),
        }
    }

    fn memory(&self) -> String {
        self.memory_bytes.map_or("-".into(), bytes)
    }

    /// The name, marked where a restart is pending.
    fn marked_name(&self) -> String {
        let mark = match &self.changed {
            Some(changed) if !changed.is_empty() => "*",
            _ => "",
        };
        format!("{}{mark}", self.service)
    }
}

/// The image that the installed unit names, and its digest.
fn image(host: &Host, service: Service) -> Option<(String, Option<String>)> {
    let image = installed_release::of_unit(&host.paths, service)?;
    let name = image.as_str().split('@').next().unwrap_or_default();
    Some((name.to_owned(), image.digest().map(str::to_owned)))
}

fn table(report: &StatusReport) -> String {
    if report.services.is_empty() {
        return format!(
            "no unit of the stack is installed on this host; litellm-units up does it\ngateway {}: {}\n",
            report.gateway.address, report.gateway.health
        );
    }
    let mut rows = vec![
        [
            "SERVICE", "STATE", "HEALTH", "UPTIME", "RESTARTS", "MEMORY", "IMAGE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for service in &report.services {
        let image = service.image.as_deref().unwrap_or("-");
        rows.push(vec![
            service.marked_name(),
            service.state(),
            service.health(),
            service.uptime(),
            service.restarts.to_string(),
            service.memory(),
            image.into(),
        ]);
    }
    let mut text = output::columns(&rows);
    text.push_str(&format!(
        "gateway {}: {}\n",
        report.gateway.address, report.gateway.health
    ));
    for blocker in &report.blockers {
        text.push_str(&blocker.lines());
    }
    for note in notes(report) {
        text.push_str(&format!(
            "* {note}; litellm-units apply brings it into force\n"
        ));
    }
    if let Some(known) = &report.known {
        text.push_str(&format!("! {known}: see litellm-units upgrade --check\n"));
    }
    text.extend(release_note(report).map(|note| format!("{note}\n")));
    text
}

/// What the last check for newer releases found, if an operator should know.
fn release_note(report: &StatusReport) -> Option<String> {
    let check = report.upgrade_check.as_ref()?;
    let checked: jiff::Timestamp = check.checked.parse().ok()?;
    let age = jiff::Timestamp::now().duration_since(checked);
    let age = duration(age.try_into().unwrap_or_default());
    // It may have been brought up since.
    let gateway = report
        .services
        .iter()
        .find(|service| service.service == "litellm");
    let present = gateway.and_then(|gateway| gateway.image.as_deref());
    match (&check.recommended, &check.error) {
        (Some(recommended), _) if present != Some(recommended.image.as_str()) => Some(format!(
            "LiteLLM {} is available (checked {age} ago)",
            recommended.release
        )),
        (_, Some(_)) => Some(format!(
            "newer releases could not be listed {age} ago: see litellm-units upgrade --check"
        )),
        _ => None,
    }
}

/// What the marks mean: `litellm: OPENAI_API_KEY changed`.
fn notes(report: &StatusReport) -> Vec<String> {
    report
        .services
        .iter()
        .filter_map(|service| {
            let changed = service.changed.as_ref().filter(|list| !list.is_empty())?;
            Some(format!("{}: {}", service.service, changed.join(", ")))
        })
        .collect()
}

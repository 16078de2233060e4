//! Units, containers and gateway in one report.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::blockers::{self, Blocker};
use super::quoted;
use super::space::{self, DiskReport, unless_full};
use crate::deployment::applied::{Applied, Difference};
use crate::deployment::external;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::ledger::{Ledger, RecordedRelease};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::Settings;
use crate::deployment::snapshot;
use crate::error::Result;
use crate::host::Host;
use crate::host::container_state::{self, ContainerHealth};
use crate::host::paths::Paths;
use crate::host::systemd::{ActiveState, Systemd, UnitResult, UnitState};
use crate::litellm::advisories::{Advisories, Judgement, KnownVulnerability};
use crate::litellm::health::GatewayHealth;
use crate::litellm::{self, Client, config, contract};
use crate::operations::backup;
use crate::operations::backup::verification::Verification;
use crate::operations::backup::wal::ArchiveReport;
use crate::operations::debug;
use crate::operations::entrance::CertificateReport;
use crate::operations::recovery::OngoingOperation;
use crate::operations::recycle;
use crate::operations::upgrade::check::Recorded;
use crate::quadlet::BACKUP_SERVICE;
use crate::service::{Instance, Service};

/// After this, the gateway counts as down.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

/// `status --json`, described in `docs/status-json.md`.
///
/// Fields and words may be added; if one is removed or changes its meaning, `schema` is incremented.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StatusReport {
    pub(crate) schema: u32,
    pub(crate) state: State,
    pub(crate) gateway: Gateway,
    /// The certificate of the public address; null without `PUBLIC_URL`, and while its entrance is not active.
    pub(crate) certificate: Option<CertificateReport>,
    #[serde(flatten)]
    pub(crate) stack: Services,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct BlockerReport {
    pub(crate) unit: String,
    /// False while it is only slow.
    pub(crate) failing: bool,
    pub(crate) state: String,
    /// The line of its journal with the cause of a failure.
    pub(crate) message: Option<String>,
    pub(crate) needed_by: Vec<&'static str>,
    #[serde(skip)]
    pub(crate) words: String,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Recycled {
    pub(crate) unit: String,
    /// When it was replaced the last time since the host was booted.
    pub(crate) at: jiff::Timestamp,
    /// What it held before.
    pub(crate) memory_bytes: u64,
}

/// The backups on this host.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BackupReport {
    /// The newest complete one; null if there is none.
    pub(crate) id: Option<OperationId>,
    /// When it was begun.
    pub(crate) created: Option<jiff::Timestamp>,
    /// Time since then.
    pub(crate) age_seconds: Option<u64>,
    /// Whether the last nightly run failed.
    pub(crate) failed: bool,
    /// The last verification of a newest backup; null if there was none.
    pub(crate) verification: Option<Verification>,
    /// The other host that makes the backups; null if this one does.
    pub(crate) by: Option<String>,
}

impl BackupReport {
    fn of(paths: &Paths, service: &UnitState, settings: Option<&Settings>) -> Result<Self> {
        let (id, created) = backup::newest(paths)?.unzip();
        let age = created.map(|created| jiff::Timestamp::now().duration_since(created));
        Ok(Self {
            id,
            created,
            age_seconds: age.map(|age| u64::try_from(age.as_secs()).unwrap_or_default()),
            failed: service.is_failing(),
            verification: Verification::load(paths)?,
            by: settings.and_then(|settings| settings.backup.by.clone()),
        })
    }
}

/// A service that starts and stops with the stack, and is not part of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AdditionalService {
    pub(crate) unit: String,
    pub(crate) active: ActiveState,
    pub(crate) sub: String,
    pub(crate) result: UnitResult,
}

impl AdditionalService {
    /// All that `litellm.target` wants beside the units of this program.
    pub(crate) async fn find(systemd: &Systemd, target: &UnitState) -> Result<Vec<Self>> {
        let names = target
            .starts
            .iter()
            .filter(|name| name.ends_with(".service") && !name.starts_with("litellm"));
        let units = futures_util::future::try_join_all(names.map(|name| systemd.unit(name)));
        let found = units.await?.into_iter().map(|unit| Self {
            unit: unit.name,
            active: unit.active,
            sub: unit.sub,
            result: unit.result,
        });
        Ok(found.collect())
    }
}

/// The whole stack; it determines the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Every service is healthy, and the gateway is ready. Exit status 0.
    Healthy,
    /// Nothing failed, but a service is still starting. Exit status 4.
    Starting,
    /// Exit status 4.
    Degraded,
    /// An operator has stopped the stack, no service is active, and none failed. Exit status 3.
    Stopped,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Gateway {
    pub(crate) address: String,
    /// `state` is `ready`, `live` or `down`, with `version` or `reason`.
    #[serde(flatten)]
    pub(crate) health: GatewayHealth,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServiceReport {
    pub(crate) service: &'static str,
    pub(crate) unit: &'static str,
    /// systemd's `ActiveState`: `active`, `inactive`, `failed`, `activating`, …
    pub(crate) active: ActiveState,
    /// systemd's `SubState`: `running`, `exited`, `dead`, `auto-restart`, …
    pub(crate) sub: String,
    /// The end of the last run: `success`, `exit-code`, `signal`, `timeout`, `oom-kill`, …
    pub(crate) result: UnitResult,
    /// Whether systemd has a job for the unit.
    pub(crate) queued: bool,
    /// Podman's health check; null if the container is not running or has none.
    pub(crate) health: Option<ContainerHealth>,
    /// Null if the unit is not active.
    pub(crate) uptime_seconds: Option<u64>,
    /// Automatic restarts by systemd since the start.
    pub(crate) restarts: u64,
    /// Null if it is not running.
    pub(crate) memory_bytes: Option<u64>,
    /// Of it, what the kernel can't reclaim, and what is in swap. Null if it is not running.
    pub(crate) memory_held_bytes: Option<u64>,
    /// systemd's `MemoryMax`; null if there is no limit.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// CPU time since the start; null if the kernel does not count it.
    pub(crate) cpu_seconds: Option<f64>,
    /// Of the installed unit, without the digest.
    pub(crate) image: Option<String>,
    /// Null before the image was pulled.
    pub(crate) digest: Option<String>,
    /// Names of what changed since the container started, which a restart applies. Null if that can't
    /// be determined; `warnings` then has the cause.
    pub(crate) changed: Option<Vec<String>>,
}

/// Looks at everything.
pub(crate) async fn gather(host: &Host) -> Result<StatusReport> {
    let client = Client::local(&host.paths, TIMEOUT)?;
    let certificate = async {
        let (settings, _) = snapshot::settings(&host.paths).ok()?;
        CertificateReport::of(host, &settings).await
    };
    let (services, health, certificate) =
        futures_util::join!(Services::gather(host), client.health(), certificate);
    Ok(StatusReport {
        certificate,
        ..services?.with(unless_full(&host.paths, health))
    })
}

/// The report without the gateway's own answer, which may take longer.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Services {
    /// Where the gateway is reached from this host.
    #[serde(skip)]
    pub(crate) address: String,
    /// As [`super::is_wanted`].
    #[serde(skip)]
    pub(crate) is_wanted: bool,
    /// Those with a unit, in start order.
    #[serde(rename = "services")]
    pub(crate) reports: Vec<ServiceReport>,
    /// Services of the operator's own in `litellm.target`.
    pub(crate) additional: Vec<AdditionalService>,
    /// Units that keep services from starting.
    pub(crate) blockers: Vec<BlockerReport>,
    /// Of the gateway's release; null if its image does not show which that is.
    pub(crate) vulnerabilities: Option<Vec<KnownVulnerability>>,
    /// The last check for newer releases; null if there was none.
    pub(crate) upgrade_check: Option<Recorded>,
    /// The backups on this host; null if they can't be read. `warnings` then has the cause.
    pub(crate) backup: Option<BackupReport>,
    /// The file systems of the deployment.
    pub(crate) disks: Vec<DiskReport>,
    /// The archive of the write-ahead log; null if `.env` asks for none, or its disk does not answer.
    pub(crate) archive: Option<ArchiveReport>,
    /// Gateways that were replaced because their memory had grown.
    pub(crate) recycled: Vec<Recycled>,
    /// Until when the gateways write debug logs; null if they do not.
    pub(crate) debug_until: Option<jiff::Timestamp>,
    /// The operation that is running, in words; null if none is.
    pub(crate) operation: Option<String>,
    /// What is unusual or could not be determined.
    pub(crate) warnings: Vec<String>,
    /// Known vulnerabilities, in a line.
    #[serde(skip)]
    pub(crate) known: Option<String>,
    /// LiteLLM's version in the gateway's image.
    #[serde(skip)]
    pub(crate) version: Option<String>,
    /// Whether `.env` is invalid.
    #[serde(skip)]
    pub(crate) env_invalid: bool,
    /// If `config/litellm-config.yaml` is not valid YAML: why.
    #[serde(skip)]
    pub(crate) config_invalid: Option<String>,
    /// If the gateway runs another image than the recorded one: which.
    #[serde(skip)]
    pub(crate) other_image: Option<String>,
}

impl Services {
    /// Looks at the units, their containers and images.
    pub(crate) async fn gather(host: &Host) -> Result<Self> {
        let systemd = host.systemd().await?;
        let (units, target, backup) = futures_util::try_join!(
            super::instances(systemd),
            systemd.unit("litellm.target"),
            systemd.unit(BACKUP_SERVICE)
        )?;
        let (blockers, additional) = futures_util::try_join!(
            blockers::find(systemd, &units, quoted::SOME),
            AdditionalService::find(systemd, &target)
        )?;
        let mut warnings = Vec::new();
        let mut operation = None;
        // Until an operation ends, it is open which release will run.
        let is_decided = match OngoingOperation::find(&host.paths) {
            Ok(None) => true,
            Ok(Some(OngoingOperation::Running(words))) => {
                operation = Some(words);
                false
            }
            Ok(Some(OngoingOperation::Interrupted(words))) => {
                warnings.push(words);
                false
            }
            Err(error) => {
                warnings.push(format!("can't determine the release: {error:#}"));
                false
            }
        };
        let other_image = if is_decided {
            other_image(host, &units)?
        } else {
            None
        };
        warnings.extend(other_image.clone());
        let known = snapshot::settings(&host.paths);
        let settings = match &known {
            Ok((settings, None)) => {
                if is_decided {
                    match edited_release(host, settings).await {
                        Ok(notice) => warnings.extend(notice),
                        Err(error) => {
                            warnings.push(format!("can't determine the release: {error:#}"));
                        }
                    }
                }
                Some(settings)
            }
            Ok((_, Some(error))) | Err(error) => {
                if !units.is_empty() {
                    warnings.push(format!("can't determine what changed: {error:#}"));
                }
                None
            }
        };
        let is_installed = !units.is_empty();
        let config_invalid = config::refuse_unreadable(&host.paths.config_file())
            .err()
            .filter(|_| is_installed)
            .map(|error| match config::substitute(&host.paths) {
                Some(_) => {
                    format!("{error:#}; a gateway that systemd restarts uses the last good file")
                }
                None => {
                    format!("{error:#}; a gateway that systemd restarts can't start with it")
                }
            });
        warnings.extend(config_invalid.clone());
        let reports = units
            .into_iter()
            .map(|(instance, unit)| {
                let changed = settings.and_then(|settings| {
                    changed(host, settings, instance, &unit)
                        .map_err(|error| {
                            warnings.push(format!(
                                "can't determine what changed for {}: {error:#}",
                                instance.name()
                            ));
                        })
                        .ok()
                });
                ServiceReport::new(host, instance, unit, changed)
            })
            .collect();
        // The gateway may serve by the last good ones.
        let settings = known.as_ref().ok().map(|(settings, _)| settings);
        let accepted = settings.map(|settings| settings.accepted.as_slice());
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
        let (places, silent) = space::answering_places(&host.paths).await;
        let (mut archive, mut backup_report) = (None, None);
        if let Some(error) = silent {
            let hint = crate::error::hint(&error).unwrap_or_default();
            warnings.push(format!("{error:#}; {hint}"));
        } else {
            archive = settings
                .map(|settings| ArchiveReport::of(&host.paths, &settings.backup))
                .transpose()
                .map_err(|error| warnings.push(format!("{error:#}")))
                .ok()
                .flatten()
                .flatten();
            backup_report = BackupReport::of(&host.paths, &backup, settings)
                .map_err(|error| warnings.push(format!("{error:#}")))
                .ok();
        }
        let mut recycled = Vec::new();
        if let Some(settings) = settings {
            match external::stale(&host.paths, settings) {
                Ok(stale) => {
                    warnings.extend(stale.iter().map(|(name, words)| format!("{name} {words}")));
                }
                Err(error) => warnings.push(format!("{error:#}")),
            }
            let report = recycle::Report::of(&host.paths, settings);
            warnings.extend(report.problems.into_iter().map(|(_, words)| words));
            let times = report.recycled.into_iter();
            recycled.extend(times.filter_map(|(unit, at, memory_bytes)| {
                let at = jiff::Timestamp::try_from(at).ok()?;
                Some(Recycled {
                    unit,
                    at,
                    memory_bytes,
                })
            }));
        }
        Ok(Self {
            backup: backup_report,
            disks: DiskReport::all(places),
            archive,
            recycled,
            debug_until: debug::until(&host.paths),
            address: litellm::address(&host.paths).url(),
            is_wanted: super::is_to_run(&target),
            reports,
            additional,
            blockers: blockers.iter().map(BlockerReport::new).collect(),
            operation,
            warnings,
            known: judgement
                .as_ref()
                .filter(|judgement| judgement.open().next().is_some())
                .map(Judgement::count),
            vulnerabilities: judgement.map(|judgement| judgement.vulnerabilities),
            upgrade_check,
            // Of another image, only the gateway itself can say it.
            version: contract::installed_version(&host.paths).filter(|_| other_image.is_none()),
            env_invalid: !matches!(known, Ok((_, None))),
            config_invalid,
            other_image,
        })
    }

    /// The one line for which there is room on the screen.
    pub(crate) fn problem(&self) -> Option<String> {
        self.warnings.first().or(self.operation.as_ref()).cloned()
    }

    /// The report with the gateway's own answer.
    pub(crate) fn with(self, health: GatewayHealth) -> StatusReport {
        let health = health.or_version(|| self.version.clone());
        StatusReport {
            schema: 1,
            state: self.state(&health),
            gateway: Gateway {
                address: self.address.clone(),
                health,
            },
            certificate: None,
            stack: self,
        }
    }

    /// The state of the stack, with the gateway's own answer.
    pub(crate) fn state(&self, health: &GatewayHealth) -> State {
        let services = &self.reports;
        if services.iter().any(ServiceReport::is_broken)
            || self.other_image.is_some()
            || self.blockers.iter().any(|blocker| blocker.failing)
        {
            State::Degraded
        } else if services.iter().any(ServiceReport::is_starting) {
            State::Starting
        } else if !self.is_wanted
            && services
                .iter()
                .all(|service| service.active == ActiveState::Inactive)
        {
            State::Stopped
        } else if health.is_ready() && services.iter().all(ServiceReport::is_well) {
            State::Healthy
        } else {
            State::Degraded
        }
    }
}

/// The warning about a `LITELLM_IMAGE` to which the gateway is not upgraded yet.
async fn edited_release(host: &Host, settings: &Settings) -> Result<Option<String>> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let kept = installed_release::kept(host, settings, &lock).await?;
    Ok(kept.map(|kept| {
        let notice = installed_release::notice(settings, &kept);
        format!("{notice}; to change to it: `{}`", installed_release::REMEDY)
    }))
}

/// The warning about a running image that is not the recorded one.
fn other_image(host: &Host, units: &[(Instance, UnitState)]) -> Result<Option<String>> {
    let ledger = Ledger::load(&host.paths)?;
    let recorded = ledger.current().and_then(RecordedRelease::gateway);
    let running = units
        .iter()
        .find(|(instance, unit)| instance.service() == Service::Litellm && unit.is_active())
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
                "the gateway runs image {}, not the recorded release {}; to see which unit file names it: `{} cat {}`",
                running.chars().take(12).collect::<String>(),
                recorded.reference,
                host.scope().systemctl(),
                Service::Litellm.unit()
            ))
        }
        _ => None,
    })
}

/// Known vulnerabilities of the installed release.
fn judge(host: &Host, accepted: &[String]) -> Result<Option<Judgement>> {
    let Some(image) = installed_release::of_unit(&host.paths, Service::Litellm) else {
        return Ok(None);
    };
    Advisories::load(&host.paths)?.judge(&image, accepted)
}

/// What a restart would apply.
fn changed(
    host: &Host,
    settings: &Settings,
    instance: Instance,
    unit: &UnitState,
) -> Result<Vec<String>> {
    // A stopped one uses the current settings when it starts.
    if unit.is_stopped() {
        return Ok(Vec::new());
    }
    let differences = Applied::differences(&host.paths, settings, instance)?;
    Ok(differences.iter().map(Difference::to_string).collect())
}

impl BlockerReport {
    fn new(blocker: &Blocker) -> Self {
        let unit = &blocker.unit;
        Self {
            unit: unit.name.clone(),
            failing: unit.is_failing(),
            state: blocker.problem(),
            message: blocker.message(),
            needed_by: blocker.needed_by.clone(),
            words: blocker.words(),
        }
    }
}

impl ServiceReport {
    fn new(host: &Host, instance: Instance, unit: UnitState, changed: Option<Vec<String>>) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let uptime_seconds = unit
            .active_since
            .filter(|_| unit.is_active())
            .map(|since| now.saturating_sub(Duration::from_micros(since)).as_secs());
        let (image, digest) = image(host, instance.service()).unzip();
        let digest = digest.flatten();
        Self {
            service: instance.name(),
            unit: instance.unit(),
            health: matches!(
                unit.active,
                ActiveState::Active | ActiveState::Activating | ActiveState::Deactivating
            )
            .then(|| container_state::health(&host.paths, &unit.control_group))
            .flatten(),
            uptime_seconds,
            restarts: unit.restarts,
            memory_bytes: unit
                .memory
                .or_else(|| container_state::resident_memory(&unit.control_group)),
            memory_held_bytes: container_state::held_memory(&unit.control_group),
            memory_limit_bytes: unit.memory_max,
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

    pub(crate) fn is_well(&self) -> bool {
        self.active == ActiveState::Active && self.health.is_none_or(ContainerHealth::is_good)
    }

    pub(crate) fn is_starting(&self) -> bool {
        starts(&self.active, self.queued, self.health)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.active == ActiveState::Failed
            || self.sub.starts_with("auto-restart")
            || (self.active == ActiveState::Active && self.health.is_some_and(ContainerHealth::is_bad))
            // An attempt after a failure.
            || (self.active == ActiveState::Activating && self.restarts > 0)
    }
}

/// Whether a unit starts, or its container has not passed its first health check.
pub(crate) fn is_starting(unit: &UnitState, health: Option<ContainerHealth>) -> bool {
    starts(&unit.active, unit.queued, health)
}

fn starts(active: &ActiveState, queued: bool, health: Option<ContainerHealth>) -> bool {
    match active {
        ActiveState::Activating => true,
        ActiveState::Inactive => queued,
        ActiveState::Active => health == Some(ContainerHealth::Starting),
        _ => false,
    }
}

/// Of the installed unit: the image and its digest.
fn image(host: &Host, service: Service) -> Option<(String, Option<String>)> {
    let image = installed_release::of_unit(&host.paths, service)?;
    let name = image.as_str().split('@').next().unwrap_or_default();
    Some((name.to_owned(), image.digest().map(str::to_owned)))
}

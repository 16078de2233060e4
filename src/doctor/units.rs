//! Installed, loaded and running units.

use std::sync::Arc;
use std::time::Duration;

use super::{Check, CheckName, CheckOutcome, Examination, Fix};
use crate::deployment::completion::Change;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::error::Result;
use crate::host::Host;
use crate::host::container_state::{self, ContainerHealth};
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::job::JobType;
use crate::host::systemd::{ActiveState, LoadState, UnitState};
use crate::litellm::health::GatewayHealth;
use crate::litellm::{Client, contract};
use crate::operations::debug;
use crate::operations::edits;
use crate::operations::install::{self, ReleaseTarget};
use crate::operations::recovery::OngoingOperation;
use crate::operations::stack::blockers::{self, Blocker};
use crate::operations::stack::quoted;
use crate::operations::stack::space::unless_full;
use crate::operations::stack::{self, LogSource, Manner};
use crate::output::Progress;
use crate::quadlet;
use crate::service::{Instance, Service};

const TIMEOUT: Duration = Duration::from_secs(5);
const QUOTED_LINES: usize = 8;
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// The states of the installed services.
pub(crate) async fn read(host: &Host) -> Result<Vec<(Instance, UnitState)>> {
    stack::instances(host.systemd().await?).await
}

/// Units that keep services from starting. None without systemd, which check `dbus` reports.
pub(crate) async fn blockers(host: &Host, units: &[(Instance, UnitState)]) -> Vec<Blocker> {
    let Ok(systemd) = host.systemd().await else {
        return Vec::new();
    };
    blockers::find(systemd, units, quoted::ALL)
        .await
        .unwrap_or_default()
}

/// Whether the stack runs or is to run. Check `dbus` reports a missing systemd.
pub(crate) async fn is_wanted(host: &Host) -> bool {
    let is_wanted = async { stack::is_wanted(host.systemd().await?).await };
    is_wanted.await.is_ok_and(|is_wanted| is_wanted)
}

/// Whether that unit is active. Check `dbus` reports a missing systemd.
pub(crate) async fn is_active(host: &Host, unit: &str) -> bool {
    let state = async { host.systemd().await?.unit(unit).await };
    state.await.is_ok_and(|unit| unit.is_active())
}

/// Whether `generate` would change anything.
pub(crate) async fn drift(examination: &Examination<'_>) -> Vec<Check> {
    // Without valid settings there is nothing to compare with.
    if examination.settings.is_none() || examination.units.is_none() {
        return Vec::new();
    }
    let prepared = match Box::pin(install::prepare(examination.host, ReleaseTarget::Recorded)).await
    {
        Ok(prepared) => prepared,
        Err(error) => return vec![Check::error(CheckName::Drift, &error)],
    };
    let mut directories = Vec::new();
    let mut files = Vec::new();
    for change in &prepared.deployment.changes {
        match change {
            // Check `secrets` reports it.
            Change::Mode(_) => {}
            Change::Directory { path, .. } => directories.push(path.display().to_string()),
            Change::Variables { .. } | Change::Configuration(_) => files.push(change.to_string()),
        }
    }
    let release = prepared.kept().map(|kept| {
        Check::warning(
            CheckName::Release,
            installed_release::notice(prepared.settings(), kept),
        )
        .remedy(format!("`{}`", installed_release::REMEDY))
    });
    files.extend(
        prepared
            .units
            .changes
            .iter()
            .map(|change| format!("{} {}", change.verb(), change.path.display())),
    );
    [
        if directories.is_empty() {
            Check::ok(
                CheckName::Directories,
                format!(
                    "{} is complete",
                    examination.host.paths.deployment.display()
                ),
            )
        } else {
            Check::failure(
                CheckName::Directories,
                format!(
                    "missing, or not owned by its user: {}",
                    directories.join(", ")
                ),
            )
            .remedy("`litellm-units generate`")
            .fix(Fix::Generate)
        },
        if files.is_empty() {
            Check::ok(CheckName::Drift, "units are up to date")
        } else {
            Check::warning(
                CheckName::Drift,
                format!("`generate` would: {}", files.join(", ")),
            )
            .remedy("see `litellm-units generate --dry-run`, then run `litellm-units apply`")
            .fix(Fix::Generate)
        },
    ]
    .into_iter()
    .chain(release)
    .collect()
}

/// As the command `generate`. Returns the changes.
pub(crate) async fn generate(host: &Host) -> Result<Vec<String>> {
    let host = host.reporting(Progress::Collected(Arc::default()));
    let prepared = install::prepare(&host, ReleaseTarget::Recorded).await?;
    install::install(&host, &prepared).await?;
    Ok(host.progress.changes())
}

/// The units that are missing although their files are installed, with the reason.
///
/// Quadlet leaves out a file that it can't read, as one with a drop-in that is wrong, and says so in the log of the kernel
/// only.
pub(crate) async fn missing(examination: &Examination<'_>) -> Option<Check> {
    let host = examination.host;
    let units = examination.units.as_ref()?;
    let systemd = host.systemd().await.ok()?;
    let containers = extra::instances(&host.paths)
        .filter(|instance| units.iter().all(|(known, _)| known != instance))
        .map(|instance| (instance.quadlet(), instance.unit()));
    let network = ("litellm.network", stack::NETWORK_UNIT);
    let mut missing = Vec::new();
    for (file, unit) in containers.chain([network]) {
        if host.paths.quadlets.join(file).exists()
            && systemd.unit(unit).await.ok()?.load == LoadState::NotFound
        {
            missing.push((file, unit));
        }
    }
    let (first, _) = missing.first()?;
    let names: Vec<&str> = missing.iter().map(|(_, unit)| *unit).collect();
    let names = names.join(", ");
    let verb = if missing.len() == 1 { "is" } else { "are" };
    let said = quadlet::check::installed(host).await.ok()?;
    Some(if said.is_empty() {
        let reload = format!("`{} daemon-reload`", host.scope().systemctl());
        let message = format!("{names} {verb} missing: systemd has not read {first}");
        { Check::failure(CheckName::Units, message).remedy(reload) }.fix(Fix::Reload)
    } else {
        let message = format!(
            "{names} {verb} missing: Podman refuses the file\n| {}",
            said.join("\n| ")
        );
        Check::failure(CheckName::Units, message).remedy(
            "correct or remove the drop-in with that line (NAME.d/ beside the file), then run `litellm-units up`",
        )
    })
}

/// Drop-ins of the gateway that the other containers of it lack.
pub(crate) fn drop_ins(paths: &Paths) -> Option<Check> {
    let message = quadlet::drop_ins::lacking(paths)?;
    let check = Check::warning(CheckName::Units, message);
    Some(check.remedy(quadlet::check::DROP_INS_REMEDY))
}

/// Whether systemd has read the current files, and whether units failed. Not `is_current`: `generate`
/// would change the files and reload systemd.
pub(crate) fn states(examination: &Examination<'_>, is_current: bool) -> Vec<Check> {
    let Some(units) = &examination.units else {
        return Vec::new();
    };
    if units.is_empty() {
        return vec![Check::ok(CheckName::Units, "none is installed yet")];
    }
    let stale: Vec<&str> = units
        .iter()
        .filter(|(_, unit)| unit.needs_reload)
        .map(|(service, _)| service.unit())
        .collect();
    let reload = if stale.is_empty() {
        Check::ok(
            CheckName::DaemonReload,
            "systemd has read the current units",
        )
    } else {
        Check::warning(
            CheckName::DaemonReload,
            format!("changed since systemd read it: {}", stale.join(", ")),
        )
        .remedy(format!(
            "`{} daemon-reload`",
            examination.host.scope().systemctl()
        ))
        .fix(Fix::Reload)
    };
    let reload = Some(reload).filter(|check| is_current || check.outcome == CheckOutcome::Ok);
    reload
        .into_iter()
        .chain([faults(examination, units)])
        .collect()
}

fn faults(examination: &Examination<'_>, units: &[(Instance, UnitState)]) -> Check {
    let (mut words, mut failed) = (Vec::new(), Vec::new());
    let mut first = None;
    let mut memory = None;
    let failing = examination.blockers.iter();
    for blocker in failing.filter(|blocker| blocker.unit.is_failing()) {
        let quoted: String = quoted::shorter(&blocker.quoted.lines, QUOTED_LINES)
            .iter()
            .map(|line| format!("\n| {}", line.text))
            .collect();
        words.push(blocker.words() + &quoted);
        let service = units.iter().find(|(_, unit)| *unit == blocker.unit);
        failed.extend(
            service
                .filter(|(_, unit)| unit.active == ActiveState::Failed)
                .map(|(service, _)| service.unit()),
        );
        memory = memory.or(blocker.memory_remedy(examination.host.scope()));
        first = first.or(LogSource::of_unit(&blocker.unit.name).map(LogSource::name));
    }
    for (instance, unit) in units {
        let health = container_state::health(&examination.host.paths, &unit.control_group);
        let problem = if unit.load != LoadState::Loaded {
            format!("is {}", unit.load)
        } else if unit.is_active() && health.is_some_and(ContainerHealth::is_bad) {
            "does not answer its health check".to_owned()
        } else {
            continue;
        };
        words.push(format!("{} {problem}", instance.unit()));
        first.get_or_insert(instance.service().name());
    }
    let waiting = examination
        .blockers
        .iter()
        .flat_map(|blocker| &blocker.needed_by);
    let waiting: Vec<&str> = waiting.copied().collect();
    // An operation stops and starts services itself; check `operation` says how to complete one that was interrupted.
    let stopped = match OngoingOperation::find(&examination.host.paths) {
        Ok(None) => stopped(units, &waiting, examination.is_wanted),
        _ => Vec::new(),
    };
    let start = (words.is_empty() && !stopped.is_empty()).then(|| {
        let mut names: Vec<&str> = stopped
            .iter()
            .map(|(one, _)| one.service().name())
            .collect();
        names.dedup();
        format!("`litellm-units start {}`", names.join(" "))
    });
    words.extend(stopped.into_iter().map(|(_, words)| words));
    if let Some(start) = start {
        return Check::failure(CheckName::Units, words.join("\n")).remedy(start);
    }
    if words.is_empty() {
        let active = units.iter().filter(|(_, unit)| unit.is_active()).count();
        return Check::ok(
            CheckName::Units,
            format!("{active} of {} active, none failed", units.len()),
        );
    }
    let see = match first {
        Some(source) => format!("`litellm-units logs {source}`"),
        None => format!("`{} --failed`", examination.host.scope().systemctl()),
    };
    let memory = memory.map(|remedy| format!("{remedy}; "));
    let check = Check::failure(CheckName::Units, words.join("\n")).remedy(format!(
        "{}see why: {see}; then run `litellm-units up`",
        memory.unwrap_or_default()
    ));
    if failed.is_empty() {
        check
    } else {
        check.fix(Fix::Start(failed))
    }
}

/// The services that an operator has stopped while others run, in words: not those in `waiting`, which start when another
/// unit does. A stack that `is_wanted` no longer is stopped on purpose.
fn stopped(
    units: &[(Instance, UnitState)],
    waiting: &[&str],
    is_wanted: bool,
) -> Vec<(Instance, String)> {
    if !is_wanted && units.iter().all(|(_, unit)| unit.is_stopped()) {
        return Vec::new();
    }
    units
        .iter()
        .filter(|(instance, unit)| {
            unit.load == LoadState::Loaded
                && unit.active == ActiveState::Inactive
                && !unit.queued
                && !waiting.contains(&instance.name())
        })
        .map(|(instance, unit)| {
            let since = unit
                .inactive_since
                .and_then(|usec| jiff::Timestamp::from_microsecond(usec.try_into().ok()?).ok());
            let words = match since {
                Some(since) => format!("has been stopped since {}", since.strftime("%F %T UTC")),
                None => "has not been started since boot".to_owned(),
            };
            (*instance, format!("{} {words}", instance.unit()))
        })
        .collect()
}

/// The timers whose own check, if there is one, does not say that they are off.
const WITHOUT_CHECK: [&str; 3] = [
    quadlet::VERIFY_TIMER,
    quadlet::CHECK_TIMER,
    quadlet::RECYCLE_TIMER,
];

/// The timers that are enabled apart from the target, but for those of checks `backup`, `archive` and `notices`.
pub(crate) async fn timers(examination: &Examination<'_>) -> Option<Check> {
    let installed = examination.units.as_ref();
    installed.filter(|units| !units.is_empty())?;
    timers_of(examination.host).await
}

/// As [`timers`].
pub(super) async fn timers_of(host: &Host) -> Option<Check> {
    let systemd = host.systemd().await.ok()?;
    let timers = quadlet::COMPANIONS
        .into_iter()
        .filter(|(unit, _)| WITHOUT_CHECK.contains(unit));
    let states = timers.map(async |(unit, purpose)| Ok((systemd.unit(unit).await?, purpose)));
    let states: Result<Vec<_>> = futures_util::future::try_join_all(states).await;
    judge_timers(&states.ok()?, host.scope())
}

/// Check `drift` reports a missing one.
fn judge_timers(timers: &[(UnitState, &str)], scope: Scope) -> Option<Check> {
    let installed = || {
        let timers = timers.iter().map(|(timer, purpose)| (timer, *purpose));
        timers.filter(|(timer, _)| timer.load != LoadState::NotFound)
    };
    let faults: Vec<(&str, String)> = installed()
        .filter_map(|(timer, purpose)| {
            let name = timer.name.as_str();
            let words = format!("{name} ({purpose}) {}", timer.idle()?);
            Some((name, words))
        })
        .collect();
    let (idle, words): (Vec<&str>, Vec<String>) = faults.into_iter().unzip();
    if !idle.is_empty() {
        let systemctl = scope.systemctl();
        let check = Check::warning(CheckName::Timers, words.join("; "));
        return Some(check.remedy(format!("`{systemctl} enable --now {}`", idle.join(" "))));
    }
    let names: Vec<&str> = installed().map(|(timer, _)| timer.name.as_str()).collect();
    let message = format!("enabled and active: {}", names.join(", "));
    (!names.is_empty()).then(|| Check::ok(CheckName::Timers, message))
}

/// As the command `start`, so that a start limit is lifted first and a failure is told with its cause.
pub(crate) async fn start(host: &Host, failed: &[&'static str]) -> Result<Vec<String>> {
    let host = host.reporting(Progress::Collected(Arc::default()));
    let steps: Vec<(JobType, &str)> = failed.iter().map(|unit| (JobType::Start, *unit)).collect();
    stack::start_units(&host, &steps, Manner::AtOnce, START_TIMEOUT).await?;
    Ok(failed
        .iter()
        .map(|unit| format!("started {unit}"))
        .collect())
}

pub(crate) async fn digests(examination: &Examination<'_>) -> Option<Check> {
    // Check `drift` reports a damaged file.
    let lock = ImagesLock::load(&examination.host.paths.images_lock()).ok()?;
    let settings = examination.settings.as_ref()?;
    let settings = installed_release::installed(examination.host, settings, &lock)
        .await
        .ok()?;
    let podman = examination.host.podman().await.ok()?;
    let running: Vec<(Instance, String)> = examination
        .units
        .as_ref()?
        .iter()
        .filter(|(instance, unit)| instance.service() != Service::Migrate && unit.is_active())
        .filter_map(|(instance, _)| {
            let image = settings.image(instance.service())?;
            let recorded = lock.identity(image)?;
            Some((*instance, format!("{}@{}", image.name(), recorded.digest)))
        })
        .collect();
    if running.is_empty() {
        return None;
    }
    let compared = running.iter().map(async |(service, image)| {
        let (runs, recorded) = futures_util::join!(
            podman.container_image(service.container()),
            podman.image(image),
        );
        let recorded = recorded.ok().flatten();
        // Check `units` reports a missing container.
        let other = runs
            .ok()
            .flatten()
            .is_some_and(|runs| recorded.is_none_or(|recorded| !recorded.is(&runs.identity)));
        other.then(|| format!("{} does not run {image}", service.container()))
    });
    let others: Vec<String> = futures_util::future::join_all(compared)
        .await
        .into_iter()
        .flatten()
        .collect();
    Some(if others.is_empty() {
        Check::ok(
            CheckName::Digests,
            "every container runs the image that images.lock records",
        )
    } else {
        Check::failure(CheckName::Digests, others.join("; "))
            .remedy("remove the drop-in that names another image, if there is one; then run `litellm-units restart`")
    })
}

/// Whether the running units were started with the current settings. Check `drift` reports units that
/// are not `is_current`.
pub(crate) async fn applied(examination: &Examination<'_>, is_current: bool) -> Option<Check> {
    let settings = examination.settings.as_ref()?;
    if examination.units.is_some()
        && let Err(error) = edits::refuse(examination.host, settings).await
    {
        return Some(Check::error(CheckName::Applied, &error));
    }
    if !examination.gateway_runs() {
        return None;
    }
    let differences = stack::differences(examination.host, settings).map(|mut all| {
        for (_, differences) in &mut all {
            differences.retain(|difference| is_current || difference.input != "unit");
        }
        all.retain(|(_, differences)| !differences.is_empty());
        all
    });
    Some(match differences {
        Err(error) => Check::error(CheckName::Applied, &error),
        Ok(differences) if differences.is_empty() => Check::ok(
            CheckName::Applied,
            "every container runs with the current settings",
        ),
        Ok(differences) => {
            let words: Vec<String> = differences
                .iter()
                .map(|(service, differences)| {
                    format!("{}: {}", service.name(), stack::list(differences))
                })
                .collect();
            Check::warning(
                CheckName::Applied,
                format!("changed since the start: {}", words.join("; ")),
            )
            .remedy("`litellm-units apply`")
        }
    })
}

pub(crate) async fn gateway(examination: &Examination<'_>) -> Option<Check> {
    if !examination.gateway_runs() {
        return None;
    }
    let client = match Client::local(&examination.host.paths, TIMEOUT) {
        Ok(client) => client,
        Err(error) => return Some(Check::error(CheckName::Gateway, &error)),
    };
    let version = || contract::installed_version(&examination.host.paths);
    let health = client.health().await.or_version(version);
    Some(match unless_full(&examination.host.paths, health) {
        GatewayHealth::Ready { version } => Check::ok(
            CheckName::Gateway,
            format!(
                "ready, LiteLLM {}",
                version.as_deref().unwrap_or("of unknown version")
            ),
        ),
        GatewayHealth::Live { reason } => Check::failure(
            CheckName::Gateway,
            format!("answers, but is not ready: {reason}"),
        )
        .remedy("see why: `litellm-units logs litellm`"),
        busy @ GatewayHealth::Busy { .. } => Check::warning(CheckName::Gateway, busy.to_string()),
        GatewayHealth::Down { reason } => {
            Check::failure(CheckName::Gateway, format!("does not answer: {reason}"))
                .remedy("see why: `litellm-units logs litellm`")
        }
    })
}

/// Nothing while they are off.
pub(crate) fn debug_logs(host: &Host) -> Option<Check> {
    let until = debug::time(debug::until(&host.paths)?);
    let message = format!("the gateways write prompts and answers to the journal until {until}");
    Some(Check::warning(CheckName::Debug, message).remedy("`litellm-units debug off`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_that_do_nothing() {
        let timer = |name: &str, file_state: &str, active| UnitState {
            name: name.into(),
            load: LoadState::Loaded,
            file_state: file_state.into(),
            active,
            ..UnitState::default()
        };
        let judged = |timers: [UnitState; 2]| {
            let [one, two] = timers;
            let check = judge_timers(&[(one, "a look"), (two, "a check")], Scope::User)?;
            Some((check.outcome, check.message, check.remedy))
        };
        let on = |name| timer(name, "enabled", ActiveState::Active);
        assert_eq!(
            judged([on("a.timer"), on("b.timer")]),
            Some((
                CheckOutcome::Ok,
                "enabled and active: a.timer, b.timer".to_owned(),
                None
            ))
        );
        let stopped = timer("b.timer", "enabled", ActiveState::Inactive);
        assert_eq!(
            judged([
                timer("a.timer", "disabled", ActiveState::Active),
                stopped.clone()
            ]),
            Some((
                CheckOutcome::Warning,
                "a.timer (a look) is not enabled; b.timer (a check) is not active".to_owned(),
                Some("`systemctl --user enable --now a.timer b.timer`".to_owned())
            ))
        );
        let missing = UnitState::default;
        assert_eq!(
            judged([missing(), stopped]).unwrap().2.unwrap(),
            "`systemctl --user enable --now b.timer`"
        );
        assert_eq!(judged([missing(), missing()]), None);
    }

    #[test]
    fn a_stopped_service_among_running_ones_is_named() {
        let unit = |active: ActiveState, inactive_since| UnitState {
            load: LoadState::Loaded,
            active,
            inactive_since,
            ..UnitState::default()
        };
        let running = || unit(ActiveState::Active, Some(1));
        let halted = || unit(ActiveState::Inactive, Some(1_795_817_000_000_000));
        let second = Instance::further(2).next().unwrap();
        let units = vec![
            (Service::Postgres.into(), running()),
            (Service::Redis.into(), halted()),
            (Service::Litellm.into(), running()),
            (second, unit(ActiveState::Inactive, None)),
        ];
        let words = |units: &[(Instance, UnitState)], waiting: &[&str]| -> Vec<String> {
            stopped(units, waiting, false)
                .into_iter()
                .map(|(_, words)| words)
                .collect()
        };
        assert_eq!(
            words(&units, &[]),
            [
                "litellm-redis.service has been stopped since 2026-11-27 22:03:20 UTC",
                "litellm-2.service has not been started since boot",
            ]
        );
        // It starts when what it needs does.
        assert_eq!(words(&units, &["litellm-2"]).len(), 1);
        // systemd starts it.
        let mut queued = units.clone();
        queued[1].1.queued = true;
        assert_eq!(words(&queued, &["litellm-2"]), [""; 0]);
        // All of it was stopped.
        let down: Vec<_> = units
            .iter()
            .map(|(instance, _)| (*instance, halted()))
            .collect();
        assert_eq!(words(&down, &[]), [""; 0]);
        // Nobody stopped it.
        assert_eq!(stopped(&down, &[], true).len(), 4);
    }
}

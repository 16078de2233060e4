//! A check for each precondition and each known fault.
//!
//! What can't be determined on a host (the clock without a time service, for example) is no fault:
//! its check is `ok` and says so. A check that depends on a failed one is left out, so that each
//! fault is reported once.

mod backup;
mod certificate;
mod database;
mod files;
pub(crate) mod metrics;
mod name;
mod network;
mod platform;
mod release;
mod rootless;
pub(crate) mod scrape;
mod trust;
mod units;
pub(crate) mod watch;

use std::path::{Path, PathBuf};

use serde::Serialize;

pub(crate) use name::CheckName;

use crate::deployment::env_file::EnvFile;
use crate::deployment::settings::{Settings, load_env};
use crate::error::Result;
use crate::host::Host;
use crate::host::files::answers;
use crate::host::paths::Scope;
use crate::host::systemd::UnitState;
use crate::operations::backup::directory as backup_directory;
use crate::operations::entrance::CertificateReport;
use crate::operations::recovery::OngoingOperation;
use crate::operations::stack::blockers::Blocker;
use crate::quadlet;
use crate::service::{Instance, Service};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckOutcome {
    Ok,
    /// It works, but not as well or as safely as it should, or not for long.
    Warning,
    /// It does not work, or others can read a secret.
    Failure,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) name: CheckName,
    pub(crate) outcome: CheckOutcome,
    pub(crate) message: String,
    /// What it is about, where there may be several.
    #[serde(skip)]
    of: Option<PathBuf>,
    /// How to fix it: a command, or a sentence.
    pub(crate) remedy: Option<String>,
    #[serde(rename = "fixable", serialize_with = "is_some")]
    pub(crate) fix: Option<Fix>,
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
fn is_some<S: serde::Serializer>(
    fix: &Option<Fix>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_bool(fix.is_some())
}

/// A repair of `--fix`: it interrupts no running unit and loses no data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// Makes files readable by their owner only.
    Protect(Vec<PathBuf>),
    /// Enables lingering for the caller.
    Linger,
    Reload,
    /// As the command `generate`, which restarts no unit.
    Generate,
    /// Starts failed units.
    Start(Vec<&'static str>),
}

impl Check {
    fn ok(name: CheckName, message: impl Into<String>) -> Self {
        Self {
            name,
            outcome: CheckOutcome::Ok,
            message: message.into(),
            of: None,
            remedy: None,
            fix: None,
        }
    }

    fn warning(name: CheckName, message: impl Into<String>) -> Self {
        Self {
            outcome: CheckOutcome::Warning,
            ..Self::ok(name, message)
        }
    }

    fn failure(name: CheckName, message: impl Into<String>) -> Self {
        Self {
            outcome: CheckOutcome::Failure,
            ..Self::ok(name, message)
        }
    }

    /// With the hint of the error as the remedy.
    fn error(name: CheckName, error: &anyhow::Error) -> Self {
        let remedy = crate::error::hint(error).map(str::to_owned);
        Self {
            remedy,
            ..Self::failure(name, format!("{error:#}"))
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }

    fn of(self, path: &Path) -> Self {
        Self {
            of: Some(path.to_owned()),
            ..self
        }
    }

    fn fix(self, fix: Fix) -> Self {
        Self {
            fix: Some(fix),
            ..self
        }
    }
}

/// Where the cause is found. journalctl would have to be asked in another way for a user than for a system account.
fn see(unit: &str) -> String {
    let name = unit.trim_end_matches(".service");
    format!("see why: `litellm-units logs {name}`")
}

/// What several checks need.
struct Examination<'a> {
    host: &'a Host,
    /// `.env`, if it exists and is valid.
    env: Option<EnvFile>,
    /// `None` if they are invalid.
    settings: Option<Settings>,
    /// The installed services; `None` if systemd can't be reached.
    units: Option<Vec<(Instance, UnitState)>>,
    /// Units that keep them from starting.
    blockers: Vec<Blocker>,
    /// Whether the socket unit of the gateway is active.
    holds_address: bool,
    /// Whether the stack runs or is to run.
    is_wanted: bool,
}

impl Examination<'_> {
    fn unit(&self, service: Service) -> Option<&UnitState> {
        self.units
            .as_ref()?
            .iter()
            .find(|(instance, _)| *instance == service.into())
            .map(|(_, unit)| unit)
    }

    fn gateway_runs(&self) -> bool {
        self.unit(Service::Litellm)
            .is_some_and(UnitState::is_active)
    }
}

/// Examines the host, each part after those that it depends on.
pub(crate) async fn examine(host: &Host) -> Vec<Check> {
    let (podman, dbus, holds_address, is_wanted) = futures_util::join!(
        platform::podman(host),
        units::read(host),
        units::is_active(host, quadlet::SOCKET),
        units::is_wanted(host)
    );
    let (units, dbus) = match dbus {
        Ok(units) => (
            Some(units),
            Check::ok(CheckName::Dbus, "systemd answers over D-Bus"),
        ),
        Err(error) => (None, Check::error(CheckName::Dbus, &error)),
    };
    let mut checks = vec![podman, platform::cgroup()];
    if host.scope() == Scope::User {
        checks.push(rootless::session(host));
    }
    // Without a session there is no bus.
    let has_session = checks
        .iter()
        .all(|check| check.name != CheckName::Session || check.outcome == CheckOutcome::Ok);
    if has_session {
        checks.push(dbus);
    }
    if host.scope() == Scope::User {
        checks.extend(rootless::checks(host).await);
    }

    let (env, settings, of_settings) = settings(host);
    let ownership = files::ownership(host);
    let is_safe = ownership.outcome == CheckOutcome::Ok;
    // Podman needs a session as well.
    let podman_works = has_session
        && checks
            .iter()
            .all(|check| check.name != CheckName::Podman || check.outcome != CheckOutcome::Failure);
    let blockers = match units.as_ref().filter(|_| has_session) {
        Some(units) => units::blockers(host, units).await,
        None => Vec::new(),
    };
    // Check `disk` reports it otherwise.
    let backups_answer = answers(&backup_directory(&host.paths));
    let examination = Examination {
        host,
        env,
        settings,
        units: units.filter(|_| has_session),
        blockers,
        holds_address,
        is_wanted,
    };
    let (
        systemd,
        clock,
        disk,
        inside,
        docker,
        drift,
        digests,
        compromised,
        signatures,
        gateway,
        backup,
        verification,
        archive,
        timers,
        upgrade_check,
        certificate,
    ) = futures_util::join!(
        platform::systemd(&examination),
        platform::clock(host),
        files::space(host, podman_works),
        when(podman_works, network::inside(&examination)),
        network::docker(host),
        when(podman_works && is_safe, units::drift(&examination)),
        when(podman_works, units::digests(&examination)),
        when(podman_works, trust::running(&examination)),
        when(podman_works, trust::signatures(&examination)),
        units::gateway(&examination),
        when(backups_answer, backup::backup(&examination)),
        when(backups_answer, backup::verification(&examination)),
        when(backups_answer, backup::archive(&examination)),
        units::timers(&examination),
        release::upgrade_check(&examination),
        certificate(&examination),
    );
    checks.extend(systemd);
    checks.push(platform::selinux());
    checks.push(clock);
    checks.extend(disk);
    checks.extend(of_settings);
    checks.push(ownership);
    if let Some(env) = &examination.env {
        checks.push(files::secrets(host));
        checks.extend(files::sealed(env, &host.paths.env_file()));
        checks.extend(
            { examination.settings.iter() }
                .filter(|_| is_safe)
                .filter_map(|settings| files::external(&host.paths, settings)),
        );
        checks.extend(files::data(&examination));
        checks.extend(files::gateway_config(&examination));
    }
    checks.extend(network::port(&examination));
    checks.push(network::loopback(&examination));
    checks.extend(network::firewall(host).await);
    checks.extend(inside);
    checks.push(docker);
    let is_current = drift.iter().all(|check| check.outcome == CheckOutcome::Ok);
    let config_is_good = checks
        .iter()
        .all(|check| check.name != CheckName::Config || check.outcome == CheckOutcome::Ok);
    checks.extend(drift);
    let missing = when(podman_works && is_current, units::missing(&examination));
    match missing.await {
        Some(missing) => checks.push(missing),
        None => checks.extend(units::states(&examination, is_current)),
    }
    checks.extend(units::drop_ins(&host.paths));
    checks.extend(digests);
    checks.extend(compromised);
    checks.extend(release::vulnerabilities(&examination));
    checks.extend(signatures);
    if config_is_good {
        checks.extend(units::applied(&examination, is_current).await);
    }
    checks.extend(gateway);
    checks.extend(units::debug_logs(host));
    checks.extend(certificate::check(
        host,
        examination.settings.as_ref(),
        certificate.as_ref(),
    ));
    checks.extend(backup);
    checks.extend(verification);
    checks.extend(archive);
    if backups_answer {
        checks.extend(database::growth(
            &host.paths,
            &database::of_backups(&host.paths),
        ));
    }
    let database_answers = checks
        .iter()
        .any(|check| check.name == CheckName::Database && check.outcome == CheckOutcome::Ok);
    if database_answers {
        checks.extend(database::checks(&examination).await);
    }
    checks.extend(timers);
    checks.extend(upgrade_check);
    checks.extend(watch::check(&examination).await);
    checks.extend(interrupted(host));
    checks
}

async fn certificate(examination: &Examination<'_>) -> Option<CertificateReport> {
    CertificateReport::of(examination.host, examination.settings.as_ref()?).await
}

/// What a check finds, if what it needs works.
async fn when<T: Default>(works: bool, check: impl Future<Output = T>) -> T {
    if works { check.await } else { T::default() }
}

fn interrupted(host: &Host) -> Option<Check> {
    match OngoingOperation::find(&host.paths) {
        Ok(Some(OngoingOperation::Interrupted(words))) => {
            Some(Check::failure(CheckName::Operation, words).remedy("`litellm-units up`"))
        }
        Ok(_) => None,
        Err(error) => Some(Check::error(CheckName::Operation, &error)),
    }
}

/// Reads `.env`. The images have a check of their own, so that a refused one does not make the file invalid.
fn settings(host: &Host) -> (Option<EnvFile>, Option<Settings>, Vec<Check>) {
    let path = host.paths.env_file();
    if !path.exists() && !host.paths.quadlets.join("litellm.container").exists() {
        let message = format!(
            "no deployment in {} yet; to create one: `litellm-units up`",
            host.paths.deployment.display()
        );
        return (None, None, vec![Check::ok(CheckName::Settings, message)]);
    }
    let env = match load_env(&path) {
        Ok(env) => env,
        Err(error) => return (None, None, vec![Check::error(CheckName::Settings, &error)]),
    };
    let images = files::images(host, &env);
    let settings = files::without_bad_images(&env).and_then(|env| Settings::from_env(&env, &path));
    match settings {
        Ok(settings) => {
            let good = images.outcome == CheckOutcome::Ok;
            let except = if good { "" } else { ", except for an image" };
            let message = format!("{} is valid{except}", path.display());
            (
                Some(env),
                good.then_some(settings),
                vec![Check::ok(CheckName::Settings, message), images],
            )
        }
        Err(error) => (
            Some(env),
            None,
            vec![Check::error(CheckName::Settings, &error), images],
        ),
    }
}

impl Fix {
    /// Returns a line for each change.
    pub(crate) async fn apply(&self, host: &Host) -> Result<Vec<String>> {
        match self {
            Self::Protect(files) => files::protect(files),
            Self::Linger => rootless::enable_linger().await,
            Self::Reload => {
                host.systemd().await?.reload().await?;
                Ok(vec!["reloaded systemd's units".into()])
            }
            Self::Generate => units::generate(host).await,
            Self::Start(failed) => units::start(host, failed).await,
        }
    }
}

//! Sends notices of faults, and writes metrics: what `litellm-watch.service` does three times a minute.
//!
//! A fault is reported once, when it was seen twice in a row, and its end is reported, too. So a storm becomes one notice,
//! and what a restart causes for a few seconds becomes none. A notice has no line of a log: those may hold prompts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use futures_util::future::join_all;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::{
    Check, CheckName, CheckOutcome, Examination, certificate, database, files, metrics, release,
    see, units,
};
use crate::deployment::external;
use crate::deployment::listen::ListenAddress;
use crate::deployment::settings::{Settings, WatchSettings};
use crate::deployment::snapshot;
use crate::deployment::variables::{NOTIFY_COMMAND, NOTIFY_URL};
use crate::error::{Failure, PathContext, Result};
use crate::host::files::{remove_existing, save_record, write_atomically, write_here};
use crate::host::lock::OperationLock;
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::{ActiveState, LoadState};
use crate::host::{Host, host_name, notice};
use crate::litellm::health::GatewayHealth;
use crate::operations::database::Forecast;
use crate::operations::recovery::OngoingOperation;
use crate::operations::stack::report::{self, ServiceReport, StatusReport};
use crate::operations::stack::{self, LogSource, address};
use crate::operations::{backup, pull, recycle};
use crate::output::duration;
use crate::quadlet::{METRICS_SOCKET, RECOVERY, RECYCLE_SERVICE, WATCH_SERVICE, WATCH_TIMER};
use crate::service::Service;

/// How often in a row a fault is seen before it is reported.
const SIGHTINGS: u32 = 2;
/// How often, if it may be a slow start or load: three minutes.
const SLOW_SIGHTINGS: u32 = 9;
/// How often in a row it is not seen before its end is reported.
const ABSENCES: u32 = 3;

/// So many restarts of a service in this time are a fault.
const RESTARTS: usize = 3;
const RESTARTS_TIME: Duration = Duration::from_secs(15 * 60);

/// After this, faults are reported although an operation is running.
const LONG_OPERATION: Duration = Duration::from_secs(3600);

/// Commands that hold the lock, perhaps for hours, and change no unit.
const BESIDE: [&str; 5] = [
    backup::COMMAND,
    pull::COMMAND,
    backup::VERIFY_COMMAND,
    backup::FETCH_COMMAND,
    "key rotate service",
];

/// How long a connection to an address of this host may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A fault: what is known of it from this look and the ones before.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Fault {
    message: String,
    /// Whether it ever was more than a warning. If it becomes so, it is reported again.
    #[serde(default)]
    failure: bool,
    /// How often in a row it has to be seen before it is reported.
    sightings: u32,
    since: SystemTime,
    seen: u32,
    absent: u32,
    reported: bool,
}

impl Fault {
    fn is_new(&self) -> bool {
        !self.reported && self.absent == 0 && self.seen >= self.sightings
    }

    fn is_over(&self) -> bool {
        self.absent >= if self.reported { ABSENCES } else { 1 }
    }
}

/// Faults by what they concern.
type Faults = BTreeMap<String, Fault>;

/// What is kept from look to look.
#[derive(Default, Deserialize, Serialize)]
struct Record {
    faults: Faults,
    /// Of each service.
    restarts: BTreeMap<String, Restarts>,
}

/// The restarts of a service by systemd. One that fails and is back before the next look is seen by nothing else.
#[derive(Default, Deserialize, Serialize)]
struct Restarts {
    /// Since it was started, at the last look.
    count: Option<u64>,
    /// Times of the last ones, as far as they matter.
    times: Vec<SystemTime>,
}

impl Restarts {
    /// What is wrong, if there were too many.
    fn look(&mut self, count: u64, now: SystemTime) -> Option<String> {
        // After an operator's start, it counts anew.
        let new = self
            .count
            .map_or(0, |known| count.checked_sub(known).unwrap_or(count));
        self.count = Some(count);
        let is_recent = |time: &SystemTime| {
            now.duration_since(*time)
                .is_ok_and(|age| age < RESTARTS_TIME)
        };
        self.times.retain(is_recent);
        self.times
            .extend((0..new.min(RESTARTS as u64)).map(|_| now));
        let minutes = RESTARTS_TIME.as_secs() / 60;
        (self.times.len() >= RESTARTS).then(|| format!("at least {RESTARTS} in {minutes} minutes"))
    }
}

/// Looks, reports what is new, and keeps what it has seen for the next look.
///
/// # Errors
/// When `.env` is wrong and never was right, systemd does not answer, or a notice was not delivered; the next look tries again.
pub(crate) async fn watch(host: &Host) -> Result<()> {
    let (settings, problem) = snapshot::settings(&host.paths)?;
    // The timer also runs while nothing of the stack was started since the host was.
    let state = host.paths.runtime_state();
    std::fs::create_dir_all(&state).path_context("can't create", &state)?;
    let report = report::gather(host).await?;
    // Reads the manifests of 14 days, once.
    let forecast = database::of_backups(&host.paths);
    let certificate = certificate::check(host, Some(&settings), report.certificate.as_ref());
    let look = Look {
        settings: &settings,
        problem: problem.as_ref(),
        report: &report,
        forecast: &forecast,
        certificate: certificate.as_ref(),
        timers: units::timers_of(host).await,
    };
    let written = write_metrics(host, &look).await;
    // Whatever became of the metrics.
    notify(host, &look, written.as_ref().err())
        .await
        .and(written)
}

/// What was seen.
struct Look<'a> {
    settings: &'a Settings,
    /// Why these are not those of `.env`.
    problem: Option<&'a anyhow::Error>,
    report: &'a StatusReport,
    forecast: &'a Result<Forecast>,
    certificate: Option<&'a Check>,
    timers: Option<Check>,
}

/// Whether a command changes units: it reports what it does to them. But it may wait for an answer for ever.
pub(super) fn is_changing(paths: &Paths) -> bool {
    let is_beside = || {
        BESIDE
            .iter()
            .any(|command| OperationLock::is_held_by(paths, command))
    };
    OperationLock::is_held(paths)
        && OperationLock::age(paths).is_some_and(|age| age < LONG_OPERATION)
        && !is_beside()
}

async fn write_metrics(host: &Host, look: &Look<'_>) -> Result<()> {
    let watch = &look.settings.watch;
    if watch.metrics.is_none() && watch.metrics_address.is_none() {
        return Ok(());
    }
    let timers = look.timers.as_ref();
    let text = metrics::text(host, look.report, look.forecast, look.certificate, timers).await?;
    let served = match watch.metrics_address {
        Some(_) => write_atomically(&host.paths.served_metrics(), text.as_bytes(), 0o644),
        None => Ok(()),
    };
    // Whatever became of the other file.
    let Some(path) = &watch.metrics else {
        return served;
    };
    let name = path.file_name().and_then(OsStr::to_str);
    let (directory, name) = path
        .parent()
        .zip(name)
        .context("METRICS_FILE names no file")?;
    write_here(directory, name, text.as_bytes(), 0o644).and(served)
}

async fn notify(host: &Host, look: &Look<'_>, unwritten: Option<&anyhow::Error>) -> Result<()> {
    let watch = &look.settings.watch;
    let paths = &host.paths;
    let file = paths.runtime_state().join("faults.json");
    // A gateway that an operator has stopped has no faults.
    if !watch.notifies() || !stack::is_wanted(host.systemd().await?).await? {
        return remove_existing(&file);
    }
    // A gateway that is replaced for its memory may drain for an hour, and the others may fail meanwhile.
    let is_recycled = OperationLock::is_held_by(paths, recycle::COMMAND);
    let is_changing = is_changing(paths);
    if is_changing && !is_recycled {
        return Ok(());
    }
    // Without the file of the last look, or with a damaged one, everything is new.
    let before: Record = std::fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let mut restarts = before.restarts;
    let mut now = find(host, look, unwritten, &mut restarts).await?;
    let (hidden, known): (Faults, Faults) = before
        .faults
        .into_iter()
        .partition(|(subject, _)| is_changing && is_of_gateway(look.report, subject));
    now.retain(|subject, _| !(is_changing && is_of_gateway(look.report, subject)));
    let mut faults = seen(known, now);
    let lines = lines(&faults);
    let delivery = match &*lines {
        [] => Delivery::default(),
        lines => send(watch, &text(host, lines)).await,
    };
    // One recipient is enough: it gets nothing twice because another one can't be reached.
    if delivery.failures.is_empty() || !delivery.sent.is_empty() {
        settle(&mut faults);
    }
    faults.extend(hidden);
    save_record(&file, &Record { faults, restarts })?;
    delivery.complete().map(drop)
}

/// Sends a notice that says that it is a test, and returns the variables that name the recipients.
///
/// # Errors
/// When `.env` names no recipient, or the notice was not delivered to all.
pub(crate) async fn test(host: &Host) -> Result<Vec<&'static str>> {
    let path = host.paths.env_file();
    let settings = Settings::load(&path)?;
    if !settings.watch.notifies() {
        return Err(Failure::config(format!(
            "{} names no recipient of notices",
            path.display()
        ))
        .hint(format!(
            "add {NOTIFY_URL}=https://… (a webhook) or {NOTIFY_COMMAND}=… (a program), then run `litellm-units apply`"
        ))
        .into());
    }
    send(&settings.watch, &text(host, &["this is a test".to_owned()]))
        .await
        .complete()
}

/// Whether notices and metrics are on. `None` if `.env` asks for neither.
pub(super) async fn check(examination: &Examination<'_>) -> Option<Check> {
    let settings = examination.settings.as_ref()?;
    if settings.watch.is_empty() {
        return None;
    }
    let systemd = examination.host.systemd().await.ok()?;
    let (timer, service, socket) = futures_util::try_join!(
        systemd.unit(WATCH_TIMER),
        systemd.unit(WATCH_SERVICE),
        systemd.unit(METRICS_SOCKET)
    )
    .ok()?;
    // Check `drift` reports a missing timer.
    if timer.load == LoadState::NotFound {
        return None;
    }
    let systemctl = examination.host.scope().systemctl();
    Some(if timer.idle().is_some() {
        Check::warning(
            CheckName::Notices,
            format!("{WATCH_TIMER} is not enabled and active, so no notice is sent and no metrics are written"),
        )
        .remedy(format!("`{systemctl} enable --now {WATCH_TIMER}`"))
    } else if service.is_failing() {
        Check::warning(
            CheckName::Notices,
            format!("{WATCH_SERVICE} failed: {}", service.reason()),
        )
        .remedy(see(WATCH_SERVICE))
    } else if let Some(address) = settings.watch.metrics_address
        && socket.idle().is_some()
    {
        let check = Check::warning(
            CheckName::Notices,
            format!(
                "{METRICS_SOCKET} is not enabled and active, so no metrics are served at {address}"
            ),
        );
        if socket.is_active() || std::net::TcpListener::bind(address).is_ok() {
            check.remedy(format!("`{systemctl} enable --now {METRICS_SOCKET}`"))
        } else {
            check.remedy(format!(
                "{}; then `{systemctl} enable --now {METRICS_SOCKET}`",
                address::find(&ListenAddress::Tcp(address))
            ))
        }
    } else if let Some(address) = settings.watch.metrics_address
        && socket.is_active()
        && !is_reached(address).await
    {
        Check::warning(
            CheckName::Notices,
            format!(
                "{METRICS_SOCKET} is active, but nothing listens at {address}, so no metrics are served"
            ),
        )
        .remedy(format!("`{systemctl} restart {METRICS_SOCKET}`"))
    } else {
        Check::ok(
            CheckName::Notices,
            format!("{WATCH_TIMER} is enabled and active"),
        )
    })
}

/// Whether somebody listens. systemd calls a socket unit active whose address it has closed, since the unit was changed and
/// not restarted.
async fn is_reached(address: SocketAddr) -> bool {
    let connection = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    matches!(connection, Ok(Ok(_)))
}

/// The recipients of a notice, by the variables that name them, and what failed.
#[derive(Default)]
struct Delivery {
    sent: Vec<&'static str>,
    failures: Vec<String>,
}

impl Delivery {
    /// The recipients, if nothing failed.
    fn complete(self) -> Result<Vec<&'static str>> {
        if self.failures.is_empty() {
            return Ok(self.sent);
        }
        Err(Failure::new(format!(
            "the notice was not delivered: {}",
            self.failures.join("; ")
        ))
        .hint("correct .env, then try it: `litellm-units notify test`")
        .into())
    }
}

async fn send(watch: &WatchSettings, text: &str) -> Delivery {
    let mut delivery = Delivery::default();
    let recipients = [(NOTIFY_URL, &watch.url), (NOTIFY_COMMAND, &watch.command)];
    let recipients = recipients
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    // Together, since the look as a whole has a timeout.
    let sent = recipients.map(async |(name, value)| {
        let result = match (value.open(), name) {
            (Ok(url), NOTIFY_URL) => match watch.proxy.open() {
                Ok(proxy) => notice::post(&proxy, url.expose_secret(), text).await,
                Err(error) => Err(error),
            },
            (Ok(value), _) => notice::run(value.expose_secret(), text).await,
            (Err(error), _) => Err(error),
        };
        (name, result)
    });
    for (name, result) in join_all(sent).await {
        match result {
            Ok(()) => delivery.sent.push(name),
            Err(error) => delivery.failures.push(format!("{name}: {error:#}")),
        }
    }
    delivery
}

fn text(host: &Host, lines: &[String]) -> String {
    let user = match host.scope() {
        Scope::System => "",
        Scope::User => " of a user",
    };
    format!(
        "litellm-units on {}{user}\n{}\n",
        host_name(),
        lines.join("\n")
    )
}

/// The faults after another look.
fn seen(mut before: Faults, now: Faults) -> Faults {
    for (subject, fault) in &mut before {
        if !now.contains_key(subject) {
            fault.absent += 1;
            fault.seen = 0;
        }
    }
    for (subject, fault) in now {
        let known = before.entry(subject).or_insert_with(|| fault.clone());
        known.message = fault.message;
        if fault.failure && !known.failure {
            known.failure = true;
            known.reported = false;
            known.seen = 0;
        }
        known.sightings = fault.sightings;
        known.seen += 1;
        known.absent = 0;
    }
    before
}

/// Counts as reported what is in [`lines`].
fn settle(faults: &mut Faults) {
    faults.retain(|_, fault| !fault.is_over());
    for fault in faults.values_mut().filter(|fault| fault.is_new()) {
        fault.reported = true;
    }
}

/// What has to be reported.
fn lines(faults: &Faults) -> Vec<String> {
    let new = faults.values().filter(|fault| fault.is_new());
    let over = faults
        .iter()
        .filter(|(_, fault)| fault.reported && fault.is_over());
    new.map(|fault| fault.message.clone())
        .chain(over.map(|(subject, fault)| {
            let time = fault.since.elapsed().unwrap_or_default();
            format!("{subject}: recovered after {}", duration(time))
        }))
        .collect()
}

/// Looks at everything that costs little to look at.
async fn find(
    host: &Host,
    look: &Look<'_>,
    unwritten: Option<&anyhow::Error>,
    restarts: &mut BTreeMap<String, Restarts>,
) -> Result<Faults> {
    let Look {
        settings, report, ..
    } = look;
    let stack = &report.stack;
    let since = SystemTime::now();
    let mut faults = Faults::new();
    let mut add_check = |subject: &str, words: &str, sightings, failure| {
        let fault = Fault {
            message: format!("{subject}: {words}"),
            failure,
            sightings,
            since,
            seen: 0,
            absent: 0,
            reported: false,
        };
        faults.insert(subject.to_owned(), fault);
    };
    let mut add =
        |subject: &str, words: &str, sightings| add_check(subject, words, sightings, true);
    if let Some(problem) = look.problem {
        let words = format!("{problem:#}; the last good one is used; see `litellm-units doctor`");
        add(".env", &words, SIGHTINGS);
    }
    if let Some(words) = &stack.config_invalid {
        add(
            "config",
            &format!("{words}; see `litellm-units doctor`"),
            SIGHTINGS,
        );
    }
    if let Some(error) = unwritten {
        add("metrics", &format!("{error:#}"), SIGHTINGS);
    }
    for service in &stack.reports {
        if let Some((words, sightings)) = of_service(service) {
            add(service.service, &words, sightings);
        }
        let known = restarts.entry(service.service.to_owned()).or_default();
        if let Some(words) = known.look(service.restarts, since) {
            let subject = format!("restarts of {}", service.service);
            add(
                &subject,
                &format!("{words}; {}", see_logs(service)),
                SIGHTINGS,
            );
        }
    }
    for service in &stack.additional {
        if service.active == ActiveState::Failed {
            let words = format!("{} ({})", service.active, service.sub);
            add(&service.unit, &words, SIGHTINGS);
        }
    }
    if let Some(words) = &stack.other_image {
        add("release", words, SIGHTINGS);
    }
    let exploited = stack.vulnerabilities.iter().flatten();
    let exploited: Vec<&str> = exploited
        .filter(|known| known.exploited && !known.accepted)
        .map(|known| known.id.as_str())
        .collect();
    if !exploited.is_empty() {
        let words = format!(
            "attackers use {}; see `litellm-units upgrade --check`",
            exploited.join(", ")
        );
        add("vulnerabilities", &words, SIGHTINGS);
    }
    for blocker in stack.blockers.iter().filter(|blocker| blocker.failing) {
        add(&blocker.unit, &blocker.state, SIGHTINGS);
    }
    if let Some(sightings) = of_gateway(report) {
        let words = format!("{}; see `litellm-units doctor`", report.gateway.health);
        add("gateway", &words, sightings);
    }
    match OngoingOperation::find(&host.paths) {
        Ok(Some(OngoingOperation::Interrupted(words))) => add("operation", &words, SIGHTINGS),
        // A record is damaged.
        Err(error) => add("operation", &format!("{error:#}"), SIGHTINGS),
        Ok(_) => {}
    }
    for (unit, words) in recycle::Report::of(&host.paths, settings).problems {
        add(&format!("memory of {unit}"), &words, SIGHTINGS);
    }
    for (name, words) in external::stale(&host.paths, settings)? {
        add(&name, &words, SIGHTINGS);
    }
    for name in [RECOVERY, RECYCLE_SERVICE] {
        let unit = host.systemd().await?.unit(name).await?;
        if let Some(problem) = unit.problem() {
            add(name, &format!("{problem}; {}", see(name)), SIGHTINGS);
        }
    }
    let space = files::space(host, false).await;
    let checks = { space.into_iter() }
        .chain(super::backup::check(host).await)
        .chain(super::backup::verification_check(host).await)
        .chain(super::backup::archive_check(host, &settings.backup).await)
        .chain(database::growth(&host.paths, look.forecast))
        .chain(look.certificate.cloned())
        .chain(look.timers.clone())
        .chain(release::check(host).await);
    for check in checks.filter(|check| check.outcome != CheckOutcome::Ok) {
        let remedy = check.remedy.map(|remedy| format!("; {remedy}"));
        let words = check.message + &remedy.unwrap_or_default();
        let of = check.of.map(|path| format!(" of {}", path.display()));
        let subject = format!("{}{}", check.name, of.unwrap_or_default());
        let is_failure = check.outcome == CheckOutcome::Failure;
        add_check(&subject, &words, SIGHTINGS, is_failure);
    }
    Ok(faults)
}

fn is_of_gateway(report: &StatusReport, subject: &str) -> bool {
    let mut services = report.stack.reports.iter();
    subject == "gateway"
        || services.any(|service| {
            service.service == subject && service.service.starts_with(Service::Litellm.name())
        })
}

fn see_logs(service: &ServiceReport) -> String {
    let source = LogSource::of_unit(service.unit).map_or(service.service, LogSource::name);
    format!("see `litellm-units logs {source}`")
}

/// The fault of a service, and how often it has to be seen.
fn of_service(service: &ServiceReport) -> Option<(String, u32)> {
    let see = see_logs(service);
    if service.is_broken() {
        let health = service.health.filter(|health| health.is_bad());
        let health = health
            .map(|health| format!(", {health}"))
            .unwrap_or_default();
        return Some((
            format!("{} ({}){health}; {see}", service.active, service.sub),
            SIGHTINGS,
        ));
    }
    if service.is_starting() {
        return Some((format!("is still starting; {see}"), SLOW_SIGHTINGS));
    }
    (!service.is_well()).then(|| {
        (
            format!("{} ({}); {see}", service.active, service.sub),
            SIGHTINGS,
        )
    })
}

/// How often the gateway's own answer has to be seen to be a fault.
fn of_gateway(report: &StatusReport) -> Option<u32> {
    let starts = |service: &ServiceReport| service.is_starting();
    match &report.gateway.health {
        health if health.is_ready() => None,
        GatewayHealth::Busy { .. } => Some(SLOW_SIGHTINGS),
        _ if report.stack.reports.iter().any(starts) => Some(SLOW_SIGHTINGS),
        _ => Some(SIGHTINGS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(subjects: &[&str]) -> Faults {
        let fault = |subject: &&str| Fault {
            message: format!("{subject}: down"),
            failure: true,
            sightings: SIGHTINGS,
            since: SystemTime::now(),
            seen: 0,
            absent: 0,
            reported: false,
        };
        subjects
            .iter()
            .map(|subject| ((*subject).to_owned(), fault(subject)))
            .collect()
    }

    /// What each look reports.
    fn reported(looks: &[&[&str]]) -> Vec<Vec<String>> {
        let mut known = Faults::new();
        let mut all = Vec::new();
        for look in looks {
            known = seen(known, faults(look));
            all.push(lines(&known));
            settle(&mut known);
        }
        all
    }

    #[test]
    fn a_fault_and_its_end_are_reported_once() {
        let down: &[&str] = &["gateway"];
        let looks = [down, down, down, &[], &[], &[], &[]];
        assert_eq!(
            reported(&looks),
            [
                vec![],
                vec!["gateway: down".to_owned()],
                vec![],
                vec![],
                vec![],
                vec!["gateway: recovered after 0.0 s".to_owned()],
                vec![],
            ]
        );
    }

    #[test]
    fn a_warning_that_becomes_a_failure_is_reported_again() {
        let disk = |failure| {
            let mut faults = faults(&["disk of /"]);
            for fault in faults.values_mut() {
                fault.failure = failure;
            }
            faults
        };
        let mut known = Faults::new();
        let looks = [false, false, false, true, true, false, true];
        let reported = looks.map(|failure| {
            known = seen(std::mem::take(&mut known), disk(failure));
            let lines = lines(&known).len();
            settle(&mut known);
            lines
        });
        assert_eq!(reported, [0, 1, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_storm_is_one_notice_and_a_blink_is_none() {
        let storm: &[&str] = &["gateway", "postgres", "redis"];
        let blink: &[&str] = &["postgres"];
        assert_eq!(reported(&[storm, storm])[1].len(), 3);
        let calm: Vec<Vec<String>> = vec![vec![]; 5];
        assert_eq!(reported(&[blink, &[], blink, &[], &[]]), calm);
        // A fault that comes and goes stays one.
        let looks = [storm, storm, &[], storm, &[], &[], storm];
        assert_eq!(reported(&looks)[2..].concat(), Vec::<String>::new());
    }
    #[test]
    fn a_service_that_fails_between_two_looks_is_noticed() {
        let begin = SystemTime::UNIX_EPOCH;
        let mut known = Restarts::default();
        let mut at = |minutes: u64, count| {
            let time = begin + Duration::from_secs(minutes * 60);
            known.look(count, time).is_some()
        };
        // An operator's start counts anew.
        let looks = [
            (0, 2),
            (1, 2),
            (3, 0),
            (5, 1),
            (14, 1),
            (16, 2),
            (18, 3),
            (19, 3),
            (34, 3),
        ];
        let noticed = looks.map(|(minutes, count)| at(minutes, count));
        assert_eq!(
            noticed,
            [false, false, false, false, false, false, true, true, false]
        );
    }
}

//! What is known of the stack, as Prometheus metrics.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Check, CheckOutcome, backup, certificate, database, units, watch};
use crate::deployment::snapshot;
use crate::error::Result;
use crate::host::Host;
use crate::host::systemd::{ActiveState, UnitState};
use crate::litellm::health::GatewayHealth;
use crate::operations::backup::verification::Verification;
use crate::operations::backup::wal;
use crate::operations::database::Forecast;
use crate::operations::recovery::OngoingOperation;
use crate::operations::stack::report::{self, ServiceReport, State, StatusReport};
use crate::operations::upgrade::check::Verdict;
use crate::quadlet::{BACKUP_SERVICE, BACKUP_TIMER, VERIFY_SERVICE, VERIFY_TIMER};

/// What [`render`] shows beside the report of `status`.
#[derive(Debug, Default)]
struct Others {
    /// Since the epoch.
    now: Duration,
    changing: bool,
    interrupted: bool,
    base_in_the_making: bool,
    /// Whether the certificate of the entrance has to be looked at.
    certificate: Option<bool>,
    /// Time since the last backup, if this host makes them.
    backup: Option<Duration>,
    backup_failed: bool,
    /// Whether there will be another one, if this host makes them.
    backup_timer: Option<bool>,
    /// Whether one of the other timers is off, if they are installed.
    timers_idle: Option<bool>,
    /// If backups are verified every week.
    verification: Option<Verified>,
    database: Forecast,
}

/// What is known of the verification of backups.
#[derive(Debug)]
struct Verified {
    /// When the last one that did not fail ended.
    succeeded: Option<jiff::Timestamp>,
    /// Whether the last one failed.
    failed: bool,
}

/// Looks, and returns Prometheus' text format.
pub(crate) async fn gather(host: &Host) -> Result<String> {
    let report = report::gather(host).await?;
    let settings = snapshot::settings(&host.paths).ok();
    let settings = settings.as_ref().map(|(settings, _)| settings);
    let certificate = certificate::check(host, settings, report.certificate.as_ref());
    let forecast = database::of_backups(&host.paths);
    let timers = units::timers_of(host).await;
    text(
        host,
        &report,
        &forecast,
        certificate.as_ref(),
        timers.as_ref(),
    )
    .await
}

/// The same, with what has been seen already.
///
/// # Errors
/// As [`gather`].
pub(super) async fn text(
    host: &Host,
    report: &StatusReport,
    forecast: &Result<Forecast>,
    certificate: Option<&Check>,
    timers: Option<&Check>,
) -> Result<String> {
    let systemd = host.systemd().await?;
    let (timer, service, verify_timer, verify_service) = futures_util::try_join!(
        systemd.unit(BACKUP_TIMER),
        systemd.unit(BACKUP_SERVICE),
        systemd.unit(VERIFY_TIMER),
        systemd.unit(VERIFY_SERVICE)
    )?;
    let is_bad = |check: &Check| check.outcome != CheckOutcome::Ok;
    let is_on = |timer: &UnitState| timer.file_state == "enabled" && timer.is_active();
    let makes_backups = backup::made_elsewhere(&host.paths).is_none();
    let others = Others {
        now: SystemTime::now().duration_since(UNIX_EPOCH)?,
        // A damaged record may be that of one.
        interrupted: OngoingOperation::find(&host.paths).map_or(true, |found| {
            matches!(found, Some(OngoingOperation::Interrupted(_)))
        }),
        changing: watch::is_changing(&host.paths),
        base_in_the_making: wal::is_base_in_the_making(&host.paths),
        certificate: certificate.map(is_bad),
        backup: backup::last(&host.paths)?.filter(|_| makes_backups),
        backup_failed: service.is_failing(),
        backup_timer: makes_backups.then(|| is_on(&timer)),
        timers_idle: timers.map(is_bad),
        verification: is_on(&verify_timer).then(|| {
            // Check `verification` says why a record can't be read.
            let last = Verification::load(&host.paths);
            let is_bad = last.as_ref().map_or(true, |last| {
                last.as_ref().is_some_and(|last| last.error.is_some())
            });
            Verified {
                succeeded: last.ok().flatten().and_then(|last| last.succeeded),
                failed: is_bad || verify_service.is_failing(),
            }
        }),
        // Check `growth` says why it is not known.
        database: forecast.as_ref().cloned().unwrap_or_default(),
    };
    Ok(render(report, &others))
}

fn render(report: &StatusReport, others: &Others) -> String {
    let mut text = Metrics::default();
    let flag = |value: bool| f64::from(u8::from(value));
    text.add(
        "gathered_timestamp_seconds",
        "gauge",
        "when these metrics were gathered, since the epoch",
    );
    text.sample(&[], whole(others.now.as_secs()));
    text.add(
        "state",
        "gauge",
        "state of the stack: 1 for the current one",
    );
    for (state, word) in [
        (State::Healthy, "healthy"),
        (State::Starting, "starting"),
        (State::Degraded, "degraded"),
        (State::Stopped, "stopped"),
    ] {
        text.sample(&[("state", word)], flag(report.state == state));
    }
    let health = &report.gateway.health;
    text.add(
        "gateway_ready",
        "gauge",
        "whether the gateway answers and its database is connected",
    );
    text.sample(&[], flag(health.is_ready()));
    text.add(
        "gateway_busy",
        "gauge",
        "whether the gateway takes requests, but does not answer in time",
    );
    text.sample(&[], flag(matches!(health, GatewayHealth::Busy { .. })));
    let gateway = report
        .stack
        .reports
        .iter()
        .find(|service| service.service == "litellm");
    if let (Some(gateway), GatewayHealth::Ready { version }) = (gateway, health) {
        text.add(
            "release_info",
            "gauge",
            "the release of the gateway that serves",
        );
        text.sample(
            &[
                ("version", version.as_deref().unwrap_or_default()),
                ("image", gateway.image.as_deref().unwrap_or_default()),
                ("digest", gateway.digest.as_deref().unwrap_or_default()),
            ],
            1.0,
        );
    }
    text.of_services(
        report,
        "service_active",
        "gauge",
        "whether the unit is active",
        |service| Some(flag(service.active == ActiveState::Active)),
    );
    text.of_services(
        report,
        "service_healthy",
        "gauge",
        "whether the health check passes",
        |service| service.health.map(|health| flag(health.is_good())),
    );
    text.of_services(
        report,
        "service_restarts_total",
        "counter",
        "restarts by systemd since the start",
        |service| Some(whole(service.restarts)),
    );
    text.of_services(
        report,
        "service_uptime_seconds",
        "gauge",
        "time since the unit became active",
        |service| service.uptime_seconds.map(whole),
    );
    text.of_services(
        report,
        "service_memory_bytes",
        "gauge",
        "memory of the unit",
        |service| service.memory_bytes.map(whole),
    );
    text.of_services(
        report,
        "service_memory_held_bytes",
        "gauge",
        "memory of the unit that the kernel can't reclaim, with what is in swap",
        |service| service.memory_held_bytes.map(whole),
    );
    text.of_services(
        report,
        "service_memory_limit_bytes",
        "gauge",
        "memory that the unit may use (MemoryMax)",
        |service| service.memory_limit_bytes.map(whole),
    );
    text.of_services(
        report,
        "service_cpu_seconds_total",
        "counter",
        "CPU time since the start",
        |service| service.cpu_seconds,
    );
    text.of_services(
        report,
        "service_pending_changes",
        "gauge",
        "edits that a restart would apply",
        |service| {
            service
                .changed
                .as_ref()
                .map(|changed| whole(changed.len() as u64))
        },
    );
    text.add(
        "env_invalid",
        "gauge",
        "whether .env is invalid, and the last good one is in use",
    );
    text.sample(&[], flag(report.stack.env_invalid));
    text.add(
        "release_mismatch",
        "gauge",
        "whether the gateway runs another image than the recorded one",
    );
    text.sample(&[], flag(report.stack.other_image.is_some()));
    text.add(
        "failing_blockers",
        "gauge",
        "failing units that keep a service from starting",
    );
    let failing = report
        .stack
        .blockers
        .iter()
        .filter(|blocker| blocker.failing);
    text.sample(&[], whole(failing.count() as u64));
    text.add(
        "operation_running",
        "gauge",
        "whether a command changes units, for less than an hour",
    );
    text.sample(&[], flag(others.changing));
    text.add(
        "operation_interrupted",
        "gauge",
        "whether a change of the deployment was interrupted and not completed",
    );
    text.sample(&[], flag(others.interrupted));
    if let Some(known) = &report.stack.vulnerabilities {
        let open: Vec<_> = known.iter().filter(|known| !known.accepted).collect();
        text.add(
            "vulnerabilities",
            "gauge",
            "known vulnerabilities of the release that are not accepted",
        );
        for exploited in [false, true] {
            let count = open
                .iter()
                .filter(|known| known.exploited == exploited)
                .count();
            text.sample(
                &[("exploited", &exploited.to_string())],
                whole(count as u64),
            );
        }
    }
    if let Some(check) = &report.stack.upgrade_check {
        text.add(
            "upgrade_available",
            "gauge",
            "whether the last check found a newer release",
        );
        text.sample(&[], flag(check.verdict == Verdict::UpgradeAvailable));
        let listed = check.listed().parse().ok();
        text.timestamp(
            "upgrade_check_timestamp_seconds",
            "when newer releases were last looked for or, if that fails, since when it does, since the epoch",
            listed,
        );
    }
    if let Some(age) = others.backup {
        text.add("backup_age_seconds", "gauge", "time since the last backup");
        text.sample(&[], whole(age.as_secs()));
    }
    text.add(
        "backup_failed",
        "gauge",
        "whether the last nightly backup failed",
    );
    text.sample(&[], flag(others.backup_failed));
    if let Some(timer) = others.backup_timer {
        text.add(
            "backup_timer_active",
            "gauge",
            "whether the timer of the nightly backup is enabled and active",
        );
        text.sample(&[], flag(timer));
    }
    if let Some(idle) = others.timers_idle {
        text.add(
            "timers_idle",
            "gauge",
            "whether the timer of the verification, of the check for newer releases, or of the replacement for memory, is not active",
        );
        text.sample(&[], flag(idle));
    }
    if let Some(verified) = &others.verification {
        text.add(
            "verification_failed",
            "gauge",
            "whether the last verification of a backup failed",
        );
        text.sample(&[], flag(verified.failed));
        text.timestamp(
            "verification_success_timestamp_seconds",
            "when the last successful verification of a backup ended, since the epoch",
            verified.succeeded,
        );
    }
    if let Some(archive) = &report.stack.archive {
        // Not while the first one is being made. One that is made again and again is no excuse.
        let is_overdue = archive.base_age.is_some_and(|age| age > backup::OLD);
        if archive.recoverable || !others.base_in_the_making || is_overdue {
            text.add(
                "archive_recoverable",
                "gauge",
                "whether there is a base backup for the archive of the write-ahead log",
            );
            text.sample(&[], flag(archive.recoverable));
        }
        if let Some(lag) = archive.lag_seconds {
            text.add(
                "archive_lag_seconds",
                "gauge",
                "time since everything that the database wrote was archived",
            );
            text.sample(&[], whole(lag));
        }
    }
    if let Some(expiring) = others.certificate {
        text.add(
            "certificate_expiring",
            "gauge",
            "whether the certificate of the public address expires soon, has expired, or is not served",
        );
        text.sample(&[], flag(expiring));
    }
    let certificate = report.certificate.as_ref();
    text.timestamp(
        "certificate_expiry_timestamp_seconds",
        "when the certificate of the public address expires, since the epoch",
        certificate.and_then(|certificate| certificate.expires),
    );
    if let Some(size) = others.database.bytes {
        text.add(
            "database_bytes",
            "gauge",
            "size of the database at the last backup",
        );
        text.sample(&[], whole(size));
    }
    let disk = others.database.disk.as_ref();
    if let Some(days) = disk.and_then(|disk| disk.full_in_days) {
        text.add(
            "database_disk_full_seconds",
            "gauge",
            "time until the disk of the database is full at the growth of the last 14 days",
        );
        text.sample(&[], whole(days.saturating_mul(24 * 3600)));
    }
    text.add(
        "disk_free_bytes",
        "gauge",
        "free space of each file system of the deployment",
    );
    for disk in &report.stack.disks {
        text.sample(&[("path", &disk.path)], whole(disk.free_bytes));
    }
    text.text
}

/// Counts and bytes are far below the 2^53 that a float holds exactly.
#[expect(clippy::cast_precision_loss, reason = "see above")]
fn whole(number: u64) -> f64 {
    number as f64
}

/// The text format: <https://prometheus.io/docs/instrumenting/exposition_formats/>
#[derive(Default)]
struct Metrics {
    text: String,
    name: &'static str,
}

impl Metrics {
    /// The head of a metric.
    fn add(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = write!(
            self.text,
            "# HELP litellm_units_{name} {help}\n# TYPE litellm_units_{name} {kind}\n"
        );
    }

    /// A sample of the last metric.
    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                let value = value
                    .replace('\\', r"\\")
                    .replace('"', "\\\"")
                    .replace('\n', r"\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let labels = match &*labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.text, "litellm_units_{}{labels} {value}", self.name);
    }

    /// A time, if it is known.
    fn timestamp(&mut self, name: &'static str, help: &str, time: Option<jiff::Timestamp>) {
        let seconds = time.and_then(|time| u64::try_from(time.as_second()).ok());
        if let Some(seconds) = seconds {
            self.add(name, "gauge", help);
            self.sample(&[], whole(seconds));
        }
    }

    /// A metric that each service may have.
    fn of_services(
        &mut self,
        report: &StatusReport,
        name: &'static str,
        kind: &str,
        help: &str,
        value: impl Fn(&ServiceReport) -> Option<f64>,
    ) {
        self.add(name, kind, help);
        for service in &report.stack.reports {
            if let Some(value) = value(service) {
                self.sample(&[("service", service.service)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::container_state::ContainerHealth;
    use crate::host::systemd::UnitResult;
    use crate::operations::backup::wal::ArchiveReport;
    use crate::operations::database::Disk;
    use crate::operations::entrance::CertificateReport;
    use crate::operations::stack::report::Services;
    use crate::operations::stack::space::DiskReport;
    use crate::operations::upgrade::check::Recorded;
    use crate::service::Service;

    fn service(service: Service, health: Option<ContainerHealth>) -> ServiceReport {
        ServiceReport {
            service: service.name(),
            unit: service.unit(),
            active: ActiveState::Active,
            sub: "running".into(),
            result: UnitResult::Success,
            queued: false,
            health,
            uptime_seconds: Some(720),
            restarts: 3,
            memory_bytes: Some(93_323_264),
            memory_held_bytes: Some(90_000_000),
            memory_limit_bytes: (service == Service::Litellm).then_some(1 << 31),
            cpu_seconds: Some(7.44),
            image: Some("ghcr.io/berriai/litellm:v1.108.14".into()),
            digest: None,
            changed: Some(vec!["OPENAI_API_KEY changed".into()]),
        }
    }

    /// promtool checks the same file: tests/run.
    #[test]
    fn all_of_it() {
        let services = Services {
            reports: vec![
                service(Service::Redis, Some(ContainerHealth::Unhealthy)),
                service(Service::Litellm, Some(ContainerHealth::Healthy)),
            ],
            disks: vec![DiskReport {
                path: "/srv/\"quoted\"".into(),
                free_bytes: 1 << 40,
            }],
            vulnerabilities: Some(Vec::new()),
            upgrade_check: Some(Recorded {
                checked: "2026-11-29T08:00:00Z".into(),
                verdict: Verdict::Unknown,
                recommended: None,
                error: Some("no route to host".into()),
                failing_since: Some("2026-11-27T08:00:00Z".into()),
            }),
            archive: Some(ArchiveReport {
                lag_seconds: Some(14),
                url: None,
                recoverable: true,
                base_age: None,
            }),
            ..Services::default()
        };
        let report = StatusReport {
            certificate: Some(CertificateReport {
                expires: jiff::Timestamp::from_second(1_807_776_000).ok(),
                error: None,
                lifetime: Duration::from_secs(90 * 24 * 3600),
            }),
            ..services.with(GatewayHealth::Ready {
                version: Some("1.108.14".into()),
            })
        };
        let others = Others {
            now: Duration::from_secs(1_800_000_000),
            changing: true,
            interrupted: false,
            base_in_the_making: true,
            certificate: Some(false),
            backup: Some(Duration::from_secs(3600)),
            backup_failed: false,
            backup_timer: Some(true),
            timers_idle: Some(false),
            verification: Some(Verified {
                succeeded: jiff::Timestamp::from_second(1_799_900_000).ok(),
                failed: false,
            }),
            database: Forecast {
                bytes: Some(1 << 34),
                bytes_per_day: None,
                disk: Some(Disk {
                    path: "/data".into(),
                    free_bytes: 1 << 40,
                    bytes_per_day: Some(1 << 33),
                    full_in_days: Some(128),
                }),
                is_outdated: false,
            },
        };
        let text = render(&report, &others);
        assert_eq!(text, include_str!("../../tests/fixtures/metrics.prom"));
    }
}

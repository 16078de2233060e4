//! The growth of the database, the retention of request logs, and what keeps PostgreSQL from cleaning up.

use super::{Check, CheckName, CheckOutcome, Examination};
use crate::deployment::settings::{Database, Settings};
use crate::error::Result;
use crate::host::container_state::{self, ContainerHealth};
use crate::host::paths::Paths;
use crate::host::systemd::UnitState;
use crate::litellm::config::{self, StoredSettings};
use crate::operations::backup::database::APPLICATION;
use crate::operations::database::{self, DatabaseReport, Forecast, View, forecast, limit_logs};
use crate::output::{bytes, count, duration};
use crate::service::Service;

/// The disk has to last for this number of days.
const DAYS: u64 = 30;
/// Request logs without a retention that are no concern yet.
const FEW_LOGS: u64 = 10 << 30;
/// By how much LiteLLM may be late with its deletions.
const LATE_SECONDS: u64 = 2 * 24 * 3600;
/// No query of the gateway takes as long.
const LONG_TRANSACTION_SECONDS: u64 = 3600;
/// Connections for backups, the archive, migrations and tools.
const OTHER_CONNECTIONS: u64 = 10;
/// Of a small table, dead rows are no burden.
const MANY_ROWS: u64 = 100_000;

const PAGE: &str = "see docs/database.md";

/// Of the recorded sizes and the disk, as [`of_backups`] has found them; asks no server. `None` if nothing is known yet.
pub(super) fn growth(paths: &Paths, forecast: &Result<Forecast>) -> Option<Check> {
    match forecast {
        Ok(forecast) => judge_growth(paths, forecast),
        Err(error) => Some(Check::error(CheckName::Growth, error)),
    }
}

/// The size that the last backup has recorded, the growth and the disk.
pub(super) fn of_backups(paths: &Paths) -> Result<Forecast> {
    // A database that is left over beside an external one does not grow.
    let is_local = paths.quadlets.join("litellm-postgres.container").exists();
    forecast(paths, is_local, View::LastBackup)
}

fn judge_growth(paths: &Paths, forecast: &Forecast) -> Option<Check> {
    let disk = forecast.disk.as_ref()?;
    if forecast.is_outdated {
        let message = "how long the disk lasts is unknown: there is no backup of the last 14 days";
        return Some(
            Check::warning(CheckName::Growth, message).remedy("make one: `litellm-units backup`"),
        );
    }
    let per_day = |growth: i64| format!("{} a day", bytes(growth.max(0).unsigned_abs()));
    let of_disk = disk.bytes_per_day?;
    let growth = per_day(of_disk);
    let of_database = forecast.bytes_per_day.map(per_day);
    let of_database = of_database.unwrap_or("an unknown part".into());
    let place = disk.path.display();
    Some(match disk.full_in_days {
        Some(days) if days < DAYS => {
            let days = count(usize::try_from(days).unwrap_or(usize::MAX), "day");
            let message = format!(
                "the disk of {place} is full in {days} at {growth}, of which the database is {of_database}"
            );
            let is_database = { forecast.bytes_per_day }
                .is_some_and(|growth| growth.saturating_mul(2) >= of_disk);
            let retention = config::retention_of_logs(paths, StoredSettings::default());
            let logs = if is_database && retention.is_none() {
                limit_logs(paths) + "; "
            } else {
                String::new()
            };
            Check::warning(CheckName::Growth, message).remedy(format!(
                "{logs}add space, or keep fewer backups: see docs/backup.md"
            ))
        }
        Some(days) => Check::ok(
            CheckName::Growth,
            format!("the disk of {place} lasts {days} days at {growth}"),
        ),
        None => Check::ok(
            CheckName::Growth,
            format!("what is used on the disk of {place} does not grow"),
        ),
    })
}

/// Asks the server, which accepts connections.
pub(super) async fn checks(examination: &Examination<'_>) -> Vec<Check> {
    let host = examination.host;
    let Some(settings) = &examination.settings else {
        return Vec::new();
    };
    match is_reachable(examination, settings).await {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(error) => return vec![Check::error(CheckName::Vacuum, &error)],
    }
    match database::report(host, settings).await {
        Ok(report) => {
            let now = jiff::Timestamp::now().as_second();
            let local = matches!(settings.database, Database::Local { .. });
            let mut checks = vec![
                judge_logs(&host.paths, &report, now),
                judge_vacuum(&report, local),
            ];
            checks.extend(judge_collation(&report));
            checks.extend(judge_connections(&report, local));
            checks
        }
        Err(error) => {
            let error = error.context("the database could not be examined");
            let check = Check::error(CheckName::Vacuum, &error);
            vec![Check {
                outcome: CheckOutcome::Warning,
                remedy: check
                    .remedy
                    .or_else(|| Some("try again: `litellm-units db status`".into())),
                ..check
            }]
        }
    }
}

/// Whether an answer can be expected. An image that is missing is not pulled for a check.
async fn is_reachable(examination: &Examination<'_>, settings: &Settings) -> Result<bool> {
    match settings.database {
        Database::Local { .. } => {
            let hangs = |unit: &UnitState| {
                container_state::health(&examination.host.paths, &unit.control_group)
                    .is_some_and(ContainerHealth::is_bad)
            };
            Ok(examination
                .unit(Service::Postgres)
                .is_some_and(|unit| !hangs(unit)))
        }
        Database::External { .. } => {
            let image = settings.backup.postgres_image.as_str();
            Ok(examination.gateway_runs()
                && examination.host.podman().await?.has_image(image).await?)
        }
    }
}

fn judge_logs(paths: &Paths, report: &DatabaseReport, now: i64) -> Check {
    if report.tables.is_empty() {
        let message = "the size of the request logs is unknown: a table is locked, or the server was too slow";
        return Check::warning(CheckName::RequestLogs, message)
            .remedy("try again: `litellm-units db status`");
    }
    let size = report.logs().map_or(0, |table| table.bytes);
    let words = format!("the request logs take {}", bytes(size));
    let Some(period) = &report.request_logs.retention else {
        let message = format!("{words}, and are kept for ever");
        return if size > FEW_LOGS {
            Check::warning(CheckName::RequestLogs, message).remedy(limit_logs(paths))
        } else {
            Check::ok(CheckName::RequestLogs, message)
        };
    };
    let Some(seconds) = report.request_logs.retention_seconds else {
        let message = format!(
            "LiteLLM does not understand {}: {period:?}, and deletes no request log",
            config::RETENTION
        );
        return Check::warning(CheckName::RequestLogs, message)
            .remedy(format!("write it as `30d`: {PAGE}"));
    };
    let oldest = report.request_logs.oldest;
    let age = oldest.map_or(0, |at| u64::try_from(now - at).unwrap_or_default());
    if age > seconds.saturating_add(LATE_SECONDS) {
        let message = format!(
            "{words}; the oldest is {} old, and LiteLLM is to keep them for {period}",
            duration(std::time::Duration::from_secs(age))
        );
        return Check::warning(CheckName::RequestLogs, message).remedy(format!(
            "after a change of the retention, wait some days; otherwise have LiteLLM delete more than 500,000 logs a run or a day, its defaults: `{}: 1h`, a higher `{}` and `{}`: {PAGE}",
            config::RETENTION_INTERVAL,
            config::RETENTION_BATCHES,
            config::RETENTION_BUDGET,
        ));
    }
    Check::ok(
        CheckName::RequestLogs,
        format!("{words}, and are kept for {period}"),
    )
}

fn judge_vacuum(report: &DatabaseReport, local: bool) -> Check {
    // A backup ends by itself.
    let long = report.longest_transaction.as_ref().filter(|session| {
        session.seconds > LONG_TRANSACTION_SECONDS && !session.application.starts_with(APPLICATION)
    });
    if let Some(session) = long {
        let message = format!(
            "a transaction is {} old (process {}{}), and dead rows can't be removed meanwhile",
            duration(std::time::Duration::from_secs(session.seconds)),
            session.pid,
            match &*session.application {
                "" => String::new(),
                name => format!(", {name}"),
            }
        );
        let end = run_sql(
            &format!("SELECT pg_terminate_backend({})", session.pid),
            local,
        );
        return Check::warning(CheckName::Vacuum, message).remedy(format!(
            "unless it is a dump, a migration or the rebuild of an index, end it: {end}"
        ));
    }
    let is_burdened = |table: &&database::Table| table.dead_rows > table.rows.max(MANY_ROWS);
    if let Some(table) = report.tables.iter().find(is_burdened) {
        let message = format!(
            "{} has {} dead rows and {} live ones",
            table.name, table.dead_rows, table.rows
        );
        return Check::warning(CheckName::Vacuum, message)
            .remedy(format!("vacuum it while the gateway serves: {PAGE}"));
    }
    if !report.invalid_indexes.is_empty() {
        let message = format!(
            "an index was not built completely: {}",
            report.invalid_indexes.join(", ")
        );
        return Check::warning(CheckName::Vacuum, message)
            .remedy(format!("remove or rebuild it: {PAGE}"));
    }
    Check::ok(
        CheckName::Vacuum,
        "no old transaction of a session holds back vacuum",
    )
}

/// How to run a statement without an apostrophe, as the superuser of a local server.
fn run_sql(sql: &str, local: bool) -> String {
    if local {
        format!(
            r#"`litellm-units exec -T postgres -- sh -c 'psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "{sql}"'`"#
        )
    } else {
        format!("`{sql}` in psql on that server")
    }
}

/// Whether the server takes the connections that the gateways of this host may open. `None` if the configuration can't be read.
fn judge_connections(report: &DatabaseReport, local: bool) -> Option<Check> {
    let maximum = report.connections.maximum;
    let needed = u64::try_from(report.connections.needed?).ok()?;
    let words = format!(
        "the gateways of this host may open {needed} connections with those of the standby, and PostgreSQL takes {maximum} (max_connections)"
    );
    let wanted = needed.saturating_add(OTHER_CONNECTIONS);
    // A pooler may be before an external one, whose limit is then another.
    if wanted <= maximum || !local {
        return Some(Check::ok(CheckName::Connections, words));
    }
    let raise = format!(
        "ALTER SYSTEM SET max_connections = {}",
        wanted.next_multiple_of(50)
    );
    let message = format!("{words}, of which backups and tools need {OTHER_CONNECTIONS}");
    Some(Check::warning(CheckName::Connections, message).remedy(format!(
        "lower database_connection_pool_limit in general_settings, LITELLM_REPLICAS or NUM_WORKERS; or raise the limit: {}, then `litellm-units restart postgres`",
        run_sql(&raise, true)
    )))
}

/// A newer image may have a C library that sorts text differently than the indexes.
fn judge_collation(report: &DatabaseReport) -> Option<Check> {
    let (recorded, actual) = report.collation.as_ref()?;
    let message = format!(
        "the indexes were sorted by version {recorded} of the collation, and PostgreSQL has {actual}: what is in a text index may not be found"
    );
    Some(Check::warning(CheckName::Collation, message).remedy(format!(
        "rebuild the indexes, then record the version: `REINDEX DATABASE CONCURRENTLY`, `ALTER DATABASE … REFRESH COLLATION VERSION`: {PAGE}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Scope;
    use crate::operations::database::{Connections, Disk, RequestLogs, Session, Table};

    const NOW: i64 = 1_795_000_000;
    const DAY: i64 = 24 * 3600;

    fn report(retention: Option<&str>, oldest: i64, bytes: u64) -> DatabaseReport {
        DatabaseReport {
            schema: 1,
            database: "litellm".into(),
            server_version: "17.7".into(),
            bytes,
            bytes_per_day: None,
            disk: None,
            request_logs: RequestLogs {
                oldest: Some(NOW - oldest),
                retention: retention.map(str::to_owned),
                retention_seconds: (retention == Some("30d")).then_some(30 * 24 * 3600),
            },
            tables: vec![Table {
                name: database::REQUEST_LOGS.into(),
                bytes,
                index_bytes: 0,
                rows: 200_000,
                dead_rows: 150_000,
                vacuumed: None,
            }],
            connections: Connections {
                used: 1,
                maximum: 100,
                needed: None,
            },
            longest_query: None,
            longest_transaction: None,
            invalid_indexes: Vec::new(),
            collation: None,
        }
    }

    fn words(check: Check) -> (CheckOutcome, String) {
        (check.outcome, check.message)
    }

    #[test]
    fn connections() {
        let judged = |needed, maximum, local| {
            let mut report = report(None, DAY, 0);
            report.connections.needed = needed;
            report.connections.maximum = maximum;
            judge_connections(&report, local).map(|check| (check.message, check.remedy))
        };
        assert_eq!(judged(None, 100, true), None);
        let words = |needed, maximum| {
            format!(
                "the gateways of this host may open {needed} connections with those of the standby, and PostgreSQL takes {maximum} (max_connections)"
            )
        };
        assert_eq!(judged(Some(90), 100, true), Some((words(90, 100), None)));
        let too_many = words(100, 100) + ", of which backups and tools need 10";
        let lower = "lower database_connection_pool_limit in general_settings, LITELLM_REPLICAS or NUM_WORKERS; or raise the limit: ";
        let raise = "ALTER SYSTEM SET max_connections = 150";
        assert_eq!(
            judged(Some(100), 100, true),
            Some((
                too_many,
                Some(format!(
                    r#"{lower}`litellm-units exec -T postgres -- sh -c 'psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "{raise}"'`, then `litellm-units restart postgres`"#
                ))
            ))
        );
        assert_eq!(judged(Some(100), 100, false), Some((words(100, 100), None)));
    }

    #[test]
    fn request_logs() {
        let paths = Paths::elsewhere(Scope::System);
        let judged = |retention, oldest, bytes| {
            words(judge_logs(&paths, &report(retention, oldest, bytes), NOW))
        };
        let ok = |text: &str| (CheckOutcome::Ok, text.to_owned());
        let warning = |text: &str| (CheckOutcome::Warning, text.to_owned());
        assert_eq!(
            judged(None, 99 * DAY, 1 << 30),
            ok("the request logs take 1.0 GiB, and are kept for ever")
        );
        assert_eq!(
            judged(None, 9 * DAY, 11 << 30),
            warning("the request logs take 11 GiB, and are kept for ever")
        );
        assert_eq!(
            judged(Some("30d"), 31 * DAY, 11 << 30),
            ok("the request logs take 11 GiB, and are kept for 30d")
        );
        assert_eq!(
            judged(Some("30d"), 33 * DAY, 11 << 30),
            warning(
                "the request logs take 11 GiB; the oldest is 33 d old, and LiteLLM is to keep them for 30d"
            )
        );
        assert_eq!(
            judged(Some("30 days"), DAY, 1 << 30),
            warning(
                "LiteLLM does not understand maximum_spend_logs_retention_period: \"30 days\", and deletes no request log"
            )
        );
    }

    #[test]
    fn tables_that_were_not_examined() {
        let mut report = report(None, 0, 1 << 30);
        report.tables.clear();
        let paths = Paths::elsewhere(Scope::System);
        assert_eq!(
            words(judge_logs(&paths, &report, NOW)),
            (
                CheckOutcome::Warning,
                "the size of the request logs is unknown: a table is locked, or the server was too slow".into()
            )
        );
    }

    #[test]
    fn what_blocks_vacuum() {
        let mut report = report(None, 0, 1 << 30);
        let judge_vacuum = |report: &DatabaseReport| judge_vacuum(report, true);
        assert_eq!(judge_vacuum(&report).outcome, CheckOutcome::Ok);
        report.invalid_indexes = vec!["\"i\"".into()];
        assert_eq!(
            judge_vacuum(&report).message,
            "an index was not built completely: \"i\""
        );
        report.tables[0].dead_rows = 200_001;
        assert_eq!(
            words(judge_vacuum(&report)),
            (
                CheckOutcome::Warning,
                "LiteLLM_SpendLogs has 200001 dead rows and 200000 live ones".into()
            )
        );
        let session = |seconds| Session {
            pid: 71,
            user: None,
            application: "psql".into(),
            seconds,
        };
        report.longest_transaction = Some(session(7200));
        assert_eq!(
            judge_vacuum(&report).message,
            "a transaction is 2 h old (process 71, psql), and dead rows can't be removed meanwhile"
        );
        let remedy = |local| super::judge_vacuum(&report, local).remedy.unwrap();
        assert!(remedy(true).ends_with(
            r#"end it: `litellm-units exec -T postgres -- sh -c 'psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "SELECT pg_terminate_backend(71)"'`"#
        ));
        assert!(
            remedy(false)
                .ends_with("end it: `SELECT pg_terminate_backend(71)` in psql on that server")
        );
        report.tables[0].dead_rows = 0;
        report.invalid_indexes.clear();
        report.longest_transaction = Some(session(3600));
        assert_eq!(judge_vacuum(&report).outcome, CheckOutcome::Ok);
        report.longest_transaction = Some(Session {
            application: APPLICATION.into(),
            ..session(7200)
        });
        assert_eq!(judge_vacuum(&report).outcome, CheckOutcome::Ok);
    }

    #[test]
    fn a_disk_that_fills_up() {
        let paths = Paths::elsewhere(Scope::System);
        let forecast = |bytes_per_day, full_in_days| Forecast {
            bytes: None,
            bytes_per_day: Some(1 << 30),
            disk: Some(Disk {
                path: "/data".into(),
                free_bytes: 1 << 40,
                bytes_per_day,
                full_in_days,
            }),
            is_outdated: false,
        };
        let judged = |bytes_per_day, full_in_days| {
            judge_growth(&paths, &forecast(bytes_per_day, full_in_days)).map(words)
        };
        let remedy = |bytes_per_day| {
            let check = judge_growth(&paths, &forecast(Some(bytes_per_day), Some(3)));
            check.unwrap().remedy.unwrap()
        };
        // Request logs are deleted for good: only if the database is what grows.
        assert_eq!(
            remedy(3 << 30),
            "add space, or keep fewer backups: see docs/backup.md"
        );
        assert!(remedy(2 << 30).starts_with("to keep the request logs of 30 days, add "));
        let outdated = Forecast {
            is_outdated: true,
            ..forecast(None, None)
        };
        assert_eq!(
            judge_growth(&paths, &outdated).map(words),
            Some((
                CheckOutcome::Warning,
                "how long the disk lasts is unknown: there is no backup of the last 14 days".into()
            ))
        );
        assert_eq!(judged(None, None), None);
        assert_eq!(
            judged(Some(3 << 30), Some(29)),
            Some((
                CheckOutcome::Warning,
                "the disk of /data is full in 29 days at 3.0 GiB a day, of which the database is 1.0 GiB a day".into()
            ))
        );
        assert_eq!(
            judged(Some(3 << 30), Some(30)),
            Some((
                CheckOutcome::Ok,
                "the disk of /data lasts 30 days at 3.0 GiB a day".into()
            ))
        );
        assert_eq!(
            judged(Some(0), None),
            Some((
                CheckOutcome::Ok,
                "what is used on the disk of /data does not grow".into()
            ))
        );
    }
}

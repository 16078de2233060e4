//! `db`: the size of the database, and what keeps PostgreSQL from cleaning up.

use std::time::Duration;

use crate::cli::db::Db;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::database::{self, DatabaseReport, Disk, Session};
use crate::output::{self, bytes, duration, say, wrapped};

pub(crate) async fn run(host: &Host, verb: &Db) -> Result<Exit> {
    let Db::Status(arguments) = verb;
    let settings = Settings::load(&host.paths.env_file())?;
    let report = database::report(host, &settings).await?;
    if arguments.json {
        output::json(&report)?;
        return Ok(Exit::Success);
    }
    let now = jiff::Timestamp::now().as_second();
    output::text(&text(&report, now))?;
    if report.request_logs.retention_seconds.is_none() {
        say(&wrapped(&database::limit_logs(&host.paths), 80, 0));
    }
    Ok(Exit::Success)
}

/// The facts, a line each, and the largest tables.
fn text(report: &DatabaseReport, now: i64) -> String {
    let version = report.server_version.split(' ').next().unwrap_or_default();
    let mut facts = vec![
        (
            "database",
            format!(
                "{}, {}, PostgreSQL {version}",
                report.database,
                bytes(report.bytes)
            ),
        ),
        ("growth", growth(report.bytes_per_day)),
    ];
    facts.extend(report.disk.as_ref().map(|found| ("disk", disk(found))));
    facts.push(("request logs", logs(report)));
    let connections = &report.connections;
    let needed = connections
        .needed
        .map(|needed| format!("; the gateway needs up to {needed}"));
    facts.push((
        "connections",
        format!(
            "{} of {}{}",
            connections.used,
            connections.maximum,
            needed.unwrap_or_default()
        ),
    ));
    facts.push(("longest query", session(report.longest_query.as_ref())));
    facts.push((
        "longest transaction",
        session(report.longest_transaction.as_ref()),
    ));
    if !report.invalid_indexes.is_empty() {
        facts.push(("invalid indexes", report.invalid_indexes.join(", ")));
    }
    let indent = "longest transaction  ".len();
    let mut text = String::new();
    for (name, words) in facts {
        text.push_str(&format!("{name:indent$}{}\n", wrapped(&words, 80, indent)));
    }
    text.push('\n');
    if report.tables.is_empty() {
        return text + "The tables are unknown: one is locked, or the server was too slow.\n";
    }
    let heading = ["TABLE", "SIZE", "INDEXES", "ROWS", "DEAD", "VACUUMED"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for table in &report.tables {
        let vacuumed = table.vacuumed.map(|at| age(now, at));
        rows.push(vec![
            table.name.clone(),
            bytes(table.bytes),
            bytes(table.index_bytes),
            table.rows.to_string(),
            table.dead_rows.to_string(),
            vacuumed.unwrap_or("-".into()),
        ]);
    }
    text + &output::columns(&rows)
}

fn growth(bytes_per_day: Option<i64>) -> String {
    match bytes_per_day {
        None => "unknown: backups of five days have to record it first".into(),
        Some(0) => "none".into(),
        Some(growth @ 1..) => format!("{} a day", bytes(growth.unsigned_abs())),
        Some(loss) => format!("shrinks by {} a day", bytes(loss.unsigned_abs())),
    }
}

fn disk(disk: &Disk) -> String {
    let free = bytes(disk.free_bytes);
    match (disk.full_in_days, disk.bytes_per_day) {
        (Some(days), Some(growth)) => format!(
            "{free} free; full in {} at {} a day",
            output::count(usize::try_from(days).unwrap_or(usize::MAX), "day"),
            bytes(growth.unsigned_abs())
        ),
        (_, Some(_)) => format!("{free} free; what is used does not grow"),
        _ => format!("{free} free"),
    }
}

fn logs(report: &DatabaseReport) -> String {
    let logs = &report.request_logs;
    let kept = match &logs.retention {
        Some(period) if logs.retention_seconds.is_some() => format!("kept for {period}"),
        Some(period) => format!("kept for ever: LiteLLM does not understand {period:?}"),
        None => "kept for ever".into(),
    };
    let oldest = logs
        .oldest
        .and_then(|at| jiff::Timestamp::from_second(at).ok());
    match oldest {
        Some(oldest) => format!("since {}, {kept}", oldest.strftime("%Y-%m-%d")),
        None => kept,
    }
}

fn session(session: Option<&Session>) -> String {
    let Some(session) = session else {
        return "none".into();
    };
    let mut words = format!(
        "{}, process {} of {}",
        duration(Duration::from_secs(session.seconds)),
        session.pid,
        session.user.as_deref().unwrap_or("an unknown role")
    );
    if !session.application.is_empty() {
        words.push_str(&format!(" ({})", session.application));
    }
    words
}

fn age(now: i64, at: i64) -> String {
    let seconds = u64::try_from(now - at).unwrap_or_default();
    duration(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::database::{Connections, RequestLogs, Table};

    fn report() -> DatabaseReport {
        let table = |name: &str, bytes| Table {
            name: name.into(),
            bytes,
            index_bytes: bytes / 10,
            rows: 123_456_789,
            dead_rows: 23_456_789,
            vacuumed: Some(1_795_000_000 - 720),
        };
        DatabaseReport {
            schema: 1,
            database: "litellm".into(),
            server_version: "17.7 (Debian 17.7-3.pgdg13+1)".into(),
            bytes: 312 << 30,
            bytes_per_day: Some(4 << 30),
            disk: Some(Disk {
                path: "/opt/litellm-server/data/postgres".into(),
                free_bytes: 90 << 30,
                bytes_per_day: Some(5 << 30),
                full_in_days: Some(18),
            }),
            request_logs: RequestLogs {
                oldest: Some(1_790_000_000),
                retention: None,
                retention_seconds: None,
            },
            tables: vec![
                table("LiteLLM_SpendLogs", 300 << 30),
                Table {
                    vacuumed: None,
                    ..table("LiteLLM_SpendLogGuardrailIndex", 9 << 30)
                },
            ],
            connections: Connections {
                used: 12,
                maximum: 200,
                needed: Some(20),
            },
            longest_query: None,
            longest_transaction: Some(Session {
                pid: 4711,
                user: Some("litellm".into()),
                application: "a client with a name that is as long as PostgreSQL lets one be"
                    .into(),
                seconds: 9000,
            }),
            invalid_indexes: vec!["\"LiteLLM_SpendLogs_startTime_idx_ccnew\"".into()],
            collation: None,
        }
    }

    #[test]
    fn fits_a_terminal() {
        let text = text(&report(), 1_795_000_000);
        assert_eq!(
            text,
            "\
database             litellm, 312 GiB, PostgreSQL 17.7
growth               4.0 GiB a day
disk                 90 GiB free; full in 18 days at 5.0 GiB a day
request logs         since 2026-09-21, kept for ever
connections          12 of 200; the gateway needs up to 20
longest query        none
longest transaction  2 h, process 4711 of litellm (a client with a name that is
                     as long as PostgreSQL lets one be)
invalid indexes      \"LiteLLM_SpendLogs_startTime_idx_ccnew\"

TABLE                           SIZE     INDEXES  ROWS       DEAD      VACUUMED
LiteLLM_SpendLogs               300 GiB  30 GiB   123456789  23456789  12 min
LiteLLM_SpendLogGuardrailIndex  9.0 GiB  921 MiB  123456789  23456789  -
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn what_is_not_known() {
        let mut report = report();
        report.bytes_per_day = None;
        report.disk = report.disk.map(|disk| Disk {
            bytes_per_day: Some(-1),
            full_in_days: None,
            ..disk
        });
        report.request_logs = RequestLogs {
            oldest: None,
            retention: Some("30 days".into()),
            retention_seconds: None,
        };
        report.tables.clear();
        report.connections.needed = None;
        let text = text(&report, 1_795_000_000);
        let lines: Vec<&str> = text.lines().skip(1).take(4).collect();
        assert_eq!(
            lines,
            [
                "growth               unknown: backups of five days have to record it first",
                "disk                 90 GiB free; what is used does not grow",
                "request logs         kept for ever: LiteLLM does not understand \"30 days\"",
                "connections          12 of 200",
            ]
        );
        assert!(
            text.ends_with(
                "\n\nThe tables are unknown: one is locked, or the server was too slow.\n"
            )
        );
        report.request_logs.retention_seconds = Some(30 * 24 * 3600);
        assert_eq!(logs(&report), "kept for 30 days");
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }
}

//! What fills the gateway's database and its disk, how fast, and what keeps PostgreSQL from cleaning up. Changes no data.

mod growth;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub(crate) use growth::{Forecast, View, forecast};

use crate::deployment::settings::Settings;
use crate::error::Result;
use crate::host::Host;
use crate::host::paths::Paths;
use crate::litellm::config::{self, StoredSettings};
use crate::operations::backup::database::{Server, literal};

/// LiteLLM's table with a row for each request.
pub(crate) const REQUEST_LOGS: &str = "LiteLLM_SpendLogs";

/// Beyond it, the server is not asked on; each statement ends by itself before.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What PostgreSQL knows without reading a table. Each line is an [`Answer`]. After the sessions, an error costs only the answer
/// of its statement: a lock on one table must not hide who holds it.
const SQL: &str = r"SET statement_timeout = '10s';
SET lock_timeout = '2s';
SELECT json_build_object('server', json_build_object(
  'version', current_setting('server_version'),
  'bytes', pg_database_size(current_database()),
  'connections', (SELECT count(*) FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend' AND datid IS NOT NULL AND pid <> pg_backend_pid()),
  'max_connections', current_setting('max_connections')::int,
  'invalid_indexes', (SELECT coalesce(json_agg(indexrelid::regclass::text ORDER BY indexrelid::regclass::text), '[]') FROM pg_index WHERE NOT indisvalid
    AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE coalesce(p.relid, indrelid) = indrelid))));
SELECT json_build_object('query', json_build_object('pid', pid, 'user', usename, 'application', application_name, 'seconds', floor(greatest(extract(epoch FROM clock_timestamp() - query_start), 0))::bigint))
FROM pg_stat_activity WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid() AND state = 'active' ORDER BY query_start LIMIT 1;
SELECT json_build_object('transaction', json_build_object('pid', pid, 'user', usename, 'application', application_name, 'seconds', floor(greatest(extract(epoch FROM clock_timestamp() - xact_start), 0))::bigint))
FROM pg_stat_activity a WHERE backend_type = 'client backend' AND datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
  AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid) ORDER BY xact_start LIMIT 1;
\set ON_ERROR_STOP off
SELECT json_build_object('collation', json_build_array(datcollversion, pg_database_collation_actual_version(oid))) FROM pg_database
WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid);
SELECT json_build_object('table', json_build_object('name', name, 'bytes', bytes, 'index_bytes', index_bytes, 'rows', rows, 'dead_rows', dead, 'vacuumed', floor(extract(epoch FROM vacuumed))::bigint))
FROM (SELECT c.relname AS name, sum(bytes) AS bytes, sum(index_bytes) AS index_bytes, sum(rows) AS rows, sum(dead) AS dead, max(vacuumed) AS vacuumed,
  row_number() OVER (ORDER BY c.relname = 'LiteLLM_SpendLogs' DESC, sum(bytes) DESC, c.relname) AS place
FROM (SELECT coalesce(pg_partition_root(t.oid), t.oid) AS root, coalesce(pg_total_relation_size(t.oid), 0) AS bytes, coalesce(pg_indexes_size(t.oid), 0) AS index_bytes,
  CASE WHEN s.n_live_tup > 0 THEN s.n_live_tup ELSE greatest(t.reltuples, 0)::bigint END AS rows, coalesce(s.n_dead_tup, 0) AS dead,
  greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed
  FROM pg_class t LEFT JOIN pg_stat_user_tables s ON s.relid = t.oid JOIN pg_namespace n ON n.oid = t.relnamespace
  WHERE t.relkind = 'r' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema') part
JOIN pg_class c ON c.oid = root GROUP BY root, c.relname) found WHERE place <= 6 OR dead > greatest(rows, 100000) ORDER BY place;
SET statement_timeout = '2s';
";

/// The time of the oldest log, where an index has it at hand, and the settings that the web interface has stored. Entries of
/// deleted logs at that end of the index, which an old transaction keeps, can make the first one slow.
fn of_litellm() -> String {
    let logs = literal(REQUEST_LOGS);
    let setting = literal(config::RETENTION);
    format!(
        r#"SELECT DISTINCT format('SELECT json_build_object(''oldest_log'', floor(extract(epoch FROM min("startTime")))::bigint) FROM %I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_index i ON i.indrelid = c.oid AND i.indisvalid
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] AND a.attname = 'startTime' WHERE c.relname = {logs} \gexec
SELECT format($$SELECT json_build_object('stored', json_build_object(
  'retention', CASE jsonb_typeof(stored -> %1$L) WHEN 'number' THEN (stored ->> %1$L) || 'd' ELSE stored ->> %1$L END,
  'store_model_in_db', coalesce(lower(stored ->> 'store_model_in_db') = 'true', false)))
  FROM (SELECT (param_value #>> '{{}}')::jsonb AS stored FROM %2$I.%3$I WHERE param_name = 'general_settings') setting$$, {setting}, schemaname, tablename)
FROM pg_tables WHERE tablename = 'LiteLLM_Config' \gexec
"#
    )
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Server(ServerState),
    Query(Session),
    Transaction(Session),
    Table(Table),
    Collation(String, String),
    OldestLog(Option<i64>),
    Stored(StoredSettings),
}

#[derive(Debug, Deserialize, PartialEq)]
struct ServerState {
    version: String,
    bytes: u64,
    connections: u64,
    max_connections: u64,
    invalid_indexes: Vec<String>,
}

/// A session at the server; its statement may hold prompts.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Session {
    pub pid: i64,
    pub user: Option<String>,
    pub application: String,
    /// Age of the query or transaction.
    pub seconds: u64,
}

/// A table; a partitioned one with all its partitions.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Table {
    pub name: String,
    /// With indexes and large values.
    pub bytes: u64,
    pub index_bytes: u64,
    /// An estimate, as that of the dead ones.
    pub rows: u64,
    pub dead_rows: u64,
    /// When it was last vacuumed, in seconds since 1970.
    #[serde(serialize_with = "rfc3339")]
    pub vacuumed: Option<i64>,
}

/// `db status --json`
#[derive(Debug, Serialize)]
pub(crate) struct DatabaseReport {
    pub schema: u32,
    pub database: String,
    pub server_version: String,
    pub bytes: u64,
    /// `None` until backups of different days have recorded the size.
    pub bytes_per_day: Option<i64>,
    /// Of the local PostgreSQL.
    pub disk: Option<Disk>,
    pub request_logs: RequestLogs,
    /// None if the server did not examine them in time.
    pub tables: Vec<Table>,
    pub connections: Connections,
    pub longest_query: Option<Session>,
    /// The oldest one that keeps dead rows from being removed.
    pub longest_transaction: Option<Session>,
    /// What an interrupted `CREATE INDEX CONCURRENTLY` or `REINDEX CONCURRENTLY` has left.
    pub invalid_indexes: Vec<String>,
    /// The version of the collation that the indexes are sorted by, and the server's, if they differ. Known since PostgreSQL 15.
    #[serde(skip)]
    pub collation: Option<(String, String)>,
}

/// The disk with the data of the local PostgreSQL.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Disk {
    pub path: PathBuf,
    pub free_bytes: u64,
    /// Of everything on it, backups included.
    pub bytes_per_day: Option<i64>,
    /// `None` if it does not grow, or nothing is known.
    pub full_in_days: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct RequestLogs {
    /// When the oldest one began, in seconds since 1970.
    #[serde(serialize_with = "rfc3339")]
    pub oldest: Option<i64>,
    /// As it is set, e.g. `30d`. Without one, logs are kept for ever.
    pub retention: Option<String>,
    /// `None` as well if LiteLLM does not understand it, and so deletes nothing.
    pub retention_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Connections {
    pub used: u64,
    pub maximum: u64,
    /// How many the gateways of this host may open during a handover.
    pub needed: Option<usize>,
}

#[expect(
    clippy::ref_option,
    reason = "serde calls it with a reference to the field"
)]
fn rfc3339<S: serde::Serializer>(
    at: &Option<i64>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let at = at.and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map(|at| at.to_string()).serialize(serializer)
}

impl DatabaseReport {
    /// The table with a row for each request.
    pub(crate) fn logs(&self) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == REQUEST_LOGS)
    }
}

/// Asks the server, and the sizes that backups have recorded.
pub(crate) async fn report(host: &Host, settings: &Settings) -> Result<DatabaseReport> {
    let server = Server::new(host, settings).await?;
    let sql = SQL.to_owned() + &of_litellm();
    let text = tokio::time::timeout(TIMEOUT, server.query(&server.database, &sql))
        .await
        .map_err(|_| {
            let seconds = TIMEOUT.as_secs();
            anyhow::anyhow!("PostgreSQL did not answer within {seconds} s")
        })??;
    let mut answers = Vec::new();
    for line in text.lines() {
        let answer: Answer = serde_json::from_str(line)
            .with_context(|| format!("unexpected answer of psql: {line:?}"))?;
        answers.push(answer);
    }
    let found = Found::of(answers);
    let state = found.server.context("psql said nothing of the server")?;
    let Forecast {
        bytes_per_day,
        disk,
        ..
    } = forecast(&host.paths, server.is_local(), View::Present)?;
    let retention = config::retention_of_logs(&host.paths, found.stored);
    Ok(DatabaseReport {
        schema: 1,
        database: server.database.clone(),
        server_version: state.version,
        bytes: state.bytes,
        bytes_per_day,
        disk,
        request_logs: RequestLogs {
            oldest: found.oldest_log,
            retention_seconds: retention.as_deref().and_then(period_seconds),
            retention,
        },
        tables: found.tables,
        connections: Connections {
            used: state.connections,
            maximum: state.max_connections,
            needed: config::connections_needed(&host.paths, settings),
        },
        longest_query: found.query,
        longest_transaction: found.transaction,
        invalid_indexes: state.invalid_indexes,
        collation: found.collation,
    })
}

#[derive(Debug, Default)]
struct Found {
    server: Option<ServerState>,
    query: Option<Session>,
    transaction: Option<Session>,
    tables: Vec<Table>,
    collation: Option<(String, String)>,
    oldest_log: Option<i64>,
    stored: StoredSettings,
}

impl Found {
    fn of(answers: Vec<Answer>) -> Self {
        let mut found = Self::default();
        for answer in answers {
            match answer {
                Answer::Server(state) => found.server = Some(state),
                Answer::Query(session) => found.query = Some(session),
                Answer::Transaction(session) => found.transaction = Some(session),
                Answer::Table(table) => found.tables.push(table),
                Answer::Collation(recorded, actual) => found.collation = Some((recorded, actual)),
                Answer::OldestLog(oldest) => found.oldest_log = oldest,
                Answer::Stored(stored) => found.stored = stored,
            }
        }
        found
    }
}

/// How to have LiteLLM delete old logs. Its own interval is a day, counted from the start of the gateway, and one run deletes
/// half a million logs at most.
pub(crate) fn limit_logs(paths: &Paths) -> String {
    format!(
        "to keep the request logs of 30 days, add `{}: 30d` and `{}: 1h` to general_settings in {}, then run `litellm-units apply`",
        config::RETENTION,
        config::RETENTION_INTERVAL,
        paths.config_file().display()
    )
}

/// A period as LiteLLM writes it, in seconds. `None` if LiteLLM does not understand it, and so deletes nothing.
fn period_seconds(text: &str) -> Option<u64> {
    let text = match &*text.trim().to_ascii_lowercase() {
        "hourly" => "1h",
        "daily" => "1d",
        "weekly" => "7d",
        "monthly" => "30d",
        _ => text,
    };
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..end].parse().ok()?;
    // What follows the unit does not count.
    let unit = match &text.as_bytes()[end..] {
        // The longest one.
        [b'm', b'o', ..] => 31 * 86_400,
        [b's', ..] => 1,
        [b'm', ..] => 60,
        [b'h', ..] => 3600,
        [b'd', ..] => 86_400,
        [b'w', ..] => 7 * 86_400,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods() {
        for (text, seconds) in [
            ("30d", Some(2_592_000)),
            ("12h", Some(43_200)),
            ("2w", Some(1_209_600)),
            ("1mo", Some(2_678_400)),
            ("90s", Some(90)),
            ("30days", Some(2_592_000)),
            (" Weekly", Some(604_800)),
            ("30 days", None),
            (" 30d", None),
            ("30", None),
            ("d", None),
            ("", None),
        ] {
            assert_eq!(period_seconds(text), seconds, "{text:?}");
        }
    }

    #[test]
    fn answers_of_psql() {
        let text = r#"{"server" : {"version" : "17.7 (Debian 17.7-3.pgdg13+1)", "bytes" : 17000000, "connections" : 12, "max_connections" : 200, "invalid_indexes" : ["\"LiteLLM_SpendLogs_x\""]}}
{"transaction" : {"pid" : 71, "user" : "litellm", "application" : "", "seconds" : 4000}}
{"table" : {"name" : "LiteLLM_SpendLogs", "bytes" : 8000, "index_bytes" : 10, "rows" : 9, "dead_rows" : 20, "vacuumed" : 1795000000}}
{"table" : {"name" : "LiteLLM_AuditLog", "bytes" : 9000, "index_bytes" : 10, "rows" : 3, "dead_rows" : 0, "vacuumed" : null}}
{"collation" : ["2.36", "2.41"]}
{"oldest_log" : null}
{"stored" : {"retention" : "7d", "store_model_in_db" : true}}"#;
        let answers = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let found = Found::of(answers.collect());
        assert_eq!(found.server.unwrap().invalid_indexes.len(), 1);
        assert_eq!(found.query, None);
        assert_eq!(found.transaction.unwrap().seconds, 4000);
        let names: Vec<_> = found.tables.iter().map(|table| &*table.name).collect();
        assert_eq!(names, ["LiteLLM_SpendLogs", "LiteLLM_AuditLog"]);
        assert_eq!(found.collation, Some(("2.36".into(), "2.41".into())));
        assert_eq!(found.oldest_log, None);
        let stored = StoredSettings {
            retention: Some("7d".into()),
            store_model_in_db: true,
        };
        assert_eq!(found.stored, stored);
    }
}

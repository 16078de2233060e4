//! The copy while the gateway serves: logical replication from the current server to the next one, which has the schema.
//!
//! Each database with tables gets a publication on the current server and a subscription on the next one. The name of every
//! replication slot ends in the identifier of the next cluster, so [`end`] finds the slots after an interruption. A slot that
//! stays keeps the write-ahead log until the disk is full.
//!
//! What takes longer with a larger database is done while the gateway serves: the copy, the statistics, and the comparison
//! of all rows, between two counts of the current server. While requests wait, only tables up to [`COUNTED`] bytes in all are
//! counted, smallest first. The server confirms that the rest of its log has arrived.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files::Space;
use crate::operations::backup::database::{NO_TIMEOUTS, OWN, Server, literal};
use crate::operations::backup::manifest::Contents;
use crate::operations::backup::wal;
use crate::operations::stack;
use crate::output::{Meter, bytes, duration};
use crate::quadlet::NEXT_SERVER;
use crate::random::hex;

/// The publications and subscriptions.
const NAME: &str = "litellm_units_upgrade";
/// Each takes three of PostgreSQL's four workers at most, for a moment.
const DATABASES: usize = 3;
/// How long a copy may make no progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(600);
/// Intervals between two looks at the copy, and at the last of the log.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const CONFIRM_INTERVAL: Duration = Duration::from_millis(50);
/// How many bytes of tables are counted while requests wait.
const COUNTED: u64 = 128 << 20;
/// How often rows are compared while they change.
const COMPARISONS: usize = 10;

/// Writes the password for the connections that the next server opens, into the memory of its container.
const WRITE_PASSWORD: &str = r#"umask 077
printf '*:*:*:*:%s\n' "$(printf %s "$POSTGRES_PASSWORD" | sed 's/[\\:]/\\&/g')" >/run/postgresql/litellm-units.pass"#;

/// Prints the number of tables and the first obstacle.
fn obstacles() -> String {
    format!(
        r"SELECT json_build_array((SELECT count(*) FROM ({OWN}) own WHERE relkind = 'r'), (SELECT reason FROM (
SELECT 1 AS place, 'the current server is older than PostgreSQL 15' AS reason WHERE current_setting('server_version_num')::int < 150000
UNION ALL SELECT 2, 'the current server has wal_level = ' || current_setting('wal_level') WHERE current_setting('wal_level') <> 'logical'
UNION ALL SELECT 3, format('table %s.%s is not logged', nspname, relname) FROM ({OWN}) own WHERE relkind = 'r' AND (SELECT relpersistence FROM pg_class WHERE oid = own.oid) <> 'p'
UNION ALL SELECT 4, format('table %s.%s has no primary key and no other replica identity', nspname, relname) FROM ({OWN}) own JOIN pg_class c USING (oid, relkind, relname)
WHERE relkind = 'r' AND relreplident <> 'f' AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = oid AND indisvalid AND indimmediate AND CASE relreplident WHEN 'd' THEN indisprimary WHEN 'i' THEN indisreplident END)
UNION ALL SELECT 5, format('materialized view %s.%s has rows', nspname, relname) FROM ({OWN}) own WHERE relkind = 'm' AND (SELECT relispopulated FROM pg_class WHERE oid = own.oid)
UNION ALL SELECT 6, format('extension %s has rows of its own', extname) FROM pg_extension WHERE extconfig IS NOT NULL
UNION ALL SELECT 7, format('trigger %s fires for replicated rows, too', tgname) FROM pg_trigger WHERE tgenabled IN ('A', 'R')
UNION ALL SELECT 8, format('database %s has large objects', current_database()) WHERE EXISTS (SELECT FROM pg_largeobject_metadata)
) found ORDER BY place, reason LIMIT 1));
"
    )
}

/// The databases of the current server that have tables, or why they can't be copied while the gateway serves.
pub(super) async fn examine(server: &Server<'_>) -> Result<Result<Vec<String>, String>> {
    let mut names = Vec::new();
    for (name, _) in server.databases().await? {
        let (tables, obstacle): (u64, Option<String>) = ask(server, &name, &obstacles()).await?;
        if let Some(obstacle) = obstacle {
            return Ok(Err(obstacle));
        }
        if tables > 0 {
            names.push(name);
        }
    }
    Ok(if names.len() > DATABASES {
        Err(format!("more than {DATABASES} databases have tables"))
    } else {
        Ok(names)
    })
}

/// A hash of all but the rows, which alone are replicated: roles, databases with their properties, and schemas.
pub(super) async fn definitions(server: &Server<'_>) -> Result<String> {
    let databases = server.databases().await?;
    let words = [
        "pg_dump",
        "--schema-only",
        "--create",
        "--no-publications",
        "--lock-wait-timeout=60s",
        "--no-password",
    ];
    let dumps = databases
        .iter()
        .map(|(name, _)| server.run(name, &words, ""));
    let roles = ["pg_dumpall", "--roles-only", "--no-password"];
    let roles = server.run(server.maintenance(), &roles, "");
    let (dumps, roles) = tokio::try_join!(try_join_all(dumps), roles)?;
    let mut hash = Sha256::new();
    for text in dumps.iter().chain([&roles]) {
        // `\restrict` and `\unrestrict` have a random word.
        let is_kept = |line: &&[u8]| !line.starts_with(b"\\");
        for line in text.split_inclusive(|byte| *byte == b'\n').filter(is_kept) {
            hash.update(line);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// What tells the slots of a next cluster from others.
pub(super) async fn identify(next: &Server<'_>) -> Result<String> {
    let sql = "SELECT system_identifier FROM pg_control_system();\n";
    let text = next.query(next.maintenance(), sql).await?;
    Ok(text.trim().to_owned())
}

/// Removes from the current server what a copy to the cluster `system` has made there, however far it came.
pub(super) async fn end(server: &Server<'_>, system: &str) -> Result<()> {
    let databases = server.databases().await?;
    let publications = databases.iter().map(|(name, _)| async move {
        let sql = format!(
            "SET default_transaction_read_only = off;\nDROP PUBLICATION IF EXISTS {NAME};\n"
        );
        server.query(name, &sql).await
    });
    try_join_all(publications).await?;
    let own = own_slots(system);
    let sql = format!(
        "SELECT pg_terminate_backend(active_pid, 10000) FROM {own} AND active;\nSELECT pg_drop_replication_slot(slot_name) FROM {own};\n"
    );
    server.query(server.maintenance(), &sql).await.map(drop)
}

/// The slots of the subscriptions and of the workers that copy single tables, which PostgreSQL names.
fn own_slots(system: &str) -> String {
    let end = literal(&format!(r"%\_{system}"));
    format!("pg_replication_slots WHERE slot_name LIKE {end}")
}

async fn ask<T: for<'de> Deserialize<'de>>(
    server: &Server<'_>,
    database: &str,
    sql: &str,
) -> Result<T> {
    let text = server.query(database, sql).await?;
    serde_json::from_str(&text).with_context(|| format!("unexpected answer of psql: {text:?}"))
}

/// How far the subscription of a database is.
#[derive(Debug, Deserialize, PartialEq, Eq)]
struct Subscribed {
    /// Tables that are not copied yet, or not up to the position of the others.
    open: u64,
    /// False after an error.
    enabled: bool,
    size: u64,
}

/// A copy while the gateway serves.
pub(super) struct Replication<'a> {
    host: &'a Host,
    current: &'a Server<'a>,
    next: &'a Server<'a>,
    databases: Vec<String>,
    system: String,
    since: jiff::Timestamp,
    /// Of each database, the tables that are counted while requests wait, and all rows before that.
    counted: BTreeMap<String, (Vec<String>, Contents)>,
}

impl<'a> Replication<'a> {
    pub(super) fn new(
        host: &'a Host,
        servers: (&'a Server<'a>, &'a Server<'a>),
        databases: Vec<String>,
        system: String,
    ) -> Self {
        Self {
            host,
            current: servers.0,
            next: servers.1,
            databases,
            system,
            since: jiff::Timestamp::now(),
            counted: BTreeMap::new(),
        }
    }

    /// Copies everything and compares it. The gateway serves meanwhile.
    pub(super) async fn copy(&mut self) -> Result<()> {
        // Between two steps, nobody else would notice it.
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        self.counted = tokio::select! {
            counted = self.copied() => counted?,
            _ = interrupt.recv() => anyhow::bail!("interrupted by Ctrl-C"),
        };
        Ok(())
    }

    /// The steps of [`Replication::copy`], and what becomes `counted`.
    async fn copied(&self) -> Result<BTreeMap<String, (Vec<String>, Contents)>> {
        self.subscribe().await?;
        fail::fail_point!("postgres-subscribed");
        self.follow().await?;
        self.host.progress.say("comparing the rows");
        let vacuum = format!("{NO_TIMEOUTS}VACUUM (ANALYZE);\n");
        for name in &self.databases {
            self.next.query(name, &vacuum).await?;
        }
        let mut counted = BTreeMap::new();
        for name in &self.databases {
            let tables = self.small_tables(name).await?;
            counted.insert(name.clone(), (tables, self.compare(name).await?));
        }
        // The servers then stop at once.
        for server in [self.next, self.current] {
            let checkpoint = format!("{NO_TIMEOUTS}CHECKPOINT;\n");
            server.query(server.maintenance(), &checkpoint).await?;
        }
        self.confirm(STALL_TIMEOUT).await?;
        fail::fail_point!("postgres-replicated", |_| anyhow::bail!("a test says so"));
        Ok(counted)
    }

    async fn subscribe(&self) -> Result<()> {
        let next = self.next;
        let script = ["sh", "-c", WRITE_PASSWORD];
        next.run(next.maintenance(), &script, "").await?;
        let sql =
            "SELECT json_build_array(current_user, current_setting('server_version_num')::int);\n";
        let (user, version): (String, u32) =
            ask(self.current, self.current.maintenance(), sql).await?;
        for (number, name) in self.databases.iter().enumerate() {
            // Named, since a table that is created meanwhile may have no key, and would refuse updates.
            let publication = format!(
                "SET lock_timeout = '60s';\nSELECT 'CREATE PUBLICATION {NAME} FOR TABLE ' || string_agg(format('%I.%I', nspname, relname), ', ') FROM ({OWN}) own WHERE relkind = 'r' \\gexec\n"
            );
            self.current.query(name, &publication).await?;
            let connection = format!(
                "host=postgres passfile=/run/postgresql/litellm-units.pass user={} dbname={} options={}",
                connection_value(&user),
                connection_value(name),
                connection_value(&without_timeouts(version))
            );
            let subscription = format!(
                "{NO_TIMEOUTS}CREATE SUBSCRIPTION {NAME} CONNECTION {} PUBLICATION {NAME} WITH (slot_name = 'litellm_units_{number}_{}', disable_on_error = true);\n",
                literal(&connection),
                self.system
            );
            tokio::time::timeout(STALL_TIMEOUT, next.query(name, &subscription))
                .await
                .map_err(|_| {
                    anyhow::anyhow!(
                        "the current server made no replication slot within {}: a transaction does not end",
                        duration(STALL_TIMEOUT)
                    )
                })??;
        }
        Ok(())
    }

    /// Waits until every table is copied.
    async fn follow(&self) -> Result<()> {
        let total = self.current.databases().await?;
        let total = total.iter().map(|(_, size)| size).sum();
        self.host.progress.say(&format!(
            "copying the database ({}) while the gateway serves",
            bytes(total)
        ));
        let meter = Meter::new("copied", total, &self.host.progress);
        let followed = self.follow_by(&meter).await;
        meter.clear();
        followed
    }

    /// How far the subscriptions are.
    async fn states(&self) -> Result<Vec<Subscribed>> {
        let sql = format!(
            "SELECT json_build_object('open', (SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'), 'enabled', subenabled, 'size', pg_database_size(subdbid)) FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE subname = '{NAME}' AND datname = current_database();\n"
        );
        let states = self.databases.iter();
        let states = states.map(|name| ask::<Subscribed>(self.next, name, &sql));
        let states = try_join_all(states).await?;
        if states.iter().any(|state| !state.enabled) {
            return Err(self.failed("can't copy the database").await);
        }
        Ok(states)
    }

    async fn follow_by(&self, meter: &Meter) -> Result<()> {
        let mut last = Vec::new();
        let mut changed = Instant::now();
        loop {
            let states = self.states().await?;
            if states.iter().all(|state| state.open == 0) {
                return Ok(());
            }
            let server = self.current;
            let removed = format!(
                "SELECT json_build_array(coalesce(bool_or(wal_status = 'lost'), false), current_setting('max_slot_wal_keep_size')) FROM {};\n",
                own_slots(&self.system)
            );
            let (removed, limit): (bool, String) =
                ask(server, server.maintenance(), &removed).await?;
            if removed {
                return Err(Failure::new(format!(
                    "the current server has removed a part of the write-ahead log that the copy needs, since it keeps {limit} of it (max_slot_wal_keep_size)"
                ))
                .hint("raise max_slot_wal_keep_size by ALTER SYSTEM, call pg_reload_conf(), then run the same command again")
                .into());
            }
            let size: u64 = states.iter().map(|state| state.size).sum();
            meter.add(size.saturating_sub(meter.done()));
            if states != last {
                last = states;
                changed = Instant::now();
            } else if changed.elapsed() > STALL_TIMEOUT {
                let problem = format!("has copied nothing for {}", duration(STALL_TIMEOUT));
                return Err(self.failed(&problem).await);
            }
            let data = self.host.paths.postgres_data();
            let Space { free, size } = Space::of(&data)?;
            anyhow::ensure!(
                free >= wal::left_free(size),
                "the disk of {} has only {} of free space left",
                data.display(),
                bytes(free)
            );
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn failed(&self, problem: &str) -> anyhow::Error {
        match self.host.systemd().await {
            Ok(systemd) => {
                let unit = format!("{NEXT_SERVER}.service");
                stack::failed(systemd, &unit, problem, self.since).await
            }
            Err(error) => error,
        }
    }

    /// The smallest tables of a database, up to [`COUNTED`] bytes.
    async fn small_tables(&self, database: &str) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT coalesce(json_agg(name), '[]') FROM (SELECT nspname || '.' || relname AS name, sum(pg_table_size(oid)) OVER (ORDER BY pg_table_size(oid), oid) AS sum FROM ({OWN}) own WHERE relkind = 'r') sized WHERE sum <= {COUNTED};\n"
        );
        ask(self.current, database, &sql).await
    }

    /// Compares all rows with two counts of the current server, while they change.
    async fn compare(&self, database: &str) -> Result<Contents> {
        let mut differences = Vec::new();
        for _ in 0..COMPARISONS {
            let before = self.current.contents(database).await?;
            self.confirm(STALL_TIMEOUT).await?;
            let found = self.next.contents(database).await?;
            let after = self.current.contents(database).await?;
            differences = outside(&before, &found, &after);
            if differences.is_empty() {
                return Ok(found);
            }
        }
        Err(differ(database, &differences))
    }

    /// Waits until the next server has everything that the current one has written so far.
    async fn confirm(&self, timeout: Duration) -> Result<()> {
        let server = self.current;
        // It is written, so all before it is.
        let position = "SET default_transaction_read_only = off;\nSET synchronous_commit = on;\nSELECT pg_logical_emit_message(true, 'litellm-units', '') \\g /dev/null\nSELECT pg_current_wal_flush_lsn();\n";
        let position = server.query(server.maintenance(), position).await?;
        let confirmed = format!(
            "SELECT json_build_array(count(*) FILTER (WHERE confirmed_flush_lsn >= {}), coalesce(bool_or(wal_status = 'lost'), false)) FROM {};\n",
            literal(position.trim()),
            own_slots(&self.system)
        );
        let deadline = Instant::now() + timeout;
        loop {
            let (count, lost): (usize, bool) =
                ask(server, server.maintenance(), &confirmed).await?;
            if count == self.databases.len() {
                return Ok(());
            }
            if lost || Instant::now() >= deadline {
                let problem = format!(
                    "did not confirm position {} of the write-ahead log within {}",
                    position.trim(),
                    duration(timeout)
                );
                return Err(self.failed(&problem).await);
            }
            self.states().await?;
            tokio::time::sleep(CONFIRM_INTERVAL).await;
        }
    }

    /// Finishes the copy while requests wait and nobody writes. Returns the rows of the gateway's database, and the tables
    /// that were counted last.
    pub(super) async fn complete(
        self,
        timeout: Duration,
    ) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
        self.confirm(timeout).await?;
        let all = self.current.databases().await?;
        let sequences = all.iter().map(|(name, _)| self.set_sequences(name));
        let last = self.databases.iter().map(|name| self.complete_one(name));
        let (_, last) = tokio::try_join!(try_join_all(sequences), try_join_all(last))?;
        end(self.current, &self.system).await?;
        let mut counted = self.counted;
        let (tables, mut contents) = counted.remove(&self.current.database).unwrap_or_default();
        for found in last {
            if found.name == self.current.database {
                contents.rows.extend(found.rows);
            }
        }
        Ok((contents.rows, tables))
    }

    /// The values of sequences are not replicated.
    async fn set_sequences(&self, database: &str) -> Result<()> {
        // pg_dump does the same.
        let sequences = format!(
            "SELECT format('SELECT format(''SELECT setval(%%L, %%s, %%L);'', %L, last_value, is_called) FROM %s', name, name) FROM (SELECT format('%I.%I', nspname, relname) AS name FROM ({OWN}) own WHERE relkind = 'S') sequences \\gexec\n"
        );
        let sequences = self.current.query(database, &sequences).await?;
        if sequences.is_empty() {
            return Ok(());
        }
        self.next.query(database, &sequences).await.map(drop)
    }

    async fn complete_one(&self, database: &str) -> Result<Contents> {
        let end = format!("DROP SUBSCRIPTION {NAME};\n");
        self.next.query(database, &end).await?;
        let tables = self.counted.get(database).map(|(tables, _)| &tables[..]);
        let tables = tables.unwrap_or_default();
        let (wanted, found) = tokio::try_join!(
            self.current.contents_of(database, tables),
            self.next.contents_of(database, tables)
        )?;
        let differences = wanted.differences(&found);
        if differences.is_empty() {
            return Ok(found);
        }
        Err(differ(database, &differences))
    }
}

/// The differences of `found`, which was counted between the two others, as text.
fn outside(before: &Contents, found: &Contents, after: &Contents) -> Vec<String> {
    let mut wanted = after.clone();
    for (table, count) in &mut wanted.rows {
        if let (Some(first), Some(found)) = (before.rows.get(table), found.rows.get(table)) {
            *count = (*found).clamp((*first).min(*count), (*first).max(*count));
        }
    }
    wanted.differences(found)
}

fn differ(database: &str, differences: &[String]) -> anyhow::Error {
    Failure::new(format!(
        "the copy of database {database} differs from the original:\n  {}",
        differences.join("\n  ")
    ))
    .into()
}

/// Lifts what a role or a database of the current server may have set, for the connections that copy. While a table is
/// copied, nothing confirms that the others are alive.
fn without_timeouts(version: u32) -> String {
    let mut names = vec![
        "statement_timeout",
        "lock_timeout",
        "idle_in_transaction_session_timeout",
        "wal_sender_timeout",
    ];
    if version >= 170_000 {
        names.push("transaction_timeout");
    }
    let options = names.iter().map(|name| format!("-c {name}=0"));
    options.collect::<Vec<_>>().join(" ")
}

/// Quotes a value for libpq.
fn connection_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_change_are_between_two_counts() {
        let counted = |tables: &[(&str, u64)]| Contents {
            rows: tables
                .iter()
                .map(|(table, count)| ((*table).to_owned(), *count))
                .collect(),
            ..Contents::default()
        };
        let before = counted(&[("logs", 10), ("keys", 5), ("old", 1)]);
        let after = counted(&[("logs", 14), ("keys", 3), ("new", 1)]);
        let differences = |tables| outside(&before, &counted(tables), &after);
        assert_eq!(
            differences(&[("logs", 12), ("keys", 4), ("new", 1)]),
            [""; 0]
        );
        assert_eq!(
            differences(&[("logs", 9), ("keys", 6), ("old", 1)]),
            [
                "6 rows in keys instead of 5",
                "9 rows in logs instead of 10",
                "none rows in new instead of 1",
                "1 rows in old instead of none",
            ]
        );
    }

    #[test]
    fn values_for_libpq() {
        assert_eq!(connection_value(r"a b'c\d"), r"'a b\'c\\d'");
    }

    #[test]
    fn slots_of_one_cluster_only() {
        assert_eq!(
            own_slots("7123"),
            r"pg_replication_slots WHERE slot_name LIKE '%\_7123'"
        );
    }
}

//! What the server says about its log, and how much of it the server keeps for the archive.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::directory;
use super::piece::format_position;
use super::progress::{Copied, Progress};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files::{self, Space};
use crate::host::paths::Paths;
use crate::operations::backup::database::Server;
use crate::output::{bytes, duration};

/// The replication slot.
const SLOT: &str = "litellm_units_archive";
/// How much of the log the server keeps for an archive that has stopped, in MB, and as PostgreSQL writes it.
pub(crate) const KEPT: u64 = 4096;
pub(crate) const LIMIT: &str = "4096MB";
/// The archive leaves this much of its disk free.
const FREE: u64 = 1 << 30;
/// How long the server may take to answer, and to begin anew after a checkpoint.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(600);

/// What the server says about its log.
#[derive(Debug, Deserialize)]
pub(super) struct Position {
    pub(super) system: String,
    pub(super) timeline: u32,
    pub(super) segment: u64,
    pub(super) flushed: u64,
    pub(super) version: String,
    /// Whether the slot still has everything; `None` if there is no slot.
    pub(super) slot: Option<bool>,
    /// How much of the log slots keep, in MB; -1 for all of it.
    pub(super) kept: i64,
    /// The size of all databases.
    pub(super) size: u64,
}

const POSITION: &str = "SELECT json_build_object(
'system', (SELECT system_identifier::text FROM pg_control_system()),
'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
'segment', (SELECT bytes_per_wal_segment FROM pg_control_init()),
'flushed', pg_current_wal_flush_lsn() - '0/0'::pg_lsn,
'version', current_setting('server_version'),
'size', (SELECT sum(pg_database_size(oid)) FROM pg_database WHERE datallowconn),
'kept', (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'),
'slot', (SELECT wal_status <> 'lost' FROM pg_replication_slots WHERE slot_name = 'litellm_units_archive'));
";

/// Asks the server, which must answer in time: a run that waits for ever archives nothing.
async fn ask(server: &Server<'_>, sql: &str, timeout: Duration) -> Result<String> {
    let answer = server.query(server.maintenance(), sql);
    tokio::time::timeout(timeout, answer)
        .await
        .map_err(|_| anyhow::anyhow!("PostgreSQL did not answer within {}", duration(timeout)))?
}

pub(super) async fn position(server: &Server<'_>) -> Result<Position> {
    let text = ask(server, POSITION, ANSWER_TIMEOUT).await?;
    let flat = text.replace('\n', "");
    serde_json::from_str(&flat).with_context(|| format!("unexpected answer of psql: {flat:?}"))
}

/// Lets the server keep its log from now on, until it is archived or the limit is reached.
///
/// # Errors
/// When a disk is too full for that, or with the server's words.
pub(super) async fn make_slot(host: &Host, server: &Server<'_>, kept: i64) -> Result<()> {
    // What the server keeps must not fill its disk, whatever becomes of the archive.
    let kept = u64::try_from(kept).unwrap_or(KEPT) << 20;
    for (place, more) in [
        (host.paths.postgres_data(), kept),
        (directory(&host.paths), 0),
    ] {
        let Space { free, size } = Space::of(&place)?;
        let needed = more.saturating_add(left_free(size));
        if free < needed {
            return Err(Failure::new(format!(
                "the disk of {} has {} of free space, and the archive of the write-ahead log begins when it has {}",
                place.display(),
                bytes(free),
                bytes(needed)
            ))
            .hint("free some space; the archive then begins by itself")
            .into());
        }
    }
    // As PostgreSQL comes, it would keep everything, and stop when its disk is full.
    let script = format!(
        "SELECT 'ALTER SYSTEM SET max_slot_wal_keep_size = ''{LIMIT}''' WHERE current_setting('max_slot_wal_keep_size') = '-1' \\gexec
SELECT pg_reload_conf() \\g /dev/null
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}' \\g /dev/null
SELECT pg_create_physical_replication_slot('{SLOT}', true) \\g /dev/null
"
    );
    ask(server, &script, ANSWER_TIMEOUT).await.map(drop)
}

/// How much of a disk of `size` bytes the archive leaves free.
pub(crate) fn left_free(size: u64) -> u64 {
    FREE.min(size / 20)
}

/// The disk of the archive or of the server that is nearly full, and its free space.
fn full_disk(paths: &Paths) -> Result<Option<(PathBuf, u64)>> {
    for directory in [directory(paths), paths.postgres_data()] {
        let Space { free, size } = Space::of(&directory)?;
        if free < left_free(size) {
            return Ok(Some((directory, free)));
        }
    }
    Ok(None)
}

/// Ends the archive while a disk is nearly full: the rest of it is for the server, which would keep its log.
pub(super) async fn refuse_full_disk(host: &Host, server: &Server<'_>) -> Result<()> {
    let Some((directory, free)) = full_disk(&host.paths)? else {
        return Ok(());
    };
    drop_slot(server).await?;
    // Only a checkpoint removes the log that the slot has kept.
    ask(server, "CHECKPOINT;\n", CHECKPOINT_TIMEOUT).await?;
    Err(Failure::new(format!(
        "the disk of {} has only {} of free space, so the write-ahead log is not archived, and PostgreSQL does not keep it",
        directory.display(),
        bytes(free)
    ))
    .hint("free some space; the archive then begins anew by itself, with a base backup")
    .into())
}

async fn drop_slot(server: &Server<'_>) -> Result<()> {
    let script = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{SLOT}' \\g /dev/null
"
    );
    ask(server, &script, ANSWER_TIMEOUT).await.map(drop)
}

/// Lets the server remove its log before a position.
pub(super) async fn advance_slot(server: &Server<'_>, position: u64) -> Result<()> {
    let position = format_position(position);
    let script = format!(
        "SELECT pg_replication_slot_advance(slot_name, '{position}') FROM pg_replication_slots
WHERE slot_name = '{SLOT}' AND restart_lsn < '{position}'::pg_lsn \\g /dev/null
"
    );
    ask(server, &script, ANSWER_TIMEOUT).await.map(drop)
}

/// Ends the archive of a server whose `.env` no longer asks for it: its log would be kept for nobody.
///
/// # Errors
/// With the server's words.
pub(in crate::operations::backup) async fn end(host: &Host, server: &Server<'_>) -> Result<()> {
    // Whatever is known of the archive on this host.
    drop_slot(server).await?;
    let path = Progress::file(&host.paths);
    if !path.exists() {
        return Ok(());
    }
    let limit = format!("{}GB", KEPT / 1024);
    let script = format!(
        "SELECT 'ALTER SYSTEM RESET max_slot_wal_keep_size' WHERE current_setting('max_slot_wal_keep_size') = '{limit}' \\gexec
SELECT pg_reload_conf() \\g /dev/null
"
    );
    ask(server, &script, ANSWER_TIMEOUT).await?;
    files::remove_existing(&Copied::file(&host.paths))?;
    files::remove_existing(&path)
}

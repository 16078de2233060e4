//! The archive of the write-ahead log: base backups, and everything that the server has written since.
//!
//! PostgreSQL's own programs read the log (`pg_receivewal`) and copy the cluster (`pg_basebackup`); a replication slot
//! keeps what is not archived yet, up to a limit, so that an archive that stops can't fill the disk of the server.
//! [`archive()`] takes what was written since the last time, which `litellm-wal.service` asks for three times a minute.
//!
//! A piece is a part of one segment of the log. It is complete, compressed, encrypted and authenticated as soon as it has
//! its name, and the name says all that is needed to find it. When a segment is full, one piece replaces its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::archive::{self, Recipient};
use super::authentication::{BackupKey, Origin};
use super::database::Server;
use super::manifest::{BASE, BackupManifest, BasePoint, Contents};
use super::object_store::BackupStore;
use super::retention::{Retention, expired};
use super::{
    Backup, UNFINISHED, check_space, encryption, finish, ids_in, make_private, store_files,
};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::{BackupSettings, Settings};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files::{self, Space};
use crate::host::lock::{self, OperationLock};
use crate::host::paths::Paths;
use crate::operations::postgres;
use crate::output::{self, Meter, bytes, duration};
use crate::quadlet::WAL_SERVICE;
use crate::service::Service;

/// The directory below that of the backups, and below `BACKUP_URL`.
pub(crate) const DIRECTORY: &str = "archive";
/// The directory of the pieces, by their history.
pub(crate) const WAL: &str = "wal";
/// Names the URL that has a copy of a base backup.
const COPIED: &str = "copied";
/// The replication slot.
const SLOT: &str = "litellm_units_archive";
/// How much of the log the server keeps for an archive that has stopped, in MB, and as PostgreSQL writes it.
const KEPT: u64 = 4096;
pub(crate) const LIMIT: &str = "4096MB";
/// Any time of these days can be recovered.
const DAYS: u8 = 7;
/// A base backup that is younger is not replaced by another one.
const YOUNG: Duration = Duration::from_secs(12 * 3600);
/// One that is older is replaced by the archive, since the nightly backup has not done it.
const OLD: Duration = Duration::from_secs(36 * 3600);
/// The time between two attempts of the archive to make one.
const RETRY: Duration = Duration::from_secs(600);
/// The time between two runs while a base backup is made.
const INTERVAL: Duration = Duration::from_secs(20);
/// The archive leaves this much of its disk free.
const FREE: u64 = 1 << 30;
/// How long the server may take to answer, to begin anew after a checkpoint, and to send a segment.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(600);
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(330);
/// How long another run may take, and after how long this one says that it waits.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
const SILENCE: Duration = Duration::from_secs(3);

/// Where base backups and pieces are.
#[must_use]
pub(crate) fn directory(paths: &Paths) -> PathBuf {
    super::directory(paths).join(DIRECTORY)
}

/// Where the pieces of a history are.
#[must_use]
pub(crate) fn pieces_directory(paths: &Paths, history: &str) -> PathBuf {
    directory(paths).join(WAL).join(history)
}

/// The same, in the store.
#[must_use]
pub(crate) fn remote_directory(history: &str) -> String {
    format!("{WAL}/{history}")
}

/// One segment of the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment {
    pub timeline: u32,
    pub number: u64,
    /// In bytes.
    pub size: u64,
}

impl Segment {
    /// The one that holds a position.
    #[must_use]
    pub(crate) fn of(timeline: u32, size: u64, position: u64) -> Self {
        Self {
            timeline,
            number: position / size,
            size,
        }
    }

    /// The position of one of its bytes.
    #[must_use]
    pub(crate) fn position(&self, offset: u64) -> u64 {
        self.number * self.size + offset
    }

    /// As PostgreSQL names its file.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        let count = 0x1_0000_0000 / self.size;
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline,
            self.number / count,
            self.number % count
        )
    }
}

/// A position as PostgreSQL writes it.
#[must_use]
pub(crate) fn format_position(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

/// A part of a segment in the archive, as its file is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece {
    /// The segment's name.
    pub segment: String,
    pub start: u64,
    pub end: u64,
    /// Every transaction that was committed at this time is in the pieces up to this one.
    pub time: Timestamp,
    /// The authentication code.
    code: String,
    pub file: String,
}

impl Piece {
    const TIME: &'static str = "%Y%m%dT%H%M%SZ";

    /// Reads the name of a file.
    #[must_use]
    pub(crate) fn parse(file: &str) -> Option<Self> {
        let mut parts = file.split('.').next()?.split('-');
        let mut next = || parts.next();
        let (segment, start, end, time, code) = (next()?, next()?, next()?, next()?, next()?);
        let is_hexadecimal = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let is_valid = is_hexadecimal(segment, 24)
            && is_hexadecimal(start, 8)
            && is_hexadecimal(end, 8)
            && is_hexadecimal(code, 64)
            && time.len() == 16
            && parts.next().is_none();
        let time = jiff::civil::DateTime::strptime(Self::TIME, time).ok()?;
        let piece = Self {
            segment: segment.to_owned(),
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            time: jiff::tz::Offset::UTC.to_timestamp(time).ok()?,
            code: code.to_owned(),
            file: file.to_owned(),
        };
        (is_valid && piece.start < piece.end).then_some(piece)
    }

    /// The name without the code: what the code covers beside the content.
    fn label(segment: &str, start: u64, end: u64, time: Timestamp) -> String {
        format!(
            "{segment}-{start:08X}-{end:08X}-{}",
            time.strftime(Self::TIME)
        )
    }

    /// The text that the code covers.
    fn covered(history: &str, label: &str, sha256: &str) -> String {
        format!("{history}/{label}\n{sha256}\n")
    }

    /// The number of the segment, in the order of the log.
    #[must_use]
    pub(crate) fn number(&self, segment_size: u64) -> u64 {
        let part = |range| {
            let digits: &str = self.segment.get(range).unwrap_or_default();
            u64::from_str_radix(digits, 16).unwrap_or_default()
        };
        part(8..16) * (0x1_0000_0000 / segment_size) + part(16..24)
    }

    /// The position behind it.
    #[must_use]
    pub(crate) fn end_position(&self, segment_size: u64) -> u64 {
        self.number(segment_size) * segment_size + self.end
    }

    /// Whether this deployment has written it, as it is in `place`.
    ///
    /// # Errors
    /// When it can't be read, or the key of the deployment can't.
    pub(crate) fn is_own(&self, paths: &Paths, place: &Path, history: &str) -> Result<bool> {
        let path = place.join(&self.file);
        let sha256 =
            archive::sha256(&path).with_context(|| format!("can't read {}", path.display()))?;
        let label = Self::label(&self.segment, self.start, self.end, self.time);
        BackupKey::is_own(
            paths,
            Self::covered(history, &label, &sha256).as_bytes(),
            &self.code,
        )
    }
}

/// The pieces among some names of files, in the order of the log.
#[must_use]
pub(crate) fn pieces(files: impl IntoIterator<Item = String>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = files
        .into_iter()
        .filter_map(|file| Piece::parse(&file))
        .collect();
    pieces.sort();
    pieces
}

/// The pieces of a history on this host.
///
/// # Errors
/// When their directory can't be read.
pub(crate) fn local_pieces(paths: &Paths, history: &str) -> Result<Vec<Piece>> {
    Ok(pieces(names(&pieces_directory(paths, history))?))
}

/// The histories with pieces on this host.
///
/// # Errors
/// When their directory can't be read.
pub(crate) fn histories(paths: &Paths) -> Result<Vec<String>> {
    names(&directory(paths).join(WAL))
}

/// The base backups on this host, oldest first. One that is damaged is left out.
///
/// # Errors
/// When one can't be read: it is not damaged, and its log has to stay.
pub(crate) fn bases(paths: &Paths) -> Result<Vec<(Backup, BasePoint)>> {
    let parent = directory(paths);
    let mut bases = Vec::new();
    for id in ids_in(&parent)? {
        match Backup::load_from(paths, &parent, &id) {
            Ok(backup) => {
                let point = backup.manifest.base.clone();
                bases.extend(point.map(|point| (backup, point)));
            }
            Err(error) if is_unreadable(&error) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(bases)
}

fn is_unreadable(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() != std::io::ErrorKind::NotFound)
    })
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("can't read {}", directory.display()))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    Ok(names.filter_map(|name| name.into_string().ok()).collect())
}

/// How far the archive has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Progress {
    /// The identifier of the cluster.
    system: String,
    /// The name of what follows without a gap: an archive that begins anew never mixes with what was before.
    history: String,
    /// Distinguishes the key by which the pieces are authenticated from another one.
    key: String,
    /// The size of a segment in bytes.
    segment: u64,
    /// Everything before this position is on the disk of this host.
    stored: u64,
    /// When that was all that the server had written.
    time: Timestamp,
}

/// Of a cluster whose log is archived from that position and time on.
fn history(system: &str, begin: u64, time: Timestamp) -> String {
    format!("{system}-{begin:X}-{}", time.strftime(Piece::TIME))
}

/// What a key makes of this is the same as long as the key is.
const OF_THE_KEY: &[u8] = b"the archive of the write-ahead log";

/// How far the copy of the archive has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Copied {
    url: String,
    history: String,
    position: u64,
    time: Timestamp,
}

impl Copied {
    fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("copied.json")
    }

    fn load(paths: &Paths) -> Result<Option<Self>> {
        load(&Self::file(paths), "everything is copied again")
    }

    fn save(&self, paths: &Paths) -> Result<()> {
        save(&Self::file(paths), self)
    }

    fn is_of(&self, progress: &Progress, url: &str) -> bool {
        self.url == url && self.history == progress.history
    }
}

/// Reads a file of this module; `otherwise` says what happens without it.
fn load<T: serde::de::DeserializeOwned>(path: &Path, otherwise: &str) -> Result<Option<T>> {
    let text = files::read_existing(path)?;
    text.map(|text| serde_json::from_slice(&text))
        .transpose()
        .map_err(|error| {
            let path = path.display();
            Failure::new(format!("{path} is damaged: {error}"))
                .hint(format!("remove it (`rm {path}`): {otherwise}"))
                .into()
        })
}

fn save(path: &Path, content: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec(content).context("can't write the progress of the archive")?;
    files::write_atomically(path, &text, 0o600)
}

impl Progress {
    fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("progress.json")
    }

    /// That of this deployment; `None` if nothing was archived yet.
    ///
    /// # Errors
    /// When its file can't be read.
    pub(crate) fn load(paths: &Paths) -> Result<Option<Self>> {
        load(
            &Self::file(paths),
            "the archive begins anew, with a base backup",
        )
    }

    fn save(&self, paths: &Paths) -> Result<()> {
        save(&Self::file(paths), self)
    }

    /// When everything that the server had written was on the disk of this host.
    #[must_use]
    pub(crate) fn time(&self) -> Timestamp {
        self.time
    }

    /// Whether nothing is missing since that base backup.
    #[must_use]
    pub(crate) fn continues(&self, point: &BasePoint) -> bool {
        point.history == self.history
    }

    /// Whether the archive of a server with this log goes on. A cluster that was moved back has less of it.
    fn goes_on(&self, now: &Position, key: &str) -> bool {
        self.system == now.system
            && self.segment == now.segment
            && self.key == key
            && now.slot == Some(true)
            && self.stored <= now.flushed
    }

    /// Whether the archive can be recovered from that base backup.
    fn is_usable(&self, backup: &Backup, point: &BasePoint) -> bool {
        self.continues(point) && backup.origin == Origin::Own
    }
}

/// The archive, as `status --json` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ArchiveReport {
    /// Seconds since everything was archived: writes of this time are lost with this host. Null if nothing was archived yet.
    pub lag_seconds: Option<u64>,
    /// Where the copy is; null if the archive is on this host only.
    pub url: Option<String>,
    /// Whether there is a base backup with which it can be recovered.
    pub recoverable: bool,
}

impl ArchiveReport {
    /// The lag for people.
    #[must_use]
    pub(crate) fn lag(&self) -> Option<String> {
        Some(match self.lag_seconds? {
            seconds @ 0..10 => format!("{seconds} s"),
            seconds => duration(Duration::from_secs(seconds)),
        })
    }

    /// That of this deployment; `None` if `.env` does not ask for an archive.
    ///
    /// # Errors
    /// When its files can't be read.
    pub(crate) fn of(paths: &Paths, settings: &BackupSettings) -> Result<Option<Self>> {
        if !settings.wal {
            return Ok(None);
        }
        let progress = Progress::load(paths)?;
        // With a copy, that is what survives the loss of this host.
        let time = match (&progress, &settings.url) {
            (Some(progress), Some(url)) => Copied::load(paths)?
                .filter(|copied| copied.is_of(progress, url))
                .map(|copied| copied.time),
            (progress, _) => progress.as_ref().map(Progress::time),
        };
        let lag = time.map(|time| Timestamp::now().duration_since(time));
        let is_complete = |backup: &Backup, point: &BasePoint| {
            let is_there = |url: &String| is_copied(backup, url);
            settings.url.as_ref().is_none_or(is_there)
                && time.is_some_and(|time| time >= point.complete)
        };
        let recoverable = match &progress {
            Some(progress) => bases(paths)?.iter().any(|(backup, point)| {
                progress.is_usable(backup, point) && is_complete(backup, point)
            }),
            None => false,
        };
        Ok(Some(Self {
            lag_seconds: lag.map(|lag| u64::try_from(lag.as_secs()).unwrap_or_default()),
            url: settings.url.clone(),
            recoverable,
        }))
    }
}

/// What the server says about its log.
#[derive(Debug, Deserialize)]
struct Position {
    system: String,
    timeline: u32,
    segment: u64,
    flushed: u64,
    version: String,
    /// Whether the slot still has everything; `None` if there is no slot.
    slot: Option<bool>,
    /// How much of the log slots keep, in MB; -1 for all of it.
    kept: i64,
    /// The size of all databases.
    size: u64,
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

async fn position(server: &Server<'_>) -> Result<Position> {
    let text = ask(server, POSITION, ANSWER_TIMEOUT).await?;
    let flat = text.replace('\n', "");
    serde_json::from_str(&flat).with_context(|| format!("unexpected answer of psql: {flat:?}"))
}

/// Lets the server keep its log from now on, until it is archived or the limit is reached.
async fn make_slot(host: &Host, server: &Server<'_>, kept: i64) -> Result<()> {
    // What the server keeps must not fill its disk, whatever becomes of the archive.
    let kept = u64::try_from(kept).unwrap_or(KEPT) << 20;
    let data = host.paths.postgres_data();
    let Space { free, size } = Space::of(&data)?;
    let needed = kept.saturating_add(left_free(size));
    if free < needed {
        return Err(Failure::new(format!(
            "the disk of {} has {} of free space, and the archive of the write-ahead log begins when it has {}",
            data.display(),
            bytes(free),
            bytes(needed)
        ))
        .hint("free some space; the archive then begins by itself")
        .into());
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
fn left_free(size: u64) -> u64 {
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
async fn refuse_full_disk(host: &Host, server: &Server<'_>) -> Result<()> {
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
async fn advance_slot(server: &Server<'_>, position: u64) -> Result<()> {
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
pub(super) async fn end(host: &Host, server: &Server<'_>) -> Result<()> {
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

/// One base backup at a time; `None` if one is being made.
fn lock_bases(paths: &Paths) -> Result<Option<Flock<File>>> {
    make_directory(paths)?;
    lock::exclusive(&base_lock(paths))
}

fn base_lock(paths: &Paths) -> PathBuf {
    directory(paths).join("base.lock")
}

fn make_directory(paths: &Paths) -> Result<()> {
    make_private(&super::directory(paths))?;
    make_private(&directory(paths))
}

/// Whether a base backup is being made.
#[must_use]
pub(crate) fn is_base_in_the_making(paths: &Paths) -> bool {
    lock::is_held(&base_lock(paths))
}

/// One run at a time.
pub(super) async fn lock(host: &Host) -> Result<Flock<File>> {
    let paths = &host.paths;
    make_directory(paths)?;
    let path = directory(paths).join("lock");
    let begin = Instant::now();
    let mut said = false;
    loop {
        if let Some(lock) = lock::exclusive(&path)? {
            return Ok(lock);
        }
        if begin.elapsed() > LOCK_TIMEOUT {
            return Err(
                Failure::new(format!("another run of {WAL_SERVICE} does not end"))
                    .hint(format!(
                        "see what it does: `{} status {WAL_SERVICE}`",
                        host.scope().systemctl()
                    ))
                    .into(),
            );
        }
        if !said && begin.elapsed() > SILENCE {
            said = true;
            host.progress.say(&format!(
                "waiting for another run of {WAL_SERVICE}, at most {}",
                duration(LOCK_TIMEOUT)
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Archives everything that the server has written so far, and copies it to `BACKUP_URL`. Makes a base backup if there is
/// none to which it belongs. While that takes time, the archive on this host goes on.
///
/// # Errors
/// When the server, the disk or the store refuses; the next run continues.
pub(crate) async fn run(host: &Host, settings: &Settings) -> Result<()> {
    if postgres::is_switching(&host.paths)? {
        // The cluster that stays keeps its log, so nothing is lost by waiting.
        return Ok(());
    }
    let server = Server::new(host, settings).await?;
    let progress = archive(host, settings, &server).await?;
    let rest = async {
        let copied = copy(host, settings).await;
        let url = settings.backup.url.as_deref();
        // Another operation may stop the server.
        if is_base_due(&host.paths, &progress, url)?
            && !OperationLock::is_held(&host.paths)
            && !Failed::is_recent(&host.paths)
        {
            host.progress
                .say("making a base backup, without which nothing can be recovered");
            Box::pin(base(host, settings, &server)).await?;
            return copy(host, settings).await;
        }
        copied
    };
    let archived = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Err(error) = Box::pin(archive(host, settings, &server)).await {
                host.progress.warn(&format!("{error:#}"));
            }
        }
    };
    tokio::select! {
        done = rest => done,
        () = archived => Ok(()),
    }
}

/// Whether the archive makes or copies a base backup without being asked.
fn is_base_due(paths: &Paths, progress: &Progress, url: Option<&str>) -> Result<bool> {
    let has_copy = match url {
        Some(url) => bases(paths)?
            .iter()
            .any(|(backup, point)| progress.is_usable(backup, point) && is_copied(backup, url)),
        None => true,
    };
    Ok(!has_copy || !has_base(paths, progress, OLD)?)
}

/// Whether there is a base backup with which the archive can be recovered, and which is younger than that.
fn has_base(paths: &Paths, progress: &Progress, age: Duration) -> Result<bool> {
    let is_young = |id: &OperationId| {
        let created = jiff::tz::Offset::UTC.to_timestamp(id.created());
        created.is_ok_and(|created| {
            let past = Timestamp::now().duration_since(created);
            Duration::try_from(past).is_ok_and(|past| past < age)
        })
    };
    Ok(bases(paths)?
        .iter()
        .any(|(backup, point)| progress.is_usable(backup, point) && is_young(backup.id())))
}

/// Why there is no new base backup: the file is there while one is made, and after it has failed.
struct Failed;

impl Failed {
    fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("base-failed")
    }

    fn is_recent(paths: &Paths) -> bool {
        let changed = std::fs::metadata(Self::file(paths)).and_then(|found| found.modified());
        changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|past| past < RETRY))
    }
}

/// Why the last base backup failed, if it did.
#[must_use]
pub(crate) fn base_failure(paths: &Paths) -> Option<String> {
    let text = files::read_existing(&Failed::file(paths)).ok()??;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Archives everything that the server has written so far, on this host.
///
/// # Errors
/// When the server or the disk refuses; the next run continues.
pub(crate) async fn archive(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
) -> Result<Progress> {
    let paths = &host.paths;
    let _lock = lock(host).await?;
    if postgres::is_switching(paths)? {
        return Err(
            Failure::new("PostgreSQL is being changed, so nothing is archived")
                .hint("see whether the change was interrupted: `litellm-units status`")
                .into(),
        );
    }
    let key = BackupKey::create(paths)?;
    let of_the_key = key.code(OF_THE_KEY)?;
    let recipient = recipient(&settings.backup)?;
    let known = Progress::load(paths)?;
    // Before the position, so that everything of this time is before it.
    let mut time = Timestamp::now();
    let mut now = position(server).await?;
    let known = known.filter(|known| known.goes_on(&now, &of_the_key));
    if now.slot.is_some() {
        refuse_full_disk(host, server).await?;
    }
    let mut progress = if let Some(known) = known {
        known
    } else {
        make_slot(host, server, now.kept).await?;
        time = Timestamp::now();
        now = position(server).await?;
        // A recovery reads whole segments.
        let segment = Segment::of(now.timeline, now.segment, now.flushed);
        Progress {
            history: history(&now.system, now.flushed, time),
            system: now.system.clone(),
            key: of_the_key,
            segment: now.segment,
            stored: segment.position(0),
            time,
        }
    };
    let parent = directory(paths).join(WAL);
    let place = pieces_directory(paths, &progress.history);
    make_private(&parent)?;
    make_private(&place)?;
    files::sync_directory(&parent)?;
    remove_incomplete(&place)?;
    let writer = PieceWriter {
        server,
        place: &place,
        recipient: &recipient,
        key: &key,
        system: &progress.system,
        history: &progress.history.clone(),
        time,
    };
    let before = progress.stored;
    while progress.stored < now.flushed {
        refuse_full_disk(host, server).await?;
        let segment = Segment::of(now.timeline, now.segment, progress.stored);
        let end = now.flushed.min(segment.position(now.segment));
        let end_offset = end - segment.position(0);
        let start = if end_offset == now.segment {
            0
        } else {
            progress.stored - segment.position(0)
        };
        writer.store(&segment, start, end_offset).await?;
        progress.stored = end;
        progress.save(paths)?;
        fail::fail_point!("wal-stored");
    }
    progress.time = time;
    progress.save(paths)?;
    if progress.stored > before {
        advance_slot(server, progress.stored).await?;
    }
    if settings.backup.url.is_none() {
        let all = local_pieces(paths, &progress.history)?;
        for piece in replaced(&all, progress.segment) {
            files::remove_existing(&place.join(&piece.file))?;
        }
    }
    Ok(progress)
}

fn store_of(settings: &BackupSettings) -> Result<Option<BackupStore>> {
    let url = settings.url.as_deref();
    url.map(|url| BackupStore::new(url, settings).map(BackupStore::archive))
        .transpose()
}

/// Writes pieces.
struct PieceWriter<'a> {
    server: &'a Server<'a>,
    place: &'a Path,
    recipient: &'a Recipient,
    key: &'a BackupKey,
    system: &'a str,
    history: &'a str,
    time: Timestamp,
}

impl PieceWriter<'_> {
    /// Stores the bytes of a segment from `start` to `end`.
    async fn store(&self, segment: &Segment, start: u64, end: u64) -> Result<()> {
        let staged = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(self.place)
            .with_context(|| format!("can't create a directory in {}", self.place.display()))?;
        let directory = staged.path().to_owned();
        let recipient = self.recipient.clone();
        let meter = Meter::new("archived", end - start, &output::Progress::Silent);
        let counted = meter.clone();
        let received = self
            .server
            .receive_wal(self.system, segment, start, end, move |reader| {
                let mut reader = counted.reading(reader);
                archive::store(&directory, WAL, true, &recipient, &mut reader)
            });
        let stored = tokio::time::timeout(RECEIVE_TIMEOUT, received)
            .await
            .context("pg_receivewal did not end in time")??;
        let count = meter.done();
        anyhow::ensure!(
            count == end - start,
            "{count} bytes of segment {} arrived of {}",
            segment.name(),
            end - start
        );
        let label = Piece::label(&segment.name(), start, end, self.time);
        let covered = Piece::covered(self.history, &label, &stored.sha256);
        let code = self.key.code(covered.as_bytes())?;
        let extensions = stored.stored.strip_prefix(WAL).unwrap_or_default();
        let path = self.place.join(format!("{label}-{code}{extensions}"));
        std::fs::rename(staged.path().join(&stored.stored), &path)
            .with_context(|| format!("can't rename {}", path.display()))?;
        files::sync_directory(self.place)
    }
}

/// Removes what an interrupted run has left.
fn remove_incomplete(place: &Path) -> Result<()> {
    for name in names(place)? {
        if name.starts_with(UNFINISHED) {
            let path = place.join(name);
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.with_context(|| format!("can't remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The pieces of segments that are there as a whole, too.
fn replaced(pieces: &[Piece], segment_size: u64) -> Vec<Piece> {
    let is_whole = |piece: &&Piece| piece.start == 0 && piece.end == segment_size;
    let whole: BTreeSet<&str> = pieces
        .iter()
        .filter(is_whole)
        .map(|piece| piece.segment.as_str())
        .collect();
    pieces
        .iter()
        .filter(|piece| !is_whole(piece) && whole.contains(piece.segment.as_str()))
        .cloned()
        .collect()
}

/// Copies to `BACKUP_URL` what is archived, if nobody else does. A store that is slow or does not answer must not hold up the
/// archive on this host, so its lock is not held meanwhile.
async fn copy(host: &Host, settings: &Settings) -> Result<()> {
    let paths = &host.paths;
    let Some(remote) = store_of(&settings.backup)? else {
        return Ok(());
    };
    let Some(_lock) = lock::exclusive(&directory(paths).join("copy.lock"))? else {
        return Ok(());
    };
    let Some(progress) = Progress::load(paths)? else {
        return Ok(());
    };
    let all = local_pieces(paths, &progress.history)?;
    let replaced = replaced(&all, progress.segment);
    let place = pieces_directory(paths, &progress.history);
    let directory = remote_directory(&progress.history);
    let from = Copied::load(paths)?
        .filter(|copied| copied.is_of(&progress, remote.url()))
        .map_or(0, |copied| copied.position);
    let copied = |position, time| Copied {
        url: remote.url().to_owned(),
        history: progress.history.clone(),
        position,
        time,
    };
    let mut wanted: Vec<&Piece> = all
        .iter()
        .filter(|piece| !replaced.contains(piece) && piece.end_position(progress.segment) > from)
        .collect();
    wanted.sort_by_key(|piece| piece.end_position(progress.segment));
    for piece in wanted {
        let path = place.join(&piece.file);
        remote.put_file(&directory, &path).await?;
        copied(piece.end_position(progress.segment), piece.time).save(paths)?;
    }
    copied(progress.stored, progress.time).save(paths)?;
    for piece in &replaced {
        remote.remove_file(&directory, &piece.file).await?;
    }
    if !replaced.is_empty() {
        // A recovery lists them and takes them.
        let _lock = lock(host).await?;
        for piece in replaced {
            files::remove_existing(&place.join(&piece.file))?;
        }
    }
    Ok(())
}

fn recipient(settings: &BackupSettings) -> Result<Recipient> {
    Recipient::parse(settings.recipient.as_deref().map(str::trim))
}

/// Makes a base backup, unless there is a young one, copies those that have no copy yet, and removes what is too old.
///
/// # Errors
/// When the server, the disk or the store refuses.
pub(super) async fn base(host: &Host, settings: &Settings, server: &Server<'_>) -> Result<()> {
    let paths = &host.paths;
    let Some(_lock) = lock_bases(paths)? else {
        host.progress.say("another base backup is being made");
        return Ok(());
    };
    let path = Failed::file(paths);
    files::write_atomically(&path, b"it was interrupted", 0o600)?;
    let made = made(host, settings, server).await;
    match &made {
        Ok(()) => files::remove_existing(&path)?,
        Err(error) => files::write_atomically(&path, format!("{error:#}").as_bytes(), 0o600)?,
    }
    made
}

async fn made(host: &Host, settings: &Settings, server: &Server<'_>) -> Result<()> {
    let paths = &host.paths;
    remove_incomplete(&directory(paths))?;
    let progress = archive(host, settings, server).await?;
    if !has_base(paths, &progress, YOUNG)? {
        make_base(host, settings, server, &progress).await?;
    }
    // What is on this host does not depend on the store.
    prune(host).await?;
    let Some(remote) = store_of(&settings.backup)? else {
        return Ok(());
    };
    for (backup, _) in bases(paths)? {
        if backup.origin == Origin::Own && !is_copied(&backup, remote.url()) {
            remote.upload(host, &backup).await?;
            let path = backup.directory.join(COPIED);
            files::write_atomically(&path, remote.url().as_bytes(), 0o600)?;
        }
    }
    prune_copy(host, &remote).await
}

fn is_copied(backup: &Backup, url: &str) -> bool {
    files::read_existing(&backup.directory.join(COPIED))
        .is_ok_and(|text| text.as_deref() == Some(url.as_bytes()))
}

async fn make_base(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
    began: &Progress,
) -> Result<()> {
    let parent = &directory(&host.paths);
    let recipient = recipient(&settings.backup)?;
    // The server makes a checkpoint after this, and the recovery begins there.
    let before = position(server).await?;
    let Space { size, .. } = Space::of(parent)?;
    check_space(parent, (before.size / 2).saturating_add(left_free(size)))?;
    let created = Timestamp::now();
    let id = OperationId::new(created)?;
    let staged = tempfile::Builder::new()
        .prefix(&format!("{UNFINISHED}{id}-"))
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .with_context(|| format!("can't create a directory in {}", parent.display()))?;
    host.progress
        .say(&format!("copying the cluster ({})", bytes(before.size)));
    let place = staged.path().to_owned();
    let for_base = recipient.clone();
    let entry = server
        .copy_cluster(move |reader| {
            let mut reader = Frugal::new(reader, &place);
            archive::store(&place, BASE, true, &for_base, &mut reader)
        })
        .await
        .map_err(|error| super::on_full_disk(error, parent))?;
    // Without what was written meanwhile, the copy is not consistent.
    let progress = Box::pin(archive(host, settings, server)).await?;
    let contents = Contents {
        name: server.database.clone(),
        server_version: before.version,
        size: before.size,
        rows: BTreeMap::new(),
        objects: BTreeMap::new(),
    };
    let mut manifest = BackupManifest::new(id, created, contents);
    manifest.images = super::images(host, settings).await;
    anyhow::ensure!(
        manifest.images.of(Service::Postgres).is_some(),
        "Podman does not know the image of PostgreSQL, without which nothing can be recovered"
    );
    manifest.encryption = encryption(&recipient);
    let point = BasePoint {
        history: began.history.clone(),
        timeline: before.timeline,
        segment_size: before.segment,
        position: before.flushed,
        complete: Timestamp::now(),
    };
    anyhow::ensure!(
        progress.continues(&point),
        "the archive began anew while the cluster was copied"
    );
    manifest.base = Some(point);
    manifest.files.push(entry);
    let deployment = host.paths.deployment.clone();
    store_files(
        host,
        (&deployment, &deployment),
        staged.path(),
        &recipient,
        &mut manifest,
    )
    .and_then(|()| finish(&host.paths, staged, parent, &manifest))
    .map_err(|error| super::on_full_disk(error, parent))?;
    host.progress.say(&format!(
        "base backup {} is complete: {}",
        manifest.id,
        bytes(manifest.total_size())
    ));
    Ok(())
}

/// Reads on as long as the disk keeps enough free space.
struct Frugal<R> {
    inner: R,
    place: PathBuf,
    until_check: usize,
}

impl<R> Frugal<R> {
    const INTERVAL: usize = 64 << 20;

    fn new(inner: R, place: &Path) -> Self {
        Self {
            inner,
            place: place.to_owned(),
            until_check: 0,
        }
    }
}

impl<R: std::io::Read> std::io::Read for Frugal<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.until_check == 0 {
            let found = Space::of(&self.place).map_err(std::io::Error::other)?;
            if found.free < left_free(found.size) {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.until_check = Self::INTERVAL;
        }
        let count = self.inner.read(buffer)?;
        self.until_check = self.until_check.saturating_sub(count);
        Ok(count)
    }
}

/// Removes base backups that are too old, and the log that no base backup needs.
async fn prune(host: &Host) -> Result<()> {
    let paths = &host.paths;
    // A recovery lists them and takes them.
    let _lock = lock(host).await?;
    let parent = directory(paths);
    let known = bases(paths)?;
    let protected = last_of_each(known.iter().map(|(base, point)| (base.id(), point)), old());
    for id in expired(&ids_in(&parent)?, RETENTION, &protected) {
        super::remove_from(&parent, &id)?;
        host.progress.say(&format!("removed base backup {id}"));
    }
    let points: Vec<BasePoint> = bases(paths)?.into_iter().map(|(_, point)| point).collect();
    for found in histories(paths)? {
        let place = pieces_directory(paths, &found);
        let present = local_pieces(paths, &found)?;
        for piece in superfluous(present, &found, &points, old()) {
            files::remove_existing(&place.join(&piece.file))?;
        }
    }
    Ok(())
}

const RETENTION: Retention = Retention {
    daily: DAYS as usize,
    monthly: 0,
};

/// Copies those pieces again that were copied, and of which the store has lost the whole or a part. If the store has a later
/// log than this host, as after a return to an earlier state of the whole host, the archive begins anew.
async fn put_again(
    host: &Host,
    remote: &BackupStore,
    history: &str,
    present: &BTreeMap<String, u64>,
) -> Result<()> {
    let paths = &host.paths;
    let all = local_pieces(paths, history)?;
    let (Some(progress), Some(copied)) = (Progress::load(paths)?, Copied::load(paths)?) else {
        return Ok(());
    };
    if progress.history != history || !copied.is_of(&progress, remote.url()) {
        return Ok(());
    }
    if is_behind(&progress, &copied, &all, present) {
        host.progress.warn(&format!(
            "{} has a later log of this cluster than this host, so the archive begins anew",
            remote.url()
        ));
        let _lock = lock(host).await?;
        return files::remove_existing(&Progress::file(paths));
    }
    let replaced = replaced(&all, progress.segment);
    let place = pieces_directory(paths, history);
    let was_copied = |piece: &&Piece| {
        !replaced.contains(piece) && piece.end_position(progress.segment) <= copied.position
    };
    for piece in all.iter().filter(was_copied) {
        let path = place.join(&piece.file);
        // The archive removes what a whole segment replaces.
        let size = std::fs::metadata(&path).ok().map(|found| found.len());
        if size.is_some() && size != present.get(&piece.file).copied() {
            remote.put_file(&remote_directory(history), &path).await?;
        }
    }
    Ok(())
}

/// Whether the store has pieces that this host has not copied there, or does not know to have.
fn is_behind(
    progress: &Progress,
    copied: &Copied,
    all: &[Piece],
    present: &BTreeMap<String, u64>,
) -> bool {
    pieces(present.keys().cloned())
        .iter()
        .any(|piece| piece.end_position(progress.segment) > copied.position && !all.contains(piece))
}

/// The newest base backup of each history, if it was made after `old`: that of a former cluster is not replaced by one of the
/// same day of the cluster that came after it.
fn last_of_each<'a>(
    bases: impl IntoIterator<Item = (&'a OperationId, &'a BasePoint)>,
    old: Timestamp,
) -> Vec<OperationId> {
    let mut last: BTreeMap<&str, &OperationId> = BTreeMap::new();
    for (id, point) in bases {
        if point.complete > old {
            last.entry(&point.history)
                .and_modify(|newest| *newest = id.max(*newest))
                .or_insert(id);
        }
    }
    last.into_values().cloned().collect()
}

/// Before this time, nothing is kept for its own sake.
fn old() -> Timestamp {
    Timestamp::now() - jiff::SignedDuration::from_hours(24 * i64::from(DAYS))
}

/// As [`prune`], in the store.
async fn prune_copy(host: &Host, remote: &BackupStore) -> Result<()> {
    let mut known = remote.bases(host).await?;
    let protected = last_of_each(known.iter().map(|(id, point)| (id, point)), old());
    let gone = remote.prune(host, RETENTION, &protected).await?;
    known.retain(|(id, _)| !gone.contains(id));
    let points: Vec<BasePoint> = known.into_iter().map(|(_, point)| point).collect();
    for found in remote.directories(WAL).await? {
        let directory = remote_directory(&found);
        let files = remote.files(&directory).await?;
        put_again(host, remote, &found, &files).await?;
        let present = pieces(files.into_keys());
        for piece in superfluous(present, &found, &points, old()) {
            remote.remove_file(&directory, &piece.file).await?;
        }
    }
    Ok(())
}

/// The pieces of history `of` from before its first base backup. Without one, those that are `old`: the base backup may be in
/// the making.
fn superfluous(pieces: Vec<Piece>, of: &str, points: &[BasePoint], old: Timestamp) -> Vec<Piece> {
    let first = points
        .iter()
        .filter(|point| point.history == of)
        .min_by_key(|point| point.position);
    let is_superfluous = |piece: &Piece| match first {
        Some(first) => piece.number(first.segment_size) < first.position / first.segment_size,
        None => piece.time < old,
    };
    pieces.into_iter().filter(is_superfluous).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::operations::backup) const SIZE: u64 = 16 << 20;

    pub(in crate::operations::backup) fn piece(
        number: u64,
        start: u64,
        end: u64,
        time: &str,
    ) -> Piece {
        let segment = Segment {
            timeline: 1,
            number,
            size: SIZE,
        };
        let label = Piece::label(&segment.name(), start, end, time.parse().unwrap());
        Piece::parse(&format!("{label}-{}.zst.age", "0a".repeat(32))).unwrap()
    }

    pub(in crate::operations::backup) fn point(history: &str, position: u64) -> BasePoint {
        BasePoint {
            history: history.to_owned(),
            timeline: 1,
            segment_size: SIZE,
            position,
            complete: "2026-11-26T02:30:00Z".parse().unwrap(),
        }
    }

    const TIME: &str = "2026-11-26T14:05:00Z";

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let name = |size, position| Segment::of(1, size, position).name();
        assert_eq!(name(SIZE, 0x1D9_5F10), "000000010000000000000001");
        assert_eq!(name(SIZE, 0xFFFF_FFFF), "0000000100000000000000FF");
        assert_eq!(name(SIZE, 0x3_0000_0000), "000000010000000300000000");
        // initdb --wal-segsize=1024
        assert_eq!(name(1 << 30, 0x3_4000_0000), "000000010000000300000001");
        assert_eq!(format_position(0x3_01D9_5F0F), "3/1D95F0F");
        assert_eq!(Segment::of(1, SIZE, 0x1D9_5F10).position(0), 0x100_0000);
    }

    #[test]
    fn names_of_pieces() {
        let read = piece(0x102, 0x100, 0x2_0000, TIME);
        assert_eq!(
            (
                read.segment.as_str(),
                read.start,
                read.end,
                read.number(SIZE)
            ),
            ("000000010000000100000002", 0x100, 0x2_0000, 0x102)
        );
        assert_eq!(read.end_position(SIZE), 0x1_0202_0000);
        assert_eq!(read.time, TIME.parse().unwrap());
        let good = &read.file;
        for wrong in [
            good.replace("-00000100-", "-00020000-"),
            good.replace("-00000100-", "-100-"),
            good.replace("20261126", "20261326"),
            good.replace("0a0a", "0a"),
            good.replace(".zst", "-1.zst"),
            format!(".new-{good}"),
            good.replace("00000001", "0000001g"),
            "lock".to_owned(),
        ] {
            assert_eq!(Piece::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_whole_segment_replaces_its_parts() {
        let (first, second) = (piece(1, 0, 0x100, TIME), piece(1, 0x100, 0x200, TIME));
        let (whole, next) = (piece(1, 0, SIZE, TIME), piece(2, 0, 0x100, TIME));
        let parts = [first.clone(), second.clone(), next.clone()];
        assert_eq!(replaced(&parts, SIZE), []);
        let all = [first.clone(), second.clone(), whole, next];
        assert_eq!(replaced(&all, SIZE), [first, second]);
    }

    #[test]
    fn a_host_that_was_moved_back_begins_anew() {
        let (first, second) = (piece(1, 0, SIZE, TIME), piece(2, 0, 0x100, TIME));
        let (later, abandoned) = (piece(2, 0x100, 0x200, TIME), piece(2, 0x100, 0x300, TIME));
        let progress = Progress {
            system: "1".to_owned(),
            history: "1-0-t".to_owned(),
            key: String::new(),
            segment: SIZE,
            stored: later.end_position(SIZE),
            time: later.time,
        };
        let copied = Copied {
            url: "file:///copies".to_owned(),
            history: progress.history.clone(),
            position: second.end_position(SIZE),
            time: second.time,
        };
        let here = [first.clone(), second.clone(), later.clone()];
        let behind = |there: &[&Piece]| {
            let there = there.iter().map(|piece| (piece.file.clone(), 1));
            is_behind(&progress, &copied, &here, &there.collect())
        };
        // A piece may be there before it counts as copied, and parts may be there that are no longer here.
        assert!(!behind(&[&first, &second]) && !behind(&[&first, &later]));
        assert!(!behind(&[&piece(1, 0, 9, TIME)]));
        assert!(behind(&[&first, &second, &abandoned]));
        assert!(copied.is_of(&progress, "file:///copies") && !copied.is_of(&progress, "s3://b"));
    }

    #[test]
    fn a_former_cluster_keeps_its_last_base_backup() {
        let base = |time: &str, system: &str| {
            let complete: Timestamp = time.parse().unwrap();
            let point = BasePoint {
                complete,
                ..point(system, 0)
            };
            (OperationId::new(complete).unwrap(), point)
        };
        let all = [
            base("2026-11-18T02:30:00Z", "oldest"),
            base("2026-11-24T02:30:00Z", "former"),
            base("2026-11-25T02:30:00Z", "former"),
            base("2026-11-25T10:00:00Z", "now"),
            base("2026-11-27T02:30:00Z", "now"),
        ];
        let old = "2026-11-20T00:00:00Z".parse().unwrap();
        let last = last_of_each(all.iter().map(|(id, point)| (id, point)), old);
        assert_eq!(last, [all[2].0.clone(), all[4].0.clone()]);
        // The rule alone takes one a day, whatever its cluster.
        let ids: Vec<OperationId> = all.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(expired(&ids, RETENTION, &[]), [all[2].0.clone()]);
        assert_eq!(expired(&ids, RETENTION, &last), []);
    }

    #[test]
    fn the_log_before_the_first_base_backup_goes() {
        let all: Vec<Piece> = (1..5).map(|number| piece(number, 0, SIZE, TIME)).collect();
        let left = |of, points: &[BasePoint]| {
            let gone = superfluous(
                all.clone(),
                of,
                points,
                "2026-11-20T00:00:00Z".parse().unwrap(),
            );
            all.len() - gone.len()
        };
        let points = [
            point("now", 4 * SIZE),
            point("now", 3 * SIZE + 5),
            point("other", 0),
        ];
        assert_eq!(left("now", &points), 2);
        assert_eq!(left("other", &points), 4);
        // Without a base backup, only what is old goes.
        assert_eq!(left("new", &points), 4);
        let gone = superfluous(
            all.clone(),
            "gone",
            &points,
            "2026-12-20T00:00:00Z".parse().unwrap(),
        );
        assert_eq!(gone, all);
    }
}

//! The archive of the write-ahead log: base backups, and everything that the server has written since.
//!
//! PostgreSQL's own programs read the log (`pg_receivewal`) and copy the cluster (`pg_basebackup`); a replication slot
//! keeps what is not archived yet, up to a limit, so that an archive that stops can't fill the disk of the server.
//! [`archive()`] takes what was written since the last time, which `litellm-wal.service` asks for three times a minute.
//!
//! A piece is a part of one segment of the log. It is complete, compressed, encrypted and authenticated as soon as it has
//! its name, and the name says all that is needed to find it. When a segment is full, one piece replaces its parts.

mod base;
mod copy;
#[cfg(test)]
pub(super) mod fixtures;
mod piece;
mod progress;
mod prune;
mod slot;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::fcntl::Flock;

use super::archive::{self, Recipient};
use super::authentication::BackupKey;
use super::database::Server;
use super::{UNFINISHED, make_private, staging};
use crate::deployment::settings::{BackupSettings, Settings};
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::lock::{self, OperationLock};
use crate::host::paths::Paths;
use crate::operations::{postgres, rotation};
use crate::output::{self, Meter, duration};
use crate::quadlet::WAL_SERVICE;
pub(super) use base::base;
use base::{Failed, is_base_due};
pub(crate) use base::{base_failure, bases, is_base_in_the_making};
use copy::copy;
use piece::replaced;
pub(crate) use piece::{Piece, Segment, format_position, histories, local_pieces, pieces};
pub(crate) use progress::{ArchiveReport, Progress};
use progress::{Salt, history};
pub(super) use slot::end;
pub(crate) use slot::{KEPT, LIMIT, left_free};
use slot::{advance_slot, make_slot, position, refuse_full_disk};

/// The directory below that of the backups, and below `BACKUP_URL`.
pub(crate) const DIRECTORY: &str = "archive";
/// The directory of the pieces, by their history.
pub(crate) const WAL: &str = "wal";
/// The time between two runs while a base backup is made.
const INTERVAL: Duration = Duration::from_secs(20);
/// Of a backlog, the server may remove this many segments at a time.
const BATCH: u64 = 16;
/// How long the server may take to send a segment.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(330);
/// How long another run may take, and after how long this one says that it waits.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
const SILENCE: Duration = Duration::from_secs(3);

/// Where base backups and pieces are.
pub(crate) fn directory(paths: &Paths) -> PathBuf {
    super::directory(paths).join(DIRECTORY)
}

/// Where the pieces of a history are.
pub(crate) fn pieces_directory(paths: &Paths, history: &str) -> PathBuf {
    directory(paths).join(WAL).join(history)
}

/// The same, in the store.
pub(crate) fn remote_directory(history: &str) -> String {
    format!("{WAL}/{history}")
}

fn make_directory(paths: &Paths) -> Result<()> {
    make_private(&super::directory(paths))?;
    make_private(&directory(paths))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = files::entries(directory)?;
    let names = entries.iter().filter_map(|path| files::name(path));
    Ok(names.map(str::to_owned).collect())
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
    let paths = &host.paths;
    if changing(paths)?.is_some() {
        // The server keeps its log, so nothing is lost by waiting.
        return Ok(());
    }
    make_directory(paths)?;
    let path = failure_file(paths);
    let done = attempt(host, settings).await;
    match &done {
        Ok(()) => files::remove_existing(&path)?,
        Err(error) => files::write_atomically(&path, format!("{error:#}").as_bytes(), 0o600)?,
    }
    done
}

/// What has to end before anything is archived: the archive would belong to neither of two clusters, or to neither of two
/// salts.
fn changing(paths: &Paths) -> Result<Option<&'static str>> {
    Ok(if postgres::is_switching(paths)? {
        Some("PostgreSQL is being changed")
    } else if rotation::is_salt_pending(paths)? {
        Some("the salt is being replaced")
    } else {
        None
    })
}

fn failure_file(paths: &Paths) -> PathBuf {
    directory(paths).join("failed")
}

/// Why the last run failed, if it did.
pub(crate) fn failure(paths: &Paths) -> Option<String> {
    let text = files::read_existing(&failure_file(paths)).ok()??;
    Some(String::from_utf8_lossy(&text).into_owned())
}

async fn attempt(host: &Host, settings: &Settings) -> Result<()> {
    let server = Server::new(host, settings).await?;
    let first = archive(host, settings, &server).await;
    let rest = async {
        // Also what was archived before a failure.
        let copied = copy(host, settings).await;
        if first.is_err()
            && let Err(error) = &copied
        {
            host.progress.warn(&format!("{error:#}"));
        }
        let progress = first?;
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
    // While a base backup is made and copied.
    let copied = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Err(error) = copy(host, settings).await {
                host.progress.warn(&format!("{error:#}"));
            }
        }
    };
    tokio::select! {
        done = rest => done,
        () = archived => Ok(()),
        () = copied => Ok(()),
    }
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
    if let Some(change) = changing(paths)? {
        return Err(Failure::new(format!("{change}, so nothing is archived"))
            .hint("see whether the change was interrupted: `litellm-units status`")
            .into());
    }
    let key = BackupKey::create(paths)?;
    // A base backup has the `.env` with the salt for everything that follows it. This one may have begun hours ago.
    let current = Settings::load(&paths.env_file())?;
    let known = Progress::load(paths)?;
    let salt = Salt::of(current.salt(), known.as_ref(), &key)?;
    let recipient = recipient(&settings.backup)?;
    // Before the position, so that everything of this time is before it.
    let mut time = Timestamp::now();
    let mut now = position(server).await?;
    let known = known.filter(|known| known.goes_on(&now, &salt));
    if now.slot.is_some() {
        refuse_full_disk(host, server).await?;
    }
    let mut progress = if let Some(known) = known {
        Progress {
            key: salt.written,
            value: salt.value,
            ..known
        }
    } else {
        make_slot(host, server, now.kept).await?;
        time = Timestamp::now();
        now = position(server).await?;
        // A recovery reads whole segments.
        let segment = Segment::of(now.timeline, now.segment, now.flushed);
        Progress {
            history: history(&now.system, now.flushed, time),
            system: now.system.clone(),
            key: salt.written,
            value: salt.value,
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
    // That of an archive that does not begin, lest each attempt leaves one.
    let remove_empty = |_: &anyhow::Error| drop(std::fs::remove_dir(&place));
    let mut kept = progress.stored;
    while progress.stored < now.flushed {
        refuse_full_disk(host, server)
            .await
            .inspect_err(remove_empty)?;
        let segment = Segment::of(now.timeline, now.segment, progress.stored);
        let end = now.flushed.min(segment.position(now.segment));
        let end_offset = end - segment.position(0);
        let start = if end_offset == now.segment {
            0
        } else {
            progress.stored - segment.position(0)
        };
        writer
            .store(&segment, start, end_offset)
            .await
            .inspect_err(remove_empty)?;
        progress.stored = end;
        progress.save(paths)?;
        fail::fail_point!("wal-stored");
        if is_batch(kept, progress.stored, now.segment) {
            advance_slot(server, progress.stored).await?;
            kept = progress.stored;
        }
    }
    progress.time = time;
    progress.save(paths)?;
    if progress.stored > kept {
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

/// Whether the slot, at `kept`, is to be advanced before the rest of a backlog is stored: it may not have the time for all.
fn is_batch(kept: u64, stored: u64, segment: u64) -> bool {
    stored - kept >= BATCH * segment
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
        let staged = staging(self.place, UNFINISHED)?;
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
            .path_context("can't rename", &path)?;
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
            removed.path_context("can't remove", &path)?;
        }
    }
    Ok(())
}

fn recipient(settings: &BackupSettings) -> Result<Recipient> {
    Recipient::parse(settings.recipient.as_deref().map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::fixtures::SIZE;
    use super::is_batch;

    #[test]
    fn a_backlog_frees_the_log_of_the_server_in_batches() {
        // From the middle of a segment on.
        let (mut kept, mut stored, mut advanced) = (100, SIZE, Vec::new());
        while stored < 40 * SIZE {
            if is_batch(kept, stored, SIZE) {
                kept = stored;
                advanced.push(kept / SIZE);
            }
            stored += SIZE;
        }
        assert_eq!(advanced, [17, 33]);
    }
}

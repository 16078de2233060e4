//! The copy of the archive at `BACKUP_URL`.

use std::collections::BTreeMap;

use super::piece::{Piece, local_pieces, pieces, replaced};
use super::progress::{Copied, Progress};
use super::{directory, lock, pieces_directory, remote_directory};
use crate::deployment::settings::{BackupSettings, Settings};
use crate::error::Result;
use crate::host::Host;
use crate::host::{files, lock as file_lock};
use crate::operations::backup::object_store::BackupStore;

pub(super) fn store_of(settings: &BackupSettings) -> Result<Option<BackupStore>> {
    let url = settings.url.as_deref();
    url.map(|url| BackupStore::new(url, settings).map(BackupStore::archive))
        .transpose()
}

/// Copies to `BACKUP_URL` what is archived, if nobody else does. A store that is slow or does not answer must not hold up the
/// archive on this host, so its lock is not held meanwhile.
pub(super) async fn copy(host: &Host, settings: &Settings) -> Result<()> {
    let paths = &host.paths;
    let Some(remote) = store_of(&settings.backup)? else {
        return Ok(());
    };
    let Some(_lock) = file_lock::exclusive(&directory(paths).join("copy.lock"))? else {
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

/// Copies those pieces again that were copied, and of which the store has lost the whole or a part. If the store has a later
/// log than this host, as after a return to an earlier state of the whole host, the archive begins anew.
pub(super) async fn put_again(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::{SIZE, TIME, piece, progress};

    #[test]
    fn a_host_that_was_moved_back_begins_anew() {
        let (first, second) = (piece(1, 0, SIZE, TIME), piece(2, 0, 0x100, TIME));
        let (later, abandoned) = (piece(2, 0x100, 0x200, TIME), piece(2, 0x100, 0x300, TIME));
        let progress = progress("1-0-t", later.end_position(SIZE));
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
}

//! The copy of the archive at `BACKUP_URL`.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;

use super::base::{COPIED, bases, is_copied};
use super::piece::{Piece, histories, local_pieces, pieces, replaced};
use super::progress::{Copied, Progress};
use super::{directory, lock, pieces_directory, remote_directory};
use crate::deployment::settings::{BackupSettings, Settings};
use crate::error::Result;
use crate::host::Host;
use crate::host::paths::Paths;
use crate::host::{files, lock as file_lock};
use crate::operations::backup::Backup;
use crate::operations::backup::authentication::Origin;
use crate::operations::backup::manifest::BasePoint;
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
    if is_lost(paths, &remote).await? {
        host.progress.warn(&format!(
            "{} lost the newest base backup, so everything is copied again",
            remote.url()
        ));
        forget_copies(paths)?;
    }
    let progress = Progress::load(paths)?;
    let current = progress.as_ref().map(|progress| &*progress.history);
    for point in ended(bases(paths)?, current) {
        let mark = pieces_directory(paths, &point.history).join(COPIED);
        let marked = files::read_existing(&mark)?;
        if marked.as_deref() != Some(remote.url().as_bytes()) {
            copy_history(host, &remote, &point.history, point.segment_size, None).await?;
            if mark.parent().is_some_and(Path::is_dir) {
                files::write_atomically(&mark, remote.url().as_bytes(), 0o600)?;
            }
        }
    }
    let Some(progress) = progress else {
        return Ok(());
    };
    let all = Some((progress.stored, progress.time));
    copy_history(host, &remote, &progress.history, progress.segment, all).await
}

/// Whether the store was emptied or replaced: it lacks the newest base backup that was copied there.
async fn is_lost(paths: &Paths, remote: &BackupStore) -> Result<bool> {
    let bases = bases(paths)?;
    let copied = bases
        .iter()
        .rfind(|(backup, _)| is_copied(backup, remote.url()));
    let Some((backup, _)) = copied else {
        return Ok(false);
    };
    // A disk that is not mounted has lost nothing.
    remote.refuse_missing().await?;
    Ok(!remote.has(backup.id()).await?)
}

/// Has everything copied again.
fn forget_copies(paths: &Paths) -> Result<()> {
    for (backup, _) in bases(paths)? {
        files::remove_existing(&backup.directory.join(COPIED))?;
    }
    for history in histories(paths)? {
        files::remove_existing(&pieces_directory(paths, &history).join(COPIED))?;
    }
    files::remove_existing(&Copied::file(paths))
}

/// A base backup of each history that has ended, the oldest first.
fn ended(bases: Vec<(Backup, BasePoint)>, current: Option<&str>) -> Vec<BasePoint> {
    let mut ended: Vec<BasePoint> = Vec::new();
    for (backup, point) in bases {
        let is_known = ended.iter().any(|known| known.history == point.history);
        if backup.origin == Origin::Own && !is_known && current != Some(&*point.history) {
            ended.push(point);
        }
    }
    ended
}

/// Copies the pieces of one history that have no copy yet. `all`: what is copied with the last one.
async fn copy_history(
    host: &Host,
    remote: &BackupStore,
    history: &str,
    segment: u64,
    all: Option<(u64, Timestamp)>,
) -> Result<()> {
    let paths = &host.paths;
    let pieces = local_pieces(paths, history)?;
    let replaced = replaced(&pieces, segment);
    let place = pieces_directory(paths, history);
    let directory = remote_directory(history);
    let from = Copied::load(paths)?
        .filter(|copied| copied.is_of(history, remote.url()))
        .map_or(0, |copied| copied.position);
    let copied = |position, time| Copied {
        url: remote.url().to_owned(),
        history: history.to_owned(),
        position,
        time,
    };
    let mut wanted: Vec<&Piece> = pieces
        .iter()
        .filter(|piece| !replaced.contains(piece) && piece.end_position(segment) > from)
        .collect();
    wanted.sort_by_key(|piece| piece.end_position(segment));
    for piece in wanted {
        let path = place.join(&piece.file);
        remote.put_file(&directory, &path).await?;
        copied(piece.end_position(segment), piece.time).save(paths)?;
    }
    if let Some((position, time)) = all {
        copied(position, time).save(paths)?;
    }
    for piece in &replaced {
        // It is in another one, and removed with it when that is too old.
        if let Err(error) = remote.remove_file(&directory, &piece.file).await {
            host.progress.warn(&format!("{error:#}"));
            break;
        }
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
    if progress.history != history || !copied.is_of(history, remote.url()) {
        return Ok(());
    }
    if is_behind(&progress, &copied, &all, present) {
        host.progress.warn(&format!(
            "{} has a later log of this cluster than this host, so the archive begins anew",
            remote.url()
        ));
        let _lock = lock(host).await?;
        // The rest of this history is not that of the store.
        let mark = pieces_directory(paths, history).join(COPIED);
        files::write_atomically(&mark, remote.url().as_bytes(), 0o600)?;
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
    use std::fs;

    use super::*;
    use crate::operations::backup::finish;
    use crate::operations::backup::manifest::tests::manifest;
    use crate::operations::backup::object_store::tests::settings;
    use crate::operations::backup::wal::fixtures::{SIZE, TIME, piece, point, progress};
    use crate::operations::backup::wal::make_directory;

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
        assert!(copied.is_of("1-0-t", "file:///copies") && !copied.is_of("1-0-t", "s3://b"));
    }

    #[tokio::test]
    async fn an_emptied_store_gets_everything_again() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        make_directory(&paths).unwrap();
        let mut manifest = manifest(Vec::new());
        manifest.base = Some(point("1-0-t", 0));
        let parent = directory(&paths);
        let staged = tempfile::tempdir_in(&parent).unwrap();
        finish(&paths, staged, &parent, &manifest).unwrap();
        let base = parent.join(manifest.id.as_str());
        let history = pieces_directory(&paths, "1-0-t");
        fs::create_dir_all(&history).unwrap();

        let store = root.path().join("store");
        let url = format!("file://{}", store.display());
        let remote = BackupStore::new(&url, &settings(&[])).unwrap().archive();
        assert!(!is_lost(&paths, &remote).await.unwrap());
        let copy = store.join("archive").join(manifest.id.as_str());
        fs::create_dir_all(&copy).unwrap();
        fs::write(copy.join("manifest.json"), "{}").unwrap();
        for place in [&base, &history] {
            fs::write(place.join(COPIED), &url).unwrap();
        }
        assert!(!is_lost(&paths, &remote).await.unwrap());
        fs::remove_dir_all(&store).unwrap();
        // It may not be mounted.
        is_lost(&paths, &remote).await.unwrap_err();
        fs::create_dir(&store).unwrap();
        assert!(is_lost(&paths, &remote).await.unwrap());
        forget_copies(&paths).unwrap();
        assert!(!base.join(COPIED).exists() && !history.join(COPIED).exists());
        assert!(!is_lost(&paths, &remote).await.unwrap());
    }

    #[test]
    fn each_ended_history_is_copied_once_and_in_order() {
        let base = |history: &str, position, origin| {
            let backup = Backup {
                directory: "/b".into(),
                manifest: manifest(Vec::new()),
                origin,
            };
            (backup, point(history, position))
        };
        let foreign = Origin::Foreign("");
        let all = [
            base("first", 3, Origin::Own),
            base("other", 4, foreign),
            base("first", 5, Origin::Own),
            base("second", 6, Origin::Own),
            base("current", 7, Origin::Own),
        ];
        let found = |current| ended(all.to_vec(), current);
        let (first, second) = (point("first", 3), point("second", 6));
        assert_eq!(found(Some("current")), [first.clone(), second.clone()]);
        assert_eq!(found(None), [first, second, point("current", 7)]);
    }
}

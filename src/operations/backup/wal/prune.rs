//! Which base backups are kept for how long, and the log that they need.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::base::bases;
use super::copy::put_again;
use super::piece::{Piece, histories, local_pieces, pieces};
use super::{WAL, directory, lock, pieces_directory, remote_directory};
use crate::deployment::operation_id::OperationId;
use crate::error::Result;
use crate::host::Host;
use crate::host::files;
use crate::operations::backup::manifest::BasePoint;
use crate::operations::backup::object_store::BackupStore;
use crate::operations::backup::retention::{Retention, expired};
use crate::operations::backup::{ids_in, remove_from};

/// Any time of these days can be recovered.
const DAYS: u8 = 7;

/// Removes base backups that are too old, and the log that no base backup needs.
pub(super) async fn prune(host: &Host) -> Result<()> {
    let paths = &host.paths;
    // A recovery lists them and takes them.
    let _lock = lock(host).await?;
    let parent = directory(paths);
    let known = bases(paths)?;
    let protected = last_of_each(known.iter().map(|(base, point)| (base.id(), point)), old());
    for id in expired(&ids_in(&parent)?, RETENTION, &protected) {
        remove_from(&parent, &id)?;
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

/// As [`prune`], in the store. Other deployments may have their archives there.
pub(super) async fn prune_copy(host: &Host, remote: &BackupStore) -> Result<()> {
    let mut known = remote.bases(host).await?;
    let protected = last_of_each(known.iter().map(|(id, point)| (id, point)), old());
    let gone = remote.prune(host, RETENTION, &protected).await?;
    // Of former histories, the directories stay on this host.
    let mut own = histories(&host.paths)?;
    known.retain(|(id, point)| {
        if gone.contains(id) {
            own.push(point.history.clone());
        }
        !gone.contains(id)
    });
    let points: Vec<BasePoint> = known.into_iter().map(|(_, point)| point).collect();
    for found in remote.directories(WAL).await? {
        if !own.contains(&found) {
            continue;
        }
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
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::{SIZE, TIME, piece, point};

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

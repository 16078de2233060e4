//! Finds what a recovery needs, in the archive on this host or in a copy of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;

use super::chain::{Chain, chain, log_size, needed};
use super::{RecoverOptions, Target};
use crate::deployment::operation_id::OperationId;
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::operations::backup::manifest::{self, BasePoint};
use crate::operations::backup::object_store::BackupStore;
use crate::operations::backup::wal::{self, Piece};
use crate::operations::backup::{
    Backup, archive, authentication, check_spaces, directory, expected_size, filled, make_private,
    restore,
};
use crate::output::{Meter, Progress};

/// Of two clusters in an archive, one that ended this long before the other is not meant.
const RECENT: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// What a recovery needs, in a directory of its own: nobody removes it meanwhile.
pub(super) struct Found {
    pub(super) base: Backup,
    pub(super) point: BasePoint,
    pub(super) pieces: Vec<Piece>,
    /// Where the pieces are.
    pub(super) place: PathBuf,
}

/// Takes it from the archive on this host.
pub(super) async fn linked(host: &Host, options: &RecoverOptions, staged: &Path) -> Result<Found> {
    let paths = &host.paths;
    let lock = wal::lock(host).await?;
    let bases = wal::bases(paths)?;
    let newest = bases
        .iter()
        .rfind(|(_, point)| options.target.is_after(point));
    let Some((base, point)) = newest else {
        let begin = bases.first().map(|(_, point)| point.complete);
        return Err(no_base(begin, &wal::directory(paths).display().to_string()));
    };
    let progress = wal::Progress::load(paths)?;
    let all = wal::local_pieces(paths, &point.history)?;
    let pieces = if let Some(progress) = &progress
        && options.target == Target::Latest
        && !progress.continues(point)
    {
        let Chain { pieces, .. } = chain(&all, point);
        let reach = pieces.last().map_or(point.complete, |piece| piece.time);
        return Err(Failure::new(format!(
            "the archive began anew, and has no base backup since: what was written after {reach:.0} can't be recovered"
        ))
        .hint(format!(
            "to make that base backup: `litellm-units backup`; to recover what was before: `litellm-units restore --to {reach:.0}`"
        ))
        .into());
    } else {
        // A server that writes nothing is archived as well.
        let stored = progress.filter(|progress| progress.continues(point));
        let stored = stored.map(|progress| progress.time());
        needed(&all, point, options.target, stored)?
    };
    if let Target::At(time) = options.target {
        for other in wal::histories(paths)? {
            if other != point.history {
                let others = wal::local_pieces(paths, &other)?;
                refuse_other_cluster(&pieces, point, time, &other, &others)?;
            }
        }
    }
    let base = base.clone().admitted(options.foreign)?;
    restore::refuse(host, &base, &options.restore)?;
    refuse_full_disks(host, &base, &pieces, 0)?;
    let directory = staged.join(base.id().as_str());
    for name in base
        .manifest
        .files
        .iter()
        .map(|file| file.stored.as_str())
        .chain([authentication::FILE, manifest::FILE])
    {
        let from = base.directory.join(name);
        if name != authentication::FILE || from.exists() {
            link(&from, &directory.join(name))?;
        }
    }
    let place = staged.join("wal");
    for piece in &pieces {
        let from = wal::pieces_directory(paths, &point.history).join(&piece.file);
        link(&from, &place.join(&piece.file))?;
    }
    // The archive goes on: nobody takes these files away.
    drop(lock);
    let (files, manifest) = (directory.clone(), base.manifest.clone());
    tokio::task::spawn_blocking(move || {
        let meter = Meter::new("checked", manifest.total_size(), &Progress::Silent);
        archive::check_files(&files, &manifest, &meter)
    })
    .await
    .context("the check of the base backup stopped")??;
    Ok(Found {
        base: Backup { directory, ..base },
        point: point.clone(),
        pieces,
        place,
    })
}

/// Refuses when the disks can't hold what is fetched (`fetched` bytes), the recovered cluster with its log, the backup of it,
/// or the restored database.
fn refuse_full_disks(host: &Host, base: &Backup, pieces: &[Piece], fetched: u64) -> Result<()> {
    let paths = &host.paths;
    let size = base.manifest.database.size;
    let point = base
        .manifest
        .base
        .as_ref()
        .context("it is no base backup")?;
    let log = log_size(pieces, point);
    let backups = directory(paths);
    let mut needed = vec![
        (
            &*backups,
            fetched.saturating_add(expected_size(paths, size)),
        ),
        (&*paths.storage, size.saturating_add(log)),
    ];
    needed.retain(|(place, _)| place.exists());
    check_spaces(&needed)?;
    // The container is gone by then.
    let data = paths.postgres_data();
    if data.exists() {
        check_spaces(&[(&data, filled(size))])?;
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        make_private(parent)?;
    }
    std::fs::hard_link(from, to)
        .or_else(|_| std::fs::copy(from, to).map(drop))
        .path_context("can't take", from)
}

/// Takes it from a copy.
pub(super) async fn fetched(
    host: &Host,
    remote: &BackupStore,
    options: &RecoverOptions,
    staged: &Path,
) -> Result<Found> {
    let mut clusters: BTreeMap<String, Cluster> = BTreeMap::new();
    for (id, point) in remote.bases(host).await? {
        let cluster = clusters.entry(point.history.clone()).or_default();
        cluster.bases.push((id, point));
    }
    let begin = clusters
        .values()
        .filter_map(|cluster| Some(cluster.bases.first()?.1.complete))
        .min();
    if let Some(wanted) = &options.cluster {
        clusters.retain(|system, _| system == wanted);
    }
    let known: Vec<String> = clusters.keys().cloned().collect();
    clusters.retain(|_, cluster| {
        let mut points = cluster.bases.iter().map(|(_, point)| point);
        points.any(|point| options.target.is_after(point))
    });
    for (history, cluster) in &mut clusters {
        cluster.files = remote.files(&wal::remote_directory(history)).await?;
        let pieces = wal::pieces(cluster.files.keys().cloned());
        let time = pieces.iter().map(|piece| piece.time).max();
        let complete = cluster.bases.last().map(|(_, point)| point.complete);
        cluster.reach = time.max(complete).unwrap_or_default();
    }
    let chosen = match chosen(&clusters, options.target) {
        Ok(chosen) => chosen.ok_or_else(|| no_base(begin, remote.url()))?,
        Err(rivals) => {
            let rivals: Vec<String> = rivals
                .iter()
                .map(|(system, reach)| format!("{system} (until {reach:.0})"))
                .collect();
            return Err(Failure::new(format!(
                "the archive in {} is of several clusters that were in use at the same time: {}",
                remote.url(),
                rivals.join(", ")
            ))
            .hint("name the one to recover: `--cluster ID`; a host that still runs has its own in backups/archive/wal")
            .into());
        }
    };
    let cluster = &clusters[&chosen];
    if clusters.len() > 1 {
        host.progress.say(&format!(
            "the archive has several clusters; this is {chosen}, which reaches {:.0}",
            cluster.reach
        ));
    }
    let newest = cluster
        .bases
        .iter()
        .rfind(|(_, point)| options.target.is_after(point));
    let (id, point) = newest.context("the archive has no base backup of that time")?;
    let all = wal::pieces(cluster.files.keys().cloned());
    let pieces = needed(&all, point, options.target, None)?;
    // A cluster that was begun later, for example by an upgrade of PostgreSQL, may have no base backup yet.
    for other in remote.directories(wal::WAL).await? {
        if options.cluster.is_some() || other == chosen {
            continue;
        }
        let time = match options.target {
            Target::At(time) => time,
            Target::Latest if known.contains(&other) => continue,
            Target::Latest => Timestamp::MAX,
        };
        let others = remote.files(&wal::remote_directory(&other)).await?;
        let others = wal::pieces(others.into_keys());
        refuse_other_cluster(&pieces, point, time, &other, &others)?;
    }
    let sizes = pieces
        .iter()
        .filter_map(|piece| cluster.files.get(&piece.file));
    let sizes: u64 = sizes.sum();
    let refuse = |base: &Backup| {
        let base = base.clone().admitted(options.foreign)?;
        restore::refuse(host, &base, &options.restore)?;
        refuse_full_disks(
            host,
            &base,
            &pieces,
            sizes.saturating_add(base.manifest.total_size()),
        )
    };
    let base = remote.fetch_to(host, id, staged, refuse).await?;
    let place = staged.join("wal");
    make_private(&place)?;
    let directory = wal::remote_directory(&point.history);
    for piece in &pieces {
        let size = cluster.files.get(&piece.file).copied().unwrap_or_default();
        remote
            .get_file(&directory, &piece.file, &place.join(&piece.file), size)
            .await?;
    }
    Ok(Found {
        base,
        point: point.clone(),
        pieces,
        place,
    })
}

fn no_base(begin: Option<Timestamp>, place: &str) -> anyhow::Error {
    match begin {
        Some(begin) => Failure::new(format!(
            "the archive in {place} begins at {begin:.0}, so an earlier time can't be recovered"
        ))
        .hint("name a later time, or restore a nightly backup: `litellm-units backup list`"),
        None => Failure::new(format!("there is no base backup in {place}"))
            .hint("with BACKUP_WAL=yes in .env, `litellm-units backup` makes one; to recover from a copy, add `--from URL`"),
    }
    .into()
}

/// One of the clusters in a copy.
#[derive(Debug, Default)]
struct Cluster {
    /// Oldest first.
    bases: Vec<(OperationId, BasePoint)>,
    /// The files of its log, and their sizes.
    files: BTreeMap<String, u64>,
    /// The time of the last one.
    reach: Timestamp,
}

/// The cluster that reaches furthest. Without an answer for sure, those from which to choose: two hosts that were in use at
/// the same time have written to the same place, as with a test that was made of this very recovery.
fn chosen(
    clusters: &BTreeMap<String, Cluster>,
    target: Target,
) -> Result<Option<String>, Vec<(String, Timestamp)>> {
    let is_reached = |cluster: &Cluster| match target {
        Target::Latest => true,
        Target::At(time) => cluster.reach >= time,
    };
    let Some((system, best)) = clusters.iter().max_by_key(|(_, cluster)| cluster.reach) else {
        return Ok(None);
    };
    let begin = best.bases.first().map(|(_, point)| point.complete);
    let is_rival = |cluster: &Cluster| {
        let overlaps = begin.is_none_or(|begin| cluster.reach > begin);
        let is_recent = match target {
            Target::Latest => best.reach.duration_since(cluster.reach) < RECENT,
            Target::At(_) => true,
        };
        is_reached(cluster) && overlaps && is_recent
    };
    let rivals: Vec<_> = clusters
        .iter()
        .filter(|(_, cluster)| is_rival(cluster))
        .map(|(system, cluster)| (system.clone(), cluster.reach))
        .collect();
    if rivals.len() > 1 {
        return Err(rivals);
    }
    Ok(Some(system.clone()))
}

/// Refuses a time at which another cluster was in use, as between an upgrade of PostgreSQL and the rollback. Without a base
/// backup of the other one, what was chosen has the rows from before.
fn refuse_other_cluster(
    pieces: &[Piece],
    point: &BasePoint,
    target: Timestamp,
    other: &str,
    others: &[Piece],
) -> Result<()> {
    let times = |pieces: &[Piece]| {
        let times = pieces.iter().map(|piece| piece.time);
        times.filter(|time| *time <= target).max()
    };
    let last = times(pieces).map_or(point.complete, |last| last.max(point.complete));
    if times(others).is_none_or(|time| time <= last) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "after {last:.0}, another cluster ({other}) was in use, of which there is no base backup before that time"
    ))
    .hint(format!(
        "name a time until {last:.0}, or one after the first base backup of that cluster"
    ))
    .into())
}

/// Refuses pieces that were not written by this deployment.
pub(super) fn check_origin(host: &Host, found: &Found) -> Result<()> {
    for piece in &found.pieces {
        if !piece.is_own(&host.paths, &found.place, &found.point.history)? {
            return Err(Failure::new(format!(
                "{} of the write-ahead log was changed, or is not of this deployment",
                piece.file
            ))
            .hint("recover from another copy (`--from URL`), or to an earlier time")
            .into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::{piece, point};

    #[test]
    fn the_cluster_that_is_meant() {
        let hours = |hours: i64| {
            let day: Timestamp = "2026-11-20T00:00:00Z".parse().unwrap();
            day + jiff::SignedDuration::from_hours(hours)
        };
        let cluster = |begin, end| Cluster {
            bases: vec![(
                OperationId::new(hours(begin)).unwrap(),
                BasePoint {
                    complete: hours(begin),
                    ..point("1", 0)
                },
            )],
            files: BTreeMap::new(),
            reach: hours(end),
        };
        let of = |clusters: &[(&str, i64, i64)], target| {
            let clusters = clusters
                .iter()
                .map(|(system, begin, end)| ((*system).to_owned(), cluster(*begin, *end)));
            chosen(&clusters.collect(), target)
        };
        let one = |system: &str| Ok(Some(system.to_owned()));
        let latest = Target::Latest;
        assert_eq!(of(&[], latest), Ok(None));
        assert_eq!(of(&[("1", 0, 9)], latest), one("1"));
        // One after the other, on a new host.
        assert_eq!(of(&[("1", 0, 9), ("2", 10, 20)], latest), one("2"));
        // A test on a spare host, while the other one goes on; the loss comes later, or soon.
        assert_eq!(of(&[("1", 0, 99), ("2", 10, 20)], latest), one("1"));
        let both = Err(vec![
            ("1".to_owned(), hours(19)),
            ("2".to_owned(), hours(20)),
        ]);
        assert_eq!(of(&[("1", 0, 19), ("2", 10, 20)], latest), both);
        let at = Target::At(hours(15));
        assert_eq!(of(&[("1", 0, 19), ("2", 10, 20)], at), both);
        assert_eq!(of(&[("1", 0, 19), ("2", 10, 14)], at), one("1"));
        // Neither reaches it: the error says how far the archive goes.
        assert_eq!(of(&[("1", 0, 9), ("2", 10, 14)], at), one("2"));
    }

    #[test]
    fn the_time_of_another_cluster_is_refused() {
        let at = |time: &str| piece(2, 0, 9, &format!("2026-11-26T{time}:00Z"));
        // In use until 10:00 and again from 12:00 on, after a rollback.
        let pieces = [at("09:50"), at("12:05")];
        let others = [at("10:05"), at("11:30")];
        let base = point("old", 0);
        let refused = |time: &str| {
            let refused = refuse_other_cluster(&pieces, &base, at(time).time, "new", &others);
            refused.is_err_and(|error| {
                crate::error::hint(&error)
                    .unwrap()
                    .contains("until 2026-11-26T09:50:00Z, ")
            })
        };
        assert!(refused("10:05") && refused("11:59"));
        assert!(!refused("09:55") && !refused("12:05"));
    }
}

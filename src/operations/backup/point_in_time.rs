//! Recovers the database as it was at a time: a base backup and the write-ahead log, in a throw-away container.
//!
//! What is recovered becomes a backup like any other, so that it is compared, restored and undone as one. The running
//! server takes no part in it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tokio::signal::unix::{SignalKind, signal};

use super::archive;
use super::authentication::{self, Origin};
use super::database::Server;
use super::manifest::{self, BASE, BackupManifest, BasePoint, RecoveredFrom};
use super::object_store::BackupStore;
use super::wal::{self, Piece};
use super::{
    Backup, BackupOptions, ENV, Recovered, UNFINISHED, check_space, make_private, remove_unfinished,
};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::{DEFAULT_POSTGRES_NAME, Settings, parse_env, read_env};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::podman::Podman;
use crate::image::ImageReference;
use crate::output::{Meter, Progress, bytes, duration};
use crate::service::Service;

/// The throw-away container.
const CONTAINER: &str = "litellm-recovered";
/// The prefix of the directory of a recovery, which is there as long as the container may be.
const STAGED: &str = ".new-recovery-";
/// In it: the cluster, the log, and what the server says.
const PLACE: &str = "/tmp/recovered";
/// How much later a piece may be whose transactions say an earlier time.
const LATE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// Of two clusters in an archive, one that ended this long before the other is not meant.
const RECENT: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// How long the server may take to recover.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
/// Starts the server and waits until it has recovered: `pg_ctl` waits only until the recovery has begun.
const START: &str = r#"cd "$1"; : >log; status=0
pg_ctl --pgdata=data --log=log --silent --wait --timeout=600 start >/dev/null 2>&1 || status=$?
until [ "$status" -ne 0 ] || pg_isready --quiet --host="$1"; do
    sleep 0.2
    pg_ctl --pgdata=data status >/dev/null || status=1
done
cat log; exit "$status""#;
/// Said about a record that was read as a whole, and is not what was written.
const DAMAGED: [&str; 2] = [
    "incorrect resource manager data checksum in record",
    "record with incorrect prev-link",
];
/// Said by a server whose log has no transaction after the target.
const ENDED: &str = "recovery ended before configured recovery target was reached";

/// A time to which the database is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The end of the archive.
    Latest,
    At(Timestamp),
}

impl Target {
    /// Whether a base backup was complete at that time.
    fn is_after(self, point: &BasePoint) -> bool {
        match self {
            Self::Latest => true,
            Self::At(time) => point.complete <= time,
        }
    }

    /// Reads `latest`, a time of RFC 3339, or a local time of `zone`.
    ///
    /// # Errors
    /// When it is neither, or the local time is ambiguous.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::At(time));
        }
        let wrong = |problem: &str| {
            anyhow::Error::from(
                Failure::new(format!("{text:?} {problem}"))
                    .hint("write it as 2026-11-26T14:05:00 (local time), 2026-11-26T14:05:00Z or 2026-11-26T14:05:00+01:00, or `latest`"),
            )
        };
        let time: DateTime = text.parse().map_err(|_| wrong("is not a time"))?;
        let time = zone
            .to_ambiguous_timestamp(time)
            .unambiguous()
            .map_err(|_| wrong("is not one time, since the clocks were changed then"))?;
        Ok(Self::At(time))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RecoverOptions {
    pub target: Target,
    /// The URL of the copy to recover from; `None` for the archive on this host.
    pub from: Option<String>,
    /// The identifier of the cluster to recover from that URL.
    pub cluster: Option<String>,
    /// The file with the age identity, for an archive that is encrypted.
    pub identity: Option<PathBuf>,
    /// Accept an archive that this deployment did not make.
    pub foreign: bool,
}

/// Recovers the database and makes a backup of it.
///
/// # Errors
/// When the archive does not reach that time, is damaged or incomplete; nothing is left of the attempt.
pub(crate) async fn recover(
    host: &Host,
    settings: &Settings,
    options: &RecoverOptions,
) -> Result<Backup> {
    let begin = std::time::Instant::now();
    let remote = options.from.as_ref();
    let remote = remote
        .map(|url| BackupStore::new(url, &settings.backup).map(BackupStore::archive))
        .transpose()?;
    let parent = super::directory(&host.paths);
    make_private(&parent)?;
    // It goes with this function; after a kill, by `clean_up`.
    let staged = tempfile::Builder::new()
        .prefix(STAGED)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent)
        .with_context(|| format!("can't create a directory in {}", parent.display()))?;
    let found = if let Some(remote) = &remote {
        fetched(host, remote, options, staged.path()).await?
    } else {
        catch_up(host, settings).await;
        linked(host, options, staged.path()).await?
    };
    if found.base.origin == Origin::Own {
        check_origin(host, &found)?;
    }
    let server = Recovery {
        host,
        podman: host.podman().await?,
        base: &found.base,
        point: &found.point,
        place: &found.place,
        identity: options.identity.as_deref(),
    };
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let recovered = tokio::select! {
        result = server.recover(settings, &found.pieces, options.target) => result,
        _ = interrupt.recv() => Err(Failure::interrupted("interrupted; the database is unchanged").into()),
    };
    if let Err(error) = remove_container(server.podman).await {
        // The next operation tries again.
        let _ = staged.keep();
        return Err(error);
    }
    let backup = recovered?;
    host.progress
        .say(&format!("recovered in {}", duration(begin.elapsed())));
    Ok(backup)
}

/// Archives what the server has written, if it runs. Without it, the archive is used as it is.
async fn catch_up(host: &Host, settings: &Settings) {
    if !settings.backup.wal {
        return;
    }
    let attempt = async {
        let server = Server::new(host, settings).await?;
        wal::archive(host, settings, &server).await.map(drop)
    };
    if let Err(error) = attempt.await {
        host.progress.warn(&format!(
            "what was written since the last run of litellm-wal.service is not in the archive: {error:#}"
        ));
    }
}

/// What a recovery needs, in a directory of its own: nobody removes it meanwhile.
struct Found {
    base: Backup,
    point: BasePoint,
    pieces: Vec<Piece>,
    /// Where the pieces are.
    place: PathBuf,
}

/// Takes it from the archive on this host.
async fn linked(host: &Host, options: &RecoverOptions, staged: &Path) -> Result<Found> {
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

fn link(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        make_private(parent)?;
    }
    std::fs::hard_link(from, to)
        .or_else(|_| std::fs::copy(from, to).map(drop))
        .with_context(|| format!("can't take {}", from.display()))
}

/// Takes it from a copy.
async fn fetched(
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
    check_space(staged, sizes.sum())?;
    let base = remote.fetch_to(host, id, staged).await?;
    let base = base.admitted(options.foreign)?;
    let place = staged.join("wal");
    make_private(&place)?;
    let directory = wal::remote_directory(&point.history);
    for piece in &pieces {
        remote
            .get_file(&directory, &piece.file, &place.join(&piece.file))
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

/// The pieces from the base backup to the target, in order. Until `stored`, the server has written nothing else.
fn needed(
    all: &[Piece],
    point: &BasePoint,
    target: Target,
    stored: Option<Timestamp>,
) -> Result<Vec<Piece>> {
    let Chain { pieces: found, gap } = chain(all, point);
    let mut reach = found.last().map_or(point.complete, |piece| piece.time);
    if gap.is_none() {
        reach = reach.max(stored.unwrap_or(reach));
    }
    let is_beyond = match target {
        Target::Latest => gap.is_some(),
        Target::At(time) => time > reach,
    };
    if is_beyond {
        return Err(match gap {
            Some(segment) => Failure::new(format!(
                "the archive has a gap: segment {segment} of the write-ahead log is not complete"
            ))
            .hint(format!(
                "name a time until {reach:.0}, or one after the next base backup; or recover from another copy: `--from URL`"
            )),
            None => Failure::new(format!("the archive ends at {reach:.0}, before that time"))
                .hint("to recover everything in it: `litellm-units restore --to latest`"),
        }
        .into());
    }
    let end = found
        .iter()
        .position(|piece| matches!(target, Target::At(time) if piece.time > time + LATE))
        .map_or(found.len(), |end| end + 1);
    Ok(found.into_iter().take(end).collect())
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

/// The pieces that follow each other, from the segment of a base backup on.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    pieces: Vec<Piece>,
    /// The segment that is not complete, although later ones are there.
    gap: Option<String>,
}

fn chain(all: &[Piece], point: &BasePoint) -> Chain {
    let size = point.segment_size;
    let first = point.position / size;
    let newest = all.iter().map(|piece| piece.number(size)).max();
    let mut pieces: Vec<Piece> = Vec::new();
    for number in first..=newest.unwrap_or(first) {
        let mut end = 0;
        // An archive that began anew may have parts that overlap.
        while let Some(next) = all
            .iter()
            .filter(|piece| piece.number(size) == number && piece.start == end)
            .max_by_key(|piece| piece.end)
        {
            end = next.end;
            pieces.push(next.clone());
        }
        let mut of_segment = all.iter().filter(|piece| piece.number(size) == number);
        let is_unused = of_segment.any(|piece| piece.end > end);
        if end < size && (is_unused || newest.is_some_and(|newest| newest > number)) {
            let segment = wal::Segment {
                timeline: point.timeline,
                number,
                size,
            };
            return Chain {
                pieces,
                gap: Some(segment.name()),
            };
        }
    }
    Chain { pieces, gap: None }
}

/// Refuses pieces that were not written by this deployment.
fn check_origin(host: &Host, found: &Found) -> Result<()> {
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

/// Whether [`clean_up`] has something to do, unless a recovery is running.
#[must_use]
pub(crate) fn is_unfinished(paths: &Paths) -> bool {
    let entries = std::fs::read_dir(super::directory(paths));
    entries.is_ok_and(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .into_iter()
            .any(|name| name.as_encoded_bytes().starts_with(STAGED.as_bytes()))
    })
}

/// Removes the container of a recovery that was killed, and what it has read: the cluster is in it in clear.
///
/// # Errors
/// When Podman or the disk refuses.
pub(crate) async fn clean_up(host: &Host) -> Result<()> {
    if is_unfinished(&host.paths) {
        remove_container(host.podman().await?).await?;
        remove_unfinished(host)?;
    }
    Ok(())
}

async fn remove_container(podman: &Podman) -> Result<()> {
    podman
        .run(["rm", "--force", "--ignore", "--time=0", CONTAINER])
        .await
        .map(drop)
}

struct Recovery<'a> {
    host: &'a Host,
    podman: &'a Podman,
    base: &'a Backup,
    point: &'a BasePoint,
    /// Where the pieces are.
    place: &'a Path,
    identity: Option<&'a Path>,
}

impl Recovery<'_> {
    async fn recover(
        &self,
        settings: &Settings,
        pieces: &[Piece],
        target: Target,
    ) -> Result<Backup> {
        let manifest = &self.base.manifest;
        let image = manifest
            .images
            .of(Service::Postgres)
            .with_context(|| format!("base backup {} names no image of PostgreSQL", manifest.id))?
            .pinned();
        let image = ImageReference::parse(&image)
            .map_err(|error| anyhow::anyhow!("image {image} can't be used: {error}"))?;
        if !self.podman.has_image(image.as_str()).await? {
            self.podman.pull(image.as_str()).await?;
        }
        let segments = pieces.chunk_by(|one, other| one.segment == other.segment);
        let log = segments.count() as u64 * self.point.segment_size;
        let needed = manifest.database.size.saturating_add(log);
        let storage = &self.host.paths.storage;
        if storage.exists() {
            check_space(storage, needed)?;
        }
        let configuration = self.configuration()?;
        self.host.progress.say(&format!(
            "recovering base backup {} and {} of the write-ahead log in a container",
            manifest.id,
            bytes(log)
        ));
        let env = configuration.path().join(".env");
        let env = parse_env(&read_env(&env)?, &env)?;
        let name = |variable| {
            let value = env.get(variable).filter(|value| !value.is_empty());
            value.unwrap_or(DEFAULT_POSTGRES_NAME)
        };
        self.start_container(image.as_str(), name("POSTGRES_USER"))
            .await?;
        self.unpack().await?;
        self.hand_over(pieces).await?;
        let end = pieces
            .last()
            .map(|piece| piece.end_position(self.point.segment_size));
        self.start_server(target, end).await?;
        let server = Server::in_recovered(self.host, CONTAINER, PLACE, name("POSTGRES_DB")).await?;
        let options = BackupOptions {
            retention: None,
            recovered: Some(Recovered {
                configuration: configuration.path().to_owned(),
                images: manifest.images.clone(),
                from: RecoveredFrom {
                    time: match target {
                        Target::At(time) => time,
                        Target::Latest => pieces
                            .last()
                            .map_or(self.point.complete, |piece| piece.time),
                    },
                    elsewhere: self.base.origin != Origin::Own,
                },
            }),
            ..BackupOptions::default()
        };
        Box::pin(super::create_from(self.host, settings, &server, &options)).await
    }

    /// The `.env`, `config/` and the like of the base backup, in a directory of their own.
    fn configuration(&self) -> Result<tempfile::TempDir> {
        let parent = super::directory(&self.host.paths);
        let place = tempfile::Builder::new()
            .prefix(&format!("{UNFINISHED}configuration-"))
            .tempdir_in(&parent)
            .with_context(|| format!("can't create a directory in {}", parent.display()))?;
        make_private(&place.path().join("config"))?;
        for file in &self.base.manifest.files {
            let Some(name) = file.name.strip_prefix("deployment/") else {
                continue;
            };
            let bytes = archive::read(
                &self.base.directory,
                &self.base.manifest,
                &file.name,
                self.identity,
            )?;
            let path = place.path().join(name);
            if let Some(parent) = path.parent() {
                make_private(parent)?;
            }
            files::write_atomically(&path, &bytes, file.mode.unwrap_or(0o600))?;
        }
        anyhow::ensure!(
            place.path().join(".env").is_file(),
            "base backup {} has no {ENV}",
            self.base.id()
        );
        Ok(place)
    }

    async fn start_container(&self, image: &str, user: &str) -> Result<()> {
        remove_container(self.podman).await?;
        let user = format!("--env=POSTGRES_USER={user}");
        let words = [
            "run",
            "--detach",
            "--rm",
            "--name",
            CONTAINER,
            "--pull=never",
            "--network=none",
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
            "--log-driver=none",
            "--shm-size=256m",
            "--user=postgres",
            &user,
            "--entrypoint=sleep",
            image,
            "infinity",
        ];
        self.podman.run(words).await.map(drop)
    }

    /// Runs a script in the container, with `source` as its stdin. Returns whether it succeeded, and what it said.
    async fn script(
        &self,
        script: &str,
        arguments: &[&str],
        source: impl Read + Send + 'static,
    ) -> Result<(bool, String)> {
        let words = ["exec", "--interactive", CONTAINER, "sh", "-c", script, "sh"];
        let (reader, mut writer) = std::io::pipe().context("can't make a pipe")?;
        let mut command = self.podman.command(words.iter().chain(arguments));
        command
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().context("can't run podman")?;
        drop(command);
        let writing = tokio::task::spawn_blocking(move || {
            let mut source = source;
            archive::copy(&mut source, &mut writer)
        });
        let (written, output) = tokio::join!(writing, child.wait_with_output());
        let output = output.context("can't run podman")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match written.context("the reader of the archive stopped")? {
            // The script says why it read no further.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.context("can't read the archive")?,
        }
        let said = said + &String::from_utf8_lossy(&output.stdout);
        Ok((output.status.success(), said.trim().to_owned()))
    }

    async fn must(
        &self,
        script: &str,
        arguments: &[&str],
        source: impl Read + Send + 'static,
    ) -> Result<()> {
        match self.script(script, arguments, source).await? {
            (true, _) => Ok(()),
            (false, said) => Err(anyhow::anyhow!("the container for the recovery: {said}")),
        }
    }

    async fn unpack(&self) -> Result<()> {
        let source = archive::open(
            &self.base.directory,
            &self.base.manifest,
            BASE,
            self.identity,
        )?;
        let script =
            "umask 077; mkdir -p \"$1/data\" \"$1/wal\" && exec tar -x -f - -C \"$1/data\"";
        self.must(script, &[PLACE], source).await
    }

    /// Puts whole segments into the container. The rest of the last one is empty, as in a server that has just begun it.
    async fn hand_over(&self, pieces: &[Piece]) -> Result<()> {
        for of_segment in pieces.chunk_by(|one, other| one.segment == other.segment) {
            let paths = of_segment.iter().map(|piece| self.place.join(&piece.file));
            let source = OneByOne {
                paths: paths.collect(),
                open: None,
                manifest: self.base.manifest.clone(),
                identity: self.identity.map(Path::to_owned),
            };
            let size = self.point.segment_size;
            let source = source.chain(std::io::repeat(0)).take(size);
            let script = "exec cat >\"$1\"";
            let name = of_segment.first().map(|piece| piece.segment.clone());
            let path = format!("{PLACE}/wal/{}", name.unwrap_or_default());
            self.must(script, &[&path], source).await?;
        }
        Ok(())
    }

    /// Starts the server, which recovers, and then accepts connections.
    async fn start_server(&self, target: Target, end: Option<u64>) -> Result<()> {
        let mut lines = format!(
            "
listen_addresses = ''
unix_socket_directories = '{PLACE}'
hba_file = '{PLACE}/hba'
restore_command = 'cp \"{PLACE}/wal/%f\" \"%p\"'
recovery_target_timeline = 'current'
recovery_target_action = 'promote'
hot_standby = off
shared_buffers = '128MB'
huge_pages = off
archive_mode = off
fsync = off
ssl = off
logging_collector = off
log_destination = 'stderr'
log_min_messages = 'log'
log_timezone = 'UTC'
lc_messages = 'C'
shared_preload_libraries = ''
"
        );
        if let Target::At(time) = target {
            // Not Z: it is an abbreviation, which PostgreSQL does not know yet when it reads this.
            let time = time.strftime("%Y-%m-%d %H:%M:%S%.6f+00");
            lines.push_str(&format!("recovery_target_time = '{time}'\n"));
        }
        let prepare = "umask 077; cd \"$1\"; cat >>data/postgresql.auto.conf; echo 'local all all trust' >hba; : >data/recovery.signal";
        self.must(prepare, &[PLACE], std::io::Cursor::new(lines))
            .await?;
        let (started, mut said) = self.start().await?;
        let mut is_to_the_end = target == Target::Latest;
        if !started && said.contains(ENDED) {
            // Nothing was committed after the target, so everything in the archive is before it.
            let anywhere = "echo \"recovery_target_time = ''\" >>\"$1/data/postgresql.auto.conf\"";
            self.must(anywhere, &[PLACE], std::io::empty()).await?;
            let (started, again) = self.start().await?;
            said = again;
            is_to_the_end = true;
            if !started {
                return Err(failed(&said));
            }
        } else if !started {
            return Err(failed(&said));
        }
        if is_to_the_end && let Some(end) = end {
            refuse_damage(&said, end, self.point.segment_size)?;
        }
        let last = said
            .lines()
            .filter_map(|line| line.split_once("last completed transaction was at log time "))
            .map(|(_, time)| time.trim())
            .next_back();
        self.host.progress.say(&match (target, last) {
            (Target::At(time), Some(last)) => {
                format!("recovered to {time:.0}; the last transaction before it is of {last}")
            }
            (Target::At(time), None) => format!("recovered to {time:.0}"),
            (Target::Latest, Some(last)) => format!("recovered to the last transaction, of {last}"),
            (Target::Latest, None) => "recovered".to_owned(),
        });
        Ok(())
    }

    /// Returns whether it accepts connections, and its log.
    async fn start(&self) -> Result<(bool, String)> {
        let attempt = self.script(START, &[PLACE], std::io::empty());
        tokio::time::timeout(RECOVERY_TIMEOUT, attempt)
            .await
            .map_err(|_| {
                let hours = RECOVERY_TIMEOUT.as_secs() / 3600;
                anyhow::anyhow!("PostgreSQL did not complete the recovery within {hours} h")
            })?
    }
}

/// Reads stored files one after the other: a segment can have thousands of parts.
struct OneByOne {
    paths: VecDeque<PathBuf>,
    open: Option<Box<dyn Read + Send>>,
    manifest: BackupManifest,
    identity: Option<PathBuf>,
}

impl Read for OneByOne {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if let Some(open) = &mut self.open {
                match open.read(buffer)? {
                    0 => self.open = None,
                    count => return Ok(count),
                }
            }
            let Some(path) = self.paths.pop_front() else {
                return Ok(0);
            };
            let opened = archive::open_stored(&path, &self.manifest, self.identity.as_deref());
            self.open = Some(opened.map_err(std::io::Error::other)?);
        }
    }
}

/// Where the last record of the log was that the server has read.
fn redo_done(said: &str) -> Option<u64> {
    let (_, rest) = said.rsplit_once("redo done at ")?;
    let (high, low) = rest.split_whitespace().next()?.split_once('/')?;
    let part = |digits| u64::from_str_radix(digits, 16).ok();
    Some(part(high)? << 32 | part(low)?)
}

/// Refuses a log that PostgreSQL has not read to its end: what it can't read ends it, without an error.
///
/// Behind the last record there may be the empty rest of a segment that was ended early, and the begin of an incomplete
/// record. An end that is less than two segments early is therefore found by PostgreSQL's words only.
fn refuse_damage(said: &str, end: u64, segment_size: u64) -> Result<()> {
    let done = redo_done(said).unwrap_or_default();
    let is_wrong = |line: &str| DAMAGED.iter().any(|words| line.contains(words));
    let is_early = done.saturating_add(2 * segment_size) < end;
    let wrong = said.lines().rfind(|line| is_wrong(line));
    if !is_early && wrong.is_none() {
        return Ok(());
    }
    let reason = wrong.and_then(|line| line.split_once("LOG:"));
    Err(Failure::new(format!(
        "the write-ahead log is damaged: PostgreSQL read it until {} of {}{}",
        wal::format_position(done),
        wal::format_position(end),
        reason.map_or_else(String::new, |(_, reason)| format!(" ({})", reason.trim()))
    ))
    .hint("recover from another copy (`--from URL`), or to an earlier time")
    .into())
}

/// The refusal of the server, by its last messages.
fn failed(said: &str) -> anyhow::Error {
    let is_cause = |line: &&str| line.contains("FATAL") || line.contains("PANIC");
    let cause = said.lines().rfind(is_cause).or(said.lines().next_back());
    anyhow::anyhow!(
        "PostgreSQL can't recover: {}",
        cause.unwrap_or("it gives no reason")
    )
}

#[cfg(test)]
mod tests {
    use super::super::wal::tests::{SIZE, piece, point};
    use super::*;

    #[test]
    fn times() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = |text: &str| Target::At(text.parse().unwrap());
        for (text, expected) in [
            ("latest", Target::Latest),
            ("2026-11-26T14:05:07Z", at("2026-11-26T14:05:07Z")),
            ("2026-11-26T14:05:00+01:00", at("2026-11-26T13:05:00Z")),
            ("2026-11-26T14:05", at("2026-11-26T13:05:00Z")),
            ("2026-07-26 14:05:07.5", at("2026-07-26T12:05:07.5Z")),
        ] {
            assert_eq!(Target::parse(text, &zone).unwrap(), expected, "{text}");
        }
        for (text, problem) in [
            ("yesterday", "is not a time"),
            ("", "is not a time"),
            ("14:05", "is not a time"),
            (
                "2026-10-25T02:30:00",
                "is not one time, since the clocks were changed then",
            ),
        ] {
            let error = Target::parse(text, &zone).unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} {problem}"));
        }
    }

    #[test]
    fn a_recovery_that_was_killed_is_found() {
        let root = tempfile::tempdir().unwrap();
        let mut paths = Paths::elsewhere(crate::host::paths::Scope::System);
        paths.deployment = root.path().to_owned();
        let backups = root.path().join("backups");
        assert!(!is_unfinished(&paths));
        // Of a backup that was killed.
        std::fs::create_dir_all(backups.join(".new-20260131T023000Z-0a1b2c-x")).unwrap();
        assert!(!is_unfinished(&paths));
        std::fs::create_dir(backups.join(format!("{STAGED}x"))).unwrap();
        assert!(is_unfinished(&paths) && STAGED.starts_with(UNFINISHED));
    }

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

    #[test]
    fn a_segment_of_many_parts_is_read_one_part_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let recipient = archive::Recipient::parse(None).unwrap();
        let mut expected = Vec::new();
        let mut paths = VecDeque::new();
        for number in 0..300 {
            let name = format!("part-{number}");
            let text = format!("{number},");
            let stored =
                archive::store(root.path(), &name, true, &recipient, &mut text.as_bytes()).unwrap();
            paths.push_back(root.path().join(stored.stored));
            expected.extend(text.into_bytes());
        }
        let mut source = OneByOne {
            paths,
            open: None,
            manifest: BackupManifest::new(
                OperationId::new(Timestamp::UNIX_EPOCH).unwrap(),
                Timestamp::UNIX_EPOCH,
                manifest::Contents {
                    name: String::new(),
                    server_version: String::new(),
                    size: 0,
                    rows: BTreeMap::new(),
                    objects: BTreeMap::new(),
                },
            ),
            identity: None,
        };
        let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open_files();
        let mut read = Vec::new();
        while source.by_ref().take(7).read_to_end(&mut read).unwrap() > 0 {
            assert!(open_files() <= before + 1);
        }
        assert_eq!(read, expected);
    }

    #[test]
    fn where_the_log_was_read_to() {
        let said = "LOG:  redo starts at 0/2000028\nLOG:  redo done at 1/2A000060 system usage: CPU: user: 0.00 s";
        assert_eq!(redo_done(said), Some(0x1_2A00_0060));
        assert_eq!(redo_done("LOG:  redo is not required"), None);
        let refused = |said: &str, end: u64| {
            refuse_damage(said, end, SIZE).map_err(|error| format!("{error}"))
        };
        let end = 0x1_2C00_0000;
        assert_eq!(refused(said, end), Ok(()));
        assert!(refused(said, end + SIZE).is_err() && refused("", end).is_err());
        let zero = format!(
            "{said}\n2026 [1] LOG:  invalid record length at 1/2A000098: expected at least 24, got 0"
        );
        assert_eq!(refused(&zero, end), Ok(()));
        let damaged = format!(
            "{said}\n2026 [1] LOG:  incorrect resource manager data checksum in record at 1/2A000098"
        );
        assert_eq!(
            refused(&damaged, end).unwrap_err(),
            "the write-ahead log is damaged: PostgreSQL read it until 1/2A000060 of 1/2C000000 (incorrect resource manager data checksum in record at 1/2A000098)"
        );
    }

    #[test]
    fn pieces_without_a_gap() {
        let time = "2026-11-26T14:05:00Z";
        let part = |number, start, end| piece(number, start, end, time);
        let base = point("now", 2 * SIZE + 7);
        let found = |all: &[Piece]| {
            let Chain { pieces, gap } = chain(all, &base);
            let places = pieces.iter();
            let places: Vec<_> = places
                .map(|piece| (piece.number(SIZE), piece.start, piece.end))
                .collect();
            (places, gap)
        };
        // Earlier segments are of no use, and a part that is there beside its segment, too.
        let all = [
            part(1, 0, SIZE),
            part(2, 0, 9),
            part(2, 0, SIZE),
            part(3, 0, 9),
            part(3, 9, 20),
        ];
        let expected = vec![(2, 0, SIZE), (3, 0, 9), (3, 9, 20)];
        assert_eq!(found(&all), (expected, None));
        assert_eq!(found(&[]), (vec![], None));
        // What follows a missing part of the last segment can't be used.
        assert_eq!(
            found(&[part(2, 0, 9), part(2, 10, 20)]),
            (vec![(2, 0, 9)], Some("000000010000000000000002".to_owned()))
        );
        let overlapping = [
            part(2, 0, 9),
            part(2, 0, 15),
            part(2, 9, 12),
            part(2, 15, 20),
        ];
        assert_eq!(found(&overlapping), (vec![(2, 0, 15), (2, 15, 20)], None));
        let gap = Some("000000010000000000000003".to_owned());
        for (third, expected) in [
            (vec![], vec![(2, 0, SIZE)]),
            (vec![part(3, 0, 9)], vec![(2, 0, SIZE), (3, 0, 9)]),
        ] {
            let all = [vec![part(2, 0, SIZE)], third, vec![part(4, 0, 9)]].concat();
            assert_eq!(found(&all), (expected, gap.clone()));
        }
    }
}

//! Base backups: copies of the whole cluster, from which a recovery begins.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use nix::fcntl::Flock;

use super::copy::store_of;
use super::progress::Progress;
use super::prune::{prune, prune_copy};
use super::slot::{left_free, position};
use super::{archive, directory, make_directory, recipient, remove_incomplete};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::Settings;
use crate::error::Result;
use crate::host::Host;
use crate::host::files::{self, Space};
use crate::host::lock;
use crate::host::paths::Paths;
use crate::operations::backup::authentication::Origin;
use crate::operations::backup::database::Server;
use crate::operations::backup::manifest::{BASE, BackupManifest, BasePoint, Contents};
use crate::operations::backup::{
    Backup, UNFINISHED, check_space, encryption, finish, ids_in, images, on_full_disk, staging,
    store_files,
};
use crate::output::bytes;
use crate::service::Service;

/// The file with the URL that has a copy of a base backup, or of a history that has ended.
pub(super) const COPIED: &str = "copied";
/// A base backup that is younger is not replaced by another one.
const YOUNG: Duration = Duration::from_secs(12 * 3600);
/// One that is older is replaced by the archive, since the nightly backup has not done it.
const OLD: Duration = Duration::from_secs(36 * 3600);
/// How long a copy of the cluster may take: 12 MB in a second are a terabyte.
const COPY_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The time between two attempts of the archive to make one.
const RETRY: Duration = Duration::from_secs(600);

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

/// One base backup at a time; `None` if one is being made.
fn lock_bases(paths: &Paths) -> Result<Option<Flock<File>>> {
    make_directory(paths)?;
    lock::exclusive(&base_lock(paths))
}

fn base_lock(paths: &Paths) -> PathBuf {
    directory(paths).join("base.lock")
}

/// Whether a base backup is being made.
pub(crate) fn is_base_in_the_making(paths: &Paths) -> bool {
    lock::is_held(&base_lock(paths))
}

/// Whether the archive makes or copies a base backup without being asked.
pub(super) fn is_base_due(paths: &Paths, progress: &Progress, url: Option<&str>) -> Result<bool> {
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
pub(super) struct Failed;

impl Failed {
    fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("base-failed")
    }

    pub(super) fn is_recent(paths: &Paths) -> bool {
        let changed = std::fs::metadata(Self::file(paths)).and_then(|found| found.modified());
        changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|past| past < RETRY))
    }
}

/// Why the last base backup failed, if it did.
pub(crate) fn base_failure(paths: &Paths) -> Option<String> {
    let text = files::read_existing(&Failed::file(paths)).ok()??;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Makes a base backup, unless there is a young one, copies those that have no copy yet, and removes what is too old.
///
/// # Errors
/// When the server, the disk or the store refuses.
pub(in crate::operations::backup) async fn base(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
) -> Result<()> {
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
    let made = async {
        let progress = archive(host, settings, server).await?;
        if has_base(paths, &progress, YOUNG)? {
            return Ok(());
        }
        make_base(host, settings, server, &progress).await
    };
    let made = made.await;
    // Whatever became of it, or else the archive grows until its disk is full. It does not depend on the store either.
    prune(host).await?;
    made?;
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

pub(super) fn is_copied(backup: &Backup, url: &str) -> bool {
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
    let staged = staging(parent, &format!("{UNFINISHED}{id}-"))?;
    host.progress
        .say(&format!("copying the cluster ({})", bytes(before.size)));
    let place = staged.path().to_owned();
    let for_base = recipient.clone();
    let copy = server.copy_cluster(move |reader| {
        let mut reader = Frugal::new(reader, &place);
        archive::store(&place, BASE, true, &for_base, &mut reader)
    });
    let entry = tokio::time::timeout(COPY_TIMEOUT, copy)
        .await
        .context("pg_basebackup did not end within 24 h")?
        .map_err(|error| on_full_disk(error, parent))?;
    // Without what was written meanwhile, the copy is not consistent.
    let progress = Box::pin(archive(host, settings, server)).await?;
    let contents = Contents {
        name: server.database.clone(),
        server_version: before.version,
        size: before.size,
        ..Contents::default()
    };
    let mut manifest = BackupManifest::new(id, created, contents);
    manifest.images = images(host, settings).await;
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
    .map_err(|error| on_full_disk(error, parent))?;
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

//! The file systems of the deployment, and what a full one does to the servers: they run on, can't write, and don't start
//! again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{Statvfs, statvfs};
use serde::Serialize;

use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files::{self, Space};
use crate::host::paths::Paths;
use crate::host::systemd::job::JobType;
use crate::litellm::health::GatewayHealth;
use crate::operations::backup;
use crate::output::{bytes, duration, shell_word};
use crate::service::Service;

/// What a start writes at most: PostgreSQL, two segments of its log.
const OF_A_START: u64 = 32 << 20;
/// With less, the next write may fail.
const FULL: u64 = 1 << 20;

/// Refuses to stop a running server that could not start again.
pub(super) async fn refuse_restarts(host: &Host, steps: &[(JobType, &str)]) -> Result<()> {
    for service in [Service::Postgres, Service::Redis] {
        let unit = service.unit();
        let restarts = |(verb, other): &(JobType, &str)| {
            *other == unit && matches!(verb, JobType::Restart | JobType::RestartAlone)
        };
        if !steps.iter().any(restarts) || !host.systemd().await?.unit(unit).await?.is_active() {
            continue;
        }
        let directory = data(&host.paths, service);
        // Where there is no such directory, nothing is known to be full.
        let Ok(Space { free, size }) = Space::of(&directory) else {
            continue;
        };
        // On a small file system, that would be most of it.
        if free < OF_A_START.min(size / 20) {
            return Err(Failure::new(format!(
                "{} has {} of free space, too little for {unit} to start again; nothing was restarted",
                directory.display(),
                bytes(free)
            ))
            .hint(format!(
                "free some space; to see what uses it: `du -xh --max-depth=2 {} | sort -h`",
                shell_word(&host.paths.deployment)
            ))
            .into());
        }
    }
    Ok(())
}

/// Ready means that the local PostgreSQL can write. LiteLLM says so as long as it can read.
pub(crate) fn unless_full(paths: &Paths, health: GatewayHealth) -> GatewayHealth {
    let directory = data(paths, Service::Postgres);
    if health.is_ready()
        // Left over beside an external database otherwise.
        && paths.quadlets.join("litellm-postgres.container").exists()
        && Space::of(&directory).is_ok_and(|space| space.free < FULL)
    {
        return GatewayHealth::Live {
            reason: format!(
                "the disk of {} is full, so the database can't be written",
                directory.display()
            ),
        };
    }
    health
}

fn data(paths: &Paths, service: Service) -> PathBuf {
    match service {
        Service::Redis => paths.redis_data(),
        _ => paths.postgres_data(),
    }
}

/// Where the deployment and its containers write to.
fn places(paths: &Paths) -> Vec<PathBuf> {
    vec![
        paths.deployment.clone(),
        paths.config(),
        paths.logs(),
        paths.postgres_data(),
        paths.redis_data(),
        backup::directory(paths),
        paths.storage.clone(),
    ]
}

/// A file system of the deployment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DiskReport {
    /// The first place of the deployment on it.
    pub(crate) path: String,
    pub(crate) free_bytes: u64,
}

/// Those of [`places`] whose file systems answer, and why that of `backups/` does not.
pub(crate) async fn answering_places(paths: &Paths) -> (Vec<PathBuf>, Option<anyhow::Error>) {
    let backups = backup::directory(paths);
    let mut places = places(paths);
    let silent = refuse_silent(&backups).await.err();
    if silent.is_some() {
        places.retain(|place| *place != backups);
    }
    (places, silent)
}

/// Refuses a file system that does not answer.
async fn refuse_silent(directory: &Path) -> Result<()> {
    let asked = directory.to_owned();
    let answer = tokio::task::spawn_blocking(move || files::answers(&asked));
    if answer.await.unwrap_or(true) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the disk with {} did not answer in {}",
        directory.display(),
        duration(files::ANSWER_TIMEOUT)
    ))
    .hint("check its server and the network; to release a mount of NFS: `sudo umount -f -l DIRECTORY`")
    .into())
}

impl DiskReport {
    /// Each file system of `places` once.
    pub(crate) fn all(places: Vec<PathBuf>) -> Vec<Self> {
        let systems = systems(places).into_iter();
        let reports = systems.map(|(path, found)| Self {
            path: path.display().to_string(),
            free_bytes: bytes_free(&found),
        });
        reports.collect()
    }
}

/// What users other than root can still write, in bytes.
pub(crate) fn bytes_free(found: &Statvfs) -> u64 {
    found.blocks_available() * found.fragment_size()
}

/// The file system of each place, once.
pub(crate) fn systems(places: Vec<PathBuf>) -> Vec<(PathBuf, Statvfs)> {
    // Each file system by the first place on it.
    let mut systems: BTreeMap<u64, (PathBuf, Statvfs)> = BTreeMap::new();
    for place in places {
        let Some(existing) = place.ancestors().find(|path| path.exists()) else {
            continue;
        };
        if let (Ok(metadata), Ok(found)) = (existing.metadata(), statvfs(existing)) {
            systems
                .entry(metadata.dev())
                .or_insert((existing.to_owned(), found));
        }
    }
    systems.into_values().collect()
}

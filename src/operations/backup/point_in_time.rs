//! Recovers the database as it was at a time: a base backup and the write-ahead log, in a throw-away container.
//!
//! What is recovered becomes a backup like any other, so that it is compared, restored and undone as one. The running
//! server takes no part in it.

mod chain;
mod container;
mod source;
mod target;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::authentication::Origin;
use super::database::Server;
use super::object_store::BackupStore;
use super::restore::RestoreOptions;
use super::{Backup, archive, make_private, remove_unfinished, staging, wal};
use crate::deployment::settings::{Database, Settings};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::paths::Paths;
use crate::host::podman::Podman;
use crate::operations::stack;
use crate::output::duration;
use container::Recovery;
use source::{check_origin, fetched, linked};
pub(crate) use target::Target;

/// The throw-away container.
const CONTAINER: &str = "litellm-recovered";
/// The prefix of the directory of a recovery, which is there as long as the container may be.
const STAGED: &str = ".new-recovery-";
#[derive(Clone, Debug)]
pub(crate) struct RecoverOptions {
    pub target: Target,
    /// The URL of the copy to recover from; `None` for the archive on this host.
    pub from: Option<String>,
    /// The identifier of the cluster to recover from that URL.
    pub cluster: Option<String>,
    /// How the recovered database will be restored, which is refused beforehand where that can be known.
    pub restore: RestoreOptions,
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
    if matches!(settings.database, Database::External { .. }) {
        return Err(Failure::new(
            "the database is on an external server (DATABASE_URL), where litellm-units replaces nothing",
        )
        .hint("recover it with that server's own tools; to recover this archive, remove DATABASE_URL from .env, and run `litellm-units apply`")
        .into());
    }
    let identity = options.restore.identity.as_deref();
    if let (Some(recipient), None) = (&settings.backup.recipient, identity) {
        return Err(Failure::new(format!(
            "what is recovered is kept as a backup, encrypted to {} (BACKUP_AGE_RECIPIENT), and is then read",
            recipient.trim()
        ))
        .hint("name the file with the secret key: `--identity FILE`")
        .into());
    }
    let begin = std::time::Instant::now();
    let remote = options.from.as_ref();
    let remote = remote
        .map(|url| BackupStore::new(url, &settings.backup).map(BackupStore::archive))
        .transpose()?;
    let parent = super::directory(&host.paths);
    make_private(&parent)?;
    stack::watch_stopped(host).await?;
    // It goes with this function; after a kill, by `clean_up`.
    let staged = staging(&parent, STAGED)?;
    let found = if let Some(remote) = &remote {
        fetched(host, remote, options, staged.path()).await?
    } else {
        catch_up(host, settings).await;
        linked(host, options, staged.path()).await?
    };
    if settings.backup.wal && host.paths.postgres_data().exists() {
        let size = found.base.manifest.database.size;
        super::check_archived_space(&host.paths, size, super::expected_size(&host.paths, size))?;
    }
    if found.base.origin == Origin::Own {
        check_origin(host, &found)?;
    }
    // Each may be encrypted to another recipient.
    for piece in &found.pieces {
        archive::open_stored(
            &found.place.join(&piece.file),
            &found.base.manifest,
            identity,
        )?;
    }
    let server = Recovery {
        host,
        podman: host.podman().await?,
        base: &found.base,
        point: &found.point,
        place: &found.place,
        identity,
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

/// Whether [`clean_up`] has something to do, unless a recovery is running.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::UNFINISHED;

    #[test]
    fn a_recovery_that_was_killed_is_found() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        let backups = root.path().join("backups");
        assert!(!is_unfinished(&paths));
        // Of a backup that was killed.
        std::fs::create_dir_all(backups.join(".new-20260131T023000Z-0a1b2c-x")).unwrap();
        assert!(!is_unfinished(&paths));
        std::fs::create_dir(backups.join(format!("{STAGED}x"))).unwrap();
        assert!(is_unfinished(&paths) && STAGED.starts_with(UNFINISHED));
    }
}

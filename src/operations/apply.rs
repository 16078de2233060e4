//! An edit of `.env` and `config/`: it is applied, or the last good configuration is active again.

use std::path::PathBuf;
use std::time::Duration;

use super::install::{self, Prepared, ReleaseTarget};
use super::{rotation, stack, up};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::error::{Exit, Failure, Result, exit};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;

/// Exists in the deployment while an edit is applied.
const MARKER: &str = "applying";

/// Applies what is prepared, and rolls back if the gateway does not become ready.
///
/// # Errors
/// When it was rolled back, could not be, or was interrupted, which says nothing about the configuration.
pub(crate) async fn apply(host: &Host, prepared: &Prepared, timeout: Duration) -> Result<()> {
    let edited = snapshot::keep(&host.paths)?;
    let marker = marker(&host.paths);
    files::write_atomically(&marker, b"", 0o600)?;
    let outcome = attempt(host, prepared, &edited, timeout).await;
    files::remove_existing(&marker)?;
    outcome
}

/// Whether an edit was not applied to its end. The process may still be at it.
#[must_use]
pub(super) fn interrupted(paths: &Paths) -> Option<String> {
    marker(paths)
        .exists()
        .then(|| "`litellm-units apply` was interrupted".to_owned())
}

/// Completes an interrupted [`apply`]. Its failure is a warning: the next command is to be possible.
pub(super) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    if interrupted(&host.paths).is_none() {
        return Ok(());
    }
    host.progress
        .say("completing an interrupted `litellm-units apply`");
    let attempt = async {
        let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
        apply(host, &prepared, timeout).await
    };
    if let Err(error) = attempt.await {
        host.progress.warn(&format!("{error:#}"));
    }
    files::remove_existing(&marker(&host.paths))
}

async fn attempt(
    host: &Host,
    prepared: &Prepared,
    edited: &SnapshotId,
    timeout: Duration,
) -> Result<()> {
    let Err(error) = up::bring_up(host, prepared, timeout, "apply").await else {
        return Ok(());
    };
    if exit(&error) == Exit::Interrupted {
        return Err(error);
    }
    match snapshot::last_good(&host.paths) {
        // Nothing was edited.
        Some(good) if good == *edited => Err(error),
        Some(good) => Err(roll_back(host, timeout, &good, error).await),
        None => Err(Failure::new(
            "the gateway does not become ready with this configuration, and there is no earlier one to roll back to",
        )
        .hint("fix it, then run `litellm-units apply` again")
        .caused_by(error)
        .into()),
    }
}

async fn roll_back(
    host: &Host,
    timeout: Duration,
    good: &SnapshotId,
    error: anyhow::Error,
) -> anyhow::Error {
    host.progress
        .say("not all units are ready: rolling back to the last good configuration");
    // Also what was edited while it waited.
    let edited = match snapshot::keep(&host.paths) {
        Ok(edited) => edited,
        Err(second) => return second.context(error),
    };
    let attempt = async {
        let staying = rotation::known_to_the_database(host).await;
        snapshot::restore(&host.paths, good, staying)?;
        let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
        prepared.apply(host).await?;
        let timeout = timeout.max(stack::RECOVERY_TIMEOUT);
        stack::bring_up(host, prepared.settings(), timeout).await
    };
    let kept = snapshot::directory(&host.paths, &edited);
    let hint = format!("your changes are kept in {}", kept.display());
    match attempt.await {
        Ok(()) => Failure::new(
            "the changes were rolled back; the gateway is ready with the last good configuration",
        )
        .hint(hint)
        .caused_by(error),
        Err(second) => Failure::new(
            "the changes were rolled back, but the gateway is not ready without them either",
        )
        .hint(hint)
        .caused_by(second.context(error)),
    }
    .into()
}

fn marker(paths: &Paths) -> PathBuf {
    paths.state().join(MARKER)
}

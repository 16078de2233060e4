//! Arguments of `upgrade`, `rollback` and `history`.

use std::time::Duration;

use clap::Args;

use super::{Accept, seconds};
use crate::image::ImageReference;
use crate::operations::upgrade::ReleaseOptions;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Pace {
    /// Seconds to watch the new release before the change is final
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = settle)]
    pub(crate) settle: Duration,
    /// Timeout in seconds for starting and becoming ready
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Change the release even if it can't read the credentials in the database (AES-256-GCM)
    #[arg(long)]
    pub(crate) accept_unreadable: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The image is pulled and the database is backed up and migrated while the current release serves. Then the gateway is switched to the new release and watched. If a step fails, the upgrade is rolled back; the database keeps every write.\n\nExit status with --check: 0 nothing to do, 5 a newer release, 6 known vulnerabilities.\n\nExamples:\n  litellm-units upgrade --image ghcr.io/berriai/litellm:v1.110.2 --dry-run\n  litellm-units upgrade --image ghcr.io/berriai/litellm:v1.110.2\n  litellm-units upgrade            (after an edit of LITELLM_IMAGE in .env)\n  litellm-units upgrade --check\n  litellm-units upgrade --postgres docker.io/library/postgres:18 --dry-run"
)]
pub(crate) struct Upgrade {
    /// Image to upgrade to [default: the image in .env]
    #[arg(long, value_name = "REFERENCE", value_parser = image)]
    pub(crate) image: Option<ImageReference>,
    /// Move the data to the version of PostgreSQL in this image, instead of another release of the gateway
    #[arg(long, value_name = "REFERENCE", value_parser = image, conflicts_with_all = ["image", "restore_data", "settle", "accept_unreadable", "vulnerabilities"])]
    pub(crate) postgres: Option<ImageReference>,
    /// If the upgrade fails and the previous release can't serve with the migrated database, restore the backup and
    /// lose later writes
    #[arg(long)]
    pub(crate) restore_data: bool,
    /// Show the steps; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// List newer releases and the known vulnerabilities of the current one; change nothing
    #[arg(long, conflicts_with_all = ["image", "postgres", "restore_data", "dry_run", "settle", "timeout", "vulnerabilities"])]
    pub(crate) check: bool,
    /// Print JSON, with --check
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) accept: Accept,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

impl From<Pace> for ReleaseOptions {
    fn from(pace: Pace) -> Self {
        Self {
            settle: pace.settle,
            timeout: pace.timeout,
            accept_unreadable: pace.accept_unreadable,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "An earlier release works with the schema of a later one, so the current database can stay (--keep-data). --restore-data restores the backup that was taken before the upgrade from that release: later keys, teams and spend are lost.\n\nExamples:\n  litellm-units rollback --keep-data\n  litellm-units rollback --to 2 --restore-data --dry-run"
)]
pub(crate) struct Rollback {
    /// Number of the release in `history` [default: the previous release]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) to: Option<u32>,
    /// Return to the cluster that `upgrade --postgres` has replaced, and lose later writes
    #[arg(long, conflicts_with_all = ["to", "keep_data", "settle", "accept_unreadable", "vulnerabilities"])]
    pub(crate) postgres: bool,
    /// Keep the current database
    #[arg(long)]
    pub(crate) keep_data: bool,
    /// Restore the backup that was taken before the upgrade from that release; with --postgres, do not ask
    #[arg(long, conflicts_with = "keep_data")]
    pub(crate) restore_data: bool,
    /// Show the steps (those of both choices if none is given); change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) accept: Accept,
    #[command(flatten)]
    pub(crate) pace: Pace,
}

#[derive(Debug, Args)]
pub(crate) struct History {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn settle(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .map_err(|_| "not a whole number of seconds".into())
}

pub(super) fn image(text: &str) -> Result<ImageReference, String> {
    ImageReference::parse(text).map_err(|error| format!("{error}; {}", error.hint()))
}

//! Arguments of `upgrade`, `rollback` and `history`.

use std::time::Duration;

use clap::Args;

use super::{Accept, seconds};
use crate::image::ImageReference;
use crate::operations::upgrade::ReleaseOptions;

/// How a change of release is carried out.
#[derive(Clone, Copy, Debug, Args)]
pub struct Pace {
    /// Seconds for which the new release is watched before it stays
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = settle)]
    pub settle: Duration,
    /// Seconds that starting and becoming ready may take
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
    /// Change the release even if it can't read credentials in the database (AES-256-GCM)
    #[arg(long)]
    pub accept_unreadable: bool,
}

/// Arguments of `upgrade`.
#[derive(Debug, Args)]
#[command(
    after_help = "The image is pulled, the database backed up and migrated while the present release serves; then the gateway\nis switched and watched. If anything fails, image, units, .env and data are as before.\n\nExamples:\n  litellm-units upgrade --image ghcr.io/berriai/litellm:v1.110.2 --dry-run\n  litellm-units upgrade --image ghcr.io/berriai/litellm:v1.110.2\n  litellm-units upgrade            (after an edit of LITELLM_IMAGE in .env)\n  litellm-units upgrade --check    (exit status: 0 nothing to do, 5 a newer release, 6 known vulnerabilities)"
)]
pub struct Upgrade {
    /// The image [default: that of .env]
    #[arg(long, value_name = "REFERENCE", value_parser = image)]
    pub image: Option<ImageReference>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// List newer releases and the known vulnerabilities of the current one, and change nothing
    #[arg(long, conflicts_with_all = ["image", "dry_run", "settle", "timeout", "vulnerabilities"])]
    pub check: bool,
    /// With --check: print JSON
    #[arg(long, requires = "check")]
    pub json: bool,
    /// What is accepted.
    #[command(flatten)]
    pub accept: Accept,
    /// How it is carried out.
    #[command(flatten)]
    pub pace: Pace,
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

/// Arguments of `rollback`.
#[derive(Debug, Args)]
#[command(
    after_help = "An earlier release serves with the schema of a later one, so the data can stay. Or the backup comes back\nthat was made when that release was left: then keys, teams and spend since are gone.\n\nExamples:\n  litellm-units rollback --keep-data\n  litellm-units rollback --to 2 --restore-data --dry-run"
)]
pub struct Rollback {
    /// The number of the release in `history` [default: the one before the present one]
    #[arg(long, value_name = "NUMBER")]
    pub to: Option<u32>,
    /// Keep the data as it is now
    #[arg(long)]
    pub keep_data: bool,
    /// Restore the data of the moment at which that release was left
    #[arg(long, conflicts_with = "keep_data")]
    pub restore_data: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What is accepted.
    #[command(flatten)]
    pub accept: Accept,
    /// How it is carried out.
    #[command(flatten)]
    pub pace: Pace,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn settle(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .map_err(|_| "not a whole number of seconds".into())
}

fn image(text: &str) -> Result<ImageReference, String> {
    ImageReference::parse(text).map_err(|error| format!("{error}; {}", error.hint()))
}

//! Arguments of `fleet`.

use clap::{Args, Subcommand};

use super::upgrade::image;
use crate::host::ssh::RemoteHost;
use crate::image::ImageReference;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "The deployment directory of this machine holds fleet.toml, and the configuration for all hosts in it (docs/several-hosts.md).\n\nExamples:\n  litellm-units fleet plan\n  litellm-units fleet apply\n  litellm-units fleet upgrade --image ghcr.io/berriai/litellm:v1.110.2\n  litellm-units fleet status\n  litellm-units fleet run doctor"
)]
pub(crate) enum Fleet {
    /// Show what `apply` would change on each host; change nothing
    Plan(Hosts),
    /// Give each host the configuration, one after the other; if one fails, all have their previous one again
    Apply(Hosts),
    /// Upgrade one host after the other; if one fails, roll back those before it
    Upgrade(Release),
    /// Roll back one host after the other to a release that ran there; keep the database
    Rollback(Release),
    /// Show the state of each host; the exit status is the worst of all
    Status(Status),
    /// Run another command on each host, one after the other
    Run {
        #[command(flatten)]
        hosts: Hosts,
        /// Command of litellm-units and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

impl Fleet {
    /// As [`super::Command::change`].
    pub(super) fn change(&self) -> Option<&'static str> {
        match self {
            Self::Apply(_) => Some("fleet apply"),
            Self::Upgrade(_) => Some("fleet upgrade"),
            Self::Rollback(_) => Some("fleet rollback"),
            Self::Plan(_) | Self::Status(_) | Self::Run { .. } => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// Leave out this host, which may be down; repeat for several
    #[arg(long, value_name = "USER@HOST")]
    pub(crate) skip: Vec<RemoteHost>,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// Image of the release
    #[arg(long, value_name = "REFERENCE", value_parser = image)]
    pub(crate) image: ImageReference,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print JSON: the object of `status --json` of each host
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) hosts: Hosts,
}

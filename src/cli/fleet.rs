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
    /// Give each host the configuration, one after the other; if one fails, roll back those before it
    Apply(Hosts),
    /// Change the release of one host after the other; if one fails, roll back those before it
    #[command(visible_alias = "rollback")]
    Upgrade {
        /// Image of the release, which may be an earlier one
        #[arg(long, value_name = "REFERENCE", value_parser = image)]
        image: ImageReference,
        #[command(flatten)]
        hosts: Hosts,
    },
    /// Show the state of each host; exit with the worst exit status
    Status {
        /// Print JSON, with the object of `status --json` of each host
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        hosts: Hosts,
    },
    /// Run another command on each host, one after the other; exit with the worst exit status
    Run {
        #[command(flatten)]
        hosts: Hosts,
        /// Command of litellm-units and its arguments
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Hosts {
    /// Leave out this host, which may be down; repeat for several
    #[arg(long, value_name = "USER@HOST")]
    pub(crate) skip: Vec<RemoteHost>,
}

//! Arguments of `db`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Db {
    /// Show the size and growth of the database, when its disk is full, and what keeps PostgreSQL from cleaning up
    Status(Status),
}

#[derive(Debug, Args)]
#[command(
    after_help = "The growth is the median of the last 14 days, from the sizes that the nightly backups record; it needs backups of five days. Numbers of rows are estimates of PostgreSQL.\n\nExamples:\n  litellm-units db status\n  litellm-units db status --json | jq .disk.full_in_days"
)]
pub(crate) struct Status {
    /// Print JSON (docs/database.md)
    #[arg(long)]
    pub(crate) json: bool,
}

//! Arguments of `backup` and `restore`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::seconds;

/// Arguments of `backup`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  litellm-units backup\n  litellm-units backup list\n  litellm-units backup verify latest\n  litellm-units restore latest\n  litellm-units backup --age-recipient age1… --to s3://bucket/litellm"
)]
pub struct Backup {
    /// The verb; without one, `create`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Arguments of `create`.
    #[command(flatten)]
    pub create: Create,
}

/// What can be done with backups.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a backup and remove old ones (the same as `backup` alone)
    Create(Create),
    /// List the backups, oldest first
    List(List),
    /// Restore a backup into a scratch database, compare its row counts, and remove it again
    Verify(Verify),
    /// Bring a backup back from where its copy is
    Fetch(Fetch),
}

/// Arguments of `backup create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Keep the newest backup of this many days
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub keep_daily: usize,
    /// Keep the newest backup of this many months
    #[arg(long, value_name = "MONTHS", default_value_t = 12)]
    pub keep_monthly: usize,
    /// Remove no old backup
    #[arg(long, conflicts_with_all = ["keep_daily", "keep_monthly"])]
    pub keep_all: bool,
    /// Encrypt to this age recipient (age1…) [default: that of .env]
    #[arg(long, value_name = "RECIPIENT")]
    pub age_recipient: Option<String>,
    /// Copy to a directory or an object store: file:///…, s3://…, gs://…, az://… [default: that of
    /// .env]
    #[arg(long, value_name = "URL")]
    pub to: Option<String>,
    /// Say nothing but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `backup list`.
#[derive(Debug, Args)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// List the copies elsewhere instead; names only
    #[arg(long, conflicts_with = "json")]
    pub remote: bool,
}

/// Arguments of `backup verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The backup's name, or `latest`
    pub backup: String,
    /// The file with the age identity (secret key), if the backup is encrypted
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `backup fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// The backup's name, or `latest`
    pub backup: String,
    /// Where it is, as a URL [default: that of .env]
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "The backup is restored beside the running database; then the gateway stops for some seconds while\nthe two are swapped. If it does not get ready with the restored data, all is put back as it was.\n\nExamples:\n  litellm-units restore latest\n  litellm-units restore 20260131T023000Z-0a1b2c --config --yes"
)]
pub struct Restore {
    /// The backup's name, or `latest`
    pub backup: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Put .env and config/ back, too; only the settings of the PostgreSQL server stay
    #[arg(long)]
    pub config: bool,
    /// The file with the age identity (secret key), if the backup is encrypted
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Seconds that the gateway may take to be ready again
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

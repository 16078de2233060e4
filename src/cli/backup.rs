//! Arguments of `backup` and `restore`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::seconds;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  litellm-units backup\n  litellm-units backup list\n  litellm-units backup verify latest\n  litellm-units restore latest\n  litellm-units backup --age-recipient age1… --to s3://bucket/litellm"
)]
pub(crate) struct Backup {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) create: Create,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a backup and remove old ones (same as `backup` alone)
    Create(Create),
    /// List the backups, oldest first
    List(List),
    /// Restore a backup into a temporary database and compare its row counts
    Verify(Verify),
    /// Download a backup from its remote copy
    Fetch(Fetch),
}

impl Backup {
    /// As [`super::Command::change`].
    pub(super) fn change(&self) -> Option<&'static str> {
        match &self.command {
            None => (!self.create.dry_run).then_some("backup"),
            Some(Command::Create(create)) => (!create.dry_run).then_some("backup"),
            Some(Command::Fetch(_)) => Some("backup fetch"),
            Some(Command::List(_) | Command::Verify(_)) => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Keep the newest backup of this many days
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub(crate) keep_daily: usize,
    /// Keep the newest backup of this many months
    #[arg(long, value_name = "MONTHS", default_value_t = 12)]
    pub(crate) keep_monthly: usize,
    /// Keep all backups
    #[arg(long, conflicts_with_all = ["keep_daily", "keep_monthly"])]
    pub(crate) keep_all: bool,
    /// age recipient (age1…) to encrypt to [default: the recipient in .env]
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) age_recipient: Option<String>,
    /// Directory or object store to copy to: file:///…, s3://…, gs://…, az://… [default: the URL in
    /// .env]
    #[arg(long, value_name = "URL")]
    pub(crate) to: Option<String>,
    /// Only show which backups and replaced databases a backup would remove on this host
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) dry_run: bool,
    /// Print only warnings and errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Copy the last backup instead of making one, if its copy failed within 12 hours
    #[arg(long, hide = true, conflicts_with_all = ["age_recipient", "to"])]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// List the names of the remote copies instead
    #[arg(long, conflicts_with = "json")]
    pub(crate) remote: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Name of the backup, or `latest`
    pub(crate) backup: String,
    /// File with the age identity (secret key), if the backup is encrypted
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Accept a backup that this deployment did not make: its dump can run programs in the container
    /// of PostgreSQL
    #[arg(long)]
    pub(crate) foreign: bool,
    /// Verify as the weekly verification does: without `--identity`, check only the checksums of an encrypted backup; with
    /// `BACKUP_WAL`, or without space for a copy, only read the dump
    #[arg(long)]
    pub(crate) unattended: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// Name of the backup, or `latest`
    pub(crate) backup: String,
    /// URL of the remote copies [default: the URL in .env]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Keys, teams and spend since the backup are lost. The backup is restored beside the running database. Then the gateway stops for some seconds while the two are swapped. If it does not become ready with the restored data, the restore is rolled back. --config removes files of config/, certs/, files/ and extra.d/ that the backup does not have.\n\nExamples:\n  litellm-units restore latest\n  litellm-units restore 20260131T023000Z-0a1b2c --config --yes\n  litellm-units restore --to 2026-01-31T14:05"
)]
pub(crate) struct Restore {
    /// Name of the backup, or `latest`
    #[arg(required_unless_present = "to", conflicts_with = "to")]
    pub(crate) backup: Option<String>,
    /// Time to recover to instead, from the archive of the write-ahead log: 2026-11-26T14:05:00 (local time), RFC 3339, or
    /// `latest`
    #[arg(long, value_name = "TIME")]
    pub(crate) to: Option<String>,
    /// URL of the copy of the archive to recover from [default: the archive on this host]
    #[arg(long, value_name = "URL", requires = "to")]
    pub(crate) from: Option<String>,
    /// Identifier of the cluster to recover, if the archive has several that were in use at the same time
    #[arg(long, value_name = "ID", requires = "from")]
    pub(crate) cluster: Option<String>,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Also restore .env, config/, certs/, files/ and the files of extra.d/, except for the settings of the PostgreSQL
    /// server
    #[arg(long)]
    pub(crate) config: bool,
    /// Accept a backup that this deployment did not make: it replaces every key and setting in the
    /// database, and can run programs in the containers
    #[arg(long)]
    pub(crate) foreign: bool,
    /// File with the age identity (secret key), if the backup is encrypted
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Timeout in seconds for the gateway to become ready again
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

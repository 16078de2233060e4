//! `backup` and `restore`.

use std::io::IsTerminal;

use anyhow::Context;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::cli::backup as cli;
use crate::deployment::ledger::Ledger;
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::host::ownership;
use crate::operations::backup::authentication::Origin;
use crate::operations::backup::manifest::{BackupManifest, rows_in_words};
use crate::operations::backup::object_store::BackupStore;
use crate::operations::backup::point_in_time::{self, RecoverOptions, Target};
use crate::operations::backup::restore::{RestoreOptions, Verified};
use crate::operations::backup::retention::Retention;
use crate::operations::backup::verification::Verification;
use crate::operations::backup::{self, Backup};
use crate::operations::recovery;
use crate::operations::stack::RECOVERY_TIMEOUT;
use crate::output::{self, Loss, Progress, bytes, say, warn};
use crate::quadlet::{BACKUP_SERVICE, VERIFY_SERVICE};

pub(crate) async fn run(host: &Host, arguments: cli::Backup) -> Result<Exit> {
    match arguments.command {
        None => create(host, arguments.create).await,
        Some(cli::Command::Create(arguments)) => create(host, arguments).await,
        Some(cli::Command::List(arguments)) => list(host, &arguments).await,
        Some(cli::Command::Verify(arguments)) => verify(host, arguments).await,
        Some(cli::Command::Fetch(arguments)) => fetch(host, &arguments).await,
    }
}

async fn create(host: &Host, arguments: cli::Create) -> Result<Exit> {
    let (_lock, damage) = if arguments.dry_run {
        (None, Ledger::load(&host.paths).err())
    } else {
        let begun = super::begin_without_ledger(host, backup::COMMAND, RECOVERY_TIMEOUT);
        let (lock, damage) = begun.await?;
        (Some(lock), damage)
    };
    if let Some(error) = &damage {
        warn(&format!("no older backup is removed: {error:#}"));
    }
    let is_readable = damage.is_none();
    let settings = Settings::load(&host.paths.env_file())?;
    let retention = Retention {
        daily: arguments.keep_daily,
        monthly: arguments.keep_monthly,
    };
    let options = backup::BackupOptions {
        retention: (!arguments.keep_all && is_readable).then_some(retention),
        protected: if is_readable {
            Ledger::load(&host.paths)?.protected()
        } else {
            Vec::new()
        },
        recipient: arguments.age_recipient,
        to: arguments.to,
        forget_cluster: true,
        resume: arguments.resume,
        ..backup::BackupOptions::default()
    };
    if arguments.dry_run {
        for line in backup::removals(host, &settings, &options).await? {
            output::line(&format!("remove {line}"))?;
        }
        return Ok(Exit::Success);
    }
    let progress = if arguments.quiet {
        Progress::Silent
    } else {
        Progress::Stderr
    };
    let host = &host.reporting(progress);
    if let Some(words) = backup::made_elsewhere(&settings.backup) {
        host.progress
            .say(&format!("{words}; this is a further one"));
    }
    let made = backup::create(host, &settings, &options).await?;
    // A nightly backup that failed has its successor now, and counts neither as a fault nor against the limit of starts.
    if let Ok(systemd) = host.systemd().await {
        let _ = systemd.reset_failed(BACKUP_SERVICE).await;
    }
    if !arguments.quiet {
        output::line(&made.directory.display().to_string())?;
    }
    Ok(Exit::Success)
}

/// A backup in `backup list --json`.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    manifest: &'a BackupManifest,
    directory: &'a std::path::Path,
    bytes: u64,
    /// Whether this deployment did not make it.
    foreign: bool,
}

async fn list(host: &Host, arguments: &cli::List) -> Result<Exit> {
    if arguments.remote {
        let remote = remote(host, None).await?;
        let ids = remote.ids().await?;
        for id in &ids {
            output::line(id.as_str())?;
        }
        // It says how many others there are.
        remote.own(host, &ids).await?;
        return Ok(Exit::Success);
    }
    let mut backups = Vec::new();
    let mut damaged = Vec::new();
    for id in backup::ids(&host.paths)? {
        match Backup::load(&host.paths, &id) {
            Ok(found) => backups.push(found),
            Err(error) => damaged.push(format!("{error:#}")),
        }
    }
    if arguments.json {
        let listed: Vec<Listed<'_>> = backups
            .iter()
            .map(|found| Listed {
                manifest: &found.manifest,
                directory: &found.directory,
                bytes: found.manifest.total_size(),
                foreign: found.origin != Origin::Own,
            })
            .collect();
        output::json(&listed)?;
    } else if backups.is_empty() {
        say(&format!(
            "there is no backup in {}",
            backup::directory(&host.paths).display()
        ));
    } else {
        let losses = [Loss::Registry("LITELLM"), Loss::End("LITELLM")];
        output::text(&output::table(&table(&backups), &losses))?;
    }
    if damaged.is_empty() {
        return Ok(Exit::Success);
    }
    Err(Failure::new(damaged.join("\n"))
        .hint("remove the damaged backups, and check the disk")
        .into())
}

fn table(backups: &[Backup]) -> Vec<Vec<String>> {
    let heading = ["BACKUP", "SIZE", "ROWS", "LITELLM", "ENCRYPTED", "FOREIGN"];
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for found in backups {
        let manifest = &found.manifest;
        let image = manifest.images.gateway();
        rows.push(vec![
            manifest.id.to_string(),
            bytes(manifest.total_size()),
            rows_of(manifest),
            image.map_or("-".into(), |image| image.reference.clone()),
            yes(manifest.encryption.is_some()),
            yes(found.origin != Origin::Own),
        ]);
    }
    rows
}

/// All rows that were counted; `+` if there are others.
fn rows_of(manifest: &BackupManifest) -> String {
    let is_partial = !manifest.database.uncounted.is_empty();
    format!(
        "{}{}",
        manifest.total_rows(),
        if is_partial { "+" } else { "" }
    )
}

async fn verify(host: &Host, arguments: cli::Verify) -> Result<Exit> {
    let _lock = recovery::begin(host, backup::VERIFY_COMMAND, RECOVERY_TIMEOUT).await?;
    let settings = Settings::load(&host.paths.env_file())?;
    let newest = backup::ids(&host.paths)?.pop();
    let found = Backup::find(&host.paths, &arguments.backup);
    let id = found.as_ref().map(|found| found.id().clone()).ok();
    let is_newest = arguments.backup == "latest" || id.is_some() && id == newest;
    let verified = verified(host, &settings, found, &arguments).await?;
    if let Some(id) = id.or(newest)
        && is_newest
    {
        Verification::keep(&host.paths, id, &verified)?;
    }
    let verified = verified?;
    if is_newest && let Ok(systemd) = host.systemd().await {
        let _ = systemd.reset_failed(VERIFY_SERVICE).await;
    }
    if arguments.json {
        output::json(&verified)?;
        return Ok(Exit::Success);
    }
    let (id, files) = (&verified.id, verified.files);
    output::line(&if verified.restored {
        let rows = rows_in_words(verified.rows, verified.tables, verified.uncounted);
        format!("backup {id} is good: {files} files, {rows} were restored")
    } else if verified.read {
        format!(
            "backup {id} has all {files} files, and its dump is readable to the end; it was not restored"
        )
    } else {
        format!(
            "backup {id} has all {files} files; it was not restored, since it is encrypted and no `--identity` names its secret key"
        )
    })?;
    Ok(Exit::Success)
}

/// As [`backup::restore::verify`], of a backup that was found or is damaged.
async fn verified(
    host: &Host,
    settings: &Settings,
    found: Result<Backup>,
    arguments: &cli::Verify,
) -> Result<Result<Verified>> {
    let found = match found.and_then(|found| found.admitted(arguments.foreign)) {
        Ok(found) => found,
        Err(error) => return Ok(Err(error)),
    };
    let options = RestoreOptions {
        identity: arguments.identity.clone(),
        unattended: arguments.unattended,
        ..RestoreOptions::default()
    };
    backup::restore::verify(host, settings, &found, &options).await
}

async fn remote(host: &Host, url: Option<&str>) -> Result<BackupStore> {
    let settings = Settings::load(&host.paths.env_file())?;
    let url = url.or(settings.backup.url.as_deref()).ok_or_else(|| {
        Failure::config(format!(
            "{} has no BACKUP_URL",
            host.paths.env_file().display()
        ))
        .hint("add it, for example BACKUP_URL=s3://bucket/litellm")
    })?;
    let remote = BackupStore::new(url, &settings.backup)?;
    remote.refuse_missing().await?;
    Ok(remote)
}

async fn fetch(host: &Host, arguments: &cli::Fetch) -> Result<Exit> {
    ownership::check(&host.paths, None)?;
    let _lock = OperationLock::take(&host.paths, backup::FETCH_COMMAND)?;
    let remote = remote(host, arguments.from.as_deref()).await?;
    let id = if arguments.backup == "latest" {
        remote.ids().await?.pop().ok_or_else(|| {
            Failure::new(format!("there is no backup in {}", remote.url()))
                .hint("copies are made by `litellm-units backup` when .env has BACKUP_URL")
        })?
    } else {
        OperationId::parse(&arguments.backup).ok_or_else(|| {
            Failure::new(format!(
                "{:?} is not the name of a backup",
                arguments.backup
            ))
            .hint("use `latest`, or a name from `litellm-units backup list --remote`")
        })?
    };
    let fetched = remote.fetch(host, &id).await?;
    output::line(&fetched.directory.display().to_string())?;
    Ok(Exit::Success)
}

pub(crate) async fn restore(host: &Host, arguments: cli::Restore) -> Result<Exit> {
    let _lock = recovery::begin(host, "restore", RECOVERY_TIMEOUT).await?;
    let settings = Settings::load(&host.paths.env_file())?;
    if !arguments.yes && !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "restore replaces the gateway's data, and there is no terminal to ask on",
        )
        .hint("to restore without a question, add `--yes`")
        .into());
    }
    let options = RestoreOptions {
        timeout: arguments.timeout,
        identity: arguments.identity.clone(),
        config: arguments.config,
        ..RestoreOptions::default()
    };
    let found = match (&arguments.backup, &arguments.to) {
        (Some(name), _) => Backup::find(&host.paths, name)?.admitted(arguments.foreign)?,
        (None, Some(time)) => recover(host, &settings, &arguments, time, &options).await?,
        (None, None) => return Err(Failure::new("name a backup, or a time (`--to`)").into()),
    };
    let recovered = arguments.to.is_some().then(|| Temporary(host, &found));
    if arguments.to.is_some() {
        for line in backup::restore::compare_with_running(host, &settings, &found).await? {
            say(&line);
        }
    }
    say(&format!(
        "backup {}: {}, LiteLLM {}",
        found.id(),
        found.manifest.rows_in_words(),
        found
            .manifest
            .images
            .gateway()
            .map_or("unknown", |image| &image.reference)
    ));
    if !arguments.yes && !agreed(&found, arguments.to.as_deref(), arguments.config).await? {
        return Err(Failure::new("nothing was changed").into());
    }
    let restored = backup::restore::restore_data(host, &settings, &found, &options).await;
    if let (Err(_), Some(recovered)) = (&restored, recovered) {
        // A recovery can take hours.
        std::mem::forget(recovered);
        say(&backup::restore::kept(found.id()));
    }
    restored?;
    Ok(Exit::Success)
}

/// The backup of a recovered database, which goes when the restore has ended: it is of an earlier time than its name says.
struct Temporary<'a>(&'a Host, &'a Backup);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if let Err(error) = backup::remove(&self.0.paths, self.1.id()) {
            warn(&format!("{error:#}"));
        }
    }
}

/// Recovers the database of a time as a backup.
async fn recover(
    host: &Host,
    settings: &Settings,
    arguments: &cli::Restore,
    time: &str,
    restore: &RestoreOptions,
) -> Result<Backup> {
    let options = RecoverOptions {
        target: Target::parse(time, &jiff::tz::TimeZone::system())?,
        from: arguments.from.clone(),
        cluster: arguments.cluster.clone(),
        restore: restore.clone(),
        foreign: arguments.foreign,
    };
    point_in_time::recover(host, settings, &options).await
}

async fn agreed(backup: &Backup, to: Option<&str>, config: bool) -> Result<bool> {
    let what = if config {
        "the gateway's data, .env, config/, certs/ and files/"
    } else {
        "the gateway's data"
    };
    let then = match to {
        Some(time) => format!("that of {time}"),
        None => format!("the backup of {} UTC", backup.id().created()),
    };
    let question = format!("Replace {what} with {then}? Later keys, teams and spend are lost.");
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let (send, answer) = oneshot::channel();
    // A thread of its own: after Ctrl-C, nobody waits for it.
    std::thread::spawn(move || send.send(output::ask(&question)));
    tokio::select! {
        answer = answer => answer.context("can't read the answer")?,
        _ = interrupt.recv() => Err(Failure::interrupted("interrupted; nothing was changed").into()),
    }
}

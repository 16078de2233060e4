//! Restores a backup: into a scratch database to verify it, or in place of the gateway's.
//!
//! A restore fills a new database beside the gateway's while the gateway serves. Only then does the
//! gateway stop, and two renames in one transaction swap the databases. The restore is recorded on
//! disk before it begins, and the names of the databases show how far it came. So after an
//! interruption, [`recover`] knows whether to finish or to undo it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::database::{NO_TIMEOUTS, Server, is_missing_role, is_of_the_server, scratch_name};
use super::manifest::{Contents, DUMP};
use super::{
    Backup, CREDENTIALS, Origin, check_archived_space, check_space, filled, make_private,
    remove_unfinished,
};
use super::{archive, point_in_time};
use crate::deployment::env_file::EnvFile;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::operation_id::OperationId;
use crate::deployment::sealed::{self, Vault};
use crate::deployment::settings::{Settings, load_env, parse_env};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::deployment::variables::{self, BACKUP_WAL};
use crate::error::{Exit, Failure, PathContext, Result, exit, is_full_disk};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::systemd::ActiveState;
use crate::host::systemd::job::JobType;
use crate::operations::edits;
use crate::operations::install::{self, ReleaseTarget};
use crate::operations::seal;
use crate::operations::stack::{self, Manner, RECOVERY_TIMEOUT};
use crate::operations::upgrade;
use crate::output::{Meter, bytes, duration, shell_word};
use crate::service::Service;

#[derive(Clone, Debug)]
pub(crate) struct RestoreOptions {
    /// How long the gateway may take to stop and to be ready again.
    pub timeout: Duration,
    /// The file with the age identity, for a backup that is encrypted.
    pub identity: Option<PathBuf>,
    /// Restore `.env` and `config/` as well, except for the settings of the server.
    pub config: bool,
    /// Verify without a key and without a restore that the host is not fit for: without an identity, only the checksums of an
    /// encrypted backup; with an archive of the write-ahead log, only that the dump is readable.
    pub unattended: bool,
    /// Whether it is a step of a change that is rolled back after an interruption, and so is undone then, even after the
    /// databases were swapped.
    pub is_step: bool,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self {
            timeout: RECOVERY_TIMEOUT,
            identity: None,
            config: false,
            unattended: false,
            is_step: false,
        }
    }
}

/// How the names of replaced databases begin.
const REPLACED: &str = "litellm_units_replaced_";
/// How long such a database is kept.
const KEPT: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// The result of a verification.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verified {
    pub id: OperationId,
    /// The number of files whose SHA-256 is right.
    pub files: usize,
    pub tables: usize,
    /// The number of rows in them.
    pub rows: u64,
    /// The number of further tables, whose rows were not counted.
    pub uncounted: usize,
    /// Whether the dump was restored and counted.
    pub restored: bool,
    /// Whether the dump was read to its end; otherwise only its checksum is known.
    pub read: bool,
}

/// The outcome of an interrupted restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// There was none.
    Nothing,
    /// The data of this backup is in place.
    Finished(OperationId),
    /// The previous database is in use.
    Undone,
}

/// An unfinished restore as it is recorded on disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct RestoreRecord {
    backup: OperationId,
    /// The database that is filled.
    staged: String,
    /// The name of the gateway's database after it is replaced.
    replaced: String,
    /// Whether the gateway has to run afterwards.
    gateway: bool,
    /// The previous configuration, if it is replaced, too.
    configuration: Option<String>,
    /// As [`RestoreOptions::is_step`].
    #[serde(default)]
    is_step: bool,
    /// Whether the gateway was ready with the data, so that writes may have been acknowledged.
    #[serde(default)]
    ready: bool,
}

impl RestoreRecord {
    fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "remove it when the gateway serves with the right data";
        files::load_record(&paths.restore_record(), hint)
    }

    fn save(&self, paths: &Paths) -> Result<()> {
        make_private(&paths.state())?;
        files::save_record(&paths.restore_record(), self)
    }

    /// Whether an interruption after the databases were swapped undoes it.
    fn is_undone(&self) -> bool {
        self.is_step || self.configuration.is_some() && !self.ready
    }

    fn remove(paths: &Paths) -> Result<()> {
        let path = paths.restore_record();
        std::fs::remove_file(&path).path_context("can't remove", &path)?;
        files::sync_directory(&paths.state())
    }
}

/// Restores a backup into a scratch database of the running server, counts what is in it, and
/// removes it. Where that is not done ([`refused_restore`]), the dump is only read to its end. The inner result is what is
/// known of the backup.
///
/// # Errors
/// When it could not be verified: a key is missing, or PostgreSQL or the disk has failed.
pub(crate) async fn verify(
    host: &Host,
    settings: &Settings,
    backup: &Backup,
    options: &RestoreOptions,
) -> Result<Result<Verified>> {
    if let Err(damaged) = check(host, backup).await {
        return Ok(Err(damaged));
    }
    let server = Server::new(host, settings).await?;
    recover_with(host, settings, &server).await?;
    let has_key = backup.manifest.encryption.is_none() || options.identity.is_some();
    let is_readable = has_key || !options.unattended;
    let mut reason = refused_restore(settings, server.is_local(), options).map(str::to_owned);
    if is_readable
        && reason.is_none()
        && let Err(full) = check_space_for_archive(host, settings, backup)
    {
        if !options.unattended {
            return Err(full);
        }
        reason = Some(format!("{full:#}"));
    }
    let verified = Verified {
        id: backup.id().clone(),
        files: backup.manifest.files.len(),
        tables: backup.manifest.database.rows.len(),
        rows: backup.manifest.total_rows(),
        uncounted: backup.manifest.database.uncounted.len(),
        restored: is_readable && reason.is_none(),
        read: is_readable,
    };
    if !is_readable {
        return Ok(Ok(verified));
    }
    if let Some(reason) = reason {
        host.progress
            .say(&format!("the dump is only read to its end: {reason}"));
        let source = open_dump(backup, options)?;
        let read = of_the_dump(server.read_through(source).await)?;
        return Ok(read.map(|()| verified));
    }
    let scratch = scratch_name("verify", backup.id());
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let attempt = tokio::select! {
        result = fill(host, &server, &scratch, backup, options) => result,
        _ = interrupt.recv() => Err(Failure::interrupted("interrupted; what the verification had restored was removed").into()),
    };
    let dropped = drop_scratch(&server, &scratch).await;
    let found = attempt?;
    dropped?;
    Ok(found
        .and_then(|found| compare(host, backup, &found))
        .map(|()| verified))
}

/// Takes a failure of `pg_restore` as one of the dump, unless PostgreSQL or the disk is its cause.
fn of_the_dump<T>(restored: Result<T>) -> Result<Result<T>> {
    match restored {
        Err(error) if is_full_disk(&error) || is_of_the_server(&error) => Err(error),
        restored => Ok(restored),
    }
}

/// Why a verification only reads the dump.
fn refused_restore(
    settings: &Settings,
    is_local: bool,
    options: &RestoreOptions,
) -> Option<&'static str> {
    if !is_local {
        Some("the database is external")
    } else if options.unattended && settings.backup.wal {
        // Nobody watches whether the archive keeps up with it.
        Some("a restored copy would be written to the archive of the write-ahead log (BACKUP_WAL)")
    } else {
        None
    }
}

/// What a restore changes: the tables with another number of rows than now. Nothing if the database does not run.
pub(crate) async fn compare_with_running(
    host: &Host,
    settings: &Settings,
    backup: &Backup,
) -> Result<Vec<String>> {
    let systemd = host.systemd().await?;
    if !systemd.unit(Service::Postgres.unit()).await?.is_active() {
        return Ok(Vec::new());
    }
    let server = Server::new(host, settings).await?;
    let now = server.contents(&server.database).await?;
    let differences = now.differences(&backup.manifest.database);
    Ok(if differences.is_empty() {
        vec!["every table has as many rows as the running database".to_owned()]
    } else {
        let mut lines = vec!["compared with the running database:".to_owned()];
        lines.extend(differences.iter().map(|line| format!("  {line}")));
        lines
    })
}

/// Restores the data of a backup: beside the running gateway first, then in its place, then waits
/// until the gateway is ready with it. The gateway is started only if it ran before.
///
/// # Errors
/// When the backup is damaged or can't be restored, or the gateway does not become ready with it:
/// then nothing was replaced.
pub(crate) async fn restore_data(
    host: &Host,
    settings: &Settings,
    backup: &Backup,
    options: &RestoreOptions,
) -> Result<()> {
    let id = backup.id();
    check(host, backup).await?;
    refuse(host, backup, options)?;
    if options.config {
        let env = env_of(backup, options)?;
        // Its sealed secrets are beside this path.
        let settings = Settings::from_env(&env, &backup.directory.join(".env"))?;
        edits::refuse_missing_values(&host.paths, &settings)?;
    }
    let systemd = host.systemd().await?;
    let unit = Service::Litellm.unit();
    // A failed gateway was meant to run.
    let runs = systemd.unit(unit).await?.active != ActiveState::Inactive;
    stack::start_database(host, settings, options.timeout).await?;
    check_space_for_archive(host, settings, backup)?;
    let mut restore = Restore::stage(host, settings, backup, options, runs).await?;
    let mut units = vec![unit];
    // The data of another release needs its migrations.
    if options.config || restore.other_release {
        units.push(Service::Migrate.unit());
    }
    let begin = std::time::Instant::now();
    let attempt = async {
        stack::stop(host, &units, options.timeout).await?;
        fail::fail_point!("restore-after-stop");
        restore.swap().await?;
        fail::fail_point!("restore-after-swap");
        if options.config {
            restore.keep_configuration()?;
            restore_config(host, backup, options)?;
            fail::fail_point!("restore-after-config");
        }
        fail::fail_point!("restore-not-ready", |_| anyhow::bail!("a test says so"));
        // The configuration of the backup brings its own release.
        let target = options.config.then_some(ReleaseTarget::Wanted);
        bring_back(host, target, runs, options.timeout).await?;
        if options.config {
            let settings = Settings::load(&host.paths.env_file())?;
            upgrade::record(host, &settings, "restore").await?;
        }
        Ok(())
    };
    if let Err(error) = attempt.await {
        // After Ctrl-C nothing is rolled back here: litellm-recovery.service or the next command completes the restore.
        if exit(&error) == Exit::Interrupted {
            return Err(error);
        }
        let timeout = options.timeout.max(RECOVERY_TIMEOUT);
        return Err(take_back(host, restore, &units, timeout, error).await);
    }
    restore.record.ready = true;
    // On a full disk, nothing else shows that it is complete until the record is removed.
    if let Err(error) = restore.record.save(&host.paths) {
        host.progress.warn(&format!("{error:#}"));
    }
    fail::fail_point!("restore-after-ready");
    let replaced = restore.commit().await?;
    if runs {
        host.progress.say(&format!(
            "the gateway is running with the data of backup {id}; it was down for {}",
            duration(begin.elapsed())
        ));
    } else {
        host.progress.say(&format!(
            "the data of backup {id} is in place; the gateway was stopped before and was not started"
        ));
    }
    host.progress.say(&format!(
        "the replaced database is kept as {replaced} for 7 days, and no longer than until the next restore"
    ));
    Ok(())
}

/// Starts the gateway if it ran; installs the units of another configuration (`target`) first, if
/// there is one.
async fn bring_back(
    host: &Host,
    target: Option<ReleaseTarget>,
    runs: bool,
    timeout: Duration,
) -> Result<()> {
    if let Some(target) = target {
        let prepared = install::prepare(host, target).await?;
        prepared.apply(host).await?;
        install::pull_missing(host, &prepared, target).await?;
        if runs {
            stack::bring_up(host, prepared.settings(), timeout).await?;
        }
    } else if runs {
        let steps = [(JobType::Start, Service::Litellm.unit())];
        stack::start_units(host, &steps, Manner::AtOnce, timeout).await?;
    }
    Ok(())
}

/// Undoes a restore with which the gateway does not become ready.
async fn take_back(
    host: &Host,
    restore: Restore<'_>,
    units: &[&str],
    timeout: Duration,
    error: anyhow::Error,
) -> anyhow::Error {
    host.progress.say("the restore failed: rolling back");
    let id = restore.record.backup.clone();
    match restore.undo(units, timeout).await {
        Ok(Ok(())) => Failure::new("the restore failed and was rolled back; the previous database is in use")
            .hint(format!("the backup may need the release of its time: `litellm-units restore {id} --config` restores that and the configuration, too"))
            .caused_by(error),
        Ok(Err(second)) => Failure::new("the restore was rolled back, but the gateway is not ready with the previous database either")
            .hint("see why: `litellm-units status`")
            .caused_by(second.context(error)),
        Err(second) => Failure::new("the restore failed, and so did rolling it back")
            .hint("nothing was deleted; to try the rollback again: `litellm-units up`")
            .caused_by(second.context(error)),
    }
    .into()
}

/// An unfinished restore, for callers that start and stop the gateway themselves.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    host: &'a Host,
    server: Server<'a>,
    record: RestoreRecord,
    /// Whether the backup was made with another image of the gateway than the one that runs now,
    /// so that `litellm-migrate.service` has to run again.
    pub other_release: bool,
}

impl<'a> Restore<'a> {
    /// Fills a new database beside the gateway's, which may serve meanwhile, and compares its
    /// counts with the manifest. `gateway`: whether [`recover`] has to start the gateway if this
    /// process is killed from here on.
    ///
    /// # Errors
    /// When the backup can't be restored; then nothing is left of the attempt.
    pub(crate) async fn stage(
        host: &'a Host,
        settings: &Settings,
        backup: &Backup,
        options: &RestoreOptions,
        gateway: bool,
    ) -> Result<Self> {
        let server = Server::new(host, settings).await?;
        if !server.is_local() {
            return Err(external(backup));
        }
        recover_with(host, settings, &server).await?;
        check_space_for(host, backup)?;
        let now = OperationId::new(jiff::Timestamp::now())?;
        let configuration = options
            .config
            .then(|| snapshot::keep(&host.paths))
            .transpose()?;
        let record = RestoreRecord {
            backup: backup.id().clone(),
            staged: scratch_name("restore", backup.id()),
            replaced: scratch_name("replaced", &now),
            gateway,
            configuration: configuration.map(|id| id.to_string()),
            is_step: options.is_step,
            ready: false,
        };
        record.save(&host.paths)?;
        fail::fail_point!("restore-recorded");
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        let fill = async {
            let found = fill(host, &server, &record.staged, backup, options).await??;
            compare(host, backup, &found)?;
            // The planner would have no statistics until autovacuum runs.
            server
                .query(&record.staged, &format!("{NO_TIMEOUTS}ANALYZE;\n"))
                .await
        };
        let attempt = tokio::select! {
            result = fill => result,
            _ = interrupt.recv() => Err(Failure::interrupted("interrupted; the database is unchanged").into()),
        };
        if let Err(error) = attempt {
            drop_scratch(&server, &record.staged).await?;
            RestoreRecord::remove(&host.paths)?;
            return Err(error);
        }
        fail::fail_point!("restore-staged");
        let images = super::images(host, settings).await;
        let same_release = images
            .gateway()
            .zip(backup.manifest.images.gateway())
            .is_some_and(|(now, then)| now.identity.is(&then.identity));
        Ok(Self {
            host,
            server,
            record,
            other_release: !same_release,
        })
    }

    /// Replaces the gateway's database with the restored one; the gateway must not run.
    ///
    /// # Errors
    /// When the server refuses; then nothing is changed.
    pub(crate) async fn swap(&self) -> Result<()> {
        self.server
            .rename(&[
                (&self.server.database, &self.record.replaced),
                (&self.record.staged, &self.server.database),
            ])
            .await
    }

    /// Keeps the configuration directly before it is replaced, for an undo: the restore of the database may have taken hours.
    fn keep_configuration(&mut self) -> Result<()> {
        self.record.configuration = Some(snapshot::keep(&self.host.paths)?.to_string());
        self.record.save(&self.host.paths)
    }

    /// Keeps what was edited since `before` was kept. A configuration that can't be kept is no reason to stay with it.
    fn keep_edits(&self, before: &SnapshotId) {
        let progress = &self.host.progress;
        match snapshot::keep(&self.host.paths) {
            Ok(kept) if kept == *before => {}
            Ok(kept) => progress.say(&format!(
                "the configuration that is replaced is kept in {}",
                snapshot::directory(&self.host.paths, &kept).display()
            )),
            Err(error) => progress.warn(&format!("{error:#}")),
        }
    }

    /// Whether the data of the backup is in place.
    pub(crate) async fn is_swapped(&self) -> Result<bool> {
        Ok(self
            .server
            .own_databases()
            .await?
            .contains(&self.record.replaced))
    }

    /// Undoes [`Restore::swap`]; the gateway must not run.
    ///
    /// # Errors
    /// When the server refuses; then nothing is changed.
    pub(crate) async fn swap_back(&self) -> Result<()> {
        self.server
            .rename(&[
                (&self.server.database, &self.record.staged),
                (&self.record.replaced, &self.server.database),
            ])
            .await
    }

    /// Ends a restore that works: databases that earlier restores replaced are removed, the one
    /// that this one replaced is kept. Returns its name.
    pub(crate) async fn commit(self) -> Result<String> {
        for name in self.server.own_databases().await? {
            if name != self.record.replaced {
                self.server.drop_database(&name).await?;
            }
        }
        RestoreRecord::remove(&self.host.paths)?;
        Ok(self.record.replaced)
    }

    /// Restores the previous data, and the previous configuration if it was replaced, however far
    /// the restore came; then starts the gateway if it ran. The data is restored when this returns.
    /// The inner result is the gateway's: it may not have been ready before either.
    ///
    /// # Errors
    /// When the server or the disk refuses; then [`recover`] tries again.
    pub(crate) async fn undo(self, units: &[&str], timeout: Duration) -> Result<Result<()>> {
        let own = self.server.own_databases().await?;
        let configuration = self
            .record
            .configuration
            .as_deref()
            .and_then(|name| SnapshotId::find(&self.host.paths, name));
        if own.contains(&self.record.replaced) {
            stack::stop(self.host, units, timeout).await?;
            self.swap_back().await?;
        }
        fail::fail_point!("restore-undone");
        if let Some(configuration) = &configuration {
            self.keep_edits(configuration);
            snapshot::restore(&self.host.paths, configuration, &[])?;
        }
        drop_scratch(&self.server, &self.record.staged).await?;
        let gateway = bring_back(
            self.host,
            configuration.map(|_| ReleaseTarget::Recorded),
            self.record.gateway,
            timeout,
        )
        .await;
        RestoreRecord::remove(&self.host.paths)?;
        Ok(gateway)
    }
}

/// Finishes or undoes an interrupted backup, verification or restore, and reports it. Every command
/// of this module does it first.
pub(crate) async fn recover(host: &Host, settings: &Settings) -> Result<Recovered> {
    let server = Server::new(host, settings).await?;
    recover_with(host, settings, &server).await
}

/// The restore that was interrupted, for a caller that commits or undoes it.
///
/// # Errors
/// When there is none, or the server can't be reached.
pub(crate) async fn resume<'a>(host: &'a Host, settings: &Settings) -> Result<Restore<'a>> {
    let record = RestoreRecord::load(&host.paths)?.context("no restore was interrupted")?;
    let server = Server::new(host, settings).await?;
    server.end_leftovers().await?;
    Ok(Restore {
        host,
        server,
        record,
        other_release: true,
    })
}

/// Whether [`recover`] has a restore to finish or to undo.
pub(crate) fn is_unfinished(paths: &Paths) -> bool {
    paths.restore_record().exists()
}

pub(super) async fn recover_with(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
) -> Result<Recovered> {
    point_in_time::clean_up(host).await?;
    remove_unfinished(host)?;
    let mut recovered = Recovered::Nothing;
    if !server.is_local() {
        return Ok(recovered);
    }
    let mut own = server.own_databases().await?;
    if let Some(record) = RestoreRecord::load(&host.paths)? {
        server.end_leftovers().await?;
        recovered = recover_restore(host, settings, record, &own).await?;
        own = server.own_databases().await?;
    }
    for name in own.iter().filter(|name| !name.starts_with(REPLACED)) {
        server.end_leftovers().await?;
        server.drop_database(name).await?;
        host.progress.say(&format!(
            "removed database {name}, the rest of an interrupted run"
        ));
    }
    Ok(recovered)
}

/// The replaced databases that have been kept for long enough, each with the time of its replacement.
pub(super) async fn outdated(server: &Server<'_>) -> Result<Vec<(String, jiff::Timestamp)>> {
    let old = jiff::Timestamp::now() - KEPT;
    let own = server.own_databases().await?.into_iter();
    let replaced = own.filter_map(|name| replaced_at(&name).map(|at| (name, at)));
    Ok(replaced.filter(|(_, at)| *at < old).collect())
}

/// Removes them. A nightly backup shows warnings only, and this can't be undone.
pub(super) async fn remove_outdated(host: &Host, server: &Server<'_>) -> Result<()> {
    for (name, at) in outdated(server).await? {
        server.drop_database(&name).await?;
        host.progress.warn(&format!(
            "removed database {name}, which was replaced at {at}"
        ));
    }
    Ok(())
}

fn replaced_at(name: &str) -> Option<jiff::Timestamp> {
    let (time, suffix) = name.strip_prefix(REPLACED)?.split_once('_')?;
    let id = OperationId::parse(&format!("{}-{suffix}", time.to_ascii_uppercase()))?;
    jiff::tz::Offset::UTC.to_timestamp(id.created()).ok()
}

async fn recover_restore(
    host: &Host,
    settings: &Settings,
    record: RestoreRecord,
    own: &[String],
) -> Result<Recovered> {
    let id = record.backup.clone();
    let swapped = own.contains(&record.replaced);
    let (is_undone, is_ready) = (record.is_undone(), record.ready);
    // A gateway that was stopped with the whole stack is not to be started.
    let gateway = record.gateway && stack::is_wanted(host.systemd().await?).await?;
    let restore = Restore {
        host,
        server: Server::new(host, settings).await?,
        record: RestoreRecord { gateway, ..record },
        other_release: true,
    };
    let units = [Service::Litellm.unit(), Service::Migrate.unit()];
    if swapped && !is_undone {
        host.progress.say(&format!(
            "the restore of backup {id} was interrupted after the databases were swapped: finishing it"
        ));
        return match bring_back(host, None, gateway, RECOVERY_TIMEOUT).await {
            Err(error) if !is_ready => {
                Err(take_back(host, restore, &units, RECOVERY_TIMEOUT, error).await)
            }
            started => {
                restore.commit().await?;
                remove_recovered(host, &id);
                started.map(|()| Recovered::Finished(id))
            }
        };
    }
    host.progress.say(&format!(
        "the restore of backup {id} was interrupted: rolling it back"
    ));
    if is_recovered(host, &id) {
        host.progress.say(&kept(&id));
    }
    // The restore may have been meant to fix that.
    if let Err(error) = restore.undo(&units, RECOVERY_TIMEOUT).await? {
        host.progress.warn(&format!(
            "the previous database is in use, but the gateway is not ready: {error:#}"
        ));
    }
    Ok(Recovered::Undone)
}

/// What is said of the backup of a recovered database that was not restored.
pub(crate) fn kept(id: &OperationId) -> String {
    format!(
        "what was recovered is kept as backup {id} until the next backup; to restore it: `litellm-units restore {id}`"
    )
}

fn is_recovered(host: &Host, id: &OperationId) -> bool {
    let found = Backup::load(&host.paths, id);
    found.is_ok_and(|found| found.manifest.recovered.is_some())
}

/// Removes the backup of a recovered database that is in use now.
fn remove_recovered(host: &Host, id: &OperationId) {
    if is_recovered(host, id)
        && let Err(error) = super::remove(&host.paths, id)
    {
        host.progress.warn(&format!("{error:#}"));
    }
}

async fn check(host: &Host, backup: &Backup) -> Result<()> {
    let meter = Meter::new("checked", backup.manifest.total_size(), &host.progress);
    let (directory, manifest) = (backup.directory.clone(), backup.manifest.clone());
    tokio::task::spawn_blocking(move || {
        let result = archive::check_files(&directory, &manifest, &meter);
        meter.clear();
        result
    })
    .await
    .context("the check of the files stopped")?
}

/// Refuses when the disk of the server can't hold the restored database.
fn check_space_for(host: &Host, backup: &Backup) -> Result<()> {
    let size = filled(backup.manifest.database.size);
    check_space(&host.paths.postgres_data(), size)
}

/// As [`check_space_for`], with the log of the restore, if it is archived. A rollback is not refused for that.
fn check_space_for_archive(host: &Host, settings: &Settings, backup: &Backup) -> Result<()> {
    if !settings.backup.wal {
        return check_space_for(host, backup);
    }
    let dump = backup.manifest.file(DUMP)?.size;
    check_archived_space(&host.paths, backup.manifest.database.size, dump)
}

fn open_dump(backup: &Backup, options: &RestoreOptions) -> Result<Box<dyn std::io::Read + Send>> {
    archive::open(
        &backup.directory,
        &backup.manifest,
        DUMP,
        options.identity.as_deref(),
    )
}

/// Restores the dump into the new database `name`; returns its contents. The inner error is one of the dump.
async fn fill(
    host: &Host,
    server: &Server<'_>,
    name: &str,
    backup: &Backup,
    options: &RestoreOptions,
) -> Result<Result<Contents>> {
    // Before the database, since the key may be missing.
    let source = open_dump(backup, options)?;
    host.progress.say(&format!(
        "restoring backup {} beside the running database ({})",
        backup.id(),
        bytes(backup.manifest.database.size)
    ));
    server.create_beside(name).await?;
    fail::fail_point!("restore-created");
    let meter = Meter::new("restored", backup.manifest.database.size, &host.progress);
    let mut result = server.fill(name, &[], meter.reading(source)).await;
    meter.clear();
    if let Err(error) = &result
        && is_missing_role(error)
    {
        host.progress.warn(&format!(
            "the server lacks a role that the backup names, so the gateway's role becomes the owner of everything: {error:#}"
        ));
        server.drop_database(name).await?;
        server.create_beside(name).await?;
        result = server
            .fill(
                name,
                &["--no-owner", "--no-privileges"],
                open_dump(backup, options)?,
            )
            .await;
    }
    let result = result.with_context(|| format!("backup {} can't be restored", backup.id()));
    if let Err(damaged) = of_the_dump(result)? {
        return Ok(Err(damaged));
    }
    let uncounted = &backup.manifest.database.uncounted;
    server.contents_without(name, uncounted).await.map(Ok)
}

fn compare(host: &Host, backup: &Backup, found: &Contents) -> Result<()> {
    let mut saved = backup.manifest.database.clone();
    let missing = saved.forgive_indexes(found);
    if missing > 0 {
        host.progress.warn(&format!(
            "the dump of backup {} lacks {missing} of the counted indexes: one whose build was interrupted is in no dump",
            backup.id()
        ));
    }
    let differences = saved.differences(found);
    if differences.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the database restored from backup {} differs from the saved one:\n  {}",
        backup.id(),
        differences.join("\n  ")
    ))
    .hint("use another backup: `litellm-units backup list`")
    .into())
}

async fn drop_scratch(server: &Server<'_>, name: &str) -> Result<()> {
    server.end_leftovers().await?;
    server.drop_database(name).await
}

/// Refuses what can't be restored here, by the configuration in the backup and that of this host.
pub(super) fn refuse(host: &Host, backup: &Backup, options: &RestoreOptions) -> Result<()> {
    if options.config {
        refuse_links(&host.paths, ALONE)?;
        check_sealed(backup, options)
    } else {
        check_salt(host, backup, options)
    }
}

/// Compares the salt keys. LiteLLM encrypts credentials in the database with it; with another one
/// than the backup's, they would be lost.
pub(crate) fn check_salt(host: &Host, backup: &Backup, options: &RestoreOptions) -> Result<()> {
    let then = env_of(backup, options)?;
    let path = host.paths.env_file();
    let now = load_env(&path)?;
    let (of_then, of_now) = (salt(&then), salt(&now));
    if of_then == of_now {
        return Ok(());
    }
    let of_then = match vault_of(backup).open(of_then.unwrap_or_default()) {
        Ok(salt) => salt,
        Err(error) => {
            host.progress.warn(&format!(
                "can't tell whether LITELLM_SALT_KEY is the one of the backup; if it is not, the credentials in its database can't be read: {error:#}"
            ));
            return Ok(());
        }
    };
    let of_now = Vault::beside(&path).open(of_now.unwrap_or_default())?;
    if of_then.expose_secret() == of_now.expose_secret() {
        return Ok(());
    }
    Err(Failure::config(format!(
        "LITELLM_SALT_KEY in {} is not the one that encrypts the data of backup {}",
        path.display(),
        backup.id()
    ))
    .hint("to restore the configuration of that time as well, add `--config`")
    .into())
}

/// The key that LiteLLM encrypts with: an empty salt is one, too.
fn salt(env: &EnvFile) -> Option<&str> {
    ["LITELLM_SALT_KEY", "LITELLM_MASTER_KEY"]
        .iter()
        .find_map(|name| env.get(name))
}

/// The sealed secrets of a backup.
fn vault_of(backup: &Backup) -> Vault {
    Vault::new(backup.directory.join(CREDENTIALS))
}

/// Refuses a configuration whose sealed secrets can't be opened here.
fn check_sealed(backup: &Backup, options: &RestoreOptions) -> Result<()> {
    let env = env_of(backup, options)?;
    let vault = vault_of(backup);
    for reference in sealed::references(env.text()) {
        vault.value(&reference).map_err(|error| {
            Failure::new(format!(
                "the secrets in backup {} were sealed on another host, or with a key that is lost",
                backup.id()
            ))
            .hint("restore the database alone, without `--config`; .env is not changed then")
            .caused_by(error)
        })?;
    }
    Ok(())
}

fn env_of(backup: &Backup, options: &RestoreOptions) -> Result<EnvFile> {
    let name = super::ENV;
    let bytes = archive::read(
        &backup.directory,
        &backup.manifest,
        name,
        options.identity.as_deref(),
    )?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{name} of backup {} is not UTF-8", backup.id()))?;
    parse_env(&text, &backup.directory.join(name))
}

/// What to do instead of a restore of the configuration.
const ALONE: &str = "or restore the database alone, without `--config`";

/// What is restored goes into `config/`, `certs/`, `files/` and `extra.d/` themselves, and never through a link out of them.
pub(crate) fn refuse_links(paths: &Paths, otherwise: &str) -> Result<()> {
    let extra = Some(paths.extra()).filter(|directory| directory.is_symlink());
    let below = paths
        .mounted()
        .map(|directory| files::link_below(&directory));
    for link in below.into_iter().chain([Ok(extra)]) {
        if let Some(link) = link? {
            return Err(Failure::new(format!(
                "{} is a link, and files are restored through none",
                link.display()
            ))
            .hint(format!(
                "remove it (`rm {}`), {otherwise}",
                shell_word(&link)
            ))
            .into());
        }
    }
    Ok(())
}

/// Restores `.env`, `config/`, `certs/`, `files/` and the files of `extra.d/`, except for the variables of the server.
fn restore_config(host: &Host, backup: &Backup, options: &RestoreOptions) -> Result<()> {
    let paths = &host.paths;
    // The restore of the database may have taken hours.
    refuse_links(paths, ALONE)?;
    let path = paths.env_file();
    let now = load_env(&path)?;
    let mut env = env_of(backup, options)?;
    env.take_over(&variables::of_the_database(), &now)?;
    let identity = options.identity.as_deref();
    let read = |name: &str| archive::read(&backup.directory, &backup.manifest, name, identity);
    let is_from_elsewhere = backup.manifest.recovered.is_some_and(|from| from.elsewhere);
    if is_from_elsewhere || backup.origin != Origin::Own {
        env = without_archive(&env, &path)?;
        host.progress.say(&format!(
            "BACKUP_URL and BACKUP_WAL are commented out in {}, so that this host does not write to the archive of the other one; to go on with it, remove the `#` and run `litellm-units apply`",
            path.display()
        ));
    }
    // The recorded digests of the backup's tags, where this host has none.
    if backup.manifest.file("deployment/images.lock").is_ok() {
        let kept = tempfile::NamedTempFile::new().context("can't create a temporary file")?;
        std::fs::write(kept.path(), read("deployment/images.lock")?)?;
        let then = ImagesLock::load(kept.path())?;
        ImagesLock::change(&paths.images_lock(), |lock| {
            for image in Settings::from_env(&env, &path)?.images() {
                if (is_from_elsewhere || lock.lacks(image))
                    && let Some(locked) = then.get(image)
                {
                    lock.record(image, locked.identity.clone());
                }
            }
            Ok(true)
        })?;
    }
    restore_sealed(paths, backup, &read)?;
    if seal::is_in_use(&now) {
        env = seal::protected(host, &now, &env)?;
    }
    make_private(&paths.credential_files())?;
    // A unit can do what its user can, and whoever can write to the store may have made that of a foreign backup.
    let is_trusted = backup.origin == Origin::Own && !is_from_elsewhere;
    let set_aside = paths.deployment.join("extra.d.restored");
    let (mut wanted, mut aside) = (Vec::new(), false);
    for file in &backup.manifest.files {
        let Some(name) = file.name.strip_prefix("deployment/") else {
            continue;
        };
        let mut place = paths.deployment.join(name);
        let is_mounted = { paths.mounted().into_iter() }
            .any(|directory| place != directory && place.starts_with(directory));
        // Directories there are data.
        let is_extra = place.parent() == Some(&paths.extra());
        if !is_mounted && !is_extra {
            continue;
        }
        if is_extra && !is_trusted {
            place = set_aside.join(place.file_name().unwrap_or_default());
            make_private(&set_aside)?;
            aside = true;
        }
        if let Some(directory) = place.parent() {
            std::fs::create_dir_all(directory).path_context("can't create", directory)?;
        }
        files::write_atomically(&place, &read(&file.name)?, file.mode.unwrap_or(0o644))?;
        wanted.push(place);
    }
    if aside {
        host.progress.warn(&format!(
            "the units of this backup, which this host has not made, are in {}: move those that you trust to {}, then run `litellm-units apply`",
            set_aside.display(),
            paths.extra().display()
        ));
    }
    for present in files::configuration_files(&paths.deployment)? {
        let is_kept = !is_trusted && present.starts_with(paths.extra());
        if !is_kept && !wanted.contains(&present) {
            std::fs::remove_file(&present).path_context("can't remove", &present)?;
        }
    }
    files::write_atomically(&path, env.text().as_bytes(), 0o600)
}

/// Comments out what makes a host archive to a URL.
fn without_archive(env: &EnvFile, path: &Path) -> Result<EnvFile> {
    let mut lines: Vec<String> = env.text().lines().map(str::to_owned).collect();
    let of_the_archive = ["BACKUP_URL", BACKUP_WAL];
    for written in env
        .definitions()
        .filter(|written| of_the_archive.contains(&written.name))
    {
        let count = written.text.lines().count().max(1);
        let begin = written.line.saturating_sub(1);
        for line in lines.iter_mut().skip(begin).take(count) {
            line.insert_str(0, "# ");
        }
    }
    parse_env(&(lines.join("\n") + "\n"), path)
}

/// Adds the files of sealed secrets to the existing ones: each has a unique name.
fn restore_sealed(
    paths: &Paths,
    backup: &Backup,
    read: &impl Fn(&str) -> Result<Vec<u8>>,
) -> Result<()> {
    for file in &backup.manifest.files {
        if let Some(name) = file.name.strip_prefix(CREDENTIALS) {
            make_private(&paths.credentials())?;
            let place = paths.credentials().join(name);
            files::write_atomically(&place, &read(&file.name)?, 0o600)?;
        }
    }
    Ok(())
}

fn external(backup: &Backup) -> anyhow::Error {
    let dump = backup.manifest.file(DUMP).map_or_else(
        |_| Path::new(DUMP).to_owned(),
        |file| backup.directory.join(&file.stored),
    );
    let is_encrypted = dump.extension().is_some_and(|extension| extension == "age");
    let read = if is_encrypted {
        format!(
            "age --decrypt --identity FILE {} | zstd -dc",
            shell_word(&dump)
        )
    } else {
        format!("zstd -dc {}", shell_word(&dump))
    };
    Failure::new("the database is on an external server (DATABASE_URL), where litellm-units replaces nothing")
        .hint(format!(
            "restore it with that server's own tools: `{read} | pg_restore --dbname …`"
        ))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_replaced_database_has_its_time() {
        let id = OperationId::parse("20260131T120000Z-0a1b2c").unwrap();
        let at = |purpose| replaced_at(&scratch_name(purpose, &id)).map(|at| at.to_string());
        assert_eq!(at("replaced").as_deref(), Some("2026-01-31T12:00:00Z"));
        assert_eq!(at("verify"), None);
        assert_eq!(replaced_at("litellm_units_replaced_mine"), None);
    }

    #[test]
    fn what_nobody_asked_for_is_not_written_to_the_archive() {
        let path = Path::new("/srv/.env");
        let env = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nLITELLM_SALT_KEY=sk-salt\nPOSTGRES_PASSWORD=p\nREDIS_PASSWORD=r\n";
        let judged = |wal: &str, is_local, unattended| {
            let env = parse_env(&format!("{env}{wal}"), path).unwrap();
            let options = RestoreOptions {
                unattended,
                ..RestoreOptions::default()
            };
            refused_restore(&Settings::from_env(&env, path).unwrap(), is_local, &options)
        };
        let wal = "BACKUP_WAL=yes\n";
        assert_eq!(judged("", false, true), Some("the database is external"));
        assert_eq!(judged("", true, true), None);
        assert_eq!(judged(wal, true, false), None);
        assert!(judged(wal, true, true).is_some_and(|reason| reason.contains("BACKUP_WAL")));
    }

    #[test]
    fn a_failed_server_is_no_fault_of_the_dump() {
        let is_of_the_dump = |words: &'static str| {
            let error =
                anyhow::anyhow!("pg_restore: {words}").context("backup x can't be restored");
            of_the_dump::<()>(Err(error)).is_ok()
        };
        for words in [
            "pg_restore: error: could not read from input file: end of file",
            "pg_restore: error: could not execute query: ERROR:  invalid byte sequence for encoding \"UTF8\": 0xff",
        ] {
            assert!(is_of_the_dump(words), "{words}");
        }
        for words in [
            "pg_restore: error: connection to server on socket \"/run/postgresql/.s.PGSQL.5432\" failed: FATAL:  the database system is starting up",
            "pg_restore: error: could not execute query: FATAL:  terminating connection due to administrator command",
            "pg_restore: error: could not execute query: server closed the connection unexpectedly",
            "pg_restore: error: could not execute query: ERROR:  could not extend file \"base/5/1\": No space left on device",
            "Error: no container with name or ID \"litellm-postgres\" found: no such container",
            "it ended without a message",
        ] {
            assert!(!is_of_the_dump(words), "{words}");
        }
    }

    #[test]
    fn what_was_ready_is_not_undone() {
        let record = |configuration: &str, rest: &str| -> RestoreRecord {
            let text = format!(
                r#"{{"backup": "20260131T120000Z-0a1b2c", "staged": "s", "replaced": "r", "gateway": true, "configuration": {configuration}{rest}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(!record("null", "").is_undone());
        assert!(record(r#""0a""#, "").is_undone());
        assert!(!record(r#""0a""#, r#", "ready": true"#).is_undone());
        // The change that it is a step of decides.
        assert!(record("null", r#", "is_step": true, "ready": true"#).is_undone());
    }
}

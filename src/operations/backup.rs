//! Backups: the database with everything that the gateway needs to run again. They are made while
//! the gateway serves, and listed, verified and removed.
//!
//! A backup is a directory below `backups/`, built under another name and renamed when it is
//! complete, so that an interruption never leaves an incomplete one among the others. No function
//! here takes the lock of [`crate::host::lock`]: the caller does.

pub(crate) mod archive;
pub(crate) mod authentication;
pub(crate) mod database;
pub(crate) mod manifest;
pub(crate) mod object_store;
pub(crate) mod point_in_time;
pub(crate) mod restore;
pub(crate) mod retention;
pub(crate) mod verification;
pub(crate) mod wal;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

use crate::deployment::entrance;
use crate::deployment::env_file::EnvFile;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::ledger::Images;
use crate::deployment::operation_id::OperationId;
use crate::deployment::sealed;
use crate::deployment::settings::{BackupSettings, Settings, load_env};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::error::{self, Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::files::{Space, configuration_files};
use crate::host::paths::Paths;
use crate::image::{Image, ImageIdentity};
use crate::operations::{postgres, seal};
use crate::output::{Meter, Progress, bytes, duration};
use crate::quadlet::{Place, dev, is_ours_by_name};
use crate::service::Service;
use archive::Recipient;
use authentication::{BackupKey, Origin};
use database::Server;
use manifest::{BackupManifest, DUMP, Encryption, RecoveredFrom, StoredFile};
use object_store::BackupStore;
use retention::Retention;

/// What a backup holds the lock as.
pub(crate) const COMMAND: &str = "backup";
pub(crate) const VERIFY_COMMAND: &str = "backup verify";
pub(crate) const FETCH_COMMAND: &str = "backup fetch";
/// The logical name of `.env`.
const ENV: &str = "deployment/.env";
/// The prefix of the logical names of sealed secrets.
const CREDENTIALS: &str = "deployment/credentials/";
/// The prefix of the directory of an incomplete backup.
const UNFINISHED: &str = ".new-";
/// The file in a backup that is to be copied, with the URL, until it is.
const UNCOPIED: &str = "uncopied";
/// For how long the copy of a backup is tried again before another backup is made: less than the time between two nights.
const RESUME_LIMIT: jiff::SignedDuration = jiff::SignedDuration::from_hours(12);
/// Free space that must remain on a disk: with less, PostgreSQL may stop at any time.
pub(crate) const RESERVE: u64 = 512 << 20;

/// What the log of a server may need while a database is filled: PostgreSQL's default of `max_wal_size`.
const FILLING: u64 = 1 << 30;

#[derive(Clone, Debug)]
pub(crate) struct BackupOptions {
    /// The rule that removes older backups afterwards; `None` keeps them all.
    pub retention: Option<Retention>,
    /// Backups that the rule never removes.
    pub protected: Vec<OperationId>,
    /// The age recipient; without one, `BACKUP_AGE_RECIPIENT` of `.env`.
    pub recipient: Option<String>,
    /// The URL of the copy; `None` for `BACKUP_URL` of `.env`.
    pub to: Option<String>,
    /// Of this configuration, and neither encrypted nor copied, so that a rollback on this host needs no key.
    pub to_go_back: Option<SnapshotId>,
    /// Whether it removes the previous cluster of PostgreSQL, and databases that were replaced long ago: only if somebody asked
    /// for this backup.
    pub forget_cluster: bool,
    /// Whether the last backup is copied instead, if its copy has failed.
    pub resume: bool,
    /// Of a recovered database, and not copied.
    pub recovered: Option<Recovered>,
}

/// What belongs to a recovered database.
#[derive(Clone, Debug)]
pub(crate) struct Recovered {
    /// The directory with the `.env` and `config/` of its base backup.
    pub configuration: PathBuf,
    /// The images of that time.
    pub images: Images,
    pub from: RecoveredFrom,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            retention: Some(Retention::default()),
            protected: Vec::new(),
            recipient: None,
            to: None,
            to_go_back: None,
            forget_cluster: false,
            resume: false,
            recovered: None,
        }
    }
}

impl BackupOptions {
    /// What the rule never removes: with a clock that was set back, the new one looks like the oldest.
    fn protected_with(&self, new: &OperationId) -> Vec<OperationId> {
        [&self.protected[..], std::slice::from_ref(new)].concat()
    }
}

/// A complete backup.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub directory: PathBuf,
    pub manifest: BackupManifest,
    /// The deployment that made it.
    pub origin: Origin,
}

impl Backup {
    pub(crate) fn id(&self) -> &OperationId {
        &self.manifest.id
    }

    /// Reads the backup of that name.
    ///
    /// # Errors
    /// When there is none, or its manifest is damaged.
    pub(crate) fn load(paths: &Paths, id: &OperationId) -> Result<Self> {
        Self::load_from(paths, &directory(paths), id)
    }

    /// As [`Backup::load`], below another directory than that of the backups.
    fn load_from(paths: &Paths, parent: &Path, id: &OperationId) -> Result<Self> {
        let directory = parent.join(id.as_str());
        if !directory.is_dir() {
            return Err(Failure::new(format!("there is no backup {id} in {}", parent.display()))
                .hint("list the local backups: `litellm-units backup list`; get a remote one: `litellm-units backup fetch`")
                .into());
        }
        let (manifest, text) = BackupManifest::load(&directory)?;
        if manifest.id != *id {
            return Err(Failure::new(format!(
                "{} holds backup {}",
                directory.display(),
                manifest.id
            ))
            .hint(
                "give the directory that name, or use another backup: `litellm-units backup list`",
            )
            .into());
        }
        let origin = authentication::origin(paths, &directory, &text)?;
        Ok(Self {
            directory,
            manifest,
            origin,
        })
    }

    /// The backup, if this deployment made it or the operator accepts a foreign one.
    pub(crate) fn admitted(self, foreign: bool) -> Result<Self> {
        match self.origin {
            Origin::Foreign(reason) if !foreign => Err(Failure::new(format!(
                "backup {} was not made by this deployment: {reason}",
                self.id()
            ))
            .hint("its dump runs as the superuser of PostgreSQL and replaces the whole database, with every key and setting in it; with `--config`, its code in config/*.py runs in the gateway; if you trust its origin, add `--foreign`")
            .into()),
            _ => Ok(self),
        }
    }

    /// Reads the backup that an operator names: by its name, or as `latest`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn find(paths: &Paths, name: &str) -> Result<Self> {
        if name != "latest" {
            let id = OperationId::parse(name).ok_or_else(|| {
                Failure::new(format!("{name:?} is not the name of a backup"))
                    .hint("use `latest`, or a name from `litellm-units backup list`")
            })?;
            return Self::load(paths, &id);
        }
        for id in ids(paths)?.iter().rev() {
            let found = Self::load(paths, id)?;
            // What an interrupted recovery has left is of an earlier time than its name says.
            if found.manifest.recovered.is_none() {
                return Ok(found);
            }
        }
        Err(Failure::new(format!(
            "there is no backup in {}",
            directory(paths).display()
        ))
        .hint("make one: `litellm-units backup`")
        .into())
    }
}

/// Which other host makes the backups, as a sentence without its end; `None` if this one does.
pub(crate) fn made_elsewhere(settings: &BackupSettings) -> Option<String> {
    let by = settings.by.as_ref()?;
    Some(format!(
        "the database is backed up by {by} (BACKUP_BY in .env)"
    ))
}

/// Where the backups of a deployment are.
pub(crate) fn directory(paths: &Paths) -> PathBuf {
    paths.deployment.join("backups")
}

/// The names of all complete backups, oldest first.
pub(crate) fn ids(paths: &Paths) -> Result<Vec<OperationId>> {
    ids_in(&directory(paths))
}

/// The name and the time of the newest complete backup.
pub(crate) fn newest(paths: &Paths) -> Result<Option<(OperationId, jiff::Timestamp)>> {
    let Some(id) = ids(paths)?.pop() else {
        return Ok(None);
    };
    let created = jiff::tz::Offset::UTC.to_timestamp(id.created())?;
    Ok(Some((id, created)))
}

fn ids_in(directory: &Path) -> Result<Vec<OperationId>> {
    let entries = files::entries(directory)?;
    let mut ids: Vec<_> = { entries.iter() }
        .filter_map(|path| OperationId::parse(files::name(path)?))
        .collect();
    ids.sort();
    Ok(ids)
}

/// What a backup has recorded of the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordedSize {
    /// Seconds since 1970.
    pub at: i64,
    /// Bytes of the database.
    pub database: u64,
    /// Bytes in use on its disk.
    pub disk: Option<u64>,
}

/// The sizes that this deployment's backups of the last days have recorded, oldest first. A damaged backup has none;
/// `backup list` names it.
pub(crate) fn recorded_sizes(paths: &Paths, days: i32) -> Result<Vec<RecordedSize>> {
    let now = jiff::Timestamp::now();
    let begin = now.checked_sub(jiff::SignedDuration::from_hours(24 * i64::from(days)))?;
    let begin = jiff::tz::Offset::UTC.to_datetime(begin);
    let ids = ids(paths)?.into_iter().filter(|id| id.created() >= begin);
    let mut sizes = Vec::new();
    for id in ids {
        let directory = directory(paths).join(id.as_str());
        let Ok((manifest, text)) = BackupManifest::load(&directory) else {
            continue;
        };
        // What a recovery brought back is the database of another time.
        let is_current = manifest.id == id && manifest.recovered.is_none();
        if is_current && authentication::origin(paths, &directory, &text)? == Origin::Own {
            sizes.push(RecordedSize {
                at: jiff::tz::Offset::UTC
                    .to_timestamp(id.created())?
                    .as_second(),
                database: manifest.database.size,
                disk: manifest.disk_used,
            });
        }
    }
    Ok(sizes)
}

/// Makes a backup while the gateway serves.
///
/// # Errors
/// When the database can't be read or the disk can't hold the backup: then nothing is left of it.
/// When the backup is complete but its remote copy failed.
pub(crate) async fn create(
    host: &Host,
    settings: &Settings,
    options: &BackupOptions,
) -> Result<Backup> {
    let server = Server::new(host, settings).await?;
    let made = Box::pin(create_from(host, settings, &server, options)).await;
    if options.to_go_back.is_some() || !server.is_local() {
        return made;
    }
    let made = made?;
    if !settings.backup.wal {
        wal::end(host, &server).await?;
        return Ok(made);
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let base = tokio::select! {
        base = Box::pin(wal::base(host, settings, &server)) => base,
        _ = interrupt.recv() => return Err(Failure::interrupted(format!(
            "interrupted; backup {} is complete, and the incomplete base backup was removed", made.id()
        ))
        .into()),
    };
    // The dump is worth no second attempt for this; litellm-wal.service makes the base backup.
    if let Err(error) = base {
        host.progress.warn(&format!(
            "backup {} is complete, but not the base backup for the archive of the write-ahead log: {error:#}",
            made.id()
        ));
    }
    Ok(made)
}

/// As [`create`], of the database on another server than that of `settings`.
///
/// # Errors
/// As [`create`].
pub(crate) async fn create_from(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
    options: &BackupOptions,
) -> Result<Backup> {
    let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
    let (backup, remote) = tokio::select! {
        made = make(host, settings, server, options) => made?,
        _ = interrupt.recv() => return Err(Failure::interrupted("interrupted; the incomplete backup was removed")
            .hint("make a new one: `litellm-units backup`")
            .into()),
    };
    if let Some(remote) = &remote {
        tokio::select! {
            copied = copy(host, remote, &backup, options) => copied?,
            _ = interrupt.recv() => return Err(Failure::interrupted(format!(
                "interrupted; backup {} is complete on this host, and not copied", backup.id()
            ))
            .hint("make another one, which is copied: `litellm-units backup`")
            .into()),
        }
    }
    Ok(backup)
}

/// Makes a backup on this host. Returns it, and where it is to be copied.
async fn make(
    host: &Host,
    settings: &Settings,
    server: &Server<'_>,
    options: &BackupOptions,
) -> Result<(Backup, Option<BackupStore>)> {
    let begin = std::time::Instant::now();
    let backup_settings = options.to_go_back.is_none().then_some(&settings.backup);
    let of_settings = |pick: fn(&BackupSettings) -> Option<&String>| backup_settings.and_then(pick);
    let is_copied = options.recovered.is_none();
    let recipient = Recipient::parse(
        options
            .recipient
            .as_ref()
            .or(of_settings(|backup| backup.recipient.as_ref()))
            .map(|text| text.trim()),
    )?;
    let to = options
        .to
        .as_ref()
        .or(of_settings(|backup| backup.url.as_ref()))
        .filter(|_| is_copied);
    // Before the dump, so that a wrong URL is not found after an hour.
    let remote = to
        .map(|url| BackupStore::new(url, &settings.backup))
        .transpose()?;
    // That of BACKUP_URL may be away for a night: the backup on this host is made all the same.
    if let Some(remote) = remote.as_ref().filter(|_| options.to.is_some()) {
        remote.refuse_missing().await?;
    }
    if options.recovered.is_none() {
        restore::recover_with(host, settings, server).await?;
    }
    if options.resume
        && let Some(store) = &remote
        && let Some(backup) = uncopied(&host.paths, store.url())?
    {
        return Ok((backup, remote));
    }

    // On an external server, another host may be at its own.
    if server.is_local() {
        server.end_dumps().await?;
    }
    let mut snapshot = server.snapshot().await?;
    let parent = directory(&host.paths);
    make_private(&parent)?;
    let expected = expected_size(&host.paths, snapshot.size());
    if let Err(refused) = check_space(&parent, expected) {
        // The rule may have been changed because the disk is full, and is otherwise kept only after a backup.
        let Some(retention) = options.retention else {
            return Err(refused);
        };
        let is_encrypted = recipient.word().is_some();
        let present = ids(&host.paths)?;
        let protected = &options.protected;
        let gone = expired(&host.paths, &present, retention, is_encrypted, protected);
        make_room(host, &gone, expected)?;
    }
    let disk_used = Space::of(&host.paths.postgres_data())
        .ok()
        .filter(|_| server.is_local())
        .map(|space| space.used());

    let created = jiff::Timestamp::now();
    let id = OperationId::new(created)?;
    let staged = staging(&parent, &format!("{UNFINISHED}{id}-"))?;
    fail::fail_point!("backup-begun");
    host.progress.say(&format!(
        "dumping database {} ({})",
        server.database,
        bytes(snapshot.size())
    ));
    let meter = Meter::new("dumped", snapshot.size(), &host.progress);
    let dump = {
        let place = staged.path().to_owned();
        let recipient = recipient.clone();
        let counted = meter.clone();
        let name = snapshot.name.clone();
        let dump = server.dump(&name, move |reader| {
            archive::store(&place, DUMP, true, &recipient, &mut counted.reading(reader))
        });
        // A rollback says what it loses, and an import is compared as a whole: only other backups leave counts out.
        let all = options.to_go_back.is_some() || options.recovered.is_some();
        let both = futures_util::future::try_join(dump, snapshot.count(all)).await;
        meter.clear();
        both
    };
    let (entry, contents) = dump.map_err(|error| on_full_disk(error, &parent))?;
    drop(snapshot);
    fail::fail_point!("backup-after-dump");

    let mut manifest = BackupManifest::new(id, created, contents);
    manifest.disk_used = disk_used;
    manifest.images = match &options.recovered {
        Some(recovered) => recovered.images.clone(),
        None => images(host, settings).await,
    };
    manifest.encryption = encryption(&recipient);
    manifest.to_go_back = options.to_go_back.is_some();
    manifest.recovered = options.recovered.as_ref().map(|recovered| recovered.from);
    manifest.files.push(entry);
    let beside = match &options.recovered {
        Some(recovered) => recovered.configuration.clone(),
        None => host.paths.deployment.clone(),
    };
    let configuration = match (&options.to_go_back, &options.recovered) {
        (Some(id), _) => snapshot::directory(&host.paths, id),
        (None, Some(recovered)) => recovered.configuration.clone(),
        (None, None) => host.paths.deployment.clone(),
    };
    store_files(
        host,
        (&configuration, &beside),
        staged.path(),
        &recipient,
        &mut manifest,
    )
    .and_then(|()| finish(&host.paths, staged, &parent, &manifest))
    .map_err(|error| on_full_disk(error, &parent))?;
    let backup = Backup {
        directory: parent.join(manifest.id.as_str()),
        manifest,
        origin: Origin::Own,
    };
    host.progress.say(&format!(
        "backup {} is complete after {}: {}, {}",
        backup.id(),
        duration(begin.elapsed()),
        backup.manifest.rows_in_words(),
        bytes(backup.manifest.total_size())
    ));
    // Now the data of the current cluster is here twice.
    if options.forget_cluster && server.is_local() {
        warn_of_old(host, &backup, postgres::forget_previous(host));
        warn_of_old(host, &backup, restore::remove_outdated(host, server).await);
    }
    // Before the copy: while the store is away, backups must not fill the disk.
    if let Some(retention) = options.retention {
        let protected = options.protected_with(backup.id());
        let pruned = prune(host, retention, recipient.word().is_some(), &protected);
        warn_of_old(host, &backup, pruned);
    }
    Ok((backup, remote))
}

/// The newest backup, if it is to be copied to `url` and still young.
fn uncopied(paths: &Paths, url: &str) -> Result<Option<Backup>> {
    let Some(id) = ids(paths)?.pop() else {
        return Ok(None);
    };
    let text = files::read_existing(&directory(paths).join(id.as_str()).join(UNCOPIED))?;
    let created = jiff::tz::Offset::UTC.to_timestamp(id.created())?;
    let is_young = jiff::Timestamp::now().duration_since(created) < RESUME_LIMIT;
    if !is_young || text.as_deref() != Some(url.as_bytes()) {
        return Ok(None);
    }
    let backup = Backup::load(paths, &id)?;
    Ok(Some(backup).filter(|backup| backup.origin == Origin::Own))
}

/// Copies a backup to the store, and removes what is too old there.
async fn copy(
    host: &Host,
    remote: &BackupStore,
    backup: &Backup,
    options: &BackupOptions,
) -> Result<()> {
    let mark = backup.directory.join(UNCOPIED);
    files::write_atomically(&mark, remote.url().as_bytes(), 0o600)?;
    remote.upload(host, backup).await.map_err(|error| {
        Failure::new(format!(
            "backup {} is complete on this host, but its copy in {} failed",
            backup.id(),
            remote.url()
        ))
        .hint(error::hint(&error).unwrap_or(
            "check BACKUP_URL and its credentials in .env, then make another backup, which is copied: `litellm-units backup`",
        ))
        .caused_by(error)
    })?;
    files::remove_existing(&mark)?;
    if let Some(retention) = options.retention {
        let protected = options.protected_with(backup.id());
        let pruned = remote.prune(host, retention, &protected).await;
        warn_of_old(host, backup, pruned.map(drop));
    }
    Ok(())
}

/// Warns if older data could not be removed. The backup is complete, and is not made again for that.
fn warn_of_old(host: &Host, backup: &Backup, removed: Result<()>) {
    if let Err(error) = removed {
        host.progress.warn(&format!(
            "backup {} is complete, but older data was not removed: {error:#}",
            backup.id()
        ));
    }
}

fn encryption(recipient: &Recipient) -> Option<Encryption> {
    recipient.word().map(|recipient| Encryption {
        format: "age".into(),
        recipient,
    })
}

/// Copies everything but the dump; `.env` and `config/` are those below the first directory, and what is beside them in a
/// deployment is below the second one.
fn store_files(
    host: &Host,
    places: (&Path, &Path),
    staged: &Path,
    recipient: &Recipient,
    manifest: &mut BackupManifest,
) -> Result<()> {
    let (sealed, files) = files(host, places, recipient)?;
    for (name, path) in files {
        let entry = store_file(staged, &name, &path, recipient)?;
        manifest.files.push(entry);
    }
    if let Some(clear) = sealed {
        let text = clear.expose_secret();
        let mut entry = archive::store(staged, ENV, false, recipient, &mut text.as_bytes())?;
        entry.mode = Some(0o600);
        manifest.files.push(entry);
    }
    Ok(())
}

/// `.env` with its sealed secrets in clear, if the backup is encrypted to a key that is not this
/// host's. A secret that can't be opened does not fail the backup.
fn opened(
    env: &EnvFile,
    path: &Path,
    recipient: &Recipient,
    progress: &Progress,
) -> Option<SecretString> {
    if recipient.word().is_none() {
        progress.warn(
            "the secrets in this backup are sealed and can be opened on this host only: to use them on another host, add BACKUP_AGE_RECIPIENT to .env",
        );
        return None;
    }
    seal::in_clear(env, path)
        .map_err(|error| {
            progress.warn(&format!(
                "the backup holds the secrets in sealed form: {error:#}"
            ));
        })
        .ok()
}

fn store_file(staged: &Path, name: &str, path: &Path, recipient: &Recipient) -> Result<StoredFile> {
    let mut file = std::fs::File::open(path).path_context("can't open", path)?;
    let mode = file
        .metadata()
        .path_context("can't examine", path)?
        .permissions()
        .mode();
    let mut entry = archive::store(staged, name, false, recipient, &mut file)?;
    entry.mode = Some(mode & 0o7777);
    Ok(entry)
}

/// Every file of a backup beside the dump, by its logical name, and the text that replaces a sealed
/// `.env`.
fn files(
    host: &Host,
    (configuration, deployment): (&Path, &Path),
    recipient: &Recipient,
) -> Result<(Option<SecretString>, BTreeMap<String, PathBuf>)> {
    let paths = &host.paths;
    let here = |path: PathBuf| match path.strip_prefix(&paths.deployment) {
        Ok(name) => deployment.join(name),
        Err(_) => path,
    };
    let mut files = BTreeMap::new();
    let path = configuration.join(".env");
    let env = load_env(&path)?;
    let is_sealed = seal::is_in_use(&env);
    let clear = is_sealed
        .then(|| opened(&env, &path, recipient, &host.progress))
        .flatten();
    if clear.is_none() {
        files.insert(ENV.to_owned(), path);
        for reference in sealed::references(env.text()) {
            let file = here(paths.credentials()).join(reference.credential());
            if file.is_file() {
                files.insert(format!("{CREDENTIALS}{}", reference.credential()), file);
            }
        }
    }
    let beside = [
        here(paths.images_lock()),
        deployment.join("service-key.txt"),
        here(paths.ledger()),
    ];
    let beside = beside.iter().filter(|path| path.is_file());
    let mounted = configuration_files(configuration)?;
    for (root, path) in beside
        .map(|path| (deployment, path))
        .chain(mounted.iter().map(|path| (configuration, path)))
    {
        let name = path.strip_prefix(root).ok().and_then(Path::to_str);
        let Some(name) = name else {
            // A manifest has UTF-8 only. The backup of the data does not depend on this file.
            host.progress.warn(&format!(
                "{} is not in the backup, since its name is not UTF-8: rename it",
                path.display()
            ));
            continue;
        };
        files.insert(format!("deployment/{name}"), path.clone());
    }
    for (place, name, directory) in [
        (Place::Quadlet, "containers", &paths.quadlets),
        (Place::Unit, "systemd", &paths.units),
    ] {
        for path in files::entries(directory).unwrap_or_default() {
            if let Some(file) = files::name(&path)
                && is_ours_by_name(place, file)
                && !dev::is_dev(file)
                && file != entrance::CONFIGURATION
                && path.is_file()
            {
                files.insert(format!("units/{name}/{file}"), path.clone());
            }
        }
    }
    Ok((clear, files))
}

/// Writes the manifest with its authentication code, and gives the directory its name.
fn finish(paths: &Paths, staged: TempDir, parent: &Path, manifest: &BackupManifest) -> Result<()> {
    let text = serde_json::to_vec_pretty(manifest).context("can't write the manifest")?;
    let code = BackupKey::create(paths)?.code(&text)? + "\n";
    let path = staged.path().join(authentication::FILE);
    files::write_atomically(&path, code.as_bytes(), 0o600)?;
    files::write_atomically(&staged.path().join(manifest::FILE), &text, 0o600)?;
    for directory in directories_below(staged.path())? {
        files::sync_directory(&directory)?;
    }
    files::sync_directory(staged.path())?;
    fail::fail_point!("backup-before-rename");
    let place = parent.join(manifest.id.as_str());
    std::fs::rename(staged.path(), &place).path_context("can't rename", &place)?;
    // It was renamed.
    let _ = staged.keep();
    files::sync_directory(parent)
}

fn directories_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(directories_below(&entry.path())?);
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The running images, as Podman knows them. A backup does not fail without them.
pub(crate) async fn images(host: &Host, settings: &Settings) -> Images {
    let mut images = Images::default();
    let lock = ImagesLock::load(&host.paths.images_lock()).unwrap_or_default();
    let Ok(podman) = host.podman().await else {
        return images;
    };
    let kept = installed_release::kept(host, settings, &lock)
        .await
        .ok()
        .flatten();
    for service in [Service::Litellm, Service::Postgres, Service::Redis] {
        let kept = kept.as_ref().filter(|_| service == Service::Litellm);
        let configured = match (kept, settings.image(service)) {
            (Some(kept), _) => kept.reference.clone(),
            (None, Some(image)) => image.to_string(),
            (None, None) => continue,
        };
        let pinned = kept.map_or_else(|| lock.pin_text(&configured), Image::pinned);
        let running = podman
            .container_image(service.container())
            .await
            .ok()
            .flatten();
        let would_run = podman.image(&pinned).await.ok().flatten();
        // The configured name and the recorded digest say more than those by which the container
        // was started.
        let would_run = would_run.map(|found| Image {
            identity: ImageIdentity {
                digest: pinned
                    .split_once('@')
                    .map_or(found.digest, |(_, digest)| digest.to_owned()),
                id: found.id,
            },
            reference: configured,
        });
        let image = match (running, would_run) {
            (Some(running), Some(would_run)) if !running.identity.is(&would_run.identity) => {
                running
            }
            (running, would_run) => match would_run.or(running) {
                Some(image) => image,
                None => continue,
            },
        };
        images.insert(service, image);
    }
    images
}

/// Removes backups that are old enough. Where backups are encrypted, one in clear is kept for no longer than a rollback needs.
fn prune(
    host: &Host,
    retention: Retention,
    is_encrypted: bool,
    protected: &[OperationId],
) -> Result<()> {
    for id in left_over(&host.paths, protected)? {
        remove(&host.paths, &id)?;
        host.progress.say(&format!(
            "removed backup {id}, the rest of an interrupted recovery"
        ));
    }
    remove_expired(host, retention, is_encrypted, protected)
}

/// What interrupted recoveries have left.
fn left_over(paths: &Paths, protected: &[OperationId]) -> Result<Vec<OperationId>> {
    let mut left = ids(paths)?;
    left.retain(|id| {
        let is_left = |found: Backup| found.manifest.recovered.is_some();
        !protected.contains(id) && Backup::load(paths, id).is_ok_and(is_left)
    });
    Ok(left)
}

/// Removes the backups `gone`, if `needed` bytes are free then.
///
/// # Errors
/// When there would not be enough space either: then nothing was removed.
fn make_room(host: &Host, gone: &[OperationId], needed: u64) -> Result<()> {
    let parent = directory(&host.paths);
    let mut freed = 0_u64;
    for id in gone {
        for file in files::files_below(&parent.join(id.as_str()))? {
            freed = freed.saturating_add(file.metadata().map_or(0, |file| file.len()));
        }
    }
    check_space_after(&parent, needed, freed)?;
    for id in gone {
        remove(&host.paths, id)?;
        // The nightly backup shows warnings only.
        host.progress.warn(&format!(
            "removed backup {id}, which the retention rule does not keep, to make room for a new one"
        ));
    }
    check_space(&parent, needed)
}

/// As [`prune`], without what recoveries have left. The newest complete backup of this deployment stays, whatever the rule is.
fn remove_expired(
    host: &Host,
    retention: Retention,
    is_encrypted: bool,
    protected: &[OperationId],
) -> Result<()> {
    let present = ids(&host.paths)?;
    for id in expired(&host.paths, &present, retention, is_encrypted, protected) {
        remove(&host.paths, &id)?;
        host.progress.say(&format!(
            "removed backup {id}, which the retention rule no longer keeps"
        ));
    }
    Ok(())
}

/// The backups of `present` that the rule does not keep.
fn expired(
    paths: &Paths,
    present: &[OperationId],
    retention: Retention,
    is_encrypted: bool,
    protected: &[OperationId],
) -> Vec<OperationId> {
    let mut passing = present.to_vec();
    passing.retain(|id| {
        let is_to_go_back = |found: Backup| found.manifest.to_go_back;
        is_encrypted && Backup::load(paths, id).is_ok_and(is_to_go_back)
    });
    let is_complete = |id: &OperationId| {
        let is_own =
            |found: Backup| found.origin == Origin::Own && found.manifest.recovered.is_none();
        !passing.contains(id) && Backup::load(paths, id).is_ok_and(is_own)
    };
    let newest = { present.iter().rev() }.find(|id| is_complete(id)).cloned();
    let protected = [protected, newest.as_slice()].concat();
    retention::expired_beside(present, &passing, retention, &protected)
}

/// What a backup with these options removes here once it is complete, as the ends of lines.
///
/// # Errors
/// When the server can't be reached, or the backups can't be listed.
pub(crate) async fn removals(
    host: &Host,
    settings: &Settings,
    options: &BackupOptions,
) -> Result<Vec<String>> {
    let paths = &host.paths;
    let mut lines = Vec::new();
    if let Some(retention) = options.retention {
        let new = OperationId::new(jiff::Timestamp::now())?;
        let protected = options.protected_with(&new);
        let left = left_over(paths, &protected)?;
        let mut present = [ids(paths)?, vec![new]].concat();
        present.retain(|id| !left.contains(id));
        let recipient = options.recipient.as_ref();
        let is_encrypted = recipient.or(settings.backup.recipient.as_ref()).is_some();
        let gone = expired(paths, &present, retention, is_encrypted, &protected);
        lines.extend(
            { left.iter() }
                .chain(&gone)
                .map(|id| format!("backup {id}")),
        );
    }
    let server = Server::new(host, settings).await?;
    if !server.is_local() {
        return Ok(lines);
    }
    let cluster = paths.postgres_previous();
    if cluster.exists() {
        lines.push(format!("previous cluster {}", cluster.display()));
    }
    let replaced = restore::outdated(&server).await?;
    lines.extend(replaced.iter().map(|(name, _)| format!("database {name}")));
    Ok(lines)
}

/// Removes a backup; an incomplete one is never visible.
pub(crate) fn remove(paths: &Paths, id: &OperationId) -> Result<()> {
    remove_from(&directory(paths), id)
}

/// As [`remove`], below another directory than that of the backups.
fn remove_from(parent: &Path, id: &OperationId) -> Result<()> {
    let place = parent.join(id.as_str());
    let hidden = parent.join(format!("{UNFINISHED}{id}-old"));
    std::fs::rename(&place, &hidden)
        .and_then(|()| std::fs::remove_dir_all(&hidden))
        .path_context("can't remove", &place)
}

/// Removes the directories of interrupted backups, and reports it. Returns whether there were any.
fn remove_unfinished(host: &Host) -> Result<bool> {
    let Ok(entries) = std::fs::read_dir(directory(&host.paths)) else {
        return Ok(false);
    };
    let mut any = false;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str()
            && name.starts_with(UNFINISHED)
        {
            std::fs::remove_dir_all(entry.path()).path_context("can't remove", entry.path())?;
            any = true;
            host.progress.say(&format!(
                "removed {name}, the rest of an interrupted backup"
            ));
        }
    }
    Ok(any)
}

/// Makes a directory for what is not complete yet.
fn staging(parent: &Path, prefix: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .path_context("can't create a directory in", parent)
}

fn make_private(path: &Path) -> Result<()> {
    files::make_directory(path, 0o700)?;
    if files::mode(path)? & 0o077 != 0 {
        files::set_mode(path, 0o700)?;
    }
    Ok(())
}

/// The expected size of the dump of a database of `size` bytes: by the ratio of the last backup,
/// with a margin. Without a backup, half of the size, since a dump has no indexes and is
/// compressed.
fn expected_size(paths: &Paths, size: u64) -> u64 {
    let last = ids(paths)
        .ok()
        .and_then(|ids| Backup::load(paths, ids.last()?).ok())
        .filter(|last| last.manifest.database.size > 0);
    let Some(last) = last else {
        return size / 2;
    };
    let dump = last.manifest.file(DUMP).map_or(0, |file| file.size);
    let scaled =
        u128::from(dump) * u128::from(size) * 3 / (2 * u128::from(last.manifest.database.size));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// What a database of `size` bytes needs on the disk of the server that it is restored to, with the log of that.
pub(crate) fn filled(size: u64) -> u64 {
    size.saturating_add(size.min(FILLING))
}

/// Refuses when the disks can't hold a restored database of `size` bytes, the log of the restore until it is archived, and
/// its archive, which is compressed: about `dump` bytes.
fn check_archived_space(paths: &Paths, size: u64, dump: u64) -> Result<()> {
    let data = paths.postgres_data();
    check_spaces(&[
        (&data, size.saturating_add(size.min(wal::KEPT << 20))),
        (&directory(paths), dump),
    ])
}

/// Refuses when the disks can't hold a dump of a database of `size` bytes, and a restored database of `copy` bytes
/// beside it.
pub(crate) fn refuse_full_disks(paths: &Paths, size: u64, copy: u64) -> Result<()> {
    let (backups, data) = (directory(paths), paths.postgres_data());
    make_private(&backups)?;
    let dump = expected_size(paths, size);
    if copy == 0 {
        return check_space(&backups, dump);
    }
    check_spaces(&[(&backups, dump), (&data, copy)])
}

/// As [`check_space`], of several directories, which may be on the same file system.
fn check_spaces(needed: &[(&Path, u64)]) -> Result<()> {
    let mut disks: BTreeMap<u64, (&Path, u64)> = BTreeMap::new();
    for (directory, needed) in needed {
        let found = std::fs::metadata(directory).path_context("can't examine", directory)?;
        let (_, all) = disks.entry(found.dev()).or_insert((directory, 0));
        *all = all.saturating_add(*needed);
    }
    disks
        .into_values()
        .try_for_each(|(directory, needed)| check_space(directory, needed))
}

/// Refuses when the file system of `directory` has less than `needed` bytes and the reserve left.
fn check_space(directory: &Path, needed: u64) -> Result<()> {
    check_space_after(directory, needed, 0)
}

/// As [`check_space`], once `freed` bytes are removed.
fn check_space_after(directory: &Path, needed: u64, freed: u64) -> Result<()> {
    let Space { free, size } = Space::of(directory)?;
    // On a small file system, the reserve would be most of it.
    let needed = needed.saturating_add(RESERVE.min(size / 20));
    if free.saturating_add(freed) >= needed {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the disk of {} has {} of free space, and about {} are needed",
        directory.display(),
        bytes(free),
        bytes(needed)
    ))
    .hint("free some space (`podman image prune`, `journalctl --vacuum-size=200M`), or remove directories of old backups that `litellm-units history` does not name; to keep fewer: docs/backup.md")
    .into())
}

fn on_full_disk(error: anyhow::Error, directory: &Path) -> anyhow::Error {
    if error::is_full_disk(&error) {
        Failure::new(format!(
            "the disk of {} is full; the incomplete backup was removed",
            directory.display()
        ))
        .hint("free some space, or remove directories of old backups that `litellm-units history` does not name; to keep fewer: docs/backup.md")
        .caused_by(error)
        .into()
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deployment without anything but the directory of its backups.
    pub(super) fn deployment(root: &Path) -> Paths {
        let paths = Paths::in_test(root);
        make_private(&directory(&paths)).unwrap();
        paths
    }

    /// Makes a backup that is so many hours old; `edit` changes its manifest.
    pub(super) fn make(
        paths: &Paths,
        hours: i64,
        edit: impl FnOnce(&mut BackupManifest),
    ) -> PathBuf {
        let created = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours);
        let mut manifest = manifest::tests::manifest(Vec::new());
        manifest.id = OperationId::new(created).unwrap();
        edit(&mut manifest);
        let parent = directory(paths);
        let staged = tempfile::tempdir_in(&parent).unwrap();
        finish(paths, staged, &parent, &manifest).unwrap();
        parent.join(manifest.id.as_str())
    }

    #[test]
    fn sizes_of_own_backups_are_recorded() {
        let root = tempfile::tempdir().unwrap();
        let paths = deployment(root.path());
        let parent = directory(&paths);
        let now = jiff::Timestamp::now();
        let mut last = None;
        for (days, size) in [(20, 1), (3, 2), (2, 3), (1, 4)] {
            last = Some(make(&paths, 24 * days, |manifest| {
                manifest.database.size = size;
                manifest.disk_used = (size > 2).then_some(10 * size);
            }));
        }
        let found = || -> Vec<(i64, u64, Option<u64>)> {
            let sizes = recorded_sizes(&paths, 14).unwrap();
            let days = |at| (now.as_second() - at + 3600) / 86_400;
            { sizes.iter() }
                .map(|size| (days(size.at), size.database, size.disk))
                .collect()
        };
        assert_eq!(found(), [(3, 2, None), (2, 3, Some(30)), (1, 4, Some(40))]);
        // One of another deployment, and one that is damaged.
        std::fs::remove_file(last.unwrap().join(authentication::FILE)).unwrap();
        std::fs::create_dir(parent.join(OperationId::new(now).unwrap().as_str())).unwrap();
        assert_eq!(found(), [(3, 2, None), (2, 3, Some(30))]);
        // Not without a word.
        std::fs::write(paths.backup_key(), "damaged").unwrap();
        assert!(recorded_sizes(&paths, 14).is_err());
    }

    #[test]
    fn the_newest_complete_backup_stays() {
        let root = tempfile::tempdir().unwrap();
        let paths = deployment(root.path());
        let host = Host::new(paths.clone()).reporting(Progress::Silent);
        let make = |days: i64, edit: fn(&mut BackupManifest)| {
            let made = make(&paths, 24 * days, edit);
            OperationId::parse(files::name(&made).unwrap()).unwrap()
        };
        let to_go_back = make(1, |manifest| manifest.to_go_back = true);
        let damaged = make(3, |_| {});
        std::fs::remove_file(
            directory(&paths)
                .join(damaged.as_str())
                .join(manifest::FILE),
        )
        .unwrap();
        let complete = make(4, |_| {});
        let protected = make(5, |_| {});
        make(6, |_| {});
        // Of another deployment.
        let foreign = make(3, |_| {});
        let code = directory(&paths).join(foreign.as_str());
        std::fs::remove_file(code.join(authentication::FILE)).unwrap();
        let none = Retention {
            daily: 0,
            monthly: 0,
        };
        remove_expired(&host, none, true, std::slice::from_ref(&protected)).unwrap();
        let left = [protected, complete, to_go_back];
        assert_eq!(ids(&paths).unwrap(), left);
        remove_expired(&host, none, false, &[]).unwrap();
        assert_eq!(ids(&paths).unwrap(), left[2..]);
    }

    #[test]
    fn backups_are_removed_only_if_that_makes_room() {
        let root = tempfile::tempdir().unwrap();
        let paths = deployment(root.path());
        let host = Host::new(paths.clone()).reporting(Progress::Silent);
        let old = make(&paths, 24, |_| {});
        let gone = ids(&paths).unwrap();
        let filler = std::fs::File::create(old.join("filler")).unwrap();
        let Space { free, .. } = Space::of(root.path()).unwrap();
        let error = make_room(&host, &gone, free.saturating_mul(2)).unwrap_err();
        assert!(error.to_string().ends_with(" are needed") && old.exists());
        // It takes no space, so the check of the disk itself fails afterwards.
        filler.set_len(free * 2).unwrap();
        assert!(make_room(&host, &gone, free * 2).is_err() && !old.exists());
        make_room(&host, &[], 0).unwrap();
    }

    #[test]
    fn a_failed_copy_is_tried_again() {
        let root = tempfile::tempdir().unwrap();
        let paths = deployment(root.path());
        let url = "s3://bucket";
        let make = |hours| make(&paths, hours, |_| {});
        let found = |url| uncopied(&paths, url).unwrap().map(|found| found.directory);
        assert_eq!(found(url), None);
        std::fs::write(make(13).join(UNCOPIED), url).unwrap();
        assert_eq!(found(url), None);
        let young = make(11);
        assert_eq!(found(url), None);
        std::fs::write(young.join(UNCOPIED), url).unwrap();
        assert_eq!(found("s3://other"), None);
        assert_eq!(found(url), Some(young));
        // One that is not to be copied, as before an upgrade.
        make(1);
        assert_eq!(found(url), None);
    }

    #[test]
    fn the_dump_and_the_copy_have_to_fit() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        std::fs::create_dir_all(paths.postgres_data()).unwrap();
        let Space { free, .. } = Space::of(root.path()).unwrap();
        let fits = |size, copy| refuse_full_disks(&paths, size, copy).is_ok();
        // Without an earlier backup, a dump is expected to have half of the size. Others write to this disk, too.
        let half = free / 2;
        assert!(fits(0, 0) && fits(half, 0) && fits(0, half));
        assert!(!fits(4 * free, 0) && !fits(0, 2 * free));
        assert_eq!([filled(9), filled(3 << 30)], [18, 4 << 30]);
        let archived = |size, dump| check_archived_space(&paths, size, dump).is_ok();
        assert!(archived(0, free / 2) && !archived(2 * free, 0));
        // Each of them alone would fit.
        assert!(!archived(free / 5 * 3, free / 5 * 3));
        assert!(fits(free, 0) && fits(0, free / 5 * 3) && !fits(free, free / 5 * 3));
    }
}

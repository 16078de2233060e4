//! Remote copies of backups: an object store, or a directory that is mounted from another
//! machine (`file:///mnt/…`).

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;

use super::authentication::{self, BackupKey, Origin};
use super::manifest::{self, BASE, BackupManifest, BasePoint, DUMP, StoredFile};
use super::retention::{Retention, expired};
use super::{Backup, UNFINISHED, check_space, directory, make_private, staging, wal};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::BackupSettings;
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::outgoing_proxy::OutgoingProxy;
use crate::host::paths::Paths;
use crate::output::{Meter, Progress, bytes, count, duration, shell_word};
use crate::tls;

/// The size of the parts of a file.
const PART: u64 = 8 << 20;
/// How many parts S3 takes for one file, and some to spare.
const MOST_PARTS: u64 = 9000;
/// How many parts are under way at once.
const PARTS: usize = 4;
/// How long a store may take for one request. All parts under way need 2.3 Mbit/s for that.
const REQUEST_TIMEOUT: &str = "120 s";
/// The same, for a directory.
const DISK_TIMEOUT: Duration = Duration::from_secs(120);

/// The directory that a `file:` URL names.
fn directory_of(url: &reqwest::Url) -> Result<PathBuf> {
    url.to_file_path().map_err(|()| {
        Failure::config(format!(
            "the backup URL {url} names no directory of this host"
        ))
        .hint("write it as file:///DIRECTORY")
        .into()
    })
}

/// A place for copies.
#[derive(Debug)]
pub(crate) struct BackupStore {
    url: String,
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// Whether it has base backups and the write-ahead log.
    is_archive: bool,
    /// Where it is on this host, if it is not an object store.
    directory: Option<PathBuf>,
}

impl BackupStore {
    /// The place at `url`, with the credentials that `.env` has for it.
    pub(crate) fn new(url: &str, settings: &BackupSettings) -> Result<Self> {
        let parsed = reqwest::Url::parse(url).map_err(|error| {
            Failure::config(format!("the backup URL {url:?} can't be used: {error}"))
                .hint("write it as file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX")
        })?;
        tls::install();
        let mut directory = None;
        if parsed.scheme() == "file" {
            directory = Some(directory_of(&parsed)?);
            // Its files are readable only by the owner.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        } else if cfg!(not(feature = "object-stores")) {
            return Err(Failure::config(format!(
                "this litellm-units was built without object stores, so it can't copy to {url}"
            ))
            .hint("install the DEB or RPM package, or build it with `cargo build --release --locked --features object-stores`")
            .into());
        }
        let options = settings
            .store
            .iter()
            .map(|(name, value)| Ok((name.as_str(), value.open()?)))
            .collect::<Result<Vec<_>>>()?;
        let by_http = |(name, value): &(&str, SecretString)| {
            let scheme = value.expose_secret().split_once("://");
            name.contains("endpoint")
                && !name.contains("sts")
                && scheme.is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("http"))
        };
        let has_own_proxy = options.iter().any(|(name, _)| *name == "proxy_url");
        let proxy = if has_own_proxy || directory.is_some() {
            OutgoingProxy::default()
        } else {
            settings.proxy.open()?
        };
        let proxy = proxy.store_options(!options.iter().any(by_http));
        // Those of `.env` come later, and hold.
        let own = std::iter::once(("timeout", REQUEST_TIMEOUT)).chain(proxy);
        let options = own.chain(
            options
                .iter()
                .map(|(name, value)| (*name, value.expose_secret())),
        );
        let (store, prefix) = object_store::parse_url_opts(&parsed, options).map_err(|error| {
            Failure::config(format!("the backup URL {url:?} can't be used: {error}"))
                .hint("write it as file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX; credentials are BACKUP_AWS_ACCESS_KEY_ID and the like in .env")
        })?;
        // What counts as copied must survive a loss of power.
        let store: Arc<dyn ObjectStore> = if parsed.scheme() == "file" {
            Arc::new(LocalFileSystem::new().with_fsync(true))
        } else {
            store.into()
        };
        Ok(Self {
            url: url.to_owned(),
            store,
            prefix,
            is_archive: false,
            directory,
        })
    }

    /// The archive of the write-ahead log at this URL.
    pub(crate) fn archive(self) -> Self {
        Self {
            prefix: self.prefix.join(wal::DIRECTORY),
            is_archive: true,
            ..self
        }
    }

    /// Refuses a directory that is not there: it may be misspelt, or on a disk that is not mounted.
    pub(crate) async fn refuse_missing(&self) -> Result<()> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        // One of a network may never answer, and nothing else is to wait for it.
        let found = tokio::time::timeout(DISK_TIMEOUT, tokio::fs::metadata(directory)).await;
        let found = found.with_context(|| {
            let directory = directory.display();
            format!(
                "the disk with {directory} did not answer in {}",
                duration(DISK_TIMEOUT)
            )
        })?;
        if found.is_ok_and(|found| found.is_dir()) {
            return Ok(());
        }
        Err(Failure::config(format!(
            "the directory for copies of backups does not exist: {}",
            directory.display()
        ))
        .hint(format!(
            "mount its disk, or correct its name; for the first copy, create it: `mkdir -p {}`",
            shell_word(directory)
        ))
        .into())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn place(&self, id: &OperationId) -> Key {
        self.prefix.clone().join(id.as_str())
    }

    /// Copies a backup. The manifest comes last, so that a copy with a manifest is complete.
    pub(crate) async fn upload(&self, host: &Host, backup: &Backup) -> Result<()> {
        let begin = std::time::Instant::now();
        let place = self.place(backup.id());
        for file in &backup.manifest.files {
            let path = backup.directory.join(&file.stored);
            self.put(&path, &key(&place, &file.stored), file.size)
                .await?;
        }
        for name in [authentication::FILE, manifest::FILE] {
            let path = backup.directory.join(name);
            let size = std::fs::metadata(&path)
                .path_context("can't examine", &path)?
                .len();
            self.put(&path, &key(&place, name), size).await?;
        }
        host.progress.say(&format!(
            "copied to {} in {}",
            self.url,
            duration(begin.elapsed())
        ));
        Ok(())
    }

    async fn put(&self, path: &Path, key: &Key, size: u64) -> Result<()> {
        self.refuse_missing().await?;
        let attempt = async {
            let mut file = tokio::fs::File::open(path).await?;
            // One request for a small file, parts for a large one.
            let part = usize::try_from(PART.max(size / MOST_PARTS))?;
            let mut writer = BufWriter::with_capacity(Arc::clone(&self.store), key.clone(), part)
                .with_max_concurrency(PARTS);
            let copied = tokio::io::copy(&mut file, &mut writer).await;
            if let Err(error) = copied {
                writer.abort().await?;
                return Err(error.into());
            }
            writer.shutdown().await?;
            let stored = self.store.head(key).await?.size;
            anyhow::ensure!(stored == size, "{stored} bytes arrived of {size}");
            Ok(())
        };
        attempt.await.with_context(|| format!("can't store {key}"))
    }

    /// Whether a backup is there, and complete.
    ///
    /// # Errors
    /// When the store refuses: without a clear answer, everything that the backup needs could be removed.
    pub(super) async fn has(&self, id: &OperationId) -> Result<bool> {
        let manifest = key(&self.place(id), manifest::FILE);
        match self.store.head(&manifest).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("can't examine {manifest}")),
        }
    }

    /// The names of the complete backups there, oldest first.
    pub(crate) async fn ids(&self) -> Result<Vec<OperationId>> {
        let mut ids = Vec::new();
        for id in self.places().await? {
            if self.has(&id).await? {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The names of all backups there, complete or not.
    async fn places(&self) -> Result<Vec<OperationId>> {
        let listed = match self.store.list_with_delimiter(Some(&self.prefix)).await {
            Ok(listed) => listed,
            Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("can't list {}", self.url));
            }
        };
        let names = listed.common_prefixes.iter().filter_map(Key::filename);
        Ok(names.filter_map(OperationId::parse).collect())
    }

    /// Downloads a backup to this host.
    pub(crate) async fn fetch(&self, host: &Host, id: &OperationId) -> Result<Backup> {
        let parent = directory(&host.paths);
        if parent.join(id.as_str()).exists() {
            return Backup::load_from(&host.paths, &parent, id);
        }
        self.fetch_to(host, id, &parent, |_| Ok(())).await
    }

    /// As [`BackupStore::fetch`], into a directory that does not have it, if `check` accepts it: for that, everything is there
    /// but the data.
    ///
    /// # Errors
    /// As [`BackupStore::fetch`].
    pub(super) async fn fetch_to(
        &self,
        host: &Host,
        id: &OperationId,
        parent: &Path,
        check: impl FnOnce(&Backup) -> Result<()>,
    ) -> Result<Backup> {
        let paths = &host.paths;
        let target = parent.join(id.as_str());
        make_private(parent)?;
        let place = self.place(id);
        let (manifest, text) = self.manifest(id).await?;
        check_space(parent, manifest.total_size())?;
        let staged = staging(parent, &format!("{UNFINISHED}{id}-"))?;
        let code = key(&place, authentication::FILE);
        match self.store.head(&code).await {
            Ok(found) => {
                let path = staged.path().join(authentication::FILE);
                self.get(&code, &path, found.size).await?;
            }
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error).with_context(|| format!("can't fetch {code}")),
        }
        files::write_atomically(&staged.path().join(manifest::FILE), &text, 0o600)?;
        let is_data = |file: &&StoredFile| [DUMP, BASE].contains(&&*file.name);
        let (data, beside): (Vec<_>, Vec<_>) = manifest.files.iter().partition(is_data);
        for file in beside {
            self.get_stored(&place, file, staged.path()).await?;
        }
        check(&Backup {
            directory: staged.path().to_owned(),
            origin: authentication::origin(paths, staged.path(), &text)?,
            manifest: manifest.clone(),
        })?;
        for file in data {
            self.get_stored(&place, file, staged.path()).await?;
        }
        let meter = Meter::new("checked", manifest.total_size(), &Progress::Silent);
        super::archive::check_files(staged.path(), &manifest, &meter)?;
        for directory in super::directories_below(staged.path())? {
            files::sync_directory(&directory)?;
        }
        std::fs::rename(staged.path(), &target).path_context("can't rename", &target)?;
        // It was renamed.
        let _ = staged.keep();
        files::sync_directory(parent)?;
        host.progress.say(&format!(
            "backup {id} was fetched: {}",
            bytes(manifest.total_size())
        ));
        let backup = Backup::load_from(paths, parent, id)?;
        if let Origin::Foreign(reason) = backup.origin {
            host.progress.warn(&format!(
                "backup {id} was not made by this deployment, so `verify` and `restore` need `--foreign`: {reason}"
            ));
        }
        Ok(backup)
    }

    /// The manifest of a backup, with the text that its authentication code covers.
    pub(crate) async fn manifest(&self, id: &OperationId) -> Result<(BackupManifest, Vec<u8>)> {
        let text = self.manifest_text(id).await?;
        Ok((self.parse_manifest(id, &text)?, text))
    }

    async fn manifest_text(&self, id: &OperationId) -> Result<Vec<u8>> {
        let text = self.text(id, manifest::FILE).await?;
        text.ok_or_else(|| {
            Failure::new(format!("there is no backup {id} in {}", self.url))
                .hint("list the remote backups: `litellm-units backup list --remote`")
                .into()
        })
    }

    /// The content of a small file of a backup, if it exists.
    async fn text(&self, id: &OperationId, name: &str) -> Result<Option<Vec<u8>>> {
        let found = match self.store.get(&key(&self.place(id), name)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.with_context(|| format!("can't read {}", self.url))?,
        };
        Ok(Some(found.bytes().await?.to_vec()))
    }

    /// Those of `ids` that this deployment has made.
    pub(crate) async fn own(&self, host: &Host, ids: &[OperationId]) -> Result<Vec<OperationId>> {
        let mut own = Vec::new();
        for id in ids {
            // Another deployment may remove one of its own meanwhile.
            if let Some(code) = self.text(id, authentication::FILE).await?
                && let Some(manifest) = self.text(id, manifest::FILE).await?
                && BackupKey::is_own(
                    &host.paths,
                    &manifest,
                    String::from_utf8_lossy(&code).trim_end(),
                )?
            {
                own.push(id.clone());
            }
        }
        let others = ids.len() - own.len();
        if others > 0 {
            host.progress.say(&format!(
                "{} has {} of other deployments, which this one does not remove",
                self.url,
                count(others, "backup")
            ));
        }
        Ok(own)
    }

    fn parse_manifest(&self, id: &OperationId, text: &[u8]) -> Result<BackupManifest> {
        BackupManifest::parse(text).map_err(|error| {
            let place = format!("{}/{id}/{}", self.url.trim_end_matches('/'), manifest::FILE);
            Failure::new(format!("{place}: {error:#}"))
                .hint("use another copy: `litellm-units backup list --remote`")
                .into()
        })
    }

    /// The base backups there, oldest first. One whose manifest is damaged must not keep the others from being used, so it is
    /// only reported.
    pub(super) async fn bases(&self, host: &Host) -> Result<Vec<(OperationId, BasePoint)>> {
        let mut bases = Vec::new();
        for id in self.ids().await? {
            let text = self.manifest_text(&id).await?;
            match self.parse_manifest(&id, &text) {
                Ok(manifest) => bases.extend(manifest.base.map(|point| (id, point))),
                Err(error) => host.progress.warn(&format!("{error:#}")),
            }
        }
        Ok(bases)
    }

    /// The names and sizes of the files in a directory.
    pub(crate) async fn files(&self, directory: &str) -> Result<BTreeMap<String, u64>> {
        let place = key(&self.prefix, directory);
        let mut objects = self.store.list(Some(&place));
        let mut files = BTreeMap::new();
        while let Some(object) = objects.next().await {
            let object = object.with_context(|| format!("can't list {}", self.url))?;
            if let Some(name) = object.location.filename() {
                files.insert(name.to_owned(), object.size);
            }
        }
        Ok(files)
    }

    /// The names of the directories in a directory.
    pub(crate) async fn directories(&self, directory: &str) -> Result<Vec<String>> {
        let place = key(&self.prefix, directory);
        let listed = match self.store.list_with_delimiter(Some(&place)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
            listed => listed.with_context(|| format!("can't list {}", self.url))?,
        };
        let names = listed.common_prefixes.iter().filter_map(Key::filename);
        Ok(names.map(str::to_owned).collect())
    }

    /// Copies one file.
    pub(crate) async fn put_file(&self, directory: &str, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(std::ffi::OsStr::to_str);
        let name = name.with_context(|| format!("{} is not valid UTF-8", path.display()))?;
        let size = std::fs::metadata(path)
            .path_context("can't examine", path)?
            .len();
        self.put(
            path,
            &key(&self.prefix, &format!("{directory}/{name}")),
            size,
        )
        .await
    }

    /// Downloads one file to a path that does not exist.
    ///
    /// # Errors
    /// When the store or the disk refuses; a part of the file may be left.
    pub(crate) async fn get_file(
        &self,
        directory: &str,
        name: &str,
        path: &Path,
        size: u64,
    ) -> Result<()> {
        let key = key(&self.prefix, &format!("{directory}/{name}"));
        self.get(&key, path, size).await
    }

    async fn get_stored(&self, place: &Key, file: &StoredFile, directory: &Path) -> Result<()> {
        let path = directory.join(&file.stored);
        self.get(&key(place, &file.stored), &path, file.size).await
    }

    /// Removes a file, if it exists.
    pub(crate) async fn remove_file(&self, directory: &str, name: &str) -> Result<()> {
        let key = key(&self.prefix, &format!("{directory}/{name}"));
        match self.store.delete(&key).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            removed => removed.with_context(|| format!("can't remove {key}")),
        }
    }

    /// A part at a time: the time for a request, and for what is repeated of it, would end a large file.
    async fn get(&self, key: &Key, path: &Path, size: u64) -> Result<()> {
        let attempt = async {
            if let Some(parent) = path.parent() {
                make_private(parent)?;
            }
            let file = std::fs::File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)?;
            let mut file = tokio::fs::File::from_std(file);
            let parts = (0..size.div_ceil(PART)).map(|number| {
                let begin = number * PART;
                self.store.get_range(key, begin..size.min(begin + PART))
            });
            let mut parts = stream::iter(parts).buffered(PARTS);
            while let Some(part) = parts.next().await {
                file.write_all(&part?).await?;
            }
            file.flush().await?;
            file.sync_all().await?;
            Ok::<_, anyhow::Error>(())
        };
        attempt.await.with_context(|| format!("can't fetch {key}"))
    }

    /// Removes copies that are old enough, among those that this deployment has made. Returns which.
    pub(crate) async fn prune(
        &self,
        host: &Host,
        retention: Retention,
        protected: &[OperationId],
    ) -> Result<Vec<OperationId>> {
        let own = self.own(host, &self.ids().await?).await?;
        let gone = expired(&own, retention, protected);
        for id in &gone {
            // Without its manifest, it no longer counts as a backup.
            let manifest = key(&self.place(id), manifest::FILE);
            self.store.delete(&manifest).await?;
            self.remove(id).await?;
            host.progress
                .say(&format!("removed backup {id} from {}", self.url));
        }
        for id in self.remove_unfinished(&host.paths).await? {
            host.progress.say(&format!(
                "removed what an interrupted copy of backup {id} has left in {}",
                self.url
            ));
        }
        Ok(gone)
    }

    /// Removes what is below the name of a backup.
    async fn remove(&self, id: &OperationId) -> Result<()> {
        let mut objects = self.store.list(Some(&self.place(id)));
        while let Some(object) = objects.next().await {
            self.store.delete(&object?.location).await?;
        }
        if let Some(directory) = &self.directory {
            let directory = if self.is_archive {
                &directory.join(wal::DIRECTORY)
            } else {
                directory
            };
            // Only empty directories and parts of files are left.
            let _ = std::fs::remove_dir_all(directory.join(id.as_str()));
        }
        Ok(())
    }

    /// Removes what is older than a day and has no manifest, if this host has the backup and has made it. Others may be those
    /// of another deployment.
    async fn remove_unfinished(&self, paths: &Paths) -> Result<Vec<OperationId>> {
        let now = jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now());
        let old = now.saturating_sub(jiff::Span::new().days(1));
        let parent = if self.is_archive {
            wal::directory(paths)
        } else {
            directory(paths)
        };
        let mut removed = Vec::new();
        for id in self.places().await? {
            let is_own = || {
                let found = Backup::load_from(paths, &parent, &id);
                found.is_ok_and(|backup| backup.origin == Origin::Own)
            };
            if id.created() < old && is_own() && !self.has(&id).await? {
                self.remove(&id).await?;
                removed.push(id);
            }
        }
        Ok(removed)
    }
}

fn key(place: &Key, name: &str) -> Key {
    name.split('/').fold(place.clone(), Key::join)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::deployment::sealed::SecretValue;

    pub(in crate::operations::backup) fn settings(store: &[(&str, &str)]) -> BackupSettings {
        let store = store.iter();
        BackupSettings {
            recipient: None,
            url: None,
            wal: false,
            by: None,
            proxy: Arc::default(),
            store: store
                .map(|(name, value)| ((*name).to_owned(), SecretValue::clear(value)))
                .collect(),
            postgres_image: crate::image::ImageReference::parse("docker.io/library/postgres:17.6")
                .unwrap(),
        }
    }

    /// A store whose requests come to the listener.
    #[cfg(feature = "object-stores")]
    fn object_store() -> (std::net::TcpListener, BackupStore) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let settings = settings(&[
            ("aws_endpoint", &endpoint),
            ("aws_allow_http", "true"),
            ("aws_access_key_id", "me"),
            ("aws_secret_access_key", "secret"),
        ]);
        let store = BackupStore::new("s3://bucket/litellm", &settings).unwrap();
        (listener, store)
    }

    /// Answers one request for a part of a file of zeros. Returns the part that was asked for.
    #[cfg(feature = "object-stores")]
    fn answer(listener: &std::net::TcpListener, size: u64) -> (u64, u64) {
        use std::io::{BufRead, Write};
        let (connection, _) = listener.accept().unwrap();
        let lines = std::io::BufReader::new(&connection).lines();
        let head: Vec<String> = lines
            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
            .collect();
        let range = head.iter().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
        });
        let range = range.expect("the whole file was asked for");
        let (begin, end) = range.split_once('-').unwrap();
        let (begin, end): (u64, u64) = (begin.parse().unwrap(), end.parse().unwrap());
        let mut writer = &connection;
        write!(
            writer,
            "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nETag: \"1\"\r\nLast-Modified: Thu, 26 Nov 2026 14:05:00 GMT\r\n\
             Content-Length: {}\r\nContent-Range: bytes {begin}-{end}/{size}\r\n\r\n",
            end - begin + 1
        )
        .unwrap();
        writer
            .write_all(&vec![0; usize::try_from(end - begin + 1).unwrap()])
            .unwrap();
        (begin, end)
    }

    #[cfg(feature = "object-stores")]
    #[tokio::test]
    async fn a_large_file_is_fetched_in_parts() {
        let (listener, store) = object_store();
        let size = 2 * PART + 1;
        let server = std::thread::spawn(move || {
            let mut parts: Vec<_> = (0..3).map(|_| answer(&listener, size)).collect();
            parts.sort_unstable();
            parts
        });
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("base.tar.zst");
        store.get_file("wal", "file", &path, size).await.unwrap();
        assert_eq!(
            server.join().unwrap(),
            [(0, PART - 1), (PART, 2 * PART - 1), (2 * PART, 2 * PART)]
        );
        assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
    }

    /// Two deployments with a copy of each day at one place.
    #[tokio::test]
    async fn only_own_copies_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("copies");
        let deployment = |name: &str| {
            let paths = Paths::in_test(root.path().join(name));
            Host::new(paths).reporting(Progress::Silent)
        };
        let copies = |host: &Host, digit: char| -> Vec<OperationId> {
            let code = BackupKey::create(&host.paths).unwrap().code(b"{}").unwrap();
            let days = (1..=3).map(|day| {
                let id = format!("2026110{day}T02300{digit}Z-0a1b2c");
                let directory = place.join(&id);
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(directory.join(manifest::FILE), "{}").unwrap();
                std::fs::write(directory.join(authentication::FILE), format!("{code}\n")).unwrap();
                OperationId::parse(&id).unwrap()
            });
            days.collect()
        };
        let (one, other) = (deployment("one"), deployment("other"));
        let (of_one, of_other) = (copies(&one, '1'), copies(&other, '2'));
        // Nobody's.
        let unknown = "20251101T023000Z-0a1b2c";
        std::fs::create_dir(place.join(unknown)).unwrap();
        std::fs::write(place.join(unknown).join(manifest::FILE), "{}").unwrap();

        let url = reqwest::Url::from_directory_path(&place).unwrap();
        let store = BackupStore::new(url.as_str(), &settings(&[])).unwrap();
        let retention = Retention {
            daily: 2,
            monthly: 0,
        };
        let gone = store.prune(&one, retention, &[]).await.unwrap();
        assert_eq!(gone, of_one[..1]);
        let ids = store.ids().await.unwrap();
        assert_eq!(store.own(&other, &ids).await.unwrap(), of_other);
        assert_eq!(ids.len(), 6);
        assert!(!place.join(of_one[0].as_str()).exists());
    }

    #[cfg(feature = "object-stores")]
    #[tokio::test]
    async fn only_a_missing_manifest_is_no_backup() {
        use std::io::{BufRead, Write};
        let (listener, store) = object_store();
        let listing = "<ListBucketResult><IsTruncated>false</IsTruncated>\
            <CommonPrefixes><Prefix>litellm/20260131T120000Z-0a1b2c/</Prefix></CommonPrefixes></ListBucketResult>";
        let server = std::thread::spawn(move || {
            for (status, body) in [
                ("200 OK", listing),
                ("404 Not Found", ""),
                ("200 OK", listing),
                ("403 Forbidden", ""),
            ] {
                let (mut connection, _) = listener.accept().unwrap();
                let lines = std::io::BufReader::new(&connection).lines();
                lines
                    .map_while(|line| line.ok().filter(|line| !line.is_empty()))
                    .for_each(drop);
                write!(
                    connection,
                    "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .unwrap();
            }
        });
        assert_eq!(store.ids().await.unwrap(), []);
        let error = store.ids().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "can't examine litellm/20260131T120000Z-0a1b2c/manifest.json"
        );
        server.join().unwrap();
    }

    #[tokio::test]
    async fn only_own_rests_of_copies_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let paths = super::super::tests::deployment(root.path());
        let store = root.path().join("store");
        let make = |hours, is_here: bool, is_complete: bool| {
            let made = super::super::tests::make(&paths, hours, |_| {});
            let name = made.file_name().unwrap().to_str().unwrap();
            let copy = store.join(name);
            if !is_here {
                std::fs::remove_dir_all(&made).unwrap();
            }
            std::fs::create_dir_all(&copy).unwrap();
            std::fs::write(copy.join("database.dump.zst"), "").unwrap();
            if is_complete {
                std::fs::write(copy.join(manifest::FILE), "{}").unwrap();
            }
            (OperationId::parse(name).unwrap(), copy)
        };
        let rest = make(25, true, false);
        let others = [
            make(23, true, false),
            make(26, true, true),
            make(27, false, false),
        ];
        let url = format!("file://{}", store.display());
        let store = BackupStore::new(&url, &settings(&[])).unwrap();
        assert_eq!(store.remove_unfinished(&paths).await.unwrap(), [rest.0]);
        assert!(!rest.1.exists() && others.iter().all(|(_, copy)| copy.exists()));
    }

    #[tokio::test]
    async fn a_missing_directory_is_not_created() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("not mounted");
        let url = reqwest::Url::from_directory_path(&missing).unwrap();
        let settings = settings(&[]);
        let store = BackupStore::new(url.as_str(), &settings).unwrap();
        let error = store.refuse_missing().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the directory for copies of backups does not exist: {}/",
                missing.display()
            )
        );
        assert_eq!(
            crate::error::hint(&error),
            Some(&*format!(
                "mount its disk, or correct its name; for the first copy, create it: `mkdir -p '{}/'`",
                missing.display()
            ))
        );
        assert!(!missing.exists());
        std::fs::create_dir(&missing).unwrap();
        store.refuse_missing().await.unwrap();
        let remote = BackupStore::new("file://server/share", &settings);
        assert_eq!(
            remote.unwrap_err().to_string(),
            "the backup URL file://server/share names no directory of this host"
        );
    }
}

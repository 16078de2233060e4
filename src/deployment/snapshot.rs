//! Configurations kept by content, so that a change that does not work can be rolled back, and nothing that an operator wrote
//! is ever lost.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::deployment::configuration::Configuration;
use crate::deployment::env_file::EnvFile;
use crate::deployment::ledger::Ledger;
use crate::deployment::settings::{Settings, load_env, parse_env, read_env};
use crate::error::{Failure, Result};
use crate::host::files;
use crate::host::files::private_directory;
use crate::host::paths::Paths;
use crate::random::hex;

/// How many configurations are kept beside the last good one.
const KEPT: usize = 20;

/// The name of a kept configuration: the first 16 hexadecimal digits of its SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotId(String);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl SnapshotId {
    /// The configuration that is kept under `name`, if there is one.
    #[must_use]
    pub(crate) fn find(paths: &Paths, name: &str) -> Option<Self> {
        let id = Self(name.to_owned());
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        (plain && directory(paths, &id).is_dir()).then_some(id)
    }
}

/// Keeps the current configuration; returns the name under which it is kept. The same content has
/// the same name, so keeping it again costs nothing.
pub(crate) fn keep(paths: &Paths) -> Result<SnapshotId> {
    keep_files(paths, &present(paths)?)
}

/// As [`keep`], with another `.env` than the current one.
///
/// # Errors
/// As [`keep`].
pub(crate) fn keep_with(paths: &Paths, env: &str) -> Result<SnapshotId> {
    keep_files(paths, &present(paths)?.with_env(env))
}

/// The `.env` of a kept configuration.
pub(crate) fn env(paths: &Paths, id: &SnapshotId) -> Result<String> {
    read_env(&directory(paths, id).join(".env"))
}

/// As [`keep`], of any configuration.
pub(crate) fn keep_files(paths: &Paths, files: &Configuration) -> Result<SnapshotId> {
    let mut hash = Sha256::new();
    for part in files.parts() {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let id = SnapshotId(hex(&hash.finalize())[..16].to_owned());
    let place = directory(paths, &id);
    let saved = if place.is_dir() {
        // Among those that are to be removed, it is the newest again.
        File::open(&place)
            .and_then(|directory| directory.set_modified(SystemTime::now()))
            .map_err(Into::into)
    } else {
        write(paths, &place, files)
    };
    saved.with_context(|| format!("can't save the configuration in {}", place.display()))?;
    prune(paths, &id);
    Ok(id)
}

fn write(paths: &Paths, place: &Path, files: &Configuration) -> Result<()> {
    let parent = paths.snapshots();
    private_directory(&paths.state())?;
    private_directory(&parent)?;
    let staged = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent)?;
    files.put(staged.path(), &Configuration::default(), false)?;
    std::fs::rename(staged.keep(), place)?;
    files::sync_directory(&parent)
}

/// Remembers `id` as the configuration with which the gateway last was ready.
pub(crate) fn mark_good(paths: &Paths, id: &SnapshotId) -> Result<()> {
    // On a full disk, what is said already can't be said again.
    if last_good(paths).as_ref() == Some(id) {
        return Ok(());
    }
    files::write_atomically(&paths.last_good(), id.0.as_bytes(), 0o600)
}

/// The `.env` of [`last_good`], if it can be read.
#[must_use]
pub(crate) fn last_good_env(paths: &Paths) -> Option<String> {
    env(paths, &last_good(paths)?).ok()
}

/// Those of `.env`, or if that is invalid, the last good ones with the problem: the gateway may serve by them still.
///
/// # Errors
/// When `.env` is invalid, and there are no last good ones.
pub(crate) fn settings(paths: &Paths) -> Result<(Settings, Option<anyhow::Error>)> {
    let path = paths.env_file();
    let problem = match Settings::load(&path) {
        Ok(settings) => return Ok((settings, None)),
        Err(problem) => problem,
    };
    let good = last_good_env(paths).and_then(|text| Settings::from_text(&text, &path).ok());
    match good {
        Some(good) => Ok((good, Some(problem))),
        None => Err(problem),
    }
}

/// The `.env` that [`settings`] are of.
///
/// # Errors
/// As [`settings`].
pub(crate) fn env_in_use(paths: &Paths) -> Result<EnvFile> {
    let path = paths.env_file();
    match settings(paths)? {
        (_, None) => load_env(&path),
        (_, Some(problem)) => parse_env(&last_good_env(paths).ok_or(problem)?, &path),
    }
}

/// The configuration with which the gateway last was ready, if there ever was one.
#[must_use]
pub(crate) fn last_good(paths: &Paths) -> Option<SnapshotId> {
    let text = std::fs::read_to_string(paths.last_good()).ok()?;
    SnapshotId::find(paths, text.trim())
}

/// The `config/litellm-config.yaml` of [`last_good`], if it has one.
#[must_use]
pub(crate) fn last_good_config(paths: &Paths) -> Option<PathBuf> {
    let config = paths.config_file();
    let name = config.strip_prefix(&paths.deployment).ok()?;
    let file = directory(paths, &last_good(paths)?).join(name);
    file.is_file().then_some(file)
}

/// Every configuration that is kept.
pub(crate) fn all(paths: &Paths) -> Result<Vec<SnapshotId>> {
    let entries = files::entries(&paths.snapshots())?;
    let all = entries
        .iter()
        .filter_map(|path| SnapshotId::find(paths, files::name(path)?));
    Ok(all.collect())
}

/// Whether the current configuration is the same as the one that is kept as `id`.
pub(crate) fn is_present(paths: &Paths, id: &SnapshotId) -> Result<bool> {
    let kept = Configuration::of(&directory(paths, id))?;
    Ok(kept.parts().eq(present(paths)?.parts()))
}

/// Puts a kept configuration back: files that differ are replaced, files that it did not have are
/// removed. [`keep`] the current one before. `staying`: variables of `.env` that are no matter of
/// choice and therefore stay as they are at present, such as
/// [those of the database](crate::deployment::variables::of_the_database).
///
/// # Errors
/// When an `.env` can't be read or written. Each file is then either old or new.
pub(crate) fn restore(paths: &Paths, id: &SnapshotId, staying: &[&str]) -> Result<()> {
    let place = directory(paths, id);
    let mut wanted = Configuration::of(&place)?;
    let present = Configuration::of(&paths.deployment)?;
    if !place.join(".env").exists() {
        return Err(Failure::new(format!("{} is incomplete", place.display())).into());
    }
    if !staying.is_empty() {
        let mut env = wanted.env(&place.join(".env"))?;
        env.take_over(staying, &present.env(&paths.env_file())?)
            .with_context(|| format!("can't edit {}", paths.env_file().display()))?;
        wanted = wanted.with_env(env.text());
    }
    wanted.put(&paths.deployment, &present, false)
}

/// Puts back exactly what was kept, also a certificate, or that there was no `.env`.
pub(crate) fn restore_whole(paths: &Paths, id: &SnapshotId) -> Result<()> {
    let present = Configuration::of(&paths.deployment)?;
    // What was edited since.
    keep_files(paths, &present)?;
    let wanted = Configuration::of(&directory(paths, id))?;
    wanted.put(&paths.deployment, &present, true)
}

/// Where a kept configuration is.
#[must_use]
pub(crate) fn directory(paths: &Paths, id: &SnapshotId) -> PathBuf {
    paths.snapshots().join(&id.0)
}

fn present(paths: &Paths) -> Result<Configuration> {
    Ok(Configuration::of(&paths.deployment)?.without_certificate())
}

/// Removes the oldest configurations; failing to is no reason to fail a command.
fn prune(paths: &Paths, current: &SnapshotId) {
    // Names, and texts that have names in them.
    let mut needed = vec![current.0.clone()];
    needed.extend(last_good(paths).map(|good| good.0));
    // An operation that is under way or interrupted goes back to one of them.
    match Ledger::load(paths).map(|ledger| ledger.unfinished()) {
        Ok(Some(unfinished)) => {
            needed.extend([
                unfinished.operation.configuration,
                unfinished.operation.wanted,
            ]);
        }
        Ok(None) => {}
        Err(_) => return,
    }
    for record in [paths.applying(), paths.restore_record()] {
        let Ok(text) = files::read_existing(&record) else {
            return;
        };
        needed.push(String::from_utf8_lossy(&text.unwrap_or_default()).into_owned());
    }
    let Ok(entries) = std::fs::read_dir(paths.snapshots()) else {
        return;
    };
    let mut old: Vec<_> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            needed.iter().all(|needed| !needed.contains(&*name))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    old.sort();
    old.truncate(old.len().saturating_sub(KEPT));
    for (_, path) in old {
        let _ = std::fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::ledger::{Event, Images, Operation, ReleaseVerb};
    use crate::deployment::operation_id::OperationId;
    use crate::deployment::variables::of_the_database;
    use crate::host::files::{configuration_files, files_below};
    use crate::host::paths::Scope;

    fn paths(root: &Path) -> Paths {
        Paths {
            deployment: root.join("litellm-server"),
            ..Paths::elsewhere(Scope::System)
        }
    }

    #[test]
    fn what_stays_and_what_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        std::fs::create_dir_all(paths.config()).unwrap();
        let write = |env: &str| std::fs::write(paths.env_file(), env).unwrap();
        let env = || std::fs::read_to_string(paths.env_file()).unwrap();
        let before = "# ours\nA=1 # one\nPOSTGRES_PASSWORD='old'\nDATABASE_URL=\n";
        write(before);
        let kept = keep(&paths).unwrap();
        write("A=2\nPOSTGRES_PASSWORD=new\nPOSTGRES_DB=other\n");
        std::fs::write(paths.config().join("new.yaml"), "").unwrap();

        restore(&paths, &kept, &of_the_database()).unwrap();
        assert_eq!(
            env(),
            "# ours\nA=1 # one\nPOSTGRES_PASSWORD='new'\nDATABASE_URL=\nPOSTGRES_DB=other\n"
        );
        assert_eq!(files_below(&paths.config()).unwrap(), Vec::<PathBuf>::new());
        restore(&paths, &kept, &[]).unwrap();
        assert_eq!(env(), before);
    }

    #[test]
    fn the_last_good_file_outlives_an_edit() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        std::fs::create_dir_all(paths.config()).unwrap();
        std::fs::write(paths.env_file(), "A=1\n").unwrap();
        std::fs::write(paths.config_file(), "good: 1\n").unwrap();
        assert_eq!(last_good_config(&paths), None);
        mark_good(&paths, &keep(&paths).unwrap()).unwrap();
        std::fs::write(paths.config_file(), "half: [\n").unwrap();
        let good = last_good_config(&paths).unwrap();
        assert_eq!(std::fs::read_to_string(good).unwrap(), "good: 1\n");
    }

    #[test]
    fn certificates_and_files_come_back_with_their_modes() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        for directory in paths.mounted() {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(paths.env_file(), "").unwrap();
        let certificate = paths.certificates().join("ca.pem");
        let credentials = paths.credential_files().join("google.json");
        std::fs::write(&certificate, "ours").unwrap();
        std::fs::write(&credentials, "{}").unwrap();
        std::fs::set_permissions(&credentials, Permissions::from_mode(0o600)).unwrap();
        let kept = keep(&paths).unwrap();
        std::fs::write(&certificate, "another").unwrap();
        std::fs::remove_file(&credentials).unwrap();
        std::fs::write(paths.credential_files().join("new"), "").unwrap();
        assert!(!is_present(&paths, &kept).unwrap());

        restore(&paths, &kept, &[]).unwrap();
        assert!(is_present(&paths, &kept).unwrap());
        assert_eq!(std::fs::read_to_string(&certificate).unwrap(), "ours");
        let mode = std::fs::metadata(&credentials)
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(
            configuration_files(&paths.deployment).unwrap(),
            [certificate, credentials]
        );
    }

    #[test]
    fn a_directory_with_the_name_of_a_file_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let part = paths.config().join("part");
        std::fs::create_dir_all(part.join("a/b")).unwrap();
        std::fs::write(paths.env_file(), "").unwrap();
        std::fs::write(part.join("a/b/c.yaml"), "").unwrap();
        let with_directory = keep(&paths).unwrap();
        std::fs::remove_dir_all(&part).unwrap();
        std::fs::write(&part, "").unwrap();
        let with_file = keep(&paths).unwrap();

        restore(&paths, &with_directory, &[]).unwrap();
        assert!(part.join("a/b/c.yaml").is_file());
        restore(&paths, &with_file, &[]).unwrap();
        assert!(part.is_file());
        std::fs::remove_file(&part).unwrap();
        let without = keep(&paths).unwrap();
        restore(&paths, &with_file, &[]).unwrap();
        restore(&paths, &without, &[]).unwrap();
        assert!(paths.config().is_dir());
    }

    #[test]
    fn an_unfinished_operation_keeps_what_it_goes_back_to() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        std::fs::create_dir_all(paths.config()).unwrap();
        std::fs::write(paths.env_file(), "").unwrap();
        let keep = |env: &str| keep_with(&paths, env).unwrap();
        let (before, wanted, other) = (keep("A=before\n"), keep("A=wanted\n"), keep("A=other\n"));
        let (replaced, restored) = (keep("A=replaced\n"), keep("A=restored\n"));
        std::fs::write(paths.applying(), replaced.to_string()).unwrap();
        let record = format!("{{\"configuration\":\"{restored}\"}}\n");
        std::fs::write(paths.restore_record(), record).unwrap();
        let mut ledger = Ledger::load(&paths).unwrap();
        let begun = Event::Begun(Operation {
            operation: OperationId::parse("20260131T120000Z-0a1b2c").unwrap(),
            verb: ReleaseVerb::Upgrade,
            from: Images::default(),
            to: "ghcr.io/berriai/litellm:v2".into(),
            configuration: before.to_string(),
            wanted: wanted.to_string(),
            data: None,
            restore_data: false,
        });
        ledger.append(begun).unwrap();
        for number in 0..=KEPT {
            keep(&format!("A={number}\n"));
        }
        let is_kept = |id: &SnapshotId| directory(&paths, id).is_dir();
        assert!(
            [&before, &wanted, &replaced, &restored]
                .into_iter()
                .all(is_kept)
        );
        assert!(!is_kept(&other));
    }
}

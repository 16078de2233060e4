//! How far the archive has come, on this host and in its copy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use super::base::{bases, is_copied};
use super::directory;
use super::piece::Piece;
use super::slot::Position;
use crate::deployment::sealed::SecretValue;
use crate::deployment::settings::BackupSettings;
use crate::error::Result;
use crate::host::files;
use crate::host::paths::Paths;
use crate::operations::backup::Backup;
use crate::operations::backup::authentication::{BackupKey, Origin};
use crate::operations::backup::manifest::BasePoint;
use crate::output::duration;

/// How far the archive has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Progress {
    /// The identifier of the cluster.
    pub(super) system: String,
    /// The name of what follows without a gap: an archive that begins anew never mixes with what was before.
    pub(super) history: String,
    /// Made of the key that authenticates the pieces, and of the salt as `.env` has it, which is a reference if it is sealed.
    pub(super) key: String,
    /// Made of that key and of the salt itself. If it changes, the archive begins anew.
    #[serde(default)]
    pub(super) value: String,
    /// The size of a segment in bytes.
    pub(super) segment: u64,
    /// Everything before this position is on the disk of this host.
    pub(super) stored: u64,
    /// When that was all that the server had written.
    pub(super) time: Timestamp,
}

/// Of a cluster whose log is archived from that position and time on.
pub(super) fn history(system: &str, begin: u64, time: Timestamp) -> String {
    format!("{system}-{begin:X}-{}", time.strftime(Piece::TIME))
}

/// What a key makes of this and the salt is the same as long as both are.
const OF_THE_KEY: &[u8] = b"the archive of the write-ahead log";

/// As [`Progress::key`] and [`Progress::value`].
#[derive(Debug)]
pub(super) struct Salt {
    pub(super) written: String,
    pub(super) value: String,
}

impl Salt {
    /// That of `.env`. If the reference to a sealed one is the known one, it is not opened.
    pub(super) fn of(
        salt: &SecretValue,
        known: Option<&Progress>,
        key: &BackupKey,
    ) -> Result<Self> {
        let code = |text: &[u8]| key.code(&[OF_THE_KEY, text].concat());
        let opened = || code(salt.open()?.expose_secret().as_bytes());
        let written = match salt.sealed() {
            Some(reference) => code(reference.as_bytes())?,
            None => opened()?,
        };
        let known = known.filter(|known| known.key == written && !known.value.is_empty());
        let value = match known {
            Some(known) => known.value.clone(),
            None => opened()?,
        };
        Ok(Self { written, value })
    }
}

/// How far the copy of the archive has come.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Copied {
    pub(super) url: String,
    pub(super) history: String,
    pub(super) position: u64,
    pub(super) time: Timestamp,
}

impl Copied {
    pub(super) fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("copied.json")
    }

    pub(super) fn load(paths: &Paths) -> Result<Option<Self>> {
        load(&Self::file(paths), "everything is copied again")
    }

    pub(super) fn save(&self, paths: &Paths) -> Result<()> {
        files::save_record(&Self::file(paths), self)
    }

    pub(super) fn is_of(&self, history: &str, url: &str) -> bool {
        self.url == url && self.history == history
    }
}

/// Reads a file of this module; `otherwise` says what happens without it.
fn load<T: serde::de::DeserializeOwned>(path: &Path, otherwise: &str) -> Result<Option<T>> {
    files::load_record(
        path,
        &format!("remove it (`rm {}`): {otherwise}", path.display()),
    )
}

impl Progress {
    pub(super) fn file(paths: &Paths) -> PathBuf {
        directory(paths).join("progress.json")
    }

    /// That of this deployment; `None` if nothing was archived yet.
    pub(crate) fn load(paths: &Paths) -> Result<Option<Self>> {
        load(
            &Self::file(paths),
            "the archive begins anew, with a base backup",
        )
    }

    pub(super) fn save(&self, paths: &Paths) -> Result<()> {
        files::save_record(&Self::file(paths), self)
    }

    /// When everything that the server had written was on the disk of this host.
    pub(crate) fn time(&self) -> Timestamp {
        self.time
    }

    /// Whether nothing is missing since that base backup.
    pub(crate) fn continues(&self, point: &BasePoint) -> bool {
        point.history == self.history
    }

    /// Whether the archive of a server with this log goes on. A cluster that was moved back has less of it.
    pub(super) fn goes_on(&self, now: &Position, salt: &Salt) -> bool {
        self.system == now.system
            && self.segment == now.segment
            && self.has(salt)
            && now.slot == Some(true)
            && self.stored <= now.flushed
    }

    /// Whether the salt is the same, sealed or not. Before a sealed one was opened, only its code in clear was known.
    fn has(&self, salt: &Salt) -> bool {
        self.key == salt.written || self.value == salt.value || self.key == salt.value
    }

    /// Whether the archive can be recovered from that base backup.
    pub(super) fn is_usable(&self, backup: &Backup, point: &BasePoint) -> bool {
        self.continues(point) && backup.origin == Origin::Own
    }
}

/// The archive, as `status --json` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ArchiveReport {
    /// Seconds since everything was archived: writes of this time are lost with this host. Null if nothing was archived yet.
    pub lag_seconds: Option<u64>,
    /// Where the copy is; null if the archive is on this host only.
    pub url: Option<String>,
    /// Whether there is a base backup with which it can be recovered.
    pub recoverable: bool,
    /// The age of the newest such base backup, else of the oldest one that has no copy yet.
    #[serde(skip)]
    pub base_age: Option<Duration>,
}

impl ArchiveReport {
    /// The lag for people.
    pub(crate) fn lag(&self) -> Option<String> {
        Some(match self.lag_seconds? {
            seconds @ 0..10 => format!("{seconds} s"),
            seconds => duration(Duration::from_secs(seconds)),
        })
    }

    /// That of this deployment; `None` if `.env` does not ask for an archive.
    pub(crate) fn of(paths: &Paths, settings: &BackupSettings) -> Result<Option<Self>> {
        if !settings.wal {
            return Ok(None);
        }
        let progress = Progress::load(paths)?;
        // With a copy, that is what survives the loss of this host.
        let time = match (&progress, &settings.url) {
            (Some(progress), Some(url)) => Copied::load(paths)?
                .filter(|copied| copied.is_of(&progress.history, url))
                .map(|copied| copied.time),
            (progress, _) => progress.as_ref().map(Progress::time),
        };
        let lag = time.map(|time| Timestamp::now().duration_since(time));
        let is_complete = |backup: &Backup, point: &BasePoint| {
            let is_there = |url: &String| is_copied(backup, url);
            settings.url.as_ref().is_none_or(is_there)
                && time.is_some_and(|time| time >= point.complete)
        };
        let mut usable = bases(paths)?;
        usable.retain(|(backup, point)| {
            let is_usable = |progress: &Progress| progress.is_usable(backup, point);
            progress.as_ref().is_some_and(is_usable)
        });
        let newest = usable
            .iter()
            .rfind(|(backup, point)| is_complete(backup, point));
        let base = newest.or(usable.first());
        let age = base.map(|(_, point)| Timestamp::now().duration_since(point.complete));
        Ok(Some(Self {
            lag_seconds: lag.map(|lag| u64::try_from(lag.as_secs()).unwrap_or_default()),
            url: settings.url.clone(),
            recoverable: newest.is_some(),
            base_age: age.and_then(|age| age.try_into().ok()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::progress;

    #[test]
    fn sealing_the_salt_is_no_new_beginning() {
        let known = |key: &str, value: &str| Progress {
            key: key.to_owned(),
            value: value.to_owned(),
            ..progress("1-0-t", 0)
        };
        let has = |known: Progress, written: &str, value: &str| {
            let (written, value) = (written.to_owned(), value.to_owned());
            known.has(&Salt { written, value })
        };
        // Sealed, sealed again, and unsealed.
        assert!(has(known("salt", "salt"), "reference", "salt"));
        assert!(has(known("reference", "salt"), "other reference", "salt"));
        assert!(has(known("reference", "salt"), "salt", "salt"));
        assert!(!has(known("reference", "salt"), "other", "other"));
        // Written by a former release.
        assert!(has(known("salt", ""), "reference", "salt"));
        assert!(has(known("reference", ""), "reference", "salt"));
        assert!(!has(known("salt", ""), "reference", "other"));
    }
}

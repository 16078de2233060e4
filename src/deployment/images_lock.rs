//! `images.lock`: which image each tag meant when it was pulled, so that a tag that is moved
//! later is never run unnoticed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::image::{ImageIdentity, ImageReference};

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ImagesLock {
    schema: u32,
    images: BTreeMap<String, Locked>,
}

/// What one reference meant.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Locked {
    /// Which image that was.
    #[serde(flatten)]
    pub identity: ImageIdentity,
    /// When it was recorded, in RFC 3339.
    pub recorded: String,
    /// LiteLLM's version in it, once a container of it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The SHA-256 of what litellm-units used of LiteLLM when the image was checked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<String>,
}

impl Default for ImagesLock {
    fn default() -> Self {
        Self {
            schema: 1,
            images: BTreeMap::new(),
        }
    }
}

impl ImagesLock {
    /// Reads the file; a missing one is empty.
    ///
    /// # Errors
    /// When it can't be read, or was damaged.
    pub fn load(path: &Path) -> Result<Self> {
        let Some(bytes) = files::read_existing(path)? else {
            return Ok(Self::default());
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::config(format!("{}, line {}: {error}", path.display(), error.line()))
                .hint("restore it from a backup, or remove it and run `litellm-units pull` to record the images anew")
                .into()
        })
    }

    /// Changes the file if `change` returns true. Units record images while a command does, so nobody else changes it meanwhile.
    /// Returns its content.
    ///
    /// # Errors
    /// As [`ImagesLock::load`] and [`ImagesLock::save`], and those of `change`.
    pub(crate) fn change(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<bool>,
    ) -> Result<Self> {
        let deployment = path.parent().unwrap_or(path);
        let _turn = File::open(deployment)
            .and_then(|directory| {
                Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
            })
            .path_context("can't lock", deployment)?;
        let mut lock = Self::load(path)?;
        if change(&mut lock)? {
            lock.save(path)?;
        }
        Ok(lock)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk refuses.
    fn save(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).context("can't write images.lock")?;
        text.push('\n');
        files::write_atomically(path, text.as_bytes(), 0o644)
    }

    /// Whether nothing says which image the reference means: neither itself nor a record.
    #[must_use]
    pub fn lacks(&self, image: &ImageReference) -> bool {
        image.digest().is_none() && !self.images.contains_key(image.as_str())
    }

    /// What is recorded for a reference.
    #[must_use]
    pub fn get(&self, image: &ImageReference) -> Option<&Locked> {
        self.images.get(image.as_str())
    }

    /// Every reference that is recorded, and what it meant.
    pub fn references(&self) -> impl Iterator<Item = (ImageReference, &Locked)> {
        self.images
            .iter()
            .filter_map(|(text, locked)| Some((ImageReference::parse(text).ok()?, locked)))
    }

    /// Records what a reference means now.
    pub fn record(&mut self, image: &ImageReference, identity: ImageIdentity) {
        let recorded = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        // The same image has the same version.
        let before = self
            .get(image)
            .filter(|before| before.identity.is(&identity));
        let locked = Locked {
            version: before.and_then(|before| before.version.clone()),
            contract: before.and_then(|before| before.contract.clone()),
            identity,
            recorded,
        };
        self.images.insert(image.as_str().to_owned(), locked);
    }

    /// Has a tag mean this image, with all that `earlier` records of it. Returns whether that is news.
    pub fn restore(
        &mut self,
        image: &ImageReference,
        identity: &ImageIdentity,
        earlier: &Self,
    ) -> bool {
        let is_it = |found: &&Locked| found.identity.is(identity);
        if image.digest().is_some() || self.get(image).as_ref().is_some_and(is_it) {
            return false;
        }
        match earlier.get(image).filter(is_it) {
            Some(locked) => {
                self.images
                    .insert(image.as_str().to_owned(), locked.clone());
            }
            None => self.record(image, identity.clone()),
        }
        true
    }

    /// Records what only `other` has recorded. Returns whether that is news.
    pub(crate) fn complete(&mut self, other: &Self) -> bool {
        let before = self.images.len();
        for (image, locked) in &other.images {
            let entry = self.images.entry(image.clone());
            entry.or_insert_with(|| locked.clone());
        }
        self.images.len() > before
    }

    /// Which image a reference means, as far as it says so itself or a record does.
    #[must_use]
    pub fn identity(&self, image: &ImageReference) -> Option<ImageIdentity> {
        match image.digest() {
            Some(digest) => Some(ImageIdentity::of_digest(digest)),
            None => Some(self.get(image)?.identity.clone()),
        }
    }

    /// Records LiteLLM's version in the image that a reference means. Returns whether that is news.
    pub fn set_version(&mut self, image: &ImageReference, version: &str) -> bool {
        if let (None, Some(digest)) = (self.get(image), image.digest()) {
            self.record(image, ImageIdentity::of_digest(digest));
        }
        let Some(locked) = self.images.get_mut(image.as_str()) else {
            return false;
        };
        let version = Some(version.to_owned());
        let is_news = locked.version != version;
        locked.version = version;
        is_news
    }

    /// Records that a recorded image has what litellm-units uses of LiteLLM. Returns whether that is news.
    pub fn set_contract(&mut self, image: &ImageReference, contract: &str) -> bool {
        let Some(locked) = self.images.get_mut(image.as_str()) else {
            return false;
        };
        let before = locked.contract.replace(contract.to_owned());
        before.as_deref() != Some(contract)
    }

    /// LiteLLM's version in the image of this digest, if it is known.
    #[must_use]
    pub fn version_of(&self, digest: &str) -> Option<&str> {
        self.images
            .values()
            .filter(|locked| locked.identity.digest == digest)
            .find_map(|locked| locked.version.as_deref())
    }

    /// LiteLLM's version in the image that a reference means, if a container of it was asked.
    #[must_use]
    pub fn known_version(&self, image: &ImageReference) -> Option<&str> {
        let own = self.get(image).and_then(|locked| locked.version.as_deref());
        own.or_else(|| self.version_of(&self.identity(image)?.digest))
    }

    /// The reference with its digest, as far as one is known.
    #[must_use]
    pub fn pin(&self, image: &ImageReference) -> String {
        self.pin_text(image.as_str())
    }

    /// As [`ImagesLock::pin`], for a reference that was accepted before.
    #[must_use]
    pub fn pin_text(&self, image: &str) -> String {
        match self.images.get(image) {
            Some(locked) if !image.contains('@') => format!("{image}@{}", locked.identity.digest),
            _ => image.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_record_at_the_same_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("images.lock");
        let images: Vec<ImageReference> = (1..=8)
            .map(|number| ImageReference::parse(&format!("docker.io/library/redis:7.{number}")))
            .collect::<Result<_, _>>()
            .unwrap();
        let identity = ImageIdentity::of_digest(format!("sha256:{:064}", 1));
        let record = |image| {
            ImagesLock::change(&path, |lock| {
                lock.record(image, identity.clone());
                Ok(true)
            })
        };
        std::thread::scope(|scope| {
            for image in &images {
                scope.spawn(|| record(image).unwrap());
            }
        });
        let mut lock = ImagesLock::load(&path).unwrap();
        assert_eq!(lock.references().count(), images.len());
        assert!(!lock.complete(&lock.clone()));
        let mut empty = ImagesLock::default();
        assert!(empty.complete(&lock) && empty == lock);
    }
}

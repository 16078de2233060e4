//! `images.lock`: which image each tag meant when it was pulled, so that a tag that is moved
//! later is never run unnoticed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Result};
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

    /// Writes the file.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, path: &Path) -> Result<()> {
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

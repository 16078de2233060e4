//! Image references: what may be run, and what is refused before it is pulled.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A fully qualified image reference that pins what it names: a version tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReference {
    text: String,
    tag: Option<std::ops::Range<usize>>,
    digest: Option<std::ops::Range<usize>>,
    name_end: usize,
}

/// Which image it is, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ImageIdentity {
    /// The digest by which its registry has it (`sha256:…`): that of the index where there is one.
    pub digest: String,
    /// Podman's image ID, 64 hexadecimal digits. Records of earlier versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl ImageIdentity {
    /// What a digest alone tells.
    #[must_use]
    pub fn of_digest(digest: impl Into<String>) -> Self {
        Self {
            digest: digest.into(),
            id: None,
        }
    }

    /// The same image by the digest that its registry is known to have it by, if one is: Podman may
    /// show another one of it.
    #[must_use]
    pub fn published_as(self, digest: Option<String>) -> Self {
        Self {
            digest: digest.unwrap_or(self.digest),
            ..self
        }
    }

    /// Whether both are the same image. An image has one ID, but several digests: one of the index,
    /// one of the manifest for this platform (containers/podman issue 24858).
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (&self.id, &other.id) {
            (Some(id), Some(other)) => id == other,
            _ => self.digest == other.digest,
        }
    }
}

/// An image as it is recorded: by the name that it was asked for, and by what it was.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Image {
    /// The reference.
    pub reference: String,
    /// Which image that was.
    #[serde(flatten)]
    pub identity: ImageIdentity,
}

impl Image {
    /// The reference with the digest.
    #[must_use]
    pub fn pinned(&self) -> String {
        match self.reference.split_once('@') {
            Some(_) => self.reference.clone(),
            None => format!("{}@{}", self.reference, self.identity.digest),
        }
    }
}

/// Tags that are moved to another image from time to time.
const FLOATING_TAGS: [&str; 9] = [
    "latest",
    "stable",
    "main",
    "edge",
    "dev",
    "nightly",
    "main-latest",
    "main-stable",
    "rc",
];

/// Where LiteLLM publishes its images.
const LITELLM_REPOSITORY: &str = "ghcr.io/berriai/litellm";

/// What a digest begins with; no other algorithm is in use.
pub const DIGEST_PREFIX: &str = "sha256:";

/// Why a reference is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// It is not a reference at all.
    #[error("{0:?} is not an image reference: {1}")]
    Malformed(String, &'static str),
    /// It leaves the registry to the host's search list.
    #[error("{0:?} does not name its registry")]
    Unqualified(String),
    /// It has neither tag nor digest.
    #[error("{0:?} has no version tag and no digest")]
    Unpinned(String),
    /// Its tag is moved from image to image.
    #[error("{0:?} has the floating tag {1:?}")]
    Floating(String, String),
}

impl ImageError {
    /// The next step.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Malformed(..) => {
                "write it as registry/name:tag, e.g. ghcr.io/berriai/litellm:v1.108.14"
            }
            Self::Unqualified(_) => "add the registry, e.g. docker.io/library/postgres:17.7",
            Self::Unpinned(_) => "add a version tag, e.g. :v1.108.14",
            Self::Floating(..) => "name a version, e.g. :v1.108.14, or add the digest (@sha256:…)",
        }
    }
}

impl ImageReference {
    /// Parses a reference, and refuses one that pins no version.
    ///
    /// # Errors
    /// When it is malformed, leaves the registry open, or is not pinned.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let malformed = |reason| ImageError::Malformed(text.to_owned(), reason);
        if text.is_empty() {
            return Err(malformed("it is empty"));
        }
        if text
            .chars()
            .any(|c| !c.is_ascii_alphanumeric() && !"./:@_-+".contains(c))
        {
            return Err(malformed("only letters, digits and ./:@_-+ are allowed"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                if !digest.starts_with(DIGEST_PREFIX) {
                    return Err(malformed("the digest does not start with sha256:"));
                }
                if !is_digest(digest) {
                    return Err(malformed("a sha256 digest has 64 hexadecimal digits"));
                }
                (rest, Some(rest.len() + 1..text.len()))
            }
        };
        // A colon before the last slash belongs to the registry's port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name_end, tag) = match rest[path_start..].find(':') {
            None => (rest.len(), None),
            Some(colon) => (path_start + colon, Some(path_start + colon + 1..rest.len())),
        };
        if tag.as_ref().is_some_and(|tag| !is_tag(&rest[tag.clone()])) {
            return Err(malformed("the tag is not valid"));
        }
        let reference = Self {
            text: text.to_owned(),
            tag,
            digest,
            name_end,
        };
        let Some((registry, path)) = reference.name().split_once('/') else {
            return Err(ImageError::Unqualified(text.to_owned()));
        };
        if !(registry.contains(['.', ':']) || registry == "localhost") {
            return Err(ImageError::Unqualified(text.to_owned()));
        }
        if path
            .split('/')
            .any(|part| part.is_empty() || part.chars().any(|c| c.is_ascii_uppercase()))
        {
            return Err(malformed(
                "its path has an empty part or an upper-case letter",
            ));
        }
        reference.check()?;
        Ok(reference)
    }

    fn check(&self) -> Result<(), ImageError> {
        let text = self.text.clone();
        let tag = self.tag().unwrap_or_default();
        if self.digest.is_some() {
            return Ok(());
        }
        if tag.is_empty() {
            return Err(ImageError::Unpinned(text));
        }
        if FLOATING_TAGS.contains(&tag) || tag.contains("nightly") || tag.ends_with("-latest") {
            return Err(ImageError::Floating(text, tag.to_owned()));
        }
        Ok(())
    }

    /// The whole reference, as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Registry and path, without tag and digest.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[..self.name_end]
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.clone().map(|range| &self.text[range])
    }

    /// The digest (`sha256:…`), if there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.clone().map(|range| &self.text[range])
    }

    /// The tag from its first digit on: `1.80.11-stable` of `v1.80.11-stable`.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        let tag = self.tag()?;
        tag.find(|c: char| c.is_ascii_digit())
            .map(|start| &tag[start..])
    }

    /// The first number of the version.
    #[must_use]
    pub fn major(&self) -> Option<u32> {
        let version = self.version()?;
        let end = version
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(version.len());
        version[..end].parse().ok()
    }

    /// The major version of PostgreSQL in it, as far as the tag says so: that of `postgres:17.7` and of
    /// `pgvector:0.8.0-pg17`, whose first number is the extension's.
    #[must_use]
    pub fn postgres_major(&self) -> Option<u32> {
        let after = self.tag()?.rsplit_once("pg").map(|(_, rest)| rest);
        let named = after.and_then(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit());
            rest[..end.unwrap_or(rest.len())].parse().ok()
        });
        // Of `postgis:17-3.5`, it is the server's; of another name, or that low, an extension's.
        let name = self.name().rsplit('/').next().unwrap_or_default();
        let is_server = name.contains("postg") || name.contains("pg");
        named.or_else(|| self.major().filter(|major| is_server && *major >= 9))
    }

    /// Whether it was built on this host: Podman gives such an image this name, and no registry has it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.name().starts_with("localhost/")
    }

    /// The name under which a registry has its releases: LiteLLM's own, if the image was built on this host.
    #[must_use]
    pub fn repository(&self) -> &str {
        if self.is_local() {
            LITELLM_REPOSITORY
        } else {
            self.name()
        }
    }

    /// Whether it is one of LiteLLM's images, by its name.
    #[must_use]
    pub fn is_litellm(&self) -> bool {
        self.name().contains("litellm")
    }

    /// Whether the tag says that the image is built on Alpine, whose user numbers differ.
    #[must_use]
    pub fn is_alpine(&self) -> bool {
        self.tag().is_some_and(|tag| tag.contains("alpine"))
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether it is `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix(DIGEST_PREFIX).is_some_and(|hex| {
        hex.len() == 64 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

fn is_tag(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_compared_by_id() {
        let identity = |digest: &str, id: Option<&str>| ImageIdentity {
            digest: digest.into(),
            id: id.map(str::to_owned),
        };
        for (one, other, same) in [
            (("index", Some("1")), ("manifest", Some("1")), true),
            (("index", Some("1")), ("index", Some("2")), false),
            (("index", None), ("index", Some("1")), true),
            (("index", None), ("manifest", Some("1")), false),
        ] {
            let (one, other) = (identity(one.0, one.1), identity(other.0, other.1));
            assert_eq!(one.is(&other), same, "{one:?} {other:?}");
            assert_eq!(other.is(&one), same, "{one:?} {other:?}");
        }
        let before: Image = serde_json::from_str(r#"{"reference":"r:1","digest":"d"}"#).unwrap();
        assert_eq!(before.identity, identity("d", None));
        assert_eq!(before.pinned(), "r:1@d");
    }

    #[test]
    fn versions_of_postgresql() {
        for (text, major) in [
            ("docker.io/library/postgres:17.7-alpine", Some(17)),
            ("registry.example.com/mirror/postgres:18", Some(18)),
            ("docker.io/pgvector/pgvector:0.8.0-pg17", Some(17)),
            ("docker.io/pgvector/pgvector:pg18-trixie", Some(18)),
            ("docker.io/timescale/timescaledb:2.17.2-pg16", Some(16)),
            ("docker.io/postgis/postgis:17-3.5", Some(17)),
            ("docker.io/bitnami/postgresql:16.4.0", Some(16)),
            ("docker.io/pgautoupgrade/pgautoupgrade:17-alpine", Some(17)),
            ("localhost/pg:17", Some(17)),
            ("docker.io/ankane/pgvector:0.5.1", None),
            ("pg.example.com/tools/citus:12.1", None),
            ("docker.io/citusdata/citus:12.1", None),
        ] {
            let image = ImageReference::parse(text).unwrap();
            assert_eq!(image.postgres_major(), major, "{text}");
        }
    }

    #[test]
    fn parts_of_a_reference() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference = ImageReference::parse(&format!(
            "127.0.0.1:5000/a/litellm:v1.80.11-stable@{digest}"
        ))
        .unwrap();
        assert_eq!(reference.name(), "127.0.0.1:5000/a/litellm");
        assert_eq!(reference.tag(), Some("v1.80.11-stable"));
        assert_eq!(reference.version(), Some("1.80.11-stable"));
        assert_eq!(reference.major(), Some(1));
        assert_eq!(reference.digest(), Some(digest.as_str()));
    }

    #[test]
    fn refusals_say_why() {
        for (text, message) in [
            ("", r#""" is not an image reference: it is empty"#),
            ("litellm:v1", r#""litellm:v1" does not name its registry"#),
            (
                "berriai/litellm:v1",
                r#""berriai/litellm:v1" does not name its registry"#,
            ),
            (
                "ghcr.io/berriai/litellm",
                r#""ghcr.io/berriai/litellm" has no version tag and no digest"#,
            ),
            (
                "ghcr.io/berriai/litellm:main-stable",
                r#""ghcr.io/berriai/litellm:main-stable" has the floating tag "main-stable""#,
            ),
            (
                "ghcr.io/Berriai/litellm:v1",
                r#""ghcr.io/Berriai/litellm:v1" is not an image reference: its path has an empty part or an upper-case letter"#,
            ),
            (
                "ghcr.io/a/b:v 1",
                r#""ghcr.io/a/b:v 1" is not an image reference: only letters, digits and ./:@_-+ are allowed"#,
            ),
            (
                "ghcr.io/a/b@sha256:12",
                r#""ghcr.io/a/b@sha256:12" is not an image reference: a sha256 digest has 64 hexadecimal digits"#,
            ),
        ] {
            assert_eq!(
                ImageReference::parse(text).unwrap_err().to_string(),
                message
            );
        }
    }

    #[test]
    fn a_floating_tag_with_a_digest_is_pinned() {
        let text = format!(
            "ghcr.io/berriai/litellm:main-stable@sha256:{}",
            "0".repeat(64)
        );
        assert!(ImageReference::parse(&text).is_ok());
    }
}

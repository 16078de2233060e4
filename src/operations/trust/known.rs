//! How LiteLLM signs its images, according to its release pages.

use sha2::{Digest, Sha256};

use crate::image::ImageReference;
use crate::random;

/// A key that LiteLLM signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigningKey {
    /// The commit of BerriAI/litellm with this `cosign.pub`.
    pub commit: &'static str,
    /// The file's SHA-256.
    pub sha256: &'static str,
    /// The file, if it comes with the program.
    pub text: Option<&'static str>,
}

/// Both keys, the first one first.
pub const KEYS: [SigningKey; 2] = [
    SigningKey {
        commit: "0112e53046018d726492c814b3644b7d376029d0",
        sha256: "ff8869bf14ba9d10af7b64b9d479543b44daec0165e715753c43ff8a998f6dd3",
        text: Some(super::LITELLM_KEY),
    },
    SigningKey {
        commit: "e82a3c646908ba0a6ee0beddc4310d7a6cac4065",
        sha256: "e3fe3e08c44b16407fe0b37c43b4f8b603b3a0f4ee74c29e647bc022d762c2c0",
        text: None,
    },
];

/// The identity that a certificate of a keyless signature must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignerIdentity {
    /// The workflow.
    pub subject: &'static str,
    /// The issuer that vouches for the workflow.
    pub issuer: &'static str,
}

/// The workflow that signs without a key.
pub const IDENTITY: SignerIdentity = SignerIdentity {
    subject: "https://github.com/BerriAI/project-releaser/.github/workflows/release.yml@refs/heads/main",
    issuer: "https://token.actions.githubusercontent.com",
};

/// Releases without a signature, with the issue that reports it.
const UNSIGNED: &str = include_str!("unsigned-releases");

/// How a release is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningMethod {
    /// Not at all: it is from before the first signature.
    Unsigned,
    /// By one of [`KEYS`].
    Key(usize),
    /// By [`IDENTITY`].
    Keyless,
}

/// Which of LiteLLM's keys a file is.
#[must_use]
pub fn key(text: &str) -> Option<&'static SigningKey> {
    let sha256 = random::hex(&Sha256::digest(text.as_bytes()));
    KEYS.iter().find(|key| key.sha256 == sha256)
}

/// How LiteLLM signs this release; `None` if the image does not say which one it is.
#[must_use]
pub fn way(image: &ImageReference) -> Option<SigningMethod> {
    let release = Release::of(image)?;
    let is_since = |patch: u32| release.patch.is_some_and(|found| found >= patch);
    Some(match (release.major, release.minor) {
        (1, ..=82) | (0, _) => SigningMethod::Unsigned,
        (1, ..=102) => SigningMethod::Key(0),
        (1, 103) if !is_since(8) => SigningMethod::Key(0),
        (1, 104) if !is_since(6) => SigningMethod::Key(0),
        (1, 106) if is_since(12) => SigningMethod::Keyless,
        (1, 108) if is_since(10) => SigningMethod::Keyless,
        (1, 110) if is_since(1) => SigningMethod::Keyless,
        (1, ..=110) => SigningMethod::Key(1),
        _ => SigningMethod::Keyless,
    })
}

/// The issue that reports that LiteLLM did not sign this release.
#[must_use]
pub fn unsigned(image: &ImageReference) -> Option<&'static str> {
    let version = image.version()?;
    UNSIGNED
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(release, _)| {
            version
                .strip_prefix(release)
                .is_some_and(|rest| rest.is_empty() || rest == "-stable")
        })
        .map(|(_, place)| place.trim())
}

struct Release {
    major: u32,
    minor: u32,
    /// `None` for a release before the first patch: `1.104.0-rc.1`.
    patch: Option<u32>,
}

impl Release {
    fn of(image: &ImageReference) -> Option<Self> {
        let mut parts = image.version()?.splitn(3, '.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let patch = parts.next().and_then(|rest| {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..end].parse().ok()
        });
        Some(Self {
            major,
            minor,
            patch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_comes_with_the_program_is_the_one_it_says() {
        for known in &KEYS {
            if let Some(text) = known.text {
                assert_eq!(key(text).map(|found| found.commit), Some(known.commit));
            }
        }
        assert!(key("another").is_none());
    }

    #[test]
    fn how_releases_are_signed() {
        for (tag, expected, place) in [
            ("v1.80.11-stable", Some(SigningMethod::Unsigned), None),
            ("v1.83.0-stable", Some(SigningMethod::Key(0)), None),
            (
                "v1.91.0",
                Some(SigningMethod::Key(0)),
                Some("https://github.com/BerriAI/litellm/issues/32306"),
            ),
            (
                "v1.93.0-stable",
                Some(SigningMethod::Key(0)),
                Some("https://github.com/BerriAI/litellm/issues/34360"),
            ),
            ("v1.93.01", Some(SigningMethod::Key(0)), None),
            ("v1.103.2", Some(SigningMethod::Key(0)), None),
            ("v1.103.8", Some(SigningMethod::Key(1)), None),
            ("v1.104.0-rc.1", Some(SigningMethod::Key(0)), None),
            ("v1.104.9", Some(SigningMethod::Key(1)), None),
            ("v1.106.9", Some(SigningMethod::Key(1)), None),
            ("v1.106.12", Some(SigningMethod::Keyless), None),
            ("v1.108.0-rc.1", Some(SigningMethod::Key(1)), None),
            ("v1.108.1", Some(SigningMethod::Key(1)), None),
            ("v1.108.14", Some(SigningMethod::Keyless), None),
            ("v1.109.1", Some(SigningMethod::Key(1)), None),
            ("v1.110.2", Some(SigningMethod::Keyless), None),
            ("v1.111.0-dev.3", Some(SigningMethod::Keyless), None),
            ("v2.0.0", Some(SigningMethod::Keyless), None),
            ("sha-1a2b", None, None),
        ] {
            let image = ImageReference::parse(&format!("ghcr.io/berriai/litellm:{tag}")).unwrap();
            assert_eq!((way(&image), unsigned(&image)), (expected, place), "{tag}");
        }
    }
}

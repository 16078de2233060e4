//! The list of what must not run that an administrator writes by hand: a release or an image's
//! digest on each line, and why.

use std::path::Path;

use crate::error::{Failure, Result};
use crate::image::{self, ImageReference};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// A release (`1.82.7`) or a digest (`sha256:…`).
    what: String,
    /// Why it must not run.
    pub reason: String,
    /// File and line.
    pub place: String,
}

impl Entry {
    /// A description of the image, if this entry is about it; `digest` is the recorded digest of
    /// its tag.
    pub(super) fn matches(&self, image: &ImageReference, digest: Option<&str>) -> Option<String> {
        let what = self.what.as_str();
        if what.starts_with(image::DIGEST_PREFIX) {
            let matches = [image.digest(), digest].contains(&Some(what));
            return matches.then(|| format!("{what}, a compromised image"));
        }
        let version = image.version().unwrap_or_default();
        let matches = image.is_litellm() && is_release(version, what);
        matches.then(|| format!("LiteLLM {what}, a compromised release"))
    }
}

/// Whether `version` is of the release: `1.82.7` is that of `1.82.7-stable`, but not of `1.82.70`.
fn is_release(version: &str, release: &str) -> bool {
    version
        .strip_prefix(release)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Reads a list; `path` is for messages.
///
/// # Errors
/// When a line is invalid: it is never ignored.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let place = format!("{}, line {}", path.display(), index + 1);
        let refuse =
            |problem: &str| {
                anyhow::Error::from(Failure::config(format!("{place}: {problem}")).hint(
                    "write a release or a digest and why, as in: 1.82.7  it steals credentials",
                ))
            };
        let line = std::str::from_utf8(line)
            .map_err(|_| refuse("not valid UTF-8"))?
            .trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (what, reason) = line
            .split_once(char::is_whitespace)
            .ok_or_else(|| refuse(&format!("{line:?} has no reason")))?;
        let what = what.strip_prefix('v').unwrap_or(what);
        if !(image::is_digest(what) || is_exact_release(what)) {
            return Err(refuse(&format!(
                "{what:?} is neither a release such as 1.82.7 nor a digest (sha256: and 64 hexadecimal digits)"
            )));
        }
        entries.push(Entry {
            what: what.to_owned(),
            reason: reason.trim().to_owned(),
            place,
        });
    }
    Ok(entries)
}

/// Whether it has three numbers, with or without a suffix.
fn is_exact_release(text: &str) -> bool {
    let mut parts = text.splitn(3, '.');
    let number = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()))
    };
    number(parts.next())
        && number(parts.next())
        && parts.next().is_some_and(|part| {
            part.starts_with(|c: char| c.is_ascii_digit())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        })
}

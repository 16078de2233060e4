//! Releases and images that must not run: the list that the program brings, and what
//! `/etc/litellm-units/compromised-releases` adds to it.

use std::path::Path;

use thiserror::Error;

use crate::error::{Failure, Result};
use crate::image::{self, ImageReference};
use crate::images_lock::ImagesLock;
use crate::paths::Paths;
use crate::settings::{Settings, parse_env, read_env};

/// The list that comes with the program.
const SHIPPED: &str = include_str!("compromised-releases");

/// What else must not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compromised {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// A release (`1.82.7`) or a digest (`sha256:…`).
    what: String,
    reason: String,
    /// File and line, unless the program brought it.
    place: Option<String>,
}

/// An image that is on the list.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{image:?} {what}: {reason}{}", place_words(.place.as_deref()))]
pub struct Found {
    image: String,
    what: String,
    reason: String,
    place: Option<String>,
}

fn place_words(place: Option<&str>) -> String {
    place.map_or_else(String::new, |place| format!(", says {place}"))
}

impl Found {
    /// The next step.
    pub const HINT: &str =
        "choose another release, and rotate every credential that this one has seen";
}

impl Compromised {
    /// The list of this host.
    ///
    /// # Errors
    /// When a file of it can't be read, or a line can't be understood: what an administrator
    /// forbids is never overlooked.
    pub fn load(paths: &Paths) -> Result<Self> {
        let mut list = Self::shipped()?;
        for path in paths.compromised_lists() {
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(
                        Failure::config(format!("can't read {}: {error}", path.display()))
                            .hint("let everyone who runs a gateway read it: chmod a+r")
                            .into(),
                    );
                }
            };
            list.entries.extend(parse(&bytes, Some(&path))?);
        }
        Ok(list)
    }

    /// The list that comes with the program.
    ///
    /// # Errors
    /// Never, as a test sees to.
    pub fn shipped() -> Result<Self> {
        Ok(Self {
            entries: parse(SHIPPED.as_bytes(), None)?,
        })
    }

    /// Whether an image may run; `digest` is what its tag is known to mean.
    ///
    /// # Errors
    /// When it is on the list.
    pub fn check(&self, image: &ImageReference, digest: Option<&str>) -> Result<(), Found> {
        let found = |entry: &Entry, what: String| Found {
            image: image.to_string(),
            what,
            reason: entry.reason.clone(),
            place: entry.place.clone(),
        };
        let version = image.version().unwrap_or_default();
        for entry in &self.entries {
            let listed = entry.what.as_str();
            if listed.starts_with(image::DIGEST_PREFIX) {
                if [image.digest(), digest].contains(&Some(listed)) {
                    return Err(found(entry, format!("is {listed}, a compromised image")));
                }
            } else if image.is_litellm() && is_release(version, listed) {
                return Err(found(
                    entry,
                    format!("is LiteLLM {listed}, a compromised release"),
                ));
            }
        }
        Ok(())
    }

    /// Refuses settings that name such an image.
    ///
    /// # Errors
    /// With the variable, and its line in `.env`.
    pub fn refuse(&self, paths: &Paths, settings: &Settings, images: &ImagesLock) -> Result<()> {
        for service in settings.services() {
            let Some(image) = settings.image(service) else {
                continue;
            };
            let identity = images.identity(image);
            let digest = identity.as_ref().map(|identity| identity.digest.as_str());
            if let Err(found) = self.check(image, digest) {
                let path = paths.env_file();
                let name = service.image_variable();
                let line = read_env(&path)
                    .and_then(|text| parse_env(&text, &path))
                    .ok()
                    .and_then(|env| env.line(name))
                    .map(|line| format!(", line {line}"))
                    .unwrap_or_default();
                let message = format!("{}{line}: {name} can't be used: {found}", path.display());
                return Err(Failure::config(message).hint(Found::HINT).into());
            }
        }
        Ok(())
    }
}

/// Whether `version` is of the release: `1.82.7` is that of `1.82.7-stable`, but not of `1.82.70`.
fn is_release(version: &str, release: &str) -> bool {
    version
        .strip_prefix(release)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// `path` is for messages, and nothing for the program's own list.
fn parse(bytes: &[u8], path: Option<&Path>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let place = path.map(|path| format!("{}, line {}", path.display(), index + 1));
        let refuse =
            |problem: &str| {
                let place = place.as_deref().unwrap_or("the program's own list");
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

/// Three numbers, and whatever a tag may have after them.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn said(list: &Compromised, image: &str, digest: Option<&str>) -> String {
        let image = ImageReference::parse(image).unwrap();
        list.check(&image, digest)
            .map_or_else(|found| found.to_string(), |()| "may run".into())
    }

    #[test]
    fn the_shipped_list() {
        let list = Compromised::shipped().unwrap();
        let stealer = |image: &str, release: &str| {
            format!(
                "{image:?} is LiteLLM {release}, a compromised release: it steals credentials (https://github.com/BerriAI/litellm/issues/24512)"
            )
        };
        for (image, release) in [
            ("ghcr.io/berriai/litellm:v1.82.7-stable", "1.82.7"),
            ("ghcr.io/berriai/litellm-database:main-v1.82.8", "1.82.8"),
            ("mirror.local/x/litellm:1.82.8.rc1", "1.82.8"),
        ] {
            assert_eq!(said(&list, image, None), stealer(image, release));
        }
        let pinned = format!("ghcr.io/berriai/litellm:v1.82.7@{}", digest("a"));
        assert_eq!(said(&list, &pinned, None), stealer(&pinned, "1.82.7"));
        for image in [
            "ghcr.io/berriai/litellm:v1.82.70",
            "ghcr.io/berriai/litellm:v1.82.6-stable",
            "docker.io/library/postgres:1.82.7",
        ] {
            assert_eq!(said(&list, image, None), "may run", "{image}");
        }
    }

    #[test]
    fn a_list_of_the_host() {
        let text = format!(
            "# ours\n\n{}  found in an audit \r\nv1.83.0-rc1 does not start\n",
            digest("b")
        );
        let list = Compromised {
            entries: parse(text.as_bytes(), Some(Path::new("/etc/list"))).unwrap(),
        };
        let image = format!("docker.io/library/redis:7.4@{}", digest("b"));
        assert_eq!(
            said(&list, &image, None),
            format!(
                "{image:?} is {}, a compromised image: found in an audit, says /etc/list, line 3",
                digest("b")
            )
        );
        // What a tag was found to mean counts as well.
        let tag = "docker.io/library/redis:7.4";
        assert_eq!(
            said(&list, tag, Some(&digest("b"))),
            format!(
                "{tag:?} is {}, a compromised image: found in an audit, says /etc/list, line 3",
                digest("b")
            )
        );
        assert_eq!(said(&list, tag, Some(&digest("c"))), "may run");
        assert_eq!(
            said(&list, "ghcr.io/berriai/litellm:v1.83.0-rc1", None),
            "\"ghcr.io/berriai/litellm:v1.83.0-rc1\" is LiteLLM 1.83.0-rc1, a compromised release: does not start, says /etc/list, line 4"
        );
        assert_eq!(
            said(&list, "ghcr.io/berriai/litellm:v1.83.0", None),
            "may run"
        );
    }

    #[test]
    fn no_line_is_overlooked() {
        for (line, problem) in [
            ("1.83.0", "\"1.83.0\" has no reason"),
            (
                "1.83 bad",
                "\"1.83\" is neither a release such as 1.82.7 nor a digest (sha256: and 64 hexadecimal digits)",
            ),
            (
                "1.83.x bad",
                "\"1.83.x\" is neither a release such as 1.82.7 nor a digest (sha256: and 64 hexadecimal digits)",
            ),
            (
                "sha256:12 bad",
                "\"sha256:12\" is neither a release such as 1.82.7 nor a digest (sha256: and 64 hexadecimal digits)",
            ),
        ] {
            let text = format!("# ours\n{line}\n");
            let error = parse(text.as_bytes(), Some(Path::new("/etc/list"))).unwrap_err();
            assert_eq!(error.to_string(), format!("/etc/list, line 2: {problem}"));
        }
        let error = parse(b"\xff 1\n", Some(Path::new("/etc/list"))).unwrap_err();
        assert_eq!(error.to_string(), "/etc/list, line 1: not valid UTF-8");
    }
}

//! LiteLLM's releases: how versions and tags are read, and how they are ordered.
//!
//! Each form that was published is listed here, once:
//!
//! | tag or version | release |
//! |---|---|
//! | `1.108.14`, `v1.108.14`, `v1.80.11-stable`, `main-v1.82.3-stable` | the release itself |
//! | `v1.81.0-stable.patch.1`, `v1.81.0-stable.1`, `1.81.0.post1` | a later build of it |
//! | `v1.84.0-rc.1`, `v1.81.0.rc.1`, `1.104.0rc2` | a candidate for it, before it |
//! | `v1.83.0-nightly`, `1.111.0-dev.3` | a build before its candidates |
//! | `v1.77.2-stable_custom`, `v1.80.0-alpine` | a variant: ordered like the release, never offered |

use std::cmp::Ordering;
use std::fmt;

/// Minor lines with long-term support (tag `lts`), the newest last.
/// <https://docs.litellm.ai/docs/proxy/version_support>
const LONG_TERM: [Line; 1] = [Line {
    major: 1,
    minor: 108,
}];

/// A minor line, which gets fixes on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    major: u32,
    minor: u32,
}

impl Line {
    /// The newest line with long-term support.
    pub(crate) const LONG_TERM: Self = LONG_TERM[LONG_TERM.len() - 1];

    /// Whether it has long-term support.
    pub(crate) fn is_long_term(self) -> bool {
        LONG_TERM.contains(&self)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The stage of a build before or at the release, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Development,
    Nightly,
    Alpha,
    Beta,
    Candidate,
    Released,
}

/// A release, as versions are compared.
#[derive(Clone, Debug)]
pub(crate) struct Release {
    /// `1.80.11`; very old versions have two numbers or four.
    numbers: Vec<u32>,
    stage: Stage,
    /// Of the stage: 2 of `rc2`.
    build: u32,
    /// Of a released one: 1 of `.post1`.
    post: u32,
    variant: bool,
}

impl Release {
    /// Reads a version as `PyPI` and OSV write it: `1.83.7`, `1.104.0rc2`, `0`.
    pub(crate) fn of_version(text: &str) -> Option<Self> {
        let text = text.trim().strip_prefix('v').unwrap_or(text.trim());
        let release = Self::parse(text)?;
        (!release.variant).then_some(release)
    }

    /// Reads the tag of an image; `None` if it names no release.
    pub(crate) fn of_tag(tag: &str) -> Option<Self> {
        let start = tag.find(|c: char| c.is_ascii_digit())?;
        let release = Self::parse(&tag[start..])?;
        (release.numbers.len() == 3).then_some(release)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut numbers = Vec::new();
        loop {
            numbers.push(number(&mut rest)?);
            let mut after = rest.strip_prefix('.').unwrap_or_default();
            if number(&mut after).is_none() {
                break;
            }
            rest = &rest[1..];
        }
        let mut release = Self {
            numbers,
            stage: Stage::Released,
            build: 0,
            post: 0,
            variant: false,
        };
        while !rest.is_empty() {
            rest = rest.trim_start_matches(['.', '-']);
            let end = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            // `rc.1`, `rc1` and `patch.1`; what follows another word belongs to no number.
            let mut digits = rest.strip_prefix('.').unwrap_or(rest);
            let count = number(&mut digits);
            let mut staged = |stage| {
                release.stage = stage;
                release.build = count.unwrap_or_default();
            };
            match word {
                "stable" => release.post = count.unwrap_or_default(),
                "post" | "patch" => release.post = count.unwrap_or(1),
                "rc" => staged(Stage::Candidate),
                "b" | "beta" => staged(Stage::Beta),
                "a" | "alpha" => staged(Stage::Alpha),
                "nightly" => staged(Stage::Nightly),
                "dev" => staged(Stage::Development),
                _ => {
                    release.variant = true;
                    return Some(release);
                }
            }
            if count.is_some() {
                rest = digits;
            }
        }
        Some(release)
    }

    /// The minor line that it belongs to.
    pub(crate) fn line(&self) -> Line {
        let number = |index| self.numbers.get(index).copied().unwrap_or_default();
        Line {
            major: number(0),
            minor: number(1),
        }
    }

    /// Whether it is the release `since` or a later one.
    pub(crate) fn is_from(&self, since: &str) -> bool {
        Self::of_version(since).is_some_and(|since| *self >= since)
    }

    /// Whether both are builds of one release, on the way to it or after it.
    pub(crate) fn is_same_release(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }

    /// Whether it is a final release: no candidate, no nightly build, no variant.
    pub(crate) fn is_general(&self) -> bool {
        self.stage == Stage::Released && !self.variant
    }
}

/// Takes a number from the beginning of `rest`.
fn number(rest: &mut &str) -> Option<u32> {
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let number = rest[..end].parse().ok()?;
    *rest = &rest[end..];
    Some(number)
}

impl Ord for Release {
    fn cmp(&self, other: &Self) -> Ordering {
        let count = self.numbers.len().max(other.numbers.len());
        let padded = |release: &Self| {
            let mut numbers = release.numbers.clone();
            numbers.resize(count, 0);
            (numbers, release.stage, release.build, release.post)
        };
        padded(self).cmp(&padded(other))
    }
}

impl PartialOrd for Release {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Release {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Release {}

/// As `PyPI` writes it: `1.104.0rc2`.
impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.numbers.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))?;
        match self.stage {
            Stage::Development => write!(f, ".dev{}", self.build)?,
            Stage::Nightly => f.write_str("-nightly")?,
            Stage::Alpha => write!(f, "a{}", self.build)?,
            Stage::Beta => write!(f, "b{}", self.build)?,
            Stage::Candidate => write!(f, "rc{}", self.build)?,
            Stage::Released => {}
        }
        if self.post > 0 {
            write!(f, ".post{}", self.post)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> Release {
        Release::of_tag(text).unwrap()
    }

    #[test]
    fn order() {
        // Each line is one release in all its forms, after those of the lines before.
        let lines: [&[&str]; 16] = [
            &["v1.9.30"],
            &[
                "v1.80.11-stable",
                "1.80.11",
                "main-v1.80.11-stable",
                "v1.80.11",
            ],
            &["v1.81.16-stable"],
            &["1.82.0.dev1", "v1.82.0-dev.1"],
            &["v1.82.0-nightly"],
            &["v1.82.0-rc.1", "1.82.0rc1", "v1.82.0.rc.1"],
            &["v1.82.0-rc.2"],
            &["1.82.0", "v1.82.0-stable", "v1.82.0-stable_custom"],
            &[
                "v1.82.0-stable.1",
                "v1.82.0-stable.patch.1",
                "1.82.0.post1",
                "v1.82.0-patch1",
            ],
            &["v1.82.7"],
            &["v1.82.70"],
            &["v1.83.0-nightly"],
            &["1.84.0-rc.1"],
            &["v1.84.0"],
            &["1.108.14"],
            &["1.111.0-dev.3"],
        ];
        for (index, line) in lines.iter().enumerate() {
            for text in *line {
                assert_eq!(tag(text), tag(line[0]), "{text}");
                for later in lines[index + 1..].iter().copied().flatten() {
                    assert!(tag(text) < tag(later), "{text} {later}");
                }
            }
        }
    }

    #[test]
    fn no_release() {
        for text in [
            "",
            "latest",
            "lts",
            "main-stable",
            "sha-1a2b3c",
            "v1",
            "v1.80",
            "1.2.3.4",
        ] {
            assert!(Release::of_tag(text).is_none(), "{text}");
        }
        for text in ["", "main", "1.x", "1.2.3-alpine"] {
            assert!(Release::of_version(text).is_none(), "{text}");
        }
        assert!(Release::of_version("0").unwrap() < Release::of_version("0.1.2.3").unwrap());
    }

    #[test]
    fn what_is_offered() {
        for text in [
            "v1.84.0",
            "1.84.0",
            "v1.80.11-stable",
            "v1.82.0-stable.patch.1",
        ] {
            assert!(tag(text).is_general(), "{text}");
        }
        for text in [
            "v1.84.0-rc.1",
            "v1.83.0-nightly",
            "1.111.0-dev.3",
            "v1.77.2-stable_custom",
            "v1.80.0-alpine",
        ] {
            assert!(!tag(text).is_general(), "{text}");
        }
        assert!(tag("v1.108.3").line().is_long_term());
        assert!(!tag("v1.109.3").line().is_long_term());
    }

    #[test]
    fn words() {
        for (text, words) in [
            ("main-v1.80.11-stable", "1.80.11"),
            ("v1.84.0-rc.1", "1.84.0rc1"),
            ("v1.83.0-nightly", "1.83.0-nightly"),
            ("v1.82.0-stable.patch.2", "1.82.0.post2"),
            ("1.111.0-dev.3", "1.111.0.dev3"),
        ] {
            assert_eq!(tag(text).to_string(), words);
        }
    }
}

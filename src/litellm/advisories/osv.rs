//! Advisories in OSV's form (<https://ossf.github.io/osv-schema/>), as far as they are about LiteLLM,
//! and its rules for which versions are affected.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::litellm::release::Release;

/// How bad a vulnerability is, as GitHub's advisories say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Remote takeover, mostly.
    Critical,
    /// Takeover under some condition.
    High,
    /// Limited damage.
    Moderate,
    /// Little damage.
    Low,
    /// The advisory does not say it in a word.
    Unknown,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Moderate => "moderate",
            Self::Low => "low",
            Self::Unknown => "unknown",
        })
    }
}

/// One vulnerability of LiteLLM: an advisory, or several about the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vulnerability {
    /// The advisory's own identifier, then its aliases.
    pub ids: Vec<String>,
    /// In one line.
    pub summary: String,
    pub severity: Severity,
    /// Whether it is known to be used in attacks.
    pub exploited: bool,
    /// Whether the release itself is the attack.
    pub malicious: bool,
    pub url: Option<String>,
    pub withdrawn: bool,
    versions: Vec<Release>,
    ranges: Vec<Range>,
}

/// The file of one advisory.
#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default)]
    summary: String,
    #[serde(default)]
    details: String,
    withdrawn: Option<String>,
    #[serde(default)]
    affected: Vec<Affected>,
    #[serde(default)]
    references: Vec<Reference>,
    #[serde(default)]
    database_specific: Value,
}

#[derive(Deserialize)]
struct Affected {
    package: Option<Package>,
    #[serde(default)]
    ranges: Vec<Range>,
    #[serde(default)]
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct Package {
    ecosystem: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    Introduced(String),
    Fixed(String),
    LastAffected(String),
    Limit(String),
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "type")]
    kind: String,
    url: String,
}

/// One advisory, a list of them, or the answer of osv.dev to a query.
#[derive(Deserialize)]
#[serde(untagged)]
enum File {
    List(Vec<Record>),
    Answer { vulns: Vec<Record> },
    One(Box<Record>),
}

/// Reads a file of advisories, and leaves out what is not about LiteLLM.
pub(crate) fn parse(text: &str) -> Result<Vec<Vulnerability>, String> {
    // Not parsed as `File` at once: the error would only say that no variant matches.
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let records = match serde_json::from_value(value) {
        Ok(File::List(records) | File::Answer { vulns: records }) => records,
        Ok(File::One(record)) => vec![*record],
        Err(_) => return Err("not an advisory in OSV's format".into()),
    };
    let mut found = Vec::new();
    for record in records {
        let id = record.id.clone();
        found.extend(vulnerability(record).map_err(|problem| format!("{id}: {problem}"))?);
    }
    Ok(found)
}

/// `None` if the advisory is about another package.
fn vulnerability(record: Record) -> Result<Option<Vulnerability>, String> {
    let affected: Vec<Affected> = record
        .affected
        .into_iter()
        .filter(|affected| {
            affected.package.as_ref().is_some_and(|package| {
                package.ecosystem == "PyPI" && package.name.eq_ignore_ascii_case("litellm")
            })
        })
        .collect();
    if affected.is_empty() {
        return Ok(None);
    }
    let of_database = |name: &str| &record.database_specific[name];
    let severity = match of_database("severity").as_str() {
        Some("CRITICAL") => Severity::Critical,
        Some("HIGH") => Severity::High,
        Some("MODERATE" | "MEDIUM") => Severity::Moderate,
        Some("LOW") => Severity::Low,
        _ => Severity::Unknown,
    };
    let is_set = |name: &str| of_database(name).as_bool().unwrap_or(false);
    let (exploited, malicious) = (is_set("exploited"), is_set("malicious"));
    let url = record
        .references
        .iter()
        .find(|reference| reference.kind == "ADVISORY")
        .or(record.references.first())
        .map(|reference| reference.url.clone());
    // Some have no summary.
    let summary = if record.summary.is_empty() {
        record.details.lines().next().unwrap_or_default().to_owned()
    } else {
        record.summary
    };
    let (mut versions, mut ranges) = (Vec::new(), Vec::new());
    for affected in affected {
        // OSV lists some very old versions that are not in semantic versioning.
        versions.extend(
            affected
                .versions
                .iter()
                .filter_map(|v| Release::of_version(v)),
        );
        ranges.extend(
            affected
                .ranges
                .into_iter()
                .filter(|range| range.kind != "GIT"),
        );
    }
    for event in ranges.iter().flat_map(|range| &range.events) {
        event.check()?;
    }
    Ok(Some(Vulnerability {
        malicious: malicious || record.id.starts_with("MAL-"),
        ids: std::iter::once(record.id).chain(record.aliases).collect(),
        summary,
        severity,
        exploited,
        url,
        withdrawn: record.withdrawn.is_some(),
        versions,
        ranges,
    }))
}

impl Event {
    fn check(&self) -> Result<(), String> {
        let version = match self {
            Self::Introduced(version)
            | Self::Fixed(version)
            | Self::LastAffected(version)
            | Self::Limit(version) => version,
        };
        if matches!(self, Self::Limit(limit) if limit == "*")
            || Release::of_version(version).is_some()
        {
            return Ok(());
        }
        Err(format!("{version:?} is not a version"))
    }

    /// The version; `None` for `*`, which is no limit.
    fn version(&self) -> Option<Release> {
        match self {
            Self::Introduced(version)
            | Self::Fixed(version)
            | Self::LastAffected(version)
            | Self::Limit(version) => Release::of_version(version),
        }
    }
}

impl Range {
    /// OSV's evaluation: each event, in the order of versions, sets whether what follows is
    /// affected.
    fn affects(&self, release: &Release) -> bool {
        let mut limits = self
            .events
            .iter()
            .filter(|event| matches!(event, Event::Limit(_)))
            .peekable();
        if limits.peek().is_some()
            && !limits.any(|limit| limit.version().is_none_or(|limit| *release < limit))
        {
            return false;
        }
        let mut events: Vec<(Release, &Event)> = self
            .events
            .iter()
            .filter(|event| !matches!(event, Event::Limit(_)))
            .filter_map(|event| Some((event.version()?, event)))
            .collect();
        events.sort_by(|one, other| one.0.cmp(&other.0));
        let mut affected = false;
        for (version, event) in events {
            match event {
                Event::Introduced(_) if *release >= version => affected = true,
                Event::Fixed(_) if *release >= version => affected = false,
                Event::LastAffected(_) if *release > version => affected = false,
                _ => {}
            }
        }
        affected
    }

    fn fixes(&self) -> impl Iterator<Item = Release> {
        self.events
            .iter()
            .filter(|event| matches!(event, Event::Fixed(_)))
            .filter_map(Event::version)
    }
}

impl Vulnerability {
    /// Whether a release has it.
    pub(crate) fn affects(&self, release: &Release) -> bool {
        self.versions.contains(release) || self.ranges.iter().any(|range| range.affects(release))
    }

    /// The first release after `release` that fixes it.
    pub(crate) fn fixed(&self, release: &Release) -> Option<Release> {
        self.ranges
            .iter()
            .filter(|range| range.affects(release))
            .flat_map(Range::fixes)
            .filter(|fix| fix > release && !self.affects(fix))
            .min()
    }

    /// Every release that fixes it in some line.
    pub(crate) fn fixes(&self) -> impl Iterator<Item = Release> {
        self.ranges.iter().flat_map(Range::fixes)
    }

    /// Whether any build of a release is listed, as malicious ones are.
    pub(crate) fn lists(&self, release: &Release) -> Option<&Release> {
        self.versions
            .iter()
            .find(|listed| listed.is_same_release(release))
    }

    /// Whether both have an identifier in common.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.ids.iter().any(|id| other.is_named(id))
    }

    /// Whether it has this identifier.
    pub(crate) fn is_named(&self, id: &str) -> bool {
        self.ids.iter().any(|own| own.eq_ignore_ascii_case(id))
    }

    /// The identifier by which it is best known.
    pub(crate) fn name(&self) -> &str {
        self.ids
            .iter()
            .find(|id| id.starts_with("CVE-"))
            .or(self.ids.first())
            .map_or("", String::as_str)
    }

    /// Merges another advisory about the same vulnerability.
    pub(crate) fn absorb(&mut self, other: Self) {
        for id in other.ids {
            if !self.is_named(&id) {
                self.ids.push(id);
            }
        }
        self.severity = self.severity.min(other.severity);
        self.exploited |= other.exploited;
        self.malicious |= other.malicious;
        self.versions.extend(other.versions);
        self.ranges.extend(other.ranges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(affected: &str) -> Vulnerability {
        let text = format!(
            r#"{{"id": "GHSA-1", "aliases": ["CVE-1"], "summary": "bad", "affected": [{{"package": {{"ecosystem": "PyPI", "name": "litellm"}}, {affected}}}]}}"#
        );
        parse(&text).unwrap().pop().unwrap()
    }

    fn affected(vulnerability: &Vulnerability, tags: &[&str]) -> Vec<bool> {
        tags.iter()
            .map(|tag| vulnerability.affects(&Release::of_tag(tag).unwrap()))
            .collect()
    }

    fn fixed(vulnerability: &Vulnerability, tag: &str) -> Option<String> {
        vulnerability
            .fixed(&Release::of_tag(tag).unwrap())
            .map(|release| release.to_string())
    }

    #[test]
    fn ranges() {
        let range = one(
            r#""ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "1.83.7"}, {"introduced": "1.81.16"}]}]"#,
        );
        assert_eq!(
            affected(
                &range,
                &[
                    "v1.81.15-stable",
                    "v1.81.16-nightly",
                    "v1.81.16-stable",
                    "main-v1.82.3-stable",
                    "v1.83.7-nightly",
                    "v1.83.7-rc.1",
                    "v1.83.7-stable",
                    "v1.83.7-stable.patch.1",
                    "1.108.14",
                ]
            ),
            [false, false, true, true, true, true, false, false, false]
        );
        assert_eq!(fixed(&range, "v1.82.0").as_deref(), Some("1.83.7"));
        assert_eq!(fixed(&range, "v1.81.0"), None);
    }

    #[test]
    fn ranges_of_several_lines() {
        let lines = one(
            r#""ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.88.6"}, {"introduced": "1.89.0"}, {"fixed": "1.89.7"}]},
                {"type": "ECOSYSTEM", "events": [{"introduced": "1.104.0rc1"}, {"fixed": "1.104.0rc2"}]},
                {"type": "GIT", "events": [{"introduced": "0"}]}]"#,
        );
        assert_eq!(
            affected(
                &lines,
                &[
                    "1.0.0",
                    "1.88.5",
                    "1.88.6",
                    "1.88.9",
                    "1.89.0",
                    "1.89.7",
                    "1.104.0-rc.1",
                    "1.104.0-rc.2",
                    "1.104.0"
                ]
            ),
            [true, true, false, false, true, false, true, false, false]
        );
        assert_eq!(fixed(&lines, "1.80.0").as_deref(), Some("1.88.6"));
        assert_eq!(fixed(&lines, "1.89.3").as_deref(), Some("1.89.7"));
        assert_eq!(fixed(&lines, "1.104.0-rc.1").as_deref(), Some("1.104.0rc2"));
    }

    #[test]
    fn last_affected_limits_and_versions() {
        let last = one(
            r#""ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "1.82.4"}]}]"#,
        );
        assert_eq!(
            affected(&last, &["1.82.4", "v1.82.4-stable", "1.82.5"]),
            [true, true, false]
        );
        assert_eq!(fixed(&last, "1.82.0"), None);
        let limit = one(
            r#""ranges": [{"type": "SEMVER", "events": [{"introduced": "1.0.0"}, {"limit": "1.50.0"}]}]"#,
        );
        assert_eq!(affected(&limit, &["1.49.9", "1.50.0"]), [true, false]);
        let all = one(
            r#""ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"limit": "*"}]}]"#,
        );
        assert_eq!(affected(&all, &["1.49.9"]), [true]);
        let versions = one(r#""versions": ["1.82.7", "1.82.8", "0.1.2.x"]"#);
        assert_eq!(
            affected(&versions, &["v1.82.7-stable", "1.82.70", "1.82.6"]),
            [true, false, false]
        );
    }

    #[test]
    fn files_of_osv_dev() {
        let record = |id: &str, package: &str| {
            format!(
                r#"{{"schema_version": "1.7.3", "id": "{id}", "modified": "2026-10-05T18:39:54Z", "details": "first\nsecond",
                "severity": [{{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N"}}],
                "affected": [{{"package": {{"ecosystem": "{package}", "name": "litellm", "purl": "pkg:pypi/litellm"}},
                "ranges": [{{"type": "ECOSYSTEM", "events": [{{"introduced": "0"}}]}}], "database_specific": {{"source": "x"}}}}],
                "references": [{{"type": "WEB", "url": "https://a"}}, {{"type": "ADVISORY", "url": "https://b"}}],
                "database_specific": {{"severity": "MODERATE", "cwe_ids": ["CWE-89"]}}}}"#
            )
        };
        let (one, other) = (record("MAL-2026-1", "PyPI"), record("CGA-1", "Chainguard"));
        for text in [
            one.clone(),
            format!("[{one}, {other}]"),
            format!(r#"{{"vulns": [{other}, {one}]}}"#),
        ] {
            let found = parse(&text).unwrap();
            assert_eq!(found.len(), 1);
            assert!(found[0].malicious);
            assert_eq!(found[0].severity, Severity::Moderate);
            assert_eq!(found[0].summary, "first");
            assert_eq!(found[0].url.as_deref(), Some("https://b"));
        }
        assert!(parse(&other).unwrap().is_empty());
        let broken = one.replace(r#""introduced": "0""#, r#""introduced": "soon""#);
        assert_eq!(
            parse(&broken).unwrap_err(),
            "MAL-2026-1: \"soon\" is not a version"
        );
        assert_eq!(parse("{}").unwrap_err(), "not an advisory in OSV's format");
        assert!(parse("{").unwrap_err().starts_with("EOF while parsing"));
    }
}

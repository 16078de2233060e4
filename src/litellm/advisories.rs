//! Vulnerabilities of LiteLLM, and images that must not run. The program brings a table; files of
//! the administrator and of the user add to it.
//!
//! Malicious releases are refused everywhere. A release with an exploited vulnerability is not
//! installed unless the operator accepts it. A deployment that already runs it continues: a refusal
//! would take its gateway down.

mod listed;
pub(crate) mod osv;

use std::ffi::OsStr;
use std::path::Path;

use serde::Serialize;
use thiserror::Error;

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::ledger::{Ledger, RecordedRelease};
use crate::deployment::settings::{Settings, load_env, parse_env, place};
use crate::deployment::snapshot;
use crate::deployment::variables::ACCEPT_VULNERABILITIES;
use crate::error::{Failure, Result};
use crate::host::paths::Paths;
use crate::host::{Host, files};
use crate::image::ImageReference;
use crate::litellm::release::Release;
use crate::output::shell_word;
use crate::service::Service;
use listed::Entry;
use osv::{Severity, Vulnerability};

/// The table that comes with the program, in OSV's format.
const SHIPPED: &str = include_str!("advisories/known.json");
/// The date up to which advisories are in it.
pub(crate) const SHIPPED_DATE: &str = "2026-10-22";

/// The command that lists all vulnerabilities.
const LIST: &str = "litellm-units upgrade --check";

/// All advisories and listed images of this host.
#[derive(Clone, Debug)]
pub(crate) struct Advisories {
    known: Vec<Known>,
    listed: Vec<Entry>,
    /// Files of advisories that can't be read, and why.
    faults: Vec<String>,
    /// The versions of images that were asked.
    images: ImagesLock,
}

#[derive(Clone, Debug)]
struct Known {
    vulnerability: Vulnerability,
    /// The file, unless the program brought it.
    place: Option<String>,
}

/// An image that must not run.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{image:?} is {what}: {reason}{}", place_words(.place.as_deref()))]
pub(crate) struct Compromised {
    image: String,
    what: String,
    reason: String,
    place: Option<String>,
}

fn place_words(place: Option<&str>) -> String {
    place.map_or_else(String::new, |place| format!(", according to {place}"))
}

impl Compromised {
    pub(crate) const HINT: &str =
        "choose another release, and rotate every credential that this one could read";
}

impl Advisories {
    /// Loads those of this host. An unreadable file of advisories is an error of
    /// [`Advisories::judge`] only, so that it keeps no unit from starting.
    ///
    /// # Errors
    /// When a list of what must not run can't be read, or has an invalid line: it is never ignored.
    pub(crate) fn load(paths: &Paths) -> Result<Self> {
        let mut all = Self::shipped()?;
        for path in paths.compromised_lists() {
            match std::fs::read(&path) {
                Ok(bytes) => all.listed.extend(listed::parse(&bytes, &path)?),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(
                        Failure::config(format!("can't read {}: {error}", path.display()))
                            .hint(format!(
                                "make it readable for every user who runs a gateway: `chmod a+r {}`",
                                shell_word(&path)
                            ))
                            .into(),
                    );
                }
            }
        }
        let mut own = Vec::new();
        for directory in paths.advisories() {
            if let Err(error) = all.read_directory(&directory, &mut own) {
                all.faults.push(format!("{error:#}"));
            }
        }
        all.add(own);
        // A damaged one is reported by whoever needs its digests.
        all.images = ImagesLock::load(&paths.images_lock()).unwrap_or_default();
        Ok(all)
    }

    /// The release of one of LiteLLM's images, if its tag names one, or else a container of it said so.
    pub(crate) fn release(&self, image: &ImageReference) -> Option<Release> {
        self.releases(image).next()
    }

    fn releases(&self, image: &ImageReference) -> impl Iterator<Item = Release> {
        let known = self.images.known_version(image);
        of_tag(image)
            .into_iter()
            .chain(known.and_then(Release::of_version))
    }

    /// Loads those that come with the program.
    ///
    /// # Errors
    /// Never; a test holds it.
    pub(crate) fn shipped() -> Result<Self> {
        let known = osv::parse(SHIPPED).map_err(Failure::new)?;
        let known = known.into_iter().map(|vulnerability| Known {
            vulnerability,
            place: None,
        });
        Ok(Self {
            known: known.collect(),
            listed: Vec::new(),
            faults: Vec::new(),
            images: ImagesLock::default(),
        })
    }

    fn read_directory(&mut self, directory: &Path, own: &mut Vec<Known>) -> Result<()> {
        let mut paths = files::entries(directory)?;
        paths.retain(|path| path.extension() == Some(OsStr::new("json")));
        for path in paths {
            let found = std::fs::read_to_string(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| osv::parse(&text));
            match found {
                Ok(found) => own.extend(found.into_iter().map(|vulnerability| Known {
                    vulnerability,
                    place: Some(path.display().to_string()),
                })),
                Err(problem) => self.faults.push(format!("{}: {problem}", path.display())),
            }
        }
        Ok(())
    }

    /// Adds advisories of files. One about a vulnerability of the table replaces it, but keeps its
    /// mark as exploited; several about the same vulnerability are merged. A release that the table
    /// calls malicious stays malicious.
    fn add(&mut self, own: Vec<Known>) {
        let mut added: Vec<Known> = Vec::new();
        for mut known in own {
            self.known.retain(|shipped| {
                let replaced = !shipped.vulnerability.malicious
                    && shipped.vulnerability.is_same(&known.vulnerability);
                if replaced {
                    known.vulnerability.exploited |= shipped.vulnerability.exploited;
                }
                !replaced
            });
            if known.vulnerability.withdrawn {
                continue;
            }
            match added
                .iter_mut()
                .find(|other| other.vulnerability.is_same(&known.vulnerability))
            {
                Some(other) => other.vulnerability.absorb(known.vulnerability),
                None => added.push(known),
            }
        }
        self.known.extend(added);
    }

    /// Checks whether an image may run; `digest` is the recorded digest of its tag.
    pub(crate) fn check(
        &self,
        image: &ImageReference,
        digest: Option<&str>,
    ) -> Result<(), Compromised> {
        for entry in &self.listed {
            if let Some(what) = entry.matches(image, digest) {
                return Err(Compromised {
                    image: image.to_string(),
                    what,
                    reason: entry.reason.clone(),
                    place: Some(entry.place.clone()),
                });
            }
        }
        for release in self.releases(image) {
            for Known {
                vulnerability,
                place,
            } in &self.known
            {
                if !vulnerability.malicious {
                    continue;
                }
                let listed = vulnerability
                    .lists(&release)
                    .or_else(|| vulnerability.affects(&release).then_some(&release));
                if let Some(listed) = listed {
                    let source = vulnerability.url.as_ref();
                    let source = source.map_or_else(String::new, |url| format!(" ({url})"));
                    return Err(Compromised {
                        image: image.to_string(),
                        what: format!("LiteLLM {listed}, a compromised release"),
                        reason: format!("{}{source}", vulnerability.summary),
                        place: place.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Refuses settings that name an image that must not run.
    pub(crate) fn refuse(
        &self,
        paths: &Paths,
        settings: &Settings,
        images: &ImagesLock,
    ) -> Result<()> {
        for service in settings.services() {
            let Some(image) = settings.image(service) else {
                continue;
            };
            let identity = images.identity(image);
            let digest = identity.as_ref().map(|identity| identity.digest.as_str());
            if let Err(found) = self.check(image, digest) {
                let path = paths.env_file();
                let env = load_env(&path).ok();
                let place = place(env.as_ref(), &path, service.image_variable());
                let message = format!("{place} can't be used: {found}");
                return Err(Failure::config(message).hint(Compromised::HINT).into());
            }
        }
        Ok(())
    }

    /// The known vulnerabilities of an image's release; `None` if the image does not say which
    /// release it is.
    ///
    /// # Errors
    /// When a file of advisories can't be read: the answer would be incomplete.
    pub(crate) fn judge(
        &self,
        image: &ImageReference,
        accepted: &[String],
    ) -> Result<Option<Judgement>> {
        if !self.faults.is_empty() {
            return Err(Failure::config(self.faults.join("; "))
                .hint("download the file again (https://osv.dev), or remove it")
                .into());
        }
        let Some(release) = self.release(image) else {
            return Ok(None);
        };
        let mut vulnerabilities: Vec<KnownVulnerability> = self
            .against(&release)
            .map(|vulnerability| KnownVulnerability::new(vulnerability, &release, accepted))
            .collect();
        vulnerabilities
            .sort_by_key(|finding| (!finding.exploited, finding.severity, finding.id.clone()));
        let free = |of: fn(&Vulnerability) -> bool| {
            let mut fixes: Vec<Release> = self
                .known
                .iter()
                .flat_map(|known| known.vulnerability.fixes())
                .filter(|fix| *fix > release && fix.is_general())
                .collect();
            fixes.sort();
            fixes.into_iter().find(|fix| !self.against(fix).any(of))
        };
        Ok(Some(Judgement {
            fixed: free(|_| true),
            safe: free(|vulnerability| vulnerability.exploited),
            release,
            vulnerabilities,
        }))
    }

    fn against(&self, release: &Release) -> impl Iterator<Item = &Vulnerability> {
        self.known
            .iter()
            .map(|known| &known.vulnerability)
            .filter(|vulnerability| vulnerability.affects(release))
    }
}

/// The release that the tag of one of LiteLLM's images names.
fn of_tag(image: &ImageReference) -> Option<Release> {
    let tag = image.tag().filter(|_| image.is_litellm());
    tag.and_then(Release::of_tag)
}

/// A vulnerability that a release has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct KnownVulnerability {
    /// Its CVE, or another identifier.
    pub id: String,
    /// Its other identifiers.
    pub aliases: Vec<String>,
    pub severity: Severity,
    /// Whether it is known to be used in attacks.
    pub exploited: bool,
    pub accepted: bool,
    /// The first later release without it; null where none is known.
    pub fixed: Option<String>,
    /// In one line.
    pub summary: String,
    pub url: Option<String>,
}

impl KnownVulnerability {
    fn new(vulnerability: &Vulnerability, release: &Release, accepted: &[String]) -> Self {
        let id = vulnerability.name().to_owned();
        Self {
            aliases: vulnerability
                .ids
                .iter()
                .filter(|other| **other != id)
                .cloned()
                .collect(),
            severity: vulnerability.severity,
            exploited: vulnerability.exploited,
            accepted: accepted.iter().any(|id| vulnerability.is_named(id)),
            fixed: vulnerability
                .fixed(release)
                .map(|release| release.to_string()),
            summary: vulnerability.summary.clone(),
            url: vulnerability.url.clone(),
            id,
        }
    }
}

/// The known vulnerabilities of a release.
#[derive(Clone, Debug)]
pub(crate) struct Judgement {
    pub release: Release,
    /// Its vulnerabilities, the worst first.
    pub vulnerabilities: Vec<KnownVulnerability>,
    /// The first later release without a known vulnerability.
    pub fixed: Option<Release>,
    /// The first later release without one that is exploited.
    safe: Option<Release>,
}

impl Judgement {
    /// Those that the operator has not accepted.
    pub(crate) fn open(&self) -> impl Iterator<Item = &KnownVulnerability> {
        self.vulnerabilities
            .iter()
            .filter(|finding| !finding.accepted)
    }

    /// Of these, those that are known to be used in attacks.
    pub(crate) fn exploited(&self) -> Vec<&str> {
        self.open()
            .filter(|finding| finding.exploited)
            .map(|finding| finding.id.as_str())
            .collect()
    }

    /// A short summary: `17 known vulnerabilities, 2 exploited`.
    pub(crate) fn count(&self) -> String {
        let count = match self.open().count() {
            0 => return "no known vulnerability".into(),
            1 => "1 known vulnerability".into(),
            count => format!("{count} known vulnerabilities"),
        };
        match self.exploited().len() {
            0 => count,
            exploited => format!("{count}, {exploited} exploited"),
        }
    }

    /// A summary in sentences; `None` if every known vulnerability is accepted.
    pub(crate) fn words(&self) -> Option<String> {
        let of = |severity| {
            self.open()
                .filter(|finding| !finding.exploited && finding.severity == severity)
                .count()
        };
        let all = match self.open().count() {
            0 => return None,
            1 => "1 known vulnerability".to_owned(),
            count => format!("{count} known vulnerabilities"),
        };
        let mut text = format!("LiteLLM {} has {all}.", self.release);
        let exploited = self.exploited();
        if !exploited.is_empty() {
            text.push_str(&format!(" Exploited: {}.", exploited.join(", ")));
        }
        let (critical, high) = (of(Severity::Critical), of(Severity::High));
        let lower = self.open().count() - exploited.len() - critical - high;
        let others: Vec<String> = [(critical, "critical"), (high, "high"), (lower, "lower")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        if !others.is_empty() {
            let label = if exploited.is_empty() {
                "Severity"
            } else {
                "Others"
            };
            text.push_str(&format!(" {label}: {}.", others.join(", ")));
        }
        match &self.fixed {
            Some(fixed) => text.push_str(&format!(" All are fixed in {fixed}.")),
            None => text.push_str(" No release is known to fix all."),
        }
        Some(text)
    }
}

/// Admits the gateway's image to the deployment, with a warning if its release has known
/// vulnerabilities. `accepted`: those that the command line accepts in addition to `.env`. `again`:
/// the command that the hint repeats.
pub(crate) fn admit(
    host: &Host,
    settings: &Settings,
    image: &ImageReference,
    accepted: &[String],
    again: &str,
) -> Result<()> {
    let advisories = Advisories::load(&host.paths)?;
    admit_by(host, settings, image, &advisories, Some((accepted, again)))
}

/// As [`admit`], after a container of the image has said its release, which is in `images`. An installed unit does not count
/// as a deployment: the current command may have installed it. Only `.env` accepts vulnerabilities here.
///
/// # Errors
/// As [`admit`], and if the release is malicious.
pub(crate) fn admit_asked(host: &Host, settings: &Settings, images: &ImagesLock) -> Result<()> {
    let advisories = Advisories {
        images: images.clone(),
        ..Advisories::load(&host.paths)?
    };
    advisories.refuse(&host.paths, settings, images)?;
    let image = &settings.litellm_image;
    // `admit` has judged a release that the tag names.
    if of_tag(image).is_some() {
        return Ok(());
    }
    admit_by(host, settings, image, &advisories, None)
}

fn admit_by(
    host: &Host,
    settings: &Settings,
    image: &ImageReference,
    advisories: &Advisories,
    command: Option<(&[String], &str)>,
) -> Result<()> {
    let paths = &host.paths;
    if advisories.check(image, None).is_err() {
        // `refuse` and `pull` report it, with its digest and its place.
        return Ok(());
    }
    let accepted = command.map_or(&[][..], |(accepted, _)| accepted);
    let accepted = [settings.accepted.as_slice(), accepted].concat();
    let Some(release) = advisories.release(image) else {
        return Ok(());
    };
    let is_deployed = is_deployed(paths, advisories, &release, command.is_some())?;
    let judgement = match advisories.judge(image, &accepted) {
        Ok(Some(judgement)) => judgement,
        Ok(None) => return Ok(()),
        Err(error) if is_deployed => {
            host.progress
                .warn_wrapped(&format!("known vulnerabilities are not checked: {error:#}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let exploited = judgement.exploited();
    if exploited.is_empty() || is_deployed {
        if let Some(words) = judgement.words() {
            host.progress
                .warn_wrapped(&format!("{words} See them: `{LIST}`"));
        }
        return Ok(());
    }
    let all = exploited.join(",");
    let message = format!(
        "LiteLLM {} is refused because of exploited vulnerabilities: {}",
        judgement.release,
        exploited.join(", ")
    );
    let instead = match &judgement.safe {
        Some(safe) => format!("use LiteLLM {safe} or later"),
        None => "wait for a release that fixes them".into(),
    };
    let flag = command.map_or(String::new(), |(_, again)| {
        format!("`{again} --accept-vulnerability {all}`, or ")
    });
    Err(Failure::config(message)
        .hint(format!(
            "{instead}, or accept the risk: {flag}{ACCEPT_VULNERABILITIES}={all} in .env"
        ))
        .into())
}

/// Whether the deployment has this release already: it is recorded as the current one, was the last
/// one to be ready, or if `by_unit`, is named by the installed unit.
fn is_deployed(
    paths: &Paths,
    advisories: &Advisories,
    release: &Release,
    by_unit: bool,
) -> Result<bool> {
    let ledger = Ledger::load(paths)?;
    let recorded = ledger.current().and_then(RecordedRelease::gateway);
    let good =
        snapshot::last_good_env(paths).and_then(|text| parse_env(&text, &paths.env_file()).ok());
    let good = good
        .as_ref()
        .and_then(|env| env.get(Service::Litellm.image_variable()));
    let is_it = |image: &ImageReference| advisories.release(image).is_some_and(|it| it == *release);
    Ok(recorded
        .map(|recorded| recorded.reference.as_str())
        .into_iter()
        .chain(good)
        .filter_map(|image| ImageReference::parse(image).ok())
        .chain(installed_release::of_unit(paths, Service::Litellm).filter(|_| by_unit))
        .any(|image| is_it(&image)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: &str) -> String {
        format!("sha256:{}", digit.repeat(64))
    }

    fn image(text: &str) -> ImageReference {
        ImageReference::parse(text).unwrap()
    }

    fn said(all: &Advisories, name: &str, digest: Option<&str>) -> String {
        all.check(&image(name), digest)
            .map_or_else(|found| found.to_string(), |()| "may run".into())
    }

    /// Paths of a user's scope below a directory.
    fn paths(root: &Path) -> Paths {
        Paths {
            configuration: root.join("etc"),
            deployment: root.join("deployment"),
            quadlets: root.join("quadlets"),
            ..Paths::detect(crate::host::paths::Scope::System, None).unwrap()
        }
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn judge(all: &Advisories, tag: &str, accepted: &[&str]) -> Judgement {
        let accepted: Vec<String> = accepted.iter().map(|id| (*id).to_owned()).collect();
        let image = image(&format!("ghcr.io/berriai/litellm:{tag}"));
        all.judge(&image, &accepted).unwrap().unwrap()
    }

    /// Readers copy them.
    #[test]
    fn documents_name_no_vulnerable_release() {
        let all = Advisories::shipped().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directories = [
            "",
            "docs",
            "docs/demo",
            "packaging/man",
            "packaging/examples",
            "examples",
        ];
        let mut count = 0;
        for directory in directories {
            for entry in std::fs::read_dir(root.join(directory)).unwrap() {
                let path = entry.unwrap().path();
                // What is no text names no release, and the changelog has the history.
                let Ok(text) = std::fs::read_to_string(&path) else {
                    continue;
                };
                if path.ends_with("CHANGELOG.md") {
                    continue;
                }
                for rest in text.split("berriai/litellm:").skip(1) {
                    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                    let tag = rest.split(|c| !is_part(c)).next().unwrap();
                    let image = image(&format!(
                        "ghcr.io/berriai/litellm:{}",
                        tag.trim_end_matches('.')
                    ));
                    if let Some(judgement) = all.judge(&image, &[]).unwrap() {
                        count += 1;
                        assert_eq!(judgement.words(), None, "{}: {image}", path.display());
                    }
                }
            }
        }
        assert!(count > 5, "{count}");
    }

    #[test]
    fn malicious_releases() {
        let all = Advisories::shipped().unwrap();
        let stealer = |image: &str, release: &str| {
            format!(
                "{image:?} is LiteLLM {release}, a compromised release: it steals credentials (https://github.com/BerriAI/litellm/issues/24512)"
            )
        };
        for (image, release) in [
            ("ghcr.io/berriai/litellm:v1.82.7-stable", "1.82.7"),
            ("ghcr.io/berriai/litellm-database:main-v1.82.8", "1.82.8"),
            ("mirror.local/x/litellm:1.82.8.rc1", "1.82.8"),
            ("mirror.local/x/litellm:1.82.8-ours", "1.82.8"),
        ] {
            assert_eq!(said(&all, image, None), stealer(image, release));
        }
        let pinned = format!("ghcr.io/berriai/litellm:v1.82.7@{}", digest("a"));
        assert_eq!(said(&all, &pinned, None), stealer(&pinned, "1.82.7"));
        for image in [
            "ghcr.io/berriai/litellm:v1.82.70",
            "ghcr.io/berriai/litellm:v1.82.6-stable",
            "docker.io/library/postgres:1.82.7",
        ] {
            assert_eq!(said(&all, image, None), "may run", "{image}");
        }
    }

    #[test]
    fn releases_that_no_tag_names() {
        let mut all = Advisories::shipped().unwrap();
        let name = format!("ghcr.io/berriai/litellm:main-stable@{}", digest("a"));
        let same = image(&format!("mirror.local/llm@{}", digest("a")));
        assert!(all.judge(&image(&name), &[]).unwrap().is_none());
        all.images.set_version(&image(&name), "1.82.7");
        for image in [name.as_str(), same.as_str()] {
            assert!(said(&all, image, None).contains(" is LiteLLM 1.82.7, a compromised release"));
        }
        all.images.set_version(&image(&name), "1.81.16");
        assert!(
            !all.judge(&same, &[])
                .unwrap()
                .unwrap()
                .exploited()
                .is_empty()
        );
    }

    #[test]
    fn a_list_of_the_host() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let list = paths.own_configuration().join("compromised-releases");
        let text = format!(
            "# ours\n\n{}  found in an audit \r\nv1.83.0-rc1 does not start\n",
            digest("b")
        );
        write(&list, &text);
        let all = Advisories::load(&paths).unwrap();
        let place = |line: u32| format!("according to {}, line {line}", list.display());
        let pinned = format!("docker.io/library/redis:7.4@{}", digest("b"));
        let tag = "docker.io/library/redis:7.4";
        // What a tag was found to mean counts as well.
        for (image, known) in [(pinned.as_str(), None), (tag, Some(digest("b")))] {
            assert_eq!(
                said(&all, image, known.as_deref()),
                format!(
                    "{image:?} is {}, a compromised image: found in an audit, {}",
                    digest("b"),
                    place(3)
                )
            );
        }
        assert_eq!(said(&all, tag, Some(&digest("c"))), "may run");
        let candidate = "ghcr.io/berriai/litellm:v1.83.0-rc1";
        assert_eq!(
            said(&all, candidate, None),
            format!(
                "{candidate:?} is LiteLLM 1.83.0-rc1, a compromised release: does not start, {}",
                place(4)
            )
        );
        assert_eq!(
            said(&all, "ghcr.io/berriai/litellm:v1.83.0", None),
            "may run"
        );
    }

    #[test]
    fn no_line_is_overlooked() {
        let release =
            "is neither a release such as 1.82.7 nor a digest (sha256: and 64 hexadecimal digits)";
        for (line, problem) in [
            ("1.83.0", "\"1.83.0\" has no reason".to_owned()),
            ("1.83 bad", format!("\"1.83\" {release}")),
            ("1.83.x bad", format!("\"1.83.x\" {release}")),
            ("sha256:12 bad", format!("\"sha256:12\" {release}")),
        ] {
            let text = format!("# ours\n{line}\n");
            let error = listed::parse(text.as_bytes(), Path::new("/etc/list")).unwrap_err();
            assert_eq!(error.to_string(), format!("/etc/list, line 2: {problem}"));
        }
        let error = listed::parse(b"\xff 1\n", Path::new("/etc/list")).unwrap_err();
        assert_eq!(error.to_string(), "/etc/list, line 1: not valid UTF-8");
    }

    #[test]
    fn known_vulnerabilities() {
        let all = Advisories::shipped().unwrap();
        let ids = |tag: &str| -> Vec<String> {
            let of = judge(&all, tag, &[]).vulnerabilities;
            of.into_iter().map(|finding| finding.id).collect()
        };
        assert_eq!(
            ids("v1.80.11-stable"),
            [
                "CVE-2026-42271",
                "CVE-2026-59822",
                "CVE-2026-35030",
                "CVE-2026-49468",
                "CVE-2026-35029",
                "CVE-2026-42203",
                "CVE-2026-47101",
                "CVE-2026-47102",
                "CVE-2026-84377",
                "GHSA-69x8-hrgq-fjj8",
                "GHSA-g5ff-637f-6q2m",
                "CVE-2026-59820",
                "GHSA-hhww-mrg2-969h",
                "GHSA-hx8v-g79f-8w5f",
                "CVE-2026-59819",
                "CVE-2026-59821",
            ]
        );
        // The sandbox and the injection came later.
        for later in ["CVE-2026-42208", "CVE-2026-40217"] {
            assert!(ids("v1.81.16-stable").contains(&later.to_owned()));
        }
        assert_eq!(
            ids("v1.83.14"),
            [
                "CVE-2026-59822",
                "CVE-2026-49468",
                "CVE-2026-84377",
                "GHSA-g5ff-637f-6q2m",
                "GHSA-hhww-mrg2-969h"
            ]
        );
        assert_eq!(ids("v1.94.3"), ["CVE-2026-114612", "GHSA-g5ff-637f-6q2m"]);
        assert_eq!(ids("v1.101.2"), ["CVE-2026-114612"]);
        for tag in ["v1.88.6-rc.1", "v1.96.1"] {
            assert!(ids(tag).contains(&"CVE-2026-84377".to_owned()), "{tag}");
        }
        for tag in [
            "v1.100.4",
            "v1.103.1",
            "v1.108.14",
            "v1.110.2",
            "1.111.0-dev.3",
        ] {
            assert!(ids(tag).is_empty(), "{tag}");
        }
        let unnamed = image(&format!("ghcr.io/berriai/litellm@{}", digest("a")));
        let other = image("docker.io/library/redis:1.80.11");
        for image in [unnamed, other] {
            assert!(all.judge(&image, &[]).unwrap().is_none());
        }
    }

    #[test]
    fn words_of_a_judgement() {
        let all = Advisories::shipped().unwrap();
        let of = |tag: &str, accepted: &[&str]| judge(&all, tag, accepted).words();
        assert_eq!(
            of("v1.80.11-stable", &[]).unwrap(),
            "LiteLLM 1.80.11 has 16 known vulnerabilities. Exploited: CVE-2026-42271, CVE-2026-59822. Others: 2 critical, 7 high, 5 lower. All are fixed in 1.100.4."
        );
        assert_eq!(
            of("v1.101.2", &[]).unwrap(),
            "LiteLLM 1.101.2 has 1 known vulnerability. Severity: 1 critical. All are fixed in 1.101.3."
        );
        assert_eq!(of("v1.101.2", &["ghsa-7HP6-4w63-5g45"]), None);
        assert_eq!(of("v1.108.14", &[]), None);
        let judged = judge(&all, "v1.81.16", &["CVE-2026-42208", "CVE-2026-42271"]);
        assert_eq!(judged.exploited(), ["CVE-2026-59822"]);
        assert_eq!(judged.safe.unwrap().to_string(), "1.84.0");
    }

    fn advisory(id: &str, alias: &str, fixed: &str, more: &str) -> String {
        format!(
            r#"{{"id": "{id}", "aliases": ["{alias}"], "summary": "theirs", {more} "affected": [{{"package": {{"ecosystem": "PyPI", "name": "litellm"}},
            "ranges": [{{"type": "ECOSYSTEM", "events": [{{"introduced": "1.100.0"}}, {{"fixed": "{fixed}"}}]}}]}}]}}"#
        )
    }

    #[test]
    fn advisories_of_the_host() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let file = |name: &str| paths.own_configuration().join("advisories").join(name);
        // A new one in two databases, one that takes the place of the table's, one that was withdrawn.
        write(
            &file("GHSA-new.json"),
            &advisory("GHSA-new", "CVE-2027-1", "1.108.15", ""),
        );
        write(
            &file("PYSEC-new.json"),
            &advisory("PYSEC-new", "CVE-2027-1", "1.109.0", ""),
        );
        write(
            &file("other.json"),
            &advisory("PYSEC-x", "CVE-2026-59822", "1.101.0", ""),
        );
        write(
            &file("withdrawn.json"),
            &advisory(
                "GHSA-4xpc-pv4p-pm3w",
                "CVE-2026-49468",
                "1.101.0",
                r#""withdrawn": "2026-01-01T00:00:00Z","#,
            ),
        );
        write(
            &file("MAL-2027-1.json"),
            &advisory("MAL-2027-1", "CVE-2027-2", "1.100.1", ""),
        );
        write(&file("README"), "no advisory");
        let all = Advisories::load(&paths).unwrap();
        let of = judge(&all, "v1.108.14", &[]).vulnerabilities;
        assert_eq!(of.len(), 1);
        assert_eq!(
            (of[0].id.as_str(), of[0].aliases.join(" ").as_str()),
            ("CVE-2027-1", "GHSA-new PYSEC-new")
        );
        assert_eq!(of[0].fixed.as_deref(), Some("1.109.0"));
        let ids: Vec<String> = judge(&all, "v1.83.14", &[])
            .vulnerabilities
            .into_iter()
            .map(|finding| finding.id)
            .collect();
        assert!(!ids.contains(&"CVE-2026-49468".to_owned()));
        assert!(!ids.contains(&"CVE-2026-59822".to_owned()));
        // Another range does not make it less exploited.
        assert!(
            judge(&all, "v1.100.4", &[])
                .exploited()
                .contains(&"CVE-2026-59822")
        );
        let name = "ghcr.io/berriai/litellm:v1.100.0";
        assert_eq!(
            said(&all, name, None),
            format!(
                "{name:?} is LiteLLM 1.100.0, a compromised release: theirs, according to {}",
                file("MAL-2027-1.json").display()
            )
        );

        // A file that can't be read keeps nobody from starting, but from believing that all is well.
        write(&file("broken.json"), "{}");
        let all = Advisories::load(&paths).unwrap();
        assert_eq!(
            said(&all, "ghcr.io/berriai/litellm:v1.83.0", None),
            "may run"
        );
        let error = all
            .judge(&image("ghcr.io/berriai/litellm:v1.83.0"), &[])
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{}: not an advisory in OSV's format",
                file("broken.json").display()
            )
        );
    }

    const SETTINGS: &str = "LITELLM_MASTER_KEY=sk-1\nPOSTGRES_PASSWORD=a\nREDIS_PASSWORD=b\n";

    fn admitted(paths: &Paths, env: &str, accepted: &[&str]) -> Result<(), (String, String)> {
        let text = format!("{SETTINGS}{env}");
        let settings = Settings::from_text(&text, &paths.env_file()).unwrap();
        let accepted: Vec<String> = accepted.iter().map(|id| (*id).to_owned()).collect();
        admit(
            &Host::new(paths.clone()),
            &settings,
            &settings.litellm_image,
            &accepted,
            "litellm-units up",
        )
        .map_err(|error| {
            assert_eq!(crate::error::exit(&error), crate::error::Exit::Config);
            let hint = crate::error::hint(&error).unwrap_or_default().to_owned();
            (error.to_string(), hint)
        })
    }

    #[test]
    fn exploited_releases_are_admitted_knowingly() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let env = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.81.16-stable\n";
        let ids = "CVE-2026-42208,CVE-2026-42271,CVE-2026-59822";
        assert_eq!(
            admitted(&paths, env, &["CVE-2026-1"]),
            Err((
                "LiteLLM 1.81.16 is refused because of exploited vulnerabilities: CVE-2026-42208, CVE-2026-42271, CVE-2026-59822".into(),
                format!("use LiteLLM 1.84.0 or later, or accept the risk: `litellm-units up --accept-vulnerability {ids}`, or LITELLM_ACCEPT_VULNERABILITIES={ids} in .env")
            ))
        );
        let all: Vec<&str> = ids.split(',').collect();
        assert_eq!(admitted(&paths, env, &all), Ok(()));
        let line =
            format!("{env}LITELLM_ACCEPT_VULNERABILITIES='CVE-2026-59822, GHSA-v4p8-mg3p-g94g'\n");
        assert_eq!(admitted(&paths, &line, &all[..1]), Ok(()));
        assert!(admitted(&paths, &line, &[]).is_err());
        // What is only vulnerable comes with a warning.
        let newer = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.84.0\n";
        assert_eq!(admitted(&paths, newer, &[]), Ok(()));
        // What runs already is let alone, by whatever digest.
        write(
            &paths.quadlets.join("litellm.container"),
            &format!(
                "[Container]\nImage=ghcr.io/berriai/litellm:v1.81.16-stable@{}\n",
                digest("a")
            ),
        );
        assert_eq!(admitted(&paths, env, &[]), Ok(()));
        let other = env.replace("1.81.16", "1.82.0");
        assert!(admitted(&paths, &other, &[]).is_err());
        // So it is with an advisory that can't be read.
        write(
            &paths.own_configuration().join("advisories/broken.json"),
            "{}",
        );
        assert_eq!(admitted(&paths, env, &[]), Ok(()));
        assert!(admitted(&paths, newer, &[]).is_err());
    }
}

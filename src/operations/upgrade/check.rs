//! Which newer releases there are, by the tags of the registry, and which vulnerabilities they fix. Changes nothing.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::deployment::installed_release;
use crate::deployment::settings::{ProxySettings, Settings};
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::registries::endpoints;
use crate::image::ImageReference;
use crate::litellm::advisories::{self, Advisories, Judgement, KnownVulnerability};
use crate::litellm::release::{Line, Release};
use crate::service::Service;

/// What was found, as `upgrade --check --json` prints it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ReleaseReport {
    /// The version of this form: 1.
    pub schema: u32,
    /// When, in RFC 3339.
    pub checked: String,
    /// In a word.
    pub verdict: Verdict,
    /// The deployment's release.
    pub current: Current,
    /// Newer ones, in the order of releases.
    pub candidates: Vec<Candidate>,
    /// The one of them to upgrade to.
    pub recommended: Option<Recommended>,
    /// Why the registry could not be asked.
    pub error: Option<String>,
    /// The date of the newest advisory that the program brings.
    pub advisories: &'static str,
}

/// The outcome; it decides about the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// Nothing to do. Exit status 0.
    UpToDate,
    /// There is a newer release for this deployment. Exit status 5.
    UpgradeAvailable,
    /// The current release has known vulnerabilities that are not accepted. Exit status 6.
    Vulnerable,
    /// The registry could not be asked. Exit status 1.
    Unknown,
}

/// The deployment's release.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Current {
    /// Its image.
    pub image: String,
    /// Whether it was built on this host.
    #[serde(skip)]
    pub is_local: bool,
    /// Which release it is; null if its tag does not say.
    pub release: Option<String>,
    /// What is known against it; null if that release is not known.
    pub vulnerabilities: Option<Vec<KnownVulnerability>>,
}

/// A newer release.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Candidate {
    /// Why it is listed.
    pub newest_of: Vec<Newest>,
    /// Which release.
    pub release: String,
    /// Its image.
    pub image: String,
    /// Vulnerabilities of the current one that it does not have.
    pub fixes: Vec<String>,
    /// Those that it has itself.
    pub vulnerabilities: Vec<String>,
    /// Of these, those that are known to be used in attacks.
    pub exploited: Vec<String>,
}

/// Among which releases one is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Newest {
    /// Of the minor line of the current one.
    Line,
    /// Of the line with long-term support.
    LongTerm,
    /// Of all.
    All,
}

/// What to upgrade to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Recommended {
    /// Which release.
    pub release: String,
    /// Its image.
    pub image: String,
}

/// The last report, as far as it is read again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Recorded {
    /// When, in RFC 3339.
    pub checked: String,
    /// What came out.
    pub verdict: Verdict,
    /// The release to upgrade to.
    pub recommended: Option<Recommended>,
    /// Why the registry could not be asked.
    pub error: Option<String>,
    /// Since when no check could ask it, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
}

impl ReleaseReport {
    /// Looks, and keeps the result for `status`.
    pub(crate) async fn gather(host: &Host) -> Result<Self> {
        let settings = Settings::load(&host.paths.env_file())?;
        let image = current(&host.paths, &settings);
        let advisories = Advisories::load(&host.paths)?;
        let tags = tags(host, &image, &settings.proxy).await;
        let report = Self::new(&image, &settings.accepted, &advisories, tags)?;
        report.record(&host.paths)?;
        Ok(report)
    }

    fn new(
        image: &ImageReference,
        accepted: &[String],
        advisories: &Advisories,
        tags: Result<Vec<String>>,
    ) -> Result<Self> {
        let judgement = advisories.judge(image, accepted)?;
        let release = advisories.release(image);
        let (tags, error) = match tags {
            Ok(tags) => (tags, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let mut candidates = Vec::new();
        for (found, newest_of, image) in newer(image, release.as_ref(), &tags, advisories) {
            let judged = advisories.judge(&image, accepted)?;
            candidates.push(Candidate {
                newest_of,
                release: found.to_string(),
                image: image.to_string(),
                fixes: fixes(judgement.as_ref(), judged.as_ref()),
                vulnerabilities: ids(judged.as_ref()),
                exploited: exploited(judged.as_ref()),
            });
        }
        let recommended = recommended(release.as_ref(), &candidates);
        let is_open = judgement
            .as_ref()
            .is_some_and(|judgement| judgement.open().next().is_some());
        let verdict = if is_open {
            Verdict::Vulnerable
        } else if error.is_some() {
            Verdict::Unknown
        } else if recommended.is_some() {
            Verdict::UpgradeAvailable
        } else {
            Verdict::UpToDate
        };
        Ok(Self {
            schema: 1,
            checked: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            verdict,
            current: Current {
                image: image.to_string(),
                is_local: image.is_local(),
                release: release.map(|release| release.to_string()),
                vulnerabilities: judgement.map(|judgement| judgement.vulnerabilities),
            },
            candidates,
            recommended,
            error,
            advisories: advisories::SHIPPED_DATE,
        })
    }

    /// What is kept of it, after `before`.
    fn recorded(&self, before: Option<Recorded>) -> Recorded {
        let since = before.and_then(|before| {
            let first = before.error.map(|_| before.checked);
            before.failing_since.or(first)
        });
        let fails = self.error.is_some();
        let failing_since = fails.then(|| since.unwrap_or_else(|| self.checked.clone()));
        Recorded {
            checked: self.checked.clone(),
            verdict: self.verdict,
            recommended: self.recommended.clone(),
            error: self.error.clone(),
            failing_since,
        }
    }

    fn record(&self, paths: &Paths) -> Result<()> {
        // Without it, nothing was ever brought up here.
        if !paths.state().is_dir() {
            return Ok(());
        }
        // A damaged record is replaced.
        let before = Recorded::load(paths).ok().flatten();
        let recorded = self.recorded(before);
        let mut text = serde_json::to_string_pretty(&recorded).context("can't write the report")?;
        text.push('\n');
        files::write_atomically(&paths.upgrade_check(), text.as_bytes(), 0o600)
    }

    /// All of it in one line, for the journal.
    pub(crate) fn line(&self) -> String {
        let release = match &self.current.release {
            Some(release) => format!("LiteLLM {release}"),
            None => self.current.image.clone(),
        };
        let mut text = match &self.current.vulnerabilities {
            None => format!(
                "{release}: the tag does not name a release, so its vulnerabilities are unknown"
            ),
            Some(findings) => {
                let open = || findings.iter().filter(|finding| !finding.accepted);
                let exploited: Vec<&str> = open()
                    .filter(|finding| finding.exploited)
                    .map(|finding| finding.id.as_str())
                    .collect();
                let known = match open().count() {
                    0 => "no known vulnerability".to_owned(),
                    1 => "1 known vulnerability".to_owned(),
                    count => format!("{count} known vulnerabilities"),
                };
                match exploited.as_slice() {
                    [] => format!("{release} has {known}"),
                    exploited => {
                        format!("{release} has {known}, exploited: {}", exploited.join(", "))
                    }
                }
            }
        };
        if let Some(step) = self.next_step() {
            text.push_str(&format!("; to upgrade: {step}"));
        } else if self.error.is_none() {
            text.push_str("; no newer release for this deployment");
        }
        if let Some(error) = &self.error {
            text.push_str(&format!("; can't list newer releases: {error}"));
        }
        text
    }

    /// How to get the recommended release.
    pub(crate) fn next_step(&self) -> Option<String> {
        let image = &self.recommended.as_ref()?.image;
        Some(if self.current.is_local {
            format!("build an image on {image} (docs/upgrade.md)")
        } else {
            format!("`litellm-units upgrade --image {image}`")
        })
    }

    /// The status to exit with.
    pub(crate) fn exit(&self) -> Exit {
        match self.verdict {
            Verdict::UpToDate => Exit::Success,
            Verdict::UpgradeAvailable => Exit::UpgradeAvailable,
            Verdict::Vulnerable => Exit::Vulnerable,
            Verdict::Unknown => Exit::Failure,
        }
    }
}

impl Recorded {
    /// Until when newer releases could be listed: the last check, or the first one that failed since, in RFC 3339.
    pub(crate) fn listed(&self) -> &str {
        self.failing_since.as_ref().unwrap_or(&self.checked)
    }

    /// The last report of this deployment, if there is one.
    pub(crate) fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "write it again: `litellm-units upgrade --check`";
        files::load_record(&paths.upgrade_check(), hint)
    }
}

/// The gateway's image that the deployment runs, or would.
fn current(paths: &Paths, settings: &Settings) -> ImageReference {
    installed_release::of_unit(paths, Service::Litellm)
        .unwrap_or_else(|| settings.litellm_image.clone())
}

/// The tags of the image's repository, from where Podman pulls it.
async fn tags(host: &Host, image: &ImageReference, proxy: &ProxySettings) -> Result<Vec<String>> {
    let podman = host.podman().await?;
    let proxy = &proxy.open()?;
    let registries = podman.registries().await?;
    let mut problems = Vec::new();
    // `podman search` itself does not follow registries.conf.
    for endpoint in endpoints(image.repository(), &registries) {
        match podman
            .tags(&endpoint.location, endpoint.insecure, proxy)
            .await
        {
            Ok(tags) => return Ok(tags),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    anyhow::ensure!(
        !problems.is_empty(),
        "registries.conf blocks {}",
        image.repository()
    );
    anyhow::bail!("{}", problems.join("; "))
}

/// The newest release of each kind, if it is newer than the current one, by the tag that LiteLLM
/// would give it. What must not run is no candidate.
fn newer(
    image: &ImageReference,
    current: Option<&Release>,
    tags: &[String],
    advisories: &Advisories,
) -> Vec<(Release, Vec<Newest>, ImageReference)> {
    let mut releases: BTreeMap<Release, (usize, ImageReference)> = BTreeMap::new();
    for tag in tags {
        let Some(release) = Release::of_tag(tag).filter(Release::is_general) else {
            continue;
        };
        if current.is_some_and(|current| release <= *current) {
            continue;
        }
        let Ok(candidate) = ImageReference::parse(&format!("{}:{tag}", image.repository())) else {
            continue;
        };
        if advisories.check(&candidate, None).is_err() {
            continue;
        }
        let usual = [
            format!("v{release}"),
            format!("v{release}-stable"),
            release.to_string(),
        ];
        let rank = usual.iter().position(|usual| usual == tag);
        let rank = rank.unwrap_or(usual.len());
        match releases.get(&release) {
            Some((better, _)) if *better <= rank => {}
            _ => {
                releases.insert(release, (rank, candidate));
            }
        }
    }
    let newest =
        |is: &dyn Fn(Line) -> bool| releases.keys().rfind(|release| is(release.line())).cloned();
    let kinds = [
        (
            Newest::Line,
            newest(&|line| current.is_some_and(|current| line == current.line())),
        ),
        (Newest::LongTerm, newest(&|line| line == Line::LONG_TERM)),
        (Newest::All, newest(&|_| true)),
    ];
    releases
        .into_iter()
        .filter_map(|(release, (_, image))| {
            let of: Vec<Newest> = kinds
                .iter()
                .filter(|(_, newest)| newest.as_ref() == Some(&release))
                .map(|(kind, _)| *kind)
                .collect();
            (!of.is_empty()).then_some((release, of, image))
        })
        .collect()
}

/// The release to upgrade to: the newest of the long-term line, unless the deployment is beyond that
/// line. A release with an exploited vulnerability is never recommended.
fn recommended(current: Option<&Release>, candidates: &[Candidate]) -> Option<Recommended> {
    let is_beyond = current.is_some_and(|current| current.line() > Line::LONG_TERM);
    let is_long_term = current.is_some_and(|current| current.line().is_long_term());
    let wanted: &[Newest] = if is_beyond {
        &[Newest::All]
    } else if is_long_term {
        &[Newest::LongTerm, Newest::Line]
    } else {
        &[Newest::LongTerm, Newest::All]
    };
    wanted
        .iter()
        .find_map(|kind| {
            candidates.iter().find(|candidate| {
                candidate.newest_of.contains(kind) && candidate.exploited.is_empty()
            })
        })
        .map(|candidate| Recommended {
            release: candidate.release.clone(),
            image: candidate.image.clone(),
        })
}

/// The vulnerabilities of a release that are not accepted.
fn ids(judgement: Option<&Judgement>) -> Vec<String> {
    judgement
        .into_iter()
        .flat_map(Judgement::open)
        .map(|finding| finding.id.clone())
        .collect()
}

fn exploited(judgement: Option<&Judgement>) -> Vec<String> {
    let exploited = judgement.map(Judgement::exploited).unwrap_or_default();
    exploited.into_iter().map(str::to_owned).collect()
}

/// Those of the current release that another one does not have.
fn fixes(current: Option<&Judgement>, other: Option<&Judgement>) -> Vec<String> {
    let left = ids(other);
    ids(current)
        .into_iter()
        .filter(|id| !left.contains(id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "ghcr.io/berriai/litellm";

    fn report(tag: &str, tags: &[&str]) -> ReleaseReport {
        report_of(&format!("{NAME}:{tag}"), tags)
    }

    fn report_of(image: &str, tags: &[&str]) -> ReleaseReport {
        let image = ImageReference::parse(image).unwrap();
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        ReleaseReport::new(&image, &[], &Advisories::shipped().unwrap(), Ok(tags)).unwrap()
    }

    #[test]
    fn failures_count_from_the_first_one() {
        let image = ImageReference::parse(&format!("{NAME}:v1.108.14")).unwrap();
        let at = |checked: &str, tags| {
            let advisories = Advisories::shipped().unwrap();
            let mut report = ReleaseReport::new(&image, &[], &advisories, tags).unwrap();
            report.checked = checked.to_owned();
            report
        };
        let fails = |checked| at(checked, Err(anyhow::anyhow!("no route to host")));
        let first = fails("1").recorded(None);
        assert_eq!(first.failing_since.as_deref(), Some("1"));
        let second = fails("2").recorded(Some(first.clone()));
        assert_eq!(second.failing_since.as_deref(), Some("1"));
        // As an earlier version has recorded it.
        let before = Recorded {
            failing_since: None,
            ..first
        };
        let second = fails("2").recorded(Some(before));
        assert_eq!(second.failing_since.as_deref(), Some("1"));
        let works = at("3", Ok(Vec::new())).recorded(Some(second));
        assert_eq!(works.failing_since, None);
        let again = fails("4").recorded(Some(works));
        assert_eq!(again.failing_since.as_deref(), Some("4"));
    }

    fn found(report: &ReleaseReport) -> Vec<(&str, &[Newest])> {
        report
            .candidates
            .iter()
            .map(|candidate| {
                let tag = candidate.image.rsplit(':').next().unwrap();
                (tag, candidate.newest_of.as_slice())
            })
            .collect()
    }

    const TAGS: [&str; 16] = [
        "latest",
        "lts",
        "main-stable",
        "sha256-0f.sig",
        "v1.80.11-stable",
        "main-v1.80.15-stable",
        "v1.80.15-stable",
        "v1.80.16-nightly",
        "v1.82.7-stable",
        "v1.108.2",
        "1.108.14",
        "v1.108.14",
        "v1.108.15-rc.1",
        "v1.110.2",
        "v1.110.2-custom",
        "v1.111.0-dev.3",
    ];

    #[test]
    fn an_image_that_was_built_here() {
        let report = report_of("localhost/litellm:1.108.2-1", &TAGS);
        let step = "build an image on ghcr.io/berriai/litellm:v1.108.14 (docs/upgrade.md)";
        assert_eq!(report.next_step().as_deref(), Some(step));
        assert!(report.line().ends_with(step), "{}", report.line());
    }

    #[test]
    fn the_newest_of_each_kind() {
        use Newest::{All, Line, LongTerm};
        let from_old = report("v1.80.11-stable", &TAGS);
        assert_eq!(
            found(&from_old),
            [
                ("v1.80.15-stable", &[Line][..]),
                ("v1.108.14", &[LongTerm][..]),
                ("v1.110.2", &[All][..]),
            ]
        );
        assert_eq!(from_old.verdict, Verdict::Vulnerable);
        assert_eq!(from_old.recommended.unwrap().release, "1.108.14");
        assert!(from_old.candidates[0].fixes.is_empty());
        let current = from_old.current.vulnerabilities.unwrap();
        assert_eq!(from_old.candidates[1].fixes.len(), current.len());
        assert!(from_old.candidates[1].vulnerabilities.is_empty());

        let long_term = report("v1.108.2", &TAGS);
        assert_eq!(
            found(&long_term),
            [
                ("v1.108.14", &[Line, LongTerm][..]),
                ("v1.110.2", &[All][..])
            ]
        );
        assert_eq!(long_term.verdict, Verdict::UpgradeAvailable);
        assert_eq!(long_term.recommended.unwrap().release, "1.108.14");

        // A newer line alone is no upgrade for a deployment of the long-term line.
        let current = report("v1.108.14", &TAGS);
        assert_eq!(found(&current), [("v1.110.2", &[All][..])]);
        assert_eq!(
            (current.verdict, current.recommended),
            (Verdict::UpToDate, None)
        );

        let beyond = report("v1.109.0", &TAGS);
        assert_eq!(beyond.recommended.unwrap().release, "1.110.2");
        let newest = report("v1.110.2", &TAGS);
        assert_eq!(
            (found(&newest), newest.verdict),
            (vec![], Verdict::UpToDate)
        );

        // An exploited release is listed, but not recommended.
        let exploited = report("v1.80.11-stable", &["v1.81.16-stable"]);
        assert_eq!(found(&exploited), [("v1.81.16-stable", &[All][..])]);
        assert_eq!(exploited.recommended, None);

        // What only malicious releases are newer than.
        let stealers = report("v1.82.6", &["v1.82.7-stable", "v1.82.8"]);
        assert_eq!(found(&stealers), []);
    }

    #[test]
    fn a_registry_that_does_not_answer() {
        for (tag, verdict) in [
            ("v1.80.11-stable", Verdict::Vulnerable),
            ("v1.108.14", Verdict::Unknown),
        ] {
            let image = ImageReference::parse(&format!("{NAME}:{tag}")).unwrap();
            let advisories = Advisories::shipped().unwrap();
            let failure = Err(anyhow::anyhow!("no route"));
            let report = ReleaseReport::new(&image, &[], &advisories, failure).unwrap();
            assert_eq!(report.verdict, verdict);
            assert_eq!(report.error.as_deref(), Some("no route"));
        }
    }
}

//! The releases of LiteLLM that the test hosts have (tests/host/host).

use super::host::{TestHost, Who};

/// A release: its image, and the version that it says it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    pub image: &'static str,
    pub version: &'static str,
}

impl Release {
    /// The tag of the image.
    pub(crate) fn tag(self) -> &'static str {
        self.image.rsplit_once(':').unwrap().1
    }
}

/// The one that existing deployments have.
pub(crate) const OLDEST: Release = Release {
    image: "ghcr.io/berriai/litellm:v1.80.11-stable",
    version: "1.80.11",
};

/// What `.env` has to say for it: two of its vulnerabilities are exploited.
pub(crate) const AT_OLDEST: [(&str, &str); 2] = [
    ("LITELLM_IMAGE", OLDEST.image),
    (
        "LITELLM_ACCEPT_VULNERABILITIES",
        "CVE-2026-42271,CVE-2026-59822",
    ),
];

/// Has a new deployment begin with the oldest release.
#[track_caller]
pub(crate) fn begin_with_oldest(host: &TestHost, who: Who) {
    let lines: Vec<String> = AT_OLDEST
        .iter()
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    host.sh(who, r#"mkdir -p "$1"; (umask 077; touch "$1/.env")"#);
    host.write(who, &format!("{}/.env", who.deployment()), &lines.concat());
}

/// The long-term line's, with which new deployments begin.
pub(crate) const DEFAULT: Release = Release {
    image: "ghcr.io/berriai/litellm:v1.108.14",
    version: "1.108.14",
};

/// The default release as a plain manifest; all other images are indexes.
pub(crate) const PLAIN: Release = Release {
    image: "ghcr.io/berriai/litellm:v1.108.14-plain",
    version: "1.108.14",
};

pub(crate) const NEWEST: Release = Release {
    image: "ghcr.io/berriai/litellm:v1.110.2",
    version: "1.110.2",
};

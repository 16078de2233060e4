//! What Docker says of recorded deployments, and the plans of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::images::{qualified, repository};
use super::{Chosen, Inside, Plan};
use crate::error::Result;
use crate::host::docker::{Container, DockerImage};

const DIGEST: &str = "sha256:3b0c77f0c9f2e0f1b119a8189f20c7092aa086bc24005508d222076c12744f2a";

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/import")
        .join(name)
}

pub(super) fn containers(name: &str) -> Vec<Container> {
    let text = std::fs::read(fixture(&format!("{name}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

pub(super) fn image_of(repository: &str) -> DockerImage {
    let text = serde_json::json!({
        "RepoDigests": [format!("{repository}@{DIGEST}")],
        "Config": {"WorkingDir": "/app", "Env": [
            "PATH=/app/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PRISMA_QUERY_ENGINE_BINARY=/usr/local/lib/prisma/query-engine",
            "USE_PRISMA_MIGRATE=True",
            "LITELLM_LOCAL_MODEL_COST_MAP=True"
        ]}
    });
    serde_json::from_value(text).unwrap()
}

pub(super) fn plan(
    all: &[Container],
    directory: &str,
    service: Option<&str>,
    config: Option<&str>,
) -> Result<Plan> {
    let config = config.map(str::to_owned);
    let inside = Inside {
        config,
        ..Inside::default()
    };
    plan_of(all, directory, service, &inside)
}

pub(super) fn plan_of(
    all: &[Container],
    directory: &str,
    service: Option<&str>,
    inside: &Inside,
) -> Result<Plan> {
    let chosen = Chosen::new(all, Path::new(directory), None, service)?;
    let name = repository(&qualified(&chosen.gateway().config.image)).to_owned();
    let is_file = |path: &str| path.contains('.');
    let mut drawn = 0;
    let mut random = |bytes: &mut [u8]| {
        drawn += 1;
        bytes.fill(drawn);
        Ok(())
    };
    let recorded = std::fs::read(fixture("images.json")).unwrap();
    let mut images: BTreeMap<String, DockerImage> = serde_json::from_slice(&recorded).unwrap();
    let gateway = images.entry(chosen.gateway().image.clone());
    gateway.or_insert_with(|| image_of(&name));
    Plan::new(&chosen, &images, inside, &is_file, &mut random)
}

pub(super) fn refusal(error: &anyhow::Error) -> (String, String) {
    let hint = crate::error::hint(error).unwrap_or_default().to_owned();
    (error.to_string(), hint)
}

/// What the notes of a plan are about.
pub(super) fn noted(plan: &Plan) -> String {
    let notes = plan.notes.iter().map(|note| note.what.as_str());
    notes.collect::<Vec<_>>().join("\n")
}

/// Changes what the gateway of `llm` has.
pub(super) fn llm(change: impl Fn(&mut BTreeMap<String, SecretString>)) -> Vec<Container> {
    let mut all = containers("llm");
    for container in &mut all {
        if container.service() == "litellm" {
            change(&mut container.config.env);
        }
    }
    all
}

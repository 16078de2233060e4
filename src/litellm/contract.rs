//! The internals of LiteLLM and its libraries that are used, and whether an image has them.
//!
//! `units/serve.py` and `templates/migrate.py` use functions that LiteLLM does not promise to keep.
//! All of them are listed here. A container of a new image is checked for them before anything is
//! stopped, backed up or migrated.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::{Settings, load_env, place_of};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::paths::Paths;
use crate::image::ImageReference;
use crate::litellm::advisories;
use crate::litellm::config;
use crate::litellm::release::Release as Version;
use crate::random::hex;
use crate::service::Service;

/// The program that runs in the container.
const PROBE: &str = include_str!("../../units/contract.py");
/// The program that says whether a stored value is encrypted with a salt.
pub(crate) const DECRYPTS: &str = include_str!("../../units/decrypts.py");
/// The program that encrypts stored values with another salt. What it needs of LiteLLM is not among [`USES`], since a
/// release without it serves all the same.
pub(crate) const REENCRYPTS: &str = include_str!("../../units/reencrypt.py");
/// The first release that has what it needs.
pub(crate) const REENCRYPTS_FROM: &str = "1.104.0";
/// Timeout of the container; on an idle machine it takes a second.
const TIMEOUT: Duration = Duration::from_secs(180);
/// How long a start waits for that.
const SOON: Duration = Duration::from_secs(30);

/// The first release that refuses to start with a weak master key.
pub(crate) const REFUSES_WEAK_KEYS: &str = "1.104.0";
/// The SHA-256 of the master keys that it refuses: `sk-1234`.
pub(crate) const PUBLICLY_KNOWN_KEYS: &[&str] =
    &["88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b"];
/// The first release that reads credentials encrypted with AES-256-GCM.
pub(crate) const READS_AES_GCM: &str = "1.92.0";

struct Use {
    need: Need,
    /// The first release that has it; `None` means every release that is supported.
    since: Option<&'static str>,
    purpose: &'static str,
}

/// How it is looked for; the JSON is what `units/contract.py` reads.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// A file of a package holds these texts.
    Holds,
    /// A function or class of a module takes these parameters.
    Takes,
}

enum Need {
    Holds(&'static str, &'static [&'static str]),
    Takes(&'static str, &'static str, &'static [&'static str]),
}

impl Need {
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Holds(path, words) => serde_json::json!([Kind::Holds, path, words]),
            Self::Takes(module, name, parameters) => {
                serde_json::json!([Kind::Takes, module, name, parameters])
            }
        }
    }
}

const SERVE: &str = "serve.py serves on the sockets of systemd";
const STOP: &str = "serve.py closes connections without cutting off a request";
const REDIS: &str = "serve.py reports a Redis that has vanished";
const WORKERS: &str = "serve.py serves with several workers";
const MIGRATE: &str = "migrate.py migrates the database";
const KEYS: &str = "litellm-units key makes and changes keys";
const ARGUMENTS: &str = "the database's URL stays out of the arguments of Prisma";

/// What both of uvicorn's protocols for HTTP have.
const CONNECTION: &[&str] = &[
    "self.cycle",
    "self.connections",
    "self.tasks",
    "def shutdown(",
];

/// Everything that is used. Tested with 1.80.11, 1.108.14 and the newest release.
const USES: &[Use] = &[
    every(
        Need::Holds(
            "litellm/proxy/proxy_cli.py",
            &[
                "def run_server(",
                "uvicorn.run(",
                "\"--port\"",
                "\"--config\"",
            ],
        ),
        SERVE,
    ),
    every(Need::Takes("uvicorn", "Config", &["app", "workers"]), SERVE),
    every(
        Need::Takes(
            "redis.asyncio.connection",
            "AbstractConnection.read_response",
            &["timeout"],
        ),
        REDIS,
    ),
    every(
        Need::Holds("redis/asyncio/connection.py", &["self._reader"]),
        REDIS,
    ),
    every(Need::Takes("uvicorn", "Config.load", &[]), STOP),
    every(
        Need::Holds(
            "uvicorn/config.py",
            &[
                "self.loaded_app",
                "self.timeout_keep_alive",
                "self.timeout_graceful_shutdown",
                "self.port",
            ],
        ),
        STOP,
    ),
    every(Need::Takes("uvicorn", "Server", &["config"]), SERVE),
    every(Need::Takes("uvicorn", "Server.run", &["sockets"]), SERVE),
    every(
        Need::Takes("uvicorn", "Server.startup", &["sockets"]),
        SERVE,
    ),
    every(
        Need::Takes("uvicorn", "Server.shutdown", &["sockets"]),
        STOP,
    ),
    every(
        Need::Holds(
            "uvicorn/server.py",
            &[
                "self.servers",
                "self.started",
                "self.server_state",
                "self.connections",
                "self.tasks",
                "self.should_exit",
            ],
        ),
        STOP,
    ),
    every(
        Need::Takes("uvicorn", "Server.handle_exit", &["sig", "frame"]),
        STOP,
    ),
    // By `cycle`, a connection of HTTP is told from a WebSocket.
    every(
        Need::Holds("uvicorn/protocols/http/h11_impl.py", CONNECTION),
        STOP,
    ),
    every(
        Need::Holds("uvicorn/protocols/http/httptools_impl.py", CONNECTION),
        STOP,
    ),
    // Until uvicorn 0.50 it is given the server to run; from 0.51 on each worker makes one.
    every(
        Need::Takes(
            "uvicorn.supervisors.multiprocess",
            "Multiprocess",
            &["config", "sockets"],
        ),
        WORKERS,
    ),
    every(
        Need::Takes("uvicorn.supervisors", "Multiprocess.run", &[]),
        WORKERS,
    ),
    every(
        Need::Holds(
            "uvicorn/supervisors/multiprocess.py",
            &["self.processes", "self.process = "],
        ),
        WORKERS,
    ),
    every(
        Need::Holds(
            "litellm/proxy/db/prisma_client.py",
            &["DISABLE_SCHEMA_UPDATE"],
        ),
        "the gateway leaves the schema to the migration",
    ),
    every(
        Need::Holds(
            "litellm/_logging.py",
            &[
                "logging.getLogger(\"LiteLLM\")",
                "logging.getLogger(\"LiteLLM Router\")",
                "logging.getLogger(\"LiteLLM Proxy\")",
            ],
        ),
        "litellm-units debug sets their level",
    ),
    every(
        Need::Takes(
            "litellm_proxy_extras.utils",
            "ProxyExtrasDBManager.setup_database",
            &["use_migrate"],
        ),
        MIGRATE,
    ),
    Use {
        need: Need::Takes(
            "litellm_proxy_extras.utils",
            "ProxyExtrasDBManager.run_migration_job",
            &["use_migrate", "use_v2_resolver"],
        ),
        since: Some("1.108.0"),
        purpose: MIGRATE,
    },
    every(
        Need::Takes("litellm_proxy_extras.utils", "str_to_bool", &[]),
        MIGRATE,
    ),
    every(
        Need::Holds(
            "litellm_proxy_extras/schema.prisma",
            &["env(\"DATABASE_URL\")"],
        ),
        ARGUMENTS,
    ),
    every(
        Need::Holds(
            "litellm/proxy/health_endpoints/_health_endpoints.py",
            &["\"/health/readiness\"", "\"/health/liveliness\"", "\"db\""],
        ),
        "health checks tell whether the gateway is ready",
    ),
    every(
        Need::Holds(
            "litellm/proxy/management_endpoints/key_management_endpoints.py",
            &[
                "\"/key/generate\"",
                "\"/key/info\"",
                "\"/key/list\"",
                "\"/key/update\"",
                "\"/key/block\"",
                "\"/key/unblock\"",
                "\"/key/delete\"",
            ],
        ),
        KEYS,
    ),
    every(
        Need::Holds(
            "litellm/proxy/management_endpoints/internal_user_endpoints.py",
            &["\"/user/new\"", "auto_create_key"],
        ),
        KEYS,
    ),
    every(
        Need::Holds(
            "litellm/proxy/management_endpoints/team_endpoints.py",
            &["\"/team/info\""],
        ),
        KEYS,
    ),
    every(
        Need::Holds("litellm/proxy/proxy_server.py", &["\"/v2/login\""]),
        "litellm-units ui tries the login",
    ),
];

const fn every(need: Need, purpose: &'static str) -> Use {
    Use {
        need,
        since: None,
        purpose,
    }
}

/// The answer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ProbedRelease {
    /// Its version; `None` if the image has no LiteLLM.
    pub version: Option<String>,
    pub migration: Option<String>,
    /// For each of [`USES`], what is missing; `None` if nothing is.
    missing: Vec<Option<String>>,
    /// The SHA-256 of master keys that it does not start with.
    weak_keys: Vec<String>,
    /// Whether it reads what was encrypted with AES-256-GCM.
    pub reads_aes_gcm: bool,
}

impl ProbedRelease {
    /// What it lacks of [`USES`], one line each.
    fn lacks(&self) -> Vec<String> {
        let version = self.version.as_deref().and_then(Version::of_version);
        let has = |since: &str| {
            version
                .as_ref()
                .is_none_or(|version| version.is_from(since))
        };
        let mut lines: Vec<String> = USES
            .iter()
            .zip(&self.missing)
            .filter(|(used, _)| used.since.is_none_or(has))
            .filter_map(|(used, missing)| Some(format!("{} ({})", missing.as_ref()?, used.purpose)))
            .collect();
        if self.migration.is_none() {
            lines.push(format!(
                "litellm_proxy_extras has no migrations ({MIGRATE})"
            ));
        }
        lines
    }
}

/// Whether the master key is among those with these SHA-256.
pub(crate) fn is_publicly_known<T: AsRef<str>>(key: &str, digests: &[T]) -> bool {
    let digest = hex(&Sha256::digest(key.trim()));
    digests.iter().any(|known| known.as_ref() == digest)
}

/// LiteLLM's version in the image of the gateway's installed unit, for a gateway that does not tell
/// its version (from 1.84 on).
pub(crate) fn installed_version(paths: &Paths) -> Option<String> {
    let reference = installed_release::of_unit(paths, Service::Litellm)?;
    let lock = ImagesLock::load(&paths.images_lock()).ok()?;
    let known = reference
        .digest()
        .and_then(|digest| lock.version_of(digest));
    known.map(str::to_owned).or_else(|| {
        let version = Version::of_tag(reference.tag()?)?;
        reference.is_litellm().then(|| version.to_string())
    })
}

/// Whether a release reads what is encrypted with AES-256-GCM.
pub(crate) fn reads_aes_gcm(version: &str) -> bool {
    Version::of_version(version).is_none_or(|version| version.is_from(READS_AES_GCM))
}

/// Runs [`check`], unless this image was checked before, for all that this litellm-units uses.
///
/// # Errors
/// As [`check`].
pub(crate) async fn check_once(host: &Host, settings: &Settings) -> Result<()> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    if is_checked(&lock, &settings.litellm_image) {
        return Ok(());
    }
    check(host, settings).await.map(drop)
}

/// Runs [`check`] for the installed release, if an earlier litellm-units has checked it, for less or for something else.
/// It only warns: a start or a restart is wanted in any emergency, also on a full disk or with an overloaded host.
pub(crate) async fn check_after_update(host: &Host) {
    match tokio::time::timeout(SOON, check_installed(host)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => host.progress.warn(&format!("{error:#}")),
        Err(_) => host.progress.warn(&format!(
            "it took more than {} s to check that the image fits this litellm-units, which was updated",
            SOON.as_secs()
        )),
    }
}

/// Without a valid `.env` or the image, the start itself says what is wrong.
async fn check_installed(host: &Host) -> Result<()> {
    let Ok(settings) = Settings::load(&host.paths.env_file()) else {
        return Ok(());
    };
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let settings = installed_release::installed(host, &settings, &lock).await?;
    let image = &settings.litellm_image;
    if lock.known_version(image).is_none()
        || is_checked(&lock, image)
        || !host.podman().await?.has_image(&lock.pin(image)).await?
    {
        return Ok(());
    }
    check(host, &settings).await.map(drop)
}

fn is_checked(lock: &ImagesLock, image: &ImageReference) -> bool {
    lock.get(image).is_some_and(|locked| {
        locked.version.is_some() && locked.contract.as_deref() == Some(&*digest())
    })
}

/// The SHA-256 of all that is used and how it is looked for.
fn digest() -> String {
    let mut hash = Sha256::new_with_prefix(PROBE);
    for used in USES {
        let line = serde_json::json!([used.need.json(), used.since]).to_string();
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    hex(&hash.finalize())
}

/// Checks the image that `settings` name, which is in local storage, and records its version.
///
/// # Errors
/// When the image holds no LiteLLM, lacks something that is used, would not start with these settings, or is of a release
/// that must not run. Nothing was changed then.
pub(crate) async fn check(host: &Host, settings: &Settings) -> Result<ProbedRelease> {
    let image = &settings.litellm_image;
    let path = host.paths.images_lock();
    let pinned = ImagesLock::load(&path)?.pin(image);
    host.progress.say(&format!("checking that {image} fits"));
    let release = ask(host, image, &pinned).await?;
    let Some(version) = &release.version else {
        return Err(Failure::new(format!("{image} holds no LiteLLM"))
            .hint(format!(
                "name another image {}",
                place_of(&host.paths, image)
            ))
            .into());
    };
    let lacks = release.lacks();
    if !lacks.is_empty() {
        return Err(Failure::new(format!(
            "{image} (LiteLLM {version}) does not fit this litellm-units:\n  {}",
            lacks.join("\n  ")
        ))
        .hint("choose a release that this version of litellm-units was tested with, or install another version of litellm-units")
        .into());
    }
    let configuration = || std::fs::read_to_string(host.paths.config_file()).unwrap_or_default();
    if let Some(key) = settings.master_key.in_clear()
        && is_publicly_known(key.expose_secret(), &release.weak_keys)
        && !config::permits_weak_master_key(&configuration(), &load_env(&host.paths.env_file())?)
    {
        return Err(Failure::config(format!(
            "LiteLLM {version} does not start with LITELLM_MASTER_KEY, which is publicly known"
        ))
        .hint(config::ANOTHER_KEY)
        .into());
    }
    ImagesLock::change(&path, |lock| {
        let is_news = lock.set_version(image, version);
        if is_news {
            // Without a record, the next command asks the image again.
            advisories::admit_asked(host, settings, lock)?;
        }
        Ok(lock.set_contract(image, &digest()) || is_news)
    })?;
    Ok(release)
}

/// Runs the probe in a container that has neither network nor data nor secrets.
async fn ask(host: &Host, image: &ImageReference, pinned: &str) -> Result<ProbedRelease> {
    let needs: Vec<_> = USES.iter().map(|used| used.need.json()).collect();
    let needs = serde_json::to_string(&needs).context("can't write the contract")?;
    let podman = host.podman().await?;
    let name = format!("litellm-units-contract-{}", std::process::id());
    let seconds = TIMEOUT.as_secs().to_string();
    let words = [
        "run",
        "--rm",
        "--name",
        &name,
        "--pull=never",
        "--network=none",
        "--http-proxy=false",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--timeout",
        &seconds,
        "--entrypoint=python3",
        pinned,
        "-c",
        PROBE,
        &needs,
    ];
    let mut command = podman.command(words);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output())
        .await
        .map_err(|_| {
            Failure::new(format!("{image} was not checked within {seconds} s"))
                .hint("the machine may be busy: run the same command again")
        })?
        .context("can't run podman")?;
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.trim().lines().last().unwrap_or_default();
    match output.status.code() {
        Some(0) => serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{image} was checked, but did not answer: {last}")),
        // There is no such program in the image.
        Some(126 | 127) => Err(Failure::new(format!("{image} holds no LiteLLM: {last}"))
            .hint(format!(
                "name another image {}",
                place_of(&host.paths, image)
            ))
            .into()),
        _ => Err(Failure::new(format!("{image} can't be checked: {last}")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageIdentity;

    #[test]
    fn what_a_release_does_not_have_yet_is_not_missed() {
        let mut release = ProbedRelease {
            version: Some("1.80.11".into()),
            migration: Some("20251220144550_schema_update".into()),
            missing: vec![None; USES.len()],
            weak_keys: Vec::new(),
            reads_aes_gcm: false,
        };
        let at = USES.iter().position(|used| used.since.is_some()).unwrap();
        release.missing[at] = Some("x.job is missing".into());
        assert_eq!(release.lacks(), Vec::<String>::new());
        release.version = Some("1.108.14".into());
        assert_eq!(release.lacks(), [format!("x.job is missing ({MIGRATE})")]);
        release.migration = None;
        assert_eq!(release.lacks().len(), 2);
    }

    #[test]
    fn an_image_is_checked_again_for_another_contract() {
        let image = ImageReference::parse("ghcr.io/berriai/litellm:v1.108.14").unwrap();
        let found = || ImageIdentity::of_digest(format!("sha256:{}", "1".repeat(64)));
        let mut lock = ImagesLock::default();
        assert!(!lock.set_contract(&image, &digest()));
        lock.record(&image, found());
        lock.set_version(&image, "1.108.14");
        // As an earlier litellm-units has recorded it.
        assert!(!is_checked(&lock, &image));
        assert!(lock.set_contract(&image, "0"));
        assert!(!is_checked(&lock, &image));
        assert!(lock.set_contract(&image, &digest()));
        assert!(is_checked(&lock, &image));
        assert!(!lock.set_contract(&image, &digest()));
        // The same image is still checked, another one is not.
        lock.record(&image, found());
        assert!(is_checked(&lock, &image));
        lock.record(
            &image,
            ImageIdentity::of_digest(format!("sha256:{}", "2".repeat(64))),
        );
        assert!(!is_checked(&lock, &image));
    }
}

//! Checks LiteLLM's own configuration before a restart uses it.
//!
//! An error keeps the gateway from starting, would be unsafe, or has LiteLLM ignore a whole section whose name is misspelt.
//! Everything else is a warning: an integration that lacks its key does not keep the others from working. LiteLLM's
//! releases add keys often, so an unknown key is reported only if it resembles a known one.

mod known;
mod words;

use std::collections::HashSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use known::Known;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
pub(crate) use words::is_loopback;
use words::{has_secret, host_of, is_secret, is_variable, nearest, nearest_within, shown};

use super::contract;
use super::release::Release;
use crate::deployment::certificates;
use crate::deployment::database_url::socket_directory;
use crate::deployment::env_file::EnvFile;
use crate::deployment::sealed;
use crate::deployment::settings::{
    Cache, Database, Replicas, Settings, UNUSED_DATABASE, USE_DATABASE, check_address, load_env,
    names_unused_database, parse_env, read_env, text_of,
};
use crate::deployment::snapshot;
use crate::deployment::variables::{self, OTHER_REDIS, REPLICAS, Recipient, SENTINEL_NODES};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::capacity::Capacity;
use crate::host::files::files_below;
use crate::host::paths::Paths;
use crate::output::{bytes, count};
use crate::service::Service;
use crate::yaml::{self, Node, Position, SyntaxError, Value};

/// The sections of settings, apart from lists.
const SECTIONS: [&str; 3] = ["general_settings", "litellm_settings", "router_settings"];

/// LiteLLM's own `database_connection_pool_limit`.
const POOL: usize = 10;
/// Of the 100 connections of PostgreSQL's images, three are for its administrators; migrations and backups need some.
const CONNECTIONS: usize = 90;
/// With less, a process of LiteLLM is soon ended by the kernel: it takes 700 MiB without load.
const LEAST_MEMORY: u64 = 1 << 30;

/// The setting that has LiteLLM delete old logs of requests.
pub(crate) const RETENTION: &str = "maximum_spend_logs_retention_period";
/// How often it does.
pub(crate) const RETENTION_INTERVAL: &str = "maximum_spend_logs_retention_interval";
/// How many batches of 1,000 logs a run deletes at most, and how long it may take.
pub(crate) const RETENTION_BATCHES: &str = "maximum_spend_logs_cleanup_max_batches";
pub(crate) const RETENTION_BUDGET: &str = "maximum_spend_logs_cleanup_run_budget";
/// Has LiteLLM read the settings that the web interface stores.
const STORES: &str = "store_model_in_db";
/// How many warnings `up` and `apply` show.
const SHOWN_WARNINGS: usize = 5;

/// What a reference to a variable begins with.
const REFERENCE: &str = "os.environ/";

/// Set in the container by the image, not by `.env`.
const OF_THE_IMAGE: [&str; 3] = ["HOME", "HOSTNAME", "PATH"];

/// Settings with the name of a file. Any other may have a slash for other reasons.
const FILES: [&str; 4] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "private_key_path",
    "vertex_ai_credentials",
    "vertex_credentials",
];

const ITSELF: &str = "inside the gateway's container this address is the container itself";
const FROM_THE_CONTAINER: &str = "a server on this host is reached as host.containers.internal";

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The gateway must not be restarted with this.
    Error,
    /// It can, but this is probably a mistake.
    Warning,
}

/// One thing that is wrong in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigFinding {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong; never a value that may be secret.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
}

impl ConfigFinding {
    fn new(
        severity: Severity,
        file: &Path,
        at: Position,
        message: impl Into<String>,
        hint: Option<&str>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            line: at.line,
            column: at.column,
            severity,
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// A warning about a variable in the `.env` at `path`.
    fn of_variable(env: &EnvFile, path: &Path, name: &str, message: String, hint: &str) -> Self {
        let line = env.line(name).unwrap_or(1);
        let at = Position { line, column: 1 };
        Self::new(Severity::Warning, path, at, message, Some(hint))
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// `FILE:LINE:COLUMN: error: …`, as compilers print it, with the hint on a line of its own.
impl fmt::Display for ConfigFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            severity,
            message,
            hint,
        } = self;
        write!(
            f,
            "{}:{line}:{column}: {severity}: {message}",
            file.display()
        )?;
        match hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Checks the gateway's configuration of this host's deployment, and the files that it includes.
///
/// # Errors
/// When `.env` is wrong, or a file can't be read.
pub fn check_deployment(host: &Host) -> Result<Vec<ConfigFinding>> {
    findings(&host.paths, &host.paths.env_file())
}

/// The findings in the deployment of `paths`, whose `.env` is meant for `env_path`.
fn findings(paths: &Paths, env_path: &Path) -> Result<Vec<ConfigFinding>> {
    let env = parse_env(&read_env(&paths.env_file())?, env_path)?;
    check_address(&env, env_path)?;
    let settings = Settings::from_env(&env, env_path)?;
    certificates::refuse_invalid(paths)?;
    let path = paths.config_file();
    let text = read(&path)?;
    let mut checker = check_one(&text, &path, &env, &settings);
    checker.references(paths);
    let mut findings = checker.findings;
    findings.extend(weak_master_key(&text, &env, env_path, &settings));
    findings.extend(misspelt(&paths.config(), &env, env_path));
    findings.extend(unverified(&env, env_path));
    findings.extend(other_redis(&env, env_path));
    if names_unused_database(&env) {
        let message = format!("DATABASE_HOST {UNUSED_DATABASE}");
        findings.push(ConfigFinding::of_variable(
            &env,
            env_path,
            "DATABASE_HOST",
            message,
            USE_DATABASE,
        ));
    }
    findings.extend(unreachable(&env, env_path));
    let capacity = Capacity::read();
    findings.extend(of_several(
        &text, &path, &env, env_path, &settings, capacity,
    ));
    for (at, include) in checker.includes {
        let missing = |message: String| {
            let hint = format!(
                "move the file below {} and name it relative to that directory",
                paths.config().display()
            );
            ConfigFinding::new(Severity::Error, &path, at, message, Some(&hint))
        };
        let Some(target) = on_the_host(&include, paths) else {
            findings.push(missing(format!(
                "{include} is outside of the directory that the gateway can read"
            )));
            continue;
        };
        if !target.is_file() {
            findings.push(missing(format!("{} does not exist", target.display())));
            continue;
        }
        let text = read(&target)?;
        let mut included = check_one(&text, &target, &env, &settings);
        included.references(paths);
        findings.extend(included.findings);
    }
    Ok(findings)
}

/// What several gateways lack. `text` is the gateway's configuration, in the file `path`.
fn of_several(
    text: &str,
    path: &Path,
    env: &EnvFile,
    env_path: &Path,
    settings: &Settings,
    capacity: Capacity,
) -> Vec<ConfigFinding> {
    let gateways = settings.replicas.count(capacity);
    if gateways == 1 {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let share = capacity
        .memory
        .saturating_mul(Replicas::memory_percentage(gateways).into())
        / 100;
    let needed = LEAST_MEMORY.saturating_mul(workers(env) as u64);
    if share < needed {
        let message = format!(
            "each of {gateways} gateways may use {} of memory, and needs {} or more",
            bytes(share),
            bytes(needed)
        );
        let hint = "lower LITELLM_REPLICAS or NUM_WORKERS";
        findings.push(ConfigFinding::of_variable(
            env, env_path, REPLICAS, message, hint,
        ));
    }
    let root = yaml::parse(text).ok().flatten();
    if let Some(root) = root.filter(|root| !has_redis(root)) {
        findings.push(ConfigFinding::new(
            Severity::Warning,
            path,
            root.at,
            "without Redis, each of several gateways counts rate limits and budgets for itself",
            Some("add cache_params of type redis to litellm_settings, or redis_host to router_settings"),
        ));
    }
    findings
}

/// Whether the configuration names Redis. Another file may.
fn has_redis(root: &Node) -> bool {
    let is_routed = |name: &&str| setting(root, "router_settings", name).is_some();
    setting(root, "litellm_settings", "cache_params").is_some_and(is_redis)
        || root.get("include").is_some()
        || ["redis_host", "redis_url"].iter().any(is_routed)
}

/// Whether these `cache_params` are of Redis.
fn is_redis(cache: &Node) -> bool {
    let kind = cache.get("type").and_then(Node::text);
    kind.is_none_or(|kind| kind.starts_with("redis") || kind == "valkey")
}

fn setting<'a>(root: &'a Node, section: &str, name: &str) -> Option<&'a Node> {
    root.get(section)?.get(name)
}

/// Every process of a gateway has a pool of connections, and during a handover there is one gateway more.
fn connections(
    root: &Node,
    file: &Path,
    env: &EnvFile,
    settings: &Settings,
    gateways: usize,
) -> Option<ConfigFinding> {
    let (pool, needed) = connection_budget(root, env, gateways)?;
    if needed <= CONNECTIONS || !matches!(settings.database, Database::Local { .. }) {
        return None;
    }
    Some(ConfigFinding::new(
        Severity::Warning,
        file,
        pool_limit(root).unwrap_or(root).at,
        format!(
            "the gateway may need {needed} connections to PostgreSQL, which has about {CONNECTIONS} for it unless max_connections is higher: {pool} for each process, with those of the standby"
        ),
        Some(
            "lower database_connection_pool_limit in general_settings, or LITELLM_REPLICAS or NUM_WORKERS in .env",
        ),
    ))
}

fn pool_limit(root: &Node) -> Option<&Node> {
    setting(root, "general_settings", "database_connection_pool_limit")
}

/// The connections of each process, and of all with those of the standby. `None` if the limit can't be read.
fn connection_budget(root: &Node, env: &EnvFile, gateways: usize) -> Option<(usize, usize)> {
    let pool = match pool_limit(root) {
        Some(limit) => limit.text().and_then(|text| text.parse().ok())?,
        None => POOL,
    };
    let needed = pool
        .saturating_mul(workers(env))
        .saturating_mul(gateways + 1);
    Some((pool, needed))
}

/// How many connections to PostgreSQL the gateways of this host may open, with those of the standby. `None` if a file can't
/// be read.
pub(crate) fn connections_needed(paths: &Paths, settings: &Settings) -> Option<usize> {
    let path = paths.env_file();
    let env = load_env(&path).ok()?;
    let root = parsed(&paths.config_file())?;
    let gateways = settings.replicas.count(Capacity::read());
    connection_budget(&root, &env, gateways).map(|(_, needed)| needed)
}

/// What the web interface has stored in the database.
#[derive(Debug, Default, Deserialize, PartialEq)]
pub(crate) struct StoredSettings {
    /// [`RETENTION`]
    pub retention: Option<String>,
    /// Whether LiteLLM reads such settings, whatever else says so.
    pub store_model_in_db: bool,
}

/// For how long LiteLLM keeps the logs of requests, as it reads the setting. A file that can't be read sets nothing.
pub(crate) fn retention_of_logs(paths: &Paths, stored: StoredSettings) -> Option<String> {
    let env = load_env(&paths.env_file()).ok();
    let root = parsed(&paths.config_file());
    let listed = root.as_ref().and_then(|root| root.get("include"));
    let included = listed
        .map_or(&[][..], Node::items)
        .iter()
        .filter_map(|file| {
            let file = file.text().and_then(|file| on_the_host(file, paths))?;
            parsed(&file)
        });
    let roots: Vec<Rc<Node>> = root.iter().cloned().chain(included).collect();
    // LiteLLM takes a section as a whole from the last file that has it.
    let general = { roots.iter().rev() }.find_map(|root| root.get("general_settings"));
    retention(general, env.as_ref(), stored)
}

fn retention(
    general: Option<&Node>,
    env: Option<&EnvFile>,
    stored: StoredSettings,
) -> Option<String> {
    let setting = |name| general.and_then(|general| general.get(name));
    let variable = |name: &str| env.and_then(|env| env.get(name));
    if let Some(period) = setting(RETENTION) {
        // Even null is the file's, so that the web interface can't set it.
        let text = period.text()?;
        if let Some(name) = text.strip_prefix(REFERENCE) {
            return variable(name).map(str::to_owned);
        }
        // A number is one of days, but not a text of digits.
        let is_number = matches!(&period.value, Value::Scalar { plain: true, .. })
            && text.parse::<u64>().is_ok();
        return Some(text.to_owned() + if is_number { "d" } else { "" });
    }
    let is_true = |text: &str| text.eq_ignore_ascii_case("true");
    let reads_stored = stored.store_model_in_db
        || setting(STORES).and_then(Node::text).is_some_and(is_true)
        || variable("STORE_MODEL_IN_DB").is_some_and(is_true);
    stored.retention.filter(|_| reads_stored)
}

fn parsed(path: &Path) -> Option<Rc<Node>> {
    yaml::parse(&read(path).ok()?).ok().flatten()
}

/// The number of processes in each gateway.
fn workers(env: &EnvFile) -> usize {
    let number = env.get("NUM_WORKERS").and_then(|text| text.parse().ok());
    number.unwrap_or(1)
}

/// Variables of `.env` that resemble a setting, unless a file of the gateway's configuration uses them: itself, one that it
/// includes, or a Python module.
fn misspelt(config: &Path, env: &EnvFile, env_path: &Path) -> Vec<ConfigFinding> {
    let is_no_setting = |name: &str| variables::settings().all(|setting| setting != name);
    let given = env.iter().map(|(name, _)| name);
    let mut names: Vec<(&str, &str)> = { given.filter(|name| is_no_setting(name)) }
        .filter_map(|name| Some((name, nearest(name, variables::settings())?)))
        .collect();
    // A file that can't be read is nobody's use.
    for text in files_below(config)
        .unwrap_or_default()
        .iter()
        .flat_map(std::fs::read)
    {
        let text = String::from_utf8_lossy(&text);
        names.retain(|(name, _)| !has_word(&text, name));
    }
    let finding = |(name, near): (&str, &str)| {
        let message = format!("{name} is no setting of litellm-units");
        let hint = format!("did you mean {near}?");
        ConfigFinding::of_variable(env, env_path, name, message, &hint)
    };
    names.into_iter().map(finding).collect()
}

/// Variables of Redis that the gateway does not get: Sentinels come first, and without `REDIS_HOST` Redis is local.
fn other_redis(env: &EnvFile, env_path: &Path) -> Option<ConfigFinding> {
    let filled = |name: &&str| env.get(name).is_some_and(|value| !value.is_empty());
    let finding = |names: &[&str], used, hint| {
        let first = names.first()?;
        let message = format!("the gateway uses {used}, and not {}", names.join(", "));
        Some(ConfigFinding::of_variable(
            env, env_path, first, message, hint,
        ))
    };
    if filled(&SENTINEL_NODES) {
        let names: Vec<_> = OTHER_REDIS.into_iter().filter(filled).collect();
        return finding(&names, SENTINEL_NODES, "remove them from .env");
    }
    if filled(&"REDIS_HOST") {
        return None;
    }
    // Of a name that is misspelt, another warning says more.
    let has_no_effect = |name: &&str| {
        variables::recipient(name) == Recipient::Redis
            && *name != "REDIS_PASSWORD"
            && nearest(name, variables::settings()).is_none_or(|setting| setting == *name)
    };
    let given = env.iter().map(|(name, _)| name);
    let names: Vec<_> = given.filter(filled).filter(has_no_effect).collect();
    let hint = "for an external Redis, add REDIS_HOST (docs/configuration.md); for the local one, remove them from .env";
    finding(&names, "the local Redis", hint)
}

/// External servers at an address that is the gateway's container itself.
fn unreachable(env: &EnvFile, env_path: &Path) -> Vec<ConfigFinding> {
    let is_unreachable = |name: &&str| {
        let is_own = |at: &str| is_loopback(host_of(at)) && socket_directory(at).is_none();
        env.get(name).is_some_and(is_own)
    };
    let names = ["DATABASE_URL", "REDIS_HOST"].into_iter();
    let findings = names.filter(is_unreachable).map(|name| {
        let message = format!("{name}: {ITSELF}");
        ConfigFinding::of_variable(env, env_path, name, message, FROM_THE_CONTAINER)
    });
    findings.collect()
}

/// libpq's modes that Prisma, and so the gateway, does not know (prisma/prisma-engines, quaint's `postgres/url.rs`).
fn unverified(env: &EnvFile, env_path: &Path) -> Option<ConfigFinding> {
    const NAME: &str = "DATABASE_URL";
    let is_unknown = env.get(NAME)?.contains("sslmode=verify-");
    let message = format!(
        "{NAME}: the gateway does not know sslmode=verify-…, and accepts every certificate"
    );
    let hint = "write sslmode=require&sslaccept=strict";
    is_unknown.then(|| ConfigFinding::of_variable(env, env_path, NAME, message, hint))
}

/// Whether a text has a name that is not a part of a longer one.
fn has_word(text: &str, name: &str) -> bool {
    let is_other = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    text.split(is_other).any(|word| word == name)
}

/// Where a file of the container is, if it can be there: a relative one is in `config/`.
fn on_the_host(file: &str, paths: &Paths) -> Option<PathBuf> {
    if let Some(name) = file.strip_prefix(sealed::FILES) {
        let name = name
            .strip_prefix('/')
            .filter(|name| sealed::is_file_name(name))?;
        return Some(
            paths
                .credential_files()
                .join(format!("{name}{}", sealed::SUFFIX)),
        );
    }
    let file = Path::new(file);
    let (inside, directory) = match file.strip_prefix("/app/files") {
        Ok(inside) => (inside, paths.credential_files()),
        Err(_) => (
            file.strip_prefix("/app/config").unwrap_or(file),
            paths.config(),
        ),
    };
    inside
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        .then(|| directory.join(inside))
}

/// How a master key is replaced.
pub(crate) const ANOTHER_KEY: &str = "while the gateway runs: `litellm-units secrets rotate master`; else write another one into .env, such as `echo sk-$(openssl rand -hex 32)` prints";

/// Finds a publicly known master key, with which LiteLLM does not start. `text` is the gateway's
/// configuration.
fn weak_master_key(
    text: &str,
    env: &EnvFile,
    path: &Path,
    settings: &Settings,
) -> Option<ConfigFinding> {
    const NAME: &str = "LITELLM_MASTER_KEY";
    let key = settings.master_key.in_clear()?;
    if !contract::is_publicly_known(key.expose_secret(), contract::PUBLICLY_KNOWN_KEYS) {
        return None;
    }
    let permitted = permits_weak_master_key(text, env);
    let since = contract::REFUSES_WEAK_KEYS;
    let version = settings.litellm_image.tag().and_then(Release::of_tag);
    let refused = !permitted && version.is_some_and(|version| version.is_from(since));
    let (severity, message) = if refused {
        (
            Severity::Error,
            format!("{NAME} is publicly known; LiteLLM does not start with it from {since} on"),
        )
    } else {
        (Severity::Warning, format!("{NAME} is publicly known"))
    };
    Some(ConfigFinding {
        severity,
        ..ConfigFinding::of_variable(env, path, NAME, message, ANOTHER_KEY)
    })
}

/// Whether LiteLLM starts with a publicly known master key nevertheless.
pub(crate) fn permits_weak_master_key(text: &str, env: &EnvFile) -> bool {
    const PERMITTED: &str = "dangerously_permit_weak_or_unset_master_key";
    let root = yaml::parse(text).ok().flatten();
    root.as_ref()
        .and_then(|root| setting(root, "general_settings", PERMITTED)?.text())
        .or(env.get("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"))
        .is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
}

/// Whether the gateway encrypts credentials with AES-256-GCM. One that can't be read does not.
#[must_use]
pub fn encrypts_with_aes_gcm(paths: &Paths) -> bool {
    let root = parsed(&paths.config_file());
    root.as_ref()
        .and_then(|root| setting(root, "general_settings", "encryption_algorithm")?.text())
        .is_some_and(|algorithm| algorithm.eq_ignore_ascii_case("aes-256-gcm"))
}

/// Refuses a master key with which the release of `settings` does not start.
///
/// # Errors
/// With file and line.
pub fn refuse_weak_master_key(host: &Host, env: &EnvFile, settings: &Settings) -> Result<()> {
    let text = std::fs::read_to_string(host.paths.config_file()).unwrap_or_default();
    let found = weak_master_key(&text, env, &host.paths.env_file(), settings);
    let Some(found) = found.filter(|found| found.severity == Severity::Error) else {
        return Ok(());
    };
    let (file, line) = (found.file.display(), found.line);
    Err(
        Failure::config(format!("{file}, line {line}: {}", found.message))
            .hint(found.hint.unwrap_or_default())
            .into(),
    )
}

/// Refuses a file that LiteLLM can't read at all, or that is empty. What else is wrong with it is for commands: a stricter
/// check must not keep a gateway from starting that started before.
pub(crate) fn refuse_unreadable(path: &Path) -> Result<()> {
    match yaml::parse(&read(path)?) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Failure::config(format!("{} is empty", path.display()))
            .hint("write the configuration, then run `litellm-units apply`")
            .into()),
        Err(SyntaxError { at, message }) => Err(Failure::config(format!(
            "{}:{}:{}: not valid YAML: {message}",
            path.display(),
            at.line,
            at.column
        ))
        .hint("correct the file, then run `litellm-units apply`")
        .into()),
    }
}

/// The last good file, with which a gateway starts that nobody asked for while the current one can't be read. `None` if there
/// is none that serves in its place.
pub(crate) fn substitute(paths: &Paths) -> Option<PathBuf> {
    let good = snapshot::last_good_config(paths)?;
    // Its place is mounted over, so there has to be a file.
    let (current, kept) = (paths.config_file().metadata().ok()?, good.metadata().ok()?);
    // The kept file does not have the group of the current one, and the user of an image may read the file only by its group.
    let is_as_readable = kept.mode() & 0o004 != 0 || kept.gid() == current.gid();
    (current.is_file() && is_as_readable && refuse_unreadable(&good).is_ok()).then_some(good)
}

fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::config(format!("can't read {}: {error}", path.display()))
            .hint("write a first one: `litellm-units generate`")
    })?;
    text_of(bytes, path)
}

/// Checks a text; `file` is for messages only. The findings are in the order of the text.
#[must_use]
pub fn check(text: &str, file: &Path, env: &EnvFile, settings: &Settings) -> Vec<ConfigFinding> {
    check_one(text, file, env, settings).findings
}

/// The findings, and the files that the text refers to.
fn check_one<'a>(
    text: &str,
    file: &'a Path,
    env: &'a EnvFile,
    settings: &'a Settings,
) -> Checker<'a> {
    let given = settings
        .container_secrets(Service::Litellm)
        .into_iter()
        .map(|secret| (secret.name, secret.value.is_empty()))
        .collect();
    let mut checker = Checker {
        file,
        env,
        settings,
        known: Known::of(settings.litellm_image.tag().and_then(Release::of_tag)),
        given,
        findings: Vec::new(),
        seen: HashSet::new(),
        includes: Vec::new(),
        modules: Vec::new(),
        files: Vec::new(),
    };
    match yaml::parse(text) {
        Err(SyntaxError { at, message }) => {
            checker.error(at, format!("not valid YAML: {message}"), None);
        }
        Ok(Some(root)) => checker.document(&root),
        Ok(None) => checker.error(
            Position { line: 1, column: 1 },
            "the file is empty, and LiteLLM does not start without a configuration",
            Some("`litellm-units generate` writes one when there is none"),
        ),
    }
    checker
        .findings
        .sort_by_key(|finding| (finding.line, finding.column));
    checker
}

struct Checker<'a> {
    file: &'a Path,
    env: &'a EnvFile,
    settings: &'a Settings,
    /// What the release of the image reads.
    known: Known,
    /// The variables that the gateway gets, and whether each is empty.
    given: std::collections::HashMap<String, bool>,
    findings: Vec<ConfigFinding>,
    /// Nodes that were checked: an alias refers to a node a second time.
    seen: HashSet<*const Node>,
    includes: Vec<(Position, String)>,
    /// Python modules that LiteLLM imports.
    modules: Vec<(Position, String)>,
    /// Files that the gateway reads.
    files: Vec<(Position, String)>,
}

impl Checker<'_> {
    fn add(
        &mut self,
        severity: Severity,
        at: Position,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.findings
            .push(ConfigFinding::new(severity, self.file, at, message, hint));
    }

    fn error(&mut self, at: Position, message: impl Into<String>, hint: Option<&str>) {
        self.add(Severity::Error, at, message, hint);
    }

    fn warning(&mut self, at: Position, message: impl Into<String>, hint: Option<&str>) {
        self.add(Severity::Warning, at, message, hint);
    }

    /// Finds modules and files that the gateway would not find.
    fn references(&mut self, paths: &Paths) {
        // Another image may have any module.
        let is_published = self.settings.litellm_image.name().contains("/berriai/");
        for (at, module) in std::mem::take(&mut self.modules) {
            let name = file_of_module(&module);
            if paths.config().join(&name).is_file() {
                continue;
            }
            let severity = if is_published {
                Severity::Error
            } else {
                Severity::Warning
            };
            self.add(
                severity,
                at,
                format!("there is no module {module}, and LiteLLM does not start without it"),
                Some(&format!(
                    "copy it to {}",
                    paths.config().join(name).display()
                )),
            );
        }
        for (at, file) in std::mem::take(&mut self.files) {
            if on_the_host(&file, paths).is_some_and(|file| file.is_file()) {
                continue;
            }
            let name = file.rsplit('/').next().unwrap_or_default();
            self.warning(
                at,
                format!("the gateway has no file {}", shown(&file)),
                Some(&format!(
                    "copy it to {}, and write /app/files/{name} here",
                    paths.credential_files().join(name).display()
                )),
            );
        }
        self.findings
            .sort_by_key(|finding| (finding.line, finding.column));
    }

    fn document(&mut self, root: &Rc<Node>) {
        if !matches!(root.value, Value::Mapping(_)) {
            let message =
                "the file holds no mapping of sections such as model_list and general_settings";
            return self.error(root.at, message, None);
        }
        self.top_level(root);
        for section in SECTIONS {
            self.section(root, section);
        }
        self.models(root);
        self.master_key(root);
        self.database_url(root);
        self.connections(root);
        self.pass_through(root);
        self.redis(root);
        self.variables(root);
        self.include(root);
        self.walk(root, &mut Vec::new());
    }

    fn top_level(&mut self, root: &Node) {
        for (key, _) in root.entries() {
            let Some(name) = key.text() else { continue };
            if self.known.has("top_level", name) || name.starts_with("x-") || name.starts_with('.')
            {
                continue;
            }
            if let Some((release, since)) = self.known.later("top_level", name) {
                let message = format!("unknown section {name:?}, which LiteLLM {release} ignores");
                self.warning(key.at, message, Some(&newer(since)));
            } else if let Some(known) = nearest(name, self.known.keys("top_level")) {
                self.error(
                    key.at,
                    format!("unknown section {}, which LiteLLM ignores", shown(name)),
                    Some(&format!("did you mean {known}?")),
                );
            } else if let Some(section) = self.section_of(name) {
                self.warning(
                    key.at,
                    format!("{name:?} is not a section, so LiteLLM ignores it"),
                    Some(&format!("indent it below {section}:")),
                );
            } else {
                self.warning(
                    key.at,
                    format!("unknown section {}, which LiteLLM ignores", shown(name)),
                    Some("known to this version of litellm-units: model_list, litellm_settings, general_settings, router_settings, environment_variables, …"),
                );
            }
        }
    }

    /// The section that a setting belongs to, if it is one.
    fn section_of(&self, name: &str) -> Option<&'static str> {
        SECTIONS
            .into_iter()
            .find(|section| self.known.has(section, name))
    }

    fn section(&mut self, root: &Node, section: &str) {
        let Some(node) = root.get(section).filter(|node| !node.is_null()) else {
            return;
        };
        if !matches!(node.value, Value::Mapping(_)) {
            return self.error(
                node.at,
                format!("{section} is not a mapping of settings"),
                None,
            );
        }
        for (key, _) in node.entries() {
            let Some(name) = key.text() else { continue };
            if self.known.has(section, name) {
                continue;
            }
            if let Some((release, since)) = self.known.later(section, name) {
                let message = format!("{section} has no setting {name:?} in LiteLLM {release}");
                self.warning(key.at, message, Some(&newer(since)));
            } else if let Some(known) = nearest(name, self.known.keys(section)) {
                self.warning(
                    key.at,
                    format!("{section} has no setting {}", shown(name)),
                    Some(&format!("did you mean {known}?")),
                );
            } else if let Some(other) = self.section_of(name) {
                self.warning(
                    key.at,
                    format!("{section} has no setting {name:?}, so LiteLLM ignores it"),
                    Some(&format!("move it to {other}:")),
                );
            }
        }
    }

    fn models(&mut self, root: &Node) {
        let Some(list) = root.get("model_list").filter(|list| !list.is_null()) else {
            return;
        };
        if !matches!(list.value, Value::Sequence(_)) {
            return self.error(
                list.at,
                "model_list is not a list",
                Some("begin each model with a dash: - model_name: …"),
            );
        }
        for (index, model) in list.items().iter().enumerate() {
            if !matches!(model.value, Value::Mapping(_)) {
                self.error(
                    model.at,
                    "not a model: it has neither model_name nor litellm_params",
                    None,
                );
                continue;
            }
            if model.get("model_name").and_then(Node::text).is_none() {
                self.error(
                    model.at,
                    "this model has no model_name",
                    Some("model_name is what clients ask for"),
                );
            }
            match model.get("litellm_params") {
                Some(parameters) if matches!(parameters.value, Value::Mapping(_)) => {
                    if parameters.get("model").and_then(Node::text).is_none() {
                        self.error(
                            parameters.at,
                            "litellm_params has no model, and LiteLLM does not start without it",
                            Some("model is the provider and its model, e.g. openai/gpt-4o"),
                        );
                    }
                    self.parameters(parameters);
                }
                found => self.error(
                    found.map_or(model.at, |found| found.at),
                    "this model has no litellm_params, and LiteLLM does not start without them",
                    Some("at least: litellm_params: {model: PROVIDER/MODEL}"),
                ),
            }
            let first = list.items()[..index].iter().find(|other| {
                ["model_name", "litellm_params"].iter().all(|name| {
                    match (model.get(name), other.get(name)) {
                        (Some(one), Some(two)) => one.same(two),
                        _ => false,
                    }
                })
            });
            if let (Some(first), Some(name)) = (first, model.get("model_name").and_then(Node::text))
            {
                self.warning(
                    model.at,
                    format!("{} is the same as in line {}, name and litellm_params", shown(name), first.at.line),
                    Some("remove one; models of one name share the load only if their litellm_params differ"),
                );
            }
        }
    }

    /// Finds misspelt parameters. The server of a model may take any other, so only a slip of one letter counts.
    fn parameters(&mut self, parameters: &Node) {
        const SECTION: &str = "litellm_params";
        for (key, _) in parameters.entries() {
            let Some(name) = key.text().filter(|name| name.len() > 5) else {
                continue;
            };
            if self.known.has(SECTION, name) || self.known.later(SECTION, name).is_some() {
                continue;
            }
            if let Some(known) = nearest_within(1, name, self.known.keys(SECTION)) {
                self.warning(
                    key.at,
                    format!("LiteLLM does not know the parameter {}", shown(name)),
                    Some(&format!("did you mean {known}?")),
                );
            }
        }
    }

    fn master_key(&mut self, root: &Node) {
        const RIGHT: &str = "write it as master_key: os.environ/LITELLM_MASTER_KEY";
        let Some(key) = setting(root, "general_settings", "master_key") else {
            return;
        };
        match reference(key) {
            Some("LITELLM_MASTER_KEY") => {}
            Some(name) if self.given.contains_key(name) => self.warning(
                key.at,
                format!(
                    "the master key is taken from {name}, but litellm-units uses LITELLM_MASTER_KEY"
                ),
                Some(RIGHT),
            ),
            Some(_) => {}
            None if key.text().is_none_or(str::is_empty) => {
                self.error(
                    key.at,
                    "master_key is empty, so the gateway would serve everyone",
                    Some(RIGHT),
                );
            }
            None => self.error(
                key.at,
                "master_key is in clear text here",
                Some(&format!(
                    "move it to LITELLM_MASTER_KEY in .env, and {RIGHT}"
                )),
            ),
        }
    }

    fn database_url(&mut self, root: &Node) {
        const RIGHT: &str = "write it as database_url: os.environ/DATABASE_URL";
        let Some(url) = setting(root, "general_settings", "database_url") else {
            return;
        };
        match reference(url) {
            Some("DATABASE_URL") => {}
            Some(name) if self.given.contains_key(name) => self.warning(
                url.at,
                format!("the database is taken from {name}, but the migration uses DATABASE_URL"),
                Some(RIGHT),
            ),
            Some(_) => {}
            None if url.text().is_none_or(str::is_empty) => {}
            None => self.error(
                url.at,
                "database_url is in clear text here",
                Some(&format!(
                    "{RIGHT}; for an external database, move the URL to DATABASE_URL in .env"
                )),
            ),
        }
    }

    /// LiteLLM asks for no key at such an endpoint of the configuration, unless it is told to.
    fn pass_through(&mut self, root: &Node) {
        let Some(entrance) = &self.settings.entrance else {
            return;
        };
        let endpoints = setting(root, "general_settings", "pass_through_endpoints");
        let Some(Value::Sequence(endpoints)) = endpoints.map(|node| &node.value) else {
            return;
        };
        let open: Vec<(Position, String)> = { endpoints.iter() }
            .filter(|endpoint| endpoint.get("auth").and_then(Node::text) != Some("true"))
            .filter_map(|endpoint| endpoint.get("path"))
            .filter_map(|path| Some((path.at, path.text()?.to_owned())))
            .filter(|(_, path)| entrance.opens(path))
            .collect();
        for (at, path) in open {
            self.warning(
                at,
                format!(
                    "the entrance of PUBLIC_URL opens {} to everyone, and LiteLLM asks for no key there",
                    shown(&path)
                ),
                Some("add auth: true to it, or choose a path that is none of inference: docs/reverse-proxy.md"),
            );
        }
    }

    fn connections(&mut self, root: &Node) {
        let gateways = self.settings.replicas.count(Capacity::read());
        let found = connections(root, self.file, self.env, self.settings, gateways);
        self.findings.extend(found);
    }

    fn redis(&mut self, root: &Node) {
        const SLOW: &str = "Redis as a URL is slower (by 80 requests/s, says LiteLLM)";
        let mut hosts = Vec::new();
        let cache = setting(root, "litellm_settings", "cache_params");
        if let Some(cache) = cache.filter(|cache| is_redis(cache)) {
            for name in ["url", "redis_url"] {
                if let Some(url) = cache.get(name).filter(|url| !url.is_null()) {
                    self.warning(
                        url.at,
                        SLOW,
                        Some("use host: os.environ/REDIS_HOST, port: os.environ/REDIS_PORT, password: os.environ/REDIS_PASSWORD"),
                    );
                }
            }
            hosts.extend(cache.get("host"));
        }
        if let Some(router) = root.get("router_settings") {
            if let Some(url) = router.get("redis_url").filter(|url| !url.is_null()) {
                self.warning(
                    url.at,
                    SLOW,
                    Some("use redis_host: os.environ/REDIS_HOST, redis_port: os.environ/REDIS_PORT, redis_password: os.environ/REDIS_PASSWORD"),
                );
            }
            hosts.extend(router.get("redis_host"));
        }
        for host in hosts {
            if host.text().is_some_and(is_loopback) {
                let hint = match self.settings.cache {
                    Cache::Local { .. } => "use os.environ/REDIS_HOST",
                    Cache::External => "the host is reached as host.containers.internal",
                };
                self.warning(host.at, ITSELF, Some(hint));
            }
        }
    }

    /// LiteLLM puts these in the place of what the units give.
    fn variables(&mut self, root: &Node) {
        let Some(section) = root.get("environment_variables") else {
            return;
        };
        for (key, value) in section.entries() {
            let Some(name) = key.text() else { continue };
            if reference(value) == Some(name) {
                continue;
            }
            let is_unused = variables::recipient(name) == Recipient::Nobody;
            if is_unused || self.given.contains_key(name) {
                // Another Redis may be meant, and another salt may be the one of what is stored.
                let severity = match name {
                    "LITELLM_MASTER_KEY" | "DATABASE_URL" => Severity::Error,
                    _ => Severity::Warning,
                };
                let hint = if name == "LITELLM_SALT_KEY" {
                    "leave the line: what is stored is encrypted with this value; `secrets rotate salt` has no effect"
                } else {
                    "remove the line; a value of your own belongs into .env"
                };
                let message = format!("{name} is set here, over the value that the gateway gets");
                self.add(severity, key.at, message, Some(hint));
            }
        }
    }

    fn include(&mut self, root: &Node) {
        let Some(include) = root.get("include") else {
            return;
        };
        if !matches!(include.value, Value::Sequence(_)) {
            return self.error(
                include.at,
                "include is not a list of files",
                Some("write it as: include: [FILE]"),
            );
        }
        for item in include.items() {
            if let Some(path) = item.text() {
                self.includes.push((item.at, path.to_owned()));
            }
        }
    }

    /// Checks what can be anywhere: references, secrets and duplicate keys.
    fn walk<'a>(&mut self, node: &'a Rc<Node>, path: &mut Vec<&'a str>) {
        if !self.seen.insert(Rc::as_ptr(node)) {
            return;
        }
        match &node.value {
            Value::Scalar { text, .. } => self.scalar(node, text, path),
            Value::Sequence(items) => items.iter().for_each(|item| self.walk(item, path)),
            Value::Mapping(pairs) => {
                for (index, (key, value)) in pairs.iter().enumerate() {
                    let name = key.text().unwrap_or_default();
                    if let Some((first, _)) =
                        pairs[..index].iter().find(|(other, _)| other.same(key))
                    {
                        self.warning(
                            key.at,
                            format!(
                                "{} is also in line {}; only this one is used",
                                shown(name),
                                first.at.line
                            ),
                            Some("join the two"),
                        );
                    }
                    path.push(name);
                    self.walk(value, path);
                    path.pop();
                }
            }
        }
    }

    fn scalar(&mut self, node: &Node, text: &str, path: &[&str]) {
        let key = path.last().copied().unwrap_or_default();
        if let Some(name) = text.strip_prefix(REFERENCE) {
            return self.reference(node.at, name, path);
        }
        if text.contains(REFERENCE) {
            return self.warning(
                node.at,
                "os.environ/ is replaced only at the beginning of a value",
                Some("put the whole value into a variable of .env"),
            );
        }
        // These two have checks of their own.
        if path == ["general_settings", "master_key"]
            || path == ["general_settings", "database_url"]
        {
            return;
        }
        if is_secret(key, text) {
            let key = if key.is_empty() || has_secret(key) {
                "this value"
            } else {
                key
            };
            self.warning(
                node.at,
                format!("{key} looks like a secret in clear text"),
                Some("move the value to a variable of .env, and write os.environ/NAME here"),
            );
        } else if matches!(key, "api_base" | "base_url") && is_loopback(host_of(text)) {
            self.warning(node.at, ITSELF, Some(FROM_THE_CONTAINER));
        } else if text.contains("${") {
            self.warning(
                node.at,
                "LiteLLM does not replace ${…}",
                Some("put the whole value into a variable of .env, and write os.environ/NAME here"),
            );
        } else if FILES.contains(&key) && text.starts_with('/') {
            self.files.push((node.at, text.to_owned()));
        }
        if is_callable(path) {
            self.modules
                .extend(module(text).map(|module| (node.at, module)));
        }
    }

    fn reference(&mut self, at: Position, name: &str, path: &[&str]) {
        let line = |name| {
            self.env
                .line(name)
                .map(|line| format!(" (line {line})"))
                .unwrap_or_default()
        };
        let severity = if is_required(path) {
            Severity::Error
        } else {
            Severity::Warning
        };
        let key = path.last().copied().unwrap_or_default();
        match self.given.get(name) {
            Some(false) => {
                let url = self.env.get(name).unwrap_or_default();
                if matches!(key, "api_base" | "base_url") && is_loopback(host_of(url)) {
                    let message = format!("{name}{}: {ITSELF}", line(name));
                    self.warning(at, message, Some(FROM_THE_CONTAINER));
                }
            }
            None if OF_THE_IMAGE.contains(&name)
                || variables::recipient(name) == Recipient::Nobody => {}
            // The configuration of `generate` names them, and LiteLLM does without.
            None if OTHER_REDIS.contains(&name) && self.given.contains_key(SENTINEL_NODES) => {}
            // Optional variables are not passed on while they are empty.
            found if found.is_some() || self.env.get(name) == Some("") => {
                let message = format!("{name} is empty in .env{}", line(name));
                self.add(severity, at, message, Some(&format!("set {name} in .env")));
            }
            _ if self.env.get(name).is_some() => {
                let message = format!("{name} is in .env{}, but not for the gateway", line(name));
                let hint = if variables::is_of_programs(name) {
                    "it is for the programs that give values of .env: give the gateway the same value under another name"
                } else {
                    "the gateway gets the database as DATABASE_URL and Redis as REDIS_HOST, REDIS_PORT and REDIS_PASSWORD; an external Redis needs REDIS_HOST in .env"
                };
                self.add(severity, at, message, Some(hint));
            }
            _ if !is_variable(name) => {
                let hint = "write the name of a variable of .env after os.environ/, not its value";
                self.add(
                    severity,
                    at,
                    "os.environ/ is not followed by the name of a variable",
                    Some(hint),
                );
            }
            _ => {
                let near = nearest(
                    name,
                    self.given
                        .keys()
                        .map(String::as_str)
                        .chain(self.env.iter().map(|(name, _)| name)),
                );
                let hint = match near {
                    Some(near) => format!("did you mean {near}? Else add {name}=… to .env"),
                    None => format!("add {name}=… to .env"),
                };
                self.add(severity, at, format!("{name} is not in .env"), Some(&hint));
            }
        }
    }
}

/// Whether LiteLLM does not start while this value is missing, or is open to everyone. Each was tried with 1.108.14.
fn is_required(path: &[&str]) -> bool {
    matches!(
        path,
        ["general_settings", "master_key"]
            | ["general_settings", "alert_to_webhook_url", ..]
            | ["model_list", "model_name"]
            | ["model_list", "litellm_params", "model"]
            | [
                "litellm_settings",
                "cache_params",
                "url" | "qdrant_api_base"
            ]
    )
}

/// Whether LiteLLM imports what this names (`get_instance_fn` in 1.108.14).
fn is_callable(path: &[&str]) -> bool {
    matches!(
        path,
        [
            "litellm_settings",
            "callbacks" | "success_callback" | "failure_callback" | "post_call_rules"
        ] | ["litellm_settings", "custom_provider_map", "custom_handler"]
            | ["guardrails", "litellm_params", "guardrail"]
            | [
                "general_settings",
                "custom_auth"
                    | "custom_key_generate"
                    | "custom_key_policy"
                    | "custom_key_update"
                    | "custom_sso"
                    | "custom_team_metadata_validate"
                    | "custom_ui_sso_sign_in_handler"
            ]
    )
}

/// The module of `MODULE.NAME`, unless it is LiteLLM's own or comes from an object store.
fn module(text: &str) -> Option<String> {
    let (module, _) = text.rsplit_once('.')?;
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let package = module.split('.').next().unwrap_or_default();
    (module.split('.').all(is_name) && !package.starts_with("litellm")).then(|| module.to_owned())
}

fn file_of_module(module: &str) -> String {
    module.replace('.', "/") + ".py"
}

/// The files of the Python modules that a configuration has LiteLLM import, relative to the directory of the configuration.
/// Nothing of a text that is not YAML.
pub(crate) fn modules(text: &str) -> Vec<String> {
    fn walk<'a>(node: &'a Node, path: &mut Vec<&'a str>, depth: usize, found: &mut Vec<String>) {
        if depth > 10 {
            return;
        }
        match &node.value {
            Value::Scalar { text, .. } if is_callable(path) => {
                found.extend(module(text).as_deref().map(file_of_module));
            }
            Value::Scalar { .. } => {}
            Value::Sequence(items) => {
                for item in items {
                    walk(item, path, depth + 1, found);
                }
            }
            Value::Mapping(_) => {
                for (key, value) in node.entries() {
                    path.push(key.text().unwrap_or_default());
                    walk(value, path, depth + 1, found);
                    path.pop();
                }
            }
        }
    }
    let mut found = Vec::new();
    if let Some(root) = yaml::parse(text).ok().flatten() {
        walk(&root, &mut Vec::new(), 0, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

/// The variable that a value refers to.
fn reference(node: &Node) -> Option<&str> {
    node.text()?.strip_prefix(REFERENCE)
}

fn newer(since: &str) -> String {
    format!("LiteLLM {since} has it: `litellm-units upgrade`, or remove it")
}

/// Refuses a gateway configuration with errors, before any unit is touched.
///
/// # Errors
/// With every error that was found.
pub fn refuse_errors(host: &Host) -> Result<()> {
    let findings = check_deployment(host)?;
    let errors: Vec<String> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| format!("\n  {finding}"))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::config(format!(
        "the gateway would not work with this configuration, so nothing was restarted:{}",
        errors.concat()
    ))
    .hint("correct the file; see all findings: `litellm-units config check`")
    .into())
}

/// Shows the warnings about the configuration, without those about the one with which the gateway last was ready: they were
/// shown then.
pub(crate) fn warn(host: &Host) -> Result<()> {
    let paths = &host.paths;
    let mut found = check_deployment(host)?;
    if let Some(good) = snapshot::last_good(paths) {
        let kept = Paths {
            deployment: snapshot::directory(paths, &good),
            ..paths.clone()
        };
        // One that can't be read any more has nothing to compare with.
        let known = findings(&kept, &paths.env_file()).unwrap_or_default();
        found.retain(|finding| {
            let is_same = |other: &ConfigFinding| {
                let place = other.file.strip_prefix(&kept.deployment);
                let file = place.map_or(other.file.clone(), |place| paths.deployment.join(place));
                file == finding.file
                    && without_lines(&other.message) == without_lines(&finding.message)
            };
            !known.iter().any(is_same)
        });
    }
    for line in warnings(&found) {
        host.progress.warn(&line);
    }
    Ok(())
}

/// Without the numbers of lines, which another edit of the file changes.
fn without_lines(message: &str) -> String {
    let parts = message.split("line ");
    parts
        .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()))
        .collect()
}

/// A line for each of the first warnings.
fn warnings(findings: &[ConfigFinding]) -> Vec<String> {
    let is_warning = |finding: &&ConfigFinding| finding.severity == Severity::Warning;
    let mut warnings = findings.iter().filter(is_warning);
    let mut lines: Vec<String> = { warnings.by_ref() }
        .take(SHOWN_WARNINGS)
        .map(|finding| {
            let file = finding.file.display();
            let hint = finding.hint.as_ref().map(|hint| format!("; {hint}"));
            let hint = hint.unwrap_or_default();
            format!("{file}, line {}: {}{hint}", finding.line, finding.message)
        })
        .collect();
    let more = warnings.count();
    if more > 0 {
        lines.push(format!(
            "{} about the configuration; see `litellm-units config check`",
            count(more, "more warning")
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::host::paths::Scope;

    #[test]
    fn the_last_good_file_serves_if_it_is_as_readable() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            deployment: root.path().join("litellm-server"),
            ..Paths::elsewhere(Scope::System)
        };
        std::fs::create_dir_all(paths.config()).unwrap();
        std::fs::write(paths.env_file(), "A=1\n").unwrap();
        let file = paths.config_file();
        let write = |text: &str, mode: u32| {
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!(substitute(&paths), None);
        for (mode, text, is_used) in [
            (0o644, "good: 1\n", true),
            (0o600, "good: 2\n", true),
            (0o644, "bad: [\n", false),
        ] {
            write(text, mode);
            let kept = snapshot::keep(&paths).unwrap();
            snapshot::mark_good(&paths, &kept).unwrap();
            write("half: [\n", mode);
            assert_eq!(substitute(&paths).is_some(), is_used, "{text}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(substitute(&paths), None);
    }

    #[test]
    fn settings_that_are_nearly_ours() {
        let env = EnvFile::parse(
            "LITELLM_REPLICA=2\nREDIS_MAX_MEMORY=1gb\nBACKUP_URI=file:///srv\nREDIS_URL=x\nREDIS_DB=1\nREDIS_SSL=true\n\
             DATABASE_HOST=a\nDATABASE_USER=b\nLITELLM_MODE=x\nLITELLM_LOG=INFO\nLITELLM_LICENSE=x\nPOSTGRES_HOST=x\n\
             BACKUP_AWS_REGION=x\nLITELLM_REPLICAS=2\nNOTIFY_URLS=x\nOPENAI_API_KEY=x\nMETRICS_FILES=x\n",
        )
        .unwrap();
        let config = tempfile::tempdir().unwrap();
        std::fs::write(config.path().join("a.yaml"), "key: os.environ/NOTIFY_URLS").unwrap();
        let found = misspelt(config.path(), &env, Path::new(".env"));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                ".env:1:1: warning: LITELLM_REPLICA is no setting of litellm-units\n  hint: did you mean LITELLM_REPLICAS?",
                ".env:2:1: warning: REDIS_MAX_MEMORY is no setting of litellm-units\n  hint: did you mean REDIS_MAXMEMORY?",
                ".env:3:1: warning: BACKUP_URI is no setting of litellm-units\n  hint: did you mean BACKUP_URL?",
                ".env:17:1: warning: METRICS_FILES is no setting of litellm-units\n  hint: did you mean METRICS_FILE?",
            ]
        );
    }

    #[test]
    fn servers_that_are_the_container_itself() {
        let env = "DATABASE_URL=postgresql://a:b@127.0.0.1:1/c\nREDIS_HOST=localhost\n";
        let found = unreachable(&EnvFile::parse(env).unwrap(), Path::new(".env"));
        let lines: Vec<_> = found.iter().map(|one| one.line).collect();
        assert_eq!(lines, [1, 2]);
        for server in ["db/c", "localhost/c?host=/run/postgresql"] {
            let env = format!("DATABASE_URL=postgresql://a:b@{server}\nREDIS_HOST=\n");
            let found = unreachable(&EnvFile::parse(&env).unwrap(), Path::new(".env"));
            assert!(found.is_empty(), "{server}");
        }
    }

    #[test]
    fn a_warning_stays_the_same_when_lines_are_added() {
        let finding = |env: &str| {
            let env = format!(
                "{env}LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nPOSTGRES_PASSWORD=p\nREDIS_PASSWORD=r\nOPENAI_API_KEY=\n"
            );
            let env = EnvFile::parse(&env).unwrap();
            let path = Path::new(".env");
            let settings = Settings::from_env(&env, path).unwrap();
            let text = "model_list:\n- model_name: a\n  litellm_params:\n    model: openai/a\n    api_key: os.environ/OPENAI_API_KEY\n";
            let found = check_one(text, Path::new("a.yaml"), &env, &settings).findings;
            let message = |found: ConfigFinding| found.message;
            let empty = found.into_iter().map(message);
            let mut empty = empty.filter(|message| message.contains("is empty"));
            empty.next().unwrap()
        };
        let (before, after) = (finding(""), finding("# a new line\n"));
        assert_eq!(before, "OPENAI_API_KEY is empty in .env (line 5)");
        assert_eq!(after, "OPENAI_API_KEY is empty in .env (line 6)");
        assert_eq!(without_lines(&before), without_lines(&after));
        assert_ne!(without_lines("a (line 4)"), without_lines("b (line 4)"));
    }

    #[test]
    fn what_other_files_use_is_not_misspelt() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("hooks");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("own.py"), "os.environ['DATABASE_SSL']").unwrap();
        std::fs::write(directory.path().join("cert.der"), [0xff, 0xfe]).unwrap();
        let env = EnvFile::parse("DATABASE_SSL=x\nREDIS_PORT2=x\n").unwrap();
        let found = misspelt(directory.path(), &env, Path::new(".env"));
        let lines: Vec<usize> = found.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [2]);
    }

    #[test]
    fn modules_that_are_imported() {
        let text = "litellm_settings:\n  callbacks: [own.hooks.handler, prometheus, own.hooks.other]\n  drop_params: true\n\
                    general_settings: {custom_auth: auth.user, master_key: a.b}\n\
                    guardrails:\n- litellm_params: {guardrail: guard.Own}\n";
        assert_eq!(modules(text), ["auth.py", "guard.py", "own/hooks.py"]);
        assert_eq!(modules("a: ["), [""; 0]);
    }

    #[test]
    fn endpoints_without_a_key_are_named() {
        let text = "general_settings:\n  pass_through_endpoints:\n  - path: /deepgram/v1/listen\n    target: https://a\n\
                    \x20 - {path: /v1/rerank, target: https://a, auth: true}\n  - {path: /own, target: https://a}\n";
        let lines = |env: &str| -> Vec<usize> {
            let env = EnvFile::parse(&format!("LITELLM_MASTER_KEY=sk-1\nLITELLM_SALT_KEY=s\nLITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nPOSTGRES_USER=a\nPOSTGRES_PASSWORD=b\nPOSTGRES_DB=c\nREDIS_PASSWORD=d\n{env}")).unwrap();
            let settings = Settings::from_env(&env, Path::new(".env")).unwrap();
            let checker = check_one(text, Path::new("a.yaml"), &env, &settings);
            let found = checker.findings.into_iter();
            let found = found.filter(|finding| finding.message.starts_with("the entrance"));
            found.map(|finding| finding.line).collect()
        };
        assert_eq!(lines("PUBLIC_URL=https://llm.example.com\n"), [3]);
        assert_eq!(lines(""), [0; 0]);
    }

    #[test]
    fn a_redis_that_is_not_used_is_named() {
        let finding = |env: &str| other_redis(&EnvFile::parse(env).unwrap(), Path::new(".env"));
        assert_eq!(
            finding("A=1\nREDIS_URL=rediss://a\n").unwrap().to_string(),
            ".env:2:1: warning: the gateway uses the local Redis, and not REDIS_URL\n  hint: for an external Redis, add REDIS_HOST (docs/configuration.md); for the local one, remove them from .env"
        );
        let others = "REDIS_PASSWORD=a\nREDIS_MAXMEMORY=1gb\nREDIS_MAX_MEMORY=1gb\nREDIS_PORT=1\nREDIS_NAMESPACE=a\nREDIS_DB=\nREDIS_SSL=true\n";
        let found = finding(others).unwrap();
        assert_eq!(
            (found.line, &*found.message),
            (
                4,
                "the gateway uses the local Redis, and not REDIS_PORT, REDIS_NAMESPACE, REDIS_SSL"
            )
        );
        assert!(finding("REDIS_URL=\n").is_none());
        assert!(finding("REDIS_URL=a\nREDIS_HOST=b\n").is_none());
        assert_eq!(
            finding("REDIS_SENTINEL_NODES=[]\nREDIS_HOST=b\n")
                .unwrap()
                .to_string(),
            ".env:2:1: warning: the gateway uses REDIS_SENTINEL_NODES, and not REDIS_HOST\n  hint: remove them from .env"
        );
        assert!(finding("REDIS_SENTINEL_NODES=[]\nREDIS_SERVICE_NAME=b\n").is_none());
    }

    #[test]
    fn modes_of_libpq_are_named() {
        let line = |mode: &str| {
            let env = EnvFile::parse(&format!("A=1\nDATABASE_URL=postgresql://a:b@c/d?{mode}\n"))
                .unwrap();
            unverified(&env, Path::new(".env")).map(|finding| finding.line)
        };
        assert_eq!(line("schema=x&sslmode=verify-full"), Some(2));
        assert_eq!(line("sslmode=verify-ca"), Some(2));
        assert_eq!(line("sslmode=require&sslaccept=strict"), None);
        assert!(
            unverified(
                &EnvFile::parse("A=sslmode=verify-ca\n").unwrap(),
                Path::new("")
            )
            .is_none()
        );
    }

    #[test]
    fn only_some_warnings_are_shown() {
        let finding = |line, severity| ConfigFinding {
            file: "a.yaml".into(),
            line,
            column: 3,
            severity,
            message: "odd".into(),
            hint: (line == 1).then(|| "remove it".into()),
        };
        let mut findings = vec![finding(9, Severity::Error)];
        findings.extend((1..=7).map(|line| finding(line, Severity::Warning)));
        assert_eq!(
            warnings(&findings),
            [
                "a.yaml, line 1: odd; remove it",
                "a.yaml, line 2: odd",
                "a.yaml, line 3: odd",
                "a.yaml, line 4: odd",
                "a.yaml, line 5: odd",
                "2 more warnings about the configuration; see `litellm-units config check`",
            ]
        );
        assert_eq!(warnings(&findings[..2]), ["a.yaml, line 1: odd; remove it"]);
    }

    fn weak(image: &str, key: &str, config: &str, more: &str) -> Option<(Severity, usize)> {
        let text = format!(
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:{image}\nLITELLM_MASTER_KEY={key}\nPOSTGRES_PASSWORD=p\nREDIS_PASSWORD=r\n{more}"
        );
        let env = EnvFile::parse(&text).unwrap();
        let path = Path::new(".env");
        let settings = Settings::from_env(&env, path).unwrap();
        weak_master_key(config, &env, path, &settings)
            .map(|finding| (finding.severity, finding.line))
    }

    #[test]
    fn retention_as_litellm_reads_it() {
        let env = EnvFile::parse("KEPT=12h\n").unwrap();
        let storing = EnvFile::parse("STORE_MODEL_IN_DB=True\n").unwrap();
        let stored = |store_model_in_db| StoredSettings {
            retention: Some("7d".into()),
            store_model_in_db,
        };
        let period = |value: &str| format!("{RETENTION}: {value}");
        for (general, env, stored, expected) in [
            (period("30d"), &env, stored(true), Some("30d")),
            (period("30"), &env, stored(true), Some("30d")),
            (period("\"30\""), &env, stored(true), Some("30")),
            (period("os.environ/KEPT"), &env, stored(true), Some("12h")),
            (period("os.environ/OTHER"), &env, stored(true), None),
            (period("null"), &env, stored(true), None),
            ("a: b".into(), &env, stored(false), None),
            ("a: b".into(), &env, stored(true), Some("7d")),
            ("a: b".into(), &storing, stored(false), Some("7d")),
            (
                "store_model_in_db: true".into(),
                &env,
                stored(false),
                Some("7d"),
            ),
            ("store_model_in_db: false".into(), &env, stored(false), None),
            ("a: b".into(), &storing, StoredSettings::default(), None),
        ] {
            let root = yaml::parse(&general).unwrap().unwrap();
            let found = retention(Some(&root), Some(env), stored);
            assert_eq!(found.as_deref(), expected, "{general}");
        }
    }

    #[test]
    fn what_several_gateways_lack() {
        let cached = "litellm_settings:\n  cache_params: {type: redis}\n";
        let router = "router_settings: {redis_host: redis}\n";
        let memory = |share: &str, needed: &str| {
            format!(
                ".env:5:1: warning: each of 4 gateways may use {share} of memory, and needs {needed} or more\n  hint: lower LITELLM_REPLICAS or NUM_WORKERS\n"
            )
        };
        let redis = "c.yaml:1:1: warning: without Redis, each of several gateways counts rate limits and budgets for itself\n  hint: add cache_params of type redis to litellm_settings, or redis_host to router_settings\n".to_owned();
        for (config, more, gibibytes, expected) in [
            ("model_list: []\n", "", 1, String::new()),
            (cached, "LITELLM_REPLICAS=4\n", 5, String::new()),
            (router, "LITELLM_REPLICAS=4\n", 5, String::new()),
            (
                "include: [a.yaml]\n",
                "LITELLM_REPLICAS=4\n",
                5,
                String::new(),
            ),
            (
                cached,
                "LITELLM_REPLICAS=4\n",
                4,
                memory("819 MiB", "1.0 GiB"),
            ),
            (
                cached,
                "LITELLM_REPLICAS=4\nNUM_WORKERS=2\n",
                8,
                memory("1.5 GiB", "2.0 GiB"),
            ),
            ("model_list: []\n", "LITELLM_REPLICAS=4\n", 5, redis.clone()),
            (
                "litellm_settings: {cache_params: {type: local}}\n",
                "LITELLM_REPLICAS=4\n",
                5,
                redis,
            ),
        ] {
            let text = format!(
                "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-long-enough\nPOSTGRES_PASSWORD=p\nREDIS_PASSWORD=r\n{more}"
            );
            let env = EnvFile::parse(&text).unwrap();
            let path = Path::new(".env");
            let settings = Settings::from_env(&env, path).unwrap();
            let capacity = Capacity {
                processors: 8,
                memory: gibibytes << 30,
            };
            let found = of_several(config, Path::new("c.yaml"), &env, path, &settings, capacity);
            let said: String = found.iter().map(|finding| format!("{finding}\n")).collect();
            assert_eq!(said, expected, "{config}{more}{gibibytes}");
        }
    }

    #[test]
    fn weak_master_keys() {
        let permitted = "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY=true\n";
        let setting = "general_settings:\n  dangerously_permit_weak_or_unset_master_key: true\n";
        for (image, key, config, more, expected) in [
            ("v1.108.14", "sk-1234", "", "", Some((Severity::Error, 2))),
            (
                "v1.80.11-stable",
                "sk-1234",
                "",
                "",
                Some((Severity::Warning, 2)),
            ),
            (
                "v1.108.14",
                "sk-1234",
                "",
                permitted,
                Some((Severity::Warning, 2)),
            ),
            (
                "v1.108.14",
                "sk-1234",
                setting,
                "",
                Some((Severity::Warning, 2)),
            ),
            ("v1.108.14", "sk-12345", "", "", None),
        ] {
            assert_eq!(
                weak(image, key, config, more),
                expected,
                "{image} {key} {config}{more}"
            );
        }
    }
}

//! The validated settings of one deployment, read from its `.env`.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};

use super::database_url;
use super::entrance::Entrance;
use super::env_file::EnvFile;
use super::external::Lookup;
use super::listen::{Listen, ListenAddress};
use super::sealed::{self, SecretValue, Vault};
use super::variables::{
    self, ACCEPT_VULNERABILITIES, BACKUP_BY, BACKUP_PREFIX, BACKUP_WAL, DRAIN_TIMEOUT, LISTEN,
    LISTEN_GROUP, LISTEN_WITHOUT_TLS, LITELLM_METRICS_PORT, LIVENESS_TIMEOUT, METRICS_FILE,
    METRICS_LISTEN, NOTIFY_COMMAND, NOTIFY_URL, PUBLIC_ADMIN_FROM, PUBLIC_URL, RECYCLE_AT,
    REDIS_MEMORY, REPLICAS, ROOT_PATH, Recipient, SENTINEL_NODES, USER_NAMESPACES, WORKERS,
    is_name, is_of_programs, may_be_external, may_be_sealed,
};
use crate::error::{Failure, Result};
use crate::host::capacity::Capacity;
use crate::host::outgoing_proxy::{self, OutgoingProxy};
use crate::host::paths::Paths;
use crate::image::ImageReference;
use crate::service::{Instance, Service};

/// The image that a new deployment is pinned to.
pub const DEFAULT_LITELLM_IMAGE: &str = "ghcr.io/berriai/litellm:v1.108.14";
/// Used when `.env` has no `POSTGRES_IMAGE`.
pub const DEFAULT_POSTGRES_IMAGE: &str = "docker.io/library/postgres:17.7";
/// Used when `.env` has no `REDIS_IMAGE`.
pub const DEFAULT_REDIS_IMAGE: &str = "docker.io/library/redis:7.4.6";
/// Redis' `maxmemory` without `REDIS_MAXMEMORY` in `.env`.
pub const DEFAULT_REDIS_MEMORY: &str = "512mb";
/// The name of PostgreSQL's role and of its database in a new deployment.
pub const DEFAULT_POSTGRES_NAME: &str = "litellm";

/// Less could end a gateway that is only busy.
const LIVENESS_RANGE: std::ops::RangeInclusive<u32> = 10..=86_400;

/// The least lets a short answer end; a handover takes as long as the most.
const DRAIN_RANGE: std::ops::RangeInclusive<u32> = 10..=3600;
/// Without `LITELLM_DRAIN_TIMEOUT` in `.env`.
const DEFAULT_DRAIN_TIMEOUT: u32 = 60;
/// Below, a gateway that has just started could be meant.
const RECYCLE_RANGE: std::ops::RangeInclusive<u8> = 30..=95;
/// Without `LITELLM_RECYCLE_AT` in `.env`.
const DEFAULT_RECYCLE_MARK: MemoryMark = MemoryMark::Percentage(80);

/// What LiteLLM advises to have for each of its processes.
const MEMORY_OF_A_WORKER: u64 = 4 << 30;
/// The percentage of the machine's memory that all gateways together may use.
const MEMORY_OF_GATEWAYS: usize = 80;

/// Servers that the gateway never reaches by a proxy: its own processes, those beside it, and this host.
const LOCAL_SERVERS: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "host.containers.internal",
    "postgres",
    "redis",
];

/// The most that one value may have, in bytes: a quarter of Podman's limit of 512,000 for one
/// secret, since every byte of Redis' password takes four, and less than the kernel's 128 KiB for
/// one variable with its name.
const VALUE_LIMIT: usize = 512_000 / 4 - 64;

/// The gateway's database.
#[derive(Clone, Debug)]
pub enum Database {
    /// The PostgreSQL that runs beside the gateway.
    Local {
        /// Its image.
        image: ImageReference,
        /// The role that owns the database.
        user: String,
        /// That role's password.
        password: SecretValue,
        /// The database.
        name: String,
    },
    /// An external server: `DATABASE_URL` in `.env`.
    External {
        /// As written.
        url: SecretValue,
    },
}

/// The gateway's cache.
#[derive(Clone, Debug)]
pub enum Cache {
    /// The Redis that runs beside the gateway.
    Local {
        /// Its image.
        image: ImageReference,
        /// What `requirepass` is set to.
        password: SecretValue,
        /// What `maxmemory` is set to.
        memory: String,
    },
    /// An external server: `REDIS_HOST` or `REDIS_SENTINEL_NODES` in `.env`.
    External,
}

/// How many gateways share the address: `LITELLM_REPLICAS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// This number.
    Count(usize),
    /// As many as the machine has processors and memory for, if each has this number of processes.
    Auto {
        /// `NUM_WORKERS`.
        workers: usize,
    },
}

impl Replicas {
    /// How many there are on a machine of this capacity.
    #[must_use]
    pub fn count(self, capacity: Capacity) -> usize {
        match self {
            Self::Count(count) => count,
            Self::Auto { workers } => {
                // To the nearest: a machine of 8 GiB shows 7.7.
                let memory = capacity.memory.saturating_add(MEMORY_OF_A_WORKER / 2);
                let room = usize::try_from(memory / MEMORY_OF_A_WORKER);
                let processes = capacity.processors.min(room.unwrap_or(usize::MAX));
                (processes.min(Instance::MOST) / workers.max(1)).max(1)
            }
        }
    }

    /// The percentage of the machine's memory that each gateway may use.
    #[must_use]
    pub fn memory_percentage(gateways: usize) -> u8 {
        let share = MEMORY_OF_GATEWAYS / gateways.max(1);
        u8::try_from(share).unwrap_or(u8::MAX)
    }
}

/// The memory of a gateway above which it is replaced: `LITELLM_RECYCLE_AT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMark {
    /// Of what its unit may use.
    Percentage(u8),
    /// In bytes.
    Bytes(u64),
}

impl MemoryMark {
    /// In bytes, for a unit with this limit. `None` for a part of no limit.
    #[must_use]
    pub fn of_limit(self, limit: Option<u64>) -> Option<u64> {
        match self {
            Self::Percentage(part) => limit.map(|limit| limit / 100 * u64::from(part)),
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

/// How a container receives a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretTarget {
    /// As an environment variable.
    Variable,
    /// As a file under `/run/secrets`, readable by the container's user alone.
    File,
}

/// One value for one container.
#[derive(Clone, Debug)]
pub struct ContainerSecret {
    /// The variable's or file's name.
    pub name: String,
    /// How it gets there.
    pub target: SecretTarget,
    /// What it is.
    pub value: SecretValue,
}

/// The proxy for requests to other hosts: that of the gateway, this program and the Podman that it runs.
#[derive(Clone, Debug, Default)]
pub struct ProxySettings {
    /// `HTTP_PROXY` or `ALL_PROXY`: a URL, which may hold a password.
    http: Option<SecretValue>,
    /// `HTTPS_PROXY` or `ALL_PROXY`: the same.
    https: Option<SecretValue>,
    /// `NO_PROXY`: servers that are reached directly.
    bypass: Option<SecretValue>,
}

impl ProxySettings {
    /// The proxy for requests of this host; none where the environment of this process names one.
    ///
    /// # Errors
    /// When a value is sealed and can't be opened.
    pub fn open(&self) -> Result<OutgoingProxy> {
        if OutgoingProxy::is_in_environment() {
            return Ok(OutgoingProxy::default());
        }
        self.opened()
    }

    fn opened(&self) -> Result<OutgoingProxy> {
        let open = |value: &Option<SecretValue>| value.as_ref().map(SecretValue::open).transpose();
        // The gateway's name for this host, which has no such name itself.
        let of_host = |url: SecretString| -> SecretString {
            url.expose_secret()
                .replacen("host.containers.internal", "127.0.0.1", 1)
                .into()
        };
        let (http, https) = (
            open(&self.http)?.map(of_host),
            open(&self.https)?.map(of_host),
        );
        let mut bypass = LOCAL_SERVERS.join(",");
        if let Some(servers) = open(&self.bypass)? {
            bypass = format!("{},{bypass}", servers.expose_secret());
        }
        Ok(OutgoingProxy::new(http, https, &bypass))
    }
}

/// What `litellm-watch.service` does with what it sees.
#[derive(Clone, Debug, Default)]
pub struct WatchSettings {
    /// `NOTIFY_COMMAND`: a command line for `sh`, which gets the text on stdin.
    pub command: Option<SecretValue>,
    /// `NOTIFY_URL`: an http(s) URL, which gets `{"text": …}` by POST.
    pub url: Option<SecretValue>,
    /// `METRICS_FILE`: an absolute path; the file is replaced at each look.
    pub metrics: Option<PathBuf>,
    /// `METRICS_LISTEN`: an address of the loopback interface, at which each scrape starts a process.
    pub metrics_address: Option<SocketAddr>,
    /// The proxy to the server of `NOTIFY_URL`.
    pub proxy: Arc<ProxySettings>,
}

impl WatchSettings {
    /// Whether notices of faults have a recipient.
    #[must_use]
    pub fn notifies(&self) -> bool {
        self.command.is_some() || self.url.is_some()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.notifies() && self.metrics.is_none() && self.metrics_address.is_none()
    }
}

/// Where backups go and how: the variables `BACKUP_…`, which no container gets.
#[derive(Clone, Debug)]
pub struct BackupSettings {
    /// `BACKUP_AGE_RECIPIENT`: whose key opens them.
    pub recipient: Option<String>,
    /// `BACKUP_URL`: where a copy goes.
    pub url: Option<String>,
    /// What the store at that URL needs to know, without `BACKUP_` and in small letters.
    pub store: Vec<(String, SecretValue)>,
    /// `BACKUP_WAL`: whether the write-ahead log is archived, too.
    pub wal: bool,
    /// `BACKUP_BY`: the other host that backs up the database, which both share.
    pub by: Option<String>,
    /// Has the programs for an external database.
    pub postgres_image: ImageReference,
    /// The proxy to that store.
    pub proxy: Arc<ProxySettings>,
}

/// What `.env` asks for, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The gateway's image.
    pub litellm_image: ImageReference,
    /// The gateway's database.
    pub database: Database,
    /// The gateway's cache.
    pub cache: Cache,
    /// `LISTEN`: where the gateway listens.
    pub listen: Listen,
    /// `PUBLIC_URL`: where other hosts reach it by https.
    pub entrance: Option<Entrance>,
    /// `LITELLM_REPLICAS`: how many gateways listen there.
    pub replicas: Replicas,
    /// `LITELLM_DRAIN_TIMEOUT`: seconds for the requests of a gateway that stops while another one serves.
    pub drain_timeout: u32,
    /// `LITELLM_METRICS_PORT`: the loopback port for the first gateway's own metrics; further ones have the next ports.
    pub metrics_port: Option<u16>,
    /// `LITELLM_RECYCLE_AT`; `None` for never.
    pub recycle_at: Option<MemoryMark>,
    /// `USER_NAMESPACES`: whether the containers of root have user IDs of their own.
    pub user_namespaces: bool,
    /// `LITELLM_MASTER_KEY`: for bootstrap only.
    pub master_key: SecretValue,
    /// Where backups go and how.
    pub backup: BackupSettings,
    /// Recipients of notices, and the file for metrics.
    pub watch: WatchSettings,
    /// The proxy for requests to other hosts.
    pub proxy: Arc<ProxySettings>,
    /// `LITELLM_ACCEPT_VULNERABILITIES`: identifiers of vulnerabilities that are accepted.
    pub accepted: Vec<String>,
    /// `SERVER_ROOT_PATH`: empty, or what LiteLLM puts before its own paths, such as `/llm`.
    pub root_path: String,
    ui_username: Option<String>,
    public_address: Option<String>,
    gateway: Vec<(String, SecretValue)>,
}

/// Where another image can be named than `image`, which may not be that of `.env`.
pub(crate) fn place_of(paths: &Paths, image: &ImageReference) -> &'static str {
    let is_named = |settings: Settings| settings.images().any(|named| named == image);
    if Settings::load(&paths.env_file()).is_ok_and(is_named) {
        "in .env"
    } else if image.postgres_major().is_some() {
        "with `litellm-units upgrade --postgres`"
    } else {
        "with `litellm-units upgrade --image`"
    }
}

impl Settings {
    /// Reads and checks the `.env` at `path`.
    ///
    /// # Errors
    /// When it can't be read or parsed, or a value in it can't be used; with file and line.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_env(&load_env(path)?, path)
    }

    /// Like [`Settings::load`], from text. `path` is for messages, and sealed values are beside it.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn from_text(text: &str, path: &Path) -> Result<Self> {
        let env = parse_env(text, path)?;
        Self::from_env(&env, path)
    }

    /// Like [`Settings::load`], from a parsed file. `path` is for messages, and sealed values are
    /// beside it; none is opened until it is needed, and what is checked here was checked when it
    /// was sealed.
    ///
    /// # Errors
    /// When a required variable is missing or a value can't be used.
    pub fn from_env(env: &EnvFile, path: &Path) -> Result<Self> {
        let vault = Arc::new(Vault::beside(path));
        let reader = Reader {
            env,
            path,
            vault: &vault,
        };
        reader.check_carriage()?;
        reader.check_references()?;
        let lookups = reader.lookups()?;
        let hint = "write 300 for five minutes, or remove it";
        reader.seconds(LIVENESS_TIMEOUT, &LIVENESS_RANGE, hint)?;
        for name in database_url::NAMES {
            if let Some(url) = reader.filled(name).filter(|url| !sealed::is_sealed(url)) {
                database_url::check(url)
                    .map_err(|(problem, hint)| reader.wrong(name, problem, hint))?;
            }
        }
        let database = match reader.filled("DATABASE_URL") {
            Some(url) => Database::External {
                url: SecretValue::new(url, &vault),
            },
            None => Database::Local {
                image: reader.image("POSTGRES_IMAGE", Some(DEFAULT_POSTGRES_IMAGE))?,
                user: reader.postgres_name("POSTGRES_USER")?,
                password: reader.postgres_password()?,
                name: reader.postgres_database()?,
            },
        };
        let is_long = |url: SecretString| url.expose_secret().len() > VALUE_LIMIT;
        if matches!(database, Database::Local { .. })
            && database.url().in_clear().is_some_and(is_long)
        {
            return Err(reader.wrong(
                "POSTGRES_PASSWORD",
                &format!("makes DATABASE_URL longer than {VALUE_LIMIT} bytes, more than a variable can hold"),
                "choose a shorter one",
            ));
        }
        let by_sentinel = reader.filled(SENTINEL_NODES).is_some();
        let cache = if by_sentinel || reader.filled("REDIS_HOST").is_some() {
            Cache::External
        } else {
            Cache::Local {
                image: reader.image("REDIS_IMAGE", Some(DEFAULT_REDIS_IMAGE))?,
                password: reader.required("REDIS_PASSWORD")?,
                memory: reader.redis_memory()?,
            }
        };
        let master_key = reader.required("LITELLM_MASTER_KEY")?;
        let mut gateway: Vec<(String, SecretValue)> = reader
            .given(&lookups, |recipient| {
                matches!(recipient, Recipient::Gateway(_) | Recipient::Migration(_))
            })
            .filter(|(name, _)| name != "DATABASE_URL")
            .collect();
        gateway.push(("DATABASE_URL".into(), database.url()));
        match &cache {
            Cache::Local { password, .. } => {
                gateway.push(("REDIS_HOST".into(), SecretValue::clear("redis")));
                gateway.push(("REDIS_PORT".into(), SecretValue::clear("6379")));
                gateway.push(("REDIS_PASSWORD".into(), password.clone()));
            }
            Cache::External => {
                // Beside the Sentinels, LiteLLM does not start with an address, and prefers a URL.
                let is_given = |(name, _): &(String, _)| {
                    !by_sentinel || !variables::OTHER_REDIS.contains(&name.as_str())
                };
                let redis = reader.given(&lookups, |recipient| recipient == Recipient::Redis);
                gateway.extend(redis.filter(is_given));
            }
        }
        let in_clear = |name: &str| reader.filled(name).map(str::to_owned);
        let listen = reader.listen()?;
        let metrics_port = reader.metrics_port(&listen)?;
        let proxy = reader.proxy();
        let entrance = reader.entrance(&listen)?;
        let url = entrance.as_ref().map(Entrance::url);
        let published = in_clear("PROXY_BASE_URL");
        if let Some(url) = url.as_ref().filter(|_| published.is_none()) {
            gateway.push(("PROXY_BASE_URL".into(), SecretValue::clear(url)));
        }
        Ok(Self {
            litellm_image: reader.image("LITELLM_IMAGE", None)?,
            database,
            cache,
            listen,
            entrance,
            replicas: reader.replicas()?,
            drain_timeout: reader
                .seconds(
                    DRAIN_TIMEOUT,
                    &DRAIN_RANGE,
                    "write 600 for ten minutes, or remove it",
                )?
                .unwrap_or(DEFAULT_DRAIN_TIMEOUT),
            metrics_port,
            recycle_at: reader.recycle_at()?,
            user_namespaces: reader.user_namespaces()?,
            master_key,
            backup: reader.backup(&proxy)?,
            watch: reader.watch(&proxy)?,
            proxy,
            accepted: reader
                .filled(ACCEPT_VULNERABILITIES)
                .map(identifiers)
                .unwrap_or_default(),
            root_path: reader.root_path(),
            ui_username: in_clear("UI_USERNAME"),
            public_address: published.or(url),
            gateway,
        })
    }

    /// The services that these settings call for, in start order.
    pub fn services(&self) -> impl Iterator<Item = Service> {
        Service::ALL
            .into_iter()
            .filter(|service| self.image(*service).is_some())
    }

    /// The directories of the Unix sockets of an external PostgreSQL, for the containers of the gateway and the migration.
    ///
    /// # Errors
    /// When a URL is sealed and can't be opened.
    pub fn socket_directories(&self) -> Result<BTreeSet<String>> {
        let mut directories = BTreeSet::new();
        if matches!(self.database, Database::Local { .. }) {
            return Ok(directories);
        }
        for (_, url) in
            { self.gateway.iter() }.filter(|(name, _)| database_url::NAMES.contains(&name.as_str()))
        {
            directories.extend(database_url::socket_directory(url.open()?.expose_secret()));
        }
        Ok(directories)
    }

    /// The web interface's user name, if one is set.
    #[must_use]
    pub fn ui_username(&self) -> Option<&str> {
        self.ui_username.as_deref()
    }

    /// The web interface's password, if one is set.
    #[must_use]
    pub fn ui_password(&self) -> Option<&SecretValue> {
        self.gateway
            .iter()
            .find(|(name, _)| name == "UI_PASSWORD")
            .map(|(_, value)| value)
    }

    /// What LiteLLM encrypts credentials in its database with: the master key only if there is no
    /// `LITELLM_SALT_KEY`. One that is empty is a salt, too.
    #[must_use]
    pub fn salt(&self) -> &SecretValue {
        self.gateway
            .iter()
            .find(|(name, _)| name == "LITELLM_SALT_KEY")
            .map_or(&self.master_key, |(_, value)| value)
    }

    /// The address under which a reverse proxy publishes the gateway, if one is set.
    #[must_use]
    pub fn public_address(&self) -> Option<&str> {
        self.public_address.as_deref()
    }

    /// The image of `service`, or nothing when that service is external.
    #[must_use]
    pub fn image(&self, service: Service) -> Option<&ImageReference> {
        match (service, &self.database, &self.cache) {
            (Service::Litellm | Service::Migrate, ..) => Some(&self.litellm_image),
            (Service::Postgres, Database::Local { image, .. }, _)
            | (Service::Redis, _, Cache::Local { image, .. }) => Some(image),
            (Service::Postgres | Service::Redis | Service::Entrance | Service::Extra(_), ..) => {
                None
            }
        }
    }

    /// Every image without repetition: the migration uses the gateway's.
    pub fn images(&self) -> impl Iterator<Item = &ImageReference> {
        self.services()
            .filter(|service| *service != Service::Migrate)
            .filter_map(|service| self.image(service))
    }

    /// The values that other programs give.
    pub(crate) fn lookups(&self) -> impl Iterator<Item = &Lookup> {
        self.gateway
            .iter()
            .filter_map(|(_, value)| value.external())
    }

    /// What `service` gets from `.env`, and nothing more.
    #[must_use]
    pub fn container_secrets(&self, service: Service) -> Vec<ContainerSecret> {
        let variable = |name: &str, value: SecretValue| ContainerSecret {
            name: name.to_owned(),
            target: SecretTarget::Variable,
            value,
        };
        match (service, &self.database, &self.cache) {
            (
                Service::Postgres,
                Database::Local {
                    user,
                    password,
                    name,
                    ..
                },
                _,
            ) => vec![
                variable("POSTGRES_USER", SecretValue::clear(user)),
                variable("POSTGRES_PASSWORD", password.clone()),
                variable("POSTGRES_DB", SecretValue::clear(name)),
            ],
            (Service::Redis, _, Cache::Local { password, .. }) => vec![
                ContainerSecret {
                    name: "redis.conf".into(),
                    target: SecretTarget::File,
                    value: password.clone().into_redis_conf(),
                },
                // Read by redis-cli in the health check.
                variable("REDISCLI_AUTH", password.clone()),
            ],
            (Service::Migrate, ..) => self
                .gateway
                .iter()
                .filter(|(name, _)| matches!(variables::recipient(name), Recipient::Migration(_)))
                .map(|(name, value)| variable(name, value.clone()))
                .collect(),
            (Service::Litellm, ..) => {
                let own = self.gateway.iter();
                let mut secrets = own
                    .map(|(name, value)| variable(name, value.clone()))
                    .collect();
                bypass_proxy(&mut secrets, &LOCAL_SERVERS);
                secrets
            }
            (Service::Postgres | Service::Redis | Service::Entrance | Service::Extra(_), ..) => {
                Vec::new()
            }
        }
    }
}

impl Database {
    /// The URL by which the gateway reaches it, every part percent-encoded.
    #[must_use]
    pub fn url(&self) -> SecretValue {
        match self {
            Self::External { url } => url.clone(),
            Self::Local {
                user,
                password,
                name,
                ..
            } => password.clone().into_url(user, name),
        }
    }
}

/// Adds these servers to the `NO_PROXY` of a container, if its variables name a proxy. A sealed `NO_PROXY` stays as it is.
pub(crate) fn bypass_proxy(secrets: &mut Vec<ContainerSecret>, servers: &[&str]) {
    let is = |secret: &ContainerSecret, name: &str| secret.name.eq_ignore_ascii_case(name);
    let has_proxy = secrets.iter().any(|secret| {
        let mut names = outgoing_proxy::VARIABLES.iter();
        names.any(|name| is(secret, name)) && !secret.value.is_empty()
    });
    if !has_proxy {
        return;
    }
    if !secrets.iter().any(|secret| is(secret, "NO_PROXY")) {
        secrets.push(ContainerSecret {
            name: "NO_PROXY".into(),
            target: SecretTarget::Variable,
            value: SecretValue::clear(""),
        });
    }
    // Python prefers no_proxy to NO_PROXY.
    for secret in secrets.iter_mut().filter(|secret| is(secret, "NO_PROXY")) {
        let Some(list) = secret.value.in_clear() else {
            continue;
        };
        let given = list.expose_secret().split(',').map(str::trim);
        let mut all: Vec<&str> = given.filter(|word| !word.is_empty()).collect();
        for server in servers {
            if !all.contains(server) && !all.contains(&"*") {
                all.push(server);
            }
        }
        secret.value = SecretValue::clear(&all.join(","));
    }
}

/// Reads a `.env`, with its own message when there is none.
///
/// # Errors
/// When the file is missing, unreadable or not UTF-8.
pub fn read_env(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| {
        let message = format!("can't read {}: {error}", path.display());
        if error.kind() == std::io::ErrorKind::NotFound {
            Failure::config(message)
                .hint("create the deployment with `litellm-units generate`, or name its directory with `--litellm-dir DIR`")
        } else {
            Failure::config(message).hint("run this command as the user who owns the deployment")
        }
    })?;
    text_of(bytes, path)
}

/// The text in the bytes of the file at `path`.
pub(crate) fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|byte| *byte == b'\n').count();
        Failure::config(format!("{}, line {line}: not valid UTF-8", path.display()))
            .hint("save the file as UTF-8")
            .into()
    })
}

/// Parses a `.env`; `path` is for messages only.
///
/// # Errors
/// With file, line, column and the next step.
pub fn parse_env(text: &str, path: &Path) -> Result<EnvFile> {
    EnvFile::parse(text).map_err(|error| {
        Failure::config(format!("{}, {error}", path.display()))
            .hint(error.hint())
            .into()
    })
}

/// Reads and parses a `.env`.
///
/// # Errors
/// As [`read_env`] and [`parse_env`].
pub fn load_env(path: &Path) -> Result<EnvFile> {
    parse_env(&read_env(path)?, path)
}

/// Refuses variables that would give the gateway another address than the one that systemd holds. Only an edit is
/// refused: a gateway that restarts, starts without them.
///
/// # Errors
/// With file, line and what to do instead.
pub fn check_address(env: &EnvFile, path: &Path) -> Result<()> {
    match variables::refused().find(|(name, _)| env.get(name).is_some()) {
        Some((name, hint)) => Err(wrong(
            env,
            path,
            name,
            "would change the gateway's address, which litellm.socket holds",
            hint,
        )),
        None => Ok(()),
    }
}

/// What is wrong with [`names_unused_database`], after the name of the variable.
pub(crate) const UNUSED_DATABASE: &str =
    "names a database, but without DATABASE_URL the gateway uses the local PostgreSQL";
/// What to do about it.
pub(crate) const USE_DATABASE: &str = "write DATABASE_URL=postgresql://USER:PASSWORD@HOST:PORT/DATABASE instead of the variables DATABASE_HOST, DATABASE_USERNAME, DATABASE_PASSWORD and DATABASE_NAME; or, for the local PostgreSQL, remove them";

/// Whether an external database is named by its parts, which nothing puts together.
pub(crate) fn names_unused_database(env: &EnvFile) -> bool {
    let is_filled = |name| env.get(name).is_some_and(|value| !value.is_empty());
    is_filled("DATABASE_HOST") && !is_filled("DATABASE_URL")
}

/// What a container gets for a variable of `.env` by its name.
///
/// # Errors
/// When another program is to give a value, and can't.
pub(crate) fn value_of(env: &EnvFile, path: &Path, name: &str) -> Result<Option<SecretValue>> {
    let vault = Arc::new(Vault::beside(path));
    let reader = Reader {
        env,
        path,
        vault: &vault,
    };
    let lookups = reader.lookups()?;
    Ok(env
        .get(name)
        .map(|value| reader.value(&lookups, name, value)))
}

/// The refusal of a variable, with file and line.
pub(crate) fn wrong(
    env: &EnvFile,
    path: &Path,
    name: &str,
    problem: &str,
    hint: &str,
) -> anyhow::Error {
    Failure::config(format!("{} {problem}", place(Some(env), path, name)))
        .hint(hint)
        .into()
}

/// `FILE, line 3: NAME`, as far as the file has the variable.
pub(crate) fn place(env: Option<&EnvFile>, path: &Path, name: &str) -> String {
    let line = env.and_then(|env| env.line(name));
    let line = line.map_or(String::new(), |line| format!(", line {line}"));
    format!("{}{line}: {name}", path.display())
}

struct Reader<'a> {
    env: &'a EnvFile,
    path: &'a Path,
    vault: &'a Arc<Vault>,
}

impl Reader<'_> {
    fn filled(&self, name: &str) -> Option<&str> {
        self.env.get(name).filter(|value| !value.is_empty())
    }

    /// The variables that a container gets by their names.
    fn given(
        &self,
        lookups: &HashMap<String, Lookup>,
        is_wanted: impl Fn(Recipient) -> bool,
    ) -> impl Iterator<Item = (String, SecretValue)> {
        self.env.iter().filter_map(move |(name, value)| {
            let recipient = variables::recipient(name);
            let is_unset = value.is_empty() && recipient.needs_a_value();
            // Without such a program, they are variables like any other.
            let is_of_program = !lookups.is_empty() && is_of_programs(name);
            (is_wanted(recipient) && !is_unset && !is_of_program)
                .then(|| (name.to_owned(), self.value(lookups, name, value)))
        })
    }

    fn value(&self, lookups: &HashMap<String, Lookup>, name: &str, value: &str) -> SecretValue {
        match lookups.get(name) {
            Some(lookup) => SecretValue::of(lookup.clone()),
            None => SecretValue::new(value, self.vault),
        }
    }

    /// The values that other programs give.
    fn lookups(&self) -> Result<HashMap<String, Lookup>> {
        let environment = self.env.iter().filter(|(name, _)| is_of_programs(name));
        let environment =
            environment.map(|(name, value)| (name.to_owned(), SecretValue::new(value, self.vault)));
        let environment = Arc::new(environment.collect());
        let mut lookups = HashMap::new();
        for (name, _) in self.env.iter() {
            let Some(reference) = self.env.reference(name) else {
                if let Some(other) = self.env.external_part(name) {
                    return Err(self.wrong(
                        name,
                        &format!("refers to {other}, which is not in .env, so it would contain {other}'s reference"),
                        "let a program give the whole value: exec:/PATH/PROGRAM",
                    ));
                }
                continue;
            };
            if self.env.refers(name) {
                return Err(self.wrong(
                    name,
                    "refers to another variable, and arguments can be read by every user of this host",
                    "let the program read the secret itself; for a plain dollar sign write `$$`",
                ));
            }
            if !may_be_external(name) {
                return Err(self.wrong(
                    name,
                    "names a program (exec:, vault: or sops:), but is needed in .env itself",
                    "write the value, which `litellm-units secrets seal` can encrypt; if this is the value, put it in single quotes",
                ));
            }
            let place = place(Some(self.env), self.path, name);
            let lookup = Lookup::parse(name, reference, place, &environment)
                .map_err(|(problem, hint)| self.wrong(name, problem, hint))?;
            lookups.insert(name.to_owned(), lookup);
        }
        Ok(lookups)
    }

    fn wrong(&self, name: &str, problem: &str, hint: &str) -> anyhow::Error {
        wrong(self.env, self.path, name, problem, hint)
    }

    fn required(&self, name: &str) -> Result<SecretValue> {
        let value = self.filled(name).ok_or_else(|| {
            self.wrong(
                name,
                "has no value",
                "`litellm-units generate` adds what is missing",
            )
        })?;
        Ok(SecretValue::new(value, self.vault))
    }

    fn image(&self, name: &str, default: Option<&str>) -> Result<ImageReference> {
        let Some(text) = self.filled(name).or(default) else {
            return Err(self.wrong(
                name,
                "has no value",
                "`litellm-units generate` adds what is missing",
            ));
        };
        ImageReference::parse(text)
            .map_err(|error| self.wrong(name, &format!("can't be used: {error}"), error.hint()))
    }

    fn listen(&self) -> Result<Listen> {
        let group = self.filled(LISTEN_GROUP).map(str::to_owned);
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if group
            .as_ref()
            .is_some_and(|group| !group.chars().all(is_name))
        {
            return Err(self.wrong(
                LISTEN_GROUP,
                "is not the name of a group",
                "write the name of the group that the reverse proxy runs as, such as www-data",
            ));
        }
        let mut addresses = Vec::new();
        for word in self.filled(LISTEN).unwrap_or_default().split_whitespace() {
            addresses.push(ListenAddress::parse(word).map_err(|problem| {
                self.wrong(
                    LISTEN,
                    &format!("contains {word}, {problem}"),
                    "write each address as 127.0.0.1:4000, [::1]:4000 or /run/litellm/litellm.sock, with blanks between them",
                )
            })?);
        }
        if addresses.is_empty() {
            addresses = Listen::default().addresses;
        }
        let listen = Listen { addresses, group };
        if let Some(address) = listen.repeated() {
            return Err(self.wrong(
                LISTEN,
                &format!("contains {address} twice"),
                "remove one of them",
            ));
        }
        if listen.group.is_some() && !listen.has_unix() {
            return Err(self.wrong(
                LISTEN_GROUP,
                "has no effect, since LISTEN names no Unix socket",
                "add one to LISTEN, such as /run/litellm/litellm.sock, or remove the line",
            ));
        }
        let without_tls = self.filled(LISTEN_WITHOUT_TLS);
        if without_tls.is_some_and(|value| value != "yes") {
            return Err(self.wrong(
                LISTEN_WITHOUT_TLS,
                "is not yes",
                "write yes, or remove the line",
            ));
        }
        let open = listen.addresses.iter().find(|address| !address.is_local());
        if let Some(address) = open.filter(|_| without_tls.is_none()) {
            return Err(self.wrong(
                LISTEN,
                &format!("contains {address}, which other hosts reach without TLS: keys and prompts would cross the network in clear text"),
                "use a reverse proxy with TLS (docs/reverse-proxy.md); or, for a network that you trust, add LISTEN_WITHOUT_TLS=yes",
            ));
        }
        Ok(listen)
    }

    fn root_path(&self) -> String {
        let root = self.filled(ROOT_PATH).unwrap_or_default();
        root.trim_end_matches('/').to_owned()
    }

    fn entrance(&self, listen: &Listen) -> Result<Option<Entrance>> {
        let from = self.filled(PUBLIC_ADMIN_FROM);
        let Some(url) = self.filled(PUBLIC_URL) else {
            return match from {
                Some(_) => Err(self.wrong(
                    PUBLIC_ADMIN_FROM,
                    "has no effect without PUBLIC_URL",
                    "add PUBLIC_URL=https://llm.example.com with your host name, or remove the line",
                )),
                None => Ok(None),
            };
        };
        let mut entrance = Entrance::parse(url)
            .map_err(|(problem, hint)| self.wrong(PUBLIC_URL, problem, hint))?;
        if let Some(networks) = from {
            entrance.admit(networks).map_err(|word| {
                self.wrong(
                    PUBLIC_ADMIN_FROM,
                    &format!("contains {word}, which is no network"),
                    "write 10.0.0.0/8, 192.0.2.7 or fd00::/8, with commas between them",
                )
            })?;
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        entrance.root = self.root_path();
        if !entrance.root.chars().all(is_plain)
            || !(entrance.root.is_empty() || entrance.root.starts_with('/'))
        {
            return Err(self.wrong(
                ROOT_PATH,
                "is a path that Caddy can't be given, which PUBLIC_URL starts",
                "write it as /llm, with letters, digits, dots, hyphens and underscores",
            ));
        }
        if entrance.is_ambiguous() {
            return Err(self.wrong(
                ROOT_PATH,
                "is a path of inference, so the entrance of PUBLIC_URL could not limit management below it",
                "choose another path, such as /llm",
            ));
        }
        let is_strange = |address: &ListenAddress| matches!(address, ListenAddress::Unix(path) if !path.to_str().is_some_and(|path| path.chars().all(is_plain)));
        if is_strange(&listen.own()) {
            return Err(self.wrong(
                LISTEN,
                "has a path that Caddy can't be given, which PUBLIC_URL starts",
                "use only letters, digits, dots, hyphens and underscores in the path",
            ));
        }
        Ok(Some(entrance))
    }

    fn backup(&self, proxy: &Arc<ProxySettings>) -> Result<BackupSettings> {
        let own = ["BACKUP_AGE_RECIPIENT", "BACKUP_URL", BACKUP_WAL, BACKUP_BY];
        let wal = self.filled(BACKUP_WAL);
        if wal.is_some_and(|value| value != "yes") {
            return Err(self.wrong(BACKUP_WAL, "is not yes", "write yes, or remove the line"));
        }
        if wal.is_some() && self.filled("DATABASE_URL").is_some() {
            return Err(self.wrong(
                BACKUP_WAL,
                "has no effect, since the database is external (DATABASE_URL)",
                "remove the line, and let the operator of that server archive its write-ahead log",
            ));
        }
        let by = self.filled(BACKUP_BY).map(str::to_owned);
        if by.is_some() && self.filled("DATABASE_URL").is_none() {
            return Err(self.wrong(
                BACKUP_BY,
                "names another host, but the database is on this one",
                "remove the line",
            ));
        }
        let store = self
            .env
            .iter()
            .filter(|(name, value)| !own.contains(name) && !value.is_empty())
            .filter_map(|(name, value)| {
                let option = name.strip_prefix(BACKUP_PREFIX)?.to_ascii_lowercase();
                Some((option, SecretValue::new(value, self.vault)))
            })
            .collect();
        Ok(BackupSettings {
            recipient: self.filled("BACKUP_AGE_RECIPIENT").map(str::to_owned),
            url: self.filled("BACKUP_URL").map(str::to_owned),
            store,
            wal: wal.is_some(),
            by,
            postgres_image: self.image("POSTGRES_IMAGE", Some(DEFAULT_POSTGRES_IMAGE))?,
            proxy: Arc::clone(proxy),
        })
    }

    fn proxy(&self) -> Arc<ProxySettings> {
        let value = |name: &str| {
            // As Python, which prefers small letters.
            let value = self.filled(&name.to_ascii_lowercase());
            let value = value.or_else(|| self.filled(name))?;
            Some(SecretValue::new(value, self.vault))
        };
        Arc::new(ProxySettings {
            http: value("HTTP_PROXY").or_else(|| value("ALL_PROXY")),
            https: value("HTTPS_PROXY").or_else(|| value("ALL_PROXY")),
            bypass: value("NO_PROXY"),
        })
    }

    fn watch(&self, proxy: &Arc<ProxySettings>) -> Result<WatchSettings> {
        let value = |name| {
            let value = self.filled(name)?;
            Some(SecretValue::new(value, self.vault))
        };
        let metrics = self.filled(METRICS_FILE).map(PathBuf::from);
        if metrics.as_ref().is_some_and(|path| {
            !path.is_absolute() || path.extension().is_none_or(|kind| kind != "prom")
        }) {
            return Err(self.wrong(
                METRICS_FILE,
                "is no absolute path that ends in .prom",
                "name a file in the directory of node_exporter's textfile collector, such as /var/lib/prometheus/node-exporter/litellm.prom",
            ));
        }
        let url = value(NOTIFY_URL);
        let is_wrong = |url: SecretString| {
            reqwest::Url::parse(url.expose_secret())
                .map_or(true, |url| !["http", "https"].contains(&url.scheme()))
        };
        if url
            .as_ref()
            .and_then(SecretValue::in_clear)
            .is_some_and(is_wrong)
        {
            return Err(self.wrong(
                NOTIFY_URL,
                "is no http or https URL",
                "write it as https://HOST/PATH; a program is named by NOTIFY_COMMAND",
            ));
        }
        Ok(WatchSettings {
            command: value(NOTIFY_COMMAND),
            url,
            metrics,
            metrics_address: self.metrics_address()?,
            proxy: Arc::clone(proxy),
        })
    }

    fn metrics_address(&self) -> Result<Option<SocketAddr>> {
        let Some(word) = self.filled(METRICS_LISTEN) else {
            return Ok(None);
        };
        let address = match ListenAddress::parse(word) {
            Ok(ListenAddress::Tcp(address)) => address,
            Ok(ListenAddress::Unix(_)) | Err(_) => {
                return Err(self.wrong(
                    METRICS_LISTEN,
                    "is not an IP address with a port",
                    "write it as 127.0.0.1:9157",
                ));
            }
        };
        if !address.ip().is_loopback() {
            return Err(self.wrong(
                METRICS_LISTEN,
                "is an address that other hosts reach",
                "write 127.0.0.1:9157; for a Prometheus on another host, use a reverse proxy (docs/notices.md)",
            ));
        }
        let is_at_port = |other: &ListenAddress| matches!(other, ListenAddress::Tcp(other) if other.port() == address.port());
        if self.listen()?.addresses.iter().any(is_at_port) {
            return Err(self.wrong(
                METRICS_LISTEN,
                "has the port of the gateway",
                "choose another port, such as 9157",
            ));
        }
        Ok(Some(address))
    }

    fn metrics_port(&self, listen: &Listen) -> Result<Option<u16>> {
        let Some(value) = self.filled(LITELLM_METRICS_PORT) else {
            return Ok(None);
        };
        let most = u16::try_from(Instance::MOST).unwrap_or_default();
        let highest = u16::MAX - most + 1;
        let first = match value.parse() {
            Ok(first) if (1024..=highest).contains(&first) => first,
            _ => {
                let problem = format!("is not a port from 1024 to {highest}");
                return Err(self.wrong(LITELLM_METRICS_PORT, &problem, "write 9160"));
            }
        };
        // In its container, the gateway itself has the default port.
        let others = (listen.addresses.iter().cloned())
            .chain(self.metrics_address()?.map(ListenAddress::Tcp))
            .chain(Listen::default().addresses);
        for other in others {
            if let ListenAddress::Tcp(other) = other
                && (first..first + most).contains(&other.port())
            {
                let problem = format!(
                    "needs the ports {first} to {}, one for each gateway; {other} is another address of litellm-units",
                    first + most - 1
                );
                return Err(self.wrong(
                    LITELLM_METRICS_PORT,
                    &problem,
                    "choose another port, such as 9160",
                ));
            }
        }
        Ok(Some(first))
    }

    fn postgres_name(&self, name: &str) -> Result<String> {
        let value = self.filled(name).unwrap_or(DEFAULT_POSTGRES_NAME);
        // PostgreSQL truncates longer identifiers silently (NAMEDATALEN - 1).
        if value.len() > 63 {
            return Err(self.wrong(
                name,
                "is longer than PostgreSQL's 63 bytes",
                "choose a shorter one",
            ));
        }
        Ok(value.to_owned())
    }

    /// The image's entrypoint gives the password to initdb, which reads one line of it.
    fn postgres_password(&self) -> Result<SecretValue> {
        let password = self.required("POSTGRES_PASSWORD")?;
        let is_wrong = |password: SecretString| password.expose_secret().contains(['\n', '\r']);
        if password.in_clear().is_some_and(is_wrong) {
            return Err(self.wrong(
                "POSTGRES_PASSWORD",
                "contains a line break, which PostgreSQL's image does not accept",
                "remove it",
            ));
        }
        Ok(password)
    }

    /// Prisma takes the name from the URL as it is there, without decoding it.
    fn postgres_database(&self) -> Result<String> {
        let name = self.postgres_name("POSTGRES_DB")?;
        if !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._~".contains(c))
        {
            return Err(self.wrong(
                "POSTGRES_DB",
                "contains a character that LiteLLM's database client does not accept",
                "use only letters, digits and - . _ ~",
            ));
        }
        Ok(name)
    }

    /// In the grammar of Redis' own option, as a part of its command line.
    fn redis_memory(&self) -> Result<String> {
        let value = self.filled(REDIS_MEMORY).unwrap_or(DEFAULT_REDIS_MEMORY);
        if !is_redis_memory(value) {
            return Err(self.wrong(
                REDIS_MEMORY,
                "is not an amount of memory",
                "write it as 512mb or 2gb, or 0 for no limit",
            ));
        }
        Ok(value.to_owned())
    }

    fn seconds(
        &self,
        name: &str,
        range: &std::ops::RangeInclusive<u32>,
        hint: &str,
    ) -> Result<Option<u32>> {
        let Some(value) = self.filled(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(seconds) if range.contains(&seconds) => Ok(Some(seconds)),
            _ => {
                let (least, most) = (range.start(), range.end());
                let problem = format!("is not a number of seconds from {least} to {most}");
                Err(self.wrong(name, &problem, hint))
            }
        }
    }

    fn recycle_at(&self) -> Result<Option<MemoryMark>> {
        let Some(value) = self.filled(RECYCLE_AT) else {
            return Ok(Some(DEFAULT_RECYCLE_MARK));
        };
        if value == "no" {
            return Ok(None);
        }
        let percentage = value.strip_suffix('%').map(|part| match part.parse() {
            Ok(part) if RECYCLE_RANGE.contains(&part) => Some(MemoryMark::Percentage(part)),
            _ => None,
        });
        let size = || {
            let (number, unit) = amount(value)?;
            let bytes = number.checked_mul(match &*unit {
                "m" | "mb" => 1 << 20,
                "g" | "gb" => 1 << 30,
                _ => return None,
            })?;
            (bytes > 0).then_some(MemoryMark::Bytes(bytes))
        };
        match percentage.unwrap_or_else(size) {
            Some(mark) => Ok(Some(mark)),
            None => Err(self.wrong(
                RECYCLE_AT,
                "is neither a percentage from 30% to 95%, nor a size such as 3G, nor no",
                "write 80% of the memory that a gateway may use (the default), 3G or 3000M, or no",
            )),
        }
    }

    fn replicas(&self) -> Result<Replicas> {
        match self.filled(REPLICAS) {
            None => Ok(Replicas::Count(1)),
            Some("auto") => Ok(Replicas::Auto {
                workers: self
                    .filled(WORKERS)
                    .and_then(|workers| workers.parse().ok())
                    .unwrap_or(1),
            }),
            Some(text) => match text.parse() {
                Ok(count) if (1..=Instance::MOST).contains(&count) => Ok(Replicas::Count(count)),
                _ => Err(self.wrong(
                    REPLICAS,
                    &format!("is neither `auto` nor a number from 1 to {}", Instance::MOST),
                    "write auto for as many as this machine has processors and memory for, or remove it for one",
                )),
            },
        }
    }

    fn user_namespaces(&self) -> Result<bool> {
        match self.filled(USER_NAMESPACES) {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(_) => Err(self.wrong(
                USER_NAMESPACES,
                "is neither yes nor no",
                "write yes, or remove the line",
            )),
        }
    }

    /// A reference is never taken for the value itself.
    fn check_references(&self) -> Result<()> {
        for (name, value) in self
            .env
            .iter()
            .filter(|(_, value)| sealed::is_sealed(value))
        {
            if !sealed::is_complete(value) {
                return Err(self.wrong(
                    name,
                    &format!("contains an incomplete reference to a sealed secret ({}NAME.0123456789abcdef)", sealed::PREFIX),
                    "write the value itself, then run `litellm-units secrets seal`",
                ));
            }
            if !may_be_sealed(name) {
                return Err(self.wrong(
                    name,
                    "contains a reference to a sealed secret, but must be in clear",
                    "write the value itself",
                ));
            }
        }
        Ok(())
    }

    /// Every value must survive the way into a container: environment variables end at a NUL,
    /// and Podman limits a secret's size.
    fn check_carriage(&self) -> Result<()> {
        for (name, value) in self.env.iter() {
            if value.contains('\0') {
                return Err(self.wrong(
                    name,
                    "contains a NUL character, which no environment variable can contain",
                    "remove it",
                ));
            }
            if value.len() > VALUE_LIMIT {
                return Err(self.wrong(
                    name,
                    &format!(
                        "is longer than {VALUE_LIMIT} bytes, more than a Podman secret can hold"
                    ),
                    "write it into a file below config/ and name the file instead",
                ));
            }
            if !is_name(name) {
                return Err(self.wrong(
                    name,
                    "is not a valid name of an environment variable",
                    "use only letters, digits and _, and no digit first",
                ));
            }
        }
        Ok(())
    }
}

/// An amount of memory, such as 512mb: its number, and its unit in small letters.
fn amount(text: &str) -> Option<(u64, String)> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[number.len()..].to_ascii_lowercase();
    Some((number.parse().ok()?, unit))
}

/// Whether it is an amount of memory as Redis takes it.
pub(crate) fn is_redis_memory(text: &str) -> bool {
    let is_known = |unit: &str| ["", "b", "k", "kb", "m", "mb", "g", "gb"].contains(&unit);
    amount(text).is_some_and(|(_, unit)| is_known(&unit))
}

/// Splits a list of identifiers at commas and white space.
fn identifiers(text: &str) -> Vec<String> {
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|id| !id.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_of_requests() {
        const LOCAL: &str = "localhost,127.0.0.1,::1,host.containers.internal,postgres,redis,169.254.0.0/16,fd00:ec2::254,metadata.google.internal";
        let environment = |text: &str| {
            let path = Path::new("/nowhere/.env");
            let env = parse_env(text, path).unwrap();
            let vault = Arc::new(Vault::beside(path));
            let reader = Reader {
                env: &env,
                path,
                vault: &vault,
            };
            let proxy = reader.proxy().opened().unwrap();
            let variables = proxy.environment().into_iter();
            variables
                .map(|(name, value)| format!("{name}={value}").replace(LOCAL, "LOCAL"))
                .collect::<Vec<_>>()
        };
        for (text, expected) in [
            ("NO_PROXY=a\nHTTPS_PROXY=\n", &[][..]),
            (
                "HTTPS_PROXY=http://b:1\nNO_PROXY=.a, 10.0.0.0/8\n",
                &["HTTPS_PROXY=http://b:1", "NO_PROXY=.a,10.0.0.0/8,LOCAL"],
            ),
            (
                "HTTP_PROXY=http://b:1\nhttp_proxy=http://c:1\nALL_PROXY=http://d:1\n",
                &[
                    "HTTP_PROXY=http://c:1",
                    "HTTPS_PROXY=http://d:1",
                    "NO_PROXY=LOCAL",
                ],
            ),
            ("HTTPS_PROXY=http://b:1\nNO_PROXY=*\n", &[]),
            (
                "HTTPS_PROXY=http://host.containers.internal:1\n",
                &["HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=LOCAL"],
            ),
        ] {
            assert_eq!(environment(text), expected, "{text}");
        }
    }
}

//! What an import takes over and what it can't, worked out from what Docker says of the containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::rewrite::{self, Rewrite};
use crate::deployment::env_file::EnvFile;
use crate::deployment::listen::{GATEWAY_PORT, ListenAddress};
use crate::deployment::settings::DEFAULT_POSTGRES_NAME;
use crate::deployment::variables::{is_refused, is_secret};
use crate::error::{Failure, Result};
use crate::host::docker::{BY_HAND, Container, DockerImage};
use crate::image::{ImageError, ImageReference};
use crate::operations::backup::database::parse_url;
use crate::random::{Random, password, secret_key};

const HEADER: &str = "\
# The settings of this LiteLLM deployment, and the only place for its secrets.
# Grammar: that of docker compose. After an edit: litellm-units apply
";
/// Where the gateway's container has config/.
const CONFIG: &str = "/app/config";

/// Variables that the units give, or that name an image.
const BY_UNITS: [&str; 9] = [
    "CONFIG_FILE_PATH",
    "DISABLE_SCHEMA_UPDATE",
    "LITELLM_IMAGE",
    "LITELLM_MODE",
    "POSTGRES_DB",
    "POSTGRES_IMAGE",
    "POSTGRES_PASSWORD",
    "POSTGRES_USER",
    "REDIS_IMAGE",
];
/// Other spellings of `DATABASE_URL`, of which LiteLLM makes one.
const DATABASE_PARTS: [&str; 6] = [
    "DATABASE_HOST",
    "DATABASE_NAME",
    "DATABASE_PASSWORD",
    "DATABASE_PORT",
    "DATABASE_SCHEMA",
    "DATABASE_USERNAME",
];
const MASTER: &str = "LITELLM_MASTER_KEY";
pub(crate) const SALT: &str = "LITELLM_SALT_KEY";

/// The containers of one compose deployment.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The gateway, all containers of its service; a running one first.
    pub gateways: Vec<&'a Container>,
    /// Those beside it.
    others: Vec<&'a Container>,
    /// All containers of the host: a database may be of another deployment.
    all: &'a [Container],
}

/// The PostgreSQL of the old deployment.
#[derive(Debug)]
pub(crate) struct OldDatabase {
    pub container: String,
    pub service: String,
    /// libpq's variables.
    pub variables: Vec<(&'static str, SecretString)>,
    pub name: String,
    user: String,
    image: ImageReference,
}

/// The Redis of the old deployment.
#[derive(Debug)]
pub(crate) struct OldCache {
    container: String,
    service: String,
}

/// The old gateway's salt.
#[derive(Debug)]
pub(crate) struct Salt {
    pub value: SecretString,
    /// Where the old gateway has it from.
    pub source: &'static str,
}

/// What has no counterpart, and how it can be had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Note {
    what: String,
    how: String,
}

/// What an import does.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The service of the gateway.
    pub service: String,
    pub image: ImageReference,
    /// The digest in the registry; none for an image that was built on this host.
    pub digest: Option<String>,
    /// `.env`, but for what `generate` adds.
    pub env: EnvFile,
    /// The variables whose values are new.
    pub generated: Vec<&'static str>,
    /// From where each secret is that is not the variable of the same name.
    sources: BTreeMap<String, String>,
    /// None if nothing was encrypted: the old gateway has neither a salt nor a master key.
    pub salt: Option<Salt>,
    /// None if the database is external, or there is none.
    pub database: Option<OldDatabase>,
    is_external: bool,
    cache: Option<OldCache>,
    /// The gateway's configuration as it will be.
    pub config: String,
    /// Paths in the old container, and in config/.
    pub files: Vec<(String, String)>,
    pub notes: Vec<Note>,
}

fn note(what: impl Into<String>, how: impl Into<String>) -> Note {
    Note {
        what: what.into(),
        how: how.into(),
    }
}

fn image_name(container: &Container) -> &str {
    let name = container.config.image.as_str();
    name.rsplit('/').next().unwrap_or(name)
}

fn is_postgres(container: &Container) -> bool {
    let env = &container.config.env;
    let name = image_name(container);
    env.contains_key("PG_MAJOR")
        || ["postgres", "pgvector", "timescale"]
            .iter()
            .any(|word| name.contains(word))
}

fn is_gateway(container: &Container) -> bool {
    let is_litellm = image_name(container).contains("litellm");
    is_litellm || container.config.env.contains_key(MASTER) && !is_postgres(container)
}

impl<'a> Chosen<'a> {
    /// The deployment in `directory`, and its gateway: `service`, or the only one that can be it.
    ///
    /// # Errors
    /// When there is none, or several; with the candidates.
    pub(crate) fn new(
        all: &'a [Container],
        directory: &Path,
        service: Option<&str>,
    ) -> Result<Self> {
        let (own, foreign): (Vec<_>, Vec<_>) = all
            .iter()
            .partition(|container| container.directory() == Some(directory));
        if own.is_empty() {
            let elsewhere = foreign
                .iter()
                .filter(|container| is_gateway(container))
                .find_map(|container| container.directory());
            return Err(Failure::new(format!(
                "Docker has no container of a compose file in {}",
                directory.display()
            ))
            .hint(match elsewhere {
                Some(other) => format!("name the directory of the compose file: `litellm-units import {}`", other.display()),
                None => "name the directory of the compose file; a deployment that is down has to be up first: `docker compose up -d`".into(),
            })
            .into());
        }
        let mut candidates: Vec<&str> = own
            .iter()
            .filter(|container| match service {
                Some(service) => container.service() == service,
                None => is_gateway(container),
            })
            .map(|container| container.service())
            .collect();
        candidates.sort_unstable();
        candidates.dedup();
        if candidates.len() > 1 {
            // One that has ended, as a migration, is not the gateway.
            let runs = |name: &&str| {
                own.iter()
                    .any(|container| container.service() == *name && container.state.running)
            };
            let running: Vec<&str> = candidates.iter().copied().filter(runs).collect();
            if !running.is_empty() {
                candidates = running;
            }
        }
        let [gateway] = candidates[..] else {
            let mut names: Vec<&str> = match candidates[..] {
                [] => own.iter().map(|container| container.service()).collect(),
                _ => candidates,
            };
            names.sort_unstable();
            names.dedup();
            let place = directory.display();
            return Err(Failure::new(format!(
                "can't tell which service in {place} is the LiteLLM gateway: {}",
                names.join(", ")
            ))
            .hint(format!(
                "name it: `litellm-units import --service {} {place}`",
                names[0]
            ))
            .into());
        };
        let (mut gateways, others): (Vec<_>, Vec<_>) = own
            .into_iter()
            .partition(|container| container.service() == gateway);
        gateways.sort_by_key(|container| !container.state.running);
        Ok(Self {
            gateways,
            others,
            all,
        })
    }

    /// The container that the others of its service are like.
    pub(crate) fn gateway(&self) -> &'a Container {
        self.gateways[0]
    }

    /// The port on which the gateway listens in its container.
    fn port(&self) -> u16 {
        let gateway = self.gateway();
        let named = option(&words(gateway), &["--port"]).or_else(|| variable(gateway, "PORT"));
        named.and_then(|port| port.parse().ok()).unwrap_or(4000)
    }

    /// The ports of this host that the gateway has.
    pub(crate) fn host_ports(&self) -> Vec<u16> {
        let published = self.gateways.iter().flat_map(|one| one.published());
        let ports = published.filter_map(|(address, _)| address.rsplit(':').next()?.parse().ok());
        let is_host = self.gateway().host_config.network_mode == "host";
        ports.chain(is_host.then(|| self.port())).collect()
    }

    /// Those of the containers `names` that run.
    pub(crate) fn running(&self, names: Vec<&str>) -> Vec<String> {
        let is_running = |name: &&str| {
            let mut all = self.all.iter();
            all.any(|container| container.name() == *name && container.state.running)
        };
        let names = names.into_iter().filter(is_running);
        names.map(str::to_owned).collect()
    }

    /// The gateway's configuration in its container.
    pub(crate) fn config_path(&self) -> Option<String> {
        let gateway = self.gateway();
        let words = words(gateway);
        let named = option(&words, &["--config"]).or_else(|| option(&words, &["-c"]));
        let named = named.or_else(|| variable(gateway, "CONFIG_FILE_PATH"))?;
        if named.starts_with('/') {
            return Some(named);
        }
        let directory = gateway.config.working_dir.trim_end_matches('/');
        Some(format!("{directory}/{}", named.trim_start_matches("./")))
    }

    /// The container that the gateway reaches as `host:port`.
    fn server(&self, host: &str, port: u16) -> Option<&'a Container> {
        self.server_of(self.gateway(), host, port)
    }

    /// The container that `client` reaches as `host:port`.
    fn server_of(&self, client: &Container, host: &str, port: u16) -> Option<&'a Container> {
        let is_this_host =
            ["localhost", "127.0.0.1", "::1", "host.docker.internal"].contains(&host);
        self.all.iter().find(|container| {
            if is_this_host {
                let published = container.published();
                let wanted = format!(":{port}");
                published
                    .iter()
                    .any(|(address, _)| address.ends_with(&wanted))
            } else {
                container.is_reached_by(client, host)
            }
        })
    }

    /// A running container beside the gateway's that has the same database as its own.
    fn writer(&self, server: &Container, database: &str) -> Option<&'a Container> {
        self.all.iter().find(|client| {
            let is_gateway = || self.gateways.iter().any(|one| one.name() == client.name());
            let reaches = || {
                let url = database_url(&client.config.env)?;
                let (_, name) = parse_url(&url).ok()?;
                let (host, port) = address(url.expose_secret(), 5432)?;
                let found = self.server_of(client, &host, port)?;
                Some(name == database && found.name() == server.name())
            };
            client.state.running && !is_gateway() && reaches() == Some(true)
        })
    }
}

/// The words of a container's command line, those of `sh -c` as well, but not the shell's own option.
fn words(container: &Container) -> Vec<String> {
    const SHELLS: [&str; 4] = ["sh", "ash", "bash", "dash"];
    let mut is_shell = false;
    let mut words = Vec::new();
    for whole in std::iter::once(&container.path).chain(&container.args) {
        if is_shell && whole == "-c" {
            is_shell = false;
            continue;
        }
        let program = whole.rsplit('/').next().unwrap_or(whole);
        is_shell |= SHELLS.contains(&program);
        let parts = whole.split_whitespace();
        words.extend(parts.map(|word| word.trim_matches(['"', '\'']).to_owned()));
    }
    words
}

/// The value of an option, as `--option value` or `--option=value`.
fn option(words: &[String], names: &[&str]) -> Option<String> {
    words.iter().enumerate().find_map(|(at, word)| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), words.get(at + 1).cloned()),
        };
        names.contains(&name).then_some(value).flatten()
    })
}

fn variable(container: &Container, name: &str) -> Option<String> {
    let value = container.config.env.get(name)?;
    Some(value.expose_secret().to_owned())
}

/// A reference as Podman takes it: Docker leaves out docker.io and library.
fn qualified(reference: &str) -> String {
    match reference.split_once('/') {
        None => format!("docker.io/library/{reference}"),
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => {
            reference.to_owned()
        }
        Some(_) => format!("docker.io/{reference}"),
    }
}

/// The repository of a reference.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or_default();
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path..].find(':') {
        Some(colon) => &name[..path + colon],
        None => name,
    }
}

/// The image that runs, with the digest that its registry has it by.
fn image(container: &Container, image: &DockerImage) -> Result<(ImageReference, Option<String>)> {
    let digests = || {
        let digests = image.repo_digests.iter();
        digests.map(|digest| qualified(digest))
    };
    let mut reference = qualified(&container.config.image);
    // The tag of an image that was replaced is no name of it any more.
    if container.config.image.starts_with("sha256:")
        && let Some(digest) = digests().next()
    {
        reference = digest;
    }
    let digest = digests()
        .find(|digest| repository(digest) == repository(&reference))
        .and_then(|digest| Some(digest.split_once('@')?.1.to_owned()));
    let parsed = match (ImageReference::parse(&reference), &digest) {
        (Err(ImageError::Floating(..) | ImageError::Unpinned(_)), Some(digest)) => {
            ImageReference::parse(&format!("{reference}@{digest}"))
        }
        (parsed, _) => parsed,
    };
    let parsed = parsed.map_err(|error| {
        Failure::new(format!(
            "the image of service {} was built on this host, and its name says no version: {error}",
            container.service()
        ))
        .hint("give it a version in the compose file, such as `image: localhost/litellm:1`, and run `docker compose up -d --build` there")
    })?;
    let digest = parsed.digest().map(str::to_owned).or(digest);
    Ok((parsed, digest))
}

/// The image of `container` if it is the official one or made of it, which the units can run; else the official one of
/// the same major version.
fn postgres_image(container: &Container, notes: &mut Vec<Note>) -> Result<ImageReference> {
    const OFFICIAL: &str = "docker.io/library/postgres";
    let reference = qualified(&container.config.image);
    let parsed = ImageReference::parse(&reference).ok();
    let is_like_official = container.path.ends_with("docker-entrypoint.sh")
        && container.config.env.contains_key("PG_MAJOR");
    if let Some(same) = parsed
        .clone()
        .filter(|same| same.name() == OFFICIAL || is_like_official)
    {
        return Ok(same);
    }
    let major = variable(container, "PG_MAJOR")
        .or_else(|| Some(parsed?.major()?.to_string()))
        .ok_or_else(|| {
            Failure::new(format!(
                "can't tell which major version of PostgreSQL {} has",
                container.config.image
            ))
            .hint(format!("move the deployment by hand: {BY_HAND}"))
        })?;
    let instead = format!("{OFFICIAL}:{major}");
    if repository(&reference) != OFFICIAL {
        notes.push(note(
            format!(
                "image {} of service {}",
                container.config.image,
                container.service()
            ),
            format!("{instead} is used, which lacks the extensions of the other image"),
        ));
    }
    ImageReference::parse(&instead).map_err(Into::into)
}

/// `DATABASE_URL` of the parts of which LiteLLM makes it.
fn joined_url(env: &BTreeMap<String, SecretString>) -> Option<SecretString> {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let part = |name: &str| {
        let value = env.get(name)?.expose_secret();
        (!value.is_empty()).then(|| utf8_percent_encode(value, NON_ALPHANUMERIC).to_string())
    };
    let host = env.get("DATABASE_HOST")?.expose_secret();
    let (user, name) = (part("DATABASE_USERNAME")?, part("DATABASE_NAME")?);
    let password = part("DATABASE_PASSWORD").map_or(String::new(), |part| format!(":{part}"));
    let at = part("DATABASE_PORT").map_or(String::new(), |port| format!(":{port}"));
    let schema =
        part("DATABASE_SCHEMA").map_or(String::new(), |schema| format!("?schema={schema}"));
    Some(format!("postgresql://{user}{password}@{host}{at}/{name}{schema}").into())
}

/// The URL of the database that a container's variables name.
fn database_url(env: &BTreeMap<String, SecretString>) -> Option<SecretString> {
    let url = env.get("DATABASE_URL");
    let url = url.filter(|url| !url.expose_secret().is_empty());
    url.cloned().or_else(|| joined_url(env))
}

/// The schema in which Prisma has its tables, if the URL names one.
fn schema(url: &str) -> Option<String> {
    let url = reqwest::Url::parse(url).ok()?;
    let mut parameters = url.query_pairs();
    parameters.find_map(|(name, value)| (name == "schema").then(|| value.into_owned()))
}

/// Host and port of a URL.
fn address(url: &str, port: u16) -> Option<(String, u16)> {
    let url = reqwest::Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port().unwrap_or(port)))
}

/// Whether `text` has `name` as the host of a URL.
fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let before = &text[..at];
        let after = text[at + name.len()..].chars().next();
        (before.ends_with("//") || before.ends_with('@'))
            && after.is_none_or(|after| ":/?\"' \n".contains(after))
    })
}

/// The salt of stored credentials is never made up. `disproved`: where the one is from that decrypts nothing.
pub(crate) fn unknown_salt(service: &str, disproved: Option<&str>) -> Failure {
    const KEY: &str = "the key with which the old gateway encrypts its stored credentials";
    let how = format!(
        "an entrypoint or a secret file may set it: in the compose file, write it as {SALT} into `environment:` of service {service} (without a salt: {MASTER}), and run `docker compose up -d {service}`"
    );
    match disproved {
        None => Failure::new(format!("Docker does not show {KEY}")).hint(how),
        Some(source) => Failure::new(format!("{KEY} is another one than Docker shows ({source})"))
            .hint(format!(
                "{how}; or delete the stored credentials that the old gateway can't decrypt either"
            )),
    }
}

/// The parts of a plan while it is made.
struct Maker<'a> {
    chosen: &'a Chosen<'a>,
    /// What the compose file gives to the gateway.
    given: BTreeMap<String, SecretString>,
    env: EnvFile,
    generated: Vec<&'static str>,
    notes: Vec<Note>,
}

impl Maker<'_> {
    fn put(&mut self, name: &str, value: &str) -> Result<()> {
        self.env.set(name, value).map_err(|error| {
            Failure::new(format!(
                "{name} of the old gateway can't be written to .env: {error}"
            ))
            .hint(format!("move the deployment by hand: {BY_HAND}"))
            .into()
        })
    }

    /// Writes a value that the old deployment does not have.
    fn generate(&mut self, name: &'static str, value: &str) -> Result<()> {
        self.generated.push(name);
        self.put(name, value)
    }

    fn value(&self, name: &str) -> Option<String> {
        let value = self.given.get(name)?.expose_secret();
        (!value.is_empty()).then(|| value.to_owned())
    }
}

impl Plan {
    /// `config`: the text of the old configuration. `is_file`: whether a path on the host is a regular file.
    ///
    /// # Errors
    /// When the deployment can't be imported, with what to do instead.
    pub(crate) fn new(
        chosen: &Chosen<'_>,
        docker_image: &DockerImage,
        config: Option<&str>,
        is_file: &dyn Fn(&str) -> bool,
        random: Random<'_>,
    ) -> Result<Self> {
        let gateway = chosen.gateway();
        let (image, digest) = image(gateway, docker_image)?;
        let mut given = gateway.config.env.clone();
        given.retain(|name, value| {
            let of_image = docker_image.config.env.get(name);
            of_image.is_none_or(|other| other.expose_secret() != value.expose_secret())
        });
        let mut maker = Maker {
            chosen,
            given,
            env: EnvFile::parse(HEADER)?,
            generated: Vec::new(),
            notes: Vec::new(),
        };
        let mut sources = BTreeMap::new();
        let old = rewrite::Old::read(config.unwrap_or_default(), &gateway.config.env)?;

        let (files, renamed) = files(&mut maker, is_file);
        maker.address();

        maker.put("LITELLM_IMAGE", image.as_str())?;
        let master = old.master_key.clone().or_else(|| {
            let value = maker.value(MASTER)?;
            Some((value.into(), MASTER.to_owned()))
        });
        if let Some((value, source)) = &master {
            maker.put(MASTER, value.expose_secret())?;
            if source != MASTER {
                sources.insert(MASTER.to_owned(), source.clone());
            }
        } else {
            maker.generate(MASTER, &secret_key(random)?)?;
            maker.notes.push(note(
                "the old gateway has no master key and serves everyone",
                "the new one gets a master key, and every client needs a key of its own: `litellm-units key create`",
            ));
        }
        let salt = match (gateway.config.env.get(SALT), master) {
            (Some(value), _) if value.expose_secret().is_empty() => Some(Salt {
                value: String::new().into(),
                source: "empty, as LITELLM_SALT_KEY of the old gateway is",
            }),
            (Some(value), _) => Some(Salt {
                value: value.clone(),
                source: "LITELLM_SALT_KEY of the old gateway",
            }),
            (None, Some((value, _))) => Some(Salt {
                value,
                source: "the master key, since the old gateway has no LITELLM_SALT_KEY",
            }),
            (None, None) => None,
        };
        match &salt {
            Some(salt) => maker.put(SALT, salt.value.expose_secret())?,
            None => maker.generate(SALT, &secret_key(random)?)?,
        }

        let database = maker.database(old.database_url.clone(), random)?;
        let is_external = maker.env.get("DATABASE_URL").is_some();
        if is_external && salt.is_none() {
            return Err(unknown_salt(gateway.service(), None).into());
        }
        if !is_external && database.is_none() {
            maker.put("POSTGRES_USER", DEFAULT_POSTGRES_NAME)?;
            maker.generate("POSTGRES_PASSWORD", &password(random)?)?;
            maker.put("POSTGRES_DB", DEFAULT_POSTGRES_NAME)?;
        }
        let cache = maker.cache(&old)?;
        if cache.is_some() && old.buffers_spend {
            maker.notes.push(note(
                "spend that waits in Redis (use_redis_transaction_buffer)",
                "what the old gateway has not written to its database when it stops is lost: import while there are no requests",
            ));
        }
        if maker.env.get("REDIS_HOST").is_none() {
            maker.generate("REDIS_PASSWORD", &password(random)?)?;
        }
        maker.variables(database.is_some(), &renamed)?;
        let service = cache.as_ref().map(|cache| cache.service.as_str());
        maker.options(database.as_ref(), service);
        maker.sidecars(config, database.as_ref(), service);
        let config = old.rewritten(&Rewrite {
            cache: cache.is_some(),
            paths: &renamed,
        })?;
        Ok(Self {
            service: gateway.service().to_owned(),
            image,
            digest,
            env: maker.env,
            generated: maker.generated,
            sources,
            salt,
            database,
            is_external,
            cache,
            config,
            files,
            notes: maker.notes,
        })
    }

    /// The containers of the old database and the old cache.
    pub(crate) fn servers(&self) -> Vec<&str> {
        let database = self.database.as_ref().map(|old| old.container.as_str());
        let cache = self.cache.as_ref().map(|old| old.container.as_str());
        database.into_iter().chain(cache).collect()
    }

    /// The plan as the operator reads it. `database`: what the server says of it; `proof`: of the salt.
    pub(crate) fn lines(&self, database: Option<&str>, proof: Option<&str>) -> Vec<String> {
        let mut rows = Vec::new();
        let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), text]);
        let digest = match (self.image.digest(), &self.digest) {
            (None, Some(digest)) => format!("@{digest}"),
            (None, None) => ", built on this host".into(),
            (Some(_), _) => String::new(),
        };
        row(
            "gateway",
            format!("service {}, {}{digest}", self.service, self.image),
        );
        row(
            "database",
            match (&self.database, self.is_external) {
                (Some(old), _) => format!(
                    "service {}, database {} of {}{}: copied to {}",
                    old.service,
                    old.name,
                    old.user,
                    database.map_or(String::new(), |facts| format!(", {facts}")),
                    old.image
                ),
                (None, true) => "external (DATABASE_URL): stays where it is".into(),
                (None, false) => "none; the new gateway begins with an empty one".into(),
            },
        );
        row(
            "cache",
            match (&self.cache, self.env.get("REDIS_HOST")) {
                (Some(OldCache { service, .. }), _) => format!(
                    "service {service}: not copied; LiteLLM keeps cached answers and counters of rate limits in it"
                ),
                (None, Some(_)) => "external (REDIS_HOST): stays where it is".into(),
                (None, None) => "none; a local Redis is started".into(),
            },
        );
        row(
            "salt",
            match &self.salt {
                Some(salt) => format!("{}; {}", salt.source, proof.unwrap_or("unproved")),
                None => "a new one: the old gateway has neither a salt nor a master key".into(),
            },
        );
        let names = |secret: bool| {
            let wanted = |name: &str, value: &str| {
                let is_new = name == "REDIS_PASSWORD" && self.env.get("REDIS_HOST").is_none();
                is_secret(name, value) == secret
                    && name != SALT
                    && !is_new
                    && !BY_UNITS.contains(&name)
            };
            let names = self.env.iter().filter(|(name, value)| wanted(name, value));
            let names = names.map(|(name, _)| match self.sources.get(name) {
                Some(source) => format!("{name} (from {source})"),
                None => name.to_owned(),
            });
            names.collect::<Vec<_>>().join(", ")
        };
        row("secrets", names(true));
        row("variables", names(false));
        row("config", "config/litellm-config.yaml".into());
        for (from, to) in &self.files {
            row("file", format!("{from} -> config/{to}"));
        }
        rows.retain(|row| !row[1].is_empty());
        let mut lines: Vec<String> = crate::output::columns(&rows)
            .lines()
            .map(str::to_owned)
            .collect();
        if !self.notes.is_empty() {
            lines.push(String::new());
            lines.push("Not taken over:".into());
            for Note { what, how } in &self.notes {
                lines.push(format!("- {what}: {how}"));
            }
        }
        lines
    }
}

impl Maker<'_> {
    fn address(&mut self) {
        let own = self.chosen.port();
        let published: Vec<String> = self
            .chosen
            .gateway()
            .published()
            .into_iter()
            .filter(|(_, port)| *port == own)
            .map(|(address, _)| address)
            .collect();
        if !published.is_empty() {
            let addresses = published.join(" ");
            let is_local =
                |word: &String| ListenAddress::parse(word).is_ok_and(|one| one.is_local());
            let is_random = |word: &String| word.ends_with(":0");
            let words = published.join(", ");
            if published.iter().any(is_random) {
                self.notes.push(note(
                    format!("address {words}, a port that Docker chooses"),
                    format!("the new gateway listens on 127.0.0.1:{GATEWAY_PORT} (docs/configuration.md, \"Addresses\")"),
                ));
                return;
            }
            let without_tls = if published.iter().all(is_local) {
                ""
            } else {
                " and LISTEN_WITHOUT_TLS=yes"
            };
            self.notes.push(note(
                format!("address {words}"),
                format!("the new gateway listens on 127.0.0.1:{GATEWAY_PORT}; to keep the old address, add LISTEN={addresses}{without_tls} to .env afterwards, then run `litellm-units apply`; or put a reverse proxy there (docs/reverse-proxy.md)"),
            ));
        }
    }

    /// Finds the database; writes its variables.
    fn database(
        &mut self,
        of_config: Option<SecretString>,
        random: Random<'_>,
    ) -> Result<Option<OldDatabase>> {
        let Some(url) = of_config.or_else(|| database_url(&self.given)) else {
            return Ok(None);
        };
        let by_hand = || format!("move the deployment by hand: {BY_HAND}");
        let (host, port) = address(url.expose_secret(), 5432).ok_or_else(|| {
            Failure::new("DATABASE_URL of the old gateway is not a URL with a host").hint(by_hand())
        })?;
        let Some(server) = self.chosen.server(&host, port) else {
            self.put("DATABASE_URL", url.expose_secret())?;
            return Ok(None);
        };
        if !is_postgres(server) {
            return Err(Failure::new(format!(
                "the gateway's database is behind service {} ({}), which is not PostgreSQL",
                server.service(),
                server.config.image
            ))
            .hint(format!("in the compose file, let DATABASE_URL name PostgreSQL itself, and run `docker compose up -d`; or {}", by_hand()))
            .into());
        }
        if let Some(schema) = schema(url.expose_secret()).filter(|schema| schema != "public") {
            return Err(Failure::new(format!(
                "the old gateway's tables are in the schema {schema} of its database (DATABASE_URL), and a local PostgreSQL has them in public"
            ))
            .hint(format!(
                "rename the schema while the old gateway is stopped (`DROP SCHEMA public; ALTER SCHEMA \"{schema}\" RENAME TO public`), and remove the parameter `schema` from DATABASE_URL"
            ))
            .into());
        }
        let (mut variables, name) = parse_url(&url)?;
        if let Some(other) = self.chosen.writer(server, &name) {
            let other_name = other.name();
            return Err(Failure::new(format!(
                "the container {other_name} ({}) writes to the gateway's database, too (DATABASE_URL), and would go on writing to the old one",
                other.config.image
            ))
            .hint(format!(
                "stop it: `docker update --restart=no {other_name} && docker stop {other_name}`, then run the same command again"
            ))
            .into());
        }
        // Inside its own container, where it has its own port.
        let own = server
            .published()
            .into_iter()
            .find(|(address, _)| address.ends_with(&format!(":{port}")));
        let port = own.map_or(port, |(_, own)| own).to_string();
        for (variable, value) in &mut variables {
            match *variable {
                "PGHOST" => *value = "127.0.0.1".into(),
                "PGPORT" => *value = port.clone().into(),
                _ => {}
            }
        }
        let user = variables.iter().find(|(name, _)| *name == "PGUSER");
        let user = user.map_or("", |(_, user)| user.expose_secret()).to_owned();
        let parameters = url.expose_secret().split_once('?').map(|(_, text)| text);
        if let Some(parameters) = parameters {
            let names: Vec<&str> = parameters
                .split('&')
                .filter_map(|parameter| parameter.split('=').next())
                .collect();
            self.notes.push(note(
                format!("parameters of DATABASE_URL ({})", names.join(", ")),
                "the local PostgreSQL is reached without any; the pool of connections is general_settings.database_connection_pool_limit",
            ));
        }
        let image = postgres_image(server, &mut self.notes)?;
        self.put("POSTGRES_IMAGE", image.as_str())?;
        self.put("POSTGRES_USER", &user)?;
        self.generate("POSTGRES_PASSWORD", &password(random)?)?;
        self.put("POSTGRES_DB", &name)?;
        Ok(Some(OldDatabase {
            container: server.name().to_owned(),
            service: server.service().to_owned(),
            variables,
            name,
            user,
            image,
        }))
    }

    /// Finds the cache; returns a local one. An external one gets its variables.
    fn cache(&mut self, old: &rewrite::Old) -> Result<Option<OldCache>> {
        let of_env = self.value("REDIS_HOST").map(|host| rewrite::Redis {
            host,
            port: self.value("REDIS_PORT"),
            password: self.value("REDIS_PASSWORD").map(Into::into),
        });
        let of_url = self
            .value("REDIS_URL")
            .and_then(|url| rewrite::Redis::of_url(&url));
        let servers = of_env.into_iter().chain(of_url).chain(old.redis.clone());
        // The first one decides.
        if let Some(server) = servers.into_iter().next() {
            let port = server.port.as_deref().and_then(|port| port.parse().ok());
            if let Some(found) = self.chosen.server(&server.host, port.unwrap_or(6379)) {
                return Ok(Some(OldCache {
                    container: found.name().to_owned(),
                    service: found.service().to_owned(),
                }));
            }
            self.put("REDIS_HOST", &server.host)?;
            self.put("REDIS_PORT", server.port.as_deref().unwrap_or("6379"))?;
            if let Some(password) = &server.password {
                self.put("REDIS_PASSWORD", password.expose_secret())?;
            }
            return Ok(None);
        }
        let several = ["REDIS_CLUSTER_NODES", "REDIS_SENTINEL_NODES"];
        match several.into_iter().find(|name| self.value(name).is_some()) {
            Some(name) => Err(Failure::new(format!(
                "the old gateway uses several servers of Redis ({name}), for which litellm-units has no setting"
            ))
            .hint("in the compose file, let REDIS_HOST name one server, and run `docker compose up -d`")
            .into()),
            None => Ok(None),
        }
    }

    /// Takes over what else the compose file gives to the gateway.
    fn variables(
        &mut self,
        local_database: bool,
        renamed: &BTreeMap<String, String>,
    ) -> Result<()> {
        let local_cache = self.env.get("REDIS_HOST").is_none();
        let mut of_address = Vec::new();
        for (name, value) in self.given.clone() {
            let value = value.expose_secret();
            let of_database = name == "DATABASE_URL"
                || DATABASE_PARTS.contains(&name.as_str())
                || name == "DIRECT_URL" && local_database;
            if is_refused(&name) {
                of_address.push(name);
                continue;
            }
            if of_database
                || name.starts_with("REDIS_") && local_cache
                || BY_UNITS.contains(&name.as_str())
                || self.env.get(&name).is_some()
            {
                continue;
            }
            let moved = rewrite::new_path(value, renamed);
            self.put(&name, moved.as_deref().unwrap_or(value))?;
        }
        if !of_address.is_empty() {
            self.notes.push(note(
                format!("variables of the address ({})", of_address.join(", ")),
                "systemd holds the address; TLS is for a reverse proxy (docs/reverse-proxy.md)",
            ));
        }
        let words = words(self.chosen.gateway());
        if let Some(workers) = option(&words, &["--num_workers"])
            && self.env.get("NUM_WORKERS").is_none()
        {
            self.put("NUM_WORKERS", &workers)?;
        }
        Ok(())
    }

    /// Notes what else the gateway's container has.
    fn options(&mut self, database: Option<&OldDatabase>, cache: Option<&str>) {
        const OF_SYSTEMD: &str = "`systemctl edit litellm.service`, and the same for litellm-standby.service and further gateways";
        const DROP_IN: &str = "a drop-in (docs/configuration.md, \"Drop-ins\")";
        let gateway = self.chosen.gateway();
        for word in words(gateway) {
            match word.split('=').next().unwrap_or_default() {
                "--debug" | "--detailed_debug" => self.notes.push(note(
                    format!("option {word}"),
                    "write LITELLM_LOG=DEBUG into .env",
                )),
                "--config" | "--port" | "--host" | "--num_workers" => {}
                option if option.starts_with("--") => self.notes.push(note(
                    format!("option {option}"),
                    "the units give LiteLLM its options; most have a variable for .env",
                )),
                _ => {}
            }
        }
        let host = &gateway.host_config;
        if host.memory > 0 {
            self.notes.push(note(
                format!("memory limit of {}", crate::output::bytes(host.memory)),
                format!("MemoryMax= by {OF_SYSTEMD}"),
            ));
        }
        if !host.extra_hosts.is_empty() {
            self.notes.push(note(
                format!("extra_hosts {}", host.extra_hosts.join(", ")),
                format!("AddHost= in {DROP_IN}"),
            ));
        }
        if host.network_mode == "host" {
            self.notes.push(note(
                "network_mode: host",
                "the new gateway has a network of its own; it reaches this host as host.containers.internal",
            ));
        }
        let proxy = ["traefik.", "caddy"];
        let labels = gateway.config.labels.keys();
        if let Some(label) = labels
            .into_iter()
            .find(|label| proxy.iter().any(|word| label.starts_with(word)))
        {
            self.notes.push(note(
                format!("labels for a reverse proxy ({label} …)"),
                format!("let the proxy forward to 127.0.0.1:{GATEWAY_PORT} of this host; from a container, that needs the network of the host, or a Unix socket instead (docs/reverse-proxy.md)"),
            ));
        }
        let mut left: Vec<&str> = Vec::new();
        left.extend(database.map(|old| old.service.as_str()));
        left.extend(cache);
        if !left.is_empty() {
            self.notes.push(note(
                format!("containers of {}", left.join(" and ")),
                "they stay as they are, for `litellm-units import --undo`; when you no longer need that: `docker compose down` (without `-v`, the data stays)",
            ));
        }
    }

    fn sidecars(
        &mut self,
        config: Option<&str>,
        database: Option<&OldDatabase>,
        cache: Option<&str>,
    ) {
        let mut services: Vec<(&str, &str)> = Vec::new();
        for other in &self.chosen.others {
            let service = (other.service(), other.config.image.as_str());
            let is_known =
                database.is_some_and(|old| old.service == service.0) || cache == Some(service.0);
            if !is_known && !services.contains(&service) {
                services.push(service);
            }
        }
        for (service, image) in services {
            let mut places: Vec<String> = self
                .env
                .iter()
                .filter(|(_, value)| mentions(value, service))
                .map(|(name, _)| name.to_owned())
                .collect();
            if config.is_some_and(|text| mentions(text, service)) {
                places.push("the configuration".into());
            }
            let how = if places.is_empty() {
                "it stays with Docker".to_owned()
            } else {
                format!(
                    "it stays with Docker, and the new gateway can't reach it by that name: publish its port on an address that containers reach, not on 127.0.0.1, and write host.containers.internal:PORT in {}",
                    places.join(" and ")
                )
            };
            self.notes
                .push(note(format!("service {service} ({image})"), how));
        }
    }
}

/// The mounted files: from where and to where they are copied, and the new path of each in the container.
fn files(
    maker: &mut Maker<'_>,
    is_file: &dyn Fn(&str) -> bool,
) -> (Vec<(String, String)>, BTreeMap<String, String>) {
    let config = maker.chosen.config_path();
    let directory = config.as_deref().map(Path::new).and_then(Path::parent);
    let directory = directory.filter(|directory| *directory != Path::new("/"));
    let (mut files, mut renamed) = (Vec::new(), BTreeMap::new());
    for mount in &maker.chosen.gateway().mounts {
        let path = mount.destination.as_str();
        if config.as_deref() == Some(path) {
            continue;
        }
        let relative = directory.and_then(|directory| Path::new(path).strip_prefix(directory).ok());
        let has_config = directory.is_some_and(|directory| directory.starts_with(path));
        let is_file = is_file(&mount.source);
        let to: PathBuf = match relative {
            // The directory of the configuration, or one above it, of which only this one counts.
            _ if has_config && !is_file => PathBuf::new(),
            Some(relative) if is_file => relative.to_owned(),
            None if is_file => Path::new(path).file_name().unwrap_or_default().into(),
            _ => {
                maker.notes.push(note(
                    format!("{} at {path}", mount.source),
                    "Volume= in a drop-in (docs/configuration.md, \"Drop-ins\"), or copy the files into config/",
                ));
                continue;
            }
        };
        let to = to.to_string_lossy().into_owned();
        let from = match (has_config, directory) {
            (true, Some(directory)) if !is_file => directory.display().to_string(),
            _ => path.to_owned(),
        };
        if files.iter().any(|(_, other)| *other == to) || to == "litellm-config.yaml" {
            maker.notes.push(note(
                format!("file {path}"),
                format!("config/{to} is another one: copy it by hand, under another name"),
            ));
            continue;
        }
        let new = format!("{CONFIG}/{to}");
        renamed.insert(from.clone(), new.trim_end_matches('/').to_owned());
        files.push((from, to));
    }
    (files, renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:3b0c77f0c9f2e0f1b119a8189f20c7092aa086bc24005508d222076c12744f2a";

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/import")
            .join(name)
    }

    fn containers(name: &str) -> Vec<Container> {
        let text = std::fs::read(fixture(&format!("{name}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn image_of(repository: &str) -> DockerImage {
        let text = serde_json::json!({
            "RepoDigests": [format!("{repository}@{DIGEST}")],
            "Config": {"Env": [
                "PATH=/app/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "PRISMA_QUERY_ENGINE_BINARY=/usr/local/lib/prisma/query-engine",
                "USE_PRISMA_MIGRATE=True",
                "LITELLM_LOCAL_MODEL_COST_MAP=True"
            ]}
        });
        serde_json::from_value(text).unwrap()
    }

    fn plan(
        all: &[Container],
        directory: &str,
        service: Option<&str>,
        config: Option<&str>,
    ) -> Result<Plan> {
        let chosen = Chosen::new(all, Path::new(directory), service)?;
        let name = repository(&qualified(&chosen.gateway().config.image)).to_owned();
        let is_file = |path: &str| path.contains('.');
        let mut drawn = 0;
        let mut random = |bytes: &mut [u8]| {
            drawn += 1;
            bytes.fill(drawn);
            Ok(())
        };
        Plan::new(&chosen, &image_of(&name), config, &is_file, &mut random)
    }

    #[test]
    fn plans_of_recorded_deployments() {
        for (name, directory, service) in [
            // LiteLLM's own example, with a salt that is empty.
            ("example", "/root/rec/example", None),
            ("llm", "/root/llm", None),
            // The host's network, other ports, files elsewhere, a key without `sk-` in the configuration.
            ("network", "/root/rec/network", None),
            // External servers, one of them in parts, and a sidecar.
            ("parts", "/root/rec/parts", Some("gateway")),
        ] {
            let config = match name {
                "llm" => fixture("../compose/config.yaml"),
                _ => fixture(&format!("{name}.yaml")),
            };
            let config = std::fs::read_to_string(config).ok();
            let all = containers(name);
            let plan = plan(&all, directory, service, config.as_deref()).unwrap();
            let lines = plan.lines(None, None).join("\n");
            let found = format!("{lines}\n---\n{}---\n{}", plan.env.text(), plan.config);
            let expected = fixture(&format!("{name}.plan"));
            if std::env::var_os("LITELLM_UNITS_RECORD").is_some() {
                std::fs::write(&expected, &found).unwrap();
            }
            assert_eq!(found, std::fs::read_to_string(expected).unwrap(), "{name}");
        }
    }

    fn refusal(error: &anyhow::Error) -> (String, String) {
        let hint = crate::error::hint(error).unwrap_or_default().to_owned();
        (error.to_string(), hint)
    }

    #[test]
    fn a_gateway_that_can_not_be_told() {
        let all = containers("parts");
        assert_eq!(
            refusal(&plan(&all, "/root/rec/parts", None, None).unwrap_err()),
            (
                "can't tell which service in /root/rec/parts is the LiteLLM gateway: gateway, worker".into(),
                "name it: `litellm-units import --service gateway /root/rec/parts`".into()
            )
        );
        // A migration that has ended is none.
        let mut ended = containers("parts");
        for container in &mut ended {
            container.state.running = container.service() != "worker";
        }
        let chosen = Chosen::new(&ended, Path::new("/root/rec/parts"), None).unwrap();
        assert_eq!(chosen.gateway().service(), "gateway");
    }

    #[test]
    fn a_directory_without_containers() {
        let all = containers("example");
        assert_eq!(
            refusal(&plan(&all, "/srv", None, None).unwrap_err()),
            (
                "Docker has no container of a compose file in /srv".into(),
                "name the directory of the compose file: `litellm-units import /root/rec/example`"
                    .into()
            )
        );
    }

    #[test]
    fn options_of_a_shell() {
        let directory = Path::new("/root/rec/network");
        let mut all = containers("network");
        let path = |all: &[Container]| Chosen::new(all, directory, None).unwrap().config_path();
        assert_eq!(path(&all).unwrap(), "/srv/proxy.yaml");
        for (args, expected) in [
            (
                vec!["sh", "-c", "litellm --port 1 -c a.yaml"],
                Some("/srv/a.yaml"),
            ),
            (vec!["/bin/bash", "-e", "-c", "exec litellm"], None),
            (vec!["-c", "/etc/b.yaml"], Some("/etc/b.yaml")),
        ] {
            for container in &mut all {
                if container.service() == "proxy" {
                    container.args = args.iter().map(|&word| word.to_owned()).collect();
                }
            }
            assert_eq!(path(&all).as_deref(), expected, "{args:?}");
        }
    }

    /// Changes what the gateway of `llm` has.
    fn llm(change: impl Fn(&mut BTreeMap<String, SecretString>)) -> Vec<Container> {
        let mut all = containers("llm");
        for container in &mut all {
            if container.service() == "litellm" {
                change(&mut container.config.env);
            }
        }
        all
    }

    #[test]
    fn tables_in_another_schema() {
        let all = llm(|env| {
            let url = "postgresql://llmproxy:dbpassword9090@db:5432/litellm?schema=llm";
            env.insert("DATABASE_URL".into(), url.into());
        });
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, None).unwrap_err()).0,
            "the old gateway's tables are in the schema llm of its database (DATABASE_URL), and a local PostgreSQL has them in public"
        );
        let mut all = containers("parts");
        for container in &mut all {
            let env = &mut container.config.env;
            env.insert("DATABASE_SCHEMA".into(), "my llm".into());
        }
        let plan = plan(&all, "/root/rec/parts", Some("gateway"), None).unwrap();
        assert_eq!(
            plan.env.get("DATABASE_URL"),
            Some("postgresql://llm:a%2Fb@db.example.org/llm?schema=my%20llm")
        );
    }

    #[test]
    fn another_writer_of_the_database() {
        let text = std::fs::read(fixture("llm.json")).unwrap();
        let mut all: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        let mut worker = all[0].clone();
        worker["Name"] = "/worker".into();
        worker["Config"]["Labels"] = serde_json::json!({});
        all.push(worker);
        let mut all: Vec<Container> = serde_json::from_value(all.into()).unwrap();
        let last = all.len() - 1;
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, None).unwrap_err()),
            (
                "the container worker (ghcr.io/berriai/litellm:v1.80.11-stable) writes to the gateway's database, too (DATABASE_URL), and would go on writing to the old one".into(),
                "stop it: `docker update --restart=no worker && docker stop worker`, then run the same command again".into()
            )
        );
        let url = "postgresql://llmproxy:x@db:5432/other";
        all[last]
            .config
            .env
            .insert("DATABASE_URL".into(), url.into());
        plan(&all, "/root/llm", None, None).unwrap();
        let url = "postgresql://llmproxy:x@db/litellm";
        all[last]
            .config
            .env
            .insert("DATABASE_URL".into(), url.into());
        all[last].state.running = false;
        plan(&all, "/root/llm", None, None).unwrap();
    }

    #[test]
    fn a_salt_that_is_not_known() {
        let mut all = containers("parts");
        for container in &mut all {
            container.config.env.remove(MASTER);
        }
        assert_eq!(
            refusal(&plan(&all, "/root/rec/parts", Some("gateway"), None).unwrap_err()).0,
            "Docker does not show the key with which the old gateway encrypts its stored credentials"
        );
    }

    #[test]
    fn a_gateway_without_a_database() {
        let all = llm(|env| {
            env.retain(|name, _| !["DATABASE_URL", MASTER, SALT].contains(&name.as_str()));
        });
        let plan = plan(&all, "/root/llm", None, None).unwrap();
        let found = crate::deployment::completion::Existing { cluster: true };
        let completed = crate::deployment::completion::complete(
            plan.env.text(),
            Path::new(".env"),
            found,
            &mut |_: &mut [u8]| panic!("something is made up"),
        );
        let names = completed.unwrap().changes;
        assert!(
            names.iter().all(|name| name.starts_with("add empty ")),
            "{names:?}"
        );
    }

    #[test]
    fn addresses_of_the_old_gateway() {
        let note = |bindings: serde_json::Value| {
            let mut all = containers("llm");
            for container in &mut all {
                if container.service() == "litellm" {
                    let mut host = serde_json::json!({"RestartPolicy": {"Name": "always"}});
                    host["PortBindings"] = bindings.clone();
                    container.host_config = serde_json::from_value(host).unwrap();
                }
            }
            let plan = plan(&all, "/root/llm", None, None).unwrap();
            plan.notes[0].what.clone() + ": " + &plan.notes[0].how
        };
        let binding =
            |host: &str, port: &str| serde_json::json!([{"HostIp": host, "HostPort": port}]);
        let found = note(serde_json::json!({
            "4000/tcp": binding("::1", "4000"), "9090/tcp": binding("", "9090")
        }));
        assert!(
            found.starts_with("address [::1]:4000: ") && found.contains("add LISTEN=[::1]:4000 to"),
            "{found}"
        );
        let found = note(serde_json::json!({"4000/tcp": binding("", "")}));
        assert!(
            found.starts_with("address 0.0.0.0:0, a port that Docker chooses: ")
                && !found.contains("LISTEN"),
            "{found}"
        );
    }

    #[test]
    fn a_database_behind_something_else() {
        let mut all = containers("llm");
        for container in &mut all {
            if container.service() == "db" {
                container.config.image = "edoburu/pgbouncer:1".into();
                container.config.env.remove("PG_MAJOR");
            }
        }
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, None).unwrap_err()).0,
            "the gateway's database is behind service db (edoburu/pgbouncer:1), which is not PostgreSQL"
        );
    }

    #[test]
    fn an_image_without_a_version() {
        let all = containers("example");
        let chosen = Chosen::new(&all, Path::new("/root/rec/example"), None).unwrap();
        let built = DockerImage {
            repo_digests: Vec::new(),
            ..image_of("x")
        };
        assert_eq!(
            image(chosen.gateway(), &built).unwrap_err().to_string(),
            "the image of service litellm was built on this host, and its name says no version: \
             \"docker.litellm.ai/berriai/litellm:main-stable\" has the floating tag \"main-stable\""
        );
    }

    #[test]
    fn several_servers_of_redis() {
        let mut all = containers("example");
        for container in &mut all {
            let nodes = "[{\"host\":\"a\"}]".into();
            container
                .config
                .env
                .insert("REDIS_CLUSTER_NODES".into(), nodes);
        }
        assert_eq!(
            refusal(&plan(&all, "/root/rec/example", None, None).unwrap_err()).0,
            "the old gateway uses several servers of Redis (REDIS_CLUSTER_NODES), for which litellm-units has no setting"
        );
    }

    #[test]
    fn where_a_configuration_can_not_be_rewritten() {
        let all = containers("llm");
        let config =
            "litellm_settings:\n  cache_params: {type: redis, redis_url: 'redis://cache:6379'}\n";
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, Some(config)).unwrap_err()).0,
            "the old configuration, line 2: this value can't be replaced in place"
        );
    }

    #[test]
    fn names_of_images() {
        for (docker, podman, of) in [
            (
                "redis",
                "docker.io/library/redis",
                "docker.io/library/redis",
            ),
            (
                "redis:7",
                "docker.io/library/redis:7",
                "docker.io/library/redis",
            ),
            (
                "my/litellm:1",
                "docker.io/my/litellm:1",
                "docker.io/my/litellm",
            ),
            (
                "localhost:5000/a:1",
                "localhost:5000/a:1",
                "localhost:5000/a",
            ),
            (
                "ghcr.io/a/b@sha256:1",
                "ghcr.io/a/b@sha256:1",
                "ghcr.io/a/b",
            ),
        ] {
            assert_eq!(qualified(docker), podman);
            assert_eq!(repository(podman), of);
        }
    }

    #[test]
    fn hosts_in_texts() {
        for (text, found) in [
            ("http://langfuse:3000", true),
            ("redis://:p@langfuse", true),
            ("https://langfuse.example.org", false),
            ("langfuse", false),
            ("http://my-langfuse/", false),
        ] {
            assert_eq!(mentions(text, "langfuse"), found, "{text}");
        }
    }
}

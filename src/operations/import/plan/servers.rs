//! The old database and the old cache: where each of them is, and what the new gateway gets of them.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};

use super::Maker;
use super::chosen::{is_litellm, is_postgres};
use super::images::{qualified, repository};
use crate::deployment::database_url::host_parameter;
use crate::deployment::env_file::EnvFile;
use crate::deployment::settings::DEFAULT_REDIS_IMAGE;
use crate::deployment::variables::SENTINEL_NODES;
use crate::error::{Failure, Result};
use crate::host::docker::BY_HAND;
use crate::image::ImageReference;
use crate::litellm::config::is_loopback;
use crate::operations::backup::database::parse_url;
use crate::operations::import::rewrite;
use crate::random::{Random, password};

/// The PostgreSQL of the old deployment.
#[derive(Debug)]
pub(crate) struct OldDatabase {
    pub container: String,
    pub service: String,
    /// libpq's variables.
    pub variables: Vec<(&'static str, SecretString)>,
    pub name: String,
    pub(super) user: String,
    pub(super) image: ImageReference,
}

/// The Redis of the old deployment.
#[derive(Debug)]
pub(crate) struct OldCache {
    pub(super) container: String,
    pub(super) service: String,
}

impl Maker<'_> {
    /// Finds the database; writes its variables.
    pub(super) fn database(
        &mut self,
        of_config: Option<SecretString>,
        random: Random<'_>,
    ) -> Result<Option<OldDatabase>> {
        let Some(url) = of_config.or_else(|| database_url(&self.given)) else {
            return Ok(None);
        };
        let by_hand = || format!("move the deployment by hand: {BY_HAND}");
        if host_parameter(url.expose_secret()).is_some() {
            return Err(Failure::new(
                "DATABASE_URL of the old gateway has the parameter host, so Prisma connects to another server than the one before the database name",
            )
            .hint("in the compose file, write the host between @ and the port, remove the parameter, and run `docker compose up -d`; with a Unix socket, move the deployment by hand")
            .into());
        }
        let (host, port) = address(url.expose_secret(), 5432).ok_or_else(|| {
            Failure::new("DATABASE_URL of the old gateway is not a URL with a host").hint(by_hand())
        })?;
        let Some(server) = self.chosen.server(&host, port) else {
            refuse_loopback("database", &host)?;
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
        let (gateways, others): (Vec<_>, Vec<_>) =
            { self.chosen.writers(server, &name).into_iter() }
                .partition(|writer| is_litellm(writer));
        if let Some(other) = gateways.first() {
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
        if !others.is_empty() {
            let names: Vec<&str> = others.iter().map(|other| other.name()).collect();
            self.note(
                format!("containers with the DATABASE_URL of the gateway ({})", names.join(", ")),
                "one that writes to the database goes on writing to the old one: stop it before the import",
            );
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
            self.note(
                format!("parameters of DATABASE_URL ({})", names.join(", ")),
                "the local PostgreSQL is reached without any; the pool of connections is general_settings.database_connection_pool_limit",
            );
        }
        let image = self.postgres_image(server)?;
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
    pub(super) fn cache(&mut self, old: &rewrite::Old) -> Result<Option<OldCache>> {
        // LiteLLM prefers them to REDIS_HOST, and a URL or a cluster to them.
        let is_other = |name| self.value(name).is_some();
        if let Some(nodes) = self.value(SENTINEL_NODES)
            && old.redis.is_empty()
            && !["REDIS_URL", "REDIS_CLUSTER_NODES"]
                .into_iter()
                .any(is_other)
        {
            self.refuse_old_sentinels(&nodes)?;
            self.put(SENTINEL_NODES, &nodes)?;
            return Ok(None);
        }
        let of_env = self.value("REDIS_HOST").map(|host| rewrite::Redis {
            host,
            port: self.value("REDIS_PORT"),
            password: self.value("REDIS_PASSWORD").map(Into::into),
        });
        let of_url = self
            .value("REDIS_URL")
            .and_then(|url| rewrite::Redis::of_url(&url));
        let servers = of_env.into_iter().chain(of_url).chain(old.redis.clone());
        let servers: Vec<_> = servers
            .map(|server| {
                let port = server.port.as_deref().and_then(|port| port.parse().ok());
                let port: u16 = port.unwrap_or(6379);
                let found = self.chosen.server(&server.host, port);
                let place = match found {
                    Some(found) => format!("container {}", found.name()),
                    None => format!("{}:{port}", server.host),
                };
                (server, found, place)
            })
            .collect();
        if let Some((server, found, place)) = servers.first() {
            if let Some((.., other)) = servers.iter().find(|(.., other)| other != place) {
                return Err(Failure::new(format!(
                    "the old gateway has two servers of Redis, {place} and {other}, and the new one can have only one"
                ))
                .hint("let the variables REDIS_… and the configuration name the same one, and run `docker compose up -d`")
                .into());
            }
            if let Some(found) = found {
                let image = qualified(&found.config.image);
                let is_official = ["docker.io/library/redis", "docker.io/valkey/valkey"];
                if old.is_semantic() {
                    return Err(Failure::new(format!(
                        "the old configuration has a cache of type redis-semantic, for which {DEFAULT_REDIS_IMAGE} lacks the module"
                    ))
                    .hint("write `type: redis` into the old configuration; or let it name an external server that has the module, and restart the old gateway")
                    .into());
                }
                if !is_official.contains(&repository(&image)) {
                    self.note(
                        format!("image {} of service {}", found.config.image, found.service()),
                        format!("{DEFAULT_REDIS_IMAGE} is used, which lacks the modules of the other image; for another one, add REDIS_IMAGE to .env"),
                    );
                }
                return Ok(Some(OldCache {
                    container: found.name().to_owned(),
                    service: found.service().to_owned(),
                }));
            }
            refuse_loopback("Redis", &server.host)?;
            self.put("REDIS_HOST", &server.host)?;
            self.put("REDIS_PORT", server.port.as_deref().unwrap_or("6379"))?;
            if let Some(password) = &server.password {
                self.put("REDIS_PASSWORD", password.expose_secret())?;
            }
            return Ok(None);
        }
        let several = ["REDIS_CLUSTER_NODES", SENTINEL_NODES];
        match several.into_iter().find(|name| self.value(name).is_some()) {
            Some(name) => Err(Failure::new(format!(
                "the old gateway uses several servers of Redis ({name}), which an import does not take over"
            ))
            .hint("in the compose file, let REDIS_HOST name one server, and run `docker compose up -d`")
            .into()),
            None => Ok(None),
        }
    }

    /// Refuses Sentinels that the new gateway does not reach.
    pub(super) fn refuse_old_sentinels(&self, nodes: &str) -> Result<()> {
        let nodes: Vec<(String, u16)> = serde_json::from_str(nodes).map_err(|error| {
            Failure::new(format!("{SENTINEL_NODES} of the old gateway can't be read: {error}"))
                .hint(r#"in the compose file, write it as [["HOST",26379],["HOST",26379]], and run `docker compose up -d`"#)
        })?;
        for (host, port) in &nodes {
            if let Some(container) = self.chosen.server(host, *port) {
                return Err(Failure::new(format!(
                    "a Sentinel of the old gateway is the container {}, which an import does not take over",
                    container.name()
                ))
                .hint("in the compose file, let REDIS_HOST name one server instead of REDIS_SENTINEL_NODES, and run `docker compose up -d`")
                .into());
            }
            refuse_loopback("Sentinel", host)?;
        }
        Ok(())
    }
}

/// The variable that names an external Redis, if there is one.
pub(super) fn external_cache(env: &EnvFile) -> Option<&'static str> {
    let mut names = [SENTINEL_NODES, "REDIS_HOST"].into_iter();
    names.find(|name| env.get(name).is_some())
}

/// Refuses an address that is the new gateway's container itself.
fn refuse_loopback(what: &str, host: &str) -> Result<()> {
    if !is_loopback(host) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "the old gateway's {what} is at {host}, and no container of Docker publishes it there; in the new gateway's container, that address is the container itself"
    ))
    .hint(format!(
        "let the server listen on an address of this host that containers reach, too, and write that address instead of {host} in the compose file or the configuration; then run `docker compose up -d`"
    ))
    .into())
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
pub(super) fn database_url(env: &BTreeMap<String, SecretString>) -> Option<SecretString> {
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
pub(super) fn address(url: &str, port: u16) -> Option<(String, u16)> {
    let url = reqwest::Url::parse(url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
    Some((host, url.port().unwrap_or(port)))
}

#[cfg(test)]
mod tests {
    use crate::host::docker::Container;
    use crate::operations::import::plan::fixtures::{
        containers, fixture, llm, noted, plan, refusal,
    };

    #[test]
    fn parameters_of_the_database() {
        let all = llm(|env| {
            let url = "postgresql://llmproxy:dbpassword9090@db:5432/litellm?schema=llm";
            env.insert("DATABASE_URL".into(), url.into());
        });
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, None).unwrap_err()).0,
            "the old gateway's tables are in the schema llm of its database (DATABASE_URL), and a local PostgreSQL has them in public"
        );
        let all = llm(|env| {
            let url = "postgresql://llmproxy:dbpassword9090@localhost/litellm?host=db";
            env.insert("DATABASE_URL".into(), url.into());
        });
        assert_eq!(
            refusal(&plan(&all, "/root/llm", None, None).unwrap_err()).0,
            "DATABASE_URL of the old gateway has the parameter host, so Prisma connects to another server than the one before the database name"
        );
        let mut all = containers("parts");
        for container in &mut all {
            let env = &mut container.config.env;
            env.insert("DATABASE_SCHEMA".into(), "my llm".into());
        }
        let config = "general_settings:\n  database_url: os.environ/DATABASE_URL\n";
        let plan = plan(&all, "/root/rec/parts", Some("gateway"), Some(config)).unwrap();
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
        // Another program only may write, and the servers have the URL by an `env_file`.
        let services = all.clone();
        for (container, service) in all.iter_mut().zip(services) {
            if service.service() != "litellm" {
                let env = &mut container.config.env;
                env.insert("DATABASE_URL".into(), url.into());
            }
        }
        all[last].config.image = "app:1".into();
        let found = plan(&all, "/root/llm", None, None).unwrap();
        let expected = "containers with the DATABASE_URL of the gateway (worker)\n";
        assert!(noted(&found).contains(expected), "{}", noted(&found));
        all[last].state.running = false;
        assert!(!noted(&plan(&all, "/root/llm", None, None).unwrap()).contains(expected));
    }

    #[test]
    fn servers_that_the_new_gateway_can_not_have() {
        for (name, value, config, expected) in [
            (
                "DATABASE_URL",
                "postgresql://a:b@localhost/c",
                "",
                "the old gateway's database is at localhost, ",
            ),
            (
                "REDIS_HOST",
                "127.0.0.1",
                "",
                "the old gateway's Redis is at 127.0.0.1, ",
            ),
            (
                "REDIS_HOST",
                "cache",
                "{host: e.example.org}",
                "the old gateway has two servers of Redis, container llm-cache-1 and e.example.org:6379, ",
            ),
            (
                "X",
                "",
                "{host: cache, type: redis-semantic}",
                "the old configuration has a cache of type redis-semantic, ",
            ),
        ] {
            let all = llm(|env| drop(env.insert(name.into(), value.into())));
            let config = format!("litellm_settings:\n  cache_params: {config}\n");
            let error = plan(&all, "/root/llm", None, Some(&config)).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn another_image_of_redis() {
        let mut all = llm(|env| drop(env.insert("REDIS_HOST".into(), "cache".into())));
        for container in all.iter_mut().filter(|one| one.service() == "cache") {
            container.config.image = "redis/redis-stack-server:7.4.0".into();
        }
        let plan = plan(&all, "/root/llm", None, None).unwrap();
        let expected = "image redis/redis-stack-server:7.4.0 of service cache";
        assert!(noted(&plan).contains(expected), "{}", noted(&plan));
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
    fn sentinels() {
        let with = |nodes: &str| {
            let mut all = containers("example");
            for container in &mut all {
                let env = &mut container.config.env;
                env.insert("REDIS_SENTINEL_NODES".into(), nodes.into());
                env.insert("REDIS_SERVICE_NAME".into(), "llm".into());
            }
            plan(&all, "/root/rec/example", None, None)
        };
        let plan = with(r#"[["10.0.0.1",26379]]"#).unwrap();
        let taken = ["REDIS_SENTINEL_NODES", "REDIS_SERVICE_NAME", "REDIS_IMAGE"];
        assert_eq!(
            taken.map(|name| plan.env.get(name)),
            [Some(r#"[["10.0.0.1",26379]]"#), Some("llm"), None]
        );
        assert!(!plan.generated.contains(&"REDIS_PASSWORD"));
        assert_eq!(
            refusal(&with(r#"[["localhost",26379]]"#).unwrap_err()).0,
            "the old gateway's Sentinel is at localhost, and no container of Docker publishes it there; in the new gateway's container, that address is the container itself"
        );
        assert!(with("a:26379").is_err());
    }

    #[test]
    fn sentinels_beside_a_url() {
        let with = |nodes: &str| {
            let all = llm(|env| {
                env.retain(|name, _| !name.starts_with("REDIS_"));
                env.insert("REDIS_URL".into(), "redis://10.0.0.9:6379".into());
                env.insert("REDIS_SENTINEL_NODES".into(), nodes.into());
            });
            plan(&all, "/root/llm", None, None)
        };
        let plan = with(r#"[["10.0.0.1",26379]]"#).unwrap();
        assert_eq!(plan.env.get("REDIS_HOST"), Some("10.0.0.9"));
        assert!(with(r#"[["localhost",26379]]"#).is_err());
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
            "the old gateway uses several servers of Redis (REDIS_CLUSTER_NODES), which an import does not take over"
        );
    }
}

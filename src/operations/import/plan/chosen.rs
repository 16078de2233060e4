//! Which containers are the old deployment, and which of them reaches which.

use std::collections::BTreeSet;
use std::path::Path;

use secrecy::ExposeSecret;

use super::keys::MASTER;
use super::servers::{address, database_url};
use crate::error::{Failure, Result};
use crate::host::docker::Container;
use crate::litellm::config::is_loopback;
use crate::operations::backup::database::parse_url;

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

fn image_name(container: &Container) -> &str {
    let name = container.config.image.as_str();
    name.rsplit('/').next().unwrap_or(name)
}

pub(super) fn is_postgres(container: &Container) -> bool {
    let env = &container.config.env;
    let name = image_name(container);
    env.contains_key("PG_MAJOR")
        || ["postgres", "pgvector", "timescale"]
            .iter()
            .any(|word| name.contains(word))
}

fn is_redis(container: &Container) -> bool {
    let name = image_name(container);
    name.contains("redis") || name.contains("valkey")
}

pub(super) fn is_litellm(container: &Container) -> bool {
    image_name(container).contains("litellm")
}

/// An image with another name may be LiteLLM, too; but an `env_file` gives the key to every service.
fn is_gateway(container: &Container) -> bool {
    let has_key = container.config.env.contains_key(MASTER);
    is_litellm(container) || has_key && !is_postgres(container) && !is_redis(container)
}

impl<'a> Chosen<'a> {
    /// The deployment in `directory`, of `project` or the only one there, and its gateway: `service`, or the only one that
    /// can be it.
    ///
    /// # Errors
    /// When there is none, or several; with the candidates.
    pub(crate) fn new(
        all: &'a [Container],
        directory: &Path,
        project: Option<&str>,
        service: Option<&str>,
    ) -> Result<Self> {
        let (own, foreign): (Vec<_>, Vec<_>) = all.iter().partition(|container| {
            container.directory() == Some(directory)
                && (project.is_none() || container.project() == project)
        });
        let projects: BTreeSet<&str> = own.iter().filter_map(|one| one.project()).collect();
        if let (Some(first), true) = (projects.first(), projects.len() > 1) {
            let place = directory.display();
            let names: Vec<&str> = projects.iter().copied().collect();
            return Err(Failure::new(format!(
                "the compose file in {place} has several projects: {}",
                names.join(", ")
            ))
            .hint(format!(
                "name one: `litellm-units import --project {first} {place}`"
            ))
            .into());
        }
        if own.is_empty() {
            let elsewhere = foreign
                .iter()
                .filter(|container| is_gateway(container))
                .find_map(|container| container.directory());
            let of = project.map_or(String::new(), |name| format!(" of the project {name}"));
            return Err(Failure::new(format!(
                "Docker has no container{of} of a compose file in {}",
                directory.display()
            ))
            .hint(match elsewhere {
                Some(other) => format!("name the directory of the compose file: `litellm-units import {}`", other.display()),
                None => "name the directory of the compose file; a deployment that is down has to be up first: `docker compose up -d`".into(),
            })
            .into());
        }
        let by_image = own.iter().any(|container| is_litellm(container));
        let mut candidates: Vec<&str> = own
            .iter()
            .filter(|container| match service {
                Some(service) => container.service() == service,
                None if by_image => is_litellm(container),
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

    /// The container of this name.
    pub(super) fn named(&self, name: &str) -> Option<&'a Container> {
        self.all.iter().find(|container| container.name() == name)
    }

    /// The containers beside the gateway, each with whether it is of the same deployment; those first.
    pub(super) fn beside(&self) -> Vec<(&'a Container, bool)> {
        let is_own = |one: &&Container| {
            let mut own = self.gateways.iter().chain(&self.others);
            own.any(|own| own.name() == one.name())
        };
        let foreign = self.all.iter().filter(|one| !is_own(one));
        let own = self.others.iter().map(|one| (*one, true));
        own.chain(foreign.map(|one| (one, false))).collect()
    }

    /// The IDs of the images of the gateway, and of what may be its database and its cache.
    pub(crate) fn images(&self) -> BTreeSet<&'a str> {
        let servers = self
            .all
            .iter()
            .filter(|one| is_postgres(one) || is_redis(one));
        let images = servers.map(|container| container.image.as_str());
        images.chain([self.gateway().image.as_str()]).collect()
    }

    /// The port on which the gateway listens in its container.
    pub(super) fn port(&self) -> u16 {
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
    pub(super) fn server(&self, host: &str, port: u16) -> Option<&'a Container> {
        self.server_of(self.gateway(), host, port)
    }

    /// The container that `client` reaches as `host:port`, a running one first.
    fn server_of(&self, client: &Container, host: &str, port: u16) -> Option<&'a Container> {
        let is_own = is_loopback(host);
        // In a network of its own, a container is itself there.
        let is_this_host =
            host == "host.docker.internal" || is_own && client.host_config.network_mode == "host";
        let leads = |address: &str| {
            address.rsplit_once(':').is_some_and(|(at, own)| {
                let at = at.trim_matches(['[', ']']);
                let is_any = !is_own || ["0.0.0.0", "::", host].contains(&at);
                own == port.to_string() && (is_any || host == "localhost" && is_loopback(at))
            })
        };
        let found = self.all.iter().filter(|container| {
            let is_found = if is_this_host {
                container
                    .published()
                    .iter()
                    .any(|(address, _)| leads(address))
            } else {
                container.is_reached_by(client, host)
            };
            is_found && !container.is_one_off()
        });
        found.min_by_key(|container| !container.state.running)
    }

    /// The running programs beside the gateway that have the same database as their own.
    pub(super) fn writers(&self, server: &Container, database: &str) -> Vec<&'a Container> {
        let writers = self.all.iter().filter(|client| {
            let is_gateway = || self.gateways.iter().any(|one| one.name() == client.name());
            let reaches = || {
                let url = database_url(&client.config.env)?;
                let (_, name) = parse_url(&url).ok()?;
                let (host, port) = address(url.expose_secret(), 5432)?;
                let found = self.server_of(client, &host, port)?;
                Some(name == database && found.name() == server.name())
            };
            // An `env_file` gives the URL to the servers themselves, too.
            let is_server = is_postgres(client) || is_redis(client);
            client.state.running && !is_server && !is_gateway() && reaches() == Some(true)
        });
        writers.collect()
    }
}

const SHELLS: [&str; 4] = ["sh", "ash", "bash", "dash"];

/// The name of the program that a path leads to.
pub(super) fn program(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(super) fn is_shell(path: &str) -> bool {
    SHELLS.contains(&program(path))
}

/// The words of a container's command line, those of `sh -c` as well, but not the shell's own option.
pub(super) fn words(container: &Container) -> Vec<String> {
    let mut after_shell = false;
    let mut words = Vec::new();
    for whole in std::iter::once(&container.path).chain(&container.args) {
        if after_shell && whole == "-c" {
            after_shell = false;
            continue;
        }
        after_shell |= is_shell(whole);
        let parts = whole.split_whitespace();
        words.extend(parts.map(|word| word.trim_matches(['"', '\'']).to_owned()));
    }
    words
}

/// The value of an option, as `--option value` or `--option=value`.
pub(super) fn option(words: &[String], names: &[&str]) -> Option<String> {
    words.iter().enumerate().find_map(|(at, word)| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), words.get(at + 1).cloned()),
        };
        names.contains(&name).then_some(value).flatten()
    })
}

pub(super) fn variable(container: &Container, name: &str) -> Option<String> {
    let value = container.config.env.get(name)?;
    Some(value.expose_secret().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::import::plan::fixtures::{containers, plan, refusal};

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
        let chosen = Chosen::new(&ended, Path::new("/root/rec/parts"), None, None).unwrap();
        assert_eq!(chosen.gateway().service(), "gateway");
    }

    #[test]
    fn several_projects_of_one_file() {
        let mut all = containers("example");
        let mut staging = containers("example");
        for (one, project) in [(&mut all, "prod"), (&mut staging, "staging")] {
            for container in one {
                let labels = &mut container.config.labels;
                labels.insert("com.docker.compose.project".into(), project.into());
            }
        }
        all.append(&mut staging);
        let directory = Path::new("/root/rec/example");
        assert_eq!(
            refusal(&Chosen::new(&all, directory, None, None).unwrap_err()),
            (
                "the compose file in /root/rec/example has several projects: prod, staging".into(),
                "name one: `litellm-units import --project prod /root/rec/example`".into()
            )
        );
        let chosen = Chosen::new(&all, directory, Some("staging"), None).unwrap();
        assert_eq!(chosen.gateways.len(), 1);
        assert_eq!(chosen.gateway().project(), Some("staging"));
    }

    /// An `env_file` of all services.
    #[test]
    fn an_app_with_the_master_key_is_no_gateway() {
        let mut all = containers("example");
        for container in &mut all {
            container.config.env.insert(MASTER.into(), "sk-1".into());
        }
        let chosen = Chosen::new(&all, Path::new("/root/rec/example"), None, None).unwrap();
        assert_eq!(chosen.gateway().service(), "litellm");
    }

    #[test]
    fn the_server_that_runs() {
        let mut all = containers("llm");
        let database = all.iter().find(|one| one.service() == "db").unwrap();
        let (mut ended, mut command) = (database.clone(), database.clone());
        ended.state.running = false;
        ended.config.image.clear();
        command.config.image.clear();
        let labels = &mut command.config.labels;
        labels.insert("com.docker.compose.oneoff".into(), "True".into());
        all.splice(0..0, [ended, command]);
        let chosen = Chosen::new(&all, Path::new("/root/llm"), None, None).unwrap();
        assert_eq!(
            chosen.server("db", 5432).unwrap().config.image,
            "postgres:17.7"
        );
    }

    #[test]
    fn servers_at_the_address_of_the_host() {
        let all = containers("network");
        let chosen = Chosen::new(&all, Path::new("/root/rec/network"), None, None).unwrap();
        for (host, port, found) in [
            ("localhost", 5433, Some("vectors")),
            ("127.0.0.1", 6380, Some("keys")),
            ("host.docker.internal", 6380, Some("keys")),
            ("127.0.0.2", 6380, None),
            ("::1", 6380, None),
            ("localhost", 5432, None),
        ] {
            let server = chosen.server(host, port).map(Container::service);
            assert_eq!(server, found, "{host}:{port}");
        }
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
        let path = |all: &[Container]| {
            Chosen::new(all, directory, None, None)
                .unwrap()
                .config_path()
        };
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
}

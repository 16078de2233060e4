//! Which containers are the old deployment, and which of them reaches which.

use std::path::Path;

use secrecy::ExposeSecret;

use super::keys::MASTER;
use super::servers::{address, database_url};
use crate::error::{Failure, Result};
use crate::host::docker::Container;
use crate::operations::backup::database::parse_url;

/// The containers of one compose deployment.
#[derive(Debug)]
pub(crate) struct Chosen<'a> {
    /// The gateway, all containers of its service; a running one first.
    pub gateways: Vec<&'a Container>,
    /// Those beside it.
    pub(super) others: Vec<&'a Container>,
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
    pub(super) fn writer(&self, server: &Container, database: &str) -> Option<&'a Container> {
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
pub(super) fn words(container: &Container) -> Vec<String> {
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
}

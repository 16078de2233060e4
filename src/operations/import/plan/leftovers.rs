//! What the old deployment has and the new one does not: each with what the operator can do.

use std::collections::BTreeMap;

use super::Maker;
use super::chosen::words;
use super::options::PROXY_LABELS;
use super::servers::{OldCache, OldDatabase};
use crate::deployment::listen::{GATEWAY_PORT, ListenAddress};
use crate::error::Result;
use crate::host::docker::{Container, DockerImage};
use crate::service::Service;

const OWN_UNIT: &str =
    "write extra.d/NAME.container (docs/configuration.md, \"Units of your own\")";

impl Maker<'_> {
    pub(super) fn address(&mut self) {
        let own = self.chosen.port();
        let published = self.chosen.gateway().published().into_iter();
        let (published, others): (Vec<_>, Vec<_>) = published.partition(|(_, port)| *port == own);
        let published: Vec<String> = published.into_iter().map(|(address, _)| address).collect();
        if !published.is_empty() {
            let addresses = published.join(" ");
            let is_local =
                |word: &String| ListenAddress::parse(word).is_ok_and(|one| one.is_local());
            let is_random = |word: &String| word.ends_with(":0");
            let words = published.join(", ");
            if published.iter().any(is_random) {
                self.note(
                    format!("address {words}, a port that Docker chooses"),
                    format!("the new gateway listens on 127.0.0.1:{GATEWAY_PORT} (docs/configuration.md, \"Addresses\")"),
                );
            } else {
                let without_tls = if published.iter().all(is_local) {
                    ""
                } else {
                    " and LISTEN_WITHOUT_TLS=yes"
                };
                self.note(
                    format!("address {words}"),
                    format!("the new gateway listens on 127.0.0.1:{GATEWAY_PORT}; to keep the old address, add LISTEN={addresses}{without_tls} to .env afterwards, then run `litellm-units apply`; or put a reverse proxy there (docs/reverse-proxy.md)"),
                );
            }
        }
        for (address, port) in others {
            self.note(
                format!("address {address} of port {port} in the container"),
                "LiteLLM listens on one port; for another program there, PublishPort= in a drop-in that the standby does not have (docs/configuration.md, \"Drop-ins\")",
            );
        }
    }

    /// Notes what else the containers have. `images`: by their IDs.
    pub(super) fn containers(
        &mut self,
        images: &BTreeMap<String, DockerImage>,
        database: Option<&OldDatabase>,
        cache: Option<&OldCache>,
    ) -> Result<()> {
        let gateway = self.chosen.gateway();
        for word in words(gateway) {
            match word.split('=').next().unwrap_or_default() {
                "--debug" | "--detailed_debug" => self.note(
                    format!("option {word}"),
                    "write LITELLM_LOG=DEBUG into .env",
                ),
                "--config" | "--port" | "--host" | "--num_workers" => {}
                option if option.starts_with("--") => self.note(
                    format!("option {option}"),
                    "the units give LiteLLM its options; most have a variable for .env",
                ),
                _ => {}
            }
        }
        let images = |container: &Container| images.get(&container.image);
        self.options(gateway, images(gateway), Service::Litellm);
        let host = &gateway.host_config;
        if host.network_mode == "host" {
            self.note(
                "network_mode: host",
                "the new gateway has a network of its own; it reaches this host as host.containers.internal",
            );
        } else if host.network_mode.starts_with("container:") {
            self.note(
                "network_mode of another container",
                "the new gateway has a network of its own, so its requests no longer take the way of that container; for a proxy, write HTTPS_PROXY into .env",
            );
        }
        let labels = gateway.config.labels.keys();
        if let Some(label) = labels
            .into_iter()
            .find(|label| PROXY_LABELS.iter().any(|word| label.starts_with(word)))
        {
            self.note(
                format!("labels for a reverse proxy ({label} …)"),
                format!("let the proxy forward to 127.0.0.1:{GATEWAY_PORT} of this host; from a container, that needs the network of the host, or a Unix socket instead (docs/reverse-proxy.md)"),
            );
        }
        let mut left: Vec<&str> = Vec::new();
        if let Some(old) = database
            && let Some(container) = self.chosen.named(&old.container)
        {
            left.push(container.service());
            self.options(container, images(container), Service::Postgres);
            self.parameters(container, old);
        }
        if let Some(old) = cache
            && let Some(container) = self.chosen.named(&old.container)
        {
            left.push(container.service());
            self.options(container, images(container), Service::Redis);
            self.redis_options(container)?;
        }
        if !left.is_empty() {
            self.note(
                format!("containers of {}", left.join(" and ")),
                "they stay as they are, for `litellm-units import --undo`; when you no longer need that: `docker compose down` (without `-v`, the data stays)",
            );
        }
        Ok(())
    }

    /// Notes the other services of the deployment, and those of others that the gateway reaches by name.
    pub(super) fn sidecars(
        &mut self,
        config: Option<&str>,
        database: Option<&OldDatabase>,
        cache: Option<&OldCache>,
    ) {
        let gateway = self.chosen.gateway();
        let servers = database.map(|old| &old.container).into_iter();
        let servers: Vec<&String> = servers.chain(cache.map(|old| &old.container)).collect();
        let mut services: Vec<(&str, &str)> = Vec::new();
        for (other, is_own) in self.chosen.beside() {
            let service = (other.service(), other.config.image.as_str());
            if servers.iter().any(|server| *server == other.name()) || services.contains(&service) {
                continue;
            }
            let mut hosts = other.hosts_for(gateway);
            hosts.extend(is_own.then_some(other.service()));
            let is_in = |text: &str| hosts.iter().any(|host| mentions(text, host));
            let env = self.env.iter();
            let env = env.filter(|(_, value)| is_in(value));
            let mut places: Vec<String> = env.map(|(name, _)| name.to_owned()).collect();
            if config.is_some_and(is_in) {
                places.push("the configuration".into());
            }
            if places.is_empty() && !is_own {
                continue;
            }
            services.push(service);
            let how = if places.is_empty() {
                format!("it stays with Docker; to run it here: {OWN_UNIT}")
            } else {
                format!(
                    "it stays with Docker, and the new gateway can't reach it by that name: publish its port on an address that containers reach, not on 127.0.0.1, and write host.containers.internal:PORT in {}; or run it here, where that name works: {OWN_UNIT}",
                    places.join(" and ")
                )
            };
            let (service, image) = service;
            self.note(format!("service {service} ({image})"), how);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::import::plan::fixtures::{containers, plan};

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

//! The options on the command lines of the old PostgreSQL and the old Redis.

use super::Maker;
use super::chosen::{is_shell, words};
use super::servers::OldDatabase;
use crate::deployment::settings::is_redis_memory;
use crate::deployment::variables::{REDIS_MEMORY, is_secret};
use crate::error::Result;
use crate::host::docker::Container;

/// PostgreSQL's options that are short for a parameter.
const SHORT: [(&str, &str); 2] = [("-B", "shared_buffers"), ("-N", "max_connections")];
/// What the unit of PostgreSQL gives.
const POSTGRES_ADDRESS: [&str; 3] = ["data_directory", "listen_addresses", "port"];
/// What the unit of Redis gives, in its own way.
const REDIS_ADDRESS: [&str; 6] = [
    "bind",
    "daemonize",
    "dir",
    "port",
    "protected-mode",
    "requirepass",
];

impl Maker<'_> {
    /// Notes the parameters of the old PostgreSQL.
    pub(super) fn parameters(&mut self, container: &Container, old: &OldDatabase) {
        let parameters = postgres_parameters(&arguments(container)).into_iter();
        // ALTER SYSTEM refuses it.
        let (files, parameters): (Vec<_>, Vec<_>) =
            parameters.partition(|(name, _)| name == "config_file");
        for (_, file) in files {
            self.note(
                format!("parameters in {file} of service {}", old.service),
                "set each by ALTER SYSTEM (docs/configuration.md, \"Sizes of PostgreSQL\")",
            );
        }
        // A command or a connection may have a password.
        let is_shown = |name: &str, value: &str| {
            !is_secret(name, value) && !name.ends_with("_command") && !name.ends_with("conninfo")
        };
        let texts = parameters.iter().map(|(name, value)| match value {
            value if is_shown(name, value) => format!("{name}={value}"),
            _ => name.clone(),
        });
        let texts = texts.collect::<Vec<_>>().join(", ");
        let Some((name, value)) = parameters.first() else {
            return;
        };
        let value = if is_shown(name, value) { value } else { "…" };
        self.note(
            format!("parameters {texts} of service {}", old.service),
            format!(
                "for each, run `litellm-units exec postgres psql -U {} -d {} -c \"ALTER SYSTEM SET {name} = '{value}'\"` afterwards, then `litellm-units restart postgres` (docs/configuration.md, \"Sizes of PostgreSQL\")",
                old.user, old.name
            ),
        );
    }

    /// Takes over the memory of the old Redis, and notes its other options.
    pub(super) fn redis_options(&mut self, container: &Container) -> Result<()> {
        let mut others = Vec::new();
        for (name, values) in redis_options(&arguments(container)) {
            match (name.as_str(), values.join(" ").as_str()) {
                ("maxmemory", value) if is_redis_memory(value) => self.put(REDIS_MEMORY, value)?,
                ("appendonly", "yes") | ("maxmemory-policy", "volatile-lru") => {}
                (name, _) if REDIS_ADDRESS.contains(&name) => {}
                (name, _) => others.push(format!("--{name}")),
            }
        }
        if !others.is_empty() {
            self.note(
                format!("options {} of service {}", others.join(", "), container.service()),
                "the unit gives Redis its options; for others, write a whole Exec= into a drop-in of litellm-redis.container (docs/configuration.md, \"Drop-ins\")",
            );
        }
        Ok(())
    }
}

/// The arguments of a container, split as a shell in it splits them.
fn arguments(container: &Container) -> Vec<String> {
    if is_shell(&container.path) || container.args.iter().any(|word| is_shell(word)) {
        words(container)
    } else {
        container.args.clone()
    }
}

/// Names and values of the parameters on PostgreSQL's command line.
fn postgres_parameters(arguments: &[String]) -> Vec<(String, String)> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let short = SHORT.iter().find(|(short, _)| word == short);
        let text = match (short, word.as_str()) {
            (Some((_, name)), _) => words.next().map(|value| format!("{name}={value}")),
            (None, "-c") => words.next().cloned(),
            (None, word) => {
                let text = word.strip_prefix("--").or_else(|| word.strip_prefix("-c"));
                text.map(str::to_owned)
            }
        };
        if let Some((name, value)) = text.as_deref().and_then(|text| text.split_once('=')) {
            let name = name.replace('-', "_");
            if !POSTGRES_ADDRESS.contains(&name.as_str()) {
                // The last one counts.
                parameters.retain(|(other, _)| *other != name);
                parameters.push((name, value.to_owned()));
            }
        }
    }
    parameters
}

/// Names and values of the options on Redis' command line.
fn redis_options(arguments: &[String]) -> Vec<(String, Vec<String>)> {
    let mut options: Vec<(String, Vec<String>)> = Vec::new();
    for word in arguments {
        if let Some(name) = word.strip_prefix("--") {
            options.push((name.to_ascii_lowercase(), Vec::new()));
        } else if let Some((_, values)) = options.last_mut() {
            values.push(word.clone());
        }
    }
    options
}

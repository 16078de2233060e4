//! The plan as the operator reads it.

use super::keys::SALT;
use super::servers::{OldCache, external_cache};
use super::variables::BY_UNITS;
use super::{Note, Plan};
use crate::deployment::variables::is_secret;

impl Plan {
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
        row("to stop", self.running.join(", "));
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
            match (&self.cache, external_cache(&self.env)) {
                (Some(OldCache { service, .. }), _) => format!(
                    "service {service}: not copied; LiteLLM keeps cached answers and counters of rate limits in it"
                ),
                (None, Some(name)) => format!("external ({name}): stays where it is"),
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
                let is_new = name == "REDIS_PASSWORD" && external_cache(&self.env).is_none();
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

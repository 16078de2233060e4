//! The other variables that the compose file gives to the gateway.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;

use super::Maker;
use super::chosen::{option, words};
use super::servers::external_cache;
use crate::deployment::variables::{Recipient, SENTINEL_NODES, is_name, is_refused, recipient};
use crate::error::Result;
use crate::operations::import::rewrite;

/// Variables that the units give, or that name an image.
pub(super) const BY_UNITS: [&str; 9] = [
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

impl Maker<'_> {
    /// Takes over what else the compose file gives to the gateway.
    pub(super) fn variables(
        &mut self,
        local_database: bool,
        renamed: &BTreeMap<String, String>,
    ) -> Result<()> {
        let local_cache = external_cache(&self.env).is_none();
        let mut of_address = Vec::new();
        let mut of_others = Vec::new();
        for (name, value) in self.own.clone() {
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
            // Here, such a name would be a setting of litellm-units.
            if !is_name(&name) || recipient(&name) == Recipient::Units {
                of_others.push(name);
                continue;
            }
            if name == SENTINEL_NODES {
                self.refuse_old_sentinels(value)?;
            }
            let moved = rewrite::new_path(value, renamed);
            self.put(&name, moved.as_deref().unwrap_or(value))?;
        }
        if !of_address.is_empty() {
            self.note(
                format!("variables of the address ({})", of_address.join(", ")),
                "systemd holds the address; TLS is for a reverse proxy (docs/reverse-proxy.md)",
            );
        }
        if !of_others.is_empty() {
            self.note(
                format!("variables {}", of_others.join(", ")),
                "in .env, they would be settings of litellm-units, or are no names; add what you need to .env afterwards",
            );
        }
        let words = words(self.chosen.gateway());
        if let Some(workers) = option(&words, &["--num_workers"])
            && self.env.get("NUM_WORKERS").is_none()
        {
            self.put("NUM_WORKERS", &workers)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::operations::import::plan::fixtures::{llm, noted, plan};

    #[test]
    fn variables_that_would_be_settings_here() {
        let all = llm(|env| {
            for name in ["BACKUP_URL", "NOTIFY_COMMAND", "my.name"] {
                env.insert(name.into(), "x".into());
            }
        });
        let plan = plan(&all, "/root/llm", None, None).unwrap();
        assert!(noted(&plan).contains("variables BACKUP_URL, NOTIFY_COMMAND, my.name"));
        assert_eq!(plan.env.get("BACKUP_URL"), None);
    }
}

//! `fleet.toml`: the hosts that have one configuration, and what belongs to each alone.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::deployment::configuration::Configuration;
use crate::deployment::variables::BACKUP_BY;
use crate::error::{Failure, Result};
use crate::host::ssh::RemoteHost;

/// The name of the file, beside `.env`.
pub(crate) const FILE: &str = "fleet.toml";

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// The host that backs up the database of all: this one, or the first.
    backup: Option<RemoteHost>,
    /// In the order of changes.
    #[serde(default, rename = "host")]
    pub(crate) members: Vec<Member>,
}

/// A host.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) ssh: RemoteHost,
    /// The variables that have another value there than in the shared `.env`.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl Fleet {
    /// Reads the text of the file; `path` is for messages, which quote no value.
    ///
    /// # Errors
    /// With file and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |at: usize, problem: &str| {
            let line = text[..at].matches('\n').count() + 1;
            Failure::config(format!("{}, line {line}: {problem}", path.display()))
                .hint("see the example in docs/several-hosts.md")
        };
        let found: Self = toml::from_str(text).map_err(|error| {
            let words = error.message();
            let problem = match words.rsplit_once(", expected ") {
                Some((_, expected)) if words.starts_with("invalid ") => {
                    format!("expected {expected}")
                }
                _ => words.to_owned(),
            };
            wrong(error.span().map_or(0, |span| span.start), &problem)
        })?;
        if let Some(backup) = &found.backup
            && found.members.iter().all(|member| member.ssh != *backup)
        {
            let at = text.find("backup").unwrap_or_default();
            return Err(wrong(at, &format!("{backup} is none of the hosts")).into());
        }
        if found.members.is_empty() {
            return Err(wrong(0, "no `[[host]]` is there").into());
        }
        for (at, member) in found.members.iter().enumerate() {
            let name = member.ssh.to_string();
            if found.members[..at]
                .iter()
                .any(|other| other.ssh == member.ssh)
            {
                let at = text.rfind(&name).unwrap_or_default();
                return Err(wrong(at, &format!("{name} is there twice")).into());
            }
        }
        Ok(found)
    }

    /// The host that backs up the database of all.
    pub(crate) fn backup(&self) -> Option<&RemoteHost> {
        let first = || Some(&self.members.first()?.ssh);
        self.backup.as_ref().or_else(first)
    }
}

impl Member {
    /// The configuration of this host as a tar. `backup` backs up the database, if it is external.
    pub(crate) fn tar(&self, directory: &Path, backup: &RemoteHost) -> Result<Vec<u8>> {
        let shared = Configuration::of(directory)?.whole(directory)?;
        let mut env = shared.env(&directory.join(".env"))?;
        for (name, value) in &self.env {
            let attempt = env.set(name, value);
            attempt.with_context(|| format!("{FILE}: {name} of {} can't be used", self.ssh))?;
        }
        let is_external = env.get("DATABASE_URL").is_some_and(|url| !url.is_empty());
        if is_external && self.ssh != *backup && env.get(BACKUP_BY).is_none() {
            env.set(BACKUP_BY, &backup.to_string())?;
        }
        shared.with_env(env.text()).to_tar()
    }
}

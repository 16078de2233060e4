//! An edit of `.env` and `config/`: it is applied, or the last good configuration is active again.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::backup::restore;
use super::install::{self, Prepared, ReleaseTarget};
use super::{edits, rotation, seal, stack, up};
use crate::deployment::configuration::Configuration;
use crate::deployment::env_file::EnvFile;
use crate::deployment::sealed::{self, Vault};
use crate::deployment::settings::{Settings, parse_env};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::deployment::variables;
use crate::error::{Exit, Failure, Result, exit};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;
use crate::litellm::advisories;

/// Applies what is prepared, and rolls back if the gateway does not become ready.
///
/// # Errors
/// When it was rolled back, could not be, or was interrupted, which says nothing about the configuration.
pub(crate) async fn apply(host: &Host, prepared: &Prepared, timeout: Duration) -> Result<()> {
    let edited = snapshot::keep(&host.paths)?;
    let marker = host.paths.applying();
    files::write_atomically(&marker, b"", 0o600)?;
    let outcome = attempt(host, prepared, &edited, timeout).await;
    files::remove_existing(&marker)?;
    outcome
}

/// Whether an edit was not applied to its end. The process may still be at it.
#[must_use]
pub(super) fn interrupted(paths: &Paths) -> Option<String> {
    paths
        .applying()
        .exists()
        .then(|| "`litellm-units apply` was interrupted".to_owned())
}

/// Completes an interrupted [`apply`]. Its failure is a warning: the next command is to be possible.
pub(super) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    if interrupted(&host.paths).is_none() {
        return Ok(());
    }
    if undo_replacement(&host.paths)? {
        let words = "an interrupted `litellm-units apply --from` was undone";
        host.progress.say(words);
        return Ok(());
    }
    host.progress
        .say("completing an interrupted `litellm-units apply`");
    let attempt = async {
        let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
        apply(host, &prepared, timeout).await
    };
    if let Err(error) = attempt.await {
        let hint = crate::error::hint(&error).map(|hint| format!("; {hint}"));
        host.progress
            .warn(&format!("{error:#}{}", hint.unwrap_or_default()));
    }
    files::remove_existing(&host.paths.applying())
}

async fn attempt(
    host: &Host,
    prepared: &Prepared,
    edited: &SnapshotId,
    timeout: Duration,
) -> Result<()> {
    let Err(error) = up::bring_up(host, prepared, timeout, "apply").await else {
        return Ok(());
    };
    if exit(&error) == Exit::Interrupted {
        return Err(error);
    }
    match snapshot::last_good(&host.paths) {
        // Nothing was edited.
        Some(good) if good == *edited => Err(error),
        Some(good) => Err(roll_back(host, timeout, &good, error).await),
        None => Err(Failure::new(
            "the gateway does not become ready with this configuration, and there is no earlier one to roll back to",
        )
        .hint("fix it, then run `litellm-units apply` again")
        .caused_by(error)
        .into()),
    }
}

async fn roll_back(
    host: &Host,
    timeout: Duration,
    good: &SnapshotId,
    error: anyhow::Error,
) -> anyhow::Error {
    host.progress
        .say("not all units are ready: rolling back to the last good configuration");
    // Also what was edited while it waited.
    let edited = match snapshot::keep(&host.paths) {
        Ok(edited) => edited,
        Err(second) => return second.context(error),
    };
    let attempt = async {
        let staying = rotation::known_to_the_database(host).await;
        snapshot::restore(&host.paths, good, staying)?;
        let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
        prepared.apply(host).await?;
        let timeout = timeout.max(stack::RECOVERY_TIMEOUT);
        stack::bring_up(host, prepared.settings(), timeout).await
    };
    let kept = snapshot::directory(&host.paths, &edited);
    let hint = format!("your changes are kept in {}", kept.display());
    match attempt.await {
        Ok(()) => Failure::new(
            "the changes were rolled back; the gateway is ready with the last good configuration",
        )
        .hint(hint)
        .caused_by(error),
        Err(second) => Failure::new(
            "the changes were rolled back, but the gateway is not ready without them either",
        )
        .hint(hint)
        .caused_by(second.context(error)),
    }
    .into()
}

/// Another configuration for this deployment.
pub(crate) struct Replacement {
    present: Configuration,
    wanted: Configuration,
}

impl Replacement {
    /// `source` with what belongs to this host: its release, a local database and sealed secrets.
    pub(crate) fn new(host: &Host, source: Configuration) -> Result<Self> {
        let path = host.paths.env_file();
        let present = Configuration::of(&host.paths.deployment)?;
        let (now, mut env) = (present.env(&path)?, source.env(&path)?);
        let is_local = |env: &EnvFile| env.get("DATABASE_URL").is_none_or(str::is_empty);
        let mut staying = Vec::new();
        if path.exists() && is_local(&now) && is_local(&env) {
            staying = variables::of_the_database();
            staying.push("LITELLM_SALT_KEY");
        }
        // Only an upgrade changes the release.
        if snapshot::last_good(&host.paths).is_some() {
            staying.push("LITELLM_IMAGE");
        }
        staying.retain(|name| now.get(name) != env.get(name));
        env.take_over(&staying, &now)?;
        for reference in sealed::references(env.text()) {
            let name = reference.variable();
            Vault::beside(&path).value(&reference).map_err(|error| {
                Failure::config(format!("{name} is a secret that another host has sealed"))
                    .hint(format!(
                        "first run `litellm-units secrets unseal {name}` there"
                    ))
                    .caused_by(error)
            })?;
        }
        if in_clear(&now, &path)?.text() == in_clear(&env, &path)?.text() {
            env = now;
        }
        let wanted = source.with_env(env.text());
        let wanted = wanted.without_links(&host.paths.deployment);
        Ok(Self { present, wanted })
    }

    /// Each change of a file in words, with the names of variables.
    pub(crate) fn changes(&self, host: &Host) -> Result<Vec<String>> {
        let path = host.paths.env_file();
        let [now, env] =
            [&self.present, &self.wanted].map(|files| in_clear(&files.env(&path)?, &path));
        let (now, env) = (now?, env?);
        let names = now.iter().chain(env.iter()).map(|(name, _)| name);
        let names: BTreeSet<&str> = names
            .filter(|name| now.get(name) != env.get(name))
            .collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let changes = self.wanted.changes(&self.present, false).into_iter();
        Ok(changes
            .map(|(verb, name)| match name.to_str() {
                Some(".env") => format!("{verb} .env: {names}"),
                _ => format!("{verb} {}", name.display()),
            })
            .collect())
    }

    /// Refuses what [`apply`] would refuse by the settings alone, without the programs that it would run, which are returned
    /// in words. `accepted`: as for [`advisories::admit`].
    pub(crate) async fn check(&self, host: &Host, accepted: &[String]) -> Result<Vec<String>> {
        let path = host.paths.env_file();
        let settings = Settings::from_env(&self.wanted.env(&path)?, &path)?;
        let image = &settings.litellm_image;
        advisories::admit(host, &settings, image, accepted, "litellm-units apply")?;
        edits::refuse(host, &settings).await?;
        up::refuse_firewall(host).await?;
        edits::programs_to_run(&host.paths, &settings)
    }

    /// Puts it in place. Until [`apply`], an interruption undoes it.
    pub(crate) fn put(mut self, host: &Host) -> Result<()> {
        let (paths, path) = (&host.paths, host.paths.env_file());
        restore::refuse_links(paths, "or leave out `--from`")?;
        if path.exists() {
            let now = self.present.env(&path)?;
            if seal::is_in_use(&now) {
                let env = seal::protected(host, &now, &self.wanted.env(&path)?)?;
                self.wanted = self.wanted.with_env(env.text());
            }
        }
        if !self.present.is_empty() {
            let previous = snapshot::keep_files(paths, &self.present)?.to_string();
            files::write_atomically(&paths.applying(), previous.as_bytes(), 0o600)?;
        }
        self.wanted.put(&paths.deployment, &self.present, false)?;
        fail::fail_point!("apply-replaced");
        Ok(())
    }
}

/// Puts back what a [`Replacement`] has replaced that was not applied. Whether there was one.
pub(crate) fn undo_replacement(paths: &Paths) -> Result<bool> {
    let name = files::read_existing(&paths.applying())?.unwrap_or_default();
    let Some(previous) = SnapshotId::find(paths, &String::from_utf8_lossy(&name)) else {
        return Ok(false);
    };
    snapshot::restore_whole(paths, &previous)?;
    files::remove_existing(&paths.applying())?;
    Ok(true)
}

fn in_clear(env: &EnvFile, path: &Path) -> Result<EnvFile> {
    parse_env(seal::in_clear(env, path)?.expose_secret(), path)
}

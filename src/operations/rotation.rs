//! Rotations of secrets, applied everywhere or rolled back: in `.env`, in the server that knows the
//! secret, and in the running containers.
//!
//! A rotation is recorded before its first step. After a kill or a loss of power,
//! `litellm-recovery.service` or the next command continues it: every step can be repeated.
//! Where secrets are sealed, so are the new ones before anything is written down.

mod salt;
mod server;

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::deployment::env_file::quote;
use crate::deployment::sealed::{SecretValue, Vault, is_sealed};
use crate::deployment::settings::{Database, Settings, parse_env, read_env};
use crate::deployment::variables::{is_secret, may_be_sealed};
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Paths;
use crate::operations::seal::{self, Sealer};
use crate::operations::stack;
pub(crate) use server::Login;

/// Encrypts what LiteLLM keeps in its database.
pub(crate) const SALT: &str = "LITELLM_SALT_KEY";

/// One variable of `.env` that gets another value: both as they are there, so that a sealed one is
/// a reference.
#[derive(Clone, Deserialize, Serialize)]
struct Edit {
    name: String,
    before: String,
    after: String,
}

/// Which way a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Forward,
    Back,
}

impl Direction {
    fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Back,
            Self::Back => Self::Forward,
        }
    }
}

/// An unfinished rotation as it is recorded: all that is needed to finish it or to roll it back.
#[derive(Clone, Deserialize, Serialize)]
struct Pending {
    what: String,
    way: Direction,
    edits: Vec<Edit>,
    env_before: String,
    env_after: String,
}

impl Pending {
    /// The one that was not finished, if there is one.
    fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "compare the passwords in .env with those of the servers, then remove the file";
        files::load_record(&paths.pending_change(), hint)
    }
}

/// Gives variables of `.env` other values, has what runs use them, and checks that the new
/// secrets are accepted and the old ones refused. A failure rolls all of it back. The caller
/// holds the operation lock, and everything runs.
///
/// # Errors
/// When the rotation failed; the message says whether it was rolled back.
pub(crate) async fn carry_out(
    host: &Host,
    what: &str,
    values: &[(&str, SecretString)],
    timeout: Duration,
) -> Result<()> {
    let path = host.paths.env_file();
    let env_before = read_env(&path)?;
    let mut env = parse_env(&env_before, &path)?;
    let mut clear = env.clone();
    let is_in_use = seal::is_in_use(&env);
    let mut sealer = Sealer::like(host, &env)?;
    let mut edits = Vec::new();
    for (name, value) in values {
        let before = env.get(name).unwrap_or_default().to_owned();
        let value = value.expose_secret();
        if open(host, &before)?.expose_secret() != value {
            clear.set(name, value).path_context("can't edit", &path)?;
            // A sealed value can't be checked any more.
            Settings::from_env(&clear, &path)?;
            let is_sealed =
                is_sealed(&before) || (is_in_use && may_be_sealed(name) && is_secret(name, value));
            let after = if is_sealed {
                sealer.seal(name, &quote(value))?.to_string()
            } else {
                value.to_owned()
            };
            env.set(name, &after).path_context("can't edit", &path)?;
            edits.push(Edit {
                name: (*name).to_owned(),
                before,
                after,
            });
        }
    }
    if edits.is_empty() {
        host.progress.say("nothing to do: the values are the same");
        return Ok(());
    }
    if let Some(edit) = salt_of(&edits) {
        let (from, to) = (open(host, &edit.before)?, open(host, &edit.after)?);
        let settings = Settings::from_text(&env_before, &path)?;
        salt::prepare(host, &settings, &from, &to).await?;
    }
    fail::fail_point!("change-before-written");
    let pending = Pending {
        what: what.to_owned(),
        way: Direction::Forward,
        edits,
        env_before,
        env_after: env.text().to_owned(),
    };
    finish(host, pending, timeout).await
}

/// The rotation that was interrupted, if one was.
pub(crate) fn interrupted(paths: &Paths) -> Result<Option<String>> {
    let pending = Pending::load(paths)?;
    Ok(pending.map(|pending| format!("the {} was interrupted", pending.what)))
}

/// Whether another salt may be in the database than in `.env`.
///
/// # Errors
/// As [`interrupted`].
pub(crate) fn is_salt_pending(paths: &Paths) -> Result<bool> {
    let pending = Pending::load(paths)?;
    Ok(pending.is_some_and(|pending| salt_of(&pending.edits).is_some()))
}

fn salt_of(edits: &[Edit]) -> Option<&Edit> {
    edits.iter().find(|edit| edit.name == SALT)
}

/// Finishes an interrupted rotation, or rolls it back. The caller holds the operation lock.
///
/// # Errors
/// When that fails; the next run tries again.
pub(crate) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    let Some(pending) = Pending::load(&host.paths)? else {
        return Ok(());
    };
    match pending.way {
        Direction::Forward => {
            host.progress
                .say(&format!("finishing the interrupted {}", pending.what));
            finish(host, pending, timeout).await
        }
        Direction::Back => {
            host.progress
                .say(&format!("rolling back the interrupted {}", pending.what));
            go(host, &pending, timeout).await?;
            forget(host)
        }
    }
}

/// What the local PostgreSQL says to the login of `.env`.
pub(crate) async fn login(host: &Host, password: &SecretValue) -> Result<Login> {
    server::postgres_login(host, password.open()?.expose_secret()).await
}

/// Gives the role of the gateway in the local PostgreSQL the password of `settings`.
pub(crate) async fn renew_postgres_password(
    host: &Host,
    settings: &Settings,
    timeout: Duration,
) -> Result<()> {
    let Database::Local { password, .. } = &settings.database else {
        return Ok(());
    };
    server::set_postgres_password(host, settings, &password.open()?, timeout).await
}

/// What of the present `.env` must stay when an older one is restored: the password with which the
/// local PostgreSQL lets the gateway in, if it does. The server keeps it with its data, so it may no
/// longer know the one of the older file.
pub(crate) async fn known_to_the_database(host: &Host) -> &'static [&'static str] {
    let attempt = async {
        let settings = Settings::load(&host.paths.env_file())?;
        match &settings.database {
            Database::Local { password, .. } => {
                server::postgres_accepts(host, &settings, password.open()?.expose_secret()).await
            }
            Database::External { .. } => Ok(false),
        }
    };
    // A server that can't be asked has not proven anything.
    if attempt.await.unwrap_or(false) {
        &["POSTGRES_PASSWORD"]
    } else {
        &[]
    }
}

/// Goes forward, or else back.
async fn finish(host: &Host, pending: Pending, timeout: Duration) -> Result<()> {
    let attempt = async {
        write_down(host, &pending)?;
        fail::fail_point!("change-written");
        go(host, &pending, timeout).await?;
        for edit in &pending.edits {
            check(host, edit).await?;
        }
        if pending
            .edits
            .iter()
            .any(|edit| concerns_interface(&edit.name))
        {
            server::check_interface(host, &Settings::load(&host.paths.env_file())?).await?;
        }
        forget(host)
    };
    let Err(error) = attempt.await else {
        if salt_of(&pending.edits).is_some() {
            back_up_new_salt(host).await;
        }
        return Ok(());
    };
    host.progress.say(&format!("{error:#}"));
    host.progress
        .say(&format!("rolling back the {}", pending.what));
    let what = pending.what.clone();
    let back = Pending {
        way: Direction::Back,
        ..pending
    };
    let attempt = async {
        write_down(host, &back)?;
        go(host, &back, timeout.max(stack::RECOVERY_TIMEOUT)).await?;
        forget(host)
    };
    Err(match attempt.await {
        Ok(()) => Failure::new(format!("the {what} failed and was rolled back")).caused_by(error),
        Err(second) => Failure::new(format!("the {what} failed, and so did rolling it back"))
            .hint("fix the cause, then run `litellm-units up`, which continues the rollback")
            .caused_by(second),
    }
    .into())
}

/// Until there is a backup with the new salt, a lost host is lost with it.
async fn back_up_new_salt(host: &Host) {
    let attempt = async {
        let settings = Settings::load(&host.paths.env_file())?;
        salt::back_up(host, &settings).await
    };
    if let Err(error) = attempt.await {
        host.progress.warn(&format!(
            "the salt was replaced, but there is no backup with the new one: {error:#}; to make one: `litellm-units backup`"
        ));
    }
}

fn concerns_interface(name: &str) -> bool {
    name.starts_with("UI_") || name == "PROXY_BASE_URL"
}

fn write_down(host: &Host, pending: &Pending) -> Result<()> {
    files::save_record(&host.paths.pending_change(), pending)
}

fn forget(host: &Host) -> Result<()> {
    let path = host.paths.pending_change();
    std::fs::remove_file(&path).path_context("can't remove", &path)?;
    files::sync_directory(&host.paths.state())?;
    seal::collect(&host.paths)
}

/// Every step in one direction; each can be repeated.
async fn go(host: &Host, pending: &Pending, timeout: Duration) -> Result<()> {
    let path = host.paths.env_file();
    let (text, other) = match pending.way {
        Direction::Forward => (&pending.env_after, &pending.env_before),
        Direction::Back => (&pending.env_before, &pending.env_after),
    };
    let present = read_env(&path)?;
    let text = if present == *text || present == *other {
        text.clone()
    } else {
        // Edited since: only what this change is about is touched.
        let mut env = parse_env(&present, &path)?;
        for edit in &pending.edits {
            let value = value(edit, pending.way);
            if env.get(&edit.name).unwrap_or_default() != value {
                env.set(&edit.name, value)
                    .path_context("can't edit", &path)?;
            }
        }
        env.text().to_owned()
    };
    let settings = Settings::from_text(&text, &path)?;
    for edit in &pending.edits {
        let secret = open(host, value(edit, pending.way))?;
        match edit.name.as_str() {
            "POSTGRES_PASSWORD" => {
                server::set_postgres_password(host, &settings, &secret, timeout).await?;
            }
            SALT => {
                let other = open(host, value(edit, pending.way.opposite()))?;
                salt::reencrypt(host, &settings, &other, &secret, timeout).await?;
            }
            _ => {}
        }
    }
    if present != text {
        files::write_atomically(&path, text.as_bytes(), 0o600)?;
    }
    let ends_sessions = |edit: &Edit| {
        matches!(
            edit.name.as_str(),
            "UI_USERNAME" | "UI_PASSWORD" | "LITELLM_MASTER_KEY"
        )
    };
    stack::bring_up(host, &settings, timeout).await?;
    // Until the last gateway restarted, the old secret could begin another session.
    if pending.way == Direction::Forward && pending.edits.iter().any(ends_sessions) {
        server::end_sessions(host, &settings).await;
    }
    Ok(())
}

fn value(edit: &Edit, way: Direction) -> &str {
    match way {
        Direction::Forward => &edit.after,
        Direction::Back => &edit.before,
    }
}

/// The secret that a value of `.env` is, or refers to.
fn open(host: &Host, value: &str) -> Result<SecretString> {
    Vault::beside(&host.paths.env_file()).open(value)
}

/// Checks that the new value is accepted, and the old one refused.
async fn check(host: &Host, edit: &Edit) -> Result<()> {
    let settings = Settings::load(&host.paths.env_file())?;
    let what = edit.name.as_str();
    let accepted = async |value: &str| -> Result<Option<bool>> {
        let value = open(host, value)?;
        Ok(Some(match what {
            "LITELLM_MASTER_KEY" => server::master_key_is_valid(host, &value).await?,
            "POSTGRES_PASSWORD" => {
                server::postgres_accepts(host, &settings, value.expose_secret()).await?
            }
            "REDIS_PASSWORD" => server::redis_accepts(host, value.expose_secret()).await?,
            "UI_PASSWORD" => return server::login_is_valid(host, &settings, &value).await,
            _ => return Ok(None),
        }))
    };
    if accepted(&edit.after).await? == Some(false) {
        return Err(Failure::new(format!("the new {what} is not accepted")).into());
    }
    // An empty one was never one.
    if !edit.before.is_empty() && accepted(&edit.before).await? == Some(true) {
        return Err(Failure::new(format!("the old {what} is still accepted")).into());
    }
    Ok(())
}

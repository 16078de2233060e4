//! `key service` and `key rotate service`: the key in `service-key.txt`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Map;

use super::{CREATED_BY, Gateway, ROLE, ROLE_NAME, SERVICE_ROLE, USER, short};
use crate::cli::key::{As, RotateKey, ServiceKey};
use crate::deployment::settings::Database;
use crate::error::{Exit, Failure, PathContext, Result};
use crate::host::{Host, files, host_name};
use crate::litellm::Client;
use crate::litellm::keys::{ApiKey, Invalid, KeyError, Limits, hash};
use crate::litellm::models;
use crate::operations::recovery;
use crate::operations::up;
use crate::output::{self, say, warn};
use crate::random::{hex, kernel_random};

/// The default name in LiteLLM. Where several hosts may share the database, the name of this one follows.
const ALIAS: &str = "litellm-units-service";
/// Models, and keys. Listed one by one, since in LiteLLM 1.80 a group of routes gives a key that is not
/// an administrator's only the routes of its user's role.
const ROUTES: [&str; 8] = [
    "llm_api_routes",
    "/key/generate",
    "/key/list",
    "/key/info",
    "/key/update",
    "/key/block",
    "/key/unblock",
    "/key/delete",
];
/// Metadata: the deployment that it belongs to, the origin of its models, and its duration.
const DEPLOYMENT: &str = "deployment";
const MODELS: &str = "models";
const DURATION: &str = "duration";
const FROM_CONFIG: &str = "config";
const AS_GIVEN: &str = "given";

/// Leaves a valid key in the file.
pub(super) async fn ensure(host: &Host, arguments: &ServiceKey) -> Result<Exit> {
    let _lock = recovery::begin(host, "key service", arguments.timeout).await?;
    make_ready(host, arguments.timeout).await?;
    let gateway = Gateway::new(host)?;
    let path = host.paths.service_key();
    let key = match &gateway.service {
        None => replace(&gateway, arguments, None, 0).await?,
        Some(key) => match validity(&gateway, key).await? {
            Ok(()) => {
                adjust(&gateway, arguments, key).await?;
                key.clone()
            }
            Err(problem) => {
                say(&format!(
                    "the gateway does not accept the key in {} ({problem}): creating a new one",
                    path.display()
                ));
                replace(&gateway, arguments, Some(key), 0).await?
            }
        },
    };
    print(&path, &key, arguments.show)
}

pub(super) async fn rotate(host: &Host, arguments: &RotateKey) -> Result<Exit> {
    let _lock = recovery::begin(host, "key rotate service", arguments.key.timeout).await?;
    make_ready(host, arguments.key.timeout).await?;
    let gateway = Gateway::new(host)?;
    let old = gateway.service.as_ref();
    let key = replace(&gateway, &arguments.key, old, arguments.grace).await?;
    print(&host.paths.service_key(), &key, arguments.key.show)
}

fn print(path: &Path, key: &SecretString, show: bool) -> Result<Exit> {
    if show {
        output::line(key.expose_secret())?;
    } else {
        output::line(&path.display().to_string())?;
    }
    Ok(Exit::Success)
}

/// Starts the stack if the gateway is not ready.
async fn make_ready(host: &Host, timeout: Duration) -> Result<()> {
    if Client::local(&host.paths, Duration::from_secs(5))?
        .health()
        .await
        .is_ready()
    {
        return Ok(());
    }
    say("the gateway is not ready: starting the stack");
    up::everything(host, timeout).await
}

/// The key in a file, whose mode is set to 0600. `None` without the file or without a key in it.
pub(super) fn read(path: &Path) -> Result<Option<SecretString>> {
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        found => found.path_context("can't examine", path)?,
    };
    if !metadata.is_file() {
        return Err(Failure::new(format!("{} is not a file", path.display()))
            .hint("move it away, then run the command again")
            .into());
    }
    let mode = metadata.mode() & 0o7777;
    if mode != 0o600 {
        files::set_mode(path, 0o600)?;
        say(&format!(
            "set mode 0600 on {}, which had {mode:04o}",
            path.display()
        ));
        if mode & 0o077 != 0 && metadata.len() > 0 {
            warn(
                "others could read the service key; to replace it: `litellm-units key rotate service`",
            );
        }
    }
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::new(format!("can't read {}: {error}", path.display()))
            .hint("run this command as the user who owns the deployment")
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    if text.is_empty() {
        say(&format!("{} is empty", path.display()));
        return Ok(None);
    }
    let is_key = text.starts_with("sk-")
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !is_key {
        say(&format!(
            "{} does not contain a key of LiteLLM",
            path.display()
        ));
        return Ok(None);
    }
    Ok(Some(text.into()))
}

async fn validity(
    gateway: &Gateway<'_>,
    key: &SecretString,
) -> Result<std::result::Result<(), Invalid>> {
    match gateway.client.keys(key).own().await {
        // Valid, but not allowed to call that path.
        Ok(_) | Err(KeyError::Forbidden { .. }) => Ok(Ok(())),
        Err(KeyError::Unauthorized(problem)) => Ok(Err(problem)),
        Err(KeyError::NotFound)
            if *key.expose_secret() == *gateway.settings.master_key.open()?.expose_secret() =>
        {
            say("the file contains the master key, which is not for daily use");
            Ok(Err(Invalid::Other))
        }
        Err(error) => Err(gateway.explain(&error, As::Service)),
    }
}

/// Whether other hosts may have service keys in the same database.
fn is_shared(gateway: &Gateway<'_>) -> bool {
    matches!(gateway.settings.database, Database::External { .. })
}

/// This deployment among all that share a database.
fn deployment(gateway: &Gateway<'_>) -> String {
    let directory = gateway.host.paths.deployment.display();
    format!("{}:{directory}", host_name())
}

/// From the arguments, otherwise those of the previous key, otherwise the default.
fn limits(
    gateway: &Gateway<'_>,
    arguments: &ServiceKey,
    before: Option<&ApiKey>,
) -> Result<Limits> {
    let asked = &arguments.limits;
    let (models, origin) = if !asked.models.is_empty() {
        (asked.models.clone(), AS_GIVEN)
    } else if let Some(before) = before.filter(|key| key.metadata_text(MODELS) == Some(AS_GIVEN)) {
        (before.models.clone(), AS_GIVEN)
    } else {
        (
            models::configured(&gateway.host.paths.config_file())?,
            FROM_CONFIG,
        )
    };
    let duration = asked
        .duration
        .clone()
        .or_else(|| before?.metadata_text(DURATION).map(str::to_owned));
    let allowed_routes = if asked.allowed_routes.is_empty() {
        before
            .and_then(|key| key.allowed_routes.clone())
            .filter(|routes| !routes.is_empty())
            .unwrap_or_else(|| ROUTES.map(str::to_owned).to_vec())
    } else {
        asked.allowed_routes.clone()
    };
    let mut metadata = Map::new();
    metadata.insert(CREATED_BY.0.into(), CREATED_BY.1.into());
    metadata.insert(ROLE_NAME.into(), SERVICE_ROLE.into());
    metadata.insert(DEPLOYMENT.into(), deployment(gateway).into());
    metadata.insert(MODELS.into(), origin.into());
    if let Some(duration) = &duration {
        metadata.insert(DURATION.into(), duration.as_str().into());
    }
    Ok(Limits {
        alias: Some(
            arguments
                .alias
                .clone()
                .or_else(|| before?.alias.as_deref().map(final_name))
                .unwrap_or_else(|| {
                    if is_shared(gateway) {
                        format!("{ALIAS}-{}", host_name())
                    } else {
                        ALIAS.to_owned()
                    }
                }),
        ),
        models: Some(models),
        max_budget: asked.max_budget.or_else(|| before?.max_budget),
        requests_per_minute: asked.rpm.or_else(|| before?.rpm_limit),
        tokens_per_minute: asked.tpm.or_else(|| before?.tpm_limit),
        duration,
        allowed_routes: Some(allowed_routes),
        user: Some(USER.into()),
        metadata: Some(metadata),
        ..Limits::default()
    })
}

/// Creates a key, checks that the gateway accepts it, writes it, and then deletes the previous ones.
async fn replace(
    gateway: &Gateway<'_>,
    arguments: &ServiceKey,
    old: Option<&SecretString>,
    grace: u64,
) -> Result<SecretString> {
    let master = gateway.master()?;
    let explain = |error| gateway.explain(&error, As::Master);
    master
        .ensure_user(USER, USER, ROLE)
        .await
        .map_err(explain)?;
    let before = match old {
        Some(old) => match master.info(&hash(old)).await {
            Ok(key) => Some(key),
            Err(KeyError::NotFound) => None,
            Err(error) => return Err(explain(error)),
        },
        None => None,
    };
    let mut limits = limits(gateway, arguments, before.as_ref())?;
    let alias = limits.alias.clone().unwrap_or_default();
    let new = match master.generate(&limits).await {
        Err(KeyError::DuplicateAlias { .. }) => {
            limits.alias = Some(provisional(&alias)?);
            master.generate(&limits).await
        }
        other => other,
    }
    .map_err(explain)?;
    if let Err(problem) = validity(gateway, &new.key).await? {
        // Nobody has this key.
        let _ = master.delete(&new.token).await;
        return Err(Failure::new(format!(
            "the gateway created a key that it does not accept ({problem}); the previous one is still in place"
        ))
        .hint("see the log of the gateway: `litellm-units logs litellm`")
        .into());
    }
    let path = gateway.host.paths.service_key();
    let text = format!("{}\n", new.key.expose_secret());
    files::write_atomically(&path, text.as_bytes(), 0o600)?;
    say(&match &new.expires {
        Some(expires) => format!(
            "wrote a new service key to {}, valid until {expires}",
            path.display()
        ),
        None => format!("wrote a new service key to {}", path.display()),
    });
    if grace > 0 && old.is_some() {
        say(&format!("the previous one stays valid for {grace} s"));
        tokio::time::sleep(Duration::from_secs(grace)).await;
    }
    tidy(gateway, &new.token, &alias, before).await?;
    Ok(new.key)
}

/// Deletes every other service key of this deployment: the previous one, and those that an interruption or a lost file
/// left. Then gives the key with the hash `token` its final name.
async fn tidy(
    gateway: &Gateway<'_>,
    token: &str,
    alias: &str,
    previous: Option<ApiKey>,
) -> Result<()> {
    let master = gateway.master()?;
    let explain = |error| gateway.explain(&error, As::Master);
    let mut all = master.list(None).await.map_err(explain)?;
    // A list of several pages may lack a key.
    let previous_token = previous.as_ref().map(|old| old.token.clone());
    all.extend(previous.filter(|old| all.iter().all(|key| key.token != old.token)));
    let is_ours = |key: &ApiKey| {
        key.metadata_text(CREATED_BY.0) == Some(CREATED_BY.1)
            && key.metadata_text(ROLE_NAME) == Some(SERVICE_ROLE)
            && (!is_shared(gateway)
                || previous_token.as_ref() == Some(&key.token)
                || key.metadata_text(DEPLOYMENT) == Some(&*deployment(gateway)))
    };
    let mut has_name = false;
    let mut is_taken = false;
    for key in all {
        if key.token == token {
            has_name = key.alias.as_deref() == Some(alias);
        } else if is_ours(&key) {
            match master.delete(&key.token).await {
                Ok(()) => say(&format!(
                    "deleted the previous service key {}",
                    key.key.as_deref().unwrap_or_default().replace("...", "…")
                )),
                Err(KeyError::NotFound) => {}
                Err(error) => return Err(explain(error)),
            }
        } else if key.alias.as_deref() == Some(alias) {
            is_taken = true;
        }
    }
    if has_name {
        return Ok(());
    }
    if is_taken {
        warn(&format!(
            "a key that this deployment did not make has the alias {alias}, so the service key gets another one"
        ));
        return Ok(());
    }
    let name = Limits {
        alias: Some(alias.to_owned()),
        ..Limits::default()
    };
    master.update(token, &name).await.map_err(explain)
}

/// Updates a valid key to the arguments and the current configuration.
async fn adjust(gateway: &Gateway<'_>, arguments: &ServiceKey, key: &SecretString) -> Result<()> {
    let master = gateway.master()?;
    let explain = |error| gateway.explain(&error, As::Master);
    let token = hash(key);
    let before = master.info(&token).await.map_err(explain)?;
    if before.metadata_text(ROLE_NAME) != Some(SERVICE_ROLE) {
        // Not created by litellm-units, so it is not changed.
        return Ok(());
    }
    let wanted = limits(gateway, arguments, Some(&before))?;
    let (budget, routes) = (wanted.max_budget, wanted.allowed_routes);
    let (rpm, tpm) = (wanted.requests_per_minute, wanted.tokens_per_minute);
    let change = Limits {
        models: wanted.models.filter(|new| *new != before.models),
        max_budget: budget.filter(|_| budget != before.max_budget),
        requests_per_minute: rpm.filter(|_| rpm != before.rpm_limit),
        tokens_per_minute: tpm.filter(|_| tpm != before.tpm_limit),
        // Counts from now, so only if it is an argument.
        duration: arguments.limits.duration.clone(),
        allowed_routes: routes.filter(|new| before.allowed_routes.as_ref() != Some(new)),
        ..Limits::default()
    };
    let is_named = before.metadata_text(DEPLOYMENT) == Some(&*deployment(gateway));
    if change != Limits::default() || !is_named {
        let words = words(&change, &short(&gateway.host.paths.config_file()));
        let change = Limits {
            metadata: wanted.metadata,
            ..change
        };
        master.update(&token, &change).await.map_err(explain)?;
        if !words.is_empty() {
            say(&format!("changed the service key's {words}"));
        }
    }
    let alias = wanted.alias.unwrap_or_default();
    tidy(gateway, &token, &alias, None).await
}

fn words(change: &Limits, config: &str) -> String {
    let mut words = Vec::new();
    if let Some(models) = &change.models {
        words.push(format!(
            "models, now {} ({config} or --model)",
            models.join(", ")
        ));
    }
    for (name, set) in [
        ("budget", change.max_budget.is_some()),
        ("requests per minute", change.requests_per_minute.is_some()),
        ("tokens per minute", change.tokens_per_minute.is_some()),
        ("duration", change.duration.is_some()),
        ("allowed routes", change.allowed_routes.is_some()),
    ] {
        if set {
            words.push(name.to_owned());
        }
    }
    words.join(", ")
}

const PROVISIONAL: &str = "~new-";

/// A name for the time in which the previous key still has the final one.
fn provisional(alias: &str) -> Result<String> {
    let mut bytes = [0; 4];
    kernel_random(&mut bytes)?;
    Ok(format!("{alias}{PROVISIONAL}{}", hex(&bytes)))
}

fn final_name(alias: &str) -> String {
    alias.split(PROVISIONAL).next().unwrap_or(alias).to_owned()
}

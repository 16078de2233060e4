//! `secrets`: rotation, sealing and audit.

use std::io::Read;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;

use crate::cli::secrets::{RotateSecret, Seal, Secret, Secrets as Verb, Unseal};
use crate::deployment::sealed::{FILES, SecretValue};
use crate::deployment::settings::{Cache, Database, Settings, load_env};
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::paths::Scope;
use crate::operations::recovery;
use crate::operations::rotation;
use crate::operations::seal;
use crate::operations::stack::RECOVERY_TIMEOUT;
use crate::operations::up;
use crate::output::{self, say, warn};
use crate::random::{kernel_random, password, secret_key};

/// In bytes, of a value from stdin.
const LONGEST: u64 = 1 << 20;

pub(crate) async fn run(host: &Host, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Rotate(arguments) => rotate(host, &arguments).await,
        Verb::Seal(arguments) => seal(host, arguments).await,
        Verb::Unseal(arguments) => unseal(host, &arguments).await,
        Verb::Audit(arguments) => super::audit::run(host, &arguments).await,
    }
}

async fn rotate(host: &Host, arguments: &RotateSecret) -> Result<Exit> {
    let env = host.paths.env_file();
    let (name, new) = match arguments.secret {
        Secret::Salt => (rotation::SALT, secret_key(&mut kernel_random)?),
        Secret::Master => ("LITELLM_MASTER_KEY", secret_key(&mut kernel_random)?),
        Secret::Postgres => ("POSTGRES_PASSWORD", password(&mut kernel_random)?),
        Secret::Redis => ("REDIS_PASSWORD", password(&mut kernel_random)?),
        Secret::Ui => ("UI_PASSWORD", password(&mut kernel_random)?),
    };
    let settings = Settings::load(&env)?;
    let external = |what: &str, variable: &str| {
        Failure::new(format!(
            "{what} is external, so its password is not changed from here"
        ))
        .hint(format!(
            "change it there, then {variable} in {}, then run `litellm-units apply`",
            env.display()
        ))
    };
    match (arguments.secret, &settings.database, &settings.cache) {
        (Secret::Postgres, Database::External { .. }, _) => {
            return Err(external("the database", "DATABASE_URL").into());
        }
        (Secret::Redis, _, Cache::External) => {
            return Err(external("Redis", "REDIS_PASSWORD").into());
        }
        (Secret::Salt, Database::External { .. }, _) => {
            return Err(Failure::new(
                "the database is external: other gateways that use it would keep the present salt",
            )
            .hint("the salt can be replaced where PostgreSQL is one of the services here")
            .into());
        }
        _ => {}
    }
    replace(
        host,
        &format!("rotation of {name}"),
        &[(name, new.into())],
        arguments.timeout,
    )
    .await?;
    output::line(&format!("replaced {name}"))?;
    match arguments.secret {
        Secret::Salt => say(
            "earlier backups need the previous salt, which is in their .env: restore them with `--config`",
        ),
        Secret::Master if settings.ui_password().is_none() => say(
            "the login of the web interface is the master key while UI_PASSWORD is empty; to set a password: `litellm-units ui`",
        ),
        Secret::Ui if settings.ui_password().is_some_and(SecretValue::is_sealed) => {
            say(
                "the new password is UI_PASSWORD, which is sealed; to show it: `litellm-units config --unmask`",
            );
        }
        Secret::Ui => say(&format!(
            "the new password is UI_PASSWORD in {}",
            env.display()
        )),
        _ => {}
    }
    Ok(Exit::Success)
}

async fn seal(host: &Host, arguments: Seal) -> Result<Exit> {
    if host.scope() == Scope::User {
        return Err(Failure::new(
            "secrets of a rootless deployment can't be sealed: Podman asks for them in its user namespace, where systemd-creds can't open them",
        )
        .hint("they stay in .env, which only this user can read; only a rootful deployment can be sealed")
        .into());
    }
    if !arguments.file.is_empty() {
        return seal_files(host, &arguments).await;
    }
    let value = match arguments.names.as_slice() {
        [_] if arguments.stdin => Some(from_stdin()?),
        _ if arguments.stdin => {
            return Err(Failure::new("--stdin gives a value for one variable")
                .hint("name it: `litellm-units secrets seal --stdin OPENAI_API_KEY`")
                .into());
        }
        _ => None,
    };
    let _lock = recovery::begin(host, "secrets seal", RECOVERY_TIMEOUT).await?;
    let is_new = value.is_some();
    let done = seal::seal(
        host,
        &seal::SealOptions {
            names: arguments.names,
            key: arguments.with_key,
            value,
        },
    )?;
    report("sealed", &done)?;
    let path = host.paths.env_file();
    let env = load_env(&path)?;
    let keys: Vec<String> = seal::keys(&env, &path)?
        .iter()
        .map(ToString::to_string)
        .collect();
    if done != seal::Sealed::default() {
        say("to find older copies, in backups for example: `litellm-units secrets audit`");
    }
    if !keys.is_empty() {
        say(&format!(
            "sealed secrets can be opened with {} only",
            keys.join(", or ")
        ));
    }
    if Settings::from_env(&env, &path)?.backup.recipient.is_none() && seal::is_in_use(&env) {
        warn(
            "without this host, backups can't restore the secrets until .env has BACKUP_AGE_RECIPIENT: LITELLM_SALT_KEY would be lost, and with it the credentials in the database",
        );
    }
    if is_new {
        say("to use the new value: `litellm-units apply`");
    }
    Ok(Exit::Success)
}

async fn seal_files(host: &Host, arguments: &Seal) -> Result<Exit> {
    let _lock = recovery::begin(host, "secrets seal", RECOVERY_TIMEOUT).await?;
    seal::seal_files(host, &arguments.file, arguments.with_key)?;
    for name in &arguments.file {
        output::line(&format!("sealed files/{name}"))?;
        say(&format!(
            "the gateway gets it as {FILES}/{name}: write this path where /app/files/{name} is named, run `litellm-units apply`, then remove files/{name}"
        ));
    }
    Ok(Exit::Success)
}

async fn unseal(host: &Host, arguments: &Unseal) -> Result<Exit> {
    let _lock = recovery::begin(host, "secrets unseal", RECOVERY_TIMEOUT).await?;
    report("unsealed", &seal::unseal(host, &arguments.names)?)?;
    Ok(Exit::Success)
}

fn from_stdin() -> Result<SecretString> {
    let mut text = String::new();
    std::io::stdin()
        .take(LONGEST)
        .read_to_string(&mut text)
        .context("can't read the value from stdin")?;
    let value = text.strip_suffix('\n').unwrap_or(&text);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() {
        return Err(Failure::new("there is no value on stdin; nothing was changed").into());
    }
    Ok(value.into())
}

fn report(verb: &str, done: &seal::Sealed) -> Result<()> {
    for name in &done.names {
        output::line(&format!("{verb} {name}"))?;
    }
    if done.kept > 0 {
        say(&format!(
            "{verb} in {} kept configurations as well",
            done.kept
        ));
    }
    if *done == seal::Sealed::default() {
        output::line("nothing to do")?;
    }
    Ok(())
}

/// Starts everything with the current `.env` before the rotation, so that a failure is due to it.
pub(super) async fn replace(
    host: &Host,
    what: &str,
    values: &[(&str, SecretString)],
    timeout: Duration,
) -> Result<()> {
    let _lock = recovery::begin(host, what, timeout).await?;
    up::everything(host, timeout).await?;
    rotation::carry_out(host, what, values, timeout).await
}

//! `secrets`: replaced everywhere at once, and looked for where they do not belong.

use std::time::Duration;

use secrecy::SecretString;

use super::up;
use crate::change;
use crate::cli::secrets::{RotateSecret, Secret, Secrets as Verb};
use crate::deployment::{kernel_random, password, secret_key};
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::output::{self, say};
use crate::settings::{Cache, Database, Settings};

/// Runs the verb.
///
/// # Errors
/// When a secret can't be replaced; then all is as before, or the message says what is not.
pub async fn run(host: &Host, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Rotate(arguments) => rotate(host, &arguments).await,
        Verb::Audit(arguments) => super::audit::run(host, &arguments).await,
    }
}

async fn rotate(host: &Host, arguments: &RotateSecret) -> Result<Exit> {
    let env = host.paths.env_file();
    let (name, new) = match arguments.secret {
        Secret::Salt => {
            return Err(Failure::new(
                "LITELLM_SALT_KEY is never replaced: with it, LiteLLM encrypts the provider credentials in its database, and with another one it could read none of them",
            )
            .hint("to change it all the same, start with an empty database and enter the credentials and models anew")
            .into());
        }
        Secret::Master => ("LITELLM_MASTER_KEY", secret_key(&mut kernel_random)?),
        Secret::Postgres => ("POSTGRES_PASSWORD", password(&mut kernel_random)?),
        Secret::Redis => ("REDIS_PASSWORD", password(&mut kernel_random)?),
        Secret::Ui => ("UI_PASSWORD", password(&mut kernel_random)?),
    };
    let settings = Settings::load(&env)?;
    let elsewhere = |what: &str, variable: &str| {
        Failure::new(format!(
            "{what} is elsewhere, so its password is not changed from here"
        ))
        .hint(format!(
            "change it there, then {variable} in {}, then: litellm-units apply",
            env.display()
        ))
    };
    match (arguments.secret, &settings.database, &settings.cache) {
        (Secret::Postgres, Database::External { .. }, _) => {
            return Err(elsewhere("the database", "DATABASE_URL").into());
        }
        (Secret::Redis, _, Cache::External) => {
            return Err(elsewhere("Redis", "REDIS_PASSWORD").into());
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
        Secret::Master if settings.ui_password().is_none() => say(
            "the web interface is logged in to with the master key while UI_PASSWORD is empty: set one with litellm-units ui",
        ),
        Secret::Ui => say(&format!(
            "the new password is UI_PASSWORD in {}",
            env.display()
        )),
        _ => {}
    }
    Ok(Exit::Success)
}

/// Has everything run as `.env` says, then changes it.
pub(super) async fn replace(
    host: &Host,
    what: &str,
    values: &[(&str, SecretString)],
    timeout: Duration,
) -> Result<()> {
    let _lock = super::begin(host, what, false, timeout).await?;
    up::everything(host, timeout, |text| {
        say(text);
        Ok(())
    })
    .await?;
    change::carry_out(host, what, values, timeout).await
}

//! What the servers themselves know of a secret.

use std::process::Output;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::deployment::settings::{Database, Settings};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::systemd::job::{JobType, Jobs};
use crate::litellm::Client;
use crate::litellm::keys::{KeyError, scrub};
use crate::litellm::ui;
use crate::service::Service;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Over the socket in the container, which asks for no password: so it works whichever password
/// the server knows.
const PSQL: &str = r#"exec psql -X -q -v ON_ERROR_STOP=1 -h /var/run/postgresql -U "$POSTGRES_USER" -d "$POSTGRES_DB""#;
/// Over the network, which asks for the password: on the first line of stdin.
const PSQL_LOGIN: &str = r#"IFS= read -r PGPASSWORD; export PGPASSWORD; exec psql -X -w -tA -h postgres -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c 'SELECT 1'"#;
/// Redis over the network, with the password on the first line of stdin.
const REDIS_LOGIN: &str =
    "IFS= read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec redis-cli -e ping";

/// Runs a shell script in a container. What is secret comes over its stdin, since arguments are
/// for all to see.
async fn shell(host: &Host, service: Service, script: &str, input: &str) -> Result<Output> {
    let container = service.container();
    let words = ["exec", "--interactive", container, "sh", "-c", script];
    match tokio::time::timeout(TIMEOUT, host.podman().await?.fed(words, input)).await {
        Ok(output) => output,
        Err(_) => Err(Failure::new(format!(
            "{container} did not answer within {} s",
            TIMEOUT.as_secs()
        ))
        .hint(format!(
            "see its log: `litellm-units logs {}`",
            service.name()
        ))
        .into()),
    }
}

/// Gives PostgreSQL's role a password. psql sends its SCRAM verifier only, so neither the server
/// nor its log ever sees the password.
pub(super) async fn set_postgres_password(
    host: &Host,
    settings: &Settings,
    password: &SecretString,
    timeout: Duration,
) -> Result<()> {
    let Database::Local { user, .. } = &settings.database else {
        return Ok(());
    };
    let password = password.expose_secret();
    if password.contains(['\n', '\r']) {
        return Err(Failure::new(
            "PostgreSQL's password contains a line break, which psql does not accept",
        )
        .into());
    }
    start(host, Service::Postgres, timeout).await?;
    let user = user.replace('"', "\"\"");
    // psql reads the password twice from stdin, since there is no terminal.
    let input = format!(
        "SET password_encryption = 'scram-sha-256';\n\\password \"{user}\"\n{password}\n{password}\n"
    );
    let output = shell(host, Service::Postgres, PSQL, &input).await?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: Vec<&str> = words
        .lines()
        .filter(|line| !line.starts_with("Enter"))
        .collect();
    Err(Failure::new(format!(
        "PostgreSQL's password can't be changed: {}",
        scrub(&words.join(" "))
    ))
    .hint("see its log: `litellm-units logs postgres`")
    .into())
}

/// PostgreSQL's answer to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Accepted,
    /// It says the same of a role that it does not have.
    WrongPassword,
    /// The password was accepted.
    NoDatabase,
}

/// Whether PostgreSQL accepts a login with this password.
pub(super) async fn postgres_accepts(
    host: &Host,
    settings: &Settings,
    password: &str,
) -> Result<bool> {
    if !matches!(settings.database, Database::Local { .. }) {
        return Ok(true);
    }
    Ok(postgres_login(host, password).await? != Login::WrongPassword)
}

/// What the local PostgreSQL says to a login with this password, and the role and the database of `.env`.
pub(super) async fn postgres_login(host: &Host, password: &str) -> Result<Login> {
    let output = shell(
        host,
        Service::Postgres,
        PSQL_LOGIN,
        &format!("{password}\n"),
    )
    .await?;
    if output.status.success() {
        return Ok(Login::Accepted);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("password authentication failed") {
        return Ok(Login::WrongPassword);
    }
    if words.contains("database \"") && words.contains("does not exist") {
        return Ok(Login::NoDatabase);
    }
    Err(Failure::new(format!("PostgreSQL does not answer: {}", scrub(&words))).into())
}

/// Whether Redis accepts this password.
pub(super) async fn redis_accepts(host: &Host, password: &str) -> Result<bool> {
    let output = shell(host, Service::Redis, REDIS_LOGIN, &format!("{password}\n")).await?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    if words.contains("WRONGPASS") || words.contains("NOAUTH") {
        Ok(false)
    } else if words.trim() == "PONG" {
        Ok(true)
    } else {
        Err(Failure::new(format!("Redis does not answer: {}", scrub(&words))).into())
    }
}

/// Whether the gateway accepts this master key.
pub(super) async fn master_key_is_valid(host: &Host, key: &SecretString) -> Result<bool> {
    let client = Client::local(&host.paths, TIMEOUT)?;
    // No key has this hash.
    match client.keys(key).info(&"0".repeat(64)).await {
        Ok(_) | Err(KeyError::NotFound) => Ok(true),
        Err(KeyError::Unauthorized(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether the web interface accepts this password, with the user name of `settings`; as [`ui::login`] says.
pub(super) async fn login_is_valid(
    host: &Host,
    settings: &Settings,
    password: &SecretString,
) -> Result<Option<bool>> {
    let username = settings.ui_username().unwrap_or(ui::DEFAULT_USERNAME);
    ui::login(&Client::local(&host.paths, TIMEOUT)?, username, password).await
}

/// Whether the login page answers, leads nowhere that is not encrypted, and accepts the login.
pub(super) async fn check_interface(host: &Host, settings: &Settings) -> Result<()> {
    let client = Client::local(&host.paths, TIMEOUT)?;
    let public = settings
        .public_address()
        .filter(|address| address.starts_with("https:"))
        .and_then(|address| reqwest::Url::parse(address).ok());
    ui::check_pages(&client, &settings.root_path, public.as_ref()).await?;
    let password = settings.ui_password().unwrap_or(&settings.master_key);
    match login_is_valid(host, settings, &password.open()?).await? {
        Some(true) => Ok(()),
        Some(false) => {
            Err(Failure::new("the web interface does not accept the login of .env").into())
        }
        None => {
            host.progress.warn(
                "the login of .env was not tried: LiteLLM refuses every login from this host for some minutes, after several with a wrong password",
            );
            Ok(())
        }
    }
}

/// Ends the sessions of the web interface: each is a key with an administrator's rights, valid for
/// a day, whatever becomes of the password that it was got with.
pub(super) async fn end_sessions(host: &Host, settings: &Settings) {
    const QUERY: &str =
        "DELETE FROM \"LiteLLM_VerificationToken\" WHERE team_id = 'litellm-dashboard';\n";
    let ended = match settings.database {
        Database::Local { .. } => shell(host, Service::Postgres, PSQL, QUERY)
            .await
            .is_ok_and(|output| output.status.success()),
        Database::External { .. } => false,
    };
    if ended {
        host.progress.say("ended the sessions of the web interface");
    } else {
        host.progress
            .warn("sessions of the web interface stay valid until they expire, within 24 h");
    }
}

/// Starts a service without waiting for the gateway, which may need what comes next.
async fn start(host: &Host, service: Service, timeout: Duration) -> Result<()> {
    let systemd = host.systemd().await?;
    let unit = service.unit();
    if systemd.unit(unit).await?.is_active() {
        return Ok(());
    }
    let (since, deadline) = (jiff::Timestamp::now(), Instant::now() + timeout);
    let mut jobs = Jobs::new(systemd).await?;
    jobs.ask(JobType::Start, unit).await?;
    while !jobs.pending().is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        match jobs.next(left).await? {
            Some((_, result)) if result.is_success() => {}
            _ => {
                return Err(crate::operations::stack::failed(
                    systemd,
                    unit,
                    "did not start",
                    since,
                )
                .await);
            }
        }
    }
    Ok(())
}

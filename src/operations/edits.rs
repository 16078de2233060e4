//! Edits of `.env` that can only fail, found before anything is stopped: a login that PostgreSQL refuses, another salt
//! than the one that stored credentials are encrypted with, an image of PostgreSQL that misreads the indexes, servers whose
//! names mean nothing here, values that no program gives, and addresses of the gateway that can't be had.

use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;

use super::backup::database::Server;
use super::postgres;
use super::rotation::{self, Login};
use super::stack::{self, address};
use crate::deployment::database_url;
use crate::deployment::env_file::EnvFile;
use crate::deployment::external::{self, Lookup};
use crate::deployment::sealed::{self, SecretValue};
use crate::deployment::settings::{self, Cache, Database, Settings, load_env};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::deployment::variables::SENTINEL_NODES;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::paths::Paths;
use crate::service::Service;

/// How long the host's resolver may take for one name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The variables that are right only if the data of the local PostgreSQL agrees.
const LOGIN: [&str; 3] = ["POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"];

/// Refuses addresses that can't be had, an image of PostgreSQL with another C library, sealed files that can't be opened, and
/// what the running database proves to be wrong. One that does not run proves nothing.
pub(crate) async fn refuse(host: &Host, settings: &Settings) -> Result<()> {
    address::refuse(host, settings)?;
    address::refuse_metrics(&host.paths, settings)?;
    refuse_other_library(host, settings)?;
    sealed::files(&host.paths)?;
    let Some(edit) = Edit::find(host, settings) else {
        return Ok(());
    };
    if !edit.is_answerable(host, settings).await? {
        return Ok(());
    }
    edit.check(host, settings).await
}

/// Refuses values that other programs do not give, unless an earlier start got them. The settings are those of the deployment,
/// or of a backup that is restored: a dry run runs no program that another configuration names.
pub(crate) fn refuse_missing_values(paths: &Paths, settings: &Settings) -> Result<()> {
    for fetched in external::fetch_all(paths, &missing_values(paths, settings)?)? {
        fetched?;
    }
    Ok(())
}

/// Which programs [`refuse_missing_values`] runs, in words.
pub(crate) fn programs_to_run(paths: &Paths, settings: &Settings) -> Result<Vec<String>> {
    let missing = missing_values(paths, settings)?.into_iter();
    Ok(missing
        .map(|lookup| format!("run {} for {}", lookup.program(), lookup.variable()))
        .collect())
}

fn missing_values<'a>(paths: &Paths, settings: &'a Settings) -> Result<Vec<&'a Lookup>> {
    let mut missing = Vec::new();
    for lookup in settings.lookups() {
        if lookup.last_good(paths)?.is_none() {
            missing.push(lookup);
        }
    }
    Ok(missing)
}

/// As [`refuse`], for a local PostgreSQL that is stopped: it is started alone and asked, before anything is started that
/// would fail with the edit.
///
/// # Errors
/// As [`refuse`], and when PostgreSQL does not start.
pub(crate) async fn refuse_at_start(
    host: &Host,
    settings: &Settings,
    timeout: Duration,
) -> Result<()> {
    let Some(edit) = Edit::find(host, settings) else {
        return Ok(());
    };
    if edit.is_answerable(host, settings).await? {
        // It was asked before.
        return Ok(());
    }
    stack::run(host, Service::Postgres.unit(), timeout).await?;
    edit.check(host, settings).await
}

/// Edits since the last good configuration that only the database can judge.
struct Edit {
    /// The last good configuration.
    good: SnapshotId,
    /// Which of [`LOGIN`] have other values.
    login: Vec<&'static str>,
    /// Whether the salt is another one.
    salt: bool,
}

impl Edit {
    fn find(host: &Host, settings: &Settings) -> Option<Self> {
        let paths = &host.paths;
        let good = snapshot::last_good(paths)?;
        let before = snapshot::env(paths, &good)
            .and_then(|text| Settings::from_text(&text, &paths.env_file()));
        // One that can't be read has nothing to compare with, and a secret that can't be opened fails the start itself.
        let before = before.ok()?;
        let edit = Self {
            good,
            login: login_edits(&before, settings).unwrap_or_default(),
            salt: differ(before.salt(), settings.salt()).unwrap_or_default(),
        };
        (edit.salt || !edit.login.is_empty()).then_some(edit)
    }

    /// Whether the database can be asked without starting anything.
    async fn is_answerable(&self, host: &Host, settings: &Settings) -> Result<bool> {
        Ok(match settings.database {
            Database::External { .. } => true,
            Database::Local { .. } => {
                let unit = host.systemd().await?.unit(Service::Postgres.unit()).await?;
                unit.is_active()
            }
        })
    }

    async fn check(&self, host: &Host, settings: &Settings) -> Result<()> {
        self.check_login(host, settings).await?;
        self.check_salt(host, settings).await
    }

    async fn check_login(&self, host: &Host, settings: &Settings) -> Result<()> {
        let Database::Local { password, .. } = &settings.database else {
            return Ok(());
        };
        if self.login.is_empty() {
            return Ok(());
        }
        // A server that can't be asked has not proven anything.
        let Ok(login) = rotation::login(host, password).await else {
            return Ok(());
        };
        match refusal(login, &self.login) {
            None => Ok(()),
            Some(refusal) => Err(self.wrong(host, refusal.name, refusal.problem, refusal.then)),
        }
    }

    async fn check_salt(&self, host: &Host, settings: &Settings) -> Result<()> {
        const NAME: &str = "LITELLM_SALT_KEY";
        if !self.salt {
            return Ok(());
        }
        let tables = async {
            let server = Server::new(host, settings).await?;
            server.encrypted_tables().await
        };
        let tables = tables.await.with_context(|| {
            format!("{NAME} was changed, and the database can't be asked whether it holds credentials that the previous one encrypts")
        })?;
        if tables.is_empty() {
            host.progress.warn(&format!(
                "{NAME} was changed; the database holds nothing that the previous one encrypts"
            ));
            return Ok(());
        }
        Err(self.wrong(
            host,
            NAME,
            &format!(
                "is not the one that encrypts what the database holds ({}), so LiteLLM could not read it any more",
                tables.join(", ")
            ),
            "to replace it: `litellm-units secrets rotate salt`",
        ))
    }

    /// `then`: what the hint says after the previous value.
    fn wrong(&self, host: &Host, name: &str, problem: &str, then: &str) -> anyhow::Error {
        wrong(host, &self.good, name, problem, then)
    }
}

fn wrong(host: &Host, good: &SnapshotId, name: &str, problem: &str, then: &str) -> anyhow::Error {
    let good = snapshot::directory(&host.paths, good).join(".env");
    Failure::config(format!("{} {problem}", place(host, name)))
        .hint(format!(
            "restore the previous value, which is in {}; {then}",
            good.display()
        ))
        .into()
}

/// Refuses the image of Alpine for a cluster of Debian, and the reverse. Rootless, the owner of the cluster does not show it.
fn refuse_other_library(host: &Host, settings: &Settings) -> Result<()> {
    const NAME: &str = "POSTGRES_IMAGE";
    let paths = &host.paths;
    let good = snapshot::last_good(paths);
    let (Some(image), Some(good)) = (settings.image(Service::Postgres), good) else {
        return Ok(());
    };
    if !paths.postgres_data().join("PG_VERSION").exists() {
        return Ok(());
    }
    // After a change of the cluster with which the gateway was not ready, that one is in use.
    let before = match postgres::recorded_image(paths)? {
        Some(image) => Some(image),
        None => snapshot::env(paths, &good)
            .and_then(|text| Settings::from_text(&text, &paths.env_file()))
            .ok()
            .and_then(|before| before.image(Service::Postgres).cloned()),
    };
    match before {
        Some(before) if before.is_alpine() != image.is_alpine() => Err(wrong(
            host,
            &good,
            NAME,
            &format!(
                "names {image}, but the cluster is that of {before}, and the order of text differs between Alpine and Debian: indexes would be damaged"
            ),
            "to change it: `litellm-units upgrade --postgres IMAGE`",
        )),
        _ => Ok(()),
    }
}

fn place(host: &Host, name: &str) -> String {
    let path = host.paths.env_file();
    settings::place(load_env(&path).ok().as_ref(), &path, name)
}

fn differ(one: &SecretValue, other: &SecretValue) -> Result<bool> {
    // The same sealed secret need not be opened.
    if one.is_sealed() && one.sealed() == other.sealed() {
        return Ok(false);
    }
    Ok(one.open()?.expose_secret() != other.open()?.expose_secret())
}

/// Which variables of the login differ. None if one of the two servers is external: the data are not the same then.
fn login_edits(before: &Settings, after: &Settings) -> Result<Vec<&'static str>> {
    let (
        Database::Local {
            user: user_before,
            password: password_before,
            name: name_before,
            ..
        },
        Database::Local {
            user,
            password,
            name,
            ..
        },
    ) = (&before.database, &after.database)
    else {
        return Ok(Vec::new());
    };
    let edited = [
        user != user_before,
        differ(password, password_before)?,
        name != name_before,
    ];
    let edits = LOGIN.into_iter().zip(edited);
    Ok(edits
        .filter(|(_, edited)| *edited)
        .map(|(name, _)| name)
        .collect())
}

struct Refusal {
    name: &'static str,
    problem: &'static str,
    then: &'static str,
}

/// What is wrong with the edited variables of a login, if PostgreSQL refuses it.
fn refusal(login: Login, edited: &[&str]) -> Option<Refusal> {
    match login {
        Login::Accepted => None,
        Login::NoDatabase => Some(Refusal {
            name: "POSTGRES_DB",
            problem: "is not a database of the PostgreSQL in data/postgres, which keeps the name of its first start",
            then: "another database would have no keys",
        }),
        Login::WrongPassword if edited == ["POSTGRES_USER"] => Some(Refusal {
            name: "POSTGRES_USER",
            problem: "is not the role of the PostgreSQL in data/postgres, which keeps the name of its first start",
            then: "the role is never renamed",
        }),
        Login::WrongPassword => Some(Refusal {
            name: "POSTGRES_PASSWORD",
            problem: "is not the password of the PostgreSQL in data/postgres, which keeps it whatever .env says",
            then: "to change it in both: `litellm-units secrets rotate postgres`",
        }),
    }
}

/// An external server that this host does not know.
pub(crate) struct UnknownServer {
    /// The variable that names it.
    pub(crate) variable: &'static str,
    pub(crate) name: String,
    /// What is used without the variable.
    local: &'static str,
}

/// Finds a server whose name is one word that neither this host nor Podman knows, such as the name of a service in a
/// compose file. Such a name of the network's own may be in the host's search domain, so the host is asked.
pub(crate) async fn unknown_server(
    host: &Host,
    env: &EnvFile,
    settings: &Settings,
) -> Result<Option<UnknownServer>> {
    let mut servers = Vec::new();
    if let Database::External { url } = &settings.database
        && let Some(url) = url.in_clear()
        && database_url::socket_directory(url.expose_secret()).is_none()
        && let Ok(url) = reqwest::Url::parse(url.expose_secret())
        && let Some(server) = url.host_str()
    {
        servers.push(("DATABASE_URL", server.to_owned(), "the local PostgreSQL"));
    }
    if matches!(settings.cache, Cache::External)
        // Beside the Sentinels, the gateway does not get it.
        && env.get(SENTINEL_NODES).is_none_or(str::is_empty)
        && let Some(server) = env.get("REDIS_HOST")
    {
        servers.push(("REDIS_HOST", server.to_owned(), "the local Redis"));
    }
    for (name, server, local) in servers {
        if !is_one_word(&server) {
            continue;
        }
        let found = tokio::net::lookup_host((server.as_str(), 0));
        if matches!(
            tokio::time::timeout(RESOLVE_TIMEOUT, found).await,
            Ok(Ok(_))
        ) {
            continue;
        }
        if host.podman().await?.containers().await?.contains(&server) {
            continue;
        }
        return Ok(Some(UnknownServer {
            variable: name,
            name: server,
            local,
        }));
    }
    Ok(None)
}

/// Refuses an [`UnknownServer`].
pub(crate) async fn refuse_unknown_servers(host: &Host, settings: &Settings) -> Result<()> {
    let path = host.paths.env_file();
    // Without the file, every server is local.
    if !path.exists() {
        return Ok(());
    }
    let env = load_env(&path)?;
    let Some(UnknownServer {
        variable,
        name,
        local,
    }) = unknown_server(host, &env, settings).await?
    else {
        return Ok(());
    };
    Err(Failure::config(format!(
        "{} names the server {name}, and this host knows no such name",
        place(host, variable)
    ))
    .hint(format!(
        "{name} may be a service of a compose file: remove {variable} to use {local}, or write the full name or the address of the server"
    ))
    .into())
}

/// Whether a name has no domain, so that its meaning depends on who asks.
fn is_one_word(server: &str) -> bool {
    !server.is_empty()
        && server
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(edits: &[(&str, &str)]) -> Settings {
        let mut env = EnvFile::parse(
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nLITELLM_SALT_KEY=sk-salt\n\
             POSTGRES_USER=me\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=db\nREDIS_PASSWORD=r\nDATABASE_URL=\n",
        )
        .unwrap();
        for (name, value) in edits {
            env.set(name, value).unwrap();
        }
        Settings::from_env(&env, Path::new("/srv/.env")).unwrap()
    }

    #[test]
    fn edits_of_the_login() {
        let edits = |edits: &[(&str, &str)]| login_edits(&settings(&[]), &settings(edits)).unwrap();
        assert_eq!(edits(&[]), [""; 0]);
        assert_eq!(edits(&[("REDIS_PASSWORD", "x")]), [""; 0]);
        assert_eq!(edits(&[("POSTGRES_PASSWORD", "x")]), ["POSTGRES_PASSWORD"]);
        assert_eq!(
            edits(&[("POSTGRES_DB", "x"), ("POSTGRES_USER", "x")]),
            ["POSTGRES_USER", "POSTGRES_DB"]
        );
        // Data of another server.
        let url = ("DATABASE_URL", "postgresql://a:b@db.example.org/x");
        assert_eq!(edits(&[url, ("POSTGRES_PASSWORD", "x")]), [""; 0]);
    }

    #[test]
    fn the_salt_may_be_the_master_key() {
        let same =
            |edits: &[(&str, &str)]| !differ(settings(&[]).salt(), settings(edits).salt()).unwrap();
        assert!(same(&[("LITELLM_MASTER_KEY", "sk-2")]));
        assert!(!same(&[("LITELLM_SALT_KEY", "sk-2")]));
        assert!(!same(&[("LITELLM_SALT_KEY", "")]));
        // LiteLLM takes the master key only if there is no salt at all.
        assert!(!same(&[
            ("LITELLM_SALT_KEY", ""),
            ("LITELLM_MASTER_KEY", "sk-salt")
        ]));
    }

    #[test]
    fn the_refused_variable_is_named() {
        let name = |login, edited: &[&str]| refusal(login, edited).map(|refusal| refusal.name);
        assert_eq!(name(Login::Accepted, &LOGIN), None);
        assert_eq!(
            name(
                Login::WrongPassword,
                &["POSTGRES_USER", "POSTGRES_PASSWORD"]
            ),
            Some("POSTGRES_PASSWORD")
        );
        assert_eq!(
            name(Login::WrongPassword, &["POSTGRES_USER"]),
            Some("POSTGRES_USER")
        );
        assert_eq!(
            name(Login::NoDatabase, &["POSTGRES_DB"]),
            Some("POSTGRES_DB")
        );
    }

    #[test]
    fn names_of_one_word() {
        for server in ["db", "postgres", "my-db_1", "localhost"] {
            assert!(is_one_word(server), "{server}");
        }
        for server in [
            "db.example.org",
            "10.0.0.1",
            "[::1]",
            "",
            "%2Frun%2Fpostgresql",
        ] {
            assert!(!is_one_word(server), "{server}");
        }
    }
}

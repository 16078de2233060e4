//! `config`: the effective settings; `config check`: errors in the gateway's configuration; `config export`: all of it.

use std::io::IsTerminal;

use secrecy::ExposeSecret;
use serde::Serialize;

use crate::cli::{Config, ConfigCommand};
use crate::deployment::configuration::Configuration;
use crate::deployment::extra;
use crate::deployment::settings::{SecretTarget, Settings};
use crate::deployment::variables::{Secrecy, secrecy};
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::litellm::config::{ConfigFinding, Severity, check_deployment};
use crate::output;
use crate::service::Service;

/// Of one length, so that it does not show that of the secret.
const MASK: &str = "********";

pub(crate) fn run(host: &Host, arguments: &Config) -> Result<Exit> {
    match arguments.command {
        Some(ConfigCommand::Check { json }) => check(host, json),
        Some(ConfigCommand::Export) => export(host),
        None => show(host, arguments),
    }
}

fn export(host: &Host) -> Result<Exit> {
    if std::io::stdout().is_terminal() {
        return Err(Failure::new("the tar holds secrets, and the output is a terminal")
            .hint("write it to another host: `litellm-units config export | ssh HOST litellm-units apply --from -`")
            .into());
    }
    let root = &host.paths.deployment;
    let tar = Configuration::of(root)?.whole(root)?.to_tar()?;
    output::raw(&tar)?;
    Ok(Exit::Success)
}

/// `config check --json`
#[derive(Serialize)]
struct Checked<'a> {
    schema: u32,
    file: String,
    errors: usize,
    warnings: usize,
    findings: &'a [ConfigFinding],
}

fn check(host: &Host, json: bool) -> Result<Exit> {
    let findings = check_deployment(host)?;
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let errors = count(Severity::Error);
    let file = host.paths.config_file().display().to_string();
    if json {
        let warnings = count(Severity::Warning);
        output::json(&Checked {
            schema: 1,
            file,
            errors,
            warnings,
            findings: &findings,
        })?;
    } else if findings.is_empty() {
        output::line(&format!("{file}: no errors"))?;
    } else {
        for finding in &findings {
            output::line(&finding.to_string())?;
        }
    }
    Ok(if errors == 0 {
        Exit::Success
    } else {
        Exit::Config
    })
}

/// `config --json`
#[derive(Serialize)]
struct Effective {
    schema: u32,
    paths: Vec<Line>,
    services: Vec<ServiceSettings>,
}

#[derive(Serialize)]
struct ServiceSettings {
    service: &'static str,
    container: &'static str,
    image: String,
    variables: Vec<Line>,
    files: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    value: String,
}

fn show(host: &Host, arguments: &Config) -> Result<Exit> {
    if arguments.unmask && !arguments.force && !std::io::stdout().is_terminal() {
        return Err(
            Failure::new("--unmask shows secrets, and the output is not a terminal")
                .hint("add `--force` if the reader of the output may see them")
                .into(),
        );
    }
    let settings = Settings::load(&host.paths.env_file())?;
    let effective = gather(host, &settings, arguments.unmask)?;
    if arguments.json {
        output::json(&effective)?;
    } else {
        output::text(&text(&effective))?;
    }
    Ok(Exit::Success)
}

fn gather(host: &Host, settings: &Settings, unmask: bool) -> Result<Effective> {
    let paths = &host.paths;
    let places = [
        ("deployment", &paths.deployment),
        ("env", &paths.env_file()),
        ("config", &paths.config_file()),
        ("logs", &paths.logs()),
        ("data", &paths.data()),
        ("quadlets", &paths.quadlets),
        ("units", &paths.units),
    ]
    .map(|(name, path)| Line {
        name: name.to_owned(),
        value: path.display().to_string(),
    })
    .into();
    let services = settings
        .services()
        .map(|service| {
            let (mut variables, mut files) = (Vec::new(), Vec::new());
            for secret in extra::container_secrets(paths, settings, service)? {
                let value = if unmask {
                    secret.value.open_at(paths)?.expose_secret().to_owned()
                } else {
                    match secret.value.in_clear() {
                        Some(value) => masked(&secret.name, value.expose_secret()),
                        // Masked without opening it.
                        None => masked_url(secret.value.with(MASK).expose_secret())
                            .unwrap_or_else(|| MASK.to_owned()),
                    }
                };
                match secret.target {
                    SecretTarget::Variable => variables.push(Line {
                        name: secret.name,
                        value,
                    }),
                    SecretTarget::File => files.push(Line {
                        name: format!("/run/secrets/{}", secret.name),
                        value,
                    }),
                }
            }
            variables.sort_by(|one, two| one.name.cmp(&two.name));
            Ok(ServiceSettings {
                service: service.name(),
                container: service.container(),
                image: image(settings, service),
                variables,
                files,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Effective {
        schema: 1,
        paths: places,
        services,
    })
}

fn image(settings: &Settings, service: Service) -> String {
    settings
        .image(service)
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Lines for people and for `grep`: subject, name and value.
fn text(effective: &Effective) -> String {
    let mut text = String::new();
    let mut line = |about: &str, name: &str, value: &str| {
        let value = if value.contains(char::is_control) {
            value.escape_default().to_string()
        } else {
            value.to_owned()
        };
        for part in [about, " ", name, "=", &value, "\n"] {
            text.push_str(part);
        }
    };
    for path in &effective.paths {
        line("path", &path.name, &path.value);
    }
    for service in &effective.services {
        line("image", service.service, &service.image);
    }
    for service in &effective.services {
        for variable in service.variables.iter().chain(&service.files) {
            line(service.service, &variable.name, &variable.value);
        }
    }
    text
}

/// A value with its secrets masked. An empty one is shown: that is no secret, and often the cause.
fn masked(name: &str, value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    match secrecy(name) {
        Secrecy::Url => masked_url(value),
        // A URL may carry a password even where none is expected.
        Secrecy::Clear | Secrecy::Harmless => (!value.contains('@')).then(|| value.to_owned()),
        Secrecy::Unknown | Secrecy::Secret => None,
    }
    .unwrap_or_else(|| MASK.to_owned())
}

/// `scheme://user:********@host/database`. Parameters are shown by name only, since
/// `?password=` is one. `None` if the URL has another form.
fn masked_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (credentials, place) = rest.rsplit_once('@')?;
    let user = credentials.split_once(':')?.0;
    let mut masked = format!("{scheme}://{user}:{MASK}@{place}");
    for (index, parameter) in query
        .into_iter()
        .flat_map(|query| query.split('&'))
        .enumerate()
    {
        let name = parameter.split('=').next().unwrap_or_default();
        for part in [if index == 0 { "?" } else { "&" }, name, "=", MASK] {
            masked.push_str(part);
        }
    }
    Some(masked)
}

#[cfg(test)]
mod tests {
    use super::{MASK, masked};
    use crate::deployment::variables;

    /// Of every variable that is known; all others are masked.
    #[test]
    fn which_variables_are_shown() {
        let (shown, rest): (Vec<_>, Vec<_>) =
            variables::names().partition(|name| masked(name, "value") == "value");
        assert!(rest.iter().all(|name| masked(name, "value") == MASK));
        assert_eq!(
            shown.join(" "),
            "LITELLM_IMAGE LITELLM_ACCEPT_VULNERABILITIES LITELLM_REPLICAS LITELLM_LIVENESS_TIMEOUT \
             LITELLM_DRAIN_TIMEOUT LITELLM_RECYCLE_AT NUM_WORKERS USER_NAMESPACES POSTGRES_IMAGE POSTGRES_USER POSTGRES_DB REDIS_IMAGE \
             REDIS_MAXMEMORY REDIS_HOST REDIS_PORT REDIS_SENTINEL_NODES REDIS_DB REDIS_SSL REDIS_USERNAME UI_USERNAME \
             PROXY_BASE_URL FORWARDED_ALLOW_IPS LISTEN LISTEN_GROUP LISTEN_WITHOUT_TLS PUBLIC_URL PUBLIC_ADMIN_FROM METRICS_FILE METRICS_LISTEN LITELLM_METRICS_PORT \
             BACKUP_AGE_RECIPIENT BACKUP_URL BACKUP_WAL BACKUP_BY LITELLM_LOG LITELLM_MODE DATABASE_HOST NO_PROXY \
             LITELLM_LOCAL_MODEL_COST_MAP SERVER_ROOT_PATH STORE_MODEL_IN_DB TZ"
        );
        assert_eq!(
            rest.join(" "),
            "LITELLM_MASTER_KEY LITELLM_SALT_KEY POSTGRES_PASSWORD DATABASE_URL DIRECT_URL REDIS_PASSWORD \
             UI_PASSWORD NOTIFY_COMMAND NOTIFY_URL OPENAI_API_KEY ANTHROPIC_API_KEY \
             LITELLM_BUILD_SPEND_LOGS_INDEXES LITELLM_MIGRATION_DIR LITELLM_MIGRATION_LOCK_TIMEOUT \
             LITELLM_SET_REPLICA_IDENTITY_FULL USE_V2_MIGRATION_RESOLVER \
             DISABLE_SCHEMA_UPDATE HOST PORT SSL_KEYFILE_PATH SSL_CERTFILE_PATH LISTEN_FDNAMES LISTEN_FDS \
             LISTEN_PID HTTP_PROXY HTTPS_PROXY ALL_PROXY"
        );
    }

    #[test]
    fn what_is_shown() {
        for (name, value, shown) in [
            ("POSTGRES_USER", "litellm", "litellm"),
            ("POSTGRES_USER", "postgres://a:b@c", "********"),
            ("OPENAI_API_KEY", "sk-1", "********"),
            ("SOME_NEW_SETTING", "1", "********"),
            ("SOME_NEW_SETTING", "", ""),
            (
                "DATABASE_URL",
                "postgresql://litellm:p%40ss@postgres:5432/litellm",
                "postgresql://litellm:********@postgres:5432/litellm",
            ),
            (
                "DATABASE_URL",
                "postgresql://u:a/b@c:d@db/x?sslmode=require&sslpassword=s",
                "postgresql://u:********@db/x?sslmode=********&sslpassword=********",
            ),
            (
                "DIRECT_URL",
                "postgresql://litellm:p@direct:5432/litellm",
                "postgresql://litellm:********@direct:5432/litellm",
            ),
            (
                "DATABASE_URL",
                "postgresql://host/x?user=u&password=p",
                "********",
            ),
        ] {
            assert_eq!(masked(name, value), shown, "{name}");
        }
    }
}

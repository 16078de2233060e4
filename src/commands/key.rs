//! `key`: the keys that the gateway hands out.

mod business;
mod service;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use secrecy::SecretString;

use crate::cli::key::{As, Key as Verb, Rotatable};
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::litellm::Client;
use crate::litellm::keys::{KeyError, Keys};
use crate::operations::stack;
use crate::output::say;

/// How long LiteLLM may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The user in LiteLLM to whom the service key and the business keys belong. LiteLLM lets a key
/// that is no administrator's delete and list only keys of its own user.
const USER: &str = "litellm-units";
/// That user's role: it manages keys of its own, and no users, teams or models.
const ROLE: &str = "internal_user";

/// The name in a key's metadata that says who made it, and the value that says that it was us.
const CREATED_BY: (&str, &str) = ("created_by", "litellm-units");
/// The name in a key's metadata that tells a service key from others.
const ROLE_NAME: &str = "role";
/// Its value for a service key.
const SERVICE_ROLE: &str = "service";

/// Runs the verb.
///
/// # Errors
/// When the gateway refuses, or can't be asked.
pub(crate) async fn run(host: &Host, verb: Verb) -> Result<Exit> {
    match verb {
        Verb::Service(arguments) => service::ensure(host, &arguments).await,
        Verb::Rotate {
            which: Rotatable::Service,
            arguments,
        } => service::rotate(host, &arguments).await,
        Verb::Create(arguments) => business::create(host, &arguments).await,
        Verb::List(arguments) => business::list(host, &arguments).await,
        Verb::Info(arguments) => business::info(host, &arguments).await,
        Verb::Update(arguments) => business::update(host, &arguments).await,
        Verb::Block(arguments) => business::block(host, &arguments, true).await,
        Verb::Unblock(arguments) => business::block(host, &arguments, false).await,
        Verb::Delete(arguments) => business::delete(host, &arguments).await,
    }
}

/// The gateway with the keys that this host has for it.
struct Gateway<'a> {
    host: &'a Host,
    client: Client,
    settings: Settings,
    master: OnceLock<SecretString>,
    service: Option<SecretString>,
}

impl<'a> Gateway<'a> {
    fn new(host: &'a Host) -> Result<Self> {
        Ok(Self {
            host,
            client: Client::local(TIMEOUT)?,
            settings: Settings::load(&host.paths.env_file())?,
            master: OnceLock::new(),
            service: service::read(&host.paths.service_key())?,
        })
    }

    /// The keys by way of the master key, which is opened only if it comes to that.
    fn master(&self) -> Result<Keys<'_>> {
        let key = if let Some(key) = self.master.get() {
            key
        } else {
            let key = self.settings.master_key.open()?;
            self.master.get_or_init(|| key)
        };
        Ok(self.client.keys(key))
    }

    /// Does `work` with the key that is asked for; if none is, with the service key, and with the
    /// master key where LiteLLM does not let the service key.
    async fn act<T>(
        &self,
        credential: Option<As>,
        work: impl AsyncFn(Keys<'_>) -> Result<T, KeyError>,
    ) -> Result<T> {
        if credential != Some(As::Master) {
            match &self.service {
                Some(key) => match work(self.client.keys(key)).await {
                    Ok(done) => return Ok(done),
                    // It may be there, but not be the service key's to see.
                    Err(KeyError::NotFound) if credential.is_none() => {}
                    Err(KeyError::Forbidden { .. }) if credential.is_none() => {
                        say("LiteLLM does not let the service key do this: using the master key");
                    }
                    Err(KeyError::Unauthorized(problem)) if credential.is_none() => say(&format!(
                        "the gateway does not accept the service key ({problem}): using the master key; make a new one with litellm-units key service"
                    )),
                    Err(error) => return Err(self.explain(&error, As::Service)),
                },
                None if credential == Some(As::Service) => {
                    return Err(Failure::new(format!(
                        "{} holds no key",
                        self.host.paths.service_key().display()
                    ))
                    .hint("make one: litellm-units key service")
                    .into());
                }
                None => {}
            }
        }
        work(self.master()?)
            .await
            .map_err(|error| self.explain(&error, As::Master))
    }

    /// The error with the next step.
    fn explain(&self, error: &KeyError, used: As) -> anyhow::Error {
        let env = self.host.paths.env_file();
        let failure = Failure::new(error.to_string());
        match error {
            KeyError::Unauthorized(_) if used == As::Master => {
                if self.runs_with_another_master_key() {
                    Failure::new(format!(
                        "the gateway runs with another LITELLM_MASTER_KEY than {} has",
                        env.display()
                    ))
                    .hint("have the gateway use that of the file: litellm-units apply")
                } else {
                    Failure::new(format!(
                        "the gateway does not accept LITELLM_MASTER_KEY of {}",
                        env.display()
                    ))
                    .hint("general_settings.master_key in config/litellm-config.yaml should be os.environ/LITELLM_MASTER_KEY; see also: litellm-units apply --dry-run")
                }
            }
            KeyError::Unauthorized(_) => {
                failure.hint("make a new service key: litellm-units key service")
            }
            KeyError::Forbidden { .. } if used == As::Service => {
                failure.hint("use the master key for it: --as master")
            }
            KeyError::DuplicateAlias { .. } => {
                failure.hint("choose another name; see those there are: litellm-units key list")
            }
            KeyError::NotFound => failure.hint("see those there are: litellm-units key list"),
            KeyError::NoTeam { .. } => failure
                .hint("see the identifiers of teams in the web interface, or make a team there first"),
            KeyError::Left { token, .. } => failure.hint(format!(
                "delete it: litellm-units key delete {token} --as master"
            )),
            KeyError::Unreachable { .. } => {
                failure.hint("see what runs: litellm-units status; start it: litellm-units up")
            }
            KeyError::Failed { .. } | KeyError::Unintelligible { .. } => {
                failure.hint("see what it says: litellm-units logs litellm")
            }
            KeyError::Forbidden { .. } | KeyError::Refused { .. } => failure,
        }
        .into()
    }

    fn runs_with_another_master_key(&self) -> bool {
        stack::differences(self.host, &self.settings).is_ok_and(|all| {
            all.iter()
                .flat_map(|(_, differences)| differences)
                .any(|difference| difference.input == "LITELLM_MASTER_KEY")
        })
    }
}

/// `…/config/litellm-config.yaml` without the directory of the deployment.
fn short(path: &Path) -> String {
    let mut parts: Vec<_> = path.iter().rev().take(2).collect();
    parts.reverse();
    parts
        .into_iter()
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

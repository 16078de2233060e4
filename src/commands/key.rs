//! `key`: keys of the gateway.

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

const TIMEOUT: Duration = Duration::from_secs(30);

/// The user in LiteLLM to whom the service key and the business keys belong. A key that is not an
/// administrator's can list and delete only keys of its own user.
const USER: &str = "litellm-units";
/// May manage its own keys, but no users, teams or models.
const ROLE: &str = "internal_user";

/// Metadata of the keys that litellm-units created.
const CREATED_BY: (&str, &str) = ("created_by", "litellm-units");
/// Metadata that marks a service key.
const ROLE_NAME: &str = "role";
const SERVICE_ROLE: &str = "service";

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
            client: Client::local(&host.paths, TIMEOUT)?,
            settings: Settings::load(&host.paths.env_file())?,
            master: OnceLock::new(),
            service: service::read(&host.paths.service_key())?,
        })
    }

    /// The keys by way of the master key, which is opened at its first use only.
    fn master(&self) -> Result<Keys<'_>> {
        let key = if let Some(key) = self.master.get() {
            key
        } else {
            let key = self.settings.master_key.open()?;
            self.master.get_or_init(|| key)
        };
        Ok(self.client.keys(key))
    }

    /// Does `work` with the chosen key. By default, that is the service key, and the master key if
    /// LiteLLM refuses the service key.
    async fn act<T>(
        &self,
        credential: Option<As>,
        work: impl AsyncFn(Keys<'_>) -> Result<T, KeyError>,
    ) -> Result<T> {
        if credential != Some(As::Master) {
            match &self.service {
                Some(key) => match work(self.client.keys(key)).await {
                    Ok(done) => return Ok(done),
                    // The service key may not be allowed to see it.
                    Err(KeyError::NotFound) if credential.is_none() => {}
                    Err(KeyError::Forbidden { .. }) if credential.is_none() => {
                        say(
                            "LiteLLM does not allow the service key to do this: using the master key",
                        );
                    }
                    Err(KeyError::Unauthorized(problem)) if credential.is_none() => say(&format!(
                        "the gateway does not accept the service key ({problem}): using the master key. To create a new service key: `litellm-units key service`"
                    )),
                    Err(error) => return Err(self.explain(&error, As::Service)),
                },
                None if credential == Some(As::Service) => {
                    return Err(Failure::new(format!(
                        "{} holds no key",
                        self.host.paths.service_key().display()
                    ))
                    .hint("create one: `litellm-units key service`")
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
                    .hint("to restart the gateway with the value in the file: `litellm-units apply`")
                } else {
                    Failure::new(format!(
                        "the gateway does not accept LITELLM_MASTER_KEY of {}",
                        env.display()
                    ))
                    .hint("general_settings.master_key in config/litellm-config.yaml should be os.environ/LITELLM_MASTER_KEY; see also `litellm-units apply --dry-run`")
                }
            }
            KeyError::Unauthorized(_) => {
                failure.hint("create a new service key: `litellm-units key service`")
            }
            KeyError::Forbidden { .. } if used == As::Service => {
                failure.hint("use the master key: `--as master`")
            }
            KeyError::DuplicateAlias { .. } => {
                failure.hint("choose another name; if an earlier `key create` got no answer in time, it may have made this key: see `litellm-units key list`")
            }
            KeyError::NotFound => failure.hint("list the keys: `litellm-units key list`"),
            KeyError::NoTeam { .. } => failure
                .hint("use the identifier that the web interface shows for the team, or create a team there first"),
            KeyError::Left { token, .. } => failure.hint(format!(
                "delete it: `litellm-units key delete {token} --as master`"
            )),
            KeyError::Unreachable { .. } => {
                failure.hint("see `litellm-units status`; to start it: `litellm-units up`")
            }
            KeyError::Failed { .. } | KeyError::Unintelligible { .. } => {
                failure.hint("see its log: `litellm-units logs litellm`")
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

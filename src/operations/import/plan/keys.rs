//! The master key and the salt of the old gateway.

use secrecy::{ExposeSecret, SecretString};

use super::Maker;
use crate::error::{Failure, Result};
use crate::random::{Random, secret_key};

pub(super) const MASTER: &str = "LITELLM_MASTER_KEY";
pub(crate) const SALT: &str = "LITELLM_SALT_KEY";

/// The old gateway's salt.
#[derive(Debug)]
pub(crate) struct Salt {
    pub value: SecretString,
    /// Where the old gateway has it from.
    pub source: &'static str,
}

impl Maker<'_> {
    /// Writes both, and makes up what the old gateway does not have. `of_config`: the master key in its configuration, and
    /// where it is from.
    pub(super) fn keys(
        &mut self,
        of_config: Option<(SecretString, String)>,
        random: Random<'_>,
    ) -> Result<Option<Salt>> {
        let master = of_config.or_else(|| {
            let value = self.value(MASTER)?;
            Some((value.into(), MASTER.to_owned()))
        });
        if let Some((value, source)) = &master {
            self.put(MASTER, value.expose_secret())?;
            if source != MASTER {
                self.sources.insert(MASTER.to_owned(), source.clone());
            }
        } else {
            self.generate(MASTER, &secret_key(random)?)?;
            self.note(
                "the old gateway has no master key and serves everyone",
                "the new one gets a master key, and every client needs a key of its own: `litellm-units key create`",
            );
        }
        let salt = match (self.given.get(SALT), master) {
            (Some(value), _) if value.expose_secret().is_empty() => Some(Salt {
                value: String::new().into(),
                source: "empty, as LITELLM_SALT_KEY of the old gateway is",
            }),
            (Some(value), _) => Some(Salt {
                value: value.clone(),
                source: "LITELLM_SALT_KEY of the old gateway",
            }),
            (None, Some((value, _))) => Some(Salt {
                value,
                source: "the master key, since the old gateway has no LITELLM_SALT_KEY",
            }),
            (None, None) => None,
        };
        match &salt {
            Some(salt) => self.put(SALT, salt.value.expose_secret())?,
            None => self.generate(SALT, &secret_key(random)?)?,
        }
        Ok(salt)
    }
}

/// The salt of stored credentials is never made up. `disproved`: where the one is from that decrypts nothing.
pub(crate) fn unknown_salt(service: &str, disproved: Option<&str>) -> Failure {
    const KEY: &str = "the key with which the old gateway encrypts its stored credentials";
    let how = format!(
        "an entrypoint or a secret file may set it: in the compose file, write it as {SALT} into `environment:` of service {service} (without a salt: {MASTER}), and run `docker compose up -d {service}`"
    );
    match disproved {
        None => Failure::new(format!("Docker does not show {KEY}")).hint(how),
        Some(source) => Failure::new(format!("{KEY} is another one than Docker shows ({source})"))
            .hint(format!(
                "{how}; or delete the stored credentials that the old gateway can't decrypt either"
            )),
    }
}

//! The command lines of `secrets` and `ui`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::seconds;
use crate::host::systemd_creds::SealingKey;

/// The verbs of `secrets`.
#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// Replace a secret by a new random one, in .env, in its server and in what runs
    Rotate(RotateSecret),
    /// Encrypt secrets with a key of this host, and leave references to them in .env
    Seal(Seal),
    /// Write sealed secrets into .env again, exactly as they were there
    Unseal(Unseal),
    /// Look for secrets where they do not belong; exit with 1 if there are any
    Audit(Audit),
}

/// What `secrets rotate` is asked to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Secret {
    /// The master key
    Master,
    /// The password of PostgreSQL's role
    Postgres,
    /// Redis' password
    Redis,
    /// The password of the web interface
    Ui,
    /// The salt key, which can't be replaced
    #[value(hide = true)]
    Salt,
}

/// Arguments of `secrets rotate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets rotate postgres\n  litellm-units secrets rotate master\n\nThe gateway restarts. If it does not get ready with the new secret, the old one is put back. A rotation that was interrupted is finished by the next one, or by litellm-units up."
)]
pub struct RotateSecret {
    /// Which secret
    pub secret: Secret,
    /// Seconds that restarting and becoming ready may take
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

/// Arguments of `secrets seal`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets seal\n  pass llm/openai | litellm-units secrets seal --stdin OPENAI_API_KEY\n\nNothing restarts, since no value changes; after --stdin: litellm-units apply. Running it again seals what has been\nwritten into .env since. The secrets are then worth nothing without this host: see to it that backups are encrypted\nto a key of your own (BACKUP_AGE_RECIPIENT)."
)]
pub struct Seal {
    /// The variables [default: all whose name says that they are secret, and URLs with a password]
    pub names: Vec<String>,
    /// The key [default: host+tpm2 where there is a TPM, else host]
    #[arg(long, value_name = "KEY")]
    pub with_key: Option<SealingKey>,
    /// Read a new value for the one variable from stdin, without the line break at its end
    #[arg(long)]
    pub stdin: bool,
}

/// Arguments of `secrets unseal`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets unseal\n  litellm-units secrets unseal OPENAI_API_KEY\n\nNothing restarts, since no value changes."
)]
pub struct Unseal {
    /// The variables [default: all]
    pub names: Vec<String>,
}

/// Arguments of `secrets audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ui`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units ui --username ann\n  litellm-units ui --generate --base-url https://llm.example.com\n  pass llm/ui | litellm-units ui --password-stdin"
)]
pub struct Ui {
    /// The name to log in with [default: as it is, else admin]
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// Read the password from stdin, up to the end of its first line
    #[arg(long, conflicts_with = "generate")]
    pub password_stdin: bool,
    /// Make a random password and print it
    #[arg(long)]
    pub generate: bool,
    /// The https:// address under which a reverse proxy publishes the gateway
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// Seconds that restarting and becoming ready may take
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

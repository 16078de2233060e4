//! The command lines of `secrets` and `ui`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::seconds;
use crate::host::systemd_creds::SealingKey;

#[derive(Debug, Subcommand)]
pub(crate) enum Secrets {
    /// Replace a secret with a new random one in .env, in its server and in the running units
    Rotate(RotateSecret),
    /// Encrypt secrets with a key of this host, and keep references to them in .env
    Seal(Seal),
    /// Decrypt sealed secrets back into .env
    Unseal(Unseal),
    /// Find secrets where they do not belong; exit with status 1 if there are any
    Audit(Audit),
}

impl Secrets {
    /// As [`super::Command::change`].
    pub(super) fn change(&self) -> Option<&'static str> {
        match self {
            Self::Rotate(_) => Some("secrets rotate"),
            Self::Seal(_) => Some("secrets seal"),
            Self::Unseal(_) => Some("secrets unseal"),
            Self::Audit(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Secret {
    /// Master key
    Master,
    /// Password of the PostgreSQL role
    Postgres,
    /// Password of Redis
    Redis,
    /// Password of the web interface
    Ui,
    /// Salt key, with what it encrypts in the database
    Salt,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets rotate postgres\n  litellm-units secrets rotate master\n\nThe gateway restarts. If it does not become ready with the new secret, the rotation is rolled back. An interrupted rotation is completed by the next one, or by `litellm-units up`."
)]
pub(crate) struct RotateSecret {
    /// Secret to replace
    pub(crate) secret: Secret,
    /// Timeout in seconds for restarting and becoming ready
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets seal\n  pass llm/openai | litellm-units secrets seal --stdin OPENAI_API_KEY\n  litellm-units secrets seal --file google.json\n\nNothing restarts, since no value changes; after --stdin, run `litellm-units apply`. Run the command again to seal secrets that were added to .env later.\n\nWithout this host, sealed secrets are lost: set BACKUP_AGE_RECIPIENT, so that backups can be restored on another host."
)]
pub(crate) struct Seal {
    /// Variables [default: all whose names say that they are secret, and URLs with a password]
    pub(crate) names: Vec<String>,
    /// Key to seal with [default: host+tpm2 if there is a TPM, otherwise host]
    #[arg(long, value_name = "KEY")]
    pub(crate) with_key: Option<SealingKey>,
    /// Read a new value for one variable from stdin; a line break at its end is removed
    #[arg(long)]
    pub(crate) stdin: bool,
    /// File of files/ to encrypt instead of variables (repeatable)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["names", "stdin"])]
    pub(crate) file: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units secrets unseal\n  litellm-units secrets unseal OPENAI_API_KEY\n\nNothing restarts, since no value changes."
)]
pub(crate) struct Unseal {
    /// Variables [default: all]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Audit {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The web interface is at /ui of the gateway's address. Without an option for the password, `ui` asks for one; with --username or --base-url, it keeps one that is set. The gateway restarts, and sessions of the web interface end.\n\nExamples:\n  litellm-units ui --username ann\n  litellm-units ui --generate --base-url https://llm.example.com\n  pass llm/ui | litellm-units ui --password-stdin"
)]
pub(crate) struct Ui {
    /// Name to log in with [default: the current one, or admin]
    #[arg(long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// Read the password from the first line of stdin
    #[arg(long, conflicts_with = "generate")]
    pub(crate) password_stdin: bool,
    /// Generate a random password and print it
    #[arg(long)]
    pub(crate) generate: bool,
    /// Public https:// address of the gateway, at its reverse proxy
    #[arg(long, value_name = "URL")]
    pub(crate) base_url: Option<String>,
    /// Timeout in seconds for restarting and becoming ready
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

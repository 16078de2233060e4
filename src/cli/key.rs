//! The command line of `key`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::seconds;

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Create the service key unless it exists and is valid; print the path of its file
    #[command(
        after_help = "If the gateway does not run, the whole stack is started.\n\nExamples:\n  litellm-units key service\n  litellm-units key service --show\n\nWithout --model, the key may use the models of config/litellm-config.yaml. After an edit of that file, `key service` updates them."
    )]
    Service(ServiceKey),
    /// Replace a key with a new one; one of the two is valid at any moment
    #[command(
        after_help = "Examples:\n  litellm-units key rotate service\n  litellm-units key rotate service --grace 60\n\nWith --grace, the command runs until the old key is deleted; no other operation can begin meanwhile."
    )]
    Rotate {
        /// Key to replace
        which: Rotatable,
        #[command(flatten)]
        arguments: RotateKey,
    },
    /// Create a business key and print it; it is shown only once
    Create(CreateKey),
    /// List all keys
    List(ListKeys),
    /// Show one key
    Info(InfoKey),
    /// Change the limits of a key
    Update(UpdateKey),
    /// Block a key until it is unblocked
    Block(ChangeKey),
    /// Unblock a blocked key
    Unblock(ChangeKey),
    /// Delete a key
    Delete(ChangeKey),
}

impl Key {
    /// As [`super::Command::change`].
    pub(super) fn change(&self) -> Option<&'static str> {
        match self {
            Self::Service(_) => Some("key service"),
            Self::Rotate { .. } => Some("key rotate"),
            Self::Create(_) => Some("key create"),
            Self::Update(_) => Some("key update"),
            Self::Block(_) => Some("key block"),
            Self::Unblock(_) => Some("key unblock"),
            Self::Delete(_) => Some("key delete"),
            Self::List(_) | Self::Info(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rotatable {
    /// Key in service-key.txt
    Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum As {
    /// Key in service-key.txt
    Service,
    /// Master key in .env
    Master,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KeyLimits {
    /// Model that the key may use; repeat for several
    #[arg(long = "model", value_name = "MODEL", value_parser = filled)]
    pub(crate) models: Vec<String>,
    /// Budget in US dollars
    #[arg(long, value_name = "USD", value_parser = budget)]
    pub(crate) max_budget: Option<f64>,
    /// Limit of requests per minute
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub(crate) rpm: Option<u64>,
    /// Limit of tokens per minute
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub(crate) tpm: Option<u64>,
    /// Time for which the key is valid, from now: a number with s, m, h, d or w
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<String>,
    /// Path or LiteLLM route group that the key may call; repeat for several
    #[arg(long = "allowed-route", value_name = "ROUTE", value_parser = filled)]
    pub(crate) allowed_routes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceKey {
    /// Print the key instead of the path of its file
    #[arg(long)]
    pub(crate) show: bool,
    /// Name of the key in LiteLLM
    #[arg(long, value_name = "NAME", value_parser = filled)]
    pub(crate) alias: Option<String>,
    #[command(flatten)]
    pub(crate) limits: KeyLimits,
    /// Timeout in seconds for starting the stack, if it is stopped
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct RotateKey {
    #[command(flatten)]
    pub(crate) key: ServiceKey,
    /// Seconds to keep the old key valid after the new one is written; the command waits for them
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) grace: u64,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units key create shop --model gpt-4o --max-budget 50 --rpm 100\n  litellm-units key create batch --duration 90d --team research > batch.key\n\nWithout --model, the key may use every model. Without --allowed-route, it may only call models."
)]
pub(crate) struct CreateKey {
    /// Name of the key
    #[arg(value_parser = filled)]
    pub(crate) alias: String,
    #[command(flatten)]
    pub(crate) limits: KeyLimits,
    #[command(flatten)]
    pub(crate) business: Business,
    /// Print JSON: the key, its hash and when it expires
    #[arg(long)]
    pub(crate) json: bool,
    /// Key to authenticate with [default: service, then master if LiteLLM refuses it]
    #[arg(long = "as", value_name = "KEY")]
    pub(crate) credential: Option<As>,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Business {
    /// Period of the budget: a number with s, m, h, d or mo
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub(crate) budget_duration: Option<String>,
    /// Identifier of its team
    #[arg(long, value_name = "TEAM", value_parser = filled)]
    pub(crate) team: Option<String>,
    /// Metadata to store with the key; repeat for several
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) metadata: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct ListKeys {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Key to authenticate with; service lists only the keys of its own user [default: master]
    #[arg(long = "as", value_name = "KEY")]
    pub(crate) credential: Option<As>,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Selector {
    /// Alias of the key, or its hash (64 hexadecimal digits)
    #[arg(value_name = "ALIAS|HASH")]
    pub(crate) name: Option<String>,
    /// File with the key itself; - for stdin
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoKey {
    #[command(flatten)]
    pub(crate) selector: Selector,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Key to authenticate with [default: service, then master if LiteLLM refuses it]
    #[arg(long = "as", value_name = "KEY")]
    pub(crate) credential: Option<As>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units key update shop --max-budget 80\n  litellm-units key update shop --alias shop-eu --duration 30d\n\nA list replaces the previous one: name every model that the key may use."
)]
pub(crate) struct UpdateKey {
    #[command(flatten)]
    pub(crate) selector: Selector,
    /// New name of the key
    #[arg(long, value_name = "NAME", value_parser = filled)]
    pub(crate) alias: Option<String>,
    #[command(flatten)]
    pub(crate) limits: KeyLimits,
    #[command(flatten)]
    pub(crate) business: Business,
    /// Key to authenticate with [default: service, then master if LiteLLM refuses it]
    #[arg(long = "as", value_name = "KEY")]
    pub(crate) credential: Option<As>,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeKey {
    #[command(flatten)]
    pub(crate) selector: Selector,
    /// Key to authenticate with [default: service, then master if LiteLLM refuses it]
    #[arg(long = "as", value_name = "KEY")]
    pub(crate) credential: Option<As>,
}

/// Checked here, since LiteLLM accepts `7 parrots` as seven days. It has no months for this option.
fn duration(text: &str) -> Result<String, String> {
    time(text, &["s", "m", "h", "d", "w"])
        .ok_or_else(|| "not a number with s, m, h, d or w, such as 30d".into())
}

/// LiteLLM counts any other unit as days, weeks too.
fn period(text: &str) -> Result<String, String> {
    time(text, &["s", "m", "h", "d", "mo"])
        .ok_or_else(|| "not a number with s, m, h, d or mo, such as 30d".into())
}

fn time(text: &str, units: &[&str]) -> Option<String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let good = !digits.is_empty()
        && digits.len() <= 9
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && digits.bytes().any(|byte| byte != b'0')
        && units.contains(&&text[digits.len()..]);
    good.then(|| text.to_owned())
}

/// Checked here, since LiteLLM accepts a negative budget.
fn budget(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(budget) if budget.is_finite() && budget >= 0.0 => Ok(budget),
        _ => Err("not an amount of US dollars such as 12.50".into()),
    }
}

fn filled(text: &str) -> Result<String, String> {
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        Err("is empty, or holds a control character".into())
    } else {
        Ok(text.to_owned())
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not of the form NAME=VALUE".into()),
    }
}

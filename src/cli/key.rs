//! The command line of `key`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::seconds;

/// The verbs of `key`.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make sure that the service key exists and is valid; print the path of its file
    Service(ServiceKey),
    /// Replace a key by a new one without a moment in which none is valid
    Rotate {
        /// Which key
        which: Rotatable,
        /// How, and what the new key may do
        #[command(flatten)]
        arguments: RotateKey,
    },
    /// Make a business key and print it, this once
    Create(CreateKey),
    /// List all keys
    List(ListKeys),
    /// Show one key
    Info(InfoKey),
    /// Change what a key may do
    Update(UpdateKey),
    /// Have a key refused until it is unblocked
    Block(ChangeKey),
    /// Have a blocked key accepted again
    Unblock(ChangeKey),
    /// Delete a key for good
    Delete(ChangeKey),
}

/// What `key rotate` can replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rotatable {
    /// The key in service-key.txt.
    Service,
}

/// With which key a command addresses LiteLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum As {
    /// The service key.
    Service,
    /// The master key.
    Master,
}

/// What a key may do.
#[derive(Clone, Debug, Default, Args)]
pub struct KeyLimits {
    /// A model that it may use; repeat for several
    #[arg(long = "model", value_name = "MODEL", value_parser = filled)]
    pub models: Vec<String>,
    /// The most that it may spend, in US dollars
    #[arg(long, value_name = "USD", value_parser = budget)]
    pub max_budget: Option<f64>,
    /// Requests per minute
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub rpm: Option<u64>,
    /// Tokens per minute
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub tpm: Option<u64>,
    /// How long it is valid from now: a number with s, m, h, d or w
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<String>,
    /// A path that it may call, or one of LiteLLM's names for groups of paths; repeat for several
    #[arg(long = "allowed-route", value_name = "ROUTE", value_parser = filled)]
    pub allowed_routes: Vec<String>,
}

/// Arguments of `key service`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units key service\n  curl -H \"Authorization: Bearer $(litellm-units key service --show)\" http://127.0.0.1:24157/v1/models\n\nWithout --model, the key may use the models of config/litellm-config.yaml, also after an edit of that file and another `key service`."
)]
pub struct ServiceKey {
    /// Print the key instead of its path
    #[arg(long)]
    pub show: bool,
    /// Its name in LiteLLM
    #[arg(long, value_name = "NAME", value_parser = filled)]
    pub alias: Option<String>,
    /// What it may do
    #[command(flatten)]
    pub limits: KeyLimits,
    /// Seconds that starting the stack may take, if it is down
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

/// Arguments of `key rotate`.
#[derive(Debug, Args)]
pub struct RotateKey {
    /// What `key service` takes
    #[command(flatten)]
    pub key: ServiceKey,
    /// Seconds for which the old key stays valid after the new one is in the file
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub grace: u64,
}

/// Arguments of `key create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units key create shop --model gpt-4o --max-budget 50 --budget-duration 30d --rpm 100\n  litellm-units key create batch --duration 90d --team research --metadata owner=ann > batch.key\n\nWithout --model, the key may use every model. It can call models only, unless --allowed-route says otherwise."
)]
pub struct CreateKey {
    /// Its name
    #[arg(value_parser = filled)]
    pub alias: String,
    /// What it may do
    #[command(flatten)]
    pub limits: KeyLimits,
    /// What else
    #[command(flatten)]
    pub business: Business,
    /// Print JSON: the key, its hash and its end
    #[arg(long)]
    pub json: bool,
    /// Which key to use for this [default: the service key, or the master key where that may not]
    #[arg(long = "as", value_name = "KEY")]
    pub credential: Option<As>,
}

/// What only business keys have.
#[derive(Clone, Debug, Default, Args)]
pub struct Business {
    /// After which time the budget starts anew: a number with s, m, h, d or mo
    #[arg(long, value_name = "TIME", value_parser = period)]
    pub budget_duration: Option<String>,
    /// The identifier of the team that it belongs to
    #[arg(long, value_name = "TEAM", value_parser = filled)]
    pub team: Option<String>,
    /// Something to remember about it; repeat for several
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub metadata: Vec<(String, String)>,
}

/// Arguments of `key list`.
#[derive(Debug, Args)]
pub struct ListKeys {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which key to use for this: the service key sees only what it made [default: the master key]
    #[arg(long = "as", value_name = "KEY")]
    pub credential: Option<As>,
}

/// Names an existing key.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Selector {
    /// Its alias, or its hash (64 hexadecimal digits)
    #[arg(value_name = "ALIAS|HASH")]
    pub name: Option<String>,
    /// A file that holds the key itself; - for stdin
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Arguments of `key info`.
#[derive(Debug, Args)]
pub struct InfoKey {
    /// Which key
    #[command(flatten)]
    pub selector: Selector,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Which key to use for this [default: the service key, or the master key where that may not]
    #[arg(long = "as", value_name = "KEY")]
    pub credential: Option<As>,
}

/// Arguments of `key update`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units key update shop --max-budget 80\n  litellm-units key update shop --alias shop-eu --duration 30d"
)]
pub struct UpdateKey {
    /// Which key
    #[command(flatten)]
    pub selector: Selector,
    /// Its new name
    #[arg(long, value_name = "NAME", value_parser = filled)]
    pub alias: Option<String>,
    /// What it may do
    #[command(flatten)]
    pub limits: KeyLimits,
    /// What else
    #[command(flatten)]
    pub business: Business,
    /// Which key to use for this [default: the service key, or the master key where that may not]
    #[arg(long = "as", value_name = "KEY")]
    pub credential: Option<As>,
}

/// Arguments of `key block`, `unblock` and `delete`.
#[derive(Debug, Args)]
pub struct ChangeKey {
    /// Which key
    #[command(flatten)]
    pub selector: Selector,
    /// Which key to use for this [default: the service key, or the master key where that may not]
    #[arg(long = "as", value_name = "KEY")]
    pub credential: Option<As>,
}

/// LiteLLM takes `7 parrots` for seven days, so it is not left to it. It can't count months.
fn duration(text: &str) -> Result<String, String> {
    time(text, &["s", "m", "h", "d", "w"])
        .ok_or_else(|| "not a number with s, m, h, d or w, such as 30d".into())
}

/// LiteLLM takes any other unit, weeks too, for a day.
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

/// LiteLLM takes a negative budget.
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

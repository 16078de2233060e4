//! Business keys: one for each party that uses the gateway.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{CREATED_BY, Gateway, ROLE, ROLE_NAME, SERVICE_ROLE, USER, short};
use crate::cli::key::{
    As, Business, ChangeKey, CreateKey, InfoKey, KeyLimits, ListKeys, Selector, UpdateKey,
};
use crate::error::{Exit, Failure, PathContext, Result};
use crate::host::Host;
use crate::litellm::keys::{ApiKey, KeyError, Keys, Limits, hash};
use crate::litellm::models;
use crate::output::{self, Loss, say, warn};

/// LiteLLM's preset of a key that calls models. Without it, a key could do all that its user may, and
/// so manage the other keys.
const MODEL_KEY: &str = "llm_api";

pub(super) async fn create(host: &Host, arguments: &CreateKey) -> Result<Exit> {
    refuse_key(&arguments.alias)?;
    let gateway = Gateway::new(host)?;
    let mut limits = limits(&arguments.limits, &arguments.business);
    limits.alias = Some(arguments.alias.clone());
    limits.user = Some(USER.into());
    if limits.allowed_routes.is_none() {
        limits.key_type = Some(MODEL_KEY);
    }
    let mut metadata = pairs(&arguments.business)?;
    metadata.insert(CREATED_BY.0.into(), CREATED_BY.1.into());
    limits.metadata = Some(metadata);
    check_models(host, &arguments.limits.models);
    let limits = &limits;
    let made = gateway
        .act(arguments.credential, async |keys: Keys<'_>| {
            // Only an administrator's key may create the user; if there is a service key, the user exists.
            match keys.ensure_user(USER, USER, ROLE).await {
                Ok(()) | Err(KeyError::Forbidden { .. }) => keys.generate(limits).await,
                Err(error) => Err(error),
            }
        })
        .await?;
    if arguments.json {
        #[derive(Serialize)]
        struct Made<'a> {
            schema: u32,
            alias: &'a str,
            key: &'a str,
            token: &'a str,
            expires: Option<&'a str>,
        }
        output::json(&Made {
            schema: 1,
            alias: &arguments.alias,
            key: made.key.expose_secret(),
            token: &made.token,
            expires: made.expires.as_deref(),
        })?;
    } else {
        output::line(made.key.expose_secret())?;
        say(&format!(
            "created key {}; LiteLLM keeps only a hash of it, so it can't be shown again",
            arguments.alias
        ));
    }
    Ok(Exit::Success)
}

pub(super) async fn list(host: &Host, arguments: &ListKeys) -> Result<Exit> {
    let gateway = Gateway::new(host)?;
    // To a service key, LiteLLM lists only the keys of its own user.
    let credential = arguments.credential.unwrap_or(As::Master);
    let keys = gateway
        .act(Some(credential), async |keys: Keys<'_>| {
            keys.list(None).await
        })
        .await?;
    if arguments.json {
        #[derive(Serialize)]
        struct List {
            schema: u32,
            keys: Vec<Shown>,
        }
        let keys = keys.into_iter().map(Shown::from).collect();
        output::json(&List { schema: 1, keys })?;
    } else {
        output::text(&table(&keys))?;
    }
    Ok(Exit::Success)
}

pub(super) async fn info(host: &Host, arguments: &InfoKey) -> Result<Exit> {
    let gateway = Gateway::new(host)?;
    let chosen = (&arguments.selector, arguments.credential);
    let key = Shown::from(with_key(&gateway, chosen, async |_, _| Ok(())).await?);
    if arguments.json {
        output::json(&key)?;
    } else {
        output::text(&details(&key))?;
    }
    Ok(Exit::Success)
}

pub(super) async fn update(host: &Host, arguments: &UpdateKey) -> Result<Exit> {
    let mut limits = limits(&arguments.limits, &arguments.business);
    limits.alias.clone_from(&arguments.alias);
    let metadata = pairs(&arguments.business)?;
    if limits == Limits::default() && metadata.is_empty() {
        return Err(Failure::new("there is nothing to change")
            .hint("see the options: `litellm-units key update --help`")
            .into());
    }
    if let Some(alias) = &arguments.alias {
        refuse_key(alias)?;
    }
    check_models(host, &arguments.limits.models);
    let (limits, metadata) = (&limits, &metadata);
    let gateway = Gateway::new(host)?;
    let chosen = (&arguments.selector, arguments.credential);
    let key = with_key(&gateway, chosen, async |keys, key| {
        let mut limits = limits.clone();
        if !metadata.is_empty() {
            // LiteLLM replaces all metadata.
            let before = key.metadata.clone().unwrap_or_default().into_iter();
            limits.metadata = Some(before.chain(metadata.clone()).collect());
        }
        keys.update(&key.token, &limits).await
    })
    .await?;
    say(&format!("changed {}", name(&key)));
    for change in changes(&key, limits) {
        say(&format!("  {change}"));
    }
    Ok(Exit::Success)
}

pub(super) async fn block(host: &Host, arguments: &ChangeKey, block: bool) -> Result<Exit> {
    let gateway = Gateway::new(host)?;
    let chosen = (&arguments.selector, arguments.credential);
    let key = with_key(&gateway, chosen, async |keys, key| {
        if block {
            keys.block(&key.token).await
        } else {
            keys.unblock(&key.token).await
        }
    })
    .await?;
    let verb = if block { "blocked" } else { "unblocked" };
    say(&format!("{verb} {}", name(&key)));
    Ok(Exit::Success)
}

pub(super) async fn delete(host: &Host, arguments: &ChangeKey) -> Result<Exit> {
    let gateway = Gateway::new(host)?;
    let in_file = gateway.service.as_ref().map(hash);
    let is_in_file = |key: &ApiKey| Some(&key.token) == in_file.as_ref();
    let chosen = (&arguments.selector, arguments.credential);
    let key = with_key(&gateway, chosen, async |keys, key| {
        if is_in_file(key) {
            return Ok(());
        }
        keys.delete(&key.token).await
    })
    .await?;
    if is_in_file(&key) {
        return Err(Failure::new(format!(
            "{} is the service key in {}",
            name(&key),
            host.paths.service_key().display()
        ))
        .hint("replace it instead: `litellm-units key rotate service`")
        .into());
    }
    say(&format!("deleted {}", name(&key)));
    Ok(Exit::Success)
}

/// Does something with the key that is named, and returns it as it was before.
async fn with_key(
    gateway: &Gateway<'_>,
    (selector, credential): (&Selector, Option<As>),
    act: impl AsyncFn(Keys<'_>, &ApiKey) -> Result<(), KeyError>,
) -> Result<ApiKey> {
    let target = Target::of(selector)?;
    gateway
        .act(credential, async |keys: Keys<'_>| {
            let key = target.find(keys).await?;
            act(keys, &key).await?;
            Ok(key)
        })
        .await
}

/// What a new limit replaces: a list is replaced as a whole.
fn changes(key: &ApiKey, limits: &Limits) -> Vec<String> {
    let names = [
        "models",
        "budget",
        "requests per minute",
        "tokens per minute",
        "allowed routes",
    ];
    let number = |number: u64| number.to_string();
    let before = [
        Some(list_or_all(&key.models)),
        key.max_budget.map(money),
        key.rpm_limit.map(number),
        key.tpm_limit.map(number),
        Some(list_or_all(
            key.allowed_routes.as_deref().unwrap_or_default(),
        )),
    ];
    let after = [
        limits.models.as_deref().map(list_or_all),
        limits.max_budget.map(money),
        limits.requests_per_minute.map(number),
        limits.tokens_per_minute.map(number),
        limits.allowed_routes.as_deref().map(list_or_all),
    ];
    let changes = names.into_iter().zip(before).zip(after);
    let change = |((name, before), after): ((_, Option<String>), Option<String>)| {
        let (before, after) = (before.unwrap_or("none".into()), after?);
        (before != after).then(|| format!("{name}: {before} -> {after}"))
    };
    changes.filter_map(change).collect()
}

enum Target {
    Alias(String),
    Token(String),
}

impl Target {
    fn of(selector: &Selector) -> Result<Self> {
        if let Some(name) = &selector.name {
            refuse_key(name)?;
            let is_hash = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            return Ok(if is_hash {
                Self::Token(name.to_ascii_lowercase())
            } else {
                Self::Alias(name.clone())
            });
        }
        let path = selector.key_file.as_deref().unwrap_or(Path::new("-"));
        Ok(Self::Token(hash(&key_in(path)?)))
    }

    async fn find(&self, keys: Keys<'_>) -> Result<ApiKey, KeyError> {
        match self {
            Self::Token(token) => keys.info(token).await,
            Self::Alias(alias) => keys
                .list(Some(alias))
                .await?
                .into_iter()
                .next()
                .ok_or(KeyError::NotFound),
        }
    }
}

fn key_in(path: &Path) -> Result<SecretString> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(4096)
            .read_to_string(&mut text)
            .context("can't read the key from stdin")?;
    } else {
        text = std::fs::read_to_string(path).path_context("can't read", path)?;
    }
    let text = text.trim();
    if text.starts_with("sk-") {
        Ok(text.into())
    } else {
        Err(Failure::new("the input is not a key: keys of LiteLLM start with sk-").into())
    }
}

/// Every user of the host can read arguments.
fn refuse_key(argument: &str) -> Result<()> {
    if !argument.starts_with("sk-") {
        return Ok(());
    }
    Err(Failure::new(
        "a key must not be an argument: other users (ps) and the shell's history can read it",
    )
    .hint("use its alias or hash, or pass it on stdin with `--key-file -`; if others use this host, replace the key as well")
    .into())
}

fn limits(asked: &KeyLimits, business: &Business) -> Limits {
    let list = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    Limits {
        models: list(&asked.models),
        max_budget: asked.max_budget,
        requests_per_minute: asked.rpm,
        tokens_per_minute: asked.tpm,
        duration: asked.duration.clone(),
        allowed_routes: list(&asked.allowed_routes),
        budget_duration: business.budget_duration.clone(),
        team: business.team.clone(),
        ..Limits::default()
    }
}

fn pairs(business: &Business) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    for (name, value) in &business.metadata {
        if [CREATED_BY.0, ROLE_NAME].contains(&name.as_str()) {
            return Err(
                Failure::new(format!("the metadata {name} is reserved for litellm-units"))
                    .hint("choose another name")
                    .into(),
            );
        }
        map.insert(name.clone(), value.as_str().into());
    }
    Ok(map)
}

/// LiteLLM accepts any name, also of a model that it does not have.
fn check_models(host: &Host, models: &[String]) {
    let path = host.paths.config_file();
    let Ok(known) = models::configured(&path) else {
        return;
    };
    for model in models.iter().filter(|model| !known.contains(model)) {
        warn(&format!(
            "{} has no model {model}: the key can use it only if it is defined in LiteLLM's database",
            short(&path)
        ));
    }
}

fn name(key: &ApiKey) -> String {
    let masked = masked(key.key.as_deref());
    match &key.alias {
        Some(alias) => format!("{alias} ({masked})"),
        None => masked,
    }
}

/// `sk-…abcd`; LiteLLM writes three dots.
fn masked(key: Option<&str>) -> String {
    key.map_or_else(|| "sk-…".to_owned(), |key| key.replace("...", "…"))
}

#[derive(Debug, Serialize)]
struct Shown {
    state: &'static str,
    #[serde(flatten)]
    key: ApiKey,
}

impl From<ApiKey> for Shown {
    fn from(key: ApiKey) -> Self {
        let key = ApiKey {
            key: Some(masked(key.key.as_deref())),
            ..key
        };
        Self {
            state: state(&key),
            key,
        }
    }
}

fn state(key: &ApiKey) -> &'static str {
    if key.blocked {
        "blocked"
    } else if key.expires.as_deref().is_some_and(|end| *end < *now()) {
        "expired"
    } else if key.max_budget.is_some_and(|budget| key.spend >= budget) {
        "budget spent"
    } else {
        "valid"
    }
}

/// The time in UTC as LiteLLM writes it, so that the two can be compared as texts.
fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S")
        .to_string()
}

fn table(keys: &[ApiKey]) -> String {
    let mut rows = vec![
        [
            "ALIAS", "KEY", "STATE", "SPENT", "BUDGET", "RPM", "TPM", "EXPIRES", "TEAM", "MODELS",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for key in keys {
        let service = key.metadata_text(CREATED_BY.0) == Some(CREATED_BY.1)
            && key.metadata_text(ROLE_NAME) == Some(SERVICE_ROLE);
        rows.push(vec![
            or_dash(key.alias.clone()),
            masked(key.key.as_deref()),
            if service {
                format!("{}, service", state(key))
            } else {
                state(key).to_owned()
            },
            money(key.spend),
            or_dash(budget(key)),
            or_dash(key.rpm_limit.map(|limit| limit.to_string())),
            or_dash(key.tpm_limit.map(|limit| limit.to_string())),
            or_dash(key.expires.as_deref().map(minute)),
            or_dash(key.team.clone()),
            list_or_all(&key.models),
        ]);
    }
    output::table(
        &rows,
        &[
            Loss::Column("TPM"),
            Loss::Column("RPM"),
            Loss::End("MODELS"),
            Loss::Column("TEAM"),
            Loss::Column("KEY"),
            Loss::End("MODELS"),
            Loss::Column("EXPIRES"),
            Loss::End("MODELS"),
        ],
    )
}

fn details(shown: &Shown) -> String {
    let key = &shown.key;
    let list = |list: &[String]| list.join(", ");
    let number = |number: u64| number.to_string();
    let mut rows = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            rows.push(vec![name.to_owned(), value]);
        }
    };
    row("alias", key.alias.clone());
    row("key", key.key.clone());
    row("hash", Some(key.token.clone()));
    row("state", Some(shown.state.to_owned()));
    row("models", Some(list_or_all(&key.models)));
    row("allowed routes", key.allowed_routes.as_deref().map(list));
    row("spent", Some(money(key.spend)));
    row("budget", budget(key));
    row("budget reset", key.budget_reset_at.as_deref().map(minute));
    row("requests per minute", key.rpm_limit.map(number));
    row("tokens per minute", key.tpm_limit.map(number));
    row("team", key.team.clone());
    row("user", key.user.clone());
    row("created", key.created_at.as_deref().map(minute));
    row("expires", key.expires.as_deref().map(minute));
    for (name, value) in key.metadata.iter().flatten() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        row("metadata", Some(format!("{name}={value}")));
    }
    output::columns(&rows)
}

fn list_or_all(list: &[String]) -> String {
    if list.is_empty() {
        "all".into()
    } else {
        list.join(", ")
    }
}

fn budget(key: &ApiKey) -> Option<String> {
    let budget = money(key.max_budget?);
    Some(match &key.budget_duration {
        Some(duration) => format!("{budget}/{duration}"),
        None => budget,
    })
}

fn money(amount: f64) -> String {
    if amount > 0.0 && amount < 0.01 {
        "<$0.01".into()
    } else {
        format!("${amount:.2}")
    }
}

/// `2026-11-24T20:57:09.823000+00:00` to the minute, which is in UTC.
fn minute(time: &str) -> String {
    time.get(..16).map_or_else(
        || time.to_owned(),
        |minute| format!("{}Z", minute.replace('T', " ")),
    )
}

#[cfg(test)]
mod tests {
    use super::changes;
    use crate::litellm::keys::{ApiKey, Limits};

    #[test]
    fn what_a_new_limit_replaces() {
        let key: ApiKey = serde_json::from_str(
            r#"{"models": ["a", "b"], "max_budget": 5.0, "rpm_limit": 3, "allowed_routes": []}"#,
        )
        .unwrap();
        let limits = Limits {
            models: Some(vec!["c".into()]),
            max_budget: Some(10.0),
            requests_per_minute: Some(3),
            tokens_per_minute: Some(7),
            ..Limits::default()
        };
        assert_eq!(
            changes(&key, &limits),
            [
                "models: a, b -> c",
                "budget: $5.00 -> $10.00",
                "tokens per minute: none -> 7"
            ]
        );
        assert_eq!(changes(&key, &Limits::default()), [""; 0]);
    }
}

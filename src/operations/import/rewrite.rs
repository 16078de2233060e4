//! The gateway's configuration of a compose deployment: what it says, and the same text for the new place.

use std::collections::BTreeMap;
use std::rc::Rc;

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use crate::deployment::variables::is_of_units;
use crate::error::{Failure, Result};
use crate::yaml::{self, Node, Position, Value};

/// What the new gateway begins with if the old one has no configuration.
const EMPTY: &str = "\
# LiteLLM's own configuration: https://docs.litellm.ai/docs/proxy/configs
# After an edit: litellm-units apply
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  database_url: os.environ/DATABASE_URL
";

/// A server of Redis.
#[derive(Clone, Debug)]
pub(crate) struct Redis {
    pub host: String,
    pub port: Option<String>,
    pub password: Option<SecretString>,
}

impl Redis {
    pub(crate) fn of_url(url: &str) -> Option<Self> {
        let url = reqwest::Url::parse(url).ok()?;
        let password = url
            .password()
            .map(|text| percent_decode_str(text).decode_utf8_lossy());
        Some(Self {
            host: url.host_str()?.to_owned(),
            port: url.port().map(|port| port.to_string()),
            password: password.map(|text| text.as_ref().into()),
        })
    }
}

/// What decides about the new text.
pub(crate) struct Rewrite<'a> {
    /// Whether the gateway's Redis becomes the local one.
    pub cache: bool,
    /// The paths of files in the old container, and in the new one.
    pub paths: &'a BTreeMap<String, String>,
}

/// The old configuration.
pub(crate) struct Old<'a> {
    text: &'a str,
    root: Option<Rc<Node>>,
    /// The variables of LiteLLM: those of its container, and over them `environment_variables`.
    pub env: BTreeMap<String, SecretString>,
    /// The master key, and where it is.
    pub master_key: Option<(SecretString, String)>,
    pub database_url: Option<SecretString>,
    pub redis: Vec<Redis>,
    /// Whether spend waits in Redis before it is written to the database.
    pub buffers_spend: bool,
}

enum Edit {
    /// A scalar becomes another one.
    Scalar {
        at: Position,
        old: String,
        new: String,
    },
    /// The line of a key becomes several, or none.
    Line {
        at: Position,
        key: String,
        old: String,
        new: &'static [(&'static str, &'static str)],
    },
}

const CACHE: [(&str, &str); 3] = [
    ("host", "os.environ/REDIS_HOST"),
    ("port", "os.environ/REDIS_PORT"),
    ("password", "os.environ/REDIS_PASSWORD"),
];
const ROUTER: [(&str, &str); 3] = [
    ("redis_host", "os.environ/REDIS_HOST"),
    ("redis_port", "os.environ/REDIS_PORT"),
    ("redis_password", "os.environ/REDIS_PASSWORD"),
];

/// The files that a configuration includes.
pub(crate) fn includes(text: &str) -> Vec<String> {
    let root = yaml::parse(text).ok().flatten();
    let listed = root.as_ref().and_then(|root| root.get("include"));
    let items = listed.map_or(&[][..], Node::items).iter();
    items
        .filter_map(|item| Some(item.text()?.to_owned()))
        .collect()
}

impl<'a> Old<'a> {
    /// # Errors
    /// When the text is not YAML, or names a variable that Docker does not show.
    pub(crate) fn read(text: &'a str, env: &BTreeMap<String, SecretString>) -> Result<Self> {
        let root = yaml::parse(text).map_err(|error| {
            Failure::new(format!(
                "the old configuration is not valid YAML: line {}: {}",
                error.at.line, error.message
            ))
            .hint("correct it, and check that the old gateway starts with it")
        })?;
        let mut old = Self {
            text,
            root,
            env: env.clone(),
            master_key: None,
            database_url: None,
            redis: Vec::new(),
            buffers_spend: false,
        };
        let given = old.variables().into_iter();
        let given = given.filter_map(|(key, value)| Some((key.text()?, old.value(value)?)));
        let given: Vec<_> = given
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        old.env.extend(given);
        let general = |name: &str| {
            let general = old
                .root
                .as_deref()
                .and_then(|root| root.get("general_settings"));
            let Some(node) = general.and_then(|general| general.get(name)) else {
                return Ok(None);
            };
            let reference = node
                .text()
                .and_then(|text| text.strip_prefix("os.environ/"));
            if let Some(variable) = reference.filter(|name| !old.env.contains_key(*name)) {
                return Err(Failure::new(format!(
                    "Docker does not show {variable}, which is general_settings.{name} of the old configuration"
                ))
                .hint(format!(
                    "an entrypoint or a secret file may set it: in the compose file, write it into `environment:` of the gateway's service, and run `docker compose up -d`; if nothing sets it, remove {name} from the configuration"
                )));
            }
            let source = reference.map_or(format!("general_settings.{name}"), str::to_owned);
            let value = old.value(node).map(SecretString::from);
            Ok(value.map(|value| (value, source)))
        };
        let (master_key, database_url) = (general("master_key")?, general("database_url")?);
        let buffers = old.root.as_deref().and_then(|root| {
            let general = root.get("general_settings")?;
            general.get("use_redis_transaction_buffer")?.text()
        });
        let buffers_spend = buffers.is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let mut redis = Vec::new();
        for (section, prefix) in old.sections() {
            redis.extend(old.server(section, prefix));
        }
        old.master_key = master_key;
        old.database_url = database_url.map(|(url, _)| url);
        old.redis = redis;
        old.buffers_spend = buffers_spend;
        Ok(old)
    }

    /// The variables that the configuration sets.
    fn variables(&self) -> Vec<(&Node, &Node)> {
        let root = self.root.as_deref();
        let section = root.and_then(|root| root.get("environment_variables"));
        section.map_or(Vec::new(), Node::entries)
    }

    /// Whether the cache is one of meanings, for which a server needs a module.
    pub(crate) fn is_semantic(&self) -> bool {
        let sections = self.sections().into_iter();
        let mut kinds = sections.filter_map(|(section, _)| section.get("type")?.text());
        kinds.any(|kind| kind == "redis-semantic")
    }

    /// The sections that name a Redis, with what their keys begin with.
    fn sections(&self) -> Vec<(&Node, &'static str)> {
        let Some(root) = self.root.as_deref() else {
            return Vec::new();
        };
        let cache = root
            .get("litellm_settings")
            .and_then(|settings| settings.get("cache_params"));
        let router = root.get("router_settings");
        let cache = cache.map(|node| (node, ""));
        cache
            .into_iter()
            .chain(router.map(|node| (node, "redis_")))
            .collect()
    }

    /// The value of a scalar, which may name a variable.
    fn value(&self, node: &Node) -> Option<String> {
        let text = node.text()?;
        let value = match text.strip_prefix("os.environ/") {
            Some(name) => self.env.get(name)?.expose_secret(),
            None => text,
        };
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn server(&self, section: &Node, prefix: &str) -> Option<Redis> {
        let get = |name: &str| self.value(section.get(&format!("{prefix}{name}"))?);
        if let Some(url) = Self::url(section).and_then(|(_, url)| self.value(url)) {
            return Redis::of_url(&url);
        }
        Some(Redis {
            host: get("host")?,
            port: get("port"),
            password: get("password").map(Into::into),
        })
    }

    /// The key with a URL of Redis.
    fn url(section: &Node) -> Option<(&Node, &Node)> {
        let is_url = |key: &Node| matches!(key.text(), Some("url" | "redis_url"));
        let mut entries = section.entries().into_iter();
        entries.find(|(key, value)| is_url(key) && !value.is_null())
    }

    /// The text for the new gateway.
    ///
    /// # Errors
    /// When a value is written in a way that can't be replaced in place.
    pub(crate) fn rewritten(&self, rewrite: &Rewrite<'_>) -> Result<String> {
        let Some(root) = self.root.as_deref() else {
            return Ok(EMPTY.to_owned());
        };
        let mut edits = Vec::new();
        let mut scalar = |node: Option<&Node>, new: &'static str| {
            if let Some(node) = node
                && let Some(old) = node.text()
                && old != new
            {
                edits.push(Edit::Scalar {
                    at: node.at,
                    old: old.to_owned(),
                    new: new.to_owned(),
                });
            }
        };
        let general = root.get("general_settings");
        for (name, new) in [
            ("master_key", "os.environ/LITELLM_MASTER_KEY"),
            ("database_url", "os.environ/DATABASE_URL"),
        ] {
            scalar(general.and_then(|general| general.get(name)), new);
        }
        let sections = if rewrite.cache {
            self.sections()
        } else {
            Vec::new()
        };
        let mut lines = Vec::new();
        for (key, value) in self.variables() {
            let (name, old) = (
                key.text().unwrap_or_default(),
                value.text().unwrap_or_default(),
            );
            if is_of_units(name) && old.strip_prefix("os.environ/") != Some(name) {
                lines.push(Edit::Line {
                    at: key.at,
                    key: name.to_owned(),
                    old: old.to_owned(),
                    new: &[],
                });
            }
        }
        for (section, prefix) in sections {
            let new = if prefix.is_empty() { &CACHE } else { &ROUTER };
            if self.server(section, prefix).is_none() {
                continue;
            }
            if let Some((key, value)) = Self::url(section) {
                lines.push(Edit::Line {
                    at: key.at,
                    key: key.text().unwrap_or_default().to_owned(),
                    old: value.text().unwrap_or_default().to_owned(),
                    new,
                });
                continue;
            }
            for (name, new) in new {
                scalar(section.get(name), new);
            }
        }
        edits.extend(lines);
        paths(root, rewrite.paths, &mut edits, 0);
        apply(self.text, edits)
    }
}

/// The new path of a file in the container, if it is copied to another one.
pub(crate) fn new_path(path: &str, renamed: &BTreeMap<String, String>) -> Option<String> {
    let moved = renamed.iter().find_map(|(old, new)| {
        let rest = path.strip_prefix(old.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{new}{rest}"))
    });
    moved.filter(|new| new != path)
}

/// Finds the paths of files that have another one now.
fn paths(node: &Node, renamed: &BTreeMap<String, String>, edits: &mut Vec<Edit>, depth: usize) {
    if depth > 100 {
        return;
    }
    match &node.value {
        Value::Scalar { text, .. } => {
            if let Some(new) = new_path(text, renamed) {
                edits.push(Edit::Scalar {
                    at: node.at,
                    old: text.clone(),
                    new,
                });
            }
        }
        Value::Sequence(items) => items
            .iter()
            .for_each(|item| paths(item, renamed, edits, depth + 1)),
        Value::Mapping(pairs) => pairs
            .iter()
            .for_each(|(_, value)| paths(value, renamed, edits, depth + 1)),
    }
}

impl Edit {
    fn at(&self) -> Position {
        match self {
            Self::Scalar { at, .. } | Self::Line { at, .. } => *at,
        }
    }
}

/// Edits from the end, so that the positions before stay right.
fn apply(text: &str, mut edits: Vec<Edit>) -> Result<String> {
    edits.sort_by_key(Edit::at);
    // What an alias stands for is there several times.
    edits.dedup_by_key(|edit| edit.at());
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    for edit in edits.into_iter().rev() {
        let Position { line, column } = edit.at();
        let wrong = || {
            Failure::new(format!(
                "the old configuration, line {line}: this value can't be replaced in place"
            ))
            .hint("write the key and its value on a line of their own, and restart the old gateway")
        };
        let Some(whole) = lines.get_mut(line - 1) else {
            return Err(wrong().into());
        };
        let begin = whole
            .char_indices()
            .nth(column - 1)
            .map_or(whole.len(), |(at, _)| at);
        match edit {
            Edit::Scalar { old, new, .. } => replace(whole, begin, &old, &new).ok_or_else(wrong)?,
            Edit::Line { key, old, new, .. } => {
                let indent = &whole[..begin];
                let value = whole[begin..].strip_prefix(&format!("{key}:"));
                if !indent.trim().is_empty() || value.is_none_or(|value| !value.contains(&old)) {
                    return Err(wrong().into());
                }
                let new = new.iter();
                *whole = new
                    .map(|(key, value)| format!("{indent}{key}: {value}\n"))
                    .collect();
            }
        }
    }
    Ok(lines.concat())
}

/// Replaces the scalar at `begin`, quoted or not.
fn replace(line: &mut String, begin: usize, old: &str, new: &str) -> Option<()> {
    let rest = &line[begin..];
    let written = match rest.chars().next()? {
        quote @ ('"' | '\'') => format!("{quote}{old}{quote}"),
        _ => old.to_owned(),
    };
    if !rest.starts_with(&written) {
        return None;
    }
    line.replace_range(begin..begin + written.len(), new);
    Some(())
}

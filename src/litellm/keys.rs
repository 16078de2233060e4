//! LiteLLM's keys: made, listed, changed, blocked and deleted over its HTTP interface.
//!
//! An existing key is always named by its hash: LiteLLM's access log holds query strings, and some
//! of its error messages repeat the request.

use std::collections::{BTreeMap, BTreeSet};

use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::Client;
use super::health::innermost;
use crate::random::hex;

/// Keys on one page of a list: the most that LiteLLM allows.
const PAGE: u64 = 100;
/// The maximum length of a quoted message of LiteLLM, in characters.
const MESSAGE_LIMIT: usize = 400;

/// Why a request about keys did not succeed. No message holds a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The key that the request was made with is not valid.
    #[error("the gateway does not accept the key used for this: {0}")]
    Unauthorized(Invalid),
    /// The key that the request was made with may not do this.
    #[error("LiteLLM does not allow it: {message}")]
    Forbidden {
        /// LiteLLM's words.
        message: String,
    },
    /// Another key has this alias.
    #[error("another key has the alias {alias}")]
    DuplicateAlias {
        /// The alias.
        alias: String,
    },
    /// There is no such key, or the key of the request may not see it.
    #[error("there is no such key")]
    NotFound,
    /// There is no such team.
    #[error("there is no team with the identifier {team}")]
    NoTeam {
        /// The identifier.
        team: String,
    },
    /// A request failed after a key was made, and then the key could not be deleted.
    #[error("{error}; the new key remains, because deleting it failed, too: {deletion}")]
    Left {
        /// The hash of that key.
        token: String,
        /// What failed first.
        error: Box<KeyError>,
        /// Why the key was not deleted.
        deletion: Box<KeyError>,
    },
    /// LiteLLM refuses the request as invalid.
    #[error("LiteLLM refuses it ({status}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// LiteLLM's words.
        message: String,
    },
    /// LiteLLM tried and failed.
    #[error("LiteLLM failed ({status}): {message}")]
    Failed {
        /// The HTTP status.
        status: u16,
        /// LiteLLM's words.
        message: String,
    },
    /// The gateway did not answer.
    #[error("the gateway at {address} does not answer: {reason}")]
    Unreachable {
        /// The address of the request.
        address: String,
        /// What the connection said.
        reason: String,
    },
    /// Something answered, but not as LiteLLM does.
    #[error("unexpected answer of {path}: {reason}")]
    Unintelligible {
        /// The path of the request.
        path: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl KeyError {
    /// Whether a gateway under load answers like this: late, or with 503, as LiteLLM's admission control and uvicorn's
    /// limit of connections do.
    #[must_use]
    pub fn may_be_load(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Failed { status: 503, .. }
        )
    }
}

/// Why a key is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// The gateway has never had it, or it was deleted.
    #[error("it knows no such key")]
    Unknown,
    /// It has expired.
    #[error("the key has expired")]
    Expired,
    /// It was blocked.
    #[error("the key is blocked")]
    Blocked,
    /// For another reason.
    #[error("it is refused")]
    Other,
}

/// The settings of a key. A field that is not set keeps its value, or LiteLLM's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// The name that people know it by.
    #[serde(rename = "key_alias", skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The models that it may use; an empty list stands for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// The most that it may spend, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_budget: Option<f64>,
    /// The period of the budget: `30d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_duration: Option<String>,
    /// Requests per minute.
    #[serde(rename = "rpm_limit", skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute.
    #[serde(rename = "tpm_limit", skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// How long it is valid from now: `90d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// The team whose budget and limits it shares.
    #[serde(rename = "team_id", skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Paths, or LiteLLM's names for groups of them, that it may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<Vec<String>>,
    /// One of LiteLLM's presets of routes: `llm_api`. Since 1.83.14 (CVE-2026-47101), only an
    /// administrator may set other routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_type: Option<&'static str>,
    /// The user that it belongs to.
    #[serde(rename = "user_id", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Metadata, which LiteLLM only stores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// A key just made: the only time that its value is known.
#[derive(Debug, Deserialize)]
pub struct Generated {
    /// The key.
    #[serde(deserialize_with = "secret")]
    pub key: SecretString,
    /// Its hash, by which it is known from now on.
    pub token: String,
    /// When it ends, if ever.
    pub expires: Option<String>,
}

/// What LiteLLM tells about a key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ApiKey {
    /// Its hash.
    pub token: String,
    /// Its last characters: `sk-...abcd`.
    #[serde(rename(deserialize = "key_name"))]
    pub key: Option<String>,
    /// The name that people know it by.
    #[serde(rename(deserialize = "key_alias"))]
    pub alias: Option<String>,
    /// The models that it may use; all when empty.
    pub models: Vec<String>,
    /// What it has spent, in US dollars.
    pub spend: f64,
    /// The most that it may spend.
    pub max_budget: Option<f64>,
    /// After which time the budget starts anew.
    pub budget_duration: Option<String>,
    /// When the budget is next reset.
    pub budget_reset_at: Option<String>,
    /// Requests per minute.
    pub rpm_limit: Option<u64>,
    /// Tokens per minute.
    pub tpm_limit: Option<u64>,
    /// When it was made.
    pub created_at: Option<String>,
    /// When it ends.
    pub expires: Option<String>,
    /// Whether it is refused until unblocked.
    #[serde(deserialize_with = "null_is_false")]
    pub blocked: bool,
    /// The user that it belongs to.
    #[serde(rename(deserialize = "user_id"))]
    pub user: Option<String>,
    /// The team whose budget and limits it shares.
    #[serde(rename(deserialize = "team_id"))]
    pub team: Option<String>,
    /// What it may call; everything that its user may when empty.
    pub allowed_routes: Option<Vec<String>>,
    /// Metadata, which LiteLLM only stores.
    pub metadata: Option<BTreeMap<String, Value>>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

fn null_is_false<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ApiKey {
    /// A string among its metadata.
    #[must_use]
    pub fn metadata_text(&self, name: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(name)?.as_str()
    }
}

/// The hash by which LiteLLM knows a key.
#[must_use]
pub fn hash(key: &SecretString) -> String {
    hex(&Sha256::digest(key.expose_secret().as_bytes()))
}

/// The key interface, used with one key.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    client: &'a Client,
    bearer: &'a SecretString,
}

impl Client {
    /// The key interface, used with `bearer`.
    #[must_use]
    pub fn keys<'a>(&'a self, bearer: &'a SecretString) -> Keys<'a> {
        Keys {
            client: self,
            bearer,
        }
    }
}

#[derive(Deserialize)]
struct Page {
    keys: Vec<ApiKey>,
    #[serde(default)]
    total_pages: u64,
}

#[derive(Deserialize)]
struct Info {
    key: String,
    info: Row,
}

#[derive(Deserialize)]
struct Row {
    #[serde(flatten)]
    key: ApiKey,
    status: Option<String>,
}

impl Keys<'_> {
    /// Makes a key.
    ///
    /// LiteLLM rounds the end of a new key to its calendar: `30d` to the end of the month, `1d` to
    /// midnight. It does not round a change, so a new key is changed at once.
    ///
    /// # Errors
    /// As [`KeyError`] says. Then no new key is left, except after [`KeyError::Left`], and perhaps after
    /// [`KeyError::Unreachable`]: LiteLLM may have made it without an answer in time.
    pub async fn generate(&self, limits: &Limits) -> Result<Generated, KeyError> {
        const PATH: &str = "/key/generate";
        self.expect_team(limits).await?;
        let request = self.request(Method::POST, PATH).json(limits);
        let mut made: Generated = self.send(PATH, request, limits.alias.as_deref()).await?;
        if limits.duration.is_some() {
            let end = Limits {
                duration: limits.duration.clone(),
                ..Limits::default()
            };
            let exact = async {
                self.update(&made.token, &end).await?;
                self.info(&made.token).await
            };
            match exact.await {
                Ok(key) => made.expires = key.expires,
                Err(error) => {
                    return Err(match self.delete(&made.token).await {
                        Ok(()) => error,
                        Err(deletion) => KeyError::Left {
                            token: made.token,
                            error: Box::new(error),
                            deletion: Box::new(deletion),
                        },
                    });
                }
            }
        }
        Ok(made)
    }

    /// What is known about the key with this hash.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn info(&self, token: &str) -> Result<ApiKey, KeyError> {
        const PATH: &str = "/key/info";
        let request = self.request(Method::GET, &format!("{PATH}?key={}", encode(token)));
        let Info { info, .. } = self.send(PATH, request, Some(token)).await?;
        // LiteLLM 1.108 archives deleted keys, and answers with those as well.
        if info.status.as_deref() == Some("deleted") {
            return Err(KeyError::NotFound);
        }
        Ok(ApiKey {
            token: token.to_owned(),
            ..info.key
        })
    }

    /// The key of this client: tells whether it is valid, and needs no other right.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn own(&self) -> Result<ApiKey, KeyError> {
        const PATH: &str = "/key/info";
        let Info { key, info } = self
            .send(PATH, self.request(Method::GET, PATH), None)
            .await?;
        Ok(ApiKey {
            token: key,
            ..info.key
        })
    }

    /// Every key that the key of this client may see, without login sessions of the web interface;
    /// only those with `alias` if one is given. Oldest first. A key that is deleted meanwhile may hide
    /// another one.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn list(&self, alias: Option<&str>) -> Result<Vec<ApiKey>, KeyError> {
        const PATH: &str = "/key/list";
        let mut all: Vec<ApiKey> = Vec::new();
        let mut number: u64 = 1;
        loop {
            let mut path = format!("{PATH}?return_full_object=true&size={PAGE}&page={number}");
            if let Some(alias) = alias {
                path.push_str(&format!("&key_alias={}", encode(alias)));
            }
            let request = self.request(Method::GET, &path);
            let page: Page = self.send(PATH, request, None).await?;
            let last = page.keys.is_empty() || number >= page.total_pages;
            all.extend(page.keys);
            if last {
                break;
            }
            number += 1;
        }
        // LiteLLM's default order, newest first, is the only one without ties between two pages. A key
        // made meanwhile moves another one to the next page.
        let mut seen = BTreeSet::new();
        all.retain(|key| {
            alias.is_none_or(|alias| key.alias.as_deref() == Some(alias))
                && seen.insert(key.token.clone())
        });
        all.reverse();
        Ok(all)
    }

    /// Changes what `limits` sets, and nothing else, of the key with this hash.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn update(&self, token: &str, limits: &Limits) -> Result<(), KeyError> {
        const PATH: &str = "/key/update";
        self.expect_team(limits).await?;
        let mut body = serde_json::to_value(limits).unwrap_or_default();
        body["key"] = token.into();
        let subject = limits.alias.as_deref().unwrap_or(token);
        self.send::<Value>(
            PATH,
            self.request(Method::POST, PATH).json(&body),
            Some(subject),
        )
        .await
        .map(drop)
        .map_err(|error| gone(error, token))
    }

    /// Has the key with this hash refused until it is unblocked.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn block(&self, token: &str) -> Result<(), KeyError> {
        self.post("/key/block", &json!({ "key": token }), token)
            .await
    }

    /// Has the key with this hash accepted again.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn unblock(&self, token: &str) -> Result<(), KeyError> {
        self.post("/key/unblock", &json!({ "key": token }), token)
            .await
    }

    /// Deletes the key with this hash for good.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn delete(&self, token: &str) -> Result<(), KeyError> {
        self.post("/key/delete", &json!({ "keys": [token] }), token)
            .await
    }

    /// Fails if the team does not exist. LiteLLM would make the key anyway, and only an
    /// administrator could then change or delete it.
    async fn expect_team(&self, limits: &Limits) -> Result<(), KeyError> {
        const PATH: &str = "/team/info";
        let Some(team) = &limits.team else {
            return Ok(());
        };
        let request = self.request(Method::GET, &format!("{PATH}?team_id={}", encode(team)));
        match self.send::<Value>(PATH, request, None).await {
            Ok(_) => Ok(()),
            Err(KeyError::NotFound) => Err(KeyError::NoTeam { team: team.clone() }),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that a user with this name exists, to whom keys can belong.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn ensure_user(&self, name: &str, alias: &str, role: &str) -> Result<(), KeyError> {
        const PATH: &str = "/user/new";
        let body = json!({
            "user_id": name,
            "user_alias": alias,
            "user_role": role,
            "auto_create_key": false,
        });
        let request = self.request(Method::POST, PATH).json(&body);
        match self.send::<Value>(PATH, request, None).await {
            Ok(_) | Err(KeyError::Refused { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks for the models and for a key. This needs the router and the database, and costs
    /// nothing.
    ///
    /// # Errors
    /// As [`KeyError`] says.
    pub async fn probe(&self) -> Result<(), KeyError> {
        const MODELS: &str = "/v1/models";
        const KEYS: &str = "/key/list";
        let models = self.request(Method::GET, MODELS);
        self.send::<Value>(MODELS, models, None).await?;
        let keys = self.request(Method::GET, &format!("{KEYS}?size=1"));
        self.send::<Value>(KEYS, keys, None).await.map(drop)
    }

    async fn post(&self, path: &'static str, body: &Value, token: &str) -> Result<(), KeyError> {
        self.send::<Value>(
            path,
            self.request(Method::POST, path).json(body),
            Some(token),
        )
        .await
        .map(drop)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .http
            .request(method, format!("{}{path}", self.client.base))
            .bearer_auth(self.bearer.expose_secret())
    }

    /// `subject` is the hash or alias that the request is about.
    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        path: &'static str,
        request: RequestBuilder,
        subject: Option<&str>,
    ) -> Result<T, KeyError> {
        let unreachable = |reason: String| KeyError::Unreachable {
            address: self.client.address(),
            reason,
        };
        self.client.http().map_err(unreachable)?;
        let answer = request.send().await;
        let answer = answer.map_err(|error| unreachable(innermost(&error)))?;
        let status = answer.status();
        let body = answer.bytes().await;
        let body = body.map_err(|error| unreachable(innermost(&error)))?;
        if !status.is_success() {
            return Err(classify(status, &String::from_utf8_lossy(&body), subject));
        }
        // serde_json's messages hold positions, and values only of another type than expected.
        serde_json::from_slice(&body).map_err(|error| KeyError::Unintelligible {
            path,
            reason: scrub(&error.to_string()),
        })
    }
}

fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// LiteLLM says "invalid user key" about the key that is to be changed, too.
fn gone(error: KeyError, token: &str) -> KeyError {
    match error {
        KeyError::Refused { message, .. }
            if message.contains(token) && message.contains("does not exist") =>
        {
            KeyError::NotFound
        }
        other => other,
    }
}

/// Turns LiteLLM's answer into a kind of failure.
fn classify(status: StatusCode, body: &str, subject: Option<&str>) -> KeyError {
    let (kind, words) = words(body);
    let message = scrub(&words);
    let about_subject = subject.is_some_and(|subject| words.contains(subject));
    match status.as_u16() {
        400 | 401 if kind == "expired_key" => KeyError::Unauthorized(Invalid::Expired),
        400 if words.contains("Key with alias") && words.contains("already exists") => {
            KeyError::DuplicateAlias {
                alias: subject.unwrap_or("that was asked for").to_owned(),
            }
        }
        400 if words.contains("not assigned to team") => KeyError::Forbidden { message },
        401 if about_subject
            && (kind == "token_not_found_in_db" || words.contains("does not exist in db")) =>
        {
            KeyError::NotFound
        }
        401 if words.contains("Only proxy admin") => KeyError::Forbidden { message },
        401 if words.contains("Key is blocked") => KeyError::Unauthorized(Invalid::Blocked),
        401 if kind == "token_not_found_in_db" => KeyError::Unauthorized(Invalid::Unknown),
        401 => KeyError::Unauthorized(Invalid::Other),
        403 => KeyError::Forbidden { message },
        404 => KeyError::NotFound,
        status @ 500.. => KeyError::Failed { status, message },
        status => KeyError::Refused { status, message },
    }
}

/// The kind and the words of LiteLLM's error, from `{"error": {"message", "type"}}` or
/// `{"detail": …}`; the body itself when it is neither.
fn words(body: &str) -> (String, String) {
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        return (String::new(), body.to_owned());
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    };
    let kind = text(&value["error"]["type"]).unwrap_or_default();
    let words = text(&value["error"]["message"])
        .or_else(|| text(&value["error"]))
        .or_else(|| text(&value["detail"]["error"]))
        .or_else(|| text(&value["detail"]))
        .unwrap_or_else(|| body.to_owned());
    (kind, words)
}

/// On one line, of bounded length, and without anything that may be a key.
#[must_use]
pub fn scrub(text: &str) -> String {
    const START: &str = "sk-";
    let mut line = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(START) {
        let (before, from) = rest.split_at(at);
        line.push_str(before);
        let length = from
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .unwrap_or(from.len());
        line.push_str(START);
        if length > START.len() {
            line.push('…');
        }
        rest = &from[length..];
    }
    line.push_str(rest);
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::{Invalid, KeyError, classify, hash, scrub};

    const HASH: &str = "6c008be117b2c2aeb69762f3065212f2a3b11d55662ca26f7183dd27c045d433";

    /// What LiteLLM 1.80.11 answered, and what is made of it.
    #[test]
    fn answers_of_litellm() {
        let error = |message: &str, kind: &str| {
            serde_json::json!({"error": {"message": message, "type": kind, "param": "None", "code": "0"}}).to_string()
        };
        let cases = [
            (
                401,
                error("Authentication Error, Invalid proxy server token passed. Received API Key = sk-...nope, Key Hash (Token) =1a00. Unable to find token in cache or `LiteLLM_VerificationTokenTable`", "token_not_found_in_db"),
                KeyError::Unauthorized(Invalid::Unknown),
            ),
            (
                401,
                error(&format!("Authentication Error, Invalid proxy server token passed. key={HASH}, not found in db. Create key via `/key/generate` call."), "token_not_found_in_db"),
                KeyError::NotFound,
            ),
            (
                401,
                error(&format!("Authentication Error: invalid user key - user key does not exist in db. User Key={HASH}"), "auth_error"),
                KeyError::NotFound,
            ),
            (
                401,
                error("Authentication Error, Key is blocked. Update via `/key/unblock` if you're admin.", "auth_error"),
                KeyError::Unauthorized(Invalid::Blocked),
            ),
            (
                400,
                r#"{"error":{"message":"Authentication Error - Expired ApiKey. ApiKey Expiry time 2026-11-24 20:56:49+00:00","type":"expired_key","param":"sk-LWqJAVyZtQXWQTSdUP60IQ","code":"400"}}"#.into(),
                KeyError::Unauthorized(Invalid::Expired),
            ),
            (
                403,
                r#"{"detail":"Virtual key is not allowed to call this route."}"#.into(),
                KeyError::Forbidden { message: "Virtual key is not allowed to call this route.".into() },
            ),
            (
                404,
                error("{'error': 'No keys found'}", "internal_server_error"),
                KeyError::NotFound,
            ),
            (
                400,
                error(&format!("Key with alias '{HASH}' already exists. Unique key aliases across all keys are required."), "bad_request_error"),
                KeyError::DuplicateAlias { alias: HASH.into() },
            ),
            (
                422,
                r#"{"detail":[{"loc":["body","rpm_limit"],"msg":"value is not a valid integer"}]}"#.into(),
                KeyError::Refused { status: 422, message: r#"[{"loc":["body","rpm_limit"],"msg":"value is not a valid integer"}]"#.into() },
            ),
            (
                500,
                "Internal\nServer Error for sk-LWqJAVyZtQXWQTSdUP60IQ".into(),
                KeyError::Failed { status: 500, message: "Internal Server Error for sk-…".into() },
            ),
        ];
        for (status, body, expected) in cases {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(classify(status, &body, Some(HASH)), expected, "{body}");
        }
    }

    #[test]
    fn no_key_survives() {
        assert_eq!(
            scrub("a sk-LWqJ_AV-yZ, sk-...abcd sk- b"),
            "a sk-…, sk-...abcd sk- b"
        );
        assert_eq!(scrub("sk-abc"), "sk-…");
    }

    #[test]
    fn hash_is_litellms() {
        // python3 -c 'import hashlib; print(hashlib.sha256(b"sk-nope").hexdigest())'
        assert_eq!(
            hash(&"sk-nope".into()),
            "1a00a2f8f8e73c2ec96644b102e8d26ebecbcda60bd76613d3134b176d546b8e"
        );
    }
}

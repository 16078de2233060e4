//! Liveliness and readiness.

use std::fmt;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::Client;

/// The state of the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum GatewayHealth {
    /// It answers and its database is connected.
    Ready {
        /// LiteLLM's version, as it says.
        version: Option<String>,
    },
    /// It answers, but can't serve keys yet.
    Live {
        /// What is missing.
        reason: String,
    },
    /// Something listens, but does not answer in time, or refuses for its load.
    Busy {
        /// What was waited for.
        reason: String,
    },
    /// It does not answer.
    Down {
        /// What the connection said.
        reason: String,
    },
}

impl GatewayHealth {
    /// Adds `version` to a ready gateway that does not tell its own.
    #[must_use]
    pub fn or_version(self, version: impl FnOnce() -> Option<String>) -> Self {
        match self {
            Self::Ready { version: None } => Self::Ready { version: version() },
            other => other,
        }
    }

    /// Whether it can serve.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready { .. })
    }
}

impl fmt::Display for GatewayHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { version } => write!(
                f,
                "ready, database connected, LiteLLM {}",
                version.as_deref().unwrap_or("of unknown version")
            ),
            Self::Live { reason } => write!(f, "answers, but is not ready: {reason}"),
            Self::Busy { reason } => write!(
                f,
                "busy: {reason}; if it is blocked, its journal says where: `litellm-units logs litellm`"
            ),
            Self::Down { reason } => write!(f, "does not answer: {reason}"),
        }
    }
}

/// The answer of `/health/readiness`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Readiness {
    db: Option<String>,
    litellm_version: Option<String>,
}

impl From<Readiness> for GatewayHealth {
    fn from(readiness: Readiness) -> Self {
        match readiness {
            Readiness {
                db: Some(db),
                litellm_version,
            } if db == "connected" => Self::Ready {
                version: litellm_version,
            },
            Readiness { db, .. } => Self::Live {
                reason: format!("database: {}", db.as_deref().unwrap_or("not mentioned")),
            },
        }
    }
}

impl GatewayHealth {
    /// Reads the answer of `/health/readiness`.
    #[must_use]
    pub fn of_answer(answer: &[u8]) -> Self {
        match serde_json::from_slice::<Readiness>(answer) {
            Ok(readiness) => readiness.into(),
            Err(error) => Self::Live {
                reason: format!("/health/readiness answers no JSON: {error}"),
            },
        }
    }
}

impl Client {
    /// Asks `/health/readiness`. Without a database LiteLLM says `healthy` all the same, so
    /// ready means that `db` is `connected`.
    pub async fn health(&self) -> GatewayHealth {
        let http = match self.http() {
            Ok(http) => http,
            Err(reason) => return GatewayHealth::Down { reason },
        };
        let answer = match http
            .get(format!("{}/health/readiness", self.base))
            .send()
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                return unanswered(
                    &error,
                    GatewayHealth::Down {
                        reason: innermost(&error),
                    },
                );
            }
        };
        let status = answer.status();
        if status == StatusCode::SERVICE_UNAVAILABLE && !is_json(&answer) {
            let reason = "more requests than LIMIT_CONCURRENCY allows".into();
            return GatewayHealth::Busy { reason };
        }
        if !status.is_success() {
            return GatewayHealth::Live {
                reason: format!("/health/readiness answers {status}"),
            };
        }
        match answer.json::<Readiness>().await {
            Ok(readiness) => readiness.into(),
            Err(error) => {
                let reason = format!("/health/readiness answers no JSON: {}", innermost(&error));
                unanswered(&error, GatewayHealth::Live { reason })
            }
        }
    }
}

/// LiteLLM answers in JSON, and uvicorn's limit of connections does not.
fn is_json(answer: &Response) -> bool {
    answer
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// A gateway under load answers late: that it does not says nothing about its database.
fn unanswered(error: &reqwest::Error, otherwise: GatewayHealth) -> GatewayHealth {
    if error.is_timeout() {
        let reason = "/health/readiness does not answer in time".into();
        return GatewayHealth::Busy { reason };
    }
    otherwise
}

/// reqwest's outer messages repeat the URL; the innermost says what happened.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_timeout() {
        "no answer in time".into()
    } else {
        cause.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::{Client, GatewayHealth};

    async fn health(answer: &str) -> GatewayHealth {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::at(address, Duration::from_secs(5)).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(client.health(), serve).0
    }

    #[tokio::test]
    async fn who_refuses_for_its_load_is_busy() {
        // uvicorn's, beyond LIMIT_CONCURRENCY.
        assert_eq!(
            health("HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 19\r\nconnection: close\r\n\r\nService Unavailable").await,
            GatewayHealth::Busy {
                reason: "more requests than LIMIT_CONCURRENCY allows".into()
            }
        );
        // LiteLLM's, without its database.
        assert_eq!(
            health("HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}").await,
            GatewayHealth::Live {
                reason: "/health/readiness answers 503 Service Unavailable".into()
            }
        );
    }
}

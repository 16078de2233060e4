//! The web interface, as a browser behind a reverse proxy sees it.

use reqwest::{StatusCode, Url, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::Client;
use super::health::innermost;
use super::keys::scrub;
use crate::error::{Failure, Result};

/// The name to log in with where none is set.
pub(crate) const DEFAULT_USERNAME: &str = "admin";

/// The pages that a browser may open first.
const PAGES: [&str; 5] = [
    "/ui",
    "/ui/",
    "/ui/login",
    "/sso/key/generate",
    "/fallback/login",
];

/// Whether the web interface lets this user in. `None` while LiteLLM refuses every login for some minutes, after failed ones
/// from the same address, which any user of this host can make.
pub(crate) async fn login(
    client: &Client,
    username: &str,
    password: &SecretString,
) -> Result<Option<bool>> {
    let answer = client
        .http()
        .map_err(Failure::new)?
        .post(format!("{}/v2/login", client.base))
        .json(&json!({ "username": username, "password": password.expose_secret() }))
        .send()
        .await
        .map_err(|error| unreachable(&error))?;
    match answer.status() {
        status if status.is_success() => Ok(Some(true)),
        StatusCode::UNAUTHORIZED => Ok(Some(false)),
        StatusCode::TOO_MANY_REQUESTS => Ok(None),
        status => {
            let words = answer.text().await.unwrap_or_default();
            Err(
                Failure::new(format!("the login answers {status}: {}", scrub(&words)))
                    .hint("see the gateway's log: `litellm-units logs litellm`")
                    .into(),
            )
        }
    }
}

/// Checks that the login page answers below `root` (`SERVER_ROOT_PATH`), and, where the interface is published at `public`,
/// that no redirect and no form leads from there to plain http.
pub(crate) async fn check_pages(client: &Client, root: &str, public: Option<&Url>) -> Result<()> {
    let http = client.browser(std::time::Duration::from_secs(30))?;
    for page in PAGES.map(|page| format!("{root}{page}")) {
        let mut request = http.get(format!("{}{page}", client.base));
        if let Some(authority) = public.and_then(authority) {
            request = request
                .header(header::HOST, authority)
                .header("X-Forwarded-Proto", "https")
                .header("X-Forwarded-For", "192.0.2.1");
        }
        let answer = request.send().await.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        let wrong = |problem: String| -> anyhow::Error {
            Failure::new(problem)
                .hint("see the gateway's log: `litellm-units logs litellm`")
                .into()
        };
        if status.is_redirection() {
            let place = answer
                .headers()
                .get(header::LOCATION)
                .and_then(|place| place.to_str().ok())
                .unwrap_or_default();
            if public.is_some() && place.starts_with("http:") {
                return Err(wrong(format!("{page} redirects to plain http: {place}")));
            }
        } else if !status.is_success() {
            return Err(wrong(format!("{page} answers {status}")));
        } else {
            let text = answer.text().await.map_err(|error| unreachable(&error))?;
            if public.is_some() && text.contains("action=\"http:") {
                return Err(wrong(format!("the form of {page} leads to plain http")));
            }
        }
    }
    Ok(())
}

/// Host and port of a URL, as a browser sends them.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn unreachable(error: &reqwest::Error) -> anyhow::Error {
    Failure::new(format!("the gateway does not answer: {}", innermost(error)))
        .hint("see what is running: `litellm-units status`")
        .into()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn answers_to_a_login() {
        for (status, accepted) in [
            ("200 OK", Some(true)),
            ("401 Unauthorized", Some(false)),
            ("429 Too Many Requests", None),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let client = Client::at(address, std::time::Duration::from_secs(5)).unwrap();
            let password = SecretString::from("p");
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (answer, ()) = tokio::join!(login(&client, "admin", &password), serve);
            assert_eq!(answer.unwrap(), accepted, "{status}");
        }
    }
}

//! The proxy for requests of this host to others: those of this program, and those of the Podman that it runs.

use reqwest::{ClientBuilder, NoProxy, Proxy};
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Failure, Result};
use crate::tls;

/// The variables that name a proxy, also in small letters.
pub(crate) const VARIABLES: [&str; 3] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
/// Whether a variable, also in small letters, is about a proxy.
pub(crate) fn is_variable(name: &str) -> bool {
    let all = VARIABLES.iter().chain([&"NO_PROXY"]);
    all.into_iter()
        .any(|other| name.eq_ignore_ascii_case(other))
}

/// Servers of a cloud that give its machines their credentials: no proxy reaches them.
const METADATA_SERVERS: [&str; 3] = [
    "169.254.0.0/16",
    "fd00:ec2::254",
    "metadata.google.internal",
];

/// The proxy that `.env` names; none if the environment of this process names one, which then holds.
#[derive(Clone, Debug, Default)]
pub struct OutgoingProxy {
    /// A URL, for requests by http.
    http: Option<SecretString>,
    /// A URL, for requests by https.
    https: Option<SecretString>,
    /// A list as in `NO_PROXY`.
    bypass: String,
}

impl OutgoingProxy {
    /// The proxies at these URLs, but not for the servers in `bypass`, which are separated by commas.
    pub(crate) fn new(
        http: Option<SecretString>,
        https: Option<SecretString>,
        bypass: &str,
    ) -> Self {
        let mut servers: Vec<&str> = { bypass.split(',') }
            .map(str::trim)
            .filter(|server| !server.is_empty())
            .collect();
        if servers.contains(&"*") {
            return Self::default();
        }
        servers.extend(METADATA_SERVERS);
        Self {
            http,
            https,
            bypass: servers.join(","),
        }
    }

    /// Whether the environment of this process names a proxy: reqwest and Podman read it themselves.
    pub(crate) fn is_in_environment() -> bool {
        std::env::vars_os().any(|(name, value)| {
            let is = |variable: &&str| name.eq_ignore_ascii_case(*variable);
            VARIABLES.iter().any(is) && !value.is_empty()
        })
    }

    /// Begins an HTTP client that uses it.
    ///
    /// # Errors
    /// When a URL is none. The message is without it, since it may hold a password.
    pub(crate) fn client(&self) -> Result<ClientBuilder> {
        tls::install();
        let mut client = reqwest::Client::builder();
        for (url, https) in [(&self.http, false), (&self.https, true)] {
            let Some(url) = url.as_ref().filter(|url| is_http(url)) else {
                continue;
            };
            let proxy = if https {
                Proxy::https(url.expose_secret())
            } else {
                Proxy::http(url.expose_secret())
            };
            let proxy = proxy.map_err(|_| {
                Failure::config("the proxy that .env names can't be used: it is no URL")
                    .hint("write it as HTTPS_PROXY=http://HOST:PORT")
            })?;
            client = client.proxy(proxy.no_proxy(NoProxy::from_string(&self.bypass)));
        }
        Ok(client)
    }

    /// The options of an object store that is reached by https, or else by http.
    pub(crate) fn store_options(&self, https: bool) -> Vec<(&'static str, &str)> {
        let url = if https { &self.https } else { &self.http };
        match url.as_ref().filter(|url| is_http(url)) {
            Some(url) => vec![
                ("proxy_url", url.expose_secret()),
                ("proxy_excludes", &self.bypass),
            ],
            None => Vec::new(),
        }
    }

    /// The environment of a program that is to use it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, &str)> {
        let proxies = [("HTTP_PROXY", &self.http), ("HTTPS_PROXY", &self.https)];
        let mut variables: Vec<_> = { proxies.into_iter() }
            .filter_map(|(name, url)| Some((name, url.as_ref()?.expose_secret())))
            .collect();
        if !variables.is_empty() {
            variables.push(("NO_PROXY", &self.bypass));
        }
        variables
    }
}

/// Whether this program can use the proxy: it has no SOCKS, which Podman has.
fn is_http(url: &SecretString) -> bool {
    let scheme = url.expose_secret().split_once("://");
    scheme.is_none_or(|(scheme, _)| {
        ["http", "https"]
            .iter()
            .any(|http| scheme.eq_ignore_ascii_case(http))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every request. Returns the first line of each that arrives until `requests` ends.
    async fn arriving(
        listener: &Arc<TcpListener>,
        requests: impl Future<Output = ()>,
    ) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (listener, seen) = (Arc::clone(listener), Arc::clone(&lines));
        let server = tokio::spawn(async move {
            loop {
                let mut stream = BufReader::new(listener.accept().await.unwrap().0);
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                seen.lock().unwrap().push(line.trim_end().to_owned());
                let answer = b"HTTP/1.1 403 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        requests.await;
        server.abort();
        std::mem::take(&mut *lines.lock().unwrap())
    }

    async fn get(proxy: &OutgoingProxy, url: &str) {
        let client = proxy.client().unwrap().timeout(Duration::from_secs(5));
        // No answer has the status of a success.
        let _ = client.build().unwrap().get(url).send().await;
    }

    #[tokio::test]
    async fn requests_go_through_it() {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let url = || Some(format!("http://user:pass@{address}").into());
        let proxy = OutgoingProxy::new(url(), url(), "127.0.0.1, .local.invalid");
        let requests = async {
            get(&proxy, "http://litellm.invalid/a").await;
            get(&proxy, "https://litellm.invalid/b").await;
            get(&proxy, &format!("http://{address}/c")).await;
            get(&proxy, "http://a.local.invalid/d").await;
        };
        assert_eq!(
            arriving(&listener, requests).await,
            [
                "GET http://litellm.invalid/a HTTP/1.1",
                "CONNECT litellm.invalid:443 HTTP/1.1",
                "GET /c HTTP/1.1",
            ]
        );
        // Only one of both.
        let proxy = OutgoingProxy::new(None, url(), "");
        let requests = get(&proxy, "http://litellm.invalid/a");
        assert_eq!(arriving(&listener, requests).await, [""; 0]);
    }

    #[test]
    fn programs_get_it() {
        assert_eq!(OutgoingProxy::default().environment(), []);
        let proxy = OutgoingProxy::new(None, Some("socks5://proxy:1080".into()), ".a, b");
        let bypass = ".a,b,169.254.0.0/16,fd00:ec2::254,metadata.google.internal";
        assert_eq!(
            proxy.environment(),
            [("HTTPS_PROXY", "socks5://proxy:1080"), ("NO_PROXY", bypass)]
        );
        // This program has no SOCKS.
        assert_eq!(proxy.store_options(true), []);
        let proxy = OutgoingProxy::new(None, Some("proxy:3128".into()), ".a, b");
        assert_eq!(
            proxy.store_options(true),
            [("proxy_url", "proxy:3128"), ("proxy_excludes", bypass)]
        );
        assert_eq!(proxy.store_options(false), []);
    }

    #[test]
    fn no_message_has_its_password() {
        let proxy = OutgoingProxy::new(Some("http://user:hunter2@:x".into()), None, "");
        let said = format!("{proxy:?} {:?}", proxy.client().map(drop).unwrap_err());
        assert!(!said.contains("hunter2"), "{said}");
    }
}

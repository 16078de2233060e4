//! The entrance, which publishes the gateway by https: `PUBLIC_URL` in `.env`, and the files in `entrance/`.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::service::Service;

/// The configuration of Caddy, beside the unit.
pub const CONFIGURATION: &str = "litellm-entrance.caddy";
/// The operator's own certificate, with its chain.
pub const CERTIFICATE: &str = "certificate.pem";
/// Its key.
pub const KEY: &str = "key.pem";
/// Lines of the operator's own.
const SITE: &str = "site.caddy";
/// The port of https.
const HTTPS: u16 = 443;

/// Paths of inference, with or without `v1/` before them. Everything that is not named is management.
const INFERENCE: [&str; 25] = [
    "chat/completions",
    "completions",
    "embeddings",
    "models",
    "moderations",
    "rerank",
    "responses",
    "messages",
    "images",
    "audio",
    "videos",
    "files",
    "batches",
    "fine_tuning",
    "vector_stores",
    "assistants",
    "threads",
    "containers",
    "interactions",
    "realtime",
    "live",
    "rag",
    "search",
    "ocr",
    "engines",
];
/// Paths of inference that are nothing else with `v1/` before them: LiteLLM's other forms of the above, agents, MCP, and
/// what LiteLLM passes on to providers. It asks for a key at each of its own, but not always at those of the configuration
/// (`pass_through_endpoints`) and of MCP: docs/reverse-proxy.md.
const INFERENCE_AT_THE_ROOT: [&str; 24] = [
    "v1beta",
    "v2/rerank",
    "cursor/chat/completions",
    "utils/token_counter",
    "a2a",
    "mcp",
    "anthropic",
    "assemblyai",
    "eu.assemblyai",
    "azure",
    "azure_ai",
    "bedrock",
    "cohere",
    "deepgram",
    "gemini",
    "mistral",
    "nvidia_nim",
    "openai",
    "openai_passthrough",
    "openrouter",
    "vertex-ai",
    "vertex_ai",
    "vllm",
    "watsonx",
];

/// Where the gateway is published: `PUBLIC_URL` and `PUBLIC_ADMIN_FROM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// The host name.
    pub host: String,
    /// Where Caddy listens.
    pub port: u16,
    /// From which networks everything may be called, and not only inference.
    pub administrators: Vec<String>,
    /// `SERVER_ROOT_PATH`, which LiteLLM also answers without.
    pub root: String,
}

impl Entrance {
    /// Reads a `PUBLIC_URL`.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence, and the next step.
    pub fn parse(url: &str) -> Result<Self, (&'static str, &'static str)> {
        const HINT: &str = "write it as https://llm.example.com or https://llm.example.com:8443";
        let Some(rest) = url.strip_prefix("https://") else {
            return Err(("does not begin with https://", HINT));
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err((
                "has a path, and the gateway is published without one",
                "remove the path; `SERVER_ROOT_PATH=/llm` adds one",
            ));
        }
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().unwrap_or_default()),
            None => (authority, HTTPS),
        };
        let is_label = |label: &str| {
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            (1..64).contains(&label.len())
                && label.chars().all(is_plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_address = || host.parse::<IpAddr>().is_ok();
        if port == 0 || host.len() > 253 || !host.split('.').all(is_label) || is_address() {
            return Err((
                "names no host in lowercase letters, or has a port that is none",
                HINT,
            ));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            administrators: vec!["127.0.0.0/8".into(), "::1".into()],
            root: String::new(),
        })
    }

    /// Whether the root is a path of inference without it: then everything below it would be open. The beginning of such a
    /// path, as /v1, is none: what is behind it is inference without it as well.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        let root = self.root.to_ascii_lowercase();
        let parts = root.split('/').filter(|part| !["", "."].contains(part));
        let root = parts.collect::<Vec<_>>().join("/");
        root.split('/').next() == Some("health") || self.opens(&root)
    }

    /// Whether everyone may call this path of the gateway, as far as the entrance is concerned.
    #[must_use]
    pub fn opens(&self, path: &str) -> bool {
        let is_below = |path: &str, begin: &str| {
            path.strip_prefix(begin)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let path = path.trim_start_matches('/');
        let without_version = path.strip_prefix("v1/").unwrap_or(path);
        INFERENCE
            .iter()
            .any(|begin| is_below(without_version, begin))
            || INFERENCE_AT_THE_ROOT
                .iter()
                .any(|begin| is_below(path, begin))
    }

    /// The paths that everyone with a key may call, as a part of a regular expression.
    #[must_use]
    pub fn inference(&self) -> String {
        let root = INFERENCE_AT_THE_ROOT.join("|").replace('.', r"\.");
        format!("((v1/)?({})|{root})", INFERENCE.join("|"))
    }

    /// The root path as the beginning of a regular expression.
    #[must_use]
    pub fn root_pattern(&self) -> String {
        match &*self.root {
            "" => String::new(),
            root => format!("({})?", root.replace('.', r"\.")),
        }
    }

    /// Adds the networks of a `PUBLIC_ADMIN_FROM` to this host.
    ///
    /// # Errors
    /// The word that is no network.
    pub fn admit<'a>(&mut self, networks: &'a str) -> Result<(), &'a str> {
        let words = networks.split([',', ' ']).filter(|word| !word.is_empty());
        let own = words.map(|word| is_network(word).then(|| word.to_owned()).ok_or(word));
        let own: Vec<String> = own.collect::<Result<_, _>>()?;
        self.administrators.extend(own);
        Ok(())
    }

    /// What `PROXY_BASE_URL` is without a line of its own.
    #[must_use]
    pub fn url(&self) -> String {
        match self.port {
            HTTPS => format!("https://{}", self.host),
            port => format!("https://{}:{port}", self.host),
        }
    }

    /// As Caddy names it.
    #[must_use]
    pub fn site(&self) -> String {
        match self.port {
            HTTPS => self.host.clone(),
            _ => self.url(),
        }
    }

    /// The TCP ports on which it listens: at the usual one, also that of http, which leads to it.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        match self.port {
            HTTPS => vec![80, HTTPS],
            port => vec![port],
        }
    }

    /// Whether an authority can prove by connections to it that the name is that of this host.
    #[must_use]
    pub fn is_provable(&self) -> bool {
        self.port == HTTPS
    }
}

fn is_network(word: &str) -> bool {
    let (address, length) = match word.split_once('/') {
        Some((address, length)) => (address, length.parse().ok()),
        None => (word, Some(0)),
    };
    match (address.parse(), length) {
        (Ok(IpAddr::V4(_)), Some(length)) => length <= 32_u8,
        (Ok(IpAddr::V6(_)), Some(length)) => length <= 128,
        _ => false,
    }
}

/// What `entrance/` has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Whether it has a certificate. Otherwise Caddy gets one from a public authority.
    pub certificate: bool,
    /// The lines of the operator's own.
    pub site: String,
}

impl Files {
    /// Reads them.
    pub(crate) fn load(paths: &Paths) -> Result<Self> {
        let path = paths.entrance().join(SITE);
        let site = files::read_existing(&path)?.unwrap_or_default();
        Ok(Self {
            certificate: [CERTIFICATE, KEY]
                .iter()
                .any(|name| paths.entrance().join(name).exists()),
            site: String::from_utf8(site)
                .with_context(|| format!("{} is not valid UTF-8", path.display()))?,
        })
    }
}

/// Refuses a certificate without a key, a key that others can read, and a port at which no authority would look.
pub(crate) fn refuse(paths: &Paths, entrance: &Entrance) -> Result<()> {
    let files = Files::load(paths)?;
    let [certificate, key] = [CERTIFICATE, KEY].map(|name| paths.entrance().join(name));
    if !files.certificate {
        if entrance.is_provable() || !files.site.trim().is_empty() {
            return Ok(());
        }
        return Err(Failure::config(format!(
            "{}: PUBLIC_URL has port {}, for which no public authority gives a certificate",
            paths.env_file().display(),
            entrance.port
        ))
        .hint(format!(
            "put a certificate into {} and its key into {}",
            certificate.display(),
            key.display()
        ))
        .into());
    }
    for path in [&certificate, &key] {
        if !path.exists() {
            return Err(Failure::config(format!("{} is missing", path.display()))
                .hint("put the certificate and its key there, or remove both")
                .into());
        }
    }
    let mode = std::fs::metadata(&key)
        .path_context("can't examine", &key)?
        .mode();
    if mode & 0o077 != 0 {
        let word = crate::output::shell_word(&key);
        return Err(
            Failure::config(format!("others can read {}", key.display()))
                .hint(format!("`chmod 600 {word}`"))
                .into(),
        );
    }
    Ok(())
}

/// The service, if its unit is installed.
pub(crate) fn installed(paths: &Paths) -> Option<Service> {
    let unit = paths.units.join(Service::Entrance.unit());
    unit.exists().then_some(Service::Entrance)
}

/// What the entrance is started with.
pub(crate) fn inputs(paths: &Paths) -> Vec<PathBuf> {
    let own = [CERTIFICATE, KEY].map(|name| paths.entrance().join(name));
    let mut inputs = vec![paths.units.join(CONFIGURATION)];
    inputs.extend(own.into_iter().filter(|path| path.exists()));
    inputs
}

/// Copies [`inputs`] for the user that Caddy runs as.
pub(crate) fn provide(paths: &Paths) -> Result<()> {
    let directory = paths.runtime.join("litellm-entrance");
    inputs(paths)
        .iter()
        .try_for_each(|path| files::copy_for_owner(path, &directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (url, site, ports) in [
            ("https://llm.example.com", "llm.example.com", vec![80, 443]),
            (
                "https://llm.example.com:443/",
                "llm.example.com",
                vec![80, 443],
            ),
            ("https://llm:8443", "https://llm:8443", vec![8443]),
        ] {
            let entrance = Entrance::parse(url).unwrap();
            assert_eq!((&*entrance.site(), entrance.ports()), (site, ports));
            assert_eq!(entrance.is_provable(), entrance.port == 443);
        }
        let entrance = Entrance::parse("https://llm.example.com:443/").unwrap();
        assert_eq!(entrance.url(), "https://llm.example.com");
        for url in [
            "http://llm.example.com",
            "llm.example.com",
            "https://",
            "https://llm.example.com/gateway",
            "https://llm.example.com?a",
            "https://me@llm.example.com",
            "https://LLM.example.com",
            "https://llm..example.com",
            "https://-llm.example.com",
            "https://llm.example.com:0",
            "https://llm.example.com:65536",
            "https://192.0.2.7",
            "https://[2001:db8::1]",
            "https://llm.example.com {",
        ] {
            assert!(Entrance::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_root_that_begins_as_inference_is_ambiguous() {
        let mut entrance = Entrance::parse("https://llm.example.com").unwrap();
        for (root, expected) in [
            ("", false),
            ("/llm", false),
            ("/llm/v1", false),
            ("/v1", false),
            ("/v2", false),
            ("/utils", false),
            ("/cursor", false),
            ("/chat", false),
            ("/Chat/Completions", true),
            ("/v1//./models/x", true),
            ("/v2/rerank", true),
            ("/health", true),
            ("/openai", true),
            ("/mcp", true),
        ] {
            entrance.root = root.to_owned();
            assert_eq!(entrance.is_ambiguous(), expected, "{root}");
        }
        // What is behind the beginning of a path is no management.
        for path in INFERENCE.iter().chain(&INFERENCE_AT_THE_ROOT) {
            for (at, _) in path.match_indices('/') {
                let rest = &path[at + 1..];
                assert!(entrance.opens(rest) || rest == "token_counter", "{path}");
            }
        }
    }

    /// That for Caddy is compared with the rendered file.
    #[test]
    fn the_example_for_nginx_names_the_same_paths() {
        let nginx = include_str!("../../packaging/examples/nginx.conf");
        let words = |begin: &str| -> Vec<String> {
            let lines = nginx.lines().filter_map(|line| {
                let rest = line.trim().strip_prefix(begin)?;
                rest.strip_suffix(")(/|$) 1;")
            });
            let words = lines.flat_map(|line| line.split('|'));
            words.map(|word| word.replace('\\', "")).collect()
        };
        assert_eq!(words("~^/(v1/)?("), INFERENCE);
        assert_eq!(words("~^/(?:"), INFERENCE_AT_THE_ROOT);
    }

    #[test]
    fn networks() {
        let mut entrance = Entrance::parse("https://llm.example.com").unwrap();
        assert_eq!(entrance.administrators, ["127.0.0.0/8", "::1"]);
        let networks = "10.0.0.0/8,192.0.2.7, fd00::/8 ::1/128";
        assert_eq!(entrance.admit(networks), Ok(()));
        assert_eq!(
            entrance.administrators,
            [
                "127.0.0.0/8",
                "::1",
                "10.0.0.0/8",
                "192.0.2.7",
                "fd00::/8",
                "::1/128"
            ]
        );
        for word in [
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "example.com",
            "10.0.0.0/",
            "0.0.0.0/0}",
        ] {
            assert_eq!(entrance.admit(word), Err(word));
        }
    }
}

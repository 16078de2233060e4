//! An image's signatures in a registry (the OCI distribution specification, and cosign's).
//!
//! Podman has no command for that. Registries, mirrors, certificates and logins are those that
//! Podman uses.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::signature::{Attached, Simple};
use crate::error::{PathContext, Result};
use crate::host::outgoing_proxy::OutgoingProxy;
use crate::host::registries::Endpoint;
use crate::random;

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// The layers of cosign's signatures (before cosign 3).
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Sigstore's bundles (cosign 3).
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// The maximum size of an answer: more than any manifest or signature has.
const LARGEST: usize = 4 << 20;
/// The maximum number of signatures that are read of one image.
const MOST_SIGNATURES: usize = 50;

/// Where Podman keeps certificates of registries; the first one applies.
const CERTIFICATES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// An image that a registry has.
#[derive(Debug)]
pub(super) struct Published {
    /// The manifest's digest.
    pub digest: String,
    /// If it is an index, the digests of the images that it lists, one for each platform.
    pub platforms: Vec<String>,
}

/// A repository in a registry.
#[derive(Debug)]
pub(super) struct Repository {
    http: Client,
    base: Url,
    host: String,
    path: String,
    authorization: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct ImageManifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Repository {
    /// The clients to try for the repository at this place, in order. If `registries.conf` calls
    /// the registry insecure, also one that does not verify its certificate, and one without TLS.
    pub(crate) fn at(endpoint: &Endpoint, proxy: &OutgoingProxy) -> Result<Vec<Self>> {
        let schemes: &[&str] = if endpoint.insecure {
            &["https", "http"]
        } else {
            &["https"]
        };
        schemes
            .iter()
            .map(|scheme| Self::by(scheme, endpoint, proxy))
            .collect()
    }

    fn by(scheme: &str, endpoint: &Endpoint, proxy: &OutgoingProxy) -> Result<Self> {
        let (host, path) = endpoint
            .location
            .split_once('/')
            .with_context(|| format!("{:?} is not a registry and a path", endpoint.location))?;
        // As Podman does with this name.
        let server = if host == "docker.io" {
            "registry-1.docker.io"
        } else {
            host
        };
        let mut http = { proxy.client()? }
            .user_agent(concat!("litellm-units/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10));
        for certificate in certificates(host)? {
            http = http.add_root_certificate(certificate);
        }
        if endpoint.insecure {
            http = http.danger_accept_invalid_certs(true);
        }
        Ok(Self {
            http: http.build().context("can't set up the HTTP client")?,
            base: Url::parse(&format!("{scheme}://{server}/v2/{path}/"))
                .with_context(|| format!("{:?} is not a registry", endpoint.location))?,
            host: host.to_owned(),
            path: path.to_owned(),
            authorization: None,
        })
    }

    /// The image of a tag or a digest; `None` if the registry does not have it.
    pub(super) async fn published(&mut self, reference: &str) -> Result<Option<Published>> {
        let accept = [INDEXES, MANIFESTS].concat().join(", ");
        let Some(body) = self.get(&format!("manifests/{reference}"), &accept).await? else {
            return Ok(None);
        };
        let digest = digest_of(&body);
        if reference.starts_with("sha256:") && reference != digest {
            bail!("{} answers with {digest} for {reference}", self.host);
        }
        let index: Index = serde_json::from_slice(&body)
            .with_context(|| format!("{} did not answer with a manifest", self.host))?;
        let manifests = index.manifests.into_iter();
        Ok(Some(Published {
            digest,
            platforms: manifests.map(|found| found.digest).collect(),
        }))
    }

    /// The signatures of the image with this digest.
    pub(super) async fn signatures(&mut self, digest: &str) -> Result<Attached> {
        let mut attached = Attached::default();
        let tag = digest.replace(':', "-");
        if let Some(body) = self
            .get(&format!("manifests/{tag}.sig"), &MANIFESTS.join(", "))
            .await?
        {
            for layer in layers(&body, &self.host)? {
                if layer.media_type == SIMPLE_SIGNING {
                    let payload = self.blob(&layer.digest).await?;
                    attached.simple.push(Simple {
                        payload,
                        annotations: layer.annotations,
                    });
                }
            }
        }
        for digest in self.referrers(digest, &tag).await? {
            let Some(body) = self
                .get(&format!("manifests/{digest}"), &MANIFESTS.join(", "))
                .await?
            else {
                continue;
            };
            expect(&body, &digest)?;
            for layer in layers(&body, &self.host)? {
                if layer.media_type.starts_with(BUNDLE) {
                    let bundle = self.blob(&layer.digest).await?;
                    attached
                        .bundles
                        .push(String::from_utf8(bundle).context("a bundle is not valid UTF-8")?);
                }
            }
        }
        Ok(attached)
    }

    /// Digests of the manifests with Sigstore's bundles that refer to this image. A registry
    /// without the referrers API keeps their list under a tag.
    async fn referrers(&mut self, digest: &str, tag: &str) -> Result<Vec<String>> {
        let accept = INDEXES[0];
        let body = match self.get(&format!("referrers/{digest}"), accept).await? {
            Some(body) => Some(body),
            None => self.get(&format!("manifests/{tag}"), accept).await?,
        };
        let Some(body) = body else {
            return Ok(Vec::new());
        };
        let index: Index = serde_json::from_slice(&body)
            .with_context(|| format!("{} did not answer with an index", self.host))?;
        Ok(index
            .manifests
            .into_iter()
            // Some tools leave the type out of the list.
            .filter(|found| {
                found.artifact_type.is_empty() || found.artifact_type.starts_with(BUNDLE)
            })
            .map(|found| found.digest)
            .filter(|digest| crate::image::is_digest(digest))
            .take(MOST_SIGNATURES)
            .collect())
    }

    async fn blob(&mut self, digest: &str) -> Result<Vec<u8>> {
        if !crate::image::is_digest(digest) {
            bail!("{} names a signature by {digest:?}", self.host);
        }
        let body = self
            .get(&format!("blobs/{digest}"), "*/*")
            .await?
            .with_context(|| format!("{} lacks the signature {digest}", self.host))?;
        expect(&body, digest)?;
        Ok(body)
    }

    /// The body; `None` if there is none.
    async fn get(&mut self, what: &str, accept: &str) -> Result<Option<Vec<u8>>> {
        let url = self.base.join(what).context("a damaged digest")?;
        let mut response = self.send(&url, accept).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.authorization = self.authorize(&response).await?;
            response = self.send(&url, accept).await?;
        }
        match response.status() {
            status if status.is_success() => Ok(Some(self.body(response).await?)),
            // The registry does not have it, or does not know this kind of request.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            status => bail!("{} answers {status} for {}", self.host, url.path()),
        }
    }

    async fn send(&self, url: &Url, accept: &str) -> Result<Response> {
        let mut request = self
            .http
            .get(url.clone())
            .timeout(Duration::from_secs(30))
            .header(ACCEPT, accept);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        request
            .send()
            .await
            .map_err(|error| anyhow!("can't reach {}: {}", self.host, causes(&error)))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        let broken = |error: reqwest::Error| {
            anyhow!(
                "the answer of {} is incomplete: {}",
                self.host,
                causes(&error)
            )
        };
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > LARGEST {
                bail!("{} answers with more than {LARGEST} bytes", self.host);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The authorization that the registry asks for: a token of its own, or the login itself.
    async fn authorize(&self, response: &Response) -> Result<Option<HeaderValue>> {
        let login = login(&self.host, &self.path)?;
        let wanted = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let challenges = http_auth::parse_challenges(wanted).map_err(|error| {
            anyhow!("{} asks for an unknown kind of login: {error:?}", self.host)
        })?;
        let Some(bearer) = challenges
            .iter()
            .find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer"))
        else {
            return Ok(login);
        };
        let parameter = |name: &str| {
            bearer
                .params
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_unescaped())
        };
        let realm = parameter("realm").unwrap_or_default();
        let mut url = Url::parse(&realm)
            .with_context(|| format!("{} names the token server {realm:?}", self.host))?;
        // A login for a registry with TLS is not sent without TLS.
        if self.base.scheme() == "https" && url.scheme() != "https" {
            bail!(
                "{} names the token server {realm:?}, which is not https",
                self.host
            );
        }
        if let Some(service) = parameter("service") {
            url.query_pairs_mut().append_pair("service", &service);
        }
        url.query_pairs_mut()
            .append_pair("scope", &format!("repository:{}:pull", self.path));
        let mut request = self.http.get(url).timeout(Duration::from_secs(30));
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login);
        }
        let response = request
            .send()
            .await
            .map_err(|error| anyhow!("can't get a token for {}: {}", self.host, causes(&error)))?;
        if !response.status().is_success() {
            bail!("{} gives no token: {}", self.host, response.status());
        }
        let token: Token = serde_json::from_slice(&self.body(response).await?)
            .with_context(|| format!("{} gives no token", self.host))?;
        let token = token.token.or(token.access_token).unwrap_or_default();
        sensitive(&format!("Bearer {token}"))
            .map(Some)
            .with_context(|| format!("{} gives a damaged token", self.host))
    }
}

fn digest_of(bytes: &[u8]) -> String {
    crate::image::DIGEST_PREFIX.to_owned() + &random::hex(&Sha256::digest(bytes))
}

fn expect(bytes: &[u8], digest: &str) -> Result<()> {
    let found = digest_of(bytes);
    if found == digest {
        return Ok(());
    }
    bail!("the registry answers with {found} for {digest}")
}

fn layers(body: &[u8], host: &str) -> Result<Vec<Descriptor>> {
    let manifest: ImageManifest = serde_json::from_slice(body)
        .with_context(|| format!("{host} did not answer with a manifest"))?;
    Ok(manifest.layers.into_iter().take(MOST_SIGNATURES).collect())
}

/// Certificates of authorities that Podman trusts for this registry, too.
fn certificates(host: &str) -> Result<Vec<reqwest::Certificate>> {
    let mut found = Vec::new();
    for directory in CERTIFICATES {
        let Ok(entries) = std::fs::read_dir(PathBuf::from(directory).join(host)) else {
            continue;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_some_and(|extension| extension == "crt") {
                let pem = std::fs::read(&path).path_context("can't read", &path)?;
                found.extend(
                    reqwest::Certificate::from_pem_bundle(&pem)
                        .with_context(|| format!("{} has no certificate", path.display()))?,
                );
            }
        }
        break;
    }
    Ok(found)
}

/// The files in which `podman login` stores logins; the first that has the registry applies.
fn login_files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME");
    let runtime = if nix::unistd::geteuid().is_root() {
        Some(PathBuf::from("/run/containers/0"))
    } else {
        variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers"))
    };
    let configuration =
        variable("XDG_CONFIG_HOME").or(home.as_ref().map(|home| home.join(".config")));
    [
        runtime.map(|directory| directory.join("auth.json")),
        configuration.map(|directory| directory.join("containers/auth.json")),
        home.map(|home| home.join(".docker/config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The login that Podman would use; `None` if it would use none.
fn login(host: &str, path: &str) -> Result<Option<HeaderValue>> {
    for file in login_files() {
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).path_context("can't read", &file);
            }
        };
        // Not serde's own message: it may quote from the file.
        let logins: Value = serde_json::from_str(&text).map_err(|error| {
            anyhow!("{}, line {}: not valid JSON", file.display(), error.line())
        })?;
        if let Some(encoded) = login_for(&logins, host, path) {
            return sensitive(&format!("Basic {encoded}"))
                .map(Some)
                .with_context(|| format!("{} has a damaged login", file.display()));
        }
    }
    Ok(None)
}

/// The login of the longest name that covers the repository.
fn login_for<'a>(logins: &'a Value, host: &str, path: &str) -> Option<&'a str> {
    let full = format!("{host}/{path}");
    let mut name = full.as_str();
    loop {
        if let Some(encoded) = logins["auths"][name]["auth"].as_str()
            && !encoded.is_empty()
        {
            return Some(encoded);
        }
        name = name.rsplit_once('/')?.0;
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// reqwest's own message leaves out the causes.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // Writing to a string does not fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_longest_login_counts() {
        let logins = json!({"auths": {
            "ghcr.io": {"auth": "aG9zdA=="},
            "ghcr.io/berriai": {"auth": "cGF0aA=="},
            "quay.io": {},
        }});
        for (host, path, login) in [
            ("ghcr.io", "berriai/litellm", Some("cGF0aA==")),
            ("ghcr.io", "other/image", Some("aG9zdA==")),
            ("quay.io", "berriai/litellm", None),
            ("127.0.0.1:5000", "berriai/litellm", None),
        ] {
            assert_eq!(login_for(&logins, host, path), login, "{host}/{path}");
        }
    }
}

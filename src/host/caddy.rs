//! Caddy, which is a package of the host: its judgement of a configuration, and the certificate that it serves.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;

use crate::error::{Failure, Result};

/// Where systemd looks for a program that a unit names without a directory.
const PLACES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
/// Timeout of its judgement.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Refuses a host without Caddy, and a configuration that it does not accept. `directory` has the files that the
/// configuration names.
pub(crate) async fn refuse(configuration: &str, directory: &Path) -> Result<()> {
    let mut places = PLACES.iter().map(|place| Path::new(place).join("caddy"));
    let Some(program) = places.find(|path| path.exists()) else {
        return Err(Failure::new("Caddy, which PUBLIC_URL needs, is not installed")
            .hint("as root: `apt install caddy && systemctl disable --now caddy`, or `dnf install caddy`; the service of the package would take the ports")
            .into());
    };
    let home = tempfile::tempdir().context("can't write the configuration for Caddy's check")?;
    let file = home.path().join("Caddyfile");
    std::fs::write(&file, configuration)
        .context("can't write the configuration for Caddy's check")?;
    let mut check = tokio::process::Command::new(program);
    check
        .args(["validate", "--adapter", "caddyfile", "--config"])
        .arg(&file)
        .env("RUNTIME_DIRECTORY", directory)
        .env("XDG_DATA_HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, check.output())
        .await
        .context("Caddy's check of its configuration does not end")?
        .context("can't run caddy")?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let line = words.trim().lines().last().unwrap_or_default();
    Err(Failure::config(format!(
        "Caddy refuses the configuration of the entrance: {}",
        line.trim_start_matches("Error: ")
    ))
    .hint(format!(
        "correct site.caddy, or the certificate and its key, in {}",
        directory.display()
    ))
    .into())
}

/// How long a certificate is valid, and until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Validity {
    pub(crate) lifetime: Duration,
    pub(crate) end: jiff::Timestamp,
}

/// The validity of the certificate that this host serves under a URL. `None` in a program without TLS.
///
/// # Errors
/// When nothing answers there, or without a certificate.
#[cfg(feature = "tls")]
pub(crate) async fn served(url: &str, host: &str, port: u16) -> Result<Option<Validity>> {
    use x509_cert::der::Decode as _;

    crate::tls::install();
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .resolve(host, ([127, 0, 0, 1], port).into())
        // Who issued it is for the clients to judge.
        .tls_danger_accept_invalid_certs(true)
        .tls_info(true)
        .build()?;
    let url = format!("{url}/.well-known/litellm-units");
    let answer = client.get(url).send().await?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>();
    let bytes = info
        .and_then(reqwest::tls::TlsInfo::peer_certificate)
        .context("it has no certificate")?;
    let certificate =
        x509_cert::Certificate::from_der(bytes).context("can't read its certificate")?;
    let validity = certificate.tbs_certificate.validity;
    let [begin, end] =
        [validity.not_before, validity.not_after].map(x509_cert::time::Time::to_unix_duration);
    Ok(Some(Validity {
        lifetime: end.saturating_sub(begin),
        end: jiff::Timestamp::UNIX_EPOCH
            .checked_add(end)
            .context("can't read the time in its certificate")?,
    }))
}

#[cfg(not(feature = "tls"))]
#[expect(clippy::unused_async, reason = "as the one with TLS")]
pub(crate) async fn served(_: &str, _: &str, _: u16) -> Result<Option<Validity>> {
    Ok(None)
}

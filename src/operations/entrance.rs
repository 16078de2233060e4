//! What keeps the entrance from starting, found before anything is begun, and the certificate that it serves.

use std::time::Duration;

use serde::Serialize;

use super::install::Prepared;
use super::stack::address;
use crate::deployment::entrance;
use crate::deployment::listen::ListenAddress;
use crate::deployment::settings::Settings;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::caddy;
use crate::host::paths::Scope;
use crate::service::Service;

/// The unit of Caddy's own package.
const PACKAGED: &str = "caddy.service";

/// Timeout of its answer on this host.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The certificate of the public address.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CertificateReport {
    /// Null if nothing answers.
    pub(crate) expires: Option<jiff::Timestamp>,
    /// Why nothing answers.
    pub(crate) error: Option<String>,
    /// From its beginning to its end.
    #[serde(skip)]
    pub(crate) lifetime: Duration,
}

impl CertificateReport {
    /// Asks the entrance on this host. `None` without `PUBLIC_URL`, and while the entrance is not active.
    pub(crate) async fn of(host: &Host, settings: &Settings) -> Option<Self> {
        let entrance = settings.entrance.as_ref()?;
        let systemd = host.systemd().await.ok()?;
        let unit = systemd.unit(Service::Entrance.unit()).await.ok()?;
        if !unit.is_active() {
            return None;
        }
        let url = entrance.url();
        let served = caddy::served(&url, &entrance.host, entrance.port);
        let error = match tokio::time::timeout(TIMEOUT, served).await {
            Ok(Ok(validity)) => {
                let validity = validity?;
                return Some(Self {
                    expires: Some(validity.end),
                    error: None,
                    lifetime: validity.lifetime,
                });
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {} s", TIMEOUT.as_secs()),
        };
        Some(Self {
            expires: None,
            error: Some(error),
            lifetime: Duration::ZERO,
        })
    }
}

/// Refuses an entrance that could not start. Only before an operator's own change: nothing else must fail for it.
pub(crate) async fn refuse(host: &Host, prepared: &Prepared) -> Result<()> {
    let settings = prepared.settings();
    let Some(entrance) = &settings.entrance else {
        return Ok(());
    };
    let own = settings.listen.own();
    let is_closed = matches!(own, ListenAddress::Unix(_)) && settings.listen.group.is_none();
    if is_closed && host.scope() == Scope::System {
        return Err(Failure::config(format!(
            "{}: the entrance of PUBLIC_URL runs as a user of its own, which can't connect to {own}",
            host.paths.env_file().display()
        ))
        .hint("add 127.0.0.1:24157 to LISTEN, or add LISTEN_GROUP with a group that the entrance gets")
        .into());
    }
    entrance::refuse(&host.paths, entrance)?;
    let mut files = prepared.files.iter();
    if let Some(file) = files.find(|file| file.name == entrance::CONFIGURATION) {
        caddy::refuse(&file.text, &host.paths.entrance()).await?;
    }
    let systemd = host.systemd().await?;
    if host.scope() == Scope::System {
        let packaged = systemd.unit(PACKAGED).await?;
        if packaged.is_active() || packaged.file_state == "enabled" {
            return Err(Failure::new(format!(
                "{PACKAGED} of Caddy's package would take the ports that PUBLIC_URL needs"
            ))
            .hint(format!("`sudo systemctl disable --now {PACKAGED}`"))
            .into());
        }
    }
    if systemd.unit(Service::Entrance.unit()).await?.is_stopped() {
        address::refuse_ports(&host.paths, &entrance.ports())?;
    }
    Ok(())
}

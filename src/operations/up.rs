//! From whatever there is to a gateway that serves.

use std::time::Duration;

use super::install::{self, Prepared, ReleaseTarget};
use super::{edits, stack, upgrade};
use crate::error::Result;
use crate::host::Host;
use crate::host::firewall;
use crate::litellm::{advisories, config, contract};
use crate::quadlet::check;
use crate::service::Service;

/// Prepares, pulls and starts what is missing or stopped. The release stays the recorded one.
///
/// # Errors
/// As [`bring_up`], and when the settings are wrong or the release has a vulnerability that is exploited.
pub(crate) async fn everything(host: &Host, timeout: Duration) -> Result<()> {
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    let settings = prepared.installed();
    let image = &settings.litellm_image;
    advisories::admit(host, settings, image, &[], "litellm-units up")?;
    edits::refuse(host, settings).await?;
    edits::refuse_missing_values(&host.paths, settings)?;
    refuse_firewall(host).await?;
    bring_up(host, &prepared, timeout, "up").await
}

/// Refuses to start a gateway whose traffic the host drops. One that runs shows by itself whether it does.
pub(crate) async fn refuse_firewall(host: &Host) -> Result<()> {
    let gateway = host.systemd().await?.unit(Service::Litellm.unit()).await?;
    if gateway.is_active() {
        return Ok(());
    }
    firewall::refuse(&host.paths).await
}

/// Installs what is prepared, pulls what is missing, starts all of it, waits until the gateway is ready, and
/// records the release as brought by `command`.
pub(crate) async fn bring_up(
    host: &Host,
    prepared: &Prepared,
    timeout: Duration,
    command: &str,
) -> Result<()> {
    prepared.apply(host).await?;
    config::refuse_errors(host)?;
    config::warn(host)?;
    check::warn_of_drop_ins(host);
    install::pull_missing(host, prepared, ReleaseTarget::Recorded).await?;
    contract::check_once(host, prepared.installed()).await?;
    edits::refuse_at_start(host, prepared.installed(), timeout).await?;
    stack::bring_up_all(host, prepared.installed(), timeout).await?;
    upgrade::record(host, prepared.installed(), command).await
}

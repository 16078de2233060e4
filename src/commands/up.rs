//! `up`: install, pull and start everything, and wait until the gateway is ready.

use crate::cli;
use crate::deployment::extra;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::{advisories, config};
use crate::operations::edits;
use crate::operations::entrance;
use crate::operations::install::{self, ReleaseTarget};
use crate::operations::{recovery, up};
use crate::output::Progress;

/// Another image of the gateway than the recorded one is an upgrade.
pub(crate) async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let _lock = recovery::begin(host, "up", arguments.timeout).await?;
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    let settings = prepared.settings();
    let image = &settings.litellm_image;
    let accepted = &arguments.accept.vulnerabilities;
    advisories::admit(host, settings, image, accepted, "litellm-units up")?;
    edits::refuse(host, settings).await?;
    extra::refuse_missing(&prepared.deployment.extras)?;
    entrance::refuse(host, &prepared).await?;
    up::refuse_firewall(host).await?;
    if prepared.kept().is_some() {
        config::refuse_errors(host)?;
        config::warn(host)?;
        return super::upgrade_to_env(host, false, arguments.timeout).await;
    }
    let host = host.reporting(Progress::Data);
    up::bring_up(&host, &prepared, arguments.timeout, "up").await?;
    Ok(Exit::Success)
}

//! `up`: install, pull and start everything, and wait until the gateway is ready.

use crate::cli;
use crate::deployment::extra;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::litellm::{advisories, config};
use crate::operations::dev;
use crate::operations::edits;
use crate::operations::entrance;
use crate::operations::install::{self, ReleaseTarget};
use crate::operations::{recovery, up};
use crate::output::{self, Progress, shell_word};

/// Another image of the gateway than the recorded one is an upgrade.
pub(crate) async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    if arguments.dev {
        return develop(host, arguments).await;
    }
    let _lock = recovery::begin(host, "up", arguments.timeout).await?;
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    let settings = prepared.settings();
    let image = &settings.litellm_image;
    let accepted = &arguments.accept.vulnerabilities;
    advisories::admit(host, settings, image, accepted, "litellm-units up")?;
    edits::refuse(host, settings).await?;
    edits::refuse_missing_values(&host.paths, settings)?;
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

/// LiteLLM under development. What comes next is printed.
async fn develop(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let host = &host.reporting(Progress::Data);
    let (port, source) = (arguments.port, arguments.source.as_deref());
    dev::up(host, port, source, arguments.timeout).await?;
    let env = shell_word(dev::env_file(host));
    for line in [
        format!("gateway: http://127.0.0.1:{port}, with the master key of {env}"),
        format!("for programs on this host: `set -a; . {env}`"),
        "after `breakpoint()`: `podman exec -it litellm-dev python3 /run/litellm-units/litellm_units_dev.py attach`"
            .to_owned(),
    ] {
        output::line(&line)?;
    }
    Ok(Exit::Success)
}

//! `down`: stop everything, and with `--remove` remove what `generate` installed.

use std::path::Path;

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::lock::OperationLock;
use crate::host::systemd::{LoadState, Systemd};
use crate::host::{Host, files};
use crate::operations::backup::point_in_time;
use crate::operations::{dev, stack};
use crate::output::{self, Progress, say};
use crate::quadlet::COMPANIONS;
use crate::quadlet::plan::UnitPlan;
use crate::service::Service;

pub(crate) async fn run(host: &Host, arguments: &cli::Down) -> Result<Exit> {
    if arguments.dev {
        let host = &host.reporting(Progress::Data);
        dev::down(host, arguments.remove_data, arguments.timeout).await?;
        return Ok(Exit::Success);
    }
    let _lock = arguments
        .remove
        .then(|| OperationLock::take(&host.paths, "down --remove"))
        .transpose()?;
    let systemd = host.systemd().await?;
    let installed = arguments.remove && !UnitPlan::new(&host.paths, &[])?.is_empty();
    if !installed && systemd.unit("litellm.target").await?.load == LoadState::NotFound {
        return Err(Failure::new("there is no litellm.target on this host")
            .hint("install the units first: `litellm-units generate`")
            .into());
    }
    let mut companions = Vec::new();
    for (unit, _) in COMPANIONS.into_iter().filter(|_| arguments.remove) {
        if systemd.unit(unit).await?.load == LoadState::Loaded {
            companions.push(unit);
        }
    }
    stack::stop_all(host, &companions, arguments.timeout).await?;
    // On another machine, only systemd is reached.
    let is_own =
        host.remote.is_none() && (arguments.remove || !OperationLock::is_held(&host.paths));
    if is_own {
        point_in_time::clean_up(host).await?;
    }
    if arguments.remove {
        remove(host, systemd).await?;
    }
    Ok(Exit::Success)
}

/// Removes what is outside the deployment directory. After an interruption, it can be run again.
async fn remove(host: &Host, systemd: &Systemd) -> Result<()> {
    let companions = COMPANIONS.map(|(unit, _)| unit);
    for unit in ["litellm.target"].into_iter().chain(companions) {
        if systemd.unit(unit).await?.load == LoadState::Loaded {
            systemd.disable(unit).await?;
            Progress::Data.done(&format!("disable {unit}"));
        }
    }
    remove_secrets(host).await?;
    let plan = UnitPlan::new(&host.paths, &[])?;
    plan.apply()?;
    for change in &plan.changes {
        Progress::Data.done(&format!("{} {}", change.verb(), change.path.display()));
    }
    systemd.reload().await?;
    Progress::Data.done("reload systemd");
    let runtime = host.paths.runtime_state();
    files::remove_directory(&runtime)?;
    for directory in drop_ins(&host.paths.units)?
        .into_iter()
        .chain(drop_ins(&host.paths.quadlets)?)
    {
        say(&format!("not removed, since you made it: {directory}"));
    }
    say(&format!(
        "the deployment and its data are kept: {}",
        host.paths.deployment.display()
    ));
    Ok(())
}

/// Podman keeps the names of secrets, and the command that prints each.
async fn remove_secrets(host: &Host) -> Result<()> {
    let podman = host.podman().await?;
    let listed = podman
        .run(["secret", "ls", "--format={{.Driver}} {{.Name}}"])
        .await?;
    let names: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("shell "))
        .filter(|name| name.split('.').next().is_some_and(Service::has_container))
        .collect();
    if !names.is_empty() {
        podman
            .run(["secret", "rm"].into_iter().chain(names.iter().copied()))
            .await?;
        let secrets = output::count(names.len(), "secret");
        Progress::Data.done(&format!("remove {secrets} from Podman"));
    }
    Ok(())
}

/// Directories of drop-ins for our units.
fn drop_ins(directory: &Path) -> Result<Vec<String>> {
    let mut found = files::entries(directory)?;
    found.retain(|path| path.extension().is_some_and(|end| end == "d"));
    let is_ours = |name: &str| name.starts_with("litellm.") || name.starts_with("litellm-");
    found.retain(|path| files::name(path).is_some_and(is_ours));
    Ok(found
        .iter()
        .map(|path| path.display().to_string())
        .collect())
}

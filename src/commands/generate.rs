//! `generate`: from `.env` to installed units.

use std::path::Path;

use crate::cli;
use crate::deployment::completion;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::{Settings, read_env};
use crate::error::{Exit, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::lock::OperationLock;
use crate::host::podman::PodmanVersion;
use crate::host::systemd::Features;
use crate::litellm::advisories::Advisories;
use crate::operations::entrance;
use crate::operations::install::{self, Knows, ReleaseTarget};
use crate::operations::stack::address::Relocation;
use crate::output::{self, Progress, say, warn};
use crate::quadlet::plan::UnitChange;
use crate::quadlet::{self, Place, check};
use crate::random::kernel_random;
use crate::service::Service;

pub(crate) async fn run(host: &Host, arguments: cli::Generate) -> Result<Exit> {
    if let Some(directory) = &arguments.output {
        let knows = Knows {
            podman: arguments.podman.unwrap_or(PodmanVersion::DEFAULT),
            systemd: arguments.systemd.unwrap_or(Features::DEFAULT),
        };
        return render_into(host, directory, knows);
    }
    let reads_only = arguments.dry_run || arguments.check;
    let _lock = (!reads_only)
        .then(|| OperationLock::take(&host.paths, "generate"))
        .transpose()?;
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    extra::refuse_missing(&prepared.deployment.extras)?;
    entrance::refuse(host, &prepared).await?;
    if let Some(kept) = prepared.kept() {
        warn(&installed_release::notice(prepared.settings(), kept));
    }
    if reads_only {
        for change in &prepared.deployment.changes {
            output::line(&format!("# {change}"))?;
        }
        if arguments.dry_run {
            output::text(&prepared.units.diff())?;
            return Ok(Exit::Success);
        }
        for change in &prepared.units.changes {
            output::line(&format!("# {} {}", change.verb(), change.path.display()))?;
        }
        return Ok(if prepared.is_current() {
            Exit::Success
        } else {
            Exit::Failure
        });
    }
    let current = prepared.is_current();
    let is_another_number = prepared
        .units
        .changes
        .iter()
        .any(UnitChange::is_further_gateway);
    install::install(&host.reporting(Progress::Data), &prepared).await?;
    check::warn_of_drop_ins(host);
    if Relocation::find(host, prepared.settings()).await?.is_some() {
        say("the gateway keeps its addresses for now; to apply LISTEN: `litellm-units apply`");
        return Ok(Exit::Success);
    }
    if prepared.kept().is_some() {
        say(&format!("next: `{}`", installed_release::REMEDY));
    } else if current {
        output::line("nothing to do")?;
    } else if is_another_number
        && host
            .systemd()
            .await?
            .unit(Service::Litellm.unit())
            .await?
            .is_active()
    {
        say("the number of gateways is the same until `litellm-units apply`");
    } else {
        say(&format!(
            "next: `{} start litellm.target` or `litellm-units up`",
            host.scope().systemctl()
        ));
    }
    Ok(Exit::Success)
}

fn render_into(host: &Host, directory: &Path, knows: Knows) -> Result<Exit> {
    let env = host.paths.env_file();
    let text = if env.exists() {
        read_env(&env)?
    } else {
        String::new()
    };
    let found = completion::Existing { cluster: false };
    let completed = completion::complete(&text, &env, found, &mut kernel_random)?;
    let settings = Settings::from_env(&completed.env, &env)?;
    // The path of an installed package: the units may go to another host.
    let images = ImagesLock::load(&host.paths.images_lock())?;
    Advisories::load(&host.paths)?.refuse(&host.paths, &settings, &images)?;
    let program = Path::new("/usr/bin/litellm-units");
    let extras = extra::load(&host.paths, &completed.env)?;
    let mut files = install::render(host, &settings, knows, program, &images, &extras)?;
    files.push(quadlet::target(host.scope()));
    for file in files {
        let place = directory.join(match file.place {
            Place::Quadlet => "containers",
            Place::Unit => "systemd",
        });
        std::fs::create_dir_all(&place).path_context("can't create", &place)?;
        files::write_here(&place, file.name, file.text.as_bytes(), 0o644)?;
        output::line(&place.join(file.name).display().to_string())?;
    }
    Ok(Exit::Success)
}

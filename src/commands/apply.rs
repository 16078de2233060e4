//! `apply`: apply changes, and roll back if the gateway does not become ready.

use std::io::IsTerminal as _;
use std::path::Path;

use crate::cli;
use crate::deployment::applied::Difference;
use crate::deployment::configuration::Configuration;
use crate::deployment::extra;
use crate::deployment::installed_release;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::litellm::advisories;
use crate::litellm::config;
use crate::operations::apply::{self, Replacement};
use crate::operations::edits;
use crate::operations::entrance;
use crate::operations::install::{self, Prepared, ReleaseTarget};
use crate::operations::stack::{self, address::Relocation};
use crate::operations::up;
use crate::output::{self, Progress};
use crate::service::{Instance, Service};

pub(crate) async fn run(host: &Host, arguments: &cli::Apply) -> Result<Exit> {
    let source = arguments.from.as_deref().map(read).transpose()?;
    let _lock = super::begin(host, "apply", arguments.dry_run, arguments.timeout).await?;
    let replacement = source
        .map(|source| Replacement::new(host, source))
        .transpose()?;
    if let Some(replacement) = &replacement {
        let changes = replacement.changes(host)?;
        for change in &changes {
            output::line(&format!("# {change}"))?;
        }
        if arguments.dry_run && !changes.is_empty() {
            let accepted = &arguments.accept.vulnerabilities;
            for program in replacement.check(host, accepted).await? {
                output::line(&format!("# {program}"))?;
            }
            return Ok(Exit::Success);
        }
    }
    let attempt = async {
        match replacement {
            Some(replacement) if !arguments.dry_run => replacement.put(host)?,
            _ => {}
        }
        change(host, arguments).await
    };
    let outcome = attempt.await;
    let Err(error) = outcome else {
        return outcome;
    };
    // Without the lock, it would be that of another process.
    if arguments.dry_run {
        return Err(error);
    }
    match apply::undo_replacement(&host.paths) {
        Ok(true) => output::say("nothing was applied; the previous configuration is in place"),
        Ok(false) => {}
        Err(second) => return Err(second.context(error)),
    }
    Err(error)
}

/// The configuration in a directory, or in the tar on stdin.
fn read(from: &Path) -> Result<Configuration> {
    let stdin = std::io::stdin();
    if from != Path::new("-") {
        return Configuration::of(from)?.whole(from);
    }
    if stdin.is_terminal() {
        return Err(Failure::new("there is no tar on stdin")
            .hint("pipe one: `litellm-units config export | ssh HOST litellm-units apply --from -`")
            .into());
    }
    Configuration::from_tar(stdin.lock())
}

async fn change(host: &Host, arguments: &cli::Apply) -> Result<Exit> {
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    if host.paths.config_file().exists() && host.paths.env_file().exists() {
        config::refuse_errors(host)?;
    }
    let settings = prepared.settings();
    let image = &settings.litellm_image;
    let accepted = &arguments.accept.vulnerabilities;
    advisories::admit(host, settings, image, accepted, "litellm-units apply")?;
    edits::refuse(host, settings).await?;
    if arguments.dry_run {
        for program in edits::programs_to_run(&host.paths, settings)? {
            output::line(&format!("# {program}"))?;
        }
    } else {
        edits::refuse_missing_values(&host.paths, settings)?;
    }
    extra::refuse_missing(&prepared.deployment.extras)?;
    entrance::refuse(host, &prepared).await?;
    up::refuse_firewall(host).await?;
    if let Some(kept) = prepared.kept() {
        if arguments.from.is_some() {
            return Err(Failure::new(installed_release::notice(settings, kept))
                .hint(format!(
                    "change the release first: `{}`",
                    installed_release::REMEDY
                ))
                .into());
        }
        config::warn(host)?;
        return super::upgrade_to_env(host, arguments.dry_run, arguments.timeout).await;
    }
    if arguments.dry_run {
        if host.paths.config_file().exists() && host.paths.env_file().exists() {
            config::warn(host)?;
        }
        return dry_run(host, &prepared).await;
    }
    let host = &host.reporting(Progress::Data);
    apply::apply(host, &prepared, arguments.timeout).await?;
    Ok(Exit::Success)
}

async fn dry_run(host: &Host, prepared: &Prepared) -> Result<Exit> {
    for change in &prepared.deployment.changes {
        output::line(&format!("# {change}"))?;
    }
    output::text(&prepared.units.summary())?;
    let differences = stack::differences(host, prepared.settings())?;
    let mut restarts = 0;
    let settings = prepared.settings();
    let mut extras: Vec<Service> = extra::installed(&host.paths);
    let wanted = prepared.deployment.extras.iter();
    extras.extend(wanted.map(|extra| extra.service));
    extras.sort();
    extras.dedup();
    let own = extras.into_iter().map(Instance::from);
    for instance in Instance::all()
        .filter(|instance| settings.image(instance.service()).is_some())
        .chain(own)
    {
        let mut changes = prepared.units.changes.iter();
        let change = changes.find(|change| change.path.ends_with(instance.quadlet()));
        if change.is_some_and(|change| change.after.is_none()) {
            output::line(&format!("# stop {}", instance.unit()))?;
            continue;
        }
        let may_be_new = instance.number() > 1 || instance.service().is_extra();
        if may_be_new && change.is_some_and(|change| change.before.is_none()) {
            restarts += 1;
            output::line(&format!("# start {}", instance.unit()))?;
            continue;
        }
        let mut words: Vec<String> = Vec::new();
        if change.is_some() {
            words.push("the unit changed".into());
        }
        if let Some((_, differences)) = differences.iter().find(|(other, _)| *other == instance) {
            words.push(stack::list(differences));
        }
        if !words.is_empty() {
            restarts += 1;
            output::line(&format!(
                "# restart {}: {}",
                instance.unit(),
                words.join(", ")
            ))?;
        }
    }
    let mut changed = differences.iter();
    if let Some((entrance, differences)) =
        changed.find(|(other, _)| other.service() == Service::Entrance)
    {
        restarts += 1;
        let words = stack::list(differences);
        // Its other inputs are taken over by a reload.
        let is_of_unit = differences.iter().any(Difference::is_of_unit);
        let verb = if is_of_unit { "restart" } else { "reload" };
        output::line(&format!("# {verb} {}: {words}", entrance.unit()))?;
    }
    if let Some(relocation) = Relocation::find(host, prepared.settings()).await? {
        output::line(&format!("# {relocation}"))?;
    }
    if restarts == 0 && prepared.is_current() {
        output::line("nothing to do")?;
    }
    Ok(Exit::Success)
}

//! `rollback`: an earlier release, with the current database or that of a backup.

use std::io::IsTerminal;

use crate::cli::upgrade::Rollback;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::ledger::{Ledger, RecordedRelease};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::image::ImageReference;
use crate::litellm::advisories;
use crate::operations::backup::Backup;
use crate::operations::postgres::ClusterPlan;
use crate::operations::upgrade::{ReleaseOptions, ReleasePlan};
use crate::output;

pub(crate) async fn run(host: &Host, arguments: Rollback) -> Result<Exit> {
    let _lock = super::begin(host, "rollback", arguments.dry_run, arguments.pace.timeout).await?;
    if arguments.postgres {
        return return_to_cluster(host, &arguments).await;
    }
    let ledger = Ledger::load(&host.paths)?;
    let release = find(&ledger, arguments.to)?;
    admit(host, release, &arguments)?;
    warn_of_another_image(host, release).await?;
    let backup = ledger
        .backup_of(release.number)
        .filter(|id| Backup::load(&host.paths, id).is_ok());
    let data = match (arguments.keep_data, arguments.restore_data, backup) {
        (true, _, _) => None,
        (_, true, Some(backup)) => Some(backup.clone()),
        (_, true, None) => {
            return Err(Failure::new(format!(
                "there is no backup from before the upgrade from release {}",
                release.number
            ))
            .hint("keep the current database (`--keep-data`), or restore another backup afterwards: `litellm-units backup list`")
            .into());
        }
        // Without a backup, there is no choice.
        (_, _, None) => None,
        (_, _, Some(backup)) if arguments.dry_run => {
            return show_both(host, release, backup, arguments.pace.into()).await;
        }
        (_, _, Some(backup)) => ask(release, backup)?,
    };
    if let Some(id) = &data {
        Backup::load(&host.paths, id)?.admitted(false).map_err(|error| {
            Failure::new(format!("{error:#}")).hint(format!(
                "keep the current database (`litellm-units rollback --keep-data`); to restore the backup afterwards: `litellm-units restore {id} --foreign`"
            ))
        })?;
    }
    let plan = ReleasePlan::rollback(host, release, data).await?;
    let options = arguments.pace.into();
    super::change_release(host, plan, arguments.dry_run, options).await
}

/// To the cluster that an upgrade of PostgreSQL has replaced.
async fn return_to_cluster(host: &Host, arguments: &Rollback) -> Result<Exit> {
    let plan = ClusterPlan::rollback(host).await?;
    output::text(&(plan.lines().join("\n") + "\n"))?;
    if arguments.dry_run {
        return Ok(Exit::Success);
    }
    let losses = plan.losses(host).await?;
    if arguments.restore_data {
        host.progress.warn(&losses);
    } else {
        if !std::io::stdin().is_terminal() {
            return Err(
                Failure::new(format!("{losses}, and there is no terminal to ask on"))
                    .hint("to accept that: `litellm-units rollback --postgres --restore-data`")
                    .into(),
            );
        }
        if !output::ask(&format!("Return to the previous cluster? Then {losses}."))? {
            return Err(Failure::new("nothing was changed").into());
        }
    }
    Box::pin(plan.carry_out(host, arguments.pace.timeout)).await?;
    Ok(Exit::Success)
}

/// Refuses a release with an exploited vulnerability, unless the operator accepts it.
fn admit(host: &Host, release: &RecordedRelease, arguments: &Rollback) -> Result<()> {
    let image = release
        .gateway()
        .and_then(|image| ImageReference::parse(&image.reference).ok());
    let Some(image) = image else {
        return Ok(());
    };
    let again = match arguments.to {
        Some(number) => format!("litellm-units rollback --to {number}"),
        None => "litellm-units rollback".to_owned(),
    };
    let settings = Settings::load(&host.paths.env_file())?;
    advisories::admit(
        host,
        &settings,
        &image,
        &arguments.accept.vulnerabilities,
        &again,
    )
}

/// Warns if the rollback replaces a `LITELLM_IMAGE` that was edited and never applied.
async fn warn_of_another_image(host: &Host, release: &RecordedRelease) -> Result<()> {
    let settings = Settings::load(&host.paths.env_file())?;
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let Some(reference) = release.gateway().map(|image| &image.reference) else {
        return Ok(());
    };
    if settings.litellm_image.as_str() != reference
        && let Some(kept) = installed_release::kept(host, &settings, &lock).await?
    {
        let notice = installed_release::notice(&settings, &kept);
        let words = format!("{notice}; the rollback sets it to {reference}");
        host.progress.warn(&words);
    }
    Ok(())
}

/// Shows the steps of either choice.
async fn show_both(
    host: &Host,
    release: &RecordedRelease,
    backup: &OperationId,
    options: ReleaseOptions,
) -> Result<Exit> {
    for (option, data) in [
        ("--keep-data", None),
        ("--restore-data", Some(backup.clone())),
    ] {
        output::line(&format!("# with {option}"))?;
        let plan = ReleasePlan::rollback(host, release, data).await?;
        for line in plan.lines(options) {
            output::line(&line)?;
        }
    }
    Ok(Exit::Success)
}

fn find(ledger: &Ledger, number: Option<u32>) -> Result<&RecordedRelease> {
    let see = "list the releases: `litellm-units history`";
    let current = ledger
        .current()
        .ok_or_else(|| Failure::new("no release is recorded yet").hint(see))?;
    let mut others = ledger.releases().rev().skip(1);
    let found = match number {
        Some(number) => others.find(|release| release.number == number),
        None => others.find(|release| !release.is(current)),
    };
    let release = found.ok_or_else(|| {
        Failure::new(match number {
            Some(number) if number == current.number => {
                format!("release {number} is the current one")
            }
            Some(number) => format!("there is no release {number}"),
            None => "there is no earlier release".to_owned(),
        })
        .hint(see)
    })?;
    if release.is(current) {
        return Err(Failure::new(format!(
            "release {} has the image of the current one",
            release.number
        ))
        .hint(see)
        .into());
    }
    Ok(release)
}

fn ask(release: &RecordedRelease, backup: &OperationId) -> Result<Option<OperationId>> {
    let reference = release
        .gateway()
        .map_or("that release", |image| image.reference.as_str());
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "a rollback can keep the current database or restore a backup, and there is no terminal to ask on",
        )
        .hint("choose with `--keep-data` or `--restore-data`")
        .into());
    }
    eprint!(
        "Roll back to {reference}. Keep the current database, or restore backup {backup} (taken {} UTC, before the \
         upgrade)? With the backup, later keys, teams and spend are lost. [keep/restore/N] ",
        backup.created()
    );
    match output::read_answer()?.as_str() {
        "k" | "keep" => Ok(None),
        "r" | "restore" => Ok(Some(backup.clone())),
        _ => Err(Failure::new("nothing was changed").into()),
    }
}

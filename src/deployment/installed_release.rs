//! Which release of the gateway the units run: the recorded one, until an upgrade or a rollback has
//! brought another. An edit of `LITELLM_IMAGE` alone must not do that: the next crash or reboot would
//! start the other release, on a schema that is not its own.

use std::path::Path;

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::ledger::{Ledger, RecordedRelease};
use crate::deployment::settings::Settings;
use crate::deployment::snapshot;
use crate::error::Result;
use crate::host::Host;
use crate::host::paths::Paths;
use crate::image::{Image, ImageReference};
use crate::service::Service;

/// The recorded image of the gateway, if `settings` name another one: then the units stay at it.
pub(crate) async fn kept(
    host: &Host,
    settings: &Settings,
    lock: &ImagesLock,
) -> Result<Option<Image>> {
    let ledger = Ledger::load(&host.paths)?;
    let Some(recorded) = ledger.current().and_then(RecordedRelease::gateway) else {
        return Ok(None);
    };
    // Without a configuration to roll back to, there is no upgrade either.
    if snapshot::last_good(&host.paths).is_none() {
        return Ok(None);
    }
    let wanted = &settings.litellm_image;
    if lock
        .identity(wanted)
        .is_some_and(|wanted| wanted.is(&recorded.identity))
    {
        return Ok(None);
    }
    // A pin by another digest of the same image is no other release.
    let podman = host.podman().await?;
    let (wanted, pinned) = (lock.pin(wanted), recorded.pinned());
    let (found, present) = futures_util::try_join!(podman.image(&wanted), podman.image(&pinned))?;
    let same = match (found, present) {
        (Some(found), Some(present)) => found.is(&present),
        _ => false,
    };
    Ok((!same).then(|| recorded.clone()))
}

/// The settings with which the units are rendered and their images pulled: those of `.env`, with
/// the recorded release.
///
/// # Errors
/// As [`kept`], if no unit is installed either.
pub(crate) async fn installed(
    host: &Host,
    settings: &Settings,
    lock: &ImagesLock,
) -> Result<Settings> {
    let recorded = match kept(host, settings, lock).await {
        Ok(None) => return Ok(settings.clone()),
        Ok(Some(image)) => image.pinned(),
        // A damaged ledger must not keep a gateway from starting at boot.
        Err(error) => match of_unit(&host.paths, Service::Litellm) {
            Some(image) => image.to_string(),
            None => return Err(error),
        },
    };
    at(settings, &recorded)
}

/// The settings with another image of the gateway.
pub(crate) fn at(settings: &Settings, image: &str) -> Result<Settings> {
    let mut settings = settings.clone();
    settings.litellm_image = ImageReference::parse(image)?;
    Ok(settings)
}

/// The image that the installed unit of a service names.
pub(crate) fn of_unit(paths: &Paths, service: Service) -> Option<ImageReference> {
    of_file(&paths.unit_file(service.into()))
}

/// As [`of_unit`], of the file of a unit.
pub(crate) fn of_file(unit: &Path) -> Option<ImageReference> {
    let text = std::fs::read_to_string(unit).ok()?;
    let image = text.lines().find_map(|line| line.strip_prefix("Image="))?;
    ImageReference::parse(image).ok()
}

/// The notice about an edit of `LITELLM_IMAGE` that is not applied.
pub(crate) fn notice(settings: &Settings, kept: &Image) -> String {
    format!(
        "LITELLM_IMAGE in .env is {}, but the installed release is {}",
        settings.litellm_image, kept.reference
    )
}

/// The command that applies that edit.
pub(crate) const REMEDY: &str = "litellm-units upgrade";

//! `pull`: the images of the settings, and the digest that each tag stands for.

use crate::cli;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::image::ImageReference;
use crate::litellm::advisories;
use crate::operations::pull;
use crate::service::Service;

pub(crate) async fn run(host: &Host, arguments: &cli::Pull) -> Result<Exit> {
    let settings = Settings::load(&host.paths.env_file())?;
    if arguments.missing {
        // The images of the installed units: an edited .env may name others.
        let lock = ImagesLock::load(&host.paths.images_lock())?;
        let installed = installed_release::installed(host, &settings, &lock).await?;
        let images = images_of(&installed, &arguments.services)?;
        pull::pull_those(host, &installed, images).await?;
        return Ok(Exit::Success);
    }
    let _lock = OperationLock::take(&host.paths, pull::COMMAND)?;
    pull::refuse_compromised(host, &settings)?;
    let image = &settings.litellm_image;
    let accepted = &arguments.known.vulnerabilities;
    advisories::admit(host, &settings, image, accepted, "litellm-units pull")?;
    let images = images_of(&settings, &arguments.services)?;
    let mut moved = Vec::new();
    for image in images {
        if let Some(words) = pull::refresh(host, image, arguments.accept).await? {
            moved.push(words);
        }
    }
    if moved.is_empty() {
        return Ok(Exit::Success);
    }
    Err(Failure::new(format!("not accepted, since a tag names another image than the recorded one:\n  {}", moved.join("\n  ")))
        .hint("find out why it was moved; to run the new image: `litellm-units pull --accept`, then `litellm-units up`")
        .into())
}

/// The images of some services, or of all if none is named, without repetition.
fn images_of<'a>(settings: &'a Settings, services: &[Service]) -> Result<Vec<&'a ImageReference>> {
    if services.is_empty() {
        return Ok(settings.images().collect());
    }
    let mut images = Vec::new();
    for service in services {
        let image = settings
            .image(*service)
            .ok_or_else(|| super::lifecycle::unknown(*service))?;
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Ok(images)
}

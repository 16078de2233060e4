//! `pull`: the images of the settings, and the digest that each tag stands for.

use crate::cli;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::{Settings, load_env};
use crate::deployment::snapshot;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::image::ImageReference;
use crate::litellm::advisories;
use crate::operations::pull;
use crate::service::Service;

pub(crate) async fn run(host: &Host, arguments: &cli::Pull) -> Result<Exit> {
    if arguments.missing {
        // A start is not to fail for an edit that is not complete.
        let (settings, _) = snapshot::settings(&host.paths)?;
        // The images of the installed units: an edited .env may name others.
        let lock = ImagesLock::load(&host.paths.images_lock())?;
        let installed = installed_release::installed(host, &settings, &lock).await?;
        let own = extra::installed(&host.paths).into_iter();
        let own: Vec<_> = own
            .filter_map(|service| {
                Some((service, installed_release::of_unit(&host.paths, service)?))
            })
            .collect();
        let own = own.iter().map(|(service, image)| (*service, image));
        let images = images_of(host, &installed, own.collect(), &arguments.services)?;
        pull::pull_those(host, &installed, images).await?;
        return Ok(Exit::Success);
    }
    let settings = Settings::load(&host.paths.env_file())?;
    let _lock = OperationLock::take(&host.paths, pull::COMMAND)?;
    pull::refuse_compromised(host, &settings)?;
    let image = &settings.litellm_image;
    let accepted = &arguments.known.vulnerabilities;
    advisories::admit(host, &settings, image, accepted, "litellm-units pull")?;
    let path = host.paths.env_file();
    let extras = extra::load(&host.paths, &load_env(&path)?)?;
    let own = extras.iter().map(|extra| (extra.service, &extra.image));
    let images = images_of(host, &settings, own.collect(), &arguments.services)?;
    let mut moved = Vec::new();
    for image in images {
        if let Some(words) = pull::refresh(host, &settings.proxy, image, arguments.accept).await? {
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
fn images_of<'a>(
    host: &Host,
    settings: &'a Settings,
    own: Vec<(Service, &'a ImageReference)>,
    services: &[Service],
) -> Result<Vec<&'a ImageReference>> {
    if services.is_empty() {
        let own = own.into_iter().map(|(_, image)| image);
        return Ok(settings.images().chain(own).collect());
    }
    let mut images = Vec::new();
    for service in services {
        let mut own = own.iter().filter(|(other, _)| other == service);
        let image = settings
            .image(*service)
            .or_else(|| own.next().map(|(_, image)| *image))
            .ok_or_else(|| super::lifecycle::unknown(host, *service))?;
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Ok(images)
}

//! `pull`: the images that the settings name.

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output::{duration, say};
use crate::settings::{Service, Settings};

/// Runs the command.
///
/// # Errors
/// When an image can't be pulled.
pub async fn run(host: &Host, arguments: &cli::Pull) -> Result<Exit> {
    let settings = Settings::load(&host.paths.env_file())?;
    if arguments.missing {
        pull_missing(host, &settings).await?;
    } else {
        pull(host, &images(&settings)).await?;
    }
    Ok(Exit::Success)
}

/// Pulls those images that local storage lacks.
///
/// # Errors
/// When an image can't be pulled.
pub async fn pull_missing(host: &Host, settings: &Settings) -> Result<()> {
    let podman = host.podman().await?;
    let images = images(settings);
    let present =
        futures_util::future::try_join_all(images.iter().map(|image| podman.has_image(image)))
            .await?;
    let missing: Vec<&str> = images
        .into_iter()
        .zip(present)
        .filter_map(|(image, present)| (!present).then_some(image))
        .collect();
    pull(host, &missing).await
}

async fn pull(host: &Host, images: &[&str]) -> Result<()> {
    let podman = host.podman().await?;
    for image in images {
        say(&format!("pulling {image}"));
        let start = std::time::Instant::now();
        podman.pull(image).await?;
        say(&format!("pulled {image} in {}", duration(start.elapsed())));
    }
    Ok(())
}

/// The images without repetition: the migration uses the gateway's.
fn images(settings: &Settings) -> Vec<&str> {
    let mut images: Vec<&str> = settings
        .services()
        .filter(|service| *service != Service::Migrate)
        .filter_map(|service| settings.image(service))
        .map(crate::image::ImageReference::as_str)
        .collect();
    images.dedup();
    images
}

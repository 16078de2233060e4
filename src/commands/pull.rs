//! `pull`: the images that the settings name, and what each tag means.

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::image::ImageReference;
use crate::images_lock::ImagesLock;
use crate::output::{duration, say};
use crate::podman::Podman;
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// When an image can't be pulled, or a tag means another image than recorded.
pub async fn run(host: &Host, arguments: &cli::Pull) -> Result<Exit> {
    let settings = Settings::load(&host.paths.env_file())?;
    if arguments.missing {
        pull_missing(host, &settings).await?;
        return Ok(Exit::Success);
    }
    let mut moved = Vec::new();
    for image in settings.images() {
        if let Some(words) = refresh(host, image, arguments.accept).await? {
            moved.push(words);
        }
    }
    if moved.is_empty() {
        return Ok(Exit::Success);
    }
    Err(Failure::new(format!("not taken, since a tag was moved upstream:\n  {}", moved.join("\n  ")))
        .hint("find out why it was moved; to run the new image: litellm-units pull --accept, then litellm-units up")
        .into())
}

/// Pulls those images that local storage lacks, each by the digest that is recorded for it, and
/// records the digest of one that has none yet. Returns whether there was such a one, which makes
/// the units another text.
///
/// # Errors
/// When an image can't be pulled.
pub async fn pull_missing(host: &Host, settings: &Settings) -> Result<bool> {
    let podman = host.podman().await?;
    let path = host.paths.images_lock();
    let mut lock = ImagesLock::load(&path)?;
    let mut recorded = false;
    let images: Vec<&ImageReference> = settings.images().collect();
    let pinned: Vec<String> = images.iter().map(|image| lock.pin(image)).collect();
    let present =
        futures_util::future::try_join_all(pinned.iter().map(|image| podman.has_image(image)))
            .await?;
    for ((image, pinned), present) in images.into_iter().zip(pinned).zip(present) {
        if !present {
            pull(podman, &pinned).await?;
        }
        if lock.lacks(image)
            && let Some(digest) = podman.digest(image.as_str()).await?
        {
            lock.record(image, digest);
            lock.save(&path)?;
            recorded = true;
        }
    }
    Ok(recorded)
}

/// Asks the registry what the tag means now. What was recorded stays in force unless `accept`;
/// returns words when the tag means another image.
async fn refresh(host: &Host, image: &ImageReference, accept: bool) -> Result<Option<String>> {
    let podman = host.podman().await?;
    let path = host.paths.images_lock();
    let mut lock = ImagesLock::load(&path)?;
    pull(podman, image.as_str()).await?;
    let Some(digest) = podman.digest(image.as_str()).await? else {
        anyhow::bail!("{image} was pulled, but Podman does not know its digest");
    };
    match lock.get(image).map(|locked| locked.digest.clone()) {
        Some(recorded) if recorded == digest => Ok(None),
        Some(recorded) if !accept => {
            // The tag must go on meaning what is recorded, whoever uses it on this host.
            let old = format!("{}@{recorded}", image.name());
            if !podman.has_image(&old).await? {
                pull(podman, &old).await?;
            }
            podman.run(["tag", &old, image.as_str()]).await?;
            Ok(Some(format!("{image}: recorded {recorded}, now {digest}")))
        }
        _ => {
            lock.record(image, digest);
            lock.save(&path)?;
            Ok(None)
        }
    }
}

async fn pull(podman: &Podman, image: &str) -> Result<()> {
    say(&format!("pulling {image}"));
    let start = std::time::Instant::now();
    podman.pull(image).await?;
    say(&format!("pulled {image} in {}", duration(start.elapsed())));
    Ok(())
}

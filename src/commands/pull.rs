//! `pull`: the images that the settings name, and what each tag means.

use std::fs::File;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::advisories::{self, Advisories, Found};
use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::image::{Identity, ImageReference};
use crate::images_lock::ImagesLock;
use crate::output::{duration, say};
use crate::release;
use crate::settings::{Service, Settings};
use crate::trust::{self, Places};

/// Runs the command.
///
/// # Errors
/// When an image can't be pulled, or a tag means another image than recorded.
pub async fn run(host: &Host, arguments: &cli::Pull) -> Result<Exit> {
    let settings = Settings::load(&host.paths.env_file())?;
    if arguments.missing {
        // What the units run, which is not what an edit of .env names.
        let lock = ImagesLock::load(&host.paths.images_lock())?;
        let installed = release::installed(host, &settings, &lock).await?;
        let images = images_of(&installed, &arguments.services)?;
        pull_those_missing(host, &installed, images).await?;
        return Ok(Exit::Success);
    }
    refuse_compromised(host, &settings)?;
    let image = &settings.litellm_image;
    let accepted = &arguments.known.vulnerabilities;
    advisories::admit(
        &host.paths,
        &settings,
        image,
        accepted,
        "litellm-units pull",
    )?;
    let images = images_of(&settings, &arguments.services)?;
    let mut moved = Vec::new();
    for image in images {
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
/// When an image can't be pulled or must not run.
pub async fn pull_missing(host: &Host, settings: &Settings) -> Result<bool> {
    pull_those_missing(host, settings, settings.images().collect()).await
}

async fn pull_those_missing(
    host: &Host,
    settings: &Settings,
    images: Vec<&ImageReference>,
) -> Result<bool> {
    refuse_compromised(host, settings)?;
    let podman = host.podman().await?;
    let path = host.paths.images_lock();
    let mut lock = ImagesLock::load(&path)?;
    let mut recorded = false;
    let pinned: Vec<String> = images.iter().map(|image| lock.pin(image)).collect();
    let present =
        futures_util::future::try_join_all(pinned.iter().map(|image| podman.has_image(image)))
            .await?;
    for ((image, pinned), present) in images.into_iter().zip(pinned).zip(present) {
        if !present {
            pull(host, image, &pinned).await?;
        }
        if lock.lacks(image)
            && let Some(found) = podman.image(image.as_str()).await?
        {
            record(host, &mut lock, image, found)?;
            recorded = true;
        }
    }
    Ok(recorded)
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
            .ok_or_else(|| super::units::unknown(*service))?;
        if !images.contains(&image) {
            images.push(image);
        }
    }
    Ok(images)
}

/// Whether local storage has the image that a service runs.
///
/// # Errors
/// When Podman can't tell, or a record was damaged.
pub async fn is_present(host: &Host, settings: &Settings, service: Service) -> Result<bool> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let installed = release::installed(host, settings, &lock).await?;
    let Some(image) = installed.image(service) else {
        return Ok(true);
    };
    host.podman().await?.has_image(&lock.pin(image)).await
}

/// Asks the registry what the tag means now. What was recorded stays in force unless `accept`;
/// returns words when the tag means another image.
async fn refresh(host: &Host, image: &ImageReference, accept: bool) -> Result<Option<String>> {
    let podman = host.podman().await?;
    let path = host.paths.images_lock();
    let mut lock = ImagesLock::load(&path)?;
    if let Some(locked) = lock.get(image)
        && image.digest().is_none()
        && is_taken_by_digest_alone(host, image, &locked.identity.digest)?
    {
        say(&format!(
            "{image} has no signature: only the recorded digest is taken"
        ));
        pull(host, image, &lock.pin(image)).await?;
        return Ok(None);
    }
    pull(host, image, image.as_str()).await?;
    let Some(found) = podman.image(image.as_str()).await? else {
        anyhow::bail!("{image} was pulled, but Podman does not know its digest");
    };
    let Some(recorded) = lock.get(image).map(|locked| locked.identity.clone()) else {
        record(host, &mut lock, image, found)?;
        return Ok(None);
    };
    let old = format!("{}@{}", image.name(), recorded.digest);
    let same = match podman.image(&old).await? {
        // An index that was made anew around the same image is no other one.
        Some(old) => old.is(&found),
        None => recorded.is(&found),
    };
    if same {
        return Ok(None);
    }
    if accept {
        record(host, &mut lock, image, found)?;
        return Ok(None);
    }
    // The tag must go on meaning what is recorded, whoever uses it on this host.
    if !podman.has_image(&old).await? {
        pull(host, image, &old).await?;
    }
    podman.run(["tag", &old, image.as_str()]).await?;
    Ok(Some(format!(
        "{image}: recorded {}, now {}",
        recorded.digest, found.digest
    )))
}

/// Before anything is pulled.
fn refuse_compromised(host: &Host, settings: &Settings) -> Result<()> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    Advisories::load(&host.paths)?.refuse(&host.paths, settings, &lock)
}

/// Records what a tag means, now that it is known, unless that must not run.
fn record(
    host: &Host,
    lock: &mut ImagesLock,
    image: &ImageReference,
    found: Identity,
) -> Result<()> {
    Advisories::load(&host.paths)?
        .check(image, Some(&found.digest))
        .map_err(|found| {
            Failure::config(format!("{found}; it was pulled, but will not run")).hint(Found::HINT)
        })?;
    // Each service's unit pulls by itself, at the same time as the others.
    let deployment = &host.paths.deployment;
    let _turn = File::open(deployment)
        .and_then(|directory| {
            Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
        })
        .with_context(|| format!("can't lock {}", deployment.display()))?;
    let path = host.paths.images_lock();
    *lock = ImagesLock::load(&path)?;
    lock.record(image, found);
    lock.save(&path)
}

/// Whether Podman takes the image only by the digest that is recorded, since it has no signature.
fn is_taken_by_digest_alone(host: &Host, image: &ImageReference, digest: &str) -> Result<bool> {
    let Some(policy) = Places::of(&host.paths).effective_policy()? else {
        return Ok(false);
    };
    let by_tag = format!(":{}", image.tag().unwrap_or_default());
    let by_digest = format!("@{digest}");
    Ok(!policy.demand(image.name(), &by_tag).accepts_anything()
        && policy.demand(image.name(), &by_digest).accepts_anything())
}

/// Pulls `image` as `reference`, which may have its digest.
async fn pull(host: &Host, image: &ImageReference, reference: &str) -> Result<()> {
    say(&format!("pulling {reference}"));
    let start = std::time::Instant::now();
    if let Err(error) = host.podman().await?.pull(reference).await {
        return Err(refusal(host, image, reference).await?.unwrap_or(error));
    }
    let took = duration(start.elapsed());
    say(&format!("pulled {reference} in {took}"));
    Ok(())
}

/// What to say where Podman's policy was the reason, and not the network or the name.
async fn refusal(
    host: &Host,
    image: &ImageReference,
    reference: &str,
) -> Result<Option<anyhow::Error>> {
    let places = Places::of(&host.paths);
    let Some(policy) = places.effective_policy()? else {
        return Ok(None);
    };
    // Podman drops the tag where there is a digest.
    let rest = match reference.split_once('@') {
        Some((_, digest)) => format!("@{digest}"),
        None => format!(":{}", image.tag().unwrap_or_default()),
    };
    let demand = policy.demand(image.name(), &rest);
    if demand.accepts_anything() {
        return Ok(None);
    }
    let reason = host.podman().await?.reason_against(reference).await?;
    let Some(reason) = reason.filter(|reason| reason.contains("rejected")) else {
        return Ok(None);
    };
    let place = policy.place(demand);
    let record = places.record()?;
    let ours = record.is_some() && demand.key() == places.key.to_str();
    let message = match demand.key() {
        Some(key) => format!("{reference} is not signed by the key in {key}, as {place} demands"),
        None => format!("{reference} is refused by {place}"),
    };
    let hint = if !ours {
        "find out who set this policy, and why; or name another image in .env".to_owned()
    } else if trust::is_signed_release(image) {
        "name another release in .env; if you have verified this one otherwise: litellm-units trust --accept IMAGE@DIGEST (docs/trust.md)".to_owned()
    } else {
        format!(
            "LiteLLM signs its releases from 1.83 on; if this one has to be, name it with its digest in .env ({}@sha256:…), then: litellm-units trust",
            image.as_str().split('@').next().unwrap_or_default()
        )
    };
    let cause = anyhow::anyhow!("Podman says: {reason}");
    Ok(Some(
        Failure::new(message).hint(hint).caused_by(cause).into(),
    ))
}

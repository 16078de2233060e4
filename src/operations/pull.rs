//! The images that the settings name: into local storage, and recorded by what each tag means.

use super::trust::policy::Demand;
use super::trust::{self, Places, known};
use crate::deployment::extra::Extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::{ProxySettings, Settings, place_of};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::outgoing_proxy::OutgoingProxy;
use crate::image::{DIGEST_PREFIX, ImageIdentity, ImageReference};
use crate::litellm::advisories::{Advisories, Compromised};
use crate::output::duration;
use crate::service::Service;

/// What `pull` holds the lock as.
pub(crate) const COMMAND: &str = "pull";

/// Pulls those images that local storage lacks, each by the digest that is recorded for it, and
/// records the digest of one that has none yet. Returns whether it recorded one: the units then
/// have to be rendered again.
pub(crate) async fn pull_missing(
    host: &Host,
    settings: &Settings,
    extras: &[Extra],
) -> Result<bool> {
    let own = extras.iter().map(|extra| &extra.image);
    pull_those(host, settings, settings.images().chain(own).collect()).await
}

/// As [`pull_missing`], of some images.
pub(crate) async fn pull_those(
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
        let verified = if present {
            None
        } else {
            pull(host, &settings.proxy, image, &pinned).await?
        };
        if lock.lacks(image)
            && let Some(found) = podman.image(image.as_str()).await?
        {
            let found = found.published_as(verified);
            record(host, &mut lock, image, found).await?;
            recorded = true;
        }
    }
    Ok(recorded)
}

/// Whether local storage has the image that a service runs.
pub(crate) async fn is_present(host: &Host, settings: &Settings, service: Service) -> Result<bool> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let image = match service {
        Service::Extra(_) => installed_release::of_unit(&host.paths, service),
        _ => installed_release::installed(host, settings, &lock)
            .await?
            .image(service)
            .cloned(),
    };
    let Some(image) = image else {
        return Ok(true);
    };
    host.podman().await?.has_image(&lock.pin(&image)).await
}

/// Asks the registry for the current image of the tag. The recorded one stays valid unless `accept`;
/// returns words when the tag means another image.
pub(crate) async fn refresh(
    host: &Host,
    proxy: &ProxySettings,
    image: &ImageReference,
    accept: bool,
) -> Result<Option<String>> {
    let podman = host.podman().await?;
    let path = host.paths.images_lock();
    let mut lock = ImagesLock::load(&path)?;
    if let Some(locked) = lock.get(image)
        && image.digest().is_none()
        && is_taken_without_signature(host, image, &locked.identity.digest)?
    {
        host.progress.say(&format!(
            "{image} has no signature: only its recorded digest is accepted"
        ));
        pull(host, proxy, image, &lock.pin(image)).await?;
        return Ok(None);
    }
    let verified = pull(host, proxy, image, image.as_str()).await?;
    let Some(found) = podman.image(image.as_str()).await? else {
        anyhow::bail!("{image} was pulled, but Podman shows no digest for it");
    };
    let found = found.published_as(verified);
    let Some(recorded) = lock.get(image).map(|locked| locked.identity.clone()) else {
        record(host, &mut lock, image, found).await?;
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
        record(host, &mut lock, image, found).await?;
        return Ok(None);
    }
    if !image.is_local() {
        // On this host, the tag keeps naming the recorded image, whoever uses it.
        if !podman.has_image(&old).await? {
            pull(host, proxy, image, &old).await?;
        }
        podman.run(["tag", &old, image.as_str()]).await?;
    }
    Ok(Some(format!(
        "{image}: recorded {}, now {}",
        recorded.digest, found.digest
    )))
}

/// Refuses compromised releases before anything is pulled.
pub(crate) fn refuse_compromised(host: &Host, settings: &Settings) -> Result<()> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    Advisories::load(&host.paths)?.refuse(&host.paths, settings, &lock)
}

/// Records what a tag means, now that it is known, unless that must not run.
async fn record(
    host: &Host,
    lock: &mut ImagesLock,
    image: &ImageReference,
    found: ImageIdentity,
) -> Result<()> {
    Advisories::load(&host.paths)?
        .check(image, Some(&found.digest))
        .map_err(|found| {
            Failure::config(format!("{found}; it was pulled but will not be started"))
                .hint(Compromised::HINT)
        })?;
    if image.is_local() {
        // A later build under the same tag leaves it without a name, and Podman finds a digest by name only.
        let digest = found.digest.trim_start_matches(DIGEST_PREFIX);
        let kept = format!(
            "{}:recorded-{}",
            image.name(),
            digest.get(..12).unwrap_or(digest)
        );
        host.podman()
            .await?
            .run(["tag", image.as_str(), &kept])
            .await?;
    }
    *lock = ImagesLock::change(&host.paths.images_lock(), |lock| {
        lock.record(image, found);
        Ok(true)
    })?;
    Ok(())
}

/// Whether Podman takes the image only by the digest that is recorded, since it has no signature.
fn is_taken_without_signature(host: &Host, image: &ImageReference, digest: &str) -> Result<bool> {
    let places = Places::of(&host.paths);
    let Some(policy) = places.effective_policy()? else {
        return Ok(false);
    };
    let by_tag = format!(":{}", image.tag().unwrap_or_default());
    let by_digest = format!("@{digest}");
    if policy.demand(image.name(), &by_tag).accepts_anything()
        || !policy.demand(image.name(), &by_digest).accepts_anything()
    {
        return Ok(false);
    }
    let image = format!("{}{by_digest}", image.name());
    Ok(!places
        .record()?
        .is_some_and(|record| record.verified.contains_key(&image)))
}

/// What this program found out about an image before Podman pulls it.
#[cfg_attr(
    not(feature = "signatures"),
    expect(dead_code, reason = "then all is up to Podman")
)]
enum Admission {
    /// Nothing that Podman would not find out itself.
    UpToPodman,
    /// Podman takes it by this digest, since its signature was verified.
    Pinned(String),
    /// What is wrong with its signatures.
    Unsigned(String),
    /// Why its registry could not be asked.
    Unasked(String),
}

/// Verifies the image's signature where `trust` demands one that Podman can't verify itself, and has
/// Podman take the image by its digest. Nothing is loosened otherwise: Podman has the last word.
#[cfg(feature = "signatures")]
async fn admit(
    host: &Host,
    proxy: &OutgoingProxy,
    image: &ImageReference,
    reference: &str,
) -> Result<Admission> {
    use crate::operations::trust::{HostFacts, verification};

    let places = Places::of(&host.paths);
    let (Some(policy), Some(record)) = (places.effective_policy()?, places.record()?) else {
        return Ok(Admission::UpToPodman);
    };
    let demand = policy.demand(image.name(), &rest(image, reference));
    if !trust::is_below(image, &record.scope) || !is_ours(&demand, &places) {
        return Ok(Admission::UpToPodman);
    }
    let facts = HostFacts::of(host.podman().await?).await?;
    let digest = reference.split_once('@').map(|(_, digest)| digest);
    let found = match verification::verify(image, digest, &record, &places, &facts, proxy).await {
        Ok(found) => found,
        Err(error) => return Ok(Admission::Unasked(format!("{error:#}"))),
    };
    let signer = match found.signed {
        Ok(signer) => signer,
        Err(problems) => return Ok(Admission::Unsigned(problems.join("; "))),
    };
    host.progress
        .say(&format!("{image} is signed by {signer} ({})", found.digest));
    if found.can_podman {
        return Ok(Admission::UpToPodman);
    }
    let pinned = format!("{}@{}", image.name(), found.digest);
    places.pin(&pinned, &signer, facts)?;
    Ok(Admission::Pinned(found.digest))
}

#[cfg(not(feature = "signatures"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
async fn admit(_: &Host, _: &OutgoingProxy, _: &ImageReference, _: &str) -> Result<Admission> {
    Ok(Admission::UpToPodman)
}

/// Whether `trust` made this demand.
fn is_ours(demand: &Demand, places: &Places) -> bool {
    !demand.accepts_anything() && demand.keys().any(|key| Some(key) == places.key.to_str())
}

/// What Podman looks up its policy by, besides the name: it drops the tag where there is a digest.
fn rest(image: &ImageReference, reference: &str) -> String {
    match reference.split_once('@') {
        Some((_, digest)) => format!("@{digest}"),
        None => format!(":{}", image.tag().unwrap_or_default()),
    }
}

/// Pulls `image` as `reference`, which may have its digest. Returns the digest to pin the image by
/// if its signature was verified.
async fn pull(
    host: &Host,
    proxy: &ProxySettings,
    image: &ImageReference,
    reference: &str,
) -> Result<Option<String>> {
    let podman = host.podman().await?;
    if image.is_local() {
        if podman.has_image(reference).await? {
            return Ok(None);
        }
        return Err(Failure::new(format!(
            "{reference} is not in local storage, and no registry has an image of localhost"
        ))
        .hint(format!(
            "build it: `podman build -t {image} DIR` (docs/upgrade.md), or name another image {}",
            place_of(&host.paths, image)
        ))
        .into());
    }
    let proxy = &proxy.open()?;
    let admission = admit(host, proxy, image, reference).await?;
    host.progress.say(&format!("pulling {reference}"));
    let start = std::time::Instant::now();
    if let Admission::Pinned(digest) = &admission {
        let pinned = format!("{}@{digest}", image.name());
        podman.pull(&pinned, proxy).await?;
        if !reference.contains('@') {
            podman.run(["tag", &pinned, reference]).await?;
        }
    } else if let Err(error) = podman.pull(reference, proxy).await {
        return Err(
            match refusal(host, proxy, image, reference, &admission).await? {
                Some(refusal) => refusal,
                None => Failure::new(format!("{error:#}"))
                    .hint(format!(
                        "name another image {}, or check that this host can reach the registry",
                        place_of(&host.paths, image)
                    ))
                    .into(),
            },
        );
    }
    let took = duration(start.elapsed());
    host.progress.say(&format!("pulled {reference} in {took}"));
    Ok(match admission {
        Admission::Pinned(digest) => Some(digest),
        _ => None,
    })
}

/// What to say where Podman's policy was the reason, and not the network or the name.
async fn refusal(
    host: &Host,
    proxy: &OutgoingProxy,
    image: &ImageReference,
    reference: &str,
    admission: &Admission,
) -> Result<Option<anyhow::Error>> {
    let places = Places::of(&host.paths);
    let Some(policy) = places.effective_policy()? else {
        return Ok(None);
    };
    let demand = policy.demand(image.name(), &rest(image, reference));
    if demand.accepts_anything() {
        return Ok(None);
    }
    let reason = host
        .podman()
        .await?
        .reason_against(reference, proxy)
        .await?;
    let Some(reason) = reason.filter(|reason| reason.contains("rejected")) else {
        return Ok(None);
    };
    let place = policy.place(demand);
    let ours = places.record()?.filter(|_| is_ours(&demand, &places));
    let message = match (&ours, demand.keys().next()) {
        (Some(record), _) if record.is_litellm => {
            format!("{reference} is not signed by LiteLLM, as {place} demands")
        }
        (_, Some(key)) => {
            format!("{reference} is not signed by the key in {key}, as {place} demands")
        }
        (_, None) => format!("{reference} is refused by {place}"),
    };
    let hint = match ours {
        None => {
            format!(
                "ask the administrator who set this policy, or name another image {}",
                place_of(&host.paths, image)
            )
        }
        Some(record) => {
            let keys = record.key_files(&places).count();
            let place = place_of(&host.paths, image);
            other_release(image, record.is_litellm, keys, place)
        }
    };
    let cause = match admission {
        Admission::Unsigned(problem) => anyhow::anyhow!("{problem}"),
        Admission::Unasked(problem) => anyhow::anyhow!("{problem}; Podman says: {reason}"),
        _ => anyhow::anyhow!("Podman says: {reason}"),
    };
    Ok(Some(
        Failure::new(message).hint(hint).caused_by(cause).into(),
    ))
}

/// The hint for an image that lacks the signature that `trust` demands.
fn other_release(image: &ImageReference, is_litellm: bool, keys: usize, place: &str) -> String {
    let another = || {
        format!(
            "name another release {place}; to accept this one after your own verification: `litellm-units trust --accept IMAGE@DIGEST` (docs/trust.md)"
        )
    };
    if !trust::is_signed_release(image) {
        return format!(
            "LiteLLM signs its releases from 1.83 on; to use this one, name it with its digest in .env ({}@sha256:…), then run `litellm-units trust`",
            image.as_str().split('@').next().unwrap_or_default()
        );
    }
    if !is_litellm {
        return another();
    }
    if let Some(source) = known::unsigned(image) {
        return format!(
            "LiteLLM published this release without a signature ({source}); name another one {place}"
        );
    }
    match known::way(image) {
        // The second key does not come with the program.
        Some(known::SigningMethod::Key(index)) if index >= keys => format!(
            "this release is signed with the key of BerriAI/litellm's commit {}: download its cosign.pub, then run `litellm-units trust --key cosign.pub` (docs/trust.md)",
            known::KEYS[index].commit
        ),
        _ => another(),
    }
}

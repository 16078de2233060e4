//! Malicious images, and the verification of signatures.

use super::{Check, CheckName, Examination};
use crate::deployment::images_lock::ImagesLock;
use crate::error::Result;
use crate::image::ImageReference;
use crate::litellm::advisories::{Advisories, Compromised};
use crate::operations::trust::{HostFacts, Places, PolicyPlan, Wish, is_signed_release};
use crate::service::Service;

/// Whether a container runs an image that is known to be malicious, whatever `.env` says.
pub(crate) async fn running(examination: &Examination<'_>) -> Option<Check> {
    // Check `images` reports an unreadable list.
    let advisories = Advisories::load(&examination.host.paths).ok()?;
    let podman = examination.host.podman().await.ok()?;
    let services = examination
        .units
        .as_ref()?
        .iter()
        .filter(|(instance, unit)| instance.service() != Service::Migrate && unit.is_active());
    let found = services.map(async |(service, _)| {
        let container = service.container();
        // Check `units` reports a missing container.
        let running = podman.container_image(container).await.ok()??;
        let image = ImageReference::parse(&running.reference).ok()?;
        let digest = running.identity.digest;
        let found = advisories.check(&image, Some(&digest)).err()?;
        Some(format!("{container} runs it: {found}"))
    });
    let found: Vec<String> = futures_util::future::join_all(found)
        .await
        .into_iter()
        .flatten()
        .collect();
    if found.is_empty() {
        return None;
    }
    Some(
        Check::failure(CheckName::Compromised, found.join("; ")).remedy(format!(
            "run `litellm-units down`; then {}",
            Compromised::HINT
        )),
    )
}

/// Whether Podman verifies the signature of the gateway's image, if it has one.
pub(crate) async fn signatures(examination: &Examination<'_>) -> Option<Check> {
    let image = &examination.settings.as_ref()?.litellm_image;
    if !image.is_litellm() || image.is_local() {
        return None;
    }
    let places = Places::of(&examination.host.paths);
    match verified(examination, image, &places).await {
        Ok(check) => check,
        Err(error) => Some(Check::error(CheckName::Signatures, &error)),
    }
}

async fn verified(
    examination: &Examination<'_>,
    image: &ImageReference,
    places: &Places,
) -> Result<Option<Check>> {
    let record = places.record()?;
    // With an unreadable policy Podman pulls nothing, even if `trust` was never used.
    let Some(policy) = places.effective_policy()? else {
        return Ok(None);
    };
    if record.is_none() && !is_signed_release(image) {
        return Ok(None);
    }
    if record.is_some() {
        let wish = Wish::of(HostFacts::of(examination.host.podman().await?).await?);
        let plan = PolicyPlan::set(places, &wish)?;
        if !plan.is_empty() {
            let mut files: Vec<String> = plan
                .visible()
                .map(|change| change.path.display().to_string())
                .collect();
            files.extend(
                plan.links
                    .keys()
                    .chain(&plan.unlinks)
                    .map(|link| link.display().to_string()),
            );
            let message = format!("changed since `litellm-units trust`: {}", files.join(", "));
            return Ok(Some(Check::warning(CheckName::Signatures, message).remedy(
                "see `litellm-units trust --dry-run`, then run `litellm-units trust`",
            )));
        }
    }
    let tag = image.tag().map(|tag| format!(":{tag}"));
    let by_tag = policy.demand(image.name(), tag.as_deref().unwrap_or_default());
    let name = image.name();
    if by_tag.accepts_anything() {
        return Ok(is_signed_release(image).then(|| {
            let message = format!("LiteLLM signs {image}, but Podman does not verify it");
            Check::warning(CheckName::Signatures, message).remedy("`litellm-units trust`")
        }));
    }
    let lock = ImagesLock::load(&examination.host.paths.images_lock())?;
    let accepted = lock
        .identity(image)
        .map(|identity| format!("@{}", identity.digest))
        .filter(|digest| policy.demand(name, digest).accepts_anything());
    let place = policy.place(by_tag);
    let signer = record.zip(accepted.as_ref()).and_then(|(record, digest)| {
        let image = format!("{name}{digest}");
        record.verified.get(&image).cloned()
    });
    Ok(Some(Check::ok(
        CheckName::Signatures,
        match signer {
            Some(signer) => format!(
                "the digest of {image} was verified (signed by {signer}), and Podman accepts no other ({place})"
            ),
            None if accepted.is_some() => format!(
                "Podman verifies those of {name} ({place}), but accepts this one by its digest"
            ),
            None => format!("Podman verifies those of {name} ({place})"),
        },
    )))
}

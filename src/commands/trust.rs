//! `trust`: the signatures that Podman requires of LiteLLM's images.

use crate::cli;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::image::ImageReference;
use crate::operations::trust::{
    self, HostFacts, PUBLISHED, Places, PolicyPlan, TrustRecord, Wish, known,
};
use crate::output::{self, say};

pub(crate) async fn run(host: &Host, arguments: &cli::Trust) -> Result<Exit> {
    let lock = || OperationLock::take(&host.paths, "trust");
    let _lock = (!arguments.dry_run).then(lock).transpose()?;
    let places = Places::of(&host.paths);
    let _files = places.lock()?;
    let plan = if arguments.remove {
        PolicyPlan::remove(&places)?
    } else {
        PolicyPlan::set(&places, &wish(host, &places, arguments).await?)?
    };
    if arguments.dry_run {
        for (link, target) in &plan.links {
            output::line(&format!(
                "# link {} to {}",
                link.display(),
                target.display()
            ))?;
        }
        for change in plan.visible() {
            output::text(&change.diff())?;
        }
        for link in &plan.unlinks {
            output::line(&format!("# remove {}", link.display()))?;
        }
        return Ok(Exit::Success);
    }
    if !plan.is_empty() {
        plan.apply().map_err(unfinished)?;
        for (link, target) in &plan.links {
            output::line(&format!("link {} to {}", link.display(), target.display()))?;
        }
        for change in plan.visible() {
            output::line(&format!("{} {}", change.verb(), change.path.display()))?;
        }
        for link in &plan.unlinks {
            output::line(&format!("remove {}", link.display()))?;
        }
    }
    if let Some(record) = &plan.record {
        show(&places, record)?;
    }
    if plan.is_empty() {
        output::line("nothing to do")?;
    } else if !arguments.remove {
        say("next: `litellm-units pull` verifies the current images");
    }
    Ok(Exit::Success)
}

/// The arguments, and the images that must stay usable.
async fn wish(host: &Host, places: &Places, arguments: &cli::Trust) -> Result<Wish> {
    if let Some(scope) = &arguments.scope {
        trust::check_scope(scope)?;
    }
    let mut keys = Vec::new();
    for path in &arguments.key {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(format!("can't read {}: {error}", path.display()))
                .hint("--key takes the file with the public key")
        })?;
        trust::check_key(&text, path)?;
        keys.push(text);
    }
    let recorded = places.record()?.map(|record| record.scope);
    let scope = arguments.scope.clone().or(recorded);
    let inside = scope.as_deref().unwrap_or(PUBLISHED);
    let mut accept = Vec::new();
    for text in &arguments.accept {
        let image = ImageReference::parse(text)
            .map_err(|error| Failure::new(error.to_string()).hint(error.hint()))?;
        let Some(digest) = image.digest().filter(|_| trust::is_below(&image, inside)) else {
            return Err(Failure::new(format!(
                "{text} is not an image of {inside} with its digest"
            ))
            .hint(format!("write it as {inside}/litellm:VERSION@sha256:…"))
            .into());
        };
        accept.push(format!("{}@{digest}", image.name()));
    }
    let env = host.paths.env_file();
    let settings = env.exists().then(|| Settings::load(&env)).transpose()?;
    let current = settings.as_ref().map(|settings| &settings.litellm_image);
    let images = ImagesLock::load(&host.paths.images_lock())?;
    accept.extend(trust::unsigned(inside, current, &images)?);
    Ok(Wish {
        scope,
        keys,
        accept,
        ..Wish::of(HostFacts::of(host.podman().await?).await?)
    })
}

fn show(places: &Places, record: &TrustRecord) -> Result<()> {
    for path in record.key_files(places) {
        let whose = if record.is_litellm {
            ", which is LiteLLM's"
        } else {
            ""
        };
        output::line(&format!(
            "{}: images signed by the key in {}{whose}",
            record.scope,
            path.display()
        ))?;
    }
    if record.is_litellm && cfg!(feature = "signatures") {
        output::line(&format!(
            "{}: images signed without a key by {}",
            record.scope,
            known::IDENTITY.subject
        ))?;
    }
    for (image, signer) in &record.verified {
        output::line(&format!("{image}: signed by {signer}"))?;
    }
    for image in record.accepted() {
        output::line(&format!("{image}: without a signature"))?;
    }
    Ok(())
}

fn unfinished(error: anyhow::Error) -> anyhow::Error {
    Failure::new("not all files are written; each is either unchanged or complete")
        .hint("fix the cause and run the command again: it continues where it stopped")
        .caused_by(error)
        .into()
}

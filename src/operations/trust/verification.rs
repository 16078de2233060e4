//! Verifies at the registry what Podman's policy can't express: a signature without a key, a
//! signature of an index, a second key where Podman accepts only one.

use std::path::Path;

use super::registry::{Published, Repository};
use super::signature::{Signed, Signers, Subject};
use super::{HostFacts, PUBLISHED, Places, REPOSITORIES, TrustRecord, known, read};
use crate::error::Result;
use crate::host::outgoing_proxy::OutgoingProxy;
use crate::host::registries::endpoints;
use crate::image::ImageReference;

/// An image in a registry, and whether it is signed.
#[derive(Debug)]
pub(crate) struct Verification {
    /// The manifest's digest.
    pub digest: String,
    /// Whether Podman's policy accepts the image by itself: it verifies signatures with a key, of
    /// one platform's manifest.
    pub can_podman: bool,
    /// The signer, or the fault of each signature.
    pub signed: std::result::Result<String, Vec<String>>,
}

impl TrustRecord {
    /// The signers whose signatures are accepted.
    ///
    /// # Errors
    /// When a key or the file with the trusted root can't be read or is damaged.
    pub fn signers(&self, places: &Places) -> Result<Signers> {
        let mut keys = Vec::new();
        for path in self.key_files(places) {
            if let Some(text) = read(&path)? {
                keys.push((format!("the key in {}", path.display()), text));
            }
        }
        let identity = self.is_litellm.then_some(known::IDENTITY);
        let root = places.sigstore_root()?;
        let root = root.as_ref().map(|(path, text)| (*path, text.as_str()));
        Signers::new(&keys, identity, root)
    }

    /// The names that a signature of an image with this name may contain.
    #[must_use]
    pub fn names(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        let last = name.rsplit('/').next().unwrap_or_default();
        if self.is_litellm && REPOSITORIES.contains(&last) {
            // In another registry, LiteLLM's signatures still name the images as LiteLLM published
            // them.
            let published = format!("{PUBLISHED}/{last}");
            if published != name {
                names.push(published);
            }
        }
        names
    }
}

impl Places {
    /// The trusted root that replaces the program's own, if there is one.
    fn sigstore_root(&self) -> Result<Option<(&Path, String)>> {
        for path in &self.sigstore {
            if let Some(text) = read(path)? {
                return Ok(Some((path, text)));
            }
        }
        Ok(None)
    }
}

/// Looks up the image of a reference and verifies its signatures, at the first place that has it.
///
/// # Errors
/// When no registry can be asked, or none has the image.
pub(crate) async fn verify(
    image: &ImageReference,
    digest: Option<&str>,
    record: &TrustRecord,
    places: &Places,
    host: &HostFacts,
    proxy: &OutgoingProxy,
) -> Result<Verification> {
    let signers = record.signers(places)?;
    let names = record.names(image.name());
    let reference = digest.or(image.tag()).unwrap_or_default();
    let by_podman = if host.lists_keys { record.keys } else { 1 };
    let mut published: Option<Published> = None;
    let mut problems = Vec::new();
    let mut unreachable = Vec::new();
    for endpoint in &endpoints(image.name(), &host.registries) {
        // All places must have the same image.
        let wanted = published
            .as_ref()
            .map_or(reference, |found| found.digest.as_str())
            .to_owned();
        let (found, repository) = match ask(Repository::at(endpoint, proxy)?, &wanted).await {
            Ok(Some(answer)) => answer,
            Ok(None) => continue,
            Err(error) => {
                unreachable.push(format!("{error:#}"));
                continue;
            }
        };
        let mut look = Look {
            repository,
            signers: &signers,
            names: &names,
        };
        match look.at(image, &found).await {
            Ok(Ok((Signed { by, key }, is_index))) => {
                return Ok(Verification {
                    can_podman: key.is_some_and(|key| key < by_podman) && !is_index,
                    digest: found.digest,
                    signed: Ok(by),
                });
            }
            Ok(Err(found)) => problems = found,
            Err(error) => unreachable.push(format!("{error:#}")),
        }
        published = Some(found);
    }
    match published {
        Some(found) if !problems.is_empty() => Ok(Verification {
            digest: found.digest,
            can_podman: false,
            signed: Err(problems),
        }),
        _ if unreachable.is_empty() => anyhow::bail!("no registry has {image}"),
        _ => Err(anyhow::anyhow!("{}", unreachable.join("; "))),
    }
}

/// The fault of each signature.
type Problems = Vec<String>;

/// The signatures to look for, and the places.
struct Look<'a> {
    repository: Repository,
    signers: &'a Signers,
    names: &'a [String],
}

impl Look<'_> {
    /// Verifies the signatures of an image; also returns whether the valid one is that of an index.
    async fn at(
        &mut self,
        image: &ImageReference,
        found: &Published,
    ) -> Result<std::result::Result<(Signed, bool), Problems>> {
        let problems = match self.verify(&found.digest).await? {
            Ok(signed) => return Ok(Ok((signed, !found.platforms.is_empty()))),
            Err(problems) => problems,
        };
        // Perhaps the image of this platform is recorded, but the index is signed.
        if let Some(tag) = image.tag()
            && let Some(index) = self.repository.published(tag).await?
            && index.platforms.contains(&found.digest)
            && let Ok(signed) = self.verify(&index.digest).await?
        {
            return Ok(Ok((signed, true)));
        }
        Ok(Err(problems))
    }

    async fn verify(&mut self, digest: &str) -> Result<std::result::Result<Signed, Problems>> {
        let attached = self.repository.signatures(digest).await?;
        let names = self.names;
        Ok(self.signers.verify(&attached, Subject { digest, names }))
    }
}

/// Asks one place by the first of these clients that works.
async fn ask(ways: Vec<Repository>, reference: &str) -> Result<Option<(Published, Repository)>> {
    let mut failed = None;
    for mut repository in ways {
        match repository.published(reference).await {
            Ok(Some(found)) => return Ok(Some((found, repository))),
            Ok(None) => return Ok(None),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

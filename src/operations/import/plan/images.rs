//! The images of the old containers, as Podman and the units take them.

use super::Maker;
use super::chosen::variable;
use crate::error::{Failure, Result};
use crate::host::docker::{BY_HAND, Container, DockerImage};
use crate::image::{ImageError, ImageReference};

/// A reference as Podman takes it: Docker leaves out docker.io and library.
pub(super) fn qualified(reference: &str) -> String {
    match reference.split_once('/') {
        None => format!("docker.io/library/{reference}"),
        Some((registry, _)) if registry.contains(['.', ':']) || registry == "localhost" => {
            reference.to_owned()
        }
        Some(_) => format!("docker.io/{reference}"),
    }
}

/// The repository of a reference.
pub(super) fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or_default();
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path..].find(':') {
        Some(colon) => &name[..path + colon],
        None => name,
    }
}

/// The image that runs, with the digest that its registry has it by.
pub(super) fn image(
    container: &Container,
    image: &DockerImage,
) -> Result<(ImageReference, Option<String>)> {
    let digests = || {
        let digests = image.repo_digests.iter();
        digests.map(|digest| qualified(digest))
    };
    let mut reference = qualified(&container.config.image);
    // The tag of an image that was replaced is no name of it any more.
    if container.config.image.starts_with("sha256:")
        && let Some(digest) = digests().next()
    {
        reference = digest;
    }
    let digest = digests()
        .find(|digest| repository(digest) == repository(&reference))
        .and_then(|digest| Some(digest.split_once('@')?.1.to_owned()));
    let parsed = match (ImageReference::parse(&reference), &digest) {
        (Err(ImageError::Floating(..) | ImageError::Unpinned(_)), Some(digest)) => {
            ImageReference::parse(&format!("{reference}@{digest}"))
        }
        (parsed, _) => parsed,
    };
    let parsed = parsed.map_err(|error| {
        Failure::new(format!(
            "the image of service {} was built on this host, and its name says no version: {error}",
            container.service()
        ))
        .hint("give it a version in the compose file, such as `image: localhost/litellm:1`, and run `docker compose up -d --build` there")
    })?;
    let digest = parsed.digest().map(str::to_owned).or(digest);
    Ok((parsed, digest))
}

impl Maker<'_> {
    /// The image of `container` if it is the official one or made of it, which the units can run; else the official one of
    /// the same major version.
    pub(super) fn postgres_image(&mut self, container: &Container) -> Result<ImageReference> {
        const OFFICIAL: &str = "docker.io/library/postgres";
        let reference = qualified(&container.config.image);
        let parsed = ImageReference::parse(&reference).ok();
        let is_like_official = container.path.ends_with("docker-entrypoint.sh")
            && container.config.env.contains_key("PG_MAJOR");
        if let Some(same) = parsed
            .clone()
            .filter(|same| same.name() == OFFICIAL || is_like_official)
        {
            return Ok(same);
        }
        let major = variable(container, "PG_MAJOR")
            .or_else(|| Some(parsed?.major()?.to_string()))
            .ok_or_else(|| {
                Failure::new(format!(
                    "can't tell which major version of PostgreSQL {} has",
                    container.config.image
                ))
                .hint(format!("move the deployment by hand: {BY_HAND}"))
            })?;
        let instead = format!("{OFFICIAL}:{major}");
        if repository(&reference) != OFFICIAL {
            self.note(
                format!(
                    "image {} of service {}",
                    container.config.image,
                    container.service()
                ),
                format!("{instead} is used, which lacks the extensions of the other image"),
            );
        }
        ImageReference::parse(&instead).map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::operations::import::plan::Chosen;
    use crate::operations::import::plan::fixtures::{containers, image_of};

    #[test]
    fn an_image_without_a_version() {
        let all = containers("example");
        let chosen = Chosen::new(&all, Path::new("/root/rec/example"), None, None).unwrap();
        let built = DockerImage {
            repo_digests: Vec::new(),
            ..image_of("x")
        };
        assert_eq!(
            image(chosen.gateway(), &built).unwrap_err().to_string(),
            "the image of service litellm was built on this host, and its name says no version: \
             \"docker.litellm.ai/berriai/litellm:main-stable\" has the floating tag \"main-stable\""
        );
    }

    #[test]
    fn names_of_images() {
        for (docker, podman, of) in [
            (
                "redis",
                "docker.io/library/redis",
                "docker.io/library/redis",
            ),
            (
                "redis:7",
                "docker.io/library/redis:7",
                "docker.io/library/redis",
            ),
            (
                "my/litellm:1",
                "docker.io/my/litellm:1",
                "docker.io/my/litellm",
            ),
            (
                "localhost:5000/a:1",
                "localhost:5000/a:1",
                "localhost:5000/a",
            ),
            (
                "ghcr.io/a/b@sha256:1",
                "ghcr.io/a/b@sha256:1",
                "ghcr.io/a/b",
            ),
        ] {
            assert_eq!(qualified(docker), podman);
            assert_eq!(repository(podman), of);
        }
    }
}

//! With which owners a container of the gateway or of the migration sees its volumes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::Settings;
use crate::error::Result;
use crate::host::Host;
use crate::host::files;
use crate::host::namespaces;
use crate::host::paths::Scope;
use crate::output::shell_word;
use crate::quadlet::{self, drop_ins};
use crate::service::Service;

/// Options of the volumes, each with a comma before it.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    pub(super) volumes: String,
    /// Those of logs/, which may belong to another user.
    logs: String,
}

impl Mapping {
    fn same(option: impl Into<String>) -> Self {
        let volumes = option.into();
        let logs = volumes.clone();
        Self { volumes, logs }
    }

    /// The variables of the units, a line each.
    pub(super) fn variables(&self) -> String {
        let Self { volumes, logs } = self;
        format!("LITELLM_UNITS_IDMAP={volumes}\nLITELLM_UNITS_LOGS_IDMAP={logs}\n")
    }

    /// What belongs to root on the disk belongs to the user of the image, also where nobody else on the host may write or
    /// read it. The image is there.
    ///
    /// # Errors
    /// When Podman or the host can't be asked about user namespaces.
    pub(super) async fn of(
        host: &Host,
        settings: &Settings,
        images: &ImagesLock,
        service: Service,
        container: &str,
    ) -> Result<Self> {
        if !matches!(service, Service::Migrate | Service::Litellm) || host.scope() == Scope::User {
            return Ok(Self::default());
        }
        let (first, usual) = if settings.user_namespaces {
            (quadlet::first_id(service), ",idmap")
        } else {
            (0, "")
        };
        let paths = &host.paths;
        let file = |name: &str| format!("{name}.container");
        let mut unit = file(container);
        // The one to the next release exists only while it runs.
        let next = file(quadlet::NEXT_MIGRATION);
        if service == Service::Migrate && paths.quadlets.join(&next).exists() {
            unit = next;
        }
        let added = drop_ins::of(&paths.quadlets, &unit);
        if added.iter().any(|path| names_user(path)) {
            return Ok(Self::same(usual));
        }
        // That of the unit, beside which an edited .env may name another one.
        let installed = installed_release::of_file(&paths.quadlets.join(&unit));
        let image = images.pin(installed.as_ref().unwrap_or(&settings.litellm_image));
        let user = match host.podman().await?.image_user(&image).await {
            Ok(user) => user,
            Err(error) => {
                host.progress.warn(&format!(
                    "can't read which user the image has, so the volumes are mounted as for root: {error:#}"
                ));
                return Ok(Self::same(usual));
            }
        };
        let Some((user, group)) = numbers(&user) else {
            return Ok(Self::same(usual));
        };
        let (places, lost) = match service {
            Service::Migrate => (
                vec![paths.certificates()],
                "can't read private files in certs/",
            ),
            _ => (
                [&paths.mounted()[..], &[paths.logs()]].concat(),
                "can't write logs/, nor read private files in config/, certs/ and files/",
            ),
        };
        if let Some(obstacle) = namespaces::obstacle_of(host, &places).await? {
            host.progress.warn(&format!(
                "the image runs as user {user}, who {lost}: {obstacle}"
            ));
            return Ok(Self::same(usual));
        }
        let (mapped_user, mapped_group) = (first + user, first + group);
        let mut mapping = Self::same(format!(
            ",idmap=uids=0-{mapped_user}-1;gids=0-{mapped_group}-1"
        ));
        let logs = paths.logs();
        if service == Service::Litellm
            && let Some(foreign) = not_of_root(&logs)
        {
            let command = format!("`sudo chown -hR root:root {}`", shell_word(&logs));
            host.progress.warn(&format!(
                "{} does not belong to root, so it can't belong to the image's user {user} in the container: {command}, then restart the gateway",
                foreign.display()
            ));
            // It may belong to that user, who then writes there as before.
            if foreign == logs {
                mapping.logs = usual.into();
            }
        }
        Ok(mapping)
    }
}

/// Whether a drop-in of a container decides who runs in it.
fn names_user(drop_in: &Path) -> bool {
    let text = std::fs::read_to_string(drop_in).unwrap_or_default();
    let keys = ["User", "Group", "Image"];
    let mut lines = { text.lines() }.filter_map(|line| line.split_once('='));
    lines.any(|(key, _)| keys.contains(&key.trim()))
}

/// The directory, or the first entry of it, that does not belong to root.
fn not_of_root(directory: &Path) -> Option<PathBuf> {
    let mut places = vec![directory.to_owned()];
    places.extend(files::entries(directory).unwrap_or_default());
    places.into_iter().find(|path| {
        let found = path.symlink_metadata();
        found.is_ok_and(|found| (found.uid(), found.gid()) != (0, 0))
    })
}

/// User and group of an image's `USER`, if they are known without a look into it, and not those of root.
fn numbers(user: &str) -> Option<(u32, u32)> {
    const NOBODY: u32 = 65_534;
    let number = |word: &str| match word {
        "nobody" | "nogroup" => Some(NOBODY),
        word => word.parse().ok().filter(|number| *number <= NOBODY),
    };
    let both = match user.split_once(':') {
        Some((user, group)) => (number(user)?, number(group)?),
        None => (number(user)?, NOBODY),
    };
    // The group of another user is in the image.
    (both.0 != 0 && (user.contains(':') || both.0 == NOBODY)).then_some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_that_name_a_user() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.conf");
        for (text, expected) in [
            ("[Container]\nUser=0\n", true),
            ("[Container]\n Image = localhost/x:1\n", true),
            ("[Container]\n#User=0\nEnvironment=User=0\n", false),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(names_user(&path), expected, "{text}");
        }
    }

    #[test]
    fn users_of_images() {
        for (user, expected) in [
            ("", None),
            ("root", None),
            ("0:0", None),
            ("nobody", Some((65_534, 65_534))),
            ("65534", Some((65_534, 65_534))),
            ("nobody:nogroup", Some((65_534, 65_534))),
            ("1000:1000", Some((1000, 1000))),
            ("1000:0", Some((1000, 0))),
            ("1000", None),
            ("litellm", None),
        ] {
            assert_eq!(numbers(user), expected, "{user}");
        }
    }
}

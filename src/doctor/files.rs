//! The deployment directory and the file systems below it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use secrecy::ExposeSecret;

use super::{Check, CheckName, Examination, Fix};
use crate::deployment::completion::{container_owner, other_library};
use crate::deployment::env_file::EnvFile;
use crate::deployment::external;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::sealed::{Vault, is_sealed};
use crate::deployment::settings::{DEFAULT_LITELLM_IMAGE, Settings, place};
use crate::deployment::variables::{is_secret, may_be_sealed};
use crate::error::Result;
use crate::host::files;
use crate::host::ownership;
use crate::host::paths::{Paths, Scope};
use crate::host::{self, Host};
use crate::image::ImageReference;
use crate::litellm::advisories::{Advisories, Compromised};
use crate::litellm::config::{Severity, check_deployment};
use crate::operations::stack::space;
use crate::operations::{backup, seal};
use crate::output::{self, bytes, shell_word};
use crate::service::Service;

/// With less, the database may stop at any time.
const TOO_LITTLE: u64 = backup::RESERVE;
/// With less, a new image or a backup may not fit.
const LITTLE: u64 = 2 << 30;

/// Of every file system that the deployment and its containers write to.
pub(crate) async fn space(host: &Host, podman_works: bool) -> Vec<Check> {
    let (mut places, silent) = space::answering_places(&host.paths).await;
    if podman_works
        && let Ok(podman) = host.podman().await
        && let Ok(root) = podman
            .run(["info", "--format", "{{.Store.GraphRoot}}"])
            .await
    {
        places.push(root.trim().into());
    }
    let systems = space::systems(places);
    let mut disks: Vec<_> = { systems.iter() }
        .map(|(path, found)| (space::bytes_free(found), path))
        .collect();
    disks.sort();
    // Each that is nearly full, or the one that will be the first.
    let low = disks.partition_point(|(free, _)| *free < LITTLE);
    let disks = { disks.into_iter() }
        .take(low.max(1))
        .map(|(free, path)| disk(path, free));
    // Some file systems (btrfs) have no fixed number of inodes, and say 0.
    let fewest = systems
        .iter()
        .filter(|(_, found)| found.files() > 0)
        .min_by_key(|(_, found)| found.files_available() * 1000 / found.files());
    let inodes = match fewest {
        Some((path, found)) => inodes(path, found.files_available(), found.files()),
        None => Check::ok(CheckName::Inodes, "the file systems have no limit"),
    };
    let silent = silent.map(|error| Check::error(CheckName::Disk, &error));
    silent.into_iter().chain(disks).chain([inodes]).collect()
}

fn disk(path: &Path, free: u64) -> Check {
    let message = format!("{} free for {}", bytes(free), path.display());
    let remedy = format!(
        "free or add space; to see what uses it: `du -xh --max-depth=2 {} | sort -h`",
        shell_word(path)
    );
    match free {
        ..TOO_LITTLE => Check::failure(CheckName::Disk, message).remedy(remedy),
        TOO_LITTLE..LITTLE => Check::warning(CheckName::Disk, message).remedy(remedy),
        _ => Check::ok(CheckName::Disk, message),
    }
    .of(path)
}

fn inodes(path: &Path, free: u64, all: u64) -> Check {
    let message = format!("{free} of {all} inodes free for {}", path.display());
    let remedy = format!(
        "remove small files; to find them: `du --inodes -x --max-depth=2 {} | sort -n`",
        shell_word(path)
    );
    if free * 100 < all {
        Check::failure(CheckName::Inodes, message).remedy(remedy)
    } else if free * 20 < all {
        Check::warning(CheckName::Inodes, message).remedy(remedy)
    } else {
        Check::ok(CheckName::Inodes, message)
    }
}

/// Whether only root, or the user, can change the deployment.
pub(crate) fn ownership(host: &Host) -> Check {
    let checked = host::program().and_then(|program| ownership::check(&host.paths, Some(&program)));
    match checked {
        Ok(()) => Check::ok(
            CheckName::Ownership,
            format!(
                "only its owner can change {}",
                host.paths.deployment.display()
            ),
        ),
        Err(error) => Check::error(CheckName::Ownership, &error),
    }
}

/// Whether only their owner can read the files with secrets.
pub(crate) fn secrets(host: &Host) -> Check {
    let files = [
        host.paths.env_file(),
        host.paths.service_key(),
        host.paths.credentials(),
        host.paths.state(),
    ];
    let mut open = Vec::new();
    let mut words = Vec::new();
    for path in files {
        let Ok(found) = path.metadata() else { continue };
        if found.mode() & 0o077 != 0 {
            words.push(format!(
                "{} can be read by others (mode {:04o})",
                path.display(),
                found.mode() & 0o7777
            ));
            open.push(path);
        }
    }
    if open.is_empty() {
        return Check::ok(
            CheckName::Secrets,
            format!(
                "only the owner can read {}",
                host.paths.env_file().display()
            ),
        );
    }
    let commands: Vec<String> = open
        .iter()
        .map(|path| format!("chmod go= {}", shell_word(path)))
        .collect();
    Check::failure(CheckName::Secrets, words.join("; "))
        .remedy(format!("`{}`", commands.join(" && ")))
        .fix(Fix::Protect(open))
}

/// Whether sealed secrets can be opened, and none is left in clear. `None` if no secret is sealed.
pub(crate) fn sealed(env: &EnvFile, path: &Path) -> Option<Check> {
    if !seal::is_in_use(env) {
        return None;
    }
    let vault = Vault::beside(path);
    let (mut count, mut clear) = (0, Vec::new());
    for (name, value) in env.iter() {
        if is_sealed(value) {
            if let Err(error) = vault.open(value) {
                return Some(Check::error(CheckName::Sealed, &error));
            }
            count += 1;
        } else if is_secret(name, value)
            && may_be_sealed(name)
            && !value.is_empty()
            && env.reference(name).is_none()
        {
            clear.push(name);
        }
    }
    let keys = match seal::keys(env, path) {
        Ok(keys) => keys,
        Err(error) => return Some(Check::error(CheckName::Sealed, &error)),
    };
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let message = format!(
        "sealed with {}: {}",
        keys.join(" or "),
        output::count(count, "secret")
    );
    if !clear.is_empty() {
        let message = format!("{message}, but in clear: {}", clear.join(", "));
        return Some(
            Check::warning(CheckName::Sealed, message).remedy("`litellm-units secrets seal`"),
        );
    }
    if env.get("BACKUP_AGE_RECIPIENT").is_none_or(str::is_empty) {
        let message = format!("{message}, so backups can restore them on this host only");
        return Some(Check::warning(CheckName::Sealed, message).remedy(
            "encrypt backups to a key that is kept off this host: set BACKUP_AGE_RECIPIENT in .env",
        ));
    }
    Some(Check::ok(CheckName::Sealed, message))
}

/// Whether other programs give the values that containers get from them; if so, a failure at a start is not reported any more.
/// `None` if `.env` names none.
pub(crate) fn external(paths: &Paths, settings: &Settings) -> Option<Check> {
    let lookups: Vec<_> = settings.lookups().collect();
    if lookups.is_empty() {
        return None;
    }
    let fetched = match external::fetch_all(paths, &lookups) {
        Ok(fetched) => fetched,
        Err(error) => return Some(Check::error(CheckName::External, &error)),
    };
    let (mut failed, mut changed) = (Vec::new(), Vec::new());
    for (lookup, fetched) in lookups.iter().zip(fetched) {
        let kept = match lookup.last_good(paths) {
            Ok(kept) => kept,
            Err(error) => return Some(Check::error(CheckName::External, &error)),
        };
        match (fetched, kept) {
            (Err(error), None) => return Some(Check::error(CheckName::External, &error)),
            (Err(error), Some(kept)) => {
                let remedy = crate::error::hint(&error).map(str::to_owned);
                let words = format!(
                    "{error:#}; containers start with the value that was fetched at {:.0}",
                    kept.fetched
                );
                failed.push((words, remedy));
            }
            (Ok(value), Some(kept)) if kept.value().expose_secret() != value.expose_secret() => {
                changed.push(lookup.variable());
            }
            (Ok(_), Some(kept)) if kept.failure.is_some() => {
                // The containers have the current value.
                if let Err(error) = lookup.clear_failure(paths, kept) {
                    return Some(Check::error(CheckName::External, &error));
                }
            }
            (Ok(_), _) => {}
        }
    }
    if let Some((_, remedy)) = failed.first() {
        let remedy = remedy.clone().unwrap_or_default();
        let words: Vec<_> = failed.iter().map(|(words, _)| words.as_str()).collect();
        return Some(Check::warning(CheckName::External, words.join("; ")).remedy(remedy));
    }
    if !changed.is_empty() {
        let words = format!(
            "another value than at the last start: {}",
            changed.join(", ")
        );
        return Some(
            Check::warning(CheckName::External, words)
                .remedy("`litellm-units restart --handover litellm`"),
        );
    }
    let count = output::count(lookups.len(), "secret");
    Some(Check::ok(
        CheckName::External,
        format!("other programs give {count}"),
    ))
}

/// Removes all permissions of others than the owner.
pub(crate) fn protect(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for file in files {
        let mode = file.metadata()?.mode() & 0o700;
        files::set_mode(file, mode)?;
        done.push(format!("set mode {mode:04o} of {}", file.display()));
    }
    Ok(done)
}

const IMAGES: [&str; 3] = ["LITELLM_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE"];

pub(crate) fn images(host: &Host, env: &EnvFile) -> Check {
    let known = Advisories::load(&host.paths).and_then(|advisories| {
        let lock = ImagesLock::load(&host.paths.images_lock())?;
        Ok((advisories, lock))
    });
    let (advisories, lock) = match known {
        Ok(known) => known,
        Err(error) => return Check::error(CheckName::Images, &error),
    };
    for name in IMAGES {
        let Some(text) = env.get(name).filter(|text| !text.is_empty()) else {
            continue;
        };
        let fault = match ImageReference::parse(text) {
            Err(error) => Some((error.to_string(), error.hint())),
            Ok(image) => {
                let identity = lock.identity(&image);
                let digest = identity.as_ref().map(|identity| identity.digest.as_str());
                let found = advisories.check(&image, digest).err();
                found.map(|found| (found.to_string(), Compromised::HINT))
            }
        };
        if let Some((fault, hint)) = fault {
            let place = place(Some(env), &host.paths.env_file(), name);
            return Check::failure(CheckName::Images, format!("{place}: {fault}")).remedy(hint);
        }
    }
    Check::ok(
        CheckName::Images,
        "every image is pinned, and none is known to be malicious",
    )
}

/// Replaces unusable images, so that the rest of the file can be checked.
pub(crate) fn without_bad_images(env: &EnvFile) -> Result<EnvFile> {
    let mut env = env.clone();
    for name in IMAGES {
        if env
            .get(name)
            .is_some_and(|text| !text.is_empty() && ImageReference::parse(text).is_err())
        {
            env.set(name, DEFAULT_LITELLM_IMAGE)?;
        }
    }
    Ok(env)
}

/// A server does not start if its user does not own its data.
pub(crate) fn data(examination: &Examination<'_>) -> Option<Check> {
    let settings = examination.settings.as_ref()?;
    let paths = &examination.host.paths;
    for (service, path) in [
        (Service::Postgres, paths.postgres_data()),
        (Service::Redis, paths.redis_data()),
    ] {
        let Some(image) = settings.image(service) else {
            continue;
        };
        let owner = match examination.host.scope() {
            Scope::System => container_owner(service, image),
            Scope::User => Some((geteuid().as_raw(), nix::unistd::getegid().as_raw())),
        };
        let (Some((uid, gid)), Ok(found)) = (owner, path.metadata()) else {
            continue;
        };
        if found.uid() != uid {
            if service == Service::Postgres
                && let Some(failure) = other_library(found.uid(), image)
            {
                return Some(Check::error(CheckName::Data, &failure.into()));
            }
            return Some(
                Check::failure(
                    CheckName::Data,
                    format!(
                        "{} belongs to user {}, but {} runs as {uid}",
                        path.display(),
                        found.uid(),
                        service.name()
                    ),
                )
                .remedy(format!(
                    "as root: `chown -R {uid}:{gid} {}`",
                    shell_word(&path)
                )),
            );
        }
    }
    Some(Check::ok(
        CheckName::Data,
        format!(
            "{} belongs to the users of the containers",
            paths.data().display()
        ),
    ))
}

/// What the gateway can't read, or the errors of `config check` without its warnings.
pub(crate) fn gateway_config(examination: &Examination<'_>) -> Option<Check> {
    examination.settings.as_ref()?;
    let paths = &examination.host.paths;
    let path = paths.config_file();
    match ownership::unreadable(paths) {
        Ok(unreadable) => {
            if let Some((message, command)) = ownership::unreadable_words(paths, &unreadable) {
                return Some(Check::failure(CheckName::Config, message).remedy(command));
            }
        }
        Err(error) => return Some(Check::error(CheckName::Config, &error)),
    }
    let findings = match check_deployment(examination.host) {
        Ok(findings) => findings,
        Err(error) => return Some(Check::error(CheckName::Config, &error)),
    };
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .collect();
    Some(match errors.as_slice() {
        [] => Check::ok(CheckName::Config, format!("{} is valid", path.display())),
        [first, rest @ ..] => {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" (and {} more)", rest.len())
            };
            let place = format!("{}:{}:{}", first.file.display(), first.line, first.column);
            Check::failure(
                CheckName::Config,
                format!("{place}: {}{more}", first.message),
            )
            .remedy("to see all: `litellm-units config check`")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;

    #[test]
    fn limits() {
        let path = Path::new("/x");
        assert_eq!(disk(path, TOO_LITTLE - 1).outcome, CheckOutcome::Failure);
        assert_eq!(disk(path, TOO_LITTLE).outcome, CheckOutcome::Warning);
        assert_eq!(disk(path, LITTLE).outcome, CheckOutcome::Ok);
        assert_eq!(inodes(path, 0, 100).outcome, CheckOutcome::Failure);
        assert_eq!(inodes(path, 4, 100).outcome, CheckOutcome::Warning);
        assert_eq!(inodes(path, 5, 100).outcome, CheckOutcome::Ok);
    }
}

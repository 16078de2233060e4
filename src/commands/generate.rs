//! `generate`: from `.env` to installed units.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::pull;
use crate::cli;
use crate::deployment::completion;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::files;
use crate::host::paths::Scope;
use crate::host::systemd::job::{Jobs, Verb};
use crate::host::{self, Host};
use crate::image::Image;
use crate::litellm::advisories::{self, Advisories};
use crate::output::{self, say, warn};
use crate::quadlet::plan::Plan;
use crate::quadlet::{self, Place, PodmanVersion, UnitFile};
use crate::random::kernel_random;

/// How long systemd may take to start a timer.
const TIMER_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, or the host can't run the units.
pub async fn run(host: &Host, arguments: cli::Generate) -> Result<Exit> {
    if let Some(directory) = &arguments.output {
        let knows = Knows {
            podman: arguments.podman.unwrap_or(PodmanVersion::DEFAULT),
            systemd: arguments.systemd.unwrap_or(quadlet::Systemd::DEFAULT),
        };
        return render_into(host, directory, knows);
    }
    let prepared = prepare(host, Target::Recorded).await?;
    if let Some(kept) = prepared.kept() {
        warn(&installed_release::notice(prepared.settings(), kept));
    }
    if arguments.dry_run || arguments.check {
        for change in &prepared.deployment.changes {
            output::line(&format!("# {change}"))?;
        }
        if arguments.dry_run {
            output::text(&prepared.units.diff())?;
            return Ok(Exit::Success);
        }
        for change in &prepared.units.changes {
            output::line(&format!("# {} {}", change.verb(), change.path.display()))?;
        }
        return Ok(if prepared.is_current() {
            Exit::Success
        } else {
            Exit::Failure
        });
    }
    // What the units do not name yet is for the command that brings it.
    if prepared.kept().is_none() {
        let settings = prepared.settings();
        let image = &settings.litellm_image;
        advisories::admit(&host.paths, settings, image, &[], "litellm-units up")?;
    }
    let current = prepared.is_current();
    prepared.apply(host).await?;
    if prepared.kept().is_some() {
        say(&format!("next: {}", installed_release::REMEDY));
    } else if current {
        output::line("nothing to do")?;
    } else {
        say(&format!(
            "next: {} start litellm.target, or litellm-units up",
            host.scope().systemctl()
        ));
    }
    Ok(Exit::Success)
}

/// Which release of the gateway the units get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that is recorded, whatever `.env` names.
    Recorded,
    /// The one that `.env` names: the caller changes the release.
    Wanted,
}

/// What `generate` would do, checked as far as that is possible without doing it.
#[derive(Debug)]
pub struct Prepared {
    /// The deployment directory.
    pub deployment: completion::Plan,
    /// The units.
    pub units: Plan,
    /// `images.lock` with the digests of images that were not in it.
    images: Option<ImagesLock>,
    /// The settings that the units are rendered from.
    installed: Settings,
    /// The recorded release, if `.env` names another one and the units stay at this one.
    kept: Option<Image>,
    /// Whether this is the first installation, after which the target is enabled for boot.
    first: bool,
    /// The timers that appear, and are then enabled; and what each is for. An operator who disables
    /// one later is not overruled.
    timers: Vec<(&'static str, &'static str)>,
}

/// Works out what has to be done, and refuses what can't be.
///
/// # Errors
/// When the settings are wrong, or the host can't run the units.
pub async fn prepare(host: &Host, target: Target) -> Result<Prepared> {
    let podman = host.podman().await?;
    let version = podman.version().await?;
    let deployment = completion::Plan::new(&host.paths, &mut kernel_random)?;
    for warning in &deployment.warnings {
        warn(warning);
    }
    let images_path = host.paths.images_lock();
    let before = ImagesLock::load(&images_path)?;
    let mut images = before.clone();
    for image in deployment.settings.images() {
        if images.lacks(image)
            && let Some(found) = podman.image(image.as_str()).await?
        {
            images.record(image, found);
        }
    }
    let kept = match target {
        Target::Recorded => installed_release::kept(host, &deployment.settings, &images).await?,
        Target::Wanted => None,
    };
    let installed = match &kept {
        Some(kept) => installed_release::at(&deployment.settings, &kept.pinned())?,
        None => deployment.settings.clone(),
    };
    Advisories::load(&host.paths)?.refuse(&host.paths, &deployment.settings, &images)?;
    let program = host::program()?;
    let knows = Knows {
        podman: version,
        systemd: host.systemd().await?.features().await?,
    };
    let mut files = render(host, &installed, knows, &program, &images)?;
    if !host.paths.packaged_units.join("litellm.target").exists() {
        files.insert(0, quadlet::target(host.scope()));
    }
    let units = Plan::new(&host.paths, &files)?;
    let first = !host.paths.quadlets.join("litellm.container").exists();
    if !units.is_empty() {
        podman.check_quadlets(&files, host.scope()).await?;
    }
    let images = (images != before).then_some(images);
    let appears = |timer: &str| {
        units
            .changes
            .iter()
            .any(|change| change.before.is_none() && change.path.ends_with(timer))
    };
    let timers = quadlet::TIMERS
        .into_iter()
        .filter(|(timer, _)| first || appears(timer))
        .collect();
    Ok(Prepared {
        deployment,
        units,
        images,
        installed,
        kept,
        first,
        timers,
    })
}

impl Prepared {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.units.is_empty() && self.deployment.changes.is_empty() && self.images.is_none()
    }

    /// The settings as they will be.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.deployment.settings
    }

    /// The settings that the units are rendered from: those of `.env`, with the recorded release.
    #[must_use]
    pub fn installed(&self) -> &Settings {
        &self.installed
    }

    /// The recorded release, if `.env` names another one and the units stay at this one.
    #[must_use]
    pub fn kept(&self) -> Option<&Image> {
        self.kept.as_ref()
    }

    /// Does it, saying each thing done.
    ///
    /// # Errors
    /// When the disk or systemd refuses. Running it again goes on from there.
    pub async fn apply(&self, host: &Host) -> Result<()> {
        self.apply_telling(host, output::line).await
    }

    /// As [`Prepared::apply`], with another way to say it.
    ///
    /// # Errors
    /// As [`Prepared::apply`].
    pub async fn apply_telling(&self, host: &Host, tell: fn(&str) -> Result<()>) -> Result<()> {
        self.deployment.apply().map_err(on_full_disk)?;
        let lock = host.paths.images_lock();
        if let Some(images) = &self.images {
            images.save(&lock).map_err(on_full_disk)?;
        }
        for change in &self.deployment.changes {
            tell(&format!("prepare {change}"))?;
        }
        if self.images.is_some() {
            tell(&format!(
                "prepare {}: record the images' digests",
                lock.display()
            ))?;
        }
        if self.units.is_empty() {
            return Ok(());
        }
        let systemd = host.systemd().await?;
        // The target is enabled before the gateway's unit appears, which marks the installation
        // as complete: an interruption in between is mended by the next run, and an operator who
        // disables the target later is not overruled.
        let changes = &self.units.changes;
        let at = changes
            .iter()
            .position(|change| change.path.ends_with("litellm.container"))
            .unwrap_or(changes.len());
        let [rest, gateway] = [&changes[..at], &changes[at..]].map(|changes| Plan {
            changes: changes.to_vec(),
        });
        rest.apply().map_err(on_full_disk)?;
        for (timer, _) in &self.timers {
            systemd.enable(timer).await?;
        }
        if self.first {
            systemd.enable("litellm.target").await?;
        }
        gateway.apply().map_err(on_full_disk)?;
        for change in &self.units.changes {
            tell(&format!("{} {}", change.verb(), change.path.display()))?;
        }
        if self.first {
            tell("enable litellm.target")?;
        }
        for (timer, purpose) in &self.timers {
            tell(&format!("enable {timer}: {purpose}"))?;
        }
        systemd.reload().await?;
        tell("reload systemd")?;
        if !self.timers.is_empty() {
            let mut jobs = Jobs::new(systemd).await?;
            for (timer, _) in &self.timers {
                jobs.ask(Verb::Start, timer).await?;
            }
            while !jobs.pending().is_empty() && jobs.next(TIMER_PATIENCE).await?.is_some() {}
        }
        if host.scope() == Scope::User {
            advise_linger();
        }
        Ok(())
    }
}

/// Pulls the images that the installed units need and the host lacks. Where that tells the digest of
/// a tag, the units get it.
///
/// # Errors
/// When an image can't be pulled or must not run, or the disk refuses.
pub async fn pull_missing(
    host: &Host,
    prepared: &Prepared,
    target: Target,
    tell: fn(&str) -> Result<()>,
) -> Result<()> {
    if pull::pull_missing(host, &prepared.installed).await? {
        let pinned = prepare(host, target).await?;
        pinned.apply_telling(host, tell).await?;
    }
    Ok(())
}

/// What units are written for.
#[derive(Clone, Copy, Debug)]
struct Knows {
    podman: PodmanVersion,
    systemd: quadlet::Systemd,
}

fn render(
    host: &Host,
    settings: &Settings,
    knows: Knows,
    program: &Path,
    images: &ImagesLock,
) -> Result<Vec<UnitFile>> {
    quadlet::render(
        settings,
        &quadlet::Host {
            paths: &host.paths,
            podman: knows.podman,
            systemd: knows.systemd,
            program,
            images,
        },
    )
}

/// Without lingering, a user's units end with the last session and don't start at boot.
fn advise_linger() {
    let Ok(Some(user)) = nix::unistd::User::from_uid(nix::unistd::geteuid()) else {
        return;
    };
    if !Path::new("/var/lib/systemd/linger")
        .join(&user.name)
        .exists()
    {
        warn(&format!(
            "{0} does not linger, so the gateway would stop at logout and not start at boot: loginctl enable-linger {0}",
            user.name
        ));
    }
}

fn render_into(host: &Host, directory: &Path, knows: Knows) -> Result<Exit> {
    let env = host.paths.env_file();
    let text = if env.exists() {
        crate::deployment::settings::read_env(&env)?
    } else {
        String::new()
    };
    let found = completion::Found { cluster: false };
    let completed = completion::complete(&text, &env, found, &mut kernel_random)?;
    let settings = Settings::from_env(&completed.env, &env)?;
    // The path of an installed package: the units may go to another host.
    let images = ImagesLock::load(&host.paths.images_lock())?;
    Advisories::load(&host.paths)?.refuse(&host.paths, &settings, &images)?;
    let program = Path::new("/usr/bin/litellm-units");
    let mut files = render(host, &settings, knows, program, &images)?;
    files.push(quadlet::target(host.scope()));
    for file in files {
        let place = directory.join(match file.place {
            Place::Quadlet => "containers",
            Place::Unit => "systemd",
        });
        std::fs::create_dir_all(&place)
            .with_context(|| format!("can't create {}", place.display()))?;
        let path = place.join(file.name);
        files::write_atomically(&path, file.text.as_bytes(), 0o644)?;
        output::line(&path.display().to_string())?;
    }
    Ok(Exit::Success)
}

fn on_full_disk(error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() == std::io::ErrorKind::StorageFull)
    });
    if full {
        Failure::new("the disk is full; every file is either as before or complete")
            .hint("free some space and run the command again: it goes on where it stopped")
            .caused_by(error)
            .into()
    } else {
        error
    }
}

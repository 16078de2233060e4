//! From the settings to installed units: what `generate`, `up`, `apply`, `upgrade` and `restore` share.

use std::path::Path;
use std::time::Duration;

use super::stack::address::Relocation;
use super::{edits, pull};
use crate::deployment::certificates;
use crate::deployment::completion;
use crate::deployment::entrance;
use crate::deployment::extra::{self, Extra};
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::Settings;
use crate::deployment::variables::USER_NAMESPACES;
use crate::error::{Failure, Result};
use crate::host::capacity::Capacity;
use crate::host::files;
use crate::host::namespaces;
use crate::host::ownership;
use crate::host::paths::Scope;
use crate::host::podman::PodmanVersion;
use crate::host::systemd::Features;
use crate::host::systemd::LoadState;
use crate::host::systemd::job::{JobType, Jobs};
use crate::host::{self, Host};
use crate::image::Image;
use crate::litellm::advisories::{self, Advisories};
use crate::output::Progress;
use crate::quadlet::plan::{UnitChange, UnitPlan};
use crate::quadlet::{self, UnitFile, check, drop_ins};
use crate::random::kernel_random;
use crate::service::{Instance, Service};

/// How long systemd may take to start a companion.
const COMPANION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a unit of one operation may take to stop.
const TEMPORARY_TIMEOUT: Duration = Duration::from_secs(120);

/// Which release of the gateway the units get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseTarget {
    /// The one that is recorded, whatever `.env` names.
    Recorded,
    /// The one that `.env` names: the caller changes the release.
    Wanted,
}

/// What `generate` would do, checked as far as that is possible without doing it.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The deployment directory.
    pub deployment: completion::Completion,
    /// The units.
    pub units: UnitPlan,
    /// All files that there are to be.
    pub(crate) files: Vec<UnitFile>,
    /// `images.lock` with the digests of images that were not in it.
    images: Option<ImagesLock>,
    /// The settings that the units are rendered from.
    installed: Settings,
    /// The recorded release, if `.env` names another one and the units stay at this one.
    kept: Option<Image>,
    /// Whether this is the first installation, after which the target is enabled for boot.
    first: bool,
    /// The companions that appear, and are then enabled; and what each is for. An operator who disables
    /// one later is not overruled.
    companions: Vec<(&'static str, &'static str)>,
    /// The companions that go, with what each was for.
    former_companions: Vec<(&'static str, &'static str)>,
}

/// The units would get new secrets and an empty database, and the gateway would refuse every key.
fn refuse_another_deployment(host: &Host) -> Result<()> {
    let wanted = &host.paths.deployment;
    match host.paths.installed_deployment() {
        Some(installed) if installed != *wanted => Err(Failure::config(format!(
            "the installed units run the deployment in {}, not the one in {}",
            installed.display(),
            wanted.display()
        ))
        .hint("leave out `--litellm-dir` and LITELLM_DIR; or, to change to this one, run `litellm-units down --remove` first, which keeps all data")
        .into()),
        _ => Ok(()),
    }
}

/// Works out what has to be done, and refuses what can't be.
pub(crate) async fn prepare(host: &Host, target: ReleaseTarget) -> Result<Prepared> {
    refuse_another_deployment(host)?;
    let podman = host.podman().await?;
    let version = podman.version().await?;
    let program = host::program()?;
    ownership::check(&host.paths, Some(&program))?;
    refuse_unreadable(host)?;
    certificates::refuse_invalid(&host.paths)?;
    let deployment = completion::Completion::new(&host.paths, &mut kernel_random)?;
    for warning in &deployment.warnings {
        host.progress.warn(warning);
    }
    edits::refuse_unknown_servers(host, &deployment.settings).await?;
    if deployment.settings.user_namespaces {
        refuse_namespaces(host).await?;
    }
    let images_path = host.paths.images_lock();
    let before = ImagesLock::load(&images_path)?;
    let mut images = before.clone();
    let extras = &deployment.extras;
    let own = extras.iter().map(|extra| &extra.image);
    for image in deployment.settings.images().chain(own) {
        if images.lacks(image)
            && let Some(found) = podman.image(image.as_str()).await?
        {
            images.record(image, found);
        }
    }
    let kept = match target {
        ReleaseTarget::Recorded => {
            installed_release::kept(host, &deployment.settings, &images).await?
        }
        ReleaseTarget::Wanted => None,
    };
    let installed = match &kept {
        Some(kept) => installed_release::at(&deployment.settings, &kept.pinned())?,
        None => deployment.settings.clone(),
    };
    Advisories::load(&host.paths)?.refuse(&host.paths, &deployment.settings, &images)?;
    let knows = Knows {
        podman: version,
        systemd: host.systemd().await?.features().await?,
    };
    let mut files = render(host, &installed, knows, &program, &images, extras)?;
    if !host.paths.packaged_units.join("litellm.target").exists() {
        files.insert(0, quadlet::target(host.scope()));
    }
    let copies = drop_ins::copies(&host.paths, &files)?;
    if let Some(warning) = &copies.left_out {
        host.progress.warn(warning);
    }
    files.splice(..0, copies.files);
    let units = UnitPlan::new(&host.paths, &files)?;
    let first = !host.paths.quadlets.join("litellm.container").exists();
    let has_drop_in = |file: &UnitFile| !drop_ins::of(&host.paths.quadlets, file.name).is_empty();
    if !units.is_empty() || files.iter().any(has_drop_in) {
        check::check(host, &files).await?;
    }
    let images = (images != before).then_some(images);
    let change = |unit: &str| {
        let mut changes = units.changes.iter();
        changes.find(|change| change.path.ends_with(unit))
    };
    let appears = |unit: &str| change(unit).is_some_and(|change| change.before.is_none());
    let goes = |unit: &str| change(unit).is_some_and(|change| change.after.is_none());
    let is_rendered = |unit: &str| files.iter().any(|file| file.name == unit);
    let companions = quadlet::COMPANIONS
        .into_iter()
        .filter(|(unit, _)| is_rendered(unit) && (first || appears(unit)))
        .collect();
    let former_companions = quadlet::COMPANIONS
        .into_iter()
        .filter(|(unit, _)| goes(unit))
        .collect();
    Ok(Prepared {
        deployment,
        units,
        files,
        images,
        installed,
        kept,
        first,
        companions,
        former_companions,
    })
}

/// Names the files that the gateway could not read, before it is started with them.
fn refuse_unreadable(host: &Host) -> Result<()> {
    let unreadable = ownership::unreadable(&host.paths)?;
    let Some((message, command)) = ownership::unreadable_words(&host.paths, &unreadable) else {
        return Ok(());
    };
    if unreadable.contains(&host.paths.config_file()) {
        return Err(Failure::config(message).hint(command).into());
    }
    // It may have no use for another one.
    host.progress.warn(&format!("{message}: {command}"));
    Ok(())
}

/// Does what is prepared, for a command that starts nothing.
///
/// # Errors
/// As [`Prepared::apply`], and when attackers exploit the release that the units name.
pub(crate) async fn install(host: &Host, prepared: &Prepared) -> Result<()> {
    // What the units do not name yet is for the command that brings it.
    if prepared.kept().is_none() {
        let settings = prepared.settings();
        let image = &settings.litellm_image;
        advisories::admit(host, settings, image, &[], "litellm-units up")?;
    }
    prepared.apply(host).await
}

impl Prepared {
    /// Whether there is nothing to do.
    pub(crate) fn is_current(&self) -> bool {
        self.units.is_empty() && self.deployment.changes.is_empty() && self.images.is_none()
    }

    /// The settings as they will be.
    pub(crate) fn settings(&self) -> &Settings {
        &self.deployment.settings
    }

    /// The settings that the units are rendered from: those of `.env`, with the recorded release.
    pub(crate) fn installed(&self) -> &Settings {
        &self.installed
    }

    /// The recorded release, if `.env` names another one and the units stay at this one.
    pub(crate) fn kept(&self) -> Option<&Image> {
        self.kept.as_ref()
    }

    /// Does it, saying each thing done.
    pub(crate) async fn apply(&self, host: &Host) -> Result<()> {
        let progress = &host.progress;
        self.deployment.apply()?;
        let lock = host.paths.images_lock();
        if let Some(images) = &self.images {
            ImagesLock::change(&lock, |lock| Ok(lock.complete(images)))?;
        }
        for change in &self.deployment.changes {
            progress.done(&format!("prepare {change}"));
        }
        if self.images.is_some() {
            progress.done(&format!(
                "prepare {}: record the images' digests",
                lock.display()
            ));
        }
        let mut changes = self.units.changes.clone();
        // While the gateway runs, its addresses change only together with the unit: else systemd would close those that
        // it no longer finds there.
        if Relocation::find(host, &self.installed).await?.is_some() {
            changes.retain(|change| !change.path.ends_with(quadlet::SOCKET));
        }
        let systemd = host.systemd().await?;
        // A unit of the operator's own is stopped as its file says, before that is removed, by what starts the stack.
        for former in extra::former(&host.paths).into_iter().map(Instance::from) {
            if !systemd.unit(former.unit()).await?.is_stopped() {
                changes.retain(|change| !change.path.ends_with(former.quadlet()));
            }
        }
        // A gateway that is no longer wanted serves until the others have the new settings; then it is stopped, and its
        // unit removed.
        for further in Instance::further(Instance::MOST) {
            let is_removed = |change: &UnitChange| {
                change.after.is_none() && change.path.ends_with(further.quadlet())
            };
            if changes.iter().any(is_removed) && !systemd.unit(further.unit()).await?.is_stopped() {
                changes.retain(|change| !is_removed(change));
            }
        }
        if changes.is_empty() {
            // An earlier run was interrupted between the files and the reload, or systemd refused it.
            if is_outdated(host, &self.installed).await? {
                systemd.reload().await?;
                progress.done("reload systemd");
            }
            return Ok(());
        }
        // The target is enabled before the gateway's unit appears, which marks the installation
        // as complete: the next run completes an interrupted one, and an operator who
        // disables the target later is not overruled.
        let at = changes
            .iter()
            .position(|change| change.path.ends_with("litellm.container"))
            .unwrap_or(changes.len());
        let [rest, gateway] = [&changes[..at], &changes[at..]].map(|changes| UnitPlan {
            changes: changes.to_vec(),
        });
        for (unit, _) in &self.former_companions {
            systemd.disable(unit).await?;
        }
        ask(host, JobType::Stop, names(&self.former_companions)).await?;
        if names(&self.former_companions).any(|unit| unit == quadlet::METRICS_SOCKET) {
            // Else the first scrapes of a later one would get it, however old it is.
            files::remove_existing(&host.paths.served_metrics())?;
        }
        rest.apply()?;
        for (unit, _) in &self.companions {
            systemd.enable(unit).await?;
        }
        if self.first {
            systemd.enable("litellm.target").await?;
        }
        gateway.apply()?;
        for change in &changes {
            progress.done(&format!("{} {}", change.verb(), change.path.display()));
        }
        if self.first {
            progress.done("enable litellm.target");
        }
        for (unit, purpose) in &self.companions {
            progress.done(&format!("enable {unit}: {purpose}"));
        }
        for (unit, purpose) in &self.former_companions {
            progress.done(&format!("disable {unit}: no more {purpose}"));
        }
        systemd.reload().await?;
        progress.done("reload systemd");
        // The entrance starts with the gateway.
        let started = names(&self.companions).filter(|unit| *unit != Service::Entrance.unit());
        ask(host, JobType::Start, started).await?;
        let is_moved = |change: &UnitChange| {
            change.path.ends_with(quadlet::METRICS_SOCKET)
                && change.before.is_some()
                && change.after.is_some()
        };
        // Else systemd would close the former address, and not open the new one. One that failed, since another program had
        // the former address, gets another try; one that an operator has disabled does not.
        if changes.iter().any(is_moved)
            && systemd.unit(quadlet::METRICS_SOCKET).await?.file_state == "enabled"
        {
            ask(
                host,
                JobType::Restart,
                [quadlet::METRICS_SOCKET].into_iter(),
            )
            .await?;
        }
        if host.scope() == Scope::User {
            advise_linger(&host.progress);
        }
        Ok(())
    }
}

/// Whether systemd has not read the units of the services as they are on the disk.
async fn is_outdated(host: &Host, settings: &Settings) -> Result<bool> {
    let systemd = host.systemd().await?;
    let services = Service::ALL.into_iter();
    for service in services.filter(|service| settings.image(*service).is_some()) {
        let unit = systemd.unit(service.unit()).await?;
        if unit.needs_reload || unit.load == LoadState::NotFound {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Pulls the images that the installed units need and the host lacks. Where that tells the digest of
/// a tag, the units get it.
pub(crate) async fn pull_missing(
    host: &Host,
    prepared: &Prepared,
    target: ReleaseTarget,
) -> Result<()> {
    let extras = &prepared.deployment.extras;
    if pull::pull_missing(host, &prepared.installed, extras).await? {
        let pinned = prepare(host, target).await?;
        pinned.apply(host).await?;
    }
    Ok(())
}

/// Refuses `USER_NAMESPACES=yes` where it can't be had.
async fn refuse_namespaces(host: &Host) -> Result<()> {
    let Some(obstacle) = namespaces::obstacle(host).await? else {
        return Ok(());
    };
    Err(Failure::config(format!(
        "{}: {USER_NAMESPACES}=yes is not possible: {obstacle}",
        host.paths.env_file().display()
    ))
    .hint(format!("remove {USER_NAMESPACES}, then run `litellm-units apply`; what it needs is in docs/platforms.md"))
    .into())
}

/// Installs a unit of one operation beside the others, which are those of `settings`.
pub(crate) async fn add_temporary(
    host: &Host,
    settings: &Settings,
    unit: impl FnOnce(&Settings, &quadlet::RenderContext<'_>) -> Result<UnitFile>,
) -> Result<()> {
    let podman = host.podman().await?;
    let units = quadlet::RenderContext {
        paths: &host.paths,
        podman: podman.version().await?,
        systemd: host.systemd().await?.features().await?,
        program: &host::program()?,
        images: &ImagesLock::load(&host.paths.images_lock())?,
        capacity: Capacity::read(),
        extras: &[],
        entrance: &entrance::Files::default(),
    };
    let file = unit(settings, &units)?;
    // With the others, since it names their network.
    let mut all = quadlet::render(settings, &units)?;
    all.push(file.clone());
    check::check(host, &all).await?;
    let install = UnitPlan {
        changes: vec![UnitChange {
            path: host.paths.quadlets.join(file.name),
            before: None,
            after: Some(file.text),
        }],
    };
    install.apply()?;
    host.systemd().await?.reload().await
}

/// Ends the unit of [`add_temporary`] with that container, however far it is, and removes it.
pub(crate) async fn remove_temporary(host: &Host, container: &str) -> Result<()> {
    let path = host.paths.quadlets.join(format!("{container}.container"));
    if !path.exists() {
        return Ok(());
    }
    let systemd = host.systemd().await?;
    let unit = format!("{container}.service");
    let mut jobs = Jobs::new(systemd).await?;
    if systemd.unit(&unit).await?.load == LoadState::Loaded {
        jobs.ask(JobType::Stop, &unit).await?;
        let ended = jobs.next(TEMPORARY_TIMEOUT).await?;
        let is_stopped = systemd.unit(&unit).await?.is_stopped();
        if !is_stopped || !ended.is_some_and(|(_, result)| result.is_success()) {
            return Err(Failure::new(format!("{unit} does not stop"))
                .hint(format!(
                    "see why: `{} status {unit}`",
                    host.scope().systemctl()
                ))
                .into());
        }
    }
    let remove = UnitPlan {
        changes: vec![UnitChange {
            path,
            before: Some(String::new()),
            after: None,
        }],
    };
    remove.apply()?;
    systemd.reload().await
}

/// What units are written for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Knows {
    pub(crate) podman: PodmanVersion,
    pub(crate) systemd: Features,
}

pub(crate) fn render(
    host: &Host,
    settings: &Settings,
    knows: Knows,
    program: &Path,
    images: &ImagesLock,
    extras: &[Extra],
) -> Result<Vec<UnitFile>> {
    let files = match settings.entrance {
        Some(_) => entrance::Files::load(&host.paths)?,
        None => entrance::Files::default(),
    };
    quadlet::render(
        settings,
        &quadlet::RenderContext {
            paths: &host.paths,
            podman: knows.podman,
            systemd: knows.systemd,
            program,
            images,
            capacity: Capacity::read(),
            extras,
            entrance: &files,
        },
    )
}

fn names(companions: &[(&'static str, &'static str)]) -> impl Iterator<Item = &'static str> {
    companions.iter().map(|(unit, _)| *unit)
}

/// Starts or stops companions, and waits for it.
async fn ask(
    host: &Host,
    verb: JobType,
    companions: impl Iterator<Item = &'static str>,
) -> Result<()> {
    let mut companions = companions.peekable();
    if companions.peek().is_none() {
        return Ok(());
    }
    let mut jobs = Jobs::new(host.systemd().await?).await?;
    for unit in companions {
        jobs.ask(verb, unit).await?;
    }
    while let Some((unit, result)) = jobs.next(COMPANION_TIMEOUT).await? {
        // The gateway does not need it.
        if !result.is_success() {
            host.progress.warn(&format!(
                "systemd's job for {unit}: {result}; see `{} status {unit}`",
                host.scope().systemctl()
            ));
        }
    }
    Ok(())
}

/// Without lingering, a user's units end with the last session and don't start at boot.
fn advise_linger(progress: &Progress) {
    let Ok(Some(user)) = nix::unistd::User::from_uid(nix::unistd::geteuid()) else {
        return;
    };
    if !Path::new("/var/lib/systemd/linger")
        .join(&user.name)
        .exists()
    {
        progress.warn(&format!(
            "lingering is off for {0}, so the gateway stops at logout and does not start at boot: `loginctl enable-linger {0}`",
            user.name
        ));
    }
}

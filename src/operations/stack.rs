//! The stack as a whole: its units started, restarted and stopped together, and waited for.

pub(crate) mod address;
pub(crate) mod blockers;
mod handover;
mod outlook;
pub(crate) mod quoted;
pub(crate) mod report;
pub(crate) mod space;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use address::Relocation;
use anyhow::Context;
use futures_util::future::try_join_all;
use quoted::{Quoted, Selection};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::deployment::applied::{Applied, Difference};
use crate::deployment::external;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::installed_release;
use crate::deployment::settings::{Settings, load_env};
use crate::deployment::snapshot;
use crate::error::{Failure, PathContext, Result, is_full_disk};
use crate::host::Host;
use crate::host::capacity::Capacity;
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::systemd::job::{JobResult, JobType, Jobs};
use crate::host::systemd::{ActiveState, LoadState, Systemd, UnitResult, UnitState};
use crate::litellm::health::GatewayHealth;
use crate::litellm::{self, Client, contract};
use crate::output::{Progress, duration};
use crate::quadlet::{self, NETWORK};
use crate::service::{Instance, Service};

/// How many lines of a failed unit's journal are quoted.
const QUOTED_LINES: usize = 15;
/// The same of a migration, which says the cause before a long account of where it was.
const QUOTED_MIGRATION_LINES: usize = 60;
/// Interval between two looks at the states of units.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Interval between two requests for the readiness of the gateway.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout for closing a socket.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two looks whether the address is held.
const HOLD_INTERVAL: Duration = Duration::from_millis(10);
/// How long a gateway may take to stop without `LITELLM_DRAIN_TIMEOUT`; the timeouts of commands contain it.
const USUAL_STOP: Duration = Duration::from_secs(90);
/// After this many restarts during one wait, a unit counts as failed.
const ATTEMPTS: u64 = 2;

/// Minimum timeout for recovery and rollback, so that a short `--timeout` cannot make them fail.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_secs(300);

/// The units that pull the images: one for each.
pub(crate) const IMAGES_UNITS: [&str; 3] = [
    Service::Postgres.images_unit(),
    Service::Redis.images_unit(),
    Service::Litellm.images_unit(),
];
/// Exists while services may run on a network that Podman no longer knows.
const LOST_NETWORK: &str = "lost-network";
/// The unit that Quadlet makes of `litellm.network`.
pub(crate) const NETWORK_UNIT: &str = "litellm-network.service";
/// The unit of a second gateway, which serves while the first one restarts.
pub(crate) const STANDBY_UNIT: &str = "litellm-standby.service";

/// How the gateway is restarted, if it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// At once: requests wait until it is back.
    AtOnce,
    /// After a second one is ready, which serves meanwhile, where that is possible.
    Handover,
}

/// Starts stopped services, restarts those whose inputs differ from the current ones, and waits
/// until the gateway is ready. Units of the operator's own follow, and one that fails is only named: it must not undo what
/// the gateway has answered.
pub(crate) async fn bring_up(host: &Host, settings: &Settings, timeout: Duration) -> Result<()> {
    bring_up_with(host, settings, Vec::new(), timeout).await?;
    if let Err(error) = bring_up_entrance(host, settings, timeout).await {
        host.progress.warn(&format!("{error:#}"));
    }
    let extras = extra::wanted(&host.paths).into_iter().map(Instance::from);
    let steps = steps_beside(host, settings, extras.collect()).await?;
    if !steps.is_empty()
        && let Err(error) = start(host, &steps, Manner::AtOnce, None, timeout).await
    {
        host.progress.warn(&format!("{error:#}"));
    }
    Ok(())
}

/// As [`bring_up`], with the units of the operator's own, for which the gateway may wait.
///
/// # Errors
/// As [`bring_up`], and when one of these fails.
pub(crate) async fn bring_up_all(
    host: &Host,
    settings: &Settings,
    timeout: Duration,
) -> Result<()> {
    bring_up_with(host, settings, extra::wanted(&host.paths), timeout).await?;
    bring_up_entrance(host, settings, timeout).await
}

/// After the gateway, whose address may be another one.
async fn bring_up_entrance(host: &Host, settings: &Settings, timeout: Duration) -> Result<()> {
    let entrance = settings.entrance.as_ref().map(|_| Service::Entrance.into());
    let steps = steps_beside(host, settings, entrance.into_iter().collect()).await?;
    if steps.is_empty() {
        return Ok(());
    }
    let mut wait = Wait::new(host, Instant::now(), timeout).await?;
    for (verb, unit) in steps {
        wait.ask(verb, unit).await?;
    }
    wait.finish().await
}

async fn bring_up_with(
    host: &Host,
    settings: &Settings,
    extras: Vec<Service>,
    timeout: Duration,
) -> Result<()> {
    let differences = differences(host, settings)?;
    let relocation = Relocation::begin(host, settings).await?;
    let gateways = settings.replicas.count(Capacity::read());
    let wanted = Instance::all().filter(|instance| {
        settings.image(instance.service()).is_some() && instance.number() <= gateways
    });
    let wanted = wanted.chain(extras.into_iter().map(Instance::from));
    let steps = steps(host, wanted, &differences, relocation.is_some()).await?;
    for (instance, differences) in &differences {
        host.progress.say(&format!(
            "{} changed: {}",
            instance.unit(),
            list(differences)
        ));
    }
    start(host, &steps, Manner::Handover, relocation, timeout).await?;
    stop_former(host, settings, timeout).await?;
    remove_surplus(host, gateways, timeout).await
}

/// What each of those beside the stack needs, when the stack has started: that may have restarted some.
async fn steps_beside(
    host: &Host,
    settings: &Settings,
    wanted: Vec<Instance>,
) -> Result<Vec<(JobType, &'static str)>> {
    let differences = differences_among(host, settings, wanted.iter().copied())?;
    steps(host, wanted.into_iter(), &differences, false).await
}

/// What each needs, by its own state: after a change that failed halfway, some have the new settings.
async fn steps(
    host: &Host,
    wanted: impl Iterator<Item = Instance>,
    differences: &[(Instance, Vec<Difference>)],
    moves: bool,
) -> Result<Vec<(JobType, &'static str)>> {
    let systemd = host.systemd().await?;
    let mut steps = Vec::new();
    for instance in wanted {
        let state = systemd.unit(instance.unit()).await?;
        if instance.number() > 1 && state.load == LoadState::NotFound {
            continue;
        }
        let found = differences.iter().find(|(other, _)| *other == instance);
        let changed = found.is_some() || (instance.service() == Service::Litellm && moves);
        let unit_changed = found.is_some_and(|(_, all)| all.iter().any(Difference::is_of_unit));
        let reloads = instance.service() == Service::Entrance && state.is_active() && !unit_changed;
        if changed && reloads {
            steps.push((JobType::Reload, instance.unit()));
        // One that is still starting has read the inputs of a moment ago.
        } else if changed && !state.is_stopped() {
            steps.push((JobType::Restart, instance.unit()));
        } else if !state.is_active() {
            steps.push((JobType::Start, instance.unit()));
        }
    }
    Ok(steps)
}

/// Stops the local servers that external ones have replaced.
async fn stop_former(host: &Host, settings: &Settings, timeout: Duration) -> Result<()> {
    let systemd = host.systemd().await?;
    let mut former = Vec::new();
    let services = Service::ALL.into_iter();
    for service in services.filter(|service| settings.image(*service).is_none()) {
        if !systemd.unit(service.unit()).await?.is_stopped() {
            former.push(service.unit());
        }
    }
    if former.is_empty() {
        return Ok(());
    }
    stop(host, &former, timeout).await
}

/// Stops the gateways that are too many and the units whose file the operator has removed, and removes their units: the
/// other gateways serve what comes from now on.
async fn remove_surplus(host: &Host, gateways: usize, timeout: Duration) -> Result<()> {
    let surplus: Vec<Instance> = Instance::further(Instance::MOST)
        .filter(|instance| instance.number() > gateways)
        .filter(|instance| host.paths.unit_file(*instance).exists())
        .chain(extra::former(&host.paths).into_iter().map(Instance::from))
        .collect();
    if surplus.is_empty() {
        return forget_surplus(host, gateways);
    }
    let mut units: Vec<&str> = surplus.iter().map(|instance| instance.unit()).collect();
    let former = surplus.iter().map(|instance| instance.service());
    let former: Vec<&str> = { former.filter(|service| service.is_extra()) }
        .map(Service::images_unit)
        .collect();
    let pulls = pulls(host.systemd().await?).await?.into_iter();
    units.extend(pulls.filter(|pull| former.contains(pull)));
    stop(host, &units, timeout).await?;
    // Not before: how a unit stops is in its file.
    for instance in &surplus {
        let file = host.paths.unit_file(*instance);
        files::remove_existing(&file)?;
        if instance.service().is_extra() {
            Applied::forget(&host.paths, *instance)?;
        }
        host.progress.done(&format!("remove {}", file.display()));
    }
    host.systemd().await?.reload().await?;
    forget_surplus(host, gateways)
}

/// Removes what the starts of gateways that are no longer there have written.
fn forget_surplus(host: &Host, gateways: usize) -> Result<()> {
    let surplus = Instance::further(Instance::MOST).filter(|other| other.number() > gateways);
    for instance in surplus.filter(|other| !host.paths.unit_file(*other).exists()) {
        Applied::forget(&host.paths, instance)?;
        let options = format!("{}.env", instance.container());
        files::remove_existing(&host.paths.runtime_state().join(options))?;
    }
    Ok(())
}

/// Starts or restarts units, and with the first gateway the further ones. Then waits until the gateway is ready, if it is
/// among them or depends on one of them.
pub(crate) async fn start_units(
    host: &Host,
    steps: &[(JobType, &str)],
    manner: Manner,
    timeout: Duration,
) -> Result<()> {
    let mut steps = steps.to_vec();
    let gateway = Service::Litellm.unit();
    if let Some((verb, _)) = steps.iter().find(|(_, unit)| *unit == gateway) {
        let verb = *verb;
        let further = gateways(host.systemd().await?).await?.into_iter().skip(1);
        steps.extend(further.map(|(instance, _)| (verb, instance.unit())));
    }
    start(host, &steps, manner, None, timeout).await
}

async fn start(
    host: &Host,
    steps: &[(JobType, &str)],
    manner: Manner,
    relocation: Option<Relocation>,
    timeout: Duration,
) -> Result<()> {
    let begin = Instant::now();
    let systemd = host.systemd().await?;
    let gateway = Service::Litellm.unit();
    let before = systemd.unit(gateway).await?;
    if host.remote.is_none()
        && steps.iter().any(|(_, unit)| *unit == gateway)
        && before.is_stopped()
        && !systemd.unit(quadlet::SOCKET).await?.is_active()
    {
        address::refuse_taken(&host.paths, &[])?;
    }
    if host.remote.is_none() {
        space::refuse_restarts(host, steps).await?;
    }
    let mut steps = steps.to_vec();
    // Backups, notices and the check for releases are for a deployment whose target is active.
    if (before.is_active() || steps.iter().any(|(_, unit)| *unit == gateway))
        && !systemd.unit("litellm.target").await?.is_active()
    {
        steps.push((JobType::Start, "litellm.target"));
    }
    let steps = &past_holdoff(systemd, &steps).await?;
    let migrate = Service::Migrate.unit();
    if !steps.is_empty() && systemd.unit(migrate).await?.load == LoadState::Loaded {
        // Its limit is for systemd's own attempts; an operator's are not to count.
        systemd.reset_failed(migrate).await?;
    }
    let mut wait = Wait::new(host, begin, timeout).await?;
    let cover = if manner == Manner::Handover {
        let (cover, shortage) =
            handover::cover(host, &before, steps, relocation.as_ref(), None).await?;
        if let Some(shortage) = shortage {
            let effect = match cover {
                Some(_) => "the gateways restart one by one without a standby",
                None => "requests wait during the restart",
            };
            host.progress.warn(&format!("{shortage}: {effect}"));
        }
        cover
    } else {
        None
    };
    if let Some(cover) = cover {
        handover::run(host, &mut wait, steps, cover, relocation.as_ref()).await?;
    } else {
        let attempt = at_once(host, &mut wait, steps, relocation.as_ref()).await;
        if attempt.is_err()
            && relocation.is_some()
            && let Err(error) = hold_address(host).await
        {
            let unit = quadlet::RECOVERY;
            host.progress
                .warn(&format!("{unit} does not start again: {error:#}"));
        }
        attempt?;
    }
    // The gateway answers on its own loopback address only, and its files are there.
    if host.remote.is_some() {
        return Ok(());
    }
    let state = systemd.unit(gateway).await?;
    if state.is_stopped() {
        return Ok(());
    }
    let version = wait
        .ready()
        .await?
        .or_else(|| contract::installed_version(&host.paths));
    if let Err(error) = remember_good(host).await {
        if !is_full_disk(&error) {
            return Err(error);
        }
        host.progress.warn(&format!(
            "the disk is full, so this configuration is not kept as the last good one: {error:#}"
        ));
    }
    host.progress.say(&format!(
        "ready after {}: {}, LiteLLM {}, database connected",
        duration(wait.begin.elapsed()),
        litellm::address(&host.paths).url(),
        version.as_deref().unwrap_or("of unknown version"),
    ));
    Ok(())
}

/// Why no other gateway can serve while this one restarts. A second one takes `fresh` bytes of memory at its start.
pub(crate) async fn recycling_obstacle(
    host: &Host,
    gateway: Instance,
    fresh: Option<u64>,
) -> Result<Option<String>> {
    Ok(recycling_cover(host, gateway, fresh).await?.err())
}

/// Restarts one gateway while others serve.
///
/// # Errors
/// When none can, or a fresh one does not become ready; the first gateway then runs on.
pub(crate) async fn recycle(
    host: &Host,
    gateway: Instance,
    fresh: Option<u64>,
    timeout: Duration,
) -> Result<()> {
    let cover = recycling_cover(host, gateway, fresh).await?;
    let cover = cover.map_err(anyhow::Error::msg)?;
    let mut wait = Wait::new(host, Instant::now(), timeout).await?;
    let steps = [(JobType::Restart, gateway.unit())];
    handover::run(host, &mut wait, &steps, cover, None).await
}

/// What serves while a gateway is recycled, or why nothing can.
async fn recycling_cover(
    host: &Host,
    gateway: Instance,
    fresh: Option<u64>,
) -> Result<Result<handover::Cover, String>> {
    let first = host.systemd().await?.unit(Service::Litellm.unit()).await?;
    let steps = [(JobType::Restart, gateway.unit())];
    let (cover, shortage) = handover::cover(host, &first, &steps, None, fresh).await?;
    let cover = cover.filter(|_| first.is_active());
    Ok(cover.ok_or_else(|| {
        shortage.unwrap_or_else(|| "no other gateway can serve meanwhile".to_owned())
    }))
}

/// Takes the steps, without a second gateway. A failed move leaves `litellm-recovery.service` stopped.
async fn at_once(
    host: &Host,
    wait: &mut Wait<'_>,
    steps: &[(JobType, &str)],
    relocation: Option<&Relocation>,
) -> Result<()> {
    if let Some(relocation) = relocation {
        handover::end(host).await;
        wait.stop_further().await?;
        Relocation::release(host).await?;
        relocation.install(host).await?;
    }
    let is_alone = !steps
        .iter()
        .any(|(_, unit)| *unit == Service::Litellm.unit());
    for (verb, unit) in steps {
        let verb = if is_alone {
            serving_on(*verb, unit)
        } else {
            *verb
        };
        wait.ask(verb, unit).await?;
    }
    if relocation.is_some() {
        // After the gateway: systemd stops that one first, and starts it behind its addresses.
        wait.ask(JobType::Restart, quadlet::SOCKET).await?;
    }
    if !steps.is_empty() {
        wait.finish().await?;
    }
    if let Some(relocation) = relocation {
        relocation.complete(host).await?;
    }
    handover::end(host).await;
    Ok(())
}

/// What to do with a unit while the gateway goes on serving. It requires the migration, and would restart with it, without a
/// standby.
fn serving_on(verb: JobType, unit: &str) -> JobType {
    if verb == JobType::Restart && unit == Service::Migrate.unit() {
        JobType::RestartAlone
    } else {
        verb
    }
}

/// Starts a unit that ends by itself, and waits until it has.
pub(crate) async fn run(host: &Host, unit: &str, timeout: Duration) -> Result<()> {
    let mut wait = Wait::new(host, Instant::now(), timeout).await?;
    wait.ask(JobType::Start, unit).await?;
    wait.finish().await
}

/// Starts the local PostgreSQL, if it does not run.
pub(crate) async fn start_database(
    host: &Host,
    settings: &Settings,
    timeout: Duration,
) -> Result<()> {
    let unit = Service::Postgres.unit();
    if settings.image(Service::Postgres).is_none()
        || host.systemd().await?.unit(unit).await?.is_active()
    {
        return Ok(());
    }
    run(host, unit, timeout).await
}

/// Records the current configuration as the last good one, if every running service uses it: an edit that
/// is not applied yet proves nothing. An edit of `LITELLM_IMAGE` is left out.
async fn remember_good(host: &Host) -> Result<()> {
    let path = host.paths.env_file();
    let mut env = load_env(&path)?;
    let settings = Settings::from_env(&env, &path)?;
    if !differences(host, &settings)?.is_empty() {
        return Ok(());
    }
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    // In an upgrade, the release that has just become ready is recorded after this.
    let installed = installed_release::of_unit(&host.paths, Service::Litellm);
    let is_installed =
        installed.is_some_and(|image| image.as_str() == lock.pin(&settings.litellm_image));
    let kept = if is_installed {
        None
    } else {
        installed_release::kept(host, &settings, &lock).await?
    };
    let id = match kept {
        None => snapshot::keep(&host.paths)?,
        Some(kept) => {
            env.set("LITELLM_IMAGE", &kept.reference)
                .path_context("can't edit", &path)?;
            snapshot::keep_with(&host.paths, env.text())?
        }
    };
    snapshot::mark_good(&host.paths, &id)?;
    external::forget_others(&host.paths, settings.lookups())
}

/// Stops units, and with the first gateway the further ones. A request to a gateway that is stopped by a change waits
/// until the change has ended; else it is refused.
pub(crate) async fn stop(host: &Host, units: &[&str], timeout: Duration) -> Result<()> {
    let systemd = host.systemd().await?;
    let mut units = units.to_vec();
    if units.contains(&Service::Litellm.unit()) {
        if !is_address_held(systemd).await? {
            close_address(systemd).await?;
        }
        units.extend(further_to_stop(systemd).await?);
    }
    let mut seen = HashSet::new();
    units.retain(|unit| seen.insert(*unit));
    let mut wait = Wait::new(host, Instant::now(), timeout).await?;
    for unit in &units {
        wait.ask(JobType::Stop, unit).await?;
    }
    wait.finish().await?;
    // A unit that was stopped while it started or failed is `failed`, not `inactive`.
    for unit in &units {
        if systemd.unit(unit).await?.active == ActiveState::Failed {
            systemd.reset_failed(unit).await?;
        }
    }
    host.progress
        .say(&format!("stopped in {}", duration(wait.begin.elapsed())));
    Ok(())
}

/// Stops everything, and `more`. `PartOf=` carries the stop from the target to its members, but the target's own job does
/// not wait for theirs, and a failed start leaves members without an active target.
///
/// # Errors
/// As [`stop`].
pub(crate) async fn stop_all(host: &Host, more: &[&'static str], timeout: Duration) -> Result<()> {
    let systemd = host.systemd().await?;
    let mut units = member_units(systemd).await?;
    units.reverse();
    units.extend(beside_gateway(systemd).await?);
    units.extend(pulls(systemd).await?);
    units.extend(more);
    units.push("litellm.target");
    stop(host, &units, timeout).await
}

/// Has `litellm-recovery.service` watch the change that this process begins, and hold the address meanwhile. Not where
/// there is nothing to hold: in a deployment that is stopped, or whose units are of an earlier version.
pub(crate) async fn hold_address(host: &Host) -> Result<()> {
    let Ok(systemd) = host.systemd().await else {
        // The command itself says so, if it needs systemd.
        return Ok(());
    };
    if systemd.unit(quadlet::SOCKET).await?.is_active() {
        watch_change(host).await?;
    }
    Ok(())
}

/// Has `litellm-recovery.service` watch the change of this process, also in a deployment that is stopped, whose address it
/// opens.
pub(crate) async fn watch_change(host: &Host) -> Result<()> {
    watch(host, JobType::Restart).await
}

/// As [`watch_change`], but the address of a deployment that is stopped stays closed.
pub(crate) async fn watch_stopped(host: &Host) -> Result<()> {
    if is_address_held(host.systemd().await?).await? {
        return Ok(());
    }
    watch(host, JobType::RestartAlone).await
}

async fn watch(host: &Host, verb: JobType) -> Result<()> {
    let systemd = host.systemd().await?;
    if systemd.unit(quadlet::RECOVERY).await?.load != LoadState::Loaded {
        return Ok(());
    }
    let mut jobs = Jobs::new(systemd).await?;
    // One that is about to end would not notice this change.
    jobs.ask(verb, quadlet::RECOVERY).await?;
    let deadline = Instant::now() + ADDRESS_TIMEOUT;
    while !is_address_held(systemd).await? {
        if jobs.pending().is_empty() || Instant::now() >= deadline {
            host.progress.warn(&format!(
                "{} does not start: if this command is killed, nobody completes its change",
                quadlet::RECOVERY
            ));
            break;
        }
        jobs.next(HOLD_INTERVAL).await?;
    }
    Ok(())
}

/// Whether [`hold_address`] is in effect.
pub(crate) async fn is_address_held(systemd: &Systemd) -> Result<bool> {
    let unit = systemd.unit(quadlet::RECOVERY).await?;
    Ok(unit.active == ActiveState::Activating)
}

/// Closes the gateway's address, since a request that waits there would start the gateway again.
async fn close_address(systemd: &Systemd) -> Result<()> {
    if systemd.unit(quadlet::SOCKET).await?.is_active() {
        let mut jobs = Jobs::new(systemd).await?;
        jobs.ask(JobType::Stop, quadlet::SOCKET).await?;
        jobs.next(ADDRESS_TIMEOUT).await?;
    }
    Ok(())
}

/// The instances whose inputs differ from the current ones, with the differences. Gateways that are too many are left out:
/// they get no more settings.
pub(crate) fn differences(
    host: &Host,
    settings: &Settings,
) -> Result<Vec<(Instance, Vec<Difference>)>> {
    let gateways = settings.replicas.count(Capacity::read());
    let is_installed = |instance: &Instance| {
        settings.image(instance.service()).is_some()
            && (instance.number() == 1
                || instance.number() <= gateways && host.paths.unit_file(*instance).exists())
    };
    let extras = extra::wanted(&host.paths).into_iter().map(Instance::from);
    let entrance = settings.entrance.is_some().then_some(Service::Entrance);
    let entrance = entrance.into_iter().map(Instance::from);
    let beside = extras.chain(entrance);
    differences_among(
        host,
        settings,
        Instance::all().filter(is_installed).chain(beside),
    )
}

/// The same of these instances.
fn differences_among(
    host: &Host,
    settings: &Settings,
    instances: impl Iterator<Item = Instance>,
) -> Result<Vec<(Instance, Vec<Difference>)>> {
    let mut all = Vec::new();
    for instance in instances {
        let differences = Applied::differences(&host.paths, settings, instance)?;
        if !differences.is_empty() {
            all.push((instance, differences));
        }
    }
    Ok(all)
}

/// Differences as words: `OPENAI_API_KEY changed, config/litellm-config.yaml changed`.
pub(crate) fn list(differences: &[Difference]) -> String {
    let words: Vec<String> = differences.iter().map(Difference::to_string).collect();
    words.join(", ")
}

/// What is stopped with the gateway, as far as it runs: its further instances, its address, and a standby that was left
/// behind.
pub(crate) async fn beside_gateway(systemd: &Systemd) -> Result<Vec<&'static str>> {
    let mut units = further_to_stop(systemd).await?;
    for unit in [STANDBY_UNIT, quadlet::SOCKET] {
        if !systemd.unit(unit).await?.is_stopped() {
            units.push(unit);
        }
    }
    Ok(units)
}

/// The units of the gateway's further instances. Also those that are stopped: a start may be queued for one, and the stop
/// takes its place. Also those without a file, as long as they run.
async fn further_to_stop(systemd: &Systemd) -> Result<Vec<&'static str>> {
    let units = systemd
        .known(Instance::further(Instance::MOST).map(Instance::unit))
        .await?;
    let states = try_join_all(units.iter().map(|unit| systemd.unit(unit))).await?;
    Ok(units
        .into_iter()
        .zip(states)
        .filter(|(_, unit)| unit.load != LoadState::NotFound || !unit.is_stopped())
        .map(|(unit, _)| unit)
        .collect())
}

/// The gateways that systemd knows, with their states.
pub(crate) async fn gateways(systemd: &Systemd) -> Result<Vec<(Instance, UnitState)>> {
    let mut found = instances(systemd).await?;
    found.retain(|(instance, _)| instance.service() == Service::Litellm);
    Ok(found)
}

/// Whether an instance of the gateway runs, or will be started by systemd.
pub(crate) async fn is_served(systemd: &Systemd) -> Result<bool> {
    let serves = |(_, unit): &(Instance, UnitState)| {
        let starts = unit.is_stopped() && unit.queued;
        starts || (!unit.is_stopped() && unit.active != ActiveState::Deactivating)
    };
    Ok(gateways(systemd).await?.iter().any(serves))
}

/// Whether the stack runs or is to run: until an operator stops it.
pub(crate) async fn is_wanted(systemd: &Systemd) -> Result<bool> {
    Ok(is_to_run(&systemd.unit("litellm.target").await?))
}

/// As [`is_wanted`], by the state of the target. While the gateway starts, the target waits for it.
fn is_to_run(target: &UnitState) -> bool {
    !target.is_stopped() || target.queued
}

/// Whether nothing of the deployment serves or is to be started. During a change, that is the work of an operator: a change
/// itself never stops the target.
pub(crate) async fn is_shut_down(systemd: &Systemd) -> Result<bool> {
    Ok(!is_wanted(systemd).await? && !is_served(systemd).await?)
}

/// The units of instances that systemd knows, in start order, with their states.
pub(crate) async fn instances(systemd: &Systemd) -> Result<Vec<(Instance, UnitState)>> {
    // The numbers of those that are there may have gaps.
    let known = systemd.known(Instance::all().map(Instance::unit)).await?;
    let extras = optional(systemd).await?.into_iter().map(Instance::from);
    let instances: Vec<Instance> = Instance::all()
        .filter(|instance| known.contains(&instance.unit()))
        .chain(extras)
        .collect();
    let units = try_join_all(
        instances
            .iter()
            .map(|instance| systemd.unit(instance.unit())),
    )
    .await?;
    Ok(instances.into_iter().zip(units).collect())
}

/// The units of the operator's own that start with the stack.
async fn extras(systemd: &Systemd) -> Result<Vec<Service>> {
    let mut services = optional(systemd).await?;
    services.retain(|service| service.is_extra());
    Ok(services)
}

/// The same, and the entrance if there is one.
pub(crate) async fn optional(systemd: &Systemd) -> Result<Vec<Service>> {
    let target = systemd.unit("litellm.target").await?;
    let starts = target.starts.iter();
    Ok(starts.filter_map(|unit| Service::optional(unit)).collect())
}

/// Every service unit of ours that systemd knows, in start order.
pub(crate) async fn member_units(systemd: &Systemd) -> Result<Vec<&'static str>> {
    let mut units = Vec::new();
    if systemd.unit(NETWORK_UNIT).await?.load == LoadState::Loaded {
        units.push(NETWORK_UNIT);
    }
    let instances = instances(systemd).await?.into_iter();
    units.extend(
        instances
            .filter(|(_, unit)| unit.load == LoadState::Loaded || !unit.is_stopped())
            .map(|(instance, _)| instance.unit()),
    );
    Ok(units)
}

/// The steps, preceded by restarts of the units that wait for their next attempt: the cause of the failure
/// may be fixed by now.
async fn past_holdoff<'a>(
    systemd: &Systemd,
    steps: &[(JobType, &'a str)],
) -> Result<Vec<(JobType, &'a str)>> {
    let starts = steps.iter().filter(|(verb, _)| *verb != JobType::Stop);
    let states = try_join_all(starts.map(|(_, unit)| systemd.unit(unit))).await?;
    let waiting: Vec<String> = blockers::needed(systemd, states)
        .await?
        .into_values()
        .filter(UnitState::awaits_restart)
        .map(|unit| unit.name)
        .collect();
    let extras = extras(systemd).await?.into_iter();
    let mut all: Vec<(JobType, &str)> = IMAGES_UNITS
        .into_iter()
        .chain(extras.map(Service::images_unit))
        .chain([Service::Migrate.unit()])
        .filter(|unit| waiting.iter().any(|name| name == unit))
        .map(|unit| (JobType::RestartAlone, unit))
        .collect();
    for (verb, unit) in steps {
        if all.iter().any(|(_, other)| other == unit) {
            continue;
        }
        let waits = *verb == JobType::Start && waiting.iter().any(|name| name == unit);
        all.push((if waits { JobType::Restart } else { *verb }, unit));
    }
    Ok(all)
}

/// The units that pull an image now, or try to.
pub(crate) async fn pulls(systemd: &Systemd) -> Result<Vec<&'static str>> {
    let mut units = Vec::new();
    let extras = extras(systemd).await?.into_iter();
    for unit in IMAGES_UNITS
        .into_iter()
        .chain(extras.map(Service::images_unit))
    {
        if systemd.unit(unit).await?.active != ActiveState::Inactive {
            units.push(unit);
        }
    }
    Ok(units)
}

/// Creates Podman's network as its unit does, if it was removed: `podman network rm --force` and `podman system prune`
/// do so while the unit stays active.
///
/// Services that run without it are on a network that Podman no longer knows: they are restarted, and Podman's name
/// server forgets its address there. It would keep that one for the network of this name, which has another now.
pub(crate) async fn restore_network(host: &Host) -> Result<()> {
    let podman = host.podman().await?;
    let is_missing = !podman.has_network(NETWORK).await?;
    let marker = host.paths.runtime_state().join(LOST_NETWORK);
    if !is_missing && !marker.exists() {
        return Ok(());
    }
    let systemd = host.systemd().await?;
    let extras = extras(systemd).await?.into_iter().map(LogSource::Service);
    let units = LogSource::ALL
        .into_iter()
        .chain(extras)
        .flat_map(LogSource::units);
    let units = try_join_all(units.map(|unit| systemd.unit(unit))).await?;
    if is_missing {
        host.progress
            .say("Podman's network litellm was removed: creating it again");
        let directory = host.paths.runtime_state();
        std::fs::create_dir_all(&directory).path_context("can't create", &directory)?;
        files::write_atomically(&marker, b"", 0o600)?;
        let records = host.paths.runtime.join("containers/networks/aardvark-dns");
        files::remove_existing(&records.join(NETWORK))?;
        let words = systemd.start_command(NETWORK_UNIT).await?;
        podman.run(words.iter().skip(1)).await?;
    }
    let mut jobs = Jobs::new(systemd).await?;
    let has_container =
        |unit: &&UnitState| matches!(&*unit.sub, "start" | "start-post" | "running");
    let mut outcome = Ok(());
    for unit in units.iter().filter(has_container) {
        outcome = outcome.and(jobs.ask(JobType::RestartAlone, &unit.name).await);
    }
    // Also after a failure: each restart comes back here, and would restart all others again.
    files::remove_existing(&marker)?;
    outcome
}

/// Whose lines `logs` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogSource {
    /// The unit of Podman's network.
    Network,
    /// The units that pull images.
    Images,
    /// A service.
    Service(Service),
}

impl LogSource {
    /// Every source, in start order.
    pub(crate) const ALL: [Self; 6] = [
        Self::Network,
        Self::Images,
        Self::Service(Service::Postgres),
        Self::Service(Service::Redis),
        Self::Service(Service::Migrate),
        Self::Service(Service::Litellm),
    ];

    /// The word for it on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Images => "images",
            Self::Service(service) => service.name(),
        }
    }

    /// Its units, whether they are installed or not.
    pub(crate) fn units(self) -> Vec<&'static str> {
        match self {
            Self::Network => vec![NETWORK_UNIT],
            Self::Images => IMAGES_UNITS.into(),
            Self::Service(Service::Litellm) => {
                let gateways = Instance::gateways().map(Instance::unit);
                gateways.chain([STANDBY_UNIT]).collect()
            }
            Self::Service(service @ Service::Extra(_)) => {
                vec![service.unit(), service.images_unit()]
            }
            Self::Service(service) => vec![service.unit()],
        }
    }

    /// Whose lines those of a unit are.
    pub(crate) fn of_unit(unit: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|source| source.units().contains(&unit))
            .or_else(|| Service::optional(unit).map(Self::Service))
    }
}

/// Jobs of systemd that are waited for, and the earlier states of their units.
struct Wait<'a> {
    systemd: &'a Systemd,
    paths: &'a Paths,
    progress: &'a Progress,
    jobs: Jobs<'a>,
    begin: Instant,
    /// The same moment, for the journal.
    since: jiff::Timestamp,
    deadline: Instant,
    /// How much longer a unit may take to stop than usual: for long answers, which the command's timeout is not for.
    grace: Duration,
    /// How often systemd had restarted each unit when it was first looked at: what happened before is not of
    /// this wait.
    restarts: HashMap<String, u64>,
    /// Units whose start failed, and which systemd tries again.
    recovering: Vec<String>,
    verb: JobType,
    interrupt: Signal,
}

impl<'a> Wait<'a> {
    async fn new(host: &'a Host, begin: Instant, timeout: Duration) -> Result<Self> {
        let systemd = host.systemd().await?;
        Ok(Self {
            systemd,
            paths: &host.paths,
            progress: &host.progress,
            jobs: Jobs::new(systemd).await?,
            begin,
            since: jiff::Timestamp::now(),
            deadline: begin + timeout,
            grace: Duration::ZERO,
            restarts: HashMap::new(),
            recovering: Vec::new(),
            verb: JobType::Start,
            interrupt: signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?,
        })
    }

    async fn ask(&mut self, verb: JobType, unit: &str) -> Result<()> {
        let before = self.systemd.unit(unit).await?;
        self.restarts.insert(unit.to_owned(), before.restarts);
        if verb != JobType::Start && !before.is_stopped() {
            let stop = before.stop_timeout.unwrap_or_default();
            self.grace = self.grace.max(stop.saturating_sub(USUAL_STOP));
        }
        self.verb = verb;
        self.jobs.ask(verb, unit).await
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn left(&self) -> Duration {
        let end = self.deadline + self.grace;
        end.saturating_duration_since(Instant::now())
    }

    /// Stops the gateway's further instances before its addresses change: each would keep the former ones open, and has a
    /// queue of its own at those that stay.
    async fn stop_further(&mut self) -> Result<()> {
        let units = further_to_stop(self.systemd).await?;
        if units.is_empty() {
            return Ok(());
        }
        for unit in units {
            self.ask(JobType::Stop, unit).await?;
        }
        self.finish().await
    }

    /// Waits for every job, saying each result; fails with the unit that caused the failure.
    async fn finish(&mut self) -> Result<()> {
        self.progress.say(&format!("waiting for {}", self.names()));
        // Records the current counters.
        self.restarting().await?;
        let mut failures: Vec<(String, JobResult)> = Vec::new();
        while !self.jobs.pending().is_empty() || !self.recovering.is_empty() {
            let left = self.left();
            if left.is_zero() {
                return Err(self.too_late().await);
            }
            let next = tokio::select! {
                next = next_result(&mut self.jobs, left.min(LOOK_INTERVAL)) => next?,
                _ = self.interrupt.recv() => return Err(self.interrupted().await),
            };
            match next {
                Some((unit, result)) if result.is_success() => self.say_done(&unit),
                Some((unit, JobResult::Canceled)) => return Err(self.replaced(&unit).await),
                Some((unit, JobResult::Failed)) if self.is_retried(&unit).await? => {
                    self.progress
                        .say(&format!("  {unit}: failed; systemd retries it"));
                    self.recovering.push(unit);
                }
                Some(failure) => failures.push(failure),
                None => {
                    if let Some(unit) = self.restarting().await? {
                        return Err(failed(self.systemd, &unit, "keeps failing", self.since).await);
                    }
                    self.look_after_recovering(&mut failures).await?;
                }
            }
        }
        // What failed for want of another unit says nothing itself.
        let cause = failures
            .iter()
            .find(|(_, result)| !matches!(result, JobResult::Dependency))
            .or(failures.first());
        match cause {
            None => Ok(()),
            Some((unit, result)) => {
                let unit = match result {
                    JobResult::Dependency => self.failed_need(unit).await?.unwrap_or(unit.clone()),
                    _ => unit.clone(),
                };
                Err(failed(self.systemd, &unit, "failed", self.since).await)
            }
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self
            .open()
            .into_iter()
            .filter_map(|unit| unit.strip_suffix(".service"))
            .collect();
        names.join(", ")
    }

    fn say_done(&self, unit: &str) {
        if unit.ends_with(".service") {
            let done = match self.verb {
                JobType::Stop => "stopped",
                _ => "ready",
            };
            let after = duration(self.begin.elapsed());
            self.progress
                .say(&format!("  {unit}: {done} after {after}"));
        }
    }

    /// Whether systemd retries a unit whose job failed, as it does without `RestartMode=direct`.
    async fn is_retried(&self, unit: &str) -> Result<bool> {
        let state = self.systemd.unit(unit).await?;
        let at_rest = state.is_stopped();
        Ok(!matches!(self.verb, JobType::Stop | JobType::Reload)
            && (!at_rest || state.queued || state.awaits_restart()))
    }

    /// What has become of the units whose jobs failed.
    async fn look_after_recovering(
        &mut self,
        failures: &mut Vec<(String, JobResult)>,
    ) -> Result<()> {
        for unit in std::mem::take(&mut self.recovering) {
            if self.systemd.unit(&unit).await?.is_active() {
                self.say_done(&unit);
            } else if self.is_retried(&unit).await? {
                self.recovering.push(unit);
            } else {
                failures.push((unit, JobResult::Failed));
            }
        }
        Ok(())
    }

    /// The units that are not done yet.
    fn open(&self) -> Vec<&str> {
        let mut units = self.jobs.pending();
        units.extend(self.recovering.iter().map(String::as_str));
        units
    }

    /// A unit, among those awaited and those that they need, that systemd had to restart too often since the
    /// wait began.
    async fn restarting(&mut self) -> Result<Option<String>> {
        if self.verb == JobType::Stop {
            return Ok(None);
        }
        let open = self.open();
        let states = try_join_all(open.iter().map(|unit| self.systemd.unit(unit))).await?;
        for state in blockers::needed(self.systemd, states).await?.into_values() {
            let before = *self
                .restarts
                .entry(state.name.clone())
                .or_insert(state.restarts);
            // An explicit start sets the counter back to zero.
            let since = state.restarts.checked_sub(before);
            if since.unwrap_or(state.restarts) >= ATTEMPTS && !state.is_active() {
                return Ok(Some(state.name));
            }
        }
        Ok(None)
    }

    /// The failed unit that `unit` needs.
    async fn failed_need(&self, unit: &str) -> Result<Option<String>> {
        let state = self.systemd.unit(unit).await?;
        let needed = blockers::needed(self.systemd, vec![state]).await?;
        Ok(needed
            .into_values()
            .find(UnitState::is_failing)
            .map(|unit| unit.name))
    }

    async fn too_late(&self) -> anyhow::Error {
        let waited = duration(self.begin.elapsed());
        let pending = self.open();
        // Among several, the one that is at work is the one that the others wait for.
        for unit in &pending {
            if let Ok(state) = self.systemd.unit(unit).await
                && matches!(
                    state.active,
                    ActiveState::Activating | ActiveState::Deactivating | ActiveState::Failed
                )
            {
                let problem = format!("was not ready after {waited}");
                return failed(self.systemd, unit, &problem, self.since).await;
            }
        }
        Failure::new(format!(
            "{} did not finish within {waited}",
            pending.join(", ")
        ))
        .hint("see the jobs of systemd: `systemctl list-jobs`")
        .into()
    }

    /// Polls the gateway until it can serve. Returns LiteLLM's version.
    async fn ready(&mut self) -> Result<Option<String>> {
        let client = Client::local(self.paths, Duration::from_secs(5))?;
        let unit = Service::Litellm.unit();
        let before = self.systemd.unit(unit).await?.restarts;
        let mut said = false;
        loop {
            let reason = match client.health().await {
                GatewayHealth::Ready { version } => return Ok(version),
                GatewayHealth::Live { reason }
                | GatewayHealth::Busy { reason }
                | GatewayHealth::Down { reason } => reason,
            };
            if !said {
                self.progress
                    .say(&format!("waiting for the gateway to be ready ({reason})"));
                said = true;
            }
            let state = self.systemd.unit(unit).await?;
            if state.restarts >= before + ATTEMPTS || state.active == ActiveState::Failed {
                return Err(failed(self.systemd, unit, "keeps failing", self.since).await);
            }
            if state.active == ActiveState::Inactive && !state.queued {
                return Err(self.replaced(unit).await);
            }
            if self.is_over() {
                let problem = format!("runs, but is not ready: {reason}");
                return Err(failed(self.systemd, unit, &problem, self.since).await);
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_INTERVAL) => {}
                _ = self.interrupt.recv() => return Err(self.interrupted().await),
            }
        }
    }

    /// After another command, or `systemctl`, did the opposite with a unit: that is no failure of the unit.
    async fn replaced(&mut self, unit: &str) -> anyhow::Error {
        self.ended(&format!(
            "another command started or stopped {unit} meanwhile"
        ))
        .await
    }

    /// After Ctrl-C.
    async fn interrupted(&mut self) -> anyhow::Error {
        self.ended("interrupted").await
    }

    /// Cancels the jobs. A start or a stop that has begun goes on without its job.
    async fn ended(&mut self, why: &str) -> anyhow::Error {
        self.jobs.cancel().await;
        let gateway = self.systemd.unit(Service::Litellm.unit()).await;
        // The interruption is the failure to report.
        if gateway.is_ok_and(|unit| unit.is_stopped())
            && !is_address_held(self.systemd).await.unwrap_or(false)
        {
            let _ = close_address(self.systemd).await;
        }
        let mut states = Vec::new();
        for unit in self.restarts.keys() {
            states.extend(self.systemd.unit(unit).await);
        }
        let rest = outlook::under_way(&states);
        Failure::interrupted(format!("{why}; {rest}"))
            .hint("see the state: `litellm-units status`; to stop: `litellm-units down`")
            .into()
    }
}

/// The next result of a job; nothing when the time is over.
async fn next_result(
    jobs: &mut Jobs<'_>,
    timeout: Duration,
) -> Result<Option<(String, JobResult)>> {
    if jobs.pending().is_empty() {
        tokio::time::sleep(timeout).await;
        return Ok(None);
    }
    jobs.next(timeout).await
}

/// The failure of `unit`, with its reason and the lines of its journal that explain it: those since `since`, if there are
/// any.
pub(crate) async fn failed(
    systemd: &Systemd,
    unit: &str,
    problem: &str,
    since: jiff::Timestamp,
) -> anyhow::Error {
    let state = systemd.unit(unit).await.ok();
    let mut message = format!("{unit} {problem}");
    if let Some(state) = &state
        && state.result != UnitResult::Success
    {
        message.push_str(&format!(": {}", state.reason()));
    }
    let count = if unit.starts_with(Service::Migrate.container()) {
        QUOTED_MIGRATION_LINES
    } else {
        QUOTED_LINES
    };
    let quoted = Quoted::read(
        systemd,
        unit,
        (quoted::ALL, count),
        Selection::Since(since),
        since,
    )
    .await;
    if let Some(state) = &state
        && quoted.out_of_memory
        && state.result != UnitResult::OomKill
    {
        message.push_str(&format!(": {}", state.out_of_memory()));
    }
    if quoted.lines.is_empty() {
        message.push_str("\n(no journal lines)");
    } else {
        let name = unit.strip_suffix(".service").unwrap_or(unit);
        let remote = systemd.remote().map(|host| format!("--host {host} "));
        let logs = format!("litellm-units {}logs", remote.unwrap_or_default());
        // Here and not in the hint: that of a caller that rolls back takes its place.
        message.push_str(&if quoted.recent {
            let since = since.strftime("%FT%TZ");
            format!("\nfrom its journal (all of it: `{logs} --since {since} {name}`):")
        } else {
            format!("\nno new journal lines; the latest ones (all: `{logs} {name}`):")
        });
        for line in quoted.lines {
            message.push_str("\n  | ");
            message.push_str(&line.text);
        }
    }
    let mut hint = outlook::outlook(state.as_ref());
    if let Some(state) = &state
        && (quoted.out_of_memory || state.result == UnitResult::OomKill)
        && let Some(remedy) = state.memory_remedy(systemd.scope())
    {
        hint = format!("{remedy}; {hint}");
    }
    Failure::new(message).hint(hint).into()
}

//! A restart of the gateway without an interruption: a standby on the same socket serves meanwhile. Further instances
//! follow one by one.

use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::address::Relocation;
use super::{ASK_INTERVAL, STANDBY_UNIT, Wait, failed, serving_on};
use crate::deployment::listen::GATEWAY_PORT;
use crate::error::Result;
use crate::host::Host;
use crate::host::capacity::available_memory;
use crate::host::container_state;
use crate::host::systemd::job::JobType;
use crate::host::systemd::{ActiveState, LoadState, UnitState};
use crate::litellm::health::GatewayHealth;
use crate::output::bytes;
use crate::quadlet;
use crate::service::{Instance, Service};

/// Asked inside a gateway's container, since at the address either of two may answer.
const QUESTION: &str =
    "import sys,urllib.request as u; print(u.urlopen(sys.argv[1],timeout=5).read().decode())";
/// Timeout of that question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a second gateway may take to stop: longer than systemd usually lets it (`TimeoutStopSec=`).
const STOP_TIMEOUT: Duration = Duration::from_secs(100);

/// What serves while the first gateway restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// The standby.
    Standby,
    /// The further gateways.
    Further,
}

/// What can serve while gateways restart; nothing if none does, or if the first is the only one and there can be no standby.
/// With the reason if that is a lack of memory. `gateway` is the first. A second one takes `fresh` bytes at its start; if that
/// is not known, it may take as much as the first one has.
pub(super) async fn cover(
    host: &Host,
    gateway: &UnitState,
    steps: &[(JobType, &str)],
    relocation: Option<&Relocation>,
    fresh: Option<u64>,
) -> Result<(Option<Cover>, Option<String>)> {
    let systemd = host.systemd().await?;
    let restarts = |unit: &str| steps.contains(&(JobType::Restart, unit));
    let further = || Instance::further(Instance::MOST).map(Instance::unit);
    if !restarts(&gateway.name) {
        // The first one gets its settings before them, so that they keep theirs if these do not work.
        let follow = relocation.is_none() && further().any(restarts);
        return Ok((follow.then_some(Cover::Further), None));
    }
    let mut has_further = false;
    for unit in further() {
        has_further |= systemd.unit(unit).await?.is_active();
    }
    // While the addresses change, only the standby has those that stay.
    let has_further = has_further && relocation.is_none();
    let without_standby = has_further.then_some(Cover::Further);
    let is_movable = relocation.is_none_or(Relocation::can_overlap);
    if !is_movable || !has_standby(host, gateway).await? {
        return Ok((without_standby, None));
    }
    Ok(match shortage(host, gateway, fresh) {
        None => (Some(Cover::Standby), None),
        shortage => (without_standby, shortage),
    })
}

/// Whether a second gateway can take over from the one that runs, as far as systemd is concerned.
async fn has_standby(host: &Host, gateway: &UnitState) -> Result<bool> {
    let systemd = host.systemd().await?;
    Ok(gateway.is_active()
        && systemd.unit(STANDBY_UNIT).await?.load == LoadState::Loaded
        // A gateway of an earlier version has the address for itself.
        && systemd.unit(quadlet::SOCKET).await?.is_active())
}

/// That there is too little memory for a second gateway, in words.
fn shortage(host: &Host, gateway: &UnitState, fresh: Option<u64>) -> Option<String> {
    if host.remote.is_some() {
        return None;
    }
    let resident = || container_state::resident_memory(&gateway.control_group);
    let needed = fresh.or(gateway.memory).or_else(resident)?;
    let available = available_memory()?;
    if available >= needed + needed / 2 {
        return None;
    }
    let (available, memory) = (bytes(available), bytes(needed));
    Some(match fresh {
        Some(_) => format!(
            "{available} of memory are free, too little for a second gateway, which takes {memory}"
        ),
        None => format!(
            "{available} of memory are free, too little for a second gateway beside the one that uses {memory}"
        ),
    })
}

/// Takes the steps, the restart of the gateway behind the back of a second one.
///
/// If the standby does not become ready, the first gateway would not either. It is then left running with
/// its current settings.
pub(super) async fn run(
    host: &Host,
    wait: &mut Wait<'_>,
    steps: &[(JobType, &str)],
    cover: Cover,
    relocation: Option<&Relocation>,
) -> Result<()> {
    let attempt = take_over(host, wait, steps, cover, relocation).await;
    // Else the second one is the only one that may serve.
    if attempt.is_ok()
        || wait
            .systemd
            .unit(Service::Litellm.unit())
            .await
            .is_ok_and(|gateway| gateway.is_active())
    {
        end(host).await;
    }
    attempt
}

async fn take_over(
    host: &Host,
    wait: &mut Wait<'_>,
    steps: &[(JobType, &str)],
    cover: Cover,
    relocation: Option<&Relocation>,
) -> Result<()> {
    let gateway = Service::Litellm.unit();
    let timeout = wait.deadline.saturating_duration_since(wait.begin);
    let asked = |unit: &str| steps.iter().find(|(_, asked)| *asked == unit);
    let further: Vec<_> = Instance::further(Instance::MOST)
        .filter_map(|instance| Some((asked(instance.unit())?.0, instance)))
        .collect();
    let is_gateway = |unit: &str| Instance::gateways().any(|instance| instance.unit() == unit);
    let mut others = steps
        .iter()
        .filter(|(_, unit)| !is_gateway(unit))
        .peekable();
    if others.peek().is_some() {
        for (verb, unit) in others {
            wait.ask(serving_on(*verb, unit), unit).await?;
        }
        wait.finish().await?;
    }
    // One that an interrupted command left behind has the settings of that time.
    end(host).await;
    if cover == Cover::Standby {
        host.progress
            .say("a second gateway serves while the first one restarts");
        wait.ask(JobType::Start, STANDBY_UNIT).await?;
        wait.finish().await?;
        ready_inside(host, wait, quadlet::STANDBY, STANDBY_UNIT).await?;
        // The settings work: the first one may take as long again.
        wait.deadline = Instant::now() + timeout;
    }
    // The second one has the current addresses, and keeps those that stay while systemd opens them again.
    if let Some(relocation) = relocation {
        wait.stop_further().await?;
        wait.deadline = Instant::now() + timeout;
        relocation.install(host).await?;
    }
    if let Some((verb, _)) = asked(gateway) {
        wait.ask(*verb, gateway).await?;
        if relocation.is_some() {
            wait.ask(JobType::Restart, quadlet::SOCKET).await?;
        }
        wait.finish().await?;
        ready_inside(host, wait, Service::Litellm.container(), gateway).await?;
    }
    if let Some(relocation) = relocation {
        relocation.complete(host).await?;
    }
    if !further.is_empty() {
        // From here on, the first one is the cover: the standby's time is limited.
        end(host).await;
    }
    // One after another, so that all the others serve meanwhile.
    for (verb, instance) in further {
        wait.deadline = Instant::now() + timeout;
        wait.ask(verb, instance.unit()).await?;
        wait.finish().await?;
        ready_inside(host, wait, instance.container(), instance.unit()).await?;
    }
    Ok(())
}

/// Waits until the gateway in `container` has its database, whichever gateway answers outside.
async fn ready_inside(host: &Host, wait: &mut Wait<'_>, container: &str, unit: &str) -> Result<()> {
    // Another machine's Podman can't be asked.
    if host.remote.is_some() {
        return Ok(());
    }
    let url = format!("http://127.0.0.1:{GATEWAY_PORT}/health/readiness");
    loop {
        let words = ["exec", container, "python3", "-c", QUESTION, &url];
        let mut question = host.podman().await?.command(words);
        // A container that is frozen never answers.
        let answer = tokio::time::timeout(QUESTION_TIMEOUT, question.kill_on_drop(true).output());
        let health = match answer
            .await
            .map(|output| output.context("can't run podman"))
        {
            Ok(output) => {
                let output = output?;
                if output.status.success() {
                    GatewayHealth::of_answer(&output.stdout)
                } else {
                    let words = String::from_utf8_lossy(&output.stderr);
                    let reason = words.trim().lines().last().unwrap_or_default().to_owned();
                    GatewayHealth::Down { reason }
                }
            }
            Err(_) => GatewayHealth::Down {
                reason: "its container does not answer".into(),
            },
        };
        if health.is_ready() {
            return Ok(());
        }
        if !wait.systemd.unit(unit).await?.is_active() || wait.is_over() {
            let problem = format!("runs, but {health}");
            return Err(failed(wait.systemd, unit, &problem, wait.since).await);
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_INTERVAL) => {}
            _ = wait.interrupt.recv() => return Err(wait.interrupted().await),
        }
    }
}

/// Stops a second gateway, if there is one: it finishes the requests that it has. That it takes long
/// for that does not make the first one fail.
pub(super) async fn end(host: &Host) {
    let attempt = async {
        let standby = host.systemd().await?.unit(STANDBY_UNIT).await?;
        if standby.active == ActiveState::Failed {
            return host.systemd().await?.reset_failed(STANDBY_UNIT).await;
        }
        if standby.is_stopped() {
            return Ok(());
        }
        let mut wait = Wait::new(host, Instant::now(), STOP_TIMEOUT).await?;
        wait.ask(JobType::Stop, STANDBY_UNIT).await?;
        wait.finish().await
    };
    if let Err(error) = attempt.await {
        host.progress
            .warn(&format!("the second gateway does not stop: {error:#}"));
    }
}

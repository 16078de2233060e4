//! `up`: from whatever there is to a gateway that serves.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::generate;
use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::journal;
use crate::litellm::Client;
use crate::litellm::health::Health;
use crate::output::{duration, say};
use crate::settings::{GATEWAY_PORT, Service, Settings};
use crate::systemd::job::{JobResult, Jobs, Verb};
use crate::systemd::{Systemd, UnitState};

/// How many lines of a failed unit's journal are quoted.
const QUOTED_LINES: usize = 12;
/// How often the states of units under way are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often the gateway is asked whether it is ready.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// A unit that systemd had to restart this often while it was starting won't get up by itself.
const ATTEMPTS: u64 = 2;

/// The unit that pulls images before the others start.
const IMAGES_UNIT: &str = "litellm-images.service";

/// Runs the command.
///
/// # Errors
/// When the settings are wrong, an image can't be pulled, a unit fails, or the gateway is not
/// ready in time.
pub async fn run(host: &Host, arguments: &cli::Up) -> Result<Exit> {
    let prepared = generate::prepare(host).await?;
    prepared.apply(host).await?;
    super::pull::pull_missing(host, prepared.settings()).await?;
    start(host, prepared.settings(), arguments.timeout).await?;
    Ok(Exit::Success)
}

/// Starts every unit and waits until the gateway is ready.
///
/// # Errors
/// When a unit fails, or the gateway is not ready within `timeout`.
pub async fn start(host: &Host, settings: &Settings, timeout: Duration) -> Result<()> {
    let begin = Instant::now();
    let deadline = begin + timeout;
    let systemd = host.systemd().await?;
    if !systemd.unit(Service::Litellm.unit()).await?.is_active() {
        check_port()?;
    }
    let mut wait = Wait::new(systemd, deadline).await?;
    for service in settings.services() {
        wait.ask(Verb::Start, service.unit()).await?;
    }
    wait.ask(Verb::Start, "litellm.target").await?;
    wait.finish().await?;
    let version = wait_ready(systemd, deadline).await?;
    say(&format!(
        "ready after {}: http://127.0.0.1:{GATEWAY_PORT}, LiteLLM {}, database connected",
        duration(begin.elapsed()),
        version.as_deref().unwrap_or("of unknown version"),
    ));
    Ok(())
}

/// Every service unit of ours that systemd knows, in start order.
///
/// # Errors
/// When systemd does not answer.
pub async fn member_units(systemd: &Systemd) -> Result<Vec<&'static str>> {
    let mut units = Vec::new();
    for unit in std::iter::once(IMAGES_UNIT).chain(Service::ALL.into_iter().map(Service::unit)) {
        if systemd.unit(unit).await?.load == "loaded" {
            units.push(unit);
        }
    }
    Ok(units)
}

/// The gateway can't start while another process has its port, and Podman's message on that is
/// long and late.
fn check_port() -> Result<()> {
    match std::net::TcpListener::bind(("127.0.0.1", GATEWAY_PORT)) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(Failure::new(format!("port {GATEWAY_PORT} is taken by another process"))
                .hint(format!("find and stop it: ss -ltnp 'sport = :{GATEWAY_PORT}'"))
                .into())
        }
        _ => Ok(()),
    }
}

/// Jobs under way, and what their units were like before.
struct Wait<'a> {
    systemd: &'a Systemd,
    jobs: Jobs<'a>,
    begin: Instant,
    deadline: Instant,
    restarts: HashMap<String, u64>,
}

impl<'a> Wait<'a> {
    async fn new(systemd: &'a Systemd, deadline: Instant) -> Result<Self> {
        let jobs = Jobs::new(systemd).await?;
        Ok(Self { systemd, jobs, begin: Instant::now(), deadline, restarts: HashMap::new() })
    }

    async fn ask(&mut self, verb: Verb, unit: &str) -> Result<()> {
        let before = self.systemd.unit(unit).await?;
        self.restarts.insert(unit.to_owned(), before.restarts);
        self.jobs.ask(verb, unit).await
    }

    /// Waits for every job, saying each result; fails with the unit that caused the failure.
    async fn finish(&mut self) -> Result<()> {
        say(&format!("waiting for {}", self.names()));
        let mut failures: Vec<(String, JobResult)> = Vec::new();
        while !self.jobs.pending().is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.too_late().await);
            }
            match self.jobs.next(left.min(LOOK_INTERVAL)).await? {
                Some((unit, result)) if result.is_success() => {
                    if unit.ends_with(".service") {
                        say(&format!("  {unit}: ready after {}", duration(self.begin.elapsed())));
                    }
                }
                Some(failure) => failures.push(failure),
                None => {
                    if let Some(unit) = self.restarting().await? {
                        return Err(failed(self.systemd, &unit, "keeps failing").await);
                    }
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
                    JobResult::Dependency => self.failed_unit().await?.unwrap_or(unit.clone()),
                    _ => unit.clone(),
                };
                Err(failed(self.systemd, &unit, "failed").await)
            }
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self
            .jobs
            .pending()
            .into_iter()
            .filter_map(|unit| unit.strip_suffix(".service"))
            .collect();
        names.join(", ")
    }

    /// A unit that systemd had to restart too often since the wait began.
    async fn restarting(&self) -> Result<Option<String>> {
        let mut units: Vec<&str> = self.jobs.pending();
        units.push(IMAGES_UNIT);
        for unit in units {
            let state = self.systemd.unit(unit).await?;
            let before = self.restarts.get(unit).copied().unwrap_or_default();
            // An explicit start sets the counter back to zero.
            let since = if state.restarts < before { state.restarts } else { state.restarts - before };
            if since >= ATTEMPTS {
                return Ok(Some(unit.to_owned()));
            }
        }
        Ok(None)
    }

    async fn failed_unit(&self) -> Result<Option<String>> {
        for unit in member_units(self.systemd).await? {
            if self.systemd.unit(unit).await?.active == "failed" {
                return Ok(Some(unit.to_owned()));
            }
        }
        Ok(None)
    }

    async fn too_late(&self) -> anyhow::Error {
        let waited = duration(self.begin.elapsed());
        let pending = self.jobs.pending();
        // Among several, the one that is at work is the one that the others wait for.
        for unit in &pending {
            if let Ok(state) = self.systemd.unit(unit).await
                && matches!(state.active.as_str(), "activating" | "deactivating" | "failed")
            {
                let problem = format!("was not ready after {waited}");
                return failed(self.systemd, unit, &problem).await;
            }
        }
        Failure::new(format!("{} did not finish within {waited}", pending.join(", ")))
            .hint("see what they do: systemctl list-jobs")
            .into()
    }
}

/// Polls the gateway until it can serve. Returns LiteLLM's version.
async fn wait_ready(systemd: &Systemd, deadline: Instant) -> Result<Option<String>> {
    let client = Client::local(Duration::from_secs(5))?;
    let unit = Service::Litellm.unit();
    let before = systemd.unit(unit).await?.restarts;
    let mut said = false;
    loop {
        let health = client.health().await;
        let reason = match health {
            Health::Ready { version } => return Ok(version),
            Health::Live { reason } | Health::Down { reason } => reason,
        };
        if !said {
            say(&format!("waiting for the gateway to be ready ({reason})"));
            said = true;
        }
        let state = systemd.unit(unit).await?;
        if state.restarts >= before + ATTEMPTS || state.active == "failed" {
            return Err(failed(systemd, unit, "keeps failing").await);
        }
        if Instant::now() >= deadline {
            return Err(failed(systemd, unit, &format!("runs, but is not ready: {reason}")).await);
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

/// The failure of `unit`, with its reason and the last lines of its journal.
async fn failed(systemd: &Systemd, unit: &str, problem: &str) -> anyhow::Error {
    let state: UnitState = systemd.unit(unit).await.unwrap_or_default();
    let mut message = format!("{unit} {problem}");
    if state.result != "success" && !state.result.is_empty() {
        message.push_str(&format!(": {}", state.reason()));
    }
    let lines = journal::last_lines(systemd.scope(), unit, QUOTED_LINES).await;
    if lines.is_empty() {
        message.push_str("\n(its journal holds no lines)");
    } else {
        message.push_str("\nlast lines of its journal:");
        for line in lines {
            message.push_str("\n  | ");
            message.push_str(&line);
        }
    }
    let scope = match systemd.scope() {
        crate::paths::Scope::System => "-u",
        crate::paths::Scope::User => "--user -u",
    };
    Failure::new(message)
        .hint(format!("systemd goes on trying; all lines: journalctl {scope} {unit}; give up: litellm-units down"))
        .into()
}

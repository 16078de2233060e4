//! Jobs of systemd: asked for, then awaited until each one's own result arrives.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use zbus_systemd::systemd1::{JobRemoved, ManagerProxy};
use zbus_systemd::zbus::{self, OwnedObjectPath};

use super::{Systemd, explain};
use crate::error::Result;
use crate::host::paths::Scope;

/// What a job can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobType {
    /// Start the unit, unless it runs.
    Start,
    /// Stop the unit, and what requires it.
    Stop,
    /// Stop the unit if it runs, then start it; what requires it restarts with it.
    Restart,
    /// Stop the unit if it runs, then start it; what requires it keeps running.
    RestartAlone,
    /// Have a running unit read its configuration again.
    Reload,
}

/// How a job ended: systemd's own words (`org.freedesktop.systemd1(5)`, `JobRemoved`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobResult {
    /// It did what was asked.
    Done,
    /// Another job replaced it, or someone cancelled it.
    Canceled,
    /// It took longer than the unit allows.
    Timeout,
    /// The unit failed.
    Failed,
    /// A unit that this one requires failed.
    Dependency,
    /// It did not apply to the unit's state.
    Skipped,
    /// Any other word, which means failure.
    Other(String),
}

impl JobResult {
    fn parse(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "canceled" => Self::Canceled,
            "timeout" => Self::Timeout,
            "failed" => Self::Failed,
            "dependency" => Self::Dependency,
            "skipped" => Self::Skipped,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether the unit is now in the state that was asked for.
    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Done | Self::Skipped)
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Dependency => "dependency failed",
            Self::Skipped => "skipped",
            Self::Other(word) => word,
        })
    }
}

/// A set of jobs that have not ended.
pub(crate) struct Jobs<'a> {
    manager: ManagerProxy<'a>,
    scope: Scope,
    removed: UnboundedReceiver<JobRemoved>,
    /// Ends with this.
    _reader: JoinSet<()>,
    pending: HashMap<OwnedObjectPath, String>,
}

impl<'a> Jobs<'a> {
    /// Opens the stream of results; jobs asked for from now on can't be missed, even if one ends
    /// before the answer to the call that made it arrives.
    pub(crate) async fn new(systemd: &'a Systemd) -> Result<Self> {
        let manager = systemd.manager().await?;
        let mut signals = manager
            .receive_job_removed()
            .await
            .map_err(|error| explain(error, systemd.scope()))
            .context("can't listen for systemd's job results")?;
        match manager.subscribe().await {
            Ok(()) => {}
            // An earlier set of jobs of this process did.
            Err(zbus::Error::MethodError(name, ..))
                if name == "org.freedesktop.systemd1.AlreadySubscribed" => {}
            Err(error) => {
                return Err(explain(error, systemd.scope()))
                    .context("can't subscribe to systemd's signals");
            }
        }
        // zbus queues 64 signals for a stream. Then it reads no more from the bus, not even answers, until someone takes one.
        let (sender, removed) = unbounded_channel();
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            while let Some(signal) = signals.next().await {
                if sender.send(signal).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            manager,
            scope: systemd.scope(),
            removed,
            _reader: reader,
            pending: HashMap::new(),
        })
    }

    /// Asks for one job, or joins the one of the same kind that has not ended.
    ///
    /// # Errors
    /// When systemd refuses: no such unit, masked, or not permitted.
    pub(crate) async fn ask(&mut self, verb: JobType, unit: &str) -> Result<()> {
        let mode = match verb {
            JobType::RestartAlone => "ignore-requirements",
            _ => "replace",
        };
        let (name, mode) = (unit.to_owned(), mode.to_owned());
        let path = match verb {
            JobType::Start => self.manager.start_unit(name, mode).await,
            JobType::Stop => self.manager.stop_unit(name, mode).await,
            JobType::Restart | JobType::RestartAlone => self.manager.restart_unit(name, mode).await,
            JobType::Reload => self.manager.reload_unit(name, mode).await,
        }
        .map_err(|error| explain(error, self.scope))
        .with_context(|| {
            let verb = match verb {
                JobType::Start => "start",
                JobType::Stop => "stop",
                JobType::Restart | JobType::RestartAlone => "restart",
                JobType::Reload => "reload",
            };
            format!("can't {verb} {unit}")
        })?;
        self.pending.insert(path, unit.to_owned());
        Ok(())
    }

    /// The units whose jobs have not ended, sorted.
    pub(crate) fn pending(&self) -> Vec<&str> {
        let mut units: Vec<&str> = self.pending.values().map(String::as_str).collect();
        units.sort_unstable();
        units
    }

    /// Cancels the jobs that have not ended.
    pub(crate) async fn cancel(&mut self) {
        for path in std::mem::take(&mut self.pending).into_keys() {
            if let Some(id) = path.rsplit('/').next().and_then(|id| id.parse().ok()) {
                let _ = self.manager.cancel_job(id).await;
            }
        }
    }

    /// Waits at most `timeout` for the next of these jobs to end. Nothing when none is left or
    /// the time is over: [`Jobs::pending`] tells which.
    pub(crate) async fn next(&mut self, timeout: Duration) -> Result<Option<(String, JobResult)>> {
        let deadline = Instant::now() + timeout;
        while !self.pending.is_empty() {
            let Ok(signal) = tokio::time::timeout_at(deadline, self.removed.recv()).await else {
                return Ok(None);
            };
            let signal =
                signal.context("the connection to systemd ended while waiting for a job")?;
            let arguments = signal
                .args()
                .context("systemd sent a malformed JobRemoved")?;
            if let Some(unit) = self.pending.remove(arguments.job()) {
                return Ok(Some((unit, JobResult::parse(arguments.result()))));
            }
        }
        Ok(None)
    }
}

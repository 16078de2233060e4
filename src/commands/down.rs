//! `down`: stop everything.

use std::time::Instant;

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::output::{duration, say};
use crate::systemd::job::{Jobs, Verb};

/// Runs the command.
///
/// # Errors
/// When systemd refuses, or a unit does not stop in time.
pub async fn run(host: &Host, arguments: &cli::Down) -> Result<Exit> {
    let systemd = host.systemd().await?;
    let target = systemd.unit("litellm.target").await?;
    if target.load == "not-found" {
        return Err(Failure::new("there is no litellm.target on this host")
            .hint("install the units first: litellm-units generate")
            .into());
    }
    let start = Instant::now();
    let mut jobs = Jobs::new(systemd).await?;
    // PartOf= carries the stop from the target to its members, but the target's own job does not
    // wait for theirs, and a failed start leaves members without an active target.
    for unit in super::up::member_units(systemd).await?.iter().rev() {
        jobs.ask(Verb::Stop, unit).await?;
    }
    jobs.ask(Verb::Stop, "litellm.target").await?;
    let mut failed = Vec::new();
    while let Some((unit, result)) = jobs.next(arguments.timeout.saturating_sub(start.elapsed())).await? {
        if !result.is_success() {
            failed.push(format!("{unit}: {result}"));
        }
    }
    failed.extend(jobs.pending().iter().map(|unit| format!("{unit}: still stopping")));
    if !failed.is_empty() {
        return Err(Failure::new(format!("not everything stopped: {}", failed.join(", ")))
            .hint("see what is left: litellm-units status")
            .into());
    }
    say(&format!("stopped in {}", duration(start.elapsed())));
    Ok(Exit::Success)
}

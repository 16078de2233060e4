//! `upgrade`: another release, or everything as before.

use crate::cli::upgrade::{Pace, Upgrade};
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output;
use crate::upgrade::{Options, Plan};

/// Runs the command.
///
/// # Errors
/// When a step fails; the message says whether the release of before serves again.
pub async fn run(host: &Host, arguments: Upgrade) -> Result<Exit> {
    let _lock = super::begin(host, "upgrade", arguments.dry_run, arguments.pace.timeout).await?;
    let plan = Plan::upgrade(host, arguments.image.as_ref()).await?;
    if plan.is_done() {
        output::line("nothing to do: this release runs already")?;
        return Ok(Exit::Success);
    }
    super::config::refuse_errors(host)?;
    carry_out(host, plan, arguments.dry_run, arguments.pace).await
}

/// Shows a plan and, unless this is only to show it, carries it out.
pub(super) async fn carry_out(host: &Host, plan: Plan, dry_run: bool, pace: Pace) -> Result<Exit> {
    let options = Options {
        settle: pace.settle,
        timeout: pace.timeout,
    };
    for line in plan.lines(options) {
        output::line(&line)?;
    }
    if !dry_run {
        Box::pin(plan.carry_out(host, options)).await?;
    }
    Ok(Exit::Success)
}

//! `secrets audit`: secrets where they do not belong.

use crate::cli::secrets::Audit;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::audit;
use crate::output::{self, say, warn};

/// Runs the command.
///
/// # Errors
/// When the deployment can't be read.
pub(crate) async fn run(host: &Host, arguments: &Audit) -> Result<Exit> {
    let report = audit::audit(host).await?;
    if arguments.json {
        output::json(&report)?;
    } else {
        for skipped in &report.skipped {
            warn(&format!("not looked at: {skipped}"));
        }
        let mut rows = vec![["PLACE", "SECRET", "PROBLEM"].map(str::to_owned).to_vec()];
        for finding in &report.findings {
            rows.push(vec![
                finding.place.clone(),
                finding.secret.clone(),
                finding.problem.clone(),
            ]);
        }
        if report.findings.is_empty() {
            output::line("no secret where it does not belong")?;
        } else {
            output::text(&output::columns(&rows))?;
            say(
                "remove each, then replace it, since others may have read it: litellm-units secrets rotate, litellm-units key rotate service",
            );
        }
    }
    Ok(if report.findings.is_empty() {
        Exit::Success
    } else {
        Exit::Failure
    })
}

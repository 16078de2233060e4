//! `secrets audit`: secrets where they do not belong.

use crate::cli::secrets::Audit;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::operations::audit;
use crate::output::{self, say, warn};

pub(crate) async fn run(host: &Host, arguments: &Audit) -> Result<Exit> {
    let report = audit::audit(host).await?;
    if arguments.json {
        output::json(&report)?;
    } else {
        for skipped in &report.skipped {
            warn(&format!("not examined: {skipped}"));
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
                "remove each of them. Others may have read it, so replace it as well: `litellm-units secrets rotate`, `litellm-units key rotate service`",
            );
        }
    }
    Ok(if report.findings.is_empty() {
        Exit::Success
    } else {
        Exit::Failure
    })
}

//! `import`: a deployment under docker compose becomes this one.

use std::io::IsTerminal;
use std::path::Path;

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::operations::import::{self, Import};
use crate::output;

pub(crate) async fn run(host: &Host, arguments: &cli::Import) -> Result<Exit> {
    let _lock = super::begin(host, import::COMMAND, arguments.dry_run, arguments.timeout).await?;
    if arguments.undo {
        import::undo(host, arguments.timeout).await?;
        return Ok(Exit::Success);
    }
    let directory = arguments.directory.as_deref().unwrap_or(Path::new("."));
    let (project, service) = (arguments.project.as_deref(), arguments.service.as_deref());
    let import = Import::find(host, arguments.from.as_ref(), directory, project, service).await?;
    for line in import.lines(host) {
        output::line(&line)?;
    }
    if arguments.dry_run {
        return Ok(Exit::Success);
    }
    import
        .admit(host, &arguments.accept.vulnerabilities)
        .await?;
    if !arguments.yes && !agreed()? {
        return Err(Failure::new("nothing was changed").into());
    }
    Box::pin(import.carry_out(host, arguments.timeout)).await?;
    Ok(Exit::Success)
}

fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "an import stops the old gateway, and there is no terminal to ask on",
        )
        .hint("to import without a question, add `--yes`")
        .into());
    }
    output::ask("Import it? The old gateway is stopped while its database is copied.")
}

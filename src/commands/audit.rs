//! `secrets audit`.

use crate::cli::secrets::Audit;
use crate::error::{Exit, Result};
use crate::host::Host;

/// Runs the command.
///
/// # Errors
/// When the deployment can't be read.
pub async fn run(_host: &Host, _arguments: &Audit) -> Result<Exit> {
    Ok(Exit::Success)
}

//! `down`: stop everything.

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::stack;

/// Runs the command.
///
/// # Errors
/// When systemd refuses, or a unit does not stop in time.
pub async fn run(host: &Host, arguments: &cli::Down) -> Result<Exit> {
    let systemd = host.systemd().await?;
    if systemd.unit("litellm.target").await?.load == "not-found" {
        return Err(Failure::new("there is no litellm.target on this host")
            .hint("install the units first: litellm-units generate")
            .into());
    }
    // PartOf= carries the stop from the target to its members, but the target's own job does not
    // wait for theirs, and a failed start leaves members without an active target.
    let mut units = stack::member_units(systemd).await?;
    units.reverse();
    units.extend(stack::beside_gateway(systemd).await?);
    units.push("litellm.target");
    stack::stop(host, &units, arguments.timeout).await?;
    Ok(Exit::Success)
}

//! `metrics`: the stack as Prometheus reads it.

use crate::doctor::metrics;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output;

pub(crate) async fn run(host: &Host) -> Result<Exit> {
    output::text(&metrics::gather(host).await?)?;
    Ok(Exit::Success)
}

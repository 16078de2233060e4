//! Debug logs of the running gateways for a limited time, without a restart: a file that `units/serve.py` reads once a
//! second. It holds no configuration, so no lock is taken: an operation that hangs is a reason for debug logs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use nix::time::{ClockId, clock_gettime};

use super::stack;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::container_state::has_mount;
use crate::host::files;
use crate::host::paths::Paths;
use crate::quadlet;

/// Where the gateways have the directory of the file.
const MOUNTED: &str = "/run/litellm-units/debug";

fn file(paths: &Paths) -> PathBuf {
    paths.runtime_state().join(quadlet::DEBUG).join("until")
}

/// The time since the boot, by the clock that nobody sets.
fn now() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).context("can't read the clock")?;
    Ok(now.into())
}

/// Until when the gateways write debug logs; nothing if they do not.
pub(crate) fn until(paths: &Paths) -> Option<Timestamp> {
    let text = std::fs::read_to_string(file(paths)).ok()?;
    let until = Duration::from_secs(text.trim().parse().ok()?);
    let left = until.checked_sub(now().ok()?)?;
    let until = Timestamp::now().checked_add(left).ok()?;
    until.round(Unit::Second).ok()
}

/// For people: `14:32`, as the clock of the host shows it.
pub(crate) fn time(until: Timestamp) -> String {
    let zoned = TimeZone::system().to_datetime(until);
    zoned.strftime("%H:%M").to_string()
}

/// Turns debug logs on in every running gateway, or sets another end. A gateway that starts meanwhile has them, too.
pub(crate) async fn turn_on(host: &Host, limit: Duration) -> Result<()> {
    let mut gateways = stack::gateways(host.systemd().await?).await?;
    gateways.retain(|(_, unit)| unit.is_active());
    if gateways.is_empty() {
        return Err(Failure::new("no gateway is running")
            .hint("start it: `litellm-units up`")
            .into());
    }
    for (instance, unit) in &gateways {
        if !has_mount(&unit.control_group, MOUNTED) {
            return Err(Failure::new(format!(
                "{} was started by an earlier version of litellm-units, which can't change the level of its logs",
                instance.unit()
            ))
            .hint("update the units, then start it anew without an interruption: `litellm-units generate && litellm-units restart --handover litellm`")
            .into());
        }
    }
    let until = now()? + limit;
    files::write_atomically(
        &file(&host.paths),
        format!("{}\n", until.as_secs()).as_bytes(),
        0o644,
    )
}

/// Turns debug logs off.
pub(crate) fn turn_off(paths: &Paths) -> Result<()> {
    files::remove_existing(&file(paths))
}

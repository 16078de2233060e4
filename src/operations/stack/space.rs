//! What a full disk does to the servers: they run on, can't write, and don't start again.

use std::path::PathBuf;

use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files::Space;
use crate::host::paths::Paths;
use crate::host::systemd::job::JobType;
use crate::litellm::health::GatewayHealth;
use crate::output::{bytes, shell_word};
use crate::service::Service;

/// What a start writes at most: PostgreSQL, two segments of its log.
const OF_A_START: u64 = 32 << 20;
/// With less, the next write may fail.
const FULL: u64 = 1 << 20;

/// Refuses to stop a running server that could not start again.
pub(super) async fn refuse_restarts(host: &Host, steps: &[(JobType, &str)]) -> Result<()> {
    for service in [Service::Postgres, Service::Redis] {
        let unit = service.unit();
        let restarts = |(verb, other): &(JobType, &str)| {
            *other == unit && matches!(verb, JobType::Restart | JobType::RestartAlone)
        };
        if !steps.iter().any(restarts) || !host.systemd().await?.unit(unit).await?.is_active() {
            continue;
        }
        let directory = data(&host.paths, service);
        // Where there is no such directory, nothing is known to be full.
        let Ok(Space { free, size }) = Space::of(&directory) else {
            continue;
        };
        // On a small file system, that would be most of it.
        if free < OF_A_START.min(size / 20) {
            return Err(Failure::new(format!(
                "{} has {} of free space, too little for {unit} to start again; nothing was restarted",
                directory.display(),
                bytes(free)
            ))
            .hint(format!(
                "free some space; to see what uses it: `du -xh --max-depth=2 {} | sort -h`",
                shell_word(&host.paths.deployment)
            ))
            .into());
        }
    }
    Ok(())
}

/// Ready means that the local PostgreSQL can write. LiteLLM says so as long as it can read.
pub(crate) fn unless_full(paths: &Paths, health: GatewayHealth) -> GatewayHealth {
    let directory = data(paths, Service::Postgres);
    if health.is_ready()
        // Left over beside an external database otherwise.
        && paths.quadlets.join("litellm-postgres.container").exists()
        && Space::of(&directory).is_ok_and(|space| space.free < FULL)
    {
        return GatewayHealth::Live {
            reason: format!(
                "the disk of {} is full, so the database can't be written",
                directory.display()
            ),
        };
    }
    health
}

fn data(paths: &Paths, service: Service) -> PathBuf {
    match service {
        Service::Redis => paths.redis_data(),
        _ => paths.postgres_data(),
    }
}

//! The state of a running container as Podman and the kernel record it, read without starting
//! Podman: its answer takes longer than everything else in `status`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::paths::Paths;

/// The state of a container's health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ContainerHealth {
    /// It has not passed yet.
    Starting,
    /// The last checks passed.
    Healthy,
    /// The last check failed; after the next failure, the container is replaced.
    Failing,
    /// Several checks in a row failed.
    Unhealthy,
    Stopped,
    /// What Podman writes for a container without a check.
    Reset,
    /// A state of a newer Podman.
    #[serde(other)]
    Unknown,
}

impl ContainerHealth {
    /// Whether the container did not answer the last check.
    pub(crate) fn is_bad(self) -> bool {
        matches!(self, Self::Failing | Self::Unhealthy)
    }

    /// Whether no fault is known.
    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Healthy)
    }
}

impl fmt::Display for ContainerHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Failing => "failing",
            Self::Unhealthy => "unhealthy",
            Self::Stopped => "stopped",
            Self::Reset => "reset",
            Self::Unknown => "unknown",
        })
    }
}

/// The part of Podman's health check log that is used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Log {
    status: ContainerHealth,
    /// Failures since the last success. The status changes with the last one that is allowed.
    #[serde(default)]
    failing_streak: u32,
}

impl Log {
    fn health(&self) -> Option<ContainerHealth> {
        match self.status {
            ContainerHealth::Reset => None,
            ContainerHealth::Healthy if self.failing_streak > 0 => Some(ContainerHealth::Failing),
            status => Some(status),
        }
    }
}

/// A container in the list of Podman's storage (`containers.json` of containers/storage).
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    image: String,
}

/// The health of the container in a unit's control group, from the log that Podman keeps beside
/// its state (`healthCheckLogPath` of libpod). Nothing when no container runs or it has no check.
pub(crate) fn health(paths: &Paths, control_group: &str) -> Option<ContainerHealth> {
    let log = paths
        .container_state(&running(control_group)?)
        .join("healthcheck.log");
    let log: Log = serde_json::from_slice(&std::fs::read(log).ok()?).ok()?;
    log.health()
}

/// The ID of the image of the container in a unit's control group, from Podman's list. Nothing when
/// no container runs, or its storage is at another place.
pub(crate) fn image_id(paths: &Paths, control_group: &str) -> Option<String> {
    let id = running(control_group)?;
    let list: Vec<Listed> =
        serde_json::from_slice(&std::fs::read(paths.containers_list()).ok()?).ok()?;
    let found = list.into_iter().find(|container| container.id == id)?;
    Some(found.image)
}

/// Whether something is mounted at `place` in the running container of a unit's control group.
pub(crate) fn has_mount(control_group: &str, place: &str) -> bool {
    let mounts = || {
        let payload = format!("libpod-payload-{}", running(control_group)?);
        let processes = in_hierarchy(control_group)
            .join(payload)
            .join("cgroup.procs");
        let processes = std::fs::read_to_string(processes).ok()?;
        std::fs::read_to_string(format!("/proc/{}/mountinfo", processes.lines().next()?)).ok()
    };
    let mounts = mounts().unwrap_or_default();
    { mounts.lines() }.any(|line| line.split(' ').nth(4) == Some(place))
}

/// The identifier of the container in a unit's control group: by that name Podman makes a group
/// for its processes (`--cgroups=split`). Quadlet's file with the identifier went in Podman 5.8.
fn running(control_group: &str) -> Option<String> {
    if control_group.is_empty() {
        return None;
    }
    std::fs::read_dir(in_hierarchy(control_group))
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name();
            Some(name.to_str()?.strip_prefix("libpod-payload-")?.to_owned())
        })
}

fn in_hierarchy(control_group: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(control_group.trim_start_matches('/'))
}

/// The resident memory of every process in a control group and below, in bytes: an upper bound,
/// since shared pages count once for each process. For hosts whose kernel does not count memory
/// by control group.
pub(crate) fn resident_memory(control_group: &str) -> Option<u64> {
    if control_group.is_empty() {
        return None;
    }
    let mut pages = 0;
    add_resident_pages(&in_hierarchy(control_group), &mut pages);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?).filter(|bytes| *bytes > 0)
}

/// The memory of a control group and all below that the kernel can't take back, in bytes: not its cache of files, but what
/// was moved to swap.
pub(crate) fn held_memory(control_group: &str) -> Option<u64> {
    if control_group.is_empty() {
        return None;
    }
    let group = in_hierarchy(control_group);
    let Ok(text) = std::fs::read_to_string(group.join("memory.stat")) else {
        return resident_memory(control_group);
    };
    let anonymous: u64 = { text.lines().find_map(|line| line.strip_prefix("anon ")) }?
        .parse()
        .ok()?;
    // Missing in a kernel without swap.
    let swapped = std::fs::read_to_string(group.join("memory.swap.current"))
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    Some(anonymous + swapped.unwrap_or_default())
}

/// The CPU time of a control group and all below, by the kernel: for hosts whose systemd does not
/// count it.
pub(crate) fn cpu_time(control_group: &str) -> Option<Duration> {
    if control_group.is_empty() {
        return None;
    }
    let text = std::fs::read_to_string(in_hierarchy(control_group).join("cpu.stat")).ok()?;
    let microseconds = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(microseconds.parse().ok()?))
}

fn add_resident_pages(group: &Path, pages: &mut u64) {
    if let Ok(processes) = std::fs::read_to_string(group.join("cgroup.procs")) {
        for process in processes.lines() {
            let statm =
                std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
            let resident = statm
                .split_whitespace()
                .nth(1)
                .and_then(|word| word.parse::<u64>().ok());
            *pages += resident.unwrap_or_default();
        }
    }
    let Ok(children) = std::fs::read_dir(group) else {
        return;
    };
    for child in children
        .flatten()
        .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        add_resident_pages(&child.path(), pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_in_the_log_of_podman() {
        for (log, expected) in [
            (
                r#"{"Status":"starting","FailingStreak":3}"#,
                ContainerHealth::Starting,
            ),
            (
                r#"{"Status":"healthy","FailingStreak":0,"Log":[]}"#,
                ContainerHealth::Healthy,
            ),
            (
                r#"{"Status":"healthy","FailingStreak":1}"#,
                ContainerHealth::Failing,
            ),
            (
                r#"{"Status":"unhealthy","FailingStreak":2}"#,
                ContainerHealth::Unhealthy,
            ),
            (r#"{"Status":"stopped"}"#, ContainerHealth::Stopped),
            (r#"{"Status":"confused"}"#, ContainerHealth::Unknown),
        ] {
            let log: Log = serde_json::from_str(log).unwrap();
            assert_eq!(log.health(), Some(expected));
        }
        // As Podman 5.4 writes it for a container without a check.
        let log = r#"{"Status":"reset","FailingStreak":0,"Log":null}"#;
        assert_eq!(serde_json::from_str::<Log>(log).unwrap().health(), None);
    }
}

//! Podman, control groups, systemd, SELinux and the clock.

use std::path::Path;
use std::time::{Duration, SystemTime};

use zbus_systemd::zbus::{self, Connection, OwnedVariant, Variant};

use super::{Check, CheckName, Examination};
use crate::host::Host;
use crate::host::systemd::Features;

const TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) async fn podman(host: &Host) -> Check {
    let podman = match host.podman().await {
        Ok(podman) => podman,
        Err(error) => return Check::error(CheckName::Podman, &error),
    };
    match podman.version().await {
        Ok(version) => Check::ok(CheckName::Podman, format!("Podman {version} with Quadlet")),
        Err(error) => Check::error(CheckName::Podman, &error),
    }
}

/// Podman 6 supports only cgroup v2, and rootless limits need it with every version.
pub(crate) fn cgroup() -> Check {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Check::ok(CheckName::Cgroup, "cgroup v2")
    } else {
        Check::failure(CheckName::Cgroup, "this host uses cgroup v1, or none")
            .remedy("boot the kernel with systemd.unified_cgroup_hierarchy=1")
    }
}

/// Its version, and whether it supports the keys of the units.
pub(crate) async fn systemd(examination: &Examination<'_>) -> Option<Check> {
    let systemd = examination.host.systemd().await.ok()?;
    let text = systemd.version().await.ok()?;
    let features = systemd.features().await.ok()?;
    Some(systemd_version(&text, features))
}

fn systemd_version(text: &str, features: Features) -> Check {
    let number = text
        .trim_start_matches('v')
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    let way = if features.restart_direct {
        ""
    } else {
        " without RestartMode=direct: the units wait for each other"
    };
    match number.parse::<u32>() {
        Ok(version) if version < Features::OLDEST => Check::warning(
            CheckName::Systemd,
            format!("systemd {version} is older than the oldest tested version"),
        )
        .remedy(format!(
            "upgrade the distribution: systemd {} or newer",
            Features::OLDEST
        )),
        Ok(version) => Check::ok(CheckName::Systemd, format!("systemd {version}{way}")),
        Err(_) => Check::ok(
            CheckName::Systemd,
            format!("systemd {text}, an unknown version"),
        ),
    }
}

pub(crate) fn selinux() -> Check {
    let enforce = std::fs::read_to_string("/sys/fs/selinux/enforce").ok();
    // Files of container-selinux.
    let policy = [
        "/usr/share/selinux/packages/container.pp.bz2",
        "/usr/share/containers/selinux/contexts",
    ]
    .iter()
    .any(|path| Path::new(path).exists());
    selinux_state(enforce.as_deref(), policy)
}

fn selinux_state(enforce: Option<&str>, policy: bool) -> Check {
    match enforce.map(str::trim) {
        None => Check::ok(CheckName::Selinux, "SELinux is not in use"),
        Some("1") if !policy => Check::failure(
            CheckName::Selinux,
            "SELinux is enforcing, but has no policy for containers",
        )
        .remedy("install the policy: `dnf install container-selinux`"),
        Some("1") => Check::ok(
            CheckName::Selinux,
            "SELinux is enforcing; the units label their volumes",
        ),
        Some(_) => Check::ok(CheckName::Selinux, "SELinux is permissive"),
    }
}

/// A wrong clock breaks TLS, budgets and the expiry of keys.
pub(crate) async fn clock(host: &Host) -> Check {
    // No file can be newer than the present.
    let newest = [host.paths.env_file(), host.paths.config_file()]
        .iter()
        .filter_map(|path| path.metadata().and_then(|found| found.modified()).ok())
        .max();
    if let Some(ahead) = newest.and_then(|newest| newest.duration_since(SystemTime::now()).ok())
        && ahead > Duration::from_secs(24 * 3600)
    {
        return Check::warning(
            CheckName::Clock,
            format!(
                "the clock is {} behind the newest file of the deployment",
                crate::output::duration(ahead)
            ),
        )
        .remedy("compare with another clock; to set it: `timedatectl set-ntp true`");
    }
    match tokio::time::timeout(TIMEOUT, time_properties()).await {
        Ok(Ok(properties)) => {
            let flag = |name: &str| {
                matches!(
                    properties.get(name).map(|value| &**value),
                    Some(Variant::Bool(true))
                )
            };
            synchronised(flag("NTPSynchronized"), flag("CanNTP"), flag("NTP"))
        }
        _ => Check::ok(
            CheckName::Clock,
            "no service reports whether the clock is synchronised",
        ),
    }
}

async fn time_properties() -> zbus::Result<std::collections::HashMap<String, OwnedVariant>> {
    let reply = Connection::system()
        .await?
        .call_method(
            Some("org.freedesktop.timedate1"),
            "/org/freedesktop/timedate1",
            Some("org.freedesktop.DBus.Properties"),
            "GetAll",
            &("org.freedesktop.timedate1",),
        )
        .await?;
    reply.body().deserialize()
}

/// `possible`: a time service is installed; `enabled`: it is enabled.
fn synchronised(now: bool, possible: bool, enabled: bool) -> Check {
    match (now, possible, enabled) {
        (true, ..) => Check::ok(CheckName::Clock, "the clock is synchronised"),
        (_, false, _) => Check::ok(
            CheckName::Clock,
            "no time service is installed; the clock is that of the machine",
        ),
        (_, _, true) => Check::warning(
            CheckName::Clock,
            "the time service is running, but has not reached a server",
        )
        .remedy("see why: `timedatectl timesync-status`"),
        (_, _, false) => Check::warning(CheckName::Clock, "the time service is disabled")
            .remedy("`timedatectl set-ntp true`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;

    #[test]
    fn systemd_versions() {
        let message = |text, version| systemd_version(text, Features::of_version(version)).message;
        assert_eq!(message("v254.5", 254), "systemd 254");
        assert_eq!(message("257.13-1~deb13u1", 257), "systemd 257");
        assert_eq!(
            message("252-51.el9", 252),
            "systemd 252 without RestartMode=direct: the units wait for each other"
        );
        // Backported to RHEL 9.
        assert_eq!(message("252-67.el9", 254), "systemd 252");
        let old = systemd_version("249.11-0ubuntu3", Features::of_version(249));
        assert_eq!(old.outcome, CheckOutcome::Warning);
        assert_eq!(
            message("unknown", 257),
            "systemd unknown, an unknown version"
        );
    }

    #[test]
    fn selinux_states() {
        assert_eq!(selinux_state(None, false).message, "SELinux is not in use");
        assert_eq!(
            selinux_state(Some("0"), false).message,
            "SELinux is permissive"
        );
        assert_eq!(selinux_state(Some("1\n"), true).outcome, CheckOutcome::Ok);
        assert_eq!(
            selinux_state(Some("1\n"), false).outcome,
            CheckOutcome::Failure
        );
    }

    #[test]
    fn clocks() {
        assert_eq!(synchronised(true, false, false).outcome, CheckOutcome::Ok);
        assert_eq!(synchronised(false, false, false).outcome, CheckOutcome::Ok);
        assert_eq!(
            synchronised(false, true, false).message,
            "the time service is disabled"
        );
        assert_eq!(
            synchronised(false, true, true).outcome,
            CheckOutcome::Warning
        );
    }
}

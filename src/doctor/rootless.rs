//! What Podman and systemd need for an unprivileged user.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::{User, geteuid};
use zbus_systemd::login1::ManagerProxy;
use zbus_systemd::zbus::Connection;

use super::{Check, CheckName, Fix};
use crate::error::Result;
use crate::host::Host;

/// The default of every distribution, and what images expect.
const ENOUGH_IDS: u64 = 65536;

/// All except for the session.
pub(crate) async fn checks(host: &Host) -> Vec<Check> {
    let Ok(Some(user)) = User::from_uid(geteuid()) else {
        let message = format!(
            "user {} has no name, so it has neither lingering nor subordinate ids",
            geteuid()
        );
        return vec![
            Check::failure(CheckName::Linger, message).remedy("run this as a user in /etc/passwd"),
        ];
    };
    vec![linger(&user), subordinate_ids(&user), pasta(host).await]
}

/// The directory for the runtime files of the user's systemd and Podman.
pub(crate) fn session(host: &Host) -> Check {
    let runtime = &host.paths.runtime;
    let again = "log in as that user directly (ssh, machinectl shell USER@; not su or sudo)";
    match runtime.metadata() {
        Err(_) => Check::failure(
            CheckName::Session,
            format!(
                "{} does not exist, so this user has no session",
                runtime.display()
            ),
        )
        .remedy(again),
        Ok(found) if found.uid() != geteuid().as_raw() => Check::failure(
            CheckName::Session,
            format!(
                "{} belongs to another user: XDG_RUNTIME_DIR is that of another session",
                runtime.display()
            ),
        )
        .remedy(again),
        Ok(_) => Check::ok(
            CheckName::Session,
            format!("the user's session is in {}", runtime.display()),
        ),
    }
}

fn linger(user: &User) -> Check {
    if Path::new("/var/lib/systemd/linger")
        .join(&user.name)
        .exists()
    {
        return Check::ok(
            CheckName::Linger,
            format!("{} lingers: the units start at boot", user.name),
        );
    }
    Check::failure(
        CheckName::Linger,
        format!(
            "{} does not linger: the gateway stops at logout and does not start at boot",
            user.name
        ),
    )
    .remedy(format!("`loginctl enable-linger {}`", user.name))
    .fix(Fix::Linger)
}

pub(crate) async fn enable_linger() -> Result<Vec<String>> {
    let connection = Connection::system()
        .await
        .context("can't reach the system's D-Bus")?;
    ManagerProxy::new(&connection)
        .await
        .context("can't address logind")?
        .set_user_linger(geteuid().as_raw(), true, false)
        .await
        .context(
            "logind does not allow lingering for this user; as root: `loginctl enable-linger USER`",
        )?;
    Ok(vec!["enabled lingering".into()])
}

fn subordinate_ids(user: &User) -> Check {
    // From sssd or FreeIPA, for example.
    let external = std::fs::read_to_string("/etc/nsswitch.conf").is_ok_and(|text| {
        text.lines().any(|line| {
            line.strip_prefix("subid:")
                .is_some_and(|sources| sources.trim() != "files")
        })
    });
    if external {
        return Check::ok(
            CheckName::Subids,
            "subordinate ids come from the directory that /etc/nsswitch.conf names",
        );
    }
    if find("newuidmap").is_none() || find("newgidmap").is_none() {
        return Check::failure(
            CheckName::Subids,
            "newuidmap and newgidmap are not installed",
        )
        .remedy("as root: `apt install uidmap` or `dnf install shadow-utils`");
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    judge_ids(
        &user.name,
        user.uid.as_raw(),
        &read("/etc/subuid"),
        &read("/etc/subgid"),
    )
}

/// `files` are those of subuid(5) and subgid(5), for `users` and `groups`: `USER:FIRST:COUNT`.
fn judge_ids(name: &str, uid: u32, users: &str, groups: &str) -> Check {
    let uid = uid.to_string();
    let lines = |text: &str| -> Vec<(bool, u64, u64)> {
        text.lines()
            .filter_map(|line| {
                let mut fields = line.trim().split(':');
                let owner = fields.next()?;
                let first = fields.next()?.parse().ok()?;
                Some((
                    owner == name || owner == uid,
                    first,
                    fields.next()?.parse().ok()?,
                ))
            })
            .collect()
    };
    let (uids, gids) = (lines(users), lines(groups));
    let count = |lines: &[(bool, u64, u64)]| -> u64 {
        lines
            .iter()
            .filter(|(own, ..)| *own)
            .map(|(_, _, count)| count)
            .sum()
    };
    let least = count(&uids).min(count(&gids));
    if least >= ENOUGH_IDS {
        return Check::ok(CheckName::Subids, format!("{least} subordinate ids"));
    }
    let free = uids
        .iter()
        .chain(&gids)
        .map(|(_, first, count)| first + count)
        .max()
        .unwrap_or_default()
        .max(100_000);
    let range = format!("{free}-{}", free + ENOUGH_IDS - 1);
    let remedy = format!(
        "as root: `usermod --add-subuids {range} --add-subgids {range} {name}`; then as {name}: `podman system migrate`"
    );
    if least == 0 {
        let file = if count(&uids) == 0 {
            "/etc/subuid"
        } else {
            "/etc/subgid"
        };
        Check::failure(
            CheckName::Subids,
            format!("{name} has no range in {file}, so no container can start"),
        )
        .remedy(remedy)
    } else {
        Check::warning(
            CheckName::Subids,
            format!("{name} has {least} subordinate ids; images may need {ENOUGH_IDS}"),
        )
        .remedy(remedy)
    }
}

/// Connects rootless networks to the host's.
async fn pasta(host: &Host) -> Check {
    // Podman 4 has pasta for a single container, and slirp4netns for networks.
    let program = match host.podman().await {
        Ok(podman) => match podman.version().await {
            Ok(version) if version.major < 5 => "slirp4netns".to_owned(),
            _ => podman.rootless_network_program().await,
        },
        Err(_) => "pasta".to_owned(),
    };
    let package = if program == "pasta" {
        "passt"
    } else {
        &program
    };
    match find(&program) {
        Some(path) => Check::ok(CheckName::Pasta, path.display().to_string()),
        None => Check::failure(
            CheckName::Pasta,
            format!("{program} is not installed, so rootless containers have no network"),
        )
        .remedy(format!(
            "as root: `apt install {package}` or `dnf install {package}`"
        )),
    }
}

/// A program of the PATH or of Podman's own directories.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            [
                "/usr/bin",
                "/usr/sbin",
                "/usr/libexec/podman",
                "/usr/lib/podman",
                "/usr/local/bin",
            ]
            .map(PathBuf::from),
        )
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::judge_ids;

    #[test]
    fn ranges() {
        let enough = "root:1:1\nann:100000:65536\n";
        assert_eq!(
            judge_ids("ann", 1000, enough, enough).outcome,
            CheckOutcome::Ok
        );
        assert_eq!(
            judge_ids("bob", 1001, enough, "1001:5:70000").outcome,
            CheckOutcome::Failure
        );
        let by_number = judge_ids("bob", 1001, "1001:200000:1000", "bob:200000:1000");
        assert_eq!(by_number.outcome, CheckOutcome::Warning);
        let none = judge_ids("bob", 1001, enough, enough);
        assert_eq!(
            none.message,
            "bob has no range in /etc/subuid, so no container can start"
        );
        assert_eq!(
            none.remedy.as_deref(),
            Some(
                "as root: `usermod --add-subuids 165536-231071 --add-subgids 165536-231071 bob`; then as bob: `podman system migrate`"
            )
        );
    }
}

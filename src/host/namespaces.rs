//! Whether the containers of root can have user IDs that no user of this host has.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::error::Result;
use crate::host::Host;
use crate::host::paths::{Paths, Scope};

/// From this kernel on, overlayfs mounts the layers of an image with other owners; before, Podman would copy them.
const OVERLAY: (u32, u32) = (5, 19);
/// From this kernel on, tmpfs can be mounted with other owners.
const TMPFS: (u32, u32) = (6, 3);

/// The first reason for which root's Podman can't give each service a user namespace while all files keep their owners.
/// The processes that start containers are systemd's: what counts is its view of mounts and IDs, not the caller's.
pub(crate) async fn obstacle(host: &Host) -> Result<Option<String>> {
    if host.paths.scope == Scope::User {
        return Ok(Some(
            "without root, each container has a user namespace anyway".into(),
        ));
    }
    let podman = host.podman().await?;
    let storage = podman
        .run([
            "info",
            "--format",
            r#"{{.Host.OCIRuntime.Name}} {{.Store.GraphDriverName}} {{index .Store.GraphStatus "Supports shifting"}}"#,
        ])
        .await?;
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("can't read {path}"));
    let release = read("/proc/sys/kernel/osrelease")?;
    let maps = [read("/proc/1/uid_map")?, read("/proc/1/gid_map")?];
    // Guides for hardening set it to 0, which holds for root as well.
    let most = read("/proc/sys/user/max_user_namespaces")?;
    let volumes = volumes(&host.paths);
    // After the paths were looked up, which mounts what systemd mounts on demand.
    let mounts = read("/proc/1/mountinfo")?;
    let has_selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let found = of_kernel(&release)
        .or_else(|| of_podman(&storage))
        .or_else(|| has_selinux.then(|| "it was not tried with SELinux".to_owned()))
        .or_else(|| (most.trim() == "0").then(|| "user.max_user_namespaces is 0".to_owned()))
        .or_else(|| {
            let is_whole = maps.iter().all(|map| is_whole(map));
            (!is_whole).then(|| "this machine is a container without all user IDs".to_owned())
        })
        .or_else(|| below_sys_kernel(&mounts))
        .or_else(|| {
            let kernel = kernel(&release).unwrap_or_default();
            volumes
                .iter()
                .find_map(|path| of_volume(&mounts, path, kernel))
        });
    Ok(found)
}

/// The first reason for which a container without a user namespace can't have these directories with other owners.
pub(crate) async fn obstacle_of(host: &Host, places: &[PathBuf]) -> Result<Option<String>> {
    let podman = host.podman().await?;
    let runtime = ["info", "--format", "{{.Host.OCIRuntime.Name}} overlay true"];
    let runtime = podman.run(runtime).await?;
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("can't read {path}"));
    let release = read("/proc/sys/kernel/osrelease")?;
    let places = without_links(places);
    let mounts = read("/proc/1/mountinfo")?;
    let kernel = kernel(&release).unwrap_or_default();
    let of_places = || {
        let mut places = places.iter();
        places.find_map(|path| of_volume(&mounts, path, kernel))
    };
    Ok(of_kernel(&release)
        .or_else(|| of_podman(&runtime))
        .or_else(of_places))
}

/// What the units mount of the deployment, without links, as far as it exists.
fn volumes(paths: &Paths) -> Vec<PathBuf> {
    without_links(&[
        paths.config(),
        paths.certificates(),
        paths.credential_files(),
        paths.logs(),
        paths.postgres_data(),
        paths.postgres_next(),
        paths.redis_data(),
    ])
}

/// Where these are, as far as they exist.
fn without_links(places: &[PathBuf]) -> Vec<PathBuf> {
    fn resolved(path: &Path) -> PathBuf {
        match (path.canonicalize(), path.parent(), path.file_name()) {
            (Ok(path), ..) => path,
            (Err(_), Some(parent), Some(name)) => resolved(parent).join(name),
            (Err(_), ..) => path.to_owned(),
        }
    }
    places.iter().map(|path| resolved(path)).collect()
}

/// Reads `6.12.48+deb13-amd64`.
fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn of_kernel(release: &str) -> Option<String> {
    let is_new = kernel(release).is_some_and(|kernel| kernel >= OVERLAY);
    (!is_new).then(|| format!("Linux {} is older than 5.19", release.trim()))
}

/// `crun overlay true`: the runtime, the storage driver, and whether that mounts layers with other owners. runc before
/// 1.2 ignores the option idmap without a word (containers/podman issue 17433).
fn of_podman(info: &str) -> Option<String> {
    let words: Vec<&str> = info.split_whitespace().collect();
    match words[..] {
        ["crun", "overlay", "true"] => None,
        ["crun", "overlay", _] => {
            Some("Podman's storage can't mount images with other user IDs".into())
        }
        ["crun", driver, ..] => Some(format!("Podman's storage driver is {driver}, not overlay")),
        [runtime, ..] => Some(format!("Podman's runtime is {runtime}, not crun")),
        [] => Some("Podman does not name its runtime".into()),
    }
}

/// Whether every ID of the kernel is one of this machine: in a container, those of the units may be missing.
fn is_whole(id_map: &str) -> bool {
    id_map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Podman unmounts what is below /sys/kernel, the parent first, which fails if it has a mount inside.
fn below_sys_kernel(mountinfo: &str) -> Option<String> {
    let places: Vec<(PathBuf, &str)> = mountinfo
        .lines()
        .filter_map(mount)
        .map(|(point, file_system, _)| (point, file_system))
        .filter(|(point, _)| point.starts_with("/sys/kernel"))
        .collect();
    let inner = places.iter().find(|(inner, _)| {
        places.iter().any(|(outer, file_system)| {
            // debugfs mounts a tracefs by itself, and unmounts it with itself.
            let is_automatic = *file_system == "debugfs" && inner.ends_with("tracing");
            inner != outer && inner.starts_with(outer) && !is_automatic
        })
    });
    inner.map(|(point, _)| {
        format!(
            "{} is mounted inside another mount, which Podman can't remove from a container",
            point.display()
        )
    })
}

/// Why what is in `path` can't be mounted with other owners.
fn of_volume(mountinfo: &str, path: &Path, kernel: (u32, u32)) -> Option<String> {
    let mut covering = None::<(PathBuf, &str, bool)>;
    for (point, file_system, options) in mountinfo.lines().filter_map(mount) {
        if point != path && point.starts_with(path) {
            return Some(format!("{} is a mount of its own", point.display()));
        }
        // Of two mounts at one place, the later one is seen.
        let is_nearer = |found: &(PathBuf, &str, bool)| point.starts_with(&found.0);
        if path.starts_with(&point) && covering.as_ref().is_none_or(is_nearer) {
            let is_mapped = options.split(',').any(|option| option == "idmapped");
            covering = Some((point, file_system, is_mapped));
        }
    }
    let Some((point, file_system, is_mapped)) = covering else {
        return Some(format!(
            "the file system of {} is not known",
            path.display()
        ));
    };
    let is_known = match file_system {
        "ext4" | "xfs" | "btrfs" | "f2fs" => true,
        "tmpfs" => kernel >= TMPFS,
        _ => false,
    };
    if is_mapped {
        Some(format!(
            "{} is mounted with other user IDs already",
            point.display()
        ))
    } else if !is_known {
        Some(format!(
            "{} is on {file_system}, which can't be mounted with other user IDs",
            path.display()
        ))
    } else {
        None
    }
}

/// The mount point, the file system, and the options.
fn mount(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut words = mount.split(' ').skip(4);
    let point = words.next()?;
    // The kernel writes these as octal numbers.
    let point = point
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\");
    Some((point.into(), file_system.split(' ').next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = r"22 1 8:1 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a
23 22 8:2 / /opt rw,relatime shared:2 - ext4 /dev/sda2 rw
24 23 8:3 / /opt/litellm-server/data/postgres/pg_wal rw shared:3 - xfs /dev/sdb rw
25 22 0:5 / /srv/my\040data rw shared:4 - xfs /dev/sdc rw
26 22 0:6 / /home rw,idmapped shared:5 - ext4 /dev/sdd rw
27 22 0:7 / /run rw shared:6 - tmpfs tmpfs rw
28 22 0:8 / /nfs rw shared:7 - nfs4 server:/ rw
29 28 0:9 / /nfs/disk rw shared:8 - btrfs /dev/sde rw
30 29 0:9 / /nfs/disk rw shared:9 - zfs pool rw
";

    #[test]
    fn file_systems_that_can_be_mounted_with_other_owners() {
        for (path, expected) in [
            ("/opt/litellm-server/config", None),
            ("/srv/my data/config", None),
            ("/run/litellm", None),
            (
                "/opt/litellm-server/data/postgres",
                Some("/opt/litellm-server/data/postgres/pg_wal is a mount of its own"),
            ),
            (
                "/optional",
                Some("/optional is on overlay, which can't be mounted with other user IDs"),
            ),
            (
                "/home/config",
                Some("/home is mounted with other user IDs already"),
            ),
            (
                "/nfs/config",
                Some("/nfs/config is on nfs4, which can't be mounted with other user IDs"),
            ),
            (
                "/nfs/disk/config",
                Some("/nfs/disk/config is on zfs, which can't be mounted with other user IDs"),
            ),
        ] {
            let found = of_volume(MOUNTS, Path::new(path), (6, 12));
            assert_eq!(found.as_deref(), expected, "{path}");
        }
        assert_eq!(
            of_volume(MOUNTS, Path::new("/run/litellm"), (6, 2)).as_deref(),
            Some("/run/litellm is on tmpfs, which can't be mounted with other user IDs")
        );
        assert!(of_volume("", Path::new("/opt"), (6, 12)).is_some());
    }

    #[test]
    fn mounts_that_podman_cannot_remove() {
        let debugfs = "40 22 0:7 / /sys/kernel/debug rw - debugfs debugfs rw\n";
        let security = "41 22 0:8 / /sys/kernel/security rw - securityfs securityfs rw\n";
        let tracing = "42 40 0:9 / /sys/kernel/debug/tracing rw - tracefs tracefs rw\n";
        let other = "43 41 0:9 / /sys/kernel/security/a rw - tmpfs tmpfs rw\n";
        let usual = [debugfs, security, tracing].concat();
        assert_eq!(below_sys_kernel(&usual), None);
        assert_eq!(
            below_sys_kernel(&(usual + other)).as_deref(),
            Some(
                "/sys/kernel/security/a is mounted inside another mount, which Podman can't remove from a container"
            )
        );
    }

    #[test]
    fn runtime_and_storage() {
        for (info, expected) in [
            ("crun overlay true\n", None),
            (
                "runc overlay true\n",
                Some("Podman's runtime is runc, not crun"),
            ),
            (
                "crun vfs <no value>\n",
                Some("Podman's storage driver is vfs, not overlay"),
            ),
            (
                "crun overlay false\n",
                Some("Podman's storage can't mount images with other user IDs"),
            ),
            ("", Some("Podman does not name its runtime")),
        ] {
            assert_eq!(of_podman(info).as_deref(), expected, "{info}");
        }
    }

    #[test]
    fn kernels_and_maps() {
        assert_eq!(of_kernel("6.12.48+deb13-amd64\n"), None);
        assert_eq!(
            of_kernel("5.14.0-611.el9.x86_64\n").as_deref(),
            Some("Linux 5.14.0-611.el9.x86_64 is older than 5.19")
        );
        assert_eq!(kernel("six"), None);
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(!is_whole("         0     100000      65536\n"));
    }
}

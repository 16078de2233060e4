//! Other ways to start, and starts that must fail.

use std::time::{Duration, Instant};

use crate::support::gateway::{HELLO, chat, database_state, new_key};
use crate::support::host::{TestHost, Who};

/// Images come from the registry, by `up` with words, or by a plain start of the target.
fn images_are_pulled(who: Who, name: &str) {
    let host = TestHost::boot_with(name, &["--empty-store"]);
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    for image in [
        "docker.io/library/postgres:17.7",
        "docker.io/library/redis:7.4.6",
        "ghcr.io/berriai/litellm:v1.108.14",
    ] {
        let lines = |verb: &str| {
            up.stderr
                .lines()
                .filter(|line| line.starts_with(&format!("{verb} {image}")))
                .count()
        };
        assert_eq!((lines("pulling"), lines("pulled")), (1, 1), "{}", up.stderr);
    }
    assert_eq!(chat(&host, who, &new_key(&host, who)).as_deref(), Ok(HELLO));
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );

    host.units(who, &["down"]).ok();
    host.run(who, &["podman", "rmi", "--all", "--force"]).ok();
    assert_eq!(host.sh(who, "podman images -q"), "");
    host.systemctl(who, &["start", "litellm.target"]);
    assert_eq!(database_state(&host, who), "connected\n");
}

#[test]
fn images_are_pulled_rootful() {
    images_are_pulled(Who::Root, "pull-rootful");
}

#[test]
fn images_are_pulled_rootless() {
    images_are_pulled(Who::Operator, "pull-rootless");
}

/// Units for Podman 4.9, where a command after the start holds READY until the container is healthy.
fn units_for_an_older_podman_work(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        &format!(
            "litellm-units generate --output /tmp/old --podman 4.9 >/dev/null
             install -m 644 /tmp/old/containers/* {}
             install -m 644 /tmp/old/systemd/* {}",
            who.quadlets(),
            who.units()
        ),
    );
    if who == Who::Operator {
        // Podman 4.9 has no such unit, and on this host it would wait for its whole timeout.
        host.systemctl(who, &["mask", "podman-user-wait-network-online.service"]);
    }
    host.systemctl(who, &["daemon-reload"]);
    host.systemctl(who, &["start", "litellm.target"]);
    assert_eq!(database_state(&host, who), "connected\n");
    assert_eq!(chat(&host, who, &new_key(&host, who)).as_deref(), Ok(HELLO));
}

#[test]
fn units_for_an_older_podman_work_rootful() {
    units_for_an_older_podman_work(Who::Root, "older-rootful");
}

#[test]
fn units_for_an_older_podman_work_rootless() {
    units_for_an_older_podman_work(Who::Operator, "older-rootless");
}

/// A migration that can't reach its database fails the start, and no gateway runs without it.
fn a_failed_migration_fails_the_start(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["generate"]).ok();
    host.set_env(
        who,
        &[("DATABASE_URL", "postgresql://me:S3CR3T@127.0.0.1:1/none")],
    );
    let start = Instant::now();
    let up = host.units(who, &["up", "--timeout", "280"]);
    assert_eq!(up.code, 1, "{}", up.stderr);
    assert!(
        start.elapsed() < Duration::from_secs(200),
        "{:?}",
        start.elapsed()
    );
    let error = up
        .stderr
        .lines()
        .find(|line| line.starts_with("error: "))
        .unwrap_or_default();
    assert!(
        error.starts_with("error: litellm-migrate.service "),
        "{}",
        up.stderr
    );
    assert!(
        up.stderr.contains("last lines of its journal:\n  | "),
        "{}",
        up.stderr
    );
    assert!(!up.stderr.contains("S3CR3T"), "{}", up.stderr);
    assert_ne!(
        host.property(who, "litellm.service", "ActiveState"),
        "active"
    );
    host.units(who, &["down"]).ok();
    assert_eq!(host.sh(who, "podman ps -aq"), "");
}

#[test]
fn a_failed_migration_fails_the_start_rootful() {
    a_failed_migration_fails_the_start(Who::Root, "migration-rootful");
}

#[test]
fn a_failed_migration_fails_the_start_rootless() {
    a_failed_migration_fails_the_start(Who::Operator, "migration-rootless");
}

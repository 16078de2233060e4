//! Other ways to start, and starts that must fail.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::gateway::{HELLO, chat, database_state, new_key, wait_for_chat};
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
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn images_are_pulled_rootful() {
    images_are_pulled(Who::Root, "pull-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn images_are_pulled_rootless() {
    images_are_pulled(Who::Operator, "pull-rootless");
}

/// Which run of its unit each server and the gateway is in.
fn runs(host: &TestHost, who: Who) -> Vec<String> {
    ["litellm-postgres", "litellm-redis", "litellm"]
        .iter()
        .map(|unit| host.property(who, &format!("{unit}.service"), "InvocationID"))
        .collect()
}

/// The gateway's image is gone, and so is the registry. The fault is named, and its repair is enough.
fn a_missing_image_is_named(host: &TestHost, who: Who) {
    let images = "litellm-images@litellm.service";
    host.units(who, &["down"]).ok();
    host.sh(
        who,
        "podman rmi --force $(podman images -q ghcr.io/berriai/litellm)",
    );
    host.systemctl(Who::Root, &["stop", "docker-registry.service"]);
    host.systemctl(who, &["start", "--no-block", "litellm.target"]);
    host.wait(
        "the second attempt to fail",
        Duration::from_secs(60),
        |host| {
            let restarts = host.property(who, images, "NRestarts");
            let state = host.property(who, images, "SubState");
            match restarts.parse() {
                Ok(2_u32..) if state.starts_with("auto-restart") => Ok(()),
                _ => Err(format!("{restarts} restarts, {state}")),
            }
        },
    );
    // It stops nothing that can do without.
    for unit in ["litellm-postgres.service", "litellm-redis.service"] {
        assert_eq!(host.property(who, unit, "ActiveState"), "active", "{unit}");
    }
    let status = host.units(who, &["status", "--json"]);
    assert_eq!(status.code, 4, "{}", status.stdout);
    let report: Value = serde_json::from_str(&status.stdout).unwrap();
    let blocker = &report["blockers"][0];
    let message = blocker["message"].as_str().unwrap();
    assert!(
        message.starts_with("can't pull ghcr.io/berriai/litellm:")
            && message.ends_with(": connection refused"),
        "{message}"
    );
    // It goes on failing meanwhile, so the number of restarts is not known.
    let problem = blocker["state"].as_str().unwrap();
    assert!(problem.starts_with("keeps failing: "), "{problem}");
    assert_eq!(
        (&report["state"], &report["blockers"]),
        (
            &json!("degraded"),
            &json!([{
                "unit": images,
                "failing": true,
                "state": problem,
                "message": message,
                "needed_by": ["migrate", "litellm"],
            }])
        )
    );
    let text = host.units(who, &["status"]).stdout;
    let (_, reason) = text.split_once("\n! ").unwrap();
    assert!(
        reason.starts_with(&format!("{images} keeps failing: "))
            && reason.ends_with(&format!(
                "; needed by migrate, litellm\n  last message: {message}\n  all messages: `litellm-units logs images`\n"
            )),
        "{text}"
    );
    let doctor = host.units(who, &["doctor"]);
    assert_eq!(doctor.code, 1, "{}", doctor.stdout);
    let failures: Vec<&str> = doctor
        .stdout
        .split("\nFAILURE  ")
        .skip(1)
        .map(|check| check.split("\nok ").next().unwrap())
        .collect();
    assert_eq!(failures.len(), 1, "{}", doctor.stdout);
    assert!(
        failures[0].starts_with(&format!("units: {images} keeps failing: "))
            && failures[0].contains("; needed by migrate, litellm\n         | ")
            && failures[0].contains("\n         | error: can't pull ghcr.io/berriai/litellm:")
            && failures[0].ends_with(
                "\n         hint: see why: `litellm-units logs images`; then run `litellm-units up`"
            ),
        "{}",
        failures[0]
    );
    let logs = host.units(who, &["logs", "images"]).ok();
    assert!(
        logs.contains("\nimages | error: can't pull ghcr.io/berriai/litellm:"),
        "{logs}"
    );
    let up = host.units(who, &["up"]);
    assert!(
        up.code == 1
            && up
                .stderr
                .contains("\nerror: can't pull ghcr.io/berriai/litellm:"),
        "{}",
        up.stderr
    );

    host.systemctl(Who::Root, &["start", "docker-registry.service"]);
    let start = Instant::now();
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    eprintln!("up after a repaired outage took {:?}", start.elapsed());
    assert_eq!(chat(host, who, &new_key(host, who)).as_deref(), Ok(HELLO));
    assert_eq!(host.units(who, &["doctor"]).code, 7);
}

/// Earlier versions had one unit for all images. What runs is not stopped when it goes.
fn one_unit_for_all_images_is_replaced(host: &TestHost, who: Who) {
    let (quadlets, units) = (who.quadlets(), who.units());
    host.sh(
        who,
        &format!(
            "cd {units}; sed 's/ %i / /' 'litellm-images@.service' >litellm-images.service; rm 'litellm-images@.service'
             sed -i 's/litellm-images@[a-z]*/litellm-images/g' {quadlets}/*.container
             {} daemon-reload",
            who.systemctl()
        ),
    );
    let before = runs(host, who);
    assert_eq!(
        host.units(who, &["generate"]).ok(),
        format!(
            "\
create {units}/litellm-images@.service
update {quadlets}/litellm-postgres.container
update {quadlets}/litellm-redis.container
update {quadlets}/litellm-migrate.container
update {quadlets}/litellm-standby.container
update {quadlets}/litellm.container
remove {units}/litellm-images.service
reload systemd
"
        )
    );
    assert_eq!(runs(host, who), before);
    assert_eq!(host.units(who, &["status"]).code, 0);
    host.systemctl(who, &["restart", "litellm-redis.service"]);
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
}

fn images_of_their_own(who: Who, name: &str) {
    let host = TestHost::boot_with(name, &["--empty-store"]);
    host.units(who, &["up"]).ok();
    a_missing_image_is_named(&host, who);
    one_unit_for_all_images_is_replaced(&host, who);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn images_of_their_own_rootful() {
    images_of_their_own(Who::Root, "images-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn images_of_their_own_rootless() {
    images_of_their_own(Who::Operator, "images-rootless");
}

/// The database fails at its first start, at boot and in `up`. All of it comes up with the second one.
fn recovers_from_a_failed_first_start(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    let directory = format!("{}/litellm-postgres.service.d", who.units());
    let once = "[Service]\nExecStartPre=sh -c 'test -e %t/failed || { touch %t/failed; echo no disk yet; exit 1; }'\n";
    host.sh(who, &format!("mkdir {directory}"));
    host.write(who, &format!("{directory}/50-once.conf"), once);
    host.reboot();
    wait_for_chat(&host, who, &key, Duration::from_secs(120));
    assert_eq!(
        host.property(who, "litellm-postgres.service", "NRestarts"),
        "1"
    );
    assert_eq!(host.property(who, "litellm.service", "NRestarts"), "0");

    host.units(who, &["down"]).ok();
    host.sh(who, "rm ${XDG_RUNTIME_DIR:-/run}/failed");
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
}

#[test]
fn recovers_from_a_failed_first_start_rootful() {
    recovers_from_a_failed_first_start(Who::Root, "first-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn recovers_from_a_failed_first_start_rootless() {
    recovers_from_a_failed_first_start(Who::Operator, "first-rootless");
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
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn units_for_an_older_podman_work_rootful() {
    units_for_an_older_podman_work(Who::Root, "older-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
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
        up.stderr
            .contains("\nfrom its journal (all of it: `litellm-units logs --since "),
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
    a_waiting_request_starts_no_given_up_migration(&host, who);
}

/// The server refuses the login. A request waits meanwhile, and does not start the migration again and again.
fn a_waiting_request_starts_no_given_up_migration(host: &TestHost, who: Who) {
    host.set_env(who, &[("DATABASE_URL", "")]);
    host.units(who, &["generate"]).ok();
    host.units(who, &["start", "postgres"]).ok();
    let password = host.env(who).get("POSTGRES_PASSWORD").unwrap().to_owned();
    host.set_env(who, &[("POSTGRES_PASSWORD", "other")]);
    host.systemctl(who, &["start", "litellm.socket"]);
    // A connection that systemd closes.
    let refused = host.bash(who, "curl -sS --max-time 500 http://127.0.0.1:24157/");
    assert!([7, 56].contains(&refused.code), "{}", refused.stderr);
    let starts = || {
        let logs = host.units(who, &["logs", "migrate"]).ok();
        logs.matches("Error: P1000").count()
    };
    assert!((1..=2).contains(&starts()), "{}", starts());
    let socket = host.property(who, "litellm.socket", "ActiveState");
    assert_eq!(socket, "inactive");
    let status = host.units(who, &["status"]);
    assert_eq!(status.code, 4, "{}", status.stdout);
    let words = "! litellm-migrate.service failed: exited with status 78; needed by litellm\n";
    assert!(status.stdout.contains(words), "{}", status.stdout);
    let doctor = host.units(who, &["doctor"]);
    let words = "units: litellm-migrate.service failed: exited with status 78; needed by litellm\n";
    assert!(doctor.stdout.contains(words), "{}", doctor.stdout);

    host.set_env(who, &[("POSTGRES_PASSWORD", &password)]);
    host.systemctl(who, &["start", "litellm.target"]);
    assert_eq!(database_state(host, who), "connected\n");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_failed_migration_fails_the_start_rootful() {
    a_failed_migration_fails_the_start(Who::Root, "migration-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn a_failed_migration_fails_the_start_rootless() {
    a_failed_migration_fails_the_start(Who::Operator, "migration-rootless");
}

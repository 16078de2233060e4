//! What is wrong is said clearly, with the next step, and nothing is left half done.

use std::time::{Duration, Instant};

use crate::support::host::{Ran, TestHost, Who};

/// Every file that the program writes, but for its lock: kind, mode, owner, path, and a hash of the content.
fn everything(host: &TestHost, who: Who) -> String {
    let script = r#"
        shopt -s nullglob
        for place in "$1" "$2" "$3" /etc/systemd/system /opt {/run,/run/user/1000}/litellm-units/*.{env,applied}; do
            [ ! -e "$place" ] || find "$place" -printf '%M %u %p %l\n' -type f -exec sha256sum {} \;
        done
    "#;
    let places = [who.deployment(), who.quadlets(), who.units()];
    host.bash_with(Who::Root, script, &places).ok()
}

/// Runs a command that must fail at once, with this code and these words, and change nothing.
#[track_caller]
fn fails(host: &TestHost, who: Who, words: &[&str], code: i32, stderr: &str) {
    let before = everything(host, who);
    let start = Instant::now();
    let ran = host.run(who, words);
    let took = start.elapsed();
    assert_eq!(
        ran.all(),
        (code, String::new(), stderr.to_owned()),
        "{words:?}"
    );
    assert!(took < Duration::from_secs(20), "{words:?} took {took:?}");
    assert_eq!(everything(host, who), before, "{words:?}");
}

const GENERATOR: &str = "/usr/lib/systemd/system-generators/podman-system-generator";

/// On a host where nothing was generated yet.
fn a_host_that_can_not_run_the_units(host: &TestHost, who: Who) {
    let generate = &["litellm-units", "generate"];
    let up = &["litellm-units", "up"];
    let root = |script: &str| drop(host.bash(Who::Root, script).ok());

    root("mv /usr/bin/podman /usr/bin/podman.away");
    let stderr = "error: Podman is not installed\nhint: install it: `apt install podman` or `dnf install podman`\n";
    fails(host, who, generate, 1, stderr);
    fails(host, who, up, 1, stderr);
    root("mv /usr/bin/podman.away /usr/bin/podman");

    root(&format!("mv {GENERATOR} /root/generator"));
    let stderr = format!(
        "error: /usr/bin/podman has no Quadlet: {GENERATOR} is missing\n\
         hint: install Podman 4.9 or newer from the distribution\n"
    );
    fails(host, who, generate, 1, &stderr);
    fails(host, who, up, 1, &stderr);

    let pretend = |script: &str| {
        host.write(Who::Root, GENERATOR, &format!("#!/bin/sh\n{script}\n"));
        root(&format!("chmod 755 {GENERATOR}"));
    };
    pretend("echo 4.3.1");
    let stderr = "error: Podman 4.3 is too old: the units need 4.9 or newer\n\
                  hint: upgrade to a distribution that has it: Debian 13, Ubuntu 24.04, RHEL 9.4, Fedora 43, or a later release of these\n";
    fails(host, who, generate, 1, stderr);

    pretend(
        "if [ \"$1\" = -version ]; then echo 5.4.2; exit; fi\n\
         echo \"quadlet-generator[1]: converting \\\"litellm.container\\\": unsupported key 'New' in $QUADLET_UNIT_DIRS/litellm.container\" >&2\n\
         exit 1",
    );
    let stderr = format!(
        "error: Podman's Quadlet generator refuses the units, so nothing was installed:\n\
         quadlet-generator[1]: converting \"litellm.container\": unsupported key 'New' in {}/litellm.container\n\
         hint: this is a defect of litellm-units with this version of Podman: report it with the lines above\n",
        who.quadlets()
    );
    fails(host, who, generate, 1, &stderr);
    root(&format!("mv /root/generator {GENERATOR}"));

    let directory = format!("{}/litellm.container.d", who.quadlets());
    let drop_in = format!("{directory}/10-x.conf");
    host.sh(who, &format!("mkdir -p {directory}"));
    host.write(who, &drop_in, "[Container]\nMemroy=1g\n");
    let ran = host.run(who, generate);
    assert!(
        ran.code == 1 && ran.stderr.contains("unsupported key 'Memroy'"),
        "{ran:?}"
    );
    let hint = format!("hint: correct or remove the drop-in that is wrong: {drop_in}\n");
    assert!(ran.stderr.ends_with(&hint), "{ran:?}");
    host.sh(who, &format!("rm -r {directory}"));
}

fn no_bus(host: &TestHost, who: Who) {
    match who {
        Who::Root => {
            host.bash(who, "mv /run/dbus/system_bus_socket /run/dbus/away")
                .ok();
            let stderr = "error: can't reach systemd over the system D-Bus: failed to connect to `unix:path=/var/run/dbus/system_bus_socket`: No such file or directory (os error 2)\n\
                          hint: check that this host booted with systemd, and that D-Bus runs: `systemctl status dbus`\n";
            fails(host, who, &["litellm-units", "generate"], 1, stderr);
            fails(host, who, &["litellm-units", "up"], 1, stderr);
            fails(host, who, &["litellm-units", "status"], 1, stderr);
            host.bash(who, "mv /run/dbus/away /run/dbus/system_bus_socket")
                .ok();
        }
        Who::Operator => {
            // What `su operator` leaves of a session.
            let stderr = "error: can't reach the user's systemd over D-Bus: failed to connect to `unix:path=/run/user/1000/nothing`: No such file or directory (os error 2)\n\
                          hint: log in as that user directly (ssh or `machinectl shell USER@`, not su or sudo), and run `loginctl enable-linger`\n";
            let without = [
                "env",
                "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/nothing",
                "litellm-units",
            ];
            for verb in ["generate", "up", "status"] {
                fails(host, who, &[&without[..], &[verb]].concat(), 1, stderr);
            }
        }
    }
}

/// On a host with units, and a deployment that an operator broke.
fn a_deployment_that_can_not_work(host: &TestHost, who: Who) {
    let deployment = who.deployment();
    host.units(who, &["generate"]).ok();
    let env = host.env(who).text().to_owned();
    let path = format!("{deployment}/.env");
    let image = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\n";
    let line = env[..env.find(image).unwrap()].lines().count() + 1;
    for (from, to, stderr) in [
        (
            image,
            "LITELLM_IMAGE=\"ghcr.io\n",
            format!(
                "error: {path}, line {line}, column 15: the double quote opened here is never closed\n\
                 hint: close it with `\"`, or write `\\\"` for a quote within the value\n"
            ),
        ),
        (
            image,
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:main-latest\n",
            format!(
                "error: {path}, line {line}: LITELLM_IMAGE can't be used: \"ghcr.io/berriai/litellm:main-latest\" has the floating tag \"main-latest\"\n\
                 hint: name a version, e.g. :v1.108.14, or add the digest (@sha256:…)\n"
            ),
        ),
        (
            image,
            "LITELLM_IMAGE=ghcr.io/Berri AI\n",
            format!(
                "error: {path}, line {line}: LITELLM_IMAGE can't be used: \"ghcr.io/Berri AI\" is not an image reference: only letters, digits and ./:@_-+ are allowed\n\
                 hint: write it as registry/name:tag, e.g. ghcr.io/berriai/litellm:v1.108.14\n"
            ),
        ),
    ] {
        host.write(who, &path, &env.replace(from, to));
        for words in [
            &["generate"][..],
            &["generate", "--dry-run"],
            &["generate", "--check"],
            &["up"],
        ] {
            fails(
                host,
                who,
                &[&["litellm-units"], words].concat(),
                78,
                &stderr,
            );
        }
    }
    host.write(who, &path, &env);

    // A cluster that a newer server can't read.
    let version = format!("{deployment}/data/postgres/PG_VERSION");
    host.write(Who::Root, &version, "16\n");
    let stderr = format!(
        "error: {deployment}/data/postgres holds a PostgreSQL 16 cluster, but the image is docker.io/library/postgres:17.7\n\
         hint: set POSTGRES_IMAGE in {path} to a version 16 image, e.g. docker.io/library/postgres:16; then, to move the data to a later version: `litellm-units upgrade --postgres IMAGE`\n"
    );
    fails(host, who, &["litellm-units", "generate"], 78, &stderr);
    fails(host, who, &["litellm-units", "up"], 78, &stderr);
    host.run(Who::Root, &["rm", &version]).ok();

    // Someone else has the port.
    host.bash(
        Who::Root,
        "systemd-run --quiet --unit=taker systemd-socket-activate -l 127.0.0.1:24157 /bin/cat",
    )
    .ok();
    host.wait("the port to be taken", Duration::from_secs(10), |host| {
        let listening = host.sh(Who::Root, "ss -Hltn 'sport = :24157'");
        if listening.is_empty() {
            Err("nobody listens".into())
        } else {
            Ok(())
        }
    });
    let ran = host.units(who, &["up"]);
    // Beside the warnings about the keys of providers.
    let said = { ran.stderr.split_inclusive('\n') }.filter(|line| !line.starts_with("warning: "));
    assert_eq!(
        (ran.code, said.collect::<String>().as_str()),
        (
            1,
            "checking that ghcr.io/berriai/litellm:v1.108.14 fits\nerror: port 24157 is taken by another process\nhint: find and stop it: `ss -ltnp 'sport = :24157'`\n"
        ),
        "{}",
        ran.stdout
    );
    assert_eq!(host.sh(who, "podman ps -aq"), "");
    host.bash(Who::Root, "systemctl stop taker").ok();

    // No registry has the image.
    host.write(who, &path, &env.replace("v1.108.14", "v9.9.9"));
    let start = Instant::now();
    let Ran { code, stderr, .. } = host.units(who, &["up"]);
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
    let own = "error: can't pull ghcr.io/berriai/litellm:v9.9.9\n\
               hint: name another image in .env, or check that this host can reach the registry\n";
    assert!(
        code == 1 && stderr.ends_with(own) && stderr.contains("manifest unknown"),
        "{stderr}"
    );
    assert_eq!(host.sh(who, "podman ps -aq"), "");
    host.write(who, &path, &env);
    host.units(who, &["generate"]).ok();
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
}

fn faults(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    a_host_that_can_not_run_the_units(&host, who);
    no_bus(&host, who);
    a_deployment_that_can_not_work(&host, who);
}

#[test]
fn faults_rootful() {
    faults(Who::Root, "faults-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn faults_rootless() {
    faults(Who::Operator, "faults-rootless");
}

/// Leaves `$1` KiB of `/opt`, and nothing of an earlier try.
const FILL: &str = r#"
    rm -rf /opt/*
    if [ "$1" != 0 ]; then dd if=/dev/zero of=/opt/spare bs=1k count="$1" status=none; fi
    dd if=/dev/zero of=/opt/full bs=1k status=none 2>/dev/null || :
    sync
    rm -f /opt/spare
"#;

/// The deployment's disk is full from the start, or after some of its directories and files.
fn full_disk(who: Who, name: &str) {
    let host = TestHost::boot_with(name, &["--opt-size", "1M"]);
    host.bash(
        Who::Root,
        &format!("chown {0}: /opt; rm -rf /opt/*", who.user()),
    )
    .ok();
    let generate = ["generate", "--litellm-dir", "/opt/server"];
    for left in ["0", "3", "6", "7", "8"] {
        host.bash_with(who, FILL, &[left]).ok();
        let ran = host.units(who, &generate);
        assert_eq!(
            (ran.code, ran.stdout.as_str()),
            (1, ""),
            "{left} KiB left: {}",
            ran.stderr
        );
        let (first, hint) = ran.stderr.split_once('\n').unwrap();
        assert!(
            first.starts_with(
                "error: the disk is full; every file is either unchanged or complete: can't "
            ) && first.contains(": No space left on device (os error 28)"),
            "{first}"
        );
        assert_eq!(
            hint,
            "hint: free some space, then run the same command again\n"
        );
        let units = "find /etc/systemd/system /etc/containers/systemd /home/operator/.config -name 'litellm*'";
        assert_eq!(host.sh(Who::Root, units), "");
        // No part of a file, and nothing beside.
        let files = host.sh(
            Who::Root,
            "[ ! -e /opt/server ] || find /opt/server -type f -printf '%f %s\\n'",
        );
        for file in files.lines() {
            let (name, size) = file.split_once(' ').unwrap();
            let size: u32 = size.parse().unwrap();
            assert!(
                matches!(name, ".env" | "litellm-config.yaml") && size > 500,
                "{files}"
            );
        }
    }
    host.bash(who, "rm /opt/full").ok();
    host.units(who, &generate).ok();
    assert_eq!(host.units(who, &generate).ok(), "nothing to do\n");
}

#[test]
fn full_disk_rootful() {
    full_disk(Who::Root, "full-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn full_disk_rootless() {
    full_disk(Who::Operator, "full-rootless");
}

/// The disk is full while the gateway serves. It goes on serving, and says what it can't.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn full_disk_while_serving() {
    let host = TestHost::boot_with("full-serving", &["--opt-size", "400M"]);
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    let pids = "systemctl show -p MainPID litellm litellm-postgres litellm-redis";
    let before = host.sh(who, pids);
    host.sh(
        who,
        "for size in 64k 1k; do dd if=/dev/zero of=/opt/full-$size bs=$size status=none 2>/dev/null || :; done",
    );
    let data = "/opt/litellm-server/data/postgres";
    let full = format!("the disk of {data} is full, so the database can't be written\n");
    assert_eq!(
        host.units(who, &["health"]).all(),
        (
            4,
            format!("answers, but is not ready: {full}"),
            String::new()
        )
    );
    let status = host.units(who, &["status"]);
    assert!(
        status.code == 4 && status.stdout.contains(&full),
        "{status:?}"
    );
    host.units(who, &["up"]).ok();
    for words in [&["restart"][..], &["restart", "--handover", "postgres"]] {
        let ran = host.units(who, words);
        assert!(
            ran.code == 1
                && ran.stderr.starts_with(&format!("error: {data} has "))
                && ran.stderr.contains(" of free space, too little for litellm-postgres.service to start again; nothing was restarted\nhint: free some space; "),
            "{ran:?}"
        );
    }
    let env = "cp -p /opt/litellm-server/.env /tmp/env; sed -i s/^OPENAI_API_KEY=/OPENAI_API_KEY=sk-new/ /tmp/env; cat /tmp/env >/opt/litellm-server/.env";
    host.sh(who, env);
    for words in [&["apply"][..], &["backup"]] {
        let ran = host.units(who, words);
        assert!(
            ran.code == 1
                && ran.stderr.contains(
                    "error: the disk is full; every file is either unchanged or complete: "
                )
                && ran
                    .stderr
                    .ends_with("hint: free some space, then run the same command again\n"),
            "{ran:?}"
        );
    }
    assert_eq!(host.sh(who, pids), before);
    host.sh(who, "rm /opt/full-*");
    host.units(who, &["apply"]).ok();
    assert_eq!(host.units(who, &["health"]).code, 0);
}

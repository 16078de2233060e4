//! From nothing to a chat completion on a fresh host, and what must hold from then on.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::arguments::Arguments;
use crate::support::gateway::{
    HELLO, Load, allow_mock_delays, chat, database_state, environment, new_key, process, sql,
    stored_keys, variable,
};
use crate::support::host::{TestHost, Who};

/// Units are changed only where they differ, and only if they are ours.
fn drift_is_seen_and_mended(host: &TestHost, who: Who) {
    assert_eq!(host.units(who, &["generate"]).stdout, "nothing to do\n");
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );
    assert_eq!(
        host.units(who, &["generate", "--dry-run"]).all(),
        (0, String::new(), String::new())
    );

    let quadlets = who.quadlets();
    let listing = "cd \"$1\" && sha256sum litellm* && stat -c '%n %a %Y' litellm*";
    let before = host
        .run(who, &["bash", "-c", listing, "listing", quadlets])
        .ok();
    host.sh(who, &format!("cd {quadlets}; sed -i s/HealthRetries=2/HealthRetries=9/ litellm-redis.container; rm litellm.network"));
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (
            1,
            format!(
                "# create {quadlets}/litellm.network\n# update {quadlets}/litellm-redis.container\n"
            ),
            String::new()
        )
    );
    let dry_run = host.units(who, &["generate", "--dry-run"]).ok();
    let network = host.sh(who, "litellm-units generate --output /tmp/out --podman $(podman version --format '{{.Client.Version}}') >/dev/null; cat /tmp/out/containers/litellm.network; rm -r /tmp/out");
    let network: String = network
        .lines()
        .fold(String::new(), |text, line| text + "+" + line + "\n");
    let lines = network.lines().count();
    let path = format!("{quadlets}/litellm-redis.container");
    let at = host.sh(who, &format!("grep -n HealthRetries {path}"));
    let at: usize = at.split(':').next().unwrap().parse().unwrap();
    assert_eq!(
        dry_run,
        format!(
            "\
--- /dev/null
+++ {quadlets}/litellm.network
@@ -0,0 +1,{lines} @@
{network}--- {path}
+++ {path}
@@ -{first},7 +{first},7 @@
 # minute: twice the interval and the 10 s for which the check itself waits.
 HealthInterval=15s
 HealthTimeout=15s
-HealthRetries=9
+HealthRetries=2
 HealthOnFailure=kill
 
 [Service]
",
            first = at - 3,
        )
    );
    assert_eq!(
        host.units(who, &["generate"]).ok(),
        format!("create {quadlets}/litellm.network\nupdate {path}\nreload systemd\n")
    );
    let untimed = |text: &str| {
        text.lines()
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect::<Vec<_>>()
    };
    let after = host
        .run(who, &["bash", "-c", listing, "listing", quadlets])
        .ok();
    assert_eq!(untimed(&after), untimed(&before));

    let theirs = "[Container]\nImage=theirs\n";
    host.sh(who, &format!("mv {path} /tmp/ours"));
    host.write(who, &path, theirs);
    let refusal = format!(
        "error: {path} was not written by litellm-units, so it is not replaced\n\
         hint: move it away, then run the same command again\n"
    );
    for words in [
        &["generate"][..],
        &["generate", "--check"],
        &["generate", "--dry-run"],
        &["up"],
    ] {
        assert_eq!(
            host.units(who, words).all(),
            (1, String::new(), refusal.clone())
        );
    }
    assert_eq!(host.sh(who, &format!("cat {path}")), theirs);
    host.sh(who, &format!("mv /tmp/ours {path}"));
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
}

fn status_tells_everything(host: &TestHost, who: Who) {
    let report: Value = serde_json::from_str(&host.units(who, &["status", "--json"]).ok()).unwrap();
    assert_eq!(report["state"], "healthy");
    assert_eq!(
        report["gateway"],
        json!({"address": "http://127.0.0.1:24157", "state": "ready", "version": "1.108.14"})
    );
    let services: Vec<Value> = report["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|service| {
            let runs = service["service"] != "migrate";
            assert!(
                service["uptime_seconds"].as_u64().unwrap() < 600,
                "{service}"
            );
            let memory = service["memory_bytes"].as_u64();
            assert_eq!(
                memory.is_some_and(|bytes| bytes > 1 << 20),
                runs,
                "{service}"
            );
            // Each image is pinned to the digest that it had when it was first seen.
            let digest = service["digest"].as_str().unwrap();
            assert!(
                digest
                    .strip_prefix("sha256:")
                    .is_some_and(|hex| hex.len() == 64),
                "{service}"
            );
            json!([
                service["service"],
                service["unit"],
                service["active"],
                service["sub"],
                service["health"],
                service["restarts"],
                service["image"]
            ])
        })
        .collect();
    assert_eq!(
        Value::from(services),
        json!([
            [
                "postgres",
                "litellm-postgres.service",
                "active",
                "running",
                "healthy",
                0,
                "docker.io/library/postgres:17.7"
            ],
            [
                "redis",
                "litellm-redis.service",
                "active",
                "running",
                "healthy",
                0,
                "docker.io/library/redis:7.4.6"
            ],
            [
                "migrate",
                "litellm-migrate.service",
                "active",
                "exited",
                null,
                0,
                "ghcr.io/berriai/litellm:v1.108.14"
            ],
            [
                "litellm",
                "litellm.service",
                "active",
                "running",
                "healthy",
                0,
                "ghcr.io/berriai/litellm:v1.108.14"
            ],
        ])
    );
    let text = host.units(who, &["status"]).ok();
    // Uptime and memory, which differ from run to run, are columns four and six.
    let stable: Vec<String> = text
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line
                .split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect();
            match cells[..] {
                [service, state, health, _, restarts, _, image] => {
                    [service, state, health, restarts, image].join(" | ")
                }
                _ => line.to_owned(),
            }
        })
        .collect();
    assert_eq!(
        stable,
        [
            "SERVICE | STATE | HEALTH | RESTARTS | IMAGE",
            "postgres | active (running) | healthy | 0 | docker.io/library/postgres:17.7",
            "redis | active (running) | healthy | 0 | docker.io/library/redis:7.4.6",
            "migrate | active (exited) | - | 0 | ghcr.io/berriai/litellm:v1.108.14",
            "litellm | active (running) | healthy | 0 | ghcr.io/berriai/litellm:v1.108.14",
            "gateway http://127.0.0.1:24157: ready, database connected, LiteLLM 1.108.14",
        ],
        "{text}"
    );
}

/// A new cluster has the sizes of the host in its own file, where the operator changes them.
fn database_has_sizes(host: &TestHost, who: Who) {
    let memory = host.sh(who, "awk '/^MemTotal:/ { print $2 }' /proc/meminfo");
    let memory: u64 = memory.trim().parse().unwrap();
    let sizes = "select string_agg(setting || ' ' || sourcefile, ',' order by name) from pg_settings where name in ('max_connections', 'shared_buffers', 'wal_level')";
    let file = "/var/lib/postgresql/data/postgresql.conf";
    // In blocks of 8 kB.
    let blocks = (memory / 16 / 1024).clamp(128, 8192) * 128;
    assert_eq!(
        sql(host, who, sizes),
        format!("200 {file},{blocks} {file},logical {file}")
    );
}

/// Only the gateway listens, and only on the loopback address.
fn nothing_else_listens(host: &TestHost, who: Who) {
    let listening = host.sh(Who::Root, "ss -Hltn | awk '{print $4}' | sort");
    // Podman's resolver on the containers' bridge, which older ones ask by UDP only.
    let resolver = if who == Who::Root {
        "10.89.0.1:53\n"
    } else {
        ""
    };
    // The other one is the test host's own: its registry.
    assert_eq!(
        listening.strip_prefix(resolver).unwrap_or(&listening),
        "127.0.0.1:24157\n127.0.0.1:5000\n"
    );
}

/// The processes in each container, with the IDs that they have on the host.
const PROCESSES: &str = r#"
for name in litellm-postgres litellm-redis litellm; do
    first=$(podman inspect --format '{{.State.Pid}}' $name)
    inside=$(readlink /proc/$first/ns/pid)
    for process in /proc/[0-9]*; do
        [ "$(readlink $process/ns/pid)" != "$inside" ] || awk -v "name=$name" '/^[UG]id:/ { print name, $2, $3, $4, $5 }' $process/status
    done
done
"#;

/// What a user of the host with this ID can do to a process. The last line proves that it could.
const INTRUSION: &str = r#"
process=$(podman inspect --format '{{.State.Pid}}' litellm-postgres)
intruder=(setpriv --reuid 999 --regid 999 --clear-groups --)
"${intruder[@]}" sh -c 'kill -0 "$1"' sh "$process" && echo signals
"${intruder[@]}" cat "/proc/$process/environ" >/dev/null && echo reads
"${intruder[@]}" ls "/proc/$process/root/" >/dev/null && echo enters
"${intruder[@]}" sleep 60 &
until [ "$(cat /proc/$!/comm)" = sleep ]; do sleep 0.1; done
"${intruder[@]}" sh -c 'kill "$1"' sh "$!" && echo its own
"#;

/// Each service has user IDs that nobody else has, and its files keep the owners that the image gives them.
fn nobody_else_has_its_users(host: &TestHost) {
    let mut services = BTreeSet::new();
    let processes = host.sh(Who::Root, PROCESSES);
    for line in processes.lines() {
        let mut words = line.split(' ');
        let service = words.next().unwrap();
        for id in words {
            services.insert((service, id.parse::<u32>().unwrap() >> 16));
        }
    }
    assert_eq!(
        services.into_iter().collect::<Vec<_>>(),
        [
            ("litellm", 0x7f00),
            ("litellm-postgres", 0x7f01),
            ("litellm-redis", 0x7f02)
        ],
        "{processes}"
    );
    let tried = host.bash(Who::Root, INTRUSION);
    assert_eq!(tried.stdout, "its own\n", "{}", tried.stderr);
    host.sh(Who::Root, "podman exec litellm touch /app/logs/one");
    let data = Who::Root.deployment();
    assert_eq!(
        host.sh(
            Who::Root,
            &format!("cd {data}; stat -c '%u:%g' data/postgres/PG_VERSION data/redis/appendonlydir logs/one; rm logs/one")
        ),
        "999:999\n999:999\n0:0\n"
    );
}

/// Everything that any user of the host can read, and the journal.
const SECRET_SEARCH: &str = r#"
patterns=/root/patterns
search() { local where=$1; shift; if "$@" | grep -aoF -f "$patterns"; then echo "^ in $where"; fi }
search 'unit files' cat /etc/containers/systemd/* /etc/systemd/system/litellm* /home/operator/.config/{containers/systemd,systemd/user}/*
search 'arguments' sh -c 'cat /proc/[0-9]*/cmdline /root/arguments'
search 'the journal' journalctl -a -o export
setpriv --reuid nobody --regid nogroup --clear-groups \
    find /etc /run /opt /home /srv /tmp /var -type f -readable -print0 2>/dev/null |
    xargs -0 grep -alF -f "$patterns"
"#;

/// Starts everything, and writes down every argument that another user of the host sees meanwhile of any process.
fn start_watched(host: &TestHost, who: Who) {
    let arguments = Arguments::watch(host);
    host.systemctl(who, &["start", "litellm.target"]);
    let seen = arguments.seen();
    for words in ["migrate deploy", "/run/litellm-units/serve.py"] {
        assert!(seen.contains(words), "{words} was not seen among:\n{seen}");
    }
}

fn no_secret_is_shown(host: &TestHost, who: Who) {
    let env = host.env(who);
    let secrets: Vec<&str> = [
        "LITELLM_MASTER_KEY",
        "LITELLM_SALT_KEY",
        "POSTGRES_PASSWORD",
        "REDIS_PASSWORD",
    ]
    .iter()
    .map(|name| env.get(name).unwrap())
    .collect();
    let mut patterns = secrets.join("\n") + "\n";
    // As Redis' configuration writes it.
    patterns.extend(secrets[3].bytes().map(|byte| format!("\\x{byte:02x}")));
    patterns.push('\n');
    host.sh(Who::Root, "install -m 600 /dev/null /root/patterns");
    host.write(Who::Root, "/root/patterns", &patterns);
    let found = host.run(
        Who::Root,
        &["bash", "-c", &format!("shopt -s nullglob; {SECRET_SEARCH}")],
    );
    assert_eq!(found.stdout, "", "{}", found.stderr);
    // Podman before 5.3 shows a container's owner its secrets, and the audit says so.
    let audit = host.units(who, &["secrets", "audit"]);
    let inspect = if audit.stderr.contains("this Podman shows the secrets") {
        ""
    } else {
        "podman inspect $(podman ps -aq);"
    };
    let shown = host.sh(
        who,
        &format!(
            "{inspect} podman secret inspect $(podman secret ls -q); systemctl show litellm.service"
        ),
    );
    assert_eq!(audit.ok(), "no secret where it does not belong\n");
    for secret in patterns.lines() {
        assert!(!shown.contains(secret), "podman shows {secret}");
    }
    // Only so does the search prove anything: the same patterns do find what is protected.
    let deployment = who.deployment();
    assert_eq!(
        host.sh(
            Who::Root,
            &format!(
                "grep -lF -f /root/patterns {deployment}/.env; stat -c '%a %U' {deployment}/.env"
            )
        ),
        format!("{deployment}/.env\n600 {}\n", who.user())
    );
}

/// `systemctl restart litellm.service` is enough for new values, added and removed variables. What
/// is asked meanwhile waits.
fn an_edit_takes_effect_on_restart(host: &TestHost, who: Who, key: &str) {
    let postgres = process(host, who, "litellm-postgres");
    let load = Load::begin(host, who, key);
    host.set_env(
        who,
        &[("OPENAI_API_KEY", "sk-new"), ("ADDED", "a 'b' \"c\" $d")],
    );
    host.systemctl(who, &["restart", "litellm.service"]);
    load.assert_no_failure(host, who);
    assert_eq!(
        variable(host, who, "litellm", "OPENAI_API_KEY").as_deref(),
        Some("sk-new")
    );
    assert_eq!(
        variable(host, who, "litellm", "ADDED").as_deref(),
        Some("a 'b' \"c\" $d")
    );
    host.sh(
        who,
        "sed -i '/^ADDED=/d; s/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-newer/' \"$1/.env\"",
    );
    host.systemctl(who, &["restart", "litellm.service"]);
    assert_eq!(
        variable(host, who, "litellm", "OPENAI_API_KEY").as_deref(),
        Some("sk-newer")
    );
    assert_eq!(variable(host, who, "litellm", "ADDED"), None);
    assert_eq!(
        process(host, who, "litellm-postgres"),
        postgres,
        "PostgreSQL was restarted"
    );
    // Other containers do not even see the gateway's variables.
    for container in ["litellm-postgres", "litellm-redis"] {
        let names: Vec<String> = environment(host, who, container)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert!(
            !names
                .iter()
                .any(|name| name.contains("KEY") || name == "DATABASE_URL"),
            "{names:?}"
        );
    }
}

/// A request that runs when the stack is stopped gets its answer.
fn a_running_request_is_finished(host: &TestHost, who: Who, key: &str) {
    let script = r#"
        curl -sS --max-time 60 -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
            -d '{"model":"hello","mock_delay":5,"messages":[{"role":"user","content":"hi"}]}' \
            http://127.0.0.1:24157/v1/chat/completions | jq -r '.choices[0].message.content'
    "#;
    let mut slow = host
        .command(
            who,
            &["bash", "-euo", "pipefail", "-c", script, "slow", key],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    host.wait("the request to arrive", Duration::from_secs(20), |host| {
        let sent = host.sh(who, "ss -Htni state established '( dport = :24157 )'");
        if sent.contains("bytes_acked:") || slow.try_wait().unwrap().is_some() {
            Ok(())
        } else {
            Err(sent)
        }
    });
    let down = host.units(who, &["down"]);
    let answer = slow.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(
        (
            String::from_utf8_lossy(&answer.stdout).as_ref(),
            said.as_str()
        ),
        (HELLO, "")
    );
    assert_eq!(down.code, 0, "{}", down.stderr);
    assert_eq!(host.sh(who, "podman ps -aq"), "");
    let status = host.units(who, &["status"]);
    assert_eq!(
        (status.code, status.stderr.as_str()),
        (3, ""),
        "{}",
        status.stdout
    );
    let refused = chat(host, who, key).unwrap_err();
    assert!(refused.contains("curl: (7)"), "{refused}");
}

/// Returns the host, with its stack stopped, and a key of its gateway.
fn main_job(who: Who, name: &str) -> (TestHost, String) {
    let host = TestHost::boot_for(who, name);
    let deployment = who.deployment();
    let (quadlets, units) = (who.quadlets(), who.units());
    let generated = host.units(who, &["generate"]);
    let owner = if who == Who::Root { " for 999:999" } else { "" };
    assert_eq!(
        generated.all(),
        (
            0,
            format!(
                "\
prepare directory {deployment}
prepare directory {deployment}/config
prepare directory {deployment}/certs
prepare directory {deployment}/files
prepare directory {deployment}/logs
prepare directory {deployment}/data
prepare directory {deployment}/data/postgres{owner}
prepare directory {deployment}/data/redis{owner}
prepare {deployment}/.env: add LITELLM_IMAGE, add LITELLM_MASTER_KEY, add LITELLM_SALT_KEY, add POSTGRES_USER, add POSTGRES_PASSWORD, add POSTGRES_DB, add REDIS_PASSWORD, add empty OPENAI_API_KEY, add empty ANTHROPIC_API_KEY, add empty UI_USERNAME, add empty UI_PASSWORD, add empty PROXY_BASE_URL
prepare {deployment}/config/litellm-config.yaml
prepare {deployment}/images.lock: record the images' digests
create {units}/litellm.target
create {quadlets}/litellm.network
create {units}/litellm-images@.service
create {units}/litellm.socket
create {units}/litellm-recovery.service
create {units}/litellm-backup.service
create {units}/litellm-backup.timer
create {units}/litellm-verify.service
create {units}/litellm-verify.timer
create {units}/litellm-upgrade-check.service
create {units}/litellm-upgrade-check.timer
create {units}/litellm-recycle.service
create {units}/litellm-recycle.timer
create {quadlets}/litellm-postgres.container
create {quadlets}/litellm-redis.container
create {quadlets}/litellm-migrate.container
create {quadlets}/litellm-standby.container
create {quadlets}/litellm.container
enable litellm.target
enable litellm-backup.timer: a backup every night
enable litellm-verify.timer: a verification of the newest backup every week
enable litellm-upgrade-check.timer: a check for newer releases every day
enable litellm-recycle.timer: a fresh gateway when its memory grows
reload systemd
"
            ),
            format!("next: `{} start litellm.target` or `litellm-units up`\n", who.systemctl())
        )
    );
    allow_mock_delays(&host, who);
    start_watched(&host, who);
    assert_eq!(database_state(&host, who), "connected\n");
    let before = stored_keys(&host, who);
    let key = new_key(&host, who);
    assert_eq!(stored_keys(&host, who), before + 1);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    assert!(chat(&host, who, "sk-wrong").unwrap_err().contains("401"));

    status_tells_everything(&host, who);
    nothing_else_listens(&host, who);
    database_has_sizes(&host, who);
    no_secret_is_shown(&host, who);
    drift_is_seen_and_mended(&host, who);
    an_edit_takes_effect_on_restart(&host, who, &key);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    a_running_request_is_finished(&host, who, &key);
    (host, key)
}

#[test]
fn main_job_rootful() {
    let who = Who::Root;
    let (host, key) = main_job(who, "main-rootful");
    // On the same data with user IDs of their own, and without them again.
    host.set_env(who, &[("USER_NAMESPACES", "yes")]);
    host.units(who, &["up"]).ok();
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    nobody_else_has_its_users(&host);
    host.units(who, &["restart", "--handover", "litellm"]).ok();
    host.set_env(who, &[("USER_NAMESPACES", "no")]);
    host.units(who, &["apply"]).ok();
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    let image_user = "awk '/^Uid:/ { print $2 }' /proc/$(podman inspect -f '{{.State.Pid}}' litellm-postgres)/status";
    assert_eq!(host.sh(who, image_user), "999\n");
}

#[test]
fn main_job_rootless() {
    main_job(Who::Operator, "main-rootless");
}

//! Back up by itself after everything that can befall a process or a host.

use std::time::{Duration, Instant};

use crate::support::gateway::{HELLO, chat, new_key, process, running_process, sql, wait_for_chat};
use crate::support::host::{TestHost, Who};

const CONTAINERS: [&str; 3] = ["litellm-postgres", "litellm-redis", "litellm"];

/// Which run of its unit each container is in.
fn runs(host: &TestHost, who: Who) -> Vec<String> {
    CONTAINERS
        .iter()
        .map(|unit| host.property(who, &format!("{unit}.service"), "InvocationID"))
        .collect()
}

/// Waits until the unit runs another process than `old`, and is ready.
#[track_caller]
fn wait_for_another(host: &TestHost, who: Who, container: &str, old: u32, patience: Duration) {
    let unit = format!("{container}.service");
    host.wait(
        &format!("another process of {container}"),
        patience,
        |host| {
            let state = host.property(who, &unit, "ActiveState");
            match running_process(host, who, container)? {
                process if process == old => Err(format!("process {process} is still there")),
                _ if state != "active" => Err(format!("{unit} is {state}")),
                _ => Ok(()),
            }
        },
    );
}

/// Each container's unit restarts alone; the gateway outlives its servers.
fn killed_processes_come_back(host: &TestHost, who: Who, key: &str) {
    for (at, container) in CONTAINERS.iter().enumerate() {
        let before = runs(host, who);
        let old = process(host, who, container);
        host.sh(Who::Root, &format!("kill -KILL {old}"));
        if *container == "litellm" {
            // What is asked now waits, and is not refused.
            host.sh(
                who,
                "curl -sSf --max-time 120 http://127.0.0.1:24157/health/liveliness",
            );
        }
        wait_for_another(host, who, container, old, Duration::from_secs(60));
        wait_for_chat(host, who, key, Duration::from_secs(60));
        let after = runs(host, who);
        for (unit, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(
                before != after,
                unit == at,
                "{} after {container} was killed",
                CONTAINERS[unit]
            );
        }
    }
}

/// What systemd itself starts has the last good `.env`, and says so.
fn all_start_beside_an_unfinished_edit(host: &TestHost, who: Who, key: &str) {
    host.sh(
        who,
        r#"cp -p "$1/.env" ~/kept.env; echo "BROKEN='" >>"$1/.env""#,
    );
    killed_processes_come_back(host, who, key);
    host.crash();
    wait_for_chat(host, who, key, Duration::from_secs(120));
    let journal = host.sh(Who::Root, "journalctl -b -o cat");
    let warning = ": it starts with the last .env with which the gateway was ready";
    assert!(
        journal.matches(warning).count() >= CONTAINERS.len(),
        "{journal}"
    );
    // Until all jobs of the boot are done, nobody is taken to have asked.
    let systemctl = who.systemctl();
    let asked = format!(
        "timeout 60 {systemctl} is-system-running --wait || :; {systemctl} restart litellm.service"
    );
    assert_ne!(host.bash(who, &asked).code, 0);
    host.sh(who, r#"mv ~/kept.env "$1/.env""#);
    host.units(who, &["up"]).ok();
    // The same for the configuration of LiteLLM.
    host.sh(
        who,
        r#"cp -p "$1/config/litellm-config.yaml" ~/kept.yaml; echo "broken: [" >>"$1/config/litellm-config.yaml""#,
    );
    killed_processes_come_back(host, who, key);
    wait_for_chat(host, who, key, Duration::from_secs(120));
    let status = host.units(who, &["status"]);
    assert!(status.stderr.contains("not valid YAML"), "{status:?}");
    assert!(
        status.stdout.contains("config/litellm-config.yaml changed"),
        "{status:?}"
    );
    // A restart is refused before the gateway that serves is stopped.
    for words in [
        &["restart", "--handover", "litellm"][..],
        &["restart", "litellm"],
    ] {
        let restart = host.units(who, words);
        assert_eq!(restart.code, 78, "{restart:?}");
        assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    }
    // A lost file is the last good one again, not the first one.
    host.sh(who, r#"rm "$1/config/litellm-config.yaml""#);
    let generated = host.units(who, &["generate"]);
    let all = format!("{generated:?}");
    assert!(
        generated.code == 0 && all.contains(" was missing, and is restored"),
        "{all}"
    );
    host.sh(
        who,
        r#"cmp ~/kept.yaml "$1/config/litellm-config.yaml"; rm ~/kept.yaml"#,
    );
    host.units(who, &["up"]).ok();
}

/// A gateway whose processes stand still is found out by its health check, and replaced.
fn a_hung_gateway_is_replaced(host: &TestHost, who: Who, key: &str) {
    let old = process(host, who, "litellm");
    let start = Instant::now();
    let processes = host.sh(who, "podman top litellm hpid | tail -n +2");
    host.sh(
        Who::Root,
        &format!("kill -STOP {}", processes.replace('\n', " ")),
    );
    // The limit, 30 s, and two checks, a minute apart.
    wait_for_another(host, who, "litellm", old, Duration::from_secs(200));
    wait_for_chat(host, who, key, Duration::from_secs(60));
    eprintln!("a hung gateway was replaced after {:?}", start.elapsed());
}

/// Podman asks for the secrets with each health check, too; what is wrong with them by then is for the next start.
fn an_unfinished_edit_ends_nothing(host: &TestHost, who: Who) {
    let before = runs(host, who);
    let is_healthy = |what: &str| {
        for container in CONTAINERS {
            let ran = host.run(who, &["podman", "healthcheck", "run", container]);
            assert_eq!(ran.code, 0, "{what}: {container}: {ran:?}");
        }
    };
    let env = "cp -p \"$1/.env\" /tmp/env;";
    let back = "cp -p /tmp/env \"$1/.env\"";
    for (what, damage, mend) in [
        ("a quote is open", "echo \"BROKEN='\" >>\"$1/.env\"", back),
        (
            "a variable is gone",
            "sed -i /^OPENAI_API_KEY=/d \"$1/.env\"",
            back,
        ),
        (
            "passwords are others",
            "sed -i 's/^\\(REDIS_PASSWORD\\|POSTGRES_PASSWORD\\|POSTGRES_USER\\)=.*/\\1=another/' \"$1/.env\"",
            back,
        ),
        ("the file is gone", "rm \"$1/.env\"", back),
    ] {
        host.sh(who, &format!("{env} {damage}"));
        is_healthy(what);
        host.sh(who, mend);
    }
    host.sh(Who::Root, "mv /usr/bin/litellm-units /root/");
    is_healthy("the program is gone");
    // And for longer than it is between two checks of the gateway, and of its servers.
    std::thread::sleep(Duration::from_secs(65));
    let failures = "{{.State.Health.FailingStreak}}";
    for container in CONTAINERS {
        let words = ["podman", "inspect", "-f", failures, container];
        assert_eq!(host.run(who, &words).ok(), "0\n", "{container}");
    }
    host.sh(Who::Root, "mv /root/litellm-units /usr/bin/");
    assert_eq!(runs(host, who), before);
}

/// All starts at boot, with the previous data; the migration has work only if the schema is another.
fn reboots_bring_all_back(host: &TestHost, who: Who, key: &str) {
    let has_nothing_to_do = || {
        let words = ["logs", "-n", "3", "--no-log-prefix", "migrate"];
        let said = host.units(who, &words).ok();
        said.contains("the database has the schema of this release, with ")
            && said.contains(": nothing to migrate\n")
    };
    host.reboot();
    is_back(host, who, key);
    assert!(has_nothing_to_do());
    let table = r#""LiteLLM_ErrorLogs""#;
    sql(
        host,
        who,
        &format!("alter table {table} drop column status_code"),
    );
    // LiteLLM's own job runs again; that of 1.108 applies migrations, and puts no column back.
    host.crash();
    is_back(host, who, key);
    assert!(!has_nothing_to_do());
    let words = ["logs", "-n", "4", "--no-log-prefix", "migrate"];
    let said = host.units(who, &words).ok();
    let (_, rest) = said
        .split_once("the database lacks what this release needs, and LiteLLM's migration does not add it. To add it:\n")
        .unwrap();
    let remedy = rest.lines().next().unwrap();
    let adds = format!("ALTER TABLE {table} ADD COLUMN     \"status_code\"");
    assert!(remedy.starts_with(&adds), "{remedy}");
    sql(host, who, remedy);
    host.crash();
    is_back(host, who, key);
    host.crash();
    is_back(host, who, key);
    assert!(has_nothing_to_do());
}

fn is_back(host: &TestHost, who: Who, key: &str) {
    wait_for_chat(host, who, key, Duration::from_secs(120));
    host.wait(
        "every unit to be healthy",
        Duration::from_secs(30),
        |host| {
            let status = host.units(who, &["status"]);
            if status.code == 0 {
                Ok(())
            } else {
                Err(status.stdout)
            }
        },
    );
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
}

fn comes_back(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["generate"]).ok();
    host.set_env(who, &[("LITELLM_LIVENESS_TIMEOUT", "10")]);
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    an_unfinished_edit_ends_nothing(&host, who);
    all_start_beside_an_unfinished_edit(&host, who, &key);
    a_hung_gateway_is_replaced(&host, who, &key);
    reboots_bring_all_back(&host, who, &key);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn all_comes_back_rootful() {
    comes_back(Who::Root, "recover-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn all_comes_back_rootless() {
    comes_back(Who::Operator, "recover-rootless");
}

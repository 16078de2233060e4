//! Several gateways at one address: changes go through them one by one, and the end of one is not that of the others.

use std::time::Duration;

use crate::support::gateway::{Load, allow_mock_delays, new_key, process, wait_for_chat};
use crate::support::host::{TestHost, Who};
use crate::support::releases::{DEFAULT, NEWEST};

const WHO: Who = Who::Root;
const UNITS: [&str; 2] = ["litellm.service", "litellm-2.service"];

fn properties(host: &TestHost, name: &str) -> [String; 2] {
    UNITS.map(|unit| host.property(WHO, unit, name))
}

/// Runs the command while requests are sent, none of which may fail, and expects that every gateway was replaced.
fn replaces_both(host: &TestHost, key: &str, words: &[&str]) {
    let before = properties(host, "InvocationID");
    let load = Load::begin(host, WHO, key);
    host.units(WHO, words).ok();
    load.assert_no_failure(host, WHO);
    let after = properties(host, "InvocationID");
    for (index, unit) in UNITS.iter().enumerate() {
        assert_ne!(before[index], after[index], "{words:?}: {unit}");
    }
    let standby = host.property(WHO, "litellm-standby.service", "ActiveState");
    assert_eq!(standby, "inactive", "{words:?}");
}

fn both_are_seen(host: &TestHost, key: &str) {
    let services = host.sh(
        WHO,
        "litellm-units status --json | jq -r '.services[] | [.service, .unit, .active, .health] | join(\" \")' | grep '^litellm'",
    );
    assert_eq!(
        services,
        "litellm litellm.service active healthy\nlitellm-2 litellm-2.service active healthy\n"
    );
    let limits = properties(host, "MemoryMax");
    assert_eq!(limits[0], limits[1]);
    assert!(limits[0].parse::<u64>().is_ok(), "{limits:?}");
    // Each counts what it answered, and none of the other's.
    let counted = "set -o pipefail; for port in 9160 9161; do curl -sS --fail http://127.0.0.1:$port/metrics; done |
        awk '/^litellm_proxy_total_requests_metric_total[{]/ { sum += $NF } END { print sum + 0 }'";
    let chat = format!(
        "for i in $(seq 20); do curl -s --fail -o /dev/null -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
         http://127.0.0.1:24157/v1/chat/completions -d '{{\"model\":\"hello\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}]}}'; done"
    );
    let before: f64 = host.sh(WHO, counted).trim().parse().unwrap();
    host.sh(WHO, &chat);
    host.wait(
        "all requests to be counted",
        Duration::from_secs(20),
        |host| {
            let counted: f64 = host.sh(WHO, counted).trim().parse().unwrap();
            if (counted - before - 20.0).abs() < 0.5 {
                Ok(())
            } else {
                Err(format!("{counted} after {before}"))
            }
        },
    );
    let metrics = host.units(WHO, &["metrics"]).ok();
    assert!(
        metrics.contains("litellm_units_service_active{service=\"litellm-2\"} 1\n"),
        "{metrics}"
    );
    let logs = host.units(WHO, &["logs", "litellm"]).ok();
    for name in ["litellm   | ", "litellm-2 | "] {
        assert!(logs.contains(name), "{name}: {logs}");
    }
    let second = host.units(WHO, &["logs", "-n", "3", "litellm-2"]).ok();
    assert_eq!(second.matches("litellm-2 | ").count(), 3, "{second}");
    let doctor = host.units(WHO, &["doctor"]);
    assert!(
        doctor.stdout.contains("5 of 5 active, none failed"),
        "{doctor:?}"
    );
}

/// Only the connections of the one that is killed are lost: once its process is gone, no request fails.
fn a_crash_costs_what_it_had_in_hand(host: &TestHost, key: &str) {
    for container in ["litellm-2", "litellm"] {
        let load = Load::begin(host, WHO, key);
        std::thread::sleep(Duration::from_secs(5));
        let process = process(host, WHO, container);
        let killed = host.sh(
            WHO,
            &format!(
                "kill -KILL {process}; while [ -d /proc/{process} ]; do sleep 0.01; done; cut -d' ' -f1 /proc/uptime"
            ),
        );
        let killed: f64 = killed.trim().parse().unwrap();
        host.wait("its restart", Duration::from_secs(90), |host| {
            let service = format!("{container}.service");
            match host.property(WHO, &service, "NRestarts").as_str() {
                "0" => Err("not yet".into()),
                _ if host.property(WHO, &service, "ActiveState") == "active" => Ok(()),
                restarts => Err(format!("{restarts} restarts")),
            }
        });
        let failures = load.end(host, WHO);
        // As many as benches/load has connections.
        assert!(failures.len() <= 10, "{failures:?}");
        for failure in failures {
            let sent: f64 = failure.split(' ').nth(2).unwrap().parse().unwrap();
            assert!(sent <= killed, "{container} at {killed}: {failure}");
        }
    }
}

/// To `systemctl` as to this program, the gateway is all of them.
fn they_stop_together(host: &TestHost, key: &str) {
    for words in [
        &["systemctl", "stop", "litellm.service"][..],
        &["litellm-units", "stop", "litellm"],
        &["litellm-units", "down"],
    ] {
        host.run(WHO, words).ok();
        host.wait("the end of both", Duration::from_secs(90), |host| {
            let states = properties(host, "ActiveState");
            let socket = host.property(WHO, "litellm.socket", "ActiveState");
            if states == ["inactive", "inactive"] && socket == "inactive" {
                return Ok(());
            }
            Err(format!("{words:?}: {states:?} {socket}"))
        });
        host.units(WHO, &["up"]).ok();
        assert_eq!(properties(host, "ActiveState"), ["active", "active"]);
        wait_for_chat(host, WHO, key, Duration::from_secs(30));
    }
}

/// As after a rolling restart that was interrupted: the record of what it was started with differs.
fn one_that_differs_is_restarted_alone(host: &TestHost) {
    let before = properties(host, "InvocationID");
    let record = "/run/litellm-units/litellm-2.applied";
    host.sh(
        WHO,
        &format!(
            "jq '.inputs.OPENAI_API_KEY = \"another\"' {record} >/tmp/record && cp /tmp/record {record}"
        ),
    );
    host.units(WHO, &["apply"]).ok();
    let after = properties(host, "InvocationID");
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
}

/// One whose start is only queued does not start after a stop.
fn a_queued_start_is_stopped(host: &TestHost, key: &str) {
    host.sh(
        WHO,
        "systemctl stop litellm-2.service; systemctl start --no-block litellm-2.service; litellm-units stop litellm; sleep 2",
    );
    assert_eq!(properties(host, "ActiveState"), ["inactive", "inactive"]);
    host.units(WHO, &["up"]).ok();
    wait_for_chat(host, WHO, key, Duration::from_secs(30));
}

/// No gateway keeps the former address.
fn they_move_together(host: &TestHost) {
    for port in ["24158", "24157"] {
        host.set_env(WHO, &[("LISTEN", &format!("127.0.0.1:{port}"))]);
        host.units(WHO, &["apply"]).ok();
        let open = host.sh(
            WHO,
            "ss -Hltn 'sport >= :24157 and sport <= :24158' | awk '{print $4}' | sort -u",
        );
        assert_eq!(open, format!("127.0.0.1:{port}\n"));
        assert_eq!(properties(host, "ActiveState"), ["active", "active"]);
    }
}

/// Settings that do not work stop at the standby.
fn a_bad_edit_reaches_none(host: &TestHost) {
    let before = properties(host, "InvocationID");
    let deployment = WHO.deployment();
    let config = format!("{deployment}/config/litellm-config.yaml");
    host.sh(
        WHO,
        &format!(
            "echo 'raise RuntimeError(1)' >{deployment}/config/broken.py; sed -i 's/^  callbacks: .*/  callbacks: broken.callback/' {config}"
        ),
    );
    let ran = host.units(WHO, &["apply"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("rolled back"), "{ran:?}");
    assert_eq!(properties(host, "InvocationID"), before);
}

/// Where there can be no standby, each serves while the other restarts.
fn they_stand_in_for_each_other(host: &TestHost, key: &str) {
    host.without_standby(WHO);
    host.set_env(WHO, &[("OPENAI_API_KEY", "sk-a-third")]);
    replaces_both(host, key, &["apply"]);
    host.systemctl(WHO, &["unmask", "--runtime", "litellm-standby.service"]);
}

fn fewer_are_stopped_when_the_others_serve(host: &TestHost, key: &str) {
    host.set_env(WHO, &[("LITELLM_REPLICAS", "1")]);
    // It stops nothing.
    host.units(WHO, &["generate"]).ok();
    assert_eq!(properties(host, "ActiveState"), ["active", "active"]);
    let load = Load::begin(host, WHO, key);
    host.units(WHO, &["apply"]).ok();
    load.assert_no_failure(host, WHO);
    assert_eq!(host.property(WHO, UNITS[1], "LoadState"), "not-found");
    assert_eq!(host.property(WHO, UNITS[1], "ActiveState"), "inactive");
    let left = host.sh(
        WHO,
        "ls /run/litellm-units | grep -c '^litellm-2[.]' || true",
    );
    assert_eq!(left, "0\n");
    assert_eq!(host.units(WHO, &["generate", "--check"]).code, 0);
    assert_eq!(host.units(WHO, &["status"]).code, 0);
}

#[test]
#[ignore = "takes nine minutes: part of each release (CONTRIBUTING.md)"]
fn two_gateways() {
    let host = TestHost::boot("replicas");
    host.units(WHO, &["generate"]).ok();
    allow_mock_delays(&host, WHO);
    host.set_env(
        WHO,
        &[
            ("LITELLM_REPLICAS", "2"),
            ("LITELLM_METRICS_PORT", "9160"),
            ("LITELLM_IMAGE", DEFAULT.image),
        ],
    );
    host.sh(
        WHO,
        r#"sed -i '/^litellm_settings:/a\  callbacks: ["prometheus"]' "$1/config/litellm-config.yaml""#,
    );
    host.units(WHO, &["up"]).ok();
    // Both registered the same secrets at the same moment.
    assert_eq!(properties(&host, "NRestarts"), ["0", "0"]);
    let key = new_key(&host, WHO);
    both_are_seen(&host, &key);
    one_that_differs_is_restarted_alone(&host);
    host.set_env(WHO, &[("OPENAI_API_KEY", "sk-another")]);
    replaces_both(&host, &key, &["apply"]);
    a_bad_edit_reaches_none(&host);
    a_crash_costs_what_it_had_in_hand(&host, &key);
    replaces_both(&host, &key, &["upgrade", "--image", NEWEST.image]);
    they_stop_together(&host, &key);
    they_stand_in_for_each_other(&host, &key);
    a_queued_start_is_stopped(&host, &key);
    they_move_together(&host);
    fewer_are_stopped_when_the_others_serve(&host, &key);
}

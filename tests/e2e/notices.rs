//! Faults are reported, once each, to a webhook and to a program.

use std::time::Duration;

use crate::support::host::{TestHost, Who};

/// A webhook that keeps what it gets, and fails while there is a file.
const WEBHOOK: &str = r#"
use strict; use warnings; use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1:8099', Listen => 9) or die $!;
while (my $client = $server->accept) {
    my ($length, $body) = (0, '');
    while (<$client>) {
        $length = $1 if /^content-length: (\d+)/i;
        last if /^\r?$/;
    }
    read $client, $body, $length;
    my $refuse = -e '/root/refuse';
    if (!$refuse) { open my $file, '>>', '/root/hook' or die $!; print $file "$body\n" }
    my $status = $refuse ? '500 Internal Server Error' : '200 OK';
    print $client "HTTP/1.1 $status\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    close $client;
}
"#;

/// The texts that the webhook got.
fn hooked(host: &TestHost) -> Vec<String> {
    let bodies = host.sh(Who::Root, "cat /root/hook 2>/dev/null || :");
    bodies
        .lines()
        .map(|body| {
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            body["text"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn faults_are_reported_once() {
    let host = TestHost::boot("notices");
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    let ran = host.units(who, &["notify", "test"]);
    assert_eq!(ran.code, 78, "{ran:?}");
    assert!(
        ran.stderr
            .contains(" names no recipient of notices\nhint: add NOTIFY_URL="),
        "{}",
        ran.stderr
    );
    host.units(who, &["up"]).ok();
    let gateway = host.property(who, "litellm.service", "InvocationID");
    host.write(who, "/root/webhook", WEBHOOK);
    host.sh(who, "systemd-run --quiet --unit webhook perl /root/webhook");
    host.set_env(
        who,
        &[
            ("NOTIFY_URL", "http://127.0.0.1:8099/hook-of-ours"),
            ("NOTIFY_COMMAND", "cat >>/root/told"),
            ("METRICS_FILE", "/srv/litellm.prom"),
        ],
    );
    let applied = host.units(who, &["apply"]);
    assert!(
        applied
            .ok()
            .contains("enable litellm-watch.timer: notices of faults, and metrics\n")
    );
    assert_eq!(
        host.units(who, &["notify", "test"]).ok(),
        "a notice was sent: NOTIFY_URL, NOTIFY_COMMAND\n"
    );
    // One failure does not keep the other from being told.
    host.sh(who, "touch /root/refuse");
    let ran = host.units(who, &["notify", "test"]);
    assert_eq!(
        ran.stderr,
        "error: the notice was not delivered: NOTIFY_URL: the server answered 500 Internal Server Error\n\
         hint: correct .env, then try it: `litellm-units notify test`\n"
    );

    // No container has the variables, so none was restarted; and a restart that is asked for is no fault.
    assert_eq!(
        host.property(who, "litellm.service", "InvocationID"),
        gateway
    );
    host.units(who, &["restart"]).ok();
    host.units(who, &["stop", "redis"]).ok();
    let fault = "redis: inactive (dead); see `litellm-units logs redis`\n";
    host.wait(fault, Duration::from_secs(60), |host| {
        match host.sh(who, "cat /root/told") {
            told if told.contains(fault) => Ok(()),
            told => Err(told),
        }
    });
    // No recipient gets it twice because another one can't be reached; the journal says why.
    std::thread::sleep(Duration::from_secs(25));
    let reason = host.sh(who, "journalctl -u litellm-watch -o cat");
    assert!(
        reason.contains("NOTIFY_URL: the server answered 500") && !reason.contains("hook-of-ours"),
        "{reason}"
    );
    host.sh(who, "rm /root/refuse");
    host.units(who, &["start", "redis"]).ok();
    host.wait(
        "the end of the fault",
        Duration::from_secs(120),
        |host| match hooked(host) {
            texts if texts.len() == 2 => Ok(()),
            texts => Err(format!("{texts:?}")),
        },
    );
    let name = host.sh(who, "hostname");
    for metrics in [
        host.units(who, &["metrics"]).ok(),
        host.sh(who, "cat /srv/litellm.prom"),
    ] {
        for line in [
            "litellm_units_state{state=\"healthy\"} 1\n",
            "litellm_units_gateway_ready 1\n",
            "litellm_units_service_healthy{service=\"redis\"} 1\n",
            "litellm_units_disk_free_bytes{path=\"/opt/litellm-server\"} ",
        ] {
            assert!(metrics.contains(line), "{line} {metrics}");
        }
    }
    assert_eq!(host.sh(who, "stat -c %a /srv/litellm.prom"), "644\n");
    let texts = hooked(&host);
    assert_eq!(texts[0], format!("litellm-units on {name}this is a test\n"));
    assert!(texts[1].contains("redis: recovered after "), "{texts:?}");
    let told = host.sh(who, "cat /root/told");
    let [test, end] = &texts[..] else {
        unreachable!()
    };
    assert_eq!(
        told,
        format!("{test}{test}litellm-units on {name}{fault}{end}")
    );

    host.sh(who, r#"sed -i -e /^NOTIFY_/d -e /^METRICS_/d "$1/.env""#);
    let applied = host.units(who, &["apply"]);
    assert!(
        applied
            .ok()
            .contains("disable litellm-watch.timer: no more notices of faults, and metrics\n")
    );
    assert_eq!(
        host.property(who, "litellm-watch.timer", "LoadState"),
        "not-found"
    );
}

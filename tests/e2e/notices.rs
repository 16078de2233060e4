//! Faults are reported, once each, to a webhook and to a program.

#[cfg(feature = "fault-points")]
use std::collections::BTreeMap;
use std::time::Duration;

#[cfg(feature = "fault-points")]
use crate::support::alerts;
use crate::support::host::{TestHost, Who, tool};
use crate::support::package::{bare_host, install};
#[cfg(feature = "fault-points")]
use crate::support::releases::NEWEST;

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

/// Shows what it gets, as far as it is text, in the place of a collector of OpenTelemetry.
const COLLECTOR: &str = r#"
import http.server, re

class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(self.path, *re.findall("[ -~]{4,}", body.decode("latin-1")), flush=True)
        self.send_response(200)
        self.end_headers()

http.server.ThreadingHTTPServer(("", 4318), Collector).serve_forever()
"#;

/// The recipes of docs/notices.md. Both receivers are on the same host; that of the journal is systemd's own.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn traces_and_the_journal_are_sent() {
    let host = TestHost::boot_with("receivers", &["--packages", "systemd-journal-remote"]);
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    let collector = r#"cd "$1"
        sed -i '/^litellm_settings:/a\  callbacks: ["otel"]\n  turn_off_message_logging: true' config/litellm-config.yaml
        printf '%s\n' OTEL_EXPORTER_OTLP_PROTOCOL=http/json OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 >>.env
        mkdir extra.d
        printf '%s\n' '[Container]' Image=ghcr.io/berriai/litellm:v1.108.14 Entrypoint=python3 Exec=/etc/collector.py \
            Volume=./collector.py:/etc/collector.py:ro,z DropCapability=all ReadOnly=true >extra.d/collector.container"#;
    host.sh(who, collector);
    host.write(who, "/opt/litellm-server/extra.d/collector.py", COLLECTOR);
    host.units(who, &["up"]).ok();
    let ask = r#"sed -n 's/^LITELLM_MASTER_KEY=/Authorization: Bearer /p' "$1/.env" |
        curl -sS --fail -H @- -H 'Content-Type: application/json' http://127.0.0.1:24157/v1/chat/completions \
            -d '{"model":"hello","messages":[{"role":"user","content":"prompt-of-mine"}]}'"#;
    host.sh(who, ask);
    host.wait("a trace", Duration::from_secs(60), |host| {
        let got = host.sh(who, "journalctl -u litellm-extra-collector -o cat");
        assert!(!got.contains("prompt-of-mine"), "{got}");
        // A long line is several entries of the journal.
        if got.contains("/v1/traces ") && got.contains("gen_ai.request.model") {
            Ok(())
        } else {
            Err(got)
        }
    });

    host.sh(who, "apt-get -q update");
    install(&host, "systemd-journal-remote");
    let script = r"
        echo 127.0.0.1 logs.example.com >>/etc/hosts
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=logs.example.com -addext subjectAltName=DNS:logs.example.com \
            -keyout /etc/ssl/private/journal-upload.pem -out /etc/ssl/certs/journal-upload.pem 2>/dev/null
        cp /etc/ssl/certs/journal-upload.pem /etc/ssl/certs/ca.pem
        install -o systemd-journal-remote -m 400 /etc/ssl/private/journal-upload.pem /etc/systemd/remote.pem
        printf '%s\n' '[Remote]' ServerKeyFile=/etc/systemd/remote.pem ServerCertificateFile=/etc/ssl/certs/journal-upload.pem \
            TrustedCertificateFile=/etc/ssl/certs/ca.pem >/etc/systemd/journal-remote.conf
        systemctl start systemd-journal-remote.socket
        printf '%s\n' '[Upload]' URL=https://logs.example.com:19532 \
            ServerKeyFile=/run/credentials/systemd-journal-upload.service/key \
            ServerCertificateFile=/etc/ssl/certs/journal-upload.pem TrustedCertificateFile=/etc/ssl/certs/ca.pem \
            >/etc/systemd/journal-upload.conf
        install -d /etc/systemd/system/systemd-journal-upload.service.d
        printf '%s\n' '[Service]' LoadCredential=key:/etc/ssl/private/journal-upload.pem \
            >/etc/systemd/system/systemd-journal-upload.service.d/key.conf
        systemctl daemon-reload
        systemctl enable --now systemd-journal-upload.service";
    host.sh(who, script);
    host.wait("the journal", Duration::from_secs(120), |host| {
        let received = "journalctl -D /var/log/journal/remote -o cat LITELLM_UNITS_COMMAND=up || :
            journalctl -u systemd-journal-upload -u systemd-journal-remote -n 5 >&2";
        match host.sh(who, received) {
            text if text.contains(": begun") && text.contains(": succeeded") => Ok(()),
            text => Err(text),
        }
    });
}

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

/// What Prometheus gets. It is there while connections that say nothing are open, and no process stays.
fn scrape(host: &TestHost) -> String {
    let who = Who::Root;
    let script = "
        exec 7<>/dev/tcp/127.0.0.1/9157 8<>/dev/tcp/127.0.0.1/9157
        get() { curl -sS --retry 5 --retry-all-errors \"$@\"; }
        get -o /root/scraped -w '%{http_code} %{content_type} ' http://127.0.0.1:9157/metrics
        get -o /dev/null -w '%{http_code} ' http://127.0.0.1:9157/
        get -o /dev/null -w '%{http_code} ' -d x http://127.0.0.1:9157/metrics
        get -I http://127.0.0.1:9157/metrics | grep -c '^HTTP/1.1 200 OK'
    ";
    assert_eq!(
        host.sh(who, script),
        "200 text/plain; version=0.0.4; charset=utf-8 404 405 1\n"
    );
    host.wait("the end of each process", Duration::from_secs(20), |host| {
        let running = "systemctl list-units --all --no-legend 'litellm-metrics@*'";
        match host.sh(who, running) {
            none if none.is_empty() => Ok(()),
            some => Err(some),
        }
    });
    host.sh(who, "cat /root/scraped")
}

/// The examples, with images that are made here: Debian's Prometheus in the place of the published one.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn prometheus_beside_the_gateway() {
    let host = bare_host(Who::Root, "monitoring");
    let who = Who::Root;
    host.put(
        std::path::Path::new(env!("CARGO_BIN_EXE_litellm-units")),
        "/usr/bin/litellm-units",
    );
    install(&host, "caddy");
    host.systemctl(who, &["disable", "--now", "caddy"]);
    host.sh(
        who,
        "mkdir -p /tmp/image /usr/share/doc/litellm-units/examples",
    );
    host.put(&tool("prometheus"), "/tmp/image/prometheus");
    host.put(&tool("promtool"), "/tmp/image/promtool");
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples");
    for file in std::fs::read_dir(examples).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        host.put(
            &file.path(),
            &format!("/usr/share/doc/litellm-units/examples/{name}"),
        );
    }
    let build = r#"
        cd /tmp/image; cp /usr/bin/caddy .; mkdir data; touch data/.keep
        base=ghcr.io/berriai/litellm:v1.108.14
        printf '%s\n' "FROM $base" 'COPY prometheus promtool /bin/' 'COPY --chown=65534 data /prometheus' 'USER 65534' \
            'ENTRYPOINT ["/bin/prometheus"]' >Containerfile
        podman build -q --pull=never -t localhost/prometheus:2 .
        printf '%s\n' "FROM $base" 'COPY caddy /bin/' 'ENTRYPOINT []' \
            'CMD ["/bin/caddy","run","--config","/etc/caddy/Caddyfile"]' >Containerfile
        podman build -q --pull=never -t localhost/caddy:2 .
    "#;
    host.sh(who, build);
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        r#"printf 'litellm_settings:\n  callbacks: ["prometheus"]\n' >>$1/config/litellm-config.yaml"#,
    );
    host.units(who, &["up"]).ok();

    // The commands of docs/notices.md, but for Grafana's image, which cannot be had.
    host.sh(
        who,
        r"cd /opt/litellm-server
        install -d -m 755 extra.d extra.d/metrics
        install -m 644 -t extra.d /usr/share/doc/litellm-units/examples/prometheus*
        sed -i s,^Image=.*,Image=localhost/prometheus:2, extra.d/prometheus.container
        echo METRICS_FILE=/opt/litellm-server/extra.d/metrics/litellm.prom >>.env",
    );
    host.units(who, &["apply"]).ok();
    let query = |words: &str| {
        let query = [
            "exec",
            "-T",
            "prometheus",
            "--",
            "promtool",
            "query",
            "instant",
            "http://127.0.0.1:9090",
            words,
        ];
        let ran = host.units(who, &query);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.trim_end().to_owned()
    };
    let holds = |words: &str| {
        host.wait(words, Duration::from_secs(180), |_| match query(words) {
            none if none.is_empty() => Err(none),
            _ => Ok(()),
        });
    };
    holds(r#"up{job="litellm-units-file",instance="gateway"} == 1"#);
    holds(r#"litellm_units_state{state="healthy"} == 1"#);
    assert_eq!(query(r#"ALERTS{alertstate="firing"}"#), "");
    assert_eq!(host.sh(who, "ss -Hltn 'sport = :9090'"), "");
    // What is written there every 20 s is no edit.
    assert_eq!(
        host.units(who, &["apply", "--dry-run"]).ok(),
        "nothing to do\n"
    );

    host.sh(who, r#"cd /opt/litellm-server
        install -m 644 -t extra.d /usr/share/doc/litellm-units/examples/relay.*
        sed -i s,^Image=.*,Image=localhost/caddy:2, extra.d/relay.container
        echo "LISTEN='127.0.0.1:24157 /run/litellm/litellm.sock'" >>.env
        key=$(litellm-units key create prometheus --allowed-route /metrics) && echo "PROMETHEUS_KEY=$key" >>.env
        sed -i 's/^#relay://' extra.d/prometheus.container extra.d/prometheus.yml"#);
    host.units(who, &["apply"]).ok();
    holds(r#"up{job="litellm"} == 1"#);
    let reached = r#"for path in metrics/ metrics health/liveliness metrics/../key/list; do
        litellm-units exec -T litellm -- python3 -c '
import sys, http.client as h
c = h.HTTPConnection("relay", 24157); c.request("GET", "/" + sys.argv[1]); print(c.getresponse().status)' "$path"; done"#;
    // Without the key.
    assert_eq!(host.sh(who, reached), "401\n404\n404\n404\n");

    host.units(who, &["stop", "redis"]).ok();
    holds(r#"ALERTS{alertname="LitellmServiceUnhealthy",service="redis",alertstate="firing"}"#);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
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
            ("METRICS_LISTEN", "127.0.0.1:8099"),
        ],
    );
    let refused = host.units(who, &["apply"]);
    assert!(
        refused.code != 0
            && (refused.stderr).contains(
                ": METRICS_LISTEN is 127.0.0.1:8099, which is taken by another process\nhint: find and stop it: "
            ),
        "{refused:?}"
    );
    host.set_env(
        who,
        &[
            ("METRICS_LISTEN", "127.0.0.1:9157"),
            ("LITELLM_METRICS_PORT", "8099"),
        ],
    );
    let refused = host.units(who, &["apply"]);
    assert!(
        refused.code != 0
            && (refused.stderr).contains(
                ": LITELLM_METRICS_PORT needs 127.0.0.1:8099, which is taken by another process\nhint: find and stop it: "
            ),
        "{refused:?}"
    );
    host.set_env(who, &[("LITELLM_METRICS_PORT", "")]);
    let applied = host.units(who, &["apply"]).ok();
    for unit in [
        "enable litellm-watch.timer: notices of faults, and metrics\n",
        "enable litellm-metrics.socket: metrics by HTTP\n",
    ] {
        assert!(applied.contains(unit), "{applied}");
    }
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
        scrape(&host),
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

    // Another address, at which alone it is served then, also if the socket had failed.
    host.systemctl(who, &["stop", "litellm-metrics.socket"]);
    host.set_env(who, &[("METRICS_LISTEN", "[::1]:9158")]);
    host.units(who, &["apply"]).ok();
    let addresses = host.sh(
        who,
        "ss -ltnH 'sport >= :9157 and sport <= :9158' | awk '{ print $4 }'",
    );
    assert_eq!(addresses, "[::1]:9158\n");
    host.sh(who, r#"sed -i -e /^NOTIFY_/d -e /^METRICS_/d "$1/.env""#);
    let applied = host.units(who, &["apply"]).ok();
    for (unit, purpose) in [
        ("litellm-watch.timer", "notices of faults, and metrics"),
        ("litellm-metrics.socket", "metrics by HTTP"),
    ] {
        let line = format!("disable {unit}: no more {purpose}\n");
        assert!(applied.contains(&line), "{applied}");
        assert_eq!(host.property(who, unit, "LoadState"), "not-found");
    }
    host.sh(who, "test ! -e /run/litellm-units/metrics.prom");
    assert_eq!(
        host.sh(who, "ss -ltnH 'sport >= :9157 and sport <= :9158'"),
        ""
    );
}

/// A fault of docs/troubleshooting.md.
#[cfg(feature = "fault-points")]
struct Planted {
    /// How root makes it.
    plant: fn(&TestHost),
    /// How the lines of the notices begin.
    notices: &'static [&'static str],
    /// What the metrics have, on which the alerts look.
    metrics: &'static [&'static str],
    /// The alert on it.
    alert: Option<&'static str>,
    /// Labels of that alert, for one that exists more than once.
    labels: &'static str,
    /// How root repairs it.
    repair: &'static str,
    /// Whether the repair ends what `notices` has. All else that was reported must end.
    ends: bool,
}

/// The rest of a row.
#[cfg(feature = "fault-points")]
const PLAIN: Planted = Planted {
    plant: |_| {},
    notices: &[],
    metrics: &[],
    alert: None,
    labels: "",
    repair: ":",
    ends: true,
};

/// Makes each start of a unit fail.
#[cfg(feature = "fault-points")]
fn spoil(host: &TestHost, unit: &str, lines: &str, then: &str) {
    let script = format!(
        r"directory=/run/systemd/system/{unit}.d
        install -d $directory
        printf '[Service]\n{lines}\n' >$directory/spoilt.conf
        systemctl daemon-reload
        {then}"
    );
    host.sh(Who::Root, &script);
}

/// What the notice of an end has, and none of a fault.
#[cfg(feature = "fault-points")]
const RECOVERED: &str = ": recovered after ";

#[cfg(feature = "fault-points")]
/// Of each start.
const FALSE: &str = "ExecStart=\\nExecStart=/bin/false";

#[cfg(feature = "fault-points")]
const PLANTED: [Planted; 23] = [
    // It is back before each look. The restarts of the last 15 minutes count, also those of the crash loop below, which
    // would be another fault if this one were not reported already.
    Planted {
        plant: |host| {
            let script = "for _ in 1 2 3; do
                    systemctl kill --signal KILL litellm-redis
                    sleep 1
                    until systemctl is-active -q litellm-redis; do sleep 0.1; done
                done";
            host.sh(Who::Root, script);
        },
        notices: &["restarts of redis: at least 3 in 15 minutes"],
        alert: Some("LitellmServiceRestarts"),
        labels: "service=\"redis\"",
        ends: false,
        ..PLAIN
    },
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-redis"]),
        notices: &["redis: inactive (dead)"],
        metrics: &["litellm_units_service_active{service=\"redis\"} 0"],
        alert: Some("LitellmServiceUnhealthy"),
        labels: "service=\"redis\"",
        repair: "systemctl start litellm-redis",
        ..PLAIN
    },
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-postgres"]),
        // The gateway then answers late, which is a fault of its own only after three minutes.
        notices: &["postgres: inactive (dead)"],
        metrics: &[
            "litellm_units_service_active{service=\"postgres\"} 0",
            "litellm_units_gateway_ready 0",
        ],
        alert: Some("LitellmServiceUnhealthy"),
        labels: "service=\"postgres\"",
        repair: "systemctl start litellm-postgres",
        ..PLAIN
    },
    Planted {
        // A look at the open address would start it again.
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm.socket", "litellm.service"]),
        notices: &["litellm: inactive (dead)", "gateway: "],
        metrics: &[
            "litellm_units_service_active{service=\"litellm\"} 0",
            "litellm_units_gateway_ready 0",
        ],
        alert: Some("LitellmGatewayNotReady"),
        repair: "systemctl start litellm.socket litellm.service",
        ..PLAIN
    },
    // A crash loop.
    Planted {
        plant: |host| {
            let restart = "systemctl restart --no-block litellm-redis";
            spoil(
                host,
                "litellm-redis.service",
                "ExecStartPre=/bin/false",
                restart,
            );
        },
        notices: &["redis: "],
        metrics: &["litellm_units_service_active{service=\"redis\"} 0"],
        alert: Some("LitellmServiceUnhealthy"),
        labels: "service=\"redis\"",
        repair: "rm -r /run/systemd/system/litellm-redis.service.d; systemctl daemon-reload
               systemctl reset-failed litellm-redis || :; systemctl restart litellm-redis",
        ..PLAIN
    },
    // An image that can't be pulled.
    Planted {
        plant: |host| {
            let unit = "litellm-images@redis.service";
            let start = "systemctl stop litellm-redis litellm-images@redis
                systemctl start --no-block litellm-redis";
            spoil(host, unit, FALSE, start);
        },
        notices: &["litellm-images@redis.service: "],
        metrics: &["litellm_units_failing_blockers 1"],
        alert: Some("LitellmBlocked"),
        repair: "rm -r /run/systemd/system/litellm-images@redis.service.d; systemctl daemon-reload
               systemctl restart litellm-images@redis; systemctl start litellm-redis",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            let start = "systemctl start litellm-backup || :";
            spoil(host, "litellm-backup.service", FALSE, start);
        },
        notices: &["backup: "],
        metrics: &["litellm_units_backup_failed 1"],
        alert: Some("LitellmBackup"),
        repair: "rm -r /run/systemd/system/litellm-backup.service.d; systemctl daemon-reload
               systemctl start litellm-backup",
        ..PLAIN
    },
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-backup.timer"]),
        notices: &["backup: litellm-backup.timer is not active"],
        metrics: &["litellm_units_backup_timer_active 0"],
        alert: Some("LitellmBackup"),
        repair: "systemctl start litellm-backup.timer",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            let start = "systemctl start litellm-verify || :";
            spoil(host, "litellm-verify.service", FALSE, start);
        },
        notices: &["verification: litellm-verify.service failed: "],
        metrics: &["litellm_units_verification_failed 1"],
        alert: Some("LitellmVerification"),
        repair: "rm -r /run/systemd/system/litellm-verify.service.d; systemctl daemon-reload
               systemctl stop litellm-verify",
        ..PLAIN
    },
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-wal.timer"]),
        notices: &["archive: litellm-wal.timer is not enabled and active"],
        alert: Some("LitellmArchive"),
        repair: "systemctl start litellm-wal.timer",
        ..PLAIN
    },
    // A change whose process was killed, and which nobody completes.
    Planted {
        plant: |host| host.kill_at(Who::Root, "change-written", "", "secrets rotate redis"),
        notices: &["operation: "],
        metrics: &["litellm_units_operation_interrupted 1"],
        alert: Some("LitellmInterrupted"),
        repair: "litellm-units up",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            let start = "systemctl start litellm-wal || :";
            spoil(host, "litellm-wal.service", FALSE, start);
        },
        notices: &["archive: litellm-wal.service failed: "],
        alert: Some("LitellmArchive"),
        repair: "rm -r /run/systemd/system/litellm-wal.service.d; systemctl daemon-reload
               systemctl start litellm-wal",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            let start = "systemctl start litellm-recovery || :";
            spoil(host, "litellm-recovery.service", FALSE, start);
        },
        notices: &["litellm-recovery.service: "],
        repair: "rm -r /run/systemd/system/litellm-recovery.service.d; systemctl daemon-reload
               systemctl reset-failed litellm-recovery",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            let start = "systemctl start litellm-recycle || :";
            spoil(host, "litellm-recycle.service", FALSE, start);
        },
        notices: &["litellm-recycle.service: failed: "],
        repair: "rm -r /run/systemd/system/litellm-recycle.service.d; systemctl daemon-reload
               systemctl start litellm-recycle",
        ..PLAIN
    },
    // So long ago that the timer has looked in vain for a week.
    Planted {
        plant: |host| {
            let record = r#"{"checked": "2025-01-09T00:00:00Z", "verdict": "unknown", "recommended": null,
                "error": "no route to host", "failing_since": "2025-01-01T00:00:00Z"}"#;
            let path = "/opt/litellm-server/.litellm-units/upgrade-check.json";
            host.write(Who::Root, path, record);
        },
        notices: &["upgrade-check: newer releases could not be listed for "],
        metrics: &["litellm_units_upgrade_check_timestamp_seconds 1735689600"],
        alert: Some("LitellmReleaseCheck"),
        repair: "rm /opt/litellm-server/.litellm-units/upgrade-check.json",
        ..PLAIN
    },
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-upgrade-check.timer"]),
        notices: &["timers: litellm-upgrade-check.timer "],
        metrics: &["litellm_units_timers_idle 1"],
        alert: Some("LitellmTimers"),
        repair: "systemctl start litellm-upgrade-check.timer",
        ..PLAIN
    },
    // The host was off for days.
    Planted {
        plant: |host| {
            let script = r#"cd "$1/backups"; mkdir /root/kept; mv 2* /root/kept
                newest=$(ls /root/kept | tail -n 1)
                cp -a "/root/kept/$newest" "20250101T000000Z-${newest##*-}"
                # Nor is the deployment new.
                touch -d '3 days ago' "$1/data""#;
            host.sh(Who::Root, script);
        },
        notices: &["backup: "],
        alert: Some("LitellmBackup"),
        repair: r#"cd "$1/backups"; rm -r 2025*; mv /root/kept/* .; rmdir /root/kept"#,
        ..PLAIN
    },
    Planted {
        plant: |host| {
            host.sh(Who::Root, r#"echo LISTEN=nonsense >>"$1/.env""#);
        },
        notices: &[".env: "],
        metrics: &["litellm_units_env_invalid 1"],
        alert: Some("LitellmEnvInvalid"),
        repair: r#"sed -i '$d' "$1/.env""#,
        ..PLAIN
    },
    Planted {
        plant: |host| {
            host.sh(Who::Root, "mv /srv/metrics /srv/away");
        },
        notices: &["metrics: "],
        repair: "mv /srv/away /srv/metrics",
        ..PLAIN
    },
    // A vulnerability that becomes known while the release serves.
    Planted {
        plant: |host| {
            let advisory = r#"{"schema_version": "1.7.3", "id": "GHSA-xxxx-test-0002", "modified": "2026-11-27T00:00:00Z",
                "summary": "Planted", "affected": [{"package": {"ecosystem": "PyPI", "name": "litellm"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}], "references": [],
                "database_specific": {"severity": "CRITICAL", "exploited": true}}"#;
            let directory = "/etc/litellm-units/advisories";
            host.sh(Who::Root, &format!("mkdir -p {directory}"));
            host.write(Who::Root, &format!("{directory}/planted.json"), advisory);
        },
        notices: &["vulnerabilities: attackers use GHSA-xxxx-test-0002"],
        metrics: &["litellm_units_vulnerabilities{exploited=\"true\"} 1"],
        alert: Some("LitellmExploitedRelease"),
        repair: "rm -r /etc/litellm-units/advisories",
        ..PLAIN
    },
    // Somebody starts another image than that of the release.
    Planted {
        plant: |host| {
            let script = r"podman commit -q $(podman create --pull=never ghcr.io/berriai/litellm:v1.108.14) localhost/other:1
                directory=/etc/containers/systemd/litellm.container.d
                install -d $directory
                printf '[Container]\nImage=localhost/other:1\n' >$directory/other.conf
                systemctl daemon-reload
                systemctl restart litellm.service";
            host.sh(Who::Root, script);
        },
        notices: &["release: "],
        metrics: &["litellm_units_release_mismatch 1"],
        alert: Some("LitellmDegraded"),
        repair: "rm -r /etc/containers/systemd/litellm.container.d; systemctl daemon-reload
               systemctl restart litellm.service",
        ..PLAIN
    },
    Planted {
        plant: |host| {
            host.sh(Who::Root, r#"mount -t tmpfs -o size=1m planted "$1/logs""#);
        },
        notices: &["disk of /opt/litellm-server/logs: "],
        metrics: &["litellm_units_disk_free_bytes{path=\"/opt/litellm-server/logs\"} 1048576"],
        alert: Some("LitellmDiskFull"),
        labels: "path=\"/opt/litellm-server/logs\",severity=\"critical\"",
        repair: r#"umount "$1/logs""#,
        ..PLAIN
    },
    // A unit of the operator's own.
    Planted {
        plant: |host| host.systemctl(Who::Root, &["stop", "litellm-extra-filter"]),
        notices: &["filter: inactive (dead)"],
        metrics: &["litellm_units_service_active{service=\"filter\"} 0"],
        alert: Some("LitellmServiceUnhealthy"),
        labels: "service=\"filter\"",
        repair: "systemctl start litellm-extra-filter",
        ..PLAIN
    },
];

/// Each fault is reported within a minute, maybe with what it causes, and its end within three; and what operators do every
/// day is no fault. The alerts are evaluated on the metrics that each had. `LITELLM_UNITS_FAULTS=redis` plants only faults whose
/// first notice has this word.
#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn planted_faults() {
    let host = TestHost::boot("planted");
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    host.set_env(
        who,
        &[
            ("NOTIFY_COMMAND", "cat >>/root/told"),
            ("METRICS_LISTEN", "127.0.0.1:9157"),
            ("METRICS_FILE", "/srv/metrics/litellm.prom"),
            ("BACKUP_WAL", "yes"),
        ],
    );
    let unit =
        "[Container]\nImage=docker.io/library/redis:7.4.6\nExec=sleep infinity\nStopTimeout=1\n";
    host.sh(who, r#"mkdir /srv/metrics "$1/extra.d""#);
    host.write(who, "/opt/litellm-server/extra.d/filter.container", unit);
    host.units(who, &["apply"]).ok();
    host.units(who, &["backup"]).ok();
    let told = |host: &TestHost| host.sh(who, "cat /root/told 2>/dev/null || :");
    let metrics = |host: &TestHost| host.sh(who, "curl -s http://127.0.0.1:9157/metrics || :");
    // Two looks, and the base backup that starts the archive.
    host.wait(
        "a quiet stack",
        Duration::from_secs(180),
        |host| match metrics(host) {
            text if text.contains("litellm_units_archive_recoverable 1\n") => Ok(()),
            text => Err(text),
        },
    );
    let mut evaluated = Vec::new();
    let word = std::env::var("LITELLM_UNITS_FAULTS").unwrap_or_default();
    let planted = PLANTED
        .iter()
        .filter(|fault| fault.notices[0].contains(&word));
    assert!(planted.clone().next().is_some(), "no fault has {word}");
    for fault in planted {
        host.sh(who, ": >/root/told");
        let before = metrics(&host);
        (fault.plant)(&host);
        host.wait(fault.notices[0], Duration::from_secs(60), |host| {
            let (told, metrics) = (told(host), metrics(host));
            let faults = || { told.lines() }.filter(|line| !line.contains(RECOVERED));
            let reported = |line: &&str| faults().any(|told| told.starts_with(*line));
            let measured = |line: &&str| metrics.lines().any(|found| found == *line);
            let missing: Vec<_> = { fault.notices.iter().filter(|line| !reported(line)) }
                .chain(fault.metrics.iter().filter(|line| !measured(line)))
                .collect();
            if missing.is_empty() {
                Ok(())
            } else {
                Err(format!("{missing:?}\n{told}"))
            }
        });
        if let Some(alert) = fault.alert {
            evaluated.push(alerts::fires(alert, fault.labels, &before, &metrics(&host)));
        }
        host.sh(who, fault.repair);
        // Of all that was reported, also beside what was expected: the next row may be about the same.
        host.wait("the end", Duration::from_secs(180), |host| {
            let (told, text) = (told(host), metrics(host));
            let last: BTreeMap<&str, &str> = { told.lines() }
                .filter_map(|line| Some((line.split_once(": ")?.0, line)))
                .collect();
            let stays = |line: &&&str| {
                !fault.ends && fault.notices.iter().any(|notice| line.starts_with(notice))
            };
            let lasting: Vec<_> = { last.values() }
                .filter(|line| !line.contains(RECOVERED) && !stays(line))
                .collect();
            let state = "litellm_units_state{state=\"healthy\"} 1\n";
            if lasting.is_empty() && text.contains(state) {
                Ok(())
            } else {
                Err(format!("{lasting:?}\n{told}\n{text}"))
            }
        });
    }
    host.sh(who, ": >/root/told");
    let sampler = "while :; do date +%s; curl -sf -m 15 http://127.0.0.1:9157/metrics; echo '# end'; sleep 20; done >/root/day";
    host.run(
        who,
        &[
            "systemd-run",
            "--quiet",
            "--unit",
            "sampler",
            "sh",
            "-c",
            sampler,
        ],
    )
    .ok();
    host.units(who, &["restart"]).ok();
    host.units(who, &["restart", "litellm", "--handover"]).ok();
    host.units(who, &["backup"]).ok();
    host.units(who, &["backup", "verify", "latest"]).ok();
    host.set_env(who, &[("OPENAI_API_KEY", "sk-another")]);
    host.units(who, &["apply"]).ok();
    host.units(who, &["upgrade", "--image", NEWEST.image]).ok();
    host.units(who, &["rollback", "--keep-data"]).ok();
    host.units(who, &["restore", "latest", "--yes"]).ok();
    std::thread::sleep(Duration::from_secs(90));
    assert_eq!(told(&host), "");
    let day = host.sh(who, "systemctl stop sampler; cat /root/day");
    // A scrape that was cut off by the end of the sampler is none.
    let complete = day.rsplit_once("# end\n").unwrap().0;
    let day: Vec<_> = { complete.split("# end\n") }
        .map(|text| text.split_once('\n').unwrap())
        .map(|(time, text)| (time.parse().unwrap(), text))
        .collect();
    evaluated.push(alerts::none_fires(&day));
    alerts::evaluate(&evaluated);
}

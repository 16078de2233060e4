//! What an operator does every day.

use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::gateway::{HELLO, Load, allow_mock_delays, chat, new_key};
use crate::support::host::{Ran, TestHost, Who};

const ALL: [&str; 4] = ["postgres", "redis", "migrate", "litellm"];

/// Long enough for a cold start on a machine that has other things to do.
const TIMEOUT: Duration = Duration::from_secs(120);

#[test]
fn rootful_day() {
    day(Who::Root, "daily-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_day() {
    day(Who::Operator, "daily-rootless");
}

/// A unit of the operator's own, in an image that has Python.
const OWN: &str = r#"[Container]
Image=ghcr.io/berriai/litellm:v1.108.14
PodmanArgs=--entrypoint=python3 --stop-signal=INT
Exec=-m http.server 8000 --directory /srv
Secret=OPENAI_API_KEY,type=env
Volume=./page:/srv/page:ro,z
HealthCmd=["python3","-c","import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/page')"]
HealthInterval=1s
HealthStartPeriod=30s
Notify=healthy

[Service]
TimeoutStartSec=60
"#;

/// A provider with a certificate of a private authority.
const PROVIDER: &str = r#"
import http.server, json, ssl
class Provider(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": "in private"}, "finish_reason": "stop"}
        answer = {"id": "1", "created": 1, "model": "private", "object": "chat.completion", "choices": [choice]}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())
server = http.server.ThreadingHTTPServer(("", 8443), Provider)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/provider/server.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// One stack for all, since its start takes longest.
fn day(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    let day = Day { host: &host, who };
    host.units(who, &["generate"]).ok();
    allow_mock_delays(&host, who);
    host.units(who, &["up"]).ok();
    day.is_seen();
    day.logs();
    day.exec();
    day.live_screen();
    let load = Load::begin(&host, who, &new_key(&host, who));
    day.debug_logs();
    day.edit_comes_into_force();
    // The other user's edit handed over already.
    if who == Who::Root {
        day.gateway_restarts();
    }
    // The next one restarts PostgreSQL, without which LiteLLM from 1.108 on knows no key.
    load.assert_no_failure(&host, who);
    day.edits_that_can_only_fail();
    day.typos_fail_the_start();
    day.damaged_ledger();
    day.broken_edit_is_taken_back();
    day.own_unit();
    // e2e::secrets changes them for the other user.
    if who == Who::Root {
        host.without_standby(who);
        day.password_of_a_server_changes();
    }
    day.stops_and_starts();
}

struct Day<'a> {
    host: &'a TestHost,
    who: Who,
}

impl Day<'_> {
    fn units(&self, words: &[&str]) -> Ran {
        self.host.units(self.who, words)
    }

    fn bash(&self, script: &str) -> Ran {
        self.host.bash(self.who, script)
    }

    /// Which run of each unit this is, in the order of `ALL`.
    fn runs(&self) -> Vec<String> {
        ALL.iter()
            .map(|service| {
                let unit = match *service {
                    "litellm" => "litellm.service".to_owned(),
                    other => format!("litellm-{other}.service"),
                };
                let systemctl = self.who.systemctl();
                self.bash(&format!("{systemctl} show -P InvocationID {unit}"))
                    .ok()
            })
            .collect()
    }

    /// The services whose run is another one than before.
    fn restarted_since(&self, before: &[String]) -> Vec<&'static str> {
        let now = self.runs();
        (0..ALL.len())
            .filter(|index| before[*index] != now[*index])
            .map(|index| ALL[index])
            .collect()
    }

    fn jq(&self, filter: &str) -> String {
        self.bash(&format!(
            "litellm-units status --json | jq -c '{filter}' || true"
        ))
        .ok()
    }

    fn is_seen(&self) {
        let status = self.units(&["status"]);
        assert_eq!((status.code, status.stderr.as_str()), (0, ""));
        let rows: Vec<Vec<&str>> = status
            .stdout
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            rows[0],
            [
                "SERVICE", "STATE", "HEALTH", "UPTIME", "RESTARTS", "MEMORY", "IMAGE"
            ]
        );
        let seen: Vec<[&str; 4]> = rows[1..5]
            .iter()
            .map(|row| [row[0], row[1], row[2], row[6]])
            .collect();
        assert_eq!(
            seen,
            [
                [
                    "postgres",
                    "active (running)",
                    "healthy",
                    "docker.io/library/postgres:17.7"
                ],
                [
                    "redis",
                    "active (running)",
                    "healthy",
                    "docker.io/library/redis:7.4.6"
                ],
                [
                    "migrate",
                    "active (exited)",
                    "-",
                    "ghcr.io/berriai/litellm:v1.108.14"
                ],
                [
                    "litellm",
                    "active (running)",
                    "healthy",
                    "ghcr.io/berriai/litellm:v1.108.14"
                ],
            ]
        );
        assert_eq!(
            rows[5..],
            [["gateway http://127.0.0.1:24157: ready, database connected, LiteLLM 1.108.14"]]
        );
        assert_eq!(
            self.jq("[.schema, .state, .gateway.state, .warnings, [.services[] | .changed]]"),
            "[1,\"healthy\",\"ready\",[],[[],[],[],[]]]\n"
        );
        assert_eq!(
            self.jq("[.certificate, .backup.failed, (.disks | length > 0), ([.services[] | .memory_held_bytes > 0] | any)]"),
            "[null,false,true,true]\n"
        );
        assert_eq!(
            self.jq("[.services[] | (.uptime_seconds >= 0), (.memory_bytes > 0 or .sub == \"exited\"), (.cpu_seconds > 0 or .sub == \"exited\"), .restarts] | unique"),
            "[true,0]\n"
        );
        assert_eq!(
            self.units(&["health"]).ok(),
            "ready, database connected, LiteLLM 1.108.14\n"
        );

        self.database_is_seen();

        // Without a terminal: the same again and again.
        let watched = self
            .bash("timeout 4 litellm-units status --watch --interval 0.5 || true")
            .ok();
        assert!(watched.matches("\nSERVICE ").count() > 1, "{watched}");
        assert!(!watched.contains('\u{1b}'), "{watched}");
    }

    fn database_is_seen(&self) {
        let status = self.units(&["db", "status"]);
        assert_eq!(status.code, 0, "{}", status.stderr);
        assert!(
            status
                .stderr
                .starts_with("to keep the request logs of 30 days, add\n"),
            "{}",
            status.stderr
        );
        let (facts, tables) = status.stdout.split_once("\n\n").unwrap();
        let names: Vec<&str> = { facts.lines() }
            .map(|line| line[..21].trim_end())
            .collect();
        assert_eq!(
            names,
            [
                "database",
                "growth",
                "disk",
                "request logs",
                "connections",
                "longest query",
                "longest transaction"
            ]
        );
        assert!(
            tables
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("LiteLLM_SpendLogs "),
            "{tables}"
        );
        assert!(
            status.stdout.lines().all(|line| line.chars().count() <= 80),
            "{}",
            status.stdout
        );

        // Two sessions that do not end their transactions, of which one keeps dead rows from being removed, and a retention that
        // the web interface has stored: LiteLLM reads it only with `store_model_in_db`.
        let ran = self.bash(
            r#"psql() { podman exec -i -e PGAPPNAME=${1:-planted} litellm-postgres psql --quiet -U litellm litellm; }
            psql <<<"INSERT INTO \"LiteLLM_SpendLogs\" (request_id, call_type, \"startTime\", \"endTime\") VALUES ('planted', '', '2026-01-31 12:00:00', now());
              INSERT INTO \"LiteLLM_Config\" VALUES ('general_settings', '{\"maximum_spend_logs_retention_period\": \"7d\"}')"
            (echo 'BEGIN; SELECT 1;'; sleep 60) | psql harmless >/dev/null &
            harmless=$!
            sleep 1
            (echo 'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;'; sleep 60) | psql >/dev/null &
            for i in $(seq 50); do
                litellm-units db status --json >/tmp/db.json 2>/tmp/db.errors
                jq -e '.longest_transaction.application == "planted"' /tmp/db.json >/dev/null && break
            done
            kill $! $harmless
            psql <<<"UPDATE \"LiteLLM_Config\" SET param_value = param_value || '{\"store_model_in_db\": true}'"
            litellm-units db status --json | jq -c '[.request_logs.retention, .request_logs.retention_seconds]'
            psql <<<"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('planted', 'harmless') AND pid <> pg_backend_pid();
              DELETE FROM \"LiteLLM_SpendLogs\" WHERE request_id = 'planted'; DELETE FROM \"LiteLLM_Config\" WHERE param_name = 'general_settings'" >/dev/null
            jq -c '[.schema, .request_logs, .longest_transaction.application, .tables[0].name, .disk.free_bytes > 0, .bytes > 1000000, .connections.used > 0]' /tmp/db.json
            cat /tmp/db.errors"#,
        );
        assert_eq!(
            ran.ok(),
            "[\"7d\",604800]\n[1,{\"oldest\":\"2026-01-31T12:00:00Z\",\"retention\":null,\"retention_seconds\":null},\"planted\",\"LiteLLM_SpendLogs\",true,true,true]\n"
        );
    }

    fn logs(&self) {
        let shown = self.units(&["logs"]).ok();
        for noise in [
            "container start",
            "container create",
            "health_status",
            "\u{1b}[3",
        ] {
            assert!(!shown.contains(noise), "{noise} is in:\n{shown}");
        }
        assert!(shown.contains("\nredis    | "), "{shown}");
        let last = self.units(&["logs", "-n", "2", "redis"]).ok();
        assert_eq!(last.lines().count(), 2, "{last}");
        let bare = self
            .units(&["logs", "-n", "2", "--no-log-prefix", "redis"])
            .ok();
        let prefixed: String = bare
            .lines()
            .map(|line| format!("redis | {line}\n"))
            .collect();
        assert_eq!(last, prefixed);
        let timed = self
            .units(&["logs", "-n", "1", "-t", "--no-log-prefix", "redis"])
            .ok();
        let (time, line) = timed.split_once(' ').unwrap();
        assert!(bare.ends_with(line), "{timed}");
        assert_eq!(
            (&time[4..5], &time[10..11], &time[time.len() - 1..]),
            ("-", "T", "Z")
        );
        // Longer than what journalctl shows by itself.
        self.bash(
            r#"podman exec litellm python3 -c 'open("/proc/1/fd/1", "w").write("x" * 6000 + "\n")'
               for _ in {1..50}; do
                   litellm-units logs -n 50 litellm | grep -qE 'x{6000}' && exit; sleep 0.2
               done; exit 1"#,
        )
        .ok();
        // Also by the names of units.
        let of_unit = [
            "logs",
            "-n",
            "2",
            "--no-log-prefix",
            "litellm-redis.service",
        ];
        assert_eq!(self.units(&of_unit).ok(), bare);
        self.units(&["logs", "litellm-standby"]).ok();
        // It is gone since the last upgrade, or there was none.
        self.units(&["logs", "litellm-migrate-next"]).ok();
        let quadlet = self.units(&["logs", "litellm.container"]);
        assert!(
            quadlet.stderr.contains("hint: the names here: "),
            "{quadlet:?}"
        );
        let unknown = self.units(&["logs", "reddis"]);
        assert_eq!(
            (unknown.code, &*unknown.stderr),
            (
                1,
                "error: \"reddis\" has no logs on this host\n\
                 hint: the names here: network, images, postgres, redis, migrate, litellm, litellm-standby\n"
            )
        );
        assert_eq!(
            self.units(&["logs", "--until", "2020-01-01T00:00:00Z"])
                .ok(),
            ""
        );
        assert!(
            !self
                .units(&["logs", "--since", "1h", "redis"])
                .ok()
                .is_empty()
        );

        // A line that comes while it is followed.
        let followed = self
            .bash(
                "timeout 20 litellm-units logs -f -n 0 --no-log-prefix litellm > /tmp/followed & \
                 sleep 2; curl -s http://127.0.0.1:24157/a-new-line >/dev/null; \
                 for i in $(seq 50); do grep -q a-new-line /tmp/followed && break; sleep 0.2; done; \
                 kill $!; cat /tmp/followed",
            )
            .ok();
        assert!(followed.contains("GET /a-new-line"), "{followed}");
    }

    /// For a limited time, and without a restart.
    fn debug_logs(&self) {
        let before = self.runs();
        let key = new_key(self.host, self.who);
        let lines = |words: &str| {
            let logs = self.units(&["logs", "--no-log-prefix", "litellm"]).ok();
            logs.lines().filter(|line| line.contains(words)).count()
        };
        let wait_for = |words: &str, count: usize| {
            self.host
                .wait(words, Duration::from_secs(30), |_| match lines(words) {
                    found if found == count => Ok(()),
                    found => Err(format!("{found} of {count}")),
                });
        };
        assert_eq!(self.units(&["debug"]).ok(), "debug logs are off\n");
        assert_eq!(self.jq(".debug_until"), "null\n");
        let said = self.units(&["debug", "on", "--for", "15s"]);
        assert!(
            said.stdout.starts_with("debug logs are on until "),
            "{said:?}"
        );
        assert!(said.stderr.contains("contain prompts"), "{said:?}");
        assert_eq!(self.jq(".debug_until | type"), "\"string\"\n");
        let doctor = self.units(&["doctor"]).stdout;
        assert!(doctor.contains("debug: the gateways write"), "{doctor}");
        wait_for("debug logs of process 1 are on for ", 1);
        assert_eq!(chat(self.host, self.who, &key).unwrap(), HELLO);
        wait_for("debug logs of process 1 are off", 1);
        assert_eq!(self.units(&["debug"]).ok(), "debug logs are off\n");
        // The logs have requests, but no key; and none more.
        let written = lines(":DEBUG");
        assert!(written > 10, "{written}");
        assert_eq!(lines(&key), 0);
        assert_eq!(chat(self.host, self.who, &key).unwrap(), HELLO);
        assert_eq!(lines(":DEBUG"), written);
        // At once, and twice.
        self.units(&["debug", "on"]).ok();
        wait_for("debug logs of process 1 are on for ", 2);
        for _ in 0..2 {
            let off = self.units(&["debug", "off"]).ok();
            assert_eq!(off, "debug logs are off\n");
        }
        wait_for("debug logs of process 1 are off", 2);
        assert_eq!(self.restarted_since(&before), [""; 0]);
        // As under units of an earlier version.
        if self.who == Who::Root {
            self.bash("nsenter -t $(podman inspect -f '{{.State.Pid}}' litellm) -m umount /run/litellm-units/debug")
                .ok();
            let refused = self.units(&["debug", "on"]);
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(
                refused
                    .stderr
                    .contains("litellm.service was started by an earlier version"),
                "{refused:?}"
            );
        }
    }

    fn exec(&self) {
        let ran = self.bash(
            "echo from stdin | litellm-units exec -T -e 'A=x y' --workdir /tmp postgres -- \
             sh -c 'cat; echo \"$A\"; pwd; exit 7' || echo \"left with $?\"",
        );
        assert_eq!(ran.ok(), "from stdin\nx y\n/tmp\nleft with 7\n");
        let missing = self.units(&["exec", "redis", "no-such-program"]);
        assert_eq!(missing.code, 127, "{}", missing.stderr);
        // As compose has it: what comes after the service is the command's.
        let ran = self.units(&[
            "exec",
            "-it",
            "-u",
            "nobody",
            "redis",
            "sh",
            "-c",
            "id -un; echo \"$@\"",
            "sh",
            "-T",
            "--user",
            "--host=x",
        ]);
        assert_eq!(ran.ok(), "nobody\n-T --user --host=x\n");

        let script = "source <(litellm-units completion bash)
            function=$(complete -p litellm-units | sed 's/.*-F \\([^ ]*\\).*/\\1/')
            COMP_WORDS=(litellm-units restart p) COMP_CWORD=2
            $function litellm-units p restart
            echo \"${COMPREPLY[@]}\"";
        assert_eq!(self.bash(script).ok(), "postgres\n");
    }

    fn live_screen(&self) {
        let before = self.runs();
        let mut screen = LiveScreen::open(self.host, self.who);
        let rows = screen.wait_for("healthy and lines", |rows| {
            rows[0].ends_with("healthy") && rows[9].contains(" | ")
        });
        assert_eq!(rows[0], "gateway http://127.0.0.1:24157   healthy");
        assert_eq!(rows[1], "ready, database connected, LiteLLM 1.108.14");
        assert_eq!(rows[2], "");
        assert_eq!(
            rows[3],
            "  SERVICE    STATE                 HEALTH        CPU    MEMORY  UPTIME RESTARTS"
        );
        let states: Vec<&str> = rows[4..8].iter().map(|row| row[..43].trim_end()).collect();
        assert_eq!(
            states,
            [
                "  postgres   active (running)      healthy",
                "  redis      active (running)      healthy",
                "  migrate    active (exited)       -",
                "> litellm    active (running)      healthy",
            ]
        );
        assert_eq!(rows[8], format!("── logs {}", "─".repeat(72)));
        assert_eq!(rows[23], " j/k choose   r restart   l log   q quit");

        screen.press("kk");
        screen.wait_for("redis to be chosen", |rows| rows[5].starts_with("> redis "));
        screen.press("r");
        screen.wait_for("the question", |rows| rows[23] == " restart redis? y/n");
        screen.press("n");
        screen.wait_for("the keys", |rows| rows[23].starts_with(" j/k"));
        assert_eq!(self.restarted_since(&before), [""; 0]);
        screen.press("ry");
        screen.wait_for("the restart", |rows| rows[22].starts_with("ready after "));
        assert_eq!(self.restarted_since(&before), ["redis"]);

        screen.press("l");
        let rows = screen.wait_for("its log", |rows| rows[23].starts_with(" redis: following "));
        assert!(!rows.iter().any(|row| row.contains(" | ")), "{rows:#?}");
        screen.press("q");
        screen.wait_for("the overview", |rows| rows[23].starts_with(" j/k"));

        // A smaller window.
        screen.resize(self, 12, 60);
        screen.wait_for("12 rows", |rows| {
            rows[3] == "  SERVICE    STATE                 HEALTH        CPU    MEMO"
                && rows[11].starts_with(" j/k choose")
        });

        screen.press("q");
        screen.assert_restored("left 0");
        let mut screen = LiveScreen::open(self.host, self.who);
        screen.wait_for("a screen", |rows| rows[0].ends_with("healthy"));
        screen.press("\u{3}");
        screen.assert_restored("left 130");
        let screen = LiveScreen::open(self.host, self.who);
        screen.wait_for("a screen", |rows| rows[0].ends_with("healthy"));
        self.bash("pkill -TERM -x litellm-units").ok();
        screen.assert_restored("left 143");
    }

    fn edit_comes_into_force(&self) {
        let env = format!("{}/.env", self.who.deployment());
        let before = self.runs();
        self.units(&["apply"]).ok();
        assert_eq!(self.units(&["apply", "--dry-run"]).ok(), "nothing to do\n");
        assert_eq!(self.restarted_since(&before), [""; 0]);

        self.bash(&format!(
            "sed -i 's/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-new/' {env}"
        ))
        .ok();
        let status = self.units(&["status"]).ok();
        assert!(status.contains("\nlitellm*  active (running) "), "{status}");
        assert!(
            status
                .ends_with("\n* litellm: OPENAI_API_KEY added; to apply: `litellm-units apply`\n"),
            "{status}"
        );
        assert_eq!(
            self.units(&["apply", "--dry-run"]).ok(),
            "# restart litellm.service: OPENAI_API_KEY added\n"
        );
        let authority = self.private_provider();
        let listen = format!(
            "LISTEN='127.0.0.1:24157 [::1]:4000 {}'\nLISTEN_GROUP={}\nFORWARDED_ALLOW_IPS=192.0.2.9",
            self.socket(),
            self.group()
        );
        self.bash(&format!("echo \"{listen}\" >>{env}")).ok();
        let broken = format!("{}/certs/private.pem", self.who.deployment());
        self.host.write(self.who, &broken, &authority[..200]);
        for words in [&["config", "check"][..], &["apply"]] {
            let ran = self.units(words);
            assert!(
                ran.code == 78
                    && ran.stderr.starts_with(&format!(
                        "error: {broken}, line 1: this certificate has no end\nhint: "
                    )),
                "{ran:?}"
            );
        }
        self.host.write(self.who, &broken, &authority);
        let ran = self.units(&["generate"]);
        assert!(
            ran.stderr.ends_with(
                "the gateway keeps its addresses for now; to apply LISTEN: `litellm-units apply`\n"
            ),
            "{ran:?}"
        );
        assert_eq!(self.restarted_since(&before), [""; 0]);
        let plan = self.units(&["apply", "--dry-run"]).ok();
        assert!(
            plan.ends_with(&format!(
                "# restart litellm.service: FORWARDED_ALLOW_IPS added, LISTEN changed, OPENAI_API_KEY added, certs/private.pem added, config/litellm-config.yaml changed, files/google.json added\n\
                 # move the gateway from 127.0.0.1:24157 to 127.0.0.1:24157 [::1]:4000 {}\n",
                self.socket()
            )),
            "{plan}"
        );
        self.units(&["apply"]).ok();
        assert_eq!(self.restarted_since(&before), ["litellm"]);
        assert_eq!(self.jq(".state"), "\"healthy\"\n");
        self.addresses();
        self.files_arrive();
        assert_eq!(self.bash("podman ps -q --filter name=standby").ok(), "");

        // Podman asks for every secret of the container with each command in it, also for one that is gone.
        self.bash(&format!(
            "cp -p {env} /tmp/env; sed -i /^OPENAI_API_KEY=/d {env}"
        ))
        .ok();
        let words = [
            "exec",
            "-T",
            "litellm",
            "--",
            "sh",
            "-c",
            "echo \"<$OPENAI_API_KEY>\"",
        ];
        assert_eq!(self.units(&words).ok(), "<>\n");
        let doctor = self.units(&["doctor"]);
        assert!(
            doctor
                .stdout
                .contains("\nok       dns: the gateway finds postgres and redis by name\n"),
            "{doctor:?}"
        );
        self.bash(&format!("cp -p /tmp/env {env}")).ok();
    }

    /// Starts a provider whose certificate is of a private authority, and has the gateway know it. Returns the
    /// authority's certificate.
    fn private_provider(&self) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let name = "a private authority";
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        // What Python demands of certificates since 3.13.
        parameters.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = parameters.self_signed(&key).unwrap();
        let authority = rcgen::Issuer::from_params(&parameters, &key);
        let own = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["provider".into()]).unwrap();
        parameters.use_authority_key_identifier_extension = true;
        let server = parameters.signed_by(&own, &authority).unwrap();
        let place = format!("/tmp/provider-{}", self.who.user());
        self.bash(&format!("mkdir {place}")).ok();
        let text = format!("{}{}", server.pem(), own.serialize_pem());
        self.host
            .write(self.who, &format!("{place}/server.pem"), &text);
        self.host
            .write(self.who, &format!("{place}/provider.py"), PROVIDER);
        let files = format!("{}/files", self.who.deployment());
        self.bash(&format!(
            "podman run --detach --name provider --network litellm --volume {place}:/provider:ro --entrypoint python3 \
               ghcr.io/berriai/litellm:v1.108.14 /provider/provider.py
             sed -i '/^model_list:/a\\  - model_name: private\\n    litellm_params: {{model: openai/private, api_base: \"https://provider:8443\", api_key: none}}' \
               {}/config/litellm-config.yaml
             (umask 077; echo '{{}}' >{files}/google.json)",
            self.who.deployment()
        ))
        .ok();
        // Without certs/, the gateway does not trust it.
        let words = "import urllib.request as u; u.urlopen('https://provider:8443', b'')";
        self.host.wait("the provider", TIMEOUT, |_| {
            let ran = self.bash(&format!("podman exec litellm python3 -c \"{words}\""));
            if ran.stderr.contains("CERTIFICATE_VERIFY_FAILED") {
                Ok(())
            } else {
                Err(format!("{ran:?}"))
            }
        });
        certificate.pem()
    }

    /// The gateway trusts the authorities in certs/, and has the files of files/, which only it can read.
    fn files_arrive(&self) {
        let master = self.host.env(self.who);
        let master = master.get("LITELLM_MASTER_KEY").unwrap();
        let chat = format!(
            "curl -sSf -H 'Authorization: Bearer {master}' -H 'Content-Type: application/json' \
               -d '{{\"model\":\"private\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}' \
               http://127.0.0.1:24157/v1/chat/completions | jq -r '.choices[0].message.content'"
        );
        assert_eq!(self.bash(&chat).ok(), "in private\n");
        let read = "podman exec litellm cat /app/files/google.json; ! podman exec litellm touch /app/files/a 2>/dev/null";
        assert_eq!(self.bash(read).ok(), "{}\n");
        self.bash("podman rm --force --time 0 provider").ok();
    }

    /// The gateway's Unix socket.
    fn socket(&self) -> &'static str {
        match self.who {
            Who::Root => "/run/litellm/litellm.sock",
            Who::Operator => "/run/user/1000/litellm/litellm.sock",
        }
    }

    /// A group that may connect to it.
    fn group(&self) -> &'static str {
        match self.who {
            Who::Root => "www-data",
            Who::Operator => "operator",
        }
    }

    /// The gateway answers at each of its addresses.
    fn addresses(&self) {
        let socket = self.socket();
        for place in [
            "http://127.0.0.1:24157",
            "'http://[::1]:4000'",
            &format!("--unix-socket {socket} http://localhost"),
        ] {
            let curl = format!("curl -sSf {place}/health/readiness | jq -r .db");
            assert_eq!(self.bash(&curl).ok(), "connected\n", "{place}");
        }
        assert_eq!(
            self.bash(&format!("stat -c '%a %G' {socket}")).ok(),
            format!("660 {}\n", self.group())
        );
        // As behind a reverse proxy, beside those that FORWARDED_ALLOW_IPS names.
        let page = "curl -sS -o /dev/null -w '%{redirect_url}' -H 'Host: llm.example.com' -H 'X-Forwarded-Proto: https'";
        for place in [
            "'http://[::1]:4000/ui'",
            &format!("--unix-socket {socket} http://localhost/ui"),
        ] {
            let page = self.bash(&format!("{page} {place}"));
            assert_eq!(page.ok(), "https://llm.example.com/ui/", "{place}");
        }
    }

    /// A start that can't succeed ends at once and says why; systemd does not try again.
    fn typos_fail_the_start(&self) {
        let config = format!("{}/config/litellm-config.yaml", self.who.deployment());
        self.bash(&format!(
            "cp -p {config} /tmp/config; echo 'a: [' >>{config}"
        ))
        .ok();
        let restart = format!(
            "timeout 60 {} restart litellm.service",
            self.who.systemctl()
        );
        let ran = self.bash(&restart);
        assert!(![0, 124].contains(&ran.code), "{ran:?}");
        for (name, value) in [("ActiveState", "failed"), ("NRestarts", "0")] {
            assert_eq!(self.host.property(self.who, "litellm.service", name), value);
        }
        let doctor = self.units(&["doctor"]);
        assert!(
            doctor.code == 1
                && doctor
                    .stdout
                    .contains("litellm.service failed: exited with status 78")
                && doctor.stdout.contains(&format!("| error: {config}:"))
                && doctor.stdout.contains(": not valid YAML: "),
            "{doctor:?}"
        );
        self.bash(&format!("cp -p /tmp/config {config}")).ok();
        self.units(&["up"]).ok();
    }

    /// A line that can't be read keeps neither the state from being shown nor the data from being saved.
    fn damaged_ledger(&self) {
        let ledger = format!("{}/.litellm-units/ledger.jsonl", self.who.deployment());
        self.bash(&format!("cp -p {ledger} /tmp/ledger; echo '{{' >>{ledger}"))
            .ok();
        for (words, warning) in [
            (&["status"][..], "warning: can't determine the release: "),
            (&["backup"], "warning: no older backup is removed: "),
        ] {
            let ran = self.units(words);
            assert!(
                ran.code == 0 && ran.stderr.starts_with(&format!("{warning}{ledger}, line ")),
                "{ran:?}"
            );
        }
        self.bash(&format!("cp -p /tmp/ledger {ledger}")).ok();
        let files = format!(
            "jq -r '.files[] | select(.name | test(\"/(certs|files)/\")) | \"\\(.mode) \\(.name)\"' {}/backups/*/manifest.json | sort",
            self.who.deployment()
        );
        assert_eq!(
            self.bash(&files).ok(),
            "384 deployment/files/google.json\n420 deployment/certs/private.pem\n"
        );
    }

    fn gateway_restarts(&self) {
        for (words, hands_over) in [
            (&["restart", "litellm"][..], false),
            (&["restart", "--handover", "litellm"], true),
        ] {
            let before = self.runs();
            let ran = self.units(words);
            let told = ran.stderr.contains("a second gateway serves while");
            assert_eq!(told, hands_over, "{}", ran.stderr);
            ran.ok();
            assert_eq!(self.restarted_since(&before), ["litellm"]);
        }
    }

    fn password_of_a_server_changes(&self) {
        let env = format!("{}/.env", self.who.deployment());
        let before = self.runs();
        self.bash(&format!(
            "sed -i 's/^REDIS_PASSWORD=.*/REDIS_PASSWORD=another/; s,^LISTEN=.*,LISTEN={},' {env}",
            self.socket()
        ))
        .ok();
        self.units(&["apply"]).ok();
        assert_eq!(self.restarted_since(&before), ["redis", "litellm"]);
        let address = format!("\"unix:{}\"\n", self.socket());
        assert_eq!(self.jq(".gateway.address"), address);
        assert_eq!(self.units(&["health"]).code, 0);
        self.units(&["key", "list"]).ok();
        assert_eq!(
            self.bash("ss -Hltn '( sport = :24157 or sport = :4000 )'")
                .ok(),
            ""
        );
        let ping = "REDISCLI_AUTH=another litellm-units exec -T -e REDISCLI_AUTH=another redis -- redis-cli ping";
        assert_eq!(self.bash(ping).ok(), "PONG\n");
    }

    /// What the database contradicts is refused before anything is stopped.
    fn edits_that_can_only_fail(&self) {
        let path = format!("{}/.env", self.who.deployment());
        let psql = |sql: &str| {
            let words = [
                "exec", "-T", "postgres", "--", "psql", "-qU", "litellm", "-c", sql,
            ];
            self.units(&words).ok()
        };
        let credential = "INSERT INTO \"LiteLLM_CredentialsTable\" (credential_id, credential_name, credential_values, created_by, updated_by, updated_at) VALUES ('1', 'one', '{}', 'me', 'me', now())";
        psql(credential);
        let before = self.runs();
        // No name of a server, though Podman takes it for one of its containers.
        let server = self
            .bash("podman inspect -f '{{.Id}}' litellm-redis | cut -c -40")
            .ok();
        let server = server.trim();
        let url = format!("postgresql://me:S3CR3T@{server}:5432/litellm");
        let unknown = format!("names the server {server}, and this host knows no such name\n");
        let service = format!(
            "hint: {server} may be a service of a compose file: remove DATABASE_URL to use the local PostgreSQL, or write the full name or the address of the server\n"
        );
        for (name, value, words, hint) in [
            (
                "LISTEN",
                "127.0.0.1:5000 /run/litellm/litellm.sock",
                "contains 127.0.0.1:5000, which is taken by another process\n",
                "hint: find and stop it: `ss -ltnp 'sport = :5000'`\n",
            ),
            (
                "POSTGRES_PASSWORD",
                "other",
                "is not the password of the PostgreSQL in data/postgres, which keeps it whatever .env says\n",
                "/.env; to change it in both: `litellm-units secrets rotate postgres`\n",
            ),
            (
                "POSTGRES_DB",
                "other",
                "is not a database of the PostgreSQL in data/postgres, which keeps the name of its first start\n",
                "/.env; another database would have no keys\n",
            ),
            (
                "LITELLM_SALT_KEY",
                "sk-other",
                "is not the one that encrypts what the database holds (LiteLLM_CredentialsTable), so LiteLLM could not read it any more\n",
                "/.env; to replace it: `litellm-units secrets rotate salt`\n",
            ),
            // Without it, LiteLLM takes the master key.
            (
                "LITELLM_SALT_KEY",
                "",
                "is not the one that encrypts what the database holds (LiteLLM_CredentialsTable), so LiteLLM could not read it any more\n",
                "/.env; to replace it: `litellm-units secrets rotate salt`\n",
            ),
            ("DATABASE_URL", &url, &unknown, &service),
        ] {
            self.bash(&format!("cp -p {path} /tmp/env")).ok();
            self.host.set_env(self.who, &[(name, value)]);
            for command in [&["apply", "--dry-run"][..], &["apply"], &["up"]] {
                let ran = self.units(command);
                assert!(
                    ran.code == 78
                        && ran.stderr.starts_with(&format!("error: {path}, line "))
                        && ran.stderr.contains(&format!(": {name} {words}hint: "))
                        && ran.stderr.ends_with(hint),
                    "{command:?}: {ran:?}"
                );
            }
            let doctor = self.units(&["doctor"]);
            assert!(
                doctor.code == 1 && doctor.stdout.contains(&format!(": {name} {words}")),
                "{doctor:?}"
            );
            self.bash(&format!("cp -p /tmp/env {path}")).ok();
        }
        assert_eq!(self.restarted_since(&before), [""; 0]);

        psql("DELETE FROM \"LiteLLM_CredentialsTable\"");
        self.host
            .set_env(self.who, &[("LITELLM_SALT_KEY", "sk-other")]);
        let ran = self.units(&["apply", "--dry-run"]);
        assert_eq!(
            ran.all(),
            (
                0,
                "# restart litellm.service: LITELLM_SALT_KEY changed\n".into(),
                "warning: LITELLM_SALT_KEY was changed; the database holds nothing that the previous one encrypts\n".into(),
            )
        );
        self.bash(&format!("cp -p /tmp/env {path}")).ok();

        // With a stopped database, which has to be asked all the same.
        self.units(&["down"]).ok();
        self.host
            .set_env(self.who, &[("POSTGRES_PASSWORD", "other")]);
        let ran = self.units(&["up"]);
        assert!(
            ran.code == 78
                && ran
                    .stderr
                    .contains(": POSTGRES_PASSWORD is not the password "),
            "{ran:?}"
        );
        self.bash(&format!("cp -p /tmp/env {path}")).ok();
        self.units(&["up"]).ok();
    }

    fn broken_edit_is_taken_back(&self) {
        let config = format!("{}/config/litellm-config.yaml", self.who.deployment());
        let good = self.bash(&format!("cat {config}")).ok();
        // By hand, so that the last good configuration has a password that PostgreSQL no longer knows.
        self.bash("litellm-units exec -T postgres -- psql -qU litellm -c \"ALTER ROLE litellm PASSWORD 'by-hand'\"")
            .ok();
        self.host
            .set_env(self.who, &[("POSTGRES_PASSWORD", "by-hand")]);
        let env = format!("{}/.env", self.who.deployment());
        self.bash(&format!("echo LITELLM_REPLICA=2 >>{env}")).ok();
        self.bash(&format!(
            "echo 'raise RuntimeError(\"a test says so\")' >{}/config/broken.py
             printf 'litellm_settings:\\n  callbacks: [broken.handler]\\n' >> {config}",
            self.who.deployment()
        ))
        .ok();
        let edited = self.bash(&format!("cat {config}")).ok();
        let before = self.runs();
        let ran = self.units(&["apply"]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("RuntimeError: a test says so")
                && ran
                    .stderr
                    .contains("the changes were rolled back; the gateway is ready"),
            "{}",
            ran.stderr
        );
        // The cause stands out, and all the rest is one command away.
        assert!(
            !ran.stderr.contains("Thank you for using LiteLLM")
                && ran
                    .stderr
                    .contains("(all of it: `litellm-units logs --since "),
            "{}",
            ran.stderr
        );
        let misspelt =
            "LITELLM_REPLICA is no setting of litellm-units; did you mean LITELLM_REPLICAS?\n";
        assert_eq!(ran.stderr.matches(misspelt).count(), 1, "{}", ran.stderr);
        // Once each, and not for the callback, which a second gateway found out: for the password.
        assert_eq!(
            self.restarted_since(&before),
            ["postgres", "migrate", "litellm"]
        );
        assert_eq!(self.bash(&format!("cat {config}")).ok(), good);
        let env = self.host.env(self.who);
        assert_eq!(env.get("POSTGRES_PASSWORD"), Some("by-hand"));
        assert_eq!(self.jq(".state"), "\"healthy\"\n");
        let hint = ran.stderr.lines().last().unwrap();
        let kept = hint
            .strip_prefix("hint: your changes are kept in ")
            .unwrap();
        assert_eq!(
            self.bash(&format!("cat {kept}/config/litellm-config.yaml"))
                .ok(),
            edited
        );
    }

    /// From its file to the gateway's own request, and away again. It concerns nothing else.
    fn own_unit(&self) {
        let directory = format!("{}/extra.d", self.who.deployment());
        let file = format!("{directory}/filter.container");
        let write = |text: &str| self.host.write(self.who, &file, text);
        let plan = || self.units(&["apply", "--dry-run"]).ok();
        let page = || {
            let script = "import urllib.request as r; print(r.urlopen('http://filter:8000/page', timeout=5).read().decode())";
            let words = ["exec", "-T", "litellm", "--", "python3", "-c", script];
            self.units(&words).ok()
        };
        let before = self.runs();
        self.bash(&format!("mkdir {directory}")).ok();
        self.host
            .write(self.who, &format!("{directory}/page"), "one");
        write(&OWN.replace(":v1.108.14", ":latest"));
        let ran = self.units(&["apply"]);
        let refused = format!(
            "error: {file}, line 2: \"ghcr.io/berriai/litellm:latest\" has the floating tag"
        );
        assert!(
            ran.code == 78 && ran.stderr.starts_with(&refused),
            "{ran:?}"
        );
        write(OWN);
        assert!(plan().ends_with("# start litellm-extra-filter.service\n"));
        self.units(&["apply"]).ok();
        assert_eq!(page(), "one\n");
        let status = self.units(&["status"]).ok();
        let row = status.lines().find(|line| line.starts_with("filter "));
        assert!(
            row.is_some_and(|row| row.contains("active (running)") && row.contains(" healthy ")),
            "{status}"
        );
        let key = self
            .host
            .env(self.who)
            .get("OPENAI_API_KEY")
            .unwrap()
            .to_owned();
        let words = [
            "exec",
            "-T",
            "filter",
            "--",
            "sh",
            "-c",
            "echo $OPENAI_API_KEY",
        ];
        assert_eq!(self.units(&words).ok(), format!("{key}\n"));
        let leaks = format!("podman inspect litellm-extra-filter | grep -c {key} || true");
        assert_eq!(self.bash(&leaks).ok(), "0\n");
        let pulled = self.units(&["pull", "--missing", "filter"]);
        assert_eq!((pulled.code, &*pulled.stderr), (0, ""));
        let ran = self.units(&["restart", "filters"]);
        assert!(ran.stderr.starts_with("error: there is no service \"filters\" on this host\nhint: the services here: postgres, redis, migrate, litellm, filter;"), "{ran:?}");

        self.host
            .write(self.who, &format!("{directory}/page"), "two");
        assert_eq!(
            plan(),
            "# restart litellm-extra-filter.service: extra.d/page changed\n"
        );
        self.units(&["apply"]).ok();
        assert_eq!(page(), "two\n");
        assert!(self.units(&["logs", "filter"]).ok().contains("filter | "));

        write(&OWN.replace("http.server", "nonsense"));
        let ran = self.units(&["apply"]);
        assert!(
            ran.code == 1
                && ran.stderr.contains("No module named nonsense")
                && ran
                    .stderr
                    .contains("the changes were rolled back; the gateway is ready"),
            "{ran:?}"
        );
        assert_eq!(
            (page(), self.bash(&format!("cat {file}")).ok()),
            ("two\n".into(), OWN.into())
        );

        self.units(&["stop", "filter"]).ok();
        assert_eq!(self.units(&["status"]).code, 4);
        self.units(&["start", "filter"]).ok();
        self.units(&["backup"]).ok();
        self.bash(&format!(
            "rm {file}; grep -q deployment/extra.d/filter.container {}/backups/*/manifest.json",
            self.who.deployment()
        ))
        .ok();
        assert!(plan().ends_with("# stop litellm-extra-filter.service\n"));
        self.units(&["apply"]).ok();
        let left = format!(
            "podman ps -aq --filter name=extra; ls {} | grep extra || true",
            self.who.quadlets()
        );
        assert_eq!(self.bash(&left).ok(), "");
        assert_eq!(self.restarted_since(&before), [""; 0]);
        assert_eq!(self.jq(".state"), "\"healthy\"\n");
    }

    /// With the stack; and `podman system prune`, or somebody, may take it away.
    fn network_comes_and_goes(&self) {
        let exists = || self.bash("podman network exists litellm").code == 0;
        assert!(!exists());
        self.units(&["start", "postgres"]).ok();
        assert!(exists());
        self.units(&["stop", "postgres"]).ok();
        self.bash("podman system prune --force").ok();
        assert!(!exists());
        self.units(&["start", "postgres"]).ok();
        assert!(exists());
        // Nobody has to start it again.
        let container = || self.bash("podman inspect --format={{.Id}} litellm-postgres");
        let before = container().ok();
        self.bash("podman network rm --force litellm").ok();
        self.host.wait(
            "PostgreSQL and its network",
            Duration::from_secs(60),
            |_| {
                let now = container();
                if now.code == 0 && now.stdout != before && exists() {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            },
        );
        // What runs on a network that Podman no longer knows moves to the new one, and names resolve there.
        self.bash(
            "rm /etc/containers/networks/litellm.json 2>/dev/null || rm ~/.local/share/containers/storage/networks/litellm.json",
        )
        .ok();
        self.units(&["start", "redis"]).ok();
        self.host.wait(
            "PostgreSQL on the network of Redis",
            Duration::from_secs(60),
            |_| {
                let now = self
                    .bash("podman exec litellm-redis bash -c '</dev/tcp/litellm-postgres/5432'");
                if now.code == 0 {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            },
        );
    }

    /// `litellm-recovery.service` has the addresses while an operation runs, and lets them go.
    fn stops_beside_an_operation(&self) {
        let script = r#"
            exec 9>>"${XDG_RUNTIME_DIR:-/run}/litellm-units/lock"
            flock 9
            SYSTEMCTL restart --no-block litellm-recovery
            until [[ $(SYSTEMCTL is-active litellm-recovery) == activating ]]; do sleep 0.1; done
            litellm-units stop
            for try in {1..50}; do
                health=$(litellm-units health 2>&1 || :)
                [[ $health != *'Connection refused'* ]] || break
                sleep 0.2
            done
            printf '%s\n' "$health"
            SYSTEMCTL is-active litellm-recovery || :"#;
        let script = script.replace("SYSTEMCTL", self.who.systemctl());
        let health = self.bash(&script).ok();
        assert!(
            health.contains("Connection refused") && health.ends_with("\nactivating\n"),
            "{health}"
        );
    }

    fn stops_and_starts(&self) {
        let before = self.runs();
        self.units(&["restart", "redis"]).ok();
        assert_eq!(self.restarted_since(&before), ["redis"]);
        self.units(&["stop", "postgres"]).ok();
        assert_eq!(self.units(&["status"]).code, 4);
        assert_eq!(self.jq(".state"), "\"degraded\"\n");
        self.units(&["start", "postgres"]).ok();
        assert_eq!(self.restarted_since(&before), ["postgres", "redis"]);
        // Each start of a container asks for these, however many there are in a moment.
        let again = format!(
            "{} start litellm-images@redis.service",
            self.who.systemctl()
        );
        self.bash(&format!("for try in {{1..8}}; do {again}; done"))
            .ok();

        self.stops_beside_an_operation();
        assert_eq!(self.units(&["status"]).code, 3);
        assert_eq!(self.jq(".state"), "\"stopped\"\n");
        assert_eq!(self.units(&["health"]).code, 3);
        let refused = "error: no gateway is running\nhint: start it: `litellm-units up`\n";
        let debug = self.units(&["debug", "on"]).all();
        assert_eq!(debug, (1, String::new(), refused.to_owned()));
        // One that answers but has no database: LiteLLM itself says so two minutes late.
        let lacking = r#"perl -MIO::Socket::INET -MIO::Socket::UNIX -e '
            $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1:24157", Listen => 1, ReuseAddr => 1);
            print "listening\n"; close STDOUT; $client = $listener->accept; sysread $client, $request, 4096;
            $answer = "{\"status\":\"healthy\",\"db\":\"Not connected\"}";
            print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($answer) . "\r\n\r\n$answer"' > /tmp/lacking &
            until grep -q listening /tmp/lacking; do sleep 0.1; done
            litellm-units health || echo "left with $?""#;
        // Where `password_of_a_server_changes` has moved the gateway.
        let lacking = match self.who {
            Who::Root => lacking.replace(
                "IO::Socket::INET->new(LocalAddr => \"127.0.0.1:24157\", Listen => 1, ReuseAddr => 1)",
                "unlink(\"/run/litellm/litellm.sock\") && IO::Socket::UNIX->new(Local => \"/run/litellm/litellm.sock\", Listen => 1)",
            ),
            Who::Operator => lacking.to_owned(),
        };
        assert_eq!(
            self.bash(&lacking).ok(),
            "answers, but is not ready: database: Not connected\nleft with 4\n"
        );
        let exec = self.units(&["exec", "redis", "--", "true"]);
        assert_eq!(
            (exec.code, exec.stderr.as_str()),
            (
                1,
                "error: litellm-redis.service is inactive (dead), so no command can run in its container\n\
                 hint: start it: `litellm-units start redis`\n"
            )
        );

        // Ctrl-C while it starts: while the gateway imports, and not while Podman makes a container, of which it may
        // leave a layer that it can neither use nor remove.
        let ran = self.bash(
            "litellm-units start & until podman ps | grep -q ' litellm$'; do sleep 0.1; done; \
             litellm-units status --json | jq -r .state || true; kill -INT %1; wait %1 || echo \"left with $?\"",
        );
        assert_eq!(ran.stdout, "starting\nleft with 130\n", "{}", ran.stderr);
        assert!(
            ran.stderr.ends_with(
                "error: interrupted; still starting: litellm.service\n\
                 hint: see the state: `litellm-units status`; to stop: `litellm-units down`\n"
            ),
            "{}",
            ran.stderr
        );
        self.units(&["down"]).ok();
        assert_eq!(self.jq(".state"), "\"stopped\"\n");
        // However early it was asked to.
        let killed = "journalctl --no-pager | grep 'timed out. Killing' || true";
        assert_eq!(self.host.bash(Who::Root, killed).ok(), "");
        self.network_comes_and_goes();

        // A deadline that can't be kept.
        let ran = self.units(&["start", "--timeout", "1"]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(
            ran.stderr.contains(" was not ready after 1.")
                || ran.stderr.contains(" did not finish within 1."),
            "{}",
            ran.stderr
        );
        self.units(&["down"]).ok();
    }
}

/// `status --watch` on a terminal of 80 columns and 24 rows.
struct LiveScreen {
    child: Child,
    keys: ChildStdin,
    terminal: Arc<Mutex<vt100::Parser>>,
}

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).unwrap()
}

impl LiveScreen {
    fn open(host: &TestHost, who: Who) -> Self {
        // `script` gives it a terminal; what it shows goes through a pipe to our own.
        let inner = "stty rows 24 cols 80; export TERM=xterm-256color; tty > /tmp/terminal; \
                     litellm-units status --watch; echo left $?; stty -a | grep -o ' icanon\\| echo '";
        let script = [
            "script",
            "--quiet",
            "--flush",
            "--command",
            inner,
            "/dev/null",
        ];
        let mut child = host
            .command(who, &script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let keys = child.stdin.take().unwrap();
        let mut shown = child.stdout.take().unwrap();
        let terminal = Arc::new(Mutex::new(vt100::Parser::new(cells(24), cells(80), 0)));
        let writer = Arc::clone(&terminal);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                writer.lock().unwrap().process(&bytes[..count]);
            }
        });
        Self {
            child,
            keys,
            terminal,
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, day: &Day<'_>, rows: u16, columns: u16) {
        self.terminal
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(cells(rows), cells(columns));
        day.bash(&format!(
            "stty -F $(cat /tmp/terminal) rows {rows} cols {columns}"
        ))
        .ok();
    }

    fn rows(&self) -> Vec<String> {
        let terminal = self.terminal.lock().unwrap();
        let (_, columns) = terminal.screen().size();
        terminal
            .screen()
            .rows(0, columns.get())
            .map(|row| row.trim_end().to_owned())
            .collect()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, good: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = std::time::Instant::now() + TIMEOUT;
        loop {
            let rows = self.rows();
            if good(&rows) {
                return rows;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "waited in vain for {what}: {rows:#?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// After the program has ended: the screen, the cursor and the keyboard are as before.
    #[track_caller]
    fn assert_restored(mut self, left: &str) {
        self.wait_for("the shell's words", |rows| {
            rows.iter().any(|row| row.starts_with("left "))
        });
        self.child.wait().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let rows = self.rows();
        let words: Vec<&str> = rows
            .iter()
            .map(|row| row.trim())
            .filter(|row| !row.is_empty())
            .collect();
        assert_eq!(words, [left, "icanon", "echo"]);
        let terminal = self.terminal.lock().unwrap();
        let screen = terminal.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor());
    }
}

/// Everything that a command can be refused, each with its own words; and another machine.
#[test]
fn refusals_and_other_machines() {
    let host = TestHost::boot("daily-refusals");
    let nothing = "no unit of the stack is installed on this host; to install and start it: `litellm-units up`\n\
                   gateway http://127.0.0.1:24157: does not answer: Connection refused (os error 111)\n";
    assert_eq!(
        host.units(Who::Root, &["status"]).all(),
        (3, nothing.into(), String::new())
    );
    let missing = "error: there is no litellm-redis.service on this host\n\
                   hint: install the units with `litellm-units generate`; if .env has DATABASE_URL or REDIS_HOST, that server is external\n";
    for words in [&["exec", "redis", "id"], &["restart", "redis", "-t9"]] {
        assert_eq!(
            host.units(Who::Root, words).all(),
            (1, String::new(), missing.into())
        );
    }
    assert_eq!(
        host.units(Who::Root, &["logs"]).all(),
        (
            1,
            String::new(),
            "error: no unit of the stack is installed on this host\n\
             hint: install the units first: `litellm-units generate`\n"
                .into()
        )
    );
    host.units(Who::Root, &["generate"]).ok();
    // Another directory is not a second deployment; and where the one there is lies need not be said again.
    let ran = host.bash(Who::Root, "LITELLM_DIR=/srv/other litellm-units up");
    assert_eq!(
        ran.all(),
        (
            78,
            String::new(),
            "error: the installed units run the deployment in /opt/litellm-server, not the one in /srv/other\n\
             hint: leave out `--litellm-dir` and LITELLM_DIR; or, to change to this one, run `litellm-units down --remove` first, which keeps all data\n"
                .into()
        )
    );
    let moved = r#"test ! -e /srv/other; litellm-units down --remove; mv /opt/litellm-server "/srv/our gateway"
        LITELLM_DIR="/srv/our gateway" litellm-units generate
        litellm-units generate --check; test ! -e /opt/litellm-server"#;
    host.sh(Who::Root, moved);
    let refused = |ran: Ran, message: &str, hint: &str| {
        assert_eq!(
            (ran.code, ran.stderr.lines().collect::<Vec<_>>()),
            (1, vec![message, hint]),
        );
    };
    refused(
        host.units(Who::Operator, &["--system", "stop", "redis"]),
        "error: can't stop litellm-redis.service: Interactive authentication required.",
        "hint: run the command as root (sudo, or `--host root@HOST`), or manage a deployment of your own with `--user`",
    );
    refused(
        host.bash(
            Who::Root,
            "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/no-bus litellm-units status",
        ),
        "error: can't reach systemd over the system D-Bus: failed to connect to `unix:path=/run/no-bus`: No such file or directory (os error 2)",
        "hint: check that this host booted with systemd, and that D-Bus runs: `systemctl status dbus`",
    );
    let without_session = "setpriv --reuid 1001 --regid 1001 --clear-groups \
                           env -i PATH=$PATH HOME=/home/nolinger litellm-units status";
    let ran = host.bash(Who::Root, without_session);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with("error: can't reach the user's systemd over D-Bus: ")
            && ran.stderr.contains("\nhint: log in as that user directly"),
        "{}",
        ran.stderr
    );

    // No key is there yet.
    let there = "--host=root@127.0.0.1";
    let keys = "mkdir -p -m 700 ~/.ssh; ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519; \
                ssh-keyscan 127.0.0.1 2>/dev/null > ~/.ssh/known_hosts";
    host.bash(Who::Root, "systemctl start ssh; for i in $(seq 50); do ss -ltn | grep -q :22 && break; sleep 0.1; done")
        .ok();
    host.bash(Who::Operator, keys).ok();
    for (command, hint) in [
        (
            "status",
            "hint: test the connection: `ssh root@127.0.0.1 true`",
        ),
        (
            "stop",
            "hint: test the connection with `ssh root@127.0.0.1 true`, then the bridge with `ssh root@127.0.0.1 systemd-stdio-bridge --version`",
        ),
    ] {
        let ran = host.units(Who::Operator, &[there, command]);
        assert_eq!(
            (ran.code, ran.stderr.lines().last()),
            (1, Some(hint)),
            "{}",
            ran.stderr
        );
    }
    host.bash(
        Who::Root,
        "install -d -m 700 ~/.ssh; cp /home/operator/.ssh/id_ed25519.pub ~/.ssh/authorized_keys; \
         install -m 600 -o operator /home/operator/.ssh/id_ed25519.pub /home/operator/.ssh/authorized_keys",
    )
    .ok();

    // Over the bridge.
    host.units(Who::Operator, &[there, "start", "redis"]).ok();
    let active = "systemctl is-active litellm-redis.service || true";
    assert_eq!(host.bash(Who::Root, active).ok(), "active\n");
    // A user's own systemd there, not the system's.
    refused(
        host.units(Who::Operator, &["--host", "127.0.0.1", "stop", "redis"]),
        "error: there is no litellm-redis.service on this host",
        "hint: install the units with `litellm-units generate`; if .env has DATABASE_URL or REDIS_HOST, that server is external",
    );
    // Through the program there: exit status, streams and quoting.
    let ran = host.bash(
        Who::Operator,
        "echo from stdin | litellm-units --host root@127.0.0.1 exec -T -e \"A=it's \\$HOME\" redis -- \
         sh -c 'cat; echo \"$A\"; exit 7' || echo \"left with $?\"",
    );
    assert_eq!(ran.ok(), "from stdin\nit's $HOME\nleft with 7\n");
    assert_eq!(host.units(Who::Operator, &[there, "status"]).code, 4);
    host.units(Who::Operator, &[there, "down"]).ok();
    assert_eq!(host.bash(Who::Root, active).ok(), "inactive\n");
    assert_eq!(host.units(Who::Operator, &[there, "status"]).code, 3);
    let ran = host.bash(
        Who::Root,
        "cd /tmp; mv /usr/bin/litellm-units .; su operator -c '/tmp/litellm-units --host root@127.0.0.1 health'",
    );
    assert_eq!(
        (ran.code, ran.stderr.lines().last()),
        (
            1,
            Some(
                "hint: install it there, where ssh finds it: `ssh root@127.0.0.1 command -v litellm-units`"
            )
        ),
        "{}",
        ran.stderr
    );
    refused(
        host.bash(
            Who::Root,
            "PATH=/nowhere /tmp/litellm-units --host root@127.0.0.1 health",
        ),
        "error: ssh is not installed on this host",
        "hint: install it: `apt install openssh-client` or `dnf install openssh-clients`",
    );
}

//! What is busy is not ended, what hangs is replaced, and both are said.

use std::time::{Duration, Instant};

use crate::support::gateway::{
    Load, allow_mock_delays, new_key, process, running_process, sql, wait_for_chat,
};
use crate::support::host::{TestHost, Who};

/// A callback that blocks the event loop for as many seconds as the user of a request names.
const CALLBACK: &str = "\
import time
from litellm.integrations.custom_logger import CustomLogger


class Blocking(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        name = data.get(\"user\") or \"\"
        if name.startswith(\"block-\"):
            time.sleep(float(name.removeprefix(\"block-\")))
        return data


blocking = Blocking()
";

/// A provider that streams a word each second until it is told to end.
const PROVIDER: &str = r#"
import http.server, json, threading
told = threading.Event()
class Provider(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            told.set()
        self.send_response(204)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        told.clear()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        count, end = 0, False
        while not end:
            count, end = count + 1, told.wait(1)
            choice = {"index": 0, "delta": {"role": "assistant", "content": f"{count} "}, "finish_reason": "stop" if end else None}
            chunk = {"id": "1", "created": 1, "model": "slow", "object": "chat.completion.chunk", "choices": [choice]}
            self.wfile.write(b"data: %s\n\n" % json.dumps(chunk).encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
http.server.ThreadingHTTPServer(("", 8000), Provider).serve_forever()
"#;

/// A callback that keeps as many MiB of memory as the user of a request names.
const GROWTH: &str = "\
from litellm.integrations.custom_logger import CustomLogger

held = []


class Growing(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        name = data.get(\"user\") or \"\"
        if name.startswith(\"grow-\"):
            held.append(b\"x\" * (int(name.removeprefix(\"grow-\")) << 20))
        return data


growing = Growing()
";

/// Asks over 400 connections at once for `$ARGV[1]` seconds, and waits for every answer. Prints how many there were,
/// and fails if one was not 200.
const CROWD: &str = r#"
use strict; use warnings; use IO::Select; use IO::Socket::INET;
my ($key, $seconds) = @ARGV;
my $body = '{"model":"hello","messages":[{"role":"user","content":"hi"}]}';
my $request = "POST /v1/chat/completions HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer $key\r\n"
    . "Content-Type: application/json\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
my ($end, $select, %answer, $good, %bad) = (time + $seconds, IO::Select->new, (), 0);
sub ask {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1:24157') or return $bad{"connect: $!"}++;
    syswrite $socket, $request;
    $answer{$socket} = '';
    $select->add($socket);
}
ask() for 1 .. 400;
while ($select->count) {
    my @ready = $select->can_read(180) or die "no answer for 180 s\n";
    for my $socket (@ready) {
        my $got = sysread $socket, $answer{$socket}, 65536, length $answer{$socket};
        next if $got;
        $select->remove($socket);
        my $answer = delete $answer{$socket};
        close $socket;
        if (defined $got && $answer =~ m{^HTTP/1.\d 200 }) { $good++ }
        else { $bad{defined $got ? substr $answer, 0, 30 : "reset: $!"}++ }
        ask() if time < $end;
    }
}
print "$good\n";
die join("\n", map { "$bad{$_} of: $_" } keys %bad), "\n" if %bad;
"#;

/// Begins a chat completion whose callback blocks the gateway.
fn block(host: &TestHost, key: &str, seconds: u32) -> std::process::Child {
    let body = format!(
        r#"{{"model":"hello","user":"block-{seconds}","messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    let header = format!("Authorization: Bearer {key}");
    host.command(
        Who::Root,
        &[
            "curl",
            "-sSf",
            "--max-time",
            "200",
            "-H",
            &header,
            "-H",
            "Content-Type: application/json",
            "-d",
            &body,
            "http://127.0.0.1:24157/v1/chat/completions",
        ],
    )
    .stdout(std::process::Stdio::piped())
    .stderr(std::process::Stdio::piped())
    .spawn()
    .unwrap()
}

fn invocation(host: &TestHost) -> String {
    host.property(Who::Root, "litellm.service", "InvocationID")
}

/// Lines of the gateway's journal since a time in seconds.
fn said(host: &TestHost, since: &str, words: &str) -> usize {
    let script =
        format!("journalctl -u litellm --since @{since} -o cat | grep -cF '{words}' || true");
    host.sh(Who::Root, &script).trim().parse().unwrap()
}

fn now(host: &TestHost) -> String {
    host.sh(Who::Root, "date +%s").trim().to_owned()
}

/// Of a gateway with many requests, `health` and `status` say that it is ready, or busy; never another thing.
fn a_crowd_is_served(host: &TestHost, key: &str) {
    let run = invocation(host);
    host.write(Who::Root, "/tmp/crowd", CROWD);
    let mut crowd = host
        .command(Who::Root, &["perl", "/tmp/crowd", key, "120"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = (0, 0);
    while crowd.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_secs(5));
        let health = host.units(Who::Root, &["health"]);
        if crowd.try_wait().unwrap().is_none() {
            match health.code {
                0 => asked.0 += 1,
                4 if health.stdout.starts_with("busy: ") => asked.1 += 1,
                _ => panic!("{health:?}"),
            }
        }
    }
    let output = crowd.wait_with_output().unwrap();
    let (good, bad) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{good} {bad}");
    assert!(good.trim().parse::<u32>().unwrap() > 400, "{good}");
    assert_eq!(invocation(host), run);
    eprintln!(
        "{} answers; ready {}, busy {} times",
        good.trim(),
        asked.0,
        asked.1
    );
}

/// Two minutes without a turn of the event loop: who waits is answered.
fn a_blocked_loop_goes_on(host: &TestHost, key: &str) {
    let (run, begin, old) = (
        invocation(host),
        now(host),
        process(host, Who::Root, "litellm"),
    );
    let blocking = block(host, key, 120);
    let waiting: Vec<_> = (0..5).map(|_| block(host, key, 0)).collect();
    std::thread::sleep(Duration::from_secs(40));
    let health = host.units(Who::Root, &["health"]);
    assert_eq!(health.code, 4, "{health:?}");
    assert!(health.stdout.starts_with("busy: "), "{health:?}");
    let ran = host.run(Who::Root, &["podman", "healthcheck", "run", "litellm"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for request in waiting.into_iter().chain([blocking]) {
        let output = request.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(invocation(host), run);
    assert_eq!(process(host, Who::Root, "litellm"), old);
    for (words, count) in [
        ("has been blocked for 30 s, so its requests wait", 1),
        ("time.sleep(float(name.removeprefix", 1),
        ("is no longer blocked", 1),
        ("so it ends and is replaced", 0),
    ] {
        assert_eq!(said(host, &begin, words), count, "{words}");
    }
}

/// A loop that is blocked for longer than the limit is replaced, and the journal says why. `workers`: only the one.
fn a_hung_loop_is_replaced(host: &TestHost, key: &str, workers: &str) {
    host.set_env(
        Who::Root,
        &[("LITELLM_LIVENESS_TIMEOUT", "20"), ("NUM_WORKERS", workers)],
    );
    host.units(Who::Root, &["apply"]).ok();
    let (run, begin, old) = (
        invocation(host),
        now(host),
        process(host, Who::Root, "litellm"),
    );
    let output = block(host, key, 300).wait_with_output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    wait_for_chat(host, Who::Root, key, Duration::from_secs(90));
    assert_eq!(
        said(
            host,
            &begin,
            "has been blocked for 20 s, so it ends and is replaced"
        ),
        1
    );
    assert_eq!(said(host, &begin, "time.sleep(float(name.removeprefix"), 2);
    if workers == "1" {
        assert_ne!(invocation(host), run);
    } else {
        assert_eq!(invocation(host), run);
        assert_eq!(process(host, Who::Root, "litellm"), old);
    }
}

/// A server that stands still is named by `health` and `status`, and replaced within a minute.
fn hung_servers_are_replaced(host: &TestHost, key: &str) {
    for container in ["litellm-postgres", "litellm-redis"] {
        let old = process(host, Who::Root, container);
        let begin = Instant::now();
        let processes = host.sh(
            Who::Root,
            &format!("podman top {container} hpid | tail -n +2"),
        );
        host.sh(
            Who::Root,
            &format!("kill -STOP {}", processes.replace('\n', " ")),
        );
        let named = format!("hung: {container} does not answer its health check\n");
        host.wait("health to name it", Duration::from_secs(40), |host| {
            let health = host.units(Who::Root, &["health"]);
            if health.code == 4 && health.stdout == named {
                return Ok(());
            }
            Err(format!("{health:?}"))
        });
        let status = host.units(Who::Root, &["status"]);
        assert_eq!(status.code, 4, "{status:?}");
        host.wait(
            "another process",
            Duration::from_secs(60),
            |host| match running_process(host, Who::Root, container)? {
                process if process == old => Err("still there".into()),
                _ => Ok(()),
            },
        );
        eprintln!(
            "a hung {container} was replaced after {:?}",
            begin.elapsed()
        );
        assert!(begin.elapsed() < Duration::from_secs(60));
        wait_for_chat(host, Who::Root, key, Duration::from_secs(60));
        host.wait("health", Duration::from_secs(60), |host| {
            let health = host.units(Who::Root, &["health"]);
            if health.code == 0 {
                Ok(())
            } else {
                Err(format!("{health:?}"))
            }
        });
    }
}

/// PostgreSQL that refuses connections since it recovers is neither ready nor hung.
fn a_recovery_is_waited_for(host: &TestHost) {
    let script = r#"
        check=$(podman inspect -f '{{json .Config.Healthcheck.Test}}' litellm-postgres | jq -r '.[-1]')
        podman exec litellm-postgres sh -c "pg_isready() { return ANSWER; }; $check"
    "#;
    for (answer, expected) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let ran = host.bash(Who::Root, &script.replace("ANSWER", &answer.to_string()));
        assert_eq!(ran.code, expected, "{ran:?}");
    }
    let timeout = host.property(Who::Root, "litellm-postgres.service", "TimeoutStartUSec");
    assert_eq!(timeout, "infinity");
}

/// No container but its own reaches the listener of a gateway.
fn other_containers_are_refused(host: &TestHost) {
    let connect = |from: &str, to: &str| {
        let script = format!("exec 3<>/dev/tcp/{to}/24157");
        host.run(Who::Root, &["podman", "exec", from, "bash", "-c", &script])
    };
    let refused = connect("litellm-postgres", "litellm");
    assert!(refused.stderr.contains("Connection refused"), "{refused:?}");
    connect("litellm", "127.0.0.1").ok();
}

/// When memory runs out, the gateway goes first.
fn the_gateway_is_taken_first(host: &TestHost) {
    let score = |container: &str| -> i32 {
        let process = process(host, Who::Root, container);
        let text = host.sh(Who::Root, &format!("cat /proc/{process}/oom_score_adj"));
        text.trim().parse().unwrap()
    };
    assert_eq!(score("litellm"), 500);
    assert_eq!(score("litellm-redis"), 0);
    // Where the host may not lower it, systemd goes on without.
    assert!(score("litellm-postgres") <= 0);
    let limit = host.property(Who::Root, "litellm.service", "MemoryMax");
    assert!(limit.parse::<u64>().is_ok(), "{limit}");
    let ask = "REDISCLI_AUTH=$(litellm-units unit secret redis REDISCLI_AUTH) podman exec -e REDISCLI_AUTH litellm-redis redis-cli config get 'maxmemory*' | paste -sd' '; podman exec litellm-redis redis-cli config get save | paste -sd' '";
    let configured = host.sh(Who::Root, ask);
    assert!(configured.contains("maxmemory 536870912"), "{configured}");
    assert!(
        configured.contains("maxmemory-policy volatile-lru"),
        "{configured}"
    );
    assert!(configured.ends_with("save \n"), "{configured}");
}

/// A gateway with the callback, and a key for it.
fn boot(name: &str) -> (TestHost, String) {
    let host = TestHost::boot(name);
    host.units(Who::Root, &["generate"]).ok();
    let config = format!("{}/config", Who::Root.deployment());
    host.write(Who::Root, &format!("{config}/blocking.py"), CALLBACK);
    host.sh(
        Who::Root,
        &format!("sed -i '/^litellm_settings:/a\\  callbacks: blocking.blocking' {config}/litellm-config.yaml"),
    );
    host.units(Who::Root, &["up"]).ok();
    let key = new_key(&host, Who::Root);
    wait_for_chat(&host, Who::Root, &key, Duration::from_secs(30));
    (host, key)
}

/// A stream of the slow model, and what became of it.
struct Stream(std::process::Child);

impl Stream {
    /// Returns when the first word has come.
    fn begin(host: &TestHost, who: Who) -> Self {
        let script = r#"
            key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
            exec curl -sSfN --max-time 900 -H "Authorization: Bearer $key" -H 'Content-Type: application/json' -o /tmp/words \
                -d '{"model":"slow","stream":true,"cache":{"no-cache":true},"messages":[{"role":"user","content":"hi"}]}' \
                http://127.0.0.1:24157/v1/chat/completions
        "#;
        host.sh(who, "rm -f /tmp/words");
        let child = host
            .command(who, &["bash", "-euo", "pipefail", "-c", script])
            .spawn()
            .unwrap();
        host.wait("a word", Duration::from_secs(60), |host| {
            let ran = host.run(who, &["grep", "-q", "content", "/tmp/words"]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stderr)
            }
        });
        Self(child)
    }

    fn is_open(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and tells whether the whole answer came.
    fn end(mut self, host: &TestHost, who: Who) -> bool {
        let succeeded = self.0.wait().unwrap().success();
        let ran = host.run(who, &["grep", "-qxF", "data: [DONE]", "/tmp/words"]);
        succeeded && ran.code == 0
    }
}

/// How often the gateway, and not the standby, has written these words since its host was booted.
fn written(host: &TestHost, words: &str) -> usize {
    let script =
        format!("journalctl -b -o cat CONTAINER_NAME=litellm | grep -cF '{words}' || true");
    host.sh(Who::Root, &script).trim().parse().unwrap()
}

/// Begins a command that restarts the gateway, and returns when that one is asked to stop.
fn begin_stop(host: &TestHost, who: Who, command: &str) -> std::process::Child {
    let child = host
        .command(who, &["bash", "-c", command])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    host.wait("the stop", Duration::from_secs(400), |host| {
        match host
            .property(who, "litellm.service", "ActiveState")
            .as_str()
        {
            "deactivating" => Ok(()),
            state => Err(state.to_owned()),
        }
    });
    child
}

fn succeeds(child: std::process::Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

const HANDOVER: &str = "litellm-units restart --handover litellm";
const SHUT_DOWN: &str = "Application shutdown complete.";

/// While the standby serves, an answer may take as long as `.env` says, and its spend is recorded. A longer one is cut off
/// at the limit, and LiteLLM's own shutdown follows.
fn long_answers_are_finished(host: &TestHost, who: Who) {
    let mut stream = Stream::begin(host, who);
    let restart = begin_stop(host, who, HANDOVER);
    std::thread::sleep(Duration::from_secs(90));
    assert!(stream.is_open());
    host.sh(who, "curl -sS http://127.0.0.1:8000/end");
    assert!(stream.end(host, who));
    succeeds(restart);
    assert_eq!(written(host, "requests are cut off"), 0);
    host.wait("the spend", Duration::from_secs(60), |host| {
        let statement = "SELECT count(*) FROM \"LiteLLM_SpendLogs\" WHERE model_group = 'slow' AND status = 'success' AND spend > 0";
        match sql(host, who, statement).trim() {
            "1" => Ok(()),
            count => Err(count.to_owned()),
        }
    });

    let (stream, before) = (Stream::begin(host, who), written(host, SHUT_DOWN));
    succeeds(begin_stop(host, who, HANDOVER));
    assert!(!stream.end(host, who));
    let words = "120 s after the stop, requests are cut off: 1 (LITELLM_DRAIN_TIMEOUT=120)";
    assert_eq!(written(host, words), 1);
    assert_eq!(written(host, SHUT_DOWN), before + 1);
}

/// A plain restart, during which nobody serves, keeps to a minute.
fn others_are_not_kept_waiting(host: &TestHost, who: Who) {
    let (stream, before) = (Stream::begin(host, who), written(host, SHUT_DOWN));
    succeeds(begin_stop(host, who, "litellm-units restart litellm"));
    assert!(!stream.end(host, who));
    assert_eq!(
        written(host, "60 s after the stop, requests are cut off: 1"),
        1
    );
    assert_eq!(written(host, SHUT_DOWN), before + 1);
}

/// After the limit was lowered, systemd ends the stop of a gateway that has the former one, and LiteLLM still shuts down.
fn the_lower_limit_counts(host: &TestHost, who: Who) {
    let (stream, before) = (Stream::begin(host, who), written(host, SHUT_DOWN));
    host.set_env(
        who,
        &[
            ("LITELLM_DRAIN_TIMEOUT", "10"),
            ("LITELLM_RECYCLE_AT", "1500M"),
        ],
    );
    succeeds(begin_stop(host, who, "litellm-units apply"));
    assert!(!stream.end(host, who));
    let words = "s after the stop, requests are cut off: 1 (LITELLM_DRAIN_TIMEOUT=120)";
    assert_eq!(written(host, words), 1);
    assert_eq!(written(host, SHUT_DOWN), before + 1);
}

/// A gateway that grows is replaced without a failed request, once, and not if nobody can serve meanwhile.
fn a_grown_gateway_is_replaced(host: &TestHost, who: Who) {
    let unit = "litellm.service";
    let grow = || {
        let script = r#"
            key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
            curl -sSf --max-time 60 -o /dev/null -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
                -d '{"model":"hello","user":"grow-1200","messages":[{"role":"user","content":"hi"}]}' http://127.0.0.1:24157/v1/chat/completions
        "#;
        host.sh(who, script);
    };
    let look = || host.systemctl(who, &["start", "litellm-recycle.service"]);
    look();
    let run = host.property(who, unit, "InvocationID");
    let load = Load::begin(host, who, &new_key(host, who));
    grow();
    host.wait("a fresh gateway", Duration::from_secs(500), |host| {
        let now = host.property(who, unit, "InvocationID");
        let operation = host.units(who, &["status"]).stdout;
        if now == run || operation.contains("is running") {
            return Err(operation);
        }
        Ok(())
    });
    load.assert_no_failure(host, who);
    let status = host.units(who, &["status"]);
    assert_eq!(status.code, 0, "{status:?}");
    assert!(
        status.stdout.contains("litellm.service was replaced ")
            && status.stdout.contains(", when it held 1.8 GiB of memory\n"),
        "{status:?}"
    );

    // As after a quarter of an hour.
    let file = "${XDG_RUNTIME_DIR:-/run}/litellm-units/recycle.json";
    host.sh(who, &format!("rm {file}"));
    host.without_standby(who);
    look();
    let run = host.property(who, unit, "InvocationID");
    grow();
    look();
    look();
    assert_eq!(host.property(who, unit, "InvocationID"), run);
    let status = host.units(who, &["status"]);
    let reason = "more than 1.4 GiB (LITELLM_RECYCLE_AT), and is not replaced: no other gateway can serve meanwhile";
    assert!(status.stderr.contains(reason), "{status:?}");
    let said = format!("journalctl -b -o cat | grep -cF '{reason}'");
    assert_eq!(host.sh(Who::Root, &said), "1\n");
}

/// A gateway with a slow model, and with a callback that grows.
fn boot_steady(who: Who, name: &str) -> TestHost {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["generate"]).ok();
    let config = format!("{}/config", who.deployment());
    host.write(who, &format!("{config}/growing.py"), GROWTH);
    host.write(who, "/tmp/provider.py", PROVIDER);
    allow_mock_delays(&host, who);
    host.sh(
        who,
        r#"sed -i -e '/^litellm_settings:/a\  callbacks: growing.growing' \
             -e '/^model_list:/a\  - model_name: slow\n    litellm_params: {model: openai/slow, api_base: "http://provider:8000", api_key: none, timeout: 900, output_cost_per_token: 0.001}' \
             "$1/config/litellm-config.yaml""#,
    );
    host.set_env(who, &[("LITELLM_DRAIN_TIMEOUT", "120")]);
    host.units(who, &["up", "--timeout", "600"]).ok();
    host.sh(
        who,
        "podman run --detach --name provider --network litellm --publish 127.0.0.1:8000:8000 --volume /tmp/provider.py:/provider.py:ro \
           --entrypoint python3 ghcr.io/berriai/litellm:v1.108.14 /provider.py",
    );
    host
}

fn long_answers(who: Who, name: &str) {
    let host = boot_steady(who, name);
    long_answers_are_finished(&host, who);
    others_are_not_kept_waiting(&host, who);
}

fn growth(who: Who, name: &str) {
    let host = boot_steady(who, name);
    the_lower_limit_counts(&host, who);
    a_grown_gateway_is_replaced(&host, who);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn long_answers_as_root() {
    long_answers(Who::Root, "answers");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn long_answers_rootless() {
    long_answers(Who::Operator, "answers-user");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn growth_as_root() {
    growth(Who::Root, "growth");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn growth_rootless() {
    growth(Who::Operator, "growth-user");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn busy_is_alive() {
    let (host, key) = boot("busy");
    a_crowd_is_served(&host, &key);
    a_blocked_loop_goes_on(&host, &key);
    a_hung_loop_is_replaced(&host, &key, "2");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn hung_is_replaced() {
    let (host, key) = boot("hung");
    other_containers_are_refused(&host);
    the_gateway_is_taken_first(&host);
    a_recovery_is_waited_for(&host);
    hung_servers_are_replaced(&host, &key);
    a_hung_loop_is_replaced(&host, &key, "1");
}

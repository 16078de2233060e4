//! What is busy is not ended, what hangs is replaced, and both are said.

use std::time::{Duration, Instant};

use crate::support::gateway::{new_key, process, running_process, wait_for_chat};
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
        let named =
            format!("answers, but is not ready: {container} does not answer its health check\n");
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

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn busy_is_alive() {
    let (host, key) = boot("busy");
    a_crowd_is_served(&host, &key);
    a_blocked_loop_goes_on(&host, &key);
    a_hung_loop_is_replaced(&host, &key, "2");
}

#[test]
fn hung_is_replaced() {
    let (host, key) = boot("hung");
    other_containers_are_refused(&host);
    the_gateway_is_taken_first(&host);
    a_recovery_is_waited_for(&host);
    hung_servers_are_replaced(&host, &key);
    a_hung_loop_is_replaced(&host, &key, "1");
}

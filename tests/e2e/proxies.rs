//! The example configurations of nginx and Caddy, in front of the real gateway.

use std::process::Stdio;

use crate::support::gateway::new_key;
use crate::support::host::{TestHost, Who};
use crate::support::package::{bare_host, install};

/// Addresses from which clients come: an administrator's network, and another one.
const INSIDE: &str = "10.1.1.1";
const OUTSIDE: &str = "203.0.113.7";

/// A provider that thinks for as long as it is asked to, and streams its next word when it is told to.
const PROVIDER: &str = r#"
import http.server, json, threading, time
told = threading.Semaphore(0)
class Provider(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told.release()
        self.send_response(204)
        self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(float(body["messages"][0]["content"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
        self.end_headers()
        chunk = {"id": "1", "created": 1, "model": "slow", "object": "chat.completion.chunk"}
        if body.get("stream"):
            for word in ("one", "two", "three"):
                choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": None}
                self.wfile.write(b"data: %s\n\n" % json.dumps(dict(chunk, choices=[choice])).encode())
                self.wfile.flush()
                told.acquire(timeout=60)
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}
            self.wfile.write(json.dumps(dict(chunk, object="chat.completion", choices=[choice])).encode())
http.server.ThreadingHTTPServer(("", 8000), Provider).serve_forever()
"#;

/// The options with which curl is a client at an address.
fn curl(from: &str) -> String {
    format!(
        "curl -sk --max-time 120 --interface {from} --resolve llm.example.com:443:{OUTSIDE} --resolve llm.example.com:80:{OUTSIDE}"
    )
}

/// Status and Location of a request.
#[track_caller]
fn answer(host: &TestHost, from: &str, words: &str) -> String {
    let script = format!(
        "{} -o /dev/null --path-as-is -w '%{{http_code}} %{{redirect_url}}' {words}",
        curl(from)
    );
    host.sh(Who::Root, &script).trim_end().to_owned()
}

/// `/ui` and the login: always https, never in a loop, and a session in the end.
fn the_web_interface_is_reached(host: &TestHost, permanent: &str) {
    assert_eq!(
        answer(host, INSIDE, "http://llm.example.com/ui"),
        format!("{permanent} https://llm.example.com/ui")
    );
    for path in [
        "/ui",
        "/ui/",
        "/ui/login",
        "/ui/login/",
        "/sso/key/generate",
    ] {
        let followed = host.sh(
            Who::Root,
            &format!(
                "{} -L --max-redirs 4 -D - -o /dev/null https://llm.example.com{path} | grep -iE '^(HTTP|location)' | tr -d '\\r'",
                curl(INSIDE)
            ),
        );
        assert!(!followed.contains("http:"), "{path}: {followed}");
        assert!(
            followed.lines().last().unwrap().contains(" 200"),
            "{path}: {followed}"
        );
    }
    let login = format!(
        "{} -D - -o /dev/null -d username=ann -d password=correct-horse https://llm.example.com/login | tr -d '\\r' | sed -n 's/^HTTP[^ ]* \\([0-9]*\\).*/\\1/p; s/^[Ll]ocation: //p; s/^\\([Ss]et-[Cc]ookie: token\\)=.*/\\1/p' | sort",
        curl(INSIDE)
    );
    let login = host.sh(Who::Root, &login).to_lowercase();
    assert_eq!(
        login,
        "303\nhttps://llm.example.com/ui?login=success\nset-cookie: token\n"
    );
}

/// Inference for everyone who has a key; the rest from administrators' networks only.
fn management_is_limited(host: &TestHost, key: &str) {
    let key = format!("-H 'Authorization: Bearer {key}'");
    for path in [
        "/",
        "/ui",
        "/ui/login",
        "/docs",
        "/key/list",
        "/key/generate",
        "/user/new",
        "/team/list",
        "/model/info",
        "/v1/model/info",
        "/spend/logs",
        "/config/yaml",
        "/metrics",
        "/health",
        "//key/list",
        "/key//list",
        "/v1/models/../key/list",
        "/v1/models/..%2f..%2fkey/list",
        "/v1/%2e%2e/key/list",
        "/KEY/list",
        "/v1/chat/completionsx",
        "/v1/modelsx/../key/list",
        "/v1/mcp/server",
        "/vector_store/list",
    ] {
        let words = format!(
            "{key} -H 'X-Forwarded-For: 10.1.1.1' -H 'X-Real-IP: 10.1.1.1' 'https://llm.example.com{path}'"
        );
        let outside = answer(host, OUTSIDE, &words);
        assert!(
            ["403", "400"].contains(&outside.as_str()),
            "{path} from outside: {outside}"
        );
    }
    // The gateway does not see another path than the one that was judged.
    for path in [
        "/key/list/..%2f..%2fv1/models",
        "/key/list/../../v1/models",
        "/ui/%2e%2e/v1/models",
    ] {
        let outside = answer(
            host,
            OUTSIDE,
            &format!("{key} 'https://llm.example.com{path}'"),
        );
        assert!(
            ["200", "400"].contains(&outside.as_str()),
            "{path}: {outside}"
        );
    }
    for path in [
        "/v1/models",
        "/models",
        "/health/liveliness",
        "/health/readiness",
    ] {
        let words = format!("{key} https://llm.example.com{path}");
        assert_eq!(answer(host, OUTSIDE, &words), "200", "{path}");
    }
    assert_eq!(
        answer(host, OUTSIDE, "https://llm.example.com/v1/models"),
        "401"
    );
    let master = host
        .env(Who::Root)
        .get("LITELLM_MASTER_KEY")
        .unwrap()
        .to_owned();
    let words = format!("-H 'Authorization: Bearer {master}' https://llm.example.com/key/list");
    assert_eq!(answer(host, INSIDE, &words), "200");
    assert_eq!(answer(host, OUTSIDE, &words), "403");
}

/// Each word arrives before the provider says the next one. Not from the gateway's cache, which has the answer of the
/// proxy before, as a whole.
fn streams_are_not_held_back(host: &TestHost, key: &str) {
    let script = format!(
        r#"{} -N -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' https://llm.example.com/v1/chat/completions \
             -d '{{"model":"slow","stream":true,"cache":{{"no-cache":true}},"messages":[{{"role":"user","content":"0"}}]}}' |
           while read -r data line; do
             if [[ $line == *'"content":"'* ]]; then
               jq -r '.choices[0].delta.content' <<<"$line"
               curl -sS http://127.0.0.1:8000/go
             fi
           done"#,
        curl(OUTSIDE)
    );
    assert_eq!(host.sh(Who::Root, &script), "one\ntwo\nthree\n");
}

/// Large requests, headers, and who the gateway takes the client for.
fn requests_arrive(host: &TestHost, key: &str) {
    let script = format!(
        r#"printf '{{"model":"hello","messages":[{{"role":"user","content":"%s"}}]}}' "$(head -c 3000000 /dev/zero | tr '\0' x)" >/tmp/large
           {} -D /tmp/headers -H 'Authorization: Bearer {key}' -H 'X-Forwarded-For: 192.0.2.99' -H 'Content-Type: application/json' \
             --data-binary @/tmp/large https://llm.example.com/v1/chat/completions | jq -r '.choices[0].message.content'
           grep -i '^strict-transport-security:' /tmp/headers | tr -d '\r' | tr A-Z a-z
           journalctl -b -o cat CONTAINER_NAME=litellm | grep 'POST /v1/chat/completions' | tail -n 1 | grep -o '[0-9.]*:[0-9]* - '"#,
        curl(OUTSIDE)
    );
    assert_eq!(
        host.sh(Who::Root, &script),
        format!(
            "Hello from your LiteLLM gateway.\nstrict-transport-security: max-age=31536000\n{OUTSIDE}:0 - \n"
        )
    );
    // A WebSocket gets through to the gateway, which refuses this one for its key.
    let upgrade = "-o /dev/null -w '%{http_code}' --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
                   -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' 'https://llm.example.com/v1/realtime?model=hello'";
    assert_eq!(
        host.sh(Who::Root, &format!("{} {upgrade}", curl(OUTSIDE))),
        "403"
    );
}

/// A deployment with the model of the provider.
fn configure(host: &TestHost) {
    host.units(Who::Root, &["generate"]).ok();
    host.write(Who::Root, "/root/provider.py", PROVIDER);
    host.sh(
        Who::Root,
        r#"sed -i '/^model_list:/a\  - model_name: slow\n    litellm_params: {model: openai/slow, api_base: "http://provider:8000", api_key: none, timeout: 600}' "$1/config/litellm-config.yaml""#,
    );
}

/// The provider, a login, and a key for both models.
fn provide(host: &TestHost, base_url: &str) -> String {
    let who = Who::Root;
    host.sh(
        who,
        "podman run --detach --name provider --network litellm --publish 127.0.0.1:8000:8000 --volume /root/provider.py:/provider.py:ro --entrypoint python3 \
         ghcr.io/berriai/litellm:v1.108.14 /provider.py",
    );
    host.sh(
        who,
        &format!("echo correct-horse | litellm-units ui --username ann --password-stdin{base_url}"),
    );
    let key = new_key(host, who);
    let master = host.env(who).get("LITELLM_MASTER_KEY").unwrap().to_owned();
    host.sh(
        who,
        &format!(
            r#"curl -sSf -H 'Authorization: Bearer {master}' -H 'Content-Type: application/json' \
                 -d '{{"key":"{key}","models":["hello","slow"]}}' http://127.0.0.1:24157/key/update"#
        ),
    );
    key
}

/// Makes a certificate for the entrance with these options of `openssl req`.
fn certify(host: &TestHost, options: &str) {
    host.sh(
        Who::Root,
        &format!(
            r#"mkdir -p "$1/entrance"
               openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes {options} -subj /CN=llm.example.com -addext subjectAltName=DNS:llm.example.com \
                 -keyout "$1/entrance/key.pem" -out "$1/entrance/certificate.pem" 2>/dev/null
               chmod 600 "$1/entrance/key.pem""#
        ),
    );
}

/// Runs a script on `.env`, and applies that.
fn apply(host: &TestHost, script: &str) {
    host.sh(Who::Root, &format!("{script} \"$1/.env\""));
    host.units(Who::Root, &["apply"]).ok();
}

/// The state and the message of the check of certificates.
fn certificate(host: &TestHost) -> String {
    host.sh(
        Who::Root,
        r#"litellm-units doctor --json | jq -r '.checks[] | select(.name == "certificate") | "\(.outcome): \(.message)"' || true"#,
    )
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn an_entrance_of_the_stack() {
    let who = Who::Root;
    let host = bare_host(who, "entrance");
    host.put(
        std::path::Path::new(env!("CARGO_BIN_EXE_litellm-units")),
        "/usr/bin/litellm-units",
    );
    host.sh(
        who,
        &format!("ip address add {OUTSIDE}/32 dev lo; ip address add {INSIDE}/32 dev lo"),
    );
    configure(&host);
    host.sh(
        who,
        "echo PUBLIC_URL=https://llm.example.com >>$1/.env; echo PUBLIC_ADMIN_FROM=10.0.0.0/8 >>$1/.env",
    );
    let refused = |words: &str| {
        let (code, _, complaints) = host.units(who, &["up"]).all();
        assert_ne!(code, 0);
        assert!(complaints.contains(words), "{complaints}");
    };
    refused("Caddy, which PUBLIC_URL needs, is not installed");
    install(&host, "caddy");
    refused("caddy.service of Caddy's package would take the ports that PUBLIC_URL needs");
    host.systemctl(who, &["disable", "--now", "caddy"]);
    certify(&host, "-days 20");
    host.sh(who, "mv $1/entrance/key.pem /root/key.pem");
    refused("entrance/key.pem is missing");
    host.sh(
        who,
        "openssl genpkey -algorithm ed25519 >$1/entrance/key.pem; chmod 644 $1/entrance/key.pem",
    );
    refused("others can read /opt/litellm-server/entrance/key.pem");
    host.sh(who, "chmod 600 $1/entrance/key.pem");
    refused("Caddy refuses the configuration of the entrance");
    host.sh(who, "mv /root/key.pem $1/entrance/key.pem");
    host.sh(
        who,
        "systemd-run --quiet --unit taken caddy respond --listen :443; while ! ss -Hltn 'sport = :443' | grep -q .; do sleep 0.1; done",
    );
    refused("PUBLIC_URL needs port 443, which is taken by another process");
    host.systemctl(who, &["stop", "taken"]);
    host.units(who, &["up"]).ok();

    let key = provide(&host, "");
    the_web_interface_is_reached(&host, "308");
    management_is_limited(&host, &key);
    streams_are_not_held_back(&host, &key);
    requests_arrive(&host, &key);
    for (option, expected) in [
        ("--http2", "200 2"),
        ("-H 'Host: other.example.com'", "421 2"),
    ] {
        let script = format!(
            "{} {option} -o /dev/null -w '%{{http_code}} %{{http_version}}' https://llm.example.com/health/liveliness",
            curl(OUTSIDE)
        );
        assert_eq!(host.sh(who, &script), expected, "{option}");
    }
    // Its user is not root, and nobody else can configure it.
    let script = r#"uid=$(ps -o uid= -p "$(systemctl show -P MainPID litellm-entrance)")
                    [ "$uid" -gt 60000 ]
                    [ "$(stat -L -c '%a %u' /run/litellm-entrance)" = "700 ${uid// /}" ]
                    stat -c %a /run/litellm-entrance/key.pem; ss -Hltn 'sport = :2019'"#;
    assert_eq!(host.sh(who, script), "600\n");
    assert!(
        certificate(&host)
            .starts_with("warning: the certificate of https://llm.example.com expires soon: ")
    );

    // A long answer and many short ones, while the entrance takes another configuration and the gateway restarts.
    let long = format!(
        r#"{} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' https://llm.example.com/v1/chat/completions \
             -d '{{"model":"slow","messages":[{{"role":"user","content":"20"}}]}}' | jq -r '.choices[0].message.content'"#,
        curl(OUTSIDE)
    );
    let long = host
        .command(who, &["bash", "-euo", "pipefail", "-c", &long])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let short = format!(
        "until [ -e /tmp/enough ]; do {} -H 'Authorization: Bearer {key}' -o /dev/null -o /dev/null -w '%{{http_code}}\\n' https://llm.example.com/v1/models https://llm.example.com/v1/models || echo failed; done",
        curl(OUTSIDE)
    );
    let short = host
        .command(who, &["bash", "-c", &short])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let process = host.property(who, "litellm-entrance.service", "MainPID");
    let master = host.env(who).get("LITELLM_MASTER_KEY").unwrap().to_owned();
    let managed = format!("-H 'Authorization: Bearer {master}' https://llm.example.com/key/list");
    assert_eq!(answer(&host, INSIDE, &managed), "200");
    apply(
        &host,
        "sed -i s,^PUBLIC_ADMIN_FROM=.*,PUBLIC_ADMIN_FROM=203.0.113.0/24,",
    );
    assert_eq!(answer(&host, INSIDE, &managed), "403");
    let body = host.sh(who, &format!("{} {managed}", curl(INSIDE)));
    assert!(body.contains("PUBLIC_ADMIN_FROM"), "{body}");
    assert_eq!(answer(&host, OUTSIDE, &managed), "200");
    host.units(who, &["restart", "--handover", "litellm"]).ok();
    host.sh(who, "touch /tmp/enough");
    let answered = |child: std::process::Child| {
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(answered(long), "done\n");
    let codes = answered(short);
    assert!(codes.lines().count() > 20, "{codes}");
    assert!(codes.lines().all(|code| code == "200"), "{codes}");
    assert_eq!(
        host.property(who, "litellm-entrance.service", "MainPID"),
        process
    );

    // Below a path, what is limited without it is limited, too.
    apply(&host, "sed -i '$aSERVER_ROOT_PATH=/llm'");
    let ran = host.units(who, &["ui", "--generate"]);
    assert!(
        ran.stderr
            .ends_with("https://llm.example.com/llm/ui answers; log in as ann\n"),
        "{}",
        ran.stderr
    );
    for (from, path, expected) in [
        (INSIDE, "v1/models", "200"),
        (INSIDE, "key/list", "403"),
        (INSIDE, "ui/", "403"),
        (OUTSIDE, "key/list", "200"),
        (OUTSIDE, "ui/", "200"),
    ] {
        let words =
            format!("-H 'Authorization: Bearer {master}' https://llm.example.com/llm/{path}");
        assert_eq!(answer(&host, from, &words), expected, "{from} {path}");
    }

    certify(
        &host,
        "-not_before 20250101000000Z -not_after 20250201000000Z",
    );
    apply(&host, "true");
    assert_eq!(
        certificate(&host),
        "failure: the certificate of https://llm.example.com has expired: 2025-02-01 00:00:00 UTC\n"
    );
    host.units(who, &["stop", "entrance"]).ok();
    assert_eq!(host.units(who, &["status"]).code, 4);
    host.units(who, &["start", "entrance"]).ok();
    // A request that fails is in the journal, without its key.
    host.units(who, &["stop", "litellm"]).ok();
    let keyed = "-H 'X-Api-Key: sk-S3CR3T' 'https://llm.example.com/v1/models?key=S3CR3T'";
    assert_eq!(answer(&host, OUTSIDE, keyed), "502");
    let lines = host.units(who, &["logs", "entrance"]).ok();
    assert!(lines.contains("/v1/models"), "{lines}");
    assert!(!lines.contains("S3CR3T"), "{lines}");
    host.units(who, &["start", "litellm"]).ok();

    apply(&host, "sed -i /^PUBLIC_/d");
    let gone = "! systemctl cat litellm-entrance 2>/dev/null; find /etc/systemd/system -name 'litellm-entrance*'; ss -Hltn 'sport = :443 or sport = :80'";
    assert_eq!(host.sh(who, gone), "");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn nginx_and_caddy() {
    let who = Who::Root;
    let host = bare_host(Who::Root, "proxies");
    host.put(
        std::path::Path::new(env!("CARGO_BIN_EXE_litellm-units")),
        "/usr/bin/litellm-units",
    );
    install(&host, "nginx caddy");
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples");
    host.put(
        &examples.join("nginx.conf"),
        "/etc/nginx/conf.d/litellm.conf",
    );
    host.put(&examples.join("Caddyfile"), "/etc/caddy/Caddyfile");
    host.sh(
        who,
        &format!(
            "ip address add {OUTSIDE}/32 dev lo; ip address add {INSIDE}/32 dev lo; rm /etc/nginx/sites-enabled/default
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=llm.example.com -addext subjectAltName=DNS:llm.example.com \
               -keyout /etc/ssl/private/llm.example.com.key -out /etc/ssl/certs/llm.example.com.pem 2>/dev/null
             nginx -t 2>&1; caddy validate --config /etc/caddy/Caddyfile 2>&1; caddy fmt /etc/caddy/Caddyfile | cmp - /etc/caddy/Caddyfile"
        ),
    );

    configure(&host);
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = provide(&host, " --base-url https://llm.example.com");

    host.systemctl(who, &["start", "nginx"]);
    // More than a minute of silence, which is where proxies give up when they are not told otherwise.
    let patience = format!(
        r#"{} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' https://llm.example.com/v1/chat/completions \
             -d '{{"model":"slow","messages":[{{"role":"user","content":"63"}}]}}' | jq -r '.choices[0].message.content'"#,
        curl(OUTSIDE)
    );
    let examination = host
        .command(who, &["bash", "-euo", "pipefail", "-c", &patience])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let check = |permanent: &str| {
        the_web_interface_is_reached(&host, permanent);
        management_is_limited(&host, &key);
        streams_are_not_held_back(&host, &key);
        requests_arrive(&host, &key);
    };
    check("301");
    // It lets go of its ports, and the examination request goes on.
    host.sh(
        who,
        "nginx -s quit; while ss -Hltn 'sport = :443' | grep -q .; do sleep 0.1; done",
    );

    // The authority that Caddy would ask for a certificate can't be reached: one of its own.
    host.sh(
        who,
        "sed -i '1i {\\n\\tlocal_certs\\n\\tskip_install_trust\\n}' /etc/caddy/Caddyfile; systemctl start caddy",
    );
    check("308");
    let adapted = "caddy adapt --config /etc/caddy/Caddyfile 2>/dev/null | jq -c '[.. | .response_header_timeout? // empty]'";
    assert_eq!(host.sh(who, adapted), "[3600000000000]\n");

    let answer = examination.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "done\n");
}

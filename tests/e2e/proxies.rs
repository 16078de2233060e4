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

    host.units(who, &["generate"]).ok();
    host.write(who, "/root/provider.py", PROVIDER);
    host.sh(
        who,
        r#"sed -i '/^model_list:/a\  - model_name: slow\n    litellm_params: {model: openai/slow, api_base: "http://provider:8000", api_key: none, timeout: 600}' "$1/config/litellm-config.yaml""#,
    );
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    host.sh(
        who,
        "podman run --detach --name provider --network litellm --publish 127.0.0.1:8000:8000 --volume /root/provider.py:/provider.py:ro --entrypoint python3 \
         ghcr.io/berriai/litellm:v1.108.14 /provider.py",
    );
    let words = "echo correct-horse | litellm-units ui --username ann --password-stdin --base-url https://llm.example.com";
    host.sh(who, words);
    let key = new_key(&host, who);
    let master = host.env(who).get("LITELLM_MASTER_KEY").unwrap().to_owned();
    host.sh(
        who,
        &format!(
            r#"curl -sSf -H 'Authorization: Bearer {master}' -H 'Content-Type: application/json' \
                 -d '{{"key":"{key}","models":["hello","slow"]}}' http://127.0.0.1:24157/key/update"#
        ),
    );

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

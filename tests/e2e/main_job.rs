//! From nothing to a chat completion, and back up after everything that can befall a host.

use crate::support::host::{TestHost, Who};

const CHAT: &str = r#"
cd "$1"
master=$(sed -n 's/^LITELLM_MASTER_KEY=//p' .env)
key=$(curl -sSf -H "Authorization: Bearer $master" -H 'Content-Type: application/json' \
  -d '{"models":["hello"]}' http://127.0.0.1:24157/key/generate | jq -r .key)
curl -sSf -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
  -d '{"model":"hello","messages":[{"role":"user","content":"hi"}]}' \
  http://127.0.0.1:24157/v1/chat/completions | jq -r '.choices[0].message.content'
"#;

fn chat(host: &TestHost, who: Who) -> String {
    host.run(
        who,
        &[
            "bash",
            "-euo",
            "pipefail",
            "-c",
            CHAT,
            "chat",
            who.deployment(),
        ],
    )
    .ok()
}

fn generate_and_start(who: Who, name: &str) {
    let host = TestHost::boot(name);
    host.units(who, &["generate"]).ok();
    host.bash(who, &format!("{} start litellm.target", who.systemctl()))
        .ok();
    // The target does not wait for its members; `up` does, and finds nothing else to do.
    host.units(who, &["up"]).ok();
    assert_eq!(chat(&host, who), "Hello from your LiteLLM gateway.\n");
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
}

#[test]
fn rootful_generate_and_start() {
    generate_and_start(Who::Root, "main-rootful");
}

#[test]
fn rootless_generate_and_start() {
    generate_and_start(Who::Operator, "main-rootless");
}

//! Keys: the service key in its file, and business keys made with it.

use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::{HELLO, chat, new_key};
use crate::support::host::{TestHost, Who};

fn json(host: &TestHost, who: Who, words: &[&str]) -> Value {
    serde_json::from_str(&host.units(who, &[words, &["--json"]].concat()).ok()).unwrap()
}

fn service_key(host: &TestHost, who: Who) -> String {
    host.sh(who, "cat \"$1/service-key.txt\"")
        .trim_end()
        .to_owned()
}

/// The aliases of all service keys.
fn service_keys(host: &TestHost, who: Who) -> Vec<String> {
    json(host, who, &["key", "list"])["keys"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|key| key["metadata"]["role"] == "service")
        .map(|key| key["alias"].as_str().unwrap().to_owned())
        .collect()
}

/// `litellm-units` with `input` on stdin.
fn fed(host: &TestHost, who: Who, input: &str, words: &str) -> (i32, String, String) {
    host.write(who, "/tmp/input", input);
    host.bash(who, &format!("litellm-units {words} </tmp/input"))
        .all()
}

fn main_path(host: &TestHost, who: Who) {
    // Nothing runs yet: the stack is started, and stdout holds only what was asked for.
    let file = format!("{}/service-key.txt", who.deployment());
    assert_eq!(
        host.units(who, &["key", "service"]).ok(),
        format!("{file}\n")
    );
    assert_eq!(host.sh(who, "stat -c %a \"$1/service-key.txt\""), "600\n");
    let key = service_key(host, who);
    assert_eq!(
        host.units(who, &["key", "service", "--show"]).all(),
        (0, format!("{key}\n"), String::new())
    );
    assert_eq!(
        host.units(who, &["key", "service"]).all(),
        (0, format!("{file}\n"), String::new())
    );
    assert_eq!(service_key(host, who), key);
    assert_eq!(chat(host, who, &key).as_deref(), Ok(HELLO));
    let shown = json(host, who, &["key", "info", "litellm-units-service"]);
    assert_eq!(
        shown["models"],
        serde_json::json!(["gpt-4o", "claude-sonnet-4-5", "hello"])
    );

    business(host, who);

    let made = host.units(who, &["key", "create", "loop", "--model", "hello"]);
    assert_eq!(
        made.stderr,
        "created key loop; LiteLLM keeps only a hash of it, so it can't be shown again\n"
    );
    let other = made.ok();
    rotation_disturbs_no_request(host, who, other.trim_end());
    assert!(chat(host, who, &key).unwrap_err().contains("401"));
    assert_ne!(service_key(host, who), key);
    assert_eq!(
        chat(host, who, &service_key(host, who)).as_deref(),
        Ok(HELLO)
    );
    assert_eq!(service_keys(host, who), ["litellm-units-service"]);
}

/// From its making to its end, all with the service key.
fn business(host: &TestHost, who: Who) {
    let service = ["--as", "service"];
    let with = |words: &[&str]| host.units(who, &[words, &service[..]].concat());
    let made = json(
        host,
        who,
        &[
            "key",
            "create",
            "shop",
            "--model",
            "hello",
            "--max-budget",
            "5",
            "--budget-duration",
            "30d",
            "--duration",
            "30d",
            "--metadata",
            "owner=ann",
            "--as",
            "service",
        ],
    );
    let key = made["key"].as_str().unwrap();
    let token = made["token"].as_str().unwrap();
    let expires = host.sh(
        who,
        &format!("date -d {} +%s", made["expires"].as_str().unwrap()),
    );
    let now = host.sh(who, "date +%s");
    let days =
        (expires.trim().parse::<f64>().unwrap() - now.trim().parse::<f64>().unwrap()) / 86400.0;
    assert!((29.99..=30.0).contains(&days), "valid for {days} days");
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    assert_eq!(
        with(&["key", "create", "shop"]).all(),
        (1, String::new(), "error: another key has the alias shop\nhint: choose another name; if an earlier `key create` got no answer in time, it may have made this key: see `litellm-units key list`\n".into())
    );

    // Nothing shows the key again.
    let masked = format!("sk-…{}", &key[key.len() - 4..]);
    for words in [
        &["key", "list"][..],
        &["key", "info", "shop"],
        &["key", "info", token],
        &["key", "list", "--json"],
    ] {
        let text = host.units(who, words).ok();
        assert!(text.contains(&masked) && !text.contains(key), "{text}");
    }
    let info = host.units(who, &["key", "info", "shop"]).ok();
    assert_eq!(
        fed(host, who, &format!("{key}\n"), "key info --key-file -"),
        (0, info, String::new())
    );
    let (code, stdout, stderr) = host.units(who, &["key", "block", key]).all();
    assert_eq!(
        (code, stdout.as_str(), stderr.contains(key)),
        (1, "", false)
    );
    assert!(
        stderr.starts_with("error: a key must not be an argument: "),
        "{stderr}"
    );

    block_and_change(host, who, key, token);
}

fn block_and_change(host: &TestHost, who: Who, key: &str, token: &str) {
    let with = |words: &[&str]| host.units(who, &[words, &["--as", "service"]].concat());
    // LiteLLM 1.108 leaves that to administrators; without --as, the master key stands in.
    let refused = with(&["key", "block", "shop"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--as master"), "{refused:?}");
    host.units(who, &["key", "block", "shop"]).ok();
    assert!(chat(host, who, key).unwrap_err().contains("401"));
    assert_eq!(
        json(host, who, &["key", "info", "shop"])["state"],
        "blocked"
    );
    host.units(who, &["key", "unblock", token]).ok();
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    let updated = with(&[
        "key",
        "update",
        "shop",
        "--rpm",
        "1",
        "--alias",
        "shop-eu",
        "--metadata",
        "cost=7",
    ]);
    assert!(
        updated.stderr.contains("\n  requests per minute: ") && updated.stderr.ends_with(" -> 1\n"),
        "{updated:?}"
    );
    updated.ok();
    let _ = chat(host, who, key);
    assert!(chat(host, who, key).unwrap_err().contains("429"));
    let shown = json(host, who, &["key", "info", "shop-eu"]);
    assert_eq!(
        shown["metadata"],
        serde_json::json!({"created_by": "litellm-units", "owner": "ann", "cost": "7"})
    );
    assert_eq!(shown["max_budget"], 5.0);
    with(&["key", "delete", "shop-eu"]).ok();
    assert!(chat(host, who, key).unwrap_err().contains("401"));
    assert_eq!(
        with(&["key", "delete", "shop-eu"]).all(),
        (
            1,
            String::new(),
            "error: there is no such key\nhint: list the keys: `litellm-units key list`\n".into()
        )
    );
}

fn rotation_disturbs_no_request(host: &TestHost, who: Who, key: &str) {
    let script = r#"
        ask() {
            curl -s -o /dev/null -w '%{http_code}\n' --max-time 20 -H "Authorization: Bearer $1" \
                -H 'Content-Type: application/json' \
                -d '{"model":"hello","messages":[{"role":"user","content":"hi"}]}' \
                http://127.0.0.1:24157/v1/chat/completions
        }
        rm -f /tmp/end /tmp/*.codes
        (until [[ -e /tmp/end ]]; do ask "$2"; done) >/tmp/business.codes &
        # One that reads the file for each request.
        (until [[ -e /tmp/end ]]; do ask "$(cat "$1/service-key.txt")"; done) >/tmp/service.codes &
        for _ in 1 2 3; do litellm-units key rotate service --grace 1; done
        touch /tmp/end
        wait
        sort /tmp/business.codes | uniq -c
        sort /tmp/service.codes | uniq -c
    "#;
    let text = host.bash_with(who, script, &[who.deployment(), key]).ok();
    let counts: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| !line.ends_with("service-key.txt"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(counts.len(), 2, "{text}");
    for count in counts {
        assert_eq!(count[1], "200", "{text}");
        assert!(
            count[0].parse::<u32>().unwrap() >= 10,
            "too few requests to tell: {text}"
        );
    }
}

#[test]
fn keys_rootful() {
    let host = TestHost::boot("keys-rootful");
    let who = Who::Root;
    main_path(&host, who);
    // What changes something is in the journal; what reads is not.
    let recorded = host.sh(
        who,
        "journalctl --no-pager -o cat -t litellm-units LITELLM_UNITS_COMMAND='key create' | head -n 2
         journalctl --no-pager -o cat -t litellm-units LITELLM_UNITS_COMMAND='key list'",
    );
    let [begun, ended] = recorded.lines().collect::<Vec<_>>()[..] else {
        panic!("{recorded}");
    };
    assert_eq!(begun, "key create by root: begun");
    assert!(
        ended.starts_with("key create by root: succeeded after "),
        "{recorded}"
    );

    // A file that is no use.
    for (damage, words) in [
        (": >", " is empty\n"),
        ("echo nonsense >", " does not contain a key of LiteLLM\n"),
        ("rm", ""),
    ] {
        host.sh(who, &format!("{damage} \"$1/service-key.txt\""));
        let (code, _, stderr) = host.units(who, &["key", "service"]).all();
        assert!(code == 0 && stderr.contains(words), "{damage}: {stderr}");
        assert_eq!(
            chat(&host, who, &service_key(&host, who)).as_deref(),
            Ok(HELLO)
        );
        assert_eq!(
            service_keys(&host, who),
            ["litellm-units-service"],
            "{damage}"
        );
    }
    let key = service_key(&host, who);
    host.sh(who, "chmod 644 \"$1/service-key.txt\"");
    assert_eq!(
        host.units(who, &["key", "service"]).stderr,
        "set mode 0600 on /opt/litellm-server/service-key.txt, which had 0644\nwarning: others could read the service key; to replace it: `litellm-units key rotate service`\n"
    );
    assert_eq!(service_key(&host, who), key);

    // A key that is no use.
    host.units(
        who,
        &["key", "block", "litellm-units-service", "--as", "master"],
    )
    .ok();
    let stderr = host.units(who, &["key", "service"]).stderr;
    assert!(
        stderr.contains("(the key is blocked): creating a new one"),
        "{stderr}"
    );
    assert_eq!(service_keys(&host, who), ["litellm-units-service"]);

    // What it may do follows the configuration, until told otherwise.
    host.sh(who, "sed -i 's/^litellm_settings:/  - {model_name: second, litellm_params: {model: openai\\/x, api_key: none, mock_response: Two}}\\n&/' \"$1/config/litellm-config.yaml\"");
    host.units(who, &["key", "service"]).ok();
    let models = |host: &TestHost| {
        json(host, who, &["key", "info", "litellm-units-service"])["models"].clone()
    };
    assert_eq!(
        models(&host),
        serde_json::json!(["gpt-4o", "claude-sonnet-4-5", "hello", "second"])
    );
    host.units(
        who,
        &["key", "service", "--model", "hello", "--rpm", "1000"],
    )
    .ok();
    host.units(who, &["key", "rotate", "service"]).ok();
    let shown = json(&host, who, &["key", "info", "litellm-units-service"]);
    assert_eq!(
        (&shown["models"], &shown["rpm_limit"]),
        (&serde_json::json!(["hello"]), &1000.into())
    );

    what_a_service_key_may_not(&host, who);
    killed_anywhere(&host, who);

    // The gateway runs with another master key than the file has.
    let right = host.env(who).get("LITELLM_MASTER_KEY").unwrap().to_owned();
    host.set_env(who, &[("LITELLM_MASTER_KEY", "sk-wrong-wrong-wrong")]);
    host.sh(who, "rm \"$1/service-key.txt\"");
    assert_eq!(
        host.units(who, &["key", "service"]).all(),
        (1, String::new(), "error: the gateway runs with another LITELLM_MASTER_KEY than /opt/litellm-server/.env has\nhint: to restart the gateway with the value in the file: `litellm-units apply`\n".into())
    );
    host.set_env(who, &[("LITELLM_MASTER_KEY", &right)]);
    host.units(who, &["key", "service"]).ok();

    // Down: starting it is up to the one who asks.
    host.units(who, &["down"]).ok();
    let (code, _, stderr) = host.units(who, &["key", "list"]).all();
    assert_eq!(code, 1);
    assert!(
        stderr.contains("does not answer")
            && stderr
                .contains("hint: see `litellm-units status`; to start it: `litellm-units up`\n"),
        "{stderr}"
    );
}

/// The bounds that LiteLLM sets, as the README tells them.
fn what_a_service_key_may_not(host: &TestHost, who: Who) {
    let foreign = new_key(host, who);
    let (code, _, stderr) = fed(host, who, &foreign, "key delete --key-file - --as service");
    assert_eq!(code, 1);
    assert!(
        stderr.starts_with("error: LiteLLM does not allow it"),
        "{stderr}"
    );
    assert!(
        stderr.ends_with("hint: use the master key: `--as master`\n"),
        "{stderr}"
    );
    // It falls back to the master key where nothing else is asked for.
    let (code, _, stderr) = fed(host, who, &foreign, "key delete --key-file -");
    assert_eq!(code, 0, "{stderr}");
    assert!(chat(host, who, &foreign).unwrap_err().contains("401"));
    // LiteLLM itself would make a key for a team that does not exist, and one that nobody can delete.
    let words = |team: &'static str| {
        [
            "key",
            "create",
            "teamed",
            "--duration",
            "90d",
            "--team",
            team,
        ]
    };
    let (code, _, stderr) = host.units(who, &words("nobody")).all();
    assert_eq!(code, 1);
    assert!(
        stderr.contains(
            "error: there is no team with the identifier nobody\nhint: use the identifier that the web interface shows for the team"
        ),
        "{stderr}"
    );
    let master = host.units(who, &["unit", "secret", "litellm", "LITELLM_MASTER_KEY"]);
    host.sh(who, &format!("curl -sSf -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' -d '{{\"team_id\":\"research\"}}' http://127.0.0.1:24157/team/new", master.ok()));
    host.units(who, &words("research")).ok();
    let shown = json(host, who, &["key", "info", "teamed"]);
    assert_eq!(shown["team"], "research");
    // A business key may call models and nothing else.
    let key = host.units(who, &["key", "create", "plain"]).ok();
    for path in ["key/generate", "key/delete", "user/new", "team/new"] {
        let code = host.sh(who, &format!("curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' -d '{{}}' http://127.0.0.1:24157/{path}", key.trim_end()));
        assert!(["401", "403"].contains(&code.as_str()), "{path}: {code}");
    }
}

/// At every moment, the file holds a valid key; the next run removes what is left over.
fn killed_anywhere(host: &TestHost, who: Who) {
    for delay in [0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3] {
        host.bash(
            who,
            &format!("timeout -s KILL {delay} litellm-units key rotate service"),
        );
        let key = service_key(host, who);
        assert_eq!(
            chat(host, who, &key).as_deref(),
            Ok(HELLO),
            "after {delay} s"
        );
    }
    let key = service_key(host, who);
    host.units(who, &["key", "service"]).ok();
    assert_eq!(service_key(host, who), key);
    assert_eq!(service_keys(host, who), ["litellm-units-service"]);
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn keys_rootless() {
    let host = TestHost::boot_for(Who::Operator, "keys-rootless");
    main_path(&host, Who::Operator);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn two_at_once() {
    let host = TestHost::boot("keys-two");
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    // Each worker of the gateway has a cache of its own.
    host.set_env(who, &[("NUM_WORKERS", "2")]);
    host.units(who, &["up"]).ok();
    let workers = "podman top litellm args | grep -c multiprocessing.spawn";
    assert_eq!(host.sh(who, workers), "2\n");
    // The second is told of the first, and does no harm.
    let text = host.sh(
        who,
        "for _ in 1 2 3 4; do litellm-units key rotate service 2>&1 & done; wait",
    );
    assert!(text.contains("another operation is running: "), "{text}");
    let operation = host.sh(
        who,
        "flock /run/litellm-units/lock litellm-units status --json | jq -r .operation",
    );
    assert!(
        operation.starts_with("litellm-units key") && operation.ends_with(") is running\n"),
        "{operation}"
    );
    host.wait("a valid service key", Duration::from_secs(20), |host| {
        chat(host, who, &service_key(host, who)).map(drop)
    });
    assert_eq!(service_keys(&host, who), ["litellm-units-service"]);
}

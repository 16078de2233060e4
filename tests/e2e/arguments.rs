//! No process of the host shows a secret among its arguments, whatever is done and with any release.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::arguments::{Arguments, forms};
use crate::support::gateway::HELLO;
use crate::support::host::{TestHost, Who};
use crate::support::releases::{AT_OLDEST, NEWEST};

/// Secrets that have been in `.env`, and keys.
#[derive(Default)]
struct Secrets(BTreeSet<String>);

impl Secrets {
    /// Those that `.env` has now.
    fn collect(&mut self, host: &TestHost, who: Who) {
        let env = host.env(who);
        for name in [
            "LITELLM_MASTER_KEY",
            "LITELLM_SALT_KEY",
            "POSTGRES_PASSWORD",
            "REDIS_PASSWORD",
            "UI_PASSWORD",
        ] {
            let value = env.get(name).unwrap();
            assert!(value.len() > 15, "{name}");
            self.0.insert(value.to_owned());
        }
    }
}

/// As an operator does who keeps the key out of arguments.
#[track_caller]
fn serves(host: &TestHost, who: Who, key: &str) {
    let script = r#"
        curl -sSf --max-time 20 --config - -H 'Content-Type: application/json' \
            -d '{"model":"hello","messages":[{"role":"user","content":"hi"}]}' \
            http://127.0.0.1:24157/v1/chat/completions | jq -r '.choices[0].message.content'
    "#;
    let mut child = host
        .command(who, &["bash", "-euo", "pipefail", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let header = format!("header = \"Authorization: Bearer {key}\"\n");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(header.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), HELLO);
}

#[track_caller]
fn succeeds(host: &TestHost, who: Who, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let ran = host.units(who, &words);
    assert_eq!(ran.code, 0, "{words:?}: {}", ran.stderr);
    ran.stdout
}

/// What a deployment goes through while its arguments are watched.
#[derive(Clone, Copy, PartialEq)]
enum Course {
    /// The newest release alone, each kind of command once.
    Short,
    /// From the oldest release to the newest and back, with every command that starts or asks something.
    BothReleases,
}

fn no_secret_among_arguments(who: Who, name: &str, course: Course) {
    let host = TestHost::boot_for(who, name);
    let mut secrets = Secrets::default();
    succeeds(&host, who, "generate");
    host.set_env(
        who,
        &[
            ("UI_USERNAME", "ann"),
            ("UI_PASSWORD", "a long password + / %"),
        ],
    );
    match course {
        Course::Short => host.set_env(who, &[("LITELLM_IMAGE", NEWEST.image)]),
        Course::BothReleases => host.set_env(who, &AT_OLDEST),
    }
    secrets.collect(&host, who);
    let arguments = Arguments::watch(&host);
    succeeds(&host, who, "up");
    let made = succeeds(&host, who, "key create first --model hello --json");
    let made: Value = serde_json::from_str(&made).unwrap();
    let key = made["key"].as_str().unwrap().to_owned();
    secrets.0.insert(key.clone());
    serves(&host, who, &key);
    for words in [
        "key service",
        "key list",
        "key info first",
        "key block first",
        "key unblock first",
        "key update first --max-budget 1",
        "restart litellm",
        "restart --handover litellm",
        "backup",
    ] {
        succeeds(&host, who, words);
    }
    let service = host.sh(who, "cat \"$1\"/service-key.txt").trim().to_owned();
    secrets.0.insert(service);
    let upgrade = format!("upgrade --image {} --settle 1", NEWEST.image);
    let after: &[&str] = match course {
        Course::Short => &["secrets rotate postgres", "restore latest --yes"],
        Course::BothReleases => &[
            &upgrade,
            "restart litellm",
            "restart --handover litellm",
            "restart migrate",
            "secrets rotate postgres",
            "secrets rotate redis",
            "secrets rotate master",
            "secrets rotate salt",
            "key list",
            "backup",
            "restore latest --yes",
            "rollback --keep-data --settle 1",
            "secrets rotate postgres",
            "backup",
            "restore latest --yes",
        ],
    };
    for words in after {
        succeeds(&host, who, words);
        secrets.collect(&host, who);
        serves(&host, who, &key);
    }
    assert_eq!(
        succeeds(&host, who, "secrets audit"),
        "no secret where it does not belong\n"
    );
    succeeds(&host, who, "key delete first");
    succeeds(&host, who, "down");

    let seen = arguments.seen();
    // Only so does it prove anything: what ran for a short time was seen, too.
    for short in ["migrate deploy", "serve.py", "unit secret", "pg_isready"] {
        assert!(seen.contains(short), "{short} was not seen among:\n{seen}");
    }
    for line in seen.lines() {
        for secret in &secrets.0 {
            assert!(
                !forms(secret)
                    .iter()
                    .any(|form| line.contains(form.as_str())),
                "a secret is among the arguments: {line}"
            );
        }
    }
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_arguments() {
    no_secret_among_arguments(Who::Root, "arguments-rootful", Course::Short);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_arguments_of_both_releases() {
    no_secret_among_arguments(Who::Root, "arguments-both", Course::BothReleases);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootless_arguments_of_both_releases() {
    no_secret_among_arguments(Who::Operator, "arguments-rootless", Course::BothReleases);
}

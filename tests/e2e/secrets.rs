//! Secrets: rotated everywhere at once, and found where they do not belong.

use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::{HELLO, chat, new_key, wait_for_chat};
use crate::support::host::{TestHost, Who};

fn value(host: &TestHost, who: Who, name: &str) -> String {
    host.env(who).get(name).unwrap().to_owned()
}

/// Whether the gateway or a server accepts a secret. Passwords go over stdin: Podman's own lines in
/// the journal carry its arguments, and the audit would find them there.
fn accepts(host: &TestHost, who: Who, name: &str, value: &str) -> bool {
    let script = match name {
        "LITELLM_MASTER_KEY" => {
            r#"[[ $(curl -s -o /dev/null -w '%{http_code}' -H "Authorization: Bearer $2" http://127.0.0.1:24157/key/list) == 200 ]]"#
        }
        "POSTGRES_PASSWORD" => {
            r#"printf '%s\n' "$2" | podman exec -i litellm-postgres sh -c 'IFS= read -r PGPASSWORD; export PGPASSWORD; psql -w -h postgres -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "select 1"'"#
        }
        "REDIS_PASSWORD" => {
            r#"[[ $(printf '%s\n' "$2" | podman exec -i litellm-redis sh -c 'IFS= read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli ping') == PONG ]]"#
        }
        "UI_PASSWORD" => {
            r#"[[ $(curl -s -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json' -d "{\"username\":\"admin\",\"password\":\"$2\"}" http://127.0.0.1:24157/v2/login) == 200 ]]"#
        }
        other => panic!("{other}"),
    };
    host.run(
        who,
        &["bash", "-c", script, "accepts", who.deployment(), value],
    )
    .code
        == 0
}

fn rotate(host: &TestHost, who: Who, word: &str, name: &str, key: &str) {
    let old = value(host, who, name);
    let salt = value(host, who, "LITELLM_SALT_KEY");
    assert!(
        old.is_empty() || accepts(host, who, name, &old),
        "{name} before"
    );
    assert_eq!(
        host.units(who, &["secrets", "rotate", word]).ok(),
        format!("replaced {name}\n")
    );
    let new = value(host, who, name);
    assert_ne!(new, old);
    assert!(accepts(host, who, name, &new), "the new {name}");
    assert!(
        old.is_empty() || !accepts(host, who, name, &old),
        "the old {name}"
    );
    assert_eq!(value(host, who, "LITELLM_SALT_KEY"), salt);
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO), "after {name}");
    assert_eq!(host.units(who, &["status"]).code, 0);
    assert_eq!(
        host.sh(who, "ls \"$1/.litellm-units\""),
        "configurations\nlast-good\nledger.jsonl\n"
    );
    // An edit that does not work later goes back to the new one.
    host.sh(
        who,
        "cd \"$1\"; cmp .env .litellm-units/configurations/$(cat .litellm-units/last-good)/.env",
    );
}

/// Stores a credential.
fn store(host: &TestHost, who: Who) {
    host.sh(
        who,
        r#"curl -sSf --max-time 60 -H "Authorization: Bearer $(sed -n 's/^LITELLM_MASTER_KEY=//p' "$1/.env")" -H 'Content-Type: application/json' \
             -d '{"credential_name":"provider","credential_values":{"api_key":"sk-of-the-credential"},"credential_info":{}}' http://127.0.0.1:24157/credentials"#,
    );
}

/// Whether the salt decrypts what is stored, by the libraries of the gateway and with nothing of its own for it.
fn decrypts(host: &TestHost, who: Who, salt: &str) -> bool {
    host.write(
        who,
        "/tmp/decrypts.py",
        include_str!("../../units/decrypts.py"),
    );
    let script = r#"podman exec litellm-postgres sh -c 'psql -qtA -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "$0"' \
            'SELECT credential_values FROM "LiteLLM_CredentialsTable"' |
          jq -c --arg salt "$1" '(if type == "string" then fromjson else . end) | {salt: $salt, value: .api_key}' |
          podman exec -i litellm python3 -c "$(cat /tmp/decrypts.py)""#;
    match host.bash_with(who, script, &[salt]).code {
        0 => true,
        3 => false,
        other => panic!("exit status {other}"),
    }
}

fn rotate_salt(host: &TestHost, who: Who, key: &str) {
    store(host, who);
    let old = value(host, who, "LITELLM_SALT_KEY");
    assert!(decrypts(host, who, &old));
    let (code, stdout, stderr) = host.units(who, &["secrets", "rotate", "salt"]).all();
    assert_eq!(
        (code, stdout.as_str()),
        (0, "replaced LITELLM_SALT_KEY\n"),
        "{stderr}"
    );
    assert!(
        stderr.contains("values to encrypt with the other salt: 1; requests wait\n"),
        "{stderr}"
    );
    let new = value(host, who, "LITELLM_SALT_KEY");
    assert_ne!(new, old);
    assert!(decrypts(host, who, &new) && !decrypts(host, who, &old));
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rotations_rootful() {
    let host = TestHost::boot("rotate-rootful");
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    host.set_env(who, &[("UI_PASSWORD", "the-first-password")]);
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    for (word, name) in [
        ("master", "LITELLM_MASTER_KEY"),
        ("postgres", "POSTGRES_PASSWORD"),
        ("redis", "REDIS_PASSWORD"),
        ("ui", "UI_PASSWORD"),
    ] {
        rotate(&host, who, word, name, &key);
    }
    rotate_salt(&host, who, &key);
    assert_eq!(
        host.units(who, &["secrets", "audit"]).all(),
        (
            0,
            "no secret where it does not belong\n".into(),
            String::new()
        )
    );
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rotations_rootless() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "rotate-rootless");
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    rotate(&host, who, "postgres", "POSTGRES_PASSWORD", &key);
    rotate(&host, who, "redis", "REDIS_PASSWORD", &key);
    assert_eq!(
        host.units(who, &["secrets", "audit"]).all(),
        (
            0,
            "no secret where it does not belong\n".into(),
            String::new()
        )
    );
}

/// Killed, or without power, at any step: systemd goes on.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn an_interrupted_rotation_is_finished() {
    let host = TestHost::boot("rotate-killed");
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    let cases = [
        // Written down, nothing done yet or PostgreSQL just told.
        ("[[ -e .litellm-units/change.json ]]", false),
        // In .env, nothing restarted yet.
        ("! cmp -s .env /tmp/before", false),
        ("! cmp -s .env /tmp/before", true),
    ];
    for (moment, power) in cases {
        let old = value(&host, who, "POSTGRES_PASSWORD");
        host.sh(
            who,
            &format!(
                "cd \"$1\"; cp .env /tmp/before; litellm-units secrets rotate postgres >/dev/null 2>&1 & process=$!; cd \"$1\"; until {moment}; do :; done; kill -9 $process"
            ),
        );
        if power {
            host.crash();
        }
        host.wait(
            "the end of the rotation",
            Duration::from_secs(180),
            |host| {
                let rest = host.sh(who, "ls \"$1/.litellm-units\"");
                if rest.contains("change.json") {
                    Err(rest)
                } else {
                    Ok(())
                }
            },
        );
        let said = host.sh(who, "journalctl -b -o cat -u litellm-recovery.service");
        assert!(
            said.contains("finishing the interrupted rotation of POSTGRES_PASSWORD\n"),
            "{moment}: {said}"
        );
        wait_for_chat(&host, who, &key, Duration::from_secs(30));
        let new = value(&host, who, "POSTGRES_PASSWORD");
        assert_ne!(new, old);
        assert!(accepts(&host, who, "POSTGRES_PASSWORD", &new));
        assert!(!accepts(&host, who, "POSTGRES_PASSWORD", &old));
        assert_eq!(
            host.sh(who, "ls \"$1/.litellm-units\""),
            "configurations\nlast-good\nledger.jsonl\n"
        );
    }
}

/// Killed between the database and `.env`: nothing is left that neither salt decrypts.
#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn an_interrupted_rotation_of_the_salt_is_finished() {
    let host = TestHost::boot("rotate-salt");
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    store(&host, who);
    for point in ["salt-stopped", "salt-written"] {
        let old = value(&host, who, "LITELLM_SALT_KEY");
        let said = host.interrupt_at(who, point, "", "secrets rotate salt");
        assert!(
            said.contains("finishing the interrupted rotation of LITELLM_SALT_KEY\n"),
            "{point}: {said}"
        );
        let new = value(&host, who, "LITELLM_SALT_KEY");
        assert_ne!(new, old, "{point}");
        assert!(decrypts(&host, who, &new), "{point}");
        assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO), "{point}");
    }
    // The gateway does not get ready with the new salt.
    let old = value(&host, who, "LITELLM_SALT_KEY");
    host.sh(who, "mkdir -p /etc/systemd/system/litellm.service.d; printf '[Service]\\nExecStartPre=/bin/sh -c \"! rm /tmp/fail-once\"\\nRestart=no\\n' >/etc/systemd/system/litellm.service.d/fail.conf; systemctl daemon-reload; touch /tmp/fail-once");
    let (code, _, stderr) = host.units(who, &["secrets", "rotate", "salt"]).all();
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("error: the rotation of LITELLM_SALT_KEY failed and was rolled back"),
        "{stderr}"
    );
    assert_eq!(value(&host, who, "LITELLM_SALT_KEY"), old);
    assert!(decrypts(&host, who, &old));
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
}

/// The gateway does not get ready: everything is as before.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_failed_rotation_is_taken_back() {
    let host = TestHost::boot("rotate-failed");
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    let before = host.sh(who, "cat \"$1/.env\"");
    let old = value(&host, who, "POSTGRES_PASSWORD");
    // Fails the next start of the gateway, and only that.
    host.sh(who, "mkdir -p /etc/systemd/system/litellm.service.d; printf '[Service]\\nExecStartPre=/bin/sh -c \"! rm /tmp/fail-once\"\\nRestart=no\\n' >/etc/systemd/system/litellm.service.d/fail.conf; systemctl daemon-reload; touch /tmp/fail-once");
    let (code, stdout, stderr) = host.units(who, &["secrets", "rotate", "postgres"]).all();
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(
        stderr.contains("error: the rotation of POSTGRES_PASSWORD failed and was rolled back"),
        "{stderr}"
    );
    assert_eq!(host.sh(who, "cat \"$1/.env\""), before);
    assert!(accepts(&host, who, "POSTGRES_PASSWORD", &old));
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    assert_eq!(
        host.sh(who, "ls \"$1/.litellm-units\""),
        "configurations\nlast-good\nledger.jsonl\n"
    );
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn the_web_interface() {
    let host = TestHost::boot("ui");
    let who = Who::Root;
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let master = value(&host, who, "LITELLM_MASTER_KEY");
    assert!(accepts(&host, who, "UI_PASSWORD", &master));
    let session = host.sh(who, &format!("curl -s -D - -o /dev/null -H 'Content-Type: application/json' -d '{{\"username\":\"admin\",\"password\":\"{master}\"}}' http://127.0.0.1:24157/v2/login | sed -n 's/^set-cookie: token=[^.]*\\.\\([^.]*\\)\\..*/\\1/p' | tr _- /+ | base64 -d 2>/dev/null | grep -o 'sk-[A-Za-z0-9_-]*'"));
    let session = session.trim();
    let session_works = |host: &TestHost| accepts(host, who, "LITELLM_MASTER_KEY", session);
    assert!(session_works(&host));

    let redirect = |host: &TestHost| {
        host.sh(who, "curl -s -o /dev/null -w '%{redirect_url}' -H 'Host: llm.example.com' -H 'X-Forwarded-Proto: https' http://127.0.0.1:24157/ui")
    };
    // A proxy on this host is believed as it is; on another machine there can be none.
    assert_eq!(redirect(&host), "https://llm.example.com/ui/");
    let ran = host.units(
        who,
        &["ui", "--generate", "--base-url", "https://llm.example.com/"],
    );
    assert!(
        ran.stderr
            .ends_with("https://llm.example.com/ui answers; log in as admin\n"),
        "{}",
        ran.stderr
    );
    let password = ran.ok();
    assert_eq!(password.trim_end(), value(&host, who, "UI_PASSWORD"));
    assert!(accepts(&host, who, "UI_PASSWORD", password.trim_end()));
    assert!(!accepts(&host, who, "UI_PASSWORD", &master));
    assert!(!session_works(&host), "a session from before goes on");
    assert_eq!(redirect(&host), "https://llm.example.com/ui/");

    let before = host.sh(who, "cat \"$1/.env\"");
    for (address, words) in [
        ("http://llm.example.com", "is not https"),
        ("https://llm.example.com/sub", "has a path"),
        ("llm.example.com", "is not a URL"),
    ] {
        let (code, _, stderr) = host.units(who, &["ui", "--base-url", address]).all();
        assert!(code == 1 && stderr.contains(words), "{address}: {stderr}");
    }
    let (code, stdout, stderr) = host.units(who, &["ui"]).all();
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (
            1,
            "",
            "error: the web interface has the login admin, and there is no terminal to ask whether to replace its password\n\
             hint: replace it with a random one: `litellm-units ui --generate`\n"
        )
    );
    let short = host.bash(who, "echo short | litellm-units ui --password-stdin");
    assert_eq!(
        (short.code, short.stderr.contains("fewer than 8")),
        (1, true)
    );
    assert_eq!(host.sh(who, "cat \"$1/.env\""), before);
    host.sh(
        who,
        "echo 'a good pass phrase' | litellm-units ui --password-stdin",
    );
    assert!(accepts(&host, who, "UI_PASSWORD", "a good pass phrase"));
}

fn findings(host: &TestHost, who: Who) -> Vec<(String, String)> {
    let ran = host.units(who, &["secrets", "audit", "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let env = host.env(who);
    for (name, value) in env.iter().filter(|(_, value)| value.len() > 20) {
        assert!(
            name == "LITELLM_IMAGE" || !ran.stdout.contains(value),
            "the audit shows {name}"
        );
    }
    report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap().to_owned();
            (text("place"), text("secret"))
        })
        .collect()
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn the_audit_finds_each_leak() {
    let host = TestHost::boot("audit");
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    host.set_env(
        who,
        &[
            ("POSTGRES_PASSWORD", "pass+word/with-signs"),
            ("UI_PASSWORD", "only-for-the-interface"),
        ],
    );
    host.units(who, &["up"]).ok();
    host.units(who, &["key", "service"]).ok();
    let clean = (
        0,
        "no secret where it does not belong\n".to_owned(),
        String::new(),
    );
    assert_eq!(host.units(who, &["secrets", "audit"]).all(), clean);

    let quadlets = who.quadlets();
    let get = "v() { sed -n \"s/^$1=//p\" /opt/litellm-server/.env; }";
    // What plants it, where it must be found (its beginning), which secret, and what removes it.
    let leaks = [
        ("cp .env .env.bak; chmod 644 .env.bak".to_owned(), "/opt/litellm-server/.env.bak", "LITELLM_MASTER_KEY", "rm .env.bak"),
        ("chmod 640 .env".into(), "/opt/litellm-server/.env", "all of .env", "chmod 600 .env"),
        ("chmod 604 service-key.txt".into(), "/opt/litellm-server/service-key.txt", "the service key", "chmod 600 service-key.txt"),
        ("chmod 755 .litellm-units".into(), "/opt/litellm-server/.litellm-units", "kept configurations", "chmod 700 .litellm-units"),
        ("echo \"key $(cat service-key.txt)\" >logs/x.log".into(), "/opt/litellm-server/logs/x.log", "service-key.txt", "rm logs/x.log"),
        ("echo \"# $(v LITELLM_SALT_KEY)\" >config/note".into(), "/opt/litellm-server/config/note", "LITELLM_SALT_KEY", "rm config/note"),
        (format!("mkdir {quadlets}/litellm.container.d; echo \"[Container]\nEnvironment=X=$(v REDIS_PASSWORD)\" >{quadlets}/litellm.container.d/x.conf"), "/etc/containers/systemd/litellm.container.d/x.conf", "REDIS_PASSWORD", "rm -r /etc/containers/systemd/litellm.container.d"),
        ("(exec -a \"x-$(v LITELLM_MASTER_KEY)\" sleep 600) >/dev/null 2>&1 & echo $! >/tmp/leak".into(), "process ", "LITELLM_MASTER_KEY", "kill $(cat /tmp/leak)"),
        ("X=$(v UI_PASSWORD) sleep 600 >/dev/null 2>&1 & echo $! >/tmp/leak".into(), "process ", "UI_PASSWORD", "kill $(cat /tmp/leak)"),
        ("systemctl set-environment X=$(v UI_PASSWORD)".into(), "systemctl show-environment", "UI_PASSWORD", "systemctl unset-environment X"),
        ("echo \"curl $(v LITELLM_MASTER_KEY)\" >/root/.bash_history".into(), "/root/.bash_history", "LITELLM_MASTER_KEY", "rm /root/.bash_history"),
    ];
    for (plant, place, secret, remove) in leaks {
        host.sh(who, &format!("cd \"$1\"; {get}; {plant}"));
        let found = findings(&host, who);
        assert!(
            found
                .iter()
                .any(|(where_, what)| where_.starts_with(place) && what == secret),
            "{plant}: {found:?}"
        );
        // A process among the arguments is in its own environment block as well, never more.
        assert!(
            found.iter().all(|(where_, _)| where_.starts_with(place)),
            "{plant}: {found:?}"
        );
        host.sh(who, &format!("cd \"$1\"; {remove} >/dev/null"));
        host.wait("a clean deployment", Duration::from_secs(10), |host| {
            let ran = host.units(who, &["secrets", "audit"]);
            if ran.code == 0 {
                Ok(())
            } else {
                Err(ran.stdout)
            }
        });
    }
    // What a container shows, with the unit that it belongs to.
    host.sh(
        who,
        &format!("{get}; podman exec -d litellm-redis sh -c \"sleep 600; : $(v REDIS_PASSWORD)\""),
    );
    let found = findings(&host, who);
    assert!(
        found
            .iter()
            .any(|(place, secret)| place.starts_with("process ")
                && place.ends_with(" (sh) of litellm-redis.service")
                && secret == "REDIS_PASSWORD"),
        "{found:?}"
    );
    host.sh(who, "kill $(pgrep -f '[s]leep 600; :')");
    // Percent-encoded, as in a URL; last, since the journal forgets nothing.
    host.sh(who, &format!("{get}; systemd-run -q --wait --unit=leaky echo postgresql://litellm:$(v POSTGRES_PASSWORD | sed 's/+/%2B/g; s/\\//%2F/g')@postgres"));
    let found = findings(&host, who);
    assert!(
        found.contains(&(
            "journal of leaky.service".into(),
            "POSTGRES_PASSWORD".into()
        )),
        "{found:?}"
    );

    // Podman notes in the journal what a container was made with.
    host.sh(who, &format!("{get}; podman run -d --rm --name leak -e X=\"$(v UI_PASSWORD)\" --entrypoint sleep docker.io/library/redis:7.4.6 600 >/dev/null"));
    let found = findings(&host, who);
    assert!(
        found.contains(&("podman container inspect leak".into(), "UI_PASSWORD".into())),
        "{found:?}"
    );
}

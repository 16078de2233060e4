//! Secrets sealed with a key of the host: in clear nowhere, and used as before.

use std::io::Read;
use std::time::Duration;

use crate::support::gateway::{HELLO, chat, new_key, variable, wait_for_chat};
use crate::support::host::{TestHost, Who};

const SECRETS: [&str; 5] = [
    "LITELLM_MASTER_KEY",
    "LITELLM_SALT_KEY",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "UI_PASSWORD",
];
const WARNING: &str = "warning: without this host, backups can't restore the secrets until .env has BACKUP_AGE_RECIPIENT: LITELLM_SALT_KEY would be lost, and with it the credentials in the database\n";

/// `sealed A`, `sealed B`, …
fn lines(verb: &str, names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("{verb} {name}\n"))
        .collect()
}

/// The value that a container would get.
#[track_caller]
fn value(host: &TestHost, who: Who, service: &str, name: &str) -> String {
    host.units(who, &["unit", "secret", service, name]).ok()
}

/// Every place that holds one of the values: files, the journal, and what processes and Podman
/// tell. Not among them is how Podman and the runtime, for root only, describe each container that
/// exists, with its environment. The values are in no argument meanwhile.
fn places(host: &TestHost, values: &[String]) -> String {
    let who = Who::Root;
    host.write(who, "/dev/shm/values", &(values.join("\n") + "\n"));
    host.sh(
        who,
        r#"
        look() { ! grep -q -a -F -f /dev/shm/values || echo "$1"; }
        storage=/var/lib/containers/storage
        rightly=$(for id in $(podman ps -aq --no-trunc); do printf '%s/config.json\n' $storage/overlay-containers/$id/userdata /run/crun/$id; done)
        # Without the images, and what is mounted from them.
        find /opt /etc /run /var/log $storage \( -path $storage/overlay -o -path $storage/overlay-images -o -path $storage/overlay-layers \) -prune -o -type f -print0 |
            { xargs -0 grep -laF -f /dev/shm/values || :; } | { grep -vxF "$rightly" || :; }
        test "$(stat -c %a /run/crun $storage/overlay-containers | uniq)" = 700
        journalctl --no-pager -o export | look journal
        cat /proc/[0-9]*/cmdline 2>/dev/null | look arguments
        podman ps -aq | xargs podman inspect | look inspect
        podman secret ls -q | xargs podman secret inspect | look secrets
        rm /dev/shm/values"#,
    )
}

fn runs(host: &TestHost) -> Vec<String> {
    ["litellm-postgres", "litellm-redis", "litellm"]
        .iter()
        .map(|unit| host.property(Who::Root, &format!("{unit}.service"), "InvocationID"))
        .collect()
}

/// Reads a file of a backup that is encrypted with age.
fn decrypted(host: &TestHost, identity: &age::x25519::Identity, path: &str) -> String {
    let text = host.sh(Who::Root, &format!("od -An -v -tx1 {path}"));
    let bytes: Vec<u8> = text
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let decryptor = age::Decryptor::new(bytes.as_slice()).unwrap();
    let mut text = String::new();
    decryptor
        .decrypt(std::iter::once(identity as _))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

/// A backup holds them as they are sealed, or in clear within what only its recipient can open.
fn backups(host: &TestHost, before: &str) {
    let who = Who::Root;
    let ran = host.units(who, &["backup"]);
    assert!(
        ran.stderr.contains("warning: the secrets in this backup are sealed and can be opened on this host only: to use them on another host, add BACKUP_AGE_RECIPIENT to .env\n"),
        "{}",
        ran.stderr
    );
    let sealed = ran.ok();
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let ran = host.units(who, &["backup", "--age-recipient", &recipient]);
    assert!(!ran.stderr.contains("warning"), "{}", ran.stderr);
    let encrypted = ran.ok();
    let path = format!("{}/deployment/.env.age", encrypted.trim_end());
    assert_eq!(decrypted(host, &identity, &path), before);

    // As on a host with another key.
    host.sh(who, "mv /var/lib/systemd/credential.secret /root/");
    let id = sealed.trim_end().rsplit('/').next().unwrap();
    let ran = host.units(who, &["restore", id, "--yes", "--config"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains(&format!(
            "error: the secrets in backup {id} were sealed on another host, or with a key that is lost: "
        )),
        "{}",
        ran.stderr
    );
    let ran = host.units(who, &["unit", "secret", "litellm", "LITELLM_SALT_KEY"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.starts_with("error: LITELLM_SALT_KEY is sealed, and /opt/litellm-server/credentials/LITELLM_SALT_KEY.")
            && ran.stderr.contains(" can't be opened: systemd-creds: Failed to determine local credential key: No such file or directory\nhint: "),
        "{}",
        ran.stderr
    );
    let doctor = host.units(who, &["doctor"]).stdout;
    assert!(
        doctor.contains("\nFAILURE  sealed: LITELLM_MASTER_KEY is sealed, and "),
        "{doctor}"
    );
    host.sh(who, "mv /root/credential.secret /var/lib/systemd/");
}

/// The new password is sealed before anything is written down, wherever the rotation is killed.
#[cfg(feature = "fault-points")]
fn a_killed_rotation(host: &TestHost, key: &str) {
    let who = Who::Root;
    let before = host.sh(who, "cat \"$1/.env\"");
    for (point, there) in [("change-before-written", false), ("change-written", true)] {
        host.kill_at(who, point, "", "secrets rotate postgres");
        assert_eq!(host.sh(who, "cat \"$1/.env\""), before);
        let words = host.sh(
            who,
            r#"f="$1/.litellm-units/change.json"; [ ! -e "$f" ] || jq -r '.edits[] | .before, .after, .env_before, .env_after | strings' "$f" | sed 's/\.[0-9a-f]*$//'"#,
        );
        let reference = "systemd-creds:POSTGRES_PASSWORD\n";
        assert_eq!(
            words,
            if there {
                reference.repeat(2)
            } else {
                String::new()
            }
        );
        assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO), "{point}");
    }
    let ran = host.units(who, &["up"]);
    assert!(
        ran.stderr
            .contains("finishing the interrupted rotation of POSTGRES_PASSWORD\n"),
        "{}",
        ran.stderr
    );
    ran.ok();
}

/// The last good configuration comes back with what was sealed in it, though `.env` had another
/// value sealed since.
#[cfg(feature = "fault-points")]
fn a_failed_edit(host: &TestHost, key: &str) {
    let who = Who::Root;
    let before = host.sh(who, "cat \"$1/.env\"");
    let password = value(host, who, "litellm", "UI_PASSWORD");
    host.set_env(who, &[("UI_PASSWORD", "another password")]);
    assert_eq!(
        host.units(who, &["secrets", "seal"]).stdout,
        "sealed UI_PASSWORD\n"
    );
    assert_eq!(
        value(host, who, "litellm", "UI_PASSWORD"),
        "another password"
    );
    host.sh(
        who,
        r#"cd "$1/config"; cp litellm-config.yaml /root/; echo 'raise RuntimeError' >broken.py; printf 'litellm_settings:\n  callbacks: [broken.handler]\n' >>litellm-config.yaml"#,
    );
    let ran = host.units(who, &["apply"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("the changes were rolled back; the gateway is ready"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        host.sh(
            who,
            r#"cmp "$1/config/litellm-config.yaml" /root/litellm-config.yaml; cat "$1/.env""#
        ),
        before
    );
    assert_eq!(value(host, who, "litellm", "UI_PASSWORD"), password);
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
}

#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_sealed_deployment() {
    let host = TestHost::boot("sealed");
    let who = Who::Root;
    host.without_standby(who);
    host.units(who, &["generate"]).ok();
    host.set_env(who, &[("UI_PASSWORD", "the password, with 'quotes'")]);
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    let before = host.sh(who, "cat \"$1/.env\"");
    let env = host.env(who);
    let mut values: Vec<String> = SECRETS
        .iter()
        .map(|name| env.get(name).unwrap().to_owned())
        .collect();
    assert_ne!(places(&host, &values), "");

    let started = runs(&host);
    let told = "sealed secrets can be opened with the host key (/var/lib/systemd/credential.secret) only\n";
    assert_eq!(
        host.units(who, &["secrets", "seal"]).all(),
        (
            0,
            lines("sealed", &SECRETS),
            format!(
                "sealed in 1 kept configurations as well\nto find older copies, in backups for example: `litellm-units secrets audit`\n{told}{WARNING}"
            )
        )
    );
    assert_eq!(
        host.units(who, &["secrets", "seal"]).all(),
        (0, "nothing to do\n".into(), format!("{told}{WARNING}"))
    );
    assert_eq!(places(&host, &values), "");
    assert_eq!(
        host.sh(
            who,
            "find \"$1/credentials\" -printf '%m %f\\n' | sed 's/\\.[0-9a-f]*$//' | sort"
        ),
        "600 LITELLM_MASTER_KEY\n600 LITELLM_SALT_KEY\n600 POSTGRES_PASSWORD\n600 REDIS_PASSWORD\n600 UI_PASSWORD\n700 credentials\n"
    );
    assert_eq!(host.units(who, &["generate"]).ok(), "nothing to do\n");
    assert_eq!(host.units(who, &["status"]).code, 0);
    let config = host.units(who, &["config"]).ok();
    assert!(
        config.contains("\nlitellm LITELLM_MASTER_KEY=********\n")
            && config.contains(
                "\nlitellm DATABASE_URL=postgresql://litellm:********@postgres:5432/litellm\n"
            ),
        "{config}"
    );
    let clear = host.units(who, &["config", "--unmask", "--force"]).ok();
    assert!(clear.contains(&format!("\nlitellm LITELLM_MASTER_KEY={}\n", values[0])));
    let none = "no secret where it does not belong\n";
    assert_eq!(host.units(who, &["secrets", "audit"]).ok(), none);
    // None of it was noticed, nor is anything to be restarted.
    assert_eq!(runs(&host), started);
    let ran = host.units(who, &["apply"]);
    assert!(!ran.stderr.contains("changed"), "{}", ran.stderr);
    assert_eq!(runs(&host), started);
    host.units(who, &["key", "service"]).ok();

    // Earlier copies in clear are found in every place.
    host.write(who, "/opt/litellm-server/old.env", &before);
    host.sh(who, "chmod 600 \"$1/old.env\"");
    let audit = host.units(who, &["secrets", "audit"]);
    assert_eq!(audit.code, 1);
    for name in SECRETS {
        let found = audit.stdout.lines().any(|line| {
            line.split_whitespace().collect::<Vec<_>>().join(" ")
                == format!("/opt/litellm-server/old.env {name} in clear, though .env has only a reference to it")
        });
        assert!(found, "{name}: {}", audit.stdout);
    }
    host.sh(who, "rm \"$1/old.env\"");

    backups(&host, &before);
    a_killed_rotation(&host, &key);
    let password = value(&host, who, "postgres", "POSTGRES_PASSWORD");
    assert_ne!(password, values[2]);
    let expected = before.replace(&values[2], &password);
    values.push(password);
    // Nor is anything left of the containers that did not end.
    host.crash();
    wait_for_chat(&host, who, &key, Duration::from_secs(180));
    a_failed_edit(&host, &key);
    assert_eq!(places(&host, &values), "");
    assert_eq!(host.units(who, &["secrets", "audit"]).ok(), none);

    let started = runs(&host);
    let ran = host.units(who, &["secrets", "unseal"]);
    assert_eq!(ran.stdout, lines("unsealed", &SECRETS));
    assert_eq!(host.sh(who, "cat \"$1/.env\""), expected);
    assert_eq!(
        host.sh(who, "ls -d \"$1\"/cred* 2>&1 || :")
            .matches("No such")
            .count(),
        1
    );
    let sealed = "! grep -rl systemd-creds: \"$1/.litellm-units\" \"$1/.env\"";
    assert_eq!(host.sh(who, sealed), "");
    assert_eq!(host.units(who, &["status"]).code, 0);
    let ran = host.units(who, &["apply"]);
    assert!(!ran.stderr.contains("changed"), "{}", ran.stderr);
    assert_eq!(runs(&host), started);
}

/// Written in every way that there is; nothing of it runs.
const WRITTEN: &str = "\
# kept
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=\"sk-\\061\\$x\" # the first one
  export LITELLM_SALT_KEY = 'sk-salt'
POSTGRES_USER=litellm
POSTGRES_PASSWORD=first
POSTGRES_PASSWORD=pass#word$$1
POSTGRES_DB=litellm
REDIS_PASSWORD: 'it is
over two lines'
TOKEN_FILE=/app/config/token
PW=hunter2
OTHER_URL=https://me:${PW}@example.com
COPY=${LITELLM_MASTER_KEY}x
OPENAI_API_KEY=
ANTHROPIC_API_KEY=
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
";

/// What every container gets.
fn everything(host: &TestHost, who: Who) -> String {
    host.units(
        who,
        &[
            "config",
            "--unmask",
            "--force",
            "--litellm-dir",
            "/srv/server",
        ],
    )
    .ok()
}

#[track_caller]
fn secrets(host: &TestHost, who: Who, words: &[&str]) -> (i32, String, String) {
    host.units(
        who,
        &[&["secrets", "--litellm-dir", "/srv/server"], words].concat(),
    )
    .all()
}

#[track_caller]
fn refused(host: &TestHost, who: Who, words: &[&str], expected: &str) {
    let (code, stdout, stderr) = secrets(host, who, words);
    assert_eq!(stdout, "");
    assert!(code != 0 && stderr.starts_with(expected), "{stderr}");
    assert_eq!(
        host.sh(who, "cat /srv/server/.env; ls -A /srv/server"),
        format!("{WRITTEN}.env\nconfig\ndata\nlogs\n")
    );
}

#[track_caller]
fn prepare(host: &TestHost, who: Who) {
    host.sh(
        who,
        "mkdir -p /srv/server/config /srv/server/data /srv/server/logs",
    );
    host.write(who, "/srv/server/.env", WRITTEN);
    host.sh(who, "chmod 600 /srv/server/.env");
}

/// Before and after every step, all values are what they were; and the next run goes on.
#[cfg(feature = "fault-points")]
fn killed_anywhere(host: &TestHost, who: Who, before: &str) {
    let all = "PW LITELLM_MASTER_KEY LITELLM_SALT_KEY POSTGRES_PASSWORD REDIS_PASSWORD";
    // A kept configuration, in another state than `.env`.
    let keep = "mkdir -pm 700 /srv/server/.litellm-units/configurations/0123456789abcdef; cp -a /srv/server/.env /srv/server/.litellm-units/configurations/0123456789abcdef/";
    for (verb, points) in [
        (
            "seal",
            &[
                "seal-encrypted",
                "seal-before-env",
                "seal-after-env",
                "seal-kept",
            ][..],
        ),
        (
            "unseal",
            &["unseal-before-env", "unseal-after-env", "seal-kept"][..],
        ),
    ] {
        for point in points {
            prepare(host, who);
            host.sh(who, keep);
            if verb == "unseal" {
                host.sh(
                    who,
                    &format!("litellm-units secrets --litellm-dir /srv/server seal {all}"),
                );
            }
            let words = format!("secrets --litellm-dir /srv/server {verb} {all}");
            host.kill_at(who, point, "", &words);
            assert_eq!(everything(host, who), before, "{point}");
            let (code, _, stderr) = secrets(
                host,
                who,
                &[&[verb], &*all.split(' ').collect::<Vec<_>>()].concat(),
            );
            assert_eq!(code, 0, "{point}: {stderr}");
            assert_eq!(everything(host, who), before, "{point}");
            let count = |what: &str| {
                host.sh(who, &format!("(grep -rlE --include=.env '{what}' /srv/server || :) | wc -l; find /srv/server -name credentials | wc -l"))
            };
            assert_eq!(
                count("sk-salt|hunter2"),
                if verb == "seal" { "0\n1\n" } else { "2\n0\n" },
                "{point}"
            );
            let files = host.sh(who, "find /srv/server -path '*/credentials/*' | wc -l");
            assert_eq!(files, if verb == "seal" { "6\n" } else { "0\n" }, "{point}");
            host.sh(who, "rm -r /srv/server");
        }
    }
}

fn seal_and_unseal(host: &TestHost, who: Who) {
    prepare(host, who);
    let before = everything(host, who);
    refused(
        host,
        who,
        &["seal"],
        "error: /srv/server/.env, line 13: OTHER_URL refers to other variables, so it can't be sealed itself\nhint: ",
    );
    refused(
        host,
        who,
        &["seal", "NONE"],
        "error: NONE has no value in /srv/server/.env\n",
    );
    refused(
        host,
        who,
        &["seal", "UI_PASSWORD"],
        "error: UI_PASSWORD has no value in ",
    );
    refused(
        host,
        who,
        &["seal", "POSTGRES_USER"],
        "error: POSTGRES_USER is not a secret and must stay in clear\n",
    );
    refused(
        host,
        who,
        &["seal", "--stdin"],
        "error: --stdin gives a value for one variable\n",
    );

    assert_eq!(secrets(host, who, &["seal", "PW"]).1, "sealed PW\n");
    assert_eq!(
        secrets(host, who, &["seal"]).1,
        lines("sealed", &SECRETS[..4])
    );
    let sealed = host.sh(who, "sed 's/\\.[0-9a-f]\\{16\\}/.ID/g' /srv/server/.env");
    assert_eq!(
        sealed,
        "\
# kept
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=\"systemd-creds:LITELLM_MASTER_KEY.ID\" # the first one
  export LITELLM_SALT_KEY = 'systemd-creds:LITELLM_SALT_KEY.ID'
POSTGRES_USER=litellm
POSTGRES_PASSWORD=systemd-creds:POSTGRES_PASSWORD.ID
POSTGRES_PASSWORD=systemd-creds:POSTGRES_PASSWORD.ID
POSTGRES_DB=litellm
REDIS_PASSWORD: 'systemd-creds:REDIS_PASSWORD.ID'
TOKEN_FILE=/app/config/token
PW=systemd-creds:PW.ID
OTHER_URL=https://me:${PW}@example.com
COPY=${LITELLM_MASTER_KEY}x
OPENAI_API_KEY=
ANTHROPIC_API_KEY=
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
"
    );
    assert_eq!(everything(host, who), before);
    let shown = host
        .units(who, &["config", "--litellm-dir", "/srv/server"])
        .ok();
    assert!(
        !shown.contains("hunter2") && !shown.contains("systemd-creds:"),
        "{shown}"
    );

    // A file in the place of another, or one that anybody could have written, is not taken.
    let place = "cd /srv/server/credentials; mv PW.* /tmp/kept; name=$(basename $(sed -n s/^PW=systemd-creds:PW/PW/p ../.env))";
    for (plant, reason) in [
        (
            "cp LITELLM_SALT_KEY.* $name",
            "Embedded credential name 'LITELLM_SALT_KEY.",
        ),
        (
            "printf x | systemd-creds encrypt --with-key=null --name=$name - $name 2>/dev/null",
            "it is encrypted with a null key, so anyone may have written it",
        ),
        ("printf x >$name", "it was not written by systemd-creds"),
        (":", "No such file or directory"),
    ] {
        host.sh(who, &format!("{place}; {plant}"));
        let ran = host.units(
            who,
            &[
                "config",
                "--unmask",
                "--force",
                "--litellm-dir",
                "/srv/server",
            ],
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
        assert!(
            ran.stderr
                .starts_with("error: PW is sealed, and /srv/server/credentials/PW.")
                && ran.stderr.contains(reason),
            "{}",
            ran.stderr
        );
        host.sh(who, "cd /srv/server/credentials; name=$(basename $(sed -n s/^PW=systemd-creds:PW/PW/p ../.env)); mv -f /tmp/kept $name");
    }

    // A new value that was never in clear in a file.
    host.sh(who, "echo 'sk-new $1' | litellm-units secrets --litellm-dir /srv/server seal --stdin OPENAI_API_KEY");
    let after = everything(host, who);
    assert_eq!(
        after.replace("litellm OPENAI_API_KEY=sk-new $1\n", ""),
        before
    );
    assert_eq!(
        secrets(host, who, &["unseal", "OPENAI_API_KEY"]).1,
        "unsealed OPENAI_API_KEY\n"
    );
    assert_eq!(
        secrets(host, who, &["unseal"]).1,
        "unsealed LITELLM_MASTER_KEY\nunsealed LITELLM_SALT_KEY\nunsealed POSTGRES_PASSWORD\nunsealed REDIS_PASSWORD\nunsealed PW\n"
    );
    assert_eq!(
        host.sh(who, "cat /srv/server/.env; ls -A /srv/server"),
        WRITTEN.replace("OPENAI_API_KEY=", "OPENAI_API_KEY='sk-new $1'")
            + ".env\nconfig\ndata\nlogs\n"
    );
    assert_eq!(secrets(host, who, &["unseal"]).1, "nothing to do\n");
    host.sh(who, "rm -r /srv/server");
    #[cfg(feature = "fault-points")]
    killed_anywhere(host, who, &before);
}

#[test]
fn sealing_changes_only_what_it_has_to() {
    let host = TestHost::boot("seal");
    let who = Who::Root;
    seal_and_unseal(&host, who);
    // Where the host can't.
    prepare(&host, who);
    refused(
        &host,
        who,
        &["seal", "--user"],
        "error: secrets of a rootless deployment can't be sealed: ",
    );
    host.sh(who, "mount -t tmpfs tmpfs /var/lib/systemd");
    refused(
        &host,
        who,
        &["seal", "PW"],
        "error: this host can't seal secrets: /var/lib/systemd/credential.secret would be in memory only and lost at the next boot\nhint: ",
    );
    host.sh(who, "umount /var/lib/systemd");
    refused(
        &host,
        who,
        &["seal", "PW", "--with-key", "tpm2"],
        "error: this host can't seal secrets: systemd-creds: ",
    );
    host.sh(who, "mv /usr/bin/systemd-creds /usr/bin/away");
    refused(
        &host,
        who,
        &["seal", "PW"],
        "error: this host can't seal secrets: systemd-creds is not installed\nhint: ",
    );
}

/// They are in memory and in Podman's storage only, and a container starts with them while the store does not answer.
#[test]
fn values_of_other_programs() {
    let host = TestHost::boot("store");
    let who = Who::Root;
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        r#"printf '#!/bin/sh\n[ "$1" = llm ] && cat /run/store\n' >/usr/local/sbin/key
           chmod 700 /usr/local/sbin/key
           sed -i 's|^OPENAI_API_KEY=.*|OPENAI_API_KEY=exec:/usr/local/sbin/key llm|' "$1/.env""#,
    );
    let failed = "OPENAI_API_KEY can't be fetched: /usr/local/sbin/key failed (exit status: 1): cat: /run/store: No such file or directory";
    // A dry run only names the program.
    let dry = host.units(who, &["apply", "--dry-run"]).ok();
    assert!(
        dry.contains("# run /usr/local/sbin/key for OPENAI_API_KEY\n"),
        "{dry}"
    );
    let ran = host.units(who, &["up"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains(&format!(
            "{failed}\nhint: run the program: `sudo /usr/local/sbin/key llm >/dev/null`\n"
        )),
        "{}",
        ran.stderr
    );
    let store = |value: &str| {
        host.sh(who, &format!("umask 077; echo {value} >/run/store"));
    };
    let given = || variable(&host, who, "litellm", "OPENAI_API_KEY");
    let handover = || host.units(who, &["restart", "--handover", "litellm"]).ok();
    let doctor = || host.units(who, &["doctor"]).stdout;
    store("sk-of-the-store-1");
    // A sealed file is in memory as well.
    host.sh(
        who,
        "echo the-key-of-google | install -m 600 /dev/stdin \"$1/files/google.json\"",
    );
    assert_eq!(
        host.units(who, &["secrets", "seal", "--file", "google.json"])
            .ok(),
        "sealed files/google.json\n"
    );
    host.sh(who, "rm \"$1/files/google.json\"");
    host.units(who, &["up"]).ok();
    assert_eq!(given().as_deref(), Some("sk-of-the-store-1"));
    let file = "/run/litellm-units/files/google.json";
    assert_eq!(
        host.sh(
            who,
            &format!(
                "podman exec litellm cat {file}; ! podman exec litellm touch {file} 2>/dev/null"
            )
        ),
        "the-key-of-google\n"
    );
    assert_eq!(
        places(&host, &["the-key-of-google".to_owned()]),
        format!("{file}\n")
    );

    host.sh(who, "rm /run/store");
    handover();
    assert_eq!(given().as_deref(), Some("sk-of-the-store-1"));
    let found = places(&host, &["sk-of-the-store-1".to_owned()]);
    assert!(
        found.starts_with("/run/litellm-units/external/OPENAI_API_KEY.")
            && found.lines().count() == 1,
        "{found}"
    );
    let status = host.units(who, &["status"]);
    assert!(
        status
            .stderr
            .contains("warning: OPENAI_API_KEY could not be fetched at "),
        "{}",
        status.stderr
    );
    let found = doctor();
    assert!(
        found.contains("warning  external: /opt/litellm-server/.env, line ")
            && found.contains(failed)
            && found.contains("containers start with the value that was fetched at "),
        "{found}"
    );
    let journal = host.sh(who, "journalctl -o cat -u litellm");
    assert!(
        journal.contains(&format!(
            "{failed}; the container starts with the value that was fetched at "
        )),
        "{journal}"
    );

    // The same value again: nothing is wrong any more.
    store("sk-of-the-store-1");
    doctor();
    assert_eq!(host.units(who, &["status"]).stderr, "");

    store("sk-of-the-store-2");
    let found = doctor();
    assert!(
        found.contains("warning  external: another value than at the last start: OPENAI_API_KEY\n"),
        "{found}"
    );
    handover();
    assert_eq!(given().as_deref(), Some("sk-of-the-store-2"));
    assert_eq!(host.units(who, &["status"]).stderr, "");
    assert_eq!(
        host.units(who, &["secrets", "audit"]).ok(),
        "no secret where it does not belong\n"
    );
    // A reference is no secret.
    let before = host.sh(who, "grep ^OPENAI \"$1/.env\"");
    host.units(who, &["secrets", "seal"]).ok();
    assert_eq!(host.sh(who, "grep ^OPENAI \"$1/.env\""), before);
}

/// What is sealed for the user, outside of the namespace in which Podman asks for values.
#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn values_of_other_programs_rootless() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "store-rootless");
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        r#"echo sk-of-the-user | systemd-creds --user --name=openai encrypt - ~/openai.cred
           program="/usr/bin/systemd-creds --user --name=openai decrypt $HOME/openai.cred -"
           sed -i "s|^OPENAI_API_KEY=.*|OPENAI_API_KEY=exec:$program|" "$1/.env""#,
    );
    host.units(who, &["up"]).ok();
    let given = || variable(&host, who, "litellm", "OPENAI_API_KEY");
    assert_eq!(given().as_deref(), Some("sk-of-the-user"));
    host.sh(who, "rm ~/openai.cred");
    host.units(who, &["restart", "litellm"]).ok();
    assert_eq!(given().as_deref(), Some("sk-of-the-user"));
}

//! Backups are made, thinned out, checked and restored; nothing that interrupts them loses data.

use serde_json::Value;

use crate::support::gateway::{
    HELLO, Load, Writer, allow_mock_delays, chat, new_key, sql, stored_keys,
};
use crate::support::host::{TestHost, Who, tool};

#[track_caller]
fn list(host: &TestHost, who: Who) -> Vec<Value> {
    serde_json::from_str(&host.units(who, &["backup", "list", "--json"]).ok()).unwrap()
}

/// Makes a backup; gives its name.
#[track_caller]
fn backup(host: &TestHost, who: Who, words: &[&str]) -> String {
    let path = host
        .units(who, &[&["backup", "create"], words].concat())
        .ok();
    path.trim_end().rsplit('/').next().unwrap().to_owned()
}

#[track_caller]
fn restore(host: &TestHost, who: Who, id: &str) {
    host.units(who, &["restore", id, "--yes"]).ok();
}

/// Another user tries all the time to take the gateway's address while a backup is restored, and clients go on asking.
fn nobody_else_gets_the_address(host: &TestHost, who: Who, id: &str, key: &str) {
    let thief = r#"systemd-run --quiet --unit=thief --uid=nobody perl -MIO::Socket::INET -e '
        my $address = "127.0.0.1:24157";
        until (IO::Socket::INET->new(LocalAddr => $address, Listen => 9, ReuseAddr => 1)) {
            select undef, undef, undef, 0.001
        }
        print "taken\n"; sleep 600'"#;
    host.sh(Who::Root, thief);
    let load = Load::begin(host, who, key);
    restore(host, who, id);
    load.assert_no_failure(host, who);
    let state = host.property(Who::Root, "thief", "SubState");
    host.sh(Who::Root, "systemctl stop thief");
    assert_eq!(
        (
            state.as_str(),
            host.sh(Who::Root, "journalctl -o cat _SYSTEMD_UNIT=thief.service")
        ),
        ("running", String::new())
    );
    // Nor is root's gateway taken for one's own, and given a key.
    let another = "a process of another user (uid 0) has the address";
    assert_eq!(
        host.units(Who::Operator, &["health"]).all(),
        (
            3,
            format!("does not answer: {another}\n"),
            "hint: see why: `litellm-units status`; to start it: `litellm-units up`\n".to_owned()
        )
    );
}

/// Whether the gateway takes a key.
fn serves(host: &TestHost, who: Who, key: &str) -> bool {
    chat(host, who, key).is_ok_and(|answer| answer == HELLO)
}

/// What must not stay: databases of ours, and unfinished directories of backups.
#[track_caller]
fn leftovers(host: &TestHost, who: Who) -> String {
    let databases = "select substring(datname, 1, 22) from pg_database where datname like 'litellm_units%' order by 1";
    let unfinished = host.sh(who, r#"ls -A "$1/backups" | sed -n 's/^\.new-.*/.new/p'"#);
    format!("{}\n{unfinished}", sql(host, who, databases))
        .trim()
        .to_owned()
}

/// Every file and directory is for its owner only.
#[track_caller]
fn is_private(host: &TestHost, who: Who) {
    let open = r#"find "$1/backups" -type d ! -perm 700 -o -type f ! -perm 600"#;
    assert_eq!(host.sh(who, open), "");
}

fn the_timer_makes_backups(host: &TestHost, who: Who) {
    let timer = "litellm-backup.timer";
    let state = |name| host.property(who, timer, name);
    assert_eq!(
        (state("ActiveState"), state("UnitFileState")),
        ("active".into(), "enabled".into())
    );
    // An interrupted build leaves an index that no dump contains.
    sql(
        host,
        who,
        "create table twins as select 1 as number from generate_series(1, 2)",
    );
    let build = "create unique index concurrently planted on twins (number)";
    let psql = "podman exec litellm-postgres psql -U litellm litellm -c";
    host.sh(who, &format!("! {psql} '{build}'"));
    // A database that was replaced long ago goes with the backup.
    let replaced = "litellm_units_replaced_20260101t020000z_0a1b2c";
    sql(host, who, &format!("create database {replaced}"));
    assert_eq!(
        host.units(who, &["backup", "create", "--dry-run"]).ok(),
        format!("remove database {replaced}\n")
    );
    host.systemctl(who, &["start", "litellm-backup.service"]);
    let listed = list(host, who);
    assert_eq!(listed.len(), 1);
    let first = &listed[0];
    let rows = &first["database"]["rows"];
    assert_eq!(rows["public.LiteLLM_VerificationToken"], 1);
    assert_eq!(first["database"]["objects"]["view"], 8);
    assert_eq!(
        first["images"]["litellm"]["reference"],
        "ghcr.io/berriai/litellm:v1.108.14"
    );
    is_private(host, who);
    let id = first["id"].as_str().unwrap();
    let ran = host.units(who, &["backup", "verify", "latest"]);
    assert!(
        ran.stdout.starts_with(&format!("backup {id} is good: ")),
        "{ran:?}"
    );
    let verified = || {
        let text = host.sh(who, r#"cat "$1/.litellm-units/verification.json""#);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let by_hand = verified();
    assert_eq!(
        (&by_hand["backup"], &by_hand["error"]),
        (&first["id"], &Value::Null)
    );
    host.systemctl(who, &["start", "litellm-verify.service"]);
    let by_timer = verified();
    assert_eq!(by_timer["result"], "restored");
    assert_ne!(by_timer["time"], by_hand["time"]);
    assert_eq!(leftovers(host, who), "");
}

fn damage_is_found(host: &TestHost, who: Who) {
    let id = backup(host, who, &["--quiet"]);
    assert_eq!(id, "");
    let id = list(host, who).last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    host.sh(
        who,
        &format!(
            r#"cd "$1/backups/{id}"; printf X | dd of=database.dump.zst bs=1 seek=5000 conv=notrunc status=none"#
        ),
    );
    let expected = format!(
        "error: backup {id} is damaged:\n  database.dump.zst: its SHA-256 differs\n\
         hint: use another one (`litellm-units backup list`), and check the disk\n"
    );
    for words in [&["backup", "verify", &id][..], &["restore", &id, "--yes"]] {
        let ran = host.units(who, words);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.ends_with(&expected), "{}", ran.stderr);
    }
    host.sh(who, &format!(r#"rm -r "$1/backups/{id}""#));
}

fn a_full_disk_leaves_nothing(host: &TestHost) {
    let who = Who::Root;
    let before = list(host, who).len();
    // Random, so that it can't be compressed: 40 MiB.
    let noise = "create table noise as select decode(string_agg(md5(random()::text), ''), 'hex') as bytes \
                 from generate_series(1, 2621440) as i group by i % 1000";
    sql(host, who, noise);
    host.sh(
        who,
        r#"mv "$1/backups" /var/tmp/backups; mkdir -m 700 "$1/backups""#,
    );
    for (size, expected) in [
        (
            "20M",
            "the disk of /opt/litellm-server/backups has 20 MiB of free space, and about ",
        ),
        (
            "32M",
            "the disk of /opt/litellm-server/backups is full; the incomplete backup was removed",
        ),
    ] {
        host.sh(
            who,
            &format!(r#"mount -t tmpfs -o size={size},mode=700 tmpfs "$1/backups""#),
        );
        let ran = host.units(who, &["backup"]);
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert_eq!(host.sh(who, r#"ls -A "$1/backups""#), "");
        host.sh(who, r#"umount "$1/backups""#);
    }
    sql(host, who, "drop table noise");
    // What the rule no longer keeps makes room.
    host.sh(
        who,
        r#"mount -t tmpfs -o size=64M,mode=700 tmpfs "$1/backups"; cd "$1/backups"
        mkdir -m 700 20240101T020000Z-0a1b2c 20250101T020000Z-0a1b2c
        head -c 60M /dev/zero >20240101T020000Z-0a1b2c/filler"#,
    );
    let made = backup(host, who, &["--keep-daily", "1", "--keep-monthly", "0"]);
    assert_eq!(host.sh(who, r#"ls -A "$1/backups""#).trim(), made);
    host.sh(
        who,
        r#"umount "$1/backups"; rmdir "$1/backups"; mv /var/tmp/backups "$1/backups""#,
    );
    assert_eq!(list(host, who).len(), before);
}

/// Makes a copy of a backup under its name, changed by a script that runs in it; gives back what was there.
#[track_caller]
fn with_changed(host: &TestHost, who: Who, id: &str, change: &str, test: impl FnOnce()) {
    let of_id = |script: &str| host.sh(who, &format!("cd \"$1/backups\"; id={id}; {script}"));
    of_id(&format!("cp -a $id /var/tmp/kept; cd $id; {change}"));
    test();
    of_id("rm -r $id; mv /var/tmp/kept $id");
}

fn crafted_backups_are_refused(host: &TestHost, who: Who) {
    let id = &backup(host, who, &[]);
    let restore = ["restore", id, "--config", "--foreign", "--yes"];
    // A name that leads out of config/, as an operator might be sent it.
    let evil = r#"printf 'x y z' >evil; jq --arg hash "$(sha256sum <evil | cut -d' ' -f1)" \
        '.files += [{name: "deployment/config/../../../etc/cron.d/evil", stored: "evil", mode: 35309, size: 5, sha256: $hash}]' \
        manifest.json >new; mv new manifest.json"#;
    with_changed(host, who, id, evil, || {
        assert_eq!(
            host.units(who, &restore).all(),
            (
                1,
                String::new(),
                format!(
                    "error: {}/backups/{id}/manifest.json: \"deployment/config/../../../etc/cron.d/evil\" is not the path of a file in a backup\n\
                     hint: this backup is damaged: use another one (`litellm-units backup list`)\n",
                    who.deployment()
                )
            )
        );
    });
    // Changed, or by nobody that is known: neither restored nor tried, unless the operator says so.
    let reason = "its authentication code is by another key, or its manifest was changed";
    for (change, reason) in [
        (
            "jq '.files[1].mode = 35309' manifest.json >new; mv new manifest.json",
            reason,
        ),
        (
            "tr 0-9 1-90 <manifest.hmac >new; mv new manifest.hmac",
            reason,
        ),
        ("rm manifest.hmac", "it has no authentication code"),
    ] {
        with_changed(host, who, id, change, || {
            for words in [&["restore", id, "--yes"][..], &["backup", "verify", id]] {
                let ran = host.units(who, words);
                let expected = format!(
                    "error: backup {id} was not made by this deployment: {reason}\nhint: its dump runs as the superuser"
                );
                assert!(
                    ran.code == 1 && ran.stderr.starts_with(&expected),
                    "{ran:?}"
                );
            }
            assert_eq!(list(host, who).last().unwrap()["foreign"], true);
            let words = ["backup", "verify", id, "--foreign"];
            assert!(host.units(who, &words).ok().contains(" is good: "));
        });
    }
    assert_eq!(list(host, who).last().unwrap()["foreign"], false);
    // The modes of what is restored are those of a configuration, and nothing goes through a link.
    host.sh(who, r#"mkdir /srv/away; ln -s /srv/away "$1/config/away""#);
    let ran = host.units(who, &restore);
    let expected = format!(
        "error: {0}/config/away is a link, and files are restored through none\n\
         hint: remove it (`rm {0}/config/away`), or restore the database alone, without `--config`\n",
        who.deployment()
    );
    assert!(ran.code == 1 && ran.stderr.ends_with(&expected), "{ran:?}");
    host.sh(who, r#"rm "$1/config/away""#);
    let name = "deployment/config/litellm-config.yaml";
    let setuid = format!(
        "jq '(.files[] | select(.name == \"{name}\")).mode = 35309' manifest.json >new; mv new manifest.json"
    );
    with_changed(host, who, id, &setuid, || {
        host.units(who, &restore).ok();
        let mode = host.sh(who, r#"stat -c %a "$1/config/litellm-config.yaml"; chmod 644 "$1/config/litellm-config.yaml""#);
        assert_eq!(mode, "755\n");
    });
    host.sh(who, &format!(r#"rm -r "$1/backups/{id}""#));
}

fn encrypted_and_elsewhere(host: &TestHost, who: Who) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    host.write(who, "/tmp/key.txt", identity.to_string().expose_secret());
    let copies = "/tmp/copies";
    // As a disk that is not mounted: it is not filled in the place of the disk.
    let missing = ["backup", "--to", "file:///tmp/copies"];
    let hint = "the directory for copies of backups does not exist: /tmp/copies\n\
                hint: mount its disk, or correct its name; for the first copy, create it: `mkdir -p /tmp/copies`\n";
    let ran = host.units(who, &missing);
    assert!(ran.code == 78 && ran.stderr.ends_with(hint), "{ran:?}");
    host.sh(who, "! test -e /tmp/copies");
    // The variables are for the backup alone.
    host.sh(
        who,
        &format!(
            r#"printf 'BACKUP_AGE_RECIPIENT=%s\nBACKUP_URL=file://%s\n' {recipient} {copies} >>"$1/.env""#
        ),
    );
    // The backup on this host does not need that disk.
    let before = list(host, who).len();
    let ran = host.units(who, &["backup"]);
    assert!(ran.code == 1 && ran.stderr.ends_with(hint), "{ran:?}");
    assert_eq!(list(host, who).len(), before + 1);
    host.sh(who, &format!("! test -e {copies}; mkdir -m 700 {copies}"));
    // The unit tries again with the same backup.
    let id = backup(host, who, &["--resume"]);
    assert_eq!(list(host, who).len(), before + 1);
    host.sh(
        who,
        &format!(r#"test -e {copies}/{id}/manifest.json; rm -r {copies}/{id} "$1/backups/{id}""#),
    );
    let id = backup(host, who, &[]);
    is_private(host, who);
    let secret = r#"
        master=$(sed -n 's/^LITELLM_MASTER_KEY=//p' "$1/.env")
        ! grep -rqF "$master" "$1/backups/$id" && ! grep -rqF "$master" /tmp/copies
        test -e /tmp/copies/$id/manifest.json && rm -r "$1/backups/$id"
        find /tmp/copies -type f ! -perm 600"#;
    assert_eq!(host.sh(who, &format!("id={id}\n{secret}")), "");
    assert_eq!(
        host.units(who, &["backup", "list", "--remote"]).ok(),
        format!("{id}\n")
    );
    host.units(who, &["backup", "fetch", "latest"]).ok();
    is_private(host, who);
    assert_eq!(list(host, who).last().unwrap()["foreign"], false);
    assert_eq!(
        host.units(who, &["backup", "verify", &id]).all(),
        (
            1,
            String::new(),
            format!(
                "error: backup {id} is encrypted to {recipient}\n\
                 hint: name the file with the secret key: `--identity FILE`\n"
            )
        )
    );
    let checked = host.units(who, &["backup", "verify", &id, "--unattended"]);
    let expected =
        "it was not restored, since it is encrypted and no `--identity` names its secret key\n";
    assert!(checked.ok().ends_with(expected));
    let words = ["backup", "verify", &id, "--identity", "/tmp/key.txt"];
    assert!(host.units(who, &words).ok().contains(" is good: "));
    assert_eq!(leftovers(host, who), "litellm_units_replaced");
    host.sh(who, r#"sed -i /^BACKUP_/d "$1/.env""#);
}

#[cfg(feature = "fault-points")]
fn killed_backups_leave_nothing(host: &TestHost, who: Who, old: &str) {
    let before = list(host, who).len();
    for point in ["backup-begun", "backup-after-dump", "backup-before-rename"] {
        host.kill_at(who, point, "", "backup");
        assert_eq!(list(host, who).len(), before);
        assert_eq!(leftovers(host, who), ".new");
    }
    let ran = host.units(who, &["backup", "--keep-all"]);
    assert_eq!(
        ran.stderr
            .matches("the rest of an interrupted backup")
            .count(),
        1,
        "each run has removed what the one before left: {}",
        ran.stderr
    );
    assert_eq!(leftovers(host, who), "");
    assert_eq!(list(host, who).len(), before + 1);
    assert!(serves(host, who, old));
}

#[cfg(feature = "fault-points")]
fn killed_restores_end_one_way_or_the_other(
    host: &TestHost,
    who: Who,
    id: &str,
    old: &str,
    new: &str,
) {
    let words = format!("restore {id} --yes");
    for point in ["restore-recorded", "restore-created", "restore-staged"] {
        host.kill_at(who, point, "", &words);
        // The gateway has not noticed.
        assert!(serves(host, who, old) && serves(host, who, new), "{point}");
        host.units(who, &["up"]).ok();
        assert_eq!(leftovers(host, who), "");
    }

    let back = format!("the restore of backup {id} was interrupted: rolling it back");
    host.kill_at(who, "restore-after-stop", "", &words);
    let ran = host.units(who, &["backup"]);
    assert!(ran.stderr.contains(&back), "{}", ran.stderr);
    assert!(serves(host, who, old) && serves(host, who, new));
    assert_eq!(leftovers(host, who), "");
    // Nobody has to do it.
    let said = host.interrupt_at(who, "restore-after-stop", "", &words);
    assert!(said.contains(&back), "{said}");
    assert!(serves(host, who, old) && serves(host, who, new));
    assert_eq!(leftovers(host, who), "");

    // With the data in place, but not ready: as before, too.
    let failing = format!("FAILPOINTS=restore-not-ready=return litellm-units {words}");
    let ran = host.bash(who, &failing);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("error: the restore failed and was rolled back; the previous database is in use: a test says so"),
        "{}",
        ran.stderr
    );
    assert!(serves(host, who, old) && serves(host, who, new));
    assert_eq!(leftovers(host, who), "");

    // Nor does it matter who watches: neither a session that ends nor a pipe that closes ends a restore.
    for (command, end) in [
        (format!("litellm-units {words} 2>/tmp/said"), "kill -HUP $!"),
        (
            format!("litellm-units {words} 2> >(head -n 1 >/tmp/said)"),
            "true",
        ),
    ] {
        let ran = host.bash(
            who,
            &format!(
                "FAILPOINTS='restore-after-stop=sleep(2000);restore-not-ready=return' {command} &
                 until [[ $({} is-active litellm) = inactive ]]; do sleep 0.1; done
                 {end}; wait $! || echo \"left with $?\"",
                who.systemctl()
            ),
        );
        assert_eq!(ran.stdout, "left with 1\n", "{ran:?}");
        assert!(
            serves(host, who, old) && serves(host, who, new),
            "{command}"
        );
        assert_eq!(leftovers(host, who), "");
    }

    let said = host.interrupt_at(who, "restore-after-swap", "", &words);
    assert!(
        said.contains("was interrupted after the databases were swapped: finishing it"),
        "{said}"
    );
    assert!(serves(host, who, old) && !serves(host, who, new));
    assert_eq!(leftovers(host, who), "litellm_units_replaced");
}

fn the_configuration_comes_back(host: &TestHost, who: Who, old: &str) {
    let before = host.env(who);
    let id = backup(host, who, &[]);
    host.sh(
        who,
        r#"sed -i 's/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-changed/; s/^LITELLM_SALT_KEY=.*/LITELLM_SALT_KEY=sk-other/' "$1/.env"
        echo '# changed' >>"$1/config/litellm-config.yaml"; echo more >"$1/config/more.txt""#,
    );
    let ran = host.units(who, &["restore", &id, "--yes"]);
    assert_eq!(ran.code, 78);
    assert!(
        ran.stderr.contains("LITELLM_SALT_KEY in "),
        "{}",
        ran.stderr
    );
    // A terminal that closes sends its signal to the whole process group, also while podman runs pg_restore.
    let restore = format!(
        r#"while [[ $(SYSTEMCTL is-active litellm-recovery) == activating ]]; do sleep 0.1; done
        setsid litellm-units restore {id} --yes --config & pid=$!
        until [[ $(SYSTEMCTL is-active litellm-recovery) == activating ]]; do sleep 0.05; done
        podman() {{ pgrep -P $pid -x podman | head -n 1; }}
        until child=$(podman) && sleep 0.2 && [[ $child && $child == "$(podman)" ]]; do :; done
        kill -HUP -- -$pid
        wait $pid"#
    )
    .replace("SYSTEMCTL", who.systemctl());
    host.bash(who, &restore).ok();
    assert_eq!(host.env(who).text(), before.text());
    assert_eq!(
        host.sh(
            who,
            r#"ls "$1/config"; grep -c changed "$1/config/litellm-config.yaml" || :"#
        ),
        "litellm-config.yaml\n0\n"
    );
    assert!(serves(host, who, old));
    assert_eq!(leftovers(host, who), "litellm_units_replaced");
}

/// Settings of the database, and of a role in it, and who may use it.
fn set_in_database(host: &TestHost, who: Who) {
    for setting in ["search_path = \"$user\", public", "app.name = 'it''s'"] {
        sql(host, who, &format!("ALTER DATABASE litellm SET {setting}"));
    }
    sql(
        host,
        who,
        "ALTER ROLE litellm IN DATABASE litellm SET lock_timeout = '1min'",
    );
    sql(
        host,
        who,
        "CREATE ROLE reader; REVOKE TEMPORARY ON DATABASE litellm FROM PUBLIC; GRANT CREATE ON DATABASE litellm TO reader",
    );
}

#[track_caller]
fn settings_are_kept(host: &TestHost, who: Who) {
    let settings = "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase \
        WHERE datname = 'litellm' ORDER BY setrole";
    assert_eq!(
        sql(host, who, settings),
        "{\"search_path=\\\"$user\\\", public\",app.name=it's}\n{lock_timeout=1min}"
    );
    assert_eq!(
        sql(
            host,
            who,
            "SELECT acl::text FROM pg_database, unnest(datacl) acl WHERE datname = 'litellm' ORDER BY acl::text COLLATE \"C\""
        ),
        "=c/litellm\nlitellm=CTc/litellm\nreader=C/litellm"
    );
}

#[test]
fn rootful_backup_and_restore() {
    let who = Who::Root;
    let host = TestHost::boot("backup-rootful");
    host.units(who, &["generate"]).ok();
    allow_mock_delays(&host, who);
    host.units(who, &["up"]).ok();
    let old = new_key(&host, who);
    set_in_database(&host, who);
    the_timer_makes_backups(&host, who);
    let id = list(&host, who)[0]["id"].as_str().unwrap().to_owned();
    let new = new_key(&host, who);
    assert_eq!(
        host.units(who, &["restore", &id]).code,
        1,
        "there is no terminal to ask on"
    );
    damage_is_found(&host, who);
    crafted_backups_are_refused(&host, who);
    nobody_else_gets_the_address(&host, who, &id, &old);
    assert!(serves(&host, who, &old) && !serves(&host, who, &new));
    assert_eq!(stored_keys(&host, who), 1);
    settings_are_kept(&host, who);
    the_configuration_comes_back(&host, who, &old);
    encrypted_and_elsewhere(&host, who);
    a_full_disk_leaves_nothing(&host);
}

#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_killed_at_every_step() {
    let who = Who::Root;
    let host = TestHost::boot("backup-killed");
    host.units(who, &["up"]).ok();
    let old = new_key(&host, who);
    let id = backup(&host, who, &[]);
    let new = new_key(&host, who);
    killed_backups_leave_nothing(&host, who, &old);
    killed_restores_end_one_way_or_the_other(&host, who, &id, &old, &new);
    assert_eq!(stored_keys(&host, who), 1);
}

/// Killed during a rollback, with the configuration replaced, and when all but the record is done.
#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootless_restores_with_configuration_killed() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "restore-killed");
    host.units(who, &["up"]).ok();
    let old = new_key(&host, who);
    let id = backup(&host, who, &[]);
    let new = new_key(&host, who);
    let words = format!("restore {id} --yes --config");
    host.set_env(who, &[("OPENAI_API_KEY", "sk-later")]);
    let env = host.env(who).text().to_owned();
    host.kill_at(who, "restore-undone", "restore-not-ready=return", &words);
    // An edit of this time is kept.
    host.set_env(who, &[("OPENAI_API_KEY", "sk-edited")]);
    host.units(who, &["up"]).ok();
    assert!(serves(&host, who, &old) && serves(&host, who, &new));
    assert_eq!(host.env(who).text(), env);
    host.sh(
        who,
        r#"grep -rq OPENAI_API_KEY=sk-edited "$1/.litellm-units/configurations""#,
    );
    assert_eq!(leftovers(&host, who), "");
    // Two files that belong together may not be both in place.
    let said = host.interrupt_at(who, "restore-after-config", "", &words);
    assert!(said.contains("was interrupted: rolling it back"), "{said}");
    assert!(serves(&host, who, &old) && serves(&host, who, &new));
    assert_eq!(host.env(who).text(), env);
    assert_eq!(leftovers(&host, who), "");
    // The gateway was ready, so writes may have been acknowledged.
    let said = host.interrupt_at(who, "restore-after-ready", "", &words);
    assert!(said.contains("finishing it"), "{said}");
    assert!(serves(&host, who, &old) && !serves(&host, who, &new));
    assert!(!host.env(who).text().contains("sk-later"));
    assert_eq!(leftovers(&host, who), "litellm_units_replaced");
    let words = format!("restore {id} --yes");
    let said = host.interrupt_at(who, "restore-after-ready", "", &words);
    assert!(said.contains("finishing it"), "{said}");
    assert!(serves(&host, who, &old));
    assert_eq!(leftovers(&host, who), "litellm_units_replaced");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_backup_and_restore() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "backup-rootless");
    host.units(who, &["up"]).ok();
    let old = new_key(&host, who);
    set_in_database(&host, who);
    the_timer_makes_backups(&host, who);
    let new = new_key(&host, who);
    assert!(serves(&host, who, &new));
    restore(&host, who, "latest");
    assert!(serves(&host, who, &old) && !serves(&host, who, &new));
    assert_eq!(stored_keys(&host, who), 1);
    assert_eq!(leftovers(&host, who), "litellm_units_replaced");
    settings_are_kept(&host, who);
}

/// Writes rows one second apart; gives their times, which are a moment before those of their transactions.
fn write_rows(host: &TestHost, who: Who) -> Vec<String> {
    sql(
        host,
        who,
        "create table rows (at timestamptz default clock_timestamp())",
    );
    for _ in 0..4 {
        sql(host, who, "insert into rows default values");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    rows(host, who)
}

fn rows(host: &TestHost, who: Who) -> Vec<String> {
    let rows = "select to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from rows order by at";
    sql(host, who, rows).lines().map(str::to_owned).collect()
}

pub(super) fn archive(host: &TestHost, who: Who) -> Value {
    let status = host.units(who, &["status", "--json"]).stdout;
    serde_json::from_str::<Value>(&status).unwrap()["archive"].clone()
}

/// Waits until everything that is written by now is in the copy, by the timer alone.
pub(super) fn wait_for_archive(host: &TestHost, who: Who, patience: u64) {
    let begin = std::time::Instant::now();
    let patience = std::time::Duration::from_secs(patience);
    host.wait("the archive", patience, |host| {
        let archive = archive(host, who);
        let lag = archive["lag_seconds"].as_u64();
        let is_later = lag.is_some_and(|lag| lag < begin.elapsed().as_secs());
        (is_later && archive["recoverable"] == true)
            .then_some(())
            .ok_or_else(|| archive.to_string())
    });
}

/// Killed while PostgreSQL runs in the container, and when the databases are swapped.
#[cfg(feature = "fault-points")]
fn killed_recoveries_leave_nothing(host: &TestHost, who: Who, second: &str) {
    let nothing_is_left = || {
        let containers = "podman ps --all --format '{{.Names}}' | grep -c recovered || :";
        assert_eq!(host.sh(who, containers), "0\n");
        assert_eq!(host.sh(who, r#"ls -A "$1/backups""#), "archive\n");
        host.sh(who, r#"! test -e "$1/.litellm-units/restore.json""#);
    };
    let is_clean = || {
        nothing_is_left();
        assert_eq!(leftovers(host, who), "litellm_units_replaced");
    };
    let words = format!("restore --to {second} --identity /tmp/key.txt --yes");
    let killed = || {
        host.sh(
            who,
            &format!(
                "litellm-units {words} & program=$!
                timeout 300 bash -c 'until podman exec litellm-recovered test -e /tmp/recovered/data/postmaster.pid; do sleep 0.1; done' 2>/dev/null
                kill -KILL $program; status=0; wait $program || status=$?; test $status = 137"
            ),
        );
        let patience = std::time::Duration::from_secs(120);
        host.wait("the end of the recovery", patience, |host| {
            let containers = host.sh(who, "podman ps --all --format '{{.Names}}'");
            let state = host.property(who, "litellm-recovery.service", "ActiveState");
            (!containers.contains("recovered") && state == "inactive")
                .then_some(())
                .ok_or(containers + &state)
        });
    };
    let writer = Writer::begin(host, who);
    killed();
    writer.assert_nothing_lost(host, who);
    is_clean();

    // Nor in a deployment that is stopped, whose address stays closed.
    host.units(who, &["down"]).ok();
    let opened = || host.property(who, "litellm.socket", "ActiveEnterTimestampMonotonic");
    let before = opened();
    killed();
    nothing_is_left();
    assert_eq!(host.sh(who, "podman ps --quiet"), "");
    assert_eq!(opened(), before);
    host.units(who, &["up"]).ok();

    let said = host.interrupt_at(who, "restore-after-swap", "", &words);
    assert!(
        said.contains("was interrupted after the databases were swapped: finishing it"),
        "{said}"
    );
    is_clean();
}

fn recovered_to_any_second(who: Who, host: &TestHost) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    host.write(who, "/tmp/key.txt", identity.to_string().expose_secret());
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        &format!(
            r#"mkdir -m 700 /tmp/copies
            printf 'BACKUP_WAL=yes\nBACKUP_AGE_RECIPIENT=%s\nBACKUP_URL=file:///tmp/copies\n' {recipient} >>"$1/.env""#
        ),
    );
    host.units(who, &["up"]).ok();
    // The first run asks for a base backup, and nobody else has to.
    wait_for_archive(host, who, 400);
    let old = new_key(host, who);
    let written = write_rows(host, who);
    // A run that is killed loses nothing, and the next one goes on.
    #[cfg(feature = "fault-points")]
    {
        host.systemctl(who, &["stop", "litellm-wal.timer", "litellm-wal.service"]);
        sql(host, who, "select pg_switch_wal()");
        host.kill_at(who, "wal-stored", "", "unit archive");
        host.systemctl(who, &["start", "litellm-wal.timer"]);
    }
    // More than one segment.
    sql(
        host,
        who,
        "select pg_switch_wal(); insert into rows default values",
    );
    let new = new_key(host, who);

    // The third row is there, and the fourth, a second later, is not.
    let third = "select to_char(at at time zone 'UTC' + interval '0.5 s', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"+00:00\"') from rows order by at offset 2 limit 1";
    let second = sql(host, who, third);
    let restore = |to: &str, more: &[&str]| {
        let words = ["restore", "--to", to, "--identity", "/tmp/key.txt", "--yes"];
        host.units(who, &[&words, more].concat())
    };
    // What can be known beforehand is refused before anything is recovered.
    let refused = |words: &[&str], error: &str| {
        let ran = host.units(who, &[&["restore", "--yes", "--to"], words].concat());
        assert!(
            ran.code != 0 && ran.stderr.contains(error) && !ran.stderr.contains("recovering "),
            "{ran:?}"
        );
    };
    refused(&[&second], &format!(" is encrypted to {recipient}\n"));
    let ran = restore(&second, &[]);
    assert!(
        ran.code == 0
            && ran
                .stderr
                .contains("  3 rows in public.rows instead of 5\n"),
        "{ran:?}"
    );
    assert_eq!(rows(host, who), written[..3]);
    assert!(serves(host, who, &old) && !serves(host, who, &new));
    is_private(host, who);
    assert_eq!(leftovers(host, who), "litellm_units_replaced");
    let containers = "podman ps --all --format '{{.Names}}' | grep -c recovered || :";
    assert_eq!(host.sh(who, containers), "0\n");
    // Nothing of the recovery is left, and the archive made no dump to have its base backup.
    assert_eq!(host.sh(who, r#"ls -A "$1/backups""#), "archive\n");

    #[cfg(feature = "fault-points")]
    {
        killed_recoveries_leave_nothing(host, who, &second);
        assert_eq!(rows(host, who), written[..3]);
        assert!(serves(host, who, &old) && !serves(host, who, &new));
    }

    // What was undone is in the archive as well.
    restore("latest", &[]).ok();
    assert_eq!(rows(host, who), written[..3]);
    for (to, expected) in [
        (
            "2026-01-01T00:00:00Z",
            "so an earlier time can't be recovered",
        ),
        ("2100-01-01T00:00:00Z", "the archive ends at "),
    ] {
        let ran = restore(to, &[]);
        assert!(ran.code == 1 && ran.stderr.contains(expected), "{ran:?}");
    }
    // A piece that was changed is not used.
    let changed = r#"cd "$1"/backups/archive/wal/*; piece=$(ls | tail -n 1); cp -a "$piece" /tmp/piece
        printf X | dd of="$piece" bs=1 seek=200 conv=notrunc status=none"#;
    host.sh(who, changed);
    let ran = restore("latest", &[]);
    assert!(
        ran.code == 1
            && ran
                .stderr
                .contains(" was changed, or is not of this deployment"),
        "{ran:?}"
    );
    host.sh(
        who,
        r#"cd "$1"/backups/archive/wal/*; cp -a /tmp/piece "$(ls | tail -n 1)""#,
    );

    // What another key has signed is not continued.
    let bases = r#"ls -d "$1"/backups/archive/2* | wc -l"#;
    host.sh(who, r#"rm "$1/.litellm-units/backup-key""#);
    wait_for_archive(host, who, 400);
    assert_eq!(host.sh(who, bases), "2\n");
    assert_eq!(host.sh(who, r#"ls -A "$1/backups""#), "archive\n");

    // A base backup has the salt of all that follows it, so that of another salt is not continued either.
    host.units(who, &["secrets", "rotate", "salt"]).ok();
    wait_for_archive(host, who, 400);
    assert_eq!(host.sh(who, bases), "3\n");
    let salt = host.env(who).get("LITELLM_SALT_KEY").unwrap().to_owned();
    refused(
        &[&second, "--identity", "/tmp/key.txt", "--foreign"],
        "is not the one that encrypts the data of backup ",
    );

    // An archive that stopped for too long begins anew by itself, and the server has not waited for it.
    host.systemctl(who, &["stop", "litellm-wal.timer", "litellm-wal.service"]);
    sql(
        host,
        who,
        "alter system set max_slot_wal_keep_size = '16MB'",
    );
    sql(host, who, "select pg_reload_conf()");
    for _ in 0..4 {
        sql(
            host,
            who,
            "insert into rows default values; select pg_switch_wal()",
        );
        sql(
            host,
            who,
            "delete from rows where at = (select max(at) from rows)",
        );
    }
    sql(host, who, "checkpoint");
    let status = "select wal_status from pg_replication_slots";
    assert_eq!(sql(host, who, status), "lost");
    host.systemctl(who, &["start", "litellm-wal.timer"]);
    wait_for_archive(host, who, 400);
    assert_eq!(host.sh(who, bases), "4\n");
    assert_eq!(rows(host, who), written[..3]);

    // The host is lost: at most what was written in its last minute.
    let last = new_key(host, who);
    sql(host, who, "insert into rows default values");
    let expected = rows(host, who);
    wait_for_archive(host, who, 400);
    host.units(who, &["down", "--remove"]).ok();
    host.sh(who, r#"mv "$1" "$1.lost""#);
    host.units(who, &["up"]).ok();
    restore(
        "latest",
        &["--from", "file:///tmp/copies", "--config", "--foreign"],
    )
    .ok();
    assert_eq!(rows(host, who), expected);
    assert!(serves(host, who, &old) && serves(host, who, &last));
    assert_eq!(host.env(who).get("LITELLM_SALT_KEY"), Some(&*salt));
    // It writes to the archive of the lost host only if `.env` says so, and then as a cluster of its own.
    assert_eq!(host.env(who).get("BACKUP_URL"), None);
    host.sh(who, r#"sed -i 's/^# BACKUP_/BACKUP_/' "$1/.env""#);
    host.units(who, &["apply"]).ok();
    wait_for_archive(host, who, 400);
    // The first one, those of another key and another salt, that after the gap, and this one.
    assert_eq!(host.sh(who, "ls /tmp/copies/archive/wal | wc -l"), "5\n");
}

/// Copies in a server of others that speaks S3: wrong credentials, parts of a large dump, and a fresh deployment from it.
/// Retention needs days: unit tests of the store. The names in the archive are too long for this server's files.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn copies_in_an_object_store() {
    let who = Who::Root;
    let host = &TestHost::boot("backup-s3");
    host.put(&tool("s3s-fs"), "/usr/local/bin/");
    host.sh(
        who,
        "mkdir -p /srv/objects/bucket
        systemd-run --quiet --unit=objects s3s-fs --host 127.0.0.1 --port 9999 --access-key me --secret-key secret /srv/objects",
    );
    host.units(who, &["generate"]).ok();
    let set = |secret: &str| {
        let access = [
            ("BACKUP_AWS_ENDPOINT", "http://127.0.0.1:9999"),
            ("BACKUP_AWS_ALLOW_HTTP", "true"),
            ("BACKUP_AWS_ACCESS_KEY_ID", "me"),
            ("BACKUP_AWS_SECRET_ACCESS_KEY", secret),
        ];
        host.set_env(who, &access);
    };
    let url = "s3://bucket/litellm";
    host.set_env(who, &[("BACKUP_URL", url)]);
    set("of-another-store");
    host.units(who, &["up"]).ok();
    let old = new_key(host, who);
    // More than two parts, which no compression makes smaller.
    sql(
        host,
        who,
        "create table large as select gen_random_uuid() from generate_series(1, 1500000)",
    );
    let refused = host.units(who, &["backup"]);
    assert!(
        refused.code == 1 && !refused.stderr.contains("of-another-store"),
        "{refused:?}"
    );
    eprintln!("{}", refused.stderr);

    set("secret");
    let first = backup(host, who, &[]);
    let second = backup(host, who, &[]);
    assert_eq!(
        host.units(who, &["backup", "list", "--remote"]).ok(),
        format!("{first}\n{second}\n")
    );
    let objects = "cd /srv/objects/bucket/litellm; find . -path './2*' -type f -size +16M | wc -l";
    assert_eq!(host.sh(who, objects), "2\n");
    host.sh(who, &format!(r#"rm -r "$1/backups/{second}""#));
    host.units(who, &["backup", "fetch", "latest"]).ok();
    host.units(who, &["backup", "verify", &second]).ok();

    // The host is lost.
    host.units(who, &["down", "--remove"]).ok();
    host.sh(who, r#"mv "$1" "$1.lost""#);
    host.units(who, &["up"]).ok();
    set("secret");
    host.units(who, &["backup", "fetch", "latest", "--from", url])
        .ok();
    let words = ["restore", "latest", "--config", "--foreign", "--yes"];
    host.units(who, &words).ok();
    assert!(serves(host, who, &old));
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_recovery_to_any_second() {
    recovered_to_any_second(Who::Root, &TestHost::boot("backup-wal"));
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_recovery_to_any_second() {
    let who = Who::Operator;
    recovered_to_any_second(who, &TestHost::boot_for(who, "backup-wal-rootless"));
}

/// A store that accepts connections and never answers holds up neither the archive on this host nor any command.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_silent_store_holds_up_nothing() {
    let who = Who::Root;
    let host = &TestHost::boot("backup-silent");
    let minutes = |count: u64| std::time::Duration::from_secs(60 * count);
    host.units(who, &["generate"]).ok();
    allow_mock_delays(host, who);
    host.sh(who, "mkdir -m 700 /tmp/copies");
    host.set_env(
        who,
        &[("BACKUP_WAL", "yes"), ("BACKUP_URL", "file:///tmp/copies")],
    );
    host.units(who, &["up"]).ok();
    wait_for_archive(host, who, 400);
    let key = new_key(host, who);
    let env = host.env(who).text().to_owned();

    let silent = r#"systemd-run --quiet --unit=silent perl -MIO::Socket::INET -e '
        my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1:9999", Listen => 99) or die;
        my @open; while (my $connection = $listener->accept) { push @open, $connection }'"#;
    host.sh(Who::Root, silent);
    host.set_env(
        who,
        &[
            ("BACKUP_URL", "s3://bucket/litellm"),
            ("BACKUP_AWS_ENDPOINT", "http://127.0.0.1:9999"),
            ("BACKUP_AWS_ALLOW_HTTP", "true"),
            ("BACKUP_AWS_ACCESS_KEY_ID", "me"),
            ("BACKUP_AWS_SECRET_ACCESS_KEY", "secret"),
        ],
    );
    // As if it had answered until now.
    let names = |from: &str, to: &str| {
        let script =
            format!(r#"cd "$1/backups/archive"; sed -i 's,{from},{to},' copied.json 2*/copied"#);
        host.sh(who, &script);
    };
    names("file:///tmp/copies", "s3://bucket/litellm");
    let waits = |what: &str| {
        host.wait(what, minutes(2), |host| {
            match host
                .property(who, "litellm-wal.service", "ActiveState")
                .as_str()
            {
                "activating" => Ok(()),
                state => Err(state.to_owned()),
            }
        });
    };
    sql(host, who, "create table rows ()");
    waits("a run that waits for the store");
    let load = Load::begin(host, who, &key);
    host.units(who, &["restart", "--handover", "litellm"]).ok();
    let later = new_key(host, who);
    waits("a run that waits for the store");
    host.units(who, &["restore", "--to", "latest", "--yes"])
        .ok();
    load.assert_no_failure(host, who);
    assert!(serves(host, who, &later));

    // The run ends, and nothing of this host's archive waits for it.
    host.wait("the end of a run", minutes(8), |host| {
        match host.property(who, "litellm-wal.service", "Result").as_str() {
            "exit-code" => Ok(()),
            result => Err(result.to_owned()),
        }
    });
    let begin = host.sh(who, "date +%s");
    let archived = r#"date +%s -d "$(jq -r .time "$1/backups/archive/progress.json")""#;
    host.wait("the archive on this host", minutes(2), |host| {
        let time = host.sh(who, archived);
        (time > begin).then_some(()).ok_or(time)
    });
    let lag = archive(host, who)["lag_seconds"].as_u64();
    assert!(lag > Some(120), "{lag:?}");
    let doctor = host.units(who, &["doctor"]).stdout;
    let line = doctor.lines().find(|line| line.contains(" archive: "));
    let cause = "litellm-wal.service failed: can't examine litellm/archive/";
    assert!(line.is_some_and(|line| line.contains(cause)), "{doctor}");
    eprintln!("{}", line.unwrap_or_default());

    host.write(who, &format!("{}/.env", who.deployment()), &env);
    names("s3://bucket/litellm", "file:///tmp/copies");
    // The run that has begun asks the other store until its timeout.
    wait_for_archive(host, who, 600);
}

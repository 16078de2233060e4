//! Another release comes and goes without losing a key; one that fails never stays.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{HELLO, chat, new_key, sql};
use crate::support::host::{Ran, TestHost, Who};
use crate::support::releases::{DEFAULT, NEWEST, OLDEST, PLAIN, Release, begin_with_oldest};

/// Where LiteLLM is in an image.
const PACKAGES: &str = "/app/.venv/lib/python3.13/site-packages";

/// Which version serves, with its database.
#[track_caller]
pub(super) fn version(host: &TestHost, who: Who) -> String {
    let said = host.units(who, &["health", "--json"]).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    said["version"].as_str().unwrap().to_owned()
}

#[track_caller]
fn serves(host: &TestHost, who: Who, keys: &[&str]) {
    for key in keys {
        assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    }
}

#[track_caller]
fn is_gone(host: &TestHost, who: Who, key: &str) {
    assert!(chat(host, who, key).unwrap_err().contains("401"));
}

/// Release, image, command and result of each line of the history.
#[track_caller]
pub(super) fn history(host: &TestHost, who: Who) -> Vec<String> {
    let said = host.units(who, &["history", "--json"]).ok();
    let said: Vec<Value> = serde_json::from_str(&said).unwrap();
    said.iter()
        .map(|line| {
            let image = line["image"].as_str().unwrap();
            let version = image.rsplit_once(':').unwrap().1;
            format!(
                "{} {version} {} {}",
                line["release"],
                line["how"].as_str().unwrap(),
                line["result"].as_str().unwrap()
            )
        })
        .collect()
}

/// Nothing of an upgrade is left, and everything is as the units and `.env` say.
#[track_caller]
fn is_clean(host: &TestHost, who: Who) {
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );
    let left = format!(
        r#"find {} "$1" -path "$1/data" -prune -o \( -name '*next*' -o -name restore.json -o -name '.new-*' \) -print"#,
        who.quadlets()
    );
    assert_eq!(host.sh(who, &left), "");
    let databases = "select datname from pg_database where datname like 'litellm_units_%' and datname not like 'litellm_units_replaced_%'";
    assert_eq!(sql(host, who, databases), "");
}

/// How many migrations the database has seen.
fn migrations(host: &TestHost, who: Who) -> usize {
    let count = "select count(*) from _prisma_migrations where finished_at is not null";
    sql(host, who, count).parse().unwrap()
}

fn there_and_back(host: &TestHost, who: Who, from: Release, to: Release) {
    let old = new_key(host, who);
    let before = host.env(who);
    let dry = host.units(who, &["upgrade", "--image", to.image, "--dry-run"]);
    assert_eq!(
        dry.all(),
        (
            0,
            format!(
                "\
upgrade {} -> {}
  pull        the image, and record its digest; nothing is stopped
  backup      the database and the configuration, while the gateway serves
  migrate     the database, while the current release serves; a newer schema is kept
  switch      .env, units and gateway
  watch       for 10 s: database connected, requests answered, no burst of errors
  if a step fails, image, units, .env and database are rolled back
",
                from.image, to.image
            ),
            String::new()
        )
    );
    assert_eq!(host.env(who).text(), before.text());
    let schema = migrations(host, who);
    let ran = host.units(who, &["upgrade", "--image", to.image, "--settle", "2"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(version(host, who), to.version);
    assert!(migrations(host, who) > schema);
    let later = new_key(host, who);
    serves(host, who, &[&old, &later]);
    assert_eq!(
        host.env(who).text(),
        before.text().replace(from.image, to.image),
        "only the image differs"
    );

    // There is no terminal to ask on. Before that, the vulnerabilities of an old release are told.
    let shown = host.units(who, &["rollback", "--dry-run"]).ok();
    let (keep, restore) = shown.split_once("# with --restore-data\n").unwrap();
    assert!(keep.starts_with("# with --keep-data\nrollback "), "{shown}");
    assert!(
        restore.contains("\n  data        restore backup "),
        "{shown}"
    );
    let ran = host.units(who, &["rollback"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.ends_with(
            "error: a rollback can keep the current database or restore a backup, and there is no terminal to ask on\n\
             hint: choose with `--keep-data` or `--restore-data`\n"
        ),
        "{}",
        ran.stderr
    );
    let columns = "select count(*) from information_schema.columns where table_schema = 'public'";
    let wide = sql(host, who, columns);
    let ran = host.units(who, &["rollback", "--keep-data", "--settle", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(version(host, who), from.version);
    serves(host, who, &[&old, &later]);
    assert_eq!(host.env(who).text(), before.text());
    // The earlier release has left the schema of the later one alone.
    assert_eq!(sql(host, who, columns), wide);
    assert!(migrations(host, who) > schema);
    is_clean(host, who);
    assert_eq!(
        history(host, who),
        [
            format!("1 {} up replaced", from.tag()),
            format!("2 {} upgrade replaced", to.tag()),
            format!("3 {} rollback serves", from.tag()),
        ]
    );
    // A backup may have gone meanwhile.
    host.sh(who, r#"rm -r "$1"/backups/*"#);
    let ran = host.units(
        who,
        &["rollback", "--to", "2", "--restore-data", "--dry-run"],
    );
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with("error: there is no backup from before the upgrade from release 2\n"),
        "{}",
        ran.stderr
    );
}

fn an_edit_is_an_upgrade_and_data_comes_back(
    host: &TestHost,
    who: Who,
    from: Release,
    to: Release,
) {
    let old = new_key(host, who);
    host.set_env(who, &[("LITELLM_IMAGE", to.image)]);
    let ran = host.units(who, &["apply"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(version(host, who), to.version);
    let later = new_key(host, who);
    serves(host, who, &[&old, &later]);
    let ran = host.units(who, &["rollback", "--to", "9", "--keep-data"]);
    assert_eq!(
        ran.stderr,
        "error: there is no release 9\nhint: list the releases: `litellm-units history`\n"
    );
    // A rollback that fails is undone.
    let failing = "FAILPOINTS=upgrade-not-ready=return litellm-units rollback --restore-data";
    let ran = host.bash(who, failing);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains(&format!(
            "failed and was rolled back; {} is running: a test says so",
            to.image
        )),
        "{}",
        ran.stderr
    );
    assert_eq!(version(host, who), to.version);
    serves(host, who, &[&old, &later]);
    is_clean(host, who);

    let ran = host.units(who, &["rollback", "--restore-data", "--settle", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(version(host, who), from.version);
    serves(host, who, &[&old]);
    is_gone(host, who, &later);
    is_clean(host, who);
}

/// An image on top of the newest release.
#[track_caller]
fn image(host: &TestHost, who: Who, version: &str, lines: &str) -> String {
    let image = format!("ghcr.io/berriai/litellm:v{version}");
    let script = format!(
        "mkdir -p /tmp/image && cd /tmp/image && cat >Containerfile && podman build -q --pull=never -t {image} . >/dev/null"
    );
    let containerfile = format!("FROM {}\n{lines}\n", NEWEST.image);
    host.write(who, "/tmp/Containerfile", &containerfile);
    host.sh(who, &format!("({script}) </tmp/Containerfile"));
    image
}

/// What must be true after every failure.
#[track_caller]
fn is_as_before(host: &TestHost, who: Who, ran: &Ran, env: &str, keys: &[&str]) {
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains(&format!(
            "failed and was rolled back; {} is running",
            DEFAULT.image
        )),
        "{}",
        ran.stderr
    );
    assert_eq!(version(host, who), DEFAULT.version);
    assert_eq!(host.env(who).text(), env);
    serves(host, who, keys);
    is_clean(host, who);
}

fn failures_end_where_they_began(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let schema = migrations(host, who);
    let rows = r#"select (select count(*) from "LiteLLM_VerificationToken"), (select count(*) from "LiteLLM_Config")"#;
    let before = sql(host, who, rows);

    // It can't be pulled. The edit of .env is taken out, and kept.
    host.set_env(who, &[("LITELLM_IMAGE", "ghcr.io/berriai/litellm:v9.9.9")]);
    let ran = host.units(who, &["upgrade"]);
    is_as_before(host, who, &ran, &env, &[key]);
    assert!(
        ran.stderr
            .contains("can't pull ghcr.io/berriai/litellm:v9.9.9"),
        "{}",
        ran.stderr
    );
    let kept = ran
        .stderr
        .lines()
        .find_map(|line| line.strip_prefix("your edit is kept in "));
    let kept = host.sh(who, &format!("grep ^LITELLM_IMAGE {}/.env", kept.unwrap()));
    assert_eq!(kept, "LITELLM_IMAGE=ghcr.io/berriai/litellm:v9.9.9\n");

    // The disk is too full for the backup.
    host.sh(
        who,
        r#"mkdir -p -m 700 "$1/backups"; mount -t tmpfs -o size=16k,mode=700 tmpfs "$1/backups""#,
    );
    let ran = host.units(who, &["upgrade", "--image", NEWEST.image]);
    host.sh(who, r#"umount "$1/backups""#);
    is_as_before(host, who, &ran, &env, &[key]);
    assert_eq!(migrations(host, who), schema);

    // The migration fails halfway: one is applied, the next one is not.
    host.write(
        who,
        "/tmp/one.sql",
        "CREATE TABLE half_way (id text PRIMARY KEY);\n",
    );
    host.write(
        who,
        "/tmp/two.sql",
        "DO $$ BEGIN RAISE EXCEPTION 'permission denied for table x'; END $$;\n",
    );
    host.sh(who, "mkdir -p /tmp/image && cp /tmp/*.sql /tmp/image");
    let migrations_of = format!("{PACKAGES}/litellm_proxy_extras/migrations");
    let broken = image(
        host,
        who,
        "1.110.97",
        &format!(
            "COPY one.sql {migrations_of}/20981231000000_one/migration.sql\nCOPY two.sql {migrations_of}/20990101000000_two/migration.sql"
        ),
    );
    let ran = host.units(who, &["upgrade", "--image", &broken]);
    is_as_before(host, who, &ran, &env, &[key]);
    assert!(
        ran.stderr.contains("litellm-migrate-next.service failed"),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("permission denied for table x"),
        "{}",
        ran.stderr
    );
    assert_eq!(sql(host, who, "select to_regclass('half_way')"), "");
    assert_eq!(migrations(host, who), schema);
    assert_eq!(sql(host, who, rows), before);

    // It never gets ready.
    host.write(
        who,
        "/tmp/image/proxy_server.py",
        "import time; time.sleep(600)\n",
    );
    let silent = image(
        host,
        who,
        "1.110.98",
        &format!("COPY proxy_server.py {PACKAGES}/litellm/proxy/proxy_server.py"),
    );
    let begin = Instant::now();
    let ran = host.units(who, &["upgrade", "--image", &silent, "--timeout", "30"]);
    assert!(begin.elapsed() < Duration::from_secs(240));
    is_as_before(host, who, &ran, &env, &[key]);
    assert_eq!(migrations(host, who), schema);
    assert_eq!(sql(host, who, rows), before);
    assert_eq!(
        history(host, who),
        [
            "1 v1.108.14 up serves",
            "null v9.9.9 upgrade undone",
            "null v1.110.2 upgrade undone",
            "null v1.110.97 upgrade undone",
            "null v1.110.98 upgrade undone",
        ]
    );
}

#[cfg(feature = "fault-points")]
fn killed_upgrades_end_one_way_or_the_other(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let words = format!("upgrade --image {} --settle 0", NEWEST.image);
    let schema = migrations(host, who);
    let is_before = |point: &str| {
        assert_eq!(version(host, who), DEFAULT.version, "{point}");
        assert_eq!(host.env(who).text(), env, "{point}");
        serves(host, who, &[key]);
        is_clean(host, who);
    };
    // Killed during the rollback, and again at each step of continuing it.
    host.kill_at(who, "undo-begun", "upgrade-not-ready=return", &words);
    for point in ["undo-configured", "undo-staged", "undo-swapped"] {
        host.kill_at(who, point, "", "up");
    }
    let ran = host.units(who, &["up"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("was interrupted during its rollback\n")
            && ran.stderr.contains(&format!(
                "rolled back: {} is running; the database was restored to ",
                DEFAULT.image
            ))
            && ran.stderr.contains(" UTC, later writes are lost\n"),
        "{}",
        ran.stderr
    );
    is_before("the rollback");
    assert_eq!(migrations(host, who), schema);
    // Before the switch, the previous release keeps serving.
    for point in [
        "upgrade-begun",
        "upgrade-pulled",
        "upgrade-backed-up",
        "upgrade-migrating",
        "upgrade-migrated",
    ] {
        let said = host.interrupt_at(who, point, "", &words);
        assert!(
            said.contains(&format!("rolled back: {} is running\n", DEFAULT.image)),
            "{point}: {said}"
        );
        is_before(point);
    }
    // In between, it is undone; once the new one serves, it is finished.
    let later = new_key(host, who);
    for (point, expected) in [
        ("upgrade-configured", DEFAULT.version),
        ("upgrade-switched", NEWEST.version),
    ] {
        host.kill_at(who, point, "", &words);
        let ran = host.units(who, &["restart", "redis"]);
        assert_eq!(ran.code, 0, "{point}: {}", ran.stderr);
        assert_eq!(version(host, who), expected, "{}", ran.stderr);
        serves(host, who, &[key, &later]);
        is_clean(host, who);
    }
    // A rollback with its data: nothing before the swap, all after it.
    let latest = new_key(host, who);
    let back = "rollback --restore-data --settle 0";
    for (point, expected) in [
        ("rollback-stopped", NEWEST.version),
        ("rollback-swapped", DEFAULT.version),
    ] {
        let said = host.interrupt_at(who, point, "", back);
        assert_eq!(version(host, who), expected, "{said}");
        serves(host, who, &[key, &later]);
        is_clean(host, who);
    }
    is_gone(host, who, &latest);
    // All is done, and that is not yet written down.
    host.kill_at(who, "upgrade-ready", "", &words);
    assert_eq!(
        host.units(who, &["status"]).stderr,
        format!(
            "warning: the upgrade to {} was interrupted after the gateway was ready; to finish it or roll it back: `litellm-units up`\n",
            NEWEST.image
        )
    );
    host.kill_at(who, "upgrade-recorded", "", "up");
    let ran = host.units(who, &["up"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(version(host, who), NEWEST.version);
    serves(host, who, &[key, &later]);
    is_clean(host, who);
}

#[test]
fn rootful_upgrade_and_rollback() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-rootful");
    begin_with_oldest(&host, who);
    host.units(who, &["up"]).ok();
    // What is kept and put back refers to sealed secrets.
    host.units(who, &["secrets", "seal"]).ok();
    there_and_back(&host, who, OLDEST, DEFAULT);
    host.without_standby(who);
    an_edit_is_an_upgrade_and_data_comes_back(&host, who, OLDEST, PLAIN);
}

#[test]
fn rootless_upgrade_and_rollback() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "upgrade-rootless");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    there_and_back(&host, who, DEFAULT, NEWEST);
}

#[test]
fn rootful_failed_upgrades() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-failed");
    host.units(who, &["generate"]).ok();
    // Backups are for someone whose key is not here; going back needs no key.
    let recipient = age::x25519::Identity::generate().to_public().to_string();
    host.set_env(who, &[("BACKUP_AGE_RECIPIENT", &recipient)]);
    host.units(who, &["up"]).ok();
    host.units(who, &["secrets", "seal"]).ok();
    let key = new_key(&host, who);
    failures_end_where_they_began(&host, who, &key);
}

#[cfg(feature = "fault-points")]
#[test]
fn rootful_upgrades_killed_at_every_step() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-killed");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    killed_upgrades_end_one_way_or_the_other(&host, who, &key);
}

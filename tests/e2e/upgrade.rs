//! Another release comes and goes without losing a key; one that fails never stays.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{HELLO, Writer, chat, new_key, sql, wait_for_chat};
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
  check       that the image fits, in a container without network and data
  backup      the database and the configuration, while the gateway serves
  migrate     the database, while the current release serves; a newer schema is kept
  switch      .env, units and gateway
  watch       for 10 s: database connected, requests answered, no burst of errors
  if a step fails, image, units and .env are rolled back; the database keeps every write
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

/// An image on top of a release.
#[track_caller]
fn image(host: &TestHost, who: Who, base: Release, version: &str, lines: &str) -> String {
    let image = format!("ghcr.io/berriai/litellm:v{version}");
    let script = format!(
        "mkdir -p /tmp/image && cd /tmp/image && cat >Containerfile && podman build -q --pull=never -t {image} . >/dev/null"
    );
    let containerfile = format!("FROM {}\n{lines}\n", base.image);
    host.write(who, "/tmp/Containerfile", &containerfile);
    host.sh(who, &format!("({script}) </tmp/Containerfile"));
    image
}

/// An image with migrations of its own, each a name and its SQL.
#[track_caller]
fn migrating_image(
    host: &TestHost,
    who: Who,
    base: Release,
    version: &str,
    migrations: &[(&str, &str)],
) -> String {
    host.sh(who, "mkdir -p /tmp/image");
    let mut lines = Vec::new();
    for (name, statements) in migrations {
        host.write(who, &format!("/tmp/image/{name}.sql"), statements);
        lines.push(format!(
            "COPY {name}.sql {PACKAGES}/litellm_proxy_extras/migrations/{name}/migration.sql"
        ));
    }
    image(host, who, base, version, &lines.join("\n"))
}

/// What must be true after every failure.
#[track_caller]
fn is_as_before(host: &TestHost, who: Who, ran: &Ran, words: &str, env: &str, keys: &[&str]) {
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    assert_eq!(version(host, who), DEFAULT.version);
    assert_eq!(host.env(who).text(), env);
    serves(host, who, keys);
    is_clean(host, who);
}

const UNCHANGED: &str = " failed; nothing was changed: ";
const FAILING: &str = "DO $$ BEGIN RAISE EXCEPTION 'permission denied for table x'; END $$;\n";

fn back() -> String {
    format!(" failed and was rolled back; {} is running", DEFAULT.image)
}

/// Nothing that was there before is touched until something can fail because of it.
fn failures_before_the_backup(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let lock = host.sh(who, r#"cat "$1/images.lock""#);
    // It can't be pulled. Edits stay in .env, whatever they are.
    let edit = [
        ("LITELLM_IMAGE", "ghcr.io/berriai/litellm:v9.9.9"),
        ("LITELLM_LOG", "DEBUG"),
    ];
    host.set_env(who, &edit);
    let edited = host.env(who).text().to_owned();
    let ran = host.units(who, &["upgrade"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let failure = "error: the upgrade to ghcr.io/berriai/litellm:v9.9.9 failed; nothing was changed: \
                   can't pull ghcr.io/berriai/litellm:v9.9.9\n\
                   hint: name another image in .env, or check that this host can reach the registry\n";
    assert!(ran.stderr.ends_with(failure), "{}", ran.stderr);
    assert!(!ran.stderr.contains("roll"), "{}", ran.stderr);
    assert_eq!(host.env(who).text(), edited);
    host.write(who, &format!("{}/.env", who.deployment()), &env);
    let words = ["upgrade", "--image", "ghcr.io/berriai/litellm:v9.9.8"];
    let ran = host.units(who, &words);
    is_as_before(host, who, &ran, UNCHANGED, &env, &[key]);
    let hint = "hint: name another image with `litellm-units upgrade --image`, or check that this host can reach the registry\n";
    assert!(ran.stderr.ends_with(hint), "{}", ran.stderr);
    assert_eq!(host.sh(who, r#"cat "$1/images.lock""#), lock);

    // The disk is too full for the backup.
    host.sh(
        who,
        r#"mkdir -p -m 700 "$1/backups"; mount -t tmpfs -o size=16k,mode=700 tmpfs "$1/backups""#,
    );
    let ran = host.units(who, &["upgrade", "--image", NEWEST.image]);
    host.sh(who, r#"umount "$1/backups""#);
    is_as_before(host, who, &ran, UNCHANGED, &env, &[key]);
    assert!(
        ran.stderr.contains(" of free space, and about "),
        "{}",
        ran.stderr
    );
}

/// The previous release does not serve with what the migration left.
fn the_operator_decides_about_the_data(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let unfit = migrating_image(
        host,
        who,
        DEFAULT,
        "1.108.97",
        &[
            (
                "20981231000000_one",
                "ALTER TABLE \"LiteLLM_VerificationToken\" RENAME COLUMN blocked TO gone;\n",
            ),
            ("20990101000000_two", FAILING),
        ],
    );
    let before = sql(host, who, "select count(*) from _prisma_migrations");
    let ran = host.units(who, &["upgrade", "--image", &unfit]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let failure = format!(
        "error: the upgrade to {unfit} failed and was rolled back, but {} does not serve with the database as it is: a probe request failed: ",
        DEFAULT.image
    );
    assert!(ran.stderr.contains(&failure), "{}", ran.stderr);
    assert_eq!(host.env(who).text(), env);
    // The hint has the command.
    let restore = ran.stderr.trim_end().rsplit('`').nth(1).unwrap();
    assert!(restore.starts_with("litellm-units restore 2"), "{restore}");
    let ran = host.bash(who, &format!("{restore} --yes"));
    assert_eq!(ran.code, 0, "{ran:?}");
    serves(host, who, &[key]);
    is_clean(host, who);
    assert_eq!(
        sql(host, who, "select count(*) from _prisma_migrations"),
        before
    );

    // Beforehand, too; and what is lost is said.
    let writer = Writer::begin(host, who);
    let ran = host.units(who, &["upgrade", "--image", &unfit, "--restore-data"]);
    drop(writer);
    host.sh(who, "touch /var/tmp/writer-end");
    let words = format!("{}; the database was restored to 2", back());
    is_as_before(host, who, &ran, &words, &env, &[key]);
    let lost = ran
        .stderr
        .split_once(" UTC, later writes are lost (new rows: ");
    let rows = lost.unwrap().1.split_once(')').unwrap().0;
    let keys = rows.split(", ").find_map(|row| {
        row.strip_suffix(" in public.LiteLLM_VerificationToken")?
            .parse::<usize>()
            .ok()
    });
    assert!(keys.unwrap_or_default() > 0, "{rows}");
    assert_eq!(
        sql(host, who, "select count(*) from _prisma_migrations"),
        before
    );
}

fn failures_lose_no_write(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let kept = format!(
        "{}; the database keeps every write and the new schema",
        back()
    );
    // The migration fails halfway: one step is applied, the next one is not. Edits that are not applied stay in .env.
    let edited = format!("{env}# a note\nLITELLM_LOG=DEBUG\n");
    let file = format!("{}/.env", who.deployment());
    host.write(who, &file, &edited);
    let writer = Writer::begin(host, who);
    let halfway = format!("CREATE TABLE half_way (id text PRIMARY KEY);\nCOMMIT;\n{FAILING}");
    let broken = migrating_image(
        host,
        who,
        DEFAULT,
        "1.108.98",
        &[("20981231000000_broken", &halfway)],
    );
    let ran = host.units(who, &["upgrade", "--image", &broken]);
    assert_eq!(ran.code, 1, "{ran:?}");
    for words in [
        kept.as_str(),
        "litellm-migrate-next.service failed",
        "permission denied for table x",
    ] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    // The rollback has removed that unit, but not what it wrote.
    let mut commands = ran.stderr.split('`');
    let logs = commands.find(|part| part.starts_with("litellm-units logs --since "));
    let logs = host.sh(who, logs.unwrap());
    assert!(logs.contains("permission denied for table x"), "{logs}");
    assert_eq!(host.env(who).text(), edited);
    host.write(who, &file, &env);
    serves(host, who, &[key]);
    is_clean(host, who);
    writer.assert_nothing_lost(host, who);
    // That is no schema of any release. The previous one starts with it all the same, and its own migration does not run.
    assert_eq!(sql(host, who, "select to_regclass('half_way')"), "half_way");
    host.reboot();
    wait_for_chat(host, who, key, Duration::from_secs(120));
    assert_eq!(sql(host, who, "select to_regclass('half_way')"), "half_way");
    let row = "update _prisma_migrations set rolled_back_at = now() where migration_name = '20981231000000_broken'";
    sql(host, who, &format!("drop table half_way; {row}"));

    // The gate fails: it never gets ready.
    let writer = Writer::begin(host, who);
    let schema = migrations(host, who);
    host.sh(who, "mkdir -p /tmp/image");
    host.write(
        who,
        "/tmp/image/proxy_server.py",
        "import time; time.sleep(600)  # \"/v2/login\"\n",
    );
    let silent = image(
        host,
        who,
        NEWEST,
        "1.110.98",
        &format!("COPY proxy_server.py {PACKAGES}/litellm/proxy/proxy_server.py"),
    );
    let invocation = || host.property(who, "litellm.service", "InvocationID");
    let (begin, before) = (Instant::now(), invocation());
    let ran = host.units(who, &["upgrade", "--image", &silent, "--timeout", "30"]);
    // Only the standby had the new release.
    assert_eq!(invocation(), before);
    // Long before the gateway would go on.
    assert!(begin.elapsed() < Duration::from_secs(500));
    is_as_before(host, who, &ran, &kept, &env, &[key]);
    assert!(migrations(host, who) > schema);
    writer.assert_nothing_lost(host, who);
    assert_eq!(
        history(host, who),
        [
            "1 v1.108.14 up serves",
            "null v9.9.9 upgrade undone",
            "null v9.9.8 upgrade undone",
            "null v1.110.2 upgrade undone",
            "null v1.108.98 upgrade undone",
            "null v1.110.98 upgrade undone",
        ]
    );
}

/// The previous release serves, with the previous settings.
#[cfg(feature = "fault-points")]
fn is_before(host: &TestHost, who: Who, key: &str, env: &str, point: &str) {
    assert_eq!(version(host, who), DEFAULT.version, "{point}");
    assert_eq!(host.env(who).text(), env, "{point}");
    serves(host, who, &[key]);
    is_clean(host, who);
}

/// A loss of power, a kill before the switch, and one when all but the record is done.
#[cfg(feature = "fault-points")]
fn killed_upgrades_are_undone_or_finished(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let words = format!("upgrade --image {} --settle 0", NEWEST.image);
    // After a loss of power, the previous release starts with the migrated database.
    let writer = Writer::begin(host, who);
    host.kill_at(who, "upgrade-migrated", "", &words);
    host.crash();
    wait_for_chat(host, who, key, Duration::from_secs(120));
    host.without_standby(who);
    host.units(who, &["up"]).ok();
    is_before(host, who, key, &env, "a loss of power");
    writer.assert_nothing_lost(host, who);
    let later = new_key(host, who);
    host.kill_at(who, "upgrade-configured", "", &words);
    host.units(who, &["restart", "redis"]).ok();
    is_before(host, who, key, &env, "upgrade-configured");
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

/// What an operator stops in the middle of an upgrade stays stopped. The next start rolls the upgrade back.
#[cfg(feature = "fault-points")]
fn what_was_stopped_meanwhile_stays_stopped(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let stop = format!("{} stop litellm.target", who.systemctl());
    for (point, step, said, stop) in [
        ("upgrade-migrated", "migrated", "^migrating", &*stop),
        (
            "upgrade-switched",
            "switching",
            "^ready after",
            "litellm-units down",
        ),
    ] {
        let script = format!(
            "FAILPOINTS='{point}=sleep(30000)' litellm-units upgrade --image {} --settle 0 2>/tmp/said &
             until grep -q '{said}' /tmp/said && [[ $(tail -n 1 \"$1/.litellm-units/ledger.jsonl\") = *{step}* ]]; do
                 sleep 0.2; kill -0 $!
             done
             {stop} 2>/dev/null; wait $! || echo \"left with $?\"",
            NEWEST.image
        );
        let ran = host.bash_with(who, &script, &[who.deployment()]);
        let said = host.sh(who, "cat /tmp/said");
        assert_eq!(ran.stdout, "left with 130\n", "{point}: {ran:?} {said}");
        let words = format!(
            "error: the upgrade to {} was interrupted: the deployment was stopped meanwhile, and stays stopped",
            NEWEST.image
        );
        assert!(said.contains(&words), "{point}: {said}");
        host.wait(
            "the recovery",
            Duration::from_secs(60),
            |host| match &*host.property(who, "litellm-recovery.service", "ActiveState") {
                "inactive" => Ok(()),
                state => Err(state.to_owned()),
            },
        );
        assert_eq!(host.sh(who, "podman ps --quiet"), "", "{point}");
        assert_eq!(
            host.property(who, "litellm.socket", "ActiveState"),
            "inactive"
        );
        let ran = host.units(who, &["up"]);
        assert_eq!(ran.code, 0, "{point}: {}", ran.stderr);
        assert!(ran.stderr.contains("rolling it back"), "{}", ran.stderr);
        is_before(host, who, key, &env, point);
    }
}

#[cfg(feature = "fault-points")]
fn killed_upgrades_end_one_way_or_the_other(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let words = format!("upgrade --image {} --settle 0", NEWEST.image);
    let schema = migrations(host, who);
    // Killed during the rollback, and again at each step of continuing it; with leave to restore the backup.
    let asking = format!("{words} --restore-data");
    host.kill_at(who, "undo-begun", "upgrade-not-ready=return", &asking);
    for point in ["undo-configured", "undo-staged", "undo-swapped"] {
        host.kill_at(who, point, "undo-not-ready=return", "up");
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
    is_before(host, who, key, &env, "the rollback");
    assert_eq!(migrations(host, who), schema);
    // Before the switch, the previous release keeps serving.
    let running = format!("rolled back: {} is running", DEFAULT.image);
    let migrated = format!("{running}; the database keeps every write and the new schema");
    let writer = Writer::begin(host, who);
    for (point, expected) in [
        ("upgrade-begun", "nothing was changed"),
        ("upgrade-pulled", "nothing was changed"),
        ("upgrade-backed-up", &running),
        ("upgrade-migrating", &running),
        ("upgrade-migrated", &migrated),
    ] {
        let said = host.interrupt_at(who, point, "", &words);
        let line = |line: &str| line == expected;
        assert!(said.lines().any(line), "{point}: {said}");
        is_before(host, who, key, &env, point);
    }
    writer.assert_nothing_lost(host, who);
    assert!(migrations(host, who) > schema);
    // Once the new one serves, it is finished.
    let later = new_key(host, who);
    host.kill_at(who, "upgrade-switched", "", &words);
    host.units(who, &["restart", "redis"]).ok();
    assert_eq!(version(host, who), NEWEST.version);
    serves(host, who, &[key, &later]);
    is_clean(host, who);
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
        if expected == NEWEST.version {
            // Its own rollback takes the data out again, whoever completes it.
            let said = host.interrupt_at(who, "undo-begun", "upgrade-not-ready=return", back);
            assert_eq!(version(host, who), NEWEST.version, "{said}");
            serves(host, who, &[key, &later, &latest]);
            is_clean(host, who);
        }
    }
    is_gone(host, who, &latest);
}

#[test]
fn rootful_upgrade_and_rollback() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-rootful");
    begin_with_oldest(&host, who);
    host.units(who, &["up"]).ok();
    // What is kept and restored refers to sealed secrets.
    host.units(who, &["secrets", "seal"]).ok();
    there_and_back(&host, who, OLDEST, DEFAULT);
    host.without_standby(who);
    an_edit_is_an_upgrade_and_data_comes_back(&host, who, OLDEST, PLAIN);
    let changes = host.sh(
        who,
        "journalctl --sync
         journalctl --no-pager -o json MESSAGE_ID=c1c8369ef65645c8a29e10e4d5886ee4 | jq -r .LITELLM_UNITS_WHY",
    );
    assert_eq!(
        changes,
        "upgrade\nrollback\nupgrade\nautomatic rollback\nrollback\n"
    );
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootless_upgrade_and_rollback() {
    let who = Who::Operator;
    let host = TestHost::boot_for(who, "upgrade-rootless");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    there_and_back(&host, who, DEFAULT, NEWEST);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
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
    failures_before_the_backup(&host, who, &key);
    failures_lose_no_write(&host, who, &key);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_upgrade_that_the_previous_release_does_not_survive() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-unfit");
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    the_operator_decides_about_the_data(&host, who, &key);
}

#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_upgrades_killed() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-killed");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    what_was_stopped_meanwhile_stays_stopped(&host, who, &key);
    killed_upgrades_are_undone_or_finished(&host, who, &key);
}

#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_upgrades_killed_at_every_step() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-every-step");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    killed_upgrades_end_one_way_or_the_other(&host, who, &key);
}

/// Whatever fails after the migration, and however: no write that a client had an answer to is lost.
#[cfg(feature = "fault-points")]
#[test]
#[ignore = "takes half an hour: part of each release (CONTRIBUTING.md)"]
fn thirty_failed_upgrades_lose_no_write() {
    let who = Who::Root;
    let host = TestHost::boot("upgrade-thirty");
    host.units(who, &["up"]).ok();
    host.without_standby(who);
    let key = new_key(&host, who);
    let mut sum = 0;
    for number in 0..30 {
        let writer = Writer::begin(&host, who);
        // Each has a migration of its own, so that each changes the schema.
        let (table, name) = (
            format!("CREATE TABLE kept_{number} (id text PRIMARY KEY);\n"),
            format!("209801010000{number:02}_kept"),
        );
        let halfway = format!("{table}COMMIT;\n{FAILING}");
        let fails = number % 5 == 1;
        let statements = if fails { &halfway } else { &table };
        let version = format!("1.108.{}", 100 + number);
        let image = migrating_image(&host, who, DEFAULT, &version, &[(&name, statements)]);
        let words = format!("upgrade --image {image} --settle 0");
        match number % 5 {
            0 => {
                let faults = "FAILPOINTS=upgrade-not-ready=return";
                let ran = host.bash(who, &format!("{faults} litellm-units {words}"));
                assert!(ran.stderr.contains(&back()), "{}", ran.stderr);
            }
            1 => {
                let ran = host.bash(who, &format!("litellm-units {words}"));
                assert!(ran.stderr.contains(&back()), "{}", ran.stderr);
            }
            2 => drop(host.interrupt_at(who, "upgrade-migrated", "", &words)),
            3 => {
                host.kill_at(who, "upgrade-migrated", "", &words);
                host.crash();
                host.without_standby(who);
            }
            _ => {
                host.kill_at(who, "upgrade-configured", "", &words);
                host.units(who, &["up"]).ok();
            }
        }
        wait_for_chat(&host, who, &key, Duration::from_secs(120));
        host.units(who, &["up"]).ok();
        assert_eq!(self::version(&host, who), DEFAULT.version);
        sum += writer.assert_nothing_lost(&host, who);
        // As the hint of LiteLLM's own failure says.
        let row = format!(
            "update _prisma_migrations set rolled_back_at = now() where migration_name = '{name}' and finished_at is null"
        );
        sql(&host, who, &row);
    }
    eprintln!("{sum} acknowledged writes, none lost");
}

//! The next major version of PostgreSQL comes, and goes again, and no acknowledged write is lost unasked.

use std::time::Duration;

use super::backup::wait_for_archive;
use crate::support::gateway::{
    HELLO, Load, Writer, allow_mock_delays, chat, new_key, sql, stored_keys, wait_for_chat,
};
use crate::support::host::{TestHost, Who};

const OLD: &str = "docker.io/library/postgres:17.7";
const NEW: &str = "docker.io/library/postgres:18.1";
const UPGRADE: &str = "litellm-units upgrade --postgres docker.io/library/postgres:18.1";
const BACK: &str = "litellm-units rollback --postgres --restore-data";

/// The first number of the version that serves.
#[track_caller]
fn major(host: &TestHost, who: Who) -> String {
    let version = sql(host, who, "show server_version");
    version.split('.').next().unwrap().to_owned()
}

/// The gateway and its database agree, and nothing of a change is left.
#[track_caller]
fn serves(host: &TestHost, who: Who, version: &str, keys: &[&str]) {
    assert_eq!(major(host, who), version);
    for key in keys {
        assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    }
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );
    assert_eq!(sql(host, who, "show default_transaction_read_only"), "off");
    // A replication slot that is left would fill the disk.
    let replication = "select (select count(*) from pg_publication) + (select count(*) from pg_subscription) + (select count(*) from pg_replication_slots where slot_name <> 'litellm_units_archive')";
    assert_eq!(sql(host, who, replication), "0");
    let left = format!(
        r#"find {} "$1"/data -maxdepth 1 -name '*next*'"#,
        who.quadlets()
    );
    assert_eq!(host.sh(who, &left), "");
}

/// The clusters of PostgreSQL on the disk.
#[track_caller]
fn clusters(host: &TestHost, who: Who) -> Vec<String> {
    let list = host.sh(who, r#"cd "$1/data"; printf '%s\n' postgres*"#);
    list.lines().map(str::to_owned).collect()
}

/// Objects beside the gateway's tables, which have to come along.
#[track_caller]
fn add_objects(host: &TestHost, who: Who) {
    for statement in [
        "create role reporting login password 'of-the-reports'",
        r#"grant select on "LiteLLM_SpendLogs" to reporting"#,
        "alter database litellm set work_mem to '8MB'",
        "create database other locale 'C' encoding 'UTF8' template template0",
        "create table with_identity (id int generated always as identity primary key, text text)",
        "insert into with_identity (text) select 'some text' from generate_series(1, 1000)",
        "alter system set log_min_duration_statement = 500",
    ] {
        sql(host, who, statement);
    }
}

#[track_caller]
fn has_objects(host: &TestHost, who: Who) {
    assert_eq!(sql(host, who, "show work_mem"), "8MB");
    assert_eq!(sql(host, who, "show max_connections"), "200");
    assert_eq!(sql(host, who, "show wal_level"), "logical");
    // Its sequence goes on.
    let next = "insert into with_identity (text) select 'more' from (select count(*), max(id) from with_identity) found where count = max returning 'next'";
    assert_eq!(sql(host, who, next), "next");
    let rights = r#"select has_table_privilege('reporting', '"LiteLLM_SpendLogs"', 'select')"#;
    assert_eq!(sql(host, who, rights), "t");
    let databases = "select string_agg(datname || ' ' || datcollate, ',' order by datname) from pg_database where not datistemplate";
    assert_eq!(
        sql(host, who, databases),
        "litellm en_US.utf8,other C,postgres en_US.utf8"
    );
    host.sh(
        who,
        "podman exec --env PGPASSWORD=of-the-reports litellm-postgres psql -qAt -h 127.0.0.1 -U reporting -d litellm -c 'select 1'",
    );
}

/// Waits until the cluster that is in use is archived and can be recovered, and checks that each change was a beginning,
/// and that the log of the earlier ones is kept.
#[track_caller]
fn archives(host: &TestHost, who: Who, count: usize) {
    wait_for_archive(host, who, 400);
    let list = r#"cd "$1/backups/archive/wal"; printf '%s\n' *"#;
    let found = host.sh(who, list);
    let system = sql(
        host,
        who,
        "select system_identifier from pg_control_system()",
    );
    assert_eq!(found.lines().count(), count, "{found}");
    let newest = found
        .lines()
        .max_by_key(|name| name.rsplit('-').next().map(str::to_owned));
    assert!(
        newest.is_some_and(|name| name.starts_with(&system)),
        "{found}"
    );
    let slots = "select count(*) from pg_replication_slots where wal_status = 'reserved'";
    assert_eq!(sql(host, who, slots), "1");
}

fn refusals(host: &TestHost, who: Who) {
    let refused = |words: &[&str], error: &str| {
        let ran = host.units(who, words);
        assert_ne!(ran.code, 0, "{words:?}");
        assert!(ran.stderr.contains(error), "{words:?}: {}", ran.stderr);
    };
    refused(
        &["upgrade", "--postgres", OLD],
        "error: docker.io/library/postgres:17.7 is the current image of PostgreSQL\n",
    );
    refused(
        &["upgrade", "--postgres", "docker.io/library/redis:7.4.6"],
        "error: docker.io/library/redis:7.4.6 does not say which version of PostgreSQL it has: ",
    );
    refused(
        &["rollback", "--postgres", "--restore-data"],
        "error: there is no previous cluster of PostgreSQL\nhint: it is kept until the next backup; ",
    );
    host.set_env(who, &[("POSTGRES_IMAGE", NEW)]);
    refused(
        &["up"],
        "holds a PostgreSQL 17 cluster, but the image is docker.io/library/postgres:18.1\n",
    );
    host.sh(who, r#"sed -i '/^POSTGRES_IMAGE=/d' "$1/.env""#);
    host.set_env(who, &[("UI_USERNAME", "someone")]);
    refused(
        &["upgrade", "--postgres", NEW],
        "error: edits of the configuration are not applied\nhint: apply them first: `litellm-units apply`\n",
    );
    host.set_env(who, &[("UI_USERNAME", "")]);
}

fn there_and_back(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    let host = &host;
    host.units(who, &["generate"]).ok();
    host.set_env(who, &[("BACKUP_WAL", "yes")]);
    allow_mock_delays(host, who);
    host.units(who, &["up"]).ok();
    archives(host, who, 1);
    let first = new_key(host, who);
    add_objects(host, who);
    refusals(host, who);
    let env = host.env(who);
    let load = Load::begin(host, who, &first);
    let writer = Writer::begin(host, who);
    let ran = host.bash(who, UPGRADE);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stderr.contains(
            "warning: the new cluster does not have the changed settings of the current one: log_min_duration_statement = 500; "
        ),
        "{}",
        ran.stderr
    );
    eprintln!("{}", ran.stderr);
    assert!(ran.stderr.contains(") while the gateway serves\n"));
    load.assert_no_failure(host, who);
    writer.assert_nothing_lost(host, who);
    let later = new_key(host, who);
    serves(host, who, "18", &[&first, &later]);
    has_objects(host, who);
    // A base backup of the new cluster is not one with which the previous cluster goes.
    archives(host, who, 2);
    assert_eq!(clusters(host, who), ["postgres", "postgres-previous"]);
    // The weekly verification restores nothing into the archive.
    let verify = ["backup", "verify", "latest", "--unattended"];
    let read = host.units(who, &verify).ok();
    assert!(
        read.ends_with(", and its dump is readable to the end; it was not restored\n"),
        "{read}"
    );

    // An older version, and a server that runs already.
    let ran = host.units(who, &["upgrade", "--postgres", OLD]);
    assert!(
        ran.stderr.contains(
            "error: docker.io/library/postgres:17.7 has PostgreSQL 17, and the data is of PostgreSQL 18: "
        ),
        "{}",
        ran.stderr
    );
    // There is no terminal to ask on.
    let ran = host.units(who, &["rollback", "--postgres"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains(" in public.LiteLLM_VerificationToken")
            && ran
                .stderr
                .contains("there is no terminal to ask on\nhint: to accept that: "),
        "{}",
        ran.stderr
    );
    // The previous cluster has another password than the gateway.
    host.units(who, &["secrets", "rotate", "postgres"]).ok();
    let ran = host.bash(who, BACK);
    assert_eq!(ran.code, 0, "{ran:?}");
    serves(host, who, "17", &[&first]);
    has_objects(host, who);
    assert!(chat(host, who, &later).unwrap_err().contains("401"));
    archives(host, who, 3);
    // The two have changed places; `.env` names the image now.
    host.bash(who, BACK).ok();
    serves(host, who, "18", &[&first, &later]);
    host.bash(who, BACK).ok();
    serves(host, who, "17", &[&first]);
    assert_eq!(host.env(who).get("POSTGRES_IMAGE"), Some(OLD));
    assert_eq!(env.get("POSTGRES_IMAGE"), None);

    // A backup of what is in use ends it.
    host.units(who, &["backup"]).ok();
    assert_eq!(clusters(host, who), ["postgres"]);
    let ran = host.bash(who, BACK);
    assert!(
        ran.stderr
            .contains("error: there is no previous cluster of PostgreSQL\n"),
        "{}",
        ran.stderr
    );
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn another_version_comes_and_goes() {
    there_and_back(Who::Root, "postgres-version");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn another_version_comes_and_goes_rootless() {
    there_and_back(Who::Operator, "postgres-version-user");
}

/// Where replication is not possible, the plan says why, and the gateway is stopped for the copy.
fn copies_while_stopped(host: &TestHost, who: Who, key: &str) {
    let plan = || host.bash(who, &format!("{UPGRADE} --dry-run")).ok();
    assert!(plan().contains(" have to be copied; requests wait for the switch only\n"));
    sql(host, who, "create table plain (x int)");
    let obstacle = "table public.plain has no primary key and no other replica identity";
    assert!(plan().contains(&format!("for as long as that takes: {obstacle}\n")));
    sql(host, who, "drop table plain");

    sql(host, who, "alter system set wal_level = 'replica'");
    host.units(who, &["restart", "postgres"]).ok();
    let obstacle = "the current server has wal_level = replica";
    let planned = plan();
    assert!(planned.contains(&format!("for as long as that takes: {obstacle}\n")));
    let ran = host.bash(who, &format!("FAILPOINTS=postgres-copied=return {UPGRADE}"));
    let said = format!("the gateway has to be stopped for the copy: {obstacle}\n");
    assert!(ran.stderr.contains(&said), "{ran:?}");
    serves(host, who, "17", &[key]);
    // The hint is what enables it.
    let commands = planned.split('`').skip(1).step_by(2);
    let hint: Vec<&str> = commands
        .filter(|command| !command.contains("rollback"))
        .collect();
    assert_eq!(hint.len(), 2, "{planned}");
    for command in hint {
        host.bash(who, command).ok();
    }
    assert!(plan().contains(" have to be copied; requests wait for the switch only\n"));
}

/// Replication copies rows only.
fn finds_another_schema(host: &TestHost, who: Who) {
    let column = r#"alter table "LiteLLM_BudgetTable" alter column max_budget"#;
    let script = format!(
        r#"FAILPOINTS='postgres-replicated=sleep(5000)' {UPGRADE} 2>/tmp/said & upgrade=$!
        timeout 240 bash -c "until grep -q ' while the gateway serves' /tmp/said; do sleep 0.2; done"
        podman exec -i litellm-postgres sh -c 'psql -qU $POSTGRES_USER -d $POSTGRES_DB' <<<'{column} set default 1'
        status=0; wait $upgrade || status=$?; cat /tmp/said >&2; exit $status"#
    );
    let ran = host.bash(who, &script);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr.contains(
            "is in use again, with every write: roles, settings or the schema have changed while the database was copied\nhint: run the same command again\n"
        ),
        "{}",
        ran.stderr
    );
    sql(host, who, &format!("{column} drop default"));
}

/// Whatever fails or is killed before the new server has the rows, the current cluster is used again.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn an_interrupted_change_loses_nothing() {
    let who = Who::Root;
    let host = TestHost::boot("postgres-interrupted");
    let host = &host;
    host.units(who, &["up"]).ok();
    let key = new_key(host, who);
    let limit = Duration::from_secs(240);
    let env = host.env(who);
    for point in [
        "postgres-recorded",
        "postgres-rehearsed",
        "postgres-subscribed",
        "postgres-replicated",
        "postgres-stopped",
        "postgres-copied",
        "postgres-switching",
        "postgres-swapped",
        "postgres-configured",
    ] {
        let writer = Writer::begin(host, who);
        let said = host.interrupt_at(who, point, "", &UPGRADE["litellm-units ".len()..]);
        assert!(
            said.contains("docker.io/library/postgres:17.7 is in use again, with every write"),
            "{point}: {said}"
        );
        wait_for_chat(host, who, &key, limit);
        writer.assert_nothing_lost(host, who);
        serves(host, who, "17", &[&key]);
        assert_eq!(host.env(who).text(), env.text(), "{point}");
        assert_eq!(clusters(host, who), ["postgres"], "{point}");
    }
    // An undoing is itself interrupted, before and after the new server has shown its rows.
    for failure in ["postgres-configured=return", "postgres-not-ready=return"] {
        let said = host.interrupt_at(
            who,
            "postgres-swapped-back",
            failure,
            &UPGRADE["litellm-units ".len()..],
        );
        assert!(
            said.contains("is in use again, with every write"),
            "{failure}: {said}"
        );
        wait_for_chat(host, who, &key, limit);
        serves(host, who, "17", &[&key]);
        assert_eq!(host.env(who).text(), env.text(), "{failure}");
        assert_eq!(clusters(host, who), ["postgres"], "{failure}");
    }
    for point in [
        "postgres-replicated",
        "postgres-copied",
        "postgres-not-ready",
    ] {
        let writer = Writer::begin(host, who);
        let ran = host.bash(who, &format!("FAILPOINTS={point}=return {UPGRADE}"));
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(
            ran.stderr.contains(
                "failed; docker.io/library/postgres:17.7 is in use again, with every write: a test says so\n"
            ),
            "{point}: {}",
            ran.stderr
        );
        writer.assert_nothing_lost(host, who);
        serves(host, who, "17", &[&key]);
        assert_eq!(host.env(who).text(), env.text(), "{point}");
    }

    copies_while_stopped(host, who, &key);
    finds_another_schema(host, who);
    serves(host, who, "17", &[&key]);

    // A loss of power between the swap and the units: no gateway starts before it is undone.
    host.kill_at(
        who,
        "postgres-configured",
        "",
        &UPGRADE["litellm-units ".len()..],
    );
    host.crash();
    wait_for_chat(host, who, &key, limit);
    serves(host, who, "17", &[&key]);

    // Once the new server has the rows, it stays.
    let before = stored_keys(host, who);
    let said = host.interrupt_at(
        who,
        "postgres-switched",
        "",
        &UPGRADE["litellm-units ".len()..],
    );
    assert!(said.contains("was interrupted: finishing it"), "{said}");
    wait_for_chat(host, who, &key, limit);
    serves(host, who, "18", &[&key]);
    assert_eq!(stored_keys(host, who), before);
    assert_eq!(clusters(host, who), ["postgres", "postgres-previous"]);

    // The return as well.
    for (point, version) in [("postgres-swapped", "18"), ("postgres-switched", "17")] {
        host.interrupt_at(who, point, "", &BACK["litellm-units ".len()..]);
        wait_for_chat(host, who, &key, limit);
        serves(host, who, version, &[&key]);
        assert_eq!(clusters(host, who), ["postgres", "postgres-previous"]);
    }
}

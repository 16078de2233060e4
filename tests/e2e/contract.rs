//! What is known of LiteLLM's inside: a release that does not fit is refused before anything is touched, and none
//! starts on the schema of an earlier one.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{HELLO, chat, new_key, process, sql};
use crate::support::host::{TestHost, Who};
use crate::support::releases::AT_OLDEST;

const LATER: &str = "ghcr.io/berriai/litellm:v1.108.14";

/// Where Python's packages are in an image.
const PACKAGES: &str = "/app/.venv/lib/python3.13/site-packages";

#[track_caller]
fn version(host: &TestHost, who: Who) -> String {
    let said = host.units(who, &["health", "--json"]).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    said["version"].as_str().unwrap().to_owned()
}

/// A host on which the oldest release runs.
fn host_with_oldest(who: Who, name: &str) -> TestHost {
    let host = TestHost::boot_for(who, name);
    host.units(who, &["generate"]).ok();
    host.set_env(who, &AT_OLDEST);
    host.units(who, &["up"]).ok();
    host
}

/// An image that is a release in which a script changed something.
#[track_caller]
fn image(host: &TestHost, who: Who, name: &str, script: &str) -> String {
    let image = format!("localhost/litellm:v{name}");
    host.sh(
        who,
        &format!(
            "podman run --name changed --network none --entrypoint sh {LATER} -euc \"{script}\"
             podman commit -q changed {image} >/dev/null
             podman rm changed >/dev/null"
        ),
    );
    image
}

/// The gateway's unit is given up after one start, in seconds, and says why.
#[track_caller]
fn is_refused_at_start(host: &TestHost, who: Who) {
    let begin = Instant::now();
    let ran = host.bash(who, &format!("{} restart litellm.service", who.systemctl()));
    assert_ne!(ran.code, 0);
    assert!(begin.elapsed() < Duration::from_secs(30));
    for (name, value) in [
        ("ActiveState", "failed"),
        ("ExecMainStatus", "78"),
        ("NRestarts", "0"),
    ] {
        assert_eq!(host.property(who, "litellm.service", name), value);
    }
    // Nobody waits in vain at its address.
    assert_ne!(
        host.property(who, "litellm.socket", "ActiveState"),
        "active"
    );
    let ran = host.units(who, &["start", "litellm"]);
    assert_eq!(ran.code, 1);
    for words in [
        "litellm.service failed: exited with status 78\n",
        "the database has the schema of an earlier release (newest migration: 20251220144550_schema_update)",
        "\nfrom its journal (all of it: `litellm-units logs --since ",
        "Z litellm`):\n",
        "\nhint: systemd does not retry it; when the cause is corrected: `litellm-units up`\n",
    ] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
}

fn no_release_starts_on_an_earlier_schema(who: Who, name: &str) {
    let host = host_with_oldest(who, name);
    let key = new_key(&host, who);
    // A drop-in names another image. (Podman 4.9 knows none.)
    let dropin = format!("{}/litellm.container.d", who.quadlets());
    host.sh(who, &format!("mkdir -p {dropin}"));
    let text = format!("[Container]\nImage={LATER}\n");
    host.write(who, &format!("{dropin}/image.conf"), &text);
    host.systemctl(who, &["daemon-reload"]);
    is_refused_at_start(&host, who);
    host.sh(who, &format!("rm -r {dropin}"));
    host.systemctl(who, &["daemon-reload"]);
    host.units(who, &["up"]).ok();
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));

    // A release that migrates the database may start, and so may the earlier one on what it left.
    let ran = host.units(who, &["upgrade", "--image", LATER, "--settle", "1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(version(&host, who), "1.108.14");
    host.systemctl(who, &["restart", "litellm.service"]);
    let ran = host.units(who, &["rollback", "--keep-data", "--settle", "1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(version(&host, who), "1.80.11");
    host.systemctl(who, &["restart", "litellm.service"]);
    host.reboot();
    host.wait("the gateway", Duration::from_secs(120), |host| {
        chat(host, who, &key).map(|answer| assert_eq!(answer, HELLO))
    });
    // The restored data has its own schema, and the later release is refused again.
    host.units(who, &["upgrade", "--image", LATER, "--settle", "1"])
        .ok();
    let ran = host.units(who, &["rollback", "--restore-data", "--settle", "1"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_start_checks_the_schema() {
    no_release_starts_on_an_earlier_schema(Who::Root, "contract-schema");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_start_checks_the_schema() {
    no_release_starts_on_an_earlier_schema(Who::Operator, "contract-schema-user");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn releases_that_do_not_fit_are_refused() {
    let who = Who::Root;
    let host = TestHost::boot("contract-fit");
    // At a first installation, too.
    host.units(who, &["generate"]).ok();
    let redis = "docker.io/library/redis:7.4.6";
    host.set_env(who, &[("LITELLM_IMAGE", redis)]);
    let ran = host.units(who, &["up"]);
    assert_eq!(ran.code, 1);
    let refusal = format!("error: {redis} holds no LiteLLM");
    assert!(ran.stderr.contains(&refusal), "{}", ran.stderr);
    assert_eq!(host.sh(who, "podman ps -aq"), "");
    host.set_env(who, &AT_OLDEST);
    host.units(who, &["up"]).ok();

    let before = (
        process(&host, who, "litellm"),
        process(&host, who, "litellm-postgres"),
        host.env(who).text().to_owned(),
    );
    let server = image(
        &host,
        who,
        "1.108.97",
        &format!("sed -i 's/async def shutdown/async def shut_down/' {PACKAGES}/uvicorn/server.py"),
    );
    let cli = image(
        &host,
        who,
        "1.108.98",
        &format!("sed -i 's/uvicorn.run(/granian.run(/' {PACKAGES}/litellm/proxy/proxy_cli.py"),
    );
    let job = image(
        &host,
        who,
        "1.108.99",
        &format!(
            "sed -i 's/def run_migration_job/def migrate/' {PACKAGES}/litellm_proxy_extras/utils.py"
        ),
    );
    for (image, words) in [
        (
            redis,
            "docker.io/library/redis:7.4.6 holds no LiteLLM".to_owned(),
        ),
        (
            &server,
            format!(
                "{server} (LiteLLM 1.108.14) does not fit this litellm-units:\n  uvicorn.Server.shutdown is missing (serve.py closes connections without cutting off a request)"
            ),
        ),
        (
            &cli,
            format!(
                "{cli} (LiteLLM 1.108.14) does not fit this litellm-units:\n  litellm/proxy/proxy_cli.py lacks uvicorn.run( (serve.py serves on the sockets of systemd)"
            ),
        ),
        (
            &job,
            format!(
                "{job} (LiteLLM 1.108.14) does not fit this litellm-units:\n  litellm_proxy_extras.utils.ProxyExtrasDBManager.run_migration_job is missing (migrate.py migrates the database)"
            ),
        ),
    ] {
        let ran = host.units(who, &["upgrade", "--image", image]);
        assert_eq!(ran.code, 1, "{image}");
        let failure = format!("error: the upgrade to {image} failed; nothing was changed: {words}");
        assert!(ran.stderr.contains(&failure), "{image}: {}", ran.stderr);
        assert!(!ran.stderr.contains("backup"), "{image}: {}", ran.stderr);
        assert!(!ran.stderr.contains("migrating"), "{image}: {}", ran.stderr);
    }
    // The operator has named this one on the command line.
    let other = "localhost/other:v1.108.95";
    host.sh(who, &format!("podman tag {redis} {other}"));
    let ran = host.units(who, &["upgrade", "--image", other]);
    let hint = "hint: name another image with `litellm-units upgrade --image`\n";
    assert!(ran.stderr.ends_with(hint), "{}", ran.stderr);
    assert_eq!(host.env(who).text(), before.2);
    // An edit stays as it is, with whatever else was edited.
    host.set_env(who, &[("LITELLM_IMAGE", &server), ("LITELLM_LOG", "DEBUG")]);
    let edited = host.env(who).text().to_owned();
    let ran = host.units(who, &["apply"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("does not fit this litellm-units"),
        "{}",
        ran.stderr
    );
    let after = (
        process(&host, who, "litellm"),
        process(&host, who, "litellm-postgres"),
        host.env(who).text().to_owned(),
    );
    let expected = (before.0, before.1, edited);
    assert_eq!(after, expected, "nothing was restarted or edited");
    assert_eq!(host.sh(who, r#"ls "$1"/backups 2>/dev/null || true"#), "");
}

/// A migration that failed before: what LiteLLM resolves itself is resolved, and for the rest the error has the remedy.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn failed_migrations_are_resolved_or_explained() {
    let who = Who::Root;
    let host = host_with_oldest(who, "contract-failed");
    let migrations = format!("{PACKAGES}/litellm_proxy_extras/migrations");
    let broken = image(
        &host,
        who,
        "1.108.96",
        &format!(
            "mkdir {migrations}/20990101000000_broken && echo 'SELECT 1/0;' >{migrations}/20990101000000_broken/migration.sql"
        ),
    );
    let ran = host.units(who, &["upgrade", "--image", &broken]);
    assert_eq!(ran.code, 1);
    let remedy = "UPDATE _prisma_migrations SET rolled_back_at = now() WHERE migration_name = '20990101000000_broken' AND finished_at IS NULL AND rolled_back_at IS NULL;";
    for words in ["division by zero", remedy, "litellm-units exec postgres"] {
        assert!(ran.stderr.contains(words), "{words}: {}", ran.stderr);
    }
    assert_eq!(version(&host, who), "1.80.11");
    // The database keeps the new schema, until the operator asks for the old one.
    host.units(who, &["restore", "latest", "--yes"]).ok();

    // Somebody else's attempt has left a row of a migration of the release (P3009).
    let row = "INSERT INTO _prisma_migrations (id, checksum, migration_name, started_at, applied_steps_count, logs) \
               VALUES ('left', 'x', '20261015000000_managed_object_end_user_id', now(), 0, 'killed')";
    sql(&host, who, row);
    let ran = host.units(who, &["upgrade", "--image", LATER, "--settle", "0"]);
    assert_eq!(ran.code, 1);
    let remedy = "UPDATE _prisma_migrations SET rolled_back_at = now() WHERE migration_name = '20261015000000_managed_object_end_user_id' AND finished_at IS NULL AND rolled_back_at IS NULL";
    assert!(ran.stderr.contains(remedy), "{}", ran.stderr);
    let psql = r#"psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "$1""#;
    let words = [
        "exec", "--no-tty", "postgres", "sh", "-c", psql, "sql", remedy,
    ];
    assert_eq!(host.units(who, &words).ok(), "UPDATE 1\n");
    let ran = host.units(who, &["upgrade", "--image", LATER, "--settle", "0"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(version(&host, who), "1.108.14");
    // The job of that release has built the indexes that no migration builds.
    let indexes = "select count(*) from pg_indexes where indexname in ('LiteLLM_SpendLogs_api_key_startTime_idx', 'LiteLLM_SpendLogs_litellm_call_id_idx')";
    assert_eq!(sql(&host, who, indexes), "2");
}

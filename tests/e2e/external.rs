//! PostgreSQL and Redis are elsewhere: behind TLS of a private authority, with another user, database and schema.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{
    HELLO, Load, Writer, allow_mock_delays, chat, count_of, new_key, wait_for_chat,
};
use crate::support::host::{TestHost, Who};
use crate::support::releases::{DEFAULT, NEWEST};

/// The certificates, and two servers on a network of their own that `litellm-units` knows nothing of.
const SERVERS: &str = r#"
    mkdir -p /srv/outside/socket; cd /srv/outside
    key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
    for authority in ca other; do
        openssl req -x509 $key -days 30 -subj "/CN=$authority" -addext keyUsage=critical,keyCertSign \
            -keyout "$authority.key" -out "$authority.pem" 2>/dev/null
    done
    openssl req $key -subj /CN=servers -keyout server.key -out server.csr 2>/dev/null
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -days 30 -out server.pem \
        -extfile <(echo subjectAltName=DNS:db.example.test,DNS:cache.example.test) 2>/dev/null
    chown 999:999 server.key
    printf '10.99.0.10 db.example.test\n10.99.0.11 cache.example.test\n' >>/etc/hosts
    cat >first.sql <<'SQL'
create role gate login password 'a/b@c:d %41';
create database company owner gate;
\c company
create schema llm authorization gate;
revoke all on schema public from public;
SQL
    podman network create --subnet 10.99.0.0/24 outside
    podman run -d --name outside-db --network outside --ip 10.99.0.10 --pull=never -e POSTGRES_PASSWORD=super \
        -v /srv/outside:/tls:ro -v /srv/outside/socket:/var/run/postgresql \
        -v /srv/outside/first.sql:/docker-entrypoint-initdb.d/first.sql:ro docker.io/library/postgres:17.7 \
        postgres -c ssl=on -c ssl_cert_file=/tls/server.pem -c ssl_key_file=/tls/server.key
    podman run -d --name outside-cache --network outside --ip 10.99.0.11 --pull=never -v /srv/outside:/tls:ro \
        docker.io/library/redis:7.4.6 redis-server --requirepass 'r/edis p@ss' --port 0 --tls-port 6380 --tls-auth-clients no \
        --tls-cert-file /tls/server.pem --tls-key-file /tls/server.key --tls-ca-cert-file /tls/ca.pem
"#;

const SERVER: &str = "db.example.test:5432";
const URL: &str = "postgresql://gate:a%2Fb%40c%3Ad%20%2541@db.example.test:5432/company?schema=llm&connection_limit=5";

/// What the server itself says.
#[track_caller]
fn outside_sql(host: &TestHost, statement: &str) -> String {
    let psql =
        "podman exec -e PGOPTIONS=-csearch_path=llm outside-db psql -qAtU postgres -d company -c";
    let words = [&psql.split(' ').collect::<Vec<_>>()[..], &[statement]].concat();
    host.run(Who::Root, &words).ok().trim_end().to_owned()
}

/// Runs `litellm-units`, which must fail with these words.
#[track_caller]
fn refused(host: &TestHost, words: &[&str], error: &str) {
    let ran = host.units(Who::Root, words);
    assert_ne!(ran.code, 0, "{words:?}");
    assert!(ran.stderr.contains(error), "{words:?}: {}", ran.stderr);
}

fn set_url(host: &TestHost, url: &str) {
    host.set_env(Who::Root, &[("DATABASE_URL", url)]);
}

/// Everything that asks the server does so over TLS, and for its certificate.
fn reading_and_backups(host: &TestHost, who: Who) {
    let clear = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'gate' and not ssl";
    assert_eq!(outside_sql(host, clear), "0");
    let tables = "select string_agg(distinct schemaname, ',') from pg_tables where tablename like 'LiteLLM%'";
    assert_eq!(outside_sql(host, tables), "llm");
    let found: Value =
        serde_json::from_str(&host.units(who, &["db", "status", "--json"]).ok()).unwrap();
    assert_eq!(
        (&found["database"], &found["disk"]),
        (&"company".into(), &Value::Null)
    );
    let doctor = host.units(who, &["doctor"]);
    assert_eq!(doctor.code, 7, "{}", doctor.stdout);
    let line = format!("\nok       database: {SERVER} accepts connections\n");
    assert!(doctor.stdout.contains(&line), "{}", doctor.stdout);
    assert!(
        !doctor.stdout.contains("vacuum: the database could not"),
        "{}",
        doctor.stdout
    );
    host.units(who, &["backup"]).ok();
    let verified = host.units(who, &["backup", "verify", "latest"]).ok();
    assert!(
        verified.contains("its dump is readable to the end"),
        "{verified}"
    );
    refused(
        host,
        &["restore", "latest", "--yes"],
        "error: the database is on an external server (DATABASE_URL), where litellm-units replaces nothing\n",
    );
    refused(
        host,
        &[
            "restore",
            "--to",
            "latest",
            "--from",
            "file:///srv",
            "--yes",
        ],
        "error: the database is on an external server (DATABASE_URL), where litellm-units replaces nothing\nhint: recover it with that server's own tools; ",
    );
    refused(
        host,
        &["secrets", "rotate", "postgres"],
        "error: the database is external, so its password is not changed from here\n",
    );
    // The certificate of a server that the authorities did not sign: no password is sent.
    host.sh(who, r#"cp /srv/outside/other.pem "$1/certs/ca.pem""#);
    for words in [&["db", "status"][..], &["backup"]] {
        refused(host, words, "certificate verify failed");
    }
    host.sh(who, r#"cp /srv/outside/ca.pem "$1/certs/ca.pem""#);
}

/// The service keys of other hosts are in the same database.
fn keys_of_other_hosts_stay(host: &TestHost, who: Who) {
    host.units(who, &["key", "service"]).ok();
    // As if this one were of another host.
    let other =
        r#""metadata" = jsonb_set("metadata", '{deployment}', '"other:/opt/litellm-server"')"#;
    outside_sql(
        host,
        &format!(
            r#"update "LiteLLM_VerificationToken" set {other} where key_alias like '%-service-%'"#
        ),
    );
    host.sh(who, r#"rm "$1/service-key.txt""#);
    for _ in 0..2 {
        host.units(who, &["key", "service"]).ok();
        host.units(who, &["key", "rotate", "service"]).ok();
        let keys = r#"select count(*) from "LiteLLM_VerificationToken" where metadata->>'role' = 'service'"#;
        assert_eq!(outside_sql(host, keys), "2");
    }
}

/// Both servers go away and come back, and the gateway with them, without an operator.
fn restarts_under_load(host: &TestHost, who: Who, key: &str) {
    let load = Load::begin(host, who, key);
    host.units(who, &["restart"]).ok();
    load.assert_no_failure(host, who);
    // Requests of keys that the gateway knows are answered meanwhile.
    for server in ["outside-db", "outside-cache"] {
        let load = Load::begin(host, who, key);
        host.sh(who, &format!("podman restart -t 20 {server}"));
        load.assert_no_failure(host, who);
    }
    assert_eq!(host.units(who, &["status"]).code, 0);
}

/// The server refuses what is written into `.env`: the previous settings are used again, and the gateway serves meanwhile.
fn a_wrong_password_changes_nothing(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let load = Load::begin(host, who, key);
    set_url(
        host,
        &format!(
            "{}&sslmode=require&sslaccept=strict",
            URL.replace("gate:a", "gate:b")
        ),
    );
    refused(
        host,
        &["apply"],
        "P1000: Authentication failed against database server at `db.example.test`",
    );
    load.assert_no_failure(host, who);
    assert_eq!(host.env(who).text(), env);
}

/// Another release comes and goes, and each write that a client had an answer to is on the server.
fn another_release_and_back(host: &TestHost, who: Who, key: &str) {
    for (words, version) in [
        (&["upgrade", "--image", NEWEST.image][..], NEWEST.version),
        (&["rollback", "--keep-data"], DEFAULT.version),
    ] {
        let (load, writer) = (Load::begin(host, who, key), Writer::begin(host, who));
        let ran = host.units(who, &[words, &["--settle", "1"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        load.assert_no_failure(host, who);
        let keys = writer.end(host, who);
        assert!(!keys.is_empty());
        assert_eq!(outside_sql(host, &count_of(&keys)), keys.len().to_string());
        let health = host.units(who, &["health", "--json"]).ok();
        let health: Value = serde_json::from_str(&health).unwrap();
        assert_eq!(health["version"], version);
    }
}

/// The server is a directory of this host, by the URL that Prisma documents.
fn by_a_socket(host: &TestHost, who: Who, key: &str) {
    let env = host.env(who).text().to_owned();
    let url = "postgresql://gate:x@localhost/company?schema=llm&host=/srv/outside/socket";
    set_url(host, url);
    host.units(who, &["apply"]).ok();
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    let doctor = host.units(who, &["doctor"]).stdout;
    let line = "\nok       database: /srv/outside/socket:5432 accepts connections\n";
    assert!(doctor.contains(line), "{doctor}");
    host.units(who, &["backup"]).ok();
    let by_socket =
        "select count(*) > 0 from pg_stat_activity where usename = 'gate' and client_addr is null";
    assert_eq!(outside_sql(host, by_socket), "t");
    host.write(who, &format!("{}/.env", who.deployment()), &env);
    host.units(who, &["apply"]).ok();
}

/// The host boots before its servers do. The gateway waits for as long as that takes, and nothing else does.
fn servers_that_are_down_at_boot(host: &TestHost, who: Who, key: &str) {
    let counter = "systemctl show -P NRestarts litellm-migrate.service";
    let deadline = Instant::now() + Duration::from_secs(600);
    let (restarts, status, doctor) = std::thread::scope(|scope| {
        // It returns when everything has started: nothing may fail before the servers are there.
        scope.spawn(|| host.crash());
        let mut restarts = 0;
        while restarts < 6 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_secs(1));
            // The host may be down.
            restarts = host.bash(who, counter).stdout.trim().parse().unwrap_or(0);
        }
        let boot = "systemctl is-active litellm.target multi-user.target";
        assert_eq!(host.bash(who, boot).stdout, "inactive\nactive\n");
        let looks = (host.units(who, &["status"]), host.units(who, &["doctor"]));
        host.bash(who, "podman start outside-db outside-cache");
        (restarts, looks.0, looks.1)
    });
    assert!(restarts >= 6, "{restarts} restarts");
    assert_eq!(status.code, 4, "{}", status.stdout);
    let reason = "P1001: Can't reach database server at `db.example.test:5432`";
    assert!(status.stdout.contains(reason), "{}", status.stdout);
    assert_eq!(doctor.code, 1, "{}", doctor.stdout);
    let line = format!("FAILURE  database: {SERVER} can't be reached: ");
    assert!(doctor.stdout.contains(&line), "{}", doctor.stdout);
    wait_for_chat(host, who, key, Duration::from_secs(180));
    let failed = host.sh(who, "systemctl --failed --no-legend");
    assert_eq!(failed, "");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn external_servers_with_tls() {
    let who = Who::Root;
    let host = TestHost::boot("external");
    let host = &host;
    host.sh(who, SERVERS);
    host.units(who, &["generate"]).ok();
    host.sh(
        who,
        r#"install -m 644 /srv/outside/ca.pem "$1/certs/ca.pem""#,
    );
    allow_mock_delays(host, who);
    host.set_env(
        who,
        &[
            ("REDIS_HOST", "cache.example.test"),
            ("REDIS_PORT", "6380"),
            ("REDIS_SSL", "True"),
            ("REDIS_PASSWORD", "r/edis p@ss"),
        ],
    );
    // As it is written for other programs. Prisma does not know it, litellm-units does.
    set_url(host, &format!("{URL}&sslmode=verify-full"));
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    host.units(who, &["backup"]).ok();
    set_url(host, &format!("{URL}&sslmode=require&sslaccept=strict"));
    host.units(who, &["apply"]).ok();
    let running = host.sh(who, "podman ps --format '{{.Names}}' | sort | xargs");
    assert_eq!(running, "litellm outside-cache outside-db\n");
    let key = new_key(host, who);
    assert_eq!(chat(host, who, &key).as_deref(), Ok(HELLO));
    let ping = r#"key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
        curl -sS --max-time 20 -H "Authorization: Bearer $key" http://127.0.0.1:24157/cache/ping | jq -r .status"#;
    assert_eq!(host.sh(who, ping), "healthy\n");
    reading_and_backups(host, who);
    keys_of_other_hosts_stay(host, who);
    restarts_under_load(host, who, &key);
    a_wrong_password_changes_nothing(host, who, &key);
    another_release_and_back(host, who, &key);
    by_a_socket(host, who, &key);
    servers_that_are_down_at_boot(host, who, &key);
}

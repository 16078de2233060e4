//! Which variable of `.env` reaches which container, and which values are refused.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write;
use std::path::Path;

use litellm_units::deployment::env_file::{EnvFile, quote};
use litellm_units::deployment::listen::Listen;
use litellm_units::deployment::settings::{MemoryMark, SecretTarget, Settings, check_address};
use litellm_units::error::{self, Exit};
use litellm_units::host::capacity::Capacity;
use litellm_units::service::Service;
use secrecy::ExposeSecret;

use crate::support::failure;

const ENV: &str = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-mine
LITELLM_SALT_KEY=sk-salt
POSTGRES_USER=me
POSTGRES_PASSWORD=p
POSTGRES_DB=db
REDIS_PASSWORD=r
OPENAI_API_KEY=
ANTHROPIC_API_KEY=
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
";

fn settings(text: &str) -> Settings {
    Settings::from_text(text, Path::new("/srv/.env")).unwrap()
}

/// Everything that every container gets.
fn container_secrets(settings: &Settings) -> String {
    let mut text = String::new();
    for service in Service::ALL {
        writeln!(text, "{}", service.container()).unwrap();
        for secret in settings.container_secrets(service) {
            let file = match secret.target {
                SecretTarget::Variable => "",
                SecretTarget::File => "file ",
            };
            writeln!(
                text,
                "  {file}{}={}",
                secret.name,
                secret.value.open().unwrap().expose_secret().escape_debug()
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn each_container_gets_what_it_needs_and_no_more() {
    let text = format!(
        "{ENV}POSTGRES_IMAGE=docker.io/library/postgres:17.7\n\
         REDIS_IMAGE=docker.io/library/redis:7.4.6\nAZURE_API_KEY=a\nEMPTY=\n\
         LITELLM_MODE=DEV\nDISABLE_SCHEMA_UPDATE=false\n"
    );
    assert_eq!(
        container_secrets(&settings(&text)),
        r#"litellm-postgres
  POSTGRES_USER=me
  POSTGRES_PASSWORD=p
  POSTGRES_DB=db
litellm-redis
  file redis.conf=requirepass \"\\x72\"\nuser health on nopass -@all +ping\nsave \"\"\n
  REDISCLI_AUTH=r
litellm-migrate
  DATABASE_URL=postgresql://me:p@postgres:5432/db
litellm
  LITELLM_MASTER_KEY=sk-mine
  LITELLM_SALT_KEY=sk-salt
  AZURE_API_KEY=a
  EMPTY=
  DATABASE_URL=postgresql://me:p@postgres:5432/db
  REDIS_HOST=redis
  REDIS_PORT=6379
  REDIS_PASSWORD=r
"#
    );
}

#[test]
fn optional_variables_count_when_they_are_filled() {
    let text = ENV
        .replace("OPENAI_API_KEY=", "OPENAI_API_KEY=o")
        .replace("UI_PASSWORD=", "UI_PASSWORD=u");
    let container_secrets = settings(&text).container_secrets(Service::Litellm);
    let names: Vec<&str> = container_secrets
        .iter()
        .map(|secret| secret.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "LITELLM_MASTER_KEY",
            "LITELLM_SALT_KEY",
            "OPENAI_API_KEY",
            "UI_PASSWORD",
            "DATABASE_URL",
            "REDIS_HOST",
            "REDIS_PORT",
            "REDIS_PASSWORD"
        ]
    );
}

#[test]
fn external_servers_replace_the_local_ones() {
    let external = format!(
        "{ENV}DATABASE_URL='postgresql://a:b%25@db:5433/x?sslmode=require'\n\
         REDIS_HOST=cache\nREDIS_PORT=6380\nREDIS_SSL=True\nREDIS_USERNAME=\n"
    );
    let settings = settings(&external);
    assert_eq!(
        container_secrets(&settings),
        "\
litellm-postgres
litellm-redis
litellm-migrate
  DATABASE_URL=postgresql://a:b%25@db:5433/x?sslmode=require
litellm
  LITELLM_MASTER_KEY=sk-mine
  LITELLM_SALT_KEY=sk-salt
  DATABASE_URL=postgresql://a:b%25@db:5433/x?sslmode=require
  REDIS_PASSWORD=r
  REDIS_HOST=cache
  REDIS_PORT=6380
  REDIS_SSL=True
"
    );
    let services: Vec<Service> = settings.services().collect();
    assert_eq!(services, [Service::Migrate, Service::Litellm]);
}

/// LiteLLM does not start with `REDIS_HOST` beside the Sentinels.
#[test]
fn sentinels_are_the_only_address_of_redis() {
    let sentinels = r#"[["10.0.0.1",26379],["10.0.0.2",26379]]"#;
    let settings = settings(&format!(
        "{ENV}REDIS_SENTINEL_NODES='{sentinels}'\nREDIS_SERVICE_NAME=llm\nREDIS_HOST=cache\nREDIS_PORT=\n"
    ));
    let services: Vec<Service> = settings.services().collect();
    assert_eq!(
        services,
        [Service::Postgres, Service::Migrate, Service::Litellm]
    );
    let secrets = container_secrets(&settings);
    let redis: Vec<&str> = { secrets.lines() }
        .filter(|line| line.contains("REDIS"))
        .collect();
    assert_eq!(
        redis,
        [
            "  REDIS_PASSWORD=r",
            &format!("  REDIS_SENTINEL_NODES={}", sentinels.escape_debug()),
            "  REDIS_SERVICE_NAME=llm"
        ]
    );
}

#[test]
fn the_migration_gets_its_own_variables() {
    let text = format!(
        "{ENV}DATABASE_URL=postgresql://a:b@pool/x\nREDIS_HOST=cache\nDIRECT_URL=postgresql://a:b@direct/x\n\
         LITELLM_PRISMA_COMMAND_TIMEOUT=90\nLITELLM_MIGRATION_LOCK_TIMEOUT=30\n"
    );
    let migration = |text: &str| {
        let container_secrets = settings(text).container_secrets(Service::Migrate);
        let names: Vec<String> = container_secrets
            .into_iter()
            .map(|secret| secret.name)
            .collect();
        names.join(" ")
    };
    assert_eq!(
        migration(&text),
        "DIRECT_URL LITELLM_PRISMA_COMMAND_TIMEOUT LITELLM_MIGRATION_LOCK_TIMEOUT DATABASE_URL"
    );
    // LiteLLM would take an empty one for a URL.
    assert_eq!(migration(&format!("{ENV}DIRECT_URL=\n")), "DATABASE_URL");
    let error = Settings::from_text(
        &format!("{ENV}DIRECT_URL=mysql://db/x\n"),
        Path::new(".env"),
    )
    .unwrap_err();
    assert_eq!(
        failure(&error),
        "error: .env, line 13: DIRECT_URL is not a PostgreSQL URL\n\
         hint: write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or remove it\n"
    );
}

#[test]
fn sockets_of_external_servers() {
    let text = format!(
        "{ENV}DATABASE_URL=postgresql://a:b@localhost:5433/x?schema=llm&host=%2Fsrv%2Fpool\n\
         DIRECT_URL=postgresql://a:b@localhost/x?host=/run/postgresql/\n"
    );
    let directories = settings(&text).socket_directories().unwrap();
    assert_eq!(
        Vec::from_iter(directories),
        ["/run/postgresql", "/srv/pool"]
    );
    let directories = settings(ENV).socket_directories().unwrap();
    assert!(directories.is_empty());
}

#[test]
fn an_external_server_needs_no_password_of_a_local_one() {
    let text = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-mine
DATABASE_URL=postgres://a@db/x
REDIS_HOST=cache
";
    assert_eq!(
        container_secrets(&settings(text)),
        "\
litellm-postgres
litellm-redis
litellm-migrate
  DATABASE_URL=postgres://a@db/x
litellm
  LITELLM_MASTER_KEY=sk-mine
  DATABASE_URL=postgres://a@db/x
  REDIS_HOST=cache
"
    );
}

/// What a password can hold arrives unchanged, in each of the grammars on its way.
#[test]
fn any_value_is_carried() {
    let nasty = "\" ' $A ${B} %s \\ # é 🔑 @:/?&=+\t end ";
    let text = ENV
        .replace("PASSWORD=p\n", &format!("PASSWORD={}\n", quote(nasty)))
        .replace(
            "REDIS_PASSWORD=r\n",
            &format!("REDIS_PASSWORD={}\n", quote("é\"\n")),
        )
        .replace("POSTGRES_USER=me", "POSTGRES_USER='m e@'")
        .replace("POSTGRES_DB=db", "POSTGRES_DB=d-b.1_~");
    let settings = settings(&text);
    let escaped = nasty.escape_debug();
    let url = "postgresql://m%20e%40:%22%20%27%20%24A%20%24%7BB%7D%20%25s%20%5C%20%23%20%C3%A9%20\
               %F0%9F%94%91%20%40%3A%2F%3F%26%3D%2B%09%20end%20@postgres:5432/d-b.1_~";
    assert_eq!(
        container_secrets(&settings),
        format!(
            r#"litellm-postgres
  POSTGRES_USER=m e@
  POSTGRES_PASSWORD={escaped}
  POSTGRES_DB=d-b.1_~
litellm-redis
  file redis.conf=requirepass \"\\xc3\\xa9\\x22\\x0a\"\nuser health on nopass -@all +ping\nsave \"\"\n
  REDISCLI_AUTH=é\"\n
litellm-migrate
  DATABASE_URL={url}
litellm
  LITELLM_MASTER_KEY=sk-mine
  LITELLM_SALT_KEY=sk-salt
  DATABASE_URL={url}
  REDIS_HOST=redis
  REDIS_PORT=6379
  REDIS_PASSWORD=é\"\n
"#
        )
    );
}

/// Replaces a line of [`ENV`], or adds one, and gives what `main` would print.
fn refusal(name: &str, line: &str) -> String {
    let mut text: String = ENV
        .lines()
        .map(|old| {
            if old.starts_with(&format!("{name}=")) {
                line
            } else {
                old
            }
        })
        .fold(String::new(), |text, line| text + line + "\n");
    if !text.contains(line) {
        text = text + line + "\n";
    }
    let error = Settings::from_text(&text, Path::new("/srv/.env")).unwrap_err();
    assert_eq!(error::exit(&error), Exit::Config);
    failure(&error)
}

#[test]
fn what_can_not_be_used_is_refused_by_name_file_and_line() {
    let generate = "hint: `litellm-units generate` adds what is missing\n";
    for (name, line, expected) in [
        ("LITELLM_IMAGE", "", format!("error: /srv/.env: LITELLM_IMAGE has no value\n{generate}")),
        ("LITELLM_IMAGE", "LITELLM_IMAGE=", format!("error: /srv/.env, line 1: LITELLM_IMAGE has no value\n{generate}")),
        (
            "LITELLM_IMAGE",
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:main-stable",
            "error: /srv/.env, line 1: LITELLM_IMAGE can't be used: \"ghcr.io/berriai/litellm:main-stable\" has the floating tag \"main-stable\"\n\
             hint: name a version, e.g. :v1.108.14, or add the digest (@sha256:…)\n".to_owned(),
        ),
        (
            "POSTGRES_IMAGE",
            "POSTGRES_IMAGE=postgres:17",
            "error: /srv/.env, line 13: POSTGRES_IMAGE can't be used: \"postgres:17\" does not name its registry\n\
             hint: add the registry, e.g. docker.io/library/postgres:17.7\n".to_owned(),
        ),
        ("LITELLM_MASTER_KEY", "LITELLM_MASTER_KEY=", format!("error: /srv/.env, line 2: LITELLM_MASTER_KEY has no value\n{generate}")),
        ("POSTGRES_PASSWORD", "POSTGRES_PASSWORD=''", format!("error: /srv/.env, line 5: POSTGRES_PASSWORD has no value\n{generate}")),
        ("REDIS_PASSWORD", "REDIS_PASSWORD", format!("error: /srv/.env: REDIS_PASSWORD has no value\n{generate}")),
        (
            "DATABASE_URL",
            "DATABASE_URL=mysql://secret",
            "error: /srv/.env, line 13: DATABASE_URL is not a PostgreSQL URL\n\
             hint: write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or remove it\n".to_owned(),
        ),
        (
            "DATABASE_URL",
            "DATABASE_URL=postgresql://a:b@db-1:5432,db-2:5432/x?target_session_attrs=read-write",
            "error: /srv/.env, line 13: DATABASE_URL names several servers, and Prisma connects to one only\n\
             hint: name the address that leads to the primary: docs/configuration.md\n".to_owned(),
        ),
        (
            "DATABASE_URL",
            "DATABASE_URL=postgresql://a:b@db/x?sslmode=require&%68ost=other",
            "error: /srv/.env, line 13: DATABASE_URL has the parameter host, so Prisma would connect to another server than the one before the database name\n\
             hint: write the host between @ and the port, and remove the parameter: postgresql://USER:PASSWORD@HOST:PORT/DATABASE\n".to_owned(),
        ),
        (
            "DIRECT_URL",
            "DIRECT_URL=postgresql://a:b@localhost/x?host=db-1,db-2",
            "error: /srv/.env, line 13: DIRECT_URL names several servers, and Prisma connects to one only\n\
             hint: name the address that leads to the primary: docs/configuration.md\n".to_owned(),
        ),
        (
            "DATABASE_URL",
            "DATABASE_URL=postgresql:///x?host=/run/postgresql",
            "error: /srv/.env, line 13: DATABASE_URL names a Unix socket without a user and localhost, so Prisma can't connect to it\n\
             hint: for a Unix socket, write postgresql://USER:PASSWORD@localhost/DATABASE?host=/run/postgresql\n".to_owned(),
        ),
        (
            "DATABASE_URL",
            "DATABASE_URL=postgresql://a:b@%2Frun%2Fpostgresql/x",
            "error: /srv/.env, line 13: DATABASE_URL has the directory of a socket before the database name, where Prisma does not look for it\n\
             hint: for a Unix socket, write postgresql://USER:PASSWORD@localhost/DATABASE?host=/run/postgresql\n".to_owned(),
        ),
        (
            "DIRECT_URL",
            "DIRECT_URL=postgresql://a:b@localhost/x?host=/tmp",
            "error: /srv/.env, line 13: DIRECT_URL has a directory of a socket that the gateway's container can't be given\n\
             hint: let PostgreSQL make its socket in a directory of its own, such as /run/postgresql (unix_socket_directories), with only letters, digits, dots, hyphens and underscores in its name\n".to_owned(),
        ),
        (
            "POSTGRES_DB",
            &format!("POSTGRES_DB={}", "d".repeat(64)),
            "error: /srv/.env, line 6: POSTGRES_DB is longer than PostgreSQL's 63 bytes\nhint: choose a shorter one\n".to_owned(),
        ),
        (
            "POSTGRES_PASSWORD",
            &format!("POSTGRES_PASSWORD='{}'", "#".repeat(42_700)),
            "error: /srv/.env, line 5: POSTGRES_PASSWORD makes DATABASE_URL longer than 127936 bytes, more than a variable can hold\nhint: choose a shorter one\n".to_owned(),
        ),
        (
            "POSTGRES_PASSWORD",
            "POSTGRES_PASSWORD=\"S3CR3T\\nx\"",
            "error: /srv/.env, line 5: POSTGRES_PASSWORD contains a line break, which PostgreSQL's image does not accept\nhint: remove it\n".to_owned(),
        ),
        (
            "POSTGRES_DB",
            "POSTGRES_DB='my db'",
            "error: /srv/.env, line 6: POSTGRES_DB contains a character that LiteLLM's database client does not accept\nhint: use only letters, digits and - . _ ~\n".to_owned(),
        ),
        (
            "A.B",
            "A.B=1",
            "error: /srv/.env, line 13: A.B is not a valid name of an environment variable\n\
             hint: use only letters, digits and _, and no digit first\n".to_owned(),
        ),
        (
            "LONG",
            &format!("LONG={}", "x".repeat(127_937)),
            "error: /srv/.env, line 13: LONG is longer than 127936 bytes, more than a Podman secret can hold\n\
             hint: write it into a file below config/ and name the file instead\n".to_owned(),
        ),
        (
            "LITELLM_METRICS_PORT",
            "LITELLM_METRICS_PORT=127.0.0.1:9160",
            "error: /srv/.env, line 13: LITELLM_METRICS_PORT is not a port from 1024 to 65528\n\
             hint: write 9160\n".to_owned(),
        ),
        (
            "LITELLM_METRICS_PORT at the port of other metrics",
            "LITELLM_METRICS_PORT=9150\nMETRICS_LISTEN=127.0.0.1:9157",
            "error: /srv/.env, line 13: LITELLM_METRICS_PORT needs the ports 9150 to 9157, one for each gateway; \
             127.0.0.1:9157 is another address of litellm-units\n\
             hint: choose another port, such as 9160\n".to_owned(),
        ),
        (
            "LITELLM_METRICS_PORT at the gateway's port in its container",
            "LITELLM_METRICS_PORT=24157\nLISTEN=127.0.0.1:8080",
            "error: /srv/.env, line 13: LITELLM_METRICS_PORT needs the ports 24157 to 24164, one for each gateway; \
             127.0.0.1:24157 is another address of litellm-units\n\
             hint: choose another port, such as 9160\n".to_owned(),
        ),
        (
            "LITELLM_LIVENESS_TIMEOUT",
            "LITELLM_LIVENESS_TIMEOUT=5m",
            "error: /srv/.env, line 13: LITELLM_LIVENESS_TIMEOUT is not a number of seconds from 10 to 86400\n\
             hint: write 300 for five minutes, or remove it\n".to_owned(),
        ),
        (
            "NOTIFY_URL",
            "NOTIFY_URL=mail:ops@example.com",
            "error: /srv/.env, line 13: NOTIFY_URL is no http or https URL\n\
             hint: write it as https://HOST/PATH; a program is named by NOTIFY_COMMAND\n".to_owned(),
        ),
        (
            "BACKUP_WAL",
            "BACKUP_WAL=on",
            "error: /srv/.env, line 13: BACKUP_WAL is not yes\n\
             hint: write yes, or remove the line\n".to_owned(),
        ),
        (
            "BACKUP_WAL beside another server",
            "BACKUP_WAL=yes\nDATABASE_URL=postgresql://me:pw@db.example.org/litellm",
            "error: /srv/.env, line 13: BACKUP_WAL has no effect, since the database is external (DATABASE_URL)\n\
             hint: remove the line, and let the operator of that server archive its write-ahead log\n".to_owned(),
        ),
        (
            "METRICS_FILE",
            "METRICS_FILE=litellm.prom",
            "error: /srv/.env, line 13: METRICS_FILE is no absolute path that ends in .prom\n\
             hint: name a file in the directory of node_exporter's textfile collector, such as /var/lib/prometheus/node-exporter/litellm.prom\n".to_owned(),
        ),
        (
            "PUBLIC_URL",
            "PUBLIC_URL=https://llm.example.com/gateway",
            "error: /srv/.env, line 13: PUBLIC_URL has a path, and the gateway is published without one\n\
             hint: remove the path; `SERVER_ROOT_PATH=/llm` adds one\n".to_owned(),
        ),
        (
            "SERVER_ROOT_PATH",
            "SERVER_ROOT_PATH=/models/llm\nPUBLIC_URL=https://llm.example.com",
            "error: /srv/.env, line 13: SERVER_ROOT_PATH is a path of inference, so the entrance of PUBLIC_URL could not limit management below it\n\
             hint: choose another path, such as /llm\n".to_owned(),
        ),
        (
            "PUBLIC_ADMIN_FROM",
            "PUBLIC_ADMIN_FROM='10.0.0.0/8, office'\nPUBLIC_URL=https://llm.example.com",
            "error: /srv/.env, line 13: PUBLIC_ADMIN_FROM contains office, which is no network\n\
             hint: write 10.0.0.0/8, 192.0.2.7 or fd00::/8, with commas between them\n".to_owned(),
        ),
        (
            "PUBLIC_ADMIN_FROM alone",
            "PUBLIC_ADMIN_FROM=10.0.0.0/8",
            "error: /srv/.env, line 13: PUBLIC_ADMIN_FROM has no effect without PUBLIC_URL\n\
             hint: add PUBLIC_URL=https://llm.example.com with your host name, or remove the line\n".to_owned(),
        ),
        (
            "METRICS_LISTEN",
            "METRICS_LISTEN=9157",
            "error: /srv/.env, line 13: METRICS_LISTEN is not an IP address with a port\n\
             hint: write it as 127.0.0.1:9157\n".to_owned(),
        ),
        (
            "METRICS_LISTEN for other hosts",
            "METRICS_LISTEN=0.0.0.0:9157\nLISTEN_WITHOUT_TLS=yes",
            "error: /srv/.env, line 13: METRICS_LISTEN is an address that other hosts reach\n\
             hint: write 127.0.0.1:9157; for a Prometheus on another host, use a reverse proxy (docs/notices.md)\n".to_owned(),
        ),
        (
            "METRICS_LISTEN at the gateway's port",
            "METRICS_LISTEN=[::1]:24157",
            "error: /srv/.env, line 13: METRICS_LISTEN has the port of the gateway\n\
             hint: choose another port, such as 9157\n".to_owned(),
        ),
        (
            "LITELLM_LIVENESS_TIMEOUT",
            "LITELLM_LIVENESS_TIMEOUT=9",
            "error: /srv/.env, line 13: LITELLM_LIVENESS_TIMEOUT is not a number of seconds from 10 to 86400\n\
             hint: write 300 for five minutes, or remove it\n".to_owned(),
        ),
        (
            "LITELLM_DRAIN_TIMEOUT",
            "LITELLM_DRAIN_TIMEOUT=3601",
            "error: /srv/.env, line 13: LITELLM_DRAIN_TIMEOUT is not a number of seconds from 10 to 3600\n\
             hint: write 600 for ten minutes, or remove it\n".to_owned(),
        ),
        (
            "LITELLM_RECYCLE_AT",
            "LITELLM_RECYCLE_AT=80",
            "error: /srv/.env, line 13: LITELLM_RECYCLE_AT is neither a percentage from 30% to 95%, nor a size such as 3G, nor no\n\
             hint: write 80% of the memory that a gateway may use (the default), 3G or 3000M, or no\n".to_owned(),
        ),
        (
            "USER_NAMESPACES",
            "USER_NAMESPACES=on",
            "error: /srv/.env, line 13: USER_NAMESPACES is neither yes nor no\n\
             hint: write yes, or remove the line\n".to_owned(),
        ),
        (
            "LITELLM_REPLICAS",
            "LITELLM_REPLICAS=0",
            "error: /srv/.env, line 13: LITELLM_REPLICAS is neither `auto` nor a number from 1 to 8\n\
             hint: write auto for as many as this machine has processors and memory for, or remove it for one\n".to_owned(),
        ),
        (
            "LITELLM_REPLICAS",
            "LITELLM_REPLICAS=9",
            "error: /srv/.env, line 13: LITELLM_REPLICAS is neither `auto` nor a number from 1 to 8\n\
             hint: write auto for as many as this machine has processors and memory for, or remove it for one\n".to_owned(),
        ),
        (
            "REDIS_MAXMEMORY",
            "REDIS_MAXMEMORY=half",
            "error: /srv/.env, line 13: REDIS_MAXMEMORY is not an amount of memory\n\
             hint: write it as 512mb or 2gb, or 0 for no limit\n".to_owned(),
        ),
        (
            "REDIS_MAXMEMORY",
            "REDIS_MAXMEMORY='1gb --save 1 1'",
            "error: /srv/.env, line 13: REDIS_MAXMEMORY is not an amount of memory\n\
             hint: write it as 512mb or 2gb, or 0 for no limit\n".to_owned(),
        ),
    ] {
        assert_eq!(refusal(name, line), expected, "{name}");
    }
}

/// LiteLLM compares the master key before it looks at how a key begins, and takes it as a salt only if there is none at all.
#[test]
fn a_master_key_and_a_salt_are_taken_as_they_are() {
    for (salt, expected) in [
        ("", "secret"),
        ("LITELLM_SALT_KEY=", ""),
        ("LITELLM_SALT_KEY=s", "s"),
    ] {
        let text = ENV
            .replace("LITELLM_MASTER_KEY=sk-mine", "LITELLM_MASTER_KEY=secret")
            .replace("LITELLM_SALT_KEY=sk-salt", salt);
        let settings = settings(&text);
        assert_eq!(
            settings.master_key.open().unwrap().expose_secret(),
            "secret"
        );
        assert_eq!(settings.salt().open().unwrap().expose_secret(), expected);
    }
}

#[test]
fn addresses() {
    let of = |lines: &str| settings(&format!("{ENV}{lines}\n")).listen;
    assert_eq!(settings(ENV).listen, Listen::default());
    assert_eq!(of("LISTEN="), Listen::default());
    let listen = of("LISTEN='127.0.0.1:4000  [::1]:4000 /run/a.sock'\nLISTEN_GROUP=www-data");
    assert_eq!(listen.to_string(), "127.0.0.1:4000 [::1]:4000 /run/a.sock");
    assert_eq!(listen.group.as_deref(), Some("www-data"));
    let open = of("LISTEN=0.0.0.0:4000\nLISTEN_WITHOUT_TLS=yes");
    assert_eq!(open.to_string(), "0.0.0.0:4000");
    // None of them reaches the gateway.
    let text = format!("{ENV}LISTEN=/run/a.sock\nLISTEN_GROUP=a\nLISTEN_WITHOUT_TLS=yes\n");
    assert_eq!(
        container_secrets(&settings(&text)),
        container_secrets(&settings(ENV))
    );

    let write = "write each address as 127.0.0.1:4000, [::1]:4000 or /run/litellm/litellm.sock, with blanks between them";
    for (lines, problem, hint) in [
        (
            "LISTEN=4000",
            "LISTEN contains 4000, which is not an IP address with a port, nor the path of a socket",
            write,
        ),
        (
            "LISTEN=127.0.0.1:4000,[::1]:4000",
            "LISTEN contains 127.0.0.1:4000,[::1]:4000, which is not an IP address with a port, nor the path of a socket",
            write,
        ),
        (
            "LISTEN=127.0.0.1:0",
            "LISTEN contains 127.0.0.1:0, which has no port",
            write,
        ),
        (
            "LISTEN=/run/../a.sock",
            "LISTEN contains /run/../a.sock, which is not the path of a socket",
            write,
        ),
        (
            "LISTEN='[::1]:80 /a [::1]:80'",
            "LISTEN contains [::1]:80 twice",
            "remove one of them",
        ),
        (
            "LISTEN='127.0.0.1:4000 10.0.0.7:4000'",
            "LISTEN contains 10.0.0.7:4000, which other hosts reach without TLS: keys and prompts would cross the network in clear text",
            "use a reverse proxy with TLS (docs/reverse-proxy.md); or, for a network that you trust, add LISTEN_WITHOUT_TLS=yes",
        ),
        (
            "LISTEN_WITHOUT_TLS=true",
            "LISTEN_WITHOUT_TLS is not yes",
            "write yes, or remove the line",
        ),
        (
            "LISTEN_GROUP=www-data",
            "LISTEN_GROUP has no effect, since LISTEN names no Unix socket",
            "add one to LISTEN, such as /run/litellm/litellm.sock, or remove the line",
        ),
        (
            "LISTEN_GROUP='a b'",
            "LISTEN_GROUP is not the name of a group",
            "write the name of the group that the reverse proxy runs as, such as www-data",
        ),
    ] {
        let name = lines.split('=').next().unwrap();
        assert_eq!(
            refusal(name, lines),
            format!("error: /srv/.env, line 13: {problem}\nhint: {hint}\n")
        );
    }
}

#[test]
fn an_edit_does_not_move_the_gateway() {
    let path = Path::new("/srv/.env");
    for (name, advice) in [
        (
            "HOST",
            "remove the line; for another address, write LISTEN=127.0.0.1:4000 (docs/configuration.md), then run `litellm-units apply`",
        ),
        (
            "PORT",
            "remove the line; for another address, write LISTEN=127.0.0.1:4000 (docs/configuration.md), then run `litellm-units apply`",
        ),
        (
            "SSL_KEYFILE_PATH",
            "remove the line, then run `litellm-units apply`; for TLS, give the certificate to a reverse proxy (docs/reverse-proxy.md)",
        ),
        (
            "SSL_CERTFILE_PATH",
            "remove the line, then run `litellm-units apply`; for TLS, give the certificate to a reverse proxy (docs/reverse-proxy.md)",
        ),
        (
            "LISTEN_FDS",
            "remove the line, then run `litellm-units apply`",
        ),
        (
            "LISTEN_PID",
            "remove the line, then run `litellm-units apply`",
        ),
        (
            "LISTEN_FDNAMES",
            "remove the line, then run `litellm-units apply`",
        ),
    ] {
        for value in ["", "1"] {
            let text = format!("{ENV}{name}={value}\n");
            let env = EnvFile::parse(&text).unwrap();
            let error = check_address(&env, path).unwrap_err();
            assert_eq!(error::exit(&error), Exit::Config);
            assert_eq!(
                failure(&error),
                format!(
                    "error: /srv/.env, line 13: {name} would change the gateway's address, which litellm.socket holds\n\
                     hint: {advice}\n"
                )
            );
            // A gateway that restarts after a crash starts without it.
            assert_eq!(
                container_secrets(&settings(&text)),
                container_secrets(&settings(ENV))
            );
        }
    }
    check_address(&EnvFile::parse(ENV).unwrap(), path).unwrap();
}

#[test]
fn servers_of_the_stack_bypass_a_proxy() {
    const LOCAL: &str = "localhost,127.0.0.1,::1,host.containers.internal,postgres,redis";
    let proxy = "HTTPS_PROXY=http://user:pass@proxy:3128\n";
    for (more, expected) in [
        (String::new(), None),
        ("HTTPS_PROXY=\nNO_PROXY=a\n".into(), Some("a".to_owned())),
        (proxy.into(), Some(LOCAL.to_owned())),
        (
            format!("{proxy}NO_PROXY=.example.com, redis\n"),
            Some(
                ".example.com,redis,localhost,127.0.0.1,::1,host.containers.internal,postgres"
                    .into(),
            ),
        ),
        (format!("{proxy}NO_PROXY=*\n"), Some("*".into())),
        (
            "https_proxy=http://proxy\nno_proxy=a\n".into(),
            Some(format!("a,{LOCAL}")),
        ),
    ] {
        let secrets = settings(&format!("{ENV}{more}")).container_secrets(Service::Litellm);
        let mut lists = secrets
            .iter()
            .filter(|secret| secret.name.eq_ignore_ascii_case("NO_PROXY"));
        let list = lists
            .next()
            .map(|secret| secret.value.open().unwrap().expose_secret().to_owned());
        assert_eq!((list, lists.count()), (expected, 0), "{more}");
    }
}

#[test]
fn as_many_gateways_as_the_machine_has_room_for() {
    // MemTotal of a machine of 8 GiB.
    let [eight, gibibyte] = [7_986_388_u64 << 10, 1 << 30];
    for (text, processors, memory, expected) in [
        ("", 64, 256 * gibibyte, 1),
        ("LITELLM_REPLICAS=", 64, 256 * gibibyte, 1),
        ("LITELLM_REPLICAS=8", 1, gibibyte, 8),
        ("LITELLM_REPLICAS=auto", 1, gibibyte, 1),
        ("LITELLM_REPLICAS=auto", 4, 8 * gibibyte, 2),
        ("LITELLM_REPLICAS=auto", 4, eight, 2),
        ("LITELLM_REPLICAS=auto", 4, 5 * gibibyte, 1),
        ("LITELLM_REPLICAS=auto", 2, 64 * gibibyte, 2),
        ("LITELLM_REPLICAS=auto", 64, 256 * gibibyte, 8),
        (
            "LITELLM_REPLICAS=auto\nNUM_WORKERS=2",
            64,
            256 * gibibyte,
            4,
        ),
        ("LITELLM_REPLICAS=auto\nNUM_WORKERS=8", 4, 256 * gibibyte, 1),
    ] {
        let capacity = Capacity { processors, memory };
        let settings = settings(&format!("{ENV}{text}\n"));
        assert_eq!(settings.replicas.count(capacity), expected, "{text}");
        assert!(!container_secrets(&settings).contains("LITELLM_REPLICAS"));
    }
}

#[test]
fn the_limit_of_a_blocked_gateway_may_be_left_out() {
    for value in ["", "10", "86400"] {
        settings(&format!("{ENV}LITELLM_LIVENESS_TIMEOUT={value}\n"));
    }
}

#[test]
fn the_memory_of_a_gateway_is_a_part_or_a_size() {
    let gibibyte = 1 << 30;
    for (value, expected) in [
        ("", Some(MemoryMark::Percentage(80))),
        ("30%", Some(MemoryMark::Percentage(30))),
        ("3G", Some(MemoryMark::Bytes(3 * gibibyte))),
        ("1024M", Some(MemoryMark::Bytes(gibibyte))),
        ("1gb", Some(MemoryMark::Bytes(gibibyte))),
        ("no", None),
    ] {
        let settings = settings(&format!("{ENV}LITELLM_RECYCLE_AT={value}\n"));
        assert_eq!(settings.recycle_at, expected, "{value}");
    }
    for (mark, limit, expected) in [
        (
            MemoryMark::Percentage(50),
            Some(2 * gibibyte),
            Some(1_073_741_800),
        ),
        (MemoryMark::Percentage(50), None, None),
        (MemoryMark::Bytes(7), None, Some(7)),
    ] {
        assert_eq!(mark.of_limit(limit), expected, "{mark:?}");
    }
}

#[test]
fn the_longest_value_is_accepted() {
    settings(&format!("{ENV}LONG={}\n", "x".repeat(127_936)));
}

#[test]
fn settings_show_no_secret_when_debugged() {
    let text = ENV
        .replace("sk-mine", "sk-S3CR3T")
        .replace("PASSWORD=p", "PASSWORD=S3CR3T");
    let shown = format!("{:?}", settings(&text));
    assert!(!shown.contains("S3CR3T"), "{shown}");
}

#[test]
fn a_file_that_can_not_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".env");
    let said = |path: &Path| {
        let error = Settings::load(path).unwrap_err();
        assert_eq!(error::exit(&error), Exit::Config);
        failure(&error).replace(directory.path().to_str().unwrap(), "")
    };
    assert_eq!(
        said(&path),
        "error: can't read /.env: No such file or directory (os error 2)\n\
         hint: create the deployment with `litellm-units generate`, or name its directory with `--litellm-dir DIR`\n"
    );
    std::fs::write(&path, b"A=1\nB=\xff\n").unwrap();
    assert_eq!(
        said(&path),
        "error: /.env, line 2: not valid UTF-8\nhint: save the file as UTF-8\n"
    );
    std::fs::write(&path, b"A=1\nB=x\0y\n").unwrap();
    assert_eq!(
        said(&path),
        "error: /.env, line 2, column 3: the value of B contains a NUL character\nhint: take the NUL character out of the value\n"
    );
}

const SEALED: &str = "systemd-creds:LITELLM_MASTER_KEY.0123456789abcdef";

#[test]
fn a_reference_is_not_taken_for_the_value() {
    let text = ENV.replace("sk-mine", SEALED) + "COPY=x${LITELLM_MASTER_KEY}\nPLAIN=1\n";
    let settings = settings(&text);
    let sealed: Vec<String> = settings
        .container_secrets(Service::Litellm)
        .iter()
        .filter(|secret| secret.value.is_sealed())
        .map(|secret| {
            let error = secret.value.open().unwrap_err();
            format!("{}: {error}", secret.name)
        })
        .collect();
    let problem = "LITELLM_MASTER_KEY is sealed, and /srv/credentials/LITELLM_MASTER_KEY.0123456789abcdef can't be opened: No such file or directory (os error 2)";
    assert_eq!(
        sealed,
        [
            format!("LITELLM_MASTER_KEY: {problem}"),
            format!("COPY: {problem}")
        ]
    );
}

#[test]
fn references_that_can_not_be_meant_are_refused() {
    let refused = |text: &str| {
        let error = Settings::from_text(text, Path::new("/srv/.env")).unwrap_err();
        failure(&error)
    };
    assert_eq!(
        refused(&ENV.replace("sk-mine", "systemd-creds:LITELLM_MASTER_KEY")),
        "\
error: /srv/.env, line 2: LITELLM_MASTER_KEY contains an incomplete reference to a sealed secret (systemd-creds:NAME.0123456789abcdef)
hint: write the value itself, then run `litellm-units secrets seal`
"
    );
    assert_eq!(
        refused(&ENV.replace("POSTGRES_USER=me", &format!("POSTGRES_USER={SEALED}"))),
        "\
error: /srv/.env, line 4: POSTGRES_USER contains a reference to a sealed secret, but must be in clear
hint: write the value itself
"
    );
}

/// In quotes it is a value, and so it is written.
#[test]
fn values_of_other_programs() {
    let text = ENV.replace("OPENAI_API_KEY=", "OPENAI_API_KEY=vault:secret/llm#openai")
        + "VAULT_TOKEN=t\nLITERAL='exec:/bin/true'\n";
    let given: Vec<String> = settings(&text)
        .container_secrets(Service::Litellm)
        .iter()
        .filter(|secret| ["OPENAI_API_KEY", "VAULT_TOKEN", "LITERAL"].contains(&&*secret.name))
        .map(|secret| {
            let value = secret.value.in_clear();
            let value = value.map(|value| value.expose_secret().to_owned());
            format!("{} {value:?}", secret.name)
        })
        .collect();
    assert_eq!(
        given,
        ["OPENAI_API_KEY None", "LITERAL Some(\"exec:/bin/true\")"]
    );
    // Without a reference, the gateway gets the same as before there were any.
    let secrets = settings(&format!("{ENV}VAULT_TOKEN=t\n")).container_secrets(Service::Litellm);
    assert!(secrets.iter().any(|secret| secret.name == "VAULT_TOKEN"));
    let text = format!("{ENV}A=exec:/bin/true\nB='exec:/bin/true'\nC=$B\nD='$A'\nE=$$A\n");
    Settings::from_text(&text, Path::new("/srv/.env")).unwrap();
    let mut env = EnvFile::parse("A=1\n").unwrap();
    env.set("A", "exec:/bin/true").unwrap();
    env.set("B", "sops:/a#b").unwrap();
    assert_eq!(env.text(), "A='exec:/bin/true'\nB='sops:/a#b'\n");
}

#[test]
fn values_that_other_programs_can_not_give_are_refused() {
    let refused = |text: &str| {
        let error = Settings::from_text(text, Path::new("/srv/.env")).unwrap_err();
        failure(&error)
    };
    for (name, value) in [
        ("LITELLM_MASTER_KEY", "sk-mine"),
        ("LITELLM_SALT_KEY", "sk-salt"),
        ("POSTGRES_PASSWORD", "p"),
        ("REDIS_PASSWORD", "r"),
        ("UI_PASSWORD", ""),
    ] {
        let text = ENV.replace(
            &format!("{name}={value}"),
            &format!("{name}=exec:/bin/true"),
        );
        let said = refused(&text);
        assert!(
            said.ends_with(&format!(
                ": {name} names a program (exec:, vault: or sops:), but is needed in .env itself\nhint: write the value, which `litellm-units secrets seal` can encrypt; if this is the value, put it in single quotes\n"
            )),
            "{said}"
        );
    }
    for name in [
        "DATABASE_URL",
        "HTTPS_PROXY",
        "no_proxy",
        "VAULT_TOKEN",
        "NOTIFY_URL",
        "LITELLM_LOG",
    ] {
        assert!(
            refused(&format!("{ENV}{name}=exec:/bin/true\n")).contains("is needed in .env itself"),
            "{name}"
        );
    }
    assert_eq!(
        refused(&format!("{ENV}A=exec:true\n")),
        "\
error: /srv/.env, line 13: A names no program by an absolute path
hint: write exec:/PATH/PROGRAM ARGUMENTS; if this is the value itself, put it in single quotes
"
    );
    for reference in ["exec:/bin/x $T", "exec:/bin/x ${T:-a}", "vault:$T#a"] {
        let said = refused(&format!("{ENV}T=secret\nA={reference}\n"));
        assert!(
            said.contains("line 14: A refers to another variable, and arguments can be read"),
            "{said}"
        );
    }
    assert!(refused(&format!("{ENV}A=exec:/bin/true\nB=${{T:-$A}}\n")).contains("B refers to A,"));
    assert_eq!(
        refused(&format!("{ENV}A=exec:/bin/true\nB=x${{A}}\n")),
        "\
error: /srv/.env, line 14: B refers to A, which is not in .env, so it would contain A's reference
hint: let a program give the whole value: exec:/PATH/PROGRAM
"
    );
}

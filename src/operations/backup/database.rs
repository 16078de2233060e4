//! The database through PostgreSQL's own programs, which run in a container: the server's, or a
//! throw-away one if the server is external. Passwords never are among the arguments.

use std::collections::BTreeSet;
use std::io::{self, PipeReader, Read, Write};
use std::process::Stdio;

use anyhow::Context;
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::archive;
use super::manifest::Contents;
use super::wal::{Segment, format_position};
use crate::deployment::certificates;
use crate::deployment::database_url;
use crate::deployment::settings::{Database, Settings};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::docker::Docker;
use crate::host::podman::Podman;
use crate::output::Meter;
use crate::quadlet::{NETWORK, NEXT_SERVER};
use crate::random::hex;
use crate::service::Service;

/// The prefix of the databases of this program.
const PREFIX: &str = "litellm_units_";
/// The name of our sessions at the server.
pub(crate) const APPLICATION: &str = "litellm-units";
/// That of a dump and of the snapshot that it reads.
const DUMPING: &str = "litellm-units-dump";
/// Lifts what a role or a database may have set, for a session that works for as long as it takes.
pub(crate) const NO_TIMEOUTS: &str = r"SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout') \g /dev/null
";

/// In a server's container, as the user of its own variables. Over TCP, since that works with any
/// `pg_hba.conf` that admits the gateway.
const IN_SERVER: &str = r#"export PGAPPNAME=litellm-units PGHOST="$1" PGUSER="$POSTGRES_USER" PGPASSWORD="$POSTGRES_PASSWORD" PGDATABASE="$2"
shift 2
exec "$@""#;
/// The server of the container in which a program runs.
const ITSELF: &str = "127.0.0.1";
/// The current server on Podman's network.
const CURRENT: &str = "postgres";
/// In a throw-away container: the variables come as the first lines of stdin.
const IN_CLIENT: &str = r#"shift
while IFS= read -r line && [ -n "$line" ]; do export "$line"; done
exec "$@""#;
/// The same where the server's certificate is to be verified: the authorities follow.
const IN_VERIFYING_CLIENT: &str = r#"shift
while IFS= read -r line && [ -n "$line" ]; do export "$line"; done
while IFS= read -r line && [ -n "$line" ]; do printf '%s\n' "$line"; done >"$PGSSLROOTCERT"
exec "$@""#;
/// Where that container keeps the authorities, in memory.
const AUTHORITIES: &str = "/tmp/litellm-units.pem";

/// Writes a part of a segment to stdout. The empty file says where `pg_receivewal` begins; without a slot of its own,
/// nothing counts as archived that is not on the disk of the archive. A server that does not answer must not leave a process
/// behind. Since the last question, the cluster in the container may have become another one.
const RECEIVE: &str = r#"set -e
found=$(psql -XAtqc 'SELECT system_identifier FROM pg_control_system()')
[ "$found" = "$5" ] || { echo "cluster $found is in use instead of $5" >&2; exit 1; }
directory=$(mktemp -d /tmp/litellm-units.XXXXXX)
trap 'rm -rf "$directory"' EXIT
: >"$directory/$1.partial"
timeout 300 pg_receivewal --directory="$directory" --endpos="$2" --no-loop --no-sync --no-password >&2
file=$directory/$1
[ -e "$file" ] || file=$file.partial
tail -c "+$3" "$file" | head -c "$4""#;

/// The objects of a database that a dump contains. It leaves out those of extensions, and the indexes that an interrupted
/// `CREATE INDEX CONCURRENTLY` or `REINDEX CONCURRENTLY` has left.
pub(crate) const OWN: &str = "SELECT c.oid, c.relkind, n.nspname, c.relname \
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid \
WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' \
AND (c.relkind <> 'i' OR i.indisvalid AND i.indisready) AND NOT EXISTS \
(SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Is true of every table but the large ones, of which a count reads 1 GiB or more.
const QUICK: &str = "pg_relation_size(oid) < 1 << 30";

/// Prints one line per kind of object and one per table for which `listed` is true, as JSON. Counts the rows of the tables for
/// which `counted` is true.
fn contents_script(listed: &str, counted: &str) -> String {
    format!(
        r"SELECT json_build_object('kind', CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'i' THEN 'index' WHEN 'S' THEN 'sequence' ELSE 'other' END, 'count', count(*)) FROM ({OWN}) own WHERE relkind IN ('r', 'v', 'm', 'i', 'S') GROUP BY relkind;
SELECT format(CASE WHEN {counted} THEN 'SELECT json_build_object(''table'', %L, ''count'', count(*)) FROM %I.%I' ELSE 'SELECT json_build_object(''table'', %L, ''count'', NULL)' END, nspname || '.' || relname, nspname, relname) FROM ({OWN}) own WHERE relkind = 'r' AND {listed} ORDER BY 1 \gexec
\echo end
"
    )
}

/// Prints a line for each column, index and view, and for each migration that Prisma has recorded.
const SCHEMA: &str = r"SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2, 3;
SELECT schemaname, indexname, indexdef FROM pg_indexes WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2;
SELECT schemaname, viewname, definition FROM pg_views WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2;
SELECT format('SELECT migration_name, finished_at IS NULL, rolled_back_at IS NULL FROM %I.%I ORDER BY 1, 2, 3', schemaname, tablename) FROM pg_tables WHERE tablename = '_prisma_migrations' \gexec
";

/// Looks at whole rows: LiteLLM keeps encrypted values in columns and in JSON. Logs and sums hold none.
const AES_GCM: &str = r"SELECT format('SELECT %L FROM %I.%I row WHERE row::text ~ %L LIMIT 1', tablename, schemaname, tablename, 'v[0-9]+:gcm:') FROM pg_tables WHERE tablename LIKE 'LiteLLM\_%' AND tablename !~ 'Log|Daily' ORDER BY tablename \gexec
";

/// The tables in which LiteLLM keeps what it encrypts, each with what is true of such a row. Not every release has every
/// table and column.
const ENCRYPTED: &str = r"SELECT format('SELECT %L FROM %I.%I row WHERE %s LIMIT 1', tablename, schemaname, tablename, condition)
FROM pg_tables JOIN (VALUES
('LiteLLM_CredentialsTable', 'true'),
('LiteLLM_ProxyModelTable', 'true'),
('LiteLLM_Config', $$param_name IN ('environment_variables', 'vantage_settings', 'cloudzero_settings') AND coalesce(to_jsonb(row)->>'param_value', '{}') NOT IN ('{}', 'null')$$),
('LiteLLM_MCPServerTable', $$coalesce(to_jsonb(row)->>'credentials', '{}') <> '{}'$$),
('LiteLLM_MCPUserCredentials', 'true'),
('LiteLLM_MCPUserEnvVars', 'true'),
('LiteLLM_SearchToolsTable', 'true'),
('LiteLLM_SSOConfig', 'true')
) AS encrypted (name, condition) ON name = tablename ORDER BY tablename \gexec
";

/// One encrypted value of each table that LiteLLM keeps such values in as JSON.
const ENCRYPTED_VALUES: &str = r"SELECT format($$SELECT value FROM %I.%I, jsonb_each_text((%I #>> '{}')::jsonb) WHERE value ~ '^(v[0-9]+:gcm:.*|[A-Za-z0-9_+/=-]{54,})$' LIMIT 1$$, table_schema, table_name, column_name)
FROM information_schema.columns WHERE (table_name, column_name) IN (('LiteLLM_CredentialsTable', 'credential_values'), ('LiteLLM_ProxyModelTable', 'litellm_params')) ORDER BY table_name \gexec
";

/// The server of the gateway's database.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    podman: &'a Podman,
    access: Access,
    /// The gateway's database.
    pub database: String,
}

#[derive(Debug)]
enum Access {
    /// `podman exec` in this container, with the server at this address.
    Container {
        name: &'static str,
        address: &'static str,
    },
    /// `podman run` of this image, with these variables and, if the server's certificate is to be verified, authorities.
    Client {
        image: String,
        variables: Vec<(&'static str, SecretString)>,
        authorities: Option<String>,
        /// The option for the directory of the server's Unix socket.
        volume: Option<String>,
    },
    /// `docker exec` in the container of another deployment, with these variables.
    Docker {
        docker: Docker,
        container: String,
        variables: Vec<(&'static str, SecretString)>,
    },
}

#[derive(Debug, Deserialize)]
struct Begun {
    snapshot: String,
    version: String,
    size: u64,
}

impl Begun {
    fn contents(&self, database: &str) -> Contents {
        Contents {
            name: database.to_owned(),
            server_version: self.version.clone(),
            size: self.size,
            ..Contents::default()
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Counted {
    Table { table: String, count: Option<u64> },
    Kind { kind: String, count: u64 },
}

impl<'a> Server<'a> {
    /// The server that `settings` name; a local one has to run.
    pub(crate) async fn new(host: &'a Host, settings: &Settings) -> Result<Self> {
        let podman = host.podman().await?;
        match &settings.database {
            Database::Local { name, .. } => {
                let unit = Service::Postgres.unit();
                let state = host.systemd().await?.unit(unit).await?;
                if !state.is_active() {
                    return Err(Failure::new(format!(
                        "{unit} is {}, so the database can't be reached",
                        state.active
                    ))
                    .hint("start it: `litellm-units start postgres`")
                    .into());
                }
                Ok(Self {
                    podman,
                    access: Access::Container {
                        name: Service::Postgres.container(),
                        address: ITSELF,
                    },
                    database: name.clone(),
                })
            }
            Database::External { url } => {
                let url = url.open()?;
                let (mut variables, database) = parse_url(&url)?;
                let volume = database_url::socket_directory(url.expose_secret())
                    .map(|directory| database_url::volume(&directory))
                    .transpose()?;
                let authorities = if is_verified(&variables) {
                    variables.push(("PGSSLROOTCERT", AUTHORITIES.into()));
                    Some(certificates::authorities(&host.paths)?)
                } else {
                    None
                };
                let image = settings.backup.postgres_image.as_str();
                if !podman.has_image(image).await? {
                    podman.pull(image, &settings.proxy.open()?).await?;
                }
                // Stopping the stack ends it.
                podman
                    .run(["network", "create", "--ignore", NETWORK])
                    .await?;
                Ok(Self {
                    podman,
                    access: Access::Client {
                        image: image.to_owned(),
                        variables,
                        authorities,
                        volume,
                    },
                    database,
                })
            }
        }
    }

    /// The current server and the next one beside it, both through the programs of the next version.
    pub(crate) async fn pair(host: &'a Host, settings: &Settings) -> Result<(Self, Self)> {
        let current = Self::new(host, settings).await?;
        let at = |address| Self {
            podman: current.podman,
            access: Access::Container {
                name: NEXT_SERVER,
                address,
            },
            database: current.database.clone(),
        };
        Ok((at(CURRENT), at(ITSELF)))
    }

    /// The server in a container of Docker, whose data are to be imported.
    pub(crate) async fn in_docker(
        host: &'a Host,
        docker: &Docker,
        container: &str,
        variables: &[(&'static str, SecretString)],
        database: &str,
    ) -> Result<Self> {
        Ok(Self {
            podman: host.podman().await?,
            access: Access::Docker {
                docker: docker.clone(),
                container: container.to_owned(),
                variables: variables.to_vec(),
            },
            database: database.to_owned(),
        })
    }

    /// The server of a recovered cluster, in a container with the variables of PostgreSQL's image; `address` is the directory
    /// of its socket.
    pub(crate) async fn in_recovered(
        host: &'a Host,
        name: &'static str,
        address: &'static str,
        database: &str,
    ) -> Result<Self> {
        Ok(Self {
            podman: host.podman().await?,
            access: Access::Container { name, address },
            database: database.to_owned(),
        })
    }

    /// Whether the server is the local one, which this program may change.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.access, Access::Container { .. })
    }

    /// A command line that runs `words` with access to `database`.
    fn command(&self, database: &str, words: &[&str]) -> Command {
        let words = std::iter::once(database).chain(words.iter().copied());
        let mut command = match &self.access {
            Access::Container { name, address } => self.podman.command(
                [
                    "exec",
                    "--interactive",
                    name,
                    "sh",
                    "-c",
                    IN_SERVER,
                    "sh",
                    address,
                ]
                .into_iter()
                .chain(words),
            ),
            Access::Client {
                image,
                authorities,
                volume,
                ..
            } => self.podman.command(
                [
                    "run",
                    "--rm",
                    "--interactive",
                    "--pull=never",
                    // The gateway's, so that the server's name means the same.
                    "--network",
                    NETWORK,
                    "--read-only",
                    "--cap-drop=all",
                    "--log-driver=none",
                    "--user=nobody",
                    "--entrypoint=sh",
                ]
                .into_iter()
                .chain(volume.as_deref())
                .chain([
                    image.as_str(),
                    "-c",
                    if authorities.is_some() {
                        IN_VERIFYING_CLIENT
                    } else {
                        IN_CLIENT
                    },
                    "sh",
                ])
                .chain(words),
            ),
            Access::Docker {
                docker, container, ..
            } => docker.command(
                [
                    "exec",
                    "--interactive",
                    container,
                    "sh",
                    "-c",
                    IN_CLIENT,
                    "sh",
                ]
                .into_iter()
                .chain(words),
            ),
        };
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The first lines of stdin.
    fn preamble(&self) -> SecretString {
        match &self.access {
            Access::Container { .. } => String::new(),
            Access::Client { variables, .. } | Access::Docker { variables, .. } => {
                let mut text = String::new();
                for (name, value) in variables {
                    text.push_str(&format!("{name}={}\n", value.expose_secret()));
                }
                text.push_str(&format!("PGAPPNAME={APPLICATION}\n\n"));
                if let Access::Client {
                    authorities: Some(authorities),
                    ..
                } = &self.access
                {
                    text.push_str(authorities);
                    text.push('\n');
                }
                text
            }
        }
        .into()
    }

    async fn begin_stdin(&self, child: &mut Child) -> Result<ChildStdin> {
        let mut stdin = child.stdin.take().context("podman has no stdin")?;
        // A program that ended at once says why on stderr.
        let _ = stdin
            .write_all(self.preamble().expose_secret().as_bytes())
            .await;
        Ok(stdin)
    }

    /// Runs a program with access to `database` and `input` as its stdin; returns its stdout.
    pub(crate) async fn run(&self, database: &str, words: &[&str], input: &str) -> Result<Vec<u8>> {
        let mut command = self.command(database, words);
        let mut child = command.spawn().context("can't run podman")?;
        let mut stdin = self.begin_stdin(&mut child).await?;
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.context("can't run podman")?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(refused(words[0], &output.stderr))
    }

    /// Runs SQL; returns what it selects, unaligned.
    pub(crate) async fn query(&self, database: &str, sql: &str) -> Result<String> {
        let selected = self.run(database, PSQL, sql).await?;
        Ok(String::from_utf8_lossy(&selected).into_owned())
    }

    /// The lines that SQL selects.
    async fn lines(&self, database: &str, sql: &str) -> Result<Vec<String>> {
        let text = self.query(database, sql).await?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// The number that SQL selects.
    async fn number(&self, database: &str, sql: &str) -> Result<u64> {
        let text = self.query(database, sql).await?;
        text.trim()
            .parse()
            .with_context(|| format!("unexpected answer of psql: {text:?}"))
    }

    /// Runs SQL in the database from which the others are created, renamed and removed.
    async fn maintain(&self, sql: &str) -> Result<()> {
        self.query(self.maintenance(), sql).await.map(drop)
    }

    /// Opens a transaction whose snapshot others can share.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot> {
        let mut child = self
            .command(&self.database, PSQL)
            .spawn()
            .context("can't run podman")?;
        let stdin = self.begin_stdin(&mut child).await?;
        let stdout = child.stdout.take().context("podman has no stdout")?;
        let mut snapshot = Snapshot {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            name: String::new(),
            contents: Contents::default(),
        };
        snapshot
            .ask(&format!(
                "{NO_TIMEOUTS}SET application_name = '{DUMPING}';\n\
                 BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;\n\
                 SELECT json_build_object('snapshot', pg_export_snapshot(), 'version', current_setting('server_version'), 'size', pg_database_size(current_database()));\n",
            ))
            .await;
        let begun: Begun = parse(&snapshot.line().await?)?;
        snapshot.contents = begun.contents(&self.database);
        snapshot.name = begun.snapshot;
        Ok(snapshot)
    }

    /// Dumps the database as it is in `snapshot` and hands the stream to `sink`, on a thread of
    /// its own.
    pub(crate) async fn dump<T: Send + 'static>(
        &self,
        snapshot: &str,
        sink: impl FnOnce(PipeReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let words = [
            &*format!("--snapshot={snapshot}"),
            &format!("--dbname=application_name={DUMPING}"),
        ];
        self.pg_dump(&self.database, &words, sink).await
    }

    async fn pg_dump<T: Send + 'static>(
        &self,
        database: &str,
        words: &[&str],
        sink: impl FnOnce(PipeReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let program = [
            "pg_dump",
            "--format=custom",
            "--compress=0",
            "--no-password",
            // A migration that does not end must not block a backup.
            "--lock-wait-timeout=60s",
        ];
        let words = [&program, words].concat();
        self.stream("pg_dump", database, &words, sink).await
    }

    /// Copies the whole cluster as a tar and hands the stream to `sink`, on a thread of its own.
    pub(crate) async fn copy_cluster<T: Send + 'static>(
        &self,
        sink: impl FnOnce(PipeReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let words = [
            "pg_basebackup",
            "--pgdata=-",
            "--format=tar",
            // The archive has what is written meanwhile, and lets the server remove it.
            "--wal-method=none",
            "--checkpoint=fast",
            "--label=litellm-units",
            "--no-password",
        ];
        self.stream("pg_basebackup", &self.database, &words, sink)
            .await
    }

    /// Hands a part of a segment of the write-ahead log to `sink`, on a thread of its own: the bytes from `start` to `end`.
    /// The server must have written them to its disk, and be of cluster `system`.
    pub(crate) async fn receive_wal<T: Send + 'static>(
        &self,
        system: &str,
        segment: &Segment,
        start: u64,
        end: u64,
        sink: impl FnOnce(PipeReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        // It ends behind a position, and would wait for the next record at this one.
        let last = format_position(segment.position(end) - 1);
        let (from, count) = ((start + 1).to_string(), (end - start).to_string());
        let words = [
            "sh",
            "-c",
            RECEIVE,
            "sh",
            &segment.name(),
            &last,
            &from,
            &count,
            system,
        ];
        self.stream("pg_receivewal", self.maintenance(), &words, sink)
            .await
    }

    /// Runs a program with access to `database` and hands its stdout to `sink`, on a thread of its own.
    async fn stream<T: Send + 'static>(
        &self,
        program: &str,
        database: &str,
        words: &[&str],
        sink: impl FnOnce(PipeReader) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reader, writer) = io::pipe().context("can't make a pipe")?;
        widen(&reader);
        let mut command = self.command(database, words);
        command.stdout(writer);
        let mut child = command.spawn().context("can't run podman")?;
        // Its copy of the pipe's end would keep the reader from finishing.
        drop(command);
        drop(self.begin_stdin(&mut child).await?);
        let writing = tokio::task::spawn_blocking(move || sink(reader));
        let (stored, output) = tokio::join!(writing, child.wait_with_output());
        // When the disk is full, pg_dump only reports a broken pipe.
        let stored = stored.context("the writer of the backup stopped")??;
        let output = output.context("can't run podman")?;
        if !output.status.success() {
            return Err(refused(program, &output.stderr));
        }
        Ok(stored)
    }

    /// Reads a dump into `database`, which has to be empty; `options` are for `pg_restore`.
    pub(crate) async fn fill(
        &self,
        database: &str,
        options: &[&str],
        source: impl Read + Send + 'static,
    ) -> Result<()> {
        let words = [&["--exit-on-error", "--dbname", database], options].concat();
        self.pg_restore(&words, source).await
    }

    /// Reads a dump to its end, without a database.
    pub(crate) async fn read_through(&self, source: impl Read + Send + 'static) -> Result<()> {
        self.pg_restore(&["--exit-on-error", "--file=/dev/null"], source)
            .await
    }

    async fn pg_restore(
        &self,
        words: &[&str],
        mut source: impl Read + Send + 'static,
    ) -> Result<()> {
        let (reader, mut writer) = io::pipe().context("can't make a pipe")?;
        widen(&reader);
        let words = [&["pg_restore"], words].concat();
        let mut command = self.command(&self.database, &words);
        command.stdin(reader).stdout(Stdio::null());
        let mut child = command.spawn().context("can't run podman")?;
        drop(command);
        let preamble = self.preamble();
        let source = tokio::task::spawn_blocking(move || -> Result<bool> {
            if writer
                .write_all(preamble.expose_secret().as_bytes())
                .is_err()
            {
                return Ok(false);
            }
            let mut sink = Forgiving {
                inner: writer,
                broken: false,
            };
            archive::copy(&mut source, &mut sink).context("can't read the backup")?;
            Ok(!sink.broken)
        });
        let mut words = Vec::new();
        let mut stderr = child.stderr.take().context("podman has no stderr")?;
        let talk = stderr.read_to_end(&mut words);
        let (status, talk, source) = tokio::join!(child.wait(), talk, source);
        talk.context("can't read podman's messages")?;
        let complete = source.context("the reader of the backup stopped")??;
        let status = status.context("can't run podman")?;
        if status.success() && complete {
            return Ok(());
        }
        Err(refused("pg_restore", &words))
    }

    /// Copies a database with its properties to `target`, which loses its own of that name; `options` are for `pg_dump`.
    pub(crate) async fn copy(
        &self,
        target: &Self,
        database: &str,
        options: &[&str],
        meter: &Meter,
    ) -> Result<()> {
        let (reader, writer) = io::pipe().context("can't make a pipe")?;
        widen(&reader);
        let meter = meter.clone();
        let words = [&["--create"], options].concat();
        let dump = self.pg_dump(database, &words, move |source| {
            let mut sink = Forgiving {
                inner: writer,
                broken: false,
            };
            archive::copy(&mut meter.reading(source), &mut sink).context("can't copy the database")
        });
        let words = [
            "--exit-on-error",
            "--clean",
            "--if-exists",
            "--create",
            // It drops and creates the database from another one.
            "--dbname",
            other_than(database),
        ];
        let (dumped, restored) = tokio::join!(dump, target.pg_restore(&words, reader));
        dumped?;
        restored
    }

    /// Copies the roles with their passwords to `target`. Those that it has get the same properties.
    pub(crate) async fn copy_roles(&self, target: &Self) -> Result<()> {
        let words = ["pg_dumpall", "--roles-only", "--no-password"];
        let script = self.run(self.maintenance(), &words, "").await?;
        // Hashes of passwords are in it.
        let script: SecretString = String::from_utf8(script)
            .context("pg_dumpall did not answer in UTF-8")?
            .into();
        let existing = "SELECT format('CREATE ROLE %I;', rolname) FROM pg_roles;\n";
        let existing = target.lines(target.maintenance(), existing).await?;
        let script: SecretString = script
            .expose_secret()
            .lines()
            .filter(|line| !existing.iter().any(|created| created == line))
            .fold(String::new(), |text, line| text + line + "\n")
            .into();
        target.maintain(script.expose_secret()).await
    }

    /// The databases of the server, without templates and those of this program, and the size of each in bytes.
    pub(crate) async fn databases(&self) -> Result<Vec<(String, u64)>> {
        let sql = format!(
            "SELECT json_build_array(datname, pg_database_size(oid)) FROM pg_database WHERE datallowconn AND NOT datistemplate AND NOT starts_with(datname, {}) ORDER BY datname;\n",
            literal(PREFIX)
        );
        let text = self.query(self.maintenance(), &sql).await?;
        text.lines().map(parse).collect()
    }

    /// The databases that [`Server::databases`] leaves out, beside those that each cluster has.
    pub(crate) async fn other_databases(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT datname FROM pg_database WHERE datname NOT IN ('template0', 'template1') AND (NOT datallowconn OR datistemplate OR starts_with(datname, {})) ORDER BY 1;\n",
            literal(PREFIX)
        );
        self.lines(self.maintenance(), &sql).await
    }

    /// The settings in the files of the cluster with their values, as they are written there, without those of the locale
    /// and the container.
    pub(crate) async fn own_settings(&self) -> Result<Vec<(String, String)>> {
        let sql = "SELECT json_build_array(name, coalesce(setting, '')) FROM (SELECT DISTINCT ON (name) * FROM pg_file_settings ORDER BY name, seqno DESC) last WHERE name !~* '^(lc_.*|dynamic_shared_memory_type|log_timezone|TimeZone|DateStyle|default_text_search_config|listen_addresses)$' OR sourcefile LIKE '%/postgresql.auto.conf' ORDER BY name;\n";
        let text = self.query(self.maintenance(), sql).await?;
        text.lines().map(parse).collect()
    }

    /// The server's version, as `17.7 (Debian …)`.
    pub(crate) async fn version(&self) -> Result<String> {
        let sql = "SHOW server_version;\n";
        let text = self.query(self.maintenance(), sql).await?;
        Ok(text.trim().to_owned())
    }

    /// The number of the next transaction. While it is the same, nothing was written.
    pub(crate) async fn next_transaction(&self) -> Result<u64> {
        let sql = "SELECT pg_snapshot_xmax(pg_current_snapshot());\n";
        self.number(self.maintenance(), sql).await
    }

    /// Has the server refuse writes until [`Server::accept_writes`] is called, and ends the sessions that are open.
    pub(crate) async fn refuse_writes(&self) -> Result<()> {
        let set =
            "ALTER SYSTEM SET default_transaction_read_only = on;\nSELECT pg_reload_conf();\n";
        self.maintain(set).await?;
        self.await_read_only("on").await?;
        let begin = "SELECT clock_timestamp();\n";
        let begin = self.query(self.maintenance(), begin).await?;
        // They may still be in a transaction that writes.
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' AND backend_start < {} AND pid <> pg_backend_pid();\n",
            literal(begin.trim())
        );
        for _ in 0..100 {
            if self.query(self.maintenance(), &end).await?.trim() == "0" {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::bail!("sessions at PostgreSQL did not end within 10 s, and may still write")
    }

    /// Undoes [`Server::refuse_writes`], however far it came.
    pub(crate) async fn accept_writes(&self) -> Result<()> {
        let reset = "ALTER SYSTEM RESET default_transaction_read_only;\nSELECT pg_reload_conf();\n";
        self.maintain(reset).await?;
        self.await_read_only("off").await
    }

    async fn await_read_only(&self, wanted: &str) -> Result<()> {
        for _ in 0..100 {
            let sql = "SHOW default_transaction_read_only;\n";
            if self.query(self.maintenance(), sql).await?.trim() == wanted {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::bail!(
            "PostgreSQL did not take over default_transaction_read_only = {wanted} within 10 s"
        )
    }

    /// The current contents of `database`.
    pub(crate) async fn contents(&self, database: &str) -> Result<Contents> {
        self.contents_where(database, "true", "true").await
    }

    /// The same, without the rows of the tables of `uncounted`.
    pub(crate) async fn contents_without(
        &self,
        database: &str,
        uncounted: &BTreeSet<String>,
    ) -> Result<Contents> {
        let counted = format!("NOT {}", among(uncounted));
        self.contents_where(database, "true", &counted).await
    }

    /// The same, with the rows of these tables only.
    pub(crate) async fn contents_of(&self, database: &str, tables: &[String]) -> Result<Contents> {
        self.contents_where(database, &among(tables), "true").await
    }

    async fn contents_where(
        &self,
        database: &str,
        listed: &str,
        counted: &str,
    ) -> Result<Contents> {
        let sql = format!(
            "{NO_TIMEOUTS}SELECT json_build_object('snapshot', '', 'version', current_setting('server_version'), 'size', pg_database_size(current_database()));\n{}",
            contents_script(listed, counted)
        );
        let text = self.query(database, &sql).await?;
        let mut lines = text.lines();
        let first: Begun = parse(lines.next().unwrap_or_default())?;
        let mut contents = first.contents(database);
        for line in lines.take_while(|line| *line != "end") {
            add(&mut contents, parse(line)?);
        }
        Ok(contents)
    }

    /// What keeps the database from being dumped, and restored on `target`: tables that its user can't read, and extensions
    /// that `target` does not have. As the ends of sentences about the database.
    pub(crate) async fn obstacles(&self, target: &Self) -> Result<Vec<String>> {
        let tables = format!(
            "SELECT format('has the table %s.%s, which %s may not read', nspname, relname, current_user) FROM ({OWN}) own WHERE relkind = 'r' AND NOT has_table_privilege(oid, 'SELECT') ORDER BY 1;\n"
        );
        let extensions = "SELECT extname FROM pg_extension ORDER BY 1;\n";
        let available = "SELECT name FROM pg_available_extensions;\n";
        let mut found = self.lines(&self.database, &tables).await?;
        let available = target.lines(target.maintenance(), available).await?;
        let mut missing = self.lines(&self.database, extensions).await?;
        missing.retain(|extension| !available.contains(extension));
        found.extend(missing.into_iter().map(|extension| {
            format!(
                "uses the extension {extension}, which the new image of PostgreSQL does not have"
            )
        }));
        Ok(found)
    }

    /// The size of the gateway's database in bytes, indexes included.
    pub(crate) async fn size(&self) -> Result<u64> {
        let sql = "SELECT pg_database_size(current_database());\n";
        self.number(&self.database, sql).await
    }

    /// A hash of the schema of the gateway's database. It changes with any column, index or view,
    /// and with each migration that was begun.
    pub(crate) async fn schema(&self) -> Result<String> {
        let text = self.query(&self.database, SCHEMA).await?;
        Ok(hex(&Sha256::digest(text)))
    }

    /// The tables of LiteLLM in which something is encrypted with AES-256-GCM.
    pub(crate) async fn tables_with_aes_gcm(&self) -> Result<Vec<String>> {
        self.lines(&self.database, AES_GCM).await
    }

    /// The tables of LiteLLM that hold what is encrypted with the salt.
    pub(crate) async fn encrypted_tables(&self) -> Result<Vec<String>> {
        self.lines(&self.database, ENCRYPTED).await
    }

    /// A value that is encrypted with the salt; none if none is stored.
    pub(crate) async fn encrypted_value(&self) -> Result<Option<SecretString>> {
        let text = self.query(&self.database, ENCRYPTED_VALUES).await?;
        Ok(text.lines().next().map(SecretString::from))
    }

    /// The database from which the others are created, renamed and removed.
    pub(crate) fn maintenance(&self) -> &'static str {
        other_than(&self.database)
    }

    /// Creates an empty database with the encoding, the locale, the settings (`ALTER DATABASE … SET`) and the rights
    /// (`GRANT … ON DATABASE`) of the gateway's.
    pub(crate) async fn create_beside(&self, new: &str) -> Result<()> {
        // The names of the columns differ between versions of PostgreSQL. A setting that is a list of names is quoted already,
        // as pg_dump knows, too.
        let script = format!(
            "SELECT format('CREATE DATABASE {new} TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L', \
             pg_encoding_to_char(encoding), datcollate, datctype) \
             || CASE j->>'datlocprovider' WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', coalesce(j->>'datlocale', j->>'daticulocale')) \
             WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', j->>'datlocale') ELSE '' END \
             FROM (SELECT *, to_jsonb(d) AS j FROM pg_database d) d WHERE datname = {old} \\gexec\n\
             SELECT format('ALTER %s SET %I TO %s', \
             CASE setrole WHEN 0 THEN 'DATABASE {new}' ELSE format('ROLE %I IN DATABASE {new}', pg_get_userbyid(setrole)) END, name, \
             CASE WHEN value = '\"\"' THEN '''''' WHEN name IN ('search_path', 'temp_tablespaces', 'local_preload_libraries', 'session_preload_libraries') THEN value ELSE quote_literal(value) END) \
             FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) AS item, \
             LATERAL (SELECT split_part(item, '=', 1) AS name, substr(item, strpos(item, '=') + 1) AS value) pair \
             WHERE datname = {old} \\gexec\n\
             SELECT 'REVOKE ALL ON DATABASE {new} FROM PUBLIC' FROM pg_database WHERE datname = {old} AND datacl IS NOT NULL \\gexec\n\
             SELECT format('GRANT %s ON DATABASE {new} TO %s%s', privilege_type, \
             CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, \
             CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
             FROM pg_database, aclexplode(datacl) WHERE datname = {old} \\gexec\n",
            new = identifier(new),
            old = literal(&self.database)
        );
        self.maintain(&script).await
    }

    /// Removes a database, and ends its sessions.
    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        let name = identifier(name);
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE);\n");
        self.maintain(&sql).await
    }

    /// The databases of this program.
    pub(crate) async fn own_databases(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT datname FROM pg_database WHERE starts_with(datname, {}) ORDER BY 1;\n",
            literal(PREFIX)
        );
        self.lines(self.maintenance(), &sql).await
    }

    /// Ends the sessions that an interrupted run of this program has left, but not those of the archive.
    pub(crate) async fn end_leftovers(&self) -> Result<()> {
        self.end_sessions(&[APPLICATION, DUMPING]).await
    }

    /// Ends the dumps that an interrupted run has left: Podman does not end a program in a container with its client. A
    /// migration would wait for them, and the gateway for the migration.
    pub(crate) async fn end_dumps(&self) -> Result<()> {
        self.end_sessions(&[DUMPING]).await
    }

    async fn end_sessions(&self, applications: &[&str]) -> Result<()> {
        let names: Vec<String> = applications.iter().map(|name| literal(name)).collect();
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ({}) AND backend_type = 'client backend' AND pid <> pg_backend_pid();\n",
            names.join(", ")
        );
        self.maintain(&sql).await
    }

    /// Renames databases, all of them or none: `from` to `to`, in this order. Sessions in them are
    /// ended.
    ///
    /// # Errors
    /// With the server's words; nothing is renamed then.
    pub(crate) async fn rename(&self, steps: &[(&str, &str)]) -> Result<()> {
        let mut script = String::from("BEGIN;\n");
        for (from, _) in steps {
            script.push_str(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid();\n",
                literal(from)
            ));
        }
        for (from, to) in steps {
            script.push_str(&format!(
                "ALTER DATABASE {} RENAME TO {};\n",
                identifier(from),
                identifier(to)
            ));
        }
        script.push_str("COMMIT;\n");
        // Another client may connect in between, so it tries again.
        for _ in 1..5 {
            if self.maintain(&script).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        let last = self.maintain(&script).await;
        last.context("can't swap the databases")
    }
}

/// A database that every server has, and which is not `database`.
fn other_than(database: &str) -> &'static str {
    if database == "postgres" {
        "template1"
    } else {
        "postgres"
    }
}

const PSQL: &[&str] = &[
    "psql",
    "--no-psqlrc",
    "--no-align",
    "--tuples-only",
    "--quiet",
    "--no-password",
    "--set=ON_ERROR_STOP=1",
    "--file=-",
];

/// An open transaction, whose snapshot other sessions can use.
#[derive(Debug)]
pub(crate) struct Snapshot {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// The snapshot's name, for `pg_dump`.
    pub name: String,
    contents: Contents,
}

impl Snapshot {
    async fn ask(&mut self, sql: &str) {
        // If psql has ended, reading returns the cause.
        let _ = self.stdin.write_all(sql.as_bytes()).await;
        let _ = self.stdin.flush().await;
    }

    async fn line(&mut self) -> Result<String> {
        let line = self.lines.next_line().await;
        if let Some(line) = line.context("can't read psql's messages")? {
            return Ok(line);
        }
        let mut words = Vec::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_end(&mut words).await;
        }
        Err(refused("psql", &words))
    }

    /// The size of the database, indexes included.
    pub(crate) fn size(&self) -> u64 {
        self.contents.size
    }

    /// The server's version.
    pub(crate) fn server_version(&self) -> &str {
        &self.contents.server_version
    }

    /// Counts all objects, and the rows of all tables or only of those that do not take long. The transaction ends when this
    /// value is dropped: `pg_dump` may still need it.
    pub(crate) async fn count(&mut self, all: bool) -> Result<Contents> {
        let counted = if all { "true" } else { QUICK };
        self.ask(&contents_script("true", counted)).await;
        loop {
            let line = self.line().await?;
            if line == "end" {
                return Ok(self.contents.clone());
            }
            add(&mut self.contents, parse(&line)?);
        }
    }
}

fn add(contents: &mut Contents, counted: Counted) {
    match counted {
        Counted::Table {
            table,
            count: Some(count),
        } => {
            contents.rows.insert(table, count);
        }
        Counted::Table { table, count: None } => {
            contents.uncounted.insert(table);
        }
        Counted::Kind { kind, count } => {
            contents.objects.insert(kind, count);
        }
    }
}

/// Is true of the tables of these names, in SQL.
fn among<'a>(tables: impl IntoIterator<Item = &'a String>) -> String {
    let names: Vec<String> = tables.into_iter().map(|table| literal(table)).collect();
    format!(
        "nspname || '.' || relname = ANY (ARRAY[{}]::text[])",
        names.join(", ")
    )
}

fn parse<T: for<'de> Deserialize<'de>>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("unexpected answer of psql: {line:?}"))
}

/// Whether the roles that a dump names are missing, as on a rebuilt host.
pub(crate) fn is_missing_role(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("role \"") && text.contains("does not exist")
}

/// Whether a failed program lost PostgreSQL or its container, by its words.
pub(crate) fn is_of_the_server(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    [
        "connection to server",
        "no connection to the server",
        "server closed the connection",
        "terminating connection",
        // Of Podman.
        "pg_restore: Error: ",
        "can't run podman",
        // Killed.
        NO_MESSAGE,
    ]
    .iter()
    .any(|words| text.contains(words))
}

const NO_MESSAGE: &str = "it ended without a message";

fn refused(program: &str, stderr: &[u8]) -> anyhow::Error {
    match String::from_utf8_lossy(stderr).trim() {
        "" => anyhow::anyhow!("{program}: {NO_MESSAGE}"),
        words => anyhow::anyhow!("{program}: {words}"),
    }
}

/// Quotes a name for SQL.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text for SQL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name for a database of this program's own: `purpose` and the backup it comes from.
pub(crate) fn scratch_name(
    purpose: &str,
    id: &crate::deployment::operation_id::OperationId,
) -> String {
    let id = id.as_str().to_ascii_lowercase().replace('-', "_");
    format!("{PREFIX}{purpose}_{id}")
}

/// Enlarges the pipe, for fewer switches between the processes. A refusal only costs speed.
fn widen(pipe: &PipeReader) {
    let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1 << 20));
}

/// A writer without errors, so that `pg_restore`'s own message is reported, not "broken pipe".
struct Forgiving {
    inner: io::PipeWriter,
    broken: bool,
}

impl Write for Forgiving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Ok(bytes.len());
        }
        match self.inner.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.broken = true;
                Ok(bytes.len())
            }
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The mode in which libpq verifies the name of the server, too.
const VERIFY_FULL: &str = "verify-full";

/// `DATABASE_URL` as libpq's variables, and the database's name. Parameters that only Prisma knows
/// (`connection_limit` and others) are left out.
pub(crate) fn parse_url(url: &SecretString) -> Result<(Vec<(&'static str, SecretString)>, String)> {
    let wrong = |problem: &str| {
        anyhow::Error::from(
            Failure::config(format!("DATABASE_URL {problem}, so pg_dump can't use it"))
                .hint("write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
        )
    };
    let socket = database_url::socket_directory(url.expose_secret());
    // Of a sealed one, nothing else looks at it.
    if socket.is_none() && database_url::host_parameter(url.expose_secret()).is_some() {
        return Err(wrong("has the parameter host"));
    }
    let url = reqwest::Url::parse(url.expose_secret()).map_err(|_| wrong("is not a URL"))?;
    let decode = |text: &str| -> Result<SecretString> {
        let text = percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| wrong("is not valid UTF-8"))?;
        if text.contains(['\n', '\0']) {
            return Err(wrong("holds a line break"));
        }
        Ok(text.as_ref().into())
    };
    let host = url
        .host_str()
        .filter(|host| !host.is_empty())
        .ok_or_else(|| wrong("names no host"))?;
    let host = socket.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
    let database = decode(url.path().trim_start_matches('/'))?
        .expose_secret()
        .to_owned();
    if database.is_empty() {
        return Err(wrong("names no database"));
    }
    let mut variables = vec![
        ("PGHOST", host.into()),
        ("PGPORT", url.port().unwrap_or(5432).to_string().into()),
        ("PGUSER", decode(url.username())?),
        ("PGPASSWORD", decode(url.password().unwrap_or_default())?),
        ("PGDATABASE", database.as_str().into()),
    ];
    // What Prisma calls strict is libpq's verify-full, unless the authority is a file in the gateway's container.
    let has = |name: &str, other: &str| {
        url.query_pairs()
            .any(|(key, value)| key == name && value != other)
    };
    let is_strict = has("sslaccept", "accept_invalid_certs") && !has("sslcert", "");
    for (name, value) in url.query_pairs() {
        let variable = match &*name {
            "sslmode" if is_strict && value == "require" => {
                variables.push(("PGSSLMODE", VERIFY_FULL.into()));
                continue;
            }
            "sslmode" => "PGSSLMODE",
            "options" => "PGOPTIONS",
            "channel_binding" => "PGCHANNELBINDING",
            "connect_timeout" => "PGCONNECT_TIMEOUT",
            _ => continue,
        };
        variables.push((variable, decode(&value)?));
    }
    Ok((variables, database))
}

/// Whether the server's certificate is to be verified, for which libpq needs a file of authorities.
fn is_verified(variables: &[(&str, SecretString)]) -> bool {
    variables.iter().any(|(name, value)| {
        *name == "PGSSLMODE" && ["verify-ca", VERIFY_FULL].contains(&value.expose_secret())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_as_variables() {
        let url = "postgresql://me%40x:p%2Fw@db.example.org:6432/my%20db?sslmode=require&connection_limit=5";
        let (variables, database) = parse_url(&url.into()).unwrap();
        assert_eq!(database, "my db");
        let text: Vec<String> = variables
            .iter()
            .map(|(name, value)| format!("{name}={}", value.expose_secret()))
            .collect();
        assert_eq!(
            text,
            [
                "PGHOST=db.example.org",
                "PGPORT=6432",
                "PGUSER=me@x",
                "PGPASSWORD=p/w",
                "PGDATABASE=my db",
                "PGSSLMODE=require"
            ]
        );
    }

    #[test]
    fn urls_with_a_socket() {
        let url = "postgresql://me:pw@localhost:5433/llm?host=%2Frun%2Fpostgresql";
        let (variables, _) = parse_url(&url.into()).unwrap();
        let of_server: Vec<&str> = { variables.iter() }
            .filter(|(name, _)| ["PGHOST", "PGPORT"].contains(name))
            .map(|(_, value)| value.expose_secret())
            .collect();
        assert_eq!(of_server, ["/run/postgresql", "5433"]);
    }

    #[test]
    fn urls_that_verify_the_server() {
        for (options, mode, verified) in [
            ("sslmode=require", "require", false),
            (
                "sslmode=require&sslaccept=accept_invalid_certs",
                "require",
                false,
            ),
            ("sslmode=require&sslaccept=strict", "verify-full", true),
            ("sslaccept=strict&sslmode=require", "verify-full", true),
            ("sslaccept=strict&sslmode=prefer", "prefer", false),
            (
                "sslmode=require&sslaccept=strict&sslcert=/app/files/ca.pem",
                "require",
                false,
            ),
            ("sslmode=verify-full&schema=llm", "verify-full", true),
            ("sslmode=verify-ca", "verify-ca", true),
        ] {
            let url = format!("postgresql://me:pw@db.example.org/llm?{options}");
            let (variables, _) = parse_url(&url.into()).unwrap();
            let modes: Vec<&str> = variables
                .iter()
                .filter(|(name, _)| *name == "PGSSLMODE")
                .map(|(_, value)| value.expose_secret())
                .collect();
            assert_eq!(modes, [mode], "{options}");
            assert_eq!(is_verified(&variables), verified, "{options}");
        }
    }

    #[test]
    fn urls_that_pg_dump_can_not_use() {
        let error = parse_url(&"postgresql://me:pw@db.example.org".into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "DATABASE_URL names no database, so pg_dump can't use it"
        );
        let error = parse_url(&"postgresql://me:pw@one/x?a=b&host=two".into()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "DATABASE_URL has the parameter host, so pg_dump can't use it"
        );
    }

    #[test]
    fn names_in_sql() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("a'b"), "'a''b'");
    }

    #[test]
    fn names_of_scratch_databases_fit() {
        let id =
            crate::deployment::operation_id::OperationId::parse("20260131T120000Z-0a1b2c").unwrap();
        assert_eq!(
            scratch_name("replaced", &id),
            "litellm_units_replaced_20260131t120000z_0a1b2c"
        );
    }
}

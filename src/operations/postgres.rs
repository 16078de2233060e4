//! From one major version of PostgreSQL to another and back: a second cluster beside the current one, filled and then
//! swapped with it.
//!
//! The rows are replicated while the gateway serves. Where that is not possible, `pg_dump` and `pg_restore` copy them while
//! the gateway is stopped. From its stop on, requests wait, and the current server refuses writes. The current cluster is in
//! use again after any failure or interruption until the new server has shown that it has the same rows; no gateway connects
//! to a database while that is open. Later, returning loses writes, so only the operator does it. The replaced cluster is
//! kept until the next backup.

mod replication;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::backup::database::Server;
use super::backup::wal;
use super::backup::{self, BackupOptions};
use super::install::{self, ReleaseTarget};
use super::upgrade::{new_rows, set_image};
use super::{pull, rotation, stack};
use crate::deployment::completion::container_owner;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::ledger::ReleaseVerb;
use crate::deployment::postgres_sizes;
use crate::deployment::settings::{Database, Settings, parse_env, read_env};
use crate::deployment::snapshot;
use crate::error::{self, Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::job::{JobType, Jobs};
use crate::image::ImageReference;
use crate::output::{Meter, Progress, bytes, duration};
use crate::quadlet::{self, NEXT_SERVER};
use crate::service::Service;
use replication::Replication;

/// The variable of `.env` with the image.
const IMAGE: &str = "POSTGRES_IMAGE";
/// How long an image may take to say which version it has.
const VERSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between two questions to a server that starts.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// What an empty cluster needs on the disk.
const EMPTY_CLUSTER: u64 = 64 << 20;

/// How far a change came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// The replaced cluster is still in place.
    Copying,
    /// The clusters may be swapped, and the new server has not shown its rows.
    Switching,
    /// The new server has the rows, and the gateway may write.
    Switched,
    /// The gateway was ready with it.
    Done,
}

/// A change as it is recorded on disk: an unfinished one, or the last one while the replaced cluster is kept.
#[derive(Clone, Deserialize, Serialize)]
struct ClusterRecord {
    verb: ReleaseVerb,
    state: State,
    /// The images before and after, as `.env` names them.
    from: String,
    to: String,
    /// `.env` before and after, while the change is unfinished.
    env_before: String,
    env_after: String,
    /// The inode of the cluster that is to be replaced, which tells whether the two are swapped.
    inode: u64,
    /// When the gateway's database got into the cluster that is in use, and its rows then.
    since: String,
    rows: BTreeMap<String, u64>,
    /// The next transaction of the new server before the gateway was started.
    transaction: Option<u64>,
    /// The identifier of the new cluster, in which the names of the replication slots on the current server end.
    #[serde(default)]
    replicated: Option<String>,
    /// The record of the change that this one undoes.
    before: Option<Box<ClusterRecord>>,
}

impl ClusterRecord {
    fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "remove it when PostgreSQL has the right data";
        files::load_record(&paths.postgres_record(), hint)
    }

    fn save(&self, paths: &Paths) -> Result<()> {
        files::private_directory(&paths.state()).path_context("can't create", paths.state())?;
        files::save_record(&paths.postgres_record(), self)
    }

    /// Its state is always the one on the disk.
    fn reached(&mut self, paths: &Paths, state: State) -> Result<()> {
        let before = std::mem::replace(&mut self.state, state);
        let saved = self.save(paths);
        if saved.is_err() {
            self.state = before;
        }
        saved
    }

    /// The new cluster stays in use, and the other one is kept. If the disk refuses, the next command does it.
    fn end(&mut self, paths: &Paths, progress: &Progress) {
        let ended = keep_other(paths).and_then(|()| {
            self.before = None;
            // Secrets are in them.
            self.env_before.clear();
            self.env_after.clear();
            self.reached(paths, State::Done)
        });
        if let Err(error) = ended {
            progress.warn(&format!(
                "{} is in use, but its record is not complete; the next command completes it: {error:#}",
                self.to
            ));
        }
    }

    fn is_swapped(&self, paths: &Paths) -> Result<bool> {
        Ok(inode(&paths.postgres_data())? != self.inode)
    }

    /// Has `.env` name `image`, one of the two, and installs the units with it. Returns their settings.
    async fn install(&self, host: &Host, image: &str) -> Result<Settings> {
        let path = host.paths.env_file();
        let present = read_env(&path)?;
        let (wanted, other) = if *image == self.to {
            (&self.env_after, &self.env_before)
        } else {
            (&self.env_before, &self.env_after)
        };
        let text = if present == *other {
            wanted.clone()
        } else {
            // Edited since, or right already.
            let mut env = parse_env(&present, &path)?;
            if Settings::from_env(&env, &path)?
                .image(Service::Postgres)
                .is_none_or(|present| present.as_str() != image)
            {
                set_image(&mut env, IMAGE, image, &path)?;
            }
            env.text().to_owned()
        };
        if text != present {
            files::write_atomically(&path, text.as_bytes(), 0o600)?;
        }
        let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
        prepared.apply(host).await?;
        Ok(prepared.installed().clone())
    }

    /// The change, in words.
    fn words(&self) -> String {
        format!("the {} of PostgreSQL to {}", self.verb, self.to)
    }
}

/// A change of the cluster, worked out and not begun.
pub(crate) struct ClusterPlan {
    verb: ReleaseVerb,
    from: ImageReference,
    to: ImageReference,
    /// The settings of the running stack.
    settings: Settings,
    /// What has to be copied, in bytes, and why that is not possible while the gateway serves; if the server runs.
    size: Option<(u64, Option<String>)>,
    /// Of the change that is to be undone.
    done: Option<ClusterRecord>,
}

impl ClusterPlan {
    /// The change to the version in `image`.
    pub(crate) async fn upgrade(host: &Host, image: &ImageReference) -> Result<Self> {
        let (settings, from) = current(host).await?;
        if from == *image {
            return Err(Failure::new(format!("{image} is the current image of PostgreSQL"))
                .hint("name an image of a later version, e.g. `litellm-units upgrade --postgres docker.io/library/postgres:18`")
                .into());
        }
        let unit = host.systemd().await?.unit(Service::Postgres.unit()).await?;
        let size = if unit.is_active() {
            let server = Server::new(host, &settings).await?;
            let databases = server.databases().await?;
            let size = databases.iter().map(|(_, size)| size).sum();
            Some((size, replication::examine(&server).await?.err()))
        } else {
            None
        };
        Ok(Self {
            verb: ReleaseVerb::Upgrade,
            from,
            to: image.clone(),
            size,
            settings,
            done: None,
        })
    }

    /// The change back to the cluster that the last one has replaced.
    ///
    /// # Errors
    /// When there is none, and as for an upgrade.
    pub(crate) async fn rollback(host: &Host) -> Result<Self> {
        let (settings, from) = current(host).await?;
        let done = ClusterRecord::load(&host.paths)?.filter(|done| done.state == State::Done);
        let cluster = host.paths.postgres_previous();
        let Some(done) = done.filter(|_| cluster.exists()) else {
            return Err(Failure::new("there is no previous cluster of PostgreSQL")
                .hint("it is kept until the next backup; to restore older data: `litellm-units backup list`, then `litellm-units restore`")
                .into());
        };
        Ok(Self {
            verb: ReleaseVerb::Rollback,
            from,
            to: ImageReference::parse(&done.from)?,
            settings,
            size: None,
            done: Some(done),
        })
    }

    /// What will be done, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let serves = matches!(self.size, Some((_, None)));
        let mut lines = vec![format!(
            "{} PostgreSQL {} -> {}",
            self.verb, self.from, self.to
        )];
        lines.extend(
            match &self.done {
                None => vec![
                    "  pull        the image, if it is missing; nothing is stopped",
                    "  check       versions, space, and the schema in a new cluster beside the current one",
                    "  backup      the database and the configuration, while the gateway serves",
                    if serves {
                        "  copy        roles and databases, and compare rows, while the gateway serves"
                    } else {
                        "  copy        roles and databases; the gateway is stopped, and requests wait"
                    },
                    "  compare     tables, indexes and rows; the gateway is stopped, and requests wait",
                    "  switch      clusters, .env, units and gateway",
                    "  if a step fails, the current cluster is used again, with every write",
                    "  the current cluster is kept until the next backup; to return to it: `litellm-units rollback --postgres`",
                ],
                Some(_) => vec![
                    "  switch      clusters, .env, units and gateway; requests wait",
                    "  if a step fails, the current cluster is used again",
                    "  the current cluster is kept until the next backup",
                ],
            }
            .into_iter()
            .map(str::to_owned),
        );
        match &self.size {
            Some((size, None)) => lines.push(format!(
                "  {} have to be copied; requests wait for the switch only",
                bytes(*size)
            )),
            Some((size, Some(obstacle))) => {
                lines.push(format!(
                    "  {} have to be copied, and the gateway is stopped for as long as that takes: {obstacle}",
                    bytes(*size)
                ));
                if obstacle.contains("wal_level") {
                    lines.push(self.hint());
                }
            }
            None => {}
        }
        if let Some(done) = &self.done {
            lines.push(format!(
                "  what was written since {} is not in the previous cluster",
                done.since
            ));
        }
        lines
    }

    /// How the next copy is made while the gateway serves.
    fn hint(&self) -> String {
        let user = match &self.settings.database {
            Database::Local { user, .. } => user,
            Database::External { .. } => "postgres",
        };
        format!(
            "  to copy while the gateway serves, first run: `litellm-units exec postgres psql -U {user} -d postgres -c \"ALTER SYSTEM SET wal_level = 'logical'\"`, then `litellm-units restart postgres`"
        )
    }

    /// What a rollback loses, in words.
    pub(crate) async fn losses(&self, host: &Host) -> Result<String> {
        let Some(done) = &self.done else {
            return Ok(String::new());
        };
        let unit = host.systemd().await?.unit(Service::Postgres.unit()).await?;
        let count = if unit.is_active() {
            let server = Server::new(host, &self.settings).await?;
            let contents = server.contents(&server.database).await?;
            new_rows(&done.rows, &contents.rows)
        } else {
            " (the server does not run, so nothing is counted)".to_owned()
        };
        Ok(format!(
            "everything written since {} is lost{count}",
            done.since
        ))
    }

    /// Does it.
    ///
    /// # Errors
    /// When a step fails; the message says which cluster is in use.
    pub(crate) async fn carry_out(self, host: &Host, timeout: Duration) -> Result<()> {
        // From here on, Ctrl-C fails the current step instead of killing the program.
        let _interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        let paths = &host.paths;
        refuse_mounted(paths)?;
        refuse_no_exchange(paths)?;
        pull::pull_those(host, &self.settings, vec![&self.to]).await?;
        let sizes = if self.done.is_none() {
            stack::start_database(host, &self.settings, timeout).await?;
            self.prepare(host).await?
        } else {
            Vec::new()
        };
        let path = paths.env_file();
        let env_before = read_env(&path)?;
        let mut env = parse_env(&env_before, &path)?;
        set_image(&mut env, IMAGE, self.to.as_str(), &path)?;
        let mut record = ClusterRecord {
            verb: self.verb,
            state: State::Copying,
            from: self.from.to_string(),
            to: self.to.to_string(),
            env_before,
            env_after: env.text().to_owned(),
            inode: inode(&paths.postgres_data())?,
            since: String::new(),
            rows: BTreeMap::new(),
            transaction: None,
            replicated: None,
            before: self.done.clone().map(Box::new),
        };
        record.save(paths)?;
        fail::fail_point!("postgres-recorded");
        let begin = Instant::now();
        let attempt = Box::pin(self.forward(host, &mut record, &sizes, timeout)).await;
        let down = match attempt {
            Ok(down) => down,
            Err(error) => return Err(failed(host, record, timeout, error).await),
        };
        host.progress.say(&format!(
            "{} is running; the {} took {}, and requests waited for {}",
            record.to,
            record.verb,
            duration(begin.elapsed()),
            duration(down)
        ));
        host.progress.say(&format!(
            "the previous cluster is kept in {} until the next backup; to return to it: `litellm-units rollback --postgres`",
            paths.postgres_previous().display()
        ));
        Ok(())
    }

    /// Checks; then makes a backup. Nothing is stopped. Returns the sizes of the new cluster.
    async fn prepare(&self, host: &Host) -> Result<Vec<(&'static str, String)>> {
        let paths = &host.paths;
        let server = Server::new(host, &self.settings).await?;
        let before = server.version().await?;
        let after = version(host, &self.to).await?;
        self.refuse_version(paths, &before, &after)?;
        let size: u64 = server.databases().await?.iter().map(|(_, size)| size).sum();
        let copy = backup::filled(size).saturating_add(EMPTY_CLUSTER);
        backup::refuse_full_disks(paths, size, copy)?;
        let sizes = major(&after)
            .map(postgres_sizes::of_this_host)
            .unwrap_or_default();
        let lost = lost_settings(&server.own_settings().await?, &sizes);
        if !lost.is_empty() {
            host.progress.warn(&format!(
                "the new cluster does not have the changed settings of the current one: {}; set them again afterwards",
                lost.join(", ")
            ));
        }
        let left = server.other_databases().await?;
        if !left.is_empty() {
            host.progress.warn(&format!(
                "the new cluster does not get the databases that `restore` has kept, that are templates or that accept no connections: {}; the previous cluster has them until the next backup",
                left.join(", ")
            ));
        }
        host.progress.say(&format!(
            "PostgreSQL {} -> {}, {}",
            short(&before),
            short(&after),
            bytes(size)
        ));
        let options = BackupOptions {
            retention: None,
            to_go_back: Some(snapshot::keep(paths)?),
            ..BackupOptions::default()
        };
        Box::pin(backup::create(host, &self.settings, &options)).await?;
        // The current one takes its place.
        forget_previous(host)?;
        Ok(sizes)
    }

    fn refuse_version(&self, paths: &Paths, before: &str, after: &str) -> Result<()> {
        let (Some(old), Some(new)) = (major(before), major(after)) else {
            anyhow::bail!("can't compare the versions {before:?} and {after:?} of PostgreSQL");
        };
        if new < old {
            return Err(Failure::new(format!(
                "{} has PostgreSQL {new}, and the data is of PostgreSQL {old}: an older version can't read it",
                self.to
            ))
            .hint("name an image of a later version; the command before it was used: `litellm-units rollback --postgres`")
            .into());
        }
        // Musl and glibc sort text differently, so the indexes of one are wrong for the other.
        if new == old && self.from.is_alpine() == self.to.is_alpine() {
            return Err(Failure::new(format!(
                "{} has PostgreSQL {new}, as the current image: nothing has to be copied",
                self.to
            ))
            .hint(format!(
                "set {IMAGE}={} in {}, then run `litellm-units apply`",
                self.to,
                paths.env_file().display()
            ))
            .into());
        }
        Ok(())
    }

    /// Returns how long the gateway did not serve.
    async fn forward(
        &self,
        host: &Host,
        record: &mut ClusterRecord,
        sizes: &[(&str, String)],
        timeout: Duration,
    ) -> Result<Duration> {
        let paths = &host.paths;
        let mut counted = None;
        let begin = if self.done.is_none() {
            self.start_next(host, sizes, timeout).await?;
            let original = Server::new(host, &self.settings).await?;
            let definitions = replication::definitions(&original).await?;
            let (current, next) = self.rehearse(host).await?;
            fail::fail_point!("postgres-rehearsed");
            let replication = replicate(host, record, (&current, &next)).await?;
            let begin = Instant::now();
            let gateway = host.systemd().await?.unit(Service::Litellm.unit()).await?;
            stack::stop(host, &[Service::Litellm.unit()], timeout).await?;
            fail::fail_point!("postgres-stopped");
            if replication.is_some() && gateway.is_active() {
                warm_up(host).await?;
            }
            current.refuse_writes().await?;
            if let Some(replication) = replication {
                let ((rows, tables), present) = tokio::try_join!(
                    replication.complete(timeout),
                    replication::definitions(&original)
                )?;
                refuse_other_definitions(&definitions, &present)?;
                record.rows = rows;
                counted = Some(tables);
            } else {
                record.rows = copy(host, &current, &next, &[]).await?;
            }
            record.since = now();
            fail::fail_point!("postgres-copied", |_| anyhow::bail!("a test says so"));
            install::remove_temporary(host, NEXT_SERVER).await?;
            begin
        } else {
            let begin = Instant::now();
            stack::stop(host, &[Service::Litellm.unit()], timeout).await?;
            std::fs::rename(paths.postgres_previous(), paths.postgres_next())
                .context("can't rename the previous cluster")?;
            files::sync_directory(&paths.data())?;
            begin
        };
        record.reached(paths, State::Switching)?;
        fail::fail_point!("postgres-switching");
        stack::stop(host, &[Service::Postgres.unit()], timeout).await?;
        files::exchange(&paths.postgres_data(), &paths.postgres_next())?;
        fail::fail_point!("postgres-swapped");
        let settings = record.install(host, &record.to).await?;
        fail::fail_point!("postgres-configured", |_| anyhow::bail!("a test says so"));
        stack::start_database(host, &settings, timeout).await?;
        let server = Server::new(host, &settings).await?;
        if self.done.is_some() {
            server.accept_writes().await?;
            // It has the password that was current when it was replaced.
            rotation::renew_postgres_password(host, &settings, timeout).await?;
        }
        let contents = match &counted {
            Some(tables) => server.contents_of(&server.database, tables).await?,
            None => server.contents(&server.database).await?,
        };
        if self.done.is_none() {
            let mut wanted = record.rows.clone();
            wanted.retain(|table, _| counted.as_ref().is_none_or(|tables| tables.contains(table)));
            refuse_differences(&wanted, &contents.rows, &record.to)?;
        }
        record.rows.extend(contents.rows);
        record.since = now();
        record.transaction = Some(server.next_transaction().await?);
        record.reached(paths, State::Switched)?;
        fail::fail_point!("postgres-switched");
        finish(host, record, &settings, timeout).await?;
        Ok(begin.elapsed())
    }

    /// Copies the schema, to find what the new version lacks before anything is stopped. Returns the two servers, the
    /// current one through the programs of the version with which that worked.
    async fn rehearse<'a>(&self, host: &'a Host) -> Result<(Server<'a>, Server<'a>)> {
        let (current, next) = Server::pair(host, &self.settings).await?;
        let Err(error) = copy(host, &current, &next, &["--schema-only"]).await else {
            return Ok((current, next));
        };
        // A minor release may add to the catalog what only its own pg_dump leaves out.
        let current = Server::new(host, &self.settings).await?;
        match copy(host, &current, &next, &["--schema-only"]).await {
            Ok(_) => Ok((current, next)),
            Err(_) => Err(error),
        }
    }

    /// Starts a server of the new version with an empty cluster beside the current one.
    async fn start_next(
        &self,
        host: &Host,
        sizes: &[(&str, String)],
        timeout: Duration,
    ) -> Result<()> {
        let paths = &host.paths;
        let place = paths.postgres_next();
        files::remove_directory(&place)?;
        files::make_directory(&place, 0o700)?;
        // Rootless, the container's user is mapped to the caller.
        if paths.scope == Scope::System
            && let Some((uid, gid)) = container_owner(Service::Postgres, &self.to)
        {
            std::os::unix::fs::chown(&place, Some(uid), Some(gid))
                .path_context("can't change the owner of", &place)?;
        }
        let unit = |settings: &Settings, context: &quadlet::RenderContext<'_>| {
            let initdb = postgres_sizes::initdb_arguments(sizes);
            quadlet::next_server(settings, &self.to, initdb.as_deref(), context)
        };
        install::add_temporary(host, &self.settings, unit).await?;
        host.progress
            .say("starting the new server beside the current one");
        let unit = format!("{NEXT_SERVER}.service");
        stack::run(host, &unit, timeout).await?;
        let since = jiff::Timestamp::now();
        let deadline = Instant::now() + timeout;
        let (_, next) = Server::pair(host, &self.settings).await?;
        let systemd = host.systemd().await?;
        // The server that fills a new cluster listens on its socket only.
        while let Err(error) = next.version().await {
            let is_over = systemd.unit(&unit).await?.is_stopped();
            if is_over || Instant::now() >= deadline {
                let error = error.context("the new server does not answer");
                return Err(stack::failed(systemd, &unit, &format!("{error:#}"), since).await);
            }
            tokio::time::sleep(ASK_INTERVAL).await;
        }
        Ok(())
    }
}

/// Copies everything while the gateway serves; `None` if that is not possible.
async fn replicate<'a>(
    host: &'a Host,
    record: &mut ClusterRecord,
    servers: (&'a Server<'a>, &'a Server<'a>),
) -> Result<Option<Replication<'a>>> {
    let databases = match replication::examine(servers.0).await? {
        Ok(databases) => databases,
        Err(obstacle) => {
            host.progress.say(&format!(
                "the gateway has to be stopped for the copy: {obstacle}"
            ));
            return Ok(None);
        }
    };
    let system = replication::identify(servers.1).await?;
    record.replicated = Some(system.clone());
    record.save(&host.paths)?;
    let mut replication = Replication::new(host, servers, databases, system);
    replication.copy().await?;
    Ok(Some(replication))
}

/// Copies everything from one server to the other, and compares the two. Returns the rows of the gateway's database.
async fn copy(
    host: &Host,
    current: &Server<'_>,
    next: &Server<'_>,
    options: &[&str],
) -> Result<BTreeMap<String, u64>> {
    let is_complete = options.is_empty();
    let databases = current.databases().await?;
    let size = databases.iter().map(|(_, size)| size).sum();
    if is_complete {
        host.progress
            .say(&format!("copying the database ({})", bytes(size)));
    }
    current.copy_roles(next).await?;
    let mut rows = BTreeMap::new();
    let meter = Meter::new("copied", size, &host.progress);
    for (name, _) in &databases {
        let copied = current.copy(next, name, options, &meter).await;
        meter.clear();
        copied.map_err(|error| {
            Failure::new(format!(
                "database {name} can't be copied to the new version"
            ))
            .hint("if the image lacks an extension, name one that has it; else change the database as the message says, then run the same command again")
            .caused_by(without_command(&error))
        })?;
        if !is_complete {
            continue;
        }
        let wanted = current.contents(name).await?;
        let found = next.contents(name).await?;
        let differences = wanted.differences(&found);
        if !differences.is_empty() {
            return Err(Failure::new(format!(
                "the copy of database {name} differs from the original:\n  {}",
                differences.join("\n  ")
            ))
            .into());
        }
        // The planner would have no statistics until autovacuum runs.
        next.query(name, "ANALYZE;\n").await?;
        if *name == current.database {
            rows = found.rows;
        }
    }
    Ok(rows)
}

/// Refuses a copy with the roles and the schema of an earlier moment: only rows are replicated.
fn refuse_other_definitions(before: &str, after: &str) -> Result<()> {
    if before == after {
        return Ok(());
    }
    Err(
        Failure::new("roles, settings or the schema have changed while the database was copied")
            .hint("run the same command again")
            .into(),
    )
}

/// The error of `pg_restore` without the statement, which can be long.
fn without_command(error: &anyhow::Error) -> anyhow::Error {
    let text = format!("{error:#}");
    let end = text.find("\nCommand was: ").unwrap_or(text.len());
    anyhow::anyhow!("{}", &text[..end])
}

/// While it exists, a gateway that starts waits behind its imports (`units/serve.py`), which take most of its start. It has
/// no connection to a database then.
fn hold(paths: &Paths) -> PathBuf {
    paths.runtime_state().join(quadlet::DEBUG).join("hold")
}

/// Begins the start of the gateway, which does not go on before [`hold`] is removed.
async fn warm_up(host: &Host) -> Result<()> {
    files::write_atomically(&hold(&host.paths), b"", 0o644)?;
    let mut jobs = Jobs::new(host.systemd().await?).await?;
    jobs.ask(JobType::Start, Service::Litellm.unit()).await
}

/// Finishes a change after the new server has shown its rows.
async fn finish(
    host: &Host,
    record: &mut ClusterRecord,
    settings: &Settings,
    timeout: Duration,
) -> Result<()> {
    fail::fail_point!("postgres-not-ready", |_| anyhow::bail!("a test says so"));
    files::remove_existing(&hold(&host.paths))?;
    stack::bring_up(host, settings, timeout).await?;
    record.end(&host.paths, &host.progress);
    Ok(())
}

/// Keeps the cluster that is not in use as the previous one.
fn keep_other(paths: &Paths) -> Result<()> {
    if !paths.postgres_next().exists() {
        return Ok(());
    }
    std::fs::rename(paths.postgres_next(), paths.postgres_previous())
        .context("can't rename the previous cluster")?;
    files::sync_directory(&paths.data())
}

/// Returns to the replaced cluster, and gives the error to report. After the switch only if nothing was written since.
async fn failed(
    host: &Host,
    record: ClusterRecord,
    timeout: Duration,
    error: anyhow::Error,
) -> anyhow::Error {
    let words = record.words();
    host.progress.say(&format!("{error:#}"));
    if record.state == State::Switched {
        match is_unwritten(host, &record, timeout).await {
            Ok(true) => {}
            Ok(false) => return stay(host, record, error).await,
            Err(second) => {
                return Failure::new(format!(
                    "{words} is not complete, and it is not known whether something was written since the switch"
                ))
                .hint("fix the cause, then run `litellm-units up`, which finishes it; no data was removed")
                .caused_by(second.context(error))
                .into();
            }
        }
    }
    host.progress
        .say(&format!("{words} failed: returning to {}", record.from));
    let from = record.from.clone();
    let hint = error::hint(&error)
        .unwrap_or("fix what the lines above name, then run the same command again")
        .to_owned();
    let timeout = timeout.max(stack::RECOVERY_TIMEOUT);
    match Box::pin(undo(host, record, timeout)).await {
        Ok(Ok(())) => Failure::new(format!(
            "{words} failed; {from} is in use again, with every write"
        ))
        .hint(hint)
        .caused_by(error),
        Ok(Err(second)) => Failure::new(format!(
            "{words} failed; {from} is in use again, with every write, but the gateway is not ready"
        ))
        .hint("see why: `litellm-units status`")
        .caused_by(second.context(error)),
        Err(second) => Failure::new(format!("{words} failed, and so did the return to {from}"))
            .hint("fix the cause, then run `litellm-units up`, which continues the return; no data was removed")
            .caused_by(second.context(error)),
    }
    .into()
}

/// Whether the new server proves that nothing was written since the switch. What writes is stopped before it is asked;
/// the server goes on to refuse writes if it does.
async fn is_unwritten(host: &Host, record: &ClusterRecord, timeout: Duration) -> Result<bool> {
    // A second gateway does not write either, once the server refuses it.
    let units = [Service::Litellm, Service::Migrate].map(Service::unit);
    stack::stop(host, &units, timeout).await?;
    let settings = Settings::load(&host.paths.env_file())?;
    let server = Server::new(host, &settings).await?;
    server.refuse_writes().await?;
    if record.transaction == Some(server.next_transaction().await?) {
        return Ok(true);
    }
    server.accept_writes().await?;
    Ok(false)
}

/// Stays with the new cluster, which has writes that the other one lacks, and gives the error to report.
async fn stay(host: &Host, mut record: ClusterRecord, error: anyhow::Error) -> anyhow::Error {
    let start = async {
        files::remove_existing(&hold(&host.paths))?;
        record.end(&host.paths, &host.progress);
        // It was not ready in time, so nobody waits for it.
        let systemd = host.systemd().await?;
        let mut jobs = Jobs::new(systemd).await?;
        for (gateway, _) in stack::gateways(systemd).await? {
            jobs.ask(JobType::Start, gateway.unit()).await?;
        }
        Ok(())
    };
    let started: Result<()> = start.await;
    let (from, to) = (&record.from, &record.to);
    match started {
        Ok(()) => Failure::new(format!(
            "{to} is in use, but the gateway was not ready with it, and was started again"
        ))
        .hint(format!(
            "see whether it is ready now: `litellm-units status`; to return to {from} and lose what was written since: `litellm-units rollback --postgres`"
        ))
        .caused_by(error)
        .into(),
        Err(second) => second.context(error),
    }
}

/// Returns to the replaced cluster. Every step can be repeated. The data is in use again when this returns; the inner
/// result is the gateway's.
async fn undo(host: &Host, mut record: ClusterRecord, timeout: Duration) -> Result<Result<()>> {
    let paths = &host.paths;
    install::remove_temporary(host, NEXT_SERVER).await?;
    if record.state == State::Switched {
        // An interruption from here on is not to be finished with the new cluster.
        record.reached(paths, State::Switching)?;
    }
    if record.state != State::Copying {
        let units = [Service::Litellm, Service::Migrate, Service::Postgres].map(Service::unit);
        stack::stop(host, &units, timeout).await?;
        if record.is_swapped(paths)? {
            files::exchange(&paths.postgres_data(), &paths.postgres_next())?;
        }
        fail::fail_point!("postgres-swapped-back");
        record.install(host, &record.from).await?;
        record.reached(paths, State::Copying)?;
    }
    if record.before.is_none() {
        // It may be what has filled the disk.
        files::remove_directory(&paths.postgres_next())?;
    }
    let settings = Settings::load(&paths.env_file())?;
    stack::start_database(host, &settings, timeout).await?;
    let server = Server::new(host, &settings).await?;
    server.accept_writes().await?;
    files::remove_existing(&hold(paths))?;
    let gateway = stack::bring_up(host, &settings, timeout).await;
    if let Some(system) = &record.replicated {
        replication::end(&server, system).await?;
    }
    if let Some(before) = record.before {
        keep_other(paths)?;
        before.save(paths)?;
    } else {
        files::remove_existing(&paths.postgres_record())?;
    }
    Ok(gateway)
}

/// The change that was interrupted, if one was.
pub(crate) fn interrupted(paths: &Paths) -> Result<Option<String>> {
    let record = ClusterRecord::load(paths)?.filter(|record| record.state != State::Done);
    Ok(record.map(|record| format!("{} was interrupted", record.words())))
}

/// Finishes or undoes a change that was interrupted.
///
/// # Errors
/// When neither is possible; the next command tries again.
pub(crate) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    let record = ClusterRecord::load(&host.paths)?.filter(|record| record.state != State::Done);
    let Some(mut record) = record else {
        // No gateway waits for the end of a change that has ended.
        return files::remove_existing(&hold(&host.paths));
    };
    let words = record.words();
    if record.state == State::Switched {
        host.progress
            .say(&format!("{words} was interrupted: finishing it"));
        let attempt = async {
            let settings = record.install(host, &record.to).await?;
            stack::start_database(host, &settings, timeout).await?;
            // If it was interrupted while it was asked for writes.
            Server::new(host, &settings).await?.accept_writes().await?;
            finish(host, &mut record, &settings, timeout).await
        };
        return match attempt.await {
            Ok(()) => Ok(()),
            Err(error) => Err(failed(host, record, timeout, error).await),
        };
    }
    let from = record.from.clone();
    host.progress
        .say(&format!("{words} was interrupted: returning to {from}"));
    Box::pin(undo(host, record, timeout)).await??;
    host.progress
        .say(&format!("{from} is in use again, with every write"));
    Ok(())
}

/// Whether it is open which cluster stays in use: what is archived now may be of one that does not.
pub(crate) fn is_switching(paths: &Paths) -> Result<bool> {
    let record = ClusterRecord::load(paths)?;
    Ok(record.is_some_and(|record| matches!(record.state, State::Switching | State::Switched)))
}

/// The image of the cluster that the last change has brought, until a backup ends its record.
pub(crate) fn recorded_image(paths: &Paths) -> Result<Option<ImageReference>> {
    let record = ClusterRecord::load(paths)?;
    record
        .map(|record| Ok(ImageReference::parse(&record.to)?))
        .transpose()
}

/// Refuses to start a gateway while it is open which cluster has its writes.
pub(crate) fn refuse_start(paths: &Paths) -> Result<()> {
    match ClusterRecord::load(paths)? {
        Some(record) if record.state == State::Switching => {
            Err(Failure::new(format!("{} is not complete", record.words()))
                .hint(format!(
                    "{} completes it; see `litellm-units status`",
                    quadlet::RECOVERY
                ))
                .into())
        }
        _ => Ok(()),
    }
}

/// Removes the cluster that the last change has replaced, once a backup of the current one exists; and what an interruption
/// has left of one.
pub(crate) fn forget_previous(host: &Host) -> Result<()> {
    if remove_previous(&host.paths)? {
        host.progress.say(&format!(
            "removed {}, the previous cluster of PostgreSQL",
            host.paths.postgres_previous().display()
        ));
    }
    Ok(())
}

/// Whether there was a whole one.
fn remove_previous(paths: &Paths) -> Result<bool> {
    if interrupted(paths)?.is_some() {
        return Ok(false);
    }
    let place = paths.postgres_previous();
    // Nothing returns to what is half removed, and the next call removes the rest.
    let hidden = paths.postgres_removed();
    files::remove_directory(&hidden)?;
    let found = place.exists();
    if found {
        std::fs::rename(&place, &hidden).path_context("can't rename", &place)?;
        files::sync_directory(&paths.data())?;
    }
    files::remove_existing(&paths.postgres_record())?;
    files::remove_directory(&hidden)?;
    Ok(found)
}

/// The settings of the stack, and the image of its server.
async fn current(host: &Host) -> Result<(Settings, ImageReference)> {
    let prepared = install::prepare(host, ReleaseTarget::Recorded).await?;
    let settings = prepared.installed().clone();
    let Database::Local { image, .. } = &settings.database else {
        return Err(Failure::new(
            "the database is on an external server (DATABASE_URL), which litellm-units does not change",
        )
        .hint("upgrade that server with its own tools")
        .into());
    };
    if !stack::differences(host, &settings)?.is_empty() || !prepared.is_current() {
        return Err(Failure::new("edits of the configuration are not applied")
            .hint("apply them first: `litellm-units apply`")
            .into());
    }
    let image = image.clone();
    Ok((settings, image))
}

/// Asks an image which version of PostgreSQL it has: the tag may be that of something else.
async fn version(host: &Host, image: &ImageReference) -> Result<String> {
    let pinned = ImagesLock::load(&host.paths.images_lock())?.pin(image);
    let words = [
        "run",
        "--rm",
        "--pull=never",
        "--network=none",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--user=nobody",
        "--entrypoint=postgres",
        &pinned,
        "--version",
    ];
    let podman = host.podman().await?;
    let said = tokio::time::timeout(VERSION_TIMEOUT, podman.run(words))
        .await
        .map_err(|_| {
            let seconds = VERSION_TIMEOUT.as_secs();
            anyhow::anyhow!("`postgres --version` in {image} did not end within {seconds} s")
        })?
        .map_err(|error| {
            Failure::new(format!("{image} does not say which version of PostgreSQL it has"))
                .hint("name an image with the program `postgres`, e.g. `litellm-units upgrade --postgres docker.io/library/postgres:18`")
                .caused_by(error)
        })?;
    // postgres (PostgreSQL) 18.1 (Debian 18.1-1.pgdg13+2)
    let version = said.split_once(") ").map(|(_, version)| version.trim());
    Ok(version.unwrap_or(said.trim()).to_owned())
}

/// The settings that a new cluster with `sizes` does not have as they were `found`, each with its value. Left out are the
/// values that `initdb` writes, and values that may be secret.
fn lost_settings(found: &[(String, String)], sizes: &[(&str, String)]) -> Vec<String> {
    const WRITTEN: [(&str, &str); 5] = [
        ("max_connections", "100"),
        ("shared_buffers", "128MB"),
        ("max_wal_size", "1GB"),
        ("min_wal_size", "80MB"),
        // The archive sets it in the new cluster as well.
        ("max_slot_wal_keep_size", wal::LIMIT),
    ];
    let mut lost = Vec::new();
    for (name, value) in found {
        let new = sizes.iter().find(|(size, _)| size == name);
        if new.is_some_and(|(_, new)| new == value) || WRITTEN.contains(&(name, value)) {
            continue;
        }
        let is_secret = ["conninfo", "command", "passphrase", "."]
            .iter()
            .any(|part| name.contains(part));
        lost.push(match new {
            Some((_, new)) => format!("{name} = {value} (new: {new})"),
            None if is_secret => name.clone(),
            None => format!("{name} = {value}"),
        });
    }
    lost
}

/// The number before the first point.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit());
    version[..end.unwrap_or(version.len())].parse().ok()
}

/// The version without the package's.
fn short(version: &str) -> &str {
    version.split(' ').next().unwrap_or(version)
}

/// Refuses what can't be swapped by a rename.
fn refuse_mounted(paths: &Paths) -> Result<()> {
    let data = paths.postgres_data();
    let found = std::fs::symlink_metadata(&data).path_context("can't examine", &data)?;
    let parent = std::fs::metadata(paths.data()).path_context("can't examine", paths.data())?;
    if found.is_symlink() || found.dev() != parent.dev() || files::is_mounted(&data)? {
        return Err(Failure::new(format!(
            "{} is a link or mounted, so a cluster beside it can't take its place",
            data.display()
        ))
        .hint(format!(
            "mount the file system at {} instead: stop the gateway (`litellm-units down`), and move the data into its directory postgres",
            paths.data().display()
        ))
        .into());
    }
    Ok(())
}

/// Refuses a file system that can't swap two directories, before anything is stopped.
fn refuse_no_exchange(paths: &Paths) -> Result<()> {
    let place = paths.data();
    let trial = || -> Result<()> {
        let make = || tempfile::Builder::new().prefix(".swap-").tempdir_in(&place);
        let (one, other) = (make()?, make()?);
        files::exchange(one.path(), other.path())
    };
    trial().map_err(|error| {
        Failure::new(format!(
            "the file system of {} can't swap two directories in one step, so another cluster can't take the place of the current one",
            place.display()
        ))
        .hint("move the deployment to a file system that can, such as ext4, XFS or Btrfs")
        .caused_by(error)
        .into()
    })
}

fn refuse_differences(
    wanted: &BTreeMap<String, u64>,
    found: &BTreeMap<String, u64>,
    image: &str,
) -> Result<()> {
    if wanted == found {
        return Ok(());
    }
    let tables = wanted.keys().chain(found.keys());
    let different: BTreeSet<&str> = tables
        .filter(|table| wanted.get(*table) != found.get(*table))
        .map(String::as_str)
        .collect();
    let tables = different.into_iter().collect::<Vec<_>>().join(", ");
    Err(Failure::new(format!(
        "the server of {image} does not have the rows that were copied: {tables}"
    ))
    .hint(format!(
        "see its log: `litellm-units logs postgres`; look for what writes to these tables beside the gateway: {tables}"
    ))
    .into())
}

fn inode(path: &Path) -> Result<u64> {
    std::fs::metadata(path)
        .map(|found| found.ino())
        .path_context("can't examine", path)
}

fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%d %H:%M:%S UTC")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, number) in [
            ("17.7 (Debian 17.7-3.pgdg13+1)", Some(17)),
            ("18beta1", Some(18)),
            ("18", Some(18)),
            ("devel", None),
        ] {
            assert_eq!(major(text), number, "{text}");
        }
        assert_eq!(short("18.1 (Debian 18.1-1)"), "18.1");
    }

    fn record(paths: &Paths, state: State) -> ClusterRecord {
        ClusterRecord {
            verb: ReleaseVerb::Upgrade,
            state,
            from: "postgres:17".into(),
            to: "postgres:18".into(),
            env_before: "PASSWORD=a".into(),
            env_after: "PASSWORD=b".into(),
            inode: inode(&paths.postgres_data()).unwrap(),
            since: String::new(),
            rows: BTreeMap::new(),
            transaction: None,
            replicated: None,
            before: None,
        }
    }

    #[test]
    fn a_state_that_is_not_on_the_disk_is_not_reached() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let mut record = record(&paths, State::Switching);
        // As a full disk.
        std::fs::write(paths.state(), "").unwrap();
        record.reached(&paths, State::Switched).unwrap_err();
        assert_eq!(record.state, State::Switching);
        record.end(&paths, &Progress::Silent);
        assert_eq!(record.state, State::Switching);
        std::fs::remove_file(paths.state()).unwrap();
        record.end(&paths, &Progress::Silent);
        assert_eq!(record.state, State::Done);
    }

    fn paths(root: &Path) -> Paths {
        let paths = Paths::in_test(root);
        for place in [paths.postgres_data(), paths.postgres_next()] {
            std::fs::create_dir_all(place).unwrap();
        }
        paths
    }

    #[test]
    fn settings_that_get_lost_are_named() {
        let sizes = [
            ("shared_buffers", "1024MB".to_owned()),
            ("max_connections", "200".into()),
        ];
        let found = |list: &[(&str, &str)]| -> Vec<String> {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            lost_settings(&list.iter().map(owned).collect::<Vec<_>>(), &sizes)
        };
        assert_eq!(
            found(&[
                ("max_connections", "500"),
                ("shared_buffers", "1024MB"),
                ("work_mem", "8MB"),
                ("max_wal_size", "4GB"),
                ("primary_conninfo", "password=x"),
                ("some.extension", "x"),
            ]),
            [
                "max_connections = 500 (new: 200)",
                "work_mem = 8MB",
                "max_wal_size = 4GB",
                "primary_conninfo",
                "some.extension",
            ]
        );
        let initial = [
            ("max_slot_wal_keep_size", "4096MB"),
            ("max_connections", "100"),
            ("shared_buffers", "128MB"),
            ("max_wal_size", "1GB"),
            ("min_wal_size", "80MB"),
        ];
        assert_eq!(found(&initial), [] as [&str; 0]);
    }

    #[test]
    fn what_ended_keeps_no_secret() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        record(&paths, State::Switched).end(&paths, &Progress::Silent);
        let text = std::fs::read_to_string(paths.postgres_record()).unwrap();
        assert!(text.contains("postgres:18") && !text.contains("PASSWORD"));
        assert!(paths.postgres_previous().exists() && !paths.postgres_next().exists());
    }

    #[test]
    fn the_previous_cluster_is_removed_with_every_rest_of_it() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        let make = |place: &Path| {
            std::fs::create_dir_all(place).unwrap();
            std::fs::write(place.join("PG_VERSION"), "17").unwrap();
        };
        let left = || {
            let place = [paths.postgres_previous(), paths.postgres_removed()];
            place.iter().any(|place| place.exists()) || paths.postgres_record().exists()
        };
        assert!(!remove_previous(&paths).unwrap());
        make(&paths.postgres_previous());
        record(&paths, State::Done).save(&paths).unwrap();
        assert!(remove_previous(&paths).unwrap() && !left());
        // Interrupted after the rename, or before this program removed the record last.
        make(&paths.postgres_removed());
        record(&paths, State::Done).save(&paths).unwrap();
        assert!(!remove_previous(&paths).unwrap() && !left());
        make(&paths.postgres_previous());
        make(&paths.postgres_removed());
        assert!(remove_previous(&paths).unwrap() && !left());
        make(&paths.postgres_previous());
        for state in [State::Copying, State::Switching, State::Switched] {
            record(&paths, state).save(&paths).unwrap();
            assert_eq!(is_switching(&paths).unwrap(), state != State::Copying);
            assert!(!remove_previous(&paths).unwrap());
            assert!(paths.postgres_previous().exists() && paths.postgres_record().exists());
        }
    }

    #[test]
    fn directories_are_swapped_on_trial() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        refuse_mounted(&paths).unwrap();
        refuse_no_exchange(&paths).unwrap();
        assert_eq!(std::fs::read_dir(paths.data()).unwrap().count(), 2);
    }

    #[test]
    fn tables_with_other_rows_are_named() {
        let rows = |rows: &[(&str, u64)]| -> BTreeMap<String, u64> {
            rows.iter()
                .map(|(table, count)| ((*table).to_owned(), *count))
                .collect()
        };
        let wanted = rows(&[("public.a", 1), ("public.b", 2), ("public.c", 3)]);
        let found = rows(&[("public.a", 1), ("public.b", 3), ("public.d", 3)]);
        assert_eq!(
            refuse_differences(&wanted, &found, "postgres:18")
                .unwrap_err()
                .to_string(),
            "the server of postgres:18 does not have the rows that were copied: public.b, public.c, public.d"
        );
        refuse_differences(&wanted, &wanted, "postgres:18").unwrap();
    }

    #[test]
    fn the_swap_is_told_by_the_inode() {
        let root = tempfile::tempdir().unwrap();
        let paths = paths(root.path());
        record(&paths, State::Switching).save(&paths).unwrap();
        let record = ClusterRecord::load(&paths).unwrap().unwrap();
        assert!(!record.is_swapped(&paths).unwrap());
        files::exchange(&paths.postgres_data(), &paths.postgres_next()).unwrap();
        assert!(record.is_swapped(&paths).unwrap());
        assert_eq!(
            refuse_start(&paths).unwrap_err().to_string(),
            "the upgrade of PostgreSQL to postgres:18 is not complete"
        );
        assert_eq!(
            interrupted(&paths).unwrap().as_deref(),
            Some("the upgrade of PostgreSQL to postgres:18 was interrupted")
        );
    }
}

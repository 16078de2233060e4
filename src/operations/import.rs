//! From a deployment under docker compose to this one: its settings, its files and its data.
//!
//! The old gateway serves until everything is pulled and prepared. Then it stops, its database is backed up and restored
//! here, and the new gateway starts; if a step fails, the old one starts again. Of the old deployment, nothing is removed.

mod plan;
mod record;
mod rewrite;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};

use super::backup::database::Server;
use super::backup::restore::{Restore, RestoreOptions};
use super::backup::{self, BackupOptions};
use super::install::{self, ReleaseTarget};
use super::{edits, stack, upgrade};
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::sealed::Vault;
use crate::deployment::settings::{Database, Settings, load_env, text_of};
use crate::deployment::snapshot;
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::host::docker::{BY_HAND, Container, Docker};
use crate::host::files;
use crate::host::firewall;
use crate::host::ssh::RemoteHost;
use crate::image::ImageIdentity;
use crate::litellm::{advisories, config, contract};
use crate::output::{bytes, duration};
use crate::random::kernel_random;
use crate::service::Service;
use plan::{Chosen, Inside, Plan, SALT, unknown_salt};
use record::{ImportRecord, ImportState};
pub(crate) use record::{interrupted, recover, refuse_unfinished, undo};

/// What holds the lock during an import.
pub(crate) const COMMAND: &str = "import";
/// How long the old gateway gets to end its requests, in seconds.
const STOP_TIMEOUT: &str = "60";
/// For the old gateway's container to decrypt one value.
const PROOF_TIMEOUT: Duration = Duration::from_secs(60);

/// What is counted for the operator, by table.
const COUNTED: [(&str, &str); 5] = [
    ("LiteLLM_VerificationToken", "keys"),
    ("LiteLLM_TeamTable", "teams"),
    ("LiteLLM_UserTable", "users"),
    ("LiteLLM_ProxyModelTable", "stored models"),
    ("LiteLLM_SpendLogs", "spend logs"),
];

/// A deployment that can be imported.
#[derive(Debug)]
pub(crate) struct Import {
    docker: Docker,
    plan: Plan,
    /// The container whose files are copied.
    gateway: String,
    record: ImportRecord,
    /// Whether an earlier import has written `.env` and `config/`.
    is_prepared: bool,
    /// The variables of the kept `.env` whose values the old gateway does not have.
    differing: Vec<String>,
    /// The ports of this host that the old gateway has.
    ports: Vec<u16>,
    /// What the server says of its database.
    database: Option<String>,
    /// The size of the database, in bytes.
    size: u64,
    proof: Option<String>,
}

impl Import {
    /// Looks at the deployment of the compose file in `directory`, which is on the host `from` or on this one, and changes
    /// nothing.
    ///
    /// # Errors
    /// When there is none, or it can't be imported.
    pub(crate) async fn find(
        host: &Host,
        from: Option<&RemoteHost>,
        directory: &Path,
        project: Option<&str>,
        service: Option<&str>,
    ) -> Result<Self> {
        let docker = Docker::find(from)?;
        let directory = match from {
            Some(_) => directory.to_owned(),
            None => directory
                .canonicalize()
                .path_context("can't find", directory)?,
        };
        let before = ImportRecord::load(&host.paths)?;
        let is_prepared = refuse_another(host, before.as_ref(), from, &directory)?;
        let containers = docker.containers().await?;
        let chosen = Chosen::new(&containers, &directory, project, service)?;
        let gateway = chosen.gateway();
        if let Some(before) = before.filter(|before| before.is_of_another(gateway)) {
            return Err(belongs(host, &before));
        }
        let mut images = BTreeMap::new();
        for id in chosen.images() {
            match docker.image(id).await {
                Ok(image) => drop(images.insert(id.to_owned(), image)),
                // A container runs without its image's name, too.
                Err(error) if id == gateway.image => return Err(error),
                Err(_) => {}
            }
        }
        let mut inside = Inside {
            added: docker.added(gateway.name()).await?,
            ..Inside::default()
        };
        if let Some(path) = chosen.config_path() {
            let text = read_config(&docker, gateway.name(), &path).await?;
            for include in rewrite::includes(&text) {
                let file = Path::new(&path).with_file_name(include);
                let file = file.display().to_string();
                let text = read_config(&docker, gateway.name(), &file).await?;
                inside.includes.push((file, text));
            }
            inside.modules = modules(&docker, gateway, &path, &text, &inside.includes).await;
            inside.config = Some(text);
        }
        let mounts = gateway.mounts.iter();
        let mounts: Vec<&str> = mounts.map(|mount| mount.source.as_str()).collect();
        let regular = docker.regular_files(&mounts).await?;
        let plan = Plan::new(
            &chosen,
            &images,
            &inside,
            &|path| regular.iter().any(|file| file == path),
            &mut kernel_random,
        )?;
        let running = chosen.gateways.iter();
        let running = running.filter(|container| container.state.running);
        let gateways = running
            .map(|container| (container.name().to_owned(), container.restart()))
            .collect();
        let mut import = Self {
            docker,
            record: ImportRecord {
                from: from.cloned(),
                directory,
                project: gateway.project().map(str::to_owned),
                service: Some(gateway.service().to_owned()),
                gateways,
                servers: chosen.running(plan.servers()),
                state: ImportState::Prepared,
            },
            plan,
            gateway: gateway.name().to_owned(),
            is_prepared,
            differing: Vec::new(),
            ports: match from {
                Some(_) => Vec::new(),
                None => chosen.host_ports(),
            },
            database: None,
            size: 0,
            proof: None,
        };
        import.refuse_unusable(host).await?;
        if is_prepared {
            import.compare(&host.paths.env_file())?;
        }
        import.ask_database(host).await?;
        Ok(import)
    }

    /// The plan, line by line.
    pub(crate) fn lines(&self, host: &Host) -> Vec<String> {
        let mut lines = vec![format!(
            "Import from {} to {}:",
            self.record.place(),
            host.paths.deployment.display()
        )];
        lines.extend(
            self.plan
                .lines(self.database.as_deref(), self.proof.as_deref()),
        );
        if self.is_prepared {
            lines.push(String::new());
            lines.push(format!(
                ".env and config/ of {} are kept: an earlier import has written them",
                host.paths.deployment.display()
            ));
            if !self.differing.is_empty() {
                lines.push(format!(
                    "The old gateway has other values of {}",
                    self.differing.join(", ")
                ));
            }
        }
        lines
    }

    /// Compares the `.env` of an earlier import with the old gateway.
    fn compare(&mut self, path: &Path) -> Result<()> {
        let kept = load_env(path)?;
        let vault = Vault::beside(path);
        for (name, value) in self.plan.env.iter() {
            let kept = kept.get(name).map(|text| vault.open(text)).transpose()?;
            if !self.plan.generated.contains(&name)
                && kept.is_none_or(|kept| kept.expose_secret() != value)
            {
                self.differing.push(name.to_owned());
            }
        }
        let is_local = |settings: Settings| matches!(settings.database, Database::Local { .. });
        let of_plan = is_local(Settings::from_env(&self.plan.env, path)?);
        if is_local(Settings::load(path)?) != of_plan {
            let (kept, old) = if of_plan {
                ("an external", "one of its own")
            } else {
                ("a local", "an external one")
            };
            return Err(Failure::config(format!(
                "{}, which an earlier import has written, names {kept} database, and the old gateway has {old}",
                path.display()
            ))
            .hint(format!(
                "move {} away, then run the same command again, which writes a new one",
                path.display()
            ))
            .into());
        }
        match &self.plan.salt {
            Some(salt) if self.differing.iter().any(|name| name == SALT) => {
                Err(Failure::config(format!(
                    "{}: {SALT} is not the key with which the old gateway encrypts its stored credentials",
                    path.display()
                ))
                .hint(format!(
                    "write that one into the file: {}; then run the same command again",
                    salt.source
                ))
                .into())
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings that the new deployment could not have.
    async fn refuse_unusable(&self, host: &Host) -> Result<()> {
        let settings = Settings::from_env(&self.plan.env, &host.paths.env_file())?;
        if let Some(unknown) = edits::unknown_server(host, &self.plan.env, &settings).await? {
            let (variable, name) = (unknown.variable, unknown.name);
            return Err(Failure::new(format!(
                "the old gateway reaches the server {name} ({variable}) by a name that this host does not know"
            ))
            .hint(format!(
                "it may be a service whose network the gateway shares, or of `extra_hosts`: in the compose file, write the full name or the address of the server into {variable}, and run `docker compose up -d`"
            ))
            .into());
        }
        let image = self.plan.image.as_str();
        if self.plan.digest.is_none() && !host.podman().await?.has_image(image).await? {
            let from = self.record.from.as_ref();
            let ssh = from.map_or(String::new(), |from| format!("ssh {from} "));
            return Err(Failure::new(format!(
                "{image} was built for the old deployment, and Podman does not have it"
            ))
            .hint(format!("copy it: `{ssh}docker save {image} | podman load`"))
            .into());
        }
        Ok(())
    }

    async fn server<'a>(&self, host: &'a Host) -> Result<Option<Server<'a>>> {
        let Some(old) = &self.plan.database else {
            return Ok(None);
        };
        let server = Server::in_docker(
            host,
            &self.docker,
            &old.container,
            &old.variables,
            &old.name,
        );
        server.await.map(Some)
    }

    /// Asks the old server for its version and size, and proves the salt by a value that it has stored.
    async fn ask_database(&mut self, host: &Host) -> Result<()> {
        let Some(server) = self.server(host).await? else {
            return Ok(());
        };
        let snapshot = server.snapshot().await.map_err(|error| {
            Failure::new("the old database can't be read")
                .hint(format!("check that it runs (`docker compose ps` in {}), or move the deployment by hand: {BY_HAND}", self.record.place()))
                .caused_by(error)
        })?;
        let version = snapshot.server_version();
        self.database = Some(format!(
            "PostgreSQL {}, {}",
            version.split(' ').next().unwrap_or(version),
            bytes(snapshot.size())
        ));
        self.size = snapshot.size();
        drop(snapshot);
        let encrypted = server.encrypted_value().await?;
        let service = &self.plan.service;
        let Some(salt) = &self.plan.salt else {
            return match encrypted {
                None => Ok(()),
                Some(_) => Err(unknown_salt(service, None).into()),
            };
        };
        self.proof = Some(match encrypted {
            None => "unproved, since nothing is stored that it encrypts".into(),
            Some(_) if self.record.gateways.is_empty() => {
                "unproved, since the old gateway does not run".into()
            }
            Some(value) => match self.decrypts(&salt.value, &value).await {
                Ok(true) => "proved: it decrypts a stored credential".into(),
                Ok(false) => return Err(unknown_salt(service, Some(salt.source)).into()),
                Err(error) => format!("unproved: {error:#}"),
            },
        });
        Ok(())
    }

    /// Whether `value` is encrypted with `salt`, by the libraries in the old gateway's container.
    async fn decrypts(&self, salt: &SecretString, value: &SecretString) -> Result<bool> {
        let words = [
            "exec",
            "--interactive",
            &self.gateway,
            "python3",
            "-c",
            contract::DECRYPTS,
        ];
        let mut command = self.docker.command(words);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().context("can't run docker")?;
        let given = SecretString::from(
            serde_json::json!({"salt": salt.expose_secret(), "value": value.expose_secret()})
                .to_string(),
        );
        if let Some(mut stdin) = child.stdin.take() {
            // A program that has ended has its own status.
            let _ = stdin.write_all(given.expose_secret().as_bytes()).await;
        }
        let status = tokio::time::timeout(PROOF_TIMEOUT, child.wait()).await;
        let status = status.context("the old container did not decrypt a value in time")?;
        match status.context("can't run docker")?.code() {
            Some(0) => Ok(true),
            Some(3) => Ok(false),
            _ => anyhow::bail!("the old container lacks the libraries for it"),
        }
    }

    /// Refuses what has to be decided before anything is changed: an exploited release, and a firewall with which nothing
    /// would work.
    pub(crate) async fn admit(&self, host: &Host, accepted: &[String]) -> Result<()> {
        let path = host.paths.env_file();
        let wanted = if self.is_prepared {
            Settings::load(&path)?
        } else {
            Settings::from_env(&self.plan.env, &path)?
        };
        let again = self.record.command();
        advisories::admit(host, &wanted, &wanted.litellm_image, accepted, &again)?;
        firewall::refuse(&host.paths).await
    }

    /// Imports the deployment.
    ///
    /// # Errors
    /// When a step fails: then the old gateway is running, and the same command can be run again.
    pub(crate) async fn carry_out(mut self, host: &Host, timeout: Duration) -> Result<()> {
        let paths = &host.paths;
        self.record.reached(paths, ImportState::Prepared)?;
        if !self.is_prepared {
            self.write(host).await?;
        }
        fail::fail_point!("import-written");
        let target = ReleaseTarget::Wanted;
        let prepared = install::prepare(host, target).await?;
        prepared.apply(host).await?;
        // Both would start at boot.
        let systemd = host.systemd().await?;
        systemd.disable("litellm.target").await?;
        systemd.reload().await?;
        config::refuse_errors(host)?;
        config::warn(host)?;
        install::pull_missing(host, &prepared, target).await?;
        let settings = prepared.installed();
        contract::check_once(host, settings).await?;
        // Found after the stop, they would cost an outage.
        if self.plan.database.is_some() {
            backup::refuse_full_disks(paths, self.size, backup::filled(self.size))?;
        }
        // While a recovery holds it, the address is this deployment's.
        if !stack::is_address_held(systemd).await? {
            stack::address::refuse_taken(paths, &self.ports)?;
        }
        stack::start_database(host, settings, timeout).await?;
        if let Some(old) = self.server(host).await? {
            let new = Server::new(host, settings).await?;
            let obstacles = old.obstacles(&new).await?;
            if !obstacles.is_empty() {
                return Err(Failure::new(format!(
                    "database {} of the old gateway can't be copied: it {}",
                    old.database,
                    obstacles.join("; it ")
                ))
                .hint(format!(
                    "let the user of DATABASE_URL read the tables, or move them to another database; for an extension, write POSTGRES_IMAGE with an image that has it into {}",
                    paths.env_file().display()
                ))
                .into());
            }
        }
        fail::fail_point!("import-prepared");

        // From here on, Ctrl-C fails the current step instead of killing the program.
        let _interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        let begin = Instant::now();
        self.record.reached(paths, ImportState::Moving)?;
        let mut copy = None;
        let attempt = async {
            stack::watch_change(host).await?;
            for name in self.record.gateways.keys() {
                host.progress
                    .say(&format!("stopping the old gateway ({name})"));
                self.docker
                    .run(["stop", "--time", STOP_TIMEOUT, name])
                    .await?;
            }
            fail::fail_point!("import-stopped");
            copy = self.copy_database(host, settings, timeout).await?;
            if let Some((restore, _)) = &copy {
                restore.swap().await?;
            }
            fail::fail_point!("import-swapped");
            stack::bring_up(host, settings, timeout).await?;
            upgrade::record(host, settings, "import").await?;
            fail::fail_point!("import-not-ready", |_| anyhow::bail!("a test says so"));
            for name in self.record.gateways.keys() {
                self.docker.run(["update", "--restart=no", name]).await?;
            }
            systemd.enable("litellm.target").await?;
            systemd.reload().await
        };
        if let Err(error) = attempt.await {
            return Err(self.take_back(host, copy, timeout, error).await);
        }
        let counts = match copy {
            None => String::new(),
            Some((restore, counts)) => match restore.commit().await {
                Ok(_) => counts,
                Err(error) => return Err(self.take_back(host, None, timeout, error).await),
            },
        };
        self.record.reached(paths, ImportState::Done)?;
        host.progress.say(&format!(
            "imported{counts}; from the stop of the old gateway to the start of the new one: {}",
            duration(begin.elapsed())
        ));
        host.progress
            .say("to return to the old gateway: `litellm-units import --undo`");
        Ok(())
    }

    /// Starts the old gateway after a failure. The new database gets the data of an earlier import back.
    async fn take_back(
        &mut self,
        host: &Host,
        copy: Option<(Restore<'_>, String)>,
        timeout: Duration,
        error: anyhow::Error,
    ) -> anyhow::Error {
        host.progress
            .say("the import failed: starting the old gateway again");
        let timeout = timeout.max(stack::RECOVERY_TIMEOUT);
        if let Some((restore, _)) = copy {
            let units = [Service::Litellm.unit(), Service::Migrate.unit()];
            if let Err(error) = restore
                .undo(&units, timeout)
                .await
                .and_then(|gateway| gateway)
            {
                host.progress.warn(&format!(
                    "the copy of the database could not be undone; the next command tries again: {error:#}"
                ));
            }
        }
        match self.record.put_back(host, timeout).await {
            Ok(()) => Failure::new(format!("the import failed; {}", self.record.outcome()))
                .hint(
                    crate::error::hint(&error)
                        .unwrap_or("correct the cause, then run the same command again")
                        .to_owned(),
                )
                .caused_by(error),
            Err(second) => {
                Failure::new("the import failed, and the old gateway could not be started again")
                    .hint(format!(
                        "start it: `docker compose start` in {}",
                        self.record.place()
                    ))
                    .caused_by(second.context(error))
            }
        }
        .into()
    }

    /// Backs the old database up and restores it beside the new one. Returns what was copied, in words.
    async fn copy_database<'a>(
        &self,
        host: &'a Host,
        settings: &Settings,
        timeout: Duration,
    ) -> Result<Option<(Restore<'a>, String)>> {
        let Some(server) = self.server(host).await? else {
            return Ok(None);
        };
        let options = BackupOptions {
            retention: None,
            to_go_back: Some(snapshot::keep(&host.paths)?),
            ..BackupOptions::default()
        };
        let backup = backup::create_from(host, settings, &server, &options).await?;
        let options = RestoreOptions {
            timeout,
            is_step: true,
            ..RestoreOptions::default()
        };
        // It compares the rows of every table.
        let restore = Restore::stage(host, settings, &backup, &options, false).await?;
        let rows = &backup.manifest.database.rows;
        let counts = COUNTED.map(|(table, words)| {
            let count = rows
                .iter()
                .find(|(name, _)| name.ends_with(&format!(".{table}")))
                .map_or(0, |(_, count)| *count);
            format!("{words}: {count}")
        });
        Ok(Some((restore, format!(" ({})", counts.join(", ")))))
    }

    /// Writes `config/`, and `.env` last: with it, the deployment is prepared.
    async fn write(&self, host: &Host) -> Result<()> {
        let paths = &host.paths;
        files::make_directory(&paths.config(), 0o755)?;
        let scratch = tempfile::tempdir().context("can't create a temporary directory")?;
        for (number, (from, to)) in self.plan.files.iter().enumerate() {
            let copy = scratch.path().join(number.to_string());
            self.docker.copy(&self.gateway, from, &copy).await?;
            let (found, left) = regular_files(&copy)?;
            for path in left {
                let inside = path.strip_prefix(&copy).unwrap_or(Path::new(""));
                host.progress.warn(&format!(
                    "{} of the old gateway is not copied, since it is no regular file: if the gateway needs it, copy its content into config/",
                    Path::new(from).join(inside).display()
                ));
            }
            for file in found {
                let inside = file.strip_prefix(&copy).unwrap_or(Path::new(""));
                let mut place = paths.config();
                place.extend(
                    [Path::new(to), inside]
                        .iter()
                        .filter(|part| !part.as_os_str().is_empty()),
                );
                // The configuration itself has its own name.
                if place == paths.config_file() {
                    continue;
                }
                install_file(&file, &place)?;
            }
        }
        files::write_atomically(&paths.config_file(), self.plan.config.as_bytes(), 0o600)?;
        if let Some(digest) = &self.plan.digest
            && self.plan.image.digest().is_none()
        {
            ImagesLock::change(&paths.images_lock(), |lock| {
                lock.record(&self.plan.image, ImageIdentity::of_digest(digest));
                Ok(true)
            })?;
        }
        let text = self.plan.env.text();
        files::write_atomically(&paths.env_file(), text.as_bytes(), 0o600)
    }
}

/// Refuses to write over a deployment that no import has made. Returns whether one has prepared it.
fn refuse_another(
    host: &Host,
    before: Option<&ImportRecord>,
    from: Option<&RemoteHost>,
    directory: &Path,
) -> Result<bool> {
    let place = host.paths.deployment.display();
    match before {
        Some(before) if before.state == ImportState::Done => {
            Err(Failure::new(format!(
                "{place} was imported from {} and is in use",
                before.place()
            ))
            .hint("to return to the old gateway first: `litellm-units import --undo`")
            .into())
        }
        Some(before) if before.directory != directory || before.from.as_ref() != from => {
            Err(belongs(host, before))
        }
        Some(_) => Ok(host.paths.env_file().exists()),
        None if from.is_none()
            && host.paths.deployment.canonicalize().is_ok_and(|own| own == directory) =>
        {
            Err(Failure::new(format!("{place} is both the directory of the compose file and that of the new deployment"))
                .hint(format!("choose another one for the new deployment with `--litellm-dir DIR`, or take over the data where it is: {BY_HAND}"))
                .into())
        }
        None if [host.paths.env_file(), host.paths.config_file(), host.paths.postgres_data()]
            .iter()
            .any(|path| path.exists()) =>
        {
            Err(Failure::new(format!("there is a deployment in {place} already"))
                .hint(format!("if it is only a trial: `litellm-units down --remove`, then move {place} away; otherwise move the data by hand: {BY_HAND}"))
                .into())
        }
        None => Ok(false),
    }
}

fn belongs(host: &Host, before: &ImportRecord) -> anyhow::Error {
    Failure::new(format!(
        "{} belongs to an import of another gateway: `{}`",
        host.paths.deployment.display(),
        before.command()
    ))
    .hint("choose another directory with `--litellm-dir DIR`")
    .into()
}

/// The Python modules of the configuration at `path` that are in the image or were copied into the container: their paths
/// there, and in config/. One that is found nowhere is for the check of the configuration.
async fn modules(
    docker: &Docker,
    gateway: &Container,
    path: &str,
    text: &str,
    includes: &[(String, String)],
) -> Vec<(String, String)> {
    let others = includes.iter().flat_map(|(_, text)| config::modules(text));
    let mut found = Vec::new();
    for module in config::modules(text).into_iter().chain(others) {
        // As LiteLLM looks for it.
        let beside = Path::new(path).with_file_name(&module);
        let places = [beside, Path::new(&gateway.config.working_dir).join(&module)];
        for place in places {
            // A mounted one is copied as such.
            if (gateway.mounts.iter()).any(|mount| place.starts_with(&mount.destination)) {
                break;
            }
            let place = place.display().to_string();
            if read_config(docker, gateway.name(), &place).await.is_ok() {
                found.push((place, module));
                break;
            }
        }
    }
    found
}

async fn read_config(docker: &Docker, container: &str, path: &str) -> Result<String> {
    let scratch = tempfile::tempdir().context("can't create a temporary directory")?;
    let copy = scratch.path().join("config");
    docker.copy(container, path, &copy).await?;
    let bytes = read_regular(&copy).with_context(|| format!("can't read {path} of {container}"))?;
    text_of(bytes, Path::new(path))
}

/// The regular files at `path` or below it, and what is there beside them. No link is followed: the owner of the old
/// deployment can make one to a file that only root can read.
fn regular_files(path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    fn walk(path: &Path, found: &mut (Vec<PathBuf>, Vec<PathBuf>)) -> std::io::Result<()> {
        let kind = std::fs::symlink_metadata(path)?.file_type();
        if kind.is_dir() {
            let mut entries = std::fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                walk(&entry.path(), found)?;
            }
        } else if kind.is_file() {
            found.0.push(path.to_owned());
        } else {
            found.1.push(path.to_owned());
        }
        Ok(())
    }
    let mut found = (Vec::new(), Vec::new());
    walk(path, &mut found).path_context("can't read", path)?;
    Ok(found)
}

fn read_regular(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files::open_regular(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Copies a file. Only its new owner may read it: it may have left a directory that was closed to others.
fn install_file(from: &Path, to: &Path) -> Result<()> {
    let found = std::fs::symlink_metadata(from).path_context("can't examine", from)?;
    let bytes = read_regular(from).path_context("can't read", from)?;
    if let Some(parent) = to.parent() {
        files::make_directory(parent, 0o755)?;
    }
    let mode = found.permissions().mode() & 0o100 | 0o600;
    files::write_atomically(to, &bytes, mode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_of_the_old_deployment_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("config/sub")).unwrap();
        std::fs::write(path("secret"), "of root").unwrap();
        std::fs::write(path("config/sub/file.py"), "text").unwrap();
        symlink(path("secret"), path("config/link")).unwrap();
        symlink(root.path(), path("config/sub/directory")).unwrap();
        assert_eq!(
            regular_files(&path("config")).unwrap(),
            (
                vec![path("config/sub/file.py")],
                vec![path("config/link"), path("config/sub/directory")]
            )
        );
        // One that is a link itself.
        assert_eq!(
            regular_files(&path("config/link")).unwrap(),
            (Vec::new(), vec![path("config/link")])
        );
        assert!(install_file(&path("config/link"), &path("copy")).is_err());
        assert!(!path("copy").exists());
    }

    #[test]
    fn copies_are_private() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for (old, new) in [
            (0o644, 0o600),
            (0o600, 0o600),
            (0o755, 0o700),
            (0o440, 0o600),
        ] {
            std::fs::write(path("file"), "text").unwrap();
            files::set_mode(&path("file"), old).unwrap();
            install_file(&path("file"), &path("config/copy")).unwrap();
            let copy = std::fs::metadata(path("config/copy")).unwrap();
            assert_eq!(copy.permissions().mode() & 0o7777, new, "{old:o}");
            std::fs::remove_file(path("file")).unwrap();
        }
    }
}

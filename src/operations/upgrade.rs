//! From one release to another and back: pull, backup, migration, switch, and a gate that the new
//! release has to pass. A failure at any step rolls back to the previous release.
//!
//! Until the switch, `.env`, `config/` and the units are left alone, and the current release serves.
//! A rollback has the previous release serve with the database as it is: LiteLLM's migrations add to
//! the schema. The backup is restored only if that fails and the operator has asked for it.
//! Each step is in the ledger before the next one begins, so that [`recover`] can finish or
//! undo what a kill or a loss of power interrupted. The caller holds the operation lock.

pub(crate) mod check;
mod gate;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::ledger::{
    Ended, Event, Images, Ledger, Operation, OperationOutcome, Reached, RecordedRelease,
    ReleaseVerb, Step,
};
use crate::deployment::operation_id::OperationId;
use crate::deployment::settings::{Settings, load_env, parse_env, read_env};
use crate::deployment::snapshot::{self, SnapshotId};
use crate::error::{self, Exit, Failure, PathContext, Result};
use crate::host::Host;
use crate::host::paths::Paths;
use crate::host::record;
use crate::host::systemd::job::JobType;
use crate::image::{Image, ImageIdentity, ImageReference};
use crate::litellm::advisories::Advisories;
use crate::litellm::release::Release as Version;
use crate::litellm::{Client, config, contract};
use crate::operations::backup::database::Server;
use crate::operations::backup::restore::{self, Recovered, Restore};
use crate::operations::backup::{self, Backup};
use crate::operations::install::{self, ReleaseTarget};
use crate::operations::pull;
use crate::operations::stack::{self, Manner};
use crate::output::duration;
use crate::quadlet;
use crate::service::Service;

/// How long the migration may take, as its unit says.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a gateway may take to say whether it is ready.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a new release is watched where nothing else is said.
pub(crate) const SETTLE: Duration = Duration::from_secs(10);

/// How a change of release is carried out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReleaseOptions {
    /// How long the new release is watched before it stays.
    pub settle: Duration,
    /// How long starting and becoming ready may take.
    pub timeout: Duration,
    /// Whether a release may come that can't read credentials of the current one.
    pub accept_unreadable: bool,
}

/// A change of release, worked out and not begun.
#[derive(Debug)]
pub(crate) struct ReleasePlan {
    verb: ReleaseVerb,
    from: Images,
    /// The configuration of the current release.
    configuration: SnapshotId,
    /// The `.env` that is wanted.
    env: String,
    settings: Settings,
    /// What is recorded of the wanted image.
    wanted: Option<ImageIdentity>,
    /// Whether `.env` names the wanted image already.
    is_named: bool,
    /// Whether `.env` or `config/` have edits besides the image; they are applied, too.
    edited: bool,
    /// The backup whose data comes back.
    data: Option<OperationId>,
    /// Whether a rollback may restore the backup if the previous release can't serve with the migrated database.
    restore_data: bool,
    /// Whether the gateway's configuration has it encrypt credentials with AES-256-GCM.
    encrypts_with_aes_gcm: bool,
}

impl ReleasePlan {
    /// The change to the image that `.env` names, or to `image`.
    pub(crate) async fn upgrade(
        host: &Host,
        image: Option<&ImageReference>,
        restore_data: bool,
    ) -> Result<Self> {
        let path = host.paths.env_file();
        let mut env = load_env(&path)?;
        if let Some(image) = image {
            set_image(&mut env, "LITELLM_IMAGE", image.as_str(), &path)?;
        }
        let settings = Settings::from_env(&env, &path)?;
        let plan = Self::new(host, ReleaseVerb::Upgrade, env.text().to_owned(), settings).await?;
        Ok(Self {
            restore_data,
            ..plan
        })
    }

    /// Whether the wanted image runs already, and `.env` has its name.
    pub(crate) fn is_done(&self) -> bool {
        self.gateway_before().is_some_and(|from| {
            let same_name = from.reference == self.settings.litellm_image.as_str();
            match &self.wanted {
                Some(wanted) => wanted.is(&from.identity) && (same_name || self.is_named),
                None => same_name,
            }
        })
    }

    /// The change back to `release`, and to the data of `data` if there is one.
    pub(crate) async fn rollback(
        host: &Host,
        release: &RecordedRelease,
        data: Option<OperationId>,
    ) -> Result<Self> {
        let path = host.paths.env_file();
        let mut env = load_env(&path)?;
        let gateway = release
            .gateway()
            .context("the ledger names a release without a gateway")?;
        set_image(&mut env, "LITELLM_IMAGE", &gateway.reference, &path)?;
        let settings = Settings::from_env(&env, &path)?;
        let plan = Self::new(host, ReleaseVerb::Rollback, env.text().to_owned(), settings).await?;
        Ok(Self {
            wanted: Some(gateway.identity.clone()),
            data,
            ..plan
        })
    }

    async fn new(host: &Host, verb: ReleaseVerb, env: String, settings: Settings) -> Result<Self> {
        let paths = &host.paths;
        let configuration = snapshot::last_good(paths).ok_or_else(|| {
            Failure::new("the gateway was never ready here, so there is no release to roll back to")
                .hint("start it first: `litellm-units up`")
        })?;
        let before =
            Settings::from_text(&snapshot::env(paths, &configuration)?, &paths.env_file())?;
        let from = backup::images(host, &before).await;
        let edited = is_edited(paths, &env, &before, &configuration)?;
        let lock = ImagesLock::load(&paths.images_lock())?;
        Advisories::load(paths)?.refuse(paths, &settings, &lock)?;
        let env_wanted = parse_env(&env, &paths.env_file())?;
        config::refuse_weak_master_key(host, &env_wanted, &settings)?;
        let wanted = match lock.identity(&settings.litellm_image) {
            Some(recorded) => {
                let pinned = lock.pin(&settings.litellm_image);
                let here = host.podman().await?.image(&pinned).await?;
                Some(ImageIdentity {
                    id: here.and_then(|found| found.id).or(recorded.id),
                    ..recorded
                })
            }
            None => None,
        };
        let is_named = read_env(&paths.env_file())? == env;
        Ok(Self {
            verb,
            from,
            configuration,
            is_named,
            env,
            settings,
            wanted,
            edited,
            data: None,
            restore_data: false,
            encrypts_with_aes_gcm: config::encrypts_with_aes_gcm(paths),
        })
    }

    fn gateway_before(&self) -> Option<&Image> {
        self.from.gateway()
    }

    /// What will be done, a line each.
    pub(crate) fn lines(&self, options: ReleaseOptions) -> Vec<String> {
        let from = self
            .gateway_before()
            .map_or("an unknown image", |image| image.reference.as_str());
        let mut lines = vec![
            format!("{} {from} -> {}", self.verb, self.settings.litellm_image),
            match &self.wanted {
                Some(ImageIdentity { digest, .. }) => {
                    format!("  pull        {digest}, if it is missing; nothing is stopped")
                }
                None => "  pull        the image, and record its digest; nothing is stopped".into(),
            },
            "  check       that the image fits, in a container without network and data".into(),
            match backup::made_elsewhere(&self.settings.backup) {
                Some(words) => format!("  no backup   here: {words}"),
                None => {
                    "  backup      the database and the configuration, while the gateway serves"
                        .into()
                }
            },
        ];
        match &self.data {
            Some(backup) => lines.push(format!(
                "  data        restore backup {backup} beside the database, then swap the two"
            )),
            None => lines.push(
                "  migrate     the database, while the current release serves; a newer schema is kept".into(),
            ),
        }
        let version = self.settings.litellm_image.tag().and_then(Version::of_tag);
        if self.encrypts_with_aes_gcm
            && version.is_some_and(|version| !version.is_from(contract::READS_AES_GCM))
        {
            lines.push("  refuse      if credentials in the database are encrypted with AES-256-GCM, which that release can't read".into());
        }
        lines.push(if self.edited {
            "  switch      .env and config/ with their other edits, units and gateway".into()
        } else {
            "  switch      .env, units and gateway".into()
        });
        lines.push(format!(
            "  watch       for {}: database connected, requests answered, no burst of errors",
            duration(options.settle)
        ));
        let rolled_back = "  if a step fails, image, units and .env are rolled back";
        lines.push(match (&self.data, self.restore_data) {
            (Some(_), _) => format!("{rolled_back}, and the current database is restored"),
            (None, false) => format!("{rolled_back}; the database keeps every write"),
            (None, true) => format!(
                "{rolled_back};\n  if the previous release does not serve then, the backup is restored, and later writes are lost"
            ),
        });
        lines
    }

    /// Does it.
    ///
    /// # Errors
    /// When a step fails; the message says whether the previous release is running again.
    pub(crate) async fn carry_out(self, host: &Host, options: ReleaseOptions) -> Result<()> {
        // From here on, Ctrl-C fails the current step instead of killing the program.
        let _interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        let paths = &host.paths;
        let mut ledger = Ledger::load(paths)?;
        ledger.record_release(self.from.clone(), "found")?;
        let wanted = snapshot::keep_with(paths, &self.env)?;
        let operation = Operation {
            operation: OperationId::new(jiff::Timestamp::now())?,
            verb: self.verb,
            from: self.from,
            to: self.settings.litellm_image.to_string(),
            configuration: self.configuration.to_string(),
            wanted: wanted.to_string(),
            data: self.data,
            restore_data: self.restore_data,
        };
        let images = ImagesLock::load(&host.paths.images_lock())?;
        ledger.append(Event::Begun(operation.clone()))?;
        fail::fail_point!("upgrade-begun");
        let mut run = Run {
            host,
            images,
            ran: stack::is_wanted(host.systemd().await?).await?,
            ledger,
            operation,
            options,
            backup: None,
            schema: None,
            switched: false,
            restore: None,
        };
        let begin = std::time::Instant::now();
        match Box::pin(run.forward(&self.configuration, &wanted, self.wanted)).await {
            Ok(()) => {
                host.progress.say(&format!(
                    "{} is running; the {} took {}",
                    run.operation.to,
                    run.operation.verb,
                    duration(begin.elapsed())
                ));
                Ok(())
            }
            Err(error) => Err(run.undo(error).await),
        }
    }
}

/// Records what runs as a release, if it is another one than the last.
pub(crate) async fn record(host: &Host, settings: &Settings, how: &str) -> Result<()> {
    Ledger::load(&host.paths)?.record_release(images(host, settings).await?, how)
}

/// The images that `settings` name, by their recorded digests.
async fn images(host: &Host, settings: &Settings) -> Result<Images> {
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let mut images = Images::default();
    for service in [Service::Litellm, Service::Postgres, Service::Redis] {
        let Some(reference) = settings.image(service) else {
            continue;
        };
        if let Some(mut identity) = lock.identity(reference) {
            if identity.id.is_none() {
                let found = host.podman().await?.image(&lock.pin(reference)).await?;
                identity.id = found.and_then(|found| found.id);
            }
            images.insert(
                service,
                Image {
                    reference: reference.to_string(),
                    identity,
                },
            );
        }
    }
    Ok(images)
}

/// The upgrade or rollback that was interrupted, if one was, and how far it was.
pub(crate) fn interrupted(paths: &Paths) -> Result<Option<String>> {
    let unfinished = Ledger::load(paths)?.unfinished();
    Ok(unfinished.map(|found| {
        format!(
            "the {} to {} was interrupted {}",
            found.operation.verb, found.operation.to, found.step
        )
    }))
}

/// Finishes or rolls back an interrupted upgrade or rollback.
///
/// # Errors
/// When neither is possible; the next command tries again.
pub(crate) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    let ledger = Ledger::load(&host.paths)?;
    let Some(mut found) = ledger.unfinished() else {
        return Ok(());
    };
    let operation = found.operation;
    host.progress.say(&format!(
        "the {} to {} was interrupted {}",
        operation.verb, operation.to, found.step
    ));
    let mut run = Run {
        host,
        images: ImagesLock::load(&host.paths.images_lock())?,
        ran: stack::is_wanted(host.systemd().await?).await?,
        ledger,
        operation,
        options: ReleaseOptions {
            settle: Duration::ZERO,
            timeout,
            accept_unreadable: true,
        },
        backup: found.backup,
        schema: found.schema,
        switched: found.switched,
        restore: None,
    };
    let mut data_replaced = false;
    if restore::is_unfinished(&host.paths) {
        let settings = Settings::load(&host.paths.env_file())?;
        stack::start_database(host, &settings, timeout).await?;
        if run.operation.data.is_some() {
            // What becomes of this data is decided with the release: the end commits it, a rollback takes it out.
            let restore = restore::resume(host, &settings).await?;
            data_replaced = restore.is_swapped().await?;
            run.restore = Some(restore);
        } else if let Recovered::Finished(id) = restore::recover(host, &settings).await?
            && found.step == Step::Undoing
            && run.backup.as_ref() == Some(&id)
        {
            run.reached(Step::DataBack)?;
            found.step = Step::DataBack;
        }
    }
    let forward = match found.step {
        Step::Ready => true,
        Step::Switching => data_replaced || run.serves().await,
        _ => false,
    };
    if forward {
        host.progress.say("finishing it");
        return match run.finish().await {
            Ok(()) => Ok(()),
            Err(error) => Err(run.undo(error).await),
        };
    }
    // It is known once the change begins.
    if run.schema.is_none() {
        run.lock_previous()?;
        run.end(OperationOutcome::Undone, Some("interrupted".into()))?;
        host.progress.say("nothing was changed");
        return Ok(());
    }
    host.progress.say("rolling it back");
    let restored = (found.step == Step::DataBack).then(|| run.backup.clone());
    let words = run
        .roll_back(Some("interrupted".into()), restored.flatten())
        .await??;
    host.progress
        .say(&format!("rolled back: {} is running{words}", run.from()));
    Ok(())
}

/// A release change in progress.
struct Run<'a> {
    host: &'a Host,
    /// Whether the target was active at the beginning: if not, its state says nothing of an operator's stop.
    ran: bool,
    /// What the tags meant when this process began.
    images: ImagesLock,
    ledger: Ledger,
    operation: Operation,
    options: ReleaseOptions,
    backup: Option<OperationId>,
    /// The hash of the schema before the migration, if a rollback may have to restore it.
    schema: Option<String>,
    /// Whether configuration, units and gateway may be those of the new release.
    switched: bool,
    /// A restore whose data is in place and can still be taken out.
    restore: Option<Restore<'a>>,
}

impl Run<'_> {
    fn reached(&mut self, step: Step) -> Result<()> {
        self.switched |= step == Step::Switching;
        self.ledger.append(Event::Reached(Reached {
            operation: self.operation.operation.clone(),
            step,
            backup: None,
            schema: None,
        }))
    }

    /// The name of the previous release.
    fn from(&self) -> String {
        let from = self.operation.from.gateway();
        from.map_or("the previous release", |image| &image.reference)
            .to_owned()
    }

    fn end(&mut self, outcome: OperationOutcome, reason: Option<String>) -> Result<()> {
        self.ledger.append(Event::Ended(Ended {
            operation: self.operation.operation.clone(),
            outcome,
            reason,
        }))?;
        let (from, to) = (self.from(), self.operation.to.as_str());
        match outcome {
            OperationOutcome::Done => {
                record::release(self.host, &from, to, &self.operation.verb.to_string());
            }
            OperationOutcome::Undone if self.switched => {
                record::release(self.host, to, &from, "automatic rollback");
            }
            OperationOutcome::Undone => {}
        }
        Ok(())
    }

    async fn forward(
        &mut self,
        configuration: &SnapshotId,
        wanted: &SnapshotId,
        image: Option<ImageIdentity>,
    ) -> Result<()> {
        let host = self.host;
        let paths = &host.paths;
        let path = paths.env_file();
        let before = Settings::from_text(&snapshot::env(paths, configuration)?, &path)?;
        let after = Settings::from_text(&snapshot::env(paths, wanted)?, &path)?;
        if let Some(image) = image {
            self.lock(&after.litellm_image, &image)?;
        }
        let reads = self.operation.data.is_none() && !self.options.accept_unreadable;
        let named = Advisories::load(paths)?.release(&after.litellm_image);
        if let Some(named) = named.filter(|named| reads && !named.is_from(contract::READS_AES_GCM))
        {
            stack::start_database(host, &before, self.options.timeout).await?;
            refuse_unreadable(&named.to_string(), &Server::new(host, &before).await?).await?;
        }
        pull::pull_missing(host, &after, &[]).await?;
        let release = contract::check(host, &after).await?;
        self.reached(Step::Pulled)?;
        fail::fail_point!("upgrade-pulled");

        stack::start_database(host, &before, self.options.timeout).await?;
        let server = Server::new(host, &before).await?;
        let data = match &self.operation.data {
            Some(id) => Some(Backup::load(paths, id)?.admitted(false)?),
            None => None,
        };
        if reads && !release.reads_aes_gcm {
            let version = release.version.as_deref().unwrap_or("of this image");
            refuse_unreadable(version, &server).await?;
        }
        let size = server.size().await?;
        let copy = match &data {
            Some(data) => data.manifest.database.size,
            None if self.operation.restore_data && server.is_local() => size,
            None => 0,
        };
        let elsewhere = backup::made_elsewhere(&before.backup);
        if elsewhere.is_none() {
            backup::refuse_full_disks(paths, size, backup::filled(copy))?;
        }
        quadlet::check::warn_of_drop_ins(host);
        if let Some(words) = elsewhere {
            host.progress
                .say(&format!("no backup is made here: {words}"));
        } else {
            let options = backup::BackupOptions {
                retention: None,
                to_go_back: Some(configuration.clone()),
                ..backup::BackupOptions::default()
            };
            let made = backup::create(host, &before, &options).await?;
            self.backup = Some(made.id().clone());
        }
        self.schema = Some(server.schema().await?);
        self.ledger.append(Event::Reached(Reached {
            operation: self.operation.operation.clone(),
            step: Step::BackedUp,
            backup: self.backup.clone(),
            schema: self.schema.clone(),
        }))?;
        fail::fail_point!("upgrade-backed-up");

        let traffic = gate::Traffic::before(host).await;
        match data {
            None => {
                migrate(host, &after).await?;
                self.reached(Step::Migrated)?;
                fail::fail_point!("upgrade-migrated");
                self.reached(Step::Switching)?;
            }
            Some(backup) => {
                let options = restore::RestoreOptions::default();
                restore::check_salt(host, &backup, &options)?;
                let staged = Restore::stage(host, &before, &backup, &options, false).await?;
                // To be taken out again, if anything fails from here on.
                self.restore = Some(staged);
                self.reached(Step::Switching)?;
                stack::stop(host, &gateway_units(), self.options.timeout).await?;
                fail::fail_point!("rollback-stopped");
                if let Some(staged) = &self.restore {
                    staged.swap().await?;
                }
                fail::fail_point!("rollback-swapped");
            }
        }
        self.replace_configuration(wanted)?;
        fail::fail_point!("upgrade-configured");
        self.bring_up().await?;
        fail::fail_point!("upgrade-not-ready", |_| anyhow::bail!("a test says so"));
        fail::fail_point!("upgrade-switched");
        gate::watch(
            host,
            &after,
            self.options.settle,
            self.options.timeout,
            &traffic,
        )
        .await?;
        self.reached(Step::Ready)?;
        fail::fail_point!("upgrade-ready");
        self.commit().await
    }

    /// Installs what the configuration on the disk asks for.
    async fn install(&self) -> Result<Settings> {
        let prepared = install::prepare(self.host, ReleaseTarget::Wanted).await?;
        prepared.apply(self.host).await?;
        Ok(prepared.settings().clone())
    }

    /// Brings it up, and waits until the gateway is ready.
    async fn bring_up(&self) -> Result<()> {
        if self.is_stopped_meanwhile().await {
            return Err(Failure::interrupted("the gateway was not started").into());
        }
        let settings = self.install().await?;
        stack::bring_up(self.host, &settings, self.options.timeout).await
    }

    async fn commit(&mut self) -> Result<()> {
        if let Some(restore) = self.restore.take() {
            restore.commit().await?;
        }
        let settings = Settings::load(&self.host.paths.env_file())?;
        let images = images(self.host, &settings).await?;
        self.ledger
            .record_release(images, &self.operation.verb.to_string())?;
        fail::fail_point!("upgrade-recorded");
        self.end(OperationOutcome::Done, None)
    }

    /// Finishes an operation that was interrupted after the switch.
    async fn finish(&mut self) -> Result<()> {
        let wanted = self.kept(&self.operation.wanted)?;
        self.replace_configuration(&wanted)?;
        self.bring_up().await?;
        self.commit().await
    }

    fn kept(&self, name: &str) -> Result<SnapshotId> {
        SnapshotId::find(&self.host.paths, name).ok_or_else(|| {
            Failure::new(format!(
                "the configuration {name} is missing from {}",
                self.host.paths.snapshots().display()
            ))
            .hint("restore .env and config/ from a backup: `litellm-units restore ID --config`")
            .into()
        })
    }

    /// Replaces `.env` and `config/`. Edits that `configuration` does not have are kept.
    fn replace_configuration(&self, configuration: &SnapshotId) -> Result<()> {
        let paths = &self.host.paths;
        let path = paths.env_file();
        let settings = Settings::from_text(&snapshot::env(paths, configuration)?, &path)?;
        let present = snapshot::keep(paths)?;
        if is_edited(paths, &read_env(&path)?, &settings, configuration)? {
            self.host.progress.say(&format!(
                "edits of .env or config/ are replaced; they are kept in {}",
                snapshot::directory(paths, &present).display()
            ));
        }
        snapshot::restore(paths, configuration, &[])
    }

    /// Has the tag mean this image.
    fn lock(&self, image: &ImageReference, identity: &ImageIdentity) -> Result<()> {
        let path = self.host.paths.images_lock();
        ImagesLock::change(&path, |lock| {
            Ok(lock.restore(image, identity, &self.images))
        })?;
        Ok(())
    }

    /// Has the tags mean what they meant before.
    fn lock_previous(&self) -> Result<()> {
        for image in self.operation.from.all() {
            if let Ok(reference) = ImageReference::parse(&image.reference) {
                self.lock(&reference, &image.identity)?;
            }
        }
        Ok(())
    }

    /// Whether the gateway is ready and runs the new image. It may have the tag of the previous one.
    async fn serves(&self) -> bool {
        let Ok(lock) = ImagesLock::load(&self.host.paths.images_lock()) else {
            return false;
        };
        let pinned = lock.pin_text(&self.operation.to);
        let Ok(client) = Client::local(&self.host.paths, TIMEOUT) else {
            return false;
        };
        client.health().await.is_ready()
            && matches!(runs(self.host, &pinned).await, Ok(Runs::Wanted))
    }

    /// Whether an operator has stopped the deployment since the beginning.
    async fn is_stopped_meanwhile(&self) -> bool {
        let is_shut_down = async { stack::is_shut_down(self.host.systemd().await?).await };
        // Without systemd, nothing can be started anyway.
        self.ran && is_shut_down.await.is_ok_and(|is_shut_down| is_shut_down)
    }

    /// Leaves everything as after a loss of power: the next start finishes the operation or rolls it back.
    async fn leave(&self, error: anyhow::Error) -> anyhow::Error {
        let (verb, to) = (self.operation.verb, &self.operation.to);
        let stop = async {
            end_migration(self.host).await?;
            // What a step has started since.
            stack::stop_all(self.host, &[], self.options.timeout).await
        };
        if let Err(second) = stop.await {
            self.host.progress.warn(&format!("{second:#}"));
        }
        Failure::interrupted(format!(
            "the {verb} to {to} was interrupted: the deployment was stopped meanwhile, and stays stopped"
        ))
        .hint(format!(
            "to start it, and finish the {verb} or roll it back: `litellm-units up`"
        ))
        .caused_by(error)
        .into()
    }

    /// Rolls back after a failure, and returns the error to report.
    async fn undo(&mut self, error: anyhow::Error) -> anyhow::Error {
        let (verb, to) = (self.operation.verb, self.operation.to.clone());
        let reason = format!("{error:#}");
        self.host.progress.say(&reason);
        let reason = reason
            .lines()
            .next()
            .map(|line| line.trim_end_matches(':').to_owned());
        let hint = error::hint(&error)
            .unwrap_or("fix what the lines above name, then try again; see what was done: `litellm-units history`")
            .to_owned();
        if self.schema.is_none() {
            let ended = self
                .lock_previous()
                .and_then(|()| self.end(OperationOutcome::Undone, reason));
            return match ended {
                Ok(()) => Failure::new(format!("the {verb} to {to} failed; nothing was changed"))
                    .hint(hint)
                    .caused_by(error)
                    .into(),
                Err(second) => second.context(error),
            };
        }
        if self.is_stopped_meanwhile().await {
            return self.leave(error).await;
        }
        let from = self.from();
        self.host
            .progress
            .say(&format!("the {verb} failed: rolling back to {from}"));
        match self.roll_back(reason, None).await {
            Ok(Ok(words)) => Failure::new(format!(
                "the {verb} to {to} failed and was rolled back; {from} is running{words}"
            ))
            .hint(hint)
            .caused_by(error)
            .into(),
            Ok(Err(outage)) => outage,
            Err(second) if self.is_stopped_meanwhile().await => {
                self.leave(second.context(error)).await
            }
            Err(second) => Failure::new(format!(
                "the {verb} to {to} failed, and so did rolling it back"
            ))
            .hint("fix the cause, then run `litellm-units up`, which continues the rollback")
            .caused_by(second.context(error))
            .into(),
        }
    }

    /// Has the previous release run again as it did before, with the database as it is. Every step can be repeated.
    /// `restored`: the backup that an earlier attempt has restored.
    /// The inner result is the gateway's: what became of the database, as the end of a sentence, or why it does not serve.
    async fn roll_back(
        &mut self,
        reason: Option<String>,
        restored: Option<OperationId>,
    ) -> Result<Result<String>> {
        let host = self.host;
        self.options.timeout = self.options.timeout.max(stack::RECOVERY_TIMEOUT);
        if restored.is_none() {
            self.reached(Step::Undoing)?;
        }
        fail::fail_point!("undo-begun");
        end_migration(host).await?;
        if let Some(restore) = self.restore.take() {
            restore
                .undo(&gateway_units(), self.options.timeout)
                .await??;
        }
        let configuration = self.kept(&self.operation.configuration)?;
        let path = host.paths.env_file();
        let settings = Settings::from_text(&snapshot::env(&host.paths, &configuration)?, &path)?;
        if self.switched {
            self.replace_configuration(&configuration)?;
        }
        self.lock_previous()?;
        if self.switched {
            self.install().await?;
        }
        fail::fail_point!("undo-configured");
        stack::start_database(host, &settings, self.options.timeout).await?;
        let mut outcome = self.serve_again(&settings).await;
        if let Err(error) = &outcome
            && (error::exit(error) == Exit::Interrupted || self.is_stopped_meanwhile().await)
        {
            return outcome.map(|()| Ok(String::new()));
        }
        let server = Server::new(host, &settings).await?;
        let migrated = self.schema.is_some() && self.schema != Some(server.schema().await?);
        let unreadable = match contract::installed_version(&host.paths) {
            Some(version) if self.switched && !contract::reads_aes_gcm(&version) => {
                server.tables_with_aes_gcm().await?
            }
            _ => Vec::new(),
        };
        let mut words = if let Some(backup) = &restored {
            restored_words(backup)
        } else if !unreadable.is_empty() {
            format!(
                "; the database keeps every write, but this release can't read what is encrypted with AES-256-GCM in {}",
                unreadable.join(", ")
            )
        } else if migrated {
            "; the database keeps every write and the new schema".into()
        } else {
            String::new()
        };
        let mut is_restored = restored.is_some();
        let is_unfit = !unreadable.is_empty() || (migrated && outcome.is_err());
        if self.operation.restore_data
            && is_unfit
            && restored.is_none()
            && server.is_local()
            && let Some(backup) = &self.backup
        {
            if let Err(error) = &outcome {
                host.progress.say(&format!("{error:#}"));
            }
            let backup = Backup::load(&host.paths, backup)?.admitted(false)?;
            let replaced = self.restore_data(&settings, &backup).await?;
            is_restored = true;
            outcome = self.serve_again(&settings).await;
            let rows = server.contents(&replaced).await?;
            words =
                restored_words(backup.id()) + &new_rows(&backup.manifest.database.rows, &rows.rows);
        }
        self.end(OperationOutcome::Undone, reason)?;
        let error = match outcome {
            Ok(()) => return Ok(Ok(words)),
            Err(error) => error,
        };
        let hint = match &self.backup {
            Some(backup) if migrated && !is_restored => format!(
                "see why: `litellm-units status`; to restore the database of {} and lose later writes: `litellm-units restore {backup}`",
                time(backup)
            ),
            _ => "see why: `litellm-units status`".to_owned(),
        };
        let (verb, to, from) = (self.operation.verb, &self.operation.to, self.from());
        Ok(Err(Failure::new(if is_restored {
            format!("the {verb} to {to} failed and was rolled back, but {from} does not serve{words}")
        } else {
            format!("the {verb} to {to} failed and was rolled back, but {from} does not serve with the database as it is")
        })
        .hint(hint)
        .caused_by(error)
        .into()))
    }

    /// Waits until the previous release answers requests, with the database as it is.
    async fn serve_again(&self, settings: &Settings) -> Result<()> {
        let timeout = self.options.timeout;
        if self.switched {
            stack::bring_up(self.host, settings, timeout).await?;
        } else {
            // What it runs with was not changed, and edits of .env are not to be applied here.
            let steps = [(JobType::Start, Service::Litellm.unit())];
            stack::start_units(self.host, &steps, Manner::AtOnce, timeout).await?;
        }
        fail::fail_point!("undo-not-ready", |_| anyhow::bail!("a test says so"));
        let client = Client::local(&self.host.paths, gate::TIMEOUT)?;
        gate::probe(&client, settings, timeout).await
    }

    /// Restores the backup that was made before the migration. Returns the name of the replaced database.
    async fn restore_data(&mut self, settings: &Settings, backup: &Backup) -> Result<String> {
        let host = self.host;
        host.progress.say(&format!(
            "the previous release can't serve with this database: restoring backup {}; later writes are lost",
            backup.id()
        ));
        let options = restore::RestoreOptions::default();
        let restore = Restore::stage(host, settings, backup, &options, false).await?;
        fail::fail_point!("undo-staged");
        stack::stop(host, &gateway_units(), self.options.timeout).await?;
        restore.swap().await?;
        fail::fail_point!("undo-swapped");
        self.reached(Step::DataBack)?;
        restore.commit().await
    }
}

/// What restoring a backup cost, as the end of a sentence.
fn restored_words(backup: &OperationId) -> String {
    format!(
        "; the database was restored to {}, later writes are lost",
        time(backup)
    )
}

/// The rows that a replaced database has beyond those of `before`, as the end of a sentence.
pub(super) fn new_rows(before: &BTreeMap<String, u64>, replaced: &BTreeMap<String, u64>) -> String {
    let more: Vec<String> = replaced
        .iter()
        .filter(|(table, _)| !table.ends_with("._prisma_migrations"))
        .filter_map(|(table, now)| {
            let before = before.get(table).copied().unwrap_or_default();
            let more = now.checked_sub(before).filter(|more| *more > 0)?;
            Some(format!("{more} in {table}"))
        })
        .collect();
    if more.is_empty() {
        return " (no new rows)".into();
    }
    format!(" (new rows: {})", more.join(", "))
}

fn time(backup: &OperationId) -> String {
    backup
        .created()
        .strftime("%Y-%m-%d %H:%M:%S UTC")
        .to_string()
}

/// Refuses a release that does not read AES-256-GCM, if the current one has encrypted credentials with it.
async fn refuse_unreadable(version: &str, server: &Server<'_>) -> Result<()> {
    let tables = server.tables_with_aes_gcm().await?;
    if tables.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "LiteLLM {version} can't read what is encrypted with AES-256-GCM in {}",
        tables.join(", ")
    ))
    .hint(format!(
        "choose a release from {} on, or restore the database of that time (`litellm-units rollback --restore-data`), or add `--accept-unreadable` and enter those credentials again",
        contract::READS_AES_GCM
    ))
    .into())
}

/// What must not run while its database is replaced.
fn gateway_units() -> [&'static str; 2] {
    [Service::Litellm.unit(), Service::Migrate.unit()]
}

/// What the gateway's containers run, compared with what they should.
enum Runs {
    Wanted,
    Other(Image),
    Nothing,
}

/// Whether the gateway's containers run `image`, by its ID.
async fn runs(host: &Host, image: &str) -> Result<Runs> {
    let podman = host.podman().await?;
    let wanted = podman.image(image).await?;
    let gateways = stack::gateways(host.systemd().await?).await?;
    let containers = gateways.iter().map(|(instance, _)| instance.container());
    let running = containers.map(|container| podman.container_image(container));
    let running: Option<Vec<Image>> = futures_util::future::try_join_all(running)
        .await?
        .into_iter()
        .collect();
    let is_wanted = |running: &Image| {
        wanted
            .as_ref()
            .is_some_and(|wanted| wanted.is(&running.identity))
    };
    Ok(match running {
        None => Runs::Nothing,
        Some(running) => match running.into_iter().find(|running| !is_wanted(running)) {
            None => Runs::Wanted,
            Some(other) => Runs::Other(other),
        },
    })
}

/// Whether `.env`, as `text` has it, or `config/` differ from `configuration`, whose settings are `settings`, in more
/// than the gateway's image.
fn is_edited(
    paths: &Paths,
    text: &str,
    settings: &Settings,
    configuration: &SnapshotId,
) -> Result<bool> {
    let path = paths.env_file();
    let Ok(mut env) = parse_env(text, &path) else {
        return Ok(true);
    };
    let image = settings.litellm_image.as_str();
    set_image(&mut env, "LITELLM_IMAGE", image, &path)?;
    Ok(snapshot::keep_with(paths, env.text())? != *configuration)
}

pub(super) fn set_image(
    env: &mut crate::deployment::env_file::EnvFile,
    name: &str,
    image: &str,
    path: &std::path::Path,
) -> Result<()> {
    if env.get(name) == Some(image) {
        return Ok(());
    }
    env.set(name, image).path_context("can't edit", path)
}

/// Migrates the database to the release of `settings`, in a unit of its own.
async fn migrate(host: &Host, settings: &Settings) -> Result<()> {
    install::add_temporary(host, settings, quadlet::next_migration).await?;
    fail::fail_point!("upgrade-migrating");
    host.progress.say("migrating the database");
    stack::run(
        host,
        &format!("{}.service", quadlet::NEXT_MIGRATION),
        MIGRATION_TIMEOUT,
    )
    .await?;
    end_migration(host).await
}

/// Ends the unit of [`migrate`], however far it is, and removes it.
async fn end_migration(host: &Host) -> Result<()> {
    install::remove_temporary(host, quadlet::NEXT_MIGRATION).await
}

//! The record of an import, and the return to the old gateway.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::deployment::settings::Settings;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::docker::{Container, Docker};
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::ssh::RemoteHost;
use crate::operations::stack;

/// An import as it is recorded on disk.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ImportRecord {
    /// The host of the old deployment, if it is another one.
    pub from: Option<RemoteHost>,
    /// The directory of the compose file there.
    pub directory: PathBuf,
    /// The project of compose, and the service of the gateway.
    pub project: Option<String>,
    pub service: Option<String>,
    /// The containers of the old gateway that ran, and when Docker restarts each.
    pub gateways: BTreeMap<String, String>,
    /// Those of its database and its cache.
    #[serde(default)]
    pub servers: Vec<String>,
    pub state: ImportState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum ImportState {
    /// The old gateway serves.
    Prepared,
    /// One of the two is stopped, and the other one is not ready yet.
    Moving,
    /// The new gateway serves.
    Done,
}

impl ImportRecord {
    pub(super) fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "remove it when the old deployment or the new one serves";
        files::load_record(&paths.import_record(), hint)
    }

    pub(super) fn reached(&mut self, paths: &Paths, state: ImportState) -> Result<()> {
        self.state = state;
        files::make_directory(&paths.deployment, 0o755)?;
        files::make_directory(&paths.state(), 0o700)?;
        files::save_record(&paths.import_record(), self)
    }

    /// Starts the old gateway again, after the new one is stopped.
    pub(super) async fn put_back(&mut self, host: &Host, timeout: Duration) -> Result<()> {
        let _interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        // Until the end, `recover` completes it.
        self.reached(&host.paths, ImportState::Moving)?;
        let systemd = host.systemd().await?;
        stack::stop_all(host, &[], timeout).await?;
        systemd.disable("litellm.target").await?;
        systemd.reload().await?;
        // The old gateway may have had the same ones.
        stack::address::released(&host.paths).await;
        fail::fail_point!("import-new-stopped");
        self.start_old(host, timeout).await?;
        self.reached(&host.paths, ImportState::Prepared)
    }

    /// Starts the containers of the old deployment that ran before, the servers first: Docker does not do so after a
    /// reboot where their restart policy says no.
    async fn start_old(&self, host: &Host, timeout: Duration) -> Result<()> {
        let docker = Docker::find(self.from.as_ref())?;
        for name in &self.servers {
            docker.run(["start", name]).await?;
        }
        docker
            .wait(
                &self.servers.iter().map(String::as_str).collect::<Vec<_>>(),
                timeout,
            )
            .await?;
        for (name, restart) in &self.gateways {
            let policy = format!("--restart={restart}");
            docker.run(["update", &policy, name]).await?;
            docker.run(["start", name]).await?;
        }
        let names: Vec<&str> = self.gateways.keys().map(String::as_str).collect();
        for (name, health) in docker.wait(&names, timeout).await? {
            host.progress.warn(&format!(
                "the container {name} of the old gateway is running, but its health check says {health}; see `docker logs {name}`"
            ));
        }
        Ok(())
    }

    /// Refuses to stop the new gateway for one that can't be started.
    async fn refuse_missing(&self) -> Result<()> {
        let docker = Docker::find(self.from.as_ref())?;
        let containers = docker.containers().await?;
        let mut wanted = self.servers.iter().chain(self.gateways.keys());
        let missing = wanted.find(|name| containers.iter().all(|found| found.name() != **name));
        match missing {
            None => Ok(()),
            Some(name) => Err(Failure::new(format!(
                "the old gateway can't be started, since Docker has no container {name} any more; nothing was stopped"
            ))
            .hint(format!(
                "create it: `docker compose up --no-start` in {}, then run `litellm-units import --undo` again",
                self.place()
            ))
            .into()),
        }
    }

    /// Starts the new gateway again, after the old one could not be started.
    async fn resume(&mut self, host: &Host, timeout: Duration) -> Result<()> {
        let docker = Docker::find(self.from.as_ref())?;
        for name in self.gateways.keys() {
            docker.run(["update", "--restart=no", name]).await?;
            docker.run(["stop", name]).await?;
        }
        let systemd = host.systemd().await?;
        systemd.enable("litellm.target").await?;
        systemd.reload().await?;
        self.reached(&host.paths, ImportState::Done)?;
        let settings = Settings::load(&host.paths.env_file())?;
        // The recovery that watches this process still has the address that was closed.
        stack::watch_change(host).await?;
        stack::bring_up(host, &settings, timeout.max(stack::RECOVERY_TIMEOUT)).await
    }

    /// What was interrupted, in words; `None` if nothing was.
    fn interruption(&self) -> Option<String> {
        (self.state == ImportState::Moving)
            .then(|| format!("the import from {} was interrupted", self.place()))
    }

    /// Where the old deployment is, in words.
    pub(super) fn place(&self) -> String {
        let directory = self.directory.display();
        match &self.from {
            None => directory.to_string(),
            Some(host) => format!("{directory} on {host}"),
        }
    }

    /// The command that imports it.
    pub(super) fn command(&self) -> String {
        let from = self.from.as_ref().map(RemoteHost::to_string);
        let options = [
            ("--from", &from),
            ("--project", &self.project),
            ("--service", &self.service),
        ];
        let mut words = "litellm-units import".to_owned();
        for (option, value) in options {
            if let Some(value) = value {
                words += &format!(" {option} {value}");
            }
        }
        format!("{words} {}", self.directory.display())
    }

    /// Whether it is the record of another gateway.
    pub(super) fn is_of_another(&self, gateway: &Container) -> bool {
        let differs = |recorded: &Option<String>, found| {
            recorded
                .as_deref()
                .is_some_and(|recorded| Some(recorded) != found)
        };
        differs(&self.service, Some(gateway.service())) || differs(&self.project, gateway.project())
    }

    /// What became of the old gateway, in words: one that did not run before is not started.
    pub(super) fn outcome(&self) -> &'static str {
        if self.gateways.is_empty() {
            "the old gateway is stopped, as it was before the import"
        } else {
            "the old gateway is running again"
        }
    }
}

/// The import that was interrupted while neither gateway served, if one was.
pub(crate) fn interrupted(paths: &Paths) -> Result<Option<String>> {
    let record = ImportRecord::load(paths)?;
    Ok(record.and_then(|record| record.interruption()))
}

/// Starts the old gateway again after an import, or its undoing, that was interrupted while neither served.
pub(crate) async fn recover(host: &Host, timeout: Duration) -> Result<()> {
    let Some(mut record) = ImportRecord::load(&host.paths)? else {
        return Ok(());
    };
    let Some(words) = record.interruption() else {
        return Ok(());
    };
    host.progress
        .say(&format!("{words}: starting the old gateway again"));
    record.put_back(host, timeout).await.map_err(|error| {
        let directory = record.place();
        Failure::new(format!(
            "{words}, and its old gateway can't be started again"
        ))
        .hint(format!(
            "see why: `docker compose up -d` in {directory}; then run the same command again. To use the deployment as it is, remove {}",
            host.paths.import_record().display()
        ))
        .caused_by(error)
        .into()
    })
}

/// Refuses to start a gateway whose data an import has not brought, or whose old one serves again.
pub(crate) fn refuse_unfinished(paths: &Paths) -> Result<()> {
    match ImportRecord::load(paths)? {
        Some(record) if record.state != ImportState::Done => {
            let directory = record.place();
            Err(Failure::new(format!(
                "the data of the gateway in {directory} is not imported, and that gateway is in use"
            ))
            .hint(format!(
                "import it: `{}`; to use the deployment without it, remove {}",
                record.command(),
                paths.import_record().display()
            ))
            .into())
        }
        _ => Ok(()),
    }
}

/// Stops the new gateway and starts the old one.
///
/// # Errors
/// When nothing was imported, or Docker or systemd refuses: then the new gateway is running.
pub(crate) async fn undo(host: &Host, timeout: Duration) -> Result<()> {
    let Some(mut record) = ImportRecord::load(&host.paths)? else {
        return Err(Failure::new(format!(
            "{} was not imported",
            host.paths.deployment.display()
        ))
        .hint("to stop the gateway: `litellm-units down`")
        .into());
    };
    record.refuse_missing().await?;
    let was_done = record.state == ImportState::Done;
    if let Err(error) = record.put_back(host, timeout).await {
        if !was_done {
            return Err(error);
        }
        host.progress
            .say("the old gateway can't be started: starting the new one again");
        return Err(match record.resume(host, timeout).await {
            Ok(()) => {
                Failure::new("the old gateway can't be started; the new one is running again")
                    .hint(format!(
                        "see why: `docker compose ps --all` in {}",
                        record.place()
                    ))
                    .caused_by(error)
            }
            Err(second) => {
                Failure::new("the old gateway can't be started, and neither can the new one")
                    .hint("see why: `litellm-units status`")
                    .caused_by(second.context(error))
            }
        }
        .into());
    }
    host.progress.say(&format!(
        "{}; what the new one has written since the import stays in {} and is not in the old database",
        record.outcome(),
        host.paths.data().display()
    ));
    if record.gateways.is_empty() {
        host.progress.say(&format!(
            "to start it: `docker compose up -d` in {}",
            record.place()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_gateway() {
        let text = include_str!("../../../tests/fixtures/import/parts.json");
        let all: Vec<Container> = serde_json::from_str(text).unwrap();
        let [gateway, _, worker] = &all[..] else {
            panic!("three containers")
        };
        // One that an earlier version has written.
        let text = r#"{"directory": "/srv", "gateways": {}, "state": "Prepared"}"#;
        let mut record: ImportRecord = serde_json::from_str(text).unwrap();
        assert!(!record.is_of_another(gateway));
        record.service = Some("gateway".into());
        assert!(!record.is_of_another(gateway) && record.is_of_another(worker));
        record.project = Some("prod".into());
        assert!(record.is_of_another(gateway));
        assert_eq!(
            record.command(),
            "litellm-units import --project prod --service gateway /srv"
        );
    }
}

//! Every location that the program reads or writes, derived from the scope and one root.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Failure, Result};
use crate::service::{Instance, Service};

/// The default deployment directory of the system scope.
pub const SYSTEM_DEPLOYMENT: &str = "/opt/litellm-server";

/// The directory of sealed secrets, beside `.env`.
pub const CREDENTIALS: &str = "credentials";

/// A unit that every version installs; its command line names the deployment directory.
const WITH_DEPLOYMENT: &str = "litellm-backup.service";

/// The root of the administrator's configuration for all users.
const SITE: &str = "/etc";

/// Which systemd manager and which Podman the units belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// PID 1 and rootful Podman.
    System,
    /// The calling user's manager and rootless Podman.
    User,
}

impl Scope {
    /// The scope that fits the calling user: the system for root, else the user's own.
    #[must_use]
    pub fn of_caller() -> Self {
        if nix::unistd::geteuid().is_root() {
            Self::System
        } else {
            Self::User
        }
    }

    /// The words that make `systemctl` and `journalctl` address this scope.
    #[must_use]
    pub fn systemctl(self) -> &'static str {
        match self {
            Self::System => "systemctl",
            Self::User => "systemctl --user",
        }
    }
}

/// The locations of one deployment and of the units that run it.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The scope that the locations belong to.
    pub scope: Scope,
    /// The deployment directory, which the operator edits and backs up.
    pub deployment: PathBuf,
    /// Where Quadlet looks for the administrator's (or the user's) files.
    pub quadlets: PathBuf,
    /// Where systemd looks for the administrator's (or the user's) units.
    pub units: PathBuf,
    /// Where a package installs units; `litellm.target` is looked for here first.
    pub packaged_units: PathBuf,
    /// Where Podman keeps images and containers, unless `storage.conf` says otherwise.
    pub storage: PathBuf,
    /// Per-boot state: `/run` or `$XDG_RUNTIME_DIR`.
    pub runtime: PathBuf,
    /// What the administrator (or the user) sets for every program: `/etc` or `~/.config`.
    pub configuration: PathBuf,
}

impl Paths {
    /// The locations on this host, for `scope`. Without `deployment`, the directory is the one that the installed units
    /// run, or else the default one.
    ///
    /// # Errors
    /// When the user scope lacks `HOME`, or the deployment directory is not absolute or holds a
    /// character that a unit file can't carry.
    pub fn detect(scope: Scope, deployment: Option<PathBuf>) -> Result<Self> {
        let mut paths = match scope {
            Scope::System => Self::system(),
            Scope::User => Self::user()?,
        };
        if let Some(directory) = deployment.or_else(|| paths.installed_deployment()) {
            paths.deployment = directory;
        }
        check_deployment(&paths.deployment)?;
        Ok(paths)
    }

    /// The locations on another machine, where no file is read from here.
    #[must_use]
    pub fn elsewhere(scope: Scope) -> Self {
        Self {
            scope,
            ..Self::system()
        }
    }

    /// Those of a deployment in a directory of a test.
    #[cfg(test)]
    pub(crate) fn in_test(deployment: impl Into<PathBuf>) -> Self {
        Self {
            deployment: deployment.into(),
            ..Self::elsewhere(Scope::System)
        }
    }

    fn system() -> Self {
        Self {
            scope: Scope::System,
            deployment: SYSTEM_DEPLOYMENT.into(),
            quadlets: "/etc/containers/systemd".into(),
            units: "/etc/systemd/system".into(),
            packaged_units: "/usr/lib/systemd/system".into(),
            storage: "/var/lib/containers/storage".into(),
            runtime: "/run".into(),
            configuration: SITE.into(),
        }
    }

    fn user() -> Result<Self> {
        let home = directory_variable("HOME").ok_or_else(|| {
            Failure::new(
                "HOME is not an absolute path, so the directory of the user's units is not known",
            )
            .hint("log in as that user, or set HOME")
        })?;
        let config = directory_variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let data = directory_variable("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share"));
        let runtime = directory_variable("XDG_RUNTIME_DIR")
            .unwrap_or_else(|| format!("/run/user/{}", nix::unistd::geteuid()).into());
        Ok(Self {
            scope: Scope::User,
            deployment: data.join("litellm-server"),
            quadlets: config.join("containers/systemd"),
            units: config.join("systemd/user"),
            packaged_units: "/usr/lib/systemd/user".into(),
            storage: data.join("containers/storage"),
            runtime,
            configuration: config,
        })
    }

    /// Where the unit of an instance is installed: but for the entrance, as a Quadlet file.
    pub(crate) fn unit_file(&self, instance: Instance) -> PathBuf {
        let directory = match instance.service() {
            Service::Entrance => &self.units,
            _ => &self.quadlets,
        };
        directory.join(instance.quadlet())
    }

    /// The deployment that the installed units run, if there are any.
    #[must_use]
    pub fn installed_deployment(&self) -> Option<PathBuf> {
        let text = std::fs::read_to_string(self.units.join(WITH_DEPLOYMENT)).ok()?;
        text.lines()
            .find_map(|line| deployment_of(line.strip_prefix("ExecStart=")?))
    }

    /// The one source of truth.
    #[must_use]
    pub fn env_file(&self) -> PathBuf {
        self.deployment.join(".env")
    }

    /// The digests of the images that were pulled.
    #[must_use]
    pub fn images_lock(&self) -> PathBuf {
        self.deployment.join("images.lock")
    }

    /// The directory mounted read-only into the gateway.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.deployment.join("config")
    }

    /// The gateway's own configuration.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.config().join("litellm-config.yaml")
    }

    /// Certificates of authorities that the gateway and the migration trust beside those of their image.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.deployment.join("certs")
    }

    /// Files with credentials, mounted read-only into the gateway.
    #[must_use]
    pub fn credential_files(&self) -> PathBuf {
        self.deployment.join("files")
    }

    /// The directories that the operator fills and the gateway reads.
    #[must_use]
    pub fn mounted(&self) -> [PathBuf; 3] {
        [self.config(), self.certificates(), self.credential_files()]
    }

    /// Units of the operator's own.
    #[must_use]
    pub fn extra(&self) -> PathBuf {
        self.deployment.join("extra.d")
    }

    /// The certificate of the entrance, and lines of the operator's own for it.
    #[must_use]
    pub fn entrance(&self) -> PathBuf {
        self.deployment.join("entrance")
    }

    /// Where the gateway may write log files.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.deployment.join("logs")
    }

    /// The database and the cache.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.deployment.join("data")
    }

    /// The PostgreSQL cluster.
    #[must_use]
    pub fn postgres_data(&self) -> PathBuf {
        self.data().join("postgres")
    }

    /// The PostgreSQL cluster of another major version while it is prepared or swapped.
    #[must_use]
    pub fn postgres_next(&self) -> PathBuf {
        self.data().join("postgres-next")
    }

    /// The PostgreSQL cluster that another one has replaced.
    #[must_use]
    pub fn postgres_previous(&self) -> PathBuf {
        self.data().join("postgres-previous")
    }

    /// The rest of a PostgreSQL cluster that is removed.
    #[must_use]
    pub fn postgres_removed(&self) -> PathBuf {
        self.data().join(".postgres-removed")
    }

    /// Redis' append-only file and snapshots.
    #[must_use]
    pub fn redis_data(&self) -> PathBuf {
        self.data().join("redis")
    }

    /// This program's records of the deployment, readable only by the owner.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.deployment.join(".litellm-units")
    }

    /// Secrets that are sealed: one encrypted file each.
    #[must_use]
    pub fn credentials(&self) -> PathBuf {
        self.deployment.join(CREDENTIALS)
    }

    /// The service key, for daily use instead of the master key.
    #[must_use]
    pub fn service_key(&self) -> PathBuf {
        self.deployment.join("service-key.txt")
    }

    /// The record of an unfinished rotation.
    #[must_use]
    pub fn pending_change(&self) -> PathBuf {
        self.state().join("change.json")
    }

    /// The record of a change of PostgreSQL's major version.
    #[must_use]
    pub fn postgres_record(&self) -> PathBuf {
        self.state().join("postgres.json")
    }

    /// The record of an import.
    #[must_use]
    pub fn import_record(&self) -> PathBuf {
        self.state().join("import.json")
    }

    /// The record of an unfinished restore.
    #[must_use]
    pub fn restore_record(&self) -> PathBuf {
        self.state().join("restore.json")
    }

    /// Exists while an edit is applied. While another configuration is put in place of the present one, it names the
    /// snapshot of that.
    #[must_use]
    pub fn applying(&self) -> PathBuf {
        self.state().join("applying")
    }

    /// The ledger of operations.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state().join("ledger.jsonl")
    }

    /// Configurations kept by content.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.state().join("configurations")
    }

    /// The key that tells own backups from those of others. No backup has it.
    #[must_use]
    pub fn backup_key(&self) -> PathBuf {
        self.state().join("backup-key")
    }

    /// Names the configuration with which the gateway last was ready.
    #[must_use]
    pub fn last_good(&self) -> PathBuf {
        self.state().join("last-good")
    }

    /// Podman's per-boot state of one container.
    #[must_use]
    pub fn container_state(&self, id: &str) -> PathBuf {
        let storage = match self.scope {
            Scope::System => "containers/storage/overlay-containers",
            Scope::User => "containers/overlay-containers",
        };
        self.runtime.join(storage).join(id)
    }

    /// Podman's list of containers, if its storage is at the default place.
    #[must_use]
    pub fn containers_list(&self) -> PathBuf {
        self.storage
            .join("overlay-containers/volatile-containers.json")
    }

    /// Podman's own configuration.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.configuration.join("containers")
    }

    /// The administrator's configuration of Podman, for users who have none.
    #[must_use]
    pub fn site_containers(&self) -> Option<PathBuf> {
        (self.scope == Scope::User).then(|| Path::new(SITE).join("containers"))
    }

    /// This program's configuration for the host (or the user).
    #[must_use]
    pub fn own_configuration(&self) -> PathBuf {
        self.configuration.join("litellm-units")
    }

    /// The lists of releases that must not run.
    #[must_use]
    pub fn compromised_lists(&self) -> Vec<PathBuf> {
        self.instructions("compromised-releases")
    }

    /// Directories with advisories about LiteLLM, in addition to the built-in ones.
    #[must_use]
    pub fn advisories(&self) -> Vec<PathBuf> {
        self.instructions("advisories")
    }

    /// Files that replace the built-in trusted root of Sigstore: the first that exists applies.
    #[must_use]
    pub fn sigstore_roots(&self) -> Vec<PathBuf> {
        let mut files = self.instructions("trusted_root.json");
        files.reverse();
        files
    }

    /// The locations of a configuration file: the administrator's applies to users, too.
    fn instructions(&self, name: &str) -> Vec<PathBuf> {
        let mut directories = vec![self.own_configuration()];
        if self.scope == Scope::User {
            directories.insert(0, Path::new(SITE).join("litellm-units"));
        }
        directories
            .into_iter()
            .map(|directory| directory.join(name))
            .collect()
    }

    /// The result of the last check for releases.
    #[must_use]
    pub fn upgrade_check(&self) -> PathBuf {
        self.state().join("upgrade-check.json")
    }

    /// The result of the last verification of the newest backup.
    #[must_use]
    pub fn verification(&self) -> PathBuf {
        self.state().join("verification.json")
    }

    /// Per-boot files of this program: names of the secrets that each container gets.
    #[must_use]
    pub fn runtime_state(&self) -> PathBuf {
        self.runtime.join("litellm-units")
    }

    /// The metrics of the last look, which are served by HTTP. Every user may read them.
    #[must_use]
    pub fn served_metrics(&self) -> PathBuf {
        self.runtime_state().join("metrics.prom")
    }
}

/// The directory in the command line of a unit. It needs quotes at most.
fn deployment_of(command: &str) -> Option<PathBuf> {
    let (_, rest) = command.split_once(" --litellm-dir ")?;
    let directory = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?.0,
        None => rest.split(' ').next()?,
    };
    Some(directory.into())
}

fn directory_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// Refuses a directory whose name not every reader can parse: it passes through Quadlet's
/// `Volume=`, systemd's command lines and Podman's comma-separated options.
fn check_deployment(path: &Path) -> Result<()> {
    let refuse = |reason: &str| {
        Err(Failure::config(format!(
            "the deployment directory {} {reason}",
            path.display()
        ))
        .hint("choose another one with `--litellm-dir DIR` or LITELLM_DIR")
        .into())
    };
    if !path.is_absolute() {
        return refuse("is not an absolute path");
    }
    let Some(text) = path.to_str() else {
        return refuse("is not valid UTF-8");
    };
    if let Some(bad) = text
        .chars()
        .find(|c| c.is_control() || ":,\"'\\$%".contains(*c))
    {
        return refuse(&format!(
            "contains {bad:?}, which a unit file can't contain"
        ));
    }
    if text == "/" || path.components().any(|part| part.as_os_str() == "..") {
        return refuse("must be a directory below /, written without `..`");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployment_of_a_command() {
        for (command, expected) in [
            (
                "/usr/bin/litellm-units backup create --quiet --litellm-dir /opt/litellm-server",
                "/opt/litellm-server",
            ),
            (
                "/usr/bin/litellm-units backup create --litellm-dir \"/srv/our gateway\" --user",
                "/srv/our gateway",
            ),
            (
                "/usr/bin/litellm-units backup --litellm-dir /srv/a --user",
                "/srv/a",
            ),
        ] {
            assert_eq!(deployment_of(command).as_deref(), Some(Path::new(expected)));
        }
        assert_eq!(deployment_of("/usr/bin/litellm-units backup create"), None);
    }
}

//! Every effect on the host, reached through one value.

pub(crate) mod caddy;
pub mod capacity;
pub(crate) mod child;
pub(crate) mod container_state;
pub(crate) mod default_route;
pub(crate) mod docker;
pub(crate) mod files;
pub(crate) mod firewall;
pub(crate) mod journal;
pub(crate) mod listener;
pub(crate) mod lock;
pub(crate) mod namespaces;
pub(crate) mod notice;
pub mod outgoing_proxy;
pub(crate) mod ownership;
pub mod paths;
pub mod podman;
pub(crate) mod record;
pub(crate) mod registries;
pub(crate) mod ssh;
pub mod systemd;
pub(crate) mod systemd_creds;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::sync::OnceCell;

use self::paths::{Paths, Scope};
use self::podman::Podman;
use self::ssh::RemoteHost;
use self::systemd::Systemd;
use crate::error::{Failure, Result};
use crate::output::Progress;

/// The host that a command works on. Podman and systemd are connected when they are first needed,
/// so that a command that needs neither works without them.
#[derive(Clone, Debug)]
pub struct Host {
    /// The locations of files.
    pub paths: Paths,
    /// The receiver of the operations' reports.
    pub progress: Progress,
    /// The other machine, if there is one: then only its systemd can be reached.
    pub remote: Option<RemoteHost>,
    podman: OnceCell<Podman>,
    systemd: OnceCell<Systemd>,
}

impl Host {
    /// The host whose files are at `paths`.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            progress: Progress::default(),
            remote: None,
            podman: OnceCell::new(),
            systemd: OnceCell::new(),
        }
    }

    /// Another machine, of which only systemd is needed.
    #[must_use]
    pub fn remote(scope: Scope, remote: RemoteHost) -> Self {
        Self {
            remote: Some(remote),
            ..Self::new(Paths::elsewhere(scope))
        }
    }

    /// The same host with another progress.
    #[must_use]
    pub fn reporting(&self, progress: Progress) -> Self {
        Self {
            progress,
            ..self.clone()
        }
    }

    /// The scope of the units.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.paths.scope
    }

    /// The host's Podman.
    ///
    /// # Errors
    /// When it is missing.
    pub async fn podman(&self) -> Result<&Podman> {
        self.podman.get_or_try_init(async || Podman::find()).await
    }

    /// The connection to systemd.
    ///
    /// # Errors
    /// When the bus can't be reached.
    pub async fn systemd(&self) -> Result<&Systemd> {
        self.systemd
            .get_or_try_init(|| Systemd::connect(self.scope(), self.remote.as_ref()))
            .await
    }
}

/// The name of this host.
pub(crate) fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// This program, as units and Podman call it.
///
/// A package may be upgraded while this program runs. The kernel then shows its file as `PATH
/// (deleted)`. Units must start the new file at `PATH`.
///
/// # Errors
/// When the kernel does not say, or the program was removed.
pub fn program() -> Result<PathBuf> {
    let found = std::env::current_exe().context("can't find the path of this program")?;
    let path = place_of(&found);
    if !podman::is_executable(&path) {
        return Err(Failure::new(format!(
            "{} was removed while this program ran",
            path.display()
        ))
        .hint("install litellm-units again, then run the same command")
        .into());
    }
    Ok(path)
}

/// The path without the kernel's suffix for a file that was replaced or removed.
fn place_of(executable: &Path) -> PathBuf {
    let bytes = executable.as_os_str().as_bytes();
    match bytes.strip_suffix(b" (deleted)") {
        Some(path) if !executable.exists() => PathBuf::from(OsStr::from_bytes(path)),
        _ => executable.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_replaced_program() {
        assert_eq!(
            place_of(Path::new("/usr/bin/litellm-units (deleted)")),
            Path::new("/usr/bin/litellm-units")
        );
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join("x (deleted)");
        std::fs::write(&odd, "").unwrap();
        assert_eq!(place_of(&odd), odd);
    }
}

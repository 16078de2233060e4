//! Every effect on the host, reached through one value.

use std::path::PathBuf;

use anyhow::Context;
use tokio::sync::OnceCell;

use crate::error::Result;
use crate::paths::{Paths, Scope};
use crate::podman::Podman;
use crate::remote::Remote;
use crate::systemd::Systemd;

/// The host that a command works on. Collaborators are found when they are first needed, so that
/// a command that needs none of them works without.
#[derive(Debug)]
pub struct Host {
    /// Where everything is.
    pub paths: Paths,
    /// The other machine, if it is one: then only its systemd can be reached.
    pub remote: Option<Remote>,
    podman: OnceCell<Podman>,
    systemd: OnceCell<Systemd>,
}

impl Host {
    /// The host whose files are at `paths`.
    #[must_use]
    pub fn new(paths: Paths) -> Self {
        Self {
            paths,
            remote: None,
            podman: OnceCell::new(),
            systemd: OnceCell::new(),
        }
    }

    /// Another machine, of which only systemd is needed.
    #[must_use]
    pub fn remote(scope: Scope, remote: Remote) -> Self {
        Self {
            remote: Some(remote),
            ..Self::new(Paths::elsewhere(scope))
        }
    }

    /// Whose units these are.
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

/// This program, as units and Podman call it.
///
/// # Errors
/// When the kernel does not tell.
pub fn program() -> Result<PathBuf> {
    std::env::current_exe().context("can't find out where this program is")
}

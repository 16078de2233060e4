//! The gateway's HTTP interface.

pub(crate) mod advisories;
pub mod config;
pub(crate) mod contract;
pub(crate) mod health;
pub mod keys;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod release;
pub(crate) mod ui;

use std::time::Duration;

use anyhow::Context;

use crate::deployment::settings::GATEWAY_PORT;
use crate::error::Result;
use crate::host::listener;
use crate::host::paths::Scope;
use crate::tls;

/// A client of one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// The user who must own the gateway's address; `None` if any may.
    owner: Option<u32>,
}

impl Client {
    /// A client of the gateway that the units of `scope` run on this host. `timeout` is for each
    /// request. No request is sent while another user owns the address: that user would get a key,
    /// or be taken for the gateway.
    ///
    /// # Errors
    /// When the HTTP client can't be set up.
    pub fn local(scope: Scope, timeout: Duration) -> Result<Self> {
        let owner = match scope {
            Scope::System => 0,
            Scope::User => nix::unistd::geteuid().as_raw(),
        };
        Ok(Self {
            owner: Some(owner),
            ..Self::at(format!("http://127.0.0.1:{GATEWAY_PORT}"), timeout)?
        })
    }

    /// A client of the gateway at `base`, without a slash at its end.
    ///
    /// # Errors
    /// When the HTTP client can't be set up.
    pub fn at(base: String, timeout: Duration) -> Result<Self> {
        let http = http()
            .timeout(timeout)
            .build()
            .context("can't set up the HTTP client")?;
        Ok(Self {
            http,
            base,
            owner: None,
        })
    }

    /// The client for one request.
    ///
    /// # Errors
    /// The reason in words, if the gateway's address belongs to another user.
    fn http(&self) -> Result<&reqwest::Client, String> {
        let found = self.owner.and_then(|_| listener::owner(GATEWAY_PORT));
        match found {
            Some(uid) if self.owner != Some(uid) => Err(format!(
                "a process of another user (uid {uid}) has the address"
            )),
            _ => Ok(&self.http),
        }
    }

    /// The address that requests go to.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// The common settings of the gateway's HTTP clients. The gateway is on this host: a proxy of the
/// environment must not see the requests.
fn http() -> reqwest::ClientBuilder {
    tls::install();
    reqwest::Client::builder().no_proxy()
}

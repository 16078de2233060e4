//! The gateway's HTTP interface.

pub(crate) mod advisories;
pub mod config;
pub(crate) mod contract;
pub(crate) mod health;
pub mod keys;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod release;
pub(crate) mod ui;

use std::time::Duration;

use anyhow::Context;
use reqwest::redirect::Policy;

use crate::deployment::listen::{Listen, ListenAddress};
use crate::error::{Failure, Result};
use crate::host::listener;
use crate::host::paths::{Paths, Scope};
use crate::tls;

/// A client of one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// The gateway of this host: its address, and the user who must own that.
    local: Option<(ListenAddress, u32)>,
}

/// The address at which this host reaches the gateway that the installed units run.
#[must_use]
pub fn address(paths: &Paths) -> ListenAddress {
    Listen::installed(paths).unwrap_or_default().own()
}

/// Whether a line is one of those that LiteLLM prints at every start or end: they come last, whatever went wrong.
pub(crate) fn is_banner(line: &str) -> bool {
    const PARTS: [&str; 4] = [
        "Thank you for using LiteLLM!",
        "Give Feedback / Get Help: ",
        "LiteLLM: Proxy initialized with Config",
        "Setting Cache on Proxy",
    ];
    (line.starts_with("# ") && line.ends_with(" #")) || PARTS.iter().any(|part| line.contains(part))
}

impl Client {
    /// A client of the gateway that the installed units run on this host. `timeout` is for each
    /// request. No request is sent while another user or another host owns the address: it would get
    /// a key, or be taken for the gateway.
    ///
    /// # Errors
    /// When the HTTP client can't be set up.
    pub fn local(paths: &Paths, timeout: Duration) -> Result<Self> {
        let owner = match paths.scope {
            Scope::System => 0,
            Scope::User => nix::unistd::geteuid().as_raw(),
        };
        let address = address(paths);
        let base = match &address {
            ListenAddress::Tcp(_) => address.url(),
            // The name is for the Host header.
            ListenAddress::Unix(_) => "http://localhost".into(),
        };
        Ok(Self {
            http: http(Some(&address), timeout, Policy::default())?,
            base,
            local: Some((address, owner)),
        })
    }

    /// A client of the gateway at `base`, without a slash at its end.
    ///
    /// # Errors
    /// When the HTTP client can't be set up.
    pub fn at(base: String, timeout: Duration) -> Result<Self> {
        Ok(Self {
            http: http(None, timeout, Policy::default())?,
            base,
            local: None,
        })
    }

    /// The client for one request.
    fn http(&self) -> Result<&reqwest::Client, String> {
        self.check_owner().map(|()| &self.http)
    }

    /// A client for requests of a browser: it follows no redirect.
    fn browser(&self, timeout: Duration) -> Result<reqwest::Client> {
        self.check_owner().map_err(Failure::new)?;
        let address = self.local.as_ref().map(|(address, _)| address);
        http(address, timeout, Policy::none())
    }

    fn check_owner(&self) -> Result<(), String> {
        let Some((address, owner)) = &self.local else {
            return Ok(());
        };
        let found = match address {
            ListenAddress::Tcp(address) if !listener::is_here(address.ip()) => {
                return Err(format!("this host does not have {} now", address.ip()));
            }
            ListenAddress::Tcp(address) => listener::owner(*address),
            ListenAddress::Unix(path) => listener::owner_of(path),
        };
        match found {
            Some(uid) if uid != *owner => Err(format!(
                "a process of another user (uid {uid}) has the address"
            )),
            _ => Ok(()),
        }
    }

    /// The address that requests go to, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        match &self.local {
            Some((address, _)) => address.url(),
            None => self.base.clone(),
        }
    }
}

/// An HTTP client of the gateway. The gateway is on this host: a proxy of the environment must not see the requests, nor
/// another host to which the address has moved. No connection from an address to itself leaves a host.
fn http(
    address: Option<&ListenAddress>,
    timeout: Duration,
    redirects: Policy,
) -> Result<reqwest::Client> {
    tls::install();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .timeout(timeout)
        .redirect(redirects);
    match address {
        Some(ListenAddress::Unix(path)) => builder.unix_socket(path.as_path()),
        Some(ListenAddress::Tcp(address)) => builder.local_address(address.ip()),
        None => builder,
    }
    .build()
    .context("can't set up the HTTP client")
}

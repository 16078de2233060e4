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
use crate::tls;

/// A client of one gateway.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of the gateway on this host. Each request is given up after `timeout`.
    ///
    /// # Errors
    /// When the HTTP client can't be set up.
    pub fn local(timeout: Duration) -> Result<Self> {
        Self::at(format!("http://127.0.0.1:{GATEWAY_PORT}"), timeout)
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
        Ok(Self { http, base })
    }

    /// The address that requests go to.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// What every HTTP client of the gateway is built from. The gateway is on this host: a proxy of the
/// environment must not see the requests.
fn http() -> reqwest::ClientBuilder {
    tls::install();
    reqwest::Client::builder().no_proxy()
}

//! The one integration test binary.
//!
//! Everything outside `e2e` runs anywhere. `e2e` boots real hosts (tests/host) and needs root.

mod architecture;
mod cli;
mod config_check;
mod deployment;
mod documents;
mod e2e;
mod env_file;
mod fleet;
mod golden;
mod keys_http;
mod plan;
mod programs;
mod properties;
mod settings;
#[cfg(feature = "signatures")]
mod signatures;
mod support;
mod trust;

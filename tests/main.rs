//! The one integration test binary.
//!
//! Everything outside `e2e` runs anywhere. `e2e` boots real hosts (tests/host) and needs root.

mod config_check;
mod e2e;
mod env_file;
mod support;

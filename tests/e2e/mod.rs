//! On a real host, with the real LiteLLM, PostgreSQL and Redis.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod advisories;
mod arguments;
mod backup;
mod configurations;
mod contract;
mod daily;
mod dev;
mod docs;
mod doctor;
mod external;
mod failover;
mod faults;
mod firewall;
#[cfg(feature = "fault-points")]
mod fleet;
#[cfg(feature = "fault-points")]
mod import;
mod keys;
mod main_job;
mod matrix;
mod notices;
mod overload;
mod packages;
#[cfg(feature = "fault-points")]
mod postgres;
mod proxies;
mod published;
mod quadlet;
mod random;
mod recovery;
#[cfg(feature = "fault-points")]
mod releases;
mod replicas;
mod seal;
mod secrets;
mod starts;
mod trust;
mod upgrade;
mod values;

//! `start`, `stop` and `restart`: single services, or all of them.

use std::collections::HashSet;

use crate::cli;
use crate::deployment::certificates;
use crate::deployment::extra;
use crate::deployment::settings::Settings;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::lock::OperationLock;
use crate::host::paths::Paths;
use crate::host::systemd::job::JobType;
use crate::litellm::{config, contract};
use crate::operations::stack::{self, Manner};
use crate::operations::{backup, pull, recycle};
use crate::output::say;
use crate::service::{Instance, Service};

/// What takes long and touches no unit: no start and no restart waits for it.
const BESIDE: [&str; 5] = [
    backup::COMMAND,
    backup::VERIFY_COMMAND,
    backup::FETCH_COMMAND,
    pull::COMMAND,
    recycle::COMMAND,
];

pub(crate) async fn restart(host: &Host, arguments: &cli::Restart) -> Result<Exit> {
    let manner = if arguments.handover {
        Manner::Handover
    } else {
        Manner::AtOnce
    };
    change(host, JobType::Restart, &arguments.units, manner).await
}

/// Runs `start` or `stop`.
pub(crate) async fn run(host: &Host, verb: JobType, arguments: &cli::Units) -> Result<Exit> {
    change(host, verb, arguments, Manner::AtOnce).await
}

async fn change(
    host: &Host,
    verb: JobType,
    arguments: &cli::Units,
    manner: Manner,
) -> Result<Exit> {
    let command = match verb {
        JobType::Start => "start",
        JobType::Restart | JobType::RestartAlone | JobType::Reload => "restart",
        JobType::Stop => "stop",
    };
    // Stopping must always be possible. On another machine, only systemd is reached, not the lock.
    let is_remote = host.remote.is_some();
    let beside = BESIDE.into_iter().find(|command| {
        verb != JobType::Stop && !is_remote && OperationLock::is_held_by(&host.paths, command)
    });
    if let Some(command) = beside {
        let services = &arguments.services;
        let restarts_database = verb == JobType::Restart
            && (services.is_empty() || services.contains(&Service::Postgres));
        say(&format!(
            "`litellm-units {command}` is running and {}",
            if restarts_database && [backup::COMMAND, backup::VERIFY_COMMAND].contains(&command) {
                "fails if it still uses the database: run it again then"
            } else {
                "continues"
            }
        ));
    }
    let _lock = if verb == JobType::Stop || beside.is_some() || is_remote {
        None
    } else {
        let (lock, damage) = super::begin_without_ledger(host, command, arguments.timeout).await?;
        if let Some(error) = damage {
            host.progress.warn(&format!("{error:#}"));
        }
        Some(lock)
    };
    let systemd = host.systemd().await?;
    if is_remote && verb != JobType::Stop && stack::is_address_held(systemd).await? {
        return Err(Failure::new("another operation is running on that host")
            .hint("wait for it; see what it is: `litellm-units status` there")
            .into());
    }
    let members = stack::member_units(systemd).await?;
    let mut units = Vec::new();
    let mut services = Service::ALL.to_vec();
    services.extend(&arguments.services);
    services.extend(stack::optional(systemd).await?);
    let mut seen = HashSet::new();
    services.retain(|service| seen.insert(*service));
    for service in services {
        let named = arguments.services.contains(&service);
        let known = members.contains(&service.unit());
        // Its connections are worth more than a restart that was meant for the gateway.
        let is_spared = service == Service::Entrance && verb == JobType::Restart;
        let is_meant = named || (arguments.services.is_empty() && !is_spared);
        let file = Instance::from(service).quadlet();
        let is_installed = !is_remote && host.paths.quadlets.join(file).exists();
        if is_meant && is_installed && !known && verb != JobType::Stop {
            return Err(Failure::new(format!(
                "{} is missing, although its file is installed",
                service.unit()
            ))
            .hint("see why: `litellm-units doctor`")
            .into());
        }
        if named && !known {
            return Err(unknown(host, service));
        }
        if known && is_meant {
            units.push(service.unit());
        }
    }
    if units.is_empty() {
        return Err(none());
    }
    if verb == JobType::Stop {
        if units.contains(&Service::Litellm.unit()) {
            units.extend(stack::beside_gateway(systemd).await?);
        }
        units.reverse();
        if arguments.services.is_empty() {
            // Nothing is missing in a stack that is stopped as a whole. A start activates it again.
            units.push("litellm.target");
        }
        stack::stop(host, &units, arguments.timeout).await?;
    } else {
        let gateway = Service::Litellm.unit();
        if !is_remote && units.contains(&gateway) {
            // The start would fail for good, and nothing would serve.
            if verb == JobType::Restart && systemd.unit(gateway).await?.is_active() {
                refuse_invalid(&host.paths)?;
            }
            contract::check_after_update(host).await;
        }
        let steps: Vec<_> = units.into_iter().map(|unit| (verb, unit)).collect();
        stack::start_units(host, &steps, manner, arguments.timeout).await?;
    }
    Ok(Exit::Success)
}

/// Refuses files with which no start of the gateway succeeds.
fn refuse_invalid(paths: &Paths) -> Result<()> {
    Settings::load(&paths.env_file())?;
    config::refuse_unreadable(&paths.config_file())?;
    certificates::refuse_invalid(paths)
}

pub(super) fn none() -> anyhow::Error {
    Failure::new("no unit of the stack is installed on this host")
        .hint("install the units first: `litellm-units generate`")
        .into()
}

pub(super) fn unknown(host: &Host, service: Service) -> anyhow::Error {
    if service.is_extra() {
        let own = extra::installed(&host.paths);
        let known = Service::ALL.iter().chain(&own).map(|known| known.name());
        return Failure::new(format!(
            "there is no service {:?} on this host",
            service.name()
        ))
        .hint(format!(
            "the services here: {}; after an edit of extra.d/: `litellm-units apply`",
            known.collect::<Vec<_>>().join(", ")
        ))
        .into();
    }
    if service == Service::Entrance {
        return Failure::new("there is no entrance on this host")
            .hint("add PUBLIC_URL to .env, then run `litellm-units apply` (docs/reverse-proxy.md)")
            .into();
    }
    Failure::new(format!("there is no {} on this host", service.unit()))
        .hint("install the units with `litellm-units generate`; if .env has DATABASE_URL or REDIS_HOST, that server is external")
        .into()
}

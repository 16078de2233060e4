//! `start`, `stop` and `restart`: single services, or all of them.

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::settings::Service;
use crate::stack;
use crate::systemd::job::Verb;

/// Runs the command.
///
/// # Errors
/// When a service has no unit here, a unit fails, or the gateway is not ready in time.
pub async fn run(host: &Host, verb: Verb, arguments: &cli::Units) -> Result<Exit> {
    // Stopping must always be possible; and of another machine, only systemd is seen.
    let command = match verb {
        Verb::Start => "start",
        Verb::Restart | Verb::RestartAlone => "restart",
        Verb::Stop => "stop",
    };
    let unlocked = verb == Verb::Stop || host.remote.is_some();
    let _lock = super::begin(host, command, unlocked, arguments.timeout).await?;
    let systemd = host.systemd().await?;
    let members = stack::member_units(systemd).await?;
    let mut units = Vec::new();
    for service in Service::ALL {
        let named = arguments.services.contains(&service);
        let known = members.contains(&service.unit());
        if named && !known {
            return Err(Failure::new(format!("there is no {} on this host", service.unit()))
                .hint("install the units with litellm-units generate; with DATABASE_URL or REDIS_HOST in .env, that server is external")
                .into());
        }
        if known && (named || arguments.services.is_empty()) {
            units.push(service.unit());
        }
    }
    if units.is_empty() {
        return Err(
            Failure::new("no unit of the stack is installed on this host")
                .hint("install the units first: litellm-units generate")
                .into(),
        );
    }
    if verb == Verb::Stop {
        if units.contains(&Service::Litellm.unit()) {
            units.extend(stack::beside_gateway(systemd).await?);
        }
        units.reverse();
        stack::stop(host, &units, arguments.timeout).await?;
    } else {
        let steps: Vec<_> = units.into_iter().map(|unit| (verb, unit)).collect();
        stack::change(host, &steps, arguments.timeout).await?;
    }
    Ok(Exit::Success)
}

//! `logs`: the journal of the services, in the form of compose.

use std::io::Write;

use anstyle::{AnsiColor, Style};

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::journal::{self, Query};
use crate::operations::stack;
use crate::operations::stack::LogSource;
use crate::output::say;
use crate::service::{Instance, Service};

pub(crate) async fn run(host: &Host, arguments: &cli::Logs) -> Result<Exit> {
    let services: Vec<LogSource> = if arguments.services.is_empty() {
        LogSource::ALL.into()
    } else {
        arguments.services.clone()
    };
    let query = Query {
        scope: host.scope(),
        remote: None,
        units: services
            .iter()
            .flat_map(|service| service.units())
            .collect(),
        follow: arguments.follow,
        tail: arguments.tail.0,
        since: arguments.since.as_deref().map(time).transpose()?,
        until: arguments.until.as_deref().map(time).transpose()?,
    };
    // A unit's lines have its name only if there are several gateways: those of the standby are the gateway's.
    let further: Vec<Instance> = Instance::further(Instance::MOST)
        .filter(|instance| host.paths.quadlets.join(instance.quadlet()).exists())
        .collect();
    let name = |service: &LogSource, unit: &str| {
        let instance = further.iter().find(|instance| instance.unit() == unit);
        instance.map_or(service.name(), |instance| instance.name())
    };
    let width = services
        .iter()
        .flat_map(|service| {
            let units = service.units();
            units.into_iter().map(|unit| name(service, unit).len())
        })
        .max()
        .unwrap_or(0);
    let mut out: Box<dyn Write> = if arguments.no_color {
        Box::new(anstream::StripStream::new(std::io::stdout()))
    } else {
        Box::new(anstream::stdout())
    };
    let mut empty = true;
    journal::read(&query, |entry| {
        let Some(service) = services
            .iter()
            .find(|service| service.units().contains(&entry.unit.as_str()))
        else {
            return Ok(());
        };
        empty = false;
        for line in entry.message.lines() {
            if !arguments.no_log_prefix {
                let style = style(*service);
                let name = name(service, &entry.unit);
                write!(out, "{style}{name:width$} |{style:#} ")?;
            }
            if arguments.timestamps {
                write!(out, "{} ", entry.time)?;
            }
            writeln!(out, "{line}")?;
        }
        out.flush()
    })
    .await?;
    if empty && !arguments.follow {
        let names: Vec<_> = services
            .iter()
            .flat_map(|service| service.units())
            .collect();
        if stack::member_units(host.systemd().await?).await?.is_empty() {
            return Err(super::lifecycle::none());
        }
        say(&format!(
            "the journal has no lines of {} for this selection",
            names.join(", ")
        ));
    }
    Ok(Exit::Success)
}

fn style(source: LogSource) -> Style {
    match source {
        LogSource::Service(Service::Litellm) => AnsiColor::Cyan,
        LogSource::Service(Service::Postgres) => AnsiColor::Yellow,
        LogSource::Service(Service::Redis) => AnsiColor::Green,
        LogSource::Service(Service::Migrate) => AnsiColor::Magenta,
        LogSource::Images | LogSource::Network => AnsiColor::Blue,
    }
    .on_default()
}

/// Translates compose's times into journalctl's: `42m` becomes `-42m`, RFC 3339 loses its `T` and `Z`.
fn time(text: &str) -> Result<String> {
    let age = !text.is_empty()
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_ascii_digit() || "smhdw".contains(c))
        && text.ends_with(|c: char| c.is_ascii_alphabetic());
    if age {
        return Ok(format!("-{text}"));
    }
    if text.is_empty() || text.starts_with('-') {
        return Err(Failure::new(format!("{text:?} is not a time"))
            .hint("use an age such as 42m, or a time such as 2026-01-31T12:00:00Z")
            .into());
    }
    let text = match text.split_once('T') {
        Some((date, clock)) if date.len() == 10 => format!("{date} {clock}"),
        _ => text.to_owned(),
    };
    Ok(match text.strip_suffix('Z') {
        Some(time) => format!("{time} UTC"),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_of_compose() {
        assert_eq!(time("1h30m").unwrap(), "-1h30m");
        assert_eq!(
            time("2026-01-31T12:00:00Z").unwrap(),
            "2026-01-31 12:00:00 UTC"
        );
        assert_eq!(time("yesterday").unwrap(), "yesterday");
        assert_eq!(time("").unwrap_err().to_string(), "\"\" is not a time");
    }
}

//! `logs`: the journal of the services, in the form of compose.

use std::collections::HashSet;
use std::io::Write;

use anstyle::{AnsiColor, Style};

use crate::cli;
use crate::deployment::{entrance, extra};
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::journal::{self, Query};
use crate::host::systemd::LoadState;
use crate::litellm::log;
use crate::operations::stack::report::AdditionalService;
use crate::operations::stack::{self, LogSource, blockers};
use crate::output::say;
use crate::quadlet;
use crate::service::{Instance, Service};

/// A unit whose lines are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    unit: String,
    /// What stands before its lines.
    name: String,
}

pub(crate) async fn run(host: &Host, arguments: &cli::Logs) -> Result<Exit> {
    let sources = sources(host, &arguments.services).await?;
    let query = Query {
        scope: host.scope(),
        remote: None,
        units: sources.iter().map(|source| &*source.unit).collect(),
        follow: arguments.follow,
        tail: arguments.tail.0,
        since: arguments.since.as_deref().map(time).transpose()?,
        until: arguments.until.as_deref().map(time).transpose()?,
    };
    let width = sources.iter().map(|source| source.name.len()).max();
    let width = width.unwrap_or(0);
    let mut out: Box<dyn Write> = if arguments.no_color {
        Box::new(anstream::StripStream::new(std::io::stdout()))
    } else {
        Box::new(anstream::stdout())
    };
    let mut empty = true;
    journal::read(&query, |entry| {
        let Some(source) = sources.iter().find(|source| source.unit == entry.unit) else {
            return Ok(());
        };
        empty = false;
        let text = if arguments.raw {
            entry.message
        } else {
            log::readable(&entry.message)
        };
        for line in text.lines() {
            if !arguments.no_log_prefix {
                let style = style(&source.unit);
                let name = &source.name;
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
        if stack::member_units(host.systemd().await?).await?.is_empty() {
            return Err(super::lifecycle::none());
        }
        say(&format!(
            "the journal has no lines of {} for this selection",
            query.units.join(", ")
        ));
    }
    Ok(Exit::Success)
}

/// The units of the named sources; without names, of all that are of the stack itself.
async fn sources(host: &Host, names: &[String]) -> Result<Vec<Source>> {
    // A unit's lines have its name only if there are several gateways: those of the standby are the gateway's.
    let further: Vec<Instance> = Instance::further(Instance::MOST)
        .filter(|instance| host.paths.unit_file(*instance).exists())
        .collect();
    let all = |source: LogSource| {
        let further = &further;
        source.units().into_iter().map(move |unit| {
            let instance = further.iter().find(|instance| instance.unit() == unit);
            Source {
                unit: unit.to_owned(),
                name: instance.map_or(source.name(), |one| one.name()).to_owned(),
            }
        })
    };
    let mut known = LogSource::ALL.to_vec();
    let own = extra::installed(&host.paths).into_iter();
    let own = own.chain(entrance::installed(&host.paths));
    known.extend(own.map(LogSource::Service));
    if names.is_empty() {
        return Ok(known.into_iter().flat_map(all).collect());
    }
    let mut found: Vec<Source> = Vec::new();
    for name in names {
        if let Some(source) = known.iter().copied().find(|one| one.name() == name) {
            found.extend(all(source));
        } else {
            let (unit, name) = named_unit(host, name).await?;
            found.push(Source { unit, name });
        }
    }
    let mut seen = HashSet::new();
    found.retain(|source| seen.insert(source.unit.clone()));
    Ok(found)
}

/// The unit that `name` means, with or without its suffix: one of ours, one of the operator's own in `litellm.target`, or one
/// that keeps services from starting. With the name to show.
async fn named_unit(host: &Host, name: &str) -> Result<(String, String)> {
    let systemd = host.systemd().await?;
    let own = AdditionalService::find(systemd, &systemd.unit("litellm.target").await?).await?;
    let own = own.into_iter().map(|service| service.unit);
    let instances = stack::instances(systemd).await?;
    let blockers = blockers::without_lines(systemd, &instances).await?;
    let blockers = blockers.into_iter().map(|blocker| blocker.unit.name);
    let others: Vec<String> = own.chain(blockers).collect();
    for unit in [name.to_owned(), format!("{name}.service")] {
        let is_ours = unit.starts_with("litellm")
            && [".service", ".socket", ".target", ".timer"]
                .iter()
                .any(|kind| unit.ends_with(kind));
        if others.contains(&unit)
            || is_temporary(&unit)
            || (is_ours && systemd.unit(&unit).await?.load != LoadState::NotFound)
        {
            let name = without_suffix(&unit).to_owned();
            return Ok((unit, name));
        }
    }
    let mut known: Vec<&str> = LogSource::ALL.into_iter().map(LogSource::name).collect();
    known.extend(instances.iter().map(|(instance, _)| instance.name()));
    known.push(without_suffix(stack::STANDBY_UNIT));
    known.extend(others.iter().map(|unit| without_suffix(unit)));
    let mut seen = HashSet::new();
    known.retain(|name| seen.insert(*name));
    Err(Failure::new(format!("{name:?} has no logs on this host"))
        .hint(format!("the names here: {}", known.join(", ")))
        .into())
}

/// Whether a unit comes and goes: its journal stays when systemd does not know it any more.
fn is_temporary(unit: &str) -> bool {
    let name = without_suffix(unit);
    name != unit
        && ([quadlet::NEXT_MIGRATION, quadlet::NEXT_SERVER].contains(&name)
            || Instance::further(Instance::MOST).any(|instance| instance.unit() == unit))
}

fn without_suffix(unit: &str) -> &str {
    unit.strip_suffix(".service").unwrap_or(unit)
}

fn style(unit: &str) -> Style {
    let color = match LogSource::of_unit(unit) {
        Some(LogSource::Service(Service::Litellm)) => AnsiColor::Cyan,
        Some(LogSource::Service(Service::Postgres)) => AnsiColor::Yellow,
        Some(LogSource::Service(Service::Redis)) => AnsiColor::Green,
        Some(LogSource::Service(Service::Migrate)) => AnsiColor::Magenta,
        Some(LogSource::Images | LogSource::Network) => AnsiColor::Blue,
        Some(LogSource::Service(Service::Entrance | Service::Extra(_))) | None => {
            return Style::new();
        }
    };
    color.on_default()
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
    use super::{is_temporary, time};

    #[test]
    fn units_that_are_gone_have_logs() {
        for unit in [
            "litellm-migrate-next.service",
            "litellm-postgres-next.service",
            "litellm-8.service",
        ] {
            assert!(is_temporary(unit), "{unit}");
        }
        for unit in [
            "litellm-migrate-next",
            "litellm-9.service",
            "reddis.service",
        ] {
            assert!(!is_temporary(unit), "{unit}");
        }
    }

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

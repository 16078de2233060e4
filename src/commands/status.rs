//! `status`: the report for people and as JSON.

pub(crate) mod screen;
pub(crate) mod watch;

use std::time::Duration;

use crate::cli;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::host::systemd::{ActiveState, UnitResult};
use crate::operations::debug;
use crate::operations::stack::LogSource;
use crate::operations::stack::report::{
    BlockerReport, Recycled, ServiceReport, State, StatusReport, gather,
};
use crate::output::{self, Loss, bytes, duration};

pub(crate) async fn run(host: &Host, arguments: &cli::Status) -> Result<Exit> {
    if arguments.watch {
        return watch::run(host, arguments).await;
    }
    let report = gather(host).await?;
    for warning in &report.stack.warnings {
        output::warn(warning);
    }
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&table(&report))?;
    }
    Ok(match report.state {
        State::Healthy => Exit::Success,
        State::Stopped => Exit::Stopped,
        State::Starting | State::Degraded => Exit::Degraded,
    })
}

impl BlockerReport {
    /// For people: the fault, its cause and the next command.
    fn lines(&self) -> String {
        let mark = if self.failing { '!' } else { '-' };
        let mut lines = format!("{mark} {}\n", self.words);
        if let Some(message) = &self.message {
            lines.push_str(&format!("  last message: {message}\n"));
        }
        if let Some(source) = LogSource::of_unit(&self.unit).filter(|_| self.failing) {
            let source = source.name();
            lines.push_str(&format!("  all messages: `litellm-units logs {source}`\n"));
        }
        lines
    }
}

/// For people: what a service does.
fn state(active: &ActiveState, sub: &str, result: &UnitResult) -> String {
    match active {
        ActiveState::Failed => format!("failed ({result})"),
        _ if sub.starts_with("auto-restart") => "restarting (failed)".into(),
        active => format!("{active} ({sub})"),
    }
}

impl ServiceReport {
    fn state(&self) -> String {
        match &self.active {
            ActiveState::Inactive if self.queued => "waiting (to start)".into(),
            active => state(active, &self.sub, &self.result),
        }
    }

    fn health(&self) -> String {
        self.health.map_or("-".into(), |health| health.to_string())
    }

    fn uptime(&self) -> String {
        match self.uptime_seconds {
            None => "-".into(),
            Some(seconds @ 0..10) => format!("{seconds} s"),
            Some(seconds) => duration(Duration::from_secs(seconds)),
        }
    }

    fn memory(&self) -> String {
        self.memory_bytes.map_or("-".into(), bytes)
    }

    /// Marked if a restart is pending.
    fn marked_name(&self) -> String {
        let mark = match &self.changed {
            Some(changed) if !changed.is_empty() => "*",
            _ => "",
        };
        format!("{}{mark}", self.service)
    }
}

fn table(report: &StatusReport) -> String {
    if report.stack.reports.is_empty() {
        return format!(
            "no unit of the stack is installed on this host; to install and start it: `litellm-units up`\ngateway {}: {}\n",
            report.gateway.address, report.gateway.health
        );
    }
    let mut rows = vec![
        [
            "SERVICE", "STATE", "HEALTH", "UPTIME", "RESTARTS", "MEMORY", "IMAGE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for service in &report.stack.reports {
        let image = service.image.as_deref().unwrap_or("-");
        rows.push(vec![
            service.marked_name(),
            service.state(),
            service.health(),
            service.uptime(),
            service.restarts.to_string(),
            service.memory(),
            image.into(),
        ]);
    }
    for service in &report.stack.additional {
        let mut row = vec![
            service.unit.trim_end_matches(".service").to_owned(),
            state(&service.active, &service.sub, &service.result),
        ];
        row.resize(rows[0].len(), "-".to_owned());
        rows.push(row);
    }
    let mut text = output::table(
        &rows,
        &[
            Loss::Registry("IMAGE"),
            Loss::Column("IMAGE"),
            Loss::Column("RESTARTS"),
        ],
    );
    text.push_str(&format!(
        "gateway {}: {}\n",
        report.gateway.address, report.gateway.health
    ));
    for blocker in &report.stack.blockers {
        text.push_str(&blocker.lines());
    }
    for note in notes(report) {
        text.push_str(&match report.stack.operation {
            None => format!("* {note}; to apply: `litellm-units apply`\n"),
            Some(_) => format!("* {note}\n"),
        });
    }
    text.extend(archive_note(report).map(|note| format!("{note}\n")));
    let by = { report.stack.backup.as_ref() }.and_then(|backup| backup.by.as_ref());
    text.extend(by.map(|by| format!("backups: made by {by}\n")));
    text.extend(report.stack.recycled.iter().map(recycled_note));
    if let Some(until) = report.stack.debug_until {
        let until = debug::time(until);
        text.push_str(&format!(
            "! debug until {until}: see `litellm-units debug`\n"
        ));
    }
    if let Some(operation) = &report.stack.operation {
        text.push_str(&format!("{operation}\n"));
    }
    if let Some(known) = &report.stack.known {
        text.push_str(&format!("! {known}: see `litellm-units upgrade --check`\n"));
    }
    text.extend(release_note(report).map(|note| format!("{note}\n")));
    text
}

/// A gateway that was replaced because its memory had grown.
fn recycled_note(recycled: &Recycled) -> String {
    let age = jiff::Timestamp::now().duration_since(recycled.at);
    format!(
        "{} was replaced {} ago, when it held {} of memory\n",
        recycled.unit,
        duration(age.try_into().unwrap_or_default()),
        bytes(recycled.memory_bytes)
    )
}

/// How much of the database is archived.
fn archive_note(report: &StatusReport) -> Option<String> {
    let archive = report.stack.archive.as_ref()?;
    let place = archive.url.as_deref().unwrap_or("on this host only");
    Some(match archive.lag() {
        None => "write-ahead log: nothing is archived yet".to_owned(),
        Some(_) if !archive.recoverable => {
            "write-ahead log: there is no base backup yet, without which nothing can be recovered"
                .to_owned()
        }
        Some(lag) => format!("write-ahead log: archived until {lag} ago ({place})"),
    })
}

/// A newer release, or the failure to list them.
fn release_note(report: &StatusReport) -> Option<String> {
    let check = report.stack.upgrade_check.as_ref()?;
    let checked: jiff::Timestamp = check.checked.parse().ok()?;
    let age = jiff::Timestamp::now().duration_since(checked);
    let age = duration(age.try_into().unwrap_or_default());
    // The upgrade may have taken place since.
    let gateway = report
        .stack
        .reports
        .iter()
        .find(|service| service.service == "litellm");
    let present = gateway.and_then(|gateway| gateway.image.as_deref());
    match (&check.recommended, &check.error) {
        (Some(recommended), _) if present != Some(recommended.image.as_str()) => Some(format!(
            "LiteLLM {} is available (checked {age} ago)",
            recommended.release
        )),
        (_, Some(_)) => Some(format!(
            "newer releases could not be listed {age} ago: see `litellm-units upgrade --check`"
        )),
        _ => None,
    }
}

/// For each mark: `litellm: OPENAI_API_KEY changed`.
fn notes(report: &StatusReport) -> Vec<String> {
    report
        .stack
        .reports
        .iter()
        .filter_map(|service| {
            let changed = service.changed.as_ref().filter(|list| !list.is_empty())?;
            Some(format!("{}: {}", service.service, changed.join(", ")))
        })
        .collect()
}

//! `history`: releases, and attempts that failed.

use serde::Serialize;

use crate::cli::upgrade::History;
use crate::deployment::ledger::{Event, Ledger, LedgerRecord, OperationOutcome};
use crate::deployment::operation_id::OperationId;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output::{self, Loss, say};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Entry {
    /// The number by which `rollback` knows the release; null for an attempt that failed.
    release: Option<u32>,
    /// In RFC 3339.
    at: String,
    image: String,
    digest: Option<String>,
    by: String,
    /// The command that started it.
    how: String,
    /// `serves`, `replaced`, `undone` or `interrupted`.
    result: &'static str,
    reason: Option<String>,
    /// Taken before the upgrade from this release.
    backup: Option<OperationId>,
}

pub(crate) fn run(host: &Host, arguments: &History) -> Result<Exit> {
    let ledger = Ledger::load(&host.paths)?;
    let entries = entries(&ledger);
    if arguments.json {
        output::json(&entries)?;
    } else if entries.is_empty() {
        say(
            "no release is recorded yet: the first one is recorded when the gateway is ready (`litellm-units up`)",
        );
    } else {
        output::text(&text(&entries))?;
    }
    Ok(Exit::Success)
}

fn entries(ledger: &Ledger) -> Vec<Entry> {
    let current = ledger.current().map(|release| release.number);
    let mut entries: Vec<Entry> = Vec::new();
    let mut begun: Option<Entry> = None;
    for LedgerRecord { at, by, event } in ledger.records() {
        match event {
            Event::Release(release) => {
                let image = release.gateway();
                entries.push(Entry {
                    release: Some(release.number),
                    at: at.clone(),
                    image: image.map_or("-".into(), |image| image.reference.clone()),
                    digest: image.map(|image| image.identity.digest.clone()),
                    by: by.clone(),
                    how: release.how.clone(),
                    result: if Some(release.number) == current {
                        "serves"
                    } else {
                        "replaced"
                    },
                    reason: None,
                    backup: ledger.backup_of(release.number).cloned(),
                });
            }
            Event::Begun(operation) => {
                begun = Some(Entry {
                    release: None,
                    at: at.clone(),
                    image: operation.to.clone(),
                    digest: None,
                    by: by.clone(),
                    how: operation.verb.to_string(),
                    result: "interrupted",
                    reason: None,
                    backup: None,
                });
            }
            Event::Reached(_) => {}
            Event::Ended(ended) => {
                let attempt = begun.take();
                if ended.outcome == OperationOutcome::Undone {
                    entries.extend(attempt.map(|attempt| Entry {
                        result: "undone",
                        reason: ended.reason.clone(),
                        ..attempt
                    }));
                }
            }
        }
    }
    entries.extend(begun);
    entries
}

/// A line of the table for each entry, and below it what would make the table wider than a terminal.
fn text(entries: &[Entry]) -> String {
    let heading = ["#", "WHEN (UTC)", "IMAGE", "HOW", "RESULT"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for entry in entries {
        let number = entry.release.map(|number| number.to_string());
        rows.push(vec![
            number.unwrap_or("-".into()),
            entry
                .at
                .chars()
                .take(16)
                .collect::<String>()
                .replace('T', " "),
            entry.image.clone(),
            entry.how.clone(),
            entry.result.to_owned(),
        ]);
    }
    let table = output::table(&rows, &[Loss::Registry("IMAGE")]);
    let mut lines = table.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for (line, entry) in lines.zip(entries) {
        text.push_str(&format!("{line}\n   {}\n", details(entry)));
        if let Some(reason) = &entry.reason {
            text.push_str(&format!("   {reason}\n"));
        }
    }
    text
}

fn details(entry: &Entry) -> String {
    let mut details = format!("by {}", entry.by);
    if let Some(digest) = &entry.digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        // As many digits as Podman shows.
        details.push_str(&format!(", digest {}", hex.get(..12).unwrap_or(hex)));
    }
    if let Some(backup) = &entry.backup {
        details.push_str(&format!(", backup {backup}"));
    }
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_a_terminal() {
        let entry = Entry {
            release: Some(12),
            at: "2026-11-27T03:04:05Z".into(),
            image: "ghcr.io/berriai/litellm:v1.108.14".into(),
            digest: Some(format!("sha256:{}", "0123456789abcdef".repeat(4))),
            by: "root".into(),
            how: "rollback".into(),
            result: "interrupted",
            reason: None,
            backup: Some(OperationId::parse("20261127T030405Z-daec83").unwrap()),
        };
        let failed = Entry {
            release: None,
            digest: None,
            result: "undone",
            reason: Some("litellm.service failed".into()),
            backup: None,
            ..entry.clone()
        };
        let text = text(&[entry, failed]);
        assert_eq!(
            text,
            "#   WHEN (UTC)        IMAGE                              HOW       RESULT\n\
             12  2026-11-27 03:04  ghcr.io/berriai/litellm:v1.108.14  rollback  interrupted\n   \
             by root, digest 0123456789ab, backup 20261127T030405Z-daec83\n\
             -   2026-11-27 03:04  ghcr.io/berriai/litellm:v1.108.14  rollback  undone\n   \
             by root\n   \
             litellm.service failed\n"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }
}

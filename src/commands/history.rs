//! `history`: releases, and attempts that failed.

use serde::Serialize;

use crate::cli::upgrade::History;
use crate::deployment::ledger::{Event, Ledger, LedgerRecord, OperationOutcome};
use crate::deployment::operation_id::OperationId;
use crate::error::{Exit, Result};
use crate::host::Host;
use crate::output::{self, say};

#[derive(Debug, PartialEq, Eq, Serialize)]
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
        output::text(&output::columns(&table(&entries)))?;
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

fn table(entries: &[Entry]) -> Vec<Vec<String>> {
    let heading = [
        "RELEASE", "WHEN", "IMAGE", "DIGEST", "BY", "HOW", "RESULT", "BACKUP", "REASON",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for entry in entries {
        // As many digits as Podman shows.
        let digest = entry.digest.as_deref().map(|digest| {
            let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
            hex.chars().take(12).collect::<String>()
        });
        rows.push(vec![
            entry
                .release
                .map_or("-".into(), |number| number.to_string()),
            entry.at.clone(),
            entry.image.clone(),
            digest.unwrap_or("-".into()),
            entry.by.clone(),
            entry.how.clone(),
            entry.result.to_owned(),
            entry
                .backup
                .as_ref()
                .map_or("-".into(), OperationId::to_string),
            entry.reason.clone().unwrap_or("-".into()),
        ]);
    }
    rows
}

//! The journal of our units, by way of `journalctl`.

use std::process::Stdio;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

use crate::paths::Scope;

/// One line of the journal, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "MESSAGE")]
    message: Option<Value>,
    /// Set on the lines in which Podman reports what it does (`container start …`).
    #[serde(rename = "PODMAN_EVENT")]
    event: Option<Value>,
}

/// The last `count` lines of a unit, oldest first,
/// without Podman's own event lines.
///
/// Returns an empty list when the journal can't be read: it only ever explains another failure.
pub async fn last_lines(scope: Scope, unit: &str, count: usize) -> Vec<String> {
    let mut command = Command::new("journalctl");
    command
        .args(["--no-pager", "--output=json", "--output-fields=MESSAGE,PODMAN_EVENT", "-n"])
        // Podman's own lines are dropped below.
        .arg((count * 4).to_string());
    match scope {
        Scope::System => command.args(["--unit", unit]),
        // A system user's lines are in the system journal, so not `journalctl --user`.
        Scope::User => command.args(["--user-unit", unit]),
    };
    let Ok(output) = command.stdin(Stdio::null()).output().await else { return Vec::new() };
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Entry>(line).ok())
        .filter(|entry| entry.event.is_none())
        .filter_map(|entry| text(&entry.message?))
        .collect();
    lines.drain(..lines.len().saturating_sub(count));
    lines
}

/// journalctl writes a message that is not printable UTF-8 as an array of bytes.
fn text(message: &Value) -> Option<String> {
    match message {
        Value::String(text) => Some(text.clone()),
        Value::Array(bytes) => {
            let bytes: Vec<u8> = bytes
                .iter()
                .filter_map(|byte| u8::try_from(byte.as_u64()?).ok())
                .collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    }
}

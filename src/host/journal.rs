//! The journal of our units, by way of `journalctl`.

use std::process::Stdio;

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::error::{Failure, Result};
use crate::host::paths::Scope;
use crate::host::ssh::RemoteHost;
use crate::output;

/// Which lines to read.
#[derive(Clone, Debug)]
pub(crate) struct Query<'a> {
    /// The scope of the units.
    pub scope: Scope,
    /// The other machine, if there is one.
    pub remote: Option<&'a RemoteHost>,
    pub units: Vec<&'a str>,
    /// Whether to wait for new lines.
    pub follow: bool,
    /// Only the last lines of all units together.
    pub tail: Option<u32>,
    /// In journalctl's grammar.
    pub since: Option<String>,
    /// In journalctl's grammar.
    pub until: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The unit that it belongs to.
    pub unit: String,
    /// Its text; may have several lines.
    pub message: String,
    /// Whether the unit's own processes wrote it, rather than systemd about the unit.
    pub own: bool,
    /// When, to the microsecond; shown in RFC 3339 and UTC.
    pub time: jiff::Timestamp,
    /// The run of the unit that it belongs to; empty if the journal does not say.
    pub run: String,
    /// Whether systemd reports that the kernel ended a process for want of memory.
    pub out_of_memory: bool,
}

/// The fields of a line of `journalctl --output=json` that are used.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "MESSAGE")]
    message: Option<Value>,
    #[serde(rename = "__REALTIME_TIMESTAMP")]
    time: Option<String>,
    /// Set on the lines in which Podman reports what it does (`container start …`).
    #[serde(rename = "PODMAN_EVENT")]
    event: Option<Value>,
    /// The unit that wrote the line.
    #[serde(rename = "_SYSTEMD_UNIT")]
    by_unit: Option<String>,
    #[serde(rename = "_SYSTEMD_USER_UNIT")]
    by_user_unit: Option<String>,
    /// The unit that systemd writes about.
    #[serde(rename = "UNIT")]
    about_unit: Option<String>,
    #[serde(rename = "USER_UNIT")]
    about_user_unit: Option<String>,
    /// The run of the unit that wrote the line.
    #[serde(rename = "_SYSTEMD_INVOCATION_ID")]
    by_run: Option<String>,
    /// The run that systemd writes about.
    #[serde(rename = "INVOCATION_ID")]
    about_run: Option<String>,
    #[serde(rename = "USER_INVOCATION_ID")]
    about_user_run: Option<String>,
    /// What systemd reports: its words differ from release to release, this does not.
    #[serde(rename = "MESSAGE_ID")]
    kind: Option<String>,
}

const FIELDS: &str = "--output-fields=MESSAGE,PODMAN_EVENT,_SYSTEMD_UNIT,_SYSTEMD_USER_UNIT,UNIT,USER_UNIT,\
    _SYSTEMD_INVOCATION_ID,INVOCATION_ID,USER_INVOCATION_ID,MESSAGE_ID";

/// `SD_MESSAGE_UNIT_OUT_OF_MEMORY` of systemd.
const OUT_OF_MEMORY: &str = "fe6faa94e7774663a0da52717891d8ef";

/// The factor of lines to request, since those of Podman are left out.
const NOISE: u32 = 4;

/// Reads lines, oldest first, without Podman's own events.
pub(crate) async fn read(
    query: &Query<'_>,
    mut show: impl FnMut(Entry) -> std::io::Result<()>,
) -> Result<()> {
    let mut words: Vec<String> = [
        "journalctl",
        "--no-pager",
        "--quiet",
        "--output=json",
        // Else it leaves out what is longer than 4096 bytes.
        "--all",
        FIELDS,
    ]
    .map(str::to_owned)
    .into();
    for unit in &query.units {
        words.push(match query.scope {
            Scope::System => format!("--unit={unit}"),
            // A system user's lines are in the system journal, so not `journalctl --user`.
            Scope::User => format!("--user-unit={unit}"),
        });
    }
    words.extend(query.since.iter().map(|since| format!("--since={since}")));
    words.extend(query.until.iter().map(|until| format!("--until={until}")));
    match (query.follow, query.tail) {
        (true, Some(tail)) => words.extend(["--follow".into(), format!("--lines={tail}")]),
        (true, None) => words.extend(["--follow".into(), "--lines=all".into()]),
        (false, Some(tail)) => words.push(format!("--lines={}", tail.saturating_mul(NOISE))),
        (false, None) => {}
    }
    let mut command = if let Some(remote) = query.remote {
        remote.command(&words)
    } else {
        let mut command = Command::new("journalctl");
        command.args(&words[1..]);
        command
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("can't run journalctl")?;
    let stdout = child.stdout.take().context("journalctl has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut held: std::collections::VecDeque<Entry> = std::collections::VecDeque::new();
    while let Some(line) = lines
        .next_line()
        .await
        .context("can't read journalctl's output")?
    {
        let Some(entry) = serde_json::from_str(&line)
            .ok()
            .and_then(|line| entry(line, query.scope))
        else {
            continue;
        };
        match query.tail {
            Some(tail) if !query.follow => {
                held.push_back(entry);
                if held.len() > tail as usize {
                    held.pop_front();
                }
            }
            _ => show(entry).map_err(output::unwritten)?,
        }
    }
    for entry in held {
        show(entry).map_err(output::unwritten)?;
    }
    let mut words = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr
            .read_to_string(&mut words)
            .await
            .context("can't read journalctl's output")?;
    }
    let status = child.wait().await.context("can't run journalctl")?;
    if status.success() || words.trim().is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("journalctl: {}", words.trim())).into())
}

fn entry(line: Line, scope: Scope) -> Option<Entry> {
    if line.event.is_some() {
        return None;
    }
    let message = text(&line.message?)?;
    // `podman run --detach` prints the container's identifier.
    if message.len() == 64 && message.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    // conmon warns of counters that a kernel does not have.
    if message.starts_with("conmon ") && message.contains(" <nwarn>: ") {
        return None;
    }
    let own = line.about_unit.is_none() && line.about_user_unit.is_none();
    let unit = match scope {
        Scope::System => line.about_unit.or(line.by_unit),
        Scope::User => line.about_user_unit.or(line.by_user_unit),
    }?;
    let run = line.about_run.or(line.about_user_run).or(line.by_run);
    let microseconds = line
        .time
        .and_then(|time| time.parse().ok())
        .unwrap_or_default();
    let time = jiff::Timestamp::from_microsecond(microseconds).unwrap_or_default();
    Some(Entry {
        unit,
        message,
        own,
        time,
        run: run.unwrap_or_default(),
        out_of_memory: !own && line.kind.as_deref() == Some(OUT_OF_MEMORY),
    })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn out_of_memory_is_known_by_its_identifier() {
        // Of systemd 262 and of 257.
        for words in [
            "a.service: The kernel OOM killer killed some processes in this unit.",
            "a.service: A process of this unit has been killed by the OOM killer.",
        ] {
            let line = json!({"MESSAGE": words, "MESSAGE_ID": OUT_OF_MEMORY, "UNIT": "a.service", "INVOCATION_ID": "1", "_SYSTEMD_INVOCATION_ID": "2"});
            let of_systemd = entry(serde_json::from_value(line).unwrap(), Scope::System).unwrap();
            assert!(of_systemd.out_of_memory);
            assert_eq!(of_systemd.run, "1");
            // A service may write what it wants.
            let line = json!({"MESSAGE": words, "MESSAGE_ID": OUT_OF_MEMORY, "_SYSTEMD_UNIT": "a.service", "_SYSTEMD_INVOCATION_ID": "2"});
            let own = entry(serde_json::from_value(line).unwrap(), Scope::System).unwrap();
            assert!(!own.out_of_memory);
            assert_eq!(own.run, "2");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A message is read as it was written, in both forms of journalctl, with any time and further fields.
        #[test]
        fn messages_come_back(message in any::<String>(), time in any::<String>(), as_bytes: bool) {
            if message.starts_with("conmon ") || message.len() == 64 {
                return Ok(());
            }
            let written = if as_bytes { json!(message.as_bytes()) } else { json!(message) };
            let line = json!({"MESSAGE": written, "__REALTIME_TIMESTAMP": time, "_SYSTEMD_UNIT": "a.service", "X": null});
            let read = entry(serde_json::from_str(&line.to_string()).unwrap(), Scope::System).unwrap();
            prop_assert_eq!(read.message, message);
            prop_assert_eq!(read.unit, "a.service");
            prop_assert!(read.own);
        }
    }
}

//! Entries of the journal about each command that changes something: what, by whom, and what became of it; and about each
//! change of the release.
//!
//! In journald's own protocol, of a datagram of `FIELD=value` lines (systemd's `JOURNAL_NATIVE_PROTOCOL`).

use std::fmt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};

use crate::host::Host;

const SOCKET: &str = "/run/systemd/journal/socket";
/// `MESSAGE_ID` of each entry; documented in docs/notices.md.
const BEGUN: &str = "99ff5699ada74ed9bd9292739f49bf58";
const ENDED: &str = "dc8828afb35b4871b400eef6c5517d03";
const RELEASE: &str = "c1c8369ef65645c8a29e10e4d5886ee4";

/// A change that was begun; [`Change::end`] says what became of it. One that is killed leaves its beginning.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    host: &'a Host,
    command: &'static str,
    began: Instant,
}

impl<'a> Change<'a> {
    /// Records that the caller gave `command`: its words alone, since an argument may be anything.
    pub(crate) fn begin(host: &'a Host, command: &'static str) -> Self {
        let change = Self {
            host,
            command,
            began: Instant::now(),
        };
        change.write(Outcome::Begun);
        change
    }

    /// Records the end. The reason of a failure is on the terminal or in the log of the unit that gave the command.
    pub(crate) fn end(self, succeeded: bool) {
        let took = self.began.elapsed();
        self.write(if succeeded {
            Outcome::Succeeded(took)
        } else {
            Outcome::Failed(took)
        });
    }

    fn write(&self, outcome: Outcome) {
        send(&of_command(self.host, self.command, &operator(), outcome));
    }
}

/// Records that the gateway serves image `to` instead of `from`, and `why` in a word.
pub(crate) fn release(host: &Host, from: &str, to: &str, why: &str) {
    send(&of_release(host, from, to, why, &operator()));
}

/// A host without journald has no record; nothing else depends on it.
fn send(entry: &str) {
    let _ = UnixDatagram::unbound().and_then(|socket| {
        // A journal that is full or hangs does not hold up a command.
        socket.set_nonblocking(true)?;
        socket.send_to(entry.as_bytes(), SOCKET)
    });
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Begun,
    Succeeded(Duration),
    Failed(Duration),
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Succeeded(_) => "succeeded",
            Self::Failed(_) => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Begun => Ok(()),
            Self::Succeeded(took) | Self::Failed(took) => write!(f, " after {} s", took.as_secs()),
        }
    }
}

fn of_command(host: &Host, command: &str, by: &str, outcome: Outcome) -> String {
    let (id, priority) = match outcome {
        Outcome::Begun => (BEGUN, 6),
        Outcome::Succeeded(_) => (ENDED, 6),
        Outcome::Failed(_) => (ENDED, 4),
    };
    let fields = [
        ("LITELLM_UNITS_COMMAND", command),
        ("LITELLM_UNITS_BY", by),
        ("LITELLM_UNITS_RESULT", outcome.name()),
    ];
    let message = format!("{command} by {by}: {outcome}");
    entry(host, &message, id, priority, &fields)
}

fn of_release(host: &Host, from: &str, to: &str, why: &str, by: &str) -> String {
    let fields = [
        ("LITELLM_UNITS_FROM", from),
        ("LITELLM_UNITS_TO", to),
        ("LITELLM_UNITS_WHY", why),
        ("LITELLM_UNITS_BY", by),
    ];
    let message = format!("the gateway runs {to} instead of {from}: {why} by {by}");
    entry(host, &message, RELEASE, 5, &fields)
}

/// With the fields that all have.
fn entry(host: &Host, message: &str, id: &str, priority: u8, fields: &[(&str, &str)]) -> String {
    // What `--host` does by D-Bus alone is recorded here, since nothing of ours runs there.
    let (place, value) = match &host.remote {
        Some(remote) => ("LITELLM_UNITS_HOST", remote.to_string()),
        None => (
            "LITELLM_UNITS_DIRECTORY",
            host.paths.deployment.to_string_lossy().into_owned(),
        ),
    };
    let priority = priority.to_string();
    let all = [
        ("MESSAGE", message),
        ("MESSAGE_ID", id),
        ("PRIORITY", &priority),
        ("SYSLOG_IDENTIFIER", "litellm-units"),
    ];
    let mut text = String::new();
    for (name, value) in all.iter().chain(fields).chain(&[(place, &*value)]) {
        // A line break would end the field, and begin another one.
        let value = value.replace(|c: char| c.is_control(), " ");
        text += &format!("{name}={value}\n");
    }
    text
}

/// The user who gave the command, also behind `sudo`: root alone is believed about that.
pub(crate) fn operator() -> String {
    let user = User::from_uid(Uid::effective())
        .ok()
        .flatten()
        .map_or_else(|| Uid::effective().to_string(), |user| user.name);
    match std::env::var("SUDO_USER") {
        Ok(behind) if Uid::current().is_root() && !behind.is_empty() && behind != user => {
            format!("{behind} (sudo)")
        }
        _ => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::{Paths, Scope};

    #[test]
    fn a_value_stays_within_its_field() {
        let outcome = Outcome::Failed(Duration::from_millis(61_900));
        let mut host = Host::new(Paths::elsewhere(Scope::System));
        host.paths.deployment = "/opt/a\nMESSAGE=b".into();
        let text = of_command(&host, "apply", "c\nd", outcome);
        assert_eq!(
            text,
            "MESSAGE=apply by c d: failed after 61 s\n\
             MESSAGE_ID=dc8828afb35b4871b400eef6c5517d03\n\
             PRIORITY=4\n\
             SYSLOG_IDENTIFIER=litellm-units\n\
             LITELLM_UNITS_COMMAND=apply\n\
             LITELLM_UNITS_BY=c d\n\
             LITELLM_UNITS_RESULT=failed\n\
             LITELLM_UNITS_DIRECTORY=/opt/a MESSAGE=b\n"
        );
    }

    #[test]
    fn a_change_of_the_release() {
        let host = Host::new(Paths::elsewhere(Scope::System));
        let text = of_release(&host, "a:1", "a:2", "upgrade", "root");
        let directory = host.paths.deployment.display();
        assert_eq!(
            text,
            format!(
                "MESSAGE=the gateway runs a:2 instead of a:1: upgrade by root\n\
                 MESSAGE_ID=c1c8369ef65645c8a29e10e4d5886ee4\n\
                 PRIORITY=5\n\
                 SYSLOG_IDENTIFIER=litellm-units\n\
                 LITELLM_UNITS_FROM=a:1\n\
                 LITELLM_UNITS_TO=a:2\n\
                 LITELLM_UNITS_WHY=upgrade\n\
                 LITELLM_UNITS_BY=root\n\
                 LITELLM_UNITS_DIRECTORY={directory}\n"
            )
        );
    }
}

//! Another machine, reached over `ssh`: its systemd through systemd's own bridge, everything else
//! through the `litellm-units` that is installed there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Output, Stdio};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use zbus_systemd::zbus::address::{Address, Transport, transport::Unixexec};
use zbus_systemd::zbus::connection::Builder;
use zbus_systemd::zbus::{self, Connection};

use crate::error::{Exit, Failure, Result};
use crate::host::paths::Scope;
use crate::host::systemd::METHOD_TIMEOUT;
use crate::output::shell_word;

/// Short timeouts, since the kernel would try for minutes to reach a host that is down, and for hours while it goes down.
const TIMEOUTS: [&str; 3] = [
    "-oConnectTimeout=10",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
];

/// Where `ssh` goes: `USER@HOST`, `HOST`, or a name of its configuration.
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe there does not depend on the name"
)]
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
pub struct RemoteHost(String);

impl TryFrom<String> for RemoteHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for RemoteHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for RemoteHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let strange = |c: char| c.is_whitespace() || c.is_control();
        if text.is_empty() || text.starts_with('-') || text.contains(strange) {
            return Err("not USER@HOST".into());
        }
        Ok(Self(text.to_owned()))
    }
}

impl RemoteHost {
    /// The scope that fits the user who logs in there, as `ssh` itself works it out.
    ///
    /// # Errors
    /// When `ssh` is missing, or does not understand its configuration.
    pub async fn scope(&self) -> Result<Scope> {
        let output = Command::new("ssh")
            .args(["-G", "--", &self.0])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(no_ssh)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("ssh: {}", words.trim())).into());
        }
        let settings = String::from_utf8_lossy(&output.stdout);
        Ok(if settings.lines().any(|line| line == "user root") {
            Scope::System
        } else {
            Scope::User
        })
    }

    /// A connection to the bus there. Messages of `ssh` go to stderr.
    ///
    /// # Errors
    /// When ssh fails, or there is no bridge or no bus.
    pub async fn bus(&self, scope: Scope) -> Result<Connection> {
        let place = ["-xT", "--", &self.0, bridge(scope)];
        let arguments = TIMEOUTS
            .into_iter()
            .chain(place)
            .map(OsString::from)
            .collect();
        let transport = Transport::Unixexec(Unixexec::new("ssh".into(), None, arguments));
        let connection = Builder::address(Address::from(transport))
            .method_timeout(METHOD_TIMEOUT)
            .build()
            .await;
        connection.map_err(|error| self.no_bus(scope, &error))
    }

    fn no_bus(&self, scope: Scope, error: &zbus::Error) -> anyhow::Error {
        let whose = match scope {
            Scope::System => "systemd",
            Scope::User => "the user's systemd",
        };
        Failure::new(format!("can't reach {whose} on {self} over ssh: {error}"))
            .hint(format!(
                "test the connection with `ssh {self} true`, then the bridge with `ssh {self} systemd-stdio-bridge --version`"
            ))
            .into()
    }

    /// A program there, for its output. Its arguments are quoted for the shell there.
    #[must_use]
    pub fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let line: Vec<String> = words.iter().map(shell_word).collect();
        self.shell(&line.join(" "))
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("ssh");
        command.args(TIMEOUTS).args(["-xT", "--", &self.0, line]);
        command
    }

    /// Runs `litellm-units` there with these arguments, on this terminal if there is one.
    ///
    /// # Errors
    /// When ssh fails, or there is no `litellm-units`.
    pub async fn run(&self, arguments: &[String], use_of: RemoteUse) -> Result<Exit> {
        use std::io::IsTerminal;
        let terminal =
            use_of.terminal && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut line = String::from("litellm-units");
        for argument in arguments {
            line.push(' ');
            line.push_str(&shell_word(argument));
        }
        // From here on, Ctrl-C is for ssh; this process waits for its end.
        let mut interrupt = signal(SignalKind::interrupt()).context("can't listen for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("can't listen for signals")?;
        let mut child = Command::new("ssh")
            .arg(if terminal { "-xt" } else { "-xT" })
            // Without its "Connection to … closed.".
            .args(terminal.then_some("-oLogLevel=ERROR"))
            .args(TIMEOUTS)
            .args(["--", &self.0, &line])
            .stdin(if terminal || use_of.input {
                Stdio::inherit()
            } else {
                Stdio::null()
            })
            .kill_on_drop(true)
            .spawn()
            .map_err(no_ssh)?;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.context("can't wait for ssh")?,
                _ = interrupt.recv() => {}
                _ = terminate.recv() => return Ok(Exit::Terminated),
            }
        };
        if !use_of.foreign {
            self.refuse_unreached(status)?;
        }
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        Ok(Exit::Passed(u8::try_from(code).unwrap_or(1)))
    }

    /// Runs `litellm-units` there with these arguments, as a shell reads them, and with `input` on stdin. Its output is
    /// `captured`, or goes where that of this process goes.
    ///
    /// # Errors
    /// As [`RemoteHost::run`].
    pub(crate) async fn call(&self, line: &str, input: &[u8], captured: bool) -> Result<Output> {
        let stream = || {
            if captured {
                Stdio::piped()
            } else {
                Stdio::inherit()
            }
        };
        let mut ssh = self.shell(&format!("litellm-units {line}"));
        ssh.stdin(Stdio::piped()).stdout(stream()).stderr(stream());
        let mut child = ssh.kill_on_drop(true).spawn().map_err(no_ssh)?;
        let stdin = child.stdin.take();
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // If it does not read all, its exit status says why.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.context("can't wait for ssh")?;
        self.refuse_unreached(output.status)?;
        Ok(output)
    }

    fn refuse_unreached(&self, status: ExitStatus) -> Result<(), Failure> {
        match status.code() {
            Some(255) => Err(Failure::new(format!("ssh to {self} failed or was cut off"))
                .hint(format!("test the connection: `ssh {self} true`"))),
            Some(127) => Err(
                Failure::new(format!("there is no litellm-units on {self}")).hint(format!(
                    "install it there, where ssh finds it: `ssh {self} command -v litellm-units`"
                )),
            ),
            _ => Ok(()),
        }
    }
}

/// systemd's own bridge from a bus to stdin and stdout. With `--user` alone it takes the system's
/// bus all the same (systemd 257), so it is told which; by `sh`, whatever the login shell is.
fn bridge(scope: Scope) -> &'static str {
    match scope {
        Scope::System => "systemd-stdio-bridge",
        Scope::User => {
            r#"sh -c 'exec systemd-stdio-bridge --user --bus-path="unix:path=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/bus"'"#
        }
    }
}

/// How a command uses this process' terminal and streams.
#[derive(Clone, Copy, Debug)]
pub struct RemoteUse {
    /// A terminal there too, where there is one here.
    pub terminal: bool,
    /// It may read stdin. If not, stdin is left to the next reader.
    pub input: bool,
    /// The exit status is another program's, whatever it is.
    pub foreign: bool,
}

/// This process' own arguments without `--host` and its value. `foreign`: how many at the end are
/// another program's.
pub(crate) fn own_arguments(foreign: usize) -> Result<Vec<String>> {
    let arguments = std::env::args_os()
        .skip(1)
        .map(|argument| {
            argument.into_string().map_err(|argument| {
                Failure::new(format!("{} is not valid UTF-8", argument.display()))
            })
        })
        .collect::<Result<Vec<String>, Failure>>()?;
    Ok(without_host(arguments, foreign))
}

fn without_host(mut arguments: Vec<String>, foreign: usize) -> Vec<String> {
    let last = arguments.split_off(arguments.len().saturating_sub(foreign));
    let mut kept = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--host" => drop(arguments.next()),
            _ if argument.starts_with("--host=") => {}
            _ => kept.push(argument),
        }
    }
    kept.extend(last);
    kept
}

fn no_ssh(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        return Failure::new("ssh is not installed on this host")
            .hint("install it: `apt install openssh-client` or `dnf install openssh-clients`")
            .into();
    }
    anyhow::Error::new(error).context("can't run ssh")
}

#[cfg(test)]
mod tests {
    use super::{RemoteHost, without_host};

    #[test]
    fn host_is_for_here_the_rest_for_there() {
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        assert_eq!(
            without_host(words("--host a@b exec --host=c redis -- x --host y"), 3),
            words("exec redis -- x --host y")
        );
        assert_eq!(without_host(words("status --host a@b"), 0), words("status"));
    }

    #[test]
    fn destinations() {
        assert_eq!(
            "me@box".parse::<RemoteHost>().unwrap().to_string(),
            "me@box"
        );
        for wrong in ["", "-oProxyCommand=x", "a b"] {
            assert_eq!(wrong.parse::<RemoteHost>().unwrap_err(), "not USER@HOST");
        }
    }
}

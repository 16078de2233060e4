//! One failure type that carries what a person needs next: a hint and an exit status.

use std::fmt;
use std::path::Path;

use anyhow::Context;

/// What every fallible function of the program returns.
pub type Result<T, E = anyhow::Error> = std::result::Result<T, E>;

/// Says of which file or directory something failed.
pub(crate) trait PathContext<T> {
    /// Puts `problem` and the path in front of the error: `can't read /etc/hosts`.
    fn path_context(self, problem: &str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E> PathContext<T> for Result<T, E>
where
    Self: Context<T, E>,
{
    fn path_context(self, problem: &str, path: impl AsRef<Path>) -> Result<T> {
        self.with_context(|| format!("{problem} {}", path.as_ref().display()))
    }
}

/// Exit statuses, as documented in `litellm-units(1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All is as asked.
    Success,
    /// The operation failed, or `--check` found drift.
    Failure,
    /// The stack is stopped (`status`, `health`).
    Stopped,
    /// The stack runs, but not all of it is healthy (`status`, `health`).
    Degraded,
    /// `upgrade --check` found a newer release.
    UpgradeAvailable,
    /// `upgrade --check` found that the current release has known vulnerabilities.
    Vulnerable,
    /// `doctor` has warnings, and no failure.
    Warned,
    /// `.env` or the gateway's configuration is wrong: `EX_CONFIG` of sysexits(3). The units do
    /// not restart on it, since only an edit can help.
    Config,
    /// Ctrl-C: 128 and the number of SIGINT, as shells have it.
    Interrupted,
    /// SIGTERM or SIGHUP, after the terminal was put in order: 128 and the number of SIGTERM.
    Terminated,
    /// What another program exited with, which this one only ran.
    Passed(u8),
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Stopped => 3,
            Exit::Degraded => 4,
            Exit::UpgradeAvailable => 5,
            Exit::Vulnerable => 6,
            Exit::Warned => 7,
            Exit::Config => 78,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
            Exit::Passed(code) => code,
        })
    }
}

/// A failure with the next step.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    exit: Exit,
    cause: Option<anyhow::Error>,
}

impl Failure {
    /// An operation that did not succeed.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            exit: Exit::Failure,
            cause: None,
        }
    }

    /// A mistake in what the operator wrote.
    pub fn config(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Config,
            ..Self::new(message)
        }
    }

    /// Ctrl-C came while waiting.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Interrupted,
            ..Self::new(message)
        }
    }

    /// Adds the next step, shown on a line of its own after `hint:`.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Adds what led to it.
    #[must_use]
    pub fn caused_by(self, cause: anyhow::Error) -> Self {
        Self {
            cause: Some(cause),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

/// Whether a full disk is the cause of `error`: of this program, or of a server that it asked.
#[must_use]
pub fn is_full_disk(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|cause| cause.kind() == std::io::ErrorKind::StorageFull)
            || cause.to_string().contains("No space left on device")
    })
}

/// Says of an error without a next step that a full disk is its cause, if it is.
#[must_use]
pub fn on_full_disk(error: anyhow::Error) -> anyhow::Error {
    if hint(&error).is_some() || !is_full_disk(&error) {
        return error;
    }
    Failure::new("the disk is full; every file is either unchanged or complete")
        .hint("free some space, then run the same command again")
        .caused_by(error)
        .into()
}

/// The next step that `error` carries: the outermost one, which knows most.
#[must_use]
pub fn hint(error: &anyhow::Error) -> Option<&str> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>()?.hint.as_deref())
}

/// The status to exit with for `error`.
#[must_use]
pub fn exit(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or(Exit::Failure, |failure| failure.exit)
}

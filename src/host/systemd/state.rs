//! systemd's words for the state of a unit (`org.freedesktop.systemd1(5)`), as types.

use std::fmt;

use serde::{Serialize, Serializer};

/// An enum of systemd's words, with `Other` for those of a newer version. It is written as the word itself.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)*
            /// A word that this program does not know.
            Other(String),
        }

        impl $name {
            pub(crate) fn parse(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

words! {
    /// `ActiveState`.
    ActiveState {
        /// The unit does what it is for.
        Active = "active",
        /// Active, while it reads its configuration again.
        Reloading = "reloading",
        /// Stopped, and the last run did not fail.
        #[default]
        Inactive = "inactive",
        /// Stopped after a failure.
        Failed = "failed",
        /// Starting, or waiting for the next attempt.
        Activating = "activating",
        /// Stopping.
        Deactivating = "deactivating",
        /// Stopped, while a maintenance operation is in progress.
        Maintenance = "maintenance",
        /// Active, while its file system is mounted anew.
        Refreshing = "refreshing",
    }
}

words! {
    /// `LoadState`.
    LoadState {
        /// Declared, not read from the disk yet.
        Stub = "stub",
        /// Its file was read.
        Loaded = "loaded",
        /// There is no file for it.
        #[default]
        NotFound = "not-found",
        /// Its file has no valid contents.
        BadSetting = "bad-setting",
        /// Its file can't be read.
        Error = "error",
        /// Loaded under another name.
        Merged = "merged",
        /// Disabled so that nothing can start it.
        Masked = "masked",
    }
}

words! {
    /// `Result` of a service: why its last run ended.
    UnitResult {
        /// It did not fail, or is on its next attempt.
        #[default]
        Success = "success",
        /// A process had an exit status other than 0.
        ExitCode = "exit-code",
        /// A signal ended a process.
        Signal = "signal",
        /// A signal ended a process, which left a core dump.
        CoreDump = "core-dump",
        /// It took longer than the unit allows.
        Timeout = "timeout",
        /// It gave no sign of life.
        Watchdog = "watchdog",
        /// systemd lacked something that it needs for a start.
        Resources = "resources",
        /// It broke the rules of its type.
        Protocol = "protocol",
        /// The kernel ended it for want of memory.
        OomKill = "oom-kill",
        /// It failed too often in too short a time.
        StartLimitHit = "start-limit-hit",
        /// `ExecCondition=` said that it need not run.
        ExecCondition = "exec-condition",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_written_as_it_was_read() {
        let words = [
            "active",
            "reloading",
            "inactive",
            "failed",
            "activating",
            "deactivating",
            "maintenance",
            "refreshing",
            "dreaming",
        ];
        for word in words {
            let state = ActiveState::parse(word);
            assert_eq!(state.to_string(), word);
            assert_eq!(
                serde_json::to_string(&state).unwrap(),
                format!("\"{word}\"")
            );
            assert_eq!(matches!(state, ActiveState::Other(_)), word == "dreaming");
        }
        assert_eq!(LoadState::parse("not-found"), LoadState::NotFound);
        assert_eq!(UnitResult::parse("oom-kill").to_string(), "oom-kill");
    }
}

//! The names of checks, which scripts rely on: a name stays when its message changes.

use std::fmt;

use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckName {
    Applied,
    /// The archive of the write-ahead log.
    Archive,
    Backup,
    /// The connection to an external Redis.
    Cache,
    /// That of the entrance.
    Certificate,
    Cgroup,
    Clock,
    /// The order of text in the indexes.
    Collation,
    /// A running image that is known to be malicious; [`CheckName::Images`] judges `.env`.
    Compromised,
    /// LiteLLM's own configuration; [`CheckName::Settings`] is `.env`.
    Config,
    /// How many PostgreSQL takes.
    Connections,
    /// Whether a command can run in the gateway's container.
    Container,
    DaemonReload,
    /// The owners of `data/`.
    Data,
    /// The connection to PostgreSQL.
    Database,
    Dbus,
    /// LiteLLM's debug logs.
    Debug,
    Digests,
    Directories,
    Disk,
    Dns,
    Docker,
    Drift,
    /// Values that other programs give.
    External,
    Firewall,
    Gateway,
    /// Of the database and its disk; [`CheckName::Disk`] is about what is free now.
    Growth,
    Images,
    Inodes,
    Linger,
    Loopback,
    Notices,
    Operation,
    /// Who can change the deployment; [`CheckName::Data`] is about the users of the containers.
    Ownership,
    Pasta,
    Podman,
    Port,
    /// The servers of models that the configuration names.
    Providers,
    Release,
    RequestLogs,
    Sealed,
    Secrets,
    Selinux,
    Session,
    Settings,
    Signatures,
    Subids,
    Systemd,
    /// The timers without a check of their own.
    Timers,
    Units,
    UpgradeCheck,
    /// What keeps PostgreSQL from removing dead rows.
    Vacuum,
    /// Of the newest backup.
    Verification,
    Vulnerabilities,
}

impl CheckName {
    fn word(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Archive => "archive",
            Self::Backup => "backup",
            Self::Cache => "cache",
            Self::Certificate => "certificate",
            Self::Cgroup => "cgroup",
            Self::Clock => "clock",
            Self::Collation => "collation",
            Self::Compromised => "compromised",
            Self::Config => "config",
            Self::Connections => "connections",
            Self::Container => "container",
            Self::DaemonReload => "daemon-reload",
            Self::Data => "data",
            Self::Database => "database",
            Self::Dbus => "dbus",
            Self::Debug => "debug",
            Self::Digests => "digests",
            Self::Directories => "directories",
            Self::Disk => "disk",
            Self::Dns => "dns",
            Self::Docker => "docker",
            Self::Drift => "drift",
            Self::External => "external",
            Self::Firewall => "firewall",
            Self::Gateway => "gateway",
            Self::Growth => "growth",
            Self::Images => "images",
            Self::Inodes => "inodes",
            Self::Linger => "linger",
            Self::Loopback => "loopback",
            Self::Notices => "notices",
            Self::Operation => "operation",
            Self::Ownership => "ownership",
            Self::Pasta => "pasta",
            Self::Podman => "podman",
            Self::Port => "port",
            Self::Providers => "providers",
            Self::Release => "release",
            Self::RequestLogs => "request-logs",
            Self::Sealed => "sealed",
            Self::Secrets => "secrets",
            Self::Selinux => "selinux",
            Self::Session => "session",
            Self::Settings => "settings",
            Self::Signatures => "signatures",
            Self::Subids => "subids",
            Self::Systemd => "systemd",
            Self::Timers => "timers",
            Self::Units => "units",
            Self::UpgradeCheck => "upgrade-check",
            Self::Vacuum => "vacuum",
            Self::Verification => "verification",
            Self::Vulnerabilities => "vulnerabilities",
        }
    }
}

impl fmt::Display for CheckName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

impl Serialize for CheckName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

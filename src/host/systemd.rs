//! systemd's manager over D-Bus.

pub(crate) mod job;
mod state;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context;
use zbus_systemd::systemd1::ManagerProxy;
use zbus_systemd::zbus::connection::Builder;
use zbus_systemd::zbus::{self, Array, Connection, DBusError as _, OwnedVariant, Variant};

use crate::error::{Failure, Result};
use crate::host::paths::Scope;
use crate::host::ssh::RemoteHost;
use crate::output::bytes;
use crate::service::Service;

pub use state::{ActiveState, LoadState, UnitResult};

/// Timeout for a connection to the bus.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a call. systemd answers at once; only a reload takes seconds on a busy host.
pub(super) const METHOD_TIMEOUT: Duration = Duration::from_secs(120);

/// The features of the host's systemd. They are asked for, since distributions backport newer ones
/// to an old version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `RestartMode=direct`: dependents keep waiting when the first start of a unit fails.
    pub restart_direct: bool,
    /// `RestartSteps=`: the delay grows with each failed attempt.
    pub restart_steps: bool,
}

impl Features {
    /// The oldest version that the units can be written for.
    pub const OLDEST: u32 = 252;
    /// From this version on, every systemd has all of them.
    const COMPLETE: u32 = 254;
    /// The version that `--output` assumes.
    pub const DEFAULT: Self = Self::of_version(Self::COMPLETE);

    /// The features of a version without backports.
    #[must_use]
    pub const fn of_version(version: u32) -> Self {
        let complete = version >= Self::COMPLETE;
        Self {
            restart_direct: complete,
            restart_steps: complete,
        }
    }
}

/// A connection to the systemd manager of one scope.
#[derive(Clone, Debug)]
pub struct Systemd {
    connection: Connection,
    scope: Scope,
    remote: Option<RemoteHost>,
}

impl Systemd {
    /// Connects to the manager of `scope`, here or on another machine.
    ///
    /// # Errors
    /// When there is no bus, or it doesn't answer within five seconds.
    pub async fn connect(scope: Scope, remote: Option<&RemoteHost>) -> Result<Self> {
        if let Some(remote) = remote {
            // Without a deadline: ssh has its own, and may ask for a passphrase.
            let connection = remote.bus(scope).await?;
            return Ok(Self {
                remote: Some(remote.clone()),
                ..Self::over(connection, scope)
            });
        }
        let attempt = async {
            match scope {
                Scope::System => Builder::system(),
                Scope::User => Builder::session(),
            }
            .method_timeout(METHOD_TIMEOUT)
            .build()
            .await
        };
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return Err(no_bus(scope, &error.to_string())),
            Err(_) => return Err(no_bus(scope, "it did not answer within 5 s")),
        };
        Ok(Self::over(connection, scope))
    }

    /// Speaks over an existing connection.
    #[must_use]
    pub fn over(connection: Connection, scope: Scope) -> Self {
        Self {
            connection,
            scope,
            remote: None,
        }
    }

    /// The scope of the manager.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The machine that it runs on, unless it is this one.
    #[must_use]
    pub fn remote(&self) -> Option<&RemoteHost> {
        self.remote.as_ref()
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>> {
        ManagerProxy::new(&self.connection)
            .await
            .context("can't reach systemd on the bus")
    }

    /// systemd's version, as it says: `257.13-1~deb13u1`.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn version(&self) -> Result<String> {
        self.manager()
            .await?
            .version()
            .await
            .context("can't read systemd's version")
    }

    /// Which of the keys that units use this systemd knows.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn features(&self) -> Result<Features> {
        // A service's own properties are those that its systemd knows, whether there is such a unit or not.
        let known = self
            .properties(
                &unit_path(Service::Litellm.unit()),
                "org.freedesktop.systemd1.Service",
            )
            .await
            .map_err(|error| explain(error, self.scope))
            .context("can't read which keys systemd knows")?;
        Ok(Features {
            restart_direct: known.0.contains_key("RestartMode"),
            restart_steps: known.0.contains_key("RestartSteps"),
        })
    }

    /// Makes systemd read its units again, and run the generators.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn reload(&self) -> Result<()> {
        self.manager()
            .await?
            .reload()
            .await
            .map_err(|error| explain(error, self.scope))
            .context("systemd can't reload its units")
    }

    /// Whether the jobs of the boot, or of the start of the user's manager, are not done.
    ///
    /// # Errors
    /// When systemd can't be asked.
    pub async fn is_booting(&self) -> Result<bool> {
        let manager = self.manager().await?;
        let state = manager.system_state().await;
        let state = state.map_err(|error| explain(error, self.scope))?;
        Ok(["initializing", "starting"].contains(&state.as_str()))
    }

    /// Enables a unit for boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn enable(&self, unit: &str) -> Result<()> {
        self.manager()
            .await?
            .enable_unit_files(vec![unit.to_owned()], false, false)
            .await
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't enable {unit}"))?;
        Ok(())
    }

    /// Disables a unit for boot.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn disable(&self, unit: &str) -> Result<()> {
        self.manager()
            .await?
            .disable_unit_files(vec![unit.to_owned()], false)
            .await
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't disable {unit}"))?;
        Ok(())
    }

    /// Forgets that a unit failed.
    ///
    /// # Errors
    /// When systemd refuses.
    pub async fn reset_failed(&self, unit: &str) -> Result<()> {
        self.manager()
            .await?
            .reset_failed_unit(unit.to_owned())
            .await
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't reset the failed state of {unit}"))
    }

    /// Those of `names` that systemd knows, by a file or since they run: one request, whatever their number.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn known<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<Vec<&'a str>> {
        let names: Vec<&str> = names.collect();
        let listed = self
            .manager()
            .await?
            .list_units_by_names(names.iter().map(|name| (*name).to_owned()).collect())
            .await
            .map_err(|error| explain(error, self.scope))
            .context("can't list the units")?;
        let known: HashSet<String> = listed
            .into_iter()
            .filter(|(_, _, load, active, ..)| load != "not-found" || active != "inactive")
            .map(|(name, ..)| name)
            .collect();
        Ok(names
            .into_iter()
            .filter(|name| known.contains(*name))
            .collect())
    }

    /// The state of a unit, loaded or not.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn unit(&self, name: &str) -> Result<UnitState> {
        let path = unit_path(name);
        let service = async {
            if name.ends_with(".service") {
                self.properties(&path, "org.freedesktop.systemd1.Service")
                    .await
            } else {
                Ok(Properties(HashMap::new()))
            }
        };
        let unit = self.properties(&path, "org.freedesktop.systemd1.Unit");
        let (unit, service) = futures_util::try_join!(unit, service)
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't read the state of {name}"))?;
        Ok(UnitState {
            name: name.to_owned(),
            load: LoadState::parse(&unit.text("LoadState")),
            active: ActiveState::parse(&unit.text("ActiveState")),
            sub: unit.text("SubState"),
            active_since: unit.number("ActiveEnterTimestamp").filter(|usec| *usec > 0),
            inactive_since: unit
                .number("InactiveEnterTimestamp")
                .filter(|usec| *usec > 0),
            invocation: unit.bytes("InvocationID"),
            file_state: unit.text("UnitFileState"),
            needs_reload: unit.flag("NeedDaemonReload"),
            queued: unit.first_number("Job").is_some_and(|job| job > 0),
            starts: unit.starts(),
            needs: unit.needs(),
            result: service.result(),
            restarts: service.number("NRestarts").unwrap_or_default(),
            memory: service
                .number("MemoryCurrent")
                .filter(|bytes| *bytes != u64::MAX),
            start_limit: unit.number("StartLimitBurst").filter(|_| {
                unit.number("StartLimitIntervalUSec")
                    .is_some_and(|usec| usec > 0)
            }),
            restart_delay: service
                .number("RestartUSecNext")
                .or_else(|| service.number("RestartUSec"))
                .filter(|usec| *usec != u64::MAX)
                .map(Duration::from_micros),
            memory_max: service
                .number("MemoryMax")
                .filter(|bytes| *bytes != u64::MAX),
            stop_timeout: service
                .number("TimeoutStopUSec")
                .filter(|usec| *usec != u64::MAX)
                .map(Duration::from_micros),
            control_group: service.text("ControlGroup"),
            cpu: service
                .number("CPUUsageNSec")
                .filter(|nsec| *nsec != u64::MAX),
            exit_code: service.number("ExecMainCode").unwrap_or_default(),
            exit_status: service.number("ExecMainStatus").unwrap_or_default(),
        })
    }

    /// Whether a unit has a job to stop it.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn is_to_stop(&self, unit: &str) -> Result<bool> {
        let job = self
            .properties(&unit_path(unit), "org.freedesktop.systemd1.Unit")
            .await
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't read the state of {unit}"))?
            .first_number("Job")
            .filter(|job| *job > 0);
        let Some(job) = job else {
            return Ok(false);
        };
        let path = format!("/org/freedesktop/systemd1/job/{job}");
        match self.properties(&path, "org.freedesktop.systemd1.Job").await {
            Ok(properties) => Ok(properties.text("JobType") == "stop"),
            // The job has ended since.
            Err(zbus::Error::MethodError(..)) => Ok(false),
            Err(error) => Err(explain(error, self.scope))
                .with_context(|| format!("can't read the job of {unit}")),
        }
    }

    /// The words of a service's first `ExecStart=`; none if it has no such line.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub async fn start_command(&self, name: &str) -> Result<Vec<String>> {
        let service = self
            .properties(&unit_path(name), "org.freedesktop.systemd1.Service")
            .await
            .map_err(|error| explain(error, self.scope))
            .with_context(|| format!("can't read the command of {name}"))?;
        Ok(service.first_command("ExecStart"))
    }

    async fn properties(&self, path: &str, interface: &str) -> zbus::Result<Properties> {
        let reply = self
            .connection
            .call_method(
                Some("org.freedesktop.systemd1"),
                path,
                Some("org.freedesktop.DBus.Properties"),
                "GetAll",
                &(interface,),
            )
            .await?;
        reply.body().deserialize().map(Properties)
    }
}

/// The state of one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// Its name.
    pub name: String,
    /// Whether systemd has read its file.
    pub load: LoadState,
    /// Whether it runs.
    pub active: ActiveState,
    /// `running`, `dead`, `auto-restart`, …
    pub sub: String,
    /// When it last became active, in microseconds since the epoch.
    pub active_since: Option<u64>,
    /// When it last stopped, in microseconds since the epoch.
    pub inactive_since: Option<u64>,
    /// The run that its journal lines carry, in hexadecimal; empty before the first.
    pub invocation: String,
    /// Whether it starts by itself: `enabled`, `disabled`, `generated`, …
    pub file_state: String,
    /// Whether its file changed since systemd read it.
    pub needs_reload: bool,
    /// Whether a job of systemd waits for it or works on it.
    pub queued: bool,
    /// The units that are started with it.
    pub starts: Vec<String>,
    /// Those of them that it waits for.
    pub needs: Vec<String>,
    /// Why the last run ended; services only.
    pub result: UnitResult,
    /// How often systemd restarted it by itself since it was started.
    pub restarts: u64,
    /// How many starts systemd allows it within an interval; `None` for any number.
    pub start_limit: Option<u64>,
    /// How long systemd waits before the next attempt after a failure; services only.
    pub restart_delay: Option<Duration>,
    /// Memory of its control group in bytes, where the kernel counts it.
    pub memory: Option<u64>,
    /// The memory that it may use, in bytes; `None` for any amount.
    pub memory_max: Option<u64>,
    /// How long systemd lets a stop take; services only, `None` for any time.
    pub stop_timeout: Option<Duration>,
    /// Its control group, from the root of the hierarchy; empty when it does not run.
    pub control_group: String,
    /// CPU time of its control group, in nanoseconds.
    pub cpu: Option<u64>,
    /// How the main process ended: `CLD_EXITED`, `CLD_KILLED`, …; 0 before that.
    pub exit_code: u64,
    /// The main process' exit status or signal.
    pub exit_status: u64,
}

impl UnitState {
    /// Whether the unit does what it is for.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active == ActiveState::Active
    }

    /// Whether it is stopped, and neither starting nor stopping.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.active, ActiveState::Inactive | ActiveState::Failed)
    }

    /// Why an installed unit that is enabled apart from the target does nothing.
    #[must_use]
    pub fn idle(&self) -> Option<&'static str> {
        match self.load {
            LoadState::NotFound => None,
            _ if self.file_state != "enabled" => Some("is not enabled"),
            _ if !self.is_active() => Some("is not active"),
            _ => None,
        }
    }

    /// Whether systemd waits before the next attempt.
    #[must_use]
    pub fn awaits_restart(&self) -> bool {
        self.sub.starts_with("auto-restart")
    }

    /// Whether it failed, or is on another attempt after a failure.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.active == ActiveState::Failed
            || self.awaits_restart()
            || (self.active == ActiveState::Activating && self.restarts > 0)
    }

    /// Whether it failed and is not started again, having failed too often.
    #[must_use]
    pub fn has_hit_start_limit(&self) -> bool {
        self.active == ActiveState::Failed
            && (self.result == UnitResult::StartLimitHit
                // Where systemd's own attempt met the limit, the result is that of the attempt before.
                || self.start_limit.is_some_and(|limit| self.restarts >= limit))
    }

    /// A description of its failure.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if !self.is_failing() {
            return None;
        }
        let reason = self.reason();
        Some(match self.restarts {
            _ if self.active == ActiveState::Failed => format!("failed: {reason}"),
            0 => format!("failed and is retried: {reason}"),
            // During the next attempt, the reason of the last one is gone.
            1 if self.result == UnitResult::Success => "failed once and is retried".into(),
            1 => format!("failed once: {reason}"),
            restarts if self.result == UnitResult::Success => {
                format!("keeps failing: {restarts} restarts")
            }
            restarts => format!("keeps failing: {restarts} restarts, the last time {reason}"),
        })
    }

    /// That the kernel ended it for want of memory. Without a limit of the unit, that of its slice or container may be met, or
    /// the host has no more.
    #[must_use]
    pub fn out_of_memory(&self) -> String {
        match self.memory_max {
            Some(limit) => format!("ran out of memory: it may use {}", bytes(limit)),
            None => "ran out of memory; systemd sets no limit for it".to_owned(),
        }
    }

    /// How to give it more memory, if systemd limits it.
    #[must_use]
    pub fn memory_remedy(&self, scope: Scope) -> Option<String> {
        self.memory_max.map(|_| {
            format!(
                "to raise its limit, set MemoryMax= under [Service]: `{} edit {}`",
                scope.systemctl(),
                self.name
            )
        })
    }

    /// A description of why the last run ended.
    #[must_use]
    pub fn reason(&self) -> String {
        match (&self.result, self.exit_code) {
            (UnitResult::ExitCode, 1) => match self.exit_status.checked_sub(128).and_then(signal) {
                // Podman ends with the status of its container.
                Some(signal) => format!("killed by {signal} (status {})", self.exit_status),
                None => format!("exited with status {}", self.exit_status),
            },
            (UnitResult::ExitCode, _) => "a command of the unit failed".into(),
            (UnitResult::Signal | UnitResult::CoreDump, _) => signal(self.exit_status).map_or_else(
                || format!("killed by signal {}", self.exit_status),
                |signal| format!("killed by {signal}"),
            ),
            (UnitResult::Timeout, _) => "took too long".into(),
            (UnitResult::OomKill, _) => self.out_of_memory(),
            (UnitResult::StartLimitHit, _) => "failed too often".into(),
            (UnitResult::Success, _) => "no reason given".into(),
            (other, _) => other.to_string(),
        }
    }
}

/// The name of a signal; none for a number that is no signal, or one of real time.
fn signal(number: u64) -> Option<&'static str> {
    let number = i32::try_from(number).ok()?;
    let signal = nix::sys::signal::Signal::try_from(number).ok()?;
    Some(signal.as_str())
}

/// The answer of `GetAll`.
struct Properties(HashMap<String, OwnedVariant>);

fn strings(array: &Array<'_>) -> Vec<String> {
    array
        .iter()
        .filter_map(|item| match item {
            Variant::Str(text) => Some(text.as_str().to_owned()),
            _ => None,
        })
        .collect()
}

impl Properties {
    fn text(&self, name: &str) -> String {
        match self.0.get(name).map(|value| &**value) {
            Some(Variant::Str(text)) => text.as_str().to_owned(),
            _ => String::new(),
        }
    }

    /// `Result`; only a service has one.
    fn result(&self) -> UnitResult {
        match self.0.get("Result").map(|value| &**value) {
            Some(Variant::Str(word)) => UnitResult::parse(word.as_str()),
            _ => UnitResult::Success,
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        match &**self.0.get(name)? {
            Variant::U64(number) => Some(*number),
            Variant::U32(number) => Some(u64::from(*number)),
            Variant::I32(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The number that a structure begins with.
    fn first_number(&self, name: &str) -> Option<u32> {
        match &**self.0.get(name)? {
            Variant::Structure(structure) => match structure.fields().first()? {
                Variant::U32(number) => Some(*number),
                _ => None,
            },
            _ => None,
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        match self.0.get(name).map(|value| &**value) {
            Some(Variant::Array(array)) => strings(array),
            _ => Vec::new(),
        }
    }

    /// The words of the first command line: `ExecStart` is a list of structures (program, words, …).
    fn first_command(&self, name: &str) -> Vec<String> {
        let Some(Variant::Array(commands)) = self.0.get(name).map(|value| &**value) else {
            return Vec::new();
        };
        let Some(Variant::Structure(command)) = commands.first() else {
            return Vec::new();
        };
        match command.fields().get(1) {
            Some(Variant::Array(words)) => strings(words),
            _ => Vec::new(),
        }
    }

    /// The units that are started with this one.
    fn starts(&self) -> Vec<String> {
        let mut starts: Vec<String> = ["Requires", "Requisite", "BindsTo", "Wants"]
            .into_iter()
            .flat_map(|name| self.texts(name))
            .collect();
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    /// The units that are started with this one and before it.
    fn needs(&self) -> Vec<String> {
        let after = self.texts("After");
        let mut needs = self.starts();
        needs.retain(|unit| after.contains(unit));
        needs
    }

    fn flag(&self, name: &str) -> bool {
        matches!(
            self.0.get(name).map(|value| &**value),
            Some(Variant::Bool(true))
        )
    }

    fn bytes(&self, name: &str) -> String {
        match self.0.get(name).map(|value| &**value) {
            Some(Variant::Array(array)) => array
                .iter()
                .filter_map(|item| match item {
                    Variant::U8(byte) => Some(format!("{byte:02x}")),
                    _ => None,
                })
                .collect(),
            _ => String::new(),
        }
    }
}

/// The object path of a unit: bytes other than letters and digits (and a leading digit) become
/// `_xx` (`bus_label_escape` of systemd).
fn unit_path(name: &str) -> String {
    let mut path = String::from("/org/freedesktop/systemd1/unit/");
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

fn no_bus(scope: Scope, reason: &str) -> anyhow::Error {
    match scope {
        Scope::System => Failure::new(format!("can't reach systemd over the system D-Bus: {reason}"))
            .hint("check that this host booted with systemd, and that D-Bus runs: `systemctl status dbus`"),
        Scope::User => Failure::new(format!("can't reach the user's systemd over D-Bus: {reason}")).hint(
            "log in as that user directly (ssh or `machinectl shell USER@`, not su or sudo), and run `loginctl enable-linger`",
        ),
    }
    .into()
}

/// Turns systemd's refusal into an error with a next step.
fn explain(error: zbus::Error, scope: Scope) -> anyhow::Error {
    let (name, message) = match &error {
        zbus::Error::MethodError(name, message, _) => (name.to_string(), message.as_deref()),
        // The names that zbus itself knows.
        zbus::Error::FDO(known) => (known.name().to_string(), known.description()),
        _ => return error.into(),
    };
    let failure = Failure::new(message.unwrap_or(&name));
    match name.as_str() {
        "org.freedesktop.DBus.Error.AccessDenied"
        | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => failure.hint(
            "run the command as root (sudo, or `--host root@HOST`), or manage a deployment of your own with `--user`",
        ),
        "org.freedesktop.systemd1.NoSuchUnit" => {
            failure.hint("install the units first: `litellm-units generate`. If they are, see why one is missing: `litellm-units doctor`")
        }
        "org.freedesktop.systemd1.UnitMasked" => failure.hint(match scope {
            Scope::System => "unmask the unit if it should run again: `systemctl unmask UNIT`",
            Scope::User => "unmask the unit if it should run again: `systemctl --user unmask UNIT`",
        }),
        _ => failure,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::{Scope, UnitResult, UnitState, unit_path};

    #[test]
    fn signals_have_their_names() {
        let reason = |result: &str, exit_code, exit_status| {
            UnitState {
                result: UnitResult::parse(result),
                exit_code,
                exit_status,
                ..UnitState::default()
            }
            .reason()
        };
        assert_eq!(reason("exit-code", 1, 78), "exited with status 78");
        assert_eq!(reason("exit-code", 1, 128), "exited with status 128");
        assert_eq!(
            reason("exit-code", 1, 137),
            "killed by SIGKILL (status 137)"
        );
        assert_eq!(reason("exit-code", 1, 255), "exited with status 255");
        assert_eq!(reason("signal", 2, 9), "killed by SIGKILL");
        assert_eq!(reason("core-dump", 3, 6), "killed by SIGABRT");
        assert_eq!(reason("signal", 2, 40), "killed by signal 40");
        assert_eq!(
            reason("oom-kill", 2, 9),
            "ran out of memory; systemd sets no limit for it"
        );
        assert_eq!(UnitState::default().memory_remedy(Scope::System), None);
        let limited = UnitState {
            name: "a.service".into(),
            memory_max: Some(3 << 30),
            ..UnitState::default()
        };
        assert_eq!(
            limited.out_of_memory(),
            "ran out of memory: it may use 3.0 GiB"
        );
        assert_eq!(
            limited.memory_remedy(Scope::User).unwrap(),
            "to raise its limit, set MemoryMax= under [Service]: `systemctl --user edit a.service`"
        );
    }

    #[test]
    fn paths_of_units() {
        assert_eq!(
            unit_path("litellm-postgres.service"),
            "/org/freedesktop/systemd1/unit/litellm_2dpostgres_2eservice"
        );
    }
}

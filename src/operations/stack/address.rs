//! The gateway's addresses: those that can't be had are refused before anything stops, and a change of them while the
//! gateway runs.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{AccessFlags, Group, access, getegid, getgroups};
use socket2::{Domain, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::hold_address;
use crate::deployment::listen::{Listen, ListenAddress};
use crate::deployment::settings::{Settings, load_env, wrong};
use crate::deployment::variables::{
    LISTEN, LISTEN_GROUP, LITELLM_METRICS_PORT, METRICS_LISTEN, PUBLIC_URL,
};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::capacity::Capacity;
use crate::host::files;
use crate::host::lock::OperationLock;
use crate::host::ownership;
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::job::{JobType, Jobs};
use crate::operations::recovery;
use crate::output::shell_word;
use crate::quadlet;
use crate::service::{Instance, Service};

/// Exists while systemd may not have opened the addresses of the installed unit.
const MARKER: &str = "relocation";
/// How long the end of `litellm-recovery.service` may take.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_INTERVAL: Duration = Duration::from_millis(100);

/// Why the gateway can't have an address, and what to do.
struct Refusal {
    problem: String,
    hint: String,
}

impl Refusal {
    fn new(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            hint: hint.into(),
        }
    }
}

/// Refuses new addresses of `.env` that systemd could not open. Those of the installed unit are its own; while a move is
/// incomplete, so are those that a gateway still has.
pub(crate) fn refuse(host: &Host, settings: &Settings) -> Result<()> {
    let installed = Listen::installed(&host.paths).unwrap_or_default();
    if settings.listen == installed {
        return Ok(());
    }
    let path = host.paths.env_file();
    let env = load_env(&path)?;
    let is_incomplete = marker(&host.paths).exists();
    for address in &settings.listen.addresses {
        let refusal = match address {
            _ if installed.addresses.contains(address) => None,
            _ if is_incomplete && is_taken(address) && can_share(address) => None,
            ListenAddress::Tcp(address) => refusal_of_port(*address, &installed),
            ListenAddress::Unix(path) => refusal_of_path(path, &host.paths)?,
        };
        if let Some(Refusal { problem, hint }) = refusal {
            let problem = format!("contains {address}, {problem}");
            return Err(wrong(&env, &path, LISTEN, &problem, &hint));
        }
    }
    if let Some(group) = &settings.listen.group
        && let Some(Refusal { problem, hint }) = refusal_of_group(group, host.scope())?
    {
        return Err(wrong(&env, &path, LISTEN_GROUP, &problem, &hint));
    }
    Ok(())
}

/// As [`refuse`], for the addresses of metrics. An installed one is not looked at: it may be in use by the units.
pub(crate) fn refuse_metrics(paths: &Paths, settings: &Settings) -> Result<()> {
    let own = settings.watch.metrics_address;
    let gateways = settings.replicas.count(Capacity::read());
    let of_gateways = (settings.metrics_port.into_iter())
        .flat_map(|first| (first..).take(gateways))
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let wanted = (own.into_iter().map(|own| (METRICS_LISTEN, "is", own)))
        .chain(of_gateways.map(|address| (LITELLM_METRICS_PORT, "needs", address)));
    let socket = Listen::of_installed(paths, quadlet::METRICS_SOCKET);
    let installed = Listen {
        addresses: (socket.into_iter().flat_map(|socket| socket.addresses))
            .chain(
                published_metrics(paths)
                    .into_iter()
                    .map(|(_, it)| ListenAddress::Tcp(it)),
            )
            .collect(),
        group: None,
    };
    for (name, verb, address) in wanted {
        if installed.addresses.contains(&ListenAddress::Tcp(address)) {
            continue;
        }
        if let Some(Refusal { problem, hint }) = refusal_of_port(address, &installed) {
            let path = paths.env_file();
            let env = load_env(&path)?;
            let problem = format!("{verb} {address}, {problem}");
            return Err(wrong(&env, &path, name, &problem, &hint));
        }
    }
    Ok(())
}

/// The addresses at which the installed gateways publish LiteLLM's own metrics. A gateway does not start if its address is
/// taken.
pub(crate) fn published_metrics(paths: &Paths) -> Vec<(Instance, SocketAddr)> {
    let address = |gateway: Instance| {
        let file = format!("{}.container", gateway.container());
        let text = std::fs::read_to_string(paths.quadlets.join(file)).ok()?;
        let line = { text.lines() }.find_map(|line| line.strip_prefix("PublishPort="))?;
        Some((gateway, line.rsplit_once(':')?.0.parse().ok()?))
    };
    Instance::gateways().filter_map(address).collect()
}

/// As [`refuse`], for the ports of an entrance that is stopped.
pub(crate) fn refuse_ports(paths: &Paths, ports: &[u16]) -> Result<()> {
    let none = Listen {
        addresses: Vec::new(),
        group: None,
    };
    for port in ports {
        let address = SocketAddr::from(([0, 0, 0, 0], *port));
        if let Some(Refusal { problem, hint }) = refusal_of_port(address, &none) {
            let path = paths.env_file();
            let env = load_env(&path)?;
            let problem = format!("needs port {port}, {problem}");
            return Err(wrong(&env, &path, PUBLIC_URL, &problem, &hint));
        }
    }
    Ok(())
}

/// Refuses to start a gateway whose address another process has: systemd's message on that is short, and Podman's is
/// late. The ports `except` are those of a gateway that stops before.
pub(crate) fn refuse_taken(paths: &Paths, except: &[u16]) -> Result<()> {
    let metrics = published_metrics(paths);
    let metrics = { metrics.into_iter() }.map(|(_, address)| ListenAddress::Tcp(address));
    let gateway = Listen::installed(paths).unwrap_or_default().addresses;
    for address in gateway.into_iter().chain(metrics) {
        let is_excepted =
            matches!(&address, ListenAddress::Tcp(address) if except.contains(&address.port()));
        if !is_excepted && is_taken(&address) {
            return Err(
                Failure::new(format!("{} is taken by another process", address.place()))
                    .hint(find(&address))
                    .into(),
            );
        }
    }
    Ok(())
}

/// Waits until nobody has the gateway's addresses, which systemd has closed: `litellm-recovery.service` lets them go a
/// moment later. At most [`RELEASE_TIMEOUT`]: what takes an address next says who has it.
pub(crate) async fn released(paths: &Paths) {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let addresses = Listen::installed(paths).unwrap_or_default().addresses;
    while addresses.iter().any(is_taken) && Instant::now() < deadline {
        tokio::time::sleep(RELEASE_INTERVAL).await;
    }
}

fn is_taken(address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Tcp(address) => {
            bind(*address, false).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        }
        ListenAddress::Unix(path) => UnixStream::connect(path).is_ok(),
    }
}

/// How to find the process that has an address.
pub(crate) fn find(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => {
            format!("find and stop it: `ss -ltnp 'sport = :{}'`", address.port())
        }
        ListenAddress::Unix(path) => {
            format!("find and stop it: `ss -lxp src {}`", shell_word(path))
        }
    }
}

fn refusal_of_port(address: SocketAddr, installed: &Listen) -> Option<Refusal> {
    let is_ours = || {
        installed
            .addresses
            .iter()
            .any(|ours| matches!(ours, ListenAddress::Tcp(ours) if overlap(*ours, address)))
    };
    let see = "see the addresses of this host: `ip -brief address`";
    let error = bind(address, false).err()?;
    Some(match error.kind() {
        ErrorKind::AddrInUse if is_ours() => return None,
        ErrorKind::AddrInUse => Refusal::new(
            "which is taken by another process",
            find(&ListenAddress::Tcp(address)),
        ),
        ErrorKind::PermissionDenied => Refusal::new(
            "and only root may listen on that port",
            format!(
                "choose a port from 1024 on; or allow all users to listen on lower ones: `echo net.ipv4.ip_unprivileged_port_start={} | sudo tee /etc/sysctl.d/50-litellm.conf && sudo sysctl --system`",
                address.port()
            ),
        ),
        ErrorKind::AddrNotAvailable => Refusal::new("which no interface of this host has", see),
        _ => Refusal::new(format!("which can't be used: {error}"), see),
    })
}

/// Whether only one of two sockets can have its address, such as 127.0.0.1:4000 and 0.0.0.0:4000.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let [a, b] = [one.ip(), other.ip()];
    one.port() == other.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Whether systemd can open the address while a gateway has it, or another one at its port.
fn can_share(address: &ListenAddress) -> bool {
    match address {
        ListenAddress::Tcp(address) => bind(*address, true).is_ok(),
        ListenAddress::Unix(_) => true,
    }
}

/// Tries an address as systemd opens it.
fn bind(address: SocketAddr, shares: bool) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        // BindIPv6Only=: the IPv4 address of the same port is another one.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares)?;
    socket.bind(&address.into())
}

fn refusal_of_path(path: &Path, paths: &Paths) -> Result<Option<Refusal>> {
    let scope = paths.scope;
    let place = match scope {
        Scope::System => "litellm/litellm.sock",
        Scope::User => "litellm.sock",
    };
    let place = paths.runtime.join(place);
    let choose = format!("choose another path, such as {}", place.display());
    if let Some(exposed) = ownership::exposed_above(scope, path)? {
        let who = match scope {
            Scope::System => "root",
            Scope::User => "this user and root",
        };
        let problem = format!("but others than {who} can change {}", exposed.display());
        return Ok(Some(Refusal::new(problem, choose)));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Ok(Some(Refusal::new(
                "which exists and is not a socket",
                format!("move it away, or {choose}"),
            )));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Ok(Some(Refusal::new(
                "which is taken by another process",
                find(&ListenAddress::Unix(path.into())),
            )));
        }
        _ => {}
    }
    // systemd creates missing directories.
    let above = path.ancestors().skip(1).find(|above| above.exists());
    Ok(match above {
        Some(above) if !above.is_dir() => Some(Refusal::new(
            format!("but {} is no directory", above.display()),
            choose,
        )),
        Some(above) if access(above, AccessFlags::W_OK).is_err() => Some(Refusal::new(
            format!("but this user can create nothing in {}", above.display()),
            choose,
        )),
        _ => None,
    })
}

fn refusal_of_group(name: &str, scope: Scope) -> Result<Option<Refusal>> {
    let group =
        Group::from_name(name).with_context(|| format!("can't look up the group {name}"))?;
    let Some(group) = group else {
        return Ok(Some(Refusal::new(
            format!("names the group {name}, which does not exist on this host"),
            "see the groups of this host: `getent group`",
        )));
    };
    let is_member = || -> Result<bool> {
        let groups = getgroups().context("can't read the groups of this user")?;
        Ok(getegid() == group.gid || groups.contains(&group.gid))
    };
    if scope == Scope::User && !is_member()? {
        return Ok(Some(Refusal::new(
            format!("names the group {name}, which this user is not in"),
            format!("add the user to it: `sudo usermod -aG {name} $USER`, then log in again"),
        )));
    }
    Ok(None)
}

/// A change of the addresses of a gateway that runs.
///
/// systemd keeps the addresses that stay and closes the others when it reads the changed unit; it opens new ones when
/// the unit starts. The gateway keeps all that it got when it started. So the unit is written last, when the standby
/// serves, and is restarted between the end and the start of the gateway.
pub(crate) struct Relocation {
    from: Listen,
    to: Listen,
}

impl Relocation {
    /// The change that `settings` call for; none while systemd has no address.
    pub(crate) async fn find(host: &Host, settings: &Settings) -> Result<Option<Self>> {
        let Some(from) = Listen::installed(&host.paths) else {
            return Ok(None);
        };
        let to = settings.listen.clone();
        let marker = marker(&host.paths);
        if from == to && !marker.exists() {
            return Ok(None);
        }
        if !host
            .systemd()
            .await?
            .unit(quadlet::SOCKET)
            .await?
            .is_active()
        {
            return Ok(None);
        }
        Ok(Some(Self { from, to }))
    }

    /// The change that `settings` call for, ready to be made. One to an address that can't be had is left out: the gateway
    /// keeps its addresses, since a rotation or a rollback is not to fail for them. So is one that
    /// `litellm-recovery.service` would make: it would have to stop itself.
    pub(super) async fn begin(host: &Host, settings: &Settings) -> Result<Option<Self>> {
        let Some(found) = Self::find(host, settings).await? else {
            // systemd opens the addresses of the installed unit when that starts.
            files::remove_existing(&marker(&host.paths))?;
            return Ok(None);
        };
        if OperationLock::is_held_by(&host.paths, recovery::COMMAND) {
            host.progress.warn(&format!(
                "the gateway keeps its addresses; to move it from {} to {}: `litellm-units apply`",
                found.from, found.to
            ));
            return Ok(None);
        }
        let Err(error) = refuse(host, settings) else {
            return Ok(Some(found));
        };
        let hint = crate::error::hint(&error).unwrap_or_default();
        host.progress.warn(&format!(
            "the gateway keeps its addresses: {error:#}; {hint}"
        ));
        Ok(None)
    }

    /// Whether systemd can open the addresses while a gateway has them, or others at their ports. It can't if it opened
    /// them by a unit of an earlier version.
    pub(super) fn can_overlap(&self) -> bool {
        self.to.addresses.iter().all(can_share)
    }

    /// Installs the unit. From here on, the gateway and then the unit have to restart.
    pub(super) async fn install(&self, host: &Host) -> Result<()> {
        host.progress.say(&self.to_string());
        files::write_atomically(&marker(&host.paths), b"", 0o600)?;
        let unit = quadlet::socket(&self.to)?;
        let path = host.paths.units.join(unit.name);
        files::write_atomically(&path, unit.text.as_bytes(), 0o644)?;
        host.systemd().await?.reload().await
    }

    /// Ends `litellm-recovery.service`, which has the addresses, too: without it, they can be opened again.
    pub(super) async fn release(host: &Host) -> Result<()> {
        let mut jobs = Jobs::new(host.systemd().await?).await?;
        jobs.ask(JobType::Stop, quadlet::RECOVERY).await?;
        jobs.next(RELEASE_TIMEOUT).await?;
        Ok(())
    }

    /// Has the new addresses held as the old ones were, and the old ones closed.
    pub(super) async fn complete(&self, host: &Host) -> Result<()> {
        hold_address(host).await?;
        for address in &self.from.addresses {
            if let ListenAddress::Unix(path) = address
                && !self.to.addresses.contains(address)
            {
                files::remove_existing(path)?;
            }
        }
        files::remove_existing(&marker(&host.paths))
    }
}

/// Completes a move whose process was killed, when the gateway starts: systemd may not have opened its addresses, and a
/// gateway without any would fail for ever. This start ends, and begins again behind the addresses.
pub(crate) async fn complete_interrupted(host: &Host) -> Result<()> {
    let marker = marker(&host.paths);
    let holder = OperationLock::holder(&host.paths);
    let is_moving = holder.is_some() && !OperationLock::is_held_by(&host.paths, recovery::COMMAND);
    if !marker.exists() || is_moving {
        return Ok(());
    }
    // systemd ends this process with the start, maybe before it has asked for both.
    drop(signal(SignalKind::terminate()).context("can't listen for the end of the start")?);
    let mut jobs = Jobs::new(host.systemd().await?).await?;
    for unit in [Service::Litellm.unit(), quadlet::SOCKET] {
        jobs.ask(JobType::Restart, unit).await?;
    }
    files::remove_existing(&marker)
}

impl fmt::Display for Relocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "move the gateway from {} to {}", self.from, self.to)
    }
}

fn marker(paths: &Paths) -> PathBuf {
    paths.runtime_state().join(MARKER)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_of_which_one_can_be_had() {
        for (one, other, expected) in [
            ("127.0.0.1:4000", "0.0.0.0:4000", true),
            ("0.0.0.0:4000", "10.0.0.7:4000", true),
            ("[::]:4000", "[::1]:4000", true),
            ("127.0.0.1:4000", "127.0.0.1:4000", true),
            ("127.0.0.1:4000", "127.0.0.1:4001", false),
            ("127.0.0.1:4000", "127.0.0.2:4000", false),
            // BindIPv6Only=
            ("127.0.0.1:4000", "[::]:4000", false),
            ("0.0.0.0:4000", "[::1]:4000", false),
        ] {
            let [one, other] = [one, other].map(|address| address.parse().unwrap());
            assert_eq!(overlap(one, other), expected, "{one} {other}");
            assert_eq!(overlap(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_port_of_another_process() {
        let other = TcpListener::bind(("127.0.0.2", 0)).unwrap();
        let wanted = other.local_addr().unwrap();
        let installed = |ip: [u8; 4]| Listen {
            addresses: vec![ListenAddress::Tcp((ip, wanted.port()).into())],
            group: None,
        };
        let refusal = refusal_of_port(wanted, &installed([127, 0, 0, 1])).unwrap();
        assert_eq!(refusal.problem, "which is taken by another process");
        assert!(refusal_of_port(wanted, &installed([0, 0, 0, 0])).is_none());
        assert!(is_taken(&ListenAddress::Tcp(wanted)));
        assert!(!can_share(&ListenAddress::Tcp(wanted)));
    }

    /// Whoever has it: the gateway starts.
    #[test]
    fn an_installed_address_of_the_metrics_is_not_refused() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            deployment: root.path().join("deployment"),
            units: root.path().to_owned(),
            ..Paths::elsewhere(Scope::System)
        };
        let other = TcpListener::bind(("127.0.0.2", 0)).unwrap();
        let address = other.local_addr().unwrap();
        let env = format!(
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nLITELLM_SALT_KEY=sk-salt\n\
             POSTGRES_USER=me\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=db\nREDIS_PASSWORD=r\n{METRICS_LISTEN}={address}\n"
        );
        std::fs::create_dir(&paths.deployment).unwrap();
        std::fs::write(paths.env_file(), &env).unwrap();
        let settings = Settings::from_text(&env, &paths.env_file()).unwrap();
        let error = refuse_metrics(&paths, &settings).unwrap_err();
        assert!(
            format!("{error:#}").contains("which is taken by another process"),
            "{error:#}"
        );
        let socket = format!("[Socket]\nListenStream={address}\n");
        std::fs::write(paths.units.join(quadlet::METRICS_SOCKET), socket).unwrap();
        refuse_metrics(&paths, &settings).unwrap();
    }

    /// A gateway does not start without its address for LiteLLM's own metrics.
    #[test]
    fn a_taken_port_of_a_gateway_s_metrics_is_named() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            units: root.path().to_owned(),
            quadlets: root.path().to_owned(),
            ..Paths::elsewhere(Scope::System)
        };
        let socket = "[Socket]\nListenStream=/nowhere/litellm.sock\n";
        std::fs::write(paths.units.join(quadlet::SOCKET), socket).unwrap();
        let other = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = other.local_addr().unwrap();
        let port = address.port();
        let unit = format!("[Container]\nPublishPort={address}:{port}\n");
        std::fs::write(paths.quadlets.join("litellm-2.container"), unit).unwrap();
        let published = published_metrics(&paths);
        let numbers: Vec<_> = { published.iter() }
            .map(|(gateway, its)| (gateway.number(), *its))
            .collect();
        assert_eq!(numbers, [(2, address)]);
        let error = refuse_taken(&paths, &[]).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!("port {port} is taken by another process")
        );
        drop(other);
        refuse_taken(&paths, &[]).unwrap();
    }
}

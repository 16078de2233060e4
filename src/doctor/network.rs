//! Listening sockets, and the connections between containers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::{Check, CheckName, Examination};
use crate::deployment::database_url;
use crate::deployment::extra;
use crate::deployment::listen::{Listen, ListenAddress};
use crate::deployment::settings::{Cache, Database};
use crate::host::Host;
use crate::host::firewall;
use crate::host::listener::{Listener, listening};
use crate::host::systemd::UnitState;
use crate::litellm::models;
use crate::operations::stack::address::{overlap, published_metrics};
use crate::output::shell_word;
use crate::quadlet::{self, drop_ins};
use crate::service::{Instance, Service};

/// Of a connection.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Of all tests inside the gateway's container.
const INSIDE_TIMEOUT: Duration = Duration::from_secs(20);
const DOCKER: &str = "/run/docker.sock";
/// Published by a docker compose stack of LiteLLM, beside the gateway's port. What others publish there is no stack.
const STACK_PORTS: [u16; 2] = [5432, 6379];

/// The gateway's addresses of TCP.
fn tcp(listen: &Listen) -> impl Iterator<Item = SocketAddr> {
    listen.addresses.iter().filter_map(|address| match address {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    })
}

/// The ports of these addresses, each once.
fn ports(listen: &Listen) -> BTreeSet<u16> {
    tcp(listen).map(|address| address.port()).collect()
}

/// The process with an open socket, if the caller may see it.
fn process_with(inode: u64) -> Option<(u32, String)> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let process: u32 = entry.file_name().to_str()?.parse().ok()?;
            let mut open = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            open.find(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == wanted))?;
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some((process, name.trim().to_owned()))
        })
}

fn is_in(process: u32, control_group: &str) -> bool {
    !control_group.is_empty()
        && std::fs::read_to_string(format!("/proc/{process}/cgroup")).is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("0::"))
                .any(|group| {
                    group
                        .strip_prefix(control_group)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
        })
}

pub(crate) fn port(examination: &Examination<'_>) -> Option<Check> {
    // Without systemd, it can't be determined which process is the gateway.
    examination.units.as_ref()?;
    let listen = Listen::installed(&examination.host.paths).unwrap_or_default();
    let problem = ports(&listen).into_iter().find_map(|port| {
        let mut found = listening(port);
        found.retain(|listener| {
            let address = SocketAddr::new(listener.address.to_canonical(), port);
            tcp(&listen).any(|ours| overlap(ours, address))
        });
        judge_port(examination, &listen, port, &found)
    });
    Some(
        problem
            .or_else(|| judge_paths(examination, &listen))
            .or_else(|| judge_metrics(examination))
            .unwrap_or_else(|| {
                let places: BTreeSet<_> =
                    listen.addresses.iter().map(ListenAddress::place).collect();
                let verb = if places.len() == 1 { "is" } else { "are" };
                let places = Vec::from_iter(places).join(" and ");
                let message = if examination.gateway_runs() || examination.holds_address {
                    format!("the gateway listens on {places}")
                } else {
                    format!("{places} {verb} free")
                };
                Check::ok(CheckName::Port, message)
            }),
    )
}

/// The problem with a port, if there is one.
fn judge_port(
    examination: &Examination<'_>,
    listen: &Listen,
    port: u16,
    found: &[Listener],
) -> Option<Check> {
    let unit = examination.unit(Service::Litellm);
    let runs = unit.is_some_and(|unit| !unit.is_stopped());
    if found.is_empty() {
        return examination
            .gateway_runs()
            .then(|| nobody(&format!("port {port}")));
    }
    let is_ours = |listener: &Listener| {
        listener.address.to_canonical().is_loopback()
            || tcp(listen)
                .any(|ours| ours == SocketAddr::new(listener.address.to_canonical(), port))
    };
    let who = found
        .iter()
        // The socket of systemd, from which the gateways get it.
        .filter(|listener| !(examination.holds_address && is_ours(listener)))
        .find_map(|listener| match process_with(listener.inode) {
            Some((process, name)) => {
                let ours = unit.is_some_and(|unit| is_in(process, &unit.control_group));
                (!ours).then(|| format!("{name} (process {process})"))
            }
            None => (!runs).then(|| "a process of another user".to_owned()),
        })?;
    Some(taken(port, &who))
}

fn taken(port: u16, who: &str) -> Check {
    Check::failure(CheckName::Port, format!("port {port} is taken by {who}"))
        .remedy(format!("find and stop it: `ss -ltnp 'sport = :{port}'`"))
}

/// A port for LiteLLM's own metrics that keeps a gateway from starting.
fn judge_metrics(examination: &Examination<'_>) -> Option<Check> {
    let units = examination.units.as_ref()?;
    published_metrics(&examination.host.paths)
        .into_iter()
        .find_map(|(gateway, address)| {
            let (_, unit) = units.iter().find(|(instance, _)| *instance == gateway)?;
            let mut found = listening(address.port()).into_iter().filter(|listener| {
                let its = SocketAddr::new(listener.address.to_canonical(), address.port());
                !unit.is_active() && overlap(its, address)
            });
            let who = found.find_map(|listener| match process_with(listener.inode) {
                Some((process, name)) => {
                    let ours = is_in(process, &unit.control_group);
                    (!ours).then(|| format!("{name} (process {process})"))
                }
                None => Some("a process of another user".to_owned()),
            })?;
            Some(taken(address.port(), &who))
        })
}

/// The problem with a Unix socket, if there is one.
fn judge_paths(examination: &Examination<'_>, listen: &Listen) -> Option<Check> {
    let missing = listen.addresses.iter().find_map(|address| match address {
        ListenAddress::Unix(path) if !path.exists() => Some(path),
        _ => None,
    })?;
    examination
        .gateway_runs()
        .then(|| nobody(&missing.display().to_string()))
}

fn nobody(place: &str) -> Check {
    Check::failure(
        CheckName::Port,
        format!("litellm.service is active, but nothing listens on {place}"),
    )
    .remedy("restart it: `litellm-units restart litellm`")
}

/// Whether the gateway can be reached from this host only, unless `LISTEN` says otherwise, now and after the next start.
pub(crate) fn loopback(examination: &Examination<'_>) -> Check {
    let listen = Listen::installed(&examination.host.paths).unwrap_or_default();
    let control_group = { examination.unit(Service::Litellm) }.map(|unit| &*unit.control_group);
    // systemd's own, or the gateway's: others may use the port at another address.
    let is_of_gateway = |listener: &Listener| {
        process_with(listener.inode).is_some_and(|(process, name)| {
            name == "systemd" || is_in(process, control_group.unwrap_or_default())
        })
    };
    let open = |port| {
        let listener = listening(port).into_iter().find(|listener| {
            !listener.address.to_canonical().is_loopback()
                && tcp(&listen)
                    .all(|ours| ours != SocketAddr::new(listener.address.to_canonical(), port))
                && is_of_gateway(listener)
        });
        listener.map(|listener| (port, listener.address.to_canonical()))
    };
    let found = examination
        .gateway_runs()
        .then(|| ports(&listen).into_iter().find_map(open))
        .flatten();
    if let Some((port, address)) = found {
        return Check::failure(CheckName::Loopback, format!("port {port} is open on {address}")).remedy(
            "remove the drop-in that opens it (`systemctl cat litellm.socket litellm.service`), then run `litellm-units generate && litellm-units restart litellm`",
        );
    }
    let containers = extra::instances(&examination.host.paths)
        .map(Instance::container)
        .chain([quadlet::STANDBY]);
    for container in containers {
        for file in unit_files(examination.host, container) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(open) = text
                .lines()
                .filter_map(published)
                .find(|address| !is_loopback(address))
            {
                return Check::failure(
                    CheckName::Loopback,
                    format!("{} publishes {open} beyond this host", file.display()),
                )
                .remedy("publish on 127.0.0.1 only, and use a reverse proxy with TLS");
            }
        }
    }
    match listen.addresses.iter().find(|address| !address.is_local()) {
        Some(address) => Check::ok(
            CheckName::Loopback,
            format!(
                "{address} is open to other hosts without TLS, as LISTEN_WITHOUT_TLS in .env allows"
            ),
        ),
        None => Check::ok(CheckName::Loopback, "nothing is published beyond 127.0.0.1"),
    }
}

/// A container's Quadlet file and its drop-ins.
fn unit_files(host: &Host, container: &str) -> Vec<PathBuf> {
    let file = format!("{container}.container");
    let drop_ins = drop_ins::of(&host.paths.quadlets, &file);
    [vec![host.paths.quadlets.join(&file)], drop_ins].concat()
}

fn published(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    Some(value.trim()).filter(|value| key.trim() == "PublishPort" && !value.is_empty())
}

/// Of `127.0.0.1:80:80`, `[::1]:80:80`, `80:80` or `80`, the first two.
fn is_loopback(published: &str) -> bool {
    let host = match published.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => published.rsplitn(3, ':').nth(2),
    };
    host.and_then(|host| host.parse::<IpAddr>().ok())
        .is_some_and(|address| address.is_loopback())
}

/// Runs inside the gateway's container, whose only tool is Python.
const QUESTIONS: &str = r"
import json, os, socket, sys, time
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
names, host, port = sys.argv[1].split(), sys.argv[2], sys.argv[3]
def look_up(name):
    try: socket.getaddrinfo(name, None)
    except OSError as error: return str(error)
def reach_database():
    # As ask_postgres in Rust.
    try:
        if host.startswith('/'):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(3)
            connection.connect(f'{host}/.s.PGSQL.{port}')
        else: connection = socket.create_connection((host, int(port)), 3)
        with connection:
            connection.sendall(bytes.fromhex('0000000804d2162f'))
            if not connection.recv(1): return 'the connection is closed without an answer'
    except OSError as error: return str(error)
def reach_cache(at):
    try: socket.create_connection(at, 3).close()
    except OSError as error: return str(error)
def cache_servers():
    nodes, at = os.environ.get('REDIS_SENTINEL_NODES'), os.environ.get('REDIS_HOST')
    try:
        if nodes: return [(name, int(port)) for name, port in json.loads(nodes)]
        return [(at, int(os.environ.get('REDIS_PORT') or 6379))] if at else []
    except (TypeError, ValueError): return []
def reach(url):
    to = urlsplit(url)
    proxy = getproxies().get(to.scheme)
    through = ''
    if proxy and not proxy_bypass(to.hostname):
        to = urlsplit(proxy)
        through = f'through the proxy {to.hostname}: '
    port = to.port or (443 if to.scheme == 'https' else 80)
    try: socket.create_connection((to.hostname, port), 3).close()
    except OSError as error: return f'{through}{error}'
pool = ThreadPoolExecutor(64)
asked = {name: pool.submit(look_up, name) for name in names}
providers = {url: pool.submit(reach, url) for url in sys.argv[4].split()}
caches = {f'{at[0]}:{at[1]}': pool.submit(reach_cache, at) for at in cache_servers() if sys.argv[5]}
# glibc asks a name server that does not answer for 10 seconds, and for 20 with a search list.
end = time.monotonic() + 12
def answer_of(future):
    try: return future.result(max(0, end - time.monotonic()))
    except TimeoutError: return 'no answer'
def failed(futures):
    return {name: error for name, future in futures.items() if (error := answer_of(future))}
names = failed(asked)
database = answer_of(pool.submit(reach_database)) if host and not names else None
print(json.dumps({'names': names, 'database': database, 'caches': failed(caches), 'providers': failed(providers)}), flush=True)
# Threads that still wait would be waited for.
os._exit(0)
";

#[derive(Debug, Deserialize)]
struct Answers {
    /// Names without an address, and the errors.
    names: HashMap<String, String>,
    /// The error of the connection.
    database: Option<String>,
    /// Servers of Redis, or Sentinels, that can't be reached, and the errors.
    caches: BTreeMap<String, String>,
    /// Servers of models that can't be reached, and the errors.
    providers: BTreeMap<String, String>,
}

/// Names on the bridge, and the connection to the database.
pub(crate) async fn inside(examination: &Examination<'_>) -> Vec<Check> {
    let Some(settings) = &examination.settings else {
        return Vec::new();
    };
    let database = match &settings.database {
        Database::Local { .. } => Some(("postgres".to_owned(), 5432)),
        Database::External { url } => url
            .open()
            .ok()
            .and_then(|url| host_and_port(url.expose_secret())),
    };
    let is_local = matches!(settings.database, Database::Local { .. });
    // A stopped one has no address, and check `units` reports it.
    let runs = |service| examination.unit(service).is_some_and(UnitState::is_active);
    if !examination.gateway_runs() {
        // An external database can be tried from the host.
        let Some((host, port)) = database.filter(|_| !is_local) else {
            return Vec::new();
        };
        let error = try_database(&host, port).await;
        return vec![reach(&host, port, error)];
    }
    let mut names = Vec::new();
    if is_local && runs(Service::Postgres) {
        names.push("postgres");
    }
    if matches!(settings.cache, Cache::Local { .. }) && runs(Service::Redis) {
        names.push("redis");
    }
    let database = database.filter(|_| !is_local || runs(Service::Postgres));
    let (host, port) = database.clone().unwrap_or_default();
    let providers = match &examination.env {
        Some(env) => models::servers(&examination.host.paths.config_file(), env),
        None => Vec::new(),
    };
    let Ok(podman) = examination.host.podman().await else {
        return Vec::new();
    };
    let mut command = podman.command([
        "exec",
        Service::Litellm.container(),
        "python3",
        "-c",
        QUESTIONS,
    ]);
    command
        .args([names.join(" "), host, port.to_string(), providers.join(" ")])
        .arg(match settings.cache {
            Cache::Local { .. } => "",
            Cache::External => "external",
        })
        .kill_on_drop(true);
    let output = match tokio::time::timeout(INSIDE_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return vec![Check::failure(
                CheckName::Container,
                format!("can't run podman: {error}"),
            )];
        }
        Err(_) => {
            let message = format!(
                "the gateway's container did not answer within {} s",
                INSIDE_TIMEOUT.as_secs()
            );
            return vec![
                Check::failure(CheckName::Container, message)
                    .remedy("see what it does: `litellm-units logs litellm`"),
            ];
        }
    };
    let Ok(answers) = serde_json::from_slice::<Answers>(&output.stdout) else {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.trim().lines().last().unwrap_or("no message");
        return vec![
            Check::failure(
                CheckName::Container,
                format!("can't run a test in the gateway's container: {last}"),
            )
            .remedy("restart the container: `litellm-units restart litellm`"),
        ];
    };
    let mut lost: Vec<String> = answers
        .names
        .iter()
        .map(|(name, error)| format!("{name} ({error})"))
        .collect();
    lost.sort();
    if !lost.is_empty() {
        return vec![
            Check::failure(CheckName::Dns, format!("the gateway's container finds no address for {}", lost.join(", ")))
                .remedy("Podman's name server (aardvark-dns) is not running or has wrong data; to restart it: `podman network reload --all`"),
        ];
    }
    let mut checks = Vec::new();
    if !names.is_empty() {
        checks.push(Check::ok(
            CheckName::Dns,
            format!("the gateway finds {} by name", names.join(" and ")),
        ));
    }
    if let Some((host, port)) = database {
        let is_lost = answers.database.is_some() && host.starts_with('/');
        let check = reach(&host, port, answers.database);
        // The container still has the directory that was removed from the host.
        checks.push(if is_lost && try_database(&host, port).await.is_none() {
            check.remedy(format!("{host} was created again after the gateway had started: `litellm-units restart litellm`; to keep the directory, add RuntimeDirectoryPreserve=yes to the unit of PostgreSQL: docs/configuration.md"))
        } else {
            check
        });
    }
    if !answers.caches.is_empty() {
        let message = format!(
            "the gateway's container can't reach {}; while it has no Redis, it counts rate limits and budgets for itself",
            list(&answers.caches)
        );
        checks.push(Check::warning(CheckName::Cache, message).remedy(
            "check the server, the variables REDIS_… in .env, and the firewalls in between",
        ));
    }
    checks.extend(reach_providers(&providers, &answers.providers));
    checks
}

/// Servers with their errors.
fn list(errors: &BTreeMap<String, String>) -> String {
    let words: Vec<String> = errors
        .iter()
        .map(|(server, error)| format!("{server} ({error})"))
        .collect();
    words.join(", ")
}

/// The error of a connection from this host, if there is one.
async fn try_database(host: &str, port: u16) -> Option<String> {
    match tokio::time::timeout(TIMEOUT, ask_postgres(host, port)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("no answer".to_owned()),
    }
}

/// Sends `SSLRequest`, which every PostgreSQL answers with one byte. A load balancer accepts connections without a server
/// behind it.
async fn ask_postgres(host: &str, port: u16) -> std::io::Result<()> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 22, 0x2f];
    let read = if host.starts_with('/') {
        let mut connection = UnixStream::connect(format!("{host}/.s.PGSQL.{port}")).await?;
        connection.write_all(&SSL_REQUEST).await?;
        connection.read(&mut [0]).await?
    } else {
        let mut connection = TcpStream::connect((host, port)).await?;
        connection.write_all(&SSL_REQUEST).await?;
        connection.read(&mut [0]).await?
    };
    match read {
        0 => Err(std::io::Error::other(
            "the connection is closed without an answer",
        )),
        _ => Ok(()),
    }
}

/// `None` if the configuration names no server of a model.
fn reach_providers(servers: &[String], errors: &BTreeMap<String, String>) -> Option<Check> {
    if servers.is_empty() {
        return None;
    }
    if errors.is_empty() {
        let message = format!("every api_base accepts connections: {}", servers.join(", "));
        return Some(Check::ok(CheckName::Providers, message));
    }
    Some(
        Check::failure(
            CheckName::Providers,
            format!("the gateway's container can't reach {}", list(errors)),
        )
        .remedy("check api_base in config/, the server, and the firewalls in between; a proxy is HTTPS_PROXY in .env"),
    )
}

fn reach(host: &str, port: u16, error: Option<String>) -> Check {
    match error {
        None => Check::ok(
            CheckName::Database,
            format!("{host}:{port} accepts connections"),
        ),
        Some(error) => Check::failure(
            CheckName::Database,
            format!("{host}:{port} can't be reached: {error}"),
        )
        .remedy(if host == "postgres" {
            "see its log: `litellm-units logs postgres`"
        } else {
            "check DATABASE_URL in .env, the server, and the firewalls in between"
        }),
    }
}

/// Of a PostgreSQL URL. The host is the directory of a Unix socket if it begins with a slash. `None` for several hosts.
fn host_and_port(url: &str) -> Option<(String, u16)> {
    let socket = database_url::socket_directory(url);
    let url = reqwest::Url::parse(url).ok()?;
    if let Some(directory) = socket {
        return Some((directory, url.port().unwrap_or(5432)));
    }
    let host = url
        .host_str()
        .filter(|host| !host.is_empty() && !host.contains([',', '%']))?;
    Some((
        host.trim_matches(['[', ']']).to_owned(),
        url.port().unwrap_or(5432),
    ))
}

/// Whether the host drops the traffic of the containers.
pub(crate) async fn firewall(host: &Host) -> Option<Check> {
    let dropped = firewall::drops_bridge(&host.paths).await?;
    Some(Check::failure(CheckName::Firewall, dropped.message()).remedy(dropped.remedy()))
}

/// Containers or the file of a docker compose stack.
pub(crate) async fn docker(host: &Host) -> Check {
    let ports = ports(&Listen::installed(&host.paths).unwrap_or_default());
    let containers = match tokio::time::timeout(TIMEOUT, docker_containers()).await {
        Ok(Some(containers)) => containers,
        _ => Vec::new(),
    };
    let stacks: BTreeSet<&str> = { containers.iter() }
        .filter(|container| container.image.contains("litellm"))
        .filter_map(DockerContainer::project)
        .collect();
    let mut taken: Vec<String> = containers
        .iter()
        // With podman-docker, Podman answers at Docker's address.
        .filter(|container| !container.labels.contains_key("PODMAN_SYSTEMD_UNIT"))
        .filter_map(|container| {
            let is_of_stack = { container.project() }.is_some_and(|name| stacks.contains(name));
            let port = container
                .ports
                .iter()
                .filter_map(|port| port.public)
                .find(|port| ports.contains(port) || is_of_stack && STACK_PORTS.contains(port))?;
            let name = container
                .names
                .first()
                .map_or("?", |name| name.trim_start_matches('/'));
            Some(format!("{name} (port {port})"))
        })
        .collect();
    if taken.is_empty() {
        taken = docker_proxies(&ports);
    }
    if !taken.is_empty() {
        return Check::warning(
            CheckName::Docker,
            format!(
                "Docker still runs a stack on the same ports: {}",
                taken.join(", ")
            ),
        )
        .remedy("in the directory of its compose file, run `docker compose down`");
    }
    let file = [
        "docker-compose.yml",
        "docker-compose.yaml",
        "compose.yml",
        "compose.yaml",
    ]
    .iter()
    .map(|name| host.paths.deployment.join(name))
    .find(|path| path.exists());
    match file {
        Some(file) => Check::warning(
            CheckName::Docker,
            format!(
                "{} is left over: `docker compose up` there would start a second stack",
                file.display()
            ),
        )
        .remedy(format!(
            "`mv {} {}`",
            shell_word(&file),
            shell_word(format!("{}.old", file.display()))
        )),
        None => Check::ok(CheckName::Docker, "no docker compose stack is left over"),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct DockerContainer {
    names: Vec<String>,
    ports: Vec<DockerPort>,
    image: String,
    labels: HashMap<String, String>,
}

impl DockerContainer {
    /// The project of docker compose.
    fn project(&self) -> Option<&str> {
        let name = self.labels.get("com.docker.compose.project")?;
        Some(name)
    }
}

#[derive(Debug, Deserialize)]
struct DockerPort {
    #[serde(rename = "PublicPort")]
    public: Option<u16>,
}

/// `None` if Docker does not answer.
async fn docker_containers() -> Option<Vec<DockerContainer>> {
    let mut socket = UnixStream::connect(DOCKER).await.ok()?;
    // HTTP/1.0: the end of the connection is the end of the answer.
    socket
        .write_all(b"GET /containers/json HTTP/1.0\r\nHost: docker\r\n\r\n")
        .await
        .ok()?;
    let mut answer = Vec::new();
    socket.take(8 << 20).read_to_end(&mut answer).await.ok()?;
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    serde_json::from_slice(&answer[body..]).ok()
}

/// Processes by which Docker publishes ports, for callers without access to its socket.
fn docker_proxies(ports: &BTreeSet<u16>) -> Vec<String> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            if name.trim() != "docker-proxy" {
                return None;
            }
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<&str> = line
                .split(|byte| *byte == 0)
                .filter_map(|word| std::str::from_utf8(word).ok())
                .collect();
            let port: u16 = words
                .iter()
                .skip_while(|word| **word != "-host-port")
                .nth(1)?
                .parse()
                .ok()?;
            ports
                .contains(&port)
                .then(|| format!("docker-proxy (port {port})"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published() {
        for (line, loopback) in [
            ("PublishPort=127.0.0.1:24157:24157", true),
            ("PublishPort = [::1]:80:80", true),
            ("PublishPort=24157:24157", false),
            ("PublishPort=24157", false),
            ("PublishPort=0.0.0.0:80:80", false),
            ("PublishPort=[::]:80:80", false),
        ] {
            assert_eq!(published(line).map(is_loopback), Some(loopback), "{line}");
        }
        assert_eq!(published("PublishPort="), None);
        assert_eq!(published("Image=a"), None);
    }

    #[test]
    fn database_hosts() {
        for (url, expected) in [
            (
                "postgresql://u:p@db.example:6432/x",
                Some(("db.example", 6432)),
            ),
            (
                "postgres://u:p@[::1]/x?sslmode=require",
                Some(("::1", 5432)),
            ),
            (
                "postgresql://u:p@localhost/x?schema=a&host=/run/postgresql",
                Some(("/run/postgresql", 5432)),
            ),
            ("postgresql://u:p@%2Frun%2Fpostgresql/x", None),
        ] {
            assert_eq!(
                host_and_port(url),
                expected.map(|(host, port)| (host.to_owned(), port)),
                "{url}"
            );
        }
    }
}

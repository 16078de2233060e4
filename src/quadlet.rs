//! From settings to unit files. Pure: the same settings give the same bytes.

pub(crate) mod check;
pub mod dev;
pub(crate) mod drop_ins;
pub mod escape;
pub mod plan;

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use askama::Template;

use crate::deployment::completion::container_owner;
use crate::deployment::entrance::{self, Entrance};
use crate::deployment::extra::{self, Extra};
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::listen::{self, GATEWAY_PORT, Listen, ListenAddress};
use crate::deployment::settings::{Cache, Database, Replicas, Settings};
use crate::error::Result;
use crate::host::capacity::Capacity;
use crate::host::paths::{Paths, Scope};
use crate::host::podman::PodmanVersion;
use crate::host::systemd::Features;
use crate::image::ImageReference;
use crate::service::{Instance, Service};

/// The first line of every file that this program writes and may therefore change or remove.
pub const MARKER: &str = "# Written by litellm-units. Do not edit: use a drop-in (systemctl edit), or .env and `litellm-units apply`.";

/// The first words of the marker, by which a file of ours is recognised.
pub const MARKER_PREFIX: &str = "# Written by litellm-units.";

/// What the migration runs.
const MIGRATION: &str = concat!(
    include_str!("../units/arguments.py"),
    include_str!("../units/certificates.py"),
    include_str!("../templates/migrate.py")
);

/// Migrates the database to the next release while the gateway of the current one serves.
pub const NEXT_MIGRATION: &str = "litellm-migrate-next";

/// A server of PostgreSQL's next major version, beside the current one.
pub const NEXT_SERVER: &str = "litellm-postgres-next";

/// Podman's network, as `litellm.network` names it.
pub const NETWORK: &str = "litellm";

/// The container of a second gateway, which serves while the first one restarts.
pub const STANDBY: &str = "litellm-standby";

/// Holds the gateway's address.
pub const SOCKET: &str = listen::SOCKET;

/// Completes a change whose process was killed, and holds the gateway's address while a change goes on.
pub const RECOVERY: &str = "litellm-recovery.service";

/// What the gateway's container runs, mounted into it from the per-boot directory.
pub const SERVE: &str = concat!(
    include_str!("../units/arguments.py"),
    include_str!("../units/certificates.py"),
    include_str!("../units/serve.py")
);

/// The directory below the per-boot directory in which the migration writes down which schema the
/// database has, for the gateway to compare with the one of its release.
pub const SCHEMA: &str = "schema";

/// The directory beside it with the time until which the gateways write debug logs, and with the file that holds a starting
/// one.
pub const DEBUG: &str = "debug";

/// The first user and group ID of the host that the processes of a service have with `USER_NAMESPACES`.
///
/// All lie between those that systemd gives out to containers and its foreign IDs, above those of `useradd` and of the
/// directories that SSSD maps. What mounts the same files has the same ones.
pub(crate) fn first_id(service: Service) -> u32 {
    match service {
        Service::Litellm | Service::Migrate => 0x7f00_0000,
        Service::Postgres => 0x7f01_0000,
        Service::Redis => 0x7f02_0000,
        // Those of the operator's own have none: their volumes are not known.
        Service::Extra(_) | Service::Entrance => 0,
    }
}

/// Makes a backup every day.
pub const BACKUP_TIMER: &str = "litellm-backup.timer";
/// What the timer starts.
pub const BACKUP_SERVICE: &str = "litellm-backup.service";

/// Verifies the newest backup every week.
pub const VERIFY_TIMER: &str = "litellm-verify.timer";
/// What that timer starts.
pub const VERIFY_SERVICE: &str = "litellm-verify.service";

/// Archives the write-ahead log, if `.env` asks for it.
pub const WAL_TIMER: &str = "litellm-wal.timer";
/// What that timer starts.
pub const WAL_SERVICE: &str = "litellm-wal.service";

/// Checks for newer releases every day.
pub const CHECK_TIMER: &str = "litellm-upgrade-check.timer";
/// What that timer starts.
pub const CHECK_SERVICE: &str = "litellm-upgrade-check.service";

/// Replaces a gateway whose memory has grown, unless `.env` refuses it.
pub const RECYCLE_TIMER: &str = "litellm-recycle.timer";
/// What that timer starts.
pub const RECYCLE_SERVICE: &str = "litellm-recycle.service";

/// Looks for faults and writes metrics, if `.env` names recipients of notices, or a file or an address for metrics.
pub const WATCH_TIMER: &str = "litellm-watch.timer";
/// What that timer starts.
pub const WATCH_SERVICE: &str = "litellm-watch.service";

/// Holds the address of the metrics, if `.env` names one.
pub const METRICS_SOCKET: &str = "litellm-metrics.socket";

/// The units that come with a deployment and are enabled apart from the target, and what each is for.
pub const COMPANIONS: [(&str, &str); 8] = [
    (BACKUP_TIMER, "a backup every night"),
    (
        VERIFY_TIMER,
        "a verification of the newest backup every week",
    ),
    (CHECK_TIMER, "a check for newer releases every day"),
    (RECYCLE_TIMER, "a fresh gateway when its memory grows"),
    (WAL_TIMER, "an archive of the write-ahead log"),
    (WATCH_TIMER, "notices of faults, and metrics"),
    (METRICS_SOCKET, "metrics by HTTP"),
    (Service::Entrance.unit(), "https for other hosts"),
];

/// Where a unit file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Quadlet's directory.
    Quadlet,
    /// systemd's own directory.
    Unit,
}

/// One file to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFile {
    /// Which directory it goes to.
    pub place: Place,
    /// Its name there.
    pub name: &'static str,
    /// All of it.
    pub text: String,
}

/// What the units depend on beside the settings.
#[derive(Clone, Debug)]
pub struct RenderContext<'a> {
    /// The locations that the units name.
    pub paths: &'a Paths,
    /// The Podman that will read them.
    pub podman: PodmanVersion,
    /// What the systemd that will start them knows.
    pub systemd: Features,
    /// This program, as the units call it.
    pub program: &'a Path,
    /// The digests to run, where they are known.
    pub images: &'a ImagesLock,
    /// What the machine has for gateways.
    pub capacity: Capacity,
    /// The units of the operator's own.
    pub extras: &'a [Extra],
    /// What the operator has for the entrance.
    pub entrance: &'a entrance::Files,
}

/// The names under which a file of ours may be found in `place`, also one of development ([`dev::is_dev`]).
#[must_use]
pub fn is_ours_by_name(place: Place, name: &str) -> bool {
    let mut parts = name.rsplitn(2, '.');
    let suffix = parts.next().unwrap_or_default();
    let stem = parts.next().unwrap_or_default();
    (stem == "litellm" || stem.starts_with("litellm-"))
        && match place {
            Place::Quadlet => matches!(suffix, "container" | "network"),
            Place::Unit => matches!(suffix, "caddy" | "service" | "socket" | "target" | "timer"),
        }
}

/// `litellm.target`, as it is installed when no package brought it.
#[must_use]
pub fn target(scope: Scope) -> UnitFile {
    let text = match scope {
        Scope::System => include_str!("../units/litellm.target"),
        Scope::User => include_str!("../units/litellm.user.target"),
    };
    UnitFile {
        place: Place::Unit,
        name: "litellm.target",
        text: text.to_owned(),
    }
}

/// Renders a unit whose template, of the same name, has only what is common to all.
macro_rules! plain_unit {
    ($common:expr, $name:tt) => {{
        #[derive(Template)]
        #[template(path = $name)]
        struct Plain<'a> {
            common: &'a Common,
        }
        file(Place::Unit, $name, &Plain { common: $common })
    }};
}

/// Renders every file that `settings` call for, but the target.
///
/// # Errors
/// When a value can't be written in a unit file.
pub fn render(settings: &Settings, host: &RenderContext<'_>) -> Result<Vec<UnitFile>> {
    let common = &Common::new(settings, host)?;
    let gateways = settings.replicas.count(host.capacity);
    let network = Network {
        common,
        further: Instance::further(gateways)
            .chain(host.extras.iter().map(|extra| extra.service.into()))
            .collect(),
    };
    let mut files = vec![
        file(Place::Quadlet, "litellm.network", &network)?,
        plain_unit!(common, "litellm-images@.service")?,
        socket(&settings.listen)?,
        plain_unit!(common, "litellm-recovery.service")?,
        plain_unit!(common, "litellm-backup.service")?,
        plain_unit!(common, "litellm-backup.timer")?,
        plain_unit!(common, "litellm-verify.service")?,
        plain_unit!(common, "litellm-verify.timer")?,
        plain_unit!(common, "litellm-upgrade-check.service")?,
        plain_unit!(common, "litellm-upgrade-check.timer")?,
    ];
    if settings.backup.by.is_some() {
        files.retain(|file| ![BACKUP_TIMER, VERIFY_TIMER].contains(&file.name));
    }
    if settings.recycle_at.is_some() {
        files.push(plain_unit!(common, "litellm-recycle.service")?);
        files.push(plain_unit!(common, "litellm-recycle.timer")?);
    }
    if settings.backup.wal {
        files.push(plain_unit!(common, "litellm-wal.service")?);
        files.push(plain_unit!(common, "litellm-wal.timer")?);
    }
    if !settings.watch.is_empty() {
        files.push(plain_unit!(common, "litellm-watch.service")?);
        files.push(plain_unit!(common, "litellm-watch.timer")?);
    }
    if let Some(address) = settings.watch.metrics_address {
        let socket = MetricsSocket { common, address };
        files.push(plain_unit!(common, "litellm-metrics@.service")?);
        files.push(file(Place::Unit, METRICS_SOCKET, &socket)?);
    }
    if let Some(entrance) = &settings.entrance {
        files.extend(entrance_files(common, settings, entrance, host.entrance)?);
    }
    for extra in host.extras {
        let service = extra.service;
        let source = extra::source(host.paths, service);
        let unit = OfExtra {
            common,
            source: path_text(&source)?,
            service: Container::new(service, service.container(), &extra.image, host),
            text: &extra.text,
        };
        let quadlet = Instance::from(service).quadlet();
        files.push(file(Place::Quadlet, quadlet, &unit)?);
    }
    for service in settings.services() {
        let Some(image) = settings.image(service) else {
            continue;
        };
        let values = Container::new(service, service.container(), image, host);
        let (place, name) = (Place::Quadlet, Instance::from(service).quadlet());
        files.push(match service {
            Service::Postgres => {
                let data = host.paths.postgres_data();
                let unit = Postgres {
                    common,
                    service: values,
                    next: false,
                    data: path_text(&data)?,
                    cluster: cluster_path(Some(image)),
                    initdb: None,
                };
                file(place, name, &unit)?
            }
            Service::Redis => {
                let service = values;
                file(place, name, &Redis { common, service })?
            }
            Service::Migrate => file(place, name, &Migrate::new(common, values, false))?,
            Service::Litellm => {
                files.extend(gateway_files(common, values, gateways, settings)?);
                continue;
            }
            Service::Extra(_) | Service::Entrance => continue,
        });
    }
    Ok(files)
}

fn entrance_files(
    common: &Common,
    settings: &Settings,
    entrance: &Entrance,
    files: &entrance::Files,
) -> Result<[UnitFile; 2]> {
    let (upstream, group) = match settings.listen.own() {
        ListenAddress::Tcp(address) => (address.to_string(), None),
        ListenAddress::Unix(path) => (
            format!("unix/{}", path.display()),
            settings.listen.group.as_deref(),
        ),
    };
    let unit = OfEntrance {
        common,
        drain_timeout: settings.drain_timeout,
        group,
    };
    let configuration = Caddyfile {
        marker: MARKER,
        entrance,
        files,
        upstream,
    };
    Ok([
        file(Place::Unit, entrance::CONFIGURATION, &configuration)?,
        file(Place::Unit, Service::Entrance.unit(), &unit)?,
    ])
}

/// The first gateway last: its unit marks the installation as complete.
fn gateway_files(
    common: &Common,
    values: Container,
    gateways: usize,
    settings: &Settings,
) -> Result<Vec<UnitFile>> {
    let render = |name, number, standby: bool, service| {
        // The standby serves for seconds, and a port has one owner.
        let first = settings.metrics_port.filter(|_| !standby);
        let gateway = Gateway {
            common,
            standby,
            number,
            memory: Replicas::memory_percentage(gateways),
            drain_timeout: settings.drain_timeout,
            metrics_port: first.and_then(|port| port.checked_add(u16::try_from(number - 1).ok()?)),
            service,
        };
        file(Place::Quadlet, name, &gateway)
    };
    let standby = Container {
        flag: " --standby".into(),
        unit: STANDBY,
        ..values.clone()
    };
    let mut files = vec![render("litellm-standby.container", 1, true, standby)?];
    for instance in Instance::further(gateways) {
        let further = Container {
            flag: format!(" --replica {}", instance.number()),
            unit: instance.container(),
            ..values.clone()
        };
        let (name, number) = (instance.quadlet(), instance.number());
        files.push(render(name, number, false, further)?);
    }
    let first = Instance::from(Service::Litellm).quadlet();
    files.push(render(first, 1, false, values)?);
    Ok(files)
}

/// Renders the unit that holds the gateway's addresses. It depends on nothing else.
///
/// # Errors
/// When a value can't be written in a unit file.
pub fn socket(listen: &Listen) -> Result<UnitFile> {
    let has = |wanted: &dyn Fn(&SocketAddr) -> bool| {
        listen.addresses.iter().any(|address| match address {
            ListenAddress::Tcp(address) => wanted(address),
            ListenAddress::Unix(_) => false,
        })
    };
    file(
        Place::Unit,
        SOCKET,
        &Socket {
            marker: MARKER,
            listen,
            has_tcp: has(&|_| true),
            has_ipv6: has(&SocketAddr::is_ipv6),
            may_be_missing: has(&|address| {
                let ip = address.ip();
                !ip.is_loopback() && !ip.is_unspecified()
            }),
        },
    )
}

/// Renders the unit that migrates the database to the release of `settings`, and ends: the stack
/// of the current release keeps running.
///
/// # Errors
/// When a value can't be written in a unit file.
pub fn next_migration(settings: &Settings, host: &RenderContext<'_>) -> Result<UnitFile> {
    let common = &Common::new(settings, host)?;
    let image = &settings.litellm_image;
    let values = Container::new(Service::Migrate, NEXT_MIGRATION, image, host);
    file(
        Place::Quadlet,
        "litellm-migrate-next.container",
        &Migrate::new(common, values, true),
    )
}

/// Where the container of PostgreSQL has its cluster. In images of 18, `data` may be a link to the directory that it is in:
/// those get a place that no image has.
fn cluster_path(image: Option<&ImageReference>) -> &'static str {
    match image.and_then(ImageReference::postgres_major) {
        Some(major) if major < 18 => "/var/lib/postgresql/data",
        _ => "/var/lib/postgresql/cluster",
    }
}

/// Renders the unit of a server of `image` with a cluster of its own, beside the current one. `initdb` has
/// the arguments of the program that makes it.
///
/// # Errors
/// When a value can't be written in a unit file.
pub fn next_server(
    settings: &Settings,
    image: &ImageReference,
    initdb: Option<&str>,
    host: &RenderContext<'_>,
) -> Result<UnitFile> {
    let data = host.paths.postgres_next();
    let unit = Postgres {
        common: &Common::new(settings, host)?,
        service: Container::new(Service::Postgres, NEXT_SERVER, image, host),
        next: true,
        data: path_text(&data)?,
        cluster: cluster_path(Some(image)),
        initdb,
    };
    file(Place::Quadlet, "litellm-postgres-next.container", &unit)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8", path.display()))
}

fn file(place: Place, name: &'static str, template: &impl Template) -> Result<UnitFile> {
    let mut text = template
        .render()
        .with_context(|| format!("a value for {name} contains a control character"))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(UnitFile { place, name, text })
}

struct Common {
    marker: &'static str,
    unit_command: String,
    arguments: String,
    /// What has to be mounted before any of them reads `.env`.
    mounts: String,
    /// The same for `ReadWritePaths=`.
    writable: String,
    modern: bool,
    systemd: Features,
    local_database: bool,
    local_cache: bool,
    rootless: bool,
    awaits_network: bool,
    /// Whether other programs give values, which may need the network.
    fetches_secrets: bool,
    namespaces: bool,
    /// Has a volume mounted with the owners that its files have on the disk.
    idmap: &'static str,
    port: u16,
    config: String,
    certificates: String,
    credential_files: String,
    logs: String,
    redis_data: String,
    redis_memory: String,
}

impl Common {
    fn new(settings: &Settings, host: &RenderContext<'_>) -> Result<Self> {
        let deployment = path_text(&host.paths.deployment)?;
        let mut arguments = format!(" --litellm-dir {}", escape::word(deployment));
        if host.paths.scope == Scope::User {
            arguments.push_str(" --user");
        }
        Ok(Self {
            marker: MARKER,
            unit_command: escape::word(path_text(host.program)?),
            arguments,
            mounts: escape::word(deployment),
            writable: escape::word(&format!("-{deployment}")),
            modern: host.podman >= PodmanVersion::MODERN,
            systemd: host.systemd,
            local_database: matches!(settings.database, Database::Local { .. }),
            local_cache: matches!(settings.cache, Cache::Local { .. }),
            rootless: host.paths.scope == Scope::User,
            // In a user's session there is no such target; the restarts make up for it.
            awaits_network: host.paths.scope == Scope::System
                && (matches!(settings.database, Database::External { .. })
                    || matches!(settings.cache, Cache::External)),
            fetches_secrets: host.paths.scope == Scope::System
                && settings.lookups().next().is_some(),
            namespaces: settings.user_namespaces,
            idmap: if settings.user_namespaces {
                ",idmap"
            } else {
                ""
            },
            port: GATEWAY_PORT,
            config: path_text(&host.paths.config())?.to_owned(),
            certificates: path_text(&host.paths.certificates())?.to_owned(),
            credential_files: path_text(&host.paths.credential_files())?.to_owned(),
            logs: path_text(&host.paths.logs())?.to_owned(),
            redis_data: path_text(&host.paths.redis_data())?.to_owned(),
            redis_memory: match &settings.cache {
                Cache::Local { memory, .. } => memory.clone(),
                Cache::External => String::new(),
            },
        })
    }

    /// How a unit names what it can't start without.
    fn needs(&self) -> &'static str {
        if self.systemd.restart_direct {
            "Requires"
        } else {
            "Wants"
        }
    }
}

#[derive(Clone)]
struct Container {
    name: &'static str,
    flag: String,
    unit: &'static str,
    image: String,
    uid: u32,
    gid: u32,
    /// The ID of the host that is 0 in the container.
    first_id: u32,
}

impl Container {
    fn new(
        service: Service,
        unit: &'static str,
        image: &ImageReference,
        host: &RenderContext<'_>,
    ) -> Self {
        let (uid, gid) = container_owner(service, image).unwrap_or_default();
        Self {
            name: service.name(),
            flag: String::new(),
            unit,
            image: host.images.pin(image),
            uid,
            gid,
            first_id: first_id(service),
        }
    }
}

#[derive(Template)]
#[template(path = "litellm.network")]
struct Network<'a> {
    common: &'a Common,
    further: Vec<Instance>,
}

#[derive(Template)]
#[template(path = "litellm.socket")]
struct Socket<'a> {
    marker: &'static str,
    listen: &'a Listen,
    has_tcp: bool,
    has_ipv6: bool,
    /// Whether an interface may get an address later than the unit starts.
    may_be_missing: bool,
}

#[derive(Template)]
#[template(path = "litellm-metrics.socket")]
struct MetricsSocket<'a> {
    common: &'a Common,
    address: SocketAddr,
}

#[derive(Template)]
#[template(path = "litellm-postgres.container")]
struct Postgres<'a> {
    common: &'a Common,
    service: Container,
    /// Whether this is the server of another major version, which does not serve the gateway yet.
    next: bool,
    data: &'a str,
    /// Where the container has it.
    cluster: &'a str,
    initdb: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "litellm-redis.container")]
struct Redis<'a> {
    common: &'a Common,
    service: Container,
}

#[derive(Template)]
#[template(path = "entrance.caddy")]
struct Caddyfile<'a> {
    marker: &'static str,
    entrance: &'a Entrance,
    files: &'a entrance::Files,
    /// The gateway's address.
    upstream: String,
}

#[derive(Template)]
#[template(path = "litellm-entrance.service")]
struct OfEntrance<'a> {
    common: &'a Common,
    /// Seconds.
    drain_timeout: u32,
    /// Who may connect to the gateway's Unix socket.
    group: Option<&'a str>,
}

#[derive(Template)]
#[template(path = "litellm-extra.container")]
struct OfExtra<'a> {
    common: &'a Common,
    source: &'a str,
    service: Container,
    text: &'a str,
}

#[derive(Template)]
#[template(path = "litellm-migrate.container")]
struct Migrate<'a> {
    common: &'a Common,
    service: Container,
    /// Whether this is the migration to a release that does not run yet.
    next: bool,
    script: String,
}

impl<'a> Migrate<'a> {
    fn new(common: &'a Common, service: Container, next: bool) -> Self {
        let lines = MIGRATION.lines().filter(|line| !line.starts_with('#'));
        let script = escape::word(&lines.collect::<Vec<_>>().join("\n"));
        Self {
            common,
            service,
            next,
            script,
        }
    }
}

#[derive(Template)]
#[template(path = "litellm.container")]
struct Gateway<'a> {
    common: &'a Common,
    standby: bool,
    /// 1 for the first one.
    number: usize,
    /// The percentage of the machine's memory that it may use.
    memory: u8,
    /// Seconds.
    drain_timeout: u32,
    /// Of the loopback interface, for LiteLLM's own metrics.
    metrics_port: Option<u16>,
    service: Container,
}

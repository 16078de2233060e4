//! Commands of the units, which keep `.env` the only source of every value.
//!
//! Podman's `shell` secret driver keeps no values: it runs a command each time a container that
//! uses the secret starts. So a restart uses the current `.env`, no value is written to another
//! file, and `podman inspect` shows names only.
//!
//! Podman runs that command for each `podman exec` as well, and so for each health check: neither
//! an invalid `.env` nor a removed program may end a running container.

mod mapping;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use serde::Deserialize;

use crate::cli::{Unit, Which};
use crate::deployment::applied::Applied;
use crate::deployment::certificates;
use crate::deployment::completion;
use crate::deployment::database_url;
use crate::deployment::entrance;
use crate::deployment::external;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::listen::ListenAddress;
use crate::deployment::postgres_sizes;
use crate::deployment::sealed::{self, SecretValue};
use crate::deployment::settings::{ContainerSecret, SecretTarget, Settings};
use crate::deployment::snapshot;
use crate::doctor::{scrape, watch};
use crate::error::{Exit, Failure, PathContext, Result};
use crate::host::default_route;
use crate::host::files;
use crate::host::lock;
use crate::host::ownership;
use crate::host::paths::Scope;
use crate::host::podman::{self, Podman};
use crate::host::systemd::Systemd;
use crate::host::systemd::job::{JobType, Jobs};
use crate::host::{self, Host};
use crate::image::ImageReference;
use crate::litellm::advisories::Advisories;
use crate::litellm::config;
use crate::operations::backup;
use crate::operations::postgres;
use crate::operations::pull;
use crate::operations::recovery;
use crate::operations::recycle;
use crate::operations::stack;
use crate::operations::upgrade::check::{ReleaseReport, Verdict};
use crate::output::{self, say};
use crate::quadlet;
use crate::random;
use crate::service::{Instance, Service};
use mapping::Mapping;

const NEED_INTERVAL: Duration = Duration::from_millis(500);
/// LiteLLM's configuration, relative to the deployment directory.
const CONFIG: &str = "config/litellm-config.yaml";
/// With which the gateway ends if another start would change nothing.
const GIVEN_UP: &str = "78";

pub(crate) async fn run(host: &Host, verb: Unit) -> Result<Exit> {
    match verb {
        Unit::Prepare { service, which } => prepare(host, &Started::new(service, which)?).await?,
        Unit::Secret { service, name } => secret(host, service, &name)?,
        Unit::Entrance => provide_entrance(host)?,
        Unit::AwaitNetwork => default_route::wait(&host.progress).await,
        Unit::AwaitNeeds { service } => await_needs(host, service).await?,
        Unit::AwaitHealthy { service, which } => {
            await_healthy(host, Started::new(service, which)?.container()).await?;
        }
        Unit::CheckRelease => check_release(host).await?,
        Unit::Archive => archive(host).await?,
        Unit::Watch => watch::watch(host).await?,
        Unit::Recycle => recycle::run(host).await?,
        Unit::ServeMetrics => scrape::serve(&host.paths).await?,
        Unit::Recover => {
            recovery::stand_by(host).await?;
            stopped_meanwhile(host).await?;
        }
        Unit::Stopped => stopped(host).await?,
    }
    Ok(Exit::Success)
}

/// What `litellm-wal.service` runs.
async fn archive(host: &Host) -> Result<()> {
    ownership::check(&host.paths, None)?;
    let (settings, _) = snapshot::settings(&host.paths)?;
    backup::wal::run(host, &settings).await
}

/// Lets the user of `litellm-entrance.service` read what it starts with.
fn provide_entrance(host: &Host) -> Result<()> {
    ownership::check(&host.paths, Some(&host::program()?))?;
    let (settings, _) = snapshot::settings(&host.paths)?;
    entrance::provide(&host.paths)?;
    let instance = Service::Entrance.into();
    Applied::now(&host.paths, &settings, instance)?.record(&host.paths, instance)
}

/// A secret as `podman secret inspect` shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Registered {
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    driver: Driver,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: String,
    #[serde(default)]
    options: std::collections::HashMap<String, String>,
}

/// The container that a unit starts.
enum Started {
    Instance(Instance),
    Standby,
}

impl Started {
    fn new(service: Service, which: Which) -> Result<Self> {
        let Some(number) = which.replica else {
            return Ok(if which.standby {
                Self::Standby
            } else {
                Self::Instance(service.into())
            });
        };
        Instance::gateways()
            .find(|instance| service == Service::Litellm && instance.number() == number)
            .map(Self::Instance)
            .with_context(|| format!("there is no instance {number} of {}", service.container()))
    }

    fn container(&self) -> &'static str {
        match self {
            Self::Instance(instance) => instance.container(),
            Self::Standby => quadlet::STANDBY,
        }
    }

    fn service(&self) -> Service {
        match self {
            Self::Instance(instance) => instance.service(),
            Self::Standby => Service::Litellm,
        }
    }
}

/// Makes the directories of the gateway's Unix sockets as systemd would: a unit that mounts one may start before the socket.
fn make_socket_directories(settings: &Settings) -> Result<()> {
    for address in &settings.listen.addresses {
        if let ListenAddress::Unix(path) = address
            && let Some(directory) = path.parent()
        {
            std::fs::create_dir_all(directory).path_context("can't create", directory)?;
        }
    }
    Ok(())
}

/// Registers the names of the service's secrets, and writes the options that pass them to its container.
async fn prepare(host: &Host, started: &Started) -> Result<()> {
    let service = started.service();
    // Its time shows when this start began.
    let file = options_file(host, started.container());
    files::remove_existing(&file)?;
    ownership::check(&host.paths, Some(&host::program()?))?;
    if matches!(service, Service::Migrate | Service::Litellm) {
        postgres::refuse_start(&host.paths)?;
    }
    let gateway = match started {
        Started::Instance(instance) if service == Service::Litellm => Some(*instance),
        _ => None,
    };
    if gateway == Some(Service::Litellm.into()) {
        stack::address::complete_interrupted(host).await?;
    }
    let (settings, config) = match readable(host, service) {
        Ok(Readable {
            settings,
            config,
            problem: None,
        }) => (settings, config),
        Ok(Readable {
            settings,
            config,
            problem: Some((files, problem)),
        }) if !is_asked_for(host, started).await? => {
            host.progress.warn(&format!(
                "{problem:#}: it starts with the last {files} with which the gateway was ready"
            ));
            (settings, config)
        }
        Ok(Readable {
            problem: Some((_, error)),
            ..
        })
        | Err(error) => {
            return match gateway {
                Some(gateway) => refuse_start(host, gateway, &file, error).await,
                None => Err(error),
            };
        }
    };
    if service.is_extra() {
        make_socket_directories(&settings)?;
    }
    let images = ImagesLock::load(&host.paths.images_lock())?;
    Advisories::load(&host.paths)?.refuse(&host.paths, &settings, &images)?;
    let container_secrets = extra::container_secrets(&host.paths, &settings, service)?;
    let lookups: Vec<_> = container_secrets
        .iter()
        .filter_map(|secret| secret.value.external())
        .collect();
    external::renew(&host.paths, &lookups, &host.progress)?;
    let podman = host.podman().await?;

    // Several gateways start at the same moment, and their secrets have the same names.
    let registration = lock::of_secrets(&host.paths, service.container())?;
    // Fails if one of them does not exist yet, but still prints the others.
    let names: Vec<String> = container_secrets
        .iter()
        .map(|secret| secret_name(service, secret))
        .collect();
    let inspect = { ["secret", "inspect"].into_iter() }.chain(names.iter().map(String::as_str));
    let (output, network, mapping) = tokio::join!(
        podman.output(inspect),
        stack::restore_network(host),
        Mapping::of(host, &settings, &images, service, started.container())
    );
    let mapping = network.and(mapping)?;
    let registered: Vec<Registered> = serde_json::from_slice(&output?.stdout).unwrap_or_default();
    for (secret, name) in container_secrets.iter().zip(&names) {
        let lookup = lookup_command(host, service, secret)?;
        match registered
            .iter()
            .find(|found| found.spec.name == *name)
            .map(|found| &found.spec.driver)
        {
            Some(Driver { name, options })
                if name == "shell" && options.get("lookup") == Some(&lookup) =>
            {
                continue;
            }
            // Not `create --replace`: in Podman 5.4, that removes another secret when there is
            // none of this name.
            Some(_) => drop(podman.run(["secret", "rm", name]).await?),
            None => {}
        }
        register(podman, name, &lookup).await?;
    }
    drop(registration);

    let mut options = String::from("LITELLM_UNITS_SECRETS=");
    for (secret, name) in container_secrets.iter().zip(&names) {
        options.push_str("--secret ");
        options.push_str(name);
        match secret.target {
            SecretTarget::Variable => {
                options.push_str(&format!(",type=env,target={} ", secret.name));
            }
            SecretTarget::File => {
                let owner = settings
                    .image(service)
                    .and_then(|image| completion::container_owner(service, image));
                let (uid, gid) = owner.unwrap_or_default();
                options.push_str(&format!(
                    ",type=mount,target={},uid={uid},gid={gid},mode=0400 ",
                    secret.name
                ));
            }
        }
    }
    let directory = host.paths.runtime_state();
    std::fs::create_dir_all(&directory).path_context("can't create", &directory)?;
    if matches!(service, Service::Migrate | Service::Litellm) {
        create_mounted(host)?;
        // Here, since the unit shows nothing of a URL, which may be sealed.
        for directory in settings.socket_directories()? {
            options.push_str(&format!("{} ", database_url::volume(&directory)?));
        }
    }
    if service == Service::Litellm {
        write_program(host, quadlet::SERVE)?;
    }
    if let Some(good) = &config {
        // systemd splits it at blanks that are not between quotes.
        options.push_str(&format!(
            "--volume \"{}:/app/{CONFIG}:ro,z{}\" ",
            good.display(),
            mapping.volumes
        ));
    }
    if let Some(sizes) = sizes_file(host, &settings, service)? {
        options.push_str(&format!("--env-file {}", sizes.display()));
    }
    if service == Service::Litellm
        && let Some(directory) = open_files(host)?
    {
        options.push_str(&format!(
            "--volume {}:{}:ro,z{}",
            directory.display(),
            sealed::FILES,
            mapping.volumes
        ));
    }
    // The unit of an operator names its secrets itself.
    if !service.is_extra() {
        let text = format!("{}\n{}", options.trim_end(), mapping.variables());
        files::write_atomically(&file, text.as_bytes(), 0o644)?;
    }
    match started {
        Started::Instance(instance) => {
            let mut applied = Applied::now(&host.paths, &settings, *instance)?;
            if let Some(good) = &config {
                let bytes = std::fs::read(good).path_context("can't read", good)?;
                applied = applied.with_file(CONFIG, &bytes);
            }
            applied.record(&host.paths, *instance)
        }
        // The record is that of the first gateway.
        Started::Standby => Ok(()),
    }
}

/// Writes the sealed files of `files/` into memory, in clear. Returns their directory; nothing if there are none.
fn open_files(host: &Host) -> Result<Option<PathBuf>> {
    let opened = sealed::files(&host.paths)?;
    let directory = host.paths.runtime_state().join("files");
    for path in files::entries(&directory)? {
        let is_known = |name: &str| opened.iter().any(|(known, _)| known == name);
        // Not one that another start is writing.
        if files::name(&path).is_some_and(|name| sealed::is_file_name(name) && !is_known(name)) {
            files::remove_existing(&path)?;
        }
    }
    if opened.is_empty() {
        return Ok(None);
    }
    files::make_directory(&directory, 0o700)?;
    for (name, text) in opened {
        let text = text.expose_secret().as_bytes();
        files::write_atomically(&directory.join(name), text, 0o600)?;
    }
    Ok(Some(directory))
}

/// Writes the variable with the sizes of a new cluster. Only `initdb` reads it.
fn sizes_file(host: &Host, settings: &Settings, service: Service) -> Result<Option<PathBuf>> {
    if service != Service::Postgres {
        return Ok(None);
    }
    let arguments = settings
        .image(service)
        .and_then(ImageReference::postgres_major)
        .map(postgres_sizes::of_this_host)
        .and_then(|sizes| postgres_sizes::initdb_arguments(&sizes));
    let Some(arguments) = arguments else {
        return Ok(None);
    };
    let file = host.paths.runtime_state().join("litellm-postgres.sizes");
    let text = format!("POSTGRES_INITDB_ARGS={arguments}\n");
    files::write_atomically(&file, text.as_bytes(), 0o644)?;
    Ok(Some(file))
}

/// What a service starts with. An invalid file is replaced by the one with which the gateway last was ready.
struct Readable {
    settings: Settings,
    /// The configuration of LiteLLM, if it is not the current one.
    config: Option<PathBuf>,
    /// Which files are replaced, and why.
    problem: Option<(&'static str, anyhow::Error)>,
}

/// Reads it, as [`snapshot::settings`].
fn readable(host: &Host, service: Service) -> Result<Readable> {
    let (settings, problem) = snapshot::settings(&host.paths)?;
    let mut found = Readable {
        settings,
        config: None,
        problem: problem.map(|problem| (".env", problem)),
    };
    if service != Service::Litellm {
        return Ok(found);
    }
    if let Err(problem) = config::refuse_unreadable(&host.paths.config_file()) {
        found.config = config::substitute(&host.paths);
        if found.config.is_none() {
            return Err(problem);
        }
        found.problem = Some(match found.problem {
            Some((_, of_env)) => (".env and config/litellm-config.yaml", of_env),
            None => (CONFIG, problem),
        });
    }
    certificates::refuse_invalid(&host.paths)?;
    Ok(found)
}

/// Whether somebody may wait for this start of a gateway: it is neither part of a boot nor systemd's restart after a crash.
/// A standby is started by a handover only, which then restarts the first gateway.
async fn is_asked_for(host: &Host, started: &Started) -> Result<bool> {
    let gateway = match started {
        Started::Standby => return Ok(true),
        Started::Instance(instance) if instance.service() == Service::Litellm => instance,
        Started::Instance(_) => return Ok(false),
    };
    let systemd = host.systemd().await?;
    Ok(systemd.unit(gateway.unit()).await?.restarts == 0 && !systemd.is_booting().await?)
}

/// Lets the start of the gateway fail for good, since only an edit can help and somebody may wait for it: a failure of
/// `ExecStartPre=` is retried for ever, so the container says why and exits with the status that ends the attempts.
/// Where systemd itself restarts a gateway that crashed, nobody waits: it starts with the last good files, and goes on
/// trying until another file can be read.
async fn refuse_start(
    host: &Host,
    gateway: Instance,
    options: &Path,
    error: anyhow::Error,
) -> Result<()> {
    let gateway = host.systemd().await?.unit(gateway.unit()).await?;
    if gateway.restarts > 0 {
        return Err(error);
    }
    let mut message = format!("error: {error:#}");
    if let Some(hint) = crate::error::hint(&error) {
        message.push_str(&format!("\nhint: {hint}"));
    }
    create_mounted(host)?;
    // A string of JSON is one of Python.
    let message = serde_json::to_string(&message).context("can't write the reason")?;
    write_program(
        host,
        &format!("import sys\n\nprint({message}, file=sys.stderr)\nsys.exit(78)\n"),
    )?;
    let text = format!("LITELLM_UNITS_SECRETS=\n{}", Mapping::default().variables());
    files::write_atomically(options, text.as_bytes(), 0o644)
}

/// Creates the volumes that are not in the deployment directory.
fn create_mounted(host: &Host) -> Result<()> {
    for name in [quadlet::SCHEMA, quadlet::DEBUG] {
        let directory = host.paths.runtime_state().join(name);
        std::fs::create_dir_all(&directory).path_context("can't create", &directory)?;
    }
    Ok(())
}

/// Writes what the gateway's container runs.
fn write_program(host: &Host, text: &str) -> Result<()> {
    let serve = host.paths.runtime_state().join("serve.py");
    files::write_atomically(&serve, text.as_bytes(), 0o644)
}

fn secret_name(service: Service, secret: &ContainerSecret) -> String {
    format!("{}.{}", service.container(), secret.name)
}

/// The command that Podman runs for the value. The deployment directory and the names of variables
/// hold no character at which `sh` or Podman's comma-separated options would split.
fn lookup_command(host: &Host, service: Service, secret: &ContainerSecret) -> Result<String> {
    let program = host::program()?;
    let program = program
        .to_str()
        .context("the path of this program is not valid UTF-8")?;
    if program.contains(['\'', ',', '"', '\\']) {
        return Err(Failure::new(format!(
            "{program} holds a character that Podman can't pass on"
        ))
        .hint("install litellm-units in a directory without quotes, commas and backslashes in its name")
        .into());
    }
    let scope = match host.scope() {
        Scope::System => "--system",
        Scope::User => "--user",
    };
    // Of the gateway, no health check needs a variable, and there are many: no process beside the shell is started for
    // each. `read` leaves out the NUL between the words.
    let unless_checked = if service == Service::Litellm {
        "read -r c </proc/$PPID/cmdline; case $c in *podman*healthcheckrun*) echo -; exit;; esac; "
    } else {
        ""
    };
    // Without the program, a unit does not start, but the health checks of a running one go on with
    // a random value.
    Ok(format!(
        "{unless_checked}if [ -x '{program}' ]; then '{program}' {scope} --litellm-dir '{}' unit secret {} {}; else od -An -tx1 -N16 /dev/urandom; fi",
        host.paths.deployment.display(),
        service.name(),
        secret.name
    ))
}

async fn register(podman: &Podman, name: &str, lookup: &str) -> Result<()> {
    let options = format!("lookup={lookup},store=cat >/dev/null,delete=true,list=true");
    let words = [
        "secret",
        "create",
        "--driver=shell",
        "--driver-opts",
        &options,
        name,
        "-",
    ];
    // Podman requires a value at creation; the driver discards it.
    let output = podman.fed(words, "from .env").await?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!(
        "podman can't register the secret {name}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

/// Prints a secret's value. A health check gets a random value instead of one that is sealed, unreadable or given by another
/// program: no check needs it, and opening sealed secrets every few seconds would keep a TPM busy. Another program was asked
/// when the unit started. A command in a running container gets an empty value if the container was started before an edit
/// that removed the variable, or that names another program for it.
fn secret(host: &Host, service: Service, name: &str) -> Result<()> {
    let value = if podman::is_health_check() {
        let value = value(host, service, name).ok().flatten();
        match value.and_then(|value| value.in_clear()) {
            Some(value) => value,
            None => random::password(&mut random::kernel_random)?.into(),
        }
    } else {
        let value = value(host, service, name)?;
        let known = match value.as_ref().map(|value| (value, value.external())) {
            Some((_, Some(lookup))) => lookup.last_good(&host.paths)?.map(|kept| kept.value()),
            Some((value, None)) => Some(value.open()?),
            None => None,
        };
        match known {
            Some(known) => known,
            None if podman::is_exec() => "".into(),
            None => {
                return Err(Failure::config(format!(
                    "{} gives {} no {name}",
                    host.paths.env_file().display(),
                    service.container()
                ))
                .hint(format!(
                    "restart the unit to use the current file: {}",
                    service.unit()
                ))
                .into());
            }
        }
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(value.expose_secret().as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// What `.env` gives the service under this name, if anything: the last good one if it is invalid, as at the start.
fn value(host: &Host, service: Service, name: &str) -> Result<Option<SecretValue>> {
    let (settings, _) = snapshot::settings(&host.paths)?;
    let mut secrets = extra::container_secrets(&host.paths, &settings, service)?.into_iter();
    Ok(secrets
        .find(|secret| secret.name == name)
        .map(|secret| secret.value))
}

/// The file with Podman's options for the secrets of a container.
fn options_file(host: &Host, container: &str) -> PathBuf {
    host.paths.runtime_state().join(format!("{container}.env"))
}

/// Stops what is beside a gateway that was stopped, or that can't start: nothing will serve at its address. As long as
/// systemd tries to start it, or a further instance, requests wait instead; somebody else could take an address that is
/// closed. Called when an instance of the gateway has ended.
async fn stopped(host: &Host) -> Result<()> {
    let systemd = host.systemd().await?;
    if !systemd.is_to_stop(Service::Litellm.unit()).await?
        && (!is_given_up() || stack::is_served(systemd).await?)
    {
        return Ok(());
    }
    let is_held = stack::is_address_held(systemd).await?;
    let units = stack::beside_gateway(systemd).await?;
    let units: Vec<_> = units
        .into_iter()
        .filter(|unit| !(is_held && *unit == quadlet::SOCKET))
        .collect();
    stop(systemd, &units).await
}

/// What [`stopped`] has left, since a change held the address: nobody else closes it.
async fn stopped_meanwhile(host: &Host) -> Result<()> {
    let systemd = host.systemd().await?;
    if stack::is_served(systemd).await? {
        return Ok(());
    }
    stop(systemd, &stack::beside_gateway(systemd).await?).await
}

/// Whether systemd does not start the gateway again: `RestartPreventExitStatus=`.
fn is_given_up() -> bool {
    std::env::var("EXIT_STATUS").is_ok_and(|status| status == GIVEN_UP)
}

/// Does not wait: these jobs end after the unit that this command belongs to.
async fn stop(systemd: &Systemd, units: &[&str]) -> Result<()> {
    let mut jobs = Jobs::new(systemd).await?;
    for unit in units {
        jobs.ask(JobType::Stop, unit).await?;
    }
    Ok(())
}

/// Writes one line to the journal, as a warning if the operator should act. An unreachable registry is
/// no failure: a host without access to it would have a failed unit every day.
async fn check_release(host: &Host) -> Result<()> {
    let report = ReleaseReport::gather(host).await?;
    let level = match report.verdict {
        Verdict::UpToDate => 6,
        Verdict::UpgradeAvailable => 5,
        Verdict::Vulnerable | Verdict::Unknown => 4,
    };
    output::line(&format!("<{level}>{}", report.line()))
}

/// Waits for the image, then for the unit before: the part of `Requires=` with a systemd that has no
/// `RestartMode=direct`. `TimeoutStartSec=` is the deadline; the next attempt requests their start again.
async fn await_needs(host: &Host, service: Service) -> Result<()> {
    let (settings, _) = snapshot::settings(&host.paths)?;
    let before = match service {
        Service::Litellm => Some(Service::Migrate),
        Service::Migrate => settings
            .services()
            .find(|other| *other == Service::Postgres),
        Service::Postgres | Service::Redis | Service::Entrance | Service::Extra(_) => None,
    };
    let mut said = false;
    let mut say_once = |what: &str| {
        if !said {
            say(&format!("waiting for {what}"));
            said = true;
        }
    };
    while !pull::is_present(host, &settings, service).await? {
        say_once(service.images_unit());
        tokio::time::sleep(NEED_INTERVAL).await;
    }
    let Some(before) = before else {
        return Ok(());
    };
    let systemd = host.systemd().await?;
    while !systemd.unit(before.unit()).await?.is_active() {
        say_once(before.unit());
        tokio::time::sleep(NEED_INTERVAL).await;
    }
    Ok(())
}

/// `TimeoutStartSec=` is the deadline.
async fn await_healthy(host: &Host, container: &str) -> Result<()> {
    let podman = host.podman().await?;
    loop {
        let output = podman.output(["healthcheck", "run", container]).await?;
        match output.status.code() {
            Some(0) => return Ok(()),
            Some(1) => tokio::time::sleep(Duration::from_millis(200)).await,
            // A check that took too long has failed, too; with Podman 4.9, only its message shows that.
            Some(_) if String::from_utf8_lossy(&output.stderr).contains("exceeded timeout") => {}
            _ => anyhow::bail!(
                "{container} can't be checked: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }
}

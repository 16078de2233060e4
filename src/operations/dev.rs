//! LiteLLM under development: a gateway with a database and a cache of its own, beside the deployment or without one. It is
//! a deployment directory of its own, `dev/`, with units of other names.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};

use super::{pull, stack};
use crate::deployment::completion::Completion;
use crate::deployment::entrance;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::settings::{Cache, Database, SecretTarget, Settings};
use crate::error::{Failure, PathContext, Result};
use crate::host::capacity::Capacity;
use crate::host::lock;
use crate::host::systemd::job::{JobType, Jobs};
use crate::host::systemd::{ActiveState, LoadState};
use crate::host::{self, Host, files, ownership};
use crate::litellm::Client;
use crate::output::{duration, shell_word};
use crate::quadlet::dev::{self, TARGET, UNITS};
use crate::quadlet::plan::UnitPlan;
use crate::quadlet::{RenderContext, check};
use crate::random::kernel_random;
use crate::service::Service;

/// The first lines of a new `dev/.env`.
const HEADER: &str = "\
# The settings of LiteLLM under development. Its secrets are its own. Grammar: that of docker compose.
# After an edit: litellm-units up --dev
";
const SERVICES: [Service; 3] = [Service::Postgres, Service::Redis, Service::Litellm];
const GATEWAY: &str = "litellm-dev.service";
/// Timeout for one question whether the gateway is ready.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(200);
/// So many attempts of systemd mean that a unit fails.
const RESTARTS: u64 = 3;

/// The same host with the directory of development as its deployment.
fn host_of(host: &Host) -> Host {
    let mut paths = host.paths.clone();
    paths.deployment = host.paths.deployment.join("dev");
    Host::new(paths).reporting(host.progress.clone())
}

/// Keeps two commands from changing the same units. The deployment's own operations go on meanwhile.
fn take_lock(host: &Host) -> Result<impl Drop> {
    let state = host.paths.state();
    std::fs::create_dir_all(&state).path_context("can't create", &state)?;
    lock::exclusive(&state.join("lock"))?.ok_or_else(|| {
        Failure::new("another `litellm-units up --dev` or `down --dev` is running")
            .hint("wait for it, then run the same command again")
            .into()
    })
}

/// Installs and starts all of it, and waits until the gateway is ready.
pub(crate) async fn up(
    production: &Host,
    port: u16,
    source: Option<&Path>,
    timeout: Duration,
) -> Result<()> {
    let source = source.map(checkout).transpose()?;
    let host = &host_of(production);
    ownership::check(&host.paths, Some(&host::program()?))?;
    begin(production, host)?;
    let _lock = take_lock(host)?;
    let completion = Completion::new(&host.paths, &mut kernel_random)?;
    let settings = &completion.settings;
    if !matches!(settings.database, Database::Local { .. })
        || !matches!(settings.cache, Cache::Local { .. })
    {
        let file = host.paths.env_file();
        return Err(Failure::config(format!(
            "{}: DATABASE_URL or REDIS_HOST names an external server, but development has its own",
            file.display()
        ))
        .hint("remove them from the file, then run the same command again")
        .into());
    }
    completion.apply()?;
    let cache = dev::cache(&host.paths);
    std::fs::create_dir_all(&cache).path_context("can't create", &cache)?;
    for change in &completion.changes {
        host.progress.done(&format!("prepare {change}"));
    }
    pull::pull_missing(host, settings, &[]).await?;
    let systemd = host.systemd().await?;
    let context = RenderContext {
        paths: &host.paths,
        podman: host.podman().await?.version().await?,
        systemd: systemd.features().await?,
        program: &host::program()?,
        images: &ImagesLock::load(&host.paths.images_lock())?,
        capacity: Capacity::read(),
        extras: &[],
        entrance: &entrance::Files::default(),
    };
    let wanted = dev::render(settings, &context, port, source.as_deref())?;
    let plan = UnitPlan::of_dev(&host.paths, &wanted)?;
    if !plan.is_empty() {
        check::check(host, &wanted).await?;
    }
    let mut changed = !plan.is_empty();
    for (path, text) in written(host, settings, port)? {
        let text = text.expose_secret().as_bytes();
        if files::read_existing(&path)?.as_deref() != Some(text) {
            files::write_atomically(&path, text, 0o600)?;
            changed = true;
        }
    }
    if changed {
        stop(host, timeout).await?;
        apply(host, &plan).await?;
    }
    start(host, port, timeout).await
}

/// The file with the variables for the programs of this host.
pub(crate) fn env_file(production: &Host) -> PathBuf {
    host_of(production).paths.deployment.join("dev.env")
}

/// The directory of a checkout, which has the package at its top.
fn checkout(source: &Path) -> Result<PathBuf> {
    let place = std::fs::canonicalize(source).path_context("can't find the checkout", source)?;
    if !place.join("litellm/__init__.py").is_file() {
        return Err(Failure::new(format!(
            "{} is no checkout of LiteLLM: it has no litellm/__init__.py",
            place.display()
        ))
        .hint("name the directory that `git clone https://github.com/BerriAI/litellm` makes")
        .into());
    }
    Ok(place)
}

/// Begins with the images of the deployment, if there is one.
fn begin(production: &Host, host: &Host) -> Result<()> {
    let file = host.paths.env_file();
    if file.exists() {
        return Ok(());
    }
    let mut text = HEADER.to_owned();
    let of_deployment = production.paths.env_file();
    if of_deployment.exists() {
        let settings = Settings::load(&of_deployment)?;
        for service in SERVICES {
            if let Some(image) = settings.image(service) {
                let _ = writeln!(text, "{}={image}", service.image_variable());
            }
        }
    }
    let directory = &host.paths.deployment;
    std::fs::create_dir_all(directory).path_context("can't create", directory)?;
    files::write_atomically(&file, text.as_bytes(), 0o600)
}

/// The files beside the units: what each container runs with, and what the programs of this host use.
fn written(host: &Host, settings: &Settings, port: u16) -> Result<Vec<(PathBuf, SecretString)>> {
    let state = host.paths.state();
    let mut files = vec![(dev::program(&state), SecretString::from(dev::PROGRAM))];
    let mut of_host = String::new();
    let mut left_out = Vec::new();
    for service in SERVICES {
        let mut text = String::new();
        for secret in settings.container_secrets(service) {
            let name = &secret.name;
            let value = secret.value.open_at(&host.paths)?;
            let value = value.expose_secret();
            // The file of Redis' configuration.
            if secret.target == SecretTarget::File {
                continue;
            }
            // No file of variables can hold it.
            if value.contains('\n') {
                left_out.push(name.clone());
                continue;
            }
            let _ = writeln!(text, "{name}={value}");
            if service == Service::Litellm {
                let other = match name.as_str() {
                    "DATABASE_URL" => {
                        value.replace("@postgres:5432/", &format!("@127.0.0.1:{}/", port + 1))
                    }
                    "REDIS_HOST" => "127.0.0.1".to_owned(),
                    "REDIS_PORT" => (port + 2).to_string(),
                    _ => value.to_owned(),
                };
                let _ = writeln!(of_host, "{name}={}", shell_word(&other));
            }
        }
        files.push((dev::env_file(&state, service), text.into()));
    }
    files.push((host.paths.deployment.join("dev.env"), of_host.into()));
    if !left_out.is_empty() {
        host.progress.warn(&format!(
            "{}: left out, since a container of development gets no value with several lines: {}",
            host.paths.env_file().display(),
            left_out.join(", ")
        ));
    }
    Ok(files)
}

async fn apply(host: &Host, plan: &UnitPlan) -> Result<()> {
    plan.apply()?;
    for change in &plan.changes {
        host.progress
            .done(&format!("{} {}", change.verb(), change.path.display()));
    }
    host.systemd().await?.reload().await
}

/// Starts all of it, and waits for the gateway and its database. No unit waits until it is healthy, so what fails shows as
/// a restart.
async fn start(host: &Host, port: u16, timeout: Duration) -> Result<()> {
    let begin = Instant::now();
    let since = jiff::Timestamp::now();
    let systemd = host.systemd().await?;
    let client = Client::at(format!("http://127.0.0.1:{port}"), QUESTION_TIMEOUT)?;
    let services = { UNITS.into_iter().rev() }.zip([port, port + 2, port + 1]);
    for (unit, port) in services {
        if systemd.unit(unit).await?.is_stopped() && TcpListener::bind(("127.0.0.1", port)).is_err()
        {
            return Err(Failure::new(format!("port {port} of 127.0.0.1 is taken"))
                .hint("name another one: `litellm-units up --dev --port 25000`")
                .into());
        }
    }
    let mut jobs = Jobs::new(systemd).await?;
    jobs.ask(JobType::Start, TARGET).await?;
    host.progress.say("starting litellm-dev");
    jobs.next(timeout).await?;
    while !client.health().await.is_ready() {
        for unit in UNITS {
            let state = systemd.unit(unit).await?;
            if state.active == ActiveState::Failed || state.restarts >= RESTARTS {
                return Err(stack::failed(systemd, unit, "fails", since).await);
            }
        }
        if begin.elapsed() > timeout {
            let problem = format!("is not ready after {}", duration(timeout));
            return Err(stack::failed(systemd, GATEWAY, &problem, since).await);
        }
        tokio::time::sleep(INTERVAL).await;
    }
    host.progress
        .say(&format!("ready in {}", duration(begin.elapsed())));
    Ok(())
}

async fn stop(host: &Host, timeout: Duration) -> Result<()> {
    let systemd = host.systemd().await?;
    let mut units = Vec::new();
    for unit in [TARGET].iter().chain(UNITS.iter().rev()) {
        if systemd.unit(unit).await?.load != LoadState::NotFound {
            units.push(*unit);
        }
    }
    if units.is_empty() {
        return Ok(());
    }
    stack::stop(host, &units, timeout).await
}

/// Stops all of it and removes units, containers and network, and on request the data.
pub(crate) async fn down(production: &Host, remove_data: bool, timeout: Duration) -> Result<()> {
    let host = &host_of(production);
    let data = host.paths.data();
    let plan = UnitPlan::of_dev(&host.paths, &[])?;
    if plan.is_empty() && !(remove_data && data.exists()) {
        host.progress.say("there are no units of development");
        return Ok(());
    }
    let _lock = take_lock(host)?;
    stop(host, timeout).await?;
    apply(host, &plan).await?;
    if remove_data && data.exists() {
        files::remove_directory(&data)?;
        host.progress.done(&format!("remove {}", data.display()));
    }
    Ok(())
}

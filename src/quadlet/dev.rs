//! The units of LiteLLM under development: a gateway, a database and a cache of their own, which no unit of the deployment
//! knows.

use std::path::{Path, PathBuf};

use askama::Template;

use super::{
    Common, Container, Place, RenderContext, UnitFile, cluster_path, escape, file, path_text,
};
use crate::deployment::completion::container_owner;
use crate::deployment::settings::Settings;
use crate::error::Result;
use crate::host::paths::Paths;
use crate::service::Service;

/// Starts and stops all of them.
pub const TARGET: &str = "litellm-dev.target";

/// The network and the services, in start order.
pub const UNITS: [&str; 4] = [
    "litellm-dev-network.service",
    "litellm-dev-postgres.service",
    "litellm-dev-redis.service",
    "litellm-dev.service",
];

/// What the container of the gateway runs.
pub const PROGRAM: &str = concat!(
    include_str!("../../units/arguments.py"),
    include_str!("../../units/litellm_units_dev.py")
);

/// The gateway's port on the loopback address. The database has the next one, and the cache the one after it.
pub const PORT: u16 = 24158;

/// Whether a file with this name, which is ours, is one of these.
#[must_use]
pub fn is_dev(name: &str) -> bool {
    name.starts_with("litellm-dev.") || name.starts_with("litellm-dev-")
}

/// The file with the variables of a service, beside its other files.
#[must_use]
pub fn env_file(state: &Path, service: Service) -> PathBuf {
    state.join(format!("{}.env", service.name()))
}

/// The file with [`PROGRAM`].
#[must_use]
pub fn program(state: &Path) -> PathBuf {
    state.join("litellm_units_dev.py")
}

/// The directory with the compiled files of a checkout.
#[must_use]
pub fn cache(paths: &Paths) -> PathBuf {
    paths.data().join("pycache")
}

/// Renders them for a deployment directory of their own.
///
/// # Errors
/// When a value can't be written in a unit file.
pub fn render(
    settings: &Settings,
    host: &RenderContext<'_>,
    port: u16,
    source: Option<&Path>,
) -> Result<Vec<UnitFile>> {
    let common = &Common::new(settings, host)?;
    let state = host.paths.state();
    let env = |service| path_text(&env_file(&state, service)).map(escape::word);
    let image = |service| settings.image(service).map(|image| host.images.pin(image));
    let images = [Service::Postgres, Service::Redis, Service::Litellm].map(image);
    let [postgres, redis, litellm] = images.map(Option::unwrap_or_default);
    let container = |service: Service, unit, image| {
        let owner = settings.image(service);
        let owner = owner.and_then(|image| container_owner(service, image));
        let (uid, gid) = owner.unwrap_or_default();
        Container {
            name: service.name(),
            flag: String::new(),
            unit,
            image,
            uid,
            gid,
            first_id: 0,
        }
    };
    Ok(vec![
        UnitFile {
            place: Place::Unit,
            name: TARGET,
            text: include_str!("../../units/litellm-dev.target").to_owned(),
        },
        file(Place::Quadlet, "litellm-dev.network", &Network { common })?,
        file(
            Place::Quadlet,
            "litellm-dev-postgres.container",
            &Postgres {
                common,
                service: container(Service::Postgres, "litellm-dev-postgres", &postgres),
                port,
                env: env(Service::Postgres)?,
                data: path_text(&host.paths.postgres_data())?,
                cluster: cluster_path(settings.image(Service::Postgres)),
            },
        )?,
        file(
            Place::Quadlet,
            "litellm-dev-redis.container",
            &Redis {
                common,
                service: container(Service::Redis, "litellm-dev-redis", &redis),
                port,
                env: env(Service::Redis)?,
            },
        )?,
        file(
            Place::Quadlet,
            "litellm-dev.container",
            &Gateway {
                common,
                service: container(Service::Litellm, "litellm-dev", &litellm),
                port,
                env: env(Service::Litellm)?,
                program: path_text(&program(&state))?,
                source: source.map(path_text).transpose()?,
                cache: path_text(&cache(host.paths))?,
            },
        )?,
    ])
}

#[derive(Template)]
#[template(path = "litellm-dev.network")]
struct Network<'a> {
    common: &'a Common,
}

#[derive(Template)]
#[template(path = "litellm-dev-postgres.container")]
struct Postgres<'a> {
    common: &'a Common,
    service: Container<'a>,
    port: u16,
    env: String,
    data: &'a str,
    /// Where the container has it.
    cluster: &'a str,
}

#[derive(Template)]
#[template(path = "litellm-dev-redis.container")]
struct Redis<'a> {
    common: &'a Common,
    service: Container<'a>,
    port: u16,
    env: String,
}

#[derive(Template)]
#[template(path = "litellm-dev.container")]
struct Gateway<'a> {
    common: &'a Common,
    service: Container<'a>,
    port: u16,
    env: String,
    program: &'a str,
    /// A checkout of LiteLLM.
    source: Option<&'a str>,
    cache: &'a str,
}

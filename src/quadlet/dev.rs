//! The units of LiteLLM under development: a gateway, a database and a cache of their own, which no unit of the deployment
//! knows.

use std::path::{Path, PathBuf};

use askama::Template;

use super::{
    Common, Container, Place, RenderContext, UnitFile, cluster_path, escape, file, path_text,
};
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
    let (data, cache, program) = (
        host.paths.postgres_data(),
        cache(host.paths),
        program(&state),
    );
    let mut files = vec![
        UnitFile {
            place: Place::Unit,
            name: TARGET,
            text: include_str!("../../units/litellm-dev.target").to_owned(),
        },
        file(Place::Quadlet, "litellm-dev.network", &Network { common })?,
    ];
    for (service, name, port, inner) in [
        (
            Service::Postgres,
            "litellm-dev-postgres.container",
            port + 1,
            5432,
        ),
        (
            Service::Redis,
            "litellm-dev-redis.container",
            port + 2,
            6379,
        ),
        (Service::Litellm, "litellm-dev.container", port, 4000),
    ] {
        let Some(image) = settings.image(service) else {
            continue;
        };
        let unit = Development {
            common,
            service: Container::new(service, name.trim_end_matches(".container"), image, host),
            port,
            inner,
            env: escape::word(path_text(&env_file(&state, service))?),
            data: path_text(&data)?,
            cluster: cluster_path(settings.image(Service::Postgres)),
            program: path_text(&program)?,
            source: source.map(path_text).transpose()?,
            cache: path_text(&cache)?,
        };
        files.push(file(Place::Quadlet, name, &unit)?);
    }
    Ok(files)
}

#[derive(Template)]
#[template(path = "litellm-dev.network")]
struct Network<'a> {
    common: &'a Common,
}

#[derive(Template)]
#[template(path = "litellm-dev.container")]
struct Development<'a> {
    common: &'a Common,
    service: Container,
    /// On the loopback address of the host.
    port: u16,
    /// In the container.
    inner: u16,
    env: String,
    data: &'a str,
    /// Where the container of PostgreSQL has it.
    cluster: &'a str,
    program: &'a str,
    /// A checkout of LiteLLM.
    source: Option<&'a str>,
    cache: &'a str,
}

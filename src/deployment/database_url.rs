//! What Prisma, the client of the gateway and of its migration, can do with the URL of a PostgreSQL server.

use std::path::{Component, Path, PathBuf};

use crate::error::{Failure, PathContext, Result};

/// The variables with such URLs.
pub(crate) const NAMES: [&str; 3] = ["DATABASE_URL", "DIRECT_URL", "DATABASE_URL_READ_REPLICA"];

const BY_SOCKET: &str =
    "for a Unix socket, write postgresql://USER:PASSWORD@localhost/DATABASE?host=/run/postgresql";

const OWN_DIRECTORY: &str = "let PostgreSQL make its socket in a directory of its own, such as /run/postgresql (unix_socket_directories), with only letters, digits, dots, hyphens and underscores in its name";

/// What no container gets: interfaces of the kernel and of other services, and the host's configuration.
const REFUSED: [&str; 8] = [
    "/dev",
    "/etc",
    "/proc",
    "/run/dbus",
    "/run/podman",
    "/run/systemd",
    "/run/user",
    "/sys",
];

/// Checks a URL in clear.
///
/// # Errors
/// A problem, as the end of a sentence, and what to do.
pub(super) fn check(url: &str) -> std::result::Result<(), (&'static str, &'static str)> {
    if !(url.starts_with("postgresql://") || url.starts_with("postgres://")) {
        return Err((
            "is not a PostgreSQL URL",
            "write it as postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or remove it",
        ));
    }
    let (user, servers) = authority(url);
    let parameter = host_parameter(url);
    let is_list = |servers: &str| servers.contains(',');
    if is_list(servers) || parameter.as_deref().is_some_and(is_list) {
        return Err((
            "names several servers, and Prisma connects to one only",
            "name the address that leads to the primary: docs/configuration.md",
        ));
    }
    if servers.contains('%') {
        return Err((
            "has the directory of a socket before the database name, where Prisma does not look for it",
            BY_SOCKET,
        ));
    }
    let Some(directory) = parameter else {
        return Ok(());
    };
    let name = servers.split(':').next().unwrap_or_default();
    if !directory.starts_with('/') || !["", "localhost"].contains(&name) {
        return Err((
            "has the parameter host, so Prisma would connect to another server than the one before the database name",
            "write the host between @ and the port, and remove the parameter: postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        ));
    }
    if user.is_empty() || name.is_empty() {
        return Err((
            "names a Unix socket without a user and localhost, so Prisma can't connect to it",
            BY_SOCKET,
        ));
    }
    if !is_mountable(Path::new(&directory)) {
        return Err((
            "has a directory of a socket that the gateway's container can't be given",
            OWN_DIRECTORY,
        ));
    }
    Ok(())
}

/// The directory of the Unix socket at which the server is, in one spelling. `None` for a server with a name or an address.
pub(crate) fn socket_directory(url: &str) -> Option<String> {
    let directory = PathBuf::from(host_parameter(url)?);
    let directory =
        is_mountable(&directory).then(|| directory.components().collect::<PathBuf>())?;
    directory.to_str().map(str::to_owned)
}

/// Podman's option with which a container has such a directory in the same place. Without z: the label is that of the server.
///
/// # Errors
/// When the directory is missing, or is a link to one that no container gets.
pub(crate) fn volume(directory: &str) -> Result<String> {
    let place = Path::new(directory);
    let place = place.canonicalize().path_context("can't find", place)?;
    if !is_mountable(&place) {
        return Err(Failure::config(format!(
            "{directory}, the directory of PostgreSQL's socket, is a link to {}, which no container can be given",
            place.display()
        ))
        .hint(OWN_DIRECTORY)
        .into());
    }
    Ok(format!("--volume={}:{directory}:ro", place.display()))
}

/// The server that a URL names in a parameter, as Prisma and libpq understand it: instead of the one before the database.
pub(crate) fn host_parameter(url: &str) -> Option<String> {
    let (_, parameters) = url.split_once('?')?;
    // The servers before them may be none that this parser takes.
    let url = reqwest::Url::parse(&format!("postgresql://x/?{parameters}")).ok()?;
    let hosts = url.query_pairs().filter(|(name, _)| name == "host");
    hosts.last().map(|(_, host)| host.into_owned())
}

/// User with password, and the servers, as written.
fn authority(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    authority.rsplit_once('@').unwrap_or(("", authority))
}

/// Whether a container can have this directory of the host in the same place: one below another, since a container has its
/// own /tmp and /run. Podman splits at colons and commas, systemd at spaces.
fn is_mountable(directory: &Path) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let mut parts = directory.components();
    directory
        .to_str()
        .is_some_and(|text| text.chars().all(is_plain))
        && !REFUSED.iter().any(|refused| directory.starts_with(refused))
        && parts.next() == Some(Component::RootDir)
        && parts.clone().count() >= 2
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_sockets() {
        for (written, expected) in [
            ("/run/postgresql", Some("/run/postgresql")),
            ("/run//postgresql/./", Some("/run/postgresql")),
            ("/run", None),
            ("/tmp/", None),
            ("/dev/shm", None),
            ("/etc/postgresql", None),
            ("/run/user/1000/postgresql", None),
            ("/run/systemd", None),
            ("/srv/../etc/postgresql", None),
        ] {
            let url = format!("postgresql://a:b@localhost/x?host={written}");
            assert_eq!(socket_directory(&url).as_deref(), expected, "{written}");
        }
    }

    #[test]
    fn links_to_what_no_container_gets() {
        let root = tempfile::tempdir().unwrap();
        let (real, link, exposed) = (
            root.path().join("real"),
            root.path().join("link"),
            root.path().join("exposed"),
        );
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        std::os::unix::fs::symlink("/dev", &exposed).unwrap();
        let real = real.canonicalize().unwrap();
        assert_eq!(
            volume(link.to_str().unwrap()).unwrap(),
            format!("--volume={}:{}:ro", real.display(), link.display())
        );
        assert!(volume(exposed.to_str().unwrap()).is_err());
        assert!(volume("/nonexistent/directory").is_err());
    }
}

//! The `docker` program, here or on another host: the containers of a deployment that is to be imported.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};
use tokio::process::Command;

use crate::error::{Failure, PathContext, Result};
use crate::host::podman::is_executable;
use crate::host::ssh::RemoteHost;

/// Where the way without Docker's help is described.
pub(crate) const BY_HAND: &str = "docs/from-docker-compose.md, \"By hand\"";

/// How long a container without a health check has to run after its start.
const SETTLING: Duration = Duration::from_secs(3);
/// Interval between two looks at containers.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What a copy of a configuration has at most.
const MOST_ENTRIES: u64 = 500;
const MOST_BYTES: u64 = 64 << 20;
/// How long such a copy may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(120);

/// The Docker of a host.
#[derive(Clone, Debug)]
pub(crate) struct Docker {
    program: PathBuf,
    /// None for this host.
    remote: Option<RemoteHost>,
}

/// What `docker inspect` says of a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Container {
    #[serde(default)]
    id: String,
    /// With a slash before it.
    name: String,
    /// The ID of its image.
    pub image: String,
    /// Its program.
    pub path: String,
    pub args: Vec<String>,
    pub state: State,
    pub config: ContainerConfig,
    pub host_config: HostConfig,
    #[serde(default, deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    pub network_settings: NetworkSettings,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct State {
    pub running: bool,
    #[serde(default)]
    restarting: bool,
    /// None without a health check.
    health: Option<Health>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ContainerConfig {
    /// The image as the compose file names it.
    #[serde(default)]
    pub image: String,
    #[serde(default, deserialize_with = "variables")]
    pub env: BTreeMap<String, SecretString>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub working_dir: String,
    #[serde(default)]
    pub user: String,
    /// Docker's own is the begin of the container's ID.
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    domainname: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// In seconds; None for Docker's 10.
    pub stop_timeout: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct HostConfig {
    #[serde(default)]
    pub network_mode: String,
    #[serde(default, deserialize_with = "null_is_default")]
    port_bindings: BTreeMap<String, Option<Vec<Binding>>>,
    restart_policy: RestartPolicy,
    #[serde(flatten)]
    pub options: Options,
}

/// The options of a container that have no effect on how it is found: empty, 0, false or null without one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Options {
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub blkio_weight: u16,
    #[serde(deserialize_with = "null_is_default")]
    pub blkio_weight_device: Vec<serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub blkio_device_read_bps: Vec<serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub blkio_device_write_bps: Vec<serde_json::Value>,
    #[serde(rename = "BlkioDeviceReadIOps", deserialize_with = "null_is_default")]
    pub blkio_device_read_iops: Vec<serde_json::Value>,
    #[serde(rename = "BlkioDeviceWriteIOps", deserialize_with = "null_is_default")]
    pub blkio_device_write_iops: Vec<serde_json::Value>,
    /// In either spelling: `NET_ADMIN`, `CAP_NET_ADMIN`.
    #[serde(deserialize_with = "null_is_default")]
    pub cap_add: Vec<String>,
    pub cgroup_parent: String,
    /// In microseconds; 0 for 100000.
    pub cpu_period: i64,
    /// In microseconds of a period.
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    pub cpuset_cpus: String,
    /// In billionths of a processor.
    pub nano_cpus: i64,
    #[serde(deserialize_with = "null_is_default")]
    pub device_cgroup_rules: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub device_requests: Vec<DeviceRequest>,
    #[serde(deserialize_with = "null_is_default")]
    pub devices: Vec<Device>,
    #[serde(deserialize_with = "null_is_default")]
    pub dns: Vec<String>,
    #[serde(rename = "DnsOptions", deserialize_with = "null_is_default")]
    pub dns_opt: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub dns_search: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub extra_hosts: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub group_add: Vec<String>,
    pub ipc_mode: String,
    pub log_config: LogConfig,
    /// In bytes.
    pub memory: u64,
    /// In bytes.
    pub memory_reservation: u64,
    /// In bytes, with the memory; -1 for no limit.
    pub memory_swap: i64,
    pub oom_score_adj: i64,
    pub pid_mode: String,
    #[serde(deserialize_with = "null_is_default")]
    pub pids_limit: i64,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub runtime: String,
    #[serde(deserialize_with = "null_is_default")]
    pub security_opt: Vec<String>,
    /// In bytes.
    pub shm_size: u64,
    #[serde(deserialize_with = "null_is_default")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    pub tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    #[serde(deserialize_with = "null_is_default")]
    pub ulimits: Vec<Ulimit>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Device {
    pub path_on_host: String,
    pub path_in_container: String,
    #[serde(default)]
    pub cgroup_permissions: String,
}

/// Devices of a driver, such as GPUs.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DeviceRequest {
    /// -1 for all.
    #[serde(default)]
    pub count: i64,
    #[serde(default, rename = "DeviceIDs", deserialize_with = "null_is_default")]
    pub device_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct LogConfig {
    #[serde(rename = "Type")]
    pub driver: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Ulimit {
    pub name: String,
    #[serde(default)]
    pub soft: i64,
    #[serde(default)]
    pub hard: i64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    #[serde(default)]
    host_ip: String,
    #[serde(default)]
    host_port: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: String,
    #[serde(default)]
    maximum_retry_count: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Mount {
    /// The path on the host.
    #[serde(default)]
    pub source: String,
    /// The path in the container.
    pub destination: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkSettings {
    #[serde(default, deserialize_with = "null_is_default")]
    networks: BTreeMap<String, Network>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(default, deserialize_with = "null_is_default")]
    aliases: Vec<String>,
    #[serde(default, rename = "IPAddress")]
    ip_address: String,
}

/// What `docker image inspect` says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerImage {
    #[serde(default, deserialize_with = "null_is_default")]
    pub repo_digests: Vec<String>,
    pub config: ImageConfig,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ImageConfig {
    #[serde(default, deserialize_with = "variables")]
    pub env: BTreeMap<String, SecretString>,
    #[serde(default)]
    pub user: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub working_dir: String,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn variables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, SecretString>, D::Error> {
    let lines: Option<Vec<String>> = Option::deserialize(deserializer)?;
    Ok(lines
        .unwrap_or_default()
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect())
}

impl Container {
    /// Its name, as `docker start` takes it.
    pub(crate) fn name(&self) -> &str {
        self.name.trim_start_matches('/')
    }

    fn label(&self, name: &str) -> Option<&str> {
        let label = self
            .config
            .labels
            .get(&format!("com.docker.compose.{name}"));
        label.map(String::as_str)
    }

    /// Whether compose made it for one command.
    pub(crate) fn is_one_off(&self) -> bool {
        self.label("oneoff") == Some("True")
    }

    /// The directory of its compose file; none for a container that compose did not make, or made for one command.
    pub(crate) fn directory(&self) -> Option<&Path> {
        if self.is_one_off() {
            return None;
        }
        self.label("project.working_dir").map(Path::new)
    }

    /// Follows the links of its directory, which compose does not do.
    fn resolve_directory(&mut self) {
        let labels = &mut self.config.labels;
        if let Some(directory) = labels.get_mut("com.docker.compose.project.working_dir")
            && let Ok(real) = Path::new(directory).canonicalize()
        {
            *directory = real.to_string_lossy().into_owned();
        }
    }

    /// Its project of compose: one compose file can make several.
    pub(crate) fn project(&self) -> Option<&str> {
        self.label("project")
    }

    /// Its service in the compose file.
    pub(crate) fn service(&self) -> &str {
        self.label("service").unwrap_or_else(|| self.name())
    }

    /// Its names and addresses on the networks that it shares with `other`; none without such a network.
    pub(crate) fn hosts_for<'a>(&'a self, other: &Self) -> BTreeSet<&'a str> {
        let others = &other.network_settings.networks;
        let networks = self.network_settings.networks.iter();
        let shared = networks.filter(|(name, _)| others.contains_key(*name));
        let hosts = shared.flat_map(|(_, network)| {
            let aliases = network.aliases.iter().map(String::as_str);
            aliases.chain([self.service(), self.name(), &network.ip_address])
        });
        hosts.filter(|host| !host.is_empty()).collect()
    }

    /// Whether `host` is one of its names or addresses on a network that it shares with `other`.
    pub(crate) fn is_reached_by(&self, other: &Self, host: &str) -> bool {
        self.hosts_for(other).contains(host)
    }

    /// The name of the host in it, with its domain, if the compose file gives one.
    pub(crate) fn hostname(&self) -> Option<String> {
        let ContainerConfig {
            hostname,
            domainname,
            ..
        } = &self.config;
        let is_own = self.id.starts_with(hostname.as_str()) || self.id.is_empty();
        if is_own && domainname.is_empty() || self.host_config.network_mode == "host" {
            return None;
        }
        let parts = [hostname.as_str(), domainname].into_iter();
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        Some(parts.join("."))
    }

    /// The addresses on the host that lead to it, with its own port: `0.0.0.0:4000`, 4000. Port 0 is one that Docker
    /// chooses.
    pub(crate) fn published(&self) -> Vec<(String, u16)> {
        let bindings = self.host_config.port_bindings.iter();
        bindings
            .flat_map(|(port, bindings)| {
                let own = port.split('/').next().and_then(|port| port.parse().ok());
                let bindings = bindings.iter().flatten();
                bindings.filter_map(move |binding| {
                    let host = match binding.host_ip.as_str() {
                        "" => "0.0.0.0".to_owned(),
                        host if host.contains(':') => format!("[{host}]"),
                        host => host.to_owned(),
                    };
                    let port = match binding.host_port.as_str() {
                        "" => "0",
                        port => port,
                    };
                    Some((format!("{host}:{port}"), own?))
                })
            })
            .collect()
    }

    /// As `docker update --restart` takes it.
    pub(crate) fn restart(&self) -> String {
        let RestartPolicy {
            name,
            maximum_retry_count,
        } = &self.host_config.restart_policy;
        match (name.as_str(), maximum_retry_count) {
            ("", _) => "no".into(),
            ("on-failure", 1..) => format!("{name}:{maximum_retry_count}"),
            _ => name.clone(),
        }
    }
}

impl Docker {
    /// Finds Docker. On another host, its first command does.
    pub(crate) fn find(remote: Option<&RemoteHost>) -> Result<Self> {
        if remote.is_some() {
            return Ok(Self {
                program: "docker".into(),
                remote: remote.cloned(),
            });
        }
        let program = std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|directory| directory.join("docker"))
            .find(|path| path.is_absolute() && is_executable(path))
            .ok_or_else(|| {
                Failure::new("Docker is not installed, so there is nothing to import from")
                    .hint("from another host: `litellm-units import --from USER@HOST DIR`")
            })?;
        Ok(Self {
            program,
            remote: None,
        })
    }

    /// A command line of Docker that reads nothing from stdin, complete: a shell on another host splits it. As of
    /// [`Podman`](crate::host::podman::Podman), no terminal that closes ends it, but ssh may ask there for a passphrase.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = match &self.remote {
            None => {
                let mut command = Command::new(&self.program);
                command.args(arguments).process_group(0);
                command
            }
            Some(remote) => {
                let program = std::iter::once(self.program.clone().into_os_string());
                let words = arguments.into_iter().map(|word| word.as_ref().to_owned());
                remote.command(&program.chain(words).collect::<Vec<_>>())
            }
        };
        command.stdin(Stdio::null());
        command
    }

    /// Runs Docker and returns its stdout.
    pub(crate) async fn run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let output = self.command(arguments).output().await;
        let output = output.context("can't run docker")?;
        if let (Some(255), Some(remote)) = (output.status.code(), &self.remote) {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("ssh to {remote}: {}", words.trim()))
                .hint(format!("test the connection: `ssh {remote} docker ps`"))
                .into());
        }
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("docker: {}", words.trim()))
                .hint(format!(
                    "check that Docker runs (`docker ps`), or move the deployment by hand: {BY_HAND}"
                ))
                .into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All containers, stopped ones too.
    pub(crate) async fn containers(&self) -> Result<Vec<Container>> {
        let ids = self.run(["ps", "--all", "--quiet", "--no-trunc"]).await?;
        if ids.trim().is_empty() {
            return Ok(Vec::new());
        }
        let mut containers = self.inspect(ids.split_whitespace()).await?;
        if self.remote.is_none() {
            containers.iter_mut().for_each(Container::resolve_directory);
        }
        Ok(containers)
    }

    /// The paths in a container that its image does not have.
    pub(crate) async fn added(&self, container: &str) -> Result<Vec<String>> {
        let text = self.run(["diff", container]).await?;
        let paths = text.lines().filter_map(|line| line.strip_prefix("A "));
        Ok(paths.map(str::to_owned).collect())
    }

    async fn inspect(&self, names: impl Iterator<Item = &str>) -> Result<Vec<Container>> {
        let words = ["inspect", "--type=container"].into_iter();
        let text = self.run(words.chain(names)).await?;
        serde_json::from_str(&text).context("unexpected answer of docker inspect")
    }

    /// Waits until containers that were started run: until the first result of their health checks, or a moment where
    /// there is none. Returns those that are not healthy, with what their health checks say.
    pub(crate) async fn wait(
        &self,
        names: &[&str],
        timeout: Duration,
    ) -> Result<Vec<(String, String)>> {
        let begin = Instant::now();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        loop {
            let found = self.inspect(names.iter().copied()).await?;
            let is_late = begin.elapsed() > timeout;
            let mut unhealthy = Vec::new();
            let mut is_settled = begin.elapsed() > SETTLING;
            for container in found {
                let name = container.name();
                if !container.state.running || container.state.restarting && is_late {
                    return Err(Failure::new(format!(
                        "the container {name} ended after its start"
                    ))
                    .hint(format!("see why: `docker logs {name}`"))
                    .into());
                }
                match container
                    .state
                    .health
                    .as_ref()
                    .map(|health| &*health.status)
                {
                    None => is_settled &= !container.state.restarting,
                    Some("healthy") => {}
                    Some("starting") if !is_late => is_settled = false,
                    Some(status) => unhealthy.push((name.to_owned(), status.to_owned())),
                }
            }
            if is_settled {
                return Ok(unhealthy);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// An image by its ID.
    pub(crate) async fn image(&self, id: &str) -> Result<DockerImage> {
        let text = self.run(["image", "inspect", id]).await?;
        let images: Vec<DockerImage> =
            serde_json::from_str(&text).context("unexpected answer of docker image inspect")?;
        images.into_iter().next().context("docker shows no image")
    }

    /// Those of these paths on Docker's host that are regular files.
    pub(crate) async fn regular_files(&self, paths: &[&str]) -> Result<Vec<String>> {
        const TEST: &str =
            r#"for path; do if [ -f "$path" ]; then printf '%s\n' "$path"; fi; done"#;
        let words = ["sh", "-c", TEST, "sh"]
            .into_iter()
            .chain(paths.iter().copied());
        let words: Vec<&str> = words.collect();
        let mut command = if let Some(remote) = &self.remote {
            remote.command(&words)
        } else {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        let output = command.stdin(Stdio::null()).output().await;
        let output = output.context("can't look for the files of the old deployment")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!(
                "can't look for the files of the old deployment: {}",
                words.trim()
            );
        }
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Copies a file or a directory out of a container, which need not run.
    ///
    /// # Errors
    /// When Docker refuses, it has more than a configuration has, or it takes longer than two minutes.
    pub(crate) async fn copy(&self, container: &str, path: &str, to: &Path) -> Result<()> {
        let from = format!("{container}:{path}");
        // An archive, which ssh brings as well, with one entry: the file or the directory.
        let inside = to.with_extension("archive");
        std::fs::create_dir(&inside).path_context("can't create", &inside)?;
        let mut docker = self.command(["cp", "--follow-link", &from, "-"]);
        docker.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut docker = docker
            .kill_on_drop(true)
            .spawn()
            .context("can't run docker")?;
        let archive = docker.stdout.take().context("docker has no stdout")?;
        let archive = File::from(archive.into_owned_fd().context("can't read from docker")?);
        let copy = async {
            let place = inside.clone();
            let unpacked = tokio::task::spawn_blocking(move || unpack(archive, &place)).await?;
            if let Ok(false) = unpacked {
                return Err(Failure::new(format!(
                    "{path} of the old gateway has more than {MOST_ENTRIES} files or {} MiB",
                    MOST_BYTES >> 20
                ))
                .hint("in the compose file, mount the configuration and its files alone, and run `docker compose up -d`")
                .into());
            }
            let docker = docker
                .wait_with_output()
                .await
                .context("can't run docker")?;
            if !docker.status.success() {
                let words = String::from_utf8_lossy(&docker.stderr);
                return Err(Failure::new(format!("docker: {}", words.trim())).into());
            }
            unpacked.map(drop).map_err(anyhow::Error::from)
        };
        let copied = tokio::time::timeout(COPY_TIMEOUT, copy).await;
        copied
            .unwrap_or_else(|_| {
                Err(anyhow::anyhow!(
                    "no answer within {} s",
                    COPY_TIMEOUT.as_secs()
                ))
            })
            .with_context(|| format!("can't copy {path} of {container}"))?;
        let entry = std::fs::read_dir(&inside)
            .path_context("can't read", &inside)?
            .next();
        let entry = entry.with_context(|| format!("{path} of {container} is empty"))?;
        let entry = entry.path_context("can't read", &inside)?.path();
        std::fs::rename(&entry, to).path_context("can't move", &entry)
    }
}

/// Unpacks an archive of Docker. Returns whether it was all, or too much.
fn unpack(archive: impl Read, to: &Path) -> std::io::Result<bool> {
    let (mut count, mut bytes) = (0, 0);
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        count += 1;
        bytes += entry.size();
        if count > MOST_ENTRIES || bytes > MOST_BYTES {
            return Ok(false);
        }
        let kind = entry.header().entry_type();
        if !kind.is_dir() {
            // Of a FIFO or a device, it would make an empty file.
            if kind.is_file() || kind.is_symlink() || kind.is_hard_link() {
                entry.unpack_in(to)?;
            }
            continue;
        }
        // The directories of files are created with them. The first one may be empty. No deeper one is created here, since a
        // part of its path may be a link that leads out of `to`.
        let path = entry.path()?.into_owned();
        let mut parts = path.components();
        if let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) {
            std::fs::create_dir_all(to.join(name))?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_configuration_is_unpacked() {
        let place = tempfile::tempdir().unwrap();
        let archive = |sizes: &[(&str, u64)]| {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            header.set_mode(0);
            archive.append_data(&mut header, "config", &[][..]).unwrap();
            for (name, size) in sizes {
                let mut header = tar::Header::new_gnu();
                header.set_size(*size);
                header.set_mode(0o4755);
                let bytes = std::io::repeat(b'x').take(*size);
                archive.append_data(&mut header, name, bytes).unwrap();
            }
            archive.into_inner().unwrap()
        };
        let small = archive(&[("config/a.py", 3)]);
        assert!(unpack(&*small, place.path()).unwrap());
        let file = place.path().join("config/a.py");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "xxx");
        let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
        assert_eq!(mode & 0o7000, 0);
        assert!(unpack(&small[..700], place.path()).is_err());
        // A link that leads out is followed by no directory.
        let outside = tempfile::tempdir().unwrap();
        let mut hostile = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        hostile
            .append_link(&mut link, "link", outside.path())
            .unwrap();
        let mut directory = tar::Header::new_gnu();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_size(0);
        hostile
            .append_data(&mut directory, "link/made", &[][..])
            .unwrap();
        assert!(unpack(&*hostile.into_inner().unwrap(), place.path()).unwrap());
        assert!(!outside.path().join("made").exists());
        let large = archive(&[("config/data", MOST_BYTES + 1), ("config/never", 1)]);
        assert!(!unpack(&*large, place.path()).unwrap());
        assert!(!place.path().join("config/data").exists());
        let names: Vec<String> = (0..MOST_ENTRIES).map(|n| format!("config/{n}")).collect();
        let many: Vec<_> = names.iter().map(|name| (&**name, 1)).collect();
        assert!(!unpack(&*archive(&many), place.path()).unwrap());
    }

    #[test]
    fn a_directory_behind_a_link() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap().join("real");
        let link = root.path().join("link");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let text = include_str!("../../tests/fixtures/import/example.json");
        let mut all: Vec<Container> = serde_json::from_str(text).unwrap();
        let label = "com.docker.compose.project.working_dir".to_owned();
        let labels = &mut all[0].config.labels;
        labels.insert(label, link.display().to_string());
        all[0].resolve_directory();
        assert_eq!(all[0].directory(), Some(&*real));
    }
}

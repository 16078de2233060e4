//! The `podman` program and its Quadlet generator.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Failure, PathContext, Result};
use crate::host::outgoing_proxy::OutgoingProxy;
use crate::host::paths::Scope;
use crate::image::{self, Image, ImageIdentity};

/// Where distributions put the generator that turns Quadlet files into units.
const GENERATOR: &str = "/usr/lib/systemd/system-generators/podman-system-generator";

/// Timeout for a registry to list its tags.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(60);

/// The part of Podman's version that decides which Quadlet keys exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodmanVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl PodmanVersion {
    /// The oldest version that the units can be written for.
    pub const OLDEST: Self = Self { major: 4, minor: 9 };
    /// The version that `--output` assumes.
    pub const DEFAULT: Self = Self { major: 5, minor: 4 };
    /// From this version on, Podman itself can hold a unit's start until its container is healthy
    /// (without a panic: 5.2), and Quadlet's default dependencies can be turned off.
    pub(crate) const MODERN: Self = Self { major: 5, minor: 3 };
    /// From this version on, `podman inspect` does not show a container's secrets
    /// (containers/podman issue 23788).
    pub const HIDES_SECRETS: Self = Self { major: 5, minor: 3 };

    /// Reads `5.4.2`, `v5.8.0-dev` or `podman version 5.4.2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let word = text.split_whitespace().last()?;
        let mut numbers = word.trim_start_matches('v').split(['.', '-', '+']);
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }

    /// Refuses a Podman that can't run the units.
    ///
    /// # Errors
    /// When it is older than 4.9.
    pub fn check(self) -> Result<Self> {
        if self < Self::OLDEST {
            return Err(Failure::new(format!(
                "Podman {self} is too old: the units need {} or newer",
                Self::OLDEST
            ))
            .hint("upgrade to a distribution that has it: Debian 13, Ubuntu 24.04, RHEL 9.4, Fedora 43, or a later release of these")
            .into());
        }
        Ok(self)
    }
}

impl fmt::Display for PodmanVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The host's Podman.
#[derive(Clone, Debug)]
pub struct Podman {
    program: PathBuf,
    generator: PathBuf,
}

impl Podman {
    /// Finds Podman and its generator.
    ///
    /// # Errors
    /// When one of them is missing.
    pub fn find() -> Result<Self> {
        let program = std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|directory| directory.join("podman"))
            .find(|path| path.is_absolute() && is_executable(path))
            .ok_or_else(|| {
                Failure::new("Podman is not installed")
                    .hint("install it: `apt install podman` or `dnf install podman`")
            })?;
        let generator = PathBuf::from(GENERATOR);
        if !generator.exists() {
            return Err(Failure::new(format!(
                "{} has no Quadlet: {GENERATOR} is missing",
                program.display()
            ))
            .hint(format!(
                "install Podman {} or newer from the distribution",
                PodmanVersion::OLDEST
            ))
            .into());
        }
        Ok(Self { program, generator })
    }

    /// Podman's version, asked of the generator, which answers ten times faster than `podman`.
    ///
    /// # Errors
    /// When the generator doesn't run, or is too old for the units.
    pub async fn version(&self) -> Result<PodmanVersion> {
        let output = Command::new(&self.generator)
            .arg("-version")
            .stdin(Stdio::null())
            .output()
            .await
            .path_context("can't run", &self.generator)?;
        let text = String::from_utf8_lossy(&output.stdout);
        PodmanVersion::parse(&text)
            .with_context(|| {
                format!(
                    "unexpected answer of {} -version: {:?}",
                    self.generator.display(),
                    text.trim()
                )
            })?
            .check()
    }

    /// The output of the host's Quadlet generator for the files in `directory`, or for those that are installed.
    ///
    /// # Errors
    /// When the generator does not run.
    pub async fn generate(&self, directory: Option<&Path>, scope: Scope) -> Result<Output> {
        let mut command = Command::new(&self.generator);
        command
            .envs(directory.map(|directory| ("QUADLET_UNIT_DIRS", directory)))
            .arg("-dryrun")
            .stdin(Stdio::null());
        if scope == Scope::User {
            command.arg("-user");
        }
        command
            .output()
            .await
            .path_context("can't run", &self.generator)
    }

    /// A command line of Podman that reads nothing from stdin. A terminal that closes sends SIGHUP to its whole process group:
    /// this is not part of it, so that no step of an operation ends by it.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = self.command_of_terminal(arguments);
        command.process_group(0);
        command
    }

    /// As [`Podman::command`], but ended by Ctrl-C and with the terminal. It runs in the root directory, since rootless
    /// Podman does not start in one that its user can't enter, as after `sudo -u` often.
    #[must_use]
    pub(crate) fn command_of_terminal<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Runs Podman to its end, which may be a failure.
    pub(crate) async fn output<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        let output = self.command(arguments).output().await;
        output.context("can't run podman")
    }

    /// The same with a text on stdin: arguments are for all to see.
    pub(crate) async fn fed<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &str,
    ) -> Result<Output> {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("can't run podman")?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may end before it has read everything; its status tells.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await.context("can't run podman")
    }

    /// Runs Podman and returns its stdout.
    ///
    /// # Errors
    /// With Podman's own message when it fails.
    pub async fn run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let output = self.output(arguments).await?;
        if !output.status.success() {
            return Err(failed(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether the image is in local storage.
    ///
    /// # Errors
    /// When Podman can't tell.
    pub async fn has_image(&self, image: &str) -> Result<bool> {
        self.exists("image", image).await
    }

    /// Whether there is a network of this name, which must not be hexadecimal.
    ///
    /// # Errors
    /// When Podman can't tell.
    pub(crate) async fn has_network(&self, name: &str) -> Result<bool> {
        self.exists("network", name).await
    }

    /// The names of all containers, running or not. `container exists db` also finds one whose identifier begins with db.
    ///
    /// # Errors
    /// With Podman's own message.
    pub(crate) async fn containers(&self) -> Result<Vec<String>> {
        let names = self.run(["ps", "--all", "--format", "{{.Names}}"]).await?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Whether there is an object of this kind, by its name or by the beginning of its identifier.
    async fn exists(&self, kind: &str, name: &str) -> Result<bool> {
        let output = self.output([kind, "exists", name]).await?;
        match output.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(failed(&output)),
        }
    }

    /// The image of a reference in local storage; `None` if it is not there.
    ///
    /// # Errors
    /// When Podman can't tell.
    pub async fn image(&self, reference: &str) -> Result<Option<ImageIdentity>> {
        // `image inspect` shows the digest of this platform's manifest for a tag, but the registry
        // and a container have that of the index.
        let filter = format!("reference={reference}");
        let format = "{{.ID}} {{.Digest}}";
        let words = [
            "images",
            "--no-trunc",
            "--format",
            format,
            "--filter",
            &filter,
        ];
        let said = self.run(words).await?;
        Ok(said.lines().find_map(identity))
    }

    /// The `USER` of an image: empty for root.
    ///
    /// # Errors
    /// When there is no such image, or Podman can't be run.
    pub(crate) async fn image_user(&self, image: &str) -> Result<String> {
        let words = ["image", "inspect", "--format", "{{.Config.User}}", image];
        Ok(self.run(words).await?.trim().to_owned())
    }

    /// The image of a container, by the name that it was started with; `None` if there is no such
    /// container.
    ///
    /// # Errors
    /// When Podman can't be run.
    pub async fn container_image(&self, container: &str) -> Result<Option<Image>> {
        let format = "{{.ImageName}} {{.Image}} {{.ImageDigest}}";
        let words = ["container", "inspect", "--format", format, container];
        let output = self.output(words).await?;
        let said = String::from_utf8_lossy(&output.stdout);
        let Some((reference, rest)) = said.trim().split_once(' ') else {
            return Ok(None);
        };
        Ok(identity(rest).map(|identity| Image {
            reference: reference.to_owned(),
            identity,
        }))
    }

    /// What connects rootless networks to the host's from Podman 5 on: `default_rootless_network_cmd` of `containers.conf`.
    pub(crate) async fn rootless_network_program(&self) -> String {
        self.run(["info", "--format", "{{.Host.RootlessNetworkCmd}}"])
            .await
            .ok()
            .map(|text| text.trim().to_owned())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "pasta".to_owned())
    }

    /// The effective `registries.conf`, as `podman info` shows it.
    ///
    /// # Errors
    /// When Podman can't tell.
    pub async fn registries(&self) -> Result<serde_json::Value> {
        let text = self
            .run(["info", "--format", "{{json .Registries}}"])
            .await?;
        serde_json::from_str(&text).context("podman info did not answer with JSON")
    }

    /// Every tag of a repository, asked of its registry. Podman follows the registry's pages itself.
    ///
    /// # Errors
    /// When the registry does not answer in time, or refuses.
    pub async fn tags(
        &self,
        repository: &str,
        insecure: bool,
        proxy: &OutgoingProxy,
    ) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Found {
            tags: Vec<String>,
        }
        // Without a limit, Podman leaves out all but 25.
        let limit = i32::MAX.to_string();
        let mut words = vec![
            "search",
            "--list-tags",
            "--limit",
            &limit,
            "--format",
            "json",
        ];
        if insecure {
            words.push("--tls-verify=false");
        }
        words.push(repository);
        let mut command = self.command(words);
        command.envs(proxy.environment()).kill_on_drop(true);
        let output = tokio::time::timeout(REGISTRY_TIMEOUT, command.output())
            .await
            .map_err(|_| {
                let seconds = REGISTRY_TIMEOUT.as_secs();
                anyhow::anyhow!("the tags of {repository} did not arrive within {seconds} s")
            })?
            .context("can't run podman")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let reason = words.lines().map(str::trim).rfind(|line| !line.is_empty());
            let reason = reason.unwrap_or("Podman gives no reason");
            anyhow::bail!("{}", reason.trim_start_matches("* "));
        }
        let found: Vec<Found> = serde_json::from_slice(&output.stdout)
            .context("podman search did not answer with JSON")?;
        Ok(found.into_iter().flat_map(|found| found.tags).collect())
    }

    /// Podman's reason for not pulling an image, in one line; `None` if it can be pulled after all.
    ///
    /// # Errors
    /// When Podman can't be run.
    pub async fn reason_against(
        &self,
        image: &str,
        proxy: &OutgoingProxy,
    ) -> Result<Option<String>> {
        let mut pull = self.command_of_terminal(["pull", "--quiet", image]);
        let output = pull
            .envs(proxy.environment())
            .output()
            .await
            .context("can't run podman")?;
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.lines().last().unwrap_or_default();
        Ok((!output.status.success()).then(|| last.trim_start_matches("Error: ").to_owned()))
    }

    /// Pulls an image; Podman draws its progress on stderr.
    ///
    /// # Errors
    /// When it can't be pulled. Podman's own message is then on stderr.
    pub async fn pull(&self, image: &str, proxy: &OutgoingProxy) -> Result<()> {
        let status = self
            .command_of_terminal(["pull", image])
            .envs(proxy.environment())
            .stdout(Stdio::null())
            .status()
            .await
            .context("can't run podman")?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("can't pull {image}"))
            .hint("check the image's name and tag, and that this host can reach the registry")
            .into())
    }
}

/// Whether Podman asks this process for a secret because of a health check (`podman healthcheck
/// run`): then the container runs, and has had its secrets.
#[must_use]
pub fn is_health_check() -> bool {
    is_asked_by(checks_health)
}

/// Whether Podman asks this process for a secret because of `podman exec`: then the container runs, and may have had other
/// secrets.
#[must_use]
pub fn is_exec() -> bool {
    is_asked_by(executes)
}

/// Whether the Podman that runs this process has such a command line.
fn is_asked_by(is_it: fn(&[u8]) -> bool) -> bool {
    // Podman runs a shell, which runs this process or is replaced by it.
    let shell = std::os::unix::process::parent_id();
    [Some(shell), parent_of(shell)]
        .into_iter()
        .flatten()
        .any(|process| {
            std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|command| is_it(&command))
        })
}

/// Whether `/proc/…/cmdline` is that of `podman exec`.
fn executes(command: &[u8]) -> bool {
    let mut words = command.split(|byte| *byte == 0);
    let program = words.next().unwrap_or_default();
    let verb = words.find(|word| !word.starts_with(b"-"));
    program.rsplit(|byte| *byte == b'/').next() == Some(b"podman") && verb == Some(b"exec")
}

/// Whether `/proc/…/cmdline` is that of `podman healthcheck run`.
fn checks_health(command: &[u8]) -> bool {
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    words[0].rsplit(|byte| *byte == b'/').next() == Some(b"podman")
        && words
            .windows(2)
            .any(|pair| pair == [b"healthcheck".as_slice(), b"run"])
}

fn parent_of(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Reads `ID DIGEST`.
fn identity(line: &str) -> Option<ImageIdentity> {
    let (id, digest) = line.trim().split_once(' ')?;
    image::is_digest(digest).then(|| ImageIdentity {
        digest: digest.to_owned(),
        id: Some(
            id.strip_prefix(image::DIGEST_PREFIX)
                .unwrap_or(id)
                .to_owned(),
        ),
    })
}

fn failed(output: &Output) -> anyhow::Error {
    let words = String::from_utf8_lossy(&output.stderr);
    anyhow::anyhow!("podman failed ({}): {}", output.status, words.trim())
}

/// Whether a file can be run by someone.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::{checks_health, executes};

    #[test]
    fn commands_in_a_container() {
        assert!(executes(b"/usr/bin/podman\0exec\0litellm\0sh\0"));
        assert!(executes(b"podman\0--log-level=error\0exec\0litellm\0sh\0"));
        for command in [
            &b"podman\0run\0litellm\0exec\0"[..],
            b"podman\0healthcheck\0run\0exec\0",
            b"sh\0-c\0podman exec litellm sh\0",
            b"",
        ] {
            assert!(!executes(command));
        }
    }

    #[test]
    fn health_checks() {
        for command in [
            &b"/usr/bin/podman\0healthcheck\0run\0d5c1\0"[..],
            b"podman\0--log-level=error\0healthcheck\0run\0d5c1\0",
        ] {
            assert!(checks_health(command));
        }
        for command in [
            &b"/usr/bin/podman\0exec\0litellm\0healthcheck\0"[..],
            b"/usr/bin/podman\0run\0--name\0litellm\0",
            b"sh\0-c\0podman healthcheck run\0",
            b"",
        ] {
            assert!(!checks_health(command));
        }
    }
}

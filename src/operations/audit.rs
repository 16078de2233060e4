//! Looks for secrets where they do not belong. Reports places, and never a value.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use nix::unistd::{Uid, User};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::deployment::external;
use crate::deployment::sealed::{Vault, is_sealed};
use crate::deployment::settings::{Settings, load_env};
use crate::deployment::variables::{is_secret, password_in_url};
use crate::error::Result;
use crate::host::Host;
use crate::host::files;
use crate::host::paths::Scope;
use crate::host::podman::Podman;
use crate::host::podman::PodmanVersion;
use crate::litellm::keys::scrub;
use crate::service::Service;

/// A shorter value would be found in many a place by chance.
const SHORTEST: usize = 8;
/// What has to be encoded in every part of a URL.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Larger files are not looked into.
const LARGEST: u64 = 256 << 20;
/// How much of a file is in memory at once.
const CHUNK: u64 = 1 << 20;
/// How deep directories are walked.
const DEPTH: usize = 12;
/// One secret in one place where it should not be, or a file that holds secrets and is open to
/// others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct ExposedSecret {
    /// A file, a process, a container or a journal.
    pub place: String,
    /// The variable or file that the secret is from.
    pub secret: String,
    /// What is wrong.
    pub problem: String,
}

/// What was found, and where no look was possible.
#[derive(Debug, Serialize)]
pub(crate) struct AuditReport {
    /// Grows when a field changes its meaning.
    pub schema: u32,
    /// Sorted, each once.
    pub findings: BTreeSet<ExposedSecret>,
    /// What could not be looked at, and why.
    pub skipped: Vec<String>,
}

/// What to look for.
struct Pattern {
    secret: String,
    text: SecretString,
    /// Whether `.env` has a reference in its place, so that it is in clear nowhere.
    sealed: bool,
}

/// Looks everywhere.
pub(crate) async fn audit(host: &Host) -> Result<AuditReport> {
    let mut audit = Audit {
        host,
        patterns: Vec::new(),
        report: AuditReport {
            schema: 1,
            findings: BTreeSet::new(),
            skipped: Vec::new(),
        },
    };
    audit.collect()?;
    audit.modes();
    audit.deployment();
    audit.units();
    audit.history();
    audit.processes();
    audit.manager().await?;
    audit.containers().await?;
    audit.journal().await?;
    Ok(audit.report)
}

struct Audit<'a> {
    host: &'a Host,
    patterns: Vec<Pattern>,
    report: AuditReport,
}

impl Audit<'_> {
    fn add(&mut self, place: impl Into<String>, secret: impl Into<String>, problem: &str) {
        self.report.findings.insert(ExposedSecret {
            place: place.into(),
            secret: secret.into(),
            problem: problem.to_owned(),
        });
    }

    fn skip(&mut self, what: &str, why: &str) {
        self.report.skipped.push(format!("{what}: {}", scrub(why)));
    }

    /// Gathers the values, and each form in which they may turn up.
    fn collect(&mut self) -> Result<()> {
        let path = self.host.paths.env_file();
        let env = load_env(&path)?;
        let vault = Vault::beside(&path);
        let settings = Settings::from_env(&env, &path);
        for (name, value) in env.iter() {
            if env.reference(name).is_some() {
                continue;
            }
            let sealed = is_sealed(value);
            if is_secret(name, value) || sealed {
                self.look_for(name, vault.open(value)?.expose_secret(), sealed);
            }
        }
        if let Ok(settings) = settings {
            for lookup in settings.lookups() {
                match lookup.last_good(&self.host.paths)? {
                    Some(kept) => {
                        self.look_for(lookup.variable(), kept.value().expose_secret(), true);
                    }
                    None => self.skip(lookup.variable(), "no container has got it yet"),
                }
            }
            // What is derived from several variables.
            let url = settings.database.url();
            let sealed = url.is_sealed();
            self.look_for("DATABASE_URL", url.open()?.expose_secret(), sealed);
        }
        let key = self.host.paths.service_key();
        if let Ok(text) = std::fs::read_to_string(&key) {
            self.look_for("service-key.txt", text.trim(), false);
        }
        Ok(())
    }

    fn look_for(&mut self, name: &str, value: &str, sealed: bool) {
        // Programs differ in whether they encode what a URL may hold as it is.
        let mut forms = vec![
            value.to_owned(),
            utf8_percent_encode(value, NON_ALPHANUMERIC).to_string(),
            utf8_percent_encode(value, RESERVED).to_string(),
        ];
        if let Some(password) = password_in_url(value) {
            forms.push(
                percent_decode_str(password)
                    .decode_utf8_lossy()
                    .into_owned(),
            );
            forms.push(password.to_owned());
        }
        for text in forms {
            if text.len() < SHORTEST {
                if text == value && !text.is_empty() {
                    self.skip(name, "too short to search for");
                }
            } else if !self
                .patterns
                .iter()
                .any(|other| other.secret == name && other.text.expose_secret() == text)
            {
                self.patterns.push(Pattern {
                    secret: name.to_owned(),
                    text: text.into(),
                    sealed,
                });
            }
        }
    }

    /// The names of the secrets in `text`.
    fn found_in(&self, text: &str) -> BTreeSet<String> {
        self.found_among(text, |_| true)
    }

    fn found_among(&self, text: &str, among: impl Fn(&Pattern) -> bool) -> BTreeSet<String> {
        Self::named(self.matches(text, among).collect())
    }

    fn matches(
        &self,
        text: &str,
        among: impl Fn(&Pattern) -> bool,
    ) -> impl Iterator<Item = String> {
        self.patterns
            .iter()
            .filter(move |pattern| among(pattern) && text.contains(pattern.text.expose_secret()))
            .map(|pattern| pattern.secret.clone())
    }

    /// The names by which secrets in one place are reported.
    fn named(names: BTreeSet<String>) -> BTreeSet<String> {
        // The URL is named only where not just its password is there, which has a name of its own.
        if names.len() > 1 && names.contains("DATABASE_URL") && names.contains("POSTGRES_PASSWORD")
        {
            return names
                .into_iter()
                .filter(|name| name != "DATABASE_URL")
                .collect();
        }
        names
    }

    /// The files that hold secrets rightly are their owner's alone.
    fn modes(&mut self) {
        let paths = &self.host.paths;
        let owner = std::fs::metadata(&paths.deployment)
            .map(|metadata| metadata.uid())
            .ok();
        let caller = Uid::effective().as_raw();
        let private = [
            (paths.env_file(), "all of .env"),
            (paths.service_key(), "the service key"),
            (paths.credentials(), "sealed secrets"),
            (external::directory(paths), "values of other programs"),
            (paths.state(), "kept configurations"),
            (paths.pending_change(), "an unfinished rotation"),
        ];
        for (path, secret) in private {
            let Ok(metadata) = std::fs::metadata(&path) else {
                continue;
            };
            let mode = metadata.mode() & 0o7777;
            if mode & 0o077 != 0 {
                let problem = format!("open to others: mode {mode:04o}");
                self.add(path.display().to_string(), secret, &problem);
            }
            if metadata.uid() != caller && Some(metadata.uid()) != owner {
                let problem = format!("belongs to {}", user(metadata.uid()));
                self.add(path.display().to_string(), secret, &problem);
            }
        }
    }

    /// Everything in the deployment directory but the servers' data.
    fn deployment(&mut self) {
        let paths = &self.host.paths;
        let (logs, config, data) = (paths.logs(), paths.config(), paths.data());
        let rightly = [
            paths.env_file(),
            paths.service_key(),
            paths.pending_change(),
        ];
        for (path, metadata, open) in walk(&paths.deployment, &|path| path != data) {
            let problem = if rightly.contains(&path) {
                self.sealed_in(&path, &metadata);
                continue;
            } else if path.starts_with(&logs) {
                "in a log".to_owned()
            } else if path.starts_with(&config) {
                "in clear; move it to .env and write os.environ/NAME here".to_owned()
            } else if open {
                format!(
                    "a copy open to others: mode {:04o}",
                    metadata.mode() & 0o7777
                )
            } else {
                self.sealed_in(&path, &metadata);
                continue;
            };
            self.file(&path, &metadata, &problem);
        }
    }

    /// A file for the owner's eyes only, in which a secret may be if it is not sealed.
    fn sealed_in(&mut self, path: &Path, metadata: &Metadata) {
        if self.patterns.iter().any(|pattern| pattern.sealed) {
            let among = |pattern: &Pattern| pattern.sealed;
            self.file_among(
                path,
                metadata,
                "in clear, though .env has only a reference to it",
                among,
            );
        }
    }

    /// Unit files, drop-ins, what generators made of them, and what they call with.
    fn units(&mut self) {
        let paths = &self.host.paths;
        let mut roots = vec![
            paths.quadlets.clone(),
            paths.units.clone(),
            paths.packaged_units.clone(),
            paths.runtime_state(),
            paths.runtime.join("systemd/generator"),
            paths.runtime.join("systemd/transient"),
        ];
        match paths.scope {
            Scope::System => roots.extend(
                [
                    "/run/systemd/system",
                    "/usr/share/containers/systemd",
                    "/run/containers/systemd",
                ]
                .map(PathBuf::from),
            ),
            Scope::User => roots.push("/etc/containers/systemd/users".into()),
        }
        let external = external::directory(paths);
        for root in roots {
            for (path, metadata, _) in walk(&root, &|path| path != external) {
                // Links lead to units of others, or to files that are searched by another step.
                self.file(&path, &metadata, "in a unit or a file that makes one");
            }
        }
    }

    /// What was typed.
    fn history(&mut self) {
        let Some(home) = std::env::var_os("HOME").map(PathBuf::from) else {
            return;
        };
        for name in [
            ".bash_history",
            ".zsh_history",
            ".local/share/fish/fish_history",
            ".psql_history",
            ".rediscli_history",
        ] {
            // Where a link leads: such files are often kept in a repository.
            let Ok(path) = home.join(name).canonicalize() else {
                continue;
            };
            if let Ok(metadata) = std::fs::metadata(&path) {
                self.file(&path, &metadata, "in a command history");
            }
        }
    }

    fn file(&mut self, path: &Path, metadata: &Metadata, problem: &str) {
        self.file_among(path, metadata, problem, |_| true);
    }

    fn file_among(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        problem: &str,
        among: impl Fn(&Pattern) -> bool,
    ) {
        if !metadata.is_file() {
            return;
        }
        let place = path.display().to_string();
        if metadata.len() > LARGEST {
            self.skip(&place, "larger than 256 MiB");
            return;
        }
        match self.search(path, among) {
            Ok(secrets) => {
                for secret in secrets {
                    self.add(place.clone(), secret, problem);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => self.skip(&place, &error.to_string()),
        }
    }

    /// The names of the secrets in a file, which may be a log that a container writes.
    fn search(
        &self,
        path: &Path,
        among: impl Fn(&Pattern) -> bool,
    ) -> std::io::Result<BTreeSet<String>> {
        let mut file = files::open_regular(path)?.take(LARGEST);
        let lengths = self
            .patterns
            .iter()
            .map(|pattern| pattern.text.expose_secret().len());
        let longest = lengths.max().unwrap_or_default();
        let mut found = BTreeSet::new();
        let mut window = Vec::new();
        while file.by_ref().take(CHUNK).read_to_end(&mut window)? > 0 {
            found.extend(self.matches(&String::from_utf8_lossy(&window), &among));
            // A secret may begin in this chunk and end in the next one.
            window.drain(..window.len().saturating_sub(longest));
        }
        Ok(Self::named(found))
    }

    /// Arguments, which every user can read, and environments outside of the containers.
    fn processes(&mut self) {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return;
        };
        for process in processes.flatten() {
            let name = process.file_name();
            let Some(number) = name
                .to_str()
                .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            else {
                continue;
            };
            let directory = process.path();
            // A process may end at any time, and those of others can't be read.
            let read = |name: &str| {
                let bytes = std::fs::read(directory.join(name)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            let place = || {
                let command = read("comm");
                let place = format!("process {number} ({})", command.trim());
                match unit_of(&read("cgroup")) {
                    Some(unit) => format!("{place} of {unit}"),
                    None => place,
                }
            };
            for secret in self.found_in(&read("cmdline")) {
                self.add(
                    place(),
                    secret,
                    "in the arguments, which every user can read",
                );
            }
            let secrets = self.found_in(&read("environ"));
            if !secrets.is_empty() && !is_ours(&read("cgroup")) {
                let owner = std::fs::metadata(&directory).map_or(0, |metadata| metadata.uid());
                let problem = format!(
                    "in the environment, readable by all processes of {}",
                    user(owner)
                );
                for secret in secrets {
                    self.add(place(), secret, &problem);
                }
            }
        }
    }

    /// systemd tells every user the variables that it gives to units.
    async fn manager(&mut self) -> Result<()> {
        let mut command = Command::new("systemctl");
        if self.host.scope() == Scope::User {
            command.arg("--user");
        }
        let output = command
            .arg("show-environment")
            .stdin(Stdio::null())
            .output()
            .await
            .context("can't run systemctl")?;
        for secret in self.found_in(&String::from_utf8_lossy(&output.stdout)) {
            self.add(
                "systemctl show-environment",
                secret,
                "in the environment of systemd, which every user can read",
            );
        }
        Ok(())
    }

    /// What Podman shows of every container and of every secret.
    async fn containers(&mut self) -> Result<()> {
        let podman = self.host.podman().await?;
        let containers = podman.containers().await?;
        let hides = podman.version().await? >= PodmanVersion::HIDES_SECRETS;
        if !hides {
            self.host.progress.warn(
                "this Podman shows the secrets of a running container to whoever may inspect it, which is only its owner; Podman 5.3 and newer do not",
            );
        }
        // What it shows of ours is no mistake of anyone's here.
        let containers: Vec<&str> = containers
            .iter()
            .map(String::as_str)
            .filter(|name| hides || !Service::has_container(name))
            .collect();
        self.inspected(podman, "container", &containers).await?;
        let secrets = podman
            .run(["secret", "ls", "--format", "{{.Name}}"])
            .await?;
        let secrets: Vec<&str> = secrets.lines().collect();
        self.inspected(podman, "secret", &secrets).await
    }

    /// What Podman shows of each: asked at once, and one by one only where there is something.
    async fn inspected(&mut self, podman: &Podman, kind: &str, names: &[&str]) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        // Fails if one of them is gone by now, and still prints the others.
        let all = podman.output([&[kind, "inspect"], names].concat()).await?;
        if self
            .found_in(&String::from_utf8_lossy(&all.stdout))
            .is_empty()
        {
            return Ok(());
        }
        for name in names {
            let Ok(text) = podman.run([kind, "inspect", name]).await else {
                continue;
            };
            for secret in self.found_in(&text) {
                self.add(
                    format!("podman {kind} inspect {name}"),
                    secret,
                    "shown by Podman",
                );
            }
        }
        Ok(())
    }

    /// Every field of every entry that this scope's operator can read.
    async fn journal(&mut self) -> Result<()> {
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "--quiet", "--output=export"]);
        if self.host.scope() == Scope::User {
            command.arg(format!("_UID={}", Uid::effective()));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("can't run journalctl")?;
        let Some(stdout) = child.stdout.take() else {
            return Ok(());
        };
        let mut reader = BufReader::with_capacity(1 << 20, stdout);
        let mut line = Vec::new();
        let mut source = String::new();
        let mut found: BTreeSet<String> = BTreeSet::new();
        loop {
            line.clear();
            let length = reader
                .read_until(b'\n', &mut line)
                .await
                .context("can't read the journal")?;
            // An empty line ends an entry.
            if length <= 1 {
                for secret in std::mem::take(&mut found) {
                    let place = format!(
                        "journal of {}",
                        if source.is_empty() {
                            "this host"
                        } else {
                            &source
                        }
                    );
                    self.add(place, secret, "in the journal");
                }
                source.clear();
                if length == 0 {
                    break;
                }
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            found.extend(self.found_in(&text));
            for field in ["_SYSTEMD_USER_UNIT=", "_SYSTEMD_UNIT="] {
                if let Some(unit) = text.strip_prefix(field)
                    && (source.is_empty() || field == "_SYSTEMD_USER_UNIT=")
                {
                    unit.trim().clone_into(&mut source);
                }
            }
        }
        let status = child.wait().await.context("can't run journalctl")?;
        if !status.success() {
            self.skip("journal", &format!("journalctl failed ({status})"));
        }
        Ok(())
    }
}

/// Whether a control group is that of one of our containers, whose variables are meant for it.
fn is_ours(control_group: &str) -> bool {
    control_group.lines().any(|line| {
        let path = line.rsplit(':').next().unwrap_or_default();
        path.split('/').any(|part| {
            part.strip_suffix(".service")
                .is_some_and(|unit| unit == "litellm" || unit.starts_with("litellm-"))
                || part.starts_with("libpod-")
        })
    })
}

/// The service to which a process with this control group belongs: the innermost one.
fn unit_of(control_group: &str) -> Option<&str> {
    let path = control_group.trim_end().rsplit(':').next()?;
    path.rsplit('/').find(|part| part.ends_with(".service"))
}

fn user(number: u32) -> String {
    match User::from_uid(Uid::from_raw(number)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {number}"),
    }
}

/// Every regular file below `root` that `enter` does not keep out, with whether users other than
/// its owner can get at it. Links are not followed.
fn walk(root: &Path, enter: &dyn Fn(&Path) -> bool) -> Vec<(PathBuf, Metadata, bool)> {
    let mut files = Vec::new();
    let mut directories = vec![(root.to_owned(), true, 0)];
    while let Some((directory, open, depth)) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            if metadata.is_dir() {
                if depth < DEPTH && enter(&path) {
                    directories.push((path, open && metadata.mode() & 0o011 != 0, depth + 1));
                }
            } else if metadata.is_file() {
                let open = open && metadata.mode() & 0o044 != 0;
                files.push((path, metadata, open));
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Paths;

    #[test]
    fn secrets_in_files_of_any_size() {
        let host = Host::new(Paths::elsewhere(Scope::System));
        let mut audit = Audit {
            host: &host,
            patterns: Vec::new(),
            report: AuditReport {
                schema: 1,
                findings: BTreeSet::new(),
                skipped: Vec::new(),
            },
        };
        audit.look_for("KEY", "sk-é-0123456789", false);
        audit.look_for("OTHER", "another-secret", false);
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        let chunk = usize::try_from(CHUNK).unwrap();
        for before in [0, 1, chunk - 20, chunk - 5, chunk, 3 * chunk - 7] {
            let text = format!("{}sk-é-0123456789{}", ".".repeat(before), "x".repeat(chunk));
            std::fs::write(&path, text).unwrap();
            let found = audit.search(&path, |_| true).unwrap();
            assert_eq!(Vec::from_iter(found), ["KEY"], "{before}");
        }
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = audit.search(&path, |_| true).unwrap_err();
        assert_eq!(error.to_string(), "it is not a regular file");
    }

    #[test]
    fn units_of_processes() {
        for (group, expected) in [
            (
                "0::/litellm.slice/litellm-migrate.service/libpod-payload-abc\n",
                Some("litellm-migrate.service"),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/litellm.service\n",
                Some("litellm.service"),
            ),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("", None),
        ] {
            assert_eq!(unit_of(group), expected, "{group}");
        }
    }

    #[test]
    fn our_control_groups() {
        assert!(is_ours(
            "0::/litellm.slice/litellm-postgres.service/libpod-payload-abc\n"
        ));
        assert!(is_ours(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/litellm.service\n"
        ));
        assert!(!is_ours("0::/user.slice/user-0.slice/session-1.scope\n"));
        assert!(!is_ours("0::/system.slice/notlitellm.service\n"));
    }
}

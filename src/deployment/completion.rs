//! The deployment directory: what `generate` creates in it, and what it leaves alone.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::{Gid, Uid};

use crate::deployment::env_file::EnvFile;
use crate::deployment::extra::{self, Extra};
use crate::deployment::settings::{
    DEFAULT_LITELLM_IMAGE, DEFAULT_POSTGRES_NAME, Database, Settings, UNUSED_DATABASE,
    USE_DATABASE, check_address, names_unused_database, parse_env, read_env, wrong,
};
use crate::deployment::snapshot;
use crate::deployment::variables::SENTINEL_NODES;
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::{Paths, Scope};
use crate::image::ImageReference;
use crate::output::shell_word;
use crate::random::{Random, password, secret_key};
use crate::service::Service;

/// The first lines of a new `.env`.
pub(crate) const HEADER: &str = "\
# The settings of this LiteLLM deployment, and the only place for its secrets.
# Grammar: that of docker compose. After an edit: litellm-units apply
";

/// The users and groups of PostgreSQL in its official images.
const DEBIAN: u32 = 999;
const ALPINE: u32 = 70;
/// More than the number of any version takes.
const VERSION_LIMIT: u64 = 16;

const CONFIG: &str = "\
# LiteLLM's own configuration: https://docs.litellm.ai/docs/proxy/configs
# After an edit: litellm-units apply
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
  - model_name: claude-sonnet-4-5
    litellm_params:
      model: anthropic/claude-sonnet-4-5
      api_key: os.environ/ANTHROPIC_API_KEY
  # Answers without any provider, for a first test.
  - model_name: hello
    litellm_params:
      model: openai/hello
      api_key: none
      mock_response: Hello from your LiteLLM gateway.

litellm_settings:
  cache: true
  cache_params:
    type: redis
    host: os.environ/REDIS_HOST
    port: os.environ/REDIS_PORT
    password: os.environ/REDIS_PASSWORD

general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  database_url: os.environ/DATABASE_URL
";

/// What is already there, as far as it decides about secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Existing {
    /// `data/postgres` holds a cluster, which knows its password, or gets the data of an import: nothing
    /// is made up beside it.
    pub cluster: bool,
}

/// A completed `.env`.
#[derive(Debug)]
pub struct Completed {
    /// The file with everything in it.
    pub env: EnvFile,
    /// One line for each thing that was added or replaced; names only.
    pub changes: Vec<String>,
}

/// Adds to a `.env` what is missing in it, and touches nothing else.
///
/// # Errors
/// When `text` can't be parsed, or a value is missing that only the operator can know.
pub fn complete(text: &str, path: &Path, found: Existing, random: Random<'_>) -> Result<Completed> {
    let env = parse_env(text, path)?;
    check_address(&env, path)?;
    // Beside a cluster, the variable has had no effect so far.
    if !found.cluster && names_unused_database(&env) {
        return Err(wrong(
            &env,
            path,
            "DATABASE_HOST",
            UNUSED_DATABASE,
            USE_DATABASE,
        ));
    }
    let mut editor = Editor {
        env,
        path,
        changes: Vec::new(),
    };
    let external_database = editor.has("DATABASE_URL");

    if found.cluster {
        editor.refuse_invention()?;
    }

    // LiteLLM encrypts with the master key where it has no salt key, so what an existing
    // database holds stays readable only if the salt key is that master key.
    let inherited_salt = if found.cluster || external_database {
        editor
            .env
            .get("LITELLM_MASTER_KEY")
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
    } else {
        None
    };

    editor.fill(
        "LITELLM_IMAGE",
        &["The gateway's version. After an edit: litellm-units upgrade"],
        |value| value.is_empty() || value.contains("vX.Y.Z"),
        || Ok(DEFAULT_LITELLM_IMAGE.to_owned()),
    )?;
    editor.fill(
        "LITELLM_MASTER_KEY",
        &["For bootstrap only: give everyone else a key of their own (litellm-units key)"],
        |value| value.is_empty() || value == "sk-your-secure-master-key",
        || secret_key(random),
    )?;
    let (salt_comment, salt) = match inherited_salt {
        Some(key) => (
            "Encrypts credentials in the database: only `litellm-units secrets rotate salt` may change it. At first the same as the master key, with which LiteLLM encrypted until now",
            key,
        ),
        None => (
            "Encrypts credentials in the database: only `litellm-units secrets rotate salt` may change it",
            secret_key(random)?,
        ),
    };
    // An empty one is what an existing database is encrypted with; only without any does LiteLLM take the master key.
    let may_be_empty = found.cluster || external_database;
    editor.fill(
        "LITELLM_SALT_KEY",
        &[salt_comment],
        |value| value.is_empty() && !may_be_empty,
        || Ok(salt),
    )?;

    if !external_database {
        editor.fill(
            "POSTGRES_USER",
            &["The local PostgreSQL"],
            str::is_empty,
            || Ok(DEFAULT_POSTGRES_NAME.to_owned()),
        )?;
        editor.fill(
            "POSTGRES_PASSWORD",
            &[],
            |value| value.is_empty() || (value == "litellm_password_change_me" && !found.cluster),
            || password(random),
        )?;
        editor.fill("POSTGRES_DB", &[], str::is_empty, || {
            Ok(DEFAULT_POSTGRES_NAME.to_owned())
        })?;
    }
    if !editor.has("REDIS_HOST") && !editor.has(SENTINEL_NODES) {
        editor.fill(
            "REDIS_PASSWORD",
            &["The local Redis"],
            str::is_empty,
            || password(random),
        )?;
    }
    editor.optional(
        "OPENAI_API_KEY",
        "Providers: name each key that config/litellm-config.yaml refers to",
        Some("sk-your-openai-key"),
    )?;
    editor.optional(
        "ANTHROPIC_API_KEY",
        "As above, for Anthropic's models",
        Some("sk-your-anthropic-key"),
    )?;
    editor.optional(
        "UI_USERNAME",
        "Login of the web interface at /ui; while empty: admin",
        None,
    )?;
    editor.optional("UI_PASSWORD", "While empty: the master key", None)?;
    editor.optional(
        "PROXY_BASE_URL",
        "The https:// address under which a reverse proxy publishes the gateway",
        None,
    )?;
    Ok(Completed {
        env: editor.env,
        changes: editor.changes,
    })
}

struct Editor<'a> {
    env: EnvFile,
    path: &'a Path,
    changes: Vec<String>,
}

impl Editor<'_> {
    fn has(&self, name: &str) -> bool {
        self.env.get(name).is_some_and(|value| !value.is_empty())
    }

    /// Refuses to make up what an existing database depends on.
    fn refuse_invention(&self) -> Result<()> {
        const RELEASE: &str = "write the image of the gateway that used the database last, since an older one can't use its schema";
        const KEY: &str = "write the gateway's master key into the file; without LITELLM_SALT_KEY, LiteLLM has encrypted with it";
        const CLUSTER: &str = "write the value of that database into the file";
        let always = [("LITELLM_IMAGE", RELEASE), ("LITELLM_MASTER_KEY", KEY)];
        let local =
            ["POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"].map(|name| (name, CLUSTER));
        let local = local.into_iter().filter(|_| !self.has("DATABASE_URL"));
        match always.into_iter().chain(local).find(|(name, _)| !self.has(name)) {
            None => Ok(()),
            Some((name, how)) => Err(Failure::config(format!(
                "{}: {name} has no value, but data/postgres already holds a database that depends on it",
                self.path.display()
            ))
            .hint(format!("{how}; or move data/postgres away to start with an empty database"))
            .into()),
        }
    }

    /// Gives `name` the value of `make` if it is absent or `missing` says that it counts as such.
    fn fill(
        &mut self,
        name: &str,
        comment: &[&str],
        missing: impl FnOnce(&str) -> bool,
        make: impl FnOnce() -> Result<String>,
    ) -> Result<()> {
        match self.env.get(name) {
            None => {
                let value = make()?;
                self.append(comment, name, &value)?;
                self.changes.push(format!("add {name}"));
            }
            Some(value) if missing(value) => {
                let value = make()?;
                self.set(name, &value)?;
                self.changes.push(format!("set {name}"));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn optional(&mut self, name: &str, comment: &str, placeholder: Option<&str>) -> Result<()> {
        match self.env.get(name) {
            None => {
                self.append(&[comment], name, "")?;
                self.changes.push(format!("add empty {name}"));
            }
            Some(value) if Some(value) == placeholder => {
                self.set(name, "")?;
                self.changes
                    .push(format!("empty {name}, which held a placeholder"));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.env
            .set(name, value)
            .path_context("can't edit", self.path)
    }

    fn append(&mut self, comment: &[&str], name: &str, value: &str) -> Result<()> {
        self.env
            .append(comment, name, value)
            .path_context("can't edit", self.path)
    }
}

/// A directory that a deployment needs.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    mode: u32,
    owner: Option<(Uid, Gid)>,
}

/// What has to be done to the deployment directory, worked out before anything is touched.
#[derive(Debug)]
pub struct Completion {
    directories: Vec<Directory>,
    env: Option<String>,
    /// With its mode.
    config: Option<(Vec<u8>, u32)>,
    paths: Paths,
    /// The settings as they will be.
    pub settings: Settings,
    /// The units of the operator's own.
    pub extras: Vec<Extra>,
    /// Warnings about `.env` and `extra.d/` that do not stop anything, with file and line.
    pub warnings: Vec<String>,
    /// What will be done.
    pub changes: Vec<Change>,
}

/// One thing that is done to the deployment directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A directory is made, or given to the user and group of a container.
    Directory {
        /// Where.
        path: PathBuf,
        /// User and group, if they are not the caller's.
        owner: Option<(Uid, Gid)>,
    },
    /// Variables are added to `.env`.
    Variables {
        /// The file.
        path: PathBuf,
        /// What becomes of each, by its name.
        changes: Vec<String>,
    },
    /// `.env` becomes private.
    Mode(PathBuf),
    /// The gateway's configuration is written.
    Configuration(PathBuf),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory { path, owner } => {
                write!(f, "directory {}", path.display())?;
                match owner {
                    Some((uid, gid)) => write!(f, " for {uid}:{gid}"),
                    None => Ok(()),
                }
            }
            Self::Variables { path, changes } => {
                write!(f, "{}: {}", path.display(), changes.join(", "))
            }
            Self::Mode(path) => {
                write!(f, "{}: set mode 0600, others could read it", path.display())
            }
            Self::Configuration(path) => path.display().fmt(f),
        }
    }
}

impl Completion {
    /// Compares what is on disk with what a deployment needs.
    ///
    /// # Errors
    /// When `.env` is wrong, or holds settings that the data on disk contradicts.
    pub fn new(paths: &Paths, random: Random<'_>) -> Result<Self> {
        let env_path = paths.env_file();
        let before = match env_path.try_exists() {
            Ok(false) => None,
            _ => Some(read_env(&env_path)?),
        };
        let cluster = paths.postgres_data().join("PG_VERSION");
        let found = Existing {
            cluster: cluster.exists() || paths.import_record().exists(),
        };
        let completed = complete(
            before.as_deref().unwrap_or(HEADER),
            &env_path,
            found,
            random,
        )?;
        let settings = Settings::from_env(&completed.env, &env_path)?;
        check_cluster(paths, &settings, &cluster)?;
        check_layout(paths, &settings)?;

        let mut changes = Vec::new();
        let directories = missing_directories(paths, &settings)?;
        for directory in &directories {
            changes.push(Change::Directory {
                path: directory.path.clone(),
                owner: directory.owner,
            });
        }
        let env = (before.as_deref() != Some(completed.env.text()))
            .then(|| completed.env.text().to_owned());
        if env.is_some() {
            changes.push(Change::Variables {
                path: env_path.clone(),
                changes: completed.changes,
            });
        } else if files::mode(&env_path)? != 0o600 {
            changes.push(Change::Mode(env_path.clone()));
        }
        let config_path = paths.config_file();
        let mut restored = None;
        let mut config = None;
        if !config_path.exists() {
            changes.push(Change::Configuration(config_path.clone()));
            config = Some(match snapshot::last_good_config(paths) {
                Some(kept) => {
                    restored = Some(format!(
                        "{} was missing, and is restored from the last configuration with which the gateway was ready",
                        config_path.display()
                    ));
                    let text = std::fs::read(&kept).path_context("can't read", &kept)?;
                    (text, files::mode(&kept)?)
                }
                None => (CONFIG.into(), 0o644),
            });
        }
        let extras = extra::load(paths, &completed.env)?;
        let warnings = completed.env.warnings().iter();
        let warnings = warnings
            .map(|warning| format!("{}, {warning}", env_path.display()))
            .chain(extras.iter().flat_map(|extra| extra.warnings.clone()))
            .chain(restored)
            .collect();
        Ok(Self {
            extras,
            directories,
            env,
            config,
            paths: paths.clone(),
            settings,
            warnings,
            changes,
        })
    }

    /// Carries the plan out; each file appears complete and with its mode, or not at all.
    ///
    /// # Errors
    /// When the disk refuses; what was done until then stays and is not done again.
    pub fn apply(&self) -> Result<()> {
        for directory in &self.directories {
            files::make_directory(&directory.path, directory.mode)?;
            if let Some((uid, gid)) = directory.owner {
                std::os::unix::fs::chown(&directory.path, Some(uid.as_raw()), Some(gid.as_raw()))
                    .with_context(|| {
                    format!("can't give {} to {uid}:{gid}", directory.path.display())
                })?;
            }
        }
        let env_path = self.paths.env_file();
        if let Some(text) = &self.env {
            files::write_atomically(&env_path, text.as_bytes(), 0o600)?;
        } else if files::mode(&env_path)? != 0o600 {
            files::set_mode(&env_path, 0o600)?;
        }
        if let Some((text, mode)) = &self.config {
            files::write_atomically(&self.paths.config_file(), text, *mode)?;
        }
        Ok(())
    }
}

/// The user and group numbers under which the official image of `service` runs.
#[must_use]
pub fn container_owner(service: Service, image: &ImageReference) -> Option<(u32, u32)> {
    match (service, image.is_alpine()) {
        (Service::Postgres, true) => Some((ALPINE, ALPINE)),
        (Service::Redis, true) => Some((999, 1000)),
        (Service::Postgres, false) => Some((DEBIAN, DEBIAN)),
        (Service::Redis, false) => Some((999, 999)),
        (Service::Migrate | Service::Litellm | Service::Entrance | Service::Extra(_), _) => None,
    }
}

/// Why the server in `image` must not get the cluster of this owner: the C libraries of Alpine and Debian sort text
/// differently, so each would misread the indexes of the other.
#[must_use]
pub fn other_library(owner: u32, image: &ImageReference) -> Option<Failure> {
    let (found, wanted) = match (owner, image.is_alpine()) {
        (ALPINE, false) => ("Alpine", "Debian"),
        (DEBIAN, true) => ("Debian", "Alpine"),
        _ => return None,
    };
    let suffix = if owner == ALPINE { "-alpine" } else { "" };
    let version = image.postgres_major();
    let version = version.map_or_else(|| "VERSION".to_owned(), |number| number.to_string());
    Some(
        Failure::config(format!(
            "data/postgres holds a cluster of {found}'s PostgreSQL (user {owner}), but the image is that of {wanted}, whose order of text differs: {image}"
        ))
        .hint(format!(
            "do not change the owner, which would damage indexes: set POSTGRES_IMAGE in .env to the image of that cluster, e.g. docker.io/library/postgres:{version}{suffix}; then, to change it: `litellm-units upgrade --postgres IMAGE`"
        )),
    )
}

fn missing_directories(paths: &Paths, settings: &Settings) -> Result<Vec<Directory>> {
    let of_caller = |path, mode| Directory {
        path,
        mode,
        owner: None,
    };
    let mut wanted = vec![
        of_caller(paths.deployment.clone(), 0o755),
        of_caller(paths.config(), 0o755),
        of_caller(paths.certificates(), 0o755),
        of_caller(paths.credential_files(), 0o700),
        of_caller(paths.logs(), 0o750),
        of_caller(paths.data(), 0o711),
    ];
    for (service, path) in [
        (Service::Postgres, paths.postgres_data()),
        (Service::Redis, paths.redis_data()),
    ] {
        if let Some(image) = settings.image(service) {
            // Rootless, the container's user is mapped to the caller, who owns what it creates.
            let owner = match paths.scope {
                Scope::System => container_owner(service, image)
                    .map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
                Scope::User => None,
            };
            wanted.push(Directory {
                path,
                mode: 0o700,
                owner,
            });
        }
    }
    let mut missing = Vec::new();
    for directory in wanted {
        let keep = match std::fs::metadata(&directory.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(error).path_context("can't examine", &directory.path),
            Ok(found) if !found.is_dir() => {
                return Err(Failure::new(format!(
                    "{} is not a directory",
                    directory.path.display()
                ))
                .hint("move it away, then run the same command again")
                .into());
            }
            // An empty directory may be given away; one with data belongs to whoever wrote it.
            Ok(found) => {
                directory
                    .owner
                    .is_some_and(|(uid, _)| found.uid() != uid.as_raw())
                    && std::fs::read_dir(&directory.path)
                        .is_ok_and(|mut list| list.next().is_none())
            }
        };
        if keep {
            missing.push(directory);
        }
    }
    Ok(missing)
}

/// The images of PostgreSQL 18 keep the cluster deeper by default. The server would begin an empty one beside it.
fn check_layout(paths: &Paths, settings: &Settings) -> Result<()> {
    if !matches!(settings.database, Database::Local { .. }) {
        return Ok(());
    }
    let data = paths.postgres_data();
    // What can't be read belongs to a server of this program.
    let entries = std::fs::read_dir(&data).into_iter().flatten().flatten();
    let mut deeper = entries.map(|entry| entry.path().join("docker"));
    let Some(found) = deeper.find(|path| path.join("PG_VERSION").exists()) else {
        return Ok(());
    };
    let words = [
        shell_word(&found),
        shell_word(&data),
        shell_word(format!("{}.new", data.display())),
        shell_word(format!("{}.old", data.display())),
    ];
    let [from, to, new, old] = words;
    let (data, found) = (data.display(), found.display());
    Err(Failure::config(format!(
        "the cluster of PostgreSQL is in {found}, but the server expects it in {data}"
    ))
    .hint(format!(
        "while it is stopped, move it: `mv {from} {new} && mv {to} {old} && mv {new} {to}`"
    ))
    .into())
}

/// A PostgreSQL server refuses a cluster of another major version, so say it before the start. It does not refuse one of
/// another C library.
fn check_cluster(paths: &Paths, settings: &Settings, version_file: &Path) -> Result<()> {
    let Database::Local { image, .. } = &settings.database else {
        return Ok(());
    };
    // It belongs to the container's user, who could put anything there.
    let mut text = String::new();
    let mut owner = None;
    let read = files::open_regular(version_file).and_then(|file| {
        owner = file.metadata().ok().map(|found| found.uid());
        file.take(VERSION_LIMIT).read_to_string(&mut text)
    });
    if read.is_err() {
        return Ok(());
    }
    // Rootless, the container's user is mapped to the caller.
    let owner = owner.filter(|_| paths.scope == Scope::System);
    let other = owner.and_then(|owner| other_library(owner, image));
    let (cluster, server) = (text.trim().parse::<u32>().ok(), image.postgres_major());
    let Some((cluster, _)) = cluster
        .zip(server)
        .filter(|(cluster, server)| cluster != server)
    else {
        return other.map_or(Ok(()), |failure| Err(failure.into()));
    };
    let suffix = if image.is_alpine() == other.is_none() {
        "-alpine"
    } else {
        ""
    };
    Err(Failure::config(format!(
        "{} holds a PostgreSQL {cluster} cluster, but the image is {image}",
        version_file.parent().unwrap_or(version_file).display()
    ))
    .hint(format!(
        "set POSTGRES_IMAGE in {} to a version {cluster} image, e.g. docker.io/library/postgres:{cluster}{suffix}; then, to move the data to a later version: `litellm-units upgrade --postgres IMAGE`",
        paths.env_file().display()
    ))
    .into())
}

//! What a running container was started with, so that an edit since then can be named and only
//! the units that it concerns are restarted.
//!
//! `ExecStartPre=` records a keyed hash of each input beside the per-boot state; comparing it with
//! the current inputs costs no call of Podman and reveals no value.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::deployment::entrance;
use crate::deployment::extra;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::listen::Listen;
use crate::deployment::settings::{SecretTarget, Settings};
use crate::deployment::variables::LISTEN;
use crate::error::{PathContext, Result};
use crate::host::files;
use crate::host::files::mounted_files;
use crate::host::paths::Paths;
use crate::random::{hex, kernel_random};
use crate::service::{Instance, Service};

/// The record of one container's inputs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Applied {
    salt: String,
    inputs: BTreeMap<String, String>,
    /// For sealed inputs, what they are made of: while that is the same, so are they, and none has
    /// to be opened to tell.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    sealed: BTreeMap<String, String>,
}

/// One difference between the inputs of a running container and the current ones.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Difference {
    /// A variable, a file, or `unit`.
    pub input: String,
    /// How it differs.
    pub kind: DifferenceKind,
}

impl Difference {
    /// Whether the unit itself differs: only a restart takes that over.
    pub(crate) fn is_of_unit(&self) -> bool {
        self.input == "unit"
    }
}

/// How an input differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DifferenceKind {
    /// The running container does not have it.
    Added,
    /// The running container has another value.
    Changed,
    /// Only the running container has it.
    Removed,
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.input.as_str() {
            "unit" => write!(f, "the unit {}", self.kind),
            input => write!(f, "{input} {}", self.kind),
        }
    }
}

impl Applied {
    /// Hashes the inputs that `instance` would be started with now.
    pub(crate) fn now(paths: &Paths, settings: &Settings, instance: Instance) -> Result<Self> {
        let mut salt = [0; 16];
        kernel_random(&mut salt)?;
        let none = Self {
            salt: hex(&salt),
            inputs: BTreeMap::new(),
            sealed: BTreeMap::new(),
        };
        none.again(paths, settings, instance)
    }

    /// The same record with the current inputs.
    fn again(&self, paths: &Paths, settings: &Settings, instance: Instance) -> Result<Self> {
        let service = instance.service();
        let (mut inputs, mut sealed) = (BTreeMap::new(), BTreeMap::new());
        let hash = |bytes: &[u8]| hash(&self.salt, bytes);
        let mut add = |name: String, bytes: &[u8]| {
            inputs.insert(name, hash(bytes));
        };
        if let Ok(text) = std::fs::read_to_string(paths.unit_file(instance)) {
            let images = ImagesLock::load(&paths.images_lock())?;
            add("unit".into(), pinned(&text, &images).as_bytes());
        }
        let mut same = Vec::new();
        for secret in extra::container_secrets(paths, settings, service)? {
            let name = match secret.target {
                SecretTarget::Variable => secret.name,
                SecretTarget::File => format!("/run/secrets/{}", secret.name),
            };
            // Which value the program gives is no edit: it counts from the next start on.
            if let Some(lookup) = secret.value.external() {
                add(name, lookup.reference().as_bytes());
                continue;
            }
            if let Some(made_of) = secret.value.sealed() {
                let made_of = hash(made_of.as_bytes());
                let before = self.sealed.get(&name) == Some(&made_of);
                sealed.insert(name.clone(), made_of);
                if let Some(value) = self.inputs.get(&name).filter(|_| before) {
                    same.push((name, value.clone()));
                    continue;
                }
            }
            add(name, secret.value.open()?.expose_secret().as_bytes());
        }
        let files = match service {
            Service::Litellm => mounted_files(&paths.deployment)?,
            Service::Extra(_) => extra::mounted(paths, service)?,
            Service::Entrance => entrance::inputs(paths),
            _ => Vec::new(),
        };
        for path in files {
            let name = path
                .strip_prefix(&paths.deployment)
                .unwrap_or(&path)
                .display()
                .to_string();
            let bytes = std::fs::read(&path).path_context("can't read", &path)?;
            add(name, &bytes);
        }
        inputs.extend(same);
        Ok(Self {
            salt: self.salt.clone(),
            inputs,
            sealed,
        })
    }

    /// The same record with another content of a file of the deployment.
    pub(crate) fn with_file(mut self, name: &str, bytes: &[u8]) -> Self {
        let hash = hash(&self.salt, bytes);
        self.inputs.insert(name.to_owned(), hash);
        self
    }

    /// Records that the container starts with these inputs.
    pub(crate) fn record(&self, paths: &Paths, instance: Instance) -> Result<()> {
        files::save_record(&record_file(paths, instance), self)
    }

    /// Removes the record.
    pub(crate) fn forget(paths: &Paths, instance: Instance) -> Result<()> {
        files::remove_existing(&record_file(paths, instance))
    }

    fn load(paths: &Paths, instance: Instance) -> Option<Self> {
        let text = std::fs::read(record_file(paths, instance)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// After secrets were sealed or unsealed: if the inputs are the same, notes what they are made
    /// of now.
    pub(crate) fn renew(paths: &Paths, settings: &Settings, instance: Instance) -> Result<()> {
        let Some(before) = Self::load(paths, instance) else {
            return Ok(());
        };
        let now = before.again(paths, settings, instance)?;
        if now.inputs == before.inputs && now != before {
            now.record(paths, instance)?;
        }
        Ok(())
    }

    /// The differences between the current inputs and those of the running container.
    /// Empty when there is no record: then the container does not run, or never did.
    pub(crate) fn differences(
        paths: &Paths,
        settings: &Settings,
        instance: Instance,
    ) -> Result<Vec<Difference>> {
        let Some(before) = Self::load(paths, instance) else {
            return Ok(Vec::new());
        };
        let now = before.again(paths, settings, instance)?;
        let mut differences: Vec<Difference> = now
            .inputs
            .iter()
            .filter_map(|(input, hash)| {
                let kind = match before.inputs.get(input) {
                    None => DifferenceKind::Added,
                    Some(old) if old != hash => DifferenceKind::Changed,
                    Some(_) => return None,
                };
                Some(Difference {
                    input: input.clone(),
                    kind,
                })
            })
            .collect();
        differences.extend(
            before
                .inputs
                .keys()
                .filter(|input| !now.inputs.contains_key(*input))
                .map(|input| Difference {
                    input: input.clone(),
                    kind: DifferenceKind::Removed,
                }),
        );
        // No input of the container: it is compared with the addresses that systemd has.
        if instance == Service::Litellm.into()
            && Listen::installed(paths).is_some_and(|listen| listen != settings.listen)
        {
            differences.push(Difference {
                input: LISTEN.into(),
                kind: DifferenceKind::Changed,
            });
        }
        differences.sort();
        Ok(differences)
    }
}

fn hash(salt: &str, bytes: &[u8]) -> String {
    hex(&Sha256::new()
        .chain_update(salt)
        .chain_update(bytes)
        .finalize())
}

/// The unit with the digest of its image: a first start may pull a tag, and that tag's digest,
/// written into the unit afterwards, is no other image.
fn pinned(unit: &str, images: &ImagesLock) -> String {
    unit.lines()
        .fold(String::with_capacity(unit.len() + 128), |mut text, line| {
            match line.strip_prefix("Image=") {
                Some(image) => text.extend(["Image=", &images.pin_text(image), "\n"]),
                None => text.extend([line, "\n"]),
            }
            text
        })
}

fn record_file(paths: &Paths, instance: Instance) -> PathBuf {
    paths
        .runtime_state()
        .join(format!("{}.applied", instance.container()))
}

//! What differs between the unit files that should be there and those that are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use similar::TextDiff;

use crate::deployment::entrance;
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::quadlet::{self, MARKER_PREFIX, Place, UnitFile, dev, drop_ins};
use crate::service::{Instance, Service};

/// One file that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitChange {
    /// The file.
    pub path: PathBuf,
    /// What is there now, if anything.
    pub before: Option<String>,
    /// What shall be there, if anything.
    pub after: Option<String>,
}

impl UnitChange {
    /// `create`, `update` or `remove`.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match (&self.before, &self.after) {
            (None, _) => "create",
            (_, None) => "remove",
            _ => "update",
        }
    }

    /// Whether a further gateway comes or goes.
    #[must_use]
    pub fn is_further_gateway(&self) -> bool {
        (self.before.is_none() || self.after.is_none())
            && Instance::further(Instance::MOST).any(|other| self.path.ends_with(other.quadlet()))
    }

    /// The change as a unified diff.
    #[must_use]
    pub fn diff(&self) -> String {
        let path = self.path.display();
        let old = self
            .before
            .as_ref()
            .map_or("/dev/null".to_owned(), |_| path.to_string());
        let new = self
            .after
            .as_ref()
            .map_or("/dev/null".to_owned(), |_| path.to_string());
        TextDiff::from_lines(
            self.before.as_deref().unwrap_or_default(),
            self.after.as_deref().unwrap_or_default(),
        )
        .unified_diff()
        .header(&old, &new)
        .to_string()
    }
}

/// Every difference, in an order in which an interruption leaves nothing that starts wrongly:
/// containers that are removed, then what is changed, the gateway at the end, and then units that are
/// removed, which nothing requires any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitPlan {
    /// The differences; none when all is as it should be.
    pub changes: Vec<UnitChange>,
}

impl UnitPlan {
    /// Compares `wanted` with what is in the directories of `paths`.
    ///
    /// # Errors
    /// When a directory can't be read, or a file that is not ours is in the way.
    pub fn new(paths: &Paths, wanted: &[UnitFile]) -> Result<Self> {
        Self::among(paths, wanted, |name| !dev::is_dev(name))
    }

    /// The same for the units of development.
    ///
    /// # Errors
    /// As [`UnitPlan::new`].
    pub fn of_dev(paths: &Paths, wanted: &[UnitFile]) -> Result<Self> {
        Self::among(paths, wanted, dev::is_dev)
    }

    fn among(paths: &Paths, wanted: &[UnitFile], is_meant: fn(&str) -> bool) -> Result<Self> {
        let (mut changes, mut last) = (Vec::new(), Vec::new());
        for place in [Place::Unit, Place::Quadlet] {
            let directory = directory(paths, place);
            let mut names = present(directory, place)?;
            names.retain(|name| is_meant(name));
            for name in names {
                let path = directory.join(&name);
                if wanted
                    .iter()
                    .any(|file| file.place == place && file.name == name)
                {
                    continue;
                }
                if let Some(before) = read_ours(&path)?.ours() {
                    let removals = match place {
                        Place::Quadlet => &mut changes,
                        Place::Unit => &mut last,
                    };
                    removals.push(UnitChange {
                        path,
                        before: Some(before),
                        after: None,
                    });
                }
            }
        }
        for file in wanted {
            let path = directory(paths, file.place).join(file.name);
            let before = match read_ours(&path)? {
                OnDisk::Nothing => None,
                OnDisk::Ours(text) => Some(text),
                OnDisk::Foreign => {
                    return Err(Failure::new(format!(
                        "{} was not written by litellm-units, so it is not replaced",
                        path.display()
                    ))
                    .hint("move it away, then run the same command again")
                    .into());
                }
            };
            if before.as_deref() != Some(file.text.as_str()) {
                changes.push(UnitChange {
                    path,
                    before,
                    after: Some(file.text.clone()),
                });
            }
        }
        changes.append(&mut last);
        Ok(Self { changes })
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// All differences as one unified diff.
    #[must_use]
    pub fn diff(&self) -> String {
        self.changes.iter().fold(String::new(), |mut text, change| {
            // Writing to a String can't fail.
            let _ = write!(text, "{}", change.diff());
            text
        })
    }

    /// The same for a person: a further gateway that comes or goes is a line, since its file is that of the first.
    #[must_use]
    pub fn summary(&self) -> String {
        let words = |change: &UnitChange| {
            if change.is_further_gateway() {
                let first = Instance::from(Service::Litellm).quadlet();
                let path = change.path.display();
                format!("# {} {path}, another instance of {first}\n", change.verb())
            } else {
                change.diff()
            }
        };
        self.changes.iter().map(words).collect()
    }

    /// Carries the plan out, one atomic step per file.
    ///
    /// # Errors
    /// When the disk refuses. Each file is then either old or new, and the next run continues.
    pub fn apply(&self) -> Result<()> {
        for change in &self.changes {
            let directory = change
                .path
                .parent()
                .context("a unit file without a directory")?;
            if let Some(text) = &change.after {
                std::fs::create_dir_all(directory).path_context("can't create", directory)?;
                // Lines of the operator's own are in it, which may hold a secret.
                let is_secret = change.path.ends_with(entrance::CONFIGURATION)
                    || drop_ins::is_copy(&change.path);
                let mode = if is_secret { 0o600 } else { 0o644 };
                files::write_atomically(&change.path, text.as_bytes(), mode)?;
            } else {
                std::fs::remove_file(&change.path).path_context("can't remove", &change.path)?;
                files::sync_directory(directory)?;
                if drop_ins::is_copy(&change.path) {
                    // The operator may have others there.
                    let _ = std::fs::remove_dir(directory);
                }
            }
        }
        Ok(())
    }
}

fn directory(paths: &Paths, place: Place) -> &Path {
    match place {
        Place::Quadlet => &paths.quadlets,
        Place::Unit => &paths.units,
    }
}

/// The names in `directory` that a file of ours could have.
fn present(directory: &Path, place: Place) -> Result<Vec<String>> {
    let entries = files::entries(directory)?;
    let names = entries.iter().filter_map(|path| files::name(path));
    let ours = names.filter(|name| quadlet::is_ours_by_name(place, name));
    let ours = ours.map(str::to_owned);
    let copies = drop_ins::present(directory, place).map(str::to_owned);
    Ok(ours.chain(copies).collect())
}

enum OnDisk {
    Nothing,
    Ours(String),
    Foreign,
}

impl OnDisk {
    fn ours(self) -> Option<String> {
        match self {
            Self::Ours(text) => Some(text),
            Self::Nothing | Self::Foreign => None,
        }
    }
}

fn read_ours(path: &Path) -> Result<OnDisk> {
    // A link (a masked unit, a file in another directory) was made by an operator.
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Ok(OnDisk::Foreign),
        _ => {}
    }
    Ok(match files::read_existing(path)?.map(String::from_utf8) {
        None => OnDisk::Nothing,
        Some(Ok(text)) if text.starts_with(MARKER_PREFIX) => OnDisk::Ours(text),
        Some(_) => OnDisk::Foreign,
    })
}

//! `ledger.jsonl`: which releases ran, and every upgrade and rollback step by step, so that an
//! interrupted one can be finished or rolled back, and any release can be rolled back to.
//!
//! A line is appended and synced before the next step begins. The caller holds the operation lock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize, Serializer};

use crate::deployment::operation_id::OperationId;
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::record;
use crate::image::Image;
use crate::service::Service;

/// Of how many releases the backups are kept, whatever their age.
const PROTECTED: usize = 5;

/// The images of the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Images(BTreeMap<Service, Image>);

impl Images {
    /// The gateway's.
    #[must_use]
    pub fn gateway(&self) -> Option<&Image> {
        self.0.get(&Service::Litellm)
    }

    /// That of a service.
    pub(crate) fn of(&self, service: Service) -> Option<&Image> {
        self.0.get(&service)
    }

    /// Every image, in start order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Image> {
        self.0.values()
    }

    /// Adds or replaces the image of a service.
    pub fn insert(&mut self, service: Service, image: Image) {
        self.0.insert(service, image);
    }
}

impl FromIterator<(Service, Image)> for Images {
    fn from_iter<I: IntoIterator<Item = (Service, Image)>>(images: I) -> Self {
        Self(images.into_iter().collect())
    }
}

/// Sorted by name, as in every ledger and manifest so far; a service itself sorts by the order of starts.
impl Serialize for Images {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let images = self
            .0
            .iter()
            .map(|(service, image)| (service.name(), image));
        serializer.collect_map(images.collect::<BTreeMap<_, _>>())
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct LedgerRecord {
    /// When, in RFC 3339.
    pub at: String,
    /// The user at whose command.
    pub by: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The event of a line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The gateway was ready with these images.
    Release(RecordedRelease),
    /// A release change begins.
    Begun(Operation),
    /// It came that far.
    Reached(Reached),
    /// The operation ended.
    Ended(Ended),
}

/// A release that ran.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RecordedRelease {
    /// By which it is named: 1 is the first one here.
    pub number: u32,
    /// Its images.
    pub images: Images,
    /// The command that brought it.
    pub how: String,
}

impl RecordedRelease {
    /// The gateway's image.
    #[must_use]
    pub fn gateway(&self) -> Option<&Image> {
        self.images.gateway()
    }

    /// Whether both have the same image of the gateway.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self.gateway(), other.gateway()) {
            (Some(image), Some(other)) => image.identity.is(&other.identity),
            _ => false,
        }
    }
}

/// A change from one release to another.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Operation {
    /// Its name: a time and some digits, as that of a backup.
    pub operation: OperationId,
    /// Whether to a newer release or back to an earlier one.
    pub verb: ReleaseVerb,
    /// The images before.
    pub from: Images,
    /// The reference of the gateway's image afterwards.
    pub to: String,
    /// The kept configuration to roll back to.
    pub configuration: String,
    /// The kept configuration to go to.
    pub wanted: String,
    /// The backup whose data comes back with the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<OperationId>,
    /// Whether the backup that it makes may be restored if the previous release can't serve otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restore_data: bool,
}

/// The two kinds of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseVerb {
    /// To the image that `.env` or `--image` names.
    Upgrade,
    /// To a release of the ledger.
    Rollback,
}

impl fmt::Display for ReleaseVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Upgrade => "upgrade",
            Self::Rollback => "rollback",
        })
    }
}

/// A step that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Reached {
    /// Of which operation.
    pub operation: OperationId,
    /// The step.
    pub step: Step,
    /// The backup that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<OperationId>,
    /// The hash of the database's schema before the migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
}

/// The steps of an operation, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// It was announced; nothing is done.
    Begun,
    /// The images are here.
    Pulled,
    /// The backup is complete.
    BackedUp,
    /// The database has the schema of the new release.
    Migrated,
    /// Configuration, units and what runs are being replaced.
    Switching,
    /// The gateway was ready with the new release.
    Ready,
    /// It failed and is being undone.
    Undoing,
    /// The data of the backup is in place again.
    DataBack,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun => "before the first step",
            Self::Pulled => "after the pull",
            Self::BackedUp => "after the backup",
            Self::Migrated => "after the migration",
            Self::Switching => "during the switch",
            Self::Ready => "after the gateway was ready",
            Self::Undoing | Self::DataBack => "during its rollback",
        })
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Ended {
    /// Which one.
    pub operation: OperationId,
    /// Whether the new release stayed.
    pub outcome: OperationOutcome,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The two ends of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationOutcome {
    /// The new release serves.
    Done,
    /// The previous release is running again.
    Undone,
}

/// An operation that has begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What it is.
    pub operation: Operation,
    /// The last step that is complete.
    pub step: Step,
    /// The backup that it made.
    pub backup: Option<OperationId>,
    /// The hash of the schema before the migration.
    pub schema: Option<String>,
    /// Whether [`Step::Switching`] was reached.
    pub switched: bool,
}

/// All of it.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    records: Vec<LedgerRecord>,
    /// How many bytes of the file are complete lines.
    complete: u64,
}

impl Ledger {
    /// Reads the ledger of a deployment; a missing one is empty. A last line that a loss of power
    /// cut off counts as not written.
    ///
    /// # Errors
    /// When it can't be read, or a line is damaged.
    pub fn load(paths: &Paths) -> Result<Self> {
        let path = paths.ledger();
        let bytes = files::read_existing(&path)?.unwrap_or_default();
        let end = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let mut records = Vec::new();
        for (index, line) in bytes[..end]
            .split_inclusive(|byte| *byte == b'\n')
            .enumerate()
        {
            let record = serde_json::from_slice(line).map_err(|error| {
                Failure::new(format!("{}, line {}: {error}", path.display(), index + 1)).hint(
                    "restore the file from a backup (deployment/.litellm-units/ledger.jsonl), or remove the line",
                )
            })?;
            records.push(record);
        }
        Ok(Self {
            path,
            records,
            complete: end as u64,
        })
    }

    /// Every line, oldest first.
    #[must_use]
    pub fn records(&self) -> &[LedgerRecord] {
        &self.records
    }

    /// Appends a line; it is on the disk when this returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&mut self, event: Event) -> Result<()> {
        let record = LedgerRecord {
            at: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            by: record::operator(),
            event,
        };
        self.write(&record)
            .path_context("can't write", &self.path)?;
        self.records.push(record);
        Ok(())
    }

    fn write(&mut self, record: &LedgerRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let directory = self.path.parent().context("the ledger has no directory")?;
        files::private_directory(directory)?;
        let new = !self.path.exists();
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)?;
        // Over what may be left of a line that was cut off.
        file.set_len(self.complete)?;
        file.seek(SeekFrom::Start(self.complete))?;
        file.write_all(&line)?;
        file.sync_all()?;
        if new {
            files::sync_directory(directory)?;
        }
        self.complete += line.len() as u64;
        Ok(())
    }

    /// The releases that ran, oldest first.
    #[must_use]
    pub fn releases(&self) -> impl DoubleEndedIterator<Item = &RecordedRelease> {
        self.records
            .iter()
            .filter_map(|record| match &record.event {
                Event::Release(release) => Some(release),
                _ => None,
            })
    }

    /// The release that ran last.
    #[must_use]
    pub fn current(&self) -> Option<&RecordedRelease> {
        self.releases().next_back()
    }

    /// Records that the gateway is ready with `images`, unless the last release has the same one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record_release(&mut self, images: Images, how: &str) -> Result<()> {
        let Some(gateway) = images.gateway() else {
            return Ok(());
        };
        let current = self.current().and_then(RecordedRelease::gateway);
        if current.is_some_and(|current| current.identity.is(&gateway.identity)) {
            return Ok(());
        }
        let number = self.current().map_or(0, |last| last.number) + 1;
        self.append(Event::Release(RecordedRelease {
            number,
            images,
            how: how.to_owned(),
        }))
    }

    /// The operation that was interrupted, if one was.
    #[must_use]
    pub fn unfinished(&self) -> Option<Unfinished> {
        let mut found: Option<Unfinished> = None;
        for record in &self.records {
            match &record.event {
                Event::Begun(operation) => {
                    found = Some(Unfinished {
                        operation: operation.clone(),
                        step: Step::Begun,
                        backup: None,
                        schema: None,
                        switched: false,
                    });
                }
                Event::Reached(reached) => {
                    if let Some(found) = &mut found
                        && found.operation.operation == reached.operation
                    {
                        found.step = reached.step;
                        found.switched |= reached.step == Step::Switching;
                        found.backup = reached.backup.clone().or(found.backup.take());
                        found.schema = reached.schema.clone().or(found.schema.take());
                    }
                }
                Event::Ended(_) => found = None,
                Event::Release(_) => {}
            }
        }
        found
    }

    /// The backup that was made when a release was left the last time: its data, as it was then.
    #[must_use]
    pub fn backup_of(&self, number: u32) -> Option<&OperationId> {
        let mut current = 0;
        let mut backup = None;
        for record in &self.records {
            match &record.event {
                Event::Release(release) => current = release.number,
                Event::Reached(reached) if current == number => {
                    backup = reached.backup.as_ref().or(backup);
                }
                _ => {}
            }
        }
        backup
    }

    /// The backups that a rollback may need: they stay, whatever their age.
    #[must_use]
    pub fn protected(&self) -> Vec<OperationId> {
        self.releases()
            .rev()
            .take(PROTECTED)
            .filter_map(|release| self.backup_of(release.number).cloned())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Scope;
    use crate::image::ImageIdentity;

    fn id(text: &str) -> OperationId {
        OperationId::parse(text).unwrap()
    }

    fn images(version: &str) -> Images {
        let image = Image {
            reference: format!("ghcr.io/berriai/litellm:{version}"),
            identity: ImageIdentity::of_digest(format!("sha256:{version}")),
        };
        Images::from_iter([(Service::Litellm, image)])
    }

    fn ledger(directory: &std::path::Path) -> (Paths, Ledger) {
        let paths = Paths {
            deployment: directory.to_owned(),
            ..Paths::elsewhere(Scope::User)
        };
        let ledger = Ledger::load(&paths).unwrap();
        (paths, ledger)
    }

    #[test]
    fn a_torn_line_counts_as_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let (paths, mut ledger) = ledger(directory.path());
        ledger.record_release(images("1"), "up").unwrap();
        let good = std::fs::read(paths.ledger()).unwrap();
        std::fs::write(paths.ledger(), [&good, &b"{\"at\":\"2026"[..]].concat()).unwrap();
        let mut again = Ledger::load(&paths).unwrap();
        assert_eq!(again.records(), ledger.records());
        again.record_release(images("2"), "upgrade").unwrap();
        let read = Ledger::load(&paths).unwrap();
        assert_eq!(read.records(), again.records());
        assert_eq!(read.current().unwrap().number, 2);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (paths, mut ledger) = ledger(directory.path());
        ledger.record_release(images("1"), "up").unwrap();
        let good = std::fs::read_to_string(paths.ledger()).unwrap();
        std::fs::write(paths.ledger(), format!("{good}{{}}\n{good}")).unwrap();
        assert_eq!(
            Ledger::load(&paths).unwrap_err().to_string(),
            format!(
                "{}, line 2: missing field `at` at line 1 column 2",
                paths.ledger().display()
            )
        );
    }

    #[test]
    fn images_are_written_by_name_in_the_order_of_names() {
        let line = concat!(
            r#"{"at":"2026-01-31T12:00:00Z","by":"root","event":"release","number":1,"images":{"#,
            r#""litellm":{"reference":"a:1","digest":"sha256:a"},"#,
            r#""postgres":{"reference":"b:1","digest":"sha256:b","id":"bb"},"#,
            r#""redis":{"reference":"c:1","digest":"sha256:c"}},"how":"up"}"#
        );
        let record: LedgerRecord = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
    }

    #[test]
    fn the_same_release_is_recorded_once() {
        let directory = tempfile::tempdir().unwrap();
        let (_, mut ledger) = ledger(directory.path());
        for version in ["1", "1", "2", "1"] {
            ledger.record_release(images(version), "up").unwrap();
        }
        let numbers: Vec<_> = ledger
            .releases()
            .map(|release| {
                (
                    release.number,
                    release.gateway().unwrap().identity.digest.as_str(),
                )
            })
            .collect();
        assert_eq!(numbers, [(1, "sha256:1"), (2, "sha256:2"), (3, "sha256:1")]);
    }

    #[test]
    fn operations_are_unfinished_until_they_end() {
        let directory = tempfile::tempdir().unwrap();
        let (paths, mut ledger) = ledger(directory.path());
        ledger.record_release(images("1"), "up").unwrap();
        let operation = Operation {
            operation: id("20260131T120000Z-0a1b2c"),
            verb: ReleaseVerb::Upgrade,
            from: images("1"),
            to: "ghcr.io/berriai/litellm:2".into(),
            configuration: "aa".into(),
            wanted: "bb".into(),
            data: None,
            restore_data: true,
        };
        let reached = |step, backup| {
            Event::Reached(Reached {
                operation: operation.operation.clone(),
                step,
                backup,
                schema: None,
            })
        };
        let backup = id("20260131T120001Z-0a1b2c");
        ledger.append(Event::Begun(operation.clone())).unwrap();
        ledger.append(reached(Step::Pulled, None)).unwrap();
        ledger
            .append(reached(Step::BackedUp, Some(backup.clone())))
            .unwrap();
        ledger.append(reached(Step::Migrated, None)).unwrap();
        assert!(!ledger.unfinished().unwrap().switched);
        ledger.append(reached(Step::Switching, None)).unwrap();
        ledger.append(reached(Step::Undoing, None)).unwrap();
        let mut ledger = Ledger::load(&paths).unwrap();
        assert_eq!(
            ledger.unfinished(),
            Some(Unfinished {
                operation: operation.clone(),
                step: Step::Undoing,
                backup: Some(backup.clone()),
                schema: None,
                switched: true,
            })
        );
        ledger.record_release(images("2"), "upgrade").unwrap();
        ledger
            .append(Event::Ended(Ended {
                operation: operation.operation.clone(),
                outcome: OperationOutcome::Done,
                reason: None,
            }))
            .unwrap();
        assert_eq!(ledger.unfinished(), None);
        assert_eq!(ledger.backup_of(1), Some(&backup));
        assert_eq!(ledger.backup_of(2), None);
        assert_eq!(ledger.protected(), [backup]);
    }
}

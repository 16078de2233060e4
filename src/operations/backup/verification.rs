//! The result of the last verification of the newest backup.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::make_private;
use super::restore::Verified;
use crate::deployment::operation_id::OperationId;
use crate::error::Result;
use crate::host::files;
use crate::host::paths::Paths;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Verification {
    /// When it ended.
    pub time: Timestamp,
    pub backup: OperationId,
    pub result: Outcome,
    /// Why it failed.
    pub error: Option<String>,
    /// When the last one that did not fail ended.
    pub succeeded: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// The dump was restored, and its rows were counted.
    Restored,
    /// The dump was read to its end and not restored: the database is external, its log is archived, or the disk is too full.
    Read,
    /// Only the checksums are known, since the secret key is not on this host.
    Checked,
    /// The backup is at fault.
    Failed,
}

impl Outcome {
    fn of(verified: &Verified) -> Self {
        if verified.restored {
            Self::Restored
        } else if verified.read {
            Self::Read
        } else {
            Self::Checked
        }
    }
}

impl Verification {
    /// # Errors
    /// When the record is damaged or can't be read.
    pub(crate) fn load(paths: &Paths) -> Result<Option<Self>> {
        let hint = "make a new one: `litellm-units backup verify latest`";
        files::load_record(&paths.verification(), hint)
    }

    /// Replaces the record by what was found out about the backup.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep(paths: &Paths, backup: OperationId, found: &Result<Verified>) -> Result<()> {
        let time = Timestamp::now();
        // A damaged one is replaced as well.
        let before = Self::load(paths).ok().flatten();
        let verification = match found {
            Ok(verified) => Self {
                time,
                backup,
                result: Outcome::of(verified),
                error: None,
                succeeded: Some(time),
            },
            Err(error) => Self {
                time,
                backup,
                result: Outcome::Failed,
                error: Some(format!("{error:#}")),
                succeeded: before.and_then(|before| before.succeeded),
            },
        };
        make_private(&paths.state())?;
        files::save_record(&paths.verification(), &verification)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_success_outlives_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        assert_eq!(Verification::load(&paths).unwrap(), None);
        std::fs::create_dir_all(paths.state()).unwrap();
        std::fs::write(paths.verification(), "{").unwrap();
        assert!(Verification::load(&paths).is_err());
        let id = || OperationId::parse("20260131T020000Z-0a1b2c").unwrap();
        let verified = Verified {
            id: id(),
            files: 1,
            tables: 1,
            rows: 1,
            uncounted: 0,
            restored: true,
            read: true,
        };
        Verification::keep(&paths, id(), &Ok(verified)).unwrap();
        let good = Verification::load(&paths).unwrap().unwrap();
        assert_eq!(
            (good.result, good.succeeded),
            (Outcome::Restored, Some(good.time))
        );
        let error = anyhow::anyhow!("the disk is full").context("no space");
        Verification::keep(&paths, id(), &Err(error)).unwrap();
        let failed = Verification::load(&paths).unwrap().unwrap();
        assert_eq!(failed.result, Outcome::Failed);
        assert_eq!(failed.error.as_deref(), Some("no space: the disk is full"));
        assert_eq!(failed.succeeded, Some(good.time));
    }
}

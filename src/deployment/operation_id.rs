//! Names of backups and of operations.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::random::kernel_random;

/// The name of a backup: its time in UTC, and six hexadecimal digits. Three are the fraction of the second, so that names
/// sort by time, and three are random.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperationId(String);

impl OperationId {
    const FORMAT: &'static str = "%Y%m%dT%H%M%SZ";

    /// Reads a name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (time, random) = text.split_once('-')?;
        jiff::civil::DateTime::strptime(Self::FORMAT, time).ok()?;
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (time.len() == 16 && random.len() == 6 && random.chars().all(hexadecimal))
            .then(|| Self(text.to_owned()))
    }

    /// A new name for something that is made at `time`.
    ///
    /// # Errors
    /// When the kernel has no random bytes.
    pub fn new(time: jiff::Timestamp) -> Result<Self> {
        let mut random = [0; 2];
        kernel_random(&mut random)?;
        let fraction = i64::from(time.subsec_nanosecond()).max(0) * 0x1000 / 1_000_000_000;
        Ok(Self(format!(
            "{}-{fraction:03x}{:03x}",
            time.strftime(Self::FORMAT),
            u16::from_be_bytes(random) & 0xfff
        )))
    }

    /// When the backup was begun, in UTC.
    #[must_use]
    pub fn created(&self) -> jiff::civil::DateTime {
        let time = self.0.split('-').next().unwrap_or_default();
        jiff::civil::DateTime::strptime(Self::FORMAT, time).unwrap_or_default()
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for OperationId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not the name of a backup"))
    }
}

impl From<OperationId> for String {
    fn from(id: OperationId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::OperationId;

    #[test]
    fn names() {
        let time: jiff::Timestamp = "2026-01-31T12:34:56.789Z".parse().unwrap();
        let id = OperationId::new(time).unwrap();
        assert!(id.as_str().starts_with("20260131T123456Z-"), "{id}");
        assert_eq!(OperationId::parse(id.as_str()), Some(id.clone()));
        assert_eq!(id.created().to_string(), "2026-01-31T12:34:56");
        let next = OperationId::new(time + jiff::SignedDuration::from_millis(1)).unwrap();
        assert!(id < next, "{id} {next}");
        for wrong in [
            "",
            "latest",
            "20260131T123456Z",
            "20260131T123456Z-xyzxyz",
            "20261331T123456Z-0a1b2c",
            "20260131T123456Z-0a1b2c/..",
            ".new-20260131T123456Z-0a1b2c",
        ] {
            assert_eq!(OperationId::parse(wrong), None, "{wrong}");
        }
    }
}

//! The time to which the database is recovered, as it is written in a command.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::error::{Failure, Result};
use crate::operations::backup::manifest::BasePoint;

/// A time to which the database is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The end of the archive.
    Latest,
    At(Timestamp),
}

impl Target {
    /// Whether a base backup was complete at that time.
    pub(super) fn is_after(self, point: &BasePoint) -> bool {
        match self {
            Self::Latest => true,
            Self::At(time) => point.complete <= time,
        }
    }

    /// Reads `latest`, a time of RFC 3339, or a local time of `zone`.
    pub(crate) fn parse(text: &str, zone: &TimeZone) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self::At(time));
        }
        let wrong = |problem: &str| {
            anyhow::Error::from(
                Failure::new(format!("{text:?} {problem}"))
                    .hint("write it as 2026-11-26T14:05:00 (local time), 2026-11-26T14:05:00Z or 2026-11-26T14:05:00+01:00, or `latest`"),
            )
        };
        let time: DateTime = text.parse().map_err(|_| wrong("is not a time"))?;
        let time = zone
            .to_ambiguous_timestamp(time)
            .unambiguous()
            .map_err(|_| wrong("is not one time, since the clocks were changed then"))?;
        Ok(Self::At(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let at = |text: &str| Target::At(text.parse().unwrap());
        for (text, expected) in [
            ("latest", Target::Latest),
            ("2026-11-26T14:05:07Z", at("2026-11-26T14:05:07Z")),
            ("2026-11-26T14:05:00+01:00", at("2026-11-26T13:05:00Z")),
            ("2026-11-26T14:05", at("2026-11-26T13:05:00Z")),
            ("2026-07-26 14:05:07.5", at("2026-07-26T12:05:07.5Z")),
        ] {
            assert_eq!(Target::parse(text, &zone).unwrap(), expected, "{text}");
        }
        for (text, problem) in [
            ("yesterday", "is not a time"),
            ("", "is not a time"),
            ("14:05", "is not a time"),
            (
                "2026-10-25T02:30:00",
                "is not one time, since the clocks were changed then",
            ),
        ] {
            let error = Target::parse(text, &zone).unwrap_err().to_string();
            assert_eq!(error, format!("{text:?} {problem}"));
        }
    }
}

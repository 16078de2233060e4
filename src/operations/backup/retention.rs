//! Which backups are removed. Pure.

use crate::deployment::operation_id::OperationId;
use std::collections::BTreeSet;

/// How long backups are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// The newest backup of this many days stays; days without a backup do not count.
    pub daily: usize,
    /// The newest backup of this many months stays; months without a backup do not count.
    pub monthly: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            daily: 30,
            monthly: 12,
        }
    }
}

/// The backups of `present` that `retention` removes, oldest first. Those made within a day of the
/// newest are kept: an operator who makes two backups before some work wants both. Those in
/// `protected` are kept, too.
pub(crate) fn expired(
    present: &[OperationId],
    retention: Retention,
    protected: &[OperationId],
) -> Vec<OperationId> {
    expired_beside(present, &[], retention, protected)
}

/// As [`expired`]; those in `passing` are the backup of no day and no month.
pub(crate) fn expired_beside(
    present: &[OperationId],
    passing: &[OperationId],
    retention: Retention,
    protected: &[OperationId],
) -> Vec<OperationId> {
    let mut newest_first: Vec<&OperationId> = present.iter().collect();
    newest_first.sort();
    newest_first.dedup();
    newest_first.reverse();
    let Some(newest) = newest_first.first() else {
        return Vec::new();
    };
    let recent = newest.created().saturating_sub(jiff::Span::new().days(1));
    let mut days = BTreeSet::new();
    let mut months = BTreeSet::new();
    let mut gone = Vec::new();
    for id in &newest_first {
        let created = id.created();
        let day = created.date();
        let month = (day.year(), day.month());
        // The newest of each, since a set takes each day and month only once.
        let counts = !passing.contains(id);
        let daily = counts && days.len() < retention.daily && days.insert(day);
        let monthly = counts && months.len() < retention.monthly && months.insert(month);
        if !daily && !monthly && created < recent && !protected.contains(id) {
            gone.push((*id).clone());
        }
    }
    gone.reverse();
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(times: &[&str]) -> Vec<OperationId> {
        times
            .iter()
            .map(|time| OperationId::parse(&format!("{time}Z-0a1b2c")).unwrap())
            .collect()
    }

    fn gone(times: &[&str], daily: usize, monthly: usize, protected: &[&str]) -> Vec<String> {
        expired(&ids(times), Retention { daily, monthly }, &ids(protected))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn nothing_of_nothing() {
        assert_eq!(gone(&[], 30, 12, &[]), Vec::<String>::new());
    }

    #[test]
    fn the_newest_stays_whatever_is_asked() {
        assert_eq!(
            gone(&["20260101T000000", "20260201T000000"], 0, 0, &[]),
            ["20260101T000000Z-0a1b2c"]
        );
    }

    #[test]
    fn all_of_the_last_day_stay() {
        let times = ["20260131T235900", "20260201T080000", "20260201T090000"];
        assert_eq!(gone(&times, 1, 0, &[]), Vec::<String>::new());
    }

    #[test]
    fn one_a_day_and_one_a_month() {
        let times = [
            "20251103T020000",
            "20251130T020000",
            "20251231T020000",
            "20260129T020000",
            "20260130T010000",
            "20260130T020000",
            "20260131T020000",
        ];
        // January's newest is also a daily one; the months before have one each.
        assert_eq!(
            gone(&times, 2, 2, &[]),
            [
                "20251103T020000Z-0a1b2c",
                "20251130T020000Z-0a1b2c",
                "20260129T020000Z-0a1b2c",
                "20260130T010000Z-0a1b2c",
            ]
        );
    }

    #[test]
    fn the_protected_stay_and_take_no_place() {
        let times = ["20250101T000000", "20250102T000000", "20260131T000000"];
        assert_eq!(
            gone(&times, 2, 0, &["20250101T000000"]),
            Vec::<String>::new()
        );
        assert_eq!(
            gone(&times, 1, 0, &["20250101T000000"]),
            ["20250102T000000Z-0a1b2c"]
        );
    }

    #[test]
    fn the_passing_stay_for_a_day_or_as_protected() {
        let times = [
            "20251231T020000",
            "20251231T100000",
            "20260130T100000",
            "20260131T020000",
        ];
        let gone = |passing: &[&str], protected: &[&str]| {
            let (present, retention) = (ids(&times), Retention::default());
            let gone = expired_beside(&present, &ids(passing), retention, &ids(protected));
            gone.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(gone(&[], &[]), ["20251231T020000Z-0a1b2c"]);
        let passing = ["20251231T100000", "20260130T100000"];
        assert_eq!(gone(&passing, &[]), ["20251231T100000Z-0a1b2c"]);
        assert_eq!(gone(&passing, &["20251231T100000"]), [""; 0]);
    }

    #[test]
    fn gaps_do_not_count() {
        let times = ["20240101T000000", "20250101T000000", "20260101T000000"];
        assert_eq!(gone(&times, 3, 0, &[]), Vec::<String>::new());
    }
}

//! Growth from the sizes that backups have recorded, and when the disk is full.

use super::Disk;
use crate::error::Result;
use crate::host::files::Space;
use crate::host::paths::Paths;
use crate::operations::backup::{RecordedSize, ids, recorded_sizes};

/// How far back the growth is looked at: long enough for the rhythm of a week, short enough for a change to count.
const DAYS: i32 = 14;
/// Sizes closer together say little of a day.
const LEAST_SECONDS: i64 = 20 * 3600;
/// With fewer growths, a single jump may be the median.
const LEAST_GROWTHS: usize = 4;
const DAY: i64 = 24 * 3600;

/// What is known without asking the server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forecast {
    /// The size of the database at the last backup.
    pub bytes: Option<u64>,
    /// Of the database. `None` until backups of five days have recorded its size.
    pub bytes_per_day: Option<i64>,
    /// The disk of the local PostgreSQL.
    pub disk: Option<Disk>,
    /// Whether there are backups, but the last one is too old to count.
    pub is_outdated: bool,
}

/// What the days until the disk is full are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The space that is free now.
    Present,
    /// That of the last backup: what is written in the course of a day does not make a warning come and go.
    LastBackup,
}

/// Looks at the sizes that backups have recorded, and at the disk.
pub(crate) fn forecast(paths: &Paths, local: bool, view: View) -> Result<Forecast> {
    let all = recorded_sizes(paths, DAYS)?;
    let now = jiff::Timestamp::now().as_second();
    let newest = { ids(paths)?.pop() }
        .map(|id| jiff::tz::Offset::UTC.to_timestamp(id.created()))
        .transpose()?;
    let is_outdated = newest.is_some_and(|newest| now - newest.as_second() > i64::from(DAYS) * DAY);
    // Those of a database in another place do not compare.
    let recorded: Vec<&RecordedSize> = { all.iter() }
        .filter(|size| size.disk.is_some() == local)
        .collect();
    let sizes = |of: fn(&RecordedSize) -> Option<u64>| -> Vec<(i64, u64)> {
        { recorded.iter() }
            .filter_map(|size| Some((size.at, of(size)?)))
            .collect()
    };
    let path = paths.postgres_data();
    let disk = Space::of(&path).ok().filter(|_| local).map(|space| {
        let used = sizes(|size| size.disk);
        let bytes_per_day = per_day(&used);
        let last = used.last().filter(|_| view == View::LastBackup);
        Disk {
            path,
            free_bytes: space.free,
            bytes_per_day,
            full_in_days: bytes_per_day
                .and_then(|growth| days_until_full(&space, growth, last, now)),
        }
    });
    Ok(Forecast {
        bytes: recorded.last().map(|size| size.database),
        bytes_per_day: per_day(&sizes(|size| Some(size.database))),
        disk,
        is_outdated,
    })
}

/// The median of the growths from day to day, so that one image that was pulled, or one cleanup, does not count as growth.
/// Each size has its time in seconds.
fn per_day(sizes: &[(i64, u64)]) -> Option<i64> {
    let mut sizes = sizes.iter();
    let (mut at, mut bytes) = *sizes.next()?;
    let mut growths: Vec<i64> = Vec::new();
    for &(later, more) in sizes {
        let seconds = later - at;
        if seconds < LEAST_SECONDS {
            continue;
        }
        let difference = i128::from(more) - i128::from(bytes);
        growths.extend(i64::try_from(
            difference * i128::from(DAY) / i128::from(seconds),
        ));
        (at, bytes) = (later, more);
    }
    growths.sort_unstable();
    (growths.len() >= LEAST_GROWTHS).then(|| growths[growths.len() / 2])
}

/// Full days. With `last`, the use that was recorded at that time, they are counted from then, unless space was freed since.
fn days_until_full(
    space: &Space,
    bytes_per_day: i64,
    last: Option<&(i64, u64)>,
    now: i64,
) -> Option<u64> {
    let growth = u64::try_from(bytes_per_day).ok()?;
    let then = last.map_or(0, |(_, used)| space.size.saturating_sub(*used));
    let days = last.map_or(0, |(at, _)| {
        u64::try_from((now - at) / DAY).unwrap_or_default()
    });
    let free = space.free.max(then);
    Some(free.checked_div(growth)?.saturating_sub(days))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::operation_id::OperationId;

    #[test]
    fn growth_is_the_median() {
        let daily = |sizes: &[u64]| -> Vec<(i64, u64)> {
            (0..)
                .map(|day| day * DAY)
                .zip(sizes.iter().copied())
                .collect()
        };
        assert_eq!(per_day(&[]), None);
        assert_eq!(per_day(&daily(&[100, 110, 120, 130])), None);
        assert_eq!(per_day(&daily(&[100, 110, 120, 130, 140])), Some(10));
        assert_eq!(per_day(&daily(&[140, 130, 120, 110, 100])), Some(-10));
        // Several backups in a day count as one, and a night may have none.
        let times = [0, 3600, DAY, DAY + 60, 3 * DAY, 4 * DAY, 5 * DAY];
        let sizes = [100, 900, 110, 900, 130, 140, 150];
        let sizes: Vec<_> = times.into_iter().zip(sizes).collect();
        assert_eq!(per_day(&sizes), Some(10));
        assert_eq!(per_day(&sizes[..6]), None);
    }

    #[test]
    fn old_backups_are_outdated() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::in_test(root.path());
        let outdated = || forecast(&paths, true, View::Present).unwrap().is_outdated;
        let add = |days: i64| {
            let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
            let id = OperationId::new(at).unwrap();
            std::fs::create_dir_all(root.path().join("backups").join(id.as_str())).unwrap();
        };
        assert!(!outdated());
        add(15);
        assert!(outdated());
        // It is of another deployment, or damaged, and so has no size.
        add(3);
        assert!(!outdated());
    }

    #[test]
    fn one_jump_is_no_growth() {
        // An image was pulled, or a big table emptied, and it stays so.
        for days in 5..=14 {
            for jump in 1..days {
                for by in [2_000, -90] {
                    let sizes: Vec<(i64, u64)> = (0..days)
                        .map(|day| {
                            let size = 100 + 10 * day + if day >= jump { by } else { 0 };
                            (day * DAY, size.unsigned_abs())
                        })
                        .collect();
                    assert_eq!(per_day(&sizes), Some(10), "{jump} of {days} by {by}");
                }
            }
        }
    }

    #[test]
    fn the_disk_is_full_in_some_days() {
        let space = Space {
            free: 40,
            size: 100,
        };
        let days = |growth, last: Option<(i64, u64)>| {
            days_until_full(&space, growth, last.as_ref(), 10 * DAY)
        };
        assert_eq!(days(10, None), Some(4));
        assert_eq!(days(41, None), Some(0));
        assert_eq!(days(0, None), None);
        assert_eq!(days(-10, None), None);
        // Written since the last backup, or freed.
        assert_eq!(days(10, Some((10 * DAY - 3600, 50))), Some(5));
        assert_eq!(days(10, Some((10 * DAY - 3600, 70))), Some(4));
        // Backups have stopped.
        assert_eq!(days(10, Some((7 * DAY, 50))), Some(2));
        assert_eq!(days(10, Some((DAY, 50))), Some(0));
    }
}

//! Which pieces of the log lead from a base backup to a time.

use jiff::Timestamp;

use super::Target;
use crate::error::{Failure, Result};
use crate::operations::backup::manifest::BasePoint;
use crate::operations::backup::wal::{Piece, Segment};

/// How much later a piece may be whose transactions say an earlier time.
const LATE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// The pieces from the base backup to the target, in order. Until `stored`, the server has written nothing else.
pub(super) fn needed(
    all: &[Piece],
    point: &BasePoint,
    target: Target,
    stored: Option<Timestamp>,
) -> Result<Vec<Piece>> {
    let Chain { pieces: found, gap } = chain(all, point);
    let mut reach = found.last().map_or(point.complete, |piece| piece.time);
    if gap.is_none() {
        reach = reach.max(stored.unwrap_or(reach));
    }
    let is_beyond = match target {
        Target::Latest => gap.is_some(),
        Target::At(time) => time > reach,
    };
    if is_beyond {
        return Err(match gap {
            Some(segment) => Failure::new(format!(
                "the archive has a gap: segment {segment} of the write-ahead log is not complete"
            ))
            .hint(format!(
                "name a time until {reach:.0}, or one after the next base backup; or recover from another copy: `--from URL`"
            )),
            None => Failure::new(format!("the archive ends at {reach:.0}, before that time"))
                .hint("to recover everything in it: `litellm-units restore --to latest`"),
        }
        .into());
    }
    let end = found
        .iter()
        .position(|piece| matches!(target, Target::At(time) if piece.time > time + LATE))
        .map_or(found.len(), |end| end + 1);
    Ok(found.into_iter().take(end).collect())
}

/// The size in bytes of the segments of which these pieces are.
pub(super) fn log_size(pieces: &[Piece], point: &BasePoint) -> u64 {
    let segments = pieces.chunk_by(|one, other| one.segment == other.segment);
    segments.count() as u64 * point.segment_size
}

/// The pieces that follow each other, from the segment of a base backup on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) pieces: Vec<Piece>,
    /// The segment that is not complete, although later ones are there.
    pub(super) gap: Option<String>,
}

pub(super) fn chain(all: &[Piece], point: &BasePoint) -> Chain {
    let size = point.segment_size;
    let first = point.position / size;
    let newest = all.iter().map(|piece| piece.number(size)).max();
    let mut pieces: Vec<Piece> = Vec::new();
    for number in first..=newest.unwrap_or(first) {
        let mut end = 0;
        // An archive that began anew may have parts that overlap.
        while let Some(next) = all
            .iter()
            .filter(|piece| piece.number(size) == number && piece.start == end)
            .max_by_key(|piece| piece.end)
        {
            end = next.end;
            pieces.push(next.clone());
        }
        let mut of_segment = all.iter().filter(|piece| piece.number(size) == number);
        let is_unused = of_segment.any(|piece| piece.end > end);
        if end < size && (is_unused || newest.is_some_and(|newest| newest > number)) {
            let segment = Segment {
                timeline: point.timeline,
                number,
                size,
            };
            return Chain {
                pieces,
                gap: Some(segment.name()),
            };
        }
    }
    Chain { pieces, gap: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::{SIZE, piece, point};

    #[test]
    fn pieces_without_a_gap() {
        let time = "2026-11-26T14:05:00Z";
        let part = |number, start, end| piece(number, start, end, time);
        let base = point("now", 2 * SIZE + 7);
        let found = |all: &[Piece]| {
            let Chain { pieces, gap } = chain(all, &base);
            let places = pieces.iter();
            let places: Vec<_> = places
                .map(|piece| (piece.number(SIZE), piece.start, piece.end))
                .collect();
            (places, gap)
        };
        // Earlier segments are of no use, and a part that is there beside its segment, too.
        let all = [
            part(1, 0, SIZE),
            part(2, 0, 9),
            part(2, 0, SIZE),
            part(3, 0, 9),
            part(3, 9, 20),
        ];
        let expected = vec![(2, 0, SIZE), (3, 0, 9), (3, 9, 20)];
        assert_eq!(found(&all), (expected, None));
        assert_eq!(found(&[]), (vec![], None));
        // What follows a missing part of the last segment can't be used.
        assert_eq!(
            found(&[part(2, 0, 9), part(2, 10, 20)]),
            (vec![(2, 0, 9)], Some("000000010000000000000002".to_owned()))
        );
        let overlapping = [
            part(2, 0, 9),
            part(2, 0, 15),
            part(2, 9, 12),
            part(2, 15, 20),
        ];
        assert_eq!(found(&overlapping), (vec![(2, 0, 15), (2, 15, 20)], None));
        let gap = Some("000000010000000000000003".to_owned());
        for (third, expected) in [
            (vec![], vec![(2, 0, SIZE)]),
            (vec![part(3, 0, 9)], vec![(2, 0, SIZE), (3, 0, 9)]),
        ] {
            let all = [vec![part(2, 0, SIZE)], third, vec![part(4, 0, 9)]].concat();
            assert_eq!(found(&all), (expected, gap.clone()));
        }
    }
}

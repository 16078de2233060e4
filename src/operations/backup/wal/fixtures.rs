//! Pieces and base backups for tests.

use super::piece::{Piece, Segment};
use super::progress::Progress;
use crate::operations::backup::manifest::BasePoint;

pub(in crate::operations::backup) const SIZE: u64 = 16 << 20;

pub(in crate::operations::backup) fn piece(number: u64, start: u64, end: u64, time: &str) -> Piece {
    let segment = Segment {
        timeline: 1,
        number,
        size: SIZE,
    };
    let label = Piece::label(&segment.name(), start, end, time.parse().unwrap());
    Piece::parse(&format!("{label}-{}.zst.age", "0a".repeat(32))).unwrap()
}

pub(in crate::operations::backup) fn point(history: &str, position: u64) -> BasePoint {
    BasePoint {
        history: history.to_owned(),
        timeline: 1,
        segment_size: SIZE,
        position,
        complete: "2026-11-26T02:30:00Z".parse().unwrap(),
    }
}

pub(super) fn progress(history: &str, stored: u64) -> Progress {
    Progress {
        system: "1".to_owned(),
        history: history.to_owned(),
        key: String::new(),
        value: String::new(),
        segment: SIZE,
        stored,
        time: TIME.parse().unwrap(),
    }
}

pub(super) const TIME: &str = "2026-11-26T14:05:00Z";

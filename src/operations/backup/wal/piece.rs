//! Segments of the write-ahead log, and the pieces of them in the archive.

use std::collections::BTreeSet;
use std::path::Path;

use jiff::Timestamp;

use super::{WAL, directory, names, pieces_directory};
use crate::error::{PathContext, Result};
use crate::host::paths::Paths;
use crate::operations::backup::archive;
use crate::operations::backup::authentication::BackupKey;

/// One segment of the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment {
    pub timeline: u32,
    pub number: u64,
    /// In bytes.
    pub size: u64,
}

impl Segment {
    /// The one that holds a position.
    pub(crate) fn of(timeline: u32, size: u64, position: u64) -> Self {
        Self {
            timeline,
            number: position / size,
            size,
        }
    }

    /// The position of one of its bytes.
    pub(crate) fn position(&self, offset: u64) -> u64 {
        self.number * self.size + offset
    }

    /// As PostgreSQL names its file.
    pub(crate) fn name(&self) -> String {
        let count = 0x1_0000_0000 / self.size;
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline,
            self.number / count,
            self.number % count
        )
    }
}

/// A position as PostgreSQL writes it.
pub(crate) fn format_position(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff)
}

/// A part of a segment in the archive, as its file is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece {
    /// The segment's name.
    pub segment: String,
    pub start: u64,
    pub end: u64,
    /// Every transaction that was committed at this time is in the pieces up to this one.
    pub time: Timestamp,
    /// The authentication code.
    code: String,
    pub file: String,
}

impl Piece {
    pub(super) const TIME: &'static str = "%Y%m%dT%H%M%SZ";

    /// Reads the name of a file.
    pub(crate) fn parse(file: &str) -> Option<Self> {
        let mut parts = file.split('.').next()?.split('-');
        let mut next = || parts.next();
        let (segment, start, end, time, code) = (next()?, next()?, next()?, next()?, next()?);
        let is_hexadecimal = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let is_valid = is_hexadecimal(segment, 24)
            && is_hexadecimal(start, 8)
            && is_hexadecimal(end, 8)
            && is_hexadecimal(code, 64)
            && time.len() == 16
            && parts.next().is_none();
        let time = jiff::civil::DateTime::strptime(Self::TIME, time).ok()?;
        let piece = Self {
            segment: segment.to_owned(),
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            time: jiff::tz::Offset::UTC.to_timestamp(time).ok()?,
            code: code.to_owned(),
            file: file.to_owned(),
        };
        (is_valid && piece.start < piece.end).then_some(piece)
    }

    /// The name without the code: what the code covers beside the content.
    pub(super) fn label(segment: &str, start: u64, end: u64, time: Timestamp) -> String {
        format!(
            "{segment}-{start:08X}-{end:08X}-{}",
            time.strftime(Self::TIME)
        )
    }

    /// The text that the code covers.
    pub(super) fn covered(history: &str, label: &str, sha256: &str) -> String {
        format!("{history}/{label}\n{sha256}\n")
    }

    /// The number of the segment, in the order of the log.
    pub(crate) fn number(&self, segment_size: u64) -> u64 {
        let part = |range| {
            let digits: &str = self.segment.get(range).unwrap_or_default();
            u64::from_str_radix(digits, 16).unwrap_or_default()
        };
        part(8..16) * (0x1_0000_0000 / segment_size) + part(16..24)
    }

    /// The position behind it.
    pub(crate) fn end_position(&self, segment_size: u64) -> u64 {
        self.number(segment_size) * segment_size + self.end
    }

    /// Whether this deployment has written it, as it is in `place`.
    pub(crate) fn is_own(&self, paths: &Paths, place: &Path, history: &str) -> Result<bool> {
        let path = place.join(&self.file);
        let sha256 = archive::sha256(&path).path_context("can't read", &path)?;
        let label = Self::label(&self.segment, self.start, self.end, self.time);
        BackupKey::is_own(
            paths,
            Self::covered(history, &label, &sha256).as_bytes(),
            &self.code,
        )
    }
}

/// The pieces among some names of files, in the order of the log.
pub(crate) fn pieces(files: impl IntoIterator<Item = String>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = files
        .into_iter()
        .filter_map(|file| Piece::parse(&file))
        .collect();
    pieces.sort();
    pieces
}

/// The pieces of a history on this host.
pub(crate) fn local_pieces(paths: &Paths, history: &str) -> Result<Vec<Piece>> {
    Ok(pieces(names(&pieces_directory(paths, history))?))
}

/// The histories with pieces on this host.
pub(crate) fn histories(paths: &Paths) -> Result<Vec<String>> {
    names(&directory(paths).join(WAL))
}

/// The pieces of segments that are there as a whole, too.
pub(super) fn replaced(pieces: &[Piece], segment_size: u64) -> Vec<Piece> {
    let is_whole = |piece: &&Piece| piece.start == 0 && piece.end == segment_size;
    let whole: BTreeSet<&str> = pieces
        .iter()
        .filter(is_whole)
        .map(|piece| piece.segment.as_str())
        .collect();
    pieces
        .iter()
        .filter(|piece| !is_whole(piece) && whole.contains(piece.segment.as_str()))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::wal::fixtures::{SIZE, TIME, piece};

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        let name = |size, position| Segment::of(1, size, position).name();
        assert_eq!(name(SIZE, 0x1D9_5F10), "000000010000000000000001");
        assert_eq!(name(SIZE, 0xFFFF_FFFF), "0000000100000000000000FF");
        assert_eq!(name(SIZE, 0x3_0000_0000), "000000010000000300000000");
        // initdb --wal-segsize=1024
        assert_eq!(name(1 << 30, 0x3_4000_0000), "000000010000000300000001");
        assert_eq!(format_position(0x3_01D9_5F0F), "3/1D95F0F");
        assert_eq!(Segment::of(1, SIZE, 0x1D9_5F10).position(0), 0x100_0000);
    }

    #[test]
    fn names_of_pieces() {
        let read = piece(0x102, 0x100, 0x2_0000, TIME);
        assert_eq!(
            (
                read.segment.as_str(),
                read.start,
                read.end,
                read.number(SIZE)
            ),
            ("000000010000000100000002", 0x100, 0x2_0000, 0x102)
        );
        assert_eq!(read.end_position(SIZE), 0x1_0202_0000);
        assert_eq!(read.time, TIME.parse().unwrap());
        let good = &read.file;
        for wrong in [
            good.replace("-00000100-", "-00020000-"),
            good.replace("-00000100-", "-100-"),
            good.replace("20261126", "20261326"),
            good.replace("0a0a", "0a"),
            good.replace(".zst", "-1.zst"),
            format!(".new-{good}"),
            good.replace("00000001", "0000001g"),
            "lock".to_owned(),
        ] {
            assert_eq!(Piece::parse(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_whole_segment_replaces_its_parts() {
        let (first, second) = (piece(1, 0, 0x100, TIME), piece(1, 0x100, 0x200, TIME));
        let (whole, next) = (piece(1, 0, SIZE, TIME), piece(2, 0, 0x100, TIME));
        let parts = [first.clone(), second.clone(), next.clone()];
        assert_eq!(replaced(&parts, SIZE), []);
        let all = [first.clone(), second.clone(), whole, next];
        assert_eq!(replaced(&all, SIZE), [first, second]);
    }
}

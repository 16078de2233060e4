//! stdout is for data, stderr for messages.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;
use thiserror::Error;

use crate::error::Result;

/// Nobody reads stdout any more, as after `| head`: no reason for a message.
#[derive(Debug, Error)]
#[error("stdout is closed")]
pub struct ClosedStdout;

/// What a failed write to stdout means.
pub(crate) fn unwritten(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ClosedStdout.into(),
        _ => error.into(),
    }
}

/// Prints a line to stdout.
pub(crate) fn line(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(unwritten)
}

/// Prints to stdout, without a line break.
pub(crate) fn text(text: &str) -> Result<()> {
    raw(text.as_bytes())
}

/// The same, of bytes.
pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
    io::stdout().write_all(bytes).map_err(unwritten)
}

/// Asks a question on stderr, and reads from stdin whether the answer is yes.
pub(crate) fn ask(question: &str) -> Result<bool> {
    eprint!("{question} [y/N] ");
    Ok(matches!(read_answer()?.as_str(), "y" | "yes"))
}

/// A line of stdin, in small letters.
pub(crate) fn read_answer() -> Result<String> {
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .context("can't read the answer")?;
    Ok(answer.trim().to_ascii_lowercase())
}

/// A number and its noun: `1 secret`, `2 secrets`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// Prints a value to stdout as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Receives the reports of operations, which print nothing themselves.
#[derive(Clone, Debug, Default)]
pub enum Progress {
    /// All reports go to stderr.
    #[default]
    Stderr,
    /// Changes go to stdout, as the data of the command; the rest goes to stderr.
    Data,
    /// Changes are kept; the rest is dropped.
    Collected(Arc<Mutex<Vec<String>>>),
    /// Warnings go to stderr; the rest is dropped.
    Silent,
}

impl Progress {
    /// Reports a change that was made.
    pub fn done(&self, text: &str) {
        match self {
            Self::Stderr => say(text),
            // A closed stdout must not stop an operation half-way.
            Self::Data => drop(line(text)),
            Self::Collected(changes) => changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text.to_owned()),
            Self::Silent => {}
        }
    }

    /// Reports a step that is in progress.
    pub fn say(&self, text: &str) {
        if matches!(self, Self::Stderr | Self::Data) {
            say(text);
        }
    }

    /// Reports a risk.
    pub fn warn(&self, text: &str) {
        if !matches!(self, Self::Collected(_)) {
            warn(text);
        }
    }

    /// As [`Progress::warn`], wrapped at 80 columns with an indent.
    pub fn warn_wrapped(&self, text: &str) {
        self.warn(&wrapped(text, 80, "warning: ".len()));
    }

    /// Whether a terminal shows the progress of a transfer.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self, Self::Stderr | Self::Data) && io::stderr().is_terminal()
    }

    /// The changes that [`Progress::Collected`] kept.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        match self {
            Self::Collected(changes) => changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
            _ => Vec::new(),
        }
    }
}

/// The progress of a copy, drawn on stderr if that is a terminal.
#[derive(Clone, Debug)]
pub struct Meter {
    what: &'static str,
    total: u64,
    done: Arc<AtomicU64>,
    drawn: Arc<AtomicU64>,
    begin: std::time::Instant,
    visible: bool,
}

impl Meter {
    /// `total` is an estimate in bytes.
    #[must_use]
    pub fn new(what: &'static str, total: u64, progress: &Progress) -> Self {
        Self {
            what,
            total,
            done: Arc::default(),
            drawn: Arc::default(),
            begin: std::time::Instant::now(),
            visible: progress.is_watched(),
        }
    }

    pub(crate) fn add(&self, count: u64) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        if !self.visible {
            return;
        }
        // Five times a second.
        let now = u64::try_from(self.begin.elapsed().as_millis() / 200).unwrap_or_default();
        if self.drawn.swap(now, Ordering::Relaxed) != now {
            tell(&format!(
                "\r\x1b[K{} {} of about {}",
                self.what,
                bytes(done),
                bytes(self.total)
            ));
        }
    }

    /// Clears its line on the terminal.
    pub fn clear(&self) {
        if self.visible && self.drawn.load(Ordering::Relaxed) > 0 {
            tell("\r\x1b[K");
        }
    }

    /// The bytes that were counted.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Counts the bytes that are read from `inner`.
    pub fn reading<R: Read>(&self, inner: R) -> Counting<R> {
        Counting {
            inner,
            meter: self.clone(),
        }
    }
}

/// See [`Meter::reading`].
#[derive(Debug)]
pub struct Counting<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}

/// Writes to stderr. A closed pipe (`2>&1 | head`) must not end an operation half-way.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints a message to stderr.
pub fn say(text: &str) {
    tell(&format!("{text}\n"));
}

/// Prints a warning to stderr.
pub(crate) fn warn(text: &str) {
    tell(&format!("warning: {text}\n"));
}

/// Wraps a text at `width` columns; lines after the first start with `indent` spaces. A command in
/// backticks stays on one line.
pub(crate) fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    let parts = text.split('`').enumerate();
    let kept = parts.map(|(index, part)| {
        if index % 2 == 1 {
            format!("`{}`", part.replace(' ', "\u{a0}"))
        } else {
            part.to_owned()
        }
    });
    let kept: String = kept.collect();
    for (index, word) in kept.split(' ').filter(|word| !word.is_empty()).enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            column = indent;
        } else if index > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines.replace('\u{a0}', " ")
}

/// A duration for people: `0.4 s`, `12 s`, `3 min`, `5 h`, `2 d`.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// A number of bytes for people, in binary units: `512 B`, `31 MiB`, `1.2 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if count >= size {
            let tenths = count * 10 / size;
            return if tenths < 100 {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            } else {
                format!("{} {unit}", count / size)
            };
        }
    }
    format!("{count} B")
}

/// A line of a log without what would move the cursor or change colours.
pub(crate) fn printable(line: &str) -> String {
    anstream::adapter::strip_str(line)
        .to_string()
        .chars()
        .map(|character| if character == '\t' { ' ' } else { character })
        .filter(|character| !character.is_control())
        .collect()
}

/// One word for a POSIX shell, for a command that is shown or sent to one.
pub(crate) fn shell_word(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What a table loses where it is wider than the terminal: the rest of it is in `--json`, and in a pipe.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// Of the images in this column, the registry and most of the digest.
    Registry(&'static str),
    /// The end of the cells in this column, as far as it has to be.
    End(&'static str),
    /// This column.
    Column(&'static str),
}

/// Aligns rows in columns below a heading. Of `losses`, as many as it takes to fit a terminal, in their order.
pub(crate) fn table(rows: &[Vec<String>], losses: &[Loss]) -> String {
    let width = if io::stdout().is_terminal() {
        crossterm::terminal::size().map_or(0, |(columns, _)| columns.into())
    } else {
        0
    };
    if width == 0 {
        return columns(rows);
    }
    columns(&fitted(rows, losses, width))
}

fn fitted(rows: &[Vec<String>], losses: &[Loss], width: usize) -> Vec<Vec<String>> {
    /// Less of a column says nothing.
    const LEAST: usize = 12;
    let mut rows = rows.to_vec();
    for loss in losses {
        let widths = widths(&rows);
        let all: usize = widths.iter().map(|width| width + 2).sum();
        let Some(excess) = all
            .saturating_sub(2)
            .checked_sub(width)
            .filter(|excess| *excess > 0)
        else {
            break;
        };
        let (Loss::Registry(heading) | Loss::End(heading) | Loss::Column(heading)) = loss;
        let headings = rows.first().into_iter().flatten();
        let Some(column) = headings.into_iter().position(|name| name == heading) else {
            continue;
        };
        let left = widths[column].saturating_sub(excess);
        for row in &mut rows {
            match loss {
                Loss::Registry(_) => row[column] = short_image(&row[column]),
                Loss::End(_) if left >= LEAST => row[column] = cut(&row[column], left),
                Loss::End(_) => {}
                Loss::Column(_) => {
                    row.remove(column);
                }
            }
        }
    }
    rows
}

/// The name of an image without the registry, and of its digest as much as Podman shows.
fn short_image(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.split_once("@sha256:") {
        Some((name, digest)) => format!("{name}@{}", digest.get(..12).unwrap_or(digest)),
        None => name.to_owned(),
    }
}

/// The beginning of a text, with an ellipsis if it is longer than `width`.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width - 1).collect();
    format!("{}…", kept.trim_end())
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let count = rows.first().map_or(0, Vec::len);
    (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect()
}

/// Aligns rows in columns, two spaces apart; every row has as many cells as the first.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Loss, columns, fitted, shell_word, wrapped};

    #[test]
    fn a_table_fits_its_terminal() {
        let rows: Vec<Vec<String>> = [
            ["NAME", "IMAGE", "MODELS"],
            [
                "a",
                "ghcr.io/berriai/litellm:v1.108.14",
                "gpt-4o, claude-sonnet-4-5, hello",
            ],
            [
                "litellm-2",
                "registry.example:5000/x@sha256:0123456789abcdef",
                "all",
            ],
        ]
        .map(|row| row.map(str::to_owned).to_vec())
        .to_vec();
        let losses = [
            Loss::Registry("IMAGE"),
            Loss::End("MODELS"),
            Loss::Column("IMAGE"),
            Loss::End("MODELS"),
        ];
        let shown = |width| columns(&fitted(&rows, &losses, width));
        assert_eq!(shown(100), columns(&rows));
        let short = "NAME       IMAGE              MODELS\n\
                     a          litellm:v1.108.14  gpt-4o, claude-sonnet-4-5, hello\n\
                     litellm-2  x@0123456789ab     all\n";
        assert_eq!((shown(91), shown(62)), (short.to_owned(), short.to_owned()));
        assert_eq!(
            shown(61),
            "NAME       IMAGE              MODELS\n\
             a          litellm:v1.108.14  gpt-4o, claude-sonnet-4-5, hel…\n\
             litellm-2  x@0123456789ab     all\n"
        );
        assert_eq!(
            shown(40),
            "NAME       MODELS\n\
             a          gpt-4o, claude-sonnet-4-5, h…\n\
             litellm-2  all\n"
        );
        // What is too narrow for all of it breaks the lines itself.
        assert_eq!(
            shown(10).lines().map(|line| line.chars().count()).max(),
            Some(43)
        );
    }

    #[test]
    fn words_for_a_shell() {
        for word in ["/opt/litellm-server", "--tail=5"] {
            assert_eq!(shell_word(word), word);
        }
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's $HOME; `x`"), r"'it'\''s $HOME; `x`'");
    }

    #[test]
    fn lines_of_a_width() {
        assert_eq!(wrapped("one two three", 80, 4), "one two three");
        assert_eq!(wrapped("one two three", 12, 4), "one two\n    three");
        assert_eq!(
            wrapped("see: `a command of words`, now", 20, 2),
            "see:\n  `a command of words`,\n  now"
        );
    }
}

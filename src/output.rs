//! stdout is for data, stderr for messages.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde::Serialize;

use crate::error::Result;

/// Prints a line to stdout.
pub(crate) fn line(text: &str) -> Result<()> {
    writeln!(io::stdout(), "{text}").map_err(Into::into)
}

/// Prints to stdout, without a line break.
pub(crate) fn text(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).map_err(Into::into)
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

/// Aligns rows in columns, two spaces apart; every row has as many cells as the first.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
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
    use super::wrapped;

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

//! The `.env` file, read by the rules of docker compose and edited without
//! touching a byte more than needed.
//!
//! [`EnvFile::parse`] gives each variable the value that docker compose 2
//! gives it: the same quoting, escapes, inline comments, `export`, YAML-like
//! `NAME: value`, values over several lines and `${...}` references, oddities
//! included. The corpus in `tests/fixtures/env` holds what compose itself said.
//!
//! # Where it differs from compose
//!
//! - The process environment is never read: the file alone decides. A name
//!   without `=`, which compose would take from the environment, stays unset
//!   (with a [`Warning`]), and references see only the lines above them. So
//!   they do when compose reads its project's `.env`; but a service that names
//!   that same `.env` as its `env_file` has it read a second time, and there a
//!   reference gives the last definition of the whole file.
//! - A last line without a line break is read as if it had one. Compose takes
//!   a lone name there for the *value* of a variable without a name.
//! - A default or message that is not needed is not looked into. Compose did
//!   look before compose-go 2.10, and then refused `${SET:-${OTHER:?}}`.
//! - A value without a name, which compose loses without a word, is refused.
//! - A NUL character in a value is refused, as is a file whose values add up
//!   to more than 16 MiB or nest more than 64 references: no program could be
//!   started with such a variable. A name may hold what Unicode calls
//!   alphabetic, which is a little more than compose's letters.
//!
//! # Where compose loses data
//!
//! These are followed, since the value compose made of them is the one in use,
//! but each leaves a [`Warning`]: text right after a closing quote starts a
//! new variable; `NAME= # text` is the value `# text`; an unset variable is
//! the empty string; a second definition hides the first; and an octal escape
//! that is not `\0` with three octal digits up to 377 loses its `0`.
//!
//! # Secrets
//!
//! Neither `Debug` nor any error or warning shows a value: they give positions
//! and the names of variables. What only looks like a name and may be part of
//! a secret (a line without `=`, `$word` in a password) is not shown either.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use thiserror::Error;

use super::external;

/// The most that all values of one file may add up to, in bytes.
const MAX_TOTAL: usize = 16 << 20;

/// How deep `${A:-${B:-...}}` may nest.
const MAX_DEPTH: usize = 64;

const BOM: char = '\u{feff}';

/// A parsed `.env` file that keeps its text byte for byte.
#[derive(Clone, Default)]
pub struct EnvFile {
    text: String,
    definitions: Vec<Definition>,
    /// The definition that counts, by name.
    index: HashMap<String, usize>,
    /// Where the last line with only this name ends, by name.
    bare: HashMap<String, usize>,
    warnings: Vec<Warning>,
}

#[derive(Clone)]
struct Definition {
    name: String,
    value: String,
    line: usize,
    style: Style,
    /// The value as written, quotes included.
    raw: Range<usize>,
    /// A variable that it refers to, and that another program gives.
    external: Option<String>,
}

/// One definition as it is in the file.
#[derive(Clone, Copy)]
pub struct Written<'a> {
    /// The variable.
    pub name: &'a str,
    /// Its value.
    pub value: &'a str,
    /// The line, from 1.
    pub line: usize,
    /// The value as written, quotes included.
    pub text: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Single,
    Double,
}

impl fmt::Debug for EnvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvFile")
            .field("variables", &self.index.len())
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl EnvFile {
    /// Reads the text of a `.env` file.
    ///
    /// # Errors
    ///
    /// Where compose refuses the file, and in the few further cases named in
    /// the [module documentation](self).
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser::new(text);
        match parser.file() {
            Ok(()) => Ok(parser.finish()),
            Err(Fault { at, kind }) => {
                let mut cursor = Cursor::new(text);
                cursor.advance(text, at);
                Err(ParseError {
                    line: cursor.line,
                    column: cursor.column,
                    kind,
                })
            }
        }
    }

    /// The value of a variable: without quotes, with escapes and references
    /// resolved. `None` if the file does not define it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.definition(name).map(|found| found.value.as_str())
    }

    /// The line, from 1, of the definition that counts: the last one.
    #[must_use]
    pub fn line(&self, name: &str) -> Option<usize> {
        self.definition(name).map(|found| found.line)
    }

    /// The value of a variable that names another program to get it from.
    #[must_use]
    pub fn reference(&self, name: &str) -> Option<&str> {
        let found = self.definition(name)?;
        external::is_reference(&self.text[found.raw.clone()]).then_some(&found.value)
    }

    /// A variable that the value of this one refers to (`$OTHER`), and that another program gives.
    #[must_use]
    pub fn external_part(&self, name: &str) -> Option<&str> {
        self.definition(name)?.external.as_deref()
    }

    /// Whether the value of a variable, as written without quotes, refers to others.
    pub(crate) fn refers(&self, name: &str) -> bool {
        self.definition(name)
            .is_some_and(|found| self.text[found.raw.clone()].replace("$$", "").contains('$'))
    }

    /// All variables with their values, in the order of the definitions that
    /// count.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.definitions
            .iter()
            .enumerate()
            .filter(|(at, definition)| self.index.get(&definition.name) == Some(at))
            .map(|(_, definition)| (definition.name.as_str(), definition.value.as_str()))
    }

    /// What the file's author ought to know, in the order of the file.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Gives a variable a value.
    ///
    /// The value is replaced in the definition that counts, in the same kind
    /// of quotes where they can hold it; every other byte stays, an inline
    /// comment too. A line with only the name gets `=` and the value; without
    /// any such line, one is added at the end. If the variable has the value
    /// already, the text stays as it is, even if it is written as a reference.
    ///
    /// Other variables keep their values, except those that refer to this one.
    ///
    /// # Errors
    ///
    /// If the name or the value cannot be written to a `.env` file, or if the
    /// file could not be read afterwards, as when it holds `${NAME:?}` and the
    /// value is empty. The file is then unchanged.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SetError> {
        check(name, value)?;
        if self.get(name) == Some(value) {
            return Ok(());
        }
        if let Some(found) = self.definition(name) {
            let (range, written) = self.replacement(found, value);
            return self.splice(name, range, &written);
        }
        if let Some(&end) = self.bare.get(name) {
            return self.splice(name, end..end, &format!("={}", quote(value)));
        }
        self.add(&[], name, value)
    }

    /// Adds a variable at the end, below a comment: each item is one or more
    /// lines, written without the `#`. A comment is set off by a blank line.
    ///
    /// # Errors
    ///
    /// As for [`EnvFile::set`], and if the file already defines the variable.
    pub fn append(&mut self, comment: &[&str], name: &str, value: &str) -> Result<(), SetError> {
        check(name, value)?;
        if let Some(line) = self.line(name) {
            return Err(SetError::Defined {
                name: name.to_owned(),
                line,
            });
        }
        self.add(comment, name, value)
    }

    /// Every definition in the order of the file, those that do not count too.
    pub fn definitions(&self) -> impl Iterator<Item = Written<'_>> {
        self.definitions.iter().map(|definition| Written {
            name: &definition.name,
            value: &definition.value,
            line: definition.line,
            text: &self.text[definition.raw.clone()],
        })
    }

    /// Replaces the text of values, quotes included, where `replace` gives another one; every
    /// other byte stays. The definitions are in the order of the file.
    ///
    /// # Errors
    ///
    /// If the file could not be read afterwards. It is then unchanged.
    pub fn rewrite(
        &mut self,
        mut replace: impl FnMut(Written<'_>) -> Option<String>,
    ) -> Result<(), ParseError> {
        let mut text = String::with_capacity(self.text.len());
        let mut copied = 0;
        for (written, definition) in self.definitions().zip(&self.definitions) {
            if let Some(new) = replace(written) {
                text.push_str(&self.text[copied..definition.raw.start]);
                text.push_str(&new);
                copied = definition.raw.end;
            }
        }
        text.push_str(&self.text[copied..]);
        *self = Self::parse(&text)?;
        Ok(())
    }

    /// Gives each of these variables the value that it has in another file; one
    /// that is not defined there becomes empty here.
    ///
    /// # Errors
    ///
    /// As for [`EnvFile::set`]; the variables before are then changed.
    pub fn take_over(&mut self, names: &[&str], other: &Self) -> Result<(), SetError> {
        for name in names {
            match other.get(name) {
                Some(value) => self.set(name, value)?,
                None if self.get(name).is_some() => self.set(name, "")?,
                None => {}
            }
        }
        Ok(())
    }

    fn definition(&self, name: &str) -> Option<&Definition> {
        self.index
            .get(name)
            .and_then(|&at| self.definitions.get(at))
    }

    /// Which bytes to replace, and by what, to change a definition's value.
    fn replacement(&self, old: &Definition, value: &str) -> (Range<usize>, String) {
        let mut range = old.raw.clone();
        let raw = &self.text[range.clone()];
        // `NAME= # text`: compose has it as the value, its author surely as a
        // comment. With the value put before the blank, it becomes one.
        if old.style == Style::Plain
            && raw.starts_with("# ")
            && self.text[..range.start].ends_with(' ')
        {
            range = range.start - 1..range.start - 1;
        }
        let rest = &self.text[range.end..];
        let rest = rest.split('\n').next().unwrap_or_default();
        let written = match old.style {
            Style::Double => double_quoted(value),
            Style::Single => quoted(value),
            // Nothing before ` #` would make the comment the value.
            Style::Plain if value.is_empty() && !rest.trim().is_empty() => quoted(value),
            Style::Plain => quote(value).into_owned(),
        };
        (range, written)
    }

    fn add(&mut self, comment: &[&str], name: &str, value: &str) -> Result<(), SetError> {
        let break_at = self.text.find('\n').unwrap_or_default();
        let end_of_line = if self.text[..break_at].ends_with('\r') {
            "\r\n"
        } else {
            "\n"
        };
        let mut block = String::new();
        let before = self.text.trim_start_matches(BOM);
        if !before.is_empty() && !before.ends_with('\n') {
            block.push_str(end_of_line);
        }
        let last_line = before.lines().next_back().unwrap_or_default();
        if !comment.is_empty() && !last_line.trim().is_empty() {
            block.push_str(end_of_line);
        }
        for line in comment.iter().flat_map(|item| item.split('\n')) {
            block.push_str(format!("# {line}").trim_end());
            block.push_str(end_of_line);
        }
        block.push_str(name);
        block.push('=');
        block.push_str(&quote(value));
        block.push_str(end_of_line);
        self.splice(name, self.text.len()..self.text.len(), &block)
    }

    fn splice(&mut self, name: &str, range: Range<usize>, new: &str) -> Result<(), SetError> {
        let text = [&self.text[..range.start], new, &self.text[range.end..]].concat();
        *self = Self::parse(&text).map_err(|source| SetError::Unreadable {
            name: name.to_owned(),
            source,
        })?;
        Ok(())
    }
}

/// Writes a value so that compose reads back exactly this value: as it is if
/// that is safe, else in single quotes, else in double quotes with escapes;
/// always on one line. (A NUL character becomes `\0000`, which
/// [`EnvFile::parse`] refuses, like any program's environment.)
#[must_use]
pub fn quote(value: &str) -> Cow<'_, str> {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,=".contains(c);
    // Without quotes, it could name a program.
    if value.chars().all(is_safe) && !external::is_reference(value) {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(quoted(value))
    }
}

fn quoted(value: &str) -> String {
    // A backslash would do in single quotes here, but other readers of `.env`
    // files disagree about it; they agree about double quotes.
    if value.contains(|c: char| matches!(c, '\'' | '\\') || c.is_control()) {
        double_quoted(value)
    } else {
        format!("'{value}'")
    }
}

fn double_quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' | '$' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            _ if c.is_ascii_control() => out.extend([format!("\\0{:03o}", u32::from(c))]),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

fn check(name: &str, value: &str) -> Result<(), SetError> {
    if name.is_empty() || !name.chars().all(is_name_char) {
        return Err(SetError::Name {
            name: name.to_owned(),
        });
    }
    if value.contains('\0') {
        return Err(SetError::Nul {
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// A character of a variable's name in front of `=`.
fn is_name_char(c: char) -> bool {
    matches!(c, '_' | '.' | '-' | '[' | ']') || c.is_alphabetic() || c.is_numeric()
}

/// The blanks that compose skips within a line.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ' | '\u{85}' | '\u{a0}')
}

/// A place in the text, moved forward only.
struct Cursor {
    offset: usize,
    line: usize,
    column: usize,
}

impl Cursor {
    /// Starts behind a byte order mark, which is no column of its own.
    fn new(text: &str) -> Self {
        Self {
            offset: text.len() - text.strip_prefix(BOM).unwrap_or(text).len(),
            line: 1,
            column: 1,
        }
    }

    fn advance(&mut self, text: &str, to: usize) {
        for c in text.get(self.offset..to).unwrap_or_default().chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.offset = self.offset.max(to);
    }
}

/// An error at a byte of the text.
struct Fault {
    at: usize,
    kind: ParseErrorKind,
}

impl Fault {
    fn new(at: usize, kind: ParseErrorKind) -> Self {
        Self { at, kind }
    }
}

/// How many bytes values may still take.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, text: &str, at: usize) -> Result<(), Fault> {
        let left = self.0.checked_sub(text.len());
        self.0 = left.ok_or(Fault::new(at, ParseErrorKind::TooLong))?;
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    pos: usize,
    cursor: Cursor,
    file: EnvFile,
    /// Warnings with their bytes.
    noted: Vec<(usize, WarningKind)>,
    budget: Budget,
    /// As [`Definition::external`], of the value that is read.
    external: Option<String>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let cursor = Cursor::new(text);
        Self {
            text,
            pos: cursor.offset,
            cursor,
            file: EnvFile::default(),
            noted: Vec::new(),
            budget: Budget(MAX_TOTAL),
            external: None,
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.pos..]
    }

    fn skip_while(&mut self, skip: impl Fn(char) -> bool) {
        self.pos = self.text.len() - self.rest().trim_start_matches(skip).len();
    }

    /// Where the current line ends: at its line break or the end of the text.
    fn line_end(&self) -> usize {
        self.rest()
            .find('\n')
            .map_or(self.text.len(), |length| self.pos + length)
    }

    fn file(&mut self) -> Result<(), Fault> {
        loop {
            self.skip_while(char::is_whitespace);
            match self.rest().chars().next() {
                None => return Ok(()),
                Some('#') => self.pos = self.line_end(),
                Some(_) => self.statement()?,
            }
        }
    }

    /// `NAME=value`, `NAME: value` or `NAME`, each with or without `export`.
    fn statement(&mut self) -> Result<(), Fault> {
        let start = self.pos;
        if let Some(after) = self.rest().strip_prefix("export")
            && after.starts_with(['\t', '\n', '\x0c', '\r', ' '])
        {
            self.pos += "export".len();
            self.skip_while(is_blank);
            if self.rest().is_empty() {
                return Err(Fault::new(start, ParseErrorKind::NoName));
            }
        }
        let name_start = self.pos;
        let is_part = |c: char| is_blank(c) || is_name_char(c);
        self.skip_while(is_part);
        let name = self.text[name_start..self.pos].trim_end();
        let separator = self.rest().chars().next();
        if !matches!(separator, None | Some('=' | ':' | '\n')) {
            return Err(Fault::new(self.pos, ParseErrorKind::NameCharacter));
        }
        if let Some(at) = name.find(' ') {
            return Err(Fault::new(name_start + at, ParseErrorKind::NameSpace));
        }
        if !matches!(separator, Some('=' | ':')) {
            self.bare(start, name_start, name);
            return Ok(());
        }
        if name.is_empty() {
            return Err(Fault::new(name_start, ParseErrorKind::NoName));
        }
        self.pos += 1;
        self.cursor.advance(self.text, name_start);
        let line = self.cursor.line;
        let (value, style, raw) = self.value()?;
        if value.contains('\0') {
            let name = name.to_owned();
            return Err(Fault::new(raw.start, ParseErrorKind::Nul { name }));
        }
        if let Some(before) = self.file.definition(name) {
            let kind = WarningKind::Duplicate {
                name: name.to_owned(),
                before: before.line,
            };
            self.noted.push((name_start, kind));
        }
        let at = self.file.definitions.len();
        self.file.index.insert(name.to_owned(), at);
        self.file.definitions.push(Definition {
            name: name.to_owned(),
            value,
            line,
            style,
            raw,
            external: self.external.take(),
        });
        Ok(())
    }

    /// A line without a value.
    fn bare(&mut self, start: usize, name_start: usize, name: &str) {
        if name.is_empty() {
            self.noted.push((start, WarningKind::ExportNothing));
            return;
        }
        self.noted.push((name_start, WarningKind::NoValue));
        self.file
            .bare
            .insert(name.to_owned(), name_start + name.len());
    }

    fn value(&mut self) -> Result<(String, Style, Range<usize>), Fault> {
        let separator_end = self.pos;
        self.skip_while(is_blank);
        let start = self.pos;
        let (value, style) = match self.rest().as_bytes().first() {
            Some(b'\'') => (self.single_quoted()?, Style::Single),
            Some(b'"') => (self.double_quoted()?, Style::Double),
            _ => {
                let line = &self.text[start..self.line_end()];
                self.pos = start + line.len();
                let line = line.split(" #").next().unwrap_or_default().trim_end();
                if line.starts_with('#') && start > separator_end {
                    self.noted.push((start, WarningKind::CommentAsValue));
                }
                let value = self.expand(line, &Origins(vec![(0, start)]))?;
                return Ok((value, Style::Plain, start..start + line.len()));
            }
        };
        let raw = start..self.pos;
        let after = self.rest().trim_start_matches(is_blank);
        if !(after.is_empty() || after.starts_with(['\n', '#'])) {
            let at = self.text.len() - after.len();
            self.noted.push((at, WarningKind::AfterQuote));
        }
        Ok((value, style, raw))
    }

    /// All characters stand for themselves, but `\'` for a quote.
    fn single_quoted(&mut self) -> Result<String, Fault> {
        let open = self.pos;
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\'' => {
                    self.pos += at + 1;
                    self.budget.spend(&out, open)?;
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, '\'')) => out.push('\''),
                    Some((_, other)) => out.extend(['\\', other]),
                    None => break,
                },
                _ => out.push(c),
            }
        }
        Err(Fault::new(open, ParseErrorKind::SingleQuote))
    }

    /// Escapes first, references after: a `$` from an octal escape counts.
    fn double_quoted(&mut self) -> Result<String, Fault> {
        let open = self.pos;
        let mut out = String::new();
        let mut origins = Origins(vec![(0, open + 1)]);
        self.pos += 1;
        loop {
            let plain = self
                .rest()
                .find(['"', '\\'])
                .ok_or(Fault::new(open, ParseErrorKind::DoubleQuote))?;
            out.push_str(&self.rest()[..plain]);
            self.pos += plain;
            if self.rest().starts_with('"') {
                self.pos += 1;
                return self.expand(&out, &origins);
            }
            origins.0.push((out.len(), self.pos));
            let escaped = self.rest()[1..]
                .chars()
                .next()
                .ok_or(Fault::new(open, ParseErrorKind::DoubleQuote))?;
            if escaped == '0' {
                self.octal(&mut out);
            } else {
                self.pos += 1 + escaped.len_utf8();
                match escaped {
                    'a' => out.push('\x07'),
                    'b' => out.push('\x08'),
                    'f' => out.push('\x0c'),
                    'n' => out.push('\n'),
                    'r' => out.push('\r'),
                    't' => out.push('\t'),
                    'v' => out.push('\x0b'),
                    '"' | '\\' => out.push(escaped),
                    '$' => out.push_str("$$"),
                    _ => out.extend(['\\', escaped]),
                }
            }
            origins.0.push((out.len(), self.pos));
        }
    }

    /// `\0` and three octal digits make a character. With anything else the
    /// `0` is lost: so it is in compose.
    fn octal(&mut self, out: &mut String) {
        let start = self.pos;
        let after = &self.rest()[2..];
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let digits = after.bytes().take(3).take_while(is_digit).count();
        let digits = &after[..digits];
        self.pos += 2 + digits.len();
        match u8::from_str_radix(digits, 8) {
            Ok(byte) if digits.len() == 3 => out.push(char::from(byte)),
            _ => {
                out.push('\\');
                out.push_str(digits);
                self.noted.push((start, WarningKind::Octal));
            }
        }
    }

    fn expand(&mut self, template: &str, origins: &Origins) -> Result<String, Fault> {
        let mut expander = Expander {
            template,
            origins,
            parser: self,
            out: String::with_capacity(template.len()),
        };
        expander.expand(0..template.len(), 0)?;
        Ok(expander.out)
    }

    fn finish(mut self) -> EnvFile {
        self.noted.sort_by_key(|&(at, _)| at);
        let mut cursor = Cursor::new(self.text);
        for (at, mut kind) in self.noted {
            cursor.advance(self.text, at);
            if let WarningKind::Unset {
                name,
                braced,
                defined,
            } = &mut kind
            {
                let line = name.as_deref().and_then(|name| self.file.line(name));
                *defined = line.filter(|&line| line > cursor.line);
                if !*braced && defined.is_none() {
                    *name = None;
                }
            }
            self.file.warnings.push(Warning {
                line: cursor.line,
                column: cursor.column,
                kind,
            });
        }
        self.text.clone_into(&mut self.file.text);
        self.file
    }
}

/// Where the bytes of a template were in the text: pairs of a byte of the
/// template and of the text, from which on they run in step.
struct Origins(Vec<(usize, usize)>);

impl Origins {
    fn of(&self, at: usize) -> usize {
        let next = self.0.partition_point(|&(from, _)| from <= at);
        let nearest = next.checked_sub(1).and_then(|index| self.0.get(index));
        nearest.map_or(0, |&(from, origin)| origin + (at - from))
    }
}

/// Resolves `$NAME` and `${NAME...}`.
struct Expander<'a, 'b, 'c> {
    template: &'a str,
    origins: &'a Origins,
    parser: &'b mut Parser<'c>,
    out: String,
}

impl Expander<'_, '_, '_> {
    fn fault(&self, at: usize, kind: ParseErrorKind) -> Fault {
        Fault::new(self.origins.of(at), kind)
    }

    fn push(&mut self, text: &str, at: usize) -> Result<(), Fault> {
        self.parser.budget.spend(text, self.origins.of(at))?;
        self.out.push_str(text);
        Ok(())
    }

    fn expand(&mut self, range: Range<usize>, depth: usize) -> Result<(), Fault> {
        let template = self.template;
        let Range { start: mut at, end } = range;
        // The last `}` of the line that ends at .0, as long as `at` is in it.
        let mut last_brace = (0, None);
        while let Some(length) = template[at..end].find('$') {
            let dollar = at + length;
            self.push(&template[at..dollar], at)?;
            at = dollar + 1;
            let after = &template[at..end];
            if after.starts_with('$') {
                self.push("$", dollar)?;
                at += 1;
            } else if let Some(braced) = after.strip_prefix('{') {
                let invalid = || self.fault(dollar, ParseErrorKind::Reference);
                let name = leading_name(braced);
                let rest = &braced[name.len()..];
                let operator_at = at + 1 + name.len();
                if name.is_empty() {
                    return Err(invalid());
                }
                if rest.starts_with('}') {
                    self.reference(name, dollar, true)?;
                    at = operator_at + 1;
                    continue;
                }
                let (operator, length) = Operator::leading(rest).ok_or_else(invalid)?;
                let body = operator_at + length;
                if body > last_brace.0 {
                    let line = template[body..end].split('\n').next().unwrap_or_default();
                    let found = line.rfind('}').map(|found| body + found);
                    last_brace = (body + line.len(), found);
                }
                let last = last_brace
                    .1
                    .filter(|&last| last >= body)
                    .ok_or_else(invalid)?;
                let close = closing_brace(template, at, last);
                self.choose(name, operator, body..close, dollar, depth)?;
                at = close + 1;
            } else {
                let name = leading_name(after);
                at += name.len();
                if name.is_empty() {
                    self.push("$", dollar)?;
                } else {
                    self.reference(name, dollar, false)?;
                }
            }
        }
        self.push(&template[at..end], at)
    }

    /// `$NAME` or `${NAME}`.
    fn reference(&mut self, name: &str, dollar: usize, braced: bool) -> Result<(), Fault> {
        if self.push_variable(name, dollar)? {
            return Ok(());
        }
        let kind = WarningKind::Unset {
            name: Some(name.to_owned()),
            braced,
            defined: None,
        };
        self.parser.noted.push((self.origins.of(dollar), kind));
        Ok(())
    }

    /// `${NAME-text}` and the like.
    fn choose(
        &mut self,
        name: &str,
        operator: Operator,
        body: Range<usize>,
        dollar: usize,
        depth: usize,
    ) -> Result<(), Fault> {
        let value = self.parser.file.get(name);
        let is_set = value.is_some_and(|value| !(operator.or_empty && value.is_empty()));
        match (operator.sign, is_set) {
            (Sign::Default | Sign::Required, true) => self.push_variable(name, dollar).map(drop),
            (Sign::Default, false) | (Sign::Alternative, true) => {
                if depth >= MAX_DEPTH {
                    return Err(self.fault(dollar, ParseErrorKind::TooDeep));
                }
                self.expand(body, depth + 1)
            }
            (Sign::Alternative, false) => Ok(()),
            (Sign::Required, false) => {
                let name = name.to_owned();
                Err(self.fault(dollar, ParseErrorKind::Required { name }))
            }
        }
    }

    /// Whether the variable is set.
    fn push_variable(&mut self, name: &str, dollar: usize) -> Result<bool, Fault> {
        let Some(found) = self.parser.file.definition(name) else {
            return Ok(false);
        };
        if external::is_reference(&self.parser.text[found.raw.clone()]) {
            self.parser.external = Some(name.to_owned());
        }
        let value = &found.value;
        self.parser.budget.spend(value, self.origins.of(dollar))?;
        self.out.push_str(value);
        Ok(true)
    }
}

#[derive(Clone, Copy)]
struct Operator {
    /// With a `:`: a set but empty variable is like an unset one.
    or_empty: bool,
    sign: Sign,
}

#[derive(Clone, Copy)]
enum Sign {
    /// `-`
    Default,
    /// `+`
    Alternative,
    /// `?`
    Required,
}

impl Operator {
    /// The operator at the start of the text, with its length.
    fn leading(text: &str) -> Option<(Self, usize)> {
        let after = text.strip_prefix(':').unwrap_or(text);
        let or_empty = after.len() < text.len();
        let sign = match after.chars().next()? {
            '-' => Sign::Default,
            '+' => Sign::Alternative,
            '?' => Sign::Required,
            _ => return None,
        };
        Some((Self { or_empty, sign }, if or_empty { 2 } else { 1 }))
    }
}

/// The name that a reference starts with: ASCII only, unlike in front of `=`.
fn leading_name(text: &str) -> &str {
    let length = text
        .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        ""
    } else {
        &text[..length]
    }
}

/// The `}` that closes the `{` at `open`, counting braces as compose does: the
/// character after each `{` does not count, and if they do not add up, it is
/// the last one.
fn closing_brace(template: &str, open: usize, last: usize) -> usize {
    let mut depth = 0_usize;
    let mut bytes = template[open..last].bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'{' => {
                depth += 1;
                bytes.next();
            }
            b'}' if depth == 1 => return open + at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    last
}

/// Why a `.env` file cannot be read, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct ParseError {
    line: usize,
    column: usize,
    kind: ParseErrorKind,
}

impl ParseError {
    /// The line, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column, in characters from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.column
    }

    /// What to do about it, as a sentence without a full stop.
    #[must_use]
    pub fn hint(&self) -> Cow<'static, str> {
        Cow::Borrowed(match &self.kind {
            ParseErrorKind::DoubleQuote => {
                "close it with `\"`, or write `\\\"` for a quote within the value"
            }
            ParseErrorKind::SingleQuote => {
                "close it with `'`; if the value ends with a backslash, use double quotes and write it twice"
            }
            ParseErrorKind::NameCharacter => {
                "write each variable as NAME=value, and put quotes around a value that goes over several lines or holds quotes itself"
            }
            ParseErrorKind::NameSpace => {
                "write each variable as NAME=value, with no space within the name"
            }
            ParseErrorKind::NoName => "put the variable's name in front, or delete the line",
            ParseErrorKind::Nul { .. } => "take the NUL character out of the value",
            ParseErrorKind::Reference => {
                "for a plain dollar sign write `$$` or put the value in single quotes; a reference is `${NAME}`"
            }
            ParseErrorKind::Required { name } => {
                return Cow::Owned(format!("give {name} a value above this line"));
            }
            ParseErrorKind::TooDeep => "write fewer references within one another",
            ParseErrorKind::TooLong => {
                "shorten the values, and look for variables that repeat one another"
            }
        })
    }
}

/// What is wrong with a `.env` file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// `NAME="value` without an end.
    #[error("the double quote opened here is never closed")]
    DoubleQuote,
    /// `NAME='value` without an end.
    #[error("the single quote opened here is never closed")]
    SingleQuote,
    /// A character where only a name can be.
    #[error("this character cannot be part of a variable's name")]
    NameCharacter,
    /// `TWO WORDS=value`.
    #[error("a variable's name cannot contain a space")]
    NameSpace,
    /// `=value`.
    #[error("there is no variable name here")]
    NoName,
    /// A NUL character, written as such or as `\0000`.
    #[error("the value of {name} contains a NUL character")]
    Nul {
        /// The variable.
        name: String,
    },
    /// `${` without a name, or without an end on the same line.
    #[error("`${{` does not start a complete reference here")]
    Reference,
    /// `${NAME:?message}`, and the variable is not set or is empty.
    #[error("this line requires {name}, which has no value up to here")]
    Required {
        /// The missing variable.
        name: String,
    },
    /// `${A:-${B:-...}}` more than 64 deep.
    #[error("references are nested too deep here")]
    TooDeep,
    /// All values together are longer than 16 MiB.
    #[error("with this value, all values together are too long")]
    TooLong,
}

/// Something in a `.env` file that compose accepts but may not be meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    line: usize,
    column: usize,
    kind: WarningKind,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, column, kind } = self;
        write!(f, "line {line}, column {column}: {kind}")
    }
}

/// What a [`Warning`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum WarningKind {
    /// A reference to a variable that has no value up to here.
    Unset {
        /// Its name, unless that may be part of a password: `pa$word`.
        name: Option<String>,
        /// Whether it is written `${NAME}`.
        braced: bool,
        /// The line further down that defines it.
        defined: Option<usize>,
    },
    /// A variable that is defined above already.
    Duplicate {
        /// Its name.
        name: String,
        /// The line of the definition that this one replaces.
        before: usize,
    },
    /// A line with a name but no `=`.
    NoValue,
    /// `export` without a name.
    ExportNothing,
    /// Text after a closing quote, which starts another variable.
    AfterQuote,
    /// `NAME= # text`.
    CommentAsValue,
    /// An octal escape without three octal digits, or above 377.
    Octal,
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset {
                name: Some(name),
                defined: Some(line),
                ..
            } => write!(
                f,
                "{name} has no value up to here, so this is empty: it is defined further down, on line {line}"
            ),
            Self::Unset {
                name: Some(name), ..
            } => write!(f, "{name} has no value up to here, so this is empty"),
            Self::Unset { name: None, .. } => f.write_str(
                "the variable that `$` refers to here has no value, so this is empty: for a plain dollar sign write `$$` or use single quotes",
            ),
            Self::Duplicate { name, before } => write!(
                f,
                "{name} is defined again: this line counts and line {before} does not"
            ),
            Self::NoValue => f.write_str(
                "there is no `=` here, so this line sets nothing: values are not taken from the environment",
            ),
            Self::ExportNothing => f.write_str("there is no variable name after `export`"),
            Self::AfterQuote => f.write_str(
                "the value ends with the quote, and what follows is read as another variable",
            ),
            Self::CommentAsValue => f.write_str(
                "this is read as the value, not as a comment: for an empty value write `\"\"` before it",
            ),
            Self::Octal => f.write_str(
                "this octal escape is read without its `0`: write `\\\\` for a backslash, or `\\0` and three octal digits up to 377",
            ),
        }
    }
}

/// Why a variable cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SetError {
    /// The name cannot be one in a `.env` file.
    #[error("{name:?} cannot be the name of a variable")]
    Name {
        /// The name.
        name: String,
    },
    /// The value contains a NUL character, which no environment can hold.
    #[error("the value for {name} contains a NUL character")]
    Nul {
        /// The variable.
        name: String,
    },
    /// The variable to append is there already.
    #[error("{name} is already defined on line {line}")]
    Defined {
        /// The variable.
        name: String,
        /// The line that defines it.
        line: usize,
    },
    /// Another line could not be read with this value.
    #[error("with this value for {name} the file could not be read any more")]
    Unreadable {
        /// The variable.
        name: String,
        /// What would be wrong.
        source: ParseError,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error with its hint, or all warnings.
    fn said(text: &str) -> Vec<String> {
        match EnvFile::parse(text) {
            Ok(file) => file.warnings().iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string(), error.hint().into_owned()],
        }
    }

    #[test]
    fn errors_say_where_and_what_next() {
        assert_eq!(
            said("A=1\nB= \"two\nC=3\n"),
            [
                "line 2, column 4: the double quote opened here is never closed",
                "close it with `\"`, or write `\\\"` for a quote within the value",
            ]
        );
        assert_eq!(
            said("A=1\n\nB=x${C:?C please}"),
            [
                "line 3, column 4: this line requires C, which has no value up to here",
                "give C a value above this line",
            ]
        );
        assert_eq!(
            said("\u{feff}\u{e9}$=1")[0],
            "line 1, column 2: this character cannot be part of a variable's name"
        );
        assert_eq!(
            said("A=\"\\n\u{e9}\\t${\"")[0],
            "line 1, column 9: `${` does not start a complete reference here"
        );
        assert_eq!(
            said("A='\n\n'B=x\0y")[0],
            "line 3, column 4: the value of B contains a NUL character"
        );
    }

    #[test]
    fn warnings_are_in_the_order_of_the_file() {
        assert_eq!(
            said("A=${B}${C:-$D}\nB=1\nA=$B$E\nF\n"),
            [
                "line 1, column 3: B has no value up to here, so this is empty: it is defined further down, on line 2",
                "line 1, column 12: the variable that `$` refers to here has no value, so this is empty: for a plain dollar sign write `$$` or use single quotes",
                "line 3, column 1: A is defined again: this line counts and line 1 does not",
                "line 3, column 5: the variable that `$` refers to here has no value, so this is empty: for a plain dollar sign write `$$` or use single quotes",
                "line 4, column 1: there is no `=` here, so this line sets nothing: values are not taken from the environment",
            ]
        );
        let columns = |text| {
            EnvFile::parse(text).map(|file| {
                file.warnings()
                    .iter()
                    .map(|warning| warning.column)
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(
            columns("A=\"\\n${B} \\$C \\\\$D\" e\n"),
            Ok(vec![6, 17, 21, 21])
        );
    }

    #[test]
    fn a_variable_is_where_it_was_defined_last() {
        let file = EnvFile::parse("A=1\nB='x\ny'\nC=3\nA=4 # c\n");
        let file = file.unwrap_or_default();
        assert!(file.iter().eq([("B", "x\ny"), ("C", "3"), ("A", "4")]));
        assert_eq!(file.line("A"), Some(5));
        assert_eq!(file.line("C"), Some(4));
        assert_eq!(file.line("D"), None);
        assert_eq!(file.get("D"), None);
    }

    #[test]
    fn quotes_only_as_much_as_needed() {
        assert_eq!(quote(""), "");
        assert_eq!(
            quote("sk-1234_a.b/c:d@e%f+g,h=="),
            "sk-1234_a.b/c:d@e%f+g,h=="
        );
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("$A#\"`"), "'$A#\"`'");
        assert_eq!(quote("it's $5"), r#""it's \$5""#);
        assert_eq!(quote("a\\b\"\n\u{1b}1"), r#""a\\b\"\n\00331""#);
    }

    #[test]
    fn limits_stop_what_only_an_attacker_writes() {
        let nested = |depth| format!("A={}x{}", "${B:-".repeat(depth), "}".repeat(depth));
        assert_eq!(said(&nested(MAX_DEPTH)), [""; 0]);
        assert!(said(&nested(MAX_DEPTH + 1))[0].ends_with("references are nested too deep here"));
        let doubling = format!("A=0123456789\n{}", "A=$A$A\n".repeat(40));
        assert!(said(&doubling)[0].ends_with("all values together are too long"));
    }

    #[test]
    fn braces_close_as_in_compose() {
        let close = |template: &str| closing_brace(template, 1, template.len() - 1);
        assert_eq!(close("${A:-x} y}"), 6);
        assert_eq!(close("${A:-{x}} y}"), 8);
        assert_eq!(close("${A:-{} y}"), 9);
        assert_eq!(close("${A:-}"), 5);
    }
}

//! Values of `.env` that are not there, but encrypted in files beside it.
//!
//! `.env` then holds a reference, `systemd-creds:NAME.` and 16 hexadecimal digits, to the file of
//! that name below `credentials/`. A ciphertext is bound to its name, and its file never changes:
//! another value is another file with other digits. So `.env` alone decides which values count, as
//! a whole and at every moment, and a reference in a kept copy means the same later.
//!
//! Other values may refer to a sealed variable as to any (`${NAME}`), so a reference may be a part
//! of a value. What is encrypted is the value as it was written, quotes included.

use std::collections::HashMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use super::env_file::EnvFile;
use super::external::Lookup;
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::{CREDENTIALS, Paths};
use crate::host::systemd_creds;

/// What a reference begins with. No other value may hold it.
pub(crate) const PREFIX: &str = "systemd-creds:";

const DIGITS: usize = 16;

/// Which file holds a value, and for which variable it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    credential: String,
    name: usize,
}

impl Reference {
    /// To the value of `name` that is kept under `number`.
    #[must_use]
    pub fn new(name: &str, number: u64) -> Self {
        Self {
            credential: format!("{name}.{number:0DIGITS$x}"),
            name: name.len(),
        }
    }

    /// The variable that was sealed.
    #[must_use]
    pub fn variable(&self) -> &str {
        &self.credential[..self.name]
    }

    /// The name of the file, under which its content is encrypted, too.
    #[must_use]
    pub fn credential(&self) -> &str {
        &self.credential
    }

    /// The reference to the file of that name.
    #[must_use]
    pub fn to_credential(credential: &str) -> Option<Self> {
        let (reference, rest) = Self::leading(credential)?;
        rest.is_empty().then_some(reference)
    }

    /// Splits `NAME.0123456789abcdef` off the beginning of `text`.
    fn leading(text: &str) -> Option<(Self, &str)> {
        let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric();
        let name = text.find(|c| !is_name(c))?;
        let end = name + 1 + DIGITS;
        let digits = text.get(name..end)?.strip_prefix('.')?;
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if name == 0
            || text.starts_with(|c: char| c.is_ascii_digit())
            || !digits.chars().all(is_digit)
        {
            return None;
        }
        let reference = Self {
            credential: text[..end].to_owned(),
            name,
        };
        Some((reference, &text[end..]))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.credential)
    }
}

/// A piece of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Sealed(Reference),
}

/// The pieces of a value; nothing if it holds a reference that is not complete.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(PREFIX) {
        let (reference, after) = Reference::leading(after)?;
        pieces.extend([Piece::Text(before), Piece::Sealed(reference)]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Some(pieces)
}

/// Whether there is a reference in a value, complete or not.
pub(crate) fn is_sealed(value: &str) -> bool {
    value.contains(PREFIX)
}

/// Whether every reference in a value is complete.
pub(crate) fn is_complete(value: &str) -> bool {
    pieces(value).is_some()
}

/// Every complete reference in `text`, which need not be a value.
pub(crate) fn references(text: &str) -> Vec<Reference> {
    text.split(PREFIX)
        .skip(1)
        .filter_map(|after| Some(Reference::leading(after)?.0))
        .collect()
}

/// The files of one deployment. Each is opened once at most.
#[derive(Debug)]
pub struct Vault {
    directory: PathBuf,
    opened: Mutex<HashMap<Reference, SecretString>>,
}

impl Vault {
    /// The files in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            opened: Mutex::default(),
        }
    }

    /// The files that belong to the `.env` at `path`.
    #[must_use]
    pub fn beside(path: &Path) -> Self {
        Self::new(path.with_file_name(CREDENTIALS))
    }

    /// Where a reference leads.
    #[must_use]
    pub fn path(&self, reference: &Reference) -> PathBuf {
        self.directory.join(reference.credential())
    }

    /// The value of a sealed variable as it was written, quotes included.
    ///
    /// # Errors
    /// When the file is missing, or can't be opened on this host.
    pub fn written(&self, reference: &Reference) -> Result<SecretString> {
        let known = |vault: &Self| {
            let opened = vault.opened.lock().unwrap_or_else(PoisonError::into_inner);
            opened.get(reference).cloned()
        };
        if let Some(known) = known(self) {
            return Ok(known);
        }
        let path = self.path(reference);
        let attempt = || {
            let ciphertext = std::fs::read(&path)?;
            systemd_creds::decrypt(reference.credential(), &ciphertext)
        };
        let text = attempt().map_err(|error| {
            Failure::new(format!(
                "{} is sealed, and {} can't be opened: {error:#}",
                reference.variable(),
                path.display()
            ))
            .hint(format!(
                "it can be opened only on the host that sealed it; if that host is lost, write {0}=… into .env again, then run `litellm-units secrets seal {0}`",
                reference.variable()
            ))
        })?;
        self.opened
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(reference.clone(), text.clone());
        Ok(text)
    }

    /// The value of a sealed variable.
    ///
    /// # Errors
    /// As [`Vault::written`].
    pub fn value(&self, reference: &Reference) -> Result<SecretString> {
        let written = self.written(reference)?;
        unwritten(reference.variable(), written.expose_secret()).ok_or_else(|| {
            Failure::new(format!(
                "{} contains no value that can be in .env",
                self.path(reference).display()
            ))
            .into()
        })
    }

    /// Opens every reference in a value.
    ///
    /// # Errors
    /// As [`Vault::written`].
    pub fn open(&self, text: &str) -> Result<SecretString> {
        let pieces = pieces(text).ok_or_else(|| {
            Failure::config("a value contains an incomplete reference to a sealed secret")
        })?;
        let mut value = String::with_capacity(text.len());
        for piece in pieces {
            match piece {
                Piece::Text(text) => value.push_str(text),
                Piece::Sealed(reference) => {
                    value.push_str(self.value(&reference)?.expose_secret());
                }
            }
        }
        Ok(value.into())
    }
}

/// What the name of a sealed file ends with.
pub(crate) const SUFFIX: &str = ".sealed";

/// Where the gateway's container has the sealed files of `files/` in clear, by their names without [`SUFFIX`].
pub(crate) const FILES: &str = "/run/litellm-units/files";

/// Whether a file of `files/` can be sealed: its name becomes a part of others.
pub(crate) fn is_file_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() < 200
        && name.chars().all(is_plain)
        && !name.ends_with(SUFFIX)
}

/// The content of the sealed files of `files/`, by their names without [`SUFFIX`].
///
/// # Errors
/// When one can't be opened on this host.
pub(crate) fn files(paths: &Paths) -> Result<Vec<(String, SecretString)>> {
    let mut opened = Vec::new();
    for path in files::entries(&paths.credential_files())? {
        let name = files::name(&path).and_then(|name| name.strip_suffix(SUFFIX));
        let Some(name) = name.filter(|name| is_file_name(name)) else {
            continue;
        };
        let ciphertext = std::fs::read(&path).path_context("can't read", &path)?;
        let text = systemd_creds::decrypt(name, &ciphertext).map_err(|error| {
            Failure::config(format!("the sealed file {} can't be opened: {error:#}", path.display())).hint(format!(
                "it can be opened only on the host that sealed it: write {name} into files/ again, then run `litellm-units secrets seal --file {name}`"
            ))
        })?;
        opened.push((name.to_owned(), text));
    }
    Ok(opened)
}

/// What `NAME=written` in a `.env` means; nothing if more than the value is in it.
pub(crate) fn unwritten(name: &str, written: &str) -> Option<SecretString> {
    let env = EnvFile::parse(&format!("{name}={written}")).ok()?;
    let mut definitions = env.definitions();
    let first = definitions.next()?;
    let alone = definitions.next().is_none() && first.text == written;
    alone.then(|| first.value.into())
}

/// A value of `.env`, or what is made of one, which may be sealed: only when it is used, it is
/// opened.
#[derive(Clone, Debug)]
pub struct SecretValue {
    written: SecretString,
    form: Form,
    source: Source,
}

/// Where a value is.
#[derive(Clone, Debug)]
enum Source {
    /// In `.env`.
    Clear,
    /// In a file beside it, or a part of it is.
    Sealed(Arc<Vault>),
    /// Another program gives it.
    External(Arc<Lookup>),
}

/// What is made of a value.
#[derive(Clone, Debug)]
enum Form {
    /// The value itself.
    Plain,
    /// The URL of the local PostgreSQL with this role and database; the value is the password.
    Url { user: String, database: String },
    /// Redis' configuration; the value is the password.
    RedisConf,
}

impl SecretValue {
    /// The value of a variable as `.env` has it.
    #[must_use]
    pub fn new(written: &str, vault: &Arc<Vault>) -> Self {
        Self {
            written: written.into(),
            form: Form::Plain,
            source: if is_sealed(written) {
                Source::Sealed(Arc::clone(vault))
            } else {
                Source::Clear
            },
        }
    }

    /// A value that another program gives.
    pub(crate) fn of(lookup: Lookup) -> Self {
        Self {
            written: lookup.reference().into(),
            form: Form::Plain,
            source: Source::External(Arc::new(lookup)),
        }
    }

    /// A value that is no secret of `.env`.
    #[must_use]
    pub fn clear(text: &str) -> Self {
        Self {
            written: text.into(),
            form: Form::Plain,
            source: Source::Clear,
        }
    }

    /// With this value as the password, the URL of the local PostgreSQL.
    #[must_use]
    pub fn into_url(self, user: &str, database: &str) -> Self {
        let form = Form::Url {
            user: user.to_owned(),
            database: database.to_owned(),
        };
        Self { form, ..self }
    }

    /// With this value as the password, Redis' configuration.
    #[must_use]
    pub fn into_redis_conf(self) -> Self {
        let form = Form::RedisConf;
        Self { form, ..self }
    }

    /// Whether it is empty; one that is not in clear never is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self.form, Form::Plain) && self.written.expose_secret().is_empty()
    }

    /// Whether it is sealed, or a part of it is.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.source, Source::Sealed(_))
    }

    /// How to get it, if another program gives it.
    #[must_use]
    pub fn external(&self) -> Option<&Lookup> {
        match &self.source {
            Source::External(lookup) => Some(lookup),
            Source::Clear | Source::Sealed(_) => None,
        }
    }

    /// What it is made of: of a sealed value, this tells whether it is still the same one.
    /// Nothing if it is not sealed.
    #[must_use]
    pub fn sealed(&self) -> Option<String> {
        self.is_sealed()
            .then(|| format!("{:?} {}", self.form, self.written.expose_secret()))
    }

    /// What would be made of another value.
    #[must_use]
    pub fn with(&self, other: &str) -> SecretString {
        self.form.make(other)
    }

    /// The value, if it is in clear.
    #[must_use]
    pub fn in_clear(&self) -> Option<SecretString> {
        let clear = matches!(self.source, Source::Clear);
        clear.then(|| self.form.make(self.written.expose_secret()))
    }

    /// The value.
    ///
    /// # Errors
    /// When it is sealed and can't be opened; the message names the variable. When another program gives it:
    /// [`SecretValue::open_at`] opens that.
    pub fn open(&self) -> Result<SecretString> {
        let text = self.written.expose_secret();
        match &self.source {
            Source::Clear => Ok(self.form.make(text)),
            Source::Sealed(vault) => Ok(self.form.make(vault.open(text)?.expose_secret())),
            Source::External(lookup) => Err(Failure::config(format!(
                "{} is for containers only, since another program gives it",
                lookup.variable()
            ))
            .into()),
        }
    }

    /// The value that a container got, or would get now if none has started yet.
    ///
    /// # Errors
    /// As [`SecretValue::open`] and [`Lookup::fetch`].
    pub(crate) fn open_at(&self, paths: &Paths) -> Result<SecretString> {
        match &self.source {
            Source::External(lookup) => lookup.value(paths),
            Source::Clear | Source::Sealed(_) => self.open(),
        }
    }
}

impl Form {
    fn make(&self, value: &str) -> SecretString {
        match self {
            Self::Plain => value.into(),
            Self::Url { user, database } => format!(
                "postgresql://{}:{}@postgres:5432/{}",
                encode(user),
                encode(value),
                encode(database)
            )
            .into(),
            Self::RedisConf => redis_conf(value).into(),
        }
    }
}

fn encode(text: &str) -> percent_encoding::PercentEncode<'_> {
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, RESERVED)
}

/// Redis' configuration grammar takes `\xHH` in double quotes, so any byte can be carried
/// (<https://redis.io/docs/latest/operate/oss_and_stack/management/config/>).
fn redis_conf(password: &str) -> String {
    let mut text = String::from("requirepass \"");
    for byte in password.bytes() {
        // Writing to a String can't fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
    // For the health checks, which must not depend on the password of a moment ago: it may ask
    // whether the server answers, and nothing else.
    text.push_str("\"\nuser health on nopass -@all +ping\n");
    // Its log of writes holds everything; without this, it would write snapshots, too.
    text.push_str("save \"\"\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "systemd-creds:A_1.0123456789abcdef";

    #[test]
    fn references_and_what_only_looks_like_one() {
        let reference = Reference::new("A_1", 0x0123_4567_89ab_cdef);
        assert_eq!(reference.to_string(), A);
        assert_eq!(reference.variable(), "A_1");
        assert_eq!(reference.credential(), "A_1.0123456789abcdef");
        assert_eq!(
            Reference::to_credential("A_1.0123456789abcdef").as_ref(),
            Some(&reference)
        );
        let sealed = |text| pieces(text).map(|pieces| pieces.len());
        assert_eq!(sealed(""), Some(1));
        assert_eq!(sealed("sk-1"), Some(1));
        assert_eq!(sealed("systemd-creds"), Some(1));
        assert_eq!(sealed(A), Some(3));
        for wrong in [
            "systemd-creds:",
            "systemd-creds:A",
            "systemd-creds:A_1.0123456789abcde",
            "systemd-creds:A_1.0123456789abcdeF",
            "systemd-creds:A_1-0123456789abcdef",
            "systemd-creds:.0123456789abcdef",
            "systemd-creds:1A.0123456789abcdef",
            "systemd-creds:\u{e9}.0123456789abcdef",
            "systemd-creds:A.012345678\u{e9}abcdef",
            "systemd-creds: A.0123456789abcdef",
            "systemd-creds:../A.0123456789abcdef",
            "x systemd-creds:A.0123456789abcdef systemd-creds:",
        ] {
            assert_eq!(sealed(wrong), None, "{wrong}");
            assert!(is_sealed(wrong));
        }
        assert_eq!(Reference::to_credential("A_1.0123456789abcdef.new"), None);
    }

    #[test]
    fn names_of_files() {
        for name in ["google.json", "a", "AWS_token-1"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".a", "-a", "a b", "a/b", "..", "a.sealed", "\u{e9}"] {
            assert!(!is_file_name(name), "{name}");
        }
    }

    #[test]
    fn a_reference_may_be_a_part_of_a_value() {
        let text = format!("postgresql://me:{A}@db/{A}ff");
        let reference = Reference::new("A_1", 0x0123_4567_89ab_cdef);
        assert_eq!(
            pieces(&text),
            Some(vec![
                Piece::Text("postgresql://me:"),
                Piece::Sealed(reference.clone()),
                Piece::Text("@db/"),
                Piece::Sealed(reference.clone()),
                Piece::Text("ff"),
            ])
        );
        assert_eq!(
            references(&format!("# systemd-creds: or\nB='{A}'\n")),
            [reference]
        );
    }

    /// The editor writes it without quotes, or within those that are there; the parser gives it
    /// back, also through other variables.
    #[test]
    fn a_reference_survives_every_way_of_writing_it() {
        let mut env = EnvFile::parse("A=1\nB='2' # two\nC=\"3\"\nD=x${A}y\nE: 5\nexport F=6\n")
            .unwrap_or_default();
        for name in ["A", "B", "C", "E", "F", "G"] {
            assert_eq!(env.set(name, A), Ok(()));
        }
        assert_eq!(
            env.text(),
            format!("A={A}\nB='{A}' # two\nC=\"{A}\"\nD=x${{A}}y\nE: {A}\nexport F={A}\nG={A}\n")
        );
        for name in ["A", "B", "C", "E", "F", "G"] {
            assert_eq!(env.get(name), Some(A));
        }
        assert_eq!(env.get("D"), Some(&*format!("x{A}y")));
    }

    #[test]
    fn what_was_written_means_the_same_alone() {
        let value = |written| unwritten("A", written).map(|value| value.expose_secret().to_owned());
        assert_eq!(value("sk-1").as_deref(), Some("sk-1"));
        assert_eq!(value("'a b'").as_deref(), Some("a b"));
        assert_eq!(value("\"a\\nb\"").as_deref(), Some("a\nb"));
        assert_eq!(value("'two\nlines'").as_deref(), Some("two\nlines"));
        assert_eq!(value("a$$b").as_deref(), Some("a$b"));
        assert_eq!(value("a # b"), None);
        assert_eq!(value("a\nB=c"), None);
        assert_eq!(value("'a"), None);
    }

    #[test]
    fn what_can_not_be_opened_is_never_a_value() {
        let directory = std::env::temp_dir().join("litellm-units-no-such-directory");
        let vault = Arc::new(Vault::new(directory.clone()));
        let value = SecretValue::new(&format!("x{A}"), &vault);
        assert_eq!(value.in_clear().map(|_| ()), None);
        assert!(!value.is_empty());
        let error = value.open().map(|_| ()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "A_1 is sealed, and {}/A_1.0123456789abcdef can't be opened: No such file or directory (os error 2)",
                directory.display()
            )
        );
        assert_eq!(
            crate::error::hint(&error),
            Some(
                "it can be opened only on the host that sealed it; if that host is lost, write A_1=… into .env again, then run `litellm-units secrets seal A_1`"
            )
        );
        assert!(!format!("{value:?}").contains("systemd-creds:"));
    }
}

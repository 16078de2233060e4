//! Secrets sealed and unsealed: moved between `.env` and files that only this host can open, in
//! everything that this program keeps.
//!
//! A secret is first encrypted into a file of its own, and read back. Then `.env` is replaced as a
//! whole: before that all is in clear, after that all is sealed, and both work. What is kept of
//! older configurations follows, one file after the other; if that is interrupted, the next run
//! goes on. Files that nothing refers to any more go last.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};

use crate::deployment::applied::Applied;
use crate::deployment::env_file::{EnvFile, Written, quote};
use crate::deployment::external::is_reference;
use crate::deployment::extra;
use crate::deployment::sealed::{self, Reference, Vault, is_sealed, unwritten};
use crate::deployment::settings::{Settings, load_env};
use crate::deployment::snapshot;
use crate::deployment::variables::{is_secret, may_be_sealed};
use crate::error::{Failure, PathContext, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::files::files_below;
use crate::host::paths::Paths;
use crate::host::systemd_creds::{self, SealingKey};
use crate::random::kernel_random;

/// A shorter value may appear in a file by chance.
const SHORTEST_SEARCHED: usize = 16;
/// Larger files that are not this program's are not looked through for references.
const LARGEST: u64 = 1 << 20;

/// What is to be sealed, and how.
#[derive(Debug, Default)]
pub(crate) struct SealOptions {
    /// These variables; if there are none, all whose value is a secret.
    pub names: Vec<String>,
    /// With this key; otherwise the best that the host has.
    pub key: Option<SealingKey>,
    /// A new value for the one variable that is named.
    pub value: Option<SecretString>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The variables, in the order of `.env`, each once.
    pub names: Vec<String>,
    /// How many configurations that are kept had to follow.
    pub kept: usize,
}

/// Whether any variable of `.env` is sealed.
pub(crate) fn is_in_use(env: &EnvFile) -> bool {
    env.iter().any(|(_, value)| is_sealed(value))
}

/// Encrypts values into files of their own.
#[derive(Debug)]
pub(crate) struct Sealer<'a> {
    host: &'a Host,
    wanted: Option<SealingKey>,
    key: Option<SealingKey>,
    /// What is sealed already, as it was written.
    known: Vec<(SecretString, Reference)>,
    /// Whether that is all of what `.env` has.
    remembers: bool,
}

impl<'a> Sealer<'a> {
    /// With this key; otherwise the best that the host has.
    pub(crate) fn new(host: &'a Host, wanted: Option<SealingKey>) -> Self {
        Self {
            host,
            wanted,
            key: None,
            known: Vec::new(),
            remembers: false,
        }
    }

    /// With the key that the variables of `env` are sealed with.
    pub(crate) fn like(host: &'a Host, env: &EnvFile) -> Result<Self> {
        let vault = Vault::beside(&host.paths.env_file());
        let key = match sealed::references(env.text()).first() {
            Some(reference) => Some(key_of(&vault, reference)?),
            None => None,
        };
        Ok(Self::new(host, key))
    }

    /// The key, which is tried when it is first needed.
    fn key(&mut self) -> Result<SealingKey> {
        if let Some(key) = self.key {
            return Ok(key);
        }
        let key = SealingKey::choose(self.wanted, &self.host.progress)?;
        self.key = Some(key);
        Ok(key)
    }

    /// Seals a value, given as it is written in `.env`.
    pub(crate) fn seal(&mut self, name: &str, written: &str) -> Result<Reference> {
        let known = self.known.iter().find(|(value, reference)| {
            reference.variable() == name && value.expose_secret() == written
        });
        if let Some((_, reference)) = known {
            return Ok(reference.clone());
        }
        let written = SecretString::from(written);
        let key = self.key()?;
        let mut number = [0; 8];
        kernel_random(&mut number)?;
        let reference = Reference::new(name, u64::from_le_bytes(number));
        let ciphertext =
            systemd_creds::encrypt(key, reference.credential(), &written).map_err(|error| {
                Failure::new(format!("{name} can't be sealed: {error:#}"))
                    .hint("nothing was changed; test the key: `echo x | systemd-creds encrypt - -`")
            })?;
        let directory = self.host.paths.credentials();
        if !directory.is_dir() {
            files::make_directory(&directory, 0o700)?;
            files::sync_directory(&self.host.paths.deployment)?;
        }
        files::write_atomically(&directory.join(reference.credential()), &ciphertext, 0o600)?;
        fail::fail_point!("seal-encrypted");
        self.known.push((written, reference.clone()));
        Ok(reference)
    }

    /// Remembers what is sealed in `env`, so that the same value is not sealed twice.
    fn remember(&mut self, env: &EnvFile) -> Result<()> {
        if self.remembers {
            return Ok(());
        }
        let vault = Vault::beside(&self.host.paths.env_file());
        for reference in sealed::references(env.text()) {
            let written = vault.written(&reference)?;
            self.known.push((written, reference));
        }
        self.remembers = true;
        Ok(())
    }
}

/// The key that a reference is sealed with.
pub(crate) fn key_of(vault: &Vault, reference: &Reference) -> Result<SealingKey> {
    let path = vault.path(reference);
    std::fs::read(&path)
        .map_err(anyhow::Error::from)
        .and_then(|ciphertext| SealingKey::of(&ciphertext))
        .with_context(|| format!("{} can't be used", path.display()))
}

/// Seals secrets of `.env`, and of the configurations that are kept. The caller holds the
/// operation lock.
///
/// # Errors
/// When this host can't, or a value can't be sealed; `.env` is then as it was.
pub(crate) fn seal(host: &Host, options: &SealOptions) -> Result<Sealed> {
    let paths = &host.paths;
    let path = paths.env_file();
    let mut env = load_env(&path)?;
    Settings::from_env(&env, &path)?;
    if let (Some(value), [name]) = (&options.value, options.names.as_slice()) {
        // Checked where it would be, and written nowhere.
        env.set(name, value.expose_secret())
            .path_context("can't edit", &path)?;
        Settings::from_env(&env, &path)?;
    }
    check_names(&env, &options.names, &path)?;
    let mut sealer = Sealer::new(host, options.key);
    let (new, names) = match sealed(&env, &options.names, &mut sealer, &path) {
        Ok(done) => done,
        Err(error) => {
            // Some may have been encrypted by then, which nothing refers to.
            collect(paths)?;
            return Err(error);
        }
    };
    if !names.is_empty() {
        // Read from the disk, as it will be from now on.
        let vault = Vault::beside(&path);
        let (back, _) = unsealed(&new, &names, &vault, &path)?;
        let (whole, _) = unsealed(&env, &names, &vault, &path)?;
        if back.text() != whole.text() {
            return Err(Failure::new(
                "the sealed values differ after decryption, so nothing was changed",
            )
            .into());
        }
        Settings::from_env(&new, &path)?;
        fail::fail_point!("seal-before-env");
        files::write_atomically(&path, new.text().as_bytes(), 0o600)?;
        fail::fail_point!("seal-after-env");
    }
    let kept = follow(host, |old, place| {
        sealer.remember(&new)?;
        // Whatever is sealed now was a secret then.
        let mut of_now: Vec<String> = new
            .iter()
            .filter(|(name, value)| is_sealed(value) && may_be_sealed(name))
            .map(|(name, _)| name.to_owned())
            .collect();
        of_now.extend(secret_names(old));
        Ok(sealed(old, &of_now, &mut sealer, place)?.0)
    })?;
    finish(paths, &new)?;
    Ok(Sealed { names, kept })
}

/// Encrypts files of `files/` into files beside them, which the gateway gets in clear at its next start. The caller holds the
/// operation lock.
///
/// # Errors
/// When this host can't, or a file can't be sealed; those before it are.
pub(crate) fn seal_files(host: &Host, names: &[String], key: Option<SealingKey>) -> Result<()> {
    let directory = host.paths.credential_files();
    let key = SealingKey::choose(key, &host.progress)?;
    for name in names {
        let path = directory.join(name);
        if !sealed::is_file_name(name) {
            return Err(Failure::new(format!("{} can't be sealed", path.display()))
                .hint("name a file directly in files/, with only letters, digits and . _ - in its name")
                .into());
        }
        let text = std::fs::read(&path).path_context("can't read", &path)?;
        let Ok(text) = String::from_utf8(text).map(SecretString::from) else {
            return Err(Failure::new(format!("{} is not UTF-8", path.display()))
                .hint("only text can be sealed")
                .into());
        };
        let ciphertext = systemd_creds::encrypt(key, name, &text)
            .with_context(|| format!("{} can't be sealed", path.display()))?;
        let back = systemd_creds::decrypt(name, &ciphertext)?;
        if back.expose_secret() != text.expose_secret() {
            return Err(Failure::new(format!(
                "{} differs after decryption, so it was not sealed",
                path.display()
            ))
            .into());
        }
        let sealed = directory.join(format!("{name}{}", sealed::SUFFIX));
        files::write_atomically(&sealed, &ciphertext, 0o600)?;
    }
    Ok(())
}

/// Writes secrets into `.env` again, exactly as they were there. The caller holds the operation
/// lock.
///
/// # Errors
/// When one can't be opened; `.env` is then as it was.
pub(crate) fn unseal(host: &Host, names: &[String]) -> Result<Sealed> {
    let paths = &host.paths;
    let path = paths.env_file();
    let env = load_env(&path)?;
    check_names(&env, names, &path)?;
    let vault = Vault::beside(&path);
    let (clear, done) = unsealed(&env, names, &vault, &path)?;
    if !done.is_empty() {
        Settings::from_env(&clear, &path)?;
        fail::fail_point!("unseal-before-env");
        files::write_atomically(&path, clear.text().as_bytes(), 0o600)?;
        fail::fail_point!("unseal-after-env");
    }
    let kept = follow(
        host,
        |old, place| Ok(unsealed(old, names, &vault, place)?.0),
    )?;
    finish(paths, &clear)?;
    Ok(Sealed { names: done, kept })
}

/// Has kept configurations follow, each by what `change` makes of its `.env`. Returns how many
/// changed.
fn follow(
    host: &Host,
    mut change: impl FnMut(&EnvFile, &Path) -> Result<EnvFile>,
) -> Result<usize> {
    let paths = &host.paths;
    let mut followed = 0;
    for id in snapshot::all(paths)? {
        let path = snapshot::directory(paths, &id).join(".env");
        match follow_one(&path, &mut change) {
            Ok(true) => followed += 1,
            Ok(false) => {}
            Err(error) => host
                .progress
                .warn(&format!("{} was not changed: {error:#}", path.display())),
        }
        fail::fail_point!("seal-kept");
    }
    // A configuration is known by its content, so the one of now has another name.
    if let Some(good) = snapshot::last_good(paths)
        && snapshot::is_present(paths, &good)?
    {
        snapshot::mark_good(paths, &snapshot::keep(paths)?)?;
    }
    Ok(followed)
}

fn follow_one(
    path: &Path,
    change: &mut impl FnMut(&EnvFile, &Path) -> Result<EnvFile>,
) -> Result<bool> {
    let old = load_env(path)?;
    let new = change(&old, path)?;
    if new.text() == old.text() {
        return Ok(false);
    }
    files::write_atomically(path, new.text().as_bytes(), 0o600)?;
    Ok(true)
}

/// The names of the variables that are sealed when none is named.
fn secret_names(env: &EnvFile) -> Vec<String> {
    env.definitions()
        .filter(|found| {
            may_be_sealed(found.name)
                && is_secret(found.name, found.value)
                && !is_reference(found.text)
        })
        .map(|found| found.name.to_owned())
        .collect()
}

/// Refuses names that can't be meant.
fn check_names(env: &EnvFile, names: &[String], path: &Path) -> Result<()> {
    for name in names {
        if env.get(name).is_none_or(str::is_empty) {
            return Err(Failure::new(format!("{name} has no value in {}", path.display())).into());
        }
        if let Some(reference) = env.reference(name) {
            return Err(Failure::new(format!(
                "the value of {name} is not in {}: another program gives it ({reference})",
                path.display()
            ))
            .into());
        }
        if !may_be_sealed(name) {
            return Err(
                Failure::new(format!("{name} is not a secret and must stay in clear")).into(),
            );
        }
    }
    Ok(())
}

/// Seals the variables `names`, or all secrets if there are none. Returns those that were in clear.
fn sealed(
    env: &EnvFile,
    names: &[String],
    sealer: &mut Sealer<'_>,
    path: &Path,
) -> Result<(EnvFile, Vec<String>)> {
    let secrets = if names.is_empty() {
        secret_names(env)
    } else {
        names.to_vec()
    };
    let wrong = |line: usize, problem: &str, hint: &str| {
        Failure::config(format!("{}, line {line}: {problem}", path.display())).hint(hint)
    };
    let mut texts = Vec::new();
    let mut done: Vec<String> = Vec::new();
    let mut values = Vec::new();
    let is_in_clear = |found: Written<'_>| {
        secrets.iter().any(|name| name == found.name)
            && !found.value.is_empty()
            && !is_sealed(found.value)
            && !is_reference(found.text)
    };
    for found in env.definitions() {
        texts.push(if is_in_clear(found) && is_alone(found) {
            let reference = sealer.seal(found.name, found.text)?;
            values.push((found.name, found.value));
            if !done.iter().any(|name| name == found.name) {
                done.push(found.name.to_owned());
            }
            // Within the same quotes, since there may be more after them.
            let quote = match found.text.chars().next() {
                Some(quote @ ('\'' | '"')) => quote.to_string(),
                _ => String::new(),
            };
            Some(format!("{quote}{reference}{quote}"))
        } else {
            None
        });
    }
    let mut texts = texts.into_iter();
    let mut new = env.clone();
    new.rewrite(|_| texts.next().flatten())
        .path_context("can't edit", path)?;
    for (old, found) in env.definitions().zip(new.definitions()) {
        if is_in_clear(found) {
            return Err(wrong(
                old.line,
                &format!("{} refers to other variables, so it can't be sealed itself", found.name),
                "put the secret into a variable of its own and seal that one: `litellm-units secrets seal NAME`",
            )
            .into());
        }
    }
    for (name, value) in values {
        if value.len() >= SHORTEST_SEARCHED
            && let Some(at) = new.text().find(value)
        {
            return Err(wrong(
                line_before(env, &new, at),
                &format!("the value of {name} is repeated here"),
                "remove it here, or seal this variable, too: `litellm-units secrets seal NAME`",
            )
            .into());
        }
    }
    Ok((new, done))
}

/// The line in `old` of what is at byte `at` of `new`, where values over several lines may have
/// become short.
fn line_before(old: &EnvFile, new: &EnvFile, at: usize) -> usize {
    let breaks = |text: &str| text.matches('\n').count();
    let line = breaks(&new.text()[..at]) + 1;
    let shift = old
        .definitions()
        .zip(new.definitions())
        .take_while(|(_, new)| new.line <= line)
        .map(|(old, new)| old.line - new.line + breaks(old.text) - breaks(new.text))
        .last();
    line + shift.unwrap_or_default()
}

/// Whether a value means the same without the lines around it.
fn is_alone(found: Written<'_>) -> bool {
    unwritten(found.name, found.text).is_some_and(|value| value.expose_secret() == found.value)
}

/// Writes the variables `names`, or all if there are none, in clear. Returns those that were
/// sealed.
fn unsealed(
    env: &EnvFile,
    names: &[String],
    vault: &Vault,
    path: &Path,
) -> Result<(EnvFile, Vec<String>)> {
    let mut texts = Vec::new();
    let mut done: Vec<String> = Vec::new();
    for found in env.definitions() {
        let is_meant = names.is_empty() || names.iter().any(|name| name == found.name);
        // A value may be sealed through another variable, too.
        texts.push(if is_meant && is_sealed(found.text) {
            if !done.iter().any(|name| name == found.name) {
                done.push(found.name.to_owned());
            }
            let bare = found.text.trim_matches(['\'', '"']);
            let whole = bare
                .strip_prefix(sealed::PREFIX)
                .and_then(Reference::to_credential);
            Some(match whole {
                Some(reference) => vault.written(&reference)?.expose_secret().to_owned(),
                None => quote(vault.open(found.value)?.expose_secret()).into_owned(),
            })
        } else {
            None
        });
    }
    let mut texts = texts.into_iter();
    let mut new = env.clone();
    new.rewrite(|_| texts.next().flatten())
        .path_context("can't edit", path)?;
    Ok((new, done))
}

/// The text of `.env` with every secret in clear, for where it is protected otherwise.
pub(crate) fn in_clear(env: &EnvFile, path: &Path) -> Result<SecretString> {
    let (clear, _) = unsealed(env, &[], &Vault::beside(path), path)?;
    Ok(clear.text().into())
}

/// A `.env` for a deployment whose secrets are sealed: those of `env` are, too. The same value keeps its reference.
pub(crate) fn protected(host: &Host, like: &EnvFile, env: &EnvFile) -> Result<EnvFile> {
    let mut sealer = Sealer::like(host, like)?;
    // One that can't be opened any more is sealed anew.
    drop(sealer.remember(like));
    Ok(sealed(env, &[], &mut sealer, &host.paths.env_file())?.0)
}

/// Notes what the running containers' inputs are made of now, which did not change, and removes
/// what nothing refers to any more.
fn finish(paths: &Paths, env: &EnvFile) -> Result<()> {
    let settings = Settings::from_env(env, &paths.env_file())?;
    for instance in extra::instances(paths) {
        Applied::renew(paths, &settings, instance)?;
    }
    collect(paths)
}

/// Removes the files of sealed values that nothing refers to: neither `.env` nor another file
/// directly in the deployment directory, nor anything that this program keeps.
///
/// # Errors
/// When a file can't be read: then none is removed.
pub(crate) fn collect(paths: &Paths) -> Result<()> {
    let directory = paths.credentials();
    if !directory.is_dir() {
        return Ok(());
    }
    let mut files = Vec::new();
    if paths.state().is_dir() {
        files.extend(files_below(&paths.state())?);
    }
    for entry in list(&paths.deployment)? {
        files.push(entry.path());
    }
    let mut used = BTreeSet::new();
    for file in files {
        let is_ours = file == paths.env_file() || file.starts_with(paths.state());
        let metadata = std::fs::metadata(&file);
        if metadata.is_ok_and(|found| found.is_file() && (is_ours || found.len() <= LARGEST)) {
            let bytes = std::fs::read(&file).path_context("can't read", &file)?;
            used.extend(sealed::references(&String::from_utf8_lossy(&bytes)));
        }
    }
    for entry in list(&directory)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_unused =
            Reference::to_credential(&name).is_some_and(|reference| !used.contains(&reference));
        // What an interrupted run was writing.
        if is_unused || name.starts_with(files::TEMPORARY) {
            std::fs::remove_file(entry.path()).path_context("can't remove", entry.path())?;
        }
    }
    if list(&directory)?.is_empty() {
        std::fs::remove_dir(&directory).path_context("can't remove", &directory)?;
        return files::sync_directory(&paths.deployment);
    }
    files::sync_directory(&directory)
}

fn list(directory: &Path) -> Result<Vec<std::fs::DirEntry>> {
    std::fs::read_dir(directory)
        .and_then(Iterator::collect)
        .path_context("can't read", directory)
}

/// The keys that the secrets of `.env` are sealed with: mostly one.
pub(crate) fn keys(env: &EnvFile, path: &Path) -> Result<BTreeSet<SealingKey>> {
    let vault = Vault::beside(path);
    sealed::references(env.text())
        .iter()
        .map(|reference| key_of(&vault, reference))
        .collect()
}

//! Which deployment made a backup: an HMAC-SHA-256 of its manifest, by a key that is in no backup.
//!
//! The manifest has the SHA-256 of every other file, so the code covers all of them. It says who made a
//! backup, and not that the backup is the newest one.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2_of_age::Sha256;

use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::output::shell_word;
use crate::random::{hex, kernel_random, password};

/// The name of the file with the code in a backup.
pub(crate) const FILE: &str = "manifest.hmac";
/// The length of a key and of a code: 256 bits in hexadecimal.
const DIGITS: usize = 64;

/// The deployment that made a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This one.
    Own,
    /// Another one, or nobody knows: why.
    Foreign(&'static str),
}

/// The key of a deployment.
#[derive(Debug)]
pub(crate) struct BackupKey(SecretString);

impl BackupKey {
    /// Reads the key, and makes one where there is none. Of two that do so at the same time, both get the first one.
    pub(crate) fn create(paths: &Paths) -> Result<Self> {
        if let Some(key) = Self::load(paths)? {
            return Ok(key);
        }
        let key = password(&mut kernel_random)?;
        super::make_private(&paths.state())?;
        let path = paths.backup_key();
        let attempt = || {
            let mut file = tempfile::NamedTempFile::new_in(paths.state())?;
            file.write_all(key.as_bytes())?;
            file.as_file().sync_all()?;
            match file.persist_noclobber(&path) {
                Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
                persisted => persisted.map(|_| true).map_err(|error| error.error),
            }
        };
        if !attempt().path_context("can't write", &path)? {
            let key = Self::load(paths)?;
            return key.with_context(|| format!("{} was removed", path.display()));
        }
        files::sync_directory(&paths.state())?;
        Ok(Self(key.into()))
    }

    fn load(paths: &Paths) -> Result<Option<Self>> {
        let path = paths.backup_key();
        let text = match read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.path_context("can't read", &path)?,
        };
        if text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Some(Self(text.into())));
        }
        Err(Failure::new(format!("{} is damaged", path.display()))
            .hint(format!(
                "remove it (`rm {}`): the next backup makes a new one, and earlier backups then need `--foreign`",
                shell_word(&path)
            ))
            .into())
    }

    fn mac(&self, manifest: &[u8]) -> Result<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(self.0.expose_secret().as_bytes());
        Ok(mac
            .context("the key has a wrong length")?
            .chain_update(manifest))
    }

    /// The code of a manifest.
    ///
    /// # Errors
    /// Never: HMAC takes a key of any length.
    pub(crate) fn code(&self, manifest: &[u8]) -> Result<String> {
        Ok(hex(&self.mac(manifest)?.finalize().into_bytes()))
    }

    /// Whether the key of this deployment gives that code for a text.
    pub(crate) fn is_own(paths: &Paths, text: &[u8], code: &str) -> Result<bool> {
        let key = Self::load(paths)?;
        Ok(key
            .zip(bytes(code))
            .is_some_and(|(key, code)| key.accepts(text, &code)))
    }

    /// Compares in constant time.
    fn accepts(&self, text: &[u8], code: &[u8]) -> bool {
        self.mac(text)
            .is_ok_and(|mac| mac.verify_slice(code).is_ok())
    }
}

/// The origin of the backup in `directory`, whose manifest is `manifest`.
pub(crate) fn origin(paths: &Paths, directory: &Path, manifest: &[u8]) -> Result<Origin> {
    let path = directory.join(FILE);
    let code = match read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Origin::Foreign("it has no authentication code"));
        }
        code => code.path_context("can't read", &path)?,
    };
    let Some(key) = BackupKey::load(paths)? else {
        return Ok(Origin::Foreign("this deployment has made no backup yet"));
    };
    let is_own = bytes(&code).is_some_and(|code| key.accepts(manifest, &code));
    Ok(if is_own {
        Origin::Own
    } else {
        Origin::Foreign("its authentication code is by another key, or its manifest was changed")
    })
}

/// Reads a small text file. One that is longer than a code is cut off, and then is none.
fn read(path: &Path) -> std::io::Result<String> {
    let mut text = Vec::new();
    let limit = DIGITS as u64 + 2;
    files::open_regular(path)?
        .take(limit)
        .read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// The bytes of hexadecimal digits.
fn bytes(text: &str) -> Option<Vec<u8>> {
    if text.len() != DIGITS || !text.is_ascii() {
        return None;
    }
    (0..DIGITS)
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn paths(root: &Path) -> Paths {
        Paths::in_test(root)
    }

    #[test]
    fn codes_are_hmac_sha_256() {
        // RFC 4231, test case 2.
        let key = BackupKey("Jefe".to_owned().into());
        assert_eq!(
            key.code(b"what do ya want for nothing?").unwrap(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn only_the_own_key_makes_a_backup_ones_own() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (paths(own.path()), paths(other.path()));
        let backup = tempfile::tempdir().unwrap();
        let origin =
            |paths: &Paths, manifest: &[u8]| origin(paths, backup.path(), manifest).unwrap();
        assert_eq!(
            origin(&own, b"{}"),
            Origin::Foreign("it has no authentication code")
        );

        let key = BackupKey::create(&own).unwrap();
        let code = backup.path().join(FILE);
        std::fs::write(&code, key.code(b"{}").unwrap() + "\n").unwrap();
        assert_eq!(origin(&own, b"{}"), Origin::Own);
        let unknown = "this deployment has made no backup yet";
        assert_eq!(origin(&other, b"{}"), Origin::Foreign(unknown));
        BackupKey::create(&other).unwrap();
        let changed = "its authentication code is by another key, or its manifest was changed";
        assert_eq!(origin(&other, b"{}"), Origin::Foreign(changed));
        assert_eq!(origin(&own, b"{ }"), Origin::Foreign(changed));
        for damaged in [
            "",
            "00",
            "é",
            &"0".repeat(64),
            &"x".repeat(64),
            &"0".repeat(1000),
        ] {
            std::fs::write(&code, damaged).unwrap();
            assert_eq!(origin(&own, b"{}"), Origin::Foreign(changed), "{damaged}");
        }

        // It is made once, and never replaced unless the operator removes it.
        let path = own.backup_key();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let again = BackupKey::create(&own).unwrap();
        assert_eq!(again.code(b"{}").unwrap(), key.code(b"{}").unwrap());
        std::fs::write(&path, "short").unwrap();
        let error = BackupKey::create(&own).unwrap_err().to_string();
        assert_eq!(error, format!("{} is damaged", path.display()));
    }
}

//! systemd-creds: text encrypted with a key that does not leave this host.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::statfs::{FsType, statfs};
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Failure, Result};
use crate::host::child;
use crate::output::Progress;

const PROGRAM: &str = "systemd-creds";
/// A TPM takes its time, above all when others use it too.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Where systemd keeps the host key.
const HOST_KEY: &str = "/var/lib/systemd/credential.secret";
/// The TPM as the kernel shares it among programs.
const TPM: &str = "/dev/tpmrm0";
/// `ramfs`, which nix has no name for.
const RAMFS: i64 = 0x8584_58f6;

/// What a ciphertext begins with: its kind, which systemd calls an identifier of 128 bits, in
/// base64. A null key protects nothing, so what it encrypted is not accepted.
const KINDS: [(&str, Option<SealingKey>); 6] = [
    ("Whxqht+dQJax1aZeCGLxm", Some(SealingKey::Host)),
    ("DHzAexF2RZGcSwvqCLwg/", Some(SealingKey::Tpm2)),
    ("+vfrk0HjQSyhpDb5Wik2L", Some(SealingKey::Tpm2)),
    ("k6iUCUh0RJCQyvL8k8q1U", Some(SealingKey::Both)),
    ("r0lQqEkTTrGnOEYwT/MMB", Some(SealingKey::Both)),
    ("BYRp2vb1QySABUnaD46i+", None),
];

/// What a ciphertext can be opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum SealingKey {
    /// A file that root alone can read, on this host's disk
    Host,
    /// This host's TPM, which never gives its key away
    Tpm2,
    /// Both of them together
    #[value(name = "host+tpm2")]
    Both,
}

impl fmt::Display for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => write!(f, "the host key ({HOST_KEY})"),
            Self::Tpm2 => f.write_str("the TPM's key"),
            Self::Both => write!(f, "the host key ({HOST_KEY}) and the TPM's"),
        }
    }
}

impl SealingKey {
    fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Tpm2 => "tpm2",
            Self::Both => "host+tpm2",
        }
    }

    /// The key that opens `ciphertext`.
    ///
    /// # Errors
    /// When there is none: it is no ciphertext, or protects nothing.
    pub(crate) fn of(ciphertext: &[u8]) -> Result<Self> {
        let kind = KINDS
            .iter()
            .find(|(start, _)| ciphertext.starts_with(start.as_bytes()));
        match kind {
            Some((_, Some(key))) => Ok(*key),
            Some((_, None)) => {
                anyhow::bail!("it is encrypted with a null key, so anyone may have written it")
            }
            None => anyhow::bail!("it was not written by systemd-creds"),
        }
    }

    /// The key to encrypt with on this host: `wanted`, or the best that there is. It is tried.
    ///
    /// # Errors
    /// When this host has none, or it does not work.
    pub(crate) fn choose(wanted: Option<Self>, progress: &Progress) -> Result<Self> {
        let refuse = |reason: &str| {
            Failure::new(format!("this host can't seal secrets: {reason}"))
                .hint("nothing was changed: the secrets stay in .env")
        };
        let is_forgotten = is_forgotten(Path::new(HOST_KEY));
        let best = if is_forgotten { Self::Tpm2 } else { Self::Both };
        let key = match wanted {
            Some(key) => key,
            None if Path::new(TPM).exists() => match best.attempt() {
                Ok(()) => return Ok(best),
                Err(error) => {
                    progress.warn(&format!(
                        "the TPM can't be used, so the host key alone is used: {error:#}"
                    ));
                    Self::Host
                }
            },
            None => Self::Host,
        };
        if key != Self::Tpm2 && is_forgotten {
            return Err(refuse(&format!(
                "{HOST_KEY} would be in memory only and lost at the next boot"
            ))
            .into());
        }
        key.attempt()
            .map_err(|error| refuse(&format!("{error:#}")))?;
        Ok(key)
    }

    fn attempt(self) -> Result<()> {
        let text = SecretString::from("a text");
        let ciphertext = encrypt(self, "litellm-units.attempt", &text)?;
        let found = decrypt("litellm-units.attempt", &ciphertext)?;
        anyhow::ensure!(
            found.expose_secret() == text.expose_secret(),
            "the decrypted text differs from the encrypted one"
        );
        Ok(())
    }
}

/// Encrypts `text` so that it can be opened under this name only. The TPM's key is not bound to
/// what was booted: an update of the firmware must not lock the gateway out.
pub(crate) fn encrypt(key: SealingKey, name: &str, text: &SecretString) -> Result<Vec<u8>> {
    let name = format!("--name={name}");
    let with = format!("--with-key={}", key.word());
    let mut words = vec!["encrypt", &name, &with];
    if key != SealingKey::Host {
        words.push("--tpm2-pcrs=");
    }
    let ciphertext = run(&words, text.expose_secret().as_bytes())?;
    anyhow::ensure!(
        SealingKey::of(&ciphertext)? == key,
        "systemd-creds used another key than {key}"
    );
    Ok(ciphertext)
}

/// Opens what [`encrypt`] made under the same name.
///
/// # Errors
/// With the words of systemd-creds: it was made on another host, or under another name, or was
/// changed.
pub(crate) fn decrypt(name: &str, ciphertext: &[u8]) -> Result<SecretString> {
    SealingKey::of(ciphertext)?;
    let name = format!("--name={name}");
    let text = run(&["decrypt", &name, "--newline=no"], ciphertext)?;
    let text = String::from_utf8(text).map_err(|_| anyhow::anyhow!("it is not a text"))?;
    Ok(text.into())
}

/// Whether `path` is, or would be, in memory only.
fn is_forgotten(path: &Path) -> bool {
    path.ancestors()
        .find_map(|path| statfs(path).ok())
        .is_some_and(|found| {
            let kind = found.filesystem_type();
            kind == nix::sys::statfs::TMPFS_MAGIC || kind == FsType(RAMFS)
        })
}

/// Runs systemd-creds; texts pass through pipes only.
fn run(words: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new(PROGRAM);
    command.args(words).args(["-", "-"]).env("LC_ALL", "C");
    // What it opens has at most the size of what was sealed.
    let output = child::run(&mut command, input, TIMEOUT, u64::MAX)?;
    match output.said(&[]) {
        _ if output.status.success() => Ok(output.stdout),
        Some(reason) => anyhow::bail!("{PROGRAM}: {}", reason.trim_end_matches('.')),
        None => anyhow::bail!("{PROGRAM} failed ({})", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_ciphertexts() {
        let kind = |text: &str| SealingKey::of(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(
            kind("Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABA"),
            Ok(SealingKey::Host)
        );
        // From systemd's own documentation.
        assert_eq!(
            kind("k6iUCUh0RJCQyvL8k8q1UyAAAAABAAAADAAAABA"),
            Ok(SealingKey::Both)
        );
        assert_eq!(
            kind("BYRp2vb1QySABUnaD46i+yAAAAABAAAADAAAABA"),
            Err("it is encrypted with a null key, so anyone may have written it".into())
        );
        assert_eq!(
            kind("sk-1234"),
            Err("it was not written by systemd-creds".into())
        );
    }

    #[test]
    fn what_is_in_memory_is_forgotten() {
        assert!(is_forgotten(Path::new("/dev/shm/no/such/file")));
        assert!(!is_forgotten(Path::new("/proc/no/such/file")));
    }
}

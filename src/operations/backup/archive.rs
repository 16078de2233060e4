//! Files of a backup: compressed, encrypted, hashed, and read again.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::manifest::{BackupManifest, StoredFile};
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::output::{Meter, Progress};
use crate::random::hex;

const BUFFER: usize = 256 * 1024;
/// zstd's own default: from here on, more time saves little space.
const LEVEL: i32 = 3;

/// The recipient to whom the files are encrypted, if there is one.
#[derive(Clone)]
pub(crate) struct Recipient(Option<age::x25519::Recipient>);

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recipient").field(&self.word()).finish()
    }
}

impl Recipient {
    /// Reads `age1…`; `None` means that files are not encrypted.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self> {
        let Some(text) = text else {
            return Ok(Self(None));
        };
        match text.parse() {
            Ok(recipient) => Ok(Self(Some(recipient))),
            Err(reason) => Err(Failure::config(format!(
                "{text:?} is not an age recipient: {reason}"
            ))
            .hint(
                "make a key pair with `age-keygen -o key.txt`; the recipient is its public key, age1…",
            )
            .into()),
        }
    }

    /// The recipient as text.
    pub(crate) fn word(&self) -> Option<String> {
        self.0.as_ref().map(ToString::to_string)
    }
}

/// Writes one file of a backup, synced, readable only by the owner.
pub(crate) fn store(
    directory: &Path,
    name: &str,
    compress: bool,
    recipient: &Recipient,
    source: &mut dyn Read,
) -> Result<StoredFile> {
    let mut stored = name.to_owned();
    if compress {
        stored.push_str(".zst");
    }
    if recipient.0.is_some() {
        stored.push_str(".age");
    }
    let path = directory.join(&stored);
    let mut attempt = || -> Result<StoredFile> {
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)?;
        }
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let sink = Hashing {
            inner: BufWriter::with_capacity(BUFFER, file),
            hash: Sha256::new(),
            size: 0,
        };
        let sink = match &recipient.0 {
            None => pump(source, sink, compress)?,
            Some(recipient) => {
                let one: [&dyn age::Recipient; 1] = [recipient];
                let encryptor = age::Encryptor::with_recipients(one.into_iter())?;
                pump(source, encryptor.wrap_output(sink)?, compress)?.finish()?
            }
        };
        let file = sink
            .inner
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(StoredFile {
            name: name.to_owned(),
            stored: stored.clone(),
            mode: None,
            size: sink.size,
            sha256: hex(&sink.hash.finalize()),
        })
    };
    attempt().path_context("can't write", &path)
}

fn pump<W: Write>(source: &mut dyn Read, mut sink: W, compress: bool) -> io::Result<W> {
    if !compress {
        copy(source, &mut sink)?;
        return Ok(sink);
    }
    let mut encoder = zstd::Encoder::new(sink, LEVEL)?;
    // One worker: this thread reads and hashes while that one compresses.
    encoder.multithread(1)?;
    encoder.include_checksum(true)?;
    copy(source, &mut encoder)?;
    encoder.finish()
}

/// `io::copy` with a buffer that suits pipes.
pub(crate) fn copy(source: &mut dyn Read, sink: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => sink.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

struct Hashing {
    inner: BufWriter<File>,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Opens what [`store`] wrote, for reading as it was before.
pub(crate) fn open(
    directory: &Path,
    manifest: &BackupManifest,
    name: &str,
    identity: Option<&Path>,
) -> Result<Box<dyn Read + Send>> {
    let stored = &manifest.file(name)?.stored;
    open_stored(&directory.join(stored), manifest, identity)
}

/// As [`open`], of a file that is in no manifest: it is compressed and encrypted as its name says. `manifest` is for messages.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_stored(
    path: &Path,
    manifest: &BackupManifest,
    identity: Option<&Path>,
) -> Result<Box<dyn Read + Send>> {
    let name = path.to_string_lossy();
    let file = files::open_regular(path).path_context("can't open", path)?;
    let file = io::BufReader::with_capacity(BUFFER, file);
    let (plain, stored): (Box<dyn Read + Send>, &str) = match name.strip_suffix(".age") {
        None => (Box::new(file), &name),
        Some(stored) => {
            let identities = identities(manifest, identity)?;
            let decryptor = age::Decryptor::new_buffered(file)
                .with_context(|| format!("{} is not encrypted by age", path.display()))?;
            let reader = decryptor
                .decrypt(identities.iter().map(|identity| &**identity as _))
                .map_err(|error| {
                    Failure::new(format!("can't decrypt {}: {error}", path.display())).hint(
                        format!(
                            "the backup is encrypted to {}: name the file with its secret key with `--identity FILE`",
                            recipient(manifest)
                        ),
                    )
                })?;
            (Box::new(reader), stored)
        }
    };
    if Path::new(stored)
        .extension()
        .is_some_and(|end| end == "zst")
    {
        return Ok(Box::new(zstd::Decoder::new(plain)?));
    }
    Ok(plain)
}

fn recipient(manifest: &BackupManifest) -> &str {
    manifest
        .encryption
        .as_ref()
        .map_or("an age recipient", |encryption| &encryption.recipient)
}

fn identities(
    manifest: &BackupManifest,
    path: Option<&Path>,
) -> Result<Vec<Box<dyn age::Identity + Send + Sync>>> {
    let Some(path) = path else {
        return Err(Failure::new(format!(
            "backup {} is encrypted to {}",
            manifest.id,
            recipient(manifest)
        ))
        .hint("name the file with the secret key: `--identity FILE`")
        .into());
    };
    let attempt = || -> Result<_> {
        let file = File::open(path)?;
        Ok(age::IdentityFile::from_buffer(io::BufReader::new(file))?.into_identities()?)
    };
    attempt().map_err(|error| {
        Failure::new(format!(
            "can't use the age identity {}: {error}",
            path.display()
        ))
        .hint("give the file that `age-keygen -o FILE` wrote")
        .into()
    })
}

/// Reads a whole small file of a backup.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(
    directory: &Path,
    manifest: &BackupManifest,
    name: &str,
    identity: Option<&Path>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(directory, manifest, name, identity)?
        .read_to_end(&mut bytes)
        .with_context(|| format!("can't read {name} of backup {}", manifest.id))?;
    Ok(bytes)
}

/// Compares every file with the manifest.
///
/// # Errors
/// When one is missing or differs; all such files are named.
pub(crate) fn check_files(
    directory: &Path,
    manifest: &BackupManifest,
    meter: &Meter,
) -> Result<()> {
    let mut wrong = Vec::new();
    for entry in &manifest.files {
        let path = directory.join(&entry.stored);
        match hash_file(&path, meter) {
            Err(error) => wrong.push(format!("{}: {error}", entry.stored)),
            Ok((size, _)) if size != entry.size => wrong.push(format!(
                "{}: {size} bytes instead of {}",
                entry.stored, entry.size
            )),
            Ok((_, hash)) if hash != entry.sha256 => {
                wrong.push(format!("{}: its SHA-256 differs", entry.stored));
            }
            Ok(_) => {}
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "backup {} is damaged:\n  {}",
        manifest.id,
        wrong.join("\n  ")
    ))
    .hint("use another one (`litellm-units backup list`), and check the disk")
    .into())
}

/// The SHA-256 of a file.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    let quiet = Meter::new("", 0, &Progress::Silent);
    Ok(hash_file(path, &quiet)?.1)
}

fn hash_file(path: &Path, meter: &Meter) -> io::Result<(u64, String)> {
    let mut file = files::open_regular(path)?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok((size, hex(&hash.finalize())));
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
        meter.add(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::backup::manifest::tests::manifest;
    use age::secrecy::ExposeSecret;

    fn round_trip(compress: bool, identity: Option<&age::x25519::Identity>) {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.txt");
        let recipient = identity.map(|identity| {
            std::fs::write(&key, identity.to_string().expose_secret()).unwrap();
            identity.to_public().to_string()
        });
        let recipient = Recipient::parse(recipient.as_deref()).unwrap();
        let content = b"a row, and ".repeat(100_000);
        let mut manifest = manifest(Vec::new());
        let entry = store(
            directory.path(),
            "deployment/file",
            compress,
            &recipient,
            &mut content.as_slice(),
        )
        .unwrap();
        manifest.files.push(entry);
        let quiet = Meter::new("", 0, &Progress::Silent);
        check_files(directory.path(), &manifest, &quiet).unwrap();
        let read = read(
            directory.path(),
            &manifest,
            "deployment/file",
            Some(key.as_path()),
        );
        assert!(read.unwrap() == content);

        let path = directory.path().join(&manifest.files[0].stored);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = check_files(directory.path(), &manifest, &quiet).unwrap_err();
        assert!(error.to_string().contains("its SHA-256 differs"));
    }

    #[test]
    fn what_is_stored_comes_back() {
        let identity = age::x25519::Identity::generate();
        round_trip(false, None);
        round_trip(true, None);
        round_trip(false, Some(&identity));
        round_trip(true, Some(&identity));
    }

    #[test]
    fn the_key_of_another_opens_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join("key.txt");
        let other = age::x25519::Identity::generate();
        std::fs::write(&key, other.to_string().expose_secret()).unwrap();
        let owner = age::x25519::Identity::generate().to_public().to_string();
        let recipient = Recipient::parse(Some(&owner)).unwrap();
        let mut manifest = manifest(Vec::new());
        let entry = store(
            directory.path(),
            "file",
            true,
            &recipient,
            &mut &b"text"[..],
        )
        .unwrap();
        manifest.files.push(entry);
        for identity in [None, Some(key.as_path())] {
            assert!(open(directory.path(), &manifest, "file", identity).is_err());
        }
    }
}

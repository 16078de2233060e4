//! What an operator writes of a deployment, as a whole: `.env`, everything under `config/`, `certs/` and `files/`, and the
//! files of `entrance/` and `extra.d/`.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

use crate::deployment::entrance::{CERTIFICATE, KEY};
use crate::deployment::env_file::EnvFile;
use crate::deployment::settings::parse_env;
use crate::error::{Failure, PathContext, Result};
use crate::host::files::{self, configuration_files, entries};

/// The name of the settings among the files.
const ENV: &str = ".env";
/// The size of a tar.
const LIMIT: u64 = 64 << 20;

/// The content and the mode of each file, by its path relative to the deployment directory.
#[derive(Default)]
pub struct Configuration(BTreeMap<PathBuf, (Vec<u8>, u32)>);

impl Configuration {
    /// The one in the directory `root`, beside other files.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let mut paths = configuration_files(root)?;
        paths.extend(entries(&root.join("entrance"))?);
        paths.push(root.join(ENV));
        let mut found = BTreeMap::new();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            let attempt = || std::io::Result::Ok((std::fs::read(&path)?, path.metadata()?));
            let (bytes, metadata) = attempt().path_context("can't read", &path)?;
            let name = path.strip_prefix(root)?.to_owned();
            found.insert(name, (bytes, metadata.permissions().mode() & 0o7777));
        }
        Ok(Self(found).without_links(root))
    }

    /// Without a certificate or key that is a link in `root`: another program renews what it leads to.
    #[must_use]
    pub(crate) fn without_links(mut self, root: &Path) -> Self {
        let is_linked = |name: &Path| is_of_certificate(name) && root.join(name).is_symlink();
        self.0.retain(|name, _| !is_linked(name));
        self
    }

    /// Whether there is no file.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads a tar, of which nothing is trusted.
    ///
    /// # Errors
    /// When it is damaged, or has a member that no configuration has.
    pub fn from_tar(source: impl Read) -> Result<Self> {
        let damaged = "it is not a whole tar of a configuration, of 64 MiB at most";
        let mut tar = Vec::new();
        source.take(LIMIT).read_to_end(&mut tar).context(damaged)?;
        let mut found = BTreeMap::new();
        let mut end = 0;
        for entry in tar::Archive::new(&*tar).entries().context(damaged)? {
            let mut entry = entry.context(damaged)?;
            end = entry.raw_file_position() + entry.size().next_multiple_of(512);
            let kind = entry.header().entry_type();
            if kind.is_dir() {
                continue;
            }
            let path = entry.path().context(damaged)?.into_owned();
            let shown = path.to_string_lossy();
            let refused = |why| Failure::config(format!("the tar has {shown:?}, {why}"));
            let name = member(&path).ok_or_else(|| refused("which no configuration has"))?;
            if !kind.is_file() {
                return Err(refused("which is not a regular file").into());
            }
            let mode = match entry.header().mode().context(damaged)? {
                _ if is_secret(&name) => 0o600,
                mode => mode & 0o755 | 0o400,
            };
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).context(damaged)?;
            if found.insert(name, (bytes, mode)).is_some() {
                return Err(refused("which is there twice").into());
            }
        }
        // It may have been cut off between two members; two blocks of zeros are its end.
        let rest = usize::try_from(end).ok().and_then(|end| tar.get(end..));
        if rest.is_none_or(|rest| !rest.starts_with(&[0; 1024])) {
            return Err(Failure::config(damaged).into());
        }
        Self(found).whole(Path::new("the tar"))
    }

    /// Refuses one of `place` without settings.
    pub(crate) fn whole(self, place: &Path) -> Result<Self> {
        if self.0.contains_key(Path::new(ENV)) {
            return Ok(self);
        }
        Err(Failure::config(format!("{} has no .env", place.display())).into())
    }

    /// As a tar, for [`Configuration::from_tar`].
    ///
    /// # Errors
    /// When a name is too long.
    pub fn to_tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, (bytes, mode)) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mode(mode & 0o777);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, &**bytes)?;
        }
        Ok(tar.into_inner()?)
    }

    /// Its settings, which are empty if there are none; `path` is where they are for messages.
    pub(crate) fn env(&self, path: &Path) -> Result<EnvFile> {
        let text = self.0.get(Path::new(ENV)).map_or(&[][..], |(text, _)| text);
        let text = std::str::from_utf8(text);
        parse_env(
            text.with_context(|| format!("{} is not UTF-8", path.display()))?,
            path,
        )
    }

    #[must_use]
    pub(crate) fn with_env(mut self, text: &str) -> Self {
        self.0.insert(ENV.into(), (text.into(), 0o600));
        self
    }

    /// Without what another program renews: it is no edit, and an earlier certificate may have expired.
    #[must_use]
    pub(super) fn without_certificate(mut self) -> Self {
        self.0.retain(|name, _| !is_of_certificate(name));
        self
    }

    /// The names and contents: two configurations with the same ones are the same.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let files = self.0.iter();
        files.flat_map(|(name, (bytes, _))| [name.as_os_str().as_encoded_bytes(), bytes])
    }

    /// What becomes of each file if this configuration replaces `present`: a verb and the name. Unless it is to be `exact`, a
    /// certificate is not removed.
    pub(crate) fn changes<'a>(
        &'a self,
        present: &'a Self,
        exact: bool,
    ) -> Vec<(&'static str, &'a Path)> {
        let verb = |name, bytes| match present.0.get(name) {
            None => Some("add"),
            Some((before, _)) => (before != bytes).then_some("change"),
        };
        let files = self.0.iter();
        let new = files.filter_map(|(name, (bytes, _))| Some((verb(name, bytes)?, &**name)));
        let former = present.0.keys();
        let former = former
            .filter(|name| !self.0.contains_key(*name) && (exact || !is_of_certificate(name)));
        new.chain(former.map(|name| ("remove", &**name))).collect()
    }

    /// Puts it in place of `present` in the directory `root`. If this fails, each file is either old or new.
    pub(crate) fn put(&self, root: &Path, present: &Self, exact: bool) -> Result<()> {
        let changes = self.changes(present, exact);
        // First, since a directory may have the name of what was a file, and a file that of a directory.
        for (_, name) in changes
            .iter()
            .filter(|(_, name)| !self.0.contains_key(*name))
        {
            let path = root.join(name);
            std::fs::remove_file(&path).path_context("can't remove", &path)?;
            let mut directory = path.parent().unwrap_or(root);
            // Those of the deployment itself stay.
            while directory.parent().is_some_and(|parent| parent != root)
                && directory != root
                && std::fs::remove_dir(directory).is_ok()
            {
                directory = directory.parent().unwrap_or(root);
            }
            files::sync_directory(directory)?;
        }
        for (_, name) in changes {
            let path = root.join(name);
            let Some((bytes, mode)) = self.0.get(name) else {
                continue;
            };
            let of_directory = if name.starts_with("files") {
                0o700
            } else {
                0o755
            };
            let mut directories = std::fs::DirBuilder::new();
            let directories = directories.recursive(true).mode(of_directory);
            directories
                .create(path.parent().unwrap_or(root))
                .path_context("can't create the directory of", &path)?;
            let mode = if is_secret(name) { 0o600 } else { *mode };
            files::write_atomically(&path, bytes, mode)?;
        }
        Ok(())
    }
}

fn is_secret(name: &Path) -> bool {
    name == Path::new(ENV) || name == Path::new("entrance").join(KEY)
}

fn is_of_certificate(name: &Path) -> bool {
    [CERTIFICATE, KEY]
        .iter()
        .any(|file| name == Path::new("entrance").join(file))
}

/// The path of a member in a deployment, if a configuration may have it.
fn member(path: &Path) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // Names are shown on a terminal.
            Component::Normal(part) => {
                parts.push(
                    part.to_str()
                        .filter(|part| !part.contains(char::is_control))?,
                );
            }
            _ => return None,
        }
    }
    let is_ours = match *parts {
        [ENV] | ["entrance" | "extra.d", _] => true,
        // As deep as files are looked for.
        ["config" | "certs" | "files", _, ..] => parts.len() <= 10,
        _ => false,
    };
    is_ours.then(|| parts.iter().collect())
}

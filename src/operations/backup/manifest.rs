//! `manifest.json`: the contents of a backup, readable without a key.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::deployment::ledger::Images;
use crate::deployment::operation_id::OperationId;
use crate::error::{Failure, Result};

/// The manifest's name in a backup.
pub(crate) const FILE: &str = "manifest.json";
/// The logical name of the dump.
pub(crate) const DUMP: &str = "database.dump";
const SCHEMA: u32 = 1;

/// The contents of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct BackupManifest {
    /// The version of this format.
    pub schema: u32,
    pub id: OperationId,
    /// When it was begun, in RFC 3339.
    pub created: String,
    /// The version of this program.
    pub program: String,
    /// The images of the containers that ran, by service.
    pub images: Images,
    pub database: Contents,
    /// How the files are encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Every file but this one.
    pub files: Vec<StoredFile>,
}

/// The objects and rows of a database, counted in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Contents {
    pub name: String,
    pub server_version: String,
    /// Its size on disk in bytes, indexes included.
    pub size: u64,
    /// The rows of each table, by `schema.table`.
    pub rows: BTreeMap<String, u64>,
    /// How many tables, views, materialized views, indexes and sequences there are.
    pub objects: BTreeMap<String, u64>,
}

/// How the files of a backup are encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Encryption {
    /// Always `age`.
    pub format: String,
    /// The age recipient.
    pub recipient: String,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct StoredFile {
    /// What it is: `database.dump`, `deployment/.env`, …
    pub name: String,
    /// Where it is, relative to the backup's directory.
    pub stored: String,
    /// The permission bits of the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Its size in bytes, as stored.
    pub size: u64,
    /// Its SHA-256, as stored.
    pub sha256: String,
}

impl BackupManifest {
    /// An empty one.
    #[must_use]
    pub(crate) fn new(id: OperationId, created: jiff::Timestamp, database: Contents) -> Self {
        Self {
            schema: SCHEMA,
            id,
            created: created.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            images: Images::default(),
            database,
            encryption: None,
            files: Vec::new(),
        }
    }

    /// Reads the manifest of the backup in `directory`.
    ///
    /// # Errors
    /// When there is none, or it can't be understood.
    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let text =
            std::fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
        Self::parse(&text).map_err(|error| {
            Failure::new(format!("{}: {error:#}", path.display()))
                .hint("this backup is damaged: use another one (`litellm-units backup list`)")
                .into()
        })
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When it can't be understood.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(text).context("not a manifest")?;
        anyhow::ensure!(
            manifest.schema == SCHEMA,
            "schema {} is not known to this version of litellm-units",
            manifest.schema
        );
        for file in &manifest.files {
            let plain = Path::new(&file.stored)
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            anyhow::ensure!(plain, "{:?} is outside of the backup", file.stored);
        }
        Ok(manifest)
    }

    /// The file of that name.
    ///
    /// # Errors
    /// When the backup has none.
    pub(crate) fn file(&self, name: &str) -> Result<&StoredFile> {
        self.files
            .iter()
            .find(|file| file.name == name)
            .ok_or_else(|| Failure::new(format!("backup {} holds no {name}", self.id)).into())
    }

    /// All rows of all tables.
    #[must_use]
    pub(crate) fn total_rows(&self) -> u64 {
        self.database.rows.values().sum()
    }

    /// The size of all files in bytes.
    #[must_use]
    pub(crate) fn total_size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl Contents {
    /// The differences of `found` from this, as text; empty when rows and objects are the same.
    #[must_use]
    pub(crate) fn differences(&self, found: &Self) -> Vec<String> {
        let mut words = compare("rows in", &self.rows, &found.rows);
        words.extend(compare("of the kind", &self.objects, &found.objects));
        words
    }
}

fn compare(
    what: &str,
    wanted: &BTreeMap<String, u64>,
    found: &BTreeMap<String, u64>,
) -> Vec<String> {
    let count = |number: Option<&u64>| number.map_or("none".to_owned(), u64::to_string);
    let names: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    names
        .into_iter()
        .filter(|name| wanted.get(*name) != found.get(*name))
        .map(|name| {
            format!(
                "{} {what} {name} instead of {}",
                count(found.get(name)),
                count(wanted.get(name))
            )
        })
        .collect()
}

//! `manifest.json`: the contents of a backup, readable without a key.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::authentication;
use crate::deployment::ledger::Images;
use crate::deployment::operation_id::OperationId;
use crate::error::{self, Failure, PathContext, Result};
use crate::host::files;
use crate::output::count;

/// The manifest's name in a backup.
pub(crate) const FILE: &str = "manifest.json";
/// The logical name of the dump.
pub(crate) const DUMP: &str = "database.dump";
/// The logical name of a base backup.
pub(crate) const BASE: &str = "base.tar";
const SCHEMA: u32 = 1;
/// The format of a manifest with tables that were not counted, which former releases would take as missing.
const SCHEMA_UNCOUNTED: u32 = 2;
/// What a restored file may be: no setuid, setgid and sticky bit, and no other writer than its owner.
const MODE: u32 = 0o755;

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
    /// The bytes in use on the disk of the local PostgreSQL, before the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_used: Option<u64>,
    /// How the files are encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// Of a base backup: where the recovery begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BasePoint>,
    /// Of a recovered database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<RecoveredFrom>,
    /// Whether an upgrade or the like has made it for a rollback, neither encrypted nor copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub to_go_back: bool,
    /// Every file but this one.
    pub files: Vec<StoredFile>,
}

/// The objects and rows of a database, counted in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Contents {
    pub name: String,
    pub server_version: String,
    /// Its size on disk in bytes, indexes included.
    pub size: u64,
    /// The rows of each table, by `schema.table`.
    pub rows: BTreeMap<String, u64>,
    /// The large tables, whose rows were not counted, as `schema.table`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub uncounted: BTreeSet<String>,
    /// How many tables, views, materialized views, indexes and sequences there are.
    pub objects: BTreeMap<String, u64>,
}

/// Where a recovery from a base backup begins in the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct BasePoint {
    /// The history of the archive to which it belongs: the identifier of the cluster, a position and a time.
    pub history: String,
    pub timeline: u32,
    /// The size of a segment in bytes.
    pub segment_size: u64,
    /// A position that is not after the one at which the recovery begins.
    pub position: u64,
    /// When it was complete: the earliest time to which it can be recovered.
    pub complete: jiff::Timestamp,
}

impl BasePoint {
    /// The identifier is the name of a directory, and the size a divisor.
    fn is_valid(&self) -> bool {
        let is_name = |text: &str| {
            let is_expected = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            (1..=64).contains(&text.len()) && text.bytes().all(is_expected)
        };
        let sizes = 1 << 20..=1 << 30;
        is_name(&self.history)
            && self.segment_size.is_power_of_two()
            && sizes.contains(&self.segment_size)
    }
}

/// What a recovered database was recovered from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct RecoveredFrom {
    /// The time to which it was recovered.
    pub time: jiff::Timestamp,
    /// Whether it is the archive of another host, to which this one must not write unasked.
    pub elsewhere: bool,
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
    pub(crate) fn new(id: OperationId, created: jiff::Timestamp, database: Contents) -> Self {
        Self {
            schema: if database.uncounted.is_empty() {
                SCHEMA
            } else {
                SCHEMA_UNCOUNTED
            },
            id,
            created: created.to_string(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            images: Images::default(),
            database,
            disk_used: None,
            encryption: None,
            base: None,
            recovered: None,
            to_go_back: false,
            files: Vec::new(),
        }
    }

    /// Reads the manifest of the backup in `directory`, with the text that its authentication code covers.
    ///
    /// # Errors
    /// When there is none, or it can't be understood.
    pub(crate) fn load(directory: &Path) -> Result<(Self, Vec<u8>)> {
        let path = directory.join(FILE);
        let mut text = Vec::new();
        files::open_regular(&path)
            .and_then(|mut file| file.read_to_end(&mut text))
            .path_context("can't read", &path)?;
        let manifest = Self::parse(&text).map_err(|error| {
            Failure::new(format!("{}: {error:#}", path.display())).hint(
                error::hint(&error).unwrap_or(
                    "this backup is damaged: use another one (`litellm-units backup list`)",
                ),
            )
        })?;
        Ok((manifest, text))
    }

    /// Reads a manifest.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        /// What each format has.
        #[derive(Deserialize)]
        struct Format {
            schema: u32,
        }
        let Format { schema } = serde_json::from_slice(text).context("not a manifest")?;
        if schema > SCHEMA_UNCOUNTED {
            return Err(Failure::new(format!(
                "a newer version of litellm-units made it (schema {schema})"
            ))
            .hint("upgrade litellm-units on this host, or use another backup (`litellm-units backup list`)")
            .into());
        }
        let mut manifest: Self = serde_json::from_slice(text).context("not a manifest")?;
        if let Some(base) = &manifest.base {
            anyhow::ensure!(
                base.is_valid(),
                "its position in the write-ahead log is not valid"
            );
        }
        let files = &mut manifest.files;
        check_names(files.iter().map(|file| file.name.as_str()), &[])?;
        check_names(
            files.iter().map(|file| file.stored.as_str()),
            &[FILE, authentication::FILE],
        )?;
        for file in files {
            file.mode = file.mode.map(|mode| mode & MODE);
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

    /// All rows of the tables whose rows were counted.
    pub(crate) fn total_rows(&self) -> u64 {
        self.database.rows.values().sum()
    }

    /// The rows and tables, in words.
    pub(crate) fn rows_in_words(&self) -> String {
        let Contents {
            rows, uncounted, ..
        } = &self.database;
        rows_in_words(self.total_rows(), rows.len(), uncounted.len())
    }

    /// The size of all files in bytes.
    pub(crate) fn total_size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// `rows` in `tables`, and further tables that were not counted, in words.
pub(crate) fn rows_in_words(rows: u64, tables: usize, uncounted: usize) -> String {
    let mut words = format!("{rows} rows in {}", count(tables, "table"));
    if uncounted > 0 {
        let tables = count(uncounted, "table");
        words.push_str(&format!(" and {tables} of 1 GiB or more, not counted"));
    }
    words
}

/// Refuses names of files that can't all be below one directory: absolute ones, ones that leave it, two
/// that are the same, and one below another. `taken`: further names that none may have.
fn check_names<'a>(names: impl Iterator<Item = &'a str>, taken: &[&'a str]) -> Result<()> {
    let mut known: BTreeSet<&str> = taken.iter().copied().collect();
    for name in names {
        let is_plain = |part: &str| !part.contains('\0') && !["", ".", ".."].contains(&part);
        anyhow::ensure!(
            name.split('/').all(is_plain),
            "{name:?} is not the path of a file in a backup"
        );
        anyhow::ensure!(known.insert(name), "{name:?} is there twice");
    }
    for name in &known {
        let mut above = name.match_indices('/').map(|(end, _)| &name[..end]);
        if let Some(file) = above.find(|above| known.contains(above)) {
            anyhow::bail!("{file:?} is a file, and {name:?} is below it");
        }
    }
    Ok(())
}

impl Contents {
    /// The differences of `found` from this, as text; empty when rows and objects are the same. A table whose rows were not
    /// counted in one of them only has to be there.
    pub(crate) fn differences(&self, found: &Self) -> Vec<String> {
        let (mut wanted, mut rows) = (self.rows.clone(), found.rows.clone());
        let has = |contents: &Self, table: &String| {
            contents.rows.contains_key(table) || contents.uncounted.contains(table)
        };
        let mut words = Vec::new();
        for table in self.uncounted.union(&found.uncounted) {
            wanted.remove(table);
            rows.remove(table);
            if !has(found, table) {
                words.push(format!("no table {table}"));
            } else if !has(self, table) {
                words.push(format!("an additional table {table}"));
            }
        }
        words.extend(compare("rows in", &wanted, &rows));
        words.extend(compare("of the kind", &self.objects, &found.objects));
        words
    }

    /// Takes over the number of indexes of `found`, a restored dump, if it is lower; returns by how much. Former releases
    /// counted those that were not valid, too, which no dump contains.
    pub(crate) fn forgive_indexes(&mut self, found: &Self) -> u64 {
        const INDEX: &str = "index";
        let count = |contents: &Self| contents.objects.get(INDEX).copied().unwrap_or_default();
        let missing = count(self).saturating_sub(count(found));
        if missing > 0 {
            self.objects.remove(INDEX);
            let found = found
                .objects
                .get(INDEX)
                .map(|count| (INDEX.to_owned(), *count));
            self.objects.extend(found);
        }
        missing
    }
}

fn compare(
    what: &str,
    wanted: &BTreeMap<String, u64>,
    found: &BTreeMap<String, u64>,
) -> Vec<String> {
    let count = |number: Option<&u64>| number.map_or("none".to_owned(), u64::to_string);
    let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
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

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, stored: &str) -> StoredFile {
        StoredFile {
            name: name.to_owned(),
            stored: stored.to_owned(),
            mode: None,
            size: 0,
            sha256: String::new(),
        }
    }

    pub(in crate::operations::backup) fn manifest(files: Vec<StoredFile>) -> BackupManifest {
        let mut manifest = BackupManifest::new(
            OperationId::parse("20260131T120000Z-0a1b2c").unwrap(),
            jiff::Timestamp::UNIX_EPOCH,
            Contents {
                name: "litellm".into(),
                server_version: "17.7".into(),
                size: 0,
                rows: BTreeMap::new(),
                uncounted: BTreeSet::new(),
                objects: BTreeMap::new(),
            },
        );
        manifest.files = files;
        manifest
    }

    fn parse(files: Vec<StoredFile>) -> Result<BackupManifest> {
        BackupManifest::parse(&serde_json::to_vec(&manifest(files)).unwrap())
    }

    #[track_caller]
    fn refuses(files: Vec<StoredFile>, reason: &str) {
        assert_eq!(parse(files).unwrap_err().to_string(), reason);
    }

    #[test]
    fn names_that_leave_the_backup() {
        for name in [
            "",
            "/etc/cron.d/x",
            "..",
            "deployment/config/../../etc/x",
            "deployment/config//etc/x",
            "deployment/config/",
            "deployment/./config/x",
            "deployment/config/x\0y",
        ] {
            let reason = format!("{name:?} is not the path of a file in a backup");
            refuses(vec![entry(name, "x")], &reason);
            refuses(vec![entry("x", name)], &reason);
        }
    }

    #[test]
    fn positions_in_the_log() {
        let parse = |history: &str, segment_size| {
            let mut manifest = manifest(Vec::new());
            manifest.base = Some(BasePoint {
                history: history.to_owned(),
                timeline: 1,
                segment_size,
                position: 0,
                complete: jiff::Timestamp::UNIX_EPOCH,
            });
            BackupManifest::parse(&serde_json::to_vec(&manifest).unwrap())
        };
        parse("7712918264126238739-1D95F10-20261126T140500Z", 16 << 20).unwrap();
        for (history, size) in [
            ("../../../etc", 16 << 20),
            ("", 16 << 20),
            ("1", 0),
            ("1", 3 << 20),
            ("1", 1 << 40),
        ] {
            let reason = "its position in the write-ahead log is not valid";
            assert_eq!(parse(history, size).unwrap_err().to_string(), reason);
        }
    }

    #[test]
    fn a_table_that_was_not_counted_has_to_be_there() {
        let contents = |rows: &[(&str, u64)], uncounted: &[&str]| Contents {
            rows: { rows.iter() }
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
            uncounted: uncounted.iter().map(|name| (*name).to_owned()).collect(),
            ..manifest(Vec::new()).database
        };
        let saved = contents(&[("public.small", 2)], &["public.large"]);
        let both = [("public.large", 9), ("public.small", 2)];
        for (found, differences) in [
            (saved.clone(), &[][..]),
            (contents(&both, &[]), &[]),
            (contents(&both[1..], &[]), &["no table public.large"]),
            (
                contents(&both[..1], &["public.more"]),
                &[
                    "an additional table public.more",
                    "none rows in public.small instead of 2",
                ],
            ),
        ] {
            assert_eq!(saved.differences(&found), differences);
        }
        let words = |contents| {
            let mut manifest = manifest(Vec::new());
            manifest.database = contents;
            let text = serde_json::to_vec(&manifest).unwrap();
            assert_eq!(BackupManifest::parse(&text).unwrap(), manifest);
            manifest.rows_in_words()
        };
        assert_eq!(
            words(saved),
            "2 rows in 1 table and 1 table of 1 GiB or more, not counted"
        );
        assert_eq!(words(contents(&both, &[])), "11 rows in 2 tables");
    }

    #[test]
    fn formats() {
        let made = |uncounted: &[&str]| {
            let mut database = manifest(Vec::new()).database;
            database.uncounted = uncounted.iter().map(|name| (*name).to_owned()).collect();
            let id = manifest(Vec::new()).id;
            let made = BackupManifest::new(id, jiff::Timestamp::UNIX_EPOCH, database);
            let text = serde_json::to_vec(&made).unwrap();
            assert_eq!(BackupManifest::parse(&text).unwrap(), made);
            made.schema
        };
        // A program that knows only the first one understands what has no such table.
        assert_eq!([made(&[]), made(&["public.large"])], [1, 2]);
        let directory = tempfile::tempdir().unwrap();
        // Whatever else is in it.
        fs::write(directory.path().join(FILE), r#"{"schema": 3, "id": []}"#).unwrap();
        let error = BackupManifest::load(directory.path()).unwrap_err();
        let words = error.to_string();
        let end = "manifest.json: a newer version of litellm-units made it (schema 3)";
        assert!(words.ends_with(end), "{words}");
        let hint = error::hint(&error).unwrap_or_default();
        assert!(hint.starts_with("upgrade litellm-units"), "{hint}");
    }

    #[test]
    fn only_fewer_indexes_are_forgiven() {
        let contents = |views, indexes: Option<u64>| {
            let kinds = [("view".to_owned(), views)].into_iter();
            Contents {
                objects: kinds
                    .chain(indexes.map(|count| ("index".to_owned(), count)))
                    .collect(),
                ..manifest(Vec::new()).database
            }
        };
        let judge = |views, indexes| {
            let mut saved = contents(8, Some(42));
            let found = contents(views, indexes);
            (saved.forgive_indexes(&found), saved.differences(&found))
        };
        assert_eq!(judge(8, Some(42)), (0, vec![]));
        assert_eq!(judge(8, Some(41)), (1, vec![]));
        assert_eq!(judge(8, None), (42, vec![]));
        let more = "43 of the kind index instead of 42".to_owned();
        assert_eq!(judge(8, Some(43)), (0, vec![more]));
        let view = "7 of the kind view instead of 8".to_owned();
        assert_eq!(judge(7, Some(41)), (1, vec![view]));
    }

    #[test]
    fn names_that_can_not_be_together() {
        let names = |names: [&str; 2]| vec![entry(names[0], "x"), entry(names[1], "y")];
        let stored = |names: [&str; 2]| vec![entry("x", names[0]), entry("y", names[1])];
        for files in [names, stored] {
            refuses(files(["a/b", "a/b"]), "\"a/b\" is there twice");
            for both in [["a", "a/b/c"], ["a/b/c", "a"]] {
                refuses(files(both), "\"a\" is a file, and \"a/b/c\" is below it");
            }
            parse(files(["a", "a.b"])).unwrap();
        }
        refuses(vec![entry("x", FILE)], "\"manifest.json\" is there twice");
        refuses(
            vec![entry("x", "manifest.json/x")],
            "\"manifest.json\" is a file, and \"manifest.json/x\" is below it",
        );
    }

    #[test]
    fn modes_of_restored_files() {
        let files = [0o4755, 0o2777, 0o1666, 0o600, 0o644].map(|mode| StoredFile {
            mode: Some(mode),
            ..entry(&format!("{mode:o}"), &format!("{mode:o}"))
        });
        let read = parse(files.to_vec()).unwrap();
        let modes: Vec<_> = read.files.iter().filter_map(|file| file.mode).collect();
        assert_eq!(modes, [0o755, 0o755, 0o644, 0o600, 0o644]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever a manifest says, its files fit below one directory, and nothing gets out of it.
        #[test]
        fn accepted_names_stay_inside(names in prop::collection::vec(
            prop::collection::vec(prop::sample::select(
                &["a", "b", "..", ".", "/", "//", "etc", "deployment/config/", "\0", "\\", " ", "é", "-"][..]
            ), 0..6).prop_map(|pieces| pieces.concat()), 0..6
        )) {
            let alone = names.into_iter().filter(|name| parse(vec![entry(name, name)]).is_ok());
            let Ok(read) = parse(alone.map(|name| entry(&name, &name)).collect()) else {
                return Ok(());
            };
            let root = tempfile::tempdir().unwrap();
            let inside = root.path().join("inside");
            fs::create_dir(&inside).unwrap();
            for file in &read.files {
                let path = inside.join(&file.name);
                let mut parts = path.components();
                prop_assert!(path.starts_with(&inside) && parts.all(|part| part != Component::ParentDir));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::File::create_new(path).unwrap();
            }
            prop_assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        }
    }
}

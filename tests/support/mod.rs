//! What several tests share.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[cfg(feature = "fault-points")]
pub(crate) mod alerts;
pub(crate) mod arguments;
pub(crate) mod cases;
pub(crate) mod document;
pub(crate) mod gateway;
pub(crate) mod host;
pub(crate) mod package;
pub(crate) mod releases;
#[cfg(feature = "signatures")]
pub(crate) mod sigstore;

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// An error as `main` prints it.
pub(crate) fn failure(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error:#}\n");
    if let Some(hint) = litellm_units::error::hint(error) {
        writeln!(text, "hint: {hint}").unwrap();
    }
    text
}

/// Everything below `root`, for comparison: kind, mode, inode, path and content.
pub(crate) fn tree(root: &Path) -> String {
    let mut text = String::new();
    add(root, root, &mut text);
    text
}

fn add(root: &Path, directory: &Path, text: &mut String) {
    let mut paths: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        write!(text, "{:o} {} {name}", metadata.mode(), metadata.ino()).unwrap();
        if metadata.is_symlink() {
            write!(text, " -> {}", std::fs::read_link(&path).unwrap().display()).unwrap();
        }
        writeln!(text).unwrap();
        if metadata.is_file() {
            writeln!(
                text,
                "{}",
                String::from_utf8_lossy(&std::fs::read(&path).unwrap())
            )
            .unwrap();
        } else if metadata.is_dir() {
            add(root, &path, text);
        }
    }
}

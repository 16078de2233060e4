//! The mounted files, and where they go in config/.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Maker;

/// Where the gateway's container has config/.
const CONFIG: &str = "/app/config";

impl Maker<'_> {
    /// The mounted files: from where and to where they are copied, and the new path of each in the container.
    pub(super) fn files(
        &mut self,
        is_file: &dyn Fn(&str) -> bool,
    ) -> (Vec<(String, String)>, BTreeMap<String, String>) {
        let config = self.chosen.config_path();
        let directory = config.as_deref().map(Path::new).and_then(Path::parent);
        let directory = directory.filter(|directory| *directory != Path::new("/"));
        let (mut files, mut renamed) = (Vec::new(), BTreeMap::new());
        for mount in &self.chosen.gateway().mounts {
            let path = mount.destination.as_str();
            if config.as_deref() == Some(path) {
                continue;
            }
            let relative =
                directory.and_then(|directory| Path::new(path).strip_prefix(directory).ok());
            let has_config = directory.is_some_and(|directory| directory.starts_with(path));
            let is_file = is_file(&mount.source);
            let to: PathBuf = match relative {
                // The directory of the configuration, or one above it, of which only this one counts.
                _ if has_config && !is_file => PathBuf::new(),
                Some(relative) if is_file => relative.to_owned(),
                None if is_file => Path::new(path).file_name().unwrap_or_default().into(),
                _ => {
                    self.note(
                        format!("{} at {path}", mount.source),
                        "Volume= in a drop-in (docs/configuration.md, \"Drop-ins\"), or copy the files into config/",
                    );
                    continue;
                }
            };
            let to = to.to_string_lossy().into_owned();
            let from = match (has_config, directory) {
                (true, Some(directory)) if !is_file => directory.display().to_string(),
                _ => path.to_owned(),
            };
            if files.iter().any(|(_, other)| *other == to) || to == "litellm-config.yaml" {
                self.note(
                    format!("file {path}"),
                    format!("config/{to} is another one: copy it by hand, under another name"),
                );
                continue;
            }
            let new = format!("{CONFIG}/{to}");
            renamed.insert(from.clone(), new.trim_end_matches('/').to_owned());
            files.push((from, to));
        }
        (files, renamed)
    }
}

//! The mounted files, and where they go in config/.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use super::{Inside, Maker};
use crate::host::docker::Mount;

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
            if let Some(directory) = directory.filter(|_| has_config && !is_file)
                && directory != Path::new(path)
            {
                let directory = directory.display();
                self.note(
                    format!("{path}, except {directory}"),
                    format!("only the directory of the configuration ({directory}) is copied: copy other files that the gateway needs into config/, and correct their paths"),
                );
            }
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

    /// Notes the files that compose has copied into the container, such as a secret of `environment:`, and that a variable
    /// or the configuration names.
    pub(super) fn copied(&mut self, inside: &Inside) {
        let gateway = self.chosen.gateway();
        let is_other = |c: char| c.is_whitespace() || "'\",[]{}".contains(c);
        let config = inside.config.as_deref().unwrap_or_default();
        let named: BTreeSet<&str> = config.split(is_other).collect();
        for path in &inside.added {
            let is_mounted = |mount: &Mount| Path::new(path).starts_with(&mount.destination);
            let is_named = named.contains(path.as_str())
                || self
                    .given
                    .values()
                    .any(|value| value.expose_secret() == path);
            if is_named
                && self.chosen.config_path().as_ref() != Some(path)
                && !gateway.mounts.iter().any(is_mounted)
            {
                let name = gateway.name();
                self.note(
                    format!("{path}, which is in the container alone"),
                    format!("if the gateway needs it: `docker cp {name}:{path} FILE`, put it into files/, and write /app/files/FILE where {path} is named"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::import::plan::fixtures::{llm, noted, plan_of};

    #[test]
    fn files_that_are_not_copied() {
        let mut all = llm(|env| {
            env.insert("A_KEY".into(), "/run/secrets/a".into());
        });
        for container in all.iter_mut().filter(|one| one.service() == "litellm") {
            container.args = vec!["--config=/app/config/prod/c.yaml".into()];
            container.mounts.truncate(1);
            container.mounts[0].destination = "/app/config".into();
            container.mounts[0].source = "/root/llm/config".into();
        }
        let inside = Inside {
            config: Some("x: {y: '/run/secrets/b'}\n".into()),
            added: [
                "/run/secrets/a",
                "/run/secrets/b",
                "/run/secrets/c",
                "/app/config",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..Inside::default()
        };
        let plan = plan_of(&all, "/root/llm", None, &inside).unwrap();
        assert!(
            noted(&plan).starts_with("/app/config, except /app/config/prod\n/run/secrets/a, which is in the container alone\n/run/secrets/b, which is in the container alone\naddress"),
            "{}",
            noted(&plan)
        );
    }
}

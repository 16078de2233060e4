//! The operator's drop-ins for the gateway, which its other containers get as well: the standby and further gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{MARKER_PREFIX, Place, UnitFile};
use crate::error::{Failure, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::service::{Instance, Service};

/// The name of each copy: it comes first, so that the operator's drop-ins for one container override it.
pub(crate) const COPY: &str = "00-litellm-units.conf";

/// What one of the other containers is started from, and its copies of the drop-ins.
struct Other {
    quadlet: &'static str,
    container: &'static str,
    service: &'static str,
}

macro_rules! others {
    ($($name:literal),*) => {
        [$(Other {
            quadlet: concat!($name, ".container"),
            container: concat!($name, ".container.d/00-litellm-units.conf"),
            service: concat!($name, ".service.d/00-litellm-units.conf"),
        }),*]
    };
}

/// In the order of [`Instance::further`], after the standby.
const OTHERS: [Other; Instance::MOST] = others!(
    "litellm-standby",
    "litellm-2",
    "litellm-3",
    "litellm-4",
    "litellm-5",
    "litellm-6",
    "litellm-7",
    "litellm-8"
);

/// The operator's drop-ins for a file in `directory`, in the order in which they apply.
pub(crate) fn of(directory: &Path, file: &str) -> Vec<PathBuf> {
    listed(directory, file).unwrap_or_default()
}

/// As [`of`].
///
/// # Errors
/// When their directory can't be read.
fn listed(directory: &Path, file: &str) -> Result<Vec<PathBuf>> {
    let mut found = files::entries(&directory.join(format!("{file}.d")))?;
    found.retain(|path| path.extension().is_some_and(|end| end == "conf") && !is_copy(path));
    Ok(found)
}

/// Whether this file is a copy.
pub(crate) fn is_copy(path: &Path) -> bool {
    path.ends_with(COPY)
}

/// What [`copies`] returns.
pub(crate) struct Copies {
    pub(crate) files: Vec<UnitFile>,
    /// A warning that names the lines of which there is no copy.
    pub(crate) left_out: Option<String>,
}

/// The copies for those containers that `wanted` has: the drop-ins of the first gateway in one file. Without the lines that
/// only one container can have, and without the drop-ins of which a container has its own version.
///
/// # Errors
/// When a drop-in can't be read.
pub(crate) fn copies(paths: &Paths, wanted: &[UnitFile]) -> Result<Copies> {
    let mut files = Vec::new();
    let mut left_out = BTreeMap::new();
    let others =
        { OTHERS.iter() }.filter(|other| wanted.iter().any(|file| file.name == other.quadlet));
    let places = others.flat_map(|other| {
        [
            (Place::Quadlet, other.container),
            (Place::Unit, other.service),
        ]
    });
    for (place, name) in places {
        let mut text = String::new();
        for drop_in in meant(paths, place, name)?.unwrap_or_default() {
            let path = drop_in.path.display().to_string();
            if !drop_in.shared.text.is_empty() {
                text += &format!("# {path}\n{}\n", drop_in.shared.text);
                if drop_in.shared.text.ends_with('\\') {
                    // It continues with an empty line, and not with the next drop-in.
                    text.push('\n');
                }
            }
            if !drop_in.shared.left_out.is_empty() {
                left_out.insert(path, drop_in.shared.left_out);
            }
        }
        if !text.is_empty() {
            let text = format!(
                "{MARKER_PREFIX} Do not edit: edit the files named below, then run `litellm-units generate`.\n{text}"
            );
            files.push(UnitFile { place, name, text });
        }
    }
    let words = { left_out.into_iter() }.map(|(path, names)| {
        let names: Vec<String> = names.into_iter().collect();
        format!("{} ({path})", names.join(", "))
    });
    let words: Vec<String> = words.collect();
    let left_out = (!words.is_empty()).then(|| {
        format!(
            "drop-ins of {}: only one container can have these lines, so the standby and further gateways get no copy of them: {}",
            Service::Litellm.unit(),
            words.join(", ")
        )
    });
    Ok(Copies { files, left_out })
}

/// The names of the copies that are there, in the directory of `place`.
pub(super) fn present(directory: &Path, place: Place) -> impl Iterator<Item = &'static str> {
    let names = OTHERS.iter().map(move |other| match place {
        Place::Quadlet => other.container,
        Place::Unit => other.service,
    });
    names
        .filter(move |name| !is_below_link(&directory.join(name)) && directory.join(name).is_file())
}

/// A drop-in that belongs into a copy.
struct DropIn {
    path: PathBuf,
    shared: Shared,
}

/// The drop-ins that belong into a copy; none where its directory is a link of the operator's.
///
/// # Errors
/// When one can't be read.
fn meant(paths: &Paths, place: Place, copy: &str) -> Result<Option<Vec<DropIn>>> {
    let (directory, first) = match place {
        Place::Quadlet => (&paths.quadlets, Instance::from(Service::Litellm).quadlet()),
        Place::Unit => (&paths.units, Service::Litellm.unit()),
    };
    let copy = directory.join(copy);
    if is_below_link(&copy) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for path in listed(directory, first)? {
        let own = path.file_name().map(|name| copy.with_file_name(name));
        if own.is_some_and(|own| own.exists()) {
            continue;
        }
        let text = match std::fs::read_to_string(&path) {
            // A link to nothing is empty for systemd and Quadlet, too.
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.map_err(|error| {
                Failure::config(format!("can't read the drop-in {}", path.display()))
                    .hint("correct or remove the file, then run the same command again")
                    .caused_by(error.into())
            })?,
        };
        let shared = Shared::of(&text);
        found.push(DropIn { path, shared });
    }
    Ok(Some(found))
}

/// What several containers can have of one drop-in.
#[derive(Default)]
struct Shared {
    /// Empty if it sets nothing.
    text: String,
    /// The keys, each with `=`, and the sections that only one container can have.
    left_out: BTreeSet<String>,
}

impl Shared {
    fn of(text: &str) -> Self {
        let is_comment = |line: &str| line.trim_start().starts_with(['#', ';']);
        let mut shared = Self::default();
        let mut sets_something = false;
        let mut section = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut entry = line.to_owned();
            let trimmed = line.trim();
            if trimmed.starts_with('[') {
                section = Some(trimmed);
                if trimmed == INSTALL {
                    shared.left_out.insert(INSTALL.to_owned());
                }
            } else if !trimmed.is_empty() && !is_comment(line) {
                let mut is_continued = line.ends_with('\\');
                while is_continued && let Some(next) = lines.next() {
                    entry += "\n";
                    entry += next;
                    is_continued = is_comment(next) || next.ends_with('\\');
                }
                // Without a section, it has no effect. In the copy, it would have that of the drop-in before.
                let Some(section) = section else {
                    continue;
                };
                let (key, value) = entry.split_once('=').unwrap_or((&entry, ""));
                if is_of_one(section, key.trim(), value) {
                    shared.left_out.insert(format!("{}=", key.trim()));
                    continue;
                }
                sets_something |= section != INSTALL;
            }
            if section != Some(INSTALL) {
                shared.text += &entry;
                shared.text.push('\n');
            }
        }
        if sets_something {
            shared.text.truncate(shared.text.trim_end().len());
        } else {
            shared.text.clear();
        }
        shared
    }
}

/// A further gateway that is enabled would start at boot, also without the target.
const INSTALL: &str = "[Install]";

/// Whether only one container can have this line: a name, an address or a port.
fn is_of_one(section: &str, key: &str, value: &str) -> bool {
    let has_address = |words: &str| words.contains("ip=") || words.contains("ip6=");
    match (section, key) {
        // The last one names the container.
        ("[Container]", "PublishPort" | "IP" | "IP6" | "ContainerName" | "ServiceName")
        | ("[Service]", "ExecStart") => true,
        ("[Container]", "Network") => has_address(value),
        ("[Container]", "PodmanArgs") => {
            let words = value
                .split_whitespace()
                .map(|word| word.trim_matches(['"', '\'']));
            let next = words.clone().skip(1).chain([""]);
            words.zip(next).any(|(word, next)| {
                match word.split_once('=').map_or(word, |(option, _)| option) {
                    "--publish" | "--name" | "--ip" | "--ip6" => true,
                    "--network" | "--net" => {
                        has_address(word) || (!word.contains('=') && has_address(next))
                    }
                    option => option.starts_with("-p"),
                }
            })
        }
        _ => false,
    }
}

fn is_below_link(copy: &Path) -> bool {
    copy.parent().is_some_and(Path::is_symlink)
}

/// The installed containers that lack drop-ins of the first gateway, each with the paths of these: they were changed since
/// `generate`, or a link stands where a copy belongs, which systemd, other than Quadlet, does not follow.
pub(crate) fn lacking(paths: &Paths) -> Option<String> {
    let mut lacking = Vec::new();
    for other in OTHERS {
        if !paths.quadlets.join(other.quadlet).exists() {
            continue;
        }
        let mut missing = Vec::new();
        for (place, directory, name) in [
            (Place::Quadlet, &paths.quadlets, other.container),
            (Place::Unit, &paths.units, other.service),
        ] {
            let copy = std::fs::read_to_string(directory.join(name)).unwrap_or_default();
            let first = Service::Litellm.unit();
            match meant(paths, place, name) {
                Err(error) => return Some(format!("{error:#}")),
                Ok(Some(found)) => missing.extend(
                    { found.into_iter() }
                        .filter(|drop_in| !copy.contains(&drop_in.shared.text))
                        .map(|drop_in| drop_in.path),
                ),
                Ok(None) if place == Place::Unit => missing.extend(of(directory, first)),
                Ok(None) => {}
            }
        }
        if !missing.is_empty() {
            let missing: Vec<String> = missing
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let unit = other.quadlet.replace(".container", ".service");
            lacking.push(format!("{unit} ({})", missing.join(", ")));
        }
    }
    (!lacking.is_empty()).then(|| {
        format!(
            "drop-ins of {} are missing for: {}",
            Service::Litellm.unit(),
            lacking.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Scope;
    use crate::quadlet::plan::UnitPlan;

    #[test]
    fn the_other_containers_get_the_drop_ins_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            quadlets: root.path().join("quadlets"),
            units: root.path().join("units"),
            ..Paths::elsewhere(Scope::System)
        };
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let said = || {
            let words = lacking(&paths).unwrap_or_default();
            words.replace(&*root.path().to_string_lossy(), "")
        };
        let unit = |name| UnitFile {
            place: Place::Quadlet,
            name,
            text: format!("{MARKER_PREFIX}\n"),
        };
        let generate = |names: &[&'static str]| {
            let mut wanted: Vec<UnitFile> = names.iter().map(|name| unit(name)).collect();
            wanted.extend(copies(&paths, &wanted).unwrap().files);
            UnitPlan::new(&paths, &wanted).unwrap().apply().unwrap();
            assert!(UnitPlan::new(&paths, &wanted).unwrap().is_empty());
        };
        let both = ["litellm-standby.container", "litellm-2.container"];
        write(
            "quadlets/litellm.container.d/10-host.conf",
            "[Container]\nAddHost=a:10.0.0.7\n",
        );
        write(
            "quadlets/litellm.container.d/20-port.conf",
            "[Container]\nPublishPort=127.0.0.1:1:1\n",
        );
        write(
            "units/litellm.service.d/override.conf",
            "[Service]\nMemoryMax=8G\n",
        );
        assert_eq!(said(), "");
        generate(&both);
        assert_eq!(said(), "");
        let copy = paths.quadlets.join("litellm-2.container.d").join(COPY);
        let text = std::fs::read_to_string(&copy).unwrap();
        assert_eq!(
            text.replace(&*root.path().to_string_lossy(), ""),
            "# Written by litellm-units. Do not edit: edit the files named below, then run `litellm-units generate`.\n# /quadlets/litellm.container.d/10-host.conf\n[Container]\nAddHost=a:10.0.0.7\n"
        );
        // One that has changed, and one of which the standby has its own version.
        write(
            "units/litellm.service.d/override.conf",
            "[Service]\nMemoryMax=4G\n",
        );
        write("units/litellm-standby.service.d/override.conf", "");
        assert_eq!(
            said(),
            "drop-ins of litellm.service are missing for: litellm-2.service (/units/litellm.service.d/override.conf)"
        );
        generate(&both);
        assert_eq!(said(), "");
        assert!(
            !paths
                .units
                .join("litellm-standby.service.d")
                .join(COPY)
                .exists()
        );
        // Those of a gateway go with it, and nothing is written through a link.
        generate(&both[..1]);
        assert!(!copy.parent().unwrap().exists());
        std::os::unix::fs::symlink("litellm.container.d", copy.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("litellm.service.d", paths.units.join("litellm-2.service.d"))
            .unwrap();
        generate(&both);
        assert_eq!(
            said(),
            "drop-ins of litellm.service are missing for: litellm-2.service (/units/litellm.service.d/override.conf)"
        );
        assert!(
            !paths
                .quadlets
                .join("litellm.container.d")
                .join(COPY)
                .exists()
        );
        generate(&[]);
        assert!(
            paths
                .quadlets
                .join("litellm.container.d/10-host.conf")
                .exists()
        );
        assert!(!paths.quadlets.join("litellm-standby.container.d").exists());
    }

    #[test]
    fn what_only_one_container_can_have_is_not_shared() {
        for (text, kept, left_out) in [
            (
                "# PublishPort=1:1\n[Container]\nAddHost=a:10.0.0.7\n",
                "# PublishPort=1:1\n[Container]\nAddHost=a:10.0.0.7",
                "",
            ),
            (
                "[Container]\nPublishPort = \\\n# no end\n  1:1\nVolume=/a:/a\n",
                "[Container]\nVolume=/a:/a",
                "PublishPort=",
            ),
            (
                "[Container]\nIP=10.0.0.7\nContainerName=x\n[Install]\nWantedBy=default.target\n\n",
                "",
                "ContainerName= IP= [Install]",
            ),
            (
                "[Install]\nWantedBy=x\n[Service]\nMemoryMax=8G\n",
                "[Service]\nMemoryMax=8G",
                "[Install]",
            ),
            (
                "[Container]\nPodmanArgs=--ipc=host --pids-limit 9\nNetwork=a\n",
                "[Container]\nPodmanArgs=--ipc=host --pids-limit 9\nNetwork=a",
                "",
            ),
            (
                "[Container]\nPodmanArgs=--ipc=host --network a:ip=10.0.0.8\nNetwork=a:ip=10.0.0.7\n",
                "",
                "Network= PodmanArgs=",
            ),
            (
                "[Container]\nPodmanArgs=\"--name=x\"\nPodmanArgs=-t\n",
                "[Container]\nPodmanArgs=-t",
                "PodmanArgs=",
            ),
            (
                "[Service]\nExecStart=\nExecStart=/bin/x\nNice=1 \\\n",
                "[Service]\nNice=1 \\",
                "ExecStart=",
            ),
            ("Nice=1\n[Service]\n; nothing\n", "", ""),
        ] {
            let shared = Shared::of(text);
            assert_eq!(shared.text, kept, "{text}");
            let names: Vec<String> = shared.left_out.into_iter().collect();
            assert_eq!(names.join(" "), left_out, "{text}");
        }
    }

    #[test]
    fn no_drop_in_is_lost_in_a_copy() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            quadlets: root.path().join("quadlets"),
            units: root.path().join("units"),
            ..Paths::elsewhere(Scope::System)
        };
        let directory = paths.units.join("litellm.service.d");
        std::fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(directory.join(name), text).unwrap();
        let wanted = [UnitFile {
            place: Place::Quadlet,
            name: "litellm-standby.container",
            text: String::new(),
        }];
        let made = || copies(&paths, &wanted);
        write("10-a.conf", b"[Service]\nNice=1 \\\n");
        write("20-b.conf", b"[Service]\nMemoryMax=8G\nExecStart=/bin/x\n");
        std::os::unix::fs::symlink("nothing", directory.join("30-c.conf")).unwrap();
        let copies = made().unwrap();
        let text = copies.files[0]
            .text
            .replace(&*directory.to_string_lossy(), "");
        let (_, text) = text.split_once('\n').unwrap();
        assert_eq!(
            text,
            "# /10-a.conf\n[Service]\nNice=1 \\\n\n# /20-b.conf\n[Service]\nMemoryMax=8G\n"
        );
        let named = format!(
            "of them: ExecStart= ({})",
            directory.join("20-b.conf").display()
        );
        assert!(copies.left_out.unwrap().ends_with(&named));
        write("40-d.conf", b"[Service]\n# \xff\nNice=1\n");
        let error = made().err().unwrap().to_string();
        assert!(error.contains("40-d.conf"), "{error}");
    }
}

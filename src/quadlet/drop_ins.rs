//! The operator's drop-ins for the gateway, which its other containers get as well: the standby and further gateways.

use std::path::{Path, PathBuf};

use super::{MARKER_PREFIX, Place, UnitFile};
use crate::host::files;
use crate::host::paths::Paths;
use crate::service::{Instance, Service};

/// The name of each copy.
pub(crate) const COPY: &str = "50-litellm-units.conf";

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
            container: concat!($name, ".container.d/50-litellm-units.conf"),
            service: concat!($name, ".service.d/50-litellm-units.conf"),
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
    let mut found = files::entries(&directory.join(format!("{file}.d"))).unwrap_or_default();
    found.retain(|path| path.extension().is_some_and(|end| end == "conf") && !is_copy(path));
    found
}

/// Whether this file is a copy.
pub(crate) fn is_copy(path: &Path) -> bool {
    path.ends_with(COPY)
}

/// The copies for those containers that `wanted` has: the drop-ins of the first gateway in one file. Not those that publish
/// a port, which only one container can have, and not those of which a container has its own version.
pub(crate) fn copies(paths: &Paths, wanted: &[UnitFile]) -> Vec<UnitFile> {
    let others =
        { OTHERS.iter() }.filter(|other| wanted.iter().any(|file| file.name == other.quadlet));
    let files = others.flat_map(|other| {
        [
            (Place::Quadlet, other.container),
            (Place::Unit, other.service),
        ]
    });
    files
        .filter_map(|(place, name)| {
            let found = meant(paths, place, name)?;
            if found.is_empty() {
                return None;
            }
            let mut text = format!("{MARKER_PREFIX} Do not edit: edit the files named below, then run `litellm-units generate`.\n");
            for (path, own) in found {
                text += &format!("# {}\n{}\n", path.display(), own.trim_end());
            }
            Some(UnitFile { place, name, text })
        })
        .collect()
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

/// The drop-ins that belong into a copy, with their text; none where its directory is a link of the operator's.
fn meant(paths: &Paths, place: Place, copy: &str) -> Option<Vec<(PathBuf, String)>> {
    let (directory, first) = match place {
        Place::Quadlet => (&paths.quadlets, Instance::from(Service::Litellm).quadlet()),
        Place::Unit => (&paths.units, Service::Litellm.unit()),
    };
    let copy = directory.join(copy);
    if is_below_link(&copy) {
        return None;
    }
    let found = of(directory, first).into_iter();
    let with_text = found.filter_map(|path| {
        let has_own = copy.with_file_name(path.file_name()?).exists();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // A link to /dev/null masks one that is elsewhere.
        let is_meant = !has_own && !text.trim().is_empty() && !text.contains("PublishPort=");
        is_meant.then_some((path, text))
    });
    Some(with_text.collect())
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
                Some(found) => missing.extend(
                    { found.into_iter() }
                        .filter(|(_, text)| !copy.contains(text.trim_end()))
                        .map(|(path, _)| path),
                ),
                None if place == Place::Unit => missing.extend(of(directory, first)),
                None => {}
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
            wanted.extend(copies(&paths, &wanted));
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
}

//! The units before they are installed, judged by the host's own Quadlet generator. In a daemon-reload its errors
//! would go to the kernel log only, and the unit would silently be missing.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::Context;

use super::{Place, STANDBY, UnitFile};
use crate::error::{Failure, Result};
use crate::host::paths::Paths;
use crate::host::{Host, files};
use crate::service::{Instance, Service};

/// What to do about [`lacking_drop_ins`].
pub(crate) const DROP_INS_REMEDY: &str =
    "give each of them the same drop-ins: docs/configuration.md, \"Drop-ins\"";

/// Refuses units that the host's generator refuses, with the drop-ins of the operator.
pub(crate) async fn check(host: &Host, files: &[UnitFile]) -> Result<()> {
    let directory = tempfile::tempdir().context("can't write the units for Quadlet's check")?;
    let staged = directory.path();
    stage(&host.paths, files, staged).context("can't write the units for Quadlet's check")?;
    let output = { host.podman().await? }
        .generate(Some(staged), host.scope())
        .await?;
    if output.status.success() {
        return Ok(());
    }
    let quadlets = host.paths.quadlets.display().to_string();
    let words = complaints(&output).join("\n");
    let words = words.replace(&*staged.to_string_lossy(), &quadlets);
    let mut named = { files.iter() }.filter(|file| words.contains(file.name));
    // The generator names the file, whichever drop-in has the line.
    let added = { files.iter() }.flat_map(|file| drop_ins(&host.paths.quadlets, file.name));
    let added: Vec<String> = added.map(|path| path.display().to_string()).collect();
    let hint = if let Some(service) = named.find_map(|file| Service::extra_of(file.name)) {
        format!("correct extra.d/{}.container", service.name())
    } else if added.is_empty() {
        "this is a defect of litellm-units with this version of Podman: report it with the lines above".to_owned()
    } else {
        format!(
            "correct or remove the drop-in that is wrong: {}",
            added.join(", ")
        )
    };
    Err(Failure::new(format!(
        "Podman's Quadlet generator refuses the units, so nothing was installed:\n{words}"
    ))
    .hint(hint)
    .into())
}

fn stage(paths: &Paths, files: &[UnitFile], staged: &Path) -> std::io::Result<()> {
    for file in files.iter().filter(|file| file.place == Place::Quadlet) {
        std::fs::write(staged.join(file.name), &file.text)?;
        let drop_ins = drop_ins(&paths.quadlets, file.name);
        if drop_ins.is_empty() {
            continue;
        }
        let directory = staged.join(format!("{}.d", file.name));
        std::fs::create_dir(&directory)?;
        for (path, name) in drop_ins
            .iter()
            .filter_map(|path| Some((path, path.file_name()?)))
        {
            // A link to /dev/null, which masks it, or to nothing, is empty for Quadlet, too.
            std::fs::write(
                directory.join(name),
                std::fs::read(path).unwrap_or_default(),
            )?;
        }
    }
    Ok(())
}

/// The operator's drop-ins for a file in `directory`, in the order in which they apply.
pub(crate) fn drop_ins(directory: &Path, file: &str) -> Vec<PathBuf> {
    let mut found = files::entries(&directory.join(format!("{file}.d"))).unwrap_or_default();
    found.retain(|path| path.extension().is_some_and(|end| end == "conf"));
    found
}

/// The installed containers of the gateway that lack drop-ins of the first one, each with the paths of these drop-ins: the
/// standby and further gateways. Not drop-ins that publish a port, which only one container can have.
pub(crate) fn lacking_drop_ins(paths: &Paths) -> Option<String> {
    let first = Service::Litellm;
    let others = { Instance::further(Instance::MOST) }
        .map(Instance::name)
        .chain([STANDBY])
        .filter(|name| paths.quadlets.join(format!("{name}.container")).exists());
    let mut lacking = Vec::new();
    for name in others {
        let mut missing = Vec::new();
        for (directory, of_first, kind) in [
            (
                &paths.quadlets,
                Instance::from(first).quadlet(),
                "container",
            ),
            (&paths.units, first.unit(), "service"),
        ] {
            let own = directory.join(format!("{name}.{kind}.d"));
            // systemd, other than Quadlet, follows no such link.
            let is_read = kind == "container" || !own.is_symlink();
            for path in drop_ins(directory, of_first) {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                let has_own =
                    is_read && { path.file_name() }.is_some_and(|name| own.join(name).exists());
                if !has_own && !text.contains("PublishPort=") {
                    missing.push(path.display().to_string());
                }
            }
        }
        if !missing.is_empty() {
            lacking.push(format!("{name}.service ({})", missing.join(", ")));
        }
    }
    (!lacking.is_empty()).then(|| {
        format!(
            "drop-ins of {} are missing for: {}",
            first.unit(),
            lacking.join(", ")
        )
    })
}

/// Warns of [`lacking_drop_ins`].
pub(crate) fn warn_of_drop_ins(host: &Host) {
    if let Some(message) = lacking_drop_ins(&host.paths) {
        host.progress.warn(&format!("{message}; {DROP_INS_REMEDY}"));
    }
}

/// What the generator says against the installed files.
pub(crate) async fn installed(host: &Host) -> Result<Vec<String>> {
    let output = { host.podman().await? }
        .generate(None, host.scope())
        .await?;
    Ok(complaints(&output))
}

/// The lines of a generator that failed which say what is wrong, and not what it does.
fn complaints(output: &Output) -> Vec<String> {
    if output.status.success() {
        return Vec::new();
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let lines = { words.lines() }.filter(|line| !line.contains("Loading source "));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::paths::Scope;

    #[test]
    fn drop_ins_of_the_first_gateway_only() {
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
            let words = lacking_drop_ins(&paths).unwrap_or_default();
            words.replace(&*root.path().to_string_lossy(), "")
        };
        write("quadlets/litellm.container.d/10-host.conf", "[Container]\n");
        assert_eq!(said(), "");
        write("quadlets/litellm-standby.container", "");
        assert_eq!(
            said(),
            "drop-ins of litellm.service are missing for: litellm-standby.service (/quadlets/litellm.container.d/10-host.conf)"
        );
        let link = root.path().join("quadlets/litellm-standby.container.d");
        std::os::unix::fs::symlink("litellm.container.d", link).unwrap();
        assert_eq!(said(), "");
        write("quadlets/litellm-2.container", "");
        write("quadlets/litellm-2.container.d/10-host.conf", "");
        write(
            "quadlets/litellm.container.d/20-port.conf",
            "[Container]\nPublishPort=127.0.0.1:1:1\n",
        );
        assert_eq!(said(), "");
        write(
            "units/litellm.service.d/override.conf",
            "[Service]\nMemoryMax=8G\n",
        );
        write("units/litellm-standby.service.d/override.conf", "");
        assert_eq!(
            said(),
            "drop-ins of litellm.service are missing for: litellm-2.service (/units/litellm.service.d/override.conf)"
        );
        let place = root.path().join("units/litellm-2.service.d");
        std::os::unix::fs::symlink("litellm.service.d", &place).unwrap();
        assert_ne!(said(), "");
        std::fs::remove_file(place).unwrap();
        write("units/litellm-2.service.d/override.conf", "");
        assert_eq!(said(), "");
    }
}

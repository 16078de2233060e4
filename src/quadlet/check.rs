//! The units before they are installed, judged by the host's own Quadlet generator. In a daemon-reload its errors
//! would go to the kernel log only, and the unit would silently be missing.

use std::path::Path;
use std::process::Output;

use anyhow::Context;

use super::{Place, UnitFile, drop_ins};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::paths::Paths;
use crate::service::Service;

/// What to do about [`drop_ins::lacking`].
pub(crate) const DROP_INS_REMEDY: &str =
    "if NAME.service.d is a link, remove it; then run `litellm-units generate`";

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
    let added = { files.iter() }.flat_map(|file| drop_ins::of(&host.paths.quadlets, file.name));
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
        let place = staged.join(file.name);
        // That of a drop-in.
        place.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(place, &file.text)?;
        let drop_ins = drop_ins::of(&paths.quadlets, file.name);
        if drop_ins.is_empty() {
            continue;
        }
        let directory = staged.join(format!("{}.d", file.name));
        std::fs::create_dir_all(&directory)?;
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

/// Warns of [`drop_ins::lacking`].
pub(crate) fn warn_of_drop_ins(host: &Host) {
    if let Some(message) = drop_ins::lacking(&host.paths) {
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

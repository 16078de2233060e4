//! The units before they are installed, judged by the host's own Quadlet generator. In a daemon-reload its errors
//! would go to the kernel log only, and the unit would silently be missing.

use anyhow::Context;

use super::{Place, UnitFile};
use crate::error::{Failure, Result};
use crate::host::paths::Scope;
use crate::host::podman::Podman;
use crate::service::Service;

/// Refuses units that the host's generator refuses.
///
/// # Errors
/// With the generator's own words.
pub(crate) async fn check(podman: &Podman, files: &[UnitFile], scope: Scope) -> Result<()> {
    let staged = tempfile::tempdir().context("can't write the units for Quadlet's check")?;
    for file in files.iter().filter(|file| file.place == Place::Quadlet) {
        std::fs::write(staged.path().join(file.name), &file.text)
            .context("can't write the units for Quadlet's check")?;
    }
    let output = podman.generate(staged.path(), scope).await?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let errors = words
        .lines()
        .filter(|line| !line.contains(": Loading source unit file "));
    let words = errors.collect::<Vec<_>>().join("\n");
    let mut own = files.iter().filter(|file| words.contains(file.name));
    let hint = match own.find_map(|file| Service::extra_of(file.name)) {
        Some(service) => format!("correct extra.d/{}.container", service.name()),
        None => "this is a defect of litellm-units with this version of Podman: report it with the lines above".to_owned(),
    };
    Err(Failure::new(format!(
        "Podman's Quadlet generator refuses the units, so nothing was installed:\n{}",
        words.trim().replace(&*staged.path().to_string_lossy(), "…")
    ))
    .hint(hint)
    .into())
}

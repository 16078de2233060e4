//! The timer of backups, and the age of the last one.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Check, CheckName, Examination};
use crate::error::Result;
use crate::host::Host;
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::{LoadState, UnitState};
use crate::operations::backup;
use crate::output::duration;
use crate::quadlet::{BACKUP_SERVICE, BACKUP_TIMER};

/// One night may be missed, since the host was off or the timer's random delay differs.
const OLD: Duration = Duration::from_secs(2 * 24 * 3600);

pub(crate) async fn backup(examination: &Examination<'_>) -> Option<Check> {
    // Check `drift` reports missing units.
    examination
        .units
        .as_ref()
        .filter(|units| !units.is_empty())?;
    check(examination.host).await
}

/// Whether backups are made. `None` if systemd does not answer.
pub(super) async fn check(host: &Host) -> Option<Check> {
    let systemd = host.systemd().await.ok()?;
    let (timer, service, target) = futures_util::try_join!(
        systemd.unit(BACKUP_TIMER),
        systemd.unit(BACKUP_SERVICE),
        systemd.unit("litellm.target"),
    )
    .ok()?;
    let paths = &host.paths;
    let last = match last(paths) {
        Ok(last) => last,
        Err(error) => return Some(Check::error(CheckName::Backup, &error)),
    };
    Some(judge(
        paths.scope,
        &timer,
        &service,
        target.is_active(),
        last,
        age(&paths.data()),
    ))
}

/// Time since the last backup.
pub(super) fn last(paths: &Paths) -> Result<Option<Duration>> {
    let Some(newest) = backup::ids(paths)?.pop() else {
        return Ok(None);
    };
    let created = jiff::tz::Offset::UTC.to_timestamp(newest.created())?;
    let age = jiff::Timestamp::now().duration_since(created);
    Ok(Some(age.try_into().unwrap_or_default()))
}

/// Time since the entries of a directory changed. Those of `data/` are created with the deployment.
fn age(directory: &Path) -> Option<Duration> {
    let changed = directory.metadata().ok()?.modified().ok()?;
    SystemTime::now().duration_since(changed).ok()
}

fn judge(
    scope: Scope,
    timer: &UnitState,
    service: &UnitState,
    runs: bool,
    last: Option<Duration>,
    deployed: Option<Duration>,
) -> Check {
    let words = match last {
        Some(age) => format!("the last backup is {} old", duration(age)),
        None => "there is no backup yet".to_owned(),
    };
    let systemctl = scope.systemctl();
    let journalctl = systemctl.replace("systemctl", "journalctl");
    if service.is_failing() {
        return Check::warning(
            CheckName::Backup,
            format!("{BACKUP_SERVICE} failed: {}; {words}", service.reason()),
        )
        .remedy(format!(
            "see why: `{journalctl} -u {BACKUP_SERVICE}`; then run `{systemctl} start {BACKUP_SERVICE}`"
        ));
    }
    let timer_fault = if timer.file_state != "enabled" {
        Some("is not enabled")
    } else if !timer.is_active() {
        Some("is not active")
    } else {
        None
    };
    // Check `drift` reports a missing timer.
    if let Some(fault) = timer_fault.filter(|_| timer.load != LoadState::NotFound) {
        return Check::warning(
            CheckName::Backup,
            format!("{BACKUP_TIMER} {fault}, so no automatic backup is made; {words}"),
        )
        .remedy(format!("`{systemctl} enable --now {BACKUP_TIMER}`"));
    }
    // A stopped stack has no new data, and a new deployment may have old backups of another one.
    let overdue = deployed.is_some_and(|age| age > OLD) && last.is_none_or(|age| age > OLD);
    if runs && overdue {
        return Check::warning(CheckName::Backup, words).remedy("`litellm-units backup`");
    }
    Check::ok(CheckName::Backup, words)
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;
    use crate::host::systemd::{ActiveState, UnitResult};

    fn unit(active: ActiveState) -> UnitState {
        UnitState {
            load: LoadState::Loaded,
            active,
            file_state: "enabled".into(),
            result: UnitResult::ExitCode,
            exit_code: 1,
            exit_status: 5,
            ..UnitState::default()
        }
    }

    #[test]
    fn ages() {
        let (on, off) = (unit(ActiveState::Active), unit(ActiveState::Inactive));
        let failed = unit(ActiveState::Failed);
        let day = |days: u64| Some(Duration::from_secs(days * 24 * 3600 + 60));
        let judged = |timer, service, runs, last, deployed| {
            let check = judge(Scope::User, timer, service, runs, last, deployed);
            (check.outcome, check.message)
        };
        let ok = |message: &str| (CheckOutcome::Ok, message.to_owned());
        let warning = |message: &str| (CheckOutcome::Warning, message.to_owned());
        assert_eq!(
            judged(&on, &off, true, None, day(1)),
            ok("there is no backup yet")
        );
        assert_eq!(
            judged(&on, &off, true, None, day(3)),
            warning("there is no backup yet")
        );
        assert_eq!(
            judged(&on, &off, true, day(1), day(9)),
            ok("the last backup is 24 h old")
        );
        assert_eq!(
            judged(&on, &off, true, day(3), day(9)),
            warning("the last backup is 3 d old")
        );
        assert_eq!(
            judged(&on, &off, false, day(3), day(9)),
            ok("the last backup is 3 d old")
        );
        assert_eq!(
            judged(&on, &off, true, day(3), day(1)),
            ok("the last backup is 3 d old")
        );
        assert_eq!(
            judged(&off, &off, true, day(1), day(9)),
            warning(
                "litellm-backup.timer is not active, so no automatic backup is made; the last backup is 24 h old"
            )
        );
        assert_eq!(
            judged(&on, &failed, true, day(1), day(9)),
            warning(
                "litellm-backup.service failed: exited with status 5; the last backup is 24 h old"
            )
        );
    }
}

//! The timer of backups, and the age of the last one.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{Check, CheckName, Examination, see};
use crate::deployment::settings::{BackupSettings, Settings};
use crate::error::Result;
use crate::host::Host;
use crate::host::paths::{Paths, Scope};
use crate::host::systemd::{LoadState, UnitState};
use crate::operations::backup::verification::{Outcome, Verification};
use crate::operations::backup::wal::ArchiveReport;
use crate::operations::backup::{self, Backup};
use crate::output::duration;
use crate::quadlet::{
    BACKUP_SERVICE, BACKUP_TIMER, VERIFY_SERVICE, VERIFY_TIMER, WAL_SERVICE, WAL_TIMER,
};
use crate::service::Service;

/// One night may be missed, since the host was off or the timer's random delay differs.
pub(super) const OLD: Duration = Duration::from_secs(2 * 24 * 3600);
/// Two weeks without a verification, and a day for the timer's random delay.
const UNVERIFIED: Duration = Duration::from_secs(15 * 24 * 3600);
/// Several runs of the archive in a row took nothing.
const LATE: Duration = Duration::from_secs(120);

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
    if let Some(words) = made_elsewhere(&host.paths) {
        return Some(Check::ok(CheckName::Backup, words));
    }
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

pub(crate) async fn verification(examination: &Examination<'_>) -> Option<Check> {
    examination
        .units
        .as_ref()
        .filter(|units| !units.is_empty())?;
    verification_check(examination.host).await
}

/// Whether the newest backup was verified. `None` if systemd does not answer, or the timer is missing or off: checks `drift`
/// and `timers` report that.
pub(super) async fn verification_check(host: &Host) -> Option<Check> {
    let systemd = host.systemd().await.ok()?;
    let (timer, service, target) = futures_util::try_join!(
        systemd.unit(VERIFY_TIMER),
        systemd.unit(VERIFY_SERVICE),
        systemd.unit("litellm.target"),
    )
    .ok()?;
    if timer.load == LoadState::NotFound || timer.idle().is_some() {
        return None;
    }
    let last = match Verification::load(&host.paths) {
        Ok(last) => last,
        Err(error) => return Some(Check::error(CheckName::Verification, &error)),
    };
    Some(judge_verification(
        &service,
        target.is_active(),
        last.as_ref(),
        age(&host.paths.data()),
        Backup::find(&host.paths, "latest")
            .is_ok_and(|newest| newest.manifest.encryption.is_some()),
    ))
}

fn judge_verification(
    service: &UnitState,
    runs: bool,
    last: Option<&Verification>,
    deployed: Option<Duration>,
    is_encrypted: bool,
) -> Check {
    let command = if is_encrypted {
        "`litellm-units backup verify latest --unattended` (only the checksums; with `--identity FILE` instead, all of it)"
    } else {
        "`litellm-units backup verify latest`"
    };
    let warning = |words: String| Check::warning(CheckName::Verification, words);
    let since = |time| {
        let age = jiff::Timestamp::now().duration_since(time);
        Duration::try_from(age).unwrap_or_default()
    };
    if let Some(Verification {
        error: Some(error),
        backup,
        time,
        ..
    }) = last
    {
        let age = duration(since(*time));
        return warning(format!(
            "the verification of backup {backup} failed {age} ago: {error}"
        ))
        .remedy(format!(
            "remove the cause, or make another backup; then run {command}"
        ));
    }
    let succeeded = last.and_then(|last| last.succeeded).map(since);
    let words = match (last, succeeded) {
        (Some(last), Some(age)) => format!("{}, {} ago", of_outcome(last), duration(age)),
        _ => "no backup was verified yet".to_owned(),
    };
    if service.is_failing() {
        let reason = service.reason();
        return warning(format!("{VERIFY_SERVICE} failed: {reason}; {words}"))
            .remedy(see(VERIFY_SERVICE));
    }
    // As for a backup: a stopped stack has no new ones.
    let is_old = |age: Option<Duration>| age.is_none_or(|age| age > UNVERIFIED);
    if runs && deployed.is_some_and(|age| age > UNVERIFIED) && is_old(succeeded) {
        return warning(words).remedy(command);
    }
    Check::ok(CheckName::Verification, words)
}

fn of_outcome(last: &Verification) -> String {
    let backup = &last.backup;
    match last.result {
        Outcome::Restored => format!("backup {backup} was restored beside the database"),
        Outcome::Read => format!("the dump of backup {backup} was read to its end"),
        Outcome::Checked => format!("the checksums of backup {backup} were verified"),
        Outcome::Failed => format!("backup {backup} was not verified"),
    }
}

pub(crate) async fn archive(examination: &Examination<'_>) -> Option<Check> {
    let settings = &examination.settings.as_ref()?.backup;
    archive_check(examination.host, settings).await
}

/// Whether the write-ahead log is archived. `None` if `.env` does not ask for it, or systemd does not answer.
pub(super) async fn archive_check(host: &Host, settings: &BackupSettings) -> Option<Check> {
    let report = match ArchiveReport::of(&host.paths, settings) {
        Ok(report) => report?,
        Err(error) => return Some(Check::error(CheckName::Archive, &error)),
    };
    let systemd = host.systemd().await.ok()?;
    let (timer, service, postgres) = futures_util::try_join!(
        systemd.unit(WAL_TIMER),
        systemd.unit(WAL_SERVICE),
        systemd.unit(Service::Postgres.unit()),
    )
    .ok()?;
    // Check `drift` reports a missing timer, and a server that does not run writes nothing.
    if timer.load == LoadState::NotFound || !postgres.is_active() {
        return None;
    }
    let begins = backup::wal::is_base_in_the_making(&host.paths);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let active = timer.active_since.zip(now.ok());
    let active = active.map(|(since, now)| now.saturating_sub(Duration::from_micros(since)));
    let base = match backup::wal::base_failure(&host.paths) {
        _ if begins => BaseState::InTheMaking,
        Some(reason) => BaseState::Failed(reason),
        None => BaseState::Idle,
    };
    let failure = backup::wal::failure(&host.paths);
    Some(judge_archive(
        host.scope(),
        (&timer, active.unwrap_or_default()),
        (&service, failure.as_deref()),
        &report,
        &base,
    ))
}

/// What is known of the newest base backup beside its files.
enum BaseState {
    Idle,
    InTheMaking,
    Failed(String),
}

fn judge_archive(
    scope: Scope,
    (timer, active): (&UnitState, Duration),
    (service, failure): (&UnitState, Option<&str>),
    report: &ArchiveReport,
    base: &BaseState,
) -> Check {
    let systemctl = scope.systemctl();
    let lag = report.lag_seconds.map(Duration::from_secs);
    let words = match report.lag() {
        Some(lag) => format!("the write-ahead log is archived until {lag} ago"),
        None => "nothing of the write-ahead log is archived yet".to_owned(),
    };
    let warning = |words: String| Check::warning(CheckName::Archive, words);
    if timer.idle().is_some() {
        return warning(format!("{WAL_TIMER} is not enabled and active; {words}"))
            .remedy(format!("`{systemctl} enable --now {WAL_TIMER}`"));
    }
    if service.is_failing() {
        let reason = failure.map_or_else(|| service.reason(), str::to_owned);
        return warning(format!("{WAL_SERVICE} failed: {reason}; {words}"))
            .remedy(see(WAL_SERVICE));
    }
    if lag.is_some_and(|lag| lag > LATE) {
        // The next run may be at work.
        let failure = failure.map_or_else(String::new, |reason| {
            format!("; the last run of {WAL_SERVICE} failed: {reason}")
        });
        return warning(format!(
            "{words}; later writes are lost with this host{failure}"
        ))
        .remedy(see(WAL_SERVICE));
    }
    // The first run may still be at work.
    let is_old = active > LATE;
    if lag.is_none() && is_old {
        return warning(words).remedy(see(WAL_SERVICE));
    }
    if let BaseState::Failed(reason) = base {
        return warning(format!(
            "{words}, but the last base backup failed: {reason}"
        ))
        .remedy(see(WAL_SERVICE));
    }
    // One that is made again and again is no excuse.
    let overdue = report.base_age.filter(|age| *age > OLD);
    let is_in_the_making = matches!(base, BaseState::InTheMaking) && overdue.is_none();
    if !report.recoverable && is_old && !is_in_the_making {
        return warning(format!(
            "{words}, but there is no base backup, without which nothing can be recovered"
        ))
        .remedy(see(WAL_SERVICE));
    }
    if let Some(age) = overdue.filter(|_| is_old) {
        return warning(format!(
            "{words}, but the newest base backup is {} old, and a recovery takes as long as the log since then needs",
            duration(age)
        ))
        .remedy(see(WAL_SERVICE));
    }
    Check::ok(CheckName::Archive, words)
}

/// As [`backup::made_elsewhere`]. Other checks report a wrong `.env`.
pub(super) fn made_elsewhere(paths: &Paths) -> Option<String> {
    let settings = Settings::load(&paths.env_file()).ok()?;
    backup::made_elsewhere(&settings.backup)
}

/// Time since the last backup.
pub(super) fn last(paths: &Paths) -> Result<Option<Duration>> {
    let age =
        backup::newest(paths)?.map(|(_, created)| jiff::Timestamp::now().duration_since(created));
    Ok(age.map(|age| age.try_into().unwrap_or_default()))
}

/// Time since the entries of a directory changed. Those of `data/` are created with the deployment.
pub(super) fn age(directory: &Path) -> Option<Duration> {
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
    // A stopped stack has no new data, and a new deployment may have old backups of another one.
    let is_new = deployed.is_none_or(|age| age <= OLD);
    let overdue = runs && !is_new && last.is_none_or(|age| age > OLD);
    if service.is_failing() {
        return Check::failure(
            CheckName::Backup,
            format!("{BACKUP_SERVICE} failed: {}; {words}", service.reason()),
        )
        .remedy(format!(
            "{}; then run `litellm-units backup`",
            see(BACKUP_SERVICE)
        ));
    }
    // Check `drift` reports a missing timer.
    if let Some(fault) = timer.idle() {
        let words = format!("{BACKUP_TIMER} {fault}, so no automatic backup is made; {words}");
        let check = if overdue {
            Check::failure(CheckName::Backup, words)
        } else {
            Check::warning(CheckName::Backup, words)
        };
        return check.remedy(format!("`{systemctl} enable --now {BACKUP_TIMER}`"));
    }
    if overdue {
        return Check::failure(CheckName::Backup, words).remedy("`litellm-units backup`");
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
    fn archives() {
        let (on, off) = (unit(ActiveState::Active), unit(ActiveState::Inactive));
        let failed = unit(ActiveState::Failed);
        let judged_with = |seconds, timer, service, lag_seconds, recoverable, base| {
            let report = ArchiveReport {
                lag_seconds,
                url: None,
                recoverable,
                base_age: None,
            };
            let timer = (timer, Duration::from_secs(seconds));
            let check = judge_archive(Scope::System, timer, service, &report, &base);
            (check.outcome, check.message)
        };
        let judged_after = |seconds, timer, service, lag, recoverable, base| {
            judged_with(seconds, timer, (service, None), lag, recoverable, base)
        };
        let judged = |timer, service, lag, recoverable, begins| {
            let base = if begins {
                BaseState::InTheMaking
            } else {
                BaseState::Idle
            };
            judged_after(600, timer, service, lag, recoverable, base)
        };
        let ok = |message: &str| (CheckOutcome::Ok, message.to_owned());
        let warning = |message: &str| (CheckOutcome::Warning, message.to_owned());
        let archived = "the write-ahead log is archived until 14 s ago";
        assert_eq!(judged(&on, &off, Some(14), true, false), ok(archived));
        assert_eq!(judged(&on, &off, Some(14), false, true), ok(archived));
        let nothing = "nothing of the write-ahead log is archived yet";
        assert_eq!(
            judged_after(60, &on, &off, None, false, BaseState::Idle),
            ok(nothing)
        );
        assert_eq!(judged(&on, &off, None, false, false), warning(nothing));
        let failed_base = BaseState::Failed("the disk is full".to_owned());
        assert_eq!(
            judged_after(600, &on, &off, Some(14), true, failed_base),
            warning(&format!(
                "{archived}, but the last base backup failed: the disk is full"
            ))
        );
        assert_eq!(
            judged(&on, &off, Some(14), false, false),
            warning(&format!(
                "{archived}, but there is no base backup, without which nothing can be recovered"
            ))
        );
        assert_eq!(
            judged(&on, &off, Some(180), true, false),
            warning(
                "the write-ahead log is archived until 3 min ago; later writes are lost with this host"
            )
        );
        assert_eq!(
            judged(&off, &off, Some(14), true, false),
            warning(&format!(
                "litellm-wal.timer is not enabled and active; {archived}"
            ))
        );
        assert_eq!(
            judged(&on, &failed, Some(14), true, false),
            warning(&format!(
                "litellm-wal.service failed: exited with status 5; {archived}"
            ))
        );
        let aged = |recoverable, hours: u64| {
            let report = ArchiveReport {
                lag_seconds: Some(14),
                url: None,
                recoverable,
                base_age: Some(Duration::from_secs(hours * 3600 + 60)),
            };
            let timer = (&on, Duration::from_secs(600));
            let making = BaseState::InTheMaking;
            let check = judge_archive(Scope::System, timer, (&off, None), &report, &making);
            (check.outcome, check.message)
        };
        assert_eq!(aged(false, 47), ok(archived));
        assert_eq!(aged(true, 47), ok(archived));
        assert_eq!(
            aged(false, 48),
            warning(&format!(
                "{archived}, but there is no base backup, without which nothing can be recovered"
            ))
        );
        assert_eq!(
            aged(true, 72),
            warning(&format!(
                "{archived}, but the newest base backup is 3 d old, and a recovery takes as long as the log since then needs"
            ))
        );
        // The reason is known, also while the next run is at work.
        let silent = Some("the store does not answer");
        let judged = |service, lag| {
            judged_with(
                600,
                &on,
                (service, silent),
                Some(lag),
                true,
                BaseState::Idle,
            )
        };
        assert_eq!(
            judged(&failed, 14),
            warning(&format!(
                "litellm-wal.service failed: the store does not answer; {archived}"
            ))
        );
        assert_eq!(
            judged(&off, 180),
            warning(
                "the write-ahead log is archived until 3 min ago; later writes are lost with this host; the last run of litellm-wal.service failed: the store does not answer"
            )
        );
        assert_eq!(judged(&off, 14), ok(archived));
    }

    #[test]
    fn verifications() {
        let (off, failed) = (unit(ActiveState::Inactive), unit(ActiveState::Failed));
        let day = |days: i64| jiff::SignedDuration::from_hours(24 * days);
        let ago = |days| jiff::Timestamp::now() - day(days);
        let of = |days, result, error: Option<&str>| Verification {
            time: ago(days),
            backup: crate::deployment::operation_id::OperationId::parse("20260131T020000Z-0a1b2c")
                .unwrap(),
            result,
            error: error.map(str::to_owned),
            succeeded: error.is_none().then(|| ago(days)),
        };
        let judged = |service, runs, last: Option<Verification>, deployed| {
            let deployed = Duration::try_from(day(deployed)).ok();
            let check = judge_verification(service, runs, last.as_ref(), deployed, false);
            (check.outcome, check.message)
        };
        let ok = |message: &str| (CheckOutcome::Ok, message.to_owned());
        let warning = |message: &str| (CheckOutcome::Warning, message.to_owned());
        let none = "no backup was verified yet";
        assert_eq!(judged(&off, true, None, 14), ok(none));
        assert_eq!(judged(&off, true, None, 16), warning(none));
        assert_eq!(judged(&off, false, None, 16), ok(none));
        let restored = |days| Some(of(days, Outcome::Restored, None));
        let words = "backup 20260131T020000Z-0a1b2c was restored beside the database";
        assert_eq!(
            judged(&off, true, restored(14), 99),
            ok(&format!("{words}, 14 d ago"))
        );
        assert_eq!(
            judged(&off, true, restored(16), 99),
            warning(&format!("{words}, 16 d ago"))
        );
        assert_eq!(
            judged(&failed, true, restored(7), 99),
            warning(&format!(
                "litellm-verify.service failed: exited with status 5; {words}, 7 d ago"
            ))
        );
        let broken = of(7, Outcome::Failed, Some("it is damaged"));
        let remedy = |last, is_encrypted| {
            let deployed = Duration::try_from(day(99)).ok();
            let check = judge_verification(&off, true, last, deployed, is_encrypted);
            check.remedy.unwrap_or_default()
        };
        let plain = "`litellm-units backup verify latest`";
        assert_eq!(remedy(None, false), plain);
        assert!(remedy(Some(&broken), false).ends_with(&format!("then run {plain}")));
        // Without its key, it would end in an error.
        for last in [None, Some(&broken)] {
            assert!(
                remedy(last, true).contains("`litellm-units backup verify latest --unattended`")
            );
        }
        assert_eq!(
            judged(&failed, true, Some(broken), 99),
            warning(
                "the verification of backup 20260131T020000Z-0a1b2c failed 7 d ago: it is damaged"
            )
        );
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
        let failure = |message: &str| (CheckOutcome::Failure, message.to_owned());
        assert_eq!(
            judged(&on, &off, true, None, day(1)),
            ok("there is no backup yet")
        );
        assert_eq!(
            judged(&on, &off, true, None, day(3)),
            failure("there is no backup yet")
        );
        assert_eq!(
            judged(&on, &off, true, day(1), day(9)),
            ok("the last backup is 24 h old")
        );
        assert_eq!(
            judged(&on, &off, true, day(3), day(9)),
            failure("the last backup is 3 d old")
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
            (
                CheckOutcome::Warning,
                "litellm-backup.timer is not active, so no automatic backup is made; the last backup is 24 h old".to_owned()
            )
        );
        assert_eq!(
            judged(&off, &off, true, day(3), day(9)),
            failure(
                "litellm-backup.timer is not active, so no automatic backup is made; the last backup is 3 d old"
            )
        );
        assert_eq!(
            judged(&on, &failed, true, day(1), day(9)),
            failure(
                "litellm-backup.service failed: exited with status 5; the last backup is 24 h old"
            )
        );
    }
}

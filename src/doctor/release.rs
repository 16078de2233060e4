//! Known vulnerabilities of the gateway's release, and the last check for newer ones.

use std::time::{Duration, SystemTime};

use super::{Check, CheckName, Examination, backup, see};
use crate::deployment::installed_release;
use crate::host::Host;
use crate::host::systemd::{ActiveState, LoadState};
use crate::litellm::advisories::{Advisories, SHIPPED_DATE};
use crate::operations::upgrade::check::Recorded;
use crate::output::duration;
use crate::quadlet::{CHECK_SERVICE, CHECK_TIMER};
use crate::service::Service;

/// Of the installed release, otherwise of that in `.env`.
pub(crate) fn vulnerabilities(examination: &Examination<'_>) -> Option<Check> {
    let settings = examination.settings.as_ref()?;
    let paths = &examination.host.paths;
    let image = installed_release::of_unit(paths, Service::Litellm)
        .unwrap_or_else(|| settings.litellm_image.clone());
    // Check `images` reports an unreadable list.
    let advisories = Advisories::load(paths).ok()?;
    let judgement = match advisories.judge(&image, &settings.accepted) {
        Ok(judgement) => judgement,
        Err(error) => return Some(Check::error(CheckName::Vulnerabilities, &error)),
    };
    let Some(judgement) = judgement else {
        let message = format!("the tag of {image} does not name a release of LiteLLM");
        return Some(Check::ok(CheckName::Vulnerabilities, message));
    };
    let Some(words) = judgement.words() else {
        let accepted: Vec<&str> = judgement
            .vulnerabilities
            .iter()
            .map(|finding| finding.id.as_str())
            .collect();
        let release = &judgement.release;
        let message = if accepted.is_empty() {
            format!("none known of LiteLLM {release} (advisories until {SHIPPED_DATE})")
        } else {
            format!(
                "of LiteLLM {release}, accepted in .env: {}",
                accepted.join(", ")
            )
        };
        return Some(Check::ok(CheckName::Vulnerabilities, message));
    };
    let check = if judgement.exploited().is_empty() {
        Check::warning(CheckName::Vulnerabilities, words)
    } else {
        Check::failure(CheckName::Vulnerabilities, words)
    };
    Some(check.remedy("to see them and newer releases: `litellm-units upgrade --check`"))
}

pub(crate) async fn upgrade_check(examination: &Examination<'_>) -> Option<Check> {
    examination
        .units
        .as_ref()
        .filter(|units| !units.is_empty())?;
    let systemd = examination.host.systemd().await.ok()?;
    let service = systemd.unit(CHECK_SERVICE).await.ok()?;
    if service.active == ActiveState::Failed {
        let message = format!("{CHECK_SERVICE} failed: {}", service.reason());
        return Some(Check::warning(CheckName::UpgradeCheck, message).remedy(see(CHECK_SERVICE)));
    }
    check(examination.host).await
}

/// Whether newer releases are found: no fault until that failed for [`FAILING`]. `None` if systemd does not answer, or the
/// timer is missing or off: checks `drift` and `timers` report that.
pub(super) async fn check(host: &Host) -> Option<Check> {
    let systemd = host.systemd().await.ok()?;
    let (timer, target) =
        futures_util::try_join!(systemd.unit(CHECK_TIMER), systemd.unit("litellm.target")).ok()?;
    if timer.load == LoadState::NotFound || timer.idle().is_some() {
        return None;
    }
    let recorded = match Recorded::load(&host.paths) {
        Ok(recorded) => recorded,
        Err(error) => return Some(Check::error(CheckName::UpgradeCheck, &error)),
    };
    let active = target.active_since.filter(|_| target.is_active());
    let active = active.and_then(|since| {
        let since = SystemTime::UNIX_EPOCH + Duration::from_micros(since);
        since.elapsed().ok()
    });
    let is_due = active.is_some_and(|active| active > DUE)
        && backup::age(&host.paths.data()).is_some_and(|age| age > FAILING);
    Some(judge(recorded.as_ref(), is_due, jiff::Timestamp::now()))
}

/// The registry may be away for some days.
const FAILING: Duration = Duration::from_secs(7 * 24 * 3600);
/// After a boot or a start, the daily check and its random delay take no longer.
const DUE: Duration = Duration::from_secs(2 * 24 * 3600);

/// `is_due`: whether the stack ran for long enough to have been checked.
fn judge(recorded: Option<&Recorded>, is_due: bool, now: jiff::Timestamp) -> Check {
    const NAME: CheckName = CheckName::UpgradeCheck;
    let remedy = "if the registry can be reached: `litellm-units upgrade --check`";
    let Some(recorded) = recorded else {
        let message = "not run yet";
        return if is_due {
            Check::warning(NAME, message).remedy(see(CHECK_SERVICE))
        } else {
            Check::ok(NAME, message)
        };
    };
    let age = |time: &str| -> Option<Duration> {
        let time: jiff::Timestamp = time.parse().ok()?;
        now.duration_since(time).try_into().ok()
    };
    let failing = recorded.failing_since.as_deref().and_then(age);
    if let (Some(error), Some(failing)) = (&recorded.error, failing)
        && failing > FAILING
    {
        let message = format!(
            "newer releases could not be listed for {}: {error}",
            duration(failing)
        );
        return Check::warning(NAME, message).remedy(remedy);
    }
    let checked = age(&recorded.checked).unwrap_or_default();
    if is_due && checked > FAILING {
        let message = format!(
            "newer releases were last looked for {} ago",
            duration(checked)
        );
        return Check::warning(NAME, message).remedy(see(CHECK_SERVICE));
    }
    let found = match (&recorded.recommended, &recorded.error) {
        (Some(recommended), _) => format!("LiteLLM {} is available", recommended.release),
        (None, Some(error)) => format!("newer releases could not be listed: {error}"),
        (None, None) => "no newer release for this deployment".to_owned(),
    };
    Check::ok(NAME, format!("{found} (checked {} ago)", duration(checked)))
}

#[cfg(test)]
mod tests {
    use super::super::CheckOutcome;
    use super::*;
    use crate::operations::upgrade::check::Verdict;

    #[test]
    fn a_check_that_fails_for_a_week_is_a_warning() {
        let now: jiff::Timestamp = "2026-11-29T08:00:00Z".parse().unwrap();
        let judged = |failing_since: &str| {
            let record = serde_json::json!({
                "checked": "2026-11-29T07:00:00Z", "verdict": "unknown", "recommended": null,
                "error": "no route to host", "failing_since": failing_since,
            });
            let recorded: Recorded = serde_json::from_value(record).unwrap();
            let check = judge(Some(&recorded), true, now);
            (check.outcome, check.message)
        };
        assert_eq!(
            judged("2026-11-22T08:00:00Z"),
            (
                CheckOutcome::Ok,
                "newer releases could not be listed: no route to host (checked 60 min ago)".into()
            )
        );
        assert_eq!(
            judged("2026-11-21T08:00:00Z"),
            (
                CheckOutcome::Warning,
                "newer releases could not be listed for 8 d: no route to host".into()
            )
        );
    }

    #[test]
    fn a_check_that_is_not_made_for_a_week_is_a_warning() {
        let judged = |checked: Option<&str>, is_due| {
            let recorded = checked.map(|checked| Recorded {
                checked: checked.to_owned(),
                verdict: Verdict::UpToDate,
                recommended: None,
                error: None,
                failing_since: None,
            });
            let now = "2026-11-29T08:00:00Z".parse().unwrap();
            let check = judge(recorded.as_ref(), is_due, now);
            (check.outcome, check.message)
        };
        let (ok, warning) = (CheckOutcome::Ok, CheckOutcome::Warning);
        let old = Some("2026-11-21T08:00:00Z");
        let last = "newer releases were last looked for 8 d ago";
        assert_eq!(judged(old, true), (warning, last.into()));
        // A host that was off, or a gateway that was stopped.
        let none = "no newer release for this deployment (checked 8 d ago)";
        assert_eq!(judged(old, false), (ok, none.into()));
        let none = "no newer release for this deployment (checked 7 d ago)";
        assert_eq!(
            judged(Some("2026-11-22T08:00:00Z"), true),
            (ok, none.into())
        );
        assert_eq!(judged(None, false), (ok, "not run yet".into()));
        assert_eq!(judged(None, true), (warning, "not run yet".into()));
    }
}

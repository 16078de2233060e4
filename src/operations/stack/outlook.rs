//! What systemd does next with a unit that failed or was waited for, in words for hints and errors.

use crate::host::systemd::{ActiveState, UnitState};

/// Whether systemd retries a unit after a failure, with what to do about it. `None`: its state is not known.
pub(super) fn outlook(state: Option<&UnitState>) -> String {
    const STOP: &str = "; to stop: `litellm-units down`";
    let Some(state) = state else {
        return "see its state: `litellm-units status`".to_owned();
    };
    match state.active {
        ActiveState::Failed if state.has_hit_start_limit() => {
            "it hit its start limit and is not retried; to start it: `litellm-units up`".to_owned()
        }
        ActiveState::Failed => {
            "systemd does not retry it; when the cause is corrected: `litellm-units up`".to_owned()
        }
        ActiveState::Inactive if state.queued => format!("it is waiting to start{STOP}"),
        ActiveState::Inactive => "it is stopped; to start it: `litellm-units up`".to_owned(),
        ActiveState::Deactivating => "it is stopping".to_owned(),
        ActiveState::Activating if state.awaits_restart() => match state.restart_delay {
            Some(delay) => format!(
                "systemd keeps retrying (next attempt within {} s){STOP}",
                delay.as_millis().div_ceil(1000)
            ),
            None => format!("systemd keeps retrying{STOP}"),
        },
        ActiveState::Activating if state.restarts > 0 => format!("systemd keeps retrying{STOP}"),
        ActiveState::Activating => format!("it is still starting{STOP}"),
        _ => format!("it is still running{STOP}"),
    }
}

/// What systemd still does with these units after their jobs were cancelled: it finishes a start or a stop
/// that has begun, and retries a failed one.
pub(super) fn under_way(states: &[UnitState]) -> String {
    let list = |what: &str, is: &dyn Fn(&UnitState) -> bool| {
        let mut names: Vec<&str> = states
            .iter()
            .filter(|state| is(state))
            .map(|state| state.name.as_str())
            .collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let parts: Vec<String> = [
        list("still starting", &|state| {
            state.active == ActiveState::Activating && !state.awaits_restart()
        }),
        list("still stopping", &|state| {
            state.active == ActiveState::Deactivating
        }),
        list("systemd keeps retrying", &|state| {
            state.active == ActiveState::Activating && state.awaits_restart()
        }),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() {
        return "no unit is starting or stopping".to_owned();
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::systemd::UnitResult;

    fn unit(name: &str, active: ActiveState, sub: &str) -> UnitState {
        UnitState {
            name: name.into(),
            active,
            sub: sub.into(),
            ..UnitState::default()
        }
    }

    #[test]
    fn each_state_has_its_own_outlook() {
        let failed = || UnitState {
            restarts: 5,
            result: UnitResult::ExitCode,
            ..unit("a.service", ActiveState::Failed, "failed")
        };
        let waiting = || unit("a.service", ActiveState::Activating, "auto-restart");
        for (state, expected) in [
            // A unit without a start limit, as after an exit status that prevents restarts.
            (
                failed(),
                "systemd does not retry it; when the cause is corrected: `litellm-units up`",
            ),
            (
                UnitState {
                    start_limit: Some(5),
                    restarts: 4,
                    ..failed()
                },
                "systemd does not retry it; when the cause is corrected: `litellm-units up`",
            ),
            // systemd's own attempts met the limit: the result is that of the last attempt.
            (
                UnitState {
                    start_limit: Some(5),
                    ..failed()
                },
                "it hit its start limit and is not retried; to start it: `litellm-units up`",
            ),
            // An operator's start met it.
            (
                UnitState {
                    restarts: 0,
                    result: UnitResult::StartLimitHit,
                    ..failed()
                },
                "it hit its start limit and is not retried; to start it: `litellm-units up`",
            ),
            (
                unit("a.service", ActiveState::Inactive, "dead"),
                "it is stopped; to start it: `litellm-units up`",
            ),
            (
                UnitState {
                    queued: true,
                    ..unit("a.service", ActiveState::Inactive, "dead")
                },
                "it is waiting to start; to stop: `litellm-units down`",
            ),
            (
                unit("a.service", ActiveState::Deactivating, "stop-sigterm"),
                "it is stopping",
            ),
            (
                waiting(),
                "systemd keeps retrying; to stop: `litellm-units down`",
            ),
            (
                UnitState {
                    restart_delay: Some(Duration::from_millis(3400)),
                    ..waiting()
                },
                "systemd keeps retrying (next attempt within 4 s); to stop: `litellm-units down`",
            ),
            (
                UnitState {
                    restarts: 2,
                    ..unit("a.service", ActiveState::Activating, "start")
                },
                "systemd keeps retrying; to stop: `litellm-units down`",
            ),
            (
                unit("a.service", ActiveState::Activating, "start"),
                "it is still starting; to stop: `litellm-units down`",
            ),
            (
                unit("a.service", ActiveState::Active, "running"),
                "it is still running; to stop: `litellm-units down`",
            ),
        ] {
            assert_eq!(outlook(Some(&state)), expected, "{state:?}");
        }
        assert_eq!(outlook(None), "see its state: `litellm-units status`");
    }

    #[test]
    fn only_what_systemd_works_on_is_under_way() {
        let states = [
            unit("d.service", ActiveState::Activating, "auto-restart"),
            unit("c.service", ActiveState::Deactivating, "stop-sigterm"),
            unit("b.service", ActiveState::Activating, "start"),
            unit("a.service", ActiveState::Activating, "start-pre"),
            unit("e.service", ActiveState::Active, "running"),
            unit("f.service", ActiveState::Inactive, "dead"),
            unit("g.service", ActiveState::Failed, "failed"),
        ];
        assert_eq!(
            under_way(&states),
            "still starting: a.service, b.service; still stopping: c.service; systemd keeps retrying: d.service"
        );
        assert_eq!(under_way(&states[4..]), "no unit is starting or stopping");
    }
}

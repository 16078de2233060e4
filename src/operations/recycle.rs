//! Replaces gateways whose memory has grown, before the kernel would end them: what `litellm-recycle.service` does once a
//! minute. LiteLLM's memory grows for days; a handover loses no request.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::recovery;
use super::stack::{self, RECOVERY_TIMEOUT};
use crate::deployment::applied::Applied;
use crate::deployment::settings::Settings;
use crate::deployment::snapshot;
use crate::deployment::variables::RECYCLE_AT;
use crate::error::Result;
use crate::host::Host;
use crate::host::container_state::held_memory;
use crate::host::files::save_record;
use crate::host::lock::OperationLock;
use crate::host::paths::Paths;
use crate::host::record::Change;
use crate::host::systemd::UnitState;
use crate::output::bytes;
use crate::service::Instance;

/// What it holds the lock as.
pub(crate) const COMMAND: &str = "unit recycle";
/// Interval between two attempts for one gateway.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// How long after its start a gateway still holds about what a fresh one takes.
const YOUNG: Duration = Duration::from_secs(15 * 60);

/// What is known of the gateways, by their units. It lasts until the host is booted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Record(BTreeMap<String, Known>);

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
struct Known {
    /// The run that this is about.
    invocation: String,
    /// The memory that it held soon after its start, if somebody looked then: about what a fresh one takes.
    fresh: Option<u64>,
    /// When the run before was replaced, and the memory that it held.
    recycled: Option<(SystemTime, u64)>,
    /// When the last replacement was tried.
    attempted: Option<SystemTime>,
    /// Why this run can't be replaced.
    problem: Option<String>,
}

impl Known {
    fn is_due(&self) -> bool {
        // A clock that was set back does not end the attempts.
        let age = |at: SystemTime| at.elapsed().unwrap_or(ATTEMPT_INTERVAL);
        self.attempted.is_none_or(|at| age(at) >= ATTEMPT_INTERVAL)
    }
}

impl Record {
    /// Without a file, or with a damaged one, nothing is known.
    fn load(paths: &Paths) -> Self {
        std::fs::read(file(paths))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn save(&self, paths: &Paths) -> Result<()> {
        save_record(&file(paths), self)
    }

    /// Notes what a run holds, and returns what is known of it.
    fn look(&mut self, unit: &UnitState, held: u64) -> &mut Known {
        let known = self.0.entry(unit.name.clone()).or_default();
        if known.invocation != unit.invocation {
            known.invocation.clone_from(&unit.invocation);
            known.fresh = is_young(unit).then_some(held);
            known.problem = None;
        }
        known
    }

    /// Keeps why a run can't be replaced, and says so once.
    fn refuse(&mut self, host: &Host, gateway: &Grown, reason: &str) {
        let words = format!("{}, and is not replaced: {reason}", gateway.words());
        let Some(known) = self.0.get_mut(gateway.instance.unit()) else {
            return;
        };
        if known.problem.is_none() {
            host.progress.warn(&words);
        }
        known.problem = Some(words);
    }
}

/// Whether a unit was started a short time ago.
fn is_young(unit: &UnitState) -> bool {
    let since = unit.active_since.map(Duration::from_micros);
    since.is_some_and(|since| {
        let age = (SystemTime::UNIX_EPOCH + since).elapsed();
        age.is_ok_and(|age| age < YOUNG)
    })
}

fn file(paths: &Paths) -> PathBuf {
    paths.runtime_state().join("recycle.json")
}

/// A gateway that holds more than `.env` allows.
struct Grown {
    instance: Instance,
    invocation: String,
    held: u64,
    mark: u64,
    fresh: Option<u64>,
}

/// Replaces each gateway that holds more memory than `.env` allows, one after another. While another operation runs, the
/// next look does.
pub(crate) async fn run(host: &Host) -> Result<()> {
    let (settings, problem) = snapshot::settings(&host.paths)?;
    // Until `.env` is valid, a fresh gateway could not start. A notice and `doctor` name the line.
    let Some(mark) = settings.recycle_at.filter(|_| problem.is_none()) else {
        return Ok(());
    };
    let mut record = Record::load(&host.paths);
    let before = record.clone();
    let units = stack::gateways(host.systemd().await?).await?;
    record
        .0
        .retain(|name, _| units.iter().any(|(_, unit)| unit.name == *name));
    let mut grown = Vec::new();
    for (instance, unit) in units.into_iter().filter(|(_, unit)| unit.is_active()) {
        let Some(held) = held_memory(&unit.control_group) else {
            continue;
        };
        let known = record.look(&unit, held);
        let Some(mark) = mark.of_limit(unit.memory_max) else {
            continue;
        };
        if held < mark {
            known.problem = None;
        } else if known.is_due() {
            grown.push(Grown {
                instance,
                held,
                mark,
                fresh: known.fresh,
                invocation: unit.invocation,
            });
        }
    }
    let outcome = if grown.is_empty() {
        Ok(())
    } else {
        replace(host, &settings, &mut record, grown).await
    };
    if record != before {
        record.save(&host.paths)?;
    }
    outcome
}

async fn replace(
    host: &Host,
    settings: &Settings,
    record: &mut Record,
    grown: Vec<Grown>,
) -> Result<()> {
    // It may be about to restart them.
    if OperationLock::is_held(&host.paths) || recovery::interrupted(&host.paths)?.is_some() {
        return Ok(());
    }
    let mut possible = Vec::new();
    for gateway in grown {
        match obstacle(host, settings, &gateway).await? {
            None => possible.push(gateway),
            Some(reason) => record.refuse(host, &gateway, &reason),
        }
    }
    if possible.is_empty() {
        return Ok(());
    }
    let _lock = recovery::begin(host, COMMAND, RECOVERY_TIMEOUT).await?;
    let change = Change::begin(host, COMMAND);
    let mut outcome = Ok(());
    for gateway in possible {
        let attempt = replace_one(host, record, &gateway).await;
        if let Err(error) = &attempt {
            record.refuse(host, &gateway, &format!("{error:#}"));
        }
        outcome = outcome.and(attempt);
    }
    change.end(outcome.is_ok());
    outcome
}

/// Why a gateway can't be replaced, or should not be.
async fn obstacle(host: &Host, settings: &Settings, gateway: &Grown) -> Result<Option<String>> {
    if let Some(fresh) = gateway.fresh.filter(|fresh| *fresh >= gateway.mark) {
        return Ok(Some(format!(
            "it held {} soon after its start, so a fresh one would not help",
            bytes(fresh)
        )));
    }
    // They would be applied, and nobody would be there to see what becomes of them.
    if !Applied::differences(&host.paths, settings, gateway.instance)?.is_empty() {
        return Ok(Some(
            "changes of .env or config/ are not applied yet: `litellm-units apply`".to_owned(),
        ));
    }
    stack::recycling_obstacle(host, gateway.instance, gateway.fresh).await
}

async fn replace_one(host: &Host, record: &mut Record, gateway: &Grown) -> Result<()> {
    let systemd = host.systemd().await?;
    let unit = systemd.unit(gateway.instance.unit()).await?;
    // An operation may have restarted it before the lock was taken.
    if unit.invocation != gateway.invocation || !unit.is_active() {
        return Ok(());
    }
    host.progress
        .say(&format!("{}: a fresh one replaces it", gateway.words()));
    let now = SystemTime::now();
    let known = record.look(&unit, gateway.held);
    known.attempted = Some(now);
    // Also if this process is killed.
    record.save(&host.paths)?;
    stack::recycle(host, gateway.instance, gateway.fresh, RECOVERY_TIMEOUT).await?;
    let unit = systemd.unit(gateway.instance.unit()).await?;
    let held = held_memory(&unit.control_group).unwrap_or_default();
    record.look(&unit, held).recycled = Some((now, gateway.held));
    host.progress.say(&format!(
        "{} was replaced: it holds {}",
        unit.name,
        bytes(held)
    ));
    Ok(())
}

impl Grown {
    fn words(&self) -> String {
        format!(
            "{} holds {} of memory, more than {} ({RECYCLE_AT})",
            self.instance.unit(),
            bytes(self.held),
            bytes(self.mark)
        )
    }
}

/// What became of gateways whose memory has grown, in words.
pub(crate) struct Report {
    /// Those that were replaced, with the time and the memory that they held.
    pub(crate) recycled: Vec<(String, SystemTime, u64)>,
    /// Those that can't be, by their units.
    pub(crate) problems: Vec<(String, String)>,
}

impl Report {
    /// Nothing if `.env` asks for nothing.
    pub(crate) fn of(paths: &Paths, settings: &Settings) -> Self {
        let record = match settings.recycle_at {
            Some(_) => Record::load(paths),
            None => Record::default(),
        };
        let mut report = Self {
            recycled: Vec::new(),
            problems: Vec::new(),
        };
        for (unit, known) in record.0 {
            if let Some((at, held)) = known.recycled {
                report.recycled.push((unit.clone(), at, held));
            }
            if let Some(problem) = known.problem {
                report.problems.push((unit, problem));
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(age: Duration) -> u64 {
        let since = (SystemTime::now() - age).duration_since(SystemTime::UNIX_EPOCH);
        u64::try_from(since.unwrap().as_micros()).unwrap()
    }

    fn unit(invocation: &str) -> UnitState {
        UnitState {
            name: "litellm.service".into(),
            invocation: invocation.into(),
            active_since: Some(micros(Duration::ZERO)),
            ..UnitState::default()
        }
    }

    #[test]
    fn a_fresh_run_is_measured_once_and_has_no_problem() {
        let mut record = Record::default();
        assert_eq!(record.look(&unit("a"), 1).fresh, Some(1));
        let known = record.look(&unit("a"), 2);
        assert_eq!(known.fresh, Some(1));
        known.problem = Some("x".into());
        known.attempted = Some(SystemTime::now());
        let known = record.look(&unit("b"), 3);
        assert_eq!((known.fresh, &known.problem), (Some(3), &None));
        // It may have grown for days before somebody looked.
        let mut old = unit("c");
        old.active_since = Some(micros(YOUNG));
        assert_eq!(Record::default().look(&old, 4).fresh, None);
        // What counts is when it was tried, whichever run it was.
        assert!(!known.is_due());
        known.attempted = Some(SystemTime::now() - ATTEMPT_INTERVAL);
        assert!(known.is_due());
        known.attempted = Some(SystemTime::now() + ATTEMPT_INTERVAL);
        assert!(known.is_due());
    }
}

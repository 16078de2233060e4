//! What keeps services from starting: the units that they need, as systemd knows them, and the needs of these.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join_all, try_join_all};

use super::quoted::{Quoted, Selection};
use crate::error::Result;
use crate::host::paths::Scope;
use crate::host::systemd::{ActiveState, Systemd, UnitResult, UnitState};
use crate::service::Instance;

/// How many lines of a failing unit's journal are kept.
const LINES: usize = 20;

/// A unit that others wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blocker {
    /// The unit.
    pub unit: UnitState,
    /// The services that can't start without it, in start order; not itself.
    pub needed_by: Vec<&'static str>,
    /// What its journal says, if it fails.
    pub quoted: Quoted,
}

impl Blocker {
    /// What its journal says about why it fails: the error of this program, and Podman's before it, or else the
    /// last line about an error, or the last line.
    pub(crate) fn message(&self) -> Option<String> {
        let last = |prefix: &str| {
            let mut lines = self.quoted.lines.iter().rev();
            lines.find_map(|line| line.text.strip_prefix(prefix))
        };
        match (last("error: "), last("Error: ")) {
            (Some(own), Some(cause)) => Some(format!("{own}: {cause}")),
            (Some(error), None) | (None, Some(error)) => Some(error.to_owned()),
            (None, None) => {
                let lines = &self.quoted.lines;
                let error = lines.iter().rfind(|line| line.is_error);
                error.or(lines.last()).map(|line| line.text.clone())
            }
        }
    }

    /// What is wrong with the unit.
    pub(crate) fn problem(&self) -> String {
        let problem = self.unit.problem();
        let problem = problem.unwrap_or_else(|| "is starting".into());
        if self.quoted.out_of_memory && self.unit.result != UnitResult::OomKill {
            format!("{problem}: {}", self.unit.out_of_memory())
        } else {
            problem
        }
    }

    /// How to give it more memory, if that is what it lacks.
    pub(crate) fn memory_remedy(&self, scope: Scope) -> Option<String> {
        let lacks_memory = self.quoted.out_of_memory || self.unit.result == UnitResult::OomKill;
        lacks_memory.then(|| self.unit.memory_remedy(scope))?
    }

    /// The unit, what is wrong with it, and what needs it.
    pub(crate) fn words(&self) -> String {
        let unit = &self.unit;
        let problem = self.problem();
        if self.needed_by.is_empty() {
            return format!("{} {problem}", unit.name);
        }
        let needed_by = self.needed_by.join(", ");
        format!("{} {problem}; needed by {needed_by}", unit.name)
    }
}

/// What the services that are not active wait for: failing units, or else units that are starting. Of each, the last
/// `look_back` lines of its journal are looked at.
pub(crate) async fn find(
    systemd: &Systemd,
    services: &[(Instance, UnitState)],
    look_back: u32,
) -> Result<Vec<Blocker>> {
    let mut found = without_lines(systemd, services).await?;
    let now = jiff::Timestamp::now();
    join_all(found.iter_mut().map(async |blocker| {
        if blocker.unit.is_failing() {
            let active = blocker
                .unit
                .active_since
                .and_then(|usec| jiff::Timestamp::from_microsecond(usec.try_into().ok()?).ok());
            let (name, active) = (&blocker.unit.name, active.unwrap_or(now));
            // What ended the last attempt is to be seen while the next one is under way.
            let is_under_way =
                blocker.unit.active == ActiveState::Activating && !blocker.unit.awaits_restart();
            let runs = Selection::Runs(if is_under_way { 2 } else { 1 });
            blocker.quoted = Quoted::read(systemd, name, (look_back, LINES), runs, active).await;
        }
    }))
    .await;
    Ok(found)
}

/// The same, without a look into the journal.
pub(crate) async fn without_lines(
    systemd: &Systemd,
    services: &[(Instance, UnitState)],
) -> Result<Vec<Blocker>> {
    let roots = services.iter().map(|(_, unit)| unit.clone()).collect();
    let units = needed(systemd, roots).await?;
    Ok(blockers(services, &units))
}

/// `units` that are not active, and every unit that they need, directly or not.
pub(super) async fn needed(
    systemd: &Systemd,
    units: Vec<UnitState>,
) -> Result<BTreeMap<String, UnitState>> {
    let mut found = BTreeMap::new();
    let mut next = units;
    while !next.is_empty() {
        let mut names = BTreeSet::new();
        for unit in next {
            if !unit.is_active() {
                names.extend(unit.needs.iter().cloned());
            }
            found.insert(unit.name.clone(), unit);
        }
        names.retain(|name| !found.contains_key(name));
        next = try_join_all(names.iter().map(|name| systemd.unit(name))).await?;
    }
    Ok(found)
}

fn blockers(
    services: &[(Instance, UnitState)],
    units: &BTreeMap<String, UnitState>,
) -> Vec<Blocker> {
    let mut found: Vec<Blocker> = Vec::new();
    for (service, unit) in services {
        for cause in causes(&unit.name, units, &mut BTreeSet::new()) {
            let at = found.iter().position(|blocker| blocker.unit == *cause);
            let at = at.unwrap_or_else(|| {
                found.push(Blocker {
                    unit: cause.clone(),
                    needed_by: Vec::new(),
                    quoted: Quoted::default(),
                });
                found.len() - 1
            });
            if cause.name != unit.name {
                found[at].needed_by.push(service.name());
            }
        }
    }
    if found.iter().any(|blocker| blocker.unit.is_failing()) {
        found.retain(|blocker| blocker.unit.is_failing());
    } else {
        found.retain(|blocker| !blocker.needed_by.is_empty());
    }
    found
}

/// The units at the end of the chain: each is at fault or at work itself, and waits for no other.
fn causes<'a>(
    name: &str,
    units: &'a BTreeMap<String, UnitState>,
    seen: &mut BTreeSet<&'a str>,
) -> Vec<&'a UnitState> {
    let Some(unit) = units.get(name) else {
        return Vec::new();
    };
    if unit.is_active() || !seen.insert(&unit.name) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for need in &unit.needs {
        found.extend(causes(need, units, seen));
    }
    if found.is_empty() && (unit.is_failing() || unit.active == ActiveState::Activating) {
        found.push(unit);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::systemd::LoadState;
    use crate::operations::stack::quoted::QuotedLine;
    use crate::service::Service;

    fn unit(name: &str, active: &str, sub: &str, needs: &[&str]) -> UnitState {
        UnitState {
            name: name.into(),
            load: LoadState::Loaded,
            active: ActiveState::parse(active),
            sub: sub.into(),
            needs: needs.iter().map(|name| (*name).to_owned()).collect(),
            ..UnitState::default()
        }
    }

    /// The words for a stack of these units; `images` is that of PostgreSQL's.
    fn words(images: UnitState, postgres: &str, redis: &str) -> Vec<String> {
        let needs = |service: Service| match service {
            Service::Postgres => ("postgres", vec![Service::Postgres.images_unit()]),
            Service::Redis => ("redis", vec![Service::Redis.images_unit()]),
            Service::Migrate => ("", vec![Service::Postgres.unit()]),
            Service::Litellm => (
                "",
                vec![Service::Migrate.unit(), Service::Redis.unit(), "a.mount"],
            ),
            Service::Extra(_) | Service::Entrance => ("", Vec::new()),
        };
        let services: Vec<(Instance, UnitState)> = Service::ALL
            .into_iter()
            .map(|service| {
                let (of, needs) = needs(service);
                let active = match of {
                    "postgres" => postgres,
                    "redis" => redis,
                    _ => "inactive",
                };
                (service.into(), unit(service.unit(), active, "", &needs))
            })
            .collect();
        let others = [
            images,
            unit(Service::Redis.images_unit(), "inactive", "dead", &[]),
            unit("a.mount", "active", "mounted", &[]),
        ];
        let units = services.iter().map(|(_, unit)| unit).chain(&others);
        let units = units
            .map(|unit| (unit.name.clone(), unit.clone()))
            .collect();
        blockers(&services, &units)
            .iter()
            .map(Blocker::words)
            .collect()
    }

    fn images(active: &str, sub: &str, restarts: u64) -> UnitState {
        UnitState {
            restarts,
            result: UnitResult::ExitCode,
            exit_code: 1,
            exit_status: 1,
            ..unit(Service::Postgres.images_unit(), active, sub, &[])
        }
    }

    #[test]
    fn the_end_of_the_chain_is_named() {
        let failing = images("activating", "auto-restart", 3);
        assert_eq!(
            words(failing, "inactive", "active"),
            [
                "litellm-images@postgres.service keeps failing: 3 restarts, the last time exited with status 1; needed by postgres, migrate, litellm"
            ]
        );
        let pulling = images("activating", "start", 0);
        assert_eq!(
            words(pulling.clone(), "inactive", "activating"),
            [
                "litellm-images@postgres.service is starting; needed by postgres, migrate, litellm",
                "litellm-redis.service is starting; needed by litellm"
            ]
        );
        // What fails comes before what only takes its time.
        assert_eq!(
            words(pulling, "inactive", "failed"),
            ["litellm-redis.service failed: no reason given; needed by litellm"]
        );
        assert_eq!(
            words(images("inactive", "dead", 0), "inactive", "inactive"),
            [""; 0]
        );
    }

    #[test]
    fn the_error_says_why() {
        let mut blocker = Blocker {
            unit: images("failed", "failed", 0),
            needed_by: Vec::new(),
            quoted: Quoted::default(),
        };
        assert_eq!(blocker.message(), None);
        let mut message = |lines: &[&str]| {
            let lines = lines.iter().map(|line| QuotedLine {
                text: (*line).to_owned(),
                is_error: line.starts_with("ValueError"),
            });
            blocker.quoted.lines = lines.collect();
            blocker.message().unwrap()
        };
        let lines = [
            "Error: no route",
            "error: can't pull a",
            "hint: look",
            "the end",
        ];
        assert_eq!(message(&lines), "can't pull a: no route");
        assert_eq!(message(&lines[1..]), "can't pull a");
        assert_eq!(message(&lines[2..]), "the end");
        assert_eq!(message(&["ValueError: two", "the end"]), "ValueError: two");
    }
}

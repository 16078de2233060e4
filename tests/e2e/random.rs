//! What is done to a deployment at random moments: kills, losses of power, and two operators at once.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::gateway::{
    Load, Writer, allow_mock_delays, chat, count_of, new_key, sql, wait_for_chat,
};
use crate::support::host::{Ran, TestHost, Who};
use crate::support::releases::{DEFAULT, NEWEST};

/// Numbers that a seed determines (`SplitMix64`).
struct Random(u64);

impl Random {
    /// From the environment, to repeat a run, or from the clock; prints it.
    fn seeded() -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = setting("LITELLM_UNITS_SEED", clock.as_secs());
        eprintln!("to repeat these choices: LITELLM_UNITS_SEED={seed}");
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// What is interrupted: a script that leaves its process to the program, how long it takes at most, in milliseconds, and
/// whether it takes the database back to a backup, so that nothing may be written meanwhile.
const OPERATIONS: [(&str, usize, bool); 14] = [
    (
        r#"sed -i '/^LITELLM_LOG=/d' "$1/.env"; echo LITELLM_LOG=$2 >>"$1/.env"; exec litellm-units apply"#,
        60_000,
        false,
    ),
    ("exec litellm-units restart", 40_000, false),
    (
        "exec litellm-units restart --handover litellm",
        60_000,
        false,
    ),
    (
        "exec litellm-units upgrade --settle 0 --image $3",
        90_000,
        false,
    ),
    (
        "exec litellm-units rollback --keep-data --settle 0",
        90_000,
        false,
    ),
    ("exec litellm-units backup", 3_000, false),
    ("exec litellm-units restore latest --yes", 40_000, true),
    ("exec litellm-units secrets rotate redis", 60_000, false),
    ("exec litellm-units secrets rotate postgres", 60_000, false),
    ("exec litellm-units secrets rotate master", 60_000, false),
    ("exec litellm-units secrets rotate salt", 60_000, true),
    (
        "exec litellm-units key create --model hello key-$2",
        500,
        false,
    ),
    ("exec litellm-units pull", 1_000, false),
    ("exec litellm-units generate", 1_000, false),
];

/// Runs an operation and interrupts it after some time, by `kill -9` or by taking the power away. Its exit status if it had
/// ended before.
fn interrupt(
    host: &TestHost,
    who: Who,
    operation: &str,
    after: Duration,
    words: [&str; 2],
    power: bool,
) -> Option<i32> {
    let script = format!("echo $$ >/run/random.pid; {operation}");
    let words = [
        &[
            "bash",
            "-euo",
            "pipefail",
            "-c",
            &script,
            "random",
            who.deployment(),
        ][..],
        &words,
    ]
    .concat();
    host.sh(who, "rm -f /run/random.pid");
    let mut child = host
        .command(who, &words)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    host.wait(
        "the operation to begin",
        Duration::from_secs(30),
        |host| match host.run(who, &["test", "-s", "/run/random.pid"]).code {
            0 => Ok(()),
            code => Err(format!("test -s: {code}")),
        },
    );
    let begin = Instant::now();
    while begin.elapsed() < after {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = child.try_wait().unwrap();
    if power {
        host.crash();
    } else if ended.is_none() {
        // It may end in between.
        host.sh(who, "kill -KILL $(cat /run/random.pid) || :");
    }
    child.wait().unwrap();
    ended.map(|status| status.code().unwrap())
}

/// The gateway serves with the database that has every write; nobody has done anything for it.
fn is_back(host: &TestHost, who: Who, key: &str, written: &[String]) {
    let patience = Duration::from_secs(600);
    wait_for_chat(host, who, key, patience);
    host.wait("systemd to have completed everything", patience, |host| {
        let begun = host.sh(
            who,
            "systemctl list-units --no-legend --state=activating 'litellm*'; systemctl list-jobs --no-legend",
        );
        let recovery = host.property(who, "litellm-recovery.service", "ActiveState");
        match (begun.as_str(), recovery.as_str()) {
            ("", "inactive") => Ok(()),
            _ => Err(format!("{begun}litellm-recovery.service is {recovery}")),
        }
    });
    wait_for_chat(host, who, key, patience);
    if !written.is_empty() {
        assert_eq!(
            sql(host, who, &count_of(written)),
            written.len().to_string()
        );
        for key in written.iter().rev().take(3) {
            chat(host, who, key).unwrap();
        }
    }
    assert_eq!(host.sh(who, "systemctl --failed --no-legend"), "");
}

/// As an operator finds it: nothing holds the lock, and one command leaves nothing to do.
fn is_in_order(host: &TestHost, who: Who) {
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );
    let left = format!(
        r#"find {} "$1" -path "$1/data" -prune -o \( -name '*next*' -o -name restore.json \) -print"#,
        who.quadlets()
    );
    assert_eq!(host.sh(who, &left), "");
    for words in [["history", "--json"], ["backup", "list"]] {
        host.units(who, &words).ok();
    }
}

/// A client writes all the time; each operation is interrupted at a moment that a seed determines.
#[test]
#[ignore = "takes half an hour: part of each release (CONTRIBUTING.md)"]
fn interrupted_at_random_moments() {
    let who = Who::Root;
    let rounds = setting("LITELLM_UNITS_ROUNDS", 20);
    let mut random = Random::seeded();
    let host = TestHost::boot("random");
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    host.units(who, &["backup"]).ok();
    let mut written = Vec::new();
    for round in 1..=rounds {
        let (operation, longest, takes_back) = OPERATIONS[random.below(OPERATIONS.len())];
        let after = Duration::from_millis(u64::try_from(random.below(longest)).unwrap());
        let power = random.below(3) == 0;
        let newest = host.env(who).get("LITELLM_IMAGE") == Some(NEWEST.image);
        let image = if newest { DEFAULT.image } else { NEWEST.image };
        let number = if operation.contains("LITELLM_LOG") {
            ["INFO", "ERROR"][usize::try_from(round % 2).unwrap()].to_owned()
        } else {
            round.to_string()
        };
        let how = if power { "power" } else { "kill" };
        eprintln!("round {round}: {how} after {after:?} of: {operation}");
        let writer = if takes_back {
            host.units(who, &["backup"]).ok();
            None
        } else {
            Some(Writer::begin(&host, who))
        };
        let begin = Instant::now();
        let ended = interrupt(&host, who, operation, after, [&number, image], power);
        // Before the first upgrade, there is nothing to roll back to.
        let is_right = ended.is_none_or(|code| code == 0 || operation.contains("rollback"));
        assert!(is_right, "exit status {ended:?}: {operation}");
        let stopped = Instant::now();
        wait_for_chat(&host, who, &key, Duration::from_secs(600));
        let back = stopped.elapsed();
        written.extend(writer.map_or_else(Vec::new, |writer| writer.end(&host, who)));
        is_back(&host, who, &key, &written);
        eprintln!(
            "  ended before: {ended:?}; served {back:?} later; all done {:?} after the begin; {} acknowledged writes so far",
            begin.elapsed(),
            written.len()
        );
        is_in_order(&host, who);
    }
    // It removes what killed ones left.
    host.units(who, &["backup"]).ok();
    let left = r#"ls -A "$1/backups" | sed -n '/^\.new-/p'"#;
    assert_eq!(host.sh(who, left), "");
    let databases = "select datname from pg_database where datname like 'litellm_units_%' and datname not like 'litellm_units_replaced_%'";
    assert_eq!(sql(&host, who, databases), "");
    is_back(&host, who, &key, &written);
    assert!(!written.is_empty());
    eprintln!("{} acknowledged writes, none lost", written.len());
}

/// What two operators do at once: none of it interrupts the gateway.
const COMMANDS: [&str; 20] = [
    "apply",
    "apply",
    "restart",
    "restart --handover litellm",
    "generate",
    "generate --dry-run",
    "backup",
    "backup list",
    "backup verify latest",
    "status",
    "doctor --json",
    "db status",
    "history --json",
    "key list",
    "key create --model hello NEW",
    "pull",
    "secrets rotate redis",
    "secrets audit",
    "config check",
    "logs -n 5",
];

/// One operator: the answers that are neither success nor a clear refusal, and how often each was given.
fn operate(
    host: &TestHost,
    who: Who,
    name: &str,
    mut random: Random,
    until: Instant,
) -> (Vec<String>, BTreeMap<String, usize>) {
    let (mut surprises, mut answers) = (Vec::new(), BTreeMap::new());
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let words =
            COMMANDS[random.below(COMMANDS.len())].replace("NEW", &format!("{name}-{number}"));
        if words == "apply" {
            let level = ["INFO", "ERROR", "DEBUG"][random.below(3)];
            host.sh(
                who,
                &format!(r#"sed -i 's/^LITELLM_LOG=.*/LITELLM_LOG={level}/' "$1/.env""#),
            );
        }
        let split: Vec<&str> = words.split(' ').collect();
        let Ran {
            code,
            stdout,
            stderr,
        } = host.units(who, &split);
        let refused = stderr.contains("error: another operation is running: litellm-units ")
            && stderr.contains(" (process ")
            && stderr.contains("\nhint: wait for it, or end it; ");
        // They see what the other one is in the middle of.
        let looks = [
            "status",
            "doctor",
            "generate --dry-run",
            "config check",
            "secrets audit",
        ]
        .iter()
        .any(|look| words.starts_with(look));
        // The other one restarts the gateway.
        let waited =
            words.starts_with("key ") && stderr.contains(" does not answer: no answer in time\n");
        let answer = match code {
            0 => "success",
            _ if refused => "refused",
            1 if waited => "no answer",
            1 | 3 | 4 if looks && !stdout.is_empty() => "a finding",
            _ => {
                surprises.push(format!("{name}: {words}: {code}\n{stdout}{stderr}"));
                "a surprise"
            }
        };
        *answers.entry(format!("{} {answer}", split[0])).or_default() += 1;
    }
    (surprises, answers)
}

/// Two sessions run commands as they like, while clients ask the gateway: each gets an answer that it can use, and in the
/// end all is in order.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn two_operators_at_once() {
    let who = Who::Root;
    let minutes = setting("LITELLM_UNITS_MINUTES", 10);
    let mut random = Random::seeded();
    let host = TestHost::boot("operators");
    let host = &host;
    host.units(who, &["generate"]).ok();
    allow_mock_delays(host, who);
    host.set_env(who, &[("LITELLM_LOG", "INFO")]);
    host.units(who, &["up"]).ok();
    host.units(who, &["backup"]).ok();
    let key = new_key(host, who);
    let load = Load::begin(host, who, &key);
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let seeds = [Random(random.next()), Random(random.next())];
    let done: Vec<_> = std::thread::scope(|scope| {
        let operators: Vec<_> = ["anna", "ben"]
            .into_iter()
            .zip(seeds)
            .map(|(name, seed)| scope.spawn(move || operate(host, who, name, seed, until)))
            .collect();
        operators
            .into_iter()
            .map(|one| one.join().unwrap())
            .collect()
    });
    let failures = load.end(host, who);
    for (surprises, answers) in &done {
        eprintln!("{answers:#?}");
        assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    }
    assert!(failures.is_empty(), "{failures:?}");
    host.units(who, &["up"]).ok();
    is_in_order(host, who);
    let doctor = host.units(who, &["doctor"]);
    assert_eq!(doctor.code, 7, "{}", doctor.stdout);
    assert_eq!(host.sh(who, "systemctl --failed --no-legend"), "");
}

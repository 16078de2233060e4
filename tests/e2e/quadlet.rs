//! The host's own Quadlet and systemd read the units of every case without a word of complaint.

use std::path::Path;

use askama::filters::Escaper;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::cases::{self, Case};
use crate::support::host::{TestHost, Who};
use litellm_units::host::paths::Scope;
use litellm_units::quadlet::Place;
use litellm_units::quadlet::escape::{self, Unit};

/// Turns `containers/` into services as a daemon-reload would, and verifies them together with
/// what is in `systemd/`. Prints the names of all units.
const VERIFY: &str = r#"
cd "$1"
generator=/usr/lib/systemd/system-generators/podman-system-generator
export QUADLET_UNIT_DIRS=$PWD/containers SYSTEMD_UNIT_PATH=$PWD/generated:
mkdir generated
"$generator" $2 --dryrun >/dev/null
"$generator" $2 generated generated generated
cp systemd/* generated
systemd-analyze $2 verify --man=no generated/*.service generated/*.socket generated/*.target generated/*.timer
cd generated
ls -- *.service *.socket *.target *.timer
"#;

fn write(case: &Case, directory: &Path) {
    for unit in case.units() {
        let place = directory.join(match unit.place {
            Place::Quadlet => "containers",
            Place::Unit => "systemd",
        });
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join(unit.name), unit.text).unwrap();
    }
}

fn is_harmless(line: &str) -> bool {
    // In a dry run Quadlet names each file that it reads.
    line.contains(": Loading source unit file /")
        // It quotes a volume's path in ExecStart=, but not here.
        || line.contains("RequiresMountsFor= path is not absolute, ignoring: gateway/")
        // It is not installed here.
        || line.contains("Command caddy is not executable: No such file or directory")
}

#[test]
fn quadlet_and_systemd_accept_the_units_of_every_case() {
    let host = TestHost::boot("quadlet");
    let directory = tempfile::tempdir().unwrap();
    for case in cases::all().into_iter().filter(|case| !case.is_dev()) {
        write(&case, &directory.path().join(&case.name));
    }
    host.bash(Who::Operator, "mkdir /tmp/cases").ok();
    host.put_for(Who::Operator, directory.path(), "/tmp/cases");
    for case in cases::all().into_iter().filter(|case| !case.is_dev()) {
        let (who, option) = match case.scope {
            Scope::System => (Who::Root, ""),
            Scope::User => (Who::Operator, "--user"),
        };
        let of_case = format!("/tmp/cases/{}", case.name);
        let ran = host.bash_with(who, VERIFY, &[&of_case, option]);
        let external = |what| case.name.contains(what) || case.name.contains("external-both");
        let mut expected = String::new();
        if case.name.ends_with("-replicas") {
            expected.push_str("litellm-2.service\nlitellm-3.service\n");
        }
        expected.push_str("litellm-backup.service\nlitellm-backup.timer\n");
        if case.name.contains("-entrance") {
            expected.push_str("litellm-entrance.service\n");
        }
        if case.name.ends_with("-extra") {
            expected.push_str("litellm-extra-filter.service\n");
        }
        expected.push_str("litellm-images@.service\n");
        // The case with an archive, a recipient of notices, and metrics by HTTP.
        let has_companions = case.name.ends_with("-space");
        if has_companions {
            expected.push_str("litellm-metrics.socket\nlitellm-metrics@.service\n");
        }
        expected.push_str("litellm-migrate.service\nlitellm-network.service\n");
        if !external("external-database") {
            expected.push_str("litellm-postgres.service\n");
        }
        expected
            .push_str("litellm-recovery.service\nlitellm-recycle.service\nlitellm-recycle.timer\n");
        if !external("external-redis") {
            expected.push_str("litellm-redis.service\n");
        }
        expected.push_str(
            "litellm-standby.service\nlitellm-upgrade-check.service\nlitellm-upgrade-check.timer\n\
             litellm-verify.service\nlitellm-verify.timer\n",
        );
        if has_companions {
            expected.push_str(
                "litellm-wal.service\nlitellm-wal.timer\nlitellm-watch.service\nlitellm-watch.timer\n",
            );
        }
        expected.push_str("litellm.service\nlitellm.socket\nlitellm.target\n");
        let complaints: Vec<&str> = ran
            .stderr
            .lines()
            .filter(|line| !is_harmless(line))
            .collect();
        assert_eq!(
            (complaints, ran.stdout),
            (Vec::new(), expected),
            "{}",
            case.name
        );
        assert_eq!(ran.code, 0, "{}", case.name);
    }
}

/// What systemd makes of words that are escaped for it. Control characters but line breaks are refused before.
#[test]
fn systemd_reads_words_as_they_were() {
    let host = TestHost::boot("words");
    let mut runner = TestRunner::deterministic();
    let any = prop_oneof![
        "[ -~\n]{0,24}",
        prop::collection::vec(
            prop::sample::select(
                &[
                    "%", "$", "${A}", "\\", "\"", "'", ";", " ", "\n", "a", "é", "-"
                ][..]
            ),
            0..12
        )
        .prop_map(|pieces| pieces.concat()),
    ];
    let words: Vec<String> =
        std::iter::repeat_with(|| any.new_tree(&mut runner).unwrap().current())
            .take(200)
            .collect();
    let command: String = words
        .iter()
        .map(|word| format!(" {}", escape::word(word)))
        .collect();
    let mut line = String::new();
    Unit.write_escaped_str(&mut line, &command).unwrap();
    let unit = format!(
        "[Service]\nType=oneshot\nStandardOutput=file:/run/words\nExecStart=printf %%s\\\\0{line}\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("words.service");
    std::fs::write(&path, unit).unwrap();
    host.put_for(Who::Root, &path, "/run/systemd/system/");
    host.sh(Who::Root, "systemctl start words");
    let said = host.sh(Who::Root, "cat /run/words");
    let read: Vec<&str> = said.split_terminator('\0').collect();
    assert_eq!(read, words);
}

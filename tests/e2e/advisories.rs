//! Known vulnerabilities: refusals, warnings, and that no running gateway is stopped. Newer releases:
//! lists, exit statuses and the timer.

use std::time::Duration;

use serde_json::Value;

use crate::support::gateway::{HELLO, chat, new_key};
use crate::support::host::{Ran, TestHost, Who};

const NAME: &str = "ghcr.io/berriai/litellm";
/// A release with exploited vulnerabilities.
const OLD: &str = "v1.80.11-stable";
/// Its exploited vulnerabilities.
const EXPLOITED: &str = "CVE-2026-42271,CVE-2026-59822";

const WARNING: &str = "\
warning: LiteLLM 1.80.11 has 16 known vulnerabilities. Exploited:
         CVE-2026-42271, CVE-2026-59822. Others: 2 critical, 7 high, 5 lower.
         All are fixed in 1.100.4. See them: `litellm-units upgrade --check`
";

/// Gives the old image further tags in the registry, unless they are there.
fn tags(host: &TestHost, tags: &[&str]) {
    let script = r#"
        at=127.0.0.1:5000/berriai/litellm
        for tag in "${@:2}"; do
            skopeo inspect --raw --tls-verify=false docker://$at:$tag >/dev/null 2>&1 ||
                skopeo copy -q --all --src-tls-verify=false --dest-tls-verify=false docker://$at:$1 docker://$at:$tag
        done"#;
    host.bash_with(Who::Root, script, &[&[OLD], tags].concat())
        .ok();
}

/// A deployment that names the old release, and nothing else yet.
fn name_old(host: &TestHost, who: Who) {
    let script =
        format!(r#"mkdir -p "$1"; (umask 077; echo 'LITELLM_IMAGE={NAME}:{OLD}' >"$1/.env")"#);
    host.sh(who, &script);
}

#[track_caller]
fn refused(ran: Ran, release: &str, ids: &str, again: &str) {
    assert_eq!(
        ran.all(),
        (
            78,
            String::new(),
            format!(
                "error: LiteLLM {release} is refused because of exploited vulnerabilities: {}\n\
                 hint: use LiteLLM 1.84.0 or later, or accept the risk: `{again} --accept-vulnerability {ids}`, or LITELLM_ACCEPT_VULNERABILITIES={ids} in .env\n",
                ids.replace(',', ", ")
            )
        )
    );
}

#[track_caller]
fn json(host: &TestHost, who: Who, words: &[&str], code: i32) -> Value {
    let ran = host.units(who, words);
    assert_eq!(ran.code, code, "{}{}", ran.stdout, ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn doctor(host: &TestHost, who: Who, check: &str) -> (String, String) {
    let said = host.units(who, &["doctor", "--json"]);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    let found = said["checks"].as_array().unwrap().iter();
    let found = found
        .filter(|found| found["name"] == check)
        .map(|found| {
            let word = |name: &str| found[name].as_str().unwrap().to_owned();
            (word("outcome"), word("message"))
        })
        .next();
    found.unwrap()
}

/// A new deployment with an exploited release is refused, unless the operator accepts it.
fn a_new_deployment(host: &TestHost, who: Who) {
    name_old(host, who);
    for words in ["up", "generate", "apply", "pull"] {
        let again = match words {
            "generate" => "litellm-units up".to_owned(),
            words => format!("litellm-units {words}"),
        };
        let completed = host.sh(who, "wc -l <\"$1/.env\"") != "1\n";
        // `pull` needs a complete `.env`, and here is none yet.
        if words != "pull" || completed {
            refused(host.units(who, &[words]), "1.80.11", EXPLOITED, &again);
        }
    }
    let left = format!(
        "ls {} 2>/dev/null | grep -c litellm || true",
        who.quadlets()
    );
    assert_eq!(host.sh(who, &left), "0\n");
    let ran = host.units(who, &["up", "--accept-vulnerability", EXPLOITED]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // The accepted ones are left out.
    let first = "warning: LiteLLM 1.80.11 has 14 known vulnerabilities. Severity: 2 critical, 7\n";
    assert!(ran.stderr.starts_with(first), "{}", ran.stderr);
}

/// A deployment that runs an exploited release goes on.
fn what_runs_goes_on(host: &TestHost, who: Who) {
    let key = new_key(host, who);
    let up = host.units(who, &["up"]);
    assert_eq!(up.code, 0, "{}", up.stderr);
    assert!(up.stderr.starts_with(WARNING), "{}", up.stderr);
    let pull = host.units(who, &["pull"]);
    assert_eq!(pull.code, 0, "{}", pull.stderr);
    assert!(pull.stderr.contains(WARNING), "{}", pull.stderr);
    host.set_env(who, &[("OPENAI_API_KEY", "sk-edited")]);
    let apply = host.units(who, &["apply"]);
    assert_eq!(apply.code, 0, "{}", apply.stderr);
    assert!(apply.stderr.contains(WARNING), "{}", apply.stderr);
    host.systemctl(who, &["restart", "litellm.service"]);
    if who == Who::Root {
        host.crash();
        host.wait(
            "the gateway after a crash",
            Duration::from_secs(120),
            |host| chat(host, who, &key),
        );
    }
    assert_eq!(chat(host, who, &key).as_deref(), Ok(HELLO));

    let status = host.units(who, &["status"]).ok();
    assert!(
        status.contains(
            "\n! 16 known vulnerabilities, 2 exploited: see `litellm-units upgrade --check`\n"
        ),
        "{status}"
    );
    let status = json(host, who, &["status", "--json"], 0);
    let found = status["vulnerabilities"].as_array().unwrap();
    assert_eq!(found.len(), 16);
    assert_eq!(
        found[0],
        serde_json::json!({
            "id": "CVE-2026-42271",
            "aliases": ["GHSA-v4p8-mg3p-g94g"],
            "severity": "high",
            "exploited": true,
            "accepted": false,
            "fixed": "1.83.7",
            "summary": "command execution by any key (MCP)",
            "url": "https://github.com/BerriAI/litellm/security/advisories/GHSA-v4p8-mg3p-g94g",
        })
    );
    let (outcome, message) = doctor(host, who, "vulnerabilities");
    assert_eq!(
        (outcome.as_str(), message.as_str()),
        (
            "failure",
            "LiteLLM 1.80.11 has 16 known vulnerabilities. Exploited: CVE-2026-42271, CVE-2026-59822. Others: 2 critical, 7 high, 5 lower. All are fixed in 1.100.4."
        )
    );
}

/// Another exploited release is refused before it is pulled.
fn another_exploited_release(host: &TestHost, who: Who) {
    let image = format!("{NAME}:v1.81.16-stable");
    let ids = "CVE-2026-42208,CVE-2026-42271,CVE-2026-59822";
    refused(
        host.units(who, &["upgrade", "--image", &image]),
        "1.81.16",
        ids,
        &format!("litellm-units upgrade --image {image}"),
    );
    host.set_env(who, &[("LITELLM_IMAGE", &image)]);
    for words in ["upgrade", "up", "apply", "pull"] {
        let again = format!("litellm-units {words}");
        refused(host.units(who, &[words]), "1.81.16", ids, &again);
    }
    let recorded = format!("jq '.images | has(\"{image}\")' \"$1/images.lock\"");
    assert_eq!(host.sh(who, &recorded), "false\n");
    let plan = host.units(
        who,
        &["upgrade", "--dry-run", "--accept-vulnerability", ids],
    );
    assert_eq!(plan.code, 0, "{}", plan.stderr);
    assert!(plan.stdout.starts_with("upgrade "), "{}", plan.stdout);
    host.set_env(who, &[("LITELLM_IMAGE", &format!("{NAME}:{OLD}"))]);
}

/// `upgrade --check`, by its lists and exit statuses.
fn newer_releases(host: &TestHost, who: Who) {
    let check = |code: i32| json(host, who, &["upgrade", "--check", "--json"], code);
    let candidates = |report: &Value| -> Vec<String> {
        let found = report["candidates"].as_array().unwrap().iter();
        found
            .map(|found| {
                let release = found["release"].as_str().unwrap();
                format!("{release} {}", found["newest_of"])
            })
            .collect()
    };
    let report = check(6);
    assert_eq!(
        candidates(&report),
        [
            "1.80.15 [\"line\"]",
            "1.108.14 [\"long-term\"]",
            "1.110.2 [\"all\"]"
        ]
    );
    assert_eq!(report["verdict"], "vulnerable");
    assert_eq!(report["recommended"]["image"], format!("{NAME}:v1.108.14"));
    assert_eq!(report["candidates"][0]["exploited"][0], "CVE-2026-42271");
    assert_eq!(
        report["candidates"][1]["fixes"].as_array().unwrap().len(),
        16
    );
    let ran = host.units(who, &["upgrade", "--check"]);
    assert_eq!(ran.code, 6);
    let expected = "\
RELEASE    IMAGE                                    VULNERABILITIES  FIXES
current    ghcr.io/berriai/litellm:v1.80.11-stable  16, 2 exploited
same line  ghcr.io/berriai/litellm:v1.80.15-stable  16, 2 exploited  -
long-term  ghcr.io/berriai/litellm:v1.108.14        none known       16
newest     ghcr.io/berriai/litellm:v1.110.2         none known       16

VULNERABILITY        SEVERITY   FIXED IN
CVE-2026-42271       exploited  1.83.7    command execution by any key (MCP)
CVE-2026-59822       exploited  1.84.0    MCP tools without a key
CVE-2026-35030       critical   1.83.0    login as another user (JWT)
";
    assert!(ran.stdout.starts_with(expected), "{}", ran.stdout);
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= 80));
    assert_eq!(
        ran.stderr,
        format!("to upgrade: `litellm-units upgrade --image {NAME}:v1.108.14`\n")
    );

    // With all of them accepted, only the newer release is left.
    let all: Vec<&str> = report["current"]["vulnerabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| found["id"].as_str().unwrap())
        .collect();
    host.set_env(who, &[("LITELLM_ACCEPT_VULNERABILITIES", &all.join(","))]);
    assert_eq!(check(5)["verdict"], "upgrade-available");
    let (outcome, message) = doctor(host, who, "vulnerabilities");
    assert_eq!(outcome, "ok", "{message}");
    host.set_env(who, &[("LITELLM_ACCEPT_VULNERABILITIES", "")]);
}

/// The timer's service says it in a line of the journal, and `status` after it.
fn the_timer_tells(host: &TestHost, who: Who) {
    let timer = "litellm-upgrade-check.timer";
    let state = |name| host.property(who, timer, name);
    assert_eq!(
        (state("ActiveState"), state("UnitFileState")),
        ("active".into(), "enabled".into())
    );
    let service = "litellm-upgrade-check.service";
    let ids = EXPLOITED.replace(',', ", ");
    let known = format!("LiteLLM 1.80.11 has 16 known vulnerabilities, exploited: {ids}; ");
    let image = format!("{NAME}:v1.108.14");
    host.systemctl(who, &["start", service]);
    assert_eq!(
        warned(host, who, service),
        format!("{known}to upgrade: `litellm-units upgrade --image {image}`\n")
    );
    let status = json(host, who, &["status", "--json"], 0);
    let check = &status["upgrade_check"];
    assert_eq!(check["verdict"], "vulnerable");
    assert_eq!(check["recommended"]["image"], image);
    let status = host.units(who, &["status"]).ok();
    assert!(
        status.contains("LiteLLM 1.108.14 is available (checked "),
        "{status}"
    );
    let (outcome, message) = doctor(host, who, "upgrade-check");
    assert_eq!(outcome, "ok", "{message}");
    assert!(
        message.starts_with("LiteLLM 1.108.14 is available"),
        "{message}"
    );

    // Without a registry, known vulnerabilities are still reported, and the unit does not fail.
    host.sh(Who::Root, "systemctl stop docker-registry.service");
    host.systemctl(who, &["start", service]);
    let said = warned(host, who, service);
    assert!(
        said.starts_with(&format!("{known}can't list newer releases: ")),
        "{said}"
    );
    let ran = host.units(who, &["upgrade", "--check"]);
    assert_eq!(ran.code, 6);
    assert!(
        ran.stderr
            .starts_with("warning: can't list newer releases: "),
        "{}",
        ran.stderr
    );
    let all = "$(litellm-units status --json | jq -r '[.vulnerabilities[].id] | join(\",\")')";
    host.sh(
        who,
        &format!("echo \"LITELLM_ACCEPT_VULNERABILITIES={all}\" >>\"$1/.env\""),
    );
    assert_eq!(host.units(who, &["upgrade", "--check"]).code, 1);
    host.sh(who, "sed -i '$d' \"$1/.env\"");
    host.sh(Who::Root, "systemctl start docker-registry.service");
}

/// The last line that a service wrote as a warning.
fn warned(host: &TestHost, who: Who, service: &str) -> String {
    let journal = match who {
        Who::Root => format!("journalctl -u {service}"),
        Who::Operator => format!("journalctl --user -u {service}"),
    };
    // The service has ended, but journald may not have written everything yet.
    host.sh(Who::Root, "journalctl --sync");
    host.sh(
        who,
        &format!("{journal} -p warning -o cat --no-pager | grep LiteLLM | tail -n 1"),
    )
}

/// Files of osv.dev add to what is known, for root and for users.
fn advisories_of_the_host(host: &TestHost, who: Who) {
    let directory = "/etc/litellm-units/advisories";
    let file = format!("{directory}/GHSA-xxxx-test-0001.json");
    let advisory = r#"{"schema_version": "1.7.3", "id": "GHSA-xxxx-test-0001", "modified": "2026-11-27T00:00:00Z",
  "aliases": ["CVE-2026-99999"], "summary": "Something that the table does not have, at some length",
  "affected": [{"package": {"ecosystem": "PyPI", "name": "litellm"}, "ranges": [{"type": "ECOSYSTEM",
    "events": [{"introduced": "0"}, {"fixed": "1.108.15"}]}]}],
  "references": [], "database_specific": {"severity": "CRITICAL"}}"#;
    host.sh(Who::Root, &format!("mkdir -p {directory}"));
    host.write(Who::Root, &file, advisory);
    let report = json(host, who, &["upgrade", "--check", "--json"], 6);
    assert_eq!(
        report["candidates"][1]["vulnerabilities"][0],
        "CVE-2026-99999"
    );
    let ran = host.units(who, &["upgrade", "--check"]);
    assert!(
        ran.stdout.contains(
            "CVE-2026-99999       critical   1.108.15  Something that the table does not hav…\n"
        ),
        "{}",
        ran.stdout
    );
    host.write(Who::Root, &file, "{}");
    let problem = format!("{file}: not an advisory in OSV's format");
    let ran = host.units(who, &["upgrade", "--check"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (78, ""));
    assert!(ran.stderr.starts_with(&format!("error: {problem}\n")));
    assert_eq!(
        doctor(host, who, "vulnerabilities"),
        ("failure".into(), problem)
    );
    // It keeps no gateway from starting, and no edit from being applied.
    host.set_env(who, &[("OPENAI_API_KEY", "sk-edited-again")]);
    let apply = host.units(who, &["apply"]);
    assert_eq!(apply.code, 0, "{}", apply.stderr);
    let warning = "warning: known vulnerabilities are not checked:\n";
    assert!(apply.stderr.starts_with(warning), "{}", apply.stderr);
    host.systemctl(who, &["restart", "litellm.service"]);
    host.sh(Who::Root, "rm -r /etc/litellm-units/advisories");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_advisories() {
    let host = TestHost::boot("advisories-rootful");
    let who = Who::Root;
    host.without_standby(who);
    tags(
        &host,
        &[
            "v1.80.15-stable",
            "main-v1.80.15-stable",
            "v1.80.16-nightly",
            "v1.81.16-stable",
            "v1.82.8-stable",
            "v1.108.14",
            "v1.110.2",
            "v1.111.0-dev.3",
            "lts",
        ],
    );
    a_new_deployment(&host, who);
    what_runs_goes_on(&host, who);
    another_exploited_release(&host, who);
    newer_releases(&host, who);
    the_timer_tells(&host, who);
    advisories_of_the_host(&host, who);
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_advisories() {
    let host = TestHost::boot_for(Who::Operator, "advisories-rootless");
    let who = Who::Operator;
    host.without_standby(who);
    tags(&host, &["v1.80.15-stable", "v1.108.14", "v1.110.2"]);
    a_new_deployment(&host, who);
    what_runs_goes_on(&host, who);
    newer_releases(&host, who);
    the_timer_tells(&host, who);
    advisories_of_the_host(&host, who);
}

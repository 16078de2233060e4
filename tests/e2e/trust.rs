//! What a pull takes and what it refuses: signatures, moved tags, releases that must not run.

use std::path::Path;

use crate::support::host::{EXPLOITED, TestHost, Who};

const LITELLM: &str = "ghcr.io/berriai/litellm";
const OLD: &str = "ghcr.io/berriai/litellm:v1.82.0";

/// Runs a script with `tests/e2e/sign.sh`, as root.
fn registry(host: &TestHost, script: &str) -> String {
    host.sh(Who::Root, &format!("cd /root; . /root/sign.sh\n{script}"))
}

/// Names the gateway's image, whatever attackers exploit of that release.
fn name(host: &TestHost, who: Who, image: &str) {
    host.set_env(
        who,
        &[
            ("LITELLM_IMAGE", image),
            ("LITELLM_ACCEPT_VULNERABILITIES", EXPLOITED),
        ],
    );
}

/// What `litellm-units pull` says itself, without Podman's lines.
fn pull(host: &TestHost, who: Who, options: &[&str]) -> (i32, String) {
    let ran = host.units(who, &[&["pull"], options].concat());
    let own = ran.stderr.lines().filter(|line| {
        ["error: ", "hint: ", "not taken", "  ghcr.io"]
            .iter()
            .any(|start| line.starts_with(start))
            || line.contains("only the recorded digest")
    });
    (ran.code, own.collect::<Vec<_>>().join("\n"))
}

fn recorded(host: &TestHost, who: Who, image: &str) -> String {
    host.sh(
        who,
        &format!("jq -r '.images.\"{image}\" | .digest, (.recorded // \"1970-01-01T00:00:00Z\" | fromdateiso8601 > 1700000000)' \"$1/images.lock\""),
    )
}

fn doctor(host: &TestHost, who: Who, check: &str) -> String {
    host.sh(
        who,
        // The line of the check, and what mends it: that line begins with no outcome.
        &format!(
            "litellm-units doctor | awk '/ {check}: / {{ print; on = 1; next }} on && /^ / {{ print }} {{ on = 0 }}' || true"
        ),
    )
}

/// Before anything is trusted: the lock, moved and floating tags.
fn tags_mean_what_they_meant(host: &TestHost) {
    let who = Who::Root;
    let first = registry(host, "release v1.83.0");
    name(host, who, &format!("{LITELLM}:v1.83.0"));
    assert_eq!(pull(host, who, &[]), (0, String::new()));
    let image = format!("{LITELLM}:v1.83.0");
    assert_eq!(recorded(host, who, &image), format!("{first}\ntrue\n"));
    let id = |host: &TestHost| {
        host.sh(
            who,
            &format!("podman image inspect --format '{{{{.Digest}}}}' {image}"),
        )
    };
    assert_eq!(id(host), format!("{first}\n"));

    let second = registry(
        host,
        "release v1.83.0-b >/dev/null; skopeo copy -q --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/berriai/litellm:v1.83.0-b docker://127.0.0.1:5000/berriai/litellm:v1.83.0; cat /tmp/digest",
    );
    assert_ne!(first, second);
    let moved = format!(
        "error: not taken, since a tag was moved upstream:\n  {image}: recorded {first}, now {second}\n\
         hint: find out why it was moved; to run the new image: litellm-units pull --accept, then litellm-units up"
    );
    for _ in 0..2 {
        assert_eq!(pull(host, who, &[]), (1, moved.clone()));
        assert_eq!(recorded(host, who, &image), format!("{first}\ntrue\n"));
        assert_eq!(id(host), format!("{first}\n"));
    }
    assert_eq!(pull(host, who, &["--accept"]), (0, String::new()));
    assert_eq!(recorded(host, who, &image), format!("{second}\ntrue\n"));
    assert_eq!(pull(host, who, &[]), (0, String::new()));

    name(host, who, &format!("{LITELLM}:main-stable"));
    let env = "/opt/litellm-server/.env, line 5";
    assert_eq!(
        pull(host, who, &[]),
        (
            78,
            format!(
                "error: {env}: LITELLM_IMAGE can't be used: \"{LITELLM}:main-stable\" has the floating tag \"main-stable\"\n\
                 hint: name a version, e.g. :v1.108.14, or add the digest (@sha256:…)"
            )
        )
    );
    registry(
        host,
        "skopeo copy -q --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/berriai/litellm:v1.83.0 docker://127.0.0.1:5000/berriai/litellm:main-stable",
    );
    name(host, who, &format!("{LITELLM}:main-stable@{second}"));
    assert_eq!(pull(host, who, &[]), (0, String::new()));
}

/// What an administrator forbids is refused by every command that would run it.
fn the_host_extends_the_list(host: &TestHost) {
    let who = Who::Root;
    let list = "/etc/litellm-units/compromised-releases";
    let env = "/opt/litellm-server/.env, line 5";
    let digest = registry(host, "release v1.83.1");
    name(host, who, &format!("{LITELLM}:v1.83.1"));
    host.sh(
        who,
        &format!("mkdir -p /etc/litellm-units; echo 'v1.83.1  found in an audit' >{list}"),
    );
    let refusal = format!(
        "error: {env}: LITELLM_IMAGE can't be used: \"{LITELLM}:v1.83.1\" is LiteLLM 1.83.1, a compromised release: found in an audit, says {list}, line 1\n\
         hint: choose another release, and rotate every credential that this one has seen\n"
    );
    for words in [
        &["pull"][..],
        &["generate"],
        &["up"],
        &["apply"],
        &["pull", "--missing"],
    ] {
        let ran = host.units(who, words);
        assert_eq!((ran.code, ran.stderr), (78, refusal.clone()), "{words:?}");
    }
    assert_eq!(
        doctor(host, who, "images"),
        format!(
            "FAILURE  images: {env}: LITELLM_IMAGE: \"{LITELLM}:v1.83.1\" is LiteLLM 1.83.1, a compromised release: found in an audit, says {list}, line 1\n         hint: choose another release, and rotate every credential that this one has seen\n"
        )
    );
    // A digest counts as soon as it is known.
    host.write(
        who,
        list,
        &format!("# by digest\n{digest} found in an audit\n"),
    );
    assert_eq!(
        pull(host, who, &[]),
        (
            78,
            format!(
                "error: \"{LITELLM}:v1.83.1\" is {digest}, a compromised image: found in an audit, says {list}, line 2; it was pulled, but will not run\n\
                 hint: choose another release, and rotate every credential that this one has seen"
            )
        )
    );
    assert_eq!(
        recorded(host, who, &format!("{LITELLM}:v1.83.1")),
        "null\nfalse\n"
    );
    host.write(who, list, "1.83.1\n");
    assert_eq!(
        pull(host, who, &[]),
        (
            78,
            format!(
                "error: {list}, line 1: \"1.83.1\" has no reason\n\
                 hint: write a release or a digest and why, as in: 1.82.7  it steals credentials"
            )
        )
    );
    host.sh(who, "rm -r /etc/litellm-units");
}

/// From an unsigned release to signed ones, with a key of the test's own.
fn signatures(host: &TestHost, who: Who, containers: &str, own: &str) {
    let key = format!("{own}/trust.pub");
    let policy = format!("{containers}/policy.json");
    name(host, who, OLD);
    assert_eq!(pull(host, who, &[]), (0, String::new()));
    let old = recorded(host, who, OLD);
    let old = old.lines().next().unwrap();
    assert_eq!(doctor(host, who, "signatures"), "");

    let first = host.units(who, &["trust", "--key", "/tmp/key.pub"]).ok();
    let state = format!(
        "{LITELLM_SCOPE}: images signed by the key in {key}\n{LITELLM}@{old}: without a signature\n"
    );
    assert!(first.ends_with(&state), "{first}");
    assert_eq!(
        host.units(who, &["trust"]).all(),
        (0, format!("{state}nothing to do\n"), String::new())
    );
    assert_eq!(
        host.units(who, &["trust", "--dry-run"]).all(),
        (0, String::new(), String::new())
    );

    // The release of before stays usable by its digest, even without a copy here.
    host.sh(who, &format!("podman rmi --force {OLD} >/dev/null"));
    let digest_alone = format!("{OLD} has no signature: only the recorded digest is taken");
    assert_eq!(pull(host, who, &[]), (0, digest_alone));
    assert_eq!(pull(host, who, &["--missing"]), (0, String::new()));
    let line = host.sh(
        who,
        &format!("grep -n '\"{LITELLM_SCOPE}\"' {policy} | cut -d: -f1"),
    );
    let place = format!("{policy}, line {}", line.trim());
    assert_eq!(
        doctor(host, who, "signatures"),
        format!(
            "ok       signatures: Podman verifies those of {LITELLM} ({place}), but takes this one by its digest\n"
        )
    );

    name(host, who, &format!("{LITELLM}:v1.84.0"));
    assert_eq!(pull(host, who, &[]), (0, String::new()));
    assert_eq!(
        doctor(host, who, "signatures"),
        format!("ok       signatures: Podman verifies those of {LITELLM} ({place})\n")
    );
    for (tag, reason, hint) in [
        (
            "v1.85.0",
            "A signature was required, but no signature exists",
            "name another release in .env; if you have verified this one otherwise: litellm-units trust --accept IMAGE@DIGEST (docs/trust.md)".to_owned(),
        ),
        (
            "v1.86.0",
            "cryptographic signature verification failed: invalid signature when validating ASN.1 encoded signature",
            "name another release in .env; if you have verified this one otherwise: litellm-units trust --accept IMAGE@DIGEST (docs/trust.md)".to_owned(),
        ),
        (
            "v1.80.11-stable",
            "A signature was required, but no signature exists",
            format!("LiteLLM signs its releases from 1.83 on; if this one has to be, name it with its digest in .env ({LITELLM}:v1.80.11-stable@sha256:…), then: litellm-units trust"),
        ),
    ] {
        name(host, who, &format!("{LITELLM}:{tag}"));
        for options in [&[][..], &["--missing"]] {
            assert_eq!(
                pull(host, who, options),
                (
                    1,
                    format!("error: {LITELLM}:{tag} is not signed by the key in {key}, as {place} demands: Podman says: Source image rejected: {reason}\nhint: {hint}")
                )
            );
        }
    }
    // One that was verified otherwise.
    let digest = host.sh(who, "cat /tmp/unsigned");
    name(host, who, &format!("{LITELLM}:v1.85.0@{digest}"));
    host.units(
        who,
        &["trust", "--accept", &format!("{LITELLM}:v1.85.0@{digest}")],
    )
    .ok();
    assert_eq!(pull(host, who, &[]), (0, String::new()));
    name(host, who, OLD);
}

const LITELLM_SCOPE: &str = "ghcr.io/berriai";

#[test]
fn what_a_pull_takes() {
    let host = TestHost::boot_with("trust", &["--empty-store"]);
    let sign = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/sign.sh");
    host.put(&sign, "/root/sign.sh");
    host.units(Who::Root, &["generate"]).ok();
    tags_mean_what_they_meant(&host);
    the_host_extends_the_list(&host);

    registry(
        &host,
        "for name in key other; do
           openssl ecparam -name prime256v1 -genkey -noout -out $name.pem
           openssl ec -in $name.pem -pubout -out /tmp/$name.pub 2>/dev/null
         done
         release v1.82.0 >/dev/null
         podman push --quiet localhost/release:v1.82.0 127.0.0.1:5000/library/never:1
         release v1.84.0 key.pem >/dev/null
         release v1.85.0 >/tmp/unsigned
         release v1.86.0 other.pem >/dev/null
         podman rmi --all --force >/dev/null",
    );
    // As an administrator has it who demands something of others.
    let theirs = "{ \"default\": [{\"type\": \"insecureAcceptAnything\"}],\n  \"transports\": {\"docker\": {\"docker.io/library/never\": [{\"type\": \"reject\"}]}} }\n";
    host.write(Who::Root, "/etc/containers/policy.json", theirs);
    let lookaside = "docker:\n  quay.io:\n    lookaside: https://signatures.example.com\n";
    host.sh(Who::Root, "mkdir -p /etc/containers/registries.d");
    host.write(
        Who::Root,
        "/etc/containers/registries.d/quay.yaml",
        lookaside,
    );

    signatures(&host, Who::Root, "/etc/containers", "/etc/litellm-units");
    let refused = host.run(
        Who::Root,
        &["podman", "pull", "-q", "docker.io/library/never:1"],
    );
    assert!(
        refused.stderr.contains("is rejected by policy"),
        "{}",
        refused.stderr
    );
    host.units(Who::Root, &["trust", "--remove"]).ok();
    assert_eq!(
        host.sh(Who::Root, "cat /etc/containers/policy.json"),
        theirs
    );
    assert_eq!(
        host.sh(
            Who::Root,
            "ls /etc/containers/registries.d; ls -d /etc/litellm-units 2>/dev/null || true"
        ),
        "quay.yaml\n"
    );
    assert_eq!(
        host.units(Who::Root, &["trust", "--remove"]).all(),
        (0, "nothing to do\n".into(), String::new())
    );

    // A user has the administrator's policy until they get one of their own.
    let who = Who::Operator;
    let containers = "/home/operator/.config/containers";
    host.units(who, &["generate"]).ok();
    signatures(
        &host,
        who,
        containers,
        "/home/operator/.config/litellm-units",
    );
    let refused = host.run(who, &["podman", "pull", "-q", "docker.io/library/never:1"]);
    assert!(
        refused.stderr.contains("is rejected by policy"),
        "{}",
        refused.stderr
    );
    assert_eq!(
        host.sh(who, &format!("cat {containers}/registries.d/quay.yaml")),
        lookaside
    );
    host.units(who, &["trust", "--remove"]).ok();
    assert_eq!(
        host.sh(who, &format!("ls -d {containers}/policy.json {containers}/registries.d ~/.config/litellm-units 2>/dev/null || true")),
        ""
    );
}

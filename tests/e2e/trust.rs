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
            || [" is signed by ", "only its recorded digest"]
                .iter()
                .any(|words| line.contains(words))
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
        // The line of the check, and what repairs it: that line begins with no outcome.
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
        "error: not accepted, since a tag names another image than the recorded one:\n  {image}: recorded {first}, now {second}\n\
         hint: find out why it was moved; to run the new image: `litellm-units pull --accept`, then `litellm-units up`"
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
        "error: {env}: LITELLM_IMAGE can't be used: \"{LITELLM}:v1.83.1\" is LiteLLM 1.83.1, a compromised release: found in an audit, according to {list}, line 1\n\
         hint: choose another release, and rotate every credential that this one could read\n"
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
            "FAILURE  images: {env}: LITELLM_IMAGE: \"{LITELLM}:v1.83.1\" is LiteLLM 1.83.1, a compromised release: found in an audit, according to {list}, line 1\n         hint: choose another release, and rotate every credential that this one could read\n"
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
                "error: \"{LITELLM}:v1.83.1\" is {digest}, a compromised image: found in an audit, according to {list}, line 2; it was pulled but will not be started\n\
                 hint: choose another release, and rotate every credential that this one could read"
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

    // The previous release stays usable by its digest, even without a copy here.
    host.sh(who, &format!("podman rmi --force {OLD} >/dev/null"));
    let digest_alone = format!("{OLD} has no signature: only its recorded digest is accepted");
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
            "ok       signatures: Podman verifies those of {LITELLM} ({place}), but accepts this one by its digest\n"
        )
    );

    name(host, who, &format!("{LITELLM}:v1.84.0"));
    // Where Podman verifies it itself, nothing is pinned.
    let before = host.sh(who, &format!("cat {policy}"));
    let (code, words) = pull(host, who, &[]);
    let signed = format!("{LITELLM}:v1.84.0 is signed by the key in {key} (sha256:");
    assert!(code == 0 && words.starts_with(&signed), "{code} {words}");
    assert_eq!(host.sh(who, &format!("cat {policy}")), before);
    assert_eq!(
        doctor(host, who, "signatures"),
        format!("ok       signatures: Podman verifies those of {LITELLM} ({place})\n")
    );
    for (tag, reason, hint) in [
        (
            "v1.85.0",
            "it has no signature".to_owned(),
            "name another release in .env; to accept this one after your own verification: `litellm-units trust --accept IMAGE@DIGEST` (docs/trust.md)".to_owned(),
        ),
        (
            "v1.86.0",
            format!("it is signed, but not by the key in {key}"),
            "name another release in .env; to accept this one after your own verification: `litellm-units trust --accept IMAGE@DIGEST` (docs/trust.md)".to_owned(),
        ),
        (
            "v1.80.11-stable",
            "it has no signature".to_owned(),
            format!("LiteLLM signs its releases from 1.83 on; to use this one, name it with its digest in .env ({LITELLM}:v1.80.11-stable@sha256:…), then run `litellm-units trust`"),
        ),
    ] {
        name(host, who, &format!("{LITELLM}:{tag}"));
        for options in [&[][..], &["--missing"]] {
            assert_eq!(
                pull(host, who, options),
                (
                    1,
                    format!("error: {LITELLM}:{tag} is not signed by the key in {key}, as {place} demands: {reason}\nhint: {hint}")
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
         skopeo copy -q --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/berriai/litellm:v1.82.0 docker://127.0.0.1:5000/library/never:1
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

/// Makes an index as the release `tag` and signs it; returns its digest.
#[cfg(feature = "signatures")]
fn signed_index(
    host: &TestHost,
    tag: &str,
    simple: impl Fn(&str) -> Option<crate::support::sigstore::Simple>,
) -> String {
    let digest = registry(host, &format!("index {tag}"));
    if let Some(signature) = simple(&digest) {
        let payload = String::from_utf8(signature.payload).unwrap();
        let annotations = serde_json::to_string(&signature.annotations).unwrap();
        host.write(Who::Root, "/root/payload", &payload);
        host.write(Who::Root, "/root/annotations", &annotations);
        registry(host, &format!("attach berriai/litellm {digest}"));
    }
    digest
}

/// Indexes that are signed without a key, and others that only look so.
#[cfg(feature = "signatures")]
fn keyless(host: &TestHost, who: Who, containers: &str, own: &str, releases: &[Release]) {
    let policy = format!("{containers}/policy.json");
    let files = || host.sh(who, &format!("cat {policy} {own}/trust.json"));
    let workflow = litellm_units::operations::trust::known::IDENTITY.subject;
    name(host, who, &format!("{LITELLM}:v1.108.14"));
    let state = format!(
        "{LITELLM_SCOPE}: images signed by the key in {own}/trust.pub, which is LiteLLM's\n\
         {LITELLM_SCOPE}: images signed without a key by {workflow}\n"
    );
    let first = host.units(who, &["trust"]).ok();
    assert!(first.ends_with(&state), "{first}");
    let mut lines = state;
    for release in releases {
        let Release {
            tag,
            digest,
            problem,
        } = release;
        let image = format!("{LITELLM}:{tag}");
        name(host, who, &image);
        let before = files();
        let Some(problem) = problem else {
            let signed = format!("{image} is signed by {workflow} ({digest})");
            // Without a copy here, and again with it.
            assert_eq!(
                pull(host, who, &["--missing"]),
                (0, signed.clone()),
                "{tag}"
            );
            assert_ne!(files(), before);
            let pinned = files();
            assert_eq!(pull(host, who, &[]), (0, signed), "{tag}");
            assert_eq!(files(), pinned);
            assert_eq!(recorded(host, who, &image), format!("{digest}\ntrue\n"));
            host.sh(
                who,
                &format!("podman image exists {image}; podman image exists {LITELLM}@{digest}"),
            );
            lines += &format!("{LITELLM}@{digest}: signed by {workflow}\n");
            let line = host.sh(
                who,
                &format!("grep -n '\"{LITELLM_SCOPE}\"' {policy} | cut -d: -f1"),
            );
            assert_eq!(
                doctor(host, who, "signatures"),
                format!(
                    "ok       signatures: the digest of {image} was verified (signed by {workflow}), and Podman accepts no other ({policy}, line {})\n",
                    line.trim()
                )
            );
            // Gone and offline, as far as signatures go: the pin is enough.
            host.sh(who, &format!("podman rmi --force {image} >/dev/null"));
            assert_eq!(pull(host, who, &["--missing"]), (0, String::new()), "{tag}");
            continue;
        };
        let (code, words) = pull(host, who, &[]);
        assert_eq!(code, 1, "{tag}: {words}");
        assert!(
            words.starts_with(&format!(
                "error: {image} is not signed by LiteLLM, as {policy}, line "
            )),
            "{words}"
        );
        assert!(
            words.contains(&format!(" demands: {problem}\nhint: ")),
            "{words}"
        );
        assert_eq!(files(), before, "{tag}");
        host.sh(who, &format!("! podman image exists {image}"));
    }
    let mut now: Vec<_> = lines.lines().map(str::to_owned).collect();
    now[2..].sort();
    let said = host.units(who, &["trust"]).ok();
    assert_eq!(said, now.join("\n") + "\nnothing to do\n");
}

/// A release in the host's registry: its digest, and why it is refused.
#[cfg(feature = "signatures")]
struct Release {
    tag: &'static str,
    digest: String,
    problem: Option<String>,
}

#[cfg(feature = "signatures")]
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn what_podman_cannot_verify() {
    use crate::support::sigstore::{NOON, Signing, Sigstore};

    let host = TestHost::boot_with("keyless", &["--empty-store"]);
    let sign = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/sign.sh");
    host.put(&sign, "/root/sign.sh");
    let sigstore = Sigstore::new();
    let signing = Signing::default();
    let stranger = "https://github.com/mallory/x/.github/workflows/release.yml@refs/heads/main";
    let mut releases = Vec::new();
    let mut release = |tag, problem: Option<&str>, sign: &dyn Fn(&str) -> Option<_>| {
        releases.push(Release {
            tag,
            digest: signed_index(&host, tag, sign),
            problem: problem.map(str::to_owned),
        });
    };
    release("v1.108.14", None, &|digest| {
        Some(sigstore.simple(digest, signing))
    });
    release("v1.110.2", None, &|_| None);
    release("v1.93.0", Some("it has no signature"), &|_| None);
    release(
        "v1.108.15",
        Some(&format!(
            "identity mismatch: expected URI {}, got {stranger}",
            signing.subject
        )),
        &|digest| {
            Some(sigstore.simple(
                digest,
                Signing {
                    subject: stranger,
                    ..signing
                },
            ))
        },
    );
    release(
        "v1.108.16",
        Some(&format!(
            "issuer mismatch: expected {}, got https://accounts.example.com",
            signing.issuer
        )),
        &|digest| {
            Some(sigstore.simple(
                digest,
                Signing {
                    issuer: "https://accounts.example.com",
                    ..signing
                },
            ))
        },
    );
    release(
        "v1.108.17",
        Some(
            "certificate chain is invalid: certificate chain validation failed: CertExpired { time: UnixTime(1735819200), not_after: UnixTime(1735776000) }",
        ),
        &|digest| {
            Some(sigstore.simple(
                digest,
                Signing {
                    time: NOON + 86_400,
                    ..signing
                },
            ))
        },
    );
    release(
        "v1.108.18",
        Some(
            "invalid signature: signature verification failed: Verification error: ECDSA_P256_SHA256: signature error",
        ),
        &|digest| {
            let mut simple = sigstore.simple(digest, signing);
            simple.payload.push(b' ');
            Some(simple)
        },
    );
    release(
        "v1.108.19",
        Some("the entry in the transparency log is missing"),
        &|digest| {
            let mut simple = sigstore.simple(digest, signing);
            simple.annotations.remove("dev.sigstore.cosign/bundle");
            Some(simple)
        },
    );
    let digest = &releases[1].digest;
    let bundle = sigstore.bundle(digest, "https://sigstore.dev/cosign/sign/v1", signing);
    host.write(Who::Root, "/root/bundle", &bundle.to_string());
    registry(
        &host,
        &format!("refer berriai/litellm {digest}; podman rmi --all --force >/dev/null"),
    );
    host.sh(
        Who::Root,
        "mkdir /etc/litellm-units; chmod 755 /etc/litellm-units",
    );
    host.write(
        Who::Root,
        "/etc/litellm-units/trusted_root.json",
        &sigstore.trusted_root(),
    );
    host.sh(Who::Root, "chmod 644 /etc/litellm-units/trusted_root.json");

    let before = host.sh(Who::Root, "cat /etc/containers/policy.json");
    host.units(Who::Root, &["generate"]).ok();
    keyless(
        &host,
        Who::Root,
        "/etc/containers",
        "/etc/litellm-units",
        &releases,
    );

    // Without that file, Sigstore's own authorities count, and none of this holds.
    host.sh(Who::Root, "mv /etc/litellm-units/trusted_root.json /tmp/");
    name(&host, Who::Root, &format!("{LITELLM}:v1.108.14"));
    let (code, words) = pull(&host, Who::Root, &[]);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.contains(" demands: invalid inclusion promise: No log key valid "),
        "{words}"
    );
    host.sh(Who::Root, "mv /tmp/trusted_root.json /etc/litellm-units/");

    // The tag is moved to another image that is signed, too: known, and not taken.
    let old = &releases[0].digest;
    let moved = signed_index(&host, "v1.108.13", |digest| {
        Some(sigstore.simple(digest, signing))
    });
    registry(
        &host,
        "skopeo copy -q --all --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/berriai/litellm:v1.108.13 docker://127.0.0.1:5000/berriai/litellm:v1.108.14",
    );
    let (code, words) = pull(&host, Who::Root, &[]);
    assert_eq!(code, 1, "{words}");
    assert!(
        words.contains(&format!("recorded {old}, now {moved}")),
        "{words}"
    );
    assert_eq!(pull(&host, Who::Root, &["--accept"]).0, 0);
    let image = format!("{LITELLM}:v1.108.14");
    assert_eq!(
        recorded(&host, Who::Root, &image),
        format!("{moved}\ntrue\n")
    );

    // A record from before digests of indexes were recorded: the image of this platform.
    let lock = "/opt/litellm-server/images.lock";
    let platform = registry(
        &host,
        "curl -sf -H 'Accept: application/vnd.oci.image.index.v1+json' http://127.0.0.1:5000/v2/berriai/litellm/manifests/v1.108.14 | jq -rj '.manifests[0].digest'",
    );
    host.sh(
        Who::Root,
        &format!("sed -i s/{moved}/{platform}/ {lock}; podman rmi --all --force >/dev/null"),
    );
    let (code, words) = pull(&host, Who::Root, &["--missing"]);
    assert!(
        code == 0 && words.ends_with(&format!("({platform})")),
        "{words}"
    );

    host.units(Who::Root, &["trust", "--remove"]).ok();
    assert_eq!(
        host.sh(Who::Root, "cat /etc/containers/policy.json"),
        before
    );

    // Keys: of an index by either, and of one platform's image, which Podman verifies itself.
    registry(
        &host,
        "for name in key second; do
           openssl ecparam -name prime256v1 -genkey -noout -out $name.pem
           openssl ec -in $name.pem -pubout -out /tmp/$name.pub 2>/dev/null
         done
         sign berriai/litellm \"$(index v1.90.0)\" ghcr.io/berriai/litellm key.pem
         sign berriai/litellm \"$(index v1.90.1)\" ghcr.io/berriai/litellm second.pem
         release v1.90.2 second.pem >/dev/null
         podman rmi --all --force >/dev/null",
    );
    let who = Who::Root;
    name(&host, who, &format!("{LITELLM}:v1.90.0"));
    host.units(
        who,
        &["trust", "--key", "/tmp/key.pub", "--key", "/tmp/second.pub"],
    )
    .ok();
    let pins = || {
        host.sh(
            who,
            "grep -c '@sha256:' /etc/containers/policy.json || true",
        )
    };
    for (tag, key, count) in [
        ("v1.90.0", "trust.pub", "1\n"),
        ("v1.90.1", "trust-2.pub", "2\n"),
        ("v1.90.2", "trust-2.pub", "2\n"),
    ] {
        let image = format!("{LITELLM}:{tag}");
        name(&host, who, &image);
        let (code, words) = pull(&host, who, &[]);
        let by = format!("{image} is signed by the key in /etc/litellm-units/{key} (sha256:");
        assert!(code == 0 && words.starts_with(&by), "{code} {words}");
        // Podman 4.9 takes one key.
        let old = host.sh(who, "podman --version").contains(" 4.");
        let count = if old && tag == "v1.90.2" {
            "3\n"
        } else {
            count
        };
        assert_eq!(pins(), count, "{tag}");
    }
    host.units(who, &["trust", "--remove"]).ok();
    assert_eq!(host.sh(who, "cat /etc/containers/policy.json"), before);

    // A user goes by what the administrator trusts of Sigstore.
    let operator = Who::Operator;
    registry(
        &host,
        "skopeo copy -q --all --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/berriai/litellm:v1.110.2 docker://127.0.0.1:5000/berriai/litellm:v1.110.3",
    );
    host.units(operator, &["generate"]).ok();
    let two = [
        Release {
            tag: "v1.110.3",
            digest: releases[1].digest.clone(),
            problem: None,
        },
        Release {
            tag: "v1.108.15",
            digest: String::new(),
            problem: releases[3].problem.clone(),
        },
    ];
    keyless(
        &host,
        operator,
        "/home/operator/.config/containers",
        "/home/operator/.config/litellm-units",
        &two,
    );
    host.units(operator, &["trust", "--remove"]).ok();
    assert_eq!(
        host.sh(
            operator,
            "ls -d ~/.config/containers/policy.json ~/.config/litellm-units 2>/dev/null || true"
        ),
        ""
    );
}

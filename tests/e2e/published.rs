//! `tests/published`, with the stand-ins under the names of the published images.

use std::path::Path;

use crate::support::host::{TestHost, Who};

/// Where the files are that the script needs of a checkout.
const CHECKOUT: &str = "/root/checkout";

const STEPS: &str =
    "up upgrade newest rollback pin trust facts user-up user-upgrade user-rollback arguments";

/// Signs the later two releases as LiteLLM does, with a key of the test; the oldest one has no signature.
const SIGN: &str = r#"
    . /root/sign.sh
    openssl ecparam -name prime256v1 -genkey -noout -out /root/release.key
    openssl ec -in /root/release.key -pubout -out /root/release.pub
    for tag in v1.108.14 v1.110.2; do
        url=http://127.0.0.1:5000/v2/berriai/litellm/manifests/$tag
        curl -sSf -D /tmp/head -o /tmp/index -H 'Accept: application/vnd.oci.image.index.v1+json' "$url"
        for digest in $(tr -d '\r' </tmp/head | sed -n 's/^docker-content-digest: //Ip') \
            $(jq -r '.manifests[] | select(.platform.os == "linux").digest' /tmp/index); do
            sign berriai/litellm "$digest" ghcr.io/berriai/litellm /root/release.key
        done
    done
    # A tag of the span that was signed with LiteLLM's second key.
    curl -sSf -X PUT -H 'Content-Type: application/vnd.oci.image.index.v1+json' --data-binary @/tmp/index \
        http://127.0.0.1:5000/v2/berriai/litellm/manifests/v1.105.2
"#;

/// What is not there before, and must not be there afterwards.
const TRACES: &str = r"
    podman image ls --all --quiet
    podman ps --all --quiet
    ls -d /opt/litellm-server /usr/local/bin/litellm-units /home/litellm-published 2>/dev/null || true
    find /etc/containers/systemd /etc/systemd/system /etc/litellm-units -name '*litellm*' 2>/dev/null || true
    grep litellm-published /etc/passwd || true
    cat /etc/containers/policy.json
";

fn put(host: &TestHost, path: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    host.put(&source, &format!("{CHECKOUT}/{path}"));
}

#[test]
#[ignore = "takes 10 minutes: part of each release (CONTRIBUTING.md)"]
fn stand_ins() {
    let who = Who::Root;
    let host = TestHost::boot_with("published", &["--empty-store"]);
    let directories = "tests/host/images/facts benches src/litellm/advisories";
    host.sh(
        who,
        &format!(
            "mv /usr/bin/litellm-units /root/; mkdir -p {CHECKOUT}; cd {CHECKOUT}; mkdir -p {directories}"
        ),
    );
    for path in [
        "tests/published",
        "tests/host/facts",
        "tests/host/shared.sh",
        "tests/host/images/facts",
        "benches/load",
        "src/litellm/advisories/known.json",
    ] {
        put(&host, path);
    }
    let sign = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/sign.sh");
    host.put(&sign, "/root/sign.sh");
    host.sh(who, SIGN);
    let before = host.sh(who, TRACES);
    let script = format!("{CHECKOUT}/tests/published");
    let published = |words: &[&str]| {
        // The stand-ins are smaller.
        let space = "LITELLM_UNITS_PUBLISHED_SPACE=4";
        let script = ["env", space, &script, "--binary", "/root/litellm-units"];
        host.run(who, &[&script, words].concat())
    };

    // It asks, and where something would be lost it does not even ask.
    let ran = published(&[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("no terminal to ask on"), "{ran:?}");
    host.sh(
        who,
        "mkdir /opt/litellm-server; touch /opt/litellm-server/.env",
    );
    let refused = published(&["--yes"]);
    assert_eq!(
        refused.all(),
        (
            1,
            "published: this is no machine for it:\n  /opt/litellm-server exists\n".into(),
            String::new()
        )
    );
    host.sh(
        who,
        "rm /opt/litellm-server/.env; rmdir /opt/litellm-server",
    );
    assert_eq!(host.sh(who, TRACES), before);

    // A difference is shown, and is no failure.
    let facts = format!("{CHECKOUT}/tests/host/images/facts/redis_7.4.6");
    host.sh(who, &format!("sed -i 's/^Redis: .*/Redis: 7.4/' {facts}"));
    let ran = published(&["--yes", "--only", "facts"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for line in ["\n-Redis: 7.4\n", "\n+Redis: 8.0\n"] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
    put(&host, "tests/host/images/facts");
    assert_eq!(host.sh(who, TRACES), before);

    let ran = published(&["--yes", "--key", "/root/release.pub"]);
    eprintln!("{}", ran.stdout);
    let log = host.sh(who, &format!("cat {CHECKOUT}/target/published/log"));
    assert_eq!(ran.code, 0, "{log}");
    let steps = ran.stdout.lines().filter(|line| line.starts_with("PASS"));
    let steps: Vec<&str> = steps
        .map(|line| line.split_whitespace().nth(1).unwrap())
        .collect();
    assert_eq!(steps.join(" "), STEPS);
    for line in [
        "signed: v1.108.14 v1.110.2 v1.105.2; taken by the recorded digest, without a signature: v1.80.11-stable\n",
        "==> Nothing differs from the stand-ins of the tests\n",
        "==> 11 of 11 steps passed; the whole output: ",
    ] {
        assert!(ran.stdout.contains(line), "{}", ran.stdout);
    }
    assert_eq!(host.sh(who, TRACES), before);

    // A fact that the program relies on is a failure.
    host.sh(
        who,
        r"
        podman run --name changed --network none --entrypoint rm docker.io/library/redis:7.4.6 /usr/bin/redis-cli
        podman commit -q changed localhost/redis >/dev/null
        podman rm changed >/dev/null
        podman push localhost/redis 127.0.0.1:5000/library/redis:7.4.6
        podman image rm --force localhost/redis docker.io/library/redis:7.4.6
        ",
    );
    let ran = published(&["--yes", "--only", "facts"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let lacks = "docker.io/library/redis:7.4.6 lacks \"program redis-cli: yes\"";
    assert!(ran.stdout.contains(lacks), "{}", ran.stdout);
}

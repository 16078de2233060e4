//! Which release runs is decided by an upgrade or a rollback, never by an edit and a crash.

use std::time::Duration;

use super::upgrade::{history, version};
use crate::support::gateway::{HELLO, chat, new_key, process, wait_for_chat};
use crate::support::host::{Ran, TestHost, Who};
use crate::support::releases::{DEFAULT, NEWEST};

const BEFORE: &str = DEFAULT.image;
const AFTER: &str = NEWEST.image;

/// What is said while the edit is not in force.
fn notice() -> String {
    format!("LITELLM_IMAGE in .env is {AFTER}, but the installed release is {BEFORE}")
}

#[track_caller]
fn is_before(host: &TestHost, who: Who) {
    assert_eq!(version(host, who), DEFAULT.version);
}

/// The release that an edit named and no upgrade has brought does not start, whatever happens.
fn an_edit_alone_starts_nothing(host: &TestHost, who: Who, key: &str) {
    host.set_env(who, &[("LITELLM_IMAGE", AFTER)]);
    let said = format!("warning: {}\nnext: `litellm-units upgrade`\n", notice());
    assert_eq!(
        host.units(who, &["generate"]).all(),
        (
            0,
            format!(
                "prepare {}/images.lock: record the images' digests\n",
                who.deployment()
            ),
            said
        )
    );
    let check = format!("warning  release: {}\n", notice());
    for words in [&["doctor"][..], &["doctor", "--fix"]] {
        let Ran { stdout, .. } = host.units(who, words);
        assert!(stdout.contains(&check), "{stdout}");
    }
    assert_eq!(
        host.units(who, &["status"]).stderr,
        format!(
            "warning: {}; to change to it: `litellm-units upgrade`\n",
            notice()
        )
    );
    let patience = Duration::from_secs(120);
    let systemctl = who.systemctl();
    host.sh(who, &format!("{systemctl} restart litellm.service"));
    wait_for_chat(host, who, key, patience);
    is_before(host, who);
    let gateway = process(host, who, "litellm");
    host.sh(Who::Root, &format!("kill -KILL {gateway}"));
    wait_for_chat(host, who, key, patience);
    is_before(host, who);
    host.crash();
    wait_for_chat(host, who, key, patience);
    is_before(host, who);

    // A rotation in between is no upgrade either, and the rollback keeps the new secret.
    let ran = host.units(who, &["secrets", "rotate", "redis"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    is_before(host, who);
    let failing = "FAILPOINTS=upgrade-not-ready=return litellm-units apply";
    let ran = host.bash(who, failing);
    assert_eq!(ran.code, 1, "{ran:?}");
    is_before(host, who);
    assert_eq!(host.units(who, &["doctor"]).code, 7);
    assert!(chat(host, who, key).is_ok());
    assert_eq!(history(host, who).len(), 2);
}

/// The digests by which the registry has an image: of the index, and of this platform's manifest.
fn digests(host: &TestHost, image: &str) -> (String, String) {
    let script = r#"
        image=docker://127.0.0.1:5000/${1#*/}
        skopeo inspect --raw --tls-verify=false "$image" >/tmp/index
        echo "sha256:$(sha256sum </tmp/index | cut -d' ' -f1)"
        jq -r '.manifests[] | select(.platform.architecture == "amd64").digest' /tmp/index
    "#;
    let said = host.bash_with(Who::Root, script, &[image]).ok();
    let (index, manifest) = said.trim_end().split_once('\n').unwrap();
    (index.to_owned(), manifest.to_owned())
}

/// A pin of the running release by either of its digests is no other release.
fn a_pin_is_no_upgrade(host: &TestHost, who: Who) {
    let before = history(host, who);
    let (index, manifest) = digests(host, BEFORE);
    let recorded = host.sh(
        who,
        &format!("jq -r '.images.\"{BEFORE}\".digest' \"$1/images.lock\""),
    );
    assert_eq!(recorded.trim_end(), index);
    for digest in [manifest, index] {
        let pinned = format!("{BEFORE}@{digest}");
        host.set_env(who, &[("LITELLM_IMAGE", &pinned)]);
        let ran = host.units(who, &["apply"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(!ran.stdout.contains("upgrade"), "{}", ran.stdout);
        let image = host.sh(
            who,
            "litellm-units status --json | jq -r '.services[] | select(.service == \"litellm\") | .image + \"@\" + .digest'",
        );
        assert_eq!(image.trim_end(), pinned);
    }
    assert_eq!(history(host, who), before);
}

/// A server of another tag comes with its digest.
fn a_server_of_another_tag(host: &TestHost, who: Who) {
    host.sh(
        Who::Root,
        "skopeo copy -q --all --src-tls-verify=false --dest-tls-verify=false docker://127.0.0.1:5000/library/redis:7.4.6 docker://127.0.0.1:5000/library/redis:7.4.7",
    );
    host.set_env(who, &[("REDIS_IMAGE", "docker.io/library/redis:7.4.7")]);
    let ran = host.units(who, &["apply"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (0, String::new(), String::new())
    );
    let ran = host.units(who, &["doctor"]);
    assert_eq!(ran.code, 7, "{ran:?}");
}

/// The package is upgraded while an operation runs: the units start the new program.
fn the_program_is_replaced_meanwhile(host: &TestHost, who: Who, key: &str) {
    let words = format!(
        "FAILPOINTS='upgrade-backed-up=sleep(4000)' litellm-units upgrade --image {AFTER} --settle 0 >/tmp/told 2>&1 &
         until grep -q 'is complete' /tmp/told; do sleep 0.1; done
         cp /usr/bin/litellm-units /usr/bin/unpacked
         mv /usr/bin/unpacked /usr/bin/litellm-units
         wait $!"
    );
    let ran = host.bash(who, &words);
    assert_eq!(ran.code, 0, "{}", host.sh(who, "cat /tmp/told"));
    let units = format!("grep -rl deleted {} {} || :", who.quadlets(), who.units());
    assert_eq!(host.sh(who, &units), "");
    host.sh(who, &format!("{} restart litellm.target", who.systemctl()));
    wait_for_chat(host, who, key, Duration::from_secs(120));
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_releases() {
    let who = Who::Root;
    let host = TestHost::boot("releases-rootful");
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    a_server_of_another_tag(&host, who);
    a_pin_is_no_upgrade(&host, who);
    host.set_env(who, &[("LITELLM_IMAGE", BEFORE)]);
    host.units(who, &["apply"]).ok();
    an_edit_alone_starts_nothing(&host, who, &key);
    host.set_env(who, &[("LITELLM_IMAGE", BEFORE)]);
    the_program_is_replaced_meanwhile(&host, who, &key);
}

/// An image that an operator builds is recorded and rolled back as a release is, although no registry has it.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn an_image_that_is_built_here() {
    let who = Who::Root;
    let host = TestHost::boot("own-image");
    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    let (first, second) = (
        "localhost/litellm:1.108.14-1",
        "localhost/litellm:1.108.14-2",
    );
    let build = |tag: &str, text: &str| {
        let script = r#"
            cd "$(mktemp -d)"
            printf %s "$3" >built
            printf '%s\n' "FROM $2" 'COPY built /app/built' >Containerfile
            podman build -q --pull=never -t "$1" .
        "#;
        host.bash_with(who, script, &[tag, BEFORE, text]).ok();
    };
    let serves = |text: &str| {
        assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
        let found = host.sh(who, "podman exec litellm cat /app/built");
        assert_eq!(found, text);
        // It answers a moment before systemd knows.
        host.sh(
            who,
            "timeout 60 bash -c 'until systemctl is-active -q litellm; do sleep 0.1; done'",
        );
        let ran = host.units(who, &["doctor"]);
        assert_eq!(ran.code, 0, "{}", ran.stdout);
    };
    let upgrade = |image: &str| host.units(who, &["upgrade", "--image", image, "--settle", "0"]);

    let missing = upgrade(first);
    assert_eq!(missing.code, 1);
    let error = format!(
        "nothing was changed: {first} is not in local storage, and no registry has an image of localhost\n\
         hint: build it: `podman build -t {first} DIR` (docs/upgrade.md), or name another image "
    );
    assert!(missing.stderr.contains(&error), "{}", missing.stderr);
    build(first, "one");
    let one = host.sh(
        who,
        &format!("podman image inspect --format '{{{{.Id}}}}' {first}"),
    );
    upgrade(first).ok();
    serves("one");

    // Under the recorded tag: no crash and no reboot changes to it.
    build(first, "changed");
    let gateway = process(&host, who, "litellm");
    host.sh(who, &format!("kill -KILL {gateway}"));
    wait_for_chat(&host, who, &key, Duration::from_secs(120));
    serves("one");
    let pull = host.units(who, &["pull"]);
    let error = format!(
        "error: not accepted, since a tag names another image than the recorded one:\n  {first}: recorded sha256:"
    );
    assert!(pull.code == 1 && pull.stderr.contains(&error), "{pull:?}");
    host.crash();
    wait_for_chat(&host, who, &key, Duration::from_secs(120));
    serves("one");

    build(second, "two");
    upgrade(second).ok();
    serves("two");
    host.units(who, &["rollback", "--keep-data", "--settle", "0"])
        .ok();
    serves("one");
    host.units(who, &["pull", "--accept"]).ok();
    host.units(who, &["up"]).ok();
    serves("changed");

    // A rollback that fails before the switch leaves the tag as it was.
    let lock = || host.sh(who, "cat /opt/litellm-server/images.lock");
    let before = lock();
    host.sh(who, &format!("podman image rm {one}"));
    let ran = host.units(who, &["rollback", "--keep-data", "--settle", "0"]);
    assert!(ran.stderr.contains("nothing was changed"), "{ran:?}");
    assert_eq!(lock(), before);
    host.units(who, &["up"]).ok();
    serves("changed");

    // Its user is not root: on the disk, what it writes belongs to root.
    let third = "localhost/litellm:1.108.14-3";
    let script = r#"
        cd "$(mktemp -d)"
        printf '%s\n' "FROM $2" 'USER nobody' >Containerfile
        podman build -q --pull=never -t "$1" .
    "#;
    host.bash_with(who, script, &[third, BEFORE]).ok();
    upgrade(third).ok();
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    host.sh(who, "podman exec litellm touch /app/logs/x");
    let owner = host.sh(who, "stat -c %u:%g /opt/litellm-server/logs/x");
    assert_eq!(owner, "0:0\n");
}

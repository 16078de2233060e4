//! The packages: made twice, installed, upgraded below a running gateway, removed and purged.

use std::path::Path;
use std::time::Duration;

use crate::support::docs::follow;
use crate::support::gateway::{new_key, process, wait_for_chat};
use crate::support::host::{TestHost, Who};
use crate::support::packages::{build, run};

const PATIENCE: Duration = Duration::from_secs(60);

/// What both packages install, besides man pages of commands.
const FILES: [&str; 8] = [
    "/usr/bin/litellm-units",
    "/usr/lib/systemd/system/litellm.target",
    "/usr/lib/systemd/user/litellm.target",
    "/usr/share/bash-completion/completions/litellm-units",
    "/usr/share/doc/litellm-units/examples/Caddyfile",
    "/usr/share/doc/litellm-units/examples/nginx.conf",
    "/usr/share/man/man5/litellm.env.5.gz",
    "/usr/share/man/man7/litellm-units.7.gz",
];

/// One test, since there is one place in which packages are made.
#[test]
fn deb_and_rpm() {
    let (deb, rpm) = build();
    let before = (std::fs::read(&deb).unwrap(), std::fs::read(&rpm).unwrap());
    build();
    let after = (std::fs::read(&deb).unwrap(), std::fs::read(&rpm).unwrap());
    assert!(before.0 == after.0, "the DEB is another one each time");
    assert!(before.1 == after.1, "the RPM is another one each time");

    let deb = deb.to_str().unwrap();
    run(
        "lintian",
        &["--allow-root", "--fail-on", "error,warning", deb],
    );
    deb_metadata(deb);
    rpm_metadata(rpm.to_str().unwrap());

    let host = TestHost::boot("packages");
    host.sh(Who::Root, "rm /usr/bin/litellm-units");
    host.put(
        Path::new(deb),
        &format!("/root/{}", deb.rsplit('/').next().unwrap()),
    );
    // It begins with the installation of the package.
    follow(&host, Who::Root, "/root", "tutorial.md");
    installed(&host);
    lives_on(&host, deb);
}

fn deb_metadata(deb: &str) {
    let field = |name| run("dpkg-deb", &["--field", deb, name]);
    let depends = field("Depends");
    for package in [
        "aardvark-dns",
        "libc6 (>= ",
        "podman (>= 4.9)",
        "systemd (>= 254~)",
    ] {
        assert!(depends.contains(package), "{depends}");
    }
    assert_eq!(
        field("Recommends"),
        "catatonit, dbus-user-session, passt, uidmap\n"
    );
    let files = run("dpkg-deb", &["--contents", deb]);
    for file in FILES {
        assert!(files.contains(&format!(" .{file}\n")), "{file}\n{files}");
    }
    assert!(!files.contains("litellm-units-unit"), "{files}");
}

fn rpm_metadata(rpm: &str) {
    let query = |what| run("rpm", &["--query", "--package", what, rpm]);
    let files = query("--list");
    for file in FILES.into_iter().chain([
        "/usr/share/fish/vendor_completions.d/litellm-units.fish",
        "/usr/share/licenses/litellm-units/LICENSE-MIT",
        "/usr/share/zsh/site-functions/_litellm-units",
    ]) {
        assert!(files.lines().any(|line| line == file), "{file}\n{files}");
    }
    let requires = query("--requires");
    for one in ["aardvark-dns", "podman >= 4.9", "systemd >= 254"] {
        assert!(requires.lines().any(|line| line == one), "{requires}");
    }
    assert!(requires.contains("libc.so.6"), "{requires}");
    assert_eq!(
        query("--recommends"),
        "/usr/bin/newuidmap\ncatatonit\npasst\n"
    );
    let scripts = query("--scripts");
    for verb in ["start", "stop", "restart", "enable", "disable"] {
        assert!(!scripts.contains(&format!("systemctl {verb}")), "{scripts}");
    }
    assert_eq!(scripts.matches("systemctl daemon-reload").count(), 2);

    // In a root of its own, whose files rpm then compares with what it should have installed.
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let name = run(
        "rpm",
        &["--query", "--package", "--queryformat", "%{NAME}", rpm],
    );
    run("rpm", &["--root", root, "--initdb"]);
    let unscripted = ["--root", root, "--nodeps", "--noscripts"];
    run("rpm", &[&unscripted[..], &["--install", rpm]].concat());
    run("rpm", &["--root", root, "--verify", "--nodeps", &name]);
    run("rpm", &[&unscripted[..], &["--erase", &name]].concat());
    assert!(
        !Path::new(root)
            .join("usr/bin/litellm-units")
            .try_exists()
            .unwrap()
    );
}

fn installed(host: &TestHost) {
    let root = Who::Root;
    assert_eq!(
        host.property(root, "litellm.target", "FragmentPath"),
        "/usr/lib/systemd/system/litellm.target"
    );
    host.sh(root, "test ! -e /etc/systemd/system/litellm.target");
    assert_eq!(
        host.property(Who::Operator, "litellm.target", "FragmentPath"),
        "/usr/lib/systemd/user/litellm.target"
    );
    assert_eq!(
        host.sh(root, "dpkg --verify litellm-units; bash -n /usr/share/bash-completion/completions/litellm-units"),
        ""
    );
}

/// A running gateway does not notice what happens to the package.
fn lives_on(host: &TestHost, deb: &str) {
    let root = Who::Root;
    host.units(root, &["up"]).ok();
    let key = new_key(host, root);
    let processes = || {
        ["litellm", "litellm-postgres", "litellm-redis"]
            .map(|container| process(host, root, container))
    };
    let before = processes();
    let unaffected = |what: &str| {
        assert_eq!(processes(), before, "{what}");
        wait_for_chat(host, root, &key, PATIENCE);
    };

    // The next release has another template.
    let next = tempfile::tempdir().unwrap();
    let tree = next.path().join("tree");
    let tree = tree.to_str().unwrap();
    run("dpkg-deb", &["--raw-extract", deb, tree]);
    run(
        "sed",
        &[
            "-i",
            "s/^Version: .*/Version: 99.0.0-1/",
            &format!("{tree}/DEBIAN/control"),
        ],
    );
    run(
        "sed",
        &[
            "-i",
            "s/HealthRetries=3/HealthRetries=4/",
            &format!("{tree}/usr/bin/litellm-units"),
        ],
    );
    let package = next.path().join("next.deb");
    run(
        "dpkg-deb",
        &["-Znone", "--build", tree, package.to_str().unwrap()],
    );
    host.put(&package, "/root/next.deb");
    let apt = |words: &str| {
        host.sh(
            root,
            &format!("DEBIAN_FRONTEND=noninteractive apt-get -qy {words} 2>&1"),
        )
    };

    assert_eq!(host.units(root, &["generate", "--check"]).code, 0);
    let said = apt("install /root/next.deb");
    assert!(said.contains("litellm-units generate --check"), "{said}");
    unaffected("upgraded");
    let (code, stdout, _) = host.units(root, &["generate", "--check"]).all();
    assert_eq!(code, 1);
    assert!(
        stdout.contains("# update /etc/containers/systemd/litellm.container\n"),
        "{stdout}"
    );
    host.units(root, &["generate"]).ok();
    assert_eq!(host.units(root, &["generate", "--check"]).code, 0);
    unaffected("units renewed");

    let said = apt("remove litellm-units");
    assert!(said.contains("the deployment stays"), "{said}");
    unaffected("removed");
    apt("purge litellm-units");
    unaffected("purged");
    // Nothing but what the deployment is made of.
    let left = host.sh(
        root,
        "find /etc /usr /var/lib/dpkg /var/lib/systemd -name '*litellm*'",
    );
    let of_deployment = |path: &str| {
        path.starts_with("/etc/containers/systemd/litellm")
            || path.starts_with("/etc/systemd/system/litellm-")
            || path == "/etc/systemd/system/multi-user.target.wants/litellm.target"
    };
    assert!(left.lines().all(of_deployment), "{left}");
    host.sh(
        root,
        "test -s \"$1/.env\"; test -e \"$1/data/postgres/PG_VERSION\"",
    );

    apt("install /root/next.deb");
    host.units(root, &["up"]).ok();
    wait_for_chat(host, root, &key, PATIENCE);
}

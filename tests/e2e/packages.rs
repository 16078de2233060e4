//! The packages: what is in them, what apt and dnf make of them, and that none of it touches a deployment.

use std::path::Path;

use clap::{Command, CommandFactory};
use litellm_units::cli::Cli;

use crate::support::document;
use crate::support::gateway::{HELLO, chat, new_key, stored_keys};
use crate::support::host::{TestHost, Who};
use crate::support::package::{Package, bare_host, install, run};

/// Where the two kinds of packages put what is not at the same place in both.
struct Places {
    zsh: &'static str,
    others: &'static [&'static str],
}

const DEBIAN: Places = Places {
    zsh: "/usr/share/zsh/vendor-completions/_litellm-units",
    others: &[
        "/usr/share/doc/litellm-units/changelog.Debian.gz",
        "/usr/share/doc/litellm-units/changelog.gz",
        "/usr/share/doc/litellm-units/copyright",
        "/usr/share/doc/litellm-units/third-party.gz",
        "/usr/share/lintian/overrides/litellm-units",
    ],
};

const FEDORA: Places = Places {
    zsh: "/usr/share/zsh/site-functions/_litellm-units",
    others: &[
        "/etc/litellm-units",
        "/usr/share/doc/litellm-units",
        "/usr/share/doc/litellm-units/CHANGELOG.md",
        "/usr/share/doc/litellm-units/docs",
        "/usr/share/doc/litellm-units/docs/demo",
        "/usr/share/doc/litellm-units/examples",
        "/usr/share/licenses/litellm-units",
        "/usr/share/licenses/litellm-units/LICENSE-APACHE",
        "/usr/share/licenses/litellm-units/LICENSE-MIT",
        "/usr/share/licenses/litellm-units/third-party.gz",
    ],
};

/// Every file of a package, sorted, and in an RPM also the directories. There is a manual page for each command that
/// `--help` shows.
fn files(places: &Places) -> String {
    let mut files: Vec<String> = [
        "/etc/litellm-units/README",
        "/usr/bin/litellm-units",
        "/usr/lib/systemd/system/litellm.target",
        "/usr/lib/systemd/user/litellm.target",
        "/usr/lib/sysusers.d/litellm-units.conf",
        "/usr/lib/tmpfiles.d/litellm-units.conf",
        "/usr/share/bash-completion/completions/litellm-units",
        "/usr/share/doc/litellm-units/README.md",
        "/usr/share/doc/litellm-units/docs/demo/failed-requests.svg",
        "/usr/share/doc/litellm-units/docs/demo/first-start.svg",
        "/usr/share/doc/litellm-units/docs/demo/requests-per-second.svg",
        "/usr/share/doc/litellm-units/docs/demo/up.svg",
        "/usr/share/doc/litellm-units/docs/demo/upgrade.svg",
        "/usr/share/doc/litellm-units/docs/demo/watch.svg",
        "/usr/share/doc/litellm-units/examples/Caddyfile",
        "/usr/share/doc/litellm-units/examples/grafana-dashboard.json",
        "/usr/share/doc/litellm-units/examples/grafana-dashboards.yml",
        "/usr/share/doc/litellm-units/examples/grafana-datasource.yml",
        "/usr/share/doc/litellm-units/examples/grafana.container",
        "/usr/share/doc/litellm-units/examples/haproxy.cfg",
        "/usr/share/doc/litellm-units/examples/nginx.conf",
        "/usr/share/doc/litellm-units/examples/prometheus-rules.yml",
        "/usr/share/doc/litellm-units/examples/prometheus.container",
        "/usr/share/doc/litellm-units/examples/prometheus.yml",
        "/usr/share/doc/litellm-units/examples/relay.caddy",
        "/usr/share/doc/litellm-units/examples/relay.container",
        "/usr/share/fish/vendor_completions.d/litellm-units.fish",
        "/usr/share/man/man5/litellm.env.5.gz",
        "/usr/share/man/man7/litellm-units.7.gz",
        "/usr/share/user-tmpfiles.d/litellm-units.conf",
        places.zsh,
    ]
    .iter()
    .chain(places.others)
    .map(|file| (*file).to_owned())
    .collect();
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    manuals(&program, &mut files);
    // The pages that messages name.
    let pages = document::markdowns("docs");
    files.extend(
        pages
            .iter()
            .map(|page| format!("/usr/share/doc/litellm-units/{page}")),
    );
    files.sort();
    files.join("\n") + "\n"
}

fn manuals(command: &Command, files: &mut Vec<String>) {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    files.push(format!("/usr/share/man/man1/{name}.1.gz"));
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        manuals(verb, files);
    }
}

/// The same package with a higher version and other units in its program, as a later release.
fn later(package: &Package) -> std::path::PathBuf {
    let path = package.beside("later.deb");
    let script = r#"
        root=$(mktemp -d)
        dpkg-deb --raw-extract "$1" "$root"
        sed -i 's/^Version: .*/Version: 99.0-1/' "$root/DEBIAN/control"
        grep -qa 'HealthRetries=2' "$root/usr/bin/litellm-units"
        LC_ALL=C sed -i 's/HealthRetries=2/HealthRetries=4/g' "$root/usr/bin/litellm-units"
        dpkg-deb --root-owner-group -Znone --build "$root" "$2"
        rm -r "$root"
    "#;
    let words = [package.path.to_str().unwrap(), path.to_str().unwrap()];
    run(
        "bash",
        &[&["-euo", "pipefail", "-c", script, "later"][..], &words].concat(),
    );
    path
}

/// What would be another if anything of the deployment had been stopped, started or changed.
fn deployment(host: &TestHost) -> String {
    host.sh(
        Who::Root,
        r#"systemctl show -p Id,ActiveState,InvocationID,MainPID litellm{,-postgres,-redis,-migrate,-images}.service litellm.target
           podman ps --no-trunc --format '{{.ID}} {{.Names}}' | sort
           sha256sum "$1/.env" "$1"/config/* /etc/containers/systemd/litellm*"#,
    )
}

/// What the shells make of the completion scripts.
fn shells_complete(host: &TestHost) {
    let bash = r#"
        set +u
        . /usr/share/bash-completion/bash_completion
        _comp_load litellm-units
        function=$(complete -p litellm-units | sed 's/.* -F \([^ ]*\) .*/\1/')
        COMP_WORDS=(litellm-units sta) COMP_CWORD=1
        $function litellm-units sta litellm-units
        printf '%s ' "${COMPREPLY[@]}""#;
    assert_eq!(host.sh(Who::Root, bash), "status start ");
    let zsh = "autoload -Uz compinit && compinit -D -u && autoload +X -U _litellm-units && print $_comps[litellm-units]";
    assert_eq!(
        host.run(Who::Root, &["zsh", "-fc", zsh]).ok(),
        "_litellm-units\n"
    );
    let fish = "complete -C 'litellm-units sta' | cut -f 1 | sort";
    assert_eq!(
        host.run(Who::Root, &["fish", "-c", fish]).ok(),
        "start\nstatus\n"
    );
}

/// Each page is found by its name and formatted without a warning.
fn manuals_read_well(host: &TestHost) {
    let script = r#"
        export MANWIDTH=200
        for page in /usr/share/man/man?/litellm*; do
          man --warnings --local-file "$page" 2>&1 >/dev/null
        done
        for page in '1 litellm-units' '7 litellm-units' '5 litellm.env' '1 litellm-units-key-create'; do
          man --no-justification $page | sed -n '/^NAME/ { n; s/^ *//p }'
        done"#;
    assert_eq!(
        host.sh(Who::Root, script),
        "litellm-units - Run a LiteLLM gateway, with PostgreSQL and Redis, as Podman Quadlet and systemd units\n\
         litellm-units - how a LiteLLM gateway runs as Podman Quadlet and systemd units\n\
         litellm.env - settings and secrets of a LiteLLM gateway\n\
         litellm-units-key-create - Create a business key and print it; it is shown only once\n"
    );
}

/// The account and the directories of sysusers.d and tmpfiles.d, now and after each boot.
fn account_and_directories(host: &TestHost) {
    let script = r"
        getent passwd litellm | cut -d: -f 1,5- | sed s,:/usr/sbin/,:/sbin/,
        id -Gn litellm
        stat -c '%a %U %G %n' /var/lib/litellm /run/litellm-units
        rmdir /run/litellm-units; systemd-tmpfiles --create; ls -d /run/litellm-units
        cd / && setpriv --reuid operator --regid operator --clear-groups env XDG_RUNTIME_DIR=/run/user/1000 HOME=/home/operator \
            systemd-tmpfiles --user --create
        stat -c '%a %U %n' /run/user/1000/litellm-units";
    assert_eq!(
        host.sh(Who::Root, script),
        "litellm:LiteLLM gateway:/var/lib/litellm:/sbin/nologin\n\
         litellm\n\
         700 litellm litellm /var/lib/litellm\n\
         700 root root /run/litellm-units\n\
         /run/litellm-units\n\
         700 operator /run/user/1000/litellm-units\n"
    );
}

#[test]
fn deb() {
    let package = Package::build("deb");
    let again = Package::build("deb");
    assert!(
        std::fs::read(&package.path).unwrap() == std::fs::read(&again.path).unwrap(),
        "built twice, two packages"
    );
    let path = package.path.to_str().unwrap();
    run(
        "lintian",
        &["--allow-root", "--fail-on", "error,warning", path],
    );

    let host = bare_host(Who::Root, "deb");
    let who = Who::Root;
    host.put(&package.path, "/root/");
    let install_it = "cd; apt-get install -y ./litellm-units_*.deb";
    // As on a host where nothing of it has ever been.
    host.sh(
        who,
        "apt-get purge -y podman aardvark-dns passt uidmap catatonit dbus-user-session",
    );
    host.sh(who, "mv /etc/apt/sources.list /root/; apt-get -q update");
    let refused = host.sh(who, &format!("! {{ {install_it}; }} 2>&1"));
    for line in [
        " litellm-units : Depends: aardvark-dns but it is not installable",
        "Depends: podman (>= 4.9) but it is not installable",
        "Recommends: catatonit but it is not installable",
        "Recommends: dbus-user-session but it is not installable",
        "Recommends: passt but it is not installable",
        "Recommends: uidmap but it is not installable",
    ] {
        assert!(refused.contains(line), "{line}: {refused}");
    }
    host.sh(who, "mv /root/sources.list /etc/apt/; apt-get -q update");
    host.sh(who, install_it);
    let installed = "dpkg-query -W -f '${Package} ${db:Status-Status}\\n' podman aardvark-dns passt uidmap catatonit dbus-user-session litellm-units";
    assert_eq!(
        host.sh(who, installed),
        "aardvark-dns installed\ncatatonit installed\ndbus-user-session installed\nlitellm-units installed\n\
         passt installed\npodman installed\nuidmap installed\n"
    );
    assert_eq!(
        host.sh(
            who,
            "for file in $(dpkg -L litellm-units); do if [ ! -d $file ]; then echo $file; fi; done | sort; dpkg --verify litellm-units"
        ),
        files(&DEBIAN)
    );
    // Nothing runs or is enabled by an installation.
    let units = "systemctl list-units --all --no-legend 'litellm*'; systemctl is-enabled litellm.target || :";
    assert_eq!(host.sh(who, units), "disabled\n");
    install(&host, "man-db bash-completion zsh fish");
    shells_complete(&host);
    manuals_read_well(&host);
    account_and_directories(&host);

    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    let keys = stored_keys(&host, who);
    let before = deployment(&host);
    let undisturbed = |what: &str| {
        assert_eq!(deployment(&host), before, "after {what}");
        host.sh(
            who,
            "for each in litellm{,-postgres,-redis}; do podman healthcheck run $each; done",
        );
        assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO), "after {what}");
    };

    host.put(&later(&package), "/root/later.deb");
    host.sh(who, "echo '# ours' >>/etc/litellm-units/README");
    let said = host.sh(who, "apt-get install -y /root/later.deb 2>&1");
    assert!(
        said.contains("litellm-units: the gateway keeps running with its current units; to see whether they would change: litellm-units generate --check"),
        "{said}"
    );
    undisturbed("the upgrade");
    let quadlets = who.quadlets();
    assert_eq!(
        host.units(who, &["generate", "--check"]).all(),
        (
            1,
            format!(
                "# update {quadlets}/litellm-postgres.container\n\
                 # update {quadlets}/litellm-redis.container\n\
                 # update {quadlets}/litellm-standby.container\n\
                 # update {quadlets}/litellm.container\n"
            ),
            String::new()
        )
    );
    assert_eq!(
        host.sh(who, "tail -n 1 /etc/litellm-units/README"),
        "# ours\n"
    );

    let said = host.sh(who, "apt-get remove -y litellm-units 2>&1");
    assert!(
        said.contains(
            "litellm-units: the deployment stays, and its running services continue until they are stopped;"
        ),
        "{said}"
    );
    undisturbed("the removal");
    host.sh(
        who,
        "test -e /etc/litellm-units/README; apt-get purge -y litellm-units",
    );
    undisturbed("the purge");
    assert_eq!(
        host.sh(
            who,
            "ls -d /etc/litellm-units 2>&1 || :; ls /usr/bin/litellm-units 2>&1 || :"
        ),
        "ls: cannot access '/etc/litellm-units': No such file or directory\n\
         ls: cannot access '/usr/bin/litellm-units': No such file or directory\n"
    );

    // Back again, it takes the deployment over as it is; a stopped one stays stopped.
    host.sh(who, install_it);
    assert_eq!(stored_keys(&host, who), keys);
    undisturbed("the new installation");
    assert_eq!(host.units(who, &["up"]).code, 0);
    undisturbed("up");
    host.units(who, &["down"]).ok();
    host.sh(who, "apt-get install -y /root/later.deb");
    assert_eq!(host.units(who, &["status"]).code, 3);
    host.units(who, &["up"]).ok();
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
}

/// A package that provides what Fedora's packages would: Debian's own are unknown to rpm.
fn stand_in(beside: &Path, requires: &str) {
    let provides: Vec<&str> = requires
        .lines()
        .filter(|line| !line.starts_with("rpmlib(") && !line.starts_with("config("))
        .filter(|line| !line.contains("(litellm"))
        .collect();
    let provides: String = provides
        .iter()
        .map(|line| format!("Provides: {}\n", line.replace(">=", "=")))
        .collect();
    let spec = format!(
        "Name: stand-in\nVersion: 1\nRelease: 1\nSummary: What Debian has\nLicense: MIT\nBuildArch: noarch\n\
         AutoReqProv: no\n{provides}%description\nWhat Debian has.\n%files\n"
    );
    std::fs::write(beside.join("stand-in.spec"), spec).unwrap();
    let directory = beside.to_str().unwrap();
    run(
        "rpmbuild",
        &[
            "-bb",
            "--quiet",
            "--define",
            &format!("_topdir {directory}/build"),
            "--define",
            &format!("_rpmdir {directory}"),
            &format!("{directory}/stand-in.spec"),
        ],
    );
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rpm() {
    let package = Package::build("rpm");
    let path = package.path.to_str().unwrap();
    let again = Package::build("rpm");
    assert!(
        std::fs::read(path).unwrap() == std::fs::read(&again.path).unwrap(),
        "built twice, two packages"
    );
    run("rpmlint", &["-c", "packaging/rpmlint.toml", path]);
    assert_eq!(run("rpm", &["-qpl", path]), files(&FEDORA));
    assert_eq!(run("rpm", &["-qpc", path]), "/etc/litellm-units/README\n");
    let requires = run("rpm", &["-qpR", path]);
    // Libraries depend on the compiler and what it links.
    let own: Vec<&str> = requires
        .lines()
        .filter(|line| {
            !line.contains(".so.") && !line.starts_with("rtld(") && !line.starts_with("rpmlib(")
        })
        .collect();
    assert_eq!(
        own,
        [
            "/bin/sh",
            "/bin/sh",
            "aardvark-dns",
            "config(litellm-units) = 0.1.0-1",
            "podman >= 4.9",
            "systemd >= 252",
        ]
    );
    assert!(requires.contains("libc.so.6(GLIBC_2."), "{requires}");
    assert_eq!(
        run("rpm", &["-qp", "--recommends", path]),
        "/usr/bin/newuidmap\ncatatonit\npasst\n"
    );

    let host = bare_host(Who::Root, "rpm");
    let who = Who::Root;
    install(&host, "rpm dnf");
    host.put(&package.path, "/root/");
    let refused = host.sh(who, "! rpm -i /root/litellm-units-*.rpm 2>&1");
    for line in [
        "\taardvark-dns is needed by litellm-units-0.1.0-1.x86_64\n",
        "\tpodman >= 4.9 is needed by litellm-units-0.1.0-1.x86_64\n",
        "\tsystemd >= 252 is needed by litellm-units-0.1.0-1.x86_64\n",
    ] {
        assert!(refused.contains(line), "{refused}");
    }
    stand_in(package.path.parent().unwrap(), &requires);
    host.put(
        &package.beside("noarch/stand-in-1-1.noarch.rpm"),
        "/root/stand-in.rpm",
    );
    host.sh(
        who,
        "rpm -i /root/stand-in.rpm; cd; dnf install -y ./litellm-units-*.rpm",
    );
    assert_eq!(host.sh(who, "rpm -V litellm-units"), "");
    account_and_directories(&host);

    host.units(who, &["up"]).ok();
    let key = new_key(&host, who);
    let before = deployment(&host);
    let undisturbed = |what: &str| {
        assert_eq!(deployment(&host), before, "after {what}");
        host.sh(
            who,
            "for each in litellm{,-postgres,-redis}; do podman healthcheck run $each; done",
        );
        assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO), "after {what}");
    };
    // The same once more, as an upgrade: its scripts get the same arguments.
    host.sh(who, "echo '# ours' >>/etc/litellm-units/README");
    let said = host.sh(who, "rpm -U --replacepkgs /root/litellm-units-*.rpm 2>&1");
    assert!(
        said.contains("they would change: litellm-units generate --check"),
        "{said}"
    );
    undisturbed("the upgrade");
    assert_eq!(
        host.sh(who, "tail -n 1 /etc/litellm-units/README"),
        "# ours\n"
    );
    let said = host.sh(who, "dnf remove -y litellm-units 2>&1");
    assert!(
        said.contains(
            "litellm-units: the deployment stays, and its running services continue until they are stopped;"
        ),
        "{said}"
    );
    undisturbed("the removal");
    assert_eq!(
        host.sh(
            who,
            "ls /etc/litellm-units; ls -d /usr/bin/litellm-units /usr/share/{doc,licenses}/litellm-units 2>&1 || :"
        ),
        "README.rpmsave\n\
         ls: cannot access '/usr/bin/litellm-units': No such file or directory\n\
         ls: cannot access '/usr/share/doc/litellm-units': No such file or directory\n\
         ls: cannot access '/usr/share/licenses/litellm-units': No such file or directory\n"
    );
}

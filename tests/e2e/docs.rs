//! Every command line of the documentation, as a reader would type it.

use clap::CommandFactory;
use litellm_units::cli::Cli;

use crate::support::document::{self, Line};
use crate::support::gateway::new_key;
use crate::support::host::{Ran, TestHost, Who};
use crate::support::package::{Package, bare_host, install, run};

/// What becomes of a line that can't run as it is printed.
enum Instead {
    /// This runs in the host.
    Run(&'static str),
    /// This runs on the machine that has the hosts.
    Machine(&'static str),
    /// It has to fail, with this on stderr.
    Refused(&'static str),
    /// It runs in another test, which the comment names.
    Elsewhere,
}

/// The lines that can't run as they are printed, all of them.
const INSTEAD: &[(&str, Instead)] = &[
    // README
    (
        "tests/host/demo    # build it, start a gateway, print a chat completion that went through it",
        Instead::Machine(
            "tests/host/demo --host --binary \"$PROGRAM\" | grep -q 'hello: Hello from your LiteLLM gateway.'",
        ),
    ),
    (
        "tests/run          # install what the tests need, and run them all",
        // It is what runs this test.
        Instead::Elsewhere,
    ),
    (
        "sudo dnf install ./litellm-units-*.rpm     # Fedora",
        // e2e::packages::rpm runs it, in a host with dnf.
        Instead::Elsewhere,
    ),
    (
        "cargo build --release --locked --features object-stores",
        // It takes minutes. The program under test is of the same sources, less optimised.
        Instead::Elsewhere,
    ),
    // e2e::proxies::an_entrance_of_the_stack runs these; no host can set the last one.
    ("sudo apt-get install caddy", Instead::Elsewhere),
    ("sudo systemctl disable --now caddy", Instead::Elsewhere),
    (
        "echo PUBLIC_URL=https://llm.example.com | sudo tee -a /opt/litellm-server/.env >/dev/null",
        Instead::Elsewhere,
    ),
    (
        "echo net.ipv4.ip_unprivileged_port_start=80 | sudo tee /etc/sysctl.d/50-litellm.conf",
        Instead::Elsewhere,
    ),
    ("sudo sysctl --system", Instead::Elsewhere),
    // e2e::releases builds an image, without the package registry of this one.
    (
        "printf '%s\\n' 'FROM ghcr.io/berriai/litellm:v1.108.14' 'RUN python3 -m ensurepip && python3 -m pip install presidio-analyzer==2.2.360' >Containerfile",
        Instead::Elsewhere,
    ),
    (
        "sudo podman build -t localhost/litellm:1.108.14-1 .",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units upgrade --image localhost/litellm:1.108.14-1",
        Instead::Elsewhere,
    ),
    // e2e::trust runs these, with signatures and a registry.
    (
        "sudo litellm-units trust --dry-run    # show a diff of what would change",
        Instead::Elsewhere,
    ),
    ("sudo litellm-units trust", Instead::Elsewhere),
    (
        "sudo litellm-units pull               # verify the current images",
        Instead::Elsewhere,
    ),
    (
        // Nothing outside can be reached; e2e::trust has keys of its own.
        "curl -O https://raw.githubusercontent.com/BerriAI/litellm/e82a3c646908ba0a6ee0beddc4310d7a6cac4065/cosign.pub",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units trust --key cosign.pub",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units trust --accept ghcr.io/berriai/litellm:v1.108.14@sha256:…",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units trust --scope registry.example.com/berriai",
        Instead::Elsewhere,
    ),
    (
        "pass llm/openai | sudo litellm-units secrets seal --stdin OPENAI_API_KEY",
        Instead::Run("echo correct-horse | sudo litellm-units secrets seal --stdin OPENAI_API_KEY"),
    ),
    (
        "sudo litellm-units secrets seal --file google.json",
        Instead::Run(
            "echo '{}' | sudo install -m 600 /dev/stdin /opt/litellm-server/files/google.json
             sudo litellm-units secrets seal --file google.json",
        ),
    ),
    (
        "litellm-units secrets seal --file google.json",
        Instead::Run(
            "echo '{}' | install -m 600 /dev/stdin /opt/litellm-server/files/google.json
             litellm-units secrets seal --file google.json",
        ),
    ),
    // There is no Vault. e2e::seal::values_of_other_programs runs programs.
    (
        "sudo env VAULT_ADDR=https://vault.example.com:8200 vault kv get -field=anthropic secret/llm >/dev/null",
        Instead::Elsewhere,
    ),
    // e2e::backup::rootful_recovery_to_any_second runs these.
    (
        "sudo litellm-units restore --to 2026-11-26T14:05:00",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units restore --to latest --from s3://bucket/litellm --identity key.txt --config --foreign",
        Instead::Elsewhere,
    ),
    (
        "litellm-units restore --to 2026-01-31T14:05",
        Instead::Elsewhere,
    ),
    // e2e::dev runs these, with a checkout.
    ("sudo litellm-units up --dev", Instead::Elsewhere),
    ("sudo cat /opt/litellm-server/dev/dev.env", Instead::Elsewhere),
    ("sudo litellm-units down --dev", Instead::Elsewhere),
    (
        "sudo litellm-units up --dev --source ~/litellm",
        Instead::Elsewhere,
    ),
    ("sudo journalctl -fu litellm-dev", Instead::Elsewhere),
    (
        "sudo podman exec -it litellm-dev python3 /run/litellm-units/litellm_units_dev.py attach",
        Instead::Elsewhere,
    ),
    (
        "litellm-units up --dev --source ~/litellm    (docs/debugging.md)",
        Instead::Elsewhere,
    ),
    // Each restarts the gateway or more: e2e::upgrade, e2e::daily and e2e::secrets run these, and more closely.
    (
        "litellm-units upgrade --image ghcr.io/berriai/litellm:v1.110.2",
        Instead::Elsewhere,
    ),
    ("litellm-units rollback --keep-data", Instead::Elsewhere),
    // The container that the page shows, with an image that is here.
    (
        "sudo litellm-units logs filter",
        Instead::Run(
            r#"sudo mkdir -p /opt/litellm-server/extra.d
               sudo touch /opt/litellm-server/extra.d/filter.toml
               sudo grep -q ^OPENAI_API_KEY= /opt/litellm-server/.env || echo OPENAI_API_KEY=sk-1 | sudo tee -a /opt/litellm-server/.env
               sed '1,/^## Units of your own/d' /usr/share/doc/litellm-units/docs/configuration.md |
                 sed -n '/^\[Unit\]/,/^```$/{/^```$/d; s|^Image=.*|Image=docker.io/library/redis:7.4.6|; p}' |
                 sudo tee /opt/litellm-server/extra.d/filter.container
               sudo litellm-units apply
               sudo litellm-units logs filter | grep 'Ready to accept connections'
               sudo litellm-units status | grep -E '^filter +active \(running\) '
               sudo podman exec litellm python3 -c 'import socket; socket.create_connection(("filter", 6379), 5)'
               sudo rm -r /opt/litellm-server/extra.d
               sudo litellm-units apply"#,
        ),
    ),
    // e2e::postgres runs these, with an image of the host.
    (
        "litellm-units upgrade --postgres docker.io/library/postgres:18 --dry-run",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units upgrade --postgres docker.io/library/postgres:18 --dry-run",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units upgrade --postgres docker.io/library/postgres:18",
        Instead::Elsewhere,
    ),
    ("sudo litellm-units rollback --postgres", Instead::Elsewhere),
    // e2e::import runs these, beside Docker.
    ("sudo litellm-units import --dry-run ~/litellm-server    # show what comes over, and what has no counterpart", Instead::Elsewhere),
    ("sudo litellm-units import ~/litellm-server", Instead::Elsewhere),
    ("sudo litellm-units import --undo                        # back to the old gateway", Instead::Elsewhere),
    ("litellm-units import --dry-run /srv/litellm", Instead::Elsewhere),
    ("litellm-units import /srv/litellm", Instead::Elsewhere),
    ("litellm-units import --undo", Instead::Elsewhere),
    (
        "sudo litellm-units import --from root@old.example.com --dry-run /root/litellm-server",
        Instead::Elsewhere,
    ),
    (
        "sudo litellm-units import --from root@old.example.com /root/litellm-server",
        Instead::Elsewhere,
    ),
    (
        "litellm-units import --from root@old.example.com /srv/litellm",
        Instead::Elsewhere,
    ),
    (
        "sudo iptables -I DOCKER-USER -i podman+ -j ACCEPT",
        Instead::Elsewhere,
    ),
    (
        "sudo iptables -I DOCKER-USER -o podman+ -j ACCEPT",
        Instead::Elsewhere,
    ),
    // e2e::fleet runs these, with several hosts.
    ("litellm-units apply --from /root/gateway --dry-run", Instead::Elsewhere),
    (
        "litellm-units config export | ssh root@gateway-2 litellm-units apply --from -",
        Instead::Elsewhere,
    ),
    ("litellm-units fleet plan", Instead::Elsewhere),
    ("litellm-units fleet apply", Instead::Elsewhere),
    (
        "litellm-units fleet upgrade --image ghcr.io/berriai/litellm:v1.110.2",
        Instead::Elsewhere,
    ),
    ("litellm-units fleet status", Instead::Elsewhere),
    ("litellm-units fleet run doctor", Instead::Elsewhere),
    // Its exit status says what it found: e2e::advisories.
    (
        "sudo litellm-units upgrade --check",
        Instead::Run("litellm-units upgrade --check || test $? -ge 5"),
    ),
    (
        "litellm-units upgrade --check",
        Instead::Run("litellm-units upgrade --check || test $? -ge 5"),
    ),
    // No host of a test reaches osv.dev; e2e::advisories has a file as osv.dev has them.
    (
        "sudo curl -o /etc/litellm-units/advisories/GHSA-r75f-5x8p-qvmc.json https://api.osv.dev/v1/vulns/GHSA-r75f-5x8p-qvmc",
        Instead::Elsewhere,
    ),
    ("litellm-units restart litellm", Instead::Elsewhere),
    ("sudo litellm-units restart litellm", Instead::Elsewhere),
    (
        "sudo litellm-units restart --handover litellm",
        Instead::Elsewhere,
    ),
    (
        "litellm-units restart --handover litellm",
        Instead::Elsewhere,
    ),
    (
        "litellm-units secrets rotate postgres",
        Instead::Elsewhere,
    ),
    ("litellm-units secrets rotate master", Instead::Elsewhere),
    (
        "litellm-units ui --generate --base-url https://llm.example.com",
        Instead::Elsewhere,
    ),
    (
        "pass llm/ui | litellm-units ui --password-stdin",
        Instead::Elsewhere,
    ),
    // e2e::backup makes encrypted backups.
    (
        "age-keygen -o key.txt                                          # keep it off this machine",
        Instead::Elsewhere,
    ),
    (
        "echo BACKUP_AGE_RECIPIENT=age1… | sudo tee -a /opt/litellm-server/.env >/dev/null",
        Instead::Elsewhere,
    ),
    // Pages that are read in a terminal or a browser.
    (
        "systemctl edit litellm.service",
        Instead::Run(
            "printf '[Service]\\nMemoryMax=8G\\n' | systemctl edit --stdin litellm.service",
        ),
    ),
    // What goes on until it is interrupted.
    (
        "litellm-units logs -f litellm",
        Instead::Run("timeout --signal INT 2 litellm-units logs -f litellm || test $? = 124"),
    ),
    // Signatures are not verified there.
    (
        "sudo litellm-units doctor",
        Instead::Run("sudo litellm-units doctor || test $? = 7"),
    ),
    (
        "sudo -u litellm litellm-units doctor",
        Instead::Run("sudo -u litellm litellm-units doctor || test $? = 7"),
    ),
    (
        "litellm-units status --watch",
        Instead::Run("timeout --signal INT 3 litellm-units status --watch || test $? = 124"),
    ),
    (
        "sudoedit /opt/litellm-server/.env /opt/litellm-server/config/litellm-config.yaml",
        Instead::Run(
            "EDITOR=\"sed -i s/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-of-the-provider/\" sudoedit /opt/litellm-server/.env /opt/litellm-server/config/litellm-config.yaml",
        ),
    ),
    (
        "echo METRICS_FILE=/var/lib/prometheus/node-exporter/litellm.prom | sudo tee -a /opt/litellm-server/.env >/dev/null",
        // No node_exporter is there.
        Instead::Elsewhere,
    ),
    // e2e::notices::prometheus_beside_the_gateway runs these, with images of its own.
    (
        "cd /opt/litellm-server",
        Instead::Elsewhere,
    ),
    (
        "sudo install -d -m 755 extra.d extra.d/metrics",
        Instead::Elsewhere,
    ),
    (
        "sudo install -m 644 -t extra.d /usr/share/doc/litellm-units/examples/prometheus* /usr/share/doc/litellm-units/examples/grafana*",
        Instead::Elsewhere,
    ),
    (
        "echo METRICS_FILE=/opt/litellm-server/extra.d/metrics/litellm.prom | sudo tee -a .env >/dev/null",
        Instead::Elsewhere,
    ),
    (
        "(printf GRAFANA_PASSWORD=; od -An -N16 -tx1 /dev/urandom | tr -d ' ') | sudo tee -a .env >/dev/null",
        Instead::Elsewhere,
    ),
    (
        "sudo install -m 644 -t extra.d /usr/share/doc/litellm-units/examples/relay.*",
        Instead::Elsewhere,
    ),
    (
        r#"echo "LISTEN='127.0.0.1:24157 /run/litellm/litellm.sock'" | sudo tee -a .env >/dev/null"#,
        Instead::Elsewhere,
    ),
    (
        r#"key=$(sudo litellm-units key create prometheus --allowed-route /metrics) && echo "PROMETHEUS_KEY=$key" | sudo tee -a .env >/dev/null"#,
        Instead::Elsewhere,
    ),
    (
        "sudo sed -i 's/^#relay://' extra.d/prometheus.container extra.d/prometheus.yml",
        Instead::Elsewhere,
    ),
    // Nobody is named yet.
    (
        "sudo litellm-units notify test",
        Instead::Run(
            "echo 'NOTIFY_COMMAND=cat >/root/notice' | sudo tee -a /opt/litellm-server/.env >/dev/null
             sudo litellm-units apply >&2; sudo litellm-units notify test",
        ),
    ),
    (
        "litellm-units notify test",
        Instead::Run(
            "echo 'NOTIFY_COMMAND=cat >/dev/null' >>/opt/litellm-server/.env; litellm-units notify test",
        ),
    ),
    // What asks, or has a name in it that only its reader knows.
    (
        "litellm-units restore latest",
        Instead::Run("litellm-units restore latest --yes"),
    ),
    (
        "litellm-units down --remove    (the deployment directory and its data stay)",
        // What comes next needs it again.
        Instead::Run("litellm-units down --remove && litellm-units up"),
    ),
    (
        "litellm-units key create batch --duration 90d --team research > batch.key",
        Instead::Run(
            "curl -sS -H \"Authorization: Bearer $(litellm-units unit secret litellm LITELLM_MASTER_KEY)\" -H 'Content-Type: application/json' \
                 -d '{\"team_id\":\"research\"}' http://127.0.0.1:24157/team/new
             litellm-units key create batch --duration 90d --team research > batch.key",
        ),
    ),
    (
        "litellm-units restore 20260131T023000Z-0a1b2c --config --yes",
        Instead::Run(
            "litellm-units restore $(litellm-units backup list --json | jq -r '.[0].id') --config --yes",
        ),
    ),
    (
        "litellm-units backup --age-recipient age1… --to s3://bucket/litellm",
        Instead::Run(
            "mkdir -p /srv/copies; litellm-units backup --age-recipient $RECIPIENT --to file:///srv/copies
             # What is restored next has to be readable.
             litellm-units backup",
        ),
    ),
    (
        "litellm-units rollback --to 2 --restore-data --dry-run",
        // One release was all that there was.
        Instead::Refused("there is no release 2"),
    ),
    (
        "litellm-units trust --scope registry.example.com/berriai",
        Instead::Refused("which is not in registry.example.com/berriai"),
    ),
];

/// Runs lines in a host, one after the other, as one user.
struct Reader<'a> {
    host: &'a TestHost,
    who: Who,
    /// What every command of theirs starts with.
    prelude: &'a str,
}

impl Reader<'_> {
    /// All of them, so that one run tells of every line that is wrong.
    #[track_caller]
    fn follow(&self, lines: &[Line]) {
        assert!(!lines.is_empty());
        let wrong: Vec<String> = lines.iter().filter_map(|line| self.type_it(line)).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// What is wrong with a line.
    fn type_it(&self, line: &Line) -> Option<String> {
        let begin = std::time::Instant::now();
        let instead = INSTEAD.iter().find(|(printed, _)| *printed == line.text);
        let ran = match instead.map(|(_, instead)| instead) {
            Some(Instead::Elsewhere) => return None,
            Some(Instead::Machine(words)) => {
                let program = env!("CARGO_BIN_EXE_litellm-units");
                let script = format!("PROGRAM={program}; {words}");
                run("bash", &["-euo", "pipefail", "-c", &script]);
                return None;
            }
            Some(Instead::Run(words)) => self.bash(words),
            Some(Instead::Refused(_)) | None => self.bash(line.text.split("   (").next().unwrap()),
        };
        let expected = line.answer.as_deref().unwrap_or_default();
        let good = match instead {
            Some((_, Instead::Refused(words))) => ran.code != 0 && ran.stderr.contains(words),
            _ => ran.code == 0 && document::answers(expected, &ran.stdout),
        };
        eprintln!(
            "{:6.1} s  {}: {}",
            begin.elapsed().as_secs_f64(),
            line.place,
            line.text
        );
        (!good).then(|| {
            format!(
                "{}: {}\nexit status {}\n--- stdout:\n{}\n--- expected:\n{expected}\n--- stderr:\n{}",
                line.place, line.text, ran.code, ran.stdout, ran.stderr
            )
        })
    }

    fn bash(&self, script: &str) -> Ran {
        self.host
            .bash(self.who, &format!("cd; {}\n{script}", self.prelude))
    }
}

/// A host with what the documentation takes for granted: sudo, and curl that fails where it was refused.
fn host_for_readers(who: Who, name: &str) -> TestHost {
    let host = bare_host(who, name);
    host.without_standby(Who::Root);
    host.without_standby(who);
    install(&host, "sudo");
    host.sh(
        Who::Root,
        "echo 'operator ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/operator
         echo fail >/root/.curlrc; install -o operator /root/.curlrc /home/operator/.curlrc",
    );
    host
}

#[test]
fn first_steps_and_daily_use() {
    let package = Package::build("deb");
    let host = host_for_readers(Who::Root, "docs-system");
    let reader = |who, prelude| Reader {
        host: &host,
        who,
        prelude,
    };
    host.put_for(Who::Operator, &package.path, "/home/operator/");

    // README installs the program twice: the package, and without one.
    host.sh(
        Who::Operator,
        "mkdir -p ~/target/release; dpkg-deb --fsys-tarfile ~/litellm-units_*.deb | tar -xO ./usr/bin/litellm-units >~/target/release/litellm-units",
    );
    let mut readme = document::markdown("README.md");
    let from_source = readme
        .iter()
        .position(|line| line.text.starts_with("sudo install "))
        .unwrap();
    let up = readme.split_off(from_source + 1);
    reader(Who::Operator, "").follow(&readme);
    host.sh(Who::Root, "cmp <(/usr/local/bin/litellm-units --version) <(/usr/bin/litellm-units --version); rm /usr/local/bin/litellm-units");

    reader(Who::Operator, "").follow(&document::markdown("docs/tutorial.md"));
    reader(Who::Operator, "").follow(&up);
    let authority = rcgen::CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap();
    let home = "/home/operator";
    host.write(
        Who::Operator,
        &format!("{home}/private-ca.pem"),
        &authority.pem(),
    );
    host.write(Who::Operator, &format!("{home}/google.json"), "{}");
    for (path, who) in [
        ("docs/configuration.md", Who::Operator),
        ("docs/keys.md", Who::Operator),
        ("docs/notices.md", Who::Operator),
        ("docs/status-json.md", Who::Root),
        ("docs/database.md", Who::Operator),
        ("docs/backup.md", Who::Operator),
    ] {
        reader(who, "").follow(&document::markdown(path));
    }
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn changes_and_several_hosts() {
    let package = Package::build("deb");
    let host = host_for_readers(Who::Root, "docs-changes");
    let reader = Reader {
        host: &host,
        who: Who::Operator,
        prelude: "",
    };
    host.put(&package.path, "/root/");
    host.sh(Who::Root, "apt-get install -y /root/litellm-units_*.deb");
    host.units(Who::Root, &["up"]).ok();
    for page in [
        "debugging",
        "disaster-recovery",
        "upgrade",
        "trust",
        "reverse-proxy",
    ] {
        reader.follow(&document::markdown(&format!("docs/{page}.md")));
    }

    // Two names of this host stand for the several hosts; root of each knows the operator's key.
    host.sh(
        Who::Root,
        r#"echo '127.0.0.1 gateway-1 gateway-2' >>/etc/hosts; systemctl start ssh
           install -d -m 700 /root/.ssh
           setpriv --reuid operator --regid operator --init-groups ssh-keygen -q -N '' -f /home/operator/.ssh/id_ed25519
           cp /home/operator/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
           printf 'StrictHostKeyChecking accept-new\n' >/home/operator/.ssh/config
           mkdir -m 700 /home/operator/fleet
           printf '[[host]]\nssh = "root@gateway-1"\n[[host]]\nssh = "root@gateway-2"\n' >/home/operator/fleet/fleet.toml
           chown -R operator: /home/operator"#,
    );
    reader.follow(&document::markdown("docs/several-hosts.md"));
    // The last, since another host could not open what is sealed.
    reader.follow(&document::markdown("docs/sealed-secrets.md"));
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootless_and_from_compose() {
    let host = host_for_readers(Who::Operator, "docs-moves");
    let reader = |who, prelude| Reader {
        host: &host,
        who,
        prelude,
    };
    let package = Package::build("deb");
    host.put(&package.path, "/root/");
    host.sh(Who::Root, "apt-get install -y /root/litellm-units_*.deb");

    // An operator's own, then one of the account litellm.
    reader(Who::Operator, "").follow(&document::markdown("docs/rootless.md"));

    // A deployment as compose leaves it, in the home of the operator.
    host.units(Who::Root, &["up"]).ok();
    let key = new_key(&host, Who::Root);
    let alias = format!(
        "curl -sSf -H \"Authorization: Bearer $(sed -n 's/^LITELLM_MASTER_KEY=//p' \"$1/.env\")\" -H 'Content-Type: application/json' \
         -d '{{\"key\":\"{key}\",\"key_alias\":\"old-app\"}}' http://127.0.0.1:24157/key/update"
    );
    host.sh(Who::Root, &alias);
    host.units(Who::Root, &["down"]).ok();
    // Docker can't run here. What its commands do to the old deployment, this does.
    let docker = r#"#!/bin/bash
set -euo pipefail
case "$*" in
  'compose down')
    [[ ! -e /opt/litellm-server ]] || { sudo litellm-units down; sudo mv /opt/litellm-server /srv/old; sudo cp /srv/old/.env /srv/old/config/litellm-config.yaml .; sudo chown operator .env litellm-config.yaml; }
    ;;
  'compose stop litellm') sudo litellm-units stop litellm ;;
  'compose exec -T postgres '*) shift 4; exec sudo podman exec litellm-postgres "$@" ;;
  *) echo "docker $*: unknown" >&2; exit 1 ;;
esac
"#;
    host.write(Who::Root, "/usr/local/bin/docker", docker);
    host.sh(
        Who::Root,
        r#"chmod 755 /usr/local/bin/docker
           rm -r "$1/.litellm-units" "$1/images.lock" /etc/containers/systemd/litellm* /etc/systemd/system/litellm*
           echo 'services: {}' >"$1/docker-compose.yml"
           chown operator: "$1" "$1/.env" "$1/data" "$1/docker-compose.yml"; chown -R operator: "$1/config"; chmod 775 "$1/config"
           systemctl daemon-reload
           mv "$1" /home/operator/litellm-server"#,
    );
    reader(Who::Operator, "").follow(&document::markdown("docs/from-docker-compose.md"));
    assert_eq!(host.sh(Who::Root, "podman ps -q"), "");
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn manuals_and_help() {
    let host = bare_host(Who::Root, "docs-help");
    host.without_standby(Who::Root);
    host.put(
        std::path::Path::new(env!("CARGO_BIN_EXE_litellm-units")),
        "/usr/bin/litellm-units",
    );
    let identity = age::x25519::Identity::generate();
    let prelude = format!(
        "RECIPIENT={}; pass() {{ echo correct-horse; }}",
        identity.to_public()
    );
    let reader = Reader {
        host: &host,
        who: Who::Root,
        prelude: &prelude,
    };
    // The examples of --help are in the pages of the commands, too. The last of the pages removes all.
    let mut manual = document::manual("packaging/man/litellm-units.7");
    let removing = manual
        .iter()
        .position(|line| line.text == "litellm-units down --remove")
        .unwrap();
    let removing = manual.split_off(removing);
    reader.follow(&manual);
    reader.follow(&document::help(&program()));
    reader.follow(&removing);
    assert_eq!(
        host.sh(
            Who::Root,
            "ls -d /opt/litellm-server /run/litellm-units /etc/containers/systemd/litellm* /etc/systemd/system/{,*.wants/}litellm* 2>/dev/null || :
             podman ps -aq; podman secret ls -q; systemctl list-units --all --plain --no-legend 'litellm*' | grep -v '^litellm.slice' || :"
        ),
        // `systemctl edit` of the manual made it.
        "/etc/systemd/system/litellm.service.d\n"
    );
}

/// No document is forgotten, and no line of [`INSTEAD`] outlives the one that it is about.
#[test]
fn everything_is_read() {
    let read = [
        "README.md",
        "docs/configuration.md",
        "docs/from-docker-compose.md",
        "docs/keys.md",
        "docs/notices.md",
        "docs/debugging.md",
        "docs/rootless.md",
        "docs/tutorial.md",
        "docs/status-json.md",
        "docs/database.md",
        "docs/backup.md",
        "docs/disaster-recovery.md",
        "docs/upgrade.md",
        "docs/trust.md",
        "docs/reverse-proxy.md",
        "docs/several-hosts.md",
        "docs/sealed-secrets.md",
    ];
    let mut lines: Vec<Line> = read
        .iter()
        .flat_map(|path| document::markdown(path))
        .collect();
    for path in document::markdowns("docs") {
        if !read.contains(&path.as_str()) {
            assert_eq!(
                document::markdown(&path),
                [],
                "no test runs the commands of {path}"
            );
        }
    }
    assert_eq!(
        document::names("packaging/man"),
        [
            "packaging/man/litellm-units.7",
            "packaging/man/litellm.env.5"
        ]
    );
    lines.extend(document::manual("packaging/man/litellm-units.7"));
    assert_eq!(document::manual("packaging/man/litellm.env.5"), []);
    lines.extend(document::help(&program()));
    for (printed, _) in INSTEAD {
        assert!(
            lines.iter().any(|line| line.text == *printed),
            "no document has this line any more: {printed}"
        );
    }
}

fn program() -> clap::Command {
    let mut program = Cli::command();
    program.build();
    program
}

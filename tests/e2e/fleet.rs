//! Two gateway hosts that share a database and a cache, changed as one from a third host with a load balancer.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::gateway::{HELLO, Load, allow_mock_delays, chat, new_key_with};
use crate::support::host::{Ran, TestHost, Who};
use crate::support::package::install;
use crate::support::releases::{DEFAULT, NEWEST};

/// The servers of all gateways, and the key of the operator.
const SERVERS: &str = r"
    podman run -d --name db --network host --pull=never -e POSTGRES_USER=llm -e POSTGRES_PASSWORD=db-pass -e POSTGRES_DB=llm docker.io/library/postgres:17.7
    podman run -d --name cache --network host --pull=never docker.io/library/redis:7.4.6 redis-server --requirepass cache-pass
    printf '10.98.0.2 gateway-1\n10.98.0.3 gateway-2\n' >>/etc/hosts
    ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
    echo 'StrictHostKeyChecking accept-new' >~/.ssh/config
";

const FLEET: &str = r#"
[[host]]
ssh = "root@gateway-1"
env = { BACKUP_URL = "file:///srv/backups/gateway-1" }

[[host]]
ssh = "root@gateway-2"
env = { BACKUP_URL = "file:///srv/backups/gateway-2" }
"#;

/// What the load needs, which speaks no TLS.
const CLEAR: &str = "
listen clear
	mode http
	bind 127.0.0.1:24157
	http-request set-header Host llm.example.com
	server own 127.0.0.1:443 ssl verify none sni str(llm.example.com)
";

const WHO: Who = Who::Root;

/// Runs `litellm-units fleet` on the operator's host.
fn fleet(operator: &TestHost, words: &[&str]) -> Ran {
    let begin = Instant::now();
    let own = ["--litellm-dir", "/srv/fleet", "fleet"];
    let ran = operator.units(WHO, &[&own, words].concat());
    eprintln!(
        "fleet {words:?}: {} after {:.1?}\n{}",
        ran.code,
        begin.elapsed(),
        ran.stderr
    );
    ran
}

/// Edits the shared `.env` by a script of sed.
fn edit(operator: &TestHost, script: &str) {
    operator
        .run(WHO, &["sed", "-i", script, "/srv/fleet/.env"])
        .ok();
}

/// The configuration of a host, by its content.
fn exported(host: &TestHost) -> String {
    host.sh(WHO, "litellm-units config export | sha256sum")
}

/// A line of `.env` on a host.
fn line(host: &TestHost, name: &str) -> String {
    host.sh(WHO, &format!("grep '^{name}=' \"$1/.env\" || true"))
}

fn with_no_failure<T>(operator: &TestHost, key: &str, change: impl FnOnce() -> T) -> T {
    let load = Load::begin(operator, WHO, key);
    let outcome = change();
    load.assert_no_failure(operator, WHO);
    outcome
}

/// Three hosts with their names, keys and servers, and an operator's directory with the configuration.
fn prepared(operator: &TestHost, gateways: [&TestHost; 2]) {
    operator.sh(WHO, "install -d -m 700 ~/.ssh");
    operator.sh(WHO, SERVERS);
    let key = operator.sh(WHO, "cat ~/.ssh/id_ed25519.pub");
    for gateway in gateways {
        gateway.sh(WHO, "apt-get -q update");
        install(gateway, "caddy");
        let script = "systemctl disable --now caddy; systemctl start ssh; install -d -m 700 ~/.ssh";
        gateway.sh(WHO, script);
        gateway.write(WHO, "/root/.ssh/authorized_keys", &key);
    }
    // The first host has a configuration, and the other one nothing.
    gateways[0].units(WHO, &["generate"]).ok();
    allow_mock_delays(gateways[0], WHO);
    operator.sh(
        WHO,
        "mkdir /srv/fleet; ssh root@gateway-1 litellm-units config export | tar -x -C /srv/fleet",
    );
    edit(operator, "/^POSTGRES_/d; /^REDIS_/d");
    let shared = "DATABASE_URL=postgresql://llm:db-pass@10.98.0.1:5432/llm\nREDIS_HOST=10.98.0.1\nREDIS_PORT=6379\nREDIS_PASSWORD=cache-pass\nPUBLIC_URL=https://llm.example.com\n";
    operator.sh(WHO, &format!("printf '{shared}' >>/srv/fleet/.env"));
    operator.sh(
        WHO,
        "umask 077; mkdir /srv/fleet/entrance; cd /srv/fleet/entrance
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=llm.example.com \
           -addext subjectAltName=DNS:llm.example.com -keyout key.pem -out certificate.pem 2>/dev/null",
    );
    operator.write(WHO, "/srv/fleet/fleet.toml", FLEET);
}

fn balance(operator: &TestHost) {
    operator.sh(WHO, "apt-get -q update");
    install(operator, "haproxy");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples/haproxy.cfg");
    let example = std::fs::read_to_string(example).unwrap();
    operator.write(WHO, "/etc/haproxy/haproxy.cfg", &(example + CLEAR));
    operator.sh(
        WHO,
        "haproxy -c -f /etc/haproxy/haproxy.cfg; systemctl restart haproxy",
    );
}

/// An edit that only the second host gets wrong, when its gateway starts.
fn one_host_fails(operator: &TestHost, gateways: [&TestHost; 2], key: &str) {
    let before = gateways.map(exported);
    let wrong = FLEET.replace(
        "gateway-2\" }",
        "gateway-2\", DATABASE_URL = \"postgresql://llm:wrong@10.98.0.1:5432/llm\" }",
    );
    operator.write(WHO, "/srv/fleet/fleet.toml", &wrong);
    edit(
        operator,
        "s/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-of-a-failure/",
    );
    let failed = with_no_failure(operator, key, || fleet(operator, &["apply"]));
    assert_eq!(failed.code, 1);
    for words in [
        "Authentication failed against database server",
        "error: root@gateway-2: failed (exit status: 1)\nroot@gateway-1 was rolled back\nhint: see the state of all: `litellm-units fleet status`",
    ] {
        assert!(failed.stderr.contains(words), "{}", failed.stderr);
    }
    assert_eq!(gateways.map(exported), before);
    operator.write(WHO, "/srv/fleet/fleet.toml", FLEET);
}

/// A host that is down is named, and nothing is changed until it is left out.
fn one_host_is_down(operator: &TestHost, gateways: [&TestHost; 2]) {
    let before = exported(gateways[0]);
    gateways[1].sh(WHO, "ip link set lan down");
    let failed = fleet(operator, &["apply"]);
    assert_eq!(failed.code, 1);
    let words = "error: nothing was changed, since not every host can take part:\nroot@gateway-2: ssh to root@gateway-2 failed or was cut off\nhint: to go on without a host, add `--skip HOST`\n";
    assert!(failed.stderr.ends_with(words), "{}", failed.stderr);
    assert_eq!(exported(gateways[0]), before);
    let status = fleet(operator, &["status"]);
    assert_eq!(status.code, 1);
    let rows: Vec<Vec<&str>> = status
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[1],
        ["root@gateway-1", "healthy", "ready", DEFAULT.version]
    );
    assert_eq!(rows[2], ["root@gateway-2", "-", "-", "-"]);
    fleet(operator, &["apply", "--skip", "root@gateway-2"]).ok();
    assert_ne!(exported(gateways[0]), before);
    gateways[1].sh(WHO, "ip link set lan up");
}

/// The command is killed while the first host works, which goes on; the next one does what is missing.
fn a_kill_in_the_middle(operator: &TestHost, gateways: [&TestHost; 2]) {
    edit(
        operator,
        "s/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-after-a-kill/",
    );
    let script = "exec litellm-units --litellm-dir /srv/fleet fleet apply";
    let mut child: Child = operator
        .command(
            WHO,
            &["bash", "-c", &format!("echo $$ >/tmp/fleet; {script}")],
        )
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    gateways[0].wait("the change", Duration::from_secs(60), |host| {
        let lock = host.bash(WHO, "pgrep -f '^litellm-units apply --from -$' && grep sk-after \"/opt/litellm-server/.env\"");
        if lock.code == 0 { Ok(()) } else { Err(lock.stderr) }
    });
    operator.sh(WHO, "kill -KILL $(cat /tmp/fleet)");
    child.wait().unwrap();
    assert!(!line(gateways[1], "OPENAI_API_KEY").contains("sk-after-a-kill"));
    operator.wait("the first host", Duration::from_secs(600), |operator| {
        let ran = fleet(operator, &["apply"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    for gateway in gateways {
        assert_eq!(
            line(gateway, "OPENAI_API_KEY"),
            "OPENAI_API_KEY=sk-after-a-kill\n"
        );
    }
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn several_hosts_are_changed_as_one() {
    let hosts = ["fleet-op", "fleet-1", "fleet-2"].map(TestHost::boot);
    let [operator, first, second] = &hosts;
    let gateways = [first, second];
    crate::support::host::lan(&[operator, first, second]);
    prepared(operator, gateways);

    let plan = fleet(operator, &["plan"]).ok();
    assert!(
        plan.contains("== root@gateway-1\n# change .env: BACKUP_URL, DATABASE_URL, "),
        "{plan}"
    );
    assert!(plan.contains("== root@gateway-2\n# add .env: "), "{plan}");
    assert!(plan.contains("\n# add entrance/key.pem\n"), "{plan}");
    assert!(!plan.contains("db-pass"), "{plan}");
    let env = second.bash(WHO, "ls /opt/litellm-server");
    assert_ne!(env.code, 0, "{}", env.stdout);
    fleet(operator, &["apply"]).ok();
    // The first host alone backs up the database.
    let without_backup = fleet(operator, &["status", "--json"]);
    assert_eq!(without_backup.code, 1, "{without_backup:?}");
    first.sh(WHO, "mkdir -p /srv/backups/gateway-1");
    operator
        .units(WHO, &["--host", "root@gateway-1", "backup"])
        .ok();
    let status: Value = serde_json::from_str(&fleet(operator, &["status", "--json"]).ok()).unwrap();
    for (host, by) in status["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .zip([Value::Null, "root@gateway-1".into()])
    {
        assert_eq!(host["status"]["state"], "healthy", "{host}");
        assert_eq!(host["status"]["backup"]["by"], by, "{host}");
    }
    assert_eq!(line(first, "BACKUP_BY"), "");
    assert_eq!(
        gateways.map(|gateway| gateway.property(WHO, "litellm-backup.timer", "ActiveState")),
        ["active", "inactive"]
    );
    balance(operator);
    let master = operator.sh(WHO, "sed -n 's/^LITELLM_MASTER_KEY=//p' /srv/fleet/.env");
    operator.wait("HAProxy", Duration::from_secs(30), |host| {
        let ran = host.bash(WHO, "curl -sf http://127.0.0.1:24157/health/readiness");
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    let key = &new_key_with(first, WHO, master.trim());
    assert_eq!(chat(operator, WHO, key).as_deref(), Ok(HELLO));

    edit(operator, "s/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-shared/");
    with_no_failure(operator, key, || fleet(operator, &["apply"])).ok();
    for (gateway, own) in gateways.into_iter().zip(["1", "2"]) {
        assert_eq!(
            line(gateway, "OPENAI_API_KEY"),
            "OPENAI_API_KEY=sk-shared\n"
        );
        assert_eq!(
            line(gateway, "BACKUP_URL"),
            format!("BACKUP_URL=file:///srv/backups/gateway-{own}\n")
        );
    }
    let again = fleet(operator, &["apply"]);
    assert_eq!(
        again.stderr,
        "root@gateway-1: nothing to do\nroot@gateway-2: nothing to do\n"
    );

    one_host_fails(operator, gateways, key);
    one_host_is_down(operator, gateways);
    a_kill_in_the_middle(operator, gateways);

    with_no_failure(operator, key, || {
        fleet(operator, &["upgrade", "--image", NEWEST.image])
    })
    .ok();
    let backups = "{ ls /opt/litellm-server/backups 2>/dev/null || :; } | wc -l";
    assert_eq!(
        gateways.map(|gateway| gateway.sh(WHO, backups)),
        ["2\n", "0\n"]
    );
    let table = fleet(operator, &["status"]).ok();
    assert_eq!(table.matches(NEWEST.version).count(), 2, "{table}");
    let named = operator.sh(WHO, "grep ^LITELLM_IMAGE= /srv/fleet/.env");
    assert_eq!(named, format!("LITELLM_IMAGE={}\n", NEWEST.image));
    with_no_failure(operator, key, || {
        fleet(operator, &["rollback", "--image", DEFAULT.image])
    })
    .ok();
    assert_eq!(
        fleet(operator, &["status"])
            .ok()
            .matches(DEFAULT.version)
            .count(),
        2
    );
    let run = fleet(operator, &["run", "--", "config", "check"]).ok();
    let warning = "warning: ANTHROPIC_API_KEY is empty in .env";
    assert_eq!(run.matches(warning).count(), 2, "{run}");
}

/// What belongs to a host: its release, its database, sealed values, and what it has when `apply --from` is refused or killed.
#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_configuration_is_taken_over() {
    let host = &TestHost::boot("take-over");
    host.units(WHO, &["up"]).ok();
    host.units(WHO, &["secrets", "seal"]).ok();
    let sealed = line(host, "LITELLM_MASTER_KEY");
    assert!(sealed.contains("systemd-creds:"), "{sealed}");
    let before = exported(host);
    host.sh(
        WHO,
        "mkdir -m 700 /srv/next; litellm-units config export | tar -x -C /srv/next; ! script -qec 'litellm-units config export' /dev/null | grep -q LITELLM",
    );
    let take = |words: &[&str]| {
        let all = [&["apply", "--from", "/srv/next"], words].concat();
        host.units(WHO, &all)
    };
    assert_eq!(take(&["--dry-run"]).ok(), "nothing to do\n");
    host.sh(
        WHO,
        "cd /srv/next; sed -i 's/^OPENAI_API_KEY=.*/OPENAI_API_KEY=sk-to-be-sealed/; s/^POSTGRES_PASSWORD=.*/POSTGRES_PASSWORD=of-another-host/; s/^LITELLM_IMAGE=.*/LITELLM_IMAGE=registry.example.com:5000\\/litellm:v9.9.9/' .env",
    );
    assert_eq!(take(&["--dry-run"]).ok(), "# change .env: OPENAI_API_KEY\n");
    assert_eq!(exported(host), before);
    let kept = ["POSTGRES_PASSWORD", "LITELLM_IMAGE"].map(|name| line(host, name));
    take(&[]).ok();
    assert_eq!(
        kept,
        ["POSTGRES_PASSWORD", "LITELLM_IMAGE"].map(|name| line(host, name))
    );
    assert_eq!(line(host, "LITELLM_MASTER_KEY"), sealed);
    assert!(line(host, "OPENAI_API_KEY").contains("systemd-creds:OPENAI_API_KEY."));

    // A reference of another host means nothing here.
    let before = exported(host);
    host.sh(
        WHO,
        "cp /srv/next/.env /srv/env; sed -i 's/^LITELLM_MASTER_KEY=.*/LITELLM_MASTER_KEY=systemd-creds:LITELLM_MASTER_KEY.0123456789abcdef/' /srv/next/.env",
    );
    let refused = take(&[]);
    let words = "error: LITELLM_MASTER_KEY is a secret that another host has sealed: ";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    host.sh(
        WHO,
        "cp /srv/env /srv/next/.env; echo 'model_list: 1' >/srv/next/config/litellm-config.yaml; mkdir -p /srv/next/files; echo '{}' >/srv/next/files/new.json",
    );
    let refused = take(&[]);
    assert_eq!(refused.code, 78, "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("nothing was applied; the previous configuration is in place\n")
    );
    assert_eq!(exported(host), before);
    let said = host.interrupt_at(WHO, "apply-replaced", "", "apply --from /srv/next");
    assert!(
        said.contains("an interrupted `litellm-units apply --from` was undone\n"),
        "{said}"
    );
    assert_eq!(exported(host), before);
    assert_eq!(host.units(WHO, &["health"]).code, 0);
}

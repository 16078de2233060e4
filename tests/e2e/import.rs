//! A deployment under docker compose, with Docker's own programs, becomes one of this program.

use std::path::Path;
use std::time::Duration;

use crate::support::host::{EXPLOITED, TestHost, Who};

const OLD: &str = "http://127.0.0.1:4000";
const NEW: &str = "http://127.0.0.1:24157";
const MASTER: &str = "master-key-without-prefix";

/// Docker with the images of the host's registry, by the names that compose files have.
const DOCKER: &str = r#"
mkdir /etc/docker 2>/dev/null || :
echo '{"data-root": "/home/docker", "insecure-registries": ["ghcr.io"], "registry-mirrors": ["http://127.0.0.1:5000"]}' >/etc/docker/daemon.json
echo 127.0.0.2 ghcr.io >>/etc/hosts
systemd-run --quiet --unit=ghcr --socket-property=ListenStream=127.0.0.2:80 /usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:5000
apt-get -q update
DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends docker.io docker-cli docker-compose iptables
docker pull -q ghcr.io/berriai/litellm:v1.80.11-stable
docker pull -q postgres:17.7
docker pull -q redis:7.4.6
cd /srv/llm
mv env .env
docker compose up -d --quiet-pull
"#;

/// As docs/from-docker-compose.md has it.
const DROP_IN: &str = "[Service]
ExecStartPost=-iptables --wait -D DOCKER-USER -i podman+ -j ACCEPT
ExecStartPost=iptables --wait -I DOCKER-USER -i podman+ -j ACCEPT
ExecStartPost=-iptables --wait -D DOCKER-USER -o podman+ -j ACCEPT
ExecStartPost=iptables --wait -I DOCKER-USER -o podman+ -j ACCEPT
";

/// The answer to a request with a JSON body.
fn post(host: &TestHost, base: &str, path: &str, key: &str, body: &str) -> String {
    let script = format!(
        "curl -s --max-time 60 {base}{path} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{body}'"
    );
    host.bash(Who::Root, &script).stdout
}

fn chat(host: &TestHost, base: &str, key: &str, model: &str) -> String {
    let body =
        format!(r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "hello"}}]}}"#);
    post(host, base, "/v1/chat/completions", key, &body)
}

/// Waits until the gateway serves both models to the key: one of the configuration, one of the database.
#[track_caller]
fn serves(host: &TestHost, base: &str, key: &str) {
    for (model, answer) in [
        ("hello", "Hello from the old deployment."),
        ("stored", "from the database"),
    ] {
        host.wait(model, Duration::from_secs(300), |host| {
            match chat(host, base, key, model) {
                text if text.contains(answer) => Ok(()),
                text => Err(text),
            }
        });
    }
}

#[track_caller]
fn refuses_connections(host: &TestHost, base: &str) {
    let ran = host.bash(
        Who::Root,
        &format!("curl -s --max-time 5 {base}/health/liveliness"),
    );
    assert_eq!(ran.code, 7, "{}", ran.stdout);
}

/// A host with a deployment of docker compose in /srv/llm, and a key of its gateway.
fn compose(name: &str) -> (TestHost, String) {
    let host = TestHost::boot(name);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compose");
    host.put(&fixture, "/srv/llm");
    host.sh(Who::Root, DOCKER);
    host.wait("the old gateway", Duration::from_secs(300), |host| {
        let ran = host.bash(Who::Root, &format!("curl -sf {OLD}/health/liveliness"));
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    let stored = r#"{"model_name": "stored", "litellm_params": {"model": "openai/stored", "api_key": "sk-stored-secret-key", "mock_response": "from the database"}}"#;
    post(&host, OLD, "/model/new", MASTER, stored);
    post(&host, OLD, "/team/new", MASTER, r#"{"team_alias": "a"}"#);
    let key = post(
        &host,
        OLD,
        "/key/generate",
        MASTER,
        r#"{"key_alias": "app"}"#,
    );
    let key: serde_json::Value = serde_json::from_str(&key).unwrap();
    let key = key["key"].as_str().unwrap().to_owned();
    serves(&host, OLD, &key);
    (host, key)
}

/// Docker is where only ssh finds it.
const SSH: &str = r"
mkdir /srv/docker && mv /usr/bin/docker /srv/docker/
echo 'PATH=$PATH:/srv/docker' >/root/.bashrc
systemctl start ssh
for _ in $(seq 50); do ss -ltn | grep -q :22 && break; sleep 0.1; done
install -d -m 700 ~/.ssh
ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519
cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys
ssh-keyscan 127.0.0.1 2>/dev/null >~/.ssh/known_hosts
mkdir -p /etc/systemd/system/docker.service.d
";

/// The import ends well, with everything that the old gateway had.
#[track_caller]
fn imports_all(host: &TestHost, words: &[&str]) {
    let imported = host.units(Who::Root, words);
    let rows = "imported (keys: 1, teams: 1, users: 1, stored models: 1, spend logs: ";
    assert!(imported.stderr.contains(rows), "{}", imported.stderr);
    imported.ok();
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_compose_deployment_moves_over_ssh() {
    let (host, key) = compose("import-ssh");
    host.sh(Who::Root, SSH);
    host.write(
        Who::Root,
        "/etc/systemd/system/docker.service.d/podman.conf",
        DROP_IN,
    );
    host.sh(
        Who::Root,
        "systemctl daemon-reload; systemctl restart docker; ssh 127.0.0.1 docker compose --project-directory /srv/llm up -d",
    );
    serves(&host, OLD, &key);
    let (code, _, stderr) = host
        .units(Who::Root, &["import", "--dry-run", "/srv/llm"])
        .all();
    assert_eq!(
        (code, stderr.as_str()),
        (
            1,
            "error: Docker is not installed, so there is nothing to import from\n\
             hint: from another host: `litellm-units import --from USER@HOST DIR`\n"
        )
    );
    let from = "import --from root@127.0.0.1 /srv/llm";
    let plan = host
        .units(
            Who::Root,
            &[&from.split(' ').collect::<Vec<_>>()[..], &["--dry-run"]].concat(),
        )
        .ok();
    for line in [
        "Import from /srv/llm on root@127.0.0.1 to /opt/litellm-server:",
        "salt       LITELLM_SALT_KEY of the old gateway; proved: it decrypts a stored credential",
        "file       /app/custom_callbacks.py -> config/custom_callbacks.py",
    ] {
        assert!(plan.lines().any(|found| found == line), "{line}\n{plan}");
    }
    let import = format!("{from} --yes --accept-vulnerability {EXPLOITED}");
    let words: Vec<&str> = import.split(' ').collect();
    // Interrupted while neither serves: systemd starts the old one, by root's key.
    let said = host.interrupt_at(Who::Root, "import-stopped", "", &import);
    assert!(
        said.contains("the import from /srv/llm on root@127.0.0.1 was interrupted: starting the old gateway again"),
        "{said}"
    );
    serves(&host, OLD, &key);
    imports_all(&host, &words);
    serves(&host, NEW, &key);
    refuses_connections(&host, OLD);
    host.units(Who::Root, &["import", "--undo"]).ok();
    serves(&host, OLD, &key);
    refuses_connections(&host, NEW);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn a_compose_deployment_moves_in_and_out() {
    let (host, key) = compose("import");
    let key = key.as_str();

    // Where it is not.
    let (code, _, stderr) = host.units(Who::Root, &["import", "--dry-run"]).all();
    assert_eq!(
        (code, stderr.as_str()),
        (
            1,
            "error: Docker has no container of a compose file in /root\n\
             hint: name the directory of the compose file: `litellm-units import /srv/llm`\n"
        )
    );
    // What would be done; a salt is proved by what the database holds.
    let plan = host
        .units(Who::Root, &["import", "--dry-run", "/srv/llm"])
        .ok();
    for line in [
        "Import from /srv/llm to /opt/litellm-server:",
        "to stop    llm-litellm-1",
        "salt       LITELLM_SALT_KEY of the old gateway; proved: it decrypts a stored credential",
        "secrets    LITELLM_MASTER_KEY, OPENAI_API_KEY",
        "variables  STORE_MODEL_IN_DB, NUM_WORKERS",
        "file       /app/custom_callbacks.py -> config/custom_callbacks.py",
    ] {
        assert!(plan.lines().any(|found| found == line), "{line}\n{plan}");
    }
    for secret in [
        MASTER,
        "sk-salt-of-the-compose-file",
        "dbpassword9090",
        "sk-openai-key",
    ] {
        assert!(!plan.contains(secret), "{plan}");
    }
    let nothing = host.bash(Who::Root, "ls -A /opt");
    assert_eq!(nothing.stdout, "");

    // Another salt than the one that the stored credential is encrypted with.
    let other = "cd /srv/llm; LITELLM_SALT_KEY=sk-other docker compose up -d litellm; litellm-units import --dry-run 2>&1 || :; docker compose up -d litellm";
    let other = host.sh(Who::Root, other);
    assert!(
        other.contains("error: the key with which the old gateway encrypts its stored credentials is another one than Docker shows (LITELLM_SALT_KEY of the old gateway)\n"),
        "{other}"
    );

    // Nothing that could not work is begun.
    let import = format!("import --yes /srv/llm --accept-vulnerability {EXPLOITED}");
    let words: Vec<&str> = import.split(' ').collect();
    let (code, _, stderr) = host.units(Who::Root, &words).all();
    assert_eq!(code, 1);
    assert!(
        stderr.contains("error: Docker has set the policy of the firewall's chain FORWARD to DROP")
            && stderr.contains("hint: `iptables -I DOCKER-USER -i podman+ -j ACCEPT && iptables -I DOCKER-USER -o podman+ -j ACCEPT`"),
        "{stderr}"
    );
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    assert!(
        doctor.contains("FAILURE  firewall: Docker has set"),
        "{doctor}"
    );
    host.sh(Who::Root, "mkdir -p /etc/systemd/system/docker.service.d");
    host.write(
        Who::Root,
        "/etc/systemd/system/docker.service.d/podman.conf",
        DROP_IN,
    );
    host.sh(
        Who::Root,
        "systemctl daemon-reload; systemctl restart docker; cd /srv/llm; docker compose up -d",
    );
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    assert!(!doctor.contains("firewall"), "{doctor}");

    // A new gateway that does not become ready: the old one serves again.
    let script = format!("FAILPOINTS=import-not-ready=return litellm-units {import}");
    let (code, _, stderr) = host.bash(Who::Root, &script).all();
    assert!(
        code == 1 && stderr.contains("error: the import failed; the old gateway is running again"),
        "{stderr}"
    );
    serves(&host, OLD, key);
    refuses_connections(&host, NEW);

    // Interrupted before anything stopped.
    for point in ["import-written", "import-prepared"] {
        host.kill_at(Who::Root, point, "", &import);
        serves(&host, OLD, key);
        refuses_connections(&host, NEW);
    }

    // Interrupted while neither serves: systemd starts the old one.
    let said = host.interrupt_at(Who::Root, "import-stopped", "", &import);
    assert!(
        said.contains("the import from /srv/llm was interrupted: starting the old gateway again"),
        "{said}"
    );
    serves(&host, OLD, key);
    let (code, _, stderr) = host.units(Who::Root, &["up"]).all();
    assert!(
        code == 1
            && stderr.contains("error: the data of the gateway in /srv/llm is not imported, and that gateway is in use"),
        "{stderr}"
    );
    // Where systemd can't, it is shown, and the next command does so.
    host.kill_at(Who::Root, "import-swapped", "", &import);
    refuses_connections(&host, OLD);
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    assert!(
        doctor.contains("the import from /srv/llm was interrupted; to finish it or roll it back: `litellm-units up`"),
        "{doctor}"
    );

    imports_all(&host, &words);
    let modes = host.sh(
        Who::Root,
        "stat -c %a /opt/litellm-server/config/litellm-config.yaml /opt/litellm-server/config/custom_callbacks.py",
    );
    assert_eq!(modes, "600\n600\n");
    serves(&host, NEW, key);
    refuses_connections(&host, OLD);
    host.wait("the callback", Duration::from_secs(10), |host| {
        let journal = host.sh(Who::Root, "journalctl -o cat -u litellm");
        if journal.contains("custom callback: a call succeeded") {
            Ok(())
        } else {
            Err(journal)
        }
    });
    let (code, _, stderr) = host.units(Who::Root, &words).all();
    assert_eq!(
        (code, stderr.as_str()),
        (
            1,
            "error: /opt/litellm-server was imported from /srv/llm and is in use\n\
             hint: to return to the old gateway first: `litellm-units import --undo`\n"
        )
    );
    let made = post(
        &host,
        NEW,
        "/key/generate",
        MASTER,
        r#"{"key_alias": "later"}"#,
    );
    assert!(made.contains("\"key\":\"sk-"), "{made}");

    // Only the new one starts at boot.
    host.reboot();
    serves(&host, NEW, key);
    refuses_connections(&host, OLD);

    // Without the old containers, the new gateway goes on.
    host.sh(Who::Root, "cd /srv/llm; docker compose down");
    let (code, _, stderr) = host.units(Who::Root, &["import", "--undo"]).all();
    assert!(
        code == 1
            && stderr.contains("error: the old gateway can't be started, since Docker has no container llm-db-1 any more; nothing was stopped\n\
                                hint: create it: `docker compose up --no-start` in /srv/llm, then run `litellm-units import --undo` again"),
        "{stderr}"
    );
    serves(&host, NEW, key);
    host.sh(Who::Root, "cd /srv/llm; docker compose up --no-start");
    // One that can't start does not cost the new one.
    host.sh(
        Who::Root,
        "systemd-run --quiet --unit=taken --socket-property=ListenStream=0.0.0.0:4000 /usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:5000",
    );
    let (code, _, stderr) = host.units(Who::Root, &["import", "--undo"]).all();
    assert!(
        code == 1
            && stderr
                .contains("error: the old gateway can't be started; the new one is running again"),
        "{stderr}"
    );
    host.sh(Who::Root, "systemctl stop taken.socket");
    serves(&host, NEW, key);
    refuses_connections(&host, OLD);
    // Its database and its cache are stopped, and start with it.
    host.sh(Who::Root, "cd /srv/llm; docker compose stop");
    let said = host.interrupt_at(Who::Root, "import-new-stopped", "", "import --undo");
    assert!(
        said.contains("was interrupted: starting the old gateway again"),
        "{said}"
    );
    serves(&host, OLD, key);
    refuses_connections(&host, NEW);

    // What the new one had is kept beside that of the old one, also by an import that fails.
    let (code, _, stderr) = host.bash(Who::Root, &script).all();
    assert!(
        code == 1 && stderr.contains("error: the import failed; the old gateway is running again"),
        "{stderr}"
    );
    host.kill_at(Who::Root, "import-swapped", "", &import);
    host.units(Who::Root, &words).ok();
    serves(&host, NEW, key);
    let aliases = |database: &str| {
        let query = format!(
            r#"litellm-units exec -T postgres -- psql -U llmproxy -d {database} -Atc 'SELECT key_alias FROM "LiteLLM_VerificationToken"'"#
        );
        host.sh(Who::Root, &query)
    };
    let replaced = host.sh(
        Who::Root,
        "litellm-units exec -T postgres -- psql -U llmproxy -d litellm -Atc \"SELECT datname FROM pg_database WHERE datname LIKE 'litellm_units_replaced_%'\"",
    );
    assert!(!aliases("litellm").contains("later"));
    assert!(aliases(replaced.trim()).contains("later"), "{replaced}");
    // At the old one's address, so that no client changes.
    host.set_env(Who::Root, &[("LISTEN", "127.0.0.1:4000")]);
    host.units(Who::Root, &["apply"]).ok();
    serves(&host, OLD, key);
    refuses_connections(&host, NEW);
    host.units(Who::Root, &["import", "--undo"]).ok();
    serves(&host, OLD, key);
    let containers = host.sh(Who::Root, "podman ps -q | wc -l");
    assert_eq!(containers, "0\n");
}

//! The gateway as its users see it, from inside a host.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::host::{TestHost, Who};

/// What the mock model answers.
pub(crate) const HELLO: &str = "Hello from your LiteLLM gateway.\n";

/// Makes a key for the mock model, with the master key, which may be sealed.
#[track_caller]
pub(crate) fn new_key(host: &TestHost, who: Who) -> String {
    let words = ["unit", "secret", "litellm", "LITELLM_MASTER_KEY"];
    new_key_with(host, who, &host.units(who, &words).ok())
}

/// Makes a key for the mock model.
#[track_caller]
pub(crate) fn new_key_with(host: &TestHost, who: Who, master_key: &str) -> String {
    let script = r#"
        curl -sSf --max-time 20 -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
            -d '{"models":["hello"]}' http://127.0.0.1:24157/key/generate | jq -r .key
    "#;
    let ran = host.bash_with(who, script, &[master_key]);
    ran.ok().trim_end().to_owned()
}

/// Asks the mock model. Gives its answer, or what curl and jq said.
pub(crate) fn chat(host: &TestHost, who: Who, key: &str) -> Result<String, String> {
    let script = r#"
        curl -sSf --max-time 20 -H "Authorization: Bearer $1" -H 'Content-Type: application/json' \
            -d '{"model":"hello","messages":[{"role":"user","content":"hi"}]}' \
            http://127.0.0.1:24157/v1/chat/completions | jq -r '.choices[0].message.content'
    "#;
    let ran = host.bash_with(who, script, &[key]);
    if ran.code == 0 {
        Ok(ran.stdout)
    } else {
        Err(ran.stderr)
    }
}

/// Has the gateway take `mock_delay` from its clients, once it starts: LiteLLM from 1.108 on refuses
/// it otherwise.
pub(crate) fn allow_mock_delays(host: &TestHost, who: Who) {
    host.sh(
        who,
        r#"sed -i '/^general_settings:/a\  dangerously_allow_mock_testing_request_params: true' "$1/config/litellm-config.yaml""#,
    );
}

/// Requests of every kind, some each second, until they are told to end.
pub(crate) struct Load {
    child: Child,
    pid_file: String,
}

impl Load {
    /// Begins, and returns when the first answers have come.
    pub(crate) fn begin(host: &TestHost, who: Who, key: &str) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load");
        host.put(&program, "/usr/local/bin/load");
        let pid_file = format!("/tmp/load-{}", who.user());
        let script = "echo $$ >\"$1\"; exec perl /usr/local/bin/load \"$2\" 4";
        let child = host
            .command(who, &["bash", "-c", script, "load", &pid_file, key])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let load = Self { child, pid_file };
        host.wait("requests", Duration::from_secs(20), |host| {
            let sent = host.sh(who, "ss -Htn state established '( dport = :24157 )'");
            if sent.lines().count() > 3 {
                Ok(())
            } else {
                Err(sent)
            }
        });
        load
    }

    /// Waits for the last answers. Fails if a request failed, or if a kind is missing.
    #[track_caller]
    pub(crate) fn assert_no_failure(self, host: &TestHost, who: Who) {
        let failures = self.end(host, who);
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Waits for the last answers. Returns a line for each request that failed, with the host's uptime when it was sent:
    /// `new at 63.52 after 0.31 s: …`. Fails if a kind is missing.
    #[track_caller]
    pub(crate) fn end(self, host: &TestHost, who: Who) -> Vec<String> {
        host.sh(who, &format!("kill -TERM $(cat {})", self.pid_file));
        let output = self.child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{complaints}");
        eprintln!("{told}");
        let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split(' ').collect()).collect();
        let (sums, failures) = lines.split_at(lines.len().min(4));
        let kinds: Vec<&str> = sums.iter().map(|words| words[0]).collect();
        assert_eq!(kinds, ["kept", "new", "slow", "stream"], "{told}");
        for words in sums {
            assert!(words[1].parse::<usize>().unwrap() > 1, "{told}");
        }
        failures.iter().map(|words| words.join(" ")).collect()
    }
}

/// A client that makes keys, one after the other, and keeps those that the gateway acknowledged.
pub(crate) struct Writer {
    child: Child,
}

impl Writer {
    const END: &str = "/var/tmp/writer-end";

    pub(crate) fn begin(host: &TestHost, who: Who) -> Self {
        // A request that was not answered may be in the database or not.
        host.sh(who, &format!("rm -f {}", Self::END));
        let script = r#"
            key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
            until [ -e "$1" ]; do
                curl -sf --max-time 60 -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
                    -d '{"models":["hello"]}' http://127.0.0.1:24157/key/generate | jq -r .key || :
                sleep 0.2
            done
        "#;
        let words = [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script,
            "writer",
            Self::END,
        ];
        let child = host
            .command(who, &words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// Ends it, unless a loss of power has, and compares with the database. Returns the number of writes.
    #[track_caller]
    pub(crate) fn assert_nothing_lost(self, host: &TestHost, who: Who) -> usize {
        let keys = self.end(host, who);
        assert!(!keys.is_empty());
        let found = sql(host, who, &count_of(&keys));
        assert_eq!(found, keys.len().to_string());
        eprintln!("{} acknowledged writes", keys.len());
        keys.len()
    }

    /// Ends it, unless a loss of power has. Returns the keys that the gateway acknowledged.
    #[track_caller]
    pub(crate) fn end(self, host: &TestHost, who: Who) -> Vec<String> {
        host.sh(who, &format!("touch {}", Self::END));
        let said = self.child.wait_with_output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        // A loss of power may cut the last line off: a whole key has 25 characters.
        said.lines()
            .filter(|key| key.starts_with("sk-") && key.len() == 25)
            .map(str::to_owned)
            .collect()
    }
}

/// SQL that counts how many of these keys the database has.
pub(crate) fn count_of(keys: &[String]) -> String {
    let hashes = keys.iter().map(|key| format!("sha256('{key}')"));
    format!(
        r#"select count(*) from "LiteLLM_VerificationToken" where decode(token, 'hex') in ({})"#,
        hashes.collect::<Vec<_>>().join(",")
    )
}

/// Waits until the mock model answers: the gateway is back, and its key is in the database.
#[track_caller]
pub(crate) fn wait_for_chat(host: &TestHost, who: Who, key: &str, patience: Duration) {
    host.wait("a chat completion", patience, |host| {
        let answer = chat(host, who, key)?;
        assert_eq!(answer, HELLO);
        Ok(())
    });
}

/// `db` of `/health/readiness`.
#[track_caller]
pub(crate) fn database_state(host: &TestHost, who: Who) -> String {
    host.sh(
        who,
        "curl -sSf --max-time 20 http://127.0.0.1:24157/health/readiness | jq -r .db",
    )
}

/// The number of keys in PostgreSQL, without the gateway's help.
#[track_caller]
pub(crate) fn stored_keys(host: &TestHost, who: Who) -> usize {
    let count = r#"select count(*) from "LiteLLM_VerificationToken""#;
    sql(host, who, count).parse().unwrap()
}

/// What PostgreSQL answers, without the gateway's help.
#[track_caller]
pub(crate) fn sql(host: &TestHost, who: Who, statement: &str) -> String {
    let psql = r#"psql -qAtU "$POSTGRES_USER" -d "$POSTGRES_DB" -c "$1""#;
    let words = [
        "podman",
        "exec",
        "litellm-postgres",
        "sh",
        "-c",
        psql,
        "sql",
        statement,
    ];
    host.run(who, &words).ok().trim_end().to_owned()
}

/// The main process of a container, seen from the host.
#[track_caller]
pub(crate) fn process(host: &TestHost, who: Who, container: &str) -> u32 {
    running_process(host, who, container).unwrap()
}

/// As [`process`], for a container that may not run at the moment.
pub(crate) fn running_process(host: &TestHost, who: Who, container: &str) -> Result<u32, String> {
    let ran = host.run(
        who,
        &["podman", "inspect", "-f", "{{.State.Pid}}", container],
    );
    match ran.stdout.trim().parse() {
        Ok(0) | Err(_) => Err(format!("{container} does not run: {}", ran.stderr)),
        Ok(process) => Ok(process),
    }
}

/// The environment of a container, byte for byte.
#[track_caller]
pub(crate) fn environment(host: &TestHost, who: Who, container: &str) -> Vec<(String, String)> {
    let text = if container == "litellm-redis" {
        // Redis writes its title over the environment that the kernel shows.
        host.sh(who, &format!("podman exec {container} env -0"))
    } else {
        let process = process(host, who, container);
        host.sh(Who::Root, &format!("cat /proc/{process}/environ"))
    };
    text.split_terminator('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// One variable of [`environment`].
#[track_caller]
pub(crate) fn variable(host: &TestHost, who: Who, container: &str, name: &str) -> Option<String> {
    environment(host, who, container)
        .into_iter()
        .find(|(found, _)| found == name)
        .map(|(_, value)| value)
}

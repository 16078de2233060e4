//! A real host: systemd as PID 1, Podman with Quadlet, booted for one test (tests/host/README.md).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use litellm_units::deployment::env_file::EnvFile;

/// Who runs a command in the host, and so which systemd and which Podman it addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// root: the system's manager.
    Root,
    /// An unprivileged user who lingers.
    Operator,
}

/// What attackers exploit of releases before 1.84.0: accepted in `.env` where a test needs one.
pub(crate) const EXPLOITED: &str = "CVE-2026-42208,CVE-2026-42271,CVE-2026-59822";

/// A booted host; its disk goes with it when it is dropped.
#[derive(Debug)]
pub(crate) struct TestHost {
    name: String,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// stdout of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self.stdout
    }

    /// All of it, for a comparison of the whole.
    pub(crate) fn all(self) -> (i32, String, String) {
        (self.code, self.stdout, self.stderr)
    }
}

impl TestHost {
    /// Boots a host with the program installed as a package would; `name` is the test's own.
    pub(crate) fn boot(name: &str) -> Self {
        Self::boot_with(name, &[])
    }

    /// As [`TestHost::boot`], for a test in which mostly `who` runs containers.
    pub(crate) fn boot_for(who: Who, name: &str) -> Self {
        match who {
            Who::Root => Self::boot(name),
            Who::Operator => Self::boot_with(name, &["--rootless"]),
        }
    }

    /// As [`TestHost::boot`], with further words for `tests/host/host boot`.
    pub(crate) fn boot_with(name: &str, options: &[&str]) -> Self {
        // Two runs of the tests (two checkouts, say) must not meet.
        let name = format!("{name}-{}", std::process::id());
        let suite = std::env::var("LITELLM_UNITS_TEST_SUITE").unwrap_or_else(|_| "trixie".into());
        let host = Self { name };
        let owner = std::process::id().to_string();
        let boot = ["boot", &host.name, "--suite", &suite, "--owner", &owner];
        Self::script(&[&boot, options].concat());
        let binary = std::env::var("LITELLM_UNITS_TEST_BINARY")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_litellm-units").into());
        host.put(Path::new(&binary), "/usr/bin/litellm-units");
        host
    }

    #[track_caller]
    fn script(arguments: &[&str]) -> String {
        let output = Command::new(script())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "tests/host/host {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Copies a file or directory into the host.
    pub(crate) fn put(&self, source: &Path, destination: &str) {
        Self::script(&["put", &self.name, source.to_str().unwrap(), destination]);
    }

    /// As [`TestHost::put`]; the copy belongs to `who`.
    pub(crate) fn put_for(&self, who: Who, source: &Path, destination: &str) {
        let source = source.to_str().unwrap();
        Self::script(&[
            "put",
            &self.name,
            "--owner",
            who.user(),
            source,
            destination,
        ]);
    }

    /// Shuts the host down and boots it again; its disk is kept.
    pub(crate) fn reboot(&self) {
        Self::script(&["reboot", &self.name]);
    }

    /// Takes the power away and boots the host again; its disk is kept.
    pub(crate) fn crash(&self) {
        Self::script(&["crash", &self.name]);
    }

    /// A command in the host, for tests that need pipes or a child.
    pub(crate) fn command(&self, who: Who, words: &[&str]) -> Command {
        let mut command = Command::new(script());
        command.args(["exec", &self.name]);
        if who == Who::Operator {
            command.args(["--user", "operator"]);
        }
        command.arg("--").args(words).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, who: Who, words: &[&str]) -> Ran {
        let Output {
            status,
            stdout,
            stderr,
        } = self.command(who, words).output().unwrap();
        Ran {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Runs a script of `bash` to its end; it stops at the first failure.
    pub(crate) fn bash(&self, who: Who, script: &str) -> Ran {
        self.bash_with(who, script, &[])
    }

    /// The same with `$1` and so on.
    pub(crate) fn bash_with(&self, who: Who, script: &str, arguments: &[&str]) -> Ran {
        let words = ["bash", "-euo", "pipefail", "-c", script, "script"];
        self.run(who, &[&words, arguments].concat())
    }

    /// stdout of a script of `bash` that must succeed. `$1` is the deployment directory.
    #[track_caller]
    pub(crate) fn sh(&self, who: Who, script: &str) -> String {
        self.bash_with(who, script, &[who.deployment()]).ok()
    }

    /// Writes a file, whose mode and owner stay if it is there already.
    #[track_caller]
    pub(crate) fn write(&self, who: Who, path: &str, text: &str) {
        let mut child = self
            .command(who, &["sh", "-c", "cat >\"$1\"", "write", path])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(child.wait().unwrap().success(), "can't write {path}");
    }

    /// The `.env` of the default deployment.
    #[track_caller]
    pub(crate) fn env(&self, who: Who) -> EnvFile {
        EnvFile::parse(&self.sh(who, "cat \"$1/.env\"")).unwrap()
    }

    /// Gives variables values in the `.env` of the default deployment.
    #[track_caller]
    pub(crate) fn set_env(&self, who: Who, values: &[(&str, &str)]) {
        let mut env = self.env(who);
        for (name, value) in values {
            env.set(name, value).unwrap();
        }
        self.write(who, &format!("{}/.env", who.deployment()), env.text());
    }

    /// `systemctl VERB UNIT…` of `who`, which must succeed.
    #[track_caller]
    pub(crate) fn systemctl(&self, who: Who, words: &[&str]) {
        let systemctl: &[&str] = match who {
            Who::Root => &["systemctl"],
            Who::Operator => &["systemctl", "--user"],
        };
        self.run(who, &[systemctl, words].concat()).ok();
    }

    /// From now on the gateway restarts without a second one, as on a host with too little memory for
    /// it: for tests of something else, which it would only make longer.
    #[track_caller]
    pub(crate) fn without_standby(&self, who: Who) {
        self.systemctl(who, &["mask", "--runtime", "litellm-standby.service"]);
    }

    /// What the manager of `who` says about a unit.
    #[track_caller]
    pub(crate) fn property(&self, who: Who, unit: &str, name: &str) -> String {
        let script = format!("{} show --value -p {name} {unit}", who.systemctl());
        self.sh(who, &script).trim_end().to_owned()
    }

    /// Runs the program under test.
    pub(crate) fn units(&self, who: Who, words: &[&str]) -> Ran {
        self.run(who, &[&["litellm-units"], words].concat())
    }

    /// Runs the program until it is killed at a fault point; `faults` are more of these, in the
    /// grammar of the crate fail. Nothing follows, as if the host had lost its power.
    #[cfg(feature = "fault-points")]
    #[track_caller]
    pub(crate) fn kill_at(&self, who: Who, point: &str, faults: &str, words: &str) {
        let script = format!(
            r#"units=/run/systemd/system
            [ "$USER" = root ] || units=$XDG_RUNTIME_DIR/systemd/user
            install -d "$units/litellm-recovery.service.d"
            printf '[Unit]\nConditionPathExists=/nonexistent\n' >"$units/litellm-recovery.service.d/off.conf"
            {systemctl} daemon-reload
            status=0; {killed} || status=$?
            rm -r "$units/litellm-recovery.service.d"; {systemctl} daemon-reload; test $status = 137"#,
            systemctl = who.systemctl(),
            killed = killed(point, faults, words),
        );
        self.sh(who, &script);
    }

    /// Runs the program until it is killed at a fault point, and waits until systemd has completed what it left.
    /// Returns what was said of that.
    #[cfg(feature = "fault-points")]
    #[track_caller]
    pub(crate) fn interrupt_at(&self, who: Who, point: &str, faults: &str, words: &str) -> String {
        let unit = "litellm-recovery.service";
        let begin = self.sh(who, "date +%s.%N");
        let killed = killed(point, faults, words);
        self.sh(
            who,
            &format!("status=0; {killed} || status=$?; test $status = 137"),
        );
        self.wait(unit, Duration::from_secs(300), |host| {
            match host.property(who, unit, "ActiveState").as_str() {
                "inactive" => Ok(()),
                state => Err(state.to_owned()),
            }
        });
        let user = if who == Who::Root { "" } else { "--user" };
        self.sh(
            who,
            &format!(
                "journalctl {user} -o cat -u {unit} --since @{}",
                begin.trim()
            ),
        )
    }

    /// Tries `probe` until it succeeds or `patience` is over; its error is what is still missing.
    #[track_caller]
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut probe: impl FnMut(&Self) -> Result<T, String>,
    ) -> T {
        let deadline = Instant::now() + patience;
        loop {
            match probe(self) {
                Ok(found) => return found,
                Err(missing) => assert!(
                    Instant::now() < deadline,
                    "waited {patience:?} in vain for {what}: {missing}\n{}",
                    self.look_around()
                ),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What may explain a failure: failed units and the end of the journal.
    fn look_around(&self) -> String {
        let script = "systemctl --failed --no-legend; journalctl --no-pager -o short-precise -n 60";
        self.bash(Who::Root, script).stdout
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        // LITELLM_UNITS_KEEP_HOST leaves the host of a failed test for a look around.
        if std::thread::panicking() && std::env::var_os("LITELLM_UNITS_KEEP_HOST").is_some() {
            eprintln!("kept: tests/host/host exec {} -- bash", self.name);
            return;
        }
        let _ = Command::new(script())
            .args(["stop", &self.name])
            .stdin(Stdio::null())
            .status();
    }
}

impl Who {
    /// The user's name.
    pub(crate) fn user(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Operator => "operator",
        }
    }

    /// The deployment directory of a default installation.
    pub(crate) fn deployment(self) -> &'static str {
        match self {
            Self::Root => "/opt/litellm-server",
            Self::Operator => "/home/operator/.local/share/litellm-server",
        }
    }

    /// Quadlet's directory.
    pub(crate) fn quadlets(self) -> &'static str {
        match self {
            Self::Root => "/etc/containers/systemd",
            Self::Operator => "/home/operator/.config/containers/systemd",
        }
    }

    /// systemd's own directory.
    pub(crate) fn units(self) -> &'static str {
        match self {
            Self::Root => "/etc/systemd/system",
            Self::Operator => "/home/operator/.config/systemd/user",
        }
    }

    /// `systemctl` of this scope.
    pub(crate) fn systemctl(self) -> &'static str {
        match self {
            Self::Root => "systemctl",
            Self::Operator => "systemctl --user",
        }
    }
}

/// A program of this machine that `tests/run` has installed.
pub(crate) fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut places = std::env::split_paths(&path).map(|place| place.join(name));
    let found = places.find(|place| place.exists());
    assert!(
        found.is_some(),
        "{name} is missing: `tests/run --release` installs it"
    );
    found.unwrap()
}

/// Connects hosts with each other: the first one is 10.98.0.1, and so on.
pub(crate) fn lan(hosts: &[&TestHost]) {
    let names = hosts.iter().map(|host| host.name.as_str());
    let words: Vec<&str> = std::iter::once("lan").chain(names).collect();
    TestHost::script(&words);
}

#[cfg(feature = "fault-points")]
fn killed(point: &str, faults: &str, words: &str) -> String {
    format!("FAILPOINTS='{faults}' LITELLM_UNITS_KILL_AT={point} litellm-units {words}")
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/host")
}

//! The program itself, where it needs neither Podman nor systemd.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use litellm_units::cli::Cli;
use litellm_units::deployment::images_lock::ImagesLock;
use litellm_units::deployment::settings::Settings;
use litellm_units::host::paths::Paths;
use litellm_units::host::paths::Scope;
use litellm_units::host::podman::PodmanVersion;
use litellm_units::host::systemd::Features;
use litellm_units::quadlet::{self, Place};

use crate::support::host::Ran;
use crate::support::tree;

/// A home directory, and an environment that knows nothing else.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_litellm-units"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.0.path())
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
            .current_dir(self.0.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs the program; the home directory is `~` in what it says.
    fn run(&self, words: &[&str]) -> Ran {
        let output = self.command(words).output().unwrap();
        let text = |bytes| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(self.0.path().to_str().unwrap(), "~")
        };
        Ran {
            code: output.status.code().unwrap(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Writes the `.env` of the user's deployment.
    fn env(&self, text: &str) {
        let path = self.path(".local/share/litellm-server/.env");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

const ENV: &str = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-S3CR3T
LITELLM_SALT_KEY=sk-S3CR3T
POSTGRES_USER=litellm
POSTGRES_PASSWORD='S3CR3T \"$x'
POSTGRES_DB=litellm
REDIS_PASSWORD=S3CR3T
";

#[track_caller]
fn assert_ran(ran: &Ran, code: i32, stdout: &str, stderr: &str) {
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (code, stdout, stderr)
    );
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

fn help_of_all(command: &clap::Command, words: &[&str], home: &Home) {
    let ran = home.run(&[words, &["--help"]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
    let usage = format!("Usage: {}", [&["litellm-units"], words].concat().join(" "));
    assert!(
        ran.stdout.contains(&usage),
        "{words:?} --help:\n{}",
        ran.stdout
    );
    let wide = ran.stdout.lines().find(|line| line.chars().count() > 100);
    assert_eq!(wide, None, "{words:?} --help");
    for subcommand in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        help_of_all(
            subcommand,
            &[words, &[subcommand.get_name()]].concat(),
            home,
        );
    }
}

#[test]
fn every_command_has_a_help() {
    help_of_all(&Cli::command(), &[], &Home::new());
}

#[test]
fn version() {
    let version = format!("litellm-units {}\n", env!("CARGO_PKG_VERSION"));
    assert_ran(&Home::new().run(&["--version"]), 0, &version, "");
}

#[test]
fn wrong_usage_exits_with_2() {
    let home = Home::new();
    for (words, first_line) in [
        (
            &["frobnicate"][..],
            "error: unrecognized subcommand 'frobnicate'",
        ),
        (
            &["generate", "--user", "--system"],
            "error: the argument '--user' cannot be used with '--system'",
        ),
        (
            &["generate", "--check", "--dry-run"],
            "error: the argument '--check' cannot be used with '--dry-run'",
        ),
        (
            &["generate", "--podman", "5.4"],
            "error: the following required arguments were not provided:",
        ),
        (
            &["generate", "--output", "out", "--podman", "new"],
            "error: invalid value 'new' for '--podman <VERSION>': not a version such as 5.4",
        ),
        (
            &["generate", "--output", "out", "--podman", "4.3.1"],
            "error: invalid value '4.3.1' for '--podman <VERSION>': Podman 4.3 is too old: the units need 4.9 or newer",
        ),
        (
            &["up", "--timeout", "0"],
            "error: invalid value '0' for '--timeout <SECONDS>': not a whole number of seconds above 0",
        ),
    ] {
        let ran = home.run(words);
        let first = ran.stderr.lines().next().unwrap_or_default();
        assert_eq!(
            (ran.code, ran.stdout.as_str(), first),
            (2, "", first_line),
            "{words:?}"
        );
    }
    let ran = home.run(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert_eq!(tree(home.0.path()), "");
}

#[test]
fn a_deployment_directory_that_units_can_not_name_is_refused() {
    let home = Home::new();
    for (directory, reason) in [
        ("here", "is not an absolute path"),
        ("/", "is not a directory of its own"),
        ("/srv/../etc", "is not a directory of its own"),
        (
            "/srv/a:b",
            "holds ':', which can't be written in a unit file",
        ),
        (
            "/srv/a%b",
            "holds '%', which can't be written in a unit file",
        ),
        (
            "/srv/a\nb",
            "holds '\\n', which can't be written in a unit file",
        ),
        (
            "/srv/a\"b",
            "holds '\"', which can't be written in a unit file",
        ),
    ] {
        let stderr = format!(
            "error: the deployment directory {directory} {reason}\nhint: choose another with --litellm-dir or LITELLM_DIR\n"
        );
        assert_ran(
            &home.run(&["generate", "--output", "out", "--litellm-dir", directory]),
            78,
            "",
            &stderr,
        );
        let mut command = home.command(&["generate", "--output", "out"]);
        let output = command.env("LITELLM_DIR", directory).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), stderr);
    }
    assert_eq!(tree(home.0.path()), "");
}

#[test]
fn without_a_home_there_is_no_place_for_a_users_units() {
    let home = Home::new();
    let mut command = home.command(&["generate", "--user", "--output", "out"]);
    let output = command.env_remove("HOME").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: HOME is not set to an absolute path, so there is no place for a user's units\n\
         hint: log in as that user, or set HOME\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

/// What `--output` should have written into `directory`.
fn expected_output(
    scope: Scope,
    podman: &str,
    env: &str,
    deployment: &Path,
) -> Vec<(String, String)> {
    let paths = Paths::detect(scope, Some(deployment.into())).unwrap();
    let settings = Settings::from_text(env, &paths.env_file()).unwrap();
    let host = quadlet::RenderContext {
        paths: &paths,
        podman: PodmanVersion::parse(podman).unwrap(),
        systemd: Features::DEFAULT,
        program: Path::new("/usr/bin/litellm-units"),
        images: &ImagesLock::default(),
    };
    let mut files = quadlet::render(&settings, &host).unwrap();
    files.push(quadlet::target(scope));
    let name = |place, name| match place {
        Place::Quadlet => format!("containers/{name}"),
        Place::Unit => format!("systemd/{name}"),
    };
    files
        .into_iter()
        .map(|file| (name(file.place, file.name), file.text))
        .collect()
}

#[test]
fn output_renders_without_a_host() {
    let home = Home::new();
    home.env(ENV);
    let deployment = home.path(".local/share/litellm-server");
    let before = tree(&deployment);
    for (scope, option) in [(Scope::User, "--user"), (Scope::System, "--system")] {
        for podman in ["5.4", "4.9"] {
            let out = format!("out{option}-{podman}");
            let directory = deployment.to_str().unwrap();
            let words = [
                "generate",
                option,
                "--litellm-dir",
                directory,
                "--output",
                &out,
                "--podman",
                podman,
            ];
            let expected = expected_output(scope, podman, ENV, &deployment);
            let stdout: String = expected
                .iter()
                .map(|(name, _)| format!("{out}/{name}\n"))
                .collect();
            // The second time finds its own files.
            for _ in 0..2 {
                assert_ran(&home.run(&words), 0, &stdout, "");
                for (name, text) in &expected {
                    assert_eq!(
                        fs::read_to_string(home.path(&out).join(name)).unwrap(),
                        *text
                    );
                }
                assert_eq!(tree(&home.path(&out)).matches(" containers/").count(), 6);
                assert_eq!(tree(&home.path(&out)).matches(" systemd/").count(), 7);
            }
        }
    }
    assert_eq!(
        tree(&deployment),
        before,
        "--output leaves the deployment alone"
    );
}

#[test]
fn output_needs_no_deployment_either() {
    let home = Home::new();
    let ran = home.run(&["generate", "--user", "--output", "out"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str(), ran.stdout.lines().count()),
        (0, "", 13)
    );
    assert!(!home.path(".local").exists());
}

#[test]
fn a_wrong_env_is_refused_with_file_and_line_and_nothing_is_written() {
    let home = Home::new();
    home.env(&ENV.replace("v1.108.14", "latest"));
    let before = tree(home.0.path());
    for words in [
        &["generate", "--user", "--output", "out"][..],
        &["pull", "--user"],
    ] {
        assert_ran(
            &home.run(words),
            78,
            "",
            "error: ~/.local/share/litellm-server/.env, line 1: LITELLM_IMAGE can't be used: \"ghcr.io/berriai/litellm:latest\" has the floating tag \"latest\"\n\
             hint: name a version, e.g. :v1.108.14, or add the digest (@sha256:…)\n",
        );
    }
    assert_eq!(tree(home.0.path()), before);
}

#[test]
fn without_podman_nothing_is_begun() {
    let home = Home::new();
    for words in [
        &["generate", "--user"][..],
        &["generate", "--user", "--check"],
        &["up", "--user"],
    ] {
        assert_ran(
            &home.run(words),
            1,
            "",
            "error: Podman is not installed\nhint: install it: apt install podman, or dnf install podman\n",
        );
    }
    assert_eq!(tree(home.0.path()), "");
}

#[test]
fn without_a_bus_systemd_can_not_be_asked() {
    let home = Home::new();
    for verb in ["status", "down"] {
        assert_ran(
            &home.run(&[verb, "--system"]),
            1,
            "",
            "error: can't reach systemd over the system D-Bus: failed to connect to `unix:path=/nonexistent`: No such file or directory (os error 2)\n\
             hint: check that this host booted with systemd and that dbus runs: systemctl status dbus\n",
        );
    }
}

#[test]
fn a_secret_is_given_to_podman_as_it_is() {
    let home = Home::new();
    home.env(ENV);
    let secret = |service, name| home.run(&["unit", "secret", service, name, "--user"]);
    assert_ran(
        &secret("postgres", "POSTGRES_PASSWORD"),
        0,
        "S3CR3T \"$x",
        "",
    );
    assert_ran(
        &secret("redis", "redis.conf"),
        0,
        "requirepass \"\\x53\\x33\\x43\\x52\\x33\\x54\"\nuser health on nopass -@all +ping\n",
        "",
    );
    assert_ran(
        &secret("redis", "POSTGRES_PASSWORD"),
        78,
        "",
        "error: ~/.local/share/litellm-server/.env gives litellm-redis no POSTGRES_PASSWORD\n\
         hint: restart the unit to use what the file says now: litellm-redis.service\n",
    );
}

/// `litellm-units … | head -1` is no failure that needs words.
#[test]
fn a_closed_stdout_is_not_talked_about() {
    let home = Home::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = home
        .command(&["generate", "--user", "--output", "out"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

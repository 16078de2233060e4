//! The program itself, where it needs neither Podman nor systemd.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory;
use litellm_units::cli::Cli;
use litellm_units::deployment::images_lock::ImagesLock;
use litellm_units::deployment::settings::Settings;
use litellm_units::host::capacity::Capacity;
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

fn visit_commands(command: &clap::Command, words: &[&str], visit: &mut dyn FnMut(&[&str])) {
    visit(words);
    for subcommand in command
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
    {
        visit_commands(
            subcommand,
            &[words, &[subcommand.get_name()]].concat(),
            visit,
        );
    }
}

/// What is wrong with the lines of a help that is `width` columns wide.
fn help_faults(help: &str, width: usize) -> Vec<String> {
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let mut faults = Vec::new();
    for line in lines.iter().filter(|line| line.chars().count() > width) {
        faults.push(format!("wider than {width}: {line}"));
    }
    for pair in lines.windows(2) {
        let [line, next] = [pair[0], pair[1]];
        let word = next.split_whitespace().next().unwrap_or_default();
        let fits = line.chars().count() + 1 + word.chars().count() <= width;
        if continues(line, next) && fits {
            faults.push(format!("broken after: {line}"));
        }
    }
    let examples = lines
        .iter()
        .skip_while(|line| **line != "Examples:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    for line in examples
        .filter(|line| !line.contains("  litellm-units ") && !line.contains("| litellm-units "))
    {
        faults.push(format!("a broken example: {line}"));
    }
    faults
}

/// Whether `next` continues the text of `line`, rather than being an entry, an example or a paragraph.
fn continues(line: &str, next: &str) -> bool {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let text = line.trim_start();
    // Behind the name of an option or a command, two spaces away.
    let column = text
        .find("  ")
        .map(|at| &text[at..])
        .map_or(indent(line), |rest| line.len() - rest.trim_start().len());
    let is_example =
        |line: &str| line.starts_with("  litellm-units ") || line.contains("| litellm-units ");
    let is_entry = next.trim_start().starts_with('-');
    !line.is_empty()
        && !next.is_empty()
        && indent(next) == column
        && !is_entry
        && !is_example(next)
        && !line.starts_with("Usage: ")
}

#[test]
fn faults_of_a_help_are_found() {
    assert_eq!(
        help_faults(
            "Usage: x\n\nOptions:\n  -a, --all  One sentence\n             that is broken\n  -b         Another\n\n\
             A text that is\nbroken, too.\n\n\
             A sentence that is wider than the width of the help.\n\n\
             Examples:\n  litellm-units up --some-option\n  --wrapped\n",
            40
        ),
        [
            "wider than 40: A sentence that is wider than the width of the help.",
            "broken after:   -a, --all  One sentence",
            "broken after: A text that is",
            "a broken example:   --wrapped",
        ]
    );
}

#[test]
fn every_command_has_a_help_that_fits_the_terminal() {
    let home = Home::new();
    let mut faults = Vec::new();
    visit_commands(&Cli::command(), &[], &mut |words| {
        for (option, columns) in [("-h", 80), ("--help", 80), ("-h", 120), ("--help", 120)] {
            let mut command = home.command(&[words, &[option]].concat());
            let output = command
                .env("COLUMNS", columns.to_string())
                .output()
                .unwrap();
            let help = String::from_utf8(output.stdout).unwrap();
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{words:?}"
            );
            let usage = format!("Usage: {}", [&["litellm-units"], words].concat().join(" "));
            assert!(help.contains(&usage), "{words:?} {option}:\n{help}");
            // No wider than can be read.
            let width = columns.min(100);
            faults.extend(
                help_faults(&help, width)
                    .into_iter()
                    .map(|fault| format!("{} {option}: {fault}", words.join(" "))),
            );
        }
    });
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
        ("/", "must be a directory below /, written without `..`"),
        (
            "/srv/../etc",
            "must be a directory below /, written without `..`",
        ),
        ("/srv/a:b", "contains ':', which a unit file can't contain"),
        ("/srv/a%b", "contains '%', which a unit file can't contain"),
        (
            "/srv/a\nb",
            "contains '\\n', which a unit file can't contain",
        ),
        (
            "/srv/a\"b",
            "contains '\"', which a unit file can't contain",
        ),
    ] {
        let stderr = format!(
            "error: the deployment directory {directory} {reason}\nhint: choose another one with `--litellm-dir DIR` or LITELLM_DIR\n"
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
        "error: HOME is not an absolute path, so the directory of the user's units is not known\n\
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
        capacity: Capacity::read(),
        extras: &[],
        entrance: &litellm_units::deployment::entrance::Files::default(),
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
                assert_eq!(tree(&home.path(&out)).matches(" systemd/").count(), 12);
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
        (0, "", 18)
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
            "error: Podman is not installed\nhint: install it: `apt install podman` or `dnf install podman`\n",
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
             hint: check that this host booted with systemd, and that D-Bus runs: `systemctl status dbus`\n",
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
        "requirepass \"\\x53\\x33\\x43\\x52\\x33\\x54\"\nuser health on nopass -@all +ping\nsave \"\"\n",
        "",
    );
    assert_ran(
        &secret("redis", "POSTGRES_PASSWORD"),
        78,
        "",
        "error: ~/.local/share/litellm-server/.env gives litellm-redis no POSTGRES_PASSWORD\n\
         hint: restart the unit to use the current file: litellm-redis.service\n",
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

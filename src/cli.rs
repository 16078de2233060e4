//! The command line: types only.

pub mod backup;
pub mod key;
pub mod secrets;
pub mod upgrade;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::host::podman::PodmanVersion;
use crate::host::ssh::RemoteHost;
use crate::host::systemd::Features;
use crate::operations::stack::LogSource;
use crate::service::Service;

/// Run a LiteLLM gateway, with PostgreSQL and Redis, as Podman Quadlet and systemd units.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit status: 0 success; 1 failure, or drift with --check; 2 wrong usage; 3 stopped; 4 degraded; 5 newer release and 6 known vulnerabilities (upgrade --check); 78 wrong configuration.\nFirst steps: litellm-units up"
)]
pub struct Cli {
    /// Where and as whom.
    #[command(flatten)]
    pub target: Target,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which deployment a command is about.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Which deployment")]
pub struct Target {
    /// Deployment directory [default: /opt/litellm-server; rootless: ~/.local/share/litellm-server]
    #[arg(long, env = "LITELLM_DIR", value_name = "DIR", global = true)]
    pub litellm_dir: Option<PathBuf>,
    /// Use the calling user's systemd and rootless Podman (the default for everyone but root)
    #[arg(long, global = true, conflicts_with = "system")]
    pub user: bool,
    /// Use the system's systemd and rootful Podman (the default for root)
    #[arg(long, global = true)]
    pub system: bool,
    /// Do it on another machine, over ssh
    #[arg(long, value_name = "USER@HOST", global = true)]
    pub host: Option<RemoteHost>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prepare the deployment directory and install the units; start nothing
    Generate(Generate),
    /// Generate, pull what is missing, start everything and wait until the gateway is ready
    Up(Up),
    /// Stop everything; data stays
    Down(Down),
    /// Show each unit's state, health, uptime, restarts, memory and image
    #[command(visible_alias = "ps")]
    Status(Status),
    /// Put an edit of .env or config/ into force; if the gateway does not get ready with it, put
    /// the last good configuration back
    Apply(Apply),
    /// Start services that are stopped
    Start(Units),
    /// Stop services
    Stop(Units),
    /// Restart services with what .env and config/ say now
    Restart(Restart),
    /// Show the services' logs from the journal
    Logs(Logs),
    /// Run a command in a service's container
    Exec(Exec),
    /// Ask the gateway whether it is ready
    Health(Health),
    /// Pull the images that .env names
    Pull(Pull),
    /// Have Podman take only images that LiteLLM signed
    Trust(Trust),
    /// Make, list, change and revoke the gateway's keys
    #[command(subcommand)]
    Key(key::Key),
    /// Rotate secrets, seal them, and look for them where they do not belong
    #[command(subcommand)]
    Secrets(secrets::Secrets),
    /// Set the login and the public address of the web interface
    Ui(secrets::Ui),
    /// Back up the database and the configuration while the gateway serves
    Backup(backup::Backup),
    /// Put the data of a backup back, in the place of what the gateway has now
    Restore(backup::Restore),
    /// Run another release of the gateway; if anything fails, the present one serves again
    Upgrade(upgrade::Upgrade),
    /// Go back to an earlier release
    Rollback(upgrade::Rollback),
    /// List the releases that ran, and the upgrades that failed
    History(upgrade::History),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the effective settings, or check the gateway's configuration
    Config(Config),
    /// Check every precondition and every known trap, and say what mends each fault
    Doctor(Doctor),
    /// What the units call
    #[command(hide = true, subcommand)]
    Unit(Unit),
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units generate\n  litellm-units generate --dry-run\n  litellm-units generate --check && echo up to date\n  litellm-units generate --output ./units --podman 4.9"
)]
pub struct Generate {
    /// Print what would change as a unified diff, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Change nothing; exit with 1 if anything would change
    #[arg(long, conflicts_with = "dry_run")]
    pub check: bool,
    /// Write the units into DIR instead of installing them; needs neither Podman nor systemd
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dry_run", "check"])]
    pub output: Option<PathBuf>,
    /// With --output: the version of Podman to write for
    #[arg(long, value_name = "VERSION", requires = "output", value_parser = podman_version)]
    pub podman: Option<PodmanVersion>,
    /// With --output: the version of systemd to write for
    #[arg(long, value_name = "VERSION", requires = "output", value_parser = systemd_version)]
    pub systemd: Option<Features>,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  litellm-units up\n  litellm-units up --timeout 120")]
pub struct Up {
    /// What it does anyway; for those who are used to compose
    #[arg(short, long, visible_alias = "wait")]
    pub detach: bool,
    /// Seconds that starting and becoming ready may take; pulling images does not count
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
    /// What is accepted.
    #[command(flatten)]
    pub accept: Accept,
}

/// Vulnerabilities that the operator accepts.
#[derive(Clone, Debug, Default, Args)]
pub struct Accept {
    /// Accept an exploited vulnerability of the release (CVE-…; several separated by commas)
    #[arg(
        long = "accept-vulnerability",
        value_name = "ID",
        value_delimiter = ','
    )]
    pub vulnerabilities: Vec<String>,
}

/// Arguments of `down`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units down\n  litellm-units down --remove    (the deployment directory and its data stay)"
)]
pub struct Down {
    /// Remove the units as well, and Podman's names for their secrets; no data
    #[arg(long)]
    pub remove: bool,
    /// Seconds that stopping may take
    #[arg(short, long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub timeout: Duration,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  litellm-units apply --dry-run\n  litellm-units apply")]
pub struct Apply {
    /// Say what changed and which units would restart, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds that restarting and becoming ready may take
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
    /// What is accepted.
    #[command(flatten)]
    pub accept: Accept,
}

/// Arguments of `restart`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units restart litellm\n  litellm-units restart --handover litellm\n\nRequests wait while the gateway restarts; none is refused. With --handover they do not wait, where memory is enough for two gateways. `apply` and `upgrade` hand over by themselves."
)]
pub struct Restart {
    /// What to restart
    #[command(flatten)]
    pub units: Units,
    /// Have a second gateway serve while the first one restarts; takes twice as long
    #[arg(long)]
    pub handover: bool,
}

/// Arguments of `start` and `stop`.
#[derive(Debug, Args)]
pub struct Units {
    /// The services [default: all]
    pub services: Vec<Service>,
    /// Seconds that it may take
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub timeout: Duration,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units logs -f litellm\n  litellm-units logs --since 15m\n  litellm-units logs -n 50 postgres redis"
)]
pub struct Logs {
    /// Services, `images` for the pulls, or `network` [default: all]
    pub services: Vec<LogSource>,
    /// Go on with new lines as they come
    #[arg(short, long)]
    pub follow: bool,
    /// Show only the last lines of all the services together, or `all`
    #[arg(short = 'n', long, value_name = "LINES", visible_alias = "lines", default_value = "all", hide_default_value = true, value_parser = tail)]
    pub tail: Tail,
    /// Show lines since a time (2026-01-31T12:00:00Z) or an age (42m)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Show lines until a time or an age
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Show the time of each line
    #[arg(short = 't', long)]
    pub timestamps: bool,
    /// Do not put the service's name before each line
    #[arg(long)]
    pub no_log_prefix: bool,
    /// Do not colour the services' names
    #[arg(long)]
    pub no_color: bool,
}

impl clap::ValueEnum for LogSource {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}

/// How many lines of a log are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail(pub Option<u32>);

/// Arguments of `exec`.
#[derive(Debug, Args)]
#[command(
    override_usage = "litellm-units exec [OPTIONS] <SERVICE> [--] <COMMAND>...",
    after_help = "Examples:\n  litellm-units exec postgres psql -U litellm\n  litellm-units exec -T redis -- redis-cli info memory"
)]
pub struct Exec {
    /// The service
    pub service: Service,
    /// Do not allocate a terminal, as it is done where there is one
    #[arg(short = 'T', long = "no-tty")]
    pub no_tty: bool,
    /// What it does anyway; for those who are used to `exec -it`
    #[arg(short, long, hide = true)]
    pub interactive: bool,
    /// Likewise
    #[arg(short, long, hide = true, conflicts_with = "no_tty")]
    pub tty: bool,
    /// Set a variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Run as this user
    #[arg(short = 'u', long, value_name = "USER", id = "container_user")]
    pub as_user: Option<String>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    pub command: Vec<String>,
}

/// Arguments of `health`.
#[derive(Debug, Args)]
pub struct Health {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units status\n  litellm-units status --watch\n  litellm-units status --json | jq -r .state"
)]
pub struct Status {
    /// Print JSON (docs/status-json.md); with --watch, one line of it each time
    #[arg(long)]
    pub json: bool,
    /// Go on: a live screen on a terminal, else the table again and again
    #[arg(short, long)]
    pub watch: bool,
    /// With --watch: seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch", value_parser = interval)]
    pub interval: Duration,
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// The services whose images are pulled [default: all]
    pub services: Vec<Service>,
    /// Pull only what this host does not have yet
    #[arg(long)]
    pub missing: bool,
    /// Take the image that a tag means now, where that is another one than recorded
    #[arg(long, conflicts_with = "missing")]
    pub accept: bool,
    /// Which vulnerabilities are accepted.
    #[command(flatten)]
    pub known: Accept,
}

/// Arguments of `trust`.
#[derive(Debug, Args)]
#[command(
    after_help = "Podman verifies signatures with a key. The other signatures of LiteLLM are verified by `pull`, which adds the image's digest to Podman's policy.\nReleases before 1.83 are not signed: those in images.lock stay usable, each by its digest.\nExamples:\n  litellm-units trust --dry-run\n  litellm-units trust\n  litellm-units trust --scope registry.example.com/berriai\n  litellm-units trust --remove"
)]
pub struct Trust {
    /// Print what would change as a unified diff, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take back what was set, and nothing else
    #[arg(long, conflicts_with_all = ["key", "scope", "accept"])]
    pub remove: bool,
    /// Demand signatures by this public key instead of LiteLLM's, on the name that an image is
    /// pulled by. Repeat it to accept several keys. A key of LiteLLM's own is added to the others
    #[arg(long, value_name = "FILE")]
    pub key: Vec<PathBuf>,
    /// The images that it is about, where they are not pulled from ghcr.io/berriai
    #[arg(long, value_name = "REGISTRY/PATH")]
    pub scope: Option<String>,
    /// Take this one image without a signature that Podman can verify
    #[arg(long, value_name = "IMAGE@DIGEST")]
    pub accept: Vec<String>,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  litellm-units config\n  litellm-units config --unmask | grep DATABASE_URL   (refused without --force)\n  litellm-units config check"
)]
pub struct Config {
    /// The part of it that is asked for.
    #[command(subcommand)]
    pub command: Option<ConfigCommand>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show secrets; only on a terminal, or with --force
    #[arg(long)]
    pub unmask: bool,
    /// With --unmask: show them to whatever reads the output
    #[arg(long, requires = "unmask")]
    pub force: bool,
}

/// What `config` can do besides printing.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check config/litellm-config.yaml without restarting anything; exit with 78 if it is wrong
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "--fix sets the mode of files with secrets, enables lingering for oneself, does what `generate` does, has systemd read its units again and starts failed units. It restarts nothing that runs.\nExit status: 0 without a failure, 1 with one."
)]
pub struct Doctor {
    /// Mend what can be mended without interrupting anything, and say what was done
    #[arg(long)]
    pub fix: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Plumbing between the units and this program.
#[derive(Debug, Subcommand)]
pub enum Unit {
    /// Before a container starts: register its secrets with Podman
    Prepare {
        /// The container.
        service: Service,
        /// For the second gateway
        #[arg(long)]
        standby: bool,
    },
    /// Called by Podman: print the value of one secret
    Secret {
        /// The container.
        service: Service,
        /// The variable or file.
        name: String,
    },
    /// At boot, wait until the host has a default route
    AwaitNetwork,
    /// Wait for the image and the units that a container can't start without
    AwaitNeeds {
        /// The container.
        service: Service,
    },
    /// Wait until a container's health check passes
    AwaitHealthy {
        /// The container.
        service: Service,
        /// For the second gateway
        #[arg(long)]
        standby: bool,
    },
    /// Write one line about newer releases and known vulnerabilities
    CheckRelease,
    /// After a unit ended: refuse requests, unless the gateway is about to come back
    Stopped,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a whole number of seconds above 0".into()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

fn tail(text: &str) -> Result<Tail, String> {
    match text.parse() {
        Ok(lines) => Ok(Tail(Some(lines))),
        Err(_) if text == "all" => Ok(Tail(None)),
        Err(_) => Err("neither a number of lines nor `all`".into()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0.1 to 3600".into()),
    }
}

fn systemd_version(text: &str) -> Result<Features, String> {
    match text.parse() {
        Ok(version) if version >= Features::OLDEST => Ok(Features::of_version(version)),
        _ => Err(format!(
            "not the number of a version from {} on",
            Features::OLDEST
        )),
    }
}

fn podman_version(text: &str) -> Result<PodmanVersion, String> {
    PodmanVersion::parse(text)
        .ok_or_else(|| "not a version such as 5.4".to_owned())?
        .check()
        .map_err(|error| error.to_string())
}

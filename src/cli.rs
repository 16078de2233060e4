//! The command line: types only.

pub(crate) mod backup;
pub(crate) mod db;
pub(crate) mod fleet;
pub(crate) mod key;
pub(crate) mod secrets;
pub(crate) mod upgrade;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::host::podman::PodmanVersion;
use crate::host::ssh::RemoteHost;
use crate::host::systemd::Features;
use crate::operations::stack::LogSource;
use crate::quadlet::dev;
use crate::service::Service;

/// Run a LiteLLM gateway, with PostgreSQL and Redis, as Podman Quadlet and systemd units.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = widest(),
    after_help = "Exit status: 0 success; 1 failure, or drift with --check; 2 wrong usage; 3 stopped; 4 degraded; 5 newer release and 6 known vulnerabilities (upgrade --check); 7 warnings (doctor); 78 wrong configuration.\n\nFirst steps: litellm-units up"
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Deployment")]
pub(crate) struct Target {
    /// Deployment directory [default: that of the installed units, or /opt/litellm-server; rootless:
    /// ~/.local/share/litellm-server]
    #[arg(long, env = "LITELLM_DIR", value_name = "DIR", global = true)]
    pub(crate) litellm_dir: Option<PathBuf>,
    /// Use the calling user's systemd and rootless Podman (the default for everyone but root)
    #[arg(long, global = true, conflicts_with = "system")]
    pub(crate) user: bool,
    /// Use the system's systemd and rootful Podman (the default for root)
    #[arg(long, global = true)]
    pub(crate) system: bool,
    /// Run the command on another machine, over ssh
    #[arg(long, value_name = "USER@HOST", global = true)]
    pub(crate) host: Option<RemoteHost>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prepare the deployment directory and install the units; start nothing
    Generate(Generate),
    /// Generate, pull missing images, start everything and wait until the gateway is ready
    Up(Up),
    /// Import a deployment from docker compose, with its data, keys and secrets
    Import(Import),
    /// Stop everything; keep the data
    Down(Down),
    /// Show each unit's state, health, uptime, restarts, memory and image
    #[command(visible_alias = "ps")]
    Status(Status),
    /// Apply changes to .env, config/, certs/, files/, entrance/ and extra.d/, and roll back if the gateway does not become ready
    Apply(Apply),
    /// Start services that are stopped
    Start(Units),
    /// Stop services
    Stop(Units),
    /// Restart services with the current .env and config/
    Restart(Restart),
    /// Show the logs of services, from the journal
    Logs(Logs),
    /// Have LiteLLM write debug logs for a limited time, without a restart
    Debug(Debug),
    /// Run a command in a service's container
    Exec(Exec),
    /// Show whether the gateway is ready
    Health(Health),
    /// Pull the images that .env and extra.d/ name
    Pull(Pull),
    /// Have Podman accept LiteLLM's images only with a valid signature
    Trust(Trust),
    /// Create, list, change, block and delete the gateway's keys
    #[command(subcommand)]
    Key(key::Key),
    /// Rotate, encrypt and audit secrets
    #[command(subcommand)]
    Secrets(secrets::Secrets),
    /// Set the login and the public address of the web interface
    Ui(secrets::Ui),
    /// Back up the database and the configuration while the gateway serves
    Backup(backup::Backup),
    /// Replace the gateway's current data with that of a backup
    Restore(backup::Restore),
    /// Show what fills the database, and how fast
    #[command(subcommand)]
    Db(db::Db),
    /// Upgrade the gateway to another release, and roll back if a step fails
    Upgrade(upgrade::Upgrade),
    /// Roll back to an earlier release
    Rollback(upgrade::Rollback),
    /// List the releases that ran and the upgrades that failed
    History(upgrade::History),
    /// Change and watch several hosts as one, over ssh
    #[command(subcommand)]
    Fleet(fleet::Fleet),
    /// Print a completion script for a shell
    Completion {
        /// Shell to print the script for
        shell: clap_complete::Shell,
    },
    /// Print the effective settings, or check the gateway's configuration
    Config(Config),
    /// Check the host and the deployment, and show how to fix each problem
    Doctor(Doctor),
    /// Print the state of the stack as Prometheus metrics
    Metrics,
    /// Test the notices of faults
    #[command(subcommand)]
    Notify(Notify),
    /// Commands that the units call
    #[command(hide = true, subcommand)]
    Unit(Unit),
}

impl Command {
    /// Its words if it changes the deployment or the keys, for the record in the journal.
    pub(crate) fn change(&self) -> Option<&'static str> {
        let (changes, words) = match self {
            Self::Generate(generate) => {
                let reads = generate.dry_run || generate.check || generate.output.is_some();
                (!reads, "generate")
            }
            Self::Up(up) if up.dev => (true, "up --dev"),
            Self::Up(_) => (true, "up"),
            Self::Import(import) if import.undo => (true, "import --undo"),
            Self::Import(import) => (!import.dry_run, "import"),
            Self::Down(down) if down.dev => (true, "down --dev"),
            Self::Down(down) if down.remove => (true, "down --remove"),
            Self::Down(_) => (true, "down"),
            Self::Apply(apply) => (!apply.dry_run, "apply"),
            Self::Start(_) => (true, "start"),
            Self::Stop(_) => (true, "stop"),
            Self::Restart(_) => (true, "restart"),
            // With --missing, the units call it at each start.
            Self::Debug(debug) => match debug.command {
                Some(DebugCommand::On { .. }) => (true, "debug on"),
                Some(DebugCommand::Off) => (true, "debug off"),
                None => (false, "debug"),
            },
            Self::Pull(pull) => (!pull.missing, "pull"),
            Self::Trust(trust) => (!trust.dry_run, "trust"),
            Self::Key(key) => return key.change(),
            Self::Secrets(secrets) => return secrets.change(),
            Self::Ui(_) => (true, "ui"),
            Self::Backup(backup) => return backup.change(),
            Self::Restore(_) => (true, "restore"),
            Self::Upgrade(upgrade) => (!upgrade.dry_run && !upgrade.check, "upgrade"),
            Self::Rollback(rollback) => (!rollback.dry_run, "rollback"),
            Self::Doctor(doctor) => (doctor.fix, "doctor --fix"),
            Self::Status(_)
            | Self::Db(_)
            | Self::Logs(_)
            | Self::Exec(_)
            | Self::Health(_)
            | Self::History(_)
            | Self::Completion { .. }
            | Self::Config(_)
            // Each host records what it does.
            | Self::Fleet(_)
            | Self::Metrics
            | Self::Notify(_)
            | Self::Unit(_) => return None,
        };
        changes.then_some(words)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Notify {
    /// Send a notice to each recipient in .env
    #[command(after_help = "Examples:\n  litellm-units notify test")]
    Test,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units generate\n  litellm-units generate --dry-run\n  litellm-units generate --check && echo up to date\n  litellm-units generate --output ./units --podman 4.9"
)]
pub(crate) struct Generate {
    /// Print the changes as a unified diff; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Change nothing; exit with status 1 if there is anything to change
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) check: bool,
    /// Write the units into DIR instead of installing them; needs neither Podman nor systemd
    #[arg(long, value_name = "DIR", conflicts_with_all = ["dry_run", "check"])]
    pub(crate) output: Option<PathBuf>,
    /// Podman version to write for, with --output
    #[arg(long, value_name = "VERSION", requires = "output", value_parser = podman_version)]
    pub(crate) podman: Option<PodmanVersion>,
    /// systemd version to write for, with --output
    #[arg(long, value_name = "VERSION", requires = "output", value_parser = systemd_version)]
    pub(crate) systemd: Option<Features>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units up\n  litellm-units up --timeout 120\n  litellm-units up --dev --source ~/litellm    (docs/debugging.md)"
)]
pub(crate) struct Up {
    /// Instead, start a LiteLLM for its development, with a database and a cache of its own
    #[arg(long)]
    pub(crate) dev: bool,
    /// Checkout of LiteLLM that replaces the package in the image, with --dev; an edit is served at once
    #[arg(long, value_name = "DIR", requires = "dev")]
    pub(crate) source: Option<PathBuf>,
    /// Port of the gateway on 127.0.0.1, with --dev; PostgreSQL has the next one, Redis the one after it
    #[arg(long, requires = "dev", default_value_t = dev::PORT, hide_default_value = true, value_parser = clap::value_parser!(u16).range(1024..=65533))]
    pub(crate) port: u16,
    /// Return when the gateway is ready (the default; accepted for compatibility with compose)
    #[arg(short, long, visible_alias = "wait")]
    pub(crate) detach: bool,
    /// Timeout in seconds for starting and becoming ready, without the time for pulling images
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) accept: Accept,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The containers of the compose file have to exist, and its PostgreSQL has to run. The old gateway serves until all images are pulled. It stops while its database is copied, and starts again if the import fails. Nothing of the old deployment is removed.\n\nExamples:\n  litellm-units import --dry-run /srv/litellm\n  litellm-units import /srv/litellm\n  litellm-units import --from root@old.example.com /srv/litellm\n  litellm-units import --undo"
)]
pub(crate) struct Import {
    /// Directory of the compose file [default: the current directory]
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Host of the old deployment, on which ssh runs its docker; DIR is a path there
    #[arg(long, value_name = "USER@HOST", requires = "directory")]
    pub(crate) from: Option<RemoteHost>,
    /// Show what would be imported and what has no counterpart; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Stop the new gateway and start the old one again
    #[arg(long, conflicts_with_all = ["dry_run", "directory", "project", "service"])]
    pub(crate) undo: bool,
    /// Project of compose, if one compose file has several
    #[arg(long, value_name = "NAME")]
    pub(crate) project: Option<String>,
    /// Service of the gateway in the compose file, if it can't be determined
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Timeout in seconds for each start and stop
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) accept: Accept,
}

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Accept {
    /// Accept an exploited vulnerability of the release (CVE-…; separate several by commas)
    #[arg(
        long = "accept-vulnerability",
        value_name = "ID",
        value_delimiter = ','
    )]
    pub(crate) vulnerabilities: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units down\n  litellm-units down --remove    (the deployment directory and its data stay)\n  litellm-units down --dev"
)]
pub(crate) struct Down {
    /// Instead, stop what `up --dev` has started and remove its units; keep its data
    #[arg(long, conflicts_with = "remove")]
    pub(crate) dev: bool,
    /// Also remove the database of development, with --dev
    #[arg(long, requires = "dev")]
    pub(crate) remove_data: bool,
    /// Also remove the units and their secrets in Podman; keep the data
    #[arg(long)]
    pub(crate) remove: bool,
    /// Timeout in seconds for stopping
    #[arg(short, long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units apply --dry-run\n  litellm-units apply\n  litellm-units apply --from /root/gateway --dry-run\n  litellm-units config export | ssh root@gateway-2 litellm-units apply --from -"
)]
pub(crate) struct Apply {
    /// First replace the configuration by that of a directory, or (-) of a tar on stdin; the release and a local database
    /// stay those of this host
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<PathBuf>,
    /// Show what changed and which units would restart; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Timeout in seconds for restarting and becoming ready
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) accept: Accept,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units restart litellm\n  litellm-units restart --handover litellm\n\nRequests wait while the gateway restarts. With --handover they do not, if there is enough memory for two gateways. `apply` and `upgrade` always hand over."
)]
pub(crate) struct Restart {
    #[command(flatten)]
    pub(crate) units: Units,
    /// Serve from a second gateway while the first one restarts; takes twice as long
    #[arg(long)]
    pub(crate) handover: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Units {
    /// Services, or units of extra.d/ by their names [default: all]
    pub(crate) services: Vec<Service>,
    /// Timeout in seconds for stopping, starting and becoming ready
    #[arg(short, long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units logs -f litellm\n  litellm-units logs --since 15m\n  litellm-units logs -n 50 postgres redis"
)]
pub(crate) struct Logs {
    /// Names that `status` shows, `images` for the pulls, or `network` [default: all services]
    #[arg(value_parser = LogNames, hide_possible_values = true)]
    pub(crate) services: Vec<String>,
    /// Print new lines as they come
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Number of lines to show from the end, of all services together, or `all`
    #[arg(short = 'n', long, value_name = "LINES", visible_alias = "lines", default_value = "all", hide_default_value = true, value_parser = tail)]
    pub(crate) tail: Tail,
    /// Show lines since a time (2026-01-31T12:00:00Z) or an age (42m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Show lines until a time or an age
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Show the time of each line
    #[arg(short = 't', long)]
    pub(crate) timestamps: bool,
    /// Print the gateway's JSON logs as they are, not as text
    #[arg(long)]
    pub(crate) raw: bool,
    /// Do not put the service's name before each line
    #[arg(long)]
    pub(crate) no_log_prefix: bool,
    /// Do not colour the services' names
    #[arg(long)]
    pub(crate) no_color: bool,
}

/// Completes the names that every deployment has, and takes others: which exist is known on the host.
#[derive(Clone)]
struct LogNames;

impl clap::builder::TypedValueParser for LogNames {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        clap::builder::StringValueParser::new().parse_ref(command, argument, value)
    }

    fn possible_values(
        &self,
    ) -> Option<Box<dyn Iterator<Item = clap::builder::PossibleValue> + '_>> {
        let names = LogSource::ALL.into_iter().map(LogSource::name);
        Some(Box::new(names.map(clap::builder::PossibleValue::new)))
    }
}

/// `None`: all lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail(pub(crate) Option<u32>);

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Without a command, show whether they are on. Debug logs contain prompts, answers and headers.\n\nExamples:\n  litellm-units debug on\n  litellm-units debug on --for 1h\n  litellm-units debug\n  litellm-units debug off"
)]
pub(crate) struct Debug {
    #[command(subcommand)]
    pub(crate) command: Option<DebugCommand>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Turn debug logs on in every running gateway, or set another end
    On {
        /// Time after which they end, with s, m or h; 24h at most
        #[arg(long = "for", value_name = "TIME", default_value = "15m", value_parser = limit)]
        limit: Duration,
    },
    /// Turn debug logs off
    Off,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "litellm-units exec [OPTIONS] <SERVICE> [--] <COMMAND>...",
    after_help = "Examples:\n  litellm-units exec postgres psql -U litellm\n  litellm-units exec -T redis -- redis-cli info memory"
)]
pub(crate) struct Exec {
    /// Service, or unit of extra.d/ by its name, whose container to use
    pub(crate) service: Service,
    /// Do not allocate a terminal
    #[arg(short = 'T', long = "no-tty")]
    pub(crate) no_tty: bool,
    /// Keep stdin open (the default; accepted for compatibility with `exec -it`)
    #[arg(short, long, hide = true)]
    pub(crate) interactive: bool,
    /// Allocate a terminal (the default; accepted for compatibility with `exec -it`)
    #[arg(short, long, hide = true, conflicts_with = "no_tty")]
    pub(crate) tty: bool,
    /// Set an environment variable; repeat for several
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Run as this user
    #[arg(short = 'u', long, value_name = "USER", id = "container_user")]
    pub(crate) as_user: Option<String>,
    /// Run in this directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  litellm-units status\n  litellm-units status --watch\n  litellm-units status --json | jq -r .state"
)]
pub(crate) struct Status {
    /// Print JSON (docs/status-json.md); with --watch, a line at each interval
    #[arg(long)]
    pub(crate) json: bool,
    /// Show a live screen on a terminal; otherwise repeat the table
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Interval in seconds, with --watch
    #[arg(long, value_name = "SECONDS", default_value = "1", requires = "watch", value_parser = interval)]
    pub(crate) interval: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Services, or units of extra.d/ by their names, whose images to pull [default: all]
    pub(crate) services: Vec<Service>,
    /// Pull only images that are not on this host
    #[arg(long)]
    pub(crate) missing: bool,
    /// Accept the image of a tag that was moved since it was recorded
    #[arg(long, conflicts_with = "missing")]
    pub(crate) accept: bool,
    #[command(flatten)]
    pub(crate) known: Accept,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Podman verifies signatures that were made with a key. LiteLLM's keyless signatures are verified by `pull`, which adds the image's digest to Podman's policy. Releases before 1.83 are not signed: those in images.lock stay usable, each by its digest.\n\nExamples:\n  litellm-units trust --dry-run\n  litellm-units trust\n  litellm-units trust --scope registry.example.com/berriai\n  litellm-units trust --remove"
)]
pub(crate) struct Trust {
    /// Print the changes as a unified diff; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Undo the changes of `trust`, and nothing else
    #[arg(long, conflicts_with_all = ["key", "scope", "accept"])]
    pub(crate) remove: bool,
    /// Require a signature by this public key instead of LiteLLM's; repeat to accept several keys
    /// (one of LiteLLM's keys is added to the others)
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Vec<PathBuf>,
    /// Registry path of the images, if they are not pulled from ghcr.io/berriai
    #[arg(long, value_name = "REGISTRY/PATH")]
    pub(crate) scope: Option<String>,
    /// Accept this image without a signature that Podman can verify; repeat for several
    #[arg(long, value_name = "IMAGE@DIGEST")]
    pub(crate) accept: Vec<String>,
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  litellm-units config\n  litellm-units config --unmask --force | grep DATABASE_URL\n  litellm-units config check"
)]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) command: Option<ConfigCommand>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Show secrets (on a terminal, or with --force)
    #[arg(long)]
    pub(crate) unmask: bool,
    /// Show secrets even if the output is not a terminal, with --unmask
    #[arg(long, requires = "unmask")]
    pub(crate) force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check config/litellm-config.yaml, and restart nothing; exit with status 78 if it is wrong
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the configuration to stdout, as a tar for `apply --from -`; it holds secrets
    Export,
}

#[derive(Debug, Args)]
#[command(
    after_help = "--fix sets the mode of files with secrets, enables lingering for the caller, does what `generate` does, reloads systemd's units and starts failed units. It restarts no running unit.\n\nExit status: 0 without a failure, 1 with one."
)]
pub(crate) struct Doctor {
    /// Fix what can be fixed without an interruption, and report what was done
    #[arg(long)]
    pub(crate) fix: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// One of several gateways.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Which {
    /// Use the container of the standby
    #[arg(long, conflicts_with = "replica")]
    pub(crate) standby: bool,
    /// Use the container of the gateway with this number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) replica: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Unit {
    /// Register the secrets of a container with Podman, before it starts
    Prepare {
        service: Service,
        #[command(flatten)]
        which: Which,
    },
    /// Print the value of a secret; called by Podman
    Secret {
        service: Service,
        /// Variable or file
        name: String,
    },
    /// Copy the configuration and the certificate of the entrance for its user
    Entrance,
    /// Wait at boot until the host has a default route
    AwaitNetwork,
    /// Wait for the image and the units that a container needs
    AwaitNeeds { service: Service },
    /// Wait until a container's health check passes
    AwaitHealthy {
        service: Service,
        #[command(flatten)]
        which: Which,
    },
    /// Write one line about newer releases and known vulnerabilities
    CheckRelease,
    /// Archive what the database has written since the last time
    Archive,
    /// Look for faults, send notices and write metrics
    Watch,
    /// Replace gateways whose memory has grown, without a lost request
    Recycle,
    /// Answer a request for metrics on the connection that is stdin
    ServeMetrics,
    /// Wait for the change that goes on; complete it if it is interrupted
    Recover,
    /// Refuse requests after the gateway has ended for good
    Stopped,
}

/// What a help takes of a wide terminal. Where none is known, as in a pipe, 80 columns are.
fn widest() -> usize {
    let is_known = std::io::stdout().is_terminal() || std::env::var_os("COLUMNS").is_some();
    if is_known { 100 } else { 80 }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a whole number of seconds above 0".into()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// No longer than `units/serve.py` accepts.
fn limit(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches(['s', 'm', 'h']);
    let unit = match &text[number.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => 0,
    };
    match number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
    {
        Some(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("not a number with s, m or h, such as 15m, of 24h at most".into()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_debug_logs() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("24h", Some(86_400)),
            ("25h", None),
            ("0m", None),
            ("15", None),
            ("1d", None),
            ("1hm", None),
            ("-1m", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(
                limit(text).ok(),
                expected.map(Duration::from_secs),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_recorded() {
        for (words, expected) in [
            ("generate", Some("generate")),
            ("generate --check", None),
            ("generate --output units", None),
            ("apply", Some("apply")),
            ("apply --dry-run", None),
            ("down --remove", Some("down --remove")),
            ("import --undo", Some("import --undo")),
            ("up --dev --source checkout", Some("up --dev")),
            ("down --dev --remove-data", Some("down --dev")),
            ("debug", None),
            ("debug on --for 90s", Some("debug on")),
            ("debug off", Some("debug off")),
            ("pull", Some("pull")),
            ("pull --missing redis", None),
            ("key create shop", Some("key create")),
            ("key list", None),
            ("secrets audit", None),
            ("backup", Some("backup")),
            ("backup list", None),
            ("upgrade --check", None),
            ("rollback", Some("rollback")),
            ("doctor", None),
            ("doctor --fix", Some("doctor --fix")),
            ("exec redis true", None),
            ("unit watch", None),
        ] {
            let cli = Cli::try_parse_from(["litellm-units"].into_iter().chain(words.split(' ')));
            let cli = cli.unwrap_or_else(|error| panic!("{words}: {error}"));
            assert_eq!(cli.command.change(), expected, "{words}");
        }
    }
}

//! `litellm-units` generates Podman Quadlet and systemd units for a LiteLLM gateway with its
//! PostgreSQL and Redis, and manages them over D-Bus.
//!
//! The library is the program's own: it promises no stable interface.
//!
//! From the top; a folder uses only those below it (enforced by `tests/architecture.rs`):
//!
//! - [`cli`]: the command line as types.
//! - `commands`: a file for each verb: arguments in, one operation, lines or JSON out.
//! - `doctor`: checks of the host and the deployment; changes them only with `--fix`, by an operation.
//! - [`operations`]: changes of a host; completed or rolled back after an interruption.
//! - [`quadlet`]: settings to unit files, pure; checked by the host's generator, compared with the disk.
//! - [`litellm`]: the gateway over HTTP, its configuration, and the facts about its releases.
//! - [`deployment`]: the files in the deployment directory: settings, records, earlier configurations.
//! - [`host`]: every effect on the machine: files, locks, Podman, systemd, the journal, ssh.
//! - [`error`], [`image`], [`output`], [`random`], [`service`], `tls`: shared by all of them.

pub mod cli;
pub(crate) mod commands;
pub mod deployment;
pub(crate) mod doctor;
pub mod error;
pub mod host;
pub mod image;
pub mod litellm;
pub mod operations;
pub mod output;
pub mod quadlet;
pub mod random;
pub mod service;
pub(crate) mod tls;
pub(crate) mod yaml;

use cli::{Cli, Command};
use error::{Exit, Result};
use host::Host;
use host::paths::{Paths, Scope};
use host::record::Change;
use host::ssh::{self, RemoteUse};
use host::systemd::job::JobType;

/// Runs one command.
///
/// # Errors
/// If the command fails; `main` prints the error with its hint and chooses the exit status.
pub async fn run(cli: Cli) -> Result<Exit> {
    let chosen = match (cli.target.system, cli.target.user) {
        (true, _) => Some(Scope::System),
        (_, true) => Some(Scope::User),
        _ => None,
    };
    let host = match cli.target.host {
        None => {
            let scope = chosen.unwrap_or_else(Scope::of_caller);
            Host::new(Paths::detect(scope, cli.target.litellm_dir)?)
        }
        Some(remote) => match use_of(&cli.command) {
            None => {
                let default = remote.scope().await?;
                Host::remote(chosen.unwrap_or(default), remote)
            }
            Some(use_of) => {
                let foreign = match &cli.command {
                    Command::Exec(arguments) => arguments.command.len(),
                    _ => 0,
                };
                return remote.run(&ssh::own_arguments(foreign)?, use_of).await;
            }
        },
    };
    let change = (cli.command.change()).map(|command| Change::begin(&host, command));
    let outcome = Box::pin(carry_out(&host, cli.command)).await;
    if let Some(change) = change {
        change.end(matches!(outcome, Ok(Exit::Success)));
    }
    outcome
}

async fn carry_out(host: &Host, command: Command) -> Result<Exit> {
    match command {
        Command::Generate(arguments) => commands::generate::run(host, arguments).await,
        Command::Import(arguments) => commands::import::run(host, &arguments).await,
        Command::Up(arguments) => Box::pin(commands::up::run(host, &arguments)).await,
        Command::Down(arguments) => commands::down::run(host, &arguments).await,
        Command::Apply(arguments) => Box::pin(commands::apply::run(host, &arguments)).await,
        Command::Start(arguments) => {
            commands::lifecycle::run(host, JobType::Start, &arguments).await
        }
        Command::Stop(arguments) => commands::lifecycle::run(host, JobType::Stop, &arguments).await,
        Command::Restart(arguments) => commands::lifecycle::restart(host, &arguments).await,
        Command::Logs(arguments) => commands::logs::run(host, &arguments).await,
        Command::Debug(arguments) => commands::debug::run(host, &arguments).await,
        Command::Exec(arguments) => commands::exec::run(host, &arguments).await,
        Command::Health(arguments) => commands::health::run(host, &arguments).await,
        Command::Key(verb) => Box::pin(commands::key::run(host, verb)).await,
        Command::Secrets(verb) => commands::secrets::run(host, verb).await,
        Command::Ui(arguments) => commands::ui::run(host, &arguments).await,
        Command::Backup(arguments) => commands::backup::run(host, arguments).await,
        Command::Restore(arguments) => commands::backup::restore(host, arguments).await,
        Command::Db(verb) => commands::db::run(host, &verb).await,
        Command::Upgrade(arguments) => commands::upgrade::run(host, arguments).await,
        Command::Rollback(arguments) => commands::rollback::run(host, arguments).await,
        Command::History(arguments) => commands::history::run(host, &arguments),
        Command::Completion { shell } => commands::completion::run(shell),
        Command::Status(arguments) => commands::status::run(host, &arguments).await,
        Command::Pull(arguments) => commands::pull::run(host, &arguments).await,
        Command::Trust(arguments) => commands::trust::run(host, &arguments).await,
        Command::Config(arguments) => commands::config::run(host, &arguments),
        Command::Fleet(verb) => Box::pin(commands::fleet::run(host, verb)).await,
        Command::Doctor(arguments) => commands::doctor::run(host, &arguments).await,
        Command::Metrics => commands::metrics::run(host).await,
        Command::Notify(command) => commands::notify::run(host, &command).await,
        Command::Unit(verb) => commands::unit::run(host, verb).await,
    }
}

/// How a command uses the `litellm-units` of another machine. `None` if it needs only systemd there,
/// or nothing.
fn use_of(command: &Command) -> Option<RemoteUse> {
    let plain = RemoteUse {
        terminal: true,
        input: true,
        foreign: false,
    };
    match command {
        Command::Down(arguments) if arguments.remove || arguments.dev => Some(plain),
        Command::Start(_)
        | Command::Stop(_)
        | Command::Restart(_)
        | Command::Down(_)
        | Command::Completion { .. } => None,
        Command::Exec(arguments) => Some(RemoteUse {
            terminal: !arguments.no_tty,
            foreign: true,
            ..plain
        }),
        Command::Apply(arguments) if arguments.from.is_some() => Some(plain),
        // No stdin, since `while read host; do litellm-units --host "$host" status; done` needs it.
        Command::Generate(_)
        | Command::Up(_)
        | Command::Apply(_)
        | Command::Status(_)
        | Command::Logs(_)
        | Command::Health(_)
        | Command::Db(_)
        | Command::Pull(_)
        | Command::Trust(_) => Some(RemoteUse {
            input: false,
            ..plain
        }),
        _ => Some(plain),
    }
}

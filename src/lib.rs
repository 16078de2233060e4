//! `litellm-units` generates Podman Quadlet and systemd units for a LiteLLM gateway with its
//! PostgreSQL and Redis, and manages them over D-Bus.
//!
//! The library is the program's own: it promises no stable interface.

pub mod applied;
pub mod audit;
pub mod backup;
pub mod change;
pub mod cli;
pub mod commands;
pub mod container;
pub mod deployment;
pub mod doctor;
pub mod error;
pub mod host;
pub mod image;
pub mod images_lock;
pub mod install;
pub mod journal;
pub mod litellm;
pub mod lock;
pub mod output;
pub mod paths;
pub mod podman;
pub mod quadlet;
pub mod settings;
pub mod snapshot;
pub mod stack;
pub mod systemd;

use cli::{Cli, Command};
use error::{Exit, Result};
use host::Host;
use paths::{Paths, Scope};
use systemd::job::Verb;

/// Runs one command.
///
/// # Errors
/// When the command fails; `main` prints the error, its hints and chooses the exit status.
pub async fn run(cli: Cli) -> Result<Exit> {
    let scope = match (cli.target.system, cli.target.user) {
        (true, _) => Scope::System,
        (_, true) => Scope::User,
        _ => Scope::of_caller(),
    };
    let host = Host::new(Paths::detect(scope, cli.target.litellm_dir)?);
    match cli.command {
        Command::Generate(arguments) => commands::generate::run(&host, arguments).await,
        Command::Up(arguments) => commands::up::run(&host, &arguments).await,
        Command::Down(arguments) => commands::down::run(&host, &arguments).await,
        Command::Apply(arguments) => commands::apply::run(&host, &arguments).await,
        Command::Start(arguments) => commands::units::run(&host, Verb::Start, &arguments).await,
        Command::Stop(arguments) => commands::units::run(&host, Verb::Stop, &arguments).await,
        Command::Restart(arguments) => commands::units::run(&host, Verb::Restart, &arguments).await,
        Command::Logs(arguments) => commands::logs::run(&host, &arguments).await,
        Command::Exec(arguments) => commands::exec::run(&host, &arguments).await,
        Command::Health(arguments) => commands::health::run(&arguments).await,
        Command::Key(verb) => commands::key::run(&host, verb).await,
        Command::Secrets(verb) => commands::secrets::run(&host, verb).await,
        Command::Ui(arguments) => commands::ui::run(&host, &arguments).await,
        Command::Backup(arguments) => commands::backup::run(&host, arguments).await,
        Command::Restore(arguments) => commands::backup::restore(&host, arguments).await,
        Command::Completion { shell } => commands::completion::run(shell),
        Command::Status(arguments) => commands::status::run(&host, &arguments).await,
        Command::Pull(arguments) => commands::pull::run(&host, &arguments).await,
        Command::Config(arguments) => commands::config::run(&host, &arguments),
        Command::Doctor(arguments) => commands::doctor::run(&host, &arguments).await,
        Command::Unit(verb) => commands::unit::run(&host, verb).await,
    }
}

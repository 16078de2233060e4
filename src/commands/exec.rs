//! `exec`: a command in a running container.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;

use anyhow::Context;

use crate::cli;
use crate::error::{Exit, Failure, Result};
use crate::host::Host;
use crate::host::systemd::LoadState;
use crate::service::Service;

/// On success this process becomes `podman exec`, whose exit status is the command's.
pub(crate) async fn run(host: &Host, arguments: &cli::Exec) -> Result<Exit> {
    let unit = arguments.service.unit();
    let state = host.systemd().await?.unit(unit).await?;
    if state.load == LoadState::NotFound {
        return Err(super::lifecycle::unknown(host, arguments.service));
    }
    if arguments.service == Service::Entrance {
        return Err(Failure::new(format!("{unit} has no container"))
            .hint("run the command on this host")
            .into());
    }
    if !state.is_active() || state.sub != "running" {
        let hint = if arguments.service == Service::Migrate {
            "its container ends with the migration: use `litellm-units exec litellm`".to_owned()
        } else {
            format!(
                "start it: `litellm-units start {}`",
                arguments.service.name()
            )
        };
        return Err(Failure::new(format!(
            "{unit} is {} ({}), so no command can run in its container",
            state.active, state.sub
        ))
        .hint(hint)
        .into());
    }
    let mut command = host
        .podman()
        .await?
        .command_of_terminal(["exec", "--interactive"])
        .into_std();
    // Podman's own stdin is the caller's.
    command.stdin(std::process::Stdio::inherit());
    if !arguments.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        command.arg("--tty");
    }
    for variable in &arguments.env {
        command.args(["--env", variable]);
    }
    if let Some(user) = &arguments.as_user {
        command.args(["--user", user]);
    }
    if let Some(directory) = &arguments.workdir {
        command.args(["--workdir", directory]);
    }
    command
        .arg(arguments.service.container())
        .args(&arguments.command);
    Err(command.exec()).context("can't run podman")
}

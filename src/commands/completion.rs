//! `completion`: scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Exit, Result};
use crate::output;

/// Runs the command.
///
/// # Errors
/// When stdout is closed.
pub fn run(shell: Shell) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "litellm-units", &mut script);
    output::text(&mended(&String::from_utf8_lossy(&script)))?;
    Ok(Exit::Success)
}

/// In bash, `clap_complete` 4.6 looks subcommands up under another name than it files them, where
/// the program's name has a hyphen: nothing after `litellm-units` would be completed.
fn mended(script: &str) -> String {
    script.replace("litellm__subcmd__units", "litellm__units")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_finds_every_subcommand() {
        let mut script = Vec::new();
        clap_complete::generate(
            Shell::Bash,
            &mut Cli::command(),
            "litellm-units",
            &mut script,
        );
        let script = mended(&String::from_utf8(script).unwrap());
        for line in script.lines() {
            if let Some(name) = line
                .trim()
                .strip_prefix("cmd=\"")
                .and_then(|rest| rest.strip_suffix('"'))
                .filter(|name| !name.is_empty())
            {
                let case = format!("\n        {name})\n");
                assert!(script.contains(&case), "{name} is never looked up");
            }
        }
    }
}

//! `completion`: scripts for shells.

use clap::CommandFactory;
use clap::builder::PossibleValue;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::error::{Exit, Result};
use crate::output;

pub(crate) fn run(shell: Shell) -> Result<Exit> {
    output::text(&script(shell))?;
    Ok(Exit::Success)
}

fn script(shell: Shell) -> String {
    let mut command = Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "litellm-units", &mut script);
    let mut script = with_one_name(&String::from_utf8_lossy(&script));
    if shell == Shell::Fish {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = verb.get_name();
            let condition = format!("__fish_litellm_units_using_subcommand {name}");
            script.push_str(&fish_values(verb, &condition));
            for part in verb.get_subcommands() {
                let condition = format!(
                    "{condition}; and __fish_seen_subcommand_from {}",
                    part.get_name()
                );
                script.push_str(&fish_values(part, &condition));
            }
        }
    }
    script
}

/// For fish, `clap_complete` 4.6 writes options only: nothing for `restart p`.
fn fish_values(command: &clap::Command, condition: &str) -> String {
    command
        .get_positionals()
        .filter_map(|argument| {
            let values = argument.get_possible_values();
            let names: Vec<&str> = values.iter().map(PossibleValue::get_name).collect();
            (!names.is_empty()).then(|| {
                format!(
                    "complete -c litellm-units -n \"{condition}\" -f -a \"{}\"\n",
                    names.join(" ")
                )
            })
        })
        .collect()
}

/// In the script for bash, `clap_complete` 4.6 spells the program's hyphen in two ways: nothing after
/// `litellm-units` would be completed.
fn with_one_name(script: &str) -> String {
    script.replace("litellm__subcmd__units", "litellm__units")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_finds_every_subcommand() {
        let script = script(Shell::Bash);
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

    #[test]
    fn fish_knows_the_services() {
        let script = script(Shell::Fish);
        let services = "postgres redis migrate litellm";
        for (verb, values) in [
            ("start", services),
            ("stop", services),
            ("restart", services),
            ("exec", services),
            ("pull", services),
            ("logs", "network images postgres redis migrate litellm"),
        ] {
            let line = format!(
                "\ncomplete -c litellm-units -n \"__fish_litellm_units_using_subcommand {verb}\" -f -a \"{values}\"\n"
            );
            assert!(script.contains(&line), "{verb}");
        }
        assert!(script.contains(
            "\ncomplete -c litellm-units -n \"__fish_litellm_units_using_subcommand secrets; and __fish_seen_subcommand_from rotate\" -f -a \""
        ));
    }
}

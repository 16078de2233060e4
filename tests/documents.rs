//! What can be said of the documentation without a host.

use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use litellm_units::cli::Cli;

use crate::support::document::{blocks, markdowns, read};

fn documents() -> Vec<String> {
    let mut documents = markdowns("docs");
    documents.extend(["README.md", "README.zh-CN.md", "CONTRIBUTING.md"].map(str::to_owned));
    documents
}

/// What stands between single backticks outside of fenced blocks.
fn inline(markdown: &str) -> Vec<String> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in markdown.lines() {
        fenced ^= line.starts_with("```");
        if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The translation has the commands of the original, in its order; only comments differ.
#[test]
fn translation() {
    let commands = |path: &str| -> Vec<String> {
        blocks(&read(path))
            .into_iter()
            .filter(|(_, language, _)| language == "sh")
            .flat_map(|(.., text)| {
                let lines = text
                    .lines()
                    .map(|line| line.split("  #").next().unwrap().trim_end());
                lines.map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    };
    assert_eq!(commands("README.zh-CN.md"), commands("README.md"));
    let pictures = |path: &str| -> Vec<String> {
        let lines = read(path);
        let lines = lines
            .lines()
            .filter(|line| line.starts_with("![") || line.starts_with("[!["));
        lines
            .map(|line| line[line.find("](").unwrap()..].to_owned())
            .collect()
    };
    assert_eq!(pictures("README.zh-CN.md"), pictures("README.md"));
}

/// Every `litellm-units …` within a text is a command line that the program takes.
#[test]
fn commands_within_texts() {
    for path in documents() {
        for words in inline(&read(&path)) {
            let Some(words) = words
                .strip_prefix("sudo ")
                .unwrap_or(&words)
                .strip_prefix("litellm-units ")
            else {
                continue;
            };
            // What stands for any command, and what is the name of something.
            if ["COMMAND --help"].contains(&words) || words.starts_with("unit ") {
                continue;
            }
            let words: Vec<&str> = words
                .split_whitespace()
                .map(|word| match word {
                    "SERVICE" => "litellm",
                    "USER@HOST" => "root@gateway-1",
                    word => word,
                })
                .collect();
            let Err(error) = Cli::try_parse_from([&["litellm-units"], &words[..]].concat()) else {
                continue;
            };
            // A text may name a command without its arguments.
            let unfinished = [
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                ErrorKind::MissingSubcommand,
                ErrorKind::MissingRequiredArgument,
            ];
            assert!(
                unfinished.contains(&error.kind()),
                "{path}: litellm-units {}: {error}",
                words.join(" ")
            );
        }
    }
}

/// Each command has a row in both READMEs.
#[test]
fn every_command_is_listed() {
    let program = Cli::command();
    let commands: BTreeSet<&str> = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(clap::Command::get_name)
        .collect();
    for path in ["README.md", "README.zh-CN.md"] {
        let text = read(path);
        let rows: String = text
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        let listed: BTreeSet<&str> = commands
            .iter()
            .copied()
            .filter(|command| rows.contains(&format!("`{command}`")))
            .collect();
        assert_eq!(listed, commands, "{path}");
    }
}

/// Links within the repository lead somewhere, and to a heading if they name one.
#[test]
fn links() {
    for path in documents() {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        for link in read(&path)
            .split("](")
            .skip(1)
            .map(|rest| rest.split(')').next().unwrap())
        {
            if link.starts_with("http") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let mut target = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
            target.push(directory);
            if file.is_empty() {
                target.push(path.rsplit('/').next().unwrap());
            } else {
                target.push(file);
            }
            assert!(target.exists(), "{path}: {link}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let found = text
                    .lines()
                    .filter_map(|line| line.strip_prefix('#'))
                    .any(|line| {
                        line.trim_start_matches('#')
                            .trim()
                            .to_lowercase()
                            .replace(' ', "-")
                            .replace(['.', '/', '`', '\''], "")
                            == heading
                    });
                assert!(found, "{path}: {link}");
            }
        }
    }
}

/// Each message of the table is one that the program has: by its words, `…` being what varies.
#[test]
fn messages_are_the_programs_own() {
    let mut sources = String::new();
    for directory in ["src", "units", "templates"] {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        gather(&root.join(directory), &mut sources);
    }
    // As it is printed: lines that Rust joins, and what is put in.
    let sources = join(&sources);
    for line in read("docs/troubleshooting.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
    {
        let message = line.split('`').nth(1).unwrap();
        for fragment in message
            .split('…')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            assert!(
                sources.contains(fragment),
                "no message has these words: {fragment}"
            );
        }
    }
}

#[expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
fn gather(directory: &std::path::Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, text);
        } else {
            *text += &std::fs::read_to_string(&path).unwrap_or_default();
        }
    }
}

/// Strings that go on behind a backslash in one line, and `{…}` as `…`.
fn join(sources: &str) -> String {
    let mut text = String::new();
    let mut rest = sources;
    while let Some(at) = rest.find("\\\n") {
        text += &rest[..at];
        rest = rest[at + 2..].trim_start();
    }
    text += rest;
    text.replace("\\\"", "\"")
}

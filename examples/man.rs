//! Writes the man pages of the program and of each command into a directory: the packages' litellm-units(1).
//!
//! An example, so that what renders them is in no package and in no binary.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use litellm_units::cli::Cli;

fn main() -> io::Result<()> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or_else(|| io::Error::other("usage: man DIRECTORY"))?
        .into();
    std::fs::create_dir_all(&directory)?;
    // `litellm-units help` needs no page.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    pages(&program, None, &directory)
}

fn pages(command: &Command, parent: Option<&str>, directory: &Path) -> io::Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    page(
        command,
        parent,
        &mut File::create(directory.join(format!("{name}.1")))?,
    )?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(verb, Some(&name), directory)?;
    }
    Ok(())
}

fn page(command: &Command, parent: Option<&str>, file: &mut dyn Write) -> io::Result<()> {
    let man = Man::new(command.clone());
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    // Not Man's: it drops an empty date, and what follows moves into its place.
    writeln!(
        file,
        ".TH {name} 1 \"\" \"litellm-units {}\" \"litellm-units\"",
        env!("CARGO_PKG_VERSION")
    )?;
    man.render_name_section(file)?;
    man.render_synopsis_section(file)?;
    man.render_description_section(file)?;
    man.render_options_section(file)?;
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(file)?;
    }
    let after = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    notes(&after, file)?;
    see_also(parent, file)
}

/// What follows the options in `--help`: indented lines are examples, as they are; the others are text.
fn notes(text: &str, file: &mut dyn Write) -> io::Result<()> {
    let (examples, rest): (Vec<&str>, Vec<&str>) = text
        .lines()
        .filter(|line| !line.is_empty() && *line != "Examples:")
        .partition(|line| line.starts_with("  "));
    let mut roff = Roff::new();
    if !rest.is_empty() {
        roff.control("SH", ["NOTES"]);
        for line in rest {
            roff.control("PP", []).text([roman(line)]);
        }
    }
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in examples {
            roff.text([roman(line.trim_start())]);
        }
        roff.control("fi", []);
    }
    roff.to_writer(file)
}

fn see_also(parent: Option<&str>, file: &mut dyn Write) -> io::Result<()> {
    let mut words: Vec<Inline> = Vec::new();
    for (page, section) in parent
        .map(|parent| (parent, "(1), "))
        .into_iter()
        .chain([("litellm-units", "(7), "), ("litellm.env", "(5)")])
    {
        words.push(bold(page));
        words.push(roman(section));
    }
    Roff::new()
        .control("SH", ["SEE ALSO"])
        .text(words)
        .to_writer(file)
}

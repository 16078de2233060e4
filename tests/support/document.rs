//! The command lines of the documentation: of Markdown, of manual pages and of `--help`.

use std::fmt::Write;
use std::path::Path;

use clap::Command;

/// Something that a reader is told to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// `README.md:21`, or the command whose help has it.
    pub place: String,
    /// What to type; several lines if the shell needs them.
    pub text: String,
    /// What stands below it in a `console` block: `…` is anything.
    pub answer: Option<String>,
}

/// A file of this repository.
#[track_caller]
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The files of a directory of this repository, sorted.
#[track_caller]
pub(crate) fn names(directory: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut names: Vec<String> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| format!("{directory}/{name}"))
        .collect();
    names.sort();
    names
}

/// The Markdown files of a directory of this repository, sorted.
#[track_caller]
pub(crate) fn markdowns(directory: &str) -> Vec<String> {
    let mut names = names(directory);
    names.retain(|name| Path::new(name).extension().is_some_and(|kind| kind == "md"));
    names
}

/// The fenced blocks: the number of their first line, their language and their text.
pub(crate) fn blocks(markdown: &str) -> Vec<(usize, String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (number, line) in (1..).zip(markdown.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(language)) => open = Some((number + 1, language.to_owned(), String::new())),
            (None, None) => {}
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((.., text)), None) => writeln!(text, "{line}").unwrap(),
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

/// What a Markdown file tells to type: `sh` blocks, and what is behind `$` in `console` blocks.
#[expect(clippy::panic, reason = "a test stops at the first surprise")]
pub(crate) fn markdown(path: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for (first, language, text) in blocks(&read(path)) {
        match language.as_str() {
            "sh" => lines.extend(script(path, first, &text)),
            "console" => lines.extend(console(path, first, &text)),
            // Drawings, listings and files.
            "" | "mermaid" | "yaml" | "json" | "toml" => {}
            other => panic!("{path}:{first}: nothing is known of blocks of {other}"),
        }
    }
    lines
}

/// A line, or several where a statement goes on.
fn script(path: &str, first: usize, text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let (mut statement, mut depth) = (String::new(), 0);
    let mut begin = first;
    for (number, line) in (first..).zip(text.lines()) {
        if statement.is_empty() {
            begin = number;
        }
        statement += line;
        let first_word = line.split_whitespace().next();
        depth += usize::from(matches!(first_word, Some("for" | "while" | "if")));
        depth -= usize::from(matches!(first_word, Some("done" | "fi")));
        if depth == 0 && !goes_on(line) && !line.trim().is_empty() {
            lines.push(Line {
                place: format!("{path}:{begin}"),
                text: std::mem::take(&mut statement),
                answer: None,
            });
        } else if !statement.is_empty() {
            statement.push('\n');
        }
    }
    assert_eq!(statement, "", "{path}:{begin}: does not end");
    lines
}

fn console(path: &str, first: usize, text: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut is_open = false;
    for (number, line) in (first..).zip(text.lines()) {
        if let Some(command) = line.strip_prefix("$ ") {
            lines.push(Line {
                place: format!("{path}:{number}"),
                text: command.to_owned(),
                answer: Some(String::new()),
            });
            is_open = goes_on(command);
            continue;
        }
        let last = lines.last_mut().unwrap();
        if is_open {
            write!(last.text, "\n{line}").unwrap();
            is_open = goes_on(line);
        } else {
            writeln!(last.answer.as_mut().unwrap(), "{line}").unwrap();
        }
    }
    lines
}

/// Whether the next line belongs to the same command.
fn goes_on(line: &str) -> bool {
    line.ends_with(['\\', '|'])
}

/// What a manual page tells to type: its indented literal blocks.
pub(crate) fn manual(path: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let (mut block, mut indented) = (None, false);
    for (number, line) in (1..).zip(read(path).lines()) {
        match line {
            ".nf" => block = Some((number + 2, String::new())),
            ".RS" if block.is_some() => indented = true,
            ".RE" => {}
            ".fi" => {
                let (first, text) = block.take().unwrap();
                if std::mem::take(&mut indented) {
                    lines.extend(script(path, first, &text));
                }
            }
            _ => {
                if let Some((_, text)) = &mut block {
                    let plain = line
                        .replace("\\-", "-")
                        .replace("\\(ti", "~")
                        .replace("\\e", "\\");
                    writeln!(text, "{plain}").unwrap();
                }
            }
        }
    }
    lines
}

/// The examples of every `--help`.
pub(crate) fn help(command: &Command) -> Vec<Line> {
    let mut lines = Vec::new();
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let after = command
        .get_after_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    for example in after.lines().filter_map(|line| line.strip_prefix("  ")) {
        lines.push(Line {
            place: format!("{name} --help"),
            text: example.to_owned(),
            answer: None,
        });
    }
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        lines.extend(help(verb));
    }
    lines
}

/// Whether an output is what the text says: `…` stands for anything, also nothing. Without an
/// answer, any output will do.
pub(crate) fn answers(expected: &str, output: &str) -> bool {
    if expected.is_empty() {
        return true;
    }
    let mut fragments = expected.trim_end().split('…');
    let Some(mut rest) = output
        .trim_end()
        .strip_prefix(fragments.next().unwrap_or_default())
    else {
        return false;
    };
    let fragments: Vec<&str> = fragments.collect();
    for (number, fragment) in fragments.iter().enumerate() {
        if number + 1 == fragments.len() {
            return rest.ends_with(fragment);
        }
        let Some(at) = rest.find(fragment) else {
            return false;
        };
        rest = &rest[at + fragment.len()..];
    }
    rest.is_empty()
}

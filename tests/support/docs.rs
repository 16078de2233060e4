//! Runs what the documentation says: `console` blocks, in which a command follows `$ ` (and goes on
//! with indented lines), and below it stands what it answers, `…` being anything.

use super::host::{TestHost, Who};

/// A command of a document.
#[derive(Debug)]
struct Step {
    line: usize,
    command: String,
    answer: Vec<String>,
}

/// Runs every command of `docs/NAME` in `directory`, and compares what it answers.
#[track_caller]
pub fn follow(host: &TestHost, who: Who, directory: &str, name: &str) {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let steps = steps(&text);
    assert!(!steps.is_empty(), "{path} has no commands");
    for step in steps {
        // Hosts have no sudo; root does it.
        let script = format!(
            "sudo() {{ \"$@\"; }}\ncd {directory}\nexport DEBIAN_FRONTEND=noninteractive\n{}",
            step.command
        );
        let ran = host.bash(who, &script);
        let place = format!("{name}, line {}: {}", step.line, step.command);
        assert_eq!(ran.code, 0, "{place}\n{}{}", ran.stdout, ran.stderr);
        let mut lines = ran.stdout.lines().chain(ran.stderr.lines());
        for expected in &step.answer {
            assert!(
                lines.any(|line| matches(expected, line)),
                "{place}\nnot answered: {expected}\n{}{}",
                ran.stdout,
                ran.stderr
            );
        }
    }
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut console = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            console = line == "```console";
        } else if !console {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                line: index + 1,
                command: command.to_owned(),
                answer: Vec::new(),
            });
        } else {
            let step = steps.last_mut().unwrap();
            if line.starts_with("    ") && step.answer.is_empty() {
                step.command.push('\n');
                step.command.push_str(line);
            } else {
                step.answer.push(line.to_owned());
            }
        }
    }
    steps
}

/// Whether `line` is `pattern`, in which `…` is anything.
fn matches(pattern: &str, line: &str) -> bool {
    let Some((first, mut rest)) = pattern.split_once('…') else {
        return pattern == line;
    };
    let Some(mut line) = line.strip_prefix(first) else {
        return false;
    };
    while let Some((part, next)) = rest.split_once('…') {
        let Some(at) = line.find(part) else {
            return false;
        };
        line = &line[at + part.len()..];
        rest = next;
    }
    line.ends_with(rest)
}

//! What can be said of the documentation without a host.

use std::collections::BTreeSet;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use litellm_units::cli::Cli;

use crate::support::document::{blocks, markdowns, names, read};

fn documents() -> Vec<String> {
    let mut documents = markdowns("docs");
    let others = [
        "README.md",
        "README.zh-CN.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "tests/host/README.md",
    ];
    documents.extend(others.map(str::to_owned));
    documents
}

/// The targets of the links of a text, in its order.
fn targets(markdown: &str) -> Vec<&str> {
    let rest = markdown.split("](").skip(1);
    rest.filter_map(|rest| rest.split(')').next()).collect()
}

/// A reader reads it to its end.
#[test]
fn readme_is_short() {
    let bytes = read("README.md").len();
    assert!(bytes <= 6000, "README.md has {bytes} bytes");
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

/// The translation has the commands, pictures and links of the original, in its order; only comments
/// differ.
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
    let links = |path: &str| -> Vec<String> {
        let text = read(path);
        let languages = ["README.md", "README.zh-CN.md"];
        let others = targets(&text)
            .into_iter()
            .filter(|link| !languages.contains(link));
        others.map(str::to_owned).collect()
    };
    assert_eq!(links("README.zh-CN.md"), links("README.md"));
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

/// No command has a key among its arguments, which every user of the host can read.
#[test]
fn keys_are_no_arguments() {
    let manuals = names("packaging/man");
    for path in documents().into_iter().chain(manuals) {
        for (number, line) in (1..).zip(read(&path).lines()) {
            let shown = ["Bearer $", "Bearer sk-", "=sk-"];
            let found = shown.iter().find(|shown| line.contains(**shown));
            assert_eq!(found, None, "{path}:{number}: {line}");
        }
    }
}

/// Each command has a row in the reference, to which both READMEs lead.
#[test]
fn every_command_is_listed() {
    let program = Cli::command();
    let commands: BTreeSet<&str> = program
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(clap::Command::get_name)
        .collect();
    let path = "docs/reference.md";
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
    for readme in ["README.md", "README.zh-CN.md"] {
        assert!(targets(&read(readme)).contains(&path), "{readme}");
    }
}

/// docs/README.md leads to every page.
#[test]
fn every_page_is_indexed() {
    let index = read("docs/README.md");
    let listed: BTreeSet<String> = targets(&index)
        .into_iter()
        .filter(|link| !link.starts_with("https://"))
        .map(|link| format!("docs/{link}"))
        .chain(["docs/README.md".to_owned()])
        .collect();
    let pages: BTreeSet<String> = markdowns("docs").into_iter().collect();
    assert_eq!(listed, pages);
}

/// An action is named by its commit, which nobody can move, with its version behind it.
#[test]
fn actions_are_pinned() {
    let mut actions = 0;
    for path in names(".github/workflows") {
        for line in read(&path).lines() {
            let Some((_, action)) = line.split_once("uses: ") else {
                continue;
            };
            let (name, version) = action.split_once(" # v").unwrap_or((action, ""));
            let commit = name.split_once('@').map_or("", |(_, commit)| commit);
            assert!(
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{path}: {line}"
            );
            assert!(!version.is_empty(), "{path}: {line}");
            actions += 1;
        }
    }
    assert_ne!(actions, 0);
}

const BLOB: &str = "https://github.com/litellm-units/litellm-units/blob/main/";

/// Links within the repository lead somewhere, and to a heading if they name one.
#[test]
fn links() {
    for path in documents() {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let is_installed = path.starts_with("docs/");
        for link in targets(&read(&path)) {
            let absolute = link.strip_prefix(BLOB);
            if absolute.is_none() && link.starts_with("http") {
                continue;
            }
            // The packages have docs/*.md and its recordings, and nothing else that a page could lead to.
            let recording = link.strip_prefix("demo/");
            let is_recording = recording.is_some_and(|name| name.rsplit('.').next() == Some("svg"));
            let is_in_packages = is_recording || !link.split('#').next().unwrap().contains('/');
            assert!(
                absolute.is_some() || !is_installed || is_in_packages,
                "{path}: {link} is not in the packages: begin it with {BLOB}"
            );
            let directory = if absolute.is_some() { "" } else { directory };
            let link = absolute.unwrap_or(link);
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
                            .replace(['.', ',', '/', '`', '\''], "")
                            == heading
                    });
                assert!(found, "{path}: {link}");
            }
        }
    }
}

/// Each row of the troubleshooting tables begins with a message: one that this program has or, with
/// the name of another program behind it, one that was recorded of that program. Its words are
/// compared, `…` being what varies.
#[test]
fn messages_are_those_that_are_printed() {
    let mut sources = String::new();
    for directory in ["src", "units", "templates"] {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        gather(&root.join(directory), &mut sources);
    }
    // As it is printed: lines that Rust joins, and what is put in.
    let sources = join(&sources);
    let mut rows = 0;
    for line in read("docs/troubleshooting.md").lines() {
        if line.starts_with('|')
            && !["| message | meaning | what to do |", "|---|---|---|"].contains(&line)
        {
            compare(line, &sources);
            rows += 1;
        }
    }
    assert_ne!(rows, 0);
}

/// The metrics that a text names, without the suffixes that Prometheus adds to a histogram.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("litellm_") && word.matches('_').count() > 1)
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
        .collect()
}

/// The alerts and the dashboard ask for no metric that nobody has.
#[test]
fn metrics_of_the_examples() {
    let exported = read("tests/fixtures/metrics.prom");
    // What the dashboard asks LiteLLM for, looked up by hand in 1.108.14 with the callback `prometheus`. For another release,
    // compare it with `/metrics/` of a gateway that has served a request.
    let foreign = read("tests/fixtures/litellm-metrics.txt");
    let known: BTreeSet<&str> = { exported.lines() }
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .chain(foreign.lines())
        .collect();
    let rules = read("packaging/examples/prometheus-rules.yml");
    let dashboard = read("packaging/examples/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let queries: Vec<&str> = { dashboard["panels"].as_array().unwrap().iter() }
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() > 20, "{queries:?}");
    for text in queries.iter().copied().chain([rules.as_str()]) {
        let named = metrics_in(text);
        assert!(named.is_subset(&known), "{text}");
        assert!(!named.is_empty(), "{text}");
    }
    // What each alert may need to be read beside, and the page that the alert opens.
    let page = read("docs/troubleshooting.md");
    let notices = read("docs/notices.md");
    for alert in rules.split("- alert: ").skip(1) {
        let (name, rest) = alert.split_once('\n').unwrap();
        let heading = rest
            .split_once("/blob/main/docs/troubleshooting.md#")
            .and_then(|(_, heading)| heading.lines().next())
            .unwrap_or_default();
        assert!(
            page.contains(&format!("](#{heading})\n")),
            "{name}: {heading}"
        );
        assert!(notices.contains(&format!("`{name}`")), "{name}");
        let tests = read("tests/fixtures/prometheus-rules.test.yml")
            + &read("tests/fixtures/prometheus-rules-of-weeks.test.yml");
        assert!(
            tests.contains(&format!("alertname: {name}\n")),
            "{name} has no test"
        );
    }
}

/// Compares the first cell of a row with what the program of its message prints.
fn compare(row: &str, sources: &str) {
    let cell = row.split('|').nth(1).unwrap_or_default().trim();
    assert!(cell.starts_with('`'), "no message: {row}");
    // `… (LiteLLM, 403)`: tests/fixtures/troubleshooting/litellm.txt.
    let other = cell.rsplit_once("` (").map(|(_, name)| {
        let end = name.find([',', ')']).unwrap_or(name.len());
        let name = name[..end].to_lowercase();
        read(&format!("tests/fixtures/troubleshooting/{name}.txt"))
    });
    for message in cell.split('`').skip(1).step_by(2) {
        let fragments: Vec<&str> = message
            .split('…')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        if let Some(recorded) = &other {
            assert!(
                recorded.lines().any(|line| in_order(&fragments, line)),
                "not recorded: {message}"
            );
        } else {
            for fragment in fragments {
                assert!(
                    sources.contains(fragment),
                    "no message has these words: {fragment}"
                );
            }
        }
    }
}

/// Whether a line has all the fragments, one behind the other.
fn in_order(fragments: &[&str], line: &str) -> bool {
    let mut rest = line;
    fragments.iter().all(|fragment| {
        let Some((_, behind)) = rest.split_once(fragment) else {
            return false;
        };
        rest = behind;
        true
    })
}

/// All texts of a directory, one after the other.
#[expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
pub(crate) fn gather(directory: &std::path::Path, text: &mut String) {
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

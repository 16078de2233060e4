//! The order of the folders of src/: a path within the crate leads down only. Each of its fault points has a test.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::path::Path;

use crate::documents::gather;

/// From the top. What stands in one line knows nothing of the others there; only commands know their arguments.
const FLOORS: [&[&str]; 10] = [
    &["main"],
    &["lib"],
    &["commands", "cli"],
    &["doctor"],
    &["operations"],
    &["quadlet", "litellm"],
    &["deployment"],
    &["host"],
    &["image", "output", "random", "service", "tls", "yaml"],
    &["error"],
];

fn floor(room: &str) -> usize {
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("src/{room} has no place in the order of folders"))
}

/// The modules that a text reaches by `crate::`, with the line of each.
fn reached(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for rest in line.split("crate::").skip(1) {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            assert!(end > 0, "line {}: {line}", number + 1);
            found.push((number + 1, rest[..end].to_owned()));
        }
    }
    found
}

fn visit(directory: &Path, faults: &mut Vec<String>, count: &mut usize) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, faults, count);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let place = path.strip_prefix(&sources).unwrap();
        let first = place.iter().next().unwrap().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        for (line, other) in reached(&std::fs::read_to_string(&path).unwrap()) {
            *count += 1;
            let allowed = other == room
                || floor(&other) > floor(room)
                || (room, other.as_str()) == ("commands", "cli");
            if !allowed {
                faults.push(format!("src/{}:{line}: {other}", place.display()));
            }
        }
    }
}

#[test]
fn paths_lead_down() {
    let mut faults = Vec::new();
    let mut count = 0;
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut faults,
        &mut count,
    );
    assert!(count > 300, "only {count} paths were found");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Only commands talk to the terminal; everything below reports to `Progress`.
#[test]
fn operations_print_nothing() {
    let mut faults = Vec::new();
    for folder in [
        "doctor",
        "operations",
        "quadlet",
        "litellm",
        "deployment",
        "host",
    ] {
        look_for_prints(
            &Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src")
                .join(folder),
            &mut faults,
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn look_for_prints(directory: &Path, faults: &mut Vec<String>) {
    const PRINTS: [&str; 9] = [
        "print!(",
        "println!(",
        "stdout(),",
        "stderr(),",
        "output::line",
        "output::text",
        "output::say",
        "output::warn",
        "output::json",
    ];
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            look_for_prints(&path, faults);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let imports = line.strip_prefix("use crate::output::").unwrap_or_default();
            let mut words = imports.split(|c: char| !c.is_alphanumeric());
            if PRINTS.iter().any(|print| line.contains(print))
                || words.any(|word| ["line", "say", "text", "warn"].contains(&word))
            {
                faults.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
}

/// A place where an operation can be killed is a claim about what follows, and each claim has its test.
#[test]
fn each_fault_point_is_tried() {
    let root = env!("CARGO_MANIFEST_DIR");
    let [mut sources, mut tests] = [String::new(), String::new()];
    gather(&Path::new(root).join("src"), &mut sources);
    gather(&Path::new(root).join("tests/e2e"), &mut tests);
    let points: Vec<&str> = sources
        .split("fail_point!(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(points.len() > 30, "{points:?}");
    for point in points {
        let is_tried = ['"', '=']
            .iter()
            .any(|end| tests.contains(&format!("{point}{end}")));
        assert!(is_tried, "no test stops at {point}");
    }
}

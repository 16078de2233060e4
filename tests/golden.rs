//! The unit files of every case, whole. `tests/golden` holds one text per case: each unit below a
//! header with its name.
//!
//! After an intended change, record them anew and look at the difference:
//!
//! ```sh
//! LITELLM_UNITS_RECORD=1 cargo nextest run golden; git diff tests/golden
//! ```
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use crate::support::cases::{self, Case, SECRET};
use litellm_units::deployment::entrance::CONFIGURATION;
use litellm_units::quadlet::Place;

fn text(case: &Case) -> String {
    let mut text = String::new();
    for unit in case.units() {
        let place = match unit.place {
            Place::Quadlet => "containers",
            Place::Unit => "systemd",
        };
        writeln!(text, "# ==> {place}/{}\n{}", unit.name, unit.text).unwrap();
    }
    text
}

#[test]
fn units_are_as_recorded() {
    let directory = cases::golden_directory();
    let record = std::env::var_os("LITELLM_UNITS_RECORD").is_some();
    if record {
        fs::remove_dir_all(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
    }
    let mut different = Vec::new();
    for case in cases::all() {
        let text = text(&case);
        assert!(
            !text.contains(SECRET),
            "{}: a secret is in a unit file:\n{text}",
            case.name
        );
        if record {
            fs::write(case.golden(), &text).unwrap();
        }
        let recorded = fs::read_to_string(case.golden()).unwrap_or_default();
        if text != recorded {
            let diff = similar::TextDiff::from_lines(&recorded, &text);
            let diff = diff.unified_diff().header("recorded", "now").to_string();
            different.push(format!("{}\n{diff}", case.name));
        }
    }
    assert!(
        different.is_empty(),
        "if this is intended: LITELLM_UNITS_RECORD=1 cargo nextest run golden\n{}",
        different.join("\n")
    );
    let wanted: BTreeSet<_> = cases::all().iter().map(Case::golden).collect();
    let present: BTreeSet<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(
        present, wanted,
        "a recorded text without its case, or the reverse"
    );
}

/// The example for a Caddy of one's own is what the entrance has, with other networks, and without the name of our setting.
#[test]
fn the_example_for_caddy_is_the_entrance() {
    let example = include_str!("../packaging/examples/Caddyfile");
    let cases = cases::all();
    let case = cases.iter().find(|case| case.name == "system-5.4-entrance");
    let units = case.unwrap().units();
    let entrance = { units.iter() }.find(|unit| unit.name == CONFIGURATION);
    let site = |text: &str| {
        let at = text.find("llm.example.com {").unwrap();
        let own = "\t# For litellm-units, which looks at the certificate: no request to the gateway.\n\trespond /.well-known/litellm-units 204\n\n";
        let text = text[at..].replace(" 10.0.0.0/8 192.168.0.0/16\n", "\n");
        let named = " \"This path is open to the networks of PUBLIC_ADMIN_FROM only.\"";
        text.replace(own, "").replace(named, "")
    };
    assert_eq!(site(&entrance.unwrap().text), site(example));
}

/// Rendering is pure: a second time gives the same bytes, or `--check` would never be content.
#[test]
fn rendering_twice_gives_the_same() {
    for case in cases::all() {
        assert_eq!(case.units(), case.units(), "{}", case.name);
    }
}

//! What holds of any input: of files that people write, and of files that a loss of power cuts off.
//!
//! `PROPTEST_CASES` chooses how many inputs each gets.

use std::collections::BTreeMap;
use std::path::Path;

use litellm_units::deployment::configuration::Configuration;
use litellm_units::deployment::env_file::{EnvFile, SetError, quote};
use litellm_units::deployment::fleet::Fleet;
use litellm_units::deployment::ledger::{Ended, Event, Images, Ledger, OperationOutcome};
use litellm_units::deployment::listen::ListenAddress;
use litellm_units::deployment::operation_id::OperationId;
use litellm_units::deployment::settings::Settings;
use litellm_units::host::paths::{Paths, Scope};
use litellm_units::image::{Image, ImageIdentity, ImageReference};
use litellm_units::litellm::config;
use litellm_units::service::Service;
use proptest::prelude::*;

/// What lines of a `.env` are made of, whole and broken.
const PIECES: [&str; 34] = [
    "A",
    "B",
    "NAME",
    "export ",
    "=",
    " = ",
    ": ",
    "#",
    " # ",
    "\n",
    "\r\n",
    "\n\n",
    "'",
    "\"",
    "\\",
    "\\n",
    "\\\"",
    "$",
    "$$",
    "$A",
    "${A}",
    "${B:-",
    "${NAME:?",
    "${A+",
    "}",
    " ",
    "\t",
    "one",
    "two words",
    "sk-1234",
    "é",
    "\u{feff}",
    "=\"",
    "\"\n",
];

/// What lines of the gateway's configuration are made of.
const YAML: [&str; 40] = [
    "model_list:",
    "general_settings:",
    "litellm_settings:",
    "router_settings:",
    "include:",
    "  - model_name: a",
    "    litellm_params:",
    "      model: openai/a",
    "  master_key: ",
    "  database_url: ",
    "  cache_params: ",
    "{type: redis, host: localhost}",
    "os.environ/",
    "os.environ/OPENAI_API_KEY",
    "sk-hunter2hunter2",
    "\n",
    "\n  ",
    "\n    ",
    "- ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    "&a ",
    "*a",
    "<<: ",
    "!tag ",
    "---\n",
    "...",
    "#",
    "'",
    "\"",
    "|\n",
    ">-\n",
    "\t",
    "é",
    "\u{feff}",
    "null",
    "1",
];

/// What lines of a `fleet.toml` are made of.
const FLEET: [&str; 20] = [
    "[[host]]",
    "[host]",
    "[[",
    "ssh",
    "env",
    ".",
    " = ",
    "\"root@a\"",
    "\"hunter2\"",
    "'hunter2'",
    "\"\"\"",
    "{ A = \"hunter2\" }",
    "{ hunter2 = 1 }",
    "hunter2",
    "4711",
    "\n",
    "#",
    "\\u",
    "é",
    "\u{feff}",
];

/// What lines of a ledger are made of.
const LEDGER: [&str; 16] = [
    "{",
    "}",
    "\"",
    ":",
    ",",
    "\n",
    "\r",
    "\u{0}",
    "null",
    "1",
    "\"time\":\"2026-01-31T12:00:00Z\"",
    "{\"time\":\"2026-01-31T12:00:00Z\",\"event\":\"ended\",\"operation\":\"20260131T120000Z-0a1b2c\",\"outcome\":\"undone\"}",
    "\"event\":",
    "\"release\"",
    "[]",
    "é",
];

/// Texts that are often nearly what `pieces` are from.
fn assembled(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(pieces), 0..32).prop_map(|pieces| pieces.concat())
}

/// Values with everything in them that a grammar can trip over.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(&PIECES[..]), 0..8)
            .prop_map(|pieces| pieces.concat()),
        "\\PC{0,16}",
        any::<String>(),
    ]
}

fn cases(usual: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(usual),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn values(env: &EnvFile) -> BTreeMap<String, String> {
    env.iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

proptest! {
    #![proptest_config(cases(4096))]

    /// A file that is read is printed byte for byte; one that can't be says where.
    #[test]
    fn env_files_come_back(text in assembled(&PIECES)) {
        match EnvFile::parse(&text) {
            Ok(env) => prop_assert_eq!(env.text(), text),
            Err(error) => {
                prop_assert!(error.line() >= 1 && error.line() <= text.lines().count() + 1);
                prop_assert!(error.column() >= 1);
            }
        }
    }

    /// What is set is what is read, then and from the disk; nothing else changes but what refers to it.
    #[test]
    fn setting_touches_nothing_else(text in assembled(&PIECES), name in "A|B|NAME|NEW", value in value()) {
        let Ok(mut env) = EnvFile::parse(&text) else {
            return Ok(());
        };
        let before = env.clone();
        if let Err(error) = env.set(&name, &value) {
            let refused = matches!(error, SetError::Nul { .. } | SetError::Unreadable { .. });
            prop_assert!(refused, "{}", error);
            prop_assert_eq!(matches!(error, SetError::Nul { .. }), value.contains('\0'));
            prop_assert_eq!(env.text(), before.text());
            return Ok(());
        }
        prop_assert_eq!(env.get(&name), Some(value.as_str()));
        let again = EnvFile::parse(env.text()).expect("what was written can be read");
        prop_assert_eq!(values(&again), values(&env));
        if !before.text().contains('$') {
            let mut expected = values(&before);
            expected.insert(name.clone(), value.clone());
            prop_assert_eq!(values(&env), expected);
        }
        // Set again, it is as it is.
        let once = env.text().to_owned();
        env.set(&name, &value).unwrap();
        prop_assert_eq!(env.text(), once);
    }

    /// A quoted value is read as it was.
    #[test]
    fn quotes_hold_any_value(value in value()) {
        prop_assume!(!value.contains('\0'));
        let env = EnvFile::parse(&format!("A={}\nB=next\n", quote(&value))).unwrap();
        prop_assert_eq!(env.get("A"), Some(value.as_str()));
        prop_assert_eq!(env.get("B"), Some("next"));
    }
}

proptest! {
    #![proptest_config(cases(512))]

    /// Each finding is at a place of the text, and shows no secret of it.
    #[test]
    fn findings_are_in_the_text(text in prop_oneof![assembled(&YAML), any::<String>()]) {
        const ENV: &str = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nPOSTGRES_USER=a\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=a\nREDIS_PASSWORD=r\n";
        let env = EnvFile::parse(ENV).unwrap();
        let settings = Settings::from_env(&env, Path::new(".env")).unwrap();
        for finding in config::check(&text, Path::new("c.yaml"), &env, &settings) {
            prop_assert!((1..=text.lines().count() + 1).contains(&finding.line), "{}", finding);
            prop_assert!(finding.column >= 1, "{}", finding);
            prop_assert!(!finding.to_string().contains("hunter2"), "{}", finding);
        }
    }

    /// A ledger is read whole, or refused; the next line is read with what was there.
    #[test]
    fn ledgers_are_whole_or_refused(text in assembled(&LEDGER)) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::detect(Scope::System, Some(root.path().to_owned())).unwrap();
        std::fs::create_dir_all(paths.ledger().parent().unwrap()).unwrap();
        std::fs::write(paths.ledger(), &text).unwrap();
        let Ok(mut ledger) = Ledger::load(&paths) else {
            return Ok(());
        };
        let lines = text.matches('\n').count();
        prop_assert_eq!(ledger.records().len(), lines);
        ledger.append(Event::Ended(Ended {
            operation: OperationId::parse("20260131T120000Z-0a1b2c").unwrap(),
            outcome: OperationOutcome::Undone,
            reason: None,
        })).unwrap();
        prop_assert_eq!(Ledger::load(&paths).unwrap().records().len(), lines + 1);
    }

    /// A mistake has its line, and no value is quoted.
    #[test]
    fn fleets_are_read_or_refused(text in prop_oneof![assembled(&FLEET), any::<String>()]) {
        if let Err(error) = Fleet::parse(&text, Path::new("fleet.toml")) {
            let line = error.to_string();
            let line = line.strip_prefix("fleet.toml, line ").and_then(|rest| rest.split(':').next());
            let line: usize = line.unwrap().parse().unwrap();
            prop_assert!((1..=text.lines().count() + 1).contains(&line), "{}", error);
        }
    }

    /// A tar with bytes that are not as they were is read or refused; what is read is written as it was.
    #[test]
    fn tars_are_read_or_refused(changes in prop::collection::vec((0_usize..4096, any::<u8>()), 0..8)) {
        let regular = tar::EntryType::Regular;
        let mut tar = crate::fleet::tar(&[(".env", regular), ("config/x", regular), ("files/y", regular)]);
        for (at, byte) in changes {
            let length = tar.len();
            tar[at % length] = byte;
        }
        if let Ok(found) = Configuration::from_tar(&*tar) {
            let once = found.to_tar().unwrap();
            let again = Configuration::from_tar(&*once).ok().unwrap();
            prop_assert_eq!(again.to_tar().unwrap(), once);
        }
    }

    /// What is accepted as an image or an address is printed as it was written.
    #[test]
    fn words_come_back(word in "([a-z0-9./:@_-]|\\[|\\]|sha256:|::1|127\\.0\\.0\\.1:|é){0,24}") {
        if let Ok(image) = ImageReference::parse(&word) {
            prop_assert_eq!(image.to_string(), word.clone());
        }
        if let Ok(address) = ListenAddress::parse(&word) {
            let again = ListenAddress::parse(&address.to_string());
            prop_assert_eq!(again, Ok(address));
        }
    }
}

/// A loss of power at any byte of the ledger: what was complete is read, the rest counts as not written, and the
/// next line takes its place.
#[test]
fn every_prefix_of_a_ledger_is_read() {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths::detect(Scope::System, Some(root.path().to_owned())).unwrap();
    let mut ledger = Ledger::load(&paths).unwrap();
    for number in 0..3 {
        let image = Image {
            reference: format!("ghcr.io/berriai/litellm:v1.{number}.0"),
            identity: ImageIdentity {
                digest: format!("sha256:{}", number.to_string().repeat(64)),
                id: None,
            },
        };
        let images = Images::from_iter([(Service::Litellm, image)]);
        ledger.record_release(images, "upgrade é").unwrap();
    }
    let ended = |reason: &str| {
        Event::Ended(Ended {
            operation: OperationId::parse("20260131T120000Z-0a1b2c").unwrap(),
            outcome: OperationOutcome::Undone,
            reason: Some(reason.to_owned()),
        })
    };
    ledger.append(ended("two\nlines")).unwrap();
    let whole = std::fs::read(paths.ledger()).unwrap();
    for length in 0..=whole.len() {
        let prefix = &whole[..length];
        std::fs::write(paths.ledger(), prefix).unwrap();
        let complete = prefix.split(|byte| *byte == b'\n').count() - 1;
        let mut cut = Ledger::load(&paths).unwrap();
        assert_eq!(cut.records().len(), complete, "{length} bytes");
        cut.append(ended("later")).unwrap();
        let found = Ledger::load(&paths).unwrap();
        assert_eq!(found.records().len(), complete + 1, "{length} bytes");
    }
}

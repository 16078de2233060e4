//! The `.env` reader and writer, against what docker compose said.
//!
//! `tests/fixtures/env/record` makes each NAME.json from NAME.env. With `LITELLM_UNITS_RECORD` set,
//! `quoted.env` is written anew first, to be recorded with the others.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use litellm_units::deployment::env_file::{EnvFile, SetError, quote};

/// What a file says, by name; `None` if it cannot be read.
type Read = Option<BTreeMap<String, String>>;

type Expected = Option<&'static [(&'static str, &'static str)]>;

/// Where we differ from the recorded compose on purpose: see the module's
/// documentation.
const DIFFERENT: [(&str, Expected); 10] = [
    // A last line without a line break is not the value of no name.
    ("after-quote-bare-end", Some(&[("A", "x")])),
    ("bare-no-newline", Some(&[("A", "1")])),
    ("bare-two-words-end", None),
    // A value without a name is an error, not lost.
    ("no-name", None),
    // An unused default does not matter, as in compose-go since January 2026.
    ("lazy-alternative", Some(&[("B", "")])),
    ("lazy-default", Some(&[("A", "1"), ("B", "1")])),
    ("lazy-message", Some(&[("A", "1"), ("B", "1")])),
    ("lazy-required", Some(&[("A", "1"), ("B", "1")])),
    // No environment can hold it.
    ("nul", None),
    ("nul-escape", None),
];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/env")
}

fn read(text: &str) -> Read {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Some(EnvFile::parse(text).ok()?.iter().map(owned).collect())
}

/// All recorded cases: name, text and what compose read.
fn corpus() -> Vec<(String, String, Read)> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "env") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let record = fs::read_to_string(path.with_extension("json"))
            .unwrap_or_else(|_| panic!("{name} is not recorded: run tests/fixtures/env/record"));
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let compose = record["env"].as_object().map(|env| {
            env.iter()
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
                .collect()
        });
        assert_eq!(compose.is_none(), record["error"] == true, "{name}");
        cases.push((name, text, compose));
    }
    cases
}

#[test]
fn reads_what_compose_reads() {
    let mut different = BTreeMap::from(DIFFERENT);
    let corpus = corpus();
    assert!(corpus.len() > 100);
    for (name, text, compose) in corpus {
        let ours = read(&text);
        if let Some(expected) = different.remove(name.as_str()) {
            let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            let expected: Read = expected.map(|pairs| pairs.iter().map(owned).collect());
            assert_eq!(ours, expected, "{name}");
            assert_ne!(ours, compose, "{name} is no longer different");
        } else {
            assert_eq!(ours, compose, "{name}");
        }
    }
    assert!(different.is_empty(), "not in the corpus: {different:?}");
}

/// A small generator of the same numbers each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn value(&mut self) -> String {
        let length = self.below(9);
        (0..length).map(|_| self.pick(&PIECES)).collect()
    }
}

const PIECES: [&str; 58] = [
    "a", "Z", "7", "0", "123", "word", " ", "  ", "#", " #", "# ", "'", "\"", "''", "\"\"", "`",
    "\\", "\\\\", "\\n", "\\'", "\\\"", "\\$", "\\0", "\\0101", "$", "$$", "${", "${A}", "$A",
    "${A:-b}", "}", "{", "%", "%s", "=", ":", ";", "&", "|", "!", "~", "*", "?", "@", "/", "\n",
    "\r", "\r\n", "\t", "\u{7}", "\u{1b}", "\u{7f}", "é", "🔑", "\u{a0}", "\u{2028}", "\u{feff}",
    "export ",
];

fn tricky_values() -> Vec<String> {
    let mut numbers = Numbers(0x5EED);
    let mut values: Vec<String> = PIECES.iter().map(|&piece| piece.to_owned()).collect();
    values.push(String::new());
    values.push("long ".repeat(4000));
    values.extend((1..=0x9f).map(|code| format!("x{}7", char::from(code))));
    values.extend((0..400).map(|_| numbers.value()));
    values
}

fn quoted_env() -> String {
    let mut text = String::new();
    for (at, value) in tricky_values().iter().enumerate() {
        writeln!(text, "V{at}={}", quote(value)).unwrap();
    }
    text
}

/// `quoted.env` holds what `quote` makes of hundreds of values, so that
/// recording it asks compose for its opinion of `quote`.
#[test]
fn compose_reads_back_what_was_quoted() {
    let values = tricky_values();
    if std::env::var_os("LITELLM_UNITS_RECORD").is_some() {
        fs::write(fixtures().join("quoted.env"), quoted_env()).unwrap();
    }
    let text = fs::read_to_string(fixtures().join("quoted.env")).unwrap();
    assert!(
        text == quoted_env(),
        "run this test with LITELLM_UNITS_RECORD=1, then tests/fixtures/env/record"
    );
    let corpus = corpus();
    let (_, _, compose) = corpus.iter().find(|case| case.0 == "quoted").unwrap();
    let compose = compose.as_ref().unwrap();
    assert_eq!(compose.len(), values.len());
    for (at, value) in values.iter().enumerate() {
        assert_eq!(compose[&format!("V{at}")], *value);
    }
}

#[test]
fn quote_round_trips() {
    let mut numbers = Numbers(1);
    for _ in 0..20_000 {
        let value = numbers.value();
        let quoted = quote(&value);
        assert!(!quoted.contains(['\n', '\r']), "{quoted}");
        for end in ["", "\n", "\r\n", " # comment\n", "\t \n"] {
            if quoted.is_empty() && end.contains('#') {
                continue;
            }
            let file = EnvFile::parse(&format!("A={quoted}{end}")).unwrap();
            assert_eq!(file.get("A"), Some(value.as_str()), "{quoted}{end:?}");
            assert_eq!(file.warnings(), []);
        }
    }
}

/// Setting any variable of any readable file of the corpus to anything.
#[test]
fn set_changes_one_value_only() {
    let mut numbers = Numbers(2);
    for (case, text, _) in corpus() {
        let Ok(before) = EnvFile::parse(&text) else {
            continue;
        };
        let mut names: Vec<String> = before.iter().map(|(name, _)| name.to_owned()).collect();
        names.retain(|name| !name.contains(char::is_whitespace));
        names.truncate(10);
        names.push("NEW_NAME".to_owned());
        for name in names {
            let value = numbers.value();
            let mut after = before.clone();
            // What else may change, or even fail: what refers to this one.
            let refers = text.contains(&format!("${name}"))
                || text.contains(&format!("${{{name}"))
                // `$` from an octal escape
                || case == "double-octal";
            if let Err(error) = after.set(&name, &value) {
                assert!(refers, "{case}: {name}: {error}");
                assert!(matches!(error, SetError::Unreadable { .. }), "{case}");
                assert_eq!(after.text(), text);
                continue;
            }
            assert_eq!(after.get(&name), Some(value.as_str()), "{case}: {name}");
            let (start, end) = around(&text, &before, &name);
            assert!(after.text().starts_with(start), "{case}: {name}");
            assert!(after.text().ends_with(end), "{case}: {name}");
            for (other, old) in before.iter().filter(|&(other, _)| other != name) {
                if !refers {
                    assert_eq!(after.get(other), Some(old), "{case}: {name}, {other}");
                }
            }
            let once = after.text().to_owned();
            after.set(&name, &value).unwrap();
            assert_eq!(after.text(), once, "{case}");
            // Back again: but for the way of quoting, the file is the old one.
            if let Some(old) = before.get(&name) {
                after.set(&name, old).unwrap();
                assert_eq!(read(after.text()), read(&text), "{case}: {name}");
            }
        }
    }
}

/// The text before and after the lines of a variable's definition.
fn around<'a>(text: &'a str, file: &EnvFile, name: &str) -> (&'a str, &'a str) {
    let Some(line) = file.line(name) else {
        return (text, "");
    };
    let mut ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    ends.insert(0, 0);
    ends.push(text.len());
    // The definition is complete as soon as the text up to there can be read.
    let end = ends[line..]
        .iter()
        .find(|&&end| EnvFile::parse(&text[..end]).is_ok_and(|part| part.line(name) == Some(line)));
    (&text[..ends[line - 1]], &text[*end.unwrap()..])
}

#[track_caller]
fn sets(before: &str, name: &str, value: &str, after: &str) {
    let mut file = EnvFile::parse(before).unwrap();
    file.set(name, value).unwrap();
    assert_eq!(file.text(), after);
    assert_eq!(file.get(name), Some(value));
}

#[test]
fn set_keeps_every_other_byte() {
    sets("A=1\nB=2\nC=3\n", "B", "new", "A=1\nB=new\nC=3\n");
    sets(
        "\u{feff}# top\r\n\r\n export  B :\t old \t # why\r\nA='x'",
        "B",
        "n w",
        "\u{feff}# top\r\n\r\n export  B :\t 'n w' \t # why\r\nA='x'",
    );
    sets("A=1 # c", "A", "2", "A=2 # c");
    sets("A=1", "A", "2", "A=2");
    sets("A=\nB=2\n", "A", "1", "A=1\nB=2\n");
    sets("A=  \nB=2\n", "A", "1", "A=  1\nB=2\n");
    sets("A=1\nB=2\nA=3\n", "A", "4", "A=1\nB=2\nA=4\n");
    sets("A='one\ntwo' # c\nB=2\n", "A", "3", "A='3' # c\nB=2\n");
    sets("A=\"one\"B=2\n", "A", "3", "A=\"3\"B=2\n");
    sets("A=\"one\"#c\n", "A", "", "A=\"\"#c\n");
    sets("A=one #c\n", "A", "", "A='' #c\n");
    sets("A=one \n", "A", "", "A= \n");
    sets("A='one'\n", "A", "it's", "A=\"it's\"\n");
    sets("A=one\n", "A", "a\nb$c\\", "A=\"a\\nb\\$c\\\\\"\n");
    sets("A=${B:-x}\n", "A", "${B}", "A='${B}'\n");
}

#[test]
fn set_leaves_a_variable_with_that_value_alone() {
    sets("B=1\nA=\"${B}\" # c\n", "A", "1", "B=1\nA=\"${B}\" # c\n");
}

#[test]
fn set_turns_what_looks_like_a_comment_into_one() {
    sets("A= # the key\n", "A", "k", "A=k # the key\n");
    sets("A:   # the key\n", "A", "", "A:  '' # the key\n");
    sets("A=# b\n", "A", "k", "A=k\n");
    sets("A= #pass\n", "A", "k", "A= k\n");
}

#[test]
fn set_gives_a_bare_name_its_value() {
    sets(
        "B=1\nexport A \nC=2\n",
        "A",
        "x y",
        "B=1\nexport A='x y' \nC=2\n",
    );
    sets("B=1\nA", "A", "", "B=1\nA=");
    sets("A\r\nA\r\n", "A", "2", "A\r\nA=2\r\n");
}

#[test]
fn set_adds_what_is_missing() {
    sets("", "A", "1", "A=1\n");
    sets("\u{feff}", "A", "1", "\u{feff}A=1\n");
    sets("B=2\n", "A", "1", "B=2\nA=1\n");
    sets("B=2", "A", "1", "B=2\nA=1\n");
    sets("# c\r\nB=2", "A", "1", "# c\r\nB=2\r\nA=1\r\n");
    sets("# A=1", "A", "2", "# A=1\nA=2\n");
}

#[test]
fn append_writes_a_block() {
    let mut file = EnvFile::parse("A=1").unwrap();
    file.append(&["What it is.", "", "Two\nlines"], "B", "b c")
        .unwrap();
    file.append(&[], "C", "3").unwrap();
    file.append(&["D"], "D", "").unwrap();
    assert_eq!(
        file.text(),
        "A=1\n\n# What it is.\n#\n# Two\n# lines\nB='b c'\nC=3\n\n# D\nD=\n"
    );
    assert_eq!(
        file.append(&["A"], "A", "1").unwrap_err().to_string(),
        "A is already defined on line 1"
    );

    let mut file = EnvFile::parse("").unwrap();
    file.append(&["top"], "A", "1").unwrap();
    assert_eq!(file.text(), "# top\nA=1\n");

    let mut file = EnvFile::parse("A=1\r\n\r\n").unwrap();
    file.append(&["two\r\nlines"], "B", "2").unwrap();
    assert_eq!(file.text(), "A=1\r\n\r\n# two\r\n# lines\r\nB=2\r\n");
}

#[test]
fn set_refuses_what_a_file_cannot_hold() {
    let mut file = EnvFile::parse("A=1\nB=${A:?must}\n").unwrap();
    for name in ["", "A B", "A=B", "A:", "A\n", "#A", "'A'", " A"] {
        let error = file.set(name, "secret").unwrap_err();
        assert!(matches!(error, SetError::Name { .. }), "{name}");
    }
    let error = file.set("A", "sec\0ret").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the value for A contains a NUL character"
    );
    let error = file.set("A", "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "with this value for A the file could not be read any more"
    );
    assert_eq!(file.text(), "A=1\nB=${A:?must}\n");
    assert_eq!(file.get("A"), Some("1"));
}

#[test]
fn nothing_shows_values() {
    let texts = [
        "A=hunter2\nA='hunter2'\nB=\"${hunter\"\n",
        "A=hunter2\nB=pa$hunter2\nhunter2\nC= # hunter2\nD='hunter2'hunter2",
        "A='hunter2\n",
        "A=\"hunter2\n",
        "hunter2+\n",
        "hunter2 hunter2\n",
        "=hunter2\n",
        "A=${hunter2 }\n",
        "A=hunter2\nB=${C:?hunter2}\n",
        "A=\"\\012hunter2\"\nB=$A$hunter2\n",
    ];
    for text in texts {
        let shown = match EnvFile::parse(text) {
            Ok(file) => {
                let warnings = file.warnings().iter().map(ToString::to_string);
                format!("{file:?} {}", warnings.collect::<String>())
            }
            Err(error) => format!("{error:?} {error} {}", error.hint()),
        };
        assert!(!shown.contains("hunter"), "{shown}");
    }
}

#[test]
fn only_the_values_are_rewritten() {
    let text = "\u{feff}# A=1\r\nA = 'one' # first\r\n export A: \"two\nlines\"B=3\nC=$A$$\nD\nE= # not a comment\nF=end";
    let mut env = EnvFile::parse(text).unwrap();
    let found: Vec<String> = env
        .definitions()
        .map(|found| {
            format!(
                "{} {} {:?} {:?}",
                found.line, found.name, found.value, found.text
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            r#"2 A "one" "'one'""#,
            r#"3 A "two\nlines" "\"two\nlines\"""#,
            r#"4 B "3" "3""#,
            r#"5 C "two\nlines$" "$A$$""#,
            r##"7 E "# not a comment" "# not a comment""##,
            r#"8 F "end" "end""#,
        ]
    );
    env.rewrite(|_| None).unwrap();
    assert_eq!(env.text(), text);
    env.rewrite(|found| (found.name != "C").then(|| format!("'{}'", found.line)))
        .unwrap();
    assert_eq!(
        env.text(),
        "\u{feff}# A=1\r\nA = '2' # first\r\n export A: '3'B='4'\nC=$A$$\nD\nE= '7'\nF='8'"
    );
    assert_eq!(env.get("C"), Some("3$"));
    assert!(
        env.rewrite(|found| (found.name == "F").then(|| "'".into()))
            .is_err()
    );
    assert_eq!(env.get("C"), Some("3$"));
}

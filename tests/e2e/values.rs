//! Values with every character that some grammar on the way treats specially, in a deployment
//! directory with a space in its name.

use std::fmt::Write;

use litellm_units::deployment::env_file::quote;

use crate::support::gateway::{HELLO, chat, environment, new_key_with};
use crate::support::host::{TestHost, Who};

/// What a password can hold.
const PASSWORD: &str =
    " \"double\" 'single' `back` $A ${B} $$ %s %% %n \\ \\n # é 🔑 @:/?&=+;,|<>(){}[]*!~^ ";

/// The same for a header, which is ASCII and has no blanks at its end.
const MASTER_KEY: &str =
    "sk-\"double\" 'single' `back` $A ${B} $$ %s %% %n \\ \\n # @:/?&=+;,|<>(){}[]*!~^";

/// Variables of the gateway alone.
const EXTRA: [(&str, &str); 12] = [
    ("E_DOUBLE", "\""),
    ("E_SINGLE", "'"),
    ("E_DOLLAR", "$HOME ${HOME} $(id) `id`"),
    ("E_PERCENT", "%h %% %"),
    ("E_BACKSLASH", "\\ \\\\ \\n \\"),
    ("E_HASH", "# a #b"),
    ("E_BLANKS", "  leading and trailing\t "),
    ("E_LINES", "one\ntwo\r\n\nfour\n"),
    ("E_UNICODE", "é ß 漢 \u{a0}\u{2028}\u{feff} 🔑"),
    ("E_JSON", r#"{"a": ["b\n", {"c": "$d"}], "e=f": 'g'}"#),
    ("E_CONTROL", "\u{1}\u{1b}[31m\u{7f}"),
    ("E_EMPTY", ""),
];

#[track_caller]
fn assert_variables(host: &TestHost, who: Who, container: &str, expected: &[(&str, &str)]) {
    let environment = environment(host, who, container);
    let found: Vec<(&str, &str)> = expected
        .iter()
        .map(|(name, _)| {
            let found = environment.iter().find(|(other, _)| other == name);
            (
                *name,
                found.map_or("(missing)", |(_, value)| value.as_str()),
            )
        })
        .collect();
    assert_eq!(found, expected, "{container}");
}

fn any_value_arrives(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    let deployment = match who {
        Who::Root => "/srv/my gateway",
        Who::Operator => "/home/operator/my gateway",
    };
    let mut env = String::new();
    for (name, value) in [
        ("POSTGRES_PASSWORD", PASSWORD),
        ("POSTGRES_USER", "the user"),
        ("POSTGRES_DB", "a-b.c_~"),
        ("REDIS_PASSWORD", PASSWORD),
        ("LITELLM_MASTER_KEY", MASTER_KEY),
    ]
    .iter()
    .chain(&EXTRA)
    {
        writeln!(env, "{name}={}", quote(value)).unwrap();
    }
    host.run(who, &["mkdir", deployment]).ok();
    host.write(who, &format!("{deployment}/.env"), &env);
    host.units(who, &["up", "--litellm-dir", deployment]).ok();

    let key = new_key_with(&host, who, MASTER_KEY);
    assert_eq!(chat(&host, who, &key).as_deref(), Ok(HELLO));
    let header = format!("Authorization: Bearer {MASTER_KEY}");
    let ping = [
        "curl",
        "-sS",
        "--max-time",
        "20",
        "-H",
        &header,
        "http://127.0.0.1:24157/cache/ping",
    ];
    let ping = host.run(who, &ping).ok();
    let ping: serde_json::Value = serde_json::from_str(&ping).unwrap_or_else(|_| panic!("{ping}"));
    assert_eq!(ping["status"], "healthy", "{ping}");

    assert_variables(
        &host,
        who,
        "litellm-postgres",
        &[
            ("POSTGRES_USER", "the user"),
            ("POSTGRES_PASSWORD", PASSWORD),
            ("POSTGRES_DB", "a-b.c_~"),
        ],
    );
    assert_variables(&host, who, "litellm-redis", &[("REDISCLI_AUTH", PASSWORD)]);
    let gateway = [
        ("LITELLM_MASTER_KEY", MASTER_KEY),
        ("REDIS_PASSWORD", PASSWORD),
    ];
    assert_variables(&host, who, "litellm", &[&gateway[..], &EXTRA].concat());
}

#[test]
fn any_value_arrives_rootful() {
    any_value_arrives(Who::Root, "values-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn any_value_arrives_rootless() {
    any_value_arrives(Who::Operator, "values-rootless");
}

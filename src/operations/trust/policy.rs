//! Podman's `policy.json` (containers-policy.json(5)): its requirements for an image, and edits
//! that keep every other byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};
use serde_json::Value;

use crate::error::{Failure, Result};

/// The requirements of each scope.
pub(crate) type Scopes = BTreeMap<String, Value>;

/// The file's content.
#[derive(Debug)]
pub struct Policy {
    text: String,
    path: PathBuf,
    default: Value,
    /// The scopes of images that are pulled, in the order of the file.
    scopes: Vec<(String, Value)>,
}

/// The rule that applies to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand<'a> {
    /// Its scope; `None` for the policy's default.
    pub scope: Option<&'a str>,
    requirements: &'a Value,
}

impl Demand<'_> {
    /// Whether every image is accepted.
    #[must_use]
    pub fn accepts_anything(&self) -> bool {
        self.types().all(|kind| kind == "insecureAcceptAnything")
    }

    /// The types of its requirements.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.requirements
            .as_array()
            .into_iter()
            .flatten()
            .map(|requirement| requirement["type"].as_str().unwrap_or_default())
    }

    /// The files of its keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.requirements
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|requirement| {
                let several = requirement["keyPaths"].as_array().into_iter().flatten();
                std::iter::once(&requirement["keyPath"]).chain(several)
            })
            .filter_map(Value::as_str)
    }
}

impl Policy {
    /// Reads a policy; `path` is for messages only.
    ///
    /// # Errors
    /// When Podman could not read it, with file and line.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let damaged = |line: usize, problem: &str| {
            anyhow::Error::from(
                Failure::new(format!("{}, line {line}: {problem}", path.display())).hint(
                    "Podman pulls nothing until the file is valid: correct it, or restore it from a backup or its package",
                ),
            )
        };
        // Podman accepts plain JSON only, as serde_json does.
        serde_json::from_str::<Value>(text)
            .map_err(|error| damaged(error.line(), &error.to_string()))?;
        let root = CstRootNode::parse(text, &ParseOptions::default())
            .map_err(|error| damaged(error.line_display(), &error.kind().to_string()))?;
        let Some(root) = root.object_value() else {
            return Err(damaged(1, "not a JSON object"));
        };
        let object = |parent: &CstObject, name: &str| -> Result<Option<CstObject>> {
            once(parent, name).map_err(|problem| damaged(line_of(text, name), &problem))?;
            match parent.get(name) {
                None => Ok(None),
                Some(property) => property.object_value().map(Some).ok_or_else(|| {
                    damaged(line_of(text, name), &format!("{name:?} is not an object"))
                }),
            }
        };
        let requirements = |parent: &CstObject, name: &str| -> Result<Value> {
            once(parent, name).map_err(|problem| damaged(line_of(text, name), &problem))?;
            let value = parent
                .get(name)
                .and_then(|property| property.value())
                .and_then(|value| serde_json::from_str::<Value>(&value.to_string()).ok());
            match value {
                Some(value)
                    if value.as_array().is_some_and(|list| {
                        !list.is_empty() && list.iter().all(|item| item["type"].is_string())
                    }) =>
                {
                    Ok(value)
                }
                _ => Err(damaged(
                    line_of(text, name),
                    &format!("{name:?} is not a list of requirements"),
                )),
            }
        };
        if root.get("default").is_none() {
            return Err(damaged(1, "it has no \"default\""));
        }
        let default = requirements(&root, "default")?;
        let mut scopes = Vec::new();
        if let Some(transports) = object(&root, "transports")?
            && let Some(docker) = object(&transports, "docker")?
        {
            for property in docker.properties() {
                let scope = property.decoded_name().unwrap_or_default();
                scopes.push((scope.clone(), requirements(&docker, &scope)?));
            }
        }
        Ok(Self {
            text: text.to_owned(),
            path: path.to_owned(),
            default,
            scopes,
        })
    }

    /// The text that it was read from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The rule for an image or for all below a name; `rest` is `:TAG`, `@DIGEST` or empty. Only
    /// the most specific scope applies.
    #[must_use]
    pub fn demand(&self, name: &str, rest: &str) -> Demand<'_> {
        let mut candidates = vec![format!("{name}{rest}")];
        let mut parent = name;
        loop {
            candidates.push(parent.to_owned());
            match parent.rsplit_once('/') {
                Some((shorter, _)) => parent = shorter,
                None => break,
            }
        }
        let mut domain = parent;
        while let Some((_, shorter)) = domain.split_once('.') {
            candidates.push(format!("*.{shorter}"));
            domain = shorter;
        }
        candidates.push(String::new());
        candidates
            .iter()
            .find_map(|candidate| self.scopes.iter().find(|(scope, _)| scope == candidate))
            .map_or(
                Demand {
                    scope: None,
                    requirements: &self.default,
                },
                |(scope, requirements)| Demand {
                    scope: Some(scope),
                    requirements,
                },
            )
    }

    /// The scopes that are `scope` or below it, in the order of the file.
    pub fn below<'a>(&'a self, scope: &'a str) -> impl Iterator<Item = Demand<'a>> {
        self.scopes
            .iter()
            .filter(move |(other, _)| {
                other
                    .strip_prefix(scope)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
            })
            .map(|(scope, requirements)| Demand {
                scope: Some(scope),
                requirements,
            })
    }

    /// Whether this scope has exactly these requirements.
    #[must_use]
    pub fn has(&self, scope: &str, requirements: &Value) -> bool {
        self.scopes
            .iter()
            .any(|(other, found)| other == scope && found == requirements)
    }

    /// File and line of the rule.
    #[must_use]
    pub fn place(&self, demand: Demand) -> String {
        let line = line_of(&self.text, demand.scope.unwrap_or("default"));
        format!("{}, line {line}", self.path.display())
    }

    /// The text with these scopes added.
    #[must_use]
    pub fn with(&self, scopes: &Scopes) -> String {
        self.edited(|docker| {
            for (scope, requirements) in scopes {
                docker.append(scope, input(requirements));
            }
        })
    }

    /// The text without these scopes.
    #[must_use]
    pub fn without<'a>(&self, scopes: impl IntoIterator<Item = &'a String> + Clone) -> String {
        let mut present = scopes.clone().into_iter();
        if !present.any(|scope| self.scopes.iter().any(|(other, _)| other == scope)) {
            return self.text.clone();
        }
        self.edited(|docker| {
            for scope in scopes {
                if let Some(property) = docker.get(scope) {
                    property.remove();
                }
            }
        })
    }

    fn edited(&self, edit: impl FnOnce(CstObject)) -> String {
        // `parse` has checked that these are objects, if they exist.
        let Ok(root) = CstRootNode::parse(&self.text, &ParseOptions::default()) else {
            return self.text.clone();
        };
        let docker = root
            .object_value_or_set()
            .object_value_or_set("transports")
            .object_value_or_set("docker");
        edit(docker);
        root.to_string()
    }
}

/// Refuses a duplicate name, as Podman does.
fn once(object: &CstObject, name: &str) -> std::result::Result<(), String> {
    let count = object
        .properties()
        .iter()
        .filter(|property| property.decoded_name().as_deref() == Some(name))
        .count();
    if count > 1 {
        return Err(format!("{name:?} is there twice"));
    }
    Ok(())
}

/// The last line with the name as a key, from 1.
fn line_of(text: &str, name: &str) -> usize {
    let quoted = Value::from(name).to_string();
    text.rmatch_indices(&quoted)
        .find(|(at, _)| text[at + quoted.len()..].trim_start().starts_with(':'))
        .map_or(1, |(at, _)| text[..at].matches('\n').count() + 1)
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(value) => CstInputValue::Number(value.to_string()),
        Value::String(value) => CstInputValue::String(value.clone()),
        Value::Array(items) => CstInputValue::Array(items.iter().map(input).collect()),
        // The type first, as is usual.
        Value::Object(entries) => {
            let (types, others): (Vec<_>, Vec<_>) =
                entries.iter().partition(|(name, _)| *name == "type");
            let entries = types.into_iter().chain(others);
            CstInputValue::Object(
                entries
                    .map(|(name, value)| (name.clone(), input(value)))
                    .collect(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PATH: &str = "/etc/containers/policy.json";

    /// Four spaces, other scopes, a transport and a key that this program does not know.
    const RICH: &str = r#"{
    "default": [{"type": "insecureAcceptAnything"}],
    "transports": {
        "docker": {
            "registry.example.com": [{"type": "reject"}],
            "*.example.org": [ {"type":"signedBy", "keyType":"GPGKeys", "keyPath":"/etc/pki/x"} ]
        },
        "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]}
    },
    "future": 1.50
}
"#;

    fn policy(text: &str) -> Policy {
        Policy::parse(text, Path::new(PATH)).unwrap()
    }

    fn ours() -> Scopes {
        [
            (
                "ghcr.io/berriai".to_owned(),
                json!([{"type": "sigstoreSigned", "keyPath": "/k.pub"}]),
            ),
            (
                "ghcr.io/berriai/litellm@sha256:1".to_owned(),
                json!([{"type": "insecureAcceptAnything"}]),
            ),
        ]
        .into()
    }

    #[test]
    fn other_bytes_stay() {
        assert_eq!(
            policy(RICH).with(&ours()),
            r#"{
    "default": [{"type": "insecureAcceptAnything"}],
    "transports": {
        "docker": {
            "registry.example.com": [{"type": "reject"}],
            "*.example.org": [ {"type":"signedBy", "keyType":"GPGKeys", "keyPath":"/etc/pki/x"} ],
            "ghcr.io/berriai": [
                {
                    "type": "sigstoreSigned",
                    "keyPath": "/k.pub"
                }
            ],
            "ghcr.io/berriai/litellm@sha256:1": [
                {
                    "type": "insecureAcceptAnything"
                }
            ]
        },
        "docker-daemon": {"": [{"type": "insecureAcceptAnything"}]}
    },
    "future": 1.50
}
"#
        );
        let ours = ours();
        assert_eq!(policy(&policy(RICH).with(&ours)).without(ours.keys()), RICH);
    }

    #[test]
    fn what_is_added_is_all_that_differs() {
        let ours = ours();
        for text in [
            RICH,
            r#"{"default":[{"type":"reject"}]}"#,
            r#"{"default":[{"type":"reject"}],"transports":{}}"#,
            r#"{"default":[{"type":"reject"}],"transports":{"docker":{}}}"#,
            "{\n\t\"default\": [\n\t\t{\n\t\t\t\"type\": \"insecureAcceptAnything\"\n\t\t}\n\t]\n}",
        ] {
            let with = policy(text).with(&ours);
            let mut expected: Value = serde_json::from_str(text).unwrap();
            for (scope, requirements) in &ours {
                expected["transports"]["docker"][scope] = requirements.clone();
            }
            assert_eq!(serde_json::from_str::<Value>(&with).unwrap(), expected);
            let without = policy(&with).without(ours.keys());
            for scope in ours.keys() {
                expected["transports"]["docker"]
                    .as_object_mut()
                    .unwrap()
                    .remove(scope);
            }
            assert_eq!(serde_json::from_str::<Value>(&without).unwrap(), expected);
        }
    }

    #[test]
    fn the_most_specific_scope_counts() {
        let text = policy(RICH).with(&ours());
        let policy = policy(&text);
        for (name, rest, scope, accepts) in [
            ("quay.io/x/y", ":1", None, true),
            (
                "registry.example.com/x",
                ":1",
                Some("registry.example.com"),
                false,
            ),
            ("a.b.example.org/x", ":1", Some("*.example.org"), false),
            ("example.org/x", ":1", None, true),
            (
                "ghcr.io/berriai/litellm",
                ":v1",
                Some("ghcr.io/berriai"),
                false,
            ),
            (
                "ghcr.io/berriai/litellm",
                "@sha256:1",
                Some("ghcr.io/berriai/litellm@sha256:1"),
                true,
            ),
            (
                "ghcr.io/berriai/litellm",
                "@sha256:2",
                Some("ghcr.io/berriai"),
                false,
            ),
            ("ghcr.io/berriaix/litellm", ":1", None, true),
        ] {
            let demand = policy.demand(name, rest);
            assert_eq!(
                (demand.scope, demand.accepts_anything()),
                (scope, accepts),
                "{name}{rest}"
            );
        }
        let below: Vec<_> = policy
            .below("ghcr.io/berriai")
            .map(|found| found.scope)
            .collect();
        assert_eq!(
            below,
            [
                Some("ghcr.io/berriai"),
                Some("ghcr.io/berriai/litellm@sha256:1")
            ]
        );
        assert_eq!(
            policy.place(policy.demand("a.example.org/x", ":1")),
            "/etc/containers/policy.json, line 6"
        );
    }

    #[test]
    fn a_damaged_file_is_named_with_its_line() {
        for (text, problem) in [
            ("", "line 1: EOF while parsing a value at line 1 column 0"),
            ("[]", "line 1: not a JSON object"),
            (
                "{\n\"default\": [\n",
                "line 3: EOF while parsing a list at line 3 column 0",
            ),
            (
                "{\n\"default\": [],}",
                "line 2: trailing comma at line 2 column 15",
            ),
            (
                "{\n// no\n}",
                "line 2: key must be a string at line 2 column 1",
            ),
            ("{}", "line 1: it has no \"default\""),
            (
                "{\n\"default\": []}",
                "line 2: \"default\" is not a list of requirements",
            ),
            (
                "{\"default\": [{\"type\": \"reject\"}],\n\"transports\": []}",
                "line 2: \"transports\" is not an object",
            ),
            (
                "{\"default\": [{\"type\": \"reject\"}], \"transports\": {\"docker\": {\n\"a\": [{\"type\": \"reject\"}],\n\"a\": [{\"type\": \"reject\"}]}}}",
                "line 3: \"a\" is there twice",
            ),
        ] {
            let error = Policy::parse(text, Path::new(PATH)).unwrap_err();
            assert_eq!(error.to_string(), format!("{PATH}, {problem}"));
        }
    }

    /// What a policy is made of.
    const POLICY: [&str; 20] = [
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\n",
        " ",
        "\"default\"",
        "\"transports\"",
        "\"docker\"",
        "\"type\"",
        "\"reject\"",
        "\"default\": [{\"type\": \"reject\"}]",
        "\"transports\": {\"docker\": {",
        "}}",
        "\"ghcr.io/a\": ",
        "[{\"type\": \"insecureAcceptAnything\"}]",
        "// x\n",
        "\\u0041",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A policy that is accepted is kept byte for byte, and what is added to it comes out again.
        #[test]
        fn policies_keep_what_they_have(text in prop::collection::vec(prop::sample::select(&POLICY[..]), 0..32)) {
            let (text, path) = (text.concat(), Path::new(PATH));
            let Ok(policy) = Policy::parse(&text, path) else {
                return Ok(());
            };
            prop_assert_eq!(policy.text(), &text);
            let scope = "ghcr.io/ours".to_owned();
            let ours = BTreeMap::from([(scope.clone(), json!([{"type": "reject"}]))]);
            let more = Policy::parse(&policy.with(&ours), path).unwrap();
            prop_assert!(more.has(&scope, &ours[&scope]));
            let less = Policy::parse(&more.without([&scope]), path).unwrap();
            prop_assert!(!less.has(&scope, &ours[&scope]));
            prop_assert!(policy.below("").eq(less.below("")));
        }
    }
}

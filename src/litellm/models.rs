//! The names of the models in the gateway's own configuration.

use std::collections::BTreeSet;
use std::path::Path;

use crate::deployment::env_file::EnvFile;
use crate::error::{Failure, Result};
use crate::yaml;

/// The names under `model_list` of the configuration at `path`, each once, in its order.
pub(crate) fn configured(path: &Path) -> Result<Vec<String>> {
    let wrong = |problem: &str| {
        Failure::config(format!("{}: {problem}", path.display()))
            .hint("see all findings: `litellm-units config check`")
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    parse(&text).map_err(|problem| wrong(&problem).into())
}

fn parse(text: &str) -> std::result::Result<Vec<String>, String> {
    let root = yaml::parse(text)
        .map_err(|error| format!("line {}: not valid YAML: {}", error.at.line, error.message))?;
    let mut names: Vec<String> = Vec::new();
    let models = root.as_ref().and_then(|root| root.get("model_list"));
    for model in models.map_or(&[][..], |models| models.items()) {
        if let Some(name) = model.get("model_name").and_then(yaml::Node::text)
            && !name.is_empty()
            && !names.iter().any(|other| other == name)
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Where the models' `api_base` lead: scheme, host and port, each once. What can't be read is for `config check`.
pub(crate) fn servers(path: &Path, env: &EnvFile) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    parse_servers(&text, env)
}

fn parse_servers(text: &str, env: &EnvFile) -> Vec<String> {
    let mut servers = BTreeSet::new();
    let Ok(Some(root)) = yaml::parse(text) else {
        return Vec::new();
    };
    let models = root.get("model_list");
    for model in models.map_or(&[][..], |models| models.items()) {
        let base = model
            .get("litellm_params")
            .and_then(|parameters| parameters.get("api_base")?.text());
        let base = base.and_then(|base| match base.strip_prefix("os.environ/") {
            // A sealed one is no URL.
            Some(name) => env.get(name),
            None => Some(base),
        });
        if let Some(url) = base.and_then(|base| reqwest::Url::parse(base).ok())
            && url.has_host()
        {
            // Neither path nor password: arguments are for all to see.
            servers.insert(url.origin().ascii_serialization());
        }
    }
    servers.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_servers};
    use crate::deployment::env_file::EnvFile;

    #[test]
    fn servers_of_models() {
        let text = r#"
model_list:
  - model_name: a
    litellm_params: {model: openai/a, api_base: "https://u:p@llm.example.org/v1"}
  - model_name: b
    litellm_params: {model: openai/b, api_base: os.environ/BASE}
  - model_name: c
    litellm_params: {model: openai/c, api_base: "https://llm.example.org:443/v2"}
  - model_name: d
    litellm_params: {model: openai/d, api_base: os.environ/UNSET}
  - model_name: e
    litellm_params: {model: openai/e}
"#;
        let env = EnvFile::parse("BASE=http://10.0.0.1:8000/v1\n").unwrap();
        assert_eq!(
            parse_servers(text, &env),
            ["http://10.0.0.1:8000", "https://llm.example.org"]
        );
        assert_eq!(parse_servers("a: [", &env), [""; 0]);
    }

    #[test]
    fn names() {
        let text = r#"
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o}
  - &common
    litellm_params: {model: x, api_key: "os.environ/KEY"}
    model_name: "two words"
  - <<: *common
    model_name: merged
  - *common
  - model_name: gpt-4o
  - model_name: openai/*
  - litellm_params: {model: nameless}
general_settings: {model_list: [{model_name: not-this}]}
"#;
        assert_eq!(
            parse(text).unwrap(),
            ["gpt-4o", "two words", "merged", "openai/*"]
        );
        assert_eq!(parse("").unwrap(), [""; 0]);
        assert_eq!(parse("model_list:\n").unwrap(), [""; 0]);
        assert!(parse("a: [").is_err());
    }
}

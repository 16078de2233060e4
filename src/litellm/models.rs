//! The names of the models in the gateway's own configuration.

use std::path::Path;

use crate::error::{Failure, Result};
use crate::yaml;

/// The names under `model_list` of the configuration at `path`, each once, in its order.
///
/// # Errors
/// When the file can't be read, or is no YAML.
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

#[cfg(test)]
mod tests {
    use super::parse;

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

//! The names of the models in the gateway's own configuration.

use std::collections::HashMap;
use std::path::Path;

use saphyr_parser::{Event, Parser};

use crate::error::{Failure, Result};

/// How deep the configuration may nest.
const MAX_DEPTH: usize = 64;

/// As much of a YAML document as is needed here.
#[derive(Clone, Debug)]
enum Node {
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Node)>),
}

impl Node {
    fn get(&self, name: &str) -> Option<&Node> {
        match self {
            Self::Mapping(pairs) => pairs
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, node)| node),
            _ => None,
        }
    }
}

/// The names under `model_list` of the configuration at `path`, each once, in its order.
///
/// # Errors
/// When the file can't be read, or is no YAML.
pub fn load(path: &Path) -> Result<Vec<String>> {
    let wrong = |problem: &str| {
        Failure::config(format!("{}: {problem}", path.display()))
            .hint("mend the file, or name the models with --model")
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    parse(&text).map_err(|problem| wrong(&problem).into())
}

fn parse(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
    };
    let Some(root) = reader.document()? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    if let Some(Node::Sequence(models)) = root.get("model_list") {
        for model in models {
            if let Some(Node::Scalar(name)) = model.get("model_name")
                && !name.is_empty()
                && !names.contains(name)
            {
                names.push(name.clone());
            }
        }
    }
    Ok(names)
}

struct Reader<'a, I: saphyr_parser::Input> {
    parser: Parser<'a, I>,
    anchors: HashMap<usize, Node>,
}

impl<'a, I: saphyr_parser::Input> Reader<'a, I> {
    fn next(&mut self) -> std::result::Result<Event<'a>, String> {
        match self.parser.next_event() {
            Some(Ok((event, _))) => Ok(event),
            // Its words hold a position and no text of the file, which may hold keys.
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    fn document(&mut self) -> std::result::Result<Option<Node>, String> {
        loop {
            match self.next()? {
                Event::StreamEnd => return Ok(None),
                Event::DocumentStart(_) => {
                    let event = self.next()?;
                    return self.node(event, 0).map(Some);
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> std::result::Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nests more than {MAX_DEPTH} levels"));
        }
        let (anchor, node) = match event {
            Event::Scalar(text, _, anchor, _) => (anchor, Node::Scalar(text.into_owned())),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                return node.ok_or_else(|| "an alias refers to what it is part of".to_owned());
            }
            Event::SequenceStart(anchor, _) => {
                let mut nodes = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break,
                        event => nodes.push(self.node(event, depth + 1)?),
                    }
                }
                (anchor, Node::Sequence(nodes))
            }
            Event::MappingStart(anchor, _) => {
                let mut pairs = Vec::new();
                loop {
                    let key = match self.next()? {
                        Event::MappingEnd => break,
                        event => self.node(event, depth + 1)?,
                    };
                    let event = self.next()?;
                    let value = self.node(event, depth + 1)?;
                    match (key, value) {
                        // `<<: *common`: what is merged yields to what is written.
                        (Node::Scalar(key), Node::Mapping(merged)) if key == "<<" => {
                            pairs.extend(merged)
                        }
                        (Node::Scalar(key), value) => pairs.insert(0, (key, value)),
                        _ => {}
                    }
                }
                (anchor, Node::Mapping(pairs))
            }
            _ => return Err("ends too early".to_owned()),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }
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

//! YAML as a tree in which every node knows where it stands.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// How deep sequences and mappings may nest; LiteLLM itself stops looking after 100.
const MAX_DEPTH: usize = 100;

/// A position in the file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl From<Marker> for Position {
    fn from(marker: Marker) -> Self {
        Self {
            line: marker.line().max(1),
            column: marker.col() + 1,
        }
    }
}

/// One value of the document. What an alias stands for is the same node again.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where it begins.
    pub at: Position,
    /// What it is.
    pub value: Value,
}

/// The kinds of values.
#[derive(Debug)]
pub(crate) enum Value {
    /// Text, a number, true, false or nothing.
    Scalar {
        /// Without quotes.
        text: String,
        /// Whether it stood without quotes, and so may be something else than text.
        plain: bool,
    },
    /// A list.
    Sequence(Vec<Rc<Node>>),
    /// Keys and values, in the order of the file.
    Mapping(Vec<(Rc<Node>, Rc<Node>)>),
}

/// Why there is no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    /// Where the parser gave up.
    pub at: Position,
    /// Its words.
    pub message: String,
}

impl Node {
    /// The text of a scalar that is not null.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Whether it is null by the rules of YAML 1.1, which LiteLLM's parser has.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The keys and values of a mapping, those that it merges in last.
    pub(crate) fn entries(&self) -> Vec<(&Node, &Node)> {
        let mut entries = Vec::new();
        self.collect(&mut entries, 0);
        entries
    }

    fn collect<'a>(&'a self, entries: &mut Vec<(&'a Self, &'a Self)>, depth: usize) {
        match &self.value {
            Value::Mapping(pairs) if depth < MAX_DEPTH => {
                let is_merge = |key: &Self| matches!(&key.value, Value::Scalar { text, plain: true } if text == "<<");
                entries.extend(
                    pairs
                        .iter()
                        .filter(|(key, _)| !is_merge(key))
                        .map(|(key, value)| (&**key, &**value)),
                );
                for (_, merged) in pairs.iter().filter(|(key, _)| is_merge(key)) {
                    match &merged.value {
                        Value::Sequence(items) => {
                            for item in items {
                                item.collect(entries, depth + 1);
                            }
                        }
                        _ => merged.collect(entries, depth + 1),
                    }
                }
            }
            _ => {}
        }
    }

    /// The value of `name`: its last definition, which is the one that counts, or a merged one.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        let Value::Mapping(pairs) = &self.value else {
            return None;
        };
        let own = pairs
            .iter()
            .rev()
            .find(|(key, _)| key.text() == Some(name))
            .map(|(_, value)| &**value);
        own.or_else(|| {
            self.entries()
                .into_iter()
                .find(|(key, _)| key.text() == Some(name))
                .map(|(_, value)| value)
        })
    }

    /// The items of a sequence.
    pub(crate) fn items(&self) -> &[Rc<Self>] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// Whether two nodes mean the same, wherever they stand.
    pub(crate) fn same(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || match (&self.value, &other.value) {
                (Value::Scalar { text: one, .. }, Value::Scalar { text: two, .. }) => one == two,
                (Value::Sequence(one), Value::Sequence(two)) => {
                    one.len() == two.len() && one.iter().zip(two).all(|(one, two)| one.same(two))
                }
                (Value::Mapping(_), Value::Mapping(_)) => {
                    let (one, two) = (self.entries(), other.entries());
                    one.len() == two.len()
                        && one.iter().all(|(key, value)| {
                            two.iter()
                                .any(|(other, its)| key.same(other) && value.same(its))
                        })
                }
                _ => false,
            }
    }
}

/// A sequence or mapping that is not complete yet.
struct Open {
    at: Position,
    anchor: usize,
    mapping: bool,
    children: Vec<Rc<Node>>,
}

/// Reads a text that holds at most one document; `None` if it holds none.
pub(crate) fn parse(text: &str) -> Result<Option<Rc<Node>>, SyntaxError> {
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, Rc<Node>> = HashMap::new();
    let mut root = None;
    for step in Parser::new_from_str(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let (event, span) = step.map_err(|error| SyntaxError {
            at: (*error.marker()).into(),
            message: error.info().to_owned(),
        })?;
        let at = Position::from(span.start);
        let fail = |message: &str| {
            Err(SyntaxError {
                at,
                message: message.to_owned(),
            })
        };
        if let Event::Scalar(_, _, _, Some(tag))
        | Event::SequenceStart(_, Some(tag))
        | Event::MappingStart(_, Some(tag)) = &event
            && !tag.is_yaml_core_schema()
        {
            return fail("LiteLLM's YAML parser knows no tags such as this one");
        }
        let (anchor, node) = match event {
            Event::DocumentStart(_) if root.is_some() => {
                return fail("a second document begins here; LiteLLM reads only one");
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if open.len() == MAX_DEPTH {
                    return fail("nested too deeply");
                }
                let mapping = matches!(event, Event::MappingStart(..));
                open.push(Open {
                    at,
                    anchor,
                    mapping,
                    children: Vec::new(),
                });
                continue;
            }
            Event::Scalar(text, style, anchor, _) => {
                let value = Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                (anchor, Rc::new(Node { at, value }))
            }
            Event::Alias(anchor) => match anchors.entry(anchor) {
                Entry::Occupied(found) => (0, Rc::clone(found.get())),
                Entry::Vacant(_) => return fail("this alias refers to a value that it is part of"),
            },
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open {
                    at,
                    anchor,
                    mapping,
                    children,
                }) = open.pop()
                else {
                    continue;
                };
                let value = if mapping {
                    Value::Mapping(pairs(children))
                } else {
                    Value::Sequence(children)
                };
                (anchor, Rc::new(Node { at, value }))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => continue,
        };
        if anchor > 0 {
            anchors.insert(anchor, Rc::clone(&node));
        }
        match open.last_mut() {
            Some(parent) => parent.children.push(node),
            None => root = Some(node),
        }
    }
    Ok(root)
}

fn pairs(children: Vec<Rc<Node>>) -> Vec<(Rc<Node>, Rc<Node>)> {
    let mut pairs = Vec::with_capacity(children.len() / 2);
    let mut children = children.into_iter();
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        pairs.push((key, value));
    }
    pairs
}

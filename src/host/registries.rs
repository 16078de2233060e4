//! Where Podman finds an image according to `registries.conf`, read from `podman info`.

use serde_json::Value;

/// A place in a registry that an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Registry and path.
    pub(crate) location: String,
    /// Whether its certificate is not verified, or it has none.
    pub(crate) insecure: bool,
}

/// The places where Podman looks for an image of this name, in its order: mirrors first, none that is blocked.
pub(crate) fn endpoints(name: &str, registries: &Value) -> Vec<Endpoint> {
    let Some((length, entry)) = covering(name, registries) else {
        return vec![Endpoint {
            location: name.to_owned(),
            insecure: false,
        }];
    };
    let rest = &name[length..];
    let mirrors = entry["Mirrors"].as_array().into_iter().flatten();
    mirrors
        .chain(std::iter::once(entry))
        .filter(|place| place["Blocked"] != Value::Bool(true))
        .map(|place| {
            let location = place["Location"].as_str().filter(|text| !text.is_empty());
            Endpoint {
                location: location.map_or_else(|| name.to_owned(), |text| text.to_owned() + rest),
                insecure: place["Insecure"] == Value::Bool(true),
            }
        })
        .collect()
}

/// The entry that applies to a name: the one with the longest prefix; and how much of the name it replaces.
pub(crate) fn covering<'a>(name: &str, registries: &'a Value) -> Option<(usize, &'a Value)> {
    let host = name.split('/').next().unwrap_or_default();
    let entries = registries.as_object().into_iter().flatten();
    entries
        .filter(|(_, entry)| entry.is_object())
        .filter_map(|(prefix, entry)| {
            let length = match prefix.strip_prefix('*') {
                Some(domain) => host.ends_with(domain).then_some(host.len()),
                None => name
                    .strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                    .then_some(prefix.len()),
            };
            Some((length?, entry))
        })
        .max_by_key(|(length, _)| *length)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn where_registries_conf_leads() {
        let registries = json!({
            "search": ["docker.io"],
            "ghcr.io": {"Location": "mirror.example.com:5000/all", "Insecure": true, "Mirrors": [
                {"Location": "near.example.com/ghcr", "Insecure": false},
            ]},
            "ghcr.io/other": {"Location": "other.example.com", "Insecure": false},
            "ghcr.io/closed": {"Location": "", "Blocked": true},
            "*.example.org": {"Location": "", "Insecure": true, "Mirrors": null},
        });
        let at = |name: &str| -> Vec<(String, bool)> {
            endpoints(name, &registries)
                .into_iter()
                .map(|endpoint| (endpoint.location, endpoint.insecure))
                .collect()
        };
        assert_eq!(
            at("ghcr.io/berriai/litellm"),
            [
                ("near.example.com/ghcr/berriai/litellm".into(), false),
                ("mirror.example.com:5000/all/berriai/litellm".into(), true),
            ]
        );
        assert_eq!(
            at("ghcr.io/other/litellm"),
            [("other.example.com/litellm".into(), false)]
        );
        assert_eq!(at("ghcr.io/closed/litellm"), []);
        assert_eq!(
            at("a.example.org/litellm"),
            [("a.example.org/litellm".into(), true)]
        );
        assert_eq!(
            at("ghcr.io.example.net/litellm"),
            [("ghcr.io.example.net/litellm".into(), false)]
        );
    }
}

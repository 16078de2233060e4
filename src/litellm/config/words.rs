//! What a word of a configuration looks like: a secret, an address, a misspelling.

/// Whether it can be a variable's name. Anything else may be a secret, and is not shown.
pub(super) fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

pub(crate) fn is_loopback(host: &str) -> bool {
    matches!(host, "localhost" | "::1" | "[::1]") || host.starts_with("127.")
}

/// The host of a URL, without user and port.
pub(super) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    match host.split_once(']') {
        Some(_) => host.split_inclusive(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// What keys of providers begin with.
const PREFIXES: [&str; 16] = [
    "sk-",
    "sk_",
    "pk-lf-",
    "gsk_",
    "xai-",
    "hf_",
    "ghp_",
    "github_pat_",
    "glpat-",
    "AIza",
    "AKIA",
    "pplx-",
    "r8_",
    "nvapi-",
    "xoxb-",
    "-----BEGIN ",
];

/// A name from the file, as a message may show it: what stands in its place may be a key.
pub(super) fn shown(name: &str) -> String {
    if has_secret(name) {
        "(a secret)".to_owned()
    } else {
        format!("{name:?}")
    }
}

/// Whether a provider's key is in it.
pub(super) fn has_secret(text: &str) -> bool {
    PREFIXES.iter().any(|prefix| {
        text.split_once(prefix)
            .is_some_and(|(_, rest)| rest.len() >= 12)
    })
}

/// Whether a value looks like a secret, by its key and its form. Placeholders such as `none` and
/// `dummy` do not.
pub(super) fn is_secret(key: &str, text: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let named = |words: &[&str]| {
        words
            .iter()
            .any(|word| key == *word || key.ends_with(&format!("_{word}")))
    };
    let has_digit = text.contains(|c: char| c.is_ascii_digit());
    let is_number = text.parse::<f64>().is_ok();
    if PREFIXES.iter().any(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() >= 12)
    }) {
        return true;
    }
    // A password in a URL.
    if let Some((_, rest)) = text.split_once("://")
        && let Some((user, _)) = rest
            .split(['/', '?'])
            .next()
            .unwrap_or_default()
            .rsplit_once('@')
        && user
            .split_once(':')
            .is_some_and(|(_, password)| !password.is_empty())
    {
        return true;
    }
    if named(&["password", "passwd", "passphrase"]) {
        return !text.is_empty();
    }
    if key.ends_with("_public_key") || text.contains(char::is_whitespace) {
        return false;
    }
    named(&[
        "key",
        "secret",
        "token",
        "license",
        "access_key",
        "credential",
    ]) && !is_number
        && has_digit
        && text.len() >= 12
        || key.ends_with("api_key") && text.starts_with("sk-")
}

/// The known name that `name` is most likely a misspelling of.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match name.len() {
        0..4 => 0,
        4..8 => 1,
        8..16 => 2,
        _ => 3,
    };
    nearest_within(limit, name, known)
}

/// The same, if no more than so many letters differ.
pub(super) fn nearest_within<'a>(
    limit: usize,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let name = plain(name);
    known
        .filter(|known| known.len().abs_diff(name.len()) <= limit)
        .map(|known| (distance(&name, &plain(known)), known))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, known)| known)
}

/// The number of letters to insert, remove, replace or swap with their neighbour.
fn distance(one: &str, two: &str) -> usize {
    let (one, two): (Vec<char>, Vec<char>) = (one.chars().collect(), two.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=two.len()).collect()];
    for row in 1..=one.len() {
        let mut cells = vec![row];
        for column in 1..=two.len() {
            let different = usize::from(one[row - 1] != two[column - 1]);
            let mut best = (rows[row - 1][column] + 1)
                .min(cells[column - 1] + 1)
                .min(rows[row - 1][column - 1] + different);
            if row > 1
                && column > 1
                && one[row - 1] == two[column - 2]
                && one[row - 2] == two[column - 1]
            {
                best = best.min(rows[row - 2][column - 2] + 1);
            }
            cells.push(best);
        }
        rows.push(cells);
    }
    rows[one.len()][two.len()]
}

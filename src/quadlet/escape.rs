//! Escaping of what is substituted into a unit file.

use std::fmt::{self, Write};

/// askama's escaper for unit files: `%` starts a specifier, so it is doubled; a control character
/// (a newline ends the value) is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unit;

impl askama::filters::Escaper for Unit {
    fn write_escaped_str<W: Write>(&self, mut dest: W, string: &str) -> fmt::Result {
        for c in string.chars() {
            match c {
                '%' => dest.write_str("%%")?,
                c if c.is_control() => return Err(fmt::Error),
                c => dest.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Quotes one word of a command line, as `systemd.service(5)` splits it: a word in double quotes
/// may hold spaces, `\`, `"` and line breaks are escaped, `$` is doubled.
#[must_use]
pub fn word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '$' => quoted.push_str("$$"),
            '\n' => quoted.push_str("\\n"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use askama::filters::Escaper;

    use super::*;

    #[test]
    fn specifiers_and_newlines() {
        let mut text = String::new();
        Unit.write_escaped_str(&mut text, "100% of /srv").unwrap();
        assert_eq!(text, "100%% of /srv");
        assert!(Unit.write_escaped_str(&mut text, "a\nExecStart=b").is_err());
    }

    #[test]
    fn words() {
        assert_eq!(word("/usr/bin/litellm-units"), "/usr/bin/litellm-units");
        assert_eq!(word("/srv/my gateway"), "\"/srv/my gateway\"");
        assert_eq!(word("a\"b\\c$d"), r#""a\"b\\c$$d""#);
        assert_eq!(word("a\nb"), r#""a\nb""#);
        assert_eq!(word(""), "\"\"");
    }
}

//! The lines that a gateway writes into the journal: its access log, and its log in JSON (`JSON_LOGS=true`).

use std::borrow::Cow;

use serde::Deserialize;

/// A line of LiteLLM's log in JSON, as far as people read it. Other programs write JSON with other members.
#[derive(Debug, Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow)]
    level: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    /// A traceback of several lines.
    #[serde(borrow, default)]
    stacktrace: Option<Cow<'a, str>>,
}

impl<'a> Record<'a> {
    fn of(line: &'a str) -> Option<Self> {
        // Most lines are no JSON.
        line.starts_with('{')
            .then(|| serde_json::from_str(line).ok())?
    }
}

/// Lines of a log, those in JSON as `TIME LEVEL MESSAGE` with further lines for a traceback, others as they are.
pub(crate) fn readable(text: &str) -> String {
    each(text, |record| {
        format!("{} {}", visible(&record.timestamp), untimed(record))
    })
}

/// As [`readable`] without the times, so that repetitions are equal.
pub(crate) fn without_times(text: &str) -> String {
    each(text, untimed)
}

fn each(text: &str, show: impl Fn(&Record<'_>) -> String) -> String {
    let lines = text.lines().map(|line| match Record::of(line) {
        Some(record) => show(&record).into(),
        None => Cow::from(line),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn untimed(record: &Record<'_>) -> String {
    let stack = record.stacktrace.iter().flat_map(|stack| stack.lines());
    let lines: Vec<String> = record.message.lines().chain(stack).map(visible).collect();
    format!("{} {}", visible(&record.level), lines.join("\n"))
}

/// A line without colours and what would move the cursor: JSON can hold any character.
fn visible(line: &str) -> String {
    let plain = anstream::adapter::strip_str(line).to_string();
    plain.replace(|c: char| c.is_control() && c != '\t', "")
}

/// One answered request of uvicorn's access log, `10.0.0.1:1 - "GET /x HTTP/1.1" 200 OK`, in clear or in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub status: u16,
    /// Whether it asks for the health of the gateway.
    pub is_probe: bool,
}

impl Request {
    /// `None` for every other line.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let record = Record::of(line);
        let line = record.as_ref().map_or(line, |record| &record.message);
        let (before, status) = line.rsplit_once("\" ")?;
        let (_, request) = before.split_once(" - \"")?;
        // nginx asks with HTTP/1.0 unless it is configured otherwise.
        let (request, _version) = request.rsplit_once(" HTTP/")?;
        let (_method, path) = request.split_once(' ')?;
        // JSON has no reason phrase.
        let status = status.split(' ').next()?.parse().ok()?;
        Some(Self {
            status,
            is_probe: ["/health/live", "/health/readi"]
                .iter()
                .any(|probe| path.starts_with(probe)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LiteLLM 1.80.11 and 1.110.2 write them.
    const OLD: &str = r#"{"message": "10.89.0.1:57282 - \"POST /v1/chat/completions HTTP/1.1\" 500", "level": "INFO", "timestamp": "2026-11-29T08:00:00.123456"}"#;
    const NEW: &str = r#"{"message": "10.89.0.1:57282 - \"POST /v1/chat/completions?a=b HTTP/1.0\" 200", "level": "INFO", "timestamp": "2026-11-29T08:00:00.123456", "component": "uvicorn.access", "logger": "httptools_impl.py:468"}"#;
    const FAILED: &str = r#"{"message": "Exception: one\u001b[2J\ntwo", "level": "ERROR", "timestamp": "2026-11-29T08:00:00", "stacktrace": "Traceback (most recent call last):\n  File \"/app/a.py\", line 3, in <module>\nKeyError: 'x'"}"#;

    #[test]
    fn requests_of_the_access_log() {
        let request = |status| {
            Some(Request {
                status,
                is_probe: false,
            })
        };
        let probe = |status| {
            Some(Request {
                status,
                is_probe: true,
            })
        };
        for (line, expected) in [
            (
                r#"INFO:     10.89.0.1:57282 - "POST /v1/chat/completions HTTP/1.1" 200 OK"#,
                request(200),
            ),
            (
                r#"INFO:     10.89.0.1:57282 - "POST /v1/chat/completions HTTP/1.0" 500 Internal Server Error"#,
                request(500),
            ),
            (
                r#"INFO:     10.89.0.1:57282 - "GET /health/liveliness HTTP/1.1" 503"#,
                probe(503),
            ),
            // A path in a URL has no quotes, but a log may.
            (r#"INFO:      - "GET /a" 200 HTTP/1.1" 502 "#, request(502)),
            (OLD, request(500)),
            (NEW, request(200)),
            ("INFO:     Application startup complete.", None),
            (
                r#"INFO:     1.2.3.4:5 - "WebSocket /v1/realtime" 403"#,
                None,
            ),
            (r#"GET /x HTTP/1.1" later"#, None),
            (
                r#"{"message": "10.89.0.1:1 - \"GET /x HTTP/1.1\" 500"}"#,
                None,
            ),
        ] {
            assert_eq!(Request::of(line), expected, "{line}");
        }
    }

    #[test]
    fn json_is_readable() {
        let failed = "ERROR Exception: one\ntwo\nTraceback (most recent call last):\n  File \"/app/a.py\", line 3, in <module>\nKeyError: 'x'";
        assert_eq!(readable(FAILED), format!("2026-11-29T08:00:00 {failed}"));
        assert_eq!(without_times(FAILED), failed);
        assert_eq!(
            readable(OLD),
            "2026-11-29T08:00:00.123456 INFO 10.89.0.1:57282 - \"POST /v1/chat/completions HTTP/1.1\" 500"
        );
        assert_eq!(
            without_times(&format!("a\n{OLD}")),
            "a\nINFO 10.89.0.1:57282 - \"POST /v1/chat/completions HTTP/1.1\" 500"
        );
        for other in ["INFO: {}", "{}\n x", r#"{"message": "x", "lev"#, ""] {
            assert_eq!(readable(other), other);
        }
    }
}

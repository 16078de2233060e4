//! The lines of a failing unit that say why it fails, for errors and reports.

use std::collections::HashSet;

use crate::host::journal::{self, Entry, Query};
use crate::host::systemd::Systemd;
use crate::litellm::{self, log};
use crate::output::printable;

/// How many lines of a journal are looked at for an error or a report of all that is wrong: a traceback of LiteLLM takes
/// several hundred.
pub(crate) const ALL: u32 = 1000;

/// The same where a look is taken again and again.
pub(crate) const SOME: u32 = 200;

/// The last lines are quoted whatever errors there are: these may be of requests.
const LAST: usize = 3;

/// What a unit's journal says about a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quoted {
    /// The lines, oldest first: its own, or if it has none, systemd's about it.
    pub lines: Vec<QuotedLine>,
    /// Whether they are from after `since`.
    pub recent: bool,
    /// Whether the kernel ended one of its processes for want of memory after `run_since`.
    pub out_of_memory: bool,
}

/// Which lines of a journal may be quoted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Selection {
    /// Those since then, or if there are none, those of the last run.
    Since(jiff::Timestamp),
    /// Those of as many of the last runs that wrote lines of their own.
    Runs(usize),
}

/// A line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QuotedLine {
    pub text: String,
    /// Whether it is about an error.
    pub is_error: bool,
}

impl Quoted {
    /// At most `count` lines of a unit among the last `look_back`.
    ///
    /// Empty when the journal can't be read: these lines only explain another failure.
    pub(crate) async fn read(
        systemd: &Systemd,
        unit: &str,
        (look_back, count): (u32, usize),
        selection: Selection,
        run_since: jiff::Timestamp,
    ) -> Self {
        let query = Query {
            scope: systemd.scope(),
            remote: systemd.remote(),
            units: vec![unit],
            follow: false,
            tail: Some(look_back),
            since: None,
            until: None,
        };
        let mut entries = Vec::new();
        let _ = journal::read(&query, |entry| {
            entries.push(entry);
            Ok(())
        })
        .await;
        Self::of(entries, count, selection, run_since)
    }

    fn of(
        mut entries: Vec<Entry>,
        count: usize,
        selection: Selection,
        run_since: jiff::Timestamp,
    ) -> Self {
        let out_of_memory = entries
            .iter()
            .any(|entry| entry.out_of_memory && entry.time >= run_since);
        let is_recent =
            |entry: &Entry| matches!(selection, Selection::Since(since) if entry.time >= since);
        let recent = entries.iter().any(is_recent);
        if recent {
            entries.retain(is_recent);
        } else {
            keep_last(
                &mut entries,
                match selection {
                    Selection::Since(_) => 1,
                    Selection::Runs(runs) => runs,
                },
            );
        }
        if entries.iter().any(|entry| entry.own) {
            entries.retain(|entry| entry.own);
        }
        let texts = entries
            .iter()
            .map(|entry| log::without_times(&entry.message));
        let texts: Vec<String> = texts.collect();
        Self {
            lines: telling(texts.iter().flat_map(|text| text.lines()), count),
            recent,
            out_of_memory,
        }
    }
}

/// Leaves the entries since the begin of as many runs, without counting those that wrote no lines of their own.
fn keep_last(entries: &mut Vec<Entry>, runs: usize) {
    let mut last: Vec<&str> = Vec::new();
    for entry in entries.iter().rev().filter(|entry| entry.own) {
        if !last.contains(&entry.run.as_str()) {
            last.push(&entry.run);
        }
    }
    last.truncate(runs);
    let first = entries
        .iter()
        .position(|entry| last.contains(&entry.run.as_str()));
    entries.drain(..first.unwrap_or_default());
}

/// At most `count` of the lines, in their order: the last ones, and those about an error before others. Without colours, frames
/// of tracebacks, repetitions, and lines that say nothing.
fn telling<'a>(lines: impl Iterator<Item = &'a str>, count: usize) -> Vec<QuotedLine> {
    const BETWEEN: [&str; 2] = [
        "During handling of the above exception, another exception occurred:",
        "The above exception was the direct cause of the following exception:",
    ];
    // Each with whether it is about an error.
    let mut left: Vec<(String, bool)> = Vec::new();
    let mut in_frames = false;
    let mut in_error = false;
    let mut in_banner = false;
    for line in lines.map(printable) {
        if !line.contains(char::is_alphanumeric) {
            continue;
        }
        let is_indented = line.starts_with(' ');
        in_banner = litellm::is_banner(&line) || (in_banner && is_indented);
        if in_banner {
            (in_frames, in_error) = (false, false);
            continue;
        }
        // The beginning of a long traceback may be too far back.
        if line.ends_with("Traceback (most recent call last):") || line.starts_with("  File \"") {
            in_frames = true;
            continue;
        }
        if BETWEEN.contains(&line.as_str()) || (in_frames && is_indented) {
            continue;
        }
        in_error = in_frames || is_error(&line) || (in_error && is_indented);
        in_frames = false;
        left.push((line, in_error));
    }
    let mut seen = HashSet::new();
    let mut lines: Vec<QuotedLine> = left
        .into_iter()
        .rev()
        .filter(|(line, _)| seen.insert(line.clone()))
        .map(|(text, is_error)| QuotedLine { text, is_error })
        .collect();
    lines.reverse();
    shorter(&lines, count)
}

/// At most `count` of the lines, by the same rule.
pub(crate) fn shorter(lines: &[QuotedLine], count: usize) -> Vec<QuotedLine> {
    let last = LAST.min(count / 2);
    let mut kept: Vec<(usize, &QuotedLine)> = lines.iter().enumerate().rev().collect();
    if let Some(others) = kept.get_mut(last..) {
        // Stable: later lines stay before earlier ones.
        others.sort_by_key(|(_, line)| !line.is_error);
    }
    kept.truncate(count);
    kept.sort_by_key(|(index, _)| *index);
    kept.into_iter().map(|(_, line)| line.clone()).collect()
}

/// Whether a line is about an error, by its words: `ValueError:` and `ERROR`, not `/error_logs` or `0 errors`.
fn is_error(line: &str) -> bool {
    const WORDS: [&str; 5] = ["fatal", "panic", "panicked", "critical", "cannot"];
    let line = line.to_ascii_lowercase();
    line.contains("can't ")
        || line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|word| {
                word.ends_with("error") || word.ends_with("exception") || WORDS.contains(&word)
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LiteLLM 1.108.14 with a misspelt routing strategy; `^[` stands for the escape character.
    const FAILED_START: &str = r#"INFO:     Waiting for application startup.
Traceback (most recent call last):
  File "/app/a.py", line 3, in <module>

    run()

    ~~~^^

KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/a.py", line 5, in <module>
    raise ValueError("two")
ValueError: Invalid routing_strategy: 'nonsense'
  with details

ERROR:    Application startup failed. Exiting.

^[[1;37m#------------------------------------------------------------#^[[0m
^[[1;37m#                                                            #^[[0m
^[[1;37m#            'This product would be better if...'             #^[[0m
^[[1;37m#        https://github.com/BerriAI/litellm/issues/new        #^[[0m
^[[1;37m#------------------------------------------------------------#^[[0m

 Thank you for using LiteLLM! - Krrish & Ishaan

^[[1;31mGive Feedback / Get Help: https://github.com/BerriAI/litellm/issues/new^[[0m

^[[94m
Setting Cache on Proxy
^[[32mLiteLLM: Proxy initialized with Config, Set models:^[[0m
^[[32m    gpt-4o^[[0m
^[[32m    hello^[[0m"#;

    fn telling(text: &str, count: usize) -> Vec<String> {
        let lines = super::telling(text.lines(), count).into_iter();
        lines.map(|line| line.text).collect()
    }

    #[test]
    fn the_error_is_not_behind_the_banner() {
        let text = FAILED_START.replace("^[", "\u{1b}");
        assert_eq!(
            telling(&text, 9),
            [
                "INFO:     Waiting for application startup.",
                "KeyError: 'x'",
                "ValueError: Invalid routing_strategy: 'nonsense'",
                "  with details",
                "ERROR:    Application startup failed. Exiting.",
            ]
        );
        assert_eq!(
            telling(&text, 2),
            [
                "  with details",
                "ERROR:    Application startup failed. Exiting."
            ]
        );
        // Of a longer journal only the end is known.
        let end = "  File \"a.py\", line 3\n    stop()\nStopIteration\nthe end";
        assert_eq!(telling(end, 1), ["StopIteration"]);
    }

    #[test]
    fn without_an_error_the_last_lines_are_quoted() {
        assert_eq!(
            telling("one\ntwo\n\n===\nthree\none\nfour", 3),
            ["three", "one", "four"]
        );
        assert_eq!(telling("", 3), [""; 0]);
    }

    #[test]
    fn the_last_lines_stay_beside_errors_of_requests() {
        let errors = (1..=9).map(|number| format!("litellm.RateLimitError: {number}\n"));
        let text = errors.collect::<String>() + "INFO: 200 OK\nshutting down\nkilled";
        assert_eq!(
            telling(&text, 6),
            [
                "litellm.RateLimitError: 7",
                "litellm.RateLimitError: 8",
                "litellm.RateLimitError: 9",
                "INFO: 200 OK",
                "shutting down",
                "killed",
            ]
        );
        // What was an exception is known as one when fewer lines are wanted.
        let end = "  File \"a.py\", line 3\n    stop()\nStopIteration\none\ntwo\nthree";
        let lines = shorter(&super::telling(end.lines(), 20), 2);
        assert_eq!(lines[0].text, "StopIteration");
        assert_eq!(lines[1].text, "three");
    }

    #[test]
    fn words_about_errors_are_whole() {
        for line in [
            "ValueError: two",
            "{\"level\": \"ERROR\"}",
            "FATAL:  password authentication failed",
            "can't open a",
            "httpx.HTTPException",
        ] {
            assert!(is_error(line), "{line}");
        }
        for line in ["GET /error_logs 200", "0 errors", "panicky", "starting"] {
            assert!(!is_error(line), "{line}");
        }
    }

    #[test]
    fn lines_of_an_earlier_run_stand_in_for_missing_ones() {
        let time = |second| jiff::Timestamp::from_second(second).unwrap();
        let entry = |second, run: &str, own, message: &str| Entry {
            unit: "a.service".into(),
            message: message.into(),
            own,
            time: time(second),
            run: run.into(),
            out_of_memory: message == "killed",
        };
        let mut entries = vec![
            entry(
                1,
                "1",
                true,
                r#"{"message": "old", "level": "ERROR", "timestamp": "2026-11-29T08:00:00"}"#,
            ),
            entry(2, "1", false, "killed"),
            entry(3, "2", false, "Starting a.service"),
            entry(3, "2", true, "starting"),
            entry(3, "2", false, "a.service: Failed with result 'exit-code'."),
        ];
        let of = |entries: &[Entry], since: Option<i64>, run_since| {
            let selection = since.map_or(Selection::Runs(1), |since| Selection::Since(time(since)));
            let quoted = Quoted::of(entries.to_vec(), 9, selection, time(run_since));
            let lines = quoted.lines.into_iter().map(|line| line.text);
            (
                lines.collect::<Vec<_>>(),
                quoted.recent,
                quoted.out_of_memory,
            )
        };
        let only = |line: &str| vec![line.to_owned()];
        assert_eq!(of(&entries, Some(2), 2), (only("starting"), true, true));
        assert_eq!(of(&entries, Some(3), 3), (only("starting"), true, false));
        // The error of a run before is not that of the last one.
        assert_eq!(of(&entries, Some(4), 4), (only("starting"), false, false));
        assert_eq!(of(&entries, None, 1), (only("starting"), false, true));
        // The last attempt is under way, so that what ended the one before it counts, too.
        let two = Quoted::of(entries.clone(), 9, Selection::Runs(2), time(4));
        assert_eq!(two.lines.len(), 2);
        assert!(two.lines[0].is_error);
        // The last run wrote nothing itself.
        entries.remove(3);
        assert_eq!(of(&entries, None, 3), (only("ERROR old"), false, false));
        entries.remove(0);
        let of_systemd = of(&entries, None, 3).0;
        assert_eq!(
            of_systemd.last(),
            Some(&"a.service: Failed with result 'exit-code'.".into())
        );
    }
}

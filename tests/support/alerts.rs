//! The shipped rules for Prometheus, evaluated on metrics that a host had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::host::tool;

const GATHERED: &str = "litellm_units_gathered_timestamp_seconds";
/// What gets old while nobody repairs a fault.
const AGES: [&str; 2] = [
    "litellm_units_archive_lag_seconds",
    "litellm_units_backup_age_seconds",
];
/// Minutes without the fault.
const BEFORE: u32 = 60;
/// Whether a scrape succeeded, as Prometheus records it.
const UP: &str = "up{job=\"litellm-units\"}";
/// Seconds between the scrapes of a day.
const STEP: u32 = 20;
/// So many more are like the last one: an hour more than the longest `for:`, which is two days.
const AFTER: u32 = 49 * 3600 / STEP;

/// The values by series. Times are seconds since `begin`, the time at which the test begins: promtool begins in 1970.
fn samples(text: &str, begin: f64) -> BTreeMap<&str, f64> {
    (text.lines().filter(|line| !line.starts_with('#')))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(series, value)| (series, value.parse().unwrap()))
        .map(|(series, value): (_, f64)| {
            let is_time = series.contains("_timestamp_seconds");
            (series, value - if is_time { begin } else { 0.0 })
        })
        .collect()
}

/// When they were gathered, in seconds since 1970.
fn gathered(text: &str) -> f64 {
    samples(text, 0.0)
        .get(GATHERED)
        .copied()
        .unwrap_or_default()
}

fn test(name: &str, interval: &str, series: BTreeMap<&str, String>, expected: &[Value]) -> Value {
    let series: Vec<_> = (series.into_iter())
        .map(|(series, values)| json!({"series": series, "values": values}))
        .collect();
    json!({
        "name": name,
        "interval": interval,
        "input_series": series,
        "promql_expr_test": expected,
    })
}

/// That `alert`, with these labels (`service="redis"`), fires at the end of its `for:`, and not before the fault, if a fault
/// changes the metrics from `before` to `after` and stays.
pub(crate) fn fires(alert: &str, labels: &str, before: &str, after: &str) -> Value {
    // The longest `for:` is an hour, but for one, where it is a day.
    let minutes = if alert == "LitellmReleaseCheck" {
        1500
    } else {
        75
    };
    let begin = gathered(after) - f64::from(60 * BEFORE);
    let (before, after) = (samples(before, begin), samples(after, begin));
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let part = |value: Option<&f64>, step: u8, count: u32| match value {
        Some(value) => format!("{value}+{step}x{}", count - 1),
        None => format!("_x{count}"),
    };
    let values = |name: &str| {
        if name == GATHERED {
            return part(Some(&0.0), 60, BEFORE + minutes);
        }
        let step = if AGES.contains(&name) { 60 } else { 0 };
        let before = part(before.get(name), 0, BEFORE);
        format!("{before} {}", part(after.get(name), step, minutes))
    };
    let series = names.into_iter().map(|name| (name, values(name))).collect();
    let expected = [(BEFORE - 1, 0), (BEFORE + minutes - 1, 1)].map(|(minute, value)| {
        let firing = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\",{labels}}}");
        json!({
            "expr": format!("(count(count_over_time({firing}[2d])) or vector(0)) > bool 0"),
            "eval_time": format!("{minute}m"),
            "exp_samples": [{"labels": "{}", "value": value}],
        })
    });
    test(alert, "1m", series, &expected)
}

/// That no alert fires on the metrics of a day, nor if the last ones stay for two days more. A text for each scrape, after
/// its time in seconds since 1970; without metrics if the scrape failed.
pub(crate) fn none_fires(day: &[(f64, &str)]) -> Value {
    let begin = day[0].0;
    let scrapes: BTreeMap<u32, BTreeMap<&str, f64>> = (day.iter())
        .map(|(time, text)| {
            let mut one = samples(text, begin);
            one.insert(UP, f64::from(!one.is_empty()));
            (step(time - begin), one)
        })
        .collect();
    let (steps, end) = scrapes.last_key_value().unwrap();
    let steps = steps + 1;
    let complete = { scrapes.values() }.rfind(|one| one.contains_key(GATHERED));
    let mut last = complete.unwrap().clone();
    last.insert(UP, end[UP]);
    let names: BTreeSet<&str> = { scrapes.values() }
        .flat_map(|one| one.keys().copied())
        .collect();
    let values = |name: &str| {
        let mut values: Vec<String> = (0..steps)
            .map(
                |step| match scrapes.get(&step).and_then(|one| one.get(name)) {
                    Some(value) => value.to_string(),
                    None => "_".into(),
                },
            )
            .collect();
        if let Some(value) = last.get(name) {
            let growth = if name == GATHERED { STEP } else { 0 };
            values.push(format!("{value}+{growth}x{AFTER}"));
        }
        values.join(" ")
    };
    let series = names.into_iter().map(|name| (name, values(name))).collect();
    let expected = json!({
        "expr": "count by (alertname, service) (count_over_time(ALERTS{alertstate=\"firing\"}[4d]))",
        "eval_time": format!("{}s", (steps + AFTER) * STEP),
        "exp_samples": [],
    });
    test("a day", "20s", series, &[expected])
}

/// The number of the interval, of 20 s each.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a day has few seconds"
)]
fn step(seconds: f64) -> u32 {
    (seconds / f64::from(STEP)) as u32
}

/// Has promtool evaluate `tests` with the shipped rules.
pub(crate) fn evaluate(tests: &[Value]) {
    let rules =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/examples/prometheus-rules.yml");
    let file = json!({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests});
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tests.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let ran = Command::new(tool("promtool"))
        .args(["test", "rules"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

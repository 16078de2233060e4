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

fn test(
    name: &str,
    interval: &str,
    series: &BTreeMap<&str, String>,
    minutes: u32,
    expected: (&str, u8),
) -> Value {
    let series: Vec<_> = (series.iter())
        .map(|(series, values)| json!({"series": series, "values": values}))
        .collect();
    json!({
        "name": name,
        "interval": interval,
        "input_series": series,
        "promql_expr_test": [{
            "expr": expected.0,
            "eval_time": format!("{minutes}m"),
            "exp_samples": [{"labels": "{}", "value": expected.1}],
        }],
    })
}

/// That `alert` fires, at the end of its `for:`, if a fault changes the metrics from `before` to `after` and stays.
pub(crate) fn fires(alert: &str, before: &str, after: &str) -> Value {
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
    let fired = format!(
        "count(count_over_time(ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}[2d])) > bool 0"
    );
    test(alert, "1m", &series, BEFORE + minutes - 1, (&fired, 1))
}

/// That no alert fires on the metrics of a day, one text for each 20 s.
pub(crate) fn none_fires(day: &[&str]) -> Value {
    let begin = gathered(day[0]);
    let day: Vec<_> = day.iter().map(|text| samples(text, begin)).collect();
    let names: BTreeSet<&str> = day.iter().flat_map(|one| one.keys().copied()).collect();
    let values = |name| {
        let value = |one: &BTreeMap<&str, f64>| one.get(name).map_or("_".into(), f64::to_string);
        day.iter().map(value).collect::<Vec<_>>().join(" ")
    };
    let series = names.into_iter().map(|name| (name, values(name))).collect();
    let fired = "count(count_over_time(ALERTS{alertstate=\"firing\"}[1d])) or vector(0)";
    test(
        "a day",
        "20s",
        &series,
        u32::try_from(day.len() / 3).unwrap(),
        (fired, 0),
    )
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

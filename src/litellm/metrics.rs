//! The gateway's Prometheus metrics, as far as the live screen shows them.

use reqwest::StatusCode;

use super::Client;

/// The counter of all requests that the proxy answered, errors included.
const REQUESTS: &str = "litellm_proxy_total_requests_metric_total";

/// What `/metrics` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Requests {
    /// The count since the gateway started.
    Count(f64),
    /// The gateway has no such page: `prometheus` is not among its callbacks.
    Off,
    /// The page needs a key (`require_auth_for_metrics_endpoint`).
    Locked,
    /// No answer, or none in time.
    Unknown,
}

impl Client {
    /// Asks `/metrics` for the number of requests.
    pub async fn requests(&self) -> Requests {
        // With the slash: without it, the gateway redirects.
        let Ok(http) = self.http() else {
            return Requests::Unknown;
        };
        let answer = http.get(format!("{}/metrics/", self.base)).send();
        let Ok(answer) = answer.await else {
            return Requests::Unknown;
        };
        match answer.status() {
            StatusCode::NOT_FOUND => Requests::Off,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Requests::Locked,
            StatusCode::OK => match answer.text().await {
                Ok(text) => parse(&text),
                Err(_) => Requests::Unknown,
            },
            _ => Requests::Unknown,
        }
    }
}

/// Sums the counter over all its labels. Before the first request there is none: zero.
fn parse(text: &str) -> Requests {
    if !text.lines().any(|line| line.starts_with("# TYPE ")) {
        // Some page, but not this one.
        return Requests::Off;
    }
    let sum = text
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(REQUESTS)?;
            let value = match rest.strip_prefix('{') {
                // A label's value may hold anything but an unescaped quote.
                Some(labels) => after_labels(labels)?,
                None => rest,
            };
            value.split_whitespace().next()?.parse::<f64>().ok()
        })
        .sum();
    Requests::Count(sum)
}

fn after_labels(text: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return text.get(index + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Requests, parse};

    #[test]
    fn requests_of_all_labels() {
        let text = "\
# HELP litellm_proxy_total_requests_metric_total Total number of requests
# TYPE litellm_proxy_total_requests_metric_total counter
litellm_proxy_total_requests_metric_total{route=\"/v1/chat/completions\",model=\"a}\\\"b\"} 3.0
litellm_proxy_total_requests_metric_total{route=\"/v1/embeddings\",model=\"c d\"} 4.0 1700000000
litellm_proxy_total_requests_metric_created{route=\"/v1/embeddings\"} 1.7e+09
litellm_other_metric_total 100.0
";
        assert_eq!(parse(text), Requests::Count(7.0));
        assert_eq!(
            parse("# TYPE python_info gauge\npython_info 1.0\n"),
            Requests::Count(0.0)
        );
        assert_eq!(parse("<html>"), Requests::Off);
    }
}

//! What a new release has to pass before it stays: requests that only a working gateway with its
//! database answers, and no burst of errors for the users.

use std::time::Duration;

use tokio::time::Instant;

use super::Runs;
use crate::deployment::images_lock::ImagesLock;
use crate::deployment::settings::Settings;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::journal;
use crate::litellm::Client;
use crate::litellm::health::GatewayHealth;
use crate::litellm::log::Request;
use crate::operations::stack;
use crate::output::duration;
use crate::service::{Instance, Service};

/// How often the gateway is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long it may be away before that counts.
const GRACE: Duration = Duration::from_secs(3);
/// How long one request may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// Over which time before the change the errors are counted, to compare with.
const BEFORE: Duration = Duration::from_secs(300);
/// Fewer errors than these are no burst.
const BURST: usize = 5;

/// The requests that the gateway's access log shows, without those for its health, which would hide failures of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    requests: usize,
    /// Those answered with a status of 500 or above.
    failures: usize,
}

impl Traffic {
    /// Of the last minutes.
    pub(super) async fn before(host: &Host) -> Self {
        Self::since(
            host,
            jiff::Timestamp::now().as_second() - BEFORE.as_secs().cast_signed(),
        )
        .await
    }

    /// Nothing when the journal can't be read: there are other signs of trouble.
    async fn since(host: &Host, second: i64) -> Self {
        let query = journal::Query {
            scope: host.scope(),
            remote: None,
            units: Instance::gateways().map(Instance::unit).collect(),
            follow: false,
            tail: None,
            since: Some(format!("@{second}")),
            until: None,
        };
        let mut traffic = Self::default();
        let _ = journal::read(&query, |entry| {
            for line in entry.message.lines() {
                traffic.add(line);
            }
            Ok(())
        })
        .await;
        traffic
    }

    /// Counts a line, if it is one of the access log.
    fn add(&mut self, line: &str) {
        let Some(request) = Request::of(line).filter(|request| !request.is_probe) else {
            return;
        };
        self.requests += 1;
        if request.status >= 500 {
            self.failures += 1;
        }
    }

    /// Whether there are many more failures than `before`: providers fail, too, whatever the
    /// release.
    fn is_burst(self, before: Self) -> bool {
        let often = self.failures * 5 > self.requests;
        let more =
            self.failures * before.requests.max(1) > 2 * before.failures * self.requests.max(1);
        self.failures >= BURST && often && more
    }
}

/// Watches the gateway, which has just become ready, for `settle`.
pub(super) async fn watch(
    host: &Host,
    settings: &Settings,
    settle: Duration,
    timeout: Duration,
    before: &Traffic,
) -> Result<()> {
    let begin = jiff::Timestamp::now();
    let systemd = host.systemd().await?;
    let gateways = stack::gateways(systemd).await?;
    let image = &settings.litellm_image;
    let lock = ImagesLock::load(&host.paths.images_lock())?;
    let other = match super::runs(host, &lock.pin(image)).await? {
        Runs::Wanted => None,
        Runs::Other(running) => Some(running.pinned()),
        Runs::Nothing => Some("no image".to_owned()),
    };
    if let Some(other) = other {
        return Err(
            Failure::new(format!("the gateway runs {other}, not {image}"))
                .hint("a drop-in may set another image: `systemctl cat litellm.service`")
                .into(),
        );
    }
    let unit = Service::Litellm.unit();
    let client = Client::local(&host.paths, TIMEOUT)?;
    probe(&client, settings, timeout).await?;
    if settle.is_zero() {
        return Ok(());
    }
    host.progress
        .say(&format!("watching the gateway for {}", duration(settle)));
    let end = Instant::now() + settle;
    let mut away_since = None;
    while Instant::now() < end {
        tokio::time::sleep(INTERVAL).await;
        for (instance, before) in &gateways {
            let unit = instance.unit();
            let state = systemd.unit(unit).await?;
            if state.restarts != before.restarts || !state.is_active() {
                return Err(stack::failed(systemd, unit, "did not stay up", begin).await);
            }
        }
        match client.health().await {
            GatewayHealth::Ready { .. } => away_since = None,
            // Under load. The probe below needs an answer.
            GatewayHealth::Busy { .. } => {}
            GatewayHealth::Live { reason } | GatewayHealth::Down { reason } => {
                let since = away_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= GRACE {
                    let problem = format!("was ready, but did not stay ready: {reason}");
                    return Err(stack::failed(systemd, unit, &problem, begin).await);
                }
            }
        }
    }
    probe(&client, settings, timeout).await?;
    let after = Traffic::since(host, begin.as_second()).await;
    if after.is_burst(*before) {
        let problem = format!(
            "answered {} of {} requests with an error ({} of {} before)",
            after.failures, after.requests, before.failures, before.requests
        );
        return Err(stack::failed(systemd, unit, &problem, begin).await);
    }
    Ok(())
}

/// Asks for what only a working gateway with its database answers; one under load again, until `timeout`.
pub(super) async fn probe(client: &Client, settings: &Settings, timeout: Duration) -> Result<()> {
    let master_key = settings.master_key.open()?;
    let deadline = Instant::now() + timeout;
    loop {
        match client.keys(&master_key).probe().await {
            Err(error) if error.may_be_load() && Instant::now() < deadline => {
                tokio::time::sleep(INTERVAL).await;
            }
            answer => {
                return answer.map_err(|error| {
                    Failure::new(format!("a probe request failed: {error}")).into()
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A gateway whose first answers are these; then it succeeds. Returns its verdict, and how often it was asked.
    async fn probed(
        refusals: &[&str],
        timeout: Duration,
    ) -> (std::result::Result<(), String>, usize) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::at(
            format!("http://{}", listener.local_addr().unwrap()),
            Duration::from_secs(5),
        )
        .unwrap();
        let text = "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\nLITELLM_MASTER_KEY=sk-1\nLITELLM_SALT_KEY=sk-salt\n\
                    POSTGRES_USER=me\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=db\nREDIS_PASSWORD=r\n";
        let settings = Settings::from_text(text, std::path::Path::new(".env")).unwrap();
        let mut asked = 0;
        let serve = async {
            let mut refusals = refusals.iter();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                asked += 1;
                let status = refusals.next().unwrap_or(&"200 OK");
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let verdict = tokio::select! {
            biased;
            verdict = probe(&client, &settings, timeout) => verdict,
            () = serve => unreachable!(),
        };
        (verdict.map_err(|error| error.to_string()), asked)
    }

    #[tokio::test]
    async fn a_gateway_under_load_is_asked_again() {
        let load = "503 Service Unavailable";
        let long = Duration::from_secs(60);
        assert_eq!(probed(&[load], long).await, (Ok(()), 3));
        let refused = |status| {
            Err(format!(
                "a probe request failed: LiteLLM failed ({status}): {{}}"
            ))
        };
        assert_eq!(probed(&[load], Duration::ZERO).await, (refused(503), 1));
        // It does not fit the database.
        assert_eq!(
            probed(&["500 Internal Server Error"], long).await,
            (refused(500), 1)
        );
    }

    fn traffic(requests: usize, failures: usize) -> Traffic {
        Traffic { requests, failures }
    }

    #[test]
    fn lines_of_the_access_log() {
        let mut found = Traffic::default();
        for line in [
            r#"INFO:     10.89.0.1:57282 - "POST /v1/chat/completions HTTP/1.1" 200 OK"#,
            r#"INFO:     10.89.0.1:57282 - "POST /v1/chat/completions HTTP/1.0" 500 Internal Server Error"#,
            r#"{"message": "10.89.0.1:57282 - \"POST /v1/chat/completions HTTP/1.1\" 500", "level": "INFO", "timestamp": "2026-11-29T08:00:00.123456"}"#,
            r#"INFO:     10.89.0.1:57282 - "GET /health/liveliness HTTP/1.1" 200 OK"#,
            "INFO:     Application startup complete.",
        ] {
            found.add(line);
        }
        assert_eq!(found, traffic(3, 2));
    }

    #[test]
    fn a_burst_is_much_more_than_before() {
        for (after, before, expected) in [
            (traffic(100, 0), traffic(100, 0), false),
            (traffic(4, 4), traffic(100, 0), false),
            (traffic(5, 5), traffic(100, 0), true),
            (traffic(100, 19), traffic(100, 0), false),
            (traffic(100, 21), traffic(0, 0), true),
            (traffic(100, 40), traffic(100, 25), false),
            (traffic(100, 60), traffic(100, 25), true),
        ] {
            assert_eq!(after.is_burst(before), expected, "{after:?} {before:?}");
        }
    }
}

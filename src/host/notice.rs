//! Notices to people: a webhook, or a program.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::{Failure, Result};
use crate::host::outgoing_proxy::OutgoingProxy;

/// How long a notice may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long what a failed program has written may be waited for.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);

/// Posts `{"text": …}`, which Slack, Mattermost, Google Chat and others read.
///
/// # Errors
/// When the server can't be reached, or answers with another status than 2xx. The message is without the URL: whoever
/// knows it can write to its channel.
pub(crate) async fn post(proxy: &OutgoingProxy, url: &str, text: &str) -> Result<()> {
    let url = Url::parse(url).context("it is no URL")?;
    let client = proxy.client()?.timeout(TIMEOUT).build()?;
    let request = client.post(url).json(&serde_json::json!({ "text": text }));
    let answer = request.send().await.map_err(reqwest::Error::without_url)?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(Failure::new(format!("the server answered {}", answer.status())).into())
}

/// Has `sh` run a command line, with the text on stdin. The command line may hold a secret, so it is no argument.
///
/// # Errors
/// When it can't be run, takes too long, or ends with another status than 0; with what it wrote to stderr.
pub(crate) async fn run(command: &str, text: &str) -> Result<()> {
    let mut child = Command::new("sh")
        .args(["-c", r#"eval "$NOTIFY_COMMAND""#])
        .env("NOTIFY_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("can't run sh")?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program may end without having read it: its status says whether that is a failure.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let status = tokio::time::timeout(TIMEOUT, child.wait())
        .await
        .with_context(|| format!("no end after {} s", TIMEOUT.as_secs()))??;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What it left in the background may hold the pipe open.
        let mut stderr = stderr.take(4096);
        let _ = tokio::time::timeout(STDERR_TIMEOUT, stderr.read_to_end(&mut said)).await;
    }
    let said = String::from_utf8_lossy(&said);
    Err(Failure::new(format!("{status}: {}", said.trim())).into())
}

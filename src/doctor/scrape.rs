//! Answers a scrape by HTTP: `litellm-metrics.socket` starts a process for each connection, which sends what the last look
//! of `litellm-watch.service` wrote. So an answer asks nobody, waits for nothing, and no process stays.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::Result;
use crate::host::paths::Paths;

/// Of the request and the answer together.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Of the head of the request: a connection that says nothing keeps others out for no longer.
const HEAD_TIMEOUT: Duration = Duration::from_millis(500);
/// The longest head of a request; Prometheus sends about 300 bytes.
const HEAD: u64 = 8192;
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers one request on the connection that is stdin.
///
/// # Errors
/// When stdin is no connection. A client that is slow or leaves is none.
pub(crate) async fn serve(paths: &Paths) -> Result<()> {
    let connection = std::io::stdin().as_fd().try_clone_to_owned();
    let connection = std::net::TcpStream::from(connection.context("there is no stdin")?);
    let mut connection = (connection.set_nonblocking(true))
        .and_then(|()| TcpStream::from_std(connection))
        .context("stdin is no connection")?;
    let exchange = async {
        answer(&mut connection, &paths.served_metrics()).await?;
        // A connection that is closed with something unread is reset, and the answer may be lost.
        tokio::io::copy(&mut connection.take(HEAD), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(TIMEOUT, exchange).await;
    Ok(())
}

/// One request, one answer: HTTP/1.1 (RFC 9112) with `Connection: close`.
async fn answer(
    connection: &mut (impl AsyncRead + AsyncWrite + Unpin),
    file: &Path,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut limited = (&mut *connection).take(HEAD);
    let read = async {
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if limited.read_buf(&mut head).await? == 0 {
                break;
            }
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::time::timeout(HEAD_TIMEOUT, read).await??;
    let (status, kind, body) = reply(&head, file);
    let allow = if status.starts_with("405") {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with(b"HEAD ") {
        answer.push_str(&body);
    }
    connection.write_all(answer.as_bytes()).await?;
    connection.shutdown().await
}

/// Status, type and content of the answer.
fn reply(head: &[u8], file: &Path) -> (&'static str, &'static str, String) {
    let end = head.windows(4).position(|end| end == b"\r\n\r\n");
    let head = end.and_then(|end| std::str::from_utf8(&head[..end]).ok());
    let line = head.and_then(|head| head.lines().next());
    let words: Vec<&str> = line.unwrap_or_default().split(' ').collect();
    let bad = || {
        let body = "this is no request of HTTP/1.1\n".into();
        ("400 Bad Request", PLAIN, body)
    };
    let [method, target, version] = words[..] else {
        return bad();
    };
    if !target.starts_with('/') || !version.starts_with("HTTP/1.") {
        return bad();
    }
    if !["GET", "HEAD"].contains(&method) {
        return ("405 Method Not Allowed", PLAIN, "use GET\n".into());
    }
    if target.split('?').next() != Some("/metrics") {
        let body = "the metrics are at /metrics\n".into();
        return ("404 Not Found", PLAIN, body);
    }
    match std::fs::read_to_string(file) {
        Ok(metrics) => ("200 OK", METRICS, metrics),
        Err(error) => {
            let body = format!("litellm-watch.service has written no metrics: {error}\n");
            ("503 Service Unavailable", PLAIN, body)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_client_that_says_nothing_is_left() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client
            .write_all(b"GET /metrics HTTP/1.1\r\n")
            .await
            .unwrap();
        let answer = answer(&mut server, Path::new("/nowhere"));
        let answer = tokio::time::timeout(TIMEOUT, answer).await.unwrap();
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    /// What a client gets that sends `request` and waits.
    async fn asked(request: &[u8], file: &Path) -> String {
        let (mut client, mut server) = tokio::io::duplex(1 << 16);
        client.write_all(request).await.unwrap();
        if !request.windows(4).any(|end| end == b"\r\n\r\n") {
            client.shutdown().await.unwrap();
        }
        answer(&mut server, file).await.unwrap();
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn answers() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("metrics.prom");
        let get = b"GET /metrics HTTP/1.1\r\nHost: localhost:9157\r\n\r\n";
        let text = asked(get, &file).await;
        assert!(
            text.starts_with("HTTP/1.1 503 Service Unavailable\r\n")
                && text.contains("litellm-watch.service has written no metrics: "),
            "{text}"
        );
        std::fs::write(&file, "up 1\n").unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
                    Content-Length: 5\r\nConnection: close\r\n\r\n";
        assert_eq!(asked(get, &file).await, format!("{head}up 1\n"));
        for (request, begin, end) in [
            ("HEAD /metrics HTTP/1.1\r\n\r\n", head, "\r\n\r\n"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", head, "\r\n\r\nup 1\n"),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "/metrics\n"),
            (
                "GET /metrics/x HTTP/1.1\r\n\r\n",
                "HTTP/1.1 404 ",
                "/metrics\n",
            ),
            (
                "POST /metrics HTTP/1.1\r\n\r\n",
                "HTTP/1.1 405 ",
                "use GET\n",
            ),
            ("GET /metrics\r\n\r\n", "HTTP/1.1 400 ", "HTTP/1.1\n"),
            ("GET /metrics HTTP/2\r\n\r\n", "HTTP/1.1 400 ", "HTTP/1.1\n"),
            ("GET /metrics HTTP/1.1", "HTTP/1.1 400 ", "HTTP/1.1\n"),
            ("", "HTTP/1.1 400 ", "HTTP/1.1\n"),
        ] {
            let text = asked(request.as_bytes(), &file).await;
            assert!(
                text.starts_with(begin) && text.ends_with(end),
                "{request}: {text}"
            );
        }
        let text = asked(b"POST /metrics HTTP/1.1\r\n\r\n", &file).await;
        assert!(text.contains("\r\nAllow: GET, HEAD\r\n"), "{text}");
        // A head without an end is read as far as the limit.
        let long = vec![b'x'; usize::try_from(HEAD).unwrap() + 1];
        let text = asked(&long, &file).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        assert!(
            asked(b"GET /\xff HTTP/1.1\r\n\r\n", &file)
                .await
                .starts_with("HTTP/1.1 400 ")
        );
    }
}

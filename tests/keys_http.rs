//! Faults of the gateway that the real one does not show on demand.
#![expect(clippy::unwrap_used, reason = "that is how a test fails")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use litellm_units::litellm::Client;
use litellm_units::litellm::keys::{KeyError, Keys, Limits};
use secrecy::SecretString;

const BEARER: &str = "sk-never-to-be-shown-0123456789";

/// A server that gives each request the same answer, or none if there is none to give.
fn server(answer: Option<&'static str>) -> String {
    server_that(move |_| answer)
}

/// A server that gives each request, whose first line starts with method and path, its answer.
fn server_that(answer: impl Fn(&str) -> Option<&'static str> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            match answer(&String::from_utf8_lossy(&request[..length])) {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                None => silent.push(stream),
            }
        }
    });
    address
}

fn answer(status: &str, body: &str) -> &'static str {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .leak()
}

fn with_keys<T>(
    address: String,
    work: impl AsyncFnOnce(Keys<'_>) -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = Client::at(address, Duration::from_millis(300)).unwrap();
        work(client.keys(&SecretString::from(BEARER))).await
    })
}

fn ask(address: String) -> KeyError {
    ask_for(address, &Limits::default())
}

fn ask_for(address: String, limits: &Limits) -> KeyError {
    let error = with_keys(address, async |keys| keys.generate(limits).await).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(BEARER));
    error
}

#[test]
fn faults() {
    assert_eq!(
        ask(server(Some(answer(
            "500 Internal Server Error",
            "no database for sk-never-to-be-shown-0123456789"
        )))),
        KeyError::Failed {
            status: 500,
            message: "no database for sk-…".into()
        }
    );
    assert_eq!(
        ask(server(Some(answer("502 Bad Gateway", "<html>")))),
        KeyError::Failed {
            status: 502,
            message: "<html>".into()
        }
    );
    assert_eq!(
        ask(server(Some(answer("200 OK", "<html>")))),
        KeyError::Unintelligible {
            path: "/key/generate",
            reason: "expected value at line 1 column 1".into()
        }
    );
    assert_eq!(
        ask(server(Some(answer("200 OK", "{\"token\":\"x\"}")))),
        KeyError::Unintelligible {
            path: "/key/generate",
            reason: "missing field `key` at line 1 column 13".into()
        }
    );
    let silent = server(None);
    assert_eq!(
        ask(silent.clone()),
        KeyError::Unreachable {
            address: silent,
            reason: "no answer in time".into()
        }
    );
    // Nothing listens on the port that was given back.
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    assert!(
        matches!(ask(address), KeyError::Unreachable { reason, .. } if reason.contains("refused"))
    );
    let broken = server(Some(
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"key\":",
    ));
    assert!(matches!(ask(broken), KeyError::Unreachable { .. }));
}

/// LiteLLM 1.108 answers with a deleted key, too.
#[test]
fn a_deleted_key_is_none() {
    for (status, found) in [("deleted", false), ("active", true)] {
        let body = format!(
            r#"{{"key":"0a1b","info":{{"key_alias":"shop","spend":1.5,"blocked":null,"status":"{status}"}}}}"#
        );
        let address = server(Some(answer("200 OK", &body)));
        let key = with_keys(address, async |keys| keys.info("0a1b").await);
        match key {
            Ok(key) => assert!(found && key.alias.as_deref() == Some("shop"), "{key:?}"),
            Err(error) => assert!(!found && error == KeyError::NotFound, "{error}"),
        }
    }
}

/// Oldest first, from LiteLLM's default order, and each once.
#[test]
fn a_list_of_several_pages() {
    let first = r#"{"keys":[{"token":"c"},{"token":"b"}],"total_pages":2}"#;
    let second = r#"{"keys":[{"token":"b"},{"token":"a"}],"total_pages":2}"#;
    let (first, second) = (answer("200 OK", first), answer("200 OK", second));
    let address = server_that(move |request| {
        assert!(!request.contains("sort_by"), "{request}");
        Some(if request.contains("&page=1 ") {
            first
        } else {
            second
        })
    });
    let keys = with_keys(address, async |keys| keys.list(None).await).unwrap();
    let tokens: Vec<_> = keys.iter().map(|key| key.token.as_str()).collect();
    assert_eq!(tokens, ["a", "b", "c"]);
}

/// A key that LiteLLM made, but then neither changes nor deletes, is told of.
#[test]
fn a_key_that_is_left() {
    let made = answer("200 OK", r#"{"key":"sk-new","token":"0a1b"}"#);
    let failing = answer("500 Internal Server Error", "no database");
    let address = server_that(move |request| {
        Some(if request.starts_with("POST /key/generate ") {
            made
        } else {
            failing
        })
    });
    let limits = Limits {
        duration: Some("90d".into()),
        ..Limits::default()
    };
    let failed = || {
        Box::new(KeyError::Failed {
            status: 500,
            message: "no database".into(),
        })
    };
    assert_eq!(
        ask_for(address, &limits),
        KeyError::Left {
            token: "0a1b".into(),
            error: failed(),
            deletion: failed(),
        }
    );
}

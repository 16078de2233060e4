//! From the oldest release over the long-term one to the newest, and back: what the database holds
//! stays alive with each of them.

use crate::support::gateway::{HELLO, chat, sql};
use crate::support::host::{TestHost, Who};
use crate::support::releases::{AT_OLDEST, DEFAULT, NEWEST, OLDEST, Release};

/// What LiteLLM reads out of its database only with the right key: the answer of a stored model.
const STORED: &str = "decrypted again";

/// Asks the gateway with the master key; `$1` is the path, `$2` the body.
fn ask(host: &TestHost, who: Who, path: &str, body: &str) -> String {
    let script = r#"
        key=$(litellm-units unit secret litellm LITELLM_MASTER_KEY)
        curl -sSf --max-time 30 -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
            ${2:+-d "$2"} "http://127.0.0.1:24157$1"
    "#;
    host.bash_with(who, script, &[path, body]).ok()
}

/// Puts in what has to survive, and returns a key.
fn fill(host: &TestHost, who: Who) -> String {
    ask(
        host,
        who,
        "/model/new",
        &format!(
            r#"{{"model_name":"stored","litellm_params":{{"model":"openai/stored","api_key":"sk-of-the-provider","mock_response":"{STORED}"}},"model_info":{{}}}}"#
        ),
    );
    ask(
        host,
        who,
        "/credentials",
        r#"{"credential_name":"provider","credential_values":{"api_key":"sk-of-the-credential"},"credential_info":{}}"#,
    );
    let key = ask(
        host,
        who,
        "/key/generate",
        r#"{"key_alias":"survivor","models":["hello","stored"],"max_budget":10}"#,
    );
    let key: serde_json::Value = serde_json::from_str(&key).unwrap();
    sql(
        host,
        who,
        r#"update "LiteLLM_VerificationToken" set spend = 1.25 where key_alias = 'survivor'"#,
    );
    key["key"].as_str().unwrap().to_owned()
}

/// Has the gateway write a credential that releases before 1.92 can't read.
fn encrypt_with_aes_gcm(host: &TestHost, who: Who) {
    host.sh(
        who,
        "sed -i 's/^general_settings:/&\\n  encryption_algorithm: aes-256-gcm/' /opt/litellm-server/config/litellm-config.yaml",
    );
    host.units(who, &["apply"]).ok();
    ask(
        host,
        who,
        "/credentials",
        r#"{"credential_name":"later","credential_values":{"api_key":"sk-of-the-later"},"credential_info":{}}"#,
    );
}

#[track_caller]
fn is_alive(host: &TestHost, who: Who, release: Release, key: &str) {
    let said = host.units(who, &["status", "--json"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["gateway"]["version"], release.version);
    assert_eq!(chat(host, who, key).as_deref(), Ok(HELLO));
    let answer = ask(
        host,
        who,
        "/v1/chat/completions",
        r#"{"model":"stored","messages":[{"role":"user","content":"hi"}]}"#,
    );
    assert!(answer.contains(STORED), "{}: {answer}", release.version);
    let credentials = ask(host, who, "/credentials", "");
    assert!(credentials.contains("provider"), "{credentials}");
    let keys = ask(host, who, "/key/list?return_full_object=true", "");
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    let found = keys["keys"]
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["key_alias"] == "survivor")
        .map(|key| &key["spend"]);
    assert_eq!(found, Some(&1.25.into()), "{}: {keys}", release.version);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn every_release_and_back() {
    let who = Who::Root;
    let host = TestHost::boot("matrix");
    host.units(who, &["generate"]).ok();
    host.set_env(who, &AT_OLDEST);
    host.set_env(who, &[("STORE_MODEL_IN_DB", "True")]);
    host.units(who, &["up"]).ok();
    let key = fill(&host, who);
    is_alive(&host, who, OLDEST, &key);
    for release in [DEFAULT, NEWEST] {
        let words = ["upgrade", "--image", release.image, "--settle", "0"];
        let ran = host.units(who, &words);
        assert_eq!(ran.code, 0, "{ran:?}");
        is_alive(&host, who, release, &key);
    }
    encrypt_with_aes_gcm(&host, who);
    let back = ["rollback", "--to", "2", "--keep-data", "--settle", "0"];
    let ran = host.units(who, &back);
    assert_eq!(ran.code, 0, "{ran:?}");
    is_alive(&host, who, DEFAULT, &key);

    // The oldest release can't read what the newest has written meanwhile.
    let back = ["rollback", "--to", "1", "--keep-data", "--settle", "0"];
    let ran = host.units(who, &back);
    assert_eq!(ran.code, 1, "{ran:?}");
    for words in [
        "can't read what is encrypted with AES-256-GCM in LiteLLM_CredentialsTable\n",
        "from 1.92.0 on",
        "--accept-unreadable",
    ] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    is_alive(&host, who, DEFAULT, &key);
    let ran = host.units(who, &[&back[..], &["--accept-unreadable"]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    is_alive(&host, who, OLDEST, &key);
}

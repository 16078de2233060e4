//! `config check` and LiteLLM agree about what keeps a gateway from starting: on the configurations that the release
//! brings as examples, and on those that `src/litellm/config.rs` makes a claim about.

use std::collections::BTreeMap;

use crate::support::host::{TestHost, Who};

const JUDGE: &str = include_str!("judge.py");
const MODEL: &str = "model_list: [{model_name: a, litellm_params: {model: openai/a}}]\n";

/// Configurations, and whether LiteLLM starts with them. `MISSING` is in no `.env`.
const CLAIMS: [(&str, &str, bool); 17] = [
    (
        "model",
        "model_list: [{model_name: a, litellm_params: {model: os.environ/MISSING}}]\n",
        false,
    ),
    (
        "name",
        "model_list: [{model_name: os.environ/MISSING, litellm_params: {model: openai/a}}]\n",
        false,
    ),
    (
        "key",
        "model_list: [{model_name: a, litellm_params: {model: openai/a, api_key: os.environ/MISSING}}]\n",
        true,
    ),
    ("without", "model_list: [{model_name: a}]\n", false),
    (
        "alert",
        "general_settings: {alerting: [slack], alert_to_webhook_url: {budget_alerts: os.environ/MISSING}}\n",
        false,
    ),
    (
        "cache",
        "litellm_settings: {cache: true, cache_params: {type: redis, url: os.environ/MISSING}}\n",
        false,
    ),
    (
        "host",
        "litellm_settings: {cache: true, cache_params: {type: redis, host: os.environ/MISSING, port: 1}}\n",
        true,
    ),
    (
        "variable",
        "environment_variables: {SLACK_WEBHOOK_URL: os.environ/MISSING}\n",
        true,
    ),
    (
        "search",
        "search_tools: [{search_tool_name: t, litellm_params: {search_provider: tavily, api_key: os.environ/MISSING}}]\n",
        true,
    ),
    (
        "database",
        "general_settings: {database_url: os.environ/MISSING}\n",
        true,
    ),
    (
        "guardrail",
        "guardrails: [{guardrail_name: g, litellm_params: {guardrail: lakera_v2, mode: pre_call, api_key: os.environ/MISSING}}]\n",
        true,
    ),
    (
        "callback",
        "litellm_settings: {callbacks: nowhere.handler}\n",
        false,
    ),
    (
        "auth",
        "general_settings: {custom_auth: nowhere.auth}\n",
        false,
    ),
    (
        "section",
        "litellm_settings: {master_key: os.environ/LITELLM_MASTER_KEY}\n",
        true,
    ),
    ("top", "drop_params: true\n", true),
    ("list", "general_settings: [a]\n", false),
    ("include", "include: [nowhere.yaml]\n", false),
];

/// What LiteLLM starts with, and litellm-units refuses: a secret in a file that is no place for one.
const IN_CLEAR: &str = " is in clear text here";

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn what_starts_is_not_refused() {
    let host = TestHost::boot("configurations");
    host.units(Who::Root, &["up"]).ok();
    // Beside the configuration, where the modules that they name are looked for.
    host.sh(
        Who::Root,
        r#"
        examples=$(podman exec litellm python3 -c 'import litellm, os; print(os.path.dirname(litellm.__file__))')/proxy/example_config_yaml
        podman cp "litellm:$examples" /tmp/examples
        cd /opt/litellm-server/config
        cp /tmp/examples/*.py .
        for file in /tmp/examples/*.yaml; do cp "$file" "example-${file##*/}"; done
        chmod -R go=rX .
        "#,
    );
    for (name, text, _) in CLAIMS {
        let models = if text.starts_with("model_list") {
            ""
        } else {
            MODEL
        };
        let path = format!("{}/config/claim-{name}.yaml", Who::Root.deployment());
        host.write(Who::Root, &path, &format!("{models}{text}"));
    }
    host.write(Who::Root, "/tmp/judge.py", JUDGE);
    let verdicts = host.sh(
        Who::Root,
        "cd /opt/litellm-server/config && podman exec -i litellm sh -c 'exec python3 - /app/config/example-*.yaml /app/config/claim-*.yaml' </tmp/judge.py",
    );
    let starts: BTreeMap<&str, bool> = verdicts
        .lines()
        .map(|line| {
            let (file, verdict) = line.split_once(' ').unwrap();
            (file, verdict == "yes")
        })
        .collect();
    host.sh(
        Who::Root,
        "mkdir -p /tmp/judged && cp -r /opt/litellm-server/.env /opt/litellm-server/config /tmp/judged",
    );
    let judged = |tag: &str| {
        let script = r#"
        sed -i "s,^LITELLM_IMAGE=.*,LITELLM_IMAGE=ghcr.io/berriai/litellm:$1," /tmp/judged/.env
        cd /tmp/judged/config
        for file in example-*.yaml claim-*.yaml; do
            cp "$file" litellm-config.yaml
            { litellm-units --system --litellm-dir /tmp/judged config check || :; } | sed -n "s/^.*: error: /$file /p"
        done
        "#;
        host.bash_with(Who::Root, script, &[tag]).ok()
    };
    let said = judged("v1.108.14");
    // What only another release knows is no reason to refuse.
    for tag in ["v1.80.11-stable", "v1.110.2"] {
        assert_eq!(judged(tag), said, "{tag}");
    }
    for (file, starts) in &starts {
        let mut errors = said
            .lines()
            .filter_map(|line| line.strip_prefix(file)?.strip_prefix(' '));
        if *starts {
            let wrong = errors.find(|error| !error.ends_with(IN_CLEAR));
            assert_eq!(wrong, None, "{file} starts:\n{verdicts}");
        } else {
            assert!(errors.next().is_some(), "{file} does not start:\n{said}");
        }
    }
    for (name, _, expected) in CLAIMS {
        let file = format!("claim-{name}.yaml");
        assert_eq!(
            starts.get(file.as_str()),
            Some(&expected),
            "{name}: {verdicts}"
        );
    }
    let examples = starts.keys().filter(|file| file.starts_with("example-"));
    assert!(examples.count() >= 20, "{verdicts}");
}

//! What `config check` says about a file, whole.

#![expect(clippy::unwrap_used, reason = "that is how a test fails")]

use std::path::Path;
use std::process::Command;

use litellm_units::deployment::env_file::EnvFile;
use litellm_units::deployment::settings::Settings;
use litellm_units::litellm::config::check;

const ENV: &str = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-1
POSTGRES_USER=litellm
POSTGRES_PASSWORD=p
POSTGRES_DB=litellm
REDIS_PASSWORD=r
OPENAI_API_KEY=sk-2
ANTHROPIC_API_KEY=
LANGFUSE_SECRET_KEY=
OTHER_KEY=sk-3
OLLAMA=http://localhost:11434
";

#[track_caller]
fn expect(text: &str, expected: &str) {
    expect_with("", text, expected);
}

/// With `more` in `.env`.
#[track_caller]
fn expect_with(more: &str, text: &str, expected: &str) {
    let env = EnvFile::parse(&format!("{ENV}{more}")).unwrap();
    let settings = Settings::from_env(&env, Path::new(".env")).unwrap();
    let findings = check(text, Path::new("c.yaml"), &env, &settings);
    let said = findings.iter().fold(String::new(), |said, finding| {
        said + &finding.to_string() + "\n"
    });
    assert!(said == expected, "{said}");
    for secret in ["sk-1", "sk-2", "hunter2"] {
        assert!(!said.contains(secret), "{said}");
    }
}

#[test]
fn a_good_file() {
    expect(
        "\
# Everything that is used here exists.
x-shared: &shared
  rpm: 10
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, <<: *shared}
  - model_name: gpt-4o
    litellm_params: {model: azure/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: hello
    litellm_params: {model: openai/hello, api_key: none, mock_response: hi}
litellm_settings:
  cache: true
  cache_params: {type: redis, host: os.environ/REDIS_HOST, port: os.environ/REDIS_PORT, password: os.environ/REDIS_PASSWORD}
  a_setting_of_next_year: true
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
  database_url: os.environ/DATABASE_URL
router_settings:
",
        "",
    );
}

#[test]
fn what_is_not_yaml() {
    expect(
        "model_list:\n  - model_name: a\n   litellm_params: {}\n",
        "\
c.yaml:3:4: error: not valid YAML: while parsing a block collection, did not find expected '-' indicator
",
    );
    expect(
        "a: [1, 2\n",
        "\
c.yaml:2:1: error: not valid YAML: while parsing a flow sequence, expected ',' or ']'
",
    );
    expect(
        "\n",
        "\
c.yaml:1:1: error: the file is empty, and LiteLLM does not start without a configuration
  hint: `litellm-units generate` writes one when there is none
",
    );
    expect(
        "- a\n",
        "\
c.yaml:1:1: error: the file holds no mapping of sections such as model_list and general_settings
",
    );
    expect(
        "a: *b\n",
        "\
c.yaml:1:4: error: not valid YAML: while parsing node, found unknown anchor
",
    );
    expect(
        "include: [a]\n---\ninclude: [b]\n",
        "\
c.yaml:2:1: error: not valid YAML: a second document begins here; LiteLLM reads only one
",
    );
    expect(
        "include: !file [a]\n",
        "\
c.yaml:1:10: error: not valid YAML: LiteLLM's YAML parser knows no tags such as this one
",
    );
}

#[test]
fn sections() {
    expect(
        "\
model-list: []
generalsettings: {}
master_key: os.environ/LITELLM_MASTER_KEY
plugins_of_ours: []
general_settings:
  databse_url: os.environ/DATABASE_URL
litellm_settings: [drop_params]
router_settings:
  routing_stratgy: least-busy
router_settings:
  num_retries: 2
",
        "\
c.yaml:1:1: error: unknown section \"model-list\", which LiteLLM ignores
  hint: did you mean model_list?
c.yaml:2:1: error: unknown section \"generalsettings\", which LiteLLM ignores
  hint: did you mean general_settings?
c.yaml:3:1: warning: \"master_key\" is not a section, so LiteLLM ignores it
  hint: indent it below general_settings:
c.yaml:4:1: warning: unknown section \"plugins_of_ours\", which LiteLLM ignores
  hint: known to this version of litellm-units: model_list, litellm_settings, general_settings, router_settings, environment_variables, …
c.yaml:6:3: warning: general_settings has no setting \"databse_url\"
  hint: did you mean database_url?
c.yaml:7:19: error: litellm_settings is not a mapping of settings
c.yaml:10:1: warning: \"router_settings\" is also in line 8; only this one is used
  hint: join the two
",
    );
}

#[test]
fn settings_of_other_releases() {
    let text = "\
general_settings:
  auto_redirect_ui_login_to_sso: true
  maximum_spend_logs_retention_perid: 30d
policies: {}
model_list:
  - model_name: a
    litellm_params: {model: openai/a, api-base: https://a, min_tokens: 1, aws_region_nam: b}
";
    let misspelt = "\
c.yaml:3:3: warning: general_settings has no setting \"maximum_spend_logs_retention_perid\"
  hint: did you mean maximum_spend_logs_retention_period?
";
    let parameters = "\
c.yaml:7:39: warning: LiteLLM does not know the parameter \"api-base\"
  hint: did you mean api_base?
c.yaml:7:75: warning: LiteLLM does not know the parameter \"aws_region_nam\"
  hint: did you mean aws_region_name?
";
    let said = |image: &str| {
        let env = EnvFile::parse(&ENV.replace("v1.108.14", image)).unwrap();
        let settings = Settings::from_env(&env, Path::new(".env")).unwrap();
        let findings = check(text, Path::new("c.yaml"), &env, &settings);
        findings.iter().fold(String::new(), |said, finding| {
            said + &finding.to_string() + "\n"
        })
    };
    let newer = "\
c.yaml:2:3: warning: general_settings has no setting \"auto_redirect_ui_login_to_sso\" in LiteLLM 1.80.11
  hint: LiteLLM 1.84.10 has it: `litellm-units upgrade`, or remove it
";
    let section = "\
c.yaml:4:1: warning: unknown section \"policies\", which LiteLLM 1.80.11 ignores
  hint: LiteLLM 1.84.10 has it: `litellm-units upgrade`, or remove it
";
    assert_eq!(
        said("v1.80.11-stable"),
        format!("{newer}{misspelt}{section}{parameters}")
    );
    // Between two releases that were read, it is not known since when a setting is there.
    for image in ["v1.82.0-stable", "v1.108.14", "v1.110.2"] {
        assert_eq!(said(image), format!("{misspelt}{parameters}"), "{image}");
    }
}

#[test]
fn models() {
    expect(
        "\
model_list:
  - litellm_params:
      model: openai/a
  - model_name: b
  - model_name: c
    litellm_params:
      api_base: http://localhost:11434
  - d
  - model_name: e
    litellm_params: {model: openai/e, rpm: 1}
  - litellm_params: {rpm: 1, model: openai/e}
    model_name: e
",
        "\
c.yaml:2:5: error: this model has no model_name
  hint: model_name is what clients ask for
c.yaml:4:5: error: this model has no litellm_params, and LiteLLM does not start without them
  hint: at least: litellm_params: {model: PROVIDER/MODEL}
c.yaml:7:7: error: litellm_params has no model, and LiteLLM does not start without it
  hint: model is the provider and its model, e.g. openai/gpt-4o
c.yaml:7:17: warning: inside the gateway's container this address is the container itself
  hint: a server on this host is reached as host.containers.internal
c.yaml:8:5: error: not a model: it has neither model_name nor litellm_params
c.yaml:11:5: warning: \"e\" is the same as in line 9, name and litellm_params
  hint: remove one; models of one name share the load only if their litellm_params differ
",
    );
    expect(
        "model_list:\n  gpt-4o: {}\n",
        "\
c.yaml:2:3: error: model_list is not a list
  hint: begin each model with a dash: - model_name: …
",
    );
}

#[test]
fn variables() {
    expect(
        "\
model_list:
  - model_name: a
    litellm_params:
      model: anthropic/a
      api_key: os.environ/ANTHROPIC_API_KEY
      organization: os.environ/OPENAI_API_KEYS
      api_base: https://os.environ/OTHER_KEY/v1
      api_version: os.environ/sk-hunter2
environment_variables:
  LANGFUSE_SECRET_KEY: os.environ/LANGFUSE_SECRET_KEY
general_settings:
  master_key: os.environ/MASTER
  database_url: os.environ/POSTGRES_PASSWORD
  allowed_ips: [os.environ/SOMEWHERE]
",
        "\
c.yaml:5:16: warning: ANTHROPIC_API_KEY is empty in .env (line 8)
  hint: set ANTHROPIC_API_KEY in .env
c.yaml:6:21: warning: OPENAI_API_KEYS is not in .env
  hint: did you mean OPENAI_API_KEY? Else add OPENAI_API_KEYS=… to .env
c.yaml:7:17: warning: os.environ/ is replaced only at the beginning of a value
  hint: put the whole value into a variable of .env
c.yaml:8:20: warning: os.environ/ is not followed by the name of a variable
  hint: write the name of a variable of .env after os.environ/, not its value
c.yaml:10:24: warning: LANGFUSE_SECRET_KEY is empty in .env (line 9)
  hint: set LANGFUSE_SECRET_KEY in .env
c.yaml:12:15: error: MASTER is not in .env
  hint: add MASTER=… to .env
c.yaml:13:17: warning: POSTGRES_PASSWORD is in .env (line 4), but not for the gateway
  hint: the gateway gets the database as DATABASE_URL and Redis as REDIS_HOST, REDIS_PORT and REDIS_PASSWORD; an external Redis needs REDIS_HOST in .env
c.yaml:14:17: warning: SOMEWHERE is not in .env
  hint: add SOMEWHERE=… to .env
",
    );
}

/// Without these, LiteLLM 1.108.14 does not start, or serves everyone.
#[test]
fn what_is_required() {
    expect(
        "\
model_list:
  - model_name: os.environ/A
    litellm_params: {model: os.environ/B, api_key: os.environ/C}
general_settings:
  master_key: os.environ/LANGFUSE_SECRET_KEY
  alert_to_webhook_url: {budget_alerts: os.environ/D}
litellm_settings:
  cache_params: {type: redis, url: os.environ/E, password: os.environ/F}
search_tools:
  - litellm_params: {search_provider: tavily, api_key: os.environ/G}
",
        "\
c.yaml:2:17: error: A is not in .env
  hint: add A=… to .env
c.yaml:3:29: error: B is not in .env
  hint: add B=… to .env
c.yaml:3:52: warning: C is not in .env
  hint: add C=… to .env
c.yaml:5:15: warning: the master key is taken from LANGFUSE_SECRET_KEY, but litellm-units uses LITELLM_MASTER_KEY
  hint: write it as master_key: os.environ/LITELLM_MASTER_KEY
c.yaml:5:15: error: LANGFUSE_SECRET_KEY is empty in .env (line 9)
  hint: set LANGFUSE_SECRET_KEY in .env
c.yaml:6:41: error: D is not in .env
  hint: add D=… to .env
c.yaml:8:36: warning: Redis as a URL is slower (by 80 requests/s, says LiteLLM)
  hint: use host: os.environ/REDIS_HOST, port: os.environ/REDIS_PORT, password: os.environ/REDIS_PASSWORD
c.yaml:8:36: error: E is not in .env
  hint: add E=… to .env
c.yaml:8:60: warning: F is not in .env
  hint: add F=… to .env
c.yaml:10:56: warning: G is not in .env
  hint: add G=… to .env
",
    );
}

/// What LiteLLM reads otherwise than it looks.
#[test]
fn what_is_ignored() {
    expect(
        "\
model_list:
  - model_name: a
    litellm_params: {model: ollama/a, api_base: os.environ/OLLAMA}
  - model_name: b
    litellm_params: {model: openai/b, api_base: '${OPENAI_BASE}/v1'}
litellm_settings:
  master_key: os.environ/LITELLM_MASTER_KEY
general_settings:
  drop_params: true
sk-hunter2hunter2: {sk-hunter2hunter2: 1, sk-hunter2hunter2: 2}
",
        "\
c.yaml:3:49: warning: OLLAMA (line 11): inside the gateway's container this address is the container itself
  hint: a server on this host is reached as host.containers.internal
c.yaml:5:49: warning: LiteLLM does not replace ${…}
  hint: put the whole value into a variable of .env, and write os.environ/NAME here
c.yaml:7:3: warning: litellm_settings has no setting \"master_key\", so LiteLLM ignores it
  hint: move it to general_settings:
c.yaml:9:3: warning: general_settings has no setting \"drop_params\", so LiteLLM ignores it
  hint: move it to litellm_settings:
c.yaml:10:1: warning: unknown section (a secret), which LiteLLM ignores
  hint: known to this version of litellm-units: model_list, litellm_settings, general_settings, router_settings, environment_variables, …
c.yaml:10:43: warning: (a secret) is also in line 10; only this one is used
  hint: join the two
",
    );
}

#[test]
fn variables_over_those_of_the_units() {
    expect(
        "\
model_list: []
environment_variables:
  REDIS_PASSWORD: old
  LITELLM_MODE: DEV
  OTHER_KEY: os.environ/OPENAI_API_KEY
  OPENAI_API_KEY: os.environ/OPENAI_API_KEY
  LANGFUSE_HOST: http://langfuse
  DATABASE_URL: x
",
        "\
c.yaml:3:3: warning: REDIS_PASSWORD is set here, over the value that the gateway gets
  hint: remove the line; a value of your own belongs into .env
c.yaml:3:19: warning: REDIS_PASSWORD looks like a secret in clear text
  hint: move the value to a variable of .env, and write os.environ/NAME here
c.yaml:4:3: warning: LITELLM_MODE is set here, over the value that the gateway gets
  hint: remove the line; a value of your own belongs into .env
c.yaml:5:3: warning: OTHER_KEY is set here, over the value that the gateway gets
  hint: remove the line; a value of your own belongs into .env
c.yaml:8:3: error: DATABASE_URL is set here, over the value that the gateway gets
  hint: remove the line; a value of your own belongs into .env
",
    );
}

#[test]
fn secrets() {
    expect(
        "\
model_list:
  - model_name: a
    litellm_params: {model: openai/a, api_key: sk-hunter2hunter2}
environment_variables:
  HTTPS_PROXY: http://user:hunter2@proxy:3128
  MAX_TOKENS: '1234567890123'
litellm_settings:
  cache_params: {password: hunter2, host: localhost, url: os.environ/REDIS_HOST}
general_settings:
  master_key: sk-hunter2
  database_url: postgresql://litellm:hunter2@db/litellm
router_settings:
  redis_url: redis://redis
",
        "\
c.yaml:3:48: warning: api_key looks like a secret in clear text
  hint: move the value to a variable of .env, and write os.environ/NAME here
c.yaml:5:16: warning: HTTPS_PROXY looks like a secret in clear text
  hint: move the value to a variable of .env, and write os.environ/NAME here
c.yaml:8:28: warning: password looks like a secret in clear text
  hint: move the value to a variable of .env, and write os.environ/NAME here
c.yaml:8:43: warning: inside the gateway's container this address is the container itself
  hint: use os.environ/REDIS_HOST
c.yaml:8:59: warning: Redis as a URL is slower (by 80 requests/s, says LiteLLM)
  hint: use host: os.environ/REDIS_HOST, port: os.environ/REDIS_PORT, password: os.environ/REDIS_PASSWORD
c.yaml:10:15: error: master_key is in clear text here
  hint: move it to LITELLM_MASTER_KEY in .env, and write it as master_key: os.environ/LITELLM_MASTER_KEY
c.yaml:11:17: error: database_url is in clear text here
  hint: write it as database_url: os.environ/DATABASE_URL; for an external database, move the URL to DATABASE_URL in .env
c.yaml:13:14: warning: Redis as a URL is slower (by 80 requests/s, says LiteLLM)
  hint: use redis_host: os.environ/REDIS_HOST, redis_port: os.environ/REDIS_PORT, redis_password: os.environ/REDIS_PASSWORD
",
    );
    expect(
        "general_settings:\n  master_key:\n",
        "\
c.yaml:2:13: error: master_key is empty, so the gateway would serve everyone
  hint: write it as master_key: os.environ/LITELLM_MASTER_KEY
",
    );
    expect("general_settings:\n  master_key: os.environ/OTHER_KEY\n  database_url: os.environ/OTHER_KEY\n", "\
c.yaml:2:15: warning: the master key is taken from OTHER_KEY, but litellm-units uses LITELLM_MASTER_KEY
  hint: write it as master_key: os.environ/LITELLM_MASTER_KEY
c.yaml:3:17: warning: the database is taken from OTHER_KEY, but the migration uses DATABASE_URL
  hint: write it as database_url: os.environ/DATABASE_URL
");
}

/// Runs `litellm-units config …` for a deployment with this configuration. The deployment's
/// directory is `~` in what it says.
fn config(text: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join(".env"), ENV).unwrap();
    std::fs::write(directory.path().join("config/litellm-config.yaml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_litellm-units"))
        .args(["--system", "--litellm-dir", root, "config"])
        .args(words)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(root, "~");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_command() {
    let included = "include: [more.yaml, ../secret.yaml]\nmodel_list: []\n";
    assert_eq!(
        config(included, &["check"]),
        (
            Some(78),
            "\
~/config/litellm-config.yaml:1:11: error: ~/config/more.yaml does not exist
  hint: move the file below ~/config and name it relative to that directory
~/config/litellm-config.yaml:1:22: error: ../secret.yaml is outside of the directory that the gateway can read
  hint: move the file below ~/config and name it relative to that directory
"
            .to_owned(),
            String::new()
        )
    );
    assert_eq!(
        config("model_list: []\n", &["check"]),
        (
            Some(0),
            "~/config/litellm-config.yaml: no errors\n".to_owned(),
            String::new()
        )
    );
    assert_eq!(
        config("plugin: {}\n", &["check", "--json"]),
        (
            Some(0),
            r#"{
  "schema": 1,
  "file": "~/config/litellm-config.yaml",
  "errors": 0,
  "warnings": 1,
  "findings": [
    {
      "file": "~/config/litellm-config.yaml",
      "line": 1,
      "column": 1,
      "severity": "warning",
      "message": "unknown section \"plugin\", which LiteLLM ignores",
      "hint": "known to this version of litellm-units: model_list, litellm_settings, general_settings, router_settings, environment_variables, …"
    }
  ]
}
"#
            .to_owned(),
            String::new()
        )
    );
}

/// Modules and files are looked for where the gateway reads them.
#[test]
fn what_it_names() {
    let text = "\
litellm_settings: {callbacks: [prometheus, own.handler, litellm.integrations.x.y]}
general_settings: {custom_auth: auth.user_api_key_auth}
model_list:
  - model_name: a
    litellm_params: {model: vertex_ai/a, vertex_credentials: /etc/vertex.json}
  - model_name: b
    litellm_params: {model: vertex_ai/b, vertex_credentials: '{\"type\": \"x/y\"}'}
";
    let (code, said, _) = config(text, &["check"]);
    assert_eq!(
        (code, said.as_str()),
        (
            Some(78),
            "\
~/config/litellm-config.yaml:1:44: error: there is no module own, and LiteLLM does not start without it
  hint: copy it to ~/config/own.py
~/config/litellm-config.yaml:2:33: error: there is no module auth, and LiteLLM does not start without it
  hint: copy it to ~/config/auth.py
~/config/litellm-config.yaml:5:62: warning: the gateway has no file \"/etc/vertex.json\"
  hint: copy it to ~/files/vertex.json, and write /app/files/vertex.json here
"
        )
    );
}

#[test]
fn gateways_with_more_connections_than_postgresql() {
    let models = "model_list:\n  - model_name: hello\n    litellm_params: {model: openai/hello, api_key: none}\n";
    let hint = "  hint: lower database_connection_pool_limit in general_settings, or LITELLM_REPLICAS or NUM_WORKERS in .env\n";
    let pool = |limit: usize| {
        format!("{models}general_settings:\n  database_connection_pool_limit: {limit}\n")
    };
    let external = "DATABASE_URL=postgresql://a:b@db/x\n";
    for (env, text, expected) in [
        ("LITELLM_REPLICAS=8\n", models.to_owned(), String::new()),
        ("LITELLM_REPLICAS=2\n", pool(30), String::new()),
        (
            "LITELLM_REPLICAS=2\n",
            pool(31),
            format!(
                "c.yaml:5:35: warning: the gateway may need 93 connections to PostgreSQL, which has about 90 for it unless max_connections is higher: 31 for each process, with those of the standby\n{hint}"
            ),
        ),
        (
            "LITELLM_REPLICAS=4\nNUM_WORKERS=2\n",
            models.to_owned(),
            format!(
                "c.yaml:1:1: warning: the gateway may need 100 connections to PostgreSQL, which has about 90 for it unless max_connections is higher: 10 for each process, with those of the standby\n{hint}"
            ),
        ),
        (external, pool(500), String::new()),
    ] {
        expect_with(env, &text, &expected);
    }
}

#[test]
fn effective_settings() {
    let shown = "\
path deployment=~
path env=~/.env
path config=~/config/litellm-config.yaml
path logs=~/logs
path data=~/data
path quadlets=/etc/containers/systemd
path units=/etc/systemd/system
image postgres=docker.io/library/postgres:17.7
image redis=docker.io/library/redis:7.4.6
image migrate=ghcr.io/berriai/litellm:v1.108.14
image litellm=ghcr.io/berriai/litellm:v1.108.14
postgres POSTGRES_DB=litellm
postgres POSTGRES_PASSWORD=********
postgres POSTGRES_USER=litellm
redis REDISCLI_AUTH=********
redis /run/secrets/redis.conf=********
migrate DATABASE_URL=postgresql://litellm:********@postgres:5432/litellm
litellm DATABASE_URL=postgresql://litellm:********@postgres:5432/litellm
litellm LANGFUSE_SECRET_KEY=
litellm LITELLM_MASTER_KEY=********
litellm OLLAMA=********
litellm OPENAI_API_KEY=********
litellm OTHER_KEY=********
litellm REDIS_HOST=redis
litellm REDIS_PASSWORD=********
litellm REDIS_PORT=6379
";
    assert_eq!(config("", &[]), (Some(0), shown.to_owned(), String::new()));
    assert_eq!(
        config("", &["--unmask"]),
        (
            Some(1),
            String::new(),
            "\
error: --unmask shows secrets, and the output is not a terminal
hint: add `--force` if the reader of the output may see them
"
            .to_owned()
        )
    );
    let (code, open, _) = config("", &["--unmask", "--force"]);
    assert_eq!(code, Some(0));
    assert!(open.contains("litellm OPENAI_API_KEY=sk-2\n"), "{open}");
}

//! LiteLLM under development, beside a deployment and without one.

use std::time::Duration;

use crate::support::host::{TestHost, Who};

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn rootful_development() {
    development(Who::Root, "dev-rootful");
}

#[test]
#[ignore = "the same as for root, without root: part of each release (CONTRIBUTING.md)"]
fn rootless_development() {
    development(Who::Operator, "dev-rootless");
}

/// The package of the image, as the repository has it.
const CHECKOUT: &str = r#"
    mkdir -p ~/checkout
    image=$(podman create ghcr.io/berriai/litellm:v1.108.14)
    podman cp "$image:/app/.venv/lib/python3.13/site-packages/litellm" ~/checkout/litellm
    podman rm "$image" >/dev/null
"#;

/// A reload imports all of LiteLLM, on a machine that has other things to do.
const TIMEOUT: Duration = Duration::from_secs(300);

fn development(who: Who, name: &str) {
    let host = TestHost::boot_for(who, name);
    // Without a deployment.
    host.sh(who, "mkdir -p ~/empty");
    let refused = host.bash(who, "litellm-units up --dev --source ~/empty");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("is no checkout of LiteLLM"),
        "{refused:?}"
    );
    assert_eq!(host.bash(who, "litellm-units up --source ~").code, 2);
    assert_eq!(host.bash(who, "litellm-units down --dev --remove").code, 2);
    host.sh(who, CHECKOUT);
    let begin = std::time::Instant::now();
    let said = host.sh(who, "litellm-units up --dev --source ~/checkout");
    eprintln!("ready after {} s", begin.elapsed().as_secs());
    assert!(
        said.contains("gateway: http://127.0.0.1:24158, with"),
        "{said}"
    );
    host.sh(
        who,
        r#"[ ! -e "$1/.env" ] && [ ! -e "$1/data" ] && [ "$(stat -c %a "$1/dev/dev.env")" = 600 ]"#,
    );
    serves_each_edit(&host, who);
    stops_at_a_breakpoint(&host, who);
    serves_the_host(&host, who);

    // Again, nothing is done; and beside a deployment, which is as it would be without.
    let run = |host: &TestHost| host.property(who, "litellm-dev.service", "InvocationID");
    let before = run(&host);
    host.sh(who, "litellm-units up --dev --source ~/checkout");
    assert_eq!(run(&host), before);
    host.units(who, &["generate"]).ok();
    assert_eq!(host.units(who, &["generate", "--check"]).code, 0);
    let status = host.units(who, &["status"]);
    assert!(!status.stdout.contains("dev"), "{status:?}");
    assert_eq!(run(&host), before);
    host.sh(
        who,
        r#"! grep -qF "$(grep ^LITELLM_MASTER_KEY= "$1/.env")" "$1/dev/dev.env""#,
    );
    // An edit of its settings, and without the checkout.
    host.sh(
        who,
        r#"echo MY_OWN_KEY="'a b'" >>"$1/dev/.env"; litellm-units up --dev --port 25000"#,
    );
    assert_ne!(run(&host), before);
    let value = host.sh(
        who,
        r#"podman exec litellm-dev printenv MY_OWN_KEY; . "$1/dev/dev.env"; echo "$MY_OWN_KEY""#,
    );
    assert_eq!(value, "a b\na b\n");
    host.sh(
        who,
        "curl -sSf http://127.0.0.1:25000/health/readiness | grep -v from-the-checkout",
    );

    // It leaves its data, or nothing.
    host.units(who, &["down", "--dev"]).ok();
    host.units(who, &["down", "--dev"]).ok();
    assert_eq!(
        host.sh(who, "podman ps -aq; podman network ls -q | grep dev || :"),
        ""
    );
    host.sh(who, r#"[ -e "$1/dev/data/postgres" ]"#);
    host.units(who, &["down", "--dev", "--remove-data"]).ok();
    host.sh(who, r#"[ ! -e "$1/dev/data" ] && [ -e "$1/.env" ]"#);
    assert_eq!(host.units(who, &["generate", "--check"]).code, 0);
}

/// A changed line is served without a command, and so is a changed configuration.
fn serves_each_edit(host: &TestHost, who: Who) {
    host.sh(
        who,
        r#"sed -i "s/I'm alive!/I'm from-the-checkout!/" ~/checkout/litellm/proxy/health_endpoints/_health_endpoints.py"#,
    );
    let begin = std::time::Instant::now();
    host.wait("the changed line", TIMEOUT, |host| {
        let ran = host.bash(who, "curl -sSf http://127.0.0.1:24158/health/liveliness");
        if ran.stdout.contains("from-the-checkout") {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
    eprintln!("a changed line after {} s", begin.elapsed().as_secs());
    host.sh(who, r#"sed -i 's/model_name: hello/model_name: hello-again/' "$1/dev/config/litellm-config.yaml""#);
    host.wait("the changed configuration", TIMEOUT, |host| {
        let ran = host.bash_with(
            who,
            r#". "$1/dev/dev.env"; curl -sSf -H "Authorization: Bearer $LITELLM_MASTER_KEY" http://127.0.0.1:24158/v1/models"#,
            &[who.deployment()],
        );
        if ran.stdout.contains("hello-again") {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
}

fn stops_at_a_breakpoint(host: &TestHost, who: Who) {
    host.sh(
        who,
        r#"sed -i "s/return \"I'm from-the-checkout!\"/word = 'from-the-debugger'; breakpoint(); return word/" \
            ~/checkout/litellm/proxy/health_endpoints/_health_endpoints.py
        # One at a time, since each waits at the breakpoint. The code before the edit may answer the first ones.
        (until curl -sS --max-time 300 http://127.0.0.1:24158/health/liveliness | grep from-the-debugger; do sleep 1; done) \
            >~/answer 2>/dev/null &"#,
    );
    let attach =
        "podman exec -i litellm-dev python3 /run/litellm-units/litellm_units_dev.py attach";
    host.wait("a breakpoint", TIMEOUT, |host| {
        let ran = host.bash(who, &format!("printf 'p word\\nc\\n' | {attach}"));
        if ran.stdout.contains("'from-the-debugger'") {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    });
    host.wait("the answer", TIMEOUT, |host| {
        let answer = host.sh(who, "cat ~/answer");
        if answer.is_empty() {
            Err(answer)
        } else {
            Ok(())
        }
    });
}

/// Programs of the host reach the database and the cache with `dev.env`.
fn serves_the_host(host: &TestHost, who: Who) {
    let script = r#"set -a; . "$1/dev/dev.env"; set +a
        exec 3<>/dev/tcp/$REDIS_HOST/$REDIS_PORT; printf 'AUTH %s\r\nPING\r\n' "$REDIS_PASSWORD" >&3; head -n 2 <&3
        rest=${DATABASE_URL#*@127.0.0.1:}; exec 4<>/dev/tcp/127.0.0.1/${rest%%/*} && echo "$rest""#;
    let said = host.sh(who, script);
    assert!(said.contains("+PONG"), "{said}");
    assert!(said.contains("24159/litellm"), "{said}");
}

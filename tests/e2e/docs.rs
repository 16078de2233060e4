//! The guides, done as they are written. The tutorial is done with the package: `packages`.

use crate::support::docs::follow;
use crate::support::host::{TestHost, Who};

#[test]
fn from_docker_compose() {
    let host = TestHost::boot("docs-compose");
    // What compose left: settings, a configuration and a dump with a key in it.
    host.units(Who::Root, &["up"]).ok();
    host.units(Who::Root, &["key", "create", "old-app"]).ok();
    host.sh(
        Who::Root,
        r#"
            mkdir /root/old
            cd /root/old
            litellm-units exec -T postgres -- pg_dump -Fc -U litellm litellm >litellm.dump
            litellm-units down
            cp "$1/.env" "$1/config/litellm-config.yaml" .
            rm -rf "$1"
        "#,
    );
    follow(&host, Who::Root, "/root/old", "from-docker-compose.md");
}

#[test]
fn rootless() {
    let host = TestHost::boot("docs-rootless");
    follow(&host, Who::Operator, "/home/operator", "rootless.md");
}

//! Debian's firewalls, ufw and firewalld, with their default policies.

use std::time::Duration;

use crate::support::host::{TestHost, Who};

/// Whether a container of Podman's networks finds another one by its name, and reaches it.
const PROBE: &str = r"
podman network exists probe || podman network create probe >/dev/null
podman run -d --rm --name server --network probe docker.io/library/redis:7.4.6 >/dev/null
code=0
podman run --rm --network probe docker.io/library/redis:7.4.6 timeout 5 redis-cli -h server ping || code=$?
podman rm -f -t 0 server >/dev/null
podman network rm probe >/dev/null
exit $code
";

/// Waits until the gateway serves, and all that `doctor` tries from inside its container works.
#[track_caller]
fn serves(host: &TestHost) {
    host.wait("the gateway", Duration::from_secs(300), |host| {
        let ran = host.units(Who::Root, &["health"]);
        if ran.code == 0 {
            Ok(())
        } else {
            Err(ran.stderr)
        }
    });
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    for line in [
        "dns: the gateway finds postgres and redis by name",
        "database: postgres:5432 accepts connections",
    ] {
        assert!(doctor.contains(line), "{doctor}");
    }
    assert!(!doctor.contains("firewall"), "{doctor}");
}

fn install(host: &TestHost, package: &str) {
    let script = format!(
        "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends {package}"
    );
    host.sh(Who::Root, &script);
}

#[test]
#[ignore = "takes minutes: part of each release (CONTRIBUTING.md)"]
fn the_gateway_serves_behind_ufw_and_firewalld() {
    let host = TestHost::boot("firewall");
    assert_eq!(host.bash(Who::Root, PROBE).code, 0);
    install(&host, "ufw");
    host.sh(Who::Root, "ufw --force enable");
    // Without help, a container finds nobody.
    assert_ne!(host.bash(Who::Root, PROBE).code, 0);

    // It is said before anything starts, with the command.
    let (code, _, stderr) = host.units(Who::Root, &["up"]).all();
    assert_eq!(
        (code, stderr.lines().rev().take(2).collect::<Vec<_>>()),
        (
            1,
            vec![
                "hint: `ufw route allow in on podman+ && ufw allow in on podman+ to any port 53`",
                "error: ufw drops what no rule allows, and no rule accepts the traffic of Podman's networks: the gateway would reach neither its database nor a provider",
            ]
        )
    );
    assert_eq!(host.sh(Who::Root, "podman ps --all --quiet"), "");
    let doctor = host.units(Who::Root, &["doctor"]).stdout;
    assert!(
        doctor.contains("FAILURE  firewall: ufw drops what no rule allows"),
        "{doctor}"
    );
    // Half of it is not enough.
    let commands = stderr.rsplit('`').nth(1).unwrap();
    let (forward, names) = commands.split_once(" && ").unwrap();
    host.sh(Who::Root, forward);
    assert_ne!(host.bash(Who::Root, PROBE).code, 0);
    let (code, _, stderr) = host.units(Who::Root, &["up"]).all();
    assert!(
        code == 1
            && stderr.contains("and no rule accepts questions to the name server of Podman's networks: the gateway would not find its database"),
        "{stderr}"
    );
    host.sh(Who::Root, names);
    assert_eq!(host.bash(Who::Root, PROBE).code, 0);
    host.units(Who::Root, &["up"]).ok();
    serves(&host);
    host.sh(Who::Root, "ufw reload");
    serves(&host);
    host.reboot();
    assert!(host.sh(Who::Root, "ufw status").contains("Status: active"));
    serves(&host);
    // Nothing of this program is left in the firewall, and the operator's rules go by the commands of the documentation.
    host.units(Who::Root, &["down", "--remove"]).ok();
    let rules = host.sh(Who::Root, "nft list ruleset");
    assert!(!rules.contains("10.89."), "{rules}");
    host.sh(
        Who::Root,
        "ufw route delete allow in on podman+ && ufw delete allow in on podman+ to any port 53",
    );
    let rules = host.sh(Who::Root, "iptables --list-rules; ufw status");
    assert!(!rules.contains("podman"), "{rules}");
    host.sh(Who::Root, "ufw disable");

    // With firewalld, Podman adds its networks to the zone `trusted` itself.
    install(&host, "firewalld");
    host.systemctl(Who::Root, &["is-active", "--quiet", "firewalld.service"]);
    host.units(Who::Root, &["up"]).ok();
    serves(&host);
    host.sh(Who::Root, "firewall-cmd --reload");
    serves(&host);
    host.systemctl(Who::Root, &["restart", "firewalld.service"]);
    serves(&host);
    host.reboot();
    host.systemctl(Who::Root, &["is-active", "--quiet", "firewalld.service"]);
    serves(&host);
    host.units(Who::Root, &["down", "--remove"]).ok();
    let zones = host.sh(Who::Root, "firewall-cmd --get-active-zones");
    assert!(!zones.contains("10.89."), "{zones}");
}

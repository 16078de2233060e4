//! The host's firewall, as far as it decides about the traffic of Podman's bridge.

use std::collections::BTreeSet;

use tokio::process::Command;

use crate::error::{Failure, Result};
use crate::host::files;
use crate::host::paths::{Paths, Scope};

/// Where distributions put it.
const NETAVARK: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

/// Whose chains take the rules that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    Docker,
    Ufw,
    Nobody,
}

/// A rule that lets the bridge's traffic through is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    keeper: Keeper,
    /// What containers send to each other and to other hosts.
    forwarded: bool,
    /// What containers ask Podman's name server, which is on this host.
    names: bool,
}

impl Dropped {
    pub(crate) fn message(&self) -> String {
        let chain = if self.forwarded { "FORWARD" } else { "INPUT" };
        let who = match self.keeper {
            Keeper::Ufw => "ufw drops what no rule allows".to_owned(),
            Keeper::Docker if self.forwarded => {
                "Docker has set the policy of the firewall's chain FORWARD to DROP".to_owned()
            }
            _ => format!("the policy of the firewall's chain {chain} is DROP"),
        };
        let (what, effect) = if self.forwarded {
            (
                "the traffic of Podman's networks",
                "reach neither its database nor a provider",
            )
        } else {
            (
                "questions to the name server of Podman's networks",
                "not find its database",
            )
        };
        format!("{who}, and no rule accepts {what}: the gateway would {effect}")
    }

    /// The commands that let it through: with ufw for good, else until the next boot.
    pub(crate) fn remedy(&self) -> String {
        const OWN: &str = "add the rules to the configuration of your firewall";
        if self.keeper == Keeper::Ufw {
            return "`ufw route allow in on podman+ && ufw allow in on podman+ to any port 53`"
                .into();
        }
        let (chain, at_boot) = match self.keeper {
            Keeper::Docker if !self.names => (
                "DOCKER-USER",
                "docs/from-docker-compose.md, \"Docker on the same host\"",
            ),
            Keeper::Docker => ("DOCKER-USER", OWN),
            _ => ("FORWARD", OWN),
        };
        let mut rules = Vec::new();
        if self.forwarded {
            rules.push(format!("{chain} -i podman+"));
            rules.push(format!("{chain} -o podman+"));
        }
        if self.names {
            rules.push("INPUT -i podman+ -p udp --dport 53".into());
        }
        let commands: Vec<String> = rules
            .iter()
            .map(|rule| format!("iptables -I {rule} -j ACCEPT"))
            .collect();
        format!(
            "`{}`; to keep it at each boot: {at_boot}",
            commands.join(" && ")
        )
    }
}

/// Refuses to start what could not work.
pub(crate) async fn refuse(paths: &Paths) -> Result<()> {
    match drops_bridge(paths).await {
        Some(dropped) => Err(Failure::new(dropped.message())
            .hint(dropped.remedy())
            .into()),
        None => Ok(()),
    }
}

/// Whether the host drops what Podman's networks forward. `None` if it does not, or can't be asked: Docker does not run
/// without `iptables`. Rootless networks are not forwarded by the host.
pub(crate) async fn drops_bridge(paths: &Paths) -> Option<Dropped> {
    if paths.scope == Scope::User {
        return None;
    }
    let output = Command::new("iptables").arg("--list-rules").output().await;
    let dropped = judge(&String::from_utf8_lossy(&output.ok()?.stdout))?;
    let netavark = netavark().await.unwrap_or_default();
    if driver(paths, &netavark).as_deref() == Some("nftables") {
        return Some(dropped);
    }
    // With iptables, netavark has rules of its own in the same chains, once a container runs.
    (dropped.names && is_without_rule_for_names(&netavark)).then_some(Dropped {
        forwarded: false,
        ..dropped
    })
}

/// Whether this netavark is older than 1.8, and accepts no questions to the name server (containers/netavark pull 780).
fn is_without_rule_for_names(netavark: &serde_json::Value) -> bool {
    let version = netavark.get("version").and_then(serde_json::Value::as_str);
    let mut numbers = { version.unwrap_or_default().split('.') }.map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (1, 8),
        _ => false,
    }
}

/// What netavark says of itself.
async fn netavark() -> Option<serde_json::Value> {
    for program in NETAVARK {
        if let Ok(output) = Command::new(program).arg("version").output().await {
            return serde_json::from_slice(&output.stdout).ok();
        }
    }
    None
}

/// What netavark writes its rules with. Versions that do not say it have iptables.
fn driver(paths: &Paths, netavark: &serde_json::Value) -> Option<String> {
    let directory = paths.containers();
    let mut places = files::entries(&directory.join("containers.conf.d")).unwrap_or_default();
    places.insert(0, directory.join("containers.conf"));
    // The last one counts.
    let configured = places.iter().rev().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines.rfind(|(key, _)| key.trim() == "firewall_driver")?;
        Some(value.split('#').next()?.trim().trim_matches('"').to_owned())
    });
    configured.or_else(|| Some(netavark.get("default_fw_driver")?.as_str()?.to_owned()))
}

/// `rules`: what `iptables -S` prints.
fn judge(rules: &str) -> Option<Dropped> {
    let drops = |chain: &str| {
        // Netavark's own chain, where it uses iptables.
        let is_netavark =
            |line: &str| line.starts_with(&format!("-A {chain} ")) && line.contains("NETAVARK_");
        rules.lines().any(|line| line == format!("-P {chain} DROP"))
            && !rules.lines().any(is_netavark)
    };
    let accepting = |chain: &'static str| {
        let chains = reached(rules, chain);
        let accepting = move |line| Rule::accepting(line, &chains);
        rules.lines().filter_map(accepting).collect::<Vec<_>>()
    };
    let is_podman =
        |interface: Option<&str>| interface.is_some_and(|name| name.starts_with("podman"));
    // One with addresses may mean Podman's, so it counts.
    let any = |rule: &Rule| rule.input.is_none() && rule.output.is_none();
    let into = |rule: &Rule| !rule.replies && (is_podman(rule.input) || any(rule));
    let back = |rule: &Rule| is_podman(rule.output) || any(rule);
    let forwarded = drops("FORWARD") && {
        let mut rules = accepting("FORWARD");
        rules.retain(|rule| rule.protocol.is_none());
        !(rules.iter().any(into) && rules.iter().any(back))
    };
    let asks = |rule: &Rule| into(rule) && rule.takes_names();
    let names = drops("INPUT") && !accepting("INPUT").iter().any(asks);
    let keeper = if reached(rules, "FORWARD").contains("ufw-user-forward") {
        Keeper::Ufw
    } else if rules.lines().any(|line| line == "-N DOCKER-USER") {
        Keeper::Docker
    } else {
        Keeper::Nobody
    };
    (forwarded || names).then_some(Dropped {
        keeper,
        forwarded,
        names,
    })
}

/// The word behind an option of a rule.
fn after<'a>(line: &'a str, option: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == option)?;
    words.next()
}

/// The chains that are reached from a chain.
fn reached<'a>(rules: &'a str, chain: &'a str) -> BTreeSet<&'a str> {
    let jumps: Vec<(&str, &str)> = rules
        .lines()
        .filter_map(|line| {
            let target = after(line, "-j").or_else(|| after(line, "-g"))?;
            Some((after(line, "-A")?, target))
        })
        .collect();
    let mut chains = BTreeSet::from([chain]);
    loop {
        let before = chains.len();
        for (chain, target) in &jumps {
            if chains.contains(chain) {
                chains.insert(target);
            }
        }
        if chains.len() == before {
            return chains;
        }
    }
}

/// A rule that accepts something.
struct Rule<'a> {
    input: Option<&'a str>,
    output: Option<&'a str>,
    protocol: Option<&'a str>,
    port: Option<&'a str>,
    /// Only what belongs to a connection.
    replies: bool,
}

impl<'a> Rule<'a> {
    fn accepting(line: &'a str, chains: &BTreeSet<&str>) -> Option<Self> {
        if !chains.contains(after(line, "-A")?) || after(line, "-j") != Some("ACCEPT") {
            return None;
        }
        // All but one interface may mean Podman's, too.
        let interface = |option: &str| {
            let is_but = line.contains(&format!("! {option} "));
            after(line, option).filter(|_| !is_but)
        };
        Some(Self {
            input: interface("-i"),
            output: interface("-o"),
            protocol: after(line, "-p"),
            port: after(line, "--dport").or_else(|| after(line, "--dports")),
            replies: line.contains("ESTABLISHED"),
        })
    }

    /// Whether it lets questions to a name server through.
    fn takes_names(&self) -> bool {
        self.protocol.is_none_or(|name| name == "udp")
            && (self.port).is_none_or(|ports| ports.split(',').any(|port| port == "53"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "\
-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
";

    #[test]
    fn docker_drops_what_nobody_accepts() {
        let dropped = judge(DOCKER).unwrap();
        assert_eq!(
            dropped.remedy(),
            "`iptables -I DOCKER-USER -i podman+ -j ACCEPT && iptables -I DOCKER-USER -o podman+ -j ACCEPT`; to keep it at each boot: docs/from-docker-compose.md, \"Docker on the same host\""
        );
        for (rules, accepted) in [
            ("-A DOCKER-USER -i podman+ -j ACCEPT\n", false),
            (
                "-A DOCKER-USER -o podman+ -j ACCEPT\n-A DOCKER-USER -i podman+ -j ACCEPT\n",
                true,
            ),
            (
                "-A DOCKER-USER -o podman1 -j ACCEPT\n-A DOCKER-USER -i podman1 -j ACCEPT\n",
                true,
            ),
            ("-A DOCKER-USER -j ACCEPT\n", true),
            ("-A DOCKER-USER -i eth0 -j ACCEPT\n", false),
            ("-A FORWARD -p icmp -j ACCEPT\n", false),
            ("-A FORWARD -s 10.89.0.0/24 -j ACCEPT\n", true),
            ("-A FORWARD ! -i eth0 -j ACCEPT\n", true),
            ("-A FORWARD -j SITE\n-A SITE -j ACCEPT\n", true),
            ("-A SITE -j ACCEPT\n", false),
            (
                "-A FORWARD -m comment --comment \"netavark firewall rules\" -j NETAVARK_FORWARD\n",
                true,
            ),
        ] {
            let all = format!("{DOCKER}{rules}");
            assert_eq!(judge(&all).is_none(), accepted, "{rules}");
        }
    }

    #[test]
    fn other_policies() {
        assert_eq!(judge(""), None);
        assert_eq!(
            judge(&DOCKER.replace("FORWARD DROP", "FORWARD ACCEPT")),
            None
        );
        let closed = "-P INPUT DROP\n-P FORWARD DROP\n";
        assert_eq!(
            judge(closed).unwrap().remedy(),
            "`iptables -I FORWARD -i podman+ -j ACCEPT && iptables -I FORWARD -o podman+ -j ACCEPT && iptables -I INPUT -i podman+ -p udp --dport 53 -j ACCEPT`; to keep it at each boot: add the rules to the configuration of your firewall"
        );
    }

    #[test]
    fn a_netavark_without_a_rule_for_names() {
        for (version, expected) in [("1.4.0", true), ("1.8.0", false), ("1.14.0", false)] {
            let said = serde_json::json!({ "version": version });
            assert_eq!(is_without_rule_for_names(&said), expected, "{version}");
        }
        assert!(!is_without_rule_for_names(&serde_json::Value::Null));
    }

    #[test]
    fn ufw_drops_what_no_rule_allows() {
        const FORWARDS: &str = "-A ufw-user-forward -i podman+ -j ACCEPT\n";
        const NAMES: &str = "-A ufw-user-input -i podman+ -p udp -m udp --dport 53 -j ACCEPT\n";
        let ufw = "\
-P INPUT DROP
-P FORWARD DROP
-A INPUT -j ufw-before-input
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -p udp -m udp --sport 67 --dport 68 -j ACCEPT
-A ufw-before-input -d 224.0.0.251/32 -p udp -m udp --dport 5353 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
";
        for (rules, forwarded, names) in [
            (String::new(), true, true),
            (FORWARDS.into(), false, true),
            (NAMES.into(), true, false),
            (
                "-A ufw-user-input -p udp -m multiport --dports 53,123 -j ACCEPT\n".into(),
                true,
                false,
            ),
            (format!("{FORWARDS}{NAMES}"), false, false),
        ] {
            let found = judge(&format!("{ufw}{rules}"));
            let expected = (forwarded || names).then_some(Dropped {
                keeper: Keeper::Ufw,
                forwarded,
                names,
            });
            assert_eq!(found, expected, "{rules}");
        }
    }
}

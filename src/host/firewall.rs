//! The host's firewall, as far as it decides about the traffic of Podman's bridge.

use std::collections::BTreeSet;

use tokio::process::Command;

use crate::error::{Failure, Result};
use crate::host::paths::{Paths, Scope};

/// Where distributions put it.
const NETAVARK: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

/// A rule that lets the bridge's traffic through is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// The chain for the operator's own rules.
    chain: &'static str,
}

impl Dropped {
    pub(crate) fn message(&self) -> String {
        let who = match self.chain {
            "DOCKER-USER" => "Docker has set the policy of the firewall's chain FORWARD to DROP",
            _ => "the policy of the firewall's chain FORWARD is DROP",
        };
        format!(
            "{who}, and no rule accepts the traffic of Podman's networks: the gateway would reach neither its database nor a provider"
        )
    }

    /// The commands that let it through until the next boot.
    pub(crate) fn remedy(&self) -> String {
        let chain = self.chain;
        let at_boot = match chain {
            "DOCKER-USER" => "docs/from-docker-compose.md, \"Docker on the same host\"",
            _ => "add both rules to the configuration of your firewall",
        };
        format!(
            "`iptables -I {chain} -i podman+ -j ACCEPT && iptables -I {chain} -o podman+ -j ACCEPT`; to keep it at each boot: {at_boot}"
        )
    }
}

/// Refuses to start what could not work.
///
/// # Errors
/// If the host drops what Podman's networks forward, with the command.
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
    // With iptables, netavark has a rule of its own in the same chain, once a container runs.
    (driver(paths).await.as_deref() == Some("nftables")).then_some(dropped)
}

/// What netavark writes its rules with. Versions that do not say it have iptables.
async fn driver(paths: &Paths) -> Option<String> {
    let directory = paths.containers();
    let drop_ins = std::fs::read_dir(directory.join("containers.conf.d"));
    let mut files: Vec<_> = drop_ins
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path())
        .collect();
    files.sort();
    files.insert(0, directory.join("containers.conf"));
    // The last one counts.
    let configured = files.iter().rev().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        let (_, value) = lines.rfind(|(key, _)| key.trim() == "firewall_driver")?;
        Some(value.split('#').next()?.trim().trim_matches('"').to_owned())
    });
    if configured.is_some() {
        return configured;
    }
    for program in NETAVARK {
        let Ok(output) = Command::new(program).arg("version").output().await else {
            continue;
        };
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        return Some(said.get("default_fw_driver")?.as_str()?.to_owned());
    }
    None
}

/// `rules`: what `iptables -S` prints.
fn judge(rules: &str) -> Option<Dropped> {
    if !rules.lines().any(|line| line == "-P FORWARD DROP") {
        return None;
    }
    // Netavark's own chain, where it uses iptables.
    if rules
        .lines()
        .any(|line| line.starts_with("-A FORWARD ") && line.contains("NETAVARK_FORWARD"))
    {
        return None;
    }
    let forwarding = reached(rules);
    let accepting: Vec<Rule> = rules
        .lines()
        .filter_map(|line| Rule::accepting(line, &forwarding))
        .collect();
    let is_podman =
        |interface: Option<&str>| interface.is_some_and(|name| name.starts_with("podman"));
    // One with addresses may mean Podman's, so it counts.
    let any = |rule: &Rule| rule.input.is_none() && rule.output.is_none();
    let out = |rule: &Rule| !rule.replies && (is_podman(rule.input) || any(rule));
    let back = |rule: &Rule| is_podman(rule.output) || any(rule);
    if accepting.iter().any(out) && accepting.iter().any(back) {
        return None;
    }
    let of_docker = rules.lines().any(|line| line == "-N DOCKER-USER");
    Some(Dropped {
        chain: if of_docker { "DOCKER-USER" } else { "FORWARD" },
    })
}

/// The word behind an option of a rule.
fn after<'a>(line: &'a str, option: &str) -> Option<&'a str> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == option)?;
    words.next()
}

/// The chains that forwarded traffic goes through.
fn reached(rules: &str) -> BTreeSet<&str> {
    let jumps: Vec<(&str, &str)> = rules
        .lines()
        .filter_map(|line| {
            let target = after(line, "-j").or_else(|| after(line, "-g"))?;
            Some((after(line, "-A")?, target))
        })
        .collect();
    let mut chains = BTreeSet::from(["FORWARD"]);
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

/// A rule that accepts what is forwarded, of whatever protocol.
struct Rule<'a> {
    input: Option<&'a str>,
    output: Option<&'a str>,
    /// Only what belongs to a connection.
    replies: bool,
}

impl<'a> Rule<'a> {
    fn accepting(line: &'a str, forwarding: &BTreeSet<&str>) -> Option<Self> {
        let forwards = forwarding.contains(after(line, "-A")?);
        if !forwards || after(line, "-j") != Some("ACCEPT") || after(line, "-p").is_some() {
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
            replies: line.contains("ESTABLISHED"),
        })
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
        assert_eq!(dropped.chain, "DOCKER-USER");
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
        // ufw's chains, with a rule of its user.
        let ufw = "\
-P FORWARD DROP
-A FORWARD -j ufw-before-forward
-A ufw-before-forward -j ufw-user-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
";
        assert_eq!(judge(ufw).unwrap().chain, "FORWARD");
        let allowed = format!("{ufw}-A ufw-user-forward -i podman1 -j ACCEPT\n");
        assert_eq!(judge(&allowed), None);
    }
}

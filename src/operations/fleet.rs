//! Several hosts as one system: what each does alone and rolls back alone, one after the other, over ssh.

use std::process::Output;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::{join_all, try_join_all};
use serde_json::Value;
use tokio::time::timeout;

use super::upgrade::set_image;
use crate::deployment::fleet::{self, FILE, Member};
use crate::deployment::settings::{parse_env, read_env};
use crate::error::{Failure, Result};
use crate::host::lock::OperationLock;
use crate::host::ssh::RemoteHost;
use crate::host::{Host, files, ownership};
use crate::litellm::config;

/// Timeout for the answer of a host that changes nothing.
const ANSWER: Duration = Duration::from_secs(60);

/// The hosts of `fleet.toml`, without those that are left out.
pub(crate) struct Fleet<'a> {
    host: &'a Host,
    file: fleet::Fleet,
}

/// A command of `litellm-units`, and its stdin.
type Call = (String, Vec<u8>);

/// What changes a host, and what undoes that.
struct Step<'a>(&'a RemoteHost, Call, Option<Call>);

impl<'a> Fleet<'a> {
    /// Reads `fleet.toml`.
    ///
    /// # Errors
    /// When it is missing or wrong, others can change it, or a host to leave out is not in it.
    pub(crate) fn load(host: &'a Host, skip: &[RemoteHost]) -> Result<Self> {
        let path = host.paths.deployment.join(FILE);
        // Its commands run here, and its hosts run what is in the files beside it.
        ownership::check(&host.paths, Some(&path))?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::config(format!("can't read {}: {error}", path.display())).hint(
                "write it (docs/several-hosts.md), or name its directory: `--litellm-dir DIR`",
            )
        })?;
        let mut file = fleet::Fleet::parse(&text, &path)?;
        let is_member = |ssh: &&RemoteHost| file.members.iter().any(|member| member.ssh == **ssh);
        if let Some(unknown) = skip.iter().find(|ssh| !is_member(ssh)) {
            let problem = format!("{unknown} is not in {}", path.display());
            return Err(Failure::config(problem).into());
        }
        file.members.retain(|member| !skip.contains(&member.ssh));
        Ok(Self { host, file })
    }

    /// The hosts in their order.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &RemoteHost> {
        self.file.members.iter().map(|member| &member.ssh)
    }

    /// What [`Fleet::apply`] would change on each host.
    ///
    /// # Errors
    /// When the configuration is wrong, or a host can't be asked.
    pub(crate) async fn plan(&self) -> Result<Vec<Output>> {
        config::refuse_errors(self.host)?;
        self.reach().await?;
        let plans = self.file.members.iter().map(|member| async {
            ask(&member.ssh, "apply --dry-run --from -", &self.tar(member)?).await
        });
        try_join_all(plans).await
    }

    /// Gives each host the configuration.
    ///
    /// # Errors
    /// When nothing was begun, or a host failed and those before it have their previous configuration again.
    pub(crate) async fn apply(&self) -> Result<()> {
        let _lock = self.lock("fleet apply")?;
        let (mut steps, mut refused) = (Vec::new(), Vec::new());
        for (member, plan) in self.file.members.iter().zip(self.plan().await?) {
            let ssh = &member.ssh;
            if !plan.status.success() {
                refused.push(format!("\n{ssh}: {}", said(&plan)));
            } else if plan.stdout == b"nothing to do\n"
                && good(ask(ssh, "health", &[]).await?).is_ok()
            {
                self.host.progress.say(&format!("{ssh}: nothing to do"));
            } else {
                let apply = |tar| ("apply --from -".to_owned(), tar);
                let before = match plan.stdout.starts_with(b"# add .env") {
                    true => None,
                    false => Some(good(ask(ssh, "config export", &[]).await?)?),
                };
                steps.push(Step(ssh, apply(self.tar(member)?), before.map(apply)));
            }
        }
        if !refused.is_empty() {
            let problem = format!(
                "nothing was changed, since hosts refuse it:{}",
                refused.concat()
            );
            return Err(Failure::config(problem).into());
        }
        self.roll_out(&steps).await
    }

    /// Changes each host to the release of `image`: by an upgrade, or by a rollback to the last release with it.
    ///
    /// # Errors
    /// When nothing was begun, or a host failed and those before it have their previous release again.
    pub(crate) async fn change_release(&self, image: &str, is_upgrade: bool) -> Result<()> {
        let _lock = self.lock("fleet release")?;
        self.reach().await?;
        let mut steps = Vec::new();
        for ssh in self.hosts() {
            let history = good(ask(ssh, "history --json", &[]).await?)?;
            let history: Vec<Value> = serde_json::from_slice(&history)?;
            let number = |field: &str, value: &str| {
                let mut found = history.iter().filter(|entry| entry[field] == value);
                found
                    .rfind(|entry| entry["release"].is_u64())
                    .map(|entry| entry["release"].clone())
            };
            let back = |number| (format!("rollback --keep-data --to {number}"), Vec::new());
            let current = number("result", "serves");
            let current = current.with_context(|| format!("{ssh} has never served"))?;
            let ran = number("image", image);
            if ran.as_ref() == Some(&current) {
                self.host.progress.say(&format!("{ssh}: nothing to do"));
                continue;
            }
            let forward = match ran {
                _ if is_upgrade => (format!("upgrade --image {image}"), Vec::new()),
                ran => back(ran.with_context(|| format!("{ssh} has never run {image}"))?),
            };
            steps.push(Step(ssh, forward, Some(back(current))));
        }
        self.roll_out(&steps).await?;
        // The release of hosts that are added later.
        let path = self.host.paths.env_file();
        let mut env = parse_env(&read_env(&path)?, &path)?;
        set_image(&mut env, "LITELLM_IMAGE", image, &path)?;
        files::write_atomically(&path, env.text().as_bytes(), 0o600)
    }

    fn lock(&self, command: &str) -> Result<OperationLock> {
        OperationLock::take_file(&self.host.paths.deployment.join(".fleet.lock"), command)
    }

    fn tar(&self, member: &Member) -> Result<Vec<u8>> {
        member.tar(&self.host.paths.deployment)
    }

    /// Refuses hosts that can't be reached, or have another version than this program.
    async fn reach(&self) -> Result<()> {
        let own = concat!("litellm-units ", env!("CARGO_PKG_VERSION"));
        let asked = self.hosts().map(|ssh| async move {
            let wrong = match ask(ssh, "--version", &[]).await.and_then(good) {
                Ok(found) if found.trim_ascii() == own.as_bytes() => return None,
                Ok(found) => format!("{}, not {own}", String::from_utf8_lossy(&found).trim()),
                Err(error) => format!("{error:#}"),
            };
            Some(format!("\n{ssh}: {wrong}"))
        });
        let wrong: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let problem = format!(
            "nothing was changed, since not all hosts are there:{}",
            wrong.concat()
        );
        Err(Failure::new(problem)
            .hint("to go on without a host, add `--skip HOST`")
            .into())
    }

    /// Takes each step. After one that fails, undoes those before it.
    async fn roll_out(&self, steps: &[Step<'_>]) -> Result<()> {
        for (at, Step(ssh, forward, _)) in steps.iter().enumerate() {
            let Err(error) = self.take(ssh, forward).await else {
                continue;
            };
            let mut outcomes = vec![format!("{ssh} failed: {error:#}")];
            for Step(ssh, _, back) in steps[..at].iter().rev() {
                outcomes.push(match back {
                    None => format!("{ssh} is new, and has no earlier configuration"),
                    Some(back) => match self.take(ssh, back).await {
                        Ok(()) => format!("{ssh} was rolled back"),
                        Err(error) => {
                            format!("{ssh} has the change: its rollback failed: {error:#}")
                        }
                    },
                });
            }
            outcomes.extend(
                steps[at + 1..]
                    .iter()
                    .map(|step| format!("{} is unchanged", step.0)),
            );
            let hint = "see the state of all: `litellm-units fleet status`";
            return Err(Failure::new(outcomes.join("\n")).hint(hint).into());
        }
        Ok(())
    }

    /// Runs a command on a host, which says on this terminal what it does.
    async fn take(&self, ssh: &RemoteHost, (line, input): &Call) -> Result<()> {
        self.host
            .progress
            .say(&format!("{ssh}: litellm-units {line}"));
        good(ssh.call(line, input, false).await?)?;
        good(ask(ssh, "health", &[]).await?).map(drop)
    }
}

/// The answer of a host.
pub(crate) async fn ask(ssh: &RemoteHost, line: &str, input: &[u8]) -> Result<Output> {
    let answer = timeout(ANSWER, ssh.call(line, input, true)).await;
    answer.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))?
}

/// stdout of a command that succeeded.
fn good(output: Output) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Failure::new(said(&output)).into())
}

/// Why a command failed: its words, if they were not for the terminal.
pub(crate) fn said(output: &Output) -> String {
    match String::from_utf8_lossy(&output.stderr).trim() {
        "" => output.status.to_string(),
        words => words.to_owned(),
    }
}

//! Several hosts as one system: what each does alone and rolls back alone, one after the other, over ssh.

use std::process::Output;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
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
/// The command that gives a host the configuration.
pub(crate) const APPLY: &str = "apply --from -";

/// The hosts of `fleet.toml`, without those that are left out.
pub(crate) struct Fleet<'a> {
    host: &'a Host,
    pub(crate) members: Vec<Member>,
    /// The host that backs up the database of all, also if it is left out.
    pub(crate) backup: RemoteHost,
}

/// What a host answered.
pub(crate) struct Answer<'a> {
    pub(crate) member: &'a Member,
    /// What it was given.
    input: Vec<u8>,
    pub(crate) output: Result<Output>,
}

impl<'a> Fleet<'a> {
    /// Reads `fleet.toml`.
    pub(crate) fn load(host: &'a Host, skip: &[RemoteHost]) -> Result<Self> {
        let path = host.paths.deployment.join(FILE);
        // Whoever changes it, or the files beside it, decides what root does on all hosts.
        ownership::check(&host.paths, Some(&path))?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::config(format!("can't read {}: {error}", path.display())).hint(
                "write it (docs/several-hosts.md), or name its directory: `--litellm-dir DIR`",
            )
        })?;
        let found = fleet::Fleet::parse(&text, &path)?;
        let backup = found.backup().context("no host is in the fleet")?.clone();
        let mut members = found.members;
        if let Some(unknown) = skip
            .iter()
            .find(|ssh| members.iter().all(|member| member.ssh != **ssh))
        {
            return Err(Failure::config(format!("{unknown} is not in {}", path.display())).into());
        }
        members.retain(|member| !skip.contains(&member.ssh));
        Ok(Self {
            host,
            members,
            backup,
        })
    }

    /// What each host answers to a command, asked at once.
    pub(crate) async fn ask(&self, line: &str) -> Vec<Answer<'_>> {
        let asked = self.members.iter().map(|member| async move {
            match self.input(member, line) {
                Ok(input) => {
                    let output = ask(&member.ssh, line, &input).await;
                    Answer {
                        member,
                        input,
                        output,
                    }
                }
                Err(error) => Answer {
                    member,
                    input: Vec::new(),
                    output: Err(error),
                },
            }
        });
        join_all(asked).await
    }

    /// The stdin of a command.
    fn input(&self, member: &Member, line: &str) -> Result<Vec<u8>> {
        if line.starts_with(APPLY) {
            return member.tar(&self.host.paths.deployment, &self.backup);
        }
        Ok(Vec::new())
    }

    /// What a command would change on each host: the output of its dry run.
    ///
    /// # Errors
    /// When the configuration is wrong, or a host can't be reached or has another version than this program.
    pub(crate) async fn plan(&self, line: &str) -> Result<Vec<Answer<'_>>> {
        config::refuse_errors(self.host)?;
        let own = concat!("litellm-units ", env!("CARGO_PKG_VERSION"));
        let mut wrong = String::new();
        for answer in self.ask("--version").await {
            let ssh = &answer.member.ssh;
            match answer.output.and_then(good) {
                Ok(found) if found.trim_ascii() == own.as_bytes() => {}
                Ok(found) => {
                    let found = String::from_utf8_lossy(&found);
                    wrong += &format!("\n{ssh} has {}, not {own}", found.trim());
                }
                Err(error) => wrong += &format!("\n{ssh}: {error:#}"),
            }
        }
        if wrong.is_empty() {
            return Ok(self.ask(&format!("{line} --dry-run")).await);
        }
        Err(Failure::new(format!(
            "nothing was changed, since not every host can take part:{wrong}"
        ))
        .hint("to go on without a host, add `--skip HOST`")
        .into())
    }

    /// Runs a command on each host that it would change, one after the other.
    ///
    /// # Errors
    /// When nothing was begun, or a host failed. Those before it then are as they were, if that is not said otherwise.
    pub(crate) async fn roll_out(&self, line: &str) -> Result<()> {
        let _lock = self.lock(line)?;
        self.carry_out(line).await
    }

    fn lock(&self, line: &str) -> Result<OperationLock> {
        let lock = self.host.paths.deployment.join(".fleet.lock");
        OperationLock::take_file(&lock, &format!("fleet {line}"))
    }

    async fn carry_out(&self, line: &str) -> Result<()> {
        let progress = &self.host.progress;
        let (mut changing, mut refused) = (Vec::new(), String::new());
        for Answer {
            member,
            input,
            output,
        } in self.plan(line).await?
        {
            let ssh = &member.ssh;
            let plan = match output.and_then(good) {
                Ok(plan) => String::from_utf8_lossy(&plan).into_owned(),
                Err(error) => {
                    refused += &format!("\n{ssh}: {error:#}");
                    continue;
                }
            };
            // An upgrade starts nothing.
            if plan.starts_with("nothing to do") && (line != APPLY || is_ready(ssh).await.is_ok()) {
                progress.say(&format!("{ssh}: nothing to do"));
                continue;
            }
            let is_new = plan.lines().any(|line| line.starts_with("# add .env"));
            let previous = if line != APPLY {
                Ok(Vec::new())
            } else if is_new {
                changing.push((ssh, input, None));
                continue;
            } else {
                ask(ssh, "config export", &[]).await.and_then(good)
            };
            match previous {
                Ok(previous) => changing.push((ssh, input, Some(previous))),
                Err(error) => refused += &format!("\n{ssh}: {error:#}"),
            }
        }
        if !refused.is_empty() {
            return Err(Failure::config(format!("nothing was changed:{refused}")).into());
        }
        if line != APPLY
            && let Some((first, ..)) = changing.first()
            && **first != self.backup
        {
            self.back_up().await?;
        }
        let mut done = Vec::new();
        let mut changing = changing.into_iter();
        while let Some((ssh, input, previous)) = changing.next() {
            let mut taken = self.take(ssh, line, &input).await;
            if taken.is_ok() {
                done.push((ssh, previous));
                taken = is_ready(ssh).await;
            }
            let Err(error) = taken else {
                continue;
            };
            let mut outcome = format!("{ssh}: {error:#}");
            let undo = if line == APPLY {
                APPLY
            } else {
                "rollback --keep-data"
            };
            for (ssh, previous) in done.into_iter().rev() {
                outcome += &match previous {
                    None => format!("\n{ssh} is new, and keeps the change"),
                    Some(previous) => match self.undo(ssh, undo, &previous).await {
                        Ok(()) => format!("\n{ssh} was rolled back"),
                        Err(error) => format!("\n{ssh} was not rolled back: {error:#}"),
                    },
                };
            }
            for (ssh, ..) in changing {
                outcome += &format!("\n{ssh} is unchanged");
            }
            return Err(Failure::new(outcome)
                .hint("see the state of all: `litellm-units fleet status`")
                .into());
        }
        Ok(())
    }

    /// Backs up the database before another host than that one migrates it: the others make no backup of their own.
    async fn back_up(&self) -> Result<()> {
        let ssh = &self.backup;
        if self.members.iter().all(|member| member.ssh != *ssh) {
            self.host.progress.warn(&format!(
                "no backup is made, since {ssh}, which backs up the database, is left out"
            ));
            return Ok(());
        }
        let made = self.take(ssh, "backup", &[]).await;
        made.map_err(|error| {
            Failure::new(format!(
                "nothing was changed, since {ssh} made no backup: {error:#}"
            ))
            .into()
        })
    }

    /// Runs a command on a host, which says here what it does.
    async fn take(&self, ssh: &RemoteHost, line: &str, input: &[u8]) -> Result<()> {
        self.host
            .progress
            .say(&format!("== {ssh}: litellm-units {line}"));
        good(ssh.call(line, input, false).await?).map(drop)
    }

    async fn undo(&self, ssh: &RemoteHost, line: &str, input: &[u8]) -> Result<()> {
        self.take(ssh, line, input).await?;
        is_ready(ssh).await
    }

    /// Changes the release of each host, and of those that are added later.
    ///
    /// # Errors
    /// As [`Fleet::roll_out`].
    pub(crate) async fn upgrade(&self, image: &str) -> Result<()> {
        let line = format!("upgrade --image {image}");
        let _lock = self.lock(&line)?;
        self.carry_out(&line).await?;
        let path = self.host.paths.env_file();
        let mut env = parse_env(&read_env(&path)?, &path)?;
        set_image(&mut env, "LITELLM_IMAGE", image, &path)?;
        files::write_atomically(&path, env.text().as_bytes(), 0o600)
    }
}

async fn is_ready(ssh: &RemoteHost) -> Result<()> {
    good(ask(ssh, "health", &[]).await?).map(drop)
}

async fn ask(ssh: &RemoteHost, line: &str, input: &[u8]) -> Result<Output> {
    let answer = timeout(ANSWER, ssh.call(line, input, true)).await;
    answer.with_context(|| format!("no answer within {} s", ANSWER.as_secs()))?
}

/// stdout of a command that succeeded.
pub(crate) fn good(output: Output) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    // Else they are on the terminal.
    let words = String::from_utf8_lossy(&output.stderr);
    let words = Some(words.trim().to_owned()).filter(|words| !words.is_empty());
    Err(Failure::new(words.unwrap_or_else(|| format!("failed ({})", output.status))).into())
}

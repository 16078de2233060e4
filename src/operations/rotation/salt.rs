//! LiteLLM's database encrypted with another salt.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use crate::deployment::images_lock::ImagesLock;
use crate::deployment::settings::Settings;
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::litellm::contract;
use crate::litellm::keys::scrub;
use crate::operations::backup;
use crate::operations::backup::database::Server;
use crate::operations::stack;
use crate::quadlet::NETWORK;
use crate::service::Service;

/// For importing LiteLLM and reading the database.
const COUNT_TIMEOUT: Duration = Duration::from_secs(600);
/// As in the program.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Its exit status if LiteLLM lacks the functions.
const LACKING: i32 = 3;

/// Refuses, before anything changes, what [`reencrypt`] could not do, and makes a backup.
///
/// # Errors
/// When LiteLLM, the database or the disks can't.
pub(super) async fn prepare(
    host: &Host,
    settings: &Settings,
    from: &SecretString,
    to: &SecretString,
) -> Result<()> {
    let work = Work::begin(host, settings, from, to).await?;
    let found = work.found;
    work.end(host, settings).await?;
    if found == Some(0) {
        return Ok(());
    }
    let server = Server::new(host, settings).await?;
    backup::refuse_full_disks(&host.paths, server.size().await?, 0)?;
    let made = backup::create(host, settings, &backup::BackupOptions::default()).await?;
    host.progress.say(&format!(
        "backup {} has the previous salt, and what it encrypts",
        made.id()
    ));
    Ok(())
}

/// Encrypts all that `from` encrypts with `to`, in one transaction. Can be repeated. If there is anything, the gateway is
/// stopped, and is left so: with the salt that it has, it would read nothing of it.
///
/// # Errors
/// When the database can't; then nothing is changed in it.
pub(super) async fn reencrypt(
    host: &Host,
    settings: &Settings,
    from: &SecretString,
    to: &SecretString,
    timeout: Duration,
) -> Result<()> {
    let mut work = Work::begin(host, settings, from, to).await?;
    if let Some(found @ 1..) = work.found {
        host.progress.say(&format!(
            "values to encrypt with the other salt: {found}; requests wait"
        ));
        stack::stop(host, &[Service::Litellm.unit()], timeout).await?;
        fail::fail_point!("salt-stopped");
        work.write().await?;
        fail::fail_point!("salt-written");
    }
    work.end(host, settings).await
}

/// `units/reencrypt.py` in its container.
struct Work {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    words: JoinHandle<io::Result<String>>,
    /// How many values the present salt encrypts; `None` if the program has ended, for a reason of its own.
    found: Option<u64>,
}

impl Work {
    async fn begin(
        host: &Host,
        settings: &Settings,
        from: &SecretString,
        to: &SecretString,
    ) -> Result<Self> {
        let pinned = ImagesLock::load(&host.paths.images_lock())?.pin(&settings.litellm_image);
        let words = [
            "run",
            "--rm",
            "--interactive",
            "--pull=never",
            "--network",
            NETWORK,
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
            "--log-driver=none",
            "--entrypoint=python3",
            &pinned,
            "-c",
            contract::REENCRYPTS,
        ];
        let mut child = host
            .podman()
            .await?
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("can't run podman")?;
        let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            anyhow::bail!("podman has no stdin, stdout and stderr");
        };
        let words = tokio::spawn(async move {
            let mut words = String::new();
            stderr.read_to_string(&mut words).await.map(|_| words)
        });
        let given = SecretString::from(format!(
            "{}\n",
            serde_json::json!({
                "database": settings.database.url().open()?.expose_secret(),
                "from": from.expose_secret(),
                "to": to.expose_secret(),
            })
        ));
        // A program that has ended has its own status.
        let _ = stdin.write_all(given.expose_secret().as_bytes()).await;
        let mut lines = BufReader::new(stdout).lines();
        let found = tokio::time::timeout(COUNT_TIMEOUT, lines.next_line())
            .await
            .context("the encrypted values of the database were not counted in time")??;
        Ok(Self {
            child,
            stdin,
            lines,
            words,
            found: found.and_then(|line| line.parse().ok()),
        })
    }

    /// Has it write. Whether it did says its end.
    async fn write(&mut self) -> Result<()> {
        let _ = self.stdin.write_all(b"write\n").await;
        tokio::time::timeout(WRITE_TIMEOUT, self.lines.next_line())
            .await
            .context("the stored values were not encrypted in time")??;
        Ok(())
    }

    async fn end(mut self, host: &Host, settings: &Settings) -> Result<()> {
        drop(self.stdin);
        let status = self.child.wait().await.context("can't run podman")?;
        let words = self.words.await.context("can't read from podman")??;
        match status.code() {
            Some(0) => Ok(()),
            Some(LACKING) => lacking(host, settings).await,
            _ => {
                let last = words.trim().lines().last().unwrap_or("no reason given");
                Err(Failure::new(format!(
                    "the stored values can't be encrypted with another salt: {}",
                    scrub(last)
                ))
                .into())
            }
        }
    }
}

/// Where there is nothing to encrypt, any release will do.
async fn lacking(host: &Host, settings: &Settings) -> Result<()> {
    let tables = Server::new(host, settings)
        .await?
        .encrypted_tables()
        .await?;
    if tables.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} can't encrypt what the database holds ({}) with another salt",
        settings.litellm_image,
        tables.join(", ")
    ))
    .hint(format!(
        "LiteLLM {} and newer can: `litellm-units upgrade --check` shows the releases",
        contract::REENCRYPTS_FROM
    ))
    .into())
}

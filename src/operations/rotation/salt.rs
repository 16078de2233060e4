//! LiteLLM's database encrypted with another salt.

use std::io;
use std::process::{ExitStatus, Stdio};
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
use crate::image::ImageReference;
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
/// For its end, once it has nothing more to do.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Its exit status if LiteLLM lacks the functions.
const LACKING: i32 = 3;

/// Refuses, before anything changes, what [`reencrypt`] could not do, and makes a backup.
pub(super) async fn prepare(
    host: &Host,
    settings: &Settings,
    from: &SecretString,
    to: &SecretString,
) -> Result<()> {
    if host.paths.postgres_previous().exists() {
        return Err(Failure::new(
            "the previous cluster of PostgreSQL, to which `rollback --postgres` returns, would keep the present salt",
        )
        .hint("a backup removes it: `litellm-units backup`")
        .into());
    }
    Work::begin(host, settings, from, to).await?.end().await?;
    let server = Server::new(host, settings).await?;
    backup::refuse_full_disks(&host.paths, server.size().await?, 0)?;
    back_up(host, settings).await
}

/// A backup that removes no other.
///
/// # Errors
/// As [`backup::create`].
pub(super) async fn back_up(host: &Host, settings: &Settings) -> Result<()> {
    let options = backup::BackupOptions {
        retention: None,
        ..backup::BackupOptions::default()
    };
    backup::create(host, settings, &options).await.map(drop)
}

/// Encrypts all that `from` encrypts with `to`, in one transaction. Can be repeated. The gateway is stopped, and is left so:
/// it would read nothing of it, and would go on encrypting with the salt that it has.
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
    stack::start_database(host, settings, timeout).await?;
    let mut work = Work::begin(host, settings, from, to).await?;
    host.progress.say(&format!(
        "values to encrypt with the other salt: {}; requests wait",
        work.found
    ));
    stack::stop(host, &[Service::Litellm.unit()], timeout).await?;
    fail::fail_point!("salt-stopped");
    work.write().await?;
    fail::fail_point!("salt-written");
    work.end().await
}

/// `units/reencrypt.py` in its container.
struct Work {
    image: ImageReference,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    words: JoinHandle<io::Result<String>>,
    /// How many values the present salt encrypts.
    found: u64,
}

impl Work {
    async fn begin(
        host: &Host,
        settings: &Settings,
        from: &SecretString,
        to: &SecretString,
    ) -> Result<Self> {
        let image = settings.litellm_image.clone();
        let pinned = ImagesLock::load(&host.paths.images_lock())?.pin(&image);
        let words = [
            "run",
            "--rm",
            // Ends that of a command which was killed.
            "--name=litellm-units-reencrypt",
            "--replace",
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
        let mut work = Self {
            image,
            child,
            stdin: Some(stdin),
            lines: BufReader::new(stdout).lines(),
            words,
            found: 0,
        };
        match work.number(COUNT_TIMEOUT).await? {
            Some(found) => {
                work.found = found;
                Ok(work)
            }
            None => Err(work.failure().await?),
        }
    }

    /// The next number that the program prints; `None` if it ends instead.
    async fn number(&mut self, timeout: Duration) -> Result<Option<u64>> {
        let line = tokio::time::timeout(timeout, self.lines.next_line())
            .await
            .context("the stored values were not read in time")??;
        line.map(|line| line.parse().context("not a number of stored values"))
            .transpose()
    }

    /// Has it write what it has found.
    async fn write(&mut self) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(b"write\n").await;
        }
        match self.number(WRITE_TIMEOUT).await? {
            Some(_) => Ok(()),
            None => Err(self.failure().await?),
        }
    }

    async fn end(mut self) -> Result<()> {
        if self.status().await?.success() {
            return Ok(());
        }
        Err(self.failure().await?)
    }

    /// How it ends. Without a second line, it has nothing to do.
    async fn status(&mut self) -> Result<ExitStatus> {
        // Only a drop closes the pipe.
        drop(self.stdin.take());
        tokio::time::timeout(END_TIMEOUT, self.child.wait())
            .await
            .context("the program that reads the stored values does not end")?
            .context("can't run podman")
    }

    /// Why it has ended.
    async fn failure(&mut self) -> Result<anyhow::Error> {
        let status = self.status().await?;
        if status.code() == Some(LACKING) {
            return Ok(Failure::new(format!(
                "{} can't encrypt with another salt",
                self.image
            ))
            .hint(format!(
                "LiteLLM {} and newer can: `litellm-units upgrade --check` shows the releases",
                contract::REENCRYPTS_FROM
            ))
            .into());
        }
        let words = (&mut self.words)
            .await
            .context("can't read from podman")??;
        let last = words.trim().lines().last().unwrap_or("no reason given");
        Ok(Failure::new(format!(
            "the stored values can't be encrypted with another salt: {}",
            scrub(last)
        ))
        .into())
    }
}

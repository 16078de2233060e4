//! Programs that are run for their output, with a deadline and a limit.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::Result;

/// How much of stderr is read, in bytes.
const STDERR_LIMIT: u64 = 1 << 20;
/// A process that the program left in the background may keep stderr open.
const STDERR_TIMEOUT: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(5);

/// The end of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The last line of stderr that is not blank.
    pub(crate) said: Option<String>,
}

/// Runs a program with `input` on its stdin. After `timeout`, or with more than `limit` bytes of output, it is killed with
/// what it started.
///
/// # Errors
/// When it can't be run or is killed. Neither the arguments nor the output are in the message.
pub(crate) fn run(
    command: &mut Command,
    input: &[u8],
    timeout: Duration,
    limit: u64,
) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let deadline = Instant::now() + timeout;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                anyhow::anyhow!("{name} is not installed")
            } else {
                anyhow::Error::from(error).context(format!("can't run {name}"))
            }
        })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        anyhow::bail!("{name} has no pipes");
    };
    let said = read(stderr, STDERR_LIMIT);
    let answer = read(stdout, limit.saturating_add(1));
    // It reads all of its input before it writes. One that ended at once says why.
    let _ = stdin.write_all(input);
    drop(stdin);
    let late = || anyhow::anyhow!("{name} did not end within {} s", timeout.as_secs());
    let Ok(stdout) = answer.recv_timeout(timeout) else {
        kill(&mut child);
        return Err(late());
    };
    let stdout = stdout.with_context(|| format!("can't read from {name}"))?;
    if u64::try_from(stdout.len()).is_ok_and(|length| length > limit) {
        kill(&mut child);
        anyhow::bail!("{name} wrote more than {} KiB", limit >> 10);
    }
    let status = loop {
        match child
            .try_wait()
            .with_context(|| format!("can't wait for {name}"))?
        {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(INTERVAL),
            None => {
                kill(&mut child);
                return Err(late());
            }
        }
    };
    let said = said.recv_timeout(STDERR_TIMEOUT);
    let said = said.ok().and_then(std::io::Result::ok).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let said = said.lines().rfind(|line| !line.trim().is_empty());
    Ok(Output {
        status,
        stdout,
        said: said.map(|line| line.trim().to_owned()),
    })
}

/// Reads up to `limit` bytes beside this thread.
fn read(pipe: impl Read + Send + 'static, limit: u64) -> Receiver<std::io::Result<Vec<u8>>> {
    let (send, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = pipe.take(limit).read_to_end(&mut bytes).map(|_| bytes);
        // Nobody receives it after the deadline.
        let _ = send.send(result);
    });
    answer
}

fn kill(child: &mut Child) {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    // It may have ended meanwhile.
    let _ = group.map(|group| killpg(group, Signal::SIGKILL));
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &str) -> Result<Output> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(&mut command, input.as_bytes(), Duration::from_secs(2), 1024)
    }

    #[test]
    fn output_and_last_line() {
        let output = sh("cat; echo one >&2; echo ' two' >&2; echo >&2; exit 3", "in").unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, b"in");
        assert_eq!(output.said.as_deref(), Some("two"));
        // What is left in the background does not keep it.
        let output = sh("echo a; sleep 60 >/dev/null & echo b >&2", "").unwrap();
        assert_eq!((output.stdout, output.said), (b"a\n".to_vec(), None));
    }

    #[test]
    fn limits() {
        let error = |script| sh(script, "").unwrap_err().to_string();
        assert_eq!(error("sleep 60"), "/bin/sh did not end within 2 s");
        assert_eq!(
            error("exec >&-; sleep 60"),
            "/bin/sh did not end within 2 s"
        );
        assert_eq!(error("yes"), "/bin/sh wrote more than 1 KiB");
        let mut command = Command::new("/no/such/program");
        let missing = run(&mut command, b"", Duration::from_secs(2), 1024);
        assert_eq!(
            missing.unwrap_err().to_string(),
            "/no/such/program is not installed"
        );
    }
}

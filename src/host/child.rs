//! Programs that are run for their output, with a deadline and a limit.

use std::io::{ErrorKind, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::error::Result;

/// How much of the end of stderr is kept, in bytes.
const STDERR_LIMIT: usize = 64 << 10;
/// A process that the program left in the background may keep stdout and stderr open.
const GRACE: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(5);
/// The most characters of a line that are shown.
const LINE_LIMIT: usize = 200;
/// A shorter secret would be found in a line by chance.
const SHORTEST: usize = 8;

/// The end of a program.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    /// The last line of stderr that is not blank, without `secrets` and control characters.
    pub(crate) fn said(&self, secrets: &[&str]) -> Option<String> {
        let text = String::from_utf8_lossy(&self.stderr);
        let mut line = printable(text.lines().rfind(|line| !line.trim().is_empty())?);
        let parts = secrets.iter().flat_map(|secret| secret.lines());
        let mut parts: Vec<String> = parts.map(printable).collect();
        parts.retain(|part| part.len() >= SHORTEST);
        // One may be a part of another.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        for part in parts {
            line = line.replace(&part, "********");
        }
        if let Some((end, _)) = line.char_indices().nth(LINE_LIMIT) {
            line.truncate(end);
            line.push('…');
        }
        Some(line)
    }
}

fn printable(text: &str) -> String {
    text.trim().chars().filter(|c| !c.is_control()).collect()
}

/// Runs a program with `input` on its stdin. After `timeout`, or with more than `limit` bytes of output, it is killed with
/// what it started. It stays in this process group, so that Ctrl-C ends it as well.
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
        .spawn()
        .map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                anyhow::anyhow!("{name} is not installed")
            } else {
                anyhow::Error::from(error).context(format!("can't run {name}"))
            }
        })?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        anyhow::bail!("{name} has no pipes");
    };
    let is_within = move |length| u64::try_from(length).is_ok_and(|length| length <= limit);
    let too_long = || anyhow::anyhow!("{name} wrote more than {} KiB", limit >> 10);
    let answer = Reader::start(stdout, move |bytes| is_within(bytes.len()));
    let said = Reader::start(stderr, |bytes| {
        if bytes.len() > 2 * STDERR_LIMIT {
            bytes.drain(..bytes.len() - STDERR_LIMIT);
        }
        true
    });
    // It reads all of its input before it writes. One that ended at once says why.
    let _ = stdin.write_all(input);
    drop(stdin);
    let status = loop {
        if !is_within(answer.length()) {
            kill(&mut child);
            return Err(too_long());
        }
        match child
            .try_wait()
            .with_context(|| format!("can't wait for {name}"))?
        {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(INTERVAL),
            None => {
                kill(&mut child);
                anyhow::bail!("{name} did not end within {} s", timeout.as_secs());
            }
        }
    };
    let end = Instant::now() + GRACE;
    let stdout = answer
        .until(end)
        .with_context(|| format!("can't read from {name}"))?;
    if !is_within(stdout.len()) {
        return Err(too_long());
    }
    Ok(Output {
        status,
        stdout,
        stderr: said.until(end).unwrap_or_default(),
    })
}

/// A pipe that is read beside this thread.
struct Reader {
    bytes: Arc<Mutex<Vec<u8>>>,
    end: Receiver<std::io::Result<()>>,
}

impl Reader {
    /// `keep` may shorten what was read, and says whether to read on.
    fn start(
        mut pipe: impl Read + Send + 'static,
        keep: impl Fn(&mut Vec<u8>) -> bool + Send + 'static,
    ) -> Self {
        let (send, end) = mpsc::channel();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            let result = loop {
                match pipe.read(&mut chunk) {
                    Ok(0) => break Ok(()),
                    Ok(length) => {
                        let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        bytes.extend_from_slice(&chunk[..length]);
                        if !keep(&mut bytes) {
                            break Ok(());
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                }
            };
            // Nobody receives it after the deadline.
            let _ = send.send(result);
        });
        Self { bytes, end }
    }

    fn length(&self) -> usize {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.len()
    }

    /// What was read to the end of the pipe, or until `end` if a process keeps it open.
    fn until(self, end: Instant) -> std::io::Result<Vec<u8>> {
        let rest = end.saturating_duration_since(Instant::now());
        self.end.recv_timeout(rest).unwrap_or(Ok(()))?;
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut bytes))
    }
}

/// Ends a program and what it started.
fn kill(child: &mut Child) {
    let started = descendants(child.id());
    // It may have ended meanwhile, and they with it.
    let _ = child.kill();
    for process in started {
        let process = i32::try_from(process).map(Pid::from_raw);
        let _ = process.map(|process| signal::kill(process, Signal::SIGKILL));
    }
    let _ = child.wait();
}

fn descendants(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            found.push(child);
            found.extend(descendants(child));
        }
    }
    found
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
        assert_eq!(output.said(&[]).as_deref(), Some("two"));
        // What is left in the background does not keep it.
        let output = sh("echo a; sleep 3 & echo b >&2", "").unwrap();
        assert_eq!(output.stdout, b"a\n");
        assert_eq!(output.said(&[]).as_deref(), Some("b"));
    }

    #[test]
    fn lines_that_are_shown() {
        let said = |script: &str, secrets: &[&str]| sh(script, "").unwrap().said(secrets).unwrap();
        assert_eq!(said("printf 'a\\033[1mb\\n' >&2", &[]), "a[1mb");
        let secrets = ["12345678", "sk-12345678\n", "-----\nlastline\n", "short"];
        assert_eq!(
            said("echo sk-12345678 12345678 lastline short >&2", &secrets),
            "******** ******** ******** short"
        );
        let long = said("yes | head -c 3000000 | tr '\\n' x >&2", &[]);
        assert_eq!(long, format!("{}…", "yx".repeat(LINE_LIMIT / 2)));
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let script = format!("(echo $$ >{path}; sh -c 'echo $$ >{path}; sleep 61; :'; :); :");
        assert!(sh(&script, "").is_err());
        let process = std::fs::read_to_string(file.path()).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/stat", process.trim()));
        assert!(status.is_err() || status.unwrap().contains(") Z "));
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

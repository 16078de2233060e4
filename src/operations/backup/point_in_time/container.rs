//! The throw-away container in which PostgreSQL recovers.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;

use super::chain::log_size;
use super::{CONTAINER, Target, remove_container};
use crate::deployment::settings::{DEFAULT_POSTGRES_NAME, Settings, load_env};
use crate::error::{Failure, Result};
use crate::host::Host;
use crate::host::files;
use crate::host::podman::Podman;
use crate::image::ImageReference;
use crate::operations::backup::authentication::Origin;
use crate::operations::backup::database::Server;
use crate::operations::backup::manifest::{BASE, BackupManifest, BasePoint, RecoveredFrom};
use crate::operations::backup::wal::{Piece, format_position};
use crate::operations::backup::{
    Backup, BackupOptions, ENV, Recovered, UNFINISHED, archive, create_from, directory,
    make_private, staging,
};
use crate::output::{Meter, bytes};
use crate::service::Service;

/// In it: the cluster, the log, and what the server says.
const PLACE: &str = "/tmp/recovered";
/// How long the server may take to recover.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(12 * 3600);
/// Starts the server and waits until it has recovered: `pg_ctl` waits only until the recovery has begun.
const START: &str = r#"cd "$1"; : >log; status=0
pg_ctl --pgdata=data --log=log --silent --wait --timeout=600 start >/dev/null 2>&1 || status=$?
until [ "$status" -ne 0 ] || pg_isready --quiet --host="$1"; do
    sleep 0.2
    pg_ctl --pgdata=data status >/dev/null || status=1
done
cat log; exit "$status""#;
/// Said about a record that was read as a whole, and is not what was written.
const DAMAGED: [&str; 2] = [
    "incorrect resource manager data checksum in record",
    "record with incorrect prev-link",
];
/// Said by a server whose log has no transaction after the target.
const ENDED: &str = "recovery ended before configured recovery target was reached";

pub(super) struct Recovery<'a> {
    pub(super) host: &'a Host,
    pub(super) podman: &'a Podman,
    pub(super) base: &'a Backup,
    pub(super) point: &'a BasePoint,
    /// Where the pieces are.
    pub(super) place: &'a Path,
    pub(super) identity: Option<&'a Path>,
}

impl Recovery<'_> {
    pub(super) async fn recover(
        &self,
        settings: &Settings,
        pieces: &[Piece],
        target: Target,
    ) -> Result<Backup> {
        let manifest = &self.base.manifest;
        let image = manifest
            .images
            .of(Service::Postgres)
            .with_context(|| format!("base backup {} names no image of PostgreSQL", manifest.id))?
            .pinned();
        let image = ImageReference::parse(&image)
            .map_err(|error| anyhow::anyhow!("image {image} can't be used: {error}"))?;
        if !self.podman.has_image(image.as_str()).await? {
            let proxy = settings.proxy.open()?;
            self.podman.pull(image.as_str(), &proxy).await?;
        }
        let configuration = self.configuration()?;
        let (size, log) = (manifest.database.size, log_size(pieces, self.point));
        self.host.progress.say(&format!(
            "recovering base backup {} ({}) and {} of the write-ahead log in a container",
            manifest.id,
            bytes(size),
            bytes(log)
        ));
        let env = configuration.path().join(".env");
        let env = load_env(&env)?;
        let name = |variable| {
            let value = env.get(variable).filter(|value| !value.is_empty());
            value.unwrap_or(DEFAULT_POSTGRES_NAME)
        };
        self.start_container(image.as_str(), name("POSTGRES_USER"))
            .await?;
        let meter = Meter::new("unpacked", size.saturating_add(log), &self.host.progress);
        let unpacked = async {
            self.unpack(&meter).await?;
            self.hand_over(pieces, &meter).await
        };
        let unpacked = unpacked.await;
        meter.clear();
        unpacked?;
        let end = pieces
            .last()
            .map(|piece| piece.end_position(self.point.segment_size));
        self.start_server(target, end).await?;
        let server = Server::in_recovered(self.host, CONTAINER, PLACE, name("POSTGRES_DB")).await?;
        let options = BackupOptions {
            retention: None,
            recovered: Some(Recovered {
                configuration: configuration.path().to_owned(),
                images: manifest.images.clone(),
                from: RecoveredFrom {
                    time: match target {
                        Target::At(time) => time,
                        Target::Latest => pieces
                            .last()
                            .map_or(self.point.complete, |piece| piece.time),
                    },
                    elsewhere: self.base.origin != Origin::Own,
                },
            }),
            ..BackupOptions::default()
        };
        Box::pin(create_from(self.host, settings, &server, &options)).await
    }

    /// The `.env`, `config/` and the like of the base backup, in a directory of their own.
    fn configuration(&self) -> Result<tempfile::TempDir> {
        let parent = directory(&self.host.paths);
        let place = staging(&parent, &format!("{UNFINISHED}configuration-"))?;
        make_private(&place.path().join("config"))?;
        for file in &self.base.manifest.files {
            let Some(name) = file.name.strip_prefix("deployment/") else {
                continue;
            };
            let bytes = archive::read(
                &self.base.directory,
                &self.base.manifest,
                &file.name,
                self.identity,
            )?;
            let path = place.path().join(name);
            if let Some(parent) = path.parent() {
                make_private(parent)?;
            }
            files::write_atomically(&path, &bytes, file.mode.unwrap_or(0o600))?;
        }
        anyhow::ensure!(
            place.path().join(".env").is_file(),
            "base backup {} has no {ENV}",
            self.base.id()
        );
        Ok(place)
    }

    async fn start_container(&self, image: &str, user: &str) -> Result<()> {
        remove_container(self.podman).await?;
        let user = format!("--env=POSTGRES_USER={user}");
        let words = [
            "run",
            "--detach",
            "--rm",
            "--name",
            CONTAINER,
            "--pull=never",
            "--network=none",
            "--cap-drop=all",
            "--security-opt=no-new-privileges",
            "--log-driver=none",
            "--shm-size=256m",
            "--user=postgres",
            &user,
            "--entrypoint=sleep",
            image,
            "infinity",
        ];
        self.podman.run(words).await.map(drop)
    }

    /// Runs a script in the container, with `source` as its stdin. Returns whether it succeeded, and what it said.
    async fn script(
        &self,
        script: &str,
        arguments: &[&str],
        source: impl Read + Send + 'static,
    ) -> Result<(bool, String)> {
        let words = ["exec", "--interactive", CONTAINER, "sh", "-c", script, "sh"];
        let (reader, mut writer) = std::io::pipe().context("can't make a pipe")?;
        let mut command = self.podman.command(words.iter().chain(arguments));
        command
            .stdin(reader)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().context("can't run podman")?;
        drop(command);
        let writing = tokio::task::spawn_blocking(move || {
            let mut source = source;
            archive::copy(&mut source, &mut writer)
        });
        let (written, output) = tokio::join!(writing, child.wait_with_output());
        let output = output.context("can't run podman")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match written.context("the reader of the archive stopped")? {
            // The script says why it read no further.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            written => written.context("can't read the archive")?,
        }
        let said = said + &String::from_utf8_lossy(&output.stdout);
        Ok((output.status.success(), said.trim().to_owned()))
    }

    async fn must(
        &self,
        script: &str,
        arguments: &[&str],
        source: impl Read + Send + 'static,
    ) -> Result<()> {
        match self.script(script, arguments, source).await? {
            (true, _) => Ok(()),
            (false, said) => Err(anyhow::anyhow!("the container for the recovery: {said}")),
        }
    }

    async fn unpack(&self, meter: &Meter) -> Result<()> {
        let source = archive::open(
            &self.base.directory,
            &self.base.manifest,
            BASE,
            self.identity,
        )?;
        let script =
            "umask 077; mkdir -p \"$1/data\" \"$1/wal\" && exec tar -x -f - -C \"$1/data\"";
        self.must(script, &[PLACE], meter.clone().reading(source))
            .await
    }

    /// Puts whole segments into the container. The rest of the last one is empty, as in a server that has just begun it.
    async fn hand_over(&self, pieces: &[Piece], meter: &Meter) -> Result<()> {
        for of_segment in pieces.chunk_by(|one, other| one.segment == other.segment) {
            let paths = of_segment.iter().map(|piece| self.place.join(&piece.file));
            let source = OneByOne {
                paths: paths.collect(),
                open: None,
                manifest: self.base.manifest.clone(),
                identity: self.identity.map(Path::to_owned),
            };
            let size = self.point.segment_size;
            let source = source.chain(std::io::repeat(0)).take(size);
            let script = "exec cat >\"$1\"";
            let name = of_segment.first().map(|piece| piece.segment.clone());
            let path = format!("{PLACE}/wal/{}", name.unwrap_or_default());
            self.must(script, &[&path], meter.clone().reading(source))
                .await?;
        }
        Ok(())
    }

    /// Starts the server, which recovers, and then accepts connections.
    async fn start_server(&self, target: Target, end: Option<u64>) -> Result<()> {
        let mut lines = format!(
            "
listen_addresses = ''
unix_socket_directories = '{PLACE}'
hba_file = '{PLACE}/hba'
restore_command = 'cp \"{PLACE}/wal/%f\" \"%p\"'
recovery_target_timeline = 'current'
recovery_target_action = 'promote'
hot_standby = off
shared_buffers = '128MB'
huge_pages = off
archive_mode = off
fsync = off
ssl = off
logging_collector = off
log_destination = 'stderr'
log_min_messages = 'log'
log_timezone = 'UTC'
lc_messages = 'C'
shared_preload_libraries = ''
"
        );
        if let Target::At(time) = target {
            // Not Z: it is an abbreviation, which PostgreSQL does not know yet when it reads this.
            let time = time.strftime("%Y-%m-%d %H:%M:%S%.6f+00");
            lines.push_str(&format!("recovery_target_time = '{time}'\n"));
        }
        let prepare = "umask 077; cd \"$1\"; cat >>data/postgresql.auto.conf; echo 'local all all trust' >hba; : >data/recovery.signal";
        self.must(prepare, &[PLACE], std::io::Cursor::new(lines))
            .await?;
        let (started, mut said) = self.start().await?;
        let mut is_to_the_end = target == Target::Latest;
        if !started && said.contains(ENDED) {
            // Nothing was committed after the target, so everything in the archive is before it.
            let anywhere = "echo \"recovery_target_time = ''\" >>\"$1/data/postgresql.auto.conf\"";
            self.must(anywhere, &[PLACE], std::io::empty()).await?;
            let (started, again) = self.start().await?;
            said = again;
            is_to_the_end = true;
            if !started {
                return Err(failed(&said));
            }
        } else if !started {
            return Err(failed(&said));
        }
        if is_to_the_end && let Some(end) = end {
            refuse_damage(&said, end, self.point.segment_size)?;
        }
        let last = said
            .lines()
            .filter_map(|line| line.split_once("last completed transaction was at log time "))
            .map(|(_, time)| time.trim())
            .next_back();
        self.host.progress.say(&match (target, last) {
            (Target::At(time), Some(last)) => {
                format!("recovered to {time:.0}; the last transaction before it is of {last}")
            }
            (Target::At(time), None) => format!("recovered to {time:.0}"),
            (Target::Latest, Some(last)) => format!("recovered to the last transaction, of {last}"),
            (Target::Latest, None) => "recovered".to_owned(),
        });
        Ok(())
    }

    /// Returns whether it accepts connections, and its log.
    async fn start(&self) -> Result<(bool, String)> {
        let attempt = self.script(START, &[PLACE], std::io::empty());
        tokio::time::timeout(RECOVERY_TIMEOUT, attempt)
            .await
            .map_err(|_| {
                let hours = RECOVERY_TIMEOUT.as_secs() / 3600;
                anyhow::anyhow!("PostgreSQL did not complete the recovery within {hours} h")
            })?
    }
}

/// Reads stored files one after the other: a segment can have thousands of parts.
struct OneByOne {
    paths: VecDeque<PathBuf>,
    open: Option<Box<dyn Read + Send>>,
    manifest: BackupManifest,
    identity: Option<PathBuf>,
}

impl Read for OneByOne {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if let Some(open) = &mut self.open {
                match open.read(buffer)? {
                    0 => self.open = None,
                    count => return Ok(count),
                }
            }
            let Some(path) = self.paths.pop_front() else {
                return Ok(0);
            };
            let opened = archive::open_stored(&path, &self.manifest, self.identity.as_deref());
            self.open = Some(opened.map_err(std::io::Error::other)?);
        }
    }
}

/// Where the last record of the log was that the server has read.
fn redo_done(said: &str) -> Option<u64> {
    let (_, rest) = said.rsplit_once("redo done at ")?;
    let (high, low) = rest.split_whitespace().next()?.split_once('/')?;
    let part = |digits| u64::from_str_radix(digits, 16).ok();
    Some(part(high)? << 32 | part(low)?)
}

/// Refuses a log that PostgreSQL has not read to its end: what it can't read ends it, without an error.
///
/// Behind the last record there may be the empty rest of a segment that was ended early, and the begin of an incomplete
/// record. An end that is less than two segments early is therefore found by PostgreSQL's words only.
fn refuse_damage(said: &str, end: u64, segment_size: u64) -> Result<()> {
    let done = redo_done(said).unwrap_or_default();
    let is_wrong = |line: &str| DAMAGED.iter().any(|words| line.contains(words));
    let is_early = done.saturating_add(2 * segment_size) < end;
    let wrong = said.lines().rfind(|line| is_wrong(line));
    if !is_early && wrong.is_none() {
        return Ok(());
    }
    let reason = wrong.and_then(|line| line.split_once("LOG:"));
    Err(Failure::new(format!(
        "the write-ahead log is damaged: PostgreSQL read it until {} of {}{}",
        format_position(done),
        format_position(end),
        reason.map_or_else(String::new, |(_, reason)| format!(" ({})", reason.trim()))
    ))
    .hint("recover from another copy (`--from URL`), or to an earlier time")
    .into())
}

/// The refusal of the server, by its last messages.
fn failed(said: &str) -> anyhow::Error {
    let is_cause = |line: &&str| line.contains("FATAL") || line.contains("PANIC");
    let cause = said.lines().rfind(is_cause).or(said.lines().next_back());
    anyhow::anyhow!(
        "PostgreSQL can't recover: {}",
        cause.unwrap_or("it gives no reason")
    )
}

#[cfg(test)]
mod tests {

    use jiff::Timestamp;

    use super::*;
    use crate::deployment::operation_id::OperationId;
    use crate::operations::backup::manifest;
    use crate::operations::backup::wal::fixtures::SIZE;

    #[test]
    fn a_segment_of_many_parts_is_read_one_part_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let recipient = archive::Recipient::parse(None).unwrap();
        let mut expected = Vec::new();
        let mut paths = VecDeque::new();
        for number in 0..300 {
            let name = format!("part-{number}");
            let text = format!("{number},");
            let stored =
                archive::store(root.path(), &name, true, &recipient, &mut text.as_bytes()).unwrap();
            paths.push_back(root.path().join(stored.stored));
            expected.extend(text.into_bytes());
        }
        let mut source = OneByOne {
            paths,
            open: None,
            manifest: BackupManifest::new(
                OperationId::new(Timestamp::UNIX_EPOCH).unwrap(),
                Timestamp::UNIX_EPOCH,
                manifest::Contents::default(),
            ),
            identity: None,
        };
        let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open_files();
        let mut read = Vec::new();
        while source.by_ref().take(7).read_to_end(&mut read).unwrap() > 0 {
            assert!(open_files() <= before + 1);
        }
        assert_eq!(read, expected);
    }

    #[test]
    fn where_the_log_was_read_to() {
        let said = "LOG:  redo starts at 0/2000028\nLOG:  redo done at 1/2A000060 system usage: CPU: user: 0.00 s";
        assert_eq!(redo_done(said), Some(0x1_2A00_0060));
        assert_eq!(redo_done("LOG:  redo is not required"), None);
        let refused = |said: &str, end: u64| {
            refuse_damage(said, end, SIZE).map_err(|error| format!("{error}"))
        };
        let end = 0x1_2C00_0000;
        assert_eq!(refused(said, end), Ok(()));
        assert!(refused(said, end + SIZE).is_err() && refused("", end).is_err());
        let zero = format!(
            "{said}\n2026 [1] LOG:  invalid record length at 1/2A000098: expected at least 24, got 0"
        );
        assert_eq!(refused(&zero, end), Ok(()));
        let damaged = format!(
            "{said}\n2026 [1] LOG:  incorrect resource manager data checksum in record at 1/2A000098"
        );
        assert_eq!(
            refused(&damaged, end).unwrap_err(),
            "the write-ahead log is damaged: PostgreSQL read it until 1/2A000060 of 1/2C000000 (incorrect resource manager data checksum in record at 1/2A000098)"
        );
    }
}

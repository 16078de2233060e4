//! Who may change what root reads and runs: only root. Without root: only the user and root.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Uid, User, getegid, geteuid};

use crate::error::{Failure, PathContext, Result};
use crate::host::files::{self, files_of_extras};
use crate::host::paths::{Paths, Scope};
use crate::output::shell_word;

/// As deep as `files_below`.
const DEPTH: usize = 8;
/// As many links as the kernel follows.
const LINKS: usize = 40;

/// Refuses a deployment, and a program, that another user can change. For root, a sticky directory such as
/// `/tmp` is no safe place: others can make there what is missing.
///
/// # Errors
/// When there is such a path; the first one is named, with the command for all of them.
pub(crate) fn check(paths: &Paths, program: Option<&Path>) -> Result<()> {
    let found = Trust::of(paths.scope).examine(paths, program)?;
    match found.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => Err(refusal(paths, program, first, rest).into()),
    }
}

/// Refuses a program or another file that another user can change, itself or above it.
///
/// # Errors
/// When there is such a path; or it can't be examined.
pub(crate) fn check_file(scope: Scope, path: &Path) -> Result<()> {
    let mut found = Vec::new();
    Trust::of(scope)
        .path(path, true, &mut found)
        .path_context("can't examine", path)?;
    let who = who(scope);
    match found.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => Err(exposure(who, first, rest)
            .hint(format!(
                "keep {} in a directory that only {who} can change, and let only {who} write it",
                path.display()
            ))
            .into()),
    }
}

/// The first directory above `path` that another user can change.
pub(crate) fn exposed_above(scope: Scope, path: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    Trust::of(scope)
        .path(path, false, &mut found)
        .path_context("can't examine", path)?;
    Ok(found.into_iter().next().map(|exposed| exposed.path))
}

/// The files and directories of `config/`, `certs/` and `files/` that the gateway can't read: its user is root in the container, and
/// has no right to pass over permissions.
pub(crate) fn unreadable(paths: &Paths) -> Result<Vec<PathBuf>> {
    let trust = Trust::of(paths.scope);
    let mut found = Vec::new();
    for directory in paths.mounted() {
        below(&directory, DEPTH, &mut |path, metadata| {
            if !metadata.is_symlink() && !trust.may_read(metadata) {
                found.push(path.to_owned());
            }
            Ok(())
        })
        .path_context("can't read", &directory)?;
    }
    Ok(found)
}

/// What is wrong with files that the gateway can't read, and the command that makes them readable.
pub(crate) fn unreadable_words(paths: &Paths, unreadable: &[PathBuf]) -> Option<(String, String)> {
    let [first, rest @ ..] = unreadable else {
        return None;
    };
    let mode = std::fs::symlink_metadata(first).map_or(0, |found| found.mode() & 0o7777);
    let message = format!(
        "the gateway can't read {} (mode {mode:04o}){}",
        first.display(),
        more(rest.len())
    );
    let directories = holding(paths, &|directory| {
        unreadable.iter().any(|path| path.starts_with(directory))
    });
    let owner = owner(paths.scope);
    let command =
        format!("`sudo chown -hR {owner} {directories} && sudo chmod -R u+rX {directories}`");
    Some((message, command))
}

/// Those of the mounted directories for which `holds` is true, as words of a shell's command.
fn holding(paths: &Paths, holds: &dyn Fn(&Path) -> bool) -> String {
    let directories = paths.mounted();
    let words = directories.iter().filter(|directory| holds(directory));
    words.map(shell_word).collect::<Vec<_>>().join(" ")
}

/// A path that another user can change.
#[derive(Debug, PartialEq, Eq)]
struct Exposed {
    path: PathBuf,
    owner: u32,
    mode: u32,
    foreign: bool,
}

/// Who may change things.
struct Trust {
    user: u32,
    group: u32,
    /// The group of an unprivileged user is often the user's own, and in a sticky directory of root nobody
    /// else can replace what the user has made.
    scope: Scope,
    /// Neither this directory nor one above it is examined.
    root: PathBuf,
}

impl Trust {
    fn of(scope: Scope) -> Self {
        let (user, group) = match scope {
            Scope::System => (0, 0),
            Scope::User => (geteuid().as_raw(), getegid().as_raw()),
        };
        Self {
            user,
            group,
            scope,
            root: "/".into(),
        }
    }

    fn is_foreign(&self, metadata: &Metadata) -> bool {
        metadata.uid() != 0 && metadata.uid() != self.user
    }

    fn is_writable(&self, metadata: &Metadata) -> bool {
        // The permissions of a link mean nothing.
        if metadata.is_symlink() {
            return false;
        }
        let user = self.scope == Scope::User;
        if user && metadata.is_dir() && metadata.mode() & 0o1000 != 0 {
            return false;
        }
        let group = user && metadata.gid() == self.group;
        metadata.mode() & if group { 0o002 } else { 0o022 } != 0
    }

    /// Whether a process of the user and the group can read it without the rights of root.
    fn may_read(&self, metadata: &Metadata) -> bool {
        let needed = if metadata.is_dir() { 0o5 } else { 0o4 };
        let shift = if metadata.uid() == self.user {
            6
        } else if metadata.gid() == self.group {
            3
        } else {
            0
        };
        (metadata.mode() >> shift) & needed == needed
    }

    /// Everything that others can change, in the order of the paths that lead there.
    fn examine(&self, paths: &Paths, program: Option<&Path>) -> Result<Vec<Exposed>> {
        let mut found = Vec::new();
        let mut own = vec![
            paths.deployment.clone(),
            paths.env_file(),
            paths.config(),
            paths.certificates(),
            paths.credential_files(),
            paths.extra(),
            paths.entrance(),
            paths.data(),
            paths.state(),
            paths.credentials(),
            paths.service_key(),
            paths.images_lock(),
        ];
        let backups = paths.deployment.join("backups");
        // Nobody can read it either, until it answers.
        own.extend(files::answers(&backups).then_some(backups));
        for path in own.iter().map(PathBuf::as_path).chain(program) {
            self.path(path, true, &mut found)
                .path_context("can't examine", path)?;
        }
        let own = files_of_extras(&paths.deployment)?.into_iter();
        for path in own.chain(files::entries(&paths.entrance())?) {
            self.path(&path, true, &mut found)
                .path_context("can't examine", &path)?;
        }
        // These belong to the users of the containers, who may do there what they like.
        for path in [paths.logs(), paths.postgres_data(), paths.redis_data()] {
            self.path(&path, false, &mut found)
                .path_context("can't examine", &path)?;
        }
        for directory in paths.mounted() {
            below(&directory, DEPTH, &mut |path, metadata| {
                if metadata.is_symlink() {
                    return self.path(path, true, &mut found);
                }
                self.judge(path, metadata, &mut found);
                Ok(())
            })
            .path_context("can't read", &directory)?;
        }
        Ok(found)
    }

    /// Examines a path from the top, through all links; the last part only if `whole`.
    fn path(&self, path: &Path, whole: bool, found: &mut Vec<Exposed>) -> io::Result<()> {
        let mut rest: VecDeque<OsString> = parts(path);
        let mut place = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                place.pop();
                continue;
            }
            let next = place.join(&part);
            let metadata = match std::fs::symlink_metadata(&next) {
                // It is made later, in a directory that was examined.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                metadata => metadata?,
            };
            if (whole || !rest.is_empty() || metadata.is_symlink()) && !self.root.starts_with(&next)
            {
                self.judge(&next, &metadata, found);
            }
            if !metadata.is_symlink() {
                place = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(nix::errno::Errno::ELOOP.into());
            }
            let target = std::fs::read_link(&next)?;
            if target.is_absolute() {
                place = "/".into();
            }
            let mut target = parts(&target);
            target.append(&mut rest);
            rest = target;
        }
        Ok(())
    }

    fn judge(&self, path: &Path, metadata: &Metadata, found: &mut Vec<Exposed>) {
        // Everyone may write to /dev/null, where links of masked units lead, and changes nothing by it.
        if metadata.file_type().is_char_device() {
            return;
        }
        let foreign = self.is_foreign(metadata);
        if (foreign || self.is_writable(metadata)) && found.iter().all(|other| other.path != path) {
            found.push(Exposed {
                path: path.to_owned(),
                owner: metadata.uid(),
                mode: metadata.mode() & 0o7777,
                foreign,
            });
        }
    }
}

/// The parts of a path, without those that mean nothing.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

/// Calls `visit` with everything below a directory, which may be missing. Directories behind links are
/// entered.
fn below(
    directory: &Path,
    depth: usize,
    visit: &mut dyn FnMut(&Path, &Metadata) -> io::Result<()>,
) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Nobody but its owner can; what others can change is found by its own permissions.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        visit(&path, &metadata)?;
        // By the name that has no link in it. One that leads nowhere is the gateway's to complain about.
        if depth > 0
            && path.is_dir()
            && let Ok(directory) = path.canonicalize()
        {
            below(&directory, depth - 1, visit)?;
        }
    }
    Ok(())
}

fn who(scope: Scope) -> &'static str {
    match scope {
        Scope::System => "root",
        Scope::User => "this user and root",
    }
}

fn exposure(who: &str, first: &Exposed, rest: &[Exposed]) -> Failure {
    Failure::config(format!(
        "others than {who} can change {}: it belongs to {} (mode {:04o}){}",
        first.path.display(),
        name_of(first.owner),
        first.mode,
        more(rest.len())
    ))
}

fn refusal(paths: &Paths, program: Option<&Path>, first: &Exposed, rest: &[Exposed]) -> Failure {
    let who = who(paths.scope);
    let failure = exposure(who, first, rest);
    let all: Vec<&Exposed> = std::iter::once(first).chain(rest).collect();
    // A directory above holds other things, too, so it stays as it is.
    let is_above = |path: &Path| {
        all.iter().any(|found| {
            let shared = found.foreign || found.mode & 0o1000 != 0;
            shared && found.path != path && path.starts_with(&found.path)
        })
    };
    // A file of the deployment moves with it.
    let program = program.filter(|program| !program.starts_with(&paths.deployment));
    if let Some(program) = program.filter(|program| is_above(program)) {
        let program = shell_word(program);
        return failure.hint(format!(
            "install the program where only {who} can change it: `sudo install {program} /usr/local/bin/`"
        ));
    }
    if is_above(&paths.deployment) {
        return failure.hint(format!(
            "move the deployment to a directory that only {who} can change, and name it with `--litellm-dir DIR`"
        ));
    }
    failure.hint(format!("`{}`", remedy(paths, &all)))
}

/// The command after which only the owner can change all of them.
fn remedy(paths: &Paths, all: &[&Exposed]) -> String {
    let mounted = paths.mounted();
    let (inside, outside): (Vec<&Exposed>, Vec<&Exposed>) = all.iter().partition(|found| {
        mounted
            .iter()
            .any(|directory| found.path.starts_with(directory))
    });
    let words = |found: &[&Exposed]| {
        let words: Vec<String> = found.iter().map(|found| shell_word(&found.path)).collect();
        words.join(" ")
    };
    let foreign: Vec<&Exposed> = outside
        .iter()
        .copied()
        .filter(|found| found.foreign)
        .collect();
    let owner = owner(paths.scope);
    let mut commands = Vec::new();
    // From the top, so that nobody makes others meanwhile.
    if !foreign.is_empty() {
        commands.push(format!("sudo chown -h {owner} {}", words(&foreign)));
    }
    if !outside.is_empty() {
        commands.push(format!("sudo chmod go-w {}", words(&outside)));
    }
    if !inside.is_empty() {
        let directories = holding(paths, &|directory| {
            inside.iter().any(|found| found.path.starts_with(directory))
        });
        commands.push(format!("sudo chown -hR {owner} {directories}"));
        commands.push(format!("sudo chmod -R go-w {directories}"));
    }
    commands.join(" && ")
}

/// As `chown` takes it.
fn owner(scope: Scope) -> String {
    match scope {
        Scope::System => "root:root".to_owned(),
        Scope::User => format!("{}:", name_of(geteuid().as_raw())),
    }
}

fn name_of(user: u32) -> String {
    match User::from_uid(Uid::from_raw(user)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {user}"),
    }
}

fn more(count: usize) -> String {
    if count == 0 {
        String::new()
    } else {
        format!(", and {count} more")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    /// A deployment in a directory that is trusted as `/` is.
    struct Place {
        root: tempfile::TempDir,
        paths: Paths,
        trust: Trust,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let top = root.path().canonicalize().unwrap();
            let paths = Paths::in_test(top.join("opt/server"));
            for directory in ["config/sub", "data/postgres", "data/redis", "logs"] {
                create_dir_all(paths.deployment.join(directory)).unwrap();
            }
            write(paths.env_file(), "A=1\n").unwrap();
            write(paths.config().join("sub/file"), "").unwrap();
            write(top.join("program"), "").unwrap();
            let trust = Trust {
                user: geteuid().as_raw(),
                group: getegid().as_raw(),
                scope: Scope::System,
                root: top,
            };
            let place = Self { root, paths, trust };
            for path in [
                "",
                "opt",
                "opt/server",
                "opt/server/config",
                "opt/server/config/sub",
                "opt/server/data",
                "opt/server/logs",
            ] {
                place.mode(path, 0o755);
            }
            for path in ["opt/server/.env", "opt/server/config/sub/file", "program"] {
                place.mode(path, 0o644);
            }
            place
        }

        fn at(&self, path: &str) -> PathBuf {
            self.trust.root.join(path)
        }

        fn mode(&self, path: &str, mode: u32) {
            set_permissions(self.at(path), PermissionsExt::from_mode(mode)).unwrap();
        }

        /// What others can change, relative to the top.
        fn exposed(&self) -> Vec<String> {
            let found = self.trust.examine(&self.paths, Some(&self.at("program")));
            let relative = |found: Exposed| {
                let path = found.path.strip_prefix(&self.trust.root).unwrap();
                path.display().to_string()
            };
            found.unwrap().into_iter().map(relative).collect()
        }

        fn refusal(&self) -> (String, String) {
            let program = self.at("program");
            let found = self.trust.examine(&self.paths, Some(&program)).unwrap();
            let (first, rest) = found.split_first().unwrap();
            let error = anyhow::Error::from(refusal(&self.paths, Some(&program), first, rest));
            let top = format!("{}/", self.trust.root.display());
            let hint = crate::error::hint(&error).unwrap().replace(&top, "/");
            (error.to_string().replace(&top, "/"), hint)
        }
    }

    #[test]
    fn what_others_can_change_is_found() {
        let place = Place::new();
        assert_eq!(place.exposed(), Vec::<String>::new());
        for path in [
            "opt",
            "opt/server",
            "opt/server/.env",
            "opt/server/config",
            "opt/server/config/sub",
            "opt/server/config/sub/file",
            "opt/server/data",
            "program",
        ] {
            let before = place.at(path).metadata().unwrap().mode() & 0o7777;
            for mode in [0o020, 0o002, 0o1002] {
                place.mode(path, before | mode);
                assert_eq!(place.exposed(), [path], "{mode:o}");
            }
            place.mode(path, before);
        }
        // Those belong to the users of the containers.
        for path in ["logs", "data/postgres", "data/redis"] {
            place.mode(&format!("opt/server/{path}"), 0o1777);
        }
        assert_eq!(place.exposed(), Vec::<String>::new());
    }

    #[test]
    fn links_are_as_safe_as_what_they_lead_through() {
        let place = Place::new();
        create_dir_all(place.at("open/inner")).unwrap();
        write(place.at("open/inner/file"), "").unwrap();
        place.mode("open/inner", 0o755);
        place.mode("open/inner/file", 0o644);
        place.mode("open", 0o755);
        std::fs::remove_dir(place.at("opt/server/logs")).unwrap();
        symlink("../../open/inner", place.at("opt/server/logs")).unwrap();
        symlink(place.at("open/inner"), place.at("opt/server/config/inner")).unwrap();
        symlink("inner/file", place.at("opt/server/config/file")).unwrap();
        symlink("/dev/null", place.at("opt/server/config/null")).unwrap();
        symlink("/nowhere/at/all", place.at("opt/server/config/broken")).unwrap();
        assert_eq!(place.exposed(), Vec::<String>::new());
        place.mode("open", 0o1777);
        assert_eq!(place.exposed(), ["open"]);
        place.mode("open", 0o755);
        place.mode("open/inner/file", 0o666);
        assert_eq!(place.exposed(), ["open/inner/file"]);
        symlink("circle", place.at("opt/server/data/circle")).unwrap();
        std::fs::remove_file(place.at("opt/server/logs")).unwrap();
        symlink("data/circle", place.at("opt/server/logs")).unwrap();
        let program = place.at("program");
        assert!(place.trust.examine(&place.paths, Some(&program)).is_err());
    }

    #[test]
    fn the_command_mends_it() {
        let place = Place::new();
        place.mode("opt/server/.env", 0o666);
        place.mode("opt/server/config/sub", 0o775);
        let user = name_of(place.trust.user);
        let (message, hint) = place.refusal();
        assert_eq!(
            message,
            format!(
                "others than root can change /opt/server/.env: it belongs to {user} (mode 0666), and 1 more"
            )
        );
        assert_eq!(
            hint,
            "`sudo chmod go-w /opt/server/.env && sudo chown -hR root:root /opt/server/config && sudo chmod -R go-w /opt/server/config`"
        );
        place.mode("opt", 0o1777);
        let (_, hint) = place.refusal();
        assert_eq!(
            hint,
            "move the deployment to a directory that only root can change, and name it with `--litellm-dir DIR`"
        );
        drop(place.root);
    }

    #[test]
    fn owners() {
        let place = Place::new();
        if !geteuid().is_root() {
            return;
        }
        lchown(place.at("opt/server"), Some(4711), Some(4711)).unwrap();
        symlink("sub/file", place.at("opt/server/config/link")).unwrap();
        lchown(place.at("opt/server/config/link"), Some(4711), None).unwrap();
        lchown(place.at("opt/server/logs"), Some(4711), None).unwrap();
        assert_eq!(place.exposed(), ["opt/server", "opt/server/config/link"]);
        let (message, hint) = place.refusal();
        assert_eq!(
            message,
            "others than root can change /opt/server: it belongs to user 4711 (mode 0755), and 1 more"
        );
        assert_eq!(
            hint,
            "`sudo chown -h root:root /opt/server && sudo chmod go-w /opt/server && sudo chown -hR root:root /opt/server/config && sudo chmod -R go-w /opt/server/config`"
        );
        // A user trusts root, and the user's own group.
        let trust = Trust {
            user: 4711,
            group: 4711,
            scope: Scope::User,
            root: place.trust.root.clone(),
        };
        lchown(place.at("opt/server/config/sub"), Some(0), Some(4711)).unwrap();
        place.mode("opt/server/config/sub", 0o775);
        place.mode("opt", 0o1777);
        let program = place.at("program");
        assert_eq!(trust.examine(&place.paths, Some(&program)).unwrap(), []);
    }

    #[test]
    fn what_the_gateway_can_not_read() {
        let place = Place::new();
        let file = place.at("opt/server/config/sub/file");
        let metadata = || std::fs::metadata(&file).unwrap();
        let other = |user, group| Trust {
            user,
            group,
            scope: Scope::System,
            root: "/".into(),
        };
        let (user, group) = (place.trust.user, place.trust.group);
        for (mode, owner, members, others) in [
            (0o600, true, false, false),
            (0o640, true, true, false),
            (0o644, true, true, true),
            (0o044, false, true, true),
            (0o004, false, false, true),
        ] {
            place.mode("opt/server/config/sub/file", mode);
            let may = |trust: Trust| trust.may_read(&metadata());
            assert_eq!(may(other(user, 4711)), owner, "{mode:o}");
            assert_eq!(may(other(4711, group)), members, "{mode:o}");
            assert_eq!(may(other(4711, 4711)), others, "{mode:o}");
        }
        // A directory is entered, too.
        place.mode("opt/server/config/sub", 0o644);
        let directory = place.at("opt/server/config/sub").metadata().unwrap();
        assert!(!place.trust.may_read(&directory));
    }
}

//! Values of `.env` that another program gives each time a container starts.
//!
//! `.env` then holds a reference: `exec:PROGRAM ARGUMENTS`, `vault:PATH#FIELD` or `sops:FILE#KEY`. In quotes, such a text is
//! a value like any other.
//!
//! The start of a unit asks the programs, and keeps what they print in the runtime directory, which is in memory. Podman gets
//! the values from there, so that neither a health check nor `podman exec` runs a program. If a program fails, the container
//! starts with the value of an earlier start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{User, getuid};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sealed::{self, SecretValue};
use super::settings::Settings;
use super::variables::is_secret;
use crate::error::{Failure, Result};
use crate::host::paths::{Paths, Scope};
use crate::host::{child, files, ownership};
use crate::output::{Progress, shell_word};
use crate::random::hex;

const EXEC: &str = "exec:";
const VAULT: &str = "vault:";
const SOPS: &str = "sops:";

/// Time for one program.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most that it may print, in bytes.
const LIMIT: u64 = 64 << 10;
/// Where `vault` and `sops` are looked for, and what they and others find.
const DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// Variables of the caller that a program gets: for keyrings and agents of the user.
const OF_SESSION: [&str; 2] = ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];

/// Whether the text of a value, as it is written in `.env`, is a reference.
pub(crate) fn is_reference(text: &str) -> bool {
    [EXEC, VAULT, SOPS]
        .iter()
        .any(|scheme| text.starts_with(scheme))
}

/// What is wrong with a reference, and what to write instead.
pub(crate) type Problem = (&'static str, &'static str);

/// How to get the value of one variable.
#[derive(Clone, Debug)]
pub struct Lookup {
    variable: String,
    reference: String,
    /// A path, or the name of a program.
    program: String,
    arguments: Vec<String>,
    /// `FILE, line 3: NAME`.
    place: String,
    /// Variables of `.env` for the program.
    environment: Arc<Vec<(String, SecretValue)>>,
}

impl Lookup {
    /// Reads a reference. `place`: file, line and name of the variable. `environment`: what the program gets of `.env`.
    ///
    /// # Errors
    /// When it names no program.
    pub(crate) fn parse(
        variable: &str,
        reference: &str,
        place: String,
        environment: &Arc<Vec<(String, SecretValue)>>,
    ) -> Result<Self, Problem> {
        if sealed::is_sealed(reference) {
            return Err((
                "refers to a sealed secret, and arguments can be read by every user of this host",
                "let the program read the secret itself",
            ));
        }
        let (program, arguments) = if let Some(line) = reference.strip_prefix(EXEC) {
            let mut words = line.split_whitespace().map(str::to_owned);
            let program = words.next().filter(|program| program.starts_with('/'));
            let program = program.ok_or((
                "names no program by an absolute path",
                "write exec:/PATH/PROGRAM ARGUMENTS; if this is the value itself, put it in single quotes",
            ))?;
            (program, words.collect())
        } else if let Some(rest) = reference.strip_prefix(VAULT) {
            let found = rest.rsplit_once('#').filter(|(path, field)| {
                let is_word = |word: &str| !word.is_empty() && !word.contains(char::is_whitespace);
                is_word(path) && is_word(field) && !path.starts_with('-')
            });
            let (path, field) = found.ok_or((
                "names no field of Vault",
                "write vault:PATH#FIELD, as in vault:secret/llm#openai; if this is the value itself, put it in single quotes",
            ))?;
            let words = ["kv", "get", &format!("-field={field}"), path].map(str::to_owned);
            ("vault".to_owned(), words.into())
        } else {
            let rest = reference.strip_prefix(SOPS).unwrap_or_default();
            let found = rest.rsplit_once('#').filter(|(file, key)| {
                let is_plain = |c: char| !c.is_control() && !"\"\\[]".contains(c);
                file.starts_with('/') && !key.is_empty() && key.chars().all(is_plain)
            });
            let (file, key) = found.ok_or((
                "names no key in a file of sops by an absolute path",
                "write sops:/PATH/FILE#KEY, as in sops:/etc/llm/keys.yaml#openai; if this is the value itself, put it in single quotes",
            ))?;
            let words = ["decrypt", "--extract", &format!("[\"{key}\"]"), file];
            ("sops".to_owned(), words.map(str::to_owned).into())
        };
        Ok(Self {
            variable: variable.to_owned(),
            reference: reference.to_owned(),
            program,
            arguments,
            place,
            environment: Arc::clone(environment),
        })
    }

    /// The variable.
    pub(crate) fn variable(&self) -> &str {
        &self.variable
    }

    /// The program as `.env` names it.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// What `.env` has.
    pub(crate) fn reference(&self) -> &str {
        &self.reference
    }

    /// Asks the program now. The caller knows who can write `.env`.
    ///
    /// # Errors
    /// When it fails, takes too long or prints what can't be a value; with file, line and variable.
    fn fetch(&self, paths: &Paths) -> Result<SecretString> {
        self.ask(paths.scope).map_err(|error| {
            let failure = Failure::new(format!("{} can't be fetched: {error:#}", self.place));
            match crate::error::hint(&error) {
                Some(hint) => failure.hint(hint),
                None => failure.hint(format!("run the program: {}", self.command(paths.scope))),
            }
            .into()
        })
    }

    fn ask(&self, scope: Scope) -> Result<SecretString> {
        let program = self.find()?;
        for path in std::iter::once(program.clone()).chain(self.files()) {
            ownership::check_file(scope, &path)?;
        }
        let mut command = Command::new(&program);
        command.args(&self.arguments).current_dir("/").env_clear();
        command
            .env("PATH", DIRECTORIES.join(":"))
            .env("LC_ALL", "C.UTF-8");
        if let Some(user) = User::from_uid(getuid()).ok().flatten() {
            command.env("HOME", user.dir).env("USER", &user.name);
            command.env("LOGNAME", user.name);
        }
        let of_session = OF_SESSION
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.envs(of_session);
        let mut given = Vec::new();
        for (name, value) in self.environment.iter() {
            let value = value.open()?;
            command.env(name, value.expose_secret());
            given.push(value);
        }
        let output = child::run(&mut command, b"", TIMEOUT, LIMIT)?;
        if !output.status.success() {
            // What it printed may be the secret.
            let printed = String::from_utf8_lossy(&output.stdout);
            let given = given.iter().map(ExposeSecret::expose_secret);
            let secrets: Vec<&str> = given.chain([&*printed]).collect();
            let said = output.said(&secrets);
            let said = said.map(|said| format!(": {said}")).unwrap_or_default();
            anyhow::bail!("{} failed ({}){said}", program.display(), output.status);
        }
        let Ok(text) = String::from_utf8(output.stdout) else {
            anyhow::bail!("{} printed something that is not UTF-8", program.display());
        };
        let text = SecretString::from(text);
        let value = text.expose_secret();
        let value = value.strip_suffix('\n').unwrap_or(value);
        anyhow::ensure!(!value.is_empty(), "{} printed nothing", program.display());
        anyhow::ensure!(
            !value.contains('\0') && !sealed::is_sealed(value),
            "{} printed something that can't be a value",
            program.display()
        );
        Ok(value.into())
    }

    /// The files that arguments name, also as `--option=FILE`. A relative path is one below `/`, where the program runs.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let values = |argument: &'_ String| {
            let value = argument.split_once('=').map(|(_, value)| value.to_owned());
            [Some(argument.clone()), value].into_iter().flatten()
        };
        let words = self.arguments.iter().flat_map(values);
        words
            .map(|word| Path::new("/").join(word))
            .filter(|path| path.exists())
    }

    fn find(&self) -> Result<PathBuf> {
        if self.program.starts_with('/') {
            let path = PathBuf::from(&self.program);
            anyhow::ensure!(path.is_file(), "there is no program {}", path.display());
            return Ok(path);
        }
        let places = DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(&self.program));
        let found = places.into_iter().find(|path| path.is_file());
        found.ok_or_else(|| {
            Failure::new(format!("{} is not installed", self.program))
                .hint(format!("install {} in /usr/local/bin", self.program))
                .into()
        })
    }

    /// For an operator, in backticks: without what the program prints, and without secrets, which are named behind it.
    fn command(&self, scope: Scope) -> String {
        let (mut clear, mut hidden) = (Vec::new(), Vec::new());
        for (name, value) in self.environment.iter() {
            match value.in_clear() {
                Some(value) if !is_secret(name, value.expose_secret()) => {
                    clear.push(format!("{name}={}", shell_word(value.expose_secret())));
                }
                _ => hidden.push(name.as_str()),
            }
        }
        if !clear.is_empty() {
            clear.insert(0, "env".to_owned());
        }
        if scope == Scope::System {
            clear.insert(0, "sudo".to_owned());
        }
        let words = std::iter::once(&self.program).chain(&self.arguments);
        clear.extend(words.map(shell_word));
        let command = format!("`{} >/dev/null`", clear.join(" "));
        if hidden.is_empty() {
            command
        } else {
            format!("{command}, with {} of .env", hidden.join(" and "))
        }
    }

    /// The value that the last start got, or one that the program gives now if there was none.
    ///
    /// # Errors
    /// As [`Lookup::fetch`], and when others can change the deployment.
    pub(crate) fn value(&self, paths: &Paths) -> Result<SecretString> {
        if let Some(kept) = self.last_good(paths)? {
            return Ok(kept.value());
        }
        ownership::check(paths, None)?;
        self.fetch(paths)
    }

    /// What the last start got.
    ///
    /// # Errors
    /// When the record is damaged.
    pub(crate) fn last_good(&self, paths: &Paths) -> Result<Option<LastGood>> {
        let hint =
            "remove the file, then restart the gateway: `litellm-units restart --handover litellm`";
        files::load_record(&directory(paths).join(self.record_name()), hint)
    }

    /// Ends the report of a failure, since the program gives the kept value again.
    pub(crate) fn clear_failure(&self, paths: &Paths, kept: LastGood) -> Result<()> {
        let kept = LastGood {
            failure: None,
            ..kept
        };
        self.keep(paths, &kept)
    }

    fn keep(&self, paths: &Paths, kept: &LastGood) -> Result<()> {
        let directory = directory(paths);
        files::make_directory(&paths.runtime_state(), 0o755)?;
        files::make_directory(&directory, 0o700)?;
        files::save_record(&directory.join(self.record_name()), kept)
    }

    /// Another reference is another record, so that the rollback of `apply` finds the value of the previous one. When a gateway
    /// is ready, only the records of its references stay.
    fn record_name(&self) -> String {
        let hash = hex(&Sha256::digest(&self.reference));
        format!("{}.{}", self.variable, &hash[..16])
    }
}

/// The value of an earlier start, in memory only.
#[derive(Deserialize, Serialize)]
pub(crate) struct LastGood {
    value: String,
    /// When the program gave it.
    pub(crate) fetched: jiff::Timestamp,
    /// Why a later start did not get another one.
    pub(crate) failure: Option<FailedFetch>,
}

impl LastGood {
    pub(crate) fn value(&self) -> SecretString {
        self.value.as_str().into()
    }
}

/// The first failure since the last success.
#[derive(Deserialize, Serialize)]
pub(crate) struct FailedFetch {
    pub(crate) at: jiff::Timestamp,
    pub(crate) reason: String,
}

/// Where the values of the last starts are.
pub(crate) fn directory(paths: &Paths) -> PathBuf {
    paths.runtime_state().join("external")
}

/// Asks all programs at once.
///
/// # Errors
/// When others can change the deployment, and so which programs these are.
pub(crate) fn fetch_all(paths: &Paths, lookups: &[&Lookup]) -> Result<Vec<Result<SecretString>>> {
    if lookups.is_empty() {
        return Ok(Vec::new());
    }
    ownership::check(paths, None)?;
    let fetched = std::thread::scope(|scope| {
        let started: Vec<_> = lookups
            .iter()
            .map(|lookup| scope.spawn(|| lookup.fetch(paths)))
            .collect();
        let ended = started.into_iter().map(|thread| {
            let failed = |_| Err(anyhow::anyhow!("a thread that fetched a secret failed"));
            thread.join().unwrap_or_else(failed)
        });
        ended.collect()
    });
    Ok(fetched)
}

/// Keeps the values with which a container starts now. One that can't be fetched stays as it was at an earlier start.
///
/// # Errors
/// When a value can't be fetched, and there was none before.
pub(crate) fn renew(paths: &Paths, lookups: &[&Lookup], progress: &Progress) -> Result<()> {
    let now = jiff::Timestamp::now();
    for (lookup, fetched) in lookups.iter().zip(fetch_all(paths, lookups)?) {
        let kept = match fetched {
            Ok(value) => LastGood {
                value: value.expose_secret().to_owned(),
                fetched: now,
                failure: None,
            },
            Err(error) => {
                let Some(mut kept) = lookup.last_good(paths)? else {
                    return Err(error);
                };
                let reason = format!("{error:#}");
                progress.warn(&format!(
                    "{reason}; the container starts with the value that was fetched at {:.0}",
                    kept.fetched
                ));
                let at = kept.failure.map_or(now, |failure| failure.at);
                kept.failure = Some(FailedFetch { at, reason });
                kept
            }
        };
        lookup.keep(paths, &kept)?;
    }
    Ok(())
}

/// The variables that the last start could not fetch, with what it did instead. Without the words of the programs, so that
/// it can be in a notice.
pub(crate) fn stale(paths: &Paths, settings: &Settings) -> Result<Vec<(String, String)>> {
    let mut stale = Vec::new();
    for lookup in settings.lookups() {
        if let Some(kept) = lookup.last_good(paths)?
            && let Some(failure) = kept.failure
        {
            let words = format!(
                "could not be fetched at {:.0}, so containers start with the value that was fetched at {:.0}; see `litellm-units doctor`",
                failure.at, kept.fetched
            );
            stale.push((lookup.variable.clone(), words));
        }
    }
    Ok(stale)
}

/// Removes the values of earlier starts that none of `lookups` names.
pub(crate) fn forget_others<'a>(
    paths: &Paths,
    lookups: impl Iterator<Item = &'a Lookup>,
) -> Result<()> {
    let names: Vec<String> = lookups.map(Lookup::record_name).collect();
    for path in files::entries(&directory(paths))? {
        let is_other = |name: &str| {
            // What another start is writing has a name of its own.
            !name.starts_with(files::TEMPORARY) && names.iter().all(|known| known != name)
        };
        if files::name(&path).is_some_and(is_other) {
            files::remove_existing(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked: the program and its arguments, or what is wrong with the reference.
    fn asked(reference: &str) -> String {
        match Lookup::parse("A", reference, String::new(), &Arc::default()) {
            Ok(lookup) => format!("{} {}", lookup.program, lookup.arguments.join(" ")),
            Err((problem, _)) => problem.to_owned(),
        }
    }

    #[test]
    fn references() {
        for (reference, expected) in [
            ("exec:/usr/bin/pass show  llm", "/usr/bin/pass show llm"),
            ("exec:/bin/true", "/bin/true "),
            (
                "vault:secret/llm#openai",
                "vault kv get -field=openai secret/llm",
            ),
            (
                "sops:/etc/llm/my keys.yaml#openai",
                "sops decrypt --extract [\"openai\"] /etc/llm/my keys.yaml",
            ),
        ] {
            assert_eq!(asked(reference), expected);
            assert!(is_reference(reference));
        }
        for reference in ["exec:", "exec:pass", "exec: pass"] {
            assert_eq!(asked(reference), "names no program by an absolute path");
        }
        for reference in [
            "vault:a",
            "vault:a#",
            "vault:#a",
            "vault:-a#b",
            "vault:a b#c",
        ] {
            assert_eq!(asked(reference), "names no field of Vault");
        }
        for reference in ["sops:a#b", "sops:/a", "sops:/a#", "sops:/a#b\"]"] {
            assert_eq!(
                asked(reference),
                "names no key in a file of sops by an absolute path"
            );
        }
        assert_eq!(
            asked("exec:/bin/x systemd-creds:A.0123456789abcdef"),
            "refers to a sealed secret, and arguments can be read by every user of this host"
        );
        for value in [
            "'exec:/bin/true'",
            "\"vault:a#b\"",
            "Exec:/a",
            "sk-exec:/a",
            "",
        ] {
            assert!(!is_reference(value), "{value}");
        }
    }

    /// Programs and the values of starts, below a directory of its own.
    struct Place {
        root: tempfile::TempDir,
        paths: Paths,
    }

    impl Place {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let paths = Paths {
                scope: Scope::User,
                runtime: root.path().join("run"),
                ..Paths::in_test(root.path())
            };
            Self { root, paths }
        }

        /// A value that this script prints.
        fn lookup(&self, script: &str) -> Lookup {
            let program = self.root.path().join("program");
            files::write_atomically(&program, format!("#!/bin/sh\n{script}").as_bytes(), 0o755)
                .unwrap();
            let text = format!(
                "VAULT_ADDR=http://v\nSOPS_X='a b'\nOTHER=x\nA=exec:{} b",
                program.display()
            );
            let env = crate::deployment::env_file::EnvFile::parse(&text).unwrap();
            let vault = Arc::new(sealed::Vault::beside(&self.paths.env_file()));
            let environment = env.iter().take(2);
            let environment =
                environment.map(|(name, value)| (name.to_owned(), SecretValue::new(value, &vault)));
            let reference = env.reference("A").unwrap();
            let environment = Arc::new(environment.collect());
            Lookup::parse(
                "A",
                reference,
                "/srv/.env, line 4: A".to_owned(),
                &environment,
            )
            .unwrap()
        }

        fn fetched(&self, script: &str) -> String {
            match self.lookup(script).fetch(&self.paths) {
                Ok(value) => value.expose_secret().to_owned(),
                Err(error) => {
                    format!("{error:#}").replace(&*self.root.path().to_string_lossy(), "DIR")
                }
            }
        }
    }

    #[test]
    fn what_a_program_prints() {
        let place = Place::new();
        assert_eq!(place.fetched("printf 'sk-1\\n\\n'"), "sk-1\n");
        assert_eq!(
            place.fetched("echo $1 $VAULT_ADDR $SOPS_X $OTHER $SECRET_ID; pwd; cat; echo $PATH"),
            format!("b http://v a b\n/\n{}", DIRECTORIES.join(":"))
        );
        let failed = |script| {
            let message = place.fetched(script);
            let reason = message.strip_prefix("/srv/.env, line 4: A can't be fetched: ");
            reason.unwrap_or(&message).to_owned()
        };
        assert_eq!(
            failed("echo one >&2; echo permission denied >&2; exit 3"),
            "DIR/program failed (exit status: 3): permission denied"
        );
        assert_eq!(
            failed("set -x; echo sk-12345678 | cat; exit 1").replace("+ ", ""),
            "DIR/program failed (exit status: 1): exit 1"
        );
        assert_eq!(
            failed("echo sk-12345678; echo got sk-12345678. >&2; exit 1"),
            "DIR/program failed (exit status: 1): got ********."
        );
        assert_eq!(
            failed("echo at $VAULT_ADDR >&2; exit 1"),
            "DIR/program failed (exit status: 1): at ********"
        );
        assert_eq!(
            failed("kill -9 $$"),
            "DIR/program failed (signal: 9 (SIGKILL))"
        );
        assert_eq!(failed(":"), "DIR/program printed nothing");
        assert_eq!(
            failed("printf '\\377'"),
            "DIR/program printed something that is not UTF-8"
        );
        assert_eq!(
            failed("printf 'a\\000b'"),
            "DIR/program printed something that can't be a value"
        );
        assert_eq!(failed("yes"), "DIR/program wrote more than 64 KiB");
    }

    #[test]
    fn who_may_change_the_program() {
        let place = Place::new();
        let lookup = place.lookup("echo 1");
        files::set_mode(&place.root.path().join("program"), 0o777).unwrap();
        let error = lookup.fetch(&place.paths).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("can't be fetched: others than this user and root can change "),
            "{error}"
        );
        std::fs::remove_file(place.root.path().join("program")).unwrap();
        let error = lookup.fetch(&place.paths).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("can't be fetched: there is no program "),
            "{error}"
        );
    }

    #[test]
    fn who_may_change_what_names_it() {
        let place = Place::new();
        let lookup = place.lookup("echo 1");
        let env = place.paths.env_file();
        files::write_atomically(&env, b"", 0o600).unwrap();
        files::set_mode(&env, 0o666).unwrap();
        assert!(fetch_all(&place.paths, &[&lookup]).is_err());
        assert!(lookup.value(&place.paths).is_err());
        files::set_mode(&env, 0o600).unwrap();
        assert_eq!(lookup.value(&place.paths).unwrap().expose_secret(), "1");
    }

    #[test]
    fn who_may_change_a_file_of_an_argument() {
        let place = Place::new();
        let file = place.root.path().join("key.py");
        files::write_atomically(&file, b"", 0o600).unwrap();
        files::set_mode(&file, 0o666).unwrap();
        let program = place.lookup("echo 1").program;
        let file = file.display().to_string();
        for word in [file.as_str(), &format!("--script={file}"), &file[1..]] {
            let reference = format!("exec:{program} -x {word}");
            let lookup = Lookup::parse("A", &reference, "A".to_owned(), &Arc::default()).unwrap();
            let error = lookup.fetch(&place.paths).unwrap_err().to_string();
            assert!(error.contains("can change "), "{word}: {error}");
        }
    }

    #[test]
    fn the_command_for_an_operator() {
        let vault = Arc::new(sealed::Vault::beside(Path::new("/srv/.env")));
        let variables = [("VAULT_ADDR", "http://v"), ("VAULT_TOKEN", "hvs.1")];
        let environment =
            variables.map(|(name, value)| (name.to_owned(), SecretValue::new(value, &vault)));
        let lookup = Lookup::parse(
            "A",
            "vault:a#b",
            String::new(),
            &Arc::new(environment.into()),
        )
        .unwrap();
        assert_eq!(
            lookup.command(Scope::System),
            "`sudo env VAULT_ADDR=http://v vault kv get -field=b a >/dev/null`, with VAULT_TOKEN of .env"
        );
        let lookup = Lookup::parse("A", "exec:/bin/a", String::new(), &Arc::default()).unwrap();
        assert_eq!(lookup.command(Scope::User), "`/bin/a >/dev/null`");
    }

    #[test]
    fn the_value_of_an_earlier_start() {
        let place = Place::new();
        let start = |script| {
            let lookup = place.lookup(script);
            renew(&place.paths, &[&lookup], &Progress::Silent)?;
            let kept = lookup.last_good(&place.paths)?;
            let kept = kept.map(|kept| (kept.value, kept.failure.is_some()));
            Ok(kept.unwrap_or_default())
        };
        let failed: Result<(String, bool)> = start("exit 1");
        assert!(failed.is_err());
        assert_eq!(start("echo one").unwrap(), ("one".to_owned(), false));
        assert_eq!(start("exit 1").unwrap(), ("one".to_owned(), true));
        let lookup = place.lookup("echo one");
        let kept = lookup.last_good(&place.paths).unwrap().unwrap();
        lookup.clear_failure(&place.paths, kept).unwrap();
        let kept = lookup.last_good(&place.paths).unwrap().unwrap();
        assert_eq!(
            (kept.value.as_str(), kept.failure.is_some()),
            ("one", false)
        );
        assert_eq!(start("exit 1").unwrap(), ("one".to_owned(), true));
        assert_eq!(start("echo two").unwrap(), ("two".to_owned(), false));
        let lookup = place.lookup("exit 1");
        assert_eq!(lookup.value(&place.paths).unwrap().expose_secret(), "two");
        let directory = directory(&place.paths);
        assert_eq!(files::mode(&directory).unwrap() & 0o7777, 0o700);
        let [file] = <[PathBuf; 1]>::try_from(files::entries(&directory).unwrap()).unwrap();
        assert_eq!(files::mode(&file).unwrap() & 0o7777, 0o600);
        forget_others(&place.paths, [&lookup].into_iter()).unwrap();
        assert!(file.exists());
        forget_others(&place.paths, std::iter::empty()).unwrap();
        assert!(!file.exists());
    }
}

//! The packages, made of the program under test.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::host::{TestHost, Who};

/// Makes the packages of these kinds one after the other in `target/package`, under a lock, and
/// moves them away. `$1` is the program, `$2` where to, the rest the kinds.
const BUILD: &str = r#"
    mkdir -p target
    exec 9>target/package.lock
    flock 9
    binary=$1 to=$2
    shift 2
    packaging/build --binary "$binary" "$@" | xargs mv -t "$to"
"#;

/// A package, in a directory that goes with it.
#[derive(Debug)]
pub(crate) struct Package {
    directory: TempDir,
    /// Its file.
    pub path: PathBuf,
}

impl Package {
    /// Makes a package: `deb` or `rpm`.
    #[track_caller]
    pub(crate) fn build(kind: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let to = directory.path().to_str().unwrap();
        let binary = env!("CARGO_BIN_EXE_litellm-units");
        run(
            "bash",
            &["-euo", "pipefail", "-c", BUILD, "build", binary, to, kind],
        );
        let mut files = std::fs::read_dir(directory.path()).unwrap();
        let path = files.next().unwrap().unwrap().path();
        assert_eq!(path.extension().unwrap(), kind);
        Self { directory, path }
    }

    /// A place beside it for what a test makes of it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// stdout of a program of this machine that must succeed.
#[track_caller]
pub(crate) fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {words:?}:\n{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A host as before litellm-units came: without the program, with Debian's archive to install from.
pub(crate) fn bare_host(who: Who, name: &str) -> TestHost {
    let host = TestHost::boot_for(who, name);
    host.sh(
        Who::Root,
        "rm /usr/bin/litellm-units; echo \"127.0.0.1 $(hostname)\" >>/etc/hosts; apt-get -q update",
    );
    host
}

/// Installs packages of Debian, whose servers do not start.
pub(crate) fn install(host: &TestHost, packages: &str) {
    let script = format!(
        "printf 'exit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
         DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends {packages}
         rm /usr/sbin/policy-rc.d"
    );
    host.sh(Who::Root, &script);
}

//! Makes the packages of the program under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes the packages and gives the paths of the DEB and of the RPM.
#[track_caller]
pub fn build() -> (PathBuf, PathBuf) {
    let binary = env!("CARGO_BIN_EXE_litellm-units");
    let printed = run("packaging/build", &["--binary", binary, "deb", "rpm"]);
    let mut paths = printed
        .lines()
        .map(|line| Path::new(env!("CARGO_MANIFEST_DIR")).join(line));
    let paths = (paths.next().unwrap(), paths.next().unwrap());
    assert_eq!(paths.0.extension().unwrap(), "deb");
    assert_eq!(paths.1.extension().unwrap(), "rpm");
    paths
}

/// stdout of a program on this machine, in the repository, that must succeed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}\n{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

//! What `generate` adds to a `.env` and to a deployment directory, and what it leaves alone.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use litellm_units::deployment::completion::{
    Completed, Completion, Existing, complete, other_library,
};
use litellm_units::error::{self, Exit, Result};
use litellm_units::host::paths::{Paths, Scope};
use litellm_units::image::ImageReference;

use crate::support::{failure, tree};

const NEW: Existing = Existing { cluster: false };
const RUNNING: Existing = Existing { cluster: true };

/// Random bytes that tell in which order they were drawn: 01 01 …, then 02 02 …
fn numbered() -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut drawn = 0;
    move |bytes| {
        drawn += 1;
        bytes.fill(drawn);
        Ok(())
    }
}

/// The text of 256 bits that were drawn as number `drawn`.
fn drawn(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

fn completed(text: &str, found: Existing) -> Completed {
    complete(text, Path::new("/srv/.env"), found, &mut numbered()).unwrap()
}

/// Completes `text` and checks the result and what was said about it; and that a second time
/// changes nothing.
#[track_caller]
fn check(text: &str, found: Existing, expected: &str, changes: &[&str]) {
    let first = completed(text, found);
    assert_eq!(first.env.text(), expected);
    assert_eq!(first.changes, changes);
    let second = completed(first.env.text(), found);
    assert_eq!(second.env.text(), expected);
    assert_eq!(second.changes, Vec::<String>::new());
}

/// Only before there is a local database: a variable without effect stops no gateway that has served with it.
#[test]
fn a_new_deployment_refuses_a_database_in_parts() {
    let parts = "DATABASE_HOST=db\nDATABASE_USERNAME=a\nDATABASE_PASSWORD=b\nDATABASE_NAME=c\n";
    let text = format!("{WHOLE}{parts}");
    let error = complete(&text, Path::new("/srv/.env"), NEW, &mut numbered()).unwrap_err();
    let line = WHOLE.lines().count() + 1;
    assert_eq!(
        failure(&error),
        format!(
            "error: /srv/.env, line {line}: DATABASE_HOST names a database, but without DATABASE_URL the gateway uses the local PostgreSQL\n\
             hint: write DATABASE_URL=postgresql://USER:PASSWORD@HOST:PORT/DATABASE instead of the variables DATABASE_HOST, DATABASE_USERNAME, \
             DATABASE_PASSWORD and DATABASE_NAME; or, for the local PostgreSQL, remove them\n"
        )
    );
    assert_eq!(completed(&text, RUNNING).changes, Vec::<String>::new());
    let empty = format!("{WHOLE}DATABASE_HOST=\nDATABASE_NAME=c\n");
    assert_eq!(completed(&empty, NEW).changes, Vec::<String>::new());
}

/// A `.env` with nothing missing.
const WHOLE: &str = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-mine
LITELLM_SALT_KEY=sk-salt
POSTGRES_USER=litellm
POSTGRES_PASSWORD=p
POSTGRES_DB=litellm
REDIS_PASSWORD=r
OPENAI_API_KEY=
ANTHROPIC_API_KEY=
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
";

#[test]
fn a_new_file_gets_everything() {
    check(
        "# mine\n",
        NEW,
        &format!(
            "\
# mine

# The gateway's version. After an edit: litellm-units upgrade
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14

# For bootstrap only: give everyone else a key of their own (litellm-units key)
LITELLM_MASTER_KEY=sk-{}

# Encrypts credentials in the database: only `litellm-units secrets rotate salt` may change it
LITELLM_SALT_KEY=sk-{}

# The local PostgreSQL
POSTGRES_USER=litellm
POSTGRES_PASSWORD={}
POSTGRES_DB=litellm

# The local Redis
REDIS_PASSWORD={}

# Providers: name each key that config/litellm-config.yaml refers to
OPENAI_API_KEY=

# As above, for Anthropic's models
ANTHROPIC_API_KEY=

# Login of the web interface at /ui; while empty: admin
UI_USERNAME=

# While empty: the master key
UI_PASSWORD=

# The https:// address under which a reverse proxy publishes the gateway
PROXY_BASE_URL=
",
            drawn(1),
            drawn(2),
            drawn(3),
            drawn(4)
        ),
        &[
            "add LITELLM_IMAGE",
            "add LITELLM_MASTER_KEY",
            "add LITELLM_SALT_KEY",
            "add POSTGRES_USER",
            "add POSTGRES_PASSWORD",
            "add POSTGRES_DB",
            "add REDIS_PASSWORD",
            "add empty OPENAI_API_KEY",
            "add empty ANTHROPIC_API_KEY",
            "add empty UI_USERNAME",
            "add empty UI_PASSWORD",
            "add empty PROXY_BASE_URL",
        ],
    );
}

#[test]
fn a_whole_file_stays() {
    check(WHOLE, NEW, WHOLE, &[]);
    check(WHOLE, RUNNING, WHOLE, &[]);
}

#[test]
fn every_byte_of_what_is_there_stays() {
    let odd = "\
\u{feff}# A comment, and a blank line with a tab:\t
\t
export POSTGRES_PASSWORD = 'p # q'   # theirs\r
LITELLM_MASTER_KEY: \"sk-\\\"x\\\"\"
  REDIS_PASSWORD=r
OWN=${POSTGRES_PASSWORD:-none}
POSTGRES_USER=first
POSTGRES_USER=litellm
LITELLM_SALT_KEY='two
lines'
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
POSTGRES_DB=litellm
UI_USERNAME
UI_PASSWORD=
PROXY_BASE_URL=
OPENAI_API_KEY=a
ANTHROPIC_API_KEY=b";
    let expected =
        format!("{odd}\n\n# Login of the web interface at /ui; while empty: admin\nUI_USERNAME=\n");
    check(odd, NEW, &expected, &["add empty UI_USERNAME"]);
}

#[test]
fn what_is_added_has_the_line_ends_of_the_file() {
    let windows = WHOLE.replace('\n', "\r\n");
    let without = windows.replace("PROXY_BASE_URL=\r\n", "");
    let expected = format!(
        "{without}\r\n# The https:// address under which a reverse proxy publishes the gateway\r\n\
         PROXY_BASE_URL=\r\n"
    );
    check(&without, NEW, &expected, &["add empty PROXY_BASE_URL"]);
}

#[test]
fn a_last_line_without_its_end_is_not_continued() {
    let without = WHOLE.replace("PROXY_BASE_URL=\n", "OWN=value");
    let expected = format!(
        "{without}\n\n# The https:// address under which a reverse proxy publishes the gateway\n\
         PROXY_BASE_URL=\n"
    );
    check(&without, NEW, &expected, &["add empty PROXY_BASE_URL"]);
}

#[test]
fn placeholders_count_as_missing() {
    check(
        "\
# Template
LITELLM_IMAGE=ghcr.io/berriai/litellm:vX.Y.Z # pin it
LITELLM_MASTER_KEY=\"sk-your-secure-master-key\" # change
LITELLM_SALT_KEY=
POSTGRES_USER=llm
POSTGRES_PASSWORD='litellm_password_change_me'
POSTGRES_DB=
REDIS_PASSWORD=
OPENAI_API_KEY=sk-your-openai-key
ANTHROPIC_API_KEY='sk-your-anthropic-key' # theirs
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
",
        NEW,
        &format!(
            "\
# Template
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14 # pin it
LITELLM_MASTER_KEY=\"sk-{}\" # change
LITELLM_SALT_KEY=sk-{}
POSTGRES_USER=llm
POSTGRES_PASSWORD='{}'
POSTGRES_DB=litellm
REDIS_PASSWORD={}
OPENAI_API_KEY=
ANTHROPIC_API_KEY='' # theirs
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
",
            drawn(1),
            drawn(2),
            drawn(3),
            drawn(4)
        ),
        &[
            "set LITELLM_IMAGE",
            "set LITELLM_MASTER_KEY",
            "set LITELLM_SALT_KEY",
            "set POSTGRES_PASSWORD",
            "set POSTGRES_DB",
            "set REDIS_PASSWORD",
            "empty OPENAI_API_KEY, which held a placeholder",
            "empty ANTHROPIC_API_KEY, which held a placeholder",
        ],
    );
}

#[test]
fn an_existing_salt_key_is_never_changed() {
    let odd = WHOLE.replace(
        "LITELLM_SALT_KEY=sk-salt",
        "LITELLM_SALT_KEY=your-salt-key # odd",
    );
    check(&odd, NEW, &odd, &[]);
    check(&odd, RUNNING, &odd, &[]);
}

/// Until now LiteLLM encrypted with the master key, for want of a salt key.
#[test]
fn a_salt_key_for_an_existing_database_is_its_master_key() {
    let comment = "# Encrypts credentials in the database: only `litellm-units secrets rotate salt` may change it. \
                   At first the same as the master key, with which LiteLLM encrypted until now";
    let without = WHOLE.replace("LITELLM_SALT_KEY=sk-salt\n", "");
    let expected = format!("{without}\n{comment}\nLITELLM_SALT_KEY=sk-mine\n");
    check(&without, RUNNING, &expected, &["add LITELLM_SALT_KEY"]);

    let external = without.replace(
        "POSTGRES_USER=litellm\nPOSTGRES_PASSWORD=p\nPOSTGRES_DB=litellm\n",
        "",
    ) + "DATABASE_URL=postgresql://a:b@c/d\n";
    let expected = format!("{external}\n{comment}\nLITELLM_SALT_KEY=sk-mine\n");
    check(&external, NEW, &expected, &["add LITELLM_SALT_KEY"]);

    // Even a placeholder is what that database was encrypted with.
    let placeholder = without.replace("=sk-mine", "=sk-your-secure-master-key");
    let expected = format!(
        "{}\n{comment}\nLITELLM_SALT_KEY=sk-your-secure-master-key\n",
        without.replace("=sk-mine", &format!("=sk-{}", drawn(1)))
    );
    check(
        &placeholder,
        RUNNING,
        &expected,
        &["set LITELLM_MASTER_KEY", "add LITELLM_SALT_KEY"],
    );
}

#[test]
fn nothing_is_made_up_beside_an_existing_cluster() {
    let placeholder = WHOLE.replace("PASSWORD=p\n", "PASSWORD=litellm_password_change_me\n");
    check(&placeholder, RUNNING, &placeholder, &[]);

    for (line, name, how) in [
        (
            "POSTGRES_PASSWORD=p",
            "POSTGRES_PASSWORD",
            "write the value of that database into the file",
        ),
        (
            "POSTGRES_USER=litellm",
            "POSTGRES_USER",
            "write the value of that database into the file",
        ),
        (
            "POSTGRES_DB=litellm",
            "POSTGRES_DB",
            "write the value of that database into the file",
        ),
        (
            "LITELLM_MASTER_KEY=sk-mine",
            "LITELLM_MASTER_KEY",
            "write the gateway's master key into the file; without LITELLM_SALT_KEY, LiteLLM has encrypted with it",
        ),
        (
            "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14",
            "LITELLM_IMAGE",
            "write the image of the gateway that used the database last, since an older one can't use its schema",
        ),
    ] {
        for without in [String::new(), format!("{name}=\n")] {
            let text = WHOLE.replace(&format!("{line}\n"), &without);
            let error =
                complete(&text, Path::new("/srv/.env"), RUNNING, &mut numbered()).unwrap_err();
            assert_eq!(
                failure(&error),
                format!(
                    "error: /srv/.env: {name} has no value, but data/postgres already holds a database that depends on it\n\
                     hint: {how}; or move data/postgres away to start with an empty database\n"
                )
            );
            assert_eq!(error::exit(&error), Exit::Config);
        }
    }
}

/// LiteLLM encrypts with the empty string then.
#[test]
fn an_empty_salt_of_an_existing_database_stays() {
    let empty = WHOLE.replace("LITELLM_SALT_KEY=sk-salt", "LITELLM_SALT_KEY=");
    check(&empty, RUNNING, &empty, &[]);
    let external = empty.clone() + "DATABASE_URL=postgresql://a:b@c/d\n";
    check(&external, NEW, &external, &[]);
}

#[test]
fn external_servers_need_no_variables_of_the_local_ones() {
    let both = "\
LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14
LITELLM_MASTER_KEY=sk-mine
LITELLM_SALT_KEY=sk-salt
DATABASE_URL=postgresql://a:b@c/d
REDIS_HOST=cache.example.org
OPENAI_API_KEY=
ANTHROPIC_API_KEY=
UI_USERNAME=
UI_PASSWORD=
PROXY_BASE_URL=
";
    check(both, NEW, both, &[]);
}

#[test]
fn a_file_that_can_not_be_read_says_where() {
    let error = complete("A=1\nB=\"x\n", Path::new("/srv/.env"), NEW, &mut numbered()).unwrap_err();
    assert_eq!(
        failure(&error),
        "error: /srv/.env, line 2, column 3: the double quote opened here is never closed\n\
         hint: close it with `\"`, or write `\\\"` for a quote within the value\n"
    );
    assert_eq!(error::exit(&error), Exit::Config);
}

#[test]
fn without_randomness_nothing_is_made() {
    let mut none = |_: &mut [u8]| -> Result<()> { Err(anyhow::anyhow!("no entropy")) };
    let error = complete("", Path::new("/srv/.env"), NEW, &mut none).unwrap_err();
    assert_eq!(failure(&error), "error: no entropy\n");
}

/// A place for a deployment that is not there yet.
struct Place {
    root: tempfile::TempDir,
    paths: Paths,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        // The user's scope, since only root may give directories away.
        let paths = Paths {
            storage: at("storage"),
            scope: Scope::User,
            deployment: at("opt/server"),
            quadlets: at("quadlets"),
            units: at("units"),
            packaged_units: at("packaged"),
            runtime: at("run"),
            configuration: at("etc"),
        };
        Self { root, paths }
    }

    fn plan(&self) -> Completion {
        Completion::new(&self.paths, &mut numbered()).unwrap()
    }

    fn changes(&self) -> Vec<String> {
        let root = self.root.path().to_str().unwrap();
        self.plan()
            .changes
            .iter()
            .map(|change| change.to_string().replace(root, ""))
            .collect()
    }
}

#[test]
fn a_new_deployment_is_made_whole_and_only_once() {
    let place = Place::new();
    assert_eq!(
        place.changes(),
        [
            "directory /opt/server",
            "directory /opt/server/config",
            "directory /opt/server/certs",
            "directory /opt/server/files",
            "directory /opt/server/logs",
            "directory /opt/server/data",
            "directory /opt/server/data/postgres",
            "directory /opt/server/data/redis",
            "/opt/server/.env: add LITELLM_IMAGE, add LITELLM_MASTER_KEY, add LITELLM_SALT_KEY, add POSTGRES_USER, add POSTGRES_PASSWORD, add POSTGRES_DB, add REDIS_PASSWORD, add empty OPENAI_API_KEY, add empty ANTHROPIC_API_KEY, add empty UI_USERNAME, add empty UI_PASSWORD, add empty PROXY_BASE_URL",
            "/opt/server/config/litellm-config.yaml",
        ]
    );
    // Planning alone touches nothing.
    assert_eq!(tree(place.root.path()), "");
    place.plan().apply().unwrap();
    let modes: Vec<String> = [
        "",
        "config",
        "certs",
        "files",
        "logs",
        "data",
        "data/postgres",
        "data/redis",
        ".env",
        "config/litellm-config.yaml",
    ]
    .iter()
    .map(|name| {
        let mode = fs::metadata(place.paths.deployment.join(name))
            .unwrap()
            .mode();
        format!("{:o} {name}", mode & 0o7777)
    })
    .collect();
    assert_eq!(
        modes,
        [
            "755 ",
            "755 config",
            "755 certs",
            "700 files",
            "750 logs",
            "711 data",
            "700 data/postgres",
            "700 data/redis",
            "600 .env",
            "644 config/litellm-config.yaml"
        ]
    );
    let before = tree(place.root.path());
    assert_eq!(place.changes(), Vec::<String>::new());
    place.plan().apply().unwrap();
    assert_eq!(tree(place.root.path()), before);
}

#[test]
fn what_is_there_is_kept_and_an_open_env_is_closed() {
    let place = Place::new();
    let deployment = &place.paths.deployment;
    fs::create_dir_all(deployment.join("config")).unwrap();
    fs::write(deployment.join(".env"), WHOLE).unwrap();
    fs::set_permissions(deployment.join(".env"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(
        deployment.join("config/litellm-config.yaml"),
        "model_list: []\n",
    )
    .unwrap();
    fs::create_dir_all(deployment.join("data/postgres")).unwrap();
    fs::write(deployment.join("data/postgres/PG_VERSION"), "17\n").unwrap();
    assert_eq!(
        place.changes(),
        [
            "directory /opt/server/certs",
            "directory /opt/server/files",
            "directory /opt/server/logs",
            "directory /opt/server/data/redis",
            "/opt/server/.env: set mode 0600, others could read it",
        ]
    );
    place.plan().apply().unwrap();
    assert_eq!(fs::read_to_string(deployment.join(".env")).unwrap(), WHOLE);
    assert_eq!(
        fs::metadata(deployment.join(".env")).unwrap().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        fs::read_to_string(deployment.join("config/litellm-config.yaml")).unwrap(),
        "model_list: []\n"
    );
    assert_eq!(place.changes(), Vec::<String>::new());
}

#[test]
fn a_link_to_env_stays_a_link() {
    let place = Place::new();
    let deployment = &place.paths.deployment;
    fs::create_dir_all(deployment).unwrap();
    let kept = place.root.path().join("kept.env");
    fs::write(&kept, "OWN=1\n").unwrap();
    std::os::unix::fs::symlink(&kept, deployment.join(".env")).unwrap();
    place.plan().apply().unwrap();
    assert_eq!(fs::read_link(deployment.join(".env")).unwrap(), kept);
    assert!(fs::read_to_string(&kept).unwrap().starts_with("OWN=1\n"));
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(place.changes(), Vec::<String>::new());
}

#[test]
fn a_cluster_of_another_major_version_is_refused() {
    let place = Place::new();
    let deployment = &place.paths.deployment;
    fs::create_dir_all(deployment.join("data/postgres")).unwrap();
    fs::write(deployment.join("data/postgres/PG_VERSION"), "16\n").unwrap();
    fs::write(deployment.join(".env"), WHOLE).unwrap();
    let before = tree(place.root.path());
    let error = Completion::new(&place.paths, &mut numbered()).unwrap_err();
    assert_eq!(
        failure(&error).replace(place.root.path().to_str().unwrap(), ""),
        "error: /opt/server/data/postgres holds a PostgreSQL 16 cluster, but the image is docker.io/library/postgres:17.7\n\
         hint: set POSTGRES_IMAGE in /opt/server/.env to a version 16 image, e.g. docker.io/library/postgres:16; then, to move the data to a later version: `litellm-units upgrade --postgres IMAGE`\n"
    );
    assert_eq!(error::exit(&error), Exit::Config);
    assert_eq!(tree(place.root.path()), before);
}

#[test]
fn a_cluster_of_another_c_library_is_refused() {
    let alpine = ImageReference::parse("docker.io/library/postgres:17.7-alpine").unwrap();
    let debian = ImageReference::parse("docker.io/library/postgres:17.7").unwrap();
    for (owner, image) in [(70, &alpine), (999, &debian), (0, &debian), (1000, &alpine)] {
        assert!(other_library(owner, image).is_none(), "{owner} {image}");
    }
    let refusal = |owner, image| failure(&other_library(owner, image).unwrap().into());
    assert_eq!(
        refusal(70, &debian),
        "error: data/postgres holds a cluster of Alpine's PostgreSQL (user 70), but the image is that of Debian, whose order of text differs: docker.io/library/postgres:17.7\n\
         hint: do not change the owner, which would damage indexes: set POSTGRES_IMAGE in .env to the image of that cluster, e.g. docker.io/library/postgres:17-alpine; then, to change it: `litellm-units upgrade --postgres IMAGE`\n"
    );
    assert_eq!(
        refusal(999, &alpine),
        "error: data/postgres holds a cluster of Debian's PostgreSQL (user 999), but the image is that of Alpine, whose order of text differs: docker.io/library/postgres:17.7-alpine\n\
         hint: do not change the owner, which would damage indexes: set POSTGRES_IMAGE in .env to the image of that cluster, e.g. docker.io/library/postgres:17; then, to change it: `litellm-units upgrade --postgres IMAGE`\n"
    );
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let mut place = Place::new();
    let deployment = &place.paths.deployment;
    let version = deployment.join("data/postgres/PG_VERSION");
    fs::create_dir_all(deployment.join("data/postgres")).unwrap();
    fs::write(&version, "17\n").unwrap();
    fs::write(deployment.join(".env"), WHOLE).unwrap();
    std::os::unix::fs::chown(&version, Some(70), Some(70)).unwrap();
    // Without root, any user may have that number.
    place.plan();
    place.paths.scope = Scope::System;
    let error = Completion::new(&place.paths, &mut numbered()).unwrap_err();
    assert_eq!(failure(&error), refusal(70, &debian));
    // Both at once.
    fs::write(&version, "16\n").unwrap();
    let error = Completion::new(&place.paths, &mut numbered()).unwrap_err();
    assert!(failure(&error).contains("e.g. docker.io/library/postgres:16-alpine; then"));
}

#[test]
fn a_cluster_in_the_layout_of_postgres_18_is_found() {
    let place = Place::new();
    let deployment = &place.paths.deployment;
    fs::create_dir_all(deployment.join("data/postgres/18/docker")).unwrap();
    fs::write(
        deployment.join("data/postgres/18/docker/PG_VERSION"),
        "18\n",
    )
    .unwrap();
    fs::write(deployment.join(".env"), WHOLE).unwrap();
    let error = Completion::new(&place.paths, &mut numbered()).unwrap_err();
    assert_eq!(
        failure(&error).replace(place.root.path().to_str().unwrap(), ""),
        "error: the cluster of PostgreSQL is in /opt/server/data/postgres/18/docker, but the server expects it in /opt/server/data/postgres\n\
         hint: while it is stopped, move it: `mv /opt/server/data/postgres/18/docker /opt/server/data/postgres.new && mv /opt/server/data/postgres /opt/server/data/postgres.old && mv /opt/server/data/postgres.new /opt/server/data/postgres`\n"
    );
}

#[test]
fn a_file_in_the_place_of_a_directory_is_refused() {
    let place = Place::new();
    fs::create_dir_all(&place.paths.deployment).unwrap();
    fs::write(place.paths.logs(), "").unwrap();
    let error = Completion::new(&place.paths, &mut numbered()).unwrap_err();
    assert_eq!(
        failure(&error).replace(place.root.path().to_str().unwrap(), ""),
        "error: /opt/server/logs is not a directory\nhint: move it away, then run the same command again\n"
    );
}

#[test]
fn warnings_name_file_and_line() {
    let place = Place::new();
    fs::create_dir_all(&place.paths.deployment).unwrap();
    fs::write(
        place.paths.env_file(),
        format!("{WHOLE}OWN=$NOWHERE\nOWN=2\n"),
    )
    .unwrap();
    let root = place.root.path().to_str().unwrap();
    let warnings: Vec<String> = place
        .plan()
        .warnings
        .iter()
        .map(|warning| warning.replace(root, ""))
        .collect();
    assert_eq!(
        warnings,
        [
            "/opt/server/.env, line 13, column 5: the variable that `$` refers to here has no value, so this is empty: for a plain dollar sign write `$$` or use single quotes",
            "/opt/server/.env, line 14, column 1: OWN is defined again: this line counts and line 13 does not",
        ]
    );
}

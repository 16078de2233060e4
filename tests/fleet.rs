//! What is refused of `fleet.toml`, and of a configuration that comes as a tar.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use litellm_units::deployment::configuration::Configuration;
use litellm_units::deployment::fleet::Fleet;
use tar::EntryType::{self, Link, Regular, Symlink};

const HOST: &str = "[[host]]\nssh = \"root@a\"\n";

/// A tar with these members, whose names are not checked.
pub(crate) fn tar(members: &[(&str, EntryType)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind) in members {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o4777);
        header.set_size(4);
        header.set_cksum();
        tar.append(&header, &b"A=1\n"[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn mistakes_in_fleet_toml_are_named_without_values() {
    let own = format!("{HOST}env = {{ A = \"1\" }}\n");
    assert!(Fleet::parse(&own, Path::new("fleet.toml")).is_ok());
    for (text, problem) in [
        (
            "[[host]]\nssh = \"-oProxyCommand=x\"\n",
            "line 2: not USER@HOST",
        ),
        ("[[host]]\nenv = {}\n", "line 1: missing field `ssh`"),
        (
            &*format!("{HOST}dir = \"/\"\n"),
            "line 3: unknown field `dir`, expected `ssh` or `env`",
        ),
        (
            &format!("{HOST}env = {{ A = 4711 }}\n"),
            "line 3: expected a string",
        ),
        (
            &format!("{HOST}env = \"sk-secret\"\n"),
            "line 3: expected a map",
        ),
        (&format!("{HOST}\n{HOST}"), "line 5: root@a is there twice"),
        (
            &format!("backup = \"root@b\"\n{HOST}"),
            "line 1: root@b is none of the hosts",
        ),
        ("# hosts\n", "line 1: no `[[host]]` is there"),
        ("[[host]\n", "line 1: unclosed array table, expected `]`"),
    ] {
        let error = Fleet::parse(text, Path::new("fleet.toml")).err().unwrap();
        assert_eq!(error.to_string(), format!("fleet.toml, {problem}"));
    }
}

#[test]
fn what_a_tar_may_hold() {
    let env = (".env", Regular);
    let others = ["./config/a/b.yaml", "entrance/key.pem", "extra.d/x"];
    let good = tar(&[&[env][..], &others.map(|name| (name, Regular))].concat());
    let found = Configuration::from_tar(&*good).ok().unwrap();
    let again = found.to_tar().unwrap();
    let mut archive = tar::Archive::new(&*again);
    let members: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            (name, entry.header().mode().unwrap())
        })
        .collect();
    let expected = [
        (".env", 0o600),
        ("config/a/b.yaml", 0o755),
        ("entrance/key.pem", 0o600),
        ("extra.d/x", 0o755),
    ];
    assert_eq!(
        members,
        expected.map(|(name, mode)| (name.to_owned(), mode))
    );
    for (name, kind, reason) in [
        ("/etc/passwd", Regular, "which no configuration has"),
        ("config/../../x", Regular, "which no configuration has"),
        ("data/x", Regular, "which no configuration has"),
        ("extra.d/a/b", Regular, "which no configuration has"),
        (
            "config/1/2/3/4/5/6/7/8/9/x",
            Regular,
            "which no configuration has",
        ),
        ("config/x", Symlink, "which is not a regular file"),
        ("config/x", Link, "which is not a regular file"),
        ("./.env", Regular, "which is there twice"),
    ] {
        let bytes = tar(&[env, (name, kind)]);
        let error = Configuration::from_tar(&*bytes).err().unwrap();
        assert_eq!(error.to_string(), format!("the tar has {name:?}, {reason}"));
    }
    let mut zeros = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2048);
    zeros
        .append_data(&mut header, ".env", &[0; 2048][..])
        .unwrap();
    let zeros = zeros.into_inner().unwrap();
    let damaged = "it is not a whole tar of a configuration, of 64 MiB at most";
    for (bytes, reason) in [
        (&tar(&[])[..], "the tar has no .env"),
        // Between two members.
        (&good[..1024], damaged),
        (&[&[1; 512][..], &[0; 1024]].concat(), damaged),
        (&good[..good.len() - 512], damaged),
        (&zeros[..zeros.len() - 1024], damaged),
    ] {
        let error = Configuration::from_tar(bytes).err().unwrap();
        assert_eq!(error.to_string(), reason);
    }
}

//! What `trust` writes and takes back, in directories of the test's own.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

use litellm_units::deployment::images_lock::ImagesLock;
use litellm_units::host::paths::{Paths, Scope};
use litellm_units::image::{ImageIdentity, ImageReference};
use litellm_units::operations::trust::{
    HostFacts, LITELLM_KEY, Places, PolicyPlan, Wish, check_key, check_scope, is_signed_release,
    unsigned,
};
use serde_json::json;

use crate::support::{failure, tree};

/// As Debian has it.
const POLICY: &str = r#"{
    "default": [
        {
            "type": "insecureAcceptAnything"
        }
    ]
}
"#;

struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new(policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Self { directory };
        root.write("containers/policy.json", policy);
        root
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        let text = fs::read_to_string(self.at(name)).unwrap();
        self.clean(&text)
    }

    fn clean(&self, text: &str) -> String {
        text.replace(self.directory.path().to_str().unwrap(), "")
    }

    fn places(&self) -> Places {
        Places::of(&Paths {
            configuration: self.directory.path().to_owned(),
            ..Paths::elsewhere(Scope::System)
        })
    }

    fn set(&self, wish: &Wish) -> PolicyPlan {
        PolicyPlan::set(&self.places(), wish).unwrap()
    }

    fn refusal(&self) -> String {
        let before = tree(self.directory.path());
        let error = PolicyPlan::set(&self.places(), &Wish::default()).unwrap_err();
        assert_eq!(tree(self.directory.path()), before);
        self.clean(&failure(&error))
    }
}

/// `registries.conf` sends ghcr.io to another registry, and one image of it to a third.
fn wish() -> Wish {
    Wish {
        accept: vec!["ghcr.io/berriai/litellm@sha256:1".into()],
        host: HostFacts {
            registries: json!({
                "docker.io": {"Location": "127.0.0.1:5000"},
                "ghcr.io": {"Location": "127.0.0.1:5000", "Mirrors": [{"Location": "cache.local/ghcr"}]},
                "ghcr.io/berriai/litellm-ee": {"Location": "vault.local/ee"},
                "search": ["docker.io"],
            }),
            lists_keys: true,
        },
        ..Wish::default()
    }
}

#[test]
fn it_is_set_once_and_taken_back_whole() {
    let root = Root::new(POLICY);
    let before = tree(root.directory.path());
    let plan = root.set(&wish());
    let changes: Vec<_> = plan
        .visible()
        .map(|change| root.clean(&format!("{} {}", change.verb(), change.path.display())))
        .collect();
    assert_eq!(
        changes,
        [
            "create /litellm-units/trust.pub",
            "create /containers/registries.d/litellm-units.yaml",
            "update /containers/policy.json",
        ]
    );
    plan.apply().unwrap();
    assert_eq!(root.read("litellm-units/trust.pub"), LITELLM_KEY);
    assert_eq!(
        root.read("containers/registries.d/litellm-units.yaml"),
        "\
# Written by litellm-units trust; litellm-units trust --remove removes it.
docker:
  \"127.0.0.1:5000/berriai\":
    use-sigstore-attachments: true
  \"cache.local/ghcr/berriai\":
    use-sigstore-attachments: true
  \"ghcr.io/berriai\":
    use-sigstore-attachments: true
  \"vault.local/ee\":
    use-sigstore-attachments: true
"
    );
    assert_eq!(
        root.read("containers/policy.json"),
        r#"{
    "default": [
        {
            "type": "insecureAcceptAnything"
        }
    ],
    "transports": {
        "docker": {
            "ghcr.io/berriai": [
                {
                    "type": "sigstoreSigned",
                    "keyPath": "/litellm-units/trust.pub",
                    "signedIdentity": {
                        "type": "matchRepository"
                    }
                }
            ],
            "ghcr.io/berriai/litellm@sha256:1": [
                {
                    "type": "insecureAcceptAnything"
                }
            ]
        }
    }
}
"#
    );
    // What was accepted stays so, and all of it stays as it is.
    let after = tree(root.directory.path());
    let again = root.set(&Wish {
        accept: Vec::new(),
        ..wish()
    });
    assert!(again.is_empty(), "{again:?}");
    again.apply().unwrap();
    assert_eq!(tree(root.directory.path()), after);

    PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
    let bytes = |tree: &str| -> Vec<String> {
        // The inode of a file that was replaced is another one.
        tree.lines()
            .map(|line| line.replacen(char::is_numeric, "", 1))
            .filter(|line| !line.ends_with("policy.json"))
            .collect()
    };
    assert_eq!(bytes(&tree(root.directory.path())), bytes(&before));
    assert!(PolicyPlan::remove(&root.places()).unwrap().is_empty());
}

#[test]
fn what_others_wrote_meanwhile_stays() {
    let root = Root::new(POLICY);
    root.set(&wish()).apply().unwrap();
    let edited = root.read("containers/policy.json").replace(
        "\"docker\": {",
        "\"docker\": {\n            \"quay.io\": [{\"type\": \"reject\"}],",
    );
    // The key's place is the real one again.
    let edited = edited.replace(
        "\"/litellm-units/trust.pub\"",
        &format!("{:?}", root.at("litellm-units/trust.pub")),
    );
    root.write("containers/policy.json", &edited);
    assert!(root.set(&wish()).visible().next().is_none());
    PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
    assert_eq!(
        root.read("containers/policy.json"),
        r#"{
    "default": [
        {
            "type": "insecureAcceptAnything"
        }
    ],
    "transports": {
        "docker": {
            "quay.io": [{"type": "reject"}]
        }
    }
}
"#
    );
}

#[test]
fn what_is_gone_or_other_is_put_back() {
    let root = Root::new(POLICY);
    root.set(&wish()).apply().unwrap();
    let whole = root.read("containers/policy.json");
    root.write("containers/policy.json", POLICY);
    root.write("litellm-units/trust.pub", "another");
    fs::remove_file(root.at("containers/registries.d/litellm-units.yaml")).unwrap();
    root.set(&wish()).apply().unwrap();
    assert_eq!(root.read("containers/policy.json"), whole);
    assert_eq!(root.read("litellm-units/trust.pub"), LITELLM_KEY);
    assert!(root.set(&wish()).is_empty());
}

#[test]
fn another_place_has_signatures_for_the_published_names() {
    let root = Root::new(POLICY);
    let wish = Wish {
        scope: Some("mirror.local/x".into()),
        ..Wish::default()
    };
    root.set(&wish).apply().unwrap();
    let policy: serde_json::Value =
        serde_json::from_str(&root.read("containers/policy.json")).unwrap();
    let demand = |identity: serde_json::Value| json!([{"type": "sigstoreSigned", "keyPath": "/litellm-units/trust.pub", "signedIdentity": identity}]);
    let published = |name: &str| {
        demand(
            json!({"type": "exactRepository", "dockerRepository": format!("ghcr.io/berriai/{name}")}),
        )
    };
    assert_eq!(
        policy["transports"]["docker"],
        json!({
            "mirror.local/x": demand(json!({"type": "matchRepository"})),
            "mirror.local/x/litellm": published("litellm"),
            "mirror.local/x/litellm-database": published("litellm-database"),
            "mirror.local/x/litellm-non_root": published("litellm-non_root"),
            "mirror.local/x/litellm-spend_logs": published("litellm-spend_logs"),
        })
    );
    // Images that someone else signs have the name that they are pulled by; and a new wish takes
    // the place of the old one.
    let key = "-----BEGIN PUBLIC KEY-----\nMine\n-----END PUBLIC KEY-----\n";
    let wish = Wish {
        scope: Some("mirror.local/y".into()),
        keys: vec![key.into()],
        ..Wish::default()
    };
    root.set(&wish).apply().unwrap();
    let policy: serde_json::Value =
        serde_json::from_str(&root.read("containers/policy.json")).unwrap();
    assert_eq!(
        policy["transports"]["docker"],
        json!({"mirror.local/y": demand(json!({"type": "matchRepository"}))})
    );
    assert_eq!(root.read("litellm-units/trust.pub"), key);
    assert!(root.set(&Wish::default()).is_empty());
}

#[test]
fn what_someone_else_decided_is_neither_replaced_nor_loosened() {
    let hint = "hint: `litellm-units trust` changes only what it wrote itself; what to write there by hand is in docs/trust.md\n";
    for (policy, problem) in [
        (
            "{\n\"default\": [{\"type\": \"reject\"}]}",
            "line 2: \"default\" already has a rule for images of ghcr.io/berriai: reject",
        ),
        (
            "{\"default\": [{\"type\": \"insecureAcceptAnything\"}], \"transports\": {\"docker\": {\n\"ghcr.io\": [{\"type\": \"signedBy\"}]}}}",
            "line 2: \"ghcr.io\" already has a rule for images of ghcr.io/berriai: signedBy",
        ),
        (
            "{\"default\": [{\"type\": \"insecureAcceptAnything\"}], \"transports\": {\"docker\": {\n\n\"ghcr.io/berriai/litellm\": [{\"type\": \"insecureAcceptAnything\"}]}}}",
            "line 3: \"ghcr.io/berriai/litellm\" already has a rule for images of ghcr.io/berriai",
        ),
    ] {
        let root = Root::new(policy);
        assert_eq!(
            root.refusal(),
            format!("error: /containers/policy.json, {problem}\n{hint}")
        );
    }

    let root = Root::new("{\n");
    assert_eq!(
        root.refusal(),
        "error: /containers/policy.json, line 2: EOF while parsing an object at line 2 column 0\n\
         hint: Podman pulls nothing until the file is valid: correct it, or restore it from a backup or its package\n"
    );

    fs::remove_file(root.at("containers/policy.json")).unwrap();
    assert_eq!(
        root.refusal(),
        "error: /containers/policy.json is missing, so Podman pulls nothing at all\n\
         hint: install the package that it belongs to: golang-github-containers-common (Debian, Ubuntu) or containers-common (Fedora, RHEL)\n"
    );

    // Podman takes no two files that name the same place.
    let root = Root::new(POLICY);
    root.write(
        "containers/registries.d/site.yaml",
        "docker:\n  ghcr.io/berriai:\n    lookaside: https://x\n",
    );
    assert_eq!(
        root.refusal(),
        "error: /containers/registries.d/site.yaml, line 2: signatures of ghcr.io/berriai are not looked up\n\
         hint: add `use-sigstore-attachments: true` there, then run `litellm-units trust` again\n"
    );
    root.write(
        "containers/registries.d/site.yaml",
        "docker:\n  ghcr.io/berriai:\n    use-sigstore-attachments: true\n",
    );
    let plan = root.set(&Wish {
        host: HostFacts {
            registries: json!({"ghcr.io": {"Location": "cache.local"}}),
            lists_keys: true,
        },
        ..Wish::default()
    });
    plan.apply().unwrap();
    assert_eq!(
        root.read("containers/registries.d/litellm-units.yaml"),
        "\
# Written by litellm-units trust; litellm-units trust --remove removes it.
docker:
  \"cache.local/berriai\":
    use-sigstore-attachments: true
"
    );
}

#[test]
fn releases_from_before_signatures_stay_usable_by_digest() {
    let image = |text: &str| ImageReference::parse(text).unwrap();
    for (text, signed) in [
        ("ghcr.io/berriai/litellm:v1.80.11-stable", false),
        ("ghcr.io/berriai/litellm:v1.82.99", false),
        ("ghcr.io/berriai/litellm:v1.83.0-stable", true),
        ("ghcr.io/berriai/litellm-database:main-v1.100.1", true),
        ("ghcr.io/berriai/litellm:v2.0.0", true),
        ("ghcr.io/berriai/litellm:sha-1a2b", true),
    ] {
        assert_eq!(is_signed_release(&image(text)), signed, "{text}");
    }

    let (old, new) = (
        image("ghcr.io/berriai/litellm:v1.80.11-stable"),
        image("ghcr.io/berriai/litellm:v1.83.0"),
    );
    let mut lock = ImagesLock::default();
    let said = |current: &ImageReference, lock: &ImagesLock| {
        unsigned("ghcr.io/berriai", Some(current), lock).map_err(|error| failure(&error))
    };
    assert_eq!(said(&new, &lock), Ok(Vec::new()));
    assert_eq!(
        said(&old, &lock).unwrap_err(),
        "error: LITELLM_IMAGE is ghcr.io/berriai/litellm:v1.80.11-stable, which LiteLLM did not sign, and its digest is not recorded: it could not be pulled any more\n\
         hint: record it first with `litellm-units pull`, or name a release from 1.83 on\n"
    );
    lock.record(&old, ImageIdentity::of_digest("sha256:1"));
    lock.record(&new, ImageIdentity::of_digest("sha256:2"));
    lock.record(
        &image("docker.io/library/redis:7.4.6"),
        ImageIdentity::of_digest("sha256:3"),
    );
    let accepted = vec!["ghcr.io/berriai/litellm@sha256:1".to_owned()];
    assert_eq!(said(&old, &lock), Ok(accepted.clone()));
    assert_eq!(said(&new, &lock), Ok(accepted));
    assert_eq!(
        said(&image("docker.litellm.ai/berriai/litellm:v1.83.0"), &lock).unwrap_err(),
        "error: LITELLM_IMAGE is docker.litellm.ai/berriai/litellm:v1.83.0, which is not in ghcr.io/berriai: its signature would not be verified\n\
         hint: choose the scope of that image: `litellm-units trust --scope docker.litellm.ai/berriai`\n"
    );
}

#[test]
fn only_a_public_key_and_a_name_are_taken() {
    let path = Path::new("/key");
    assert!(check_key(LITELLM_KEY, path).is_ok());
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEKi4ivqGpE231OGH50PKbqy1Y1Kkb\n-----END PRIVATE KEY-----\n",
        &format!("{LITELLM_KEY}{LITELLM_KEY}"),
    ] {
        let error = check_key(text, path).unwrap_err();
        assert_eq!(error.to_string(), "/key is not a public key in PEM form");
    }
    assert!(check_scope("127.0.0.1:5000/berriai").is_ok());
    for scope in [
        "ghcr.io",
        "berriai",
        "ghcr.io/berriai/",
        "ghcr.io/x:v1",
        "ghcr.io/X",
    ] {
        assert!(check_scope(scope).is_err(), "{scope}");
    }
}

#[test]
fn it_can_be_interrupted_anywhere() {
    let whole = Root::new(POLICY);
    whole.set(&wish()).apply().unwrap();
    let count = 4;
    for steps in 0..=count {
        let root = Root::new(POLICY);
        let mut plan = root.set(&wish());
        assert_eq!(plan.changes.len(), count);
        plan.changes.truncate(steps);
        plan.apply().unwrap();
        root.set(&wish()).apply().unwrap();
        assert_eq!(
            root.read("containers/policy.json"),
            whole.read("containers/policy.json")
        );
        assert!(root.set(&wish()).is_empty());

        let mut plan = PolicyPlan::remove(&root.places()).unwrap();
        assert_eq!(plan.changes.len(), count);
        plan.changes.truncate(steps);
        plan.apply().unwrap();
        PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
        assert_eq!(root.read("containers/policy.json"), POLICY);
        assert!(!root.at("litellm-units").exists());
        assert!(!root.at("containers/registries.d").exists());

        // Taken back before it was complete.
        let mut plan = root.set(&wish());
        plan.changes.truncate(steps);
        plan.apply().unwrap();
        PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
        assert_eq!(root.read("containers/policy.json"), POLICY);
        assert!(!root.at("litellm-units").exists());
    }
}

/// What one key verified is not accepted after another key replaced it, wherever that was interrupted.
#[test]
fn an_interrupted_change_leaves_no_pin() {
    let wish = |name: &str| Wish {
        keys: vec![format!(
            "-----BEGIN PUBLIC KEY-----\n{name}\n-----END PUBLIC KEY-----\n"
        )],
        ..Wish::of(HostFacts::default())
    };
    let image = "ghcr.io/berriai/litellm@sha256:1";
    let mut count = 0;
    for steps in 0.. {
        let root = Root::new(POLICY);
        root.set(&wish("First")).apply().unwrap();
        let places = root.places();
        places
            .pin(image, "the first key", HostFacts::default())
            .unwrap();
        assert!(root.read("containers/policy.json").contains(image));
        let mut plan = root.set(&wish("Second"));
        count = plan.changes.len();
        plan.changes.truncate(steps);
        plan.apply().unwrap();
        root.set(&wish("Second")).apply().unwrap();
        assert!(
            !root.read("containers/policy.json").contains(image),
            "{steps}"
        );
        PolicyPlan::remove(&places).unwrap().apply().unwrap();
        assert!(!root.read("containers/policy.json").contains("berriai"));
        if steps == count {
            break;
        }
    }
    assert_eq!(count, 4);
}

/// Podman takes an image signed with one of several keys; one that can't, gets the first.
#[test]
fn several_keys() {
    let root = Root::new(POLICY);
    let before = tree(root.directory.path());
    let key =
        |name: &str| format!("-----BEGIN PUBLIC KEY-----\n{name}\n-----END PUBLIC KEY-----\n");
    let wish = |names: &[&str], lists_keys| Wish {
        keys: names.iter().map(|name| key(name)).collect(),
        ..Wish::of(HostFacts {
            lists_keys,
            ..HostFacts::default()
        })
    };
    let demand = || -> serde_json::Value {
        let policy: serde_json::Value =
            serde_json::from_str(&root.read("containers/policy.json")).unwrap();
        let mut demand = policy["transports"]["docker"]["ghcr.io/berriai"][0].clone();
        demand.as_object_mut().unwrap().remove("signedIdentity");
        demand
    };
    root.set(&wish(&["First", "Second"], true)).apply().unwrap();
    assert_eq!(
        demand(),
        json!({"type": "sigstoreSigned", "keyPaths": ["/litellm-units/trust.pub", "/litellm-units/trust-2.pub"]})
    );
    assert_eq!(root.read("litellm-units/trust-2.pub"), key("Second"));
    assert!(root.set(&wish(&[], true)).is_empty());

    let old = root.set(&wish(&[], false));
    let changed: Vec<_> = old
        .visible()
        .map(|change| root.clean(&change.path.display().to_string()))
        .collect();
    assert_eq!(changed, ["/containers/policy.json"]);
    old.apply().unwrap();
    assert_eq!(
        demand(),
        json!({"type": "sigstoreSigned", "keyPath": "/litellm-units/trust.pub"})
    );

    // Fewer keys take their files away; and what others signed has to be verified anew.
    root.places()
        .pin(
            "ghcr.io/berriai/litellm@sha256:1",
            "the second key",
            HostFacts::default(),
        )
        .unwrap();
    let record = root.places().record().unwrap().unwrap();
    assert_eq!(record.accepted().count(), 0);
    assert_eq!(
        record.verified,
        [(
            "ghcr.io/berriai/litellm@sha256:1".to_owned(),
            "the second key".to_owned()
        )]
        .into()
    );
    root.set(&wish(&["First"], true)).apply().unwrap();
    assert!(!root.at("litellm-units/trust-2.pub").exists());
    assert!(!root.read("containers/policy.json").contains("@sha256:1"));

    fs::remove_file(root.at("litellm-units/trust.pub")).unwrap();
    assert_eq!(
        root.clean(&failure(
            &PolicyPlan::set(&root.places(), &Wish::default()).unwrap_err()
        )),
        "error: /litellm-units/trust.pub is missing\nhint: give the key again: `litellm-units trust --key FILE`\n"
    );
    PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
    assert_eq!(root.read("containers/policy.json"), POLICY);
    assert_eq!(
        tree(root.directory.path()).lines().count(),
        before.lines().count()
    );
}

/// What was verified stays pinned, whatever else is set, and goes with `--remove`.
#[test]
fn what_was_verified_is_taken_by_its_digest() {
    let root = Root::new(POLICY);
    root.set(&Wish::default()).apply().unwrap();
    let pin = |image: &str| {
        root.places()
            .pin(image, "a workflow", HostFacts::default())
            .unwrap();
    };
    pin("ghcr.io/berriai/litellm@sha256:1");
    let once = tree(root.directory.path());
    pin("ghcr.io/berriai/litellm@sha256:1");
    assert_eq!(tree(root.directory.path()), once);
    // Of other images, nothing is decided.
    pin("quay.io/x/y@sha256:2");
    assert!(!root.read("containers/policy.json").contains("quay.io"));
    // Two at once: none is lost.
    std::thread::scope(|scope| {
        for number in 3..9 {
            let pin = &pin;
            scope.spawn(move || pin(&format!("ghcr.io/berriai/litellm@sha256:{number}")));
        }
    });
    let record = root.places().record().unwrap().unwrap();
    assert_eq!(record.verified.len(), 7);
    assert!(root.set(&Wish::default()).is_empty());
    PolicyPlan::remove(&root.places()).unwrap().apply().unwrap();
    assert_eq!(root.read("containers/policy.json"), POLICY);
}

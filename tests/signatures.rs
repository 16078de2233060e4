//! Which signatures hold: with a certificate authority and logs of the test's own.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use litellm_units::operations::trust::known::IDENTITY;
use litellm_units::operations::trust::signature::{Attached, Signed, Signers, Subject};
use rcgen::KeyPair;
use serde_json::Value;

use crate::support::sigstore::{NOON, Signing, Sigstore, attached, simple_by_key};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OTHER: &str = "sha256:fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

fn names() -> Vec<String> {
    vec!["ghcr.io/berriai/litellm".to_owned()]
}

fn signers(sigstore: &Sigstore, keys: &[&KeyPair]) -> Signers {
    let keys: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(index, key)| (format!("key {}", index + 1), key.public_key_pem()))
        .collect();
    let root = sigstore.trusted_root();
    Signers::new(
        &keys,
        Some(IDENTITY),
        Some((Path::new("/root.json"), &root)),
    )
    .unwrap()
}

fn verify(signers: &Signers, attached: &Attached) -> Result<Signed, String> {
    let names = names();
    let subject = Subject {
        digest: DIGEST,
        names: &names,
    };
    signers
        .verify(attached, subject)
        .map_err(|problems| problems.join("; "))
}

fn bundle(bundle: &Value) -> Attached {
    Attached {
        bundles: vec![bundle.to_string()],
        ..Attached::default()
    }
}

#[test]
fn a_signature_without_a_key_holds_in_both_forms() {
    let sigstore = Sigstore::new();
    let signers = signers(&sigstore, &[]);
    let signed = Ok(Signed {
        by: IDENTITY.subject.to_owned(),
        key: None,
    });
    let signing = Signing::default();
    let simple = sigstore.simple(DIGEST, signing);
    assert_eq!(verify(&signers, &attached(simple)), signed);
    let new = sigstore.bundle(DIGEST, SIGN, signing);
    assert_eq!(verify(&signers, &bundle(&new)), signed);
    // One that holds is enough, beside others.
    let mut both = attached(sigstore.simple(OTHER, signing));
    both.bundles = vec!["{}".to_owned(), new.to_string()];
    assert_eq!(verify(&signers, &both), signed);
}

#[test]
fn any_of_the_keys_will_do() {
    let (first, second, other) = (
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
        KeyPair::generate().unwrap(),
    );
    let signers = signers(&Sigstore::new(), &[&first, &second]);
    let by = |key: &KeyPair, digest: &str, name: &str| {
        verify(&signers, &attached(simple_by_key(key, digest, name)))
    };
    let name = "ghcr.io/berriai/litellm";
    for (key, index) in [(&first, 0), (&second, 1)] {
        assert_eq!(
            by(key, DIGEST, name),
            Ok(Signed {
                by: format!("key {}", index + 1),
                key: Some(index),
            })
        );
    }
    assert_eq!(
        by(&other, DIGEST, name).unwrap_err(),
        "it is signed, but not by key 1 or key 2"
    );
    assert_eq!(
        by(&first, OTHER, name).unwrap_err(),
        format!("the signature is for another image: {OTHER}")
    );
    assert_eq!(
        by(&first, DIGEST, "ghcr.io/berriai/litellm-database:v1").unwrap_err(),
        "the signature is for another name: ghcr.io/berriai/litellm-database:v1"
    );
    assert_eq!(
        verify(&signers, &Attached::default()).unwrap_err(),
        "it has no signature"
    );
}

/// Each of these is refused, and says why.
#[test]
fn what_does_not_hold() {
    let sigstore = Sigstore::new();
    let signers = signers(&sigstore, &[]);
    let signing = Signing::default();
    let workflow =
        "https://github.com/mallory/project-releaser/.github/workflows/release.yml@refs/heads/main";
    let branch =
        "https://github.com/BerriAI/project-releaser/.github/workflows/release.yml@refs/heads/x";
    let mut found = Vec::new();
    for (what, signing) in [
        (
            "another workflow",
            Signing {
                subject: workflow,
                ..signing
            },
        ),
        (
            "another branch",
            Signing {
                subject: branch,
                ..signing
            },
        ),
        (
            "another issuer",
            Signing {
                issuer: "https://accounts.example.com",
                ..signing
            },
        ),
        (
            "after the certificate",
            Signing {
                time: NOON + 86_400,
                ..signing
            },
        ),
        (
            "before the certificate",
            Signing {
                time: NOON - 86_400,
                ..signing
            },
        ),
    ] {
        for attached in [
            attached(sigstore.simple(DIGEST, signing)),
            bundle(&sigstore.bundle(DIGEST, SIGN, signing)),
        ] {
            found.push(format!(
                "{what}: {}",
                verify(&signers, &attached).unwrap_err()
            ));
        }
    }

    let mut simple =
        |what: &str, change: &dyn Fn(&mut litellm_units::operations::trust::signature::Simple)| {
            let mut simple = sigstore.simple(DIGEST, signing);
            change(&mut simple);
            found.push(format!(
                "{what}: {}",
                verify(&signers, &attached(simple)).unwrap_err()
            ));
        };
    simple("no log entry", &|simple| {
        simple.annotations.remove("dev.sigstore.cosign/bundle");
    });
    simple("another text", &|simple| simple.payload.push(b' '));
    simple("no signature", &|simple| {
        simple
            .annotations
            .remove("dev.cosignproject.cosign/signature");
    });
    simple("the log entry of another signature", &|simple| {
        let name = "dev.sigstore.cosign/bundle";
        let other = sigstore.simple(DIGEST, signing).annotations[name].clone();
        simple.annotations.insert(name.to_owned(), other);
    });
    simple("another time than the log's", &|simple| {
        let entry = simple
            .annotations
            .get_mut("dev.sigstore.cosign/bundle")
            .unwrap();
        *entry = entry.replace(&NOON.to_string(), &(NOON + 60).to_string());
    });
    let stranger = Sigstore::new();
    simple("other logs", &|simple| {
        *simple = stranger.simple(DIGEST, signing);
    });
    let mut new = |what: &str, change: &dyn Fn(&mut Value)| {
        let mut value = sigstore.bundle(DIGEST, SIGN, signing);
        change(&mut value);
        found.push(format!(
            "{what}: {}",
            verify(&signers, &bundle(&value)).unwrap_err()
        ));
    };
    new("bundle, another image", &|value| {
        *value = sigstore.bundle(OTHER, SIGN, signing);
    });
    new("bundle, an attestation", &|value| {
        *value = sigstore.bundle(DIGEST, "https://slsa.dev/provenance/v1", signing);
    });
    new("bundle, no log entry", &|value| {
        value["verificationMaterial"]["tlogEntries"] = Value::Array(Vec::new());
    });
    new("bundle, no proof", &|value| {
        value["verificationMaterial"]["tlogEntries"][0]
            .as_object_mut()
            .unwrap()
            .remove("inclusionProof");
    });
    new("bundle, no time", &|value| {
        value["verificationMaterial"]["tlogEntries"][0]
            .as_object_mut()
            .unwrap()
            .remove("inclusionPromise");
    });
    new("bundle, other logs", &|value| {
        *value = stranger.bundle(DIGEST, SIGN, signing);
    });
    // The logs are the right ones, but not who issued the certificate.
    let stranger = sigstore.under_another_authority();
    for attached in [
        attached(stranger.simple(DIGEST, signing)),
        bundle(&stranger.bundle(DIGEST, SIGN, signing)),
    ] {
        found.push(format!(
            "another authority: {}",
            verify(&signers, &attached).unwrap_err()
        ));
    }
    let found: String = found
        .iter()
        .map(|line| line.split(" for log ID ").next().unwrap().to_owned() + "\n")
        .collect();
    assert_eq!(found, include_str!("fixtures/refused-signatures"));
}

//! Verifies that an image has a signature of a trusted signer. It asks neither a registry nor a
//! log: the caller passes the signatures and the trusted root.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_verify::crypto::VerificationKey;
use sigstore_verify::trust_root::{SIGSTORE_PRODUCTION_TRUSTED_ROOT, TrustedRoot};
use sigstore_verify::types::{
    Bundle, DerCertificate, DerPublicKey, Sha256Hash, SignatureBytes, SignatureContent,
};
use sigstore_verify::{IdentityMatcher, PublicKeyVerificationPolicy, VerificationPolicy, Verifier};

use super::cryptography;
use super::known::SignerIdentity;
use crate::error::{Failure, Result};
use crate::image::DIGEST_PREFIX;

/// The type of cosign 3's statement about an image that it signs; an attestation has another one.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";

/// The signatures of one image in a registry.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    /// Signatures of cosign before 3.
    pub simple: Vec<Simple>,
    /// Bundles of cosign 3, as JSON.
    pub bundles: Vec<String>,
}

impl Attached {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.simple.is_empty() && self.bundles.is_empty()
    }
}

/// A signature of cosign before 3: the signed text, and annotations with the rest.
#[derive(Clone, Debug)]
pub struct Simple {
    /// The signed text, which names the image.
    pub payload: Vec<u8>,
    /// Signature, certificate, chain, log entry, timestamp.
    pub annotations: BTreeMap<String, String>,
}

/// The signers whose signatures are accepted.
pub struct Signers {
    /// Public keys, each with a name for messages.
    keys: Vec<(String, DerPublicKey)>,
    identity: Option<SignerIdentity>,
    verifier: Verifier,
}

/// The image that has to be signed.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The manifest's digest.
    pub digest: &'a str,
    /// The names that the signature may contain.
    pub names: &'a [String],
}

/// A valid signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Who signed.
    pub by: String,
    /// The index of the key, if Podman can verify the signature, too: it does not read cosign 3's
    /// bundles.
    pub key: Option<usize>,
}

/// Reads the trusted root of Sigstore: its certificate authorities, logs and timestamp authorities.
///
/// # Errors
/// When the file is damaged.
pub fn trusted_root(file: Option<(&Path, &str)>) -> Result<TrustedRoot> {
    let text = file.map_or(SIGSTORE_PRODUCTION_TRUSTED_ROOT, |(_, text)| text);
    TrustedRoot::from_json(text).map_err(|error| match file {
        Some((path, _)) => damaged(path, &error),
        None => error.into(),
    })
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    Failure::new(format!("{}: {error}", path.display()))
        .hint("write it in the form of Sigstore's trusted_root.json, or remove it to use the one that comes with litellm-units")
        .into()
}

impl Signers {
    /// Accepts signatures by one of these keys (a name for messages, and its PEM form), or by this
    /// identity.
    ///
    /// # Errors
    /// When a key or the file with the trusted root is damaged.
    pub fn new(
        keys: &[(String, String)],
        identity: Option<SignerIdentity>,
        root: Option<(&Path, &str)>,
    ) -> Result<Self> {
        cryptography::install();
        let keys = keys
            .iter()
            .map(|(name, pem)| {
                let key =
                    DerPublicKey::from_pem(pem).map(|key| (VerificationKey::from_spki(&key), key));
                match key {
                    Ok((Ok(_), key)) => Ok((name.clone(), key)),
                    Ok((Err(error), _)) => Err(unusable(name, &error)),
                    Err(error) => Err(unusable(name, &error)),
                }
            })
            .collect::<Result<_>>()?;
        let verifier = Verifier::new(&trusted_root(root)?).map_err(|error| match root {
            Some((path, _)) => damaged(path, &error),
            None => error.into(),
        })?;
        Ok(Self {
            keys,
            identity,
            verifier,
        })
    }

    /// Looks for a signature of this image by one of the signers.
    ///
    /// # Errors
    /// With the fault of each signature.
    pub fn verify(
        &self,
        attached: &Attached,
        subject: Subject,
    ) -> std::result::Result<Signed, Vec<String>> {
        if attached.is_empty() {
            return Err(vec!["it has no signature".to_owned()]);
        }
        let mut problems = Vec::new();
        let simple = attached.simple.iter();
        let bundles = attached.bundles.iter();
        let results = simple
            .map(|signature| self.verify_simple(signature, subject))
            .chain(bundles.map(|bundle| self.verify_bundle(bundle, subject)));
        for result in results {
            match result {
                Ok(signed) => return Ok(signed),
                Err(problem) if !problems.contains(&problem) => problems.push(problem),
                Err(_) => {}
            }
        }
        Err(problems)
    }

    fn verify_simple(
        &self,
        signature: &Simple,
        subject: Subject,
    ) -> std::result::Result<Signed, String> {
        claims(&signature.payload, subject)?;
        let annotation = |name: &str| signature.annotations.get(name).map(String::as_str);
        let encoded = annotation("dev.cosignproject.cosign/signature")
            .ok_or("the signature is missing from its annotations")?;
        let bytes = SignatureBytes::from_base64(encoded)
            .map_err(|error| format!("the signature is damaged: {error}"))?;
        let Some(certificate) = annotation("dev.sigstore.cosign/certificate") else {
            return self
                .keys
                .iter()
                .position(|(_, key)| {
                    VerificationKey::from_spki(key)
                        .is_ok_and(|key| key.verify(&signature.payload, &bytes).is_ok())
                })
                .map(|index| Signed {
                    by: self.keys[index].0.clone(),
                    key: Some(index),
                })
                .ok_or_else(|| format!("it is signed, but not by {}", self.names()));
        };
        let identity = self.identity()?;
        let bundle = bundle_of(
            encoded,
            certificate,
            annotation("dev.sigstore.cosign/chain").unwrap_or_default(),
            annotation("dev.sigstore.cosign/bundle"),
            annotation("dev.sigstore.cosign/rfc3161timestamp"),
        )?;
        self.verifier
            .verify(signature.payload.as_slice(), &bundle, &policy(identity))
            .map_err(|error| error.to_string())?;
        Ok(by(identity))
    }

    fn verify_bundle(&self, text: &str, subject: Subject) -> std::result::Result<Signed, String> {
        let bundle =
            Bundle::from_json(text).map_err(|error| format!("a damaged bundle: {error}"))?;
        let SignatureContent::DsseEnvelope(envelope) = &bundle.content else {
            return Err("a bundle without a statement about the image".to_owned());
        };
        let statement: Statement = serde_json::from_slice(envelope.payload.as_bytes())
            .map_err(|error| format!("a damaged statement: {error}"))?;
        if envelope.payload_type != "application/vnd.in-toto+json"
            || statement.predicate_type != SIGNED
        {
            return Err(format!(
                "a statement about the image, but no signature of it ({})",
                statement.predicate_type
            ));
        }
        let digest = subject.digest.trim_start_matches(DIGEST_PREFIX);
        let digest = Sha256Hash::from_hex(digest).map_err(|error| error.to_string())?;
        if bundle.signing_certificate().is_some() {
            let identity = self.identity()?;
            self.verifier
                .verify(digest, &bundle, &policy(identity))
                .map_err(|error| error.to_string())?;
            return Ok(by(identity));
        }
        self.keys
            .iter()
            .find(|(_, key)| {
                // Like Podman, without the transparency log for signatures by a key.
                let policy = PublicKeyVerificationPolicy::new(key.clone()).skip_tlog_unsafe();
                self.verifier.verify(digest, &bundle, &policy).is_ok()
            })
            .map(|(name, _)| Signed {
                by: name.clone(),
                key: None,
            })
            .ok_or_else(|| format!("it is signed, but not by {}", self.names()))
    }

    fn identity(&self) -> std::result::Result<SignerIdentity, String> {
        self.identity
            .ok_or_else(|| format!("it is signed, but not by {}", self.names()))
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.keys.iter().map(|(name, _)| name.as_str()).collect();
        names.join(" or ")
    }
}

fn unusable(name: &str, error: &dyn std::fmt::Display) -> anyhow::Error {
    Failure::new(format!("{name} can't be used: {error}"))
        .hint("give another key: `litellm-units trust --key FILE`")
        .into()
}

fn policy(identity: SignerIdentity) -> VerificationPolicy {
    let subject = IdentityMatcher::Uri(identity.subject.to_owned());
    VerificationPolicy::new(subject, identity.issuer)
}

fn by(identity: SignerIdentity) -> Signed {
    Signed {
        by: identity.subject.to_owned(),
        key: None,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    predicate_type: String,
}

/// The text that cosign before 3 signs.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Named,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Named {
    docker_reference: String,
}

/// Whether the signed text is about this image.
fn claims(payload: &[u8], subject: Subject) -> std::result::Result<(), String> {
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|error| format!("the signed text is damaged: {error}"))?;
    let critical = payload.critical;
    if critical.kind != "cosign container image signature" {
        return Err(format!("a signature of another kind: {:?}", critical.kind));
    }
    let digest = critical.image.docker_manifest_digest;
    if digest != subject.digest {
        return Err(format!("the signature is for another image: {digest}"));
    }
    let reference = critical.identity.docker_reference;
    if !subject
        .names
        .iter()
        .any(|name| name == repository(&reference))
    {
        return Err(format!("the signature is for another name: {reference}"));
    }
    Ok(())
}

/// The name without tag and digest.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or_default();
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    name[path..]
        .find(':')
        .map_or(name, |colon| &name[..path + colon])
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LogEntry {
    signed_entry_timestamp: String,
    payload: LogPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
struct Body {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Timestamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

/// Converts the annotations of a signature to a current bundle, which is what can be verified.
fn bundle_of(
    signature: &str,
    certificate: &str,
    chain: &str,
    entry: Option<&str>,
    timestamp: Option<&str>,
) -> std::result::Result<Bundle, String> {
    let entry = entry.ok_or("the entry in the transparency log is missing")?;
    let entry: LogEntry =
        serde_json::from_str(entry).map_err(|error| format!("a damaged log entry: {error}"))?;
    let body = SignatureBytes::from_base64(&entry.payload.body)
        .map_err(|error| format!("a damaged log entry: {error}"))?;
    let body: Body = serde_json::from_slice(body.as_bytes())
        .map_err(|error| format!("a damaged log entry: {error}"))?;
    let log = Sha256Hash::from_hex(&entry.payload.log_id)
        .map_err(|error| format!("a damaged log entry: {error}"))?;
    let certificates: Vec<Value> = pem_blocks(certificate)
        .chain(pem_blocks(chain))
        .map(|pem| {
            DerCertificate::from_pem(pem)
                .map(|certificate| json!({"rawBytes": certificate.to_base64()}))
                .map_err(|error| format!("a damaged certificate: {error}"))
        })
        .collect::<std::result::Result<_, String>>()?;
    let timestamps: Vec<Value> = timestamp
        .map(|text| {
            serde_json::from_str::<Timestamp>(text)
                .map(|timestamp| json!({"signedTimestamp": timestamp.token}))
                .map_err(|error| format!("a damaged timestamp: {error}"))
        })
        .into_iter()
        .collect::<std::result::Result<_, String>>()?;
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle+json;version=0.1",
        "verificationMaterial": {
            "x509CertificateChain": {"certificates": certificates},
            "tlogEntries": [{
                "logIndex": entry.payload.log_index.to_string(),
                "logId": {"keyId": log.to_base64()},
                "kindVersion": {"kind": body.kind, "version": body.version},
                "integratedTime": entry.payload.integrated_time.to_string(),
                "inclusionPromise": {"signedEntryTimestamp": entry.signed_entry_timestamp},
                "canonicalizedBody": entry.payload.body,
            }],
            "timestampVerificationData": {"rfc3161Timestamps": timestamps},
        },
        "messageSignature": {"signature": signature},
    });
    Bundle::from_json(&bundle.to_string()).map_err(|error| format!("a damaged signature: {error}"))
}

fn pem_blocks(text: &str) -> impl Iterator<Item = &str> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .filter(|block| block.ends_with(END))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_and_digest() {
        for (reference, name) in [
            ("ghcr.io/berriai/litellm", "ghcr.io/berriai/litellm"),
            ("ghcr.io/berriai/litellm:v1", "ghcr.io/berriai/litellm"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b"),
            ("127.0.0.1:5000/a/b:v1@sha256:1", "127.0.0.1:5000/a/b"),
        ] {
            assert_eq!(repository(reference), name);
        }
    }

    #[test]
    fn what_comes_with_the_program_can_be_used() {
        let keys = [(
            "LiteLLM's key".to_owned(),
            super::super::LITELLM_KEY.to_owned(),
        )];
        let identity = Some(super::super::known::IDENTITY);
        assert!(Signers::new(&keys, identity, None).is_ok());
    }
}

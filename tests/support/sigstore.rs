//! A certificate authority, a certificate log and a transparency log of the test's own, and what
//! cosign would leave in a registry with them.

use std::collections::BTreeMap;

use litellm_units::operations::trust::known::IDENTITY;
use litellm_units::operations::trust::signature::Attached;
pub(crate) use litellm_units::operations::trust::signature::Simple;
use litellm_units::random::hex;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey, date_time_ymd,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sigstore_verify::types::SignatureBytes;
use x509_cert::der::{Decode, Encode};

/// 2025-01-01T12:00:00Z, when certificates of that day are valid.
pub(crate) const NOON: i64 = 1_735_732_800;

/// What is signed, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signing<'a> {
    /// The name in the signed text.
    pub name: &'a str,
    pub subject: &'a str,
    pub issuer: &'a str,
    /// When the log says that it got the entry.
    pub time: i64,
}

impl Default for Signing<'_> {
    fn default() -> Self {
        Self {
            name: "ghcr.io/berriai/litellm",
            subject: IDENTITY.subject,
            issuer: IDENTITY.issuer,
            time: NOON,
        }
    }
}

pub(crate) struct Sigstore {
    authority: Issuer<'static, KeyPair>,
    root: Vec<u8>,
    certificates: KeyPair,
    log: KeyPair,
}

fn base64(bytes: &[u8]) -> String {
    SignatureBytes::from_bytes(bytes).to_base64()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

/// DER: a tag, a length below 256, the content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    match u8::try_from(content.len()).unwrap() {
        length @ 0..=127 => [&[tag, length], content].concat(),
        length => [&[tag, 0x81, length], content].concat(),
    }
}

impl Sigstore {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        parameters.not_before = date_time_ymd(2024, 1, 1);
        parameters.not_after = date_time_ymd(2044, 1, 1);
        let root = parameters.self_signed(&key).unwrap().der().to_vec();
        Self {
            authority: Issuer::new(parameters, key),
            root,
            certificates: KeyPair::generate().unwrap(),
            log: KeyPair::generate().unwrap(),
        }
    }

    /// The same logs, and an authority that nobody trusts.
    pub(crate) fn under_another_authority(self) -> Self {
        let Self {
            authority, root, ..
        } = Self::new();
        Self {
            authority,
            root,
            ..self
        }
    }

    /// What a host has to trust: `trusted_root.json`.
    pub(crate) fn trusted_root(&self) -> String {
        let log = |key: &KeyPair, name: &str| {
            let key = key.subject_public_key_info();
            json!({
                "baseUrl": format!("https://{name}.example.com"),
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": base64(&key),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2024-01-01T00:00:00Z"},
                },
                "logId": {"keyId": base64(&sha256(&key))},
            })
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.log, "rekor")],
            "ctlogs": [log(&self.certificates, "ctfe")],
            "certificateAuthorities": [{
                "subject": {"organization": "example.com", "commonName": "test"},
                "uri": "https://fulcio.example.com",
                "certChain": {"certificates": [{"rawBytes": base64(&self.root)}]},
                "validFor": {"start": "2024-01-01T00:00:00Z"},
            }],
            "timestampAuthorities": [],
        })
        .to_string()
    }

    /// A certificate of one day, with what the certificate log says of it.
    fn certificate(&self, key: &KeyPair, signing: Signing) -> Vec<u8> {
        let mut parameters = CertificateParams::default();
        parameters.serial_number = Some(SerialNumber::from(7));
        parameters.not_before = date_time_ymd(2025, 1, 1);
        parameters.not_after = date_time_ymd(2025, 1, 2);
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        parameters.subject_alt_names = vec![SanType::URI(signing.subject.try_into().unwrap())];
        // Fulcio's extension with the issuer of the identity.
        parameters.custom_extensions = vec![CustomExtension::from_oid_content(
            &[1, 3, 6, 1, 4, 1, 57264, 1, 8],
            der(0x0c, signing.issuer.as_bytes()),
        )];
        let before = parameters.signed_by(key, &self.authority).unwrap();
        let before = x509_cert::Certificate::from_der(before.der()).unwrap();
        let text = before.tbs_certificate.to_der().unwrap();

        // RFC 6962, 3.2: what the log signs, and the list of such signatures.
        let time = (signing.time.unsigned_abs() * 1000).to_be_bytes();
        let issuer = sha256(&self.authority.key().subject_public_key_info());
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        let signed = [
            &[0, 0][..],
            &time,
            &[0, 1],
            &issuer,
            &length[1..],
            &text,
            &[0, 0],
        ]
        .concat();
        let signature = self.certificates.sign(&signed).unwrap();
        let log = sha256(&self.certificates.subject_public_key_info());
        let two = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let entry = [
            &[0][..],
            &log,
            &time,
            &[0, 0, 4, 3],
            &two(&signature),
            &signature,
        ]
        .concat();
        let entry = [&two(&entry)[..], &entry].concat();
        let list = [&two(&entry)[..], &entry].concat();
        parameters
            .custom_extensions
            .push(CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2],
                der(0x04, &list),
            ));
        let certificate = parameters.signed_by(key, &self.authority).unwrap();
        certificate.der().to_vec()
    }

    /// The log's promise to have this entry.
    fn promise(&self, body: &[u8], time: i64) -> Vec<u8> {
        let text = format!(
            "{{\"body\":\"{}\",\"integratedTime\":{time},\"logID\":\"{}\",\"logIndex\":0}}",
            base64(body),
            hex(&self.log_id()),
        );
        self.log.sign(text.as_bytes()).unwrap()
    }

    fn log_id(&self) -> Vec<u8> {
        sha256(&self.log.subject_public_key_info())
    }

    /// As cosign 2 signs without a key.
    pub(crate) fn simple(&self, digest: &str, signing: Signing) -> Simple {
        let payload = payload(digest, signing.name);
        let key = KeyPair::generate().unwrap();
        let certificate = pem(&self.certificate(&key, signing));
        let signature = base64(&key.sign(&payload).unwrap());
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hex(&sha256(&payload))}},
                "signature": {
                    "content": signature,
                    "publicKey": {"content": base64(certificate.as_bytes())},
                },
            },
        })
        .to_string();
        let promise = self.promise(body.as_bytes(), signing.time);
        let entry = json!({
            "SignedEntryTimestamp": base64(&promise),
            "Payload": {
                "body": base64(body.as_bytes()),
                "integratedTime": signing.time,
                "logIndex": 0,
                "logID": hex(&self.log_id()),
            },
        });
        let annotations = [
            ("dev.cosignproject.cosign/signature", signature),
            ("dev.sigstore.cosign/certificate", certificate),
            ("dev.sigstore.cosign/chain", pem(&self.root)),
            ("dev.sigstore.cosign/bundle", entry.to_string()),
        ];
        Simple {
            payload,
            annotations: annotations
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    /// As cosign 3 signs without a key; `kind` is what the statement says of the image.
    pub(crate) fn bundle(&self, digest: &str, kind: &str, signing: Signing) -> Value {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.trim_start_matches("sha256:")}}],
            "predicateType": kind,
            "predicate": {},
        })
        .to_string();
        let media = "application/vnd.in-toto+json";
        let signed = format!(
            "DSSEv1 {} {media} {} {statement}",
            media.len(),
            statement.len()
        );
        let key = KeyPair::generate().unwrap();
        let certificate = self.certificate(&key, signing);
        let signature = base64(&key.sign(signed.as_bytes()).unwrap());
        let envelope = json!({
            "payload": base64(statement.as_bytes()),
            "payloadType": media,
            "signatures": [{"sig": signature}],
        });
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {
                    "algorithm": "sha256",
                    "value": hex(&sha256(envelope.to_string().as_bytes())),
                },
                "payloadHash": {"algorithm": "sha256", "value": hex(&sha256(statement.as_bytes()))},
                "signatures": [{
                    "signature": signature,
                    "verifier": base64(pem(&certificate).as_bytes()),
                }],
            },
        })
        .to_string();
        // A log with this one entry.
        let root = base64(&sha256(&[&[0], body.as_bytes()].concat()));
        let head = format!("rekor.example.com\n1\n{root}\n");
        let signature = self.log.sign(head.as_bytes()).unwrap();
        let signature = base64(&[&self.log_id()[..4], &signature].concat());
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": base64(&certificate)},
                "tlogEntries": [{
                    "logIndex": "0",
                    "logId": {"keyId": base64(&self.log_id())},
                    "kindVersion": {"kind": "dsse", "version": "0.0.1"},
                    "integratedTime": signing.time.to_string(),
                    "inclusionPromise": {
                        "signedEntryTimestamp": base64(&self.promise(body.as_bytes(), signing.time)),
                    },
                    "inclusionProof": {
                        "logIndex": "0",
                        "rootHash": root,
                        "treeSize": "1",
                        "hashes": [],
                        "checkpoint": {
                            "envelope": format!("{head}\n\u{2014} rekor.example.com {signature}\n"),
                        },
                    },
                    "canonicalizedBody": base64(body.as_bytes()),
                }],
            },
            "dsseEnvelope": envelope,
        })
    }
}

/// As cosign 2 signs with a key.
pub(crate) fn simple_by_key(key: &KeyPair, digest: &str, name: &str) -> Simple {
    let payload = payload(digest, name);
    let signature = base64(&key.sign(&payload).unwrap());
    let annotations = [("dev.cosignproject.cosign/signature".to_owned(), signature)];
    Simple {
        payload,
        annotations: BTreeMap::from(annotations),
    }
}

/// What a registry has of one signature.
pub(crate) fn attached(simple: Simple) -> Attached {
    Attached {
        simple: vec![simple],
        bundles: Vec::new(),
    }
}

fn payload(digest: &str, name: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": {"docker-reference": name},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

fn pem(certificate: &[u8]) -> String {
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        base64(certificate)
    )
}

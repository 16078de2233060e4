//! The certificates in `certs/`: authorities that the gateway trusts beside those of its image.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::settings::text_of;
use crate::error::{Failure, PathContext, Result};
use crate::host::files::{files_below, link_below};
use crate::host::paths::Paths;
use crate::output::shell_word;

const BEGIN: &str = "-----BEGIN ";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Refuses files in which the gateway would find no certificate, and links: where they lead is not in the container.
/// Hidden files are left alone.
pub(crate) fn refuse_invalid(paths: &Paths) -> Result<()> {
    refuse_invalid_in(&paths.certificates())
}

fn refuse_invalid_in(directory: &Path) -> Result<()> {
    if let Some(link) = link_below(directory)? {
        let (path, word) = (link.display(), shell_word(&link));
        let hint = match link.canonicalize() {
            Ok(target) => format!(
                "replace it with a copy: `rm {word} && cp -r {} {word}`",
                shell_word(target)
            ),
            Err(_) => format!("remove it: `rm {word}`"),
        };
        return Err(Failure::config(format!(
            "{path} is a link, and the containers do not see where it leads"
        ))
        .hint(hint)
        .into());
    }
    if !directory.exists() {
        return Ok(());
    }
    for path in files_below(directory)? {
        if is_hidden(&path) {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|error| {
            Failure::config(format!("can't read {}: {error}", path.display()))
                .hint("make it readable: its owner must be the owner of the deployment")
        })?;
        check(&text_of(bytes, &path)?, &path)?;
    }
    Ok(())
}

/// Where distributions keep the public authorities in one file: Debian and its kin, Fedora and its kin, SUSE.
const PUBLIC: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The certificates of this host's public authorities and of `certs/`, and no line beside them.
pub(crate) fn authorities(paths: &Paths) -> Result<String> {
    let mut files = Vec::new();
    files.extend(
        PUBLIC
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists())
            .map(Path::to_owned),
    );
    if paths.certificates().exists() {
        let own = files_below(&paths.certificates())?;
        files.extend(own.into_iter().filter(|path| !is_hidden(path)));
    }
    let mut all = String::new();
    for path in files {
        let bytes = std::fs::read(&path).path_context("can't read", &path)?;
        all.push_str(&certificates_of(&String::from_utf8_lossy(&bytes)));
    }
    Ok(all)
}

/// The certificates of a text in PEM form, without what stands between them.
fn certificates_of(text: &str) -> String {
    let mut certificates = String::new();
    let mut is_within = false;
    for line in text.lines().map(str::trim) {
        is_within |= line == CERTIFICATE;
        if is_within && !line.is_empty() {
            certificates.push_str(line);
            certificates.push('\n');
        }
        is_within &= line != END;
    }
    certificates
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Checks the text of one file; `path` is for messages only.
pub(crate) fn check(text: &str, path: &Path) -> Result<()> {
    check_text(text).map_err(
        |Invalid {
             line,
             problem,
             hint,
         }| {
            Failure::config(format!("{}, line {line}: {problem}", path.display()))
                .hint(hint)
                .into()
        },
    )
}

#[derive(Debug, PartialEq, Eq)]
struct Invalid {
    line: usize,
    problem: String,
    hint: &'static str,
}

const COPY: &str = "copy the file again; `openssl x509 -in FILE -noout -text` shows a valid one";

fn check_text(text: &str) -> std::result::Result<(), Invalid> {
    let wrong = |line: usize, problem: &str, hint| Invalid {
        line,
        problem: problem.to_owned(),
        hint,
    };
    let mut found = false;
    let mut lines = text.lines().map(str::trim).zip(1..);
    while let Some((line, begin)) = lines.next() {
        // Any text may stand between certificates.
        if !line.starts_with(BEGIN) {
            continue;
        }
        if line.contains("PRIVATE KEY") {
            return Err(wrong(
                begin,
                "is a private key, and certs/ is for certificates of authorities",
                "move the key away; for the gateway's use, put it into files/",
            ));
        }
        if line != CERTIFICATE {
            return Err(wrong(
                begin,
                "is no certificate",
                "keep only what begins with -----BEGIN CERTIFICATE-----",
            ));
        }
        let mut encoded = String::new();
        let end = loop {
            match lines.next() {
                Some((END, end)) => break end,
                Some((line, _)) if !line.starts_with("-----") => encoded.push_str(line),
                _ => return Err(wrong(begin, "this certificate has no end", COPY)),
            }
        };
        let is_valid = STANDARD
            .decode(&encoded)
            .is_ok_and(|der| is_certificate(&der));
        if !is_valid {
            let problem = format!("the certificate from here to line {end} is not valid");
            return Err(wrong(begin, &problem, COPY));
        }
        found = true;
    }
    if found {
        Ok(())
    } else {
        Err(wrong(
            1,
            "the file contains no certificate in PEM form",
            "convert it: `openssl x509 -inform der -in FILE -out FILE.pem`; or move it away",
        ))
    }
}

/// Whether it is a sequence of what is signed, the algorithm and the signature (RFC 5280, 4.1). The gateway's OpenSSL
/// looks at the rest.
fn is_certificate(der: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const BIT_STRING: u8 = 0x03;
    let parts = || {
        let (content, rest) = element(der, SEQUENCE)?;
        let (signed, content) = element(content, SEQUENCE)?;
        let (_, content) = element(content, SEQUENCE)?;
        let (_, end) = element(content, BIT_STRING)?;
        Some(!signed.is_empty() && rest.is_empty() && end.is_empty())
    };
    parts().unwrap_or(false)
}

/// The content of a DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, der) = der.split_first()?;
    let (&length, der) = der.split_first()?;
    let (length, der) = if length < 0x80 {
        (usize::from(length), der)
    } else {
        let (bytes, der) = der.split_at_checked(usize::from(length & 0x7f))?;
        let length = bytes.iter().try_fold(0usize, |all, byte| {
            all.checked_mul(256)?.checked_add(usize::from(*byte))
        })?;
        (length, der)
    };
    let (content, rest) = der.split_at_checked(length)?;
    (first == tag).then_some((content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::new(vec!["a.example".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap()
            .pem()
    }

    #[track_caller]
    fn refusal(text: &str) -> String {
        let Invalid { line, problem, .. } = check_text(text).unwrap_err();
        format!("{line}: {problem}")
    }

    #[test]
    fn certificates() {
        let one = certificate();
        check_text(&one).unwrap();
        check_text(&format!(
            "# ours\r\n{}\nmore\n{one}",
            one.replace('\n', "\r\n")
        ))
        .unwrap();
    }

    #[test]
    fn certificates_without_what_is_between() {
        let one = certificate();
        let text = format!("# ours\n\n{}\nmore\n\n{one}", one.replace('\n', "\r\n"));
        assert_eq!(certificates_of(&text), format!("{one}{one}"));
        assert_eq!(certificates_of("no certificate\n"), "");
    }

    #[test]
    fn links() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("certs");
        refuse_invalid_in(&below).unwrap();
        std::fs::create_dir_all(below.join("more")).unwrap();
        let outside = directory.path().join("ca.pem");
        std::fs::write(&outside, certificate()).unwrap();
        std::fs::copy(&outside, below.join("more/ca.pem")).unwrap();
        refuse_invalid_in(&below).unwrap();
        let link = below.join("more/link.pem");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert_eq!(
            refuse_invalid_in(&below).unwrap_err().to_string(),
            format!(
                "{} is a link, and the containers do not see where it leads",
                link.display()
            )
        );
    }

    #[test]
    fn what_is_none() {
        let one = certificate();
        let lines = one.lines().count();
        let none = "the file contains no certificate in PEM form";
        assert_eq!(refusal(""), format!("1: {none}"));
        assert_eq!(refusal("text\n"), format!("1: {none}"));
        let key = "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n";
        assert_eq!(
            refusal(&format!("{one}{key}")),
            format!(
                "{}: is a private key, and certs/ is for certificates of authorities",
                lines + 1
            )
        );
        let list = "\n-----BEGIN X509 CRL-----\nAA==\n-----END X509 CRL-----\n";
        assert_eq!(refusal(list), "2: is no certificate");
        let cut = &one[..one.len() / 2];
        assert_eq!(refusal(cut), "1: this certificate has no end");
        assert_eq!(
            refusal(&format!("{cut}\n{one}")),
            "1: this certificate has no end"
        );
        // A line is lost, damaged, or of another file.
        let without = |index: usize, instead: &str| {
            let mut text = one.lines().collect::<Vec<_>>();
            text[index] = instead;
            text.join("\n")
        };
        let expected = format!("1: the certificate from here to line {lines} is not valid");
        for instead in ["", "AAAA", "&&&&"] {
            assert_eq!(refusal(&without(2, instead)), expected, "{instead}");
        }
        let other = "-----BEGIN CERTIFICATE-----\nMAMBAQE=\n-----END CERTIFICATE-----\n";
        assert_eq!(
            refusal(other),
            "1: the certificate from here to line 3 is not valid"
        );
    }
}

//! Podman's own signature policy for LiteLLM's images: what `trust` sets and removes.
//!
//! What that policy can't express, this program verifies at a pull (`verification`). It then has
//! Podman accept the image by its digest only.
//!
//! Podman looks up the policy by an image's name, and the signature at the place that
//! `registries.conf` gives for that name. So the policy has the names, and `registries.d` has the
//! names and those places.

#[cfg(feature = "signatures")]
mod cryptography;
pub mod known;
pub(crate) mod policy;
#[cfg(feature = "signatures")]
mod registry;
#[cfg(feature = "signatures")]
pub mod signature;
#[cfg(feature = "signatures")]
pub(crate) mod verification;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::deployment::images_lock::ImagesLock;
use crate::error::{Failure, PathContext, Result};
use crate::host::files;
use crate::host::paths::Paths;
use crate::host::podman::Podman;
use crate::host::podman::PodmanVersion;
use crate::host::registries::covering;
use crate::image::ImageReference;
use crate::quadlet::plan::UnitChange;
use crate::yaml;
use policy::{Demand, Policy, Scopes};

/// Where LiteLLM publishes its images.
pub const PUBLISHED: &str = "ghcr.io/berriai";

/// LiteLLM's images there.
const REPOSITORIES: [&str; 4] = [
    "litellm",
    "litellm-database",
    "litellm-non_root",
    "litellm-spend_logs",
];

/// The first key that LiteLLM signed its images with, of [`known::KEYS`].
pub const LITELLM_KEY: &str = include_str!("trust/litellm.pub");

/// A file of `registries.d` that this program alone writes.
const REGISTRIES_FILE: &str = "litellm-units.yaml";

/// Whether LiteLLM signs this release. An image that does not say which release it is counts as
/// signed.
#[must_use]
pub fn is_signed_release(image: &ImageReference) -> bool {
    known::way(image) != Some(known::SigningMethod::Unsigned)
}

/// Whether the image's name is below `scope`.
#[must_use]
pub fn is_below(image: &ImageReference, scope: &str) -> bool {
    image
        .name()
        .strip_prefix(scope)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The files that `trust` reads and writes.
#[derive(Clone, Debug)]
pub struct Places {
    /// `policy.json`: a user's replaces the administrator's.
    pub policy: PathBuf,
    /// The administrator's, which applies to a user who has none.
    site_policy: Option<PathBuf>,
    /// `registries.d`: a user's replaces the administrator's.
    registries: PathBuf,
    site_registries: Option<PathBuf>,
    /// The first public key.
    pub key: PathBuf,
    /// Files with the trusted authorities and logs of Sigstore; the first that exists applies.
    #[cfg_attr(
        not(feature = "signatures"),
        expect(dead_code, reason = "Podman asks no one else")
    )]
    sigstore: Vec<PathBuf>,
    /// What was set, and what was there before.
    record: PathBuf,
}

impl Places {
    /// The files on this host.
    #[must_use]
    pub fn of(paths: &Paths) -> Self {
        let own = paths.own_configuration();
        let containers = paths.containers();
        let site = paths.site_containers();
        Self {
            sigstore: paths.sigstore_roots(),
            policy: containers.join("policy.json"),
            site_policy: site.as_ref().map(|site| site.join("policy.json")),
            registries: containers.join("registries.d"),
            site_registries: site.map(|site| site.join("registries.d")),
            key: own.join("trust.pub"),
            record: own.join("trust.json"),
        }
    }

    /// The policy that applies; `None` if there is none, and Podman pulls nothing.
    ///
    /// # Errors
    /// When it can't be read or is damaged.
    pub fn effective_policy(&self) -> Result<Option<Policy>> {
        for path in [Some(&self.policy), self.site_policy.as_ref()]
            .into_iter()
            .flatten()
        {
            if let Some(text) = read(path)? {
                return Policy::parse(&text, path).map(Some);
            }
        }
        Ok(None)
    }

    /// The file of one of the public keys, from 0.
    fn key_file(&self, index: usize) -> PathBuf {
        match index {
            0 => self.key.clone(),
            _ => self.key.with_file_name(format!("trust-{}.pub", index + 1)),
        }
    }

    /// Locks the files against changes by other processes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn lock(&self) -> Result<Option<Flock<File>>> {
        let Some(directory) = self.record.parent().filter(|directory| directory.is_dir()) else {
            // Nothing is set, so no other process adds to it.
            return Ok(None);
        };
        let file = File::open(directory).path_context("can't read", directory)?;
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(file) => Ok(Some(file)),
            Err((_, error)) => Err(error).path_context("can't lock", directory),
        }
    }

    /// Has Podman accept an image (`name@digest`) by its digest, after a signature by `signer` has
    /// been verified.
    ///
    /// # Errors
    /// As [`PolicyPlan::set`] and [`PolicyPlan::apply`].
    pub fn pin(&self, image: &str, signer: &str, host: HostFacts) -> Result<()> {
        let _lock = self.lock()?;
        let wish = Wish {
            verified: [(image.to_owned(), signer.to_owned())].into(),
            ..Wish::of(host)
        };
        PolicyPlan::set(self, &wish)?.apply()
    }

    /// The record of what was set.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn record(&self) -> Result<Option<TrustRecord>> {
        let Some(text) = read(&self.record)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::new(format!("{}, line {}: {error}", self.record.display(), error.line()))
                .hint(format!(
                    "remove litellm-units' scopes from {} by hand, remove this file, then run `litellm-units trust` again",
                    self.policy.display()
                ))
                .into()
        })
    }
}

/// What was set, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct TrustRecord {
    schema: u32,
    /// The scope of the images that need a signature.
    pub scope: String,
    /// Whether signatures are LiteLLM's, by a key or without one, and not those of other keys.
    #[serde(rename = "packaged_key")]
    pub is_litellm: bool,
    /// How many keys there are.
    #[serde(default = "one")]
    keys: usize,
    /// Images that this program has verified and Podman accepts by their digests, as `name@digest`,
    /// with their signers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub verified: BTreeMap<String, String>,
    /// What was added to the policy.
    scopes: Scopes,
    /// What the policy may still have of an earlier change, until this one is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stale: Vec<String>,
    /// The policy without that.
    before: String,
    /// Whether that is a copy of the administrator's policy, made since the user had none.
    copied: bool,
    /// Links to the administrator's files of `registries.d`, made since the user had none.
    links: BTreeMap<PathBuf, PathBuf>,
}

fn one() -> usize {
    1
}

impl TrustRecord {
    /// The images that are accepted without a signature, each by its digest.
    pub fn accepted(&self) -> impl Iterator<Item = &str> {
        self.scopes
            .keys()
            .map(String::as_str)
            .filter(|scope| scope.contains('@') && !self.verified.contains_key(*scope))
    }

    /// Every scope of ours that the policy may have.
    fn own_scopes(&self) -> impl Iterator<Item = &String> + Clone {
        self.scopes.keys().chain(&self.stale)
    }

    /// The files with the keys.
    pub fn key_files(&self, places: &Places) -> impl Iterator<Item = PathBuf> {
        (0..self.keys).map(|index| places.key_file(index))
    }
}

/// What counts of the host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// What `registries.conf` makes of names, as `podman info` has it.
    pub registries: Value,
    /// Whether a requirement of Podman's policy may list several keys.
    pub lists_keys: bool,
}

impl HostFacts {
    /// The first version that knows such a list. Podman refuses a policy with a word that it does
    /// not know.
    const LISTS_KEYS: PodmanVersion = PodmanVersion { major: 5, minor: 3 };

    /// Asks Podman.
    ///
    /// # Errors
    /// When Podman can't tell.
    pub async fn of(podman: &Podman) -> Result<Self> {
        Ok(Self {
            registries: podman.registries().await?,
            lists_keys: podman.version().await? >= Self::LISTS_KEYS,
        })
    }
}

/// The requested policy.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The new scope of the images that need a signature; `None` keeps the current one.
    pub scope: Option<String>,
    /// The new keys in PEM form; none keeps the current ones.
    pub keys: Vec<String>,
    /// Images to accept without a signature, as `name@digest`.
    pub accept: Vec<String>,
    /// Images that were verified, as `name@digest`, with their signers.
    pub verified: BTreeMap<String, String>,
    /// What counts of the host.
    pub host: HostFacts,
}

impl Wish {
    /// Keeps everything as it is.
    #[must_use]
    pub fn of(host: HostFacts) -> Self {
        Self {
            host,
            ..Self::default()
        }
    }
}

/// The changes to make.
#[derive(Debug)]
pub struct PolicyPlan {
    /// The files that differ, in an order that allows an interruption after each.
    pub changes: Vec<UnitChange>,
    /// Links to make: the link, and what it points to.
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// Links to remove.
    pub unlinks: Vec<PathBuf>,
    /// The record after that; none after a removal.
    pub record: Option<TrustRecord>,
    record_path: PathBuf,
}

impl PolicyPlan {
    /// Plans the changes for the wish.
    ///
    /// # Errors
    /// When a file is damaged, or a foreign rule covers these images: it is never replaced or
    /// loosened.
    pub fn set(places: &Places, wish: &Wish) -> Result<Self> {
        let record = places.record()?;
        let scope = wish
            .scope
            .clone()
            .or_else(|| record.as_ref().map(|record| record.scope.clone()))
            .unwrap_or_else(|| PUBLISHED.to_owned());
        let (keys, is_litellm) = keys(places, record.as_ref(), wish)?;

        let (base, base_path, copied) = base(places, record.as_ref())?;
        let policy = Policy::parse(&base, &base_path)?;
        refuse_foreign(&policy, &scope)?;
        let key_files: Vec<PathBuf> = (0..keys.len())
            .map(|index| places.key_file(index))
            .collect();
        let by_policy = if wish.host.lists_keys {
            &key_files[..]
        } else {
            &key_files[..1]
        };
        let mut scopes = demands(&scope, is_litellm, by_policy);
        // An image that was verified by a key that no longer applies has to be verified again.
        let mut verified = BTreeMap::new();
        if let Some(record) = &record {
            let mut old = record.key_files(places).map(|path| read(&path));
            let still = |text: Result<Option<String>>| {
                text.is_ok_and(|text| text.is_none_or(|text| keys.contains(&text)))
            };
            if record.is_litellm == is_litellm && old.all(still) {
                verified.clone_from(&record.verified);
            }
        }
        verified.extend(wish.verified.clone());
        let accepted = record.iter().flat_map(TrustRecord::accepted);
        let signed: Vec<String> = verified.keys().cloned().collect();
        let pinned = accepted
            .chain(wish.accept.iter().map(String::as_str))
            .chain(signed.iter().map(String::as_str));
        for image in pinned {
            let requirements = json!([{"type": "insecureAcceptAnything"}]);
            let inside = image
                .strip_prefix(scope.as_str())
                .is_some_and(|rest| rest.starts_with(['/', '@']));
            // A foreign rule stays foreign.
            if inside && !policy.has(image, &requirements) {
                scopes.insert(image.to_owned(), requirements);
            }
        }
        verified.retain(|image, _| scopes.contains_key(image));

        let links = links(places, record.as_ref())?;
        let registries = places.registries.join(REGISTRIES_FILE);
        let namespaces = locations(&scope, &wish.host.registries);
        let yaml = registries_yaml(places, &links, &namespaces)?;
        let new = TrustRecord {
            schema: 1,
            scope,
            is_litellm,
            keys: keys.len(),
            verified,
            before: base,
            copied,
            links: links.clone(),
            scopes,
            stale: Vec::new(),
        };
        // Until the policy is replaced, the record names what the old one has too. Otherwise, after an interruption, the
        // earlier scopes would count as an operator's own and stay for ever.
        let mut both = new.clone();
        let earlier = record.iter().flat_map(TrustRecord::own_scopes).cloned();
        both.stale = earlier
            .filter(|scope| !new.scopes.contains_key(scope))
            .collect();
        let mut changes = Vec::new();
        let old = read(&places.record)?;
        push(&mut changes, &places.record, old, Some(both.text()?));
        for (path, key) in key_files.iter().zip(keys) {
            push(&mut changes, path, read(path)?, Some(key));
        }
        push(&mut changes, &registries, read(&registries)?, Some(yaml));
        let text = policy.with(&new.scopes);
        push(
            &mut changes,
            &places.policy,
            read(&places.policy)?,
            Some(text),
        );
        push(
            &mut changes,
            &places.record,
            Some(both.text()?),
            Some(new.text()?),
        );
        for path in record.iter().flat_map(|record| record.key_files(places)) {
            if !key_files.contains(&path) {
                push(&mut changes, &path, read(&path)?, None);
            }
        }
        let unlinks = record
            .into_iter()
            .flat_map(|record| record.links)
            .filter(|(link, target)| !new.links.contains_key(link) && points_to(link, target))
            .map(|(link, _)| link)
            .collect();
        let missing = links
            .into_iter()
            .filter(|(link, target)| !points_to(link, target))
            .collect();
        Ok(Self {
            changes,
            links: missing,
            unlinks,
            record: Some(new),
            record_path: places.record.clone(),
        })
    }

    /// Plans the removal of everything that `trust` has set; `None` if it was never set.
    ///
    /// # Errors
    /// When a file is damaged.
    pub fn remove(places: &Places) -> Result<Self> {
        let mut plan = Self {
            changes: Vec::new(),
            links: BTreeMap::new(),
            unlinks: Vec::new(),
            record: None,
            record_path: places.record.clone(),
        };
        let Some(record) = places.record()? else {
            return Ok(plan);
        };
        let changes = &mut plan.changes;
        if let Some(present) = read(&places.policy)? {
            let (base, _, copied) = base(places, Some(&record))?;
            let is_theirs = match &places.site_policy {
                Some(site) => copied && read(site)?.as_deref() == Some(base.as_str()),
                None => false,
            };
            let after = (!is_theirs).then_some(base);
            push(changes, &places.policy, Some(present), after);
        }
        let mut ours = vec![places.registries.join(REGISTRIES_FILE)];
        ours.extend(record.key_files(places));
        ours.push(places.record.clone());
        for path in ours {
            push(changes, &path, read(&path)?, None);
        }
        plan.unlinks = record
            .links
            .into_iter()
            .filter(|(link, target)| points_to(link, target))
            .map(|(link, _)| link)
            .collect();
        Ok(plan)
    }

    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.links.is_empty() && self.unlinks.is_empty()
    }

    /// The files that differ, but for this program's own record.
    pub fn visible(&self) -> impl Iterator<Item = &UnitChange> {
        self.changes
            .iter()
            .filter(|change| change.path != self.record_path)
    }

    /// Makes the changes, one atomic step for each file.
    ///
    /// # Errors
    /// When a file can't be written. Each file is then either old or new, and the next run
    /// continues.
    pub fn apply(&self) -> Result<()> {
        for (link, target) in &self.links {
            make_parent(link)?;
            // An existing link is one of ours to a file that no longer exists.
            match fs::remove_file(link) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).path_context("can't replace", link);
                }
                _ => {}
            }
            std::os::unix::fs::symlink(target, link).path_context("can't create", link)?;
        }
        for change in &self.changes {
            match &change.after {
                Some(text) => {
                    make_parent(&change.path)?;
                    let mode = mode(&change.path);
                    files::write_atomically(&change.path, text.as_bytes(), mode)?;
                }
                None => remove(&change.path)?,
            }
        }
        for link in &self.unlinks {
            remove(link)?;
        }
        Ok(())
    }
}

impl TrustRecord {
    fn text(&self) -> Result<String> {
        let text =
            serde_json::to_string_pretty(self).context("can't write the record of the policy")?;
        Ok(text + "\n")
    }
}

/// The policy without what was set before, the file that it comes from, and whether it is a copy of
/// the administrator's.
fn base(places: &Places, record: Option<&TrustRecord>) -> Result<(String, PathBuf, bool)> {
    let site = match &places.site_policy {
        Some(path) => read(path)?.map(|text| (text, path.clone(), true)),
        None => None,
    };
    match (read(&places.policy)?, record) {
        (Some(text), None) => Ok((text, places.policy.clone(), false)),
        (Some(text), Some(record)) => {
            let before = Policy::parse(&record.before, &places.policy)?;
            // It was not edited since, so the earlier text is restored byte for byte.
            if before.with(&record.scopes) != text {
                let policy = Policy::parse(&text, &places.policy)?;
                let base = policy.without(record.own_scopes());
                return Ok((base, places.policy.clone(), record.copied));
            }
            match site {
                // The administrator may have edited the original of the copy.
                Some(site) if record.copied => Ok(site),
                _ => Ok((record.before.clone(), places.policy.clone(), record.copied)),
            }
        }
        (None, _) => site.ok_or_else(|| {
            Failure::new(format!(
                "{} is missing, so Podman pulls nothing at all",
                places.site_policy.as_ref().unwrap_or(&places.policy).display()
            ))
            .hint("install the package that it belongs to: golang-github-containers-common (Debian, Ubuntu) or containers-common (Fedora, RHEL)")
            .into()
        }),
    }
}

/// Refuses a policy with a foreign rule about these images.
fn refuse_foreign(policy: &Policy, scope: &str) -> Result<()> {
    let refuse = |demand: Demand, problem: &str| {
        let named = demand.scope.unwrap_or("default");
        Err(Failure::new(format!(
            "{}: {named:?} {problem}",
            policy.place(demand)
        ))
        .hint("`litellm-units trust` changes only what it wrote itself; what to write there by hand is in docs/trust.md")
        .into())
    };
    for found in policy.below(scope) {
        let exact = found.scope.is_some_and(|scope| scope.contains('@'));
        if !exact {
            return refuse(found, &format!("already has a rule for images of {scope}"));
        }
    }
    let now = policy.demand(scope, "");
    if !now.accepts_anything() {
        let types: Vec<&str> = now.types().collect();
        return refuse(
            now,
            &format!(
                "already has a rule for images of {scope}: {}",
                types.join(", ")
            ),
        );
    }
    Ok(())
}

/// The keys that apply, in order, and whether they are LiteLLM's.
fn keys(places: &Places, record: Option<&TrustRecord>, wish: &Wish) -> Result<(Vec<String>, bool)> {
    let is_litellm = if wish.keys.is_empty() {
        record.is_none_or(|record| record.is_litellm)
    } else {
        wish.keys.iter().all(|key| known::key(key).is_some())
    };
    if !is_litellm && !wish.keys.is_empty() {
        return Ok((wish.keys.clone(), false));
    }
    let mut present = Vec::new();
    for path in record.iter().flat_map(|record| record.key_files(places)) {
        match read(&path)? {
            Some(text) => present.push(text),
            None if is_litellm => {}
            None => {
                return Err(Failure::new(format!("{} is missing", path.display()))
                    .hint("give the key again: `litellm-units trust --key FILE`")
                    .into());
            }
        }
    }
    if !is_litellm {
        return Ok((present, false));
    }
    present.extend(wish.keys.iter().cloned());
    let keys = known::KEYS.iter().filter_map(|known| {
        let is_this = |text: &&String| known::key(text).is_some_and(|key| key == known);
        known
            .text
            .map(str::to_owned)
            .or_else(|| present.iter().find(is_this).cloned())
    });
    Ok((keys.collect(), true))
}

/// The requirements for images of `scope`.
fn demands(scope: &str, is_litellm: bool, keys: &[PathBuf]) -> Scopes {
    let signed = |identity: Value| match keys {
        [key] => json!([{
            "type": "sigstoreSigned",
            "keyPath": key,
            "signedIdentity": identity,
        }]),
        _ => json!([{
            "type": "sigstoreSigned",
            "keyPaths": keys,
            "signedIdentity": identity,
        }]),
    };
    // cosign signs a name without a tag, so by default Podman would not take it for a tagged image.
    let own_name = || signed(json!({"type": "matchRepository"}));
    let mut scopes = Scopes::new();
    scopes.insert(scope.to_owned(), own_name());
    if is_litellm && scope != PUBLISHED {
        // In another registry, LiteLLM's signatures still name the images as LiteLLM published
        // them. `remapIdentity` would do, but not for a name without a tag.
        let published = |repository: &str| {
            signed(json!({
                "type": "exactRepository",
                "dockerRepository": format!("{PUBLISHED}/{repository}"),
            }))
        };
        let last = scope.rsplit('/').next().unwrap_or_default();
        if REPOSITORIES.contains(&last) {
            scopes.insert(scope.to_owned(), published(last));
        } else {
            for repository in REPOSITORIES {
                scopes.insert(format!("{scope}/{repository}"), published(repository));
            }
        }
    }
    scopes
}

/// The scope, and the places that `registries.conf` makes of it.
fn locations(scope: &str, registries: &Value) -> Vec<String> {
    let mut found = vec![scope.to_owned()];
    let places = |entry: &Value| -> Vec<String> {
        let mirrors = entry["Mirrors"].as_array().into_iter().flatten();
        std::iter::once(entry)
            .chain(mirrors)
            .filter_map(|endpoint| endpoint["Location"].as_str())
            .filter(|location| !location.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let entries = registries.as_object().into_iter().flatten();
    for (prefix, entry) in entries {
        if prefix
            .strip_prefix(scope)
            .is_some_and(|rest| rest.starts_with('/'))
        {
            found.extend(places(entry));
        }
    }
    if let Some((length, entry)) = covering(scope, registries) {
        let rest = &scope[length..];
        found.extend(places(entry).into_iter().map(|place| place + rest));
    }
    found.sort();
    found.dedup();
    found
}

/// Our file of `registries.d`, without the places that another file names: Podman refuses two files
/// that name the same place.
fn registries_yaml(
    places: &Places,
    links: &BTreeMap<PathBuf, PathBuf>,
    namespaces: &[String],
) -> Result<String> {
    let mut wanted: Vec<&String> = namespaces.iter().collect();
    let mut others = yaml_files(&places.registries)?;
    others.retain(|path| !path.ends_with(REGISTRIES_FILE) && !links.contains_key(path));
    others.extend(links.values().cloned());
    for path in others {
        let Some(text) = read(&path)? else { continue };
        let damaged = |line: usize, problem: &str| {
            Failure::new(format!("{}, line {line}: {problem}", path.display()))
                .hint("Podman pulls nothing until the file is valid: correct it, then run `litellm-units trust` again")
        };
        let root = yaml::parse(&text).map_err(|error| damaged(error.at.line, &error.message))?;
        let Some(docker) = root.as_ref().and_then(|root| root.get("docker")) else {
            continue;
        };
        for (name, settings) in docker.entries() {
            let Some(at) = wanted
                .iter()
                .position(|namespace| Some(namespace.as_str()) == name.text())
            else {
                continue;
            };
            let enabled = settings
                .get("use-sigstore-attachments")
                .and_then(yaml::Node::text);
            if enabled != Some("true") {
                return Err(Failure::new(format!(
                    "{}, line {}: signatures of {} are not looked up",
                    path.display(),
                    name.at.line,
                    wanted[at]
                ))
                .hint(
                    "add `use-sigstore-attachments: true` there, then run `litellm-units trust` again",
                )
                .into());
            }
            wanted.remove(at);
        }
    }
    let mut text = String::from(
        "# Written by litellm-units trust; litellm-units trust --remove removes it.\ndocker:\n",
    );
    for namespace in wanted {
        text.push_str(&format!(
            "  \"{namespace}\":\n    use-sigstore-attachments: true\n"
        ));
    }
    Ok(text)
}

/// A user's `registries.d` hides the administrator's: where the user has none, it gets links to
/// those files.
fn links(places: &Places, record: Option<&TrustRecord>) -> Result<BTreeMap<PathBuf, PathBuf>> {
    let mut links = BTreeMap::new();
    let Some(site) = &places.site_registries else {
        return Ok(links);
    };
    let ours = |path: &PathBuf| {
        path.ends_with(REGISTRIES_FILE)
            || record.is_some_and(|record| record.links.contains_key(path))
    };
    if yaml_files(&places.registries)?.iter().all(ours) {
        for target in yaml_files(site)? {
            if let Some(name) = target.file_name() {
                links.insert(places.registries.join(name), target);
            }
        }
    }
    Ok(links)
}

fn yaml_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files::entries(directory)?;
    found.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    Ok(found)
}

/// Refuses a text that is not one public key: a private one must not become readable for all.
///
/// # Errors
/// When it is something else.
pub fn check_key(text: &str, path: &Path) -> Result<()> {
    let body = text
        .trim()
        .strip_prefix("-----BEGIN PUBLIC KEY-----")
        .and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"));
    let is_base64 = |c: char| c.is_ascii_alphanumeric() || "+/=\r\n".contains(c);
    if body.is_some_and(|body| body.len() > 40 && body.chars().all(is_base64)) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{} is not a public key in PEM form",
        path.display()
    ))
    .hint("it begins with -----BEGIN PUBLIC KEY-----, as cosign.pub does")
    .into())
}

/// Refuses a scope that no image's name can begin with.
///
/// # Errors
/// When it is no registry and path.
pub fn check_scope(scope: &str) -> Result<()> {
    match ImageReference::parse(&format!("{scope}:v1")) {
        Ok(image) if image.name() == scope => Ok(()),
        _ => Err(
            Failure::new(format!("{scope:?} is not a registry and a path"))
                .hint("write it as in `--scope registry.example.com/berriai`")
                .into(),
        ),
    }
}

/// The images before the first signed release whose digests are recorded, as `name@digest`: they
/// stay usable by these digests only.
///
/// # Errors
/// When `current`, the gateway's image, is one of them and its digest is not recorded, or it is not
/// below the scope.
pub fn unsigned(
    scope: &str,
    current: Option<&ImageReference>,
    images: &ImagesLock,
) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (image, locked) in images.references() {
        if is_below(&image, scope) && !is_signed_release(&image) {
            found.push(format!("{}@{}", image.name(), locked.identity.digest));
        }
    }
    let Some(current) = current else {
        return Ok(found);
    };
    if !is_below(current, scope) {
        let parent = current
            .name()
            .rsplit_once('/')
            .map_or("", |(parent, _)| parent);
        return Err(Failure::new(format!(
            "LITELLM_IMAGE is {current}, which is not in {scope}: its signature would not be verified"
        ))
        .hint(format!("choose the scope of that image: `litellm-units trust --scope {parent}`"))
        .into());
    }
    if is_signed_release(current) {
        return Ok(found);
    }
    if let Some(digest) = current.digest() {
        found.push(format!("{}@{digest}", current.name()));
    } else if images.lacks(current) {
        return Err(Failure::new(format!(
            "LITELLM_IMAGE is {current}, which LiteLLM did not sign, and its digest is not recorded: it could not be pulled any more"
        ))
        .hint("record it first with `litellm-units pull`, or name a release from 1.83 on")
        .into());
    }
    Ok(found)
}

fn push(changes: &mut Vec<UnitChange>, path: &Path, before: Option<String>, after: Option<String>) {
    if before != after {
        changes.push(UnitChange {
            path: path.to_owned(),
            before,
            after,
        });
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    let text = files::read_existing(path)?.map(String::from_utf8);
    text.transpose().map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = good.split(|byte| *byte == b'\n').count();
        Failure::new(format!("{}, line {line}: not valid UTF-8", path.display()))
            .hint("restore it from a backup or the package that it came with")
            .into()
    })
}

fn points_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == target)
}

/// The mode of the file; a new one is readable for all, since it holds no secret.
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777)
}

fn make_parent(path: &Path) -> Result<()> {
    let directory = path.parent().context("a file without a directory")?;
    fs::create_dir_all(directory).path_context("can't create", directory)
}

/// Removes a file, and its directory if that is empty then.
fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).path_context("can't remove", path)?;
    let directory = path.parent().context("a file without a directory")?;
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            files::sync_directory(directory)
        }
        Err(error) => Err(error).path_context("can't remove", directory),
    }
}

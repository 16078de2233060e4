//! Podman's own signature policy for LiteLLM's images: what `trust` sets and takes back.
//!
//! Podman looks up a demand by the name that an image is pulled by, and its signature at the place
//! that `registries.conf` makes of that name. So the policy is for names, and `registries.d` for
//! the names and for those places.

pub mod policy;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Failure, Result};
use crate::image::ImageReference;
use crate::images_lock::ImagesLock;
use crate::install;
use crate::install::plan::Change;
use crate::litellm::config::tree;
use crate::paths::Paths;
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

/// The key that LiteLLM signs its images with: `cosign.pub` of BerriAI/litellm at commit
/// 0112e53046018d726492c814b3644b7d376029d0, SHA-256
/// ff8869bf14ba9d10af7b64b9d479543b44daec0165e715753c43ff8a998f6dd3.
pub const LITELLM_KEY: &str = include_str!("trust/litellm.pub");

/// The first release that LiteLLM signed.
const FIRST_SIGNED: (u32, u32) = (1, 83);

/// This file of `registries.d` is ours as a whole.
const REGISTRIES_FILE: &str = "litellm-units.yaml";

/// Whether LiteLLM signs such releases. What does not say which release it is counts as signed.
#[must_use]
pub fn is_signed_release(image: &ImageReference) -> bool {
    let mut numbers = image.version().unwrap_or_default().split('.');
    let mut next = || numbers.next()?.parse::<u32>().ok();
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) >= FIRST_SIGNED,
        _ => true,
    }
}

/// Whether the image's name is below `scope`.
#[must_use]
pub fn is_below(image: &ImageReference, scope: &str) -> bool {
    image
        .name()
        .strip_prefix(scope)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The files that are concerned.
#[derive(Clone, Debug)]
pub struct Places {
    /// `policy.json`: a user's replaces the administrator's.
    pub policy: PathBuf,
    /// The administrator's, which counts for a user who has none.
    site_policy: Option<PathBuf>,
    /// `registries.d`: a user's replaces the administrator's.
    registries: PathBuf,
    site_registries: Option<PathBuf>,
    /// The public key.
    pub key: PathBuf,
    /// What was set, and what was there before.
    record: PathBuf,
}

impl Places {
    /// Where Podman looks on this host.
    #[must_use]
    pub fn of(paths: &Paths) -> Self {
        let own = paths.own_configuration();
        let containers = paths.containers();
        let site = paths.site_containers();
        Self {
            policy: containers.join("policy.json"),
            site_policy: site.as_ref().map(|site| site.join("policy.json")),
            registries: containers.join("registries.d"),
            site_registries: site.map(|site| site.join("registries.d")),
            key: own.join("trust.pub"),
            record: own.join("trust.json"),
        }
    }

    /// The policy that counts now; nothing if there is none, and Podman pulls nothing.
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

    /// What was set here.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn record(&self) -> Result<Option<Record>> {
        let Some(text) = read(&self.record)? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::new(format!("{}, line {}: {error}", self.record.display(), error.line()))
                .hint(format!(
                    "take litellm-units' scopes out of {} by hand and remove this file, then run litellm-units trust again",
                    self.policy.display()
                ))
                .into()
        })
    }
}

/// What was set, and what was there before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Record {
    schema: u32,
    /// The names that signatures are demanded for.
    pub scope: String,
    /// Whether the key is the one that comes with the program.
    pub packaged_key: bool,
    /// What was added to the policy.
    scopes: Scopes,
    /// The policy without that.
    before: String,
    /// Whether that is a copy of the administrator's policy, made since the user had none.
    copied: bool,
    /// Links to the administrator's files of `registries.d`, made since the user had none.
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Record {
    /// The images that are taken without a signature, each by its digest.
    pub fn accepted(&self) -> impl Iterator<Item = &str> {
        self.scopes
            .keys()
            .map(String::as_str)
            .filter(|scope| scope.contains('@'))
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// The names to demand signatures for, if other than now.
    pub scope: Option<String>,
    /// The key's text, if other than now.
    pub key: Option<String>,
    /// Images to take without a signature, as `name@digest`.
    pub accept: Vec<String>,
    /// What `registries.conf` makes of names, as `podman info` has it.
    pub registries: Value,
}

/// What has to be done.
#[derive(Debug)]
pub struct Plan {
    /// The files that differ, in an order that can be interrupted.
    pub changes: Vec<Change>,
    /// Links to make: the link, and what it points to.
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// Links to remove.
    pub unlinks: Vec<PathBuf>,
    /// What is in force then.
    pub record: Option<Record>,
    record_path: PathBuf,
}

impl Plan {
    /// What has to be done so that the wish is fulfilled.
    ///
    /// # Errors
    /// When a file is damaged, or someone else has decided about these images already: nothing of
    /// that is ever replaced or loosened.
    pub fn set(places: &Places, wish: &Wish) -> Result<Self> {
        let record = places.record()?;
        let scope = wish
            .scope
            .clone()
            .or_else(|| record.as_ref().map(|record| record.scope.clone()))
            .unwrap_or_else(|| PUBLISHED.to_owned());
        let present_key = read(&places.key)?;
        let packaged_key =
            wish.key.is_none() && record.as_ref().is_none_or(|record| record.packaged_key);
        let given = wish.key.as_ref().or(present_key.as_ref());
        let key = match given {
            _ if packaged_key => LITELLM_KEY.to_owned(),
            Some(key) => key.clone(),
            None => {
                return Err(Failure::new(format!("{} is gone", places.key.display()))
                    .hint("give it again: litellm-units trust --key FILE")
                    .into());
            }
        };

        let (base, base_path, copied) = base(places, record.as_ref())?;
        let policy = Policy::parse(&base, &base_path)?;
        refuse_foreign(&policy, &scope)?;
        let mut scopes = demands(&scope, packaged_key, &places.key);
        let before = record.iter().flat_map(Record::accepted);
        for accepted in before.chain(wish.accept.iter().map(String::as_str)) {
            let requirements = json!([{"type": "insecureAcceptAnything"}]);
            let inside = accepted
                .strip_prefix(scope.as_str())
                .is_some_and(|rest| rest.starts_with(['/', '@']));
            // One that someone else wrote stays theirs.
            if inside && !policy.has(accepted, &requirements) {
                scopes.insert(accepted.to_owned(), requirements);
            }
        }

        let links = links(places, record.as_ref())?;
        let registries = places.registries.join(REGISTRIES_FILE);
        let namespaces = locations(&scope, &wish.registries);
        let yaml = registries_yaml(places, &links, &namespaces)?;
        let new = Record {
            schema: 1,
            scope,
            packaged_key,
            before: base,
            copied,
            links: links.clone(),
            scopes,
        };
        let mut changes = Vec::new();
        let old = read(&places.record)?;
        push(&mut changes, &places.record, old, Some(new.text()?));
        push(&mut changes, &places.key, present_key, Some(key));
        push(&mut changes, &registries, read(&registries)?, Some(yaml));
        let text = policy.with(&new.scopes);
        push(
            &mut changes,
            &places.policy,
            read(&places.policy)?,
            Some(text),
        );
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

    /// What has to be done so that all is as it was without `trust`; nothing if it never was set.
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
        for path in [
            &places.registries.join(REGISTRIES_FILE),
            &places.key,
            &places.record,
        ] {
            push(changes, path, read(path)?, None);
        }
        plan.unlinks = record
            .links
            .into_iter()
            .filter(|(link, target)| points_to(link, target))
            .map(|(link, _)| link)
            .collect();
        Ok(plan)
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.links.is_empty() && self.unlinks.is_empty()
    }

    /// The files that differ, but for this program's own record.
    pub fn visible(&self) -> impl Iterator<Item = &Change> {
        self.changes
            .iter()
            .filter(|change| change.path != self.record_path)
    }

    /// Does it, one atomic step for each file.
    ///
    /// # Errors
    /// When the disk refuses. Each file is then either old or new, and the next run goes on.
    pub fn apply(&self) -> Result<()> {
        for (link, target) in &self.links {
            make_parent(link)?;
            // What is in the way is a link of ours to a file that is no longer there.
            match fs::remove_file(link) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("can't replace {}", link.display()));
                }
                _ => {}
            }
            std::os::unix::fs::symlink(target, link)
                .with_context(|| format!("can't create {}", link.display()))?;
        }
        for change in &self.changes {
            match &change.after {
                Some(text) => {
                    make_parent(&change.path)?;
                    let mode = mode(&change.path);
                    install::write_atomically(&change.path, text.as_bytes(), mode)?;
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

impl Record {
    fn text(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).context("can't write what was set")?;
        Ok(text + "\n")
    }
}

/// The policy without what was set before, the file that it comes from, and whether it is a copy of
/// the administrator's.
fn base(places: &Places, record: Option<&Record>) -> Result<(String, PathBuf, bool)> {
    let site = match &places.site_policy {
        Some(path) => read(path)?.map(|text| (text, path.clone(), true)),
        None => None,
    };
    match (read(&places.policy)?, record) {
        (Some(text), None) => Ok((text, places.policy.clone(), false)),
        (Some(text), Some(record)) => {
            let before = Policy::parse(&record.before, &places.policy)?;
            // Nobody has edited it since: what was there comes back byte for byte.
            if before.with(&record.scopes) != text {
                let policy = Policy::parse(&text, &places.policy)?;
                let base = policy.without(record.scopes.keys());
                return Ok((base, places.policy.clone(), record.copied));
            }
            match site {
                // The administrator may have edited theirs.
                Some(site) if record.copied => Ok(site),
                _ => Ok((record.before.clone(), places.policy.clone(), record.copied)),
            }
        }
        (None, _) => site.ok_or_else(|| {
            Failure::new(format!(
                "{} is missing, so Podman pulls nothing at all",
                places.site_policy.as_ref().unwrap_or(&places.policy).display()
            ))
            .hint("install it with the package that it belongs to: golang-github-containers-common (Debian, Ubuntu), containers-common (Fedora)")
            .into()
        }),
    }
}

/// Refuses to decide where someone else has decided.
fn refuse_foreign(policy: &Policy, scope: &str) -> Result<()> {
    let refuse = |demand: Demand, problem: &str| {
        let named = demand.scope.unwrap_or("default");
        Err(Failure::new(format!(
            "{}: {named:?} {problem}",
            policy.place(demand)
        ))
        .hint("litellm-units trust replaces and loosens nothing that it did not write; what to put there by hand is in docs/trust.md")
        .into())
    };
    for found in policy.below(scope) {
        let exact = found.scope.is_some_and(|scope| scope.contains('@'));
        if !exact {
            return refuse(found, &format!("decides about images of {scope} already"));
        }
    }
    let now = policy.demand(scope, "");
    if !now.accepts_anything() {
        let types: Vec<&str> = now.types().collect();
        return refuse(
            now,
            &format!(
                "already makes a demand of images of {scope}: {}",
                types.join(", ")
            ),
        );
    }
    Ok(())
}

/// What is demanded of images of `scope`.
fn demands(scope: &str, packaged_key: bool, key: &Path) -> Scopes {
    let signed = |identity: Value| {
        json!([{
            "type": "sigstoreSigned",
            "keyPath": key,
            "signedIdentity": identity,
        }])
    };
    // cosign signs a name without a tag, so by default Podman would not take it for a tagged image.
    let own_name = || signed(json!({"type": "matchRepository"}));
    let mut scopes = Scopes::new();
    scopes.insert(scope.to_owned(), own_name());
    if packaged_key && scope != PUBLISHED {
        // Elsewhere, LiteLLM's signatures still name the images as LiteLLM published them.
        // remapIdentity would do, but not for a name without a tag.
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
    let mut covering: Option<(usize, Vec<String>)> = None;
    for (prefix, entry) in entries {
        if prefix
            .strip_prefix(scope)
            .is_some_and(|rest| rest.starts_with('/'))
        {
            found.extend(places(entry));
        }
        let host = scope.split('/').next().unwrap_or_default();
        let length = match prefix.strip_prefix('*') {
            Some(domain) => host.ends_with(domain).then_some(host.len()),
            None => scope
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                .then_some(prefix.len()),
        };
        if let Some(length) = length
            && covering
                .as_ref()
                .is_none_or(|(longest, _)| length > *longest)
        {
            let rest = &scope[length..];
            let places = places(entry).into_iter();
            covering = Some((length, places.map(|place| place + rest).collect()));
        }
    }
    found.extend(covering.into_iter().flat_map(|(_, places)| places));
    found.sort();
    found.dedup();
    found
}

/// Our file of `registries.d`, without what another file says already: Podman takes no two files
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
                .hint("Podman pulls nothing with it: mend it, then run litellm-units trust again")
        };
        let root = tree::parse(&text).map_err(|error| damaged(error.at.line, &error.message))?;
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
                .and_then(tree::Node::text);
            if enabled != Some("true") {
                return Err(Failure::new(format!(
                    "{}, line {}: signatures of {} are not looked up",
                    path.display(),
                    name.at.line,
                    wanted[at]
                ))
                .hint(
                    "add there: use-sigstore-attachments: true; then run litellm-units trust again",
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
fn links(places: &Places, record: Option<&Record>) -> Result<BTreeMap<PathBuf, PathBuf>> {
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
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("can't read {}", directory.display()));
        }
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("can't read {}", directory.display()))?
            .path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
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

/// Refuses what no image's name can begin with.
///
/// # Errors
/// When it is no registry and path.
pub fn check_scope(scope: &str) -> Result<()> {
    match ImageReference::parse(&format!("{scope}:v1")) {
        Ok(image) if image.name() == scope => Ok(()),
        _ => Err(
            Failure::new(format!("{scope:?} is not a registry and a path"))
                .hint("write it as in --scope registry.example.com/berriai")
                .into(),
        ),
    }
}

/// The images before the first signed release whose digests are known, as `name@digest`: they stay
/// usable by these digests alone.
///
/// # Errors
/// When `current`, the gateway's image, is such a one and its digest is not known, or it is not
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
        .hint(format!("litellm-units trust --scope {parent}"))
        .into());
    }
    if is_signed_release(current) {
        return Ok(found);
    }
    if let Some(digest) = current.digest() {
        found.push(format!("{}@{digest}", current.name()));
    } else if images.lacks(current) {
        return Err(Failure::new(format!(
            "LITELLM_IMAGE is {current}, from before LiteLLM signed its releases, and its digest is not recorded yet: it could not be pulled any more"
        ))
        .hint("record it first: litellm-units pull; or name a release from 1.83 on")
        .into());
    }
    Ok(found)
}

fn push(changes: &mut Vec<Change>, path: &Path, before: Option<String>, after: Option<String>) {
    if before != after {
        changes.push(Change {
            path: path.to_owned(),
            before,
            after,
        });
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|error| {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|byte| *byte == b'\n').count();
            Failure::new(format!("{}, line {line}: not valid UTF-8", path.display()))
                .hint("restore it from a backup or the package that it came with")
                .into()
        }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

fn points_to(link: &Path, target: &Path) -> bool {
    fs::read_link(link).is_ok_and(|found| found == target)
}

/// As it is; a new file can be read by all, since no one's secret is in it.
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).map_or(0o644, |found| found.permissions().mode() & 0o777)
}

fn make_parent(path: &Path) -> Result<()> {
    let directory = path.parent().context("a file without a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("can't create {}", directory.display()))
}

/// Removes a file, and its directory if that was the last in it.
fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("can't remove {}", path.display()))?;
    let directory = path.parent().context("a file without a directory")?;
    match fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            install::sync_directory(directory)
        }
        Err(error) => Err(error).with_context(|| format!("can't remove {}", directory.display())),
    }
}

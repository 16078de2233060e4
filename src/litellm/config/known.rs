//! The settings that releases of LiteLLM read.

use crate::litellm::release::Release;

/// Written by `known/record`: the releases that were read, then on each line a section, a key, and the first of them with it.
const TABLE: &str = include_str!("known/settings");

/// The settings of one release.
pub(super) struct Known {
    release: Option<Release>,
    /// Those of the table whose settings count.
    releases: Vec<&'static str>,
}

impl Known {
    /// A release between two of the table may have what the later one has, and an unknown release everything. A setting
    /// that was removed counts, since it can be read in a way that `record` does not find.
    pub(super) fn of(release: Option<Release>) -> Self {
        let mut counts = true;
        let listed = TABLE.lines().next().unwrap_or_default().split(' ').skip(1);
        let releases = listed
            .take_while(|listed| {
                let is_later = |release: &Release| {
                    release.is_from(listed) && Release::of_version(listed).as_ref() != Some(release)
                };
                std::mem::replace(&mut counts, release.as_ref().is_none_or(is_later))
            })
            .collect();
        Self { release, releases }
    }

    /// The keys that the release knows in a section.
    pub(super) fn keys(&self, section: &str) -> impl Iterator<Item = &'static str> {
        entries(section)
            .filter(|(_, since)| self.releases.contains(since))
            .map(|(key, _)| key)
    }

    pub(super) fn has(&self, section: &str, key: &str) -> bool {
        self.keys(section).any(|known| known == key)
    }

    /// This release, and the first one of the table with a key that it does not have.
    pub(super) fn later(&self, section: &str, key: &str) -> Option<(&Release, &'static str)> {
        let (_, since) = entries(section).find(|(known, _)| *known == key)?;
        let is_later = !self.releases.contains(&since);
        is_later.then_some((self.release.as_ref()?, since))
    }
}

fn entries(section: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().skip(1).filter_map(move |line| {
        line.strip_prefix(section)?
            .strip_prefix(' ')?
            .split_once(' ')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In 1.84.10, and not in 1.80.11.
    const NEWER: (&str, &str) = ("general_settings", "auto_redirect_ui_login_to_sso");

    #[test]
    fn releases_know_what_they_read() {
        for (tag, expected) in [
            ("v1.80.11-stable", false),
            ("v1.74.0-stable", false),
            // 1.84.10 is the next one of the table.
            ("v1.80.12", true),
            ("v1.84.0", true),
            ("1.84.10", true),
            ("v1.200.0", true),
        ] {
            let known = Known::of(Release::of_tag(tag));
            let (section, key) = NEWER;
            assert_eq!(known.has(section, key), expected, "{tag}");
            let later = known.later(section, key).map(|(_, since)| since);
            assert_eq!(later, (!expected).then_some("1.84.10"), "{tag}");
        }
        let unknown = Known::of(None);
        assert!(entries("general_settings").all(|(key, _)| unknown.has("general_settings", key)));
        assert!(
            unknown
                .later("general_settings", "a_setting_of_next_year")
                .is_none()
        );
    }

    #[test]
    fn every_section_is_in_the_table() {
        for (section, key) in [
            ("top_level", "model_list"),
            ("general_settings", "master_key"),
            ("litellm_settings", "drop_params"),
            ("router_settings", "routing_strategy"),
            ("litellm_params", "api_base"),
        ] {
            assert!(
                Known::of(Release::of_tag("1.80.11")).has(section, key),
                "{key}"
            );
        }
    }
}

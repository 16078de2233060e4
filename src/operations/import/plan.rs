//! What an import takes over and what it can't, worked out from what Docker says of the containers.

mod arguments;
mod chosen;
mod files;
#[cfg(test)]
mod fixtures;
mod images;
mod keys;
mod leftovers;
mod options;
mod servers;
mod text;
mod variables;

use std::collections::BTreeMap;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};

use super::rewrite::{self, Rewrite};
use crate::deployment::completion::HEADER;
use crate::deployment::env_file::EnvFile;
use crate::deployment::settings::DEFAULT_POSTGRES_NAME;
use crate::deployment::variables::is_of_units;
use crate::error::{Failure, Result};
use crate::host::docker::{BY_HAND, DockerImage};
use crate::image::ImageReference;
use crate::random::{Random, password};
pub(crate) use chosen::Chosen;
pub(crate) use keys::{SALT, Salt, unknown_salt};
use servers::OldCache;
pub(crate) use servers::OldDatabase;

/// What has no counterpart, and how it can be had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Note {
    what: String,
    how: String,
}

/// What an import does.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The service of the gateway.
    pub service: String,
    /// Its containers that run, and are stopped.
    running: Vec<String>,
    pub image: ImageReference,
    /// The digest in the registry; none for an image that was built on this host.
    pub digest: Option<String>,
    /// `.env`, but for what `generate` adds.
    pub env: EnvFile,
    /// The variables whose values are new.
    pub generated: Vec<&'static str>,
    /// From where each secret is that is not the variable of the same name.
    sources: BTreeMap<String, String>,
    /// None if nothing was encrypted: the old gateway has neither a salt nor a master key.
    pub salt: Option<Salt>,
    /// None if the database is external, or there is none.
    pub database: Option<OldDatabase>,
    is_external: bool,
    cache: Option<OldCache>,
    /// The gateway's configuration as it will be.
    pub config: String,
    /// Paths in the old container, and in config/.
    pub files: Vec<(String, String)>,
    pub notes: Vec<Note>,
}

/// What is in the old gateway's container.
#[derive(Default)]
pub(crate) struct Inside {
    /// The text of the configuration.
    pub config: Option<String>,
    /// The paths and the texts of the files that it includes.
    pub includes: Vec<(String, String)>,
    /// The Python modules that are not mounted: their paths, and where they go in config/.
    pub modules: Vec<(String, String)>,
    /// The paths that the image does not have.
    pub added: Vec<String>,
}

/// The parts of a plan while it is made.
struct Maker<'a> {
    chosen: &'a Chosen<'a>,
    /// The variables of the old gateway.
    given: BTreeMap<String, SecretString>,
    /// Those of them that neither its image nor its configuration brings along.
    own: BTreeMap<String, SecretString>,
    env: EnvFile,
    generated: Vec<&'static str>,
    sources: BTreeMap<String, String>,
    notes: Vec<Note>,
}

impl Maker<'_> {
    fn put(&mut self, name: &str, value: &str) -> Result<()> {
        self.env.set(name, value).map_err(|error| {
            Failure::new(format!(
                "{name} of the old gateway can't be written to .env: {error}"
            ))
            .hint(format!("move the deployment by hand: {BY_HAND}"))
            .into()
        })
    }

    /// Writes a value that the old deployment does not have.
    fn generate(&mut self, name: &'static str, value: &str) -> Result<()> {
        self.generated.push(name);
        self.put(name, value)
    }

    fn note(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.notes.push(Note {
            what: what.into(),
            how: how.into(),
        });
    }

    fn value(&self, name: &str) -> Option<String> {
        let value = self.given.get(name)?.expose_secret();
        (!value.is_empty()).then(|| value.to_owned())
    }
}

impl Plan {
    /// `images`: those of the containers as far as Docker has them, by their IDs. `is_file`: whether a path on the host is a
    /// regular file.
    pub(crate) fn new(
        chosen: &Chosen<'_>,
        images: &BTreeMap<String, DockerImage>,
        inside: &Inside,
        is_file: &dyn Fn(&str) -> bool,
        random: Random<'_>,
    ) -> Result<Self> {
        let gateway = chosen.gateway();
        let docker_image = images.get(&gateway.image);
        let docker_image = docker_image.context("docker shows no image of the gateway")?;
        let (image, digest) = images::image(gateway, docker_image)?;
        let config = inside.config.as_deref();
        let mut env = gateway.config.env.clone();
        // LiteLLM joins the parts of one before it reads its configuration.
        env.extend(servers::database_url(&env).map(|url| ("DATABASE_URL".into(), url)));
        let old = rewrite::Old::read(config.unwrap_or_default(), &env)?;
        let mut own = gateway.config.env.clone();
        let moved = old.env.iter().filter(|(name, _)| is_of_units(name));
        own.extend(moved.map(|(name, value)| (name.clone(), value.clone())));
        own.retain(|name, value| {
            let of_image = docker_image.config.env.get(name);
            of_image.is_none_or(|other| other.expose_secret() != value.expose_secret())
        });
        let mut maker = Maker {
            chosen,
            given: old.env.clone(),
            own,
            env: EnvFile::parse(HEADER)?,
            generated: Vec::new(),
            sources: BTreeMap::new(),
            notes: Vec::new(),
        };

        let (mut files, renamed) = maker.files(is_file);
        for module in &inside.modules {
            if files.iter().all(|(_, to)| *to != module.1) {
                files.push(module.clone());
                maker.note(
                    format!("{}, a module of the image", module.0),
                    format!("it is copied to config/{}, which comes before the one of a later image: remove the copy if the image has the same path below its working directory", module.1),
                );
            }
        }
        maker.copied(inside);
        for (path, text) in &inside.includes {
            refuse_include(path, text, &old.env, &renamed)?;
        }
        maker.address();

        maker.put("LITELLM_IMAGE", image.as_str())?;
        let salt = maker.keys(old.master_key.clone(), random)?;

        let database = maker.database(old.database_url.clone(), random)?;
        let is_external = maker.env.get("DATABASE_URL").is_some();
        if is_external && salt.is_none() {
            return Err(unknown_salt(gateway.service(), None).into());
        }
        if !is_external && database.is_none() {
            maker.put("POSTGRES_USER", DEFAULT_POSTGRES_NAME)?;
            maker.generate("POSTGRES_PASSWORD", &password(random)?)?;
            maker.put("POSTGRES_DB", DEFAULT_POSTGRES_NAME)?;
        }
        let cache = maker.cache(&old)?;
        if cache.is_some() && old.buffers_spend {
            maker.note(
                "spend that waits in Redis (use_redis_transaction_buffer)",
                "what the old gateway has not written to its database when it stops is lost: import while there are no requests",
            );
        }
        if servers::external_cache(&maker.env).is_none() {
            maker.generate("REDIS_PASSWORD", &password(random)?)?;
        }
        maker.variables(database.is_some(), &renamed)?;
        maker.containers(images, database.as_ref(), cache.as_ref())?;
        maker.sidecars(config, database.as_ref(), cache.as_ref());
        let config = old.rewritten(&Rewrite {
            cache: cache.is_some(),
            paths: &renamed,
        })?;
        Ok(Self {
            service: gateway.service().to_owned(),
            running: chosen.running(chosen.gateways.iter().map(|one| one.name()).collect()),
            image,
            digest,
            env: maker.env,
            generated: maker.generated,
            sources: maker.sources,
            salt,
            database,
            is_external,
            cache,
            config,
            files,
            notes: maker.notes,
        })
    }

    /// The containers of the old database and the old cache.
    pub(crate) fn servers(&self) -> Vec<&str> {
        let database = self.database.as_ref().map(|old| old.container.as_str());
        let cache = self.cache.as_ref().map(|old| old.container.as_str());
        database.into_iter().chain(cache).collect()
    }
}

/// Refuses an included file with anything that would have to be rewritten.
fn refuse_include(
    path: &str,
    text: &str,
    env: &BTreeMap<String, SecretString>,
    renamed: &BTreeMap<String, String>,
) -> Result<()> {
    let old = rewrite::Old::read(text, env)?;
    let rewrite = Rewrite {
        cache: true,
        paths: renamed,
    };
    if text.trim().is_empty() || old.rewritten(&rewrite).is_ok_and(|new| new == text) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "{path}, which the old configuration includes, has a setting that `import` changes only in the configuration itself: the master key, the database, Redis, their variables, or the path of a mounted file"
    ))
    .hint("move that setting into the configuration itself, and restart the old gateway")
    .into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::fixtures::{containers, fixture, image_of, llm, plan, plan_of, refusal};
    use super::keys::MASTER;
    use super::*;

    #[test]
    fn modules_of_the_image_are_copied() {
        let module = ("/app/own/hooks.py".to_owned(), "own/hooks.py".to_owned());
        let other = (
            "/app/custom_callbacks.py".into(),
            "custom_callbacks.py".into(),
        );
        let inside = Inside {
            modules: vec![module.clone(), module.clone(), other],
            ..Inside::default()
        };
        let plan = plan_of(&llm(|_| {}), "/root/llm", None, &inside).unwrap();
        let of_modules = plan.files.iter().filter(|(_, to)| to.contains(".py"));
        let of_modules: Vec<_> = of_modules.map(|(from, _)| from.as_str()).collect();
        assert_eq!(
            of_modules,
            ["/app/custom_callbacks.py", "/app/own/hooks.py"]
        );
    }

    #[test]
    fn plans_of_recorded_deployments() {
        for (name, directory, service) in [
            // LiteLLM's own example, with a salt that is empty.
            ("example", "/root/rec/example", None),
            ("llm", "/root/llm", None),
            // The host's network, other ports, files elsewhere, a key without `sk-` in the configuration.
            ("network", "/root/rec/network", None),
            // External servers, one of them in parts, and a sidecar.
            ("parts", "/root/rec/parts", Some("gateway")),
            // LiteLLM's example of today, with Docker's own value of each option.
            ("litellm", "/root/litellm", None),
            // Every option that a compose file can have, and a service of another deployment.
            ("tuned", "/root/tuned", None),
        ] {
            let config = match name {
                "llm" => fixture("../compose/config.yaml"),
                _ => fixture(&format!("{name}.yaml")),
            };
            let config = std::fs::read_to_string(config).ok();
            let all = containers(name);
            let plan = plan(&all, directory, service, config.as_deref()).unwrap();
            let lines = plan.lines(None, None).join("\n");
            let found = format!("{lines}\n---\n{}---\n{}", plan.env.text(), plan.config);
            let expected = fixture(&format!("{name}.plan"));
            if std::env::var_os("LITELLM_UNITS_RECORD").is_some() {
                std::fs::write(&expected, &found).unwrap();
            }
            assert_eq!(found, std::fs::read_to_string(expected).unwrap(), "{name}");
        }
    }

    #[test]
    fn variables_of_the_configuration() {
        let config = "environment_variables:\n  REDIS_HOST: cache   # theirs\n  LITELLM_SALT_KEY: sk-of-yaml\n  LANGFUSE_HOST: 'http://lf'\n";
        let plan = plan(&containers("llm"), "/root/llm", None, Some(config)).unwrap();
        assert_eq!(
            plan.config,
            "environment_variables:\n  LANGFUSE_HOST: 'http://lf'\n"
        );
        assert_eq!(plan.env.get(SALT), Some("sk-of-yaml"));
        assert_eq!(plan.env.get("LANGFUSE_HOST"), None);
        assert_eq!(plan.cache.unwrap().service, "cache");
    }

    #[test]
    fn variables_of_the_image() {
        let all = containers("llm");
        let chosen = Chosen::new(&all, Path::new("/root/llm"), None, None).unwrap();
        let mut image = image_of("ghcr.io/berriai/litellm");
        image.config.env = chosen.gateway().config.env.clone();
        let images = BTreeMap::from([(chosen.gateway().image.clone(), image)]);
        let mut random = |_: &mut [u8]| Ok(());
        let plan = Plan::new(&chosen, &images, &Inside::default(), &|_| true, &mut random).unwrap();
        assert_eq!(plan.database.unwrap().service, "db");
        assert_eq!(plan.env.get(MASTER), Some("master-key-without-prefix"));
        assert_eq!(plan.env.get("OPENAI_API_KEY"), None);
    }

    #[test]
    fn included_files() {
        let refused = |text: &str| {
            let inside = Inside {
                includes: vec![("/app/a.yaml".into(), text.into())],
                ..Inside::default()
            };
            let plan = plan_of(&containers("llm"), "/root/llm", None, &inside);
            plan.is_err_and(|error| error.to_string().starts_with("/app/a.yaml, which the old"))
        };
        assert!(refused("general_settings:\n  master_key: sk-1\n"));
        assert!(refused("environment_variables:\n  REDIS_HOST: cache\n"));
        assert!(refused("x: /app/custom_callbacks.py\n"));
        assert!(!refused(
            "general_settings:\n  master_key: os.environ/LITELLM_MASTER_KEY\n"
        ));
        assert!(!refused(""));
    }

    #[test]
    fn a_salt_that_is_not_known() {
        let mut all = containers("parts");
        for container in &mut all {
            container.config.env.remove(MASTER);
        }
        assert_eq!(
            refusal(&plan(&all, "/root/rec/parts", Some("gateway"), None).unwrap_err()).0,
            "Docker does not show the key with which the old gateway encrypts its stored credentials"
        );
    }

    #[test]
    fn a_gateway_without_a_database() {
        let all = llm(|env| {
            env.retain(|name, _| !["DATABASE_URL", MASTER, SALT].contains(&name.as_str()));
        });
        let plan = plan(&all, "/root/llm", None, None).unwrap();
        let found = crate::deployment::completion::Existing { cluster: true };
        let completed = crate::deployment::completion::complete(
            plan.env.text(),
            Path::new(".env"),
            found,
            &mut |_: &mut [u8]| panic!("something is made up"),
        );
        let names = completed.unwrap().changes;
        assert!(
            names.iter().all(|name| name.starts_with("add empty ")),
            "{names:?}"
        );
    }

    #[test]
    fn where_a_configuration_can_not_be_taken_over() {
        let all = containers("llm");
        for (config, expected) in [
            (
                "litellm_settings:\n  cache_params: {type: redis, redis_url: 'redis://cache:6379'}\n",
                "the old configuration, line 2: this value can't be replaced in place",
            ),
            (
                "general_settings:\n  database_url: os.environ/PG_URL\n",
                "Docker does not show PG_URL, which is general_settings.database_url of the old configuration",
            ),
        ] {
            let error = plan(&all, "/root/llm", None, Some(config)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}

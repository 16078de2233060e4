//! Every case in which the unit files differ.

use std::path::{Path, PathBuf};

use litellm_units::deployment::entrance;
use litellm_units::deployment::env_file::EnvFile;
use litellm_units::deployment::extra::{self, Extra};
use litellm_units::deployment::images_lock::ImagesLock;
use litellm_units::deployment::settings::Settings;
use litellm_units::host::capacity::Capacity;
use litellm_units::host::paths::{Paths, Scope};
use litellm_units::host::podman::PodmanVersion;
use litellm_units::host::systemd::Features;
use litellm_units::image::{ImageIdentity, ImageReference};
use litellm_units::quadlet::{self, UnitFile};
use litellm_units::service::Service;

/// What all the values of secrets hold, so that none can be in a unit file unnoticed.
pub(crate) const SECRET: &str = "S3CR3T";

/// Every kind of address.
const LISTEN: &str = "LISTEN='127.0.0.1:4000 [::1]:4000 10.0.0.7:4000 /run/litellm/100%.sock'\n\
                      LISTEN_GROUP=www-data\nLISTEN_WITHOUT_TLS=yes\n";

/// What decides about the text of the unit files.
#[derive(Debug)]
pub(crate) struct Case {
    /// `SCOPE-PODMAN-SETTINGS`.
    pub name: String,
    /// Whose units.
    pub scope: Scope,
    podman: PodmanVersion,
    systemd: Features,
    deployment: &'static str,
    env: String,
    images: ImagesLock,
}

/// At another port, with a certificate, in front of a Unix socket.
const ENTRANCE: &str = "LISTEN=/run/litellm/litellm.sock\nLISTEN_GROUP=www-data\n\
                        PUBLIC_URL=https://llm.example.com:8443\nPUBLIC_ADMIN_FROM='10.0.0.0/8, fd00::/8'\n";

/// A unit of the operator's own.
const EXTRA: &str = "\
[Unit]
Description=Guardrail
Before=litellm.service

[Container]
Image=registry.example.com/filter:1.2
Environment=MODE=strict PERCENT=%%
Secret=OPENAI_API_KEY,type=env
Volume=./filter.toml:/etc/filter.toml:ro
Volume=cache:/var/cache
HealthCmd=curl -f http://127.0.0.1:8000/

[Service]
MemoryMax=1G
";

/// Every case: the scopes, the versions of Podman that differ, and what `.env` can change.
pub(crate) fn all() -> Vec<Case> {
    let database = format!("DATABASE_URL=postgresql://me:{SECRET}@db.example.org/litellm\n");
    let redis = format!("REDIS_HOST=cache.example.org\nREDIS_PASSWORD={SECRET}\n");
    let alpine = "POSTGRES_IMAGE=docker.io/library/postgres:17.7-alpine\n\
                  REDIS_IMAGE=docker.io/library/redis:7.4.6-alpine\n";
    let notify = format!(
        "NOTIFY_URL=https://hooks.example.org/{SECRET}\nBACKUP_WAL=yes\nMETRICS_LISTEN=127.0.0.1:9157\n"
    );
    let mut cases = Vec::new();
    for scope in [Scope::System, Scope::User] {
        let deployment = match scope {
            Scope::System => "/opt/litellm-server",
            Scope::User => "/home/operator/.local/share/litellm-server",
        };
        for podman in ["5.4", "4.9"] {
            let mut add = |settings, deployment, more: &str| {
                cases.push(Case::new(scope, podman, settings, deployment, more));
            };
            add("local", deployment, "");
            add("external-database", deployment, &database);
            add("external-redis", deployment, &redis);
            add("external-both", deployment, &format!("{database}{redis}"));
            add("extra", deployment, "");
            add("dev", deployment, "");
            if scope == Scope::System {
                add("namespaces", deployment, "USER_NAMESPACES=yes\n");
            }
            if podman == "5.4" {
                add("alpine", deployment, alpine);
                add("space", "/srv/my gateway", &notify);
                add("pinned", deployment, "");
                add("listen", deployment, LISTEN);
                add(
                    "replicas",
                    deployment,
                    "LITELLM_REPLICAS=3\nLITELLM_METRICS_PORT=9160\n",
                );
                add(
                    "entrance",
                    deployment,
                    "PUBLIC_URL=https://llm.example.com\n",
                );
                add("entrance-socket", deployment, ENTRANCE);
                add("systemd-252", deployment, "");
                add("systemd-252-direct", deployment, "");
            }
        }
    }
    cases
}

impl Case {
    fn new(
        scope: Scope,
        podman: &str,
        settings: &str,
        deployment: &'static str,
        more: &str,
    ) -> Self {
        let scope_name = match scope {
            Scope::System => "system",
            Scope::User => "user",
        };
        let mut images = ImagesLock::default();
        if settings == "pinned" {
            for (image, digit) in [
                ("ghcr.io/berriai/litellm:v1.108.14", "a"),
                ("docker.io/library/postgres:17.7", "b"),
                ("docker.io/library/redis:7.4.6", "c"),
            ] {
                let digest = format!("sha256:{}", digit.repeat(64));
                images.record(
                    &ImageReference::parse(image).unwrap(),
                    ImageIdentity::of_digest(digest),
                );
            }
        }
        Self {
            images,
            name: format!("{scope_name}-{podman}-{settings}"),
            scope,
            podman: PodmanVersion::parse(podman).unwrap(),
            systemd: match settings {
                "systemd-252" => Features::of_version(252),
                // As RHEL 9 has it.
                "systemd-252-direct" => Features {
                    restart_direct: true,
                    ..Features::of_version(252)
                },
                _ => Features::DEFAULT,
            },
            deployment,
            env: format!(
                "LITELLM_IMAGE=ghcr.io/berriai/litellm:v1.108.14\n\
                 LITELLM_MASTER_KEY=sk-{SECRET}\n\
                 LITELLM_SALT_KEY=sk-{SECRET}\n\
                 POSTGRES_PASSWORD={SECRET}\n\
                 REDIS_PASSWORD={SECRET}\n\
                 OPENAI_API_KEY=sk-{SECRET}\n\
                 {more}"
            ),
        }
    }

    /// All the files, the target included, in the order in which they are installed.
    pub(crate) fn units(&self) -> Vec<UnitFile> {
        let paths = self.paths();
        let settings = Settings::from_text(&self.env, &paths.env_file()).unwrap();
        let program = Path::new("/usr/bin/litellm-units");
        let host = quadlet::RenderContext {
            paths: &paths,
            podman: self.podman,
            systemd: self.systemd,
            images: &self.images,
            program,
            capacity: Capacity {
                processors: 2,
                memory: 16 << 30,
            },
            extras: &self.extras(&paths),
            entrance: &self.entrance(),
        };
        if self.is_dev() {
            let checkout =
                (self.scope == Scope::User).then_some(Path::new("/home/operator/my litellm"));
            return quadlet::dev::render(&settings, &host, quadlet::dev::PORT, checkout).unwrap();
        }
        let mut units = vec![quadlet::target(self.scope)];
        units.extend(quadlet::render(&settings, &host).unwrap());
        units
    }

    /// Whether the units are those of development.
    pub(crate) fn is_dev(&self) -> bool {
        self.name.ends_with("-dev")
    }

    fn entrance(&self) -> entrance::Files {
        entrance::Files {
            certificate: self.name.ends_with("-entrance-socket"),
            site: String::new(),
        }
    }

    fn extras(&self, paths: &Paths) -> Vec<Extra> {
        if !self.name.ends_with("-extra") {
            return Vec::new();
        }
        let env = EnvFile::parse(&self.env).unwrap();
        let service = Service::extra("filter").unwrap();
        vec![extra::parse(service, EXTRA, &env, paths).unwrap()]
    }

    /// The locations of a default installation, whoever runs the test.
    fn paths(&self) -> Paths {
        let (quadlets, units, packaged_units, runtime, configuration) = match self.scope {
            Scope::System => (
                "/etc/containers/systemd",
                "/etc/systemd/system",
                "/usr/lib/systemd/system",
                "/run",
                "/etc",
            ),
            Scope::User => (
                "/home/operator/.config/containers/systemd",
                "/home/operator/.config/systemd/user",
                "/usr/lib/systemd/user",
                "/run/user/1000",
                "/home/operator/.config",
            ),
        };
        Paths {
            scope: self.scope,
            deployment: self.deployment.into(),
            quadlets: quadlets.into(),
            units: units.into(),
            packaged_units: packaged_units.into(),
            storage: "/var/lib/containers/storage".into(),
            runtime: runtime.into(),
            configuration: configuration.into(),
        }
    }

    /// Where the recorded text of the case is.
    pub(crate) fn golden(&self) -> PathBuf {
        golden_directory().join(format!("{}.txt", self.name))
    }
}

/// Where the recorded texts are.
pub(crate) fn golden_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

//! The services of a deployment, and what each is called.

use serde::Deserialize;

/// One of the containers that can get variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
    /// The database migration, which runs before the gateway.
    Migrate,
    /// The gateway.
    Litellm,
}

impl Service {
    /// Every service, in start order.
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Redis, Self::Migrate, Self::Litellm];

    /// The word for it on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Migrate => "migrate",
            Self::Litellm => "litellm",
        }
    }

    /// The name of its container, and of its unit without the suffix.
    #[must_use]
    pub fn container(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-postgres",
            Self::Redis => "litellm-redis",
            Self::Migrate => "litellm-migrate",
            Self::Litellm => "litellm",
        }
    }

    /// Whether one of the services has a container of this name.
    #[must_use]
    pub fn has_container(name: &str) -> bool {
        Self::ALL.iter().any(|service| service.container() == name)
    }

    /// The variable that names its image.
    #[must_use]
    pub fn image_variable(self) -> &'static str {
        match self {
            Self::Postgres => "POSTGRES_IMAGE",
            Self::Redis => "REDIS_IMAGE",
            Self::Migrate | Self::Litellm => "LITELLM_IMAGE",
        }
    }

    /// The unit that pulls its image.
    #[must_use]
    pub const fn images_unit(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-images@postgres.service",
            Self::Redis => "litellm-images@redis.service",
            Self::Migrate | Self::Litellm => "litellm-images@litellm.service",
        }
    }

    /// The name of its unit.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Postgres => "litellm-postgres.service",
            Self::Redis => "litellm-redis.service",
            Self::Migrate => "litellm-migrate.service",
            Self::Litellm => "litellm.service",
        }
    }
}

// Not derived: that would explain each name, and so make every help text a long one.
impl clap::ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}
